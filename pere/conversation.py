"""What one client asks on one connection, answered in the order in which it asked (RFC 9112, 9.3.2).

One request is answered at a time. Those behind it wait, and so do bytes that nobody has parsed yet; where too much waits, the network
is to hold the rest. A *hot* request is handed to a plain function as an Ask, which it answers now or later; every other one goes its
way through Tornado as an Exchange. What the bytes mean is not known here: whoever reads them says `_parse`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import Application

from pere.door import Ask, Door
from pere.errors import Refusal, internal
from pere.exchange import Exchange
from pere.limits import Account
from pere.line import Work
from pere.peers import of_socket

log = logging.getLogger("pere.http")


class Conversation(asyncio.Protocol):
    """One client's connection, until it closes or is detached. `app` is what stands behind the door for those who come this way."""

    __slots__ = ("_alike", "_ask", "_closing", "_ended", "_growing", "_in_body", "_in_head", "_in_line", "_parser", "_queued", "_stuck", "_took_at", "_unsent", "_waiters",
                 "account", "address", "app", "busy", "door", "is_expected", "is_fresh", "pending", "rest", "served", "since", "transport", "turn")

    def __init__(self, door: Door, app: Application | None = None):
        self.door = door
        self.transport: Any = None
        self.app = app or door.app
        self.busy: Ask | Exchange | object | None = None  # the request that is being answered
        self._parser: Any = None  # as long as nobody needs one; it and the connection hold each other
        self._alike: Any = None  # what recognises the next request, if it is like the last one (see `recognising.py`)
        self._ask: Ask | None = None  # the request whose body is arriving
        self._in_head = self._in_body = False  # where in a request the client is
        self._growing = 0  # bytes of a body that is not whole yet, which count in `Door.held` too
        self.pending: deque[Ask] | None = None  # those that wait behind it
        self._queued = 0  # bytes of their bodies
        self.rest: bytes | memoryview = b""  # what is not parsed before its turn comes; both count in `Door.held`
        self._in_line = False
        self._closing = False  # nothing that comes from now on is read
        self.is_fresh = True  # it has asked nothing yet
        self._ended = False  # the client says no more, and is still owed answers
        self.turn = 0.0  # the newest one in which it was served, and how much then
        self.since = door.wheel.now  # when what we wait for began: a head, a body, or the next request
        self._stuck = False  # the client does not read, so nothing more is written, and nothing more is read
        self._unsent = 0  # bytes that waited for it when we last looked
        self._waiters: list[asyncio.Future[None]] | None = None
        self.is_expected = False  # the gate has let it in already
        self.account: Account | None = None  # of whoever is at the other end, if that is no proxy of ours and has limits

    def _parse(self, data: bytes) -> None:
        raise NotImplementedError

    @property
    def is_secured(self) -> bool:
        """Whether it is over TLS, of which only this process has the keys."""
        return self.transport is not None and self.transport.get_extra_info("sslcontext") is not None

    # What the transport says

    def connection_made(self, transport: Any) -> None:
        """Somebody has connected; who cannot stay is told so and cut."""
        self.transport = transport
        door, peer = self.door, transport.get_extra_info("peername")
        self.address = address = of_socket(peer)
        if peer is None:
            # It was reset before we took it, so nobody knows whose it was; and what it said is still there to be read.
            self._closing = True
            transport.abort()
            return
        refusal = None
        if not self.is_expected:
            self.account, refusal = door.gate.enter(address, len(door.connections) + door.handshakes)
        door.connections.add(self)
        if refusal is not None:
            # As cheap as can be: nothing is read, and nobody waits for the client to go.
            self._closing = True
            door.gate.note(refusal)
            transport.write(door.goodbye(refusal))
            transport.close()

    def eof_received(self) -> bool:
        """The client will say no more, which here means that it has gone: what was half said is dropped, the transport closes. Only what
        waits in line is answered before; but TLS knows no half of an end."""
        is_owed = self._in_line or self._stuck and bool(self.pending or self.rest)
        self._ended = is_owed and not self.is_secured
        return self._ended

    def connection_lost(self, error: Exception | None) -> None:
        if self.transport is None:
            return  # it was detached, and has nothing any more
        self._parser = self._ask = None
        self.door.connections.discard(self)
        if self.account is not None:
            self.account.connections -= 1
        self._closing = True
        busy, self.busy = self.busy, None
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
        self.go_on()

    # What waits

    def _is_full(self) -> bool:
        """Whether so much waits for its turn that the network is to hold the rest."""
        config = self.door.config
        return bool(self.rest) or (self.pending is not None and (len(self.pending) >= config.max_pipeline or self._queued > config.max_event_bytes))

    def _read_on(self) -> None:
        """Read more, unless something is in the way: answers that are not read, or what waits."""
        if self.transport is not None and not self._stuck and not self._is_full() and not self.door.is_passing:
            self.transport.resume_reading()

    def _let_go(self) -> None:
        """Nothing is held here any more."""
        self.door.held -= self._queued + len(self.rest)
        self._queued = 0
        self.rest, self.pending = b"", None

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
        if self.transport.is_closing() and self not in self.door.connections:
            future.set_exception(StreamClosedError())
            future.exception()
        elif self._stuck:
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(future)
        else:
            future.set_result(None)
        return future

    # Answers

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
        self.door.held += len(ask.body)
        if self._is_full():
            # It asks faster than it is answered.
            self.transport.pause_reading()

    def _begin(self, ask: Ask) -> None:
        self.is_fresh = False
        self.busy = ask
        if ask.refusal is not None:
            ask.refuse(ask.refusal)
        else:
            try:
                self.door.guard(ask)
            except Exception as error:
                self._give_up(ask, error)

    def let_in(self, ask: Ask) -> None:
        """The guard has nothing against it, or leaves it to the handler, which may be for everybody."""
        if self.busy is not ask:
            return  # the client went away while its key was being fetched
        grant, route = ask.grant, ask.route
        if grant.subject:
            self.door.gate.charge_subject(grant, route.kind)
        if route.hot is None:
            self.door.line.is_enough = True
            self.busy = exchange = Exchange(self, ask)
            exchange.start()
        elif ask.refusal is not None:
            ask.refuse(ask.refusal)
        else:
            try:
                route.hot(ask)
            except Exception as error:
                self._give_up(ask, error)

    def _give_up(self, ask: Ask, error: Exception) -> None:
        if not isinstance(error, Refusal):
            log.error("%s could not be answered", ask.route.name, exc_info=error, extra={"facts": {"request": ask.id}})
            error = internal()
        ask.refuse(error)

    def answer(self, ask: Ask, status: int, body: bytes, more: bytes = b"") -> None:
        """Answer this request, which is the one that is being answered, or was given up."""
        if self.busy is not ask:
            return  # the client went away before its answer was ready
        ask.route.tally[status] += 1
        door = self.door
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
        """See Ask."""
        return self.door.proxies.peer(self.address, ask.fields)

    def scheme(self, ask: Ask) -> str:
        """See Ask."""
        own = "https" if self.is_secured else "http"
        return self.door.proxies.scheme(self.address, ask.fields, own)

    def go_on_with(self, ask: Ask, some: Callable[[Ask], bool]) -> None:
        """See `Ask.go_on`."""
        def step() -> bool:
            try:
                return some(ask)
            except Exception as error:
                self._give_up(ask, error)
                return False

        self.door.line.join(ask.account if ask.account is not None else self, Work(step))

    def is_asked(self, ask: Ask) -> bool:
        """Whether this request is the one that is being answered."""
        return self.busy is ask

    def answered(self, ask: Ask) -> None:
        """The request is done with: on to the next, or the end."""
        self.busy = None
        self.since = self.door.wheel.now
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
        self._end()

    def _end(self) -> None:
        """Who says no more, and has been answered, has gone."""
        if self._ended and self.busy is None and not self.pending and not self.rest and self.transport is not None:
            self._closing = True
            self.transport.close()

    def go_on(self) -> None:
        """With what waits behind the request that was answered, when its turn comes; but who does not read its answers is given no more."""
        if (self.pending or self.rest) and self.busy is None and not self._in_line and not self._stuck:
            self._in_line = True
            self.door.line.join(self.account if self.account is not None else self, self)

    def step(self) -> bool:
        """Its turn has come: one request is begun, or some bytes are parsed. Returns whether there is more to do at once."""
        try:
            if self.transport is not None and not self.transport.is_closing() and self.busy is None and not self._stuck:
                if self.pending:
                    ask = self.pending.popleft()
                    self._queued -= len(ask.body)
                    self.door.held -= len(ask.body)
                    self._begin(ask)
                elif self.rest:
                    rest = memoryview(self.rest)  # of which nothing has to be moved
                    size = self.door.line.slice(self.account if self.account is not None else self)
                    piece, self.rest = bytes(rest[:size]), rest[size:] or b""
                    self.door.held -= len(piece)
                    self._parse(piece)
        except Exception:
            # As the loop does with who fails outside of the line: it would be served by nobody any more, and never be idle either.
            self._in_line = False
            if self.transport is not None:
                self.transport.abort()
            raise
        self._in_line = bool(self.pending or self.rest) and self.busy is None and not self._stuck and self.transport is not None and not self.transport.is_closing()
        self._end()
        if not self._closing:
            self._read_on()
        return self._in_line

    def detach(self) -> Any:
        """The transport, which is somebody else's from now on."""
        transport = self.transport
        self.door.connections.discard(self)
        if self.account is not None:
            self.account.connections -= 1  # what it becomes is counted there
            self.account = None
        if self._stuck or self.pending or self.rest or self._in_line:
            transport.resume_reading()
            self._let_go()
        self._closing = True
        self.busy = self.transport = self._parser = self._ask = None
        return transport
