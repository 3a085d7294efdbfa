"""One process takes over from another (`--handover`): feeds and connections go on where they are, and whoever dies on the way loses nothing that was answered."""

import asyncio
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import deaths
import pytest
import uvloop
import wire
from certificates import Authority
from managing import Managed, Notices
from minting import SECRET, token
from processes import Process, pere
from redises import named, needed

from bench.handing import listening
from bench.load import restart
from pere import handover, predecessor, reporter
from pere.config import Config
from pere.gate import SPARE
from pere.handover import VERSION, Broken, Line, place_of, visit


class Server(Process):
    """One that tells its port once it serves, whatever it speaks there."""

    def __init__(self, *flags: str, **variables: str):
        super().__init__("serve", "--port", "0", *flags, **variables)
        try:
            self.port = int(self.until(r"listening url=https?://127\.0\.0\.1:(\d+)")[1])
        except BaseException:
            self.__exit__()
            raise


@contextmanager
def serving(tmp_path, kind: str = "sqlite", *flags: str, **variables: str):
    """A server, and what starts one that takes over from it."""
    if kind == "redis":
        needed()
    arguments = ("--store", named(kind, tmp_path), "--handover", str(tmp_path / "h"), *flags)
    with ExitStack() as stack:
        first = stack.enter_context(Server(*arguments, **variables))
        # One that has been followed waits there itself a moment later.
        until_it_waits(tmp_path)
        yield first, lambda *more: stack.enter_context(Server(*arguments, *more, **variables))


def until_it_waits(tmp_path) -> None:
    for _ in range(6000):
        with suppress(FileNotFoundError):
            if (tmp_path / "h").stat().st_mode & 0o777 == 0o600:  # it has its name a moment before
                return
        time.sleep(0.01)
    raise AssertionError("nobody waits there")


