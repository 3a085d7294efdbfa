"""The contract of storage/__init__.py, to which every store is held: add a store to STORES, and it is."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import made as a
import orjson
import pytest
from made import NOW
from processes import SECONDS
from redises import common

from pere.bulk import Bulk
from pere.config import KIB, Config
from pere.errors import BadRequest, Gone, NotFound, Refusal, TooMany, Unavailable
from pere.event import Event, format_id, parse_id
from pere.receipt import NAMES, NONE, OUTCOMES, WORDS, state_code
from pere.server import Server
from pere.storage import Accepted, Store
from pere.storage.memory import MemoryStore
from pere.storage.redis import RedisStore
from pere.storage.sqlite import SqliteStore


async def memory(config: Config, clock: Callable[[], float], folder: Path) -> Store:
    return MemoryStore(config, clock)


async def sqlite(config: Config, clock: Callable[[], float], folder: Path) -> Store:
    return SqliteStore(config, clock, str(folder / "pere.db"))


async def redis(config: Config, clock: Callable[[], float], folder: Path) -> Store:
    # One server for all tests; each store has keys of its own there.
    return RedisStore(config, clock, f"{common().url}?prefix={folder.parent.name}.{folder.name}")


STORES = [memory, sqlite, redis]

HOUR = 3600.0
LEVELS = {"none": NONE, **WORDS}


class Clock:
    """Seconds since 1970; it goes on, or back, when the test says so."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Desk:
    """Where publishers and devices come to a store. What the store delivers is noted, as a hub would broadcast it."""

    def __init__(self, store: Store, clock: Clock):
        self.store = store
        self.clock = clock
        self.delivered: list[Event] = []
        store.deliver = self.delivered.append

    async def accept(self, channel: str = "c", data: bytes = b"1", receipt: str = "processed", **said: Any) -> Accepted:
        told: asyncio.Future[Accepted | Refusal] = asyncio.get_running_loop().create_future()
        self.store.append(a.draft(channel, data, level=LEVELS[receipt], **said), told.set_result)
        answer = await told
        if isinstance(answer, Refusal):
            raise answer
        return answer

    async def push(self, channel: str = "c", **said: Any) -> int:
        return (await self.accept(channel, **said)).id

    async def receipt(self, device: str, id: int, state: str = "processed", channel: str | None = "c",
                      status: object = None) -> tuple[str, str]:
        """The state that stands, and what became of the receipt."""
        told: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        word = orjson.dumps(status) if status is not None else None
        self.store.record(channel, device, id, state_code(state), word, lambda *answer: told.set_result(answer), told.set_exception)
        stands, outcome = await told
        return NAMES[stands], OUTCOMES[outcome]

    async def recall(self, id: int, channel: str = "c") -> int:
        """How many deliveries were cancelled."""
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.store.recall(channel, id, told.set_result, told.set_exception)
        return await told

    async def hears(self, count: int) -> list[Event]:
        """What was delivered, once it is so many."""
        while len(self.delivered) < count:
            await asyncio.sleep(0.001)
        return self.delivered

    async def counts(self, id: int, channel: str = "c") -> dict[str, int]:
        """How many devices are in which state, without the states that none is in."""
        counts = (await self.store.status(channel, id))["counts"]
        return {state: count for state, count in counts.items() if count}

    async def devices(self, id: int, state: str | None = None, start: int = 0, limit: int = 100) -> list[str]:
        lines, _ = await self.store.lines("c", id, state, start, limit)
        return [line["device"] for line in lines]

    def kept(self, channel: str = "c") -> list[int]:
        shelf = self.store.shelf(channel)
        return [event.id for event in shelf.backlog] if shelf is not None else []

    async def sweep(self, later: float, used: str = "") -> None:
        self.clock.now += later
        self.store.sweep(self.clock.now, lambda channel: channel == used)
        await self.store.settle()


@pytest.fixture(params=STORES, ids=lambda store: store.__name__)
def open_desk(request, io_loop, tmp_path) -> Iterator[Callable[..., Awaitable[Desk]]]:
    """`desk = await open_desk(ttl=60)`: a new store with these settings."""
    stores: list[Store] = []

    async def open_desk(**settings: Any) -> Desk:
        clock = Clock()
        folder = tmp_path / str(len(stores))
        folder.mkdir()
        stores.append(await request.param(Config(**settings), clock, folder))
        await stores[-1].begin()
        return Desk(stores[-1], clock)

    yield open_desk
    for store in stores:
        io_loop.run_sync(store.close, timeout=SECONDS)


# Documents


async def test_documents_are_kept_by_kind_and_name_and_the_last_one_stands(open_desk):
    store = (await open_desk()).store
    told = []
    for kind, name, document in [("k", "a", b"1"), ("k", "b", b"2"), ("other", "a", b"3"), ("k", "a", b"4"), ("k", "b", None), ("k", "none", None)]:
        store.put_away(kind, name, document, told.append)
    await store.settle()
    assert told == [None] * 6
    assert (store.documents("k"), store.documents("other"), store.documents("none")) == ({"a": b"4"}, {"a": b"3"}, {})


# An event is accepted


async def test_an_event_is_kept_delivered_and_told(open_desk):
    desk = await open_desk()
    accepted = await desk.accept("c", b'{"n":1}', type="order", publisher="shop")
    (event,) = await desk.hears(1)
    assert (event.id, event.ordinal, event.channel) == (accepted.id, 1, "c")
    assert (event.data, event.type, event.publisher) == (b'{"n":1}', "order", "shop")
    assert desk.store.find("c", accepted.id) is event
    assert not accepted.repeated


async def test_all_is_well_with_a_store_that_has_just_begun(open_desk):
    assert (await open_desk()).store.trouble() is None


async def test_events_are_delivered_in_the_order_of_their_ids(open_desk):
    desk = await open_desk()
    ids = [await desk.push("c" if number % 3 else "d") for number in range(20)]
    assert ids == sorted(set(ids))
    assert [event.id for event in await desk.hears(20)] == ids


async def test_ids_grow_over_all_channels_even_if_the_clock_steps_back(open_desk):
    desk = await open_desk()
    first = await desk.push("c")
    desk.clock.now -= HOUR
    second = await desk.push("d")
    desk.clock.now -= HOUR
    assert first < second < await desk.push("c")


async def test_an_id_tells_when_its_event_was_accepted(open_desk):
    desk = await open_desk()
    assert format_id(await desk.push()) == "1417444110993-0"


async def test_a_store_vouches_for_everything_since_it_was_born(open_desk):
    desk = await open_desk()
    assert parse_id("1417444110992-0") < desk.store.born <= await desk.push()


