"""Sending again: what was not answered in time (`?ack_wait`), what a device asks for again (`retry`), and not too much at once (`?window`).

A feed with Care is never live: its events are read from the backlog one by one, as far as its window goes, and each one is
under way until it is answered. All deadlines are on the wheel, one item per feed and one per `retry`; the live loop knows
nothing of this. In the stream a second attempt has no `id:`, which would move the client's cursor back, so only an envelope
feed gets it there: a raw one is closed, and is sent what it owes when it returns.
"""

import heapq
import math
import random
from collections.abc import Callable

from pere.devices import Device
from pere.event import ENVELOPE, Event
from pere.feed import REDELIVER, Feed, bye
from pere.storage import Store
from pere.wheel import Wheel

MAX_TURN = 100  # events that one feed is sent again in one turn of the wheel: nobody's silence is to hold up the others
LOOK = 1.0  # seconds after which a full window is looked through for what has ended without a receipt
SOON = 0.5  # seconds within which a raw feed is asked to return


class Care:
    """What one feed has under way, with the moment (the loop's time) at which each is due again; infinite without `ack_wait`.
    `ack_wait` in seconds, `window` in events; 0 is without."""

    __slots__ = ("ack_wait", "window", "under_way", "_all", "_deadlines", "_feed", "_is_on_wheel")

    def __init__(self, all: "Redelivery", feed: Feed, ack_wait: float, window: int):
        self.ack_wait = ack_wait
        self.window = window
        self.under_way: dict[int, tuple[float, Event]] = {}
        self._all = all
        self._feed = feed
        self._deadlines: list[tuple[float, int]] = []
        self._is_on_wheel = False

    def is_full(self) -> bool:
        return bool(self.window) and len(self.under_way) >= self.window

    def begin(self, event: Event, wait: float = 0.0) -> None:
        """The event was written, or is put off: it is due again after `ack_wait`, and after another `wait` before that."""
        deadline = math.inf
        if self.ack_wait:
            deadline = self._all.wheel.time() + wait + self.ack_wait
            heapq.heappush(self._deadlines, (deadline, event.id))
            if len(self._deadlines) > 2 * len(self.under_way) + 64:
                # What was put off again and again has left its former deadlines behind.
                self._deadlines = [(at, id) for id, (at, _) in self.under_way.items() if id != event.id] + [(deadline, event.id)]
                heapq.heapify(self._deadlines)
        self.under_way[event.id] = deadline, event
        if not self._is_on_wheel and (self.ack_wait or self.is_full()):
            self._is_on_wheel = True
            self._all.wheel.add(self, min(LOOK, self.ack_wait or LOOK))

    def end(self, id: int) -> bool:
        """It is answered, or no longer owed; whether that made room in a full window."""
        was_full = self.is_full()
        return self.under_way.pop(id, None) is not None and was_full

    def due(self, now: float) -> float:
        feed, found = self._feed, 0
        if feed.reason:
            return 0.0
        was_full = self.is_full()
        while self._deadlines and self._deadlines[0][0] <= now and found < MAX_TURN:
            deadline, id = heapq.heappop(self._deadlines)
            known = self.under_way.get(id)
            if known is not None and known[0] == deadline:
                found += 1
                self._all.overdue(feed, known[1])
                if feed.reason:
                    return 0.0
        if was_full:
            for id, (_, event) in tuple(self.under_way.items()):
                if not self._all.is_owed(feed, event):
                    del self.under_way[id]
        if was_full and not self.is_full():
            feed.owner.catch_up(feed)
        self._is_on_wheel = bool(self.under_way) and not feed.reason
        if not self._is_on_wheel:
            return 0.0
        return min(LOOK, max(0.01, self._deadlines[0][0] - now)) if self._deadlines else LOOK


class Retry:
    """A device asked for an event again, at this moment of the loop's time. Asked once more before that, it is only put off."""

    __slots__ = ("deadline", "_then")

    def __init__(self, deadline: float, then: Callable[[], None]):
        self.deadline = deadline
        self._then = then

    def due(self, now: float) -> float:
        if now < self.deadline:
            return self.deadline - now
        self._then()
        return 0.0


