"""A feed as its client sees it: how it is asked for, how it begins, what is written on it, and how it ends."""

import asyncio
import gc
import re
import socket

import orjson
import pytest
import wire

from pere.feed import Feed, Place
from pere.care import Care

FRAME = re.compile(rb"(?:[^\n]+\n)+\n")


# How it begins


async def test_a_feed_begins_with_its_headers_then_retry_then_hello(start, connect):
    await start(retry=1.5)
    feed = await connect()
    await feed.send(wire.said("GET", "/feed/news"))
    head = await feed.head()
    assert (head.status, head.headers) == (200, {
        "content-type": "text/event-stream", "cache-control": "no-cache, no-transform", "x-accel-buffering": "no", "x-content-type-options": "nosniff",
        "transfer-encoding": "chunked"})
    assert await feed.until(b"\r\n") == b"d"
    assert await feed.exactly(15) == b"retry: 1500\n\n\r\n"
    size = int(await feed.until(b"\r\n"), 16)
    assert (await feed.exactly(size)).startswith(b"event: pere.hello\ndata: {")


async def test_hello_says_whom_we_take_it_for_and_where_receipts_go(start, listen, push):
    await start(receipt_jitter=2.5)
    hello = (await listen("c")).hello
    position = hello.pop("position")
    assert hello == {"device": None, "feedback": "/feedback/c", "ack_wait": None, "window": None, "receipt_jitter": 2.5, "heartbeat": 20.0}
    id = await push("c")
    # Who breaks off before the first event reads on from there, and misses none.
    assert (await (await listen("c", last=position)).next()).id == id
    assert (await listen("c", device="d")).hello == {"device": "d", "position": id, "feedback": "/feedback/c", "ack_wait": None, "window": None, "receipt_jitter": 2.5, "heartbeat": 20.0}
    assert (await listen("c", last="5-0")).hello["position"] == "5-0"
    assert (await listen("c", "d", device="d")).hello["feedback"] == "/feedback"
    assert (await listen("c.*", device="d")).hello["feedback"] == "/feedback"


@pytest.mark.parametrize("channels", [("c",), ("c", "empty"), ("*",)])
async def test_who_breaks_off_right_after_hello_can_go_on_from_its_position(listen, push, channels):
    for text in ("first", "second"):
        feed = await listen(*channels, format="raw")
        feed.close()
        await push("c", text)
        again = await listen(*channels, last=feed.hello["position"], format="raw")
        assert (await again.event()).data == text


@pytest.mark.parametrize("headers, query", [({"Device": "d"}, ""), ({"device": "d"}, ""), ({}, "?device=d"), ({"Device": "d"}, "?device=e")])
async def test_a_device_says_who_it_is_in_a_header_or_the_query(connect, headers, query):
    feed = await connect()
    await feed.send(wire.said("GET", "/feed/c" + query, b"", headers))
    assert b'"device":"d"' in await feed.until(b"}\n\n")


async def test_http_1_0_gets_its_feed_without_chunks(listen, push):
    feed = await listen("c", version="1.0", device="d")
    assert feed.answer_head.headers["connection"] == "close"
    assert "transfer-encoding" not in feed.answer_head.headers
    first = await push("c", "one\ntwo")
    await push("c", "three", to="d")
    assert await feed.events(2) == ["one\ntwo", "three"]
    assert f"id: {first}\ndata: one\ndata: two\n\n".encode() in feed.text
    replayed = await listen("c", version="1.0", last=first)
    assert replayed.hello["position"] == first


async def test_http_1_0_feeds_end_with_the_connection(start, listen):
    server = await start()
    feed = await listen("c", version="1.0")
    await server.stop()
    assert [message.event for message in await feed.end()] == ["pere.bye"]


async def test_a_feed_has_nothing_to_hear(listen, push):
    feed = await listen("c")
    await feed.send(wire.said("GET", "/feed/c") + b"\0" * 100)
    await push("c", "still here")
    assert (await feed.event()).data == "still here"


