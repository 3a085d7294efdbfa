"""What is the SQLite store's own: it survives. A crash is a copy of the files as they lie there while the store is open."""

import asyncio
import os
import re
import shutil
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import made as a
import orjson
import pytest
import wire
from made import NOW
from processes import SECONDS, Served, free_port, line_of, piped
from test_contract import HOUR, Clock, Desk

from pere.config import KIB, MIB, Config
from pere.errors import ConfigError, Gone
from pere.event import format_id
from pere.receipt import NONE, PROCESSED
from pere.storage import Accepted, committing, schema
from pere.storage.journal import Batch
from pere.storage.sqlite import SqliteStore

DAY = 24 * HOUR


class Files:
    """The files of stores, one after the other: `again` ends a store and opens its file anew, `crashed` opens it as a crash leaves it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.clock = Clock()
        self.stores: list[SqliteStore] = []

        self.made = count()

    @property
    def path(self) -> Path:
        return self.folder / f"{next(self.made)}.db"

    async def open(self, path: Path | None = None, **settings: Any) -> Desk:
        path = path or self.path
        self.settings = settings or getattr(self, "settings", {})
        self.newest = path
        self.stores.append(SqliteStore(Config(**self.settings), self.clock, str(path)))
        return Desk(self.stores[-1], self.clock)

    async def again(self) -> Desk:
        await self.stores[-1].close()
        self.stores.pop()
        return await self.open(self.newest)

    async def crashed(self) -> Desk:
        copy = self.path
        for ending in ("", "-wal"):
            shutil.copy(f"{self.newest}{ending}", f"{copy}{ending}")
        return await self.open(copy)

    async def as_crashed(self, look: Callable[[Desk], Awaitable[None]]) -> None:
        """What would be found after a crash at this moment."""
        newest = self.newest
        await look(await self.crashed())
        await self.stores.pop().close()
        self.newest = newest

    def pages(self) -> int:
        """Bytes that are in use in the newest file."""
        connection = sqlite3.connect(self.newest)
        try:
            size, pages, free = (connection.execute(f"pragma {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count"))
            return size * (pages - free)
        finally:
            connection.close()


@pytest.fixture
def files(io_loop, tmp_path) -> Iterator[Files]:
    files = Files(tmp_path)
    yield files
    for store in files.stores:
        io_loop.run_sync(store.close, timeout=SECONDS)


@pytest.fixture(params=["again", "crashed"])
def restart(request, files) -> Callable[[], Awaitable[Desk]]:
    """`desk = await restart()`: after an orderly end, and after a crash."""
    return getattr(files, request.param)


# It survives


async def test_events_and_receipts_survive(files, restart):
    desk = await files.open()
    for device in ("d1", "d2", "d3"):
        desk.store.register("c", device)
    id = await desk.push("c", data=b'{"n":1}', type="order", publisher="shop")
    desk.clock.now += 2
    await desk.receipt("d1", id, status={"printed": 2})
    await desk.receipt("d2", id, "delivered")
    before, lines = await desk.store.status("c", id), orjson.dumps(await desk.store.lines("c", id, None, 0, 10))
    desk = await restart()
    assert await desk.store.status("c", id) == before
    assert orjson.dumps(await desk.store.lines("c", id, None, 0, 10)) == lines
    event = desk.store.find("c", id)
    assert (event.data, event.type, event.publisher, event.ordinal) == (b'{"n":1}', "order", "shop", 1)
    assert desk.store.ledger.outstanding == 2
    assert await desk.receipt("d1", id) == ("processed", "duplicate")
    assert await desk.receipt("d2", id, "failed") == ("failed", "accepted")
    assert await desk.counts(id) == {"processed": 1, "failed": 1, "pending": 1}
    desk = await restart()
    assert await desk.counts(id) == {"processed": 1, "failed": 1, "pending": 1}
    assert desk.store.ledger.outstanding == 1


async def test_what_each_device_was_named_for_survives(files, restart):
    desk = await files.open()
    desk.store.register("c", "d1")
    id = await desk.push("c", to=("d1", "later"))
    desk = await restart()
    assert await desk.devices(id) == ["d1", "later"]
    member = desk.store.register("c", "later")
    assert desk.store.settled(desk.store.open("c"), member) == 0  # it is owed what came before it


async def test_what_those_who_come_back_owe_is_asked_of_the_file_again_when_something_has_been_committed(files):
    desk = await files.open()
    members = [desk.store.register("c", device) for device in ("d1", "d2", "d3")]
    first, second = await desk.push("c"), await desk.push("c")
    shelf = desk.store.open("c")
    for member in members:
        member.position = 2  # it was sent both
    assert [desk.store.settled(shelf, member) for member in members] == [0, 0, 0]
    await desk.receipt("d1", first)
    assert [desk.store.settled(shelf, member) for member in members] == [1, 0, 0]
    for device in ("d1", "d2", "d3"):
        for id in (first, second):
            await desk.receipt(device, id)
    assert [desk.store.settled(shelf, member) for member in members] == [2, 2, 2]
    third = await desk.push("c")
    for member in members:
        member.position = 3
    assert [desk.store.settled(shelf, member) for member in members] == [2, 2, 2]
    await desk.receipt("d3", third)
    assert [desk.store.settled(shelf, member) for member in members] == [2, 2, 3]


async def test_many_pushes_at_once_are_kept_in_several_commits_in_their_order(files, restart, monkeypatch):
    monkeypatch.setattr(committing, "MAX_EVENTS", 3)
    desk = await files.open()
    kept = []
    desk.store.on_commit = lambda seconds, count: kept.append(count)
    accepted = await asyncio.gather(*(desk.accept("c", b"%d" % n, key="same" if n in (2, 7) else "") for n in range(11)))
    assert [count for count in kept if count] == [3, 3, 3, 1]  # one was a repetition
    assert accepted[7].id == accepted[2].id and accepted[7].repeated
    fresh = [each.id for n, each in enumerate(accepted) if n != 7]
    assert fresh == sorted(fresh) and len(set(fresh)) == 10
    desk = await restart()
    assert [event.id for event in desk.store.shelf("c").backlog] == fresh


async def test_documents_survive_a_crash_once_they_are_said_to_be_kept(files):
    desk = await files.open()
    told = []
    for number in range(3):
        desk.store.put_away("hook", "a", b"%d" % number, told.append)
    desk.store.put_away("hook", "b", b"b", told.append)
    desk.store.put_away("hook", "b", None, told.append)
    await desk.store.settle()
    assert told == [None] * 5
    desk = await files.crashed()
    assert desk.store.documents("hook") == {"a": b"2"}


async def test_who_closes_it_twice_does_not_wait_for_ever(files):
    desk = await files.open()
    await desk.store.close()
    await desk.store.close()


async def test_a_recall_survives(files, restart):
    desk = await files.open(backlog_events=3)
    for device in ("d1", "d2"):
        desk.store.register("c", device)
    ids = [await desk.push("c", receipt="none" if n == 1 else "processed") for n in range(6)]
    await desk.receipt("d1", ids[0])
    assert [await desk.recall(id) for id in (ids[0], ids[1], ids[5])] == [1, 0, 2]
    desk = await restart()
    assert [desk.store.find("c", id).recalled for id in ids] == [True, True, False, False, False, True]
    assert await desk.counts(ids[0]) == {"processed": 1, "cancelled": 1}
    assert await desk.counts(ids[5]) == {"cancelled": 2}
    assert desk.store.ledger.outstanding == 6


async def test_what_was_satisfied_stays_so_over_a_restart(files, restart):
    desk = await files.open()
    for device in ("d1", "d2"):
        desk.store.register("c", device)
    id = await desk.push("c", receipt="delivered", need=1)
    await desk.receipt("d1", id, "delivered")
    await desk.receipt("d1", id, "failed")
    desk = await restart()
    assert (await desk.store.status("c", id))["satisfied"]
    desk = await restart()
    assert (await desk.store.status("c", id))["satisfied"]


async def test_who_is_registered_survives_and_who_left_has_left(files, restart):
    desk = await files.open()
    for device in ("d1", "d2", "d3"):
        desk.store.register("c", device)
    desk.store.want("d3", "orders.*")
    first = await desk.push("c")
    desk.store.remove("d2")
    await desk.store.settle()
    desk = await restart()
    assert (await desk.accept("c")).audience == 2
    assert (await desk.accept("orders.eu")).audience == 1
    assert await desk.devices(first) == ["d1", "d2", "d3"]
    assert await desk.devices(first, "cancelled") == ["d2"]
    assert (desk.store.devices.registrations, desk.store.devices.get("d2")) == (4, None)


async def test_positions_survive(files, restart):
    desk = await files.open()
    member, away = desk.store.register("c", "d1"), desk.store.register("c", "away")
    member.live = 1
    for _ in range(3):
        id = await desk.push("c")
    for _ in range(3):
        await desk.sweep(later=1)
    assert await desk.counts(id) == {"sent": 1, "pending": 1}
    desk = await restart()
    assert await desk.counts(id) == {"sent": 1, "pending": 1}
    shelf = desk.store.open("c")
    assert (shelf.audience.members["d1"].position, shelf.audience.members["away"].position) == (3, away.position) == (3, 0)


async def test_a_repeated_key_is_known_over_a_restart(files, restart):
    desk = await files.open()
    first = await desk.accept("c", key="k")
    desk = await restart()
    again = await desk.accept("c", key="k")
    assert (again.id, again.repeated) == (first.id, True)
    desk.clock.now += 601
    assert (await desk.accept("c", key="k")).id > first.id


@pytest.mark.parametrize("back", [0.0, DAY])
async def test_ids_grow_over_a_restart_even_if_the_clock_steps_back(files, restart, back):
    desk = await files.open()
    ids = [await desk.push("c") for _ in range(3)]
    desk.clock.now -= back
    desk = await restart()
    ids += [await desk.push(channel) for channel in ("c", "d")]
    assert ids == sorted(set(ids))


async def test_ids_grow_even_if_nothing_is_left_of_those_before(files, restart):
    desk = await files.open(retention_age=60)
    id = await desk.push("c")
    desk.clock.now += 100
    await desk.sweep(later=1)
    assert desk.store.channels() and desk.kept() == []
    desk.clock.now -= DAY
    desk = await restart()
    assert await desk.push("c") > id


async def test_attempts_are_counted_over_a_restart(files):
    desk = await files.open(max_attempts=3)
    desk.store.register("c", "d1")
    id = await desk.push("c")
    event = desk.store.find("c", id)
    assert [desk.store.attempt(event, "d1", again) for again in (False, True)] == [1, 2]
    desk = await files.again()
    assert [desk.store.attempt(desk.store.find("c", id), "d1", True) for _ in range(2)] == [3, 0]
    await desk.store.settle()
    assert await desk.counts(id) == {"expired": 1}


async def test_what_expires_while_nobody_is_there_is_expired_at_the_return(files, restart):
    desk = await files.open()
    desk.store.register("c", "d1")
    id = await desk.push("c", ttl=60)
    desk.clock.now += 100
    desk = await restart()
    await desk.sweep(later=0)
    assert await desk.counts(id) == {"expired": 1}
    assert await desk.receipt("d1", id) == ("processed", "late")
    assert desk.store.ledger.outstanding == 0


async def test_a_device_that_was_never_seen_again_leaves_a_channel_that_nobody_uses(files):
    desk = await files.open(device_ttl=1000)
    desk.store.register("c", "d1")
    id = await desk.push("c", ttl=9000)
    desk = await files.again()
    desk.clock.now = (desk.clock.now + 2000) // 60 * 60
    while desk.store.devices.get("d1") is not None:
        desk.store.sweep(desk.clock.now, lambda channel: False)
        await asyncio.sleep(0.01)
    await desk.store.settle()
    assert await desk.counts(id) == {"cancelled": 1}


async def test_who_takes_the_place_of_one_who_left_in_the_same_moment_keeps_it(files, restart):
    desk = await files.open()
    for device in ("a", "b"):
        desk.store.register("c", device)
    desk.store.unregister("c", "b")
    assert desk.store.register("c", "new").slot == 1
    await desk.store.settle()
    desk = await restart()
    assert sorted(desk.store.shelf("c").audience.members) == ["a", "new"]
    assert (await desk.accept("c")).audience == 2


async def test_a_device_that_joins_while_an_event_is_on_its_way_to_the_disk_is_in_its_audience_or_was_not_there(files, restart):
    desk = await files.open()
    told: list[Any] = []
    ids: list[int] = []
    for turn in range(50):
        desk.store.append(a.draft("c"), told.append)
        for step in range(turn % 5):
            await asyncio.sleep(0.0003 * step)
        desk.store.register("c", f"d{turn}")
        if turn % 7 == 3:
            desk.store.unregister("c", f"d{turn - 2}")
    while len(told) < 50:
        await asyncio.sleep(0.001)
    await desk.store.settle()
    ids = [accepted.id for accepted in told]
    before = [(await desk.store.status("c", id))["counts"] for id in ids]
    assert [sum(counts.values()) for counts in before] == [(await desk.store.status("c", id))["audience"] for id in ids]
    desk = await restart()
    assert [(await desk.store.status("c", id))["counts"] for id in ids] == before


async def test_who_is_named_in_an_event_of_the_file_keeps_its_place_though_it_is_not_at_hand(files, restart):
    desk = await files.open(backlog_events=2)
    for device in ("old", "other"):
        desk.store.register("c", device)
    id = await desk.push("c")
    await desk.receipt("old", id)
    desk.store.remove("old")
    for _ in range(5):
        await desk.push("c")
    desk.store.register("c", "new")
    assert await desk.devices(id) == ["old", "other"]
    desk = await restart()
    desk.store.register("c", "newer")
    assert await desk.devices(id, "processed") == ["old"]


async def test_who_leaves_owes_nothing_of_what_is_only_in_the_file(files, restart):
    desk = await files.open(backlog_events=2)
    for device in ("gone", "here"):
        desk.store.register("c", device)
    ids = [await desk.push("c", to=("gone", "here") if n % 2 else ()) for n in range(9)]
    desk.store.remove("gone")
    await desk.sweep(later=0)
    assert await desk.counts(ids[0]) == {"cancelled": 1, "pending": 1}
    assert desk.store.ledger.outstanding == 9
    desk = await restart()
    assert [await desk.counts(id) for id in ids] == [{"cancelled": 1, "pending": 1}] * 9
    assert desk.store.ledger.outstanding == 9


async def test_nothing_is_left_of_a_channel_that_is_forgotten(files):
    desk = await files.open(device_ttl=100, retention_age=60)
    desk.store.register("stays", "here")
    for device in ("d1", "d2"):
        desk.store.register("goes", device)
    await desk.push("goes")
    for _ in range(10):
        desk.store.register("stays", "here").seen = desk.clock.now
        await desk.push("stays")
        await desk.sweep(later=30)
    assert set(desk.store.channels()) == {"stays"}
    desk = await files.again()
    rows = desk.store._reader.execute("select device from members union select name from channels").fetchall()
    assert rows == [("here",), ("stays",)]
    # Nor is its number given to another one, which would inherit what the log has of it.
    desk.store.register("new", "d3")
    await desk.push("new")
    assert desk.store.open("new").number == 3


async def test_a_channel_that_nobody_opens_any_more_is_forgotten_too(files):
    desk = await files.open(retention_age=60)
    await desk.push("c")
    desk = await files.again()
    desk.clock.now = (desk.clock.now + 200) // 60 * 60
    while desk.store.channels():
        desk.store.sweep(desk.clock.now, lambda channel: False)
        desk.clock.now += 60
        await asyncio.sleep(0.01)
    await desk.store.settle()
    desk = await files.again()
    assert not desk.store.channels()


async def test_who_is_assured_of_its_registration_is_registered_whatever_comes(files):
    desk = await files.open()
    told: list[Any] = []
    for turn in range(20):
        desk.store.append(a.draft("c"), lambda accepted: None)  # so that some come while a commit is under way
        await asyncio.sleep(0.0002 * (turn % 5))
        desk.store.register("c", f"d{turn}")
        if turn % 3 == 0:
            desk.store.want(f"d{turn}", "orders.*")
        desk.store.assure(f"d{turn}", told.append)
        while not told:
            await asyncio.sleep(0)
        assert told == [None]
        told.clear()
        desk.store.assure(f"d{turn}", told.append)
        assert told == [None]  # at once, as it is
        told.clear()

        async def look(after, turn=turn):
            known = after.store.devices.get(f"d{turn}")
            assert known is not None and "c" in known.channels and ("orders.*" in known.patterns) == (turn % 3 == 0)

        await files.as_crashed(look)


async def test_what_a_publisher_is_told_of_the_audience_is_what_it_is_told_again(files):
    desk = await files.open()
    told: dict[str, Any] = {}

    async def look(desk):
        for key, accepted in dict(told).items():
            again = await desk.accept("c", key=key)
            assert (again.id, again.audience, again.repeated) == (accepted.id, accepted.audience, True)
            status = await desk.store.status("c", accepted.id)
            if status["receipt"] != "none":
                assert (status["audience"], status["need"]) == (accepted.audience, -(-accepted.audience // 2))

    for turn in range(40):
        draft = a.draft("c", key=f"k{turn}", **({"level": NONE} if turn % 4 == 0 else {"level": PROCESSED, "need": "50%"}))
        desk.store.append(draft, partial(told.__setitem__, f"k{turn}"))
        for step in range(turn % 5):
            await asyncio.sleep(0.0003 * step)
        desk.store.register("c", f"d{turn}")
        if turn % 7 == 3:
            desk.store.unregister("c", f"d{turn - 2}")
        if turn % 4 == 3:
            await files.as_crashed(look)
    while len(told) < 40:
        await asyncio.sleep(0.001)
    await look(desk)
    await files.as_crashed(look)


async def test_what_was_entered_again_at_a_start_is_not_entered_again_at_the_next(files):
    desk = await files.open()
    desk.store.register("c", "d1")
    ids = [await desk.push("c") for _ in range(30)]
    for id in ids:
        await desk.receipt("d1", id)
    desk = await files.crashed()
    assert len(desk.store._dirty) == 30
    await desk.store.settle()
    desk = await files.crashed()
    assert not desk.store._dirty
    assert await desk.counts(ids[0]) == {"processed": 1}


# Beyond what is at hand


async def test_what_is_older_than_the_backlog_is_read_from_the_file(files):
    desk = await files.open(backlog_events=5)
    desk.store.register("c", "d1")
    ids = [await desk.push("c", data=b"%d" % n) for n in range(40)]
    assert len(desk.kept()) == 5
    events, is_more = await desk.store.history("c", 0, 30)
    assert ([event.id for event in events], is_more) == (ids[:30], True)
    events, is_more = await desk.store.history("c", ids[29], 30)
    assert ([event.data for event in events], is_more) == ([b"%d" % n for n in range(30, 40)], False)
    assert (await desk.store.history("c", ids[-1], 30)) == ([], False)
    shelf = desk.store.open("c")
    for place, id in enumerate(ids):
        assert (desk.store.seek(shelf, id), desk.store.seek(shelf, id - 1), desk.store.id_at(shelf, place + 1)) == (place + 1, place, id)
    assert await desk.receipt("d1", ids[3]) == ("processed", "accepted")
    assert await desk.counts(ids[3]) == {"processed": 1}
    assert desk.store.ledger.outstanding == 39
    # It owes the first one, and what it has answered is no matter any more.
    member = shelf.audience.members["d1"]
    member.position = 40
    assert desk.store.settled(shelf, member) == 0
    for id in ids[:10]:
        await desk.receipt("d1", id)
    assert desk.store.settled(shelf, member) == 10


async def test_memory_is_bounded_by_the_backlog_however_much_is_kept(files):
    desk = await files.open(backlog_events=10)
    desk.store.register("c", "d1")
    ids = [await desk.push("c") for _ in range(300)]
    for id in ids:
        await desk.receipt("d1", id)
    for _ in range(4):
        await desk.sweep(later=1)
    # The events at hand, and those that were asked for last.
    assert len(desk.store.ledger.entries) <= 310
    desk = await files.again()
    for id in ids:
        assert await desk.counts(id) == {"processed": 1}


async def test_what_was_read_from_the_file_is_at_hand_only_as_far_as_it_is_small(files, monkeypatch):
    monkeypatch.setattr("pere.storage.past.MOST_BYTES", 50_000)
    desk = await files.open(backlog_events=1)
    for _ in range(30):
        await desk.push("c", data=b"x" * 5_000)
    shelf = desk.store.open("c")
    # Twice, as where two come that were away: what is read again counts once.
    for first in (1, 1, 20):
        fetched = asyncio.Event()
        desk.store.fetch(shelf, first, lambda first=first, fetched=fetched: first in shelf.past and fetched.set())
        await asyncio.wait_for(fetched.wait(), 30)
        assert 0 < sum(event.size for event in shelf.past.values()) <= 50_000
        assert desk.store._past._bytes == sum(event.size for event in shelf.past.values())
        assert max(shelf.past) == 30


async def test_a_device_that_was_away_for_long_is_sent_everything(tmp_path):
    with Served("--store", f"sqlite:{tmp_path / 'pere.db'}", "--backlog-events", "10", port=free_port()) as served:
        feed = await wire.listen(served.port, "c", device="d")
        feed.close()
        batch = [{"channel": "c", "data": n} for n in range(700)]
        answer = await wire.request(served.port, "POST", "/push", batch)
        assert answer.status == 200, answer.body
        feed = await wire.listen(served.port, "c", device="d")
        assert await feed.events(700) == [str(n) for n in range(700)]
        served.kill()
        feed.close()
        with Served("--store", f"sqlite:{tmp_path / 'pere.db'}", "--backlog-events", "10", port=served.port) as again:
            feed = await wire.listen(again.port, "c", device="d")
            assert await feed.events(700) == [str(n) for n in range(700)]
            feed.close()


# It makes way


async def test_what_is_too_old_is_deleted(files):
    desk = await files.open(retention_age=1000)
    desk.store.register("c", "d1")
    old = [await desk.push("c") for _ in range(20)]
    desk.clock.now += 900
    new = await desk.push("c")
    await desk.receipt("d1", old[0])
    await desk.sweep(later=200)
    assert desk.kept() == [new]
    assert (desk.store.ledger.outstanding, desk.store.ledger.expired["evicted"]) == (1, 19)
    for id in old[:2]:
        with pytest.raises(Gone):
            desk.store.find("c", id)
        with pytest.raises(Gone):
            await desk.receipt("d1", id)
    desk = await files.again()
    assert desk.kept() == [new]
    with pytest.raises(Gone):
        desk.store.find("c", old[0])
    shelf = desk.store.open("c")
    assert (shelf.first, shelf.gone_id) == (21, old[-1])


async def test_what_is_too_much_is_deleted_the_oldest_first(files):
    desk = await files.open(retention_events=25)
    ids = [await desk.push(f"c{n % 3}") for n in range(100)]
    left = {id for n in range(3) for id in desk.kept(f"c{n}")}
    assert left == set(ids[-25:])
    desk = await files.again()
    assert {id for n in range(3) for event in (await desk.store.history(f"c{n}", 0, 100))[0] for id in [event.id]} == left


@pytest.mark.parametrize("limit", ["retention_events", "retention_bytes", "retention_age"])
async def test_the_file_does_not_grow_for_ever(files, limit):
    limits = {"retention_events": 300, "retention_bytes": 2 * MIB, "retention_age": 60}
    desk = await files.open(**{limit: limits[limit]}, backlog_events=50)
    devices = [f"d{n}" for n in range(20)]
    for device in devices:
        desk.store.register("c", device)
    sizes = []
    for _ in range(8):
        for _ in range(25):
            accepted = await asyncio.gather(*(desk.accept("c", b'"' + b"x" * 1000 + b'"') for _ in range(12)))
            await asyncio.gather(*(desk.receipt(device, event.id) for event in accepted for device in devices))
            await desk.sweep(later=2)
        sizes.append(files.pages())
    assert max(sizes[4:]) <= 1.3 * max(sizes[1:4]), sizes
    assert max(sizes) < (2 * MIB + 1.5 * MIB if limit == "retention_bytes" else 4 * MIB), sizes


async def test_a_receipt_takes_no_more_than_64_bytes_of_the_disk(files):
    desk = await files.open()
    devices = [f"device-{n}" for n in range(10_000)]
    for device in devices:
        desk.store.register("c", device)
    ids = [await desk.push("c") for _ in range(3)]
    await desk.sweep(later=1)

    desk = await files.again()
    before = files.pages()
    # All at once; in hundreds; and each in a commit of its own.
    for start in range(0, 10_000, 2500):
        await asyncio.gather(*(desk.receipt(device, ids[0], status="ok") for device in devices[start : start + 2500]))
    for start in range(0, 10_000, 100):
        await asyncio.gather(*(desk.receipt(device, ids[1]) for device in devices[start : start + 100]))
    desk = await files.again()
    assert files.pages() - before <= 20_000 * 64
    before = files.pages()
    for device in devices[:1000]:
        await desk.receipt(device, ids[2])
    desk = await files.again()
    assert files.pages() - before <= 1000 * 64 + 64 * KIB  # the columns of 10,000 devices are saved for the first of them
    assert await desk.counts(ids[0]) == {"processed": 10_000}


# Its file


@pytest.mark.parametrize("version", range(1, schema.VERSION))
async def test_a_file_of_a_version_before_is_brought_to_this_one(files, version):
    path = files.path
    connection = sqlite3.connect(path)
    connection.executescript((Path(__file__).parent / f"version_{version}.sql").read_text())
    connection.close()
    assert schema.check(str(path)) == version
    desk = await files.open(path)
    assert schema.check(str(path)) == schema.VERSION
    first, second = (event.id for event in (await desk.store.history("orders", 0, 10))[0])
    assert (await desk.store.status("orders", first))["counts"] | {"sent": 0} == {
        "pending": 1, "sent": 0, "delivered": 0, "expired": 0, "cancelled": 0, "processed": 1, "failed": 1}
    lines, _ = await desk.store.lines("orders", second, None, 0, 10)
    assert [(line["device"], line["state"]) for line in lines] == [("d1", "pending"), ("d9", "pending")]
    assert (await desk.accept("alarms.fire")).audience == 1
    assert await desk.push("orders") > second


@pytest.mark.parametrize("version", range(1, schema.VERSION))
async def test_tables_that_were_brought_here_and_tables_that_were_made_are_the_same(tmp_path, version):
    made, brought = str(tmp_path / "made.db"), str(tmp_path / "brought.db")
    connection = sqlite3.connect(brought)
    connection.executescript((Path(__file__).parent / f"version_{version}.sql").read_text())
    connection.close()
    found = []
    for path in (made, brought):
        connection = schema.prepare(path, "full")
        rows = connection.execute("select type, name, tbl_name, lower(sql) from sqlite_master where sql is not null")
        found.append(sorted((*row, re.sub(r"--.*|\s", "", sql)) for *row, sql in rows))
        connection.close()
    assert found[0] == found[1]


def test_who_is_killed_while_a_file_is_brought_to_this_version_finds_it_as_it_was_or_done(tmp_path):
    path = tmp_path / "pere.db"
    connection = sqlite3.connect(path)
    connection.executescript((Path(__file__).parent / "version_1.sql").read_text())
    # So many that the migration takes a while.
    connection.execute("with recursive n(i) as (select 10 union all select i + 1 from n where i < 100000) insert into members "
                       "select 1, i, 'device-' || i, 0, 0, 0, i, 0, 0, null from n")
    connection.commit()
    connection.close()
    versions = []
    takes = 0.0
    for attempt in range(12):
        copy = tmp_path / f"{attempt}.db"
        shutil.copy(path, copy)
        script = f"from pere.storage import schema; print('begins', flush=True); schema.prepare({str(copy)!r}, 'full'); print('has ended', flush=True)"
        with piped(sys.executable, "-c", script) as child:
            assert line_of(child) == b"begins\n"
            begun = time.monotonic()
            if attempt:
                time.sleep(takes * (attempt - 1) / 10)
                child.kill()
            else:  # the first is left alone, and tells how long it takes
                assert line_of(child) == b"has ended\n"
                takes = time.monotonic() - begun
                child.wait(SECONDS)
        connection = schema.prepare(str(copy), "full")  # goes on where that one was cut off
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        assert connection.execute("select count(*) from members indexed by members_by_seen where gone is null").fetchone() == (99_994,)
        versions.append(connection.execute("pragma user_version").fetchone()[0])
        connection.close()
    assert set(versions) == {schema.VERSION}


def test_who_was_killed_before_the_file_had_its_log_left_a_file_that_opens(tmp_path):
    path, copy = tmp_path / "pere.db", tmp_path / "copy.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript((Path(__file__).parent / "version_1.sql").read_text())
    for sql in ("pragma journal_mode = delete", "pragma cache_size = 1", "begin"):
        connection.execute(sql)
    # More than fits in memory, so some of it is in the file already, and what was there before is in the journal beside it.
    connection.execute("with recursive n(i) as (select 10 union all select i + 1 from n where i < 3000) insert into members "
                       "select 1, i, 'device-' || i, 0, 0, 0, i, 0, 0, null from n")
    for ending in ("", "-journal"):
        shutil.copy(f"{path}{ending}", f"{copy}{ending}")
    connection.close()
    opened = schema.prepare(str(copy), "full")
    assert opened.execute("select count(*) from members where slot >= 10").fetchone() == (0,)
    opened.close()


async def test_whatever_goes_wrong_with_a_batch_is_told_and_the_next_one_is_written(files):
    desk, told, batch = await files.open(), asyncio.get_running_loop().create_future(), Batch()
    batch.put("meta", ("too large for the file", 1 << 70))
    desk.store._journal.write(batch, lambda *answer: told.set_result(answer))
    _, failure, _ = await asyncio.wait_for(told, SECONDS)
    assert isinstance(failure, OverflowError)
    assert await asyncio.wait_for(desk.push("c"), SECONDS)


async def test_who_fails_when_it_is_told_keeps_nothing_from_anybody_else(files, caplog):
    """What is kept and was not entered would be on nobody's feed, and the next event would have its place in the file."""
    desk, told = await files.open(), []
    desk.store.register("c", "d")
    first = await desk.push("c")
    for then in (lambda accepted: 1 / 0, told.append):
        desk.store.append(a.draft("c", b"1"), then)
    desk.store.record("c", "d", first, PROCESSED, None, lambda state, outcome: 1 / 0, told.append)
    desk.store.put_away("kind", "1", b"{}", lambda refusal: 1 / 0)
    desk.store.put_away("kind", "2", b"{}", told.append)
    desk.store.register("c", "e")
    desk.store.assure("e", lambda refusal: 1 / 0)
    desk.store.assure("e", told.append)
    await asyncio.wait_for(desk.store.settle(), SECONDS)
    await desk.push("c")
    assert [event.ordinal for event in desk.delivered] == [1, 2, 3, 4] and told == [Accepted(desk.delivered[2].id, 2), None, None]
    assert await desk.counts(first) == {"processed": 1}
    assert caplog.text.count("ZeroDivisionError") == 4
    caplog.clear()
    desk = await files.again()
    assert [event.ordinal for event in (await desk.store.history("c", 0, 10))[0]] == [1, 2, 3, 4]


