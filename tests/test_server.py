"""The server as a whole: how it begins, what it keeps doing by itself, and how it ends."""

import asyncio
import socket

import pytest
import wire

from pere.config import Config
from pere.errors import ConfigError
from pere.server import Server
from pere.storage.memory import MemoryStore


class Careful(MemoryStore):
    """A store that is sure of an event or a receipt only when it is told to be, as one with a disk is."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.waiting = []

    def append(self, draft, then):
        super().append(draft, lambda accepted: self.waiting.append(lambda: then(accepted)))

    def record_many(self, receipts, then):
        super().record_many(receipts, lambda answers: self.waiting.append(lambda: then(answers)))

    def commit(self):
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each()


# The beginning


async def test_a_server_takes_a_free_port_and_says_which(start):
    server = await start()
    assert server.url == f"http://127.0.0.1:{server.port}"
    assert (await wire.request(server.port, "GET", "/")).status == 200


async def test_a_server_may_listen_by_ipv6(start):
    try:
        server = await start(host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert server.url == f"http://[::1]:{server.port}"
    reader, writer = await asyncio.open_connection("::1", server.port)
    writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert (await reader.read()).endswith(b'{"status":"alive"}')
    writer.close()
    await writer.wait_closed()


async def test_a_port_that_is_taken_is_an_error_of_the_system(start):
    server = await start()
    second = Server(Config(store="memory:", port=server.port))
    with pytest.raises(OSError):
        await second.start()


async def test_a_store_that_there_is_not_is_said_at_once():
    with pytest.raises(ConfigError, match="--store"):
        Server(Config(store="papyrus:"))


async def test_two_servers_on_one_loop_know_nothing_of_each_other(start, push):
    first, second = await start(), await start()
    feed = await wire.listen(first.port, "c")
    await push("c", "to the second")
    await wire.push(first.port, "c", "to the first")
    assert (await feed.event()).data == "to the first"
    assert (first.store.events, second.store.events) == (1, 1)
    feed.close()


# By itself


async def test_events_expire_by_themselves(start, listen, push, until, get):
    server = await start()
    await listen("c", device="d")
    id = await push("c", ttl=0)
    await until(lambda: not server.store.ledger.outstanding)
    assert (await get(f"/events/c/{id}"))["counts"]["expired"] == 1


async def test_a_slow_head_is_answered_408_while_others_are_served(start, connect, get):
    await start(head_timeout=0.1)
    slow = await connect()
    await slow.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
    assert (await slow.answer()).error == (408, "slow_request")
    assert await slow.rest() == b""
    assert await get("/healthz") == {"status": "alive"}


# Browsers


@pytest.mark.parametrize("target, methods", [
    ("/push/c", "POST, OPTIONS"), ("/push", "POST, OPTIONS"), ("/feedback/c", "POST, OPTIONS"), ("/feedback", "POST, OPTIONS"),
    ("/feed/c", "GET, HEAD, OPTIONS"), ("/feed", "GET, HEAD, OPTIONS"), ("/events/c", "GET, HEAD, OPTIONS"), ("/metrics", "GET, HEAD, OPTIONS"),
    ("/admin/devices/d", "GET, HEAD, DELETE, OPTIONS"), ("/admin/connections", "GET, HEAD, OPTIONS"), ("/", "GET, HEAD, OPTIONS")])
async def test_a_preflight_is_answered_on_every_route(start, ask, target, methods):
    await start(cors_origins="https://a.example")
    answer = await ask("OPTIONS", target, Origin="https://a.example", Access_Control_Request_Method="POST", Access_Control_Request_Headers="device")
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, "https://a.example")
    assert answer.headers["allow"] == answer.headers["access-control-allow-methods"] == methods
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {"device", "last-event-id", "last_event_id", "content-type", "idempotency-key", "authorization"} <= set(allowed)


@pytest.mark.parametrize("method, target", [
    ("POST", "/push/c"), ("POST", "/push"), ("POST", "/feedback/c"), ("POST", "/feedback"), ("GET", "/feed/a%20b"), ("GET", "/events/c"),
    ("GET", "/nothing"), ("GET", "/admin/connections"), ("PUT", "/push/c")])
@pytest.mark.parametrize("origin, allowed", [("https://a.example", "https://a.example"), ("https://b.example", None), ("null", None)])
async def test_every_answer_even_a_refusal_tells_a_browser_whether_it_may_read_it(start, ask, method, target, origin, allowed):
    await start(cors_origins="https://a.example")
    answer = await ask(method, target, Origin=origin)
    assert answer.headers.get("access-control-allow-origin") == allowed
    assert "Origin" in answer.headers["vary"]


async def test_without_configured_origins_nothing_is_said_to_browsers(ask):
    for target in ("/events/c", "/feed/a%20b"):
        answer = await ask("GET", target, Origin="https://a.example")
        assert not [name for name in answer.headers if name.startswith("access-control")]


# The end


async def test_nothing_is_taken_after_the_end(start):
    server = await start()
    await server.stop()
    with pytest.raises(OSError):
        await wire.Wire.open(server.port)


async def test_an_idle_connection_is_closed_at_the_end(start, connect):
    server = await start()
    line = await connect()
    await line.send(wire.said("GET", "/healthz"))
    await line.answer()
    await server.stop()
    assert await line.rest() == b""


async def test_a_request_that_had_begun_is_still_answered_and_told_that_the_server_is_not_ready(start, connect, until):
    server = await start()
    lines = [await connect() for _ in range(2)]
    for line in lines:
        await line.send(b"GET /readyz HTTP/1.1\r\nHost: x\r\n")
    await until(lambda: sum(connection._in_head for connection in server.door.connections) == 2)
    stopping = asyncio.ensure_future(server.stop())
    await asyncio.sleep(0)
    for line in lines:
        await line.send(b"\r\n")
        answer = await line.answer()
        assert (answer.error, answer.headers["connection"]) == ((503, "not_ready"), "close")
        assert await line.rest() == b""
        line.close()
    await stopping


async def test_what_is_under_way_is_answered_before_the_end(start, connect, until):
    config = Config(port=0)
    server = await start(Careful(config))
    lines = [await connect() for _ in range(3)]
    for n, line in enumerate(lines):
        await line.send(wire.said("POST", "/push/c", str(n).encode()))
    await until(lambda: len(server.store.waiting) == 3)
    stopping = asyncio.ensure_future(server.stop())
    await asyncio.sleep(0.05)
    assert not stopping.done()
    server.store.commit()
    for line in lines:
        answer = await line.answer()
        assert (answer.status, answer.headers["connection"]) == (201, "close")
        assert await line.rest() == b""
        line.close()
    await stopping


async def test_what_is_not_answered_in_time_is_cut(start, connect, until):
    server = await start(Careful(Config(port=0)), drain_seconds=0.1)
    line = await connect()
    await line.send(wire.said("POST", "/push/c", b"1"))
    await until(lambda: server.store.waiting)
    await server.stop()
    assert await line.rest() == b""
    server.store.commit()


async def test_an_answer_comes_only_when_the_store_is_sure(start, connect, until, listen):
    server = await start(Careful(Config(port=0)))
    feed = await listen("c", device="d")
    line = await connect()
    await line.send(wire.said("POST", "/push/c", b"1"))
    id = (await feed.event()).id
    assert len(server.store.waiting) == 1
    for _ in range(3):
        server.store.commit()
        assert (await line.answer()).status in (200, 201)
        await line.send(wire.said("POST", "/feedback/c", b"", {"Device": "d", "Last-Event-ID": id}))
        await until(lambda: server.store.waiting)
        assert [told async for told in _soon(line)] == []
    server.store.commit()
    assert (await line.answer()).json["duplicate"] is True


async def _soon(line: wire.Wire):
    """What has arrived by now."""
    await asyncio.sleep(0.02)
    try:
        yield line.sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        pass


async def test_a_client_that_went_away_before_its_answer_hurts_nobody(start, connect, until, get):
    server = await start(Careful(Config(port=0)))
    line = await connect()
    await line.send(wire.said("POST", "/push/c", b"1") * 2)
    await until(lambda: server.store.waiting)
    line.reset()
    await until(lambda: not server.door.connections)
    server.store.commit()
    assert (await get("/healthz"))["status"] == "alive"


async def test_the_batch_is_answered_when_the_store_is_sure_of_every_item(start, connect, until):
    server = await start(Careful(Config(port=0)))
    line = await connect()
    body = b'[{"channel":"c","data":1},{"channel":"a b","data":2},{"channel":"c","data":3}]'
    await line.send(wire.said("POST", "/push", body))
    await until(lambda: len(server.store.waiting) == 2)
    first, last = server.store.waiting
    last()
    assert [told async for told in _soon(line)] == []
    first()
    answer = await line.answer()
    assert ["id" in told for told in answer.json["results"]] == [True, False, True]
    assert answer.json["results"][0]["id"] < answer.json["results"][2]["id"]


async def test_a_server_may_be_stopped_twice_and_before_it_ever_listened(start):
    server = await start()
    await server.stop()
    await server.stop()
    never = Server(Config(store="memory:", port=0))
    await never.stop()
