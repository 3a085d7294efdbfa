"""What comes is written to those who listen.

Only what the store has delivered is broadcast. Events that arrive in one turn of the loop are joined and written once to each live feed, by a
loop that looks nothing up and checks only that the socket took all. Whose socket did not is behind from there on, and is written to no more from
here.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from itertools import groupby
from operator import attrgetter
from time import perf_counter

from pere.channels import Channel, Channels
from pere.event import SECURE, Event
from pere.feed import GONE, Feed, Place
from pere.replay import cancel, is_for
from pere.storage import Store
from pere.throng import hasten
from pere.wheel import Wheel

log = logging.getLogger("pere.feed")


class Broadcast:
    """`catch_up` lets a careful feed read what has come. `deliveries` is how many events were written to live feeds; `on_fanout` is told the
    seconds from the first event that came to the last write of a broadcast."""

    def __init__(self, channels: Channels, store: Store, wheel: Wheel, catch_up: Callable[[Feed], None]):
        self.deliveries = 0
        self.on_fanout: Callable[[float], None] = lambda seconds: None
        self._channels = channels
        self._store = store
        self._wheel = wheel
        self._catch_up = catch_up
        self.dirty: list[Channel] = []  # those of which something is pending
        self._fresh_since = 0.0  # when the oldest event that is not yet broadcast was accepted

    def deliver(self, event: Event) -> None:
        """The store has kept an event: broadcast it at the end of this turn of the loop."""
        channel = self._channels.of(event)
        if channel is None:
            return
        if not channel.pending:
            if not self.dirty:
                self._fresh_since = perf_counter()
                asyncio.get_running_loop().call_soon(self.flush)
            self.dirty.append(channel)
        channel.pending.append(event)

    def flush(self) -> None:
        """Broadcast what is pending."""
        dirty, self.dirty = self.dirty, []
        shared = [channel for channel in dirty if channel.shared]
        if len(shared) > 1:
            # A feed of many channels has one Last-Event-ID for all: were an id to step back, who breaks off there would miss an event.
            events = sorted((event for channel in shared for event in channel.pending), key=_id)
            for channel in shared:
                channel.pending = []
            by_name = {channel.name: channel for channel in shared}
            for name, run in groupby(events, _channel):
                self._broadcast(by_name[name], list(run))
        careful: dict[Feed, None] = {}
        for channel in dirty:
            pending, channel.pending = channel.pending, []
            self._broadcast(channel, pending)
            if channel.careful:
                careful |= channel.careful
        # Each once, for it reads from all its channels, on however many of them there is news.
        for feed in careful:
            try:
                self._catch_up(feed)
            except Exception:
                # One feed's mistake must not keep the others from what has come.
                log.exception("a feed could not read what has come")
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
                self._channels.fall_behind(feed)

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
                self._channels.fall_behind(feed)
                feed.keep(memoryview(data)[taken:])

    def _write_to(self, channel: Channel, event: Event) -> None:
        """An event for some devices only: theirs are the only feeds that it is written to."""
        devices = [device for name in event.to or () if (device := self._store.devices.get(name)) is not None]
        meant = [place for device in devices for feed in device.feeds for place in feed.places if place.channel is channel]
        for place in meant:
            hasten(place.feed)
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
                self._channels.fall_behind(feed)

    def count(self, events: int) -> None:
        """So many more were written to live feeds, by those who wait in line."""
        self.deliveries += events

    def withdraw(self, event: Event) -> None:
        """An event was recalled: `pere.cancel` goes to those who have it. Who lacks it will not get it."""
        channel = self._channels.get(event.channel)
        if channel is None:
            return
        if channel.pending:
            self.flush()
        places = [place for places in channel.live.values() for place in places.values()]
        for throng, waiting in channel.throngs.items():
            throng.forget()
            places += [place for place in waiting.values() if place.feed.live and place.ordinal >= event.ordinal]
        if self._channels.behind or channel.careful or channel.throngs:
            places += [place for feed in self._channels.feeds.values() if not feed.live
                       for place in feed.places if place.channel is channel and place.ordinal >= event.ordinal]
        for place in places:
            feed = place.feed
            if is_for(event, feed):
                feed.tell(feed.control(cancel(event)))
            if feed.care is not None and feed.care.end(event.id):
                self._catch_up(feed)


_id, _channel = attrgetter("id"), attrgetter("channel")


def _is_addressed(event: Event) -> bool:
    return event.to is not None
