"""Feeds of a load that come all at once: who is slow to be let in, who is cut, who is closed meanwhile, and that all hear at once what comes later."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import pytest
from processes import SECONDS, Served

from pere.load import arrivals, fleet
from pere.load.target import Target

GREETING = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
EVENT = b'data: {"ts":"@%020d"}\n\n'


class Other(asyncio.Protocol):
    """A connection at a server that answers `said` to whoever asks, cuts it where that is nothing, and remembers what was asked."""

    def __init__(self, said: bytes):
        self.said = said
        self.asked: list[bytes] = []

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.asked.append(data)
        if self.said:
            self.transport.write(self.said)
        else:
            self.transport.abort()


@asynccontextmanager
async def other(said: bytes) -> AsyncIterator[tuple[list[Other], fleet.Fleet]]:
    made: list[Other] = []

    def one() -> Other:
        made.append(Other(said))
        return made[-1]

    server = await asyncio.get_running_loop().create_server(one, "127.0.0.1", 0)
    load = fleet.Fleet(Target("127.0.0.1", server.sockets[0].getsockname()[1]), 0)
    try:
        yield made, load
    finally:
        load.end()
        for each in made:
            each.transport.abort()
        server.close()


async def within(work):
    return await asyncio.wait_for(work, SECONDS)


@pytest.mark.parametrize("is_settled", [False, True], ids=["coming", "settled"])
async def test_what_comes_is_heard_before_and_after_it_has_a_transport(is_settled):
    async with other(GREETING) as (made, load):
        await within(load.open(0, 30, ["news"]))
        assert sorted(each.asked[0].partition(b"Device: ")[2][:13] for each in made) == [b"device-%06d" % number for number in range(30)]
        if is_settled:
            await within(load.settle())
        assert [feed.transport.__class__ is arrivals.Arrival for feed in load.feeds] == [not is_settled] * 30
        for each in made:
            each.transport.write(EVENT % time.monotonic_ns())
        await within(load.gather(1))
        assert load.delivered == 30 and load.latency.quantile(1.0) < SECONDS * 1e6


async def test_what_comes_while_it_gets_a_transport_is_not_lost():
    async with other(GREETING + EVENT % 1) as (made, load):
        await within(load.open(0, 200, ["news"]))
        settling = asyncio.create_task(load.settle())
        for number in range(2, 12):
            for each in made:
                each.transport.write(EVENT % number)
            await asyncio.sleep(0.001)
        await within(settling)
        await within(load.gather(11))
        assert load.delivered == 200 * 11


async def test_who_is_closed_while_it_gets_a_transport_stays_closed(until):
    async with other(GREETING) as (made, load):
        await within(load.open(0, 20, ["news"]))
        settling = asyncio.create_task(load.settle())
        while not settling.done():
            for feed in load.feeds:
                if feed.transport.__class__ is arrivals.Arrival and not feed.closing:
                    feed.close()
                    break
            await asyncio.sleep(0)
        await within(settling)
        closed = sum(feed.closing for feed in load.feeds)
        assert closed
        await until(lambda: sum(each.transport.is_closing() for each in made) == closed)


async def test_more_than_may_come_at_once_come_one_after_the_other(monkeypatch):
    monkeypatch.setattr(arrivals, "AT_ONCE", 3)
    async with other(GREETING) as (made, load):
        most = 0
        opening = asyncio.create_task(load.open(0, 40, ["news"]))
        while not opening.done():
            await asyncio.sleep(0)
            most = max(most, sum(feed.transport is not None and not feed.is_open for feed in (each.feed for each in load._arrivals._known.values())))
        await within(opening)
        assert len(made) == 40 and 0 < most <= 3


async def test_who_is_cut_before_it_is_answered_is_lost():
    async with other(b"") as (_, load):
        with pytest.raises(fleet.Trouble, match="closed the feed of device [0-9]+ after 0 events"):
            await within(load.open(0, 5, ["news"]))
        assert load.figures()["lost"] == 5


async def test_who_is_refused_is_quoted():
    async with other(b"HTTP/1.1 403 Forbidden\r\n\r\nnot you") as (_, load):
        with pytest.raises(fleet.Trouble, match="a feed was refused: HTTP/1.1 403 Forbidden"):
            await within(load.open(0, 5, ["news"]))


async def test_nobody_there_is_said():
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        load = fleet.Fleet(Target(*nobody.getsockname()), 0)
        with pytest.raises(fleet.Trouble, match="cannot be reached"):
            await within(load.open(0, 5, ["news"]))
        load.end()


async def test_who_is_let_in_late_says_what_it_came_for(until):
    """Where the queue of who listens is full the connection is there a second later, when the kernel tries again: the request goes when it can."""
    with closing(socket.socket()) as slow:
        slow.bind(("127.0.0.1", 0))
        slow.listen(0)
        with closing(socket.create_connection(slow.getsockname())):
            load = fleet.Fleet(Target(*slow.getsockname()), 0)
            opening = asyncio.create_task(load.open(0, 2, ["news"]))
            await until(lambda: len(load._arrivals._known) == 2)
            assert any(each.unsent for each in load._arrivals._known.values())
            slow.settimeout(SECONDS)
            visitors = [slow.accept()[0]]
            for _ in range(2):
                visitors.append((await asyncio.get_running_loop().run_in_executor(None, slow.accept))[0])
            for visitor in visitors[1:]:
                visitor.sendall(GREETING)
            await within(opening)
            assert [feed.is_open for feed in load.feeds] == [True, True]
            load.end()
            for visitor in visitors:
                visitor.close()


async def test_one_that_does_not_come_is_waited_for_no_longer_than_it_is_said(monkeypatch):
    monkeypatch.setattr(fleet, "PATIENCE", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        load = fleet.Fleet(Target(*silent.getsockname()), 0)
        with pytest.raises(fleet.Trouble, match="only 0 of 3 feeds opened in 0.2 s"):
            await within(load.open(0, 3, ["news"]))
        load.end()


async def test_a_whole_fleet_comes_back_before_it_has_transports():
    with Served() as served:
        target = Target("127.0.0.1", int(served.url.rpartition(":")[2]))
        load, publisher = fleet.Fleet(target, 0), fleet.Fleet(target, 1)
        await within(load.open(0, 1500, ["news"]))
        await within(load.settle())
        await within(load.leave())
        await within(publisher.push(["news"], 10, 150, 1, 0.0))
        await within(load.come_back(10, time.monotonic_ns()))
        assert [feed.got for feed in load.feeds] == [10] * 1500
        load.end()
        publisher.end()


async def test_where_there_is_no_epoll_each_gets_a_transport_once_it_is_answered(monkeypatch, until):
    monkeypatch.setattr(arrivals, "EPOLL", None)
    async with other(GREETING) as (made, load):
        await within(load.open(0, 30, ["news"], stuck=10))
        await until(lambda: not load._arrivals._known)
        assert [feed.transport.__class__ is arrivals.Arrival for feed in load.feeds] == [False] * 27
        for each in made:
            each.transport.write(EVENT % time.monotonic_ns())
        await within(load.gather(1))
        assert (load.delivered, len(load.stuck)) == (27, 3)


async def test_one_that_fails_is_lost_and_no_other(until):
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(str(context["exception"])))
    async with other(GREETING) as (made, load):
        await within(load.open(0, 20, ["news"]))
        full, failed = load.full, load.feeds[7]

        def fails(feed):
            if feed is failed:
                raise ValueError("no more")
            full(feed)

        load.full = fails
        gathering = asyncio.create_task(load.gather(1))
        await asyncio.sleep(0)
        for each in made:
            each.transport.write(EVENT % time.monotonic_ns())
        with pytest.raises(fleet.Trouble, match="the server closed the feed of device 7 after 1 events"):
            await within(gathering)
        await until(lambda: sum(feed.got for feed in load.feeds) == 20)
        assert told == ["no more"] and load.figures()["lost"] == 1


async def test_at_the_end_nobody_is_left(until):
    async with other(GREETING) as (made, load):
        opening = asyncio.create_task(load.open(0, 700, ["news"]))
        await until(lambda: any(each.asked for each in made))
        load.end()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await until(lambda: all(each.transport.is_closing() for each in made))
        assert not load._arrivals._known and load._arrivals._coming == 0
