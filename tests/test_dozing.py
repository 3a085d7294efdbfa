"""A node that nobody asks sleeps, and whoever asks it is told what those are told who ask one that is awake."""

import asyncio
import math
import signal
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import wire
from hooks import LOCAL
from minting import SECRET, bearer
from processes import SECONDS
from redises import RedisServer, named

from pere.config import Config
from pere.parts import open_store
from pere.server import Server
from pere.storage import dozing, keeper
from pere.storage import redis as storage


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(storage, "BEAT", 0.02)
    monkeypatch.setattr(dozing, "QUIET", 2)
    # Only what `cut` keeps: what a beat has found before that would be kept behind it, with the log cut in between.
    for when in ("KEEP_EVERY", "KEEP_ANYWAY"):
        monkeypatch.setattr(keeper, when, math.inf)


@pytest.fixture
def node(start, tmp_path) -> Callable[..., Awaitable[Server]]:
    """`server = await node(heartbeat=1)`: one more."""

    async def node(**settings: Any) -> Server:
        return await start(open_store(Config(store=named("redis", tmp_path), **settings)), **settings)

    return node


async def fall_asleep(server: Server) -> None:
    store = server.store
    # Until it has heard of the other one it is called.
    while not store._log.is_asleep or len(store._nodes) < 2:
        store.sweep(store.clock(), server.hub.is_used)  # else it would be looked at once a second what is to be told
        await asyncio.sleep(0.01)


async def cut(server: Server, monkeypatch) -> None:
    """What was kept by this node is gone from the log."""
    monkeypatch.setattr(keeper, "CUT_AFTER", -1.0)
    for _ in range(3):
        await server.store.settle()
        await server.store._keeper.keep(False, is_last=True)
    log = server.store._log
    while await log.client.xlen(log.keys["log"]) > 2:
        await server.store._keeper.keep(False, is_last=True)
        await asyncio.sleep(0.01)


async def push(server: Server, channel: str = "c", data: object = 1, **said: Any) -> str:
    return (await wire.push(server.port, channel, data, **said)).json["id"]


async def say(server: Server, device: str, id: str, **said: Any) -> wire.Answer:
    return await wire.request(server.port, "POST", "/feedback/c", said, Device=device, Last_Event_ID=id)


async def get(server: Server, target: str, **headers: str) -> Any:
    answer = await wire.request(server.port, "GET", target, **headers)
    assert answer.status == 200, answer
    return answer.json


async def gauges(server: Server) -> dict[str, float]:
    text = (await wire.request(server.port, "GET", "/metrics")).body.decode()
    wanted = ("pere_devices", "pere_channels", "pere_outstanding", "pere_oldest")
    return {line.split(" ")[0]: float(line.split(" ")[1]) for line in text.splitlines() if line.startswith(wanted)}


@pytest.fixture
def at():
    """`feed = await at(server, "/feed/c", Device="d")`: a feed of this node."""
    feeds: list[wire.Feed] = []

    async def at(server: Server, target: str, **headers: str) -> wire.Feed:
        feeds.append(await wire.opened(server.port, target, headers))
        return feeds[-1]

    yield at
    for feed in feeds:
        feed.close()


@pytest.fixture(params=["the log has it", "the log was cut"])
def story(request, node, monkeypatch):
    """`here, there, ids = await story()`: while `there` sleeps, two devices have come on `here`, and three events; one of them was answered."""

    async def story(**settings: Any) -> tuple[Server, Server, list[str]]:
        here, there = await node(**settings), await node(**settings)
        while not here.store.leads:
            await asyncio.sleep(0.01)
        await push(here, data="before")
        await fall_asleep(there)
        taken = there.store._log.taken
        feeds = [await wire.listen(here.port, "c", device=device) for device in ("d1", "d2")]
        ids = [await push(here, data=number) for number in range(3)]
        for feed in feeds:
            assert len(await feed.events(3)) == 3
        assert (await say(here, "d1", ids[0], status="done")).status == 200
        for feed in feeds:
            feed.close()
        while here.hub.feeds:
            await asyncio.sleep(0.005)
        for _ in range(3):
            here.store.sweep(here.store.clock(), here.hub.is_used)
            await here.store.settle()
        if request.param == "the log was cut":
            await cut(here, monkeypatch)
        assert there.store._log.is_asleep
        assert there.store._log.taken == taken
        return here, there, ids

    return story


