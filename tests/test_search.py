"""Which channels a feed's patterns mean, looked for piece by piece while others push."""

import pytest
import wire

from pere import search
from pere.event import Draft
from pere.search import PIECE, Search


async def test_who_listens_by_patterns_hears_what_was_born_and_not_what_was_forgotten_while_they_were_looked_for(start, monkeypatch):
    monkeypatch.setattr(search, "PIECE", 2)
    store = (await start()).store
    for name in ("a.1", "b", "a.2", "c", "a.3"):
        store.open(name)
    found = Search(store, ["named", "a.1"], ["a.*", "*.3"])
    assert found.looks == 10
    steps = 1
    while found.step():
        steps += 1
        if steps == 2:
            store.open("a.4")
            store.open("d")
            del store._shelves["a.2"]
    assert steps == 5
    assert found.found() == ["named", "a.1", "a.3", "a.4"]


async def test_without_patterns_nothing_is_looked_at(start):
    store = (await start()).store
    store.open("a")
    found = Search(store, ["b"], [])
    assert (found.looks, found.step(), found.found()) == (0, False, ["b"])


@pytest.mark.parametrize("goes", [False, True])
async def test_a_pattern_over_many_channels_holds_up_nobody_and_what_comes_meanwhile_is_heard(start, connect, push, until, goes):
    server = await start()
    for number in range(20 * PIECE):
        server.store.open(f"many.{number}")
    seeker, small = await connect(), await connect()
    await seeker.send(wire.said("GET", "/feed?channel=none.*&channel=a.**", b"", {"Device": "d"}))
    served = 0
    while not server.hub.feeds and served < 3:
        await small.send(wire.said("POST", "/push/a.new", b"1"))
        assert (await small.answer()).status == 201
        served += 1
    assert served == 3, "the others had to wait until all was looked at"
    assert not server.hub.feeds
    if goes:
        seeker.reset()
        await until(lambda: len(server.door.connections) == 1)
        assert "d" not in server.store.devices.known
        return
    assert (await seeker.head()).status == 200
    await seeker.until(b"pere.hello")
    id = await push("a.new", "heard")
    assert id.encode() in await seeker.until(b"heard")


async def test_a_feed_of_thousands_of_channels_reads_all_of_them_in_the_order_of_their_ids(start, listen):
    server = await start()
    for number in range(3_000):
        await _accept(server, f"c{number % 1_500}")
    feed = await listen("**", from_="all")
    ids = [(await feed.event()).id for _ in range(3_000)]
    assert ids == sorted(ids, key=lambda id: tuple(map(int, id.split("-"))))
    assert len(set(ids)) == 3_000


async def test_no_feed_is_on_more_channels_than_a_device_may_be(start, ask):
    server = await start(max_channels_per_device=3)
    for number in range(4):
        server.store.open(f"c{number}")
    for headers in ({}, {"Device": "d"}):
        answer = await ask("GET", "/feed?channel=c*", **headers)
        assert answer.error == (429, "too_many_registrations")
    assert not server.store.devices.known


async def test_what_is_looked_for_is_paid_for(start, ask):
    server = await start(limits_exempt="", peer_connects="0.01/100")
    for number in range(1_000):
        server.store.open(f"c{number}")
    many = "&".join(f"channel=none{n}.*" for n in range(50))
    assert (await ask("GET", f"/feed?{many}&channel=**")).error == (429, "too_many_connects")
    assert not server.hub.feeds


async def _accept(server, channel):
    server.store.append(Draft(channel=channel, data=b"1", ttl=60), lambda accepted: None)
