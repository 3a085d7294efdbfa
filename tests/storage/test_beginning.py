"""What is read of a file while another process has it is, when that has put it down, what one who reads only then would have found."""

import os
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pere.config import Config
from pere.event import LEVELS, Draft
from pere.storage import schema
from pere.storage.beginning import Beginning
from pere.storage.compacting import compact
from pere.storage.sqlite import SqliteStore

NOW = 1_700_000_000.0


class Desk:
    """A store on a file that another one is to have, and what is said there."""

    def __init__(self, path: Path):
        self.path = str(path)
        self.now = NOW
        self.store = self.open()
        for number in range(60):
            self.store.register(f"c{number % 7}", f"d{number % 40}")
        self.store.want("d1", "c.*")
        self.store.want("w", "x.**")

    def open(self, ahead: Beginning | None = None) -> SqliteStore:
        return SqliteStore(Config(), lambda: self.now, self.path, ahead)

    def ahead(self) -> Beginning:
        found = Beginning.ahead(self.path, self.now, self.now - Config().idempotency_window)
        assert found is not None
        return found

    async def push(self, channel: str, key: str) -> Any:
        self.now += 0.01
        told: list[Any] = []
        self.store.append(Draft(channel=channel, data=b"1", ttl=3600, key=key, level=LEVELS["processed"]), told.append)
        await self.store.settle()
        return told[0]

    async def followed(self, ahead: Beginning | None) -> dict[str, Any]:
        await self.store.close()
        self.store = self.open(ahead)
        return told(self.store, self.now - Config().idempotency_window)


def told(store: SqliteStore, since: float) -> dict[str, Any]:
    devices = store.devices
    return {
        "devices": {name: (sorted(each.channels), sorted(each.patterns), each.seen if each.patterns else 0) for name, each in devices.known.items()},
        "patterns": {pattern: sorted(names) for pattern, names in devices.patterns.items()}, "registrations": devices.registrations, "channels": dict(store._names),
        "back": dict(store._numbers), "kept": dict(store._kept_channels), "keys": [(name, kept) for name, kept in store._keys.items() if kept[0] > since], "next": store._newest_channel,
    }


@pytest.fixture
def desk(io_loop, tmp_path):
    async def made() -> Desk:
        desk = Desk(tmp_path / "pere.db")
        await desk.store.settle()
        return desk

    desk = io_loop.run_sync(made)
    yield desk
    io_loop.run_sync(desk.store.close)