async def test_the_newest_id_is_above_all_that_is_kept_and_below_all_to_come(open_desk):
    desk = await open_desk()
    assert parse_id("1417444110992-0") < desk.store.newest
    for channel in "cdc":
        before = desk.store.newest
        desk.clock.now -= HOUR
        id = await desk.push(channel)
        assert before <= id <= desk.store.newest


async def test_an_event_that_is_not_delivered_yet_is_above_the_newest_id(open_desk):
    desk = await open_desk()
    for _ in range(20):
        told, ids, newest = [], [], []
        desk.store.deliver = lambda event, ids=ids: ids.append(event.id)
        desk.store.append(a.draft("c"), told.append)
        while not ids:
            newest.append(desk.store.newest)
            await asyncio.sleep(0)
        assert max(newest, default=0) < ids[0]
        while not told:
            await asyncio.sleep(0)


async def test_the_ordinals_of_a_channel_have_no_holes(open_desk):
    desk = await open_desk()
    for channel in "cdccd":
        await desk.push(channel)
    assert [event.ordinal for event in await desk.hears(5) if event.channel == "c"] == [1, 2, 3]


async def test_what_was_accepted_is_counted(open_desk):
    desk = await open_desk()
    await desk.push(data=b"1234")
    await desk.push("d", data=b"123456")
    assert (desk.store.events, desk.store.event_bytes) == (2, 10)
    assert desk.store.bytes == sum(event.size for event in await desk.hears(2))


async def test_the_audience_is_who_is_registered_when_the_event_is_accepted(open_desk):
    desk = await open_desk()
    assert (await desk.accept()).audience == 0
    for device in ("d1", "d2"):
        desk.store.register("c", device)
    desk.store.register("other", "d3")
    accepted = await desk.accept()
    desk.store.register("c", "d4")
    assert accepted.audience == 2
    assert await desk.devices(accepted.id) == ["d1", "d2"]


async def test_an_event_that_asks_for_no_receipts_tells_its_audience_and_has_no_account(open_desk):
    desk = await open_desk()
    desk.store.register("c", "d1")
    accepted = await desk.accept(receipt="none")
    assert accepted.audience == 1
    assert desk.store.ledger.outstanding == 0
    with pytest.raises(NotFound):
        await desk.receipt("d1", accepted.id)
    status = await desk.store.status("c", accepted.id)
    assert (status["receipt"], status["audience"], status["outstanding"], status["complete"]) == ("none", 0, 0, True)


async def test_a_need_that_cannot_be_met_brings_no_channel_into_being(open_desk):
    desk = await open_desk()
    desk.store.want("d", "x.*")
    with pytest.raises(BadRequest):
        await desk.push("x.1", need=2)
    assert not desk.store.channels()
    await desk.push("x.1", need=1)
    assert list(desk.store.open("x.1").audience.members) == ["d"]


async def test_a_need_that_cannot_be_met_is_refused_and_nothing_is_published(open_desk):
    desk = await open_desk()
    desk.store.register("c", "d1")
    with pytest.raises(BadRequest):
        await desk.accept(need=2)
    assert desk.kept() == []
    assert (desk.store.events, desk.store.ledger.outstanding) == (0, 0)
    after = await desk.push(need=1)
    assert [event.id for event in await desk.hears(1)] == [after]


async def test_the_same_key_again_publishes_nothing_and_answers_with_the_first_event(open_desk):
    desk = await open_desk()
    desk.store.register("c", "d1")
    first = await desk.accept(key="order-7")
    again = await desk.accept(key="order-7", data=b"2")
    assert (again.id, again.audience, again.repeated) == (first.id, 1, True)
    marker = await desk.push()
    assert [event.id for event in await desk.hears(2)] == [first.id, marker]
    assert desk.store.events == 2


async def test_a_key_is_of_one_channel(open_desk):
    desk = await open_desk()
    first = await desk.accept("c", key="order-7")
    other = await desk.accept("d", key="order-7")
    assert other.id > first.id
    assert not other.repeated


async def test_a_key_is_forgotten_in_time(open_desk):
    desk = await open_desk(idempotency_window=600)
    await desk.accept(key="order-7")
    desk.clock.now += 599
    assert (await desk.accept(key="order-7")).repeated
    desk.clock.now += 2
    assert not (await desk.accept(key="order-7")).repeated


# What is kept


async def test_only_the_newest_events_of_a_channel_are_kept(open_desk):
    desk = await open_desk(backlog_events=3)
    ids = [await desk.push() for _ in range(5)]
    assert desk.kept() == ids[2:]
    assert desk.store.bytes == sum(desk.store.find("c", id).size for id in ids[2:])


async def test_only_so_many_bytes_of_a_channel_are_kept(open_desk):
    desk = await open_desk(max_event_bytes=KIB, backlog_bytes=8 * KIB)
    ids = [await desk.push(data=b'"%s"' % (b"x" * 1000)) for _ in range(9)]
    assert 1 < len(desk.kept()) < 9
    assert desk.kept() == ids[-len(desk.kept()):]
    assert desk.store.bytes <= 8 * KIB


async def test_one_event_always_has_its_place(open_desk):
    desk = await open_desk(max_event_bytes=KIB, backlog_bytes=KIB, backlog_total_bytes=KIB)
    for channel in "ccd":
        id = await desk.push(channel, data=b"x" * KIB)
        assert [desk.kept("c"), desk.kept("d")] == ([[id], []] if channel == "c" else [[], [id]])


async def test_the_channel_that_was_quiet_longest_makes_way_first(open_desk):
    weight = a.event().size
    desk = await open_desk(max_event_bytes=1, backlog_bytes=3 * weight, backlog_total_bytes=4 * weight)
    for channel in ("quiet", "busy", "busy", "other"):
        await desk.push(channel)
    found = []
    for channel in ("busy", "late", "late", "late", "late"):
        await desk.push(channel)
        found.append({channel: len(desk.kept(channel)) for channel in ("quiet", "other", "busy", "late")})
        assert desk.store.bytes == 4 * weight
    assert [list(counts.values()) for counts in found] == [[0, 1, 3, 0], [0, 0, 3, 1], [0, 0, 2, 2], [0, 0, 1, 3], [0, 0, 1, 3]]


async def test_the_newest_events_of_all_channels_are_told_with_how_they_stand(open_desk):
    desk = await open_desk()
    assert desk.store.recent(3) == []
    desk.store.register("a", "d")
    ids = [await desk.push(channel) for channel in "abacbaca"]
    quiet = await desk.push("c", receipt="none")
    await desk.receipt("d", ids[-1], channel="a")
    await desk.hears(9)
    newest = desk.store.recent(4)
    assert [event.id for event, _ in newest] == [quiet, *reversed(ids[-3:])]
    assert [entry and (entry.size, entry.owed) for _, entry in newest] == [None, (1, 0), (0, 0), (1, 1)]
    assert len(desk.store.recent(100)) == 9


