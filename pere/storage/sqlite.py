"""The store that is a file: what was answered 201 or 200 is on the disk, and after any end the devices go on where they were.

All questions are answered out of memory, as far as it reaches (`working.py`), and else out of the file (`reading.py`). What changes
is queued here, and is entered in memory, told to the hub, and answered when its commit is done (`committing.py`).

Changes of states are appended to a log, a row of many for each commit, because a receipt must cost bytes and not pages. The columns
of an event in the ledger follow a second or two later; at start what the log says beyond them is entered again. Positions and
the like may be a moment old after a crash: then a device is sent again what it had, which is why it answers by event id.

It is a little longer than a file should be: the start, the verbs of the contract, the sweep and the end of one store, and none of them
is anybody else's.
"""

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from pere.audience import Member
from pere.bulk import Receipt
from pere.config import Config
from pere.devices import Device
from pere.entry import Entry
from pere.errors import ConfigError, Refusal, Unavailable
from pere.event import SEQUENCE_BITS, Draft, Event
from pere.ledger import ALL
from pere.receipt import CANCELLED, EXPIRED
from pere.storage import Accepted, Shelf, schema
from pere.storage.beginning import Beginning
from pere.storage.commit import Asker, Assured, Change, Refused
from pere.storage.committing import Committing, mark, row_of
from pere.storage.journal import Journal
from pere.storage.packing import RECORD, Malformed, words
from pere.storage.reading import DiskShelf
from pere.storage.together import Part, Together

log = logging.getLogger("pere.store")

UNTOLD = 10_000  # milliseconds before the end within which it is not known whether all was told that was decided
MAX_DUE = 500  # events that are expired in one sweep
HOUR = 3600.0
SAVING = 0.1  # seconds for what is saved ahead of the end
QUIET_EVERY = 60  # seconds between two looks for devices that were not seen for long


