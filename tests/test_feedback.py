"""Receipts: how a device answers for an event, what the ledger makes of it, and all that is no receipt."""

import asyncio
from datetime import UTC, datetime
from urllib.parse import urlencode

import orjson
import pytest
import uvloop
import wire
from hypothesis import given, settings
from hypothesis import strategies as st
from redises import MEMORY_AND_REDIS, named

from pere.config import Config
from pere.event import parse_id
from pere.handlers.many import alike
from pere.parts import open_store
from pere.receipt import PROCESSED
from pere.server import Server

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"


@pytest.fixture
def sent(listen, push):
    """`id = await sent("a", "b", channel="c")`: an event that these devices have on a feed that is open."""

    async def sent(*devices: str, channel: str = "c", **query: object) -> str:
        for device in devices:
            await listen(channel, device=device)
        return await push(channel, **query)

    return sent


@pytest.fixture
def begin(start, tmp_path):
    """`server = await begin("sqlite", max_batch=4)`: a server on this kind of store, on the file that the one before it has left."""

    async def begin(store: str, **settings: object) -> Server:
        while start.servers:
            await start.servers.pop().stop()
        return await start(open_store(Config(store=named(store, tmp_path), **settings)), **settings)

    return begin


# The ways to say it


@pytest.mark.parametrize("headers, query, body", [
    ({"Device": "d", "Last-Event-ID": "ID"}, "", b""),
    ({"device": "d", "Last-Event-Id": "ID"}, "", b""),
    ({"device": "d", "last_event_id": "ID"}, "", b""),
    ({"device": "d", "last_event_id": "ID", "Content-Type": FORM}, "", b"status=printed"),
    ({"Device": "d"}, "?event_id=ID", b""),
    ({}, "?device=d&event_id=ID&state=processed&status=x", b""),
    ({"Content-Type": FORM}, "", b"device=d&event_id=ID&state=processed"),
    ({"Device": "d", "Content-Type": JSON}, "", b'{"event_id": "ID"}'),
    ({"Content-Type": JSON}, "", b'{"device": "d", "event_id": "ID", "state": "processed", "status": {"n": 1}}'),
    ({"Content-Type": FORM}, "", b' {"device": "d", "event_id": "ID"}'),
    ({}, "", b'{"device": "d", "event_id": "ID"}'),
    ({}, "?device=d", b"event_id=ID"),
    ({"Device": "d", "Last-Event-ID": "ID", "Content-Type": JSON}, "?device=other&event_id=1-0", b'{"device": "third", "event_id": "2-0"}'),
])
async def test_a_receipt_can_be_said_in_many_ways(sent, start, get, headers, query, body):
    id = await sent("d")
    fields = {name: value.replace("ID", id) for name, value in headers.items()}
    connection = await wire.Wire.open(await start.port())
    await connection.send(wire.said("POST", f"/feedback/c{query.replace('ID', id)}", body.replace(b"ID", id.encode()), fields))
    answer = await connection.answer()
    connection.close()
    assert (answer.status, answer.json) == (200, {"state": "processed", "duplicate": False})
    assert (await get(f"/events/c/{id}"))["counts"]["processed"] == 1


@MEMORY_AND_REDIS
async def test_what_the_devices_of_2014_send_is_still_understood(sent, ask, get):
    id = await sent("kitchen")
    answer = await ask("POST", "/feedback/c", urlencode({"status": "Printed on the 1st floor"}), device="kitchen", Last_Event_Id=id, Content_Type=FORM)
    assert answer.json == {"state": "processed", "duplicate": False}
    line, = (await get(f"/events/c/{id}/devices"))["devices"]
    assert (line["device"], line["status"]) == ("kitchen", "Printed on the 1st floor")


@pytest.mark.parametrize("status, kept", [
    ("printed", "printed"), ("ü\n\"\\", "ü\n\"\\"), ({"paper": 0, "ink": [1.5, None]}, {"paper": 0, "ink": [1.5, None]}), (17, 17), (False, False), ("", ""),
])
async def test_the_devices_own_word_is_kept_as_it_was_said(sent, feedback, get, status, kept):
    id = await sent("d")
    assert (await feedback("c", "d", id, status=status)).status == 200
    assert (await get(f"/events/c/{id}/devices"))["devices"][0]["status"] == kept


@MEMORY_AND_REDIS
async def test_equal_words_of_many_devices_are_kept_once(start, sent, feedback, get):
    server = await start()
    id = await sent("a", "b", "c")
    await feedback("c", "a", id, status="done")
    await feedback("c", "b", id, status="done")
    await feedback("c", "c", id, status="no paper")
    entry, = server.store.ledger.entries.values()
    assert list(entry.sayings) == [b'"done"', b'"no paper"']
    assert {line["device"]: line["status"] for line in (await get(f"/events/c/{id}/devices"))["devices"]} == {"a": "done", "b": "done", "c": "no paper"}


@MEMORY_AND_REDIS
async def test_words_that_are_too_many_are_dropped_and_counted_but_the_receipt_stands(start, sent, feedback, get, measured):
    await start(max_event_status_bytes=10)
    id = await sent("a", "b")
    await feedback("c", "a", id, status="12345678")
    assert (await feedback("c", "b", id, status="x")).json["state"] == "processed"
    assert {line["device"]: line["status"] for line in (await get(f"/events/c/{id}/devices"))["devices"]} == {"a": "12345678", "b": None}
    assert (await measured())["pere_statuses_dropped_total"] == 1


# What becomes of it


@pytest.mark.parametrize("receipt, words, last, counts", [
    ("processed", "delivered processed", (200, {"state": "processed", "duplicate": False}), {"processed": 1}),
    ("processed", "delivered failed", (200, {"state": "failed", "duplicate": False}), {"failed": 1}),
    ("processed", "delivered delivered", (200, {"state": "delivered", "duplicate": True}), {"delivered": 1}),
    ("processed", "processed delivered", (200, {"state": "processed", "duplicate": True}), {"processed": 1}),
    ("processed", "processed processed", (200, {"state": "processed", "duplicate": True}), {"processed": 1}),
    ("processed", "failed delivered", (200, {"state": "failed", "duplicate": True}), {"failed": 1}),
    ("processed", "failed failed", (200, {"state": "failed", "duplicate": True}), {"failed": 1}),
    ("processed", "processed failed", (409, "conflict"), {"processed": 1}),
    ("processed", "failed processed", (409, "conflict"), {"failed": 1}),
    ("delivered", "delivered", (200, {"state": "delivered", "duplicate": False}), {"delivered": 1}),
    ("delivered", "delivered processed", (200, {"state": "processed", "duplicate": False}), {"processed": 1}),
    ("delivered", "delivered failed", (200, {"state": "failed", "duplicate": False}), {"failed": 1}),
])
async def test_states_only_go_up_and_the_first_hard_one_stands(sent, feedback, get, receipt, words, last, counts):
    id = await sent("d", receipt=receipt)
    for word in words.split():
        answer = await feedback("c", "d", id, state=word)
    assert (answer.error if answer.status == 409 else (answer.status, answer.json)) == last
    status = await get(f"/events/c/{id}")
    assert {state: count for state, count in status["counts"].items() if count} == counts
    assert status["complete"] is ("delivered" not in counts or receipt == "delivered")


@MEMORY_AND_REDIS
async def test_delivered_closes_only_what_asked_for_no_more(sent, feedback, get):
    low, high = await sent("d", receipt="delivered"), await sent(receipt="processed")
    for id in (low, high):
        await feedback("c", "d", id, state="delivered")
    assert [((status := await get(f"/events/c/{id}"))["complete"], status["outstanding"]) for id in (low, high)] == [(True, 0), (False, 1)]


