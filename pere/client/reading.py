"""A feed, read over as many connections as it takes.

A connection is given up when it is silent for longer than the server ever is: `pere.hello` tells its heartbeat, and two of them may go astray.
So a half-open connection, a proxy that holds bytes back and a machine that slept are all noticed, without a timer for each feed or read:
one Watch looks at all of them every few seconds.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

import aiohttp
import orjson

from pere.client.backoff import Backoff
from pere.client.http import Http, is_final
from pere.errors import Refusal
from pere.sse import Decoder, Message

HELLO, BYE = "pere.hello", "pere.bye"

# A heartbeat may be late, or lost with its segment and sent again; where the second is missing too, nobody is there.
HEARTBEATS = 2.5
# Of a server that does not tell its heartbeat: three of the default length.
SILENCE = 60.0
# How often the Watch looks, at most and at least.
RARELY, OFTEN = 5.0, 0.01
# A machine that slept for less has the same connections as before.
NAP = 2.0

OnLost = Callable[[Exception, float], object]
Taken = TypeVar("Taken")


class Reading:
    """One open connection of a feed."""

    def __init__(self, http: Http, response: aiohttp.ClientResponse, silence: float):
        self._http = http
        self._response = response
        self.silence = silence
        self.waits_since: float | None = None
        self._trouble: ConnectionError | None = None

    async def read(self, now: float) -> bytes:
        """The next bytes; none at the end. Raises ConnectionError when it is lost or given up."""
        # While nobody reads, silence means nothing.
        self.waits_since = now
        try:
            return await self._http.read(self._response)
        except ConnectionError:
            if self._trouble is not None:
                raise self._trouble from None
            raise
        finally:
            self.waits_since = None

    def give_up(self, trouble: str) -> None:
        self._trouble = ConnectionError(f"{self._http.url} {trouble}")
        # Closing alone would wake nobody who reads.
        self._response.content.set_exception(self._trouble)
        self._response.close()


class Watch:
    """Looks at all connections of a client every few seconds, and gives up those on which nobody can be any more."""

    def __init__(self, slept: Callable[[], float]):
        self._readings: set[Reading] = set()
        self._slept = slept
        self._sleep = slept()
        self._next: asyncio.TimerHandle | None = None

    def add(self, reading: Reading) -> None:
        if not self._readings:
            self._sleep = self._slept()
        self._readings.add(reading)
        self.look_for(reading)

    def discard(self, reading: Reading) -> None:
        self._readings.discard(reading)
        if not self._readings and self._next is not None:
            self._next.cancel()
            self._next = None

    def look_for(self, reading: Reading) -> None:
        """Look soon enough for this one, whose silence is now known."""
        loop = asyncio.get_running_loop()
        when = loop.time() + min(max(reading.silence / 8, OFTEN), RARELY)
        if self._next is None or self._next.when() > when:
            if self._next is not None:
                self._next.cancel()
            self._next = loop.call_at(when, self._look)

    def _look(self) -> None:
        self._next = None
        now, slept = asyncio.get_running_loop().time(), self._slept()
        nap, self._sleep = slept - self._sleep, slept
        for reading in list(self._readings):
            if nap >= NAP:
                reading.give_up(f"was left alone while this machine slept for {nap:.0f} s")
            elif reading.waits_since is not None and now - reading.waits_since >= reading.silence:
                reading.give_up(f"was silent for too long ({reading.silence:g} s): it is gone, or something on the way holds back what it says")
        if self._readings:
            self.look_for(min(self._readings, key=lambda reading: reading.silence))


async def frames(http: Http, watch: Watch, path: str, query: dict[str, Any], headers: dict[str, str], last_event_id: str, silence: float | None,
                 take: Callable[[Message], Taken], on_lost: OnLost, on_removed: Callable[[], object]) -> AsyncGenerator[Taken, None]:
    """All that the feed says, control frames too, as `take` makes it of each message, over every reconnection, until the server says that coming back is
    pointless (204). Raises Refusal where it says why (4xx), and what `on_lost` raises. What `take` raises means that the message is none."""
    start = query.get("from")
    backoff = Backoff()
    loop = asyncio.get_running_loop()
    while True:
        decoder = Decoder(last_event_id)
        try:
            async with http.feed(path, query, headers | ({"Last-Event-ID": last_event_id} if last_event_id else {})) as response:
                if response.status == 204:
                    on_removed()
                    return
                if start == "new":
                    # It has begun; asked again, it would skip what comes from here on.
                    query["from"] = None
                # The hello comes with the head, so a feed without one is held back by somebody on the way.
                reading = Reading(http, response, http.timeout if silence is None else silence)
                watch.add(reading)
                try:
                    while received := await reading.read(loop.time()):
                        for message in _sound(http, decoder.feed, received):
                            if message.event == HELLO:
                                hello = said(message)
                                reading.silence = silence or HEARTBEATS * number(hello, "heartbeat") or SILENCE
                                watch.look_for(reading)
                                if not last_event_id and query["from"] is None:
                                    # Until the first event, nothing else says where we are.
                                    last_event_id = str(hello.get("position") or "")
                            elif message.event == BYE:
                                bye = said(message)
                                backoff.come_back(number(bye, "retry"))
                                if bye.get("reason") == "expired":
                                    http.expire()
                            yield _sound(http, take, message)
                            last_event_id = message.id or last_event_id
                        # A block without data moves it too.
                        last_event_id = decoder.last_id or last_event_id
                        if last_event_id:
                            # From here on we know better than `all` or an id where to go on.
                            query["from"] = None
                        backoff.reset(decoder.retry)
                finally:
                    watch.discard(reading)
            raise ConnectionError(f"{http.url} ended the feed")
        except (ConnectionError, Refusal) as error:
            if is_final(error):
                raise
            wait = backoff.next(error)
            on_lost(error, wait)
        await asyncio.sleep(wait)


def _sound(http: Http, read: Callable[[Any], Taken], given: Any) -> Taken:
    """What `read` makes of what was given, where that is sound: on the way it may have been garbled."""
    try:
        return read(given)
    except (ValueError, TypeError, KeyError) as error:
        raise ConnectionError(f"{http.url} sent what is no feed: {error!r}") from None


def said(message: Message) -> dict[str, Any]:
    """What a control frame says; nothing, where somebody on the way has garbled it."""
    try:
        told = orjson.loads(message.data)
    except orjson.JSONDecodeError:
        return {}
    return told if isinstance(told, dict) else {}


def number(told: dict[str, Any], name: str) -> float:
    """How many seconds it says; 0 where it does not, or says no number."""
    value = told.get(name)
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e9 else 0.0
