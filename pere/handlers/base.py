"""What all addresses share: names and numbers out of a request, and how a RequestHandler answers and refuses.

Hot functions take an Ask and these helpers; RequestHandlers inherit from Handler. Both speak JSON only.
"""

import logging
import re
from functools import lru_cache
from http.client import responses
from typing import Any, overload
from urllib.parse import parse_qsl, unquote_to_bytes

import orjson
from tornado.web import HTTPError, RequestHandler

from pere.auth import ANYBODY, FEED, NOBODY, NOTHING, PUSH, Grant
from pere.cors import Cors
from pere.door import Ask
from pere.errors import BadRequest, NotFound, Refusal, WrongMethod
from pere.event import parse_id
from pere.names import channel_name, device_name, shown
from pere.remembered import remembered

log = logging.getLogger("pere.http")

DURATION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,20})?")
MAX_QUERY_FIELDS = 1_200  # `to` may stand a thousand times


def text(raw: bytes, what: str) -> str:
    """Bytes of a header, a path or a query as text; raises BadRequest if they are not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadRequest("bad_encoding", f"{what} is not UTF-8") from None


@remembered(4096)
def channel_of(path: bytes) -> str:
    """The channel at the end of a path such as `/feed/news`."""
    return channel_name(text(unquote_to_bytes(path[path.index(b"/", 1) + 1 :]), "the path"))


event_id = lru_cache(maxsize=4096)(lambda raw: parse_id(text(raw, "the event id")))


class Query:
    """The parameters of a query or a form. `one` is the last of that name, `every` all of them."""

    __slots__ = ("_fields",)

    def __init__(self, raw: bytes, what: str = "the query"):
        try:
            self._fields = parse_qsl(text(raw, what), keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS, errors="strict")
        except ValueError as error:
            raise BadRequest("bad_query", f"{what} cannot be read: {error}") from None

    @overload
    def one(self, name: str) -> str | None: ...

    @overload
    def one(self, name: str, default: str) -> str: ...

    def one(self, name: str, default: str | None = None) -> str | None:
        for field, value in reversed(self._fields):
            if field == name:
                return value
        return default

    def every(self, name: str) -> list[str]:
        """All values of this name, in their order."""
        return [value for field, value in self._fields if field == name]


NO_QUERY = Query(b"")


def device_of(ask: Ask, query: Query) -> str:
    """Who asks: the `Device` header or `?device=`, or whoever the token is of; empty if nobody says so. Raises Forbidden for somebody
    whom the token is not of."""
    raw, grant = ask.headers.get(b"device"), ask.grant
    if query is NO_QUERY and (raw is None or raw == grant.name):
        return grant.subject
    name = grant.named(text(raw, "the Device header") if raw is not None else None, query.one("device") if query is not NO_QUERY else None)
    return device_name(name) if name else ""


def number(value: str, name: str, low: int, high: int) -> int:
    """A whole number within limits; raises BadRequest otherwise."""
    if value.isascii() and value.isdigit() and len(value) <= 12 and low <= int(value) <= high:
        return int(value)
    raise BadRequest(f"bad_{name}", f"{name} is a whole number from {low} to {high}, not {shown(value)}")


def seconds(value: str, name: str, high: float) -> float:
    """A duration, 0 or from 0.1 s up to a limit; raises BadRequest otherwise."""
    if DURATION.fullmatch(value) and (float(value) == 0 or 0.1 <= float(value) <= high):
        return float(value)
    raise BadRequest(f"bad_{name}", f"{name} is a number of seconds from 0.1 to {high:g}, or 0, not {shown(value)}")


def loads(body: bytes, what: str) -> Any:
    """What is said in JSON; raises BadRequest if that is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest("bad_json", f"{what} is not JSON: {error}") from None


def dumps(value: Any, what: str) -> bytes:
    """What somebody said in JSON, as JSON again."""
    try:
        return orjson.dumps(value)
    except TypeError:
        # 1,024 levels can be read, and 254 written.
        raise BadRequest("deep_json", f"{what} is nested more than 254 deep") from None


def media_type(ask: Ask) -> str:
    """The Content-Type without its parameters, in lower case; empty if there is none."""
    return ask.headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()