async def status(server: Server, id: str) -> Any:
    told = await get(server, f"/events/c/{id}")
    return {state: count for state, count in told["counts"].items() if count}


async def test_it_knows_how_an_event_stands_and_on_whom(story):
    here, there, ids = await story()
    assert await status(there, ids[0]) == {"sent": 1, "processed": 1}
    assert not there.store._log.is_asleep
    for target in (f"/events/c/{ids[0]}/devices", "/events/c", "/admin/events/c", "/admin/devices/c"):
        assert await get(there, target) == await get(here, target)


@pytest.mark.parametrize("target", ["/events/c", "/admin/events/c", "/admin/devices/c", "/admin/devices"])
async def test_it_knows_what_there_is(story, target):
    here, there, _ = await story()
    assert await get(there, target) == await get(here, target)


async def test_it_knows_at_a_glance(story):
    _, there, ids = await story()
    told = await get(there, "/admin/overview")
    assert (told["receipts"]["outstanding"], told["devices"]["registered"], told["recent"][0]["id"]) == (5, 2, ids[2])


async def test_a_device_goes_on_there_with_what_it_owes(story, at):
    _, there, ids = await story()
    feed = await at(there, "/feed/c", Device="d1")
    assert [(await feed.event()).id for _ in range(2)] == ids[1:]
    other = await at(there, "/feed/c?from=all")
    assert await other.events(4) == ["before", "0", "1", "2"]
    later = await push(there)
    assert [(await each.event()).id for each in (feed, other)] == [later, later]


async def test_a_receipt_is_entered_once_and_as_everywhere(story):
    here, there, ids = await story()
    # All on one connection, before it has woken.
    connection = await wire.Wire.open(there.port)
    for device, id, state in (("d1", ids[0], "processed"), ("d1", ids[0], "failed"), ("d2", ids[0], "processed"), ("d3", ids[0], "processed"), ("d2", ids[1], "working")):
        await connection.send(wire.said("POST", "/feedback/c", orjson.dumps({"state": state}), {"Device": device, "Last-Event-ID": id, "Content-Type": "application/json"}))
    answers = [await connection.answer() for _ in range(5)]
    assert [each.status for each in answers] == [200, 409, 200, 404, 200]
    assert [answers[place].json["duplicate"] for place in (0, 2, 4)] == [True, False, False]
    connection.close()
    for server in (here, there):
        assert await status(server, ids[0]) == {"processed": 2}


async def test_many_receipts_are_entered_there(story):
    here, there, ids = await story()
    answer = await wire.request(there.port, "POST", "/feedback", {"receipts": [{"event_id": id} for id in ids]}, Device="d1")
    assert [each["duplicate"] for each in answer.json["results"]] == [True, False, False]
    assert await status(here, ids[2]) == {"sent": 1, "processed": 1}


async def test_what_a_device_has_up_to_an_id_is_entered_there(story):
    here, there, ids = await story()
    answer = await wire.request(there.port, "POST", "/feedback", {"up_to": ids[1], "channel": "c", "state": "delivered"}, Device="d2")
    assert [each["event_id"] for each in answer.json["results"]] == ids[:2]
    assert await status(here, ids[1]) == {"sent": 1, "delivered": 1}


async def test_who_follows_receipts_there_is_told_of_the_new_ones_only_or_of_all(story, at):
    here, there, ids = await story()
    fresh = await at(there, "/receipts/c")
    every = await at(there, "/receipts/c?from=all")
    assert (await say(here, "d2", ids[0])).status == 200
    assert orjson.loads((await fresh.event()).data)["device"] == "d2"
    assert [orjson.loads((await every.event()).data)["device"] for _ in range(2)] == ["d1", "d2"]


