"""What do devices and publishers notice of a server that is started anew while they go on?

    python -m bench.load.restart                              all ways, 5,000 devices, 3 restarts each: seven minutes
    python -m bench.load.restart --way sqlite --devices 500 --restarts 1

Devices with feeds on many channels, each of which answers every event; a publisher that pushes all the time. Meanwhile the server ends and another begins: *sqlite*, where one
process follows another on a socket that is handed in, as systemd does it; *overlap*, where the next one is there before and waits for the file of the last one; *redis*, where both
serve for a while, on a port that they share by SO_REUSEPORT; *handover* and *redis handover*, where the next one takes over what is open (`--handover`).

A latency counts from the time for which a push was scheduled, to its arrival at a device. *During* is from the signal (the start of the next process, where that is earlier) until all feeds are
back and a second longer; *in all* is from the first of these moments to the last, with what is usual between two restarts in it; *usual* is all the rest. The *pause* is the longest that one of the
requests had to wait that ask /healthz all the time, one after the other: until the server answers again, whoever it is by then. *Refused* is a connection that was, *cut* a request whose connection ended before its answer came (it is said again, a push with the same Idempotency-Key),
*lost* is an event that a device of its audience never got, or a receipt that was answered 200 and is not in the delivery status; *doubled* an event that a device was sent twice.
"""

# It is a little longer than a file should be: its lines and devices are as little as they can be, so that five thousand of them leave the processor to the server, and what
# they count means something only together with how the servers follow each other.

import argparse
import asyncio
import os
import random
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import orjson
import uvloop

from bench.handing import handed, listening

WAYS = ("sqlite", "overlap", "handover", "redis", "redis handover")
LINES = 16  # connections that carry the receipts
RETRY = 3.0  # seconds after which a feed that ended without a word comes back
KNOCK = 0.05  # and who was refused or cut
PULSE = 0.005  # seconds between two looks at whether somebody answers


class Line(asyncio.Protocol):
    """A connection that asks one thing at a time. What is cut is asked again, on a new one."""

    def __init__(self, load: "Load"):
        self._load = load
        self._waiting: deque[tuple[bytes, Callable[[int, bytes], None]]] = deque()
        self._transport: Any = None
        self._is_asking = self._is_connecting = False
        self._came = b""

    def ask(self, request: bytes, then: Callable[[int, bytes], None]) -> None:
        self._waiting.append((request, then))
        self._go_on()

    @property
    def is_idle(self) -> bool:
        return not self._waiting

    def _go_on(self) -> None:
        if self._is_asking or not self._waiting or self._is_connecting:
            return
        if self._transport is None:
            self._is_connecting = True
            self._load.spawn(self._connect())
            return
        self._is_asking = True
        self._transport.write(self._waiting[0][0])

    async def _connect(self) -> None:
        await self._load.connect(lambda: self)
        self._is_connecting = False
        self._go_on()

    def connection_made(self, transport: Any) -> None:
        self._transport, self._came = transport, b""

    def data_received(self, data: bytes) -> None:
        self._came += data
        head, found, body = self._came.partition(b"\r\n\r\n")
        length = re.search(rb"\r\nContent-Length: (\d+)", head)
        if not found or (length and len(body) < int(length[1])):
            return
        self._came, self._is_asking = b"", False
        status, closes = int(head[9:12]), b"Connection: close" in head
        is_put_off = status >= 500 or status == 429
        if status >= 300 and status != 409:
            self._load.counts[f"answered {status}"] += 1
        if is_put_off:
            closes = True  # and again, a moment later
        else:
            _, then = self._waiting.popleft()
            then(status, body)
        if closes:
            self._transport.close()
            self._transport = None
            asyncio.get_running_loop().call_later(KNOCK if is_put_off else 0, self._go_on)
        else:
            self._go_on()

    def connection_lost(self, error: Exception | None) -> None:
        if self._is_asking:
            self._load.counts["cut"] += 1
        self._is_asking = False
        if self._transport is not None and self._transport.is_closing():
            self._transport = None
            asyncio.get_running_loop().call_later(KNOCK, self._go_on)


