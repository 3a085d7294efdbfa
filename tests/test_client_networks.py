"""The client on bad networks: each trouble is told in words of its own, and nothing is lost by it.

The server is a real one throughout, and so are the sockets; where something stands between the two, it is `Between`.
"""

import asyncio
import signal
import time

import pytest
from between import Between
from listener import Device, in_a_hurry  # noqa: F401  # a fixture
from minting import SECRET, token
from processes import Served, free_port
from test_client import DONE, PAGE, answer, feed, refused, scripted

from pere import Client, Event, Refusal
from pere.client import backoff, sleep
from pere.client.news import Bye, Duplicate, Lost, Opened, Removed, Unreceipted, Unsent

from pere.errors import Stranger
from pere.sse import Message

PORTAL = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 28\r\n\r\n<html>Please log in.</html>\n"


@pytest.fixture
def behind(start):
    """`async with await behind(heartbeat=0.1) as between`: somebody between the client and a real server."""

    async def behind(**config):
        server = await start(**{"retry": 0.1} | config)
        return Between(server.port)

    return behind


def causes(device, kind=Lost):
    return [str(news.error) for news in device.told(kind)]


# What holds back, and what is gone without saying so


async def test_a_proxy_that_begins_to_hold_bytes_back_is_noticed_by_the_heartbeats_that_are_missing(behind, push):
    async with await behind(heartbeat=0.1) as between, Device(between.url) as device:
        await device.opened()
        await push("c", 1)
        await device.has(1)
        between.hold()
        await push("c", 2)
        await device.until(lambda: any("was silent for too long (0.25 s)" in cause for cause in causes(device)))
        between.flow()
        await push("c", 3)
        await device.has(1, 2, 3)


async def test_a_proxy_that_holds_all_back_from_the_start_is_noticed_by_the_hello_that_is_missing(behind, push):
    async with await behind() as between:
        between.hold()
        async with Device(between.url, timeout=0.3) as device:
            # On a machine that is very busy even a connection may take too long, which is another cause.
            await device.until(lambda: any("was silent for too long" in cause for cause in causes(device)))
            between.flow()
            await device.opened()
            await push("c", 1)
            await device.has(1)


async def test_a_connection_of_which_one_end_has_vanished_is_given_up(behind, push):
    async with await behind(heartbeat=0.1) as between, Device(between.url) as device:
        await device.opened()
        between.forget()
        await push("c", 1)
        await device.has(1)
        assert "was silent for too long" in causes(device)[0]


async def test_a_feed_with_nothing_but_heartbeats_is_not_given_up(behind, push):
    async with await behind(heartbeat=0.1) as between, Device(between.url) as device:
        await device.opened()
        await asyncio.sleep(0.5)
        await push("c", 1)
        await device.has(1)
        # On a machine that is very busy even a heartbeat may be late; then it was told.
        await device.until(lambda: len(device.told(Opened)) == 1 + len(device.told(Lost)))


async def test_who_works_for_long_does_not_take_that_for_silence(behind, push):
    async with await behind(heartbeat=0.1) as between, Client(between.url, device="d", on_news=(news := []).append) as client:
        at_work = asyncio.Event()

        async def work(event):
            news.clear()
            at_work.set()
            await asyncio.sleep(0.5)

        task = asyncio.ensure_future(client.handle("c", work))
        while not news:
            await asyncio.sleep(0.002)
        await push("c", 1)
        await at_work.wait()
        # Longer than the silence that would be too long: whoever reads nothing hears nothing.
        await asyncio.sleep(0.4)
        assert news == []
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_machine_that_slept_opens_its_feeds_anew(behind, push, monkeypatch):
    slept = 0.0
    monkeypatch.setattr(sleep, "clock", lambda: lambda: slept)
    async with await behind(heartbeat=2) as between, Device(between.url) as device:
        await device.opened()
        between.forget()
        slept = 3600.0
        await device.until(lambda: device.told(Lost))
        assert "while this machine slept for 3600 s" in causes(device)[0]
        await push("c", 1)
        await device.has(1)


