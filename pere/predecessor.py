"""A server that ends hands what is open to the process that follows: connections between two requests, and feeds wherever they are.

From the moment at which the first request is left to the other process until that one serves, somebody waits; so what can be done before is. The sockets of feeds and
what these are go over while all are served. Then, with a store of one process, all that is live is left to the other by one word: how far each channel has come. What is
not live is described as it stands, in one piece of work; what is published meanwhile is in the store, above its position. With a store that is shared both serve, and feeds go over few at
a time, some more when the last ones are taken up. A connection goes over with all that nobody has read of it. Until the other says that it serves, a descriptor of each
stays here too: should that process die, all of them are told to come back.
"""

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from pere.audience import Member
from pere.config import Config
from pere.devices import REMOVED_FOR
from pere.door import Door
from pere.event import SECURE, Event
from pere.feed import DRAIN, Feed, bye, ended
from pere.followers import Followers
from pere.handover import MOST, VERSION, Broken, Line, Offer, Word, aside, place_of
from pere.hub import Hub
from pere.listening import Listeners
from pere.passing import describe, pass_on
from pere.storage import Shelf, Store

log = logging.getLogger("pere.handover")

LOOK = 0.001  # seconds between two looks at who has been answered meanwhile
HALF = 0.1  # seconds in which who has said half a request may say the rest, once all others wait
COPIES = 100  # connections that go over in one turn: fewer than files that are no connections may be open (`gate.SPARE`)
FEW = 50  # feeds that are shown at once, or go over where both serve: a millisecond or some


