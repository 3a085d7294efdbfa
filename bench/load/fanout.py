"""How much dearer than a bare loop of send() is a delivery of a broadcast?

    python -m bench.load.fanout --rounds 5

5,000 feeds, one event of 150 bytes every 50 ms. Goal: 1.10 times the floor. And then 10,000 feeds, with time for each event: when have 99 in 100 of them got
it? Goal: 1.2 times the floor's.
"""

from bench.rounds import PERE, SEND, Measure, main

MEASURES = (
    Measure("fanout", "fanout", (PERE, SEND), short="--events 20", shows=("server_us", "latency/delivery/p99", "open_us", "feed_kib", "load_us"), floor=SEND.name),
    Measure("fanout-wide", "fanout", (PERE, SEND), "--feeds 10000 --events 20 --every 0.3", short="--feeds 4000 --events 10",
            shows=("latency/delivery/p99", "latency/delivery/p50", "server_us", "load_us"), floor=SEND.name),
)

if __name__ == "__main__":
    main(__doc__, MEASURES)