async def test_a_request_may_be_followed_by_a_feed_on_the_same_connection_but_not_the_other_way_round(connect, push):
    line = await connect()
    await line.send(wire.said("GET", "/healthz") + wire.said("GET", "/feed/c") + wire.said("GET", "/healthz"))
    assert (await line.answer()).json == {"status": "alive"}
    assert (await line.head()).headers["content-type"] == "text/event-stream"
    await line.until(b"pere.hello")
    await push("c", "after")
    taken = await line.until(b"data: after\n\n")
    assert b"HTTP/1.1" not in taken


async def test_head_says_what_get_would_say_without_the_feed(ask):
    answer = await ask("HEAD", "/feed/c")
    assert (answer.status, answer.headers["content-type"], answer.headers["x-accel-buffering"]) == (200, "text/event-stream", "no")


@pytest.mark.parametrize("configured, origin, allowed", [
    ("", "https://a.example", None), ("*", "https://a.example", "*"),
    ("https://a.example, https://b.example", "https://b.example", "https://b.example"), ("https://a.example", "https://c.example", None)])
async def test_a_browser_may_read_where_its_origin_is_configured(start, connect, configured, origin, allowed):
    await start(cors_origins=configured)
    feed = await connect()
    await feed.send(wire.said("GET", "/feed/c", b"", {"Origin": origin}))
    head = await feed.head()
    assert (head.status, head.headers.get("access-control-allow-origin")) == (200, allowed)


# What is written


async def test_one_channel_is_raw_and_many_are_envelopes_unless_asked_otherwise(listen, push):
    feeds = [await listen("c"), await listen("c", format="envelope"), await listen("c", "d"), await listen("c", "d", format="raw"),
             await listen("c.*", "c"), await listen("*", format="raw")]
    id = await push("c", {"n": 1}, type="t")
    messages = [await feed.event() for feed in feeds]
    assert {(message.id, message.event) for message in messages} == {(id, "t")}
    is_raw = [message.data == '{"n":1}' for message in messages]
    assert is_raw == [True, False, False, True, False, True]


async def test_a_channel_that_is_named_in_the_query_alone_is_raw_too(push, connect):
    feed = await connect()
    await feed.send(wire.said("GET", "/feed?channel=c&channel=c"))
    await feed.until(b"pere.hello")
    await push("c", "plain")
    await feed.until(b"data: plain\n\n")


async def test_an_envelope_tells_all_of_an_event(start, listen, push):
    server = await start()
    feed = await listen("c", format="envelope", device="d")
    server.store.clock = lambda: 1_700_000_000.123
    texts = await push("c", "two\nlines"), await push("c", {"n": 1.5}, type="order")
    assert [orjson.loads((await feed.event()).data) for _ in texts] == [
        {"id": texts[0], "channel": "c", "type": "message", "time": "2023-11-14T22:13:20.123Z", "attempt": 1, "data": "two\nlines"},
        {"id": texts[1], "channel": "c", "type": "order", "time": "2023-11-14T22:13:20.123Z", "attempt": 1, "data": {"n": 1.5}}]


async def test_an_envelope_tells_the_attempts_apart(listen, push):
    (await listen("c", device="d")).close()
    await push("c", "x")
    attempts = []
    for _ in range(3):
        feed = await listen("c", device="d", format="envelope")
        attempts.append(orjson.loads((await feed.event()).data)["attempt"])
        feed.close()
    assert attempts == [1, 2, 3]


async def test_control_frames_never_carry_an_id(start, listen, push):
    server = await start(backlog_events=2, retry=1, max_feeds_per_device=1)
    (await listen("c", device="d")).close()
    first = await push("c", "lost")
    for _ in range(2):
        await push("c", "kept")
    feed = await listen("c", device="d", last=first)
    await feed.events(2)
    await listen("c", device="d")
    await feed.end()
    assert server.hub.closes["replaced"] == 1
    frames = FRAME.findall(feed.text)
    controls = [frame for frame in frames if b"event: pere." in frame]
    assert [frame.split(b"\n")[0 if frame.startswith(b"event") else 1] for frame in controls] == [
        b"event: pere.hello", b"event: pere.gap", b"event: pere.bye"]
    assert not any(b"id:" in line.split(b"data:")[0] for frame in controls for line in frame.split(b"\n"))
    assert sum(frame.startswith(b"id: ") for frame in frames) == 2


