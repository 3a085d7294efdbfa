"""A process that is handed sockets, as a service manager hands them (sd_listen_fds(3)); who calls this holds them while one process follows another."""

import fcntl
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from itertools import cycle
from typing import Any

FIRST = 3

# LISTEN_PID is known only once the process is there: it says it itself, and then becomes what it is to be.
BECOME = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "pere", *sys.argv[1:]])
"""


# Each once before any comes again: who is given one here and listens there later finds that no other was given it meanwhile. Nor by a process beside
# this one: it begins with others.
APART = 16
_ports = cycle(sorted(random.SystemRandom().sample(own := range(28_000, 32_000), len(own)), key=lambda port: (port - os.getpid()) % APART))


def listening(family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0)) -> socket.socket:
    """Where no port is named, it is one below those that the system gives to whoever connects: nobody has it by the time when the next process listens there."""
    while True:
        is_any = address[1:] == (0,)
        made = socket.socket(family)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((address[0], next(_ports)) if is_any else address)
            made.listen(4096)
            return made
        except OSError:
            made.close()
            if not is_any:
                raise


def handed(sockets: Sequence[socket.socket], arguments: Sequence[str], env: dict[str, str], names: str = "", **more: Any) -> "subprocess.Popen[bytes]":
    """`pere` with these arguments, and these sockets as its descriptors 3, 4 and so on."""
    env = env | {"LISTEN_FDS": str(len(sockets))} | ({"LISTEN_FDNAMES": names} if names else {})
    # Where they are to stand something else stands here, so they are moved by a shell between us and the other.
    moved = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD, 100) for each in sockets]
    places = " ".join(f"{FIRST + n}<&{fd} {fd}<&-" for n, fd in enumerate(moved))
    try:
        return subprocess.Popen(["bash", "-c", f'exec "$@" {places}', "bash", sys.executable, "-c", BECOME, *arguments], env=env, pass_fds=moved, **more)
    finally:
        for fd in moved:
            os.close(fd)
