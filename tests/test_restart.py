"""A server that ends, and one that follows it: sockets that are handed over, feeds that come back as a trickle, and nobody who notices."""

import asyncio
import json
import os
import signal
import socket
import threading
import time

import pytest
import uvloop
import wire
from managing import Managed, Notices
from processes import SECONDS, Process, Served, free_port, pere
from redises import needed

from bench.handing import listening
from bench.load import restart
from pere import drain, systemd
from pere.config import Config
from pere.drain import Drain
from pere.errors import ConfigError
from pere.feed import DRAIN
from pere.storage.memory import MemoryStore


# How feeds are let go


class Open:
    """A feed that can only be closed."""

    def __init__(self, all: list["Open"]):
        self.all = all
        self.told = self.retry = None
        all.append(self)

    def close(self, reason: str, last: bytes) -> None:
        self.all.remove(self)
        self.at = asyncio.get_running_loop().time()
        self.reason, self.retry = reason, json.loads(last.split(b"data: ")[1])["retry"]
        assert last.startswith(b"retry: %d\n" % round(self.retry * 1000))


def drained(count: int, retry: float, seconds: float, has_others: bool) -> tuple[Drain, list[Open]]:
    feeds: list[Open] = []
    for _ in range(count):
        Open(feeds)
    return Drain(lambda: iter(feeds), lambda: len(feeds), retry, seconds, has_others), feeds


async def test_alone_all_leave_at_once_and_are_told_to_come_back_over_as_long_as_so_many_take():
    going, feeds = drained(10_000, 3.0, 60.0, has_others=False)
    all = tuple(feeds)
    await going.let_go()
    assert (going.closed, going.left, feeds) == (10_000, 0, [])
    back = sorted(feed.retry for feed in all)
    assert {feed.reason for feed in all} == {DRAIN}
    assert 3.0 <= back[0] < 3.1 and 7.9 < back[-1] <= 8.0, "2,000 a second, after the usual time"
    assert len([each for each in back if each < 5.5]) == pytest.approx(5_000, abs=300)


async def test_with_other_nodes_they_leave_one_after_the_other_and_come_back_at_once():
    began = asyncio.get_running_loop().time()
    going, feeds = drained(100, 3.0, 0.5, has_others=True)
    all = tuple(feeds)
    await going.let_go()
    # However slow the machine is, none is before its time: the nth leaves after n / 200 s.
    assert all[-1].at - began > 0.4
    assert all[0].at <= all[50].at <= all[-1].at and all[50].at - began > 0.2
    assert max(feed.retry for feed in all) <= 0.15


async def test_few_leave_in_no_time_however_long_it_may_take():
    going, feeds = drained(3, 3.0, 3600.0, has_others=True)
    await going.let_go()
    assert (feeds, going.closed, 3500 < going.seconds_left < 3600) == ([], 3, True)


# What a server does at its end


async def test_while_it_only_says_that_it_ends_all_goes_on(start, listen, connect, push, ask, measured):
    server = await start(drain_delay=30.0)
    feed = await listen("c", device="d")
    line = await connect()
    stopping = asyncio.ensure_future(server.stop())
    await asyncio.sleep(0)
    answer = await ask("GET", "/readyz")
    assert answer.error == (503, "not_ready")
    assert (await measured())["pere_draining"] == 1
    id = await push("c", "still")
    assert (await feed.event()).data == "still"
    late = await listen("c", device="e")
    await line.send(wire.said("POST", "/feedback/c", b"", {"Device": "d", "Last-Event-ID": id}))
    answer = await line.answer()
    assert (answer.json, answer.headers["connection"]) == ({"state": "processed", "duplicate": False}, "close")
    late.close()
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    await server.listeners.close()  # the end of the test need not wait


class Shared(MemoryStore):
    """A store of which another node serves the same."""

    async def has_others(self) -> bool:
        return True


