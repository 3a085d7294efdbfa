"""A short tour of all benchmarks, with small sizes and one round: ten to fifteen minutes that show whether it all runs, and about where it stands.

    make bench                                  the tour
    make bench ARGS="fanout mission"            only these, as the tour has them
    python -m bench.load.fanout --rounds 5      one of them, as it is quoted

A tour is kept in bench/results/tour, and its pictures beside it. What is quoted is measured with more rounds, on a machine that does nothing else.
"""

import argparse
import importlib
import pkgutil
import time
from pathlib import Path

import bench.load
from bench import experiments, peers, pictures, rounds
from bench.micro import __main__ as micro


def measures() -> list[rounds.Measure]:
    """All that is measured by rounds, in the order of the files."""
    found: list[rounds.Measure] = []
    for module in pkgutil.iter_modules(bench.load.__path__):
        found += getattr(importlib.import_module(f"bench.load.{module.name}"), "MEASURES", ())
    return found + list(experiments.measures()) + list(peers.measures())


class Clock:
    """Says how long the rest takes, if it goes on as it went so far."""

    def __init__(self, runs: int):
        self._runs = runs
        self._done = 0
        self._began = time.monotonic()

    def __call__(self) -> str:
        done, self._done = self._done, self._done + 1
        if not done:
            return ""
        left = (time.monotonic() - self._began) / done * (self._runs - done)
        return f"; about {left / 60:.0f} min left" if left > 90 else f"; about {left:.0f} s left"


def main() -> None:
    every, small = measures(), micro.names()
    there = [*(measure.name for measure in every), *small]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wanted", nargs="*", metavar="NAME", help=", ".join(there))
    wanted = parser.parse_args().wanted
    if unknown := sorted(set(wanted) - set(there)):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(there)}")
    rounds.RESULTS = rounds.HERE / "results" / "tour"
    chosen = [measure for measure in every if not wanted or measure.name in wanted]
    single = [name for name in small if not wanted or name in wanted]
    print(f"{len(chosen)} measures, one after the other, each with a server of its own per line of its table, and then {len(single)} sorts of single operations.\n"
          "Results are kept as they come; Ctrl-C ends it.\n", flush=True)
    clock = Clock(sum(len(measure.servers) for measure in chosen))
    with rounds.ending_well():
        for measure in chosen:
            result = rounds.measured(measure, rounds=1, is_short=True, left=clock)
            rounds.show(result)
            path = rounds.keep(result)
            picture = pictures.draw(result, path.with_suffix(".png"))
            print(f"kept in {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}, and drawn in {picture.name}\n")
        if single:
            micro.main(single, not wanted)


if __name__ == "__main__":
    main()
