"""A device that listens by the client: what it is handed, what it answers, and what the server has of that."""

import asyncio
import logging
import sys
import threading
from contextlib import aclosing

import pytest

from listener import Device, in_a_hurry  # noqa: F401  # a fixture
from processes import SECONDS

from pere import Client, Refusal, Retry
from pere.client import client
from pere.client.news import Bye, Cancelled, Duplicate, Gap, Lost, Removed, Unreceipted, Unsent, to_log


@pytest.fixture
def url(start):
    async def url(**config):
        server = await start(**{"retry": 0.1} | config)
        return f"http://127.0.0.1:{server.port}"

    return url


@pytest.fixture
def counts(get):
    async def counts(id, channel="c"):
        return {state: count for state, count in (await get(f"/events/{channel}/{id}"))["counts"].items() if count}

    return counts


# What it is handed


async def test_an_event_says_what_it_is(url, push):
    async with Device(await url(), channels=["c", "x.*"]) as device:
        await device.opened()
        first = await push("c", {"n": 1}, type="order")
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        second = (await device.client.push("x.y", "two\nlines", traceparent=trace))["id"]
        await device.has({"n": 1}, "two\nlines")
    one, two = device.events
    assert (one.id, one.channel, one.type, one.attempt, one.answer, one.is_cancelled) == (first, "c", "order", 1, "processed", False)
    assert (two.id, two.channel, two.type, one.traceparent, two.traceparent) == (second, "x.y", "message", None, trace)
    assert one.time.timestamp() * 1000 == pytest.approx(int(first.partition("-")[0]), abs=1)


async def test_a_number_arrives_as_it_was_written_however_long_it_is(url, push):
    async with Device(await url()) as device:
        await device.opened()
        await push("c", b'{"n":123456789012345678901234567890}')
        await push("c", b"[0." + b"9" * 5000 + b"]")
        await push("c", b"[" * 500 + b"1234567890123456789" + b"]" * 500)
        await device.until(lambda: len(device.events) == 3)
        assert device.data[0] == {"n": 123456789012345678901234567890}
        assert device.data[1] == [1.0]


async def test_who_asks_for_the_next_event_has_processed_the_one_before(url, push, counts):
    async with Device(await url()) as device:
        await device.opened()
        ids = [await push("c", n) for n in range(3)]
        await device.has(0, 1, 2)
        assert [await counts(id) for id in ids] == [{"processed": 1}] * 3
        assert device.client.unanswered == 0


async def test_where_the_loop_is_left_the_event_at_hand_comes_again(url, push, counts):
    async with Client(await url(), device="d") as client:
        ids = []

        async def left_at(data):
            async with aclosing(client.listen("c")) as feed:
                async for event in feed:
                    if event.data == data:
                        return event.attempt

        task = asyncio.ensure_future(left_at("a"))
        while not ids:
            try:
                ids.append(await push("c", "a", to=["d"], need="1"))
            except AssertionError:
                await asyncio.sleep(0.01)
        assert await task == 1
        assert await counts(ids[0]) == {"sent": 1}
        assert await left_at("a") == 2
        ids.append(await push("c", "b"))
        assert await left_at("b") == 1
        await client.flush()
        assert [await counts(id) for id in ids] == [{"processed": 1}, {"sent": 1}]


async def test_what_was_said_of_an_event_stands(url, push, get):
    said = {"processed": lambda event: event.processed({"paper": 3}), "failed": lambda event: event.failed("no paper"), "delivered": lambda event: event.delivered()}

    def work(event):
        said[event.data](event)
        event.failed("too late, if there was one")

    async with Device(await url(), work=lambda event: work(event) if event.data != "delivered" else event.delivered()) as device:
        await device.opened()
        ids = [await push("c", word) for word in said]
        await device.has(*said)
        lines = [(await get(f"/events/c/{id}/devices"))["devices"][0] for id in ids]
        assert [(line["state"], line["status"]) for line in lines] == [("processed", {"paper": 3}), ("failed", "no paper"), ("delivered", None)]


async def test_an_event_that_is_asked_for_again_comes_again(url, push, counts):
    async with Device(await url(), work=lambda event: event.attempt < 3 and event.retry(), ack_wait=60) as device:
        await device.opened()
        id = await push("c", "a")
        await device.has("a", "a", "a")
        assert [event.attempt for event in device.events] == [1, 2, 3]
        assert await counts(id) == {"processed": 1}
        assert device.told(Duplicate) == []


