"""Feeds, pushes and receipts over TLS and over a Unix socket: whatever is promised of them holds there too.

The tests of test_feed.py and some of others run once more here; what is changed is only the way on which their clients come.
"""

import asyncio
from typing import Any

import pytest
import wire
from certificates import Authority
from conftest import Start
from test_feed import *  # noqa: F403
from test_hub import (  # noqa: F401
    fill_and_end,
    test_a_burst_for_all_and_for_some_keeps_its_order, test_a_device_that_was_away_gets_what_it_missed_and_only_on_its_own_channel,
    test_feeds_of_many_channels_resume_each_channel_after_one_id, test_two_feeds_of_one_device_both_get_everything_and_one_receipt_is_enough,
    test_who_connects_in_the_middle_of_a_burst_gets_each_event_once)

from pere.config import MIB
from pere.event import SECURE


class Secured(Start):
    """Servers that speak TLS."""

    def __init__(self, authority: Authority):
        super().__init__()
        self.cert, self.key = authority.sign("way")
        self.context = authority.context

    async def __call__(self, *args: Any, **config: Any) -> Any:
        return await super().__call__(*args, **{"tls_cert": self.cert, "tls_key": self.key} | config)

    async def port(self) -> wire.Way:
        port = await super().port()
        assert isinstance(port, int)
        return wire.Secure(port, self.context)


class Near(Start):
    """Servers that only listen on a Unix socket."""

    def __init__(self, folder: Any):
        super().__init__()
        self.folder = folder

    async def __call__(self, *args: Any, **config: Any) -> Any:
        return await super().__call__(*args, **{"tcp": False, "unix": str(self.folder / f"{len(self.servers)}.sock")} | config)

    async def port(self) -> wire.Way:
        return (self.servers[-1] if self.servers else await self()).config.unix


@pytest.fixture(params=["tls", "unix"])
def start(io_loop, request, tmp_path):
    start = Secured(request.getfixturevalue("authority")) if request.param == "tls" else Near(tmp_path)
    yield start
    for server in start.servers:
        io_loop.run_sync(server.stop)


# Receipts, which the door may recognise


async def test_receipts_are_recognised_and_answered_in_their_order(start, connect, push, get):
    server = await start()
    devices = [f"d{n}" for n in range(20)]
    id = await push("c", to=devices)
    line = await connect()
    for device in devices[:10]:
        await line.send(wire.said("POST", "/feedback/c", b"status=ok", {"Device": device, "Last-Event-ID": id}))
        assert (await line.answer()).json == {"state": "processed", "duplicate": False}
    # And those that come together, with one among them that is of another shape and one that is refused.
    await line.send(b"".join([*(wire.said("POST", "/feedback/c", b"status=ok", {"Device": device, "Last-Event-ID": id}) for device in devices[10:]),
                              wire.said("GET", "/healthz"), wire.said("POST", "/feedback/c", b"status=ok", {"Device": "nobody", "Last-Event-ID": id})]))
    assert [(await line.answer()).json for _ in devices[10:]] == 10 * [{"state": "processed", "duplicate": False}]
    assert (await line.answer()).json == {"status": "alive"}
    assert (await line.answer()).error == (404, "unknown_event")
    assert (await get(f"/events/c/{id}"))["counts"]["processed"] == 20
    assert server.door.shapes._known


async def test_many_devices_answer_at_once_and_each_hears_of_its_own(start, connect, push):
    await start()
    devices = [f"d{n}" for n in range(50)]
    id = await push("c", to=devices)
    lines = [await connect() for _ in devices]
    for _ in range(3):
        for line, device in zip(lines, devices, strict=True):
            await line.send(wire.said("POST", "/feedback/c", b"", {"Device": device, "Last-Event-ID": id}))
        answers = [(await line.answer()).json for line in lines]
        assert {answer["state"] for answer in answers} == {"processed"}


# Connections


