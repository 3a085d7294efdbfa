"""An event in the ledger: two bytes for each device of its audience, what they said, and counters that move with them.

Who changes these is the ledger, which also adds up over all events; see there.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from pere.audience import Audience, Column
from pere.event import Event
from pere.receipt import ABSENT, DELIVERED, FAILED, LATE, NAMES, PENDING, PROCESSED, RESENT, RULES, SECONDS, STATE, quantiles

SAYING_BYTES = 150  # what each different saying takes beside its own bytes
PRESENT = bytes(byte & STATE != ABSENT for byte in range(256))  # which bytes are those of a device in the audience
_STATES = bytes(byte & STATE for byte in range(256))


class Line(NamedTuple):
    """What is known of the event on one device; `latency` in seconds (good to 5 %), None before its receipt."""

    device: str
    slot: int
    state: int
    late: bool
    resends: int
    latency: float | None
    status: bytes | None


# Without the call of `Line.__new__`, which is Python's: a page asks for a hundred.
_line: Callable[[tuple[Any, ...]], Line] = partial(tuple.__new__, Line)


class Entry:
    """One event in the ledger. `slots` maps the devices of a push with `to`; else the channel's audience tells the slots."""

    __slots__ = ("event", "audience", "slots", "names", "rules", "states", "latencies", "histogram", "counts", "size", "owed", "need", "version",
                 "sayings", "said", "saying_bytes", "logged", "is_satisfied", "is_complete", "watchers", "goal", "column")
    column: Column  # only of one that is Unasked

    def __init__(self, event: Event, audience: Audience, states: bytearray, names: list[str], slots: dict[str, int] | None):
        self.event = event
        self.audience = audience
        self.slots = slots
        self.names = names
        self.rules = RULES[event.level]
        self.states = states
        self.latencies: bytearray | None = None  # made by the first receipt
        self.histogram: dict[int, int] = {}  # how many of them are in which bucket
        self.size = len(states) - states.count(ABSENT)
        self.counts = [self.size, 0, 0, 0, 0, 0]
        self.owed = self.size  # how many devices still owe a receipt
        self.need = self.size
        # Both are decided once: a device that has it and then fails takes nothing back.
        self.is_satisfied = False  # as many devices have it, by the level that the push asked for, as were needed
        self.is_complete = False  # every device of the audience has answered for good
        self.watchers: set[Callable[[], None]] | None = None  # who is told of every change
        self.goal = self.size  # with so many `processed` there may be something to decide
        self.version = 0  # moves with every change that can be seen from outside
        # What devices said beside the state: each different saying once, and per slot which one (0 is none).
        self.sayings: dict[bytes, int] = {}
        self.said: array[int] | None = None
        self.saying_bytes = 0  # of their own; see `weight`
        self.logged = 0  # the number of the newest record in a store's log that is in here

    def demand(self, need: int) -> None:
        """How many receipts satisfy."""
        self.need = need
        self.goal = 0 if self.event.level == DELIVERED else need

    def decide(self) -> tuple[bool, bool]:
        """What is satisfied or complete is so from now on; returns whether each of both has come to be just now."""
        good = self.good_count()
        is_news = not self.is_satisfied and good >= self.need, not self.is_complete and good + self.counts[FAILED] == self.size
        self.is_satisfied |= is_news[0]
        self.is_complete |= is_news[1]
        if self.is_satisfied:
            self.goal = self.size + 1
        return is_news

    def watch(self, then: Callable[[], None]) -> set[Callable[[], None]]:
        """Call `then` after every change that can be seen from outside, until it is taken out of what is returned."""
        if self.watchers is None:
            self.watchers = set()
        self.watchers.add(then)
        return self.watchers

    def is_decided(self) -> bool:
        """It is satisfied, or can never be: too few are left who could answer."""
        return self.is_satisfied or self.good_count() + self.owed < self.need

    def changed(self) -> None:
        """Something changed that can be seen from outside."""
        self.version += 1
        self.tell()

    def tell(self) -> None:
        """Say so to those who watch."""
        if self.watchers:
            for watcher in tuple(self.watchers):
                watcher()

    def restore(self, need: int, version: int, latencies: bytes, said: bytes, sayings: list[bytes], is_satisfied: bool) -> None:
        """What it said before, beside the states; all that can be counted is counted."""
        plain = self.states.translate(_STATES)
        self.counts = [plain.count(state) for state in range(len(NAMES))]
        self.owed = self.counts[PENDING] + (self.counts[DELIVERED] if self.event.level != DELIVERED else 0)
        self.version, self.is_satisfied = version, is_satisfied
        self.demand(need)
        self.decide()
        if latencies:
            self.latencies = bytearray(latencies)
            self.histogram = Counter(self.latencies)
            del self.histogram[0]
        if said:
            self.said = array("H", said)
            self.sayings = {saying: code for code, saying in enumerate(sayings, 1)}
            self.saying_bytes = sum(map(len, sayings))

    @property
    def weight(self) -> int:
        """What the sayings take in memory."""
        return self.saying_bytes + SAYING_BYTES * len(self.sayings)

    def summary(self) -> dict[str, Any]:
        """How it stands, as publishers are told of it."""
        return {
            "audience": self.size,
            "need": self.need,
            "satisfied": self.is_satisfied,
            "complete": self.is_complete,
            "outstanding": self.owed,
            "counts": dict(zip(NAMES, self.counts, strict=True)),
            "latency": quantiles(self.histogram),
        }

    def slot(self, device: str) -> int:
        """Where the device stands in the columns; -1 if it is not in the audience."""
        if self.slots is not None:
            return self.slots.get(device, -1)
        member = self.audience.members.get(device)
        slot = member.slot if member is not None else -1
        return slot if 0 <= slot < len(self.states) and self.states[slot] != ABSENT else -1

    def good_count(self) -> int:
        """How many devices have it, by the level that the push asked for; a failure is a receipt, but does not satisfy."""
        return self.counts[PROCESSED] + (self.counts[DELIVERED] if self.event.level == DELIVERED else 0)

    def lines(self, start: int = 0, wanted: bytes = PRESENT) -> Iterator[Line]:
        """The devices in the order of their slots, from one slot on; stable while receipts come in. `wanted` maps the bytes
        of the states that are meant to 1 and all others to 0."""
        names, states, latencies, said, sayings = self.names, self.states, self.latencies, self.said, list(self.sayings)
        # Marked and found in C: who pages through the last few that are open does not pass by the thousands that have answered.
        find = states.translate(wanted).find
        slot = find(1, start)
        while slot >= 0:
            byte = states[slot]
            latency = SECONDS[latencies[slot]] if latencies is not None and latencies[slot] else None
            code = said[slot] if said is not None else 0
            yield _line((names[slot], slot, byte & STATE, byte & LATE != 0, byte // RESENT, latency, sayings[code - 1] if code else None))
            slot = find(1, slot + 1)


class Unasked(Entry):
    """An entry of which nobody has asked anything yet: what it is made of, and nothing else. At the first look at anything else it makes itself what it
    is. Most that a node takes in for others are never looked at, and one of these costs a third (measured). `column` is that of the audience."""

    __slots__ = ()


def _asked(name: str) -> property:
    def ask(entry: Entry) -> Any:
        audience, states, size = entry.column
        entry.__class__ = Entry
        Entry.__init__(entry, entry.event, audience, bytearray(states), audience.names, None)
        if entry.event.level == DELIVERED:
            entry.demand(size)
        if not size:
            entry.decide()
        return getattr(entry, name)

    return property(ask)


# In front of what an entry has; `__getattr__` would be dearer, for that is asked after an exception.
for _name in {*Entry.__slots__} - {"event", "column"}:
    setattr(Unasked, _name, _asked(_name))


def unasked(event: Event, column: Column) -> Unasked:
    # Without a call of `__init__`: this runs for every push on every node.
    entry: Unasked = Unasked.__new__(Unasked)
    entry.event = event
    entry.column = column
    return entry
