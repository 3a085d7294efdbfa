"""The store that is only memory: fast, bounded, and gone with the process.

An event is delivered inside `append` and a receipt is entered inside `record`. What is kept is bounded per channel and
over all channels; the ledger of an event lives exactly as long as the event.
"""

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import orjson

from pere.audience import Member
from pere.backlog import Backlog
from pere.config import Config
from pere.devices import Device, Devices
from pere.errors import Gone, NotFound, Refusal, Unavailable
from pere.event import LEVELS, SEQUENCE_BITS, Draft, Event, IdClock, format_id, timestamp
from pere.ledger import Entry, Ledger
from pere.names import pattern as compiled
from pere.receipt import NAMES, NONE, PENDING, STATE, closes, quantiles
from pere.schedule import Schedule
from pere.storage import Accepted, Shelf, Store

log = logging.getLogger("pere.store")

SWEEP_CHANNELS = 1_000  # channels looked at in one sweep
SWEEP_MEMBERS = 20_000  # and registrations: a few milliseconds of the loop
QUIET = 60.0  # seconds that an empty channel is kept, so that a pause between two pushes does not cost its history of ids
MAX_KEYS = 100_000  # Idempotency-Keys remembered at once; about 30 MB when full


class MemoryStore(Store):
    """`clock` is the system's, in seconds since 1970; tests hand in their own."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.time):
        self.ledger = Ledger(config.max_event_status_bytes)
        self.devices = Devices()
        self.clock = clock
        # Just below the first id that this moment could give; none that is given will be below, even if the clock steps back.
        self.born = (int(clock() * 1000) << SEQUENCE_BITS) - 1
        self.deliver = lambda event: None
        self.bytes = 0
        self.events = 0  # accepted since the start
        self.event_bytes = 0
        self._config = config
        self._ids = IdClock(self.born)
        self._shelves: dict[str, Shelf] = {}
        # Those that hold events, in the order of their newest push: the quietest is found at the front.
        self._pushed: OrderedDict[str, Shelf] = OrderedDict()
        self._round: deque[str] = deque()  # the order in which channels are swept
        self._schedule: Schedule[Event] = Schedule()
        self._keys: OrderedDict[tuple[str, str], tuple[float, Accepted]] = OrderedDict()

    @property
    def newest(self) -> int:
        return self._ids.last

    def trouble(self) -> str | None:
        return None

    # Events

    def append(self, draft: Draft, then: Callable[[Accepted | Refusal], None]) -> None:
        now = self.clock()
        if draft.key:
            self._forget_keys(now)
            known = self._keys.get((draft.channel, draft.key))
            if known is not None:
                then(Accepted(known[1].id, known[1].audience, repeated=True))
                return
        shelf = self.open(draft.channel)
        event = Event(draft, self._ids.next(now), shelf.backlog.last + 1, now)
        entry = self.ledger.open(event, shelf.audience, draft.need)
        audience = entry.size if entry is not None else len(draft.to) or len(shelf.audience)
        shelf.touched = now
        self._pushed[draft.channel] = shelf
        self._pushed.move_to_end(draft.channel)
        self._keep(shelf, event)
        for device in draft.to:
            if device not in shelf.audience.members:
                shelf.waiting.setdefault(device, event.ordinal)
        accepted = Accepted(event.id, audience)
        if draft.key:
            self._keys[draft.channel, draft.key] = now, accepted
        self.events += 1
        self.event_bytes += len(draft.data)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("event accepted", extra={"facts": {
                "id": format_id(event.id), "channel": event.channel, "bytes": len(event.data), "audience": audience}})
        self.deliver(event)
        then(accepted)

    def _keep(self, shelf: Shelf, event: Event) -> None:
        shelf.backlog.append(event)
        self.bytes += event.size
        self._schedule.add(event, event.expires)
        while shelf.backlog.is_over():
            self._evict(shelf)
        while self.bytes > self._config.backlog_total_bytes:
            quietest = next(iter(self._pushed.values()))
            if quietest is shelf and len(shelf.backlog) == 1:
                break
            self._evict(quietest)

    def _evict(self, shelf: Shelf) -> None:
        event = shelf.backlog.evict()
        self.bytes -= event.size
        self._schedule.remove(event, event.expires + self._config.keep_expired if event.expired else event.expires)
        self.ledger.drop(event.id)
        if shelf.waiting:
            shelf.waiting = {device: ordinal for device, ordinal in shelf.waiting.items() if ordinal >= shelf.backlog.first}
        if not len(shelf.backlog):
            del self._pushed[shelf.name]

    def open(self, channel: str) -> Shelf:
        known = self._shelves.get(channel)
        if known is not None:
            return known
        # A channel is born, and with it those devices join who wanted all such channels.
        config = self._config
        shelf = self._shelves[channel] = Shelf(channel, Backlog(config.backlog_events, config.backlog_bytes), self.clock())
        self._round.append(channel)
        for wanted, names in self.devices.patterns.items():
            if compiled(wanted)(channel):
                for name in names:
                    # Beyond `max_devices` too: the audience of an event is not to depend on who came last.
                    self._join(shelf, name)
        return shelf

    def _forget_keys(self, now: float) -> None:
        while self._keys:
            oldest = next(iter(self._keys))
            if self._keys[oldest][0] > now - self._config.idempotency_window and len(self._keys) < MAX_KEYS:
                break
            del self._keys[oldest]

    def find(self, channel: str, id: int) -> Event:
        shelf = self._shelves.get(channel)
        event = shelf.backlog.find(id) if shelf is not None else None
        if event is not None:
            return event
        if shelf is not None and id <= shelf.backlog.evicted_id:
            raise Gone("event_gone", f"event {format_id(id)} is no longer kept")
        raise NotFound("unknown_event", f"there is no event {format_id(id)} on channel {channel}")

    def shelf(self, channel: str) -> Shelf | None:
        return self._shelves.get(channel)

    def shelves(self) -> dict[str, Shelf]:
        return self._shelves

    # Receipts

    def record(self, channel: str | None, device: str, id: int, state: int, status: bytes | None, then: Callable[[int, int], None]) -> None:
        try:
            stands, outcome = self.ledger.record(id, channel, device, state, status, self.clock())
        except NotFound:
            shelf = self._shelves.get(channel) if channel is not None else None
            if shelf is not None and id <= shelf.backlog.evicted_id and shelf.backlog.find(id) is None:
                raise Gone("event_gone", f"event {format_id(id)} is no longer kept") from None
            raise
        then(stands, outcome)

    def pending(self, channel: str, device: str, last: int) -> list[int]:
        shelf = self._shelves.get(channel)
        found = []
        for event in shelf.backlog if shelf is not None else ():
            entry = self.ledger.entries.get(event.id) if event.id <= last else None
            if entry is not None and (slot := entry.slot(device)) >= 0 and entry.states[slot] & STATE == PENDING:
                found.append(event.id)
        return found

    async def status(self, channel: str, id: int) -> dict[str, Any]:
        event = self.find(channel, id)
        entry = self.ledger.entries.get(id)
        counts = dict(zip(NAMES, entry.counts, strict=True)) if entry is not None else dict.fromkeys(NAMES, 0)
        sent = counts["pending"] - self._unsent(event, entry) if entry is not None else 0
        return {
            "id": format_id(id),
            "channel": channel,
            "type": event.type or "message",
            "time": timestamp(event.time),
            "expires": timestamp(event.expires),
            "publisher": event.publisher or None,
            "receipt": next(word for word, level in LEVELS.items() if level == event.level),
            "audience": entry.size if entry is not None else 0,
            "counts": {"pending": counts.pop("pending") - sent, "sent": sent} | counts,
            "outstanding": entry.owed if entry is not None else 0,
            "need": entry.need if entry is not None else 0,
            "satisfied": entry is None or entry.is_satisfied(),
            "complete": entry is None or entry.is_complete(),
            "latency": quantiles(entry.latencies) if entry is not None and entry.latencies is not None else {},
            "version": (entry.version if entry is not None else 0, sent),
        }

    def _unsent(self, event: Event, entry: Entry) -> int:
        """How many of the pending devices the event was never written to: only those who are away can be among them."""
        if entry.slots is not None:
            return sum(byte & STATE == PENDING and not self._is_sent(event, entry.names[slot]) for slot, byte in enumerate(entry.states))
        states, size, ordinal = entry.states, len(entry.states), event.ordinal
        return sum(
            member.position < ordinal
            for member in entry.audience
            if not member.live and member.slot < size and states[member.slot] & STATE == PENDING
        )

    def _is_sent(self, event: Event, device: str) -> bool:
        member = self._shelves[event.channel].audience.members.get(device)
        return member is not None and (member.live > 0 or member.position >= event.ordinal)

    async def lines(self, channel: str, id: int, state: str | None, start: int, limit: int) -> tuple[list[dict[str, Any]], int | None]:
        event = self.find(channel, id)
        entry = self.ledger.entries.get(id)
        found: list[dict[str, Any]] = []
        for line in self.ledger.lines(entry, start) if entry is not None else ():
            is_open = not closes(line.state, event.level)
            is_sent = self._is_sent(event, line.device)
            name = "sent" if line.state == PENDING and is_sent else NAMES[line.state]
            if state is not None and state != name and not (state == "outstanding" and is_open):
                continue
            if len(found) == limit:
                return found, line.slot
            device = self.devices.get(line.device)
            member = entry.audience.members.get(line.device)  # type: ignore[union-attr]
            sent = max(event.time, member.since) if is_sent and member is not None and line.latency is None else event.time
            found.append({
                "device": line.device,
                "state": name,
                "status": orjson.Fragment(line.status) if line.status is not None else None,
                "attempt": line.resends + is_sent,
                "late": line.late,
                "sent_at": timestamp(sent) if is_sent or line.latency is not None else None,
                "receipt_at": timestamp(event.time + line.latency) if line.latency is not None else None,
                "latency": line.latency,
                "online": device is not None and bool(device.feeds),
            })
        return found, None

    def attempt(self, event: Event, device: str, again: bool) -> int:
        entry = self.ledger.entries.get(event.id)
        slot = entry.slot(device) if entry is not None else -1
        if entry is None or slot < 0 or not self.ledger.is_open(entry, slot):
            return 0
        return self.ledger.resend(entry, slot, self._config.max_attempts) if again else 1

    def settled(self, shelf: Shelf, member: Member) -> int:
        backlog = shelf.backlog
        settled = max(member.settled, backlog.first - 1)
        # Step over what it has answered. It never steps back, so over all reconnections each event is stepped over once.
        while settled < (backlog.last if member.live else member.position):
            event = backlog.at(settled + 1)
            entry = self.ledger.entries.get(event.id) if event is not None else None
            if entry is not None and (own := entry.slot(member.device)) >= 0 and self.ledger.is_open(entry, own):
                break
            settled += 1
        member.settled = settled
        return settled

    # Devices

    def register(self, channel: str, device: str) -> Member:
        shelf = self.open(channel)
        member = shelf.audience.members.get(device)
        if member is None:
            if self.devices.registrations >= self._config.max_devices:
                raise Unavailable("too_many_devices", f"no more than {self._config.max_devices} registrations are kept", retry_after=60)
            member = self._join(shelf, device)
        return member

    def _join(self, shelf: Shelf, device: str) -> Member:
        backlog = shelf.backlog
        member = shelf.audience.join(device, backlog.last, backlog.first, self.clock())
        self.devices.register(device, shelf.name)
        first = shelf.waiting.pop(device, None)
        if first is not None:
            # What was addressed to it before it was ever seen here is still owed, and was never sent.
            member.settled = member.position = first - 1
        return member

    def want(self, device: str, pattern: str) -> None:
        self.devices.want(device, pattern)
        meant = compiled(pattern)
        for channel in [name for name in self._shelves if meant(name)]:
            self.register(channel, device)

    def unregister(self, channel: str, device: str) -> None:
        self._leave(channel, device)
        known = self.devices.get(device)
        if known is not None and channel in known.channels:
            self.devices.unregister(known, channel)

    def remove(self, device: str) -> Device | None:
        known = self.devices.get(device)
        for channel in known.channels if known is not None else ():
            self._leave(channel, device)
        return self.devices.remove(device, self.clock())

    def _leave(self, channel: str, device: str) -> None:
        shelf = self._shelves.get(channel)
        if shelf is not None:
            for event in shelf.backlog:
                self.ledger.cancel(event.id, device)
            shelf.audience.leave(device, shelf.backlog.last)

    # Time

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

    def _sweep_channels(self, now: float, is_used: Callable[[str], bool]) -> None:
        members = 0
        for _ in range(min(SWEEP_CHANNELS, len(self._round))):
            shelf = self._shelves[self._round.popleft()]
            for member in shelf.audience.quiet_since(now - self._config.device_ttl):
                self.unregister(shelf.name, member.device)
            if len(shelf.backlog) or len(shelf.audience) or shelf.touched > now - QUIET or is_used(shelf.name):
                self._round.append(shelf.name)
            else:
                del self._shelves[shelf.name]
            members += len(shelf.audience)
            if members > SWEEP_MEMBERS:
                break