async def test_nothing_that_is_pushed_can_forge_a_frame(listen, push):
    feed = await listen("c")
    text = "x\n\nid: 1-0\nevent: pere.bye\ndata: y\r\rretry: 1"
    id = await push("c", text)
    message = await feed.event()
    assert (message.id, message.event, message.data) == (id, "message", text.replace("\r", "\n"))
    assert feed.decoder.retry == 3


async def test_a_silent_feed_gets_a_comment_every_heartbeat(start, listen, push):
    await start(heartbeat=0.2)
    feed, old = await listen("c", device="d"), await listen("c", version="1.0")
    for _ in range(3):
        await feed.comment()
        await old.comment()
    id = await push("c", "and then")
    assert (await feed.event()).id == (await old.event()).id == id


async def test_a_feed_is_silent_too_while_others_get_what_is_addressed_to_them(start, listen, push):
    await start(heartbeat=0.2)
    talking, silent = await listen("c", device="talking"), await listen("c", device="silent")
    comment = asyncio.ensure_future(silent.comment())
    while not comment.done():
        await push("c", to="talking")
        await talking.event()
        await asyncio.sleep(0.01)
    await comment


# Where it begins


async def test_a_new_listener_starts_at_what_is_new(listen, push):
    await push("c", "old")
    feeds = [await listen("c"), await listen("c", device="d"), await listen("c", from_="new"), await listen("c", device="e", from_="new"),
             await listen("c", "x"), await listen("*", device="f", format="raw")]
    await push("c", "new")
    for feed in feeds:
        assert (await feed.event()).data.count("new")


async def test_from_all_begins_with_the_oldest_that_is_kept(start, listen, push):
    await start(backlog_events=3)
    for n in range(5):
        await push("c", str(n))
    for device in ("", "d"):
        feed = await listen("c", device=device, from_="all")
        assert await feed.events(3) == ["2", "3", "4"]


async def test_from_an_id_begins_after_it(listen, push):
    ids = [await push("c", str(n)) for n in range(4)]
    for device in ("", "d"):
        assert await (await listen("c", device=device, from_=ids[1])).events(2) == ["2", "3"]
    assert (await (await listen("c", from_=ids[3], last=ids[2])).event()).data == "3"


@pytest.mark.parametrize("wanted, texts", [("all", "01234"), ("2", "034"), ("4", "03"), ("new", "03")])
async def test_from_gives_a_known_device_what_it_asks_for_and_before_that_what_it_owes(listen, push, feedback, wanted, texts):
    feed = await listen("c", device="d")
    ids = [await push("c", str(n)) for n in range(5)]
    await feed.events(5)
    for n in (1, 2, 4):
        await feedback("c", "d", ids[n])
    feed.close()
    again = await listen("c", device="d", from_=ids[int(wanted)] if wanted.isdigit() else wanted)
    await push("c", "new")
    assert await again.events(len(texts) + 1) == [*texts, "new"]


@pytest.mark.parametrize("named", [
    {"Last-Event-ID": "ID"}, {"last-event-id": "ID"}, {"last_event_id": "ID"}, {"query": "?last_event_id=ID"},
    {"Last-Event-ID": "ID", "query": "?last_event_id=1-0"}])
async def test_an_anonymous_feed_goes_on_after_its_last_event_id(connect, push, named):
    ids = [await push("c", n) for n in range(3)]
    fields = {name: value.replace("ID", ids[0]) for name, value in named.items() if name != "query"}
    feed = await connect()
    await feed.send(wire.said("GET", "/feed/c" + named.get("query", "").replace("=ID", f"={ids[0]}"), b"", fields))
    taken = await feed.until(b"data: 2\n\n")
    assert (b"data: 0\n" in taken, b"data: 1\n" in taken) == (False, True)


