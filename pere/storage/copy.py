"""A node's copy of everything as it is kept in Redis, and made again from that.

Whatever changed is told in its present state (`keeping.py` says how that looks), and a copy that is empty is filled from all of it.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

from pere.event import SEQUENCE_BITS, Event
from pere.storage import Shelf, keeping
from pere.storage.keeping import joined
from pere.storage.presence import Presence, mark
from pere.storage.recent import Recent, Row


class Copy(Presence):
    """What a node has at hand."""

    def shelves(self) -> list[Shelf]:
        """Those of channels that all nodes know of."""
        return [self._shelves[name] for name in self._begun]

    def records_after(self, number: int) -> list[Row]:
        return self._recent.after(number)

    @property
    def oldest_record(self) -> int:
        """The number of the oldest record that is at hand."""
        return self._recent.newest - len(self._recent.after(0)) + 1

    # To be kept

    def changed(self) -> list[tuple[str, str, Any]]:
        """What is to be kept: kind, name and present state of everything that changed."""
        return [(kind, name, self._value(kind, name)) for kind, name in self.changes.things()]

    def marked(self, members: Iterable[tuple[str, str]]) -> list[tuple[str, str, Any]]:
        """The same of these, by channel and device."""
        return [("members", name, self._value("members", name)) for name in (joined(*each) for each in members)]

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

    # From what was kept

    def begin_at(self, n: int, born: int, newest: int, number: int, kept: dict[str, dict[str, bytes]], rows: list[Any]) -> None:
        """Everything as it was kept after the nth entry of the log; it was empty before. `born` is in milliseconds since 1970."""
        self._n = n
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
        """Back to nothing; what was counted, and who is told of what, stays (`lasting`)."""
        stays = [(name, getattr(self, name)) for name in self.lasting]
        ledger, devices = self.ledger, self.devices
        Presence.__init__(self, self._config, self._system, self.node)
        for name, value in stays:
            setattr(self, name, value)
        for name in ledger.lasting:
            setattr(self.ledger, name, getattr(ledger, name))
        for name in devices.lasting:
            setattr(self.devices, name, getattr(devices, name))
