"""A front door on a real socket; behind it, handlers and hot functions that show what came through; before it, a client that
says exactly what it is told and reads only when it is asked to.

It is long because it is a whole stage: each handler and hot function is a few lines, and all tests of `test_http1*.py` ask for what they show.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import orjson
import pytest
import uvloop
from passing import passes
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, stream_request_body
from wire import Answer, Wire

from pere.auth import ANYBODY
from pere.config import Config
from pere.door import Ask, Door, Route
from pere.errors import Conflict, NotFound, Refusal, Unavailable
from pere.gate import Gate
from pere.cors import Cors
from pere.handlers.base import Handler, NotThere
from pere.http1 import Connection
from pere.shape import Again
from pere.wheel import Wheel

PATIENCE = 60  # seconds after which a test that waits for the server has failed


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def io_loop(request: pytest.FixtureRequest) -> Iterator[IOLoop]:
    """Each test runs on both loops that the server may run on; this takes the place of the one in conftest."""
    loop = IOLoop(make_current=True, asyncio_loop=request.param())
    yield loop
    loop.run_sync(asyncio.get_event_loop_policy().get_event_loop().shutdown_asyncgens)
    loop.close()


# For what takes its time and depends on no loop: the one that serves in production.
on_uvloop = pytest.mark.parametrize("io_loop", [uvloop.new_event_loop], ids=["uvloop"], indirect=True)


@pytest.fixture(autouse=True)
def no_surprises() -> None:
    """In the place of the one in conftest: `opened` sees to that, and to all loggers."""


# Behind the door


class Stage:
    """What a test and the handlers of its door have in common: each says `reached`, and may not go on before `gate` is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.reached: list[str] = []
        self.asks: list[Ask] = []
        self.transports: list[Any] = []

    async def until(self, *reached: str) -> None:
        await eventually(lambda: self.reached == list(reached), lambda: f"{self.reached} were reached, not {list(reached)}")


class Shown(Handler):
    """One for everybody, behind any door."""

    needs = ANYBODY


class Echo(Shown):
    """Any method: what a handler sees of the request."""

    methods = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

    def get(self) -> None:
        request = self.request
        fields = sorted([name.lower(), value] for name, value in request.headers.get_all())
        self.set_header("X-Seen", "yes")
        self.answer({"method": request.method, "path": request.path, "query": request.query, "uri": request.uri, "version": request.version,
                     "fields": fields, "body": request.body.decode("latin-1"), "host": request.host, "ip": request.remote_ip, "scheme": request.protocol,
                     "form": {name: [value.decode("latin-1") for value in values] for name, values in request.arguments.items()}})

    head = post = put = patch = delete = get


class Staged(Shown):
    stage: Stage


class Slow(Staged):
    """Answers when the gate opens."""

    async def get(self, word: str) -> None:
        self.stage.reached.append(word)
        await self.stage.gate.wait()
        self.answer(word)

    def on_connection_close(self) -> None:
        self.stage.reached.append("gone")


class Pieces(Staged):
    """Ten pieces, each flushed; `?length=` announces how many bytes they are going to be, `?size=` says how many each has."""

    async def get(self) -> None:
        size = int(self.query.one("size", "3"))
        if length := self.query.one("length"):
            self.set_header("Content-Length", length)
        for piece in range(10):
            self.write(b"%d" % piece * size)
            try:
                await self.flush()
            except StreamClosedError:
                self.stage.reached.append("cut")
                return
            self.stage.reached.append(f"flushed {piece}")

    head = get


class Whole(Shown):
    """So many bytes at once."""

    def get(self, size: str) -> None:
        self.finish(b"w" * int(size))

    head = get


class Says(Shown):
    """A status, and nothing else."""

    def get(self, status: str) -> None:
        self.set_status(int(status))
        self.finish()


class Raises(Shown):
    def get(self, what: str) -> None:
        if what == "refusal":
            raise Unavailable("full", "come back later", retry_after=7)
        raise ZeroDivisionError("nobody can answer this")


