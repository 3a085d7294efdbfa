"""A service manager as systemd is one: it holds the sockets, hands them to whom it starts, and hears what that says."""

import os
import socket
import subprocess
import time
from contextlib import suppress
from typing import Self

from processes import ENVIRONMENT, SECONDS, Process

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
        self.kept: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + path[1:] if path.startswith("@") else path)

    def next(self, seconds: float = SECONDS) -> dict[str, str]:
        """What is said next, but for BARRIER=1, which only wants to be heard. A descriptor that is to be kept is in `kept`."""
        self._socket.settimeout(seconds)
        while True:
            said, descriptors, _, _ = socket.recv_fds(self._socket, 65536, 8)
            told = dict(line.split("=", 1) for line in said.decode().split("\n"))
            if "FDSTORE" in told:
                self.kept += [socket.socket(fileno=each) for each in descriptors]
            else:
                for each in descriptors:
                    os.close(each)
            if "BARRIER" not in told:
                return told

    def until(self, name: str) -> list[str]:
        """The names of all that was said, up to this one."""
        said: list[str] = []
        deadline = time.monotonic() + SECONDS  # who says again and again that all is well does not say that
        while name not in said:
            assert time.monotonic() < deadline, said
            said += self.next()
        return said

    def fill(self) -> None:
        """Let nothing more be said until something is heard (net.unix.max_dgram_qlen)."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as visitor, suppress(BlockingIOError):
            visitor.setblocking(False)
            while True:
                visitor.sendto(b"STATUS=full", "\0" + self.path[1:] if self.path.startswith("@") else self.path)

    def drain(self) -> None:
        """What has been said so far is of no interest."""
        with suppress(BlockingIOError):
            while True:
                self.next(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()
        for each in self.kept:
            each.close()
