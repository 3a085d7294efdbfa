"""HTTP spoken by hand over real sockets, for tests: one connection, read only when somebody asks.

A client that does not read is half of what is tested here, so nothing reads ahead: what a test has not asked for stays
in the socket, and then at the server.
"""

import asyncio
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlencode

import orjson

from pere.sse import Decoder, Message

PIECE = 64 * 1024


class Answer:
    """A whole answer. `headers` by name in lower case."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes = b""):
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        """The status and the code of a refusal, which is always JSON with these two fields and a sentence in the second."""
        told = self.json
        assert self.headers["content-type"] == "application/json"
        assert told.keys() == {"error", "message"}
        assert len(told["message"]) > 10
        return self.status, told["error"]

    def __repr__(self) -> str:
        return f"<{self.status} {self.body[:300]!r}>"


class Secure(NamedTuple):
    """A port at which TLS is spoken, and whom a client believes there."""

    port: int
    context: ssl.SSLContext


Way = int | str | Secure  # a port, the path of a Unix socket, or a port with TLS


class Wire:
    """One connection. `buffer` bounds what the kernel takes for a client that does not read."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self._rest = b""
        self.tls: ssl.SSLObject | None = None
        self._arriving = self._leaving = ssl.MemoryBIO()

    @classmethod
    async def open(cls, way: Way, buffer: int = 0, source: str = "") -> Self:
        sock = socket.socket(socket.AF_UNIX if isinstance(way, str) else socket.AF_INET)
        if source:
            sock.bind((source, 0))
        sock.setblocking(False)
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        wire = cls(sock)
        try:
            port = way.port if isinstance(way, Secure) else way
            await asyncio.get_running_loop().sock_connect(sock, port if isinstance(port, str) else ("127.0.0.1", port))
            if isinstance(way, Secure):
                await wire.shake_hands(way.context)
        except OSError:
            sock.close()
            raise
        return wire

    async def shake_hands(self, context: ssl.SSLContext, request: bytes = b"") -> None:
        """And say this in one breath with the end of it."""
        self._arriving, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = tls = context.wrap_bio(self._arriving, self._leaving, server_hostname="localhost")

        def shake() -> None:
            tls.do_handshake()
            tls.write(request)

        await self._over_tls(shake)

    async def _over_tls(self, step: Callable[[], Any]) -> Any:
        """Do this as soon as enough has arrived for it; bytes that it has to say are sent."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                await self._send(self._leaving.read())
                piece = await loop.sock_recv(self.sock, PIECE)
                self._arriving.write(piece) if piece else self._arriving.write_eof()
            finally:
                await self._send(self._leaving.read())

    async def _send(self, data: bytes) -> None:
        if data:
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def send(self, data: bytes) -> None:
        if self.tls is not None:
            self.tls.write(data)
            data = self._leaving.read()
        await self._send(data)

    async def more(self) -> bytes:
        """Some bytes; none at the end, however it came. That takes a turn of the loop: who asks again and again must not hold up the clock of the test."""
        rest, self._rest = self._rest, b""
        taken = rest
        with suppress(ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            if (tls := self.tls) is not None and not rest:
                taken = await self._over_tls(lambda: tls.read(PIECE))
            elif not rest:
                taken = await asyncio.get_running_loop().sock_recv(self.sock, PIECE)
        if not taken:
            await asyncio.sleep(0)
        return taken

    async def until(self, mark: bytes) -> bytes:
        taken = b""
        while mark not in taken:
            piece = await self.more()
            if not piece:
                raise EOFError(f"the connection ended after {taken!r}")
            taken += piece
        taken, _, self._rest = taken.partition(mark)
        return taken

    async def exactly(self, size: int) -> bytes:
        taken = b""
        while len(taken) < size:
            piece = await self.more()
            if not piece:
                raise EOFError(f"{size - len(taken)} bytes are missing after {taken!r}")
            taken += piece
        taken, self._rest = taken[:size], taken[size:]
        return taken

    async def rest(self) -> bytes:
        taken = b""
        while piece := await self.more():
            taken += piece
        return taken

    async def head(self) -> Answer:
        line, *fields = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        return Answer(int(line.split(" ")[1]), {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)})

    async def answer(self, method: str = "GET") -> Answer:
        """The next answer, to a request of this method."""
        answer = await self.head()
        if method == "HEAD" or answer.status in (204, 304):
            return answer
        if answer.headers.get("transfer-encoding") == "chunked":
            while size := int(await self.until(b"\r\n"), 16):
                answer.body += await self.exactly(size)
                assert await self.exactly(2) == b"\r\n"
            assert await self.until(b"\r\n") == b""
        elif "content-length" in answer.headers:
            answer.body = await self.exactly(int(answer.headers["content-length"]))
        else:
            answer.body = await self.rest()
        return answer

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Die without a goodbye: the other side gets a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def said(method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None, version: str = "1.1") -> bytes:
    """The bytes of a request; what a header says is not checked, so that anything can be said."""
    fields = {"Host": "test"} | ({"Content-Length": str(len(body))} if body or method == "POST" else {}) | (headers or {})
    lines = [f"{method} {target} HTTP/{version}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("utf-8") + b"\r\n\r\n" + body


async def request(port: Way, method: str, target: str, body: bytes | str | object = b"", **headers: str) -> Answer:
    """One request on a connection of its own; a body that is neither bytes nor text is sent as JSON. `Last_Event_Id` in Python is
    `Last-Event-Id` on the wire."""
    if isinstance(body, str):
        body = body.encode()
    elif not isinstance(body, bytes):
        body = orjson.dumps(body)
        headers = {"Content-Type": "application/json"} | headers
    wire = await Wire.open(port)
    try:
        await wire.send(said(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()}))
        return await wire.answer(method)
    finally:
        wire.close()


async def begun(port: Way, method: str, target: str, body: bytes = b"", **headers: str) -> Answer:
    """The same, for what may be a feed: of an answer without an end, its head."""
    wire = await Wire.open(port)
    try:
        await wire.send(said(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()}))
        answer = await wire.head()
        if method != "HEAD" and "content-length" in answer.headers:
            answer.body = await wire.exactly(int(answer.headers["content-length"]))
        return answer
    finally:
        wire.close()


class Feed(Wire):
    """A feed as a device reads it. `text` is all that came so far, without the chunks; `controls` the control frames that were
    stepped over by `event`. `is_whole` tells, at the end, whether the server ended the stream as HTTP wants it."""

    answer_head: Answer

    def __init__(self, sock: socket.socket):
        super().__init__(sock)
        self.text = b""
        self.controls: list[Message] = []
        self.decoder = Decoder()
        self.is_whole = False
        self._messages: deque[Message] = deque()
        self._is_chunked = False
        self._chunks = b""

    async def start(self, target: str, headers: dict[str, str], version: str = "1.1") -> None:
        await self.send(said("GET", target, b"", headers, version))
        self.answer_head = await self.head()
        self._is_chunked = self.answer_head.headers.get("transfer-encoding") == "chunked"

    async def next(self) -> Message | None:
        """The next message of any kind; None at the end."""
        while not self._messages:
            piece = await self.more()
            if not piece:
                return None
            self._take(piece)
        return self._messages.popleft()

    async def sip(self, size: int) -> None:
        """Read no more than this, and keep it for `next`."""
        self._take(await asyncio.get_running_loop().sock_recv(self.sock, size))

    def _take(self, piece: bytes) -> None:
        body = self._dechunk(piece) if self._is_chunked else piece
        self.text += body
        self._messages += self.decoder.feed(body)

    def _dechunk(self, piece: bytes) -> bytes:
        body, self._chunks = [], self._chunks + piece
        start = 0
        while (end := self._chunks.find(b"\r\n", start)) >= 0:
            assert not self.is_whole, "something came after the last chunk"
            size = int(self._chunks[start:end], 16)
            after = end + 2 + size
            if len(self._chunks) < after + 2:
                break
            assert self._chunks[after : after + 2] == b"\r\n"
            body.append(self._chunks[end + 2 : after])
            self.is_whole = not size
            start = after + 2
        self._chunks = self._chunks[start:]
        return b"".join(body)

    async def event(self) -> Message:
        """The next that is not a control frame."""
        while True:
            message = await self.next()
            assert message is not None, f"the feed has ended after {self.text[-300:]!r}"
            if not message.event.startswith("pere."):
                return message
            self.controls.append(message)

    async def events(self, count: int) -> list[str]:
        """What the next ones say."""
        return [(await self.event()).data for _ in range(count)]

    async def control(self, name: str) -> Any:
        """What the next control frame says, which must be of this name and come before the next event."""
        message = await self.next()
        assert message is not None and message.event == name, message
        return orjson.loads(message.data)

    async def comment(self) -> None:
        """Wait for a comment that has not been seen yet; what is read meanwhile is kept."""
        while b"\n:\n\n" not in self.text:
            piece = await self.more()
            assert piece, "the feed has ended"
            self._take(piece)
        self.text = self.text.replace(b"\n:\n\n", b"\n", 1)

    async def end(self) -> list[Message]:
        """All that is still to come, to the end of the stream."""
        messages = []
        while (message := await self.next()) is not None:
            messages.append(message)
        return messages


def feed_target(channels: tuple[str, ...], **query: object) -> str:
    """One channel is a path; many, or a pattern, are a query."""
    named = [(name.rstrip("_"), value) for name, value in query.items() if value is not None]
    if len(channels) == 1 and "*" not in channels[0]:
        return f"/feed/{quote(channels[0])}" + ("?" + urlencode(named) if named else "")
    return "/feed?" + urlencode([("channel", channel) for channel in channels] + named)


async def listen(port: Way, *channels: str, device: str = "", last: str = "", version: str = "1.1", buffer: int = 0,
                 **query: object) -> Feed:
    """Open a feed and read it up to its `pere.hello`, which becomes `feed.hello`: from then on the server knows it. `last` is the
    Last-Event-ID."""
    headers = ({"Device": device} if device else {}) | ({"Last-Event-ID": last} if last else {})
    return await opened(port, feed_target(channels, **query), headers, version, buffer)


@asynccontextmanager
async def listening(port: Way, *channels: str, **wanted: Any) -> AsyncIterator[Feed]:
    """The same, as long as the `with` lasts."""
    feed = await listen(port, *channels, **wanted)
    try:
        yield feed
    finally:
        feed.close()


async def opened(port: Way, target: str, headers: dict[str, str], version: str = "1.1", buffer: int = 0) -> Feed:
    """A feed of any kind, at this address, read up to its `pere.hello`."""
    feed = await Feed.open(port, buffer)
    try:
        await feed.start(target, headers, version)
        assert feed.answer_head.status == 200, await feed.more()
        feed.hello = await feed.control("pere.hello")
    except BaseException:
        feed.close()
        raise
    return feed


async def push(port: Way, channel: str, data: object = 1, *, device: str = "", key: str = "", to: str | list[str] = (),
               **query: object) -> Answer:
    """Push what must be accepted. Text goes as text, bytes as the JSON that they are, all else as JSON."""
    kind = "text/plain" if isinstance(data, str) else "application/json"
    body = data.encode() if isinstance(data, str) else data if isinstance(data, bytes) else orjson.dumps(data)
    named = [*query.items(), *(("to", name) for name in ([to] if isinstance(to, str) else to))]
    headers = {"Content-Type": kind} | ({"Device": device} if device else {}) | ({"Idempotency-Key": key} if key else {})
    answer = await request(port, "POST", f"/push/{quote(channel)}" + ("?" + urlencode(named) if named else ""), body, **headers)
    assert answer.status == 201, answer
    return answer


async def pushed_beside(line: Wire, kept: Callable[[], int], count: int) -> list[int]:
    """Push one event after another until so many others are kept; how many these were, each time. `kept` counts all, those pushed here too."""
    seen: list[int] = []
    while not seen or seen[-1] < count:
        await line.send(said("POST", "/push/other", b"1"))
        assert (await line.answer()).status == 201
        seen.append(kept() - len(seen))
    return seen


async def back_in_step(slow: Feed, others: list[Feed], ids: list[str], push: Callable[[], Awaitable[str]], caught_up: Callable[[], Awaitable[object]]) -> None:
    """A feed that was slow is sent all these events, each once and in their order, and no gap; and then it is live like the others."""
    assert [(await slow.event()).id for _ in ids] == ids
    await caught_up()
    last = await push()
    for feed in (slow, *others):
        assert (await feed.event()).id == last
    assert slow.controls == []
