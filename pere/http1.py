"""The front door: HTTP/1.1 (RFC 9110, RFC 9112) on asyncio, parsed by httptools.

A Connection turns the bytes that arrive into requests, and its Conversation sees that they are answered. What is refused here is refused before
a handler could see it: what cannot be read (see also `heads.py`), is too long or comes too slowly. A request that is like the last one
needs no parser (see `recognising.py`).

This file knows no channel, no device and no event.
"""

import logging
import os

import httptools

from pere.auth import ANYBODY
from pere.crowd import AGAIN
from pere.door import Ask, Route
from pere.errors import BadRequest, Full, Refusal, Timeout, TooLarge, Unsupported, internal
from pere.heads import MARKED, UNUSUAL, check_codings, check_fragment, check_host, check_lengths, check_repeated, check_upgrade, expects_word, length_of, long_headers, long_line, resolved
from pere.line import MUCH
from pere.newcomers import Known
from pere.recognising import LAST_AGAIN, Recognising

log = logging.getLogger("pere.http")

GRACE = 0.5  # seconds in which who has just come is let say what it came for, though we are about to end
LINGER = 2.0  # seconds in which a client that was refused may go on sending before the connection is cut under it

HASH = ord("#")  # as a number, for which bytes are searched ten times faster
MAX_HOSTS = 64  # that are remembered as good


