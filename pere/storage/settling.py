"""Who waits until something that a store was told is kept, or all of it, or is known not to be."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from pere.errors import Refusal

log = logging.getLogger("pere.store")


class Settling:
    """Those who wait, and are told together."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Done at the next `tell`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def tell(self) -> None:
        """What they wait for has come."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def telling(waiter: "asyncio.Future[Refusal | None]") -> Callable[[Refusal | None], None]:
    """What tells who waits that something is kept, or why it is not; who has gone meanwhile is told nothing."""

    def tell(refusal: Refusal | None) -> None:
        if not waiter.done():
            waiter.set_result(refusal)

    return tell


def tell(whom: Callable[..., object], *what: Any) -> None:
    """Tell somebody what became of something. One's mistake must not keep the others from being told, nor what is kept from being entered: it would be on
    nobody's feed, and what comes next would have its place."""
    try:
        whom(*what)
    except Exception:
        log.exception("who was told what became of it has failed")
