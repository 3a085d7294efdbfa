"""What a node listens to in Redis: one subscription, to the channels that somebody here wants to hear of at once.

What is published only wakes: a message that does not come is found at the next beat, and nothing depends on it but how soon. So a node is
not woken for what nobody on it waits for.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

log = logging.getLogger("pere.store")

TIMEOUT = 10.0  # seconds that it may take until Redis says that it is listened to: it is to be found, which takes some where a Sentinel is away, and connected to
AGAIN = 0.5  # seconds until it is tried again
QUIET = 5.0  # seconds without a word, after which Redis is asked for one: what stands between may have dropped a connection on which nothing is said, and told nobody

# A channel of Redis, or a pattern of them, as Redis has them.
Topic = tuple[bool, str]


class Ear:
    """`always` is what is listened to in any case. `heard` is told every message. `ready` is awaited before it counts as listening, and `more`
    is called when it hears more than before: from then on nothing is missed, so what there is by then is all that has to be read."""

    def __init__(self, client: Redis, always: str, heard: Callable[[bytes], None], ready: Callable[[], Awaitable[None]], more: Callable[[], None]):
        self.is_listening = False
        self.on_trouble: Callable[[BaseException], None] = lambda error: None
        self.on_lost: Callable[[BaseException], bool] = lambda error: False  # whether that is the end of it
        self.client = client
        self._heard = heard
        self._ready = ready
        self._more = more
        self._always = False, always
        self._wanted: Counter[Topic] = Counter({self._always: 1})
        self._asked: set[Topic] = set()  # what Redis was told
        self._live: set[Topic] = set()  # and has confirmed
        self._subscription: PubSub | None = None
        self._listening: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._heard_at = 0.0

    def follow(self, topic: Topic) -> None:
        """Listen there too; as often as it is followed it is to be unfollowed."""
        self._wanted[topic] += 1
        self._soon()

    def unfollow(self, topic: Topic) -> None:
        self._wanted[topic] -= 1
        if not self._wanted[topic]:
            del self._wanted[topic]
            self._soon()

    @property
    def wants_more(self) -> bool:
        """Than what is listened to in any case."""
        return len(self._wanted) > 1

    def hears(self, topic: Topic) -> bool:
        """Whether what happens there is heard by itself."""
        return self.is_listening and topic in self._live and topic in self._wanted

    def listen(self) -> None:
        """Begin, if that was not done yet."""
        if self._listening is None or self._listening.done():
            self._listening = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        while not self._is_closed:
            try:
                async with self.client.pubsub() as subscription:
                    self._asked.clear()
                    self._live.clear()
                    # All of it: one that stands still is connected to, and has no word for whoever has come.
                    async with asyncio.timeout(TIMEOUT):
                        await subscription.subscribe(self._always[1])
                        self._asked.add(self._always)
                        self._take(await subscription.parse_response())
                    await self._ready()
                    self._subscription = subscription
                    self.is_listening = True
                    self._soon()
                    while True:
                        self._take(await subscription.parse_response())
            except (RedisError, OSError, asyncio.TimeoutError) as error:
                if self.is_listening and not self._is_closed:
                    self.is_listening = False
                    log.info("the subscription was cut off", extra={"facts": {"error": str(error)}})
                    continue  # that is no trouble yet: what is missed meanwhile is read
                self.on_trouble(error)
            except Exception as error:
                if self.on_lost(error):
                    return
                log.exception("the log could not be read")
                self.on_trouble(error)
            finally:
                self.is_listening = False
                self._subscription = None
            await asyncio.sleep(AGAIN)

    async def look(self) -> None:
        """Called at each beat: who has said nothing for long is asked for a word, and given up where none comes."""
        subscription, silent = self._subscription, self._loop.time() - self._heard_at
        if subscription is None or silent < QUIET:
            return
        try:
            if silent < QUIET + TIMEOUT:
                await subscription.ping()
            elif (connection := subscription.connection) is not None:
                await connection.disconnect(nowait=True)  # which whoever reads from it finds out
        except (RedisError, OSError) as error:
            log.debug("the subscription could not be looked at", extra={"facts": {"error": str(error)}})

    def _take(self, message: Any) -> None:
        self._heard_at = self._loop.time()
        kind = message[0] if message is not None else None
        if kind in (b"message", b"pmessage"):
            self._heard(message[-1])
        elif kind in (b"subscribe", b"psubscribe"):
            topic = kind == b"psubscribe", message[1].decode()
            if topic in self._asked:
                self._live.add(topic)
            if self.is_listening and self._live == self._asked:
                self._more()

    def _soon(self) -> None:
        """At the end of this turn of the loop what is wanted is told to Redis, all at once."""
        if self.is_listening and (self._telling is None or self._telling.done()):
            self._telling = asyncio.ensure_future(self._tell())

    async def _tell(self) -> None:
        subscription = self._subscription
        assert subscription is not None, "who listens has one"
        fresh, past = self._wanted.keys() - self._asked, self._asked - self._wanted.keys()
        self._asked = (self._asked | fresh) - past
        self._live -= past
        try:
            for topics, say in ((fresh, (subscription.subscribe, subscription.psubscribe)), (past, (subscription.unsubscribe, subscription.punsubscribe))):
                for is_pattern in (False, True):
                    if names := [name for each, name in topics if each == is_pattern]:
                        await say[is_pattern](*names)
        except (RedisError, OSError) as error:
            # Whoever reads the answers will find that out too.
            log.debug("the subscription could not be changed", extra={"facts": {"error": str(error)}})
        if self.is_listening and self._asked != self._wanted.keys():
            await self._tell()

    async def close(self) -> None:
        self._is_closed = True
        for task in (self._listening, self._telling):
            if task is not None:
                await ended(task)


async def ended(task: "asyncio.Task[None]") -> None:
    """Cancel a task until it has ended: what it waits for in redis-py may swallow that once."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=0.2)
    if not task.cancelled():
        task.exception()  # which is of no interest any more
