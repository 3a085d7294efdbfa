"""The first request on a connection, where it is like one that another connection began with.

Ten thousand devices that come back ask for the same feed by a few kinds of clients, so their heads differ only in who they are and what they have
read. What is the same to the byte must be read alike, so once the parser has read such a head one regular expression reads the next, and the parser, its
callbacks and the checks of a head are not needed (measured: 6.5 us instead of 9 by itself, and 3 to 9 us of 145 where all else that opens a feed is
between). Nothing else is taken for granted: what comes of it is a request as the parser would have made
it, and whoever has a say in it is asked. No sockets here, and no meaning of any header.
"""

import re
from typing import Any

from pere.shape import HEAD_END, MAX_HEAD, skipped

# Headers whose values may differ, and how a value is found. In what was found there may be visible letters only, and spaces between them, so nothing
# can end a line or begin another header; to look at that behind the expression is faster than in it, by 1 us for a token.
# Who asks, what he has read, what browser he has, and what a proxy says of him; no head is refused for any of these before somebody asks for it by name.
VARYING = frozenset((b"device", b"last-event-id", b"last_event_id", b"authorization", b"cookie", b"user-agent", b"accept-language", b"referer", b"sec-ch-ua", b"sec-ch-ua-mobile",
                     b"sec-ch-ua-platform", b"x-forwarded-for", b"x-real-ip", b"x-request-id", b"traceparent"))
VALUE = rb"(?! )([^\r]{1,4096}+)(?<! )"  # nothing is taken back of it: who is not like it is found out in 1 us, and not in 27
# And what may differ in a query, which an EventSource has in the place of headers: what the parser takes in a target, and no fragment.
PARAMETER = rb"[A-Za-z0-9._~+/=%-]{1,4096}+"
PARAMETERS = re.compile(rb"(?<![^&])((?:access_token|device|last_event_id)=)" + PARAMETER + rb"(?![^&])")
LETTERS = bytes(range(32, 127))
OTHER = 0
MARKED = bytes(letter if letter in LETTERS else OTHER for letter in range(256))  # all that is no letter becomes one thing, which is found at once
LESSONS = 8  # heads that are looked at between two times that `rest` is called: to compile an expression takes a microsecond a byte
MOST = 256  # heads that are known
KINDS = 8  # of them with the same first line, as different programs say it: the newest


class Known:
    """A head that is known. The same in all that are like it: `method`, `path` and `route`, `query` unless a part of that differs (None), and of `headers` all but
    those that are `varying`, each with its place in what is found."""

    __slots__ = ("expression", "headers", "method", "path", "query", "route", "varying")

    def __init__(self, ask: Any, pattern: bytes, varying: tuple[bytes, ...], has_fixed_query: bool):
        self.method: bytes = ask.method
        self.path: bytes = ask.path
        self.query: bytes | None = ask.query if has_fixed_query else None
        self.headers: dict[bytes, bytes] = ask.headers
        self.route = ask.route
        self.expression = re.compile(pattern, re.DOTALL)
        self.varying = tuple(enumerate(varying, 0 if has_fixed_query else 1))


class Newcomers:
    """The heads that are known, by their first lines. One is learned when it comes for the second time, and only so many are
    looked at before `rest` is called, which is once a second: who never says the same twice teaches nothing."""

    def __init__(self, lessons: int = LESSONS) -> None:
        self._known: dict[bytes, list[Known]] = {}
        self._count = 0
        self._newest: Known | None = None  # the one that was found last: a fleet is mostly of one kind
        self._seen: dict[bytes, None] = {}
        self._left = self._lessons = lessons

    def rest(self) -> None:
        self._left = self._lessons

    def read(self, data: bytes) -> tuple[Known, bytes, dict[bytes, bytes]] | None:
        """What this is, whole and alone: a head that is known, its query and its headers; None if it is like nothing that is known."""
        known = self._newest
        if known is None or (match := known.expression.fullmatch(data)) is None:
            line = data[: data.find(b"\r\n")]
            for known in self._known.get(line) or self._known.get(line[: line.find(b"?") + 1]) or ():
                if (match := known.expression.fullmatch(data)) is not None:
                    self._newest = known
                    break
            else:
                return None
        values = match.groups()
        if OTHER in b"".join(values).translate(MARKED):
            return None
        headers = known.headers.copy()
        for place, name in known.varying:
            headers[name] = values[place]
        return known, values[0] if known.query is None else known.query, headers

    def learn(self, ask: Any, data: bytes) -> None:
        """From what the parser has read, by HTTP/1.1, on a connection that may go on, and what arrived with it."""
        if not self._left:
            return
        self._left -= 1
        found = _pattern(ask, data)
        if found is None:
            return
        line, pattern, varying = found
        if pattern not in self._seen:
            if len(self._seen) == MOST:
                del self._seen[next(iter(self._seen))]
            self._seen[pattern] = None
            return
        if any(known.expression.pattern == pattern for known in self._known.get(line, ())):
            return  # it came where there was a parser already
        self._newest = None  # it may make way
        if self._count >= MOST:
            self._count -= len(self._known.pop(next(iter(self._known))))
        kinds = self._known.setdefault(line, [])
        kinds.insert(0, Known(ask, pattern, varying, not line.endswith(b"?")))
        self._count += 1
        if len(kinds) > KINDS:
            del kinds[KINDS:]
            self._count -= 1


def _pattern(ask: Any, data: bytes) -> tuple[bytes, bytes, tuple[bytes, ...]] | None:
    """The first line (up to the query, if that may differ), the regular expression for heads like this one, and which headers its groups are, behind the one for
    such a query. None where it was not alone and whole in what arrived, or where what the parser has read is not what stands there."""
    headers: dict[bytes, bytes] = ask.headers
    if len(data) > MAX_HEAD or data.find(HEAD_END) + len(HEAD_END) != len(data):
        return None
    line, *fields = data[: -len(HEAD_END)].split(b"\r\n")
    if line != b"%b %b HTTP/1.1" % (ask.method, b"?".join(filter(None, (ask.path, ask.query)))) or len(fields) != len(headers):
        return None
    parts, varying = [re.escape(line)], []
    same = PARAMETERS.split(ask.query)
    if len(same) > 1:
        same[::2] = map(re.escape, same[::2])
        same[1::2] = [name + PARAMETER for name in same[1::2]]
        line = b"%b %b?" % (ask.method, ask.path)
        parts = [re.escape(line) + b"(%b)" % b"".join(same) + re.escape(b" HTTP/1.1")]
    for field, (name, value) in zip(fields, headers.items(), strict=True):
        key, colon, said = field.partition(b":")
        if key.lower() != name or said.strip(b" \t") != value:
            return None
        if name in VARYING and value and not value.translate(None, LETTERS):
            space = said[: len(said) - len(said.lstrip(b" \t"))]
            parts.append(re.escape(key + colon + space) + (_token(value) if name == b"authorization" and b" " in value else VALUE))
            varying.append(name)
        else:
            parts.append(re.escape(field))
    return line, re.escape(b"\r\n").join(parts) + re.escape(HEAD_END), tuple(varying)


def _token(value: bytes) -> bytes:
    """What matches an Authorization of the same scheme: where the end of its token cannot be yet, anything goes (see `shape.py`)."""
    scheme, _, token = value.rpartition(b" ")
    return rb"(%b .{%d}[^\r]{1,4096}+)(?<! )" % (re.escape(scheme), skipped(token))