@MEMORY_AND_REDIS
async def test_a_late_receipt_still_wins_and_says_that_it_was_late(start, sent, feedback, get):
    server = await start()
    id = await sent("d", ttl=10)
    now = server.store.clock()
    server.store.clock = lambda: now + 20
    server.store.sweep(now + 20, server.hub.is_used)
    await server.store.settle()
    assert (await get(f"/events/c/{id}"))["counts"]["expired"] == 1
    # What would not have closed the event in time does not open it again.
    assert (await feedback("c", "d", id, state="delivered")).json == {"state": "expired", "duplicate": True}
    assert (await feedback("c", "d", id)).json == {"state": "processed", "duplicate": False, "late": True}
    assert (await feedback("c", "d", id)).json == {"state": "processed", "duplicate": True}
    line, = (await get(f"/events/c/{id}/devices"))["devices"]
    assert (line["state"], line["late"]) == ("processed", True)
    assert (await get(f"/events/c/{id}"))["counts"]["expired"] == 0


@MEMORY_AND_REDIS
async def test_an_unknown_event_and_a_device_outside_the_audience_get_the_same_answer(sent, ask):
    id = await sent("d")
    other = await sent("e", channel="other")
    answers = [await ask("POST", "/feedback/c", Device=device, Last_Event_ID=event) for device, event in [
        ("stranger", id), ("d", "1-0"), ("stranger", "9000000000-5"), ("d", other), ("e", id)]]
    assert {answer.error for answer in answers} == {(404, "unknown_event")}
    assert len({answer.body for answer in answers}) == 1


@MEMORY_AND_REDIS
async def test_an_event_that_made_way_is_gone(start, sent, push, feedback):
    await start(backlog_events=2)
    id = await sent("d")
    for _ in range(2):
        await push("c")
    assert (await feedback("c", "d", id)).error == (410, "event_gone")


@MEMORY_AND_REDIS
async def test_a_device_that_registers_later_is_not_in_the_audience(push, listen, feedback):
    await listen("c", device="early")
    id = await push("c")
    await listen("c", device="late")
    assert (await feedback("c", "late", id)).error == (404, "unknown_event")


@MEMORY_AND_REDIS
async def test_a_receipt_measures_the_time_since_the_push_and_since_the_sending(start, listen, push, feedback, get, measured):
    server = await start()
    now = server.store.clock()
    (await listen("c", device="d")).close()
    id = await push("c")
    server.store.clock = lambda: now + 100
    feed = await listen("c", device="d")
    assert (await feed.event()).id == id
    server.store.clock = lambda: now + 104
    await feedback("c", "d", id)
    line, = (await get(f"/events/c/{id}/devices"))["devices"]
    assert line["latency"] == pytest.approx(104, rel=0.06)
    assert (await get(f"/events/c/{id}"))["latency"]["p50"] == line["latency"]
    metrics = await measured()
    assert metrics["pere_receipt_roundtrip_seconds_sum", "processed"] == pytest.approx(4, rel=0.06)
    assert metrics["pere_receipt_roundtrip_seconds_count", "processed"] == 1


@MEMORY_AND_REDIS
async def test_a_round_trip_that_was_over_before_the_device_was_back_began_with_the_push(start, listen, push, ask, measured):
    server = await start()
    now = server.store.clock()
    server.store.clock = lambda: now
    (await listen("c", device="d")).close()
    ids = [await push("c") for _ in range(3)]
    server.store.clock = lambda: now + 100
    feed = await listen("c", device="d")
    assert [(await feed.event()).id for _ in ids] == ids
    said = {"at": _rfc3339(now + 50)}
    assert (await ask("POST", "/feedback/c", said, Device="d", Last_Event_ID=ids[0])).status == 200
    assert (await ask("POST", "/feedback", {"receipts": [{"event_id": id} | said for id in ids[1:]]}, Device="d")).status == 200
    metrics = await measured()
    assert metrics["pere_receipt_roundtrip_seconds_sum", "processed"] == pytest.approx(3 * 50, rel=0.06)


# How it goes, which is no receipt and changes no state


@pytest.fixture
def asked(start):
    """`asked()`: with what the redelivery was called since it was last asked for, as `("retry", device, delay)`."""

    def asked() -> list[tuple[object, ...]]:
        calls, asked.calls = asked.calls, []
        return calls

    asked.calls = []
    return asked


@pytest.fixture
def watched(begin, asked):
    """`server = await watched("sqlite")`: as `begin`, and `asked` hears of what the redelivery is asked."""

    async def watched(store: str, **settings: object) -> Server:
        server = await begin(store, **settings)
        redelivery = server.hub.redelivery
        redelivery.working, working = lambda device, event: asked.calls.append(("working", device)) or working(device, event), redelivery.working
        redelivery.retry, retry = lambda device, event, delay: asked.calls.append(("retry", device, delay)) or retry(device, event, delay), redelivery.retry
        return server

    return watched


@pytest.mark.parametrize("store", ["memory", "sqlite", "redis"])
@pytest.mark.parametrize("query, headers, body, call", [
    ("?state=working", {}, b"", ("working", "d")),
    ("?state=retry", {}, b"", ("retry", "d", 0)),
    ("?state=retry&delay=2.5", {}, b"", ("retry", "d", 2.5)),
    ("?state=retry&delay=", {}, b"", ("retry", "d", 0)),
    ("", {"Content-Type": FORM}, b"state=working", ("working", "d")),
    ("", {"Content-Type": FORM}, b"state=retry&delay=3600", ("retry", "d", 3600)),
    ("", {"Content-Type": FORM}, b"state=retry&delay=0", ("retry", "d", 0)),
    ("", {"Content-Type": JSON}, b'{"state": "working"}', ("working", "d")),
    ("", {"Content-Type": JSON}, b'{"state": "retry", "delay": 3600}', ("retry", "d", 3600)),
    ("", {"Content-Type": JSON}, b'{"state": "retry", "delay": 0.05}', ("retry", "d", 0.05)),
    ("?state=retry", {"Content-Type": JSON}, b'{"delay": 7}', ("retry", "d", 7)),
    ("?delay=7", {"Content-Type": JSON}, b'{"state": "retry"}', ("retry", "d", 7)),
    ("?delay=8&state=failed", {"Content-Type": JSON}, b'{"state": "retry", "delay": 7}', ("retry", "d", 7)),
])
async def test_how_it_goes_can_be_said_in_many_ways(watched, sent, ask, asked, get, store, query, headers, body, call):
    server = await watched(store)
    id = await sent("d")
    fields = {name.replace("-", "_"): value for name, value in headers.items()}
    for state in ("pending", "delivered"):
        answer = await ask("POST", f"/feedback/c{query}", body, Device="d", Last_Event_ID=id, **fields)
        assert (answer.status, answer.json) == (200, {"state": state, "duplicate": False})
        assert asked() == [call]
        assert sum((await get(f"/events/c/{id}"))["counts"].values()) == server.store.ledger.outstanding == 1
        await ask("POST", "/feedback/c?state=delivered", Device="d", Last_Event_ID=id)
    assert (await get(f"/events/c/{id}"))["latency"] != {}  # which is of the receipt, and not of what was no receipt


