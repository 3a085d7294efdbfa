"""What is due when: events by the second in which they expire.

An entry costs one place in a set and can be taken out again at once, so a million events that make way before their time
leave nothing behind. No clock: whoever asks brings the time.
"""

import heapq
import math
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Schedule(Generic[Item]):
    """Items by deadline, to the second; never early."""

    __slots__ = ("_seconds", "_order")

    def __init__(self) -> None:
        self._seconds: dict[int, set[Item]] = {}
        self._order: list[int] = []

    def __len__(self) -> int:
        return sum(map(len, self._seconds.values()))

    def add(self, item: Item, deadline: float) -> None:
        second = math.ceil(deadline)
        items = self._seconds.get(second)
        if items is None:
            items = self._seconds[second] = set()
            heapq.heappush(self._order, second)
        items.add(item)

    def remove(self, item: Item, deadline: float) -> None:
        """Take it out again; the deadline is the one that it was added with."""
        second = math.ceil(deadline)
        items = self._seconds.get(second)
        if items is None:
            return
        items.discard(item)
        if not items:
            del self._seconds[second]
            # Its place in the order stays behind, to be stepped over when its time comes, unless too many do.
            if len(self._order) > 2 * len(self._seconds) + 64:
                self._order = sorted(self._seconds)

    def due(self, now: float, limit: int = 1000) -> list[Item]:
        """What is due, and is no longer scheduled; at most `limit` at once, so that the caller can pause between."""
        found: list[Item] = []
        while self._order and self._order[0] <= now and len(found) < limit:
            items = self._seconds.get(self._order[0])
            while items and len(found) < limit:
                found.append(items.pop())
            if not items:
                self._seconds.pop(heapq.heappop(self._order), None)
        return found


class Unscheduled(Schedule[Item]):
    """Where somebody else sees to it that what is due is done."""

    __slots__ = ()

    def add(self, item: Item, deadline: float) -> None:
        pass

    def remove(self, item: Item, deadline: float) -> None:
        pass
