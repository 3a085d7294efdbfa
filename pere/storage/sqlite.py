"""The store that is a file: what was answered 201 or 200 is on the disk, and after any end the devices go on where they were.

All questions are answered out of memory, as far as it reaches (`working.py`). What changes is queued; the queue goes to the
journal's thread as one batch and one commit, and only when that is done is it entered in memory, told to the hub, and
answered. So nobody ever sees what a crash could take back. While one batch is being committed the next is gathered.

Changes of states are appended to a log, a row of many for each commit, because a receipt must cost bytes and not pages. The columns
of an event in the ledger follow a second or two later; at start what the log says beyond them is entered again. Positions and
the like may be a moment old after a crash: then a device is sent again what it had, which is why it answers by event id.
"""

import asyncio
import logging
import sqlite3
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson

from pere.audience import Member
from pere.config import Config
from pere.devices import Device
from pere.errors import BadRequest, Gone, NotFound, Refusal, Unavailable
from pere.event import SEQUENCE_BITS, Draft, Event, format_id
from pere.ledger import Entry, needed, unknown_receipt
from pere.receipt import ABSENT, CANCELLED, EXPIRED, NONE, PENDING
from pere.storage import Accepted, Shelf, schema
from pere.storage.journal import Batch, Journal
from pere.storage.working import WorkingSet

log = logging.getLogger("pere.store")

# One change of a state in the log: event, slot, state, what was said beside it (its place in the row's list, from 1), when.
RECORD = struct.Struct("<qIBHd")
MAX_RECORDS = 10_000  # in a row of the log
ALL = 0xFFFFFFFF  # as a slot: every device that still owes a receipt

BLOCK = 128  # events that are fetched at once
MAX_PAST = 20_000  # events that were fetched and are kept at hand, over all channels
MAX_VISITED = 1_000  # entries of older events that are kept at hand
MAX_SAVED = 500  # columns that are saved in one commit
MAX_DUE = 500  # events that are expired in one sweep
SLICE = 500  # events that are pruned in one commit: a few milliseconds, for which those wait who come after
QUIET_EVERY = 60  # seconds
RETRY = 5  # seconds after which a client may ask again when the disk is in trouble

EVENT = "select id, ordinal, time, ttl, level, is_json, type, publisher, recipients, data from events "

Told = Callable[[int, int], None]
Refused = Callable[[Refusal], None]
Change = tuple[Entry, Member | None, int, int, bytes | None, float, Told | None, Refused | None]


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


class Commit:
    """What is on its way to the disk, and what is to be done when it is there."""

    def __init__(self) -> None:
        self.events: list[tuple[DiskShelf, Event, Draft, int, bytes, Callable[[Accepted | Refusal], None]]] = []
        self.changes: list[tuple[int, list[Change]]] = []
        self.shelves: list[DiskShelf] = []
        self.saved: dict[Entry, int] = {}
        self.members: dict[Member, DiskShelf] = {}
        self.left: list[tuple[Any, ...]] = []
        self.wishes: list[tuple[str, tuple[str, ...]]] = []
        self.is_pruning = False


