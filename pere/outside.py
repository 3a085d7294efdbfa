"""Which addresses a webhook may go to: those outside. Whoever registers one must not make us knock at doors that only we can reach.

(Server-side request forgery: OWASP API7:2023, and the section of that name in Standard Webhooks.) There are two fences:

  - `Outside.target` reads a URL, strictly, so that no two readers can take it for different things. What libc would still take
    for an address (`2130706433`, `0x7f.1`, `0177.0.0.1`) is refused, not interpreted.
  - `OutsideResolver` judges what a name resolves to at the moment of connecting, and it is those very addresses that are
    connected to. A name server that gives us one answer to check and another one to connect to has gained nothing.

Public is what the registries of IANA call so, less what is said below: `ipaddress.is_global` alone passes, on Python 3.11,
multicast, NAT64, 6to4 and more. What no registry knows is not seen here, such as a NAT64 prefix of one's own network.
"""

import asyncio
import ipaddress
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from tornado.netutil import Resolver

from pere.config import Network
from pere.errors import BadRequest
from pere.names import shown

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# What browsers and proxies manage; longer ones are somebody's payload.
MAX_URL = 2048

INSIDE: dict[Network, str] = {ipaddress.ip_network(network): name for network, name in {
    # IANA IPv4 Special-Purpose Address Registry
    "0.0.0.0/8": "this network (RFC 1122)",
    "10.0.0.0/8": "private (RFC 1918)",
    "100.64.0.0/10": "shared behind a carrier's NAT (RFC 6598)",
    "127.0.0.0/8": "loopback (RFC 1122)",
    "169.254.0.0/16": "link-local, where clouds keep their metadata (RFC 3927)",
    "172.16.0.0/12": "private (RFC 1918)",
    "192.0.0.0/24": "protocol assignments (RFC 6890)",
    "192.0.2.0/24": "documentation (RFC 5737)",
    "192.88.99.0/24": "6to4 relays (RFC 7526)",
    "192.168.0.0/16": "private (RFC 1918)",
    "198.18.0.0/15": "benchmarks (RFC 2544)",
    "198.51.100.0/24": "documentation (RFC 5737)",
    "203.0.113.0/24": "documentation (RFC 5737)",
    "224.0.0.0/4": "multicast (RFC 5771)",
    "240.0.0.0/4": "reserved, and broadcast (RFC 1112)",
    # In no registry: public by its number, and in every Azure network the platform itself.
    "168.63.129.16/32": "Azure's platform (learn.microsoft.com, `What is IP address 168.63.129.16?`)",
    # IANA IPv6 Special-Purpose Address Registry. Most specific first: the first that fits gives the reason.
    "::/128": "unspecified (RFC 4291)",
    "::1/128": "loopback (RFC 4291)",
    "::/96": "IPv4-compatible (RFC 4291, 2.5.5.1)",
    "::ffff:0:0:0/96": "IPv4-translated (RFC 2765)",
    "64:ff9b::/96": "NAT64 (RFC 6052)",
    "64:ff9b:1::/48": "NAT64 of a local network (RFC 8215)",
    "100::/64": "discard (RFC 6666)",
    "2001::/32": "Teredo (RFC 4380)",
    "2001:2::/48": "benchmarks (RFC 5180)",
    "2001::/23": "protocol assignments (RFC 2928)",
    "2001:db8::/32": "documentation (RFC 3849)",
    "2002::/16": "6to4 (RFC 3056)",
    "3ffe::/16": "the 6bone, given back (RFC 3701)",
    "3fff::/20": "documentation (RFC 9637)",
    "5f00::/16": "segment routing (RFC 9602)",
    "fc00::/7": "unique local (RFC 4193)",
    "fe80::/10": "link-local (RFC 4291)",
    "fec0::/10": "site-local (RFC 3879)",
    "ff00::/8": "multicast (RFC 4291)",
}.items()}

# IANA IPv6 Global Unicast: nothing outside of it has ever been given to anybody.
UNICAST = ipaddress.ip_network("2000::/3")

