"""Sockets that are only written to, as those of feeds are.

A transport holds all that it takes to read and to write, which is 1.3 KiB (measured, uvloop), and a quiet feed uses none of it: it is written to by its
descriptor, and has nothing to say. So when a connection becomes a feed its transport goes, and the feed itself is the Outlet in its place: it drops what it
hears, keeps what the socket does not take, and is told when there is room again and when the other end has gone. One
epoll watches all of them. Where there is no epoll (macOS), and over TLS, the transport stays.
"""

import asyncio
import errno
import os
import resource
import select
import socket
import sys
from typing import Any

import uvloop.loop

LEFT = 64  # files that can still be opened beside the copies: a transport is closed only in the next turn, and meanwhile somebody else may connect
HEARD = 65_536  # bytes that are dropped at once
READ, WRITE = getattr(select, "EPOLLIN", 0), getattr(select, "EPOLLOUT", 0)
PLAIN = (uvloop.loop.TCPTransport, uvloop.loop.UnixTransport) if READ else ()  # type: ignore[attr-defined]  # transports of mere sockets


class Outlet:
    """One of them, by its descriptor `fd`, which is -1 once it is closed; nothing is written to it any more where there is a `reason`. It is told of what happens by
    the names that a transport uses. A feed wants to know (`feed.py`); one that is still on its way from another process does not."""

    __slots__ = ("fd", "outlets", "reason", "unsent")

    fd: int
    outlets: "Outlets"

    def __init__(self) -> None:
        self.reason = ""
        self.unsent: list[bytes | memoryview] | None = None  # as long as the socket is full

    def pause_writing(self) -> None:
        """The socket is full."""

    def resume_writing(self) -> None:
        """All that waited has gone."""

    def connection_lost(self, error: Exception | None) -> None:
        """The other end has gone."""

    def is_closing(self) -> bool:
        return self.fd < 0

    def waiting(self) -> int:
        """How many bytes the socket has not taken yet."""
        return sum(map(len, self.unsent)) if self.unsent is not None else 0

    def write(self, data: bytes) -> bool:
        """Write, and tell whether the socket took it all. What it did not take is not lost: it waits."""
        if self.reason:
            return False
        if self.unsent is None:
            try:
                taken = os.write(self.fd, data)
            except BlockingIOError:
                taken = 0
            except OSError:
                self._gone()
                return False
            if taken == len(data):
                return True
            data = data[taken:]
        self.keep(data)
        return False

    def keep(self, rest: bytes | memoryview) -> None:
        """The socket did not take this: it waits until there is room."""
        if self.unsent is not None:
            self.unsent.append(rest)
            return
        self.unsent = [rest]
        self.outlets.watch(self.fd, READ | WRITE)
        self.pause_writing()

    def drain(self) -> None:
        """There is room."""
        unsent = self.unsent
        try:
            while unsent:
                taken = os.write(self.fd, unsent[0])
                if taken < len(unsent[0]):
                    unsent[0] = unsent[0][taken:]
                    return
                del unsent[0]
        except BlockingIOError:
            return
        except OSError:
            self._gone()
            return
        if unsent is not None:
            self.unsent = None
            self.outlets.watch(self.fd, READ)
            self.resume_writing()

    def hear(self) -> None:
        """The other end says something, which nobody wants to know, or has gone."""
        try:
            heard = os.read(self.fd, HEARD)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        if not heard:
            self._gone()

    def _gone(self) -> None:
        # It is told of before the descriptor is closed, whose number may be that of another socket then.
        try:
            self.connection_lost(None)
        finally:
            self.abort()

    def abort(self) -> None:
        """Close. What the socket has not taken is lost, as it is for who reads nothing. Nobody is told."""
        if self.fd < 0:
            return
        fd, self.fd, self.unsent = self.fd, -1, None
        self.outlets.forget(fd)
        os.close(fd)


class Outlets:
    """All of them, by descriptor."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._open: dict[int, Outlet] = {}
        self._poll: Any = None  # as long as nobody needs one
        self._most = 0  # the highest number that a copy may have

    def take(self, transport: Any, outlet: Outlet) -> bool:
        """Let this one be in the place of a transport on which nothing is under way. False where it cannot be."""
        if transport.__class__ not in PLAIN or transport.get_write_buffer_size() or transport.is_closing():
            return False
        fd = -1
        try:
            if self._poll is None:
                self._begin()
            fd = os.dup(transport.get_extra_info("socket").fileno())
            if fd > self._most:
                raise OSError(errno.EMFILE, "few files can still be opened")
            self._poll.register(fd, READ)
        except OSError:
            if fd >= 0:
                os.close(fd)
            return False  # as many are open, or watched, as may be
        transport.abort()  # which closes its descriptor, and not the connection
        outlet.fd, outlet.outlets = fd, self
        self._open[fd] = outlet
        return True

    def adopt(self, sock: socket.socket, outlet: Outlet) -> bool:
        """The same for a socket that has no transport yet."""
        try:
            if not READ:
                return False
            if self._poll is None:
                self._begin()
            self._poll.register(sock.fileno(), READ)
        except OSError:
            return False
        outlet.fd, outlet.outlets = sock.detach(), self
        self._open[outlet.fd] = outlet
        return True

    def replace(self, held: Outlet, outlet: Outlet) -> None:
        """Let this one be in the place of another."""
        outlet.fd, outlet.outlets = held.fd, self
        self._open[held.fd] = outlet

    def _begin(self) -> None:
        self._poll = select.epoll()
        self._loop.add_reader(self._poll.fileno(), self._look)
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = files - LEFT if files != resource.RLIM_INFINITY else sys.maxsize

    def watch(self, fd: int, events: int) -> None:
        self._poll.modify(fd, events)

    def forget(self, fd: int) -> None:
        # Another process may have the same socket, so to close it is not enough.
        del self._open[fd]
        self._poll.unregister(fd)

    def _look(self) -> None:
        """What is left after one turn is found again in the next."""
        for fd, events in self._poll.poll(0):
            outlet = self._open.get(fd)
            if outlet is not None and events & WRITE:
                outlet.drain()
            if outlet is not None and events & ~WRITE and not outlet.is_closing():
                outlet.hear()

    def close(self) -> None:
        """Watch no more; those that are still open are closed."""
        for outlet in list(self._open.values()):
            outlet.abort()
        if self._poll is not None:
            self._loop.remove_reader(self._poll.fileno())
            self._poll.close()
            self._poll = None
