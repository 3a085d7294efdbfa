"""What is in the file, brought to hand when it is asked for: channels, events older than the backlog, entries of the ledger.

A look by an index takes some microseconds and is taken on the loop; what may take longer is read by a thread of its own, and the loop
is told. Nothing is written here.

It is longer than a file should be because it goes on, question by question, where `working.py` has no answer in memory.
"""

import asyncio
import logging
import sqlite3
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import orjson

from pere.audience import Member
from pere.config import Config
from pere.entry import Entry
from pere.errors import Conflict, NotFound, Unavailable
from pere.event import SEQUENCE_BITS, Event, format_id
from pere.ledger import ALL, gone_event
from pere.receipt import CANCELLED, EXPIRED, LATE, NONE, PENDING, STATE, closes
from pere.storage import Page, Record, Shelf, schema, within
from pere.storage.logged import Piece, piece
from pere.storage.packing import EVENT, SATISFIED, event_of, parted, words
from pere.storage.past import Past
from pere.storage.working import WorkingSet

log = logging.getLogger("pere.store")

BLOCK = 128  # events that are fetched at once
MAX_NAMED = 10_000  # events for named devices that are looked through when a channel is opened
MAX_VISITED = 1_000  # entries of older events that are kept at hand
MAX_LEAVING = 2_000  # events that make way in memory at once, and entries: some milliseconds
MAX_OWED = 1_024  # channels of which it is at hand what is owed
MAX_LOOKED = 32 * BLOCK  # columns of older events that are looked at in one go: about 50 ms of the loop at most
RETRY = 5  # seconds after which a client may ask again when the disk is in trouble


class DiskShelf(Shelf):
    """`number` is its channel's in the file, 0 before it has one; `first` and `gone_id` are those of the file."""

    __slots__ = ("_first", "_gone_id", "is_saved", "number", "sent", "shown")

    def __init__(self, name: str, backlog: Any, now: float):
        super().__init__(name, backlog, now)
        self.number = 0
        self.is_saved = False
        self.sent = 0  # as it is in the file
        self.shown = 0  # the newest ordinal when we last looked: by now, all who were there have been written to
        self._first = 1
        self._gone_id = 0

    @property
    def first(self) -> int:
        return self._first

    @property
    def gone_id(self) -> int:
        return self._gone_id


