"""What many lack alike is put together once, and each gets what it would have got event by event."""

import asyncio

import made as a
import orjson
import pytest
import uvloop
import wire
from hypothesis import given, settings
from hypothesis import strategies as st

from pere.backlog import Backlog
from pere.config import Config
from pere.runs import MOST, MOST_BYTES, Runs
from pere.server import Server
from pere.storage import Shelf


async def test_a_fleet_that_comes_back_is_given_the_same_run_that_was_made_once(start, listen, push, measured):
    server = await start()
    feeds = [await listen("c", device=f"d{n}") for n in range(20)] + [await listen("c")]
    last = await push("c", "seen", receipt="none")
    for feed in feeds:
        assert await feed.events(1) == ["seen"]
        feed.close()
    ids = [await push("c", str(n), receipt="none" if n == 2 else "processed") for n in range(5)]
    back = [await listen("c", device=f"d{n}", last=last) for n in range(20)] + [await listen("c", last=last)]
    for feed in back:
        assert [(await feed.event()).id for _ in ids] == ids
    assert server.hub.replay.runs.made == 1 and (await measured())["pere_replayed_events_total"] == 21 * 5
    await push("c", "live")
    for feed in back:
        assert await feed.events(1) == ["live"]


async def test_who_answered_one_of_them_elsewhere_gets_the_others(listen, push, feedback):
    for name in ("d", "e"):
        (await listen("c", device=name)).close()
    ids = [await push("c", str(n)) for n in range(4)]
    await feedback("c", "d", ids[1])
    assert await (await listen("c", device="e")).events(4) == ["0", "1", "2", "3"]
    assert await (await listen("c", device="d")).events(3) == ["0", "2", "3"]


async def test_what_was_sent_before_is_a_further_attempt(listen, push):
    feed = await listen("c", device="d")
    read, _ = await push("c", "read", receipt="none"), await push("c", "sent")
    assert await feed.events(2) == ["read", "sent"]
    feed.close()
    await push("c", "missed")
    back = await listen("c", device="d", last=read, format="envelope")
    assert [(told["data"], told["attempt"]) for told in [orjson.loads(data) for data in await back.events(2)]] == [("sent", 2), ("missed", 1)]


async def test_what_is_recalled_since_it_was_put_together_is_given_to_nobody(start, ask, listen, push):
    server = await start()
    for name in ("a", "b"):
        (await listen("c", device=name)).close()
    recalled, _ = await push("c", "recalled", receipt="none"), await push("c", "lasting")
    assert await (await listen("c", device="a")).events(2) == ["recalled", "lasting"]
    assert (await ask("DELETE", f"/events/c/{recalled}")).status == 200
    assert await (await listen("c", device="b")).events(1) == ["lasting"]
    assert server.hub.replay.runs.made == 1


async def test_what_was_recalled_before_what_they_missed_keeps_nobody_from_a_run(start, ask, listen, push):
    server = await start()
    recalled, last = await push("c", "recalled"), await push("c", "seen")
    assert (await ask("DELETE", f"/events/c/{recalled}")).status == 200
    ids = [await push("c", str(n)) for n in range(3)]
    back = [await listen("c", last=last) for _ in range(3)]
    for feed in back:
        assert [(await feed.event()).id for _ in ids] == ids
    assert server.hub.replay.runs.made == 1


async def test_what_has_expired_since_it_was_put_together_is_given_to_nobody(start, listen, push):
    server = await start()
    for name in ("a", "b"):
        (await listen("c", device=name)).close()
    await push("c", "short", ttl=10)
    await push("c", "lasting")
    assert await (await listen("c", device="a")).events(2) == ["short", "lasting"]
    now = server.store.clock()
    server.store.clock = lambda: now + 11
    assert await (await listen("c", device="b")).events(1) == ["lasting"]


async def test_what_has_expired_among_what_they_missed_keeps_nobody_from_a_run(start, listen, push):
    server = await start()
    for name in ("a", "b", "c"):
        (await listen("c", device=name)).close()
    for text, query in (("short", {"ttl": 10}), ("for some, and short", {"ttl": 10, "to": "a"}), ("lasting", {}), ("last and short", {"ttl": 10})):
        await push("c", text, **query)
    now = server.store.clock()
    server.store.clock = lambda: now + 11
    feeds = [await listen("c", device=name) for name in ("a", "b", "c")]
    assert [await feed.events(1) for feed in feeds] == [["lasting"]] * 3
    runs = server.hub.replay.runs
    assert [[event.data for event in run.events] for run in runs._known.values() if run is not None] == [[b"lasting"]] and runs.made == 1
    assert server.hub.channels.behind == 0
    await push("c", "live")
    assert [await feed.events(1) for feed in feeds] == [["live"]] * 3
    for feed in feeds:
        feed.close()


