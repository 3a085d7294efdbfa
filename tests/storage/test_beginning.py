"""What is had of a file while another process has it is, when that has put it down, what one who opens it only then would have found."""

import os
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from processes import SECONDS

from pere.config import Config
from pere.errors import ConfigError, StoreInUse
from pere.event import LEVELS, Draft
from pere.receipt import PROCESSED
from pere.storage import schema
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

    def open(self, is_early: bool = False) -> SqliteStore:
        return SqliteStore(Config(), lambda: self.now, self.path, is_early)

    async def early(self) -> SqliteStore:
        """One that is to have the file, and has looked at it twice, as it does."""
        store = self.open(is_early=True)
        store.look(0)
        store.look(await self.store.save())
        return store

    async def push(self, channel: str, key: str) -> Any:
        self.now += 0.01
        told: list[Any] = []
        self.store.append(Draft(channel=channel, data=b"1", ttl=3600, key=key, level=LEVELS["processed"]), told.append)
        await self.store.settle()
        return told[0]

    async def followed(self, early: SqliteStore | None) -> dict[str, Any]:
        """How things stand for who has the file next."""
        before, left = self.store, await self.store.put_down((), {})
        if early is None:
            self.store = self.open()
        else:
            self.store = early
            early.take(left, {name: shelf.backlog.last for name, shelf in before._shelves.items()})
        await before.close()
        await self.store.settle()
        return told(self.store, self.now - Config().idempotency_window)


def told(store: SqliteStore, since: float) -> dict[str, Any]:
    devices = store.devices
    return {
        "devices": {name: (sorted(each.channels), sorted(each.patterns), each.seen >= NOW if each.patterns else 0) for name, each in devices.known.items()},
        "patterns": {pattern: sorted(names) for pattern, names in devices.patterns.items()}, "registrations": devices.registrations, "channels": dict(store._names),
        "back": dict(store._numbers), "kept": dict(store._kept_channels), "keys": [(name, kept) for name, kept in store._keys.items() if kept[0] > since], "next": store._newest_channel,
        "events": (store._kept, store._oldest, store.newest), "receipts": (store.newest_record, store.ledger.outstanding),
    }


@pytest.fixture
def desk(io_loop, tmp_path):
    async def made() -> Desk:
        desk = Desk(tmp_path / "pere.db")
        await desk.store.settle()
        return desk

    desk = io_loop.run_sync(made)
    yield desk
    io_loop.run_sync(desk.store.close, timeout=SECONDS)


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
    early = await desk.early()
    CHANGES[change](desk.store, 5)
    await desk.push("c2", "k2")
    with_it = await desk.followed(early)
    assert with_it == await desk.followed(None)
    assert [key for key, _ in with_it["keys"]] == [("c1", "k1"), ("c2", "k2")]


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_changed_meanwhile_is_there(desk, seed):
    chance = random.Random(seed)
    for _ in range(12):
        early = await desk.early() if chance.random() < 0.8 else None
        for _ in range(chance.randrange(6)):
            CHANGES[chance.choice(list(CHANGES))](desk.store, chance.randrange(40)) if "d1" in desk.store.devices.known else desk.store.register("c1", "d1")
            if chance.random() < 0.5:
                await desk.push(f"c{chance.randrange(9)}", f"k{chance.randrange(30)}")
            if chance.random() < 0.3:
                desk.now += 100
        await desk.store.settle()
        assert await desk.followed(early) == await desk.followed(None)


async def test_a_key_is_known_that_was_used_when_the_clock_had_been_set_back(desk):
    await desk.push("c1", "k1")
    for number in range(300):
        await desk.push("c1", f"more{number}")
    early = await desk.early()
    desk.now -= 60
    accepted = await desk.push("c1", "k2")
    await desk.followed(early)
    again = await desk.push("c1", "k2")
    assert (again.id, again.repeated) == (accepted.id, True)


