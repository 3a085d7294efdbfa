"""Every refusal for a limit is counted, whoever says it: the front door, a hot function, a handler, or one item of a batch."""

import asyncio
import gc
import re
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest
import wire
from hooks import LOCAL
from minting import SECRET, bearer

from pere import redelivery
from pere.http1 import Connection
from pere.limits import Brought

README = (Path(__file__).parent.parent / "README.md").read_text()
NO_LIMITS = {"keys_unavailable", "not_ready", "store_failed", "stuck"}  # what answers 503 because something is not there
HERE = {"limits_exempt": "", "max_batch": 1}


def documented() -> set[tuple[int, str]]:
    """The statuses and codes of the README's table that say that a limit is reached."""
    section = README.partition("### Errors")[2].partition("\n## ")[0]
    found, status = set(), 0
    for row in re.findall(r"^\|(.*)\|$", section, re.MULTILINE):
        cells = row.split("|")
        status = int(cells[0]) if cells[0].strip().isdigit() else status
        if status in (429, 503):
            found |= {(status, code) for code in re.findall("`([a-z_]+)`", cells[1])}
    return {(status, code) for status, code in found if code not in NO_LIMITS}


class Said(NamedTuple):
    """One request; `of` is the number of the push whose event it is for."""

    method: str
    target: str
    body: bytes = b""
    headers: dict[str, str] = {}
    of: int | None = None


FEED, OTHER_FEED = (Said("GET", f"/feed/{channel}", headers={"Device": "d"}) for channel in ("c", "c2"))
GET, PUSH, WEBHOOK = Said("GET", "/healthz"), Said("POST", "/push/c?to=d", b"1"), Said("POST", "/webhooks", b'{"url":"https://127.0.0.1/"}')
RECEIPT = Said("POST", "/feedback/c", headers={"Device": "d", "Last-Event-ID": "1-0"})
RETRIES = [PUSH, PUSH, *(Said("POST", "/feedback/c", b'{"state":"retry","delay":60}', {"Device": "d"}, number) for number in (0, 1))]

# What a server is told, what is asked of it, the last of which is refused, and whose limit that was.
STORIES = [
    ((429, "too_many_connects"), {"peer_connects": "0.01/1"} | HERE, [GET, GET], "client"),
    ((429, "too_many_pushes"), {"peer_pushes": "0.01/1"} | HERE, [PUSH, PUSH], "client"),
    ((429, "too_many_receipts"), {"peer_receipts": "0.01/1"} | HERE, [RECEIPT, RECEIPT], "client"),
    ((429, "too_many_requests"), {"peer_requests": "0.01/1"} | HERE, [GET, GET], "client"),
    ((429, "too_many_connections"), {"max_connections_per_peer": 1} | HERE, [FEED, GET], "client"),
    ((429, "too_many_feeds"), {"max_feeds_per_peer": 1} | HERE, [FEED, FEED], "client"),
    ((429, "too_many_registrations"), {"peer_registrations": "0.01/1"} | HERE, [FEED, OTHER_FEED], "client"),
    ((429, "too_many_registrations"), {"max_channels_per_device": 1}, [FEED, OTHER_FEED], "device"),
    ((429, "too_many_channels"), {"peer_channels": "0.01/1"} | HERE, [FEED, Said("POST", "/push/c2", b"1")], "client"),
    ((429, "too_many_retries"), {"most": "MAX_DEVICE_RETRIES"}, RETRIES, "device"),
    ((429, "too_many_webhooks"), {"max_webhooks": 1} | LOCAL, [WEBHOOK, WEBHOOK], "all"),
    ((503, "too_many_connections"), {"max_connections": 2}, [FEED, FEED, GET], "all"),
    ((503, "too_many_feeds"), {"max_feeds": 1}, [FEED, FEED], "all"),
    ((503, "too_many_devices"), {"max_devices": 1}, [FEED, OTHER_FEED], "all"),
    ((503, "too_many_channels"), {"max_channels": 1}, [FEED, Said("GET", "/feed/c2")], "all"),
    ((503, "too_many_retries"), {"most": "MAX_RETRIES"}, RETRIES, "all"),
    ((503, "busy"), {"max_held_bytes": 1024 * 1024}, [Said("POST", "/push", b" " * 2_000_000)], "all"),
    ((400, "too_many_channels"), {"max_feed_channels": 1}, [Said("GET", "/feed?channel=a&channel=b")], "request"),
    ((400, "too_many_to"), {"max_to": 1}, [Said("POST", "/push/c?to=a&to=b", b"1")], "request"),
    ((400, "large_status"), {"max_status_bytes": 1}, [Said("POST", "/feedback/c?device=d&event_id=1-0&status=no", b"")], "request"),
    ((413, "large_body"), {"max_event_bytes": 1}, [Said("POST", "/push/c", b"11")], "request"),
    ((413, "large_batch"), {"max_batch": 1}, [Said("POST", "/push", b"[1,1]")], "request"),
    ((414, "long_line"), {"max_line_bytes": 256}, [Said("GET", "/" + 300 * "x")], "request"),
    ((431, "long_headers"), {"max_header_bytes": 1024}, [Said("GET", "/", headers={"Cookie": 1100 * "x"})], "request"),
]


