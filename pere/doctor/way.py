"""The way to a server that runs: what stands between may hold back, compress, cut off, strip, or answer in its place.

What is asked leaves nothing behind: a feed without a name registers nobody, and requests that the server must refuse tell that their
headers arrive.
"""

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from yarl import URL

from pere.client.http import reason, speaks_tls
from pere.config import without_password
from pere.doctor import Finding, advice, ok, wrong
from pere.doctor.keys import ended

MESSAGE = "PERE server up and running"
PATIENCE = 10.0  # seconds for an answer
FIRST_WORDS = 5.0  # and for a feed to begin
ASTRAY, FAR_ASTRAY = 2.0, 30.0  # seconds between the server's clock and ours
HOP = 1.0  # a Date has whole seconds
UNIX = "unix:"
HEARTBEAT = re.compile(rb'"heartbeat":([0-9.]+)')
GATEWAYS = (502, 503, 504)
LONGEST = 64 * 1024  # bytes of an answer that are read: what is longer is not PERE's
ERRORS = (aiohttp.ClientError, OSError)  # TimeoutError is one of the latter

NGINX_BUFFERS = "nginx: `proxy_buffering off; proxy_http_version 1.1;`, or do not ignore X-Accel-Buffering; others: no buffering for text/event-stream"
TIMEOUTS = "raise the time for which it lets a connection be silent (nginx: `proxy_read_timeout 1h;`), or set --heartbeat below it"


