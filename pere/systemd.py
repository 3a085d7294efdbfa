"""What a service manager hands to the process that it starts, and is told by it: systemd's protocols, which others speak too.

*Sockets* (sd_listen_fds(3)). `LISTEN_FDS=N` says that the descriptors 3 to 2+N are sockets that listen already, if `LISTEN_PID` is the
process's own id; `LISTEN_FDNAMES` names them, with colons between. They stay open in the manager while the process is exchanged, so whoever connects
meanwhile waits in their queue and is not refused. One that is named `admin` is the listener for administration, every other one is public.

*Notices* (sd_notify(3)). Lines of `NAME=VALUE` in one datagram to the Unix socket that `NOTIFY_SOCKET` names; `@` at its beginning is a zero byte.
`READY=1` when it serves, `RELOADING=1` with `MONOTONIC_USEC` and then `READY=1` around a reload, `STOPPING=1` at the end, `STATUS=` for people.

*The store* (FDSTORE=1, systemd.io/FILE_DESCRIPTOR_STORE). A descriptor that is sent beside a notice stays in the manager while the process is exchanged, and is handed to the next
one among the sockets. `FDSTORE=N` in the environment says that there is room (of itself from systemd 254 on); `BARRIER=1` that what was said before has been heard.

*The watchdog* (sd_watchdog_enabled(3)). Who does not hear `WATCHDOG=1` for `WATCHDOG_USEC` microseconds kills the process, if `WATCHDOG_PID` is its
id or not said, and starts it anew.
"""

import asyncio
import contextlib
import os
import select
import socket
import time
from collections.abc import MutableMapping

from pere.config import Config
from pere.errors import ConfigError

FIRST = 3  # descriptor, behind standard input, output and error
ADMIN = "admin"
HANDOVER = "pere-handover"  # what the process before this one has left
HEARD = 10.0  # seconds that the manager may take to hear what it is told
AGAIN = 0.05  # seconds until it is told again for which it had no room


def inherited(environ: MutableMapping[str, str] = os.environ) -> dict[str, list[socket.socket]]:
    """The sockets that were handed in, by their names. The variables are taken away, so that no child believes that they are for it.
    Raises ConfigError for what does not listen."""
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    named, found = names.split(":") if names else [], {}  # type: list[str], dict[str, list[socket.socket]]
    for place in range(int(count)):
        name = named[place] if place < len(named) else "unknown"
        try:
            handed = socket.socket(fileno=FIRST + place)
            listens = name == HANDOVER or (handed.type == socket.SOCK_STREAM and handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        except OSError as error:
            raise ConfigError(f"LISTEN_FDS={count}, and descriptor {FIRST + place} is no socket: {error.strerror}") from None
        if not listens:
            raise ConfigError(f"LISTEN_FDS={count}, and the socket {name} does not listen for streams")
        handed.setblocking(False)
        handed.set_inheritable(False)
        found.setdefault(name, []).append(handed)
    return found


def adopted(config: Config, sockets: dict[str, list[socket.socket]]) -> tuple[Config, dict[str, list[socket.socket]]]:
    """The settings as they are with these sockets instead of what they say of listening; and each socket by what it is for: `tcp`, `unix` or `admin`. Raises
    ConfigError as Config does: where one can be reached by others, that asks for keys, or for --insecure."""
    said: dict[str, object] = {}
    taken: dict[str, list[socket.socket]] = {}
    for name, several in sockets.items():
        for each in several:
            is_unix = each.family == socket.AF_UNIX
            kind = "admin" if name == ADMIN else "unix" if is_unix else "tcp"
            if kind in taken:
                raise ConfigError(f"LISTEN_FDS hands in more than one socket for {kind}: there may be one of TCP, one Unix socket, and one TCP socket named {ADMIN}")
            if kind == "admin" and is_unix:
                raise ConfigError(f"LISTEN_FDS hands in a Unix socket named {ADMIN}: administration is by TCP")
            taken[kind] = [each]
            address = each.getsockname()
            said |= {"unix": address} if is_unix else {"admin_host": address[0], "admin_port": address[1]} if kind == "admin" else {"host": address[0], "port": address[1]}
    if {"tcp", "unix"} & taken.keys():
        # Two processes have each of them, which needs no SO_REUSEPORT.
        said |= {"tcp": "tcp" in taken, "reuse_port": False} | ({} if "unix" in taken else {"unix": ""})
    return config.but(said), taken


def notify(*lines: str, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Tell the manager, if there is one. One that does not listen is no reason to fail; False where it has no room at the moment, and may be told again."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as visitor, contextlib.suppress(OSError):
        visitor.setblocking(False)
        try:
            visitor.sendto("\n".join(lines).encode(), "\0" + address[1:] if address[0] == "@" else address)
        except BlockingIOError:  # too many stand in its queue (unix(7), max_dgram_qlen)
            return False
    return True


async def serves(*lines: str) -> None:
    """Tell it that it serves: who is not heard is ended as one that did not start, or is not done with its reload."""
    until = time.monotonic() + HEARD
    while not notify("READY=1", *lines) and time.monotonic() < until:
        await asyncio.sleep(AGAIN)


def keeps(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Whether the manager keeps descriptors for the next process."""
    room = environ.get("FDSTORE", "")
    return bool(environ.get("NOTIFY_SOCKET")) and room.isdigit() and int(room) > 0


def keep(descriptor: int, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Leave a descriptor to the manager, for the next process; whether it has heard that. Without this it would not be known whether we are still there when it
    looks who has said so."""
    address, (ours, theirs) = environ["NOTIFY_SOCKET"], os.pipe()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as visitor:
            visitor.settimeout(HEARD)
            visitor.connect("\0" + address[1:] if address[0] == "@" else address)
            # Not to be polled (FDPOLL=0): that nobody is at the other end any more is no reason to throw it away.
            socket.send_fds(visitor, [f"FDSTORE=1\nFDNAME={HANDOVER}\nFDPOLL=0".encode()], [descriptor])
            socket.send_fds(visitor, [b"BARRIER=1"], [theirs])
        os.close(theirs)
        theirs, poll = -1, select.poll()  # whose descriptors may be of any number
        poll.register(ours, select.POLLIN)
        return bool(poll.poll(HEARD * 1000))
    except OSError:
        return False
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def reloading() -> tuple[str, str]:
    """What is said before a reload; `READY=1` ends it."""
    return "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"


def watchdog(environ: MutableMapping[str, str] = os.environ) -> float:
    """Within how many seconds the manager must hear of us again and again; 0 if it need not."""
    microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(os.getpid()))
    return int(microseconds) / 1e6 if microseconds.isdigit() and pid == str(os.getpid()) else 0.0
