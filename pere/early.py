"""A server that is put together while the process before it still serves, so that nobody waits for that.

It has a store that is not its own yet: what can be had of the file before is, and what changes until the other process puts it down is looked for then. Where anything is not as
it was to be, this server is dropped, and another one is made as if nothing had been known before.
"""

import asyncio
import logging
from collections.abc import Callable

from pere.config import Config
from pere.errors import ConfigError
from pere.parts import early_store
from pere.server import Server
from pere.storage.sqlite import SqliteStore
from pere.successor import Successor

log = logging.getLogger("pere.handover")


class Early:
    """`make` puts a server together with a store; it is to go on with what is open in the process `before`."""

    def __init__(self, config: Config, before: Successor, make: Callable[[SqliteStore], Server]):
        self._config = config
        self._before = before
        self._make = make
        self._store: SqliteStore | None = None
        self._server: Server | None = None

    async def get_ready(self) -> None:
        """All that is open has been shown. Raises ConfigError where there can be no such server: then the other process goes on."""
        if not self._before.is_there:
            return  # and nobody waits
        try:
            self._store = early_store(self._config)
        except ConfigError as error:
            await self._drop(error)
        await self.look(0)
        if self._store is not None:
            self._server = self._make(self._store)
            await self._server.expect(self._before)

    async def look(self, news: int) -> None:
        """The other process has saved what it could; see how things stand now."""
        if self._store is not None:
            try:
                self._store.look(news)
            except ConfigError as error:
                await self._drop(error)

    async def take(self) -> Server | None:
        """The store is free. The server, whose it is now; None where it is to be made anew."""
        before = self._before
        if self._store is not None and before.left:
            try:
                self._store.take(before.left, before.flushed)
                return self._server
            except ConfigError as error:
                await self._drop(error)
        await self._drop()
        return None

    async def _drop(self, error: ConfigError | None = None) -> None:
        if error is not None:
            log.info("the store is opened anew", extra={"facts": {"because": str(error)}})
        store, server, self._store, self._server = self._store, self._server, None, None
        if server is not None and server.spans is not None:
            # Of what else it has, the outlets of feeds go on. Nobody waits for this, which takes a while.
            asyncio.get_running_loop().run_in_executor(None, server.spans.close)
        if store is not None:
            await store.forgo()
