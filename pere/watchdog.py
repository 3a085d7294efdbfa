"""A thread that sees whether the loop still turns, and whether the writer of the store still writes.

Neither can say so itself when it does not. The loop says the time at each turn of its wheel; the writer says when it began what it is at. Who says nothing
new for `limit` seconds is stuck: that is logged, with the stack of the loop where it is that, and counted; `/healthz` says it of the writer, while the loop could
not even answer there. A service manager that wants to hear that all is well (see `systemd.py`) hears so only while it is, and starts the process anew.

A loop that holds the GIL in C stops this thread too. Then nobody is told that all is well either, which comes to the same.
"""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable

from pere import systemd
from pere.config import Config

log = logging.getLogger("pere.watchdog")

LOOP, WRITER = "loop", "writer"
OFTEN = 1.0  # seconds between two looks at most


class Watchdog:
    """To be made and started by the loop's own thread. `turned` is the time of the loop's newest turn, on whatever clock; `writing` is for how many seconds
    the writer has been at one thing."""

    def __init__(self, config: Config, turned: Callable[[], float], writing: Callable[[], float]):
        self.stuck = {LOOP: 0, WRITER: 0}
        self._config = config
        self._turned = turned
        self._writing = writing
        self._loop = threading.get_ident()
        self._manager = systemd.watchdog()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_told = {LOOP: False, WRITER: False}

    def start(self) -> None:
        """Look from now on, if that is wanted."""
        if self._config.watchdog or self._manager:
            self._thread = threading.Thread(target=self._run, name="pere-watchdog", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def is_writer_stuck(self) -> bool:
        """Whether a commit has taken longer than `--watchdog`."""
        return bool(self._config.watchdog) and self._writing() > self._config.watchdog

    def _run(self) -> None:
        newest, since, looked = self._turned(), time.monotonic(), time.monotonic()
        while not self._end.wait(pause := min(OFTEN, (self._config.watchdog or OFTEN) / 4, (self._manager or OFTEN) / 4)):
            now, turned = time.monotonic(), self._turned()
            # Where we slept too, it was the machine or the process that was stopped; which is no sign that what was stuck before goes on.
            if turned != newest or now - looked > 2 * pause and not self._is_told[LOOP]:
                newest, since = turned, now
            looked = now
            limit = self._config.watchdog
            is_well = not (self._look(LOOP, bool(limit) and now - since > limit, now - since) | self._look(WRITER, self.is_writer_stuck(), self._writing()))
            if is_well and self._manager:
                systemd.notify("WATCHDOG=1")

    def _look(self, what: str, is_stuck: bool, seconds: float) -> bool:
        """Whether it is stuck; said once, and once more when it is over."""
        if is_stuck and not self._is_told[what]:
            self.stuck[what] += 1
            facts: dict[str, object] = {"seconds": round(seconds, 1)}
            frame = sys._current_frames().get(self._loop) if what == LOOP else None
            if frame is not None:
                facts["stack"] = "".join(traceback.format_stack(frame))
            log.error(f"the {what} is stuck", extra={"facts": facts})
        elif self._is_told[what] and not is_stuck:
            log.warning(f"the {what} goes on")
        self._is_told[what] = is_stuck
        return is_stuck
