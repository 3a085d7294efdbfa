"""Sending again: what is not answered in time, what a device wants again, and how much may be under way at once.

Time is handed in: `await later(11)` lets so many seconds pass for all deadlines, and no more than a moment for anybody else.
"""

import asyncio
import random
import socket
import time
from typing import Any

import orjson
import pytest
import wire
from passing import passes
from redises import named

from pere import redelivery
from pere.care import Care
from pere.config import Config
from pere.errors import Unavailable
from pere.event import parse_id
from pere.parts import open_store
from pere.receipt import DELIVERED, PROCESSED
from pere.server import Server
from pere.storage.sqlite import SqliteStore

ACK = 10  # seconds: so long a test never takes by itself


@pytest.fixture(params=["memory", "sqlite", "redis"])
def serve(request, start, tmp_path):
    """`server = await serve(max_attempts=2)`: a server on each kind of store."""

    async def serve(**settings: Any) -> Server:
        settings = {"heartbeat": 3600} | settings
        return await start(open_store(Config(store=named(request.param, tmp_path), **settings)), **settings)

    return serve


@pytest.fixture
def later(start):
    """`await later(11)`: what was to be done within so many seconds is done."""

    async def later(seconds: float) -> None:
        server = start.servers[-1]
        passes(server.wheel, seconds)
        await done(server)

    return later


async def done(server: Server) -> None:
    """What is due is done, and what that queued in the store too."""
    await asyncio.sleep(0)
    while server.hub.redelivery._is_called:
        await asyncio.sleep(0)
    await server.store.settle()
    await asyncio.sleep(0)


def is_silent(feed: wire.Feed) -> bool:
    """Nothing was written to the feed that was not read."""
    if feed._messages or feed._rest:
        return False
    try:
        feed.sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    return False


async def told(feed: wire.Feed) -> tuple[Any, int]:
    """What the next envelope holds, and which attempt it is."""
    event = orjson.loads((await feed.event()).data)
    return event["data"], event["attempt"]


def careful(server: Server) -> list[Care]:
    return [feed.care for feed in server.hub.feeds.values() if feed.care is not None]


async def say(feedback, device: str, id: str, state: str, channel: str = "c", **more: Any) -> dict[str, Any]:
    answer = await feedback(channel, device, id, state=state, **more)
    assert answer.status == 200, answer
    return answer.json


PENDING = {"state": "pending", "duplicate": False}


# In time, or again


async def test_what_is_not_answered_in_time_comes_again_in_the_stream_without_an_id(serve, listen, push, later, measured):
    await serve()
    feed = await listen("c", device="d", format="envelope", ack_wait=ACK)
    id = await push("c", 7)
    assert await told(feed) == (7, 1)
    await later(ACK - 1)
    assert is_silent(feed)
    await later(2)
    assert await told(feed) == (7, 2)
    assert (feed.text.count(b"id: "), feed.decoder.last_id) == (1, id)
    metrics = await measured()
    assert [metrics["pere_redeliveries_total", reason] for reason in ("ack_wait", "resume", "retry")] == [1, 0, 0]


async def test_the_shortest_wait_is_met_by_the_clock_on_the_wall_and_never_early(serve, listen, push):
    await serve()
    feed = await listen("c", device="d", format="envelope", ack_wait=0.1)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await push("c", 7)
    assert await told(feed) == (7, 1)
    assert await told(feed) == (7, 2)
    assert loop.time() - began >= 0.1


async def test_a_raw_feed_is_closed_and_gets_it_again_when_it_returns(serve, listen, push, later, get, measured):
    await serve()
    feed = await listen("c", device="d", ack_wait=ACK)
    id = await push("c", 7)
    assert (await feed.event()).id == id
    await later(ACK + 1)
    bye = await feed.control("pere.bye")
    assert bye["reason"] == "redeliver"
    assert 0 < bye["retry"] <= 0.5
    assert (await feed.next(), feed.is_whole) == (None, True)
    feed = await listen("c", device="d", ack_wait=ACK, last=id)
    assert (await feed.event()).id == id
    line, = (await get(f"/events/c/{id}/devices"))["devices"]
    assert line["attempt"] == 2
    metrics = await measured()
    assert [metrics["pere_redeliveries_total", reason] for reason in ("resume", "ack_wait")] == [1, 0]
    assert metrics["pere_feed_closes_total", "redeliver"] == 1


async def test_a_raw_feed_that_owes_much_is_closed_once(serve, listen, push, later):
    server = await serve()
    feed = await listen("c", device="d", ack_wait=ACK)
    for n in range(3):
        await push("c", n)
    await feed.events(3)
    await later(ACK + 1)
    assert (await feed.control("pere.bye"))["reason"] == "redeliver"
    assert (await feed.next(), server.hub.closes["redeliver"]) == (None, 1)


async def test_after_the_last_attempt_it_is_expired_and_counted(serve, listen, push, later, get, measured):
    await serve(max_attempts=3)
    feed = await listen("c", device="d", format="envelope", ack_wait=ACK)
    id = await push("c", 7)
    for attempt in (1, 2, 3):
        assert await told(feed) == (7, attempt)
        assert (await get(f"/events/c/{id}"))["counts"]["expired"] == 0
        await later(ACK + 1)
    status = await get(f"/events/c/{id}")
    assert (status["counts"]["expired"], status["outstanding"], status["audience"]) == (1, 0, 1)
    await later(ACK + 1)
    assert is_silent(feed)
    metrics = await measured()
    assert (metrics["pere_expired_total", "attempts"], metrics["pere_redeliveries_total", "ack_wait"]) == (1, 2)


