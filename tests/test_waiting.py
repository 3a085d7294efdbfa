"""Requests that wait: a push for its receipts, a look at a delivery status for its next change; and clients that hang up meanwhile."""

import asyncio

import pytest
import wire
from redises import MEMORY_AND_REDIS, named

from pere import waiting
from pere.config import Config
from pere.event import parse_id
from pere.parts import open_store

STORES = pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])


@pytest.fixture
def begin(start, tmp_path):
    async def begin(kind: str, **config):
        return await start(open_store(Config(store=named(kind, tmp_path), **config)), **config)

    return begin


async def online(listen, *devices: str):
    return [await listen("c", device=device) for device in devices]


class Handed:
    """The time of those who wait, which is handed in: a machine may take as long as it likes for what is to happen meanwhile."""

    get_running_loop = staticmethod(asyncio.get_running_loop)

    def __init__(self):
        self._alarms = {}

    def _alarm(self, seconds):
        return self._alarms.setdefault(seconds, asyncio.Event())

    async def wait(self, futures, timeout):
        over = asyncio.ensure_future(self._alarm(timeout).wait())
        await asyncio.wait((*futures, over), return_when=asyncio.FIRST_COMPLETED)
        over.cancel()

    async def sleep(self, seconds):
        await self._alarm(seconds).wait()

    async def passes(self, seconds):
        """As soon as somebody waits for so many seconds, they are over."""
        while seconds not in self._alarms:
            await asyncio.sleep(0.001)
        self._alarms[seconds].set()


@pytest.fixture
def handed(monkeypatch):
    monkeypatch.setattr(waiting, "asyncio", made := Handed())
    return made


def later(ask, *args, **headers) -> "asyncio.Task[wire.Answer]":
    return asyncio.ensure_future(ask(*args, **headers))


# A push that waits


@STORES
async def test_a_push_is_answered_with_its_tally_once_its_need_is_met(begin, listen, ask, feedback, kind):
    await begin(kind)
    a, *_ = await online(listen, "a", "b", "c")
    answer = later(ask, "POST", "/push/c?need=2", b"1", Prefer="wait=60")
    id = (await a.event()).id
    await feedback("c", "a", id)
    await asyncio.sleep(0.05)
    assert not answer.done()
    await feedback("c", "b", id)
    told = (await answer).json
    assert ((await answer).status, (await answer).headers["preference-applied"]) == (201, "wait=60")
    assert (told["id"], told["channel"], told["audience"], told["satisfied"], told["complete"]) == (id, "c", 3, True, False)
    assert (told["counts"]["processed"], told["outstanding"], told["need"]) == (2, 1, 2)
    assert "version" not in told


@STORES
async def test_a_push_whose_time_is_over_is_answered_as_things_stand(begin, listen, ask, feedback, kind, handed):
    await begin(kind)
    a, _ = await online(listen, "a", "b")
    answer = later(ask, "POST", "/push/c", b"1", Prefer="wait=7")
    await feedback("c", "a", (await a.event()).id)
    await handed.passes(7)
    told = (await answer).json
    assert ((await answer).status, told["satisfied"], told["counts"]["processed"], told["counts"]["sent"]) == (201, False, 1, 1)


@MEMORY_AND_REDIS
async def test_a_push_that_can_never_be_satisfied_any_more_is_answered_at_once(listen, ask, feedback):
    a, _ = await online(listen, "a", "b")
    answer = later(ask, "POST", "/push/c?need=2", b"1", Prefer="wait=300")
    await feedback("c", "a", (await a.event()).id, state="failed")
    told = (await answer).json
    assert (told["satisfied"], told["counts"]["failed"], told["outstanding"]) == (False, 1, 1)


@MEMORY_AND_REDIS
async def test_a_failure_that_still_leaves_enough_does_not_end_the_waiting(listen, ask, feedback):
    a, _ = await online(listen, "a", "b")
    answer = later(ask, "POST", "/push/c?need=1", b"1", Prefer="wait=300")
    id = (await a.event()).id
    await feedback("c", "a", id, state="failed")
    await asyncio.sleep(0.05)
    assert not answer.done()
    await feedback("c", "b", id)
    assert (await answer).json["satisfied"] is True


@STORES
async def test_a_recall_ends_the_waiting(begin, listen, ask, kind):
    await begin(kind)
    (a,) = await online(listen, "a")
    answer = later(ask, "POST", "/push/c", b"1", Prefer="wait=300")
    id = (await a.event()).id
    await ask("DELETE", f"/events/c/{id}")
    assert ((await answer).json["recalled"], (await answer).json["counts"]["cancelled"]) == (True, 1)


@MEMORY_AND_REDIS
async def test_an_event_that_makes_way_ends_the_waiting(start, listen, ask, push):
    await start(backlog_events=1)
    (a,) = await online(listen, "a")
    answer = later(ask, "POST", "/push/c", b"1", Prefer="wait=300")
    id = (await a.event()).id
    await push("c")
    assert ((await answer).status, (await answer).json) == (201, {"id": id, "channel": "c", "audience": 1})


