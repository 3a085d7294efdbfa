"""How much dearer than a bare loop of send() is a delivery of a broadcast?

    python -m bench.load.fanout --rounds 5

5,000 feeds, one event of 150 bytes every 50 ms. Goal: 1.10 times the floor.
"""

from bench.rounds import PERE, SEND, Measure, main

MEASURES = (
    Measure("fanout", "fanout", (PERE, SEND), short="--events 20", shows=("server_us", "latency/delivery/p99", "open_us", "feed_kib", "load_us"), floor=SEND.name),
)

if __name__ == "__main__":
    main(__doc__, MEASURES)
