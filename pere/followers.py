"""Who follows the receipts of a channel: publishers that nothing can be posted to, because they are behind a firewall.

A follower has a number, that of the last record it was given, and no queue: it reads the store's log from there until it is up to
date, and then waits to be told that there is more. One whose socket is full reads on when that drains. The number is the id that a
client comes back with, so it is on the wire with every record, and with every heartbeat: what is silent for weeks would
otherwise come back with a number that nobody can vouch for any more.
"""

import asyncio
import logging
from collections import Counter
from typing import Any

import orjson

from pere import sse
from pere.auth import OPEN, Grant
from pere.config import Config
from pere.errors import Refusal
from pere.event import SECURE
from pere.feed import DRAIN, EXPIRED, GONE, KICKED, PASSED, SLOW, Feed, become, bye
from pere.outlets import Outlets
from pere.storage import Page, Store
from pere.wheel import Wheel

log = logging.getLogger("pere.feed")

PAGE = 500  # records that are read at once; about 100 KB on the wire
BATCH_BYTES = 64 * 1024  # what is written before the socket is asked whether it took it
AGAIN = 1.0  # seconds until a log that could not be read is tried again


class Follower:
    """One feed of receipts. `position` is the number up to which it has been given all; `gap` is where something began to be missing
    that it has not been told of yet. It is idle when it is up to date, and nobody said since that there is more. `grant` is who it is."""

    __slots__ = ("channel", "clock", "feed", "gap", "grant", "is_from_all", "is_idle", "is_reading", "is_wanted", "outlets", "position", "retry", "_all")

    def __init__(self, all: "Followers", transport: Any, form: int, channel: str, position: int, grant: Grant):
        self.clock = all.clock
        self.outlets = all.outlets
        self.retry = all.retry
        self.channel = channel
        self.grant = grant
        self.position = position
        self.gap: int | None = None
        self.is_from_all = not position  # and so misses nothing before the first that it is given
        self.is_reading = self.is_wanted = self.is_idle = False
        self._all = all
        self.feed = become(transport, self, form, None, (), all.now, grant.expires)

    def catch_up(self, feed: Feed) -> None:
        """There may be more, or there is room in its socket again."""
        self.is_idle = False
        if self.is_reading:
            self.is_wanted = True
        elif not feed.stuck_since and not feed.reason:
            self.is_reading, self.is_wanted = True, False
            self._all.read(self)

    def take(self, page: Page, frames: list[bytes]) -> None:
        """What was read from its position on."""
        self.is_reading = False
        feed = self.feed
        if feed.stuck_since or feed.reason:
            return  # it reads this again when there is room
        if page.is_lost and not self.is_from_all and self.gap is None:
            self.gap = self.position
        self.is_from_all &= not frames and page.is_more
        if self.gap is not None and (frames or not page.is_more):
            told = self._all.tell_gap(self.channel, self.gap, page.records[0].number if frames else None)
            self.gap, self.position = None, page.records[0].number - 1 if frames else page.through
            if not self._write(told):
                return
        size, piece = 0, []
        for record, frame in zip(page.records, frames, strict=True):
            piece.append(frame)
            size += len(frame)
            if size >= BATCH_BYTES or record is page.records[-1]:
                self.position = record.number
                self._all.written += len(piece)
                if not self._write(b"".join(piece)):
                    return  # what waits in the transport is on its way; the rest is read again when that has gone
                size, piece = 0, []
        self.position = page.through
        if page.is_more or self.is_wanted:
            self.catch_up(feed)
        else:
            self.is_idle = True

    def _write(self, frames: bytes) -> bool:
        self.feed.written = self._all.now
        return self.feed.write(self.feed.control(frames))

    def fall_behind(self, feed: Feed) -> None:
        """It is never live, so there is nothing to fall out of."""

    def left(self, feed: Feed) -> None:
        self._all.left(self)

    def beat(self, feed: Feed, now: float) -> float:
        """Its turn on the wheel, as that of any feed."""
        return self._all.beat(self, now)


