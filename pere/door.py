"""What every connection knows of the front door: the routes, the limits, the date, and a request as it is handed in.

This file knows no channel, no device and no event; and of a connection only that it can be answered, checked and closed.
"""

import asyncio
import logging
import re
import select
from collections import defaultdict
from collections.abc import Callable
from email.utils import formatdate
from http.client import responses
from random import getrandbits
from time import time
from typing import Any

from tornado.web import Application

from pere.auth import NOBODY, NOTHING, OPEN, Grant
from pere.config import Config
from pere.cors import Cors
from pere.crowd import Crowds
from pere.errors import Refusal
from pere.gate import Gate
from pere.limits import CHANNELS, REQUESTS, Account
from pere.line import AT_ONCE, MUCH, Line
from pere.newcomers import LESSONS, Newcomers
from pere.peers import Proxies
from pere.shape import Again, Shapes
from pere.wheel import Wheel

log = logging.getLogger("pere.http")

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")  # what may stand in a log and a header, of what a stranger calls it

SWEEP = 1.0  # seconds between two looks at who is too slow: by so much a deadline may be missed


class Route:
    """What the door must know of an address before it lets the body in: how large that may be (bytes), and who answers without
    Tornado, if anybody does; that is for who has what it `needs` (see `auth.py`), on the channel that the path names if it names one.
    `again` makes what answers requests that differ from one only in the headers `varying` and the body (see `shape.py`). `is_first` where it is mostly the
    first thing that is asked for on a connection, and the last. `name` is what metrics call it, `kind` what limits count it as."""

    __slots__ = ("again", "has_channel", "hot", "kind", "is_first", "max_body", "name", "needs", "served", "tally", "turn", "varying", "weight")

    def __init__(self, name: str, max_body: int, hot: "Callable[[Ask], None] | None" = None,
                 again: "Callable[[Ask], Again | None] | None" = None, varying: tuple[bytes, ...] = (), kind: int = REQUESTS, needs: str = NOBODY,
                 is_first: bool = False):
        self.name = name
        self.max_body = max_body
        self.hot = hot
        self.needs = needs
        self.has_channel = name.endswith("/{channel}")
        self.again = again
        self.varying = varying
        self.is_first = is_first
        self.kind = kind
        self.weight = 1 if hot is not None else AT_ONCE  # of what is served in one turn
        self.served, self.turn = 0, 0.0
        self.tally: defaultdict[int, int] = defaultdict(int)  # hot answers by status


class Door:
    """What all connections share.

    `routes` maps a method and the first segment of a path to its Route: `POST /push`, and `POST /push/` where the path goes
    on. `cors` makes the header lines that answer an Origin. `guard` is asked of each request whether it may come in: it gives it its
    grant and has its connection let it in, now or later, or refuses it.
    """

    def __init__(self, app: Application, config: Config, routes: dict[bytes, Route], cors: Cors,
                 wheel: Wheel, gate: Gate, guard: "Callable[[Ask], None] | None" = None):
        self.app = app
        self.config = config
        self.routes = routes
        self.other = Route("other", config.max_event_bytes)
        self.small = min(config.max_line_bytes, config.max_header_bytes)  # what is not longer than this breaks neither limit
        self.cors = cors
        self.guard = guard or everybody
        self.wheel = wheel
        self.proxies = Proxies(*config.proxies)
        self.gate = gate
        self.connections: set[Any] = set()
        self.handshakes = 0  # under way, of those who are to be connections
        self.held = 0  # bytes of bodies that are not whole yet, or that wait behind another request
        self.draining = False  # it is about to end: each connection closes behind its next answer
        self.is_passing = False  # what nobody has read yet is for another process
        self.shapes = Shapes()
        self.crowds = Crowds(self)
        self.newcomers = Newcomers(LESSONS if self.small >= MUCH else 0)  # what comes at once is measured by nobody else
        self.loop = asyncio.get_running_loop()
        self.line = Line(self.loop.time, self.loop.call_soon)
        self.hosts: set[bytes] = set()  # what stood in Host of late, and may
        self._heads: dict[int, bytes] = {}
        self.ready: dict[bytes, bytes] = {}

    def due(self, now: float) -> float:
        """Once a second, on the wheel: a fresh Date, and an end for those who are too slow."""
        self.hosts.clear()
        self._heads.clear()
        self.ready.clear()
        self.shapes.rest()
        self.newcomers.rest()
        for connection in list(self.connections):
            connection.check(now)
        return SWEEP

    def renew(self, config: Config) -> Callable[[], None]:
        """The proxies, and what answers remember of settings; what was learned from connections was learned under others."""
        proxies = Proxies(*config.proxies)

        def renewed() -> None:
            self.proxies = proxies
            self.other.max_body = config.max_event_bytes
            self.cors.allow(config.origins)
            self.crowds.forget()
            for connection in self.connections:
                connection.forget()
            self._heads.clear()
            self.ready.clear()

        return renewed

    def head(self, status: int) -> bytes:
        """The first lines of a JSON answer. RFC 9110, 6.6.1: who has a clock sends a Date; it is made once a second."""
        head = self._heads.get(status)
        if head is None:
            head = self._heads[status] = b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nDate: %b\r\n%b" % (
                status, responses.get(status, "Unknown").encode(), formatdate(time(), usegmt=True).encode(), self.cors.vary)
        return head

    def whole(self, status: int, body: bytes) -> bytes:
        """A whole answer without further headers; `ready` keeps the few that are given all the time, for a second."""
        made = b"%bContent-Length: %d\r\n\r\n%b" % (self.head(status), len(body), body)
        if status == 200 and len(self.ready) < 64:
            self.ready[body] = made
        return made

    def goodbye(self, refusal: Refusal) -> bytes:
        """The whole answer to who has not asked yet, and need not."""
        body = refusal.body()
        return b"%bRetry-After: %d\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (self.head(refusal.status), refusal.retry_after or 0, len(body), body)

    def drain(self) -> None:
        """Take no further request; each connection closes once what it asked is answered."""
        self.draining = True
        # What has been said and nobody has read yet is to be answered too.
        poll, by_fd = select.poll(), {connection.transport.get_extra_info("socket").fileno(): connection for connection in self.connections}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        unread = {fd for fd, _ in poll.poll(0)}
        for fd, connection in by_fd.items():
            if fd not in unread:
                connection.close_if_idle()

    def under_way(self) -> int:
        """Connections on which something is asked, or an answer may not have been read yet."""
        return sum(not connection.is_idle for connection in self.connections)