class Detaches(Staged):
    """Takes the connection, and speaks another protocol on it."""

    def get(self) -> None:
        transport = self.detach()
        self.stage.transports.append(transport)
        transport.write(b"HTTP/1.1 200 OK\r\n\r\nfree")


@stream_request_body
class Streamed(Staged):
    """Takes its body as it comes, once it is ready for it; `?slowly=` waits at the gate with each piece, `?raise=` fails."""

    async def prepare(self) -> None:
        super().prepare()
        self.got: list[bytes] = []
        if self.query.one("refuse"):
            raise Unavailable("full", "come back later")
        self.stage.reached.append("prepared")

    async def data_received(self, piece: bytes) -> None:
        self.stage.reached.append("data")
        if self.query.one("slowly"):
            await self.stage.gate.wait()
        if self.query.one("raise"):
            raise ZeroDivisionError("nobody can read this")
        self.got.append(piece)

    def post(self) -> None:
        self.stage.reached.append("post")
        self.answer(b"".join(self.got).decode())

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self.stage.reached.append("gone")


def handlers(stage: Stage) -> list[tuple[str, type[RequestHandler], dict[str, object]]]:
    parts = {"stage": stage}
    return [(r"/echo.*", Echo, {}), (r"/slow/(.*)", Slow, parts), (r"/pieces", Pieces, parts), (r"/whole/(\d+)", Whole, {}),
            (r"/says/(\d+)", Says, {}), (r"/raises/(.*)", Raises, {}), (r"/detaches", Detaches, parts), (r"/streamed", Streamed, parts)]


def seen(ask: Ask) -> bytes:
    """All that an Ask knows, as JSON."""
    return orjson.dumps({
        "method": ask.method.decode(), "path": ask.path.decode("latin-1"), "query": ask.query.decode("latin-1"), "version": ask.version,
        "keep_alive": ask.keep_alive, "fields": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in ask.fields],
        "headers": {name.decode("latin-1"): value.decode("latin-1") for name, value in ask.headers.items()},
        "body": ask.body.decode("latin-1"), "ip": ask.peer, "scheme": ask.scheme})


VARYING = (b"device", b"last-event-id")


class Hot:
    """Hot functions that answer at once, later, or not at all."""

    def __init__(self, stage: Stage):
        self._stage = stage

    def now(self, ask: Ask) -> None:
        ask.answer(200, seen(ask))

    def later(self, ask: Ask) -> None:
        """Answered by the test."""
        self._stage.asks.append(ask)
        self._stage.reached.append(ask.path.decode())

    def refuses(self, ask: Ask) -> None:
        raise Unavailable("full", "come back later", retry_after=7)

    def raises(self, ask: Ask) -> None:
        raise ZeroDivisionError("nobody can answer this")

    def detaches(self, ask: Ask) -> None:
        transport = ask.connection.detach()
        self._stage.transports.append(transport)
        transport.write(b"HTTP/1.1 200 OK\r\n\r\nfree")

    def receipt(self, ask: Ask) -> None:
        """What answers may depend on: the device `nobody` is refused, `later` is answered in the next turn, `held` by the test."""
        kind, path = ask.headers.get(b"content-type", b""), ask.path + b"?" + ask.query
        if b"nobody" in path:
            raise NotFound("nothing", "there is no such channel")
        device, id = ask.headers.get(b"device", b""), ask.headers.get(b"last-event-id", b"")

        def told(answer: bytes | Refusal) -> None:
            if isinstance(answer, Refusal):
                ask.refuse(answer)
            else:
                ask.answer(200, answer)

        self._record(path, kind, device, id, ask.body, told)

    def again(self, ask: Ask) -> Again | None:
        kind, path = ask.headers.get(b"content-type", b""), ask.path + b"?" + ask.query
        if b"nobody" in path:
            raise NotFound("nothing", "there is no such channel")
        if ask.query:
            return None

        def answer(names: list[str], requests: list[tuple[bytes, ...]], then: Any) -> None:
            answers: list[Any] = [None] * len(requests)
            left = len(requests)

            def told(place: int, answer: bytes | Refusal) -> None:
                nonlocal left
                answers[place] = answer
                left -= 1
                if not left:
                    then(answers)

            for place, (device, id, _, body) in enumerate(requests):
                assert names[place].encode() == device
                self._stage.reached.append("again")
                try:
                    self._record(path, kind, device, id, body, partial(told, place))
                except Refusal as refusal:
                    told(place, refusal)

        return Recognised(answer)

    def _record(self, path: bytes, kind: bytes, device: bytes, id: bytes, body: bytes, then: Any) -> None:
        if device == b"nobody":
            raise NotFound("nobody", "there is no such device")
        if device == b"broken":
            raise ZeroDivisionError("nobody can record this")
        answer = Conflict("conflict", "it has said so") if id == b"conflict" else orjson.dumps([part.decode("latin-1") for part in (path, kind, device, id, body)])
        if device == b"later":
            asyncio.get_running_loop().call_soon(then, answer)
        elif device == b"held":
            self._stage.asks.append(partial(then, answer))
        else:
            then(answer)


