"""Endpoints over HTTP, and real receivers that verify what they are sent with the library of Standard Webhooks."""

import asyncio

import orjson
import pytest
from redises import KEPT, MEMORY_AND_REDIS
from standardwebhooks.webhooks import Webhook

from pere import courier as module
from pere.courier import BACKOFF, wait_after

STORES = pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])


@STORES
async def test_an_endpoint_is_active_once_it_has_answered(hooked, receiver, add, in_state, get, kind):
    await hooked(kind)
    there = receiver()
    made = await add(there.url, types=["pere.receipt.batch"], channels=["orders.*"])
    assert (made["state"], made["url"], made["types"], made["channels"]) == ("pending", there.url, ["pere.receipt.batch"], ["orders.*"])
    told = await in_state(made["id"], "active")
    assert (told["trouble"], "secret" in told) == (None, False)
    ((headers, body),) = there.got
    assert Webhook(made["secret"]).verify(body, headers) == orjson.loads(body)
    said = orjson.loads(body)
    assert (said["specversion"], said["type"], said["id"], said["source"]) == ("1.0", "pere.webhook.verify", headers["webhook-id"], f"/webhooks/{made['id']}")
    assert (headers["content-type"], said["data"]["webhook"]) == ("application/json", made["id"])
    assert (await get("/webhooks"))["webhooks"] == [told]


@MEMORY_AND_REDIS
async def test_what_is_not_said_has_a_default(hooked, receiver, add):
    await hooked()
    made = await add(receiver().url)
    assert (made["types"], made["channels"], made["content_type"]) == (["pere.event.completed", "pere.event.expired"], [], "application/json")


@MEMORY_AND_REDIS
async def test_an_endpoint_that_fails_is_asked_again_with_the_same_bytes(hooked, receiver, add, in_state, monkeypatch):
    monkeypatch.setattr(module, "BACKOFF", (0.02,) * 10)
    await hooked()
    there = receiver(500, 302, 204)
    made = await add(there.url, content_type="application/cloudevents+json")
    await in_state(made["id"], "active")
    assert len({headers["webhook-id"] for headers, _ in there.got}) == len({body for _, body in there.got}) == 1
    assert [headers["content-type"] for headers, _ in there.got] == ["application/cloudevents+json"] * 3


async def test_what_is_wrong_with_an_endpoint_is_told(hooked, receiver, add, get, until):
    await hooked()
    there = receiver(500)
    made = await add(there.url)
    await until(lambda: there.got)
    while (told := await get(f"/webhooks/{made['id']}"))["trouble"] is None:
        await asyncio.sleep(0.005)
    assert (told["state"], "500" in told["trouble"]) == ("pending", True)


@MEMORY_AND_REDIS
async def test_an_endpoint_that_is_gone_is_asked_no_more(hooked, receiver, add, in_state, caplog):
    await hooked()
    there = receiver(410)
    made = await add(there.url)
    await in_state(made["id"], "disabled")
    assert len(there.got) == 1
    caplog.clear()


@MEMORY_AND_REDIS
async def test_who_gives_up_says_so_and_tries_again_when_it_is_asked(hooked, receiver, add, in_state, ask, monkeypatch, caplog, until):
    monkeypatch.setattr(module, "BACKOFF", (0.01,) * 2)
    await hooked()
    there = receiver(500, 500, 500, 204)
    made = await add(there.url)
    await until(lambda: "given up" in caplog.text)
    assert len(there.got) == 3
    caplog.clear()
    assert (await ask("PATCH", f"/webhooks/{made['id']}", {"state": "active"})).json["state"] == "pending"
    await in_state(made["id"], "active")


@KEPT
async def test_a_restart_forgets_nothing_and_goes_on_asking(hooked, receiver, add, in_state, get, kind):
    server = await hooked(kind)
    good, bad = receiver(), receiver(503)
    first = await add(good.url)
    second = await add(bad.url)
    await in_state(first["id"], "active")
    while (await get(f"/webhooks/{second['id']}"))["trouble"] is None:
        await asyncio.sleep(0.005)
    await server.stop()
    bad.answers = [200]
    await hooked(kind)
    await in_state(second["id"], "active")
    assert [each["id"] for each in (await get("/webhooks"))["webhooks"]] == [first["id"], second["id"]]
    headers, body = bad.got[-1]
    Webhook(second["secret"]).verify(body, headers)
    assert len(good.got) == 1


@STORES
async def test_both_secrets_sign_for_a_day(hooked, receiver, add, in_state, ask, kind):
    server = await hooked(kind)
    there = receiver()
    made = await add(there.url)
    await in_state(made["id"], "active")
    rotated = (await ask("POST", f"/webhooks/{made['id']}/rotate")).json
    assert (await ask("POST", f"/webhooks/{made['id']}/rotate")).error == (409, "rotating")
    assert (await ask("POST", f"/webhooks/{made['id']}/test")).json["answered"] is True
    headers, body = there.got[-1]
    for secret in (made["secret"], rotated["secret"]):
        Webhook(secret).verify(body, headers)
    now = server.store.clock()
    server.store.clock = lambda: now + 86_401
    await ask("POST", f"/webhooks/{made['id']}/test")
    assert len(there.got[-1][0]["webhook-signature"].split()) == 1
    server.store.clock = lambda: now


