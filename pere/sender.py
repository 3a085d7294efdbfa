"""One POST to somebody else's server, and what became of it, however that server behaves.

The status line decides. A 200 whose body is huge, endless or drips is a success: what follows the headers is read for a moment,
so that an honest server can finish its answer, and then the connection is cut. No answer is followed, decoded or kept, so a
redirect is a failure like any other, and nothing that the server says can lead us elsewhere.

This is built from the two parts of Tornado's simple client, TCPClient and HTTP1Connection, rather than on that client: it can
neither be told to stop reading without an exception in its log, nor be cancelled, and its timeouts leave lookups behind. How
many requests run at once, when one is repeated, and what it says are its caller's business.
"""

import asyncio
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError
from tornado.tcpclient import TCPClient

from pere import __version__
from pere.config import KIB
from pere.errors import BadRequest
from pere.names import shown
from pere.outside import NotPublic, Outside, OutsideResolver, Target

# Why a POST has failed. `status`: an answer that is neither 2xx nor 3xx; `malformed`: one that is not HTTP, or has too long a head.
FAILURES = ("url", "unresolved", "inside", "unreachable", "tls", "timeout", "closed", "malformed", "redirect", "status")

# A second and 64 KiB for what follows the headers: enough for a page of apologies, and for a server that would
# log a broken pipe if its answer were not taken.
LINGER = 1.0
MAX_BODY = 64 * KIB

# RFC 9110, 5.1 and 5.5, less what is not ASCII: what it means would depend on the reader.
_NAME = re.compile(r"[!#-'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t -~]*")

# In seconds; whoever wishes for more has the wish shortened, so that no number is too long to be one.
LONGEST_WISH = 10**9


class Outcome(NamedTuple):
    """`status` is 0 where there was no answer, and `error` one of FAILURES, or empty after a 2xx; `message` says it to people.
    `retry_after` is the server's wish in seconds, uncapped; `seconds` is how long the headers, or the failure, took."""

    status: int
    error: str
    message: str
    retry_after: float | None
    seconds: float

    @property
    def is_success(self) -> bool:
        return not self.error


class Sender:
    """Sends to addresses that are `outside`, and to no others.

    `timeout` is how many seconds a POST may take until the headers of its answer are there, `connect_timeout` how many of them
    may go by until there is a connection: name, TCP and TLS (Standard Webhooks recommends 15 to 30 s in all). `max_head_bytes` is
    the longest head of an answer. `tls` verifies the other side; unless given, it does so by the system's authorities.
    """

    def __init__(self, outside: Outside, *, timeout: float = 20.0, connect_timeout: float = 5.0, linger: float = LINGER,
                 max_head_bytes: int = 16 * KIB, tls: ssl.SSLContext | None = None, resolver: OutsideResolver | None = None,
                 clock: Callable[[], float] = time.time):
        self._outside = outside
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._linger = linger
        self._max_head_bytes = max_head_bytes
        self._tls = tls
        self._tcp = TCPClient(resolver or OutsideResolver(outside))
        self._clock = clock

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Send one POST, and never raise for anything that the other side does. Cancelled, it drops the connection at once.

        Raises ValueError if a header cannot be sent.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()

        def failed(error: str, message: str) -> Outcome:
            return Outcome(0, error, message, None, loop.time() - began)

        try:
            # Again, for what is allowed may have changed since the URL was registered.
            target = self._outside.target(url)
        except BadRequest as refusal:
            return failed("inside" if refusal.code == "inside_address" else "url", refusal.message)
        start, head = _head(target, headers, body)
        secured = await self._context(target.scheme)  # before the time begins, for it is not the other side that takes it

        stream: IOStream | None = None
        answer: _Answer | None = None
        try:
            async with asyncio.timeout(self._timeout) as limit:
                async with asyncio.timeout(self._connect_timeout):
                    # The buffer holds a head, or a piece of a body; Tornado's own is 100 MB.
                    stream = await self._tcp.connect(target.host, target.port, ssl_options=secured, max_buffer_size=4 * MAX_BODY)
                answer = _Answer(stream, lambda: limit.reschedule(min(limit.when() or began, loop.time() + self._linger)), loop.time)
                connection = HTTP1Connection(stream, True, HTTP1ConnectionParameters(
                    no_keep_alive=True, max_header_size=self._max_head_bytes, max_body_size=MAX_BODY))
                connection.write_headers(start, head, body)
                connection.finish()
                await connection.read_response(answer)
                failure = failed("malformed", "the answer is not HTTP/1.1")
        except TimeoutError:
            what = "to connect" if stream is None else "for an answer"
            failure = failed("timeout", f"no time left {what}: {self._timeout:g} s in all, {self._connect_timeout:g} s to connect")
        except NotPublic as error:
            failure = failed("inside", str(error))
        except (StreamClosedError, OSError) as error:
            failure = failed(*_reason(error, stream is not None))
        finally:
            if stream is not None:
                stream.close()
        # Whatever went wrong after the headers came too late to change what they said.
        if answer is not None and answer.status:
            return self._outcome(answer, answer.at - began)
        return failure

    async def _context(self, scheme: str) -> ssl.SSLContext | None:
        if scheme != "https":
            return None
        if self._tls is None:
            # Only now, for to read the authorities of the system takes longer than to start a server; and in a thread, for nobody else is to wait for it.
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        return self._tls

    def _outcome(self, answer: "_Answer", seconds: float) -> Outcome:
        status = answer.status
        error = "" if 200 <= status < 300 else "redirect" if 300 <= status < 400 else "status"
        message = {"": f"answered {status}", "status": f"answered {status}, not 2xx",
                   "redirect": f"answered {status}; a redirect is not followed: register the other URL instead"}[error]
        return Outcome(status, error, message, retry_after(answer.retry_after, self._clock()), seconds)