async def test_an_event_that_was_never_there_is_not_found(open_desk):
    desk = await open_desk()
    id = await desk.push("c")
    for channel, unknown in (("c", id + 1), ("c", id - 1), ("d", id), ("nowhere", id)):
        with pytest.raises(NotFound):
            desk.store.find(channel, unknown)
        with pytest.raises(NotFound):
            await desk.store.status(channel, unknown)
        with pytest.raises(NotFound):
            await desk.store.lines(channel, unknown, None, 0, 10)


async def test_an_event_that_has_made_way_is_gone(open_desk):
    desk = await open_desk(backlog_events=1, retention_events=1)
    desk.store.register("c", "d1")
    id = await desk.push()
    await desk.push()
    with pytest.raises(Gone) as caught:
        desk.store.find("c", id)
    assert caught.value.code == "event_gone"
    with pytest.raises(Gone):
        await desk.receipt("d1", id)
    with pytest.raises(Gone):
        await desk.store.status("c", id)
    with pytest.raises(Gone):
        await desk.store.lines("c", id, None, 0, 10)


async def test_what_makes_way_unreceipted_is_no_longer_outstanding(open_desk):
    desk = await open_desk(backlog_events=1, retention_events=1)
    desk.store.register("c", "d1")
    await desk.push()
    await desk.push()
    assert desk.store.ledger.outstanding == 1
    assert desk.store.ledger.expired["evicted"] == 1


async def test_what_has_made_way_takes_no_room(open_desk):
    desk = await open_desk(backlog_events=3)
    for _ in range(50):
        await desk.push("narrow", ttl=3600)  # of which nothing is left of any other test
    desk.delivered.clear()
    gc.collect()
    assert sum(type(thing) is Event and thing.channel == "narrow" for thing in gc.get_objects()) <= 3


async def test_a_channel_is_there_once_something_is_kept_of_it(open_desk):
    desk = await open_desk()
    assert desk.store.shelf("c") is None
    shelf = desk.store.open("c")
    assert desk.store.open("c") is shelf is desk.store.shelf("c")
    await desk.push("d")
    assert set(desk.store.channels()) == {"c", "d"}


# Receipts


async def test_the_first_word_of_a_device_stands(open_desk):
    desk = await open_desk()
    desk.store.register("c", "d1")
    id = await desk.push()
    assert await desk.receipt("d1", id, "delivered") == ("delivered", "accepted")
    assert await desk.receipt("d1", id, "delivered") == ("delivered", "duplicate")
    assert await desk.receipt("d1", id, "processed") == ("processed", "accepted")
    assert await desk.receipt("d1", id, "processed") == ("processed", "duplicate")
    assert await desk.receipt("d1", id, "delivered") == ("processed", "duplicate")
    assert await desk.receipt("d1", id, "failed") == ("processed", "conflict")
    assert await desk.counts(id) == {"processed": 1}


async def test_an_unknown_event_and_an_unknown_device_are_answered_alike(open_desk):
    desk = await open_desk()
    desk.store.register("c", "d1")
    id = await desk.push()
    desk.store.register("c", "late")
    answers = set()
    for device, event, channel in (("d1", id + 1, "c"), ("d1", id + 1, None), ("d2", id, "c"), ("d2", id, None),
                                   ("late", id, "c"), ("d1", id, "d")):
        with pytest.raises(NotFound) as caught:
            await desk.receipt(device, event, channel=channel)
        answers.add(caught.value.body())
    assert len(answers) == 1
    assert await desk.counts(id) == {"pending": 1}


async def test_a_receipt_need_not_name_the_channel(open_desk):
    desk = await open_desk()
    desk.store.register("c", "d1")
    assert await desk.receipt("d1", await desk.push(), channel=None) == ("processed", "accepted")


async def test_the_status_of_an_event_tells_what_became_of_it(open_desk):
    desk = await open_desk()
    for number in range(4):
        desk.store.register("c", f"d{number}")
    id = await desk.push(type="order", publisher="shop", need="50%", ttl=60)
    desk.clock.now += 2
    await desk.receipt("d0", id)
    await desk.receipt("d1", id, "failed")
    await desk.receipt("d2", id, "delivered")
    status = await desk.store.status("c", id)
    assert status["counts"] == {"pending": 1, "sent": 0, "delivered": 1, "expired": 0, "cancelled": 0, "processed": 1,
                                "failed": 1}
    assert {name: status[name] for name in ("id", "channel", "type", "time", "expires", "publisher", "receipt")} == {
        "id": "1417444110993-0", "channel": "c", "type": "order", "time": "2014-12-01T14:28:30.993Z",
        "expires": "2014-12-01T14:29:30.993Z", "publisher": "shop", "receipt": "processed"}
    assert {name: status[name] for name in ("audience", "outstanding", "need", "satisfied", "complete")} == {
        "audience": 4, "outstanding": 2, "need": 2, "satisfied": False, "complete": False}
    assert status["latency"] == {name: pytest.approx(2, rel=0.05) for name in ("p50", "p90", "p99")}


async def test_an_event_is_satisfied_before_it_is_complete(open_desk):
    desk = await open_desk()
    for device in ("d1", "d2"):
        desk.store.register("c", device)
    id = await desk.push(need=1)
    found = []
    for device in ("d1", "d2"):
        await desk.receipt(device, id)
        status = await desk.store.status("c", id)
        found.append((status["satisfied"], status["complete"]))
    assert found == [(True, False), (True, True)]


async def test_the_version_of_a_status_moves_with_every_change_and_only_then(open_desk):
    desk = await open_desk()
    member = desk.store.register("c", "d1")
    id = await desk.push()

    async def version():
        return (await desk.store.status("c", id))["version"]

    versions = [await version()]
    assert await version() == versions[0]
    member.position = 1  # it was written to its feed
    versions.append(await version())
    await desk.receipt("d1", id, "delivered")
    versions.append(await version())
    await desk.receipt("d1", id)
    versions.append(await version())
    await desk.receipt("d1", id)
    assert await version() == versions[-1]
    assert len(set(versions)) == 4


async def test_what_was_written_to_a_feed_is_sent_and_not_more_than_that(open_desk):
    desk = await open_desk()
    live, behind, away = (desk.store.register("c", device) for device in ("live", "behind", "away"))
    live.live = 1
    first, second = await desk.push(), await desk.push()
    behind.position = 1
    assert await desk.counts(first) == {"pending": 1, "sent": 2}
    assert await desk.counts(second) == {"pending": 2, "sent": 1}
    assert await desk.devices(first, "sent") == ["live", "behind"]
    assert await desk.devices(second, "pending") == ["behind", "away"]
    assert away.position == 0


