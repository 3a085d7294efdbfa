"""A queue and a task for each feed, as most chat examples have it: each event wakes each task, and each task is a turn of the loop."""

import asyncio
from typing import Any

from bench.experiments.bare import run
from bench.floor import framed


class Design:
    def __init__(self) -> None:
        self._queues: dict[asyncio.Queue[bytes], asyncio.Task[None]] = {}
        self._count = 0

    def join(self, transport: Any) -> asyncio.Queue[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._queues[queue] = asyncio.create_task(self._send(queue, transport))
        return queue

    async def _send(self, queue: asyncio.Queue[bytes], transport: Any) -> None:
        while True:
            transport.write(await queue.get())

    def leave(self, queue: asyncio.Queue[bytes]) -> None:
        self._queues.pop(queue).cancel()

    def push(self, body: bytes) -> None:
        self._count += 1
        frame = framed(body, self._count)
        for queue in self._queues:
            queue.put_nowait(frame)


if __name__ == "__main__":
    run(Design)