async def test_an_event_is_recalled_there(story):
    here, there, ids = await story()
    assert (await wire.request(there.port, "DELETE", f"/events/c/{ids[2]}")).json["cancelled"] == 2
    assert await status(here, ids[2]) == {"cancelled": 2}


async def test_pushes_there_are_taken_in_their_order_and_have_the_audience_of_all_nodes(story):
    here, there, _ = await story()
    connection = await wire.Wire.open(there.port)
    for number in range(10):
        await connection.send(wire.said("POST", "/push/c", b"%d" % (100 + number), {"Content-Type": "application/json"}))
    answers = [await connection.answer() for _ in range(10)]
    assert [(each.status, each.json["audience"]) for each in answers] == [(201, 2)] * 10
    connection.close()
    assert [event["data"] for event in (await get(here, "/events/c"))["events"]] == ["before", 0, 1, 2, *range(100, 110)]


async def test_a_push_that_is_repeated_there_is_the_same_event(story, node):
    here, there, _ = await story()
    one = await wire.push(here.port, "c", 7, key="k")
    assert there.store._log.is_asleep
    other = await wire.push(there.port, "c", 7, key="k")
    assert one.json == other.json


async def test_what_there_is_no_room_for_is_gone_there_too(story, at):
    here, there, ids = await story(backlog_events=3)
    ids.append(await push(here))
    assert there.store._log.is_asleep
    assert (await wire.request(there.port, "GET", f"/events/c/{ids[0]}")).error == (410, "event_gone")
    assert (await say(there, "d2", ids[0])).error == (410, "event_gone")
    feed = await at(there, "/feed/c", Device="d2")
    assert [(await feed.event()).id for _ in range(3)] == ids[1:]
    assert (len(there.store.shelf("c").backlog), there.store.bytes) == (3, here.store.bytes)


async def test_it_is_woken_by_what_all_nodes_are_to_hear_of(story, node):
    _, there, _ = await story(jwt_secret="")
    await node()
    # It may sleep again by now, but knows who has come.
    while len(there.store._nodes) < 3:
        await asyncio.sleep(0.005)
    await fall_asleep(there)


async def test_a_token_that_was_taken_back_meanwhile_is_refused_there(node):
    here, there = await node(jwt_secret=SECRET, jwt_leeway=0.0), await node(jwt_secret=SECRET, jwt_leeway=0.0)
    await fall_asleep(there)
    answer = await wire.request(here.port, "DELETE", "/admin/devices/d?revoke=true", **bearer("root", admin=True, expires=30))
    assert answer.status == 204
    taken = here.store._log.taken
    while there.store._log.taken < taken:
        await asyncio.sleep(0.005)
    assert (await wire.request(there.port, "POST", "/push/c", b"1", **bearer("d", push=["c"], issued=-10))).error == (401, "revoked_token")


async def test_who_asks_while_it_wakes_is_let_in_by_what_it_reads_then(node):
    """What woke it may be that this very token was taken back."""
    here, there = await node(jwt_secret=SECRET, jwt_leeway=0.0), await node(jwt_secret=SECRET, jwt_leeway=0.0)
    await fall_asleep(there)
    gate, refresh, doze = asyncio.Event(), there.store._log.refresh, there.store._doze

    async def slowly() -> None:
        await gate.wait()
        await refresh()

    there.store._log.refresh = slowly
    answer = await wire.request(here.port, "DELETE", "/admin/devices/d?revoke=true", **bearer("root", admin=True, expires=30))
    assert answer.status == 204
    while not doze.is_waking:
        await asyncio.sleep(0.005)
    assert (await wire.request(there.port, "GET", "/healthz")).status == 200, "who shows no token need not wait"
    asking = [asyncio.ensure_future(wire.request(there.port, method, target, b"1" * (method == "POST"), **bearer(name, push=["c"], feed=["c"], issued=-10)))
              for name in ("d", "e") for method, target in (("POST", "/push/c"), ("GET", "/events/c"), ("POST", "/push/e"))]
    while len(doze._waiting) < 1 + len(asking) and not any(each.done() for each in asking):
        await asyncio.sleep(0.005)
    gate.set()
    told = await asyncio.gather(*asking)
    assert [answer.status for answer in told] == [401, 401, 401, 201, 200, 403]
    assert {answer.error[1] for answer in told[:3]} == {"revoked_token"}


