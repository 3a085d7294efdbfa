"""Connections of a load: lines that ask and are answered, and feeds that are read. What is heard is counted, timed and dropped.

A feed looks for the stamps of its events in the bytes as they come, without taking the frames apart: a load that is dearer than its
server measures itself.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Protocol

import httptools

from pere.load.histogram import Histogram

Then = Callable[[int, bytes], None]

SHOWN = 300  # bytes of a refusal that are told

STAMPS = re.compile(rb'"@(\d{20})"')
# An id, and the stamp of the event that it is of; ours stands first in the payload.
NAMED = re.compile(rb'id: ?([^\r\n]+)\r?\n(?:event: ?[^\r\n]*\r?\n)?data: ?\{"ts":"@(\d{20})"')
# What a read ends with where it holds whole frames only, in chunks or not.
WHOLE = (b"\n\r\n", b"\n\n")


class Line(asyncio.Protocol):
    """A connection that is kept. Requests may follow each other without waiting; answers come in their order."""

    def __init__(self, lines: "Lines"):
        self._lines = lines
        self._asked: deque[tuple[int, Then | None]] = deque()
        self._parser: Any = httptools.HttpResponseParser(self)
        self._body = b""
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, request: bytes, since: int, then: Then | None) -> None:
        self._asked.append((since, then))
        # One that is closing has lost its server, and says so in a moment; nothing may be written to it any more.
        if not self.transport.is_closing():
            self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        since, then = self._asked.popleft()
        body, self._body = self._body, b""
        self._lines.answered(self, self._parser.get_status_code(), body, since, then, bool(self._asked))

    def connection_lost(self, error: Exception | None) -> None:
        self._lines.broke(self, len(self._asked))


class Lines:
    """Some lines, and who waits for one. `latency` is from when a request was to be sent until its answer was there."""

    def __init__(self) -> None:
        # The one that was idle longest is the next to ask, so that none is closed for having said nothing for long.
        self.idle: deque[Line] = deque()
        self.waiting: deque[tuple[bytes, int, Then | None]] = deque()
        self.latency = Histogram()
        self.asked = self.answers = self.refused = 0
        self.trouble = ""
        self.closing = False
        self.on_answer: Callable[[], None] = lambda: None
        self.all: list[Line] = []

    async def open(self, connect: "Connect", count: int) -> None:
        for _ in range(count):
            line: Line = await connect(lambda: Line(self))
            self.all.append(line)
            self.idle.append(line)

    def ask(self, request: bytes, since: int = 0, then: Then | None = None) -> None:
        """Ask on a line that is idle, or when one is. `since` is when it was to be sent; 0 is when it is."""
        self.asked += 1
        if self.idle:
            self.idle.popleft().ask(request, since or monotonic_ns(), then)
        else:
            self.waiting.append((request, since, then))

    def follow(self, request: bytes, since: int) -> None:
        """Ask on the first line, behind what it was asked before."""
        self.asked += 1
        self.all[0].ask(request, since, None)

    def answered(self, line: Line, status: int, body: bytes, since: int, then: Then | None, is_busy: bool) -> None:
        self.answers += 1
        now = monotonic_ns()
        self.latency.add((now - since) // 1000)
        # Many are answered 200 though one of them may not be.
        wrong = body.count(b'"error":') if 200 <= status < 300 else 1
        if wrong:
            self.refused += wrong
            self.trouble = self.trouble or f"{status} {body[:SHOWN].decode('utf-8', 'replace')}"
        if then is not None:
            then(status, body)
        if not is_busy:
            if self.waiting:
                request, since, then = self.waiting.popleft()
                line.ask(request, since or now, then)
            else:
                self.idle.append(line)
        self.on_answer()

    def broke(self, line: Line, unanswered: int) -> None:
        if self.closing:
            return
        if line in self.idle:
            self.idle.remove(line)
        if unanswered or not self.idle:
            self.refused += unanswered
            self.trouble = self.trouble or f"a connection was closed with {unanswered} requests unanswered"
            self.on_answer()

    def close(self) -> None:
        self.closing = True
        for line in self.all:
            line.transport.close()


class Connect(Protocol):
    async def __call__(self, made: Callable[[], Any]) -> Any:
        """A protocol that is connected to the server."""


class Listener(Protocol):
    """Whose feed it is: the fleet. `want` is how many events each feed is to get."""

    want: int
    latency: Histogram
    delivered: int
    answers: bool

    def opened(self, feed: "Feed") -> None: ...

    def refused(self, feed: "Feed", text: bytes) -> None: ...

    def lost(self, feed: "Feed") -> None: ...

    def full(self, feed: "Feed") -> None:
        """It has got all that it was to get."""

    def owes(self, feed: "Feed", id: bytes) -> None:
        """It has got an event that wants a receipt."""


class Feed(asyncio.Protocol):
    """One device's feed. One that is `stuck` never reads again once it is open."""

    __slots__ = ("channel", "closing", "got", "is_open", "listener", "number", "stuck", "tail", "transport")

    def __init__(self, listener: Listener, number: int, channel: str, stuck: bool):
        self.listener = listener
        self.number = number
        self.channel = channel
        self.stuck = stuck
        self.got = 0
        self.tail = b""
        self.is_open = False
        self.closing = False
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.tail:
            data, self.tail = self.tail + data, b""
        if not self.is_open:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.tail = data
                return
            if not data.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
                self.closing = True
                self.listener.refused(self, data)
                return
            self.is_open = True
            self.listener.opened(self)
            if self.stuck:
                self.transport.pause_reading()
                return
            data = data[end + 4 :]
        listener = self.listener
        if not data.endswith(WHOLE):
            end = max(data.rfind(b"\n\n"), data.rfind(b"\n\r\n")) + 1
            data, self.tail = data[:end], data[end:]
        now, got = monotonic_ns(), self.got
        if listener.answers:
            # Who gives its events no ids is answered with what the event itself says; here that is its stamp.
            for id, stamp in NAMED.findall(data) or ((stamp, stamp) for stamp in STAMPS.findall(data)):
                listener.latency.add((now - int(stamp)) // 1000)
                self.got += 1
                listener.owes(self, id)
        else:
            for stamp in STAMPS.findall(data):
                listener.latency.add((now - int(stamp)) // 1000)
                self.got += 1
        if self.got != got:
            listener.delivered += self.got - got
            if got < listener.want <= self.got:
                listener.full(self)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closing:
            self.listener.lost(self)

    def close(self) -> None:
        self.closing = True
        self.transport.close()
