"""PERE's loop of writes, once for each event: ten that come together are ten system calls for every feed."""

import os
from typing import Any

from bench.experiments.bare import run
from bench.floor import framed


class Design:
    def __init__(self) -> None:
        self._feeds: dict[int, Any] = {}
        self._count = 0

    def join(self, transport: Any) -> int:
        fd: int = transport.get_extra_info("socket").fileno()
        self._feeds[fd] = transport
        return fd

    def leave(self, fd: int) -> None:
        del self._feeds[fd]

    def push(self, body: bytes) -> None:
        self._count += 1
        frame, write = framed(body, self._count), os.write
        for fd, transport in self._feeds.items():
            try:
                taken = write(fd, frame)
            except BlockingIOError:
                taken = 0
            except OSError:
                continue
            if taken != len(frame):
                transport.write(frame[taken:])


if __name__ == "__main__":
    run(Design)
