"""Following the receipts of a channel: each exactly once and in order, over reconnections, restarts and kills."""

import asyncio
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
import wire
from processes import Served, free_port
from redises import MEMORY_AND_REDIS, named

from pere import followers
from pere.config import Config
from pere.event import parse_id
from pere.parts import open_store
from pere.receipt import PROCESSED
from pere.storage.sqlite import SqliteStore

FIELDS = ["id", "event_id", "channel", "device", "state", "status", "late", "at", "latency"]


async def followed(port: int, channel: str = "c", last: str = "", version: str = "1.1", buffer: int = 0, **query: object) -> wire.Feed:
    """A feed of receipts that has said its `pere.hello`."""
    named = {name.rstrip("_"): value for name, value in query.items()}
    target = f"/receipts/{channel}" + ("?" + urlencode(named) if named else "")
    return await wire.opened(port, target, {"Last-Event-ID": last} if last else {}, version, buffer)


async def told(feed: wire.Feed, count: int) -> list[tuple[Any, ...]]:
    """Event, device and state of the next ones."""
    return [(each["event_id"], each["device"], each["state"]) for each in [orjson.loads(data) for data in await feed.events(count)]]


def on_disk(folder: Path, **config: Any) -> SqliteStore:
    return SqliteStore(Config(**config), time.time, str(folder / "pere.db"))


@pytest.fixture(params=["memory", "sqlite", "redis"])
def serve(request, start, tmp_path):
    """`server = await serve(heartbeat=1)`: on either store."""

    async def serve(**config):
        return await start(open_store(Config(store=named(request.param, tmp_path), **config)), **config)

    return serve


@pytest.fixture
def follow(start):
    feeds: list[wire.Feed] = []

    async def follow(*channel: str, **wanted: Any) -> wire.Feed:
        feeds.append(await followed(await start.port(), *channel, **wanted))
        return feeds[-1]

    yield follow
    for feed in feeds:
        feed.close()


@pytest.fixture
def answer(feedback):
    """`await answer(id, "d1", "d2", state="failed")`: receipts that are taken."""

    async def answer(id: str, *devices: str, channel: str = "c", **said: Any) -> None:
        for device in devices:
            assert (await feedback(channel, device, id, **said)).status == 200

    return answer


# What is told


async def test_a_receipt_is_told_with_all_that_is_known_of_it(serve, listen, push, feedback, follow):
    server = await serve()
    await listen("c", device="d")
    feed = await follow()
    id = await push("c")
    event = server.store.find("c", parse_id(id))
    server.store.clock = lambda: event.time + 1.5
    await feedback("c", "d", id, state="failed", status={"paper": 0})
    message = await feed.event()
    receipt = orjson.loads(message.data)
    assert (message.event, message.id) == ("receipt", receipt["id"])
    assert list(receipt) == FIELDS
    assert int(receipt.pop("id")) > int(feed.hello["position"])
    assert receipt.pop("at").endswith("Z")
    assert receipt == {"event_id": id, "channel": "c", "device": "d", "state": "failed", "status": {"paper": 0}, "late": False, "latency": 1.5}


@pytest.mark.parametrize("after, counts", [(-50, 0), (5, 5), (50, 20)], ids=["before it", "meanwhile", "later than now"])
async def test_a_device_did_it_neither_before_there_was_the_event_nor_later_than_now(serve, listen, push, ask, follow, after, counts):
    server = await serve()
    await listen("c", device="d")
    began = server.store.clock()
    server.store.clock = lambda: began
    feed, ids = await follow(), [await push("c") for _ in range(3)]
    server.store.clock = lambda: began + 20
    at = datetime.fromtimestamp(began + after, UTC).isoformat()
    assert (await ask("POST", "/feedback/c", {"at": at}, Device="d", Last_Event_ID=ids[0])).status == 200
    assert (await ask("POST", "/feedback", {"receipts": [{"event_id": id, "at": at} for id in ids[1:]]}, Device="d")).status == 200
    for receipt in [orjson.loads(data) for data in await feed.events(3)]:
        assert datetime.fromisoformat(receipt["at"]).timestamp() == pytest.approx(began + counts, abs=0.002)
        assert receipt["latency"] == pytest.approx(counts, abs=0.002)


