"""What does a push cost where there are thousands of channels with few devices each?

    python -m bench.load.spread --rounds 5

5,000 channels of two devices, an event on each. The cost is of a push with its two deliveries.
"""

from bench.rounds import PERE, SQLITE, Measure, main

MEASURES = (
    Measure("spread", "spread", (PERE, SQLITE), short="--channels 1000 --feeds 2000", shows=("server_us", "latency/delivery/p99", "open_us", "feed_kib", "load_us")),
)

if __name__ == "__main__":
    main(__doc__, MEASURES)
