"""Somebody between a client and its server: a relay on a real port that can do all that networks do to connections.

It passes bytes on as they come until it is told otherwise. `hold` keeps what the server says and passes nothing on, as a proxy that buffers
does; `vanish` does so both ways and without an end, as a cable that was pulled; `cut` ends what is open. `answer`, if set, is what every new
connection is answered with instead of being passed on, as a captive portal does.
"""

import asyncio
from contextlib import suppress
from typing import Self


class Between:
    """`async with Between(port) as between`: at `between.url`; `asked` are the heads of all requests that came on new connections."""

    def __init__(self, port: int):
        self.to = port
        self.answer: bytes | None = None
        self.asked: list[bytes] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._pairs: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        self.flow()
        # Who was let in by now is served in the next turn, and can be cut off in the one after it.
        for _ in range(3):
            await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._pairs:
            writer.transport.abort()

    def hold(self) -> None:
        """From now on nothing that the server says arrives."""
        self._flowing.clear()

    def flow(self) -> None:
        """All that was held arrives, and what comes from now on too."""
        self._flowing.set()

    def cut(self) -> None:
        for writer in self._pairs:
            writer.close()

    def forget(self) -> None:
        """What is open stays open, and nothing comes of it any more; new connections are passed on."""
        self._flowing = asyncio.Event()
        self._flowing.set()
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._pairs.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(asyncio.CancelledError):
            await self._begin(reader, writer)

    async def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (answer := self.answer) is not None:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                self.asked.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(answer)
                await writer.drain()
            writer.close()
            return
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.close()
            return
        self._pairs.add(there_writer)
        self._pass(reader, there_writer, None)
        self._pass(there_reader, writer, self._flowing)

    def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event | None) -> None:
        async def passing() -> None:
            with suppress(ConnectionError):
                while piece := await reader.read(65536):
                    if flowing is not None:
                        await flowing.wait()
                    writer.write(piece)
                    await writer.drain()
            writer.close()

        task = asyncio.ensure_future(passing())
        self._tasks.add(task)