async def number(port: int, name: str) -> float:
    said = (await wire.request(port, "GET", "/metrics")).body.decode()
    return sum(float(each) for each in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", said, re.M))


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_feeds_of_every_kind_and_connections_go_on_where_they_are(tmp_path, kind):
    with serving(tmp_path, kind, "--unix", str(tmp_path / "u"), "--admin-port", "0", "--retry", "0.5") as (first, follow):
        port = first.port
        admin = int(re.search(r"url=\S+,http://127\.0\.0\.1:(\d+)", first.err)[1])
        raw, envelope, anonymous = [await wire.listen(port, "c.1", device="raw"), await wire.listen(port, "c.1", "c.*", device="env"), await wire.listen(port, "c.1")]
        old, unix = await wire.listen(port, "c.1", device="old", version="1.0"), await wire.listen(str(tmp_path / "u"), "c.1", device="unix")
        careful = await wire.listen(port, "c.1", device="careful", format="envelope", ack_wait=1, window=5)
        receipts = await wire.Feed.open(port)
        await receipts.start("/receipts/c.1", {})
        assert await receipts.control("pere.hello")
        feeds = [raw, envelope, anonymous, old, unix, careful]
        lines = [await wire.Wire.open(way) for way in (port, str(tmp_path / "u"), admin)]
        for line in lines:
            await line.send(wire.said("GET", "/healthz"))
            assert (await line.answer()).status == 200

        async def push(line: wire.Wire, data: str) -> str:
            await line.send(wire.said("POST", "/push/c.1", data.encode(), {"Content-Type": "text/plain"}))
            return (await line.answer()).json["id"]

        await push(lines[0], "before")
        assert {json.loads(feed.data)["data"] if feed.data.startswith("{") else feed.data for feed in [await each.event() for each in feeds]} == {"before"}
        second = follow()
        assert first.end() == 0 and second.port == port
        id = await push(lines[0], "after")
        for feed in feeds[:-1]:
            message = await feed.event()
            assert "after" in message.data and not feed.controls, message
        # What it did not answer is waited for, as before.
        sent = set()
        while not sent >= {("before", 2), ("after", 1)}:
            told = json.loads((await careful.event()).data)
            assert (told["data"], told["attempt"]) not in sent
            sent.add((told["data"], told["attempt"]))
        await lines[1].send(wire.said("POST", "/feedback/c.1", b"", {"Device": "raw", "Last-Event-ID": id}))
        assert (await lines[1].answer()).json == {"state": "processed", "duplicate": False}
        while json.loads((await receipts.event()).data)["device"] != "raw":
            pass  # where the machine is slow, what `careful` owes may have been given up before
        await lines[2].send(wire.said("GET", "/admin/connections"))
        there = (await lines[2].answer()).json
        assert there["c.1"] == 6 and there["total number"] == 6
        await lines[0].send(wire.said("GET", "/admin/connections"))
        assert (await lines[0].answer()).status == 404, "what administers is not there for who came by the public listener"
        assert await number(admin, "pere_feeds_taken_over_total") == 7
        assert second.end(signal.SIGTERM) == 0
        assert not (tmp_path / "h").exists() and not (tmp_path / "u").exists()
        for each in (*feeds, *lines, receipts):
            each.close()


async def test_a_slow_feed_is_sent_the_rest_of_what_it_was_in_the_middle_of(tmp_path):
    with serving(tmp_path, "sqlite") as (first, follow):
        slow = await wire.listen(first.port, "c", device="slow", buffer=4096)
        other = await wire.listen(first.port, "c", device="other")
        for n in range(150):
            await wire.push(first.port, "c", f"{n} " + "x" * 30_000)
            await other.event()
        assert await number(first.port, "pere_feeds_behind") == 1
        second = follow()
        assert first.end() == 0
        await wire.push(second.port, "c", "150 x")
        assert [data.split(" ")[0] for data in await slow.events(151)] == [str(n) for n in range(151)]
        assert (await other.event()).data == "150 x"
        slow.close()
        other.close()


async def test_three_in_a_row_take_over_and_nobody_notices(tmp_path):
    with serving(tmp_path, "sqlite") as (first, follow):
        feed, line, last = await wire.listen(first.port, "c", device="d"), await wire.Wire.open(first.port), first
        for n in range(3):
            following = follow()
            assert last.end() == 0
            until_it_waits(tmp_path)
            await line.send(wire.said("POST", "/push/c", b"%d" % n))
            assert (await line.answer()).status == 201
            assert (await feed.event()).data == str(n)
            last = following
        feed.close()
        line.close()


async def test_what_is_under_way_is_answered_first(tmp_path):
    with serving(tmp_path, "sqlite") as (first, follow):
        device = await wire.listen(first.port, "c", device="d")
        waiting, half, fresh, gone = [await wire.Wire.open(first.port) for _ in range(4)]
        await waiting.send(wire.said("POST", "/push/c", b"1", {"Prefer": "wait=60"}))
        assert (await device.event()).data == "1"
        request = wire.said("POST", "/push/c", b"2")
        await half.send(request[:-1])
        await gone.send(wire.said("GET", "/healthz"))
        await gone.answer()
        visitor = asyncio.get_running_loop().run_in_executor(None, follow)
        assert (await waiting.answer()).status == 201, "with what was answered until now"
        await half.send(request[-1:])
        second = await visitor
        assert first.end() == 0
        # Perhaps it came too late for that, and was cut; but never is it answered and not kept.
        try:
            kept = (await half.answer()).status == 201
        except EOFError:
            kept = False
        for line in (waiting, fresh):
            await line.send(wire.said("GET", "/healthz"))
            assert (await line.answer()).status == 200
        await wire.push(second.port, "c", 3)
        assert await device.events(2 if kept else 1) == ["2", "3"][not kept :]
        for each in (device, waiting, half, fresh, gone):
            each.close()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit, which Linux has")
async def test_as_many_connections_as_may_be_open_go_over(tmp_path):
    with serving(tmp_path) as (first, follow):
        feed = await wire.listen(first.port, "c", device="d")
        lines = [await wire.Wire.open(first.port) for _ in range(250)]
        for line in lines:
            await line.send(wire.said("GET", "/healthz"))
            assert (await line.answer()).status == 200
        # As if it had been started with so many files as it takes these connections for.
        most = len(os.listdir(f"/proc/{first.pid}/fd")) + SPARE - 20
        resource.prlimit(first.pid, resource.RLIMIT_NOFILE, (most, most))
        second = follow()
        assert first.end() == 0
        await wire.push(second.port, "c", 1)
        assert (await feed.event()).data == "1" and not feed.controls
        for line in lines:
            await line.send(wire.said("GET", "/healthz"))
            assert (await line.answer()).status == 200
            line.close()
        feed.close()


async def test_what_a_token_allows_ends_when_it_does(tmp_path):
    variables = {"PERE_JWT_SECRET": SECRET}
    with serving(tmp_path, "sqlite", "--max-feeds-per-peer", "3", "--limits-exempt", "", **variables) as (first, follow):
        keys = {"access_token": token(admin=True)}
        over = time.time() + 8
        feeds = [await wire.listen(first.port, "c", access_token=token(name, feed=["c"], push=["c"], expires=seconds)) for name, seconds in (("a", 600), ("b", 8))]
        receipts = await wire.Feed.open(first.port)
        await receipts.start("/receipts/c?access_token=" + token("p", push=["c"]), {})
        await receipts.control("pere.hello")
        second = follow()
        assert first.end() == 0
        answer = await wire.begun(second.port, "GET", "/feed/c?access_token=" + token("e", feed=["c"]))
        assert time.time() > over or answer.error == (429, "too_many_feeds"), "they count where they did"
        for name in ("a", "p"):
            await wire.request(second.port, "DELETE", f"/admin/devices/{name}?revoke=true&access_token={keys['access_token']}")
        assert [json.loads(each.data)["reason"] for feed in (feeds[0], receipts, feeds[1]) for each in await feed.end()] == ["kicked", "kicked", "expired"]
        for each in (*feeds, receipts):
            each.close()


async def test_tls_cannot_go_over_so_it_is_let_go_and_comes_to_the_next(tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.sign("one")
    with serving(tmp_path, "sqlite", "--tls-cert", certificate, "--tls-key", key, "--unix", str(tmp_path / "u"), "--retry", "0.1") as (first, follow):
        plain, secured = str(tmp_path / "u"), wire.Secure(first.port, authority.context)
        feeds = [await wire.listen(way, "c", device=f"d{n}") for n, way in enumerate((plain, secured))]
        second = follow()
        assert first.end() == 0
        assert [message.event for message in await feeds[1].end()] == ["pere.bye"]
        back = await wire.listen(wire.Secure(second.port, authority.context), "c", device="d1")
        await wire.push(plain, "c", 1)
        assert [(await feed.event()).data for feed in (feeds[0], back)] == ["1", "1"]
        for each in (*feeds, back):
            each.close()


# Who dies on the way


def follower(tmp_path) -> tuple[Line, list[socket.socket]]:
    """Somebody who has come to take over, and has been shown what is there; who then dies of what becomes of it."""
    line = visit(str(tmp_path / "h"))
    line.say({"pere": VERSION, "store": place_of(Config(store=f"sqlite:{tmp_path / 'pere.db'}"))})
    word, sockets = line.hear()
    assert [kind for kind, *_ in word["listening"]] == ["tcp"]
    word, more = line.hear()
    assert [(number, told[1]) for number, told in word["ahead"]] == [(0, "d"), (1, "")] and len(more) == 2
    assert line.hear() == ({"shown": [True]}, [])
    return line, sockets + more


async def test_a_successor_that_dies_before_anything_was_left_to_it_is_not_noticed(tmp_path):
    with serving(tmp_path, "sqlite") as (first, follow):
        feeds, line = [await wire.listen(first.port, "c", device="d"), await wire.listen(first.port, "c", version="1.0")], await wire.Wire.open(first.port)
        heir, sockets = follower(tmp_path)
        for each in (*sockets, heir):
            each.close()
        until_it_waits(tmp_path)
        await line.send(wire.said("POST", "/push/c", b"1"))
        assert (await line.answer()).status == 201
        assert [(await feed.event()).data for feed in feeds] == ["1", "1"] and first._popen.poll() is None
        second = follow()
        assert first.end() == 0 and "this one goes on" in first.err
        await line.send(wire.said("POST", "/push/c", b"2"))
        assert (await line.answer()).status == 201
        assert [(await feed.event()).data for feed in feeds] == ["2", "2"] and not feeds[0].controls
        assert second.end(signal.SIGTERM) == 0
        for each in (*feeds, line):
            each.close()


async def test_a_successor_that_dies_with_all_in_its_hands_leaves_the_other_to_go_on_and_devices_come_back(tmp_path):
    with serving(tmp_path, "sqlite", "--unix", str(tmp_path / "u")) as (first, follow):
        feeds = [await wire.listen(first.port, "c", device="d"), await wire.listen(first.port, "c", version="1.0")]
        line = visit(str(tmp_path / "h"))
        line.say({"pere": VERSION, "store": place_of(Config(store=f"sqlite:{tmp_path / 'pere.db'}"))})
        sockets = line.hear()[1] + line.hear()[1]
        assert line.hear() == ({"shown": [True]}, [])
        line.say({"seen": True})
        assert list(line.hear()[0]) == ["saved"]
        line.say({"looked": True})
        while "live" not in (word := line.hear()[0]):
            pass
        assert (word["but"], word["flushed"]) == ([], {"c": 0})
        waiting = await wire.Wire.open(first.port)
        await waiting.send(wire.said("POST", "/push/c", b"1"))
        for each in (*sockets, line):
            each.close()
        for feed in feeds:
            assert [message.event for message in await feed.end()] == ["pere.bye"]
            feed.close()
        assert (await waiting.answer()).status == 201, "who connected meanwhile has waited"
        waiting.close()
        assert first._popen.poll() is None and "goes on itself" in first.err
        back, unix = await wire.listen(first.port, "c", device="d"), await wire.listen(str(tmp_path / "u"), "c", device="u")
        assert (await back.event()).data == "1"
        until_it_waits(tmp_path)
        second = follow()
        assert first.end() == 0
        await wire.push(second.port, "c", 2)
        assert [(await feed.event()).data for feed in (back, unix)] == ["2", "2"]
        assert second.end(signal.SIGTERM) == 0 and not (tmp_path / "u").exists()
        for each in (back, unix):
            each.close()


def test_whoever_is_killed_on_the_way_one_serves_and_nothing_that_was_answered_is_lost(tmp_path):
    """The short form of `python -m tests.deaths`."""
    plan = [("next", "shown", -1.0), ("before", "live", 0.0), ("next", "over", -1.0)]
    found = uvloop.run(asyncio.wait_for(deaths.measure("sqlite", tmp_path, plan), 300))
    assert (found["the one before serves"], found["the next one serves"]) == (2, 1)
    assert found["receipts"] >= found["pushes"] and {name: found[name] for name in ("lost events", "lost receipts")} == {"lost events": 0, "lost receipts": 0}


class Meanwhile(deaths.Between):
    """Nobody is killed when a word has been said, but something is done before the other hears it: `does` has that by word, in their order."""

    def __init__(self, here: str, there: str, does):
        self._does = does
        super().__init__(here, there, next(iter(does)), -1.0)

    def _kill(self) -> None:
        self._does.pop(self._word)()
        self._word = next(iter(self._does), "")


async def followed_meanwhile(tmp_path, stack: ExitStack, does, *flags: str) -> Server:
    """Who takes over; each of these is done when its word has been said, before the other hears it."""
    here, loop = str(tmp_path / "between"), asyncio.get_running_loop()
    done = {word: lambda live=live: asyncio.run_coroutine_threadsafe(live(), loop).result(60) for word, live in does.items()}
    meanwhile = Meanwhile(here, str(tmp_path / "h"), done)
    second = await loop.run_in_executor(None, lambda: stack.enter_context(Server("--store", f"sqlite:{tmp_path / 'pere.db'}", "--handover", here, *flags)))
    await loop.run_in_executor(None, meanwhile.end)
    return second


@pytest.mark.parametrize(("word", "dies"), [("seen", False), ("looked", False), ("looked", True)])
async def test_what_is_published_and_who_comes_or_goes_after_the_file_was_read_ahead_is_known_to_the_next(tmp_path, word, dies):
    with serving(tmp_path) as (first, _), ExitStack() as stack:
        stays, leaves = [await wire.listen(first.port, "c", device=name) for name in ("stays", "leaves")]
        before = json.loads((await wire.request(first.port, "POST", "/push/c", b"1", Idempotency_Key="k1")).body)["id"]
        said = {}

        async def live() -> None:
            assert (await wire.request(first.port, "DELETE", "/admin/devices/leaves")).status == 204
            said["feed"] = await wire.listen(first.port, "young", device="comes")
            said["young"] = json.loads((await wire.request(first.port, "POST", "/push/young", b"2", Idempotency_Key="k2")).body)["id"]
            if dies:
                first._popen.kill()

        second = await followed_meanwhile(tmp_path, stack, {word: live})
        for key, channel, id in (("k1", "c", before), ("k2", "young", said["young"])):
            again = await wire.request(second.port, "POST", f"/push/{channel}", b"0", Idempotency_Key=key)
            assert json.loads(again.body)["id"] == id
        known = json.loads((await wire.request(second.port, "GET", "/admin/devices")).body)
        assert [each["device"] for each in known["devices"]] == ["comes", "stays"]
        if not dies:
            assert (await wire.request(second.port, "GET", "/feed/c", Device="leaves")).status == 204, "it is told to stop, as by the one before"
            await wire.push(second.port, "c", 3)
            await wire.push(second.port, "young", 4)
            assert [(await stays.event()).data for _ in range(2)] == ["1", "3"] and [(await said["feed"].event()).data for _ in range(2)] == ["2", "4"]
        for each in (stays, leaves, said["feed"]):
            each.close()


async def test_a_feed_that_was_behind_when_it_was_shown_and_has_caught_up_goes_on_where_it_is(tmp_path):
    with serving(tmp_path) as (first, _), ExitStack() as stack:
        slow, other = await wire.listen(first.port, "c", device="slow", buffer=4096), await wire.listen(first.port, "c", device="other")
        for n in range(150):
            await wire.push(first.port, "c", f"{n} " + "x" * 30_000)
            await other.event()
        assert await number(first.port, "pere_feeds_behind") == 1
        got = []

        async def catch_up() -> None:
            while await number(first.port, "pere_feeds_behind"):
                got.extend(await slow.events(min(10, 150 - len(got))))

        second = await followed_meanwhile(tmp_path, stack, {"seen": catch_up})
        await wire.push(second.port, "c", "150 x")
        got += await slow.events(151 - len(got))
        assert [data.split(" ")[0] for data in got] == [str(n) for n in range(151)] and (await other.event()).data == "150 x"
        for each in (slow, other):
            each.close()


@pytest.mark.parametrize("comes", [False, True])
async def test_a_feed_of_no_channel_yet_that_goes_after_all_was_shown_takes_nobody_with_it(tmp_path, comes):
    with serving(tmp_path) as (first, _), ExitStack() as stack:
        feeds, ghost = [await wire.listen(first.port, "c", device="stays")], await wire.listen(first.port, "ghost.*", device="ghost")

        async def live() -> None:
            ghost.close()
            while await number(first.port, "pere_feeds") > 1:
                await asyncio.sleep(0.01)
            if comes:
                feeds.append(await wire.listen(first.port, "c", device="comes"))

        second = await followed_meanwhile(tmp_path, stack, {"looked": live})
        assert first.end() == 0
        await wire.push(second.port, "c", 1)
        assert [(await feed.event()).data for feed in feeds] == ["1"] * len(feeds) and not any(feed.controls for feed in feeds)
        for feed in feeds:
            feed.close()


@pytest.mark.parametrize("care", [{}, {"window": 100, "format": "envelope"}])
async def test_who_was_behind_or_careful_and_went_after_all_was_saved_is_sent_nothing_twice_by_the_next(tmp_path, care):
    with serving(tmp_path) as (first, _), ExitStack() as stack:
        slow, got = await wire.listen(first.port, "c", device="slow", buffer=4096, **care), []
        for n in range(200):
            await wire.push(first.port, "c", f"{n} " + "x" * 30_000, receipt="none")

        async def read_on() -> None:
            while len(got) < 120:
                got.append(await slow.event())
            slow.close()
            while await number(first.port, "pere_feeds"):
                await asyncio.sleep(0.01)

        second = await followed_meanwhile(tmp_path, stack, {"looked": read_on})
        assert first.end() == 0
        back = await wire.listen(second.port, "c", device="slow", **care)
        await wire.push(second.port, "c", "last")
        again = [await back.event()]
        while "last" not in again[-1].data:
            again.append(await back.event())
        assert not {each.id for each in got} & {each.id for each in again}
        back.close()


async def test_what_is_answered_when_the_feeds_have_gone_is_told_by_the_next(tmp_path, receiver):
    webhooks = "--webhook-allow-http", "--webhook-allow-networks", "127.0.0.0/8"
    with serving(tmp_path, "sqlite", *webhooks) as (first, _), ExitStack() as stack:
        office = receiver(204)
        endpoint = (await wire.request(first.port, "POST", "/webhooks", {"url": office.url})).json
        while (await wire.request(first.port, "GET", f"/webhooks/{endpoint['id']}")).json["state"] != "active":
            await asyncio.sleep(0.02)
        feeds = [await wire.listen(first.port, "c", device="d"), await wire.listen(first.port, "c", device="careful", window=9, format="envelope")]
        answered, recalled = [(await wire.push(first.port, "c", n, to="d" if n == 0 else ())).json["id"] for n in range(2)]
        assert await feeds[0].events(2) == ["0", "1"] and (await feeds[1].event()).id == recalled
        asked = [wire.said("POST", "/feedback/c", b"{}", {"Device": "d", "Last-Event-ID": answered, "Content-Type": "application/json"}), wire.said("DELETE", f"/events/c/{recalled}", b"{}")]
        lines: list[wire.Wire] = []
        cut = []

        async def ask() -> None:
            for request in asked:
                lines.append(await wire.Wire.open(first.port))
                await lines[-1].send(request[:-2])

        async def say_the_rest() -> None:
            for request, line in zip(asked, lines, strict=True):
                try:
                    await line.send(request[-2:])
                    assert (await line.answer()).status == 200
                except (EOFError, ConnectionError):
                    cut.append(request)  # the machine is slow, and it came too late

        second = await followed_meanwhile(tmp_path, stack, {"looked": ask, "live": say_the_rest}, *webhooks)
        assert first.end() == 0
        for request in cut:
            line = await wire.Wire.open(second.port)
            await line.send(request)
            assert (await line.answer()).status == 200
            line.close()
        assert [await feed.control("pere.cancel") for feed in feeds] == [{"id": recalled, "channel": "c"}] * 2
        while not office.notices("pere.event.completed"):
            await asyncio.sleep(0.02)
        assert [each["data"]["id"] for each in office.notices("pere.event.completed")] == [answered]
        for each in (*feeds, *lines):
            each.close()


async def test_of_a_device_that_came_or_went_a_moment_before_the_next_tells_what_was_not_told(tmp_path, receiver):
    webhooks = "--webhook-allow-http", "--webhook-allow-networks", "127.0.0.0/8"
    with serving(tmp_path, "sqlite", *webhooks) as (first, follow):
        office = receiver(204)
        endpoint = (await wire.request(first.port, "POST", "/webhooks", {"url": office.url, "types": ["pere.device.connected", "pere.device.disconnected"]})).json
        while (await wire.request(first.port, "GET", f"/webhooks/{endpoint['id']}")).json["state"] != "active":
            await asyncio.sleep(0.02)
        gone, back = await wire.listen(first.port, "c", device="gone"), await wire.listen(first.port, "c", device="back")
        for feed in (gone, back):
            feed.close()
        went = time.monotonic()
        while await number(first.port, "pere_feeds"):
            await asyncio.sleep(0.02)
        stays = await wire.listen(first.port, "c", device="stays")
        second = await asyncio.to_thread(follow)
        back = await wire.listen(second.port, "c", device="back")
        is_news = time.monotonic() > went + reporter.AWAY  # the machine is slow

        def told(type: str) -> list[str]:
            return [each["device"] for said in office.notices(f"pere.device.{type}") for each in said["data"]["devices"]]

        while len(told("connected")) < 3 or "gone" not in told("disconnected"):
            await asyncio.sleep(0.02)
        assert is_news or sorted(told("connected")) == ["back", "gone", "stays"] and told("disconnected") == ["gone"]
        for each in (stays, back):
            each.close()


async def test_what_is_published_on_a_channel_that_is_born_when_the_feeds_have_gone_comes_once_to_who_listens_by_a_pattern(tmp_path):
    with serving(tmp_path) as (first, _), ExitStack() as stack:
        feeds = [await wire.listen(first.port, "c.*", device="d"), await wire.listen(first.port, "c.*")]
        line = await wire.Wire.open(first.port)
        request, said = wire.said("POST", "/push/c.young", b"1", {"Idempotency-Key": "k"}), []

        async def ask() -> None:
            await line.send(request[:-1])

        async def say_the_rest() -> None:
            with suppress(EOFError, ConnectionError):  # the machine is slow, and it came too late
                await line.send(request[-1:])
                said.append((await line.answer()).status)

        second = await followed_meanwhile(tmp_path, stack, {"looked": ask, "live": say_the_rest})
        assert first.end() == 0
        await wire.request(second.port, "POST", "/push/c.young", b"1", Idempotency_Key="k")
        await wire.push(second.port, "c.young", 2)
        assert [[json.loads(data)["data"] for data in await feed.events(2)] for feed in feeds] == [[1, 2]] * 2, said
        for each in (*feeds, line):
            each.close()


async def test_what_is_published_when_the_feeds_have_gone_was_not_sent_to_who_goes_before_the_next_serves(tmp_path):
    with serving(tmp_path) as (first, _), ExitStack() as stack:
        feed, line = await wire.listen(first.port, "c", device="d", format="envelope"), await wire.Wire.open(first.port)
        request, said = wire.said("POST", "/push/c", b"1"), []

        async def ask() -> None:
            await wire.push(first.port, "young", 0)  # so the next has to look again how far each channel is
            await line.send(request[:-1])

        async def say_the_rest() -> None:
            with suppress(EOFError, ConnectionError):  # the machine is slow, and it came too late
                await line.send(request[-1:])
                said.append((await line.answer()).json["id"])
            feed.reset()

        second = await followed_meanwhile(tmp_path, stack, {"looked": ask, "live": say_the_rest})
        assert first.end() == 0
        for id in said:
            (device,) = (await wire.request(second.port, "GET", f"/events/c/{id}/devices")).json["devices"]
            assert device["state"] == "pending"
        back = await wire.listen(second.port, "c", device="d", format="envelope")
        assert [json.loads(each)["attempt"] for each in await back.events(len(said))] == [1] * len(said)
        for each in (line, back):
            each.close()


async def test_who_has_taken_over_and_cannot_wait_for_the_next_serves_all_the_same(tmp_path):
    with serving(tmp_path) as (first, _), ExitStack() as stack:
        feed = await wire.listen(first.port, "c", device="d")

        async def take_its_place() -> None:
            (tmp_path / "between").write_text("mine")

        second = await followed_meanwhile(tmp_path, stack, {"looked": take_its_place})
        assert first.end() == 0
        await wire.push(second.port, "c", 1)
        assert (await feed.event()).data == "1" and not feed.controls
        second.until("no process can take over from this one")
        feed.close()
        assert second.end(signal.SIGTERM) == 0 and (tmp_path / "between").read_text() == "mine"


async def test_who_goes_on_after_a_successor_has_died_and_cannot_wait_for_another_serves_all_the_same(tmp_path):
    with serving(tmp_path) as (first, _):
        feeds = [await wire.listen(first.port, "c", device="d"), await wire.listen(first.port, "c", version="1.0")]
        heir, sockets = follower(tmp_path)
        (tmp_path / "h").write_text("mine")
        for each in (*sockets, heir):
            each.close()
        first.until("no process can take over from this one")
        await wire.push(first.port, "c", 1)
        assert [(await feed.event()).data for feed in feeds] == ["1", "1"] and not feeds[0].controls
        for each in feeds:
            each.close()


async def test_who_takes_over_a_unix_socket_whose_file_somebody_has_removed_makes_it_anew(tmp_path):
    with serving(tmp_path, "sqlite", "--unix", str(tmp_path / "u")) as (first, follow):
        feeds = [await wire.listen(first.port, "c", device="d"), await wire.listen(str(tmp_path / "u"), "c", device="unix")]
        (tmp_path / "u").unlink()
        second = follow()
        assert first.end() == 0
        await wire.push(str(tmp_path / "u"), "c", 1)
        assert [(await feed.event()).data for feed in feeds] == ["1", "1"] and not any(feed.controls for feed in feeds)
        assert second.end(signal.SIGTERM) == 0 and not (tmp_path / "u").exists()
        for each in feeds:
            each.close()


async def fake(tmp_path, says) -> asyncio.Task:
    """Somebody serves, who says this to whoever comes to take over, and dies."""
    path = str(tmp_path / "h")
    waiting = socket.socket(socket.AF_UNIX)
    waiting.bind(path)
    waiting.listen()
    waiting.settimeout(60)

    def serve() -> dict:
        visitor, _ = waiting.accept()
        waiting.close()
        os.unlink(path)
        line = Line(visitor)
        word, _ = line.hear()
        says(line)
        line.close()
        return word

    return asyncio.get_running_loop().run_in_executor(None, serve)


@pytest.mark.parametrize("version", [VERSION, VERSION + 1])
async def test_a_predecessor_that_dies_or_is_of_another_version_leaves_its_sockets(tmp_path, version):
    """Who connects meanwhile waits in the queue, and is not refused."""
    tcp, device = socket.create_server(("127.0.0.1", 0)), socket.socketpair()
    port = tcp.getsockname()[1]
    waiting = await wire.Wire.open(port)

    def says(line: Line) -> None:
        line.say({"pere": version, "store": f"sqlite:{os.path.realpath(tmp_path / 'pere.db')}", "pid": 1, "listening": [["tcp", "127.0.0.1", port], ["unix", "/elsewhere", 0]]}, [tcp.fileno(), tcp.fileno()])
        if version == VERSION:
            line.say({"ahead": [[0, [0, "d", [], None, None, [["c", 0, 0, 0, 0, 0, 0]], None, "", ""]]]}, [device[0].fileno()])
            line.say({"live": [True], "but": [], "flushed": {"c": 0}, "newest": 0})
        tcp.close()
        device[0].close()

    before = await fake(tmp_path, says)
    with Process("serve", "--port", str(port), "--store", f"sqlite:{tmp_path / 'pere.db'}", "--handover", str(tmp_path / "h")) as second:
        greeting = await before
        assert greeting == {"pere": VERSION, "store": f"sqlite:{os.path.realpath(tmp_path / 'pere.db')}"}
        second.until("listening")
        await waiting.send(wire.said("POST", "/push/c", b"1"))
        assert (await waiting.answer()).status == 201
        device[1].setblocking(False)
        assert version != VERSION or await asyncio.get_running_loop().sock_recv(device[1], 100) == b"", "it is closed, and comes back by itself"
        assert ("gone in the middle" in second.err) == (version == VERSION) and ("another version" in second.err) == (version != VERSION)
        assert second.end(signal.SIGTERM) == 0
    waiting.close()
    device[1].close()


async def test_where_the_store_is_shared_who_follows_one_of_another_version_serves_before_that_has_ended(tmp_path):
    """Else those whom it lets go, and whoever connects, would wait until then."""
    needed()
    path, store = str(tmp_path / "h"), named("redis", tmp_path)
    tcp, place, has_ended = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX), threading.Event()
    port = tcp.getsockname()[1]
    place.bind(path)
    place.listen()
    place.settimeout(60)

    def serve() -> None:
        line = Line(place.accept()[0])
        line.hear()
        line.say({"pere": VERSION - 1, "store": place_of(Config(store=store)), "pid": 1, "listening": [["tcp", "127.0.0.1", port]]}, [tcp.fileno()])
        tcp.close()
        place.accept()[0].close()  # which has found that somebody waits there still
        place.close()
        os.unlink(path)
        assert has_ended.wait(60)
        line.close()

    before = asyncio.get_running_loop().run_in_executor(None, serve)
    with Process("serve", "--port", str(port), "--store", store, "--handover", path) as second:
        try:
            second.until("listening")
            assert (await wire.push(port, "c")).status == 201
            until_it_waits(tmp_path)
        finally:
            has_ended.set()
            await before
        assert "another version" in second.err and "no process can take over" not in second.err
        assert second.end(signal.SIGTERM) == 0


async def test_a_successor_of_another_version_gets_the_sockets_and_feeds_are_let_go(tmp_path):
    with serving(tmp_path, "sqlite") as (first, _):
        feed = await wire.listen(first.port, "c", device="d")
        line = visit(str(tmp_path / "h"))
        line.say({"pere": VERSION + 1, "store": place_of(Config(store=f"sqlite:{tmp_path / 'pere.db'}"))})
        word, (tcp,) = line.hear()
        assert (word["pere"], tcp.getsockname()[1]) == (VERSION, first.port)
        assert [message.event for message in await feed.end()] == ["pere.bye"]
        with pytest.raises(Broken):
            line.hear()
        assert first.end() == 0
        for each in (feed, line, tcp):
            each.close()


# Under a manager, which ends one process before it starts the next


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_a_manager_keeps_what_is_open_while_there_is_no_process(tmp_path, kind):
    if kind == "redis":
        needed()
    tcp = listening()
    port, store = tcp.getsockname()[1], ("--store", named(kind, tmp_path))
    with Notices(str(tmp_path / "n")) as manager, ExitStack() as stack:
        variables = {"NOTIFY_SOCKET": manager.path, "FDSTORE": "4"}
        first = stack.enter_context(Managed([tcp], "serve", *store, **variables))
        first.until("listening")
        feed, slow = await wire.listen(port, "c", device="d"), await wire.listen(port, "c", device="slow", buffer=4096)
        line = await wire.Wire.open(port)
        for n in range(120):
            await line.send(wire.said("POST", "/push/c", f"{n} {'x' * 30_000}".encode(), {"Content-Type": "text/plain"}))
            assert (await line.answer()).status == 201
        assert [data.split(" ")[0] for data in await feed.events(120)] == [str(n) for n in range(120)]
        first._popen.send_signal(signal.SIGTERM)
        said = await asyncio.get_running_loop().run_in_executor(None, manager.until, "FDSTORE")
        assert said[-3:] == ["FDSTORE", "FDNAME", "FDPOLL"]
        # It is there until it has been heard.
        hearing = asyncio.get_running_loop().run_in_executor(None, manager.until, "FDSTOREREMOVE")
        assert first.end() == 0
        await line.send(wire.said("POST", "/push/c", b"120"))
        second = stack.enter_context(Managed([tcp, *manager.kept], "serve", *store, names="pere:pere-handover", **variables))
        second.until("listening")
        await hearing
        assert (await line.answer()).status == 201
        assert (await feed.event()).data == "120" and not feed.controls
        assert [data.split(" ")[0] for data in await slow.events(121)] == [str(n) for n in range(121)]
        assert "taken over feeds=2 connections=1" in second.err
        for each in (feed, slow, line, tcp):
            each.close()


async def test_a_manager_that_does_not_answer_leaves_devices_that_are_told_to_come_back(tmp_path, tcp):
    with Notices(str(tmp_path / "n")) as manager, Managed([tcp], "serve", "--store", f"sqlite:{tmp_path / 'pere.db'}", NOTIFY_SOCKET=manager.path, FDSTORE="1") as first:
        first.until("listening")
        feed = await wire.listen(tcp.getsockname()[1], "c", device="d")
        # Before the end begins, else it may have taken the feed by then.
        manager._socket.close()
        first._popen.send_signal(signal.SIGTERM)
        assert [message.event for message in await feed.end()] == ["pere.bye"]
        assert first.end() == 0
        feed.close()


async def test_where_nobody_is_to_follow_nothing_is_left_to_the_manager_and_devices_are_told(tmp_path, tcp):
    with Notices(str(tmp_path / "n")) as manager, Managed([tcp], "serve", "--store", f"sqlite:{tmp_path / 'pere.db'}", NOTIFY_SOCKET=manager.path, FDSTORE="4") as first:
        first.until("listening")
        feed = await wire.listen(tcp.getsockname()[1], "c", device="d")
        first._popen.send_signal(signal.SIGINT)
        assert [message.event for message in await feed.end()] == ["pere.bye"]
        assert first.end() == 0
        assert manager.until("STOPPING") and not manager.kept
        feed.close()


# Who may


async def test_one_that_stands_still_is_shown_no_more_when_it_has_not_taken_a_word(start, listen, monkeypatch):
    monkeypatch.setattr(handover, "PATIENCE", 0.2)
    monkeypatch.setattr(predecessor, "FEW", 1)

    class Heard(Line):
        """Of which it is noted whether a word was taken."""

        def say(self, word, descriptors=()):
            words.append(False)
            super().say(word, descriptors)
            words[-1] = True

    words: list[bool] = []
    server = await start()
    for _ in range(30):
        await listen("c")
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # it is full after a few
    assert await server.show(Heard(ours)) is None
    theirs.close()
    assert words[-1] is False and words.count(False) == 1 and len(server.hub.feeds) == 30


async def test_who_has_another_store_or_says_what_nobody_understands_takes_nothing(tmp_path):
    with serving(tmp_path, "sqlite") as (first, _):
        feed = await wire.listen(first.port, "c", device="d")
        other = pere("serve", "--port", "0", "--store", f"sqlite:{tmp_path / 'other.db'}", "--handover", str(tmp_path / "h"))
        assert other.returncode == 2 and "has another store, sqlite:" in other.stderr
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"", b"\0\0\0\2[]", b"\0\0\0\2{}", b"\xff\xff\xff\xff"):
            with socket.socket(socket.AF_UNIX) as visitor:
                visitor.connect(str(tmp_path / "h"))
                visitor.sendall(words)
                visitor.shutdown(socket.SHUT_WR)
                visitor.settimeout(60)
                with suppress(ConnectionResetError):  # it did not read all that was said
                    assert visitor.recv(10) == b""
        await wire.push(first.port, "c", 1)
        assert (await feed.event()).data == "1"
        feed.close()


