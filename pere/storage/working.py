"""What every store that lives in this process has at hand: the newest events of each channel, the devices, the ledger.

A WorkingSet answers all questions out of memory. How an event or a receipt gets in, and when, is for the store that
inherits it: at once (`memory.py`) or when it is on disk (`sqlite.py`). What it holds is bounded per channel and over all.

It is longer than a file should be because it has an answer to every question of the contract: each is a few lines, and all of them look at
the same shelves, devices and ledger.
"""

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import nlargest
from itertools import islice
from operator import attrgetter
from typing import Any

from pere import delivery
from pere.audience import Member
from pere.backlog import Backlog
from pere.config import Config
from pere.devices import Device, Devices
from pere.entry import Entry
from pere.errors import Full, NotFound, Refusal, TooMany
from pere.event import SEQUENCE_BITS, Draft, Event, IdClock, format_id
from pere.ledger import Ledger, gone_event, needed, unknown_receipt
from pere.names import pattern as compiled
from pere.receipt import CANCELLED, EXPIRED, NONE, OWED, PENDING, STATE
from pere.storage import Accepted, Shelf, Stand, Store, within
from pere.storage.settling import tell

log = logging.getLogger("pere.store")

SWEEP_CHANNELS = 1_000  # channels looked at in one sweep
SWEEP_MEMBERS = 20_000  # and registrations: a few milliseconds of the loop
QUIET = 60.0  # seconds that an empty channel is kept, so that a pause between two pushes does not cost its history of ids
NOBODY = Device("")  # who is registered nowhere
MAX_KEYS = 100_000  # Idempotency-Keys remembered at once; about 30 MB when full


