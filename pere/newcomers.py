"""The first request on a connection, where it is like one that another connection began with.

Ten thousand devices that come back ask for the same feed by the same client, so their heads differ only in who they are and what they have
read. What is the same to the byte must be read alike, so once the parser has read such a head one regular expression reads the next, and the parser, its
callbacks and the checks of a head are not needed (measured: 6.5 us instead of 9 by itself, and 3 to 9 us of 145 where all else that opens a feed is
between). Nothing else is taken for granted: what comes of it is a request as the parser would have made
it, and whoever has a say in it is asked. No sockets here, and no meaning of any header.
"""

import re
from typing import Any, NamedTuple

from pere.shape import HEAD_END, MAX_HEAD

# Headers whose values may differ, and how each is found. In what was found there may be visible letters only, and in an Authorization the one space, so nothing
# can end a line or begin another header; to look at that behind the expression is faster than in it, by 1 us for a token.
ANY = rb"([^\r]{1,200})"
VARYING = {b"device": ANY, b"last-event-id": ANY, b"last_event_id": ANY, b"x-forwarded-for": ANY, b"authorization": rb"([^ ]{1,32} [^\r]{1,4096})"}
VISIBLE = bytes(range(33, 127))
LESSONS = 8  # heads that are looked at between two times that `rest` is called: to compile an expression takes a microsecond a byte
MOST = 256  # first lines of which the newest head is known


class Head(NamedTuple):
    """What the parser has read in a head; header names are in lower case, and none stands there twice."""

    method: bytes
    path: bytes
    query: bytes
    headers: dict[bytes, bytes]
    route: Any


class Known:
    """A head that is known: `match` one that is like it, and put what differs into its headers, whose names are `varying`, in that order."""

    __slots__ = ("head", "match", "spaces", "varying")

    def __init__(self, pattern: bytes, varying: tuple[bytes, ...], head: Head):
        self.match = re.compile(pattern).fullmatch
        self.varying = varying
        self.spaces = b" " * (b"authorization" in varying)
        self.head = head

    def read(self, data: bytes) -> Head | None:
        match = self.match(data)
        if match is None or b"".join(values := match.groups()).translate(None, VISIBLE) != self.spaces:
            return None
        method, path, query, headers, route = self.head
        headers = headers.copy()
        headers.update(zip(self.varying, values, strict=True))
        return Head(method, path, query, headers, route)


class Newcomers:
    """The heads that are known, one for each first line. One is learned when it comes for the second time, and only so many are
    looked at before `rest` is called, which is once a second: who never says the same twice teaches nothing."""

    def __init__(self) -> None:
        self._known: dict[bytes, Known] = {}
        self._seen: dict[bytes, bytes] = {}
        self._left = LESSONS

    def rest(self) -> None:
        self._left = LESSONS

    def read(self, data: bytes) -> Head | None:
        """What this is, whole and alone; None if it is like nothing that is known."""
        known = self._known.get(data[: data.find(b"\r\n")])
        return known.read(data) if known is not None else None

    def learn(self, head: Head, data: bytes) -> None:
        """From what the parser has read, by HTTP/1.1, on a connection that may go on, and what arrived with it."""
        if not self._left:
            return
        self._left -= 1
        found = _pattern(head, data)
        if found is None:
            return
        line, pattern, varying = found
        if self._seen.get(line) == pattern:
            if len(self._known) == MOST:
                del self._known[next(iter(self._known))]
            self._known[line] = Known(pattern, varying, head)
        else:
            if len(self._seen) == MOST:
                del self._seen[next(iter(self._seen))]
            self._seen[line] = pattern


def _pattern(head: Head, data: bytes) -> tuple[bytes, bytes, tuple[bytes, ...]] | None:
    """The first line, the regular expression for heads like this one, and which headers its groups are. None where it was not alone and
    whole in what arrived, or where what the parser has read is not what stands there."""
    if len(data) > MAX_HEAD or data.find(HEAD_END) + len(HEAD_END) != len(data):
        return None
    line, *fields = data[: -len(HEAD_END)].split(b"\r\n")
    if line != b"%b %b HTTP/1.1" % (head.method, b"?".join(filter(None, (head.path, head.query)))) or len(fields) != len(head.headers):
        return None
    parts, varying = [re.escape(line)], []
    for field, (name, value) in zip(fields, head.headers.items(), strict=True):
        key, colon, said = field.partition(b":")
        if key.lower() != name or said.strip(b" \t") != value:
            return None
        differs = VARYING.get(name)
        if differs is not None and re.fullmatch(differs, value) and value.translate(None, VISIBLE) == b" " * (name == b"authorization"):
            space = said[: len(said) - len(said.lstrip(b" \t"))]
            parts.append(re.escape(key + colon + space) + differs)
            varying.append(name)
        else:
            parts.append(re.escape(field))
    return line, re.escape(b"\r\n").join(parts) + re.escape(HEAD_END), tuple(varying)