def test_who_stands_still_with_a_queue_that_is_full_is_not_waited_for_without_end(tmp_path, monkeypatch):
    path, found = str(tmp_path / "h"), []

    def look() -> None:
        try:
            found.append(visit(path))
        except OSError as error:
            found.append(error)

    with ExitStack() as stack:
        there = stack.enter_context(socket.socket(socket.AF_UNIX))
        there.bind(path)
        there.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        for patience in (0.1, handover.PATIENCE):
            monkeypatch.setattr(handover, "PATIENCE", patience)
            looking = threading.Thread(target=look, daemon=True)
            looking.start()
            if found:
                there.accept()[0].close()  # it goes on
            looking.join(60)
            assert not looking.is_alive()
        assert isinstance(found[0], OSError) and found[0].filename == path and isinstance(found[1], handover.Line)
        found[1].close()


AS_NOBODY = "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect(sys.argv[1]); print(s.recv(1))"


async def test_it_is_for_processes_of_the_same_user(tmp_path):
    with serving(tmp_path, "sqlite") as (first, _):
        path = tmp_path / "h"
        assert path.stat().st_mode & 0o777 == 0o600
        if os.geteuid() == 0:  # who is somebody else already can become nobody else
            for folder in (tmp_path, *tmp_path.parents[:3]):
                folder.chmod(0o755)
            as_nobody = [sys.executable, "-I", "-S", "-c", AS_NOBODY, str(path)]
            assert b"Permission denied" in subprocess.run(as_nobody, capture_output=True, check=False, timeout=60).stderr
            path.chmod(0o666)
            assert subprocess.run(as_nobody, capture_output=True, check=False, timeout=60).stdout == b"b''\n", "it is hung up on before it has said a word"
        assert first._popen.poll() is None


