"""The whole of a visitor, on asyncio: push, listen, give receipts, ask."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import aclosing
from inspect import isawaitable
from typing import Any, Self, TypeVar
from weakref import ref

import orjson

from pere.client import sleep
from pere.client.backoff import Backoff
from pere.client.endpoints import Administrator
from pere.client.event import Event
from pere.client.http import Http, Token, is_final, part
from pere.client.news import Bye, Cancelled, Duplicate, Gap, Lost, News, OnNews, Opened, Removed, log, to_log
from pere.client.reading import OnLost, Watch, frames, number, said
from pere.client.receipts import HARD, SOFT, Receipts
from pere.errors import Refusal
from pere.names import device_name, is_pattern
from pere.sse import Message

# The server can ask for no more (`--receipt-jitter`), and no stranger is to hold receipts up for ever.
LONGEST_JITTER = 60.0

Channels = str | Iterable[str]
Handler = Callable[[Event], object | Awaitable[object]]
Taken = TypeVar("Taken")


class Client(Administrator):
    """One device's or publisher's connections to the server at `url`; to be used as `async with Client(url) as client`. By a Unix socket
    it is `unix:` and the path. Who may sign the certificate of a server that speaks TLS is in the file that SSL_CERT_FILE names, if it does.

    `device` is who we are: it publishes, listens and gives receipts under this name. `token` is what the server lets us in by, or what
    gives one (a function, which may be async): it is asked when one is needed, and again when that has expired or was refused. `timeout` is how many seconds a
    request may wait for the network, and how many the receipts that are not answered may take at the end. `silence` is how many a feed may say nothing before it
    counts as lost; unless given, two and a half of the server's heartbeats.

    `on_news` is called with all that a listener may want to know beside its events (see `pere.client.news`); without it, that is logged. What it raises ends the
    feed that it is told of. `kept` is where receipts are kept until they are answered, any mapping of str to bytes, such as an open `dbm`: with one that survives
    the process, what was answered before its end is told to the server by the next. It belongs to this client alone.

    All methods raise Refusal where the server says no (`code`, `message`, `status`, `retry_after`) and ConnectionError where it says nothing. Raises ValueError
    if `url` is none, or a token cannot be one.
    """

    def __init__(self, url: str, *, device: str | None = None, token: Token | None = None, timeout: float = 10.0, silence: float | None = None,
                 on_news: OnNews = to_log, kept: MutableMapping[str, bytes] | None = None):
        super().__init__(Http(url, token, timeout), device_name(device) if device is not None else None)
        self.url = self._http.url
        self._silence = silence
        self._on_news = on_news
        self._kept = kept
        self._watch = Watch(sleep.clock())
        self._receipts: dict[str, Receipts] = {}

    async def __aenter__(self) -> Self:
        # What an earlier life could not tell any more. A dbm has its keys as bytes.
        for name, receipt in list((self._kept or {}).items()):
            device, _, id = (name.decode() if isinstance(name, bytes) else name).partition(" ")
            try:
                told = orjson.loads(receipt)
                if told["event_id"] != id or not {"channel", "state"} <= told.keys():
                    raise ValueError
                self._receipts_of(device_name(device)).say(told)
            except (ValueError, TypeError, KeyError, Refusal):
                log.warning("what is kept as %r is no receipt", name)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Give the receipts that are not answered yet another `timeout` seconds, then let everything go."""
        try:
            async with asyncio.timeout(self._http.timeout):
                await self.flush()
        except TimeoutError:
            log.warning("%d receipts were not answered before the end%s", self.unanswered, "" if self._kept is None else ", and are kept")
        finally:
            for receipts in self._receipts.values():
                receipts.stop()
            await self._http.close()

    async def flush(self) -> None:
        """Wait until all receipts that were given are answered."""
        for receipts in list(self._receipts.values()):
            await receipts.flush()

    @property
    def unanswered(self) -> int:
        """How many receipts were given and are not answered yet."""
        return sum(map(len, self._receipts.values()))

    async def listen(self, channels: Channels, *, device: str | None = None, answer: str | None = "processed", from_: str | None = None,
                     last_event_id: str = "", ack_wait: float | None = None, window: int | None = None) -> AsyncGenerator[Event, None]:
        """The events of a channel, or of several channels and patterns, for as long as the server lets us.

        Whoever asks for the next event has processed the one before, unless something else was said of it (`event.failed()`, `event.retry()` ...): so much is
        told to the server. `answer` is what is told, `processed` or `delivered`; None leaves it to you, for events that are worked on elsewhere. Where the
        loop is left, by `break`, `return` or an exception, the event at hand is not answered for, as if the process had died there: it comes again.

        A feed that is lost is opened again and goes on where it was. What comes again although it was answered for, or is still being worked on, is not
        handed on. `device` is who listens, if not the client's. `from_` is `new`, `all` or an event id: where to begin, as a new device. What is not
        answered in `ack_wait` seconds is sent again, and at most `window` events come that are not answered.

        Ends where the server says that coming back is pointless (the device was deleted), and raises Refusal where it says why: a wrong name, a
        token that does not hold. What only looks like an answer of the server (a captive portal's page, a proxy's) is a lost connection.
        """
        if answer not in (None, "processed", "delivered"):
            raise ValueError(f"the answer is processed, delivered or None, not {answer!r}")
        name = device_name(device) if device is not None else self.device
        receipts = self._receipts_of(name) if name is not None else None
        last = SOFT if answer == "delivered" else HARD
        at_hand = _AtHand()
        tell = self._on_news

        def take(message: Message) -> Event | News | None:
            return _news(name, message) if message.event.startswith("pere.") else Event(message, receipts.say if receipts is not None else None)

        async with aclosing(self._feed(channels, name, "envelope", from_, last_event_id, ack_wait, window, take,
                                       lambda error, wait: tell(Lost(name, error, wait)), lambda: tell(Removed(name)))) as feed:
            async for event in feed:
                if not isinstance(event, Event):
                    if isinstance(event, Opened) and receipts is not None:
                        receipts.jitter = min(number(event.hello, "receipt_jitter"), LONGEST_JITTER)
                        receipts.hurry()
                    if isinstance(event, Cancelled) and (cancelled := at_hand.get(event.id)) is not None:
                        cancelled.is_cancelled = True
                    if event is not None:
                        tell(event)
                    continue
                if receipts is not None:
                    if receipts.again(event.id, last):
                        tell(Duplicate(name, event.channel, event.id))
                        continue
                    if at_hand.is_held(event.id):
                        continue
                    await receipts.room()
                    at_hand.add(event)
                yield event
                if receipts is not None and answer is not None and event.answer in (None, "working"):
                    event.say(answer)
                # What nobody holds any more without having answered for it, may come again.
                del event

    async def handle(self, channels: Channels, handler: Handler, *, concurrency: int = 1, **wanted: Any) -> None:
        """Hand each event to `handler`, a function that may be async, until the feed ends as in `listen`; at most `concurrency` are being handled at once.

        What it returns from is processed; text, a dict or a list that it returns is the device's own word. If it raises Retry, the event is asked for
        again; if it raises anything else, that is logged, and the event has failed. Where this is cancelled, so are the handlers, and what they were at comes again.
        `wanted` is what `listen` takes.
        """
        at_work: set[asyncio.Task[None]] = set()
        try:
            async with aclosing(self.listen(channels, answer=None, **wanted)) as feed:
                async for event in feed:
                    task = asyncio.create_task(_handled(handler, event))
                    del event
                    at_work.add(task)
                    task.add_done_callback(at_work.discard)
                    if len(at_work) >= concurrency:
                        await asyncio.wait(at_work, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            for task in at_work:
                task.cancel()
            raise
        finally:
            await asyncio.gather(*at_work, return_exceptions=True)

    async def frames(self, channels: Channels, *, device: str | None = None, format: str | None = None, from_: str | None = None, last_event_id: str = "",
                     ack_wait: float | None = None, window: int | None = None, on_lost: OnLost = lambda error, wait: None,
                     on_removed: Callable[[], object] = lambda: None) -> AsyncGenerator[Message, None]:
        """What the feed says word for word, over every reconnection: `message.event`, `.data`, `.id`. Nothing is answered for, nothing that comes again is
        dropped, and control frames are handed on, with a `message.event` that begins with `pere.`. `format` is `raw` or `envelope`.

        `on_lost` hears why a feed was lost and in how many seconds the next try is; it may raise, to end it all. `on_removed` hears that the server will have
        us no more. Everything else is as in `listen`.
        """
        name = device_name(device) if device is not None else self.device
        async with aclosing(self._feed(channels, name, format, from_, last_event_id, ack_wait, window, lambda message: message, on_lost, on_removed)) as feed:
            async for message in feed:
                yield message

    def _feed(self, channels: Channels, device: str | None, format: str | None, from_: str | None, last_event_id: str, ack_wait: float | None, window: int | None,
              take: Callable[[Message], Taken], on_lost: OnLost, on_removed: Callable[[], object]) -> AsyncGenerator[Taken, None]:
        query: dict[str, Any] = {"format": format, "from": from_, "ack_wait": ack_wait, "window": window}
        named = [channels] if isinstance(channels, str) else list(channels)
        path = "/feed"
        if len(named) == 1 and not is_pattern(named[0]):
            path = f"/feed/{part(named[0])}"
        else:
            query["channel"] = named
        headers = {"Device": device} if device is not None else {}
        return frames(self._http, self._watch, path, query, headers, last_event_id, self._silence, take, on_lost, on_removed)

    async def feedback(self, channel: str, event_id: str, state: str = "processed", status: Any = None, *,
                       delay: float | None = None, until_answered: bool = False) -> dict[str, Any]:
        """Send a receipt and wait for its answer; returns `{"state", "duplicate"}`. `status` is the device's own word on its work: text, or JSON.
        `working` and `retry` say how it goes: `retry` asks to be sent the event again, in `delay` seconds.

        `until_answered` repeats it until there is an answer, which is safe: the first receipt stands.
        """
        receipt = {"event_id": event_id, "state": state} | ({} if status is None else {"status": status}) | ({} if delay is None else {"delay": delay})
        backoff = Backoff()
        while True:
            try:
                return (await self._http.ask("POST", f"/feedback/{part(channel)}", body=orjson.dumps(receipt),
                                             headers=self._named | {"Content-Type": "application/json"})).told
            except (ConnectionError, Refusal) as error:
                if not until_answered or is_final(error):
                    raise
                await asyncio.sleep(backoff.next(error))

    def _receipts_of(self, device: str) -> Receipts:
        receipts = self._receipts.get(device)
        if receipts is None:
            receipts = self._receipts[device] = Receipts(self._http, device, self._tell, self._kept)
        return receipts

    def _tell(self, news: News) -> None:
        """News of receipts, on which no feed depends."""
        try:
            self._on_news(news)
        except Exception:
            log.exception("on_news raised")


async def _handled(handler: Handler, event: Event) -> None:
    try:
        told = handler(event)
        if isawaitable(told):
            told = await told
    except Exception as trouble:
        event.raised(trouble)
    else:
        event.conclude(told)


class _AtHand:
    """The events that somebody holds. Where the last of them lets go of one nothing is called, as a WeakValueDictionary would: a Ctrl-C that comes in what
    a weak reference calls is lost there."""

    MOST = 100  # that nobody holds any more, beside as many as are held

    def __init__(self) -> None:
        self._known: dict[str, ref[Event]] = {}
        self._most = self.MOST

    def add(self, event: Event) -> None:
        if len(self._known) >= self._most:
            self._known = {id: known for id, known in self._known.items() if known() is not None}
            self._most = 2 * len(self._known) + self.MOST
        self._known[event.id] = ref(event)

    def get(self, id: str) -> Event | None:
        known = self._known.get(id)
        return known() if known is not None else None

    def is_held(self, id: str) -> bool:
        """Whether somebody works on this event. (A function, for a local name in the loop would hold it too.)"""
        known = self.get(id)
        return known is not None and known.answer != "retry"


def _news(device: str | None, message: Message) -> News | None:
    """What a control frame says; None where that is nothing that is known here."""
    told = said(message)
    match message.event:
        case "pere.hello":
            return Opened(device, told)
        case "pere.gap":
            return Gap(device, told.get("channel", ""), told.get("from", ""), told.get("to"), told.get("lost"))
        case "pere.cancel":
            return Cancelled(device, told.get("channel", ""), told.get("id", ""))
        case "pere.bye":
            return Bye(device, told.get("reason", ""), number(told, "retry"))
    return None