async def test_only_what_changed_a_state_is_told(serve, listen, push, feedback, follow):
    await serve()
    feed = await follow()
    for device in ("d", "e"):
        await listen("c", device=device)
    id = await push("c")
    for state, device in (("delivered", "d"), ("delivered", "d"), ("processed", "d"), ("delivered", "d"), ("processed", "d"), ("failed", "d"), ("failed", "e")):
        await feedback("c", device, id, state=state)
    await feedback("c", "stranger", id)
    assert await told(feed, 3) == [(id, "d", "delivered"), (id, "d", "processed"), (id, "e", "failed")]


async def test_many_in_one_request_are_told_each(serve, listen, push, ask, follow):
    await serve()
    for channel in ("c", "other"):
        await listen(channel, device="d")
    feed, other = await follow(), await follow("other")
    ids = [await push("c"), await push("other"), await push("c")]
    receipts = [{"event_id": ids[0], "state": "delivered"}, {"event_id": ids[0]}, {"event_id": ids[1]}, {"event_id": "5-0"}, {"event_id": ids[2]}, {"event_id": ids[2]}]
    assert (await ask("POST", "/feedback", {"receipts": receipts}, Device="d")).status == 200
    assert sorted(await told(feed, 3)) == [(ids[0], "d", "delivered"), (ids[0], "d", "processed"), (ids[2], "d", "processed")]
    assert await told(other, 1) == [(ids[1], "d", "processed")]


@pytest.mark.parametrize("level, late", [("processed", [False, False, True]), ("delivered", [False, True, True])])
async def test_what_the_server_ended_is_told_and_what_came_late(serve, listen, push, answer, follow, level, late):
    server = await serve()
    feed = await follow()
    for device in ("d", "e", "f"):
        await listen("c", device=device)
    id = await push("c", ttl=60, receipt=level)
    await answer(id, "f", state="processed")
    if level == "processed":
        await answer(id, "d", state="delivered")
    now = server.store.clock()
    server.store.clock = lambda: now + 100
    server.store.sweep(now + 100, server.hub.is_used)
    await server.store.settle()
    if level == "delivered":
        await answer(id, "d", state="delivered")
    await answer(id, "d", state="processed")
    live = await feed.events(4)
    receipts = [orjson.loads(data) for data in live]
    (ended,) = [receipt for receipt in receipts if receipt["device"] is None]
    assert (ended["state"], ended["status"], ended["latency"]) == ("expired", None, None)
    assert [(receipt["device"], receipt["late"]) for receipt in receipts if receipt is not ended] == list(zip("fdd", late, strict=True))
    assert await (await follow(from_="all")).events(4) == live


async def test_a_recall_and_a_device_that_is_removed_are_told(serve, listen, push, answer, ask, follow):
    server = await serve()
    feed = await follow()
    for device in ("d", "e"):
        await listen("c", device=device)
    first, second, addressed = await push("c"), await push("c"), await push("c", to="d")
    await answer(first, "e")
    for _ in range(2):
        assert (await ask("DELETE", f"/events/c/{first}")).status == 200
    assert (await ask("DELETE", "/admin/devices/d")).status == 204
    await server.store.settle()
    await answer(second, "e")
    assert await told(feed, 5) == [(first, "e", "processed"), (first, None, "cancelled"), (second, "d", "cancelled"), (addressed, "d", "cancelled"),
                                   (second, "e", "processed")]


async def test_attempts_that_are_used_up_are_told(serve, listen, push, follow, until):
    server = await serve(max_attempts=1)
    feed = await follow()
    id = None
    for _ in range(2):
        device = await listen("c", device="d")
        id = id or await push("c")
        device.close()
        await until(lambda: not server.hub.feeds)
    assert await told(feed, 1) == [(id, "d", "expired")]


