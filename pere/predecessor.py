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
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from pere.config import Config
from pere.door import Door
from pere.event import SECURE, UNCHUNKED
from pere.feed import DRAIN, Feed, bye
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
        self._line = line
        self._hub = hub
        self._followers = followers
        self._store = store
        self._door = door
        self._config = config
        self._connections = 0
        self._shown: dict[Feed, int] = {}
        self._kept: list[tuple[int, bytes, Any]] = []  # what went over, and what it would be told; with its transport, where that goes on
        self._speaker = ThreadPoolExecutor(1, thread_name_prefix="pere-handover")
        self._saying: list[Future[None]] = []

    @property
    def _is_broken(self) -> bool:
        """Whether the other takes no more."""
        return any(each.done() and each.exception() is not None for each in self._saying)

    def _say(self, what: str, told: Sequence[Any], descriptors: Sequence[int], **more: Any) -> None:
        if told:
            self._saying.append(self._speaker.submit(self._line.say, {what: told, **more}, descriptors))

    async def show(self) -> None:
        """Let the other have the sockets of the feeds, of which it makes nothing yet: so later it takes no more than to tell where they are."""
        for some in _pieces([feed for feed in (*self._hub.feeds.values(), *self._followers.feeds()) if not feed.form & SECURE]):
            some = [feed for feed in some if not feed.reason]
            copies = [os.dup(feed.fd) for feed in some]  # whatever becomes of the feeds meanwhile
            self._shown |= {feed: number for number, feed in enumerate(some, len(self._shown))}
            self._say("ahead", [self._shown[feed] for feed in some], copies)
            await self._until_said()
            for each in copies:
                os.close(each)
        self._say("shown", [True], [])
        self._saying.append(self._speaker.submit(self._line.is_seen))
        await self._until_said()

    async def _until_said(self) -> None:
        if self._saying:
            await asyncio.wait([asyncio.wrap_future(self._saying[-1])])

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
                self._kept += [(fd, b"", None) for fd, _ in over]
                self._say("connections", [told for _, told in over], [fd for fd, _ in over])
            await asyncio.sleep(LOOK)
        self._door.is_passing = False

    async def pass_feeds(self) -> None:
        """All that can go on elsewhere. With a store that is shared the others are served meanwhile."""
        hub, followers, clients = self._hub, self._followers, self._door.gate.clients()
        for feeds, word, passing in ((list(hub.feeds.values()), "feeds", partial(pass_on, hub)), (followers.feeds(), "followers", followers.pass_on)):
            for some in _pieces(feeds) if not self._is_broken else ():
                told, new = [], []
                for feed in some:
                    if feed.reason or (over := passing(feed, clients.get(feed.account))) is None:
                        continue
                    fd, about = over
                    number, transport = self._shown.get(feed, -1), feed.transport if fd == feed.fd else None
                    if number < 0:
                        if transport is not None:
                            # It might end, and its number be that of another one, before this is said.
                            fd, transport = os.dup(fd), None
                            feed.transport.abort()
                        new.append(fd)
                    told.append((number, *about))
                    self._kept.append((fd, self._goodbye(feed.form, about[-1]), transport))
                self.passed += len(told)
                self._say(word, told, new, newest=self._store.newest, at=hub.clock())
                if self._config.is_shared:
                    await asyncio.sleep(0)
        self._say("retries", hub.redelivery.told(), [])

    def _goodbye(self, form: int, rest: str) -> bytes:
        """The end of a feed; of one that is in the middle of a frame, nothing but that it ends."""
        if rest:
            return b""
        last = bye(DRAIN, self._config.retry * (1 + random.random()))
        return last if form & UNCHUNKED else chunk(last) + b"0\r\n\r\n"

    async def end(self) -> None:
        """Nothing more comes, and the store is free. Done when the other has all, or has died."""
        self._say("over", [True], [])
        self._saying.append(self._speaker.submit(self._line.is_taken))
        try:
            await asyncio.gather(*map(asyncio.wrap_future, self._saying))
            log.info("handed over", extra={"facts": {"feeds": self.passed, "connections": self._connections}})
        except Broken as broken:
            log.error("the process that was to take over does not serve", extra={"facts": {"feeds": self.passed, "because": str(broken)}})
            for fd, last, transport in self._kept:
                if transport is None or not transport.is_closing():
                    with contextlib.suppress(OSError):
                        os.write(fd, last)
        finally:
            self._speaker.shutdown(wait=False, cancel_futures=True)
            for fd, _, transport in self._kept:
                if transport is None:
                    os.close(fd)
                else:
                    transport.abort()
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

    def _begin(self, line: Line) -> None:
        sockets = self._listeners.sockets_by_kind()
        line.say({"pere": VERSION, "store": place_of(self._config), "pid": os.getpid(), "listening": [named for named, _ in sockets]}, [each.fileno() for _, each in sockets])

    def leave(self, line: Line) -> Line | None:
        """Somebody is to follow who is not there yet; None where that cannot be."""
        self.close()
        try:
            self._begin(line)
        except Broken as broken:
            log.warning("nothing can be handed over", extra={"facts": {"because": str(broken)}})
            line.close()
            return None
        self._listeners.share()
        return line

    async def _hear(self, line: Line, word: Word) -> bool:
        if not isinstance(word.get("pere"), int):
            return False
        if word.get("store") != place_of(self._config):
            await aside(line.say, {"pere": VERSION, "refused": f"the process that serves there has another store, {place_of(self._config)}"})
            return False
        await aside(self._begin, line)
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