class Recognised:
    def __init__(self, answer: Any):
        self.answer = answer

    def who(self, requests: list[tuple[bytes, ...]]) -> tuple[list[str | None], list[int]]:
        """Of `unknown` it is not certain who that is."""
        names = [None if device == b"unknown" else device.decode() for device, *_ in requests]
        return names, [place for place, name in enumerate(names) if name is None]


def routes(stage: Stage, recognise: bool = True) -> dict[bytes, Route]:
    hot = Hot(stage)
    receipt = Route("receipt", 1000, hot.receipt, hot.again if recognise else None, VARYING if recognise else ())
    return {
        b"POST /hot": Route("hot", 100_000, hot.now), b"POST /hot/": Route("hot", 100_000, hot.now), b"GET /hot/": Route("hot", 0, hot.now, is_first=recognise),
        b"PUT /hot/": Route("hot", 100_000, hot.now), b"POST /small": Route("small", 8, hot.now), b"POST /later/": Route("later", 100, hot.later),
        b"POST /refuses": Route("refuses", 100, hot.refuses), b"POST /raises": Route("raises", 100, hot.raises),
        b"GET /detaches/": Route("detaches", 0, hot.detaches, is_first=recognise), b"POST /receipt/": receipt, b"POST /receipts/": receipt,
    }


# The door


class House:
    """A door that is open on `port`, and what is behind it. `heard` counts the bytes that came in at it."""

    def __init__(self, door: Door, stage: Stage, logged: list[logging.LogRecord]):
        self.door = door
        self.stage = stage
        self.heard = 0
        self.logged = logged
        self.port = 0
        self.callers: list[Caller] = []

    def later(self, seconds: float) -> None:
        """So much time passes for whoever is too slow."""
        passes(self.door.wheel, seconds)

    async def caller(self, receive_buffer: int = 0) -> "Caller":
        """A client with a connection of its own; a small `receive_buffer` lets the server feel that it does not read."""
        caller = await Caller.open(self.port, receive_buffer)
        caller.house = self
        caller.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.callers.append(caller)
        return caller

    async def ask(self, request: bytes) -> Answer:
        """The answer to one request on a connection of its own."""
        caller = await self.caller()
        await caller.say(request)
        answer = await caller.answer(request.partition(b" ")[0].decode())
        caller.close()
        return answer

    async def answers(self, *pieces: bytes) -> list[Answer]:
        """All answers to what is sent in these pieces on one connection, each taken in before the next is sent; the last request asks
        that the connection be closed, or makes the server close it."""
        caller = await self.caller()
        await caller.say(*pieces)
        answers = await caller.answers()
        caller.close()
        return answers

    def take_log(self) -> list[logging.LogRecord]:
        """What was logged at `warning` and above since this was last asked: what nobody asks for fails the test."""
        taken = self.logged[:]
        self.logged.clear()
        return taken


class _Heard(Connection):
    def __init__(self, house: House):
        super().__init__(house.door)
        self.house = house

    def data_received(self, data: bytes) -> None:
        self.house.heard += len(data)
        super().data_received(data)