async def test_pushes_and_receipts_are_answered_while_feeds_are_let_go(start, connect, until, monkeypatch):
    monkeypatch.setattr(drain, "FEW", 0.0)
    server = await start(Shared(Config(port=0)), drain_seconds=3600.0)
    feeds = [await wire.listen(server.port, "c", device=f"d{n}") for n in range(20)]
    publisher, device = await connect(), await connect()
    for line in (publisher, device):
        await line.send(wire.said("GET", "/healthz"))
        await line.answer()
    stopping = asyncio.ensure_future(server.stop())
    await until(lambda: server._collector.drain)
    server._collector.drain._began -= 3600 / 20  # in which one of them leaves
    await until(lambda: len(server.hub.feeds) == 19)
    await publisher.send(wire.said("POST", "/push/c", b"1"))
    id = (await publisher.answer()).json["id"]
    await device.send(wire.said("POST", "/feedback/c", b"", {"Device": "d19", "Last-Event-ID": id}))
    assert (await device.answer()).json["state"] == "processed"
    server.hub.drain()  # all the others at once: the test need not wait
    assert [event.event for event in await feeds[19].end()] == ["message", "pere.bye"]
    await stopping
    assert server.hub.closes[DRAIN] == 20
    for line in feeds:
        line.close()


async def test_who_waits_to_be_accepted_is_served_before_the_socket_goes(start):
    """A listening socket that is closed resets those in its queue, which the kernel has told that they are connected."""
    server = await start()
    visitors = []
    for _ in range(50):
        visitor = socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
        visitor.sendall(wire.said("GET", "/healthz"))
        visitors.append(visitor)
    # Nothing was awaited, so nobody was accepted yet.
    assert not server.door.connections
    await server.listeners.close()
    for visitor in visitors:
        visitor.setblocking(False)
        assert (await asyncio.get_running_loop().sock_recv(visitor, 65536)).startswith(b"HTTP/1.1 200 OK\r\n")
        visitor.close()
    with pytest.raises(ConnectionRefusedError):
        await wire.Wire.open(server.port)


async def test_who_comes_in_the_place_of_each_that_is_taken_does_not_keep_it_from_ending(start, monkeypatch):
    monkeypatch.setattr("pere.listening.BACKLOG", 8)
    server = await start()
    most, came = 100, []

    class Crowd(asyncio.Protocol):
        def connection_made(self, transport):
            transport.abort()
            come()

    def come():
        if len(came) < most:
            came.append(None)
            socket.create_connection(("127.0.0.1", server.port)).close()

    listener, = server.listeners._open
    monkeypatch.setattr(listener, "_meet", Crowd)
    for _ in range(4):
        come()
    # Nothing was awaited, so nobody was accepted yet.
    await server.listeners.close()
    assert 8 < len(came) < most


async def test_who_has_just_come_and_not_spoken_yet_is_heard(start, connect, until, monkeypatch):
    monkeypatch.setattr("pere.http1.GRACE", 3600.0)
    server = await start()
    fresh, known = await connect(), await connect()
    await known.send(wire.said("GET", "/healthz"))
    await known.answer()
    await until(lambda: len(server.door.connections) == 2)
    stopping = asyncio.ensure_future(server.stop())
    assert await known.rest() == b""
    await fresh.send(wire.said("POST", "/push/c", b"1"))
    answer = await fresh.answer()
    assert (answer.status, answer.headers["connection"], await fresh.rest()) == (201, "close", b"")
    fresh.close()
    await stopping


async def test_what_was_said_and_not_read_yet_is_answered(start, connect):
    server = await start()
    line = await connect()
    await line.send(wire.said("GET", "/healthz"))
    await line.answer()
    line.sock.send(wire.said("POST", "/push/c", b"1"))
    server.door.drain()  # in the same turn of the loop
    assert ((await line.answer()).status, await line.rest()) == (201, b"")


async def test_webhooks_under_way_are_waited_for(hooked, receiver, add, in_state, push, until):
    server = await hooked(drain_seconds=10)
    there = receiver()
    endpoint = await add(there.url, types=["pere.event.completed"])
    await in_state(endpoint["id"], "active")
    held, take = [], there.take
    there.take = held.append
    await push("c", 1)
    await until(lambda: held)
    stopping = asyncio.ensure_future(server.stop())
    await until(lambda: not server.webhooks.is_leading)
    assert not stopping.done()
    take(held[0])
    await stopping
    assert len(there.notices("pere.event.completed")) == 1 and server.webhooks.courier.posts["ok"] == 1


def test_a_second_signal_ends_it_at_once():
    with Served("--drain-delay", "600") as server:
        server._popen.send_signal(signal.SIGTERM)
        server.until("ending")
        assert server.end(signal.SIGTERM) == 1
        assert "stopping at once" in server.err


