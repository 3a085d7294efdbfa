"""A request like the last one on its connection.

What was read once, and let in, is recognised when it comes again with other values (see `shape.py`), and joins a crowd of those that are answered
together (see `crowd.py`), where whatever has a say in whether it may be answered is asked again. Only a request that was alone and whole in
what arrived is learned from, so the parser stands between two requests.
"""

from pere.auth import NOTHING, OPEN
from pere.crowd import Crowd, Pays
from pere.door import Ask, Door
from pere.errors import Refusal
from pere.limits import Account
from pere.shape import HEAD_END, Shape

MAX_LESSONS = 4  # shapes that are learned from one connection


class Alike:
    """What recognises the next request: `match` and `order` are those of its shape; `max_body` is how large its body may be, `crowd` with
    which others it is answered, and `pays` who pays for it, if anybody does."""

    __slots__ = ("crowd", "match", "max_body", "order", "pays")

    def __init__(self, shape: Shape, crowd: Crowd, max_body: int, pays: Pays | None):
        self.match = shape.match
        self.order = shape.order
        self.crowd = crowd
        self.max_body = max_body
        self.pays = pays


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
        if model.grant is not OPEN and b"authorization" not in route.varying:
            return None  # nobody would look at the token of the next one
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
        pays = _paying(door, model, own)
        return Alike(shape, door.crowds.of(route, again, pays is not None), route.max_body, pays)


def _paying(door: Door, model: Ask, own: Account | None) -> Pays | None:
    """Whose account a recognised request is charged to: that of its connection or, where a proxy is there, of the client behind it."""
    gate, kind, payer, address = door.gate, model.route.kind, model.account, model.peer
    if payer is None:
        return None
    if payer is own:
        return lambda: gate.admits(payer, kind)
    # Nothing keeps the account of a client that has gone.
    return lambda: (now := gate.account(address)) is None or gate.admits(now, kind)
