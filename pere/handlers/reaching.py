"""Requests that must not be answered before what another node has taken is at hand here too."""

import asyncio
import logging
from collections.abc import Callable, Collection

from pere.door import Ask
from pere.errors import Refusal, internal
from pere.storage import Store

log = logging.getLogger("pere.http")


class Reaching:
    """All that wait for it. With one process nobody ever does."""

    def __init__(self, store: Store):
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds no task

    def first(self, ask: Ask, id: int, names: Collection[str], then: Callable[[], None]) -> None:
        """Call `then` once there is everything up to this id, and all of these channels and patterns: at once, if there is. It may raise a
        Refusal. Nobody is called where the client has gone meanwhile."""
        if not self._store.lags(id, names):
            then()
            return
        gone: list[bool] = []
        ask.on_gone(lambda: gone.append(True))

        def reached(refusal: Refusal | None) -> None:
            try:
                if refusal is not None:
                    raise refusal
                if not gone:
                    then()
            except Refusal as refusal:
                ask.refuse(refusal)
            except Exception:
                # Nobody else is here who would answer.
                log.exception("%s could not be answered", ask.route.name, extra={"facts": {"request": ask.id}})
                ask.refuse(internal())

        self._begin(id, names, reached)

    def reach(self, id: int, names: Collection[str], then: Callable[[Refusal | None], None]) -> None:
        """The same for many at once: `then` is told why there cannot be all of it, if that is so."""
        if self._store.lags(id, names):
            self._begin(id, names, then)
        else:
            then(None)

    def _begin(self, id: int, names: Collection[str], then: Callable[[Refusal | None], None]) -> None:
        task = asyncio.ensure_future(self._reach(id, names, then))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reach(self, id: int, names: Collection[str], then: Callable[[Refusal | None], None]) -> None:
        try:
            await self._store.reach(id, *names)
        except Refusal as refusal:
            then(refusal)
        except Exception:
            log.exception("what another node has taken could not be reached")
            then(internal())
        else:
            then(None)
