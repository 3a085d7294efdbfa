"""One server, asked over HTTP. A refusal arrives as a Refusal, with the code and message that the server gave it; a server that cannot
be reached, or breaks off, is a ConnectionError; and what somebody else answered in its place (a proxy, a captive portal) is a Stranger.

It is aiohttp that speaks here. Measured with 500 devices in one process against a real server, an event and its receipt cost a device 0.27 ms
of processor with aiohttp 3.14 and 1.3 ms with httpx 0.28; an open feed 23 and 41 KiB, with a second connection for its receipts 45 and 97 KiB.
"""

import asyncio
import inspect
import os
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlencode
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from yarl import URL

from pere.errors import BadRequest, Refusal, Stranger

UNIX = "unix:"
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
Token = str | Callable[[], str | Awaitable[str]]

# A refusal has some hundred bytes; what is longer is not PERE's.
LONGEST_PAGE = 64 * 1024

# Seconds for a TLS handshake that only asks whether there is one.
SHAKING = 3.0

# Connections of one client on which something is asked, a receipt given or an answer waited for.
MOST_ASKING = 100

# Answers that say "not now" rather than "not so".
PASSING = (408, 429, 500, 502, 503, 504)


class Answer:
    """What the server said: `told` is its JSON, an empty object where there is none."""

    __slots__ = ("etag", "status", "told")

    def __init__(self, status: int, told: dict[str, Any], etag: str):
        self.status = status
        self.told = told
        self.etag = etag


class Kind:
    """Connections of one kind, at most `most` of them; 0 is no limit. One that is idle is given up long before the server does. They are made when first
    wanted, since aiohttp wants the loop to run by then."""

    def __init__(self, path: str | None, most: int):
        self._path = path
        self._most = most
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    def session(self) -> aiohttp.ClientSession:
        if self._is_closed:
            raise RuntimeError("this client is closed")
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._most) if self._path is None else aiohttp.UnixConnector(self._path, limit=self._most)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._session

    async def close(self) -> None:
        self._is_closed = True
        if self._session is not None:
            await self._session.close()


