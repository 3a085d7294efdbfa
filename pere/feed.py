"""One open feed: a socket that only we write to. No parser, no handler and no request live behind it, and mostly no transport.

A feed is *live* while its socket takes everything at once; the hub then writes to its descriptor directly. When the socket is
full, what it did not take waits, and the feed is *behind* until that has gone. Which events it gets is
the hub's business.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol

import orjson

from pere.audience import Member
from pere.devices import Device
from pere.event import SECURE, UNCHUNKED
from pere.limits import Account
from pere.outlets import Outlet, Outlets
from pere.sse import chunk, frame

# Why a feed was closed: each is counted by name.
GONE, SLOW, DRAIN, REPLACED, KICKED, UNKEPT, REDELIVER, EXPIRED = "gone", "slow", "drain", "replaced", "kicked", "unkept", "redeliver", "expired"
PASSED = "passed"  # on, to the process that follows this one: the connection goes on


def bye(reason: str, retry: float) -> bytes:
    """`pere.bye`: why the feed ends, and in how many seconds to come back."""
    told = orjson.dumps({"reason": reason, "retry": round(retry, 3)})
    return b"retry: %d\n" % round(retry * 1000) + frame(told, event=b"pere.bye")


def ended(last: bytes, form: int) -> bytes:
    """A last frame, and the end of the response (RFC 9112, 7.1), as they are written for this form."""
    return last if form & UNCHUNKED else chunk(last) + b"0\r\n\r\n"


class Place:
    """A feed's place on one channel, by ordinals of its events: `ordinal` is the last one it was given, as long as it is not live
    (`id` is that event's id, 0 if it is not known). What came before it connected, up to `known`, is given only as far as the
    device still owes a receipt, and counts as a further attempt up to `sent`; what asks for no receipt is given above `read`, and above `wanted` everything."""

    __slots__ = ("channel", "feed", "id", "known", "member", "ordinal", "read", "sent", "wanted")

    def __init__(self, feed: "Feed", channel: Any, member: Member | None, ordinal: int):
        self.feed = feed
        self.channel = channel
        self.member = member
        self.ordinal = ordinal
        self.id = 0
        self.known = 0
        self.sent = 0
        self.read = 0
        self.wanted = sys.maxsize

    def mark(self) -> None:
        """The device was written to up to here. It only moves on: a second feed that reads what is old takes nothing back."""
        if self.member is not None and self.ordinal > self.member.position:
            self.member.position = self.ordinal


class Owner(Protocol):
    """Who keeps the feeds: the hub. `clock` is seconds since 1970, `retry` in how many to come back."""

    clock: Callable[[], float]
    outlets: Outlets
    retry: float

    def catch_up(self, feed: "Feed") -> None:
        """There is room in its socket again."""

    def fall_behind(self, feed: "Feed") -> None:
        """It was live, and its socket is full."""

    def left(self, feed: "Feed") -> None:
        """It is closed, for the reason that it names."""

    def beat(self, feed: "Feed", now: float) -> float:
        """Its turn on the wheel has come."""


class Feed(Outlet):
    """What a connection has become. `form` is how events are written for it (`event.RAW` and so on);
    `expires` is when its token does, in seconds since 1970, if it has one."""

    __slots__ = ("account", "care", "device", "expires", "form", "greeting", "is_waiting", "live", "owner", "patterns", "places", "stuck_since", "throng", "waited", "written")

    def __init__(self, owner: Owner, form: int, device: Device | None, patterns: tuple[str, ...], now: float, expires: float | None = None):
        self.reason = ""
        self.unsent = None
        self.owner = owner
        self.expires = expires
        self.form = form
        self.device = device
        self.patterns = patterns
        self.account: Account | None = None  # whose feeds it counts among, if limits do count
        self.greeting = b""  # the response head and first frames, until they are written
        self.places: tuple[Place, ...] = ()
        self.care: Any = None  # for what it has under way (`redelivery.py`); such a feed is never live
        self.live = False
        self.throng: Any = None  # what it belongs to, where its client has very many (`throng.py`)
        self.is_waiting = False  # for its registration to be kept, or for an event that is being fetched
        self.stuck_since = 0.0  # since when the socket is full and takes nothing
        self.waited = 0  # bytes that waited for it when we last looked
        self.written = now

    def count_for(self, account: Account | None) -> None:
        """Until it is closed, it is one of the feeds of this account."""
        if account is not None and not self.reason:
            self.account = account
            account.feeds += 1

    def _leave(self, reason: str) -> None:
        self.reason = reason
        if self.account is not None:
            self.account.feeds -= 1
        self.owner.left(self)

    def tell(self, frame: bytes) -> None:
        """Write a frame that is not in the order of the backlog."""
        if not self.write(frame) and self.live and not self.reason:
            self.owner.fall_behind(self)

    def control(self, frame: bytes) -> bytes:
        """A frame as it is written to this feed."""
        return frame if self.form & UNCHUNKED else chunk(frame)

    def stuck(self, now: float, most: float, heartbeat: float) -> float | None:
        """In how many seconds to look again at a socket that is full; 0 if it took nothing for `most` seconds, and was cut off. None if
        it is not full."""
        if not self.stuck_since:
            return None
        waiting = self.waiting()
        if waiting < self.waited:
            self.stuck_since = now  # slow, but not stuck: it took something since we last looked
        self.waited = waiting
        if now - self.stuck_since >= most:
            self.close(SLOW)
            return 0.0
        return min(heartbeat, most - (now - self.stuck_since) + 0.01)

    def close(self, reason: str, last: bytes = b"") -> None:
        """Close for this reason, after a last frame if the socket takes it."""
        if self.reason:
            return
        if last:
            self.write(self.greeting + ended(last, self.form))
        if self.reason:
            return
        self._leave(reason)
        self._end()

    def _end(self) -> None:
        self.abort()

    def pass_on(self) -> tuple[int, bytes]:
        """Leave the connection to another process: our descriptor of it, which stays open, and what is still to be written to it before anything else."""
        self._leave(PASSED)
        if self.unsent is None:
            return self.fd, b""
        own, rest = os.dup(self.fd), b"".join(self.unsent)
        self.abort()  # or it would be written twice; that closes a descriptor, and not the connection
        return own, rest

    # What its socket says

    def connection_lost(self, error: Exception | None) -> None:
        if not self.reason:
            self._leave(GONE)

    def pause_writing(self) -> None:
        self.stuck_since = asyncio.get_running_loop().time()

    def resume_writing(self) -> None:
        self.stuck_since = 0.0
        self.waited = 0
        if not self.reason:
            self.owner.catch_up(self)

    # What the wheel says

    def due(self, now: float) -> float:
        """Its end, if its token has expired, or else its owner's look at it."""
        if self.reason:
            return 0.0
        if self.expires is not None and self.owner.clock() >= self.expires:
            self.close(EXPIRED, bye(EXPIRED, self.owner.retry))
            return 0.0
        return self.soon(self.owner.beat(self, now))

    def soon(self, delay: float) -> float:
        """When its next turn on the wheel is, which would come in `delay` seconds: sooner, if its token expires sooner. A clock that is
        set meanwhile is noticed then."""
        if self.expires is None or (left := self.expires - self.owner.clock()) >= delay:
            return delay
        return max(left, 0.001)


class Carried(Feed, asyncio.Protocol):
    """A feed whose transport stays, as its protocol: where there is no epoll, or no more descriptors can be had."""

    __slots__ = ("transport",)

    high = 0  # pause at the first byte that the socket does not take: the backlog is the buffer, not the transport

    def __init__(self, transport: Any, owner: Owner, form: int, device: Device | None, patterns: tuple[str, ...], now: float, expires: float | None = None):
        super().__init__(owner, form, device, patterns, now, expires)
        self.transport = transport
        self.fd = transport.get_extra_info("socket").fileno()
        # In this order, or what the transport says of what is still under way on it is said to who had it before.
        transport.set_protocol(self)
        transport.set_write_buffer_limits(high=self.high)

    def is_closing(self) -> bool:
        is_closing: bool = self.transport.is_closing()
        return is_closing

    def waiting(self) -> int:
        size: int = self.transport.get_write_buffer_size()
        return size

    def write(self, data: bytes) -> bool:
        if self.reason or not self.waiting():
            return super().write(data)
        self.keep(data)  # behind what is under way, which may be from before it was a feed
        return False

    def keep(self, rest: bytes | memoryview) -> None:
        self.transport.write(rest)
        self.unsent = [*(self.unsent or ()), rest]
        if not self.stuck_since and not self.waiting():
            # The socket had room again by now, so nobody will call back.
            asyncio.get_running_loop().call_soon(self.resume_writing)

    def resume_writing(self) -> None:
        self.unsent = None
        super().resume_writing()

    def abort(self) -> None:
        self.transport.abort()

    def _end(self) -> None:
        if self.stuck_since:
            # It reads nothing, so it would never read the end either.
            self.transport.abort()
        else:
            self.transport.close()

    def pass_on(self) -> tuple[int, bytes]:
        size = self.waiting()
        if not size:
            self.unsent = None
        own, rest = super().pass_on()
        return own, rest[-size:]


class SecureFeed(Carried):
    """A feed over TLS. What it is sent has to be encrypted for it alone, so it goes by the transport, which also has up to 64 KiB
    under way below the encryption before it says that the socket is full."""

    __slots__ = ()

    high = 1  # at 0 it would count as full when it is empty

    def __init__(self, transport: Any, owner: Owner, form: int, device: Device | None, patterns: tuple[str, ...], now: float, expires: float | None = None):
        super().__init__(transport, owner, form | SECURE, device, patterns, now, expires)

    def write(self, data: bytes) -> bool:
        if self.reason:
            return False
        if self.is_closing():
            self.close(GONE)
            return False
        self.transport.write(data)
        # If something is left, `pause_writing` was called, and `resume_writing` will be.
        return not self.waiting()


def become(transport: Any, owner: Owner, form: int, device: Device | None, patterns: tuple[str, ...], now: float, expires: float | None = None) -> Feed:
    """What becomes of a connection, by its transport, which goes if it can; or by the outlet that is held for one that another process had."""
    feed = Feed(owner, form, device, patterns, now, expires)
    if owner.outlets.take(transport, feed):
        pass  # as nearly all
    elif isinstance(transport, Outlet):
        transport.outlets.replace(transport, feed)
    else:
        kind = Carried if transport.get_extra_info("sslcontext") is None else SecureFeed
        feed = kind(transport, owner, form, device, patterns, now, expires)
    return feed