def test_every_code_of_the_readme_that_tells_of_a_limit_has_its_story():
    assert documented() == {refused for refused, *_ in STORIES if refused[0] in (429, 503)}


@pytest.mark.parametrize("refused, config, requests, whose", STORIES, ids=[f"{status}-{code}-{whose}" for (status, code), *_, whose in STORIES])
async def test_a_refusal_for_a_limit_is_counted_once(start, monkeypatch, refused, config, requests, whose):
    if most := (config := dict(config)).pop("most", None):
        monkeypatch.setattr(redelivery, most, 1)
    server = await start(**config)
    lines, ids, before = [], [], +server.gate.limited
    for method, target, body, headers, of in requests:
        lines.append(await wire.Wire.open(server.port))
        await lines[-1].send(wire.said(method, target, body, headers if of is None else headers | {"Last-Event-ID": ids[of]}))
        if (method, target) == FEED[:2] and len(lines) < len(requests):
            assert (await lines[-1].head()).status == 200
            continue
        answer = await lines[-1].answer()
        if answer.status == 201 and target == PUSH.target:
            ids.append(answer.json["id"])
    assert answer.error == refused
    if refused[0] in (429, 503):
        assert int(answer.headers["retry-after"]) > 0
    assert server.gate.limited - before == {(refused[1].removeprefix("too_many_"), whose): 1}
    for line in lines:
        line.close()


async def test_what_is_refused_in_a_batch_is_counted_item_by_item(start, ask):
    server = await start(max_to=1, max_status_bytes=1, max_event_bytes=3)
    items = [{"channel": "c", "data": 1, "to": ["a", "b"]}, {"channel": "c", "data": "long"}, {"channel": "c", "data": 1}]
    assert [each.get("status", 201) for each in (await ask("POST", "/push", items)).json["results"]] == [400, 413, 201]
    receipts = {"receipts": [{"event_id": "1-0", "status": "no"}, {"event_id": "1-0"}]}
    assert [each["status"] for each in (await ask("POST", "/feedback", receipts, Device="d")).json["results"]] == [400, 404]
    assert +server.gate.limited == {("to", "request"): 1, ("large_event", "request"): 1, ("large_status", "request"): 1}


@pytest.mark.parametrize("limit, asked", [
    ("subject_registrations", [Said("GET", "/feed/c", headers=bearer("d", feed=["**"])), Said("GET", "/feed/c2", headers=bearer("d", feed=["**"]))]),
    ("subject_channels", [Said("POST", f"/push/c{n}", b"1", bearer("p", push=["**"])) for n in range(2)]),
])
async def test_a_subject_brings_only_so_many_new_names_in_a_time(start, limit, asked):
    server = await start(**{"jwt_secret": SECRET, limit: "0.01/1"})
    for number, (method, target, body, headers, _) in enumerate(asked):
        line = await wire.Wire.open(server.port)
        await line.send(wire.said(method, target, body, headers))
        answer = await (line.head() if method == "GET" and not number else line.answer())
        assert answer.status == (429 if number else 200 if method == "GET" else 201)
        line.close()
    assert +server.gate.limited == {(limit.removeprefix("subject_"), "subject"): 1}


async def test_one_subject_can_follow_only_its_share_wherever_it_comes_from(start):
    server = await start(jwt_secret=SECRET, max_feeds=4)
    lines, statuses = [], []
    for subject in ("p", "p", "p", "other"):
        lines.append(await wire.Wire.open(server.port, source=f"127.0.0.{len(lines) + 1}"))
        await lines[-1].send(wire.said("GET", "/receipts/c", b"", bearer(subject, push=["c"])))
        statuses.append((await lines[-1].head()).status)
    assert statuses == [200, 200, 429, 200]
    assert +server.gate.limited == {("feeds", "subject"): 1}
    for line in lines:
        line.close()


