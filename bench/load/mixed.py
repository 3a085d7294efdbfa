"""And all at once: broadcasts, events for single devices, receipts that are late or never come, feeds that are lost and come back?

    python -m bench.load.mixed --rounds 3

The cost is of a delivery with all that belongs to it, so it is for comparing one PERE with another.
"""

from bench.rounds import PERE, SQLITE, Measure, main

MEASURES = (
    Measure("mixed", "mixed", (PERE, SQLITE), short="--seconds 5", shows=("server_us", "server_busy", "latency/delivery/p50", "latency/receipt/p99", "load_us")),
)

if __name__ == "__main__":
    main(__doc__, MEASURES)