async def test_one_who_waited_for_it_to_wake_and_fails_leaves_nobody_else_waiting(node, caplog):
    _, there = await node(), await node()
    await fall_asleep(there)
    told = asyncio.get_running_loop().create_future()
    there.store._doze.wake(lambda: 1 / 0, lambda refusal: None)
    there.store._doze.wake(lambda: told.set_result(None), told.set_exception)
    await asyncio.wait_for(told, SECONDS)
    assert "ZeroDivisionError" in caplog.text
    caplog.clear()


async def test_an_endpoint_that_is_added_there_is_told_of_what_comes_then(story):
    _, there, _ = await story(**LOCAL)
    newest = there.store.newest_record
    answer = await wire.request(there.port, "POST", "/webhooks", {"url": "http://127.0.0.1:9/", "types": ["pere.receipt.batch"], "channels": ["c"]})
    assert answer.status == 201
    assert there.webhooks.courier.outboxes[answer.json["id"]].cursor == there.store.newest_record > newest


async def test_those_who_watch_are_told_how_all_stands_and_it_sleeps_on(story):
    here, there, _ = await story()
    told, mine, since, until = {}, {"pere_outstanding": 0}, 1, 0
    # The next beat tells it, and by the one after it nobody is said to be here any more who has just left.
    while told != mine or mine["pere_outstanding"] != 5:
        await asyncio.sleep(0.01)
        if told := await gauges(there):
            since = told.pop("pere_oldest_outstanding_seconds")
        mine = await gauges(here)
        until = mine.pop("pere_oldest_outstanding_seconds")
    assert since <= until
    assert (mine["pere_outstanding"], mine['pere_devices{state="registered"}']) == (5, 2)
    assert (await wire.request(there.port, "GET", "/readyz")).status == 200
    assert there.store._log.is_asleep


async def test_who_keeps_or_has_anybody_to_tell_does_not_sleep(node):
    here, there = await node(), await node()
    await fall_asleep(there)
    feed = await wire.listen(there.port, "c", device="d")
    id = await push(here)
    assert (await feed.event()).id == id
    for _ in range(20):
        await there.store._beat_once()
        there.store.sweep(there.store.clock(), there.hub.is_used)
    assert [server.store._log.is_asleep for server in (here, there)] == [False, False]
    feed.close()
    await fall_asleep(there)
    # What was true of it is known to all: the device is away, and has been written to.
    assert await status(here, id) == {"sent": 1}
    assert not (await get(here, "/admin/devices/c"))["d"]["online"]


async def test_it_does_not_sleep_before_all_are_told_how_far_who_left_was_written_to(node):
    here, there = await node(), await node()
    await status(there, await push(here))
    await fall_asleep(there)
    feed = await wire.listen(there.port, "c", device="d")
    id = await push(here)
    assert (await feed.event()).id == id
    feed.close()
    while not there.store._log.is_asleep:
        await asyncio.sleep(0.01)
    assert await status(here, id) == {"sent": 1}


async def test_it_becomes_the_keeper_with_all_at_hand(node):
    here, there = await node(), await node()
    while not here.store.leads:
        await asyncio.sleep(0.01)
    await fall_asleep(there)
    feed = await wire.listen(here.port, "c", device="d")
    id = await push(here)
    await feed.event()
    feed.close()
    while here.hub.feeds:
        await asyncio.sleep(0.005)
    here.store.sweep(here.store.clock(), here.hub.is_used)
    await here.store.settle()
    log = here.store._log
    beating, here.store._beating = here.store._beating, None
    await storage.ended(beating)  # it says nothing more
    await log.client.delete(log.keys["keeper"])
    while not there.store.leads:
        await asyncio.sleep(0.01)
    assert not there.store._log.is_asleep
    assert there.store.shelf("c").backlog.last == 1
    here.store._beating = asyncio.ensure_future(here.store._beat())
    assert await status(there, id) == {"sent": 1}


