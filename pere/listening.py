"""Where connections come from: TCP, with or without TLS, a Unix socket, and a listener of its own for administration.

All of them lead to the one door. Only what stands behind it differs: what administers is not there for those who come by the public
listener, if it has another one.
"""

import asyncio
import contextlib
import errno
import os
import socket
import stat
from functools import partial
from typing import Any

from tornado.web import Application

from pere.config import Config, is_loopback
from pere.door import Door
from pere.http1 import Connection
from pere.tls import Certificate

BACKLOG = 4096  # connections that may wait to be accepted: a fleet that comes back comes at once
GOODBYE = 5.0  # seconds in which the other end of a TLS connection may say that it has heard the last word


class Listeners:
    """All that a server listens on. `public` is what those meet who come by `--port` or `--unix`, `admin` who come by `--admin-port`.
    Raises ConfigError where there is no certificate in the files that are named."""

    def __init__(self, door: Door, config: Config, public: Application, admin: Application):
        self.certificate = Certificate(config.tls_cert, config.tls_key) if config.tls_cert else None
        self.port = self.admin_port = 0
        self.urls: list[str] = []
        self._door = door
        self._config = config
        self._public = public
        self._admin = admin
        self._open: list[asyncio.Server] = []
        self._unix: tuple[int, int] | None = None  # the file that is ours

    @property
    def sockets(self) -> list[socket.socket]:
        """Those that listen."""
        return [each for server in self._open for each in server.sockets]

    async def open(self) -> None:
        """Listen. Raises OSError, with the address in `filename`, where one cannot be had: then nothing listens."""
        config = self._config
        try:
            if config.tcp:
                self.port = await self._tcp(config.host, config.port, self._public, self.certificate)
            if config.unix:
                await self._by_unix(config.unix)
            if config.admin_port >= 0:
                # Who asks from the machine itself (Prometheus, a console through a tunnel) would have to believe a certificate for another name.
                certificate = None if is_loopback(config.admin_host) else self.certificate
                self.admin_port = await self._tcp(config.admin_host, config.admin_port, self._admin, certificate)
        except BaseException:
            self.close()
            raise

    async def _tcp(self, host: str, port: int, app: Application, certificate: Certificate | None) -> int:
        secured: dict[str, Any] = {} if certificate is None else {
            "ssl": certificate.context, "ssl_handshake_timeout": self._config.head_timeout, "ssl_shutdown_timeout": GOODBYE}
        named = f"[{host}]" if ":" in host else host
        try:
            server = await asyncio.get_running_loop().create_server(partial(Connection, self._door, app), host, port, backlog=BACKLOG,
                                                                     reuse_port=self._config.reuse_port or None, **secured)
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), f"{named}:{port}") from None
        self._open.append(server)
        taken: int = server.sockets[0].getsockname()[1]
        self.urls.append(f"{'http' if certificate is None else 'https'}://{named}:{taken}")
        return taken

    async def _by_unix(self, path: str) -> None:
        listening = socket.socket(socket.AF_UNIX)
        try:
            _make_room(path)
            listening.bind(path)
            # Before it listens, so nobody gets in who may not.
            os.chmod(path, int(self._config.unix_mode, 8))
            found = os.stat(path)
            self._unix = found.st_dev, found.st_ino
            self._open.append(await asyncio.get_running_loop().create_unix_server(partial(Connection, self._door, self._public), sock=listening, backlog=BACKLOG))
        except OSError as error:
            listening.close()
            raise OSError(error.errno, error.strerror or str(error), path) from None
        self.urls.append(f"unix:{path}")

    def reload(self) -> None:
        """Read the certificate again, if there is one. Raises ConfigError where that fails; the one before then stays."""
        if self.certificate is not None:
            self.certificate.reload()

    def close(self) -> None:
        """Take no further connection; those that are there are the door's."""
        for server in self._open:
            server.close()
        self._open.clear()
        if self._unix is not None:
            # Somebody else may have put another one there since.
            with contextlib.suppress(OSError):
                found = os.lstat(self._config.unix)
                if (found.st_dev, found.st_ino) == self._unix:
                    os.unlink(self._config.unix)
            self._unix = None


def _make_room(path: str) -> None:
    """Remove a socket that a process left behind. Raises OSError where what is there is no socket, or somebody listens on it."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "a file is there that is no socket")
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.setblocking(False)
        try:
            visitor.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its queue is full, so somebody has one
    raise OSError(errno.EADDRINUSE, "another process listens there")
