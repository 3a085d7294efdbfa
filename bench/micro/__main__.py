"""What does one operation cost? Runs everything in bench/micro, several rounds in turn, and prints the median.

    python -m bench.micro                 all of them
    python -m bench.micro ledger sse      only these
"""

import importlib
import pkgutil
import sys
import time
from collections.abc import Callable
from statistics import median

import bench.micro

ROUNDS, SECONDS = 7, 0.05  # rounds of each operation, and about how long one lasts


def once(operation: Callable[[], object], times: int) -> float:
    """Seconds per call, over so many calls."""
    start = time.perf_counter()
    for _ in range(times):
        operation()
    return (time.perf_counter() - start) / times


def main(wanted: list[str]) -> None:
    names = [module.name for module in pkgutil.iter_modules(bench.micro.__path__) if module.name != "__main__"]
    unknown = set(wanted) - set(names)
    if unknown:
        sys.exit(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    print(f"{'operation':<58}{'median':>12}{'spread':>18}")
    for name in wanted or names:
        operations = importlib.import_module(f"bench.micro.{name}").operations()
        print(f"\n{name}")
        counts = {label: max(1, int(SECONDS / max(once(call, 1), once(call, 3), 1e-8))) for label, (call, _) in operations.items()}
        # In turn, so that a moment in which the machine is busy with something else falls on all of them.
        figures: dict[str, list[float]] = {label: [] for label in operations}
        for _ in range(ROUNDS):
            for label, (call, per_call) in operations.items():
                figures[label].append(once(call, counts[label]) / per_call * 1e9)
        for label, costs in figures.items():
            print(f"  {label:<56}{median(costs):>9,.0f} ns{min(costs):>9,.0f} to {max(costs):,.0f}")


if __name__ == "__main__":
    main(sys.argv[1:])
