"""Requests out of a grammar, right, wrong and tampered with, at PERE's door and at Tornado's: what both read they read alike, and where
one reads what the other refuses, one table says why. Nothing else may differ."""

import logging
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, NamedTuple

import pytest
from doors import LAST, Caller, House, io_loop, no_surprises, on_uvloop, opened, tornado  # noqa: F401
from grammar import conversations, requests
from hypothesis import event, given, settings
from processes import SECONDS

MAX_BODY = 2000  # bytes
LASTS = LAST * 40  # more than a body may swallow: one of them is heard, or what came before is refused
REFUSED, READ = "refused", "read"

PERE, TORNADO, BOTH = "PERE", "Tornado", "both"


class Difference(NamedTuple):
    """Who refuses it (`BOTH`: nobody, but they read it differently), what such bytes have in them, which codes PERE gives if it is the
    one, the argument, and an example."""

    refuses: str
    bytes: bytes
    codes: tuple[str, ...]
    why: str
    example: bytes


HOST = b"\r\nHost: a\r\n"
DIFFERENCES = {
    "a fragment": Difference(
        PERE, rb" [^ \r\n]*#", ("bad_target",), "RFC 9112, 3.2: no form of a target has one.", b"GET /echo#a HTTP/1.1" + HOST + b"\r\n"),
    "a target that is not of this server": Difference(
        PERE, rb" [^/ ]", ("bad_target", "bad_http"), "RFC 9112, 3.2: what is neither a path, nor http(s), nor *, is none of the forms; Tornado finds nothing at "
        "such an address. RFC 9110, 4.2.4: somebody's name before the host is an error.", b"GET http://b@a/echo HTTP/1.1" + HOST + b"\r\n"),
    "characters that no URI has": Difference(
        PERE, rb" /[^ \r\n]*[\x7f-\xff\t]", ("bad_http",), "RFC 9112, 3.2, by RFC 3986, 2: such a target is invalid.", b"GET /echo\xff HTTP/1.1" + HOST + b"\r\n"),
    "a bare line feed": Difference(
        PERE, rb"(?<!\r)\n", ("bad_http", "unknown_method"), "RFC 9112, 2.2: a recipient MAY take it for a line end. Not all do, so a request could be hidden in "
        "what another one takes for a value.", b"GET /echo HTTP/1.1\nHost: a\n\n"),
    "a method that nobody knows": Difference(
        PERE, rb"", ("unknown_method",), "RFC 9110, 9.1: 501 is for a method that is not known, 405 for one that is not allowed. Tornado says 405 to any word.",
        b"BREW /echo HTTP/1.1" + HOST + b"\r\n"),
    "a method of another protocol": Difference(
        PERE, rb"(?:PRI|CONNECT) ", ("bad_http", "upgrade", "bad_target"), "RFC 9113, 3.4: PRI begins HTTP/2. RFC 9110, 9.3.6: CONNECT has no body, and an "
        "origin server may refuse it.", b"PRI /echo HTTP/1.1" + HOST + b"\r\n"),
    "a Host that is none": Difference(
        PERE, rb"(?i)host:", ("bad_host",), "RFC 9112, 3.2: a server MUST refuse it. Tornado takes half an address.", b"GET /echo HTTP/1.1\r\nHost: [::1\r\n\r\n"),
    "a header twice that decides something": Difference(
        PERE, rb"", ("repeated_header",), "RFC 9110, 5.3: what is no list MUST NOT stand twice.", b"GET /echo HTTP/1.1" + HOST + b"Device: a\r\nDevice: b\r\n\r\n"),
    "the same length twice": Difference(
        PERE, rb"(?is)content-length:.*content-length:|content-length:\s*\d+ *,", ("bad_http",), "RFC 9110, 8.6: a recipient may refuse it.",
        b"POST /echo HTTP/1.1" + HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nb"),
    "HTTP/1.2 and more": Difference(
        PERE, rb"HTTP/1\.[2-9]", ("bad_http",), "RFC 9110, 2.5: it would be read as HTTP/1.1. There is no such version, and no client that says it.",
        b"GET /echo HTTP/1.2" + HOST + b"\r\n"),
    "chunks by HTTP/1.0": Difference(
        PERE, rb"(?is)HTTP/1\.0.*transfer-encoding", ("bad_http",), "RFC 9112, 6.1: the framing of such a message is faulty.",
        b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "close among other words": Difference(
        PERE, rb"(?is)connection:[^\r\n]*(?:,|\r\n.*connection:)", ("",), "RFC 9112, 9.3: Connection is a list, and `close` anywhere in it makes this request the "
        "last. Tornado only knows the word alone.", b"GET /echo HTTP/1.1" + HOST + b"Connection: keep-alive, close\r\n\r\n"),
    "a tunnel": Difference(
        PERE, rb"CONNECT ", ("",), "RFC 9110, 9.3.6: what follows a CONNECT is not HTTP of this server, so it is the last.", b"CONNECT /echo HTTP/1.1" + HOST + b"\r\n"),
    "empty lines before a request": Difference(
        TORNADO, rb"\A[\r\n]+|\r\n\r\n[\r\n]+", (), "RFC 9112, 2.2: a server SHOULD ignore at least one. Nothing is hidden in a line that is empty.",
        b"\r\n\r\nGET /echo HTTP/1.1" + HOST + b"\r\n"),
    "a trailer": Difference(
        TORNADO, rb"\n0[^\n]*\r\n[^\r\n:]+:", (), "RFC 9112, 7.1.2: chunks may have one. PERE reads past it, and keeps nothing of it.",
        b"PUT /echo HTTP/1.1" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n"),
    "an extension of a chunk": Difference(
        TORNADO, rb"\n[0-9a-fA-F]+;", (), "RFC 9112, 7.1.1: a recipient MUST ignore those that it does not know. (llhttp takes an empty name for one too.)",
        b"PUT /echo HTTP/1.1" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1;a=b\r\nb\r\n0\r\n\r\n"),
    "more than one space in the line": Difference(
        TORNADO, rb"[A-Z]  +|  +HTTP", (), "RFC 9112, 3: a recipient MAY split the line at any whitespace. A target holds none in either reading.",
        b"GET  /echo  HTTP/1.1" + HOST + b"\r\n"),
    "HTTP/1.0 that stays without a length": Difference(
        TORNADO, rb"(?is)HTTP/1\.0.*keep-alive", (), "RFC 9112, 9.3: a client that says keep-alive may go on. RFC 9112, 6.3: without a length there is no body.",
        b"POST /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
    "another protocol of the same form": Difference(
        TORNADO, rb"RTSP/1\.[01]|ICE/1\.[01]", (), "RFC 9112, 2.3: its name is HTTP, but llhttp also reads RTSP and ICE, and httptools does not tell which it was. "
        "The framing is the same, and no proxy for HTTP passes it on.", b"GET /echo RTSP/1.0" + HOST + b"\r\n"),
    "the absolute form": Difference(
        BOTH, rb" (?i:https?)://", (), "RFC 9112, 3.2.2: a server MUST accept it, and take the host in it for the one in Host. Tornado looks for it as if it were a path.",
        b"GET http://b.test/echo HTTP/1.1" + HOST + b"\r\n"),
}


async def outcomes(caller: Caller, said: bytes) -> list[tuple[Any, ...]]:
    """What became of each request: how it was read, or that it was refused, by which code if one is told; that is the last."""
    found: list[tuple[Any, ...]] = []
    await caller.send(said + LASTS)
    caller._rest = await caller.rest()
    while caller._rest:
        answer = await caller.answer()
        if answer.status == 200:
            told = answer.json
            found.append((READ, told["method"], told["path"], told["query"], told["fields"], told["body"], told["host"]))
        elif answer.status in (204, 404, 405):  # of which is told nothing but that they were found right
            found.append((READ, answer.status))
        elif answer.status != 100:
            found.append((REFUSED, answer.json["error"] if answer.body else ""))
    # An end without a word is a refusal too, unless somebody heard that it is the last.
    return found if found and (found[-1][0] == REFUSED or found[-1][2:3] == ("/echo/last",)) else [*found, (REFUSED, "")]


class Doors:
    """Both doors, open."""

    def __init__(self, io_loop: Any, house: House, port: int):  # noqa: F811
        self._run = partial(io_loop.run_sync, timeout=SECONDS)
        self._house = house
        self._port = port

    def outcomes(self, said: bytes) -> list[list[tuple[Any, ...]]]:
        """Ours, and those at Tornado's."""
        return self._run(lambda: self._both(said))

    def difference(self, said: bytes) -> tuple[str, tuple[Any, ...], tuple[Any, ...]] | None:
        """The first thing on which the two do not agree, and who refuses it."""
        ours, theirs = self.outcomes(said)
        for our, their in zip(ours, theirs, strict=False):
            if our[0] == their[0] == REFUSED:
                return None
            if our != their:
                return PERE if our[0] == REFUSED else TORNADO if their[0] == REFUSED else BOTH, our, their
        assert len(ours) == len(theirs)
        return None

    async def _both(self, said: bytes) -> list[list[tuple[Any, ...]]]:
        found = []
        for caller in (await self._house.caller(), await Caller.open(self._port)):
            try:
                found.append(await outcomes(caller, said))
            finally:
                caller.close()
        self._house.callers.clear()
        assert self._house.take_log() == []
        return found


@pytest.fixture
def doors(io_loop) -> Iterator[Doors]:  # noqa: F811
    # Tornado logs what it refuses.
    logging.getLogger("tornado.general").setLevel(logging.ERROR)
    stack = AsyncExitStack()

    async def enter() -> Doors:
        house = await stack.enter_async_context(opened(max_event_bytes=MAX_BODY))
        port, _ = await stack.enter_async_context(tornado(MAX_BODY))
        return Doors(io_loop, house, port)

    yield io_loop.run_sync(enter)
    io_loop.run_sync(stack.aclose, timeout=SECONDS)
    logging.getLogger("tornado.general").setLevel(logging.NOTSET)


def reasons(said: bytes, who: str, ours: tuple[Any, ...]) -> list[str]:
    """What in the table explains a difference."""
    return [name for name, row in DIFFERENCES.items()
            if row.refuses == who and re.search(row.bytes, said) and (who != PERE or ours[1] in row.codes)]


@on_uvloop
@pytest.mark.parametrize("name", DIFFERENCES)
def test_each_difference_is_there_for_its_reason(doors, name):
    row = DIFFERENCES[name]
    difference = doors.difference(row.example)
    assert difference is not None, "Tornado and PERE agree by now, so the reason is none any more"
    assert difference[0] == row.refuses
    assert name in reasons(row.example, *difference[:2]), difference


@on_uvloop
def test_whatever_is_said_is_read_alike_or_there_is_a_reason(doors):
    @settings(max_examples=500, database=None)
    @given(conversations())
    def alike(said: bytes) -> None:
        difference = doors.difference(said)
        if difference is not None:
            found = reasons(said, *difference[:2])
            assert found, difference
            event(found[0])

    alike()


@on_uvloop
def test_what_is_right_is_read(doors):
    """PERE refuses more than Tornado, but nothing that is right."""

    @settings(max_examples=150, database=None)
    @given(requests(most_wrong=0).filter(lambda said: b"HTTP/1.0" not in said or b"chunked" not in said.lower()))
    def right(said: bytes) -> None:
        ours, _ = doors.outcomes(said)
        assert ours[0][0] == READ, ours

    right()
