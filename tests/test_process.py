"""A server as a process of its own, and who comes back to it: its end by a signal, the end without one, a fleet that never stops. And the
programs of 2014, which know nothing of what came since."""

import asyncio
import signal
from urllib.parse import urlencode

import pytest
import wire
from processes import Served, free_port
from prometheus_client.parser import text_string_to_metric_families


async def numbers(port: int) -> dict[str, float]:
    text = (await wire.request(port, "GET", "/metrics")).body.decode()
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples if not sample.labels}


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
    with Served(port=free_port()) as first:
        feed = await wire.listen(first.port, "c", device="d")
        id = (await wire.push(first.port, "c", "before")).json["id"]
        assert (await feed.event()).id == id
        first.kill()
        assert await feed.end() == []
        assert not feed.is_whole
        feed.close()
        with Served(port=first.port) as second:
            # memory: forgets with its process, and says so instead of pretending.
            async with wire.listening(second.port, "c", device="d", last=id) as again:
                gap = await again.control("pere.gap")
                assert (gap["channel"], gap["from"], gap["lost"]) == ("c", id, None)
                later = (await wire.push(second.port, "c", "after")).json["id"]
                assert (await again.event()).data == "after"
                assert [int(part) for part in later.split("-")] > [int(part) for part in id.split("-")]
                assert (await wire.request(second.port, "POST", "/feedback/c", Device="d", Last_Event_ID=id)).error == (404, "unknown_event")
                assert (await wire.request(second.port, "POST", "/feedback/c", Device="d", Last_Event_ID=later)).status == 200


async def test_a_fleet_that_never_stops_survives_a_restart_of_its_server():
    with Served("--retry", "0.1", port=free_port()) as first:
        port = first.port

        async def device(name: str, seen: asyncio.Queue[tuple[str, str]]) -> None:
            """Listens, answers, and comes back, as a browser does."""
            last = ""
            while True:
                try:
                    async with wire.listening(port, "c", device=name, last=last) as feed:
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
