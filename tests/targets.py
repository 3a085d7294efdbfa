"""What is fuzzed: each target takes any bytes, does something with them that a stranger can make PERE do, and raises AssertionError, or
whatever else went wrong, if that was not as it should be. `test_fuzz.py` runs them for seconds, `fuzz.py` for as long as you like.
"""

import logging
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from math import ulp
from typing import Any
from urllib.parse import parse_qsl, quote_from_bytes

import orjson
import uvloop
from doors import LAST, House, facts, opened
from hypothesis import strategies as st
from processes import SECONDS
from test_shape import REQUEST, assert_it_means_the_same, requests
from test_sse import STREAMS, by_the_standard, decoded
from tornado.ioloop import IOLoop
from wire import Wire

from grammar import conversations
from pere import sse
from pere.config import Config
from pere.errors import BadRequest
from pere.event import format_id, parse_id, parse_time, timestamp
from pere.handlers.base import Query, number, seconds
from pere.http1 import MAX_HOSTS
from pere.names import channel_name, device_name, event_type, pattern
from pere.server import Server


class Target:
    """Something to be fuzzed. `examples` is how hypothesis draws bytes for it, `seeds` what a fuzzer may begin with."""

    seeds: tuple[bytes, ...] = ()

    def __init__(self) -> None:
        """Make ready."""

    def __call__(self, said: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Clear away."""


class Logged(logging.Handler):
    """A line in the log at `error` is a find: a mistake of ours, or a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class Live(Target):
    """Has a loop of its own, on which something is open."""

    def __init__(self) -> None:
        self._loop = IOLoop(make_current=True, asyncio_loop=uvloop.new_event_loop())
        self._stack = AsyncExitStack()
        self._logged = Logged()
        logging.getLogger().addHandler(self._logged)
        self._loop.run_sync(self.open, timeout=SECONDS)

    async def open(self) -> None:
        raise NotImplementedError

    async def say(self, said: bytes) -> None:
        raise NotImplementedError

    def __call__(self, said: bytes) -> None:
        self._loop.run_sync(lambda: self.say(said), timeout=SECONDS)
        assert not self._logged.lines, self._logged.lines

    def close(self) -> None:
        logging.getLogger().removeHandler(self._logged)
        self._loop.run_sync(self._stack.aclose, timeout=SECONDS)
        self._loop.close()


class Http(Live):
    """Any bytes on a connection: all at once and in pieces they have the same answers, and each answer is one of HTTP."""

    examples = conversations()
    seeds = (b"POST /hot HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody", b"PUT /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4;a=b\r\nbody\r\n0\r\nX: y\r\n\r\n",
             b"POST /receipt/a HTTP/1.1\r\nHost: a\r\nDevice: d\r\nLast-Event-ID: 1-1\r\nContent-Length: 0\r\n\r\n" * 3, b"GET http://a/echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    house: House

    async def open(self) -> None:
        self.house = await self._stack.enter_async_context(opened(max_event_bytes=2000))

    async def say(self, said: bytes) -> None:
        said = said[:4000]
        # No path that waits for a test, and none that answers with what it is asked for.
        for word in (b"/later", b"/slow", b"held", b"broken", b"/raises", b"/whole", b"/pieces", b"/detaches", b"/streamed", b"HEAD"):
            said = said.replace(word, b"/echo")
        places = sorted({byte * len(said) // 256 for byte in said[:6]})
        pieces = [said[start:end] for start, end in zip([0, *places], [*places, len(said)], strict=True)]
        answers = []
        for way in ([said + LAST * 60], [*pieces, LAST * 60]):
            caller = await self.house.caller()
            await caller.say(*way)
            answers.append([facts(answer) for answer in await caller.answers()])
            caller.close()
        self.house.callers.clear()
        assert answers[0] == answers[1]
        assert 500 not in {status for status, _, _ in answers[0]}
        assert len(self.house.door.hosts) <= MAX_HOSTS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8) | st.sampled_from(
        ["c", "d", "pere.bye", "1-1", "9999999999999-0", "processed", "failed", "retry", "working", "delivered", "all", "90%", "https://a.example/", "2014-12-01T14:28:30.993Z"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
        ["channel", "data", "type", "to", "ttl", "receipt", "need", "callback", "event_id", "state", "status", "at", "delay", "device", "receipts", "up_to", "url", "types", "channels",
         "content_type", "ids", "since", "until"]) | st.text(max_size=3), inner, max_size=6), max_leaves=12).map(lambda value: orjson.dumps(value) if _fits(value) else b"{}")
FORM = st.lists(st.tuples(st.sampled_from(["event_id", "state", "status", "at", "delay", "device", "to", "type", "x"]), st.binary(max_size=8)), max_size=4).map(
    lambda fields: b"&".join(name.encode() + b"=" + quote_from_bytes(value, safe="/+=;").encode() for name, value in fields))

# What the bytes behind the first one are put into.
ROUTES = [
    b"POST /push/c HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n%l", b"POST /push/c HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n%l",
    b"POST /push HTTP/1.1\r\nHost: a\r\n%l", b"POST /push HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-ndjson\r\n%l", b"POST /push/c?%q HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n1",
    b"POST /push/%q HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n1", b"POST /push/c HTTP/1.1\r\nHost: a\r\nPrefer: %v\r\nIdempotency-Key: %v\r\nContent-Length: 1\r\n\r\n1",
    b"POST /feedback/c HTTP/1.1\r\nHost: a\r\nDevice: d\r\nLast-Event-ID: 1-1\r\n%l", b"POST /feedback/c HTTP/1.1\r\nHost: a\r\nDevice: d\r\nContent-Type: application/json\r\n%l",
    b"POST /feedback/c?%q HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", b"POST /feedback/c HTTP/1.1\r\nHost: a\r\nDevice: %v\r\nLast-Event-ID: %v\r\nContent-Length: 0\r\n\r\n",
    b"POST /feedback HTTP/1.1\r\nHost: a\r\nDevice: d\r\n%l", b"GET /feed/c?%q HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /feed?%q HTTP/1.1\r\nHost: a\r\nDevice: d\r\n\r\n",
    b"GET /feed/c HTTP/1.1\r\nHost: a\r\nDevice: %v\r\nLast-Event-ID: %v\r\n\r\n", b"GET /feed?channel=%q HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /receipts/c?%q HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /events/c?%q HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /events/c/%q HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /events/c/1-1/devices?%q HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /admin/devices?%q HTTP/1.1\r\nHost: a\r\n\r\n", b"DELETE /admin/devices/%q HTTP/1.1\r\nHost: a\r\n\r\n", b"POST /webhooks HTTP/1.1\r\nHost: a\r\n%l",
    b"PATCH /webhooks/%q HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}", b"POST /webhooks/x/replay HTTP/1.1\r\nHost: a\r\n%l", b"GET /webhooks/x/dead?%q HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS /%q HTTP/1.1\r\nHost: a\r\nOrigin: %v\r\n\r\n", b"GET /%q HTTP/1.1\r\nHost: a\r\n\r\n",
]


def _fits(value: Any) -> bool:
    try:
        return bool(orjson.dumps(value))
    except TypeError:
        return False  # an integer of more than 64 bits, or half a character


class Routes(Live):
    """Any bytes in each place where a request says something to a whole server: they are taken or refused, and it serves the next one."""

    examples = st.builds(lambda route, said: bytes([route]) + said, st.integers(0, len(ROUTES) - 1), JSON | JSON | FORM | st.binary(max_size=60) | st.lists(JSON, max_size=3).map(b"\n".join))
    seeds = (b'\x02[{"channel":"c","data":18446744073709551616,"to":["d"],"ttl":60}]', b'\x0b{"receipts":[{"event_id":"1-1","state":"retry","delay":1}]}', b"\x0cdevice=d&from=all&ack_wait=1",
             b'\x16{"url":"https://a.example/","types":["pere.event.completed"]}', b"\x11after=1-1&limit=3")
    server: Server

    async def open(self) -> None:
        self.server = Server(Config(port=0, store="memory:", max_wait=1, max_webhooks=0, max_feeds_per_device=2, backlog_events=10))
        await self.server.start()
        self._stack.push_async_callback(self.server.stop)

    async def say(self, said: bytes) -> None:
        route, said = ROUTES[(said[:1] or b"\0")[0] % len(ROUTES)], said[1:6000]
        if route.endswith(b"%l"):
            request = route.replace(b"%l", b"Content-Length: %d\r\n\r\n%b" % (len(said), said))
        else:
            quoted = re.sub(rb"[^!-~]|#", lambda found: b"%%%02X" % found[0][0], said)
            request = route.replace(b"%q", quoted).replace(b"%v", re.sub(rb"[\0-\x08\x0a-\x1f\x7f]", b"?", said))
        wire = await Wire.open(self.server.port)
        try:
            await wire.send(request)
            head = await wire.head()
            assert head.status in (200, 201, 202, 204, 304, 400, 404, 405, 409, 410, 413, 414, 415, 429, 431, 503), (request, head)
            if head.status >= 400:
                wire._rest = b"HTTP/1.1 400 \r\n" + b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in head.headers.items()) + b"\r\n" + wire._rest
                assert (await wire.answer()).error[1] != "internal"
        finally:
            wire.close()


class Decoder(Target):
    """A stream of events, wherever it is cut, says what the standard reads in it."""

    examples = st.builds(lambda cuts, stream: bytes(cuts) + b"\0" + stream, st.lists(st.integers(1, 255), max_size=4), STREAMS)
    seeds = (b"\x05\x09\0\xef\xbb\xbfid: 1\r\ndata: a\r\ndata\r\n\r\nretry: 50\n\nevent: b\rdata: c\r\r",)

    def __call__(self, said: bytes) -> None:
        cuts, _, stream = said.partition(b"\0")
        assert decoded(stream, *cuts) == decoded(stream) == by_the_standard(stream)


class Frame(Target):
    """Whatever an event says comes out as one event that says it, whatever stands before and behind."""

    examples = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\r\n:\0 "), max_size=30).map(str.encode)
    seeds = (b"a\r\n\r\revent: b\n\n", b"\n", b"data: a")

    def __call__(self, said: bytes) -> None:
        framed = b"data: first\n\n" + sse.frame(said, id=b"1-1", event=b"type") + b"data: last\n\n"
        found, last, _ = decoded(framed)
        lines = re.sub("\r\n|\r", "\n", said.decode("utf-8", "replace"))
        assert [(message.data, message.event) for message in found] == [("first", "message"), (lines, "type"), ("last", "message")]
        assert last == "1-1"
        size, _, rest = sse.chunk(framed).partition(b"\r\n")
        assert (int(size, 16), rest) == (len(framed), framed + b"\r\n")


def meant(glob: str, name: str) -> bool:
    """A pattern read in the simplest way there is."""
    if glob in ("", "**"):
        return bool(glob) or not name
    if glob[0] == "*":
        return meant(glob[1:], name) or bool(name) and name[0] != "." and meant(glob, name[1:])
    return bool(name) and glob[0] == name[0] and meant(glob[1:], name[1:])


class Words(Target):
    """Ids, names, patterns, numbers, times and queries: what is taken says what it seems to, and holds nothing that it may not."""

    examples = st.text("abc.*-0123456789:TZ+&=%;/~@\r\n\0 \u0661é", max_size=24).map(str.encode) | st.builds(
        "{}-{}".format, st.integers(0, 1 << 50), st.integers(0, 1 << 22)).map(str.encode) | st.datetimes().map(lambda time: (time.isoformat() + "Z").encode())
    seeds = (b"orders.*.a*b.**", b"1417444110993-17", b"2014-12-01T14:28:30.993+01:00", b"6537-01-01T00:00:00.004990Z", b"a=b&c=%41+%ff;&=&&d", b"12.5")

    def __call__(self, said: bytes) -> None:
        text = said.decode("utf-8", "replace")
        for read, wanted in ((channel_name, r"[\w.:~-]{1,128}"), (device_name, r"[\w.:@~-]{1,128}"), (event_type, r"(?!pere\.)[\w.:/~-]{1,128}")):
            assert (self._taken(read, text) == text) is bool(re.fullmatch(wanted, text, re.ASCII))
        id = self._taken(parse_id, text)
        assert id is None or 0 <= id < 1 << 63 and format_id(id) == text
        matches = self._taken(pattern, text[:24])
        if matches is not None:
            for name in (text.replace("*", ""), text.replace("*", "a"), text.replace("*", "a.b"), "a", "a.b.c", text[::-1].replace("*", ".")):
                assert bool(matches(name)) is meant(text[:24], name), (text[:24], name)
        whole = self._taken(lambda text: number(text, "x", 0, 10**11), text)
        assert whole is None or re.fullmatch("[0-9]{1,12}", text) and whole == int(text)
        duration = self._taken(lambda text: seconds(text, "x", 3600), text)
        assert duration is None or re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) and duration == float(text)
        time = parse_time(text)
        assert time is None or time >= 0 and abs((parse_time(timestamp(time)) or 0.0) - time) < 0.001 + 2 * ulp(time)  # a float knows the year 6537 to 30 us
        query = self._taken(Query, said)
        if query is not None:
            fields = parse_qsl(text, keep_blank_values=True)
            assert all(query.one(name) == dict(fields)[name] and query.every(name) == [value for key, value in fields if key == name] for name, _ in fields)

    @staticmethod
    def _taken(read: Callable[[Any], Any], said: Any) -> Any:
        try:
            return read(said)
        except BadRequest as refusal:
            assert len(refusal.message) < 400 and refusal.message.isprintable()
            return None


class Recognised(Target):
    """A request that is recognised by the shape of another one means what the parser reads in it."""

    examples = requests().map(lambda said: said) | st.builds(lambda place, byte: REQUEST[:place] + bytes([byte]) + REQUEST[place + 1 :], st.integers(0, len(REQUEST) - 1), st.integers(0, 255))
    seeds = (REQUEST,)

    def __call__(self, said: bytes) -> None:
        assert_it_means_the_same(REQUEST, said)


TARGETS: dict[str, type[Target]] = {"http": Http, "routes": Routes, "decoder": Decoder, "frame": Frame, "words": Words, "recognised": Recognised}
