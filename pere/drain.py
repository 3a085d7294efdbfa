"""The end of a server, so that nobody notices: feeds are let go a few at a time, each with a time to come back.

Whether another node can take them decides how. *With others there* (one Redis, several nodes) the feeds leave over `drain_seconds`, evenly,
and each is to come back at once: it is the leaving that makes a trickle of them, and nobody is away for longer than it takes to connect. *Alone*
(a file, memory) nobody is served anywhere until the next process is there, so to keep some and not others would only make that later: all leave
now, and it is the coming back that is spread.

A server that ends still answers pushes and receipts to its last moment, so nothing is closed in one go: that would hold up the loop.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from itertools import islice

from pere.feed import DRAIN, Feed, bye

TICK = 0.02  # seconds between two goodbyes of many
FEW = 50.0  # feeds a second that are no crowd: so many leave, however long it may take
CROWD = 2_000.0  # that come back a second: opening a feed costs 0.1 ms, so a fifth of a processor
AT_ONCE = 25  # in one turn of the loop: a millisecond
SOON = (0.05, 0.15)  # seconds after which to come back where another node is there


class Drain:
    """`feeds` gives those that are open, the oldest first, and `count` how many that are. `closed` and `deadline` are for who watches."""

    def __init__(self, feeds: Callable[[], Iterator[Feed]], count: Callable[[], int], retry: float, seconds: float, has_others: bool):
        self.closed = 0
        self._feeds = feeds
        self._count = count
        self._retry = retry
        self._time = asyncio.get_running_loop().time
        self._began = self._time()
        self._pace = max(count() / seconds, FEW) if has_others and seconds else 0.0
        self._has_others = has_others
        # How long the coming back is to take: once `retry` at least, as before many were thought of.
        self._spread = max(retry, count() / CROWD)
        self.deadline = self._began + seconds

    @property
    def left(self) -> int:
        """Feeds that are still open."""
        return self._count()

    @property
    def seconds_left(self) -> float:
        """Until what is under way is cut off."""
        return max(0.0, self.deadline - self._time())

    async def let_go(self) -> None:
        """Until no feed is open."""
        while self._count():
            most = int(self._pace * (self._time() - self._began + TICK)) - self.closed if self._pace else AT_ONCE
            for start in range(0, most, AT_ONCE):
                for feed in list(islice(self._feeds(), min(AT_ONCE, most - start))):
                    self.closed += 1
                    feed.close(DRAIN, bye(DRAIN, self._back()))
                await asyncio.sleep(0)
            if self._pace:
                await asyncio.sleep(TICK)

    def _back(self) -> float:
        """In how many seconds the next one is to come back."""
        return random.uniform(*SOON) if self._has_others else self._retry + random.random() * self._spread