async def test_a_raw_feed_has_no_more_attempts_than_any_other(serve, listen, push, later, get):
    await serve(max_attempts=2)
    id = ""
    for _ in range(2):
        feed = await listen("c", device="d", ack_wait=ACK)
        id = id or await push("c", 7)
        await feed.event()
        await later(ACK + 1)
        assert (await feed.control("pere.bye"))["reason"] == "redeliver"
    feed = await listen("c", device="d", ack_wait=ACK)
    await later(ACK + 1)
    assert is_silent(feed)
    assert (await get(f"/events/c/{id}"))["counts"]["expired"] == 1


async def test_what_is_answered_does_not_come_again(serve, listen, push, later, feedback):
    server = await serve()
    feed = await listen("c", device="d", format="envelope", ack_wait=ACK)
    ids = [await push("c", n) for n in range(3)]
    for id, state in zip(ids, ("processed", "failed", "delivered"), strict=True):
        await say(feedback, "d", id, state)
    await feed.events(3)
    assert [len(care.under_way) for care in careful(server)] == [1]
    await later(ACK + 1)
    assert await told(feed) == (2, 2)
    assert is_silent(feed)


async def test_hello_tells_what_was_agreed(listen):
    assert [(feed.hello["ack_wait"], feed.hello["window"]) for feed in (
        await listen("c", device="d", ack_wait=2.5, window=3), await listen("c", "d", device="d", ack_wait="0.1"),
        await listen("c", device="d", window=10_000), await listen("c", device="d", ack_wait=0, window=0))] == [
        (2.5, 3), (0.1, None), (None, 10_000), (None, None)]


@pytest.mark.parametrize("query, error", [
    ("ack_wait=5", "no_device"), ("window=5", "no_device"),
    *((f"device=d&ack_wait={bad}", "bad_ack_wait") for bad in ("-1", "nan", "inf", "3600.1", "0.05", "1e2", "x", "+1", "%D9%A1")),
    *((f"device=d&window={bad}", "bad_window") for bad in ("-1", "1.5", "10001", "all", "%D9%A1", "99999999999999999999")),
])
async def test_what_cannot_be_agreed_is_refused(ask, query, error):
    assert (await ask("GET", f"/feed/c?{query}")).error == (400, error)


async def test_what_asks_for_no_receipt_neither_waits_nor_fills_the_window(serve, listen, push, later):
    server = await serve()
    feed = await listen("c", device="d", format="envelope", ack_wait=ACK, window=1)
    for n in range(3):
        await push("c", n, receipt="none")
    await push("c", 3)
    assert [await told(feed) for _ in range(4)] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert [len(care.under_way) for care in careful(server)] == [1]
    await later(ACK + 1)
    assert await told(feed) == (3, 2)
    assert is_silent(feed)


async def test_delivered_is_enough_where_no_more_was_asked_for(serve, listen, push, later, feedback):
    await serve()
    feed = await listen("c", device="d", format="envelope", ack_wait=ACK, window=1)
    id = await push("c", 1, receipt="delivered")
    await push("c", 2)
    assert await told(feed) == (1, 1)
    await say(feedback, "d", id, "delivered")
    assert await told(feed) == (2, 1)
    await later(ACK + 1)
    assert await told(feed) == (2, 2)
    assert is_silent(feed)


async def test_delivered_of_what_is_to_be_processed_tells_that_it_goes_on(serve, listen, push, later, feedback):
    server = await serve()
    feed = await listen("c", device="d", format="envelope", ack_wait=ACK, window=1)
    id = await push("c", 1)
    await push("c", 2)
    assert await told(feed) == (1, 1)
    await later(ACK - 4)
    assert await say(feedback, "d", id, "delivered") == {"state": "delivered", "duplicate": False}
    await later(5)
    assert is_silent(feed)  # and the window is as full as it was
    await later(6)
    assert await told(feed) == (1, 2)
    assert [len(care.under_way) for care in careful(server)] == [1]


# Not too much at once


async def test_no_more_than_the_window_is_under_way_and_a_receipt_makes_room(serve, listen, push, feedback, get):
    await serve()
    feed, other = await listen("c", device="d", window=2), await listen("c", device="other")
    ids = [await push("c", n) for n in range(5)]
    assert await other.events(5) == list("01234")
    assert await feed.events(2) == ["0", "1"]
    assert is_silent(feed)
    status = await get(f"/events/c/{ids[2]}")
    assert (status["counts"]["sent"], status["counts"]["pending"]) == (1, 1)
    await say(feedback, "d", ids[1], "processed")
    assert await feed.events(1) == ["2"]
    assert is_silent(feed)
    await say(feedback, "d", ids[0], "failed")
    await say(feedback, "d", ids[2], "processed")
    assert await feed.events(2) == ["3", "4"]
    for id in ids[3:]:
        await say(feedback, "d", id, "processed")
    await push("c", 5)
    assert await feed.events(1) == ["5"]


