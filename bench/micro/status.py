"""What does it cost to say who has an event, and who has not, with ten thousand devices?

    python -m bench.micro status

All that the loop does for `GET /events/{channel}/{id}` and for a page of its devices but HTTP itself: asking the store, and writing JSON.
"""

import random
from collections.abc import Callable, Coroutine
from typing import Any

import orjson

from pere.config import Config
from pere.event import Draft
from pere.receipt import PROCESSED
from pere.storage import Accepted
from pere.storage.memory import MemoryStore

DEVICES = 10_000
PAGE = 100


def finished(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def store_of(owing: int, is_online: bool) -> tuple[MemoryStore, int]:
    """A store with one event, that so many of its devices have not answered; they are all online, or all away."""
    store = MemoryStore(Config())
    names = [f"device-{number:05}" for number in range(DEVICES)]
    for name in names:
        member = store.register("c", name)
        member.live = int(is_online)
    ids: list[int] = []

    def pushed(result: object) -> None:
        assert isinstance(result, Accepted)
        ids.append(result.id)

    store.append(Draft(channel="c", data=b'{"n":1}', ttl=3600), pushed)
    random.Random(1).shuffle(names)
    for place, name in enumerate(names[owing:]):
        at = store.clock() + 0.001 * (place % 500)
        store.record("c", name, ids[0], PROCESSED, b'"fine"', lambda *_: None, lambda *_: None, at)
    return store, ids[0]


def operations() -> dict[str, tuple[Callable[[], object], int]]:
    made: dict[str, tuple[Callable[[], object], int]] = {}

    def status(store: MemoryStore, id: int) -> Callable[[], object]:
        return lambda: orjson.dumps(finished(store.status("c", id)))

    def page(store: MemoryStore, id: int, state: str, start: int) -> Callable[[], object]:
        def ask() -> bytes:
            lines, following = finished(store.lines("c", id, state, start, PAGE))
            return orjson.dumps({"devices": lines, "cursor": following})

        return ask

    for owing in (DEVICES, DEVICES // 2, 150, 0):
        for is_online in (True, False):
            store, id = store_of(owing, is_online)
            label = f"{owing:,} owe, all {'online' if is_online else 'away'}"
            made[f"status, {label}"] = status(store, id), 1
            if owing:
                second = finished(store.lines("c", id, "outstanding", 0, PAGE))[1]
                made[f"page of {PAGE}, {label}, the first"] = page(store, id, "outstanding", 0), 1
                made[f"page of {PAGE}, {label}, the second"] = page(store, id, "outstanding", second), 1
    return made
