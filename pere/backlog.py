"""The newest events of one channel, bounded in number and in bytes.

Feeds read from it what they missed, so it is the only buffer there is between a publisher and a slow device. Events stand
in the order of their ordinals, which have no holes: an index is an ordinal less the first one.
"""

from bisect import bisect_right, insort
from collections.abc import Iterator
from itertools import islice
from operator import attrgetter

from pere.event import Event

_id = attrgetter("id")


class Backlog:
    """A ring of events. `first` is the ordinal of the oldest that is kept, `last` that of the newest (0 if there never was one)."""

    __slots__ = ("bytes", "evicted_id", "first", "last", "recalled", "_events", "_head", "_max_bytes", "_max_events")

    def __init__(self, max_events: int, max_bytes: int):
        self.first = 1
        self.last = 0
        self.bytes = 0
        self.evicted_id = 0  # the newest id that has made way: what is not above it may have existed
        self.recalled: list[int] = []  # the ordinals of those that were
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._events: list[Event | None] = []
        self._head = 0

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __iter__(self) -> Iterator[Event]:
        return islice(self._events, self._head, None)  # type: ignore[arg-type]

    def begin(self, last: int, gone: int) -> None:
        """Go on after this ordinal, of which and of what came before nothing is here; `gone` is the newest id of that."""
        self.first = last + 1
        self.last = last
        self.evicted_id = gone

    def append(self, event: Event) -> bool:
        """Keep an event, whose ordinal is `last + 1`. Returns whether it `is_over` now: what must make way is for the caller to `evict`."""
        self._events.append(event)
        self.last = last = event.ordinal
        self.bytes += event.size
        if event.recalled:
            self.recalled.append(last)
        return last - self.first >= self._max_events or self.bytes > self._max_bytes and last > self.first

    def append_many(self, events: list[Event]) -> list[Event]:
        """Keep events that have no ordinals yet, and give them these; let go what must make way, which is returned. It comes to the same as one after the other."""
        for ordinal, event in enumerate(events, self.last + 1):
            event.ordinal = ordinal
        self._events += events
        self.last += len(events)
        self.bytes += sum([event.size for event in events])
        gone: list[Event] = []
        count = self.last - self.first + 1
        for old in self:
            if count <= self._max_events and (self.bytes <= self._max_bytes or count == 1):
                break
            gone.append(old)
            count -= 1
            self.bytes -= old.size
            if old.recalled:
                del self.recalled[0]
        if gone:
            self.evicted_id = gone[-1].id
            self._leave(len(gone))
        return gone

    def _leave(self, count: int) -> None:
        """So many, from the oldest on, are here no more."""
        events, head = self._events, self._head
        events[head : head + count] = (None,) * count
        self._head = head = head + count
        self.first += count
        # Deleting from the front of a list moves the rest, so do it once the dead half outgrows the living.
        if head > 32 and head * 2 > len(events):
            del events[:head]
            self._head = 0

    def recall(self, event: Event) -> None:
        """An event was taken back, whether it is here or not."""
        known = self.at(event.ordinal)
        if known is not None and not known.recalled:
            known.recalled = True
            insort(self.recalled, event.ordinal)
        event.recalled = True

    def is_over(self) -> bool:
        """Whether it holds more than it may; one event always has its place."""
        more = self.last - self.first  # than one
        return more > 0 and (more >= self._max_events or self.bytes > self._max_bytes)

    def evict(self) -> Event:
        """Let the oldest event go, and return it."""
        events, head = self._events, self._head
        event = events[head]
        assert event is not None, "an empty backlog has nothing to let go"
        events[head] = None
        self._head = head = head + 1
        self.first += 1
        self.bytes -= event.size
        self.evicted_id = event.id
        if event.recalled:
            del self.recalled[0]
        # Deleting from the front of a list moves the rest, so do it once the dead half outgrows the living.
        if head > 32 and head * 2 > len(events):
            del events[:head]
            self._head = 0
        return event

    def oldest(self) -> Event | None:
        return self._events[self._head] if len(self) else None

    def at(self, ordinal: int) -> Event | None:
        """The event with this ordinal, or None where it is not kept."""
        if self.first <= ordinal <= self.last:
            return self._events[self._head + ordinal - self.first]
        return None

    def seek(self, id: int) -> int:
        """The ordinal of the newest event that is not above this id; `first - 1` where all that are kept are above. O(log n)."""
        return self.first - 1 + bisect_right(self._events, id, lo=self._head, key=_id) - self._head

    def find(self, id: int) -> Event | None:
        event = self.at(self.seek(id))
        return event if event is not None and event.id == id else None

    def after(self, id: int, limit: int) -> list[Event]:
        """At most `limit` events above this id, oldest first."""
        start = self._head + self.seek(id) + 1 - self.first
        return self._events[start : start + limit]  # type: ignore[return-value]