async def test_a_batch_of_receipts_makes_room_for_as_many(serve, listen, push, ask):
    await serve()
    feed = await listen("c", device="d", window=3)
    ids = [await push("c", n) for n in range(8)]
    assert await feed.events(3) == ["0", "1", "2"]
    await ask("POST", "/feedback", {"receipts": [{"event_id": id} for id in ids[:3]]}, Device="d")
    assert await feed.events(3) == ["3", "4", "5"]
    await ask("POST", "/feedback", {"up_to": ids[5], "channel": "c"}, Device="d")  # it has them, and works on
    assert is_silent(feed)


async def test_the_window_is_of_all_channels_of_a_feed(serve, listen, push, feedback):
    await serve()
    feed = await listen("a", "b.*", device="d", window=2)
    ids = [await push(channel, n) for n, channel in enumerate(("a", "b.1", "b.2", "a"))]
    assert [await told(feed) for _ in range(2)] == [(0, 1), (1, 1)]
    assert is_silent(feed)
    await say(feedback, "d", ids[1], "processed", "b.1")
    assert await told(feed) == (2, 1)
    await say(feedback, "d", ids[0], "processed", "a")
    assert await told(feed) == (3, 1)


async def test_a_full_window_holds_up_nobody_else(serve, listen, push):
    await serve()
    full = await listen("c", device="d", window=1)
    others = [await listen("c", device="d"), await listen("c", "e", device="d"), await listen("c", device="e", window=9), await listen("c")]
    elsewhere = await listen("e", device="d")
    for n in range(3):
        await push("c", n)
    await push("e", 3)
    assert await full.events(1) == ["0"]
    for feed in others:
        assert [orjson.loads(data) if data.isdigit() else orjson.loads(data)["data"] for data in await feed.events(3)] == [0, 1, 2]
    assert await elsewhere.events(1) == ["3"]
    assert is_silent(full)


async def test_a_recall_makes_room(serve, listen, push, ask):
    (await serve()).wheel.stop()  # what comes does so at once
    feed = await listen("c", device="d", window=1)
    ids = [await push("c", n) for n in range(3)]
    await feed.events(1)
    assert (await ask("DELETE", f"/events/c/{ids[0]}")).status == 200
    assert await feed.control("pere.cancel") == {"id": ids[0], "channel": "c"}
    assert await feed.events(1) == ["1"]
    assert is_silent(feed)


@pytest.mark.parametrize("looked", [0, 10])
async def test_what_expires_makes_room_without_a_receipt(serve, listen, push, later, get, monkeypatch, looked):
    monkeypatch.setattr("pere.care.MAX_LOOK", looked)
    server = await serve()
    feed = await listen("c", device="d", window=2)
    ids = [await push("c", 0, ttl=5), await push("c", 1), await push("c", 2), await push("c", 3)]
    await feed.events(2)
    now = server.store.clock()
    server.store.clock = lambda: now + 10
    await later(1.1)
    assert await feed.events(1) == ["2"]
    assert is_silent(feed)
    await later(1.1)
    assert (await get(f"/events/c/{ids[0]}"))["counts"]["expired"] == 1


@pytest.mark.parametrize("looked", [0, 10])
async def test_what_makes_way_in_the_store_makes_room(start, listen, push, later, monkeypatch, looked):
    monkeypatch.setattr("pere.care.MAX_LOOK", looked)
    await start(backlog_events=3, heartbeat=3600)
    feed = await listen("c", device="d", window=2)
    for n in range(4):
        await push("c", n)
    assert await feed.events(2) == ["0", "1"]
    await later(1.1)
    assert await feed.events(1) == ["2"]
    assert is_silent(feed)


async def test_what_ends_in_any_other_way_is_found_a_few_at_a_time(serve, listen, push, later, monkeypatch):
    monkeypatch.setattr("pere.care.MAX_LOOK", 2)
    server = await serve()
    server.wheel.stop()
    await listen("c", "d", device="d", window=5)
    for n in range(6):
        await push("c" if n else "d", n)
    care, = careful(server)
    assert len(care.under_way) == 5
    server.store.unregister("d", "d")  # as the sweep does with who has not been seen for long
    await server.store.settle()
    care.under_way = dict(reversed(care.under_way.items()))
    for _ in range(3):
        await later(1.1)
    assert [sent.channel for sent in care.under_way.values()] == ["c"] * 5


async def test_what_has_had_its_attempts_makes_room_on_all_feeds_at_once(serve, listen, push, later):
    server = await serve(max_attempts=1)
    server.wheel.stop()
    feed, other = await listen("c", device="d", format="envelope", ack_wait=0.5), await listen("c", device="d", window=1)
    await push("c", 0)
    await push("c", 1)
    assert [await told(feed) for _ in range(2)] == [(0, 1), (1, 1)]
    assert await other.events(1) == ["0"]
    await later(0.7)
    assert await other.events(1) == ["1"]


async def test_what_was_answered_before_it_was_read_is_not_under_way(serve, listen, push, feedback):
    (await serve()).wheel.stop()
    slow, fast = await listen("c", device="d", window=1), await listen("c", device="d")
    ids = [await push("c", n) for n in range(3)]
    assert (await slow.events(1), await fast.events(3)) == (["0"], ["0", "1", "2"])
    await say(feedback, "d", ids[1], "processed")
    assert is_silent(slow)
    await say(feedback, "d", ids[0], "processed")
    assert (await slow.events(2))[-1] == "2"
    await push("c", 3)
    assert is_silent(slow)


