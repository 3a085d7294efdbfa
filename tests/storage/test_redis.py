"""What is true of the Redis store alone: nodes that share a log are alike, whoever comes later is like them, and Redis may go away."""

import asyncio
import gc
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import zip_longest
from typing import Any

import made as a
import msgpack
import pytest
from between import Between
from made import NOW
from redis import Redis
from redis.exceptions import RedisError
from processes import SECONDS, free_port
from redises import RedisServer

from pere.config import DAY, Config
from pere.devices import Devices
from pere.errors import ConfigError, NotFound, Refusal, Unavailable
from pere.ledger import Ledger
from pere.receipt import DELIVERED, FAILED, NAMES, PROCESSED
from pere.storage import Accepted, ear, keeper, keeping, loading, presence, sharedlog, working
from pere.storage import redis as module
from pere.storage.memory import MemoryStore
from pere.storage.redis import RedisStore
from pere.storage.sharedlog import Entry as Written


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server(tmp_path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def node(server, io_loop) -> Iterator[Callable[..., Awaitable[RedisStore]]]:
    """`store = await node(backlog_events=3)`: one more node; all have one clock, `node.clock`."""
    stores: list[RedisStore] = []
    clock = Clock()

    async def node(**settings: Any) -> RedisStore:
        store = RedisStore(Config(**settings), clock, server.url)
        await store.begin()
        stores.append(store)
        return store

    node.clock = clock  # type: ignore[attr-defined]
    yield node
    for store in stores:
        io_loop.run_sync(store.close, timeout=SECONDS)


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.05)
    monkeypatch.setattr(keeper, "KEEP_EVERY", 0.1)
    # All that is done a piece at a time has many pieces here, with others served in between.
    monkeypatch.setattr(keeper, "AHEAD", 2)
    monkeypatch.setattr(keeper, "REST", 0.001)
    monkeypatch.setattr(presence, "FEW", 2)
    monkeypatch.setattr(module, "MENTIONED", 3)
    monkeypatch.setattr(module, "REST", 0.001)
    monkeypatch.setattr(sharedlog, "RUN", 0)


async def push(store: RedisStore, channel: str = "c", **said: Any) -> Accepted:
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    store.append(a.draft(channel, **said), told.set_result)
    if isinstance(answer := await told, Refusal):
        raise answer
    return answer


async def say(store: RedisStore, device: str, id: int, state: int = PROCESSED, status: bytes | None = None) -> str:
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    store.record(None, device, id, state, status, lambda stands, outcome: told.set_result(stands), told.set_exception)
    return NAMES[await told]


async def join(store: RedisStore, channel: str, *devices: str) -> None:
    for device in devices:
        store.register(channel, device)
    await store.settle()


def picture(store: RedisStore) -> dict[str, Any]:
    """All that must be the same on every node."""
    channels = {}
    for name in sorted(store._begun):
        shelf = store._shelves[name]
        audience = shelf.audience
        channels[name] = {
            "slots": (list(audience.names), bytes(audience.template), list(audience.left())),
            "members": {member.device: member.slot for member in audience},
            "events": [(event.id, event.ordinal, event.data, event.expired, event.recalled, event.expires) for event in shelf.backlog],
            "waiting": {device: list(ordinals) for device, ordinals in shelf.waiting.items()},
            "made way": (shelf.backlog.first, shelf.backlog.last, shelf.gone_id),
        }
    entries = {
        id: (bytes(entry.states), bytes(entry.latencies or bytes(len(entry.states))), entry.counts, entry.owed, entry.need, entry.is_satisfied, entry.is_complete,
             entry.sayings, [*(entry.said or ())])
        for id, entry in sorted(store.ledger.entries.items())}
    return {
        "channels": channels, "entries": entries, "newest": store.newest, "outstanding": store.ledger.outstanding, "bytes": store.bytes,
        "records": list(store._recent.after(0)), "newest record": store.newest_record, "wishes": store._wishes, "documents": store._documents,
        "keys": dict(store._keys), "quiet": list(store._pushed), "channels of devices": {
            device.name: sorted(device.channels) for device in store.devices.known.values() if device.channels}}


async def alike(*stores: RedisStore) -> None:
    """Wait until all have taken what there is, and compare."""
    for store in stores:
        while store._tasks:  # a receipt may wait for its event
            await asyncio.sleep(0.001)
    for store in stores:
        await store.settle()
    for store in stores:
        await store._log.catch_up()
    pictures = [picture(store) for store in stores]
    for name, value in pictures[0].items():
        for other in pictures[1:]:
            assert differences(other[name], value) == [], name


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two pictures are not the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [line for key in sorted({*one, *other}, key=str) for line in differences(one.get(key), other.get(key), f"{path}/{key}")]
    if isinstance(one, list) and isinstance(other, list):
        return [f"{path}[{place}]: {left!r} != {right!r}" for place, (left, right) in enumerate(zip_longest(one, other)) if left != right][:9]
    return [] if one == other else [f"{path}: {one!r} != {other!r}"]


async def test_what_is_pushed_on_one_node_is_delivered_on_all_in_one_order(node):
    stores = [await node() for _ in range(3)]
    heard: list[list[int]] = [[] for _ in stores]
    for store, ids in zip(stores, heard, strict=True):
        store.deliver = lambda event, ids=ids: ids.append(event.id)
    await join(stores[0], "c", "d1")
    accepted = await asyncio.gather(*(push(stores[number % 3], "ce"[number % 2]) for number in range(60)))
    await alike(*stores)
    assert heard[0] == heard[1] == heard[2] == sorted(each.id for each in accepted)
    assert {each.audience for each in accepted} == {0, 1}


async def test_a_device_is_answered_on_any_node_and_known_on_all(node):
    here, there = await node(), await node()
    await join(here, "c", "d1", "d2")
    id = (await push(there)).id
    assert await say(here, "d1", id, PROCESSED, b'"printed"') == "processed"
    await alike(here, there)
    assert await say(there, "d1", id, FAILED) == "processed"
    assert (await there.status("c", id))["counts"]["processed"] == 1
    assert [line["device"] for line in (await there.lines("c", id, "outstanding", 0, 10))[0]] == ["d2"]


async def test_what_is_said_behind_a_receipt_that_is_on_its_way_is_answered_by_what_stands_then(node):
    store = await node()
    await join(store, "c", "d1")
    id = (await push(store)).id
    await say(store, "d1", id, DELIVERED)
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    store.record_many([("d1", id, state, None, None, None) for state in (PROCESSED, DELIVERED, FAILED)], told.set_result)
    assert [NAMES[state] for state, _ in await told] == ["processed"] * 3


async def test_what_another_node_has_said_a_moment_ago_is_waited_for(node):
    here, there = await node(), await node()
    await join(here, "c", "d1")
    # What comes over its subscription comes late.
    there._log._heard = lambda message: None
    id = (await push(here)).id
    await there.reach(id)
    assert there.newest == id
    assert await say(there, "d1", id) == "processed"
    with pytest.raises(NotFound):
        await say(there, "d1", id + (1 << 30))


async def test_whoever_comes_later_is_like_those_who_were_there(node):
    stores = [await node(backlog_events=5)]
    await some_life(stores, node.clock, 1)
    stores.append(await node(backlog_events=5))
    await alike(*stores)
    await some_life(stores, node.clock, 2)
    stores.append(await node(backlog_events=5))
    await alike(*stores)
    await some_life(stores, node.clock, 3)
    await alike(*stores)