async def test_a_line_tells_all_that_is_known_of_a_device_and_an_event(open_desk):
    desk = await open_desk()
    desk.store.register("c", "d1").live = 1
    desk.store.register("c", "d2")
    id = await desk.push()
    desk.clock.now += 2
    await desk.receipt("d1", id, status={"till": 7})
    (first, second), _ = await desk.store.lines("c", id, None, 0, 10)
    assert orjson.loads(orjson.dumps(first["status"])) == {"till": 7}
    assert {name: first[name] for name in ("device", "state", "attempt", "late", "sent_at")} == {
        "device": "d1", "state": "processed", "attempt": 1, "late": False, "sent_at": "2014-12-01T14:28:30.993Z"}
    assert first["latency"] == pytest.approx(2, rel=0.05)
    assert first["receipt_at"].startswith("2014-12-01T14:28:3")
    assert second == {"device": "d2", "state": "pending", "status": None, "attempt": 0, "late": False, "sent_at": None,
                      "receipt_at": None, "latency": None, "online": False}


async def test_a_device_is_told_to_be_online_while_it_has_a_feed(open_desk):
    desk = await open_desk()
    desk.store.register("c", "d1")
    id = await desk.push()
    device = desk.store.devices.get("d1")
    seen = []
    for change in (desk.store.devices.open, desk.store.devices.close):
        change(device, "feed")
        (line,), _ = await desk.store.lines("c", id, None, 0, 10)
        seen.append(line["online"])
    assert seen == [True, False]


async def test_devices_are_found_by_their_state(open_desk):
    desk = await open_desk()
    for number in range(5):
        desk.store.register("c", f"d{number}")
    id = await desk.push()
    for device, state in (("d1", "processed"), ("d2", "delivered"), ("d3", "failed")):
        await desk.receipt(device, id, state)
    for state, devices in (("processed", ["d1"]), ("delivered", ["d2"]), ("failed", ["d3"]), ("pending", ["d0", "d4"]),
                           ("outstanding", ["d0", "d2", "d4"]), ("expired", []), (None, ["d0", "d1", "d2", "d3", "d4"])):
        assert await desk.devices(id, state) == devices


async def test_paging_misses_nobody_while_receipts_come_in(open_desk):
    desk = await open_desk()
    for number in range(7):
        desk.store.register("c", f"d{number}")
    id = await desk.push()
    pages, start = [], 0
    while start is not None:
        lines, start = await desk.store.lines("c", id, "outstanding", start, 2)
        pages.append([line["device"] for line in lines])
        await desk.receipt(pages[-1][0], id)
    assert pages == [["d0", "d1"], ["d2", "d3"], ["d4", "d5"], ["d6"]]


async def test_what_a_device_has_said_nothing_of_is_pending(open_desk):
    desk = await open_desk()
    desk.store.register("c", "d1")
    first, second, third, fourth = [await desk.push() for _ in range(4)]
    await desk.receipt("d1", second, "delivered")
    assert desk.store.pending("c", "d1", fourth, 3) == ([first, third, fourth], False)
    assert desk.store.pending("c", "d1", fourth, 2) == ([first, third], True)
    assert desk.store.pending("c", "d1", third, 9) == ([first, third], False)
    assert desk.store.pending("c", "d2", fourth, 9) == desk.store.pending("nowhere", "d1", fourth, 9) == ([], False)


async def _together(desk: Desk, device: str, *receipts: tuple[int, str, float | None]) -> list[object]:
    told: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
    desk.store.record_many(Bulk(device, [id for id, _, _ in receipts], [state_code(state) for _, state, _ in receipts], [None] * len(receipts), [at for *_, at in receipts]),
                           told.set_result)
    return [answer.code if isinstance(answer, Refusal) else (NAMES[answer[0]], OUTCOMES[answer[1]]) for answer in await told]


async def test_receipts_that_are_given_together_are_answered_as_they_would_be_alone(open_desk):
    desk = await open_desk()
    for channel in ("c", "other"):
        desk.store.register(channel, "d1")
    first, other, named, foreign = await desk.push(), await desk.push("other"), await desk.push(to=("d1", "a")), await desk.push("far")
    assert await _together(desk, "d1") == []
    assert await _together(desk, "d1", (first, "delivered", None), (other, "failed", None), (foreign, "processed", None), (named, "processed", None),
                           (first, "processed", None), (other, "processed", None), (1, "processed", None), (named, "delivered", None)) == [
        ("delivered", "accepted"), ("failed", "accepted"), "unknown_event", ("processed", "accepted"),
        ("processed", "accepted"), ("failed", "conflict"), "unknown_event", ("processed", "duplicate")]
    assert await desk.counts(first) == {"processed": 1}
    assert await _together(desk, "stranger", (first, "processed", None)) == ["unknown_event"]


async def test_what_many_devices_say_at_once_is_answered_to_each(open_desk):
    desk = await open_desk()
    for number in range(4):
        desk.store.register("c", f"d{number}")
    desk.store.register("other", "d0")
    id, named, other = await desk.push(), await desk.push(to=("d1", "late")), await desk.push("other")
    said = [("d0", id, "processed", b'"fine"', "c"), ("d1", id, "failed", b'"torn"', "c"), ("d1", named, "processed", None, "c"), ("d2", named, "processed", None, "c"),
            ("d2", id, "delivered", b'"fine"', None), ("d2", id, "processed", None, "c"), ("d3", id, "processed", None, "other"), ("d0", other, "processed", None, "other"),
            ("d0", id, "failed", b'"torn"', "c"), ("stranger", id, "processed", None, "c")]
    told: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
    desk.store.record_many([(device, event, state_code(state), status, None, channel) for device, event, state, status, channel in said], told.set_result)
    answers = [answer.code if isinstance(answer, Refusal) else (NAMES[answer[0]], OUTCOMES[answer[1]]) for answer in await told]
    assert answers == [("processed", "accepted"), ("failed", "accepted"), ("processed", "accepted"), "unknown_event", ("delivered", "accepted"), ("processed", "accepted"),
                       "unknown_event", ("processed", "accepted"), ("processed", "conflict"), "unknown_event"]
    assert await desk.counts(id) == {"pending": 1, "processed": 2, "failed": 1}
    lines, _ = await desk.store.lines("c", id, None, 0, 9)
    assert [(line["device"], line["status"]) for line in orjson.loads(orjson.dumps(lines))] == [("d0", "fine"), ("d1", "torn"), ("d2", "fine"), ("d3", None)]


async def test_receipts_that_are_given_together_meet_those_that_are_on_their_way(open_desk):
    desk = await open_desk()
    desk.store.register("c", "d1")
    ids = [await desk.push() for _ in range(3)]
    answers = await asyncio.gather(*(_together(desk, "d1", *[(id, state, None) for id in ids]) for state in ("processed", "processed", "failed")),
                                   desk.receipt("d1", ids[0]))
    assert answers == [[("processed", "accepted")] * 3, [("processed", "duplicate")] * 3, [("processed", "conflict")] * 3, ("processed", "duplicate")]