class Http:
    """All requests to the server at `url`. Raises ValueError if that is none, or the token cannot be one."""

    def __init__(self, url: str, token: Token | None, timeout: float):
        path = url.removeprefix(UNIX) if url.startswith(UNIX) else None
        try:
            parsed = URL("http://localhost" if path is not None else url)
            host = parsed.host
        except ValueError as error:
            raise ValueError(f"a server's URL is like http://127.0.0.1:4567, not {url!r} ({error})") from None
        if parsed.scheme not in ("http", "https") or not host:
            raise ValueError(f"a server's URL is like http://127.0.0.1:4567, not {url!r}")
        self.url = url.rstrip("/")
        self.timeout = timeout
        self._base = "http://localhost" if path is not None else self.url
        self._path = path
        self._ssl = trusted(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")) if parsed.scheme == "https" else None
        # Looked up once: aiohttp would read the environment and .netrc for each request.
        proxies = getproxies()
        self._proxy = None if path is not None or proxy_bypass(host) else proxies.get(parsed.scheme) or proxies.get("all")
        self._give = token if callable(token) else None
        self._token = checked(token) if isinstance(token, str) else None
        self._renewal = asyncio.Lock()
        # A feed holds its connection for good, so there is no limit on them; what is asked takes turns, however many devices ask.
        self._feeding, self._asking = Kind(path, 0), Kind(path, MOST_ASKING)

    async def close(self) -> None:
        await self._feeding.close()
        await self._asking.close()

    async def ask(self, method: str, path: str, query: Mapping[str, Any] | None = None, body: bytes | None = None,
                  headers: Mapping[str, str] | None = None, patience: float = 0.0) -> Answer:
        """One request, and its answer if that is a 2xx or a 304. `patience` is how many seconds longer than usual the answer may take."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.timeout, sock_read=self.timeout + patience)
        async with self._request(self._asking, method, path, query, body, headers or {}, timeout) as response:
            with self._reaching():
                content = await response.read()
        if response.status == 304:
            return Answer(304, {}, response.headers.get("ETag", ""))
        if not 200 <= response.status < 300:
            raise refusal(response, content)
        if response.status == 204:
            return Answer(204, {}, "")
        try:
            told = orjson.loads(content)
            if not isinstance(told, dict):
                raise ValueError
        except ValueError:
            raise refusal(response, content) from None
        return Answer(response.status, told, response.headers.get("ETag", ""))

    @asynccontextmanager
    async def feed(self, path: str, query: Mapping[str, Any], headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """A feed that is open, or the 204 that stands for none. Whoever reads it looks after its silence."""
        # A proxy that compresses a feed also buffers it.
        asked = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-store", **headers}
        timeout = aiohttp.ClientTimeout(total=None, connect=self.timeout, sock_read=None)
        async with self._request(self._feeding, "GET", path, query, None, asked, timeout, self.timeout) as response:
            is_feed = response.status == 200 and response.content_type == "text/event-stream"
            if not is_feed and response.status != 204:
                raise refusal(response, await self._page(response))
            yield response

    async def _page(self, response: aiohttp.ClientResponse) -> bytes:
        """What stands in place of a feed. A stranger may send anything for as long as he likes, so it is read so far."""
        content = b""
        with self._reaching():
            async with asyncio.timeout(self.timeout):
                while len(content) < LONGEST_PAGE and (piece := await response.content.readany()):
                    content += piece
        return content

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """The next bytes of a feed, however long they take; none at its end."""
        with self._reaching():
            return await response.content.readany()

    @asynccontextmanager
    async def _request(self, kind: "Kind", method: str, path: str, query: Mapping[str, Any] | None, body: bytes | None, headers: Mapping[str, str],
                       timeout: aiohttp.ClientTimeout, patience: float | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
        url = URL(self._base + path + _query(query), encoded=True)
        token = await self._token_after(None)
        is_fresh = self._give is None
        while True:
            with self._reaching():
                async with asyncio.timeout(patience):
                    response = await kind.session().request(
                        method, url, data=body, headers=headers if token is None else {**headers, "Authorization": f"Bearer {token}"},
                        timeout=timeout, allow_redirects=False, proxy=self._proxy, ssl=self._ssl if self._ssl is not None else True)
            try:
                if response.status == 401 and not is_fresh:
                    # It has expired, most likely. If there is no other, or that is refused too, the server's word is final.
                    is_fresh = True
                    newer = await self._token_after(token)
                    if newer != token:
                        token = newer
                        continue
                yield response
                return
            finally:
                # What was read to its end has given its connection back; what was not cannot be used again.
                response.close()

    def expire(self) -> None:
        """The token is good no more: whoever gives them is asked for a new one."""
        if self._give is not None:
            self._token = None

    async def _token_after(self, refused: str | None) -> str | None:
        """The token, another one than was refused if there is one. Raises ConnectionError where whoever gives it cannot be reached."""
        if self._give is None or self._token is not None and self._token != refused:
            return self._token
        async with self._renewal:
            if self._token is None or self._token == refused:
                try:
                    given = self._give()
                    self._token = checked(await given if inspect.isawaitable(given) else given or "")
                except OSError as error:
                    raise ConnectionError(f"there is no token: {error}") from error
            return self._token

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise ConnectionError(f"{self.url} was silent for too long") from None
        except aiohttp.ClientConnectorError as error:
            raise ConnectionError(f"{self.url} cannot be reached: {reason(error.os_error)}") from None
        except aiohttp.ClientConnectionError as error:
            raise ConnectionError(f"{self.url} broke off: {error}") from None
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
            # Half an answer, or one that is not HTTP.
            raise ConnectionError(f"{self.url} broke off: {error}") from None
        except ValueError as error:
            # Nobody was asked: it cannot be sent at all, now or later.
            raise BadRequest("bad_header", f"this cannot stand in a header: {error}") from None


@lru_cache
def trusted(file: str | None, folder: str | None) -> ssl.SSLContext:
    """Whom to believe about servers: those whom this machine believes, or those in SSL_CERT_FILE and SSL_CERT_DIR, which OpenSSL reads by itself.
    It takes half a megabyte and 25 ms, so all clients share it."""
    return ssl.create_default_context()


async def speaks_tls(url: str) -> bool:
    """Whether somebody speaks TLS at the host and port of this URL, whoever it is: nothing is said there, so nobody need be trusted."""
    parsed, context = URL(url), ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(SHAKING):
            _, writer = await asyncio.open_connection(parsed.host, parsed.port, ssl=context)
    except OSError:
        return False
    writer.close()
    return True


def checked(token: str) -> str:
    """The token itself; raises ValueError if it cannot stand in a header. It is not shown."""
    if not TOKEN.fullmatch(token):
        raise ValueError("a token is letters, digits and - . _ ~ + / = without spaces (RFC 6750, 2.1)")
    return token


def is_final(error: Exception) -> bool:
    """Whether trying again would get the same answer. A Stranger may be gone the next time."""
    return isinstance(error, Refusal) and not isinstance(error, Stranger) and error.status not in PASSING


def refusal(response: aiohttp.ClientResponse, content: bytes) -> Refusal:
    """The server's refusal, or what stands for it where somebody answered who has never heard of PERE."""
    after = response.headers.get("Retry-After", "")
    # isdigit() alone would pass a superscript two, and int() raises for that and for thousands of digits.
    retry_after = int(after) if after.isascii() and after.isdigit() and len(after) < 10 else None
    try:
        told = orjson.loads(content)
        code, message = told["error"], told["message"]
        if response.status < 400 or not isinstance(code, str) or not isinstance(message, str):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        kind = response.headers.get("Content-Type", "no content")
        message = f"{response.url} answered {response.status} {response.reason} ({kind}), which is not PERE's answer"
        return Stranger(f"http_{response.status}", message, status=response.status, retry_after=retry_after)
    return Refusal(code, message, status=response.status, retry_after=retry_after)


def reason(error: OSError) -> str:
    """Why it cannot be reached. asyncio puts what it called, and a tuple, in the place of what the system said."""
    return os.strerror(error.errno) if error.errno and (error.strerror or "").startswith("Connect call failed") else error.strerror or str(error)


def part(text: str) -> str:
    """A name as one part of a path, whatever it holds; the server says what is wrong with it."""
    return quote(text, safe="")


def _query(query: Mapping[str, Any] | None) -> str:
    given = {name: value for name, value in (query or {}).items() if value is not None}
    return "?" + urlencode(given, doseq=True, quote_via=quote) if given else ""
