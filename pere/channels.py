"""The channels that somebody listens to, and in which of their sets each feed stands.

A feed is *live* where all that comes is written to it at once, *behind* where it reads from the backlog until it is up to date, or *careful*, and then never
live (see `care.py`). Where its client has very many it is live in its throng (see `throng.py`). Nothing is written here and nothing awaits, so
a feed is in all sets that it belongs to, or in none of them.
"""

from collections import defaultdict
from collections.abc import Collection

from pere.audience import Member
from pere.event import SECURE, Event
from pere.feed import PASSED, Feed, Place
from pere.storage import Shelf, Store
from pere.throng import Throng
from pere.wheel import Wheel
from pere.wishes import Wishes


class Channel:
    """Who listens to one channel. `live` holds, per form of frame, the places of feeds that are up to date, by descriptor; `throngs` those
    that wait in line, by descriptor too. `careful` are the feeds that are never live; `feeds` counts all, `shared` those of many channels.
    `pending` is still to be written to the live ones, `flushed` the ordinal up to which they have been written to, at the loop's time `written`."""

    __slots__ = ("careful", "feeds", "flushed", "live", "name", "pending", "shared", "shelf", "throngs", "written")

    def __init__(self, name: str, shelf: Shelf, flushed: int, now: float):
        self.name = name
        self.shelf = shelf
        self.live: defaultdict[int, dict[int, Place]] = defaultdict(dict)
        self.throngs: dict[Throng, dict[int, Place]] = {}
        self.careful: dict[Feed, None] = {}
        self.pending: list[Event] = []
        self.flushed = flushed
        self.feeds = 0
        self.shared = 0
        self.written = now


class Channels(dict[str, Channel]):
    """All that somebody listens to, by name. `feeds` are all that are open, by descriptor, `behind` how many of them are."""

    def __init__(self, store: Store, wheel: Wheel):
        super().__init__()
        self.feeds: dict[int, Feed] = {}
        self.behind = 0
        # Feeds that have gone, have ceased to be live or come to be of more channels, and their places, where somebody wants to know.
        self.moved: dict[Feed, tuple[Place, ...]] | None = None
        self._store = store
        self._wheel = wheel
        self._wildcards: Wishes[set[Feed]] = Wishes()  # feeds by the patterns they listen to

    def of(self, event: Event) -> Channel | None:
        """The channel of an event that has just come, if somebody listens to it: by a pattern it is listened to before it is there."""
        channel = self.get(event.channel)
        if channel is None and self._wildcards and any(self._wildcards.meaning(event.channel)):
            channel = self._born(event.channel, event.ordinal - 1)
        return channel

    def _born(self, name: str, newest: int) -> Channel:
        """A channel that nobody listened to yet: those feeds join whose pattern means it, to read on after the ordinal `newest`."""
        channel = self[name] = Channel(name, self._store.open(name), newest, self._wheel.now)
        self._store.follow(name)
        for feed in {feed for feeds in self._wildcards.meaning(name) for feed in feeds}:
            member = self._store.register(name, feed.device.name) if feed.device is not None else None
            place = self.place(feed, name, member)
            feed.places += (place,)
            place.ordinal = newest
            channel.shared += 1
            if self.moved is not None:
                self.moved[feed] = feed.places
            if member is not None:
                member.since = self._store.clock()
            if feed.live:
                self._enter(feed, place)
        return channel

    # A feed comes

    def place(self, feed: Feed, name: str, member: Member | None) -> Place:
        """A place for the feed at the end of a channel, which is made if nobody listened to it before."""
        channel = self.get(name)
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

    def enlist(self, feed: Feed) -> None:
        """It is one of those that are open, behind as yet; what it has missed it is still to catch up with."""
        for pattern in feed.patterns:
            if pattern not in self._wildcards:
                self._wildcards[pattern] = set()
                self._store.follow(pattern)
            self._wildcards[pattern].add(feed)
        if feed.patterns or len(feed.places) > 1:  # it is of many channels, or may be yet
            for place in feed.places:
                place.channel.shared += 1
        if feed.device is not None:
            self._store.devices.open(feed.device, feed)
        self.feeds[feed.fd] = feed
        self.behind += feed.care is None

    # It is live, or behind

    def join(self, feed: Feed) -> None:
        """It is up to date: it is written to as all others are."""
        feed.live = True
        self.behind -= 1
        for place in feed.places:
            self._enter(feed, place)

    def _enter(self, feed: Feed, place: Place) -> None:
        member = place.member
        if feed.throng is not None:
            feed.throng.enter(place)
        else:
            place.channel.live[feed.form][feed.fd] = place
        if member is not None:
            if place.ordinal > member.position:
                member.position = place.ordinal
            member.live += 1

    def fall_behind(self, feed: Feed) -> None:
        """Out of the live set: from here on the feed reads from the backlog."""
        feed.live = False
        self.behind += 1
        if self.moved is not None:
            self.moved[feed] = feed.places
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
            place.mark()

    # It goes

    def leave(self, feed: Feed) -> None:
        """It is closed: out of everything that it was in."""
        if self.moved is not None:
            self.moved[feed] = feed.places
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
                del self[place.channel.name]
                self._store.unfollow(place.channel.name)
        self._want_no_more(feed)
        if feed.device is not None:
            feed.device.seen = now
            self._store.devices.close(feed.device, feed)
        del self.feeds[feed.fd]

    def _want_no_more(self, feed: Feed) -> None:
        """It joins no channel that is yet to be born."""
        for pattern in feed.patterns:
            self._wildcards[pattern].discard(feed)
            if not self._wildcards[pattern]:
                del self._wildcards[pattern]
                self._store.unfollow(pattern)

    def abandon(self, feeds: Collection[Feed]) -> dict[str, int]:
        """Nothing more is written to these feeds, which are live and not over TLS: another process goes on with them, and these channels are at their end. Up to
        which ordinal of each channel they have been. All wait meanwhile, so none of them is taken out of where it stands, which would take 10 us each; but a channel that
        is born now is not for them."""
        for feed in feeds:
            feed.reason = PASSED
            if feed.patterns:
                self._want_no_more(feed)
        if len(feeds) == len(self.feeds):
            self.feeds.clear()
        else:
            for feed in feeds:
                del self.feeds[feed.fd]
        for channel in self.values():
            channel.live = defaultdict(dict, {form: places for form, places in channel.live.items() if form & SECURE})
        return {name: channel.flushed for name, channel in self.items()}
