"""A request like the last one on its connection.

What was read once, and let in, is recognised when it comes again with other values (see `shape.py`), and joins a crowd of those that are answered
together (see `crowd.py`). Only a request that was alone and whole in what arrived is learned from, so the parser stands between two
requests; and whatever has a say in whether the next one may be answered is asked again each time.
"""

import re
from collections.abc import Callable

from pere.auth import NOTHING
from pere.crowd import Crowd
from pere.door import Ask, Door
from pere.errors import Refusal
from pere.limits import Account
from pere.shape import HEAD_END, Shape

MAX_LESSONS = 4  # shapes that are learned from one connection

Admits = Callable[[re.Match[bytes]], bool]


class Alike:
    """What recognises the next request: `match` and `order` are those of its shape, `admits` is what has a say in whether it may be
    answered, `crowd` is with which others it is, and `max_body` is how large its body may be."""

    __slots__ = ("admits", "crowd", "match", "max_body", "order")

    def __init__(self, shape: Shape, crowd: Crowd, max_body: int, admits: Admits | None):
        self.match = shape.match
        self.order = shape.order
        self.crowd = crowd
        self.max_body = max_body
        self.admits = admits


class Lessons:
    """What one connection has taught."""

    __slots__ = ("_left", "_shape")

    def __init__(self) -> None:
        self._left = MAX_LESSONS
        self._shape: Shape | None = None

    def learn(self, door: Door, model: Ask, data: bytes, own: Account | None) -> Alike | None:
        """From a request that was let in, and what arrived with it; `own` is the account of its connection."""
        route = model.route
        if model.grant is NOTHING or route.again is None:
            return None  # it was not let in, so neither is one that is like it
        end = data.find(HEAD_END)
        if end + len(HEAD_END) + len(model.body) != len(data) or not self._left:
            return None
        # It may have begun in an earlier piece, or behind the end of another body.
        line = b"%b %b HTTP/1.1\r\n" % (model.method, b"?".join(filter(None, (model.path, model.query))))
        if not data.startswith(line) or data.count(b"\r\n", 0, end) != len(model.fields):
            return None
        shape = door.shapes.learn(data, route.varying)
        if shape is not self._shape:
            # A client that says it differently each time is not learned from for ever.
            self._left -= 1
            self._shape = shape
        try:
            again = route.again(model)
        except Refusal:
            return None
        if shape is None or again is None:
            return None
        return Alike(shape, door.crowds.of(route, again), route.max_body, _admitting(door, model, shape, own))


def _admitting(door: Door, model: Ask, shape: Shape, own: Account | None) -> Admits | None:
    """What tells of a recognised request whether it may be answered as such: its token is known, and a limit not reached."""
    gate, kind, payer, address, grant = door.gate, model.route.kind, model.account, model.peer, model.grant
    is_let_in = gate.admits_subjects(kind)
    asked: list[Admits] = []
    if model.route.knows is not None:
        known = model.route.knows(model, shape.groups)
        asked.append(lambda match: (found := known(match)) is not None and is_let_in(found))
    elif grant.subject:
        asked.append(lambda match: is_let_in(grant))
    if payer is not None and payer is own:
        asked.append(lambda match: gate.admits(payer, kind))
    elif payer is not None:
        # Behind a proxy nothing keeps the account of a client that has gone.
        asked.append(lambda match: (now := gate.account(address)) is None or gate.admits(now, kind))
    if len(asked) < 2:
        return asked[0] if asked else None
    return lambda match: all(each(match) for each in asked)
