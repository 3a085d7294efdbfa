"""What every test finds in its place: a loop, real servers on it, and clients that speak to them over real sockets.

The plugin for async tests knows no async fixtures, so those that have something to await return an async function.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
import wire
from certificates import Authority
from hooks import LOCAL, Receiver
from hypothesis import HealthCheck, settings
from processes import SECONDS
from prometheus_client.parser import text_string_to_metric_families
from pytest_tornasync.plugin import get_test_timeout
from redises import named
from tornado.ioloop import IOLoop

from bench.handing import listening
from pere.config import Config
from pere.parts import open_store
from pere.server import Server
from pere.storage import Store

# No property is judged by how long an example takes: a machine may be as busy as it likes. And each is tried with the same examples every
# time, so that a change fails for its own reason: `make fuzz` and `make soak` go where nobody has been, and so does whoever says
# `make test ARGS=--hypothesis-profile=exploring`.
settings.register_profile("exploring", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=False)
settings.register_profile("patient", settings.get_profile("exploring"), derandomize=True, database=None)
settings.load_profile("patient")

# A machine may forbid Python to keep what it compiled. Then each of the thousand programs that are started here would compile all of PERE
# anew, which takes longer than to start does, and each worker all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Where a test takes longest, or what all of a file stand on. These begin first: at the end nobody has one of them alone before him while the
# others have nothing more to do, and what a file stands on is made once and not by each who takes over some of its tests.
LONGEST = ("test_deploy_docker", "test_packaging", "test_openapi", "test_crash", "test_chaos", "test_model", "test_bench", "test_http1_differences", "test_nodes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


# Who is started by a shell in the background has Ctrl-C ignored, and so would all programs that are started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def io_loop(request):
    """A loop of its own for each test, the one that serves in production, which leaves nothing behind. (pytest-tornasync's own fixture
    of this name calls what Tornado has deprecated, and closes descriptors under transports that still use them.)"""
    loop = IOLoop(make_current=True, asyncio_loop=uvloop.new_event_loop())
    for seconds in (-5.0, 30.0):  # before it is cancelled, and where it does not end even then
        loop.call_later(get_test_timeout(request.node) + seconds, _tell_where, request)
    yield loop
    loop.run_sync(_end)
    loop.close()


def _tell_where(request: pytest.FixtureRequest) -> None:
    """A test is about to take too long, which is all that would be said of it. It is told past what is captured, which is lost with a worker that is ended."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"{request.node.nodeid} takes too long", file=sys.__stderr__, flush=True)
        for task in asyncio.all_tasks():
            print(task, *_awaited(task.get_coro()), sep="\n    ", file=sys.__stderr__, flush=True)


def _awaited(coroutine: Any) -> Iterator[str]:
    """Where it stands, and where that stands which it waits for: a task itself tells only of the first."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None) or getattr(coroutine, "ag_frame", None)
        yield f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame is not None else repr(coroutine)
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)


async def _end() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    left, more = tasks, 6
    while left and more:
        for task in left:
            task.cancel()  # once more where that was lost: `asyncio.wait_for` of Python 3.11 swallows it if what it waits for is there in the same moment
        _, left = await asyncio.wait(left, timeout=10)
        more -= 1
    assert not left, left
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
    # A transport that was told to close does so in the next turn.
    await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def no_surprises(request, caplog):
    """A warning in the log that nobody expected fails the test; who expected it says `caplog.clear()`."""
    yield
    # What asyncio complains of is ours where the test has a server of ours on its loop.
    ours = ("pere", "tornado.application", "asyncio") if "start" in request.fixturenames else ("pere", "tornado.application")
    unexpected = [record.getMessage() for when in ("call", "teardown") for record in caplog.get_records(when)
                  if record.name.startswith(ours) and record.levelno >= logging.WARNING]
    assert not unexpected, (unexpected, [getattr(record, "facts", None) for when in ("call", "teardown") for record in caplog.get_records(when)])


class Start:
    """Makes servers on the running loop, with this store if nothing else is said. The helpers below speak to the newest one, and start a plain one if
    there is none."""

    def __init__(self, store: str = "memory:") -> None:
        self.servers: list[Server] = []
        self._store = store

    async def __call__(self, store: Store | None = None, **config: Any) -> Server:
        settings = Config(**{"port": 0, "store": self._store} | config)
        if store is None:
            store = open_store(settings)
        await store.begin()
        server = Server(settings, store)
        await server.start()
        self.servers.append(server)
        return server

    async def port(self) -> wire.Way:
        """How to get to the newest one."""
        return (self.servers[-1] if self.servers else await self()).port


@pytest.fixture
def kept_in(request, tmp_path):
    """What `--store` says, where a test says nothing: memory, or each of those that a mark of `redises.py` names."""
    return named(getattr(request, "param", "memory"), tmp_path)


@pytest.fixture
def start(io_loop, kept_in):
    """`server = await start(heartbeat=1)`: a real server with these settings, which is stopped at the end."""
    start = Start(kept_in)
    yield start
    for server in start.servers:
        io_loop.run_sync(server.stop, timeout=SECONDS)


@pytest.fixture
def tcp():
    """A socket that listens on a free port of this machine, as a manager hands one in."""
    made = listening()
    yield made
    made.close()


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """Who signs certificates for this machine, and is believed."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def chromium():
    """`told = await chromium(story)`: what a real browser does, see browsers.Chromium."""
    from browsers import Chromium  # only who asks for it waits for its import

    made = Chromium()
    yield made
    made.close()


