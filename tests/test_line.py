"""Those who ask for more than their turn: that they get all there is where nobody else wants it, in order, and that the others do not wait for them."""

import asyncio
import re

import orjson
import pytest
import wire

from pere.line import AT_ONCE, FIRST, LATE, MUCH, SLICE, Line

GET = b"POST /push/c?receipt=none HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"


class Waiting:
    """Stands in line with so much to do; what is done is noted in `done`."""

    def __init__(self, name, steps, done):
        self.name, self.steps, self.done = name, steps, done

    def step(self):
        self.done.append(self.name)
        self.steps -= 1
        return self.steps > 0


class Turns:
    """A loop of which each turn is taken by hand."""

    def __init__(self):
        self.soon = []

    def call_soon(self, call):
        self.soon.append(call)

    def turn(self):
        calls, self.soon = self.soon, []
        for call in calls:
            call()


# The rule


def test_clients_are_served_one_after_the_other_however_many_connections_each_has():
    turns, done = Turns(), []
    line = Line(lambda: 0.0, turns.call_soon)
    for n in range(50):
        line.join("greedy", Waiting(f"greedy {n}", 10, done))
    line.join("small", Waiting("small", 3, done))
    while turns.soon:
        turns.turn()
    assert len(done) == 503
    assert [place for place, name in enumerate(done) if name == "small"] == [1, 3, 5]
    assert [name for name in done if name != "small"][:5] == [f"greedy {n}" for n in range(5)], "and so are the connections of one client"


def test_what_is_worked_on_later_ends_the_turn():
    turns, done = Turns(), []
    line = Line(lambda: 0.0, turns.call_soon)

    class Heavy(Waiting):
        def step(self):
            line.is_enough = True
            return super().step()

    line.join("a", Heavy("a", 3, done))
    for served in range(1, 4):
        turns.turn()
        assert len(done) == served
    assert not turns.soon


def test_who_joins_while_others_are_served_is_served_too():
    turns, done = Turns(), []
    line = Line(lambda: 0.0, turns.call_soon)

    class Bringing(Waiting):
        def step(self):
            line.join("a", Waiting("friend", 1, done))
            line.join("b", Waiting("stranger", 1, done))
            return super().step()

    line.join("a", Bringing("a", 1, done))
    while turns.soon:
        turns.turn()
    assert sorted(done) == ["a", "friend", "stranger"]


def test_one_that_fails_is_said_and_holds_up_nobody(caplog):
    turns, done = Turns(), []
    line = Line(lambda: 0.0, turns.call_soon)

    class Failing(Waiting):
        def step(self):
            raise ValueError("a mistake")

    for client in "ab":
        line.join(client, Failing(client, 1, done))
        line.join(client, Waiting(client, 2, done))
    while turns.soon:
        turns.turn()
    line.join("a", Waiting("later", 1, done))
    while turns.soon:
        turns.turn()
    assert done == ["a", "b", "a", "b", "later"]
    assert caplog.text.count("ValueError: a mistake") == 2
    caplog.clear()


def test_a_client_has_so_much_at_once_in_each_turn():
    now = [1.0]
    line = Line(lambda: now[0], None)
    client = Waiting("a", 0, [])
    client.turn, client.served = 0.0, 0
    assert [line.is_over(client, 1) for _ in range(AT_ONCE + 2)] == [False] * AT_ONCE + [True] * 2
    now[0] += 0.001
    assert not line.is_over(client, AT_ONCE)
    assert line.is_over(client, 1)


# The server


async def test_what_is_asked_all_at_once_is_answered_in_order_and_completely(start, connect, get):
    server = await start(backlog_events=5000)
    peer, count = await connect(), 2000

    async def ask():
        await peer.send(b"".join(GET + b"%4d" % (1000 + n) for n in range(count)))

    sending = asyncio.ensure_future(ask())
    ids = [(await peer.answer()).json["id"] for _ in range(count)]
    await sending
    told = (await get("/events/c?limit=1000"))["events"]
    assert [event["data"] for event in told] == list(range(1000, 2000))
    assert [event["id"] for event in told] == ids[:1000]
    assert server.store.events == count
    assert server.door.held == 0


