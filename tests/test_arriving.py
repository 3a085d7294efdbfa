"""Feeds that are on their way from another process: who is taken up first, and before what is told."""

import sys

from pere.arriving import Arriving
from pere.config import Config
from pere.event import LEVELS, Draft
from pere.passing import Told
from pere.storage.memory import MemoryStore


def arriving(names: list[str], flushed: dict[str, int] | None = None) -> tuple[MemoryStore, Arriving, list[Told], list[tuple[str, int]]]:
    """Some that wait, one for each channel that is named; who was taken up; and what was told to whom the store delivers, with how many were taken up by then."""
    store, taken, told = MemoryStore(Config()), [], []
    store.deliver = lambda event: told.append((event.channel, len(taken)))
    store.withdraw = lambda event: told.append((f"recalled {event.channel}", len(taken)))
    found = Arriving(store, lambda feed, transport: taken.append(feed))
    for number, channel in enumerate(names):
        store.register(channel, f"d{number}")
    feeds = [(Told(0, f"d{number}", (), None, None, [(channel, 0, 0, 0, 0, 0, sys.maxsize)], None, "", ""), object()) for number, channel in enumerate(names)]
    if flushed is None:
        found.add(feeds)
    else:
        found.expect(dict(enumerate(feeds)))
        found.come((), flushed)
    return store, found, taken, told


def push(store: MemoryStore, channel: str) -> int:
    ids: list[int] = []
    store.append(Draft(channel=channel, data=b"1", is_json=True, type="", publisher="", to=(), ttl=60, level=LEVELS["processed"], need=None, key=""), lambda accepted: ids.append(accepted.id))
    return ids[0]


async def test_those_come_first_on_whose_channel_something_is_published():
    store, found, taken, told = arriving(["a", "b", "c", "b"], flushed={"a": 0, "b": 0, "c": 0})
    push(store, "b")
    assert told == [("b", 0)], "it is in the store, so nobody has to be there before"
    await found.take_all()
    assert [feed.places[0][0] for feed in taken] == ["b", "b", "a", "c"]


async def test_who_was_behind_does_not_wait_for_those_who_were_not():
    store, found, taken, told = arriving(["a", "a"], flushed={"a": 0})
    store.register("b", "behind")
    found.add([(Told(0, "behind", (), None, None, [("b", 0, 0, 0, 0, 0, sys.maxsize)], None, "", ""), object())])
    await found.take_all()
    assert [feed.device for feed in taken] == ["behind", "d0", "d1"]


async def test_who_may_have_an_event_is_there_before_it_is_recalled():
    store, found, taken, told = arriving(["a", "b", "b"])
    store.recall("b", push(store, "b"), lambda count: None, lambda refusal: None)
    assert told == [("b", 0), ("recalled b", 2)]
    await found.take_all()
    push(store, "a")
    assert told[-1] == ("a", 3) and len(taken) == 3
    assert not found._first, "when all are there, nobody listens any more"


async def test_what_has_been_written_is_known_when_they_are_taken_up():
    _, found, taken, _ = arriving(["a"], flushed={"a": 7})
    await found.take_all()
    assert taken[0].places == [("a", 7, 0, 0, 0, 0, sys.maxsize)]


async def test_a_device_on_its_way_is_online_and_nobody_is_told_that_it_has_gone_and_come():
    store, found, taken, _ = arriving(["a", "b"])
    news: list[tuple[str, bool]] = []
    store.devices.on_presence = lambda name, channels, is_online: news.append((name, is_online))
    assert store.devices.get("d0").is_online
    store.devices.open(store.devices.get("d0"), "a feed")
    await found.take_all()
    assert news == [("d1", False)], "of which no feed was left"
