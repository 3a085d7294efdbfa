"""Somebody else's server, on the loop of a test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def serving(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], **wanted: Any) -> AsyncIterator[int]:
    """One that listens on a port of its own and does this with each connection. At the end it hangs up on whoever is there, also on who has come in the last moment:
    a client may be a program that lives on, and would hold its end of the connection for ever."""
    there: set[asyncio.Task[None]] = set()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        there.add(task)
        try:
            await serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            there.discard(task)
            writer.close()

    server = await asyncio.start_server(served, "127.0.0.1", **wanted)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        # Who was let in by now is served in the next turn, and can be hung up on in the one after it.
        for _ in range(3):
            await asyncio.sleep(0)
        for task in there:
            task.cancel()
        if there:
            await asyncio.wait(there, timeout=10)
