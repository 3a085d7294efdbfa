"""One timer for everything that has a deadline: heartbeats, idle and slow connections, feeds that are stuck.

A hashed timing wheel (Varghese and Lauck, 1987): slots of one tick each, and an item waits in the slot of its deadline.
Ten thousand feeds cost ten thousand places in sets and one timer of the loop. Nothing is ever taken out: an item that is
no longer interested says so when its turn comes.
"""

import logging
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger("pere.wheel")


class Item(Protocol):
    """What may be added."""

    def due(self, now: float) -> float:
        """Its turn has come, at the loop's time `now`. Returns in how many seconds to come again; 0 is never."""


class Wheel:
    """Items by the tick in which they are due; a turn comes up to one tick late and never early.

    `tick` in seconds; a deadline beyond `slots` ticks is met by coming round again. `call_later` and `time` are the loop's.
    `lag` is how many seconds late the newest tick was: the loop was busy for so long.
    """

    def __init__(self, time: Callable[[], float], call_later: Callable[..., object], tick: float = 0.1, slots: int = 1024):
        self.now = time()  # the time of the newest tick: for whoever can live with a tenth of a second
        self.lag = 0.0
        self.on_turn: Callable[[float], None] = lambda lag: None
        self.time = time
        self._call_later = call_later
        self._tick = tick
        self._size = slots
        self._slots: list[dict[Item, float]] = [{} for _ in range(slots)]
        self._last = int(self.now / tick)  # the tick that was worked on last
        self._timer: object = None
        self._alike: dict[float, tuple[dict[Item, float], float]] = {}  # where those wait who came since the newest tick, by how long

    def add(self, item: Item, delay: float) -> None:
        """Let `item.due` be called in `delay` seconds; an item waits in one place only, and who adds it sees to that."""
        self._put(item, self.time() + delay)

    def add_alike(self, item: Item, delay: float) -> None:
        """The same for one of very many that wait equally long, each from the newest tick on: their place is found once in a tick."""
        alike = self._alike.get(delay)
        if alike is None:
            deadline = self.now + delay
            alike = self._alike[delay] = self._slot(deadline), deadline
        alike[0][item] = alike[1]

    def _put(self, item: Item, deadline: float) -> None:
        self._slot(deadline)[item] = deadline

    def _slot(self, deadline: float) -> dict[Item, float]:
        ahead = -int(-deadline // self._tick) - self._last
        if not 0 < ahead < self._size:
            # It is over; or too far to fit: then it waits one round, and is looked at again.
            ahead = 1 if ahead <= 0 else self._size - 1
        return self._slots[(self._last + ahead) % self._size]

    def start(self) -> None:
        """Turn, once a tick."""
        self._timer = self._call_later(self._tick, self._turn, self.time() + self._tick)

    def stop(self) -> None:
        """Stand still."""
        if self._timer is not None:
            self._timer.cancel()  # type: ignore[attr-defined]
            self._timer = None

    def _turn(self, expected: float) -> None:
        now = self.time()
        self.lag = max(0.0, now - expected)
        self.on_turn(self.lag)
        self.advance(now)
        self._timer = self._call_later(self._tick, self._turn, self.time() + self._tick)

    def advance(self, now: float) -> None:
        """Give everything that is due by `now` its turn. After a long sleep (a suspended machine) each slot is visited once."""
        self.now = now
        self._alike.clear()
        last = int(now / self._tick)
        first = max(self._last + 1, last - len(self._slots) + 1)
        for tick in range(first, last + 1):
            self._last = tick
            slot = self._slots[tick % len(self._slots)]
            if not slot:
                continue
            self._slots[tick % len(self._slots)] = {}
            self._alike.clear()
            for item, deadline in slot.items():
                if deadline > now:
                    self._put(item, deadline)
                    continue
                try:
                    again = item.due(now)
                except Exception:
                    # One item's mistake must not stop the clock of all others.
                    log.exception("a deadline could not be met")
                    continue
                if again > 0:
                    self._put(item, now + again)
        self._last = max(self._last, last)
