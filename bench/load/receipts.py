"""How many receipts can be given, one by one and many in a request, in memory and on the disk?

    python -m bench.load.receipts --rounds 5

The floor is a server that parses a request with httptools and answers two bytes, so its cost is that of HTTP alone. Goals: one by one 0.4 (memory) and 0.22
(SQLite) of what the floor answers, so 2.5 and 4.5 times its cost; in batches 500,000 a second in memory.
"""

from bench.rounds import ECHO, PERE, SQLITE, Measure, main

MEASURES = (
    Measure("receipts", "receipts", (PERE, SQLITE, ECHO), "--lines 256", short="--events 20", shows=("server_us", "capacity", "latency/receipt/p99", "load_us"), floor=ECHO.name),
    Measure("receipts-batch", "receipts", (PERE, SQLITE), "--batch 1000 --feeds 100 --events 1000 --lines 16", short="--feeds 30",
            shows=("server_us", "capacity", "per_second", "load_us")),
)

if __name__ == "__main__":
    main(__doc__, MEASURES)
