"""Does one client that floods the server take their service from the others?

    python -m bench.load.abuse --seconds 5 --rounds 3
    python -m bench.load.abuse --flood receipts --unlimited

The others are fifty devices and a publisher, each at an address of its own, and newcomers that connect all the time. Every 50 ms an event is due: it is
pushed, delivered to all devices, and each answers with a receipt. What is measured is the time from when the push was *due* (so that a
server that does not let the publisher send is not let off) to the 200 for each receipt; and from when a newcomer was due to the answer to its first request.
The flood comes from one address, as fast as one processor can make it, in one of these ways:

    connects     connections, as many as can be made; each asks once and is closed
    pushes       64 connections that push without waiting for answers
    receipts     64 connections that give receipts for what nobody pushed, without waiting
    requests     64 connections that ask for the kept events, without waiting
    malformed    connections that say what is not HTTP
    slowloris    10,000 connections that drip a head, byte by byte
    deaf         5,000 feeds of everything that is kept, which never read

The server has processor 0. Flood and probes share processor 1: the probes run in real time, so the flood has all of it but what they need, and they never wait for it. That
is as fair as it can be on two: with more, the flood would be stronger. Server and flood go before whatever else the machine does (their session is weighed
as `nice -20`), where the rights for that are there. Beside each flood stands what the others have left where the same flood is aimed at a neighbour: another
server, idle but for it, which shares the processor. So much is lost with the processor alone, whatever the server does: it is the floor. `--unlimited` runs each flood against a server that has no limits too. Everything is on loopback, so the kernel's part of the
flood, whichever processor it falls on, is in the figures. "Waits" is the part of the time in which the server, or the probes, could have gone on and
had no processor: a latency is the server's doing only where that is little.

It is a little longer than a file should be because each flood stands beside those whom it is to disturb and the floor it is measured against.
"""

import asyncio
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import re
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median, quantiles

import click
import orjson
import uvloop

from bench.load.webhooks import free_port, ready

FLOODER = "127.0.0.2"
DEVICES, EVERY, NEWCOMERS_EVERY = 50, 0.05, 0.05  # seconds
CONNECTIONS, HALF_OPEN, DEAF = 64, 10_000, 5_000
WARM_UP = 1.0  # seconds of flood before the first event is measured, in which it takes what it is given at once
PATIENCE = 10.0

LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


