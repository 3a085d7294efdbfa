"""What is only true of one node: whose feeds are there, how far these have been written to, to which channels somebody listens.

It is told to the others about once a second and decides nothing, but it outlives the node that said it: who was there when that died was seen until
then, and had been written to as far as was last told. So of a channel is told first who is not where all are, and then how far these have been written to.

How far each has been written to is kept (`copy.py`), and who comes has it from there and from the log; only who is online, and what is listened to, is told anew to who comes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pere.audience import Member
from pere.config import Config
from pere.storage import Shelf
from pere.storage.replica import NOBODY, Asker, Op, Replica
from pere.storage.working import QUIET

STAY = 3600.0  # seconds after which who is still there is said to be: nobody is taken to have been seen last before that who was there until a node died

FEW = 250  # devices that are mentioned in one piece


class Presence(Replica):
    """A copy that also knows what is true of each node. Who only looks says nothing of its own."""

    def __init__(self, config: Config, clock: Callable[[], float], node: str):
        super().__init__(config, clock, node)
        self._came_at = clock()  # for a while what others listen to may not have been told
        self._nodes: set[str] = set()
        self._users: dict[str, frozenset[str]] = {}  # nodes on which somebody listens to a channel
        self._written: dict[str, dict[str, int]] = {}  # by channel and node, the ordinal up to which those are written to that are up to date there
        self._used: set[str] = set()  # channels of which the others know that somebody here listens to them
        self._present: set[str] = set()  # and devices
        self._asking: set[str] = set()  # devices that want what is yet to be born, and have asked for it here or come since that was last told: they may be gone again by then
        self._stay = min(STAY, config.device_ttl / 2)
        self._stayed = 0.0  # when was last said who stays
        self._visits = 0  # of channels, since the last who listened to one here has left it
        self._is_used: Callable[[str], bool] = lambda channel: False

    # Said to the others

    def _say(self, op: Op, asker: Asker | None = None) -> None:
        """Into the log with it, if this is a node."""

    def _mention(self, op: Op, size: int = 1) -> None:
        """The same for what nobody waits for, about so many devices."""

    def _say_present(self, present: set[str], now: float) -> None:
        """Who has come and who has gone; and now and then who stays and has asked for what is yet to be born, for that holds from when this was last said."""
        came, gone, self._present = present - self._present, (self._present | self._asking) - present, present
        self._asking.clear()
        if now >= self._stayed + self._stay:
            self._stayed = now
            came |= {name for name in present if self.devices.known[name].patterns}
        self._mention_present(came, True)
        self._mention_present(gone, False)

    def _mention_present(self, names: set[str], are_there: bool) -> None:
        for some in _pieces(sorted(names)):
            self._mention(("present", self.node, *((some, ()) if are_there else ((), some))), len(some))

    def _visit(self, shelf: Shelf) -> None:
        """What is to be told to the others."""
        self._visits += 1
        if shelf.name not in self._begun:
            return
        rows, now = [], self.clock()
        for member in shelf.audience.members.values():
            # Whoever loads, after we have died too, is to know that it was there, and not only that it came.
            heard = now if member.feeds else member.answered if not member.elsewhere else 0.0
            if heard >= member.seen + self._stay:
                member.seen = heard
            if member.slot >= 0 and member.saved != (told := mark(member)):
                member.saved = told
                rows.append((member.device, told[0], member.position, member.since, member.seen))
        for some in _pieces(rows):
            self._mention(("marks", self.node, shelf.name, some), len(some))
        if shelf.backlog.last != self._written.get(shelf.name, {}).get(self.node, 0) and any(member.live for member in shelf.audience):
            self._mention(("written", self.node, shelf.name, shelf.backlog.last))
        if (is_used := self._is_used(shelf.name)) != (shelf.name in self._used):
            (self._used.add if is_used else self._used.discard)(shelf.name)
            self._mention(("use", self.node, shelf.name, is_used))

    def _has_to_tell(self) -> bool:
        """Whether the others may not know yet what has changed on this node."""
        return bool(self._used or self._present or self._asking) or self._visits < len(self._shelves)

    def _introduce(self, is_anew: bool = False) -> None:
        """Tell what of this node is kept nowhere, as the others know it; or all of it `anew`."""
        self._say(("here", self.node))
        self._mention_present(self._present, True)
        for channel in self._used:
            self._mention(("use", self.node, channel, True))
        if is_anew:
            for shelf in self._shelves.values():
                for member in shelf.audience:
                    if member.live:
                        member.saved = None
            for written in self._written.values():
                written.pop(self.node, None)

    def _forget(self, shelf: Shelf) -> None:
        if shelf.name in self._begun:
            if self.leads and self.clock() >= self._came_at + QUIET and not self._users.get(shelf.name):
                self._say(("forget", shelf.name))
            self._round.append(shelf.name)
        elif shelf.audience.members:
            self._round.append(shelf.name)
        else:
            super()._forget(shelf)

    # Heard of the others

    def _apply_hello(self, asker: Asker | None, node: str) -> None:
        """A node has come; it is told who else is there, and what is true of each."""
        self._nodes.add(node)
        if node != self.node:
            self._introduce()

    def _apply_here(self, asker: Asker | None, node: str) -> None:
        """A node was there before."""
        self._nodes.add(node)

    def _apply_marks(self, asker: Asker | None, node: str, channel: str, rows: Sequence[Sequence[Any]]) -> None:
        """How far the devices on a channel have been written to on a node, and whether they are there."""
        shelf = self._shelves.get(channel)
        for device, is_live, position, since, seen in rows if shelf is not None else ():
            member = shelf.audience.members.get(device)  # type: ignore[union-attr]
            if member is None or member.slot < 0:
                continue
            self.changes.mark(channel, device, self._n)
            if node == self.node:
                continue
            is_told = member.saved == mark(member)
            if is_live:
                member.elsewhere |= {node}
            else:
                member.elsewhere -= {node}
            member.position = max(member.position, position)
            member.since, member.seen = max(member.since, since), max(member.seen, seen)
            if is_told:
                member.saved = mark(member)  # what another node says of it need not be said once more

    def _apply_written(self, asker: Asker | None, node: str, channel: str, ordinal: int) -> None:
        """How far those are that are up to date on a node; where they were, should it die."""
        if channel in self._begun:
            self._written.setdefault(channel, {})[node] = ordinal
            self._note("channels", channel)

    def _apply_present(self, asker: Asker | None, node: str, there: Sequence[str], away: Sequence[str]) -> None:
        """Who is there, or was until now, still wants what it has asked for."""
        told, _ = asker or NOBODY
        names, now = {*there, *away}, self.clock()
        for pattern, devices in self._wishes.items():
            for name in names & devices.keys():
                devices[name] = now
                self._note("wishes", name, pattern)
        told(None)
        if node == self.node:
            return
        for name in names:
            if (device := self.devices.get(name)) is not None:
                device.seen = max(device.seen, now)
        for name in there:
            if (device := self.devices.get(name)) is not None:  # it may have been removed since
                self.devices.is_elsewhere(device, node, True)
        for name in away:
            if (device := self.devices.get(name)) is not None:
                self.devices.is_elsewhere(device, node, False)

    def _apply_remove(self, asker: Asker | None, device: str) -> None:
        super()._apply_remove(asker, device)
        self._present.discard(device)  # nobody knows any more that it was there: should it be back, that is to be told

    def _apply_use(self, asker: Asker | None, node: str, channel: str, is_used: bool) -> None:
        users = self._users.pop(channel, frozenset()) - {node} | ({node} if is_used else set())
        if users:
            self._users[channel] = users

    def _apply_forget(self, asker: None, channel: str) -> None:
        shelf = self._shelves.get(channel)
        if shelf is None or channel not in self._begun or len(shelf.backlog) or len(shelf.audience) or self._users.get(channel):
            return
        self._begun.discard(channel)
        self._written.pop(channel, None)
        self._note("channels", channel)
        # It may be open here since a moment ago; then it only begins anew.
        shelf.backlog.begin(0, 0)

    def _apply_gone(self, asker: Asker | None, node: str) -> None:
        """A node has gone: nobody is there any more."""
        told, _ = asker or NOBODY
        told(None)
        if node == self.node:
            self._introduce(is_anew=True)  # it was taken for dead, and is not
            return
        self._nodes.discard(node)
        for channel in tuple(self._users):
            self._apply_use(None, node, channel, False)
        for shelf in self._shelves.values():
            if written := self._written.get(shelf.name, {}).pop(node, 0):
                self._note("channels", shelf.name)
            for member in shelf.audience:
                if node in member.elsewhere:
                    member.elsewhere -= {node}
                    member.position = max(member.position, written)
                    self.changes.mark(shelf.name, member.device, self._n)
        for device in tuple(self.devices.known.values()):
            if node in device.elsewhere:
                self.devices.is_elsewhere(device, node, False)


def _pieces(all: list[Any]) -> Iterator[list[Any]]:
    return (all[start : start + FEW] for start in range(0, len(all), FEW))


def mark(member: Member) -> tuple[bool, int, float, float]:
    """What the other nodes are told of a member; how far it has come not while it has a live feed, for then it is as far as all."""
    return bool(member.live), -1 if member.live else member.position, member.since, member.seen