async def some_life(stores: list[RedisStore], clock: Clock, seed: int, turns: int = 150) -> None:
    """All that can be said, on all nodes at once, and what was answered."""
    chance = random.Random(seed)
    ids: list[int] = []
    for _ in range(turns):
        store = chance.choice(stores)
        channel, device = chance.choice(["c", "e", "orders.eu", "orders.us"]), f"d{chance.randrange(8)}"
        what = chance.randrange(14)
        try:
            if what < 3:
                to = (device, "stranger") if chance.random() < 0.3 else ()
                store.append(a.draft(channel, data=b"%d" % len(ids), to=to, ttl=chance.choice([20, 3600]), key=chance.choice(["", "", "k1", "k2"]),
                                     need=chance.choice([None, None, 1, "50%"]), level=chance.choice([PROCESSED, DELIVERED])),
                             lambda answer: ids.append(answer.id) if isinstance(answer, Accepted) else None)
            elif what < 8 and ids:
                store.record(None, device, chance.choice(ids[-10:]), chance.choice([DELIVERED, PROCESSED, FAILED]),
                             chance.choice([None, b'"x"', b'"y"']), lambda *told: None, lambda refusal: None)
            elif what == 8:
                store.register(channel, device)
            elif what == 9:
                store.unregister(channel, device)
            elif what == 10:
                store.want(device, "orders.*")
            elif what == 11 and ids:
                id = chance.choice(ids[-5:])
                store.recall(next(event.event.channel for event in (store.ledger.entries[id],)), id, lambda count: None, lambda refusal: None)
            elif what == 12:
                store.put_away("kind", device, chance.choice([b"", b"1", None]), lambda refusal: None)
            elif what == 13:
                store.remove(device)
        except (Refusal, KeyError):
            pass
        if chance.random() < 0.2:
            clock.now += chance.choice([0.5, 3])
            for each in stores:
                each.sweep(clock.now, lambda channel: False)
        if chance.random() < 0.3:
            await asyncio.sleep(0.001)
    for each in stores:
        await each.settle()


@pytest.mark.parametrize("run", [0, 32 * 1024], ids=["one by one", "many at once"])
@pytest.mark.parametrize("seed", range(4))
async def test_nodes_stay_alike_whatever_is_said_to_them_at_once(node, seed, run, monkeypatch):
    monkeypatch.setattr(sharedlog, "RUN", run)
    stores = [await node(backlog_events=6) for _ in range(3)]
    await some_life(stores, node.clock, seed, 400)
    await alike(*stores)
    assert len(stores[0]._begun) == 4
    for id, entry in stores[0].ledger.entries.items():
        assert sum(entry.counts) == entry.size, id


@pytest.mark.parametrize("is_orderly", [True, False])
async def test_all_is_there_after_a_restart(node, is_orderly):
    first = await node(backlog_events=5)
    await some_life([first], node.clock, 5, 400)
    before = picture(first)
    if is_orderly:
        await first.close()
    second = await node(backlog_events=5)
    await second.settle()
    after = picture(second)
    for name, value in before.items():
        assert after[name] == value, name
    node.clock.now -= 3600
    assert before["newest"] < (await push(second)).id


async def test_who_is_waited_for_is_kept_and_not_found_again(node):
    first = await node()
    await join(first, "c", "d1")
    await push(first, to=("d1",))
    first.unregister("c", "d1")
    await push(first, to=("d2",))
    first.register("e", "d3")  # it is on its way when it is named
    await push(first, "e", to=("d3",))
    await first.close()
    second = await node()
    assert {name: {device: list(ordinals) for device, ordinals in second.open(name).waiting.items()} for name in "ce"} == {"c": {"d2": [2]}, "e": {}}
    assert second.settled(second.open("e"), second.open("e").audience.members["d3"]) == 0


async def test_what_was_kept_by_version_1_is_read_and_is_of_this_version_from_then_on(node):
    first = await node()
    await join(first, "c", "d1")
    await push(first, to=("d1", "d2"))
    await first.close()
    spare = await node()
    client, keys = spare._log.client, spare._log.keys
    await spare.close()
    async with client:
        told = keeping.unpack_value(await client.hget(keys["channels"], "c"))
        await client.hset(keys["channels"], "c", keeping.pack_value(told[:4]))
        await client.hset(keys["head"], "version", 1)
        second = await node()
        assert {device: list(ordinals) for device, ordinals in second.open("c").waiting.items()} == {"d2": [1]}
        assert await client.hget(keys["head"], "version") == b"%d" % module.VERSION
        await second.close()
        await client.hset(keys["head"], "version", module.VERSION + 1)
        with pytest.raises(ConfigError, match="of version 3, and this server reads 1 to 2"):
            await node()


async def test_who_was_there_or_answered_until_its_node_died_has_been_seen_until_then(node, monkeypatch):
    monkeypatch.setattr(keeper, "CUT_AFTER", -1.0)
    # Only the two below: where the store's own comes between them, the log is cut later.
    monkeypatch.setattr(module, "BEAT", 3600)
    first = await node()
    await join(first, "c", "d1", "d2", "d3")
    member = first.open("c").audience.members["d1"]
    member.feeds = member.live = 1
    for day in range(31):
        if day == 15:
            await say(first, "d2", (await push(first)).id)
        node.clock.now += DAY
        first.sweep(node.clock.now, lambda channel: True)
        await first.settle()
    for _ in range(2):
        await first._keeper.keep(False, is_last=True)
    assert await first._log.client.xlen(first._log.keys["log"]) < 5
    second = await node()
    second.sweep(node.clock.now, lambda channel: True)
    await alike(first, second)
    assert sorted(second.open("c").audience.members) == ["d1", "d2"]
    # And what was written to it until then was.
    second._say(("gone", first.node))
    await second.settle()
    assert [(member.device, member.position, member.elsewhere) for member in sorted(second.open("c").audience, key=lambda member: member.device)] == [("d1", 1, set()), ("d2", 0, set())]


async def test_who_left_before_anybody_was_told_that_it_had_come_was_there_until_then(node):
    first, second = await node(device_ttl=100), await node(device_ttl=100)
    first.sweep(node.clock.now, lambda channel: True)
    first.want("d", "**")
    first.devices.open(first.devices.get("d"), feed := object())
    await first.settle()
    node.clock.now += 90
    first.devices.close(first.devices.get("d"), feed)
    first.sweep(node.clock.now, lambda channel: True)
    await first.settle()
    node.clock.now += 90
    assert (await push(second, "born")).audience == 1
    await alike(first, second)


async def test_of_a_node_that_has_gone_nothing_is_kept(node, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 3600)  # at which it would keep too, and what it found before may be written behind what is kept here
    first, second = await node(), await node()
    assert first.leads
    await join(second, "c", "d")
    member = second.open("c").audience.members["d"]
    member.live = member.feeds = 1
    await push(second)
    second.sweep(node.clock.now, lambda channel: True)
    await alike(first, second)
    assert first._written == {"c": {second.node: 1}}
    await first._keeper.keep(False, is_last=True)
    first._say(("gone", second.node))
    await first.settle()
    await first._keeper.keep(False, is_last=True)
    *_, written = keeping.unpack_value(await first._log.client.hget(first._log.keys["channels"], "c"))
    assert written == {}


