"""Which pages a browser lets read our answers (Fetch, 3.3), as header lines. Knows bytes, and nothing of requests.

An origin that is named may also send what the browser keeps for us, a cookie above all; `*` is any page, and none of them may. Only
a named origin is ever repeated in an answer, so nothing foreign gets into a header.
"""

# What pages send beside what they always may, and what they are to read beside what they always can (Fetch, 2.2.2 and 2.2.7).
SENT = b"Authorization, Cache-Control, Content-Type, Device, Idempotency-Key, If-None-Match, Last-Event-ID, Prefer, X-Request-Id, last_event_id, traceparent"
READ = b"ETag, Location, Preference-Applied, Retry-After, WWW-Authenticate, X-Request-Id"
REMEMBERED = 7200  # seconds for which a browser may remember a preflight; Chrome does so no longer

# Fetch, 3.3.5: a shared cache must know that the answer to another origin is another one, also of an answer that names none.
VARY = b"Vary: Origin\r\n"


class Cors:
    """`vary` belongs into every answer, calling this gives the lines that answer an Origin."""

    def __init__(self, origins: frozenset[str]):
        self.allow(origins)

    def allow(self, origins: frozenset[str]) -> None:
        """These, from now on."""
        self._any = "*" in origins
        self._named = {origin.encode() for origin in origins - {"*"}}
        self.vary = VARY if self._named else b""

    def __call__(self, origin: bytes) -> bytes:
        if origin in self._named:
            return b"Access-Control-Allow-Origin: %b\r\nAccess-Control-Allow-Credentials: true\r\nAccess-Control-Expose-Headers: %b\r\n" % (origin, READ)
        # Fetch, 3.3.5: with `*` a browser sends and shows nothing that it keeps for us.
        return b"Access-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: %b\r\n" % READ if self._any else b""

    def preflight(self, origin: bytes, methods: str, is_inward: bool) -> bytes:
        """What such a page may ask for besides, by these methods; `is_inward` if it comes from a wider network than ours
        (Private Network Access, 3.1), which only a page may that is named."""
        if not self(origin):
            return b""
        lines = b"Access-Control-Allow-Methods: %b\r\nAccess-Control-Allow-Headers: %b\r\nAccess-Control-Max-Age: %d\r\n" % (methods.encode(), SENT, REMEMBERED)
        return lines + b"Access-Control-Allow-Private-Network: true\r\n" if is_inward and origin in self._named else lines