CHANGES = {
    "nothing": lambda store, some: None,
    "one comes to a channel": lambda store, some: store.register("c1", "new"),
    "a channel is born": lambda store, some: store.register("young", "d1"),
    "one comes to a further channel": lambda store, some: store.register("c2", f"d{some}"),
    "one leaves a channel": lambda store, some: store.unregister("c3", "d3"),
    "one is removed": lambda store, some: store.remove(f"d{some}"),
    "another has its slot": lambda store, some: (store.remove("d4"), store.register("c4", "heir")),
    "one wants a pattern": lambda store, some: store.want("d2", "y.*"),
    "one wants none any more": lambda store, some: store.remove("w"),
    "one leaves all channels and keeps its pattern": lambda store, some: [store.unregister(name, "d1") for name in store.devices.known["d1"].channels],
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_changed_meanwhile_is_there(desk, change):
    await desk.push("c1", "k1")
    ahead = desk.ahead()
    CHANGES[change](desk.store, 5)
    await desk.push("c2", "k2")
    with_it = await desk.followed(ahead)
    assert with_it == await desk.followed(None)
    assert [key for key, _ in with_it["keys"]] == [("c1", "k1"), ("c2", "k2")]


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_changed_meanwhile_is_there(desk, seed):
    chance = random.Random(seed)
    for _ in range(12):
        ahead = desk.ahead() if chance.random() < 0.8 else None
        for _ in range(chance.randrange(6)):
            CHANGES[chance.choice(list(CHANGES))](desk.store, chance.randrange(40)) if "d1" in desk.store.devices.known else desk.store.register("c1", "d1")
            if chance.random() < 0.5:
                await desk.push(f"c{chance.randrange(9)}", f"k{chance.randrange(30)}")
            if chance.random() < 0.3:
                desk.now += 100
        await desk.store.settle()
        assert await desk.followed(ahead) == await desk.followed(None)


async def test_a_key_is_known_that_was_used_when_the_clock_had_been_set_back(desk):
    await desk.push("c1", "k1")
    for number in range(300):
        await desk.push("c1", f"more{number}")
    ahead = desk.ahead()
    desk.now -= 60
    accepted = await desk.push("c1", "k2")
    await desk.followed(ahead)
    again = await desk.push("c1", "k2")
    assert (again.id, again.repeated) == (accepted.id, True)


async def test_what_a_key_says_of_its_audience_may_change_after_it_was_read(desk):
    accepted = await desk.push("c1", "k1")
    ahead = desk.ahead()
    # As it is when somebody comes while the event is on its way to the disk: it is amended by the next commit.
    desk.store._wishes.append(("update keys set audience = 99 where key = ?", ("k1",)))
    await desk.store.settle()
    await desk.followed(ahead)
    again = await desk.push("c1", "k1")
    assert (again.id, again.audience) == (accepted.id, 99)


async def test_a_file_that_is_compacted_meanwhile_is_read_as_it_is(desk):
    await desk.push("c1", "k1")
    ahead = desk.ahead()
    desk.store.register("c1", "new")
    await desk.store.close()
    compact(desk.path)
    assert await desk.followed(ahead) == await desk.followed(None)
    assert "new" in desk.store.devices.known


async def test_a_file_that_was_put_in_its_place_is_read_alone(desk, tmp_path):
    await desk.push("c1", "k1")
    await desk.store.close()
    shutil.copy(desk.path, tmp_path / "copy.db")
    desk.store = desk.open()
    desk.store.register("c1", "new")
    await desk.push("c1", "k2")
    ahead = desk.ahead()
    await desk.store.close()
    os.replace(tmp_path / "copy.db", desk.path)
    found = await desk.followed(ahead)
    assert "new" not in found["devices"] and [key for key, _ in found["keys"]] == [("c1", "k1")]


async def test_a_file_that_has_gone_meanwhile_leaves_nothing(desk):
    await desk.push("c1", "k1")
    ahead = desk.ahead()
    await desk.store.close()
    os.unlink(desk.path)  # and the next file may have its number
    found = await desk.followed(ahead)
    assert found["devices"] == {} and found["keys"] == [] and found["channels"] == {}


async def test_what_cannot_be_read_ahead_is_left_to_who_opens_it(tmp_path):
    nothing, other, old, broken = (tmp_path / name for name in ("nothing.db", "other.db", "old.db", "broken.db"))
    sqlite3.connect(other).execute("create table t (x)").connection.close()
    with sqlite3.connect(old) as file:
        file.execute(f"pragma application_id = {schema.APPLICATION}")
        file.execute(f"pragma user_version = {schema.VERSION - 1}")
        file.execute("create table t (x)")
    file.close()
    broken.write_bytes(b"no database" * 1000)
    before = sorted(tmp_path.iterdir())
    assert [Beginning.ahead(str(path), NOW, 0.0) for path in (nothing, other, old, broken)] == [None] * 4
    assert sorted(tmp_path.iterdir()) == before


async def test_to_read_ahead_holds_up_nobody_who_writes(desk):
    ahead = desk.ahead()
    for number in range(20):
        await desk.push("c1", f"k{number}")
        assert Beginning.ahead(desk.path, desk.now, 0.0) is not None
    assert desk.store.trouble() is None and len((await desk.followed(ahead))["keys"]) == 20
