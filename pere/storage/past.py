"""Events that are kept, and too old to be at hand: fetched when a feed reads them, some at once, and kept a while for the feeds behind it."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from pere.event import Event
from pere.storage import Shelf
from pere.storage.settling import tell

MOST = 20_000  # events that were fetched and are kept at hand, over all channels
MOST_BYTES = 16 << 20  # and what they may take: they can be large
AGAIN = 1.0  # seconds after which who waits asks again, where the file could not be read


class Past:
    """What stands in `past` of all shelves. `read` reads some events of a channel from an ordinal on, in a thread of `elsewhere`; `failed` is
    told why it could not."""

    def __init__(self, elsewhere: Executor, read: Callable[[Shelf, int], list[Event]], failed: Callable[[BaseException], object]):
        self._elsewhere = elsewhere
        self._read = read
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._sizes: OrderedDict[tuple[Shelf, int], int] = OrderedDict()
        self._bytes = 0
        self._fetching: dict[tuple[Shelf, int], list[Callable[[], None]]] = {}

    def fetch(self, shelf: Shelf, ordinal: int, then: Callable[[], None]) -> None:
        """Bring the event with this ordinal, and some that follow it, to the shelf; then say so."""
        waiting = self._fetching.get((shelf, ordinal))
        if waiting is not None:
            waiting.append(then)
            return
        self._fetching[shelf, ordinal] = [then]

        def fetched(done: Any) -> None:
            try:
                self._loop.call_soon_threadsafe(self._fetched, shelf, ordinal, done)
            except RuntimeError:
                pass  # the loop has ended

        self._elsewhere.submit(self._read, shelf, ordinal).add_done_callback(fetched)

    def _fetched(self, shelf: Shelf, ordinal: int, done: Any) -> None:
        waiting = self._fetching.pop((shelf, ordinal))
        error = done.exception()
        if error is not None:
            self._failed(error)
            for then in waiting:
                self._loop.call_later(AGAIN, then)  # which asks again
            return
        for event in done.result():
            shelf.past[event.ordinal] = event
            self._bytes += event.size - self._sizes.pop((shelf, event.ordinal), 0)
            self._sizes[shelf, event.ordinal] = event.size
        for then in waiting:
            tell(then)
        # Only now, for who waits may just have had what it waited for.
        while len(self._sizes) > MOST or self._bytes > MOST_BYTES:
            (oldest, old), size = self._sizes.popitem(last=False)
            self._bytes -= size
            oldest.past.pop(old, None)
