"""SIGHUP: what is read again, what holds at once, and what is said of the rest; and that nothing is changed by what is wrong."""

import logging
import os
import pty
import re
import signal
from dataclasses import replace

import pytest
import wire
from managing import Notices
from minting import SECRET, token
from processes import Process, Served

from pere.config import Config, flag, types
from pere.reloading import LIVE
from pere.server import Server
from test_house import section


class Said:
    """What the settings are said to be."""

    def __init__(self, **said):
        self.config = Config(**{"port": 0, "store": "memory:"} | said)

    def read(self) -> Config:
        return self.config

    def change(self, **said) -> None:
        self.config = replace(self.config, **said)


@pytest.fixture
def said(start, caplog):
    """`server, change = await said(max_feeds=1)`, then `change(max_feeds=2)`: the line that is logged then."""

    async def said(**settings):
        reading = Said(**settings)
        server = Server(reading.config.but({}), layers=reading)
        await server.start()
        start.servers.append(server)

        def change(**settings) -> dict[str, str]:
            reading.change(**settings)
            with caplog.at_level(logging.INFO, "pere"):
                server.reload()
            last = caplog.records[-1]
            return {"said": last.getMessage(), **last.facts}

        return server, change

    return said


def test_every_setting_that_holds_at_once_is_one_and_is_in_the_readme():
    assert types().keys() >= LIVE
    told = re.findall(r"`(--[a-z-]+)`", section("Reloading"))
    assert sorted({*told} - {"--config"}) == sorted(map(flag, LIVE))


async def test_what_holds_at_once_does_and_the_rest_is_named(said, ask):
    server, change = await said(max_event_bytes=10)
    assert (await ask("POST", "/push/c", b'"1234567890"')).error == (413, "large_body")
    assert change(max_event_bytes=100, backlog_events=5, retry=9.0) == {"said": "reloaded", "changed": "--max-event-bytes", "needs_restart": "--retry,--backlog-events"}
    assert (await ask("POST", "/push/c", b'"1234567890"')).status == 201
    assert (server.config.max_event_bytes, server.config.backlog_events) == (100, 1000)
    assert change() == {"said": "reloaded", "needs_restart": "--retry,--backlog-events"}, "until it was started again"
    assert change(backlog_events=1000, retry=3.0) == {"said": "reloaded"}


async def test_the_description_says_the_new_settings(said, ask):
    _, change = await said()

    async def usual() -> int:
        return (await ask("GET", "/openapi.json")).json["components"]["schemas"]["Push"]["properties"]["ttl"]["default"]

    assert await usual() == 86400
    change(ttl=60)
    assert await usual() == 60


async def test_a_connection_that_was_known_is_looked_at_again(said, connect, push):
    """A receipt like the last one on its connection needs no parser, and would be read under the old limits for ever."""
    server, change = await said(limits_exempt="", peer_receipts="0")
    ids = [await push("c", n, to=["d"]) for n in range(4)]
    line = await connect()

    async def answered(id: str) -> int:
        await line.send(wire.said("POST", "/feedback/c", b"", {"Device": "d", "Last-Event-ID": id}))
        return (await line.answer()).status

    assert [await answered(id) for id in ids[:2]] == [200, 200]
    change(peer_receipts="0.001/1000")
    assert await answered(ids[2]) == 200
    change(peer_receipts="0.001/1", max_batch=1)
    assert await answered(ids[3]) == 429


async def test_what_is_recognised_may_be_no_longer_than_the_new_settings_allow(said, connect, push):
    _, change = await said(max_status_bytes=1024)
    ids = [await push("c", n, to=["d"]) for n in range(3)]
    line = await connect()

    async def answered(id: str, length: int) -> int:
        await line.send(wire.said("POST", "/feedback/c", b'{"status":1}'.ljust(length), {"Device": "d", "Last-Event-ID": id, "Content-Type": "application/json"}))
        return (await line.answer()).status

    assert [await answered(ids[0], 12), await answered(ids[1], 17_000)] == [200, 200]
    assert await answered(ids[1], 12) == 200
    change(max_status_bytes=16)
    assert await answered(ids[2], 17_000) == 413


async def test_limits_of_feeds_and_rates_hold_for_who_comes_next(said, listen, ask):
    server, change = await said(max_feeds=1)
    first = await listen("c")
    assert (await ask("GET", "/feed/c")).error == (503, "too_many_feeds")
    change(max_feeds=2, limits_exempt="", peer_pushes="0.001/1000")
    await listen("c")
    assert len(server.hub.feeds) == 2 and not first.is_whole
    assert (await ask("POST", "/push/c", b"1")).status == 201
    change(peer_pushes="0.001/1", max_batch=1)
    assert {(await ask("POST", "/push/c", b"1")).status for _ in range(3)} >= {429}