async def test_a_last_event_id_from_the_future_misses_nothing_that_comes(listen, push):
    for device in ("", "d"):
        feed = await listen("c", device=device, last="8000000000000-5")
        await push("c", "new")
        assert (await feed.event()).data == "new"


# What is refused


@pytest.mark.parametrize("target, headers, error", [
    ("/feed/a%20b", {}, (400, "bad_channel")),
    ("/feed/a/b", {}, (400, "bad_channel")),
    ("/feed/", {}, (400, "bad_channel")),
    ("/feed/a*", {}, (400, "bad_channel")),
    ("/feed/%FF", {}, (400, "bad_encoding")),
    ("/feed/" + 129 * "x", {}, (400, "bad_channel")),
    ("/feed/c%0Aid:1", {}, (400, "bad_channel")),
    ("/feed", {}, (400, "no_channel")),
    ("/feed?channel=", {}, (400, "bad_channel")),
    ("/feed?channel=a&channel=b/c", {}, (400, "bad_channel")),
    ("/feed?channel=a**b", {}, (400, "bad_channel")),
    ("/feed?channel=**.b", {}, (400, "bad_channel")),
    ("/feed?channel=a/*", {}, (400, "bad_channel")),
    ("/feed?channel=" + 129 * "*", {}, (400, "bad_channel")),
    ("/feed?" + "&".join(f"channel={n}" for n in range(4)), {}, (400, "too_many_channels")),
    ("/feed?" + "&".join(f"channel={n}.*" for n in range(4)), {}, (400, "too_many_channels")),
    ("/feed?channel=%FF", {}, (400, "bad_query")),
    ("/feed/c", {"Device": "a b"}, (400, "bad_device")),
    ("/feed/c", {"Device": "ü"}, (400, "bad_device")),
    ("/feed/c", {"Device": 129 * "x"}, (400, "bad_device")),
    ("/feed/c?device=a/b", {}, (400, "bad_device")),
    ("/feed/c?device=%00", {}, (400, "bad_device")),
    ("/feed/c", {"Last-Event-ID": "x"}, (400, "bad_event_id")),
    ("/feed/c", {"Last-Event-ID": "1-0\t-"}, (400, "bad_event_id")),
    ("/feed/c", {"last_event_id": "1.0"}, (400, "bad_event_id")),
    ("/feed/c?last_event_id=1-2-3", {}, (400, "bad_event_id")),
    ("/feed/c?from=old", {}, (400, "bad_event_id")),
    ("/feed/c?from=", {}, (400, "bad_event_id")),
    ("/feed/c?format=xml", {}, (400, "bad_format")),
    ("/feed/c?format=", {}, (400, "bad_format")),
    ("/feed/c", {"Last-Event-ID": "1-0", "last-event-id": "2-0"}, (400, "repeated_header")),
    ("/feed/c", {"Content-Length": "1"}, (413, "large_body")),
    ("/feed/c", {"Expect": "the unexpected"}, (417, "expectation")),
    ("/feed/c", {"X": 20_000 * "x"}, (431, "long_headers")),
    ("/feed/c?x=" + 9_000 * "x", {}, (414, "long_line")),
])
async def test_a_feed_that_is_asked_for_wrongly_is_refused_and_says_why(start, ask, target, headers, error):
    server = await start(max_feed_channels=3)
    assert (await ask("GET", target, **{name.replace("-", "_") if name != "last-event-id" else name: value for name, value in headers.items()})).error == error
    assert (server.hub.feeds, server.hub.channels, server.store.devices.known) == ({}, {}, {})


async def test_who_slips_in_from_is_told_what_it_may_be(ask):
    assert (await ask("GET", "/feed/c?from=last")).json["message"] == "from is new, all or an id, and an event id is <unix ms>-<seq>, not 'last'"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("target", ["/feed", "/feed/c"])