async def test_who_is_still_at_work_says_so_and_is_left_alone(url, push):
    async with Device(await url(), answer=None, ack_wait=0.6) as device:
        await device.opened()
        await push("c", "a")
        await device.until(lambda: device.events)
        for _ in range(15):
            device.events[0].working()
            await asyncio.sleep(0.05)
        device.events[0].processed()
        await device.has("a")


async def test_what_somebody_is_working_on_is_not_handed_out_a_second_time_until_it_is_dropped(url, push, get):
    async with Device(await url(max_attempts=15), answer=None, ack_wait=0.1) as device:
        await device.opened()
        id = await push("c", "a")
        await device.until(lambda: device.events)
        while (await get(f"/events/c/{id}/devices"))["devices"][0]["attempt"] < 3:
            await asyncio.sleep(0.02)
        assert device.data == ["a"]
        device.events.clear()
        await device.until(lambda: device.events)
        assert device.events[0].attempt >= 3
        device.events[0].processed()
        await device.client.flush()


async def test_where_an_event_is_dropped_nothing_is_called_in_which_a_ctrl_c_would_be_lost(url, push):
    async with Device(await url(), answer=None) as device:
        await device.opened()
        await push("c", 1)
        await device.until(lambda: device.events)
        called = []
        sys.setprofile(lambda frame, what, _: what == "call" and called.append(frame.f_code.co_qualname))
        device.events.clear()
        sys.setprofile(None)
        assert called == []


async def test_what_nobody_holds_any_more_is_forgotten(url, ask, monkeypatch):
    made = []
    monkeypatch.setattr(client, "_AtHand", lambda at_hand=client._AtHand: made.append(at_hand()) or made[-1])
    async with Device(await url(), channels=["c"], answer=None, work=lambda event: event.data % 100 and device.events.pop()) as device:
        await device.opened()
        assert (await ask("POST", "/push", [{"channel": "c", "data": n} for n in range(1000)])).status == 200
        await device.until(lambda: len(device.events) == 10 and made[0].get(device.events[-1].id) is not None)
        (at_hand,) = made
        assert all(at_hand.is_held(event.id) for event in device.events)
        assert len(at_hand._known) <= 2 * 10 + at_hand.MOST


async def test_nobody_answers_on_an_anonymous_feed(url, push):
    def work(event):
        with pytest.raises(ValueError, match="in a device's name"):
            event.processed()

    async with Device(await url(), name=None, work=work) as device:
        await device.opened()
        await push("c", 1)
        await push("c", 2)
        await device.has(1, 2)
        assert device.client.unanswered == 0


async def test_one_client_may_listen_as_many_devices(url, push, counts):
    async with Client(await url(), on_news=lambda news: opened.append(news.device)) as client:
        opened, seen = [], []

        async def device(name):
            async for event in client.listen("c", device=name):
                seen.append((name, event.data))

        names = [f"d{n}" for n in range(20)]
        tasks = [asyncio.ensure_future(device(name)) for name in names]
        while len(opened) < 20:
            await asyncio.sleep(0.002)
        id = await push("c", 1)
        while len(seen) < 20 or client.unanswered:
            await asyncio.sleep(0.002)
        assert sorted(opened) == sorted(names)
        assert await counts(id) == {"processed": 20}
        for task in tasks:
            task.cancel()


async def test_a_receipt_may_be_given_in_any_thread(url, push, counts):
    async with Device(await url(), answer=None, work=lambda event: threading.Thread(target=event.processed, args=("in a thread",)).start()) as device:
        await device.opened()
        id = await push("c", 1)
        await device.until(lambda: device.events)
        while await counts(id) != {"processed": 1}:
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("wrong", [{"answer": "failed"}, {"answer": ""}])
async def test_an_answer_that_cannot_be_is_said_at_once(wrong):
    async with Client("http://127.0.0.1:1") as client:
        with pytest.raises(ValueError, match="the answer is"):
            await anext(client.listen("c", **wrong))


# Handlers