class Predecessor:
    """What is left to the process at the other end of `line`."""

    def __init__(self, line: Line, hub: Hub, followers: Followers, store: Store, door: Door, config: Config):
        self.passed = 0  # feeds
        self.away: Sequence[Any] = ()  # devices that may be about to be told of as gone (see `reporter.py`)
        self.flushed: Mapping[str, int] = {}  # up to which ordinal of each channel those had been written to that went over as they were shown
        self._line = line
        self._hub = hub
        self._followers = followers
        self._store = store
        self._door = door
        self._config = config
        self._connections = 0
        self._shown: dict[Feed, tuple[int, int]] = {}  # the number of each, and of how many channels it was; -1 where it was not told what it is
        self._live: dict[Feed, int] = {}  # those that are to go over as they were shown, and their numbers
        self._but: list[int] = []  # the numbers of all others that were shown
        self._gone: Collection[Feed] = ()  # those that went over as they were shown
        self._recalled: list[tuple[str, int]] = []  # events, by channel and id, since those that may have them went over
        # What went over: its descriptor, its form, what it is in the middle of being written, and its transport, where that goes on.
        self._kept: list[tuple[int, int | None, str, Any]] = []
        self._speaker = ThreadPoolExecutor(1, thread_name_prefix="pere-handover")
        self._saying: list[Future[None]] = []

    @property
    def is_broken(self) -> bool:
        """Whether the other takes no more."""
        return any(each.done() and each.exception() is not None for each in self._saying)

    def _say(self, what: str, told: Sequence[Any], descriptors: Sequence[int], **more: Any) -> None:
        if told:
            self._saying.append(self._speaker.submit(self._line.say, {what: told, **more}, descriptors))

    async def show(self) -> None:
        """Let the other have the sockets of the feeds, and what they are, while all goes on; then save what can be, so that it has the file nearly as it will be. Done when it
        has made of that what can be made before it has the store."""
        clients: dict[Any, str] = self._door.gate.clients()
        feeds = [*self._hub.feeds.values(), *self._followers.feeds()]
        for start in range(0, len(feeds), FEW):
            some = [(number, feed) for number, feed in enumerate(feeds[start : start + FEW], start) if not feed.reason and not feed.form & SECURE]
            is_told = not self._config.is_shared
            told = [(number, tuple(describe(feed, clients.get(feed.account))) if is_told and feed.live else None) for number, feed in some]
            copies = [os.dup(feed.fd) for _, feed in some]  # whatever becomes of the feeds meanwhile
            self._shown |= {feed: (number, len(feed.places) if what is not None else -1) for (number, feed), (_, what) in zip(some, told, strict=True)}
            self._say("ahead", told, copies)
            await self._until_said()
            for each in copies:
                os.close(each)
            if self.is_broken:
                return  # one that is stopped would take as long for each further word
        self._say("shown", [True], [])
        await self._until_seen()
        if not self._config.is_shared and not self.is_broken:
            # Who is not where it was by the end is found in what has moved.
            self._hub.channels.moved = {}
            self._live = {feed: number for feed, (number, places) in self._shown.items() if feed.live and not feed.reason and len(feed.places) == places}
            self._but = [number for feed, (number, _) in self._shown.items() if feed not in self._live]
            self._say("saved", [await self._store.save()], [])
            await self._until_seen()

    async def _until_seen(self) -> None:
        self._saying.append(self._speaker.submit(self._line.is_seen))
        await self._until_said()

    async def _until_said(self) -> None:
        """Of the last word; whether the other has gone is asked apart (`is_broken`)."""
        if self._saying:
            await asyncio.gather(asyncio.wrap_future(self._saying[-1]), return_exceptions=True)

    async def hear_out(self, seconds: float) -> None:
        """Let those who have said half a request say the rest, while all are served: for so many seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        half = [each for each in self._door.connections if each.is_half_said]
        while half and loop.time() < until and not self.is_broken:
            await asyncio.sleep(LOOK)
            half = [each for each in half if each.is_half_said]

    async def pass_connections(self, is_admin: Callable[[Any], bool], hurry: Callable[[], None], seconds: float) -> None:
        """Each as soon as what was asked on it is answered, for so many seconds. `hurry` has those answered who wait for something."""
        loop = asyncio.get_running_loop()
        until, half_until = loop.time() + seconds, loop.time() + HALF
        self._door.is_passing = True
        while left := [each for each in self._door.connections if not each.is_secured]:
            hurry()
            for some in _pieces(left, COPIES):
                over = [(fd, is_admin(each)) for each in some if (fd := each.pass_on()) is not None]
                self._connections += len(over)
                self._kept += [(fd, None, "", None) for fd, _ in over]
                self._say("connections", [told for _, told in over], [fd for fd, _ in over])
                # What is closed is so in the next turn, and each of these has two descriptors until then.
                await asyncio.sleep(0)
            left = [each for each in left if each in self._door.connections]
            if not left or loop.time() > until or self.is_broken or not self._config.is_shared and loop.time() > half_until and all(each.is_half_said for each in left):
                break
            await asyncio.sleep(LOOK)
        self._door.is_passing = False

    async def pass_feeds(self) -> None:
        """All that can go on elsewhere. With a store that is shared the others are served meanwhile."""
        hub, followers, clients = self._hub, self._followers, self._door.gate.clients()
        hub.hasten()
        for feed in hub.channels.moved or ():
            if (shown := self._live.pop(feed, -1)) >= 0:
                self._but.append(shown)
        rest = [feed for feed in hub.feeds.values() if feed not in self._live] if len(self._live) < len(hub.feeds) else []
        for feeds, word, passing in ((rest, "feeds", partial(pass_on, hub)), (followers.feeds(), "followers", followers.pass_on)):
            for some in _pieces(feeds, FEW if self._config.is_shared else MOST):
                if self.is_broken:
                    return
                told, new = [], []
                for feed in some:
                    if feed.reason or (over := passing(feed, clients.get(feed.account))) is None:
                        continue
                    fd, about = over
                    number, held = self._shown.get(feed, (-1, 0))[0], feed if fd == feed.fd else None
                    if number < 0:
                        if held is not None:
                            # It might end, and its number be that of another one, before this is said.
                            fd, held = os.dup(fd), None
                            feed.abort()
                        new.append(fd)
                    told.append((number, *about))
                    self._kept.append((fd, feed.form, about[-1], held))
                self.passed += len(told)
                self._say(word, told, new, newest=self._store.newest, at=hub.clock())
                if self._config.is_shared and told:
                    # Who is on the way waits, so the next ones go when these are taken up.
                    await self._until_seen()
        if not self._config.is_shared:
            self._gone = self._live
            self.passed += len(self._gone)
            self.flushed = hub.abandon(self._gone)
            self._say("live", [True], [], but=self._but, flushed=self.flushed, newest=self._store.newest)
            self._store.withdraw = partial(self._withdraw, self._store.withdraw, self._store.newest)
        self._say("retries", hub.redelivery.told(), [])

    def _withdraw(self, withdraw: Callable[[Event], None], newest: int, event: Event) -> None:
        withdraw(event)  # from those who are still here
        if event.id <= newest:
            self._recalled.append((event.channel, event.id))

    def _goodbye(self, form: int | None, rest: str) -> bytes:
        """The end of a feed; of one that is in the middle of a frame, and of what is none, nothing but that it ends."""
        if rest or form is None:
            return b""
        return ended(bye(DRAIN, self._config.retry * (1 + random.random())), form)

    @property
    def moved(self) -> list[tuple[Shelf, Member]]:
        """Members of which a feed has gone, or has ceased to be where all others are, since what could be saved was."""
        return [(place.channel.shelf, place.member) for places in (self._hub.channels.moved or {}).values() for place in places if place.member is not None]

    async def end(self, left: Mapping[str, int]) -> bool:
        """Nothing more comes, and the store is free; the other need not look for what is `left` to it. Done when it has all, or has died: whether it has."""
        try:
            if self._config.is_shared:
                self._say("over", [True], [], left=left)
            else:
                # Everybody waits for this, and nobody is served here who might wait for it to be said: it takes no thread, if all before it has been.
                await self._until_said()
                removed = self._store.devices.all_removed_since(self._store.clock() - REMOVED_FOR)
                self._line.say({"over": [True], "left": left, "recalled": self._recalled, "removed": removed, "away": self.away})
            self._saying.append(self._speaker.submit(self._line.is_taken))
            await asyncio.gather(*map(asyncio.wrap_future, self._saying))
            log.info("handed over", extra={"facts": {"feeds": self.passed, "connections": self._connections}})
            return True
        except Broken as broken:
            log.error("the process that was to take over does not serve", extra={"facts": {"feeds": self.passed, "because": str(broken)}})
            self._keep_gone()
            for fd, form, rest, held in self._kept:
                if held is None or not held.is_closing():
                    with contextlib.suppress(OSError):
                        os.write(fd, self._goodbye(form, rest))
            return False
        finally:
            self.drop()

    def drop(self) -> None:
        """Nothing of what went over is ours any more."""
        self._speaker.shutdown(wait=False, cancel_futures=True)
        self._hub.channels.moved = None
        self._keep_gone()
        for fd, *_, held in self._kept:
            if held is None:
                os.close(fd)
            else:
                held.abort()
        self._kept.clear()
        self._line.close()

    def _keep_gone(self) -> None:
        # Not in the moment in which everybody waits.
        gone, self._gone = self._gone, ()
        self._kept += [(feed.fd, feed.form, "", feed) for feed in gone]


class Following:
    """Who may follow: whoever comes to `--handover` and has the same store. `on_heir` is told of it once: to whom all is to be handed
    over, or None where versions differ and only the sockets that listen went over."""

    def __init__(self, config: Config, listeners: Listeners, on_heir: Callable[[Line | None], None]):
        self._config = config
        self._listeners = listeners
        self._on_heir = on_heir
        self._line: Line | None = None  # of who follows, who is one; where versions differ it closes when this process ends
        self._offer = Offer(config.handover, self._hear)

    def open(self) -> None:
        """Raises OSError where the path cannot be had."""
        self._line = None
        self._offer.open()

    def close(self) -> None:
        """Nobody may follow any more."""
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
        return line

    async def _hear(self, line: Line, word: Word) -> bool:
        if self._line is not None or not isinstance(word.get("pere"), int):
            return False
        if word.get("store") != place_of(self._config):
            await aside(line.say, {"pere": VERSION, "refused": f"the process that serves there has another store, {place_of(self._config)}"})
            return False
        self._line = line  # before anything is awaited, for another one may be heard meanwhile
        try:
            await aside(self._begin, line)
        except Broken:
            self._line = None
            raise
        self.close()
        is_understood = word["pere"] == VERSION
        if not is_understood:
            self._listeners.share()
        log.info("another process takes over", extra={"facts": {"is_understood": is_understood}})
        self._on_heir(line if is_understood else None)
        return True


def _pieces(all: list[Any], size: int = MOST) -> Iterator[list[Any]]:
    """As many as may go beside one word, or so many."""
    return (all[start : start + size] for start in range(0, len(all), size))
