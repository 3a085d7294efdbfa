"""Who gets what, in which order, and how often: over real sockets, slow and broken ones among them."""

import asyncio
import socket
import sqlite3

import orjson
import pytest
import uvloop
import wire
from hypothesis import given, settings
from hypothesis import strategies as st
from passing import passes

from pere import hub
from pere.config import Config
from pere.errors import Gone, NotFound
from pere.event import Draft, parse_id
from pere.receipt import NONE
from pere.server import Server
from pere.storage.memory import MemoryStore

MIB = 1024 * 1024


def envelopes(texts: list[str]) -> list[object]:
    return [orjson.loads(text)["data"] for text in texts]


# Live


async def test_every_feed_gets_every_event_in_the_order_of_the_pushes(listen, push):
    feeds = [await listen("c", device=f"d{n}") for n in range(5)] + [await listen("c"), await listen("c", version="1.0")]
    wanted = [str(n) for n in range(50)]
    for text in wanted:
        await push("c", text)
    for feed in feeds:
        assert await feed.events(50) == wanted


async def test_a_burst_is_joined_into_one_broadcast_and_comes_in_order(ask, listen, measured):
    feeds = [await listen("c"), await listen("c", format="envelope"), await listen("c", device="d")]
    answer = await ask("POST", "/push", [{"channel": "c", "data": n} for n in range(200)])
    ids = [told["id"] for told in answer.json["results"]]
    for feed in feeds:
        assert [(await feed.event()).id for _ in ids] == ids
    metrics = await measured()
    assert (metrics["pere_fanout_seconds_count"], metrics["pere_deliveries_total"], metrics["pere_replayed_events_total"]) == (1, 600, 0)


async def test_a_burst_for_all_and_for_some_keeps_its_order(ask, listen):
    a, b = await listen("c", device="a"), await listen("c", device="b")
    items = [{"channel": "c", "data": n} | ({"to": ["a"]} if n % 3 == 1 else {"to": ["b"]} if n % 3 == 2 else {}) for n in range(30)]
    await ask("POST", "/push", items)
    assert await a.events(20) == [str(n) for n in range(30) if n % 3 != 2]
    assert await b.events(20) == [str(n) for n in range(30) if n % 3 != 1]


async def test_ids_order_events_across_the_channels_of_a_feed_even_in_one_burst(ask, listen):
    feeds = [await listen("a", "b"), await listen("*"), await listen("a", "b", device="d")]
    alone = await listen("a")
    answer = await ask("POST", "/push", [{"channel": channel, "data": channel} for channel in "abbacab"])
    told = answer.json["results"]
    for feed in (feeds[0], feeds[2]):
        assert [(await feed.event()).id for _ in range(6)] == [each["id"] for each in told if each["channel"] != "c"]
    assert [(await feeds[1].event()).id for _ in range(7)] == [each["id"] for each in told]
    assert await alone.events(3) == ['"a"'] * 3


async def test_who_breaks_off_in_a_burst_over_channels_misses_nothing(ask, listen):
    feed = await listen("a", "b")
    told = (await ask("POST", "/push", [{"channel": channel, "data": 1} for channel in "aba"])).json["results"]
    seen = [(await feed.event()).id for _ in range(2)]
    feed.close()
    seen.append((await (await listen("a", "b", last=seen[-1])).event()).id)
    assert seen == [each["id"] for each in told]


async def test_who_connects_in_the_middle_of_a_burst_gets_each_event_once(start, listen, push):
    await start()
    feeds = [await listen("c", device="early")]
    wanted = []

    async def publish() -> None:
        for n in range(60):
            wanted.append(await push("c", str(n)))

    publishing = asyncio.ensure_future(publish())
    while not publishing.done():
        feeds.append(await listen("c", device=f"d{len(feeds)}", from_="all"))
        feeds.append(await listen("c", from_="all"))
    await publishing
    assert len(feeds) > 4
    for feed in feeds:
        assert [(await feed.event()).id for _ in wanted] == wanted


@pytest.mark.parametrize("target", ["/feed/c?from=all", "/feed?channel=c&channel=d&from=all", "/feed?channel=*&from=all"])
@pytest.mark.parametrize("device", ["", "d"])
async def test_a_feed_that_opens_between_a_push_and_its_broadcast_gets_the_event_once(connect, listen, push, target, device):
    old = await listen("c", "d")
    ids = [await push("c", "before")]
    lines = [await connect() for _ in range(3)]
    # Written without a pause, so that the server reads all three in one turn of its loop, and broadcasts at the end of it.
    for line, text in zip(lines, [
            wire.said("POST", "/push/c", b'"at once"'), wire.said("GET", target, b"", {"Device": device} if device else {}),
            wire.said("POST", "/push/c", b'"after"')], strict=True):
        assert line.sock.send(text) == len(text)
    ids += [(await line.answer()).json["id"] for line in lines[::2]]
    ids.append(await push("c", "end"))
    taken = await lines[1].until(b"id: " + ids[-1].encode())
    assert [taken.count(b"id: " + id.encode()) for id in ids[:-1]] == [1, 1, 1]
    assert [(await old.event()).id for _ in ids] == ids