async def test_the_last_answer_on_a_connection_arrives_whole_and_then_it_ends(start, connect, push):
    await start()
    for number in range(60):
        await push("c", str(number) + 20_000 * "x")
    for version, headers in (("1.1", {"Connection": "close"}), ("1.0", {})):
        line = await connect()
        await line.send(wire.said("GET", "/admin/events/c", b"", headers, version))
        assert len((await line.answer()).json) == 60
        assert await line.rest() == b""


async def test_who_is_refused_while_it_is_still_sending_hears_why(start, connect):
    await start()
    line = await connect()
    await line.send(b"POST /push/c HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
    for _ in range(20):
        await line.send(50_000 * b"x")
        await asyncio.sleep(0)
    assert (await line.answer()).error == (413, "large_body")
    assert await line.rest() == b""


async def test_answers_larger_than_any_buffer_wait_for_the_client(start, connect, push):
    await start(backlog_bytes=32 * MIB, max_event_bytes=MIB)
    for _ in range(4):
        await push("c", 1_000_000 * "x")
    line = await connect(buffer=4096)
    await line.send(4 * wire.said("GET", "/admin/events/c") + wire.said("GET", "/healthz"))
    await asyncio.sleep(0.2)
    for _ in range(4):
        assert [len(text) for text in (await line.answer()).json] == 4 * [1_000_000]
    assert (await line.answer()).json == {"status": "alive"}


# Those who do not read


async def test_a_feed_that_never_reads_delays_nobody_costs_little_and_catches_up_exactly(start, listen, push, until, measured):
    server = await start(backlog_bytes=64 * MIB, stuck_after=3600)
    slow, others = await listen("c", device="slow", buffer=4096), [await listen("c"), await listen("c", device="other")]
    ids, most = [], 0
    for _ in range(200):
        ids.append(await push("c", 60_000 * "x"))
        for other in others:
            assert (await other.event()).id == ids[-1]
        most = max(most, sum(feed.waiting() for feed in server.hub.feeds.values()))
    metrics = await measured()
    assert (metrics["pere_feeds_behind"], metrics["pere_feeds"]) == (1, 3)
    assert most < 128 * 1024
    await wire.back_in_step(slow, others, ids, lambda: push("c", "live again"), lambda: until(lambda: not server.hub.channels.behind))


async def test_a_feed_that_takes_nothing_is_cut_and_resumes(start, listen, push, until, measured):
    server = await start(backlog_bytes=64 * MIB, stuck_after=1, heartbeat=0.5)
    await listen("c", device="slow", buffer=4096)
    quick, ids = await listen("c", device="quick"), []
    for _ in range(60):
        ids.append(await push("c", 60_000 * "x"))
        assert (await quick.event()).id == ids[-1]  # else it is slow itself, where the pushes take longer than that
    await until(lambda: len(server.hub.feeds) == 1)
    assert (await measured())["pere_feed_closes_total", "slow"] == 1
    again = await listen("c", device="slow")
    assert [(await again.event()).id for _ in ids] == ids


async def test_feeds_may_be_closed_removed_or_drained_while_they_are_full(start, ask, listen, push, until):
    server = await start(max_feeds_per_device=1, backlog_bytes=64 * MIB)
    await fill_and_end(server, 60, ask, listen, push, until)


async def test_a_live_feed_whose_client_dies_is_noticed_and_the_others_go_on(start, listen, push, until):
    server = await start()
    feeds = [await listen("c") for _ in range(6)]
    assert {bool(form & SECURE) for form, places in next(iter(server.hub.channels.values())).live.items() if places} == {isinstance(await start.port(), wire.Secure)}
    for feed in feeds[::2]:
        feed.close()
    for number in range(20):
        await push("c", number)
    for feed in feeds[1::2]:
        assert await feed.events(20) == [str(number) for number in range(20)]
    await until(lambda: len(server.hub.feeds) == 3)
    assert server.hub.closes["gone"] == 3