async def test_an_end_that_met_a_receipt_on_its_way_is_not_told(serve, listen, push, ask, follow, feedback, get):
    server = await serve()
    feed = await follow()
    await listen("c", device="d")
    await listen("c", device="e")
    seen: list[dict[str, Any]] = []
    for _ in range(20):
        id = await push("c", ttl=60)
        now = server.store.clock()
        server.store.clock = lambda now=now: now + 100
        receipt = asyncio.ensure_future(feedback("c", "d", id))
        delivered = asyncio.ensure_future(feedback("c", "e", id, state="delivered"))
        await asyncio.sleep(0.001)
        server.store.sweep(now + 100, server.hub.is_used)
        recalled = asyncio.ensure_future(ask("DELETE", f"/events/c/{id}"))
        await asyncio.gather(receipt, delivered, recalled)
        server.store.clock = lambda now=now: now
    await feedback("c", "d", await push("c"), status="last")
    while not seen or seen[-1]["status"] != "last":
        seen.append(orjson.loads((await feed.event()).data))
    for id in {each["event_id"] for each in seen[:-1]}:
        steps = [(each["device"], each["state"]) for each in seen if each["event_id"] == id]
        counts = {state: count for state, count in (await get(f"/events/c/{id}"))["counts"].items() if count}
        # What was told one after the other is what stands.
        stands = dict.fromkeys("de", "pending")
        for device, state in steps:
            if device is None:
                assert set(stands.values()) & {"pending", "delivered"}, steps
                stands = {name: state if stood in ("pending", "delivered") else stood for name, stood in stands.items()}
            else:
                assert stands[device] != state, steps
                stands[device] = state
        assert counts == {state: list(stands.values()).count(state) for state in stands.values()}, steps


# Where it begins


async def test_it_begins_at_what_is_new_at_all_or_after_an_id(serve, listen, push, answer, follow):
    await serve()
    for channel in ("c", "other"):
        await listen(channel, device="d")
    ids = []
    for _ in range(4):
        ids.append(await push("c"))
        await answer(ids[-1], "d")
        await answer(await push("other"), "d", channel="other")
    every = await follow(from_="all")
    numbers = [(await every.event()).id for _ in ids]
    assert numbers == sorted(set(numbers), key=int)
    new, after = await follow(), await follow(from_=numbers[1])
    resumed = [await follow(last=numbers[1]), await follow(last_event_id=numbers[1]), await follow(last=numbers[1], last_event_id=numbers[3], from_="all")]
    assert {feed.hello["position"] for feed in (after, *resumed)} == {numbers[1]}
    ids.append(await push("c"))
    await answer(ids[-1], "d")
    for feed, known in ((every, 4), (new, 4), (after, 2), *((feed, 2) for feed in resumed)):
        assert await told(feed, 5 - known) == [(id, "d", "processed") for id in ids[known:]]
        assert feed.controls == []


async def test_who_breaks_off_after_hello_or_a_heartbeat_goes_on_from_there(serve, listen, push, answer, follow):
    await serve(heartbeat=0.2)
    await listen("c", device="d")
    await listen("other", device="d")
    feed = await follow()
    await answer(await push("other"), "d", channel="other")
    while int(feed.decoder.last_id or 0) <= int(feed.hello["position"]):  # a heartbeat may have been on its way
        await feed.comment()
    ids = [await push("c") for _ in range(2)]
    for id in ids:
        await answer(id, "d")
    for last in (feed.hello["position"], feed.decoder.last_id):
        again = await follow(last=last)
        assert await told(again, 2) == [(id, "d", "processed") for id in ids]
        assert again.controls == []


async def test_http_1_0_gets_it_without_chunks(serve, listen, push, answer, follow):
    await serve()
    await listen("c", device="d")
    feed = await follow(version="1.0")
    assert (feed.answer_head.headers["connection"], "transfer-encoding" in feed.answer_head.headers) == ("close", False)
    id = await push("c")
    await answer(id, "d")
    assert await told(feed, 1) == [(id, "d", "processed")]


async def test_a_channel_that_is_not_there_yet_can_be_followed(serve, listen, push, answer, follow):
    server = await serve()
    feed = await follow("later", from_="all")
    assert feed.hello["channel"] == "later"
    await listen("later", device="d")
    id = await push("later")
    await answer(id, "d", channel="later")
    assert await told(feed, 1) == [(id, "d", "processed")]
    assert server.followers.gaps == 0


# Gaps


async def test_a_channel_of_which_all_has_made_way_for_others_is_a_gap_too(start, listen, push, answer, follow):
    await start(receipts_kept=4)
    for channel in ("c", "other"):
        await listen(channel, device="d")
    every = await follow(from_="all")
    for _ in range(2):
        await answer(await push("c"), "d")
    first, _ = (await every.event()).id, await every.event()
    for _ in range(12):
        await answer(await push("other"), "d", channel="other")
    assert (await (await follow(last=first)).control("pere.gap"))["from"] == first