async def test_of_two_who_come_at_once_one_takes_over(tmp_path):
    with serving(tmp_path) as (first, follow):
        feed = await wire.listen(first.port, "c", device="d")
        lines = [visit(str(tmp_path / "h")) for _ in range(2)]
        for line in lines:
            line.say({"pere": VERSION, "store": place_of(Config(store=f"sqlite:{tmp_path / 'pere.db'}"))})
        heard = []
        for line in lines:
            with suppress(Broken):
                word, sockets = line.hear()
                heard.append(word)
                for each in sockets:
                    each.close()
        for line in lines:
            line.close()  # not before both are answered, or the other might come after the one that took over has died
        assert [list(word) for word in heard] == [["pere", "store", "pid", "listening"]]
        first.until("this one goes on|nobody who came to take over")  # until then the socket at which it waited may be about to go
        until_it_waits(tmp_path)
        second = follow()
        assert first.end() == 0
        await wire.push(second.port, "c", 1)
        assert (await feed.event()).data == "1" and not feed.controls
        feed.close()


def test_what_is_there_and_is_no_socket_is_left_alone(tmp_path):
    (tmp_path / "h").write_text("mine")
    ended = pere("serve", "--port", "0", "--store", f"sqlite:{tmp_path / 'pere.db'}", "--handover", str(tmp_path / "h"))
    assert ended.returncode == 1 and f"cannot listen on {tmp_path / 'h'}" in ended.stderr
    assert (tmp_path / "h").read_text() == "mine"


