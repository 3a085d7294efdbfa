"""Publishing: what an accepted event answers and becomes, and all that is not accepted."""

import sys
from urllib.parse import quote

import orjson
import pytest

JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain"}


# One event


async def test_a_push_is_answered_with_its_id_its_channel_and_its_audience(ask, listen):
    await listen("news", device="a")
    await listen("news", device="b")
    await listen("news")
    answer = await ask("POST", "/push/news", {"n": 1})
    assert (answer.status, answer.headers["content-type"]) == (201, "application/json")
    assert answer.json == {"id": answer.json["id"], "channel": "news", "audience": 2}


@pytest.mark.parametrize("body, kind", [
    (b'{"n": 1.10}', "application/json"),
    (b'"text"', "application/json; charset=utf-8"),
    (b"null", "text/json"),
    (b"[1, 2]", "application/cloudevents+json"),
    (b'{"type": "Feature"}', "application/geo+json"),
    ('{"ü": "😀\\u00e9"}'.encode(), "application/json"),
    (b"12345678901234567890123", ""),
    (b"17", "application/x-www-form-urlencoded"),
])
async def test_json_arrives_byte_for_byte_as_it_was_pushed(ask, listen, body, kind):
    feed = await listen("news")
    answer = await ask("POST", "/push/news", body, **({"Content_Type": kind} if kind else {}))
    assert answer.status == 201
    assert (await feed.event()).data == body.decode()


@pytest.mark.parametrize("text", ["one line", "two\nlines", "three\r\nlines\rhere", "", "\n", "ends with one\n", " leading", "data: x\n\nevent: y", "ü😀\x1b"])
async def test_text_arrives_with_its_lines(push, listen, text):
    feed = await listen("news")
    await push("news", text)
    assert (await feed.event()).data == text.replace("\r\n", "\n").replace("\r", "\n")


async def test_json_on_many_lines_is_the_same_json(push, listen):
    raw, envelope = await listen("news"), await listen("news", format="envelope")
    await push("news", b'{\r\n  "n":\r  1\n}\n')
    assert orjson.loads((await raw.event()).data) == {"n": 1}
    assert orjson.loads((await envelope.event()).data)["data"] == {"n": 1}


async def test_ids_grow_over_all_channels(push):
    ids = [tuple(map(int, (await push(channel)).split("-"))) for channel in ["a", "b", "a", "c"] * 5]
    assert ids == sorted(set(ids))


async def test_ids_grow_even_when_the_clock_steps_back(start, push):
    server = await start()
    first = await push("c")
    server.store.clock = lambda: 1_000.0
    second = await push("c")
    assert tuple(map(int, second.split("-"))) > tuple(map(int, first.split("-")))


async def test_the_publisher_is_remembered(push, get):
    id = await push("c", device="till-1")
    assert (await get(f"/events/c/{id}"))["publisher"] == "till-1"
    assert (await get(f"/events/c/{await push('c')}"))["publisher"] is None


async def test_a_type_names_the_sse_event(push, listen):
    feed = await listen("c")
    await push("c", type="order/new~1:a.b-c_d")
    await push("c")
    assert [(await feed.event()).event for _ in range(2)] == ["order/new~1:a.b-c_d", "message"]


async def test_to_names_the_only_devices_that_get_it(push, listen):
    a, b, both, nobody = await listen("c", device="a"), await listen("c", device="b"), await listen("c", device="a", format="envelope"), await listen("c")
    await push("c", "for a", to="a")
    await push("c", "for both", to=["a", "b"])
    await push("c", "for all")
    assert await a.events(3) == ["for a", "for both", "for all"]
    assert [orjson.loads(data)["data"] for data in await both.events(3)] == ["for a", "for both", "for all"]
    assert await b.events(2) == ["for both", "for all"]
    assert await nobody.events(1) == ["for all"]


async def test_to_counts_every_named_device_once_whether_it_was_ever_seen_or_not(ask, listen):
    await listen("c", device="a")
    await listen("c", device="b")
    assert (await ask("POST", "/push/c?to=a&to=ghost&to=a", b"1")).json["audience"] == 2


async def test_an_event_waits_for_the_device_that_it_was_addressed_to(push, listen, feedback, get):
    missed = await push("c", "before anybody was here")
    id = await push("c", "for you", to="late")
    assert (await get(f"/events/c/{id}"))["counts"]["pending"] == 1
    feed = await listen("c", device="late")
    assert (await feed.event()).data == "for you"
    assert (await feedback("c", "late", id)).status == 200
    assert (await get(f"/events/c/{id}"))["complete"] is True
    assert (await feedback("c", "late", missed)).status == 404


