"""How what is said gets to the disk: it is queued, the queue becomes a batch and one commit, and then it is entered in memory.

Only when a commit is done is it told to the hub, and answered. So nobody ever sees what a crash could take back. While one
batch is being committed the next is gathered. What a failed commit held is refused to who waits, or tried again.

It is longer than a file should be because each kind of thing (events, changes of states, members, documents, patterns) has its turn three
times: when it is handed over, when it is kept, and when it is not. Whoever adds a kind must see all three.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import orjson

from pere.audience import Member
from pere.config import Config
from pere.entry import Entry
from pere.errors import BadRequest, Refusal
from pere.event import Draft, Event, first_id, format_id
from pere.ledger import ALL, needed
from pere.receipt import ABSENT, CANCELLED, EXPIRED, NONE, PENDING, STATE, closes, ending
from pere.storage import Accepted
from pere.storage.commit import Asker, Assured, Change, Commit, Refused, Told
from pere.storage.journal import Batch, Journal
from pere.storage.packing import MAX_RECORDS, RECORD, packed
from pere.storage.pruning import prune
from pere.storage.reading import DiskShelf, Reading
from pere.storage.settling import Settling, tell
from pere.storage.together import Part

log = logging.getLogger("pere.store")

MAX_EVENTS = 256  # that are kept in one commit: what becomes of them is done in one turn of the loop, which takes 20 us for each
MAX_SAVED = 500  # columns that are saved in one commit
SLICE = 500  # events that are pruned in one commit: a few milliseconds, for which those wait who come after

REFUSED = 6  # among what `record` is given, the one who is told that it could not be kept


class Committing(Reading):
    """A file that is read and written, by the `_journal` that the store gives it."""

    _journal: Journal
    _number: int  # of the newest record
    _kept: int  # events in the file

    def __init__(self, config: Config, clock: Callable[[], float], path: str):
        super().__init__(config, clock, path)
        # What was said and is not kept yet.
        self._pushes: list[tuple[Draft, float, Callable[[Accepted | Refusal], None]]] = []
        self._changes: dict[str, list[Change]] = {}  # by channel, each to become a row
        self._ended: set[Entry] = set()  # of which the server itself ended something: now, and in the commit before
        self._ended_before: set[Entry] = set()
        self._wishes: list[tuple[str, tuple[Any, ...]]] = []
        self._documents: list[tuple[str, str, bytes | None, Assured]] = []
        self._moved: dict[Member, DiskShelf] = {}
        self._fresh: dict[str, list[Assured]] = {}  # devices with new registrations, and who waits for these
        self._left: list[tuple[Any, ...]] = []
        self._shown: set[DiskShelf] = set()
        self._flying: set[tuple[int, int]] = set()  # events and slots of receipts that are on their way
        self._behind: dict[tuple[int, int], list[tuple[Any, ...]]] = {}  # and what came after them for the same place
        self._asked: dict[tuple[str, str], list[Callable[[Accepted | Refusal], None]]] = {}  # the same, for Idempotency-Keys
        self._answers: list[Callable[[], None]] = []  # that wait for what is said beside them
        self._recalls: list[tuple[int, Told, Refused]] = []  # of events that ask for no receipts: what they change is in no log
        self._commit: Commit | None = None
        self._is_called = False
        self._settling = Settling()
        self._aged = self._number_before = 0
        self._news = 0  # commits, also failed ones, by which there may be other channels than before, or others registered, or fewer events

    @property
    def newest(self) -> int:
        # What is on its way to the disk has its id, and is yet to come.
        return self._ids.last if self._commit is None else self._commit.newest

    def _change(self, entry: Entry, member: Member | None, slot: int, state: int, asker: Asker | None = None) -> None:
        """A change that is no receipt; those are queued where they are told, in `record_many`."""
        if entry not in self._dirty:
            self._dirty[entry] = self._number + 1
        if state == EXPIRED or state == CANCELLED:
            self._ended.add(entry)
        self._changes.setdefault(entry.event.channel, []).append(((entry, member, slot, state, None, self.clock()), asker))

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
        commit, batch = Commit(self._ids.last), Batch()
        if self._is_new or self._trouble:
            batch.put("meta", ("born", self.born))
        self._save_columns(commit, batch)
        self._add_events(commit, batch)
        self._add_changes(commit, batch)
        commit.newest_record = self._number
        self._save_members(commit, batch)
        commit.answers, self._answers = self._answers, []
        commit.wishes, self._wishes = self._wishes, []
        batch.statements += commit.wishes
        commit.recalls, self._recalls = self._recalls, []
        batch.statements += [("update events set recalled = 1 where id = ?", (id,)) for id, _, _ in commit.recalls]
        commit.documents, self._documents = self._documents, []
        batch.statements += [
            ("replace into documents (kind, name, document) values (?, ?, ?)", (kind, name, document)) if document is not None
            else ("delete from documents where kind = ? and name = ?", (kind, name))
            for kind, name, document, _ in commit.documents]
        self._add_pruning(commit, batch)
        # Now nothing is on its way, so the thread of the journal does not mind these looks at the disk.
        if (missing := self._journal.missing()) is not None:
            batch.put("meta", ("born", self.born))
            batch.work.append(lambda connection: self._journal.decline(missing))
        if not batch and not self._pushes:
            self._settling.tell()
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
        pushes, self._pushes = self._pushes[:MAX_EVENTS], self._pushes[MAX_EVENTS:]
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
            batch.put("events", (event.id, shelf.number, ordinal, now, draft.ttl, draft.level, draft.is_json, draft.type, draft.publisher, recipients, draft.data, 0,
                                 draft.callback, draft.traceparent))
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
        suspects, self._ended_before, self._ended = self._ended | self._ended_before, self._ended, set()
        # What was queued while something ended may change nothing by now. It stands in the log as `pending`, which changes nothing
        # either, for a slot that is there: who follows the log is told of changes only.
        expected = {entry: bytearray(entry.states) for entry in suspects}
        for name, found in changes.items():
            shelf = self._shelves[name]
            assert isinstance(shelf, DiskShelf)
            for at in range(0, len(found), MAX_RECORDS):
                row = found[at : at + MAX_RECORDS]
                first, sayings, records = self._number + 1, {}, []  # type: int, dict[bytes, int], list[bytes]
                current: Entry | None = None
                for (entry, _, slot, state, status, moment), _ in row:
                    if entry is not current:
                        current, id, is_suspect = entry, entry.event.id, entry in expected
                        if entry not in dirty:
                            dirty[entry] = first  # its columns are being saved, but without this
                    if slot == ALL and state == CANCELLED:
                        batch.statements.append(("update events set recalled = 1 where id = ?", (id,)))
                    saying = sayings.setdefault(status, len(sayings) + 1) if status is not None else 0
                    if is_suspect and not foresee(expected[entry], entry, slot, state):
                        state = PENDING
                    records.append(pack(id, slot, state, saying, moment))
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
        # Who left first: somebody else may have the slot by now.
        for shelf, row in commit.left:
            if not self._is_there(shelf):
                continue
            self._add_shelf(shelf, commit, batch)
            batch.put("members", row)
        for member, shelf in commit.members.items():
            if not self._is_there(shelf) or shelf.audience.members.get(member.device) is not member:
                continue
            self._add_shelf(shelf, commit, batch)
            member.saved = mark(member)
            batch.put("members", row_of(shelf, member, None))

    def _is_there(self, shelf: DiskShelf) -> bool:
        """Whether a channel was not forgotten meanwhile, and its members with it."""
        return self._shelves.get(shelf.name) is shelf

    def _add_pruning(self, commit: Commit, batch: Batch) -> None:
        config = self._config
        cutoff = first_id(self.clock() - config.retention_age)
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
        self._owed.clear()
        is_more = False
        try:
            is_more = self._conclude(commit, done, failure, seconds)
        finally:
            # Also where something has failed: those who wait for what comes next have no part in it.
            if self._pushes or self._changes or self._recalls or self._documents or is_more:
                self._hand_over()
            else:
                self._settling.tell()

    def _conclude(self, commit: Commit, done: list[Any], failure: Exception | None, seconds: float) -> bool:
        """It is in the file, or is not; whether there is more to be saved at once."""
        self.on_commit(seconds, len(commit.events) + sum(len(row) for _, row in commit.changes))
        self._news += bool(failure is not None or commit.fresh or commit.left or commit.wishes or commit.is_pruning
                           or any(shelf.name not in self._names for shelf in commit.shelves))
        if failure is not None:
            self._undo(commit, self._failed(failure))
        else:
            self._is_new = False
            if self._trouble is not None:
                log.warning("the store is well again", extra={"facts": {"was": self._trouble}})
                self._trouble = None
            for shelf in commit.shelves:
                self._names[shelf.name] = shelf.number
                self._unkept.discard(shelf.name)
                self._numbers[shelf.number] = shelf.name
                self._kept_channels[shelf.name] = (shelf.first, shelf.gone_id, shelf.sent)
            self._apply_events(commit)
            self._apply_changes(commit)
            self._newest_record = commit.newest_record
            if self.on_receipts is not None:
                for _, row in commit.changes:
                    tell(self.on_receipts, row[0][0][0].event.channel)
            self._saving.clear()
            for entry in commit.saved:
                self._unload(entry)
            self._make_room()  # for what devices have said
            for answer in commit.answers:
                tell(answer)
            for _, recalled, _ in commit.recalls:
                tell(recalled, CANCELLED, 0)
            for *_, kept in commit.documents:
                tell(kept, None)
            for waiting in commit.fresh.values():
                for assured in waiting:
                    tell(assured, None)
            if commit.is_pruning:
                self._apply_pruning(*done[-1])
        is_more = self._wishes or self._left or self._fresh or commit.is_pruning or len(commit.saved) == MAX_SAVED
        return failure is None and bool(is_more)

    def _apply_events(self, commit: Commit) -> None:
        for shelf, event, draft, need, states, then in commit.events:
            self._take(shelf, event, draft, None)
            entry, is_amended, audience = self.ledger.entries.get(event.id), False, len(states) - states.count(ABSENT)
            if entry is not None:
                is_amended = entry.states != states and self._amend(entry, states)
                audience = entry.size
                with suppress(BadRequest):  # as many as were wanted are no longer there
                    need = needed(draft.need, audience)
                entry.demand(min(need, audience))
                tell(self.ledger.decide, entry, event.time)
            accepted = Accepted(event.id, audience)
            if draft.key:
                self._keys[draft.channel, draft.key] = event.time, accepted
            self._kept += 1
            self._oldest = self._oldest or event.id
            tell(self.deliver, event)
            if entry is not None and is_amended:
                # What the publisher is told of the audience is to be on the disk too.
                self._wishes.append(("update entries set need = ? where event = ?", (entry.need, event.id)))
                if draft.key:
                    self._wishes.append(("update keys set audience = ? where channel = ? and key = ?", (audience, draft.channel, draft.key)))
                self._answers.append(partial(self._answer, draft, accepted, then))
            else:
                self._answer(draft, accepted, then)

    def _answer(self, draft: Draft, accepted: Accepted, then: Callable[[Accepted | Refusal], None]) -> None:
        tell(then, accepted)
        for other in self._asked.pop((draft.channel, draft.key), ()) if draft.key else ():
            tell(other, Accepted(accepted.id, accepted.audience, repeated=True))

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
        later: list[tuple[Any, ...]] = []
        for first, row in commit.changes:
            receipts: list[Change] = []
            for number, change in enumerate(row, first):
                (entry, member, slot, state, status, at), asker = change
                entry.logged = number
                if not isinstance(asker, Part):
                    self._enter(receipts, later)
                    receipts = []
                    count = self.ledger.apply(entry, member, slot, state, status, at)
                    if slot == ALL and state == EXPIRED and count and log.isEnabledFor(logging.INFO):
                        event = entry.event
                        log.info("event expired", extra={"facts": {"id": format_id(event.id), "channel": event.channel, "outstanding": count}})
                    if asker is not None:
                        tell(asker.told, state, count)
                else:
                    receipts.append(change)
            self._enter(receipts, later)
        for said in later:
            tell(self.record, *said)

    def _enter(self, changes: list[Change], later: list[tuple[Any, ...]]) -> None:
        """Receipts in a row; what was said meanwhile of the same event by the same device is for `later`."""
        rows = [row for row, _ in changes]
        places = [(row[0].event.id, row[2]) for row in rows]
        answers = self.ledger.enter_many(rows, self.clock())
        self._flying.difference_update(places)
        parts: dict[Any, None] = {}
        for (_, part), answer in zip(changes, answers, strict=True):
            part.answers.append(answer)  # type: ignore[union-attr]
            if part not in parts:
                parts[part] = None
        for part in parts:
            tell(part.answer)
        if self._behind:
            for place in places:
                later += self._behind.pop(place, ())

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
                shelf.let_go(tuple(shelf.waiting))
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
        tell(then, refusal)
        for other in self._asked.pop((draft.channel, draft.key), ()) if draft.key else ():
            tell(other, refusal)

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
        for _, _, refuse in commit.recalls:
            tell(refuse, refusal)
        for *_, assured in commit.documents:
            tell(assured, refusal)
        kept: list[Change] = []
        for _, row in commit.changes:
            for change in row:
                (entry, _, slot, *_), asker = change
                if isinstance(asker, Asker):
                    tell(asker.refused, refusal)
                elif asker is not None:
                    self._flying.remove((entry.event.id, slot))
                    tell(asker.refused, refusal)
                    for said in self._behind.pop((entry.event.id, slot), ()):
                        tell(said[REFUSED], refusal)
                elif slot == ALL:
                    entry.event.expired = False  # the next sweep finds it again
                else:
                    kept.append(change)
        fresh, commit.fresh = commit.fresh, {}
        for device, waiting in fresh.items():
            self._fresh.setdefault(device, [])
            for assured in waiting:
                tell(assured, refusal)
        if kept or commit.answers:
            self._loop.call_later(1.0, self._again, kept, commit.answers)

    def _again(self, changes: list[Change], answers: list[Callable[[], None]]) -> None:
        for (entry, member, slot, state, *_), _ in changes:
            self._change(entry, member, slot, state)
        self._answers += answers
        self._soon()

    # Who waits until all is kept

    async def settle(self) -> None:
        if self._is_called or self._commit is not None or self._pushes or self._changes or self._recalls or self._documents or self._moved or self._left or self._wishes:
            await self._pause()

    async def _pause(self) -> None:
        """Until there is nothing more to commit, or the commit has failed."""
        self._soon()
        await self._settling.wait()


def foresee(states: bytearray, entry: Entry, slot: int, state: int) -> bool:
    """Enter a change into a copy of an entry's states, as `Ledger.apply` will; whether it changes anything."""
    level = entry.event.level
    if slot == ALL:
        ended = states.translate(ending(state, level))
        is_change, states[:] = ended != states, ended
        return is_change
    if slot >= len(states):
        states += bytes((ABSENT,)) * (slot + 1 - len(states))
    byte = states[slot]
    if state == PENDING:
        states[slot] = PENDING if byte == ABSENT else byte
    elif state in (EXPIRED, CANCELLED):
        states[slot] = byte if closes(byte & STATE, level) else byte & ~STATE | state
    else:
        states[slot] = entry.rules[state][byte][0]
    return states[slot] != byte


def mark(member: Member) -> tuple[int, float, float]:
    """What tells that a member must be saved again; how far it has come does not, while it has an open feed. When it last answered
    matters only to those who look for devices that are gone, so that is told by the hour."""
    hour = member.answered // 3600
    return (-1, member.since, hour) if member.live else (member.position, member.seen, hour)


def row_of(shelf: DiskShelf, member: Member, gone: int | None) -> tuple[Any, ...]:
    """A member as its row has it; `gone` is the newest ordinal when it left, if it did."""
    return (shelf.number, member.slot, member.device, None if member.live else member.position, member.settled, member.since, member.seen,
            member.answered, member.last_id, gone)
