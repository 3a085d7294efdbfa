"""What does it cost to register a device, to find it, and to copy the audience for an event, with ten thousand of them?

    python -m bench.micro audience
"""

import itertools
from collections.abc import Callable

from pere.audience import Audience

DEVICES = 10_000


def operations() -> dict[str, tuple[Callable[[], object], int]]:
    audience = Audience()
    names = [f"device-{number:05}" for number in range(DEVICES)]
    for name in names:
        audience.join(name, 0, 1, 0.0)
    turn = itertools.cycle(names)
    ordinals = itertools.count(1)

    def everybody() -> None:
        fresh = Audience()
        for name in names:
            fresh.join(name, 0, 1, 0.0)

    def come_and_go() -> None:
        ordinal = next(ordinals)
        audience.leave("device-00000", ordinal)
        audience.join("device-00000", ordinal, ordinal + 1, 0.0)

    return {
        "registering": (everybody, DEVICES),
        "registering who is registered": (lambda: audience.join(next(turn), 0, 1, 0.0), 1),
        "leaving, and coming back": (come_and_go, 1),
        "the column of an event": (lambda: bytearray(audience.template), 1),
        "how many there are": (lambda: len(audience), 1),
    }
