"""Channels, and who is listening to them.

The hub broadcasts only what the store has delivered. Events that arrive in one turn of the loop are joined and written once
to each live feed, by a loop that looks nothing up and checks only that the socket took all. A feed that connects or
falls behind reads from the backlog, as fast as its socket drains, until it is up to date, and then joins the live set. Where one client
has very many feeds, most of them wait for their turn (see `throng.py`).

It is longer than a file should be because whatever comes, reads, is written to or goes moves between the same few sets (live, behind,
careful, by channel and by pattern): that each feed is in the right ones, and nothing awaits in between, is seen only where all of it stands.
"""

import asyncio
import logging
import os
import random
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import groupby
from operator import attrgetter
from time import perf_counter
from typing import Any

import orjson

from pere import sse
from pere.audience import Member
from pere.care import Care
from pere.config import Config
from pere.devices import Device
from pere.errors import Refusal
from pere.event import SECURE, Event, format_id
from pere.feed import DRAIN, EXPIRED, GONE, KICKED, PASSED, REDELIVER, REPLACED, SLOW, UNKEPT, Feed, Place, bye, kind_of
from pere.limits import Account
from pere.names import pattern as compiled
from pere.redelivery import Redelivery
from pere.replay import Replay, cancel, mark
from pere.storage import Shelf, Store
from pere.throng import LIVE, Throng
from pere.wheel import Wheel

log = logging.getLogger("pere.feed")

# What one feed is given from the backlog before the others have their turn, and before its socket is asked again.
BATCH_BYTES = 64 * 1024
BATCH_EVENTS = 512
CARELESS = b'"ack_wait":null,"window":null'  # what most feeds ask for
BATCH_STEPS = 4_096  # those included that are not for this feed
BATCH_SECONDS = 0.002  # what is not at hand is looked up in the file, which takes a hundred times as long
CHECK = 16  # events after which that is looked at


class Channel:
    """Who listens to one channel. `live` holds, per form of frame, the places of feeds that are up to date, by descriptor;
    `flushed` is the ordinal up to which they have been written to. `throngs` holds those places that wait in line, by descriptor too. `careful` are the feeds that
    are never live; `feeds` counts all, `shared` those of many channels."""

    __slots__ = ("careful", "feeds", "flushed", "live", "name", "pending", "shared", "shelf", "throngs", "written")

    def __init__(self, name: str, shelf: Shelf, now: float):
        self.name = name
        self.shelf = shelf
        self.live: dict[int, dict[int, Place]] = {}
        self.throngs: dict[Throng, dict[int, Place]] = {}
        self.careful: dict[Feed, None] = {}
        self.pending: list[Event] = []
        self.flushed = shelf.backlog.last
        self.feeds = 0
        self.shared = 0
        self.written = now