@pytest.mark.parametrize("store", ["memory", "sqlite", "redis"])
@pytest.mark.parametrize("word", ["working", "retry"])
async def test_how_it_goes_is_a_duplicate_where_nothing_is_owed_any_more(begin, sent, feedback, ask, store, word, measured):
    server = await begin(store)
    done, low, recalled, short = await sent("d"), await sent(receipt="delivered"), await sent(), await sent(ttl=10)
    await feedback("c", "d", done, state="failed")
    await feedback("c", "d", low, state="delivered")
    await ask("DELETE", f"/events/c/{recalled}")
    now = server.store.clock()
    server.store.clock = lambda: now + 20
    server.store.sweep(now + 20, server.hub.is_used)
    await server.store.settle()
    for id, state in ((done, "failed"), (low, "delivered"), (recalled, "cancelled"), (short, "expired")):
        assert (await feedback("c", "d", id, state=word)).json == {"state": state, "duplicate": True}
    last = await sent()
    await feedback("c", "d", last, state=word)
    metrics = await measured()
    counted = {labels[1:]: count for labels, count in metrics.items() if labels[0] == "pere_receipts_total" and labels[2] == word}
    assert counted == {("accepted", word): 1, ("duplicate", word): 4}


@pytest.mark.parametrize("store", ["memory", "sqlite", "redis"])
@pytest.mark.parametrize("word", ["working", "retry", "processed"])
async def test_how_it_goes_is_refused_as_a_receipt_would_be(begin, sent, push, ask, store, word):
    server = await begin(store, backlog_events=2, **{"retention_events": 2} if store == "sqlite" else {})
    gone, other = await sent("d"), await sent("e", channel="other")
    for _ in range(6):  # in a file, what is old goes with one of the next commits
        kept = await push("c")
        await server.store.settle()
    say = [(device, id) for device, id in (("stranger", kept), ("d", "1-0"), ("d", other), ("e", kept))]
    answers = [await ask("POST", f"/feedback/c?state={word}", Device=device, Last_Event_ID=id) for device, id in say]
    assert {answer.error for answer in answers} <= {(404, "unknown_event"), (410, "event_gone")}
    assert answers[0].error == answers[3].error == (404, "unknown_event")
    assert (await ask("POST", f"/feedback/c?state={word}", Device="d", Last_Event_ID=gone)).error == (410, "event_gone")
    results = (await ask("POST", "/feedback", {"receipts": [{"event_id": gone, "state": word}]}, Device="d")).json["results"]
    assert [(result["status"], result["error"]) for result in results] == [(410, "event_gone")]


@MEMORY_AND_REDIS
async def test_an_event_that_asks_for_no_receipts_has_none_to_be_put_off(sent, feedback):
    id = await sent("d", receipt="none")
    for word in ("working", "retry", "processed"):
        assert (await feedback("c", "d", id, state=word)).error == (404, "unknown_event")


@pytest.mark.parametrize("store", ["memory", "sqlite", "redis"])
async def test_how_it_goes_with_many_is_told_in_order_and_counts_after_what_is_said_beside_it(watched, sent, ask, asked, store):
    await watched(store)
    ids = [await sent("d") for _ in range(4)]
    answer = await ask("POST", "/feedback", {"receipts": [
        {"event_id": ids[0], "state": "retry", "delay": 9},
        {"event_id": ids[1]},
        {"event_id": "x", "state": "working"},
        {"event_id": ids[2], "state": "working"},
        {"event_id": ids[2], "state": "delivered"},
        {"event_id": ids[1], "state": "retry"},
        {"event_id": ids[3], "state": "failed"},
    ]}, Device="d")
    results = answer.json["results"]
    assert [result.get("event_id") for result in results] == [ids[0], ids[1], "x", ids[2], ids[2], ids[1], ids[3]]
    assert [(result.get("state"), result.get("duplicate")) for result in results] == [
        ("pending", False), ("processed", False), (None, None), ("delivered", False), ("delivered", False), ("processed", True), ("failed", False)]
    assert asked() == [("retry", "d", 9), ("working", "d"), ("retry", "d", 0)]
    answer = await ask("POST", "/feedback", {"receipts": [{"event_id": ids[0], "state": "working"}]}, Device="d")
    assert answer.json == {"results": [{"event_id": ids[0], "state": "pending", "duplicate": False}]}


@pytest.mark.parametrize("store", ["memory", "sqlite", "redis"])
async def test_how_it_goes_is_recognised_on_a_connection_like_any_receipt(watched, sent, connect, push, asked, store):
    await watched(store)
    await sent("a", "b")
    ids, connection = [await push("c") for _ in range(3)], await connect()

    async def say(device: str, id: str, body: bytes) -> object:
        await connection.send(wire.said("POST", "/feedback/c", body, {"Device": device, "Last-Event-ID": id, "Content-Type": JSON}))
        answer = await connection.answer()
        return answer.json if answer.status == 200 else answer.error

    first, again = {"state": "pending", "duplicate": False}, {"state": "processed", "duplicate": True}
    for _ in range(2):
        for id in ids:
            assert await say("a", id, b'{"state":"working"}') == first
            assert await say("b", id, b'{"state":"retry","delay":5}') == first
    assert len(asked()) == 12
    assert await say("a", ids[0], b'{"state":"processed"}') == {"state": "processed", "duplicate": False}
    assert await say("a", ids[0], b'{"state":"working"}') == again
    assert await say("a", ids[1], b'{"state":"working","delay":5}') == (400, "delay_without_retry")
    assert await say("a", ids[1], b'{"state":"retry","status":5}') == (400, "status_without_receipt")
    assert await say("a", "1-0", b'{"state":"retry"}') == (404, "unknown_event")
    assert await say("nobody", ids[1], b'{"state":"retry"}') == (404, "unknown_event")
    assert await say("a", ids[1], b'{"state":"processed","delay":5}') == (400, "delay_without_retry")
    assert await say("a", ids[1], b'{"state":"failed"}') == {"state": "failed", "duplicate": False}


async def test_a_receipt_on_its_way_to_the_disk_does_not_show_yet(begin, sent):
    server = await begin("sqlite")
    id = await sent("d")
    event, told = server.store.shelf("c").backlog.find(parse_id(id)), []
    server.store.record("c", "d", event.id, PROCESSED, None, lambda *answer: told.append(answer), told.append)
    assert server.hub.redelivery.working("d", event)
    assert server.hub.redelivery.retry("d", event, 5)
    await server.store.settle()
    assert told == [(PROCESSED, 0)]
    assert not server.hub.redelivery.working("d", event)
    assert not server.hub.redelivery.retry("d", event, 5)


async def test_a_word_that_is_none_is_answered_with_those_that_are(ask):
    answer = await ask("POST", "/feedback/c?state=done", Device="d", Last_Event_ID="1-0")
    assert all(word in answer.json["message"] for word in ("delivered", "processed", "failed", "working", "retry", "'done'"))


# What is no receipt


