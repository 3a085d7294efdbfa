"""The client against servers that misbehave in every way that networks do, and against the real one."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import orjson
import pytest
from elsewhere import serving
from processes import Served, free_port

from pere.client import Client, backoff
from pere.errors import Refusal, Stranger
from pere.sse import Message


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(backoff, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(backoff, "SHORTEST_WISH", 0.001)
    monkeypatch.setenv("NO_PROXY", "*")


class Asked:
    """One request, as it came."""

    def __init__(self, head: bytes, body: bytes):
        line, *headers = head.decode().rstrip().split("\r\n")
        self.method, self.target, _ = line.split(" ")
        self.headers = {name.lower(): value for name, value in (header.split(": ", 1) for header in headers)}
        self.body = body


class Held(bytes):
    """An answer after which the connection stays open, and silent."""


Answer = bytes | Callable[[Asked], bytes]


class Scripted:
    """A server that gives its answers in order, one per connection, the last one for ever; `asked` is what came."""

    def __init__(self, answers: tuple[Answer, ...]):
        self.asked: list[Asked] = []
        self._answers = list(answers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        asked = Asked(head, await reader.readexactly(int(length[1]) if length else 0))
        self.asked.append(asked)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        answer = answer(asked) if callable(answer) else answer
        writer.write(answer)
        if isinstance(answer, Held):
            await reader.read()


@asynccontextmanager
async def scripted(*answers: Answer) -> AsyncIterator[tuple[Scripted, str]]:
    script = Scripted(answers)
    async with serving(script.serve) as port:
        yield script, f"http://127.0.0.1:{port}"


def answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} -", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def refused(status: int) -> bytes:
    """As PERE says it."""
    return answer(status, b'{"error":"no","message":"never"}')


def feed(stream: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + stream


PAGE = answer(200, b"<html>", "Content-Type: text/html")
OVER = answer(204)
DONE = answer(200, b'{"state":"processed","duplicate":false}')


async def messages(url: str, *channels: str, silence: float = 60.0, **wanted: object) -> list[Message]:
    """All that a listener is handed until the server says that it is over."""
    async with Client(url, silence=silence) as client:
        return [message async for message in client.frames(channels or "c", **wanted)]


# Asking


@pytest.mark.parametrize("data, kind, body", [
    ("hello\nyou", "text/plain; charset=utf-8", b"hello\nyou"),
    (b'{"n": 1.10}', "application/json", b'{"n": 1.10}'),
    ({"n": [1, None]}, "application/json", b'{"n":[1,null]}'),
    (None, "application/json", b"null"),
])
async def test_a_push_says_what_its_data_is(data, kind, body):
    async with scripted(answer(201, b'{"id":"1-0","channel":"c","audience":2}')) as (server, url), Client(url) as client:
        assert await client.push("c", data) == {"id": "1-0", "channel": "c", "audience": 2}
    assert (server.asked[0].headers["content-type"], server.asked[0].body) == (kind, body)


async def test_a_push_asks_for_what_was_wanted_and_for_nothing_else():
    async with scripted(answer(201, b"{}")) as (server, url), Client(url, device="d") as client:
        await client.push("a/b", 1, type="t", to=["x", "y"], ttl=0, receipt="none", need="90%", key="k")
        await client.push("c", 1)
    first, second = server.asked
    assert first.target == "/push/a%2Fb?type=t&to=x&to=y&ttl=0&receipt=none&need=90%25"
    assert (first.headers["device"], first.headers["idempotency-key"]) == ("d", "k")
    assert second.target == "/push/c"
    assert "idempotency-key" not in second.headers


async def test_a_refusal_keeps_its_code_its_message_and_its_status():
    refusal = answer(409, b'{"error":"conflict","message":"it failed before"}', "Retry-After: 7")
    async with scripted(refusal) as (_, url), Client(url) as client:
        with pytest.raises(Refusal, match="it failed before") as caught:
            await client.feedback("c", "1-0")
    assert (caught.value.code, caught.value.status, caught.value.retry_after) == ("conflict", 409, 7)


@pytest.mark.parametrize("after", ["soon", "Wed, 21 Oct 2015 07:28:00 GMT", "-1", "1.5", "\N{SUPERSCRIPT TWO}", "9" * 5000])
async def test_a_retry_after_that_is_no_number_of_seconds_is_ignored(after):
    refusal = answer(503, b'{"error":"full","message":"full"}', f"Retry-After: {after}")
    async with scripted(refusal) as (_, url), Client(url) as client:
        with pytest.raises(Refusal) as caught:
            await client.status("c", "1-0")
    assert (caught.value.status, caught.value.retry_after) == (503, None)


@pytest.mark.parametrize("stranger", [PAGE, answer(502, b"<html>"), answer(404, b"[]"), answer(301), answer(200, b"ok")])
async def test_an_answer_that_is_not_from_pere_is_a_refusal_that_names_its_status(stranger):
    async with scripted(stranger) as (_, url), Client(url) as client:
        with pytest.raises(Refusal, match="answered [2345]0[0-9]"):
            await client.status("c", "1-0")


async def test_a_server_that_is_not_there_is_a_connection_error_that_names_it():
    async with scripted(DONE) as (_, url):
        pass
    async with Client(url) as client:
        with pytest.raises(ConnectionError, match=f"{url} cannot be reached"):
            await client.status("c", "1-0")


async def test_a_server_that_never_answers_is_a_connection_error():
    async with scripted(Held()) as (_, url), Client(url, timeout=0.05) as client:
        with pytest.raises(ConnectionError, match="silent for too long"):
            await client.status("c", "1-0")


@pytest.mark.parametrize("url", ["127.0.0.1:4567", "ftp://h", "http://", "", "http://h:port"])
def test_a_url_that_is_none_is_said_at_once(url):
    with pytest.raises(ValueError, match="a server's URL is like"):
        Client(url)


@pytest.mark.parametrize("key", ["a\r\nDevice: b", "\0"])
async def test_nothing_can_be_smuggled_into_a_header(key):
    async with scripted(DONE) as (server, url), Client(url) as client:
        with pytest.raises(Refusal, match="bad_header|cannot stand in a header"):
            await client.push("c", 1, key=key)
        with pytest.raises(Refusal, match="a device is"):
            Client(url, device=key)
    assert server.asked == []


async def test_devices_are_read_page_by_page():
    first = answer(200, b'{"devices":[{"device":"a"},{"device":"b"}],"cursor":"b&"}')
    second = answer(200, b'{"devices":[{"device":"c"}],"cursor":null}')
    async with scripted(first, second) as (server, url), Client(url) as client:
        assert [device["device"] async for device in client.devices("c", "1-0", "outstanding")] == ["a", "b", "c"]
    assert [asked.target for asked in server.asked] == [
        "/events/c/1-0/devices?state=outstanding&limit=1000", "/events/c/1-0/devices?state=outstanding&cursor=b%26&limit=1000"]


async def test_a_receipt_is_repeated_until_it_is_answered():
    troubles = [b"", answer(503, b'{"error":"draining","message":"later"}'), answer(500), answer(429)]
    async with scripted(*troubles, DONE) as (server, url), Client(url, device="d") as client:
        assert (await client.feedback("c", "1-0", "failed", {"paper": 0}, until_answered=True))["duplicate"] is False
    assert [asked.body for asked in server.asked] == [b'{"event_id":"1-0","state":"failed","status":{"paper":0}}'] * 5


async def test_a_receipt_that_is_refused_is_not_repeated():
    async with scripted(refused(410)) as (server, url), Client(url) as client:
        with pytest.raises(Refusal):
            await client.feedback("c", "1-0", until_answered=True)
    assert len(server.asked) == 1


async def test_a_receipt_is_sent_once_if_nobody_insists():
    async with scripted(answer(503)) as (server, url), Client(url) as client:
        with pytest.raises(Refusal):
            await client.feedback("c", "1-0")
    assert len(server.asked) == 1


# Listening


async def test_a_feed_hands_on_its_events_and_control_frames():
    stream = (b"retry: 1\n\nevent: pere.hello\ndata: {}\n\n:\n\nid: 1-0\nevent: order\ndata: 1\ndata: 2\n\n"
              b'event: pere.gap\ndata: {"lost":1}\n\n')
    async with scripted(feed(stream), OVER) as (_, url):
        assert await messages(url) == [
            Message("{}", "pere.hello", ""), Message("1\n2", "order", "1-0"), Message('{"lost":1}', "pere.gap", "1-0")]


async def test_wherever_a_feed_breaks_off_every_event_comes_once():
    events = [b"id: 1-0\ndata: a\n\n", b"id: 2-0\r\ndata: b\r\n\r\n", "id: ü\ndata: c\n\n".encode()]
    ids = ["", "1-0", "2-0", "ü"]
    for cut in range(len(b"".join(events)) + 1):

        def resumed(asked: Asked) -> bytes:
            last = asked.headers.get("last-event-id", "")
            return feed(b"".join(events[ids.index(last):])) if last != ids[-1] else OVER

        async with scripted(feed(b"".join(events)[:cut]), resumed) as (_, url):
            assert [message.data for message in await messages(url)] == ["a", "b", "c"], cut


@pytest.mark.parametrize("start, again", [("all", True), ("1-0", True), ("new", False)])
async def test_where_a_feed_begins_is_asked_for_until_there_is_a_place_to_go_on_from(start, again):
    hello = feed(b'event: pere.hello\ndata: {"position":null}\n\n')
    async with scripted(answer(503), hello, hello, feed(b"id: 2-0\ndata: a\n\n"), OVER) as (server, url):
        await messages(url, from_=start)
    assert [f"from={start}" in asked.target for asked in server.asked] == [True, True, again, again, False]


async def test_a_feed_that_breaks_off_before_its_first_event_goes_on_from_where_it_began():
    hello = b'event: pere.hello\ndata: {"position":"7-0"}\n\n'
    async with scripted(feed(hello), feed(hello.replace(b"7", b"9") + b"id: 8-0\ndata: a\n\n"), OVER) as (server, url):
        await messages(url)
    assert [asked.headers.get("last-event-id") for asked in server.asked] == [None, "7-0", "8-0"]


@pytest.mark.parametrize("channels, target", [
    (("a",), "/feed/a"), (("a", "b"), "/feed?channel=a&channel=b"), (("a.*",), "/feed?channel=a.%2A"), (("a/b",), "/feed/a%2Fb")])
async def test_one_channel_is_a_path_and_many_or_a_pattern_are_a_query(channels, target):
    async with scripted(OVER) as (server, url):
        assert await messages(url, *channels) == []
    assert server.asked[0].target.replace("*", "%2A") == target


@pytest.mark.parametrize("status", [400, 403, 404, 409])
async def test_a_feed_that_is_refused_is_not_asked_for_again(status):
    async with scripted(refused(status)) as (server, url):
        with pytest.raises(Refusal, match="never"):
            await messages(url)
    assert len(server.asked) == 1


@pytest.mark.parametrize("stranger", [PAGE, answer(302), answer(403), answer(404, b"<html>"), answer(511, b"log in", "Content-Type: text/html")])
async def test_what_a_captive_portal_or_a_proxy_answers_is_no_answer_and_the_feed_is_asked_for_again(stranger):
    lost: list[Exception] = []
    async with scripted(stranger, OVER) as (server, url):
        await messages(url, on_lost=lambda error, wait: lost.append(error))
    assert len(server.asked) == 2
    assert [(type(error), "is not PERE's answer" in str(error)) for error in lost] == [(Stranger, True)]


async def test_a_server_that_is_busy_is_asked_again_when_it_said_to():
    waits: list[float] = []
    async with scripted(answer(429), answer(503, b"", "Retry-After: 1"), OVER) as (server, url):
        await messages(url, on_lost=lambda error, wait: waits.append(wait))
    assert len(server.asked) == 3
    assert waits[0] <= 0.02
    assert 1 <= waits[1] <= 1.04


async def test_a_feed_that_says_nothing_for_too_long_is_opened_anew():
    lost: list[Exception] = []
    silent = Held(feed(b"id: 1-0\ndata: a\n\n"))
    async with scripted(silent, OVER) as (server, url):
        assert len(await messages(url, silence=0.1, on_lost=lambda error, wait: lost.append(error))) == 1
    assert server.asked[1].headers["last-event-id"] == "1-0"
    assert "silent for too long" in str(lost[0])


async def test_waits_grow_from_what_the_server_wished_and_start_over_once_it_speaks(monkeypatch):
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    waits: list[float] = []
    spoken = feed(b"retry: 40\n\n")
    async with scripted(spoken, answer(503), answer(503), spoken, OVER) as (_, url):
        await messages(url, on_lost=lambda error, wait: waits.append(wait))
    assert waits == [0.04, 0.08, 0.16, 0.04]


def test_waits_have_an_end(monkeypatch):
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    waits = backoff.Backoff()
    assert max(waits.next(ConnectionError()) for _ in range(100)) == backoff.LONGEST_WAIT
    waits.reset(1e12)
    assert waits.next(ConnectionError()) == backoff.LONGEST_WISH


# The real one


async def test_an_event_is_pushed_received_answered_for_and_accounted_for():
    with Served() as served:
        async with Client(served.url, device="till-1") as till, Client(served.url) as shop:
            async with aclosing(till.frames("orders", format="envelope")) as feed:
                assert (await anext(feed)).event == "pere.hello"
                pushed = await shop.push("orders", {"order": 1}, type="order")
                assert pushed["audience"] == 1
                message = await anext(feed)
                event = orjson.loads(message.data)
                assert (message.id, message.event, event["data"]) == (pushed["id"], "order", {"order": 1})
                assert (await till.feedback("orders", message.id, status="printed")) == {"state": "processed", "duplicate": False}
                assert (await till.feedback("orders", message.id))["duplicate"] is True
            status = await shop.status("orders", pushed["id"])
            assert (status["counts"]["processed"], status["complete"], status["outstanding"]) == (1, True, 0)
            [device] = [device async for device in shop.devices("orders", pushed["id"])]
            assert (device["device"], device["state"], device["status"]) == ("till-1", "processed", "printed")


async def test_a_push_waits_an_event_is_asked_for_again_and_taken_back():
    with Served() as served:
        async with Client(served.url, device="till-1", timeout=20) as till, Client(served.url, timeout=1.5) as shop:
            async with aclosing(till.frames("orders", format="envelope", ack_wait=3600, window=1)) as feed:
                hello = orjson.loads((await anext(feed)).data)
                assert (hello["ack_wait"], hello["window"]) == (3600, 1)
                # Longer than the network has time: what is waited for is not the network.
                told = await shop.push("orders", 1, wait=2)
                assert (told["satisfied"], told["outstanding"]) == (False, 1)
                assert (await anext(feed)).id == told["id"]
                assert await till.feedback("orders", told["id"], "retry", delay=0) == {"state": "pending", "duplicate": False}
                again = orjson.loads((await anext(feed)).data)
                assert (again["id"], again["attempt"]) == (told["id"], 2)
                assert await shop.recall("orders", told["id"]) == {"id": told["id"], "channel": "orders", "cancelled": 1}
                assert (await anext(feed)).event == "pere.cancel"


async def test_a_listener_survives_the_end_of_its_server():
    lost = asyncio.Event()
    with Served(port=free_port()) as first:
        async with Client(first.url, device="d") as client, aclosing(client.frames("c", on_lost=lambda *_: lost.set())) as feed:
            assert (await anext(feed)).event == "pere.hello"
            first.kill()
            again = asyncio.ensure_future(anext(feed))
            await lost.wait()
            with Served(port=first.port):
                assert (await again).event == "pere.hello"
                assert (await anext(feed)).event == "pere.gap", "the new one knows nothing of the old one's time, and says so"
                await client.push("c", "back")
                assert (await anext(feed)).data == "back"
