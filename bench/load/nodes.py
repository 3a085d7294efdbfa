"""What do further nodes cost, how far is one from another, and is anything lost between them?

    python -m bench.load.nodes --pushes 300 --devices 2000

Real nodes on this machine, and a Redis of their own that appends to its file once a second. The questions:

    idle     one node has a feed and takes the pushes, and keeps what is written beside the log; up to three have nobody, and sleep: processor time of all of them and Redis
             for a push, where pushes come one by one (20 ms apart) and where a thousand come in a second; in turn, and the medians of the rounds are told
    awake    the same where each of the others has a feed of another channel, so that it takes everything in
    others   is a push dearer for each further node on which nobody listens to its channel? Each of them has --listeners feeds of channels of its own, on which nothing comes; 500 pushes a second
             on the first, one by one and 50 in a request: processor time of Redis, of that node, and of each of the others, medians of the rounds with the least and the most
    each     every node has a feed and takes pushes of its own, 100 a second: processor time of all for a push
    table    both at a thousand a second, for bench/results
    apart    a push on one node until it is on a feed of the same, and of another
    both     devices on two nodes, half of them on each; the events are pushed on both in turn, and each device gives its receipt to the node where it is
             not. At the end the states of every event are asked for on both
    alone    a push that comes alone until it is answered, by a node that waits for no replica and by one that waits for one (--redis-wait 1), in turn

A run fails if anything is refused, lost, or counted twice. On two processors four nodes, Redis and the load are in each other's way: read the processor times, not the rates.
"""

import asyncio
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from statistics import median, quantiles
from typing import Any

import click
import orjson
import uvloop

from bench.rounds import free_port, here, keep, show

BODY = b"x" * 150
LINES = 64  # connections that carry receipts to a node
PATIENCE = 60.0
RATES = (50, 1000)  # pushes a second
RATE, MANY = 500, 50  # pushes a second for `others`, and how many of them are in a request
OWN = 100  # pushes a second on each node for `each`
KEPT_BY = 2.5  # seconds after which what was said at the start is kept
LOOK = 3.0  # seconds for which is looked at what it costs to do nothing
CHANNELS = 20  # of each of the others
KEPT = 1_000  # events of the channel before that is measured, and no more: so each push makes an older one make way, as it is on a server that has run for a while
TABLE = {"1 node": (1, False), "2 nodes, the other asleep": (2, False), "2 nodes, the other awake": (2, True), "3 nodes, the others asleep": (3, False), "3 nodes, the others awake": (3, True)}
ASLEEP = 15.0  # seconds after which a node sleeps that nobody asks
ID = re.compile(rb"id: (\d+-\d+)\n")


def processor(process: "subprocess.Popen[bytes]") -> float:
    """Seconds of processor time that it has used: clock_getcpuclockid(3)."""
    return time.clock_gettime(~process.pid << 3 | 2)