async def test_who_comes_next_is_told_the_heartbeats_that_come_by_now(said, listen):
    """By these a client tells a connection that is dead: were they longer than it is told, it would give up each that is silent."""
    _, change = await said(heartbeat=20.0)
    assert (await listen("c")).hello["heartbeat"] == 20.0
    change(heartbeat=60.0)
    assert (await listen("c")).hello["heartbeat"] == 60.0


async def test_origins_are_others_at_once(said, ask):
    server, change = await said()
    headers = {"Origin": "https://a.example"}
    for target in ("/events/c", "/feed/a%20b"):
        assert "access-control-allow-origin" not in (await ask("GET", target, **headers)).headers
    change(cors_origins="https://a.example")
    for target in ("/events/c", "/feed/a%20b"):
        answer = await ask("GET", target, **headers)
        assert (answer.headers["access-control-allow-origin"], answer.headers["vary"]) == ("https://a.example", "Origin")
    change(cors_origins="")
    assert "access-control-allow-origin" not in (await ask("GET", "/feed/a%20b", **headers)).headers


async def test_a_secret_is_exchanged_and_tokens_of_the_old_one_are_good_no_more(said, ask):
    server, change = await said(jwt_secret=SECRET)
    old, new = token(push=["**"]), token(push=["**"], key="another secret of thirty-two bytes")
    assert [(await ask("GET", "/events/c", Authorization=f"Bearer {each}")).status for each in (old, new)] == [200, 401]
    told = change(jwt_secret="another secret of thirty-two bytes")
    assert told == {"said": "reloaded", "changed": "--jwt-secret"}, "and not what it is"
    assert [(await ask("GET", "/events/c", Authorization=f"Bearer {each}")).status for each in (old, new)] == [401, 200]


async def test_whether_there_are_keys_at_all_is_no_matter_of_a_moment(said, ask):
    server, change = await said()
    assert change(jwt_secret=SECRET) == {"said": "reloaded", "needs_restart": "--jwt-secret"}
    assert (await ask("GET", "/events/c")).status == 200


@pytest.mark.parametrize("wrong", [{"peer_pushes": "many"}, {"trusted_proxies": "here"}, {"jwt_secret": "short"}, {"jwt_public_key": "there/is/none"}])
async def test_where_anything_is_wrong_nothing_is_changed(said, ask, caplog, wrong):
    server, change = await said(jwt_secret=SECRET)
    told = change(max_to=7, **wrong)
    assert (told["said"], "--" in told["error"]) == ("not reloaded", True)
    caplog.clear()
    assert server.config.max_to == Config().max_to
    assert (await ask("GET", "/events/c", Authorization=f"Bearer {token(push=['**'])}")).status == 200


# As a process


def test_a_server_reads_its_file_again(tmp_path):
    path = tmp_path / "pere.toml"
    path.write_text('max_event_bytes = 10\nlog_level = "info"\nmax_to = 5')
    with Notices(str(tmp_path / "n")) as manager, Served("--config", str(path), "--max-to", "6", NOTIFY_SOCKET=manager.path) as server:
        assert manager.next()["READY"] == "1"
        path.write_text('max_event_bytes = 20\nlog_level = "debug"\nlog_format = "json"\nmax_to = 7\nport = 1')
        server._popen.send_signal(signal.SIGHUP)
        assert manager.next().keys() == {"RELOADING", "MONOTONIC_USEC"}
        assert manager.next() == {"READY": "1"}
        assert server.until('"message":"reloaded".*')[0].endswith('"changed":"--max-event-bytes,--log-level,--log-format"}'), "the flags win over the file"
        path.write_text("max_event_bytes = yes")
        server._popen.send_signal(signal.SIGHUP)
        assert "is not TOML" in server.until('"not reloaded".*')[0]
        assert server.end(signal.SIGTERM) == 0


def test_who_is_started_at_a_terminal_ends_when_that_is_closed():
    ours, theirs = pty.openpty()

    class Typed(Process):
        stdin = theirs

    with Typed("serve", "--port", "0", "--store", "memory:") as server:
        os.close(theirs)
        server.until("listening")
        server._popen.send_signal(signal.SIGHUP)
        server.until("reloaded")
        os.close(ours)
        server._popen.send_signal(signal.SIGHUP)
        assert server.end() == 0
