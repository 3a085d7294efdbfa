"""What publishers are told by webhook: real servers, real receivers, each notice verified by the libraries that receivers use."""

import asyncio
import shutil
from collections import Counter

import orjson
import pytest
from cloudevents.http import from_http
from hooks import Receiver
from redis import Redis
from redises import KEPT, MEMORY_AND_REDIS, common
from standardwebhooks.webhooks import Webhook

from pere import courier, outbox, reporter
from pere import notice as notices
from pere.errors import Unavailable
from pere.event import parse_id
from pere.notice import BATCH, BATCH_BYTES, COMPLETED, CONNECTED, DISCONNECTED, EXPIRED, GIVEN_UP, RECEIPTS, SATISFIED, Packed, notice
from pere.receipt import PROCESSED
from pere.storage import keeper

STORES = pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Hours become moments."""
    monkeypatch.setattr(courier, "BACKOFF", (0.02, 0.04, 0.06, 0.08, 0.1, 0.4, 0.4, 0.4, 0.4, 0.4))
    monkeypatch.setattr(courier, "MAX_RETRY_AFTER", 0.3)
    monkeypatch.setattr(reporter, "OLDEST", 0.2)
    monkeypatch.setattr(reporter, "GATHER", 0.01)
    monkeypatch.setattr(reporter, "AWAY", 0.3)
    monkeypatch.setattr(reporter, "AGAIN", 0.05)
    monkeypatch.setattr(outbox, "AGAIN", 0.05)
    monkeypatch.setattr(courier, "AGAIN", 0.05)


@pytest.fixture
def active(receiver, add, in_state):
    """`there, endpoint = await active(types=[...])`: a receiver whose endpoint is active."""

    async def active(*answers: int, **said):
        there = receiver()
        endpoint = await add(there.url, **said)
        await in_state(endpoint["id"], "active")
        there.answers = list(answers or (204,))
        there.got.clear()
        return there, endpoint

    return active


@pytest.fixture
def answered(feedback, push):
    """`id = await answered("c", "d1", "d2")`: an event that these devices, which are registered, have answered."""

    async def answered(channel: str, *devices: str, state: str = "processed", **query) -> str:
        id = await push(channel, **query)
        for device in devices:
            assert (await feedback(channel, device, id, state=state)).status == 200
        return id

    return answered


def register(server, channel: str, *devices: str) -> None:
    for device in devices:
        server.store.register(channel, device)


async def paused(server, endpoint) -> None:
    await server.webhooks.change(endpoint["id"], {"state": "paused"})


def proved(there: Receiver, secret: str) -> list[dict]:
    """What came, verified and parsed as receivers do it, each once."""
    found = {}
    for headers, body in there.got:
        assert Webhook(secret).verify(body, headers) == orjson.loads(body)
        event = from_http(headers, body)
        assert (event["id"], event["specversion"], event["datacontenttype"]) == (headers["webhook-id"], "1.0", "application/json")
        found[event["id"]] = {"type": event["type"], "source": event["source"], "data": event.data}
    return [each for each in found.values() if each["type"] != "pere.webhook.verify"]


# What is told


@STORES
async def test_receipts_are_told_in_a_batch_as_followers_are_told(hooked, active, answered, until, kind, monkeypatch):
    for module in (notices, reporter):
        monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(reporter, "OLDEST", 3600)  # however slowly the receipts come, they go together
    server = await hooked(kind)
    register(server, "c", "d1", "d2")
    there, endpoint = await active(types=[RECEIPTS], content_type="application/cloudevents+json")
    id = await answered("c", "d1", "d2")
    await until(lambda: there.got)
    (told,) = proved(there, endpoint["secret"])
    assert (told["type"], told["source"], list(told["data"])) == (RECEIPTS, "/receipts", ["receipts"])
    page = await server.store.records("c", 0, 10)
    assert told["data"]["receipts"] == [orjson.loads(record.encode()) for record in page.records]
    assert [(each["event_id"], each["device"]) for each in told["data"]["receipts"]] == [(id, "d1"), (id, "d2")]


@STORES
async def test_ten_thousand_receipts_are_a_hundred_notices(hooked, active, push, until, kind, monkeypatch):
    monkeypatch.setattr(reporter, "OLDEST", 3600)  # however slowly the receipts come, only full batches go
    server = await hooked(kind)
    devices = [f"device-{n:05}" for n in range(10_000)]
    register(server, "c", *devices)
    there, endpoint = await active(types=[RECEIPTS])
    id = parse_id(await push("c"))
    for device in devices:
        server.store.record("c", device, id, PROCESSED, None, lambda *told: None, print)
    await until(lambda: len(there.got) >= 100)
    await server.store.settle()
    assert len(there.got) == len(there.notices()) == 100
    assert Counter(device for _, device, _ in there.receipts()) == Counter(devices)
    assert all(len(said["data"]["receipts"]) == BATCH for said in there.notices())
    assert max(len(body) for _, body in there.got) < BATCH_BYTES + 500


@STORES
async def test_what_becomes_of_an_event_is_told_once(hooked, active, answered, push, feedback, until, kind):
    server = await hooked(kind)
    register(server, "c", "d1", "d2")
    there, endpoint = await active(types=[SATISFIED, COMPLETED, EXPIRED])
    id = await answered("c", "d1", need="1", device="till")
    await until(lambda: there.got)
    (said,) = proved(there, endpoint["secret"])
    assert (said["type"], said["source"]) == (SATISFIED, f"/events/c/{id}")
    told = said["data"]
    assert {name: told[name] for name in ("id", "channel", "type", "publisher", "audience", "need", "satisfied", "complete", "outstanding")} == {
        "id": id, "channel": "c", "type": "message", "publisher": "till", "audience": 2, "need": 1, "satisfied": True, "complete": False, "outstanding": 1}
    assert told["counts"] == {"pending": 1, "delivered": 0, "expired": 0, "cancelled": 0, "processed": 1, "failed": 0}
    await feedback("c", "d2", id, state="failed")
    await feedback("c", "d2", id, state="failed")
    await until(lambda: len(there.got) == 2)
    now = server.store.clock()
    late = await push("c", ttl=10)
    server.store.clock = lambda: now + 60
    server.store.sweep(now + 60, server.hub.is_used)
    await until(lambda: len(there.got) == 3)
    server.store.clock = lambda: now
    assert [(said["type"], said["id"]) for said in there.notices()] == [
        (SATISFIED, f"event_{id}_satisfied"), (COMPLETED, f"event_{id}_completed"), (EXPIRED, f"event_{late}_expired")]


@STORES
async def test_endpoints_hear_of_what_they_named_and_of_no_other(hooked, active, answered, until, kind):
    server = await hooked(kind)
    register(server, "orders.eu", "d")
    register(server, "news", "d")
    (orders, _), (done, _), (all, _) = [await active(types=types, channels=channels) for types, channels in (
        ([RECEIPTS], ["orders.*"]), ([COMPLETED], ["news"]), ([RECEIPTS, COMPLETED], []))]
    first, second = await answered("orders.eu", "d"), await answered("news", "d")
    await until(lambda: len(all.receipts()) == len(all.notices(COMPLETED)) == 2 and orders.got and done.got)  # both receipts in one batch, or each in its own
    assert orders.receipts() == [(first, "d", "processed")]
    assert [said["data"]["id"] for said in done.notices()] == [second]
    assert all.receipts() == [(first, "d", "processed"), (second, "d", "processed")]


@KEPT
async def test_who_hears_of_the_same_is_told_together_and_goes_its_own_way_when_that_changes(hooked, active, answered, ask, until, kind):
    server = await hooked(kind)
    register(server, "c", "d")
    (first, one), (second, other) = await active(types=[RECEIPTS]), await active(types=[RECEIPTS])
    ids = [await answered("c", "d")]
    await until(lambda: first.got and second.got and len(server.reporter._tails) == 1)
    assert first.got[0][1] == second.got[0][1]
    for channels in (["elsewhere"], ["c"]):
        # What has been read when it changes, and is not sent yet, is told as it was asked for.
        ids.append(await answered("c", "d"))
        await until(lambda: all(tail.position == server.store.newest_record for tail in server.reporter._tails))
        await ask("PATCH", f"/webhooks/{other['id']}", {"channels": channels})
    ids.append(await answered("c", "d"))
    await until(lambda: len(first.receipts()) == 4 and (ids[3], "d", "processed") in second.receipts())
    assert [id for id, _, _ in first.receipts()] == ids
    assert [id for id, _, _ in second.receipts()] == [ids[0], ids[1], ids[3]]
    for there, endpoint in ((first, one), (second, other)):
        proved(there, endpoint["secret"])


@STORES
async def test_a_push_names_who_is_told_of_this_event_whatever_it_hears_of(hooked, active, answered, ask, until, kind):
    server = await hooked(kind)
    register(server, "c", "d")
    (there, endpoint), (other, _) = await active(types=[GIVEN_UP], channels=["nothing"]), await active(types=[GIVEN_UP])
    id = await answered("c", "d", callback=endpoint["id"])
    await answered("c", "d")
    await until(lambda: len(there.got) == 2)
    assert {said["id"] for said in there.notices()} == {f"event_{id}_satisfied", f"event_{id}_completed"}
    batch = await ask("POST", "/push", [{"channel": "c", "data": 1, "callback": endpoint["id"], "to": ["nobody"]}, {"channel": "c", "data": 1, "callback": "wh_x"}])
    assert [each.get("error") for each in batch.json["results"]] == [None, "unknown_callback"]
    assert (await ask("POST", f"/push/c?callback={endpoint['id']}&receipt=none", b"1")).error == (400, "callback_without_receipt")
    assert other.got == []


@MEMORY_AND_REDIS
async def test_a_device_is_news_when_it_comes_and_when_it_stays_away(hooked, active, listen, until, monkeypatch):
    server = await hooked()
    there, endpoint = await active(types=[CONNECTED, DISCONNECTED], channels=["c"])
    feed = await listen("c", device="d")
    await listen("elsewhere", device="e")
    await until(lambda: there.got)
    monkeypatch.setattr(reporter, "AWAY", 60)
    feed.close()
    await until(lambda: server.reporter._away)
    feed = await listen("c", device="d")
    assert not server.reporter._away
    monkeypatch.setattr(reporter, "AWAY", 0.1)
    feed.close()
    await until(lambda: len(there.got) == 2)
    assert [(said["type"], [each["device"] for each in said["data"]["devices"]]) for said in proved(there, endpoint["secret"])] == [
        (CONNECTED, ["d"]), (DISCONNECTED, ["d"])]


@MEMORY_AND_REDIS
async def test_who_hears_of_nothing_costs_nothing(hooked, active, ask):
    server = await hooked()
    assert (server.reporter._task, server.store.devices.on_presence) == (None, None)
    _, endpoint = await active(types=[RECEIPTS, CONNECTED])
    assert server.reporter._task is not None and server.store.devices.on_presence is not None
    await ask("DELETE", f"/webhooks/{endpoint['id']}")
    assert (server.reporter._task, server.store.devices.on_presence) == (None, None)


# What does not arrive


@STORES
async def test_what_failed_comes_again_with_the_same_id_and_bytes_and_a_fresh_signature(hooked, active, answered, until, kind, caplog):
    server = await hooked(kind)
    register(server, "c", "d")
    there, endpoint = await active(500, 302, 429, 204, types=[RECEIPTS])
    await answered("c", "d")
    await until(lambda: len(there.got) == 4)
    proved(there, endpoint["secret"])
    assert len({body for _, body in there.got}) == len({headers["webhook-id"] for headers, _ in there.got}) == 1
    await until(lambda: not server.webhooks.courier.outboxes[endpoint["id"]].waiting)
    await server.store.settle()
    assert server.store.names("notice") == []
    caplog.clear()


@STORES
async def test_who_comes_back_has_everything_in_batches_that_it_can_tell_apart(hooked, active, answered, until, kind, caplog, monkeypatch):
    monkeypatch.setattr(courier, "BACKOFF", (0.02, 0.04, 0.06, 0.08, *[0.1] * 500))  # however long the receipts take here, it is not given up
    server = await hooked(kind)
    register(server, "c", *(f"d{n}" for n in range(30)))
    there, endpoint = await active(types=[RECEIPTS, COMPLETED])
    there.close()
    ids = []
    for _ in range(8):
        ids.append(await answered("c", *(f"d{n}" for n in range(30))))
        await asyncio.sleep(0.05)
    box = server.webhooks.courier.outboxes[endpoint["id"]]
    await until(lambda: box.failures >= 4)
    there.again(there.port)
    await until(lambda: not box.waiting and len(there.notices(COMPLETED)) == 8 and len(there.receipts()) == 240)
    assert there.receipts() == [(id, f"d{n}", "processed") for id in ids for n in range(30)]
    assert {said["data"]["id"] for said in there.notices(COMPLETED)} == set(ids)
    assert (box.failures, box.trouble) == (0, "")
    caplog.clear()


@KEPT
async def test_a_restart_goes_on_where_it_was(hooked, active, answered, until, caplog, kind):
    server = await hooked(kind)
    register(server, "c", "d1", "d2")
    there, endpoint = await active(503, types=[RECEIPTS, COMPLETED])
    first = await answered("c", "d1", "d2")
    await until(lambda: there.got)
    before = {headers["webhook-id"]: body for headers, body in there.got}
    await server.stop()
    there.answers = [204]
    server = await hooked(kind)
    second = await answered("c", "d1")
    await until(lambda: len(there.receipts()) == 3 and there.notices(COMPLETED))
    assert there.receipts() == [(first, "d1", "processed"), (first, "d2", "processed"), (second, "d1", "processed")]
    assert all(body == before[headers["webhook-id"]] for headers, body in there.got if headers["webhook-id"] in before)
    caplog.clear()


async def test_what_is_decided_in_the_last_moment_when_nothing_is_sent_any_more_is_told_after_the_start(hooked, active, push, until, caplog):
    server = await hooked("sqlite")
    register(server, "c", "d")
    there, _ = await active(types=[COMPLETED, EXPIRED])
    answered, late = await push("c"), await push("c", ttl="10")
    resign = server._resign

    async def resign_and_commit(seconds: float = 0.0) -> None:
        await resign(seconds)
        server.store.record("c", "d", parse_id(answered), PROCESSED, None, lambda *told: None, print)
        server.store.sweep(server.store.clock() + 20, lambda channel: True)

    server._resign = resign_and_commit
    await server.stop()
    await hooked("sqlite")
    await until(lambda: len(there.notices()) == 2)
    assert sorted(said["id"] for said in there.notices()) == [f"event_{answered}_completed", f"event_{late}_expired"]
    caplog.clear()


def put_back(server, kind: str):
    """What to call after the server has ended, to have what is kept now: as if it had died now."""
    if kind == "sqlite":
        path = server.store.path
        for ending in ("", "-wal"):
            shutil.copy(path + ending, path + ".died" + ending)

        def back() -> None:
            for ending in ("", "-wal"):
                shutil.move(path + ".died" + ending, path + ending)
    else:
        prefix, client = server.store._log.prefix, Redis.from_url(common().url, socket_timeout=60)
        kept = {name: client.dump(name) for name in client.keys(f"{prefix}:*") if name != f"{prefix}:keeper".encode()}  # whose lease has run out by then

        def back() -> None:
            client.delete(*client.keys(f"{prefix}:*"))
            for name, value in kept.items():
                client.restore(name, 0, value)
            client.close()

    return back


@KEPT
@pytest.mark.parametrize("devices, query, words", [
    (["d"], {}, ["satisfied", "completed"]), (["d", "e"], {"need": "0"}, ["satisfied"]), ([], {}, ["satisfied", "completed"])])
async def test_what_was_decided_and_not_told_is_told_after_the_start(hooked, active, push, until, devices, query, words, kind, monkeypatch):
    monkeypatch.setattr(keeper, "KEEP_EVERY", 1e9)  # in Redis it is told by the log beyond what was kept
    server = await hooked(kind)
    register(server, "c", *devices)
    there, endpoint = await active(types=[SATISFIED, COMPLETED])
    # As if the process died after this was kept and before the notices were.
    server.store.ledger.on_decision = lambda *told: None
    id = await push("c", **query)
    if not query and devices:
        server.store.record("c", "d", parse_id(id), PROCESSED, None, lambda *told: None, print)
    await server.store.settle()
    back = put_back(server, kind)
    await server.stop()
    back()
    server = await hooked(kind)
    await until(lambda: len(there.got) == len(words))
    assert sorted(said["id"] for said in there.notices()) == sorted(f"event_{id}_{word}" for word in words)
    bodies = {body for _, body in there.got}
    await server.stop()
    await hooked(kind)
    await asyncio.sleep(0.1)
    assert {body for _, body in there.got} == bodies and len(there.got) == len(words), "an orderly end leaves nothing to be told again"


@MEMORY_AND_REDIS
async def test_a_server_that_wishes_to_be_left_alone_is(hooked, active, answered, until, caplog):
    server = await hooked()
    register(server, "c", "d")
    there, endpoint = await active(503, 204, types=[RECEIPTS])
    there.headers = {"Retry-After": "3000"}
    there.at.clear()
    await answered("c", "d")
    await until(lambda: len(there.got) == 2)
    first, second = there.at
    assert second - first > 0.9 * courier.MAX_RETRY_AFTER
    caplog.clear()


@MEMORY_AND_REDIS
async def test_one_request_at_a_time_is_enough_to_find_out_that_somebody_is_not_there(hooked, active, answered, until, caplog, monkeypatch):
    monkeypatch.setattr(courier, "PROBE_AFTER", 2)
    monkeypatch.setattr(courier, "BACKOFF", (0.02, 0.04, 0.06, 0.08, *[0.1] * 500))  # however long the receipts take here, it is not given up
    server = await hooked()
    register(server, "c", "d")
    there, endpoint = await active(500, types=[SATISFIED, COMPLETED])
    box, take, at_once = server.webhooks.courier.outboxes[endpoint["id"]], there.take, []

    def look(request):
        at_once.append((box.failures, len(box.flying)))
        take(request)

    there.take = look
    for _ in range(6):
        await answered("c", "d")
    await until(lambda: box.failures >= 4)
    assert {count for failures, count in at_once if failures >= 2} == {1}, "two at once, until two have failed, and then single ones"
    there.answers = [204]
    await until(lambda: not box.waiting)
    assert len(there.notices()) == 12
    caplog.clear()


@STORES
async def test_who_never_answers_is_given_up_and_the_others_are_told_and_it_can_be_replayed(
        hooked, active, answered, until, get, ask, in_state, kind, caplog, monkeypatch):
    monkeypatch.setattr(courier, "BACKOFF", (0.01, 0.01, 0.01))
    server = await hooked(kind)
    register(server, "c", *(f"d{n}" for n in range(250)))
    (there, endpoint), (other, _) = await active(500, types=[RECEIPTS, COMPLETED]), await active(types=[GIVEN_UP])
    await ask("PATCH", f"/webhooks/{endpoint['id']}", {"state": "paused"})
    with monkeypatch.context() as patience:
        patience.setattr(reporter, "OLDEST", 3600)  # however slowly the receipts come, they make three batches, and not more letters than are on a page
        id = await answered("c", *(f"d{n}" for n in range(250)))
    await until(lambda: server.webhooks.courier.outboxes[endpoint["id"]].waiting == 251)
    await ask("PATCH", f"/webhooks/{endpoint['id']}", {"state": "active"})
    told = await in_state(endpoint["id"], "disabled")
    assert "500" in told["trouble"]
    await until(lambda: other.got)
    (said,) = other.notices()
    assert (said["type"], said["data"]["webhook"], "500" in said["data"]["trouble"]) == (GIVEN_UP, endpoint["id"], True)
    while (told := await get(f"/webhooks/{endpoint['id']}"))["queued"]:
        await asyncio.sleep(0.01)
    await server.store.settle()
    told = await get(f"/webhooks/{endpoint['id']}")
    page = await get(f"/webhooks/{endpoint['id']}/dead?limit=1")
    assert (len(page["dead"]), page["dead"][0]["type"] in (RECEIPTS, COMPLETED)) == (1, True)
    rest = await get(f"/webhooks/{endpoint['id']}/dead?after={page['after']}")
    letters = page["dead"] + rest["dead"]
    assert (rest["after"], told["dead"]) == (None, sum(letter["count"] for letter in letters))
    assert all(orjson.dumps(letter["body"]) for letter in letters)
    target = f"/webhooks/{endpoint['id']}/replay"
    assert (await ask("POST", target)).error == (409, "webhook_disabled")
    if kind == "sqlite":
        await server.stop()
        await hooked(kind)
        assert (await get(f"/webhooks/{endpoint['id']}"))["dead"] == told["dead"]
    there.answers = [204]
    there.got.clear()
    await ask("PATCH", f"/webhooks/{endpoint['id']}", {"state": "active"})
    await in_state(endpoint["id"], "active")
    assert (await ask("POST", target, {"ids": ["1-1"]})).error == (404, "unknown_notice")
    assert (await ask("POST", target, {"since": "yesterday"})).error == (400, "bad_since")
    assert (await ask("POST", target, {"ids": []})).error == (400, "bad_replay")
    assert (await ask("POST", target, {"until": "2020-01-01T00:00:00Z"})).json == {"replayed": 0}
    assert (await ask("POST", target, {"ids": [letters[0]["id"]]})).json == {"replayed": 1}
    assert (await ask("POST", target, {"since": "2020-01-01T00:00:00Z"})).json == {"replayed": len(letters) - 1}
    await until(lambda: len(there.notices()) == len(letters))
    assert {said["id"] for said in there.notices()} == {letter["webhook_id"] for letter in letters}
    assert there.receipts() == [(id, f"d{n}", "processed") for n in range(250)]
    assert (await get(f"/webhooks/{endpoint['id']}/dead"))["dead"] == []
    caplog.clear()


@MEMORY_AND_REDIS
async def test_two_replays_at_once_send_everything_once(hooked, active, answered, until, in_state, monkeypatch, caplog):
    monkeypatch.setattr(outbox, "SLICE", 1)
    server = await hooked()
    there, endpoint = await active(410, types=[COMPLETED])
    box = server.webhooks.courier.outboxes[endpoint["id"]]
    await paused(server, endpoint)
    ids = [await answered("c") for _ in range(3)]
    await server.webhooks.change(endpoint["id"], {"state": "active"})
    await until(lambda: len(box.dead) == 3)
    there.answers = [204]
    there.got.clear()
    await server.webhooks.change(endpoint["id"], {"state": "active"})
    await in_state(endpoint["id"], "active")
    names = sorted(box.dead)
    await asyncio.gather(box.replay(names[:1]), box.replay(names))
    await until(lambda: len(there.notices()) == 3 and not box.waiting)
    assert sorted(said["data"]["id"] for said in there.notices()) == sorted(ids)
    assert (box.dead, box.dead_count, len(there.got)) == ({}, 0, 4), "and the one that asks whether it is there"
    caplog.clear()


@MEMORY_AND_REDIS
async def test_gone_is_gone(hooked, active, answered, in_state, caplog, get):
    server = await hooked()
    register(server, "c", "d")
    there, endpoint = await active(410, types=[COMPLETED])
    await answered("c", "d")
    await in_state(endpoint["id"], "disabled")
    await answered("c", "d")
    assert len(there.got) == 1
    while (await get(f"/webhooks/{endpoint['id']}"))["dead"] != 1:
        await asyncio.sleep(0.01)
    caplog.clear()


@MEMORY_AND_REDIS
async def test_a_notice_that_fails_alone_does_not_hold_up_the_others(hooked, receiver, add, in_state, answered, until, caplog, get):
    server = await hooked()
    register(server, "c", "d")
    there = receiver()
    endpoint = await add(there.url, types=[COMPLETED])
    await in_state(endpoint["id"], "active")
    poison = await answered("c", "d")
    await until(lambda: there.notices())
    there.got.clear()
    bad = []

    class Picky(list):
        def __getitem__(self, place):
            return 422 if bad and bad[-1] in there.got[-1][1] else 204

    there.answers = Picky([204])
    bad.append(b'"bad.channel"')
    register(server, "bad.channel", "d")
    await answered("bad.channel", "d")
    ids = []
    for _ in range(10):
        ids.append(await answered("c", "d"))
    await until(lambda: {said["data"]["id"] for said in there.notices()} >= set(ids))
    while (await get(f"/webhooks/{endpoint['id']}"))["dead"] != 1:
        await asyncio.sleep(0.01)
    assert (await get(f"/webhooks/{endpoint['id']}"))["state"] == "active"
    assert poison not in ids
    caplog.clear()


@STORES
async def test_what_has_no_room_is_counted_and_told(hooked, active, answered, feedback, until, monkeypatch, kind, ask, get, measured):
    monkeypatch.setattr(outbox, "MAX_QUEUED", 5)
    monkeypatch.setattr(notices, "BATCH", 5)
    monkeypatch.setattr(reporter, "BATCH", 5)
    server = await hooked(kind)
    register(server, "c", *(f"d{n}" for n in range(12)))
    there, endpoint = await active(types=[RECEIPTS])
    await ask("PATCH", f"/webhooks/{endpoint['id']}", {"state": "paused"})
    monkeypatch.setattr(reporter, "OLDEST", 3600)  # however slowly the receipts come, only full batches go
    id = await answered("c", *(f"d{n}" for n in range(10)))
    box = server.webhooks.courier.outboxes[endpoint["id"]]
    await until(lambda: box.waiting == 5 and box.lost == 5)
    monkeypatch.setattr(reporter, "OLDEST", 0)
    for device in ("d10", "d11"):
        assert (await feedback("c", device, id)).status == 200
    await until(lambda: box.waiting == 5 and box.lost == 7)
    assert (await get(f"/webhooks/{endpoint['id']}"))["dropped"] == 7
    assert (await measured())["pere_webhook_dropped_total"] == 7
    assert there.got == []
    await ask("PATCH", f"/webhooks/{endpoint['id']}", {"state": "active"})
    await until(lambda: not box.waiting)
    await answered("c", "d0")
    await until(lambda: len(there.receipts()) == 6)
    assert sum(said["data"].get("dropped", 0) for said in there.notices()) == 7
    assert there.receipts()[:5] == [(id, f"d{n}", "processed") for n in range(5)]


@STORES
async def test_with_an_endpoint_goes_all_that_was_for_it(hooked, active, answered, until, ask, kind, caplog):
    server = await hooked(kind)
    register(server, "c", "d")
    there, endpoint = await active(500, types=[RECEIPTS, COMPLETED])
    await answered("c", "d")
    await until(lambda: there.got)
    await ask("DELETE", f"/webhooks/{endpoint['id']}")
    await until(lambda: not server.webhooks.courier._chores)
    await server.store.settle()
    assert [server.store.names(kind) for kind in ("notice", "dead", "webhook", "webhook-state", "webhook-cursor")] == [[]] * 5
    caplog.clear()


@MEMORY_AND_REDIS
async def test_what_happens_while_an_endpoint_is_not_verified_yet_waits_for_it(hooked, receiver, add, answered, until, in_state):
    server = await hooked()
    register(server, "c", "d")
    there = receiver(500, 500, 204)
    endpoint = await add(there.url, types=[RECEIPTS, COMPLETED])
    id = await answered("c", "d")
    await in_state(endpoint["id"], "active")
    await until(lambda: len(there.notices()) == 2)
    assert there.receipts() == [(id, "d", "processed")]


@KEPT
async def test_a_type_that_is_asked_for_later_is_told_from_then_on(hooked, active, answered, until, ask, kind):
    server = await hooked(kind)
    register(server, "c", "d")
    there, endpoint = await active(types=[GIVEN_UP])
    await answered("c", "d")
    await ask("PATCH", f"/webhooks/{endpoint['id']}", {"types": [RECEIPTS]})
    second = await answered("c", "d")
    await until(lambda: there.got)
    assert there.receipts() == [(second, "d", "processed")]


@MEMORY_AND_REDIS
async def test_the_disk_may_refuse_for_a_while(hooked, active, answered, until, caplog):
    server = await hooked()
    register(server, "c", "d")
    there, endpoint = await active(types=[RECEIPTS, COMPLETED])
    put_away, refused = server.store.put_away, []

    def refusing(kind, name, document, then):
        refused.append(name)
        then(Unavailable("store_failed", "no"))

    server.store.put_away = refusing
    id = await answered("c", "d")
    await until(lambda: len(refused) > 6)
    assert there.got == []
    server.store.put_away = put_away
    await until(lambda: len(there.notices()) == 2)
    assert there.receipts() == [(id, "d", "processed")]
    await until(lambda: not server.webhooks.courier.outboxes[endpoint["id"]].waiting)
    caplog.clear()


def refusing(store, until_count: int = 1 << 30):
    """The store refuses all that is put away, so many times; returns the names."""
    put_away, refused = store.put_away, []

    def refuse(kind, name, document, then):
        if len(refused) >= until_count:
            return put_away(kind, name, document, then)
        refused.append(name)
        then(Unavailable("store_failed", "the disk is full, says the test", retry_after=5))

    store.put_away = refuse
    return refused


@MEMORY_AND_REDIS
async def test_what_cannot_be_deleted_is_not_asked_for_more_and_more_often(hooked, active, answered, until):
    server = await hooked()
    register(server, "c", "d")
    there, endpoint = await active(types=[COMPLETED])
    outboxes = server.webhooks.courier.outboxes
    await paused(server, endpoint)
    await answered("c", "d")
    await until(lambda: outboxes[endpoint["id"]].waiting)
    refused = refusing(server.store)
    server.webhooks._endpoints[endpoint["id"]].state = "active"
    server.webhooks.courier.go(outboxes[endpoint["id"]])
    await until(lambda: there.got)
    await asyncio.sleep(0.6)
    assert len(refused) < 20
    await until(lambda: len(refused) > 2)  # it goes on asking
    del server.store.put_away
    await until(lambda: server.store.names("notice") == [])


@MEMORY_AND_REDIS
async def test_an_endpoint_that_could_not_be_kept_disturbs_nobody(hooked, active, answered, ask, until, receiver):
    server = await hooked()
    register(server, "c", "d")
    there, endpoint = await active(types=[COMPLETED])
    refused = refusing(server.store, 6)
    answer = asyncio.ensure_future(ask("POST", "/webhooks", {"url": receiver().url}))
    await until(lambda: refused)
    server.webhooks.on_change()
    assert (await answer).error == (503, "store_failed")
    id = await answered("c", "d")
    await until(lambda: there.got)
    assert [said["data"]["id"] for said in there.notices()] == [id]


@MEMORY_AND_REDIS
async def test_the_many_notices_of_some_do_not_keep_the_others_waiting(hooked, active, answered, until, monkeypatch):
    monkeypatch.setattr(courier, "MAX_ALL", 4)
    server = await hooked()
    busy = [await active(types=[COMPLETED]) for _ in range(3)]
    late, _ = await active(types=[COMPLETED], channels=["rare"])
    for _, endpoint in busy:
        for n in range(200):
            server.webhooks.courier.outboxes[endpoint["id"]].tell(Packed.of(notice(COMPLETED, "/", {"id": str(n)}, 0.0)))
    await answered("rare")
    since = asyncio.get_running_loop().time()
    await until(lambda: late.got)
    assert sum(since < at < late.at[-1] for there, _ in busy for at in there.at) < 100


@KEPT
async def test_two_that_are_gone_at_once_leave_nothing_behind(hooked, active, answered, in_state, until, get, caplog, kind):
    server = await hooked(kind)
    there, endpoint = await active(410, types=[SATISFIED, COMPLETED])
    await paused(server, endpoint)
    for _ in range(5):
        await answered("c")
    await until(lambda: server.webhooks.courier.outboxes[endpoint["id"]].waiting == 10)
    await server.webhooks.change(endpoint["id"], {"state": "active"})
    await in_state(endpoint["id"], "disabled")
    while (told := await get(f"/webhooks/{endpoint['id']}"))["queued"]:
        await asyncio.sleep(0.01)
    assert told["dead"] == 10
    assert len(there.got) <= 2
    assert told["trouble"] == "it is gone (410)"
    await server.store.settle()
    assert (len(server.store.names("dead")), server.store.names("notice")) == (10, [])
    caplog.clear()


@MEMORY_AND_REDIS
async def test_who_says_to_a_test_that_it_is_gone_is_given_up_with_all_that_waits_for_it(hooked, active, answered, ask, until, get, caplog):
    server = await hooked()
    (there, endpoint), (other, _) = await active(410, types=[COMPLETED]), await active(types=[GIVEN_UP])
    await paused(server, endpoint)
    await answered("c")
    there.answers = [500]
    await ask("PATCH", f"/webhooks/{endpoint['id']}", {"state": "active"})
    await until(lambda: there.got)
    there.answers = [410]
    assert (await ask("POST", f"/webhooks/{endpoint['id']}/test")).json["state"] == "disabled"
    await until(lambda: other.got)
    while (await get(f"/webhooks/{endpoint['id']}"))["dead"] != 1:
        await asyncio.sleep(0.01)
    # It was given up, so it has to answer before it is believed, whatever it is set to between.
    there.answers = [500]
    for state, is_now in (("paused", "paused"), ("active", "pending")):
        assert (await ask("PATCH", f"/webhooks/{endpoint['id']}", {"state": state})).json["state"] == is_now
    caplog.clear()


@MEMORY_AND_REDIS
async def test_what_an_old_address_answers_too_late_is_of_no_interest(hooked, receiver, active, ask, answered, in_state, until, get):
    await hooked()
    there, endpoint = await active(410, types=[COMPLETED])
    elsewhere, held = receiver(), asyncio.Event()
    take = there.take

    def wait(request):
        asyncio.get_running_loop().create_task(held.wait()).add_done_callback(lambda _: take(request))

    there.take = wait
    id = await answered("c")
    await asyncio.sleep(0.1)
    await ask("PATCH", f"/webhooks/{endpoint['id']}", {"url": elsewhere.url})
    await in_state(endpoint["id"], "active")
    held.set()
    await until(lambda: elsewhere.notices())
    assert [said["data"]["id"] for said in elsewhere.notices()] == [id]
    assert (await get(f"/webhooks/{endpoint['id']}"))["state"] == "active"


@MEMORY_AND_REDIS
async def test_who_is_changed_while_it_is_greeted_is_verified_all_the_same(hooked, receiver, add, ask, in_state):
    await hooked()
    there, held = receiver(), asyncio.Event()
    take = there.take
    there.take = lambda request: asyncio.get_running_loop().create_task(held.wait()).add_done_callback(lambda _: take(request))
    endpoint = await add(there.url)
    await asyncio.sleep(0.1)
    await ask("POST", f"/webhooks/{endpoint['id']}/rotate")
    held.set()
    await in_state(endpoint["id"], "active")


@MEMORY_AND_REDIS
async def test_what_was_read_and_not_told_when_it_was_given_up_is_with_the_rest(hooked, active, answered, until, get, in_state, monkeypatch, caplog):
    monkeypatch.setattr(reporter, "OLDEST", 5.0)
    server = await hooked()
    register(server, "c", "d1", "d2")
    there, endpoint = await active(410, types=[RECEIPTS, COMPLETED])
    (tail,) = server.reporter._tails
    await paused(server, endpoint)
    await answered("c", "d1", "d2")
    await until(lambda: len(tail.frames) == 2)
    await server.webhooks.change(endpoint["id"], {"state": "active"})
    await in_state(endpoint["id"], "disabled")
    while (await get(f"/webhooks/{endpoint['id']}"))["dead"] != 3:
        await asyncio.sleep(0.01)
    caplog.clear()


async def test_a_commit_that_fails_when_nothing_is_tried_later_any_more_takes_nothing(hooked, active, push, until, caplog):
    server = await hooked("sqlite")
    register(server, "c", "d")
    there, _ = await active(types=[COMPLETED])
    id, resign, told = await push("c"), server._resign, []

    def next_one(refusal: Unavailable | None) -> None:
        told.append(refusal)
        server.store.put_away("number", "small", b"1", told.append)

    async def resign_and_answer(seconds: float = 0.0) -> None:
        await resign(seconds)
        # It goes into the commit of the notice, which has just been put away; and SQLite takes no such number. The commit after that is a good one.
        server.store.record("c", "d", parse_id(id), PROCESSED, None, lambda *answer: server.store.put_away("number", "large", 1 << 70, next_one), print)

    server._resign = resign_and_answer
    await server.stop()
    assert [type(each) for each in told] == [Unavailable, type(None)]
    await hooked("sqlite")
    await until(lambda: there.got)
    assert [said["data"]["id"] for said in there.notices()] == [id]
    caplog.clear()


async def test_a_mistake_where_it_is_told_what_became_of_an_event_keeps_no_receipt_from_being_answered(hooked, active, push, feedback, caplog):
    server = await hooked("sqlite")
    register(server, "c", "d", "e")
    await active(types=[SATISFIED, COMPLETED])
    ids = [await push("c", to=device) for device in ("d", "e")]
    server.reporter._tell = lambda *what: 1 / 0
    answers = await asyncio.gather(*[feedback("c", device, id) for device, id in zip(("d", "e"), ids, strict=True)])
    assert [answer.status for answer in answers] == [200, 200] and caplog.text.count("ZeroDivisionError") >= 2
    caplog.clear()


@KEPT
async def test_a_refusal_that_comes_just_before_the_end_takes_nothing(hooked, active, answered, until, kind):
    server = await hooked(kind)
    there, endpoint = await active(types=[COMPLETED])
    refusing(server.store, 1)
    id = await answered("c")
    await server.stop()
    await hooked(kind)
    await until(lambda: there.got)
    assert [said["data"]["id"] for said in there.notices()] == [id]
