"""The feeds of a client that has very many: each gets what any feed gets, and nobody waits for them. Real feeds; the line is held where what happens between two turns counts."""

import asyncio
from collections import deque

import orjson
import pytest

from pere import hub, throng


class Held:
    """The line, which can be held."""

    def __init__(self, server):
        self._line = server.door.line
        self._waiting = deque()
        self.is_held = False
        server.hub.line_up = self.join

    def join(self, account, work):
        if self.is_held:
            self._waiting.append((account, work))
        else:
            self._line.join(account, work)

    def step(self):
        """One step of whoever is first."""
        account, work = self._waiting.popleft()
        if work.step():
            self._waiting.append((account, work))

    def go_on(self):
        self.is_held = False
        while self._waiting:
            self._line.join(*self._waiting.popleft())


@pytest.fixture
def crowded(start, monkeypatch):
    """`server, line = await crowded()`: everybody is one client, whose first feed alone is live at once, and one is written to in a step."""
    monkeypatch.setattr(hub, "LIVE", 1)
    monkeypatch.setattr(throng, "SOME", 1)

    async def crowded(**config):
        server = await start(limits_exempt="", **config)
        return server, Held(server)

    return crowded


async def test_every_feed_of_a_throng_has_every_event_once_and_in_order(crowded, listen, push, until):
    server, _ = await crowded()
    feeds = [await listen("c", device=f"d{n}" if n % 2 else "") for n in range(8)]
    late = [await push("c", str(n)) for n in range(20)]
    for feed in feeds:
        got = [await feed.event() for _ in late]
        assert [each.data for each in got] == [str(n) for n in range(20)] and [each.id for each in got] == late
    assert server.hub.broadcast.deliveries == 8 * 20 and server.hub.channels.behind == 0
    for feed in feeds:
        feed.close()
    await until(lambda: not server.hub.feeds)
    assert not server.hub._throngs and not server.hub.channels


async def test_what_comes_while_they_wait_is_written_to_each_at_once(crowded, listen, push):
    server, line = await crowded()
    feeds = [await listen("c") for _ in range(5)]
    line.is_held = True
    await push("c", "1")
    assert await feeds[0].events(1) == ["1"]  # it is live, and has it at once
    line.step()  # one of the others has it too
    await push("c", "2")
    line.go_on()
    for feed in feeds[1:]:
        assert await feed.events(2) == ["1", "2"]
    assert server.hub.broadcast.deliveries == 10


async def test_somebody_else_is_served_between_two_steps(crowded, listen, push, get):
    _, line = await crowded()
    feeds = [await listen("c", device=f"d{n}") for n in range(4)]
    line.is_held = True
    id = await push("c", "1")
    for _ in range(3):
        assert (await get(f"/events/c/{id}"))["audience"] == 4
        line.step()
    line.go_on()
    for feed in feeds:
        assert await feed.events(1) == ["1"]


