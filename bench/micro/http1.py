"""What does the front door cost for a receipt, and for a push, from the bytes as they came to the answer on its socket?

    python -m bench.micro http1

A whole server, with tokens and without; what is not in it is the kernel's reading, and the waiting. 64 requests to a turn of the loop, each on a
connection of its own.
"""

import asyncio
import itertools
import os
import socket
from collections.abc import Callable

from pere.config import Config
from pere.event import Draft, format_id
from pere.http1 import Connection
from pere.load.target import Target
from pere.server import Server

SECRET = "only for measuring, and at least 32 bytes"
DEVICES, TURN = 4_096, 64


def operations() -> dict[str, tuple[Callable[[], object], int]]:
    found: dict[str, tuple[Callable[[], object], int]] = {}
    for label, secret in (("", ""), (", with a token", SECRET)):
        found |= _with(label, secret)
    return found


def _with(label: str, secret: str) -> dict[str, tuple[Callable[[], object], int]]:
    loop = asyncio.new_event_loop()
    pairs = [socket.socketpair() for _ in range(TURN)]

    async def build() -> tuple[Server, list[Connection]]:
        server, connections = Server(Config(store="memory:", jwt_secret=secret, subject_pushes="0")), []
        for ours, theirs in pairs:
            ours.setblocking(False)
            _, connection = await asyncio.get_running_loop().connect_accepted_socket(lambda: Connection(server.door), theirs)
            connections.append(connection)
        return server, connections

    server, connections = loop.run_until_complete(build())
    target = Target("127.0.0.1", 4567, secret=secret)
    names = [f"device-{number}" for number in range(DEVICES)]
    for name in names:
        server.store.register("bench", name)
    # Whose turn it is, and what is said then of the newest event, whose id stands where there is an @.
    turns = itertools.cycle([[target.receipt("bench", name, "@") for name in names[start : start + TURN]] for start in range(0, DEVICES, TURN)])
    ids: list[bytes] = []
    numbers = itertools.count()

    def said(requests: list[bytes]) -> None:
        server.wheel.advance(loop.time())
        for connection, request in zip(connections, requests, strict=True):
            connection.data_received(request)
        loop.run_until_complete(asyncio.sleep(0))
        for ours, _ in pairs:
            if not os.read(ours.fileno(), 1 << 16).startswith(b"HTTP/1.1 20"):
                raise SystemExit("a request was refused")

    def receipts() -> None:
        if next(numbers) % (DEVICES // TURN) == 0:
            server.store.append(Draft(channel="bench", data=b"1", ttl=10_000), lambda accepted: ids.append(format_id(accepted.id).encode()))  # type: ignore[union-attr]
        said([request.replace(b"@", ids[-1]) for request in next(turns)])

    # Every device's token is verified once, and known from then on.
    for _ in range(2 * DEVICES // TURN):
        receipts()
    made = target.pushing("nobody")

    def pushes() -> None:
        said([target.pushed(made, target.event(next(numbers), 150)) for _ in range(TURN)])

    return {f"a receipt in a request of its own{label}": (receipts, TURN), f"a push that nobody listens to{label}": (pushes, TURN)}