async def test_receipt_none_has_no_audience_that_could_answer(push, listen, feedback, get):
    feed = await listen("c", device="d")
    id = await push("c", receipt="none")
    assert (await feed.event()).id == id
    status = await get(f"/events/c/{id}")
    assert (status["audience"], sum(status["counts"].values()), status["complete"], status["receipt"]) == (0, 0, True, "none")
    assert (await feedback("c", "d", id)).error == (404, "unknown_event")


async def test_a_ttl_that_is_over_leaves_the_event_out_for_those_who_come_later(start, push, listen):
    server = await start()
    live = await listen("c")
    await push("c", "short", ttl=10)
    await push("c", "long", ttl=1000)
    now = server.store.clock()
    server.store.clock = lambda: now + 20
    assert await live.events(2) == ["short", "long"]
    assert await (await listen("c", from_="all")).events(1) == ["long"]


async def test_ttl_zero_is_only_for_those_who_are_online(push, listen):
    online = await listen("c", device="on")
    (await listen("c", device="off")).close()
    await push("c", "now or never", ttl=0)
    await push("c", "later too")
    assert await online.events(2) == ["now or never", "later too"]
    assert await (await listen("c", device="off")).events(1) == ["later too"]


async def test_the_default_ttl_is_the_configured_one(start, push, get):
    server = await start(ttl=60)
    server.store.clock = lambda: 1_700_000_000.0
    status = await get(f"/events/c/{await push('c')}")
    assert (status["time"], status["expires"]) == ("2023-11-14T22:13:20.000Z", "2023-11-14T22:14:20.000Z")


# Idempotency-Key


async def test_the_same_key_answers_with_the_first_event_and_publishes_nothing(ask, listen, push):
    feed = await listen("c", device="d")
    first = await ask("POST", "/push/c", b'"first"', Idempotency_Key="k")
    await listen("c", device="e")
    second = await ask("POST", "/push/c", b'"second"', Idempotency_Key="k")
    await push("c", "third")
    assert (first.status, second.status, second.json) == (201, 201, first.json)
    assert await feed.events(2) == ['"first"', "third"]


async def test_a_key_is_good_for_its_channel_and_for_ten_minutes(start, push):
    server = await start()
    first = await push("c", key="k")
    assert await push("other", key="k") != first
    now = server.store.clock()
    server.store.clock = lambda: now + 599
    assert await push("c", key="k") == first
    server.store.clock = lambda: now + 601
    assert await push("c", key="k") != first


async def test_a_key_whose_push_was_refused_is_still_free(ask):
    assert (await ask("POST", "/push/c?need=5", b"1", Idempotency_Key="k")).error == (400, "need_over_audience")
    assert (await ask("POST", "/push/c", b"1", Idempotency_Key="k")).status == 201


# need


@pytest.mark.parametrize("need, count", [("2", 2), ("50%", 2), ("34%", 2), ("67%", 3), ("100%", 3), ("all", 3), ("0", 0), ("0%", 0)])
async def test_need_says_how_many_receipts_satisfy(ask, listen, feedback, get, need, count):
    for name in "abc":
        await listen("c", device=name)
    id = (await ask("POST", f"/push/c?need={quote(need)}", b"1")).json["id"]
    for given, name in enumerate("abc"):
        assert (await get(f"/events/c/{id}"))["satisfied"] is (given >= count)
        await feedback("c", name, id)
    status = await get(f"/events/c/{id}")
    assert (status["need"], status["satisfied"]) == (count, True)


# What is refused