@pytest.mark.parametrize("target", ["/push/c", "/push/c?receipt=none", "/push/c?need=0"])
@MEMORY_AND_REDIS
async def test_nothing_to_wait_for_is_answered_at_once(ask, target):
    answer = await ask("POST", target, b"1", Prefer="wait=300")
    assert (answer.status, answer.json["satisfied"]) == (201, True)


@MEMORY_AND_REDIS
async def test_a_repeated_key_waits_for_the_event_that_was_published(listen, ask, feedback, push):
    (a,) = await online(listen, "a")
    id = await push("c", key="k")
    answer = later(ask, "POST", "/push/c", b"1", Prefer="wait=300", Idempotency_Key="k")
    await asyncio.sleep(0.05)
    assert not answer.done()
    await feedback("c", "a", id)
    assert ((await answer).json["id"], (await answer).json["satisfied"]) == (id, True)


@pytest.mark.parametrize("prefer, applied", [
    ("wait=0", "wait=0"), ('respond-async, WAIT="0"', "wait=0"), ("wait=0; foo=bar", "wait=0"), ("wait = 0", "wait=0"),
    ("handling=lenient", None), ("waiting=3", None), ("", None), ("wait=999999", "wait=2"),
])
async def test_what_is_preferred(start, listen, ask, prefer, applied):
    await start(max_wait=2)
    await online(listen, "a")
    answer = await ask("POST", "/push/c", b"1", Prefer=prefer)
    assert (answer.status, answer.headers.get("preference-applied"), "counts" in answer.json) == (201, applied, applied is not None)


@pytest.mark.parametrize("prefer", ["wait=-1", "wait=soon", "wait=1.5", "wait", "wait=", "wait=9999999999", "wait=²"])
async def test_a_wait_that_is_no_number_is_refused_and_nothing_is_published(start, ask, get, prefer):
    await start()
    assert (await ask("POST", "/push/c", b"1", Prefer=prefer)).error == (400, "bad_wait")
    assert (await get("/events/c"))["events"] == []


@STORES
async def test_publishers_that_hang_up_while_waiting_leave_nothing_behind(begin, listen, connect, until, kind):
    server = await begin(kind)
    await online(listen, "a")
    wires = [await connect() for _ in range(200)]
    for number, each in enumerate(wires):
        await each.send(wire.said("POST", "/push/c", b"%d" % number, {"Prefer": "wait=300"}))
    await until(lambda: len(server.waits.open) == 200)
    for number, each in enumerate(wires):
        each.reset() if number % 2 else each.close()
    await until(lambda: not server.waits.open)
    assert all(not entry.watchers for entry in server.store.ledger.entries.values())
    assert server.store.events == 200


async def test_an_event_older_than_the_backlog_is_in_memory_only_as_long_as_somebody_waits(begin, listen, connect, push, until):
    server = await begin("sqlite", backlog_events=2)
    (a,) = await online(listen, "a")
    each = await connect()
    await each.send(wire.said("POST", "/push/c", b"1", {"Prefer": "wait=300"}))
    id = parse_id((await a.event()).id)
    for _ in range(5):
        await push("c", receipt="none")
    await server.store.settle()
    assert id in server.store.ledger
    each.close()
    await until(lambda: id not in server.store.ledger)


async def test_who_hung_up_before_the_event_was_kept_is_not_waited_for(begin, listen, connect, until):
    server = await begin("sqlite")
    await online(listen, "a")
    each = await connect()
    keep, kept = server.store.append, []
    server.store.append = lambda draft, then: keep(draft, lambda result: kept.append(lambda: then(result)))
    await each.send(wire.said("POST", "/push/c", b"1", {"Prefer": "wait=300"}))
    await until(lambda: kept)
    each.close()
    await until(lambda: len(server.door.connections) == 0)
    kept[0]()
    await asyncio.sleep(0.01)
    assert not server.waits.open


@MEMORY_AND_REDIS
async def test_many_publishers_wait_at_once_and_each_hears_of_its_own(listen, ask, feedback):
    (a,) = await online(listen, "a")
    answers = [later(ask, "POST", "/push/c", b"%d" % number, Prefer="wait=300") for number in range(100)]
    ids = [(await a.event()).id for _ in answers]
    for id in reversed(ids):
        await feedback("c", "a", id)
    assert sorted(answer.json["id"] for answer in await asyncio.gather(*answers)) == sorted(ids)


@MEMORY_AND_REDIS
async def test_what_is_asked_behind_a_push_that_waits_is_answered_after_it(listen, connect, feedback):
    (a,) = await online(listen, "a")
    each = await connect()
    await each.send(wire.said("POST", "/push/c", b"1", {"Prefer": "wait=300"}) + wire.said("GET", "/healthz"))
    await feedback("c", "a", (await a.event()).id)
    assert [(await each.answer()).status, (await each.answer()).status] == [201, 200]


