"""For how long does a scrape of /metrics hold the loop, with ten thousand devices and a hundred events that half of them have answered?

    python -m bench.micro metrics
"""

import asyncio
from collections.abc import Callable

from prometheus_client import generate_latest

from pere.config import Config
from pere.event import Draft
from pere.receipt import PROCESSED
from pere.server import Server

DEVICES, EVENTS = 10_000, 100


def operations() -> dict[str, tuple[Callable[[], object], int]]:
    async def build() -> Server:
        return Server(Config(store="memory:"))

    server = asyncio.new_event_loop().run_until_complete(build())
    store = server.store
    names = [f"device-{number:05}" for number in range(DEVICES)]
    for name in names:
        store.register("c", name).live = 1
    ids: list[int] = []
    for _ in range(EVENTS):
        store.append(Draft(channel="c", data=b'{"n":1}', ttl=3_600), lambda accepted: ids.append(accepted.id))  # type: ignore[union-attr]
    for id in ids:
        for name in names[::2]:
            store.record("c", name, id, PROCESSED, None, lambda *_: None, lambda *_: None, None)
    return {f"a scrape, {DEVICES:,} devices": (lambda: generate_latest(server.registry), 1)}
