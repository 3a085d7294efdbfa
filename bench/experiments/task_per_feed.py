"""A task for each feed that waits for news and reads on from what is kept: no queue, and what came together is joined, yet each is woken."""

import asyncio
from typing import Any

from bench.experiments.bare import run
from bench.floor import framed


class Design:
    def __init__(self) -> None:
        self._kept: list[bytes] = []
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def join(self, transport: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(self._send(transport, len(self._kept)))
        self._tasks.add(task)
        return task

    async def _send(self, transport: Any, position: int) -> None:
        while True:
            while position == len(self._kept):
                await self._news.wait()
            transport.write(b"".join(self._kept[position:]))
            position = len(self._kept)

    def leave(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        self._tasks.discard(task)

    def push(self, body: bytes) -> None:
        self._kept.append(framed(body, len(self._kept) + 1))
        self._news.set()
        self._news = asyncio.Event()


if __name__ == "__main__":
    run(Design)
