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
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import orjson

from pere.audience import Member
from pere.config import Config
from pere.devices import Device
from pere.errors import BadRequest, ConfigError, Gone, Refusal, Unavailable
from pere.event import SEQUENCE_BITS, Draft, Event, format_id
from pere.ledger import Entry, needed, unknown_receipt
from pere.receipt import ABSENT, CANCELLED, EXPIRED, NONE, PENDING
from pere.storage import Accepted, Shelf, schema
from pere.storage.journal import Batch, Journal
from pere.storage.packing import ALL, MAX_RECORDS, RECORD, packed, words
from pere.storage.pruning import prune
from pere.storage.reading import DiskShelf, Reading

log = logging.getLogger("pere.store")

MAX_SAVED = 500  # columns that are saved in one commit
MAX_DUE = 500  # events that are expired in one sweep
SLICE = 500  # events that are pruned in one commit: a few milliseconds, for which those wait who come after
QUIET_EVERY = 60  # seconds between two looks for devices that were not seen for long

Told = Callable[[int, int], None]
Refused = Callable[[Refusal], None]
Assured = Callable[[Refusal | None], None]
Change = tuple[Entry, Member | None, int, int, bytes | None, float, Told | None, Refused | None]


class Commit:
    """What is on its way to the disk, and what is to be done when it is there."""

    def __init__(self) -> None:
        self.events: list[tuple[DiskShelf, Event, Draft, int, bytes, Callable[[Accepted | Refusal], None]]] = []
        self.changes: list[tuple[int, list[Change]]] = []
        self.shelves: list[DiskShelf] = []
        self.answers: list[Callable[[], None]] = []
        self.saved: dict[Entry, int] = {}
        self.members: dict[Member, DiskShelf] = {}
        self.fresh: dict[str, list[Assured]] = {}
        self.left: list[tuple[Any, ...]] = []
        self.wishes: list[tuple[str, tuple[str, ...]]] = []
        self.is_pruning = False


