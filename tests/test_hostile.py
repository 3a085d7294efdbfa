"""Hostile input to a whole server: whatever is said where, it is taken or refused, never a mistake of the server, and nobody else
hears anything but what the server means to say. (`no_surprises` fails each of these tests if a traceback is logged.)"""

import asyncio
from urllib.parse import quote

import orjson
import pytest
import wire

DEEP = b"[" * 1000 + b"]" * 1000
LONG = b"[" + b"1," * 20_000 + b"1]"
WRONG = {"deep": DEEP, "deep objects": b'{"a":' * 1000 + b"1" + b"}" * 1000, "long": LONG, "a huge number": b"9" * 300, "a tiny number": b"1e-400", "nothing": b"null",
         "NUL": b'"\\u0000"', "line ends": b'"a\\r\\n\\r\\nevent: pere.bye"', "an odd key": b'{"\\u0000\\r\\n": 1}', "no end": b'"' + b"a" * 5000 + b'"'}

# Every place where a request takes JSON of a stranger; %b is where it stands.
PLACES = {
    **{f"a push: {name}": ("/push", b'[{"channel":"c","data":1,"%b":%%b},{"channel":"c","data":1}]' % name.encode())
       for name in ("channel", "data", "type", "to", "ttl", "receipt", "need", "callback", "more")},
    "an item": ("/push", b'[%b,{"channel":"c","data":1}]'), "a line": ("/push", b'%b\n{"channel":"c","data":1}'), "a batch": ("/push", b"%b"),
    **{f"a receipt: {name}": ("/feedback/c", b'{"%b":%%b}' % name.encode()) for name in ("event_id", "state", "status", "at", "delay", "device", "more")},
    **{f"a receipt of many: {name}": ("/feedback", b'{"receipts":[{"event_id":"1-1","%b":%%b},{"event_id":"1-1"}]}' % name.encode())
       for name in ("event_id", "state", "status", "at", "delay", "device", "more")},
    **{f"receipts up to: {name}": ("/feedback", b'{"up_to":"1-1","channel":"c","%b":%%b}' % name.encode()) for name in ("up_to", "state", "channel", "device")},
    "receipts": ("/feedback", b'{"receipts":%b}'), "many": ("/feedback", b"%b"), "one": ("/feedback/c", b"%b"),
    **{f"a webhook: {name}": ("/webhooks", b'{"url":"https://a.example/","%b":%%b}' % name.encode()) for name in ("url", "types", "channels", "content_type", "more")},
    "a webhook": ("/webhooks", b"%b"),
}


@pytest.mark.parametrize("place", PLACES)
async def test_json_of_any_shape_in_any_place_is_taken_or_refused(start, ask, listen, push, place):
    await start(max_webhooks=0)
    await listen("c", device="d")
    await push("c")
    target, around = PLACES[place]
    for name, said in WRONG.items():
        answer = await ask("POST", target, around % said, Content_Type="application/json", Device="d", Last_Event_ID="1-1")
        told = answer.json
        assert answer.status in (200, 400, 404, 409, 413, 429), (name, answer)
        if answer.status != 200:
            assert answer.error[1] != "internal"
        for result in told.get("results", ()):
            # What is told of a mistake is short, whatever it was.
            assert "error" not in result or len(result["message"]) < 600


# The feed says what the server means, and nothing that a publisher or a device made up.


