"""What a node has at hand, as it is kept in Redis beside the log, so that the log can be cut and a node that starts need not read it all.

Whatever an entry of the log changed is noted with the number of that entry. Now and then the keeper writes the present state of all that
was changed since the last time, in one piece: then what is kept is how everything stood after one entry, and a node that starts
reads that and takes the log from there. Every node notes changes, for any of them may be the keeper next.

This file knows how things look when they are kept. It sends nothing.
"""

import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Any

import msgpack  # type: ignore[import-untyped]

from pere.audience import Member
from pere.entry import Entry
from pere.event import Draft, Event
from pere.storage import Accepted, Shelf
from pere.storage.packing import SATISFIED, packed, parted
from pere.storage.recent import Row

# A thing that is kept: its kind (of `scripts.KINDS`) and its name.
Thing = tuple[str, str]
# What was changed: its kind, what it belongs to (its channel, device or kind of document), and which it is there; EVENT means the event and its columns. It is made a
# thing when that is asked for.
Change = tuple[str, str, str | int]
EVENT = "event"
SEPARATOR = " "  # which no channel, device or pattern has


class Changes:
    """What was changed by which entry of the log, the latest at the end."""

    def __init__(self) -> None:
        self._numbers: OrderedDict[Change, int] = OrderedDict()
        self._marked: OrderedDict[tuple[str, str], int] = OrderedDict()
        # Events came to a channel, or made way there: by which entry, or one before it; the channel, and the ids. Either happens once to each, so nothing is looked up: this is noted of each
        # push on every node.
        self.moved: deque[tuple[int, str, Sequence[int]]] = deque()

    def __len__(self) -> int:
        return len(self._numbers) + len(self._marked) + len(self.moved)

    def note(self, change: Change, n: int) -> None:
        """Changed by the nth entry."""
        numbers = self._numbers
        if change in numbers:
            numbers.move_to_end(change)
        numbers[change] = n

    def mark(self, channel: str, device: str, n: int) -> None:
        """Of a member has changed where it is, or how far it has been written to. What says so may be entered once more, so such a member may be kept before all else is."""
        marked, change = self._marked, (channel, device)
        if change in marked:
            marked.move_to_end(change)
        marked[change] = n

    def marked(self, most: int) -> dict[tuple[str, str], int]:
        """So many of those, by channel and device, of which nothing else has changed; and by which entry."""
        return {change: n for change, n in islice(self._marked.items(), most) if ("members", *change) not in self._numbers}

    def kept_ahead(self, marked: dict[tuple[str, str], int]) -> None:
        """These are kept as they stood then."""
        for change, n in marked.items():
            if self._marked.get(change) == n:
                del self._marked[change]

    def kept(self, n: int) -> None:
        """All is kept as it stood after this entry."""
        while self._numbers and next(iter(self._numbers.values())) <= n:
            self._numbers.popitem(last=False)
        while self._marked and next(iter(self._marked.values())) <= n:
            self._marked.popitem(last=False)
        while self.moved and self.moved[0][0] <= n:
            self.moved.popleft()

    def things(self) -> list[Thing]:
        """All that was changed and is not kept yet."""
        found: dict[Thing, None] = {}
        for kind, home, rest in self._numbers:
            name = joined(home, str(rest)) if rest else home
            for each in ("events", "columns") if kind == EVENT else (kind,):
                found[each, name] = None
        for channel, device in self._marked:
            found["members", joined(channel, device)] = None
        for _, channel, ids in self.moved:
            found["channels", channel] = None
            for id in ids:
                name = joined(channel, str(id))
                found["events", name] = found["columns", name] = None
        return list(found)

    def clear(self) -> None:
        self._numbers.clear()
        self._marked.clear()
        self.moved.clear()


def joined(*names: str) -> str:
    return SEPARATOR.join(names)


def pack_event(event: Event) -> bytes:
    return _pack((event.channel, event.ordinal, event.time, event.expires, event.level, event.is_json, event.type, event.publisher,
                  sorted(event.to) if event.to is not None else None, event.callback, event.expired, event.recalled, event.data, *((event.traceparent,) if event.traceparent else ())))


