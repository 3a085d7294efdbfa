"""The same for programs without asyncio: a Client on a thread of its own, whose methods wait."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator, Mapping, MutableMapping
from concurrent.futures import CancelledError, Future
from contextlib import closing
from typing import Any, Self, TypeVar

from pere.client.client import Channels, Client
from pere.client.event import Event
from pere.client.http import Token
from pere.client.news import OnNews, to_log

Told = TypeVar("Told")
# How long to wait for the end of what was interrupted.
LAST_MOMENT = 5.0
CLOSED = "this client is closed"


class SyncClient:
    """To be used as `with SyncClient(url) as client`. What it takes, and what its methods take, return and raise, is told by Client. Its methods may be called
    from any thread; receipts go out while your code works. `on_news` is called, and `kept` used, on the client's own thread."""

    def __init__(self, url: str, *, device: str | None = None, token: Token | None = None, timeout: float = 10.0, silence: float | None = None,
                 on_news: OnNews = to_log, kept: MutableMapping[str, bytes] | None = None):
        self._client = Client(url, device=device, token=token, timeout=timeout, silence=silence, on_news=on_news, kept=kept)
        self.url = self._client.url
        self.device = self._client.device
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._is_closed = False
        self._under_way: set[Future[Any]] = set()
        # A daemon: whoever forgets to close it can still end.
        self._thread = threading.Thread(target=self._loop.run_forever, name="pere.SyncClient", daemon=True)
        self._thread.start()
        self._run(self._client.__aenter__())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the receipts that are not answered yet another `timeout` seconds, then let everything go. Who waits for something on another thread has a
        ValueError, as whoever asks later."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        for each in tuple(self._under_way):
            each.cancel()
        try:
            self._see_through(self._client.aclose())
            self._see_through(self._loop.shutdown_asyncgens())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def push(self, channel: str, data: Any, *, type: str | None = None, to: Iterable[str] = (), ttl: int | None = None, receipt: str | None = None,
             need: str | int | None = None, key: str | None = None, wait: int | None = None, callback: str | None = None,
             traceparent: str | None = None, patience: float = 0.0) -> dict[str, Any]:
        """See Client.push."""
        return self._run(self._client.push(channel, data, type=type, to=to, ttl=ttl, receipt=receipt, need=need, key=key, wait=wait, callback=callback,
                                           traceparent=traceparent, patience=patience))

    def push_many(self, events: Iterable[Mapping[str, Any]], *, patience: float = 0.0) -> list[dict[str, Any]]:
        """See Client.push_many."""
        return self._run(self._client.push_many(events, patience=patience))

    def recall(self, channel: str, id: str) -> dict[str, Any]:
        """See Client.recall."""
        return self._run(self._client.recall(channel, id))

    def status(self, channel: str, id: str) -> dict[str, Any]:
        """See Client.status."""
        return self._run(self._client.status(channel, id))

    def wait(self, channel: str, id: str, *, until: str = "satisfied", seconds: float | None = None) -> dict[str, Any]:
        """See Client.wait."""
        return self._run(self._client.wait(channel, id, until=until, seconds=seconds))

    def devices(self, channel: str, id: str, state: str | None = None) -> Iterator[dict[str, Any]]:
        """See Client.devices."""
        return self._each(self._client.devices(channel, id, state))

    def outstanding(self, channel: str, id: str) -> Iterator[dict[str, Any]]:
        """See Client.outstanding."""
        return self._each(self._client.outstanding(channel, id))

    def feedback(self, channel: str, event_id: str, state: str = "processed", status: Any = None, *, delay: float | None = None,
                 until_answered: bool = False) -> dict[str, Any]:
        """See Client.feedback."""
        return self._run(self._client.feedback(channel, event_id, state, status, delay=delay, until_answered=until_answered))

    def listen(self, channels: Channels, *, device: str | None = None, answer: str | None = "processed", from_: str | None = None,
               last_event_id: str = "", ack_wait: float | None = None, window: int | None = None) -> Generator[Event, None, None]:
        """See Client.listen."""
        return self._each(self._client.listen(channels, device=device, answer=answer, from_=from_, last_event_id=last_event_id, ack_wait=ack_wait, window=window))

    def handle(self, channels: Channels, handler: Callable[[Event], object], **wanted: Any) -> None:
        """See Client.handle; here one event is handled after the other, on the thread that calls this."""
        with closing(self.listen(channels, answer=None, **wanted)) as feed:
            for event in feed:
                try:
                    told = handler(event)
                except Exception as trouble:
                    event.raised(trouble)
                else:
                    event.conclude(told)
                del event

    @property
    def unanswered(self) -> int:
        """How many receipts were given and are not answered yet."""
        return self._client.unanswered

    def flush(self) -> None:
        """Wait until all receipts that were given are answered."""
        self._run(self._client.flush())

    def _each(self, items: AsyncIterator[Told]) -> Generator[Told, None, None]:
        async def following() -> Told | None:
            return await anext(items, None)

        async def end() -> None:
            await items.aclose()  # type: ignore[attr-defined]  # all that we iterate over are generators

        try:
            while (item := self._run(following())) is not None:
                yield item
                del item
        finally:
            self._run(end())

    def _run(self, visit: Coroutine[Any, Any, Told]) -> Told:
        """See a coroutine through on the loop's thread; where this one is interrupted, so is that."""
        with self._lock:
            if self._is_closed:
                visit.close()
                raise ValueError(CLOSED)
            begun = self._begin(visit)
        return self._wait(*begun)

    def _see_through(self, visit: Coroutine[Any, Any, Told]) -> Told:
        """The same at the end."""
        return self._wait(*self._begin(visit))

    def _begin(self, visit: Coroutine[Any, Any, Told]) -> tuple[Future[Told], threading.Event]:
        over = threading.Event()

        async def seen_through() -> Told:
            try:
                return await visit
            finally:
                over.set()

        future = asyncio.run_coroutine_threadsafe(seen_through(), self._loop)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future, over

    def _wait(self, future: Future[Told], over: threading.Event) -> Told:
        try:
            return future.result()
        except CancelledError:
            if self._is_closed:
                raise ValueError(CLOSED) from None
            raise
        except BaseException:
            if not over.is_set():
                future.cancel()
                over.wait(LAST_MOMENT)
            raise