class SqliteStore(Committing):
    """`path` is the file, which is made if it is not there. Must be made on a running loop. Raises ConfigError where the file cannot be used.

    With `is_early` another process has the file yet, and puts it down soon: what can be had of it before is (`look`), and `take` is the rest. `left` is what
    the process before knew at its end, if it was there (`put_down`)."""

    def __init__(self, config: Config, clock: Callable[[], float], path: str, is_early: bool = False, left: Mapping[str, int] = {}):
        if is_early or not os.path.exists(path + schema.LOCKED):
            version = schema.check(path)  # beside what is not ours we leave no lock either
            if is_early and version != schema.VERSION:
                raise ConfigError(f"{path} cannot be read as it stands: it is of version {version}, this one writes {schema.VERSION}")
        self._lock = schema.Lock(path) if not is_early else None
        try:
            writer = schema.connect(path, sync=config.sync) if is_early else schema.prepare(path, config.sync)
            super().__init__(config, clock, path)
        except BaseException as error:
            self._let_go()
            if isinstance(error, sqlite3.Error):
                raise ConfigError(f"{path} cannot be opened: {error}") from None
            raise
        self._searched: dict[DiskShelf, int] = {}  # for what those who left still owe: up to which id
        self._is_down = self._is_closed = False
        self._beginning = Beginning()
        self._seen = -1  # as much of `_news` of the other process; nothing
        if not is_early:
            self._possess(left)
        self._journal = Journal(path, self._lock, writer, lambda: schema.connect(path, sync=config.sync), delay=2.0 if config.sync == "off" else 0.0)

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.release()

    @property
    def writing(self) -> float:
        return self._journal.writing

    # Start

    def look(self, news: int) -> None:
        """While another process has the file: see how it stands after so much news of that one (`save`). Raises ConfigError."""
        now = self.clock()
        try:
            self._beginning.read(self._reader, now, now - self._config.idempotency_window)
        except sqlite3.Error as error:
            raise ConfigError(f"{self.path} cannot be read: {error}") from None
        self.devices, self._seen = self._beginning.devices, news

    def take(self, left: Mapping[str, int], flushed: Mapping[str, int]) -> None:
        """The file is free, and ours from here on. Feeds that had all up to these ordinals of their channels were `flushed`. Raises ConfigError where that is
        not so, or where what has this name by now is another file: then it may be opened anew."""
        self._lock = self._journal.lock = schema.Lock(self.path)
        if (missing := self._journal.missing()) is not None:
            self._let_go()
            raise ConfigError(f"{missing} was deleted, moved away or replaced")
        self._possess(left)
        for name, ordinal in flushed.items():
            if (kept := self._kept_channels.get(name)) is not None:
                self._kept_channels[name] = (*kept[:2], max(kept[2], ordinal))

    async def forgo(self) -> None:
        """It is not to be ours."""
        self._elsewhere.shutdown()
        self._far.close()
        self._reader.close()
        await self._journal.leave()

    def _possess(self, left: Mapping[str, int]) -> None:
        path = self.path
        try:
            self._start(left)
        except (sqlite3.Error, Refusal) as error:
            self._let_go()
            raise ConfigError(f"{path} cannot be read: {error}") from None
        except Malformed as error:
            self._let_go()
            raise ConfigError(f"{path} cannot be read: what is in it does not agree ({error!r}); `pere store check` tells more") from None
        # What was entered again is saved now: were we to die young each time, there would be more of it at every start.
        self._aged = self._number_before = self._number
        self._soon()

    def _start(self, left: Mapping[str, int]) -> None:
        one, beginning = self._one, self._beginning
        values = {**dict(self._reader.execute("select name, value from meta")), **left}
        self.born = values.get("born", self.born)
        now = self.clock()
        is_same = self._seen == left.get("news")
        beginning.read(self._reader, now, now - self._config.idempotency_window, is_same)
        self._ids.last = max(self.born, beginning.newest, values.get("newest", 0))
        self._kept, self._oldest = beginning.events, beginning.oldest
        self._bytes = 0  # in use in the file; the next sweep knows
        self._number = max(one("select max(number) from receipts") or 0, values.get("number", 0))
        # A row's number is that of its first record.
        tail = self._reader.execute("select records from receipts order by number desc limit 1").fetchone()
        if tail is not None:
            self._number = max(self._number, one("select max(number) from receipts") + len(tail[0]) // RECORD.size - 1)
        self.ledger.outstanding = left["outstanding"] if is_same else one("select sum(owed) from entries indexed by entries_due where owed > 0") or 0
        self._names, self._numbers, self._kept_channels = beginning.names, beginning.numbers, beginning.kept
        self.devices, self._keys = beginning.devices, beginning.keys
        # A number is not given anew while anything in the file may still bear it.
        self._newest_channel = max(max(self._numbers, default=0), values.get("channel", 0))
        self._newest_record = self._number
        self._floor = values.get("floor", 1)
        self._is_new = "born" not in values
        self._retell(max(values.get("told", 0), beginning.newest - (UNTOLD << SEQUENCE_BITS)))
        self._replay()

    def _replay(self) -> None:
        """Enter what the log says beyond the columns."""
        told = self.ledger.on_decision
        self.ledger.on_decision = lambda word, entry, moment: self.decided.append((word, entry.event, moment, entry.summary()))
        # The row that holds the first of these may begin before it.
        begin = self._one("select max(number) from receipts where number <= ?", (self._floor,)) or 0
        rows = self._reader.execute("select number, records, sayings from receipts where number >= ? order by number", (begin,))
        for first, records, sayings in rows.fetchall():
            said = words(sayings)
            for number, (id, slot, state, saying, at) in enumerate(RECORD.iter_unpack(records), first):
                entry = self._find_entry(id) if number >= self._floor else None
                if entry is None or number <= entry.logged:
                    continue
                self._dirty.setdefault(entry, number)
                member = entry.audience.members.get(entry.names[slot]) if slot != ALL else None
                self.ledger.apply(entry, member, slot, state, said[saying - 1] if saying else None, at)
                entry.logged = number
        # What is counted is what this process did.
        fresh = type(self.ledger)()
        self.ledger.on_decision = told
        self.ledger.receipts, self.ledger.roundtrips = fresh.receipts, fresh.roundtrips
        self.ledger.expired, self.ledger.cancelled = fresh.expired, fresh.cancelled

    def _retell(self, after: int) -> None:
        """What was decided when it was accepted is in no log: nobody was asked for a receipt, or none was needed."""
        rows = self._reader.execute("select event from entries where event > ? and need = 0 and logged = 0", (after,))
        for (id,) in rows.fetchall():
            if (entry := self._find_entry(id)) is not None:
                words = ("satisfied", "completed") if entry.is_complete else ("satisfied",)
                self.decided += [(word, entry.event, entry.event.time, entry.summary()) for word in words]

    # What is said is queued

    def append(self, draft: Draft, then: Callable[[Accepted | Refusal], None]) -> None:
        now = self.clock()
        waiting = self._asked.get((draft.channel, draft.key)) if draft.key else None
        if waiting is not None:
            waiting.append(then)
            return
        known = self._known_key(draft, now)
        if known is not None:
            then(known)
            return
        self._check(draft)
        shelf = self.open(draft.channel)
        if draft.key:
            self._asked[draft.channel, draft.key] = []
        shelf.touched = now
        self._pushes.append((draft, now, then))
        self._soon()

    def record_many(self, receipts: Sequence[Receipt], then: Callable[[list[tuple[int, int] | Refusal]], None]) -> None:
        # Each is looked up before any is queued, and is still to be the one at hand then, whatever was brought in for those behind it.
        with self._hold():
            is_queued = self._queue(receipts, Together(len(receipts), then))
        if is_queued:
            self._soon()
        elif not receipts:
            then([])

    def _queue(self, receipts: Sequence[Receipt], together: Together) -> bool:
        """Whether any of these change something, and so are on their way to the disk."""
        unread: dict[int, Refusal] = {}
        newest: dict[str, int] = {}
        flying, dirty, now, number = self._flying, self._dirty, self.clock(), self._number + 1

        def fetch(id: int) -> Entry | None:
            try:
                return self._find_entry(id)
            except Unavailable as refusal:
                unread[id] = refusal
                return None

        rows, missing = self.ledger.find_many(receipts, now, fetch)
        for place in missing:
            device, id, *_, named = receipts[place]
            together.refused(place, unread.get(id) or self._why(device, id, named, newest))
        places: Iterable[int] = range(len(rows)) if not missing else sorted(set(range(len(receipts))).difference(missing))
        parts: dict[str, tuple[Part, list[Change]]] = {}
        current, id, channel, part = None, 0, "", None
        for place, row in zip(places, rows, strict=True):
            entry, member, slot, state, status, at = row
            if entry is not current:
                # As in `_change`, with what is the event's looked up where it is another than before.
                current, id, channel = entry, entry.event.id, entry.event.channel
                rules, states = entry.rules, entry.states
                part, changes = parts.get(channel, (None, []))
            flight = (id, slot)
            if flight in flying:
                device, _, _, _, said, named = receipts[place]
                self._behind.setdefault(flight, []).append((named, device, id, state, status, partial(together.told, place), partial(together.refused, place), said))
                continue
            if rules[state][states[slot]][0] == states[slot]:
                # It changes nothing, so there is nothing to keep.
                together.told(place, *self.ledger.enter(entry, member, slot, state, status, now))
                continue
            if part is None:
                part, changes = parts[channel] = Part(together), self._changes.setdefault(channel, [])
            flying.add(flight)
            part.places.append(place)
            if entry not in dirty:
                dirty[entry] = number
            changes.append((row, part))
        return bool(parts)

    def put_away(self, kind: str, name: str, document: bytes | None, then: Callable[[Refusal | None], None]) -> None:
        self._documents.append((kind, name, document, then))
        self._soon()

    def recall(self, channel: str, id: int, then: Callable[[int], None], refused: Refused) -> None:
        event = self.find(channel, id)
        entry = self._entry(event)

        def recalled(state: int, count: int) -> None:
            shelf = self.open(channel)
            is_news = not event.recalled
            shelf.backlog.recall(event)
            for known in (shelf.past.get(event.ordinal), entry.event if entry is not None else None):
                if known is not None:
                    known.recalled = True
            if is_news:
                self.withdraw(event)
            then(count)

        if entry is not None:
            self._change(entry, None, ALL, CANCELLED, Asker(recalled, refused))
        else:
            self._recalls.append((id, recalled, refused))
        self._soon()

    def _end(self, entry: Entry, slot: int, end: int) -> None:
        self._change(entry, None, slot, end)
        self._soon()

    def _open_slot(self, event: Event, device: str) -> tuple[Entry, int] | None:
        owed = super()._open_slot(event, device)
        return owed if owed is None or not self._flying or (event.id, owed[1]) not in self._flying else None

    def owes_all(self, events: Iterable[Event], member: Member) -> bool:
        return super().owes_all(events, member) and (not self._flying or self._flying.isdisjoint([(event.id, member.slot) for event in events]))

    def attempt(self, event: Event, device: str, again: bool) -> int | None:
        attempt = super().attempt(event, device, again)
        if attempt is not None and attempt > 1 and (entry := self.ledger.entries.get(event.id)) is not None:
            self._dirty.setdefault(entry, self._number + 1)
        return attempt

    def _join(self, shelf: Shelf, device: str) -> Member:
        member = super()._join(shelf, device)
        assert isinstance(shelf, DiskShelf)
        self._moved[member] = shelf
        self._fresh.setdefault(device, [])
        return member

    def is_assured(self, device: str) -> bool:
        return device not in self._fresh and (self._commit is None or device not in self._commit.fresh)

    def assure(self, device: str, then: Assured) -> None:
        if device in self._fresh:
            self._fresh[device].append(then)
            self._soon()
        elif self._commit is not None and device in self._commit.fresh:
            self._commit.fresh[device].append(then)
        else:
            then(None)

    def _leave(self, channel: str, device: str) -> None:
        shelf = self.open(channel)
        assert isinstance(shelf, DiskShelf)
        member = shelf.audience.members.get(device)
        super()._leave(channel, device)
        if member is not None:
            self._moved.pop(member, None)
            self._left.append((shelf, row_of(shelf, member, shelf.backlog.last)))
            if shelf.first < shelf.backlog.first:
                self._searched[shelf] = 0
            self._soon()

    def want(self, device: str, pattern: str, channels: Iterable[str] | None = None) -> None:
        known = self.devices.get(device)
        if known is None or pattern not in known.patterns:
            super().want(device, pattern, channels)
            self._wishes.append(("insert or replace into wishes values (?, ?)", (device, pattern)))
            self._fresh.setdefault(device, [])
        else:
            super().want(device, pattern, channels)

    def _forget_wishes(self, device: Device) -> None:
        super()._forget_wishes(device)
        self._wishes.append(("delete from wishes where device = ?", (device.name,)))

    def unregister(self, channel: str, device: str) -> None:
        super().unregister(channel, device)
        if device not in self.devices.known:
            self._wishes.append(("delete from wishes where device = ?", (device,)))

    def remove(self, device: str) -> Device | None:
        if device in self.devices.known:
            for channel in self.devices.known[device].channels:
                self.open(channel)
            self._wishes.append(("delete from wishes where device = ?", (device,)))
            self._soon()
        return super().remove(device)

    # Time

    def sweep(self, now: float, is_used: Callable[[str], bool]) -> None:
        self._sweep_channels(now, is_used)
        # Before anything expires: who left before an event's time was over did not let it pass.
        self._search()
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

    def _search(self) -> None:
        """Who left a channel owes nothing of it any more, not even of events that are only in the file: some of these at a time."""
        left = MAX_DUE
        while self._searched and left > 0:
            shelf, after = self._searched.popitem()
            try:
                found = self._read("select event from entries where channel = ? and owed > 0 and event > ? order by event limit ?",
                                   (shelf.number, after, left))
                for (id,) in found:
                    entry = self._find_entry(id)
                    if entry is not None:
                        self._cancel_left(entry)
            except Unavailable:
                self._searched[shelf] = after
                return
            if len(found) == left:
                self._searched[shelf] = found[-1][0]
            left -= len(found) + 1

    def _find_quiet(self, moment: float) -> None:
        """In the thread that reads: channels that nobody uses are not in memory, but they and who is registered there have an end too."""
        try:
            rows = self._far.execute(
                "select * from (select distinct channel from members where gone is null and seen < ? and answered < ? limit 100) union "
                "select * from (select id from channels where not exists (select 1 from events where channel = id) "
                "and not exists (select 1 from members where channel = id and gone is null) limit 100)", (moment, moment)).fetchall()
            self._loop.call_soon_threadsafe(lambda: [self.open(self._numbers[number]) for (number,) in rows if number in self._numbers])
        except (sqlite3.Error, RuntimeError) as error:
            log.debug("quiet devices were not looked for", extra={"facts": {"error": str(error)}})

    def _visit(self, shelf: Shelf) -> None:
        """Which members have moved since they were saved."""
        assert isinstance(shelf, DiskShelf)
        now = self.clock()
        for member in shelf.audience:
            if member.feeds and not member.live and member.seen < now - HOUR:
                member.seen = now  # it is there, though not up to date: should we die now, it was not away for long
            if member.saved != mark(member):
                self._moved[member] = shelf
        self._show(shelf)
        shelf.shown = shelf.backlog.last

    def _show(self, shelf: DiskShelf) -> None:
        if shelf.shown != shelf.sent:
            shelf.sent = shelf.shown
            if shelf.name in self._names:
                shelf.is_saved = False
                self._shown.add(shelf)

    def _forget(self, shelf: Shelf) -> None:
        assert isinstance(shelf, DiskShelf)
        if shelf.first <= shelf.backlog.last or (self._commit is not None and shelf in self._commit.shelves):
            self._round.append(shelf.name)  # there is something in the file, or will be
            return
        super()._forget(shelf)
        self._unkept.discard(shelf.name)
        if self._names.pop(shelf.name, None) is not None:
            del self._numbers[shelf.number]
            del self._kept_channels[shelf.name]
            self._wishes.append(("delete from channels where id = ?", (shelf.number,)))
            self._wishes.append(("delete from members where channel = ?", (shelf.number,)))
            self._wishes.append(("insert or replace into meta values ('channel', ?)", (self._newest_channel,)))

    async def save(self) -> int:
        for shelf in self._shelves.values():
            self._visit(shelf)
        self._aged = self._number + 1
        with suppress(TimeoutError):
            # Where there is always something more to commit, it is not waited for the end of that.
            async with asyncio.timeout(SAVING):
                while self._trouble is None and (self._moved or next(iter(self._dirty.values()), self._aged) < self._aged):
                    await self._pause()
        return self._news

    async def put_down(self, moved: Iterable[tuple[Shelf, Member]], flushed: Mapping[str, int]) -> dict[str, int]:
        if self._is_down:
            return {}
        self._is_down = True
        await self.settle()
        for shelf, member in moved:
            assert isinstance(shelf, DiskShelf)
            self._moved[member] = shelf
        for name, shelf in self._shelves.items():
            assert isinstance(shelf, DiskShelf)
            shelf.shown = flushed.get(name, shelf.backlog.last)
            self._show(shelf)
        await self._save_all()
        # What was kept after all, though the disk said that it was not, is in the file and not here.
        is_known = self._trouble is None and not self._dirty and self._config.sync != "off"
        left = {"news": self._news, "told": self._ids.last, "outstanding": self.ledger.outstanding} if is_known else {}
        await self._journal.leave()
        self._let_go()
        return left

    async def close(self) -> None:
        if self._is_closed:
            return
        is_down, self._is_down, self._is_closed = self._is_down, True, True
        if not is_down:
            await self.settle()
            for shelf in self._shelves.values():
                assert isinstance(shelf, DiskShelf)
                shelf.shown = shelf.backlog.last
                for member in shelf.audience:
                    member.saved = None
                self._visit(shelf)
            if self._trouble is None:
                self._wishes.append(("insert or replace into meta values ('told', ?)", (self._ids.last,)))
            await self._save_all()
        self._elsewhere.shutdown()
        self._far.close()
        self._reader.close()
        await self._journal.close()
        if not is_down:
            self._let_go()

    async def _save_all(self) -> None:
        """What is not in the file yet, of members that moved and of the columns."""
        self._aged = self._number + 1
        before = -1
        while self._trouble is None and (self._moved or self._shown or self._wishes or len(self._dirty) not in (0, before)):
            before = len(self._dirty)
            await self._pause()