def fail(server, line, monkeypatch):
    """The next of the line has its turn, and fails."""
    with monkeypatch.context() as away:
        away.setattr(server.hub.replay, "read", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            line.step()


async def test_one_that_fails_goes_on_with_the_next_event(crowded, listen, push, monkeypatch):
    server, line = await crowded()
    feeds = [await listen("c"), await listen("c", device="d", window=9)]
    line.is_held = True
    await push("c", "1")
    fail(server, line, monkeypatch)
    await push("c", "2")
    line.go_on()
    for feed in feeds:
        assert await feed.events(2) == ["1", "2"]


@pytest.mark.parametrize("some", [1, 8])
async def test_where_one_fails_all_others_have_what_has_come_and_not_only_with_the_next_event(crowded, listen, push, monkeypatch, some):
    server, line = await crowded()
    monkeypatch.setattr(throng, "SOME", some)
    feeds = [await listen("c"), await listen("c", device="d", window=9), *[await listen("c") for _ in range(4)]]
    line.is_held = True
    await push("c", "1")
    fail(server, line, monkeypatch)
    line.go_on()
    for feed in feeds[:1] + feeds[2:]:
        assert await feed.events(1) == ["1"]
    await push("c", "2")
    for feed in feeds[:1] + feeds[2:]:
        assert await feed.events(1) == ["2"]
    assert await feeds[1].events(2) == ["1", "2"]


@pytest.mark.parametrize("ttl", [86400, 0])
async def test_what_is_for_some_of_them_alone_comes_behind_what_came_before(crowded, listen, push, ttl):
    _, line = await crowded()
    feeds = [await listen("c", device=f"d{n}") for n in range(4)]
    line.is_held = True
    await push("c", "all")
    await push("c", "yours", to=["d2"], ttl=ttl)
    assert await feeds[2].events(2) == ["all", "yours"]
    await push("c", "end")
    line.go_on()
    assert await feeds[2].events(1) == ["end"]
    for n in (0, 1, 3):
        assert await feeds[n].events(2) == ["all", "end"]


async def test_what_was_for_others_and_has_made_way_is_not_missing(crowded, listen, push):
    _, line = await crowded(backlog_events=5)
    feeds = [await listen("c", device=f"d{n}") for n in range(4)] + [await listen("c", device="d4", window=9)]
    for _ in range(9):
        await push("c", "yours", to=["d2"])
    line.is_held = True
    await push("c", "all")
    await push("c", "yours", to=["d2"])
    line.go_on()
    for n in (0, 1, 3, 4):
        assert (await feeds[n].next()).data == "all"
    assert await feeds[2].events(11) == ["yours"] * 9 + ["all", "yours"]


async def test_on_several_channels_no_id_steps_back(crowded, listen, push):
    _, line = await crowded()
    feeds = [await listen("a", "b", "b.*") for _ in range(5)]
    line.is_held = True
    for n in range(3):
        await push("b", n)
        await push("a", n)
        await push("b.born", n)
    line.go_on()
    await push("a", "end")
    for feed in feeds:
        got = []
        while not got or got[-1].data != "end":
            got.append(await feed.event())
            got[-1].data = orjson.loads(got[-1].data)["data"]
        ids = [each.id for each in got]
        assert ids == sorted(ids, key=lambda id: [int(part) for part in id.split("-")]) and len(set(ids)) == len(ids) == 10


async def test_who_is_cut_off_before_its_turn_has_not_been_sent_the_event(crowded, listen, push, until):
    server, line = await crowded()
    feeds = [await listen("c", device=f"d{n}") for n in range(4)]
    line.is_held = True
    first = await push("c", "1", receipt="none")
    feeds[3].close()
    await until(lambda: len(server.hub.feeds) == 3)
    line.go_on()
    again = await listen("c", device="d3")
    assert (await again.event()).id == first
    assert await feeds[2].events(1) == ["1"]


async def test_the_same_device_again_begins_behind_what_is_on_its_way_to_it(crowded, listen, push):
    _, line = await crowded()
    feeds = [await listen("c", device=f"d{n}") for n in range(3)]
    line.is_held = True
    await push("c", "1", receipt="none")
    opening = asyncio.ensure_future(listen("c", device="d2"))
    assert await feeds[2].events(1) == ["1"]  # though its turn has not come
    line.go_on()
    again = await opening
    await push("c", "2", receipt="none")
    assert await again.events(1) == ["2"] and await feeds[2].events(1) == ["2"] and await feeds[1].events(2) == ["1", "2"]


@pytest.fixture
def halfway(crowded, listen, push):
    """`line, feeds, id = await halfway()`: three feeds, and an event that has been written to all but the last, whose turn has not come."""

    async def halfway():
        _, line = await crowded()
        feeds = [await listen("c") for _ in range(3)]
        line.is_held = True
        id = await push("c", "wrong")
        line.step()
        return line, feeds, id

    return halfway


async def test_what_is_recalled_before_its_turn_is_not_sent_and_not_called_off(halfway, push, ask):
    line, feeds, id = await halfway()
    assert (await ask("DELETE", f"/events/c/{id}")).status == 200
    await push("c", "right")
    line.go_on()
    for feed in feeds[:2]:
        assert (await feed.event()).data == "wrong"
        assert (await feed.control("pere.cancel"))["id"] == id
        assert (await feed.event()).data == "right"
    assert (await feeds[2].event()).data == "right" and b"wrong" not in feeds[2].text and b"pere.cancel" not in feeds[2].text


async def test_what_was_made_for_the_others_is_not_sent_once_it_is_recalled(halfway, push, ask):
    line, feeds, id = await halfway()
    assert (await feeds[1].event()).data == "wrong"
    assert (await ask("DELETE", f"/events/c/{id}")).status == 200
    line.go_on()
    await push("c", "right")
    assert (await feeds[2].next()).data == "right" and b"wrong" not in feeds[2].text


async def test_one_that_does_not_read_is_behind_and_catches_up_and_the_others_go_on(crowded, listen, push, until):
    server, _ = await crowded(backlog_bytes=64 << 20)
    feeds = [await listen("c", device=f"d{n}", buffer=4096 if n == 2 else 0) for n in range(4)]
    reading = [asyncio.ensure_future(feed.events(120)) for feed in (*feeds[:2], feeds[3])]
    for n in range(120):
        await push("c", f"{n:04}" + "x" * 60_000)
    for each in reading:
        assert [data[:4] for data in await each] == [f"{n:04}" for n in range(120)]
    await until(lambda: server.hub.channels.behind == 1)  # who has read everything may only be about to be live again
    assert [data[:4] for data in await feeds[2].events(120)] == [f"{n:04}" for n in range(120)]
    await until(lambda: server.hub.channels.behind == 0)
    await push("c", "live")
    assert await feeds[2].events(1) == ["live"]


async def test_one_that_lacks_what_is_not_at_hand_any_more_is_told(crowded, listen, push):
    _, line = await crowded(backlog_events=5)
    feeds = [await listen("c") for _ in range(3)]
    line.is_held = True
    for n in range(9):
        await push("c", str(n))
    line.go_on()
    assert await feeds[0].events(9) == [str(n) for n in range(9)]
    for feed in feeds[1:]:
        assert (await feed.control("pere.gap"))["lost"] == 4
        assert await feed.events(5) == [str(n) for n in range(4, 9)]


async def test_those_that_wait_for_receipts_have_their_turn_too(crowded, listen, push, feedback):
    _, line = await crowded()
    feeds = [await listen("c", device=f"d{n}", window=1) for n in range(3)]
    line.is_held = True
    first = await push("c", "1")
    await push("c", "2", to=["d2"])
    assert await feeds[0].events(1) == ["1"]
    line.go_on()
    for n, feed in enumerate(feeds):
        if n:
            assert await feed.events(1) == ["1"]
        assert (await feedback("c", f"d{n}", first)).status == 200
    assert await feeds[2].events(1) == ["2"]
