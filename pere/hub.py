"""How a feed comes, catches up, and goes.

A feed that connects or falls behind reads from the backlog, as fast as its socket drains, until it is up to date; then it joins those that
are written to as events come (see `broadcast.py`). Where one client has very many feeds, most of them wait for their turn (see `throng.py`).
"""

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from time import perf_counter
from typing import Any

import orjson

from pere import sse
from pere.audience import Member
from pere.broadcast import Broadcast
from pere.care import Care
from pere.channels import Channels
from pere.config import Config
from pere.devices import Device
from pere.errors import Refusal
from pere.event import UNCHUNKED, format_id
from pere.feed import DRAIN, EXPIRED, GONE, KICKED, PASSED, REDELIVER, REPLACED, SLOW, UNKEPT, Feed, become, bye
from pere.limits import Account
from pere.outlets import Outlets
from pere.redelivery import Redelivery
from pere.remembered import remembered
from pere.replay import Replay
from pere.storage import Store
from pere.throng import LIVE, Throng, hasten
from pere.wheel import Wheel

log = logging.getLogger("pere.feed")

# What one feed is given from the backlog before the others have their turn, and before its socket is asked again.
BATCH_BYTES = 64 * 1024
BATCH_EVENTS = 512
BATCH_STEPS = 4_096  # those included that are not for this feed
BATCH_SECONDS = 0.002  # what is not at hand is looked up in the file, which takes a hundred times as long
CHECK = 16  # events after which that is looked at
AGAIN = 1.0  # seconds until what could not be read is read again