@MEMORY_AND_REDIS
async def test_what_made_way_is_told_as_a_gap(start, listen, push, answer, follow):
    await start(receipts_kept=3)
    await listen("c", device="d")
    every = await follow(from_="all")
    ids = [await push("c") for _ in range(6)]
    for id in ids:
        await answer(id, "d")
    numbers = [(await every.event()).id for _ in ids]
    feed = await follow(last=numbers[0])
    assert await feed.control("pere.gap") == {"channel": "c", "from": numbers[0], "to": numbers[3], "lost": None}
    assert await told(feed, 3) == [(id, "d", "processed") for id in ids[3:]]
    for feed in (await follow(last=numbers[2]), await follow(from_="all")):
        assert await told(feed, 3) == [(id, "d", "processed") for id in ids[3:]]
        assert feed.controls == []


async def test_receipts_for_events_that_are_no_longer_kept_are_a_gap(start, listen, push, answer, follow, tmp_path, until):
    server = await start(on_disk(tmp_path, retention_events=2))
    await listen("c", device="d")
    every = await follow(from_="all")
    oldest = await push("c")
    await answer(oldest, "d")
    number = (await every.event()).id
    ids = [await push("c") for _ in range(4)]
    for id in ids[-2:]:
        await answer(id, "d")
    await until(lambda: server.store.shelf("c").gone_id >= server.store.shelf("c").backlog.evicted_id and len(server.store.shelf("c").backlog) == 2)
    feed = await follow(last=str(int(number) - 1) if int(number) > 1 else number)
    again = await follow(from_="all")
    assert await told(again, 2) == [(id, "d", "processed") for id in ids[-2:]]
    assert again.controls == []
    assert await told(feed, 2) == [(id, "d", "processed") for id in ids[-2:]]


async def test_a_number_that_was_never_given_is_a_gap_and_misses_nothing_that_comes(serve, listen, push, answer, follow):
    await serve()
    await listen("c", device="d")
    feed = await follow(last="9" * 18)
    assert await feed.control("pere.gap") == {"channel": "c", "from": "9" * 18, "to": None, "lost": None}
    id = await push("c")
    await answer(id, "d")
    assert await told(feed, 1) == [(id, "d", "processed")]


async def test_a_number_from_an_earlier_life_of_a_memory_store_is_a_gap(start, listen, push, answer, follow):
    await start()
    await listen("c", device="d")
    feed = await follow()
    await answer(await push("c"), "d")
    last = (await feed.event()).id
    await start()
    await listen("c", device="d")
    again = await follow(last=last)
    assert (await again.control("pere.gap"))["from"] == last
    id = await push("c")
    await answer(id, "d")
    assert await told(again, 1) == [(id, "d", "processed")]


# Many, and slow


async def many(start, count: int, size: int = 100) -> tuple[list[str], set[tuple[str, str]]]:
    """Receipts of 100 devices for so many events, all in one turn of the loop. Returns the events, and who answered for which."""
    server, devices = start.servers[-1], [f"d{number}" for number in range(100)]
    for device in devices:
        server.store.register("c", device)
    ids = [(await wire.push(server.port, "c", number)).json["id"] for number in range(count)]
    left = asyncio.Event()
    answers: list[tuple[int, int]] = []

    def then(state: int, outcome: int) -> None:
        answers.append((state, outcome))
        if len(answers) == count * len(devices):
            left.set()

    for id in ids:
        for device in devices:
            server.store.record("c", device, parse_id(id), PROCESSED, b'"%s"' % (size * b"x"), then, pytest.fail)
    await left.wait()
    return ids, {(id, device) for id in ids for device in devices}


async def test_ten_thousand_at_once_all_arrive(serve, follow, start):
    await serve()
    feeds = [await follow(), await follow(), await follow(version="1.0")]
    _, expected = await many(start, 100)
    seen = []
    for feed in (*feeds, await follow(from_="all")):
        messages = [await feed.event() for _ in range(10_000)]
        numbers = [int(message.id) for message in messages]
        assert numbers == sorted(set(numbers))
        assert {(receipt["event_id"], receipt["device"]) for receipt in map(orjson.loads, (message.data for message in messages))} == expected
        seen.append(numbers)
    assert seen[1:] == seen[:-1]


