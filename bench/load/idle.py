"""What do ten thousand feeds cost that are quiet?

    python -m bench.load.idle --rounds 5

Tokens, metrics and heartbeats on; half a minute, in which each feed has its heartbeat. Goals: 2.0 KiB for a feed, under 1 % of a processor.
"""

from bench.rounds import PERE, Measure, main

MEASURES = (
    Measure("idle", "idle", (PERE,), short="--feeds 5000 --seconds 5", shows=("server_busy", "feed_kib", "open_us")),
)

if __name__ == "__main__":
    main(__doc__, MEASURES)
