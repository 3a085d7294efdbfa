"""How long does a receipt take to reach a webhook, and do bad webhooks delay a good one?

    python -m bench.load.webhooks --receipts 10000 --rounds 3 --store memory:

A server, the receivers and the devices are three processes. Each round is run twice, in turn: with one healthy endpoint, and with four bad
ones beside it: one never answers, one drips a byte a second, one answers 500, one's answer has no end. All of them hear of all receipts.
"""

import asyncio
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import click
import orjson

from bench.rounds import free_port
from pere.client import Client

CONNECTIONS, PIPELINED = 16, 16
PATIENCE = 60.0  # seconds in which everything must have arrived
BAD = ("silent", "dripping", "failing", "endless")


# The receivers


async def take(reader: asyncio.StreamReader) -> bytes:
    """The body of one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    return await reader.readexactly(int(re.search(rb"content-length: (\d+)", head.lower())[1]))  # type: ignore[index]


class Receivers:
    """One healthy endpoint, and four that are not. `got` is when each notice came to the healthy one, and what it was."""

    def __init__(self) -> None:
        self.got: list[tuple[float, bytes]] = []
        self.posts = dict.fromkeys(BAD, 0)
        self._ports: dict[str, int] = {}

    async def start(self) -> dict[str, int]:
        for name in ("healthy", *BAD):
            server = await asyncio.start_server(lambda reader, writer, name=name: self._serve(name, reader, writer), "127.0.0.1", limit=1 << 20)
            self._ports[name] = server.sockets[0].getsockname()[1]
        return self._ports

    async def _serve(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            body = await take(reader)
            is_verify = b'"pere.webhook.verify"' in body
            if name == "healthy" or is_verify:
                if not is_verify:
                    self.got.append((time.time(), body))
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                await writer.drain()
                return
            self.posts[name] += 1
            if name == "failing":
                writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
            while name == "silent":
                await asyncio.sleep(60)
            while name == "dripping":
                writer.write(b"H")
                await writer.drain()
                await asyncio.sleep(1)
            if name == "endless":
                writer.write(b"HTTP/1.1 503 No\r\n\r\n")
                while True:
                    writer.write(b"x" * 65_536)
                    await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def receive(pipe: Connection) -> None:
    """The process of the receivers. Asked `clear` it forgets, asked anything else it tells what came."""

    async def run() -> None:
        receivers, loop = Receivers(), asyncio.get_running_loop()
        pipe.send(await receivers.start())
        while (said := await loop.run_in_executor(None, pipe.recv)) != "end":
            if said == "clear":
                receivers.got.clear()
            elif said == "count":
                pipe.send(sum(body.count(b'"event_id"') for _, body in receivers.got))
            else:
                pipe.send((receivers.got, receivers.posts))

    asyncio.run(run())


# The devices


async def answer_all(port: int, id: str, devices: list[str]) -> float:
    """A receipt of each device, over a few connections. When the last one was answered."""

    async def some(names: list[str]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for start in range(0, len(names), PIPELINED):
            piece = names[start : start + PIPELINED]
            writer.write(b"".join(
                f"POST /feedback/bench HTTP/1.1\r\nHost: localhost\r\nDevice: {name}\r\nLast-Event-ID: {id}\r\nContent-Length: 0\r\n\r\n".encode() for name in piece))
            for _ in piece:
                head = await reader.readuntil(b"\r\n\r\n")
                if b" 200 " not in head[:20]:
                    raise SystemExit(f"a receipt was answered {head!r}")
                await reader.readexactly(int(re.search(rb"content-length: (\d+)", head.lower())[1]))  # type: ignore[index]
        writer.close()

    await asyncio.gather(*(some(devices[n::CONNECTIONS]) for n in range(CONNECTIONS)))
    return time.time()


async def one_round(port: int, pipe: Connection, count: int) -> dict[str, float]:
    """One event, and the receipts of so many devices for it."""
    pipe.send("clear")
    devices = [f"device-{n:05}" for n in range(count)]
    async with Client(f"http://127.0.0.1:{port}") as client:
        [pushed] = await client.push_many([{"channel": "bench", "data": 1, "to": devices}])
    began = time.time()
    last = await answer_all(port, pushed["id"], devices)
    told, deadline = 0, time.time() + PATIENCE
    while told < count:
        if time.time() > deadline:
            raise SystemExit(f"only {told} of {count} receipts were told of in {PATIENCE:g} s")
        await asyncio.sleep(0.02)
        pipe.send("count")
        told = pipe.recv()
    pipe.send("tell")
    got, posts = pipe.recv()
    batches = [(at, orjson.loads(body)["data"]["receipts"]) for at, body in got]
    delays = [at - datetime.fromisoformat(each["at"]).timestamp() for at, receipts in batches for each in receipts]
    delays.sort()
    return {"receipts/s": count / (last - began), "posts": len(batches), "last": max(at for at, _ in batches) - last, "p50": median(delays),
            "p99": delays[int(0.99 * len(delays))], **posts}


async def run(store: str, count: int, rounds: int) -> list[tuple[str, dict[str, float]]]:
    here, there = multiprocessing.Pipe()
    receivers = multiprocessing.Process(target=receive, args=(there,), daemon=True)
    receivers.start()
    ports = here.recv()
    found = []
    try:
        for _ in range(rounds):
            for label, bad in (("alone", ()), ("beside four bad ones", BAD)):
                with tempfile.TemporaryDirectory() as folder:
                    server = subprocess.Popen(
                        [sys.executable, "-m", "pere", "serve", "--port", str(port := free_port()), "--store", store.format(tmp=folder), "--log-level", "error",
                         "--webhook-allow-http", "--webhook-allow-networks", "127.0.0.0/8", "--max-to", str(max(count, 1_000)), "--webhook-timeout", "5"])
                    try:
                        await ready(port)
                        async with Client(f"http://127.0.0.1:{port}") as client:
                            made = [await client.add_webhook(f"http://127.0.0.1:{ports[name]}/", types=["pere.receipt.batch"]) for name in ("healthy", *bad)]
                            while any(each["state"] != "active" for each in await client.webhooks()):
                                await asyncio.sleep(0.02)
                        assert len(made) == 1 + len(bad)
                        found.append((label, await one_round(port, here, count)))
                        click.echo(".", nl=False, err=True)
                    finally:
                        server.kill()
                        server.wait()
    finally:
        here.send("end")
        receivers.kill()
    click.echo(err=True)
    return found


async def ready(port: int) -> None:
    for _ in range(500):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        except OSError:
            await asyncio.sleep(0.02)
    raise SystemExit("the server did not start")


@click.command
@click.option("--store", default="memory:", show_default=True, help="--store of the server; {tmp} is a folder for a file")
@click.option("--receipts", "count", default=10_000, show_default=True, type=click.IntRange(1), help="devices that answer one event")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="print every round as JSON")
def main(store: str, count: int, rounds: int, as_json: bool) -> None:
    """Measure how long receipts take to reach a webhook: alone, and beside four bad ones."""
    found = asyncio.run(run(store, count, rounds))
    if as_json:
        click.echo(orjson.dumps([{"endpoints": label} | figures for label, figures in found]))
        return
    click.echo(f"{'medians of ' + str(rounds) + ' rounds':<26}{'receipts/s':>12}{'POSTs':>8}{'last, s':>10}{'p50, s':>10}{'p99, s':>10}")
    for label in dict.fromkeys(label for label, _ in found):
        def middle(name: str, label: str = label) -> float:
            return median(figures[name] for other, figures in found if other == label)

        click.echo(f"{label:<26}{middle('receipts/s'):>12,.0f}{middle('posts'):>8,.0f}{middle('last'):>10.3f}{middle('p50'):>10.3f}{middle('p99'):>10.3f}")
    bad: dict[str, Any] = found[-1][1]
    click.echo(f"`last` is from the last receipt answered to the last batch received. The bad ones were asked {', '.join(f'{name} {bad[name]}' for name in BAD)} times.")


if __name__ == "__main__":
    main()