def whereabouts(store: RedisStore) -> dict[str, Any]:
    """What is known of where everybody is, and how far all have been written to, on a node that has no feeds."""
    members = {f"{name} {member.device}": (sorted(member.elsewhere), member.position, member.since, member.seen) for name in store._begun for member in store._shelves[name].audience}
    return {"members": members, "written": {name: written for name, written in store._written.items() if written}, "users": store._users,
            # Who was taken off all its channels while it has a feed is of no account, and not known to who comes.
            "online": {device.name: sorted(device.elsewhere) for device in store.devices.known.values() if device.elsewhere and device.channels}}


@pytest.mark.parametrize("seed", range(6))
async def test_who_comes_knows_where_each_device_is_as_who_was_there(node, seed):
    chance = random.Random(seed)
    *busy, there = [await node() for _ in range(3)]
    for channel in ("c", "e"):
        await join(busy[0], channel, *(f"d{number}" for number in range(6)))
    there.deliver = busy[0].deliver = lambda event: None
    await alike(*busy, there)

    async def come_and_go(turns: int) -> None:
        for _ in range(turns):
            store, channel, device = chance.choice(busy), chance.choice("ce"), f"d{chance.randrange(6)}"
            shelf, known = store.open(channel), store.devices.get(device)
            member = shelf.audience.members.get(device)
            node.clock.now += 1
            if chance.random() < 0.2:
                await push(store, channel)
            elif member is None or known is None:
                await join(store, channel, device)
            elif chance.random() < 0.1 and not member.live:
                store.unregister(channel, device)
            elif member.slot >= 0:
                member.live = member.feeds = 1 - member.live
                member.position, member.seen = shelf.backlog.last, node.clock.now
                (store.devices.open if member.live else store.devices.close)(known, member)
            if chance.random() < 0.2:
                store.sweep(node.clock.now, lambda channel: True)
            if chance.random() < 0.3:
                await asyncio.sleep(0.001)
        for store in busy:
            store.sweep(node.clock.now, lambda channel: True)
        await alike(*busy, there)

    fresh: list[RedisStore] = []
    for _ in range(3):
        await come_and_go(40)
        fresh.append(await node())
        await alike(*busy, there, *fresh)
        for store in busy:
            store.sweep(node.clock.now, lambda channel: True)  # who has heard of the new one tells it what is not kept
        await alike(*busy, there, *fresh)
        for store in fresh:
            assert whereabouts(store) == whereabouts(there)
    there._say(("gone", busy[0].node))
    await alike(*busy, there, *fresh)
    assert all(busy[0].node not in elsewhere for elsewhere, *_ in whereabouts(fresh[0])["members"].values())
    # It was taken for dead, and says that it is not.
    busy[0].sweep(node.clock.now, lambda channel: True)
    await alike(*busy, there, *fresh)
    assert any(busy[0].node in elsewhere for elsewhere, *_ in whereabouts(fresh[0])["members"].values())
    for store in fresh:
        assert whereabouts(store) == whereabouts(there)


async def written(store: RedisStore) -> list[list[Any]]:
    """What the log has, entry by entry."""
    return [msgpack.unpackb(body)[1] for _, (_, _, _, body) in await store._log.client.xrange(store._log.keys["log"])]


def about(op: list[Any]) -> int:
    """Of how many devices that is which are only mentioned."""
    return len(op[3]) if op[0] == "marks" else len(op[2]) + len(op[3]) if op[0] == "present" else 0


async def test_who_is_there_is_mentioned_a_few_at_a_time_and_a_push_need_not_wait_for_all_of_them(node):
    first, second = await node(), await node()
    await join(first, "c", *(f"d{number}" for number in range(20)))
    for member in first.open("c").audience:
        member.live = member.feeds = 1
        first.devices.open(first.devices.get(member.device), member)
    while second.node not in first._nodes:  # then it is told what is true of this one
        await asyncio.sleep(0.001)
    before = len(await written(first))
    first.sweep(node.clock.now, lambda channel: True)
    first.append(a.draft("c"), lambda answer: None)
    await alike(first, second)
    entries = (await written(first))[before:]
    assert sum(about(op) for ops in entries for op in ops) == 40
    assert max(sum(map(about, ops)) for ops in entries) <= 4  # MENTIONED, and what is left of the last piece
    pushed = [place for place, ops in enumerate(entries) if any(op[0] == "push" for op in ops)]
    assert pushed < [place for place, ops in enumerate(entries) if any(map(about, ops))][-1:]
    assert {frozenset(member.elsewhere) for member in second.open("c").audience} == {frozenset((first.node,))}


async def test_what_was_mentioned_of_who_leaves_is_said_before(node):
    first, second = await node(), await node()
    await join(first, "c", *(f"d{number}" for number in range(20)))
    for member in first.open("c").audience:
        member.live = member.feeds = 1
    first.sweep(node.clock.now, lambda channel: True)
    first.unregister("c", "d19")
    first.register("c", "d19")
    await alike(first, second)
    ops = [op for ops in await written(first) for op in ops]
    assert max(place for place, op in enumerate(ops) if op[0] == "marks" and op[3][0][1]) < [op[0] for op in ops].index("leave")
    assert second.open("c").audience.members["d19"].elsewhere == frozenset()


async def test_where_devices_are_is_kept_ahead_of_the_rest_and_read_with_it(node, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 3600)
    first = await node()
    await join(first, "c", "d0", "d1", "d2", "d3", "d4", "d5")
    await first._keeper.keep(False, is_last=True)
    kept = first._keeper.kept
    members = first.open("c").audience.members
    for name in ("d0", "d1", "d2", "d3", "d4"):
        members[name].live = members[name].feeds = 1
    first.sweep(node.clock.now, lambda channel: True)
    # Who leaves and comes back has another place, and is kept with all else.
    first.unregister("c", "d5")
    first.register("c", "d5")
    await push(first)
    await first.settle()
    client, keys = first._log.client, first._log.keys
    await client.set(keys["loading"], "another")  # then it must stand still
    assert len(first.changes.marked(99)) == 5
    await first._keeper.keep_ahead()
    assert len(first.changes.marked(99)) == 5
    await client.delete(keys["loading"])
    before = await client.hgetall(keys["members"])
    await first._keeper.keep_ahead()
    assert len(first.changes.marked(99)) == 1  # which is not many
    after = await client.hgetall(keys["members"])
    assert sum(after[name] != before[name] for name in before) == 4
    assert after.keys() == before.keys() and after[b"c d5"] == before[b"c d5"]
    assert first._keeper.kept == kept
    # As if it died now.
    second = await node()
    await alike(first, second)
    assert sorted(member.device for member in second.open("c").audience if member.elsewhere == {first.node}) == ["d0", "d1", "d2", "d3", "d4"]
    await first._keeper.keep(False, is_last=True)
    assert len(first.changes) == 0
    await alike(first, second, await node())