class _Keep(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@asynccontextmanager
async def opened(origins: str = "", recognise: bool = True, **settings: Any) -> AsyncIterator[House]:
    """A door with these settings, until the end of the `with`."""
    loop, stage, keep = asyncio.get_running_loop(), Stage(), _Keep()
    wheel, cors = Wheel(loop.time, loop.call_later, tick=0.01), Cors(frozenset(filter(None, [origins])))
    app = Application(handlers(stage), default_handler_class=NotThere, log_function=lambda handler: None, cors=cors, note=lambda refusal: None)
    house = House(Door(app, Config(**settings), routes(stage, recognise), cors, wheel, Gate(Config(), lambda: wheel.now)), stage, keep.records)
    logging.getLogger().addHandler(keep)
    listening = socket.create_server(("127.0.0.1", 0))
    # Else the kernel takes megabytes for a client that does not read.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    house.port = listening.getsockname()[1]
    listener = await loop.create_server(partial(_Heard, house), sock=listening)
    wheel.add(house.door, 0)
    wheel.start()
    try:
        yield house
    finally:
        stage.gate.set()
        for caller in house.callers:
            caller.close()
        listener.close()
        await turns(5)
        for transport in [*stage.transports, *(connection.transport for connection in list(house.door.connections))]:
            transport.abort()
        wheel.stop()
        await turns(5)
        logging.getLogger().removeHandler(keep)
    assert not house.logged, [record.getMessage() for record in house.logged]
    assert not house.door.connections


@asynccontextmanager
async def tornado(max_body_size: int | None = None) -> AsyncIterator[tuple[int, Stage]]:
    """The same handlers behind Tornado's own server."""
    stage = Stage()
    stage.gate.set()
    app = Application(handlers(stage), default_handler_class=NotThere, log_function=lambda handler: None, cors=Cors(frozenset()), note=lambda refusal: None)
    sockets, server = bind_sockets(0, "127.0.0.1"), HTTPServer(app, max_body_size=max_body_size)
    server.add_sockets(sockets)
    try:
        yield sockets[0].getsockname()[1], stage
    finally:
        server.stop()
        await server.close_all_connections()


async def turns(number: int) -> None:
    """So many turns of the loop, in which what is under way between two sockets of one machine arrives."""
    for _ in range(number):
        await asyncio.sleep(0)


async def eventually(is_so: Any, otherwise: Any = lambda: "it did not come to that") -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not is_so():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(otherwise())
        await asyncio.sleep(0.002)


# Before the door


class Caller(Wire):
    """One client's connection."""

    house: House

    async def say(self, *pieces: bytes) -> None:
        """Send these pieces; each is sent when the server has taken in the one before, or seems not to want it."""
        for piece in pieces:
            heard = self.house.heard + len(piece)
            try:
                await self.send(piece)
            except (BrokenPipeError, ConnectionResetError):
                await asyncio.sleep(0)  # who says it again and again must not hold up the clock of the test
                return  # it has hung up; what it said before is there to be heard
            for _ in range(40):
                if self.house.heard >= heard:
                    break
                await asyncio.sleep(0)

    async def answers(self) -> list[Answer]:
        """All answers until the server ends the connection; none of them may be to a HEAD."""
        self._rest = await self.rest()
        answers = []
        while self._rest:
            answers.append(await self.answer())
        return answers

    def end(self) -> None:
        """Say that nothing more will be said, and go on listening."""
        self.sock.shutdown(socket.SHUT_WR)


def facts(answer: Answer) -> tuple[int, dict[str, str], bytes]:
    """What must be the same wherever the request came in pieces: all but the Date, and what it is called."""
    return answer.status, {name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id")}, answer.body


def request(line: str, body: bytes = b"", *fields: str) -> bytes:
    """A request with a Host, and with a Content-Length if it has a body or is a POST."""
    length = [f"Content-Length: {len(body)}"] if body or line.startswith("POST") else []
    return "\r\n".join([f"{line} HTTP/1.1", "Host: pere.test", *length, *fields]).encode("latin-1") + b"\r\n\r\n" + body


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


LAST = request("GET /echo/last", b"", "Connection: close")