async def test_a_handler_that_returns_has_processed_and_one_that_raises_has_failed(url, push, get, caplog):
    opened = asyncio.Event()
    tries = []

    async def handler(event):
        if event.data == "later":
            tries.append(event.attempt)
            if len(tries) == 1:
                raise Retry(0)
        if event.data == "bad":
            raise KeyError("paper")
        return {"printed": event.data}

    async with Client(await url(), device="d", on_news=lambda news: opened.set()) as client:
        task = asyncio.ensure_future(client.handle("c", handler, ack_wait=60))
        await opened.wait()
        ids = [await push("c", word) for word in ("good", "bad", "later")]
        for id in ids:
            assert (await client.wait("c", id, until="complete"))["complete"]
        lines = [(await get(f"/events/c/{id}/devices"))["devices"][0] for id in ids]
        assert [(line["state"], line["status"]) for line in lines] == [
            ("processed", {"printed": "good"}), ("failed", "KeyError: 'paper'"), ("processed", {"printed": "later"})]
        assert tries == [1, 2]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [record.message.partition(" <")[0] for record in caplog.records if record.levelno >= logging.ERROR] == ["the handler of"]
    caplog.clear()


async def test_so_many_handlers_work_at_once_and_no_more_and_where_they_are_ended_their_events_come_again(url, push, counts):
    opened = asyncio.Event()
    at_work, most = set(), []
    go = asyncio.Event()

    async def handler(event):
        at_work.add(event.data)
        most.append(len(at_work))
        await go.wait()
        at_work.discard(event.data)

    async with Client(await url(), device="d", on_news=lambda news: opened.set()) as client:
        task = asyncio.ensure_future(client.handle("c", handler, concurrency=3))
        await opened.wait()
        ids = [await push("c", n) for n in range(7)]
        while len(at_work) < 3:
            await asyncio.sleep(0.002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert [await counts(id) for id in ids] == [{"sent": 1}] * 7
        at_work.clear()
        go.set()
        task = asyncio.ensure_future(client.handle("c", handler, concurrency=3))
        for id in ids:
            await client.wait("c", id, until="complete")
        assert [await counts(id) for id in ids] == [{"processed": 1}] * 7
        assert max(most) == 3
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# What it is told besides


async def test_a_gap_is_told(url, push, start, until):
    async with Device(await url(backlog_events=5)) as device:
        await device.opened()
        await push("c", 0)
        await device.has(0)
        device.task.cancel()
        await asyncio.gather(device.task, return_exceptions=True)
        await until(lambda: not start.servers[-1].hub.feeds)
        ids = [await push("c", n) for n in range(1, 11)]
        device.events.clear()
        device.task = asyncio.ensure_future(device._listen())
        await device.has(6, 7, 8, 9, 10)
        [gap] = device.told(Gap)
        assert (gap.device, gap.channel, gap.to, gap.lost) == ("d", "c", ids[5], 5)


async def test_an_event_that_is_taken_back_is_told_and_knows_it(url, push):
    async with Device(await url(), answer=None) as device:
        await device.opened()
        id = await push("c", "a")
        await device.until(lambda: device.events)
        await device.client.recall("c", id)
        await device.until(lambda: device.told(Cancelled))
        assert device.told(Cancelled) == [Cancelled("d", "c", id)]
        assert device.events[0].is_cancelled


async def test_a_device_that_was_deleted_stops_for_good(url, ask):
    async with Device(await url()) as device:
        await device.opened()
        assert (await ask("DELETE", "/admin/devices/d")).status == 204
        await device.over.wait()
        await device.task
        assert [news.reason for news in device.told(Bye)] == ["kicked"]
        assert device.told(Removed) == [Removed("d")]


@pytest.mark.parametrize("news, level, said", [
    (Lost("d", ConnectionError("it is away"), 1.25), logging.WARNING, "device d: the feed was lost: it is away; trying again in 1.2 s"),
    (Gap(None, "c", "1-0", None, None), logging.WARNING, "an anonymous feed: nobody knows how many events of c will never come"),
    (Gap("d", "c", "1-0", "4-0", 2), logging.WARNING, "device d: 2 events of c will never come"),
    (Removed("d"), logging.WARNING, "device d was deleted, and listens no more"),
    (Unsent("d", 3, ConnectionError("it is away"), 1.0), logging.WARNING, "device d: 3 receipts wait: it is away; trying again in 1.0 s"),
    (Unreceipted("d", "1-0", Refusal("no", "never")), logging.WARNING, "device d: the receipt for 1-0 is refused: never"),
    (Bye("d", "drain", 3.0), logging.INFO, "device d: Bye(device='d', reason='drain', retry=3.0)"),
])
def test_news_are_logged_in_words(news, level, said, caplog):
    caplog.set_level(logging.INFO, "pere.client")
    to_log(news)
    assert [(record.levelno, record.message) for record in caplog.records] == [(level, said)]
    caplog.clear()


async def test_whoever_asks_for_no_news_finds_them_in_the_log(url, push, caplog):
    caplog.set_level(logging.INFO, "pere.client")
    async with Client(await url(), device="d") as client:
        task = asyncio.ensure_future(anext(client.listen("c")))
        while "Opened" not in caplog.text:
            await asyncio.sleep(0.002)
        await push("c", 1)
        await task


# Receipts


async def test_a_burst_is_answered_in_a_few_requests(url, ask, measured):
    async with Device(await url()) as device:
        await device.opened()
        answer = await ask("POST", "/push", [{"channel": "c", "data": n} for n in range(500)])
        assert answer.status == 200
        await device.has(*range(500))
        sample = await measured()
        requests = sum(value for key, value in sample.items() if isinstance(key, tuple) and key[0] == "pere_http_requests_total" and any("feedback" in part for part in key))
        assert 1 <= requests < 50
        assert sample["pere_receipts_total", "accepted", "processed"] == 500


async def test_receipts_are_spread_as_the_server_wishes(url, push, counts, monkeypatch):
    spread = []
    monkeypatch.setattr("random.uniform", lambda low, high: spread.append(high) or 0)
    async with Device(await url(receipt_jitter=7.5)) as device:
        await device.opened()
        id = await push("c", 1)
        await device.has(1)
        assert 7.5 in spread
        assert await counts(id) == {"processed": 1}


async def test_an_event_that_wants_no_receipt_is_no_trouble(url, push):
    async with Device(await url()) as device:
        await device.opened()
        await push("c", 1, receipt="none")
        await push("c", 2)
        await device.has(1, 2)
        assert device.told(Unreceipted) == [] and device.told(Unsent) == []


async def test_a_word_that_is_too_long_is_left_out_rather_than_the_receipt(url, push, get):
    async with Device(await url(max_status_bytes=10), work=lambda event: event.failed("x" * 100)) as device:
        await device.opened()
        ids = [await push("c", n) for n in range(2)]
        await device.has(0, 1)
        for id in ids:
            [line] = (await get(f"/events/c/{id}/devices"))["devices"]
            assert (line["state"], line["status"]) == ("failed", None)


async def test_a_server_that_takes_fewer_at_once_gets_fewer_at_once(url, push, counts):
    async with Device(await url(max_batch=3)) as device:
        await device.opened()
        ids = [await push("c", n) for n in range(3)]
        await device.has(*range(3))
        device.client._receipts["d"].stop()
        device.client._receipts.clear()
        receipts = device.client._receipts_of("d")
        for _ in range(4):
            ids += [await push("c", 1, to=["d"]) for _ in range(5)]
        for id in ids[3:]:
            receipts.say({"event_id": id, "channel": "c", "state": "processed"})
        await receipts.flush()
        assert [await counts(id) for id in ids] == [{"processed": 1}] * len(ids)


async def test_who_has_too_many_receipts_waiting_reads_no_more(url, push, monkeypatch):
    monkeypatch.setattr("pere.client.receipts.ROOM", 3)
    address = await url()
    async with Device(address) as device:
        await device.opened()
        monkeypatch.setattr(device.client._http, "ask", hold := Held(device.client._http.ask))
        for n in range(10):
            await push("c", n)
        await device.until(lambda: len(device.events) >= 3)
        await asyncio.sleep(0.05)
        assert hold.asked.is_set() and len(device.events) <= 4
        hold.go.set()
        await device.has(*range(10))


class Held:
    """A request that waits for `go`."""

    def __init__(self, ask):
        self._ask = ask
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, *args, **kwargs):
        self.asked.set()
        await self.go.wait()
        return await self._ask(*args, **kwargs)