async def test_what_has_had_its_attempts_makes_room(serve, listen, push, later):
    await serve(max_attempts=1)
    feed = await listen("c", device="d", format="envelope", ack_wait=ACK, window=1)
    await push("c", 0)
    await push("c", 1)
    assert await told(feed) == (0, 1)
    await later(ACK + 1)
    assert await told(feed) == (1, 1)


async def test_a_feed_without_a_window_has_a_bound_all_the_same(start, listen, push, feedback, monkeypatch):
    monkeypatch.setattr("pere.care.MAX_UNDER_WAY", 3)
    await start(heartbeat=3600)
    feed = await listen("c", device="d", ack_wait=ACK)
    ids = [await push("c", n) for n in range(5)]
    assert await feed.events(3) == ["0", "1", "2"]
    assert is_silent(feed)
    await say(feedback, "d", ids[0], "processed")
    assert await feed.events(1) == ["3"]


# How it goes


async def test_working_puts_it_off(serve, listen, push, later, feedback, get):
    await serve()
    feed = await listen("c", device="d", format="envelope", ack_wait=ACK)
    id = await push("c", 7)
    assert await told(feed) == (7, 1)
    for _ in range(3):
        await later(ACK - 2)
        assert await say(feedback, "d", id, "working") == PENDING
        assert is_silent(feed)
    assert (await get(f"/events/c/{id}"))["counts"]["sent"] == 1
    await later(ACK + 1)
    assert await told(feed) == (7, 2)


async def test_who_is_working_for_ever_is_stopped_by_the_ttl(serve, listen, push, later, feedback):
    server = await serve()
    feed = await listen("c", device="d", format="envelope", ack_wait=ACK)
    id = await push("c", 7, ttl=60)
    await feed.event()
    now = server.store.clock()
    server.store.clock = lambda: now + 100
    assert (await say(feedback, "d", id, "working"))["duplicate"]
    await later(ACK + 1)
    assert is_silent(feed)
    assert [len(care.under_way) for care in careful(server)] == [0]


@pytest.mark.parametrize("wanted", [{}, {"ack_wait": ACK}, {"window": 1}])
async def test_a_retry_comes_at_once_in_an_envelope(serve, listen, push, later, feedback, measured, wanted):
    await serve()
    feed = await listen("c", device="d", format="envelope", **wanted)
    id = await push("c", 7)
    assert await told(feed) == (7, 1)
    assert await say(feedback, "d", id, "retry") == PENDING
    assert await told(feed) == (7, 2)
    assert (feed.text.count(b"id: "), feed.decoder.last_id) == (1, id)
    await say(feedback, "d", id, "processed")
    await later(ACK + 1)
    assert is_silent(feed)
    assert (await measured())["pere_redeliveries_total", "retry"] == 1


@pytest.mark.parametrize("wanted", [{}, {"ack_wait": 2}])
async def test_a_retry_comes_after_its_delay(serve, listen, push, later, feedback, wanted):
    await serve()
    feed = await listen("c", device="d", format="envelope", **wanted)
    id = await push("c", 7)
    assert await told(feed) == (7, 1)
    await say(feedback, "d", id, "retry", delay=30)
    await later(29)
    assert is_silent(feed)  # the wait for the receipt begins anew after the delay
    await later(1.5)
    assert await told(feed) == (7, 2)
    assert is_silent(feed)


async def test_a_raw_feed_is_closed_for_a_retry(serve, listen, push, feedback, get):
    await serve()
    feed = await listen("c", device="d")
    id = await push("c", 7)
    await feed.event()
    await say(feedback, "d", id, "retry")
    assert (await feed.control("pere.bye"))["reason"] == "redeliver"
    feed = await listen("c", device="d", last=id)
    assert (await feed.event()).id == id
    assert (await get(f"/events/c/{id}/devices"))["devices"][0]["attempt"] == 2


async def test_a_feed_that_has_not_come_so_far_is_not_sent_a_retry_out_of_turn(serve, listen, push, feedback):
    await serve()
    slow, fast = await listen("c", device="d", format="envelope", window=1), await listen("c", device="d", format="envelope")
    ids = [await push("c", n) for n in range(2)]
    assert [await told(slow), await told(fast), await told(fast)] == [(0, 1), (0, 1), (1, 1)]
    await say(feedback, "d", ids[1], "retry")
    assert await told(fast) == (1, 2)
    assert is_silent(slow)
    await say(feedback, "d", ids[0], "processed")
    assert (await told(slow))[0] == 1


@pytest.mark.parametrize("first, second", [(1800, 20), (0.5, 20)])
async def test_the_last_word_of_when_to_retry_counts(serve, listen, push, later, feedback, first, second):
    server = await serve()
    feed = await listen("c", device="d", format="envelope")
    id = await push("c", 7)
    await feed.event()
    for delay in (first, second):
        await say(feedback, "d", id, "retry", delay=delay)
    await later(19)
    assert is_silent(feed)
    await later(2)
    assert await told(feed) == (7, 2)
    await later(1800)
    assert is_silent(feed)
    assert (server.hub.redelivery._retries, server.hub.redelivery._waiting, server.hub.redelivery._deadlines) == ({}, 0, [])


