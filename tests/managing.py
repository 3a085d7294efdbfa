"""A service manager as systemd is one: it holds the sockets, hands them to whom it starts, and hears what that says."""

import socket
import subprocess
from typing import Self

from processes import ENVIRONMENT, Process

from bench.handing import handed


class Managed(Process):
    """`pere` with these sockets, in their order. `names` are their LISTEN_FDNAMES."""

    def __init__(self, sockets: list[socket.socket], *arguments: str, names: str = "", **variables: str):
        self._sockets, self._names = sockets, names
        super().__init__(*arguments, **variables)

    def _start(self, arguments: tuple[str, ...], variables: dict[str, str]) -> "subprocess.Popen[bytes]":
        return handed(self._sockets, arguments, ENVIRONMENT | variables, self._names, stdin=self.stdin, stdout=self._out, stderr=self._err)


class Notices:
    """What a process says by sd_notify."""

    def __init__(self, path: str):
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + path[1:] if path.startswith("@") else path)

    def next(self, seconds: float = 15) -> dict[str, str]:
        self._socket.settimeout(seconds)
        return dict(line.split("=", 1) for line in self._socket.recv(65536).decode().split("\n"))

    def until(self, name: str) -> list[str]:
        """The names of all that was said, up to this one."""
        said: list[str] = []
        while name not in said:
            said += self.next()
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()