@pytest.mark.parametrize("target, body, headers, error", [
    # the channel
    ("/push/a%20b", b"1", JSON, (400, "bad_channel")),
    ("/push/a/b", b"1", JSON, (400, "bad_channel")),
    ("/push/a%2Fb", b"1", JSON, (400, "bad_channel")),
    ("/push/", b"1", JSON, (400, "bad_channel")),
    ("/push/a*", b"1", JSON, (400, "bad_channel")),
    ("/push/" + 129 * "x", b"1", JSON, (400, "bad_channel")),
    ("/push/%C3%BC", b"1", JSON, (400, "bad_channel")),
    ("/push/%FF", b"1", JSON, (400, "bad_encoding")),
    ("/push/a%0D%0Ab", b"1", JSON, (400, "bad_channel")),
    ("/push/a%00", b"1", JSON, (400, "bad_channel")),
    # the publisher
    ("/push/c", b"1", JSON | {"Device": "a b"}, (400, "bad_device")),
    ("/push/c", b"1", JSON | {"Device": 129 * "x"}, (400, "bad_device")),
    ("/push/c", b"1", JSON | {"Device": "ü"}, (400, "bad_device")),
    # the body
    ("/push/c", b"", JSON, (400, "bad_json")),
    ("/push/c", b"", {}, (400, "bad_json")),
    ("/push/c", b"{", JSON, (400, "bad_json")),
    ("/push/c", b"{'a': 1}", JSON, (400, "bad_json")),
    ("/push/c", b"NaN", JSON, (400, "bad_json")),
    ("/push/c", b"1 2", JSON, (400, "bad_json")),
    ("/push/c", b'"\xff"', JSON, (400, "bad_json")),
    ("/push/c", b'"\\ud800"', JSON, (400, "bad_json")),
    ("/push/c", b"\xef\xbb\xbf1", JSON, (400, "bad_json")),
    ("/push/c", b"hello", {}, (400, "bad_json")),
    ("/push/c", b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, (400, "bad_json")),
    ("/push/c", b"[" * 1024, JSON, (400, "bad_json")),
    ("/push/c", b"\xff", TEXT, (400, "bad_encoding")),
    ("/push/c", b"a\0b", TEXT, (400, "bad_text")),
    ("/push/c", b"1", {"Content-Type": "application/xml"}, (415, "wrong_type")),
    ("/push/c", b"1", {"Content-Type": "multipart/form-data; boundary=x"}, (415, "wrong_type")),
    ("/push/c", b"1", JSON | {"Content-Encoding": "gzip"}, (415, "content_encoding")),
    ("/push/c", b"1" * 1025, JSON, (413, "large_body")),
    # the query
    ("/push/c?type=a%0Ab", b"1", JSON, (400, "bad_type")),
    ("/push/c?type=a%00b", b"1", JSON, (400, "bad_type")),
    ("/push/c?type=pere.bye", b"1", JSON, (400, "bad_type")),
    ("/push/c?type=" + 129 * "x", b"1", JSON, (400, "bad_type")),
    ("/push/c?to=", b"1", JSON, (400, "bad_device")),
    ("/push/c?to=a&to=b/c", b"1", JSON, (400, "bad_device")),
    ("/push/c?" + "&".join(f"to={n}" for n in range(4)), b"1", JSON, (400, "too_many_to")),
    ("/push/c?ttl=-1", b"1", JSON, (400, "bad_ttl")),
    ("/push/c?ttl=", b"1", JSON, (400, "bad_ttl")),
    ("/push/c?ttl=1.5", b"1", JSON, (400, "bad_ttl")),
    ("/push/c?ttl=2592001", b"1", JSON, (400, "bad_ttl")),
    ("/push/c?ttl=" + 5000 * "9", b"1", JSON, (400, "bad_ttl")),
    ("/push/c?ttl=%D9%A3", b"1", JSON, (400, "bad_ttl")),
    ("/push/c?receipt=maybe", b"1", JSON, (400, "bad_receipt")),
    ("/push/c?need=-1", b"1", JSON, (400, "bad_need")),
    ("/push/c?need=", b"1", JSON, (400, "bad_need")),
    ("/push/c?need=101%25", b"1", JSON, (400, "bad_need")),
    ("/push/c?need=most", b"1", JSON, (400, "bad_need")),
    ("/push/c?need=1", b"1", JSON, (400, "need_over_audience")),
    ("/push/c?need=1&receipt=none", b"1", JSON, (400, "need_without_receipt")),
    ("/push/c?type=%FF", b"1", JSON, (400, "bad_query")),
    ("/push/c?" + "&".join(1201 * ["a=1"]), b"1", JSON, (400, "bad_query")),
    # the headers
    ("/push/c", b"1", JSON | {"Idempotency-Key": 256 * "k"}, (400, "bad_idempotency_key")),
    ("/push/c", b"1", JSON | {"Idempotency-Key": "ü"}, (400, "bad_idempotency_key")),
    ("/push/c", b"1", JSON | {"device": "a", "DEVICE": "b"}, (400, "repeated_header")),
    ("/push/c", b"1", JSON | {"X": 20_000 * "x"}, (431, "long_headers")),
    ("/push/c?" + 9000 * "x", b"1", JSON, (414, "long_line")),
])
async def test_a_push_that_is_wrong_is_refused_and_says_why(start, ask, target, body, headers, error):
    server = await start(max_event_bytes=1024, max_to=3)
    answer = await ask("POST", target, body, **{name.replace("-", "_"): value for name, value in headers.items()})
    assert answer.error == error
    assert server.store.events == 0


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("target", ["/push/c", "/push", "/push/not%20a%20channel", "/feedback/c", "/feedback"])
async def test_another_method_is_told_which_is_right(ask, target, method):
    answer = await ask(method, target)
    assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")
    assert method == "HEAD" or answer.error == (405, "wrong_method")