# Sockets that are handed in


def handed(*sockets: socket.socket, pid: int | None = None, names: str = "") -> dict[str, str]:
    return {"LISTEN_PID": str(pid or os.getpid()), "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": names}


@pytest.fixture
def unix(tmp_path):
    made = listening(socket.AF_UNIX, str(tmp_path / "s"))
    yield made
    made.close()


def test_what_is_for_another_process_is_left_alone(tcp):
    for environ in (handed(tcp, pid=1), {}, {"LISTEN_PID": str(os.getpid())}, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}):
        assert systemd.inherited(environ) == {}
        assert not environ.keys() & {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}


def test_the_settings_say_then_where_it_listens(tcp, unix):
    port = tcp.getsockname()[1]
    config, taken = systemd.adopted(Config(port=1, unix="elsewhere", reuse_port=True), {"pere": [tcp]})
    assert (config.host, config.port, config.tcp, config.unix, config.reuse_port) == ("127.0.0.1", port, True, "", False)
    assert taken == {"tcp": [tcp]}
    config, taken = systemd.adopted(Config(), {"pere": [unix], "admin": [tcp]})
    assert (config.tcp, config.unix, config.admin_host, config.admin_port) == (False, unix.getsockname(), "127.0.0.1", port)
    assert taken == {"unix": [unix], "admin": [tcp]}
    assert systemd.adopted(Config(), {}) == (Config(), {})


@pytest.mark.parametrize("names", [["a", "b"], ["admin"]])
def test_more_than_it_has_a_use_for_is_refused(tcp, unix, names):
    sockets = {"a": [tcp], "b": [tcp]} if len(names) == 2 else {"admin": [unix]}
    with pytest.raises(ConfigError, match="^LISTEN_FDS hands in "):
        systemd.adopted(Config(), sockets)


def test_a_socket_that_others_can_reach_needs_keys_as_an_address_does():
    with listening(address=("0.0.0.0", 0)) as open_to_all:
        with pytest.raises(ConfigError, match="--insecure"):
            systemd.adopted(Config(), {"pere": [open_to_all]})
        assert systemd.adopted(Config(insecure=True), {"pere": [open_to_all]})[0].exposed == "--host 0.0.0.0"


def test_a_server_serves_on_the_sockets_that_it_was_handed(tcp, unix):
    with listening() as admin, Managed([tcp, admin, unix], "serve", "--store", "memory:", names="pere:admin:pere") as server:
        server.until("listening")
        public, private = (f"http://127.0.0.1:{each.getsockname()[1]}" for each in (tcp, admin))
        assert f"url={public},unix:{unix.getsockname()},{private}" in server.err
        for url in (public, f"unix:{unix.getsockname()}", private):
            assert pere("push", "c", "1", "--url", url).returncode == 0
        assert server.end(signal.SIGTERM) == 0
    assert os.path.exists(unix.getsockname()), "it is not ours to remove"


def test_what_does_not_listen_is_refused():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as handed_in, Managed([handed_in], "serve", "--store", "memory:") as server:
        assert server.end() == 2
        assert server.err == "pere: LISTEN_FDS=1, and the socket unknown does not listen for streams\n"


# One after the other