async def test_what_was_answered_before_the_end_of_a_process_is_told_by_the_next(url, push, counts, tmp_path, caplog):
    import dbm

    address = await url()
    with dbm.open(str(tmp_path / "kept"), "c") as kept:
        async with Device(address, kept=kept) as device:
            await device.opened()
            # The server is not there any more for whatever is asked, and this process will not see it again.
            device.client._http._base, device.client._http.timeout = "http://127.0.0.1:1", 0.01
            id = await push("c", 1)
            await device.until(lambda: len(device.events) == 1 and device.client.unanswered == 1)
        assert [key for key in kept.keys()] == [f"d {id}".encode()]
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == ["1 receipts were not answered before the end, and are kept"]
    caplog.clear()
    assert await counts(id) == {"sent": 1}
    with dbm.open(str(tmp_path / "kept"), "c") as kept:
        async with Device(address, kept=kept) as device:
            await device.client.flush()
            assert await counts(id) == {"processed": 1}
            await device.opened()
        assert device.events == [] and list(kept.keys()) == []


async def test_who_waits_for_answers_when_the_client_is_closed_waits_no_more(caplog):
    kept = {"d 1-0": b'{"event_id":"1-0","channel":"c","state":"processed"}'}
    async with Client("http://127.0.0.1:1", timeout=0.01, on_news=lambda news: None, kept=kept) as client:
        waiting = asyncio.ensure_future(client.flush())
        await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="closed"):
        await asyncio.wait_for(waiting, SECONDS)
    assert "1 receipts were not answered before the end, and are kept" in caplog.text
    caplog.clear()