class Device(asyncio.Protocol):
    """One device on one channel. It answers what it gets, and comes back when it was told to."""

    def __init__(self, load: "Load", number: int):
        self.channel = f"c{number % load.channels}"
        self.got: Counter[bytes] = Counter()
        self.is_open = False
        self._load = load
        self._name = b"d%d" % number
        self._target = f"GET /feed/{self.channel} HTTP/1.1\r\nHost: x\r\nDevice: d{number}\r\n\r\n".encode()
        self._answer = b"POST /feedback/%b HTTP/1.1\r\nHost: x\r\nDevice: %b\r\nLast-Event-ID: %%b\r\nContent-Length: 0\r\n\r\n" % (self.channel.encode(), self._name)

    def come(self) -> None:
        self._load.spawn(self._load.connect(lambda: self))

    def connection_made(self, transport: Any) -> None:
        self._came, self._retry, self._transport, self._is_told = b"", RETRY, transport, False
        transport.write(self._target)

    def data_received(self, data: bytes) -> None:
        *frames, self._came = (self._came + data).split(b"\n\n")
        if not self._is_told and not data.startswith(b"HTTP/1.1 200"):
            self._transport.close()  # and again: who was refused is left the connection, on which nothing more comes
        self._is_told = True
        for frame in frames:
            if b"event: pere.hello" in frame:
                self.is_open = True
                self._load.opened()
            if (retry := re.search(rb"^retry: (\d+)", frame, re.M)) is not None:
                self._retry = int(retry[1]) / 1000
            if (event := re.search(rb"^id: (\S+)\ndata: ([\d.]+)$", frame, re.M)) is not None:
                self._take(event[1], float(event[2]))

    def _take(self, id: bytes, due: float) -> None:
        self.got[id] += 1
        if self.got[id] == 1:
            self._load.latencies.append((due, time.monotonic() - due))
            self._load.receipt(self._answer % id)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.is_open:
            self._load.counts["cut"] += 1
            self._retry = KNOCK
        self.is_open = False
        self._load.is_closed or asyncio.get_running_loop().call_later(self._retry, self.come)