def test_how_long_this_machine_slept_is_no_matter_of_the_wall_clock(monkeypatch):
    slept = sleep.clock()
    before = max(slept() for _ in range(9))  # two clocks are read, one after the other, and somebody may come between
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert max(slept() for _ in range(9)) - before == pytest.approx(0, abs=0.01)


async def test_a_proxy_that_the_environment_names_is_gone_through(behind, monkeypatch):
    async with await behind() as between:
        monkeypatch.setenv("HTTP_PROXY", between.url)
        monkeypatch.setenv("NO_PROXY", "")
        # Nobody listens there; the proxy passes all on to the server.
        async with Device("http://localhost:1") as device:
            await device.opened()
            await device.client.push("c", 1)
            await device.has(1)


# Somebody else answers


async def test_behind_a_captive_portal_nothing_counts_as_answered_until_it_is_gone(behind, push, get):
    async with await behind() as between, Device(between.url, answer=None) as device:
        await device.opened()
        id = await push("c", 1)
        await device.until(lambda: device.events)
        between.answer = PORTAL
        between.cut()
        device.events[0].processed()
        await device.until(lambda: device.told(Unsent) and device.told(Lost) and any(isinstance(news.error, Stranger) for news in device.told(Lost)))
        assert any("answered 200 OK (text/html), which is not PERE's answer" in cause for cause in causes(device) + causes(device, Unsent))
        assert (await get(f"/events/c/{id}"))["outstanding"] == 1
        await push("c", 2)
        between.answer = None
        await device.until(lambda: len(device.events) == 2)
        device.events[1].processed()
        await device.client.flush()
        assert (await get(f"/events/c/{id}"))["complete"] is True
        assert device.data == [1, 2] and device.told(Unreceipted) == []


async def test_a_feed_that_is_garbled_on_the_way_is_opened_anew():
    envelope = b'{"id":"1-0","channel":"c","type":"message","time":"2026-01-01T00:00:00.000Z","attempt":1,"data":"whole"}'
    garbled = [b"data: nonsense\n\n", b"data: []\n\n", b'data: {"id":"1-0"}\n\n', b"id: 1-0\ndata: " + envelope[:-1] + b"\n\n"]
    async with scripted(*map(feed, garbled), feed(b"id: 1-0\ndata: " + envelope + b"\n\n"), answer(204)) as (server, url):
        async with Client(url, on_news=(news := []).append) as client:
            assert [event.data async for event in client.listen("c")] == ["whole"]
    assert [type(each) for each in news] == [Lost] * 5 + [Removed]
    assert sum("sent what is no feed" in str(each.error) for each in news[:4]) == 4
    # Not having been read, it did not move the place to go on from.
    assert [asked.headers.get("last-event-id") for asked in server.asked] == [None] * 5 + ["1-0"]


@pytest.mark.parametrize("hello", [b"nonsense", b"[]", b'{"heartbeat":"often","receipt_jitter":[],"position":7}', b'{"heartbeat":-1,"receipt_jitter":1e99}'])
async def test_a_hello_that_says_nonsense_does_no_harm(hello):
    async with scripted(feed(b"event: pere.hello\ndata: " + hello + b'\n\nevent: pere.bye\ndata: {"retry":"soon"}\n\n'), answer(204)) as (_, url):
        async with Client(url, device="d", on_news=(news := []).append) as client:
            assert [event async for event in client.listen("c")] == []
    assert [type(each) for each in news] == [Opened, Bye, Lost, Removed]


# The answers to a receipt


MANY = answer(200, b'{"results":[{"event_id":"1-0","state":"processed","duplicate":false},{"event_id":"2-0","state":"processed","duplicate":true}]}')
NOT_NOW = [b"", PAGE, answer(302), answer(404, b"<html>"), answer(500), answer(503, b'{"error":"draining","message":"later"}'), refused(401), refused(403),
           answer(429), answer(200, b"[]"), answer(200, b'{"resu')]