async def test_a_batch_that_brings_more_channels_than_there_is_room_for_is_refused_as_a_whole(start, ask):
    server = await start(peer_channels="0.01/3", limits_exempt="", max_batch=10)
    items = [{"channel": f"c{n}", "data": 1} for n in range(3)]
    assert (await ask("POST", "/push", items)).status == 200
    assert (await ask("POST", "/push", items)).status == 200, "they are not new any more"
    answer = await ask("POST", "/push", [*items, {"channel": "c4", "data": 1}])
    assert answer.error == (429, "too_many_channels")
    assert sorted(server.store.channels()) == ["c0", "c1", "c2"]
    assert server.store.events == 6


async def test_devices_that_a_push_names_cost_as_much_as_pushes(start, ask):
    server = await start(peer_pushes="0.01/100", limits_exempt="", max_batch=10)
    named = [{"channel": "c", "data": 1, "to": [f"d{n}" for n in range(440)]}] * 2
    assert (await ask("POST", "/push", named)).status == 200  # 2 pushes, and 88 for 880 names
    assert (await ask("POST", "/push", named)).error == (429, "too_many_pushes")
    assert server.store.events == 2


async def test_a_batch_with_many_names_is_done_piece_by_piece_and_the_others_are_served_in_between(start, connect, get):
    server = await start(max_batch_bytes=8 * 1024 * 1024)
    batch = [{"channel": "c", "data": number, "to": [f"device-{n}" for n in range(900)]} for number in range(200)]
    big, small = await connect(), await connect()
    await big.send(wire.said("POST", "/push", orjson.dumps(batch)))
    seen = await wire.pushed_beside(small, lambda: server.store.events, 200)
    assert [result["audience"] for result in (await big.answer()).json["results"]] == [900] * 200
    assert len(set(seen)) > 10, "it was done in one piece"
    assert [event["data"] for event in (await get("/events/c?limit=1000"))["events"]] == list(range(200))


async def test_neither_a_connection_that_is_cut_nor_one_for_a_handler_leaves_anything_to_collect(start, until):
    # Thousands of them a second would be a pause of the collector of 30 ms, in which nobody is served.
    server = await start(peer_pushes="0.01/1", **HERE)

    def left():
        return [each for each in gc.get_objects() if isinstance(each, Connection)]

    gc.collect()
    gc.disable()
    try:
        wrong = Said("NONSENSE", "/"), Said("GET", "/healthz", headers={"Content-Length": "x"})
        for said in (PUSH, PUSH, PUSH), (PUSH,), *((each,) for each in (*wrong, GET, Said("GET", "/events/c"), Said("GET", "/nowhere"))):
            async with asyncio.timeout(60):
                line = await wire.Wire.open(server.port)
                await line.send(b"".join(wire.said(each.method, each.target, each.body, each.headers) for each in said))
                while (await line.answer()).status == 201:
                    pass
                line.close()
        await until(lambda: not server.door.connections)
        assert not left()
    finally:
        gc.enable()


async def test_a_subject_brings_no_more_channels_into_being_than_are_left_for_the_others(start, ask):
    server = await start(jwt_secret=SECRET, max_channels=12)
    shop, other = (bearer(who, push=["**"], feed=["**"]) for who in ("shop", "other"))

    async def push(who, channels):
        return [(await ask("POST", f"/push/{channel}", b"1", **who)).status for channel in channels]

    assert await push(shop, "abcdefgh") == [201] * 6 + [429] * 2
    refused = await ask("POST", "/push", [{"channel": name, "data": 1} for name in "axy"], **shop)
    assert refused.error == (429, "too_many_channels") and refused.headers["retry-after"] == "5"
    assert (await ask("GET", "/feed/z", **shop)).error == (429, "too_many_channels")
    assert +server.gate.limited == {("channels", "subject"): 4}
    assert await push(shop, "abcdef") == [201] * 6, "these are there"
    assert await push(other, "ghijkl") == [201] * 3 + [429] * 3
    # Another process would know only how many there are: 9 of 12.
    server.gate.brought = Brought()
    assert await push(shop, "mno") == [201] * 2 + [429]
    assert await push(other, "p") == [201]
    assert (await ask("POST", "/push/q", b"1", **bearer("third", push=["**"]))).error == (503, "too_many_channels")


async def test_a_number_bounds_what_a_subject_brings_into_being(start, ask):
    await start(jwt_secret=SECRET, max_channels_per_subject=2)
    who = bearer("shop", push=["**"])
    assert [(await ask("POST", f"/push/{channel}", b"1", **who)).status for channel in "abca"] == [201, 201, 429, 201]