async def test_who_has_returned_meanwhile_is_not_sent_it_once_more(serve, listen, push, later, feedback, until):
    server = await serve()
    feed = await listen("c", device="d", format="envelope")
    id = await push("c", 7)
    await feed.event()
    await say(feedback, "d", id, "retry", delay=20)
    feed.close()
    await until(lambda: not server.hub.feeds)
    feed = await listen("c", device="d", format="envelope")
    assert await told(feed) == (7, 2)
    await later(21)
    assert is_silent(feed)


@pytest.mark.parametrize("end", ["answered", "recalled", "removed", "away"])
async def test_a_retry_that_is_of_no_use_any_more_is_forgotten(serve, listen, push, later, feedback, ask, until, end):
    server = await serve()
    feed = await listen("c", device="d", format="envelope")
    id = await push("c", 7)
    await feed.event()
    await say(feedback, "d", id, "retry", delay=20)
    if end == "answered":
        await say(feedback, "d", id, "failed")
    elif end == "recalled":
        await ask("DELETE", f"/events/c/{id}")
        await feed.control("pere.cancel")
    elif end == "removed":
        await ask("DELETE", "/admin/devices/d")
    else:
        feed.close()
        await until(lambda: not server.hub.feeds)
    await later(21)
    assert end in ("removed", "away") or is_silent(feed)
    assert (server.hub.redelivery._retries, server.hub.redelivery.counts["retry"]) == ({}, 0)


async def test_a_retry_beyond_the_last_attempt_ends_in_expired(serve, listen, push, feedback, get, until):
    server = await serve(max_attempts=2)
    feed = await listen("c", device="d", format="envelope")
    id = await push("c", 7)
    assert await told(feed) == (7, 1)
    await say(feedback, "d", id, "retry")
    assert await told(feed) == (7, 2)
    await say(feedback, "d", id, "retry")
    await until(lambda: server.store.ledger.expired["attempts"])
    assert (await get(f"/events/c/{id}"))["counts"]["expired"] == 1
    assert is_silent(feed)
    assert await say(feedback, "d", id, "retry") == {"state": "expired", "duplicate": True}


async def test_one_device_can_wait_for_only_so_many(serve, listen, push, feedback, monkeypatch):
    await serve()
    monkeypatch.setattr(redelivery, "MAX_DEVICE_RETRIES", 2)
    monkeypatch.setattr(redelivery, "MAX_RETRIES", 3)
    for device in "de":
        await listen("c", device=device)
    ids = [await push("c", n) for n in range(3)]
    for id in ids[:2]:
        await say(feedback, "d", id, "retry", delay=3600)
    answer = await feedback("c", "d", ids[2], state="retry", delay=3600)
    assert (answer.error, int(answer.headers["retry-after"]) > 0) == ((429, "too_many_retries"), True)
    await say(feedback, "d", ids[1], "retry", delay=1800)  # which is waited for already
    await say(feedback, "e", ids[0], "retry", delay=3600)
    assert (await feedback("c", "e", ids[1], state="retry", delay=3600)).error == (503, "too_many_retries")
    await say(feedback, "d", ids[2], "working")


async def test_a_retry_again_and_again_leaves_nothing_behind(start, listen, push, feedback):
    server = await start()
    await listen("c", device="d", ack_wait=ACK)
    id = await push("c")
    event = server.store.shelf("c").backlog.oldest()
    for _ in range(1000):
        assert server.hub.redelivery.retry("d", event, 3600)
        assert server.hub.redelivery.working("d", event)
    care, = careful(server)
    assert len(server.hub.redelivery._deadlines) <= 70
    assert len(care._deadlines) <= 70
    assert (await say(feedback, "d", id, "processed"))["state"] == "processed"


async def test_a_feed_whose_socket_is_full_gets_its_retry_when_it_has_room(start, listen, push, feedback, later, until):
    server = await start(heartbeat=3600, backlog_bytes=64 << 20)
    feed = await listen("c", device="d", format="envelope", buffer=4096)
    id = await push("c", 0)
    assert await told(feed) == (0, 1)
    inside, = server.hub.feeds.values()
    count = 0
    while not inside.stuck_since:
        await push("c", 60_000 * "x")
        count += 1
    await say(feedback, "d", id, "retry")
    await later(1.1)
    assert server.hub.redelivery.counts["retry"] == 0
    reading = asyncio.create_task(feed.events(count + 1))
    await until(lambda: not inside.stuck_since)
    await later(1.1)
    *_, last = [orjson.loads(data) for data in await reading if len(data) < 1000]
    assert (last["data"], last["attempt"]) == (0, 2)


# Races


