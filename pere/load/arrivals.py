"""Feeds that come all at once, without a transport as long as they do.

A load that is dearer than its server measures itself, and whoever waits for a socket has to be woken by what the server writes to it, for which the server
pays; in the field another machine's network card does that. So the sockets of those who come are in one epoll, at which nobody waits: where nothing is found
it is looked at again after a millisecond. (Measured: 10,000 were back in 1.33 s, and in 1.74 with transports, of which the load made more than the
server.) Once all are there `settle` gives each a transport, and what it hears from then on is heard at once. Where there is no epoll (macOS), each is given one as
soon as it has been answered.
"""

import asyncio
import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from pere.load.lines import Feed

LOOK = 0.001  # seconds between two looks
AT_ONCE = 500  # connections that are being made at a time: beyond the queue of a listening socket the kernel drops them
HEARD = 65_536  # bytes of one read
READ, WRITE = select.POLLIN, select.POLLOUT  # which are those of epoll too
EPOLL: Any = getattr(select, "epoll", None)
NOT_YET = (errno.EAGAIN, errno.ENOTCONN)  # what Linux and BSD say to who speaks before it is connected


class Crowd:
    """Those who come together: how many are `left`, and `there`, which is done when all have been answered, or one could not come."""

    __slots__ = ("left", "there")

    def __init__(self, count: int):
        self.left = count
        self.there: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Arrival:
    """A feed's socket, in the place of its transport and by the same names. `unsent` is what it is still to say, None once it has said all."""

    __slots__ = ("_arrivals", "crowd", "feed", "sock", "unsent")

    def __init__(self, arrivals: "Arrivals", crowd: Crowd, feed: Feed, sock: socket.socket, request: bytes):
        self._arrivals = arrivals
        self.crowd: Crowd | None = crowd  # until it has come
        self.feed = feed
        self.sock: socket.socket | None = sock  # until it has a transport
        self.unsent: bytes | None = request

    def pause_reading(self) -> None:
        self._arrivals.forget(self)

    def close(self) -> None:
        if self.sock is not None:
            self._arrivals.forget(self)
            self.sock.close()
            self._arrivals.arrived(self.feed)


