"""Whether a request may come in, before anybody looks at what it wants: who asks, and whether it is they who ask.

With keys, who asks has a token: in the Authorization header, in `?access_token=` (an EventSource can set no header) or in the cookie
`pere_token`. Without keys nobody needs one. In both cases a browser may ask for a page of a stranger: with a cookie that it adds by
itself, or because it stands on the machine for which a server without keys is there. Such a request is refused.

What a token allows is its Grant's business, which is asked here for hot requests and in `handlers/base.py` for all others.
"""

import ipaddress
import re
from collections.abc import Callable
from functools import partial
from urllib.parse import unquote_to_bytes

from pere.auth import ANYBODY, OPEN, NoToken, UnknownKey, Verifier
from pere.config import Config, words
from pere.door import Ask
from pere.errors import BadRequest, Forbidden, Refusal
from pere.peers import UNIX
from pere.remembered import remembered

QUERY = re.compile(rb"(?:^|&)access_token=([^&]*)")
COOKIE = b"pere_token"
SPACE = ord(" ")  # as a number, for which bytes are searched ten times faster
SAFE = frozenset((b"GET", b"HEAD", b"OPTIONS"))  # RFC 9110, 9.2.1


class Guard:
    """The guard of a door, which is `look_at`. `verifier` is None where there are no keys. `channel_of` reads the channel out of a path. `fetch` has the keys
    fetched that come and go, and then calls back; it says no where that was done just now. `waking` tells what calls back when the
    store has read what other nodes have said, tokens that they took back included; None where that is at hand. Raises Refusal for what may not come in."""

    def __init__(self, config: Config, verifier: Verifier | None, clock: Callable[[], float], channel_of: Callable[[bytes], str],
                 fetch: Callable[[Callable[[], None]], bool], waking: Callable[[], Callable[[Callable[[], None]], None] | None]):
        self._verifier = verifier
        self._clock = clock
        self._channel_of = channel_of
        self._fetch = fetch
        self._waking = waking
        self._origins = frozenset(origin.encode() for origin in config.origins)
        self._names = words(config.host_names)
        self._is_ours = remembered(1024)(self._names_us) if config.is_open_to_this_machine else lambda host: True

    def renew(self, config: Config) -> Callable[[], None]:
        """The origins whose pages may ask, as these settings have it (see `reloading.py`)."""
        def renewed() -> None:
            self._origins = frozenset(origin.encode() for origin in config.origins)

        return renewed

    def look_at(self, ask: Ask) -> None:
        """Whether it may come in: as a guard says so (see `Door`)."""
        verifier = self._verifier
        if verifier is not None:
            wait = self._waking()
            if wait is None or not tokens(ask):
                self._ask_for_token(ask, verifier)
            else:
                wait(partial(self._ask_again, ask, verifier, False))
            return
        # No page comes by a Unix socket.
        if not self._is_ours(ask.headers.get(b"host", b"")) and ask.connection.address != UNIX:
            raise Forbidden("foreign_host", "without keys this server answers to localhost, to addresses and to --host-names, and to no other Host")
        # An anonymous feed changes nothing; whoever names a device has it registered, and sent what it owes.
        if ask.method not in SAFE or ask.route.hot is not None and (ask.query or b"device" in ask.headers):
            self._check_page(ask, b"*" in self._origins)
        ask.grant = OPEN
        ask.connection.let_in(ask)

    def look_again(self, ask: Ask) -> None:
        """Whether a request that was let in would be now: what it asks for has taken its time, and its token may have ended meanwhile."""
        if self._verifier is not None:
            self._verifier.grant(self._token(ask), self._clock())

    def _ask_for_token(self, ask: Ask, verifier: Verifier, is_second_time: bool = False) -> None:
        try:
            ask.grant = grant = verifier.grant(self._token(ask), self._clock())
        except UnknownKey as unknown:
            if not is_second_time and self._fetch(partial(self._ask_again, ask, verifier, True)):
                return
            ask.refusal = unknown
        except Refusal as refusal:
            ask.refusal = refusal
        else:
            route = ask.route
            if route.hot is not None:
                grant.check(route.needs, self._channel_of(ask.path) if route.has_channel else None)
            ask.connection.let_in(ask)
            return
        if ask.route.needs is ANYBODY:
            ask.refusal = None
        ask.connection.let_in(ask)

    def _ask_again(self, ask: Ask, verifier: Verifier, is_second_time: bool) -> None:
        try:
            self._ask_for_token(ask, verifier, is_second_time)
        except Refusal as refusal:
            ask.refuse(refusal)

    def _token(self, ask: Ask) -> bytes:
        """The one token that a request has."""
        headers = ask.headers
        if b"cookie" in headers or ask.query and b"access_token=" in ask.query:
            return self._one_of(ask, tokens(ask))
        token = bearer_of(headers)
        if token is None:
            raise NoToken
        return token

    def _one_of(self, ask: Ask, given: dict[bytes, bool]) -> bytes:
        if not given:
            raise NoToken
        if len(given) > 1:
            # RFC 6750, 2: no more than one method in a request.
            raise BadRequest("two_tokens", "there are several tokens (Authorization, ?access_token=, cookie pere_token), and they are not the same")
        (token, is_by_cookie), = given.items()
        if is_by_cookie and (ask.method not in SAFE or ask.route.hot is not None):
            # `*` is who may read, and nobody in particular: that is not enough to speak for whoever has the cookie.
            self._check_page(ask, False)
        return token

    def _check_page(self, ask: Ask, is_any: bool) -> None:
        """Refuse what a page of somebody else has the browser ask for (Fetch, 3.1; Fetch Metadata, 2.4)."""
        headers = ask.headers
        origin = headers.get(b"origin")
        if is_any or origin in self._origins:
            return
        if origin is None:
            # Such as an image of a page, which is asked for without an Origin. What is no browser says neither.
            is_foreign = headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin")
        else:
            # The scheme is not compared: a proxy before us may speak https where we do not.
            is_foreign = origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower()
        if is_foreign:
            raise Forbidden("foreign_origin", "a page of another origin may not do that unless --cors-origins names it")

    def _names_us(self, host: bytes) -> bool:
        """Whether this Host may stand for a server of this machine alone. A stranger can bind a name to 127.0.0.1 after the browser has
        loaded a page from it ("DNS rebinding"), and the page then counts as ours; but only a name that the DNS knows, which has a dot."""
        name = host.decode("latin-1").lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if "." not in name and ":" not in name or name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def tokens(ask: Ask) -> dict[bytes, bool]:
    """The different tokens of a request, each with whether only a cookie has it."""
    headers, found = ask.headers, {}
    if b"cookie" in headers:
        for name, value in ask.fields:
            if name == b"cookie":
                for pair in value.split(b";"):
                    key, _, token = pair.strip().partition(b"=")
                    if key == COOKIE:
                        found[token.strip(b'"')] = True
    if ask.query and b"access_token=" in ask.query:
        for token in QUERY.findall(ask.query):
            found[unquote_to_bytes(token)] = False
    if (bearer := bearer_of(headers)) is not None:
        found[bearer] = False
    return found


def bearer_of(headers: dict[bytes, bytes]) -> bytes | None:
    """The token in the Authorization header, if there is one."""
    scheme, _, rest = headers.get(b"authorization", b"").partition(b" ")
    token = rest.lstrip(b" ")
    if not token or SPACE in token or scheme.lower() != b"bearer":  # RFC 9110, 11.1: the scheme may be written as one likes
        return None
    return token
