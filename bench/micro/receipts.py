"""What does a receipt cost among a thousand, and what does it cost alone?

    python -m bench.micro receipts

A device answers for a thousand events that another one has answered for already, each in its own state of the ledger: so it costs more
than the same receipt of many devices for one event, whose columns are at hand (`python -m bench.micro ledger`).
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

import orjson

from pere.auth import OPEN
from pere.config import Config
from pere.door import Ask, Route
from pere.event import Draft, format_id
from pere.handlers.feedback import Feedback
from pere.handlers.many import Many
from pere.redelivery import Redelivery
from pere.storage.memory import MemoryStore
from pere.wheel import Wheel

EVENTS = 1_000
ROUTE = Route("/feedback", 1 << 22)


class Nobody:
    """The connection of a client that is told the answer."""

    def answer(self, ask: Ask, status: int, body: bytes, more: bytes) -> None:
        assert status == 200


def ask(path: bytes, device: bytes, body: bytes, **headers: bytes) -> Ask:
    fields: dict[bytes, bytes] = {b"device": device, b"content-type": b"application/json"}
    fields |= {name.replace("_", "-").encode(): value for name, value in headers.items()}
    made = Ask(Nobody(), b"POST", path, b"", "1.1", True, fields, [], ROUTE)
    made.body = body
    made.grant = OPEN
    return made


def operations() -> dict[str, tuple[Callable[[], object], int]]:
    store = MemoryStore(Config(backlog_events=EVENTS))
    feedback = Feedback(store, Redelivery(store, Wheel(time.monotonic, lambda *told: None)), Config())
    many = Many(feedback, Config()).many
    store.register("c", "other")
    numbers = itertools.count()
    ids: list[str] = []

    def push() -> None:
        ids.clear()
        for _ in range(EVENTS):
            store.append(Draft(channel="c", data=b"1", ttl=10_000), lambda accepted: ids.append(format_id(accepted.id)))  # type: ignore[union-attr]

    def newcomers(count: int) -> list[bytes]:
        names = [b"d%d" % next(numbers) for _ in range(count)]
        for name in names:
            store.register("c", name.decode())
        return names

    waiting: list[bytes] = []

    def device() -> bytes:
        # Every device answers once. When all have, there are new events; what these cost is in all the figures, shared by fifty devices.
        if not waiting:
            for name in list(store.open("c").audience.members):
                store.unregister("c", name)
            waiting.extend(newcomers(50))
            push()
        return waiting.pop()

    def batch(**said: Any) -> Callable[[], object]:
        def answer() -> None:
            name = device()
            many(ask(b"/feedback", name, orjson.dumps({"receipts": [{"event_id": id, **said} for id in ids]})))

        return answer

    def alone() -> None:
        name = device()
        for id in ids:
            feedback.one(ask(b"/feedback/c", name, b'{"status":"rx ok"}', last_event_id=id.encode()))

    def up_to() -> None:
        many(ask(b"/feedback", device(), orjson.dumps({"up_to": ids[-1], "channel": "c"})))

    return {
        "one of 1,000 in a batch": (batch(), EVENTS),
        "one of 1,000 in a batch, with a status": (batch(status="rx ok"), EVENTS),
        "one of 1,000 in a batch, with a status and a time": (batch(status="rx ok", at="2014-12-01T14:28:30.993Z"), EVENTS),
        "one of 1,000 by up_to": (up_to, EVENTS),
        "one alone, without HTTP": (alone, EVENTS),
    }