async def test_what_a_key_says_of_its_audience_may_change_after_it_was_read(desk):
    accepted = await desk.push("c1", "k1")
    early = await desk.early()
    # As it is when somebody comes while the event is on its way to the disk: it is amended by the next commit.
    desk.store._wishes.append(("update keys set audience = 99 where key = ?", ("k1",)))
    await desk.store.settle()
    await desk.followed(early)
    again = await desk.push("c1", "k1")
    assert (again.id, again.audience) == (accepted.id, 99)


async def test_a_file_that_was_put_in_its_place_or_has_gone_is_not_taken_for_it(desk, tmp_path):
    await desk.push("c1", "k1")
    await desk.store.close()
    shutil.copy(desk.path, tmp_path / "copy.db")
    desk.store = desk.open()
    for does in (lambda: os.replace(tmp_path / "copy.db", desk.path), lambda: os.unlink(desk.path)):
        early = await desk.early()
        left = await desk.store.put_down((), {})
        does()
        with pytest.raises(ConfigError, match="replaced"):
            early.take(left, {})
        await early.forgo()
        await desk.store.close()
        desk.store = desk.open()
        assert desk.store.trouble() is None, "whoever opens it anew has what is there"


async def test_as_long_as_another_process_has_the_file_it_is_not_to_be_had(desk):
    early = await desk.early()
    with pytest.raises(StoreInUse):
        early.take({}, {})
    await early.forgo()
    await desk.push("c1", "k1")
    assert desk.store.trouble() is None


async def test_what_was_answered_is_known_though_the_last_save_could_not_be_made(desk, caplog):
    """Then the other process says nothing of how things stand, and all is looked for."""
    first = await desk.push("c1", "k1")
    early = await desk.early()
    desk.store.record(None, "d1", first.id, PROCESSED, None, lambda state, outcome: None, lambda refusal: None)
    await desk.store.settle()
    desk.store._journal._connection.execute("pragma query_only = 1")
    before, left = desk.store, await desk.store.put_down((), {})
    assert left == {} and before.trouble() is not None
    desk.store = early
    early.take(left, {})
    await before.close()
    status = await early.status("c1", first.id)
    assert status["counts"]["processed"] == 1
    assert "in trouble" in caplog.text
    caplog.clear()


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
    for path in (nothing, other, old, broken):
        with pytest.raises(ConfigError):
            SqliteStore(Config(), lambda: NOW, str(path), is_early=True)
    assert sorted(tmp_path.iterdir()) == before


async def test_to_look_holds_up_nobody_who_writes(desk):
    early = await desk.early()
    for number in range(20):
        await desk.push("c1", f"k{number}")
        early.look(desk.store._news)
    assert desk.store.trouble() is None and len((await desk.followed(early))["keys"]) == 20


async def test_where_nobody_came_and_nobody_went_who_is_registered_is_not_read_again(desk):
    first = await desk.push("c1", "k1")
    early = await desk.early()
    await desk.push("c1", "k2")
    desk.store.record(None, "d1", first.id, PROCESSED, None, lambda state, outcome: None, lambda refusal: None)
    asked: list[str] = []
    early._reader.set_trace_callback(asked.append)
    with_it = await desk.followed(early)
    assert asked and not [sql for sql in asked if "members where gone is null" in sql or "sum(owed)" in sql]
    early._reader.set_trace_callback(None)
    assert with_it == await desk.followed(None)


async def test_whose_feed_closes_in_the_last_moment_was_sent_no_more_than_that(desk):
    await desk.push("c1", "k1")
    shelf = desk.store.open("c1")
    stays, goes = [shelf.audience.members[name] for name in ("d1", "d8")]
    for member in (stays, goes):
        member.feeds = member.live = 1
    early = await desk.early()
    goes.position, goes.live, goes.feeds = 1, 0, 0
    await desk.push("c1", "k2")
    before, left = desk.store, await desk.store.put_down([(shelf, goes)], {})
    desk.store = early
    early.take(left, {"c1": 2})
    await before.close()
    members = early.open("c1").audience.members
    assert (members["d1"].position, members["d8"].position) == (2, 1)