async def test_two_feeds_of_one_device_both_get_everything_and_one_receipt_is_enough(listen, push, feedback, get):
    first, second = await listen("c", device="d"), await listen("c", device="d", format="envelope")
    id = await push("c", "x")
    assert (await first.event()).id == (await second.event()).id == id
    assert (await feedback("c", "d", id)).json["duplicate"] is False
    assert (await feedback("c", "d", id)).json["duplicate"] is True
    status = await get(f"/events/c/{id}")
    assert (status["audience"], status["complete"]) == (1, True)
    first.close()
    await push("c", "y")
    assert envelopes(await second.events(1)) == ["y"]
    assert (await get("/admin/devices/c"))["d"]["online"] is True


# Many channels


@pytest.mark.parametrize("pattern, meant, others", [
    ("*", ["a", "b1"], ["a.b"]),
    ("**", ["a", "a.b", "a.b.c"], []),
    ("orders.*", ["orders.eu", "orders.us-1"], ["orders", "orders.eu.1", "order.eu", "xorders.eu"]),
    ("orders.**", ["orders.eu", "orders.eu.1"], ["orders", "orders1"]),
    ("*.eu", ["orders.eu"], ["eu", "a.orders.eu", "orders.eu.1"]),
    ("a*b.c", ["ab.c", "axxb.c"], ["a.b.c", "ab.cc"]),
])
async def test_a_pattern_means_channels_of_today_and_of_tomorrow(listen, push, pattern, meant, others):
    for channel in (meant + others)[::2]:
        await push(channel, "old")
    feeds = [await listen(pattern), await listen(pattern, device="d")]
    for channel in meant + others:
        await push(channel, channel)
    for feed in feeds:
        assert envelopes(await feed.events(len(meant))) == meant


async def test_a_channel_that_two_patterns_and_a_name_mean_comes_once(listen, push):
    feed = await listen("orders.*", "orders.**", "orders.eu", "o*.eu", device="d")
    for channel in ("orders.eu", "orders.us", "orders.eu"):
        await push(channel, channel)
    assert envelopes(await feed.events(3)) == ["orders.eu", "orders.us", "orders.eu"]


async def test_a_pattern_joins_a_channel_that_a_listener_brought_to_life(listen, push):
    wild, named = await listen("orders.*"), await listen("orders.*", device="d")
    plain = await listen("orders.eu")
    await push("orders.eu", "x")
    assert await plain.events(1) == ["x"]
    assert envelopes(await wild.events(1)) == envelopes(await named.events(1)) == ["x"]


async def test_a_device_that_listens_by_pattern_is_in_the_audience_of_a_channel_at_its_birth(ask, listen, feedback):
    await listen("orders.*", device="online")
    (await listen("orders.*", device="offline")).close()
    answer = await ask("POST", "/push/orders.eu", b"1")
    assert answer.json["audience"] == 2
    assert (await feedback("orders.eu", "offline", answer.json["id"])).status == 200


async def test_a_device_resumes_on_channels_that_were_born_while_it_listened_or_was_away(listen, push, feedback):
    feed = await listen("orders.*", device="d")
    first = await push("orders.eu", "1")
    second = await push("orders.eu", "2")
    assert envelopes(await feed.events(2)) == ["1", "2"]
    await feedback("orders.eu", "d", first)
    feed.close()
    await push("orders.us", "3")
    again = await listen("orders.*", device="d", last=second)
    assert envelopes(await again.events(2)) == ["2", "3"]


async def test_feeds_of_many_channels_resume_each_channel_after_one_id(listen, push):
    ids = [await push("ab"[n % 2], str(n)) for n in range(6)]
    feed = await listen("a", "b", last=ids[2])
    assert envelopes(await feed.events(3)) == ["3", "4", "5"]


async def test_a_channel_is_forgotten_by_its_pattern_when_nobody_listens(start, listen, push, until):
    server = await start()
    feed = await listen("x.*")
    await push("x.1")
    await feed.event()
    feed.close()
    await until(lambda: not server.hub.feeds)
    await push("x.2")
    assert server.hub.channels == {}


