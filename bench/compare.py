"""What has changed between two runs?

    python -m bench.compare before.json after.json

Two files of bench/results, of the same measure. A change is told of each figure as that of its medians, and marked where it is larger than what the
rounds of one run differ among themselves: `*` where the ranges of the two runs do not touch. Where there is a floor, compare ratios: the speed of a
machine drifts from one hour to the next, and that of the floor with it.
"""

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from bench import program
from bench.rounds import ratios, said, values


def read(path: str) -> dict[str, Any]:
    """A file of results. Ends the program with a sentence where it is none."""
    try:
        result = orjson.loads(Path(path).read_bytes())
    except OSError as error:
        sys.exit(f"{path} cannot be read: {error.strerror}")
    except orjson.JSONDecodeError:
        sys.exit(f"{path} is no JSON")
    if not isinstance(result, dict) or not {"name", "runs", "shows", "floor"} <= result.keys():
        sys.exit(f"{path} is no file of results")
    return result


def change(before: list[float], after: list[float]) -> tuple[str, str]:
    """The change of the median in percent, and a mark where no round of one run is as any of the other."""
    if not before or not after or not median(before):
        return "unknown", ""
    apart = max(before) < min(after) or max(after) < min(before)
    return f"{100 * (median(after) / median(before) - 1):+.1f} %", "*" if apart and min(len(before), len(after)) > 1 else ""


def lines(before: dict[str, Any], after: dict[str, Any]) -> list[list[str]]:
    """A line for each figure of each server that is in both."""
    found = []
    for server in before["runs"]:
        if server not in after["runs"]:
            continue
        for figure in before["shows"]:
            old, new = values(before["runs"][server], figure), values(after["runs"][server], figure)
            found.append([server, figure, said(old), said(new), *change(old, new)])
        if before["floor"] and before["floor"] == after["floor"] and server != before["floor"]:
            old, new = ratios(before, server), ratios(after, server)
            found.append([server, "x the floor", said(old), said(new), *change(old, new)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog=program(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    asked = parser.parse_args()
    before, after = read(asked.before), read(asked.after)
    if before["name"] != after["name"]:
        sys.exit(f"{asked.before} measures {before['name']}, and {asked.after} {after['name']}")
    for name in ("arguments", "processor", "python"):
        if before.get(name) != after.get(name):
            print(f"not alike in {name}: {before.get(name)} and {after.get(name)}", file=sys.stderr)
    table = Table("server", "figure", "before", "after", "change", "", title=f"{before['name']}: {before['commit']} and {after['commit']}", title_justify="left",
                  box=None, padding=(0, 2, 0, 0))
    for line in lines(before, after):
        table.add_row(*line)
    Console(width=140, markup=False, emoji=False, highlight=False).print(table)


if __name__ == "__main__":
    main()