@MEMORY_AND_REDIS
async def test_a_server_that_stops_answers_all_that_wait(start, listen, ask, until, push):
    server = await start()
    await online(listen, "a")
    id = await push("c")
    waiting = [later(ask, "POST", "/push/c", b"1", Prefer="wait=300"), later(ask, "GET", f"/events/c/{id}?wait=300")]
    await until(lambda: len(server.waits.open) == 2)
    await server.stop()
    pushed, seen = await asyncio.gather(*waiting)
    assert (pushed.status, pushed.json["satisfied"], seen.status) == (201, False, 200)


# A delivery status that is waited for


@STORES
async def test_a_status_is_told_when_it_changes(begin, listen, ask, feedback, push, kind):
    await begin(kind)
    await online(listen, "a", "b")
    id = await push("c")
    first = await ask("GET", f"/events/c/{id}")
    answer = later(ask, "GET", f"/events/c/{id}?wait=60", If_None_Match=first.headers["etag"])
    await asyncio.sleep(0.05)
    assert not answer.done()
    await feedback("c", "a", id)
    changed = await answer
    assert (changed.status, changed.json["counts"]["processed"]) == (200, 1)
    assert changed.headers["etag"] != first.headers["etag"]


@MEMORY_AND_REDIS
async def test_a_status_that_is_another_than_the_one_known_is_told_at_once(listen, ask, feedback, push):
    await online(listen, "a", "b")
    id = await push("c")
    known = (await ask("GET", f"/events/c/{id}")).headers["etag"]
    await feedback("c", "a", id)
    answer = await ask("GET", f"/events/c/{id}?wait=300", If_None_Match=known)
    assert (answer.status, answer.json["counts"]["processed"]) == (200, 1)


@MEMORY_AND_REDIS
async def test_without_an_etag_it_is_the_next_change_that_is_waited_for(start, listen, ask, feedback, push, until):
    server = await start()
    await online(listen, "a", "b")
    id = await push("c")
    await feedback("c", "a", id)
    answer = later(ask, "GET", f"/events/c/{id}?wait=300")
    await until(lambda: server.waits.open)
    assert not answer.done()
    await feedback("c", "b", id)
    assert (await answer).json["counts"]["processed"] == 2


@MEMORY_AND_REDIS
async def test_a_status_that_stays_as_it_was_is_not_modified(listen, ask, push):
    await online(listen, "a")
    id = await push("c")
    known = (await ask("GET", f"/events/c/{id}")).headers["etag"]
    assert (await ask("GET", f"/events/c/{id}?wait=0.2", If_None_Match=known)).status == 304
    assert (await ask("GET", f"/events/c/{id}?wait=0.2")).status == 200


@MEMORY_AND_REDIS
async def test_receipts_that_come_together_are_told_together(start, connect, listen, ask, push, until, handed):
    server = await start()
    names = [f"d{number}" for number in range(50)]
    await online(listen, *names)
    id = await push("c")
    lines = [await connect() for _ in names]
    answer = later(ask, "GET", f"/events/c/{id}?wait=300")
    await until(lambda: server.waits.open)
    for line, name in zip(lines, names, strict=True):
        await line.send(wire.said("POST", "/feedback/c", b"", {"Device": name, "Last-Event-ID": id}))
    for line in lines:
        assert (await line.answer()).status == 200
    await handed.passes(waiting.LINGER)
    assert (await answer).json["counts"]["processed"] == 50


@MEMORY_AND_REDIS
async def test_an_event_that_makes_way_is_told_as_gone_to_who_waits(start, listen, ask, push, until):
    server = await start(backlog_events=1)
    await online(listen, "a")
    id = await push("c")
    answer = later(ask, "GET", f"/events/c/{id}?wait=300")
    await until(lambda: server.waits.open)
    await push("c")
    assert (await answer).error == (410, "event_gone")


@MEMORY_AND_REDIS
async def test_who_hangs_up_while_waiting_for_a_status_leaves_nothing_behind(start, listen, push, connect, until):
    server = await start()
    await online(listen, "a")
    id = await push("c")
    wires = [await connect() for _ in range(50)]
    for each in wires:
        await each.send(wire.said("GET", f"/events/c/{id}?wait=300"))
    await until(lambda: len(server.waits.open) == 50)
    for each in wires:
        each.reset()
    await until(lambda: not server.waits.open)
    assert all(not entry.watchers for entry in server.store.ledger.entries.values())


@pytest.mark.parametrize("wait", ["", "-1", "nan", "soon", "301", "1e3"])
async def test_a_wait_that_cannot_be_is_refused(ask, push, wait):
    assert (await ask("GET", f"/events/c/{await push('c')}?wait={wait}")).error == (400, "bad_wait")


@MEMORY_AND_REDIS
async def test_an_unknown_event_is_not_waited_for(ask):
    assert (await ask("GET", "/events/c/1-0?wait=300")).error == (404, "unknown_event")