@pytest.mark.parametrize("count, last", [(1, DONE), (2, MANY)])
async def test_receipts_are_repeated_until_pere_itself_has_answered(count, last):
    troubles = NOT_NOW + ([answer(200, b'{"results":[]}'), answer(200, b'{"results":[1,2]}')] if count == 2 else [])
    async with scripted(*troubles, last) as (server, url), Client(url, device="d", on_news=(news := []).append) as client:
        for n in range(count):
            client._receipts_of("d").say({"event_id": f"{n + 1}-0", "channel": "c", "state": "processed"})
        await client.flush()
    assert len({asked.body for asked in server.asked}) == 1
    assert len(server.asked) == len(troubles) + 1
    assert [(type(each), each.waiting) for each in news] == [(Unsent, count)] * len(troubles)


async def test_receipts_do_not_wait_out_their_time_where_the_feed_is_open_again(behind, push, get, monkeypatch):
    async with await behind() as between, Device(between.url, answer=None) as device:
        await device.opened()
        id = await push("c", 1)
        await device.until(lambda: device.events)
        # The feed comes back soon; its receipts would be tried again in an hour or two.
        monkeypatch.setattr(backoff, "FIRST_WAIT", 1e4)
        monkeypatch.setattr(backoff, "LONGEST_WAIT", 1e4)
        monkeypatch.setattr("random.uniform", lambda low, high: min(high, 0.05) if device.told(Unsent) else high)
        between.answer = PORTAL
        device.events[0].processed()
        await device.until(lambda: device.told(Unsent))
        between.answer = None
        between.cut()
        await device.client.flush()
        assert device.told(Unsent)[0].wait == 1e4
        assert (await get(f"/events/c/{id}"))["complete"] is True


@pytest.mark.parametrize("status", [404, 409, 410])
async def test_a_receipt_that_the_server_knows_better_is_answered(status):
    async with scripted(refused(status)) as (server, url), Client(url, device="d", on_news=(news := []).append) as client:
        client._receipts_of("d").say({"event_id": "1-0", "channel": "c", "state": "processed"})
        await client.flush()
    assert len(server.asked) == 1 and news == []


async def test_a_receipt_that_can_never_be_one_is_given_up_and_told():
    async with scripted(refused(400)) as (server, url), Client(url, device="d", on_news=(news := []).append) as client:
        client._receipts_of("d").say({"event_id": "1-0", "channel": "c", "state": "processed"})
        await client.flush()
    assert len(server.asked) == 1
    assert [(type(each), each.id, each.error.status) for each in news] == [(Unreceipted, "1-0", 400)]


async def test_one_bad_receipt_among_many_takes_no_other_with_it():
    mixed = answer(200, b'{"results":[{"event_id":"1-0","error":"busy","message":"later","status":503},{"event_id":"2-0","error":"bad","message":"never","status":400},'
                        b'{"event_id":"3-0","error":"conflict","message":"it failed","status":409}]}')
    async with scripted(mixed, DONE) as (server, url), Client(url, device="d", on_news=(news := []).append) as client:
        for n in range(3):
            client._receipts_of("d").say({"event_id": f"{n + 1}-0", "channel": "c", "state": "processed"})
        await client.flush()
    assert [asked.headers.get("last-event-id") for asked in server.asked] == [None, "1-0"]
    assert [(type(each), each.id) for each in news] == [(Unreceipted, "2-0")]


