"""A visitor's side of PERE: push events, listen to feeds, send receipts, ask what became of an event.

Everything here speaks plain HTTP to a server elsewhere, so it knows nothing of the server's insides. A refusal arrives as
a Refusal, with the code and message that the server gave it; a server that cannot be reached, or breaks off, is a
ConnectionError.
"""

import asyncio
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self
from urllib.parse import quote

import httpx
import orjson

from pere.errors import BadRequest, Refusal
from pere.names import device_name, is_pattern
from pere.sse import Decoder, Message

HELLO = "pere.hello"
UNIX = "unix:"
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")

# Two heartbeats of the default length may go astray; where the third is missing too, nobody is there.
SILENCE = 3 * 20.0

# Full jitter (a wait is anywhere between nothing and the whole) spreads a fleet that lost its server at one moment.
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
# What a server may wish for, in `retry:` and in Retry-After: no busy loop, and no farewell for ever.
SHORTEST_WISH, LONGEST_WISH = 0.1, 3600.0

# Answers that say "not now" rather than "not so".
PASSING = (408, 429, 500, 502, 503, 504)


class Client:
    """One device's or publisher's connections to the server at `url`; to be used as `async with Client(url) as client`. By a Unix socket
    it is `unix:` and the path. Who may sign the certificate of a server that speaks TLS is in the file that SSL_CERT_FILE names, if it does.

    `device` is who we are: it publishes, listens and gives receipts under this name. `token` is what the server lets us in by, or what
    gives one, which is asked for each request: so a device can come back with a new one when the old has expired. `timeout` is how many seconds a
    request may wait for the network, `silence` how many a feed may say nothing before it counts as lost. Raises ValueError
    if `url` is none, or a token cannot be one. All methods raise Refusal where the server says no, and ConnectionError where it says nothing.
    """

    def __init__(self, url: str, *, device: str | None = None, token: str | Callable[[], str] | None = None, timeout: float = 10.0, silence: float = SILENCE):
        try:
            parsed = httpx.URL("http://localhost" if url.startswith(UNIX) else url)
        except httpx.InvalidURL as error:
            raise ValueError(f"a server's URL is like http://127.0.0.1:4567, not {url!r} ({error})") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"a server's URL is like http://127.0.0.1:4567, not {url!r}")
        self.url = url.rstrip("/")
        path = url.removeprefix(UNIX) if url.startswith(UNIX) else None
        self._base = "http://localhost" if path is not None else self.url
        self.device = device
        headers = {"Device": device_name(device)} if device is not None else {}
        if isinstance(token, str):
            _check_token(token)
        self._token = token
        self._http = httpx.AsyncClient(headers=headers, auth=self._authorize if token is not None else None, timeout=timeout,
                                       transport=httpx.AsyncHTTPTransport(uds=path) if path is not None else None)
        self._timeout = timeout
        self._feed_timeout = httpx.Timeout(timeout, read=silence)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.aclose()

    def _authorize(self, request: httpx.Request) -> httpx.Request:
        token = self._token() if callable(self._token) else self._token
        request.headers["Authorization"] = f"Bearer {_check_token(token or '')}"
        return request

    async def push(self, channel: str, data: Any, *, type: str | None = None, to: Iterable[str] = (), ttl: int | None = None,
                   receipt: str | None = None, need: str | int | None = None, key: str | None = None, wait: int | None = None,
                   callback: str | None = None) -> dict[str, Any]:
        """Publish an event; returns `{"id", "channel", "audience"}` once it is as safe as the server's store makes it.

        `data` as str is text, as bytes is JSON that is encoded already, and anything else becomes JSON. `key` is an
        Idempotency-Key: with one, a push whose answer got lost can be repeated and is still published once. With `wait` the answer is
        the delivery status, once `need` is met or cannot be any more, or after so many seconds. `callback` is the webhook that is told
        what becomes of it.
        """
        kind = "text/plain; charset=utf-8" if isinstance(data, str) else "application/json"
        body = data.encode() if isinstance(data, str) else data if isinstance(data, bytes) else orjson.dumps(data)
        headers = {"Content-Type": kind} | ({} if key is None else {"Idempotency-Key": key}) | ({} if wait is None else {"Prefer": f"wait={wait}"})
        query = {"type": type, "to": list(to) or None, "ttl": ttl, "receipt": receipt, "need": need, "callback": callback}
        return await self._ask("POST", f"/push/{_part(channel)}", query, body, headers, patience=wait or 0)

    async def recall(self, channel: str, id: str) -> dict[str, Any]:
        """Take an event back; returns `{"id", "channel", "cancelled"}`, the last being how many devices still owed a receipt."""
        return await self._ask("DELETE", f"/events/{_part(channel)}/{_part(id)}")

    async def status(self, channel: str, id: str) -> dict[str, Any]:
        """What became of an event: its audience, how many devices are in each state, latency quantiles in seconds."""
        return await self._ask("GET", f"/events/{_part(channel)}/{_part(id)}")

    async def devices(self, channel: str, id: str, state: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """Who has the event and who has not, device by device; `state` narrows it to `outstanding` or to one state."""
        cursor = None
        while True:
            page = await self._ask("GET", f"/events/{_part(channel)}/{_part(id)}/devices", {"state": state, "cursor": cursor})
            for device in page.get("devices", ()):
                yield device
            cursor = page.get("cursor")
            if not cursor:
                return

    async def webhooks(self) -> list[dict[str, Any]]:
        """The endpoints that notices are sent to."""
        webhooks: list[dict[str, Any]] = (await self._ask("GET", "/webhooks")).get("webhooks", [])
        return webhooks

    async def add_webhook(self, url: str, *, types: Iterable[str] = (), channels: Iterable[str] = (), content_type: str | None = None) -> dict[str, Any]:
        """A new endpoint; in what is returned is its `secret`, which is told once and never again."""
        said = {"url": url, "types": list(types), "channels": list(channels), "content_type": content_type}
        return await self._ask("POST", "/webhooks", body=orjson.dumps({name: value for name, value in said.items() if value}))

    async def change_webhook(self, id: str, **said: Any) -> dict[str, Any]:
        """Change its `url`, `types`, `channels`, `content_type`, or `state` (`paused`, `active`)."""
        return await self._ask("PATCH", f"/webhooks/{_part(id)}", body=orjson.dumps(said))

    async def rotate_webhook(self, id: str) -> dict[str, Any]:
        """A new `secret`; the one before signs too until `old_secret_until`."""
        return await self._ask("POST", f"/webhooks/{_part(id)}/rotate")

    async def test_webhook(self, id: str) -> dict[str, Any]:
        """Send it something now; returns `{"answered", "status", "trouble", "seconds", "state"}`."""
        return await self._ask("POST", f"/webhooks/{_part(id)}/test", patience=60)

    async def dead_letters(self, id: str, since: str | None = None, until: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """What a webhook was not to be sent any more and had been made in this time (RFC 3339), oldest first: `{"id", "webhook_id", "type", "count",
        "attempts", "trouble", "body"}`."""
        after = None
        while True:
            page = await self._ask("GET", f"/webhooks/{_part(id)}/dead", {"since": since, "until": until, "after": after, "limit": 100})
            for letter in page.get("dead", []):
                yield letter
            after = page.get("after")
            if after is None:
                return

    async def replay_webhook(self, id: str, ids: Iterable[str] = (), since: str | None = None, until: str | None = None) -> int:
        """Send again what was given up, all of it, or these, or what had been made in this time; how many notices that are."""
        said = {"ids": list(ids), "since": since, "until": until}
        answer = await self._ask("POST", f"/webhooks/{_part(id)}/replay", body=orjson.dumps({name: value for name, value in said.items() if value}))
        return int(answer.get("replayed", 0))

    async def remove_webhook(self, id: str) -> None:
        await self._ask("DELETE", f"/webhooks/{_part(id)}")

    async def feedback(self, channel: str, event_id: str, state: str = "processed", status: Any = None, *,
                       delay: float | None = None, until_answered: bool = False) -> dict[str, Any]:
        """Send a receipt; returns `{"state", "duplicate"}`. `status` is the device's own word on its work: text, or JSON.
        `working` and `retry` say how it goes: `retry` asks to be sent the event again, in `delay` seconds.

        `until_answered` repeats it until there is an answer, which is safe: the first receipt stands.
        """
        receipt = {"event_id": event_id, "state": state} | ({} if status is None else {"status": status}) | ({} if delay is None else {"delay": delay})
        backoff = _Backoff()
        while True:
            try:
                return await self._ask("POST", f"/feedback/{_part(channel)}", body=orjson.dumps(receipt),
                                       headers={"Content-Type": "application/json"})
            except (ConnectionError, Refusal) as error:
                if not until_answered or _is_final(error):
                    raise
                await asyncio.sleep(backoff.next(error))

    async def listen(self, *channels: str, format: str | None = None, from_: str | None = None, last_event_id: str = "",
                     ack_wait: float | None = None, window: int | None = None, on_lost: Callable[[Exception, float], object] = lambda error, wait: None) -> AsyncGenerator[Message, None]:
        """The events of these channels or patterns, for as long as the server lets us.

        A feed that is lost is opened again and goes on where it was, so an event without a receipt may come twice. Control
        frames are handed on, with a `message.event` that begins with `pere.`. `from_` is `new`, `all` or an event id.
        What is not answered in `ack_wait` seconds is sent again, and at most `window` events come that are not answered.
        `on_lost` hears why a feed was lost and in how many seconds the next try is; it may raise, to end it all.
        Returns where the server says that coming back is pointless (204), and raises Refusal where it says why (4xx).
        """
        query: dict[str, Any] = {"format": format, "from": from_, "ack_wait": ack_wait, "window": window}
        path = "/feed"
        if len(channels) == 1 and not is_pattern(channels[0]):
            path = f"/feed/{_part(channels[0])}"
        else:
            query["channel"] = channels
        backoff = _Backoff()
        while True:
            decoder = Decoder(last_event_id)
            try:
                async with self._open(path, query, last_event_id) as response:
                    if response.status_code == 204:
                        return
                    if from_ == "new":
                        # It has begun; asked again, it would skip what comes from here on.
                        query["from"] = None
                    async for received in response.aiter_bytes():
                        for message in decoder.feed(received):
                            if message.event == HELLO and not last_event_id and query["from"] is None:
                                # Until the first event, nothing else says where we are.
                                last_event_id = orjson.loads(message.data).get("position") or ""
                            yield message
                        last_event_id = decoder.last_id or last_event_id
                        if last_event_id:
                            # From here on we know better than `all` or an id where to go on.
                            query["from"] = None
                        backoff.reset(decoder.retry)
                raise ConnectionError(f"{self.url} ended the feed")
            except (ConnectionError, Refusal) as error:
                if _is_final(error):
                    raise
                wait = backoff.next(error)
                on_lost(error, wait)
            await asyncio.sleep(wait)

    @asynccontextmanager
    async def _open(self, path: str, query: dict[str, Any], last_event_id: str) -> AsyncIterator[httpx.Response]:
        """A feed that is open, or the 204 that stands for none."""
        # A proxy that compresses a feed also buffers it.
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-store"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        with self._reaching():
            async with self._http.stream("GET", self._base + path, params=_given(query), headers=_encoded(headers),
                                         timeout=self._feed_timeout) as response:
                is_feed = response.is_success and response.headers.get("Content-Type", "").startswith("text/event-stream")
                if not is_feed and response.status_code != 204:
                    await response.aread()
                    raise _refusal(response)
                yield response

    async def _ask(self, method: str, path: str, query: dict[str, Any] | None = None, body: bytes | None = None,
                   headers: dict[str, str] | None = None, patience: float = 0) -> dict[str, Any]:
        with self._reaching():
            response = await self._http.request(method, self._base + path, params=_given(query or {}), content=body,
                                                headers=_encoded(headers or {}),
                                                timeout=httpx.Timeout(self._timeout, read=self._timeout + patience))
        if not response.is_success:
            raise _refusal(response)
        if response.status_code == 204:
            return {}
        try:
            told: dict[str, Any] = orjson.loads(response.content)
            return told
        except orjson.JSONDecodeError:
            raise _refusal(response) from None

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.LocalProtocolError as error:
            # Nobody was asked: it cannot be sent at all, now or later.
            raise BadRequest("bad_header", f"this cannot stand in a header: {error}") from None
        except httpx.TimeoutException:
            raise ConnectionError(f"{self.url} was silent for too long") from None
        except httpx.RequestError as error:
            what = "cannot be reached" if isinstance(error, httpx.ConnectError) else "broke off"
            raise ConnectionError(f"{self.url} {what}: {str(error) or type(error).__name__}") from None


def _check_token(token: str) -> str:
    """The token itself; raises ValueError if it cannot stand in a header. It is not shown."""
    if not TOKEN.fullmatch(token):
        raise ValueError("a token is letters, digits and - . _ ~ + / = without spaces (RFC 6750, 2.1)")
    return token


class _Backoff:
    """How many seconds to wait before the next try: more and more, until something worked."""

    def __init__(self) -> None:
        self._first = self._whole = FIRST_WAIT

    def reset(self, first: float | None) -> None:
        """Something worked. `first` is the whole of the next wait, if the server has a wish."""
        if first is not None:
            self._first = min(max(first, SHORTEST_WISH), LONGEST_WISH)
        self._whole = self._first

    def next(self, error: Exception) -> float:
        wait = random.uniform(0, self._whole)
        self._whole = min(2 * self._whole, max(LONGEST_WAIT, self._first))
        return wait + min(getattr(error, "retry_after", None) or 0, LONGEST_WISH)


def _is_final(error: Exception) -> bool:
    """Whether trying again would get the same answer."""
    return isinstance(error, Refusal) and error.status not in PASSING


def _refusal(response: httpx.Response) -> Refusal:
    """The server's refusal, or what stands for it where a proxy answered that has never heard of PERE."""
    after = response.headers.get("Retry-After", "")
    try:
        answer = orjson.loads(response.content)
        code, message = answer["error"], answer["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        kind = response.headers.get("Content-Type", "no content")
        code = f"http_{response.status_code}"
        message = f"{response.url} answered {response.status_code} {response.reason_phrase} ({kind})"
    # isdigit() alone would pass a superscript two, and int() raises for that and for thousands of digits.
    is_number = after.isascii() and after.isdigit() and len(after) < 10
    return Refusal(code, message, status=response.status_code, retry_after=int(after) if is_number else None)


def _part(text: str) -> str:
    """A name as one part of a path, whatever it holds; the server says what is wrong with it."""
    return quote(text, safe="")


def _given(query: dict[str, Any]) -> dict[str, Any] | None:
    # None, not {}: httpx would leave a lone question mark.
    return {name: value for name, value in query.items() if value is not None} or None


def _encoded(headers: dict[str, str]) -> dict[bytes, bytes]:
    """Headers as UTF-8: an id in a stream may hold any character, and httpx takes only ASCII for text."""
    return {name.encode(): value.encode() for name, value in headers.items()}