@pytest.mark.parametrize("target, headers, body, error", [
    ("/feedback/a%20b", {}, b"", (400, "bad_channel")),
    ("/feedback/a/b", {}, b"", (400, "bad_channel")),
    ("/feedback/", {}, b"", (400, "bad_channel")),
    ("/feedback/a*", {}, b"", (400, "bad_channel")),
    ("/feedback/%FF", {}, b"", (400, "bad_encoding")),
    ("/feedback/c", {"Device": ""}, b"", (400, "no_device")),
    ("/feedback/c", {"Device": "a b"}, b"", (400, "bad_device")),
    ("/feedback/c", {"Device": "ü"}, b"", (400, "bad_device")),
    ("/feedback/c", {"Device": 129 * "x"}, b"", (400, "bad_device")),
    ("/feedback/c?device=a%0Ab", {"Device": ""}, b"", (400, "bad_device")),
    ("/feedback/c", {"Last-Event-ID": ""}, b"", (400, "no_event_id")),
    ("/feedback/c", {"Last-Event-ID": "1"}, b"", (400, "bad_event_id")),
    ("/feedback/c", {"Last-Event-ID": "1-"}, b"", (400, "bad_event_id")),
    ("/feedback/c", {"Last-Event-ID": "01-0"}, b"", (400, "bad_event_id")),
    ("/feedback/c", {"Last-Event-ID": "-1-0"}, b"", (400, "bad_event_id")),
    ("/feedback/c", {"Last-Event-ID": "1-0, 2-0"}, b"", (400, "bad_event_id")),
    ("/feedback/c", {"Last-Event-ID": "1-1048576"}, b"", (400, "bad_event_id")),
    ("/feedback/c", {"Last-Event-ID": "9999999999999-0"}, b"", (400, "bad_event_id")),
    ("/feedback/c", {"Last-Event-ID": 100 * "9" + "-0"}, b"", (400, "bad_event_id")),
    ("/feedback/c", {"Last-Event-ID": "ü"}, b"", (400, "bad_event_id")),
    ("/feedback/c", {"Last-Event-ID": "٣-0"}, b"", (400, "bad_event_id")),
    ("/feedback/c?event_id=x", {"Last-Event-ID": ""}, b"", (400, "bad_event_id")),
    ("/feedback/c?state=done", {}, b"", (400, "bad_state")),
    ("/feedback/c?state=pending", {}, b"", (400, "bad_state")),
    ("/feedback/c?state=expired", {}, b"", (400, "bad_state")),
    ("/feedback/c?state=Processed", {}, b"", (400, "bad_state")),
    ("/feedback/c?state=working&status=x", {}, b"", (400, "status_without_receipt")),
    ("/feedback/c?state=retry", {"Content-Type": JSON}, b'{"status": "x"}', (400, "status_without_receipt")),
    ("/feedback/c", {"Content-Type": JSON}, b'{"state": "retry", "at": "2014-12-01T14:28:30Z"}', (400, "at_without_receipt")),
    ("/feedback/c?state=working&delay=0", {}, b"", (400, "delay_without_retry")),
    ("/feedback/c?delay=1", {}, b"", (400, "delay_without_retry")),
    ("/feedback/c?delay=1", {"Content-Type": JSON}, b'{"state": "failed"}', (400, "delay_without_retry")),
    ("/feedback/c", {"Content-Type": FORM}, b"state=delivered&delay=1", (400, "delay_without_retry")),
    *((f"/feedback/c?state=retry&delay={bad}", {}, b"", (400, "bad_delay")) for bad in ("-1", "nan", "inf", "3600.1", "1e3", "x", "+1", "1,5", "%D9%A1", "9" * 30)),
    *(("/feedback/c", {"Content-Type": JSON}, b'{"state": "retry", "delay": ' + bad + b"}", (400, "bad_delay"))
      for bad in (b"-1", b"-0.1", b"3600.1", b"1e300", b'"1"', b'""', b"null", b"true", b"[]", b"{}", b"18446744073709551615")),
    ("/feedback/c", {"Content-Type": JSON}, b'{"state": "retry", "delay": NaN}', (400, "bad_json")),
    ("/feedback/c?state=working", {}, b"", (404, "unknown_event")),
    ("/feedback/c?state=retry", {"Device": "a b"}, b"", (400, "bad_device")),
    ("/feedback/c?status=%FF", {}, b"", (400, "bad_query")),
    ("/feedback/c?status=" + 100 * "x", {}, b"", (400, "large_status")),
    ("/feedback/c", {"Content-Type": FORM}, b"state=done", (400, "bad_state")),
    ("/feedback/c", {"Content-Type": FORM}, b"status=" + 100 * b"x", (400, "large_status")),
    ("/feedback/c", {"Content-Type": FORM}, b"status=%FF", (400, "bad_query")),
    ("/feedback/c", {"Content-Type": FORM}, b"status=\xff", (400, "bad_encoding")),
    ("/feedback/c", {"Content-Type": FORM}, b"event_id=%00", (400, "bad_event_id")),  # though the header says it already
    ("/feedback/c", {"Content-Type": JSON}, b"{", (400, "bad_json")),
    ("/feedback/c", {"Content-Type": JSON}, b"[]", (400, "bad_json")),
    ("/feedback/c", {"Content-Type": JSON}, b'"processed"', (400, "bad_json")),
    ("/feedback/c", {"Content-Type": JSON}, b'{"state": "done"}', (400, "bad_state")),
    ("/feedback/c", {"Content-Type": JSON}, b'{"state": 1}', (400, "bad_receipt")),
    ("/feedback/c", {"Content-Type": JSON}, b'{"state": null}', (400, "bad_receipt")),
    ("/feedback/c", {"Content-Type": JSON}, b'{"event_id": 1}', (400, "bad_receipt")),
    ("/feedback/c", {"Content-Type": JSON}, b'{"device": {}}', (400, "bad_receipt")),
    ("/feedback/c", {"Content-Type": JSON}, b'{"status": "' + 100 * b"x" + b'"}', (400, "large_status")),
    ("/feedback/c", {"Content-Type": JSON}, b'{"status": "\xff"}', (400, "bad_json")),
    ("/feedback/c", {"Content-Type": "text/plain"}, b"processed", (415, "wrong_type")),
    ("/feedback/c", {"Content-Type": "ü"}, b"processed", (415, "wrong_type")),
    ("/feedback/c", {"Content-Type": JSON, "Content-Encoding": "br"}, b"{}", (415, "content_encoding")),
    ("/feedback/c", {"Content-Type": FORM}, b"x" * 20_000, (413, "large_body")),
    ("/feedback/c", {"device": "a", "Device": "b"}, b"", (400, "repeated_header")),
    ("/feedback/c", {"X": 20_000 * "x"}, b"", (431, "long_headers")),
])
async def test_a_receipt_that_is_wrong_is_refused_and_says_why(start, ask, get, sent, target, headers, body, error):
    server = await start(max_status_bytes=64)
    id = await sent("d")
    told = {"Device": "d", "Last-Event-ID": "1-0"} if "device" not in headers else {"Last-Event-ID": "1-0"}
    answer = await ask("POST", target, body, **{name.replace("-", "_"): value for name, value in (told | headers).items()})
    assert answer.error == error
    assert (await get(f"/events/c/{id}"))["outstanding"] == server.store.ledger.outstanding == 1


@MEMORY_AND_REDIS
async def test_a_status_may_be_as_large_as_was_configured_and_no_larger(start, sent, feedback):
    await start(max_status_bytes=64)
    id = await sent("d")
    assert (await feedback("c", "d", id, status=63 * "x")).error == (400, "large_status")
    assert (await feedback("c", "d", id, status=62 * "x")).status == 200


# Many at once