class Reading(WorkingSet):
    """A working set with a file behind it, `path`, that is there and of this version."""

    shelf_type = DiskShelf

    def __init__(self, config: Config, clock: Callable[[], float], path: str):
        super().__init__(config, clock)
        self.path = path
        self._loop = asyncio.get_running_loop()
        self._reader = schema.connect(path, read_only=True)
        self._far = schema.connect(path, read_only=True)
        self._elsewhere = ThreadPoolExecutor(1, thread_name_prefix="pere-history")
        self._trouble: str | None = None
        self._oldest = 0  # the oldest id that is kept
        self._owed: dict[Shelf, list[tuple[Any, ...]]] = {}  # which events of a channel somebody owes, the first of them, since the newest commit
        # Entries that say more than their columns in the file, each with the number in the log from which on; oldest first.
        self._dirty: dict[Entry, int] = {}
        self._saving: set[Entry] = set()  # entries whose columns are on their way
        self._visited: OrderedDict[int, Entry] = OrderedDict()
        self._held: list[Entry] | None = None  # those that would have made way, while none may
        self._past = Past(self._elsewhere, self._events_of, self._failed)
        self._names: dict[str, int] = {}  # channels that are in the file, and back
        self._numbers: dict[int, str] = {}
        self._unkept: set[str] = set()  # channels that are not in the file yet
        self._kept_channels: dict[str, tuple[int, int, int]] = {}  # with `first`, `gone` and `sent` as they are there
        self._newest_channel = 0
        self._newest_record = 0  # in the log, of what is entered in memory

    def _one(self, sql: str, values: tuple[Any, ...] = ()) -> Any:
        row = self._reader.execute(sql, values).fetchone()
        return row[0] if row is not None else None

    def _read(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """A look at the file that takes some microseconds, on the loop. Raises Unavailable where the file cannot be read."""
        try:
            return self._reader.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from None

    # A channel is opened

    def channels(self) -> Collection[str]:
        return self._names.keys() | self._shelves.keys()

    def has(self, channel: str) -> bool:
        return channel in self._shelves or channel in self._names

    def count_channels(self) -> int:
        return len(self._names) + len(self._unkept)

    def shelf(self, channel: str) -> Shelf | None:
        return self.open(channel) if self.has(channel) else None

    def _load(self, shelf: Shelf) -> bool:
        assert isinstance(shelf, DiskShelf)
        number = self._names.get(shelf.name, 0)
        if not number:
            self._newest_channel += 1
            shelf.number = self._newest_channel
            self._unkept.add(shelf.name)
            return False
        shelf.number, shelf.is_saved = number, True
        config, backlog = self._config, shelf.backlog
        try:
            rows = self._read(EVENT + "where channel = ? order by ordinal desc limit ?", (number, config.backlog_events))
            members = self._read("select slot, device, position, settled, since, seen, answered, last_id, gone from members "
                                 "where channel = ? order by slot", (number,))
            named = self._read("select ordinal, recipients from events where channel = ? and recipients is not null and time + ttl > ? "
                               "order by ordinal desc limit ?", (number, self.clock(), MAX_NAMED))
        except Unavailable:
            del self._shelves[shelf.name]
            self._round.remove(shelf.name)
            raise
        shelf._first, shelf._gone_id, shelf.sent = self._kept_channels[shelf.name]
        events: list[Event] = []
        held = 0
        for row in rows:
            event = event_of(shelf.name, row)
            held += event.size
            if events and held > config.backlog_bytes:
                break
            events.append(event)
        older = events[-1].ordinal - 1 if events else shelf._first - 1
        backlog.begin(older, shelf._gone_id)
        for event in reversed(events):
            self._keep(shelf, event)
        now = self.clock()
        for slot, device, position, settled, since, seen, answered, last_id, gone in members:
            # With an open feed it had been written to as all of them had; unless it joined after we last looked.
            member = Member(device, slot, max(shelf.sent, settled) if position is None else position, seen)
            # Who had an open feed when we last looked was seen until the end.
            member.seen = now if position is None else seen
            member.settled, member.since, member.answered, member.last_id = settled, since, answered, last_id
            shelf.audience.restore(member, gone)
        # Not only what is at hand: a device that was never seen is owed all that is kept for it.
        for ordinal, recipients in named:
            for device in orjson.loads(recipients):
                if device not in shelf.audience.members:
                    shelf.waiting.setdefault(device, deque()).appendleft(ordinal)
        return True

    def seek(self, shelf: Shelf, id: int) -> int:
        assert isinstance(shelf, DiskShelf)
        oldest = shelf.backlog.oldest()
        if id <= shelf.gone_id:
            return shelf.first - 1
        if oldest is None or id >= oldest.id or shelf.first == shelf.backlog.first:
            return shelf.backlog.seek(id)
        # Ids and ordinals grow together, so the place of an id that nobody has is found by halves.
        low, high = shelf.first - 1, shelf.backlog.first
        while high - low > 1:
            middle = (low + high) // 2
            if self.id_at(shelf, middle) <= id:
                low = middle
            else:
                high = middle
        return low

    def id_at(self, shelf: Shelf, ordinal: int) -> int:
        assert isinstance(shelf, DiskShelf)
        event = shelf.at(ordinal)
        if event is not None:
            return event.id
        if not shelf.first <= ordinal < shelf.backlog.first:
            return 0
        rows = self._read("select id from events where channel = ? and ordinal = ?", (shelf.number, ordinal))
        return int(rows[0][0]) if rows else 0

    def find(self, channel: str, id: int) -> Event:
        shelf = self.shelf(channel)
        event = shelf.backlog.find(id) if shelf is not None else None
        if event is None and shelf is not None and shelf.gone_id < id <= self._ids.last:
            assert isinstance(shelf, DiskShelf)
            rows = self._read(EVENT + "where id = ? and channel = ?", (id, shelf.number))
            event = event_of(channel, rows[0]) if rows else None
        if event is not None:
            return event
        if shelf is not None and id <= shelf.gone_id:
            raise gone_event(id)
        raise NotFound("unknown_event", f"there is no event {format_id(id)} on channel {channel}")

    def fetch(self, shelf: Shelf, ordinal: int, then: Callable[[], None]) -> None:
        self._past.fetch(shelf, ordinal, then)

    def _events_of(self, shelf: Shelf, ordinal: int) -> list[Event]:
        """In the thread that reads: some that come one after the other."""
        assert isinstance(shelf, DiskShelf)
        return self._events(shelf.name, shelf.number, ordinal, BLOCK)

    def _events(self, channel: str, number: int, ordinal: int, limit: int) -> list[Event]:
        """In the thread that reads."""
        rows = self._far.execute(EVENT + "where channel = ? and ordinal >= ? order by ordinal limit ?", (number, ordinal, limit))
        return within(event_of(channel, row) for row in rows)

    async def history(self, channel: str, after: int, limit: int) -> tuple[list[Event], bool]:
        shelf = self.shelf(channel)
        if shelf is None:
            return [], False
        assert isinstance(shelf, DiskShelf)
        start = self.seek(shelf, after) + 1
        if start >= shelf.backlog.first:
            return await super().history(channel, after, limit)
        try:
            events = await self._loop.run_in_executor(self._elsewhere, self._events, channel, shelf.number, start, limit)
        except sqlite3.Error as error:
            raise self._failed(error) from None
        # What was committed while we read is not told yet.
        events = [event for event in events if event.ordinal <= shelf.backlog.last]
        return events, bool(events) and events[-1].ordinal < shelf.backlog.last

    # The log

    @property
    def newest_record(self) -> int:
        return self._newest_record

    async def records(self, channel: str | None, after: int, limit: int) -> Page:
        newest = self._newest_record
        if after > newest:
            return Page([], newest, False, True)
        number = self._names.get(channel, 0) if channel is not None else None
        try:
            found = await self._loop.run_in_executor(self._elsewhere, piece, self._far, number, after, newest, limit)
        except sqlite3.Error as error:
            raise self._failed(error) from None
        is_lost = found.is_lost or found.before not in (0, number) and found.before not in self._numbers
        told: list[Record] = []
        for row in found.rows:
            record = self._record(found, *row)
            if record is not None:
                told.append(record)
            elif not told:
                is_lost = after > 0
            else:
                # The next page begins with what is missing here.
                return Page(told, told[-1].number, True, is_lost)
        return Page(told, found.through, found.through < newest, is_lost)

    def _record(self, found: Piece, number: int, channel: int, id: int, slot: int, state: int, status: bytes | None, at: float) -> Record | None:
        """None where the event is no longer kept: then nobody knows any more who had the slot, for it may have been given anew."""
        known, name = found.events.get(id), self._numbers.get(channel, "")
        shelf = self.shelf(name)
        if shelf is None or known is None or id <= shelf.gone_id:
            return None
        if slot == ALL:
            return Record(number, id, name, None, state, None, False, at, None)
        device = known.names[slot] if known.names else shelf.audience.names[slot]
        if state in (EXPIRED, CANCELLED):
            return Record(number, id, name, device, state, None, False, at, None)
        is_late = False
        if closes(state, known.level):
            entry = self.ledger.entries.get(id)
            if entry is None and known.logged < number:
                entry = self._find_entry(id)  # its columns were saved while we read
            is_late = bool((entry.states if entry is not None else known.states)[slot] & LATE)
        return Record(number, id, name, device, state, status, is_late, at, max(0.0, at - known.time))

    # The ledger, as far as it is not at hand

    def _gone_id(self, channel: str) -> int:
        kept = self._kept_channels.get(channel)
        return kept[1] if kept is not None and channel not in self._shelves else super()._gone_id(channel)

    def _entry(self, event: Event) -> Entry | None:
        if event.level == NONE:
            return None
        return self.ledger.entries.get(event.id) or self._find_entry(event.id)

    def _find_entry(self, id: int) -> Entry | None:
        """An event's entry, brought in if it is only in the file; None if there is none."""
        entry = self.ledger.entries.get(id)
        if entry is not None or not self._oldest <= id <= self._ids.last:
            return entry
        rows = self._read("select e.channel, e.need, e.version, e.logged, e.columns, e.sayings, v.id, v.ordinal, v.time, v.ttl, v.level, v.is_json, "
                          "v.type, v.publisher, v.recipients, v.data, v.recalled, v.callback, v.traceparent, c.name from entries e join events v on v.id = e.event "
                          "join channels c on c.id = e.channel where e.event = ?", (id,))
        if not rows:
            return None
        _, need, version, logged, columns, sayings, *row, name = rows[0]
        shelf = self.open(name)
        event = shelf.backlog.find(id) or event_of(name, row)
        if event.ordinal > shelf.backlog.last:
            return None  # committed, and about to be told
        names = sorted(event.to) if event.to is not None else shelf.audience.names
        slots = {device: slot for slot, device in enumerate(names)} if event.to is not None else None
        columns = zlib.decompress(columns)
        states, latencies, said = parted(columns)
        entry = Entry(event, shelf.audience, bytearray(states), names, slots)
        entry.restore(need, version, latencies, said, words(sayings), bool(columns[0] & SATISFIED))
        entry.logged = logged
        self.ledger.restore(entry)
        self._cancel_left(entry)
        self._visited[id] = entry
        while len(self._visited) > MAX_VISITED:
            self._unload(self._visited.popitem(last=False)[1])
        return entry

    def _cancel_left(self, entry: Entry) -> None:
        """Who left while the event was not at hand owes nothing any more."""
        for device, place, newest in entry.audience.left():
            slot = place if entry.slots is None else entry.slots.get(device, -1)
            if entry.event.ordinal <= newest and 0 <= slot < len(entry.states) and self.ledger.is_open(entry, slot):
                self._end(entry, slot, CANCELLED)

    def _unload(self, entry: Entry) -> None:
        """Out of memory with an entry, if the file has all that it says; not while somebody holds some, who may be about to say more of it."""
        if self._held is not None:
            self._held.append(entry)
            return
        shelf = self._shelves.get(entry.event.channel)
        is_needed = entry.watchers or entry in self._dirty or entry in self._saving or entry.event.id in self._visited or (shelf is not None and entry.event.ordinal >= shelf.backlog.first)
        if not is_needed:
            self.ledger.unload(entry.event.id)

    @contextmanager
    def _hold(self) -> Iterator[None]:
        """What is brought in meanwhile lets nothing make way: else what is then said of an entry that was at hand would be said of one that is not asked any more."""
        outer, self._held = self._held, []
        try:
            yield
        finally:
            held, self._held = self._held, outer
            for entry in held:
                self._unload(entry)

    def documents(self, kind: str) -> dict[str, bytes]:
        return dict(self._read("select name, document from documents where kind = ?", (kind,)))

    def document(self, kind: str, name: str) -> bytes | None:
        rows = self._read("select document from documents where kind = ? and name = ?", (kind, name))
        return rows[0][0] if rows else None

    def names(self, kind: str) -> list[str]:
        return [name for name, in self._read("select name from documents where kind = ? order by name", (kind,))]

    def watch(self, channel: str, id: int, then: Callable[[bool], None]) -> tuple[bool, Callable[[], None]]:
        is_decided, stop = super().watch(channel, id, then)

        def end() -> None:
            stop()
            entry = self.ledger.entries.get(id)
            if entry is not None:
                self._unload(entry)  # which it may only have been kept for

        return is_decided, end

    def _make_room(self) -> None:
        """All of it is in the file, so whatever leaves can come back, and it need not leave at once: what was fetched goes first."""
        for _ in range(MAX_LEAVING):
            if self._weight() <= self._config.backlog_total_bytes:
                break
            if self._visited:
                self._unload(self._visited.popitem(last=False)[1])
                continue
            quietest = next(iter(self._pushed.values()), None)
            if quietest is None or len(self._pushed) == len(quietest.backlog) == 1:
                break
            self._evict(quietest)

    def _evict(self, shelf: Shelf) -> Event:
        event = super()._evict(shelf)
        entry = self.ledger.entries.get(event.id)
        if entry is not None:
            self._unload(entry)
        return event

    def _settled_before(self, shelf: Shelf, member: Member) -> int:
        assert isinstance(shelf, DiskShelf)
        # Only what is still open can be owed, and an index knows that. Were it very much, the device is led past it one by one.
        ordinal = shelf.backlog.last
        owed = self._owed.get(shelf)
        if owed is None:
            # Ten thousand devices that come back ask for the same (12 us each); it changes only by what is committed.
            if len(self._owed) == MAX_OWED:
                self._owed.clear()
            owed = self._owed[shelf] = self._read("select event from entries where channel = ? and owed > 0 order by event limit 64", (shelf.number,))
        for (id,) in owed:
            entry = self._find_entry(id)
            if entry is None or (ordinal := entry.event.ordinal) <= member.settled:
                continue
            slot = entry.slot(member.device)
            if ordinal >= shelf.backlog.first or (slot >= 0 and self.ledger.is_open(entry, slot)):
                return ordinal - 1
        return ordinal

    def _pending_before(self, shelf: Shelf, device: str, settled: int, last: int, limit: int) -> tuple[list[int], bool]:
        assert isinstance(shelf, DiskShelf)
        oldest = shelf.backlog.oldest()
        if settled + 1 >= shelf.backlog.first or oldest is None:
            return [], True
        found: list[int] = []
        states: bytes | bytearray
        member = shelf.audience.members.get(device)
        after, until = max(self.id_at(shelf, settled), shelf.gone_id), min(last, oldest.id - 1)
        for _ in range(0, MAX_LOOKED, BLOCK):
            # What nobody owes is passed over by the index. A column is looked at where it lies: to bring each entry in costs five times as much.
            rows = self._read("select e.event, e.columns, v.recipients from entries e join events v on v.id = e.event where e.channel = ? "
                              "and e.owed > 0 and e.event > ? and e.event <= ? order by e.event limit ?", (shelf.number, after, until, BLOCK))
            for id, columns, recipients in rows:
                entry = self.ledger.entries.get(id)
                if entry is not None:
                    states, slot = entry.states, entry.slot(device)
                else:
                    states, _, _ = parted(zlib.decompress(columns))
                    named = sorted(orjson.loads(recipients)) if recipients is not None else None
                    slot = named.index(device) if named is not None and device in named else member.slot if named is None and member is not None else -1
                if 0 <= slot < len(states) and states[slot] & STATE == PENDING:
                    found.append(id)
                    if len(found) == limit:
                        return found, False
            if len(rows) < BLOCK:
                return found, True
            after = rows[-1][0]
        if not found:
            raise Conflict("too_many_open", f"more than {MAX_LOOKED} older events are open before the first that this device has said nothing of; "
                           "it can still answer by event_id")
        return found, False

    def oldest_outstanding(self) -> float | None:
        times = [time for time in (super().oldest_outstanding(),) if time is not None]
        try:
            # What is at hand counts as it stands in memory: the file may not have heard of its last receipts yet.
            rows = self._reader.execute("select event from entries indexed by entries_oldest where owed > 0 order by event")
            entries = self.ledger.entries
            id = next((id for id, in rows if id not in entries or entries[id].owed), None)
            rows.close()
        except sqlite3.Error:
            id = None
        if id is not None:
            times.append((id >> SEQUENCE_BITS) / 1000)
        return min(times, default=None)

    # The disk refuses

    def trouble(self) -> str | None:
        return self._trouble

    def _failed(self, error: BaseException) -> Unavailable:
        reason = str(error)
        if self._trouble is None:
            log.warning("the store is in trouble", extra={"facts": {"error": reason, "path": self.path}})
        self._trouble = f"the store cannot keep anything at present: {reason}"
        return Unavailable("store_failed", self._trouble, retry_after=RETRY)
