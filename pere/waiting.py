"""Requests that wait: a push for its receipts (`Prefer: wait`), a look at a delivery status for the next change (`?wait`).

Who waits is one of the watchers of an event, with one timer. When its client hangs up, both are gone.
"""

import asyncio
from typing import Self

from pere.storage import Store

LINGER = 0.1  # seconds in which changes are gathered: ten thousand receipts are not ten thousand answers


class Wait:
    """One request that waits for an event. Inside `with` no change is missed, whenever it is waited for. Raises as `Store.find` does."""

    __slots__ = ("is_over", "_all", "_changed", "_decided", "_id", "_channel", "_stop")

    def __init__(self, all: "Waits", channel: str, id: int):
        self.is_over = False  # nobody waits any more: the client has gone
        self._all = all
        self._channel = channel
        self._id = id

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._changed: asyncio.Future[None] = loop.create_future()
        self._decided: asyncio.Future[None] = loop.create_future()
        is_decided, self._stop = self._all.store.watch(self._channel, self._id, self._look)
        if is_decided:
            _set(self._decided)
        self._all.open.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._all.open.discard(self)

    def _look(self, is_decided: bool) -> None:
        _set(self._changed)
        if is_decided:
            _set(self._decided)

    async def decided(self, seconds: float) -> None:
        """Until the event is satisfied or can never be, at most so long."""
        await asyncio.wait((self._decided,), timeout=seconds)

    async def changed(self, seconds: float) -> None:
        """Until its delivery status is another than it was, and a moment longer for what changes with it; at most so long."""
        await asyncio.wait((self._changed,), timeout=seconds)
        if self._changed.done() and not self.is_over:
            await asyncio.sleep(LINGER)

    def end(self) -> None:
        """Wait no longer."""
        _set(self._changed)
        _set(self._decided)

    def hang_up(self) -> None:
        """The client has gone."""
        self.is_over = True
        self.end()


class Waits:
    """All that wait."""

    def __init__(self, store: Store):
        self.store = store
        self.open: set[Wait] = set()

    def on(self, channel: str, id: int) -> Wait:
        """A request that waits for this event."""
        return Wait(self, channel, id)

    def drain(self) -> None:
        """Let everybody have an answer, as things stand."""
        for wait in self.open:
            wait.end()


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
