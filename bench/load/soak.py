"""And for an hour: does the memory stay as it is?

    python -m bench.load.soak --rounds 1

What a server keeps must be full before one can see whether it rises: here events, receipts, keys and what is at hand of the file are kept for minutes, not for days, so all that is there within
the first quarter. `memory_rise` is the slope of the other three, and what is certain to 95 % of it lies between `memory_least` and `memory_most` (`pere/load/estimate.py`). What is in the
server meanwhile is told by `bench/inside.py`.
"""

from dataclasses import replace

from bench.rounds import Measure, main, pere

FULL_SOON = ("--backlog-events", "500", "--ttl", "120", "--max-ttl", "300", "--retention-age", "300", "--idempotency-window", "60")

WATCHED = pere("PERE, SQLite", "sqlite:{tmp}/pere.db", True, *FULL_SOON)
WATCHED = replace(WATCHED, command=(WATCHED.command[0], "-m", "bench.inside", "{tmp}/inside.jsonl", *WATCHED.command[3:]), inside="inside.jsonl")

MEASURES = (
    Measure("soak", "soak", (WATCHED,), sizes="--feeds 200 --every 0.1", short="--seconds 12",
            shows=("memory_mib", "memory_rise", "memory_least", "memory_most", "server_us", "server_busy", "latency/receipt/p99")),
)

if __name__ == "__main__":
    main(__doc__, MEASURES)
