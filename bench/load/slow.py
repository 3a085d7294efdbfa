"""Do devices that never read delay the others?

    python -m bench.load.slow --rounds 5

1,000 feeds, events of 4 KiB; in turns all read, and one in a hundred more never do. Goal: p99 of the others within 5 %. `p99_chance` is by how much it differs between
two turns in which all read.
"""

from bench.rounds import PERE, Measure, main

MEASURES = (
    Measure("slow", "slow", (PERE,), short="--feeds 500 --events 40", shows=("p99_change", "p99_chance", "p99_alone_ms", "p99_beside_ms", "server_us_alone", "server_us")),
)

if __name__ == "__main__":
    main(__doc__, MEASURES)
