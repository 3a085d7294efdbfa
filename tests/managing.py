"""A service manager as systemd is one: it holds the sockets, hands them to whom it starts, and hears what that says."""

import fcntl
import os
import socket
import subprocess
import sys
from typing import Any, Self

from processes import ENVIRONMENT, Process

FIRST = 3

# LISTEN_PID is known only once the process is there: it says it itself, and then becomes what it is to be.
BECOME = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "pere", *sys.argv[1:]])
"""


def listening(family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0)) -> socket.socket:
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(address)
    made.listen(4096)
    return made


class Managed(Process):
    """`pere` with these sockets, in their order. `names` are their LISTEN_FDNAMES."""

    def __init__(self, sockets: list[socket.socket], *arguments: str, names: str = "", **variables: str):
        self._sockets = sockets
        said = {"LISTEN_FDS": str(len(sockets))} | ({"LISTEN_FDNAMES": names} if names else {})
        super().__init__(*arguments, **said | variables)

    def _start(self, arguments: tuple[str, ...], variables: dict[str, str]) -> subprocess.Popen[bytes]:
        # The descriptors must be 3, 4...: what stands there is moved, in a process between us and the other.
        moved = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD, 100) for each in self._sockets]
        places = " ".join(f"{FIRST + n}<&{fd}" for n, fd in enumerate(moved))
        closed = " ".join(f"{fd}<&-" for fd in moved)
        try:
            return subprocess.Popen(["bash", "-c", f'exec "$@" {places} {closed}', "bash", sys.executable, "-c", BECOME, *arguments],
                                    env=ENVIRONMENT | variables, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err, pass_fds=moved)
        finally:
            for fd in moved:
                os.close(fd)


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
