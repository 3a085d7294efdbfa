"""Where connections come from: TCP, with or without TLS, a Unix socket, and a listener of its own for administration.

All of them lead to the one door. Only what stands behind it differs: what administers is not there for those who come by the public
listener, if it has another one.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import Any

from tornado.web import Application

from pere.config import Config, is_loopback
from pere.door import Door
from pere.handover import make_room
from pere.handshakes import Handshakes
from pere.http1 import Connection
from pere.limits import client_of
from pere.peers import of_socket
from pere.queues import beside, can_be_many, gather, sort, waiting
from pere.tls import Certificate

log = logging.getLogger("pere.listening")

# Python 3.13 and uvloop there take the file of a Unix socket away with the server that listens at it, though a service manager or the next
# process goes on there; whose it is to remove is known here.
KEPT: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
BACKLOG = 4096  # connections that may wait to be accepted: a fleet that comes back comes at once
CROWD, MOMENT = 128, 0.1  # so many who cannot stay, in so many seconds, are a crowd
TURN = 0.0003  # seconds of each turn in which it is taken in, before those who are there are served
CALM = 5.0  # seconds without a crowd until the loop takes them by itself again
MANY = 32  # who wait to be accepted are put into many queues
LOOK = 0.1  # seconds between two looks at that
SORTED = 5.0  # seconds until they are put into others
LOUD = 8  # clients that have a queue for themselves
STILL = 60.0  # seconds in which nobody waits there until they have not
REST = 1.0  # seconds until it is tried again, where no file could be opened
GOODBYE = 5.0  # seconds in which the other end of a TLS connection may say that it has heard the last word


class Listener:
    """One socket that listens, and whoever comes by it: `meet` makes what they meet. `is_shared` tells that another process has
    the same socket, so that what waits in its queue is not ours alone. `url` is where it is; where TLS is spoken, `secured` is what the loop is told of it.

    The loop takes one connection of each queue in each turn, so where somebody makes them faster than that, all others wait behind him. Where many wait there
    are therefore many queues (see `queues.py`). Where there cannot be, since others listen on the port too, and many cannot stay, they are taken here, many in a
    turn, and sent away before anything is made of them; which costs each who can stay 9 us and 200 bytes more."""

    def __init__(self, sock: socket.socket, url: str, is_shared: bool, meet: Callable[[], Connection], door: Door, secured: dict[str, Any]):
        self.sock = sock
        self.url = url
        self.is_shared = is_shared
        self._meet = meet
        self._door = door
        self._handshakes = Handshakes(door, meet, secured)
        self._secured = secured
        self._is_secured = bool(secured)
        self._crowded = 0.0  # until when they are taken here
        self._resting: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None
        self._starting: asyncio.Task[None] | None = None
        self._sorted = 0.0  # when it was last settled which client comes to which queue
        self._loud: dict[str, float] = {}  # who has one for itself, and when many last waited there
        self._others: list[Listener] = []  # the queues beside this one

    @property
    def _can_be_many(self) -> bool:
        return not self.is_shared and (bool(self._others) or can_be_many(self.sock))

    def look(self, now: float) -> None:
        """Where many wait, each client is to wait in one of many queues, and who fills one in one that nobody else comes to."""
        if not self._can_be_many:
            return
        queues, loud = (self, *self._others), tuple(self._loud)
        counts = [waiting(each.sock) for each in queues]
        for number, client in enumerate(loud, 1):
            if counts[-number] >= MANY:
                self._loud[client] = now
            elif now > self._loud[client] + STILL:
                del self._loud[client]
        fullest = max(range(len(queues) - len(loud)), key=counts.__getitem__)
        if self._others and counts[fullest] >= MANY:
            client = queues[fullest]._take_some()
            if client and len(self._loud) < LOUD:
                self._loud[client] = now
        if tuple(self._loud) == loud and (now < self._sorted + SORTED or counts[fullest] < MANY):
            return
        self._sorted = now
        try:
            if self._others:
                sort(self.sock, self._loud)
            else:
                self._open_others()
        except OSError as error:
            log.warning("there are no further queues for who connects", extra={"facts": {"error": error.strerror}})

    def _open_others(self) -> None:
        for sock in beside(self.sock, BACKLOG):
            self._others.append(other := Listener(sock, self.url, False, self._meet, self._door, self._secured))
            other._handshakes = self._handshakes
            other._starting = asyncio.get_running_loop().create_task(other._start_if_it_can())

    def _take_some(self) -> str:
        """Let in some of those who wait, to see who they are: the loop does not say who has gone again. Returns the client that more than half of them are, or ""."""
        whose: Counter[str] = Counter()
        with contextlib.suppress(OSError):
            for _ in range(MANY):
                visitor, address = self.sock.accept()
                whose[client_of(of_socket(address))] += 1
                self._handshakes.take(visitor, address)
        client, count = max(whose.items(), key=lambda each: each[1], default=("", 0))
        return client if count > MANY // 2 else ""

    async def start(self) -> None:
        make = asyncio.get_running_loop()
        if self.sock.family == socket.AF_UNIX:
            self._server = await make.create_unix_server(self._meet, sock=self.sock, backlog=BACKLOG, **KEPT)
        elif self._is_secured:
            self.sock.listen(BACKLOG)
            self._watch()
        else:
            self._server = await make.create_server(self._meet, sock=self.sock.dup(), backlog=BACKLOG)

    async def _start_if_it_can(self) -> None:
        try:
            await self.start()
        except OSError as error:
            # No file can be opened, and this takes one more: until it can, they are taken here, or nobody would ever take them.
            log.error("no connection can be taken by the loop", extra={"facts": {"error": error.strerror}})
            self._crowded = asyncio.get_running_loop().time() + REST
            self._watch()

    def take_over(self) -> None:
        """There is a crowd."""
        if self._server is not None and self.sock.family != socket.AF_UNIX and not self._can_be_many:
            self._server.close()
            self._server = None
            self._crowded = asyncio.get_running_loop().time() + CALM
            self._watch()

    def _watch(self) -> None:
        self._resting = None
        asyncio.get_running_loop().add_reader(self.sock, self._accept)

    def _accept(self) -> None:
        """Some have come, and those who are there have their turn too."""
        loop, end = asyncio.get_running_loop(), perf_counter() + TURN
        try:
            while perf_counter() < end:
                self._handshakes.take(*self.sock.accept())
            self._crowded = loop.time() + CALM
        except (BlockingIOError, ConnectionAbortedError):
            if not self._is_secured and loop.time() > self._crowded:
                loop.remove_reader(self.sock)
                self._starting = loop.create_task(self._start_if_it_can())
        except OSError as error:
            # No file can be opened, so they wait, and so do we: the socket would tell of them without end.
            log.error("no connection can be taken", extra={"facts": {"error": error.strerror}})
            loop.remove_reader(self.sock)
            self._resting = loop.call_later(REST, self._watch)

    async def close(self) -> None:
        """Take no further connection. Those that wait in the queue have been told by the kernel that they are connected, and would be reset with the
        socket: so they are taken first. If another process has this socket too, they are left to it."""
        loop = asyncio.get_running_loop()
        if self._others:
            gather(self.sock)
            for each in self._others:
                await each.close()
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
        if self._starting is not None:
            await self._starting
        same = self.sock.dup()
        same.setblocking(False)
        if self._server is not None:
            self._server.close()
            self._server = None
        else:
            if self._resting is not None:
                self._resting.cancel()
            loop.remove_reader(self.sock)
        self.sock.close()
        try:
            # As many as can wait: who comes in the place of each that is taken must not keep us here without end.
            for _ in range(BACKLOG + 1 if not self.is_shared else 0):
                visitor, address = same.accept()
                if self._is_secured:
                    self._handshakes.take(visitor, address)
                else:
                    await loop.connect_accepted_socket(self._meet, visitor)
        except OSError:
            pass  # there is no other, or this one has given up by now
        finally:
            same.close()
            self._handshakes.close()


class Listeners:
    """All that a server listens on. `public` is what those meet who come by `--port` or `--unix`, `admin` who come by `--admin-port`. `given` are sockets that
    listen already and stay with somebody else (see `systemd.py`), `taken` those that are ours alone (see `handover.py`), by what they are for. Raises ConfigError where there is no certificate in the files that are named."""

    def __init__(self, door: Door, config: Config, public: Application, admin: Application, given: Mapping[str, list[socket.socket]] = {},
                 taken: Mapping[str, list[socket.socket]] = {}):
        self.certificate = Certificate(config.tls_cert, config.tls_key) if config.tls_cert else None
        self.port = self.admin_port = 0
        self._door = door
        self._config = config
        self._public = public
        self._admin = admin
        self._given = given
        self._taken = taken
        self._open: list[Listener] = []
        self._apart: list[Listener] = []  # for administration: these close last
        self._unix: tuple[int, int] | None = None  # the file that is ours
        self._turned_away, self._since = 0, 0.0  # how many could not stay in this moment, which began then
        door.gate.on_turned_away = self._count

    def due(self, now: float) -> float:
        """Its turn on the wheel has come."""
        for each in (*self._open, *self._apart):
            each.look(now)
        return LOOK if self._open else 0.0

    def _count(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now > self._since + MOMENT:
            self._since, self._turned_away = now, 0
        self._turned_away += 1
        if self._turned_away == CROWD:
            for each in (*self._open, *self._apart):
                loop.call_soon(each.take_over)

    @property
    def sockets(self) -> list[socket.socket]:
        """Those that listen."""
        return [each.sock for each in (*self._open, *self._apart)]

    @property
    def urls(self) -> list[str]:
        return [each.url for each in (*self._open, *self._apart)]

    async def open(self) -> None:
        """Listen. Raises OSError, with the address in `filename`, where one cannot be had: then nothing listens."""
        config = self._config
        try:
            if config.tcp:
                self.port = await self._tcp(self._open, "tcp", config.host, config.port, self._public, self.certificate)
            if config.unix:
                await self._by_unix(config.unix)
            if config.admin_port >= 0:
                # Who asks from the machine itself (Prometheus, a console through a tunnel) would have to believe a certificate for another name.
                certificate = None if is_loopback(config.admin_host) else self.certificate
                self.admin_port = await self._tcp(self._apart, "admin", config.admin_host, config.admin_port, self._admin, certificate)
            self._door.wheel.add(self, LOOK)
        except BaseException:
            await self.close()
            await self.close_apart()
            raise

    async def _tcp(self, among: list[Listener], kind: str, host: str, port: int, app: Application, certificate: Certificate | None) -> int:
        secured: dict[str, Any] = {} if certificate is None else {
            "ssl": certificate.context, "ssl_handshake_timeout": self._config.head_timeout, "ssl_shutdown_timeout": GOODBYE}
        given, is_shared = self._given.get(kind), not self._config.reuse_port
        taken = 0
        for sock in given or self._taken.get(kind) or bound(host, port, self._config.reuse_port):
            own: int = sock.getsockname()[1]
            url = f"{'http' if certificate is None else 'https'}://{_named(host)}:{own}"
            among.append(Listener(sock, url, given is not None and is_shared, partial(Connection, self._door, app), self._door, secured))
            await among[-1].start()
            taken = taken or own
        return taken

    async def _by_unix(self, path: str) -> None:
        given, taken = self._given.get("unix"), self._taken.get("unix")
        while taken and not os.path.exists(path):
            taken.pop().close()  # somebody has removed its file, and nobody can come by it any more
        listening = (given or taken or [socket.socket(socket.AF_UNIX)])[0]
        try:
            if not given and not taken:
                make_room(path)
                listening.bind(path)
                # Before it listens, so nobody gets in who may not.
                os.chmod(path, int(self._config.unix_mode, 8))
            if not given:
                found = os.stat(path)
                self._unix = found.st_dev, found.st_ino
            self._open.append(Listener(listening, f"unix:{path}", bool(given), partial(Connection, self._door, self._public), self._door, {}))
            await self._open[-1].start()
        except OSError as error:
            listening.close()
            raise OSError(error.errno, error.strerror or str(error), path) from None

    def sockets_by_kind(self) -> list[tuple[tuple[str, str, int], socket.socket]]:
        """Those that listen, each with its kind, and with what it was told to listen on."""
        config = self._config
        public = [(("unix", config.unix, 0) if each.sock.family == socket.AF_UNIX else ("tcp", config.host, config.port), each.sock) for each in self._open]
        return public + [(("admin", config.admin_host, config.admin_port), each.sock) for each in self._apart]

    def copies(self) -> dict[str, list[socket.socket]]:
        """The same sockets by their kinds, which stay when these are closed."""
        copies: dict[str, list[socket.socket]] = {}
        for (kind, *_), each in self.sockets_by_kind():
            copies.setdefault(kind, []).append(each.dup())
        return copies

    def share(self) -> None:
        """Another process has all of these sockets too: who waits in their queues is left to it, and so is the file."""
        for each in (*self._open, *self._apart):
            each.is_shared = True
        self._unix = None

    def is_admin(self, connection: Connection) -> bool:
        """Whether somebody came by the listener for administration."""
        return self._admin is not self._public and connection.app is self._admin

    async def adopt(self, visitor: socket.socket, is_admin: bool) -> None:
        """Go on with a connection that another process has let in, between two requests. Raises OSError where it has ended."""
        account = self._door.gate.account(of_socket(visitor.getpeername()), is_socket=True)
        connection = Connection(self._door, self._admin if is_admin else self._public)
        connection.account, connection.is_expected, connection.is_fresh = account, True, False
        if account is not None:
            account.connections += 1
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, visitor)

    def renew(self, config: Config) -> Callable[[], None]:
        """The certificate, if there is one."""
        return self.certificate.renew() if self.certificate is not None else lambda: None

    async def close(self) -> None:
        """Take no further connection but for administration, so that whoever watches may see the end; those that are there are the door's."""
        closing, self._open = self._open, []
        for each in closing:
            await each.close()
        if self._unix is not None:
            # Somebody else may have put another one there since.
            with contextlib.suppress(OSError):
                found = os.lstat(self._config.unix)
                if (found.st_dev, found.st_ino) == self._unix:
                    os.unlink(self._config.unix)
            self._unix = None

    async def close_apart(self) -> None:
        closing, self._apart = self._apart, []
        for each in closing:
            await each.close()


def bound(host: str, port: int, is_shared: bool) -> list[socket.socket]:
    """Sockets that listen on all addresses of a host; with `is_shared` others may do so too. Raises OSError, with the address in `filename`."""
    made: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            made.append(each := socket.socket(family, kind, protocol))
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_shared:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                each.bind(address)
            except OSError as error:
                # A name may stand for an address of a kind that this machine has not.
                if error.errno != errno.EADDRNOTAVAIL or family != socket.AF_INET6 or len(found) == 1:
                    raise
                made.pop().close()
            else:
                each.listen(BACKLOG)
    except OSError as error:
        for each in made:
            each.close()
        raise OSError(error.errno, error.strerror or str(error), f"{_named(host)}:{port}") from None
    return made


def _named(host: str) -> str:
    return f"[{host}]" if ":" in host else host
