"""And for an hour: does the memory stay as it is?

    python -m bench.load.soak --rounds 1
    python -m bench.load.soak --rounds 1 --sizes '--feeds 120 --every 0.01 --leave 0.05 --seconds 600'

`memory_growth` is the most of the last third over the most of the middle third: the first third fills what is kept. The second does the events of an hour and a half
in ten minutes.
"""

from bench.rounds import SQLITE, Measure, main

MEASURES = (
    Measure("soak", "soak", (SQLITE,), short="--seconds 10", shows=("memory_growth", "server_us", "server_busy", "latency/receipt/p99")),
)

if __name__ == "__main__":
    main(__doc__, MEASURES)
