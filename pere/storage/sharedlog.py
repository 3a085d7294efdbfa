"""One log in Redis that all nodes append to and read, each batch exactly once and in the same order.

Entries are numbered without holes. A batch is appended by one script, which wakes those nodes that follow what it is about (`ear.py`); with what
it says, if it is about one channel, and else with its number. What comes early waits for what is before it, and what is missing is read: by who is
woken at once, by who is asked before it answers, and by all at the next beat. So an entry costs a node that does not wait for it no
more than its part in a reading of many. Nothing is taken for granted because nobody complained.

This file knows numbers and bytes, and not what they mean. What it cannot repair, because the log is another one or has been cut, it says.
"""

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from itertools import accumulate, count, repeat
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError, RedisError

from pere.config import without_password
from pere.errors import ConfigError
from pere.storage import scripts
from pere.storage.ear import Ear, Topic, ended

log = logging.getLogger("pere.store")

TIMEOUT = 3.0  # seconds that Redis may take to answer; after that it counts as away
BEAT = 1.0  # seconds between two beats
LEASE = 10_000  # milliseconds for which the keeper is the keeper
SILENCE = 20  # seconds after which a node that has not been heard is gone: its devices are offline within 30
WAIT = 1_000  # milliseconds that replicas may take to have something
PIECE = 500  # entries that are fetched at once
ALONG = 50  # that others have said, and that come along with the answer to a batch
RUN = 32 * 1024  # bytes of those that are taken at once, before others are served: a millisecond or three
BITS = 20  # of the sequence in an id
ALL, NOBODY = "@", ""  # whom an entry wakes, beside the followers of channels, which have other names


class TooFew(Exception):
    """Redis has it, and not as many replicas as were wanted."""

    def __init__(self, found: int, wanted: int):
        super().__init__(f"Redis has it, and {found} of the {wanted} replicas that --redis-wait wants; see whether they are connected")


Errors = (RedisError, OSError, asyncio.TimeoutError, TooFew)


class Lost(Exception):
    """What was taken from the log is not what is in it, or what comes next has been cut off: all must be read anew."""


class Cut(Lost):
    """Only the last: what was taken is still so, but what came next is not there any more."""


class Entry(NamedTuple):
    """The `n`th entry. `body` is None of one's own, if the answer came before the entry itself."""

    header: bytes
    n: int
    body: bytes | None

    @classmethod
    def of(cls, header: bytes, body: bytes | None) -> "Entry":
        return cls(header, int(header[: header.index(b" ")]), body)

    @classmethod
    def of_many(cls, found: list[Any]) -> "list[Entry]":
        """As Redis has them, which numbers them without a hole: only the first is looked at, and `Entry.__new__`, which is Python's, not called, for this runs for every entry on every node."""
        if not found:
            return []
        headers = [header for _, (_, header, _, _) in found]
        numbers = count(int(headers[0][: headers[0].index(b" ")]))
        return list(map(tuple.__new__, repeat(cls), zip(headers, numbers, [body for _, (_, _, _, body) in found], strict=False)))

    def is_as_numbered(self) -> bool:
        """Whether it is the one that it was taken for: there was no hole before it."""
        return int(self.header[: self.header.index(b" ")]) == self.n

    @property
    def first(self) -> int:
        """The ids from this one on are for it."""
        _, milliseconds, sequence, _ = self.header.split(b" ", 3)
        return int(milliseconds) << BITS | int(sequence)

    @property
    def ids(self) -> int:
        """How many of them are for it."""
        return int(self.header.split(b" ", 4)[3])

    @property
    def source(self) -> tuple[str, int]:
        """Which node said it, and which of its batches it is."""
        _, _, _, _, node, batch = self.header.split(b" ")
        return node.decode(), int(batch)


class Beat(NamedTuple):
    """What Redis said at a beat."""

    is_keeper: bool
    kept: int
    gone: list[str]
    nodes: int
    stand: bytes | None  # how everything stood, as the keeper last told it
    replicas: int