class Way:
    """To the server at `url`; `channel` is what is listened to, for at most `watch` seconds."""

    def __init__(self, url: str, token: str | None, channel: str, watch: float):
        self.url = url.rstrip("/")
        self._base = "http://localhost" if url.startswith(UNIX) else self.url
        self._channel = channel
        self._watch = watch
        self._has_token = bool(token)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http: aiohttp.ClientSession

    async def findings(self) -> AsyncIterator[Finding]:
        """One after the other, as far as there is a way at all."""
        parts, path = URL(self._base), self.url.removeprefix(UNIX) if self.url.startswith(UNIX) else None
        proxy = None if path is not None or proxy_bypass(parts.host or "") else getproxies().get(parts.scheme)
        connector = aiohttp.UnixConnector(path) if path is not None else aiohttp.TCPConnector(ssl=ssl.create_default_context())
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=PATIENCE)
        async with aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=timeout, proxy=proxy, cookie_jar=aiohttp.DummyCookieJar()) as self._http:
            if proxy is not None:
                yield ok("way", f"goes through {without_password(proxy)}, as the environment says")
            try:
                if parts.scheme == "https" and proxy is None:
                    yield await self._certificate(parts)
                async for finding in self._greeting():
                    yield finding
                async for finding in self._asking():
                    yield finding
            except _Astray as end:
                yield end.finding
            except ERRORS as error:
                yield await self._unreachable(error)

    async def _unreachable(self, error: BaseException) -> Finding:
        said = str(error) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in said:
            return wrong("certificate", f"{self.url}: {said}", "install a certificate for this name with those that signed it behind it; name your own authority with SSL_CERT_FILE; or somebody on the way shows another")
        if isinstance(error, ssl.SSLError | aiohttp.ClientConnectorSSLError):
            return wrong("way", f"{self.url} does not speak TLS: {said}", "http:// instead of https://, or give the server a certificate (--tls-cert)")
        if isinstance(error, aiohttp.ServerDisconnectedError) and self._base.startswith("http://") and self.url == self._base and await speaks_tls(self._base):
            return wrong("way", f"{self.url} speaks TLS", "https:// instead of http://")
        if isinstance(error, TimeoutError):
            return wrong("way", f"{self.url} does not answer within {PATIENCE:g} s", "a firewall may drop what it does not let through; is the server running, and is it this address?")
        if isinstance(error, aiohttp.ClientConnectorError):
            said = reason(error.os_error)
        return wrong("way", f"{self.url} cannot be reached: {said}", "is the server running, and is it this address and port? `pere doctor` without --url looks at the machine that it runs on")

    async def _certificate(self, parts: URL) -> Finding:
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection(parts.host, parts.port, ssl=ssl.create_default_context())
        shown: Any = writer.get_extra_info("peercert")
        writer.close()
        begins, ends = (datetime.fromtimestamp(ssl.cert_time_to_seconds(shown[name]), UTC) for name in ("notBefore", "notAfter"))
        return ended(begins, ends, datetime.now(UTC), "the certificate that is shown")

    async def _page(self, path: str) -> tuple[aiohttp.ClientResponse, bytes, float]:
        """An answer, its body, and how many seconds that took. Nothing is followed: who sends us elsewhere is not the server."""
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE), self._http.get(self._base + path, headers={"Accept": "application/json"}, allow_redirects=False) as response:
            return response, await response.content.read(LONGEST), time.monotonic() - began

    # Who answers

    async def _greeting(self) -> AsyncIterator[Finding]:
        before = time.time()
        response, body, _ = await self._page("/")
        after = time.time()
        told = _json(body)
        if told.get("message") != MESSAGE:
            raise _Astray(self._stranger(response))
        yield ok("way", f"{self.url} is PERE {told.get('version', '?')}")
        if response.version == aiohttp.HttpVersion10 or "1.0 " in response.headers.get("Via", ""):
            yield advice("way", f"somebody on the way speaks HTTP/1.0 ({response.headers.get('Via', 'to us')}): each request takes a connection of its own", "nginx: `proxy_http_version 1.1; proxy_set_header Connection \"\";`")
        elif "Via" in response.headers:
            yield ok("way", f"there is a proxy on it: {response.headers['Via']}")
        if (date := _date(response)) is not None:
            yield _clock(date, before, after)
        async for finding in self._ready():
            yield finding

    def _stranger(self, response: aiohttp.ClientResponse) -> Finding:
        status, kind = response.status, response.headers.get("Content-Type", "nothing")
        if status == 407:
            return wrong("way", "the proxy on the way wants to know who asks (407)", "name it with its user: HTTPS_PROXY=http://user:password@host:port, or go round it with NO_PROXY")
        if status in (301, 302, 303, 307, 308):
            return wrong("way", f"instead of PERE somebody answers who sends us to {response.headers.get('Location')}",
                         "log in to the network (a captive portal), or let the proxy pass devices on without logging in; http:// may want to be https://")
        if status in GATEWAYS:
            return wrong("way", f"a proxy answers {status}: the server behind it is not there, or not where the proxy looks", "start the server, and compare its --host, --port or --unix with what the proxy names (nginx: proxy_pass)")
        return wrong("way", f"instead of PERE somebody answers {status} with {kind}", "is it this address? A captive portal, a web server or another service answers so; a proxy must pass all paths on")

    async def _ready(self) -> AsyncIterator[Finding]:
        response, body, took = await self._page("/readyz")
        if response.status == 200:
            yield ok("server", f"it is ready, and answers after {1000 * took:.0f} ms")
        else:
            yield wrong("server", f"it is not ready: {_json(body).get('message', response.status)}", "mend what it says; its log says more")

    # What arrives there

    async def _asking(self) -> AsyncIterator[Finding]:
        async with self._feed({"Accept-Encoding": "gzip, identity;q=0.5"}) as response:
            refused = await self._refused(response)
            if refused is None:
                async for finding in self._flow(response):
                    yield finding
        if refused is not None:
            yield refused
            return
        for name, value, why in (("Last-Event-ID", "?", "a device that comes back would miss what was sent meanwhile"), ("Device", "?", "nobody is known by name, and no receipt would be taken")):
            # No id and no name looks like this, so whoever gets the header must refuse it.
            async with self._feed({name: value}) as response:
                if response.status == 200:
                    yield wrong("headers", f"{name} does not arrive: {why}", f"let the proxy pass it on, or send it in the address: ?{'last_event_id' if name != 'Device' else 'device'}=")
                elif response.status in (400, 403):
                    yield ok("headers", f"{name} arrives")

    def _feed(self, headers: dict[str, str]) -> Any:
        @asynccontextmanager
        async def opened() -> AsyncIterator[aiohttp.ClientResponse]:
            try:
                async with asyncio.timeout(FIRST_WORDS):
                    response = await self._http.get(f"{self._base}/feed/{self._channel}", headers={"Accept": "text/event-stream"} | headers, allow_redirects=False)
            except TimeoutError:
                raise _Astray(wrong("buffering", f"a feed does not even begin within {FIRST_WORDS:g} s: somebody on the way waits for its end", NGINX_BUFFERS)) from None
            try:
                yield response
            finally:
                response.close()

        return opened()

    async def _refused(self, response: aiohttp.ClientResponse) -> Finding | None:
        if response.status != 200:
            async with asyncio.timeout(PATIENCE):
                told = _json(await response.content.read(LONGEST))
            code, message = told.get("error", f"http_{response.status}"), told.get("message", response.reason)
            if code == "no_token":
                return wrong("headers", "Authorization does not arrive: the token is stripped on the way", "let the proxy pass it on (nginx does, unless `proxy_set_header Authorization \"\"` says otherwise)") if self._has_token \
                    else wrong("tokens", "the server asks for a token", "--token, or PERE_TOKEN, with one that may listen to --channel")
            return wrong("tokens" if response.status in (401, 403) else "way", f"no feed is opened: {code}: {message}", "use a token that may listen to --channel (`pere token inspect` says what is in it)"
                         if response.status in (401, 403) else "mend what it says")
        kind = response.headers.get("Content-Type", "nothing")
        return None if kind.startswith("text/event-stream") else wrong("way", f"a feed comes as {kind} and not as text/event-stream: somebody on the way answers it or changes it", "let the proxy pass feeds on as they are")

    async def _flow(self, response: aiohttp.ClientResponse) -> AsyncIterator[Finding]:
        """Whether what is written there is read here, at once, and for as long as nothing is said."""
        coding = response.headers.get("Content-Encoding", "identity")
        if coding != "identity":
            yield wrong("buffering", f"feeds are compressed on the way ({coding}), and who compresses also holds back", "no compression for text/event-stream (nginx: leave it out of gzip_types)")
        started, parts, seen = time.monotonic(), response.content.iter_any(), b""
        try:
            async with asyncio.timeout(FIRST_WORDS):
                while b"pere.hello" not in seen:
                    seen += await anext(parts)
        except TimeoutError:
            raise _Astray(wrong("buffering", f"the first words of a feed do not arrive within {FIRST_WORDS:g} s: somebody on the way holds them back", NGINX_BUFFERS)) from None
        except StopAsyncIteration:
            raise _Astray(wrong("way", "a feed ends before it has said anything", "look at the log of the proxy, and of the server")) from None
        except ERRORS as error:
            raise _Astray(wrong("way", f"a feed breaks off before it has said anything: {str(error) or type(error).__name__}", "look at the log of the proxy, and of the server")) from None
        yield ok("buffering", f"the first words of a feed arrive after {1000 * (time.monotonic() - started):.0f} ms")
        yield await self._silence(parts, _heartbeat(seen))

    async def _silence(self, parts: AsyncIterator[bytes], heartbeat: float | None) -> Finding:
        began = time.monotonic()
        seen = b""
        try:
            async with asyncio.timeout(self._watch):
                async for part in parts:
                    seen += part
                    if b"pere.bye" in seen:
                        return advice("timeouts", "the server ended the feed (pere.bye)", "try again; its log says why")
                    if any(line.startswith(b":") for line in seen.split(b"\n")[:-1]):
                        return ok("timeouts", f"a heartbeat arrives after {time.monotonic() - began:.1f} s of silence")
        except TimeoutError:
            if heartbeat is not None and heartbeat < self._watch:
                return wrong("timeouts", f"the server sends a heartbeat every {heartbeat:g} s, and none arrives in {self._watch:g} s: somebody on the way holds them back", NGINX_BUFFERS)
            return advice("timeouts", f"nothing arrived in {self._watch:g} s of silence, and --heartbeat is {'longer' if heartbeat is None else f'{heartbeat:g} s'}", "look for longer than --heartbeat (--watch)")
        except ERRORS:
            pass
        return wrong("timeouts", f"a feed is cut off after {time.monotonic() - began:.1f} s of silence, before a heartbeat came", TIMEOUTS)


class _Astray(Exception):
    """There is no use in looking any further."""

    def __init__(self, finding: Finding):
        super().__init__(finding.what)
        self.finding = finding


def _heartbeat(seen: bytes) -> float | None:
    """What the server said of it in its greeting; None if it did not."""
    found = HEARTBEAT.search(seen)
    return float(found[1]) if found is not None else None


def _clock(date: float, before: float, after: float) -> Finding:
    """Somebody's Date, whose second began up to a second before, against the time here when it was asked for."""
    ahead = date - after if date > after else min(0.0, date + HOP - before)
    if abs(ahead) < ASTRAY:
        return ok("clock", "that of the server and this one agree")
    what = f"that of the server is {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} this one"
    return (wrong if abs(ahead) > FAR_ASTRAY else advice)("clock", what, "set both right (NTP): tokens hold by the one, and receipts with `at` and tokens that are minted here go by the other")


def _date(response: aiohttp.ClientResponse) -> float | None:
    try:
        return parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return None


def _json(body: bytes) -> dict[str, Any]:
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return told if isinstance(told, dict) else {}
