"""Tokens that are taken back: at once, for the feeds that are open too, and over every end of the server."""

import asyncio
import socket
import time

import pytest
import wire
from minting import SECRET, bearer, token

from pere import search
from pere.config import Config
from pere.errors import Unavailable
from pere.event import RAW
from pere.parts import open_store
from pere.search import Search
from pere.storage.memory import MemoryStore
from pere.successor import Taking


@pytest.fixture(params=["memory:", "sqlite"])
def kept(request, start, tmp_path):
    """`server = await kept()`: a server with keys; after a stop, the same file again."""

    async def kept(**config):
        store = request.param if request.param == "memory:" else f"sqlite:{tmp_path / 'pere.db'}"
        config = {"jwt_secret": SECRET, "jwt_leeway": 0.0} | config
        return await start(open_store(Config(store=store, **config)), **config)

    return kept


ROOT = {"admin": True, "expires": 30}


async def revoke(server, name: str) -> int:
    return (await wire.request(server.port, "DELETE", f"/admin/devices/{name}?revoke=true", **bearer("root", **ROOT))).status


async def opened(server, target: str, text: str) -> wire.Feed:
    feed = wire.Feed((await wire.Wire.open(server.port)).sock)
    await feed.start(target, {"Authorization": f"Bearer {text}"})
    await feed.control("pere.hello")
    return feed


async def get(server, target: str, text: str) -> wire.Answer:
    return await wire.request(server.port, "GET", target, Authorization=f"Bearer {text}")


@pytest.mark.parametrize("before", [-1.0, 1.0])
async def test_a_feed_of_receipts_whose_token_was_taken_back_before_another_process_handed_it_over_or_on_the_way_ends(start, before):
    server = await start(jwt_secret=SECRET)
    ours, theirs = socket.socketpair()
    taking = Taking(server.store, server.hub, server.followers, server.gate, server.outlets, server.verifier.revoked)
    now = server.store.clock()
    server.verifier.revoke("p", now)
    taking.follower([RAW, "c", 0, None, True, "p", now + 600, None, ""], await taking.open(ours), now + before)
    theirs.settimeout(10)
    assert b'"reason":"kicked"' in theirs.recv(10_000)
    theirs.close()


async def test_a_token_that_was_taken_back_opens_nothing_and_its_feeds_end(kept):
    server = await kept()
    text = token("d", feed=["c"], push=["c"], issued=-10)
    other = token("other", feed=["c"], push=["c"], issued=-10)
    mine = [await opened(server, target, text) for target in ("/feed/c", "/feed?channel=c&channel=c", "/receipts/c")]
    theirs = [await opened(server, target, other) for target in ("/feed/c", "/receipts/c")]
    assert await revoke(server, "d") == 204
    for feed in mine:
        assert (await feed.control("pere.bye"))["reason"] == "kicked"
        assert await feed.end() == []
        feed.close()
    assert (await get(server, "/events/c", text)).error == (401, "revoked_token")
    assert (await get(server, "/events/c", other)).status == 200
    assert len(server.hub.feeds) == server.followers.count == 1
    for feed in theirs:
        feed.close()


async def test_a_token_that_is_taken_back_while_its_feed_is_being_opened_opens_nothing(kept, monkeypatch):
    server = await kept()
    for number in range(4):
        server.store.open(f"c.{number}")
    monkeypatch.setattr(search, "PIECE", 1)
    step = Search.step

    def meanwhile(self: Search) -> bool:
        server.verifier.revoke("d", time.time())
        return step(self)

    monkeypatch.setattr(Search, "step", meanwhile)
    assert (await get(server, "/feed?channel=c.*", token("d", feed=["c.*"], issued=-10))).error == (401, "revoked_token")
    assert not server.hub.feeds
    assert "d" not in server.store.devices.known


async def test_a_token_that_is_minted_afterwards_is_good(kept):
    server = await kept()
    text = token("d", push=["c"], issued=0)
    assert await revoke(server, "d") == 204
    assert (await get(server, "/events/c", text)).error == (401, "revoked_token")
    # `iat` is of whole seconds: only the next one is surely later.
    server.store.clock = lambda: time.time() + 2
    server.guard._clock = server.store.clock
    assert (await get(server, "/events/c", token("d", push=["c"], issued=2))).status == 200


async def test_a_publisher_that_was_never_a_device_can_be_revoked(kept):
    server = await kept()
    assert (await wire.request(server.port, "DELETE", "/admin/devices/shop", **bearer("root", **ROOT))).error == (404, "unknown_device")
    text = token("shop", push=["c"], issued=-10)
    assert (await get(server, "/events/c", text)).status == 200
    assert await revoke(server, "shop") == 204
    assert (await get(server, "/events/c", text)).error == (401, "revoked_token")


async def test_to_forget_a_device_is_not_to_revoke_its_tokens(kept):
    server = await kept()
    text = token("d", feed=["c"], push=["c"], issued=-10)
    (await opened(server, "/feed/c", text)).close()
    for query in ("", "?revoke=false"):
        assert (await wire.request(server.port, "DELETE", f"/admin/devices/d{query}", **bearer("root", **ROOT))).status in (204, 404)
    assert (await get(server, "/events/c", text)).status == 200


async def test_what_is_neither_true_nor_false_is_refused(kept, start, ask):
    server = await kept()
    for said in ("", "yes"):
        assert (await wire.request(server.port, "DELETE", f"/admin/devices/d?revoke={said}", **bearer("root", **ROOT))).error == (400, "bad_revoke")
    await start()
    assert (await ask("DELETE", "/admin/devices/d?revoke=true")).error == (400, "bad_revoke")


async def test_a_revocation_outlives_the_server(kept, request):
    server = await kept()
    text = token("d", push=["c"], issued=-10)
    assert await revoke(server, "d") == 204
    await server.stop()
    server = await kept()
    is_kept = "sqlite" in request.node.name
    assert (await get(server, "/events/c", text)).status == (401 if is_kept else 200)


async def test_a_revocation_is_forgotten_when_every_such_token_has_expired(kept, until):
    server = await kept(jwt_max_age=60)
    assert await revoke(server, "d") == 204
    assert await revoke(server, "e") == 204
    await server.store.settle()
    assert server.store.names("revoked") == ["d", "e"]
    server.revocations.due(0.0)
    assert set(server.verifier.revoked) == {"d", "e"}
    server.store.clock = lambda: time.time() + 61
    server.revocations.due(0.0)
    assert server.verifier.revoked == {}
    await server.store.settle()
    await until(lambda: server.store.names("revoked") == [])


class Full(MemoryStore):
    """One that can keep nothing more."""

    def put_away(self, kind, name, document, then):
        asyncio.get_running_loop().call_soon(then, Unavailable("store_failed", "no room is left on the disk"))


async def test_a_revocation_that_cannot_be_kept_is_said_not_to_be_and_holds_meanwhile(start):
    server = await start(Full(Config(store="memory:")), jwt_secret=SECRET)
    text = token("d", push=["c"], issued=-10)
    assert await revoke(server, "d") == 503
    assert (await get(server, "/events/c", text)).error == (401, "revoked_token")
