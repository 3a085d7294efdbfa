"""Sockets that are only written to: what takes the place of a transport once a connection is a feed."""

import asyncio
import os
import resource
import socket

import pytest
import wire

from pere.feed import Carried
from pere.outlets import LEFT, Outlet, Outlets

MIB = 1 << 20


class Told(Outlet):
    """An outlet, and what it was told, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def pause_writing(self) -> None:
        self.words.append("full")

    def resume_writing(self) -> None:
        self.words.append("room")

    def connection_lost(self, error: Exception | None) -> None:
        self.words.append("gone")


class Pair:
    """An outlet, and the other end of its connection."""

    def __init__(self, outlets: Outlets, transport: asyncio.Transport, there: socket.socket):
        self.outlet, self.there = Told(), there
        assert outlets.take(transport, self.outlet)

    async def read(self, size: int) -> bytes:
        loop, read = asyncio.get_running_loop(), b""
        while len(read) < size and (some := await asyncio.wait_for(loop.sock_recv(self.there, MIB), 60)):
            read += some
        return read

    async def end(self) -> bytes:
        return await self.read(1 << 30)


@pytest.fixture
def outlets(io_loop):
    outlets = Outlets(io_loop.asyncio_loop)
    yield outlets
    outlets.close()


@pytest.fixture
def pair(outlets):
    theirs = []

    async def pair(buffer: int = 0) -> Pair:
        ours, there = socket.socketpair()
        theirs.append(there)
        there.setblocking(False)
        if buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
        return Pair(outlets, transport, there)

    yield pair
    for each in theirs:
        each.close()


async def test_a_socket_that_has_no_transport_becomes_one_at_once(outlets):
    loop = asyncio.get_running_loop()
    (ours, there), (early, gone) = socket.socketpair(), socket.socketpair()
    for each in (ours, early, there):
        each.setblocking(False)
    held, left, outlet = Outlet(), Outlet(), Told()
    assert outlets.adopt(ours, held) and outlets.adopt(early, left)
    assert ours.fileno() == -1, "the descriptor is the outlet's alone"
    assert held.write(b"1")
    assert await loop.sock_recv(there, 10) == b"1"
    gone.close()
    for _ in range(3000):
        if left.is_closing():
            break
        await asyncio.sleep(0.01)
    assert left.is_closing() and not held.is_closing(), "though nobody was there yet to be told of it"
    outlets.replace(held, outlet)
    there.close()
    while not outlet.words:
        await asyncio.sleep(0.01)
    assert outlet.words == ["gone"] and outlet.is_closing()


async def test_what_is_written_arrives_and_the_transport_is_gone(outlets):
    ours, there = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
    made = Pair(outlets, transport, there)
    there.setblocking(False)
    assert transport.is_closing()
    await asyncio.sleep(0.01)
    made.outlet.write(b"one")
    os.write(made.outlet.fd, b"two")
    assert await made.read(6) == b"onetwo"
    there.close()


async def test_what_the_socket_does_not_take_waits_and_comes_in_order(outlets, pair, until):
    made = await pair(buffer=4096)
    pieces = [bytes([65 + place]) * 300_000 for place in range(5)]
    assert not made.outlet.write(pieces[0])
    assert made.outlet.words == ["full"]
    for piece in pieces[1:]:
        made.outlet.write(memoryview(piece))
    assert made.outlet.waiting() > 1_200_000
    assert await made.read(1_500_000) == b"".join(pieces)
    await until(lambda: made.outlet.words == ["full", "room"])
    assert made.outlet.waiting() == 0
    assert outlets._poll.poll(0) == [], "nobody is woken because there is room"
    made.outlet.write(b"more")
    assert await made.read(4) == b"more"


async def test_who_goes_is_noticed_whether_the_socket_is_full_or_not(pair, until):
    for buffer, words in ((0, ["gone"]), (4096, ["full", "gone"])):
        made = await pair(buffer)
        fd = made.outlet.fd
        made.outlet.write(b"x" * (300_000 if buffer else 1))
        made.there.close()
        await until(lambda made=made, words=words: made.outlet.words == words)
        assert made.outlet.is_closing()
        assert not made.outlet.write(b"to nobody")
        with pytest.raises(OSError):
            os.fstat(fd)


async def test_who_only_ends_its_side_has_gone_too(pair, until):
    made = await pair()
    made.there.shutdown(socket.SHUT_WR)
    await until(lambda: made.outlet.words == ["gone"])
    assert await made.end() == b""


async def test_what_is_heard_is_dropped_however_much_it_is(pair):
    made = await pair()
    loop = asyncio.get_running_loop()
    await asyncio.wait_for(loop.sock_sendall(made.there, bytes(4 * MIB)), 60)
    made.outlet.write(b"still here")
    assert await made.read(10) == b"still here"
    assert made.outlet.words == []


async def test_who_closes_is_told_nothing_and_the_other_end_reads_all_that_was_taken(pair):
    made = await pair()
    made.outlet.write(b"last")
    made.outlet.abort()
    made.outlet.abort()
    assert (await made.end(), made.outlet.words, made.outlet.is_closing()) == (b"last", [], True)


async def test_a_socket_that_another_process_has_too_says_nothing_here_once_it_is_closed(outlets, pair, until):
    made, other = await pair(), await pair()
    copy = os.dup(made.outlet.fd)  # as one that is handed over
    made.outlet.abort()
    made.there.send(b"to the other process")
    other.there.close()
    await until(lambda: other.outlet.words == ["gone"])
    assert outlets._poll.poll(0) == []
    assert os.read(copy, 100) == b"to the other process"
    os.close(copy)


async def test_who_is_still_there_when_all_end_is_let_go(outlets, pair):
    made = await pair()
    outlets.close()
    assert (await made.end(), made.outlet.is_closing()) == (b"", True)


async def test_a_transport_with_something_under_way_stays(outlets):
    ours, there = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
    transport.write(bytes(4 * MIB))
    assert not outlets.take(transport, Outlet())
    transport.abort()
    assert not outlets.take(transport, Outlet())
    there.close()


async def test_where_no_file_can_be_opened_the_transport_stays(outlets, pair):
    ours, there = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
    await pair()  # so that there is an epoll
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
    try:
        is_taken = outlets.take(transport, Outlet())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert not is_taken
    transport.write(b"as ever")
    there.setblocking(False)
    assert await asyncio.get_running_loop().sock_recv(there, 100) == b"as ever"
    transport.abort()
    there.close()


async def test_the_last_files_that_can_be_opened_are_left_to_those_who_connect(outlets):
    ours, there = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
    most, lowest = resource.getrlimit(resource.RLIMIT_NOFILE), os.dup(there.fileno())
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + LEFT - 4, most[1]))
    try:
        is_taken = outlets.take(transport, Outlet())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert not is_taken
    transport.abort()
    there.close()


async def test_a_feed_is_an_outlet(start, listen, push):
    server = await start()
    feed = await listen("c", device="d")
    (here,) = server.hub.feeds.values()
    assert isinstance(here, Outlet) and not hasattr(here, "transport")
    await push("c", "one")
    assert (await feed.event()).data == "one"


async def test_answers_that_a_client_has_not_read_yet_are_not_lost_when_it_asks_for_a_feed(start, connect, push):
    await start(backlog_bytes=32 * MIB, max_event_bytes=MIB)
    for _ in range(4):
        await push("c", 1_000_000 * "x")
    line = await connect(buffer=4096)
    await line.send(2 * wire.said("GET", "/admin/events/c") + wire.said("GET", "/feed/c"))
    for _ in range(2):
        assert [len(text) for text in (await line.answer()).json] == 4 * [1_000_000]
    assert (await line.head()).headers["content-type"] == "text/event-stream"
    await push("c", "one")
    await line.until(b"data: one\n")


async def test_a_feed_whose_transport_stays_overtakes_nothing_that_is_under_way_on_it(start):
    followers, loop = (await start()).followers, asyncio.get_running_loop()
    ours, there = socket.socketpair()
    there.setblocking(False)
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
    transport.write(4 * MIB * b"a")
    await asyncio.sleep(0)
    read = there.recv(MIB)  # so that there is room, of which the transport has not heard
    feed = followers.open(transport, 0, "c", None, b"b")
    assert feed.__class__ is Carried and feed.waiting()
    while not read.endswith(b"\n\n\r\n"):
        read += (some := await asyncio.wait_for(loop.sock_recv(there, MIB), 60))
        assert some, read[-300:]
    assert read[: 4 * MIB + 1] == 4 * MIB * b"a" + b"b"
    there.close()


async def test_feeds_whose_transports_stay_get_all_and_are_seen_to_go(start, listen, push, until):
    server = await start(backlog_bytes=32 * MIB, max_event_bytes=MIB)
    outlets, most = server.outlets, resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + LEFT - 4, most[1]))  # which is looked at once
    try:
        outlets._begin()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    slow, quick, other = await listen("c", device="slow", buffer=4096), await listen("c", device="quick"), await listen("c", device="other")
    feeds = {feed.device.name: feed for feed in server.hub.feeds.values()}
    assert {feed.__class__ for feed in feeds.values()} == {Carried}
    other.close()
    await until(lambda: len(server.hub.feeds) == 2)
    for number in range(8):
        await push("c", str(number) + 1_000_000 * "x")
    assert [text[0] for text in await quick.events(8)] == list("01234567")
    assert feeds["slow"].stuck_since and feeds["slow"].waiting()
    assert [text[0] for text in await slow.events(8)] == list("01234567")
    await until(lambda: feeds["slow"].live)
    assert (feeds["slow"].stuck_since, feeds["slow"].waiting()) == (0, 0)
    server.hub.kick(feeds["quick"].device)
    assert (await quick.control("pere.bye"))["reason"] == "kicked"
    assert feeds["quick"].is_closing() and not feeds["slow"].is_closing()