async def test_what_is_much_comes_piece_by_piece(start, listen, push):
    server = await start()
    (await listen("c", device="d")).close()
    for n in range(5):
        await push("c", "x" * 20_000 + str(n))
    assert [data[-1] for data in await (await listen("c", device="d")).events(5)] == ["0", "1", "2", "3", "4"]
    (await listen("d", device="d")).close()
    wanted = [str(n) for n in range(70)]
    for text in wanted:
        await push("d", text)
    assert await (await listen("d", device="d")).events(70) == wanted
    assert all(len(run.frames) < MOST_BYTES and len(run.events) < MOST for run in server.hub.replay.runs._known.values() if run is not None)


def test_what_a_channel_had_before_it_was_forgotten_is_nothing_of_the_one_that_begins_anew():
    backlog, runs = Backlog(10, 10_000), Runs()
    shelf = Shelf("c", backlog, 0.0)
    found = []
    for id in (11, 21):
        backlog.begin(0, 0)
        for ordinal in (1, 2):
            backlog.append(a.event(id + ordinal, ordinal))
        run = runs.after(shelf, 0, 0, 0.0)
        found.append([event.id for event in run.events] if run is not None else None)
        while len(backlog):
            backlog.evict()
    assert found == [[12, 13], [22, 23]]


PUSH = st.tuples(st.just("push"), st.sampled_from(["processed", "processed", "delivered", "none"]), st.sampled_from([()] * 8 + [("d", "e"), ("f",)]))
RECEIPT = st.tuples(st.just("receipt"), st.integers(0, 9), st.sampled_from(["processed", "delivered", "failed"]))
RECALL = st.tuples(st.just("recall"), st.integers(0, 9), st.none())
BEFORE = st.one_of(st.just([]), st.lists(st.one_of(PUSH, PUSH, RECEIPT), max_size=8))
AWAY = st.one_of(st.lists(PUSH, min_size=1, max_size=8), st.lists(st.one_of(PUSH, PUSH, PUSH, RECEIPT, RECALL), max_size=8))


@pytest.mark.parametrize("kind", ["memory:", "sqlite:{folder}/pere.db"])
def test_whoever_comes_back_gets_what_is_read_event_by_event(kind, tmp_path_factory):
    runs = []

    @settings(max_examples=40)
    @given(BEFORE, AWAY, st.one_of(st.none(), st.integers(0, 9)), st.sampled_from(["raw", "envelope"]))
    def judged(before, away, last, form):
        twins = _twins(kind.format(folder=tmp_path_factory.mktemp("store")), before, away, last, form)
        runs.append(uvloop.run(asyncio.wait_for(twins, 60)))

    judged()
    assert any(runs), "none was given a run"


async def _twins(store: str, before: list[tuple], away: list[tuple], last: int | None, form: str) -> bool:
    """Two devices, to whom the same happens; one of them comes back while no runs are made. Returns whether the other was given one."""
    server = Server(Config(store=store, port=0, max_attempts=15))
    await server.start()
    ids: list[str] = []
    texts = {}
    try:
        feeds = [await wire.listen(server.port, "c", device=name) for name in ("d", "e")]
        await _happen(server, before, ids)
        ids.append((await wire.push(server.port, "c", "before they leave", receipt="none")).json["id"])
        for feed in feeds:
            while (await feed.event()).id != ids[-1]:
                pass
            feed.close()
        while server.hub.feeds:
            await _turn(server)
        await _happen(server, away, ids)
        make = server.hub.replay.runs.after
        given = {"last": ids[last % len(ids)]} if last is not None else {}
        for name in ("e", "d"):
            server.hub.replay.runs.after = make if name == "e" else lambda *_: None
            feed = await wire.listen(server.port, "c", device=name, format=form, **given)
            end = (await wire.push(server.port, "c", f"end of {name}", to=name)).json["id"]
            told = []
            while (message := await feed.next()).id != end or message.event.startswith("pere."):
                told.append((message.event, message.id, message.data))
            texts[name] = told
            feed.close()
        assert texts["d"] == texts["e"]
        return any(server.hub.replay.runs._known.values())
    finally:
        await server.stop()


async def _turn(server: Server) -> None:
    assert (await wire.request(server.port, "GET", "/healthz")).status == 200


async def _happen(server: Server, deeds: list[tuple], ids: list[str]) -> None:
    for verb, what, more in deeds:
        if verb == "push":
            ids.append((await wire.push(server.port, "c", len(ids), receipt=what, to=list(more))).json["id"])
        elif not ids:
            continue
        elif verb == "recall":
            await wire.request(server.port, "DELETE", f"/events/c/{ids[what % len(ids)]}")
        else:
            for name in ("d", "e"):
                await wire.request(server.port, "POST", "/feedback/c", {"state": more}, Device=name, Last_Event_ID=ids[what % len(ids)])