async def test_what_is_being_read_while_all_is_begun_anew_is_not_entered(node, server):
    store = await node()
    for number in range(10):
        await push(store, data=b"%d" % number)
    taken: list[int] = []

    def take(entries: list[sharedlog.Entry]) -> None:
        taken.extend(entry.n for entry in entries)
        if taken[-1] == 3:
            log.begin(8)

    log = sharedlog.SharedLog(server.url, "another", take)
    await log.open(NOW, "another", module.VERSION)
    await log.catch_up()
    assert taken[:4] == [1, 2, 3, 9] and taken == [1, 2, 3, *range(9, store._log.taken + 1)]
    await log.close()


async def test_who_comes_when_another_has_just_read_all_and_it_is_kept_anew_reads_once_more(node, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 3600)
    first = await node()
    await join(first, "c", "d")
    await push(first)
    await first._keeper.keep(False, is_last=True)
    read, client, keys, readings = loading.read, first._log.client, first._log.keys, []

    async def meanwhile(*said: Any) -> Any:
        readings.append(await read(*said))
        if len(readings) == 1:
            await client.delete(keys["loading"])  # as who came a moment before does at the end
            await push(first)
            await first._keeper.keep(False, is_last=True)
        return readings[-1]

    monkeypatch.setattr(loading, "read", meanwhile)
    second = await node()
    assert len(readings) == 2 and [event.ordinal for event in second.open("c").backlog] == [1, 2]
    await alike(first, second)


async def test_a_device_that_was_removed_and_is_back_at_once_is_there_for_all(node):
    first, second = await node(), await node()
    for is_removed in (False, True):
        if is_removed:
            first.remove("d")
        await join(first, "c", "d")
        first.devices.open(first.devices.get("d"), object())
        first.sweep(node.clock.now, lambda channel: True)
        await alike(first, second)
        first.sweep(node.clock.now, lambda channel: True)
        await alike(first, second)
        assert second.devices.get("d").elsewhere == {first.node}


async def test_a_node_ends_where_a_device_was_removed_a_moment_ago_and_it_is_long_since_was_said_who_stays(node):
    first, second = await node(), await node()
    await join(first, "c", "d")
    first.devices.open(first.devices.get("d"), object())
    first.sweep(node.clock.now, lambda channel: True)
    await alike(first, second)
    node.clock.now += DAY
    first.remove("d")
    await first.close()
    await alike(second)
    assert first.node not in second._nodes


async def test_who_comes_to_keep_says_of_each_event_once_that_it_is_over_also_of_those_that_came_before(node, monkeypatch, caplog):
    monkeypatch.setattr(module, "BEAT", 3600)
    first, second = await node(keep_expired=100), await node(keep_expired=100)
    told: list[tuple[str, int]] = []
    second.ledger.on_decision = lambda word, entry, moment: told.append((word, entry.event.id))
    assert first.leads and not second.leads
    await join(first, "c", "d")
    events = [await push(store, ttl=ttl) for ttl in (10, 50, 60) for store in (first, second)]
    await alike(first, second)
    node.clock.now += 20
    first.sweep(node.clock.now, lambda channel: True)
    second.sweep(node.clock.now, lambda channel: True)
    await alike(first, second)
    assert sorted(told) == [("expired", event.id) for event in events[:2]]
    await first.close()
    await second._beat_once()
    assert second.leads
    second._lost("so that all is read from what is kept, and the log")
    await second._reading
    told.clear()
    for ended in (2, 4, 6, 6):
        second.sweep(node.clock.now, lambda channel: True)
        await second.settle()
        assert sorted(told) == [("expired", event.id) for event in events[2:ended]]
        node.clock.now += 35 if ended == 2 else 10
    node.clock.now += 60
    for kept in (4, 0):
        second.sweep(node.clock.now, lambda channel: True)
        await alike(second, third := await node(keep_expired=100))
        assert len(second.open("c").backlog) == kept
        await third.close()
        node.clock.now += 60
    assert len(told) == 4
    caplog.clear()


async def test_who_comes_and_keeps_at_once_forgets_no_channel_to_which_somebody_listens_on_a_node_that_has_not_told_it_yet(node, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 3600)
    first, second = await node(), await node()
    await join(first, "c", "d")
    first.unregister("c", "d")
    await alike(first, second)
    node.clock.now += 2 * working.QUIET
    second.sweep(node.clock.now, lambda channel: True)
    await alike(first, second)
    await first._keeper.keep(False, is_last=True)
    introduce, second._introduce = second._introduce, lambda is_anew=False: None  # it stands still for a moment
    third = await node()
    await first.close()
    await third._beat_once()
    assert third.leads
    third.sweep(node.clock.now, lambda channel: False)
    await alike(second, third)
    introduce()
    await alike(second, third)
    node.clock.now += 2 * working.QUIET
    for is_used in (True, False):
        second.sweep(node.clock.now, lambda channel, is_used=is_used: is_used)
        await alike(second, third)
        third.sweep(node.clock.now, lambda channel: False)
        await alike(second, third)
        assert ("c" in third._begun) == is_used


@pytest.mark.parametrize("is_keeper", [True, False])
async def test_a_node_that_died_has_nobody_online_for_thirty_seconds_at_most(node, is_keeper):
    assert max(sharedlog.SILENCE, sharedlog.LEASE / 1000) + 3 * sharedlog.BEAT + sharedlog.TIMEOUT <= 30  # unheard, kept by nobody, found at a beat, told to all at the next
    stores = [await node() for _ in range(3)]
    while not stores[0].leads:
        await asyncio.sleep(0.001)
    dead, *others = stores if is_keeper else stores[::-1]
    await join(dead, "c", "d")
    dead.devices.open(dead.devices.get("d"), object())
    dead.sweep(node.clock.now, lambda channel: True)
    await dead.settle()
    await alike(*stores)
    assert [store.devices.get("d").is_online for store in others] == [True, True]
    # As if it were killed: it says nothing more, and to nobody.
    await sharedlog.ended(dead._beating)
    dead._beating = None
    await dead._log.close()
    client, keys = others[0]._log.client, others[0]._log.keys

    async def later(seconds: float) -> None:
        """For Redis, whose clock counts, so much time goes by."""
        await client.zincrby(keys["nodes"], -seconds, dead.node)
        if is_keeper and await client.pttl(keys["keeper"]) < 1000 * seconds and await client.get(keys["keeper"]) == dead.node.encode():
            await client.delete(keys["keeper"])
        for store in others:
            await store._beat_once()
            await store.settle()
        await alike(*others)

    await later(sharedlog.SILENCE / 2)
    assert [store.devices.get("d").is_online for store in others] == [True, True]
    await later(sharedlog.SILENCE / 2 + 1)
    assert [store.devices.get("d").is_online for store in others] == [False, False]
    assert [dead.node in store._nodes for store in others] == [False, False]
    await alike(*others)
    while await client.zscore(keys["nodes"], dead.node) is not None:
        await asyncio.sleep(0.001)
    assert not [field for field in await client.hkeys(keys["head"]) if dead.node.encode() in field]