def said(line: str, *fields: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: bench", *fields, f"Content-Length: {len(body)}", "", ""]).encode() + body


# The flood


class Flood:
    """One address that asks for as much as it can, with sockets that never wait. `sent` counts what it said in whole requests, `made` its connections."""

    def __init__(self, port: int):
        self.sent = self.made = self.cut = 0
        self._port = port
        self._selector = selectors.DefaultSelector()

    def connect(self) -> socket.socket | None:
        sock = socket.socket()
        # So that its ports come back at once: a flood that runs out of them would be none.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.setblocking(False)
        try:
            sock.bind((FLOODER, 0))
            sock.connect_ex(("127.0.0.1", self._port))
        except OSError:
            sock.close()
            return None
        self.made += 1
        return sock

    def pour(self, request: bytes) -> Iterator[None]:
        """The same request without end, on connections that are made again when they are cut."""
        block, count = request * max(1, 65_536 // len(request)), max(1, 65_536 // len(request))
        open_: dict[int, socket.socket] = {}
        while True:
            while len(open_) < CONNECTIONS and (sock := self.connect()) is not None:
                open_[sock.fileno()] = sock
                self._selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
            for key, events in self._selector.select(0.01):
                sock = open_[key.fd]
                try:
                    if events & selectors.EVENT_READ and not sock.recv(65_536):
                        raise ConnectionResetError
                    if events & selectors.EVENT_WRITE:
                        self.sent += count * sock.send(block) // len(block)
                except BlockingIOError:
                    pass
                except OSError:
                    self.cut += 1
                    self._selector.unregister(sock)
                    del open_[key.fd]
                    sock.close()
            yield

    def knock(self, request: bytes) -> Iterator[None]:
        """Connections without end, each with one request; at most a thousand at a time, so that the oldest is always over."""
        open_: list[socket.socket] = []
        while True:
            for _ in range(50):
                sock = self.connect()
                if sock is not None:
                    open_.append(sock)
                if len(open_) > 1_000 or sock is None:
                    for old in open_[:500]:
                        old.close()
                    del open_[:500]
            for sock in open_[-50:]:
                with contextlib.suppress(OSError):
                    sock.send(request)
                    self.sent += 1
            yield

    def hold(self, first: bytes, most: int, drip: bytes) -> Iterator[None]:
        """As many connections as it is let have, up to so many, which say something and then drip, or are silent, and never read."""
        held: list[socket.socket] = []
        dripped = time.monotonic()
        while True:
            for _ in range(100):
                if len(held) < most and (sock := self.connect()) is not None:
                    held.append(sock)
            time.sleep(0.005)  # for the connections to be made
            kept = []
            for sock in held[-100:]:
                try:
                    self.sent += bool(sock.send(first))
                    kept.append(sock)
                except BlockingIOError:
                    kept.append(sock)
                except OSError:
                    self.cut += 1
                    sock.close()
            held[-100:] = kept
            if len(held) >= most and drip and time.monotonic() - dripped > 1:
                dripped = time.monotonic()
                for sock in list(held):
                    try:
                        sock.send(drip)
                    except BlockingIOError:
                        pass
                    except OSError:
                        self.cut += 1
                        held.remove(sock)
                        sock.close()
            yield


FLOODS: dict[str, Callable[[Flood], Iterator[None]]] = {
    "connects": lambda flood: flood.knock(said("GET /healthz")),
    "pushes": lambda flood: flood.pour(said("POST /push/flood", body=b'"flood"')),
    "receipts": lambda flood: flood.pour(said("POST /feedback/flood", "Device: flooder", "Last-Event-ID: 1-0")),
    "requests": lambda flood: flood.pour(said("GET /events/news?limit=100")),
    "malformed": lambda flood: flood.knock(b"\0\1\2 what is not HTTP\r\n\r\n"),
    "slowloris": lambda flood: flood.hold(b"GET /feed/news HTTP/1.1\r\nHost: ", HALF_OPEN, b"x"),
    "deaf": lambda flood: flood.hold(said("GET /feed/news?from=all"), DEAF, b""),
}


def flood(kind: str, port: int, pipe: multiprocessing.connection.Connection) -> None:
    """The process of the flood, until it is told to end; then it tells what it did."""
    before_all(1)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    flood = Flood(port)
    going = FLOODS[kind](flood)
    began = time.monotonic()
    while not pipe.poll():
        for _ in range(20):
            next(going)
    pipe.send((flood.sent, flood.made, flood.cut, time.process_time(), time.monotonic() - began))


# The others


class Probe:
    """Devices, a publisher and newcomers, all at addresses of their own. `receipts` and `arrivals` are latencies in seconds."""

    def __init__(self, port: int):
        self.port = port
        self.receipts: list[float] = []
        self.arrivals: list[float] = []
        self.missing = 0
        self._due: dict[bytes, float] = {}
        self._feeds: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, seconds: float) -> None:
        count = int(seconds / EVERY)
        start = time.monotonic() + 0.1
        due = [start + n * EVERY for n in range(count)]
        newcomers = [self._arrive(start + n * NEWCOMERS_EVERY, n) for n in range(int(seconds / NEWCOMERS_EVERY))]
        pushes = asyncio.create_task(self._push(due))
        await asyncio.gather(pushes, *newcomers)
        deadline = time.monotonic() + PATIENCE
        while len(self.receipts) < count * DEVICES and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        self.missing = count * DEVICES - len(self.receipts)

    async def _open(self, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0))

    async def listen(self) -> None:
        for n in range(DEVICES):
            address = f"127.0.1.{n + 1}"
            reader, writer = await self._open(address)
            writer.write(said("GET /feed/news", f"Device: device-{n}"))
            await reader.readuntil(b"pere.hello")
            self._feeds.append(writer)
            task = asyncio.create_task(self._answer(n, reader, await self._open(address)))
            self._tasks.add(task)

    async def _answer(self, n: int, feed: asyncio.StreamReader, back: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        """One device: each event is answered, and how long that took since it was due is noted."""
        reader, writer = back
        while True:
            await feed.readuntil(b"\nid: ")
            id = (await feed.readuntil(b"\n")).strip()
            told = await feed.readuntil(b"\n")
            due = float(told.removeprefix(b"data: "))
            writer.write(said("POST /feedback/news", f"Device: device-{n}", f"Last-Event-ID: {id.decode()}"))
            status, _ = await answer(reader)
            if status != 200:
                raise SystemExit(f"an honest receipt was answered {status}")
            self.receipts.append(time.monotonic() - due)

    async def _push(self, moments: list[float]) -> None:
        reader, writer = await self._open("127.0.2.1")
        for due in moments:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            writer.write(said("POST /push/news", body=b"%.6f" % due))
        for _ in moments:
            status, body = await answer(reader)
            if status != 201:
                raise SystemExit(f"an honest push was answered {status} {body!r}")
        writer.close()

    async def _arrive(self, due: float, n: int) -> None:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await self._open(f"127.0.3.{n % 250 + 1}")
                writer.write(said("GET /healthz"))
                status, _ = await answer(reader)
                writer.close()
                if status != 200:
                    raise SystemExit(f"an honest newcomer was answered {status}")
            self.arrivals.append(time.monotonic() - due)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            self.arrivals.append(PATIENCE)


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    found = LENGTH.search(head)
    return int(head[9:12]), await reader.readexactly(int(found[1])) if found else b""


# A run


def before_all(processor: int) -> None:
    """This process has nothing to do with the rest of its session any more, and goes before whatever else this machine does, as far as it may."""
    os.sched_setaffinity(0, {processor})
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.setsid()
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        with open("/proc/self/autogroup", "w") as file:  # Linux weighs sessions first, then what is in them
            file.write("-20")


def in_real_time() -> None:
    """This process goes before all that does not."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has had."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waited(pid: int | str) -> float:
    """Seconds in which a process could have gone on, and the processor was somebody else's: what of a latency is none of its doing."""
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[1]) / 1e9


