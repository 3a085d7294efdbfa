"""The front door: HTTP/1.1 (RFC 9110, RFC 9112) on asyncio, parsed by httptools, answered by a Tornado Application.

A Connection reads requests and sees that they are answered in order. Each goes one of two ways. A *hot* request (a
receipt, a push, a feed) is handed to a plain function as an Ask, which it answers now or later; that is all it costs. Every
other one becomes an Exchange, which is what Tornado calls an HTTPConnection: `write_headers`, `write`, `finish`, `detach`,
so that any RequestHandler works here as it does on Tornado's own server.

This file knows no channel, no device and no event. What is refused here is refused before a handler could see it.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import httptools
from tornado.iostream import StreamClosedError
from tornado.web import Application

from pere.auth import ANYBODY, NOTHING
from pere.config import Config
from pere.crowd import AGAIN, Crowd
from pere.door import Ask, Door, Route
from pere.errors import BadRequest, Refusal, Timeout, TooLarge, Unavailable, Unsupported, internal
from pere.exchange import Exchange
from pere.limits import Account
from pere.line import SLICE
from pere.peers import of_socket
from pere.shape import HEAD_END, Shape

log = logging.getLogger("pere.http")

LINGER = 2.0  # seconds in which a client that was refused may go on sending before the connection is cut under it

HASH = ord("#")  # as a number, for which bytes are searched ten times faster
MAX_HOSTS = 64  # that are remembered as good
MAX_LESSONS = 4  # shapes that are learned from one connection
LAST_AGAIN = object()  # as AGAIN, where it is the last on its connection, because the server ends

# Headers that decide something. Twice, two readers could each believe another one, so twice is refused.
SINGLE = frozenset((b"host", b"content-length", b"transfer-encoding", b"content-type", b"expect", b"authorization", b"device",
                    b"last-event-id", b"last_event_id", b"idempotency-key", b"origin", b"content-encoding"))

# RFC 3986, 3.2: a host and perhaps a port. It may hold a comma there, but here that would be two of them.
HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]{0,5})?")

# Headers that few requests have: those that change how the rest is read, and those that change the answer too.
UNUSUAL = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"content-encoding"))
MARKED = UNUSUAL | {b"origin"}


class Connection(asyncio.Protocol):
    """One client's connection, until it closes or is detached. `app` is what stands behind the door for those who come this way."""

    __slots__ = ("_admits", "_ask", "_body", "_closing", "_crowd", "_door", "_ended", "_fields", "_growing", "_in_body", "_in_head", "_in_line",
                 "_known", "_lessons", "_model", "_parser", "_partial", "_queued", "_received", "_rest", "_route", "_shape", "_stuck", "_took_at",
                 "_unsent", "_url", "_waiters", "_wire", "account", "address", "app", "busy", "fd", "pending", "served", "since", "transport", "turn")

    def __init__(self, door: Door, app: Application | None = None):
        self._door = door
        self.app = app or door.app
        self._parser: Any = httptools.HttpRequestParser(self)
        self._url = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._ask: Ask | None = None  # the request whose body is arriving
        self._body: bytes | bytearray = b""
        self.busy: Ask | Exchange | object | None = None  # the request that is being answered
        self.pending: deque[Ask] | None = None  # those that wait behind it
        self._in_head = False
        self._in_body = False
        self._partial = 0  # bytes of a head that comes in pieces
        self._received = 0  # bytes of the newest piece
        self._closing = False  # nothing that comes from now on is read
        self.since = door.wheel.now  # when what we wait for began: a head, a body, or the next request
        self._wire = 0  # bytes of a body in chunks, with all that stands around them
        self._in_line = False
        self._ended = False  # the client says no more, and is still owed answers
        self.served = 0  # in the newest turn
        self.turn = 0.0
        self._rest = b""  # what is not parsed before its turn comes
        self._growing = 0  # bytes of a body that is not whole yet
        self._queued = 0  # and of those in `pending`; all three count in `Door.held`
        self._stuck = False  # the client does not read, so nothing more is written, and nothing more is read
        self._unsent = 0  # bytes that waited for it when we last looked
        self._took_at = 0.0  # when it last took some of them
        self._waiters: list[asyncio.Future[None]] | None = None
        self._shape: Shape | None = None  # what recognises the next request, if it is like the last one
        self._crowd: Crowd | None = None  # and with which others it is answered
        self._route = door.other
        self._admits: Callable[[re.Match[bytes]], bool] | None = None  # and what has a say in whether it may
        self._model: Ask | None = None
        self._known: Shape | None = None
        self._lessons = 0
        self.account: Account | None = None  # of whoever is at the other end, if that is no proxy of ours and has limits

    # What the transport says

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.address = of_socket(transport.get_extra_info("peername"))
        door = self._door
        self.account = account = door.gate.account(self.address, is_socket=True)
        refusal = door.gate.enter(account, len(door.connections))
        door.connections.add(self)
        if refusal is not None:
            # As cheap as can be: nothing is read, and nobody waits for the client to go.
            self.account = None
            self._closing = True
            transport.write(door.goodbye(refusal))
            transport.close()
        elif door.draining:
            transport.close()

    def data_received(self, data: bytes) -> None:
        # Between two requests, one that is like the last one needs no parser.
        if self._shape is not None and self.busy is None:
            match = self._shape.match(data)
            if match is not None and not self._door.draining:
                values = match.group(*self._shape.order)
                if int(values[-2]) == len(values[-1]) <= self._route.max_body and (self._admits is None or self._admits(match)):
                    self.busy = AGAIN
                    asked = self._crowd.asked  # type: ignore[union-attr]
                    if not asked:
                        self._door.crowds.gather(self._crowd)  # type: ignore[arg-type]
                    asked.append((self, values))
                    return
        if self._closing:
            return
        self._shape = None
        if self._in_line or len(data) > SLICE:
            self._put_by(data)
        else:
            self._parse(data)

    def _put_by(self, data: bytes) -> None:
        """It is parsed when its turn comes, and nothing more is read until then."""
        door = self._door
        door.held += len(data)
        self._rest += data
        self.transport.pause_reading()
        if door.held > door.config.max_held_bytes:
            self._turn_away(_busy())
        else:
            self.go_on()

    def _parse(self, data: bytes) -> None:
        self._received = len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._closing = True  # nobody upgrades here: the request was answered as if it had not asked, and was the last
        except httptools.HttpParserError as error:
            if not self._closing:
                self._fail(error)
        if self._in_head:
            self._measure(data)
        elif self._model is not None:
            self._learn(data)
        elif self._in_body:
            self._measure_body()

    def _learn(self, data: bytes) -> None:
        """Recognise the next request, if this one was alone and whole in what arrived: then the parser is between two requests."""
        model, self._model = self._model, None
        assert model is not None and model.route.again is not None
        if model.grant is NOTHING:
            return  # it was not let in, so neither is one that is like it
        end = data.find(HEAD_END)
        if end + len(HEAD_END) + len(model.body) != len(data) or self._closing or self._in_line or self._lessons == MAX_LESSONS:
            return
        # It may have begun in an earlier piece, or behind the end of another body.
        line = b"%b %b HTTP/1.1\r\n" % (model.method, b"?".join(filter(None, (model.path, model.query))))
        if not data.startswith(line) or data.count(b"\r\n", 0, end) != len(model.fields):
            return
        shape = self._door.shapes.learn(data, model.route.varying)
        if shape is not self._known:
            # A client that says it differently each time is not learned from for ever.
            self._lessons += 1
            self._known = shape
        try:
            again = model.route.again(model)
        except Refusal:
            return
        if shape is None or again is None:
            return
        self._shape, self._crowd = shape, self._door.crowds.of(model.route, again)
        self._route, self._admits = model.route, self._admitting(model, shape)
        # What is written to a descriptor does not get encrypted: with none that is one, the door leaves it to the transport.
        self.fd = self.transport.get_extra_info("socket").fileno() if self.transport.get_extra_info("sslcontext") is None else -1

    def _admitting(self, model: Ask, shape: Shape) -> Callable[[re.Match[bytes]], bool] | None:
        """What tells of a recognised request whether it may be answered as such: its token is known, and a limit not reached."""
        gate, kind, payer, address, grant = self._door.gate, model.route.kind, model.account, model.peer, model.grant
        is_let_in = gate.admits_subjects(kind)
        asked: list[Callable[[re.Match[bytes]], bool]] = []
        if model.route.knows is not None:
            known = model.route.knows(model, shape.groups)
            asked.append(lambda match: (found := known(match)) is not None and is_let_in(found))
        elif grant.subject:
            asked.append(lambda match: is_let_in(grant))
        if payer is not None and payer is self.account:
            asked.append(lambda match: gate.admits(payer, kind))
        elif payer is not None:
            # Behind a proxy nothing keeps the account of a client that has gone.
            asked.append(lambda match: (now := gate.account(address)) is None or gate.admits(now, kind))
        if len(asked) < 2:
            return asked[0] if asked else None
        return lambda match: all(each(match) for each in asked)

    def answer_again(self, answer: bytes | Refusal) -> None:
        """A recognised request that cannot be answered as most are: it is answered as if it had been parsed."""
        if self.busy is not AGAIN and self.busy is not LAST_AGAIN:
            return  # the client went away before its answer was ready
        self.busy = ask = Ask(self, b"", b"", b"", "1.1", self.busy is AGAIN, {}, [], self._route)
        if isinstance(answer, Refusal):
            ask.refuse(answer)
        else:
            ask.answer(200, answer)

    def _measure(self, data: bytes) -> None:
        """A head that comes in pieces is measured as it grows; one that comes at once is measured when it is complete."""
        config = self._door.config
        if not self._partial:
            # It may have begun anywhere in this piece: what was read of it counts, and the line that is not at its end.
            self._partial = 1
            if self._received > self._door.small:
                self._partial += len(self._url) + _length(self._fields) + len(data) - data.rfind(b"\n") - 1
            self.since = self._door.wheel.now
            self._model = None
        else:
            self._partial += self._received
        if self._partial > config.max_line_bytes + config.max_header_bytes:
            self._turn_away(_long_line(config) if len(self._url) > config.max_line_bytes else _long_head(config))

    def _measure_body(self) -> None:
        """A body that is not whole yet: all of them together have a limit. Sizes, extensions and trailers of chunks are no part of it,
        and need a limit of their own."""
        ask, door = self._ask, self._door
        if ask is None or self._closing:
            return
        door.held += len(self._body) - self._growing
        self._growing = len(self._body)
        if door.held > door.config.max_held_bytes:
            self._turn_away(_busy())
            return
        if b"transfer-encoding" not in ask.headers:
            return
        self._wire += self._received
        # A chunk of one byte takes six.
        if self._wire > 8 * ask.route.max_body + self._door.config.max_header_bytes:
            self._turn_away(TooLarge("large_body", "there is more around the chunks of the body than in them"))

    def _let_go(self) -> None:
        """Nothing is held here any more."""
        self._door.held -= self._growing + self._queued + len(self._rest)
        self._growing = self._queued = 0
        self._body, self._rest, self.pending = b"", b"", None

    def _fail(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if isinstance(cause, Refusal):
            self._turn_away(cause)
        elif isinstance(error, httptools.HttpParserInvalidMethodError):
            self._turn_away(Unsupported("unknown_method", "the request does not begin with a method of HTTP"))
        elif isinstance(error, httptools.HttpParserCallbackError):
            log.error("a request could not be taken", exc_info=cause)
            self._turn_away(internal())
        else:
            self._turn_away(BadRequest("bad_http", f"this is not HTTP/1.1: {error}"))

    def _turn_away(self, refusal: Refusal) -> None:
        """Answer what cannot be read, after all that came before it, and read no more: where the next request begins is unknown."""
        self._closing = True
        self._in_head = False
        self._door.held -= self._growing + len(self._rest)
        self._growing, self._body, self._rest = 0, b"", b""
        ask = self._ask or Ask(self, b"", b"", b"", "1.1", False, {}, [], self._door.other)
        self._ask = None
        ask.keep_alive = False
        ask.refusal = refusal
        self._enqueue(ask)

    def eof_received(self) -> bool:
        """The client will say no more, which here means that it has gone: what was half said is dropped, the transport closes. Only what
        waits in line is answered before; but TLS knows no half of an end."""
        self._ended = self._in_line and self.transport.get_extra_info("sslcontext") is None
        return self._ended

    def connection_lost(self, error: Exception | None) -> None:
        self._door.connections.discard(self)
        if self.account is not None:
            self.account.connections -= 1
        self._closing = True
        busy, self.busy = self.busy, None
        # The parser and the connection hold each other.
        self._parser = self._ask = None
        self._let_go()
        self._wake(StreamClosedError(real_error=error))
        if isinstance(busy, Exchange):
            busy.connection_lost()
        elif isinstance(busy, Ask) and busy.gone is not None:
            busy.gone()

    def pause_writing(self) -> None:
        self._stuck = True
        # Who does not read its answers may not ask for more, or they would pile up here.
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._stuck = False
        self._unsent = 0
        self._read_on()
        self._wake(None)

    def _is_full(self) -> bool:
        """Whether so much waits for its turn that the network is to hold the rest."""
        config = self._door.config
        return bool(self._rest) or (self.pending is not None and (len(self.pending) >= config.max_pipeline or self._queued > config.max_event_bytes))

    def _read_on(self) -> None:
        """Read more, unless something is in the way: answers that are not read, or what waits."""
        if self.transport is not None and not self._stuck and not self._is_full():
            self.transport.resume_reading()

    def _wake(self, error: Exception | None) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
                waiter.exception()  # whoever waits is told; if nobody does, that is no mistake

    def drained(self) -> "asyncio.Future[None]":
        """Done when the client has read enough that more may be written; StreamClosedError if it went away."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.transport.is_closing() and self._parser is None:
            future.set_exception(StreamClosedError())
            future.exception()
        elif self._stuck:
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(future)
        else:
            future.set_result(None)
        return future

    # What the parser says, in this order

    def on_url(self, url: bytes) -> None:
        if self._in_head:
            self._url += url
        else:
            self._in_head = True
            self._url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # a trailer says nothing that anybody here wants to know
            self._fields.append((name.lower(), value.rstrip()))  # RFC 9112, 5.1: the parser leaves the space behind it

    def on_headers_complete(self) -> None:
        door, fields = self._door, self._fields
        headers = dict(fields)
        method: bytes = self._parser.get_method()
        version: str = self._parser.get_http_version()
        path, _, query = self._url.partition(b"?")
        slash = path.find(b"/", 1)
        route = door.routes.get(method + b" " + (path if slash < 0 else path[: slash + 1]), door.other)
        self._fields = []
        self._ask = ask = Ask(self, method, path, query, version, self._parser.should_keep_alive(), headers, fields, route)
        if self._closing:
            raise httptools.HttpParserError("the connection is closing")
        if path[:1] != b"/" and path != b"*":
            self._resolve(ask)
            route = ask.route
        ask.account = account = self.account if not door.proxies.trusts(self.address) else door.gate.account(ask.peer)
        if account is not None:
            door.gate.charge(account, route.kind)  # before the body, which is not read if there is no room for it
        self._in_head = False
        if self._partial or self._received > door.small:
            self._check_length(fields)
        if len(headers) != len(fields):
            _check_repeated(fields)
        host = headers.get(b"host")
        if host not in door.hosts:
            self._check_host(host, version)
        length = headers.get(b"content-length")
        if length is not None and int(length) > route.max_body:
            raise _large_body(route)
        if version != "1.1" or not UNUSUAL.isdisjoint(headers) or HASH in self._url:
            self._check_unusual(ask)
        self._in_body = True
        self.since = door.wheel.now

    def _resolve(self, ask: Ask) -> None:
        """RFC 9112, 3.2.2: a server must accept the absolute form, and the host in it instead of the one in Host."""
        scheme, _, rest = ask.path.partition(b"://")
        host, _, path = rest.partition(b"/")
        if scheme.lower() not in (b"http", b"https") or not host:
            raise BadRequest("bad_target", "the request is for a path of this server, such as /feed/news")
        if not HOST.fullmatch(host):
            # RFC 9110, 4.2.4: somebody's name before the host is an error.
            raise BadRequest("bad_target", "the target names a host, and perhaps a port, and nothing else before its path")
        ask.path = b"/" + path
        if b"host" in ask.headers:
            ask.headers[b"host"] = host
            ask.fields = [(name, host if name == b"host" else value) for name, value in ask.fields]
        slash = ask.path.find(b"/", 1)
        ask.route = self._door.routes.get(ask.method + b" " + (ask.path if slash < 0 else ask.path[: slash + 1]), self._door.other)

    def _check_length(self, fields: list[tuple[bytes, bytes]]) -> None:
        config = self._door.config
        self._partial = 0
        if len(self._url) > config.max_line_bytes:
            raise _long_line(config)
        if _length(fields) > config.max_header_bytes:
            raise _long_head(config)

    def _check_host(self, host: bytes | None, version: str) -> None:
        """RFC 9112, 3.2: a server must refuse a request without a Host, and one whose Host is none. What passed is remembered for a second."""
        if host is None:
            if version == "1.1":
                raise BadRequest("no_host", "an HTTP/1.1 request names its Host (RFC 9112, 3.2)")
        elif not HOST.fullmatch(host):
            raise BadRequest("bad_host", "a Host is a name or an address, and perhaps a port (RFC 9110, 7.2)")
        elif len(self._door.hosts) < MAX_HOSTS:
            self._door.hosts.add(host)

    def _check_unusual(self, ask: Ask) -> None:
        """What few requests have, so that the others need not be asked for it one by one."""
        headers = ask.headers
        if ask.version not in ("1.1", "1.0"):
            raise Refusal("http_version", f"PERE speaks HTTP/1.1 and HTTP/1.0, not {ask.version}", status=505)
        coding = headers.get(b"transfer-encoding")
        if coding is not None:
            # RFC 9112, 6.1: whoever sends it by HTTP/1.0 cannot be trusted to know where the body ends.
            if ask.version == "1.0":
                raise BadRequest("bad_http", "HTTP/1.0 has no Transfer-Encoding")
            if coding.strip().lower() != b"chunked":
                raise Unsupported("transfer_encoding", "the only Transfer-Encoding that is taken is chunked")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refusal("content_encoding", "a body is taken as it is, without Content-Encoding", status=415)
        if b"expect" in headers and ask.version == "1.1":
            if headers[b"expect"].lower() != b"100-continue":
                raise Refusal("expectation", "the only Expect that is met is 100-continue", status=417)
            # It has its place among the answers.
            self._enqueue(Ask(self, b"", b"", b"", "1.1", True, {}, [], CONTINUE))
        if self._parser.should_upgrade():
            # RFC 9110, 7.8: Upgrade may be ignored; what follows on the wire may be of the other protocol, so nothing does.
            # httptools does not read the body of such a request.
            if coding is not None or int(headers.get(b"content-length", b"0")):
                raise Unsupported("upgrade", "a request with a body cannot ask for another protocol")
            ask.keep_alive = False
        if HASH in self._url:
            # RFC 9112, 3.2: no form of a target has a fragment, and one who cuts it off before us would have asked for something else.
            raise BadRequest("bad_target", "the target of a request has no #fragment")

    def on_body(self, piece: bytes) -> None:
        route = self._ask.route  # type: ignore[union-attr]
        if len(self._body) + len(piece) > route.max_body:
            raise _large_body(route)
        if not self._body:
            self._body = piece
        else:
            # Many small pieces must not become many small objects.
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += piece

    def on_message_complete(self) -> None:
        ask: Ask = self._ask  # type: ignore[assignment]
        self._ask = None
        self._in_body = False
        if self._body:
            ask.body = bytes(self._body)
            self._body = b""
            if self._growing:
                self._door.held -= self._growing
                self._growing = 0
        if ask.route.again is not None and ask.keep_alive and ask.version == "1.1" and MARKED.isdisjoint(ask.headers):
            self._model = ask
        whose = ask.account if ask.account is not None else self
        if self.busy is None and not self.pending and not self._door.line.is_over(whose, ask.route.weight):
            self._begin(ask)
        else:
            self._model = None  # the next may not overtake it
            self._append(ask)
            self.go_on()

    # Answers, in the order of the requests (RFC 9112, 9.3.2)

    def _enqueue(self, ask: Ask) -> None:
        """Answer it after all that came before it."""
        if self.busy is None and not self.pending:
            self._begin(ask)
        else:
            self._append(ask)

    def _append(self, ask: Ask) -> None:
        if self.pending is None:
            self.pending = deque()
        self.pending.append(ask)
        self._queued += len(ask.body)
        self._door.held += len(ask.body)
        if self._is_full():
            # It asks faster than it is answered.
            self.transport.pause_reading()

    def _begin(self, ask: Ask) -> None:
        self.busy = ask
        if ask.refusal is not None:
            ask.refuse(ask.refusal)
        else:
            self._try(self._door.guard, ask, self._let_in)

    def _let_in(self, ask: Ask) -> None:
        """The guard has nothing against it, or leaves it to the handler, which may be for everybody."""
        if self.busy is not ask:
            return  # the client went away while its key was being fetched
        if ask.grant.subject:
            self._door.gate.charge_subject(ask.grant, ask.route.kind)
        if ask.route.hot is None:
            self._door.line.is_enough = True
            self.busy = exchange = Exchange(self, ask)
            exchange.start()
        elif ask.refusal is not None:
            ask.refuse(ask.refusal)
        else:
            self._try(ask.route.hot, ask)

    def _try(self, what: Callable[..., None], ask: Ask, *more: Any) -> None:
        try:
            what(ask, *more)
        except Refusal as refusal:
            ask.refuse(refusal)
        except Exception:
            log.exception("%s could not be answered", ask.route.name)
            ask.refuse(internal())

    def answer(self, ask: Ask, status: int, body: bytes, more: bytes = b"") -> None:
        if self.busy is not ask:
            return  # the client went away before its answer was ready
        tally = ask.route.tally
        tally[status] = tally.get(status, 0) + 1
        door = self._door
        if b"origin" in ask.headers:
            more += door.cors(ask.headers[b"origin"])
        length = len(body)
        if not ask.keep_alive or door.draining:
            ask.keep_alive = False
            more += b"Connection: close\r\n"
            if ask.method == b"HEAD":
                body = b""  # only a refusal answers a HEAD here
        elif ask.version == "1.0":
            more += b"Connection: keep-alive\r\n"
        if status != 204:  # RFC 9110, 8.6: which has no length, not even 0
            more += b"Content-Length: %d\r\n" % length
        self.transport.write(b"%b%b\r\n%b" % (door.head(status), more, body))
        self.answered(ask)

    def peer(self, ask: Ask) -> str:
        return self._door.proxies.peer(self.address, ask.fields)

    def scheme(self, ask: Ask) -> str:
        own = "https" if self.transport.get_extra_info("sslcontext") is not None else "http"
        return self._door.proxies.scheme(self.address, ask.fields, own)

    def charge(self, ask: Ask, kind: int, count: int) -> None:
        if ask.account is not None:
            self._door.gate.charge(ask.account, kind, count)
        if ask.grant.subject:
            self._door.gate.charge_subject(ask.grant, kind, count)

    def is_asked(self, ask: Ask) -> bool:
        """Whether this request is the one that is being answered."""
        return self.busy is ask

    def answered(self, ask: Ask) -> None:
        """The request is done with: on to the next, or the end."""
        self.busy = None
        self.since = self._door.wheel.now
        if not ask.keep_alive:
            # RFC 9112, 9.6: closing now would reset the connection under what the client is still sending, and it might never read
            # this answer. It closes when it has, or `check` does.
            self._closing = True
            self._let_go()
            self._read_on()
            # TLS has no half of a connection; it goes on reading until the client has closed too. And nobody waits for who is sent away for
            # asking too much: two thousand of these that are cut together, once a second, are a pause that everybody feels.
            if not self.transport.can_write_eof() or (ask.refusal is not None and ask.refusal.status == 429):
                self.transport.close()
            else:
                self.transport.write_eof()
            return
        self.go_on()

    def go_on(self) -> None:
        """With what waits behind the request that was answered, when its turn comes."""
        if (self.pending or self._rest) and self.busy is None and not self._in_line:
            self._in_line = True
            self._door.line.join(self.account if self.account is not None else self, self)

    def step(self) -> bool:
        """Its turn has come: one request is begun, or some bytes are parsed. Returns whether there is more to do at once."""
        if self.transport is not None and not self.transport.is_closing() and self.busy is None:
            if self.pending:
                ask = self.pending.popleft()
                self._queued -= len(ask.body)
                self._door.held -= len(ask.body)
                self._begin(ask)
            elif self._rest:
                piece, self._rest = self._rest[:SLICE], self._rest[SLICE:]
                self._door.held -= len(piece)
                self._parse(piece)
        self._in_line = bool(self.pending or self._rest) and self.busy is None and self.transport is not None and not self.transport.is_closing()
        if self._ended and not self._in_line and self.transport is not None:
            self.transport.close()
        elif not self._closing:
            self._read_on()
        return self._in_line

    def detach(self) -> Any:
        transport = self.transport
        self._door.connections.discard(self)
        if self.account is not None:
            self.account.connections -= 1  # what it becomes is counted there
            self.account = None
        if self._stuck or self.pending or self._in_line:
            transport.resume_reading()
        self._closing = True
        self._let_go()
        self.busy = self._parser = self._ask = self.transport = None
        return transport

    # Time

    def check(self, now: float) -> None:
        """Close what is too slow. Nobody hurries a request that is being answered, only a client that does not read the answer."""
        config = self._door.config
        waited = now - self.since
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent or not self._unsent:
            self._took_at = now
        self._unsent = unsent
        if unsent and now - self._took_at > config.stuck_after:
            self.transport.abort()
        elif self.busy is not None or self._in_line:
            pass
        elif self._closing:
            if waited > LINGER and not unsent:
                self.transport.abort()
        elif self._in_head:
            if waited > config.head_timeout:
                self._turn_away(Timeout("slow_request", f"the headers took longer than {config.head_timeout:g} s"))
        elif self._in_body:
            if waited > config.body_timeout:
                self._turn_away(Timeout("slow_request", f"the body took longer than {config.body_timeout:g} s"))
        elif waited > config.idle_timeout:
            self.transport.close()

    def close_if_idle(self) -> None:
        if self.busy is AGAIN:
            self.busy = LAST_AGAIN
        if self.busy is None and not self._in_head and not self._in_body and not self._in_line:
            self._closing = True
            self.transport.close()


def _go_ahead(ask: Ask) -> None:
    ask.connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    ask.connection.answered(ask)


CONTINUE = Route("continue", 0, _go_ahead, needs=ANYBODY)


def _length(fields: Iterable[tuple[bytes, bytes]]) -> int:
    """The names and the values, and the colon, the space and the line end that belong to them."""
    return sum(len(name) + len(value) + 4 for name, value in fields)


def _check_repeated(fields: Iterable[tuple[bytes, bytes]]) -> None:
    seen: set[bytes] = set()
    for name, _ in fields:
        if name in seen and name in SINGLE:
            raise BadRequest("repeated_header", f"the header {name.decode('latin-1')} can stand only once")
        seen.add(name)


def _long_line(config: Config) -> Refusal:
    return Refusal("long_line", f"a request line has at most {config.max_line_bytes} bytes", status=414)


def _long_head(config: Config) -> Refusal:
    return Refusal("long_headers", f"the headers of a request have at most {config.max_header_bytes} bytes together", status=431)


def _busy() -> Refusal:
    return Unavailable("busy", "what is still arriving, or waits, takes all the room there is for it; come back later", retry_after=1)


def _large_body(route: Route) -> TooLarge:
    return TooLarge("large_body", f"the body of such a request has at most {route.max_body} bytes")
