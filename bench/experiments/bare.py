"""The front door of the experiments on uvloop: just enough HTTP to be driven by `pere bench`, so that only the design differs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httptools
import uvloop

from bench import words
from bench.floor import ANSWER, HEAD


class Door(asyncio.Protocol):
    """A connection that becomes a feed by a GET, or pushes by POST."""

    def __init__(self, design: Any):
        self._design = design
        self._feed: Any = None
        self._body = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_method() == b"GET":
            self.transport.write(HEAD)
            self._feed = self._design.join(self.transport)
            return
        body, self._body = self._body, b""
        self._design.push(body)
        self.transport.write(ANSWER)

    def connection_lost(self, error: Exception | None) -> None:
        if self._feed is not None:
            self._design.leave(self._feed)


async def serve(made: Callable[[], Any]) -> None:
    design = made()
    server = await asyncio.get_running_loop().create_server(lambda: Door(design), "127.0.0.1", int(*words("PORT")), backlog=4096)
    await server.serve_forever()


def run(made: Callable[[], Any], serving: Callable[[Callable[[], Any]], Awaitable[None]] = serve) -> None:
    """Serve a design, which has `join`, `leave` and `push`, on the port of the command line."""
    uvloop.run(serving(made))  # type: ignore[arg-type]
