"""Who waits until something that a store was told is kept, or all of it, or is known not to be."""

import asyncio
from collections.abc import Callable

from pere.errors import Refusal


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
