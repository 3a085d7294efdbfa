"""Sockets that are only written to, as those of feeds are.

A transport holds all that it takes to read and to write, which is 1.3 KiB (measured, uvloop), and a quiet feed uses none of it: it is written to by its
descriptor, and has nothing to say. So when a connection becomes a feed its transport goes, and an Outlet comes into its place, which means the same
by the same names, as far as a feed knows them: it drops what it hears, keeps what the socket does not take, and tells when there is room again and when the other end has gone. One
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

LEFT = 64  # files that can still be opened beside the copies: a transport is closed only in the next turn, and meanwhile somebody else may connect
HEARD = 65_536  # bytes that are dropped at once
READ, WRITE = getattr(select, "EPOLLIN", 0), getattr(select, "EPOLLOUT", 0)


class Outlet:
    """One of them. What it is told of is said to its protocol, as a transport does; but who closes it is not told that it is closed."""

    __slots__ = ("_fd", "_outlets", "_protocol", "_unsent")

    def __init__(self, outlets: "Outlets", fd: int):
        self._outlets = outlets
        self._fd = fd
        self._protocol: Any = None
        self._unsent: list[bytes | memoryview] | None = None  # as long as the socket is full

    def fileno(self) -> int:
        return self._fd

    def get_extra_info(self, name: str) -> Any:
        return self if name == "socket" else None

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol

    def set_write_buffer_limits(self, high: int) -> None:
        """It is full at the first byte that the socket does not take."""

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self._unsent)) if self._unsent is not None else 0

    def is_closing(self) -> bool:
        return self._fd < 0

    def write(self, data: bytes | memoryview) -> None:
        if self._fd < 0:
            return
        if self._unsent is not None:
            self._unsent.append(data)
            return
        try:
            taken = os.write(self._fd, data)
        except BlockingIOError:
            taken = 0
        except OSError:
            return  # that it has gone is heard in the next turn
        if taken < len(data):
            self._unsent = [data[taken:]]
            self._outlets.watch(self._fd, READ | WRITE)
            if self._protocol is not None:
                self._protocol.pause_writing()

    def drain(self) -> None:
        """There is room."""
        unsent = self._unsent
        try:
            while unsent:
                taken = os.write(self._fd, unsent[0])
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
            self._unsent = None
            self._outlets.watch(self._fd, READ)
            if self._protocol is not None:
                self._protocol.resume_writing()

    def hear(self) -> None:
        """The other end says something, which nobody wants to know, or has gone."""
        try:
            heard = os.read(self._fd, HEARD)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        if not heard:
            self._gone()

    def _gone(self) -> None:
        # It is told of before the descriptor is closed, whose number may be that of another socket then.
        try:
            if self._protocol is not None:
                self._protocol.connection_lost(None)
        finally:
            self.abort()

    def abort(self) -> None:
        """Close. What the socket has not taken is lost, as it is for who reads nothing."""
        if self._fd < 0:
            return
        fd, self._fd, self._protocol, self._unsent = self._fd, -1, None, None
        self._outlets.forget(fd)
        os.close(fd)

    close = abort


class Outlets:
    """All of them, by descriptor."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._open: dict[int, Outlet] = {}
        self._poll: Any = None  # as long as nobody needs one
        self._most = 0  # the highest number that a copy may have

    def take(self, transport: Any) -> Any:
        """An outlet in the place of a transport on which nothing is under way; the transport itself where there can be none."""
        if not READ or transport.get_extra_info("sslcontext") is not None or transport.get_write_buffer_size() or transport.is_closing():
            return transport
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
            return transport  # as many are open, or watched, as may be
        transport.abort()  # which closes its descriptor, and not the connection
        outlet = self._open[fd] = Outlet(self, fd)
        return outlet

    def adopt(self, sock: socket.socket) -> Outlet | None:
        """An outlet for a socket that has no transport yet; None where there can be none."""
        try:
            if not READ:
                return None
            if self._poll is None:
                self._begin()
            self._poll.register(sock.fileno(), READ)
        except OSError:
            return None
        fd = sock.detach()
        outlet = self._open[fd] = Outlet(self, fd)
        return outlet

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