async def test_the_largest_event_is_taken_and_one_byte_more_is_not(start, ask):
    await start(max_event_bytes=1024)
    assert (await ask("POST", "/push/c", b"9" * 1024, Content_Type="text/plain")).status == 201
    assert (await ask("POST", "/push/c", b"9" * 1025, Content_Type="text/plain")).error == (413, "large_body")


async def test_a_chunked_body_is_measured_as_it_comes(start, connect):
    await start(max_event_bytes=1024)
    wire = await connect()
    await wire.send(b"POST /push/c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
    assert (await wire.answer()).status == 201
    await wire.send(b"POST /push/c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n401\r\n" + b"1" * 1025 + b"\r\n")
    assert (await wire.answer()).error == (413, "large_body")


# Many events


def lines(*items: object) -> bytes:
    return b"\n".join(item if isinstance(item, bytes) else orjson.dumps(item) for item in items)


@pytest.mark.parametrize("body, kind", [
    (orjson.dumps([{"channel": "a", "data": 1}, {"channel": "b", "data": "two"}]), "application/json"),
    (lines({"channel": "a", "data": 1}, {"channel": "b", "data": "two"}), "application/x-ndjson"),
    (lines({"channel": "a", "data": 1}, b"", {"channel": "b", "data": "two"}, b""), "application/jsonl"),
    (b"\r\n".join([b'{"channel": "a", "data": 1}', b'{"channel": "b", "data": "two"}']), "application/ndjson"),
    (b'  [{"channel": "a", "data": 1}, {"channel": "b", "data": "two"}]  ', ""),
])
async def test_many_events_are_pushed_at_once_and_answered_in_order(ask, listen, body, kind):
    feed = await listen("a", "b", device="d")
    answer = await ask("POST", "/push", body, **({"Content_Type": kind} if kind else {}))
    assert answer.status == 200
    first, second = answer.json["results"]
    assert [(told["channel"], told["audience"]) for told in (first, second)] == [("a", 1), ("b", 1)]
    events = [orjson.loads(data) for data in await feed.events(2)]
    assert [(event["id"], event["data"]) for event in events] == [(first["id"], 1), (second["id"], "two")]


async def test_an_item_may_say_all_that_a_push_says(ask, listen, get):
    feed = await listen("c", device="a")
    item = {"channel": "c", "data": {"n": [1]}, "type": "t", "to": ["a"], "ttl": 60, "receipt": "delivered", "need": 1}
    told, = (await ask("POST", "/push", [item], Device="p")).json["results"]
    event = await feed.event()
    assert (event.id, event.event, event.data) == (told["id"], "t", '{"n":[1]}')
    status = await get(f"/events/c/{told['id']}")
    assert (status["publisher"], status["receipt"], status["need"], status["audience"]) == ("p", "delivered", 1, 1)


ITEM = {"channel": "c", "data": 1}


@pytest.mark.parametrize("item, error", [
    (17, "bad_item"), (None, "bad_item"), ([], "bad_item"), ("c", "bad_item"),
    ({"channel": "c"}, "bad_item"), ({"data": 1}, "bad_item"), ({"channel": 1, "data": 1}, "bad_item"),
    (ITEM | {"tll": 1}, "bad_item"),
    (ITEM | {"channel": "a b"}, "bad_channel"), (ITEM | {"channel": ""}, "bad_channel"),
    (ITEM | {"type": "a\nb"}, "bad_type"), (ITEM | {"type": "pere.gap"}, "bad_type"), (ITEM | {"type": {}}, "bad_type"),
    (ITEM | {"to": 1}, "bad_to"), (ITEM | {"to": []}, "bad_to"), (ITEM | {"to": {}}, "bad_to"),
    (ITEM | {"to": [1]}, "bad_to"), (ITEM | {"to": ["a b"]}, "bad_device"),
    (ITEM | {"to": ["a", "b", "c", "d"]}, "too_many_to"),
    (ITEM | {"ttl": -1}, "bad_ttl"), (ITEM | {"ttl": 1.5}, "bad_ttl"), (ITEM | {"ttl": True}, "bad_ttl"), (ITEM | {"ttl": [1]}, "bad_ttl"),
    (ITEM | {"receipt": "maybe"}, "bad_receipt"), (ITEM | {"receipt": 1}, "bad_receipt"),
    (ITEM | {"need": -1}, "bad_need"), (ITEM | {"need": "x"}, "bad_need"), (ITEM | {"need": 7}, "need_over_audience"),
    (ITEM | {"need": 0, "receipt": "none"}, "need_without_receipt"),
    (ITEM | {"data": "x" * 1023}, "large_event"),
])
async def test_a_bad_item_does_not_spoil_the_others(start, ask, item, error):
    server = await start(max_event_bytes=1024, max_to=3)
    answer = await ask("POST", "/push", [ITEM, item, ITEM])
    first, bad, last = answer.json["results"]
    assert answer.status == 200
    assert bad == {"error": error, "message": bad["message"], "status": 413 if error == "large_event" else 400}
    assert first["id"] != last["id"]
    assert server.store.events == 2


@pytest.mark.parametrize("number", ["18446744073709551616", "-9223372036854775809", "123456789012345678901234567890", "9007199254740993", "18446744073709551615",
                                    "123456789012345678901.50", "1.50E+30", "0.1234567890123456789", "-3.14159265358979323846", "1.000000000000000055511", "9007199254740.993", "1e-400", "12345678901234567e-3", '"1e+5"', '{"a":[0.1,{"b":98765432109876543210}]}'])
async def test_a_number_in_a_batch_is_passed_on_as_it_was_written(ask, listen, number):
    feed = await listen("c")
    items = [b'{"channel": "c", "data": %b, "ttl": 60}' % said for said in (b"1.10", number.encode(), b"[2, 12345678901234567890123]")]
    for body, kind in ((b"[%b]" % b",".join(items), "application/json"), (b"\n".join(items), "application/x-ndjson")):
        answer = await ask("POST", "/push", body, Content_Type=kind)
        assert all("id" in told for told in answer.json["results"]), answer
        short, *exact = await feed.events(3)
        assert short in ("1.1", "1.10") and exact == [number, "[2,12345678901234567890123]"]


async def test_an_item_that_is_nested_too_deep_does_not_spoil_the_others(start, ask):
    server = await start()
    for depth in (255, 1000):
        items = [b'{"channel":"c","data":%b}' % data for data in (b"1", b"[" * depth + b"]" * depth, b"[" * 254 + b"]" * 254)]
        first, deep, last = (await ask("POST", "/push", b"\n".join(items))).json["results"]
        assert ("id" in first, deep["error"], deep["status"], "id" in last) == (True, "deep_json", 400, True)
    # To read numbers as they were written, all of the array is read once more, and Python 3.11 reads less deep than what read it first.
    body = b'[{"channel":"c","data":%b},{"channel":"c","data":18446744073709551616}]' % (b"[" * 1000 + b"]" * 1000)
    is_read = sys.version_info >= (3, 12)
    deep, beside = (await ask("POST", "/push", body)).json["results"]
    assert (deep["error"], beside.get("error")) == ("deep_json", None if is_read else "deep_json")
    assert server.store.events == 4 + is_read


async def test_a_line_that_is_no_json_spoils_only_itself(ask):
    first, bad, last = (await ask("POST", "/push", lines(ITEM, b'{"channel": "c"', ITEM), Content_Type="application/x-ndjson")).json["results"]
    assert ("id" in first, bad["error"], bad["status"], "id" in last) == (True, "bad_json", 400, True)


@pytest.mark.parametrize("body, kind, error", [
    (b"[1", "application/json", (400, "bad_json")),
    (b"[]", "text/plain", (415, "wrong_type")),
    (orjson.dumps([ITEM] * 4), "application/json", (413, "large_batch")),
    (lines(*[ITEM] * 4), "application/x-ndjson", (413, "large_batch")),
    (b" " * 1025, "application/json", (413, "large_body")),
])
async def test_a_batch_that_is_wrong_as_a_whole_publishes_nothing(start, ask, body, kind, error):
    server = await start(max_batch=3, max_batch_bytes=1024, max_event_bytes=1024)
    assert (await ask("POST", "/push", body, Content_Type=kind)).error == error
    assert server.store.events == 0


@pytest.mark.parametrize("body", [b"", b"[]", b" \n "])
async def test_a_batch_of_nothing_is_answered_with_nothing(ask, body):
    answer = await ask("POST", "/push", body)
    assert (answer.status, answer.json) == (200, {"results": []})


async def test_a_batch_of_one_object_is_one_event(ask):
    assert len((await ask("POST", "/push", ITEM)).json["results"]) == 1
