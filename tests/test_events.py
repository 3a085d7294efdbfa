"""What is kept of a channel, and what became of an event: on the whole, and on each device."""

import asyncio
import random

import pytest
from redises import EACH_STORE, MEMORY_AND_REDIS


def present(counts: dict[str, int]) -> dict[str, int]:
    return {state: count for state, count in counts.items() if count}


# The kept events


@EACH_STORE
async def test_the_kept_events_of_a_channel_are_listed_oldest_first(start, push, get):
    server = await start()
    server.store.clock = lambda: 1_700_000_000.5
    first, second = await push("c", {"n": 1}, type="t"), await push("c", "two\nlines")
    assert await get("/events/c") == {
        "events": [
            {"id": first, "channel": "c", "type": "t", "time": "2023-11-14T22:13:20.500Z", "data": {"n": 1}},
            {"id": second, "channel": "c", "type": "message", "time": "2023-11-14T22:13:20.500Z", "data": "two\nlines"},
        ], "after": second, "more": False}


@EACH_STORE
async def test_the_kept_events_are_read_page_by_page(push, get):
    ids = [await push("c") for _ in range(7)]
    seen, after, more = [], "", True
    while more:
        page = await get(f"/events/c?limit=3&after={after}")
        seen += [event["id"] for event in page["events"]]
        after, more = page["after"], page["more"]
    assert seen == ids
    assert await get(f"/events/c?after={after}") == {"events": [], "after": after, "more": False}


@MEMORY_AND_REDIS
async def test_only_what_is_kept_is_listed(start, push, get):
    await start(backlog_events=2)
    ids = [await push("c") for _ in range(5)]
    assert [event["id"] for event in (await get(f"/events/c?after={ids[0]}"))["events"]] == ids[-2:]


@EACH_STORE
async def test_a_channel_of_which_nothing_is_kept_has_no_events(get):
    assert await get("/events/nosuch") == {"events": [], "after": None, "more": False}


@pytest.mark.parametrize("target, error", [
    ("/events/a%20b", (400, "bad_channel")), ("/events/", (400, "bad_channel")), ("/events/a*", (400, "bad_channel")),
    ("/events/" + 129 * "x", (400, "bad_channel")),
    ("/events/c?limit=0", (400, "bad_limit")), ("/events/c?limit=1001", (400, "bad_limit")), ("/events/c?limit=-1", (400, "bad_limit")),
    ("/events/c?limit=x", (400, "bad_limit")), ("/events/c?limit=1e3", (400, "bad_limit")), ("/events/c?limit=" + 5000 * "9", (400, "bad_limit")),
    ("/events/c?after=x", (400, "bad_event_id")), ("/events/c?after=1-0-0", (400, "bad_event_id")), ("/events/c?after=%FF", (400, "bad_query")),
    ("/events/a%20b/1-0", (400, "bad_channel")), ("/events/c/1-0", (404, "unknown_event")), ("/events/c/x", (400, "bad_event_id")),
    ("/events/c/1", (400, "bad_event_id")), ("/events/c/9999999999999-0", (400, "bad_event_id")), ("/events/c/%D9%A3-0", (400, "bad_event_id")),
    ("/events/c/1-0/devices", (404, "unknown_event")), ("/events/c/x/devices", (400, "bad_event_id")), ("/events/a%20b/1-0/devices", (400, "bad_channel")),
    ("/events/c/1-0/devices?limit=0", (400, "bad_limit")), ("/events/c/1-0/devices?limit=1001", (400, "bad_limit")),
    ("/events/c/1-0/devices?state=done", (400, "bad_state")), ("/events/c/1-0/devices?state=Pending", (400, "bad_state")),
    ("/events/c/1-0/devices?cursor=x", (400, "bad_cursor")), ("/events/c/1-0/devices?cursor=1-0.-1", (400, "bad_cursor")),
    ("/events/c/1-0/devices?cursor=2-0.1", (400, "bad_cursor")), ("/events/c/1-0/devices?cursor=1-0.9999999999", (400, "bad_cursor")),
    ("/events/c/1-0/nothing", (404, "not_found")), ("/events", (404, "not_found")), ("/events/%FF", (400, "bad_request")),
])
async def test_what_is_asked_for_wrongly_is_refused_and_says_why(ask, target, error):
    assert (await ask("GET", target)).error == error


@pytest.mark.parametrize("target", ["/events/c", "/events/c/ID", "/events/c/ID/devices"])
async def test_events_are_only_read(ask, push, target):
    target = target.replace("ID", await push("c"))
    for method in ("POST", "PUT", "PATCH"):
        answer = await ask(method, target)
        assert answer.error == (405, "wrong_method")
        assert "GET" in answer.headers["allow"]
    head, whole = await ask("HEAD", target), await ask("GET", target)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", whole.headers["content-length"])


# The status of one event


