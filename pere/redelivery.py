"""Sending again: what was not answered in time (`?ack_wait`), what a device asks for again (`retry`), and not too much at once (`?window`).

What a feed has under way is told by its Care (`care.py`). The deadlines are on the wheel, one item per feed and one for every `retry`; what
is due then waits in a line of which each turn of the loop takes a piece, so that nobody's silence holds up the others. In the stream a
second attempt has no `id:`, which would move the client's cursor back, so only an envelope feed gets it there: a raw one is closed, and is
sent what it owes when it returns. A `retry` that is waited for does not outlast the process, but what is owed does.
"""

import asyncio
import heapq
import logging
import random
from collections import deque
from typing import NamedTuple

from pere.care import Care
from pere.devices import BEFORE, Device
from pere.errors import Full, Gone, NotFound, Refusal, TooMany
from pere.event import ENVELOPE, Event
from pere.feed import REDELIVER, Feed, bye
from pere.receipt import WORKING, closes
from pere.storage import Store
from pere.wheel import Wheel

log = logging.getLogger("pere.feed")

MAX_TURN = 100  # events that are sent again in one turn of the loop: about a millisecond
MAX_DEVICE_RETRIES = 1_000  # events that one device may wait for by `retry`
MAX_RETRIES = 100_000  # and all devices: about 40 MB
LATER = 1.0  # seconds until what could not be looked up is tried again
SOON = 0.5  # seconds within which a raw feed is asked to return


class Retry(NamedTuple):
    """A device asked for an event again at `deadline` (the loop's time); it did so at `asked` (the store's)."""

    deadline: float
    channel: str
    asked: float