def unpack_event(id: int, value: bytes) -> Event:
    channel, ordinal, time, expires, level, is_json, type, publisher, to, callback, expired, recalled, data, *more = _unpack(value)
    event = Event(Draft(channel=channel, data=data, is_json=is_json, type=type, to=tuple(to or ()), ttl=0, level=level, publisher=publisher,
                        callback=callback, traceparent=more[0] if more else ""), id, ordinal, time)
    event.expires, event.expired, event.recalled = expires, expired, recalled
    return event


def pack_entry(entry: Entry) -> tuple[Any, ...]:
    """As it stands now; `squeeze` makes it bytes, which takes a while and can be done in a thread."""
    return entry.need, entry.version, packed(entry), list(entry.sayings)


def squeeze(parts: tuple[Any, ...]) -> bytes:
    need, version, columns, sayings = parts
    return _pack((need, version, zlib.compress(columns, 1), sayings))


def unpack_entry(event: Event, shelf: Shelf, value: bytes) -> Entry:
    need, version, squeezed, sayings = _unpack(value)
    columns = zlib.decompress(squeezed)
    states, latencies, said = parted(columns)
    names = sorted(event.to) if event.to is not None else shelf.audience.names
    slots = {device: slot for slot, device in enumerate(names)} if event.to is not None else None
    entry = Entry(event, shelf.audience, bytearray(states), names, slots)
    entry.restore(need, version, latencies, said, sayings, bool(columns[0] & SATISFIED))
    return entry


def pack_shelf(shelf: Shelf, written: dict[str, int]) -> bytes:
    """The channel itself: its newest ordinal, the newest id that made way, the slots that were left, who is waited for, and up to which ordinal each node
    has written to those that are up to date there."""
    return _pack((shelf.backlog.last, shelf.backlog.evicted_id, shelf.touched, list(shelf.audience.left()),
                  {device: list(ordinals) for device, ordinals in shelf.waiting.items()}, written))


def unpack_shelf(shelf: Shelf, value: bytes, members: Iterable[bytes], events: int) -> dict[str, int] | None:
    """`events` is how many will follow. Returns how far the nodes have written; None of version 1, which did not tell who is waited for either."""
    last, gone, shelf.touched, left, *more = _unpack(value)
    shelf.backlog.begin(last - events, gone)
    shelf.audience.restore_all([_member(value) for value in members], [tuple(each) for each in left])
    if not more:
        return None
    waiting, written = more
    shelf.waiting = {device: deque(ordinals) for device, ordinals in waiting.items()}
    return dict(written)


def pack_member(member: Member, nodes: Collection[str] = ()) -> bytes:
    """`nodes` are those on which it has a feed that is up to date: what it was written there is told of the channel."""
    return _pack((member.device, member.slot, member.position, member.since, member.seen, member.answered, member.last_id, sorted(nodes)))


def _member(value: bytes) -> Member:
    device, slot, position, since, seen, answered, last_id, *nodes = _unpack(value)
    member = Member(device, slot, position, seen)
    if nodes and nodes[0]:
        member.elsewhere = frozenset(nodes[0])
    member.settled, member.since, member.answered, member.last_id = 0, since, answered, last_id
    return member


def pack_key(at: float, accepted: Accepted) -> bytes:
    return _pack((at, accepted.id, accepted.audience))


def unpack_key(value: bytes) -> tuple[float, Accepted]:
    at, id, audience = _unpack(value)
    return at, Accepted(id, audience)


def pack_rows(rows: list[Row]) -> bytes:
    return _pack(rows)


def unpack_rows(value: bytes) -> list[Row]:
    return [tuple(row) for row in _unpack(value)]


def pack_value(value: Any) -> bytes:
    return _pack(value)


def unpack_value(value: bytes) -> Any:
    return _unpack(value)


_pack: Callable[[Any], bytes] = msgpack.packb
_unpack: Callable[[bytes], Any] = msgpack.unpackb