async def test_what_comes_again_after_it_was_answered_is_not_handed_on_but_answered_again():
    envelope = b'id: 1-0\ndata: {"id":"1-0","channel":"c","type":"message","time":"2026-01-01T00:00:00.000Z","attempt":1,"data":1}\n\n'
    answers = {"GET": [feed(envelope), feed(envelope + envelope), answer(204)], "POST": [DONE]}

    def reply(asked):
        mine = answers[asked.method]
        return mine.pop(0) if len(mine) > 1 else mine[0]

    async with scripted(reply) as (server, url), Client(url, device="d", on_news=(news := []).append) as client:
        seen = []
        async for event in client.listen("c"):
            seen.append(event.data)
            event.processed()
            await client.flush()
        await client.flush()
    assert seen == [1]
    assert len([each for each in news if isinstance(each, Duplicate)]) == 2
    assert 2 <= len([asked for asked in server.asked if asked.method == "POST"]) <= 3


# Tokens


async def test_a_token_that_expires_in_mid_stream_is_replaced_by_a_new_one(behind, start):
    given = []

    async def give():
        given.append(token("d", feed=["c"], push=["c"], expires=1800 if not given else 7200))
        return given[-1]

    async with await behind(jwt_secret=SECRET, heartbeat=0.1, jwt_leeway=0.0) as between, Device(between.url, token=give, silence=20) as device:
        await device.opened()
        await device.client.push("c", 1)
        await device.has(1)
        start.servers[-1].hub.clock = lambda: time.time() + 3600
        await device.opened(2)
        assert [news.reason for news in device.told(Bye)] == ["expired"]
        await device.client.push("c", 2)
        await device.has(1, 2)
        assert len(given) == 2


async def test_a_token_that_is_refused_is_replaced_at_once_and_the_request_repeated(behind):
    tokens = [token("d", push=["c"], expires=-10), token("d", push=["c"])]
    async with await behind(jwt_secret=SECRET) as between, Client(between.url, device="d", token=lambda: tokens.pop(0)) as client:
        assert (await client.push("c", 1))["channel"] == "c"
        # Whoever gives none that holds is asked once and not for ever.
        tokens[:] = [token("d", push=["c"], key="another secret that nobody has asked for") for _ in range(9)]
        client._http.expire()
        with pytest.raises(Refusal) as caught:
            await client.push("c", 1)
        assert (caught.value.status, len(tokens)) == (401, 7)


async def test_who_gives_tokens_may_be_away_for_a_while(behind):
    given = []

    def give():
        given.append(1)
        if len(given) < 3:
            raise TimeoutError("the issuer does not answer")
        return token("d", feed=["c"])

    async with await behind(jwt_secret=SECRET) as between, Device(between.url, token=give) as device:
        await device.opened()
        assert len(given) == 3
        assert causes(device) == ["there is no token: the issuer does not answer"] * 2


async def test_a_channel_that_is_not_ours_ends_the_feed(behind):
    async with await behind(jwt_secret=SECRET) as between, Device(between.url, token=token("d", feed=["other"])) as device:
        with pytest.raises(Refusal) as caught:
            await device.task
        assert caught.value.status == 403


# Not now


async def test_who_is_told_to_wait_waits_as_long_as_he_was_told(behind, start):
    async with await behind(limits_exempt="", max_batch=2, peer_pushes="20/2", peer_receipts="20/2") as between, Device(between.url) as device:
        await device.opened()
        pushed = [await device.client.push("c", n, patience=30) for n in range(3)]
        assert len({each["id"] for each in pushed}) == 3
        await device.has(0, 1, 2)
        for each in pushed:
            assert (await device.client.wait("c", each["id"], until="complete"))["counts"]["processed"] == 1
        gate = start.servers[-1].gate
        clock, now = gate.time, gate.time()
        gate.time = lambda: now  # else a machine that is slow enough pushes no faster than it may
        with pytest.raises(Refusal) as caught:
            for _ in range(3):
                await device.client.push("c", 1)
        assert (caught.value.status, caught.value.retry_after) == (429, 1)
        gate.time = clock  # else the receipts for these are refused for ever