class SqliteStore(Reading):
    """`path` is the file, which is made if it is not there. Must be made on a running loop. Raises ConfigError where the file
    cannot be used."""

    def __init__(self, config: Config, clock: Callable[[], float], path: str):
        self._lock = schema.Lock(path)
        try:
            writer = schema.prepare(path, config.sync)
            super().__init__(config, clock, path)
        except BaseException:
            self._lock.release()
            raise
        # What was said and is not kept yet.
        self._pushes: list[tuple[Draft, float, Callable[[Accepted | Refusal], None]]] = []
        self._changes: dict[str, list[Change]] = {}  # by channel, each to become a row
        self._wishes: list[tuple[str, tuple[str, ...]]] = []
        self._moved: dict[Member, DiskShelf] = {}
        self._fresh: dict[str, list[Assured]] = {}  # devices with new registrations, and who waits for these
        self._left: list[tuple[Any, ...]] = []
        self._shown: set[DiskShelf] = set()
        self._flying: set[tuple[int, int]] = set()  # events and slots of receipts that are on their way
        self._behind: dict[tuple[int, int], list[tuple[Any, ...]]] = {}  # and what came after them for the same place
        self._asked: dict[tuple[str, str], list[Callable[[Accepted | Refusal], None]]] = {}  # the same, for Idempotency-Keys
        self._searched: dict[DiskShelf, int] = {}  # for what those who left still owe: up to which id
        self._answers: list[Callable[[], None]] = []  # that wait for what is said beside them
        self._commit: Commit | None = None
        self._is_called = False
        self._waiters: list[asyncio.Future[None]] = []
        self._aged = self._number_before = 0
        try:
            self._start()
        except sqlite3.Error as error:
            self._lock.release()
            raise ConfigError(f"{path} cannot be read: {error}") from None
        self._journal = Journal(path, writer, lambda: schema.connect(path, sync=config.sync), delay=2.0 if config.sync == "off" else 0.0)
        # What was entered again is saved now: were we to die young each time, there would be more of it at every start.
        self._aged = self._number_before = self._number
        self._soon()

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
        for number, name, first, gone, sent in self._reader.execute("select id, name, first, gone, sent from channels"):
            self._names[name] = number
            names[number] = name
            self._kept_channels[name] = (first, gone, sent)
        # A number is not given anew while anything in the file may still bear it.
        self._newest_channel = max(max(names, default=0), values.get("channel", 0))
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
            said = words(sayings)
            for number, (id, slot, state, saying, at) in enumerate(RECORD.iter_unpack(records), first):
                entry = self._find_entry(id) if number >= self._floor else None
                if entry is None or number <= entry.logged:
                    continue
                self._dirty.setdefault(entry, number)
                member = entry.audience.members.get(entry.names[slot]) if slot != ALL else None
                self._enter(entry, member, slot, state, said[saying - 1] if saying else None, at)
                entry.logged = number
        # What is counted is what this process did.
        fresh = type(self.ledger)()
        self.ledger.receipts, self.ledger.roundtrips, self.ledger.expired = fresh.receipts, fresh.roundtrips, fresh.expired

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
            self._left.append((shelf, _row(shelf, member, shelf.backlog.last)))
            if shelf.first < shelf.backlog.first:
                self._searched[shelf] = 0
            self._soon()

    def want(self, device: str, pattern: str) -> None:
        known = self.devices.get(device)
        if known is None or pattern not in known.patterns:
            self._wishes.append(("insert or replace into wishes values (?, ?)", (device, pattern)))
            self._fresh.setdefault(device, [])
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
        commit.answers, self._answers = self._answers, []
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
                first, sayings, records = self._number + 1, {}, []  # type: int, dict[bytes, int], list[bytes]
                for entry, _, slot, state, status, moment, _, _ in row:
                    saying = sayings.setdefault(status, len(sayings) + 1) if status is not None else 0
                    records.append(pack(entry.event.id, slot, state, saying, moment))
                    if entry not in dirty:
                        dirty[entry] = first  # its columns are being saved, but without this
                self._number += len(row)
                commit.changes.append((first, row))
                batch.put("receipts", (first, shelf.number, b"".join(records), b"[" + b",".join(sayings) + b"]" if sayings else None))

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
            self._saving.add(entry)
            shelf = self._shelves[entry.event.channel]
            assert isinstance(shelf, DiskShelf)
            sayings = b"[" + b",".join(entry.sayings) + b"]" if entry.sayings else None
            batch.put("entries", (entry.event.id, shelf.number, entry.event.expires, entry.owed, entry.need, entry.version, entry.logged,
                                  packed(entry), sayings))
        if commit.saved:
            self._floor = next(iter(self._dirty.values()), self._number + 1)
            batch.put("meta", ("floor", self._floor))

    def _save_members(self, commit: Commit, batch: Batch) -> None:
        commit.members, self._moved = self._moved, {}
        commit.fresh, self._fresh = self._fresh, {}
        commit.left, self._left = self._left, []
        shown, self._shown = self._shown, set()
        for shelf in filter(self._is_there, shown):
            self._add_shelf(shelf, commit, batch)
        for member, shelf in commit.members.items():
            if not self._is_there(shelf):
                continue
            self._add_shelf(shelf, commit, batch)
            member.saved = _mark(member)
            batch.put("members", _row(shelf, member, None))
        for shelf, row in commit.left:
            if not self._is_there(shelf):
                continue
            self._add_shelf(shelf, commit, batch)
            batch.put("members", row)

    def _is_there(self, shelf: DiskShelf) -> bool:
        """Whether a channel was not forgotten meanwhile, and its members with it."""
        return self._shelves.get(shelf.name) is shelf

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
        batch.work.append(lambda connection: prune(connection, cutoff, count, limit, floor))

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
            self._saving.clear()
            for entry in commit.saved:
                self._unload(entry)
            for answer in commit.answers:
                answer()
            for waiting in commit.fresh.values():
                for assured in waiting:
                    assured(None)
            if commit.is_pruning:
                self._apply_pruning(*done[-1])
        if self._pushes or self._changes or (failure is None and (self._wishes or self._left or commit.is_pruning or len(commit.saved) == MAX_SAVED)):
            self._hand_over()
        else:
            self._tell_waiters()

    def _apply_events(self, commit: Commit) -> None:
        for shelf, event, draft, need, states, then in commit.events:
            self._take(shelf, event, draft, None)
            entry, is_amended, audience = self.ledger.entries.get(event.id), False, len(states) - states.count(ABSENT)
            if entry is not None:
                is_amended = entry.states != states and self._amend(entry, states)
                audience = entry.size
                with suppress(BadRequest):  # as many as were wanted are no longer there
                    need = needed(draft.need, audience)
                entry.need = min(need, audience)
            accepted = Accepted(event.id, audience)
            if draft.key:
                self._keys[draft.channel, draft.key] = event.time, accepted
            self._kept += 1
            self._oldest = self._oldest or event.id
            self.deliver(event)
            if is_amended:
                # What the publisher is told of the audience is to be on the disk too.
                self._wishes.append(("update entries set need = ? where event = ?", (entry.need, event.id)))
                if draft.key:
                    self._wishes.append(("update keys set audience = ? where channel = ? and key = ?", (audience, draft.channel, draft.key)))
                self._answers.append(partial(self._answer, draft, accepted, then))
            else:
                self._answer(draft, accepted, then)

    def _answer(self, draft: Draft, accepted: Accepted, then: Callable[[Accepted | Refusal], None]) -> None:
        then(accepted)
        for other in self._asked.pop((draft.channel, draft.key), ()) if draft.key else ():
            other(Accepted(accepted.id, accepted.audience, repeated=True))

    def _amend(self, entry: Entry, states: bytes) -> bool:
        """Devices came or went while the event was on its way to the disk: who came gets it, so it is in the audience; who went was."""
        before = len(self._changes.get(entry.event.channel, ()))
        for slot, now in enumerate(bytes(entry.states)):
            then = states[slot] if slot < len(states) else ABSENT
            if then == ABSENT != now:
                self._change(entry, None, slot, PENDING)
            elif now == ABSENT != then:
                self.ledger.admit(entry, slot)
                self._end(entry, slot, CANCELLED)
        return len(self._changes.get(entry.event.channel, ())) > before

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
                shelf.waiting = {device: ordinal for device, ordinal in shelf.waiting.items() if ordinal >= first}
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
        self._saving.clear()
        again = {**self._dirty, **commit.saved}
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
        fresh, commit.fresh = commit.fresh, {}
        for device, waiting in fresh.items():
            self._fresh.setdefault(device, [])
            for assured in waiting:
                assured(refusal)
        if kept or commit.answers:
            self._loop.call_later(1.0, self._again, kept, commit.answers)

    def _again(self, changes: list[Change], answers: list[Callable[[], None]]) -> None:
        for entry, member, slot, state, *_ in changes:
            self._change(entry, member, slot, state)
        self._answers += answers
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
        self._search()
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
        if shelf.first <= shelf.backlog.last or (self._commit is not None and shelf in self._commit.shelves):
            self._round.append(shelf.name)  # there is something in the file, or will be
            return
        super()._forget(shelf)
        if self._names.pop(shelf.name, None) is not None:
            del self._numbers[shelf.number]
            del self._kept_channels[shelf.name]
            self._wishes.append(("delete from channels where id = ?", (shelf.number,)))
            self._wishes.append(("delete from members where channel = ?", (shelf.number,)))
            self._wishes.append(("insert or replace into meta values ('channel', ?)", (self._newest_channel,)))

    def _tell_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def settle(self) -> None:
        if self._is_called or self._commit is not None or self._pushes or self._changes or self._moved or self._left or self._wishes:
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


def _mark(member: Member) -> tuple[int, float]:
    """What tells that a member must be saved again; how far it has come does not, while it has an open feed."""
    return (-1, member.since) if member.live else (member.position, member.seen)


def _row(shelf: DiskShelf, member: Member, gone: int | None) -> tuple[Any, ...]:
    return (shelf.number, member.slot, member.device, None if member.live else member.position, member.settled, member.since, member.seen,
            member.answered, member.last_id, gone)