@MEMORY_AND_REDIS
async def test_many_receipts_are_given_at_once_and_answered_in_order(sent, ask, get):
    ids = [await sent("d"), await sent(), await sent(channel="c"), await sent("e")]
    await ask("POST", "/feedback/c", Device="d", Last_Event_ID=ids[2])
    answer = await ask("POST", "/feedback", {"receipts": [
        {"event_id": ids[0]},
        {"event_id": ids[1], "state": "delivered", "status": "half"},
        {"event_id": ids[2], "state": "failed"},
        {"event_id": ids[3], "state": "failed", "at": "2014-12-01T14:28:30.993Z"},
        {"event_id": ids[0]},
    ]}, Device="d")
    assert answer.status == 200
    results = answer.json["results"]
    assert results == [
        {"event_id": ids[0], "state": "processed", "duplicate": False},
        {"event_id": ids[1], "state": "delivered", "duplicate": False},
        {"event_id": ids[2], "status": 409, "error": "conflict", "message": results[2]["message"]},
        {"event_id": ids[3], "state": "failed", "duplicate": False},
        {"event_id": ids[0], "state": "processed", "duplicate": True},
    ]
    assert (await get(f"/events/c/{ids[1]}/devices"))["devices"][0]["status"] == "half"


@pytest.mark.parametrize("item, error", [
    (1, (400, "bad_receipt")), (None, (400, "bad_receipt")), ([], (400, "bad_receipt")),
    ({}, (400, "no_event_id")), ({"event_id": ""}, (400, "no_event_id")), ({"event_id": 1}, (400, "bad_receipt")),
    ({"event_id": "x"}, (400, "bad_event_id")), ({"event_id": "1-0"}, (404, "unknown_event")),
    ({"event_id": "1-0", "state": "done"}, (400, "bad_state")), ({"event_id": "1-0", "state": []}, (400, "bad_receipt")),
    ({"event_id": "1-0", "status": 100 * "x"}, (400, "large_status")),
    ({"event_id": "1-0", "status": [100 * "x"]}, (400, "large_status")), ({"event_id": []}, (400, "bad_receipt")), ({"event_id": None}, (400, "bad_receipt")),
    ({"event_id": "1-0", "state": None}, (400, "bad_receipt")), ({"event_id": "1-0", "state": "pending"}, (400, "bad_state")),
    ({"event_id": "1-0", "sate": "failed"}, (400, "unknown_field")), ({"event_id": "1-0", "device": "e"}, (400, "unknown_field")),
    ({"event_id": "1-0", "state": "failed", "status": 1, "at": "2014-12-01T14:28:30Z", "x": 1}, (400, "unknown_field")),
    ({"id": "1-0"}, (400, "unknown_field")), ({"event_id": "1-0", "at": 1}, (400, "bad_at")), ({"event_id": "1-0", "at": "9000-01-01T00:00:00Z"}, (400, "bad_at")),
    ({"event_id": "1-0", "state": "working"}, (404, "unknown_event")), ({"event_id": "1-0", "state": "retry", "delay": 1}, (404, "unknown_event")),
    ({"event_id": "1-0", "state": "retry", "delay": 3601}, (400, "bad_delay")), ({"event_id": "1-0", "delay": 1}, (400, "delay_without_retry")),
    ({"event_id": "1-0", "state": "working", "status": "x"}, (400, "status_without_receipt")),
    ({"event_id": "1-0", "state": "retry", "at": "2014-12-01T14:28:30Z"}, (400, "at_without_receipt")),
    ({"event_id": "1-0", "state": "failed", "delay": None}, (400, "bad_delay")), ({"event_id": "x", "state": "retry"}, (400, "bad_event_id")),
    ("x", (400, "bad_receipt")), (1.5, (400, "bad_receipt")), (True, (400, "bad_receipt")),
])
async def test_a_bad_receipt_among_many_does_not_spoil_the_others(start, sent, ask, item, error):
    await start(max_status_bytes=64)
    first, last = await sent("d"), await sent()
    results = (await ask("POST", "/feedback", {"receipts": [{"event_id": first}, item, {"event_id": last}]}, Device="d")).json["results"]
    assert [result.get("state") for result in results] == ["processed", None, "processed"]
    assert (results[1]["status"], results[1]["error"]) == error
    named = item.get("event_id") if isinstance(item, dict) else None
    assert results[1]["event_id"] == (named if isinstance(named, str) else None)


WORDS = st.sampled_from(['"state":"failed"', '"status":"}],{\\"event_id\\":\\"1-0\\""', '"status":{"event_id":"1-0"}', '"status": [1]', '"event_id":"0-0"', '"event_id":"1-0"', '"x":"é"', ''])
GAPS = st.sampled_from(["", " ", "\n\t", "\x0b", "\u00a0"])
ITEMS = st.tuples(st.sampled_from(["0-0", "1-0", "1-1", "01-0", "", "x", '1-0"},{"event_id":"2-0']), st.lists(WORDS, max_size=2), st.booleans())


@given(st.lists(ITEMS, max_size=4), st.lists(WORDS, max_size=2), GAPS, GAPS, st.sampled_from(["]}", "]", "] }", "]}x", '],"device":"d"}', "],]}", "\n]}\n"]), st.booleans())
def test_a_body_whose_items_are_alike_is_read_as_any_json(items, words, gap, space, end, is_alike):
    """Where it is taken for such a body at all; and it is, where nothing is amiss."""
    written = (",".join([f'"event_id":{space}"{id}"', *(words if is_alike else own)][:: -1 if is_last and not is_alike else 1]) for id, own, is_last in items)
    body = f'{{"receipts":{space}[{f",{gap}".join(f"{{{each}}}" for each in written)}{end}'
    found = alike(body.encode())
    if found is not None:
        texts, ids, item = found
        assert orjson.loads(body) == {"receipts": [{**item, "event_id": text} for text in texts]}
        assert ids == [parse_id(text) for text in texts]
    else:
        is_plain = is_alike and all(word[1:3] == "st" and '{"event_id' not in word for word in words) and len(items) > 1 and all(id in ("0-0", "1-0", "1-1") for id, *_ in items)
        assert not is_plain or {gap, space} & {"\x0b", "\u00a0"} or end not in ("]}", "] }", "\n]}\n")


@pytest.mark.parametrize("body, headers, error", [
    (b"", {}, (400, "bad_json")), (b"x=1", {}, (400, "bad_json")), (b"[]", {}, (400, "bad_json")),
    (b"{}", {}, (400, "bad_receipts")), (b'{"receipts": {}}', {}, (400, "bad_receipts")), (b'{"receipts": null}', {}, (400, "bad_receipts")),
    (b'{"receipts": []}', {"Device": ""}, (400, "no_device")), (b'{"receipts": [], "device": 1}', {"Device": ""}, (400, "no_device")),
    (b'{"receipts": [], "device": "a b"}', {"Device": ""}, (400, "bad_device")), (b'{"receipts": []}', {"Device": "a b"}, (400, "bad_device")),
    (b'{"receipts": []}', {"Content-Type": "text/plain"}, (415, "wrong_type")),
    (orjson.dumps({"receipts": [{"event_id": "1-0"}] * 4}), {}, (413, "large_batch")),
    (orjson.dumps({"receipts": ["x" * 2000]}), {}, (413, "large_body")),
    (b'{"up_to": "1-0"}', {}, (400, "no_channel")), (b'{"up_to": 1, "channel": "c"}', {}, (400, "bad_event_id")),
    (b'{"up_to": null, "channel": "c"}', {}, (400, "bad_event_id")), (b'{"up_to": "1-0", "channel": 1}', {}, (400, "no_channel")),
    (b'{"up_to": "x", "channel": "c"}', {}, (400, "bad_event_id")), (b'{"up_to": "1-0", "channel": "a b"}', {}, (400, "bad_channel")),
    (b'{"up_to": "1-0", "channel": "c", "state": "processed"}', {}, (400, "bad_up_to")),
    (b'{"up_to": "1-0", "channel": "c", "state": "failed"}', {}, (400, "bad_up_to")),
    (b'{"up_to": "1-0", "channel": "c", "state": null}', {}, (400, "bad_up_to")),
    (b'{"up_to": "1-0", "channel": "c", "state": "done"}', {}, (400, "bad_state")),
    (b'{"up_to": "1-0", "channel": "c", "receipts": []}', {}, (400, "receipts_and_up_to")),
    (b'{"up_to": "1-0", "channel": "c", "status": "x"}', {}, (400, "unknown_field")),
    (b'{"up_to": "1-0", "channel": "c", "at": "2014-12-01T14:28:30Z"}', {}, (400, "unknown_field")),
    (b'{"up_to": "1-0", "channel": "c", "state": "working"}', {}, (400, "bad_up_to")),
    (b'{"up_to": "1-0", "channel": "c", "delay": 1}', {}, (400, "unknown_field")),
    (b'{"up_to": "9000000000000-0", "channel": "c"}', {}, (400, "bad_event_id")),
    (b'{"up_to": "8000000000000-0", "channel": "c"}', {}, (400, "future_event_id")),
    (b'{"up_to": "1-0", "channel": "nosuch"}', {}, (404, "unknown_channel")),
])
async def test_many_receipts_that_are_wrong_as_a_whole_are_refused(start, ask, body, headers, error):
    await start(max_batch=3, max_batch_bytes=1024)
    told = {"Device": "d", "Content-Type": JSON} | headers
    assert (await ask("POST", "/feedback", body, **{name.replace("-", "_"): value for name, value in told.items()})).error == error