class WorkingSet(Store):
    """`clock` is the system's, in seconds since 1970; tests hand in their own."""

    shelf_type = Shelf
    # What a store that has lost what it knew, and begins anew, goes on with: who is told of what, and what was counted.
    lasting = ("deliver", "withdraw", "dismiss", "forsake", "leads", "on_lead", "on_anew", "on_document", "heed", "on_commit", "on_receipts", "events", "event_bytes")

    def __init__(self, config: Config, clock: Callable[[], float] = time.time):
        self.ledger = Ledger(config.max_event_status_bytes)
        self.devices = Devices()
        self.clock = clock
        # Just below the first id that this moment could give; none that is given will be below, even if the clock steps back.
        self.born = (int(clock() * 1000) << SEQUENCE_BITS) - 1
        self.deliver = lambda event: None
        self.withdraw = lambda event: None
        self.dismiss = lambda device: None
        self.forsake = lambda: None
        self.leads = True
        self.on_lead = lambda is_leading: None
        self.on_anew = lambda: None
        self.on_document = lambda kind, name, document: None
        self.heed = lambda device, channel, id, word, delay: None
        self.on_commit = lambda seconds, size: None
        self.on_receipts = None
        self.decided = []
        self.bytes = 0
        self.events = 0  # accepted since the start
        self.event_bytes = 0
        self._config = config
        self._ids = IdClock(self.born)
        self._shelves: dict[str, Shelf] = {}
        # Those that hold events, in the order of their newest push: the quietest is found at the front.
        self._pushed: OrderedDict[str, Shelf] = OrderedDict()
        self._round: deque[str] = deque()  # the order in which channels are swept
        self._keys: OrderedDict[tuple[str, str], tuple[float, Accepted]] = OrderedDict()

    async def begin(self) -> None:
        """What is kept is at hand, or is brought when it is asked for."""

    def lags(self, id: int, names: Collection[str]) -> bool:
        return False

    async def reach(self, id: int, *names: str) -> None:
        """There is no other node."""

    def follow(self, name: str) -> None:
        """All that happens, happens here."""

    def unfollow(self, name: str) -> None:
        """All that happens, happens here."""

    def pass_on(self, device: str, channel: str, id: int, word: int, delay: float) -> None:
        """There is no other node."""

    @property
    def newest(self) -> int:
        return self._ids.last

    # Events

    def _known_key(self, draft: Draft, now: float) -> Accepted | None:
        """What was accepted with the same Idempotency-Key, if that is not too long ago."""
        if not draft.key:
            return None
        while self._keys:
            oldest = next(iter(self._keys))
            if self._keys[oldest][0] > now - self._config.idempotency_window and len(self._keys) < MAX_KEYS:
                break
            del self._keys[oldest]
        known = self._keys.get((draft.channel, draft.key))
        return Accepted(known[1].id, known[1].audience, repeated=True) if known is not None else None

    def _take(self, shelf: Shelf, event: Event, draft: Draft, need: int | str | None) -> Accepted:
        """The event is accepted: into the ledger and the backlog with it."""
        entry = self.ledger.open(event, shelf.audience, need)
        audience = entry.size if entry is not None else len(draft.to) or len(shelf.audience)
        shelf.touched = event.time
        event.weigh(len(entry.states) if entry is not None else 0)
        self._keep(shelf, event)
        for device in draft.to:
            if not shelf.audience.has(device):
                shelf.waiting.setdefault(device, deque()).append(event.ordinal)
        accepted = Accepted(event.id, audience)
        if draft.key:
            self._keys[draft.channel, draft.key] = event.time, accepted
        self.events += 1
        self.event_bytes += len(draft.data)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("event accepted", extra={"facts": {
                "id": format_id(event.id), "channel": event.channel, "bytes": len(event.data), "audience": audience}})
        return accepted

    def _keep(self, shelf: Shelf, event: Event) -> None:
        shelf.backlog.append(event)
        self.bytes += event.weight
        self._pushed[shelf.name] = shelf
        self._pushed.move_to_end(shelf.name)
        while shelf.backlog.is_over():
            self._evict(shelf)
        self._make_room()

    def _weight(self) -> int:
        """What counts in `backlog_total_bytes`: events, and what devices have said of them."""
        return self.bytes + self.ledger.bytes

    def _make_room(self) -> None:
        """The oldest events of the quietest channels make way, but for the very last."""
        while self._weight() > self._config.backlog_total_bytes and self._pushed:
            quietest = next(iter(self._pushed.values()))
            if len(self._pushed) == 1 and len(quietest.backlog) == 1:
                break
            self._evict(quietest)

    def _evict(self, shelf: Shelf) -> Event:
        """Out of memory with the oldest event of a channel."""
        event = shelf.backlog.evict()
        self.bytes -= event.weight
        if shelf.waiting and event.to is not None:
            shelf.let_go(event.to)
        if not len(shelf.backlog):
            del self._pushed[shelf.name]
        return event

    def open(self, channel: str) -> Shelf:
        known = self._shelves.get(channel)
        if known is not None:
            return known
        config = self._config
        shelf = self._shelves[channel] = self.shelf_type(channel, Backlog(config.backlog_events, config.backlog_bytes), self.clock())
        self._round.append(channel)
        if not self._load(shelf):
            self._begin(shelf)
        return shelf

    def _load(self, shelf: Shelf) -> bool:
        """Fill the shelf with what was kept of its channel before; False if that is nothing."""
        return False

    def _begin(self, shelf: Shelf) -> None:
        """A channel is born, and with it those devices join who wanted all such channels."""
        for device in self._wanting(shelf.name):
            # All of them, or there was no room for the channel (`_check_channels`): the audience of an event is not to depend on who came last.
            self._join(shelf, device.name).seen = self.clock() if device.feeds else device.seen

    def _wanting(self, channel: str) -> list[Device]:
        """Who has asked for all channels of such a name, and has not been away for too long."""
        known, since = self.devices.known, self.clock() - self._config.device_ttl
        meant = dict.fromkeys(known[name] for names in self.devices.patterns.meaning(channel) for name in names)
        return [device for device in meant if device.feeds or device.seen >= since]

    def _check(self, draft: Draft) -> None:
        """Before a push brings a channel into being: raises BadRequest where it asks for what cannot be, Full where there is no room
        for another channel."""
        if draft.channel not in self._shelves:
            self._check_channels((draft.channel,))
        self._check_need(draft)

    def _check_need(self, draft: Draft) -> None:
        if draft.need is not None and draft.level != NONE:
            shelf = self.shelf(draft.channel)
            needed(draft.need, len(draft.to) or len(shelf.audience if shelf is not None else self._wanting(draft.channel)))

    def find(self, channel: str, id: int) -> Event:
        shelf = self._shelves.get(channel)
        event = shelf.backlog.find(id) if shelf is not None else None
        if event is not None:
            return event
        if shelf is not None and id <= shelf.backlog.evicted_id:
            raise gone_event(id)
        raise NotFound("unknown_event", f"there is no event {format_id(id)} on channel {channel}")

    def shelf(self, channel: str) -> Shelf | None:
        return self._shelves.get(channel)

    def channels(self) -> Collection[str]:
        return self._shelves

    def has(self, channel: str) -> bool:
        return channel in self._shelves

    def count_channels(self) -> int:
        return len(self._shelves)

    def seek(self, shelf: Shelf, id: int) -> int:
        return shelf.backlog.seek(id)

    def id_at(self, shelf: Shelf, ordinal: int) -> int:
        event = shelf.backlog.at(ordinal)
        return event.id if event is not None else 0

    def fetch(self, shelf: Shelf, ordinal: int, then: Callable[[], None]) -> None:
        raise AssertionError("what is not at hand is not kept")

    async def history(self, channel: str, after: int, limit: int) -> tuple[list[Event], bool]:
        shelf = self.shelf(channel)
        events = within(shelf.backlog.after(after, limit)) if shelf is not None else []
        return events, bool(events) and shelf is not None and events[-1].ordinal < shelf.backlog.last

    def recent(self, limit: int) -> list[tuple[Event, Entry | None]]:
        backlogs = [shelf.backlog for shelf in islice(reversed(self._pushed.values()), limit)]
        newest = (backlog.at(ordinal) for backlog in backlogs for ordinal in range(max(backlog.first, backlog.last - limit + 1), backlog.last + 1))
        return [(event, self._entry(event)) for event in nlargest(limit, filter(None, newest), key=attrgetter("id"))]

    # Receipts

    def _entry(self, event: Event) -> Entry | None:
        """A kept event in the ledger; None if it asks for no receipts."""
        return self.ledger.entries.get(event.id)

    def _find_entry(self, id: int) -> Entry | None:
        return self.ledger.entries.get(id)

    def _end(self, entry: Entry, slot: int, end: int) -> None:
        """The device owes no receipt any more."""
        self.ledger.end(entry, slot, end)

    def oldest_outstanding(self) -> float | None:
        oldest = self.ledger.oldest_open()
        return oldest.event.time if oldest is not None else None

    def stand(self) -> Stand:
        return Stand(self.devices.online, len(self.devices.known), self.count_channels(), self.ledger.outstanding, self.oldest_outstanding())

    def _why(self, device: str, id: int, channel: str | None, newest: dict[str, int]) -> Refusal:
        """Why a device cannot answer for an event. Where no channel is named, the event is taken to be gone if it may have been on one of
        the device's. `newest` remembers for those who ask of many, of which that is the newest for a device: it may be on ten thousand channels."""
        entry = self.ledger.entries.get(id)
        if channel is not None:
            shelf = self.shelf(channel)
            is_gone = entry is None and shelf is not None and id <= shelf.gone_id and shelf.backlog.find(id) is None
        else:
            known = self.devices.get(device)
            channels = known.channels if known is not None else ()
            if device not in newest:
                newest[device] = max(map(self._gone_id, channels), default=0)
            is_gone = (entry is None or entry.event.channel not in channels) and id <= newest[device]
        return gone_event(id) if is_gone else unknown_receipt()

    def _gone_id(self, channel: str) -> int:
        """The newest id of a channel that is no longer kept."""
        shelf = self._shelves.get(channel)
        return shelf.gone_id if shelf is not None else 0

    def pending(self, channel: str, device: str, last: int, limit: int) -> tuple[list[int], bool]:
        shelf = self.shelf(channel)
        if shelf is None:
            return [], False
        settled = self._settled_of(shelf, device)
        found, is_all = self._pending_before(shelf, device, settled, last, limit + 1)
        if not is_all:
            return found[:limit], True
        backlog = shelf.backlog
        for ordinal in range(max(settled + 1, backlog.first), backlog.last + 1):
            event = backlog.at(ordinal)
            if event is None or event.id > last or len(found) > limit:
                break
            entry = self._entry(event)
            if entry is not None and (slot := entry.slot(device)) >= 0 and entry.states[slot] & STATE == PENDING:
                found.append(event.id)
        return found[:limit], len(found) > limit

    def _settled_of(self, shelf: Shelf, device: str) -> int:
        """The ordinal up to which a device owes nothing, whether it has been seen on the channel or not."""
        member = shelf.audience.members.get(device)
        if member is not None:
            return self.settled(shelf, member)
        return shelf.waiting.get(device, (shelf.backlog.last + 1,))[0] - 1

    def _pending_before(self, shelf: Shelf, device: str, settled: int, last: int, limit: int) -> tuple[list[int], bool]:
        """The same for what is older than the backlog; and whether that was all of it."""
        return [], True

    async def status(self, channel: str, id: int) -> dict[str, Any]:
        event = self.find(channel, id)
        return delivery.status(event, self._entry(event))

    async def lines(self, channel: str, id: int, state: str | None, start: int, limit: int) -> tuple[list[dict[str, Any]], int | None]:
        event = self.find(channel, id)
        return delivery.lines(event, self._entry(event), self.devices.known, state, start, limit)

    def watch(self, channel: str, id: int, then: Callable[[bool], None]) -> tuple[bool, Callable[[], None]]:
        entry = self._entry(self.find(channel, id))
        if entry is None:
            return True, lambda: None  # nobody is asked for anything
        watchers = entry.watch(watcher := lambda: tell(then, entry.is_decided()))
        return entry.is_decided(), lambda: watchers.discard(watcher)

    def attempt(self, event: Event, device: str, again: bool) -> int | None:
        owed = self._open_slot(event, device)
        if owed is None:
            return None
        if not again:
            return 1
        entry, slot = owed
        attempt = self.ledger.resend(entry, slot, self._config.max_attempts)
        if not attempt:
            self._end(entry, slot, EXPIRED)
        return attempt

    def owes(self, event: Event, device: str) -> bool:
        return self._open_slot(event, device) is not None

    def owes_all(self, events: Iterable[Event], member: Member) -> bool:
        entries, slot = self.ledger.entries, member.slot
        for event in events:
            if event.level != NONE:
                entry = entries.get(event.id)
                # As in `Ledger.is_open`: a fleet that comes back asks it of each event for each device.
                if entry is None or entry.slots is not None or not 0 <= slot < len(entry.states) or not OWED[event.level][entry.states[slot]]:
                    return False
        return True

    def _open_slot(self, event: Event, device: str) -> tuple[Entry, int] | None:
        """Where the receipt would be entered that a device owes; None if it owes none."""
        entry = self._entry(event)
        if entry is None:
            return None
        slot = entry.slot(device)
        return (entry, slot) if slot >= 0 and self.ledger.is_open(entry, slot) else None

    def standing(self, channel: str | None, device: str, id: int) -> tuple[Event, int]:
        entry = self._find_entry(id)
        try:
            if entry is None:
                raise unknown_receipt()
            _, slot = self.ledger.find(entry, channel, device)
        except NotFound:
            if channel is None:
                raise self._why(device, id, None, {}) from None
            if entry is None and id <= self._gone_id(channel):
                raise gone_event(id) from None
            raise
        return entry.event, entry.states[slot] & STATE

    def settled(self, shelf: Shelf, member: Member) -> int:
        backlog = shelf.backlog
        position = member.reached(backlog.last)
        settled = max(member.settled, min(self._settled_before(shelf, member), position))
        # Step over what it has answered. It never steps back, so over all reconnections each event is stepped over once.
        while settled < position:
            event = backlog.at(settled + 1)
            if event is None:
                break  # not at hand
            entry = self._entry(event)
            if entry is not None and (own := entry.slot(member.device)) >= 0 and self.ledger.is_open(entry, own):
                break
            settled += 1
        member.settled = settled
        return settled

    def _settled_before(self, shelf: Shelf, member: Member) -> int:
        """The ordinal up to which nobody owes anything, or is asked for it, because what is older is not at hand."""
        return shelf.backlog.first - 1

    # Devices

    def check_room(self, device: str, channels: Collection[str], patterns: Collection[str]) -> tuple[int, int]:
        config, devices = self._config, self.devices
        if len(channels) > config.max_channels_per_device:
            raise TooMany("too_many_registrations", f"a feed is on at most {config.max_channels_per_device} channels, and there are {len(channels)} that its patterns mean", retry_after=60, whose="device")
        known, shelves = devices.known.get(device, NOBODY), self._shelves
        registered, born, fresh = known.channels, 0, 0
        for channel in channels:
            if channel not in shelves:
                born += 1
            if channel not in registered:
                fresh += 1
        if born:
            born = self._check_channels(channels)
        if not device:
            return 0, born
        for pattern in patterns:
            fresh += pattern not in known.patterns
        if fresh:
            if fresh + len(registered) + len(known.patterns) > config.max_channels_per_device:
                raise TooMany("too_many_registrations", f"a device is registered on at most {config.max_channels_per_device} channels and patterns", retry_after=60, whose="device")
            if devices.registrations + fresh > config.max_devices:
                raise Full("too_many_devices", f"no more than {config.max_devices} registrations are kept", retry_after=60)
        return fresh, born

    def _check_channels(self, channels: Iterable[str]) -> int:
        """How many of these are not there yet. Raises Full where there is no room for them, or for those who are to join them by their patterns."""
        fresh = [name for name in channels if not self.has(name)]
        if fresh and self.count_channels() + len(fresh) > self._config.max_channels:
            raise Full("too_many_channels", f"no more than {self._config.max_channels} channels are kept", retry_after=60)
        # At most: who has two patterns for one channel counts twice.
        joining = sum(len(names) for name in fresh for names in self.devices.patterns.meaning(name))
        if joining and self.devices.registrations + joining > self._config.max_devices:
            raise Full("too_many_devices", f"no more than {self._config.max_devices} registrations are kept, and {joining} devices want all channels of such a name", retry_after=60)
        return len(fresh)

    def register(self, channel: str, device: str) -> Member:
        shelf = self._shelves.get(channel) or self.open(channel)
        member = shelf.audience.members.get(device)
        if member is None:
            if self.devices.registrations >= self._config.max_devices:
                raise Full("too_many_devices", f"no more than {self._config.max_devices} registrations are kept", retry_after=60)
            member = self._join(shelf, device)
        return member

    def _join(self, shelf: Shelf, device: str) -> Member:
        member = shelf.audience.join(device, shelf.backlog.last, shelf.first, self.clock())
        self.devices.register(device, shelf.name)
        if shelf.waiting and (ordinals := shelf.waiting.pop(device, None)):
            # What was addressed to it before it was ever seen here is still owed, and was never sent.
            member.settled = member.position = ordinals[0] - 1
        return member

    def want(self, device: str, pattern: str, channels: Iterable[str] | None = None) -> None:
        known = self.devices.get(device)
        if (known is None or pattern not in known.patterns) and self.devices.registrations >= self._config.max_devices:
            raise Full("too_many_devices", f"no more than {self._config.max_devices} registrations are kept", retry_after=60)
        self.devices.want(device, pattern).seen = self.clock()
        for channel in filter(compiled(pattern), list(self._shelves)) if channels is None else channels:
            self.register(channel, device)

    def arrive(self, device: Device) -> None:
        """That it has a feed is seen here."""

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
            for entry, slot in self._owing(shelf, device):
                self._end(entry, slot, CANCELLED)
            shelf.audience.leave(device, shelf.backlog.last)

    def _owing(self, shelf: Shelf, device: str) -> Iterator[tuple[Entry, int]]:
        """What a device still owes of a channel, of what is at hand: the entries, and where it stands in each."""
        for event in shelf.backlog:
            entry = self._entry(event)
            slot = entry.slot(device) if entry is not None else -1
            if entry is not None and slot >= 0 and self.ledger.is_open(entry, slot):
                yield entry, slot

    # Time

    def _sweep_channels(self, now: float, is_used: Callable[[str], bool]) -> None:
        for device in self.devices.quiet_since(now - self._config.device_ttl, SWEEP_CHANNELS):
            self._forget_wishes(device)
        members = 0
        for _ in range(min(SWEEP_CHANNELS, len(self._round))):
            shelf = self._shelves[self._round.popleft()]
            for member in shelf.audience.quiet_since(now - self._config.device_ttl):
                self.unregister(shelf.name, member.device)
            self._visit(shelf)
            if len(shelf.backlog) or len(shelf.audience) or shelf.touched > now - QUIET or is_used(shelf.name):
                self._round.append(shelf.name)
            else:
                self._forget(shelf)
            members += len(shelf.audience)
            if members > SWEEP_MEMBERS:
                break

    def _forget_wishes(self, device: Device) -> None:
        """It wanted channels that never came, and has not been seen for too long."""
        self.devices.forget(device)

    def _visit(self, shelf: Shelf) -> None:
        """A look at a channel from time to time."""

    def _forget(self, shelf: Shelf) -> None:
        """Nothing is left of the channel."""
        del self._shelves[shelf.name]