class Connection(Recognising):
    """A conversation in HTTP/1.1."""

    __slots__ = ("_body", "_fields", "_partial", "_received", "_url", "_wire")

    # What arrives

    def _read(self, data: bytes) -> None:
        if self._closing:
            return
        self._alike = None
        if self._in_line or len(data) > MUCH:
            self._put_by(data)
        elif self._parser is not None or (found := self.door.newcomers.read(data)) is None:
            self._parse(data)
        else:
            self._take(found)

    def _put_by(self, data: bytes) -> None:
        """It is parsed when its turn comes, and nothing more is read until then."""
        door = self.door
        door.held += len(data)
        self.rest = bytes(self.rest) + data if self.rest else data
        self.transport.pause_reading()
        if door.held > door.config.max_held_bytes:
            self._turn_away(busy())
        else:
            self.go_on()

    def _parse(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpRequestParser(self)
            self._model = self._lessons = None
            self._url = b""
            self._fields: list[tuple[bytes, bytes]] = []
            self._body: bytes | bytearray = b""
            self._partial = 0  # bytes of a head that comes in pieces
            self._wire = 0  # bytes of a body in chunks, with all that stands around them
        self._received = len(data)  # bytes of the newest piece
        try:
            parser.feed_data(data)
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

    def _take(self, found: tuple[Known, bytes, dict[bytes, bytes]]) -> None:
        """A request that needed no parser."""
        known, query, headers = found
        ask = Ask(self, known.method, known.path, query, "1.1", True, headers, None, known.route)
        self.since = self.door.wheel.now
        try:
            self._charge(ask)
        except Refusal as refusal:
            self._ask = ask
            self._turn_away(refusal)
        else:
            self._admit(ask)

    def _measure(self, data: bytes) -> None:
        """A head that comes in pieces is measured as it grows; one that comes at once is measured when it is complete."""
        config = self.door.config
        if not self._partial:
            # It may have begun anywhere in this piece: what was read of it counts, and the line that is not at its end.
            self._partial = 1
            if self._received > self.door.small:
                self._partial += len(self._url) + length_of(self._fields) + len(data) - data.rfind(b"\n") - 1
            self.since = self.door.wheel.now
            self._model = None
        else:
            self._partial += self._received
        if self._partial > config.max_line_bytes + config.max_header_bytes:
            self._turn_away(long_line(config.max_line_bytes) if len(self._url) > config.max_line_bytes else long_headers(config.max_header_bytes))

    def _measure_body(self) -> None:
        """A body that is not whole yet: all of them together have a limit. Sizes, extensions and trailers of chunks are no part of it,
        and need a limit of their own."""
        ask, door = self._ask, self.door
        if ask is None or self._closing:
            return
        door.held += len(self._body) - self._growing
        self._growing = len(self._body)
        if door.held > door.config.max_held_bytes:
            self._turn_away(busy())
            return
        if b"transfer-encoding" not in ask.headers:
            return
        self._wire += self._received
        # A chunk of one byte takes six.
        if self._wire > 8 * ask.route.max_body + self.door.config.max_header_bytes:
            self._turn_away(TooLarge("large_body", "there is more around the chunks of the body than in them"))

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
        self.door.held -= self._growing + len(self.rest)
        self._growing, self._body, self.rest = 0, b"", b""
        ask = self._ask or Ask(self, b"", b"", b"", "1.1", False, {}, [], self.door.other)
        self._ask = None
        ask.keep_alive = False
        # Where it was raised, this request was at hand, and would hold it in return: of thousands that are cut, that is much to collect.
        ask.refusal = refusal.with_traceback(None)
        self._enqueue(ask)

    def _let_go(self) -> None:
        super()._let_go()
        self.door.held -= self._growing
        self._growing, self._body = 0, b""

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
        door, fields = self.door, self._fields
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
        self._charge(ask)  # before the body, which is not read if there is no room for it
        self._in_head = False
        if self._partial or self._received > door.small:
            self._partial = 0
            check_lengths(self._url, fields, door.config.max_line_bytes, door.config.max_header_bytes)
        if len(headers) != len(fields):
            check_repeated(fields)
        host = headers.get(b"host")
        if host not in door.hosts:
            check_host(host, version)
            if host is not None and len(door.hosts) < MAX_HOSTS:
                door.hosts.add(host)  # which is remembered for a second
        length = headers.get(b"content-length")
        if length is not None and int(length) > route.max_body:
            raise large_body(route)
        if version != "1.1" or not UNUSUAL.isdisjoint(headers) or HASH in self._url:
            self._check_unusual(ask)
        self._in_body = True
        self.since = door.wheel.now

    def _charge(self, ask: Ask) -> None:
        door = self.door
        ask.account = account = door.gate.account(ask.peer) if door.proxies.trusts(self.address) else self.account
        if account is not None:
            door.gate.charge(account, ask.route.kind)

    def _resolve(self, ask: Ask) -> None:
        """RFC 9112, 3.2.2: the host in a target counts instead of the one in Host."""
        host, ask.path = resolved(ask.path)
        if b"host" in ask.headers:
            ask.headers[b"host"] = host
            ask.fields = [(name, host if name == b"host" else value) for name, value in ask.fields]
        slash = ask.path.find(b"/", 1)
        ask.route = self.door.routes.get(ask.method + b" " + (ask.path if slash < 0 else ask.path[: slash + 1]), self.door.other)

    def _check_unusual(self, ask: Ask) -> None:
        """What few requests have, so that the others need not be asked for it one by one."""
        check_codings(ask.version, ask.headers)
        if expects_word(ask.version, ask.headers):
            # It has its place among the answers.
            self._enqueue(Ask(self, b"", b"", b"", "1.1", True, {}, [], CONTINUE))
        if self._parser.should_upgrade():
            check_upgrade(ask.headers)
            ask.keep_alive = False  # what follows on the wire may be of the other protocol, so nothing does
        check_fragment(self._url)

    def on_body(self, piece: bytes) -> None:
        route = self._ask.route  # type: ignore[union-attr]
        if len(self._body) + len(piece) > route.max_body:
            raise large_body(route)
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
                self.door.held -= self._growing
                self._growing = 0
        route = ask.route
        if (route.again is not None or route.is_first) and ask.keep_alive and ask.version == "1.1" and (UNUSUAL if route.is_first else MARKED).isdisjoint(ask.headers):
            self._model = ask
        self._admit(ask)

    def _admit(self, ask: Ask) -> None:
        # Each client is served some hot requests in a turn; of those that are for handlers, one in all.
        whose = ask.route if ask.route.hot is None else ask.account if ask.account is not None else self
        if self.busy is None and not self.pending and not self.door.line.is_over(whose, ask.route.weight):
            self._begin(ask)
        else:
            self._model = None  # the next may not overtake it
            self._append(ask)
            self.go_on()

    # Time

    def check(self, now: float) -> None:
        """Close what is too slow. Nobody hurries a request that is being answered, only a client that does not read the answer."""
        config = self.door.config
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
        if self.is_idle:
            self._closing = True
            self.transport.close()

    @property
    def is_half_said(self) -> bool:
        """Whether the client is in the middle of a request."""
        return self._in_head or self._in_body

    def pass_on(self) -> int | None:
        """Leave the connection to another process: a descriptor of it. None as long as something is asked that is not answered, or half
        asked; nothing further is read then. TLS cannot go on elsewhere."""
        transport = self.transport
        if self.is_half_said or self.is_secured or transport.is_closing():
            return None
        transport.pause_reading()
        if self.busy is not None or self._in_line or self._closing or self._ended or transport.get_write_buffer_size():
            return None
        own = os.dup(transport.get_extra_info("socket").fileno())
        self.detach().abort()  # which closes our descriptor, and not the connection
        return own

    @property
    def is_idle(self) -> bool:
        """Whether nothing was asked that is not answered; what one has to say who has just come is on its way."""
        if self.is_fresh and self.door.wheel.now - self.since < GRACE:
            return False
        return self.busy is None and not self._in_head and not self._in_body and not self._in_line and not self._closing


def _go_ahead(ask: Ask) -> None:
    ask.connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    ask.connection.answered(ask)


CONTINUE = Route("continue", 0, _go_ahead, needs=ANYBODY)


def busy() -> Refusal:
    return Full("busy", "what is still arriving, or waits, takes all the room there is for it; come back later", retry_after=1)


def large_body(route: Route) -> TooLarge:
    return TooLarge("large_body", f"the body of such a request has at most {route.max_body} bytes")
