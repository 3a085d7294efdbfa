"""More than one node: real servers that share a real Redis behave as one, whichever of them somebody speaks to, and whatever dies."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
import wire
from hooks import LOCAL, Receiver
from minting import SECRET, bearer
from processes import Served
from redises import RedisServer, named

from pere.config import Config
from pere.event import Draft, parse_id
from pere.parts import open_store
from pere.server import Server
from pere.storage import redis as storage
from pere.storage import sharedlog


@pytest.fixture
def node(start, tmp_path) -> Callable[..., Awaitable[Server]]:
    """`server = await node(heartbeat=1)`: one more."""

    async def node(**settings: Any) -> Server:
        return await start(open_store(Config(store=named("redis", tmp_path), **settings)), **settings)

    return node


@pytest.fixture
def at(io_loop):
    """`feed = await at(server, "c", device="d")`: a feed on this node."""
    feeds: list[wire.Feed] = []

    async def at(server: Server, *channels: str, **wanted: Any) -> wire.Feed:
        feeds.append(await wire.listen(server.port, *channels, **wanted))
        return feeds[-1]

    yield at
    for feed in feeds:
        feed.close()


async def push(server: Server, channel: str = "c", data: object = 1, **said: Any) -> str:
    return (await wire.push(server.port, channel, data, **said)).json["id"]


async def say(server: Server, device: str, id: str, channel: str = "c", **said: Any) -> wire.Answer:
    return await wire.request(server.port, "POST", f"/feedback/{channel}", said, Device=device, Last_Event_ID=id)


async def get(server: Server, target: str, **headers: str) -> Any:
    answer = await wire.request(server.port, "GET", target, **headers)
    assert answer.status == 200, answer
    return answer.json


async def states(server: Server, id: str, channel: str = "c") -> dict[str, int]:
    return {state: count for state, count in (await get(server, f"/events/{channel}/{id}"))["counts"].items() if count}


async def test_a_push_reaches_feeds_on_every_node_and_answers_may_go_anywhere(node, at):
    here, there = await node(), await node()
    first, second = await at(here, "c", device="d1"), await at(there, "c", device="d2")
    id = await push(here)
    assert [(await feed.event()).id for feed in (first, second)] == [id, id]
    # Each answers where it is not.
    assert (await say(there, "d1", id)).json == {"state": "processed", "duplicate": False}
    assert (await say(here, "d2", id, state="failed", status="no paper")).status == 200
    assert (await say(here, "d2", id)).status == 409
    for server in (here, there):
        await server.store._log.catch_up()
        assert await states(server, id) == {"processed": 1, "failed": 1}
        lines = (await get(server, f"/events/c/{id}/devices"))["devices"]
        assert [(line["device"], line["state"], line["status"]) for line in lines] == [("d1", "processed", None), ("d2", "failed", "no paper")]


async def test_the_same_key_at_once_on_two_nodes_is_one_event(node):
    here, there = await node(), await node()
    for number in range(5):
        one, other = await asyncio.gather(*(wire.push(server.port, "c", number, key=f"k{number}") for server in (here, there)))
        assert (one.json["id"], one.status) == (other.json["id"], other.status)
    assert len((await get(there, "/events/c"))["events"]) == 5


async def test_a_list_of_devices_goes_on_on_another_node_while_receipts_come_in(node, at):
    servers = [await node(), await node()]
    for number in range(7):
        await at(servers[number % 2], "c", device=f"d{number}")
    id = await push(servers[0])
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await get(servers[len(found) % 2], f"/events/c/{id}/devices?limit=1&cursor={cursor}")
        (line,) = page["devices"]
        found.append(line["device"])
        cursor = page["cursor"]
        assert (await say(servers[0], line["device"], id)).status == 200
    assert sorted(found) == [f"d{number}" for number in range(7)]


async def test_whoever_is_asked_at_once_knows_what_another_node_has_just_taken(node, at):
    here, there = await node(), await node()
    there.store._log._heard = lambda message: None  # nothing comes by itself
    await at(here, "c", device="d1")
    id = await push(here)
    assert await states(there, id) in ({"pending": 1}, {"sent": 1})
    id = await push(here)
    assert (await say(there, "d1", id)).status == 200
    id = await push(here)
    assert (await wire.request(there.port, "DELETE", f"/events/c/{id}")).json["cancelled"] == 1
    id = await push(here)
    feed = await at(there, "c", last=id)
    there.store._log.listen()
    assert there.store.newest >= parse_id(id)
    later = await push(there)
    assert (await feed.event()).id == later


@pytest.mark.parametrize("word", ["processed", "working", "retry"])
async def test_what_a_device_says_overtakes_its_event_and_is_waited_for_though_it_is_recognised(node, at, word):
    here, there = await node(), await node()
    there.store._log._heard = lambda message: None  # nothing comes by itself
    await at(here, "c", device="d")
    connection = await wire.Wire.open(there.port)
    for number in range(3):
        id = await push(here, data=number)
        await connection.send(wire.said("POST", "/feedback/c", orjson.dumps({"state": word}), {"Device": "d", "Last-Event-ID": id, "Content-Type": "application/json"}))
        answer = await connection.answer()
        assert (answer.status, answer.json["duplicate"]) == (200, False), (number, answer)
    # What is answered later does not hold up those who say it in the same turn, or get another's answer.
    await connection.send(b"".join(wire.said("POST", "/feedback/c", body, {"Device": device, "Last-Event-ID": id, "Content-Type": "application/json"}) for body, device in (
        (b'{"state":"retry"}', "nobody"), (b'{"state":"processed"}', "d"), (b'{"state":"working"}', "d"), (b'{"state":"retry"}', "no device"))))
    assert [(await connection.answer()).status for _ in range(4)] == [404, 200, 200, 400]
    connection.close()


@pytest.fixture
def asleep(monkeypatch):
    """No node looks by itself what there is."""
    monkeypatch.setattr(storage, "BEAT", 3600)


async def test_a_node_is_woken_only_for_what_somebody_there_waits_for(asleep, node, at):
    here, there = await node(), await node()
    feed = await at(there, "e", "orders.*")
    ids = [await push(there, "e"), await push(here, "e")]
    assert [(await feed.event()).id for _ in ids] == ids
    taken = there.store._log.taken
    heard: list[bytes] = []
    take, there.store._log._heard = there.store._log._heard, heard.append
    for _ in range(10):
        await push(here)
    assert (heard, there.store._log.taken) == ([], taken)
    there.store._log._heard = take
    # What comes then is told in its order, with all that was before it.
    other = await at(there, "c", from_="all")
    assert len(await other.events(10)) == 10
    for channel, whose in (("c", other), ("orders.eu", feed), ("e", feed)):
        id = await push(here, channel)
        assert (await whose.event()).id == id
    # Of what nobody waits for any more it hears no more.
    feed.close()
    other.close()
    while there.hub.feeds or there.store._log.ear._live != {(False, f"{there.store._log.keys['log']}:@")}:
        await asyncio.sleep(0.005)
    taken = there.store._log.taken
    await push(here)
    assert there.store._log.taken == taken


async def test_whatever_is_asked_of_a_node_that_was_not_woken_it_is_as_fresh_as_the_others(asleep, node, at):
    here, there = await node(), await node()
    feed = await at(here, "c", device="d")
    ids = [await push(here, data=number) for number in range(3)]
    await feed.events(3)
    assert (await get(there, "/events/c"))["events"][-1]["id"] == ids[-1]
    assert (await say(here, "d", ids[0])).status == 200
    assert await states(there, ids[0]) == {"processed": 1}
    assert (await say(here, "d", ids[1], state="failed")).status == 200
    assert (await get(there, f"/events/c/{ids[1]}/devices"))["devices"][0]["state"] == "failed"
    ids.append(await push(here, data=3))
    assert await get(there, "/admin/events/c") == [0, 1, 2, 3]
    ids.append(await push(here, data=4))
    assert (await say(there, "d", ids[4], state="working")).json["state"] == "pending"
    ids.append(await push(here, data=5))
    answer = await wire.request(there.port, "POST", "/feedback", {"up_to": ids[5], "channel": "c"}, Device="d")
    assert [told["event_id"] for told in answer.json["results"]] == ids[2:]
    ids.append(await push(here, data=6))
    answer = await wire.request(there.port, "POST", "/feedback", {"receipts": [{"event_id": ids[6], "state": "retry"}]}, Device="d")
    assert answer.json["results"] == [{"event_id": ids[6], "state": "pending", "duplicate": False}]
    assert (await feed.events(4)) == ["3", "4", "5", "6"]
    # What the device has answered elsewhere a moment ago does not come again.
    for id in ids[2:6]:
        assert (await say(here, "d", id)).status == 200
    moved = await at(there, "c", device="d")
    assert (await moved.event()).id == ids[6]
    assert (await say(here, "d", ids[6])).status == 200
    receipts = await wire.Feed.open(there.port)
    await receipts.start("/receipts/c?from=all", {})
    await receipts.control("pere.hello")
    assert len([await receipts.event() for _ in range(11)]) == 11
    receipts.close()
    await at(here, "e", device="new")
    assert (await wire.request(there.port, "DELETE", "/admin/devices/new")).status == 204
    await at(here, "f", device="newer")
    assert "newer" in await get(there, "/admin/devices/f")
    await at(here, "f", device="newest")
    assert "newest" in [told["device"] for told in (await get(there, "/admin/devices"))["devices"]]


async def test_a_device_goes_on_on_another_node_where_it_was(node, at):
    here, there = await node(), await node()
    feed = await at(here, "c", device="d")
    ids = [await push(here, data=number) for number in range(3)]
    await feed.events(3)
    await say(here, "d", ids[0])
    feed.close()
    ids.append(await push(there, data=3))
    feed = await at(there, "c", device="d")
    assert [(await feed.event()).id for _ in range(3)] == ids[1:]


async def test_a_push_waits_for_a_receipt_that_is_given_on_another_node(node, at):
    here, there = await node(), await node()
    feed = await at(there, "c", device="d")
    pushed = asyncio.ensure_future(wire.request(here.port, "POST", "/push/c", 1, Prefer="wait=20"))
    id = (await feed.event()).id
    assert (await say(there, "d", id)).status == 200
    told = (await pushed).json
    assert (told["id"], told["satisfied"], told["counts"]["processed"]) == (id, True, 1)


async def test_a_recall_reaches_who_has_it_on_every_node(node, at):
    here, there = await node(), await node()
    feed = await at(there, "c", device="d")
    id = await push(here)
    await feed.event()
    answer = await wire.request(here.port, "DELETE", f"/events/c/{id}")
    assert answer.json == {"id": id, "channel": "c", "cancelled": 1}
    assert await feed.control("pere.cancel") == {"id": id, "channel": "c"}


async def test_a_device_that_is_deleted_on_one_node_loses_its_feed_on_another(node, at):
    here, there = await node(), await node()
    feed, other = await at(there, "c", device="d"), await at(there, "c", device="other")
    await push(here)  # and so the log is as far here
    assert (await wire.request(here.port, "DELETE", "/admin/devices/d")).status == 204
    *_, last = await feed.end()
    assert (last.event, orjson.loads(last.data)["reason"]) == ("pere.bye", "kicked")
    assert (await wire.request(there.port, "GET", "/feed/c?device=d")).status == 204
    assert (await wire.push(here.port, "c")).json["audience"] == 1
    await other.events(2)


async def test_a_channel_that_is_born_on_one_node_is_joined_by_patterns_on_another(node, at):
    here, there = await node(), await node()
    feed, anonymous = await at(there, "orders.*", device="d"), await at(there, "orders.**")
    answer = await wire.push(here.port, "orders.eu")
    assert answer.json["audience"] == 1
    assert [(await each.event()).id for each in (feed, anonymous)] == [answer.json["id"]] * 2


async def test_who_stays_for_longer_than_devices_are_kept_still_joins_what_is_born(tmp_path):
    now = 1_417_444_080.0
    here, there = (storage.RedisStore(Config(device_ttl=100), lambda: now, named("redis", tmp_path)) for _ in range(2))
    for store in (here, there):
        await store.begin()

    async def born(channel: str) -> int:
        taken = asyncio.get_running_loop().create_future()
        here.append(Draft(channel=channel, data=b"1", ttl=60), taken.set_result)
        return (await taken).audience

    async def pass_by(store: storage.RedisStore) -> None:
        nonlocal now
        for _ in range(4):
            now += 30
            store.sweep(now, lambda channel: False)
            await store.settle()

    try:
        there.want("d", "x.*")
        device = there.devices.known["d"]
        there.devices.open(device, "a feed")
        await pass_by(there)
        assert await born("x.1") == 1
        # Who has gone counts from then on, and not for ever.
        device.seen = now
        there.devices.close(device, "a feed")
        await pass_by(there)
        assert await born("x.2") == 0
    finally:
        for store in (here, there):
            await store.close()


async def test_who_is_online_and_who_was_sent_what_is_known_on_every_node(node, at):
    here, there = await node(), await node()
    feed = await at(there, "c", device="d")
    id = await push(here)
    while (line := (await get(here, f"/events/c/{id}/devices"))["devices"][0]) and not (line["online"] and line["state"] == "sent"):
        await asyncio.sleep(0.02)
    assert (await get(here, "/admin/devices/c"))["d"]["online"]
    feed.close()
    while (await get(here, f"/events/c/{id}/devices"))["devices"][0]["online"]:
        await asyncio.sleep(0.02)
    assert await states(here, id) == {"sent": 1}


@pytest.mark.parametrize("word", ["retry", "working"])
async def test_what_a_device_says_of_how_it_goes_reaches_the_node_of_its_feed(node, at, word):
    here, there = await node(), await node()
    feed = await at(there, "c", device="d", format="envelope", ack_wait=3600 if word == "retry" else 1)
    id = await push(here)
    assert (await feed.event()).id == id
    (care,) = [feed.care for feed in there.hub.feeds.values()]
    before = care.under_way[parse_id(id)]
    assert (await say(here, "d", id, state=word)).json == {"state": "pending", "duplicate": False}
    if word == "retry":
        message = await feed.event()
        assert (message.id, orjson.loads(message.data)["attempt"]) == (id, 2)
    else:
        while care.under_way[parse_id(id)] == before:
            await asyncio.sleep(0.005)


async def test_receipts_are_followed_on_any_node_with_the_same_numbers(node, at):
    here, there = await node(), await node()
    await at(here, "c", device="d1")
    await at(there, "c", device="d2")
    ids = [await push(here) for _ in range(3)]
    for id in ids:
        for server, device in ((here, "d1"), (there, "d2")):
            assert (await say(server, device, id)).status == 200
    told = []
    for server in (here, there):
        await server.store._log.catch_up()
        feed = await wire.Feed.open(server.port)
        await feed.start("/receipts/c?from=all", {})
        await feed.control("pere.hello")
        told.append([(message.id, message.data) for message in [await feed.event() for _ in range(6)]])
        feed.close()
    assert told[0] == told[1]


async def test_while_redis_is_away_feeds_stay_and_readyz_says_why(start, at, tmp_path, caplog):
    with RedisServer(tmp_path) as redis:
        here, there = [await start(open_store(Config(store=redis.url))) for _ in range(2)]
        feed = await at(here, "c", device="d")
        id = await push(there)
        await feed.event()
        redis.kill()
        for server, method, target in ((here, "POST", "/push/c"), (there, "POST", "/push/c"), (here, "POST", "/feedback/c"), (there, "GET", "/readyz")):
            answer = await wire.request(server.port, method, target, 1 if "push" in target else b"", Device="d", Last_Event_ID=id)
            assert (answer.status, "retry-after" in answer.headers) == (503, True), (target, answer)
        assert "cannot keep anything" in answer.json["message"]
        assert await states(here, id) in ({"sent": 1}, {"pending": 1})
        # Who is known may come; who is not is asked to come again.
        stranger = await wire.Feed.open(here.port)
        await stranger.start("/feed/c", {"Device": "stranger"})
        assert (await stranger.control("pere.bye"))["reason"] == "unkept"
        stranger.close()
        redis.start()
        for server in (here, there):
            while (await wire.request(server.port, "GET", "/readyz")).status != 200:
                await asyncio.sleep(0.02)
        later = await push(there)
        assert (await feed.event()).id == later
        assert (await say(there, "d", id)).json["state"] == "processed"
        for server in start.servers:
            await server.stop()
        start.servers.clear()
    caplog.clear()


async def test_a_node_that_dies_leaves_nobody_online_and_takes_nothing_with_it(start, at, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "BEAT", 0.1)
    monkeypatch.setattr(sharedlog, "SILENCE", 2)
    with RedisServer(tmp_path) as redis:
        here = await start(open_store(Config(store=redis.url)))
        with Served("--store", redis.url) as dying:
            feed = await wire.listen(dying.port, "c", device="d")
            ids = [(await wire.push(dying.port, "c", number)).json["id"] for number in range(3)]
            assert (await wire.request(dying.port, "POST", "/feedback/c", Device="d", Last_Event_ID=ids[0])).status == 200
            while not (await get(here, "/admin/devices/c"))["d"]["online"] or 3 not in here.store._written.get("c", {}).values():
                await asyncio.sleep(0.02)
            dying.end(signal.SIGKILL)
            feed.close()
        assert await states(here, ids[0]) == {"processed": 1}
        while (await get(here, "/admin/devices/c"))["d"]["online"]:
            await asyncio.sleep(0.05)
        assert await states(here, ids[2]) == {"sent": 1}
        feed = await at(here, "c", device="d")
        assert [(await feed.event()).id for _ in range(2)] == ids[1:]
        await start.servers.pop().stop()


async def test_what_two_processes_have_taken_is_there_when_both_have_been_killed(tmp_path):
    async def story(first: Served, second: Served) -> tuple[list[str], str]:
        feed = await wire.listen(second.port, "c", device="d")
        ids = [(await wire.push((first, second)[number % 2].port, "c", number, key=f"k{number}")).json["id"] for number in range(20)]
        for id in ids[:10]:
            await feed.event()
            assert (await wire.request(first.port, "POST", "/feedback/c", Device="d", Last_Event_ID=id)).status == 200
        feed.close()
        return ids, (await wire.push(second.port, "c", 0, key="k0")).json["id"]

    async def after(third: Served) -> tuple[list[str], str]:
        feed = await wire.listen(third.port, "c", device="d")
        found = [(await feed.event()).id for _ in range(10)]
        feed.close()
        return found, (await wire.push(third.port, "c", 0, key="k0")).json["id"]

    with RedisServer(tmp_path) as redis:
        with Served("--store", redis.url) as first, Served("--store", redis.url) as second:
            ids, again = await story(first, second)
        assert (sorted(ids, key=parse_id), again) == (ids, ids[0])
        redis.kill()
        redis.start()
        with Served("--store", redis.url) as third:
            assert await after(third) == (ids[10:], ids[0])


# Webhooks: one node sends


def completed(there: Receiver) -> list[str]:
    return sorted(said["data"]["id"] for said in there.notices("pere.event.completed"))


async def test_one_node_tells_of_what_happens_on_all(node, at, receiver):
    here, there = await node(**LOCAL), await node(**LOCAL)
    assert [server.store.leads for server in (here, there)] == [True, False]
    hook = receiver()
    # It is added where nobody sends.
    types = ["pere.receipt.batch", "pere.event.completed", "pere.device.connected"]
    answer = await wire.request(there.port, "POST", "/webhooks", {"url": hook.url, "types": types})
    assert answer.status == 201, answer
    id = answer.json["id"]
    while (await get(there, f"/webhooks/{id}"))["state"] != "active":
        await asyncio.sleep(0.02)
    assert (await get(here, f"/webhooks/{id}"))["state"] == "active"
    await at(here, "c", device="d1")
    await at(there, "c", device="d2")
    ids = [await push((here, there)[number % 2]) for number in range(6)]
    for event in ids:
        for server, device in ((there, "d1"), (here, "d2")):
            assert (await say(server, device, event)).status == 200
    while len(completed(hook)) < 6 or len(hook.receipts()) < 12 \
            or sum(len(said["data"]["devices"]) for said in hook.notices("pere.device.connected")) < 2:
        await asyncio.sleep(0.02)
    assert completed(hook) == sorted(ids)
    assert hook.receipts() == [(event, device, "processed") for event in ids for device in ("d1", "d2")]
    # Nothing was sent twice.
    sent = [headers["webhook-id"] for headers, _ in hook.got]
    assert len(sent) == len(set(sent))
    assert (await wire.request(there.port, "DELETE", f"/webhooks/{id}")).status == 204
    while here.webhooks.all():
        await asyncio.sleep(0.02)


async def test_what_a_node_that_died_had_to_tell_is_told_by_another(start, receiver, tmp_path):
    with RedisServer(tmp_path) as redis:
        hook = receiver()
        flags = ("--webhook-allow-http", "--webhook-allow-networks", "127.0.0.0/8")
        with Served("--store", redis.url, *flags) as dying:
            here = await start(open_store(Config(store=redis.url, **LOCAL)), **LOCAL)
            assert not here.store.leads
            answer = await wire.request(here.port, "POST", "/webhooks", {"url": hook.url, "types": ["pere.receipt.batch", "pere.event.completed"]})
            while (await get(here, f"/webhooks/{answer.json['id']}"))["state"] != "active":
                await asyncio.sleep(0.02)
            feed = await wire.listen(here.port, "c", device="d")
            ids = []
            for number in range(8):
                ids.append(await push(here))
                if number == 4:
                    dying.end(signal.SIGKILL)
                assert (await say(here, "d", ids[-1])).status == 200
            feed.close()
        while len(completed(hook)) < 8 or len(hook.receipts()) < 8:
            await asyncio.sleep(0.05)
        assert completed(hook) == ids
        assert hook.receipts() == [(id, "d", "processed") for id in ids]
        await start.servers.pop().stop()


async def test_nodes_on_one_machine_share_a_port(node):
    here = await node(reuse_port=True)
    there = await node(reuse_port=True, port=here.port)
    assert here.port == there.port
    # The kernel shares connections out: that all of fifty go to one happens once in 10**14 times.
    ids = [await push(here, data=number) for number in range(50)]
    assert ids == sorted(ids, key=parse_id)
    assert min(here.store.events, there.store.events) > 0
    assert here.store.events + there.store.events == 50


@pytest.mark.parametrize("target", ["/receipts/c", "/feed/c"])
async def test_a_token_that_is_taken_back_at_one_node_ends_its_feeds_at_all(node, target):
    here, there = await node(jwt_secret=SECRET, jwt_leeway=0.0), await node(jwt_secret=SECRET, jwt_leeway=0.0)
    text, feeds = bearer("d", feed=["c"], push=["c"], issued=-10), []
    for port in (here.port, there.port):
        feeds.append(wire.Feed((await wire.Wire.open(port)).sock))
        await feeds[-1].start(target, text)
        await feeds[-1].control("pere.hello")
    answer = await wire.request(here.port, "DELETE", "/admin/devices/d?revoke=true", **bearer("root", admin=True, expires=30))
    assert answer.status == 204
    for feed, port in zip(feeds, (here.port, there.port), strict=True):
        assert (await feed.control("pere.bye"))["reason"] == "kicked"
        assert (await wire.begun(port, "GET", target, **text)).error == (401, "revoked_token")
        feed.close()


async def test_a_node_that_has_to_read_everything_anew_knows_which_tokens_were_taken_back_meanwhile(asleep, node, caplog):
    here, there = await node(jwt_secret=SECRET, jwt_leeway=0.0), await node(jwt_secret=SECRET, jwt_leeway=0.0)
    text = bearer("d", push=["c"], issued=-10)
    assert (await wire.request(there.port, "POST", "/push/c", b"1", **text)).status == 201
    there.store._log._heard = lambda message: None
    answer = await wire.request(here.port, "DELETE", "/admin/devices/d?revoke=true", **bearer("root", admin=True, expires=30))
    assert answer.status == 204
    await here.store._keeper.keep(False, is_last=True)
    there.store._lost("what it has read is gone")
    await there.store._reading
    assert (await wire.request(there.port, "POST", "/push/c", b"1", **text)).error == (401, "revoked_token")
    caplog.clear()