# Resume


async def test_a_device_resumes_at_what_it_did_not_answer_whatever_its_last_event_id_says(start, listen, push, feedback):
    await start(max_attempts=10)
    feed = await listen("c", device="d")
    ids = [await push("c", str(n)) for n in range(6)]
    await feed.events(6)
    for n in (0, 1, 3):
        await feedback("c", "d", ids[n], state="processed" if n else "failed")
    feed.close()
    for last in ("", ids[0], ids[5], "1-0", "8000000000000-0"):
        again = await listen("c", device="d", last=last)
        assert await again.events(3) == ["2", "4", "5"]
        again.close()


async def test_delivered_is_not_yet_processed_and_comes_again(listen, push, feedback):
    feed = await listen("c", device="d")
    low, high = await push("c", "low", receipt="delivered"), await push("c", "high")
    await feed.events(2)
    for id in (low, high):
        await feedback("c", "d", id, state="delivered")
    feed.close()
    again = await listen("c", device="d")
    await push("c", "new")
    assert await again.events(2) == ["high", "new"]


async def test_what_asks_for_no_receipt_goes_by_the_last_event_id(listen, push):
    feed = await listen("c", device="d")
    ids = [await push("c", str(n), receipt="none" if n % 2 else "processed") for n in range(6)]
    await feed.events(6)
    feed.close()
    await push("c", "6", receipt="none")
    # Without a Last-Event-ID it goes by what was written to the device.
    assert await (await listen("c", device="d")).events(4) == ["0", "2", "4", "6"]
    assert await (await listen("c", device="d", last=ids[2])).events(5) == ["0", "2", "3", "4", "5"]


async def test_a_device_that_answered_everything_starts_at_what_is_new(listen, push, feedback):
    feed = await listen("c", device="d")
    id = await push("c", "old")
    await feed.event()
    await feedback("c", "d", id)
    feed.close()
    again = await listen("c", device="d")
    await push("c", "new")
    assert await again.events(1) == ["new"]


async def test_a_device_that_was_away_gets_what_it_missed_and_only_on_its_own_channel(listen, push):
    (await listen("c", device="d")).close()
    await push("c", "missed")
    await push("other", "not registered there")
    await push("c", "for somebody else", to="e")
    await push("c", "missed too", to="d")
    assert await (await listen("c", device="d")).events(2) == ["missed", "missed too"]
    feed = await listen("other", device="d")
    await push("other", "new")
    assert await feed.events(1) == ["new"]


# What comes to an end


async def test_an_event_that_was_sent_often_enough_is_given_up_and_counted(start, listen, push, get, feedback, measured):
    await start(max_attempts=3)
    (await listen("c", device="d")).close()
    given_up = await push("c", "poison")
    for attempt in (1, 2, 3):
        feed = await listen("c", device="d", format="envelope")
        assert orjson.loads((await feed.event()).data)["attempt"] == attempt
        assert (await get(f"/events/c/{given_up}/devices"))["devices"][0]["attempt"] == attempt
        feed.close()
    feed = await listen("c", device="d")
    await push("c", "next")
    assert await feed.events(1) == ["next"]
    status = await get(f"/events/c/{given_up}")
    assert (status["counts"]["expired"], status["outstanding"], status["complete"], status["satisfied"]) == (1, 0, False, False)
    metrics = await measured()
    assert (metrics["pere_expired_total", "attempts"], metrics["pere_redeliveries_total", "resume"]) == (1, 2)
    assert (await feedback("c", "d", given_up)).json == {"state": "processed", "duplicate": False, "late": True}


async def test_an_event_whose_time_is_over_expires_for_those_who_owe_and_is_sent_no_more(start, listen, push, get, feedback, measured):
    server = await start()
    answered = await listen("c", device="answered")
    (await listen("c", device="away")).close()
    id = await push("c", "short", ttl=10)
    await answered.event()
    await feedback("c", "answered", id)
    now = server.store.clock()
    server.store.clock = lambda: now + 11
    server.store.sweep(now + 11, server.hub.is_used)
    status = await get(f"/events/c/{id}")
    assert {state: count for state, count in status["counts"].items() if count} == {"expired": 1, "processed": 1}
    assert (status["outstanding"], (await measured())["pere_expired_total", "ttl"]) == (0, 1)
    away = await listen("c", device="away")
    await push("c", "new")
    assert await away.events(1) == ["new"]


