"""What does it cost to keep an event, and to find where a feed goes on?

    python -m bench.micro backlog
"""

import itertools
from collections.abc import Callable

from pere.audience import Audience
from pere.backlog import Backlog
from pere.event import Draft, Event, IdClock
from pere.names import pattern
from pere.wheel import Wheel


class Sleeper:
    """What waits on the wheel for ever."""

    def due(self, now: float) -> float:
        return 20.0


def operations() -> dict[str, tuple[Callable[[], object], int]]:
    ids, ordinals = IdClock(), itertools.count(1)
    draft = Draft(channel="c", data=b'{"a":1}', ttl=60)
    backlog = Backlog(1_000, 1 << 30)

    def append() -> None:
        backlog.append(Event(draft, ids.next(1_700_000_000.0), next(ordinals), 1_700_000_000.0))
        while backlog.is_over():
            backlog.evict()

    for _ in range(1_000):
        append()
    audience = Audience()
    for number in range(10_000):
        audience.join(f"d{number}", 0, 1, 0.0)
    wheel = Wheel(lambda: 0.0, lambda *_: None)
    for _ in range(10_000):
        wheel.add(Sleeper(), 20.0)
    seconds = itertools.count(1)
    return {
        "keeping an event, the oldest makes way": (append, 1),
        "seeking an id among 1,000": (lambda: backlog.seek(ids.last - 500), 1),
        "the audience of 10,000 devices, for one event": (lambda: audience.template[:], 1),
        "a pattern against a channel": (lambda: pattern("orders.*.eu")("orders.shop.eu"), 1),
        "a second of the wheel with 10,000 heartbeats": (lambda: wheel.advance(next(seconds)), 1),
    }
