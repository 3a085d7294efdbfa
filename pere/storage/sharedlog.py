"""One log in Redis that all nodes append to and read, each batch exactly once and in the same order.

Entries are numbered without holes. A batch is appended by one script, which publishes it too, so every node has it a moment later over
its one subscription; what comes early waits for what is before it, and what does not come is fetched: after a reconnect, when a number
is missing, and when Redis says at the next beat that there is more. Nothing is taken for granted because nobody complained.

This file knows numbers and bytes, and not what they mean. What it cannot repair, because the log is another one or has been cut, it says.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.commands.core import AsyncScript
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from pere.config import without_password
from pere.errors import ConfigError
from pere.storage import scripts

log = logging.getLogger("pere.store")

TIMEOUT = 3.0  # seconds that Redis may take to answer; after that it counts as away
AGAIN = 0.5  # seconds until it is tried again
BEAT = 1.0  # seconds between two beats
LEASE = 10_000  # milliseconds for which the keeper is the keeper
SILENCE = 20  # seconds after which a node that has not been heard is gone: its devices are offline within 30
WAIT = 1_000  # milliseconds that replicas may take to have something
PIECE = 500  # entries that are fetched at once
BITS = 20  # of the sequence in an id


class TooFew(Exception):
    """Redis has it, and not as many replicas as were wanted."""

    def __init__(self, found: int, wanted: int):
        super().__init__(f"Redis has it, and {found} of the {wanted} replicas that --redis-wait wants; see whether they are connected")


Errors = (RedisError, OSError, asyncio.TimeoutError, TooFew)


class Lost(Exception):
    """What was taken from the log is not what is in it, or what comes next has been cut off: all must be read anew."""


class Entry(NamedTuple):
    """The `n`th entry: `ids` ids from `first` on are for it. `body` is None of one's own, if the answer came before the entry itself."""

    header: bytes
    n: int
    first: int
    ids: int
    node: str
    batch: int
    body: bytes | None

    @classmethod
    def of(cls, header: bytes, body: bytes | None) -> "Entry":
        n, milliseconds, sequence, count, node, batch = header.split(b" ")
        return cls(header, int(n), int(milliseconds) << BITS | int(sequence), int(count), node.decode(), int(batch), body)


class Beat(NamedTuple):
    """What Redis said at a beat."""

    is_keeper: bool
    kept: int
    gone: list[str]
    replicas: int