async def test_who_watches_and_fails_keeps_nobody_who_answers_from_being_told(files, caplog):
    desk, told = await files.open(), []
    for device in ("d", "e"):
        desk.store.register("c", device)
    id = await desk.push("c")
    for then in (lambda is_decided: 1 / 0, told.append):
        desk.store.watch("c", id, then)
    for device in ("d", "e"):
        desk.store.record("c", device, id, PROCESSED, None, lambda *answer: told.append(answer), told.append)
    await asyncio.wait_for(desk.store.settle(), SECONDS)
    assert len(told) == 3 and True in told
    assert await desk.counts(id) == {"processed": 2}
    caplog.clear()


async def test_who_fails_when_it_is_refused_keeps_nobody_else_from_being_told(files, caplog, monkeypatch):
    desk, told = await files.open(), []
    await desk.push("c")
    monkeypatch.setattr(desk.store._journal, "_commit", lambda batch: [][0])
    for then in (lambda refusal: 1 / 0, told.append):
        desk.store.append(a.draft("c", b"1"), then)
    await asyncio.wait_for(desk.store.settle(), SECONDS)
    assert [refusal.code for refusal in told] == ["store_failed"]
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    assert await desk.push("c") and [event.ordinal for event in desk.delivered] == [1, 2]
    caplog.clear()


async def test_a_second_store_on_the_same_file_is_refused_and_says_who_has_it(files):
    await files.open()
    with pytest.raises(ConfigError, match=f"in use by another process .pid {os.getpid()}."):
        SqliteStore(Config(), files.clock, str(files.newest))


async def test_times_are_those_of_the_receipts_and_not_of_the_restart(files):
    desk = await files.open()
    desk.store.register("c", "d1")
    id = await desk.push("c")
    desk.clock.now += 10
    await desk.receipt("d1", id)
    desk.clock.now += HOUR
    desk = await files.crashed()
    (line,), _ = await desk.store.lines("c", id, None, 0, 10)
    assert line["latency"] == pytest.approx(10, rel=0.05)
    assert desk.clock.now > NOW + HOUR and format_id(id).startswith(str(int(NOW * 1000)))
