"""A server that begins goes on with what the process before it had open (see `predecessor.py`).

With a store of one process it hears everything first, and serves when that process has put the store away; what can be got ready before is, and the feeds are taken up while it serves (see `arriving.py`). With
one that is shared it serves already, and each feed goes on the moment that it comes; first all that the other process could have written to it must be at hand here, or it would come twice.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from pere.arriving import Arriving
from pere.config import Config
from pere.errors import ConfigError, Refusal
from pere.feed import DRAIN, KICKED, bye, ended
from pere.followers import Followers
from pere.gate import Gate
from pere.handover import LOOK, PATIENCE, VERSION, Broken, Line, Word, aside, is_free, place_of, visit
from pere.hub import Hub
from pere.limits import Account
from pere.listening import Listeners
from pere.outlets import Outlet, Outlets
from pere.passing import Told, take_over, written
from pere.search import Search
from pere.storage import Store

log = logging.getLogger("pere.handover")

UNHEARD = 60.0  # seconds that a revocation may be older than when it is heard of: the clock of the node that said it may be behind, and it was on its way


class Held(Outlet):
    """A feed on its way, of which nobody here knows yet what it is."""

    __slots__ = ()

    def close(self) -> None:
        self.abort()


class Taking:
    """Makes of what comes what it was. It counts how many feeds it took, and how many could not go on."""

    def __init__(self, store: Store, hub: Hub, followers: Followers, gate: Gate, outlets: Outlets, revoked: dict[str, float]):
        self.taken = self.lost = 0
        self._store = store
        self._hub = hub
        self._followers = followers
        self._gate = gate
        self._outlets = outlets
        self._revoked = revoked

    def _account(self, client: str | None) -> Account | None:
        return self._gate.accounts.of(client, self._gate.time()) if client is not None else None

    async def open(self, sock: Any) -> Any:
        """What a feed is to be written to by; where it is no mere socket any more, as it is."""
        if not isinstance(sock, socket.socket):
            return sock
        held = Held()
        if self._outlets.adopt(sock, held):
            return held
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, sock)
        return transport

    def feed(self, told: Told, transport: Any, born: Iterable[tuple[str, int]] = ()) -> None:
        """A feed, at the other end of this transport; `born` are channels that its patterns mean and it does not know."""
        if transport.is_closing():
            return
        if take_over(self._hub, self._store, transport, told, born, self._account(told.client)) is not None:
            self.taken += 1
            return
        self.lost += 1
        transport.write(ended(bye(DRAIN, self._hub.retry), told.form))
        transport.close()

    def follower(self, about: list[Any], transport: Any, since: float) -> None:
        """`since` is when it was described: its tokens may have been revoked on the way, or before, where the other process had not heard of it."""
        if transport.is_closing():
            return
        feed = self._followers.take_over(transport, about)
        feed.count_for(self._account(about[-2]))
        self.taken += 1
        if self._revoked.get(about[5], 0.0) > since - UNHEARD:
            feed.close(KICKED, bye(KICKED, self._hub.retry))


class Successor:
    """What comes from the process at the other end of `line`; `sockets` listen, by what they are for."""

    def __init__(self, line: Line, sockets: dict[str, list[socket.socket]]):
        self.sockets = sockets
        self._line = line
        self._words: list[tuple[Word, list[Any]]] = []
        self._ahead: dict[int, tuple[Any, Told | None]] = {}  # feeds that the other still has, by their numbers: each by its socket, or what that has become, and what it is
        self._come: dict[int, tuple[Any, Told | None]] = {}  # those of them that are ours by now
        self._is_over = False
        self._connections = 0
        self.is_there = True  # the process that says all this
        self.left: dict[str, int] = {}  # what nobody need look for in the store
        self._recalled: list[tuple[str, int]] = []  # events, by channel and id, of which the feeds that came do not know it
        self._removed: dict[str, float] = {}  # devices, and when
        self.away: list[Any] = []  # devices that have just gone

    @classmethod
    async def find(cls, config: Config, has: Iterable[str]) -> "Successor | None":
        """Who serves now, if anybody does, and lets us take over. `has` is what we have sockets for already. Raises ConfigError where they
        have another store, OSError where that cannot be found out."""
        line: Line | None = await aside(visit, config.handover)
        return await cls.hear(line, config, has) if line is not None else None

    @classmethod
    async def hear(cls, line: Line, config: Config, has: Iterable[str], is_there: bool = True) -> "Successor":
        """The same for who is at the other end of a line, or was there: then it asks nothing."""
        try:
            if is_there:
                await aside(line.say, {"pere": VERSION, "store": place_of(config)})
            word, handed = await aside(line.hear)
            if "refused" in word:
                raise ConfigError(f"--handover {config.handover}: {word['refused']}, and not {place_of(config)}")
            if word["store"] != place_of(config):
                raise Broken(f"it had another store, {word['store']}")
            mine = cls(line, _wanted(config, word["listening"], handed, has))
            mine.is_there = is_there
            if word["pere"] != VERSION:
                log.warning("the process before is of another version: its feeds are let go", extra={"facts": {"pid": word["pid"]}})
                await mine._outlive(config)
                return mine
        except Broken as broken:
            # It ends for another reason, or has died: then the store will be free.
            log.warning("nothing was handed over", extra={"facts": {"because": str(broken)}})
            mine = cls(line, {})
            mine._is_over = True
            return mine
        log.info("taking over", extra={"facts": {"pid": word["pid"]}})
        return mine

    async def _outlive(self, config: Config) -> None:
        """Wait until the other has ended. Where the store is shared both serve meanwhile: those whom it lets go are here at once."""
        self._is_over = True
        if not config.is_shared:
            with contextlib.suppress(Broken):
                await aside(self._line.hear, PATIENCE + config.drain_delay + 2 * config.drain_seconds)
        elif config.handover:
            loop = asyncio.get_running_loop()
            until = loop.time() + PATIENCE
            # It leaves the place where the next one is to come a moment after it has said who it is.
            await asyncio.sleep(LOOK)
            while not await aside(is_free, config.handover) and loop.time() < until:
                await asyncio.sleep(LOOK)
        self._line.close()

    async def _next(self) -> tuple[Word, list[Any]] | None:
        """The next word, and its sockets. None at the end, also where that is the other's."""
        try:
            word, handed = await aside(self._line.hear)
        except Broken as broken:
            log.error("the process before has gone in the middle", extra={"facts": {"because": str(broken)}})
            self._is_over = True
            self.drop()
            return None
        if "over" in word:
            self._is_over, self.left, self._recalled, self._removed = True, word["left"], word.get("recalled", []), word.get("removed", {})
            self.away = word.get("away", [])
            return None
        if "connections" in word:
            return word, handed
        if "ahead" in word:
            self._ahead |= {number: (sock, Told(*told) if told is not None else None) for (number, told), sock in zip(word["ahead"], handed, strict=True)}
            return word, []
        fresh = iter(handed)
        return word, [self._ahead.pop(number)[0] if number >= 0 else next(fresh) for number, *_ in word.get("feeds") or word.get("followers") or ()]

    async def gather(self, get_ready: Callable[[], Awaitable[None]], look: Callable[[int], Awaitable[None]]) -> None:
        """Take everything, and wait until the store is free. What can be done before is when all that is open was shown, and again when what could be was saved: the other
        serves until then."""
        while not self._is_over and (some := await self._next()) is not None:
            word, _ = some
            if "shown" in word:
                await get_ready()
                await self._say("seen")
            elif "saved" in word:
                await look(*word["saved"])
                await self._say("looked")
            elif "ahead" not in word:
                self._words.append(some)

    async def _say(self, word: str) -> None:
        with contextlib.suppress(Broken):
            await aside(self._line.say, {word: True})

    @property
    def flushed(self) -> dict[str, int]:
        """Up to which ordinals of their channels live feeds have been written to."""
        return next((word["flushed"] for word, _ in self._words if "live" in word), {})

    def drop(self) -> None:
        """What was taken and is nobody's: it is closed, and comes back by itself."""
        for _, handed in self._words:
            for each in handed:
                each.close()
        for each, _ in self._ahead.values():
            each.close()
        self._words.clear()
        self._ahead.clear()

    async def expect(self, store: Store, hub: Hub, followers: Followers, gate: Gate, outlets: Outlets, revoked: dict[str, float]) -> None:
        """These are to go on with all of it. What was shown is got ready."""
        self._store, self._hub = store, hub
        self._taking = Taking(store, hub, followers, gate, outlets, revoked)
        self._arriving = Arriving(store, self._taking.feed)
        self._ahead = {number: (await self._taking.open(sock), told) for number, (sock, told) in self._ahead.items()}
        shown = {number: (told, transport) for number, (transport, told) in self._ahead.items() if told is not None}
        self._arriving.expect({number: feed for number, feed in shown.items() if _can_come_later(feed[0])})
        self._at_once = {number: feed for number, feed in shown.items() if not _can_come_later(feed[0])}

    async def settle(self, listeners: Listeners, serve: Callable[[], Awaitable[None]]) -> None:
        """Go on with all of it, and with what still comes; then the other process may end. `serve` is called when all is there that must be before."""
        store, taking, arriving = self._store, self._taking, self._arriving
        is_served = not self._is_over
        store.devices.removed |= self._removed
        connections: list[tuple[bool, socket.socket]] = []
        retries: list[Any] = []
        if is_served:
            await serve()
        while (some := self._words.pop(0) if self._words else None if self._is_over else await self._next()) is not None:
            word, handed = some
            if "connections" in word:
                connections += zip(word["connections"], handed, strict=True)
            else:
                handed = [await taking.open(each) for each in handed]
            feeds = list(zip([Told(*told) for _, *told in word["feeds"]], handed, strict=True)) if "feeds" in word else []
            if not is_served:
                # The others have to be there before anything happens.
                arriving.add([feed for feed in feeds if _can_come_later(feed[0])])
                feeds = [feed for feed in feeds if not _can_come_later(feed[0])]
            if "live" in word:
                arriving.come(word["but"], word["flushed"])
                # Nobody need wait until thousands are let go of.
                self._come, self._ahead = self._ahead, {number: self._ahead[number] for number in word["but"] if number in self._ahead}
                feeds = [(written(told, word["flushed"]), transport) for number, (told, transport) in self._at_once.items() if number not in word["but"]]
            for told, born, transport in await self._at_hand(store, feeds, word["newest"]) if feeds else ():
                taking.feed(told, transport, born)
            for (_, *about), transport in zip(word["followers"], handed, strict=True) if "followers" in word else ():
                taking.follower(about, transport, word["at"])
            retries += word.get("retries", ())
            if is_served:
                await self._go_on(connections, listeners)
                connections.clear()
                if "shown" in word or "feeds" in word or "followers" in word:
                    await self._say("seen")
        if not is_served:
            await serve()
            await self._go_on(connections, listeners)
        self.drop()  # the sockets of those that have gone meanwhile
        await self._say("serving")
        self._line.close()
        self._come.clear()
        for channel, id in self._recalled:
            with contextlib.suppress(Refusal):  # it is not kept any more
                store.withdraw(store.find(channel, id))
        await arriving.take_all()
        self._hub.redelivery.take_over(retries)
        if taking.taken or self._connections:
            log.info("taken over", extra={"facts": {"feeds": taking.taken, "connections": self._connections, "let_go": taking.lost}})

    async def _go_on(self, connections: list[tuple[bool, socket.socket]], listeners: Listeners) -> None:
        # All at once, for each waits for a turn of the loop or two.
        adopted = await asyncio.gather(*(listeners.adopt(visitor, is_admin) for is_admin, visitor in connections), return_exceptions=True)
        for (_, visitor), error in zip(connections, adopted, strict=True):
            if error is None:
                self._connections += 1
            elif isinstance(error, OSError):
                visitor.close()  # it has gone by now
            else:
                raise error

    async def _at_hand(self, store: Store, feeds: list[tuple[Told, Any]], newest: int) -> list[tuple[Told, list[tuple[str, int]], Any]]:
        """The feeds, what of their patterns they have not met yet, and their transports; with all that they have been sent at hand here."""
        try:
            await store.reach(newest, *{stand[0] for told, _ in feeds for stand in told.places}, *{each for told, _ in feeds for each in told.patterns})
        except Refusal as refusal:
            log.warning("what feeds were sent is not at hand", extra={"facts": {"because": refusal.code}})
        meant: dict[tuple[str, ...], list[str]] = {}
        found = []
        for told, transport in feeds:
            patterns = tuple(told.patterns)
            if patterns and patterns not in meant:
                search = Search(store, (), patterns)
                while search.step():
                    await asyncio.sleep(0)
                meant[patterns] = search.found()
            known = {stand[0] for stand in told.places}
            found.append((told, [(name, store.seek(store.open(name), newest)) for name in meant.get(patterns, ()) if name not in known], transport))
        return found


def _can_come_later(told: Told) -> bool:
    """Whether all that it misses meanwhile is in the store (see `arriving.py`)."""
    return not told.patterns and told.care is None


def _wanted(config: Config, listening: list[list[Any]], handed: list[socket.socket], has: Iterable[str]) -> dict[str, list[socket.socket]]:
    """Those of the sockets that we would make too; the others are closed."""
    places = {"tcp": [config.host, config.port] if config.tcp else None, "unix": [config.unix, 0] if config.unix else None,
              "admin": [config.admin_host, config.admin_port] if config.admin_port >= 0 else None}
    wanted: dict[str, list[socket.socket]] = {}
    for (kind, *place), each in zip(listening, handed, strict=True):
        if kind not in has and places.get(kind) == place:
            wanted.setdefault(kind, []).append(each)
        else:
            each.close()
    return wanted