@pytest.mark.parametrize("body", [{"receipts": []}, {"receipts": [], "device": "d"}])
@MEMORY_AND_REDIS
async def test_no_receipts_are_answered_with_nothing(ask, body):
    assert (await ask("POST", "/feedback?device=d", body)).json == {"results": []}


@MEMORY_AND_REDIS
async def test_up_to_says_delivered_of_all_that_is_still_owed(sent, ask, feedback, get):
    ids = [await sent("d"), await sent(), await sent(), await sent("e", to="e"), await sent()]
    await feedback("c", "d", ids[1], state="failed")
    answer = await ask("POST", "/feedback", {"up_to": ids[3], "channel": "c", "state": "delivered"}, Device="d")
    assert answer.json["results"] == [{"event_id": id, "state": "delivered", "duplicate": False} for id in (ids[0], ids[2])]
    states = [{line["device"]: line["state"] for line in (await get(f"/events/c/{id}/devices"))["devices"]}.get("d") for id in ids]
    assert states == ["delivered", "failed", "delivered", None, "sent"]


@MEMORY_AND_REDIS
async def test_up_to_answers_for_as_many_as_a_batch_holds_and_says_if_there_is_more(start, sent, push, ask):
    await start(max_batch=2)
    ids = [await sent("d"), *[await push("c") for _ in range(4)]]
    answers = [(await ask("POST", "/feedback", {"up_to": ids[-1], "channel": "c"}, Device="d")).json for _ in range(4)]
    assert [([result["event_id"] for result in answer["results"]], answer["more"]) for answer in answers] == [
        (ids[:2], True), (ids[2:4], True), (ids[4:], False), ([], False)]


@MEMORY_AND_REDIS
async def test_up_to_the_newest_of_exactly_as_many_as_a_batch_holds_says_that_there_is_no_more(start, sent, push, ask):
    await start(max_batch=2)
    ids = [await sent("d"), await push("c"), await push("c")]
    answer = (await ask("POST", "/feedback", {"up_to": ids[1], "channel": "c"}, Device="d")).json
    assert (len(answer["results"]), answer["more"]) == (2, False)


@MEMORY_AND_REDIS
async def test_up_to_is_a_place_in_the_order_of_all_events(sent, push, ask):
    # Such an id is in `pere.hello`, and the newest of a feed of many channels may be of another one.
    ids = [await sent("d"), await push("other"), await push("c"), await push("other")]
    milliseconds, sequence = ids[2].split("-")
    never = f"{milliseconds}-{int(sequence) + 999}" if ids[3].split("-")[0] != milliseconds else ids[2]

    async def up_to(id: str) -> list[str]:
        return [result["event_id"] for result in (await ask("POST", "/feedback", {"up_to": id, "channel": "c"}, Device="d")).json["results"]]

    assert await up_to("1-0") == []
    assert await up_to(ids[1]) == [ids[0]]
    assert await up_to(never) == [ids[2]]
    assert await up_to(ids[3]) == []


@MEMORY_AND_REDIS
async def test_up_to_is_for_devices_of_the_channel_and_nobody_learns_which_channels_there_are(sent, ask):
    id = await sent("d")
    answers = [await ask("POST", "/feedback", {"up_to": id, "channel": channel}, Device=device) for device, channel in [("e", "c"), ("d", "nosuch")]]
    assert {answer.error for answer in answers} == {(404, "unknown_channel")}
    assert len({answer.body for answer in answers}) == 1


@MEMORY_AND_REDIS
async def test_up_to_reaches_a_device_that_was_addressed_before_it_was_ever_seen(push, ask):
    id = await push("c", to="d")
    answer = await ask("POST", "/feedback", {"up_to": id, "channel": "c"}, Device="d")
    assert answer.json == {"results": [{"event_id": id, "state": "delivered", "duplicate": False}], "more": False}


async def test_up_to_reaches_what_is_only_in_the_file(begin, sent, push, ask, get):
    server = await begin("sqlite", backlog_events=3, max_batch=4)
    ids = [await sent("d", "e"), await push("c", to=["a", "d", "z"]), await push("c", to="e"), *[await push("c") for _ in range(7)]]
    await server.store.settle()
    owed = [id for id in ids if id != ids[2]]
    told = []
    for _ in range(3):
        answer = (await ask("POST", "/feedback", {"up_to": ids[-1], "channel": "c"}, Device="d")).json
        told.append(([result["event_id"] for result in answer["results"]], answer["more"]))
        assert {(result["state"], result["duplicate"]) for result in answer["results"]} == {("delivered", False)}
    assert told == [(owed[:4], True), (owed[4:8], True), (owed[8:], False)]
    for id in owed:
        assert (await get(f"/events/c/{id}/devices?state=delivered"))["devices"][0]["device"] == "d"


async def test_up_to_steps_over_what_was_answered_after_a_restart(begin, sent, push, ask, feedback):
    await begin("sqlite", backlog_events=2)
    ids = [await sent("d"), *[await push("c") for _ in range(5)]]
    await feedback("c", "d", ids[1])
    await feedback("c", "d", ids[4], state="delivered")
    await begin("sqlite", backlog_events=2)
    answer = (await ask("POST", "/feedback", {"up_to": ids[-1], "channel": "c"}, Device="d")).json
    assert [result["event_id"] for result in answer["results"]] == [ids[0], ids[2], ids[3], ids[5]]