@pytest.fixture
def connect(start):
    """`wire = await connect()`: a connection, to say anything on."""
    wires: list[wire.Wire] = []

    async def connect(buffer: int = 0) -> wire.Wire:
        wires.append(await wire.Wire.open(await start.port(), buffer))
        return wires[-1]

    yield connect
    for each in wires:
        each.close()


@pytest.fixture
def listen(start):
    """`feed = await listen("news", device="d", last=id, from_="all")`: a feed that has said its `pere.hello`."""
    feeds: list[wire.Feed] = []

    async def listen(*channels: str, **wanted: Any) -> wire.Feed:
        feeds.append(await wire.listen(await start.port(), *channels, **wanted))
        return feeds[-1]

    yield listen
    for feed in feeds:
        feed.close()


@pytest.fixture
def ask(start):
    """`answer = await ask("POST", "/push/news", b"1", Device="d")`: any request, and its answer."""

    async def ask(method: str, target: str, body: bytes | str | object = b"", **headers: str) -> wire.Answer:
        return await wire.request(await start.port(), method, target, body, **headers)

    return ask


@pytest.fixture
def get(ask):
    """`await get("/events/news")`: the JSON of a page that is there."""

    async def get(target: str, **headers: str) -> Any:
        answer = await ask("GET", target, **headers)
        assert answer.status == 200, answer
        return answer.json

    return get


@pytest.fixture
def push(start):
    """`id = await push("news", {"n": 1}, to=["d"], receipt="none", key="k", device="p")`: an event; text stays text."""

    async def push(channel: str, data: Any = 1, *, device: str = "", key: str = "", **query: Any) -> str:
        return (await wire.push(await start.port(), channel, data, device=device, key=key, **query)).json["id"]

    return push


@pytest.fixture
def feedback(start):
    """`answer = await feedback("news", "d", id, state="failed", status="no paper")`: a receipt, and the answer to it."""

    async def feedback(channel: str, device: str, id: str, **said: Any) -> wire.Answer:
        return await wire.request(await start.port(), "POST", f"/feedback/{channel}", said, Device=device, Last_Event_ID=id)

    return feedback


@pytest.fixture
def measured(ask):
    """`before = await measured()`: every sample of /metrics by its name and the values of its labels, those in the order of their names:
    `m["pere_feeds"]`, `m["pere_receipts_total", "duplicate", "processed"]` (outcome, state)."""

    async def measured() -> dict[Any, float]:
        answer = await ask("GET", "/metrics")
        families = list(text_string_to_metric_families(answer.body.decode()))
        return {(sample.name, *(sample.labels[name] for name in sorted(sample.labels))) if sample.labels else sample.name: sample.value
                for family in families for sample in family.samples}

    return measured


@pytest.fixture
def until():
    """`await until(lambda: not server.hub.feeds)`: let the loop go on until something is true; the time limit of the test is the end of it."""

    async def until(is_true: Callable[[], object]) -> None:
        while not is_true():
            await asyncio.sleep(0.001)

    return until


@pytest.fixture
def receiver(io_loop):
    """`there = receiver(500, 204)`: somebody's server, see hooks.Receiver."""
    made: list[Receiver] = []

    def receiver(*answers: int) -> Receiver:
        made.append(Receiver(*answers or (204,)))
        return made[-1]

    yield receiver
    for each in made:
        io_loop.run_sync(each.end, timeout=SECONDS)


@pytest.fixture
def hooked(start, tmp_path):
    """`server = await hooked("sqlite", max_webhooks=2)`: one that may send webhooks to this machine; after a stop, the same file again."""

    async def hooked(kind: str = "", **config):
        settings = LOCAL | config
        return await start(open_store(Config(store=named(kind, tmp_path), **settings)) if kind else None, **settings)

    return hooked


@pytest.fixture
def add(ask):
    """`endpoint = await add(there.url, types=[...])`: an endpoint that was taken."""

    async def add(url: str, **said):
        answer = await ask("POST", "/webhooks", {"url": url, **said})
        assert answer.status == 201, answer
        return answer.json

    return add


@pytest.fixture
def in_state(get):
    """`told = await in_state(id, "active")`: wait until an endpoint is."""

    async def in_state(id: str, state: str):
        while (told := await get(f"/webhooks/{id}"))["state"] != state:
            await asyncio.sleep(0.005)
        return told

    return in_state