@STORES
async def test_who_is_paused_and_resumed_need_not_prove_itself_again_and_who_has_moved_must(hooked, receiver, add, in_state, ask, kind):
    await hooked(kind)
    there, elsewhere = receiver(), receiver()
    made = await add(there.url)
    await in_state(made["id"], "active")
    assert (await ask("PATCH", f"/webhooks/{made['id']}", {"state": "paused"})).json["state"] == "paused"
    assert (await ask("PATCH", f"/webhooks/{made['id']}", {"state": "active"})).json["state"] == "active"
    assert (await ask("PATCH", f"/webhooks/{made['id']}", {"types": ["pere.event.satisfied"]})).json["types"] == ["pere.event.satisfied"]
    assert len(there.got) == 1
    assert (await ask("PATCH", f"/webhooks/{made['id']}", {"url": elsewhere.url})).json["state"] == "pending"
    await in_state(made["id"], "active")
    assert (len(there.got), len(elsewhere.got)) == (1, 1)


@MEMORY_AND_REDIS
async def test_who_was_paused_before_it_answered_is_not_resumed_unverified(hooked, receiver, add, ask, in_state, until):
    await hooked()
    there = receiver(500)
    made = await add(there.url)
    await until(lambda: there.got)  # else what it is asked now may come after it has changed its mind
    assert (await ask("PATCH", f"/webhooks/{made['id']}", {"state": "paused"})).json["state"] == "paused"
    there.answers = [200]
    assert (await ask("PATCH", f"/webhooks/{made['id']}", {"state": "active"})).json["state"] == "pending"
    await in_state(made["id"], "active")


@STORES
async def test_a_removed_endpoint_is_gone_for_good(hooked, receiver, add, ask, get, kind):
    server = await hooked(kind)
    made = await add(receiver().url)
    assert (await ask("DELETE", f"/webhooks/{made['id']}")).status == 204
    for method, target in [("GET", ""), ("DELETE", ""), ("PATCH", ""), ("POST", "/rotate"), ("POST", "/test")]:
        assert (await ask(method, f"/webhooks/{made['id']}{target}", {} if method != "GET" else b"")).error == (404, "unknown_webhook")
    assert (await get("/webhooks"))["webhooks"] == []
    assert server.store.documents("webhook") == {}


async def test_changes_at_the_same_time_take_nothing_from_each_other(hooked, receiver, add, in_state, ask):
    await hooked("sqlite")
    there = receiver()
    made = await add(there.url)
    await in_state(made["id"], "active")
    rotated, *_ = await asyncio.gather(ask("POST", f"/webhooks/{made['id']}/rotate"), ask("PATCH", f"/webhooks/{made['id']}", {"channels": ["a"]}),
                                       ask("PATCH", f"/webhooks/{made['id']}", {"types": ["pere.receipt.batch"]}))
    told = (await ask("GET", f"/webhooks/{made['id']}")).json
    assert (told["channels"], told["types"]) == (["a"], ["pere.receipt.batch"])
    await ask("POST", f"/webhooks/{made['id']}/test")
    Webhook(rotated.json["secret"]).verify(there.got[-1][1], there.got[-1][0])


@MEMORY_AND_REDIS
async def test_there_are_only_so_many(hooked, receiver, ask):
    await hooked(max_webhooks=2)
    there = receiver()
    answers = await asyncio.gather(*(ask("POST", "/webhooks", {"url": there.url}) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [201, 201, 429, 429, 429]
    assert {answer.error for answer in answers if answer.status == 429} == {(429, "too_many_webhooks")}


@pytest.mark.parametrize("said, code", [
    ({}, "bad_webhook_url"), ({"url": "http://127.0.0.1/"}, "insecure_webhook_url"), ({"url": "https://127.0.0.1/"}, "inside_address"),
    ({"url": "https://[::ffff:10.0.0.1]/"}, "inside_address"), ({"url": "https://user:word@example.com/"}, "bad_webhook_url"),
    ({"url": "https://2130706433/"}, "bad_webhook_url"), ({"url": "https://example.com/", "secret": "x"}, "unknown_field"),
    ({"url": "https://example.com/", "types": []}, "bad_webhook_types"), ([1], "bad_json"),
])
async def test_what_cannot_be_is_refused_and_nothing_is_kept(start, ask, get, said, code):
    await start()
    assert (await ask("POST", "/webhooks", said)).error == (400, code)
    assert (await get("/webhooks"))["webhooks"] == []


async def test_what_an_endpoint_cannot_be_set_to_is_refused(hooked, receiver, add, ask):
    await hooked()
    made = await add(receiver().url)
    for said, code in [({"state": "disabled"}, "bad_webhook_state"), ({"state": 1}, "bad_webhook_state"), ({"secret": "x"}, "unknown_field"),
                       ({"url": "ftp://x"}, "bad_webhook_url")]:
        assert (await ask("PATCH", f"/webhooks/{made['id']}", said)).error == (400, code)


def test_waits_grow_each_between_half_and_whole_and_end():
    for failures, whole in enumerate(BACKOFF, 1):
        waits = [wait_after(failures, None) for _ in range(100)]
        assert whole / 2 <= min(waits) <= max(waits) <= whole
    assert wait_after(len(BACKOFF) + 1, None) is None
    assert wait_after(1, 100.0) == 100.0
    assert wait_after(1, 1e9) == 3600.0