@pytest.mark.parametrize("store", ["memory", "sqlite", "redis"])
async def test_the_same_event_many_times_in_one_batch_is_answered_in_order(begin, sent, ask, store):
    await begin(store)
    id, other = await sent("d"), await sent("d", channel="other")
    answer = await ask("POST", "/feedback", {"receipts": [
        {"event_id": id, "state": "delivered"}, {"event_id": other}, {"event_id": id}, {"event_id": id, "state": "failed"}, {"event_id": "x"},
        {"event_id": id, "state": "delivered"}, {"event_id": other, "state": "failed"}, {"event_id": "1-0"},
    ]}, Device="d")
    results = answer.json["results"]
    assert [(result.get("state"), result.get("duplicate"), result.get("error"), result.get("status")) for result in results] == [
        ("delivered", False, None, None), ("processed", False, None, None), ("processed", False, None, None), (None, None, "conflict", 409),
        (None, None, "bad_event_id", 400), ("processed", True, None, None), (None, None, "conflict", 409), (None, None, "unknown_event", 404)]
    assert [result["event_id"] for result in results] == [id, other, id, id, "x", id, other, "1-0"]


@pytest.mark.parametrize("store", ["memory", "sqlite", "redis"])
async def test_an_event_that_made_way_is_gone_among_many_too(begin, sent, push, ask, store):
    server = await begin(store, backlog_events=2, retention_events=2)
    ids = [await sent("d"), await push("c"), await push("c"), await push("c")]
    await server.store.settle()
    await push("c")
    await server.store.settle()
    results = (await ask("POST", "/feedback", {"receipts": [{"event_id": ids[0]}, {"event_id": ids[3]}]}, Device="d")).json["results"]
    assert [(result.get("error"), result.get("state")) for result in results] == [("event_gone", None), (None, "processed")]
    # Who is not of the channel does not learn what there was.
    results = (await ask("POST", "/feedback", {"receipts": [{"event_id": ids[0]}, {"event_id": ids[3]}]}, Device="e")).json["results"]
    assert [result["error"] for result in results] == ["unknown_event", "unknown_event"]


@MEMORY_AND_REDIS
async def test_a_thousand_receipts_of_one_batch_are_answered_one_by_one(sent, ask, get):
    await sent("d")
    ids = [result["id"] for result in (await ask("POST", "/push", [{"channel": "c", "data": n} for n in range(999)])).json["results"]]
    answer = await ask("POST", "/feedback", {"receipts": [{"event_id": id, "status": {"n": n}} for n, id in enumerate(ids)]}, Device="d")
    assert answer.json["results"] == [{"event_id": id, "state": "processed", "duplicate": False} for id in ids]
    assert (await get(f"/events/c/{ids[500]}/devices"))["devices"][0]["status"] == {"n": 500}


# When the device did it


def _rfc3339(seconds: float, zone: str = "Z") -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", zone)


@pytest.fixture(params=["alone", "recognised", "form", "query", "many"])
def answer_at(request, ask, connect):
    """`answer = await answer_at("c", "d", id, at)`: a receipt that says when, by each way in which it can be said."""

    async def answer_at(channel: str, device: str, id: str, at: object) -> wire.Answer:
        if request.param == "alone":
            return await ask("POST", f"/feedback/{channel}", {"at": at}, Device=device, Last_Event_ID=id)
        if request.param == "form":
            return await ask("POST", f"/feedback/{channel}", urlencode({"at": at}), Device=device, Last_Event_ID=id, Content_Type=FORM)
        if request.param == "query":
            return await ask("POST", f"/feedback/{channel}?{urlencode({'at': at})}", Device=device, Last_Event_ID=id)
        if request.param == "many":
            answer = await ask("POST", "/feedback", {"receipts": [{"event_id": id, "at": at}]}, Device=device)
            result, = answer.json["results"]
            told = {name: value for name, value in result.items() if name in ("error", "message")} or result
            return wire.Answer(result.get("status", 200), answer.headers, orjson.dumps(told))
        connection = await connect()
        for event in ("1-0", id):
            await connection.send(wire.said("POST", f"/feedback/{channel}", orjson.dumps({"at": at}), {"Device": device, "Last-Event-ID": event, "Content-Type": JSON}))
            answer = await connection.answer()
        return answer

    return answer_at


@pytest.mark.parametrize("after, latency", [(5, 5), (0.25, 0.25), (-50, 0.0001), (20, 20), (21, 20), (300, 20)])
async def test_a_receipt_counts_from_when_the_device_did_it(start, sent, answer_at, get, after, latency):
    server = await start()
    began = server.store.clock()
    server.store.clock = lambda: began
    id = await sent("d")
    server.store.clock = lambda: began + 20
    assert (await answer_at("c", "d", id, _rfc3339(began + after))).status == 200
    line, = (await get(f"/events/c/{id}/devices"))["devices"]
    # Never before there was the event, never after now.
    assert line["latency"] == pytest.approx(latency, rel=0.06)
    assert datetime.fromisoformat(line["receipt_at"]).timestamp() == pytest.approx(began + latency, rel=0, abs=0.06 * latency + 0.01)
    assert server.store.shelf("c").audience.members["d"].answered == began + 20


@pytest.mark.parametrize("at", [
    "", "x", "2014-12-01", "2014-12-01T14:28:30", "2014-12-01T14:28Z", "20141201T142830Z", "2014-W49-1T14:28:30Z", "2014-13-01T14:28:30Z",
    "2014-12-01T24:28:30Z", "2014-12-01T14:28:30+24:00", "2014-12-01T14:28:30.Z", "2014-12-01T14:28:30,5Z", " 2014-12-01T14:28:30Z",
    "2014-12-01T14:28:30Z\n", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "1969-12-31T23:59:59Z", "-2014-12-01T14:28:30Z",
    "0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-14:00", "٢٠١٤-12-01T14:28:30Z", "1417444110.9",
])
async def test_a_time_that_is_none_is_refused(sent, answer_at, get, at):
    id = await sent("d")
    if at:  # an empty one in a form or a query says nothing
        assert (await answer_at("c", "d", id, at)).error == (400, "bad_at")
        assert (await get(f"/events/c/{id}"))["outstanding"] == 1


@pytest.mark.parametrize("at", [0, 1417444110.9, True, None, [], {}, ""])
async def test_a_time_that_is_no_text_is_refused(sent, ask, at):
    id = await sent("d")
    assert (await ask("POST", "/feedback/c", {"at": at}, Device="d", Last_Event_ID=id)).error == (400, "bad_at")
    result, = (await ask("POST", "/feedback", {"receipts": [{"event_id": id, "at": at}]}, Device="d")).json["results"]
    assert (result["status"], result["error"]) == (400, "bad_at")


@pytest.mark.parametrize("text", ["2014-12-01T14:28:30Z", "2014-12-01t14:28:30z", "2014-12-01T16:28:30+02:00", "2014-12-01T14:28:30.000000000Z",
                                  "2014-12-01T14:28:30-00:00", "2014-12-01 14:28:30.0Z"])
async def test_a_time_is_understood_in_all_its_forms(sent, answer_at, text):
    assert (await answer_at("c", "d", await sent("d"), text)).json["state"] == "processed"


async def test_a_clock_may_be_five_minutes_ahead_and_no_more(start, sent, answer_at):
    server = await start()
    now = server.store.clock()
    server.store.clock = lambda: now
    id = await sent("d")
    assert (await answer_at("c", "d", id, _rfc3339(now + 301))).error == (400, "bad_at")
    assert (await answer_at("c", "d", id, _rfc3339(now + 299))).status == 200


async def test_a_time_of_a_receipt_outlasts_the_process(begin, sent, ask, get):
    server = await begin("sqlite")
    id = await sent("d")
    now = server.store.clock()
    server.store.clock = lambda: now + 3600
    assert (await ask("POST", "/feedback/c", {"at": _rfc3339(now + 600)}, Device="d", Last_Event_ID=id)).status == 200
    before = await get(f"/events/c/{id}/devices")
    await begin("sqlite")
    after = await get(f"/events/c/{id}/devices")
    assert before["devices"][0]["latency"] == after["devices"][0]["latency"] == pytest.approx(600, rel=0.06)


