"""The store that is only memory: fast, bounded, and gone with the process.

An event is delivered inside `append` and a receipt is entered inside `record`. The ledger of an event lives exactly as long as
the event, which makes way when its channel, or all channels together, hold too much, or some time after it has expired.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from pere.bulk import Bulk, Receipt
from pere.config import Config
from pere.entry import Entry
from pere.errors import Refusal
from pere.event import Draft, Event, format_id
from pere.receipt import CANCELLED, EXPIRED, FIRST, NAMES, NONE
from pere.schedule import Schedule
from pere.storage import Accepted, Page, Shelf
from pere.storage.recent import Recent
from pere.storage.working import WorkingSet

log = logging.getLogger("pere.store")

LONG_WAY = 64  # receipts of many that follow one that cannot go the short way: where one is, there often are more
FIRSTS = [(state, FIRST) for state in range(len(NAMES))]  # what is answered to a first word


class MemoryStore(WorkingSet):
    """`clock` is the system's, in seconds since 1970; tests hand in their own."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.time):
        super().__init__(config, clock)
        self._schedule: Schedule[Event] = Schedule()
        self._recent = Recent(config.receipts_kept, clock())
        self._documents: dict[str, dict[str, bytes]] = {}

    def trouble(self) -> str | None:
        return None

    async def settle(self) -> None:
        """Everything is kept at once."""

    async def close(self) -> None:
        """There is nothing to be saved."""

    def is_assured(self, device: str) -> bool:
        return True

    def assure(self, device: str, then: Callable[[Refusal | None], None]) -> None:
        then(None)

    def documents(self, kind: str) -> dict[str, bytes]:
        return dict(self._documents.get(kind, {}))

    def document(self, kind: str, name: str) -> bytes | None:
        return self._documents.get(kind, {}).get(name)

    def names(self, kind: str) -> list[str]:
        return sorted(self._documents.get(kind, ()))

    def put_away(self, kind: str, name: str, document: bytes | None, then: Callable[[Refusal | None], None]) -> None:
        if document is not None:
            self._documents.setdefault(kind, {})[name] = document
        else:
            self._documents.get(kind, {}).pop(name, None)
        then(None)

    def append(self, draft: Draft, then: Callable[[Accepted | Refusal], None]) -> None:
        now = self.clock()
        known = self._known_key(draft, now)
        if known is not None:
            then(known)
            return
        self._check(draft)
        then(self._accept(self.open(draft.channel), draft, self._ids.next(now), now))

    def _accept(self, shelf: Shelf, draft: Draft, id: int, now: float) -> Accepted:
        event = Event(draft, id, shelf.backlog.last + 1, now)
        accepted = self._take(shelf, event, draft, draft.need)
        entry = self.ledger.entries.get(event.id)
        if entry is not None and (entry.need <= 0 or not entry.size):  # else nothing is decided before somebody answers
            self.ledger.decide(entry, now)
        self.deliver(event)
        return accepted

    def _keep(self, shelf: Shelf, event: Event) -> None:
        self._schedule.add(event, event.expires)
        super()._keep(shelf, event)

    def _evict(self, shelf: Shelf) -> Event:
        event = super()._evict(shelf)
        self._schedule.remove(event, event.expires + self._config.keep_expired if event.expired else event.expires)
        self.ledger.drop(event.id)
        return event

    def record_many(self, receipts: Sequence[Receipt], then: Callable[[list[tuple[int, int] | Refusal]], None]) -> None:
        now = self.clock()
        answers, channels = self._enter_bulk(receipts, now) if receipts.__class__ is Bulk else self._enter(receipts, now, {})
        self._make_room()  # for what they say
        if self.on_receipts is not None:
            for channel in channels:
                self.on_receipts(channel)
        then(answers)

    def _enter(self, receipts: Sequence[Receipt], now: float, newest: dict[str, int]) -> tuple[list[Any], set[str]]:
        """What is answered to each, and on which channels there are changes."""
        rows, missing = self.ledger.find_many(receipts, now)
        answers: list[Any] = self.ledger.enter_many(rows, now)
        channels = self._recent.add_many(rows, answers)
        for place in missing:
            device, id, *_, named = receipts[place]
            answers.insert(place, self._why(device, id, named, newest))
        return answers, channels

    def _enter_bulk(self, bulk: Bulk, now: float) -> tuple[list[Any], set[str]]:
        """The same for those of one device: the short way as far as that goes, and past what stops it the way of all others."""
        answers: list[Any] = []
        channels: set[str] = set()
        newest: dict[str, int] = {}
        while bulk:
            events = self.ledger.enter_run(bulk, now)
            channels |= self._recent.add_run(bulk, events, now)
            answers += map(FIRSTS.__getitem__, bulk.states[: len(events)])
            bulk = bulk[len(events) :]
            if bulk:
                found, more = self._enter(bulk[:LONG_WAY], now, newest)
                answers += found
                channels |= more
                bulk = bulk[LONG_WAY:]
        return answers, channels

    def recall(self, channel: str, id: int, then: Callable[[int], None], refused: Callable[[Refusal], None]) -> None:
        event = self.find(channel, id)
        if not event.recalled:
            self._shelves[channel].backlog.recall(event)
            self.withdraw(event)
        count = self.ledger.recall(id)
        if count:
            self._note_end(event, None, CANCELLED)
        then(count)

    # What is followed

    def _note_end(self, event: Event, device: str | None, end: int) -> None:
        self._recent.add(event, device, end, None, self.clock())
        if self.on_receipts is not None:
            self.on_receipts(event.channel)

    def _end(self, entry: Entry, slot: int, end: int) -> None:
        if self.ledger.is_open(entry, slot):
            super()._end(entry, slot, end)
            self._note_end(entry.event, entry.names[slot], end)

    @property
    def newest_record(self) -> int:
        return self._recent.newest

    async def records(self, channel: str | None, after: int, limit: int) -> Page:
        return self._recent.page(channel, after, limit)

    # Time

    def sweep(self, now: float, is_used: Callable[[str], bool]) -> None:
        for event in self._schedule.due(now):
            if not event.expired:
                self._expire(event)
            else:
                self._drop_expired(event.channel, now)
        self._sweep_channels(now, is_used)

    def _expire(self, event: Event) -> None:
        event.expired = True
        if event.level != NONE:
            owed = self.ledger.expire(event.id, "ttl")
            if owed:
                self._note_end(event, None, EXPIRED)
                log.info("event expired", extra={"facts": {"id": format_id(event.id), "channel": event.channel, "outstanding": owed}})
        self._schedule.add(event, event.expires + self._config.keep_expired)

    def _drop_expired(self, channel: str, now: float) -> None:
        # From the front only: one that an older, longer-lived event stands before goes together with that one.
        shelf = self._shelves.get(channel)
        while shelf is not None and (oldest := shelf.backlog.oldest()) is not None and oldest.expired \
                and oldest.expires + self._config.keep_expired <= now:
            self._evict(shelf)
