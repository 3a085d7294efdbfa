"""What the model test has found, each as a story of its own."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import made as a
import pytest
from made import NOW
from processes import SECONDS

from pere.config import Config
from pere.receipt import NAMES, PROCESSED
from pere.storage import Store, reading
from pere.storage.memory import MemoryStore
from pere.storage.sqlite import SqliteStore

DAY = 86_400


class Desk:
    """A store in a folder, its time handed in, and the next one on the same files."""

    def __init__(self, folder: Path):
        self.folder, self.now, self.stores = folder, NOW, 0

    def open(self, kind: str = "sqlite", **settings: Any) -> Store:
        self.config = Config(**settings)
        return MemoryStore(self.config, lambda: self.now) if kind == "memory" else self._sqlite()

    def _sqlite(self) -> Store:
        return SqliteStore(self.config, lambda: self.now, str(self.folder / f"{self.stores}.db"))

    async def again(self, store: Store) -> Store:
        await store.close()
        return self._sqlite()

    async def crashed(self, store: Store) -> Store:
        old, self.stores = self.stores, self.stores + 1
        for ending in ("", "-wal"):
            shutil.copy(self.folder / f"{old}.db{ending}", self.folder / f"{self.stores}.db{ending}")
        await store.close()
        return self._sqlite()

    async def push(self, store: Store, channel: str = "c", **said: Any) -> Any:
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        store.append(a.draft(channel, **{"ttl": 40 * DAY} | said), told.set_result)
        accepted = await told
        await store.settle()
        return accepted

    async def answer(self, store: Store, device: str, id: int, channel: str = "c") -> str:
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        store.record(channel, device, id, PROCESSED, None, lambda state, outcome: told.set_result(state), told.set_exception)
        return NAMES[await told]

    async def sweep(self, store: Store, later: float = 0.0) -> None:
        self.now += later
        for _ in range(3):
            store.sweep(self.now, lambda channel: False)
            await store.settle()


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_second_event_for_a_device_that_was_never_seen_is_owed_though_the_first_has_made_way(desk, kind):
    store = desk.open(kind, backlog_events=2, retention_events=2)
    await desk.push(store, to=("d1",))
    second = await desk.push(store, to=("d1",))
    await desk.push(store)
    await desk.sweep(store)
    member = store.register("c", "d1")
    shelf = store.open("c")
    try:
        assert (member.position, store.settled(shelf, member)) == (1, 1)
        assert store.pending("c", "d1", second.id, 10) == ([second.id], False)
    finally:
        await store.close()


async def test_a_device_that_has_left_for_good_is_not_back_after_a_restart(desk):
    store = desk.open(device_ttl=1000)
    store.register("orders.eu", "d1")
    store.want("d1", "orders.*")
    await desk.sweep(store, later=1001)
    assert store.devices.get("d1") is None
    assert (await desk.push(store, "orders.us")).audience == 0
    store = await desk.again(store)
    try:
        assert store.devices.get("d1") is None
        assert (await desk.push(store, "orders.asia")).audience == 0
    finally:
        await store.close()


async def test_what_is_pending_is_told_of_all_that_is_kept_and_not_only_of_what_is_at_hand(desk):
    store = desk.open(backlog_events=2)
    store.register("c", "d1")
    ids = [(await desk.push(store)).id for _ in range(4)]
    try:
        assert store.pending("c", "d1", ids[-1], 100) == (ids, False)
    finally:
        await store.close()


async def test_the_oldest_outstanding_event_is_the_oldest_also_when_it_was_looked_at(desk):
    store = desk.open(backlog_events=2)
    store.register("c", "d1")
    ids = []
    for _ in range(4):
        ids.append((await desk.push(store)).id)
        desk.now += 60
    try:
        assert store.oldest_outstanding() == pytest.approx(NOW, abs=0.001)
        await store.status("c", ids[0])
        assert store.oldest_outstanding() == pytest.approx(NOW, abs=0.001)
    finally:
        await store.close()


async def test_a_device_that_answered_a_day_ago_is_still_there_after_a_crash(desk):
    store = desk.open(retention_age=90 * DAY)
    store.register("c", "d1")
    ids = [(await desk.push(store)).id for _ in range(2)]
    await desk.sweep(store)
    await desk.sweep(store, later=29 * DAY)
    await desk.answer(store, "d1", ids[0])
    for _ in range(10):
        await desk.sweep(store, later=DAY / 10)
    store = await desk.crashed(store)
    try:
        store.open("c")
        await desk.sweep(store, later=DAY)
        assert "d1" in store.open("c").audience.members
    finally:
        await store.close()


async def test_a_device_that_is_not_seen_any_more_does_not_come_into_the_audience_of_new_channels_for_ever(desk):
    store = desk.open("memory", device_ttl=1000)
    store.want("d1", "orders.*")
    for number in range(10):
        await desk.push(store, f"orders.{number}")
        await desk.sweep(store, later=500)
    assert (await desk.push(store, "orders.last")).audience == 0


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_who_came_back_is_not_said_to_have_been_sent_what_it_never_was(desk, kind):
    store = desk.open(kind)
    store.register("c", "d1")
    id = (await desk.push(store)).id
    store.unregister("c", "d1")
    await store.settle()
    store.register("c", "d1")
    (line,), _ = await store.lines("c", id, None, 0, 10)
    try:
        assert (line["state"], line["attempt"], line["sent_at"]) == ("cancelled", 0, None)
    finally:
        await store.close()


async def test_who_registers_during_a_commit_is_assured_by_the_next_one_without_waiting_for_a_sweep(desk):
    store = desk.open()
    await asyncio.sleep(0)  # the first commit is under way
    told: list[Any] = []
    store.register("c", "d1")
    store.assure("d1", told.append)
    try:
        async with asyncio.timeout(SECONDS):
            while not told:
                await asyncio.sleep(0.01)
        assert told == [None]
    finally:
        await store.close()


async def test_what_a_device_asks_for_by_from_and_still_owes_counts_as_one_more_attempt(start, listen, push):
    await start(max_attempts=2)
    (await listen("c", device="d")).close()
    await push("c", "1")
    attempts = []
    for _ in range(3):
        feed = await listen("c", device="d", from_="all", format="envelope")
        await push("c", "end", receipt="none")
        message = await feed.event()
        attempts.append('"attempt":1' in message.data and 1 or '"attempt":2' in message.data and 2)
        feed.close()
    assert attempts[:2] == [1, 2]


async def test_who_has_just_joined_is_not_before_its_joining_after_a_crash(desk):
    store = desk.open()
    for _ in range(3):
        await desk.push(store)
    member = store.register("c", "d1")
    member.live, member.since = 1, desk.now
    await store.settle()
    store = await desk.crashed(store)
    try:
        assert store.open("c").audience.members["d1"].position == 3
    finally:
        await store.close()


async def test_receipts_for_what_is_old_are_all_known_whatever_was_looked_at_before(desk, monkeypatch):
    monkeypatch.setattr(reading, "MAX_VISITED", 3)
    store = desk.open(backlog_events=2)
    store.register("c", "d1")
    store.register("c", "d2")
    ids = [(await desk.push(store)).id for _ in range(8)]

    async def states(store: Store) -> list[int]:
        return [(await store.status("c", id))["counts"]["processed"] for id in ids]

    # The first of them is at hand, and would make way when those behind it are brought in.
    await store.status("c", ids[0])
    for device, count in (("d1", 1), ("d2", 2)):
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        store.record_many([(device, id, PROCESSED, None, None, "c") for id in ids], told.set_result)
        assert [state for state, _ in await told] == [PROCESSED] * len(ids)
        assert await states(store) == [count] * len(ids)
    assert len(store._visited) <= 3
    assert store.ledger.outstanding == 0
    await store.settle()
    store = await desk.crashed(store)
    assert await states(store) == [2] * len(ids)
    store = await desk.again(store)
    assert await states(store) == [2] * len(ids)
    await store.close()