class SqliteStore(WorkingSet):
    """`path` is the file, which is made if it is not there. Must be made on a running loop. Raises ConfigError where the file
    cannot be used."""

    shelf_type = DiskShelf

    def __init__(self, config: Config, clock: Callable[[], float], path: str):
        super().__init__(config, clock)
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._lock = schema.Lock(path)
        try:
            writer = schema.prepare(path, config.sync)
            self._reader = schema.connect(path, read_only=True)
        except BaseException:
            self._lock.release()
            raise
        self._elsewhere = ThreadPoolExecutor(1, thread_name_prefix="pere-history")  # reads what may take long
        self._far = schema.connect(path, read_only=True)
        # What was said and is not kept yet.
        self._pushes: list[tuple[Draft, float, Callable[[Accepted | Refusal], None]]] = []
        self._changes: dict[str, list[Change]] = {}  # by channel, each to become a row
        self._wishes: list[tuple[str, tuple[str, ...]]] = []
        self._moved: dict[Member, DiskShelf] = {}
        self._left: list[tuple[Any, ...]] = []
        self._shown: set[DiskShelf] = set()
        self._flying: set[tuple[int, int]] = set()  # events and slots of receipts that are on their way
        self._behind: dict[tuple[int, int], list[tuple[Any, ...]]] = {}  # and what came after them for the same place
        self._asked: dict[tuple[str, str], list[Callable[[Accepted | Refusal], None]]] = {}  # the same, for Idempotency-Keys
        self._commit: Commit | None = None
        self._is_called = False
        self._waiters: list[asyncio.Future[None]] = []
        self._trouble: str | None = None
        self._is_closing = False
        # Entries that say more than their columns in the file, each with the number in the log from which on; oldest first.
        self._dirty: dict[Entry, int] = {}
        self._aged = self._number_before = 0
        self._visited: OrderedDict[int, Entry] = OrderedDict()
        self._past: OrderedDict[tuple[DiskShelf, int], None] = OrderedDict()
        self._fetching: dict[tuple[DiskShelf, int], list[Callable[[], None]]] = {}
        self._names: dict[str, int] = {}  # channels that are in the file, and back
        self._numbers: dict[int, str] = {}
        try:
            self._start()
        except sqlite3.Error as error:
            self._lock.release()
            raise schema.ConfigError(f"{path} cannot be read: {error}") from None
        self._journal = Journal(path, writer, lambda: schema.connect(path, sync=config.sync), delay=2.0 if config.sync == "off" else 0.0)

    # Start

    def _start(self) -> None:
        one = self._one
        values = dict(self._reader.execute("select name, value from meta"))
        self.born = values.get("born", self.born)
        newest = one("select max(id) from events") or 0
        self._ids.last = max(self.born, newest, values.get("newest", 0))
        self._kept = one("select count(*) from events") or 0
        self._oldest = one("select min(id) from events") or 0
        self._bytes = 0  # in use in the file; the next sweep knows
        self._number = max(one("select max(number) from receipts") or 0, values.get("number", 0))
        # A row's number is that of its first record.
        tail = self._reader.execute("select records from receipts order by number desc limit 1").fetchone()
        if tail is not None:
            self._number = max(self._number, one("select max(number) from receipts") + len(tail[0]) // RECORD.size - 1)
        self.ledger.outstanding = one("select sum(owed) from entries indexed by entries_due where owed > 0") or 0
        names = self._numbers
        self._kept_channels: dict[str, tuple[int, int, int]] = {}
        for number, name, first, gone, sent in self._reader.execute("select id, name, first, gone, sent from channels"):
            self._names[name] = number
            names[number] = name
            self._kept_channels[name] = (first, gone, sent)
        self._newest_channel = max(names, default=0)
        for device, number in self._reader.execute("select device, channel from members where gone is null"):
            self.devices.register(device, names[number])
        for device, pattern in self._reader.execute("select device, pattern from wishes"):
            self.devices.want(device, pattern)
        since = self.clock() - self._config.idempotency_window
        for channel, key, event, audience, at in self._reader.execute(
                "select channel, key, event, audience, at from keys where at > ? order by at", (since,)):
            self._keys[channel, key] = at, Accepted(event, audience)
        self._floor = values.get("floor", 1)
        self._is_new = "born" not in values
        self._replay()

    def _replay(self) -> None:
        """Enter what the log says beyond the columns."""
        rows = self._reader.execute("select number, records, sayings from receipts where number >= ? order by number", (self._floor - MAX_RECORDS,))
        for first, records, sayings in rows.fetchall():
            words = _words(sayings)
            for number, (id, slot, state, saying, at) in enumerate(RECORD.iter_unpack(records), first):
                entry = self._find_entry(id) if number >= self._floor else None
                if entry is None or number <= entry.logged:
                    continue
                self._dirty.setdefault(entry, number)
                member = entry.audience.members.get(entry.names[slot]) if slot != ALL else None
                self._enter(entry, member, slot, state, words[saying - 1] if saying else None, at)
                entry.logged = number
        # What is counted is what this process did.
        fresh = type(self.ledger)()
        self.ledger.receipts, self.ledger.roundtrips, self.ledger.expired = fresh.receipts, fresh.roundtrips, fresh.expired

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

    def shelf(self, channel: str) -> Shelf | None:
        return self.open(channel) if channel in self._names or channel in self._shelves else None

    def _load(self, shelf: Shelf) -> bool:
        assert isinstance(shelf, DiskShelf)
        number = self._names.get(shelf.name, 0)
        if not number:
            self._newest_channel += 1
            shelf.number = self._newest_channel
            return False
        shelf.number, shelf.is_saved = number, True
        config, backlog = self._config, shelf.backlog
        try:
            rows = self._read(EVENT + "where channel = ? order by ordinal desc limit ?", (number, config.backlog_events))
            members = self._read("select slot, device, position, settled, since, seen, answered, last_id, gone from members "
                                 "where channel = ? order by slot", (number,))
        except Unavailable:
            del self._shelves[shelf.name]
            self._round.remove(shelf.name)
            raise
        shelf._first, shelf._gone_id, shelf.sent = self._kept_channels[shelf.name]
        events: list[Event] = []
        held = 0
        for row in rows:
            event = _event(shelf.name, row)
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
            member = Member(device, slot, shelf.sent if position is None else position, seen)
            # Who had an open feed when we last looked was seen until the end.
            member.seen = now if position is None else seen
            member.settled, member.since, member.answered, member.last_id = settled, since, answered, last_id
            shelf.audience.restore(member, gone)
        for event in events:
            for device in event.to or ():
                if device not in shelf.audience.members:
                    shelf.waiting[device] = event.ordinal
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
            event = _event(channel, rows[0]) if rows else None
        if event is not None:
            return event
        if shelf is not None and id <= shelf.gone_id:
            raise Gone("event_gone", f"event {format_id(id)} is no longer kept")
        raise NotFound("unknown_event", f"there is no event {format_id(id)} on channel {channel}")

    def fetch(self, shelf: Shelf, ordinal: int, then: Callable[[], None]) -> None:
        assert isinstance(shelf, DiskShelf)
        waiting = self._fetching.get((shelf, ordinal))
        if waiting is not None:
            waiting.append(then)
            return
        self._fetching[shelf, ordinal] = [then]
        reading = self._elsewhere.submit(self._events, shelf.name, shelf.number, ordinal, BLOCK)

        def fetched(done: Any) -> None:
            try:
                self._loop.call_soon_threadsafe(self._fetched, shelf, ordinal, done)
            except RuntimeError:
                pass  # the loop has ended

        reading.add_done_callback(fetched)

    def _fetched(self, shelf: DiskShelf, ordinal: int, done: Any) -> None:
        waiting = self._fetching.pop((shelf, ordinal))
        error = done.exception()
        if error is not None:
            self._failed(error)
            for then in waiting:
                self._loop.call_later(1.0, then)  # which asks again
            return
        for event in done.result():
            shelf.past[event.ordinal] = event
            self._past[shelf, event.ordinal] = None
            self._past.move_to_end((shelf, event.ordinal))
        for then in waiting:
            then()
        while len(self._past) > MAX_PAST:
            (oldest, old), _ = self._past.popitem(last=False)
            oldest.past.pop(old, None)

    def _events(self, channel: str, number: int, ordinal: int, limit: int) -> list[Event]:
        """In the thread that reads."""
        rows = self._far.execute(EVENT + "where channel = ? and ordinal >= ? order by ordinal limit ?", (number, ordinal, limit))
        return [_event(channel, row) for row in rows.fetchall()]

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

    # The ledger, as far as it is not at hand

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
                          "v.type, v.publisher, v.recipients, v.data, c.name from entries e join events v on v.id = e.event "
                          "join channels c on c.id = e.channel where e.event = ?", (id,))
        if not rows:
            return None
        _, need, version, logged, columns, sayings, *row, name = rows[0]
        shelf = self.open(name)
        event = shelf.backlog.find(id) or _event(name, row)
        if event.ordinal > shelf.backlog.last:
            return None  # committed, and about to be told
        names = sorted(event.to) if event.to is not None else shelf.audience.names
        slots = {device: slot for slot, device in enumerate(names)} if event.to is not None else None
        states, latencies, said = _parted(zlib.decompress(columns))
        entry = Entry(event, shelf.audience, bytearray(states), names, slots)
        entry.restore(need, version, latencies, said, _words(sayings))
        entry.logged = logged
        self.ledger.restore(entry)
        self._visited[id] = entry
        while len(self._visited) > MAX_VISITED:
            self._unload(self._visited.popitem(last=False)[1])
        return entry

    def _unload(self, entry: Entry) -> None:
        """Out of memory with an entry, if the file has all that it says."""
        shelf = self._shelves.get(entry.event.channel)
        is_needed = entry in self._dirty or entry.event.id in self._visited or (shelf is not None and entry.event.ordinal >= shelf.backlog.first)
        if not is_needed:
            self.ledger.unload(entry.event.id)

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
        for (id,) in self._read("select event from entries where channel = ? and owed > 0 order by event limit 64", (shelf.number,)):
            entry = self._find_entry(id)
            if entry is None or (ordinal := entry.event.ordinal) <= member.settled:
                continue
            slot = entry.slot(member.device)
            if ordinal >= shelf.backlog.first or (slot >= 0 and self.ledger.is_open(entry, slot)):
                return ordinal - 1
        return ordinal

    def oldest_outstanding(self) -> float | None:
        times = [time for time in (super().oldest_outstanding(),) if time is not None]
        try:
            id = self._one("select min(event) from entries indexed by entries_oldest where owed > 0")
        except sqlite3.Error:
            id = None
        if id is not None and id not in self.ledger.entries:
            times.append((id >> SEQUENCE_BITS) / 1000)
        return min(times, default=None)

    # What is said is queued

    def trouble(self) -> str | None:
        return self._trouble

    def append(self, draft: Draft, then: Callable[[Accepted | Refusal], None]) -> None:
        now = self.clock()
        known = self._known_key(draft, now)
        if known is not None:
            then(known)
            return
        if draft.key:
            waiting = self._asked.get((draft.channel, draft.key))
            if waiting is not None:
                waiting.append(then)
                return
        shelf = self.open(draft.channel)
        if draft.level != NONE:
            needed(draft.need, len(draft.to) or len(shelf.audience))
        if draft.key:
            self._asked[draft.channel, draft.key] = []
        shelf.touched = now
        self._pushes.append((draft, now, then))
        self._soon()

    def record(self, channel: str | None, device: str, id: int, state: int, status: bytes | None, then: Told, refused: Refused) -> None:
        entry = self.ledger.entries.get(id) or self._find_entry(id)
        if entry is None:
            shelf = self.shelf(channel) if channel is not None else None
            if shelf is not None and id <= shelf.gone_id:
                raise Gone("event_gone", f"event {format_id(id)} is no longer kept")
            raise unknown_receipt()
        member, slot = self.ledger.find(entry, channel, device)
        place = (id, slot)
        if place in self._flying:
            self._behind.setdefault(place, []).append((channel, device, id, state, status, then, refused))
            return
        old = entry.states[slot]
        if entry.rules[state][old][0] == old:
            # It changes nothing, so there is nothing to keep.
            then(*self.ledger.enter(entry, member, slot, state, status, self.clock()))
            return
        self._flying.add(place)
        self._change(entry, member, slot, state, status, then, refused)
        if self._commit is None and not self._is_called:
            self._soon()

    def _change(self, entry: Entry, member: Member | None, slot: int, state: int, status: bytes | None = None, then: Told | None = None,
                refused: Refused | None = None) -> None:
        if entry not in self._dirty:
            self._dirty[entry] = self._number + 1
        channel = entry.event.channel
        changes = self._changes.get(channel)
        if changes is None:
            changes = self._changes[channel] = []
        changes.append((entry, member, slot, state, status, self.clock(), then, refused))

    def _end(self, entry: Entry, slot: int, end: int) -> None:
        self._change(entry, None, slot, end)
        self._soon()

    def attempt(self, event: Event, device: str, again: bool) -> int:
        attempt = super().attempt(event, device, again)
        entry = self.ledger.entries.get(event.id)
        if attempt > 1 and entry is not None:
            self._dirty.setdefault(entry, self._number + 1)
        return attempt

    def _join(self, shelf: Shelf, device: str) -> Member:
        member = super()._join(shelf, device)
        assert isinstance(shelf, DiskShelf)
        self._moved[member] = shelf
        return member

    def _leave(self, channel: str, device: str) -> None:
        shelf = self.open(channel)
        assert isinstance(shelf, DiskShelf)
        member = shelf.audience.members.get(device)
        super()._leave(channel, device)
        if member is not None:
            self._moved.pop(member, None)
            self._left.append((shelf, _row(shelf, member, shelf.backlog.last)))
            self._soon()

    def want(self, device: str, pattern: str) -> None:
        known = self.devices.get(device)
        if known is None or pattern not in known.patterns:
            self._wishes.append(("insert or replace into wishes values (?, ?)", (device, pattern)))
        super().want(device, pattern)

    def remove(self, device: str) -> Device | None:
        if device in self.devices.known:
            for channel in self.devices.known[device].channels:
                self.open(channel)
            self._wishes.append(("delete from wishes where device = ?", (device,)))
            self._soon()
        return super().remove(device)

    # The queue is committed

    def _soon(self) -> None:
        """Commit at the end of this turn of the loop, or after the commit that is under way."""
        if self._commit is None and not self._is_called:
            self._is_called = True
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._is_called = False
        if self._commit is not None:
            return
        commit, batch = Commit(), Batch()
        if self._is_new or self._trouble:
            batch.put("meta", ("born", self.born))
        self._save_columns(commit, batch)
        self._add_events(commit, batch)
        self._add_changes(commit, batch)
        self._save_members(commit, batch)
        commit.wishes, self._wishes = self._wishes, []
        batch.statements += commit.wishes
        self._add_pruning(commit, batch)
        if not batch:
            self._tell_waiters()
            return
        self._commit = commit
        if self._config.sync == "off":
            # Not for anybody's data: it answers before the disk has it, which is what the crash test must notice.
            batch.work, commit.is_pruning = [], False
            self._journal.write(batch, lambda done, failure, seconds: None)
            self._committed(commit, [], None, 0.0)
        else:
            self._journal.write(batch, lambda *told: self._committed(commit, *told))

    def _add_events(self, commit: Commit, batch: Batch) -> None:
        pushes, self._pushes = self._pushes, []
        ahead: dict[DiskShelf, int] = {}
        for draft, now, then in pushes:
            shelf = self.open(draft.channel)
            assert isinstance(shelf, DiskShelf)
            states = bytes(len(draft.to)) if draft.to else bytes(shelf.audience.template)
            size = len(states) - states.count(ABSENT)
            try:
                need = needed(draft.need, size) if draft.level != NONE else 0
            except BadRequest as refusal:  # devices left meanwhile
                self._refuse(draft, then, refusal)
                continue
            self._add_shelf(shelf, commit, batch)
            ordinal = ahead[shelf] = ahead.get(shelf, shelf.backlog.last) + 1
            event = Event(draft, self._ids.next(now), ordinal, now)
            recipients = orjson.dumps(draft.to).decode() if draft.to else None
            batch.put("events", (event.id, shelf.number, ordinal, now, draft.ttl, draft.level, draft.is_json, draft.type, draft.publisher, recipients, draft.data))
            if draft.level != NONE:
                batch.put("entries", (event.id, shelf.number, event.expires, size, need, 0, 0, b"\0" + states, None))
            if draft.key:
                batch.put("keys", (draft.channel, draft.key, event.id, size, now))
            commit.events.append((shelf, event, draft, need, states, then))

    def _add_shelf(self, shelf: DiskShelf, commit: Commit, batch: Batch) -> None:
        if not shelf.is_saved:
            shelf.is_saved = True
            batch.put("channels", (shelf.number, shelf.name, shelf.first, shelf.gone_id, shelf.sent))
            commit.shelves.append(shelf)

    def _add_changes(self, commit: Commit, batch: Batch) -> None:
        changes, self._changes = self._changes, {}
        dirty, pack = self._dirty, RECORD.pack
        for name, found in changes.items():
            shelf = self._shelves[name]
            assert isinstance(shelf, DiskShelf)
            for at in range(0, len(found), MAX_RECORDS):
                row = found[at : at + MAX_RECORDS]
                first, words, records = self._number + 1, {}, []  # type: int, dict[bytes, int], list[bytes]
                for entry, _, slot, state, status, moment, _, _ in row:
                    saying = words.setdefault(status, len(words) + 1) if status is not None else 0
                    records.append(pack(entry.event.id, slot, state, saying, moment))
                    if entry not in dirty:
                        dirty[entry] = first  # its columns are being saved, but without this
                self._number += len(row)
                commit.changes.append((first, row))
                batch.put("receipts", (first, shelf.number, b"".join(records), b"[" + b",".join(words) + b"]" if words else None))

    def _save_columns(self, commit: Commit, batch: Batch) -> None:
        """The columns of entries that changed a while ago."""
        if not self._dirty:
            return
        for entry, number in self._dirty.items():
            if number > self._aged or len(commit.saved) == MAX_SAVED:
                break
            commit.saved[entry] = number
        for entry in commit.saved:
            del self._dirty[entry]
            shelf = self._shelves[entry.event.channel]
            assert isinstance(shelf, DiskShelf)
            sayings = b"[" + b",".join(entry.sayings) + b"]" if entry.sayings else None
            batch.put("entries", (entry.event.id, shelf.number, entry.event.expires, entry.owed, entry.need, entry.version, entry.logged,
                                  _columns(entry), sayings))
        if commit.saved:
            self._floor = next(iter(self._dirty.values()), self._number + 1)
            batch.put("meta", ("floor", self._floor))

    def _save_members(self, commit: Commit, batch: Batch) -> None:
        commit.members, self._moved = self._moved, {}
        commit.left, self._left = self._left, []
        shown, self._shown = self._shown, set()
        for shelf in shown:
            self._add_shelf(shelf, commit, batch)
        for member, shelf in commit.members.items():
            self._add_shelf(shelf, commit, batch)
            member.saved = _mark(member)
            batch.put("members", _row(shelf, member, None))
        for shelf, row in commit.left:
            self._add_shelf(shelf, commit, batch)
            batch.put("members", row)

    def _add_pruning(self, commit: Commit, batch: Batch) -> None:
        config = self._config
        cutoff = int((self.clock() - config.retention_age) * 1000) << SEQUENCE_BITS
        surplus = self._kept + len(commit.events) - config.retention_events
        if not self._kept or (self._oldest >= cutoff and surplus <= 0 and self._bytes <= config.retention_bytes):
            return
        commit.is_pruning = True
        count = SLICE if self._bytes > config.retention_bytes else max(surplus, 0)
        floor, limit = self._floor, max(SLICE, 2 * len(commit.events))
        batch.put("meta", ("newest", self._ids.last))
        batch.put("meta", ("number", self._number))
        batch.work.append(lambda connection: _prune(connection, cutoff, count, limit, floor))

    def _committed(self, commit: Commit, done: list[Any], failure: Exception | None, seconds: float) -> None:
        self._commit = None
        self.on_commit(seconds, len(commit.events) + sum(len(row) for _, row in commit.changes))
        if failure is not None:
            self._undo(commit, self._failed(failure))
        else:
            self._is_new = False
            if self._trouble is not None:
                log.warning("the store is well again", extra={"facts": {"was": self._trouble}})
                self._trouble = None
            for shelf in commit.shelves:
                self._names[shelf.name] = shelf.number
                self._numbers[shelf.number] = shelf.name
                self._kept_channels[shelf.name] = (shelf.first, shelf.gone_id, shelf.sent)
            self._apply_events(commit)
            self._apply_changes(commit)
            for entry in commit.saved:
                self._unload(entry)
            if commit.is_pruning:
                self._apply_pruning(*done[-1])
        if self._pushes or self._changes or (failure is None and (self._wishes or self._left or commit.is_pruning)):
            self._hand_over()
        else:
            self._tell_waiters()

    def _apply_events(self, commit: Commit) -> None:
        for shelf, event, draft, need, states, then in commit.events:
            accepted = self._take(shelf, event, draft, None)
            entry = self.ledger.entries.get(event.id)
            if entry is not None:
                if entry.states != states:
                    self._amend(entry, states)
                accepted = Accepted(event.id, entry.size)
                entry.need = min(need, entry.size)
            self._kept += 1
            self._oldest = self._oldest or event.id
            self.deliver(event)
            then(accepted)
            for other in self._asked.pop((draft.channel, draft.key), ()) if draft.key else ():
                other(Accepted(accepted.id, accepted.audience, repeated=True))

    def _amend(self, entry: Entry, states: bytes) -> None:
        """Devices came or went while the event was on its way to the disk: who came gets it, so it is in the audience; who went was."""
        for slot, now in enumerate(bytes(entry.states)):
            before = states[slot] if slot < len(states) else ABSENT
            if before == ABSENT != now:
                self._change(entry, None, slot, PENDING)
            elif now == ABSENT != before:
                self.ledger.admit(entry, slot)
                self._end(entry, slot, CANCELLED)

    def _apply_changes(self, commit: Commit) -> None:
        enter, leave, behind = self.ledger.enter, self._flying.remove, self._behind
        later: list[tuple[Any, ...]] = []
        for first, row in commit.changes:
            for number, (entry, member, slot, state, status, at, then, _) in enumerate(row, first):
                entry.logged = number
                if then is None:
                    self._enter(entry, member, slot, state, status, at)
                    continue
                place = (entry.event.id, slot)
                leave(place)
                then(*enter(entry, member, slot, state, status, at))
                if behind and place in behind:
                    later += behind.pop(place)
        for said in later:
            try:
                self.record(*said)
            except Refusal as refusal:
                said[-1](refusal)

    def _enter(self, entry: Entry, member: Member | None, slot: int, state: int, status: bytes | None, at: float) -> None:
        """One record of the log into the ledger."""
        if slot == ALL:
            owed = self.ledger.expire(entry.event.id, "ttl")
            if owed and log.isEnabledFor(logging.INFO):
                log.info("event expired", extra={"facts": {"id": format_id(entry.event.id), "channel": entry.event.channel, "outstanding": owed}})
        elif state == PENDING:
            self.ledger.admit(entry, slot)
        elif state in (CANCELLED, EXPIRED):
            self.ledger.end(entry, slot, state)
        else:
            self.ledger.enter(entry, member, slot, state, status, at)

    def _apply_pruning(self, oldest: int, used: int, pruned: list[tuple[int, int]], channels: list[tuple[int, int, int]]) -> None:
        self._oldest, self._bytes = oldest, used
        self._kept -= len(pruned)
        for number, first, gone in channels:
            name = self._numbers[number]
            self._kept_channels[name] = (first, gone, self._kept_channels[name][2])
            shelf = self._shelves.get(name)
            if shelf is not None:
                assert isinstance(shelf, DiskShelf)
                shelf._first, shelf._gone_id = first, gone
                while (old := shelf.backlog.oldest()) is not None and old.id <= gone:
                    self._evict(shelf)
        for id, owed in pruned:
            entry = self.ledger.entries.get(id)
            if entry is not None:
                self._dirty.pop(entry, None)
                self._visited.pop(id, None)
                self.ledger.drop(id)
            elif owed:
                self.ledger.outstanding -= owed
                self.ledger.expired["evicted"] += owed

    # The disk refuses

    def _failed(self, error: BaseException) -> Unavailable:
        reason = str(error)
        if self._trouble is None:
            log.warning("the store is in trouble", extra={"facts": {"error": reason, "path": self._path}})
        self._trouble = f"the store cannot keep anything at present: {reason}"
        return Unavailable("store_failed", self._trouble, retry_after=RETRY)

    def _refuse(self, draft: Draft, then: Callable[[Accepted | Refusal], None], refusal: Refusal) -> None:
        then(refusal)
        for other in self._asked.pop((draft.channel, draft.key), ()) if draft.key else ():
            other(refusal)

    def _undo(self, commit: Commit, refusal: Refusal) -> None:
        """Nothing of it is kept: who waits for it is told, and what nobody asked for is tried again with the next."""
        for shelf in commit.shelves:
            shelf.is_saved = False
            if shelf.name in self._names:
                self._shown.add(shelf)
        again = {**commit.saved, **self._dirty}
        self._dirty = dict(sorted(again.items(), key=lambda item: item[1]))
        self._moved = {**commit.members, **self._moved}
        self._left = commit.left + self._left
        self._wishes = commit.wishes + self._wishes
        for _, _, draft, _, _, then in commit.events:
            self._refuse(draft, then, refusal)
        kept: list[Change] = []
        for _, row in commit.changes:
            for change in row:
                entry, _, slot, _, _, _, _, refused = change
                if refused is not None:
                    self._flying.remove((entry.event.id, slot))
                    refused(refusal)
                    for said in self._behind.pop((entry.event.id, slot), ()):
                        said[-1](refusal)
                elif slot == ALL:
                    entry.event.expired = False  # the next sweep finds it again
                else:
                    kept.append(change)
        if kept:
            self._loop.call_later(1.0, self._again, kept)

    def _again(self, changes: list[Change]) -> None:
        for entry, member, slot, state, *_ in changes:
            self._change(entry, member, slot, state)
        self._soon()

    # Time

    def sweep(self, now: float, is_used: Callable[[str], bool]) -> None:
        self._sweep_channels(now, is_used)
        self._aged, self._number_before = self._number_before, self._number + 1
        try:
            self._bytes = self._one("select page_count - freelist_count from pragma_page_count, pragma_freelist_count") * schema.PAGE_BYTES
            due = self._read("select event from entries where owed > 0 and expires <= ? order by expires limit ?", (now, MAX_DUE))
            for (id,) in due:
                entry = self._find_entry(id)
                if entry is not None and entry.owed and not entry.event.expired:
                    entry.event.expired = True
                    self._change(entry, None, ALL, EXPIRED)
            if self._keys and int(now) % 60 == 0:
                self._wishes.append(("delete from keys where at < ?", (now - self._config.idempotency_window,)))
        except (Unavailable, sqlite3.Error):
            pass  # said already; the next commit finds out whether it goes on
        if int(now) % QUIET_EVERY == 0:
            self._elsewhere.submit(self._find_quiet, now - self._config.device_ttl)
        self._hand_over()

    def _find_quiet(self, moment: float) -> None:
        """In the thread that reads: channels that nobody uses are not in memory, but who is registered there has an end too."""
        try:
            rows = self._far.execute("select distinct channel from members where gone is null and seen < ? and answered < ? limit 100", (moment, moment))
            names = [self._numbers[number] for (number,) in rows.fetchall() if number in self._numbers]
            self._loop.call_soon_threadsafe(lambda: [self.open(name) for name in names])
        except (sqlite3.Error, RuntimeError) as error:
            log.debug("quiet devices were not looked for", extra={"facts": {"error": str(error)}})

    def _visit(self, shelf: Shelf) -> None:
        """Which members have moved since they were saved."""
        assert isinstance(shelf, DiskShelf)
        for member in shelf.audience:
            if member.saved != _mark(member):
                self._moved[member] = shelf
        if shelf.shown != shelf.sent:
            shelf.sent = shelf.shown
            if shelf.name in self._names:
                shelf.is_saved = False
                self._shown.add(shelf)
        shelf.shown = shelf.backlog.last

    def _forget(self, shelf: Shelf) -> None:
        assert isinstance(shelf, DiskShelf)
        if shelf.first <= shelf.backlog.last:
            self._round.append(shelf.name)  # there is something in the file
            return
        super()._forget(shelf)
        if self._names.pop(shelf.name, None) is not None:
            del self._numbers[shelf.number]
            del self._kept_channels[shelf.name]
            self._wishes.append(("delete from channels where id = ?", (shelf.number,)))
            self._wishes.append(("delete from members where channel = ?", (shelf.number,)))

    def _tell_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def settle(self) -> None:
        if self._commit is not None or self._pushes or self._changes or self._moved or self._left or self._wishes:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            self._soon()
            await waiter

    async def close(self) -> None:
        await self.settle()
        for shelf in self._shelves.values():
            assert isinstance(shelf, DiskShelf)
            shelf.shown = shelf.backlog.last
            for member in shelf.audience:
                member.saved = None
            self._visit(shelf)
        self._aged = self._number + 1
        before = -1
        while self._trouble is None and (self._moved or self._wishes or len(self._dirty) not in (0, before)):
            before = len(self._dirty)
            self._moved = self._moved or {}
            self._soon()
            await self._pause()
        await self._journal.close()
        self._elsewhere.shutdown()
        self._far.close()
        self._reader.close()
        self._lock.release()

    async def _pause(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter


def _event(channel: str, row: Any) -> Event:
    id, ordinal, time, ttl, level, is_json, type, publisher, recipients, data = row
    to = tuple(orjson.loads(recipients)) if recipients is not None else ()
    return Event(Draft(channel=channel, data=data, is_json=bool(is_json), type=type, to=to, ttl=ttl, level=level, publisher=publisher), id, ordinal, time)


def _words(sayings: bytes | None) -> list[bytes]:
    return [orjson.dumps(word) for word in orjson.loads(sayings)] if sayings is not None else []


def _mark(member: Member) -> tuple[int, float]:
    """What tells that a member must be saved again; how far it has come does not, while it has an open feed."""
    return (-1, member.since) if member.live else (member.position, member.seen)


def _row(shelf: DiskShelf, member: Member, gone: int | None) -> tuple[Any, ...]:
    return (shelf.number, member.slot, member.device, None if member.live else member.position, member.settled, member.since, member.seen,
            member.answered, member.last_id, gone)


def _columns(entry: Entry) -> bytes:
    """States, latencies and numbers of sayings one after the other, behind a byte that tells which are there."""
    has_latencies, has_said = entry.latencies is not None, entry.said is not None
    return b"".join((bytes((has_latencies + 2 * has_said,)), entry.states, entry.latencies or b"", entry.said.tobytes() if entry.said is not None else b""))


def _parted(columns: bytes) -> tuple[bytes, bytes, bytes]:
    kind = columns[0]
    width = (len(columns) - 1) // (1 + (kind & 1) + (kind & 2))
    middle = 1 + width + (width if kind & 1 else 0)
    return columns[1 : 1 + width], columns[1 + width : middle], columns[middle:]


def _prune(connection: sqlite3.Connection, cutoff: int, count: int, limit: int, floor: int) -> tuple[Any, ...]:
    """In the journal's thread: delete the oldest events, `count` of them and all below `cutoff`, but not more than `limit`, with
    what belongs to them. Returns what the loop must know of it."""
    rows = connection.execute("select id, channel, ordinal from events order by id limit ?", (limit,)).fetchall()
    rows = [row for place, row in enumerate(rows) if place < count or row[0] < cutoff]
    pruned: list[tuple[int, int]] = []
    channels: dict[int, tuple[int, int, int]] = {}
    if rows:
        through = rows[-1][0]
        for id, channel, ordinal in rows:
            channels[channel] = (channel, ordinal + 1, id)
        owed = dict(connection.execute("select event, owed from entries where event <= ?", (through,)))
        pruned = [(id, owed.get(id, 0)) for id, _, _ in rows]
        connection.execute("delete from events where id <= ?", (through,))
        connection.execute("delete from entries where event <= ?", (through,))
        connection.executemany("update channels set first = ?, gone = ? where id = ?", [(first, gone, number) for number, first, gone in channels.values()])
        last = 0
        for number, records in connection.execute("select number, records from receipts where number < ? order by number limit 500", (floor,)):
            if number + len(records) // RECORD.size > floor or max(record[0] for record in RECORD.iter_unpack(records)) > through:
                break
            last = number
        if last:
            connection.execute("delete from receipts where number <= ?", (last,))
    oldest = connection.execute("select min(id) from events").fetchone()[0] or 0
    used = connection.execute("select page_count - freelist_count from pragma_page_count, pragma_freelist_count").fetchone()[0]
    return oldest, used * schema.PAGE_BYTES, pruned, list(channels.values())
