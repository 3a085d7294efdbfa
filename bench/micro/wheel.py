"""What does the one timer cost for ten thousand feeds with a heartbeat each?

    python -m bench.micro wheel
"""

from collections.abc import Callable

from pere.wheel import Wheel

FEEDS, HEARTBEAT = 10_000, 20.0


class Feed:
    def due(self, now: float) -> float:
        return HEARTBEAT


def operations() -> dict[str, tuple[Callable[[], object], int]]:
    clock = [0.0]
    wheel = Wheel(lambda: clock[0], lambda *_: None)
    for number in range(FEEDS):
        wheel.add(Feed(), HEARTBEAT * number / FEEDS)

    def turn() -> None:
        clock[0] += 0.1
        wheel.advance(clock[0])

    def second() -> None:
        for _ in range(10):
            turn()

    feed = Feed()
    return {
        f"a second of {FEEDS:,} feeds: ten turns, {FEEDS / HEARTBEAT:,.0f} heartbeats": (second, 1),
        "adding one": (lambda: wheel.add(feed, HEARTBEAT), 1),
    }