@pytest.mark.parametrize("wanted", [{}, {"ack_wait": ACK, "window": 1}])
async def test_a_receipt_before_the_publisher_has_its_answer_is_never_refused(serve, start, listen, connect, wanted):
    await serve()
    port, count = await start.port(), 150
    feed, line = await listen("c", device="d", **wanted), await connect()

    async def publish() -> None:
        for _ in range(count // 3):
            await wire.push(port, "c")
            await asyncio.sleep(random.random() / 1000)

    async def answer() -> list[tuple[int, Any]]:
        answers = []
        for _ in range(count):
            id = (await feed.event()).id
            headers = {"Device": "d", "Last-Event-ID": id, "Content-Type": "application/json"}
            await line.send(wire.said("POST", "/feedback/c", b'{"state":"processed"}', headers))
            got = await line.answer()
            answers.append((got.status, got.json))
        return answers

    answers, *_ = await asyncio.gather(answer(), publish(), publish(), publish())
    assert answers == [(200, {"state": "processed", "duplicate": False})] * count
    assert is_silent(feed)


async def test_a_receipt_in_the_middle_of_a_replay_counts_and_is_not_replayed(serve, listen, push, feedback, get, later, until):
    server = await serve()
    feed = await listen("c", device="d", format="envelope", window=1)
    ids = [await push("c", n) for n in range(6)]
    feed.close()
    await until(lambda: not server.hub.feeds)
    feed = await listen("c", device="d", format="envelope", window=2, ack_wait=ACK)
    assert [await told(feed) for _ in range(2)] == [(0, 2), (1, 1)]
    assert await say(feedback, "d", ids[3], "processed") == {"state": "processed", "duplicate": False}
    for id in ids[:2]:
        await say(feedback, "d", id, "processed")
    assert [await told(feed) for _ in range(2)] == [(2, 1), (4, 1)]
    await say(feedback, "d", ids[2], "processed")
    assert await told(feed) == (5, 1)
    await later(ACK + 1)
    assert [await told(feed) for _ in range(2)] == [(4, 2), (5, 2)]
    for id in ids:
        status = await get(f"/events/c/{id}")
        assert sum(status["counts"].values()) == status["audience"] == 1
        assert status["outstanding"] == int(id in ids[4:])


async def test_a_receipt_for_what_is_behind_a_full_socket_is_not_written_any_more(start, listen, push, feedback, until):
    server = await start(backlog_bytes=64 << 20)
    feed = await listen("c", device="d")
    feed.close()
    await until(lambda: not server.hub.feeds)
    ids = [await push("c", f"{n} " + 60_000 * "x") for n in range(300)]
    feed = await listen("c", device="d", buffer=4096)
    inside, = server.hub.feeds.values()
    await until(lambda: inside.stuck_since)
    came = inside.places[0].ordinal
    assert came < 299
    await say(feedback, "d", ids[(came + 300) // 2], "processed")
    seen = [(await feed.event()).id for _ in range(299)]
    assert seen == [id for n, id in enumerate(ids) if n != (came + 300) // 2]


async def test_a_lower_word_after_a_higher_one_changes_nothing(serve, listen, push, feedback, later):
    await serve()
    feed = await listen("c", device="d", format="envelope", ack_wait=ACK)
    id = await push("c")
    await feed.event()
    await say(feedback, "d", id, "processed")
    for state in ("delivered", "working", "retry"):
        assert await say(feedback, "d", id, state) == {"state": "processed", "duplicate": True}
    await later(ACK + 1)
    assert is_silent(feed)


async def test_two_feeds_of_a_device_get_it_as_one_attempt_and_one_receipt_is_for_both(serve, listen, push, feedback, later, get, measured):
    await serve()
    feeds = [await listen("c", device="d", format="envelope", ack_wait=ACK) for _ in range(2)]
    id = await push("c", 7)
    for attempt in (1, 2):
        assert [await told(feed) for feed in feeds] == [(7, attempt)] * 2
        if attempt == 1:
            await later(ACK + 1)
    assert (await get(f"/events/c/{id}/devices"))["devices"][0]["attempt"] == 2
    assert (await measured())["pere_redeliveries_total", "ack_wait"] == 1
    await say(feedback, "d", id, "processed")
    await later(ACK + 1)
    assert [is_silent(feed) for feed in feeds] == [True, True]


async def test_processed_on_one_feed_and_failed_on_the_other_is_a_conflict(serve, listen, push, feedback, later, get):
    await serve()
    feeds = [await listen("c", device="d", format="envelope", ack_wait=ACK) for _ in range(2)]
    id = await push("c", 7)
    answers = await asyncio.gather(*[feedback("c", "d", id, state=state) for state in ("processed", "failed")])
    assert sorted(answer.status for answer in answers) == [200, 409]
    first, = [answer.json["state"] for answer in answers if answer.status == 200]
    assert (await get(f"/events/c/{id}"))["counts"][first] == 1
    await later(ACK + 1)
    for feed in feeds:
        assert await told(feed) == (7, 1)
        assert is_silent(feed)


async def sent_and_due(server, listen, push):
    """A feed that was sent an event, which is to be sent again as soon as somebody looks."""
    feed = await listen("c", device="d", format="envelope", ack_wait=ACK)
    id = await push("c", 7)
    assert await told(feed) == (7, 1)
    now = server.wheel.time
    server.wheel.time = lambda: now() + ACK + 1
    return feed, id, server.store.shelf("c").backlog.oldest()


async def test_a_receipt_in_the_very_turn_before_its_deadline_stops_it(serve, listen, push, get):
    server = await serve()
    feed, id, event = await sent_and_due(server, listen, push)
    answers = []
    server.store.record("c", "d", event.id, PROCESSED, None, lambda *told: answers.append(told), answers.append)
    server.wheel.advance(server.wheel.time())
    server.hub.redelivery._work()
    await done(server)
    assert len(answers) == 1
    assert is_silent(feed)
    assert (await get(f"/events/c/{id}"))["counts"]["processed"] == 1
    assert server.hub.redelivery.counts["ack_wait"] == 0


async def test_a_receipt_in_the_very_turn_of_its_redelivery_counts_once(serve, listen, push, get, later):
    server = await serve()
    feed, id, event = await sent_and_due(server, listen, push)
    answers = []
    server.wheel.advance(server.wheel.time())
    server.hub.redelivery._work()
    server.store.record("c", "d", event.id, PROCESSED, None, lambda *told: answers.append(told), answers.append)
    await done(server)
    assert await told(feed) == (7, 2)
    await later(ACK + 1)
    assert is_silent(feed)
    assert len(answers) == 1
    status = await get(f"/events/c/{id}")
    assert (status["counts"]["processed"], status["outstanding"]) == (1, 0)


async def test_a_receipt_that_closes_nothing_does_not_stop_what_becomes_due_while_it_is_on_its_way(serve, listen, push, later):
    server = await serve()
    feed = await listen("c", device="d", format="envelope", ack_wait=ACK)
    await push("c", 7)
    assert await told(feed) == (7, 1)
    event, now = server.store.shelf("c").backlog.oldest(), server.wheel.time
    server.wheel.time = lambda: now() + ACK + 1
    server.store.record("c", "d", event.id, DELIVERED, None, lambda *told: None, print)
    server.wheel.advance(server.wheel.time())
    server.hub.redelivery._work()
    await done(server)
    assert is_silent(feed)
    await later(ACK + 1)
    assert await told(feed) == (7, 2)


async def test_what_a_receipt_that_closes_nothing_meets_on_its_way_goes_on_when_it_is_there(start, listen, push, later, until, tmp_path, monkeypatch):
    server = await start(SqliteStore(Config(), time.time, f"{tmp_path}/pere.db"), heartbeat=3600)
    server.wheel.stop()
    store = server.store
    feed = await listen("c", device="d", format="envelope")
    await push("c", 7)
    assert await told(feed) == (7, 1)
    event = store.shelf("c").backlog.oldest()
    with monkeypatch.context() as patch:
        patch.setattr(store, "_soon", lambda: None)
        store.record("c", "d", event.id, DELIVERED, None, lambda *told: None, print)
        # It returns with Care, and reads on while it counts as answered.
        feed.close()
        await until(lambda: not server.hub.feeds)
        feed = await listen("c", device="d", format="envelope", ack_wait=ACK)
        assert is_silent(feed)
    store._soon()
    await done(server)
    await later(ACK + 1)
    assert (await told(feed))[0] == 7


async def test_a_retry_waits_for_a_receipt_that_is_on_its_way(start, listen, push, later, tmp_path, monkeypatch):
    server = await start(SqliteStore(Config(), time.time, f"{tmp_path}/pere.db"), heartbeat=3600)
    server.wheel.stop()
    feed = await listen("c", device="d", format="envelope")
    await push("c", 7)
    assert await told(feed) == (7, 1)
    event, store = server.store.shelf("c").backlog.oldest(), server.store
    assert server.hub.redelivery.retry("d", event, 5)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_soon", lambda: None)
        patch.setattr(store, "settle", lambda: asyncio.sleep(0))
        store.record("c", "d", event.id, DELIVERED, None, lambda *told: None, print)
        await later(6)
        assert is_silent(feed)
    store._soon()
    await done(server)
    await later(1.1)
    assert await told(feed) == (7, 2)


async def test_a_retry_is_taken_while_a_receipt_that_closes_nothing_is_on_its_way(serve, listen, push, feedback, later):
    server = await serve()
    feed = await listen("c", device="d", format="envelope")
    id = await push("c", 7)
    assert await told(feed) == (7, 1)
    for word, is_closed in ((DELIVERED, False), (PROCESSED, True)):
        server.store.record("c", "d", parse_id(id), word, None, lambda *told: None, print)
        answer = await feedback("c", "d", id, state="retry", delay=1)
        assert answer.status == 200
        if not is_closed:
            assert answer.json["duplicate"] is False
            await later(2)
            assert await told(feed) == (7, 2)
    await done(server)
    assert (await feedback("c", "d", id, state="retry")).json == {"state": "processed", "duplicate": True}
    await later(5)
    assert is_silent(feed)


# Nobody's silence holds up the others


async def test_thousands_that_are_overdue_are_sent_in_small_pieces(start, listen, push, ask):
    server = await start(heartbeat=3600, backlog_events=4000)
    hog = await listen("c", device="hog", format="envelope", ack_wait=ACK)
    await ask("POST", "/push", [{"channel": "c", "data": n} for n in range(1000)])
    await ask("POST", "/push", [{"channel": "c", "data": n} for n in range(1000)])
    await ask("POST", "/push", [{"channel": "c", "data": n} for n in range(1000)])
    await hog.events(3000)
    other = await listen("d", device="other", format="envelope", ack_wait=ACK)
    await push("d", 7)
    assert await told(other) == (7, 1)
    counts, steps = server.hub.redelivery.counts, []
    now = server.wheel.time
    server.wheel.time = lambda: now() + ACK + 1
    reading = asyncio.create_task(hog.events(3000))
    answered = asyncio.create_task(ask("GET", "/healthz"))
    again = asyncio.create_task(told(other))
    server.wheel.advance(server.wheel.time())
    before = {}
    while counts["ack_wait"] < 3001:
        count = counts["ack_wait"]
        await asyncio.sleep(0)
        steps.append(counts["ack_wait"] - count)
        for name, task in (("answered", answered), ("again", again)):
            if task.done():
                before.setdefault(name, counts["ack_wait"])
    assert max(steps) <= redelivery.MAX_TURN
    assert await again == (7, 2)
    assert before["again"] < 1500  # in the middle of them all, not behind them
    assert before["answered"] < 3000
    assert len(await reading) == 3000


async def test_thousands_that_are_wanted_again_are_sent_in_small_pieces(start, listen, ask):
    server = await start(heartbeat=3600, backlog_events=4000)
    feed = await listen("c", device="d", format="envelope")
    await ask("POST", "/push", [{"channel": "c", "data": n} for n in range(1000)])
    await feed.events(1000)
    for event in server.store.shelf("c").backlog:
        assert server.hub.redelivery.retry("d", event, 5)
    now, counts, steps = server.wheel.time, server.hub.redelivery.counts, []
    server.wheel.time = lambda: now() + 6
    server.wheel.advance(server.wheel.time())
    while sum(steps) < 1000:
        count = counts["retry"]
        await asyncio.sleep(0)
        steps.append(counts["retry"] - count)
    assert max(steps) <= redelivery.MAX_TURN
    assert [await told(feed) for _ in range(1000)] == [(n, 2) for n in range(1000)]


async def test_heartbeats_are_met_while_a_device_owes_thousands(start, listen, ask):
    server = await start(heartbeat=0.2, backlog_events=4000, max_attempts=15)
    hog = await listen("c", device="hog", format="envelope", ack_wait=0.1)
    await ask("POST", "/push", [{"channel": "c", "data": n} for n in range(1000)])
    quiet = await listen("d")
    reading = asyncio.create_task(hog.events(8000))
    for _ in range(3):
        await quiet.comment()
    assert server.hub.redelivery.counts["ack_wait"] < 14_000, "the hog was done before the others had their turn"
    reading.cancel()


# Trouble


async def test_a_store_that_cannot_tell_is_asked_again(serve, listen, push, later, feedback, monkeypatch):
    server = await serve()
    feed = await listen("c", device="d", format="envelope", ack_wait=ACK)
    plain = await listen("c", device="e", format="envelope")
    id = await push("c", 7)
    assert (await told(feed), await told(plain)) == ((7, 1), (7, 1))
    await say(feedback, "e", id, "retry", delay=ACK)

    def fail(*_: Any) -> None:
        raise Unavailable("store_failed", "the disk is on fire", retry_after=1)

    with monkeypatch.context() as patch:
        patch.setattr(server.store, "standing", fail)
        await later(ACK + 1)
    assert is_silent(feed)
    assert is_silent(plain)
    await later(1.1)
    assert (await told(feed), await told(plain)) == ((7, 2), (7, 2))


async def test_one_mistake_does_not_stop_the_others(start, listen, push, later, monkeypatch, caplog):
    server = await start(heartbeat=3600)
    feeds = [await listen("c", device=device, format="envelope", ack_wait=ACK) for device in "de"]
    await push("c", 7)
    for feed in feeds:
        await feed.event()
    standing = server.store.standing
    monkeypatch.setattr(server.store, "standing", lambda channel, device, id: standing(channel, device, id) if device == "e" else 1 / 0)
    await later(ACK + 1)
    assert await told(feeds[1]) == (7, 2)
    assert "a deadline could not be met" in caplog.text
    caplog.clear()


async def test_what_is_owed_after_a_restart_is_sent_again_with_all_attempts_counted(start, listen, push, later, tmp_path):
    config = Config(heartbeat=3600)
    await start(SqliteStore(config, time.time, f"{tmp_path}/pere.db"), heartbeat=3600)
    feed = await listen("c", device="d", format="envelope", ack_wait=ACK)
    await push("c", 7)
    assert await told(feed) == (7, 1)
    await later(ACK + 1)
    assert await told(feed) == (7, 2)
    await start.servers.pop().stop()
    await start(SqliteStore(config, time.time, f"{tmp_path}/pere.db"), heartbeat=3600)
    feed = await listen("c", device="d", format="envelope", ack_wait=ACK)
    assert await told(feed) == (7, 3)
    await later(ACK + 1)
    assert await told(feed) == (7, 4)


async def test_nothing_is_held_on_to_of_a_feed_that_is_gone(serve, listen, push, later, until):
    server = await serve()
    feed = await listen("c", device="d", ack_wait=ACK, window=2)
    for n in range(4):
        await push("c", n)
    await feed.events(2)
    feed.close()
    await until(lambda: not server.hub.feeds)
    await later(ACK + 1)
    members = server.store.shelf("c").audience.members
    assert (members["d"].careful, len(server.hub.redelivery._line)) == (0, 0)
    assert not any(isinstance(item, Care) for slot in server.wheel._slots for item in slot)


async def test_receipts_that_come_together_make_room_in_a_window_as_each_alone_would(listen, push, ask):
    feed = await listen("c", device="d", window=2)
    ids = [await push("c", n) for n in range(4)]
    assert [(await feed.event()).id for _ in range(2)] == ids[:2]
    assert (await ask("POST", "/feedback", {"receipts": [{"event_id": id} for id in ids[:2]]}, Device="d")).status == 200
    assert [(await feed.event()).id for _ in range(2)] == ids[2:]