async def test_what_makes_way_unanswered_expires_and_is_counted(start, ask, listen, push, feedback, measured):
    await start(backlog_events=3)
    await listen("c", device="a")
    await listen("c", device="b")
    first = await push("c")
    await feedback("c", "a", first)
    for _ in range(4):
        await push("c")
    metrics = await measured()
    assert (metrics["pere_expired_total", "evicted"], metrics["pere_outstanding"]) == (3, 6)
    assert (await ask("GET", f"/events/c/{first}")).error == (410, "event_gone")


@pytest.mark.parametrize("last", ["", "SEEN"])
async def test_a_device_is_told_exactly_how_many_it_lost_when_the_backlog_has_moved_past_it(start, listen, push, measured, last):
    await start(backlog_events=5)
    feed = await listen("c", device="d")
    seen = await push("c", "seen")
    await feed.event()
    feed.close()
    missed = [await push("c", str(n)) for n in range(12)]
    again = await listen("c", device="d", last=last.replace("SEEN", seen))
    assert await again.control("pere.gap") == {"channel": "c", "from": seen if last else None, "to": missed[-5], "lost": 7}
    assert [(await again.event()).id for _ in range(5)] == missed[-5:]
    assert (await measured())["pere_gaps_total"] == 1


async def test_a_device_that_misses_nothing_is_told_of_no_gap(start, listen, push):
    await start(backlog_events=5)
    feed = await listen("c", device="d")
    for n in range(9):
        await push("c", str(n))
    await feed.events(9)
    feed.close()
    await push("c", "9")
    again = await listen("c", device="d")
    assert await again.events(5) == ["5", "6", "7", "8", "9"]
    assert again.controls == []


async def test_an_anonymous_feed_is_told_of_a_gap_that_nobody_has_counted(start, listen, push):
    await start(backlog_events=2)
    ids = [await push("c", str(n)) for n in range(5)]
    feed = await listen("c", last=ids[0])
    assert await feed.control("pere.gap") == {"channel": "c", "from": ids[0], "to": ids[3], "lost": None}
    assert await feed.events(2) == ["3", "4"]
    assert (await (await listen("c", last=ids[2])).event()).data == "3"


async def test_who_comes_from_before_the_server_was_born_is_told_of_a_gap(listen, push):
    id = await push("c", "x")
    for device in ("", "d"):
        feed = await listen("c", device=device, last="1417444110993-0")
        assert await feed.control("pere.gap") == {"channel": "c", "from": "1417444110993-0", "to": id, "lost": None}
        assert await feed.events(1) == ["x"]


# Those who do not read


