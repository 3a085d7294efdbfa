"""Sockets that are only written to: what takes the place of a transport once a connection is a feed."""

import asyncio
import os
import resource
import socket

import pytest
import wire

from pere.outlets import LEFT, Outlet, Outlets

MIB = 1 << 20


class Told(asyncio.Protocol):
    """What an outlet has said, in order."""

    def __init__(self) -> None:
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
        self.told, self.there = Told(), there
        self.outlet: Outlet = outlets.take(transport)
        self.outlet.set_protocol(self.told)

    async def read(self, size: int) -> bytes:
        loop, read = asyncio.get_running_loop(), b""
        while len(read) < size and (some := await asyncio.wait_for(loop.sock_recv(self.there, MIB), 30)):
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
    outlet, left = outlets.adopt(ours), outlets.adopt(early)
    assert ours.fileno() == -1, "the descriptor is the outlet's alone"
    outlet.write(b"1")
    assert await loop.sock_recv(there, 10) == b"1"
    gone.close()
    for _ in range(3000):
        if left.is_closing():
            break
        await asyncio.sleep(0.01)
    assert left.is_closing() and not outlet.is_closing(), "though nobody was there yet to be told of it"
    outlet.set_protocol(told := Told())
    there.close()
    while not told.words:
        await asyncio.sleep(0.01)
    assert told.words == ["gone"] and outlet.is_closing()


async def test_what_is_written_arrives_and_the_transport_is_gone(outlets):
    ours, there = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
    made = Pair(outlets, transport, there)
    there.setblocking(False)
    assert (made.outlet.__class__, transport.is_closing()) == (Outlet, True)
    await asyncio.sleep(0.01)
    made.outlet.write(b"one")
    os.write(made.outlet.fileno(), b"two")
    assert await made.read(6) == b"onetwo"
    there.close()


async def test_what_the_socket_does_not_take_waits_and_comes_in_order(outlets, pair, until):
    made = await pair(buffer=4096)
    pieces = [bytes([65 + place]) * 300_000 for place in range(5)]
    made.outlet.write(pieces[0])
    assert made.told.words == ["full"]
    for piece in pieces[1:]:
        made.outlet.write(memoryview(piece))
    assert made.outlet.get_write_buffer_size() > 1_200_000
    assert await made.read(1_500_000) == b"".join(pieces)
    await until(lambda: made.told.words == ["full", "room"])
    assert made.outlet.get_write_buffer_size() == 0
    assert outlets._poll.poll(0) == [], "nobody is woken because there is room"
    made.outlet.write(b"more")
    assert await made.read(4) == b"more"


async def test_who_goes_is_noticed_whether_the_socket_is_full_or_not(pair, until):
    for buffer, words in ((0, ["gone"]), (4096, ["full", "gone"])):
        made = await pair(buffer)
        fd = made.outlet.fileno()
        made.outlet.write(b"x" * (300_000 if buffer else 1))
        made.there.close()
        await until(lambda made=made, words=words: made.told.words == words)
        assert made.outlet.is_closing()
        made.outlet.write(b"to nobody")
        with pytest.raises(OSError):
            os.fstat(fd)


async def test_who_only_ends_its_side_has_gone_too(pair, until):
    made = await pair()
    made.there.shutdown(socket.SHUT_WR)
    await until(lambda: made.told.words == ["gone"])
    assert await made.end() == b""


async def test_what_is_heard_is_dropped_however_much_it_is(pair):
    made = await pair()
    loop = asyncio.get_running_loop()
    await asyncio.wait_for(loop.sock_sendall(made.there, bytes(4 * MIB)), 30)
    made.outlet.write(b"still here")
    assert await made.read(10) == b"still here"
    assert made.told.words == []


async def test_who_closes_is_told_nothing_and_the_other_end_reads_all_that_was_taken(pair):
    made = await pair()
    made.outlet.write(b"last")
    made.outlet.close()
    made.outlet.abort()
    assert (await made.end(), made.told.words, made.outlet.is_closing()) == (b"last", [], True)


async def test_a_socket_that_another_process_has_too_says_nothing_here_once_it_is_closed(outlets, pair, until):
    made, other = await pair(), await pair()
    copy = os.dup(made.outlet.fileno())  # as one that is handed over
    made.outlet.close()
    made.there.send(b"to the other process")
    other.there.close()
    await until(lambda: other.told.words == ["gone"])
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
    assert outlets.take(transport) is transport
    transport.abort()
    assert outlets.take(transport) is transport
    there.close()


async def test_where_no_file_can_be_opened_the_transport_stays(outlets, pair):
    ours, there = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
    await pair()  # so that there is an epoll
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
    try:
        taken = outlets.take(transport)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert taken is transport
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
        taken = outlets.take(transport)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert taken is transport
    transport.abort()
    there.close()


async def test_a_feed_is_an_outlet(start, listen, push):
    server = await start()
    feed = await listen("c", device="d")
    (here,) = server.hub.feeds.values()
    assert here.transport.__class__ is Outlet
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