async def test_a_reading_that_fails_is_said_and_done_again_for_all_who_wait_for_it(start, listen, push, answer, follow, until, monkeypatch, caplog):
    monkeypatch.setattr(followers, "AGAIN", 0.01)
    server = await start()
    await listen("c", device="d")
    feeds = [await follow("c") for _ in range(2)]
    id = await push("c")
    with monkeypatch.context() as broken:
        broken.setattr(server.store, "records", lambda *_: 1 / 0)
        await answer(id, "d")
        await until(lambda: "ZeroDivisionError" in caplog.text)
    for feed in feeds:
        assert await told(feed, 1) == [(id, "d", "processed")]
    caplog.clear()


async def test_one_that_reads_slowly_gets_all_and_delays_nobody(serve, follow, start, until):
    server = await serve()
    slow, quick = await follow(buffer=4096), await follow()
    _, expected = await many(start, 60, size=1000)
    messages = [await quick.event() for _ in range(6_000)]
    (state,) = [each for each in server.followers._channels["c"] if each.feed.stuck_since]
    assert state.position < int(messages[-1].id)
    assert state.feed.waiting() < 256 * 1024
    assert [(await slow.event()).id for _ in range(6_000)] == [message.id for message in messages]
    await until(lambda: state.is_idle)


async def test_one_that_takes_nothing_is_cut_off_and_goes_on_later(serve, follow, start, until, measured):
    server = await serve(stuck_after=1, heartbeat=0.5)
    feed = await follow(buffer=4096)
    await many(start, 100)
    await until(lambda: not server.followers.count)
    metrics = await measured()
    assert (metrics["pere_receipt_feed_closes_total", "slow"], metrics["pere_receipt_feeds"]) == (1, 0)
    seen = [message.id for message in await feed.end() if message.event == "receipt"]
    again = await follow(last=seen[-1])
    seen += [(await again.event()).id for _ in range(10_000 - len(seen))]
    assert seen == [(await each.event()).id for each in [await follow(from_="all")] for _ in range(10_000)]


# How it is asked for, and how it ends


@pytest.mark.parametrize("target, headers, error", [
    ("/receipts/a%20b", {}, (400, "bad_channel")),
    ("/receipts/a/b", {}, (400, "bad_channel")),
    ("/receipts/", {}, (400, "bad_channel")),
    ("/receipts/a*", {}, (400, "bad_channel")),
    ("/receipts/%FF", {}, (400, "bad_encoding")),
    ("/receipts", {}, (404, "not_found")),
    ("/receipts/c?x=%FF", {}, (400, "bad_query")),
    ("/receipts/c", {"Last-Event-ID": "1-0"}, (400, "bad_receipt_id")),
    ("/receipts/c", {"Last-Event-ID": "-1"}, (400, "bad_receipt_id")),
    ("/receipts/c", {"Last-Event-ID": "9" * 19}, (400, "bad_receipt_id")),
    ("/receipts/c", {"Last-Event-ID": "\u0661"}, (400, "bad_receipt_id")),
    ("/receipts/c?last_event_id=01", {}, (400, "bad_receipt_id")),
    ("/receipts/c?from=", {}, (400, "bad_receipt_id")),
    ("/receipts/c?from=old", {}, (400, "bad_receipt_id")),
    ("/receipts/c?from=1.5", {}, (400, "bad_receipt_id")),
    ("/receipts/c", {"Content-Length": "1"}, (413, "large_body")),
])
async def test_what_is_asked_for_wrongly_is_refused_and_says_why(start, ask, target, headers, error):
    server = await start()
    assert (await ask("GET", target, **{name.replace("-", "_"): value for name, value in headers.items()})).error == error
    assert server.followers.count == 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_it_is_only_read(ask, method):
    answer = await ask(method, "/receipts/c")
    assert (answer.error, answer.headers["allow"]) == ((405, "wrong_method"), "GET, HEAD, OPTIONS")


async def test_head_options_and_cors(start, ask, connect):
    await start(cors_origins="https://a.example")
    answer = await ask("HEAD", "/receipts/c")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    assert (await ask("HEAD", "/receipts/a%20b")).status == 400
    assert (await ask("OPTIONS", "/receipts/c")).headers["allow"] == "GET, HEAD, OPTIONS"
    line = await connect()
    await line.send(wire.said("GET", "/receipts/c", b"", {"Origin": "https://a.example"}))
    assert (await line.head()).headers["access-control-allow-origin"] == "https://a.example"