@pytest.mark.parametrize("at, latency", [(NOW + 30, 30), (NOW - 30, 0.0001), (NOW + 90, 60), (None, 60)])
async def test_a_receipt_may_say_when_the_device_did_it(open_desk, at, latency):
    desk = await open_desk()
    desk.store.register("c", "d1")
    id = await desk.push()
    desk.clock.now += 60
    assert await _together(desk, "d1", (id, "processed", at)) == [("processed", "accepted")]
    (line,), _ = await desk.store.lines("c", id, None, 0, 1)
    assert line["latency"] == pytest.approx(latency, rel=0.06)


# Resuming


async def test_a_device_resumes_before_the_first_event_that_it_owes(open_desk):
    desk = await open_desk()
    member = desk.store.register("c", "d1")
    shelf = desk.store.open("c")
    ids = [await desk.push() for _ in range(3)]
    assert desk.store.settled(shelf, member) == 0
    member.position = 3
    await desk.receipt("d1", ids[1])
    assert desk.store.settled(shelf, member) == 0
    await desk.receipt("d1", ids[0], "delivered")
    assert desk.store.settled(shelf, member) == 0
    await desk.receipt("d1", ids[0])
    assert desk.store.settled(shelf, member) == 2
    await desk.receipt("d1", ids[2])
    assert desk.store.settled(shelf, member) == 3


async def test_what_a_device_was_not_asked_for_it_does_not_owe(open_desk):
    desk = await open_desk()
    await desk.push()
    member = desk.store.register("c", "d1")
    member.live = 1
    await desk.push(receipt="none")
    await desk.push(to=("d2",))
    assert desk.store.settled(desk.store.open("c"), member) == 3
    await desk.push()
    assert desk.store.settled(desk.store.open("c"), member) == 3


async def test_what_has_made_way_is_owed_by_nobody(open_desk):
    desk = await open_desk(backlog_events=2, retention_events=2)
    member = desk.store.register("c", "d1")
    for _ in range(5):
        await desk.push()
    member.position = 5
    assert desk.store.settled(desk.store.open("c"), member) == 3


async def test_an_event_is_sent_again_until_its_attempts_are_used_up(open_desk):
    desk = await open_desk(max_attempts=3)
    desk.store.register("c", "d1")
    id = await desk.push()
    event = desk.store.find("c", id)
    assert desk.store.attempt(event, "d1", again=False) == 1
    assert [desk.store.attempt(event, "d1", again=True) for _ in range(3)] == [2, 3, 0]
    assert not desk.store.attempt(event, "d1", again=True)
    await desk.store.settle()
    assert await desk.counts(id) == {"expired": 1}
    assert desk.store.ledger.outstanding == 0
    assert await desk.receipt("d1", id) == ("processed", "late")


async def test_what_is_answered_or_was_never_asked_is_not_sent_again(open_desk):
    desk = await open_desk()
    desk.store.register("c", "d1")
    id = await desk.push()
    event = desk.store.find("c", id)
    desk.store.register("c", "d2")
    await desk.receipt("d1", id)
    for device in ("d1", "d2", "d3"):
        assert desk.store.attempt(event, device, again=False) is None
        assert desk.store.attempt(event, device, again=True) is None
    assert await desk.counts(id) == {"processed": 1}


async def test_an_event_addressed_to_a_device_that_was_never_seen_waits_for_it(open_desk):
    desk = await open_desk()
    await desk.push()
    accepted = await desk.accept(to=("d1", "d2", "d1"))
    await desk.push()
    assert accepted.audience == 2
    assert await desk.counts(accepted.id) == {"pending": 2}
    member, other = desk.store.register("c", "d1"), desk.store.register("c", "d3")
    assert (member.position, desk.store.settled(desk.store.open("c"), member)) == (1, 1)
    assert other.position == 3
    assert await desk.receipt("d1", accepted.id) == ("processed", "accepted")
    with pytest.raises(NotFound):
        await desk.receipt("d3", accepted.id)


async def test_what_waited_and_has_made_way_waits_no_more(open_desk):
    desk = await open_desk(backlog_events=2, retention_events=2)
    await desk.push(to=("d1",))
    await desk.push()
    await desk.push()
    assert desk.store.register("c", "d1").position == 3


# What it all weighs


async def test_events_for_many_named_devices_weigh_what_they_take_and_make_way_for_others(open_desk):
    desk = await open_desk(backlog_total_bytes=5_000_000)
    for n in range(12):
        await desk.push(f"c{n % 3}", to=tuple(f"d{n}-{k}" for k in range(1000)))
        assert desk.store.bytes <= 5_000_000
    assert 3_000_000 < desk.store.bytes
    kept = [event for name in ("c0", "c1", "c2") for event in desk.store.shelf(name).backlog]
    assert desk.store.bytes == sum(event.weight for event in kept)
    assert len(kept) == 4


async def test_an_audience_weighs_in_over_all_channels_and_costs_none_of_them_its_events(open_desk):
    desk = await open_desk(backlog_total_bytes=10_000_000, backlog_bytes=100_000, max_event_bytes=10_000)
    for n in range(5_000):
        desk.store.register("c", f"d{n}")
    for _ in range(100):
        await desk.push("c")
    assert len(desk.store.shelf("c").backlog) == 100
    assert 100 * 2 * 5_000 < desk.store.bytes < 100 * (2 * 5_000 + 700)