class _Answer(HTTPMessageDelegate):
    """The answer, of which only the first lines matter. `enough` is called when they are there."""

    def __init__(self, stream: IOStream, enough: Callable[[], None], clock: Callable[[], float]):
        self.status = 0
        self.retry_after = ""
        self.at = 0.0
        self._stream = stream
        self._enough = enough
        self._clock = clock
        self._left = MAX_BODY

    def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> None:
        assert isinstance(start_line, ResponseStartLine)
        # RFC 9110, 15.2: a 1xx is interim, and the answer is yet to come. Tornado bears ten of them.
        if not 200 <= start_line.code < 600:
            return
        self.status, self.at = start_line.code, self._clock()
        self.retry_after = headers.get("Retry-After", "")
        self._enough()

    def data_received(self, chunk: bytes) -> None:
        self._left -= len(chunk)
        if self._left < 0:
            # Not an exception, which would be logged as our mistake.
            self._stream.close()


def _head(target: Target, headers: Mapping[str, str], body: bytes) -> tuple[RequestStartLine, HTTPHeaders]:
    head = HTTPHeaders({"Host": target.authority, "User-Agent": f"pere/{__version__}", "Accept": "*/*",
                        # RFC 9110, 12.5.3: no coding of any kind. Nothing would be decoded anyway.
                        "Accept-Encoding": "identity", "Connection": "close"})
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"this cannot stand in a header: {shown(name)}: {shown(value)}")
        head[name] = value
    head["Content-Length"] = str(len(body))
    return RequestStartLine("POST", target.path, "HTTP/1.1"), head


def _reason(error: BaseException, is_connected: bool) -> tuple[str, str]:
    """What a failed connection is called, and a sentence for it."""
    if isinstance(error, StreamClosedError) and error.real_error is not None:
        error = error.real_error
    if isinstance(error, UnsatisfiableReadError):
        return "malformed", "the head of the answer is too long"
    if isinstance(error, ssl.SSLError | ssl.CertificateError):
        return "tls", f"no TLS: {getattr(error, 'verify_message', '') or error.reason or error}"
    if is_connected:
        return "closed", f"the connection ended before an answer: {error.strerror if isinstance(error, OSError) and error.strerror else 'closed'}"
    if isinstance(error, OSError) and not isinstance(error, StreamClosedError):
        return "unresolved" if isinstance(error, socket.gaierror) else "unreachable", shown(error.strerror or str(error), 200)[1:-1]
    return "unreachable", "the connection could not be made"


def retry_after(text: str, now: float) -> float | None:
    """In how many seconds to come back, as a Retry-After header has it (RFC 9110, 10.2.3): seconds, or a date; None if it is neither.
    `now` is in seconds since 1970. A date in the past is 0."""
    text = text.strip()
    # isdigit() alone would pass a superscript two.
    if text.isascii() and text.isdigit():
        return float(min(int(text[:20]), LONGEST_WISH))
    if len(text) > 64:
        return None
    try:
        date = parsedate_to_datetime(text)
        # RFC 9110, 5.6.7: a date is GMT, whether it says so (as two of the three forms do) or not.
        wait = (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
    return min(max(0.0, wait), float(LONGEST_WISH))