class Hub:
    """All open feeds. The tallies are plain integers that metrics read; `line_up` has an account's work done when its turn comes."""

    def __init__(self, store: Store, wheel: Wheel, outlets: Outlets, config: Config):
        self.channels = Channels(store, wheel)
        self.broadcast = Broadcast(self.channels, store, wheel, self.catch_up)
        self.redelivery = Redelivery(store, wheel)
        self.replay = Replay(store, self.redelivery)
        self.feeds = self.channels.feeds
        self.opens = 0
        self.closes = dict.fromkeys((GONE, SLOW, DRAIN, REPLACED, KICKED, UNKEPT, REDELIVER, EXPIRED, PASSED), 0)
        self.taken_over = 0  # from the process before this one
        self.line_up: Callable[[Account, Any], None] = lambda account, work: None
        self.clock = store.clock
        self.outlets = outlets
        self.retry = config.retry
        self._store = store
        self._wheel = wheel
        self._config = config
        self._throngs: dict[Account, Throng] = {}
        self.renew(config)()

    def renew(self, config: Config) -> Callable[[], None]:
        """What those who come are told of heartbeats, as these settings have it (see `reloading.py`)."""
        def renewed() -> None:
            self._manners = b'"receipt_jitter":%b,"heartbeat":%b' % (orjson.dumps(config.receipt_jitter), orjson.dumps(config.heartbeat))
            self._way_on = remembered(256)(self._make_way_on)

        return renewed

    @property
    def now(self) -> float:
        """The loop's time, to a tick of the wheel."""
        return self._wheel.now

    # A feed comes

    def admit(self, device: str, channels: Iterable[str], patterns: tuple[str, ...]) -> tuple[Device | None, Mapping[str, Member | None]]:
        """The device, if there is one, and the channels that it names or means, on all of which it is registered: the store has checked that there is room. A device
        that has its share of feeds loses its oldest one."""
        if not device:
            return None, dict.fromkeys(channels)
        store, meant = self._store, {}
        for name in channels:
            meant[name] = store.register(name, device)
        for pattern in patterns:
            store.want(device, pattern, ())
        known = store.devices.known[device]
        if known.patterns:
            store.arrive(known)
        if len(known.feeds) >= self._config.max_feeds_per_device:
            known.feeds[0].close(REPLACED, bye("replaced", self._config.retry))
        return known, meant

    def open(self, transport: Any, form: int, device: Device | None, meant: Mapping[str, Member | None], patterns: tuple[str, ...], start: int | None,
             cursor: int | None, greeting: bytes, ack_wait: float = 0.0, window: int = 0, expires: float | None = None, account: Account | None = None) -> Feed:
        """Let a connection become a feed, of the channels to which it was admitted.

        `cursor` is the id that the client has read up to, None if it named none; `start` is the id after which it wants to begin,
        0 for everything that is kept, None for what is new. `greeting` is written before everything else. `ack_wait` (s) and `window` (events) are those of Care; 0 is without.
        `expires` is when its token does, `account` the one in which it counts.
        """
        if device is not None:
            for other in device.feeds:
                hasten(other)  # where this one begins is after what was sent to the device
        feed = become(transport, self, form, device, patterns, self._wheel.now, expires)
        if account is not None:
            self.count_for(feed, account)
        if ack_wait or window:
            feed.care = Care(self.redelivery, feed, ack_wait, window)
        places, told = [], b""
        behind: tuple[int, ...] = ()  # after which ids there is something to read
        try:
            for name, member in meant.items():
                place = self.channels.place(feed, name, member)
                places.append(place)
                told += self.replay.begin(place, start, cursor)
                if place.ordinal < place.channel.shelf.backlog.last:
                    behind += (place.id,)
        except Refusal as refusal:
            # The disk is in trouble. The connection is a feed by now, and so is sent away as one.
            feed.places, feed.greeting = tuple(places), greeting
            self.enlist(feed)
            self.opens += 1
            self._send_away(feed, refusal)
            return feed
        feed.places = tuple(places)
        hello = self._hello(feed, cursor if cursor is not None else start, behind) + told
        self.enlist(feed)
        self.opens += 1
        if log.isEnabledFor(logging.DEBUG):
            log.debug("feed opened", extra={"facts": self._facts(feed)})
        if device is not None and not self._store.is_assured(device.name):
            # Who was greeted is registered, so it may not be told before that is kept.
            feed.greeting = greeting
            feed.is_waiting = True
            self._store.assure(device.name, partial(self._assured, feed, hello))
        elif behind or feed.care is not None or feed.throng is not None or feed.stuck_since or self.broadcast.dirty:
            feed.greeting = greeting + hello
            self.catch_up(feed)
        elif feed.write(greeting + hello):
            self.channels.join(feed)  # as most do: there is nothing to catch up with
        return feed

    def count_for(self, feed: Feed, account: Account) -> None:
        """Whose it is; where that client has very many, it is one of their throng from now on. Before its places are made."""
        feed.count_for(account)
        if account.feeds <= LIVE:
            return
        throng = self._throngs.get(account)
        if throng is None:
            throng = self._throngs[account] = Throng(account, self.line_up, partial(self.catch_up, is_its_turn=True), self.channels.fall_behind, self.broadcast.count)
        throng.feeds += 1
        feed.throng = throng

    def enlist(self, feed: Feed) -> None:
        """It is open, and has a pulse from now on; what it has missed it is still to catch up with."""
        self.channels.enlist(feed)
        heartbeat = self._config.heartbeat
        delay = feed.soon(heartbeat)
        if delay == heartbeat:
            self._wheel.add_alike(feed, delay)
        else:
            self._wheel.add(feed, delay)

    def _assured(self, feed: Feed, hello: bytes, refusal: Refusal | None) -> None:
        if refusal is not None:
            self._send_away(feed, refusal)
            return
        feed.greeting += hello
        feed.is_waiting = False
        self.catch_up(feed)

    def _send_away(self, feed: Feed, refusal: Refusal) -> None:
        feed.close(UNKEPT, bye(UNKEPT, max(self._config.retry, refusal.retry_after or 0)))

    def _facts(self, feed: Feed) -> dict[str, object]:
        """What a log line says of a feed."""
        channels = [*feed.patterns, *(place.channel.name for place in feed.places)]
        return {"device": feed.device.name if feed.device is not None else None, "channels": ",".join(channels[:5]), "feeds": len(self.feeds)}

    def _hello(self, feed: Feed, wanted: int | None, behind: tuple[int, ...]) -> bytes:
        """`pere.hello`: who we take the client for, the id after which it reads on, and where its receipts go."""
        places = feed.places
        if wanted is None:
            # With nothing to read first it goes on after the newest id of all channels, so that who breaks off before the first event
            # misses none; with several channels to read, after the oldest of their ids.
            wanted = self._store.newest
            if behind:
                wanted = min(wanted, *behind)
        care = feed.care
        where = places[0].channel.name if len(places) == 1 and not feed.patterns else ""
        way_on = self._way_on((wanted, where) if care is None else (wanted, where, care.ack_wait, care.window))
        # No name needs escaping, so this is JSON as it stands; a fleet that comes back gets ten thousand of these at once.
        hello = b'event: pere.hello\ndata: {"device":"%b"%b' % (feed.device.name.encode(), way_on) if feed.device is not None else b'event: pere.hello\ndata: {"device":null' + way_on
        return hello if feed.form & UNCHUNKED else sse.chunk(hello)

    def _make_way_on(self, asked: tuple[int, str] | tuple[int, str, float, int]) -> bytes:
        """The rest of it, which those who come to one channel while nothing is pushed there have alike."""
        position, channel, ack_wait, window = asked if len(asked) == 4 else (*asked, 0.0, 0)
        return b',"position":"%b","feedback":"/feedback%b","ack_wait":%b,"window":%b,%b}\n\n' % (
            format_id(position).encode(), b"/" + channel.encode() if channel else b"", _or_null(ack_wait), _or_null(window), self._manners)

    # A feed reads

    def catch_up(self, feed: Feed, is_its_turn: bool = False) -> None:
        """Write what the feed has missed, as far as its socket takes it; let it join the live set once that is nothing. Where its client has very many, it waits
        for its turn."""
        if feed.throng is not None and not is_its_turn:
            feed.throng.read_later(feed)
            return
        if feed.live or feed.stuck_since or feed.reason or feed.is_waiting:
            return
        data, feed.greeting, is_up_to_date = feed.greeting, b"", True
        for place in feed.places:
            if place.ordinal < place.channel.shelf.backlog.last:
                missed, is_up_to_date = self._missed(feed)
                data += missed
                break
        is_room = True
        if data:
            feed.written = self._wheel.now
            is_room = feed.write(data)
        if is_room and is_up_to_date and feed.care is None:
            # Into the live set. Nothing awaits between finding that the feed is up to date and this, so no event can be missed; and
            # what is pending, which it has read from the backlog already, is broadcast before it is in, so none is sent twice.
            if self.broadcast.dirty and any(place.channel.pending for place in feed.places):
                self.broadcast.flush()
            if not feed.reason:
                self.channels.join(feed)
            return
        for place in feed.places:
            place.mark()
        # Who has no room calls back when the socket has drained, or has been closed.
        if is_room and not is_up_to_date and not feed.is_waiting:
            asyncio.get_running_loop().call_soon(self.catch_up, feed)

    def _missed(self, feed: Feed) -> tuple[bytes, bool]:
        """What comes next of that which it has missed; and whether that is all."""
        if (at_once := self.replay.at_once(feed)) is not None:
            return at_once, True
        frames: list[bytes] = []
        size, now, end = 0, self._store.clock(), perf_counter() + BATCH_SECONDS
        for steps, place in enumerate(self.replay.ahead(feed)):
            before = place.ordinal
            try:
                frame = self.replay.read(feed, place, now)
            except Refusal:
                # The disk is in trouble, which is said elsewhere: it is read again in a moment, for nobody else would have it go on.
                place.ordinal, feed.is_waiting = before, True
                asyncio.get_running_loop().call_later(AGAIN, self._go_on, feed)
                break
            if frame:
                frames.append(frame)
                size += len(frame)
            if size >= BATCH_BYTES or len(frames) >= BATCH_EVENTS or steps == BATCH_STEPS or (steps % CHECK == CHECK - 1 and perf_counter() > end):
                return b"".join(frames), False
        return b"".join(frames), not feed.is_waiting

    def _go_on(self, feed: Feed) -> None:
        feed.is_waiting = False
        self.catch_up(feed)

    def fall_behind(self, feed: Feed) -> None:
        """Its socket is full."""
        self.channels.fall_behind(feed)

    # A feed goes, or is silent

    def left(self, feed: Feed) -> None:
        """It is closed, for the reason that it names."""
        self.channels.leave(feed)
        if feed.throng is not None and feed.account is not None:
            feed.throng.feeds -= 1
            if not feed.throng.feeds:
                del self._throngs[feed.account]
        self.closes[feed.reason] += 1
        # That clients come and go is no news; that we sent one away is.
        level = logging.DEBUG if feed.reason in (GONE, DRAIN, PASSED) else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "feed closed", extra={"facts": {"reason": feed.reason, **self._facts(feed)}})
        # They know the feed too. What is in a ring waits for the collector, which comes so seldom that thousands would lie there.
        feed.places, feed.care = (), None

    def beat(self, feed: Feed, now: float) -> float:
        """The feed's turn on the wheel: a comment if it was silent for a heartbeat, the end if its socket is stuck."""
        again = feed.stuck(now, self._config.stuck_after, self._config.heartbeat)
        if again is not None:
            return again
        silent = now - feed.written
        if feed.live:
            silent = min(silent, now - max((place.channel.written for place in feed.places), default=0.0))
        if silent < self._config.heartbeat - 0.01:
            return self._config.heartbeat - silent
        feed.written = now
        frame, feed.greeting = feed.greeting + feed.control(sse.HEARTBEAT), b""
        feed.tell(frame)
        return self._config.heartbeat

    def hasten(self) -> None:
        """All live feeds have what has come, also those that wait for their turn."""
        for feed in tuple(self.feeds.values()) if self._throngs else ():
            hasten(feed)

    def abandon(self, feeds: Collection[Feed]) -> dict[str, int]:
        """Another process goes on with these, which are live; up to which ordinal of each channel they have been written to."""
        self.closes[PASSED] += len(feeds)
        return self.channels.abandon(feeds)

    def is_used(self, channel: str) -> bool:
        """Whether somebody listens to it."""
        return channel in self.channels

    def kick(self, device: Device) -> None:
        """End the feeds of a device that is no more."""
        for feed in device.feeds:
            feed.close(KICKED, bye(KICKED, self._config.retry))

    def drain(self, reason: str = DRAIN) -> None:
        """Let every feed go. Each is told another time to come back, between once and twice `retry`, so that they do not all come at once."""
        for feed in list(self.feeds.values()):
            feed.close(reason, bye(reason, self._config.retry * (1 + random.random())))


def _or_null(number: float) -> bytes:
    return b"%g" % number if number else b"null"