# One connection, many receipts: what is alike is recognised by its shape, and must be answered alike


@MEMORY_AND_REDIS
async def test_receipts_on_one_connection_are_each_answered_as_they_would_be_alone(sent, connect, push, get):
    await sent("a", "b", "c2")
    ids = [await push("c") for _ in range(3)]
    other = await push("elsewhere")
    wire_ = await connect()

    async def say(device: str, id: str, body: bytes = b'{"state":"processed"}', **more: str) -> tuple[int, object]:
        await wire_.send(wire.said("POST", "/feedback/c", body, {"Device": device, "Last-Event-ID": id, "Content-Type": JSON} | more))
        answer = await wire_.answer()
        return (answer.status, answer.json) if answer.status == 200 else answer.error

    first, again = (200, {"state": "processed", "duplicate": False}), (200, {"state": "processed", "duplicate": True})
    for id in ids:
        assert await say("a", id) == first
    assert await say("a", ids[0]) == again
    assert await say("b", ids[0]) == first
    assert await say("b", ids[0], b'{"state":"failed"}') == (409, "conflict")
    assert await say("b", ids[1], b'{"state":"delivered","status":"ha\\u006cf"}') == (200, {"state": "delivered", "duplicate": False})
    assert await say("b", ids[1], b'{"state":"done"}') == (400, "bad_state")
    assert await say("b", ids[1], b"{") == (400, "bad_json")
    assert await say("b", ids[1], b"") == first
    assert await say("b", other) == (404, "unknown_event")
    assert await say("b", "1-0") == (404, "unknown_event")
    assert await say("b", "x") == (400, "bad_event_id")
    assert await say("b/c", ids[2]) == (400, "bad_device")
    assert await say("b", ids[2], b'{"state":"failed"}', **{"X": "another shape"}) == (200, {"state": "failed", "duplicate": False})
    assert await say("c2", ids[0]) == first
    status = await get(f"/events/c/{ids[0]}")
    assert (status["counts"]["processed"], status["counts"]["sent"], status["complete"]) == (3, 0, True)


async def test_a_connection_outlives_a_receipt_that_was_wrong_in_any_part(sent, connect):
    id = await sent("d")
    wire_ = await connect()
    for target in ("/feedback/a%20b", "/feedback/%FF", "/feedback/", "/feedback/c", "/feedback/a/b"):
        await wire_.send(wire.said("POST", target, b"{}", {"Device": "d", "Last-Event-ID": id, "Content-Type": JSON}))
        assert (await wire_.answer()).status == (200 if target == "/feedback/c" else 400)


@MEMORY_AND_REDIS
async def test_pipelined_receipts_are_answered_in_order(sent, push, connect):
    await sent("d")
    ids = [await push("c") for _ in range(100)]
    wire_ = await connect()
    for is_duplicate in (False, True):
        await wire_.send(b"".join(wire.said("POST", "/feedback/c", b"", {"Device": "d", "Last-Event-ID": id}) for id in [*ids, "1-0"]))
        answers = [await wire_.answer() for _ in range(101)]
        assert [answer.json for answer in answers[:-1]] == [{"state": "processed", "duplicate": is_duplicate}] * 100
        assert answers[-1].error == (404, "unknown_event")


# The ledger never lies

WORDS = st.sampled_from(["delivered", "processed", "failed"])
STEP = st.one_of(
    st.tuples(st.just("join"), st.integers(0, 4)),
    st.tuples(st.just("leave"), st.integers(0, 4)),
    st.tuples(st.just("remove"), st.integers(0, 4)),
    st.tuples(st.just("push"), st.sampled_from(["", "?receipt=delivered", "?to=d0&to=d1", "?ttl=5", "?receipt=none", "?ttl=5&to=d2"])),
    st.tuples(st.just("receipt"), st.integers(0, 4), st.integers(0, 5), WORDS),
    st.tuples(st.just("time"), st.integers(1, 6)),
)


@settings(max_examples=40)
@given(st.lists(STEP, min_size=10, max_size=30))
def test_whatever_happens_the_states_add_up_to_the_audience(steps):
    uvloop.run(_always_adds_up(steps))


async def _always_adds_up(steps: list[tuple]) -> None:
    server = Server(Config(store="memory:", port=0, backlog_events=4, keep_expired=3, max_attempts=2))
    await server.start()
    store, started = server.store, server.store.clock()
    passed, ids, audiences = 0.0, [], {}
    feeds: dict[int, wire.Feed] = {}
    told: dict[tuple[int, str], str] = {}  # the hard state that a device was told stands, by device and event
    store.clock = lambda: started + passed
    try:
        for verb, *what in steps:
            if verb == "join" and what[0] not in feeds:
                answer = await wire.request(server.port, "HEAD", "/feed/c")
                assert answer.status == 200
                if not store.devices.removed_since(f"d{what[0]}", store.clock() - 60):
                    feeds[what[0]] = await wire.listen(server.port, "c", device=f"d{what[0]}")
            elif verb == "leave" and what[0] in feeds:
                feeds.pop(what[0]).close()
            elif verb == "remove":
                answer = await wire.request(server.port, "DELETE", f"/admin/devices/d{what[0]}")
                assert answer.status in (204, 404)
                if what[0] in feeds:
                    feeds.pop(what[0]).close()
            elif verb == "push":
                pushed = (await wire.request(server.port, "POST", f"/push/c{what[0]}", b"1")).json
                ids.append(pushed["id"])
                audiences[pushed["id"]] = 0 if "none" in what[0] else pushed["audience"]
            elif verb == "receipt" and ids:
                device, id, word = what[0], ids[-1 - what[1] % len(ids)], what[2]
                answer = await wire.request(server.port, "POST", f"/feedback/c?state={word}", Device=f"d{device}", Last_Event_ID=id)
                assert answer.status in (200, 404, 409, 410)
                if answer.status == 200 and answer.json["state"] in ("processed", "failed"):
                    assert told.setdefault((device, id), answer.json["state"]) == answer.json["state"]
            elif verb == "time":
                passed += what[0]
                store.sweep(store.clock(), server.hub.is_used)
            await _check(server, ids, audiences, told)
    finally:
        for feed in feeds.values():
            feed.close()
        await server.stop()
        await asyncio.sleep(0)


async def _check(server: Server, ids: list[str], audiences: dict[str, int], told: dict[tuple[int, str], str]) -> None:
    outstanding = 0
    for id in ids:
        answer = await wire.request(server.port, "GET", f"/events/c/{id}")
        if answer.status == 410:
            continue
        status = answer.json
        lines = (await wire.request(server.port, "GET", f"/events/c/{id}/devices")).json["devices"]
        states = [line["state"] for line in lines]
        assert status["audience"] == audiences[id] == sum(status["counts"].values()) == len(lines)
        assert {state: count for state, count in status["counts"].items() if count} == {state: states.count(state) for state in set(states)}
        owed = (await wire.request(server.port, "GET", f"/events/c/{id}/devices?state=outstanding")).json["devices"]
        assert status["outstanding"] == len(owed)
        for (device, event), state in told.items():
            if event == id:
                assert state in [line["state"] for line in lines if line["device"] == f"d{device}"]
        outstanding += status["outstanding"]
    assert server.store.ledger.outstanding == outstanding
    assert len(server.store.ledger.entries) <= 4
