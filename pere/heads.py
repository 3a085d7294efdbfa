"""What the head of a request may say before anybody looks at what it wants.

Two readers of the same bytes must not read two requests in them (RFC 9112, 11.2), nor believe two different headers: what leaves that open is
refused here, and so is what nobody here could answer. No sockets, and no meaning of a path.
"""

import re
from collections.abc import Iterable, Mapping

from pere.errors import BadRequest, Refusal, Unsupported

Fields = Iterable[tuple[bytes, bytes]]  # the headers as they came, names in lower case

# Headers that decide something. Twice, two readers could each believe another one, so twice is refused.
SINGLE = frozenset((b"host", b"content-length", b"transfer-encoding", b"content-type", b"expect", b"authorization", b"device",
                    b"last-event-id", b"last_event_id", b"idempotency-key", b"origin", b"content-encoding"))

# RFC 3986, 3.2: a host and perhaps a port. It may hold a comma there, but here that would be two of them.
HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]{0,5})?")

# Headers that few requests have: those that change how the rest is read, and those that change the answer too.
UNUSUAL = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"content-encoding"))
MARKED = UNUSUAL | {b"origin"}


def length_of(fields: Fields) -> int:
    """The names and the values, and the colon, the space and the line end that belong to them."""
    return sum(len(name) + len(value) + 4 for name, value in fields)


def check_lengths(url: bytes, fields: Fields, max_line: int, max_headers: int) -> None:
    """Raises a Refusal (414, 431) where the line or the headers have more bytes than these."""
    if len(url) > max_line:
        raise long_line(max_line)
    if length_of(fields) > max_headers:
        raise long_headers(max_headers)


def check_repeated(fields: Fields) -> None:
    """Raises BadRequest for a header of SINGLE that stands there twice."""
    seen: set[bytes] = set()
    for name, _ in fields:
        if name in seen and name in SINGLE:
            raise BadRequest("repeated_header", f"the header {name.decode('latin-1')} can stand only once")
        seen.add(name)


def check_host(host: bytes | None, version: str) -> None:
    """RFC 9112, 3.2: a server must refuse a request without a Host, and one whose Host is none."""
    if host is None:
        if version == "1.1":
            raise BadRequest("no_host", "an HTTP/1.1 request names its Host (RFC 9112, 3.2)")
    elif not HOST.fullmatch(host):
        raise BadRequest("bad_host", "a Host is a name or an address, and perhaps a port (RFC 9110, 7.2)")


def resolved(target: bytes) -> tuple[bytes, bytes]:
    """The host and the path of a target in absolute form (RFC 9112, 3.2.2), which a server must accept."""
    scheme, _, rest = target.partition(b"://")
    host, _, path = rest.partition(b"/")
    if scheme.lower() not in (b"http", b"https") or not host:
        raise BadRequest("bad_target", "the request is for a path of this server, such as /feed/news")
    if not HOST.fullmatch(host):
        # RFC 9110, 4.2.4: somebody's name before the host is an error.
        raise BadRequest("bad_target", "the target names a host, and perhaps a port, and nothing else before its path")
    return host, b"/" + path


def check_codings(version: str, headers: Mapping[bytes, bytes]) -> None:
    """How the body is written, and by which HTTP it comes."""
    if version not in ("1.1", "1.0"):
        raise Refusal("http_version", f"PERE speaks HTTP/1.1 and HTTP/1.0, not {version}", status=505)
    coding = headers.get(b"transfer-encoding")
    if coding is not None:
        # RFC 9112, 6.1: whoever sends it by HTTP/1.0 cannot be trusted to know where the body ends.
        if version == "1.0":
            raise BadRequest("bad_http", "HTTP/1.0 has no Transfer-Encoding")
        if coding.strip().lower() != b"chunked":
            raise Unsupported("transfer_encoding", "the only Transfer-Encoding that is taken is chunked")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Refusal("content_encoding", "a body is taken as it is, without Content-Encoding", status=415)


def expects_word(version: str, headers: Mapping[bytes, bytes]) -> bool:
    """Whether the client waits to be told that it may send the body (RFC 9110, 10.1.1)."""
    if b"expect" not in headers or version != "1.1":
        return False
    if headers[b"expect"].lower() != b"100-continue":
        raise Refusal("expectation", "the only Expect that is met is 100-continue", status=417)
    return True


def check_upgrade(headers: Mapping[bytes, bytes]) -> None:
    """RFC 9110, 7.8: Upgrade may be ignored; but the parser does not read the body of a request that asks for another protocol."""
    if b"transfer-encoding" in headers or int(headers.get(b"content-length", b"0")):
        raise Unsupported("upgrade", "a request with a body cannot ask for another protocol")


def check_fragment(url: bytes) -> None:
    """RFC 9112, 3.2: no form of a target has a fragment, and one who cuts it off before us would have asked for something else."""
    if b"#" in url:
        raise BadRequest("bad_target", "the target of a request has no #fragment")


def long_line(most: int) -> Refusal:
    return Refusal("long_line", f"a request line has at most {most} bytes", status=414, whose="request")


def long_headers(most: int) -> Refusal:
    return Refusal("long_headers", f"the headers of a request have at most {most} bytes together", status=431, whose="request")