async def test_a_feed_is_only_read(ask, method, target):
    answer = await ask(method, target)
    assert (answer.error, answer.headers["allow"]) == ((405, "wrong_method"), "GET, HEAD, OPTIONS")


async def test_no_more_feeds_are_taken_than_configured(start, ask, listen, until):
    server = await start(max_feeds=2)
    first = await listen("c")
    await listen("c", device="d")
    answer = await ask("GET", "/feed/c", Device="e")
    assert (answer.error, answer.headers["retry-after"]) == ((503, "too_many_feeds"), "5")
    first.close()
    await until(lambda: len(server.hub.feeds) == 1)
    await listen("c", device="e")


@pytest.mark.parametrize("target", ["/feed/b", "/feed?channel=a&channel=b", "/feed?channel=*"])
async def test_no_more_devices_are_registered_than_configured(start, ask, listen, target):
    server = await start(max_devices=2)
    await listen("a", device="d")
    await listen("b", device="d")
    answer = await ask("GET", target, Device="e")
    assert (answer.error, answer.headers["retry-after"]) == ((503, "too_many_devices"), "60")
    assert (len(server.hub.feeds), list(server.store.devices.known), server.store.devices.registrations) == (2, ["d"], 2)
    await listen("a")
    await listen("a", device="d")


# How it ends


async def test_one_feed_more_than_a_device_may_have_replaces_its_oldest(start, listen, push, measured):
    await start(max_feeds_per_device=2, retry=2)
    oldest, newer = await listen("c", device="d"), await listen("c", device="d")
    newest = await listen("c", device="d")
    assert await oldest.control("pere.bye") == {"reason": "replaced", "retry": 2.0}
    assert (await oldest.end(), oldest.is_whole) == ([], True)
    await push("c", "on")
    assert await newer.events(1) == await newest.events(1) == ["on"]
    assert (await measured())["pere_feed_closes_total", "replaced"] == 1


async def test_anonymous_feeds_replace_nobody(start, listen, push):
    await start(max_feeds_per_device=1)
    feeds = [await listen("c") for _ in range(3)]
    await push("c", "on")
    assert [await feed.events(1) for feed in feeds] == [["on"]] * 3


async def test_a_device_that_was_removed_is_told_and_its_return_is_answered_204(start, ask, listen, push, measured):
    server = await start()
    feeds = [await listen("c", device="d"), await listen("other", device="d"), await listen("c", device="e")]
    assert (await ask("DELETE", "/admin/devices/d")).status == 204
    for feed in feeds[:2]:
        assert (await feed.control("pere.bye"))["reason"] == "kicked"
        assert (await feed.end(), feed.is_whole) == ([], True)
    again = await ask("GET", "/feed/c", Device="d")
    assert (again.status, again.body, "content-length" in again.headers) == (204, b"", False)
    assert (await ask("GET", "/feed?channel=c&device=d")).status == 204
    assert (await ask("GET", "/feed/c?device=d&ack_wait=much&last_event_id=none")).status == 204  # there is nothing to mend in what it asks for
    await push("c", "on")
    assert await feeds[2].events(1) == ["on"]
    assert (await measured())["pere_feed_closes_total", "kicked"] == 2
    # That is for those who reconnect by themselves; who returns later is a new device.
    now = server.store.clock()
    server.store.clock = lambda: now + 61
    await listen("c", device="d")


async def test_every_feed_is_told_when_the_server_ends_and_each_another_time_to_return(start, listen):
    server = await start(retry=10)
    feeds = [await listen("c", device=f"d{n}") for n in range(8)] + [await listen("*")]
    await server.stop()
    retries = []
    for feed in feeds:
        told = await feed.control("pere.bye")
        assert told["reason"] == "drain"
        assert (await feed.end(), feed.is_whole) == ([], True)
        assert feed.decoder.retry == pytest.approx(told["retry"], abs=0.001)
        retries.append(told["retry"])
    assert all(10 <= retry <= 20 for retry in retries)
    assert len(set(retries)) > 1
    assert server.hub.closes["drain"] == 9