@pytest.fixture
def narrow():
    """`narrow(server)`: from now on the kernel takes little for a client that does not read."""

    def narrow(server: Server) -> None:
        for listener in server.listeners.sockets:
            with socket.fromfd(listener.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    return narrow


def buffered(server: Server) -> int:
    return sum(feed.waiting() for feed in server.hub.feeds.values())


@pytest.mark.parametrize("device", ["", "slow"])
async def test_a_feed_that_does_not_read_delays_nobody_costs_no_memory_and_catches_up_exactly(start, narrow, listen, push, until, device, measured):
    server = await start(backlog_bytes=32 * MIB)
    narrow(server)
    slow = await listen("c", device=device, buffer=4096)
    others = [await listen("c"), await listen("c", device="other")]
    ids, most = [], 0
    for n in range(100):
        ids.append(await push("c", 10_000 * "x" + str(n)))
        for other in others:
            assert (await other.event()).id == ids[-1]
        most = max(most, buffered(server))
    metrics = await measured()
    assert (metrics["pere_feeds_behind"], metrics["pere_feeds"]) == (1, 3)
    assert most < 128 * 1024
    await wire.back_in_step(slow, others, ids, lambda: push("c", "live again"), lambda: until(lambda: not server.hub.channels.behind))


async def test_a_feed_that_is_slow_for_too_long_is_cut_counted_and_resumes(start, narrow, listen, push, until, measured):
    server = await start(backlog_bytes=32 * MIB, stuck_after=1, heartbeat=0.5)
    narrow(server)
    slow, unnamed = await listen("c", device="slow", buffer=4096), await listen("c", buffer=4096)
    quick, ids = await listen("c", device="quick"), []
    for _ in range(50):
        ids.append(await push("c", 10_000 * "x"))
        assert (await quick.event()).id == ids[-1]  # else it is slow itself, where the pushes take longer than that
    await until(lambda: len(server.hub.feeds) == 1)
    metrics = await measured()
    assert (metrics["pere_feed_closes_total", "slow"], metrics["pere_feeds_behind"], metrics["pere_feeds"]) == (2, 0, 1)
    assert "pere.bye" not in [message.event for message in await slow.end()]
    assert not slow.is_whole
    # The device gets all that it did not answer; the anonymous one goes on after the last that it has read.
    again = await listen("c", device="slow")
    assert [(await again.event()).id for _ in ids] == ids
    seen = [message.id for message in await unnamed.end()]
    assert seen == ids[: len(seen)]
    rest = await listen("c", last=unnamed.decoder.last_id) if seen else await listen("c", from_="all")
    assert seen + [(await rest.event()).id for _ in ids[len(seen):]] == ids


async def test_a_feed_that_reads_slowly_but_reads_is_not_cut(start, narrow, listen, push):
    server = await start(stuck_after=10, heartbeat=1)
    narrow(server)
    slow = await listen("c", buffer=4096)
    ids = [await push("c", 60_000 * "x" + str(n)) for n in range(2)]
    # The socket is never empty, but for longer than it takes to be cut it never stands still for so long.
    for _ in range(10):
        await slow.sip(4096)
        await asyncio.sleep(0.02)
        passes(server.wheel, 2)
    assert (server.hub.channels.behind, server.hub.closes["slow"]) == (1, 0)
    assert [(await slow.event()).id for _ in ids] == ids


async def test_a_slow_feed_that_the_backlog_overtakes_is_told_how_many_it_lost(start, narrow, listen, push, measured):
    server = await start(backlog_events=10)
    narrow(server)
    slow = await listen("c", buffer=4096)
    # The first of them is more than the kernel takes, so the socket is full until somebody reads; else there would be several gaps.
    ids = [await push("c", 60_000 * "x") for _ in range(100)]
    seen = []
    while (message := await slow.next()).event != "pere.gap":
        seen.append(message.id)
    gap = orjson.loads(message.data)
    assert seen == ids[: len(seen)]
    assert gap == {"channel": "c", "from": seen[-1], "to": ids[-10], "lost": 90 - len(seen)}
    assert [(await slow.event()).id for _ in range(10)] == ids[-10:]
    assert (await measured())["pere_gaps_total"] == 1


@pytest.mark.parametrize("kept_in", ["sqlite"], indirect=True)
@pytest.mark.parametrize("many", [False, True])
async def test_a_feed_for_which_something_cannot_be_looked_up_goes_on_when_it_can_and_a_receipt_is_answered(start, listen, push, feedback, until, monkeypatch, caplog, many):
    monkeypatch.setattr(hub, "AGAIN", 0.01)
    monkeypatch.setattr(hub, "LIVE", 0 if many else 128)
    server = await start(backlog_events=2, limits_exempt="")
    (await listen("c", device="d")).close()
    await until(lambda: not server.hub.feeds)
    first, *_ = [await push("c", str(n)) for n in range(8)]
    feed = await listen("c", device="d", window=1)
    assert await feed.events(1) == ["0"]
    server.store._reader.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
    assert (await feedback("c", "d", first)).status == 200
    await until(lambda: server.store.trouble())
    server.store._reader.set_authorizer(None)
    assert await feed.events(1) == ["1"]
    await push("c", "well again")  # which is said now, and not when the store is next swept, which may be at the very end
    assert not server.store.trouble()
    caplog.clear()


@pytest.mark.parametrize("kept_in", ["sqlite"], indirect=True)
async def test_who_comes_when_it_cannot_be_looked_up_where_to_begin_is_told_to_come_back_and_is_not_kept(start, listen, push, until, caplog):
    server = await start(backlog_events=2)
    (await listen("c", device="d")).close()
    await until(lambda: not server.hub.feeds)
    ids = [await push("c", str(n)) for n in range(4)]
    server.store._reader.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
    for headers in {"Device": "d"}, {"Device": "new", "Last-Event-ID": ids[0]}, {"Last-Event-ID": ids[0]}:
        feed = await wire.Feed.open(server.port)
        await feed.start("/feed/c", headers)
        assert await feed.control("pere.bye") == {"reason": "unkept", "retry": 5}
        assert await feed.end() == [] and feed.is_whole
        feed.close()
    assert (server.hub.feeds, server.hub.channels, server.hub.channels.behind) == ({}, {}, 0)
    server.store._reader.set_authorizer(None)
    assert await (await listen("c", device="d")).events(4) == ["0", "1", "2", "3"]
    assert await (await listen("c", device="new", last=ids[0])).events(3) == ["1", "2", "3"]
    caplog.clear()


async def test_where_one_careful_feed_fails_the_others_have_what_has_come(start, listen, push, monkeypatch, caplog):
    server = await start()
    first, second = [await listen("c", device=device, window=9) for device in "de"]
    read, failing = server.hub.replay.read, [1]
    monkeypatch.setattr(server.hub.replay, "read", lambda *what: 1 / 0 if failing and failing.pop() else read(*what))
    await push("c", "1")
    assert await second.events(1) == ["1"]
    await push("c", "2")
    assert await first.events(2) == ["1", "2"]
    assert caplog.text.count("ZeroDivisionError") == 1
    caplog.clear()


@pytest.mark.parametrize("kept_in", ["sqlite"], indirect=True)
async def test_where_one_fails_that_waited_for_an_old_event_the_others_have_it(start, listen, push, monkeypatch, caplog):
    server = await start(backlog_events=2)
    ids = [await push("c", str(n)) for n in range(4)]
    fetch, waiting = server.store.fetch, []
    monkeypatch.setattr(server.store, "fetch", lambda *what: waiting.append(what))
    feeds = [await listen("c", last=ids[0]) for _ in range(2)]
    read, failing = server.hub.replay.read, [1]
    monkeypatch.setattr(server.hub.replay, "read", lambda *what: 1 / 0 if failing and failing.pop() else read(*what))
    for what in waiting:
        fetch(*what)
    assert await feeds[1].events(3) == ["1", "2", "3"]
    assert caplog.text.count("ZeroDivisionError") == 1
    caplog.clear()


async def test_a_slow_feed_of_many_channels_keeps_the_order_of_ids(start, narrow, listen, push, until):
    server = await start(backlog_bytes=32 * MIB)
    narrow(server)
    slow = await listen("a", "b.*", buffer=4096, device="d")
    ids = [await push(("a", "b.1", "b.2")[n % 3], 5_000 * "x", to="d" if n % 5 else []) for n in range(90)]
    assert server.hub.channels.behind == 1
    assert [(await slow.event()).id for _ in ids] == ids
    await until(lambda: not server.hub.channels.behind)
    last = [await push("b.3", "new"), await push("a", "new")]
    assert [(await slow.event()).id for _ in last] == last


async def fill_and_end(server: Server, pushes: int, ask, listen, push, until) -> None:
    """Feeds of four devices that do not read, which end in every way that there is while their sockets are full."""
    feeds = [await listen("c", device=name, buffer=4096) for name in ("replaced", "kicked", "gone", "drained")]
    for _ in range(pushes):
        await push("c", 60_000 * "x")
    assert server.hub.channels.behind == 4
    await listen("c", device="replaced", from_="new", buffer=4096)
    await ask("DELETE", "/admin/devices/kicked")
    feeds[2].close()
    await until(lambda: len(server.hub.feeds) == 2)
    await server.stop()
    assert server.hub.closes == {"gone": 1, "slow": 0, "drain": 2, "replaced": 1, "kicked": 1, "unkept": 0, "redeliver": 0, "expired": 0, "passed": 0}
    assert (server.hub.feeds, server.hub.channels, server.hub.channels.behind) == ({}, {}, 0)


async def test_a_feed_may_be_closed_removed_or_drained_while_it_is_slow(start, narrow, ask, listen, push, until):
    server = await start(max_feeds_per_device=1)
    narrow(server)
    await fill_and_end(server, 4, ask, listen, push, until)


# Whatever happens: every feed gets every event of its audience exactly once and in order

CHANNELS = ("a", "b", "x.1", "x.2")
WANTED = st.sampled_from([("a",), ("b",), ("a", "b"), ("x.*",), ("**",), ("a", "x.1", "x.*")])
DEVICE = st.sampled_from(["", "", "d1", "d2", "d3"])
PUSH = st.tuples(st.sampled_from(CHANNELS), st.sampled_from([(), (), (), ("d1",), ("d2", "d3")]))
CONNECT = st.tuples(st.just("connect"), WANTED, DEVICE, st.sampled_from(["1.1", "1.0"]))
DEED = st.one_of(
    st.tuples(st.just("push"), st.lists(PUSH, min_size=1, max_size=12), st.sampled_from([10, 10, 3000])),
    CONNECT,
    st.tuples(st.just("disconnect"), st.integers(0, 9)),
    st.tuples(st.just("stop reading"), st.integers(0, 9)),
    st.tuples(st.just("read on"), st.integers(0, 9)),
    st.tuples(st.just("receipt"), st.sampled_from(["d1", "d2", "d3"]), st.integers(0, 30)),
)


class Listener:
    """A connection that reads by itself unless it was told to stop, and the ids that it must have got in the end."""

    def __init__(self, feed: wire.Feed, channels: tuple[str, ...], device: str, owed: list[str]):
        self.feed = feed
        self.channels = channels
        self.device = device
        self.expected = owed
        self.got: list[str] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.task = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        while True:
            await self.reads.wait()
            message = await self.feed.next()
            assert message is not None and not message.event.startswith("pere."), message
            self.got.append(message.id)

    def wants(self, channel: str) -> bool:
        return channel in self.channels or "**" in self.channels or ("x.*" in self.channels and channel.startswith("x."))


@settings(max_examples=75)
@given(st.lists(CONNECT, min_size=2, max_size=4), st.lists(DEED, min_size=10, max_size=40))
def test_whatever_happens_every_feed_gets_every_event_once_and_in_order(first, then):
    uvloop.run(asyncio.wait_for(_everything_comes_once(first + then), 200))


async def _everything_comes_once(deeds: list[tuple]) -> None:
    server = Server(Config(store="memory:", port=0, max_attempts=15, max_feeds_per_device=50, backlog_bytes=16 * MIB, stuck_after=60))
    await server.start()
    for listener in server.listeners.sockets:
        with socket.fromfd(listener.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    listeners: list[Listener] = []
    events: list[tuple[str, str, set[str]]] = []  # id, channel, and the devices that owe a receipt
    registered: dict[str, set[str]] = {channel: set() for channel in CHANNELS}
    try:
        for verb, *what in deeds:
            if verb == "push":
                items = [{"channel": channel, "data": "x" * what[1]} | ({"to": list(to)} if to else {}) for channel, to in what[0]]
                told = (await wire.request(server.port, "POST", "/push", items)).json["results"]
                for (channel, to), each in zip(what[0], told, strict=True):
                    for listener in listeners:
                        if listener.wants(channel) and (not to or listener.device in to):
                            listener.expected.append(each["id"])
                    events.append((each["id"], channel, set(to) or set(registered[channel])))
            elif verb == "connect" and len(listeners) < 10:
                channels, device, version = what
                feed = await wire.listen(server.port, *channels, device=device, version=version, buffer=4096)
                listener = Listener(feed, channels, device, [])
                listener.expected += [id for id, channel, owing in events if device in owing and listener.wants(channel)]
                listeners.append(listener)
                for channel in CHANNELS:
                    if device and listener.wants(channel):
                        registered[channel].add(device)
            elif verb == "disconnect" and listeners:
                await _leave(listeners.pop(what[0] % len(listeners)))
            elif verb in ("stop reading", "read on") and listeners:
                listener = listeners[what[0] % len(listeners)]
                listener.reads.set() if verb == "read on" else listener.reads.clear()
            elif verb == "receipt" and events:
                id, channel, owing = events[what[1] % len(events)]
                answer = await wire.request(server.port, "POST", f"/feedback/{channel}", Device=what[0], Last_Event_ID=id)
                assert answer.status == 200 if what[0] in owing else answer.status in (200, 404)
                owing.discard(what[0])
        ends = {channel: (await wire.push(server.port, channel, "end")).json["id"] for channel in CHANNELS}
        for listener in listeners:
            listener.expected += [id for channel, id in ends.items() if listener.wants(channel)]
            listener.reads.set()
        async with asyncio.timeout(60):
            for listener in listeners:
                # What is pushed last comes last, whatever was missed before it.
                while listener.expected[-1] not in listener.got and not listener.task.done():
                    await asyncio.sleep(0.001)
            while server.hub.channels.behind:
                await asyncio.sleep(0.001)
        for listener in listeners:
            assert listener.got == listener.expected
    finally:
        for listener in listeners:
            await _leave(listener)
        await server.stop()


async def _leave(listener: Listener) -> None:
    listener.task.cancel()
    await asyncio.gather(listener.task, return_exceptions=True)
    listener.feed.close()


# Memory: what is kept is bounded, whatever comes (the store alone, its time handed in)


class Time:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store():
    def store(**config: object) -> MemoryStore:
        return MemoryStore(Config(**config), Time())

    return store


def append(store: MemoryStore, channel: str, data: bytes = b"1", **more: object) -> int:
    accepted = []
    store.append(Draft(channel=channel, data=data, **{"ttl": 60} | more), accepted.append)
    return accepted[0].id


def test_a_hundred_thousand_pushes_to_a_thousand_channels_keep_no_more_than_the_backlog(store):
    kept = store(backlog_events=10, backlog_total_bytes=4 * MIB, backlog_bytes=MIB)
    for n in range(1000):
        for device in ("a", "b"):
            kept.register(f"c{n}", device)
    for n in range(100_000):
        append(kept, f"c{n % 1000}", b'{"n":1}', key=f"k{n}" if n % 100 == 0 else "")
        kept.clock.now += 0.001
    shelves = kept._shelves.values()
    held = sum(len(shelf.backlog) for shelf in shelves)
    assert kept.events == 100_000
    assert held == len(kept.ledger.entries) == len(kept._schedule) <= 10_000
    assert kept.bytes == sum(event.weight for shelf in shelves for event in shelf.backlog) <= 4 * MIB
    assert kept.ledger.outstanding == 2 * held
    assert max(len(shelf.backlog) for shelf in shelves) <= 10
    assert max(len(shelf.backlog._events) for shelf in shelves) < 100
    assert len(kept._schedule._order) < 1000


def test_the_channel_that_was_quiet_longest_makes_way_first(store):
    kept = store(backlog_total_bytes=64 * 1024, backlog_bytes=64 * 1024, max_event_bytes=32 * 1024)
    ids = {name: append(kept, name, b"1" * 10_000) for name in ("old", "middle", "young")}
    newer = append(kept, "old", b"1" * 10_000)
    with pytest.raises(Gone):
        kept.find("old", ids["old"]) if kept.shelf("old").backlog.evicted_id else kept.find("middle", ids["middle"])
    assert kept.find("old", newer).id == newer
    assert kept.find("young", ids["young"]).id == ids["young"]
    assert kept.bytes <= 64 * 1024


def test_one_event_always_has_its_place_however_large_it_is(store):
    kept = store(backlog_total_bytes=64 * 1024, backlog_bytes=64 * 1024, max_event_bytes=64 * 1024)
    id = append(kept, "c", b"1" * 64 * 1024)
    assert kept.find("c", id).id == id
    assert len(kept.shelf("c").backlog) == 1


def test_channels_that_nobody_uses_are_forgotten(store):
    kept = store(keep_expired=10)
    for n in range(2500):
        append(kept, f"c{n}", ttl=5, level=NONE)
    append(kept, "used", ttl=5)
    kept.register("registered", "d")
    for _ in range(20):
        kept.clock.now += 10
        for _ in range(4):
            kept.sweep(kept.clock.now, lambda channel: channel == "used")
    assert set(kept.channels()) == {"used", "registered"}
    assert (kept.bytes, len(kept.ledger.entries), len(kept._schedule), len(kept._pushed), len(kept._round)) == (0, 0, 0, 0, 2)


def test_a_channel_that_was_forgotten_is_as_new(store):
    kept = store(keep_expired=1)
    id = append(kept, "c", ttl=1)
    kept.clock.now += 100
    kept.sweep(kept.clock.now, lambda channel: False)
    kept.sweep(kept.clock.now, lambda channel: False)
    assert not kept.channels()
    with pytest.raises(NotFound):
        kept.find("c", id)
    assert append(kept, "c") > id


def test_devices_that_were_not_seen_for_long_leave_and_owe_nothing(store):
    kept = store(device_ttl=100, backlog_events=10)
    kept.register("c", "gone")
    kept.register("c", "here").feeds = 1
    id = append(kept, "c", ttl=1000)
    kept.clock.now += 101
    kept.sweep(kept.clock.now, lambda channel: True)
    entry = kept.ledger.entries[id]
    assert list(kept.shelf("c").audience.members) == ["here"]
    assert list(kept.devices.known) == ["here"]
    assert (entry.owed, kept.ledger.outstanding, sum(entry.counts)) == (1, 1, 2)


def test_a_keys_window_is_bounded_in_time(store):
    kept = store(idempotency_window=10)
    for n in range(100):
        append(kept, "c", key=f"k{n}")
        kept.clock.now += 1
    assert len(kept._keys) <= 11


def test_the_ids_of_a_store_fit_what_stores_hold(store):
    kept = store()
    kept.clock.now = 2 ** 43 / 1000 - 1
    assert append(kept, "c") < 2 ** 63
    assert parse_id(f"{2 ** 43 - 1}-0") < 2 ** 63


async def test_a_device_that_is_connected_is_not_forgotten_though_its_socket_takes_nothing(start, listen):
    server = await start(device_ttl=1000)
    await listen("c", device="d")
    (feed,) = server.hub.feeds.values()
    server.hub.channels.fall_behind(feed)
    now = server.store.clock()
    server.store.sweep(now + 2000, server.hub.is_used)
    assert "d" in server.store.shelf("c").audience.members
    server.hub.catch_up(feed)
    assert feed.live
