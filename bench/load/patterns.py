"""What does a delivery cost to feeds that listen by a pattern?

    python -m bench.load.patterns --rounds 5

1,000 feeds of `bench.*.on`, 50 channels that come into being under it.
"""

from bench.rounds import PERE, SEND, Measure, main

MEASURES = (
    Measure("patterns", "patterns", (PERE, SEND), short="--events 60", shows=("server_us", "latency/delivery/p99", "open_us", "feed_kib", "load_us"), floor=SEND.name),
)

if __name__ == "__main__":
    main(__doc__, MEASURES)
