"""What many lack alike: all that has come on a channel after an event, as it is written to whoever has read up to there.

A fleet that comes back has missed the same events, so they are put together once and not by each device. That is for everybody alike only where
nothing in it is for some devices alone, or was recalled; what is otherwise is read event by event (see `replay.py`). What has expired is passed over.
"""

import math
from typing import NamedTuple

from pere.event import Event
from pere.storage import Shelf

MOST = 64  # events
MOST_BYTES = 64 * 1024  # of them, as they are written
KEPT = 16  # runs that are at hand: a fleet comes back to a few


class Run(NamedTuple):
    """Some events in their order, and `frames`, as they are written; until `expires`, when the first of them does."""

    events: list[Event]
    frames: bytes
    expires: float


class Runs:
    """Those that somebody lacked of late. `made` counts how often one was put together."""

    def __init__(self) -> None:
        self.made = 0
        self._known: dict[tuple[Shelf, int, int, int], Run | None] = {}

    def after(self, shelf: Shelf, ordinal: int, form: int, now: float) -> Run | None:
        """All events after this ordinal that have not expired; None where they are many, not at hand, or not for everybody."""
        backlog = shelf.backlog
        if backlog.recalled and backlog.recalled[-1] > ordinal or ordinal + 1 < backlog.first or backlog.last - ordinal > MOST:
            return None
        newest = backlog.at(backlog.last)
        if newest is None:
            return None
        key = shelf, ordinal, newest.id, form  # by its id, for a channel that was forgotten begins anew with the same ordinals
        if key not in self._known:
            if len(self._known) == KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = self._make(shelf, ordinal, form, now)
        elif (run := self._known[key]) is not None and run.expires <= now:
            self._known[key] = self._make(shelf, ordinal, form, now)
        return self._known[key]

    def _make(self, shelf: Shelf, ordinal: int, form: int, now: float) -> Run | None:
        self.made += 1
        backlog = shelf.backlog
        found = [event for each in range(ordinal + 1, backlog.last + 1) if (event := backlog.at(each)) is not None]
        events = [event for event in found if event.expires > now]
        if len(found) < backlog.last - ordinal or any(event.to is not None for event in events) or sum(event.size for event in events) > MOST_BYTES:
            return None
        frames = b"".join([event.frame(form) for event in events])
        return Run(events, frames, min([event.expires for event in events], default=math.inf))
