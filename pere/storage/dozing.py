"""A node on which nobody listens, and which nobody asks, takes nothing in: it sleeps, and before it answers the next one it reads what there was.

What it costs then is a beat a second, whatever is said on the others. Who asks waits until the log has been read; or, where that has been cut meanwhile, until everything has been
read anew, as by a node that starts. Until then nothing is answered from what is at hand, which is old, and nothing is entered.

This file knows when to sleep and who waits for the end of it. What is to be read, it is handed.
"""

import asyncio
from collections.abc import Awaitable, Callable

from pere.errors import Refusal
from pere.storage.ear import ended
from pere.storage.settling import tell, telling
from pere.storage.sharedlog import Cut, SharedLog

QUIET = 10  # beats without a question after which it sleeps
TRIES = 5  # to read everything anew while it is kept anew


class Doze:
    """`load` reads everything anew; `failed` is told why that, or the log, could not be read, and says what to refuse those with who wait."""

    def __init__(self, log: SharedLog, load: Callable[[], Awaitable[None]], failed: Callable[[Exception], Refusal]):
        self._log = log
        self._load = load
        self._failed = failed
        self._quiet = 0
        self._is_whole = True  # what is at hand is old, but all there was then
        self._waiting: list[tuple[Callable[[], None], Callable[[Refusal], None]]] = []
        self._waking: asyncio.Task[None] | None = None

    def asked(self) -> None:
        """Somebody wants something of this node."""
        self._quiet = 0

    def beat(self, may_sleep: bool) -> None:
        """One more second has gone by."""
        self._quiet = self._quiet + 1 if may_sleep else 0
        if self._quiet > QUIET:
            self._log.is_asleep = True

    def wake(self, then: Callable[[], None], refused: Callable[[Refusal], None]) -> None:
        """Call `then` when all is at hand, in the order in which this was asked; or `refused`, if it cannot be."""
        self.asked()
        self._waiting.append((then, refused))
        if self._waking is None or self._waking.done():
            self._waking = asyncio.ensure_future(self._wake())

    @property
    def is_waking(self) -> bool:
        """Whether it was called, and what there is to be read has not been read yet."""
        return self._log.is_asleep and self._waking is not None and not self._waking.done()

    def wait(self, then: Callable[[], None]) -> None:
        """Call `then` when it is awake, or cannot be woken: whoever wants more than to be let in finds that out."""
        self.wake(then, lambda refusal: then())

    async def woken(self) -> None:
        """The same for who awaits it. Raises Unavailable."""
        done: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        tell = telling(done)
        self.wake(lambda: tell(None), tell)
        if (refusal := await done) is not None:
            raise refusal

    async def _wake(self) -> None:
        try:
            await self._read()
        except Exception as error:
            self.refuse(self._failed(error))
        else:
            self.rise()

    async def _read(self) -> None:
        if self._is_whole:
            try:
                await self._log.refresh()
                return
            except Cut:
                self._is_whole = False
        await read_whole(self._load)

    def rise(self) -> None:
        """It is awake. Nothing comes between that and those who waited for it, so what was asked first is entered first."""
        self._is_whole = True
        self._log.rise()
        for then, refused in self._taken():
            tell(_go_on, then, refused)

    def refuse(self, refusal: Refusal) -> None:
        """Whoever waits is told so."""
        for _, refused in self._taken():
            refused(refusal)

    def _taken(self) -> list[tuple[Callable[[], None], Callable[[Refusal], None]]]:
        waiting, self._waiting = self._waiting, []
        return waiting

    async def stop(self) -> None:
        """Somebody else reads everything anew, or it is the end."""
        if self._waking is not None:
            await ended(self._waking)


async def read_whole(load: Callable[[], Awaitable[None]]) -> None:
    """Everything, and once more where it is kept anew just then, as when another node that came at the same time is done with its reading and lets go on who
    keeps. Raises Cut where that never ends, and what the loading raises."""
    for more in reversed(range(TRIES)):
        try:
            await load()
            return
        except Cut:
            if not more:
                raise


def _go_on(then: Callable[[], None], refused: Callable[[Refusal], None]) -> None:
    try:
        then()
    except Refusal as refusal:
        refused(refusal)