@EACH_STORE
async def test_the_status_tells_all_that_is_known_of_an_event(start, listen, push, get, feedback):
    server = await start()
    server.store.clock = lambda: 1_700_000_000.0
    for name in ("a", "b", "c", "d", "e"):
        await listen("news", device=name)
    (await listen("news", device="away")).close()
    id = await push("news", type="t", ttl=60, receipt="processed", need="50%", device="me")
    server.store.clock = lambda: 1_700_000_002.0
    for name, state in (("a", "processed"), ("b", "failed"), ("c", "delivered")):
        await feedback("news", name, id, state=state)
    status = await get(f"/events/news/{id}")
    assert status.pop("latency") == {"p50": pytest.approx(2, rel=0.06), "p90": pytest.approx(2, rel=0.06), "p99": pytest.approx(2, rel=0.06)}
    assert status == {
        "id": id, "channel": "news", "type": "t", "time": "2023-11-14T22:13:20.000Z", "expires": "2023-11-14T22:14:20.000Z", "publisher": "me", "recalled": False,
        "receipt": "processed", "audience": 6, "outstanding": 4, "need": 3, "satisfied": False, "complete": False,
        "counts": {"pending": 1, "sent": 2, "delivered": 1, "expired": 0, "cancelled": 0, "processed": 1, "failed": 1},
    }


@EACH_STORE
async def test_pending_becomes_sent_when_a_device_comes_back(listen, push, get):
    (await listen("c", device="d")).close()
    await listen("c", device="e")
    id = await push("c")
    assert present((await get(f"/events/c/{id}"))["counts"]) == {"pending": 1, "sent": 1}
    feed = await listen("c", device="d")
    await feed.event()
    assert present((await get(f"/events/c/{id}"))["counts"]) == {"sent": 2}
    feed.close()
    assert present((await get(f"/events/c/{id}"))["counts"]) == {"sent": 2}


@EACH_STORE
async def test_need_is_satisfied_by_those_who_have_it_and_completed_by_all_who_answered(listen, push, get, feedback):
    for name in "abc":
        await listen("c", device=name)
    id = await push("c", need=2)
    seen = []
    for name, state in (("a", "failed"), ("b", "processed"), ("c", "delivered"), ("c", "processed")):
        await feedback("c", name, id, state=state)
        status = await get(f"/events/c/{id}")
        seen.append((status["satisfied"], status["complete"], status["outstanding"]))
    assert seen == [(False, False, 2), (False, False, 1), (False, False, 1), (True, True, 0)]


@EACH_STORE
async def test_delivered_satisfies_where_it_is_all_that_was_asked_for(listen, push, get, feedback):
    await listen("c", device="d")
    id = await push("c", receipt="delivered")
    await feedback("c", "d", id, state="delivered")
    status = await get(f"/events/c/{id}")
    assert (status["satisfied"], status["complete"], present(status["counts"])) == (True, True, {"delivered": 1})


@EACH_STORE
async def test_a_device_that_was_removed_owes_nothing_any_more(ask, listen, push, get, feedback):
    for name in "ab":
        await listen("c", device=name)
    first, second = await push("c"), await push("c", to=["a", "b"])
    await feedback("c", "a", first)
    await ask("DELETE", "/admin/devices/a")
    third = await push("c")
    counts = [present((await get(f"/events/c/{id}"))["counts"]) for id in (first, second, third)]
    assert counts == [{"processed": 1, "sent": 1}, {"cancelled": 1, "sent": 1}, {"sent": 1}]
    assert (await feedback("c", "a", third)).error == (404, "unknown_event")


@EACH_STORE
async def test_the_etag_moves_with_every_change_and_with_nothing_else(listen, push, ask, feedback):
    (await listen("c", device="away")).close()
    await listen("c", device="d")
    id = await push("c")
    tags = []

    async def changed() -> bool:
        answer = await ask("GET", f"/events/c/{id}", **({"If_None_Match": tags[-1]} if tags else {}))
        tags.append(answer.headers["etag"])
        assert (answer.status, answer.body == b"") in ((200, False), (304, True))
        return answer.status == 200

    assert await changed()
    assert not await changed()
    await feedback("c", "d", id, state="delivered")
    assert await changed()
    await feedback("c", "d", id, state="delivered")
    await push("c")
    assert not await changed()
    await feedback("c", "d", id)
    assert await changed()
    feed = await listen("c", device="away")
    await feed.event()
    assert await changed()
    assert not await changed()
    await feedback("c", "away", id)
    assert await changed()
    assert len(set(tags)) == 5


@EACH_STORE
async def test_an_event_is_known_only_on_its_own_channel(push, ask):
    id = await push("c")
    await push("d")
    for target in (f"/events/d/{id}", f"/events/e/{id}", f"/events/d/{id}/devices"):
        assert (await ask("GET", target)).error == (404, "unknown_event")


@MEMORY_AND_REDIS
async def test_an_event_that_made_way_is_gone(start, push, ask):
    await start(backlog_events=1)
    id = await push("c")
    await push("c")
    for target in (f"/events/c/{id}", f"/events/c/{id}/devices"):
        assert (await ask("GET", target)).error == (410, "event_gone")


# The devices of one event


