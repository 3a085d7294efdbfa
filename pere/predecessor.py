"""A server that ends hands what is open to the process that follows: connections between two requests, and feeds wherever they are.

A feed goes over in one piece of work: it leaves here, is described as it stands, and is nobody's until the other process has it; what is published
meanwhile is in the store, above its position. A connection goes over with all that nobody has read of it. Until the other says that it serves, a descriptor of each stays here
too: should that process die, all of them are told to come back.
"""

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pere.config import Config
from pere.door import Door
from pere.event import UNCHUNKED
from pere.feed import DRAIN, bye
from pere.followers import Followers
from pere.handover import MOST, VERSION, Broken, Line, Offer, Word, aside, place_of
from pere.hub import Hub
from pere.listening import Listeners
from pere.passing import pass_on
from pere.sse import chunk
from pere.storage import Store

log = logging.getLogger("pere.handover")

LOOK = 0.002  # seconds between two looks at who has been answered meanwhile


class Predecessor:
    """What is left to the process at the other end of `line`."""

    def __init__(self, line: Line, hub: Hub, followers: Followers, store: Store, door: Door, config: Config):
        self.passed = 0  # feeds
        self._store = store
        self._line = line
        self._hub = hub
        self._followers = followers
        self._door = door
        self._config = config
        self._kept: list[tuple[int, bytes]] = []  # what went over, and what it would be told
        self._is_broken = False
        self._connections = 0

    async def pass_connections(self, is_admin: Callable[[Any], bool], hurry: Callable[[], None], seconds: float) -> None:
        """Each as soon as what was asked on it is answered, for so many seconds. `hurry` has those answered who wait for something."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        self._door.is_passing = True
        while (left := [each for each in self._door.connections if not each.is_secured]) and loop.time() < until and not self._is_broken:
            hurry()
            for some in _pieces(left):
                over = [(fd, is_admin(each)) for each in some if (fd := each.pass_on()) is not None]
                self._connections += len(over)
                await self._say("connections", [told for _, told in over], [(fd, b"") for fd, _ in over])
            await asyncio.sleep(LOOK)
        self._door.is_passing = False

    async def pass_feeds(self) -> None:
        """All that can go on elsewhere."""
        hub, followers, clients = self._hub, self._followers, self._door.gate.clients()
        for some in _pieces(list(hub.feeds.values())):
            if self._is_broken:
                return
            over = [one for feed in some if not feed.reason and (one := pass_on(hub, feed, clients.get(feed.account))) is not None]
            self.passed += len(over)
            await self._say("feeds", [asdict(told) for _, told in over], [(fd, self._goodbye(told.form, told.rest)) for fd, told in over], newest=self._store.newest)
        for some in _pieces(followers.feeds()):
            away = [passed for feed in some if not feed.reason and (passed := followers.pass_on(feed, clients.get(feed.account))) is not None]
            self.passed += len(away)
            await self._say("followers", [told for _, told in away], [(fd, self._goodbye(told[0], told[-1])) for fd, told in away], at=hub.clock())
        await self._say("retries", hub.redelivery.told(), [])

    def _goodbye(self, form: int, rest: str) -> bytes:
        """The end of a feed; of one that is in the middle of a frame, nothing but that it ends."""
        if rest:
            return b""
        last = bye(DRAIN, self._config.retry * (1 + random.random()))
        return last if form & UNCHUNKED else chunk(last) + b"0\r\n\r\n"

    async def _say(self, what: str, told: Sequence[Any], over: list[tuple[int, bytes]], **more: Any) -> None:
        self._kept += over
        if told and not self._is_broken:
            try:
                await aside(self._line.say, {what: told, **more}, [fd for fd, _ in over])
            except Broken:
                self._is_broken = True

    async def end(self) -> None:
        """Nothing more comes, and the store is free. Done when the other has all, or has died."""
        try:
            if self._is_broken:
                raise Broken("it took no more")
            await aside(self._line.say, {"over": True})
            await aside(self._line.hear)
            log.info("handed over", extra={"facts": {"feeds": self.passed, "connections": self._connections}})
        except Broken as broken:
            log.error("the process that was to take over does not serve", extra={"facts": {"feeds": self.passed, "because": str(broken)}})
            for fd, last in self._kept:
                with contextlib.suppress(OSError):
                    os.write(fd, last)
        finally:
            for fd, _ in self._kept:
                os.close(fd)
            self._kept.clear()
            self._line.close()


class Following:
    """Who may follow: whoever comes to `--handover` and has the same store. `on_heir` is told of it once: to whom all is to be handed
    over, or None where versions differ and only the sockets that listen went over."""

    def __init__(self, config: Config, listeners: Listeners, on_heir: Callable[[Line | None], None]):
        self._config = config
        self._listeners = listeners
        self._on_heir = on_heir
        self._line: Line | None = None  # where versions differ it closes when this process ends
        self._offer = Offer(config.handover, self._hear)

    def open(self) -> None:
        """Raises OSError where the path cannot be had."""
        self._offer.open()

    def close(self) -> None:
        self._offer.close()

    async def _hear(self, line: Line, word: Word) -> bool:
        if not isinstance(word.get("pere"), int):
            return False
        if word.get("store") != place_of(self._config):
            await aside(line.say, {"pere": VERSION, "refused": f"the process that serves there has another store, {place_of(self._config)}"})
            return False
        sockets = self._listeners.sockets_by_kind()
        await aside(line.say, {"pere": VERSION, "pid": os.getpid(), "listening": [named for named, _ in sockets]}, [each.fileno() for _, each in sockets])
        self.close()
        self._listeners.share()
        self._line = line
        is_understood = word["pere"] == VERSION
        log.info("another process takes over", extra={"facts": {"is_understood": is_understood}})
        self._on_heir(line if is_understood else None)
        return True


def _pieces(all: list[Any]) -> Iterator[list[Any]]:
    """As many as may go beside one word."""
    return (all[start : start + MOST] for start in range(0, len(all), MOST))