async def test_a_node_that_was_taken_for_dead_and_comes_back_is_missed_when_it_dies_for_good(node, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 3600)
    here, there = await node(), await node()
    await here._beat_once()
    assert here.leads
    await join(there, "c", "d")
    there.devices.open(there.devices.get("d"), object())
    there.sweep(node.clock.now, lambda channel: True)
    await alike(here, there)
    client, keys = here._log.client, here._log.keys
    forget, come_back = here._log.forget, asyncio.Event()

    async def late(name: str) -> None:
        if name == there.node:
            await come_back.wait()
        await forget(name)

    here._log.forget = late
    for comes_back in (True, False):
        assert here.devices.get("d").is_online
        await client.zincrby(keys["nodes"], -sharedlog.SILENCE - 1, there.node)  # as if it stood still
        await here._beat_once()
        await here.settle()
        assert not here.devices.get("d").is_online
        if comes_back:
            await there._beat_once()
            await there._log.catch_up()  # and hears that it was taken for dead
            there.sweep(node.clock.now, lambda channel: True)
            await there.settle()
            await here._log.catch_up()
        come_back.set()
        while here._tasks:
            await asyncio.sleep(0.001)
        assert (await client.zscore(keys["nodes"], there.node) is not None) == comes_back


async def test_the_log_is_cut_and_nobody_misses_anything(node, monkeypatch):
    monkeypatch.setattr(keeper, "CUT_AFTER", 0.0)
    first = await node()
    await join(first, "c", "d1", "d2")
    for number in range(50):
        await push(first, data=b"%d" % number)
        await say(first, "d1", first.newest)
        await asyncio.sleep(0.01)
    while await first._log.client.xlen(first._log.keys["log"]) > 40:
        await asyncio.sleep(0.02)
    second = await node()
    await alike(first, second)
    assert len(second._recent.after(0)) == 50


async def test_another_log_is_not_cut_where_the_one_before_was_to_be(node, server, monkeypatch, caplog):
    monkeypatch.setattr(module, "BEAT", 3600)
    store = await node()
    while not store.leads:
        await asyncio.sleep(0.001)
    for _ in range(9):
        await push(store)
    await store._keeper.keep(False, is_last=True)
    assert server.ask("FLUSHALL") == b"+OK"
    store._lost("the log is another one")
    await store._reading
    await store._beat_once()
    await push(store)
    monkeypatch.setattr(keeper, "CUT_AFTER", -1.0)
    await store._keeper.keep(False, is_last=True)
    assert store._keeper.kept.n == store._log.taken == await store._log.client.xlen(store._log.keys["log"])
    await alike(store, await node())
    caplog.clear()


async def test_thousands_that_changed_are_kept_and_thousands_that_left_are_taken_away(node, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 3600)  # at which it would keep too, and nothing is kept by one who does not know of what was kept a moment ago
    first = await node()
    await push(first)
    await join(first, "c", *(f"d{number}" for number in range(2500)))
    await first._keeper.keep(False, is_last=True)
    second = await node()
    await alike(first, second)
    for number in range(100, 2500):
        first.unregister("c", f"d{number}")
    await first.settle()
    await first._keeper.keep(False, is_last=True)
    assert await first._log.client.hlen(first._log.keys["members"]) == 100
    await alike(first, second, await node())


async def test_no_piece_of_what_changed_is_longer_than_redis_takes(node, server, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 3600)  # at which it would keep too, and maybe before it is all pushed
    assert server.ask("CONFIG", "SET", "proto-max-bulk-len", str(1024 * 1024)) == b"+OK"  # the least that it can be; it is 512 MB unless somebody says otherwise
    first = await node(max_event_bytes=700_000)
    for number in range(40):
        await push(first, data=b"%d" % number * (1 if number == 7 else 30_000))
    await push(first, data=b"1" * 700_000)
    await first._keeper.keep(False, is_last=True)
    await alike(first, await node(max_event_bytes=700_000))
    assert await first._log.client.hlen(first._log.keys["events"]) == len(first.open("c").backlog) > 20


async def test_what_was_kept_and_not_answered_is_not_kept_twice(node, server, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 3600)
    store = await node()
    await join(store, "c", "d1", "d2", "d3")

    async def answered(device: str) -> None:
        await say(store, device, (await push(store)).id)

    await answered("d1")
    await store._keeper.keep(False, is_last=True)
    await answered("d2")
    # Redis has the command, and does it when nobody waits for the answer any more.
    server.signal(signal.SIGSTOP)
    try:
        with pytest.raises(RedisError):
            await store._keeper.keep(False, is_last=True)
    finally:
        server.signal(signal.SIGCONT)
    before = store._keeper.kept
    await answered("d3")
    await store._keeper.keep(False, is_last=True)
    assert store._keeper.kept.n > before.n
    await store._keeper.keep(False, is_last=True)
    assert (store._keeper.kept.n, len(store.changes)) == (store._log.taken, 0)
    other = await node()
    await alike(store, other)
    assert [row[4] for row in other._recent.after(0)] == ["d1", "d2", "d3"]


async def test_what_is_missing_between_two_messages_is_fetched(node):
    here, there = await node(), await node()
    heard: list[int] = []
    there.deliver = lambda event: heard.append(event.id)
    take, dropped = there._log._heard, []
    there._log._heard = lambda message: take(message) if dropped else dropped.append(message)
    ids = [(await push(here)).id]
    while not dropped:
        await asyncio.sleep(0.01)
    ids += [(await push(here)).id for _ in range(2)]
    while heard != ids:
        await asyncio.sleep(0.01)


async def test_a_subscription_that_is_cut_off_goes_on_where_it_was(node, server):
    here, there = await node(), await node()
    heard: list[int] = []
    there.deliver = lambda event: heard.append(event.id)
    ids = []
    for _ in range(3):
        assert server.ask("CLIENT", "KILL", "TYPE", "pubsub").startswith(b":")
        ids.append((await push(here)).id)
    while heard != ids:
        await asyncio.sleep(0.01)
    for store in (here, there):
        while store.trouble() is not None:
            await asyncio.sleep(0.01)


