"""What one feed has under way, where it asks for care: `?ack_wait`, after which an event that is not answered is sent again, and `?window`,
which bounds how many may be on their way.

A feed with Care is never live: its events are read from the backlog one by one, as far as its window goes, and each one is under way until
it is answered. No event is held on to here, only ids: what makes way in the store is gone here too.
"""

import heapq
import math
from itertools import islice
from typing import Any, NamedTuple, Protocol

from pere.errors import Refusal
from pere.event import Event
from pere.feed import Feed
from pere.wheel import Wheel

MAX_UNDER_WAY = 10_000  # events under way on a feed without a window: some 2 MB for a device that never answers
LOOK = 1.0  # seconds after which a full window is looked through for what has ended without a receipt
MAX_LOOK = 10  # events in it of which the store is asked each time: it may have to read them from the disk


class Owner(Protocol):
    """Who sends again: the redelivery. All that is asked of the store goes by it, and raises Refusal where the store cannot tell."""

    wheel: Wheel

    def clock(self) -> float:
        """Seconds since 1970, as the store has it."""

    def gone(self, channel: str) -> int:
        """The newest id of the channel that is no longer kept."""

    def open(self, device: str, channel: str, id: int) -> Event | None:
        """The event, if it is still open on the device."""

    def queue(self, care: "Care") -> None:
        """Something of it is due."""

    def overdue(self, feed: Feed, id: int, channel: str, now: float) -> None:
        """The device of this feed has not answered in time."""


class Sent(NamedTuple):
    """What is known of an event that is under way. It is due again at `deadline` (the loop's time), and over at `expires` (the store's)."""

    deadline: float
    channel: str
    expires: float


class Care:
    """What one feed has under way, by event id, with the moment at which each is due again; infinite without `ack_wait`.
    `ack_wait` in seconds, `window` in events; 0 is without."""

    __slots__ = ("ack_wait", "window", "under_way", "_all", "_deadlines", "_feed", "_is_awaited", "_most")

    def __init__(self, all: Owner, feed: Feed, ack_wait: float, window: int):
        self.ack_wait = ack_wait
        self.window = window
        self.under_way: dict[int, Sent] = {}
        self._all = all
        self._feed = feed
        self._most = window or MAX_UNDER_WAY
        self._deadlines: list[tuple[float, int]] = []
        self._is_awaited = False  # on the wheel, or in the line

    def is_full(self) -> bool:
        return len(self.under_way) >= self._most

    def begin(self, event: Event, wait: float = 0.0) -> None:
        """The event was written, or is put off: it is due again after `ack_wait`, and after another `wait` before that."""
        self._await(event.id, event.channel, event.expires, wait + self.ack_wait)

    def _await(self, id: int, channel: str, expires: float, seconds: float) -> None:
        deadline = math.inf
        if self.ack_wait:
            deadline = self._all.wheel.time() + seconds
            heapq.heappush(self._deadlines, (deadline, id))
            if len(self._deadlines) > 2 * len(self.under_way) + 64:
                # What was answered, or put off again and again, has left its former deadlines behind.
                self._deadlines = [(sent.deadline, other) for other, sent in self.under_way.items() if other != id] + [(deadline, id)]
                heapq.heapify(self._deadlines)
        self.under_way[id] = Sent(deadline, channel, expires)
        if not self._is_awaited and (self.ack_wait or self.is_full()):
            self._is_awaited = True
            self._all.wheel.add(self, min(LOOK, self.ack_wait or LOOK))

    def end(self, id: int) -> bool:
        """It is answered, or no longer owed; whether that made room in a full window."""
        was_full = self.is_full()
        return self.under_way.pop(id, None) is not None and was_full

    def due(self, now: float) -> float:
        """Its turn on the wheel has come."""
        if not self._feed.reason:
            self._all.queue(self)
        return 0.0

    def work(self, most: int, now: float) -> int:
        """See to at most so many events that are overdue, and to a full window; how many there were."""
        feed, count = self._feed, 0
        was_full = self.is_full()
        while count < most and self.is_late(now):
            deadline, id = heapq.heappop(self._deadlines)
            sent = self.under_way.get(id)
            if sent is None or sent.deadline != deadline:
                continue
            count += 1
            try:
                self._all.overdue(feed, id, sent.channel, now)
            except Refusal:
                # The disk is in trouble, which is said elsewhere.
                self._await(id, sent.channel, sent.expires, LOOK)
        if was_full and not feed.reason:
            self._look()
            if not self.is_full():
                feed.owner.catch_up(feed)
        return count

    def is_late(self, now: float) -> bool:
        """Whether something of it is overdue, at the loop's time `now`."""
        return not self._feed.reason and bool(self._deadlines) and self._deadlines[0][0] <= now

    def wait(self, now: float) -> None:
        """Back on the wheel, until the next moment at which there may be something to do."""
        self._is_awaited = not self._feed.reason and bool(self.under_way) and (bool(self.ack_wait) or self.is_full())
        if self._is_awaited:
            first = max(0.01, self._deadlines[0][0] - now) if self._deadlines else LOOK
            self._all.wheel.add(self, min(LOOK, self.ack_wait or LOOK, first))

    def told(self) -> list[Any]:
        """What another process is to go on with: `ack_wait`, `window`, and of each event that is under way what it is to be told again."""
        now = self._all.wheel.time()
        return [self.ack_wait, self.window, [(id, sent.deadline - now if self.ack_wait else 0.0, sent.channel, sent.expires) for id, sent in self.under_way.items()]]

    def take_over(self, under_way: list[tuple[int, float, str, float]]) -> None:
        """Go on with what another process has `told`."""
        for id, seconds, channel, expires in under_way:
            self._await(id, channel, expires, max(0.0, seconds))

    def _look(self) -> None:
        """Let go of what has ended without a receipt."""
        assert self._feed.device is not None
        device = self._feed.device.name
        gone = {channel: self._all.gone(channel) for channel in {sent.channel for sent in self.under_way.values()}}
        now = self._all.clock()
        for id, sent in tuple(self.under_way.items()):
            if sent.expires <= now or id <= gone[sent.channel]:
                del self.under_way[id]
        # What ends in other ways is rare: of some of them the store is asked, of others the next time.
        for id, sent in tuple(islice(self.under_way.items(), MAX_LOOK)):
            event = self._all.open(device, sent.channel, id)
            del self.under_way[id]
            if event is not None:
                self.under_way[id] = sent
