"""The store that is only memory: fast, bounded, and gone with the process.

An event is delivered inside `append` and a receipt is entered inside `record`. The ledger of an event lives exactly as long as
the event, which makes way when its channel, or all channels together, hold too much, or some time after it has expired.
"""

import logging
import time
from collections.abc import Callable

from pere.config import Config
from pere.errors import Gone, NotFound, Refusal
from pere.event import Draft, Event, format_id
from pere.receipt import NONE
from pere.schedule import Schedule
from pere.storage import Accepted, Shelf
from pere.storage.working import WorkingSet

log = logging.getLogger("pere.store")


class MemoryStore(WorkingSet):
    """`clock` is the system's, in seconds since 1970; tests hand in their own."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.time):
        super().__init__(config, clock)
        self._schedule: Schedule[Event] = Schedule()

    def trouble(self) -> str | None:
        return None

    async def settle(self) -> None:
        """Everything is kept at once."""

    async def close(self) -> None:
        """There is nothing to be saved."""

    def assure(self, device: str, then: Callable[[Refusal | None], None]) -> None:
        then(None)

    def append(self, draft: Draft, then: Callable[[Accepted | Refusal], None]) -> None:
        now = self.clock()
        known = self._known_key(draft, now)
        if known is not None:
            then(known)
            return
        shelf = self.open(draft.channel)
        event = Event(draft, self._ids.next(now), shelf.backlog.last + 1, now)
        accepted = self._take(shelf, event, draft, draft.need)
        entry = self.ledger.entries.get(event.id)
        if entry is not None:
            self.ledger.decide(entry)
        self.deliver(event)
        then(accepted)

    def _keep(self, shelf: Shelf, event: Event) -> None:
        self._schedule.add(event, event.expires)
        super()._keep(shelf, event)

    def _evict(self, shelf: Shelf) -> Event:
        event = super()._evict(shelf)
        self._schedule.remove(event, event.expires + self._config.keep_expired if event.expired else event.expires)
        self.ledger.drop(event.id)
        return event

    def record(self, channel: str | None, device: str, id: int, state: int, status: bytes | None, then: Callable[[int, int], None],
               refused: Callable[[Refusal], None]) -> None:
        try:
            stands, outcome = self.ledger.record(id, channel, device, state, status, self.clock())
        except NotFound:
            shelf = self.shelf(channel) if channel is not None else None
            if shelf is not None and id <= shelf.backlog.evicted_id and shelf.backlog.find(id) is None:
                raise Gone("event_gone", f"event {format_id(id)} is no longer kept") from None
            raise
        then(stands, outcome)

    def recall(self, channel: str, id: int, then: Callable[[int], None], refused: Callable[[Refusal], None]) -> None:
        event = self.find(channel, id)
        if not event.recalled:
            event.recalled = True
            self.withdraw(event)
        then(self.ledger.recall(id))

    def sweep(self, now: float, is_used: Callable[[str], bool]) -> None:
        for event in self._schedule.due(now):
            if not event.expired:
                event.expired = True
                if event.level != NONE:
                    owed = self.ledger.expire(event.id, "ttl")
                    if owed:
                        log.info("event expired", extra={"facts": {"id": format_id(event.id), "channel": event.channel, "outstanding": owed}})
                self._schedule.add(event, event.expires + self._config.keep_expired)
                continue
            # From the front only: one that an older, longer-lived event stands before goes together with that one.
            shelf = self._shelves.get(event.channel)
            while shelf is not None and (oldest := shelf.backlog.oldest()) is not None and oldest.expired \
                    and oldest.expires + self._config.keep_expired <= now:
                self._evict(shelf)
        self._sweep_channels(now, is_used)