async def test_a_device_that_dies_while_it_reads_is_noticed_and_counted(start, listen, push, until, measured, get):
    server = await start()
    feed, other = await listen("c", device="d"), await listen("c", device="e")
    id = await push("c", "x" * 100)
    await feed.more()
    feed.reset()
    await until(lambda: len(server.hub.feeds) == 1)
    await push("c", "y")
    assert await other.events(2) == ["x" * 100, "y"]
    metrics = await measured()
    assert (metrics["pere_feed_closes_total", "gone"], metrics["pere_devices", "online"], metrics["pere_devices", "registered"]) == (1, 1, 2)
    lines = {line["device"]: line["online"] for line in (await get(f"/events/c/{id}/devices"))["devices"]}
    assert lines == {"d": False, "e": True}
    assert await (await listen("c", device="d")).events(2) == ["x" * 100, "y"]


async def test_a_device_that_dies_under_the_write_is_noticed_at_once(start, listen, push, until):
    server = await start()
    feed = await listen("c", device="d")
    feed.reset()
    # Nothing is awaited between the death and the broadcasts, so the first write meets a dead socket.
    await asyncio.gather(*(push("c", str(n)) for n in range(3)))
    await until(lambda: not server.hub.feeds)
    assert (server.hub.closes["gone"], server.hub.channels.behind) == (1, 0)
    assert sorted(await (await listen("c", device="d")).events(3)) == ["0", "1", "2"]  # pushed at once, so in any order


async def test_a_client_that_closes_its_half_has_gone(start, listen, until):
    server = await start()
    feed = await listen("c")
    feed.sock.shutdown(socket.SHUT_WR)
    await until(lambda: not server.hub.feeds)
    assert await feed.end() == []
    assert (server.hub.closes["gone"], server.hub.channels) == (1, {})


async def test_a_feed_leaves_nothing_behind(start, listen, until):
    server = await start()
    for _ in range(3):
        feeds = [await listen("c", device="d"), await listen("a", "b.*"), await listen("*", device="e"), await listen("c", version="1.0")]
        for feed in feeds:
            feed.close()
        await until(lambda: not server.hub.feeds)
    hub = server.hub
    assert (hub.channels, hub.channels.behind, hub.channels._wildcards, server.store.devices.online, hub.opens, hub.closes["gone"]) == ({}, 0, {}, 0, 12, 12)


@pytest.mark.parametrize("channels, wanted", [
    (["c"], {}), (["c"], {"device": "d"}), (["c", "e"], {"device": "d"}), (["c.*", "**"], {"device": "d"}), (["c"], {"device": "d", "format": "envelope", "ack_wait": 60}),
])
async def test_a_feed_that_has_gone_leaves_nothing_to_collect(start, listen, push, until, channels, wanted):
    # The collector comes after tens of thousands of objects: until then, feeds that come and go would all still be there.
    server = await start(heartbeat=0.1)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            feed = await listen(*channels, **wanted)
            await push("c", "1")
            await feed.next()
            feed.close()
        await until(lambda: not server.hub.feeds)
        # The wheel lets go of a feed when its turn comes.
        await until(lambda: not [each for each in gc.get_objects() if isinstance(each, Feed | Place | Care)])
    finally:
        gc.enable()


@pytest.mark.parametrize("where", ["reach", "check_room"])
async def test_whatever_goes_wrong_behind_what_is_reached_first_is_answered(start, ask, monkeypatch, caplog, where):
    async def reach(*_):
        return 1 / 0

    server = await start()
    monkeypatch.setattr(server.store, "lags", lambda *_: True)
    monkeypatch.setattr(server.store, where, reach if where == "reach" else lambda *_: 1 / 0)
    assert (await ask("GET", "/feed/c", Device="d")).error == (500, "internal")
    assert caplog.text.count("ZeroDivisionError") == 1
    caplog.clear()