class Load:
    """Devices, a publisher, and all that became of them."""

    def __init__(self, port: int, devices: int, per_second: float):
        self.port = port
        self.channels = max(1, devices // 20)
        self.counts: Counter[str] = Counter()
        self.latencies: list[tuple[float, float]] = []
        self.waits: list[tuple[float, float]] = []  # for an answer of whoever serves: when it was asked for, and how long
        self.pushed: dict[bytes, str] = {}  # the channel of each event
        self.receipts = 0  # that were answered 200
        self.is_over = self.is_closed = False
        self.devices = [Device(self, number) for number in range(devices)]
        self._lines = [Line(self) for _ in range(LINES)]
        self._publishers = [Line(self) for _ in range(4)]
        self._pause = 1 / per_second
        self._tasks: set[asyncio.Task[Any]] = set()
        self._connections: dict[Any, Any] = {}
        self._turn = 0

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def connect(self, who: Callable[[], asyncio.Protocol]) -> None:
        # Also when it is over: what is asked is still to be answered, and who is away still to be sent what it lacks.
        while True:
            try:
                connection, whose = await asyncio.get_running_loop().create_connection(who, "127.0.0.1", self.port)
                self._connections[whose] = connection
                return
            except OSError:
                self.counts["refused"] += 1
                await asyncio.sleep(KNOCK)

    async def close(self) -> None:
        """Everybody leaves: where the servers do before, it is heard of only later, and the loop would end with what is still open on it."""
        self.is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._connections.values():
            connection.abort()
        await asyncio.sleep(0.02)  # the turns in which it is said

    def opened(self) -> None:
        self.counts["feeds opened"] += 1

    def receipt(self, request: bytes) -> None:
        self._turn += 1
        self._lines[self._turn % LINES].ask(request, self._kept)

    def _kept(self, status: int, body: bytes) -> None:
        self.receipts += status == 200 and b'"duplicate":false' in body

    @property
    def away(self) -> int:
        return sum(not device.is_open for device in self.devices)

    async def begin(self) -> None:
        for start in range(0, len(self.devices), 200):
            for device in self.devices[start : start + 200]:
                device.come()
            await asyncio.sleep(0.02)
        await self.all_back()

    async def all_back(self) -> None:
        while self.away:
            await asyncio.sleep(0.02)

    async def push(self) -> None:
        """One event after the other, each at its time."""
        number, due = 0, time.monotonic()
        while not self.is_over:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            channel, number = f"c{random.randrange(self.channels)}", number + 1
            body = b"%.6f" % due

            def then(status: int, answer: bytes, channel: str = channel) -> None:
                if status == 201:
                    self.pushed[orjson.loads(answer)["id"].encode()] = channel

            # The time for which it was scheduled is its payload.
            self._publishers[number % len(self._publishers)].ask(
                f"POST /push/{channel} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k{number}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body, then)
            due += self._pause

    async def feel_pulse(self) -> None:
        line = Line(self)
        while not self.is_over:
            began, done = time.monotonic(), asyncio.Event()
            line.ask(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", lambda status, body, done=done: done.set())  # type: ignore[misc]
            await done.wait()
            self.waits.append((began, time.monotonic() - began))
            await asyncio.sleep(PULSE)

    async def settle(self) -> None:
        """Until all that was pushed has arrived and is answered, or nothing more comes."""
        looks, before = 0, (0, 0, 0)
        while looks < 500 and not (all(line.is_idle for line in (*self._lines, *self._publishers)) and not self.missing()):
            came = len(self.pushed), len(self.latencies), self.receipts
            looks, before = looks + 1 if came == before else 0, came
            await asyncio.sleep(0.02)

    def missing(self) -> int:
        """Events that did not arrive, over all devices."""
        by_channel: dict[str, list[bytes]] = {}
        for id, channel in self.pushed.items():
            by_channel.setdefault(channel, []).append(id)
        return sum(not device.got[id] for device in self.devices for id in by_channel.get(device.channel, ()))

    def doubled(self) -> int:
        return sum(count - 1 for device in self.devices for count in device.got.values() if count > 1)

    async def unkept(self) -> int:
        """Receipts that were answered 200 and are not in the delivery status."""
        counted, line = 0, Line(self)
        for id, channel in self.pushed.items():
            done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            line.ask(f"GET /events/{channel}/{id.decode()} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), lambda status, body, done=done: done.set_result(body))  # type: ignore[misc]
            counted += orjson.loads(await done).get("counts", {}).get("processed", 0)  # none of an event that is not there
        return self.receipts - counted


class Servers:
    """One process after the other, on one port."""

    def __init__(self, way: str, folder: str, flags: list[str]):
        self._way = way
        self._log = open(os.path.join(folder, "servers.log"), "w+b")
        self._socket = listening()
        self.port = self._socket.getsockname()[1]
        self._folder = folder
        if self._is_shared:
            self._redis_port = listening()
            port = self._redis_port.getsockname()[1]
            self._redis_port.close()
            self._redis = subprocess.Popen(["redis-server", "--port", str(port), "--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--dir", folder],
                                           stdout=subprocess.DEVNULL)
            while self._redis.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.02)
            else:
                raise SystemExit(f"redis-server ended with {self._redis.returncode}")
            self._socket.close()
        store = f"redis://127.0.0.1:{port}/0" if self._is_shared else f"sqlite:{folder}/pere.db"
        self._arguments = ["serve", "--store", store, "--log-level", "info", *flags]
        if "handover" in way:
            self._socket.close()
            self._arguments += ["--handover", os.path.join(folder, "handover")]
        self.current: subprocess.Popen[bytes] | None = None

    @property
    def _is_shared(self) -> bool:
        return self._way.startswith("redis")

    async def start(self, word: str = "listening url=") -> "subprocess.Popen[bytes]":
        """A further process, which has said this when this returns."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("PERE_")}
        lines = self.said().count(word)
        if self._way != "sqlite" and self._way != "overlap":
            made = subprocess.Popen([sys.executable, "-m", "pere", *self._arguments, *(["--reuse-port"] if self._way == "redis" else []), "--port", str(self.port)], env=env, stderr=self._log)
        else:
            made = handed([self._socket], self._arguments, env, stderr=self._log)
        while self.said().count(word) == lines:
            if made.poll() is not None:
                raise SystemExit(f"a server did not start: {self.said()}")
            await asyncio.sleep(0.01)
        return made

    def said(self) -> str:
        return os.pread(self._log.fileno(), 1 << 20, 0).decode()

    async def ended(self, process: "subprocess.Popen[bytes]") -> None:
        process.send_signal(signal.SIGTERM)
        while process.poll() is None:
            await asyncio.sleep(0.01)
        if process.returncode:
            raise SystemExit(f"a server ended with {process.returncode}: {self.said()}")

    async def restart(self) -> None:
        before = self.current
        assert before is not None
        if self._way == "redis":
            self.current = await self.start()
            await self.ended(before)
        elif "handover" in self._way:
            self.current = await self.start()
            while before.poll() is None:
                await asyncio.sleep(0.01)
            if before.returncode:
                raise SystemExit(f"a server ended with {before.returncode}: {self.said()}")
        elif self._way == "overlap":
            self.current, lines = await self.start("waiting for the store"), self.said().count("listening url=")
            await self.ended(before)
            while self.said().count("listening url=") == lines:
                await asyncio.sleep(0.01)
        else:
            await self.ended(before)
            self.current = await self.start()

    def close(self) -> None:
        for process in (self.current, getattr(self, "_redis", None)):
            if process is not None:
                process.kill()
                process.wait()
        self._socket.close()
        self._log.close()


async def measure(way: str, devices: int = 5000, restarts: int = 3, per_second: float = 50.0, usual: float = 10.0, flags: tuple[str, ...] = (),
                  within: float | None = None) -> dict[str, float]:
    """What one way of restarting costs those who are there; `usual` are seconds in which nothing happens, before and between. Raises TimeoutError where all of it is not done
    `within` so many."""
    with tempfile.TemporaryDirectory() as folder:
        servers = Servers(way, folder, list(flags))
        load = Load(servers.port, devices, per_second)
        try:
            async with asyncio.timeout(within):
                return await _measure(servers, load, restarts, usual)
        except TimeoutError as error:
            raise TimeoutError(f"after {within} s {load.away} devices are away, {load.counts}, and the servers said {servers.said()[-3000:]}") from error
        finally:
            await load.close()
            servers.close()


async def _measure(servers: Servers, load: Load, restarts: int, usual: float) -> dict[str, float]:
    servers.current = await servers.start()
    await load.begin()
    pushing, feeling = asyncio.ensure_future(load.push()), asyncio.ensure_future(load.feel_pulse())
    windows: list[tuple[float, float]] = []
    took: list[float] = []
    await asyncio.sleep(usual)
    for _ in range(restarts):
        began = time.monotonic()
        await servers.restart()
        took.append(time.monotonic() - began)
        await load.all_back()
        await asyncio.sleep(1.0)
        windows.append((began, time.monotonic()))
        await asyncio.sleep(usual)
    load.is_over = True
    await asyncio.gather(pushing, feeling)
    await load.settle()

    def is_during(moment: float) -> bool:
        return any(begin <= moment <= end for begin, end in windows)

    during = [latency for due, latency in load.latencies if is_during(due)]
    before = [latency for due, latency in load.latencies if not is_during(due)]
    whole = [latency for due, latency in load.latencies if windows and windows[0][0] <= due <= windows[-1][1]]
    pauses = [max((wait for asked, wait in load.waits if begin <= asked <= end), default=0.0) for begin, end in windows]
    lost, doubled = load.missing(), load.doubled()
    return {
        "devices": len(load.devices), "restarts": restarts, "pushes": len(load.pushed), "deliveries": len(load.latencies), "receipts": load.receipts,
        "refused": load.counts["refused"], "cut": load.counts["cut"], "other answers": sum(count for what, count in load.counts.items() if what.startswith("answered")),
        "came back": load.counts["feeds opened"] - len(load.devices), "lost events": lost, "lost receipts": await load.unkept(), "doubled": doubled,
        "p50 usual, ms": _quantile(before, 0.5), "p99 usual, ms": _quantile(before, 0.99),
        "p50 during, ms": _quantile(during, 0.5), "p99 during, ms": _quantile(during, 0.99), "worst during, ms": 1000 * max(during, default=0.0),
        "p99 in all, ms": _quantile(whole, 0.99), "worst usual, ms": 1000 * max(before, default=0.0),
        "pause, ms": 1000 * statistics.mean(pauses) if pauses else 0.0, "longest wait usual, ms": 1000 * max((wait for asked, wait in load.waits if not is_during(asked)), default=0.0),
        "restart took, s": statistics.mean(took) if took else 0.0, "until all were back, s": statistics.mean(end - begin - 1 for begin, end in windows) if windows else 0.0,
    }


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--devices", type=int, default=5000)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--per-second", type=float, default=50.0)
    parser.add_argument("--usual", type=float, default=10.0)
    parser.add_argument("flags", nargs="*", help="flags of pere serve, behind --")
    said = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ways = [said.way] if said.way else WAYS
    results = [uvloop.run(measure(way, said.devices, said.restarts, said.per_second, said.usual, tuple(said.flags))) for way in ways]
    print(f"{'':24}" + "".join(f"{way:>14}" for way in ways))
    for name in results[0]:
        print(f"{name:24}" + "".join(f"{result[name]:>14,.1f}" if isinstance(result[name], float) else f"{result[name]:>14,}" for result in results))


if __name__ == "__main__":
    main()
