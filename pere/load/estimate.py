"""How sure a figure is: by what one thing differs from another where both were measured in turns, and whether what was watched rises.

Both ask the samples themselves (Efron's bootstrap): drawn anew a thousand times, with some twice and some not at all, they would have
said this or that, and between the ends of 95 % of it the truth lies.
"""

import random
from collections.abc import Sequence
from itertools import combinations
from math import exp, log
from statistics import fmean, median

DRAWS = 1_000
SURE = 0.95

Estimate = tuple[float, float, float]  # the figure, and its least and most


def ratio(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """What `after` is to `before`, of which each was measured beside the other: the geometric mean of the middle half of the pairs, for
    in a few of them the machine did something else."""
    logs = [log(later / earlier) for earlier, later in zip(before, after, strict=True)]
    source = random.Random(0)  # the same samples say the same twice
    return _middle(logs), *_ends([_middle(source.choices(logs, k=len(logs))) for _ in range(DRAWS)])


def slope(values: Sequence[float], pieces: int = 10) -> Estimate:
    """By how much values that follow each other rise from one to the next: the median of the slopes between any two (Theil and Sen). What is
    drawn anew are whole pieces of what is left beside that line, for neighbours are alike: a memory that stood still for long rises at once."""
    rise = _rise(values)
    rest = [value - rise * place for place, value in enumerate(values)]
    size = max(1, len(values) // pieces)
    starts = range(len(values) - size + 1)
    source = random.Random(0)
    found = []
    for _ in range(DRAWS // 5):
        drawn = [rest[start + place] for start in source.choices(starts, k=-(-len(values) // size)) for place in range(size)][: len(values)]
        found.append(_rise([value + rise * place for place, value in enumerate(drawn)]))
    return rise, *_ends(found)


def _rise(values: Sequence[float]) -> float:
    return median((later - earlier) / (there - here) for (here, earlier), (there, later) in combinations(enumerate(values), 2)) if len(values) > 1 else 0.0


def _middle(logs: list[float]) -> float:
    kept = sorted(logs)[len(logs) // 4 : -(len(logs) // 4) or None]
    return exp(fmean(kept))


def _ends(found: list[float]) -> tuple[float, float]:
    found.sort()
    cut = int(len(found) * (1 - SURE) / 2)
    return found[cut], found[-1 - cut]