@EACH_STORE
async def test_each_device_tells_what_became_of_the_event_there(start, listen, push, get, feedback):
    server = await start()
    server.store.clock = lambda: 1_700_000_000.0
    for name in ("answered", "silent"):
        await listen("c", device=name)
    (await listen("c", device="away")).close()
    id = await push("c")
    server.store.clock = lambda: 1_700_000_002.0
    await feedback("c", "answered", id, state="failed", status={"paper": 0})
    lines = {line["device"]: line for line in (await get(f"/events/c/{id}/devices"))["devices"]}
    latency = lines["answered"].pop("latency")
    assert latency == pytest.approx(2, rel=0.06)
    answered_at = lines["answered"].pop("receipt_at")
    assert answered_at.startswith("2023-11-14T22:13:2")
    nothing = {"status": None, "late": False, "latency": None}
    assert lines == {
        "answered": {"device": "answered", "state": "failed", "status": {"paper": 0}, "attempt": 1, "late": False,
                     "sent_at": "2023-11-14T22:13:20.000Z", "online": True},
        "silent": nothing | {"device": "silent", "state": "sent", "attempt": 1, "sent_at": "2023-11-14T22:13:20.000Z", "receipt_at": None, "online": True},
        "away": nothing | {"device": "away", "state": "pending", "attempt": 0, "sent_at": None, "receipt_at": None, "online": False},
    }


@pytest.mark.parametrize("state, devices", [
    ("outstanding", ["away", "half", "silent"]), ("pending", ["away"]), ("sent", ["silent"]), ("delivered", ["half"]),
    ("processed", ["done"]), ("failed", ["broken"]), ("expired", []), ("cancelled", []), ("", ["away", "broken", "done", "half", "silent"])])
@EACH_STORE
async def test_devices_are_asked_for_by_state(listen, push, get, feedback, state, devices):
    for name in ("done", "broken", "half", "silent"):
        await listen("c", device=name)
    (await listen("c", device="away")).close()
    id = await push("c")
    for name, word in (("done", "processed"), ("broken", "failed"), ("half", "delivered")):
        await feedback("c", name, id, state=word)
    page = await get(f"/events/c/{id}/devices?state={state}")
    assert sorted(line["device"] for line in page["devices"]) == devices
    assert page["cursor"] is None


@EACH_STORE
async def test_paging_names_every_device_once_while_receipts_come_in(start, push, get, feedback):
    server = await start()
    names = [f"d{n:03}" for n in range(100)]
    for name in names:
        server.store.register("c", name)
    id = await push("c")
    dice = random.Random(1)
    owing, seen, cursor = set(names), [], ""
    steady = set(dice.sample(names, 30))  # those who answer only at the end
    while cursor is not None:
        page = await get(f"/events/c/{id}/devices?state=outstanding&limit=7&cursor={cursor}")
        seen += [line["device"] for line in page["devices"]]
        cursor = page["cursor"]
        answering = dice.sample(sorted(owing - steady), min(8, len(owing - steady)))
        await asyncio.gather(*(feedback("c", name, id) for name in answering))
        owing -= set(answering)
    assert len(seen) == len(set(seen))
    assert steady <= set(seen)
    everybody, cursor = [], ""
    while cursor is not None:
        page = await get(f"/events/c/{id}/devices?limit=9&cursor={cursor}")
        everybody += [line["device"] for line in page["devices"]]
        cursor = page["cursor"]
    assert sorted(everybody) == names


@EACH_STORE
async def test_paging_goes_on_where_it_was_when_devices_come_and_go(start, ask, push, get):
    server = await start()
    for n in range(10):
        server.store.register("c", f"d{n}")
    id = await push("c")
    first = await get(f"/events/c/{id}/devices?limit=5")
    await ask("DELETE", "/admin/devices/d0")
    await ask("DELETE", "/admin/devices/d7")
    server.store.register("c", "new")
    second = await get(f"/events/c/{id}/devices?limit=5&cursor={first['cursor']}")
    assert [line["device"] for line in first["devices"] + second["devices"]] == [f"d{n}" for n in range(10)]
    assert {line["device"]: line["state"] for line in second["devices"]}["d7"] == "cancelled"


@MEMORY_AND_REDIS
async def test_a_slot_is_given_anew_only_when_no_kept_event_can_mean_who_had_it(start, ask, push, get, feedback):
    server = await start(backlog_events=2)
    server.store.register("c", "old")
    first = await push("c")
    await feedback("c", "old", first, status="mine")
    await ask("DELETE", "/admin/devices/old")
    server.store.register("c", "new")
    assert [(line["device"], line["status"]) for line in (await get(f"/events/c/{first}/devices"))["devices"]] == [("old", "mine")]
    ids = [await push("c") for _ in range(2)]
    server.store.register("c", "newer")
    last = await push("c")
    assert [[line["device"] for line in (await get(f"/events/c/{id}/devices"))["devices"]] for id in (ids[1], last)] == [["new"], ["newer", "new"]]


@EACH_STORE
async def test_an_event_without_receipts_has_no_devices(listen, push, get):
    await listen("c", device="d")
    assert await get(f"/events/c/{await push('c', receipt='none')}/devices") == {"devices": [], "cursor": None}