def connect(url: str, timeout: float | None) -> tuple[Redis, str]:
    """A client for a URL, and the prefix that it names. Raises ConfigError for a URL that is none."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    prefix = query.pop("prefix", "pere")
    # Nothing is tried again behind our back: what may have happened already is for us to find out.
    settings: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": TIMEOUT, "protocol": 2, "retry": Retry(NoBackoff(), 0)}
    try:
        client: Redis
        if parts.scheme == "redis+sentinel":
            # redis+sentinel://host:26379,host:26379/SERVICE/DB
            account, _, hosts = parts.netloc.rpartition("@")
            user, _, password = account.partition(":")
            service, _, database = parts.path.strip("/").partition("/")
            named = [(host, int(port or 26379)) for host, _, port in (each.partition(":") for each in hosts.split(","))]
            sentinel = Sentinel(named,  # type: ignore[no-untyped-call]
                                sentinel_kwargs={"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT})
            client = sentinel.master_for(service or "mymaster", username=user or None, password=password or None, db=int(database or 0), **settings)
        else:
            client = Redis.from_url(url.partition("?")[0] + "?" + urlencode(query), **settings)
        # As Redis has it, `[id, [name, value, ...]]` for each entry: to make a dict of each costs as much as to read it.
        client.set_response_callback("XRANGE", lambda response, **_: response)
        return client, prefix
    except ValueError as error:
        raise ConfigError(f"--store {without_password(url)}: {error}") from None


class SharedLog:
    """`node` is who we are. `take` is handed all entries, in order, some at once; `on_trouble` is told when something went wrong;
    `on_lost` when all must be read anew, and nothing more is taken until it has been. `taken` is the number of the newest entry that was taken.
    `replicas` is how many of them are waited for. While it `is_asleep`, nothing is taken; `on_call` is told when all nodes are to hear of something."""

    def __init__(self, url: str, node: str, take: Callable[[list[Entry]], None], replicas: int = 0):
        self.node = node
        self.replicas = replicas
        self.taken = 0
        self.is_asleep = False
        self.take = take
        self.deployment = b""
        self.client: Any  # redis-py types its answers as whatever any command may answer
        self.client, self.prefix = connect(url, TIMEOUT)
        self.keys = {name: f"{self.prefix}:{name}" for name in scripts.KEYS}
        self._open, self._append, self._beat, self._forget = map(self.client.register_script, (scripts.OPEN, scripts.APPEND, scripts.BEAT, scripts.FORGET))
        self._early: dict[int, Entry] = {}
        self._under_way = 0  # the batch that is known without being read
        self._beginnings = 0  # how often we went on behind another entry than the last
        self._last = b""  # the header of the newest entry that was taken: whether the log still has it tells whether it is the same
        self._heard_of = 0  # the newest entry of which we were told that it is there
        self._waking: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self.ear = Ear(connect(url, None)[0], f"{self.keys['log']}:{ALL}", lambda message: self._heard(message), self._missed, self._hears_more)
        self.ear.on_trouble = lambda error: self.on_trouble(error)
        self.ear.on_lost = self._is_lost
        self.on_trouble: Callable[[BaseException], None] = lambda error: None
        self.on_lost: Callable[[str], None] = lambda why: None
        self.on_call: Callable[[], None] = lambda: None

    async def open(self, now: float, deployment: str, version: int) -> tuple[int, int, bytes | None]:
        """Find the log, or begin it: the millisecond in which it was born, the version of what is in it, and its limits."""
        keys = [self.keys["head"]]
        self.deployment, born, _, known, limits = await self._open(keys=keys, args=[int(now * 1000), deployment, version])
        return int(born), int(known), limits

    @property
    def is_listening(self) -> bool:
        return self.ear.is_listening

    async def append(self, batch: int, now: float, count: int, body: bytes, lives: int, whom: Collection[str]) -> int:
        """Append one batch, for which `count` event ids are needed. It is taken when what is before it has been. `whom` are the channels whose
        followers are woken, or ALL. Returns how many replicas have it, if any are waited for."""
        self._under_way, beginnings = batch, self._beginnings
        taken, last = self.taken, self._last
        (header, missing, before), replicas = await self._run(self._append, [self.keys["head"], self.keys["log"]],
                                                      [self.deployment, self.node, batch, int(now * 1000), count, body, lives, taken, ALONG, *(whom or (NOBODY,))])
        # What others have said before it comes along, if that is little: else this batch would wait until it is read, and that is one more question to Redis for each batch. If there is
        # anything wrong with it, whoever reads finds that out.
        entries = Entry.of_many(missing)
        if entries and entries[0].header == last and entries[-1].is_as_numbered():
            await self._take_all(entries, beginnings)
        entry = Entry.of(header, None)
        if entry.n == taken + 1 and last and before is not None and before != last and before.startswith(b"%d " % taken):
            self._hear_of(entry.n)  # Redis has lost what was taken last, and somebody else has its place: whoever reads finds that out too
        else:
            self._offer(entry)
        return replicas

    def give_up(self) -> None:
        """The batch that is under way is known here no more: if it is in the log, it is read like any other."""
        self._under_way = 0
        for entry in [entry for entry in self._early.values() if entry.body is None]:
            del self._early[entry.n]
            self._hear_of(entry.n)

    async def _run(self, script: AsyncScript, keys: list[str], args: list[Any]) -> tuple[Any, int]:
        """What a script answers; and how many replicas have all that was written up to then, if any are waited for."""
        if not self.replicas:
            return await script(keys=keys, args=args), 0
        while True:
            # On one connection: WAIT is for what was written on its own.
            both = self.client.pipeline(transaction=False)
            both.evalsha(script.sha, len(keys), *keys, *args)
            both.execute_command("WAIT", self.replicas, WAIT)
            answer, replicas = await both.execute(raise_on_error=False)
            if isinstance(answer, NoScriptError):
                await self.client.script_load(script.script)
                continue
            for each in (answer, replicas):
                if isinstance(each, Exception):
                    raise each
            return answer, replicas

    async def beat(self, lives: int, stand: bytes) -> Beat:
        """Say that we are there, and how everything stands, which is told to all if this is the keeper; and look how far the log is. Raises Lost."""
        keys = [self.keys[name] for name in ("head", "nodes", "keeper", "kept", *scripts.KEYS) if name not in ("keeper", "loading")]
        keys[2:2] = [self.keys["keeper"]]
        taken = self.taken  # more may be taken while this is on its way
        (deployment, n, kept, is_keeper, gone, nodes, told), replicas = await self._run(self._beat, keys, [self.node, LEASE, SILENCE, lives, taken, stand])
        if deployment != self.deployment or int(n) < taken:
            raise Lost("the log is another one, or has lost its newest entries")
        await self.ear.look()
        if int(n) > self.taken and self.is_listening and not self.is_asleep:
            await self.refresh()
        return Beat(bool(is_keeper), int(kept or 0), [name.decode() for name in gone], nodes, told, replicas)

    async def forget(self, node: str) -> None:
        """A node is gone, if it has not come back since."""
        await self._forget(keys=[self.keys["head"], self.keys["nodes"], self.keys["keeper"]], args=[self.node, node, SILENCE])

    # Reading

    def begin(self, taken: int) -> None:
        """Go on behind this entry."""
        self.taken, self._last = taken, b""
        self._beginnings += 1
        self._early.clear()
        self._heard_of = 0

    def listen(self) -> None:
        self.ear.listen()

    def follow(self, name: str, is_pattern: bool = False) -> None:
        """What is appended for the channel of this name (or all that a pattern of Redis means) is taken at once, and not when it is asked for."""
        self.ear.follow(self._topic(name, is_pattern))

    def unfollow(self, name: str, is_pattern: bool = False) -> None:
        self.ear.unfollow(self._topic(name, is_pattern))

    def hears(self, name: str, is_pattern: bool = False) -> bool:
        """Whether what is appended for it is taken by now."""
        return self.ear.hears(self._topic(name, is_pattern)) or self.ear.hears(self._topic("*", True))

    @property
    def is_followed(self) -> bool:
        """Whether anything is to be taken at once, beside what all nodes are to hear of."""
        return self.ear.wants_more

    def _topic(self, name: str, is_pattern: bool) -> Topic:
        return is_pattern, f"{self.keys['log']}:{name}"

    def _heard(self, message: bytes) -> None:
        header, mark, body = message.partition(b"\n")
        entry = Entry.of(header, body if mark else None)
        if self.is_asleep:
            self._heard_of = max(self._heard_of, entry.n)
            self.on_call()
        elif mark:
            self._offer(entry)
        elif entry.n > self.taken and entry.source[0] != self.node:
            self._hear_of(entry.n)

    def _offer(self, entry: Entry) -> None:
        """An entry, maybe for the second time, maybe before its time."""
        if entry.n <= self.taken:
            return
        if entry.body is None and entry.source[1] != self._under_way:
            self._hear_of(entry.n)
            return
        if entry.n != self.taken + 1:
            self._early[entry.n] = entry
            self._wake()
            return
        self._take([entry])

    def _take(self, entries: list[Entry]) -> None:
        """These are what comes next; and then what came before its time."""
        while (early := self._early.pop(entries[-1].n + 1, None)) is not None:
            entries.append(early)
        self._last, self.taken, *_ = entries[-1]
        for n in [n for n in self._early if n <= self.taken]:
            del self._early[n]
        self.take(entries)

    def _hear_of(self, n: int) -> None:
        """This entry is there, and is to be read."""
        self._heard_of = max(self._heard_of, n)
        self._wake()

    def _wake(self) -> None:
        """There is more than was taken."""
        if self._waking is None or self._waking.done():
            self._waking = asyncio.ensure_future(self._read_on())

    async def _read_on(self) -> None:
        # What is missing may be here in this turn of the loop, over the other connection.
        await asyncio.sleep(0)
        try:
            while self._early or self._heard_of > self.taken:
                before = self.taken, self._heard_of, tuple(self._early)
                await self.refresh()
                if before == (self.taken, self._heard_of, tuple(self._early)):
                    # The log has none of it: Redis died before it was kept anywhere. What comes next gets its number, or is another log, as the next beat finds out.
                    self._early.clear()
                    self._heard_of = 0
        except Lost as lost:
            self.on_lost(str(lost))
        except Errors as error:
            self.on_trouble(error)

    def rise(self) -> None:
        """Everything is taken from now on, that included of which was heard while the last of it was read."""
        self.is_asleep = False
        self._hear_of(0)

    async def _missed(self) -> None:
        """Nothing was heard for a while."""
        if self.is_asleep:
            self.on_call()
        else:
            await self.refresh()

    def _hears_more(self) -> None:
        self._hear_of(self.taken + 1)

    async def refresh(self) -> None:
        """Take all that the log has now. Who asks while it is read shares the next reading with all who do. Raises Lost."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._after(self._reading))
            # Where everybody who asked has been cancelled meanwhile, nobody is to be told.
            self._next.add_done_callback(lambda read: read.cancelled() or read.exception())
        await asyncio.shield(self._next)

    async def _after(self, before: "asyncio.Future[None] | None") -> None:
        if before is not None:
            await asyncio.wait((before,))
        self._reading, self._next = self._next, None
        await self.catch_up()

    async def still(self) -> None:
        """Wait for what is being read; as long as it is asleep, nothing more is taken."""
        if self._waking is not None:
            await ended(self._waking)  # it may be after what the log will never have
        if reading := [task for task in (self._next, self._reading) if task is not None and not task.done()]:
            await asyncio.wait(reading)

    async def catch_up(self) -> None:
        """Take all that the log has now, in this very reading; where that is much, others are served in between. Raises Lost."""
        while True:
            # With the one that was taken last, which tells whether it is the same log.
            taken, last, beginnings = self.taken, self._last, self._beginnings
            found = await self.client.xrange(self.keys["log"], f"{taken if last else taken + 1}-0", "+", count=PIECE)
            if self._beginnings != beginnings:
                continue  # what was read may be of another log
            entries = Entry.of_many(found)
            if entries:
                first = entries[0].n
                if first == taken and entries[0].header != last:
                    raise Lost("the log has other entries than it had")
                if first > self.taken + 1 or not entries[-1].is_as_numbered():
                    raise Cut("the log does not reach back to where we are")
                await self._take_all(entries, beginnings, even_asleep=True)
            elif last:
                # However far it is cut, the newest is left. Now, for when others have gone on up to here its number tells nothing any more.
                raise Lost("the log has lost its newest entries")
            if len(found) < PIECE and self._beginnings == beginnings:
                return

    async def _take_all(self, entries: list[Entry], beginnings: int, even_asleep: bool = False) -> None:
        """Some at a time, and others are served in between; no more of it once we have gone on behind another entry."""
        for run in _runs(entries):
            if self._beginnings != beginnings or (self.is_asleep and not even_asleep):
                break
            # More may have been taken while this was on its way.
            if fresh := run[max(0, self.taken + 1 - run[0].n) :]:
                self._take(fresh)
            if self.taken < entries[-1].n:
                await asyncio.sleep(0)

    def _is_lost(self, error: BaseException) -> bool:
        if isinstance(error, Lost):
            self.on_lost(str(error))
        return isinstance(error, Lost)

    async def close(self) -> None:
        await self.ear.close()
        for task in (self._waking, self._next, self._reading):
            if task is not None:
                await ended(task)
        for client in (self.ear.client, self.client):
            sentinels = getattr(client.connection_pool, "sentinel_manager", None)
            for each in (client, *(sentinels.sentinels if sentinels is not None else ())):
                await each.aclose()
                await each.connection_pool.disconnect()


def _runs(entries: list[Entry]) -> Iterator[list[Entry]]:
    ends = [*accumulate([len(entry.body or b"") for entry in entries])]
    start = size = 0
    while start < len(entries):
        stop = bisect_right(ends, size + RUN, lo=start) + 1
        yield entries[start:stop]
        start, size = stop, ends[min(stop, len(ends)) - 1]
