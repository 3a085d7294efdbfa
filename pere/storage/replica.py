"""A node's copy of everything: a memory store that is moved by a log, and by nothing else.

What is said to a node is decided when it comes back in the log, on every node in the same order and by the same rules, so all copies are
alike: which id and which slot, who is in an audience, which word of a device stands. A rule that asked for anything else than the log
and the settings in LIMITS would let the copies part; the time is that of the entry. Each change is noted, to be kept (`keeping.py`).

What is only true of one node (its feeds, how far they have been written to) is told to the others about once a second, and decides nothing.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import msgpack  # type: ignore[import-untyped]

from pere.audience import Member
from pere.bulk import Receipt
from pere.config import Config
from pere.errors import BadRequest, Refusal
from pere.event import SEQUENCE_BITS, Draft, Event
from pere.ledger import Entry, Ledger, needed
from pere.names import pattern as compiled
from pere.receipt import CANCELLED, NONE, RESENT
from pere.storage import Shelf, keeping
from pere.storage.keeping import Changes, joined
from pere.storage.memory import MemoryStore
from pere.storage.recent import Recent, Row
from pere.storage.sharedlog import Entry as Written
from pere.storage.working import WorkingSet

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


def _nobody(*_: object) -> None:
    """Who asked is not here."""


NOBODY: Asker = (_nobody, _nobody)


class Replica(MemoryStore):
    """`node` is this one."""

    def __init__(self, config: Config, clock: Callable[[], float], node: str):
        super().__init__(config, clock)
        self.ledger.most_bytes = config.backlog_total_bytes
        self.node = node
        self.changes = Changes()
        self._system = clock
        self._moment: float | None = None  # of the entry that is being applied
        self._n = 0  # and its number
        self._next_id = 0
        self._begun: set[str] = set()  # channels that all nodes know of; others are only open here
        self._users: dict[str, frozenset[str]] = {}  # nodes on which somebody listens to a channel
        self._written: dict[str, dict[str, int]] = {}  # by channel and node, the ordinal up to which those are written to that are up to date there
        self._wishes: dict[str, dict[str, float]] = {}  # by pattern, who wants it, and when that was last said, or that it is there
        self._leaving: dict[tuple[str, str], Member] = {}  # members that are no more here, and still are in the log
        self._aside: dict[tuple[str, str], Member | None] = {}  # while an entry is applied, those who are here in their place
        self._nodes: set[str] = set()
        self.clock = self._time

    def _time(self) -> float:
        return self._moment if self._moment is not None else self._system()

    # An entry of the log

    def enter(self, entry: Written) -> None:
        """What was said to another node."""
        assert entry.body is not None, "only what is under way is known without being read"
        now, ops = msgpack.unpackb(entry.body)
        self._apply(entry.n, entry.first, entry.ids, now, ops, None)

    def _apply(self, n: int, first: int, count: int, now: float, ops: Sequence[Op], askers: Sequence[Any] | None) -> None:
        """Enter what was said. `askers` are None where it was said to another node: then it is not counted here either."""
        ledger = self.ledger
        mine = ledger.receipts, ledger.roundtrips, ledger.expired, ledger.cancelled, ledger.statuses_dropped, self.events, self.event_bytes
        if askers is None:
            fresh = Ledger()
            ledger.receipts, ledger.roundtrips, ledger.expired, ledger.cancelled = fresh.receipts, fresh.roundtrips, fresh.expired, fresh.cancelled
        self._n, self._moment, self._next_id = n, now, first
        # As far as the log has come, who is about to leave is still there.
        for (channel, device), member in self._leaving.items():
            members = self._shelves[channel].audience.members
            self._aside[channel, device] = members.get(device)
            members[device] = member
        try:
            for op, asker in zip(ops, askers if askers is not None else repeat(None), strict=askers is not None):
                try:
                    getattr(self, f"_apply_{op[0]}")(asker, *op[1:])
                except Exception:
                    # What is wrong here is wrong on every node: they stay alike.
                    log.exception("an entry of the log could not be applied")
        finally:
            self._moment = None
            for channel, device in self._leaving:
                members = self._shelves[channel].audience.members
                del members[device]
                if (newer := self._aside.pop((channel, device))) is not None:
                    members[device] = newer
            self._aside.clear()
            if count:
                self._ids.last = max(self._ids.last, first + count - 1)
            if askers is None:
                (ledger.receipts, ledger.roundtrips, ledger.expired, ledger.cancelled, ledger.statuses_dropped, self.events, self.event_bytes) = mine

    def _note(self, kind: str, *names: str) -> None:
        self.changes.note(kind, joined(*names), self._n)

    # Events

    def _apply_push(self, asker: Asker | None, *said: Any) -> None:
        told, refused = asker or NOBODY
        draft = Draft(**dict(zip(DRAFT, said, strict=False)))  # a node of an earlier version says less
        id, now = self._next_id, self.clock()
        self._next_id += 1
        known = self._known_key(draft, now)
        if known is not None:
            told(known)
            return
        try:
            self._check_need(draft)
        except BadRequest as refusal:
            refused(refusal)
            return
        shelf = self._bear(draft.channel)
        self._note("channels", draft.channel)
        self._note("events", draft.channel, str(id))
        if draft.level != NONE:
            self._note("columns", draft.channel, str(id))
        if draft.key:
            self._note("keys", draft.channel, draft.key)
        self._ids.last = max(self._ids.last, id)
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
            for device in self._wishing(channel):
                self._seat(shelf, device)
        return shelf

    def _wishing(self, channel: str) -> list[str]:
        """Who has asked for all channels of such a name, and not too long ago; in an order that is the same everywhere."""
        since = self.clock() - self._config.device_ttl
        return sorted({device for pattern, devices in self._wishes.items() if compiled(pattern)(channel)
                       for device, said in devices.items() if said >= since})

    def _weight(self) -> int:
        # Only a push makes others make way, which every node does alike; one that starts takes in events and words in another order. What devices
        # say may take as much again, and what they say beyond is dropped.
        return self.bytes

    def _evict(self, shelf: Shelf) -> Event:
        event = super()._evict(shelf)
        self._note("channels", shelf.name)
        self._note("events", shelf.name, str(event.id))
        self._note("columns", shelf.name, str(event.id))
        return event

    def _apply_recall(self, asker: Asker | None, channel: str, id: int) -> None:
        told, refused = asker or NOBODY
        try:
            MemoryStore.recall(self, channel, id, told, refused)
        except Refusal as refusal:
            refused(refusal)
        self._note("events", channel, str(id))
        self._note("columns", channel, str(id))

    def _apply_expire(self, asker: None, channel: str, id: int) -> None:
        event = self._kept_event(channel, id)
        if event is not None and not event.expired:
            self._schedule.remove(event, event.expires)
            self._expire(event)
            self._note("events", channel, str(id))
            self._note("columns", channel, str(id))

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
                self._note("columns", entry.event.channel, str(id))

    def _apply_end(self, asker: None, id: int, device: str, end: int) -> None:
        entry = self.ledger.entries.get(id)
        slot = entry.slot(device) if entry is not None else -1
        if entry is not None and slot >= 0:
            self._close(entry, slot, end)

    def _close(self, entry: Entry, slot: int, end: int) -> None:
        MemoryStore._end(self, entry, slot, end)
        self._note("columns", entry.event.channel, str(entry.event.id))

    def _apply_resent(self, asker: Asker | None, id: int, device: str, times: int) -> None:
        entry = self.ledger.entries.get(id)
        slot = entry.slot(device) if entry is not None else -1
        if entry is None or slot < 0:
            return
        self._note("columns", entry.event.channel, str(id))
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

    def _seat(self, shelf: Shelf, device: str) -> None:
        WorkingSet._join(self, shelf, device)
        self._note("channels", shelf.name)  # it may have taken a slot that was left
        self._note("members", shelf.name, device)

    def _apply_leave(self, asker: Asker | None, channel: str, device: str) -> None:
        shelf = self._shelves.get(channel)
        if shelf is None:
            return
        members = shelf.audience.members
        if (member := members.get(device)) is None or member.slot < 0:
            return
        for event in shelf.backlog:
            entry = self._entry(event)
            slot = entry.slot(device) if entry is not None else -1
            if entry is not None and slot >= 0 and self.ledger.is_open(entry, slot):
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

    # Channels

    def _apply_forget(self, asker: None, channel: str) -> None:
        shelf = self._shelves.get(channel)
        if shelf is None or channel not in self._begun or len(shelf.backlog) or len(shelf.audience) or self._users.get(channel):
            return
        self._begun.discard(channel)
        self._written.pop(channel, None)
        self._note("channels", channel)
        # It may be open here since a moment ago; then it only begins anew.
        shelf.backlog.begin(0, 0)

    # Documents

    def _apply_document(self, asker: Asker | None, kind: str, name: str, document: bytes | None) -> None:
        told, _ = asker or NOBODY
        MemoryStore.put_away(self, kind, name, document, told)
        self._note("documents", kind, name)
        if asker is None:
            self.on_document(kind, name, document)

    # What is true of one node

    def _apply_marks(self, asker: Asker | None, node: str, channel: str, rows: Sequence[Sequence[Any]]) -> None:
        """How far the devices on a channel have been written to on a node, and whether they are there."""
        shelf = self._shelves.get(channel)
        for device, is_live, position, since, seen in rows if shelf is not None else ():
            member = shelf.audience.members.get(device)  # type: ignore[union-attr]
            if member is None or member.slot < 0:
                continue
            self._note("members", channel, device)
            if node == self.node:
                continue
            if is_live:
                member.elsewhere |= {node}
            else:
                member.elsewhere -= {node}
            member.position = max(member.position, position)
            member.since, member.seen = max(member.since, since), max(member.seen, seen)
            if member.saved is not None and mark(member)[0] == member.saved[0]:  # type: ignore[index]
                member.saved = mark(member)  # what another node says of it need not be said once more

    def _apply_written(self, asker: Asker | None, node: str, channel: str, ordinal: int) -> None:
        """How far those are that are up to date on a node; where they were, should it die."""
        if channel in self._begun:
            self._written.setdefault(channel, {})[node] = ordinal
            self._note("channels", channel)

    def _apply_present(self, asker: Asker | None, node: str, there: Sequence[str], away: Sequence[str]) -> None:
        """Who is there, or was until now, still wants what it has asked for."""
        names = {*there, *away}
        for pattern, devices in self._wishes.items():
            for name in names & devices.keys():
                devices[name] = self.clock()
                self._note("wishes", name, pattern)
        if node == self.node:
            return
        for name in names:
            if (device := self.devices.get(name)) is not None:
                device.seen = max(device.seen, self.clock())
        for name in there:
            if (device := self.devices.get(name)) is not None:  # it may have been removed since
                self.devices.is_elsewhere(device, node, True)
        for name in away:
            if (device := self.devices.get(name)) is not None:
                self.devices.is_elsewhere(device, node, False)

    def _apply_use(self, asker: Asker | None, node: str, channel: str, is_used: bool) -> None:
        users = self._users.pop(channel, frozenset()) - {node} | ({node} if is_used else set())
        if users:
            self._users[channel] = users

    def _apply_hello(self, asker: Asker | None, node: str) -> None:
        """A node has come; it is told who else is there, and what is true of each."""
        self._nodes.add(node)
        if node != self.node:
            self._introduce()

    def _apply_here(self, asker: Asker | None, node: str) -> None:
        """A node was there before."""
        self._nodes.add(node)

    def _introduce(self) -> None:
        """Tell anew all that is true of this node."""

    def _apply_gone(self, asker: Asker | None, node: str) -> None:
        """A node has gone: nobody is there any more."""
        if node == self.node:
            self._introduce()  # it was taken for dead, and is not
            return
        self._nodes.discard(node)
        for channel in tuple(self._users):
            self._apply_use(None, node, channel, False)
        for shelf in self._shelves.values():
            written = self._written.get(shelf.name, {}).pop(node, 0)
            for member in shelf.audience:
                if node in member.elsewhere:
                    member.elsewhere -= {node}
                    member.position = max(member.position, written)
                    self._note("members", shelf.name, member.device)
        for device in tuple(self.devices.known.values()):
            if node in device.elsewhere:
                self.devices.is_elsewhere(device, node, False)

    def _apply_going(self, asker: Asker | None, device: str, channel: str, id: int, word: int, delay: float) -> None:
        """A device has said how it goes (`working`, `retry`), and its feeds may be anywhere."""
        if asker is None:
            self.heed(device, channel, id, word, delay)

    # What is kept

    def shelves(self) -> list[Shelf]:
        """Those of channels that all nodes know of."""
        return [self._shelves[name] for name in self._begun]

    def begin_at(self, n: int, born: int, newest: int, number: int, kept: dict[str, dict[str, bytes]], rows: list[Any]) -> None:
        """Everything as it was kept after the nth entry of the log; it was empty before."""
        self._n = n
        self._restore(born, newest, number, kept, rows)

    def changed(self) -> list[tuple[str, str, Any]]:
        """What is to be kept: kind, name and present state of everything that changed."""
        return [(kind, name, self._value(kind, name)) for kind, name in self.changes.things()]

    def records_after(self, number: int) -> list[Row]:
        return self._recent.after(number)

    @property
    def oldest_record(self) -> int:
        """The number of the oldest record that is at hand."""
        return self._recent.newest - len(self._recent.after(0)) + 1

    def _value(self, kind: str, name: str) -> Any:
        """The present state of a thing that was changed, to be kept; None if it is no more. Of `columns` it is what `keeping.squeeze` takes."""
        home, _, rest = name.partition(keeping.SEPARATOR)
        shelf = self._shelves.get(home)
        if kind == "channels":
            return keeping.pack_shelf(shelf, self._written.get(home, {})) if shelf is not None and home in self._begun else None
        if kind == "members":
            member = shelf.audience.members.get(rest) if shelf is not None else None
            member = self._leaving.get((home, rest)) or member
            return keeping.pack_member(member, member.elsewhere | {self.node} if member.live else member.elsewhere) if member is not None and member.slot >= 0 else None
        if kind == "events":
            event = self._kept_event(home, int(rest))
            return keeping.pack_event(event) if event is not None else None
        if kind == "columns":
            entry = self.ledger.entries.get(int(rest))
            return keeping.pack_entry(entry) if entry is not None else None
        if kind == "keys":
            known = self._keys.get((home, rest))
            return keeping.pack_key(*known) if known is not None else None
        if kind == "wishes":
            said = self._wishes.get(rest, {}).get(home)
            return keeping.pack_value(said) if said is not None else None
        document = self._documents.get(home, {}).get(rest)
        return keeping.pack_value(document) if document is not None else None

    def _restore(self, born: int, newest: int, number: int, kept: dict[str, dict[str, bytes]], rows: list[Any]) -> None:
        """Everything as it was kept; it was empty before."""
        self.born = (born << SEQUENCE_BITS) - 1
        self._ids.last = max(self.born, newest)
        self._recent = Recent(self._config.receipts_kept, born / 1000)
        if number:
            self._recent.restore(rows[-self._config.receipts_kept :], number)
        events: dict[str, list[tuple[int, bytes]]] = {}
        for name, value in kept["events"].items():
            home, _, rest = name.partition(keeping.SEPARATOR)
            events.setdefault(home, []).append((int(rest), value))
        members: dict[str, list[bytes]] = {}
        for name, value in kept["members"].items():
            home, _, _ = name.partition(keeping.SEPARATOR)
            members.setdefault(home, []).append(value)
        untold: set[str] = set()  # channels of which it is not kept who is waited for
        for name, value in kept["channels"].items():
            shelf = self.open(name)
            self._begun.add(name)
            written = keeping.unpack_shelf(shelf, value, members.get(name, ()), len(events.get(name, ())))
            if written is None:
                untold.add(name)
            elif written:
                self._written[name] = written
            for member in shelf.audience:
                member.elsewhere -= {self.node}
                self.devices.register(member.device, name)
                member.saved = mark(member)
        for id, name, value in sorted((id, name, value) for name, found in events.items() for id, value in found):
            shelf, event = self._shelves[name], keeping.unpack_event(id, value)
            self._restore_event(shelf, event, kept["columns"].get(joined(name, str(id))))
            for device in event.to or () if name in untold else ():
                if not shelf.audience.has(device):
                    shelf.waiting.setdefault(device, deque()).append(event.ordinal)
        for name, value in kept["wishes"].items():
            device, _, pattern = name.partition(keeping.SEPARATOR)
            self._wishes.setdefault(pattern, {})[device] = said = keeping.unpack_value(value)
            known = self.devices.want(device, pattern)
            known.seen = max(known.seen, said)
        for name, value in kept["documents"].items():
            kind, _, rest = name.partition(keeping.SEPARATOR)
            self._documents.setdefault(kind, {})[rest] = keeping.unpack_value(value)
        keys = [(*name.partition(keeping.SEPARATOR)[::2], *keeping.unpack_key(value)) for name, value in kept["keys"].items()]
        for channel, key, at, accepted in sorted(keys, key=lambda found: (found[2], found[3].id)):
            self._keys[channel, key] = at, accepted

    def _restore_event(self, shelf: Shelf, event: Event, columns: bytes | None) -> None:
        owing = 0
        if columns is not None:
            entry = keeping.unpack_entry(event, shelf, columns)
            self.ledger.restore(entry)
            self.ledger.outstanding += entry.owed
            owing = len(entry.states)
        event.weigh(owing)
        self._keep(shelf, event)
        if event.expired:
            self._schedule.remove(event, event.expires)
            self._schedule.add(event, event.expires + self._config.keep_expired)

    def _clear(self) -> None:
        """Back to nothing; what was counted, and who is told of what, stays."""
        stays = {name: getattr(self, name) for name in ("deliver", "withdraw", "dismiss", "forsake", "on_anew", "heed", "leads", "on_lead", "on_document", "on_commit", "on_receipts", "events", "event_bytes")}
        ledger, on_presence = self.ledger, self.devices.on_presence
        Replica.__init__(self, self._config, self._system, self.node)
        for name, value in stays.items():
            setattr(self, name, value)
        for name in ("receipts", "roundtrips", "expired", "cancelled", "statuses_dropped", "on_answer", "on_decision"):
            setattr(self.ledger, name, getattr(ledger, name))
        self.devices.on_presence = on_presence


def mark(member: Member) -> tuple[bool, int, float, float]:
    """What the other nodes are told of a member; how far it has come not while it has a live feed, for then it is as far as all."""
    return bool(member.live), -1 if member.live else member.position, member.since, member.seen