# RFC 3986, 3.2.2 less what has no business here: a host of ASCII letters, or an IPv6 address in brackets; then perhaps a port.
_URL = re.compile(r"(https?)://([^/?#]*)([/?]?[^#]*)", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*")
# WHATWG URL, 3.5: a host whose last label is a number is an IPv4 address, or an attempt at one.
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
# Printable ASCII less what RFC 3986 nowhere allows; browsers would take a backslash for a slash.
_FOREIGN = re.compile(r'[^!#-;=?-\[\]_a-z~]')


class NotPublic(OSError):
    """A name with no public address; the sentence says which it has."""


class Target(NamedTuple):
    """Where a URL leads: `host` as it is resolved (an IPv6 address without brackets), `path` with its query, as it is sent."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """What stands in the Host header (RFC 9110, 7.2): the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Outside:
    """Where webhooks may go. `allowed` are networks that count as outside whatever is said above; `http` lets http:// do as well."""

    allowed: tuple[Network, ...] = ()
    http: bool = False

    def why_not(self, address: Address) -> str | None:
        """What an address belongs to that nobody may have us connect to; None if it is public, or allowed."""
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            # ::ffff:0:0/96 goes out as IPv4 (RFC 4291, 2.5.5.2), so it is that which is judged.
            address = address.ipv4_mapped
        if any(address in network for network in self.allowed):
            return None
        for network, name in INSIDE.items():
            if address in network:
                return name
        if address.version == 6 and address not in UNICAST:
            return "not assigned (RFC 4291)"
        # What a newer Python knows that this file does not.
        return None if address.is_global and not address.is_multicast else "not global (IANA)"

    def target(self, url: str) -> Target:
        """Where the URL leads. Raises BadRequest if it cannot be the URL of a webhook, whatever its name may resolve to."""
        if len(url) > MAX_URL:
            raise BadRequest("bad_webhook_url", f"a webhook's URL has at most {MAX_URL} characters, not {len(url)}")
        if foreign := _FOREIGN.search(url):
            raise BadRequest("bad_webhook_url", f"{shown(foreign[0])} cannot stand in a URL: a host is written in its xn-- form, and all else percent-encoded")
        parts = _URL.fullmatch(url)
        if parts is None:
            wanted = "like https://example.com/hook" + (", without a fragment" if "#" in url else "")
            raise BadRequest("bad_webhook_url", f"a webhook's URL is {wanted}, not {shown(url)}")
        scheme, authority, path = parts[1].lower(), parts[2].lower(), parts[3]
        if scheme != "https" and not self.http:
            raise BadRequest("insecure_webhook_url", "a webhook's URL begins with https://; this server does not allow http:// (--webhook-allow-http)")
        if "@" in authority:
            # Not shown: it may be a password.
            raise BadRequest("bad_webhook_url", "a webhook's URL carries no user or password; the signature says who sends")
        found = _AUTHORITY.fullmatch(authority)
        if found is None or (found[2] is not None and not 0 < int(found[2]) < 65_536):
            raise BadRequest("bad_webhook_url", f"a host is a name or an address, and perhaps a port from 1 to 65535, not {shown(parts[2])}")
        host = self._host(found[1])
        return Target(scheme, host, int(found[2] or _PORTS[scheme]), path if path.startswith("/") else f"/{path}")

    def _host(self, text: str) -> str:
        address: Address
        if text.startswith("["):
            try:
                # No zone (RFC 6874): which of our interfaces is used is not for others to say.
                address = ipaddress.IPv6Address(text[1:-1] if "%" not in text else "")
            except ValueError:
                raise BadRequest("bad_webhook_url", f"an address in brackets is IPv6 without a zone, not {shown(text)}") from None
        elif _NUMBER.fullmatch(text.rstrip(".")):
            try:
                address = ipaddress.IPv4Address(text)
            except ValueError:
                raise BadRequest("bad_webhook_url", f"an IPv4 address is written as four decimal numbers, not {shown(text)}") from None
        elif _NAME.fullmatch(text):
            return text
        else:
            raise BadRequest("bad_webhook_url", f"a host is labels of a-z 0-9 - _ with single dots between them, not {shown(text)}")
        if reason := self.why_not(address):
            raise BadRequest("inside_address", f"a webhook goes to a public address, and {address} is not: {reason}; --webhook-allow-networks makes exceptions")
        return str(address)


Found = list[tuple[int, Any]]
Lookup = Callable[[str, int, int], Found]


class OutsideResolver(Resolver):
    """Resolves names for Tornado's clients (`TCPClient`, `SimpleAsyncHTTPClient`) to the addresses that are outside, and to no others.

    Each name under way has a thread of its own, which all who ask for it share: a name server that never answers delays those
    who asked for its names, and nobody else, as it would in the few threads of a loop. Raises NotPublic where no address is
    outside, and another OSError where there is none at all.
    """

    def initialize(self, outside: Outside, lookup: Lookup | None = None) -> None:
        self._outside = outside
        self._lookup = lookup or system_lookup
        self._under_way: dict[tuple[str, int, int], asyncio.Future[Found]] = {}

    async def resolve(self, host: str, port: int, family: int = socket.AF_UNSPEC) -> Found:
        if (literal := _literal(host, port)) is not None:
            return self._admitted(host, [literal])
        asked = (host, port, family)
        under_way = self._under_way.get(asked)
        if under_way is None:
            under_way = self._under_way[asked] = self._begin(*asked)
            under_way.add_done_callback(lambda _: self._under_way.pop(asked))
        # One who gives up must not take the answer away from the others.
        return self._admitted(host, await asyncio.shield(under_way))

    def _admitted(self, host: str, found: Found) -> Found:
        admitted, refused = [], []
        for each in found:
            address = ipaddress.ip_address(each[1][0])
            reason = self._outside.why_not(address)
            if reason is None:
                admitted.append(each)
            else:
                refused.append(f"{address} ({reason})")
        if not admitted:
            raise NotPublic(f"{shown(host)} has no public address: {', '.join(dict.fromkeys(refused)) or 'none at all'}")
        return admitted

    def _begin(self, host: str, port: int, family: int) -> asyncio.Future[Found]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Found] = loop.create_future()
        # Nobody may be left to hear of a failure.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

        def settle(found: Found | None, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(found or [])

        def look_up() -> None:
            found, error = None, None
            try:
                found = self._lookup(host, port, family)
            except OSError as failure:
                error = failure
            except Exception as failure:
                # A name that is none: too long for the IDNA codec, or with a NUL in it.
                error = socket.gaierror(socket.EAI_NONAME, f"{shown(host)} is no name: {failure}")
            # The loop may have ended meanwhile.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, found, error)

        # A daemon, for nothing ends a getaddrinfo that is under way, and the process must not wait for it.
        threading.Thread(target=look_up, name="pere-resolve", daemon=True).start()
        return future


def _literal(host: str, port: int) -> tuple[int, Any] | None:
    """An address that needs no looking up, if it is one."""
    try:
        address = ipaddress.ip_address(host) if "%" not in host else None
    except ValueError:
        return None
    if address is None:
        return None
    return (socket.AF_INET, (host, port)) if address.version == 4 else (socket.AF_INET6, (host, port, 0, 0))


def system_lookup(host: str, port: int, family: int) -> Found:
    """What the operating system makes of a host: names by its resolver, and addresses in all the ways that libc can read them."""
    return [(each[0], each[4]) for each in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)]