class Redelivery:
    """All that is sent again. `counts` by reason is for metrics: `resume` is what was sent again to a feed that had returned."""

    def __init__(self, store: Store, wheel: Wheel):
        self.wheel = wheel
        self.counts = {"resume": 0, "ack_wait": 0, "retry": 0}
        self.asked = {"working": 0, "retry": 0}
        self._store = store
        self._retries: dict[tuple[str, int], Retry] = {}

    def is_owed(self, feed: Feed, event: Event) -> bool:
        assert feed.device is not None
        return not event.recalled and event.expires > self._store.clock() and self._store.owes(event, feed.device.name)

    def overdue(self, feed: Feed, event: Event) -> None:
        """The device of this feed has not answered in time."""
        assert feed.care is not None and feed.device is not None
        if not self.is_owed(feed, event):
            feed.care.end(event.id)
        elif feed.stuck_since or feed.is_waiting:
            feed.care.begin(event)  # it cannot have got it yet
        elif feed.form & ENVELOPE:
            self._send(feed.device, [feed], event, "ack_wait")
        else:
            self._recycle(feed)

    def heard(self, device: str, id: int) -> None:
        """A receipt came from a device that has feeds with Care. One that closes nothing tells that it goes on."""
        for feed in self._feeds(device):
            known = feed.care.under_way.get(id) if feed.care is not None else None
            if known is None:
                continue
            if self._store.owes(known[1], device):
                feed.care.begin(known[1])
            elif feed.care.end(id):
                feed.owner.catch_up(feed)

    def working(self, device: str, event: Event) -> None:
        """The device has it in hand: what is due again is put off by another `ack_wait`."""
        self.asked["working"] += 1
        for feed in self._feeds(device):
            if feed.care is not None and event.id in feed.care.under_way:
                feed.care.begin(event)

    def retry(self, device: str, event: Event, delay: float) -> None:
        """The device wants it again, in `delay` seconds."""
        self.asked["retry"] += 1
        deadline = self.wheel.time() + delay
        for feed in self._feeds(device):
            if feed.care is not None and event.id in feed.care.under_way:
                feed.care.begin(event, delay)
        known = self._retries.get((device, event.id))
        if known is not None:
            known.deadline = deadline
            return
        self._retries[device, event.id] = item = Retry(deadline, lambda: self._retry(device, event))
        self.wheel.add(item, delay)

    def _retry(self, name: str, event: Event) -> None:
        del self._retries[name, event.id]
        device = self._store.devices.get(name)
        if device is None:
            return
        # A feed that has not come so far yet will send it by itself.
        feeds = [feed for feed in device.feeds if not feed.stuck_since and not feed.is_waiting and _has(feed, event)]
        if not feeds or not self.is_owed(feeds[0], event):
            return
        able = [feed for feed in feeds if feed.form & ENVELOPE]
        if able:
            self._send(device, able, event, "retry")
        else:
            for feed in feeds:
                self._recycle(feed)

    def _feeds(self, device: str) -> tuple[Feed, ...]:
        known = self._store.devices.get(device)
        return known.feeds if known is not None else ()

    def _send(self, device: Device, feeds: list[Feed], event: Event, reason: str) -> None:
        attempt = self._store.attempt(event, device.name, True)
        for feed in feeds:
            if not attempt:
                if feed.care is not None and feed.care.end(event.id):
                    feed.owner.catch_up(feed)
                continue
            if feed.care is not None:
                feed.care.begin(event)
            feed.tell(event.encode(feed.form, attempt, is_repeated=True))
        self.counts[reason] += bool(attempt)

    def _recycle(self, feed: Feed) -> None:
        # Not all at the same moment: who waits for the same receipt is often many.
        feed.close(REDELIVER, bye(REDELIVER, SOON * (0.2 + 0.8 * random.random())))


def _has(feed: Feed, event: Event) -> bool:
    """Whether the feed has been written this event."""
    return any(place.channel.name == event.channel and (feed.live or place.ordinal >= event.ordinal) for place in feed.places)
