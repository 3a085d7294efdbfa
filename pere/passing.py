"""An open feed goes from one process to another: described there as it stands, and made here as it was.

What there is of it, beside its socket, is what it is of and how far it has come; what it is to be sent is in the store. A feed leaves the one hub
and enters the other as any feed does: behind, until it has caught up. Of most feeds all but how far they have come can be told long before, since no more than that
changes. Bytes stand in JSON as the text of the same numbers.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pere.audience import Member
from pere.care import Care
from pere.event import SECURE
from pere.feed import Feed, become
from pere.hub import Hub
from pere.limits import Account
from pere.storage import Store

# A place, as Place has it: channel, ordinal, id, known, sent, read, wanted.
Stand = tuple[str, int, int, int, int, int, int]


class Told(NamedTuple):
    """`client` is in whose account it counts, `care` what it has under way (see `redelivery.py`), `greeting` what it has not been told
    yet, `rest` what it is in the middle of being written."""

    form: int
    device: str
    patterns: tuple[str, ...]
    expires: float | None
    client: str | None
    places: list[Stand]
    care: list[Any] | None
    greeting: str
    rest: str


def describe(feed: Feed, client: str | None) -> Told:
    """What it is, as it stands."""
    stands = [(place.channel.name, place.ordinal, place.id, place.known, place.sent, place.read, place.wanted) for place in feed.places]
    care = feed.care.told() if feed.care is not None else None
    return Told(feed.form, feed.device.name if feed.device is not None else "", feed.patterns, feed.expires, client, stands, care, feed.greeting.decode("latin-1"), "")


def pass_on(hub: Hub, feed: Feed, client: str | None) -> tuple[int, Told] | None:
    """Let another process go on with a feed: its descriptor, and what it is. None for what cannot go on elsewhere: the keys of TLS
    are in this process, and who waits to be greeted is not known to be registered."""
    if feed.form & SECURE or (feed.is_waiting and feed.greeting):
        return None
    if feed.live:
        hub.channels.fall_behind(feed)
    told = describe(feed, client)
    fd, rest = feed.pass_on()
    return fd, told._replace(rest=rest.decode("latin-1"))


def written(told: Told, flushed: Mapping[str, int]) -> Told:
    """The same feed, which has been written all up to these ordinals of its channels since, and has nothing else under way."""
    return told._replace(places=[(name, flushed[name], 0, known, sent, read, wanted) for name, _, _, known, sent, read, wanted in told.places])


def take_over(hub: Hub, store: Store, transport: Any, told: Told, born: Iterable[tuple[str, int]], account: Account | None) -> Feed | None:
    """Go on with a feed that another process had, where it was; None where its device is not registered any more, or less is known here
    than it was told. It counts in this account. `born` are channels that its patterns mean and that process did not know, and after which ordinals they begin."""
    known = store.devices.get(told.device) if told.device else None
    stands = [*told.places, *((name, ordinal, 0, 0, 0, 0, sys.maxsize) for name, ordinal in born)]
    shelves = {stand[0]: store.open(stand[0]) for stand in stands}
    members: dict[str, Member | None] = {name: shelf.audience.members.get(told.device) for name, shelf in shelves.items()}
    if told.device and (known is None or None in members.values()) or any(stand[1] > shelves[stand[0]].backlog.last for stand in stands):
        return None
    feed = become(transport, hub, told.form, known, tuple(told.patterns), hub.now, told.expires)
    if account is not None:
        hub.count_for(feed, account)
    if told.care is not None:
        ack_wait, window, under_way = told.care
        feed.care = Care(hub.redelivery, feed, ack_wait, window)
        feed.care.take_over(under_way)
    feed.places = tuple([hub.channels.place(feed, stand[0], members[stand[0]]) for stand in stands])
    for place, stand in zip(feed.places, stands, strict=True):
        _, place.ordinal, id, place.known, place.sent, place.read, place.wanted = stand
        place.id = id or store.id_at(place.channel.shelf, place.ordinal)
    feed.greeting = told.greeting.encode("latin-1")
    hub.enlist(feed)
    hub.taken_over += 1
    if told.rest:
        feed.keep(told.rest.encode("latin-1"))
    hub.catch_up(feed)
    return feed
