"""The same deeds to a real server and to the model, at random, and after each of them the same must be told and given.

    python -m tests.soak --minutes 10 --seed 7 --store sqlite

The server is whole: its front door, hub, ledger and store, on its loop; only the network is pairs of sockets, and the time is handed in.
A restart is an orderly end, or what a crash leaves of the file, or of a node in Redis that is killed. Commands that differ are shrunk to a few and printed.

It is long because each deed is done twice, to the server and to the model, and what both say of it is compared in the same place: parted, one would be changed without the other.
"""

import asyncio
import errno
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Coroutine
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest import mock

import click
import orjson
import uvloop
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

# pytest finds the words of the tests beside this file, and so must `python -m tests.soak`.
sys.path.insert(0, str(Path(__file__).parent))

from model import Event, Feed, Limits, Model, means, owes
from redises import common, named

import pere.hub
import pere.storage.committing
import pere.storage.ear
import pere.storage.past
import pere.storage.presence
import pere.storage.reading
import pere.storage.redis
import pere.storage.sharedlog
from pere.config import Config
from pere.errors import Gone
from pere.event import format_id, parse_id
from pere.http1 import Connection
from pere.server import Server
from pere.sse import Decoder
from pere.storage.ear import ended
from pere.storage.memory import MemoryStore
from pere.storage.redis import RedisStore
from pere.storage.sqlite import SqliteStore

START = 1_417_444_080  # 2014-12-01T14:28:00Z: whole minutes, at which devices are looked for that were not seen for long
PATIENCE = 20.0  # real seconds after which what was waited for will never come

# So small that a few events reach them.
LIMITS = [(pere.hub, "BATCH_EVENTS", 3), (pere.storage.reading, "MAX_VISITED", 3), (pere.storage.reading, "BLOCK", 2),
          (pere.storage.past, "MOST", 4), (pere.storage.committing, "MAX_SAVED", 2),
          (pere.storage.presence, "STAY", 30.0),
          # A node looks when it is told to, and a machine that has no time for it is not a Redis that is away.
          (pere.storage.redis, "BEAT", 3600.0), *((module, "TIMEOUT", 600.0) for module in (pere.storage.redis, pere.storage.sharedlog, pere.storage.ear))]
MEMORY = Limits(per_channel=8, keep_expired=40, attempts=2)  # of Redis too, which has beside it what a node has in memory
FILE = Limits(per_channel=None, overall=18, age=600, attempts=2, at_hand=3)
CONFIG: dict[str, Any] = {
    "port": 0, "max_attempts": 2, "max_feeds_per_device": 2, "idempotency_window": 50, "device_ttl": 1000, "stuck_after": 59.5,
    "keep_expired": 40, "retention_events": 18, "retention_age": 600, "sync": "normal",
}


class Loop(uvloop.Loop):
    """A loop that is told what time it is; how long a real timer takes is not its business."""

    now = float(START)

    def time(self) -> float:
        return self.now


