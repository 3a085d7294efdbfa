"""What does a delivery cost that its device acknowledges, in memory and on the disk?

    python -m bench.load.mission --rounds 5

5,000 devices answer every event, each by a request of its own on one of 64 connections (512 where a receipt waits for the disk). The next event is pushed
when all have answered. The floor sends, and answers a POST with two bytes. Goals: memory 1.4 times the floor, SQLite 2.0 times.
"""

from bench.rounds import PERE, SEND, SQLITE, Measure, main

MEASURES = (
    Measure("mission", "mission", (PERE, SEND), short="--events 6", shows=("server_us", "capacity", "latency/receipt/p99", "load_us"), floor=SEND.name),
    Measure("mission-disk", "mission", (SQLITE, SEND), "--lines 512", short="--events 6", shows=("server_us", "capacity", "latency/receipt/p99", "load_us"),
            floor=SEND.name),
)

if __name__ == "__main__":
    main(__doc__, MEASURES)