async def test_while_redis_is_away_nothing_is_taken_and_then_all_goes_on(node, server, caplog, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    store = await node()
    await join(store, "c", "d1")
    id = (await push(store)).id
    server.kill()
    with pytest.raises(Unavailable) as caught:
        await push(store)
    assert caught.value.retry_after
    assert "cannot keep anything" in (store.trouble() or "")
    with pytest.raises(Unavailable):
        await say(store, "d1", id)
    told: list[Refusal | None] = []
    store.register("c", "d2")
    store.assure("d2", told.append)
    store.put_away("k", "n", b"1", told.append)
    assert all(isinstance(each, Unavailable) for each in told) and len(told) == 2
    assert (await store.status("c", id))["counts"]["pending"] == 1
    server.start()
    while store.trouble() is not None:
        await asyncio.sleep(0.01)
    assert await say(store, "d1", id) == "processed"
    # Who came meanwhile is registered by now.
    assert (await push(store)).audience == 2
    other = await node()
    await alike(store, other)
    caplog.clear()


async def test_a_redis_that_stands_still_is_given_up_and_what_it_had_is_not_taken_twice(node, server, caplog):
    store = await node()
    await join(store, "c", "d1")
    server.signal(signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable):
            await push(store)
    finally:
        server.signal(signal.SIGCONT)
    while store.trouble() is not None:
        await asyncio.sleep(0.01)
    ids = [(await push(store)).id for _ in range(3)]
    assert ids == sorted(ids)
    await alike(store, await node())
    caplog.clear()


@pytest.mark.parametrize("pushes", [1, 30, sharedlog.ALONG, sharedlog.ALONG + 1])
async def test_what_others_have_said_comes_along_with_the_answer_to_a_batch(node, monkeypatch, pushes):
    monkeypatch.setattr(module, "BEAT", 3600.0)  # at which all is read
    here, there = await node(), await node()
    await join(here, "c", "d1")
    await alike(here, there)
    while not here._log.is_listening:  # who begins to listen reads what there is
        await asyncio.sleep(0.001)
    here._log._heard = lambda message: None
    read, reads = here._log.client.xrange, []

    def counted(*args: Any, **named: Any) -> Any:
        reads.append(args)
        return read(*args, **named)

    here._log.client.xrange = counted
    ids = [(await push(there)).id for _ in range(pushes)]
    answers = await asyncio.gather(*(push(here) for _ in range(3)))
    assert [event.id for event in here.open("c").backlog] == [*ids, *(answer.id for answer in answers)] and bool(reads) == (pushes > sharedlog.ALONG)
    await alike(here, there)


async def looked_after(store: RedisStore) -> None:
    """Wait until it is well again, where it looks only when it is told to."""
    async with asyncio.timeout(SECONDS):
        while store._is_reading_anew or store._writing is not None or store.trouble() is not None:  # a batch that was under way is given up a little later
            await asyncio.sleep(0.01)
            if not store._is_reading_anew and store._writing is None:
                await store._beat_once()


async def test_what_comes_along_with_an_answer_is_not_taken_behind_another_log(node, monkeypatch, caplog):
    monkeypatch.setattr(module, "BEAT", 3600)  # at which all is read, and what is read then may have been asked for before the log was another one
    here, there = await node(), await node()
    await join(here, "c", "d1")
    await alike(here, there)
    here._log._heard = lambda message: None
    await push(there)
    here._log._last = b"another"
    with pytest.raises(Unavailable):
        await push(here)
    await looked_after(here)
    await alike(here, there)
    assert "everything is read anew" in [record.message for record in caplog.records]
    caplog.clear()


async def test_what_was_given_up_though_it_was_answered_is_read_when_what_is_before_it_can_be(node, caplog, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    monkeypatch.setattr(module, "BEAT", 3600)  # at which it would find out that nothing is told, and then it says nothing
    here, there = await node(), await node()
    await join(here, "c", "d1")
    await alike(here, there)
    here._log._heard = lambda message: None
    read = here._log.client.xrange

    async def away(*_: Any, **__: Any) -> None:
        raise RedisError("it takes what is said, and tells nothing")

    here._log.client.xrange = away
    monkeypatch.setattr(sharedlog, "ALONG", 0)
    await push(there)
    with pytest.raises(Unavailable):
        await push(here)
    here._log.client.xrange = read
    await looked_after(here)
    await push(here)
    assert len(here.open("c").backlog) == 3
    await alike(here, there)
    caplog.clear()


async def test_who_waits_for_replicas_is_answered_when_they_have_it_and_refused_when_they_have_not(server, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sharedlog, "WAIT", 2_500)  # a machine may be slow
    folder = tmp_path / "replica"
    folder.mkdir()
    assert server.ask("CONFIG", "SET", "repl-diskless-sync-delay", "0") == b"+OK"
    with RedisServer(folder, replicaof=f"127.0.0.1 {server.port}") as replica:
        while server.ask("WAIT", "1", "100") != b":1":
            pass
        store = RedisStore(Config(redis_wait=1, store=server.url), Clock(), server.url)
        await store.begin()
        await join(store, "c", "d1", "d2")
        id = (await push(store)).id
        assert await say(store, "d1", id) == "processed"
        replica.signal(signal.SIGSTOP)
        monkeypatch.setattr(sharedlog, "WAIT", 100)
        told: list[Any] = []
        store.record(None, "d2", id, PROCESSED, None, lambda *answer: told.append(answer), told.append)
        with pytest.raises(Unavailable, match="0 of the 1 replicas"):
            await push(store)
        # What is entered, and not on a replica, is not said a second time either.
        assert isinstance(told.pop(), Unavailable)
        with pytest.raises(Unavailable):
            await say(store, "d2", id)
        assert "0 of the 1 replicas" in (store.trouble() or "")
        monkeypatch.setattr(sharedlog, "WAIT", 2_500)
        replica.signal(signal.SIGCONT)
        while store.trouble() is not None:
            await asyncio.sleep(0.01)
        assert await say(store, "d2", id) == "processed"
        assert (await push(store)).audience == 2
        await store.close()
        assert replica.ask("XLEN", "pere:log") == server.ask("XLEN", "pere:log")
    caplog.clear()


def test_whoever_is_told_of_something_is_named_among_what_lasts_where_a_node_begins_anew():
    for made in (MemoryStore(Config()), Ledger(), Devices()):
        told = {name for name, value in vars(made).items() if not name.startswith("_") and (callable(value) or name.startswith("on_"))} - {"clock"}
        assert told <= {*made.lasting} <= vars(made).keys()


async def test_a_log_that_has_lost_its_end_is_read_anew(node, server, caplog):
    store = await node()
    await join(store, "c", "d1")
    await push(store)
    forsaken: list[bool] = []
    store.forsake = lambda: forsaken.append(True)
    assert server.ask("FLUSHALL") == b"+OK"
    while not forsaken or store.trouble() is not None:
        await asyncio.sleep(0.01)
    assert store.shelf("c") is None
    await join(store, "c", "d2")
    assert (await push(store)).audience == 1
    await alike(store, await node())
    caplog.clear()


async def lose_the_newest_entry(store: RedisStore) -> None:
    """As where a replica that has not had it becomes the primary."""
    client, keys, n = store._log.client, store._log.keys, store._log.taken
    assert await client.xdel(keys["log"], f"{n}-0") == 1 and await client.execute_command("XSETID", keys["log"], f"{n - 1}-0")
    assert await client.hincrby(keys["head"], "n", -1) == n - 1


@pytest.mark.parametrize("is_cut_off", [True, False], ids=["the subscription is made anew before", "nothing is read before"])
async def test_whoever_has_what_redis_has_lost_finds_that_out_though_somebody_else_has_its_place(server, node, monkeypatch, caplog, is_cut_off):
    monkeypatch.setattr(module, "BEAT", 3600)
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    first, second = await node(), await node()
    await join(first, "c", "d")
    await alike(first, second)
    while not (first._log.is_listening and second._log.is_listening):
        await asyncio.sleep(0.001)
    second._log._heard = lambda message: None
    lost = (await push(first)).id
    await lose_the_newest_entry(first)
    await second._log.client.hset(second._log.keys["head"], "last", second._log._last)
    if is_cut_off:
        before = first._log.ear._subscription
        assert server.ask("CLIENT", "KILL", "TYPE", "pubsub") == b":2"
        async with asyncio.timeout(SECONDS):
            while first._log.ear._subscription in (before, None) or first.trouble() is not None:
                await asyncio.sleep(0.001)
    id = (await push(second)).id
    if is_cut_off:
        await push(first)
    else:
        with pytest.raises(Unavailable):
            await push(first)
    await looked_after(first)
    await alike(first, second)
    kept = [event.id for event in first.open("c").backlog]
    assert kept[0] == id and lost not in kept
    assert "everything is read anew" in [record.message for record in caplog.records]
    caplog.clear()


async def test_a_node_that_read_everything_anew_has_nobody_there_for_the_others_but_who_came_back(node, monkeypatch, caplog):
    monkeypatch.setattr(module, "BEAT", 3600)
    first, second = await node(), await node()
    await join(first, "c", "d1", "d2")
    await push(first)
    feed = object()

    def come(*devices: str) -> None:
        for device in devices:
            member = first.open("c").audience.members[device]
            member.live = member.feeds = 1
            first.devices.open(first.devices.get(device), feed)

    come("d1", "d2")
    first.sweep(node.clock.now, lambda channel: True)
    await alike(first, second)
    members = second.open("c").audience.members
    assert second.devices.get("d1").is_online and members["d1"].elsewhere == members["d2"].elsewhere == {first.node}
    # A replica becomes the primary that has not had the last entry, and the second node has not taken that either.
    first.forsake = lambda: [first.devices.close(first.devices.get(device), feed) for device in ("d1", "d2")]
    await push(first)
    await lose_the_newest_entry(first)
    assert second._log.taken < first._log.taken
    with pytest.raises(sharedlog.Lost) as lost:
        await first._beat_once()
    first._lost(str(lost.value))
    await first._reading
    come("d2")
    first.sweep(node.clock.now, lambda channel: True)
    await alike(first, second)
    assert not second.devices.get("d1").is_online and members["d1"].elsewhere == frozenset() and members["d1"].position == 1
    assert second.devices.get("d2").is_online and members["d2"].elsewhere == {first.node}
    assert first.node in second._nodes and second.node in first._nodes
    caplog.clear()


async def test_what_is_heard_before_everything_has_been_read_anew_is_entered_when_it_has(node, monkeypatch, caplog):
    monkeypatch.setattr(module, "BEAT", 3600)
    first, second = await node(), await node()
    await join(first, "c", "d")
    first.follow("c")
    await push(first)
    await alike(first, second)
    while not first._log.hears("c"):
        await asyncio.sleep(0.001)
    await push(first)
    await lose_the_newest_entry(first)
    n, begin, may_begin = first._log.taken, first._log.open, asyncio.Event()

    async def late(*said: Any) -> Any:
        await may_begin.wait()
        return await begin(*said)

    first._log.open = late
    first._lost("the log has lost its newest entries")
    for _ in range(2):
        await push(second)  # the first of these is in the place of what was lost, and the other follows on what the first node had taken
    while max(first._log.taken, first._log._heard_of) < n + 1:
        await asyncio.sleep(0.001)
    may_begin.set()
    await first._reading
    await alike(first, second)
    assert [event.ordinal for event in first.open("c").backlog] == [1, 2, 3]
    assert (await push(first)).audience == 1
    await alike(first, second, await node())
    caplog.clear()


async def test_what_is_half_read_when_everything_is_to_be_read_anew_comes_first(node, monkeypatch, caplog):
    monkeypatch.setattr(module, "BEAT", 3600)
    first, second = await node(), await node()
    await join(first, "c", "d")
    await alike(first, second)
    before = first._log.taken
    for _ in range(9):
        await push(second)
    reading = asyncio.ensure_future(first._log.refresh())
    while first._log.taken < before + 2:
        await asyncio.sleep(0)
    assert first._log.taken < second._log.taken
    first._lost("the log is another one")
    await asyncio.gather(reading, first._reading)
    await alike(first, second)
    assert [event.ordinal for event in first.open("c").backlog] == [*range(1, 10)]
    caplog.clear()


async def test_who_is_after_an_entry_that_the_log_has_no_more_reads_everything_anew_all_the_same(node, server, monkeypatch, caplog):
    monkeypatch.setattr(module, "BEAT", 3600)
    store = await node()
    await push(store)
    assert server.ask("FLUSHALL") == b"+OK"
    store._log._hear_of(store._log.taken + 1)  # it was published, and Redis died before it was kept anywhere
    await asyncio.sleep(0)
    store._lost("the log is another one")
    await asyncio.wait_for(store._reading, 60)
    assert (await push(store)).audience == 0
    await alike(store, await node())
    caplog.clear()


@pytest.mark.parametrize("body", [None, b""])
async def test_who_has_heard_of_an_entry_that_the_log_does_not_have_reads_once_and_goes_on_with_what_comes(node, monkeypatch, body):
    monkeypatch.setattr(module, "BEAT", 3600)
    store = await node()
    await push(store)
    # It was published, and Redis died before it was kept anywhere.
    store._log._offer(Written.of(b"%d 0 0 0 other 999" % (store._log.taken + 2), body))
    await asyncio.wait_for(store._log._waking, SECONDS)
    for _ in range(3):
        await push(store)
    await alike(store, await node())


async def test_a_reading_that_nobody_waits_for_any_more_may_fail(node, monkeypatch, caplog):
    store = await node()
    gc.collect()  # what others have left is complained of before
    caplog.clear()

    async def lost() -> None:
        await asyncio.sleep(0.01)
        raise sharedlog.Lost("the log has lost its newest entries")

    with monkeypatch.context() as away:
        away.setattr(store._log, "catch_up", lost)
        asking = asyncio.ensure_future(store._log.refresh())
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.sleep(0.1)
    await store._log.refresh()
    while store._is_reading_anew or store.trouble() is not None:  # whoever else asked meanwhile reads everything anew
        await asyncio.sleep(0.01)
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
    caplog.clear()


async def test_who_ends_while_everything_is_read_anew_is_not_there_any_more(node, monkeypatch, caplog):
    monkeypatch.setattr(module, "BEAT", 3600)
    store, has_begun = await node(), asyncio.Event()
    load = store._load_anew

    async def late() -> None:
        has_begun.set()
        with suppress(asyncio.CancelledError):  # which redis-py may swallow
            await asyncio.sleep(3600)
        await load()

    store._load_anew = late
    store._lost("the log is another one")
    await has_begun.wait()
    caplog.clear()
    await store.close()
    assert store.node not in (await node())._nodes


async def test_what_is_said_behind_the_end_opens_no_connection(node, server):
    store = await node()
    await store.close()
    told: list[Refusal | None] = []
    store.put_away("notice", "late", b"{}", told.append)
    await asyncio.sleep(0.2)
    with Redis.from_url(server.url) as other:
        assert len(await asyncio.to_thread(other.client_list)) == 1, "only who asks is connected"
    assert isinstance(told[0], Unavailable)


async def test_a_redis_that_is_connected_to_and_says_nothing_is_not_waited_for_without_end(server, monkeypatch):
    monkeypatch.setattr(ear, "TIMEOUT", 0.2)
    said = asyncio.get_running_loop().create_future()

    async def nothing() -> None:
        """There is nothing to be read."""

    listening = ear.Ear(sharedlog.connect(server.url, None)[0], "always", lambda message: None, nothing, lambda: None)
    listening.on_trouble = lambda error: said.done() or said.set_result(error)
    server.signal(signal.SIGSTOP)
    listening.listen()
    assert isinstance(await asyncio.wait_for(said, SECONDS), TimeoutError)
    server.signal(signal.SIGCONT)
    while not listening.is_listening:
        await asyncio.sleep(0.001)
    await listening.close()
    await listening.client.aclose()


async def test_a_subscription_that_was_dropped_on_the_way_and_nobody_was_told_is_made_anew(server, node, monkeypatch, caplog):
    monkeypatch.setattr(ear, "QUIET", 0.05)
    monkeypatch.setattr(ear, "TIMEOUT", SECONDS)  # for which the machine may stand still, and it stays all the same
    there = await node()
    async with Between(server.port) as between:
        store = RedisStore(Config(), node.clock, f"redis://127.0.0.1:{between.port}/0")
        await store.begin()
        while not store._log.is_listening:
            await asyncio.sleep(0.001)
        # As long as it is asked for a word and has one, it stays.
        before, asked = store._log.ear._subscription, store._log.ear._heard_at
        while store._log.ear._heard_at < asked + 0.5:
            await asyncio.sleep(0.01)
        assert store._log.ear._subscription is before
        between.forget()
        async with asyncio.timeout(SECONDS):
            with monkeypatch.context() as hasty:
                hasty.setattr(ear, "TIMEOUT", 0.3)
                while store._log.ear._subscription in (before, None) or store.trouble() is not None:
                    await asyncio.sleep(0.001)
            monkeypatch.setattr(module, "BEAT", 3600)
            await asyncio.sleep(0.1)  # the last of those that come so often
            store.follow("c")
            while not store._hears("c"):
                await asyncio.sleep(0.001)
            id = (await push(there)).id
            while store.newest < id:
                await asyncio.sleep(0.001)
        await store.close()
    caplog.clear()


async def test_nothing_is_kept_by_a_node_that_is_about_to_read_everything_anew(node, monkeypatch, caplog):
    monkeypatch.setattr(module, "BEAT", 3600)
    monkeypatch.setattr(keeper, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(keeper, "KEEP_ANYWAY", 0.0)
    monkeypatch.setattr(keeper, "CUT_AFTER", -1.0)
    store = await node()
    await join(store, "c", "d")
    await push(store)
    await store._keeper.keep(False)  # so that the log is to be cut, though nothing were to be kept
    before, kept, ahead = store._keeper.kept, [await push(store), await push(store)], store._keeper.keep_ahead

    async def lost() -> None:
        await ahead()
        if store._reading is None:
            store._lost("it has gone on without us")
            await asyncio.sleep(0)  # it has forgotten all that it had at hand

    store._keeper.keep_ahead = lost
    monkeypatch.setattr(module, "BEAT", 0.0)
    beating = asyncio.ensure_future(store._beat())
    while store._reading is None or store.trouble() is not None:
        await asyncio.sleep(0.001)
    await sharedlog.ended(beating)
    assert before.n > 0 and [store.find("c", each.id).ordinal for each in kept] == [2, 3]
    await alike(store, await node())
    caplog.clear()


async def test_what_followed_from_an_entry_that_redis_has_lost_is_not_kept(node, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 3600)
    store = await node()
    await push(store)
    await store._keeper.keep(False, is_last=True)
    kept = store._keeper.kept
    await push(store)
    client, keys = store._log.client, store._log.keys
    await client.hincrby(keys["head"], "n", -1)  # as on a replica that has not had it
    await store._keeper.keep(False, is_last=True)
    assert store._keeper.kept == kept and await client.hget(keys["kept"], "n") == b"%d" % kept.n > b"0"
    await client.hincrby(keys["head"], "n", 1)
    await store._keeper.keep(False, is_last=True)
    assert store._keeper.kept.n == store._log.taken > kept.n
    await alike(store, await node())


async def test_a_redis_that_is_full_refuses_and_goes_on_when_there_is_room(node, server, caplog):
    store = await node()
    await push(store)
    assert server.ask("CONFIG", "SET", "maxmemory", "1") == b"+OK"
    with pytest.raises(Unavailable):
        await push(store)
    assert "maxmemory" in (store.trouble() or "")
    assert server.ask("CONFIG", "SET", "maxmemory", "0") == b"+OK"
    while store.trouble() is not None:
        await asyncio.sleep(0.01)
    await push(store)
    caplog.clear()


async def test_nodes_that_would_not_stay_alike_do_not_begin(node):
    await node(backlog_events=5)
    with pytest.raises(ConfigError, match="--backlog-events 5, not 6"):
        await node(backlog_events=6)


async def test_where_there_is_no_redis_it_does_not_begin(server):
    server.kill()
    with pytest.raises(ConfigError, match=f"127.0.0.1:{server.port} cannot be used"):
        await RedisStore(Config(), Clock(), server.url).begin()


async def test_every_key_has_a_time_to_live(node):
    store = await node()
    await some_life([store], node.clock, 9)
    while len(names := await store._log.client.keys("*")) <= 8:  # until it is kept
        await asyncio.sleep(0.01)
    for name in names:
        assert await store._log.client.pttl(name) > 0, name


async def test_redis_may_be_reached_by_a_unix_socket_and_deployments_have_keys_of_their_own(tmp_path):
    with RedisServer(tmp_path, unixsocket=str(tmp_path / "s")) as server:
        stores = [RedisStore(Config(), Clock(), url) for url in (f"unix://{tmp_path / 's'}?prefix=one&db=0", f"{server.url}?prefix=one", f"{server.url}?prefix=two")]
        for store in stores:
            await store.begin()
        id = (await push(stores[0])).id
        await alike(*stores[:2])
        assert stores[1].find("c", id).data == b"1"
        assert stores[2].shelf("c") is None
        assert {name.partition(b":")[0] for name in await stores[0]._log.client.keys("*")} == {b"one", b"two"}
        for store in stores:
            await store.close()


async def test_redis_may_be_reached_by_tls_as_a_user_with_a_password_and_no_more_rights_than_are_needed(tmp_path, authority, node):
    cert, key = authority.sign("redis")
    tls_port = free_port()
    with RedisServer(tmp_path, tls_port=str(tls_port), tls_cert_file=cert, tls_key_file=key, tls_ca_cert_file=authority.path, tls_auth_clients="no") as server:
        # As the README has it.
        rights = "on >se:cret@ ~pere:* &pere:* +@read +@write +@scripting +@pubsub +@connection +time".split()
        for user in (("pere", *rights), ("default", "off")):
            assert server.ask("ACL", "SETUSER", *user) == b"+OK"
        where = f"pere:se%3Acret%40@127.0.0.1:{tls_port}/0"
        stores = [RedisStore(Config(), node.clock, f"rediss://{where}?ssl_ca_certs={authority.path}") for _ in range(2)]
        for store in stores:
            await store.begin()
        await some_life(stores, node.clock, 3)
        await alike(*stores)
        for store in stores:
            await store.close()
        for url, why in ((f"rediss://{where}", "CERTIFICATE_VERIFY_FAILED"), (f"rediss://pere:wrong@127.0.0.1:{tls_port}/0?ssl_ca_certs={authority.path}", "password"),
                         (f"redis://127.0.0.1:{server.port}/0", "Authentication required")):
            with pytest.raises(ConfigError, match=f"cannot be used: .*{why}") as caught:
                await RedisStore(Config(), node.clock, url).begin()
            assert "se:cret" not in str(caught.value)


async def test_redis_may_have_one_password_for_all(server, node):
    assert server.ask("CONFIG", "SET", "requirepass", "secret") == b"+OK"
    store = RedisStore(Config(), node.clock, server.url.replace("//", "//:secret@"))
    await store.begin()
    assert (await push(store)).audience == 0
    await store.close()
