"""Feeds that have come from another process and are not taken up yet, in a server that serves already: those first for which there is news.

To take all of them up at once would hold up everybody for as long as a tenth of a millisecond each takes. So it is done a few at a time between other work. What is published
meanwhile is in the store, above their positions; only a recall is told to who has the event, so there nobody may be missing. Who listens by patterns, or has something under
way, is not among them: what such a feed misses before it is there is in no store.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from time import perf_counter
from typing import Any

from pere.devices import BEFORE, Device
from pere.event import Event
from pere.passing import Told, written
from pere.storage import Store

NEWS = 0.002  # seconds of the loop at a time, for those for whom there is news
SLICE = 0.0005  # and for all others, who may come in between
REST = 0.001  # and nothing is done: a loop that is never idle leaves the thread that commits to wait for the GIL, 5 ms each time
THERE = frozenset((BEFORE,))


class Arriving:
    """`take_up` makes one a feed of the hub."""

    def __init__(self, store: Store, take_up: Callable[[Told, Any], None]):
        self._store = store
        self._take_up = take_up
        self._flushed: Mapping[str, int] = {}
        # What each is, and its transport. Those that were expected, and have been written to up to `flushed` since, are there by their numbers.
        self._waiting: dict[int, tuple[Told, Any]] = {}
        self._others = count(-1, -1)  # the numbers of all others
        self._by_channel: dict[str, list[int]] = {}
        self._first: dict[str, None] = {}  # channels on which something was published meanwhile
        self._behind: list[int] = []  # who may have missed something before
        self._delivered, self._withdrawn = store.deliver, store.withdraw  # who is told of events, whom we only listen to
        self._known: Mapping[str, Device] = store.devices.known
        self._devices: list[Device] = []

    def expect(self, feeds: Mapping[int, tuple[Told, Any]]) -> None:
        """These will come by their numbers, most of them, and be as they are told but for how far they have been written to: so what there is to do is done before anybody waits."""
        self._waiting.update(feeds)
        for number in feeds:
            self._enter(number)

    def come(self, but: Iterable[int], flushed: Mapping[str, int]) -> None:
        """Those that were expected have come, but for these; they have been written to up to these ordinals of their channels."""
        for number in but:
            self._waiting.pop(number, None)
        self._flushed = flushed
        self._begin()

    def add(self, feeds: Iterable[tuple[Told, Any]]) -> None:
        """These have come too, and are as they are told: most of them are behind."""
        for feed, number in zip(feeds, self._others, strict=False):
            self._waiting[number] = feed
            self._enter(number)
            self._behind.append(number)
        self._begin()

    def _enter(self, number: int) -> None:
        told, _ = self._waiting[number]
        for name, *_ in told.places:
            self._by_channel.setdefault(name, []).append(number)
        if (device := self._known.get(told.device)) is not None:
            device.elsewhere = THERE  # so nobody is told that it has gone, and has come
            self._devices.append(device)

    def _begin(self) -> None:
        if self._known is not self._store.devices.known:
            # They were read again since.
            self._known, numbers = self._store.devices.known, tuple(self._waiting)
            self._by_channel.clear()
            self._devices.clear()
            for number in numbers:
                self._enter(number)
        if self._waiting:
            self._store.deliver, self._store.withdraw = self._publish, self._recall

    def _publish(self, event: Event) -> None:
        self._delivered(event)
        self._first[event.channel] = None

    def _recall(self, event: Event) -> None:
        for number in self._by_channel.get(event.channel, ()):
            self._take(number)
        self._withdrawn(event)

    def _take(self, number: int) -> None:
        if (feed := self._waiting.pop(number, None)) is not None:
            told, transport = feed
            self._take_up(written(told, self._flushed) if number >= 0 else told, transport)

    def _take_first(self) -> bool:
        """One for whom there is, or may be, news; False where nobody is left."""
        if self._behind:
            self._take(self._behind.pop())
            return True
        for channel in tuple(self._first):
            if numbers := self._by_channel.get(channel):
                self._take(numbers.pop())
                return True
            del self._first[channel]
        return False

    async def take_all(self) -> None:
        """Done when all are feeds."""
        while self._waiting:
            begun = perf_counter()
            while perf_counter() < begun + NEWS and self._take_first():
                pass
            while self._waiting and perf_counter() < begun + SLICE:
                self._take(next(iter(self._waiting)))
            await asyncio.sleep(REST)
        self._store.deliver, self._store.withdraw = self._delivered, self._withdrawn
        for device in self._devices:
            if device.elsewhere:
                self._store.devices.is_elsewhere(device, BEFORE, False)
        self._devices.clear()
