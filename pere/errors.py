"""Everything that PERE refuses, and how it says so.

    Refusal                  a request that is answered with an error
    ├── BadRequest      400  it cannot be understood
    ├── Unauthorized    401  nobody knows who asks: there is no token, or none that holds
    ├── Forbidden       403  it is understood, and not yours to ask
    ├── NotFound        404  there is no such thing (or none that you may know of)
    ├── WrongMethod     405  the address exists, the method does not
    ├── Timeout         408  the request did not arrive in time
    ├── Conflict        409  what is already known says otherwise
    ├── Gone            410  it existed, and is no longer kept
    ├── TooLarge        413  the body is over its limit (414 line, 431 headers)
    ├── WrongType       415  the body is of a kind that nobody reads here
    ├── TooMany         429  a limit of this client is reached
    ├── Unsupported     501  HTTP allows it, PERE does not do it
    ├── Stranger        502  (or as it came) it was not PERE that answered a visitor, but a proxy or a captive portal
    ├── Unavailable     503  what it takes is not there; come back later
    └── Full            503  a limit of the whole server is reached; come back later
    ConfigError              a setting that cannot be: said once, at the start
    └── StoreInUse           another process has the file of the store

A refusal has a `code` for machines, which never changes, and a `message` for people, which says what came and what
was wanted. This file knows HTTP's status codes and nothing else of HTTP.
"""

import sys

import orjson


class Refusal(Exception):
    """An error that is the answer. `retry_after` in seconds becomes the header of that name (RFC 9110, 10.2.3), and `challenge` is what
    WWW-Authenticate says (RFC 6750, 3). Where a limit is the reason, `whose` tells for whom it holds: one `client`, `subject`, `device` or
    `request`, or `all` of them together."""

    status = 500
    challenge = ""
    whose = ""

    def __init__(self, code: str, message: str, *, status: int | None = None, retry_after: int | None = None, whose: str | None = None):
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after
        if status is not None:
            self.status = status
        if whose is not None:
            self.whose = whose

    @property
    def limit(self) -> str:
        """What it is that there is no more of."""
        return self.code.removeprefix("too_many_")

    def as_dict(self) -> dict[str, str]:
        return {"error": self.code, "message": self.message}

    def body(self) -> bytes:
        return orjson.dumps(self.as_dict())


class BadRequest(Refusal):
    status = 400


class Unauthorized(Refusal):
    status = 401
    challenge = 'Bearer realm="pere", error="invalid_token"'


class Forbidden(Refusal):
    status = 403


class NotFound(Refusal):
    status = 404


class WrongMethod(Refusal):
    """`allow` lists the methods that would have been right (RFC 9110, 10.2.1)."""

    status = 405

    def __init__(self, code: str, message: str, *, allow: str = ""):
        super().__init__(code, message)
        self.allow = allow


class Timeout(Refusal):
    status = 408


class Conflict(Refusal):
    status = 409


class Gone(Refusal):
    status = 410


class TooLarge(Refusal):
    status = 413
    whose = "request"


class WrongType(Refusal):
    status = 415


class TooMany(Refusal):
    status = 429
    whose = "client"


class Unsupported(Refusal):
    status = 501


class Stranger(Refusal):
    status = 502


class Unavailable(Refusal):
    status = 503


class Full(Unavailable):
    whose = "all"


class ConfigError(Exception):
    """A setting, or a pair of settings, that cannot be; the message names the flag."""


class StoreInUse(ConfigError):
    """Another process has the file: whoever is to follow that process waits for it."""


def internal() -> Refusal:
    """What a client is told of a mistake that is ours."""
    return Refusal("internal", "something went wrong in the server, and was logged there")


def installing(extra: str) -> str:
    """What is typed to install an extra for the very Python that runs here; any other `pip` finds no PERE to add it to."""
    return f"{sys.executable} -m pip install 'pere[{extra}]'"
