"""And where ten events come at once?

    python -m bench.load.burst --rounds 5

5,000 feeds, ten events every 50 ms. PERE joins what comes in one turn of its loop and writes once, the floor sends each. Goal: 0.18 times the floor.
"""

from bench.rounds import PERE, SEND, Measure, main

MEASURES = (
    Measure("burst", "burst", (PERE, SEND), short="--events 60", shows=("server_us", "capacity", "latency/delivery/p99", "load_us"), floor=SEND.name),
)

if __name__ == "__main__":
    main(__doc__, MEASURES)