class Redelivery:
    """All that is sent again. `counts` by reason, and `asked` by what the device said (accepted, duplicate), are for metrics; `resume` is what was
    sent again to a feed that had returned."""

    def __init__(self, store: Store, wheel: Wheel):
        self.wheel = wheel
        self.counts = {"resume": 0, "ack_wait": 0, "retry": 0}
        self.asked = {"working": [0, 0], "retry": [0, 0]}
        self._store = store
        self._line: deque[Care] = deque()
        self._is_called = False
        self._retries: dict[str, dict[int, Retry]] = {}  # by device and event
        self._deadlines: list[tuple[float, str, int]] = []
        self._waiting = 0  # retries
        self._is_on_wheel = False

    # What is asked of the store

    def clock(self) -> float:
        """Seconds since 1970, as the store has it."""
        return self._store.clock()

    def gone(self, channel: str) -> int:
        """The newest id of the channel that is no longer kept."""
        shelf = self._store.shelf(channel)
        return shelf.gone_id if shelf is not None else self._store.newest

    def open(self, device: str, channel: str, id: int) -> Event | None:
        """The event, if it is still open on the device; a receipt may be on its way."""
        try:
            event, state = self._store.standing(channel, device, id)
        except (NotFound, Gone):
            return None
        return None if event.recalled or event.expires <= self._store.clock() or closes(state, event.level) else event

    # What a device says

    def heard(self, device: str, id: int) -> None:
        """A receipt came from a device that has feeds with Care. One that closes nothing tells that it goes on."""
        # Not `owes`: this receipt may still count as being on its way.
        event, state = self._store.standing(None, device, id)
        is_closed = closes(state, event.level)
        for feed in self._feeds(device):
            if feed.care is None:
                continue
            if not is_closed:
                # What was read while this was on its way is not under way yet.
                if id in feed.care.under_way or _has(feed, event):
                    feed.care.begin(event)
            elif feed.care.end(id):
                feed.owner.catch_up(feed)

    def working(self, device: str, event: Event) -> bool:
        """The device has it in hand: what is due again is put off by another `ack_wait`. False where it owes nothing any more."""
        is_owed = self.open(device, event.channel, event.id) is not None
        self.asked["working"][not is_owed] += 1
        for feed in self._feeds(device) if is_owed else ():
            if feed.care is not None and event.id in feed.care.under_way:
                feed.care.begin(event)
        return is_owed

    def retry(self, device: str, event: Event, delay: float) -> bool:
        """The device wants it again in `delay` seconds, whatever it said before. False where it owes nothing any more. Raises TooMany or
        Full where too much is waited for already."""
        if self.open(device, event.channel, event.id) is None:
            self.asked["retry"][1] += 1
            return False
        known = self._retries.get(device, {})
        if event.id not in known:
            if len(known) >= MAX_DEVICE_RETRIES:
                raise TooMany("too_many_retries", f"a device can wait for {MAX_DEVICE_RETRIES} events by retry", retry_after=60, whose="device")
            if self._waiting >= MAX_RETRIES:
                raise Full("too_many_retries", f"no more than {MAX_RETRIES} events are waited for by retry", retry_after=60)
        self.asked["retry"][0] += 1
        for feed in self._feeds(device):
            if feed.care is not None and event.id in feed.care.under_way:
                feed.care.begin(event, delay)
        self._put_off(device, event.id, Retry(self.wheel.time() + delay, event.channel, self._store.clock()))
        return True

    def heed(self, device: str, channel: str, id: int, word: int, delay: float) -> None:
        """A device has said so on another node, where it was counted, and may have its feeds here."""
        if not self._feeds(device):
            return
        asked = {name: [*counts] for name, counts in self.asked.items()}
        try:
            event, _ = self._store.standing(channel, device, id)
            if word == WORKING:
                self.working(device, event)
            else:
                self.retry(device, event, delay)
        except Refusal:
            pass  # there it was taken, here there is no room for it
        self.asked.update(asked)

    def _put_off(self, device: str, id: int, retry: Retry) -> None:
        known = self._retries.setdefault(device, {})
        self._waiting += id not in known
        known[id] = retry
        heapq.heappush(self._deadlines, (retry.deadline, device, id))
        if len(self._deadlines) > 2 * self._waiting + 64:
            self._deadlines = [(retry.deadline, name, id) for name, waiting in self._retries.items() for id, retry in waiting.items()]
            heapq.heapify(self._deadlines)
        if not self._is_on_wheel:
            self._is_on_wheel = True
            self.wheel.add(self, 0)

    def told(self) -> list[tuple[str, int, float, str, float]]:
        """The retries that are waited for, as another process is told of them."""
        now = self.wheel.time()
        return [(name, id, retry.deadline - now, retry.channel, retry.asked) for name, known in self._retries.items() for id, retry in known.items()]

    def take_over(self, retries: list[tuple[str, int, float, str, float]]) -> None:
        """Go on with what another process has `told`."""
        for name, id, seconds, channel, asked in retries:
            self._put_off(name, id, Retry(self.wheel.time() + seconds, channel, asked))

    # What is due

    def due(self, now: float) -> float:
        """Once a tick as long as a retry is waited for: the next one may be asked for sooner than all others."""
        if self._is_late(now):
            self._call()
        self._is_on_wheel = bool(self._deadlines)
        return 0.01 if self._is_on_wheel else 0.0

    def _is_late(self, now: float) -> bool:
        return bool(self._deadlines) and self._deadlines[0][0] <= now

    def queue(self, care: Care) -> None:
        """Something of this feed is due."""
        self._line.append(care)
        self._call()

    def _call(self) -> None:
        if not self._is_called:
            self._is_called = True
            asyncio.get_running_loop().call_soon(self._work)

    def _work(self) -> None:
        """A piece of what is due, retries and feeds in equal parts; the rest comes in the next turn of the loop."""
        self._is_called = False
        now, left = self.wheel.time(), MAX_TURN
        while self._is_late(now) and left > MAX_TURN // 2:
            left -= 1
            self._next_retry()
        while self._line and left > 0:
            care = self._line.popleft()
            try:
                left -= 1 + care.work(left, now)
            except Refusal:
                pass  # the disk is in trouble: it comes again
            except Exception:
                # One feed's mistake must not stop all others.
                log.exception("a deadline could not be met")
            if care.is_late(now):
                self._line.append(care)
            else:
                care.wait(now)
        if self._line or self._is_late(now):
            self._call()

    def _next_retry(self) -> None:
        deadline, name, id = heapq.heappop(self._deadlines)
        known = self._retries.get(name, {})
        retry = known.get(id)
        if retry is None or retry.deadline != deadline:
            return  # it was asked for once more since
        del known[id]
        self._waiting -= 1
        if not known:
            del self._retries[name]
        try:
            is_done = self._retry(name, id, retry)
        except Refusal:
            is_done = False  # the disk is in trouble
        if not is_done:
            self._put_off(name, id, retry._replace(deadline=self.wheel.time() + LATER))

    def _retry(self, name: str, id: int, retry: Retry) -> bool:
        """Send it again, if it is still owed; False if not now."""
        device = self._store.devices.get(name)
        event = self.open(name, retry.channel, id)
        shelf = self._store.shelf(retry.channel)
        if device is None or event is None or shelf is None:
            return True
        member = shelf.audience.members.get(name)
        if member is not None and member.since > retry.asked:
            return True  # it has returned since, and so was sent what it owes
        # A feed that has not come so far yet will send it by itself.
        feeds = [feed for feed in device.feeds if _has(feed, event)]
        ready = [feed for feed in feeds if _is_ready(feed)]
        if not ready or not self._store.owes(event, name):
            return not feeds and BEFORE not in device.elsewhere
        able = [feed for feed in ready if feed.form & ENVELOPE]
        if able:
            self._send(device, able, event, "retry")
        else:
            for feed in ready:
                self._recycle(feed)
        return True

    def overdue(self, feed: Feed, id: int, channel: str, now: float) -> None:
        """The device of this feed has not answered in time. Raises Unavailable where the store cannot tell."""
        assert feed.care is not None and feed.device is not None
        event = self.open(feed.device.name, channel, id)
        if event is None:
            feed.care.end(id)
        elif not _is_ready(feed) or not self._store.owes(event, feed.device.name):
            feed.care.begin(event)  # it cannot have got it yet, or it is just being answered
        elif feed.form & ENVELOPE:
            # Two feeds of a device that have waited for as long get it as one attempt.
            late = [other for other in feed.device.feeds if other is feed or _is_overdue(other, id, now)]
            self._send(feed.device, late, event, "ack_wait")
        else:
            self._recycle(feed)

    def _send(self, device: Device, feeds: list[Feed], event: Event, reason: str) -> None:
        attempt = self._store.attempt(event, device.name, True)
        if not attempt:
            for feed in device.feeds:
                if feed.care is not None and feed.care.end(event.id):
                    feed.owner.catch_up(feed)
            return
        self.counts[reason] += 1
        for feed in feeds:
            if feed.care is not None:
                feed.care.begin(event)
            feed.tell(event.encode(feed.form, attempt, is_repeated=True))

    def _recycle(self, feed: Feed) -> None:
        # Not all at the same moment: who waits for the same receipt is often many.
        feed.close(REDELIVER, bye(REDELIVER, SOON * (0.2 + 0.8 * random.random())))

    def _feeds(self, device: str) -> tuple[Feed, ...]:
        known = self._store.devices.get(device)
        return known.feeds if known is not None else ()


def _has(feed: Feed, event: Event) -> bool:
    """Whether the feed has been written this event."""
    return any(place.channel.name == event.channel and (feed.live or place.ordinal >= event.ordinal) for place in feed.places)


def _is_ready(feed: Feed) -> bool:
    return not feed.stuck_since and not feed.is_waiting and not feed.reason


def _is_overdue(feed: Feed, id: int, now: float) -> bool:
    sent = feed.care.under_way.get(id) if feed.care is not None else None
    return sent is not None and sent.deadline <= now and bool(feed.form & ENVELOPE) and _is_ready(feed)
