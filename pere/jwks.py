"""The keys that come and go: a JWKS document on somebody's server (RFC 7517), fetched beside all else.

It is fetched at the start, every ten minutes, and when a token names a key that is not in it, but not more often than every ten seconds:
who invents names of keys must not have us ask for each of them. If that server is away, the keys that it told last go on being good.
"""

import asyncio
import logging
from collections.abc import Callable
from urllib.parse import urlsplit

import orjson
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from pere import __version__
from pere.config import is_loopback, without_password
from pere.errors import ConfigError, Unavailable
from pere.keys import Key, of_jwks

log = logging.getLogger("pere.keys")

REFRESH = 600.0  # seconds until it is fetched anew without a reason: by then a key that was withdrawn is gone
COOLDOWN = 10.0  # seconds between two fetches
PATIENCE = 5.0  # seconds for an answer: requests wait for it
MAX_BYTES = 256 * 1024


class Jwks:
    """One document. `take` is handed the keys in it whenever they were fetched."""

    def __init__(self, url: str, take: Callable[[list[Key]], None], *, cooldown: float = COOLDOWN):
        check_url(url)
        self.cooldown = cooldown
        self._url = url
        self._take = take
        self._has_keys = False
        self._is_away = False
        self._waiting: list[Callable[[], None]] = []
        self._task: asyncio.Task[None] | None = None
        self._earliest = 0.0
        self._client = SimpleAsyncHTTPClient(force_instance=True, max_body_size=MAX_BYTES)

    def fetch(self, then: Callable[[], None]) -> bool:
        """Fetch it and call back, whatever came of it; False if that was tried just now. Raises Unavailable if it never came to anything."""
        if self._task is None:
            wait = self._earliest - asyncio.get_running_loop().time()
            if wait > 0:
                if not self._has_keys:
                    raise Unavailable("keys_unavailable", "the keys that tokens are verified with could not be fetched yet", retry_after=max(1, round(wait)))
                return False
            self._begin()
        self._waiting.append(then)
        return True

    def due(self, now: float) -> float:
        """Its turn on the wheel has come."""
        if self._task is None:
            self._begin()
        return self.cooldown if self._is_away else REFRESH

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._earliest = loop.time() + self.cooldown
        self._task = loop.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            answer = asyncio.ensure_future(self._client.fetch(
                self._url, connect_timeout=PATIENCE, request_timeout=PATIENCE, follow_redirects=False, decompress_response=False,
                user_agent=f"pere/{__version__}", headers={"Accept": "application/jwk-set+json, application/json"}))
            # Tornado's client cannot be cancelled: it would log what its answer has come to then.
            answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())
            response = await asyncio.shield(answer)
            self._take(of_jwks(orjson.loads(response.body)))
            self._has_keys, self._is_away = True, False
        except Exception as error:  # whatever is wrong over there is no reason to end here
            # Once, and then again when it was there in between.
            if not self._is_away:
                log.warning("the keys of --jwt-jwks cannot be fetched", extra={"facts": {"error": type(error).__name__, "message": str(error)[:200]}})
            self._is_away = True
        finally:
            self._task = None
            waiting, self._waiting = self._waiting, []
            for then in waiting:
                then()

    async def stop(self) -> None:
        """Fetch no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._client.close()


def check_url(url: str) -> None:
    """Raises ConfigError for an address from which no keys can be had safely: who can change them on the way can mint tokens."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise ConfigError(f"--jwt-jwks is a URL such as https://login.example/.well-known/jwks.json, not {without_password(url)!r}")
    if parts.scheme == "http" and not is_loopback(host):
        raise ConfigError("--jwt-jwks is https, unless it is on loopback: who could change the keys on the way could mint tokens")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("--jwt-jwks has no user in it")
