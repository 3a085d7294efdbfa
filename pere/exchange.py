"""One request on its way through Tornado: how a RequestHandler reaches the client.

It is what Tornado calls an HTTPConnection, of one request only: `write_headers`, `write`, `finish`, `set_close_callback`, `detach`.
So any RequestHandler works here as it does on Tornado's own server.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from http.client import responses
from typing import Any

import tornado.platform.asyncio  # noqa: F401  # Tornado does so at the first request, and whoever asks that would wait for it
from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPInputError, HTTPOutputError, RequestStartLine

from pere.door import Ask
from pere.errors import BadRequest, internal
from pere.sse import chunk as chunked

log = logging.getLogger("pere.http")


class Exchange(HTTPConnection):
    """`ask` came on `connection`, which is done with it when it is `answered`."""

    def __init__(self, connection: Any, ask: Ask):
        self.ask = ask
        self._connection = connection
        self._transport = connection.transport
        self._delegate: Any = None
        self._on_close: Callable[[], object] | None = None
        self._handed_over = False
        self._begun = False  # the answer
        self._chunking = False
        self._has_body = True
        self._left: int | None = None  # of the Content-Length that was announced
        # HTTPServerRequest reads both from here.
        self.context: Any = self
        self.remote_ip = ask.peer
        self.protocol = ask.scheme

    def start(self) -> None:
        ask = self.ask
        try:
            headers = HTTPHeaders()
            for name, value in ask.fields:
                headers.add(name.decode("latin-1"), value.decode("latin-1"))
            target = ask.path + b"?" + ask.query if ask.query else ask.path
            line = RequestStartLine(ask.method.decode(), target.decode("latin-1"), f"HTTP/{ask.version}")
            self._delegate = self._connection.app.start_request(self._connection, self)
            ready = self._delegate.headers_received(line, headers)
            if ready is None:
                if ask.body:
                    self._delegate.data_received(ask.body)
                self._finish_request()
            else:
                # A handler that streams its request says when it is ready for the body.
                self._task = asyncio.ensure_future(self._hand_over_when(ready))
        except Exception as error:
            self._fail(error)

    async def _hand_over_when(self, ready: Awaitable[None]) -> None:
        try:
            await ready
            # Each time it may have been answered already, or the client may have gone.
            if self.ask.body and self._connection.busy is self:
                taken = self._delegate.data_received(self.ask.body)
                if taken is not None:
                    await taken
            if self._connection.busy is self:
                self._finish_request()
        except Exception as error:
            self._fail(error)

    def _finish_request(self) -> None:
        self._handed_over = True
        self._delegate.finish()

    def _fail(self, error: Exception) -> None:
        """The request could not be given to its handler, which is told that it comes no more."""
        connection, ask = self._connection, self.ask
        if isinstance(error, HTTPInputError):
            ask.refusal = BadRequest("bad_http", str(error))
        else:
            log.error("%s could not be taken", ask.path.decode("latin-1"), exc_info=error, extra={"facts": {"request": ask.id}})
            ask.refusal = internal()
        if connection.busy is not self:
            return
        if self._begun:
            self._transport.abort()
            return
        connection.busy, connection._closing, ask.keep_alive = ask, True, False
        ask.refuse(ask.refusal)
        self.connection_lost()

    def write_headers(self, start_line: Any, headers: HTTPHeaders, chunk: bytes | None = None) -> "asyncio.Future[None]":
        ask, status = self.ask, start_line.code
        self._has_body = ask.method != b"HEAD" and status not in (204, 304) and status >= 200
        length = headers.get("Content-Length")
        self._chunking = self._has_body and length is None and ask.version == "1.1" and "Transfer-Encoding" not in headers
        if self._chunking:
            headers["Transfer-Encoding"] = "chunked"
        elif self._has_body and length is None:
            ask.keep_alive = False  # the end of the connection is the end of the body
        self._left = int(length) if length is not None and self._has_body else None
        if headers.get("Connection", "").lower() == "close" or self._connection.door.draining:
            ask.keep_alive = False
        if not ask.keep_alive:
            headers["Connection"] = "close"
        elif ask.version == "1.0":
            headers["Connection"] = "keep-alive"
        reason = start_line.reason or responses.get(status, "Unknown")
        lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers.get_all())]
        if any("\n" in line or "\r" in line for line in lines):
            raise ValueError("a header cannot hold a line break")
        self._begun = True
        if not self._transport.is_closing():
            self._transport.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        return self.write(chunk) if chunk else self._connection.drained()

    def write(self, chunk: bytes) -> "asyncio.Future[None]":
        if self._left is not None:
            self._left -= len(chunk)
            if self._left < 0:
                self._transport.abort()
                raise HTTPOutputError("more was written than Content-Length announced")
        if self._has_body and chunk and not self._transport.is_closing():
            self._transport.write(chunked(chunk) if self._chunking else bytes(chunk))
        drained: asyncio.Future[None] = self._connection.drained()
        return drained

    def finish(self) -> None:
        if self._left:
            self._transport.abort()
            raise HTTPOutputError(f"{self._left} bytes fewer were written than Content-Length announced")
        if self._chunking and not self._transport.is_closing():
            self._transport.write(b"0\r\n\r\n")
        # These hold us in return: thousands of requests would be much to collect, in a pause that everybody feels.
        self._delegate = self.context = None
        # What Tornado still does after this call must not meet the next request.
        if self._connection.busy is self:
            self._connection.answered(self.ask)

    def set_close_callback(self, callback: Callable[[], object] | None) -> None:
        self._on_close = callback

    def connection_lost(self) -> None:
        callback, self._on_close = self._on_close, None
        # Both reach the handler, which is to hear it once.
        if not self._handed_over:
            if self._delegate is not None:
                self._delegate.on_connection_close()
        elif callback is not None:
            callback()

    def detach(self) -> Any:
        """The transport, which is the caller's from now on."""
        self._on_close = None
        return self._connection.detach()