class Hub:
    """All channels that somebody listens to. The tallies are plain integers that metrics read."""

    def __init__(self, store: Store, wheel: Wheel, config: Config):
        self.channels: dict[str, Channel] = {}
        self.feeds: dict[int, Feed] = {}  # all that are open, by descriptor
        self.behind = 0
        self.opens = 0
        self.closes = dict.fromkeys((GONE, SLOW, DRAIN, REPLACED, KICKED, UNKEPT, REDELIVER, EXPIRED, PASSED), 0)
        self.taken_over = 0  # from the process before this one
        self.deliveries = 0
        self.redelivery = Redelivery(store, wheel)
        self.replay = Replay(store, self.redelivery)
        self.on_fanout: Callable[[float], None] = lambda seconds: None
        self.line_up: Callable[[Account, Any], None] = lambda account, work: None  # have this account's work done when its turn comes
        self.clock = store.clock
        self.retry = config.retry
        self._store = store
        self._wheel = wheel
        self._config = config
        self._manners = b'"receipt_jitter":%b,"heartbeat":%b' % (orjson.dumps(config.receipt_jitter), orjson.dumps(config.heartbeat))
        self._dirty: list[Channel] = []
        self._wildcards: dict[str, set[Feed]] = {}  # feeds by the patterns they listen to
        self._throngs: dict[Account, Throng] = {}
        self._fresh_since = 0.0  # when the oldest event that is not yet broadcast was accepted

    @property
    def now(self) -> float:
        return self._wheel.now

    # An event comes

    def deliver(self, event: Event) -> None:
        """The store has kept an event: broadcast it at the end of this turn of the loop."""
        channel = self.channels.get(event.channel)
        if channel is None:
            if not self._wanting(event.channel):
                return
            channel = self._born(event.channel, event.ordinal - 1)
        if not channel.pending:
            if not self._dirty:
                self._fresh_since = perf_counter()
                asyncio.get_running_loop().call_soon(self.flush)
            self._dirty.append(channel)
        channel.pending.append(event)

    def _wanting(self, name: str) -> set[Feed]:
        """The feeds that listen to a channel by a pattern."""
        return {feed for wanted, feeds in self._wildcards.items() if compiled(wanted)(name) for feed in feeds}

    def _born(self, name: str, newest: int) -> Channel:
        """A channel that nobody listened to yet: those feeds join whose pattern means it, to read on after the ordinal `newest`."""
        channel = self.channels[name] = Channel(name, self._store.open(name), self._wheel.now)
        self._store.follow(name)
        channel.flushed = newest
        for feed in self._wanting(name):
            member = self._store.register(name, feed.device.name) if feed.device is not None else None
            place = self.place(feed, name, member)
            feed.places += (place,)
            place.ordinal = newest
            channel.shared += 1
            if member is not None:
                member.since = self._store.clock()
            if feed.live:
                self._enter(place)
        return channel

    def flush(self) -> None:
        """Broadcast what is pending."""
        dirty, self._dirty = self._dirty, []
        shared = [channel for channel in dirty if channel.shared]
        if len(shared) > 1:
            # A feed of many channels has one Last-Event-ID for all: were an id to step back, who breaks off there would miss an event.
            events = sorted((event for channel in shared for event in channel.pending), key=_id)
            for channel in shared:
                channel.pending = []
            by_name = {channel.name: channel for channel in shared}
            for name, run in groupby(events, _channel):
                self._broadcast(by_name[name], list(run))
        for channel in dirty:
            pending, channel.pending = channel.pending, []
            self._broadcast(channel, pending)
            for feed in tuple(channel.careful):
                self.catch_up(feed)
        if dirty:
            self.on_fanout(perf_counter() - self._fresh_since)

    def _broadcast(self, channel: Channel, events: list[Event]) -> None:
        for is_addressed, run in groupby(events, _is_addressed):
            batch = list(run)
            if is_addressed:
                for event in batch:
                    self._write_to(channel, event)
            else:
                channel.flushed = batch[-1].ordinal
                channel.written = self._wheel.now
                for form, places in channel.live.items():
                    if not places:
                        continue
                    data = batch[0].frame(form) if len(batch) == 1 else b"".join([event.frame(form) for event in batch])
                    self.deliveries += len(places) * len(batch)
                    if form & SECURE:
                        self._write_secure(places, data)
                    else:
                        self._write_all(places, data)
                for throng in channel.throngs:
                    throng.tell(channel, batch[0].ordinal)

    def _write_secure(self, places: dict[int, Place], data: bytes) -> None:
        """The same for feeds over TLS, which cannot be written to by descriptor."""
        for place in tuple(places.values()):
            feed = place.feed
            if not feed.write(data) and not feed.reason:
                self.fall_behind(feed)

    def _write_all(self, places: dict[int, Place], data: bytes) -> None:
        """The live loop. os.write() goes straight to the socket: what the transport's own write adds, a buffer and a place in the
        loop's queue, is not wanted (measured: 1.10 instead of 1.20 times what a bare send() costs). A live feed has nothing in its
        transport, so nothing is overtaken."""
        write, size = os.write, len(data)
        behind: list[tuple[int, int]] = []
        for fd in places:
            try:
                if (taken := write(fd, data)) != size:
                    behind.append((fd, taken))
            except BlockingIOError:
                behind.append((fd, 0))
            except OSError:
                behind.append((fd, -1))
        # The dictionary must not change while it is walked, so those who need care get it now.
        for fd, taken in behind:
            feed = places[fd].feed
            if taken < 0:
                feed.close(GONE)
            else:
                self.fall_behind(feed)
                feed.keep(memoryview(data)[taken:])

    def _write_to(self, channel: Channel, event: Event) -> None:
        """An event for some devices only: theirs are the only feeds that it is written to."""
        devices = [device for name in event.to or () if (device := self._store.devices.get(name)) is not None]
        meant = [place for device in devices for feed in device.feeds for place in feed.places if place.channel is channel]
        for place in meant:
            self._hasten(place.feed)
        channel.flushed = event.ordinal
        for throng in channel.throngs:
            if throng.careful:
                throng.tell(channel, event.ordinal)
        for place in meant:
            feed = place.feed
            if not feed.live:
                continue
            if feed.throng is not None:
                if place.ordinal >= event.ordinal:
                    continue  # it has read that already
                place.ordinal = event.ordinal
            self.deliveries += 1
            feed.written = self._wheel.now
            if not feed.write(event.frame(feed.form)) and not feed.reason:
                self.fall_behind(feed)

    def withdraw(self, event: Event) -> None:
        """An event was recalled: `pere.cancel` goes to those who have it. Who lacks it will not get it."""
        channel = self.channels.get(event.channel)
        if channel is None:
            return
        if channel.pending:
            self.flush()
        places = [place for places in channel.live.values() for place in places.values()]
        for throng, waiting in channel.throngs.items():
            throng.forget()
            places += [place for place in waiting.values() if place.feed.live and place.ordinal >= event.ordinal]
        if self.behind or channel.careful or channel.throngs:
            places += [place for feed in self.feeds.values() if not feed.live
                       for place in feed.places if place.channel is channel and place.ordinal >= event.ordinal]
        for place in places:
            feed = place.feed
            if event.to is None or (feed.device is not None and feed.device.name in event.to):
                feed.tell(feed.control(cancel(event)))
            if feed.care is not None and feed.care.end(event.id):
                self.catch_up(feed)

    # A feed comes

    def admit(self, device: str, channels: Iterable[str], patterns: tuple[str, ...], pay: Callable[[Collection[str], int, int], None]) -> dict[str, Member | None]:
        """All that can still be refused: the device is registered on all channels that it names or means, which are returned, or on none. Raises
        Full or TooMany where there is no room for that, and what `pay` raises, which is told which channels these are, and how many
        registrations and channels are new; a device that has its share of feeds loses its oldest one instead."""
        meant: dict[str, Member | None] = dict.fromkeys(channels)
        store, known = self._store, self._store.devices.get(device)
        pay(meant, *store.check_room(device, meant, patterns))
        if not device:
            return meant
        for name in meant:
            meant[name] = store.register(name, device)
        for pattern in patterns:
            store.want(device, pattern, ())
        if known is not None and len(known.feeds) >= self._config.max_feeds_per_device:
            known.feeds[0].close(REPLACED, bye("replaced", self._config.retry))
        return meant

    def open(self, transport: Any, form: int, device: str, meant: dict[str, Member | None], patterns: tuple[str, ...], start: int | None,
             cursor: int | None, greeting: bytes, ack_wait: float = 0.0, window: int = 0, expires: float | None = None, account: Account | None = None) -> Feed:
        """Let a connection become a feed, of the channels to which it was admitted.

        `cursor` is the id that the client has read up to, None if it named none; `start` is the id after which it wants to begin,
        0 for everything that is kept, None for what is new. `greeting` is written before everything else. `ack_wait` (s) and `window` (events) are those of Care; 0 is without.
        `expires` is when its token does, `account` the one in which it counts.
        """
        store = self._store
        known = store.devices.add(device) if device else None
        for other in known.feeds if known is not None else ():
            self._hasten(other)  # where this one begins is after what was sent to the device
        feed = kind_of(transport)(self, transport, form, known, patterns, self._wheel.now, expires)
        self.count_for(feed, account)
        if ack_wait or window:
            feed.care = Care(self.redelivery, feed, ack_wait, window)
        told: list[bytes] = []
        places = [self.place(feed, name, member) for name, member in meant.items()]
        feed.places = tuple(places)
        for place in places:
            self.replay.begin(place, start, cursor)
            if feed.greeting:
                told.append(feed.greeting)
                feed.greeting = b""
        hello = self._hello(feed, cursor if cursor is not None else start) + b"".join(told)
        feed.greeting = greeting
        self.enlist(feed)
        self.opens += 1
        if log.isEnabledFor(logging.DEBUG):
            log.debug("feed opened", extra={"facts": self._facts(feed)})
        if known is not None:
            # Who was greeted is registered, so it may not be told before that is kept.
            feed.is_waiting = True
            store.assure(device, partial(self._greet, feed, hello))
        else:
            self._greet(feed, hello, None)
        return feed

    def count_for(self, feed: Feed, account: Account | None) -> None:
        """Whose it is; where that client has very many, it is one of their throng from now on. Before its places are made."""
        feed.count_for(account)
        if account is None or account.feeds <= LIVE:
            return
        throng = self._throngs.get(account)
        if throng is None:
            throng = self._throngs[account] = Throng(account, self.line_up, self._read, self.fall_behind, self._count)
        throng.feeds += 1
        feed.throng = throng

    def _count(self, events: int) -> None:
        self.deliveries += events

    def enlist(self, feed: Feed) -> None:
        """It is one of those that are open, behind as yet; what it has missed it is still to catch up with."""
        for pattern in feed.patterns:
            if pattern not in self._wildcards:
                self._wildcards[pattern] = set()
                self._store.follow(pattern)
            self._wildcards[pattern].add(feed)
        if feed.patterns or len(feed.places) > 1:
            for place in feed.places:
                place.channel.shared += 1
        if feed.device is not None:
            self._store.devices.open(feed.device, feed)
        self.feeds[feed.fd] = feed
        self.behind += feed.care is None
        self._wheel.add(feed, feed.soon(self._config.heartbeat))

    def _greet(self, feed: Feed, hello: bytes, refusal: Refusal | None) -> None:
        if refusal is not None:
            feed.close(UNKEPT, bye(UNKEPT, max(self._config.retry, refusal.retry_after or 0)))
            return
        feed.greeting += hello
        feed.is_waiting = False
        self.catch_up(feed)

    def _facts(self, feed: Feed) -> dict[str, object]:
        """What a log line says of a feed."""
        channels = [*feed.patterns, *(place.channel.name for place in feed.places)]
        return {"device": feed.device.name if feed.device is not None else None, "channels": ",".join(channels[:5]), "feeds": len(self.feeds)}

    def _hello(self, feed: Feed, wanted: int | None) -> bytes:
        """`pere.hello`: who we take the client for, the id after which it reads on, and where its receipts go."""
        places = feed.places
        if wanted is None:
            # With nothing to read first it goes on after the newest id of all channels, so that who breaks off before the first event
            # misses none; with several channels to read, after the oldest of their ids.
            wanted = min([place.id for place in places if place.ordinal < place.channel.shelf.backlog.last], default=self._store.newest)
        # No name needs escaping, so this is JSON as it stands; a fleet that comes back gets ten thousand of these at once.
        return feed.control(b'event: pere.hello\ndata: {"device":%b,"position":"%b","feedback":"/feedback%b",%b,%b}\n\n' % (
            b'"%b"' % feed.device.name.encode() if feed.device is not None else b"null",
            format_id(wanted).encode(),
            b"/" + places[0].channel.name.encode() if len(places) == 1 and not feed.patterns else b"",
            b'"ack_wait":%b,"window":%b' % (_or_null(feed.care.ack_wait), _or_null(feed.care.window)) if feed.care is not None else CARELESS,
            self._manners,
        ))

    def place(self, feed: Feed, name: str, member: Member | None) -> Place:
        """A place for the feed at the end of a channel, which is made if nobody listened to it before."""
        channel = self.channels.get(name)
        if channel is None:
            channel = self._born(name, self._store.open(name).backlog.last)
        channel.feeds += 1
        place = Place(feed, channel, member, channel.shelf.backlog.last)
        if feed.care is not None:
            if feed.throng is None:
                channel.careful[feed] = None
            else:
                feed.throng.enter(place)
            if member is not None:
                member.careful += 1
        if member is not None:
            member.feeds += 1
        return place

    # A feed reads

    def catch_up(self, feed: Feed) -> None:
        """Write what the feed has missed, as far as its socket takes it; let it join the live set once that is nothing."""
        if feed.throng is None:
            self._read(feed)
        else:
            feed.throng.read_later(feed)

    def _read(self, feed: Feed) -> None:
        if feed.live or feed.stuck_since or feed.reason or feed.is_waiting:
            return
        frames = [feed.greeting]
        feed.greeting = b""
        size, now, end = 0, self._store.clock(), perf_counter() + BATCH_SECONDS
        for steps, place in enumerate(self.replay.ahead(feed)):
            if frame := self.replay.read(feed, place, now):
                frames.append(frame)
                size += len(frame)
            if size >= BATCH_BYTES or len(frames) > BATCH_EVENTS or steps == BATCH_STEPS or (steps % CHECK == CHECK - 1 and perf_counter() > end):
                is_up_to_date = False
                break
        else:
            is_up_to_date = not feed.is_waiting
        is_room = True
        if data := b"".join(frames):
            feed.written = self._wheel.now
            is_room = feed.write(data)
        for place in feed.places:
            mark(place)
        if not is_room:
            return  # it calls back when its socket has drained, or has been closed
        if is_up_to_date:
            self._join(feed)
        elif not feed.is_waiting:
            asyncio.get_running_loop().call_soon(self.catch_up, feed)

    def _join(self, feed: Feed) -> None:
        """Into the live set. Nothing awaits between finding that the feed is up to date and this, so no event can be missed; and
        what is pending, which it has read from the backlog already, is broadcast before it is in, so none is sent twice."""
        if feed.care is not None:
            return
        for place in feed.places:
            if place.channel.pending:
                self.flush()
        if feed.reason:
            return
        feed.live = True
        self.behind -= 1
        for place in feed.places:
            self._enter(place)

    def _enter(self, place: Place) -> None:
        feed = place.feed
        if feed.throng is None:
            place.channel.live.setdefault(feed.form, {})[feed.fd] = place
        else:
            feed.throng.enter(place)
        if place.member is not None:
            place.member.live += 1

    def fall_behind(self, feed: Feed) -> None:
        """Out of the live set: from here on the feed reads from the backlog."""
        feed.live = False
        self.behind += 1
        for place in feed.places:
            self._exit(place)

    def _exit(self, place: Place) -> None:
        channel, throng = place.channel, place.feed.throng
        if throng is None:
            del channel.live[place.feed.form][place.feed.fd]
            place.ordinal = channel.flushed
        else:
            throng.leave(place)
        place.id = self._store.id_at(channel.shelf, place.ordinal) or place.id
        if place.member is not None:
            place.member.live -= 1
            mark(place)

    # A feed goes, or is silent

    def left(self, feed: Feed) -> None:
        if feed.live:
            for place in feed.places:
                self._exit(place)
        elif feed.care is None:
            self.behind -= 1
        now, is_shared = self._store.clock(), bool(feed.patterns) or len(feed.places) > 1
        for place in feed.places:
            if place.member is not None:
                place.member.seen = now
                place.member.feeds -= 1
                place.member.careful -= feed.care is not None
            place.channel.careful.pop(feed, None)
            if feed.care is not None and feed.throng is not None:
                feed.throng.leave(place)
            place.channel.feeds -= 1
            place.channel.shared -= is_shared
            if not place.channel.feeds:
                del self.channels[place.channel.name]
                self._store.unfollow(place.channel.name)
        for pattern in feed.patterns:
            self._wildcards[pattern].discard(feed)
            if not self._wildcards[pattern]:
                del self._wildcards[pattern]
                self._store.unfollow(pattern)
        if feed.device is not None:
            feed.device.seen = now
            self._store.devices.close(feed.device, feed)
        if feed.throng is not None and feed.account is not None:
            feed.throng.feeds -= 1
            if not feed.throng.feeds:
                del self._throngs[feed.account]
        del self.feeds[feed.fd]
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
        for feed in tuple(self.feeds.values()):
            self._hasten(feed)

    def _hasten(self, feed: Feed) -> None:
        """If it is live and waits for its turn, it has all that has come before."""
        if feed.throng is not None and feed.live:
            feed.throng.write(feed)

    def abandon(self, feeds: Collection[Feed]) -> dict[str, int]:
        """Nothing more is written to these feeds, which are live and not over TLS: another process goes on with them, and this hub is at its end. Up to
        which ordinal of each channel they have been. All wait meanwhile, so none of them is taken out of where it stands, which would take 10 us each."""
        for feed in feeds:
            feed.reason = PASSED
            del self.feeds[feed.fd]
        for channel in self.channels.values():
            channel.live = {form: places for form, places in channel.live.items() if form & SECURE}
        self.closes[PASSED] += len(feeds)
        return {channel.name: channel.flushed for channel in self.channels.values()}

    def is_used(self, channel: str) -> bool:
        return channel in self.channels

    def kick(self, device: Device) -> None:
        for feed in device.feeds:
            feed.close(KICKED, bye(KICKED, self._config.retry))

    def drain(self, reason: str = DRAIN) -> None:
        """Let every feed go. Each is told another time to come back, between once and twice `retry`, so that they do not all come at once."""
        for feed in list(self.feeds.values()):
            feed.close(reason, bye(reason, self._config.retry * (1 + random.random())))


def _or_null(number: float) -> bytes:
    return b"%g" % number if number else b"null"


_id, _channel = attrgetter("id"), attrgetter("channel")


def _is_addressed(event: Event) -> bool:
    return event.to is not None
