"""Feeds that have come from another process and are not taken up yet, in a server that serves already: those first for which there is news.

To take all of them up at once would hold up everybody for as long as a tenth of a millisecond each takes. So it is done a few at a time between other work. What is published
meanwhile is in the store, above their positions; only a recall is told to who has the event, so there nobody may be missing. Who listens by patterns, or has something under
way, is not among them: what such a feed misses before it is there is in no store.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import Any

from pere.devices import BEFORE, Device
from pere.event import Event
from pere.passing import Told, written
from pere.storage import Store

SLICE = 0.002  # seconds of the loop at a time
REST = 0.002  # and in between: a loop that is never idle leaves the thread that commits to wait for the GIL, 5 ms each time
THERE = frozenset((BEFORE,))


class Arriving:
    """`take_up` makes one a feed of the hub."""

    def __init__(self, store: Store, take_up: Callable[[Told, Any], None]):
        self._store = store
        self._take_up = take_up
        self._flushed: Mapping[str, int] = {}
        self._waiting: dict[int, tuple[Told, Any]] = {}  # what each is, or was before it was written to up to `flushed`; and its transport
        self._live: set[int] = set()  # those
        self._by_channel: dict[str, list[int]] | None = None
        self._first: dict[str, None] = {}  # channels on which something was published meanwhile
        self._delivered, self._withdrawn = store.deliver, store.withdraw  # who is told of events, whom we only listen to
        self._devices: list[Device] = []

    def add(self, feeds: Iterable[tuple[Told, Any]], flushed: Mapping[str, int] | None = None) -> None:
        """These are still to be taken up, as they are or as they are when they have been written to up to there; the server does not serve yet, so there is no more to
        do than must be."""
        known, start = self._store.devices.known, len(self._waiting)
        self._waiting.update(enumerate(feeds, start))
        if flushed is not None:
            self._flushed = flushed
            self._live.update(range(start, len(self._waiting)))
        for number in range(start, len(self._waiting)):
            if (device := known.get(self._waiting[number][0].device)) is not None:
                device.elsewhere = THERE  # so nobody is told that it has gone, and has come
                self._devices.append(device)
        if self._waiting:
            self._store.deliver, self._store.withdraw = self._publish, self._recall

    def _publish(self, event: Event) -> None:
        self._delivered(event)
        self._first[event.channel] = None

    def _recall(self, event: Event) -> None:
        for number in self._on(event.channel):
            self._take(number)
        self._withdrawn(event)

    def _on(self, channel: str) -> list[int]:
        if self._by_channel is None:
            self._by_channel = {}
            for number, (told, _) in self._waiting.items():
                for name, *_ in told.places:
                    self._by_channel.setdefault(name, []).append(number)
        return self._by_channel.get(channel, [])

    def _take(self, number: int) -> None:
        if (feed := self._waiting.pop(number, None)) is not None:
            told, transport = feed
            self._take_up(written(told, self._flushed) if number in self._live else told, transport)

    def _take_next(self) -> None:
        for channel in tuple(self._first):
            numbers = self._on(channel)
            if numbers:
                self._take(numbers.pop())
                return
            del self._first[channel]
        self._take(next(iter(self._waiting)))

    async def take_all(self) -> None:
        """Done when all are feeds."""
        while self._waiting:
            end = perf_counter() + SLICE
            while self._waiting and perf_counter() < end:
                self._take_next()
            await asyncio.sleep(REST)
        self._store.deliver, self._store.withdraw = self._delivered, self._withdrawn
        for device in self._devices:
            if device.elsewhere:
                self._store.devices.is_elsewhere(device, BEFORE, False)
        self._devices.clear()
