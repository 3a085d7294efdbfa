"""How long until ten thousand devices that left are back at once, each with the ten events that it missed?

    python -m bench.load.reconnect --rounds 5

The load opens connections on one processor too, so the time is that of both. Goals: 60 us to open a feed, 1.5 s for all.
"""

from bench.rounds import PERE, SQLITE, Measure, main

MEASURES = (
    Measure("reconnect", "reconnect", (PERE, SQLITE), short="--feeds 3000", shows=("server_us", "seconds", "latency/back and up to date/p99", "open_us", "load_us")),
)

if __name__ == "__main__":
    main(__doc__, MEASURES)