class Ask:
    """A request as a hot function sees it: all in bytes, header names in lower case; `grant` is who
    asks, and what they may do. Exactly one of `answer`, `refuse` and `outlet` is called, at once or later."""

    __slots__ = ("_fields", "_id", "account", "body", "connection", "gone", "grant", "headers", "keep_alive", "method", "path", "query", "refusal", "route", "version")

    def __init__(self, connection: Any, method: bytes, path: bytes, query: bytes, version: str, keep_alive: bool,
                 headers: dict[bytes, bytes], fields: list[tuple[bytes, bytes]] | None, route: Route):
        self.connection = connection
        self.method = method
        self.path = path
        self.query = query
        self.version = version
        self.keep_alive = keep_alive
        self.headers = headers
        self._fields = fields
        self.route = route
        self.body = b""
        self.account: Account | None = None  # what limits count it in, if they do
        self.grant: Grant = NOTHING
        self.gone: Callable[[], None] | None = None  # who is told when the client goes away before it is answered
        self.refusal: Refusal | None = None  # why it is refused before anybody looks at it

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """The headers as they came."""
        if self._fields is None:
            self._fields = list(self.headers.items())
        return self._fields

    @fields.setter
    def fields(self, fields: list[tuple[bytes, bytes]]) -> None:
        self._fields = fields

    def answer(self, status: int, body: bytes, more: bytes = b"") -> None:
        """`body` is JSON, `more` is further header lines, each with its line end."""
        self.connection.answer(self, status, body, more)

    def note(self, refusal: Refusal) -> None:
        """It is refused, or a part of it is: where a limit is the reason, that is counted."""
        self.connection.door.gate.note(refusal)

    def refuse(self, refusal: Refusal) -> None:
        self.note(refusal)
        # The code and the route only: what the client sent has no place in a log.
        log.debug("refused", extra={"facts": {"code": refusal.code, "status": refusal.status, "route": self.route.name, "request": self.id}})
        more = b"X-Request-Id: %b\r\n" % self.id.encode()
        if refusal.retry_after is not None:
            more += b"Retry-After: %d\r\n" % refusal.retry_after
        if refusal.challenge:
            more += b"WWW-Authenticate: %b\r\n" % refusal.challenge.encode()
        self.connection.answer(self, refusal.status, refusal.body(), more)

    @property
    def id(self) -> str:
        """What the request is called in the log and in its answer: what its client calls it (`X-Request-Id`) if that may stand there. Most are
        never asked for it, so it is made when it is."""
        try:
            return self._id
        except AttributeError:
            said = self.headers.get(b"x-request-id", b"")
            self._id: str = said.decode() if REQUEST_ID.fullmatch(said) else f"{getrandbits(64):016x}"
            return self._id

    @property
    def peer(self) -> str:
        """The client's address, as far as somebody who is believed has said it; `unix:` of a Unix socket of which nobody says more."""
        peer: str = self.connection.peer(self)
        return peer

    @property
    def scheme(self) -> str:
        """`https` or `http`, as the client speaks it."""
        scheme: str = self.connection.scheme(self)
        return scheme

    def charge(self, kind: int, count: int) -> None:
        """It turned out to be so many more than one of a kind. Raises TooMany."""
        if count > 0 and self.account is not None:
            self.connection.door.gate.charge(self.account, kind, count)
        if count > 0 and self.grant.subject:
            self.connection.door.gate.charge_subject(self.grant, kind, count)

    def bring(self, channels: list[str]) -> None:
        """These channels come into being by it, if there are any. Raises TooMany."""
        self.charge(CHANNELS, len(channels))
        if channels and self.grant.subject:
            self.connection.door.gate.bring(self.grant.subject, channels)

    def go_on(self, some: "Callable[[Ask], bool]") -> None:
        """It is much: do the rest in line, piece by piece. `some` does one, and tells whether there are more."""
        self.connection.go_on_with(self, some)

    def on_gone(self, then: Callable[[], None]) -> None:
        """Call `then` if the client goes away before it is answered; it may have gone already."""
        self.gone = then
        if not self.connection.is_asked(self):
            then()

    def outlet(self) -> Any:
        """The transport, which is for who only writes from now on; this connection forgets it."""
        self.route.tally[200] += 1
        return self.connection.detach()


def everybody(ask: Ask) -> None:
    """The guard of a door that has none."""
    ask.grant = OPEN
    ask.connection.let_in(ask)