class Handler(RequestHandler):
    """A RequestHandler that answers in JSON, errors included, to who has what it `needs` (see `auth.py`): on the channel that stands
    first in its path, where it asks for PUSH or FEED."""

    methods = "GET, HEAD, OPTIONS"
    policy = "default-src 'none'; frame-ancestors 'none'"  # what JSON needs of a browser
    needs = NOBODY
    grant: Grant = NOTHING

    def initialize(self, **parts: Any) -> None:
        """The parts of the server that this address needs, by name."""
        for name, part in parts.items():
            setattr(self, name, part)

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        # What a page of a stranger might take an answer for: a script, a page that it frames. Hot answers are of a POST, which no
        # page can include, or they carry the first of these themselves (feeds).
        self.set_header("X-Request-Id", self._request_id())
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Security-Policy", self.policy)
        self.set_header("Referrer-Policy", "no-referrer")
        cors: Cors = self.settings["cors"]
        self._add(cors.vary)
        if "Origin" in self.request.headers:
            self._add(cors(self._origin()))

    def _request_id(self) -> str:
        ask: Ask | None = getattr(self.request.connection, "ask", None)
        return ask.id if ask is not None else ""

    def _origin(self) -> bytes:
        return self.request.headers["Origin"].encode("latin-1")

    def _add(self, lines: bytes) -> None:
        for line in lines.decode().splitlines():
            name, _, value = line.partition(": ")
            self.set_header(name, value)

    def prepare(self) -> None:
        # A preflight has no token (Fetch, 4.8), and says only what this address takes.
        if self.needs is not ANYBODY and self.request.method != "OPTIONS":
            self._check_grant()
        query = self.request.query
        self.query = Query(query.encode("latin-1")) if query else NO_QUERY

    def _check_grant(self) -> None:
        ask: Ask | None = getattr(self.request.connection, "ask", None)
        if ask is not None:
            if ask.refusal is not None:
                raise ask.refusal
            self.grant = ask.grant
        channel = self.path_args[0] if self.path_args and self.needs in (PUSH, FEED) else None
        self.grant.check(self.needs, self.channel(channel) if channel is not None else None)

    def answer(self, answer: object, status: int = 200) -> None:
        """`answer` as JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(orjson.dumps(answer))

    def head(self, *names: str) -> Any:
        """RFC 9110, 9.3.2: as GET, and the body stays here."""
        return self.get(*names)

    def options(self, *_: str) -> None:
        """RFC 9110, 9.3.7; and the answer to a CORS preflight (Fetch, 3.3.2)."""
        self.set_header("Allow", self.methods)
        if "Access-Control-Request-Method" in self.request.headers and "Origin" in self.request.headers:
            cors: Cors = self.settings["cors"]
            is_inward = self.request.headers.get("Access-Control-Request-Private-Network") == "true"
            self._add(cors.preflight(self._origin(), self.methods, is_inward))
        self.set_status(204)
        self.finish()

    def channel(self, name: str) -> str:
        """A channel out of the path, as Tornado unquoted it."""
        return channel_name(name)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        refusal = error if isinstance(error, Refusal) else self._refusal(status_code, error)
        log.debug("refused", extra={"facts": {"code": refusal.code, "status": refusal.status, "route": type(self).__name__.lower(), "request": self._request_id()}})
        self.settings["note"](refusal)
        if refusal.retry_after is not None:
            self.set_header("Retry-After", str(refusal.retry_after))
        if refusal.challenge:
            self.set_header("WWW-Authenticate", refusal.challenge)
        if refusal.status == 405:
            self.set_header("Allow", self.methods)
        self.answer(refusal.as_dict(), refusal.status)

    def _refusal(self, status: int, error: object) -> Refusal:
        if status == 405:
            return WrongMethod("wrong_method", f"{self.request.path} takes {self.methods}, not {self.request.method}")
        if status == 404:
            return NotFound("not_found", f"there is nothing at {shown(self.request.path)}")
        if status >= 500:
            return Refusal("internal", "something went wrong in the server, and was logged there", status=status)
        reason = error.log_message if isinstance(error, HTTPError) and error.log_message else responses.get(status, "refused")
        return Refusal("bad_request" if status == 400 else "refused", str(reason), status=status)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        # Tornado's own line has the whole address in it, and that may have a token.
        if not isinstance(value, Refusal | HTTPError):
            log.error("%s %s could not be answered", self.request.method, self.request.path, exc_info=(typ, value, tb), extra={"facts": {"request": self._request_id()}})

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        super().send_error(error.status if isinstance(error, Refusal) else status_code, **kwargs)


class Page(Handler):
    """A page of HTML, of which everything comes from here and nothing stands in the page itself: no script, no style, no frame around it."""

    policy = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; base-uri 'none'; "
              "form-action 'none'; frame-ancestors 'none'")

    def show(self, page: bytes) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.finish(page)


class NotThere(Handler):
    """Every address that is none."""

    needs = ANYBODY

    def prepare(self) -> None:
        raise NotFound("not_found", f"there is nothing at {shown(self.request.path)}")


class Elsewhere(Handler):
    """An address whose own methods are hot: this one is met by every other method."""

    needs = ANYBODY

    def initialize(self, methods: str, **parts: Any) -> None:  # type: ignore[override]  # Tornado hands all by name
        super().initialize(**parts)
        self.methods = methods