@pytest.mark.parametrize("is_cut", [False, True], ids=["the log has it", "the log was cut"])
async def test_one_that_was_taken_for_dead_while_it_slept_is_there_again_when_it_wakes_and_knows_who_is_there(node, at, monkeypatch, is_cut):
    here, there = await node(), await node()
    while not here.store.leads:
        await asyncio.sleep(0.01)
    await fall_asleep(there)
    await at(here, "/feed/c", Device="d")
    await at(here, "/feed/c")
    here.store.sweep(here.store.clock(), here.hub.is_used)
    here.store._say(("gone", there.store.node))
    await here.store.settle()
    if is_cut:
        await cut(here, monkeypatch)
    assert there.store.node not in here.store._nodes
    both = {here.store.node, there.store.node}
    async with asyncio.timeout(60):
        while not (await get(there, "/admin/devices/c"))["d"]["online"]:
            await asyncio.sleep(0.01)
        while not here.store._nodes == there.store._nodes == both or there.store._users != {"c": {here.store.node}}:
            await get(there, "/admin/devices/c")  # which keeps it awake, until it has been told


@asynccontextmanager
async def sleeping(start, tmp_path):
    """A Redis that may be done harm, a node that sleeps there beside another one, and an event: at the end, when Redis is well again, it is found."""
    with RedisServer(tmp_path) as redis:
        here, there = [await start(open_store(Config(store=redis.url))) for _ in range(2)]
        id = await push(here)
        await fall_asleep(there)
        yield redis, there, id
        while there.store.trouble() is not None or here.store.trouble() is not None:
            await asyncio.sleep(0.01)
        assert (await get(there, f"/events/c/{id}"))["audience"] == 0
        while start.servers:
            await start.servers.pop().stop()


async def test_without_redis_it_answers_nothing_that_may_be_old(start, tmp_path, caplog):
    async with sleeping(start, tmp_path) as (redis, there, id):
        redis.kill()
        for method, target, body in (("GET", f"/events/c/{id}", b""), ("POST", "/push/c", b"1"), ("GET", "/feed/c", b""), ("GET", "/receipts/c", b""), ("GET", "/webhooks", b"")):
            answer = await wire.request(there.port, method, target, body)
            assert answer.error == (503, "store_failed"), target
            assert int(answer.headers["retry-after"]) > 0
        assert (await say(there, "d", id)).error == (503, "store_failed")
        assert (await wire.request(there.port, "GET", "/readyz")).status == 503
        redis.start()
    caplog.clear()


async def test_a_redis_that_stands_still_while_it_wakes_keeps_nobody_for_ever(start, tmp_path, caplog):
    async with sleeping(start, tmp_path) as (redis, there, id):
        redis.signal(signal.SIGSTOP)
        try:
            answers = await asyncio.gather(*(wire.request(there.port, "GET", f"/events/c/{id}") for _ in range(5)))
            assert {answer.error for answer in answers} == {(503, "store_failed")}
        finally:
            redis.signal(signal.SIGCONT)
    caplog.clear()


async def test_a_log_that_is_another_one_is_read_anew_though_it_sleeps(node, caplog):
    here, there = await node(), await node()
    await push(here)
    await fall_asleep(there)
    log = here.store._log
    before = log.deployment
    await log.client.delete(*log.keys.values())
    # Both: one may have begun the new log before the other has noticed.
    while any(server.store._log.deployment == before or server.store.trouble() is not None for server in (here, there)):
        await asyncio.sleep(0.01)
    id = await push(there)
    assert (await get(here, f"/events/c/{id}"))["id"] == id
    caplog.clear()


async def test_it_ends_in_order_though_it_sleeps(node, start):
    here, there = await node(), await node()
    await fall_asleep(there)
    await push(here)
    await start.servers.pop().stop()
    await here.store._log.catch_up()
    assert here.store._nodes == {here.store.node}
