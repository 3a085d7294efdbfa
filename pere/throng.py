"""The feeds of a client that has very many.

A broadcast is one loop over all live feeds, in which nobody else is served; so one client with five thousand of them would take everybody's turn, with each
event. Of one client only the first few hundred are therefore written to in that loop. All others are its throng, which waits in line (see `line.py`), where
some of them are written to in each turn, with all that has come by then. Each keeps its own place, so events can come meanwhile, in any channel, and feeds
come and go; but what they are, by all else, is live: that an event counts as sent to them while they are still to be written to is a matter of milliseconds.
Those that are behind wait in line too, one by one.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from pere.event import Event
from pere.feed import Feed, Place
from pere.limits import Account

LIVE = 128  # feeds of one client that are written to in one go: less than a millisecond
SOME = 8  # that are written to in one step: half a tenth of a millisecond
MOST = 512  # events that it may lack: who lacks more reads from the backlog

_id = attrgetter("id")


class Throng:
    """`join` puts it in line. `read` has a feed read from the backlog what it has missed, `fall_behind` notes that its socket is full, or that it must. `count` is
    told how many events were written to live feeds."""

    def __init__(self, account: Account, join: Callable[[Account, Any], None], read: Callable[[Feed], None], fall_behind: Callable[[Feed], None], count: Callable[[int], None]):
        self.feeds = 0
        self.careful = 0  # places of those that are never live
        self._account = account
        self._join = join
        self._read = read
        self._fall_behind = fall_behind
        self._count = count
        self._is_in_line = False
        self._fresh: dict[Any, int] = {}  # channels in which something has come for all, from this ordinal on
        self._walked: Any = None  # the channel whose places are being written to, with all from the ordinal `_since` on
        self._since = 0
        self._walk: list[Place] = []  # these places, from `_at` on
        self._at = 0
        self._late: dict[Feed, None] = {}  # that are to read from the backlog
        self._made: dict[tuple[Any, int, int, int], bytes | None] = {}  # what was written of late

    def enter(self, place: Place) -> None:
        """This place is one of those that wait in line."""
        place.channel.throngs.setdefault(self, {})[place.feed.fd] = place
        self.careful += place.feed.care is not None

    def leave(self, place: Place) -> None:
        """And is not any more: `ordinal` says up to where it was written to."""
        if place.feed.care is None:
            place.ordinal = self._reached(place)
        else:
            self.careful -= 1
        places = place.channel.throngs[self]
        del places[place.feed.fd]
        if not places:
            del place.channel.throngs[self]

    def tell(self, channel: Any, ordinal: int) -> None:
        """Something has come there, beginning with this."""
        self._fresh.setdefault(channel, ordinal)
        self._line_up()

    def read_later(self, feed: Feed) -> None:
        """It is behind, and there is room in its socket."""
        self._late[feed] = None
        self._line_up()

    def forget(self) -> None:
        """An event was recalled that may be in what was made."""
        self._made.clear()

    def _line_up(self) -> None:
        if not self._is_in_line:
            self._is_in_line = True
            self._join(self._account, self)

    def step(self) -> bool:
        """Its turn has come. Tells whether there is more to do."""
        try:
            self._do_some()
        except Exception:
            # Who raises is in line no more. What one of them met is no matter of the others, who wait for their turn.
            self._is_in_line = False
            if self._has_more():
                self._line_up()
            raise
        self._is_in_line = self._has_more()
        return self._is_in_line

    def _has_more(self) -> bool:
        return bool(self._late or self._fresh) or self._walked is not None

    def _do_some(self) -> None:
        if self._late:
            feed = next(iter(self._late))
            del self._late[feed]
            self._read(feed)
        if self._at >= len(self._walk):
            self._at, self._walk, self._walked = 0, [], None
            self._made.clear()
            if self._fresh:
                self._walked = next(iter(self._fresh))
                self._since = self._fresh.pop(self._walked)
                self._walk = list(self._walked.throngs.get(self, {}).values())
        for place in self._walk[self._at : self._at + SOME]:
            self._at += 1
            if place.feed.live:
                self.write(place.feed)
            elif place.feed.care is not None:
                self._read(place.feed)

    def _reached(self, place: Place) -> int:
        """Up to where a live place has all that it is to have: what was for some devices alone is no step of the others."""
        channel = place.channel
        since = self._since if channel is self._walked else self._fresh.get(channel)
        return max(place.ordinal, channel.flushed if since is None else since - 1)

    def write(self, feed: Feed) -> None:
        """All that has come to a live feed of it. What is for some devices alone is not in this: it is written to them when it comes."""
        if feed.reason:
            return  # another process has it
        for place in feed.places:
            place.ordinal = self._reached(place)
        behind = [place for place in feed.places if place.ordinal < place.channel.flushed]
        if not behind:
            return
        data = self._after(behind[0], feed.form) if len(behind) == 1 else self._in_order(behind, feed.form)
        if data is None:
            self._fall_behind(feed)
            self.read_later(feed)
            return
        for place in behind:
            place.ordinal = place.channel.flushed
        if data and not feed.write(data) and not feed.reason:
            self._fall_behind(feed)

    def _after(self, place: Place, form: int) -> bytes | None:
        """What a place lacks; None if that is much, or not at hand."""
        channel = place.channel
        key = channel, place.ordinal, channel.flushed, form
        if key not in self._made:
            events = _lacking(place)
            self._made[key] = None if events is None else b"".join([event.frame(form) for event in events])
        data = self._made[key]
        if data is not None:
            self._count(channel.flushed - place.ordinal)
        return data

    def _in_order(self, places: list[Place], form: int) -> bytes | None:
        """The same for places on several channels, by id: were an id to step back, who breaks off there would miss an event."""
        events: list[Event] = []
        for place in places:
            some = _lacking(place)
            if some is None:
                return None
            events += some
        self._count(len(events))
        return b"".join([event.frame(form) for event in sorted(events, key=_id)])


def hasten(feed: Feed) -> None:
    """If it is live and waits for its turn, it has all that has come before."""
    if feed.throng is not None and feed.live:
        feed.throng.write(feed)


def _lacking(place: Place) -> list[Event] | None:
    backlog, newest = place.channel.shelf.backlog, place.channel.flushed
    if place.ordinal + 1 < backlog.first or newest - place.ordinal > MOST:
        return None
    events = [backlog.at(ordinal) for ordinal in range(place.ordinal + 1, newest + 1)]
    return [event for event in events if event.to is None and not event.recalled]
