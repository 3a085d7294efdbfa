"""The shape of a request: its bytes, but for a few values.

A device that answers ten thousand events sends the same head ten thousand times, in which only a few values differ. Once the
parser has read such a head and the door has let it in, a request whose every other byte is the same must be read and let
in alike; so it is recognised by one regular expression (0.6 us), where the parser and its callbacks take 2 us. What is not
the same to the byte is not recognised, and goes the usual way. No sockets here, and no meaning of any header.
"""

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from pere.errors import Refusal

# A value that may differ: visible ASCII, so nothing in it can end a line or begin another header.
VALUE = rb"([!-~]{1,200})"
LENGTH = rb"([0-9]{1,7})"
STEP = 32  # characters by which tokens of one fleet may differ in length, more or less
HEAD_END = b"\r\n\r\n"
MAX_HEAD = 2048  # bytes of a head that is learned: to compile an expression takes a microsecond a byte, and 8 bytes of memory for each


def value_of(name: bytes, value: bytes) -> bytes:
    """What matches a value of this header that may differ, where this is one of them."""
    if name == b"content-length":
        return LENGTH
    if name != b"authorization":
        return VALUE
    # The last word of an Authorization. Whoever finds it must know it to the byte, and so knows that there is nothing in it which the parser
    # would read otherwise. So one need not look at each of its characters: the tokens of a fleet are about as long as each other, and where
    # the end cannot be yet, anything goes (measured, with 250 characters: 0.3 us to look at each, 0.2 to look for the end, 0.1 from there).
    return rb"(.{%d}[^\r]{1,4096})" % skipped(value.rpartition(b" ")[2])


def skipped(token: bytes) -> int:
    """In how many characters of a token like this one there is no end."""
    return max(0, len(token) - STEP) // STEP * STEP


class Shape:
    """What recognises one shape: `match` a request, and take the groups `order` of what it gives: the varying values in the order in
    which they were named, the length and the body. It is one whole request only if the length is that of the body, and the token, if one
    varies, is known."""

    __slots__ = ("match", "order")

    def __init__(self, pattern: bytes, order: tuple[int, ...]):
        self.match = re.compile(pattern, re.DOTALL).fullmatch
        self.order = order

    def read(self, request: bytes) -> tuple[bytes, ...] | None:
        """What the door does inline, where it runs once for every receipt."""
        match = self.match(request)
        values = match.group(*self.order) if match is not None else None
        return values if values is not None and int(values[-2]) == len(values[-1]) else None


def pattern_of(request: bytes, varying: tuple[bytes, ...]) -> tuple[bytes, tuple[int, ...]] | None:
    """The regular expression for requests like this one, and which of its groups are the varying values, the length and the body. None if a varying header is not there exactly once, there is no body of a known length, or the head is too long."""
    head, found, _ = request.partition(HEAD_END)
    if len(head) > MAX_HEAD:
        return None
    line, *fields = head.split(b"\r\n")
    parts, groups = [re.escape(line)], {}  # type: list[bytes], dict[bytes, int]
    for field in fields:
        name, colon, value = field.partition(b":")
        key = name.lower()
        if key in varying or key == b"content-length":
            if key in groups:
                return None
            groups[key] = len(groups) + 1
            space = value[: len(value) - len(value.lstrip(b" \t"))]
            if key == b"authorization":  # the scheme is the same for all
                space = value[: value.rstrip(b" \t").rfind(b" ") + 1]
            parts.append(re.escape(name + colon + space) + value_of(key, value.rstrip(b" \t")))
        else:
            parts.append(re.escape(field))
    if not found or len(groups) != len(varying) + 1 or b"content-length" not in groups:
        return None
    order = (*(groups[name] for name in varying), groups[b"content-length"], len(groups) + 1)
    return re.escape(b"\r\n").join(parts) + re.escape(HEAD_END) + b"(.*)", order


class Shapes:
    """The shapes that are known, the newest ones. To learn one costs as much as a hundred requests save, so only so many are
    learned before `rest` is called, which is once a second: a client that never says the same twice teaches nothing."""

    def __init__(self, most: int = 256, lessons: int = 16):
        self._known: dict[bytes, Shape] = {}
        self._most = most
        self._lessons = lessons
        self._left = lessons

    def rest(self) -> None:
        self._left = self._lessons

    def learn(self, request: bytes, varying: tuple[bytes, ...]) -> Shape | None:
        """The shape of this request; None if it has none, or too many were learned just now."""
        found = pattern_of(request, varying)
        if found is None:
            return None
        pattern, order = found
        shape = self._known.get(pattern)
        if shape is None and self._left:
            self._left -= 1
            if len(self._known) == self._most:
                del self._known[next(iter(self._known))]
            shape = self._known[pattern] = Shape(pattern, order)
        return shape


class Again(Protocol):
    """What answers recognised requests, all that came in one turn of the loop at once; it is given the values of each."""

    def who(self, requests: list[tuple[bytes, ...]]) -> tuple[list[str | None], list[int]]:
        """Whose each of them is; and the places of those of which that is not certain (None), which are to be read as the first one was."""

    def answer(self, names: list[str], requests: list[tuple[bytes, ...]], then: Callable[[Sequence[bytes | Refusal]], None]) -> None:
        """Tell once, for each in its order, the JSON of a 200, or why there is none."""
