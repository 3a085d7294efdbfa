"""An event is recalled: who lacks it never gets it, who has it is told to forget it, and what is still owed is cancelled."""

import pytest
from redises import EACH_STORE, MEMORY_AND_REDIS


async def recall(ask, channel: str, id: str):
    answer = await ask("DELETE", f"/events/{channel}/{id}")
    assert answer.status == 200, answer
    return answer.json


@EACH_STORE
async def test_who_has_it_is_told_and_who_lacks_it_never_gets_it(listen, push, ask, get):
    here, away = await listen("c", device="here"), await listen("c", device="away")
    away.close()
    first, id = await push("c", 1), await push("c", 2)
    assert await here.events(2) == ["1", "2"]
    assert await recall(ask, "c", id) == {"id": id, "channel": "c", "cancelled": 2}
    assert await here.control("pere.cancel") == {"id": id, "channel": "c"}
    last = await push("c", 3)
    away = await listen("c", device="away")
    assert [(await away.event()).id for _ in range(2)] == [first, last]
    assert (await here.event()).id == last
    status = await get(f"/events/c/{id}")
    assert (status["recalled"], status["counts"]["cancelled"], status["outstanding"]) == (True, 2, 0)
    assert [event.get("recalled", False) for event in (await get("/events/c"))["events"]] == [False, True, False]


@EACH_STORE
async def test_a_control_frame_moves_nobodys_cursor(listen, push, ask):
    feed = await listen("c", device="d")
    first, last = await push("c"), await push("c")
    await feed.events(2)
    await recall(ask, "c", first)
    while (message := await feed.next()).event != "pere.cancel":
        pass
    assert message.id == last


@EACH_STORE
async def test_a_device_that_has_it_and_was_away_meanwhile_is_told_when_it_returns(listen, push, ask):
    feed = await listen("c", device="d")
    await push("c", 1)
    id = await push("c", 2)
    await feed.events(2)
    feed.close()
    await recall(ask, "c", id)
    feed = await listen("c", device="d")
    assert (await feed.event()).data == "1"
    assert await feed.control("pere.cancel") == {"id": id, "channel": "c"}


@EACH_STORE
async def test_anonymous_feeds_and_feeds_of_many_channels_are_told_too(listen, push, ask):
    feeds = [await listen("c"), await listen("c", "d", device="two"), await listen("c.*", "*", device="all"), await listen("c", version="1.0")]
    other = await listen("d", device="other")
    id = await push("c")
    for feed in feeds:
        await feed.event()
    await recall(ask, "c", id)
    for feed in feeds:
        assert await feed.control("pere.cancel") == {"id": id, "channel": "c"}
    await push("d")
    assert (await other.event()).event == "message"


@EACH_STORE
async def test_only_those_it_was_for_are_told(listen, push, ask):
    mine, yours = await listen("c", device="mine"), await listen("c", device="yours")
    id = await push("c", 1, to="mine")
    await mine.event()
    await recall(ask, "c", id)
    assert await mine.control("pere.cancel") == {"id": id, "channel": "c"}
    await push("c", 2)
    assert (await yours.next()).data == "2"


@EACH_STORE
async def test_a_receipt_after_the_recall_wins_and_is_late(listen, push, ask, feedback):
    await listen("c", device="d")
    id = await push("c")
    await recall(ask, "c", id)
    assert (await feedback("c", "d", id, state="processed")).json == {"state": "processed", "duplicate": False, "late": True}
    assert await recall(ask, "c", id) == {"id": id, "channel": "c", "cancelled": 0}


@EACH_STORE
async def test_an_event_that_is_recalled_before_its_broadcast_is_followed_by_its_cancel(start, listen, push):
    server = await start()
    feed = await listen("c", device="d")
    ids = []
    server.store.deliver, deliver = lambda event: (deliver(event), ids.append(event), server.store.recall("c", event.id, print, print)), server.store.deliver
    await push("c", 7)
    assert [(await feed.next()).event for _ in range(2)] == ["message", "pere.cancel"]


@pytest.mark.parametrize("target, error", [
    ("/events/c/1-0", (404, "unknown_event")), ("/events/c/x", (400, "bad_event_id")), ("/events/a%20b/1-0", (400, "bad_channel")),
    ("/events/c", (405, "wrong_method")), ("/events/c/1-0/devices", (405, "wrong_method")),
])
async def test_what_cannot_be_recalled_is_said(ask, push, target, error):
    await push("c")
    assert (await ask("DELETE", target)).error == error


@MEMORY_AND_REDIS
async def test_what_has_made_way_cannot_be_recalled(start, push, ask):
    await start(backlog_events=1)
    id = await push("c")
    await push("c")
    assert (await ask("DELETE", f"/events/c/{id}")).error == (410, "event_gone")


@pytest.mark.parametrize("kept_in, is_started_again", [("memory", False), ("sqlite", False), ("redis", False), ("sqlite", True), ("redis", True)], indirect=["kept_in"])
async def test_who_has_answered_all_before_and_was_away_is_told_too_whether_the_server_was_started_again_or_not(start, listen, push, ask, feedback, is_started_again):
    server = await start()
    feed = await listen("c", device="d")
    first, id = await push("c", 1), await push("c", 2)
    await feed.events(2)
    await feedback("c", "d", first)
    feed.close()
    await recall(ask, "c", id)
    if is_started_again:
        await server.stop()
        await start()
    last = await push("c", 3)
    feed = await listen("c", device="d")
    assert await feed.control("pere.cancel") == {"id": id, "channel": "c"}
    assert (await feed.event()).id == last


@EACH_STORE
async def test_an_anonymous_client_that_says_it_has_read_it_is_told_when_it_returns(listen, push, ask):
    id = await push("c", 1)
    await recall(ask, "c", id)
    last = await push("c", 2)
    assert await (await listen("c", last=id)).control("pere.cancel") == {"id": id, "channel": "c"}
    # Who begins with the oldest has not got it.
    assert (await (await listen("c", from_="all")).next()).id == last


@EACH_STORE
async def test_who_was_not_meant_hears_nothing_of_it(listen, push, ask, feedback):
    meant, other = await listen("c", device="meant"), await listen("c", device="other")
    id = await push("c", 1, to="meant")
    await meant.event()
    other.close()
    await recall(ask, "c", id)
    last = await push("c", 2)
    other = await listen("c", device="other")
    assert (await other.next()).id == last
    assert (await feedback("c", "other", id)).error == (404, "unknown_event")


@EACH_STORE
async def test_what_was_called_off_is_counted_by_reason(listen, push, ask, measured):
    await listen("c", device="a")
    await listen("c", device="b")
    await recall(ask, "c", await push("c"))
    await push("c")
    await ask("DELETE", "/admin/devices/b")
    told = await measured()
    assert (told["pere_cancelled_total", "recalled"], told["pere_cancelled_total", "removed"]) == (2, 1)


@MEMORY_AND_REDIS
async def test_what_was_recalled_is_forgotten_with_the_event(start, listen, push, ask):
    server = await start(backlog_events=2)
    feed = await listen("c", device="d")
    for _ in range(5):
        await recall(ask, "c", await push("c"))
    assert server.store.open("c").backlog.recalled == [4, 5]
    for _ in range(2):
        await push("c")
    assert server.store.open("c").backlog.recalled == []
    feed.close()