@contextlib.contextmanager
def deployment(count: int, replicas: int = 0, kept: int = 100_000) -> Iterator[tuple["subprocess.Popen[bytes]", list[tuple[int, "subprocess.Popen[bytes]"]]]]:
    """Redis, and so many nodes with their ports; they wait for so many replicas, and keep so many events of a channel."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise click.ClickException("redis-server is not installed")
    with contextlib.ExitStack() as all:
        def start(*command: str) -> "subprocess.Popen[bytes]":
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            all.callback(process.wait)
            all.callback(process.terminate)
            return process

        def stored(port: int, *more: str) -> "subprocess.Popen[bytes]":
            folder = all.enter_context(tempfile.TemporaryDirectory())
            process = start(program, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "yes", "--appendfsync", "everysec", *more)
            time.sleep(0.3)
            return process

        port = free_port()
        redis = stored(port)
        for _ in range(replicas):
            stored(free_port(), "--replicaof", "127.0.0.1", str(port))
        nodes = []
        for _ in range(count):
            own = free_port()
            nodes.append((own, start(sys.executable, "-m", "pere", "serve", "--port", str(own), "--store", f"redis://127.0.0.1:{port}/0", "--log-level", "error",
                                     "--redis-wait", str(replicas), "--backlog-events", str(kept), "--subject-pushes", "0")))
            listens(own)  # one after the other: so the first is the keeper too, which one has to be however many there are
        yield redis, nodes


def listens(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise click.ClickException("a node did not start") from None
            time.sleep(0.02)


def said(method: str, target: str, *fields: str, body: bytes = b"", type: str = "text/plain") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: bench", f"Content-Type: {type}", *fields, f"Content-Length: {len(body)}", "", ""]).encode() + body


class Line:
    """A connection on which one asks after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()

    @classmethod
    async def open(cls, port: int) -> "Line":
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 20))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        async with self._turn:
            self._writer.write(request)
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            return int(head[9:12]), await self._reader.readexactly(int(length[1])) if length else b""

    async def push(self, channel: str) -> str:
        status, body = await self.ask(said("POST", f"/push/{channel}", body=BODY))
        if status != 201:
            raise click.ClickException(f"a push was answered {status}: {body.decode()}")
        return str(orjson.loads(body)["id"])


    async def push_many(self, channel: str, count: int) -> None:
        status, body = await self.ask(said("POST", "/push", body=orjson.dumps([{"channel": channel, "data": BODY.decode()}] * count), type="application/json"))
        if status >= 300 or any("id" not in each for each in orjson.loads(body)["results"]):
            raise click.ClickException(f"pushes were answered {status}: {body[:200].decode()}")


class Feed(asyncio.Protocol):
    """One device. `on_event` is told every id that comes, and when."""

    def __init__(self, device: str, channel: str, on_event: Callable[[str, str, float], None]) -> None:
        self._request = said("GET", f"/feed/{channel}", f"Device: {device}")
        self._on_event = on_event
        self._device = device
        self._rest = b""
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self.greeted.done() and b"pere.hello" in data:
            self.greeted.set_result(None)
        whole, mark, self._rest = (self._rest + data).rpartition(b"\n\n")
        for id in ID.findall(whole + mark):
            self._on_event(self._device, id.decode(), now)

    @classmethod
    async def open(cls, port: int, device: str, channel: str, on_event: Callable[[str, str, float], None]) -> None:
        _, feed = await asyncio.get_running_loop().create_connection(lambda: cls(device, channel, on_event), "127.0.0.1", port)
        await feed.greeted


# The questions


async def spent(everybody: "Sequence[subprocess.Popen[bytes]]", rate: float, number: int, push: Callable[[int], Coroutine[Any, Any, object]]) -> list[float]:
    """Microseconds of processor time that each of these takes for one of so many pushes (or requests of many), beyond what it takes to do nothing for as long."""
    await asyncio.sleep(KEPT_BY)
    quiet = [processor(each) for each in everybody]
    await asyncio.sleep(LOOK)
    quiet = [(processor(each) - before) / LOOK for each, before in zip(everybody, quiet, strict=True)]
    before, started = [processor(each) for each in everybody], time.perf_counter()
    under_way: set[asyncio.Task[object]] = set()
    for turn in range(number):
        await asyncio.sleep(max(0.0, started + turn / rate - time.perf_counter()))
        task = asyncio.ensure_future(push(turn))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    await asyncio.sleep(1.2)  # who is awake has looked by now
    took = time.perf_counter() - started
    return [1e6 * (processor(one) - start - idle * took) / number for one, start, idle in zip(everybody, before, quiet, strict=True)]


