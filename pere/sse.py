"""Server-Sent Events as bytes: WHATWG HTML, 9.2 (https://html.spec.whatwg.org/multipage/server-sent-events.html).

The encoder is for the server, the decoder for the client; neither knows what an event means. `chunk` belongs here too,
because a frame on the wire is almost always one HTTP/1.1 chunk (RFC 9112, 7.1), made once for all feeds.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

LINE_END = re.compile(rb"\r\n|\r|\n")
HEARTBEAT = b":\n\n"


def frame(data: bytes, *, id: bytes = b"", event: bytes = b"") -> bytes:
    """One event. `data` may hold line ends of any kind, each starts a new `data:` line; `id` and `event` were checked
    by whoever made them (`names.py`, `event.py`) and hold none."""
    head = b""
    if id:
        head += b"id: " + id + b"\n"
    if event:
        head += b"event: " + event + b"\n"
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(LINE_END.split(data))
    return head + b"data: " + data + b"\n\n"


def retry(seconds: float) -> bytes:
    """How long a client waits before it reconnects; the field is in milliseconds."""
    return b"retry: %d\n\n" % round(seconds * 1000)


def chunk(body: bytes) -> bytes:
    """One chunk of a body (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(body), body)


@dataclass(slots=True)
class Message:
    """What a client dispatches: `id` is the last id that the stream named, be it on this event or an earlier one."""

    data: str
    event: str = "message"
    id: str = ""


class Decoder:
    """A stream of bytes in, messages out, wherever the network cut it (WHATWG 9.2.6).

    `last_id` is what a reconnection sends as Last-Event-ID; `retry` is the stream's wish in seconds, or None.
    An event that is not finished when the stream ends is discarded, as the standard wants. Raises ValueError once more
    than `limit` bytes wait for the end of their event: the peer is not to fill our memory.
    """

    def __init__(self, last_id: str = "", limit: int = 32 * 1024 * 1024):
        self.last_id = last_id
        self.retry: float | None = None
        self._limit = limit
        self._rest = b""
        self._started = False
        self._after_cr = False
        self._data: list[bytes] = []
        self._size = 0
        self._event = b""
        self._id = last_id

    def feed(self, received: bytes) -> Iterator[Message]:
        """The messages that these bytes complete."""
        # Take what is due before the next piece arrives, even if the caller stops looking: hence a list, not a generator.
        return iter(self._take(received))

    def _take(self, received: bytes) -> list[Message]:
        # A CR ends its line at once; a LF that comes with the next piece is the other half of the same line end.
        if self._after_cr and received:
            received = received.removeprefix(b"\n")
            self._after_cr = False
        text = self._rest + received
        if not self._started:
            # A byte order mark is ignored, but only at the very start, and it may arrive in pieces.
            if len(text) < 3 and b"\xef\xbb\xbf".startswith(text):
                self._rest = text
                return []
            self._started = True
            text = text.removeprefix(b"\xef\xbb\xbf")
        self._after_cr = self._after_cr or text.endswith(b"\r")
        *lines, self._rest = LINE_END.split(text)
        messages = [message for line in lines if (message := self._line(line)) is not None]
        if len(self._rest) + self._size > self._limit:
            raise ValueError(f"an event of more than {self._limit} bytes")
        return messages

    def _line(self, line: bytes) -> Message | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._data.append(value)
            self._size += len(value) + 1
        elif name == b"event":
            self._event = value
        elif name == b"id":
            # An id that holds NUL is ignored, so that it can be sent back as a header.
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif name == b"retry":
            # Digits only; of how many the standard does not say, and int() of thousands would raise.
            if value.isdigit():
                self.retry = float(value) / 1000
        return None

    def _dispatch(self) -> Message | None:
        # The id takes effect when its block ends, even where the block has no data and so dispatches nothing.
        self.last_id = self._id
        data, event = self._data, self._event
        self._data, self._event, self._size = [], b"", 0
        if not data:
            return None
        return Message(b"\n".join(data).decode("utf-8", "replace"), event.decode("utf-8", "replace") or "message", self.last_id)
