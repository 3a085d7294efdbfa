"""One real process, and one event followed through every room: push, feed, feedback, status, devices, admin, metrics. Then the
programs of 2014, the end by a signal, and the end without one."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlencode

import orjson
import pytest
import wire
from processes import Served
from prometheus_client.parser import text_string_to_metric_families


@asynccontextmanager
async def listening(port: int, *channels: str, **wanted: object) -> AsyncIterator[wire.Feed]:
    feed = await wire.listen(port, *channels, **wanted)
    try:
        yield feed
    finally:
        feed.close()


async def numbers(port: int) -> dict[str, float]:
    text = (await wire.request(port, "GET", "/metrics")).body.decode()
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples if not sample.labels}


async def test_one_event_goes_through_every_room():
    with Served("--metrics-channels", "orders") as served:
        port = served.port
        assert (await wire.request(port, "GET", "/")).json["message"] == "PERE server up and running"
        assert (await wire.request(port, "GET", "/readyz")).status == 200
        async with listening(port, "orders", device="till-1") as till, listening(port, "orders", device="kitchen", format="envelope") as kitchen, \
                listening(port, "**", device="archive") as archive, listening(port, "orders") as screen:

            # push
            order = {"order": 17, "dish": "Pizza «Quattro stagioni»"}
            pushed = (await wire.push(port, "orders", order, type="order", need="2", ttl=600, device="waiter")).json
            assert pushed == {"id": pushed["id"], "channel": "orders", "audience": 3}

            # feed
            for feed in (till, screen):
                message = await feed.event()
                assert (message.id, message.event, orjson.loads(message.data)) == (pushed["id"], "order", order)
            for feed in (kitchen, archive):
                envelope = orjson.loads((await feed.event()).data)
                assert (envelope["id"], envelope["channel"], envelope["type"], envelope["attempt"], envelope["data"]) == (
                    pushed["id"], "orders", "order", 1, order)

            # feedback
            assert kitchen.hello["feedback"] == "/feedback/orders"
            told = await wire.request(port, "POST", kitchen.hello["feedback"], {"state": "delivered"}, Device="kitchen", Last_Event_ID=pushed["id"])
            assert told.json == {"state": "delivered", "duplicate": False}
            told = await wire.request(port, "POST", "/feedback/orders?state=processed&status=printed", Device="till-1", Last_Event_ID=pushed["id"])
            assert told.json == {"state": "processed", "duplicate": False}
            told = await wire.request(port, "POST", archive.hello["feedback"], {"receipts": [{"event_id": pushed["id"]}]}, Device="archive")
            assert told.json["results"] == [{"event_id": pushed["id"], "state": "processed", "duplicate": False}]

            # status
            status = (await wire.request(port, "GET", f"/events/orders/{pushed['id']}")).json
            assert {state: count for state, count in status["counts"].items() if count} == {"delivered": 1, "processed": 2}
            assert (status["audience"], status["outstanding"], status["satisfied"], status["complete"], status["publisher"]) == (3, 1, True, False, "waiter")

            # devices
            owing = (await wire.request(port, "GET", f"/events/orders/{pushed['id']}/devices?state=outstanding")).json["devices"]
            assert [(line["device"], line["state"], line["online"]) for line in owing] == [("kitchen", "delivered", True)]
            lines = (await wire.request(port, "GET", f"/events/orders/{pushed['id']}/devices?state=processed")).json["devices"]
            assert {line["device"]: line["status"] for line in lines} == {"till-1": "printed", "archive": None}
            await wire.request(port, "POST", "/feedback/orders", Device="kitchen", Last_Event_ID=pushed["id"])
            assert (await wire.request(port, "GET", f"/events/orders/{pushed['id']}")).json["complete"] is True

            # admin
            assert (await wire.request(port, "GET", "/admin/connections")).json == {"orders": 4, "total number": 4}
            assert (await wire.request(port, "GET", "/admin/events/orders")).json == [order]
            devices = (await wire.request(port, "GET", "/admin/devices/orders")).json
            assert {name: (device["op"], device["Last-Event-Id"]) for name, device in devices.items()} == {
                name: ("feedback", pushed["id"]) for name in ("till-1", "kitchen", "archive")}
            assert (await wire.request(port, "DELETE", "/admin/devices/till-1")).status == 204
            assert (await till.control("pere.bye"))["reason"] == "kicked"
            assert (await wire.request(port, "GET", "/feed/orders", Device="till-1")).status == 204

            # metrics
            counted = await numbers(port)
            assert {name: counted[f"pere_{name}"] for name in ("events_total", "deliveries_total", "feeds", "feed_opens_total", "outstanding", "feeds_behind")} == {
                "events_total": 1, "deliveries_total": 4, "feeds": 3, "feed_opens_total": 4, "outstanding": 0, "feeds_behind": 0}


async def test_the_programs_of_2014_work_unchanged():
    with Served() as served:
        port = served.port

        # listen.rb: a GET with a `device` header, and on every reconnection a `Last-Event-Id`.
        first = await wire.Feed.open(port)
        await first.start("/feed/CHANNEL_1", {"Accept": "text/event-stream", "Connection": "keep-alive", "device": "DEVICE_1", "User-Agent": "Ruby"})
        assert first.answer_head.headers["content-type"] == "text/event-stream"
        second = await wire.Feed.open(port)
        await second.start("/feed/CHANNEL_1", {"device": "DEVICE_2"}, "1.0")
        third = await wire.Feed.open(port)
        await third.start("/feed/CHANNEL_2", {"device": "DEVICE_1"})
        for feed in (first, second, third):
            await feed.control("pere.hello")

        # push.rb: a POST of JSON.
        pushed = await wire.request(port, "POST", "/push/CHANNEL_1", '{"at":"2014-12-01 15:28:30 +0100","message":"hello"}',
                                    Content_Type="application/json", device="SERVER_1")
        assert pushed.status in (200, 201)
        messages = [await first.event(), await second.event()]
        assert {message.data for message in messages} == {'{"at":"2014-12-01 15:28:30 +0100","message":"hello"}'}
        assert {message.id for message in messages} == {pushed.json["id"]}

        # The receipt: a form `status`, and the id in a header of either spelling.
        form = urlencode({"status": "elaborated: OK"})
        for device, spelling in (("DEVICE_1", "Last-Event-Id"), ("DEVICE_2", "last_event_id")):
            line = await wire.Wire.open(port)
            await line.send(wire.said("POST", "/feedback/CHANNEL_1", form.encode(), {
                "device": device, spelling: messages[0].id, "Content-Type": "application/x-www-form-urlencoded"}))
            answer = await line.answer()
            assert (answer.status, answer.json["state"]) == (200, "processed")
            line.close()

        # The three answers of the administrator.
        assert (await wire.request(port, "GET", "/admin/connections")).json == {"CHANNEL_1": 2, "CHANNEL_2": 1, "total number": 3}
        assert (await wire.request(port, "GET", "/admin/events/CHANNEL_1")).json == [{"at": "2014-12-01 15:28:30 +0100", "message": "hello"}]
        devices = (await wire.request(port, "GET", "/admin/devices/CHANNEL_1")).json
        assert {name: (told["op"], told["Last-Event-Id"]) for name, told in devices.items()} == {
            "DEVICE_1": ("feedback", messages[0].id), "DEVICE_2": ("feedback", messages[0].id)}
        assert all(told["at"].endswith("Z") for told in devices.values())
        for feed in (first, second, third):
            feed.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_says_goodbye_to_every_feed_and_spreads_their_return(how):
    with Served("--retry", "10") as served:
        feeds = [await wire.listen(served.port, "c", device=f"d{n}") for n in range(10)]
        assert served.end(how) == 0
        waits = []
        for feed in feeds:
            told = await feed.control("pere.bye")
            assert (told["reason"], await feed.end(), feed.is_whole) == ("drain", [], True)
            waits.append(told["retry"])
            feed.close()
        assert all(10 <= wait <= 20 for wait in waits)
        assert len(set(waits)) > 1
        assert "stopped" in served.err


async def test_feeds_come_back_after_a_kill_and_are_told_that_the_past_is_lost():
    with Served() as first:
        feed = await wire.listen(first.port, "c", device="d")
        id = (await wire.push(first.port, "c", "before")).json["id"]
        assert (await feed.event()).id == id
        first.kill()
        assert await feed.end() == []
        assert not feed.is_whole
        feed.close()
        with Served(port=first.port) as second:
            # memory: forgets with its process, and says so instead of pretending.
            async with listening(second.port, "c", device="d", last=id) as again:
                gap = await again.control("pere.gap")
                assert (gap["channel"], gap["from"], gap["lost"]) == ("c", id, None)
                later = (await wire.push(second.port, "c", "after")).json["id"]
                assert (await again.event()).data == "after"
                assert [int(part) for part in later.split("-")] > [int(part) for part in id.split("-")]
                assert (await wire.request(second.port, "POST", "/feedback/c", Device="d", Last_Event_ID=id)).error == (404, "unknown_event")
                assert (await wire.request(second.port, "POST", "/feedback/c", Device="d", Last_Event_ID=later)).status == 200


async def test_a_fleet_that_never_stops_survives_a_restart_of_its_server():
    with Served("--retry", "0.1") as first:
        port = first.port

        async def device(name: str, seen: asyncio.Queue[tuple[str, str]]) -> None:
            """Listens, answers, and comes back, as a browser does."""
            last = ""
            while True:
                try:
                    async with listening(port, "c", device=name, last=last) as feed:
                        while (message := await feed.next()) is not None:
                            if not message.event.startswith("pere."):
                                last = message.id
                                answer = await wire.request(port, "POST", "/feedback/c", Device=name, Last_Event_ID=last)
                                assert answer.status == 200
                                seen.put_nowait((name, message.data))
                except (OSError, EOFError):
                    pass
                await asyncio.sleep(0.02)

        seen: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        names = {f"d{n}" for n in range(20)}
        fleet = [asyncio.ensure_future(device(name, seen)) for name in names]

        async def everybody_sees(text: str) -> None:
            while len((await wire.request(port, "GET", "/admin/devices/c")).json) < len(names):
                await asyncio.sleep(0.01)
            await wire.push(port, "c", text)
            assert {await seen.get() for _ in names} == {(name, text) for name in names}

        await everybody_sees("first")
        first.kill()
        with Served("--retry", "0.1", port=port) as second:
            await everybody_sees("second")
            assert (await numbers(port))["pere_outstanding"] == 0
            for each in fleet:
                each.cancel()
            results = await asyncio.gather(*fleet, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results), results
            assert second.end(signal.SIGTERM) == 0
