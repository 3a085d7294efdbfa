"""`pere store` on Redis: what real nodes have put there, looked at by a process of its own while they go on."""

import asyncio
import time
from collections.abc import Awaitable
from subprocess import CompletedProcess
from typing import Any

import orjson
import pytest
from processes import SECONDS, pere
from redises import RedisServer
from test_redis import join, push, say

from pere.config import Config
from pere.event import format_id
from pere.receipt import FAILED
from pere.storage import keeper
from pere.storage.redis import RedisStore


@pytest.fixture
def redis(tmp_path):
    with RedisServer(tmp_path) as redis:
        yield redis


@pytest.fixture
def lived(redis, io_loop, monkeypatch):
    """`store, ids = await lived()`: a node to which something has happened, part of which is kept and part only in the log."""
    monkeypatch.setattr(keeper, "KEEP_EVERY", 1e9)
    monkeypatch.setattr(keeper, "KEEP_ANYWAY", 1e9)
    stores: list[RedisStore] = []

    async def lived() -> tuple[RedisStore, list[int]]:
        stores.append(RedisStore(Config(backlog_events=3), time.time, redis.url))
        await stores[0].begin()
        return stores[0], await live(stores[0])

    yield lived
    for store in stores:
        io_loop.run_sync(store.close, timeout=SECONDS)


async def live(store: RedisStore) -> list[int]:
    await join(store, "c", "d1", "d2")
    ids = [(await push(store, data=b"%d" % number)).id for number in range(3)]
    await say(store, "d1", ids[1], status=b'"fine"')
    await store._keeper.keep(False, is_last=True)
    ids.append((await push(store, data=b"3")).id)
    ids.append((await push(store, "e", data=b"text", is_json=False)).id)
    await say(store, "d2", ids[1], FAILED)
    return ids


def looked(*arguments: str) -> Awaitable[CompletedProcess[str]]:
    """Beside the node, which goes on meanwhile: for as long as a busy machine may take it would be taken for dead."""
    return asyncio.to_thread(pere, "store", *arguments)


async def told(verb: str, url: str, *flags: str) -> list[Any]:
    found = await looked(verb, url, *flags)
    assert (found.returncode, found.stderr) == (0, ""), found
    return [orjson.loads(line) for line in found.stdout.splitlines()]


async def test_what_is_in_redis_is_shown_while_nodes_use_it(redis, lived):
    store, ids = await lived()
    (found,) = await told("stats", redis.url, "--json")
    assert {name: found[name] for name in ("events", "channels", "devices", "registrations", "receipts", "outstanding")} == {
        "events": 4, "channels": 2, "devices": 2, "registrations": 2, "receipts": 2, "outstanding": 4}
    assert (found["oldest"]["id"], found["newest"]["id"]) == (format_id(ids[1]), format_id(ids[-1]))
    assert (found["log"]["newest"], found["log"]["not_kept"]) == (store._log.taken, store._log.taken - store._keeper.kept.n)
    assert found["log"]["not_kept"] > 0
    assert [(node["node"], node["is_keeper"]) for node in found["nodes"]] == [(store.node, True)]
    assert found["bytes"] == sum(key["bytes"] for key in found["keys"].values()) > 0
    shown = (await looked("stats", redis.url)).stdout
    assert f"{store.node} (keeper)" in shown and "pere:events" in shown


async def test_all_of_it_is_taken_out_line_by_line(redis, lived):
    store, ids = await lived()
    lines = await told("export", redis.url)
    assert [(line["channel"], line["data"]) for line in lines if line["kind"] == "event"] == [("c", 1), ("c", 2), ("c", 3), ("e", "text")]
    assert [(line["event_id"], line["device"], line["state"], line["status"]) for line in lines if line["kind"] == "receipt"] == [
        (format_id(ids[1]), "d1", "processed", "fine"), (format_id(ids[1]), "d2", "failed", None)]
    assert [line["data"] for line in await told("export", redis.url, "--channel", "e*", "--events")] == ["text"]
    assert [line["data"] for line in await told("export", redis.url, "--after", format_id(ids[2]))] == [3, "text"]


async def test_what_was_thrown_away_behind_our_back_is_found(redis, lived):
    store, ids = await lived()
    found = await looked("check", redis.url)
    assert (found.returncode, found.stdout) == (0, f"{redis.url} is sound\n"), found
    await store.close()
    assert redis.ask("HDEL", "pere:columns", f"c {ids[2]}") == b":1"
    found = pere("store", "check", redis.url)
    assert (found.returncode, f"events: {format_id(ids[2])} asks for receipts, but has no entry" in found.stdout) == (1, True), found
    assert redis.ask("DEL", "pere:channels") == b":1"
    found = pere("store", "check", redis.url)
    assert (found.returncode, "what is kept cannot be read" in found.stdout) == (1, True), found


def test_what_cannot_be_looked_at_is_said_without_the_password(redis):
    for url, why in ((redis.url, "nothing of PERE is there"), (f"redis://user:secret@127.0.0.1:{redis.port}/0", "invalid username-password pair")):
        found = pere("store", "stats", url)
        assert (found.returncode, why in found.stderr, "secret" in found.stderr) == (2, True, False), found
    assert "Redis gives space back by itself" in pere("store", "compact", redis.url).stderr