async def others(count: int, pushes: int, listeners: int) -> list[list[float]]:
    """Microseconds for a push of Redis and each node: one by one, and many in a request."""
    with deployment(count, kept=KEPT) as (redis, nodes):
        await Feed.open(nodes[0][0], "d", "c", lambda *_: None)
        for node, (port, _) in enumerate(nodes[1:], 2):
            await asyncio.gather(*(Feed.open(port, f"d{node}-{number}", f"c{node}-{number % CHANNELS}", lambda *_: None) for number in range(listeners)))
        lines = [await Line.open(nodes[0][0]) for _ in range(8)]
        for _ in range(0, KEPT, MANY):
            await lines[0].push_many("c", MANY)
        everybody = [redis, *(process for _, process in nodes)]
        single = await spent(everybody, RATE, pushes, lambda turn: lines[turn % len(lines)].push("c"))
        many = await spent(everybody, RATE / MANY, -(-pushes // MANY), lambda turn: lines[turn % len(lines)].push_many("c", MANY))
    return [single, [each / MANY for each in many]]


async def each(count: int, pushes: int) -> list[float]:
    """Microseconds for a push of Redis, and of all nodes, where it is their turn one after the other."""
    with deployment(count, kept=KEPT) as (redis, nodes):
        for node, (port, _) in enumerate(nodes):
            await Feed.open(port, f"d{node}", f"c{node}", lambda *_: None)
        lines = [[await Line.open(port) for _ in range(8)] for port, _ in nodes]
        found = await spent([redis, *(process for _, process in nodes)], OWN * count, pushes * count,
                            lambda turn: lines[turn % count][turn // count % 8].push(f"c{turn % count}"))
    return [found[0], sum(found[1:])]


async def idle(count: int, pushes: int, is_awake: bool, rates: Sequence[int] = RATES) -> list[float]:
    """Microseconds for a push, at 50 and at 1,000 a second: of all, of Redis, of the node with the feed, of one of the others."""
    figures = []
    with deployment(count, kept=KEPT) as (redis, nodes):
        await Feed.open(nodes[0][0], "d", "c", lambda *_: None)
        for number, (port, _) in enumerate(nodes[1:] if is_awake else ()):
            await Feed.open(port, f"d{number}", f"c{number}", lambda *_: None)
        if count > 1 and not is_awake:
            await asyncio.sleep(ASLEEP)
        lines = [await Line.open(nodes[0][0]) for _ in range(8)]
        for _ in range(0, KEPT, len(lines)):
            await asyncio.gather(*(line.push("c") for line in lines))
        for rate in rates:
            number = max(pushes, pushes * rate // 100)
            each = await spent([redis, *(process for _, process in nodes)], rate, number, lambda turn: lines[turn % len(lines)].push("c"))
            figures += [sum(each), each[0], each[1], median(each[2:]) if count > 1 else 0.0]
    return figures


def table(pushes: int, rounds: int) -> None:
    """A line for each deployment, round after round, kept with all other results."""
    shows = ("push_us", "redis_us", "its_node_us", "each_other_us")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in TABLE}
    for _ in range(rounds):
        for name, (count, is_awake) in TABLE.items():
            runs[name].append(dict(zip(shows, uvloop.run(idle(count, pushes, is_awake, RATES[1:])), strict=True)))
    result: dict[str, Any] = {"name": "nodes", "scenario": "nodes"} | here() | {
        "servers": {name: {"version": ""} for name in runs}, "arguments": {"rate": RATES[1], "pushes": pushes * RATES[1] // 100, "bytes": len(BODY), "kept": KEPT}, "rounds": rounds,
        "is_short": False, "floor": "", "shows": shows, "runs": runs, "curves": {}, "failures": {}, "absent": []}
    result["pinned"] = False
    show(result)
    print(keep(result))


async def apart(pushes: int) -> list[float]:
    """Milliseconds from a push to the feed: on the same node, on the other; medians and 99th percentiles."""
    came: dict[str, dict[str, float]] = {"here": {}, "there": {}}
    with deployment(2) as (_, nodes):
        for (port, _), device in zip(nodes, came, strict=True):
            await Feed.open(port, device, "c", lambda device, id, now: came[device].__setitem__(id, now))
        line = await Line.open(nodes[0][0])
        pushed = {}
        for _ in range(pushes):
            started = time.perf_counter()
            pushed[await line.push("c")] = started
            await asyncio.sleep(0.01)
        async with asyncio.timeout(PATIENCE):
            while any(len(each) < pushes for each in came.values()):
                await asyncio.sleep(0.01)
    took = [[1000 * (each[id] - started) for id, started in pushed.items()] for each in came.values()]
    return [figure for each in took for figure in (median(each), quantiles(each, n=100)[98])]


async def alone(pushes: int) -> list[float]:
    """Milliseconds from a push to its answer, with no replica waited for and with one; medians and 99th percentiles."""
    took: list[list[float]] = [[], []]
    with deployment(1) as (_, nodes), deployment(1, 1) as (_, waiting):
        lines = [await Line.open(each[0][0]) for each in (nodes, waiting)]
        async with asyncio.timeout(PATIENCE):
            while (await lines[1].ask(said("GET", "/readyz")))[0] != 200:  # until its replica is there
                await asyncio.sleep(0.1)
        for line in lines:
            await line.push("c")
        for _ in range(pushes):
            for line, each in zip(lines, took, strict=True):
                await asyncio.sleep(0.01)
                started = time.perf_counter()
                await line.push("c")
                each.append(1000 * (time.perf_counter() - started))
    return [figure for each in took for figure in (median(each), quantiles(each, n=100)[98])]


async def both(devices: int, events: int) -> list[float]:
    """Acknowledged deliveries a second, and microseconds of processor time for each: of both nodes, of Redis."""
    with deployment(2) as (redis, nodes):
        ports = [port for port, _ in nodes]
        lines = [[await Line.open(port) for _ in range(LINES)] for port in ports]
        answered, refused = 0, 0
        tasks: set[asyncio.Task[None]] = set()

        async def answer(device: str, id: str) -> None:
            nonlocal answered, refused
            number = int(device[1:])
            status, body = await lines[1 - number % 2][number // 2 % LINES].ask(said("POST", "/feedback/c", f"Device: {device}", f"Last-Event-ID: {id}"))
            answered += status == 200 and orjson.loads(body) == {"state": "processed", "duplicate": False}
            refused += status != 200

        def came(device: str, id: str, _: float) -> None:
            task = asyncio.ensure_future(answer(device, id))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        for start in range(0, devices, 100):
            await asyncio.gather(*(Feed.open(ports[number % 2], f"d{number}", "c", came) for number in range(start, start + 100)))
        await asyncio.sleep(1)
        before, started = [processor(each) for each in (redis, *(process for _, process in nodes))], time.perf_counter()
        ids = []
        async with asyncio.timeout(PATIENCE):
            for turn in range(events):
                ids.append(await lines[turn % 2][0].push("c"))
                while answered + refused < (turn + 1) * devices:
                    await asyncio.sleep(0.002)
        took = time.perf_counter() - started
        spent = [processor(each) - start for each, start in zip((redis, *(process for _, process in nodes)), before, strict=True)]
        if refused or answered != devices * events:
            raise click.ClickException(f"{refused} receipts were refused, {answered} of {devices * events} were news")
        for line, id in ((each[0], id) for each in lines for id in ids):
            status, body = await line.ask(said("GET", f"/events/c/{id}"))
            counts = orjson.loads(body)["counts"]
            if status != 200 or counts["processed"] != devices or sum(counts.values()) != devices:
                raise click.ClickException(f"{id} has {counts} for {devices} devices")
        each = 1e6 / (devices * events)
        return [devices * events / took, sum(spent[1:]) * each, spent[0] * each]


@click.command
@click.option("--pushes", default=300)
@click.option("--devices", default=4000, help="of both nodes together; 2,000 on each")
@click.option("--events", default=10)
@click.option("--nodes", "most", default=4)
@click.option("--rounds", default=1, help="with each number of nodes, one after the other")
@click.option("--listeners", default=200, help="on each of the others, for `others`")
@click.option("--only", type=click.Choice(["idle", "awake", "others", "each", "table", "apart", "both", "alone"]))
def main(pushes: int, devices: int, events: int, most: int, rounds: int, listeners: int, only: str | None) -> None:
    for what in ("idle", "awake") if only is None else (only,) if only in ("idle", "awake") else ():
        print(f"microseconds of processor for a push; others are {what}   50 a second                           1,000 a second")
        print("nodes     all   Redis  its node     each other       all   Redis  its node     each other")
        figures: list[list[list[float]]] = [[] for _ in range(most)]
        for _ in range(rounds):
            for count, rows in enumerate(figures, 1):
                rows.append(uvloop.run(idle(count, pushes, what == "awake")))
        for count, rows in enumerate(figures, 1):
            found = [median(row) for row in zip(*rows, strict=True)]
            print(f"{count:5} " + "     ".join(f"{part[0]:7.0f} {part[1]:7.0f} {part[2]:9.0f} {part[3]:13.0f}" for part in (found[:4], found[4:])), flush=True)
    if only == "others":
        rows_of = {count: [] for count in range(1, most + 1)}  # type: dict[int, list[list[list[float]]]]
        for turn in range(rounds):
            for count, runs in rows_of.items():
                runs.append(uvloop.run(others(count, pushes, listeners)))
                print(f"round {turn + 1}, {count} nodes: " + "; ".join(f"{how} " + " ".join(f"{each:.1f}" for each in row) for how, row in zip(("one by one", "many at once"), runs[-1], strict=True)), flush=True)
        print(f"microseconds of processor for a push at {RATE} a second; on each of the others {listeners} feeds of other channels")
        print("                     nodes            all          Redis       its node  each of the others")
        for place, how in enumerate(("one by one", f"{MANY} in a request")):
            for count, runs in rows_of.items():
                ways = [run[place] for run in runs]
                figures = [[sum(way) for way in ways], [way[0] for way in ways], [way[1] for way in ways], [each for way in ways for each in way[2:]] or [0.0]]
                print(f"{how:20} {count:5} " + " ".join(f"{median(each):6.1f} ({min(each):.1f} to {max(each):.1f})" for each in figures))
    if only == "each":
        print(f"microseconds of processor for a push; each node takes {OWN} a second\nnodes            Redis              nodes")
        found = {count: [] for count in range(1, most + 1)}  # type: dict[int, list[list[float]]]
        for _ in range(rounds):
            for count, sums in found.items():
                sums.append(uvloop.run(each(count, pushes)))
        for count, sums in found.items():
            print(f"{count:5} " + " ".join(f"{median(row):6.1f} ({min(row):.1f} to {max(row):.1f})" for row in zip(*sums, strict=True)), flush=True)
    if only == "table":
        table(pushes, rounds)
    if only in (None, "apart"):
        here, here_99, there, there_99 = uvloop.run(apart(pushes))
        print(f"from a push to a feed of the same node {here:.2f} ms (p99 {here_99:.2f}), of another {there:.2f} ms (p99 {there_99:.2f})")
    if only in (None, "both"):
        rate, nodes, redis = uvloop.run(both(devices, events))
        print(f"{devices * events:,} deliveries to devices of two nodes, each acknowledged on the other: {rate:,.0f} a second, {nodes:.1f} us of the nodes and {redis:.1f} us of Redis each; "
              "nothing lost, nothing counted twice")
    if only in (None, "alone"):
        without, without_99, one, one_99 = uvloop.run(alone(pushes))
        print(f"a push that comes alone is answered after {without:.2f} ms (p99 {without_99:.2f}), after {one:.2f} ms (p99 {one_99:.2f}) where one replica must have it")


if __name__ == "__main__":
    os.environ["NO_PROXY"] = "*"
    main()