def connect(url: str, timeout: float | None) -> tuple[Redis, str]:
    """A client for a URL, and the prefix that it names. Raises ConfigError for a URL that is none."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    prefix = query.pop("prefix", "pere")
    # Nothing is tried again behind our back: what may have happened already is for us to find out.
    settings: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": TIMEOUT, "protocol": 2, "retry": Retry(NoBackoff(), 0)}
    try:
        if parts.scheme == "redis+sentinel":
            # redis+sentinel://host:26379,host:26379/SERVICE/DB
            account, _, hosts = parts.netloc.rpartition("@")
            user, _, password = account.partition(":")
            service, _, database = parts.path.strip("/").partition("/")
            named = [(host, int(port or 26379)) for host, _, port in (each.partition(":") for each in hosts.split(","))]
            sentinel = Sentinel(named,  # type: ignore[no-untyped-call]
                                sentinel_kwargs={"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT})
            return sentinel.master_for(service or "mymaster", username=user or None, password=password or None, db=int(database or 0), **settings), prefix
        return Redis.from_url(url.partition("?")[0] + "?" + urlencode(query), **settings), prefix
    except ValueError as error:
        raise ConfigError(f"--store {without_password(url)}: {error}") from None


class SharedLog:
    """`node` is who we are. `take` is handed every entry, in order; `on_trouble` is told when something went wrong;
    `on_lost` when all must be read anew, and nothing more is taken until it has been. `taken` is the number of the newest entry that was taken.
    `replicas` is how many of them are waited for."""

    def __init__(self, url: str, node: str, take: Callable[[Entry], None], replicas: int = 0):
        self.node = node
        self.replicas = replicas
        self.taken = 0
        self.take = take
        self.deployment = b""
        self.client: Any  # redis-py types its answers as whatever any command may answer
        self.client, self.prefix = connect(url, TIMEOUT)
        self._ear, _ = connect(url, None)
        self.keys = {name: f"{self.prefix}:{name}" for name in scripts.KEYS}
        self._open, self._append, self._beat, self._forget = map(self.client.register_script, (scripts.OPEN, scripts.APPEND, scripts.BEAT, scripts.FORGET))
        self._early: dict[int, Entry] = {}
        self._last = b""  # the header of the newest entry that was taken: whether the log still has it tells whether it is the same
        self._listening: asyncio.Task[None] | None = None
        self._repairing: asyncio.Task[None] | None = None
        self.is_listening = self._is_closed = False
        self.on_trouble: Callable[[BaseException], None] = lambda error: None
        self.on_lost: Callable[[str], None] = lambda why: None

    async def open(self, now: float, deployment: str, version: int) -> tuple[int, int, bytes | None]:
        """Find the log, or begin it: the millisecond in which it was born, the version of what is in it, and its limits."""
        keys = [self.keys["head"]]
        self.deployment, born, _, known, limits = await self._open(keys=keys, args=[int(now * 1000), deployment, version])
        return int(born), int(known), limits

    async def append(self, batch: int, now: float, count: int, body: bytes, lives: int) -> int:
        """Append one batch, for which `count` event ids are needed. It is taken when what is before it has been. Returns how many
        replicas have it, if any are waited for."""
        header, replicas = await self._run(self._append, [self.keys["head"], self.keys["log"]],
                                           [self.deployment, self.node, batch, int(now * 1000), count, body, lives])
        self._offer(Entry.of(header, None))
        return replicas

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

    async def beat(self, lives: int) -> Beat:
        """Say that we are there, and look how far the log is. Raises Lost."""
        keys = [self.keys[name] for name in ("head", "nodes", "keeper", "kept", *scripts.KEYS) if name not in ("keeper", "loading")]
        keys[2:2] = [self.keys["keeper"]]
        taken = self.taken  # more may be taken while this is on its way
        (deployment, n, kept, is_keeper, gone), replicas = await self._run(self._beat, keys, [self.node, LEASE, SILENCE, lives])
        if deployment != self.deployment or int(n) < taken:
            raise Lost("the log is another one, or has lost its newest entries")
        if int(n) > self.taken and self.is_listening:
            await self.catch_up()
        return Beat(bool(is_keeper), int(kept or 0), [name.decode() for name in gone], replicas)

    async def forget(self, node: str) -> None:
        """A node is gone."""
        await self._forget(keys=[self.keys["head"], self.keys["nodes"], self.keys["keeper"]], args=[self.node, node])

    # Reading

    def begin(self, taken: int) -> None:
        """Go on behind this entry."""
        self.taken, self._last = taken, b""
        self._early.clear()

    def listen(self) -> None:
        if self._listening is None or self._listening.done():
            self._listening = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        while not self._is_closed:
            try:
                async with self._ear.pubsub() as subscription:
                    await subscription.subscribe(self.keys["log"])
                    async with asyncio.timeout(TIMEOUT):
                        await subscription.parse_response()
                    # From here on nothing is missed, so what there is now and we have not is all that has to be fetched.
                    await self.catch_up()
                    self.is_listening = True
                    await self._hear(subscription)
            except Lost as lost:
                self._lose(str(lost))
                return
            except Errors as error:
                if self.is_listening and not self._is_closed:
                    self.is_listening = False
                    log.info("the subscription was cut off", extra={"facts": {"error": str(error)}})
                    continue  # that is no trouble yet: what is missed meanwhile is fetched
                self.on_trouble(error)
            except Exception as error:
                log.exception("the log could not be read")
                self.on_trouble(error)
            finally:
                self.is_listening = False
            await asyncio.sleep(AGAIN)

    async def _hear(self, subscription: PubSub) -> None:
        while True:
            message = await subscription.parse_response()
            if message is not None and message[0] == b"message":
                self._heard(message[2])

    def _heard(self, message: bytes) -> None:
        header, _, body = message.partition(b"\n")
        self._offer(Entry.of(header, body))

    def _offer(self, entry: Entry) -> None:
        """An entry, maybe for the second time, maybe before its time."""
        if entry.n <= self.taken:
            return
        if entry.n != self.taken + 1:
            self._early[entry.n] = entry
            self._repair()
            return
        following: Entry | None = entry
        while following is not None:
            self.taken, self._last = following.n, following.header
            self.take(following)
            following = self._early.pop(self.taken + 1, None)

    def _repair(self) -> None:
        if self._repairing is None or self._repairing.done():
            self._repairing = asyncio.ensure_future(self._mend())

    async def _mend(self) -> None:
        """What is missing may be on its way over the other connection: a moment later it is fetched."""
        await asyncio.sleep(0.005)
        try:
            if self._early:
                await self.catch_up()
        except Lost as lost:
            self._lose(str(lost))
        except Errors as error:
            self.on_trouble(error)

    async def catch_up(self) -> None:
        """Take all that the log has now. Raises Lost."""
        taken, last = self.taken, self._last
        if last:
            same = await self.client.xrange(self.keys["log"], f"{taken}-0", f"{taken}-0")
            if same and same[0][1][b"h"] != last:
                raise Lost("the log has other entries than it had")
        while True:
            entries = await self.client.xrange(self.keys["log"], f"{self.taken + 1}-0", "+", count=PIECE)
            for name, fields in entries:
                n = int(name.partition(b"-")[0])
                if n > self.taken + 1:
                    raise Lost("the log does not reach back to where we are")
                self._offer(Entry.of(fields[b"h"], fields[b"b"]))
            if len(entries) < PIECE:
                return

    def _lose(self, why: str) -> None:
        self.on_lost(why)

    async def close(self) -> None:
        self._is_closed = True
        for task in (self._listening, self._repairing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for client in (self._ear, self.client):
            sentinels = getattr(client.connection_pool, "sentinel_manager", None)
            for each in (client, *(sentinels.sentinels if sentinels is not None else ())):
                await each.aclose()
                await each.connection_pool.disconnect()
