"""What does one operation cost? Runs everything in bench/micro, several rounds in turn, and prints the median.

    python -m bench.micro                 all of them, and keep that in bench/results/micro.json
    python -m bench.micro ledger sse      only these
"""

import argparse
import importlib
import pkgutil
import time
from collections.abc import Callable
from statistics import median

import bench.micro
from bench import program, rounds

ROUNDS, SECONDS = 7, 0.05  # rounds of each operation, and about how long one lasts


def once(operation: Callable[[], object], times: int) -> float:
    """Seconds per call, over so many calls."""
    start = time.perf_counter()
    for _ in range(times):
        operation()
    return (time.perf_counter() - start) / times


def names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(bench.micro.__path__) if module.name != "__main__"]


def main(wanted: list[str], is_kept: bool) -> None:
    print(f"{'operation':<58}{'median, ns':>12}   least to most")
    runs: dict[str, list[dict[str, float]]] = {}
    for name in wanted:
        operations = importlib.import_module(f"bench.micro.{name}").operations()
        print(f"\n{name}")
        counts = {label: max(1, int(SECONDS / max(once(call, 1), once(call, 3), 1e-8))) for label, (call, _) in operations.items()}
        # In turn, so that a moment in which the machine is busy with something else falls on all of them.
        figures: dict[str, list[float]] = {label: [] for label in operations}
        for _ in range(ROUNDS):
            for label, (call, per_call) in operations.items():
                figures[label].append(once(call, counts[label]) / per_call * 1e9)
        for label, costs in figures.items():
            print(f"  {label:<56}{median(costs):>12,.0f}   {min(costs):,.0f} to {max(costs):,.0f}")
            runs[f"{name}: {label}"] = [{"ns": cost} for cost in costs]
    if is_kept:
        result = {"name": "micro", "scenario": "micro"} | rounds.here() | {
            "servers": {}, "arguments": {}, "rounds": ROUNDS, "is_short": False, "floor": "", "shows": ["ns"], "runs": runs, "curves": {}, "failures": {}}
        print(f"\nkept in {rounds.keep(result).relative_to(rounds.HERE.parent)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog=program(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wanted", nargs="*", metavar="NAME", help=", ".join(names()))
    parser.add_argument("--no-keep", action="store_true", help="write nothing to bench/results")
    asked = parser.parse_args()
    if unknown := set(asked.wanted) - set(names()):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    with rounds.ending_well():
        main(asked.wanted or names(), not asked.wanted and not asked.no_keep)