@pytest.mark.parametrize("limits_exempt", ["127.0.0.0/8", ""])
async def test_a_client_that_asks_without_end_delays_nobody(start, connect, limits_exempt):
    server = await start(limits_exempt=limits_exempt, peer_pushes="1000000/1000000")
    flooders = [await connect() for _ in range(20)]
    block = (GET + b"1111") * 2000
    floods = [asyncio.ensure_future(peer.send(block)) for peer in flooders]
    small = await wire.Wire.open(server.port, source="127.0.0.2")
    try:
        waited = []
        for _ in range(20):
            before = server.store.events
            await small.send(GET + b"2222")
            assert (await small.answer()).status == 201
            waited.append(server.store.events - before)
        # It is served in the turn in which it asks, or the next; what those in line are given in a turn takes a millisecond.
        assert server.store.events < 20 * 2000, "the flood was over before anything was measured"
        assert sorted(waited)[len(waited) // 2] < 20 * AT_ONCE * 10
    finally:
        small.close()
        for flood in floods:
            flood.cancel()


async def test_a_burst_that_is_said_in_one_breath_is_one_broadcast(start, connect, listen):
    # A broadcast for every two of its events would cost five times as much.
    server = await start()
    feed, peer, broadcasts = await listen("c", device="d"), await connect(), []
    server.hub.broadcast.on_fanout = broadcasts.append
    said = [wire.said("POST", "/push/c", b"%d" % n * 150, {"Content-Type": "text/plain"}) for n in range(10)]
    assert MUCH < len(b"".join(said)) < FIRST
    await peer.send(b"".join(said))
    assert await feed.events(10) == [str(n) * 150 for n in range(10)]
    assert len(broadcasts) == 1


def test_who_asks_without_end_is_read_in_smaller_steps():
    now = [100.0]
    line, client = Line(lambda: now[0], print), Whoever()
    assert [line.slice(client) for _ in range(3)] == [FIRST, SLICE, SLICE]
    now[0] += LATE / 2
    assert not line.is_over(client, 1)
    now[0] += LATE / 2
    assert line.slice(client) == SLICE, "it was served meanwhile"
    now[0] += LATE
    assert line.slice(client) == FIRST


class Whoever:
    turn, served = 0.0, 0


async def test_a_large_body_is_taken_in_pieces(start, connect, get):
    await start()
    peer = await connect()
    body = b'"' + b"x" * (15 * SLICE) + b'"'
    await peer.send(wire.said("POST", "/push/c", body, {"Content-Type": "application/json"}) * 3)
    assert [(await peer.answer()).status for _ in range(3)] == [201] * 3
    assert [len(event["data"]) for event in (await get("/events/c"))["events"]] == [15 * SLICE] * 3


async def test_who_goes_away_while_it_waits_in_line_leaves_nothing_behind(start, connect, until):
    server = await start()
    for _ in range(5):
        peer = await connect()
        await peer.send(GET[:-4] * 500)
        peer.reset()
    await until(lambda: not server.door.connections)
    assert server.door.held == 0


async def test_what_waits_in_line_when_the_server_ends_is_answered_or_cut(start, connect):
    server = await start()
    peer = await connect()
    await peer.send((GET + b"1111") * 500)
    assert (await peer.answer()).status == 201
    await server.stop()
    rest = await peer.rest()
    assert b"Connection: close" in rest
    assert server.store.events == 1 + rest.count(b"HTTP/1.1 201")


async def test_what_handlers_answer_is_begun_one_in_a_turn_whoever_asks(start, connect):
    """Fifty clients that ask for what is costly delay a push by one or two of these, and not by fifty."""
    server = await start(limits_exempt="", peer_requests="0")
    many = [await wire.Wire.open(server.port, source=f"127.0.0.{n + 2}") for n in range(50)]
    small = await connect()
    for peer in many:
        await peer.send(wire.said("GET", "/events/c") * 4)
    served = []
    for _ in range(8):
        await small.send(GET + b"2222")
        assert (await small.answer()).status == 201
        served.append(sum(server.answered.values()))
    assert served[0] < 50, "the push had to wait for one of each client"
    assert [(await peer.answer()).status for peer in many for _ in range(4)] == [200] * 200
    for peer in many:
        peer.close()


async def test_a_batch_of_many_events_is_pushed_piece_by_piece_and_answered_in_order(start, connect):
    server = await start(max_batch=10_000, backlog_events=10_000)
    big, small = await connect(), await connect()
    batch = [{"channel": "c", "data": number} for number in range(10_000)]
    await big.send(wire.said("POST", "/push", orjson.dumps(batch)))
    seen = await wire.pushed_beside(small, lambda: server.store.events, 10_000)
    assert len({count for count in seen if count < 10_000}) >= 2, "others were served in between"
    answers = (await big.answer()).json["results"]
    assert len(answers) == 10_000 and answers == sorted(answers, key=lambda each: [int(part) for part in each["id"].split("-")])
    assert [event.data for event in server.store.shelf("c").backlog][-3:] == [b"9997", b"9998", b"9999"]


async def test_a_feed_that_reads_what_takes_long_to_look_up_does_so_piece_by_piece(start, connect, monkeypatch):
    monkeypatch.setattr("pere.hub.BATCH_SECONDS", 0.0)  # as if each event had to be fetched
    server = await start()
    feed, small = await connect(), await connect()
    await small.send(wire.said("POST", "/push", orjson.dumps([{"channel": "c", "data": number} for number in range(400)])))
    assert (await small.answer()).status == 200
    await feed.send(wire.said("GET", "/feed/c?from=all"))
    seen = []
    while not seen or seen[-1] < 400:
        await small.send(wire.said("GET", "/feed/c?from=bad"))
        assert (await small.answer()).status == 400
        seen.append(server.hub.replay.events)
    assert len({count for count in seen if count < 400}) >= 2, "others were served in between"
    read = b""
    while len(found := re.findall(rb"\ndata: (\d+)\n", read)) < 400:
        read += (some := await feed.more())
        assert some, read[-300:]
    assert [int(number) for number in found] == list(range(400))
