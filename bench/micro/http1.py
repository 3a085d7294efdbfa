"""What does the front door cost for a receipt, and for a push, from the bytes as they came to the answer on its socket?

    python -m bench.micro http1

A whole server with tokens; what is not in it is the kernel's reading, and the waiting. 64 requests to a turn of the loop.
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
DEVICES, TURN = 4_000, 64


def operations() -> dict[str, tuple[Callable[[], object], int]]:
    found: dict[str, tuple[Callable[[], object], int]] = {}
    for label, secret in (("", ""), (", with a token", SECRET)):
        found |= _with(label, secret)
    return found


def _with(label: str, secret: str) -> dict[str, tuple[Callable[[], object], int]]:
    loop = asyncio.new_event_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    async def build() -> tuple[Server, Connection]:
        server = Server(Config(store="memory:", jwt_secret=secret))
        _, connection = await asyncio.get_running_loop().connect_accepted_socket(lambda: Connection(server.door), theirs)
        return server, connection

    server, connection = loop.run_until_complete(build())
    target = Target("127.0.0.1", 4567, secret=secret)
    ids: list[str] = []
    names = [f"device-{number}" for number in range(DEVICES)]
    for name in names:
        server.store.register("bench", name)
    asks: list[bytes] = []

    def said(requests: list[bytes]) -> None:
        for request in requests:
            connection.data_received(request)
        loop.run_until_complete(asyncio.sleep(0))
        while True:
            try:
                if b"HTTP/1.1 4" in os.read(ours.fileno(), 1 << 16):
                    raise SystemExit("a request was refused")
            except BlockingIOError:
                return

    def receipts() -> None:
        if len(asks) < TURN:
            ids.clear()
            server.store.append(Draft(channel="bench", data=b"1", ttl=10_000), lambda accepted: ids.append(format_id(accepted.id)))  # type: ignore[union-attr]
            asks.extend(target.receipt("bench", name, ids[0]) for name in names)
        said([asks.pop() for _ in range(TURN)])

    # Every device's token is verified once, and known from then on.
    for _ in range(2 * DEVICES // TURN):
        receipts()
    made, numbers = target.pushing("nobody"), itertools.count()

    def pushes() -> None:
        said([target.pushed(made, target.event(next(numbers), 150)) for _ in range(TURN)])

    return {f"a receipt in a request of its own{label}": (receipts, TURN), f"a push that nobody listens to{label}": (pushes, TURN)}