FORGED = ["event: pere.bye\ndata: {}", "\n\nevent: pere.bye\ndata: {}\n\n", "\r\revent: pere.bye\rdata: {}\r\r", "\r\n\r\nid: 9-9\r\ndata: x\r\n\r\n", "id: 9-9", "retry: 1",
          ":", "data", "\ufeffdata: x", "a\u2028event: x\u2029\x85b", "0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "\x0b\x0c\x1c\x1d\x1e\x85 event: pere.bye", "\n" * 400]


@pytest.mark.parametrize("form", ["raw", "envelope"])
async def test_a_payload_forges_nothing(ask, listen, form):
    feed, id = await listen("c", device="d", format=form), None
    for text in FORGED:
        for body, kind in ((text.encode(), "text/plain"), (orjson.dumps(text), "application/json"), (orjson.dumps({text: [text]}), "application/json")):
            id = (await ask("POST", "/push/c", body, Content_Type=kind)).json["id"]
            message = await feed.event()
            assert (message.id, message.event) == (id, "message")
            lines = body.decode().replace("\r\n", "\n").replace("\r", "\n")
            told = orjson.loads(message.data)["data"] if form == "envelope" else message.data
            assert told == (lines if form == "raw" else orjson.loads(body) if "json" in kind else text)
    assert (feed.controls, feed.decoder.last_id, feed.decoder.retry) == ([], id, 3.0)


@pytest.mark.parametrize("word", ["pere.bye", "pere.hello", "pere.", "a\nb", "a\r", "\r", "a\0", "message\n\ndata: x", "é", "a b", "a\u2028b", ""])
async def test_a_type_is_no_line_and_no_control_frame(ask, listen, push, word):
    feed = await listen("c")
    item = {"channel": "c", "data": 1, "type": word}
    told = [(await ask("POST", "/push", [item])).json["results"][0], (await ask("POST", f"/push/c?type={quote(word)}", b"1")).json]
    assert [each.get("error") for each in told] == [None if word == "" else "bad_type"] * 2
    await push("c", "the end")
    assert (await feed.events(3 if word == "" else 1))[-1] == "the end"
    assert feed.controls == []


async def test_what_a_device_says_of_its_work_forges_nothing_on_the_feed_of_receipts(connect, ask, listen, push):
    await listen("c", device="d")
    wire = await connect()
    await wire.send(b"GET /receipts/c HTTP/1.0\r\n\r\n")
    assert (await wire.head()).status == 200
    assert await wire.until(b"\n\n") == b"retry: 3000"
    for text in FORGED:
        id = await push("c")
        said = {"state": "failed", "status": text}
        assert (await ask("POST", "/feedback/c", said, Device="d", Last_Event_ID=id)).status == 200
        frame = await wire.until(b"\n\n")
        while not frame.startswith(b"id: "):
            frame = await wire.until(b"\n\n")
        number, event, data = frame.split(b"\n")
        assert event == b"event: receipt" and data.startswith(b"data: ")
        assert orjson.loads(data[6:])["status"] == text


# Names in every disguise


DISGUISED = ["%2e", "%2E%2e", ".", "..", "a%2fb", "a%2Fb", "a%5cb", "a%00", "a%0a", "a%0d%0ab", "a%20", "%20a", "a%", "a%2", "a%zz", "%c0%af", "%e0%80%af", "%c0%80", "%ed%a0%80",
             "%f4%90%80%80", "%ff", "%C3%BC", "%EF%BB%BFa", "a%252fb", "a%25", "a+b", "a;b", "a;v=1", "a,b", "a=b", "a@b", "a$", "~", "~a", "%7ea", "%41", "a:b", "a*", "%2a", "a" * 129,
             "%61" * 128, "%61" * 129, "", "%e2%80%ae"]
GOOD = {"%2e": ".", "%2E%2e": "..", ".": ".", "..": "..", "~": "~", "~a": "~a", "%7ea": "~a", "%41": "A", "a:b": "a:b", "%61" * 128: "a" * 128}


@pytest.mark.parametrize("name", DISGUISED)
async def test_a_channel_in_disguise_is_the_one_that_it_is_or_none(ask, name):
    answers = [await ask("POST", f"/push/{name}", b"1"), await ask("GET", f"/events/{name}"), await ask("GET", f"/admin/events/{name}")]
    if name in GOOD:
        assert [answer.status for answer in answers] == [201, 200, 200]
        assert answers[0].json["channel"] == GOOD[name]
        assert [event["channel"] for event in answers[1].json["events"]] == [GOOD[name]]
    else:
        assert [answer.status // 100 for answer in answers] == [4, 4, 4]
        for answer in answers:
            assert answer.error[1] in ("bad_channel", "bad_encoding", "not_found", "bad_request"), answer


@pytest.mark.parametrize("last", ["0-0", "0", "-1", "1-", "-", "1-1-1", "01-1", "1-01", "1e3-0", "+1-0", " 1-0 x", "1-0\t1-0", "9999999999999-0", "8796093022207-1048575", "8796093022208-0",
                                  "8796093022207-1048576", "9" * 5000 + "-0", "1-" + "9" * 5000, "\u0661-\u0661", "null", "pere.hello", "1.0-0", "0x1-0", "1_0-0", "%31-0", "a" * 10_000,
                                  "2014-12-01T14:28:30.993Z", "é", "1-0,2-0"])
async def test_a_last_event_id_of_every_kind_opens_a_feed_or_is_refused(connect, last):
    for target in ("/feed/c", "/feed?channel=a.*&channel=b", "/receipts/c"):
        for device in ("", "Device: d\r\n"):
            wire = await connect()
            await wire.send(f"GET {target} HTTP/1.1\r\nHost: a\r\n{device}Last-Event-ID: {last}\r\n\r\n".encode())
            answer = await wire.head()
            assert answer.status in (200, 400, 431), answer
            assert answer.headers["content-type"] == ("text/event-stream" if answer.status == 200 else "application/json")


async def test_the_absolute_form_is_no_way_round_what_its_path_is_counted_as(start, connect):
    await start(limits_exempt="", peer_pushes="0.001/2", max_batch=2)
    for form in ("http://a", ""):
        wire = await connect()
        await wire.send(f"POST {form}/push/c HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n1".encode())
        assert (await wire.answer()).status == 201
    wire = await connect()
    await wire.send(b"POST http://a/push/c HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n1")
    assert (await wire.answer()).status == 429


async def test_the_absolute_form_may_have_as_large_a_body_as_its_path(start, connect):
    await start(max_event_bytes=1024)
    wire, body = await connect(), b"[" + b" " * 5000 + b"]"
    await wire.send(b"POST http://a/push HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    assert (await wire.answer()).json == {"results": []}


async def test_who_asks_for_much_and_reads_nothing_is_given_no_more_than_one_answer(start, push, connect, until):
    server = await start(backlog_bytes=16 * 1024 * 1024)
    for _ in range(60):
        await push("c", "x" * 65_000, receipt="none")
    deaf = await connect(buffer=4096)
    await deaf.send(wire.said("GET", "/events/c?limit=1000") * 40)
    connection = next(iter(server.door.connections - {None}))
    await until(lambda: connection._stuck and not connection.busy)
    held = connection.transport.get_write_buffer_size()
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert connection.transport.get_write_buffer_size() == held < 2 * 1024 * 1024
    answers = [await deaf.answer() for _ in range(40)]
    assert {answer.status for answer in answers} == {200}
    assert len(answers[0].json["events"]) == 16 and answers[0].json["more"], "a page is no larger than that"


async def test_a_page_of_events_goes_on_where_it_was_cut(start, push, get):
    await start(backlog_bytes=16 * 1024 * 1024)
    ids = [await push("c", "x" * 65_000, receipt="none") for _ in range(40)]
    read, after, pages = [], "0-0", 0
    while True:
        page = await get(f"/events/c?limit=1000&after={after}")
        read += [event["id"] for event in page["events"]]
        after, pages = page["after"], pages + 1
        if not page["more"]:
            break
    assert (read, pages) == (ids, 3)


async def test_who_is_on_very_many_channels_makes_no_request_dear(start, push, listen, ask):
    """Counted, not timed: what a batch of receipts for what nobody knows, and a batch of pushes to many channels, look at."""
    server = await start(limits_exempt="127.0.0.0/8")
    names = [f"a.{n}" for n in range(300)]
    for name in names:
        await push(name)
    await listen("a.*", device="d", ack_wait=10, window=5, format="envelope")
    store, hub = server.store, server.hub
    looks, reads = [], []
    look, read = store._gone_id, hub._missed
    store._gone_id = lambda channel: looks.append(channel) or look(channel)
    hub._missed = lambda feed: reads.append(feed) or read(feed)
    answer = await ask("POST", "/feedback", {"receipts": [{"event_id": "1-1"}] * 1000}, Device="d")
    assert {each["error"] for each in answer.json["results"]} <= {"unknown_event", "gone_event", "unknown_receipt", "gone"} and len(looks) == 300
    answer = await ask("POST", "/push", [{"channel": name, "data": 1} for name in names])
    assert [each["audience"] for each in answer.json["results"]] == [1] * 300 and 0 < len(reads) <= 20