async def test_who_comes_by_a_link_takes_nothing_over_for_it_could_not_wait_there(tmp_path):
    with serving(tmp_path) as (first, _):
        (tmp_path / "link").symlink_to(tmp_path / "h")
        feed = await wire.listen(first.port, "c", device="d")
        ended = await asyncio.to_thread(pere, "serve", "--port", "0", "--store", named("sqlite", tmp_path), "--handover", str(tmp_path / "link"))
        assert ended.returncode == 1 and f"{tmp_path / 'link'}: a file is there that is no socket" in ended.stderr
        id = (await wire.push(first.port, "c")).json["id"]
        assert (await feed.event()).id == id
        feed.close()


@pytest.mark.parametrize("way", ["handover", "redis handover"])
def test_under_load_nobody_notices(way):
    """The short form of `python -m bench.load.restart`."""
    if way == "redis handover":
        needed()
    found = uvloop.run(restart.measure(way, devices=200, restarts=2, per_second=40, usual=0.3, within=300))
    assert found["pushes"] and found["deliveries"] == 20 * found["pushes"]
    assert {name: found[name] for name in ("refused", "cut", "other answers", "lost events", "lost receipts", "doubled", "came back")} == dict.fromkeys(
        ("refused", "cut", "other answers", "lost events", "lost receipts", "doubled", "came back"), 0)