class Arrivals:
    """All who come. `connect` begins to make a connection for a feed, `ask` is what that says first, and `failed` what is said of one that cannot be made."""

    def __init__(self, connect: Callable[[Feed], socket.socket], ask: Callable[[Feed], bytes], failed: Callable[[OSError], Exception]):
        self._connect = connect
        self._ask = ask
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._poll: Any = EPOLL() if EPOLL is not None else select.poll()
        self._known: dict[int, Arrival] = {}
        self._waiting: deque[tuple[Crowd, Feed]] = deque()
        self._coming = 0  # who are not there yet, of those who have begun
        self._is_turning = False
        self._settling: set[asyncio.Task[None]] = set()

    async def open(self, feeds: Iterable[Feed]) -> None:
        """Done when all have been answered, whatever that was. Raises what `failed` makes of it as soon as one cannot be connected; then no more of them begin."""
        waiting = list(feeds)
        if not waiting:
            return
        crowd = Crowd(len(waiting))
        self._waiting += [(crowd, feed) for feed in waiting]
        self._begin()
        await crowd.there

    def arrived(self, feed: Feed) -> None:
        """It has been answered, or has gone before."""
        arrival = feed.transport
        if arrival.__class__ is Arrival and (crowd := arrival.crowd) is not None:
            arrival.crowd = None
            self._come(crowd)
            if EPOLL is None:
                self._settling.add(task := self._loop.create_task(self._settle(arrival)))
                task.add_done_callback(self._settling.discard)

    def _come(self, crowd: Crowd, error: Exception | None = None) -> None:
        self._coming -= 1
        crowd.left -= 1
        if not crowd.there.done():
            if error is not None:
                crowd.there.set_exception(error)
            elif not crowd.left:
                crowd.there.set_result(None)

    def _begin(self, delay: float = LOOK) -> None:
        """As many as may come; and look at them in so many seconds."""
        while self._waiting and self._coming < AT_ONCE:
            crowd, feed = self._waiting.popleft()
            if crowd.there.done():
                continue  # it was given up
            self._coming += 1
            try:
                sock = self._connect(feed)
            except OSError as error:
                self._come(crowd, self._failed(error))
                continue
            feed.transport = arrival = Arrival(self, crowd, feed, sock, self._ask(feed))
            self._known[sock.fileno()] = arrival
            self._poll.register(sock.fileno(), READ | WRITE)
            # Where the other end is on this machine it is connected by now.
            self._say(arrival, sock.fileno())
        if self._known and not self._is_turning:
            self._is_turning = True
            self._loop.call_later(delay, self._turn)

    def _say(self, arrival: Arrival, fd: int) -> None:
        """As much as the socket takes: nothing, as long as it is not connected."""
        assert arrival.sock is not None and arrival.unsent is not None
        try:
            arrival.unsent = arrival.unsent[arrival.sock.send(arrival.unsent) :] or None
        except OSError as error:
            if error.errno not in NOT_YET:
                self._fail(arrival, error)
            return
        if arrival.unsent is None:
            self._poll.modify(fd, READ)

    def _turn(self) -> None:
        found = self._poll.poll(0)
        try:
            for fd, events in found:
                if (arrival := self._known.get(fd)) is not None:
                    self._look(arrival, fd, events)
        finally:
            self._is_turning = False
            self._begin(0 if found else LOOK)

    def _look(self, arrival: Arrival, fd: int, events: int) -> None:
        try:
            if arrival.unsent is not None and events == WRITE:
                self._say(arrival, fd)
            else:
                self._hear(arrival, fd)
        except Exception as error:
            # As the loop does with a protocol that fails: it is told, and this one is lost, and no other.
            self._loop.call_exception_handler({"message": "a feed could not take what it was told", "exception": error})
            self._lose(arrival, None)

    def _hear(self, arrival: Arrival, fd: int) -> None:
        try:
            data = os.read(fd, HEARD)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(arrival, error)
            return
        if data:
            arrival.feed.data_received(data)
        else:
            self._lose(arrival, None)

    def _fail(self, arrival: Arrival, error: OSError) -> None:
        crowd = arrival.crowd
        if arrival.unsent is None or crowd is None:
            self._lose(arrival, error)
            return
        arrival.crowd = None
        arrival.close()
        self._come(crowd, self._failed(error))

    def _lose(self, arrival: Arrival, error: OSError | None) -> None:
        arrival.close()
        arrival.feed.connection_lost(error)

    def forget(self, arrival: Arrival) -> None:
        """It is not looked at any more."""
        if arrival.sock is not None and self._known.pop(arrival.sock.fileno(), None) is not None:
            self._poll.unregister(arrival.sock.fileno())

    async def settle(self) -> None:
        """Give each who is there a transport."""
        for arrival in list(self._known.values()):
            if arrival.crowd is None:
                await self._settle(arrival)

    async def _settle(self, arrival: Arrival) -> None:
        feed, sock = arrival.feed, arrival.sock
        if sock is None or self._known.get(sock.fileno()) is not arrival:
            return  # it has one, or wants none
        self.forget(arrival)
        arrival.sock = None
        try:
            await self._loop.create_connection(lambda: feed, sock=sock)
        except OSError as error:
            sock.close()
            feed.connection_lost(error)
        else:
            if feed.closing:
                feed.transport.close()  # somebody had it close meanwhile

    def close(self) -> None:
        """Nobody comes any more, and who waits for that is cancelled."""
        for crowd, _ in self._waiting:
            crowd.there.cancel()
        self._waiting.clear()
        for arrival in list(self._known.values()):
            arrival.feed.closing = True
            arrival.close()