def pushed(port: int, said: list) -> None:
    """Push one event, however long it takes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        line.sendall(wire.said("POST", "/push/c", b"1", {"Connection": "close"}))
        said.append(line.makefile("rb").read())


def test_whoever_connects_while_no_process_is_there_waits_and_is_not_refused(tmp_path, tcp):
    store, port, said = f"sqlite:{tmp_path / 'pere.db'}", tcp.getsockname()[1], []
    with Managed([tcp], "serve", "--store", store) as first:
        first.until("listening")
        pushed(port, said)
        assert first.end(signal.SIGTERM) == 0
    waiting = threading.Thread(target=pushed, args=(port, said))
    waiting.start()
    with Managed([tcp], "serve", "--store", store) as second:
        waiting.join(SECONDS)
        assert [answer.split(b" ", 2)[1] for answer in said] == [b"201", b"201"]
        assert second.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("how", ["handed over", "shared"])
def test_who_follows_another_waits_for_its_file_while_its_socket_takes_connections(tmp_path, tcp, how):
    store, port, said = f"sqlite:{tmp_path / 'pere.db'}", tcp.getsockname()[1] if how == "handed over" else free_port(), []

    def one() -> Process:
        return Managed([tcp], "serve", "--store", store) if how == "handed over" else Process("serve", "--port", str(port), "--reuse-port", "--store", store)

    with one() as first:
        first.until("listening")
        with one() as second:
            second.until("waiting for the store because=.* is in use by another process")
            pushing = [threading.Thread(target=pushed, args=(port, said)) for _ in range(8)]
            for each in pushing:
                each.start()
            assert first.end(signal.SIGTERM) == 0
            second.until("listening")
            for each in pushing:
                each.join(SECONDS)
            assert [answer.split(b" ", 2)[1] for answer in said] == [b"201"] * 8
            assert second.end(signal.SIGTERM) == 0


def test_a_second_server_on_a_file_that_follows_nobody_is_refused_at_once(tmp_path):
    with Served("--store", f"sqlite:{tmp_path / 'pere.db'}"):
        ended = pere("serve", "--port", "0", "--store", f"sqlite:{tmp_path / 'pere.db'}")
        assert ended.returncode == 2 and "in use by another process" in ended.stderr


def test_who_waits_for_a_file_can_be_ended(tmp_path, tcp):
    with Served("--store", f"sqlite:{tmp_path / 'pere.db'}"), Managed([tcp], "serve", "--store", f"sqlite:{tmp_path / 'pere.db'}") as second:
        second.until("waiting for the store")
        assert second.end(signal.SIGTERM) == 0


# What the manager is told


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_is_told_that_it_serves_and_that_it_ends(tmp_path, abstract):
    with Notices(f"@pere-{os.getpid()}" if abstract else str(tmp_path / "n")) as manager, Served(NOTIFY_SOCKET=manager.path) as server:
        told = manager.next()
        assert (told["READY"], told["STATUS"]) == ("1", f"listening on {server.url}")
        assert server.end(signal.SIGTERM) == 0
        assert manager.next() == {"STOPPING": "1"}


def test_a_manager_that_has_no_room_for_a_moment_hears_all_the_same_that_it_serves(tmp_path):
    with Notices(str(tmp_path / "n")) as manager:
        manager.fill()
        with Served(NOTIFY_SOCKET=manager.path) as server:
            for _ in range(2):
                time.sleep(0.5)  # so it has said it, and was not heard
                manager.until("READY")
                manager.drain()
                manager.fill()
                os.kill(server.pid, signal.SIGHUP)
            manager.until("READY")
            manager.drain()
            assert server.end(signal.SIGTERM) == 0


def test_a_manager_that_does_not_listen_is_no_reason_to_fail(tmp_path):
    with Served(NOTIFY_SOCKET=str(tmp_path / "nobody")) as server:
        assert server.end(signal.SIGTERM) == 0


# Under load


async def test_who_is_the_load_gives_up_only_what_is_refused_for_good(start, listen, until):
    server = await start(max_feeds=1, idle_timeout=3600)
    first = await listen("c")
    load = restart.Load(server.port, 1, 1.0)
    line, answers = restart.Line(load), []
    load.is_over = True  # nothing more is pushed, and what was asked is still to be answered
    for target in ("/events/c/1-0", "/healthz"):
        line.ask(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), lambda status, body: answers.append(status))
    await until(lambda: len(answers) == 2)
    assert answers == [404, 200]
    load.devices[0].come()
    await until(lambda: load.counts["cut"])
    first.close()
    await until(lambda: not load.away)
    await load.close()
    await until(lambda: not server.door.connections)


@pytest.mark.parametrize("way", ["sqlite", "overlap", "redis"])
def test_under_load_nothing_is_refused_and_nothing_is_lost(way):
    """The short form of `python -m bench.load.restart`."""
    if way == "redis":
        needed()
    found = uvloop.run(restart.measure(way, devices=200, restarts=2 if way == "overlap" else 1, per_second=40, usual=0.3, flags=("--retry", "0.2", "--drain-seconds", "1"), within=300))
    assert found["pushes"] and found["deliveries"] == 20 * found["pushes"]
    assert {name: found[name] for name in ("refused", "other answers", "lost events", "lost receipts")} == {
        "refused": 0, "other answers": 0, "lost events": 0, "lost receipts": 0}