class Followers:
    """All of them. The tallies are plain integers that metrics read."""

    def __init__(self, store: Store, wheel: Wheel, outlets: Outlets, config: Config):
        self.written = 0
        self.gaps = 0
        self.closes = dict.fromkeys((GONE, SLOW, DRAIN, KICKED, EXPIRED, PASSED), 0)
        self.taken_over = 0  # from the process before this one
        self.clock = store.clock
        self.outlets = outlets
        self.retry = config.retry
        self._store = store
        self._wheel = wheel
        self._config = config
        self.subjects: Counter[str] = Counter()  # how many each subject has
        self._channels: dict[str, dict[Follower, None]] = {}
        self.count = 0  # how many there are
        self._fresh: dict[str, None] = {}  # channels that have more since the last turn of the loop
        self._reads: dict[tuple[str, int], list[Follower]] = {}  # and who waits for what they find
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def now(self) -> float:
        return self._wheel.now

    def open(self, transport: Any, form: int, channel: str, cursor: int | None, greeting: bytes, grant: Grant = OPEN) -> Feed:
        """Let a connection become a feed of the receipts above the number `cursor`; None is what is new, 0 is all that is kept."""
        position = self._store.newest_record if cursor is None else cursor
        follower = Follower(self, transport, form, channel, position, grant)
        self._enlist(follower)
        feed = follower.feed
        log.debug("receipts followed", extra={"facts": {"channel": channel, "feeds": self.count}})
        hello = sse.frame(orjson.dumps({"channel": channel, "position": str(position)}), event=b"pere.hello")
        feed.write(greeting + feed.control(hello))
        follower.catch_up(feed)
        return feed

    def _enlist(self, follower: Follower) -> None:
        channel, grant = follower.channel, follower.grant
        if channel not in self._channels:
            self._channels[channel] = {}
            self._store.follow(channel)
        self._channels[channel][follower] = None
        self.count += 1
        if grant.subject:
            self.subjects[grant.subject] += 1
        # Who is told of nothing costs nothing: the store looks once, and that is all.
        self._store.on_receipts = self._heard
        self._wheel.add(follower.feed, follower.feed.soon(self._config.heartbeat))

    def pass_on(self, feed: Feed, client: str | None) -> tuple[int, list[Any]] | None:
        """Let another process go on with one of these: its descriptor, and what it is; None where that cannot be, because of TLS."""
        follower = feed.owner
        if feed.form & SECURE or not isinstance(follower, Follower):
            return None
        fd, rest = feed.pass_on()
        return fd, [feed.form, follower.channel, follower.position, follower.gap, follower.is_from_all, follower.grant.subject, feed.expires, client, rest.decode("latin-1")]

    def take_over(self, transport: Any, told: list[Any]) -> Feed:
        """Go on with one that another process had, where it was."""
        form, channel, position, gap, is_from_all, subject, expires, _, rest = told
        follower = Follower(self, transport, form, channel, position, Grant(subject, expires=expires))
        follower.gap, follower.is_from_all = gap, is_from_all
        self._enlist(follower)
        self.taken_over += 1
        if rest:
            follower.feed.keep(rest.encode("latin-1"))
        follower.catch_up(follower.feed)
        return follower.feed

    # There is more

    def _heard(self, channel: str) -> None:
        if channel not in self._channels or channel in self._fresh:
            return
        if not self._fresh:
            asyncio.get_running_loop().call_soon(self._wake)
        self._fresh[channel] = None

    def _wake(self) -> None:
        fresh, self._fresh = self._fresh, {}
        for channel in fresh:
            for follower in tuple(self._channels.get(channel, ())):
                follower.catch_up(follower.feed)

    def read(self, follower: Follower) -> None:
        """Those who are at the same place read together, and what they find is encoded once."""
        key = follower.channel, follower.position
        waiting = self._reads.get(key)
        if waiting is not None:
            waiting.append(follower)
            follower.is_wanted = True  # it may have begun before what this one was woken for
            return
        self._reads[key] = [follower]
        task = asyncio.get_running_loop().create_task(self._read(*key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, channel: str, after: int) -> None:
        page = None
        try:
            page = await self._store.records(channel, after, PAGE)
        except Refusal as refusal:
            log.debug("receipts could not be read", extra={"facts": {"channel": channel, "error": refusal.code}})
        except Exception:  # whatever it is: who comes later would wait for this reading too, and for ever
            log.exception("receipts could not be read", extra={"facts": {"channel": channel}})
        waiting = self._reads.pop((channel, after))
        if page is None:
            asyncio.get_running_loop().call_later(AGAIN, self._retry, waiting)
            return
        frames = [sse.frame(record.encode(), id=b"%d" % record.number, event=b"receipt") for record in page.records]
        for follower in waiting:
            follower.take(page, frames)

    def _retry(self, waiting: list[Follower]) -> None:
        for follower in waiting:
            follower.is_reading = False
            follower.catch_up(follower.feed)

    def tell_gap(self, channel: str, start: int, end: int | None) -> bytes:
        """`pere.gap`: between these two numbers something is missing, nobody knows how much."""
        self.gaps += 1
        told = {"channel": channel, "from": str(start), "to": str(end) if end is not None else None, "lost": None}
        return sse.frame(orjson.dumps(told), event=b"pere.gap")

    # One is silent, or goes

    def beat(self, follower: Follower, now: float) -> float:
        """A follower's turn on the wheel: a comment with its position if it was silent for a heartbeat, the end if its socket is stuck."""
        feed, heartbeat = follower.feed, self._config.heartbeat
        again = feed.stuck(now, self._config.stuck_after, heartbeat)
        if again is not None:
            return again
        silent = now - feed.written
        if silent < heartbeat - 0.01:
            return heartbeat - silent
        feed.written = now
        if follower.is_idle and follower.channel not in self._fresh:
            # Nothing of this channel is between its position and the newest.
            follower.position = max(follower.position, self._store.newest_record)
            feed.tell(feed.control(b"id: %d\n%b" % (follower.position, sse.HEARTBEAT)))
        else:
            feed.tell(feed.control(sse.HEARTBEAT))
        return heartbeat

    def left(self, follower: Follower) -> None:
        """It is closed: out of everything that it was in."""
        followers, reason, subject = self._channels[follower.channel], follower.feed.reason, follower.grant.subject
        if subject:
            self.subjects[subject] -= 1
            if not self.subjects[subject]:
                del self.subjects[subject]
        del followers[follower]
        self.count -= 1
        if not followers:
            del self._channels[follower.channel]
            self._store.unfollow(follower.channel)
        if not self._channels:
            self._store.on_receipts = None
        self.closes[reason] += 1
        level = logging.DEBUG if reason in (GONE, DRAIN, PASSED) else logging.INFO
        log.log(level, "receipts no longer followed", extra={"facts": {"reason": reason, "channel": follower.channel}})

    def kick(self, subject: str) -> None:
        """End the feeds of somebody whose tokens are revoked."""
        for follower in self._all():
            if follower.grant.subject == subject:
                follower.feed.close(KICKED, bye(KICKED, self.retry))

    def _all(self) -> list[Follower]:
        return [each for followers in self._channels.values() for each in followers]

    def feeds(self) -> list[Feed]:
        """Those that are open."""
        return [follower.feed for follower in self._all()]
