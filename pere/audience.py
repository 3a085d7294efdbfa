"""Who is registered on a channel, and where in the columns of the ledger each device stands.

A device registers by its first feed and keeps its slot until it is removed. The audience of an event is a copy of the
column `template` at the moment it is accepted: one byte a device. This file knows no clock: it is handed the time.
"""

from collections import deque
from collections.abc import Iterator

from pere.receipt import ABSENT, PENDING

NOWHERE: frozenset[str] = frozenset()  # one for all: an empty set of its own would take a tenth of what a feed does


class Member:
    """A device on a channel. `position` is the ordinal of the last event that was written to a feed of it; while `live`
    (the number of its feeds that are up to date) is above zero it is the channel's newest, and is not kept up here. `elsewhere` are
    the nodes, beside this one, on which it has feeds that are up to date. A `slot` of -1 is none yet."""

    __slots__ = ("device", "slot", "live", "elsewhere", "position", "settled", "since", "seen", "answered", "last_id", "feeds", "careful", "saved")

    def __init__(self, device: str, slot: int, position: int, now: float):
        self.device = device
        self.slot = slot
        self.live = 0
        self.elsewhere = NOWHERE
        self.position = position
        self.settled = position  # every event up to here is closed: where the search for open ones begins
        self.since = 0.0  # when its newest feed opened; 0 before the first
        self.seen = now  # when a feed of it last opened or closed
        self.answered = 0.0  # when it last sent a receipt
        self.last_id = 0  # the event that it named last, in a receipt or as what it had read
        self.feeds = 0  # how many it has open, up to date or not
        self.careful = 0  # how many of its feeds want to hear of its receipts
        self.saved: object = None  # what a store on disk, or another node, knows of it

    def reached(self, newest: int) -> int:
        """The ordinal up to which it has been written to, `newest` being the channel's."""
        return newest if self.live or self.elsewhere else self.position


class Audience:
    """The members of one channel, by name and by slot."""

    __slots__ = ("members", "names", "template", "_column", "_free")

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.names: list[str] = []
        self.template = bytearray()
        self._column: Column | None = None
        # Slots that were left, with the newest ordinal of that moment: an event up to there may still show the old name.
        self._free: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        """How many are in the audience of the next event."""
        return len(self.template) - self.template.count(ABSENT)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members.values())

    def column(self) -> "Column":
        """As it is now: one for all events that come before the next device joins or leaves."""
        if self._column is None:
            self._column = self, bytes(self.template), len(self)
        return self._column

    def has(self, device: str) -> bool:
        """Whether it is a member, and not only expected to be one."""
        member = self.members.get(device)
        return member is not None and member.slot >= 0

    def expect(self, device: str, position: int, now: float) -> Member:
        """A member that is yet to join, and has no slot: it is in the audience of no event before it does."""
        member = self.members[device] = Member(device, -1, position, now)
        return member

    def join(self, device: str, position: int, oldest: int, now: float) -> Member:
        """The member of this name, registered now if it was not. `position` is the newest ordinal of the channel and `oldest` the
        first that is kept: a slot is given anew only once no kept event can mean the one who had it."""
        member = self.members.get(device)
        if member is not None and member.slot >= 0:
            return member
        if self._free and self._free[0][0] < oldest:
            slot = self._free.popleft()[1]
            self.names[slot] = device
            self.template[slot] = PENDING
        else:
            slot = len(self.names)
            self.names.append(device)
            self.template.append(PENDING)
        self._column = None
        if member is None:
            member = self.members[device] = Member(device, slot, position, now)
        else:
            member.slot = slot
        return member

    def restore(self, member: Member, gone: int | None) -> None:
        """Put a member back where it was, slot after slot; `gone` is the newest ordinal when it left, if it did."""
        self.names.append(member.device)
        self.template.append(PENDING if gone is None else ABSENT)
        self._column = None
        if gone is None:
            self.members[member.device] = member
        else:
            self._free.append((gone, member.slot))

    def restore_all(self, members: list[Member], left: list[tuple[str, int, int]]) -> None:
        """The same for all of them at once, in whatever order; `left` is as `left()` told it, in that order."""
        size = len(members) + len(left)
        self.names, self.template, self._column = [""] * size, bytearray((ABSENT,)) * size, None
        for member in members:
            self.names[member.slot], self.template[member.slot] = member.device, PENDING
            self.members[member.device] = member
        for device, slot, newest in left:
            self.names[slot] = device
            self._free.append((newest, slot))

    def leave(self, device: str, newest: int) -> Member | None:
        """Take a device out of the audience of events to come; returns it, or None if it was not registered."""
        member = self.members.pop(device, None)
        if member is not None:
            self.template[member.slot] = ABSENT
            self._column = None
            self._free.append((newest, member.slot))
        return member

    def left(self) -> Iterator[tuple[str, int, int]]:
        """Who left and may still be named by an event: the device, its slot, and the newest ordinal of that moment."""
        return ((self.names[slot], slot, newest) for newest, slot in self._free)

    def quiet_since(self, moment: float) -> list[Member]:
        """Those who have no feed and were last seen before this moment."""
        return [member for member in self if not member.feeds and not member.elsewhere and max(member.seen, member.answered) < moment]


# An audience, its template at some moment, and how many were in it then.
Column = tuple[Audience, bytes, int]
