"""A node's copy of everything: a memory store that is moved by a log, and by nothing else.

What is said to a node is decided when it comes back in the log, on every node in the same order and by the same rules, so all copies are
alike: which id and which slot, who is in an audience, which word of a device stands. A rule that asked for anything else than the log
and the settings in LIMITS would let the copies part; the time is that of the entry. Each change is noted, to be kept (`copy.py`).
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgpack  # type: ignore[import-untyped]

from pere.audience import Member
from pere.bulk import Receipt
from pere.config import Config
from pere.entry import Entry
from pere.errors import BadRequest, Refusal
from pere.event import Draft, Event
from pere.ledger import Ledger, needed
from pere.names import pattern as compiled
from pere.receipt import CANCELLED, NONE, RESENT
from pere.schedule import Schedule, Unscheduled
from pere.storage import Shelf
from pere.storage.keeping import EVENT, Changes
from pere.storage.memory import MemoryStore
from pere.storage.sharedlog import BITS
from pere.storage.sharedlog import Entry as Written
from pere.storage.working import WorkingSet
from pere.wishes import Wishes

log = logging.getLogger("pere.store")

# Settings that decide how the copies move, so all nodes must have the same.
LIMITS = ("backlog_events", "backlog_bytes", "backlog_total_bytes", "keep_expired", "idempotency_window", "device_ttl", "max_event_status_bytes",
          "receipts_kept")

# Something that was said: its kind, and what goes with it. Who said it is told what became of it, or why it could not be.
Op = Sequence[Any]
Told = Callable[[Any], None]
Asker = tuple[Callable[..., None], Callable[[Refusal], None]]
# Who gave so many receipts, one after the other, and is told what became of each.
Group = tuple[int, Callable[[list[Any]], None]]

DRAFT = ("channel", "data", "is_json", "type", "to", "ttl", "level", "need", "publisher", "key", "callback", "traceparent")
PUSH = 1 + len(DRAFT)


def _nobody(*_: object) -> None:
    """Who asked is not here."""


NOBODY: Asker = (_nobody, _nobody)

_unpack: Callable[[bytes | None], tuple[float, list[Any]]] = msgpack.unpackb


class Replica(MemoryStore):
    """`node` is this one."""

    def __init__(self, config: Config, clock: Callable[[], float], node: str):
        super().__init__(config, clock)
        self.ledger.most_bytes = config.backlog_total_bytes
        self.node = node
        self.changes = Changes()
        self._system = clock
        self._nowhere = Ledger()  # where is counted what was said to other nodes
        self._moment: float | None = None  # of the entry that is being applied
        self._n = 0  # and its number
        self._next_id = 0
        self._begun: set[str] = set()  # channels that all nodes know of; others are only open here
        self._wishes: Wishes[dict[str, float]] = Wishes()  # by pattern, who wants it, and when that was last said, or that it is there
        self._leaving: dict[tuple[str, str], Member] = {}  # members that are no more here, and still are in the log
        self._aside: dict[tuple[str, str], Member | None] = {}  # while an entry is applied, those who are here in their place
        self.clock = self._time

    def _time(self) -> float:
        return self._moment if self._moment is not None else self._system()

    def lead(self, is_leading: bool) -> None:
        """Whether it is this node that says what is over. Only who does has to know when that is; who comes to do it looks through all that there is."""
        self.leads = is_leading
        self._schedule = Schedule() if is_leading else Unscheduled()
        for shelf in self._pushed.values() if is_leading else ():
            for event in shelf.backlog:
                self._schedule.add(event, event.expires + self._config.keep_expired if event.expired else event.expires)

    # An entry of the log

    def enter(self, entries: Iterable[Written]) -> None:
        """What was said to other nodes: it is not counted here.

        Most of it are plain pushes: to all on a channel that there is, without a key and a `need`, so that nothing has to be looked up for them. Those that stand one behind the other are a run, and
        are taken in together: what `_apply_push`, `_accept`, `_take`, `_keep` and `_evict` do, which are for whoever asks here and for all that is not plain, is done for all of a channel at once.
        One after the other, with all of it written out in one loop, was twice as dear (measured)."""
        ledger, shelves, begun, leaving, plain = self.ledger, self._shelves, self._begun, self._leaving, Event.plain
        counted, ledger.expired = ledger.expired, self._nowhere.expired
        run: list[Event] = []
        for entry in entries:
            try:
                header, n, body = entry
                now, ops = _unpack(body)
                _, milliseconds, sequence, _ = header.split(b" ", 3)  # as `entry.first` does
                first = int(milliseconds) << BITS | int(sequence)
                for id, op in enumerate(ops, first):
                    # A node of an earlier version does not say the last of it.
                    if len(op) == PUSH and not leaving:
                        kind, channel, data, is_json, type, to, ttl, level, need, publisher, key, callback, traceparent = op
                        if kind == "push" and channel in begun and not to and need is None and not key:
                            run.append(plain(id, now, shelves[channel].name, data, is_json, type, ttl, level, publisher, callback, traceparent))
                            continue
                    if run:
                        run = self._enter_run(run, n)
                    self._apply(n, id, entry.ids + first - id, now, ops[id - first :], None)
                    break
            except Exception:
                log.exception("an entry of the log could not be taken in")
        if run:
            self._enter_run(run, n)
        self._moment, ledger.expired = None, counted

    def _enter_run(self, run: list[Event], n: int) -> list[Event]:
        """Plain pushes, the last of them of the nth entry. Returns a run that is empty."""
        self._n = n
        try:
            if not self._take_together(run):
                self._take_each(run)
        except Exception:
            # What is wrong here is wrong on every node: they stay alike.
            log.exception("events could not be taken in")
        for event in run:
            self._moment = event.time
            try:
                self.deliver(event)
            except Exception:
                log.exception("an event could not be delivered")
        return []

    def _take_together(self, run: list[Event]) -> bool:
        """All of a channel at once; False, and nothing is done, where that would not come to the same as one after the other: some other channel has to make way, or something is decided."""
        ledger, shelves = self.ledger, self._shelves
        found: dict[str, list[Event]] = {}
        for event in run:
            if (events := found.get(event.channel)) is None:
                events = found[event.channel] = []
            events.append(event)
        columns = {channel: shelves[channel].audience.column() for channel in found}
        for channel, events in found.items():
            column = columns[channel]
            if not column[2] and (ledger.heard or any([event.callback for event in events])):
                return False
            owing = 2 * len(column[1])
            for event in events:
                if event.level != NONE:
                    event.weight += owing
        if self.bytes + sum([event.weight for event in run]) > self._config.backlog_total_bytes:
            return False
        # All before any makes way, and in the order in which they came, whatever their channels are: the oldest for which a receipt is owed is the first.
        ledger.lay_many([event for event in run if event.level != NONE], columns)
        for channel, events in sorted(found.items(), key=lambda each: each[1][-1].id) if len(found) > 1 else found.items():
            self._take_many(shelves[channel], events)
        if self._ids.last < run[-1].id:
            self._ids.last = run[-1].id
        return True

    def _take_many(self, shelf: Shelf, events: list[Event]) -> None:
        """The next events of a channel, which are in the ledger, and what makes way for them."""
        backlog, ledger, moved = shelf.backlog, self.ledger, self.changes.moved
        gone = backlog.append_many(events)
        shelf.touched = events[-1].time
        moved.append((self._n, shelf.name, [event.id for event in events]))
        self.bytes += sum([event.weight for event in events])
        self._pushed[shelf.name] = shelf
        self._pushed.move_to_end(shelf.name)
        if self.leads:
            for event in events:
                self._schedule.add(event, event.expires)
        if gone:
            self.bytes -= sum([old.weight for old in gone])
            if shelf.waiting:
                for old in gone:
                    shelf.let_go(old.to or ())
            if self.leads:
                for old in gone:
                    self._schedule.remove(old, old.expires + self._config.keep_expired if old.expired else old.expires)
            ledger.drop_many([old.id for old in gone])
            moved.append((self._n, shelf.name, [old.id for old in gone]))

    def _take_each(self, run: list[Event]) -> None:
        """One after the other."""
        for event in run:
            shelf, undecided = self._shelves[event.channel], None
            event.ordinal = shelf.backlog.last + 1
            shelf.touched = event.time
            if event.level != NONE:
                undecided = self.ledger.lay(event, shelf.audience)
                event.weigh(len(shelf.audience.template))
            self.changes.moved.append((self._n, shelf.name, (event.id,)))
            self._keep(shelf, event)
            if self._ids.last < event.id:
                self._ids.last = event.id
            if undecided is not None:
                self.ledger.decide(undecided, event.time)

    def _apply(self, n: int, first: int, count: int, now: float, ops: Sequence[Op], askers: Sequence[Any] | None) -> None:
        """Enter what was said. `askers` are None where it was said to another node: then it is not counted here either."""
        ledger = self.ledger
        mine = ledger.receipts, ledger.roundtrips, ledger.expired, ledger.cancelled, ledger.statuses_dropped, self.events, self.event_bytes
        if askers is None:
            nowhere = self._nowhere
            ledger.receipts, ledger.roundtrips, ledger.expired, ledger.cancelled = nowhere.receipts, nowhere.roundtrips, nowhere.expired, nowhere.cancelled
        self._n, self._moment, self._next_id = n, now, first
        # As far as the log has come, who is about to leave is still there.
        for (channel, device), member in self._leaving.items():
            members = self._shelves[channel].audience.members
            self._aside[channel, device] = members.get(device)
            members[device] = member
        try:
            for place, op in enumerate(ops):
                try:
                    getattr(self, "_apply_" + op[0])(askers[place] if askers is not None else None, *op[1:])
                except Exception:
                    # What is wrong here is wrong on every node: they stay alike.
                    log.exception("an entry of the log could not be applied")
        finally:
            self._moment = None
            if self._aside:
                for channel, device in self._leaving:
                    members = self._shelves[channel].audience.members
                    del members[device]
                    if (newer := self._aside.pop((channel, device))) is not None:
                        members[device] = newer
                self._aside.clear()
            if count and self._ids.last < first + count - 1:
                self._ids.last = first + count - 1
            if askers is None:
                (ledger.receipts, ledger.roundtrips, ledger.expired, ledger.cancelled, ledger.statuses_dropped, self.events, self.event_bytes) = mine

    def _note(self, kind: str, home: str, rest: str | int = "") -> None:
        self.changes.note((kind, home, rest), self._n)

    # Events

    def _apply_push(self, asker: Asker | None, channel: str, data: bytes, is_json: bool, type: str, to: tuple[str, ...], ttl: int, level: int, need: int | str | None,
                    publisher: str, key: str, callback: str = "", traceparent: str = "") -> None:
        told, refused = asker or NOBODY
        # A node of an earlier version does not say the last of it.
        draft = Draft(channel, data, ttl, is_json, type, to, level, need, publisher, key, callback, traceparent)
        id, now = self._next_id, self.clock()
        self._next_id += 1
        if key and (known := self._known_key(draft, now)) is not None:
            told(known)
            return
        try:
            self._check_need(draft)
        except BadRequest as refusal:
            refused(refusal)
            return
        shelf = self._bear(channel)
        self.changes.moved.append((self._n, channel, (id,)))
        if key:
            self._note("keys", shelf.name, key)
        if self._ids.last < id:
            self._ids.last = id
        told(self._accept(shelf, draft, id, now))

    def _check_need(self, draft: Draft) -> None:
        if draft.need is not None and draft.level != NONE:
            is_there = draft.channel in self._begun
            needed(draft.need, len(draft.to) or len(self._shelves[draft.channel].audience if is_there else self._wishing(draft.channel)))

    def _begin(self, shelf: Shelf) -> None:
        """It is only open here: what all nodes know begins with what the log says."""

    def _bear(self, channel: str) -> Shelf:
        """The shelf of a channel of which the log says something."""
        shelf = self.open(channel)
        if channel not in self._begun:
            self._begun.add(channel)
            self._note("channels", channel)
            for device, said in self._wishing(channel).items():
                is_expected = device in shelf.audience.members
                member = self._seat(shelf, device)
                if not is_expected and not self.devices.known[device].is_online:
                    member.seen = said
        return shelf

    def _wishing(self, channel: str) -> dict[str, float]:
        """Who has asked for all channels of such a name, and not too long ago, and when that was last said; in an order that is the same everywhere."""
        since = self.clock() - self._config.device_ttl
        wishing = sorted((device, said) for devices in self._wishes.meaning(channel) for device, said in devices.items() if said >= since)
        return dict(wishing)  # of who has asked twice, the last

    def _weight(self) -> int:
        # Only a push makes others make way, which every node does alike; one that starts takes in events and words in another order. What devices
        # say may take as much again, and what they say beyond is dropped.
        return self.bytes

    def _evict(self, shelf: Shelf) -> Event:
        event = super()._evict(shelf)
        self.changes.moved.append((self._n, shelf.name, (event.id,)))
        return event

    def _apply_recall(self, asker: Asker | None, channel: str, id: int) -> None:
        told, refused = asker or NOBODY
        try:
            MemoryStore.recall(self, channel, id, told, refused)
        except Refusal as refusal:
            refused(refusal)
        self._note(EVENT, channel, id)

    def _apply_expire(self, asker: None, channel: str, id: int) -> None:
        event = self._kept_event(channel, id)
        if event is not None and not event.expired:
            self._schedule.remove(event, event.expires)
            self._expire(event)
            self._note(EVENT, channel, id)

    def _apply_drop(self, asker: None, channel: str, moment: float) -> None:
        self._drop_expired(channel, moment)

    def _kept_event(self, channel: str, id: int) -> Event | None:
        shelf = self._shelves.get(channel)
        return shelf.backlog.find(id) if shelf is not None else None

    # Receipts

    def _apply_said(self, askers: Sequence[Group] | None, rows: Sequence[Receipt]) -> None:
        entries = self.ledger.entries
        told: list[tuple[int, int] | Refusal] = []
        MemoryStore.record_many(self, rows, told.extend)
        start = 0
        for count, then in askers or ():
            then(told[start : start + count])
            start += count
        for id in {row[1] for row in rows}:
            if (entry := entries.get(id)) is not None:
                self._note("columns", entry.event.channel, id)

    def _apply_end(self, asker: None, id: int, device: str, end: int) -> None:
        entry = self.ledger.entries.get(id)
        slot = entry.slot(device) if entry is not None else -1
        if entry is not None and slot >= 0:
            self._close(entry, slot, end)

    def _close(self, entry: Entry, slot: int, end: int) -> None:
        MemoryStore._end(self, entry, slot, end)
        self._note("columns", entry.event.channel, entry.event.id)

    def _apply_resent(self, asker: Asker | None, id: int, device: str, times: int) -> None:
        entry = self.ledger.entries.get(id)
        slot = entry.slot(device) if entry is not None else -1
        if entry is None or slot < 0:
            return
        self._note("columns", entry.event.channel, id)
        byte = entry.states[slot]
        # Where it was sent it is counted already. Two nodes that send at once count the same, and the higher count stands.
        if byte // RESENT < times:
            entry.states[slot] = byte % RESENT + times * RESENT
            entry.changed()

    # Devices

    def _apply_join(self, asker: Asker | None, channel: str, device: str) -> None:
        told, _ = asker or NOBODY
        self._seat(self._bear(channel), device)
        told(None)

    def _seat(self, shelf: Shelf, device: str) -> Member:
        member = WorkingSet._join(self, shelf, device)
        self._note("channels", shelf.name)  # it may have taken a slot that was left
        self._note("members", shelf.name, device)
        return member

    def _apply_leave(self, asker: Asker | None, channel: str, device: str) -> None:
        shelf = self._shelves.get(channel)
        if shelf is None:
            return
        members = shelf.audience.members
        if (member := members.get(device)) is None or member.slot < 0:
            return
        for entry, slot in self._owing(shelf, device):
            self._close(entry, slot, CANCELLED)
        shelf.audience.leave(device, shelf.backlog.last)
        self._leaving.pop((channel, device), None)
        newer = self._aside.pop((channel, device), None)
        if newer is not None:
            members[device] = newer  # it is on its way to be a member again
        elif (known := self.devices.get(device)) is not None and channel in known.channels:
            self.devices.unregister(known, channel)
        self._note("channels", channel)
        self._note("members", channel, device)

    def _apply_want(self, asker: Asker | None, device: str, pattern: str) -> None:
        told, _ = asker or NOBODY
        self._wishes.setdefault(pattern, {})[device] = self.clock()
        self.devices.want(device, pattern).seen = self.clock()
        self._note("wishes", device, pattern)
        meant = compiled(pattern)
        for channel in filter(meant, sorted(self._begun)):
            self._seat(self._shelves[channel], device)
        told(None)

    def _apply_unwant(self, asker: Asker | None, device: str) -> None:
        for pattern, devices in tuple(self._wishes.items()):
            if devices.pop(device, None) is not None:
                self._note("wishes", device, pattern)
            if not devices:
                del self._wishes[pattern]

    def _apply_remove(self, asker: Asker | None, device: str) -> None:
        """Off all channels, those included of which the node that removed it did not know yet."""
        self._apply_unwant(None, device)
        for channel in sorted(self._begun):
            if device in self._shelves[channel].audience.members:
                self._apply_leave(None, channel, device)
        known = self.devices.get(device)
        if asker is None and known is not None:
            self.dismiss(known)
            self.devices.remove(device, self.clock())

    # Documents

    def _apply_document(self, asker: Asker | None, kind: str, name: str, document: bytes | None) -> None:
        told, _ = asker or NOBODY
        MemoryStore.put_away(self, kind, name, document, told)
        self._note("documents", kind, name)
        if asker is None:
            self.on_document(kind, name, document)

    def _apply_going(self, asker: Asker | None, device: str, channel: str, id: int, word: int, delay: float) -> None:
        """A device has said how it goes (`working`, `retry`), and its feeds may be anywhere."""
        if asker is None:
            self.heed(device, channel, id, word, delay)
