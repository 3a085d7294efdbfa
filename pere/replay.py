"""What a feed reads that is not live: where it begins, what comes next, and what it is told of events that will not come.

A feed that has just connected, or that fell behind, reads from the backlog event by event until it is up to date. A known device
begins with the first event that it still owes a receipt for, whatever it says that it has read.
"""

from collections.abc import Iterator
from heapq import heapify, heappop, heapreplace

import orjson

from pere import sse
from pere.event import ENVELOPE, Event, format_id
from pere.feed import Feed, Place
from pere.receipt import NONE
from pere.redelivery import Redelivery
from pere.runs import Runs
from pere.storage import Store


class Replay:
    """`events` is how many were written, `gaps` how many were told of."""

    def __init__(self, store: Store, redelivery: Redelivery):
        self.events = 0
        self.gaps = 0
        self.runs = Runs()
        self._store = store
        self._redelivery = redelivery

    def begin(self, place: Place, start: int | None, cursor: int | None) -> bytes:
        """Find where a feed that has just connected begins on a channel, and what it is to be told before anything else. `start` is the id after which it
        wants to begin, `cursor` what its client has read up to. Raises Unavailable where the store cannot tell."""
        shelf, member = place.channel.shelf, place.member
        backlog = shelf.backlog
        is_new = member is None or (not member.since and member.position == backlog.last)
        wanted, told = cursor if cursor is not None else start, b""
        place.id = wanted if wanted is not None else self._store.id_at(shelf, backlog.last)
        if wanted is not None or not is_new:  # most begin with what comes next
            told = self._find_begin(place, is_new, start, cursor)
            if backlog.recalled:
                told += self._recalled(place, place.sent or (place.ordinal if cursor is not None else 0))
        if member is not None:
            # Last, for where the store cannot tell it is as new when it comes again.
            member.since = member.seen = self._store.clock()
            if cursor:
                member.last_id = cursor
        return told

    def _recalled(self, place: Place, has: int) -> bytes:
        """What was taken back of that which the client has: up to this ordinal, and not to be read again."""
        backlog, now, told = place.channel.shelf.backlog, self._store.clock(), b""
        for ordinal in backlog.recalled:
            if ordinal > min(has, place.ordinal):
                break  # the rest is read, or was never sent
            event = backlog.at(ordinal)
            if event.expires > now and is_for(event, place.feed):
                told += place.feed.control(cancel(event))
        return told

    def _find_begin(self, place: Place, is_new: bool, start: int | None, cursor: int | None) -> bytes:
        shelf, member = place.channel.shelf, place.member
        backlog, told = shelf.backlog, b""
        wanted = cursor if cursor is not None else start
        if wanted is not None and (is_new or cursor is None):
            place.ordinal = self._store.seek(shelf, wanted)
            if 0 < wanted < max(shelf.gone_id, self._store.born):
                # How many there were is not known: those who could have counted them have gone.
                told = self._gap(place, None)
            if member is not None:
                # What came before that is still owed, if it was not answered.
                place.wanted = place.read = place.ordinal
                place.known = backlog.last
                if not is_new:
                    place.sent = member.reached(backlog.last)
                place.ordinal = min(place.ordinal, self._store.settled(shelf, member))
            return told
        assert member is not None
        place.known = backlog.last
        place.sent = member.reached(backlog.last)
        place.read = self._store.seek(shelf, cursor) if cursor is not None else place.sent
        place.ordinal = min(place.read, self._store.settled(shelf, member))
        if place.sent < shelf.first - 1:
            place.ordinal = place.sent  # what it was never sent and never will be: the gap is told first
        elif cursor is not None and 0 < cursor < shelf.gone_id:
            told = self._gap(place, None)  # what it was sent, says that it has not read, and will not get again
        if cursor is None:
            place.id = self._store.id_at(shelf, place.ordinal)
        return told

    def at_once(self, feed: Feed) -> bytes | None:
        """All that it has missed, where it lacks what many do: on one channel, a few events of which none was sent to its device before, and each
        is still owed. What `ahead` and `read` come to then; None where they have to say."""
        if len(feed.places) > 1 or feed.care is not None:
            return None
        place = feed.places[0]
        member, shelf = place.member, place.channel.shelf
        if place.ordinal < place.sent or place.ordinal < place.read:
            return None
        run = self.runs.after(shelf, place.ordinal, feed.form, self._store.clock())
        if run is None:
            return None
        if member is not None and not (shelf.audience.members.get(member.device) is member and self._store.owes_all(run.events, member)):
            return None
        place.ordinal = shelf.backlog.last
        if run.events:
            place.id = run.events[-1].id
        self.events += len(run.events)
        return run.frames

    def ahead(self, feed: Feed) -> Iterator[Place]:
        """The places of a feed in the order in which they are to be read, each for one event, and before the next one is asked for: the one
        whose next event is the oldest. It ends where there is no next event anywhere, one has to be fetched first, or too much is under way."""
        care = feed.care
        behind = [place for place in feed.places if place.ordinal < place.channel.shelf.backlog.last]
        for place in behind if care is None or not care.is_full() else ():
            self._reach(feed, place)
        # Ids order events across channels; on one channel they are in order as they stand.
        rank = _next_id if len(behind) > 1 else _alone
        queue = [(rank(place), number) for number, place in enumerate(behind)]
        heapify(queue)
        while queue and not feed.is_waiting and (care is None or not care.is_full()):
            place = behind[queue[0][1]]
            yield place
            if place.ordinal == place.channel.shelf.backlog.last:
                heappop(queue)
                continue
            self._reach(feed, place)
            heapreplace(queue, (rank(place), queue[0][1]))

    def _reach(self, feed: Feed, place: Place) -> None:
        """The next event of this place is to be at hand."""
        shelf = place.channel.shelf
        if shelf.first <= place.ordinal + 1 < shelf.backlog.first and place.ordinal + 1 not in shelf.past:
            self._fetch(feed, place)

    def _fetch(self, feed: Feed, place: Place) -> None:
        def fetched() -> None:
            feed.is_waiting = False
            feed.owner.catch_up(feed)

        feed.is_waiting = True
        self._store.fetch(place.channel.shelf, place.ordinal + 1, fetched)

    def read(self, feed: Feed, place: Place, now: float) -> bytes:
        """The next frame for this place, which steps on; empty if the next event is not for this feed."""
        shelf = place.channel.shelf
        if place.ordinal + 1 < shelf.first:
            lost = shelf.first - 1 - place.ordinal
            place.ordinal = shelf.first - 1
            return self._gap(place, lost)
        event: Event | None = shelf.at(place.ordinal + 1)
        assert event is not None, "what is kept has no holes"
        place.ordinal = event.ordinal
        if event.expires <= now or not is_for(event, feed):
            return b""
        if event.recalled:
            return feed.control(cancel(event)) if event.ordinal <= place.sent else b""
        attempt = 1
        if event.ordinal <= place.known:
            if event.level == NONE:
                attempt = int(event.ordinal > place.read)
            else:
                owed = self._store.attempt(event, feed.device.name, event.ordinal <= place.sent)  # type: ignore[union-attr]
                attempt = owed if owed is not None else int(event.ordinal > place.wanted)
            if not attempt:
                return b""
        if feed.care is not None and event.level != NONE and self._store.owes(event, feed.device.name):  # type: ignore[union-attr]
            feed.care.begin(event)
        place.id = event.id
        self.events += 1
        if attempt > 1:
            self._redelivery.counts["resume"] += 1
            if feed.form & ENVELOPE:
                return event.encode(feed.form, attempt)
        return event.frame(feed.form)

    def _gap(self, place: Place, lost: int | None) -> bytes:
        """`pere.gap`: between these two ids so many events of the channel (null: nobody knows how many) will never come."""
        self.gaps += 1
        shelf = place.channel.shelf
        oldest = self._store.id_at(shelf, shelf.first)
        return place.feed.control(sse.frame(orjson.dumps({
            "channel": place.channel.name,
            "from": format_id(place.id) if place.id else None,
            "to": format_id(oldest) if oldest else None,
            "lost": lost,
        }), event=b"pere.gap"))


def _next_id(place: Place) -> int:
    """The id of its next event. What was evicted counts as older than everything."""
    event: Event | None = place.channel.shelf.at(place.ordinal + 1)
    return event.id if event is not None else 0


def _alone(place: Place) -> int:
    return 0


def is_for(event: Event, feed: Feed) -> bool:
    """Whether it is addressed to whoever has this feed."""
    return event.to is None or (feed.device is not None and feed.device.name in event.to)


def cancel(event: Event) -> bytes:
    """`pere.cancel`: forget this event, if it is not done."""
    return sse.frame(orjson.dumps({"id": format_id(event.id), "channel": event.channel}), event=b"pere.cancel")