class Wire:
    """A client at its end of a pair of sockets, the other end of which is the server's."""

    def __init__(self, server: Server):
        self._server = server
        self.sock, self._other = socket.socketpair()
        self.sock.setblocking(False)
        self._other.setblocking(False)
        self.fd = self._other.fileno()

    async def open(self) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(partial(Connection, self._server.door), self._other)

    async def request(self, method: str, target: str, *headers: str, body: Any = None, version: str = "1.1") -> tuple[int, bytes, bytes]:
        """Status, head and what has come of the body."""
        data = b"" if body is None else orjson.dumps(body)
        lines = [f"{method} {target} HTTP/{version}", "Host: pere", "Content-Type: application/json", f"Content-Length: {len(data)}", *headers]
        self.sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        told = b""
        while b"\r\n\r\n" not in told:
            told += await self._some()
        head, _, rest = told.partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), head.lower(), rest

    async def ask(self, method: str, target: str, *headers: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer."""
        status, head, rest = await self.request(method, target, *headers, body=body)
        length = head.partition(b"content-length: ")[2].split(b"\r\n")[0]
        while len(rest) < int(length or 0):
            rest += await self._some()
        return status, orjson.loads(rest) if rest else None

    async def _some(self) -> bytes:
        some = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        assert some, "the server has hung up"
        return some

    def close(self) -> None:
        self.sock.close()


class Listener(Wire):
    """A client that has opened a feed. What the model gives its `feed` is what it must find."""

    feed: Feed
    position = 0  # as it was greeted
    last_id = 0

    def listen(self, is_chunked: bool, rest: bytes) -> None:
        self._decoder = Decoder()
        self._is_chunked = is_chunked
        self._rest = rest
        self.has_ended = False

    def read(self) -> list[tuple[Any, ...]]:
        """All that has come."""
        while not self.has_ended:
            try:
                some = self.sock.recv(1 << 20)
            except BlockingIOError:
                break
            except OSError as error:
                assert error.errno == errno.ECONNRESET
                some = b""
            self.has_ended = not some
            self._rest += some.replace(b"\0", b"")  # which is what it was filled with
        text, self._rest = (self._rest, b"") if not self._is_chunked else _unchunked(self._rest)
        found = []
        for message in self._decoder.feed(text):
            data = orjson.loads(message.data)
            match message.event:
                case "pere.hello":
                    self.position = parse_id(data["position"])
                case "pere.gap":
                    found.append(("gap", data["channel"], *(parse_id(data[name]) if data[name] else None for name in ("from", "to")), data["lost"]))
                case "pere.cancel":
                    found.append(("cancel", parse_id(data["id"])))
                case "pere.bye":
                    found.append(("bye", data["reason"]))
                case _:
                    self.last_id = parse_id(message.id)
                    if self.feed.is_envelope:
                        assert data["id"] == message.id
                        found.append((self.last_id, data["data"], data["attempt"]))
                    else:
                        found.append((self.last_id, data, None))
        return found


def _unchunked(data: bytes) -> tuple[bytes, bytes]:
    """What whole chunks hold, and the rest."""
    text = b""
    while data:
        size, mark, rest = data.partition(b"\r\n")
        if not mark or len(rest) < int(size, 16) + 2:
            break
        text, data = text + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return text, data


def _tidy(given: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Gaps of several channels that are told one after the other come in no order."""
    tidy: list[tuple[Any, ...]] = []
    for is_gap, run in groupby(given, lambda each: each[0] == "gap"):
        each = list(run)
        tidy += sorted(each, key=str) if is_gap else each
    return tidy


class Real:
    """The server, one after the other; `store` is `memory`, `sqlite` or `redis`."""

    def __init__(self, store: str, folder: Path):
        self.kind = store
        self._folder = folder
        self._files = 0
        self.config = Config(**CONFIG, backlog_events=3 if store == "sqlite" else 8)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        path = str(self._folder / f"{self._files}.db")
        store: Any
        if self.kind == "redis":
            store = RedisStore(self.config, loop.time, named("redis", self._folder))
        else:
            store = MemoryStore(self.config, loop.time) if self.kind == "memory" else SqliteStore(self.config, loop.time, path)
        await store.begin()
        self.server = Server(self.config, store)
        self.store, self.hub = store, self.server.hub
        self.desks = [Wire(self.server), Wire(self.server)]
        for desk in self.desks:
            await desk.open()
        await self.calm()

    async def end(self) -> None:
        for desk in self.desks:
            desk.close()
        self.hub.drain()
        await self.calm()
        await self.store.close()

    async def crash(self) -> None:
        """The files as they lie there are what the next one finds; or what is in Redis when a node says nothing more, and for so long that it is given up."""
        if self.kind == "redis":
            beating, self.store._beating = self.store._beating, None  # so it is not closed in order by and by
            await ended(beating)
            self.store._trouble = "it was killed"
            await self.store._log.close()
            keys = self.store._log.keys
            for words in (("DEL", keys["keeper"]), ("ZADD", keys["nodes"], "0", self.store.node)):
                assert common().ask(*words) in (b":0", b":1")
            await self.end()
            return
        old, self._files = self._files, self._files + 1
        for ending in ("", "-wal"):
            shutil.copy(self._folder / f"{old}.db{ending}", self._folder / f"{self._files}.db{ending}")
        await self.end()

    async def calm(self) -> None:
        """Everything that was begun has come to its end."""
        deadline = time.monotonic() + PATIENCE
        rounds = 0
        while rounds < 3:
            assert time.monotonic() < deadline, "it never gets calm"
            await self.store.settle()
            if self.kind == "sqlite":
                await asyncio.get_running_loop().run_in_executor(self.store._elsewhere, int)
            await asyncio.sleep(0)
            is_calm = not self.hub.broadcast.dirty and all(feed.live or feed.stuck_since for feed in self.hub.feeds.values())
            rounds = rounds + 1 if is_calm else 0

    async def gone(self, fd: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while fd in self.hub.feeds:
            assert time.monotonic() < deadline, "a feed stays whose client has gone"
            await asyncio.sleep(0)

    async def wait(self, seconds: int) -> None:
        loop = asyncio.get_running_loop()
        loop.now += seconds  # type: ignore[attr-defined]
        if int(loop.time()) % 60:
            self.look()
        self.server.wheel.advance(loop.time())
        if self.kind == "redis":
            await self.store._beat_once()
            await self.store._keeper.keep(False)
        await self.calm()
        for _ in range(3):
            self.store.sweep(loop.time(), self.hub.is_used)
            await self.calm()

    def look(self) -> None:
        """Every channel is brought to hand."""
        for name in list(self.store.channels()):
            self.store.open(name)

    def fill(self, fd: int) -> None:
        size = 1 << 16
        while size:
            try:
                os.write(fd, bytes(size))
            except BlockingIOError:
                size //= 2


CHANNELS = ("a", "b", "x.1", "x.2")
DEVICES = ("d1", "d2", "d3")
CHANNEL = st.sampled_from(["a", "a", "a", "b", "x.1", "x.2"])
DEVICE = st.sampled_from(DEVICES)
ANY = st.integers(0, 30)
TO = st.sampled_from([(), (), (), ("d1",), ("d2", "d3"), ("d3",)])
LEVEL = st.sampled_from(["processed", "processed", "delivered", "none"])
TTL = st.sampled_from([3600, 3600, 60, 20, 20, 0])
NEED = st.sampled_from([None, None, "all", 0, 1, 2, "50%"])
WORD = st.sampled_from(["delivered", "processed", "processed", "failed"])
SAID = st.sampled_from([None, None, "fine", {"paper": 0}])
WANTED = st.sampled_from([("a",), ("a",), ("b",), ("x.1",), ("a", "b"), ("x.*",), ("a", "x.*"), ("**",)])


class Against(RuleBasedStateMachine):
    """The server against the model."""

    kind = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.folder = tempfile.TemporaryDirectory()
        self.small = [mock.patch.object(*each) for each in LIMITS]
        for each in self.small:
            each.start()
        self.real = Real(self.kind, Path(self.folder.name))
        self.do(self.real.start())
        self.model = self.new_model()
        self.listeners: list[Listener] = []
        self.count = 0
        self.past: list[int] = []  # ids of all events that there were
        self.seen: dict[int, tuple[dict[str, Any], Any]] = {}
        self.looks_away = False
        self.steps = 0

    def new_model(self) -> Model:
        return Model(FILE if self.kind == "sqlite" else MEMORY, int(self.loop.now), self.real.store.born)

    def do(self, deed: Coroutine[Any, Any, Any]) -> Any:
        async def in_time() -> Any:
            async with asyncio.timeout(10 * PATIENCE):
                return await deed

        return self.loop.run_until_complete(in_time())

    def teardown(self) -> None:
        self.do(self.real.end())
        for listener in self.listeners:
            listener.close()
        self.do(asyncio.sleep(0.001))
        self.loop.close()
        for each in self.small:
            each.stop()
        self.folder.cleanup()

    def ask(self, method: str, target: str, *headers: str, body: Any = None, desk: int = 0) -> tuple[int, Any]:
        async def ask() -> tuple[int, Any]:
            told = await self.real.desks[desk].ask(method, target, *headers, body=body)
            await self.real.calm()
            return told

        return self.do(ask())  # type: ignore[no-any-return]

    def some_id(self, which: int) -> int:
        """The id of an event, most often of one that is kept, and of a young one."""
        ids = [event.id for event in self.model.events()] if which % 8 else self.past
        return ids[-1 - which % len(ids)] if ids else self.real.store.born + 1

    @initialize(wanted=st.lists(WANTED, min_size=3, max_size=3))
    def begin(self, wanted: list[tuple[str, ...]]) -> None:
        for device, channels in zip(DEVICES, wanted, strict=True):
            self.connect(device, channels, None, None, 0, len(channels) > 1, "1.1")

    # A publisher pushes

    @rule(channel=CHANNEL, level=LEVEL, to=TO, ttl=TTL, need=NEED, key=st.sampled_from(["", "", "", "k1", "k2"]))
    def push(self, channel: str, level: str, to: tuple[str, ...], ttl: int, need: Any, key: str) -> None:
        if level == "none":
            need = None
        self.count += 1
        query = f"receipt={level}&ttl={ttl}" + "".join(f"&to={name}" for name in to) + (f"&need={need}".replace("%", "%25") if need is not None else "")
        headers = [f"Idempotency-Key: {key}"] if key else []
        status, told = self.ask("POST", f"/push/{channel}?{query}", *headers, body=self.count)
        known = self.model.known_key(channel, key)
        if known is not None:
            assert (status, parse_id(told["id"]), told["audience"]) == (201, *known)
            return
        audience = len(self.model.audience(channel, to))
        if self.model.need(need, audience) is None:
            assert (status, told["error"]) == (400, "need_over_audience")
            return
        assert status == 201, told
        self.accepted(told, channel, self.count, level, to, ttl, need, key)

    def accepted(self, told: Any, channel: str, data: int, level: str, to: tuple[str, ...], ttl: int, need: Any, key: str = "") -> None:
        id, audience = parse_id(told["id"]), len(self.model.audience(channel, to))
        assert (told["channel"], told["audience"]) == (channel, audience), told
        assert id > max(self.past, default=self.real.store.born)
        self.past.append(id)
        self.model.push(id, channel, data, level, to, ttl, need, key)

    @precondition(lambda self: not any(feed.full_since is not None for feed in self.model.feeds))
    @rule(items=st.lists(st.tuples(CHANNEL, LEVEL, TO, TTL), min_size=2, max_size=4))
    def push_many(self, items: list[tuple[str, str, tuple[str, ...], int]]) -> None:
        pushed = []
        for channel, level, to, ttl in items:
            self.count += 1
            pushed.append((channel, self.count, level, to, ttl))
        body = [{"channel": channel, "data": data, "receipt": level, "ttl": ttl} | ({"to": list(to)} if to else {})
                for channel, data, level, to, ttl in pushed]
        status, told = self.ask("POST", "/push", body=body)
        assert status == 200
        for each, (channel, data, level, to, ttl) in zip(told["results"], pushed, strict=True):
            self.accepted(each, channel, data, level, to, ttl, None)

    @rule(channel=CHANNEL, key=st.sampled_from(["k1", "k2"]))
    def push_twice_at_once(self, channel: str, key: str) -> None:
        self.count += 1

        async def push() -> list[tuple[int, Any]]:
            told = await asyncio.gather(*(desk.ask("POST", f"/push/{channel}", f"Idempotency-Key: {key}", body=self.count) for desk in self.real.desks))
            await self.real.calm()
            return told

        told = self.do(push())
        known = self.model.known_key(channel, key)
        assert told[0] == told[1]
        if known is None:
            self.accepted(told[0][1], channel, self.count, "processed", (), 86_400, None, key)
        else:
            assert (parse_id(told[0][1]["id"]), told[0][1]["audience"]) == known

    # A feed comes, reads and goes

    @precondition(lambda self: len(self.listeners) < 7)
    @rule(device=st.sampled_from(["", *DEVICES, *DEVICES]), wanted=WANTED, start=st.sampled_from([None, None, None, "all", "id"]),
          cursor=st.sampled_from([None, None, None, "id", "last", "hello"]), which=ANY, is_envelope=st.booleans(), version=st.sampled_from(["1.1", "1.0"]))
    def connect(self, device: str, wanted: tuple[str, ...], start: str | None, cursor: str | None, which: int, is_envelope: bool, version: str) -> None:
        model = self.model
        patterns = tuple(name for name in wanted if "*" in name)
        channels = tuple(name for name in wanted if "*" not in name)
        some = self.listeners[which % len(self.listeners)] if self.listeners else None
        begin = {None: None, "all": 0, "id": self.some_id(which)}[start]
        read = {None: None, "id": self.some_id(which), "last": some.last_id or None if some else None, "hello": some.position if some else None}[cursor]
        target = f"/feed/{wanted[0]}?" if len(wanted) == 1 and channels else "/feed?" + "".join(f"channel={name}&" for name in wanted)
        target += f"format={'envelope' if is_envelope else 'raw'}"
        target += f"&from={format_id(begin) if begin else 'all'}" if begin is not None else ""
        headers = ([f"Device: {device}"] if device else []) + ([f"Last-Event-ID: {format_id(read)}"] if read is not None else [])
        listener = Listener(self.real.server)

        async def listen() -> int:
            before = set(self.real.hub.feeds.values())
            await listener.open()
            status, head, rest = await listener.request("GET", target, *headers, version=version)
            listener.listen(b"chunked" in head, rest)
            # The server may have given the socket another number since.
            listener.fd = next((fd for fd, feed in self.real.hub.feeds.items() if feed not in before), listener.fd)
            await self.real.calm()
            return status

        status = self.do(listen())
        if device in model.removed and model.removed[device] >= model.now - 60:
            assert status == 204
            listener.close()
            return
        assert status == 200
        listener.feed = model.connect(device, channels, patterns, is_envelope, begin, read)
        self.listeners.append(listener)

    @precondition(lambda self: len(self.listeners) < 7)
    @rule(device=DEVICE, is_envelope=st.booleans())
    def come_back(self, device: str, is_envelope: bool) -> None:
        """To the channel of most events, with nothing said."""
        self.connect(device, ("a",), None, None, 0, is_envelope, "1.1")

    def listener(self, which: int, is_full: bool) -> Listener | None:
        found = [listener for listener in self.listeners if (listener.feed.full_since is not None) == is_full and listener.feed in self.model.feeds]
        return found[which % len(found)] if found else None

    @precondition(lambda self: self.listeners)
    @rule(which=ANY)
    def disconnect(self, which: int) -> None:
        listener = self.listeners.pop(which % len(self.listeners))
        listener.close()
        if listener.feed in self.model.feeds:
            self.do(self.real.gone(listener.fd))
            self.model.end(listener.feed, "gone")
        self.do(self.real.calm())

    @precondition(lambda self: self.listener(0, is_full=False))
    @rule(which=ANY, level=LEVEL)
    def stop_reading(self, which: int, level: str) -> None:
        """A feed's socket is full when an event comes."""
        listener = self.listener(which, is_full=False)
        assert listener is not None
        if not listener.feed.at:
            return
        self.real.fill(listener.fd)
        self.push(sorted(listener.feed.at)[which % len(listener.feed.at)], level, (), 3600, None, "")
        self.model.fill(listener.feed)

    @precondition(lambda self: self.listener(0, is_full=True))
    @rule(which=ANY)
    def read_on(self, which: int) -> None:
        listener = self.listener(which, is_full=True)
        assert listener is not None

        async def read() -> list[tuple[Any, ...]]:
            found = listener.read()
            deadline = time.monotonic() + PATIENCE
            while not self.real.hub.feeds[listener.fd].live:
                assert time.monotonic() < deadline, "it never catches up"
                await asyncio.sleep(0)
                found += listener.read()
            await self.real.calm()
            return found + listener.read()

        found = self.do(read())
        self.model.read_on(listener.feed)
        self.same(listener, found)

    def same(self, listener: Listener, found: list[tuple[Any, ...]]) -> None:
        given, listener.feed.given = listener.feed.given, []
        # That an event was recalled is told at once to who has it, and before anything else to who returns.
        told = sorted(each[1] for each in found if each[0] == "cancel")
        due = {is_due: [each[1] for each in given if each[0] == "cancel" and each[2] is is_due] for is_due in (True, False)}
        assert sorted(due[True]) == [id for id in told if id not in due[False]], f"{told}, not {due}"
        given, found = ([each for each in some if each[0] != "cancel"] for some in (given, found))
        given = [(*each[:2], found[place][2], *each[3:]) if each[0] == "gap" and each[2] is Ellipsis and place < len(found) else each
                 for place, each in enumerate(given)]
        assert _tidy(found) == _tidy(given), f"it was given {found}, not {given}"

    @precondition(lambda self: self.model.events())
    @rule(which=ANY)
    def recall(self, which: int) -> None:
        id = self.some_id(which)
        event = self.model.event(id)
        status, told = self.ask("DELETE", f"/events/{event.channel if event is not None else 'a'}/{format_id(id)}")
        if event is None:
            assert (status, told["error"]) in ((404, "unknown_event"), (410, "event_gone"))
        else:
            assert (status, told["cancelled"]) == (200, self.model.recall(event))

    # A device answers

    @rule(device=DEVICE, which=ANY, word=WORD, said=SAID, elsewhere=st.sampled_from([None, None, None, *CHANNELS]))
    def answer(self, device: str, which: int, word: str, said: Any, elsewhere: str | None) -> None:
        self.answer_for(device, self.some_id(which) if which < 30 else self.some_id(0) + 1, word, said, elsewhere, which)

    @precondition(lambda self: self.owed())
    @rule(which=st.integers(0, 1000), word=WORD, said=SAID)
    def answer_what_is_owed(self, which: int, word: str, said: Any) -> None:
        owed = self.owed()
        event, device = owed[which % len(owed)]
        self.answer_for(device, event.id, word, said, None, which)

    def owed(self) -> list[tuple[Event, str]]:
        """Who may still say something that counts."""
        return [(event, device) for event in self.model.events() for device in sorted(event.told)
                if self.model.may_answer(event, device) and event.told[device].state not in ("processed", "failed")]

    def answer_for(self, device: str, id: int, word: str, said: Any, elsewhere: str | None, which: int) -> None:
        event = self.model.event(id)
        channel = elsewhere or (event.channel if event is not None else "a")
        body = {"state": word} | ({"status": said} if said is not None else {})
        status, told = self.ask("POST", f"/feedback/{channel}", f"Device: {device}", f"Last-Event-ID: {format_id(id)}", body=body, desk=which % 2)
        self.entered(channel, device, id, word, said, status, told)

    def entered(self, channel: str | None, device: str, id: int, word: str, said: Any, status: int, told: Any) -> None:
        state, outcome = self.model.answer(channel, device, id, word, said)
        match outcome:
            case "unknown" if channel is not None:
                assert (status, told["error"]) == (404, "unknown_event")
            case "unknown":
                # Which of the two it is depends on the channels that are looked through.
                assert (status, told["error"]) in ((404, "unknown_event"), (410, "event_gone"))
            case "gone" if channel is None:
                assert (status, told["error"]) in ((404, "unknown_event"), (410, "event_gone"))
            case "gone":
                assert (status, told["error"]) in ((410, "event_gone"), (404, "unknown_event"))
                assert status == 410 or self.model.event(id) is not None
            case "conflict":
                assert (status, told["error"]) == (409, "conflict")
                assert state in told["message"]
            case _:
                assert (status, told["state"], told["duplicate"], told.get("late", False)) == (200, state, outcome == "duplicate", outcome == "late")

    @rule(device=DEVICE, said=st.lists(st.tuples(st.integers(0, 6), WORD, SAID), min_size=1, max_size=8))
    def answer_many(self, device: str, said: list[tuple[int, str, Any]]) -> None:
        receipts = [(self.some_id(which), word, status) for which, word, status in said]
        body = [{"event_id": format_id(id), "state": word} | ({"status": status} if status is not None else {}) for id, word, status in receipts]
        status, told = self.ask("POST", "/feedback", f"Device: {device}", body={"receipts": body})
        assert status == 200
        for (id, word, said_more), each in zip(receipts, told["results"], strict=True):
            assert each["event_id"] == format_id(id)
            self.entered(None, device, id, word, said_more, each.get("status", 200), each)

    @rule(device=DEVICE, which=ANY, channel=CHANNEL)
    def answer_up_to(self, device: str, which: int, channel: str) -> None:
        last = self.some_id(which)
        status, told = self.ask("POST", "/feedback", f"Device: {device}", body={"up_to": format_id(last), "channel": channel})
        events = self.model.channels[channel].events if channel in self.model.channels else []
        owed = [event for event in events if event.id <= last and self.model.owing(event, device) is not None and event.told[device].state == "pending"]
        # Of a device that was never seen here a file forgets in a restart what it was owed and what ran out of time before it was swept.
        if status != 200:
            assert (status, told["error"]) in ((404, "unknown_channel"), (400, "future_event_id"))
            assert all(event.expires <= self.model.now for event in owed) or last > self.real.store.newest
            return
        found = [parse_id(each["event_id"]) for each in told["results"]]
        if channel in self.model.channels and device not in self.model.channels[channel].members:
            owed = [event for event in owed if event.expires > self.model.now or event.id in found]
        assert found == [event.id for event in owed]
        for event, each in zip(owed, told["results"], strict=True):
            self.entered(None, device, event.id, "delivered", None, each.get("status", 200), each)

    def remove(self, device: str) -> None:
        status, _ = self.ask("DELETE", f"/admin/devices/{device}")
        assert status == (204 if self.model.remove(device) else 404)
        # What it owed of events that are not at hand is cancelled by the next sweep.
        self.wait(0)

    # Time goes by

    @rule(seconds=st.sampled_from([1, 1, 20, 60]))
    def wait(self, seconds: int) -> None:
        """A clock that goes on, and a store that looks what is due."""
        if seconds > 60:
            seconds -= int(self.loop.now) % 60
        self.do(self.real.wait(seconds))
        self.model.wait(seconds)
        self.forget()

    def forget(self) -> None:
        """Of a channel that is not known any more there was nothing left."""
        # In Redis a channel may be open on a node though nobody knows of it any more, and one to which a feed only listens is not in the log.
        known = self.real.store._begun | self.real.hub.channels.keys() if self.kind == "redis" else self.real.store.channels()
        for name in list(self.model.channels):
            if name in known:
                continue
            channel = self.model.channels[name]
            if self.kind == "redis" and not channel.last:
                # There it is born when something is said of it; who wants it joins then.
                assert channel.members.keys() <= {device for device, patterns in self.model.wishes.items() if any(means(pattern, name) for pattern in patterns)}
                del self.model.channels[name]
            else:
                assert self.model.forget(name)

    @rule(what=st.sampled_from(["restart", "crash", "remove", "long", "restart", "crash"]), device=DEVICE, looks_away=st.booleans())
    def see_to_what_is_rare(self, what: str, device: str, looks_away: bool) -> None:
        if what == "remove":
            self.remove(device)
        elif what == "long":
            self.wait(1080)
        elif self.kind != "memory" or device == "d1":
            self.restart(what == "restart", looks_away)

    def restart(self, is_orderly: bool, looks_away: bool) -> None:
        listening = [listener.fd for listener in self.listeners if listener.feed in self.model.feeds]
        removed, seen = dict(self.model.removed), dict(self.model.seen)
        if self.kind == "memory" or is_orderly:
            self.do(self.real.end())
            self.model.restart()
        else:
            self.do(self.real.crash())
            self.model.restart()
        assert not self.real.hub.feeds or not listening
        for listener in self.listeners:
            found = listener.read()
            if is_orderly or self.kind == "memory":
                self.same(listener, found)
            assert listener.has_ended
            listener.close()
        self.listeners = []
        self.loop.now += 1
        self.do(self.real.start())
        if self.kind == "memory":
            self.model = self.new_model()
            self.seen = {}
        else:
            self.model.now += 1
            self.model.born = self.real.store.born
            self.model.reload(knows_who_waits=self.kind == "redis")
            if self.kind == "redis":
                self.find_wishes(seen)
                # What the log has beyond what was kept is done again, and so it is known of whom it says that they were removed.
                self.model.removed = {name: at for name, at in removed.items() if name in self.real.store.devices.removed}
            self.forget()
            if not is_orderly:
                self.do(self.find_positions())
                self.seen = {}
            elif any(event.to for event in self.model.events()):
                self.real.look()
        self.looks_away = looks_away

    def find_wishes(self, seen: dict[str, int]) -> None:
        """Who asked for what is yet to be born was last seen when that was last said, or soon after."""
        for device, patterns in self.model.wishes.items():
            found = int(max(self.real.store._wishes[pattern][device] for pattern in patterns)) if patterns else seen[device]
            assert seen[device] - 1200 <= found <= self.model.now, f"{device} was seen {found}, not {seen[device]}"
            self.model.seen[device] = found

    async def find_positions(self) -> None:
        """After a crash a device may have been written to further than is known, but not less far than was safe."""
        self.real.look()
        for channel in self.model.channels.values():
            found = self.real.store.open(channel.name).audience.members
            assert set(found) == set(channel.members)
            for name, member in channel.members.items():
                it = found[name]
                told = f"{name} on {channel.name} was at {it.position}, seen {it.seen}, answered {it.answered}, not {member}"
                assert member.safe[0] <= it.position <= member.position, told
                assert member.safe[1] <= max(it.seen, it.answered), told
                member.position, member.seen, member.answered, member.fed = it.position, it.seen, it.answered, bool(it.since)
        for event in self.model.events():
            lines, _ = await self.real.store.lines(event.channel, event.id, None, 0, 100)
            for line in lines:
                told = event.told[line["device"]]
                resends = line["attempt"] - self.model.is_sent(event, line["device"])
                assert 0 <= resends <= told.resends, f"{format_id(event.id)}: {line}, not {told}"
                told.resends = resends

    # It is the same

    @invariant()
    def what_was_given_is_what_was_due(self) -> None:
        for listener in self.listeners:
            if listener.feed.full_since is None or listener.feed not in self.model.feeds:
                found = listener.read()
                self.same(listener, found)
                assert listener.has_ended == (listener.feed not in self.model.feeds)

    @invariant()
    def what_is_told_is_what_is_so(self) -> None:
        self.steps += 1
        type(self).total = getattr(type(self), "total", 0) + 1
        if self.looks_away:
            self.looks_away = False
            return
        self.do(self.compare())

    async def compare(self) -> None:
        store, model, outstanding, oldest = self.real.store, self.model, 0, None
        for event in model.events():
            wanted = model.status(event)
            found = await store.status(event.channel, event.id)
            assert {name: found[name] for name in wanted} == wanted, f"{format_id(event.id)}: {found}, not {wanted}"
            assert sum(found["counts"].values()) == found["audience"]
            assert (found["receipt"], found["id"]) == (event.level, format_id(event.id))
            outstanding += wanted["outstanding"]
            oldest = event.time if oldest is None and wanted["outstanding"] else oldest
            told, version = self.seen.get(event.id, (None, None))
            assert told is None or told == wanted or version != found["version"], "what changed has the same version"
            self.seen[event.id] = (wanted, found["version"])
            await self.compare_lines(event)
        assert store.ledger.outstanding == outstanding
        assert store.oldest_outstanding() == oldest
        assert self.real.hub.channels.behind == sum(feed.full_since is not None for feed in model.feeds)
        assert len(self.real.hub.feeds) == len(model.feeds)
        for channel in model.channels.values():
            if channel.gone:
                try:
                    await store.status(channel.name, channel.gone)
                    raise AssertionError("what made way is still told of")
                except Gone:
                    pass

    async def compare_lines(self, event: Event) -> None:
        model = self.model
        lines, more = await self.real.store.lines(event.channel, event.id, None, 0, 100)
        assert more is None
        assert sorted(line["device"] for line in lines) == sorted(event.told)
        for line in lines:
            device = line["device"]
            told = event.told[device]
            said = orjson.loads(orjson.dumps(line["status"]))
            assert (device, line["state"], line["late"], said, line["online"]) == \
                (device, model.state(event, device), told.late, told.status, model.is_online(device))
            assert line["attempt"] == told.resends + model.is_sent(event, device), f"{format_id(event.id)}: {line}, not {told}"
            assert (line["latency"] is None) == (told.latency is None)
            assert told.latency is None or abs(line["latency"] - told.latency) <= 0.06 * told.latency + 0.001

    @rule(channel=CHANNEL, which=ANY, limit=st.integers(1, 5))
    def look_at_history(self, channel: str, which: int, limit: int) -> None:
        after = self.some_id(which)
        events, more = self.do(self.real.store.history(channel, after, limit))
        kept = [event.id for event in (self.model.channels[channel].events if channel in self.model.channels else []) if event.id > after]
        assert ([event.id for event in events], more) == (kept[:limit], len(kept) > limit)

    @rule(which=ANY, state=st.sampled_from(["outstanding", "sent", "pending", "expired", "processed"]))
    def look_at_devices(self, which: int, state: str) -> None:
        event = self.model.event(self.some_id(which))
        if event is None:
            return
        wanted = sorted(device for device in event.told if self.model.state(event, device) == state or
                        (state == "outstanding" and owes(event.told[device].state, event.level)))
        found: list[str] = []
        start: int | None = 0
        while start is not None:
            lines, start = self.do(self.real.store.lines(event.channel, event.id, state, start, 1))
            found += [line["device"] for line in lines]
        assert sorted(found) == wanted


class AgainstMemory(Against):
    kind = "memory"


class AgainstSqlite(Against):
    kind = "sqlite"


class AgainstRedis(Against):
    kind = "redis"


MACHINES: dict[str, type[Against]] = {"memory": AgainstMemory, "redis": AgainstRedis, "sqlite": AgainstSqlite}


def run(store: str, examples: int, steps: int, number: int | None = None) -> None:
    """So many stories of so many deeds. With a `number` they are those of this seed, else always the same."""
    plan = settings(max_examples=examples, stateful_step_count=steps, deadline=None, database=None, derandomize=number is None,
                    suppress_health_check=list(HealthCheck), print_blob=False, report_multiple_bugs=False,
                    phases=[Phase.generate, Phase.shrink])
    machine = MACHINES[store]
    run_state_machine_as_test(seed(number)(machine) if number is not None else machine, settings=plan)


@click.command()
@click.option("--minutes", default=10.0, help="How long to go on.")
@click.option("--seed", "first", default=0, help="Decides what is done; 0 takes one by chance.")
@click.option("--store", type=click.Choice(sorted(MACHINES)), help="This store only.")
def main(minutes: float, first: int, store: str | None) -> None:
    """Do the same at random to the server and to the model, until the time is over or they differ."""
    first = first or random.randrange(1, 10**9)
    deadline, started = time.monotonic() + 60 * minutes, time.monotonic()
    number = first
    while time.monotonic() < deadline:
        for name in [store] if store else sorted(MACHINES):
            print(f"--seed {number} --store {name}", flush=True)
            run(name, 100, 60, number)
        number += 1
    steps = sum(getattr(machine, "total", 0) for machine in MACHINES.values())
    print(f"{steps} steps, {steps / (time.monotonic() - started):.0f} a second, and no difference")


if __name__ == "__main__":
    main()
