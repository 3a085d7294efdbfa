"""Those who ask for more than their turn.

The loop serves what comes on its sockets turn by turn. Who asks for little is served in the turn in which he asks. Who asks for much waits in
line: a client by its many connections, or a connection by its many requests or its many bytes at once. The line is served for a fifth of a
millisecond in each turn, one client after the other (RFC 970: a gateway that is fair to whoever sends little needs a queue for each
sender). So nobody waits for much longer than that because of what somebody else wants, and where nobody else wants anything,
those in line have all there is. An event and its receipts take half a dozen turns, each of which waits for the line: with half a
millisecond, and 2 KiB parsed in one step, a receipt took two and a half times as long beside a flood of receipts (measured); now it takes a tenth more.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from time import perf_counter
from typing import Any

log = logging.getLogger("pere.http")

SHARE = 0.0002  # seconds of each turn in which those in line are served
AT_ONCE = 16  # what one client is served outside of the line, in one turn
MUCH = 2048  # bytes at once: whoever says more than that waits in line
SLICE = 512  # bytes that are parsed in one step: a hundred microseconds, if they are many small requests
FIRST = 8192  # and in the first one of who has asked nothing of late: a burst of ten events is one broadcast, and not five
LATE = 0.01  # seconds since it was served last


class Work:
    """What somebody asked for, done in line too: `step` does a piece of it, and tells whether there is more."""

    __slots__ = ("step",)

    def __init__(self, step: Callable[[], Any]):
        self.step = step


class Line:
    """Connections that wait, by whose they are. A connection is in it once, and says of itself whether it is. `time` is the loop's, which
    stands still as long as a turn lasts."""

    def __init__(self, time: Callable[[], float], call_soon: Callable[..., object]):
        self.is_enough = False  # for this turn: what was begun is worked on later, nobody knows for how long
        self._waiting: OrderedDict[Any, deque[Any]] = OrderedDict()
        self._time = time
        self._call_soon = call_soon

    def is_over(self, client: Any, weight: int) -> bool:
        """Whether a client has had its turn, when so much more of it is to be served."""
        now = self._time()
        if client.turn == now:
            weight += client.served
        else:
            client.turn = now
        client.served = weight
        return weight > AT_ONCE

    def slice(self, client: Any) -> int:
        """How many bytes of it are parsed now."""
        now = self._time()
        if now < client.turn + LATE:
            return SLICE
        client.turn, client.served = now, 0
        return FIRST

    def join(self, client: Any, connection: Any) -> None:
        """Wait for a turn among those of this client; `step` is called when it has come, again and again as long as it returns true."""
        if not self._waiting:
            self._call_soon(self._serve)
        queue = self._waiting.get(client)
        if queue is None:
            queue = self._waiting[client] = deque()
        queue.append(connection)

    def _serve(self) -> None:
        waiting, end, self.is_enough = self._waiting, perf_counter() + SHARE, False
        while waiting:
            client = next(iter(waiting))
            queue = waiting[client]
            connection = queue.popleft()
            try:
                if connection.step():
                    queue.append(connection)
            except Exception:
                # One's mistake must not stop the line for all others, and for good.
                log.exception("what waited in line could not be done")
            if queue:
                waiting.move_to_end(client)
            else:
                del waiting[client]
            if self.is_enough or perf_counter() > end:
                break
        if waiting:
            self._call_soon(self._serve)
