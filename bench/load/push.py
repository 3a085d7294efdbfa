"""How many events can be pushed, each as safe as the store makes it?

    python -m bench.load.push --rounds 5

64 connections, 16 channels, nobody listens. The floor is a server that parses a request with httptools and answers two bytes.
"""

from bench.rounds import ECHO, PERE, SQLITE, Measure, main

MEASURES = (
    Measure("push", "push", (PERE, SQLITE, ECHO), short="--events 5000", shows=("server_us", "capacity", "latency/push/p99", "load_us"), floor=ECHO.name),
)

if __name__ == "__main__":
    main(__doc__, MEASURES)