def memory(pid: int) -> float:
    """MiB that it takes now."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def serve(is_limited: bool) -> tuple[subprocess.Popen[bytes], int]:
    exempt = "" if is_limited else "127.0.0.0/8"
    command = [sys.executable, "-m", "pere", "serve", "--port", str(port := free_port()), "--store", "memory:", "--log-level", "error", "--limits-exempt", exempt]
    return subprocess.Popen(command, preexec_fn=lambda: before_all(0)), port


def one_run(kind: str, is_limited: bool, is_elsewhere: bool, seconds: float) -> dict[str, object]:
    server, port = serve(is_limited)
    servers, aim = [server], port
    if is_elsewhere:
        neighbour, aim = serve(is_limited)
        servers.append(neighbour)
    here, there = multiprocessing.Pipe()
    flooder = multiprocessing.Process(target=flood, args=(kind, aim, there), daemon=True) if kind else None
    try:
        return uvloop.run(_run(server.pid, port, aim, flooder, here, seconds)) | {"flood": kind or "none", "limits": is_limited, "elsewhere": is_elsewhere}
    finally:
        if flooder is not None and flooder.is_alive():
            flooder.kill()
        for each in servers:
            each.kill()
            each.wait()


async def _run(pid: int, port: int, aim: int, flooder: multiprocessing.Process | None, pipe: multiprocessing.connection.Connection, seconds: float) -> dict[str, object]:
    await ready(port)
    await ready(aim)
    probe = Probe(port)
    await probe.listen()
    if flooder is not None:
        flooder.start()
        await asyncio.sleep(WARM_UP)
    began, server_cpu, own_cpu, server_waited, own_waited = time.monotonic(), cpu(pid), time.process_time(), waited(pid), waited("self")
    await probe.run(seconds)
    took = time.monotonic() - began
    figures: dict[str, object] = {
        "receipt_p50": median(probe.receipts) if probe.receipts else PATIENCE, "receipt_p99": p99(probe.receipts), "missing": probe.missing,
        "arrival_p50": median(probe.arrivals), "arrival_p99": p99(probe.arrivals),
        "server_cpu": (cpu(pid) - server_cpu) / took, "probe_cpu": (time.process_time() - own_cpu) / took, "memory": memory(pid),
        "server_waited": (waited(pid) - server_waited) / took, "probe_waited": (waited("self") - own_waited) / took,
    }
    if flooder is not None:
        pipe.send("end")
        sent, made, cut, flood_cpu, lasted = await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        figures |= {"flood_requests": sent / lasted, "flood_connections": made / lasted, "flood_cut": cut / lasted, "flood_cpu": flood_cpu / lasted}
    return figures


def p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98] if len(values) > 1 else PATIENCE


@click.command
@click.option("--flood", "kinds", multiple=True, type=click.Choice(list(FLOODS)), help="only this one; again for more")
@click.option("--seconds", default=5.0, show_default=True, help="how long each run is measured")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--unlimited", is_flag=True, help="run each against a server without limits too")
@click.option("--json", "as_json", is_flag=True, help="print every run as JSON")
def main(kinds: tuple[str, ...], seconds: float, rounds: int, unlimited: bool, as_json: bool) -> None:
    """Measure what the others have left of their service while one client floods the server."""
    os.sched_setaffinity(0, {1})
    in_real_time()
    runs = [("", True, False)]
    for kind in kinds or FLOODS:
        runs += [(kind, True, False), (kind, True, True), *([(kind, False, False)] if unlimited else [])]
    found = []
    for _ in range(rounds):
        for run in runs:
            found.append(one_run(*run, seconds))
            click.echo(".", nl=False, err=True)
    click.echo(err=True)
    if as_json:
        click.echo(orjson.dumps(found))
        return
    click.echo(f"{f'medians of {rounds} runs of {seconds:g} s':<24}{'receipt, ms':>16}{'missing':>9}{'newcomer, ms':>18}{'flood: asked/s':>16}{'made/s':>9}{'CPU: server':>13}{'flood':>7}{'probe':>7}{'waits: server':>15}{'probe':>7}{'MiB':>6}")
    click.echo(f"{'':<24}{'p50':>8}{'p99':>8}{'':>9}{'p50':>9}{'p99':>9}")
    for kind, is_limited, is_elsewhere in runs:
        mine = [run for run in found if run["flood"] == (kind or "none") and run["limits"] is is_limited and run["elsewhere"] is is_elsewhere]
        called = "  at a neighbour" if is_elsewhere else (kind or "no flood") + ("" if is_limited else ", no limits")

        def middle(name: str, mine: list[dict[str, object]] = mine) -> float:
            return median(float(run.get(name, 0.0)) for run in mine)  # type: ignore[arg-type]

        click.echo(
            f"{called:<24}{1000 * middle('receipt_p50'):>8.1f}{1000 * middle('receipt_p99'):>8.1f}{middle('missing'):>9,.0f}"
            f"{1000 * middle('arrival_p50'):>9.1f}{1000 * middle('arrival_p99'):>9.1f}{middle('flood_requests'):>16,.0f}{middle('flood_connections'):>9,.0f}"
            f"{middle('server_cpu'):>13.2f}{middle('flood_cpu'):>7.2f}{middle('probe_cpu'):>7.2f}{middle('server_waited'):>15.2f}{middle('probe_waited'):>7.2f}{middle('memory'):>6,.0f}")


if __name__ == "__main__":
    main()
