"""Traces: a publisher's `traceparent` goes with its event to devices and webhooks, in every store; what is not right is left out."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pere.trace import traceparent

GOOD = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("said", [
    "", "00", GOOD[:-1], GOOD + "0", GOOD + "-", GOOD + "-more", GOOD.upper(), "ff" + GOOD[2:], "0g" + GOOD[2:], " " + GOOD[1:],
    f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01", GOOD.replace("-", "_"), GOOD[:-2] + "0x",
    GOOD[:-1] + "\n", GOOD + "\n", "01" + GOOD[2:] + "x", "ff" + GOOD[2:] + "-x"])
def test_what_is_no_traceparent_is_left_out(said):
    assert traceparent(said) == ""


def test_one_that_is_right_is_passed_on_and_of_a_version_to_come_what_we_know_of_it():
    assert traceparent(GOOD) == GOOD
    assert traceparent("01" + GOOD[2:]) == traceparent("cc" + GOOD[2:] + "-what-comes") == GOOD


@given(st.text())
def test_whatever_is_said_comes_out_as_nothing_or_as_one(said):
    assert traceparent(said) in ("", said)


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_it_goes_with_the_event_to_devices_to_webhooks_and_to_whoever_asks(hooked, kind, listen, receiver, add, in_state, ask, feedback, until, get):
    server = await hooked(kind)
    there = receiver()
    await in_state((await add(there.url, types=["pere.event.completed"]))["id"], "active")
    enveloped, raw = await listen("c", device="d", format="envelope"), await listen("c", device="d")
    id = (await ask("POST", "/push/c", b"1", traceparent=GOOD)).json["id"]
    told = json.loads((await enveloped.event()).data)
    assert (told["id"], told["traceparent"], told["data"]) == (id, GOOD, 1)
    assert (await raw.event()).data == "1"
    await feedback("c", "d", id)
    await until(there.notices)
    assert [(notice["traceparent"], notice["data"]["id"]) for notice in there.notices()] == [(GOOD, id)]
    if kind != "memory":
        await server.stop()
        await hooked(kind)
    (event,) = (await get("/events/c"))["events"]
    assert (event["id"], event["traceparent"]) == (id, GOOD)


async def test_an_event_without_one_says_nothing_of_it(start, listen, ask, get):
    await start()
    feed = await listen("c", device="d", format="envelope")
    assert (await ask("POST", "/push/c", b"1", traceparent="00-nonsense")).status == 201
    assert json.loads((await feed.event()).data).keys() == {"id", "channel", "type", "time", "data", "attempt"}
    assert "traceparent" not in (await get("/events/c"))["events"][0]


async def test_each_of_many_may_have_its_own_and_has_that_of_the_request_else(start, ask, get):
    await start()
    other = GOOD.replace("4bf9", "ffff")
    items = [{"channel": "c", "data": 1}, {"channel": "c", "data": 2, "traceparent": other}, {"channel": "c", "data": 3, "traceparent": "nonsense"},
             {"channel": "c", "data": 4, "traceparent": 7}]
    assert (await ask("POST", "/push", orjson.dumps(items), traceparent=GOOD)).status == 200
    assert [event.get("traceparent") for event in (await get("/events/c"))["events"]] == [GOOD, other, None, GOOD]
