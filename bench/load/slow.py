"""Do devices that never read delay the others?

    python -m bench.load.slow --rounds 1 --sizes '--turns 300'

1,000 feeds, events of 4 KiB; turns of three events in which all read, and as many in which ten more feeds are open whose sockets are full. Each turn is compared with its neighbour:
`p99_ratio` is what the middle half of these pairs say, and with 95 % certainty it lies between `p99_least` and `p99_most` (`pere/load/estimate.py`). Goal: 1.05.
"""

from bench.rounds import PERE, Measure, main

MEASURES = (
    Measure("slow", "slow", (PERE,), short="--feeds 500 --turns 10", shows=("p99_ratio", "p99_least", "p99_most", "p99_alone_ms", "p99_beside_ms", "server_us_alone", "server_us")),
)

if __name__ == "__main__":
    main(__doc__, MEASURES)