@MEMORY_AND_REDIS
async def test_they_count_into_the_feeds_and_leave_nothing_behind(start, ask, listen, follow, until, measured, push, answer):
    server = await start(max_feeds=2)
    device, feed = await listen("c", device="d"), await follow()
    for target in ("/feed/c", "/receipts/c"):
        refused = await ask("GET", target)
        assert (refused.error, refused.headers["retry-after"]) == ((503, "too_many_feeds"), "5")
    await answer(await push("c"), "d")
    await feed.event()
    metrics = await measured()
    assert (metrics["pere_receipt_feeds"], metrics["pere_receipts_written_total"], metrics["pere_feeds"]) == (1, 1, 1)
    feed.close()
    await until(lambda: not server.followers.count)
    followers = server.followers
    assert (followers._channels, followers._reads, followers._tasks, server.store.on_receipts, followers.closes["gone"]) == ({}, {}, set(), None, 1)
    device.close()


async def test_it_is_told_when_the_server_ends(serve, follow, start):
    server = await serve(retry=10)
    feeds = [await follow(), await follow(version="1.0")]
    start.servers.remove(server)
    await server.stop()
    for feed in feeds:
        told = await feed.control("pere.bye")
        assert (told["reason"], 10 <= told["retry"] <= 20, await feed.end()) == ("drain", True, [])
    assert feeds[0].is_whole


# Over restarts and kills


async def answered(port: int, device: str, ids: list[str], taken: list[tuple[str, str]]) -> None:
    """A device answers for these, one after the other; what was answered 200 is noted."""
    for id in ids:
        try:
            answer = await wire.request(port, "POST", "/feedback/c", b"", Device=device, Last_Event_ID=id)
        except (OSError, EOFError):
            return
        if answer.status == 200 and not answer.json["duplicate"]:
            taken.append((id, device))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_follower_sees_every_receipt_once_and_in_order_whatever_happens_to_the_server(tmp_path, how):
    port, devices, rounds = free_port(), [f"d{number}" for number in range(8)], 4
    seen: list[tuple[str, str, str]] = []
    taken: list[tuple[str, str]] = []
    sent: set[tuple[str, str]] = set()
    last = ""
    for turn in range(rounds + 1):
        with Served("--store", f"sqlite:{tmp_path}/pere.db", "--retry", "0.1", port=port) as served:
            feed = await followed(port, last=last, **({} if last else {"from_": "all"}))
            reader = None
            try:
                for device in devices:
                    (await wire.listen(port, "c", device=device)).close()
                ids = [(await wire.push(port, "c", number)).json["id"] for number in range(25 if turn < rounds else 1)]
                sent |= {(id, device) for id in ids for device in devices}

                async def read(feed=feed) -> None:
                    while (message := await feed.next()) is not None:
                        if message.event == "receipt":
                            receipt = orjson.loads(message.data)
                            assert receipt["id"] == message.id
                            seen.append((message.id, receipt["event_id"], receipt["device"]))

                reader = asyncio.ensure_future(read())
                answers = asyncio.gather(*(answered(port, device, ids, taken) for device in devices))
                if turn < rounds:
                    while len(taken) < 60 * (turn + 1):
                        await asyncio.sleep(0.001)
                    # In the middle of it all, and the follower too.
                    if turn % 2:
                        feed.close()
                        reader.cancel()
                        await asyncio.gather(reader, return_exceptions=True)
                    await asyncio.to_thread(served.end, how)
                    await answers
                    if not turn % 2:
                        await reader
                else:
                    await answers
                    while not set(taken) <= {(id, device) for _, id, device in seen}:
                        await asyncio.sleep(0.01)
            finally:
                if reader is not None:
                    reader.cancel()
                    await asyncio.gather(reader, return_exceptions=True)
                feed.close()
        last = seen[-1][0] if seen else ""
        assert feed.controls == []
    numbers = [int(number) for number, _, _ in seen]
    assert numbers == sorted(set(numbers))
    told_of = [(id, device) for _, id, device in seen]
    assert len(told_of) == len(set(told_of))
    # What was answered was told. A receipt may be kept though its answer was lost.
    assert set(taken) <= set(told_of) <= sent
