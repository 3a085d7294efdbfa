"""Requests that are alike and came in one turn of the loop, answered together.

Ten thousand devices answer one event at almost the same time. What it takes to enter one receipt is little beside what it takes to
call for each what enters it; so those that were recognised (see `shape.py`) wait until the loop has read all that there was to
read, and are entered in one piece of work. To write their answers together is cheaper too: to write between two reads would
wake the client for each of them, and who wakes pays for it (measured: a tenth of the cost of a receipt).
"""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from pere.errors import Refusal, internal
from pere.shape import Again

log = logging.getLogger("pere.http")

AGAIN = object()  # stands for a request that was recognised and is being answered
MAX_CROWDS = 256

Pays = Callable[[], bool]  # takes what a request costs out of somebody's account, and says whether there was as much
Asked = tuple[Any, tuple[bytes, ...], bytes]  # a connection, what was recognised of what it said, and all of that


class Crowd:
    """Those that `again` answers, `asked` in the order in which they came; `is_paying` where somebody pays for each."""

    __slots__ = ("_again", "_door", "_is_paying", "_route", "asked")

    def __init__(self, door: Any, route: Any, again: Again, is_paying: bool):
        self.asked: list[Asked] = []
        self._again = again
        self._door = door
        self._route = route
        self._is_paying = is_paying

    def answer(self) -> None:
        """All who have joined."""
        asked, self.asked = self.asked, []
        self._answer(asked)

    def _answer(self, asked: list[Asked]) -> None:
        try:
            certain = self._enter(asked)
        except Exception:
            if len(asked) > 1:
                for one in asked:  # what breaks us must not take the others with it
                    self._answer([one])
                return
            log.exception("%s could not be answered", self._route.name)
            self._told([connection for connection, _, _ in asked], [internal()])
            return
        if certain is not None:
            for place, (connection, _, data) in enumerate(asked):
                if place not in certain:
                    connection.read_again(data)

    def _enter(self, asked: list[Asked]) -> set[int] | None:
        """Returns the places of those that could be entered, None for all."""
        connections = [connection for connection, _, _ in asked]
        requests = [values for _, values, _ in asked]
        names, uncertain = self._again.who(requests)
        if self._is_paying:
            # The account of whoever is not certain is charged when it is read.
            uncertain += [place for place, name in enumerate(names) if name is not None and not connections[place].pays()]
        certain = None
        if uncertain:
            certain = set(range(len(asked))).difference(uncertain)
            connections, requests, names = ([these[place] for place in sorted(certain)] for these in (connections, requests, names))  # type: ignore[assignment]
        if connections:
            self._again.answer(names, requests, lambda answers: self._told(connections, answers))  # type: ignore[arg-type]
        return certain

    def _told(self, connections: list[Any], answers: Sequence[bytes | Refusal]) -> None:
        """Straight to the sockets, as the hub does, for a transport with nothing to send has nothing to add."""
        door, write, count = self._door, os.write, 0
        ready, now = door.ready, door.wheel.now
        for connection, answer in zip(connections, answers, strict=True):
            if connection.busy is not AGAIN or answer.__class__ is not bytes:
                connection.answer_again(self._route, answer)
                continue
            count += 1
            connection.busy = None
            connection.since = now
            transport, taken = connection.transport, 0
            if transport.is_closing():
                continue  # this client has gone meanwhile, the others have not
            data = ready.get(answer) or door.whole(200, answer)
            if not transport.get_write_buffer_size():
                try:
                    taken = write(connection.fd, data)
                except OSError:
                    pass  # full, or gone: the transport finds out which
            if taken < len(data):
                transport.write(data[taken:])
            if connection.pending or connection.rest:
                connection.go_on()
        self._route.tally[200] += count


class Crowds:
    """All that there are, and those that somebody has joined in this turn of the loop."""

    def __init__(self, door: Any):
        self._door = door
        self._known: dict[tuple[Again, bool], Crowd] = {}
        self._asked: list[Crowd] = []

    def of(self, route: Any, again: Again, is_paying: bool) -> Crowd:
        """The crowd of those that `again` answers; what is the same object is the same crowd."""
        crowd = self._known.get((again, is_paying))
        if crowd is None:
            if len(self._known) == MAX_CROWDS:
                del self._known[next(iter(self._known))]
            crowd = self._known[again, is_paying] = Crowd(self._door, route, again, is_paying)
        return crowd

    def forget(self) -> None:
        """Those to come are others, whatever they are."""
        self._known.clear()

    def gather(self, crowd: Crowd) -> None:
        """Somebody is the first to join: all who do so in this turn of the loop are answered at its end."""
        if not self._asked:
            self._door.loop.call_soon(self.answer)
        self._asked.append(crowd)

    def answer(self) -> None:
        """All who have joined: at the end of the turn, or before somebody who has joined is heard any further."""
        asked, self._asked = self._asked, []
        for crowd in asked:
            crowd.answer()