async def test_what_is_too_large_is_not_tried_again(behind):
    async with await behind(max_event_bytes=100) as between, Client(between.url) as client:
        with pytest.raises(Refusal) as caught:
            await client.push("c", "x" * 101, patience=60)
        assert caught.value.status == 413


async def test_a_push_whose_answer_was_lost_is_published_once(behind, get):
    async with await behind() as between, Client(between.url, timeout=0.3) as client:
        between.hold()
        pushing = asyncio.ensure_future(client.push("c", 1, patience=60))
        while not (await get("/events/c"))["events"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.4)
        between.flow()
        id = (await pushing)["id"]
        assert [event["id"] for event in (await get("/events/c"))["events"]] == [id]


async def test_a_name_that_nobody_knows_is_told_and_tried_again():
    async with Device("http://nowhere.invalid:4567", timeout=2) as device:
        await device.until(lambda: len(device.told(Lost)) >= 2)
        assert all("http://nowhere.invalid:4567" in cause for cause in causes(device))
        assert all(isinstance(news.error, ConnectionError) for news in device.told(Lost))


# The server itself


async def test_a_server_that_is_killed_and_comes_back_has_lost_and_doubled_nothing(tmp_path, monkeypatch):
    flags = ("--store", f"sqlite:{tmp_path}/p.db", "--retry", "0.1")
    port = free_port()
    served = Served(*flags, port=port)
    try:
        async with Device(served.url, answer=None) as device, Client(served.url) as shop:
            await device.opened()
            # A clock that is wrong, and then jumps, is nobody's business.
            monkeypatch.setattr(time, "time", lambda: 1e9)
            ids = [(await shop.push("c", n))["id"] for n in range(3)]
            await device.until(lambda: len(device.events) == 3)
            device.events[0].processed()
            await device.client.flush()
            served.kill()
            served.__exit__()
            # Given while nobody is there to hear it.
            device.events[1].processed()
            monkeypatch.setattr(time, "time", lambda: 3e9)
            ids_later = asyncio.ensure_future(shop.push("c", 3, patience=60))
            await device.until(lambda: device.told(Lost) and device.told(Unsent))
            served = Served(*flags, port=port)
            ids.append((await ids_later)["id"])
            await device.until(lambda: len(device.events) == 4)
            for event in device.events[2:]:
                event.processed()
            await device.client.flush()
            assert [(event.id, event.data) for event in device.events] == [(id, n) for n, id in enumerate(ids)]
            assert [(await shop.status("c", id))["counts"]["processed"] for id in ids] == [1] * 4
            assert all(served.url in cause for cause in causes(device))
    finally:
        served.__exit__()


async def test_a_server_that_hangs_is_noticed_and_waited_for():
    with Served("--retry", "0.1", "--heartbeat", "0.1") as served:
        async with Device(served.url, timeout=0.3) as device, Client(served.url) as shop:
            await device.opened()
            served._popen.send_signal(signal.SIGSTOP)
            try:
                await device.until(lambda: len(device.told(Lost)) >= 2)
            finally:
                served._popen.send_signal(signal.SIGCONT)
            id = (await shop.push("c", 1, to=["d"], patience=60))["id"]
            await device.has(1)
            assert (await shop.wait("c", id, until="complete"))["counts"]["processed"] == 1


async def test_a_server_that_says_goodbye_is_left_alone_for_as_long_as_it_said():
    with Served("--retry", "0.5") as served:
        async with Device(served.url) as device:
            await device.opened()
            assert served.end(signal.SIGTERM) == 0
            await device.until(lambda: device.told(Lost))
            [bye] = device.told(Bye)
            assert (bye.reason, device.told(Lost)[0].wait) == ("drain", bye.retry)
            assert 0.5 <= bye.retry <= 1.0


def test_an_event_is_shown_in_few_words():
    event = Event(Message('{"id":"1-0","channel":"c","time":"2026-01-01T00:00:00.000Z","data":[1]}'), None)
    assert repr(event) == "<Event 1-0 on c: [1]>"

