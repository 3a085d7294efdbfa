"""What does a receipt cost, beyond the network? And asking about an event with 10,000 devices?

    python -m bench.micro ledger
"""

import asyncio
import itertools
from collections.abc import Callable

from pere.config import Config
from pere.event import Draft
from pere.receipt import PROCESSED, bucket
from pere.storage.memory import MemoryStore

DEVICES = 10_000


def operations() -> dict[str, tuple[Callable[[], object], int]]:
    time = itertools.count(1_700_000_000.0, 0.001)
    store = MemoryStore(Config(), clock=lambda: next(time))
    names = [f"d{number}" for number in range(DEVICES)]
    for name in names:
        store.register("c", name)
    ids: list[int] = []

    def push() -> None:
        store.append(Draft(channel="c", data=b'{"a":1}', ttl=10_000), lambda accepted: ids.append(accepted.id))  # type: ignore[union-attr]

    def answer_all() -> None:
        push()
        for name in names:
            store.record("c", name, ids[-1], PROCESSED, b'"rx ok"', lambda state, outcome: None, print)

    def duplicate() -> None:
        store.record("c", "d5", ids[-1], PROCESSED, b'"rx ok"', lambda state, outcome: None, print)

    push()
    duplicate()
    loop = asyncio.new_event_loop()
    return {
        "a first receipt, with a status": (answer_all, DEVICES),
        "the same receipt again": (duplicate, 1),
        "the latency bucket of a receipt": (lambda: bucket(0.0123), 1),
        "an event for 10,000 devices": (push, 1),
        "its delivery status": (lambda: loop.run_until_complete(store.status("c", ids[-1])), 1),
        "a page of 100 who have not answered": (lambda: loop.run_until_complete(store.lines("c", ids[-1], "outstanding", 0, 100)), 1),
    }
