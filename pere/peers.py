"""Who a client is: the address at the other end of its socket or, where a proxy of ours is there, the one that the proxy vouches for.

Each proxy adds to X-Forwarded-For, at the right, the address that it saw. So the words are read from there, and each is as good as the
proxy that said it: the first address that is no trusted proxy is the client, and all that stands left of it is only what the client
says of itself.
"""

import ipaddress
from collections.abc import Callable

from pere.heads import Fields
from pere.remembered import remembered

UNIX = "unix:"  # who comes by a Unix socket
NOBODY: frozenset[str] = frozenset()
MAX_HOPS = 20  # addresses that are read: no chain of proxies is longer


def of_socket(name: object) -> str:
    """The address in what a socket calls its peer."""
    if not isinstance(name, tuple):
        return UNIX
    text: str = name[0]
    return text if "." in text and ":" not in text else _address(text) or text


class Proxies:
    """Those that are believed: whoever is in these networks, and with `unix` whoever comes by a Unix socket."""

    def __init__(self, networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...], unix: bool = False):
        self._networks = networks
        self._unix = unix
        self._are_there = unix or bool(networks)
        self.trusts: Callable[[str], bool] = remembered(1024)(self._is_trusted) if self._are_there else NOBODY.__contains__

    def peer(self, address: str, fields: Fields) -> str:
        """The client behind the socket's `address`. Where a word is no address, it is the proxy that said so."""
        if not self._are_there or not self.trusts(address):
            return address
        rest = b",".join([value for name, value in fields if name == b"x-forwarded-for"])
        for _ in range(MAX_HOPS):
            rest, _, word = rest.rpartition(b",")
            hop = _address(word.strip().decode("latin-1"))
            if hop is None:
                break
            address = hop
            if not self.trusts(address):
                break
        return address

    def scheme(self, address: str, fields: Fields, own: str) -> str:
        """`https` or `http`: what the client speaks, who may speak to a proxy that speaks `own` to us."""
        if self._are_there and self.trusts(address):
            said = [value for name, value in fields if name == b"x-forwarded-proto"]
            # Of a list, the last word: the one that the nearest proxy is responsible for.
            word = said[-1].rpartition(b",")[2].strip().lower() if said else b""
            if word in (b"http", b"https"):
                return word.decode()
        return own

    def _is_trusted(self, address: str) -> bool:
        if address == UNIX:
            return self._unix
        found = ipaddress.ip_address(address)
        return any(found in network for network in self._networks)


@remembered(4096)
def _address(word: str) -> str | None:
    """An address as everybody writes it, without a port; None if it is none. What is IPv4 in IPv6 is IPv4 (RFC 4291, 2.5.5.2)."""
    if len(word) > 64:
        return None
    if word.startswith("["):
        word, closed, port = word[1:].partition("]")
        if not closed or port[:1] not in ("", ":"):
            return None
        port = port[1:]
    elif word.count(":") == 1:
        word, _, port = word.partition(":")
    else:
        port = ""
    if port and not (port.isascii() and port.isdigit()):
        return None
    try:
        found = ipaddress.ip_address(word.partition("%")[0])
    except ValueError:
        return None
    return str(getattr(found, "ipv4_mapped", None) or found)