class Full(dict):
    """A disk on which nothing can be written."""

    def __setitem__(self, key, value):
        raise OSError(28, "No space left on device")


async def test_a_receipt_that_cannot_be_kept_is_given_all_the_same(url, push, counts, caplog):
    async with Device(await url(), kept=Full()) as device:
        await device.opened()
        id = await push("c", 1)
        await device.has(1)
        assert await counts(id) == {"processed": 1}
    assert "cannot be kept" in caplog.text
    caplog.clear()


async def test_what_is_kept_and_is_no_receipt_is_left_alone(url, caplog):
    kept = {"d 1-0": b"nonsense", "d 2-0": b"{}", "?": b'{"event_id":"","channel":"c","state":"failed"}', "d 3-0": b'{"event_id":"4-0","channel":"c","state":"failed"}'}
    before = dict(kept)
    async with Device(await url(), kept=kept) as device:
        await device.opened()
        assert device.client.unanswered == 0 and kept == before
    assert sum("is no receipt" in record.message for record in caplog.records) == 4
    caplog.clear()


# Publishing


async def test_many_are_pushed_in_as_many_requests_as_it_takes(url, get):
    async with Client(await url(max_batch=50), device="shop") as client:
        results = await client.push_many([*({"channel": "c", "data": n} for n in range(120)), {"channel": "c"}, {"channel": "no such?", "data": 1}])
        assert len(results) == 122
        assert [result.get("error") for result in results[-2:]] == ["bad_item", "bad_channel"]
        assert len({result["id"] for result in results[:120]}) == 120
        assert [event["data"] for event in (await get("/events/c?limit=1000"))["events"]] == list(range(120))


async def test_who_is_outstanding_is_read_page_by_page(url, push, monkeypatch):
    monkeypatch.setattr("pere.client.publisher.PAGE", 7)
    async with Client(await url()) as client:
        names = [f"d{n:02}" for n in range(30)]
        id = await push("c", 1, to=names)
        assert sorted([line["device"] async for line in client.outstanding("c", id)]) == names


async def test_a_publisher_waits_until_enough_or_all_have_answered(url, push):
    address = await url()
    async with Client(address) as shop, Client(address, device="a") as a, Client(address, device="b") as b:
        id = await push("c", 1, to=["a", "b"], need=1)
        assert (await shop.wait("c", id, seconds=0.05))["satisfied"] is False
        satisfied = asyncio.ensure_future(shop.wait("c", id))
        complete = asyncio.ensure_future(shop.wait("c", id, until="complete"))
        await a.feedback("c", id)
        assert (await satisfied)["satisfied"] is True
        assert not complete.done()
        await b.feedback("c", id, "failed")
        assert (await complete)["counts"]["failed"] == 1
        # Nobody is left who could make it satisfied.
        id = await push("c", 2, to=["a"])
        await a.feedback("c", id, "failed")
        assert (await shop.wait("c", id))["satisfied"] is False


async def test_what_an_event_waits_for_has_a_name():
    async with Client("http://127.0.0.1:1") as client:
        with pytest.raises(ValueError, match="satisfied or complete"):
            await client.wait("c", "1-0", until="done")


async def test_a_token_that_does_not_hold_ends_the_feed_with_the_servers_words(url):
    async with Device(await url(jwt_secret="s" * 32), token="nonsense") as device:
        with pytest.raises(Refusal) as caught:
            await device.task
        assert caught.value.status == 401
        assert device.told(Lost) == []
