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
from collections.abc import Callable, Iterable, Sequence
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
from pere.storage.packing import MAX_RECORDS, RECORD, Malformed, words
from pere.storage.reading import DiskShelf
from pere.storage.together import Part, Together

log = logging.getLogger("pere.store")

UNTOLD = 10_000  # milliseconds before the end within which it is not known whether all was told that was decided
MAX_DUE = 500  # events that are expired in one sweep
HOUR = 3600.0
SAVING = 0.1  # seconds for what is saved ahead of the end
QUIET_EVERY = 60  # seconds between two looks for devices that were not seen for long


class SqliteStore(Committing):
    """`path` is the file, which is made if it is not there; `ahead` is what was read of it while another process had it. Must be made on a running
    loop. Raises ConfigError where the file cannot be used."""

    def __init__(self, config: Config, clock: Callable[[], float], path: str, ahead: Beginning | None = None):
        if not os.path.exists(path + schema.LOCKED):
            schema.check(path)  # beside what is not ours we leave no lock either
        self._lock = schema.Lock(path)
        try:
            writer = schema.prepare(path, config.sync)
            super().__init__(config, clock, path)
        except BaseException:
            self._lock.release()
            raise
        self._searched: dict[DiskShelf, int] = {}  # for what those who left still owe: up to which id
        try:
            self._start(ahead or Beginning())
        except (sqlite3.Error, Refusal) as error:
            self._lock.release()
            raise ConfigError(f"{path} cannot be read: {error}") from None
        except Malformed as error:
            self._lock.release()
            raise ConfigError(f"{path} cannot be read: what is in it does not agree ({error!r}); `pere store check` tells more") from None
        self._journal = Journal(path, self._lock, writer, lambda: schema.connect(path, sync=config.sync), delay=2.0 if config.sync == "off" else 0.0)
        self._is_down = self._is_closed = False
        # What was entered again is saved now: were we to die young each time, there would be more of it at every start.
        self._aged = self._number_before = self._number
        self._soon()

    @property
    def writing(self) -> float:
        return self._journal.writing

    # Start

    def _start(self, beginning: Beginning) -> None:
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
        now = self.clock()
        beginning.read(self._reader, now, now - self._config.idempotency_window)
        self._names, self._numbers, self._kept_channels = beginning.names, beginning.numbers, beginning.kept
        self.devices, self._keys = beginning.devices, beginning.keys
        # A number is not given anew while anything in the file may still bear it.
        self._newest_channel = max(max(self._numbers, default=0), values.get("channel", 0))
        self._newest_record = self._number
        self._floor = values.get("floor", 1)
        self._is_new = "born" not in values
        self._retell(max(values.get("told", 0), newest - (UNTOLD << SEQUENCE_BITS)))
        self._replay()

    def _replay(self) -> None:
        """Enter what the log says beyond the columns."""
        self.ledger.on_decision = lambda word, entry, moment: self.decided.append((word, entry.event, moment, entry.summary()))
        rows = self._reader.execute("select number, records, sayings from receipts where number >= ? order by number", (self._floor - MAX_RECORDS,))
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
        self.ledger.on_decision = fresh.on_decision
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
        if shelf.shown != shelf.sent:
            shelf.sent = shelf.shown
            if shelf.name in self._names:
                shelf.is_saved = False
                self._shown.add(shelf)
        shelf.shown = shelf.backlog.last

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

    async def save(self) -> None:
        for shelf in self._shelves.values():
            self._visit(shelf)
        self._aged = self._number + 1
        # Where there is always something more to commit, it is not waited for the end of that.
        await asyncio.wait((asyncio.ensure_future(self._pause()),), timeout=SAVING)

    async def put_down(self) -> None:
        if not self._is_down:
            self._is_down = True
            await self._save_rest(is_followed=True)
            await self._journal.leave()
            self._lock.release()

    async def close(self) -> None:
        if self._is_closed:
            return
        is_down, self._is_down, self._is_closed = self._is_down, True, True
        if not is_down:
            await self._save_rest(is_followed=False)
        self._elsewhere.shutdown()
        self._far.close()
        self._reader.close()
        await self._journal.close()
        if not is_down:
            self._lock.release()

    async def _save_rest(self, is_followed: bool) -> None:
        """Save what is not in the file yet. Who is followed leaves in the file that devices have feeds, and up to where they were written to with all others."""
        await self.settle()
        for shelf in self._shelves.values():
            assert isinstance(shelf, DiskShelf)
            shelf.shown = shelf.backlog.last
            for member in shelf.audience if not is_followed else ():
                member.saved = None
            self._visit(shelf)
        self._aged = self._number + 1
        if self._trouble is None:
            self._wishes.append(("insert or replace into meta values ('told', ?)", (self._ids.last,)))
        before = -1
        while self._trouble is None and (self._moved or self._wishes or len(self._dirty) not in (0, before)):
            before = len(self._dirty)
            await self._pause()
