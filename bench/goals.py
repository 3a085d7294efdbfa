"""The goals, and what came of them: each is a figure of a file in bench/results, so that nothing said of it can be older than what was measured.

`bench.pictures` writes them into bench/README.md and README.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import orjson

from bench.rounds import ECHO, PERE, RESULTS, SQLITE, ratios, said, values
from pere.load.estimate import slope

Result = dict[str, Any]
SHOWN_BY = {"%": 100.0, "% more in an hour": 100.0, "ms": 1e-6}  # of what single operations take, which is told in nanoseconds
HAIR = 0.05  # of the goal, within which it is reached by a hair


@dataclass(frozen=True)
class Goal:
    """`found` is its figure in each round of the result `file`, which is to be `at_most` or else at least `goal`, in this unit."""

    what: str
    goal: float
    unit: str
    file: str
    found: Callable[[Result], list[float]]
    at_most: bool = True

    def is_met(self, figure: float) -> bool:
        return figure <= self.goal if self.at_most else figure >= self.goal

    def line(self, result: Result) -> list[str]:
        found = [figure * SHOWN_BY.get(self.unit, 1.0) for figure in self.found(result)]
        middle = median(found)
        verdict = "missed" if not self.is_met(middle) else "reached by a hair" if abs(middle / self.goal - 1) < HAIR else "reached"
        if self.is_met(middle) and not all(map(self.is_met, found)):
            verdict += ", but not in every round"
        goal = f"{'at most' if self.at_most else 'at least'} {self.goal:,g} {self.unit}"
        rounds = result["rounds"]
        return [self.what, goal, f"**{said(found)}**: {verdict}", f"[{self.file}](#{self.file}), {'one round' if rounds == 1 else f'{rounds} rounds'}"]


def _figure(name: str, server: str = PERE.name) -> Callable[[Result], list[float]]:
    return lambda result: values(result["runs"][server], name)


def _floor(server: str = PERE.name) -> Callable[[Result], list[float]]:
    return lambda result: ratios(result, server)


def _beside(other: str, server: str = PERE.name, name: str = "server_us") -> Callable[[Result], list[float]]:
    """By how much `other` is dearer, round by round."""
    return lambda result: [theirs / own for theirs, own in zip(values(result["runs"][other], name), values(result["runs"][server], name), strict=True)]


def _rise(result: Result) -> list[float]:
    return [60 * rise / 1024 / mib for rise, mib in zip(*(_figure(name, SQLITE.name)(result) for name in ("memory_rise", "memory_mib")), strict=True)]


def _rise_inside(name: str) -> Callable[[Result], list[float]]:
    """The same of something that a server has told of itself every minute, without the first quarter too."""
    def found(result: Result) -> list[float]:
        told = [[look[name] for look in run["inside"]] for run in result["runs"][SQLITE.name]]
        return [60 * slope(kept)[0] / median(kept) for kept in (each[len(each) // 4 :] for each in told)]

    return found


GOALS = (
    Goal("broadcast, processor per delivery", 1.10, "x the floor", "fanout", _floor()),
    Goal("Nchan's processor for the same", 1.35, "times", "peers-fanout", _beside("Nchan"), at_most=False),
    Goal("burst of ten, processor per delivery", 0.18, "x the floor", "burst", _floor()),
    Goal("the same on one processor", 900_000, "/s", "burst", _figure("capacity"), at_most=False),
    Goal("acknowledged delivery, memory", 1.4, "x the floor", "mission", _floor()),
    Goal("acknowledged delivery, SQLite", 2.0, "x the floor", "mission-disk", _floor(SQLITE.name)),
    Goal("single receipts, memory", 45_000, "/s", "receipts", _figure("capacity"), at_most=False),
    Goal("the same", 0.4, "of a bare echo", "receipts", _beside(ECHO.name), at_most=False),
    Goal("single receipts, SQLite", 25_000, "/s", "receipts", _figure("capacity", SQLITE.name), at_most=False),
    Goal("the same", 0.22, "of a bare echo", "receipts", _beside(ECHO.name, SQLITE.name), at_most=False),
    Goal("receipts in batches, memory", 500_000, "/s", "receipts-batch", _figure("capacity"), at_most=False),
    Goal("memory per quiet feed, everything on", 2.0, "KiB", "idle", _figure("feed_kib")),
    Goal("opening a feed", 60, "us", "fanout", _figure("open_us")),
    Goal("10,000 come back, with ten events each, memory", 1.5, "s", "reconnect", _figure("seconds")),
    Goal("the same, SQLite", 1.5, "s", "reconnect", _figure("seconds", SQLITE.name)),
    Goal("a quiet server with 10,000 feeds", 1, "%", "idle", _figure("server_busy")),
    Goal("p99 of a broadcast to 10,000 devices", 1.2, "x the floor", "fanout-wide", _floor()),
    Goal("p99 of the others where 1 % of feeds are stuck", 1.05, "times", "slow", _figure("p99_ratio")),
    Goal("the same, with 95 % certainty", 1.05, "times", "slow", _figure("p99_most")),
    Goal("a scrape of /metrics with 10,000 devices", 3, "ms", "micro", _figure("ns", "metrics: a scrape, 10,000 devices")),
    Goal("memory under a mixed load, once all is full that is kept", 1, "% more in an hour", "soak", _rise),
    Goal("what malloc has given out of it", 1, "% more in an hour", "soak", _rise_inside("malloc_kib")),
    Goal("pieces that Python has given out of it", 1, "% more in an hour", "soak", _rise_inside("blocks")),
)


def lines() -> list[list[str]]:
    """The table: its head, and a line for each goal."""
    read = {name: orjson.loads((RESULTS / f"{name}.json").read_bytes()) for name in {goal.file for goal in GOALS}}
    return [["", "goal", "is", "from"], *(goal.line(read[goal.file]) for goal in GOALS)]