async def test_what_devices_say_takes_no_more_than_there_is_for_it_and_no_receipt_is_refused(open_desk):
    limit = 200_000
    desk = await open_desk(backlog_bytes=limit, max_event_bytes=1_000, backlog_total_bytes=limit, max_event_status_bytes=100_000)
    is_redis, ledger = type(desk.store).__name__ == "RedisStore", desk.store.ledger
    for number in range(40):
        desk.store.register("c", f"d{number}")
    for event in range(12):
        id = await desk.push("c")
        said = [desk.receipt(f"d{number}", id, status=f"{event}-{number}" + "x" * 1_000) for number in range(40)]
        assert await asyncio.gather(*said) == [("processed", "accepted")] * 40
        for _ in range(2):
            await desk.sweep(later=1.0)  # a file takes it in some time after it was said, and only then can it leave memory
        assert (ledger.bytes if is_redis else desk.store.bytes + ledger.bytes) <= limit + is_redis * 1_200
    assert ledger.statuses_dropped == (12 * 40 - limit // 1_155 - 1 if is_redis else 0)
    assert await desk.counts(id) == {"processed": 40}


# Devices come and go


async def test_who_registers_again_is_the_same(open_desk):
    desk = await open_desk()
    member = desk.store.register("c", "d1")
    assert desk.store.register("c", "d1") is member
    assert desk.store.devices.get("d1").channels == ("c",)


async def test_no_more_devices_are_registered_than_there_is_room_for(open_desk):
    desk = await open_desk(max_devices=2)
    desk.store.register("c", "d1")
    desk.store.register("d", "d1")
    with pytest.raises(Unavailable) as caught:
        desk.store.register("c", "d2")
    assert caught.value.retry_after
    assert desk.store.register("c", "d1")
    desk.store.unregister("d", "d1")
    assert desk.store.register("c", "d2")


async def test_who_wants_a_pattern_that_means_nothing_is_counted_and_forgotten_in_the_end(open_desk):
    desk = await open_desk(max_devices=2, device_ttl=100)
    desk.store.want("d1", "never.*")
    desk.store.want("d2", "never.*")
    desk.store.want("d2", "never.*")
    for refused in (lambda: desk.store.want("d3", "never.*"), lambda: desk.store.register("c", "d1")):
        with pytest.raises(Unavailable):
            refused()
    assert list(desk.store.devices.known) == ["d1", "d2"]
    await desk.store.settle()
    desk.clock.now += 50
    desk.store.want("d2", "never.*")
    await desk.sweep(51)
    assert list(desk.store.devices.known) == ["d2"]
    desk.store.want("d3", "never.*")


@pytest.mark.parametrize("channels", [["news"], []], ids=["on another channel", "by its pattern"])
async def test_who_comes_back_a_moment_before_it_is_given_up_is_in_the_audience_of_what_is_born_then(open_desk, channels):
    desk = await open_desk(device_ttl=100)
    desk.store.want("d", "orders.*")
    await desk.store.settle()
    desk.clock.now += 99
    Server(Config(), desk.store).hub.admit("d", channels, () if channels else ("orders.*",))
    device = desk.store.devices.known["d"]
    desk.store.devices.open(device, "a feed")
    assured: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
    desk.store.assure("d", assured.set_result)
    assert await assured is None
    # It is greeted, and no sweep has come since.
    desk.clock.now += 2
    assert (await desk.accept("orders.eu")).audience == 1


async def test_who_has_come_and_gone_between_two_sweeps_was_seen_then(open_desk):
    desk = await open_desk(device_ttl=100)
    desk.store.want("d", "orders.*")
    await desk.sweep(later=1)
    desk.clock.now += 40
    Server(Config(), desk.store).hub.admit("d", ["news"], ())
    device = desk.store.devices.known["d"]
    desk.store.devices.open(device, "a feed")
    device.seen = desk.clock.now
    desk.store.devices.close(device, "a feed")
    await desk.sweep(later=1)
    desk.clock.now += 90
    assert (await desk.accept("orders.eu")).audience == 1


async def test_who_is_away_when_a_channel_is_born_by_its_pattern_is_away_since_it_was_last_seen(open_desk):
    desk = await open_desk(device_ttl=100)
    desk.store.want("d", "orders.*")
    await desk.store.settle()
    desk.clock.now += 60
    assert (await desk.accept("orders.eu")).audience == 1
    await desk.sweep(later=50)
    await desk.store.settle()
    assert (await desk.accept("orders.eu")).audience == 0


async def test_there_is_room_for_what_a_device_may_have_and_for_what_the_store_may(open_desk):
    desk = await open_desk(max_devices=4, max_channels_per_device=3, max_channels=3)
    check = desk.store.check_room
    desk.store.register("a", "d1")
    desk.store.want("d1", "x.*")
    check("d1", ["a", "b"], ["x.*"])
    with pytest.raises(TooMany):
        check("d1", ["b", "c"], [])
    with pytest.raises(TooMany):
        check("d2", ["a"], ["x.*", "y.*", "z.*"])
    check("d2", ["a", "b"], [])
    with pytest.raises(Unavailable):
        check("d2", ["a", "b"], ["x.*"])
    check("", ["b", "c"], [])
    with pytest.raises(Unavailable):
        check("", ["b", "c", "d"], [])
    assert await desk.push("b") and await desk.push("c")
    with pytest.raises(Unavailable):
        await desk.push("d")
    check("d1", ["a", "b"], ["x.*"])
    assert sorted(desk.store.channels()) == ["a", "b", "c"]


async def test_who_wants_a_pattern_is_registered_on_what_there_is_and_on_what_is_yet_to_be_born(open_desk):
    desk = await open_desk()
    await desk.push("orders.eu")
    await desk.push("news")
    desk.store.want("d1", "orders.*")
    assert (await desk.accept("orders.eu")).audience == 1
    assert (await desk.accept("orders.us")).audience == 1
    assert (await desk.accept("news")).audience == 0
    assert (await desk.accept("orders.us.ny")).audience == 0
    assert set(desk.store.devices.get("d1").channels) == {"orders.eu", "orders.us"}


async def test_a_channel_that_is_born_takes_in_all_who_wanted_it_or_is_not_born_where_there_is_no_room_for_them(open_desk):
    desk = await open_desk(max_devices=8)
    for device in ("d1", "d2", "d3"):
        desk.store.want(device, "orders.*")
    assert (await desk.accept("orders.eu")).audience == 3
    with pytest.raises(Unavailable):
        await desk.push("orders.us")
    for device in ("", "d4"):
        with pytest.raises(Unavailable):
            desk.store.check_room(device, ["orders.us"], [])
    assert list(desk.store.channels()) == ["orders.eu"] and desk.store.devices.registrations == 6
    assert (await desk.accept("orders.eu")).audience == 3  # which there is
    assert (await desk.accept("news")).audience == 0  # which nobody wants
    desk.store.unregister("orders.eu", "d3")  # and with its last channel it goes altogether
    await desk.store.settle()
    assert (await desk.accept("orders.us")).audience == 2


async def test_what_a_device_owed_is_cancelled_when_it_goes(open_desk):
    desk = await open_desk()
    for device in ("d1", "d2"):
        desk.store.register("c", device)
        desk.store.register("d", device)
    answered, owed, elsewhere = await desk.push("c"), await desk.push("c"), await desk.push("d")
    await desk.receipt("d1", answered)
    desk.store.unregister("c", "d1")
    await desk.store.settle()
    assert await desk.counts(answered) == {"processed": 1, "pending": 1}
    assert await desk.counts(owed) == {"cancelled": 1, "pending": 1}
    assert await desk.counts(elsewhere, "d") == {"pending": 2}
    assert (await desk.accept("c")).audience == 1
    assert desk.store.ledger.outstanding == 5
    for channel, device in (("c", "d1"), ("nowhere", "d1"), ("c", "never seen")):
        desk.store.unregister(channel, device)
    assert desk.store.devices.registrations == 3


async def test_who_comes_back_owes_only_what_comes_from_then_on(open_desk):
    desk = await open_desk()
    desk.store.register("c", "d1")
    before = await desk.push(to=("d1",))
    desk.store.unregister("c", "d1")
    between = await desk.push()
    assert desk.store.register("c", "d1").position == 2
    after = await desk.push()
    assert desk.store.pending("c", "d1", after, 9) == ([after], False)
    assert await desk.devices(before) == ["d1"]
    assert await desk.devices(between) == []
    assert await desk.receipt("d1", after) == ("processed", "accepted")


async def test_a_device_that_is_removed_is_forgotten_on_all_channels(open_desk):
    desk = await open_desk()
    desk.store.want("d1", "orders.*")
    for channel in ("c", "d"):
        desk.store.register(channel, "d1")
    ids = {channel: await desk.push(channel) for channel in ("c", "d")}
    known = desk.store.remove("d1")
    await desk.store.settle()
    assert set(known.channels) == {"c", "d"}
    assert desk.store.devices.get("d1") is None
    assert desk.store.devices.removed_since("d1", desk.clock.now - 1)
    for channel, id in ids.items():
        assert await desk.counts(id, channel) == {"cancelled": 1}
        assert (await desk.accept(channel)).audience == 0
    assert (await desk.accept("orders.eu")).audience == 0
    assert desk.store.remove("d1") is None


# Time goes by


async def test_an_event_expires_when_its_ttl_is_over_and_never_early(open_desk):
    desk = await open_desk()
    for device in ("d1", "d2"):
        desk.store.register("c", device)
    id = await desk.push(ttl=60)
    await desk.receipt("d1", id)
    await desk.sweep(later=59.9)
    assert await desk.counts(id) == {"processed": 1, "pending": 1}
    assert not desk.store.find("c", id).expired
    await desk.sweep(later=1.2)
    assert await desk.counts(id) == {"processed": 1, "expired": 1}
    assert desk.store.find("c", id).expired
    assert desk.store.ledger.outstanding == 0
    assert desk.store.ledger.expired["ttl"] == 1


async def test_a_receipt_that_comes_after_the_end_wins_and_is_flagged(open_desk):
    desk = await open_desk()
    desk.store.register("c", "d1")
    id = await desk.push(ttl=60)
    await desk.sweep(later=62)
    assert await desk.receipt("d1", id, "delivered") == ("expired", "duplicate")
    assert await desk.receipt("d1", id) == ("processed", "late")
    assert await desk.counts(id) == {"processed": 1}
    (line,), _ = await desk.store.lines("c", id, None, 0, 10)
    assert line["late"]


@pytest.mark.parametrize("to", [(), ("d1", "d2", "d3", "d4")])
async def test_what_is_recalled_is_owed_by_nobody_and_what_was_answered_stands(open_desk, to):
    desk = await open_desk()
    for device in ("d1", "d2", "d3", "d4"):
        desk.store.register("c", device)
    id, other = await desk.push(to=to), await desk.push()
    await desk.receipt("d1", id)
    await desk.receipt("d2", id, "delivered")
    withdrawn: list[int] = []
    desk.store.withdraw = lambda event: withdrawn.append(event.id)
    before = (await desk.store.status("c", id))["version"]
    assert await desk.recall(id) == 3
    assert (withdrawn, desk.store.find("c", id).recalled, desk.store.find("c", other).recalled) == ([id], True, False)
    status = await desk.store.status("c", id)
    assert (status["recalled"], status["complete"], status["outstanding"], status["version"] != before) == (True, False, 0, True)
    assert await desk.counts(id) == {"processed": 1, "cancelled": 3}
    assert await desk.receipt("d3", id) == ("processed", "late")
    assert await desk.receipt("d4", id, "delivered") == ("cancelled", "duplicate")
    # Once more changes nothing, and tells nobody.
    assert (await desk.recall(id), withdrawn) == (0, [id])
    assert await desk.counts(id) == {"processed": 2, "cancelled": 2}
    assert (desk.store.ledger.outstanding, desk.store.ledger.cancelled) == (4, {"recalled": 3, "removed": 0})
    assert desk.store.attempt(desk.store.find("c", id), "d4", False) is None


async def test_an_event_that_asks_for_no_receipts_can_be_recalled_too(open_desk):
    desk = await open_desk()
    id = await desk.push(receipt="none")
    assert (await desk.recall(id), desk.store.find("c", id).recalled) == (0, True)


async def test_only_what_is_kept_can_be_recalled(open_desk):
    desk = await open_desk(backlog_events=1, retention_events=1)
    first, second = await desk.push(), await desk.push()
    await desk.sweep(later=1)
    with pytest.raises(Gone):
        await desk.recall(first)
    for id in (second + 1, 1 << 40):
        with pytest.raises((NotFound, Gone)):
            await desk.recall(id)


async def test_satisfied_and_complete_are_decided_once(open_desk):
    desk = await open_desk()
    decided: list[tuple[str, int]] = []
    desk.store.ledger.on_decision = lambda word, entry, moment: decided.append((word, entry.event.id))
    empty = await desk.push()
    for device in ("d1", "d2", "d3"):
        desk.store.register("c", device)
    none, some, light = await desk.push(need=0), await desk.push(need=2), await desk.push(need=1, receipt="delivered")
    assert decided == [("satisfied", empty), ("completed", empty), ("satisfied", none)]
    decided.clear()
    for device, state in (("d1", "delivered"), ("d1", "processed"), ("d2", "failed"), ("d3", "processed"), ("d3", "processed")):
        await desk.receipt(device, some, state)
    assert decided == [("satisfied", some), ("completed", some)]
    decided.clear()
    for device, state in (("d1", "delivered"), ("d1", "failed"), ("d2", "delivered"), ("d2", "processed"), ("d3", "failed")):
        await desk.receipt(device, light, state)
    assert decided == [("satisfied", light), ("completed", light)]
    status = await desk.store.status("c", light)
    assert (status["satisfied"], status["complete"]) == (True, True)


async def test_a_late_receipt_still_satisfies_and_completes(open_desk):
    desk = await open_desk()
    desk.store.register("c", "d1")
    id = await desk.push(ttl=10)
    await desk.sweep(later=20)
    assert ((status := await desk.store.status("c", id))["satisfied"], status["complete"]) == (False, False)
    await desk.receipt("d1", id)
    assert ((status := await desk.store.status("c", id))["satisfied"], status["complete"]) == (True, True)


async def test_who_watches_an_entry_is_told_of_every_change(open_desk):
    desk = await open_desk()
    for device in ("d1", "d2"):
        desk.store.register("c", device)
    id = await desk.push()
    entry, seen = desk.store.ledger.entries[id], []

    def look():
        seen.append(tuple(entry.counts))

    entry.watch(look)
    for state in ("delivered", "processed", "processed"):
        await desk.receipt("d1", id, state)
    await desk.recall(id)
    entry.watchers.remove(look)
    await desk.receipt("d2", id)
    assert [counts[0] for counts in seen] == [1, 1, 0]


async def test_a_device_that_was_not_seen_for_long_leaves_the_audience(open_desk):
    desk = await open_desk(device_ttl=1000)
    for device in ("gone", "answering", "listening"):
        desk.store.register("c", device)
    listening = desk.store.open("c").audience.members["listening"]
    listening.feeds = listening.live = 1
    id = await desk.push()
    desk.clock.now += 600
    await desk.receipt("answering", id)
    await desk.sweep(later=399)
    assert set(desk.store.open("c").audience.members) == {"gone", "answering", "listening"}
    await desk.sweep(later=2)
    assert set(desk.store.open("c").audience.members) == {"answering", "listening"}
    assert await desk.counts(id) == {"processed": 1, "cancelled": 1, "sent": 1}
    assert desk.store.devices.get("gone") is None


async def test_a_channel_of_which_nothing_is_kept_is_forgotten(open_desk):
    desk = await open_desk()
    for channel in ("empty", "listened", "registered"):
        desk.store.open(channel)
    desk.store.register("registered", "d1")
    await desk.push("kept")
    await desk.sweep(later=1, used="listened")
    assert set(desk.store.channels()) == {"empty", "listened", "registered", "kept"}  # a pause is not the end
    await desk.sweep(later=2 * HOUR - 2, used="listened")
    assert set(desk.store.channels()) == {"listened", "registered", "kept"}


async def test_the_counts_of_many_add_up_to_their_audiences_all_along(open_desk):
    desk = await open_desk(backlog_events=5, retention_events=5)
    for turn in range(24):
        for number in range(6):
            desk.store.register("c", f"d{number}")
        id = await desk.push(ttl=60 if turn % 3 else 600, receipt=("processed", "delivered")[turn % 2],
                             to=("d1", "d9") if turn % 5 == 4 else ())
        for number in range(turn % 6):
            if f"d{number}" in await desk.devices(id):
                await desk.receipt(f"d{number}", id, ("delivered", "processed", "failed")[(turn + number) % 3])
        if turn % 4 == 3:
            desk.store.unregister("c", f"d{turn % 6}")
        await desk.sweep(later=40)
        outstanding = 0
        for kept in desk.kept():
            status = await desk.store.status("c", kept)
            assert sum(status["counts"].values()) == status["audience"] == len(await desk.devices(kept))
            assert status["outstanding"] == len(await desk.devices(kept, "outstanding"))
            outstanding += status["outstanding"]
        assert outstanding == desk.store.ledger.outstanding


# What is followed


async def followed(desk: Desk, channel: str = "c", after: int = 0, limit: int = 100) -> list[tuple[int, str | None, str]]:
    """Event, device and state of each record, page after page."""
    found = []
    while True:
        page = await desk.store.records(channel, after, limit)
        assert len(page.records) <= limit
        numbers = [record.number for record in page.records]
        assert numbers == sorted({number for number in numbers if after < number <= page.through})
        found += [(record.event_id, record.device, NAMES[record.state]) for record in page.records]
        assert page.through > after or not page.is_more
        after = page.through
        if not page.is_more:
            return found


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_every_change_of_a_state_is_a_record(open_desk, limit):
    desk = await open_desk()
    for device in ("d1", "d2", "d3"):
        desk.store.register("c", device)
    first, short, named = await desk.push(), await desk.push(ttl=60), await desk.push(to=("d2", "unseen"))
    for device, id, state in (("d1", first, "delivered"), ("d1", first, "delivered"), ("d1", first, "processed"), ("d1", first, "failed"),
                              ("unseen", named, "failed"), ("d1", short, "processed")):
        await desk.receipt(device, id, state)
    await desk.sweep(later=100)
    await desk.receipt("d2", short)
    desk.store.unregister("c", "d2")
    await desk.store.settle()
    assert await desk.recall(first) == 1
    assert await desk.recall(first) == 0
    records = await followed(desk, limit=limit)
    assert records[:6] == [(first, "d1", "delivered"), (first, "d1", "processed"), (named, "unseen", "failed"), (short, "d1", "processed"),
                           (short, None, "expired"), (short, "d2", "processed")]
    assert sorted(records[6:8]) == [(first, "d2", "cancelled"), (named, "d2", "cancelled")]
    assert records[8:] == [(first, None, "cancelled")]
    assert await followed(desk, "other") == []


async def test_a_record_says_what_was_said_when_and_how_late(open_desk):
    desk = await open_desk()
    for device in ("d1", "d2"):
        desk.store.register("c", device)
    id = await desk.push(ttl=60)
    desk.clock.now += 1.5
    await desk.receipt("d1", id, status={"n": 1})
    await desk.sweep(later=100)
    await desk.receipt("d2", id)
    records = (await desk.store.records("c", 0, 10)).records
    assert [(record.device, record.status, record.late, record.at - NOW, record.latency) for record in records] == [
        ("d1", b'{"n":1}', False, pytest.approx(1.5), pytest.approx(1.5)), (None, None, False, pytest.approx(101.5), None),
        ("d2", None, True, pytest.approx(101.5), pytest.approx(101.5))]


async def test_whoever_follows_is_told_when_there_is_more_and_nothing_before(open_desk):
    desk = await open_desk()
    for channel in ("c", "other"):
        desk.store.register(channel, "d1")
    ids = [await desk.push("c"), await desk.push("other")]
    before = desk.store.newest_record
    assert desk.store.on_receipts is None
    told: list[tuple[str, bool]] = []
    desk.store.on_receipts = lambda channel: told.append((channel, desk.store.newest_record > before))
    await desk.receipt("d1", ids[0])
    await desk.store.settle()
    assert set(told) == {("c", True)}
    before = desk.store.newest_record
    await desk.receipt("d1", ids[0])
    assert desk.store.newest_record == before
    await desk.receipt("d1", ids[1], channel="other")
    await desk.store.settle()
    assert set(told) == {("c", True), ("other", True)}
    assert await followed(desk, "c", before) == []
    assert await followed(desk, "other", before) == [(ids[1], "d1", "processed")]
    assert await followed(desk, None, 0) == [(ids[0], "d1", "processed"), (ids[1], "d1", "processed")]
    assert await followed(desk, None, before) == [(ids[1], "d1", "processed")]


async def test_a_number_that_nobody_can_vouch_for_says_so(open_desk):
    desk = await open_desk()
    desk.store.register("c", "d1")
    await desk.receipt("d1", await desk.push())
    newest = desk.store.newest_record
    page = await desk.store.records("c", newest + 1, 10)
    assert (page.records, page.through, page.is_more, page.is_lost) == ([], newest, False, True)
    for after in (0, newest):
        assert not (await desk.store.records("c", after, 10)).is_lost
