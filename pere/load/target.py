"""What is said to the server under load, as bytes. Unless told otherwise it is PERE; any other that pushes by SSE will do.

In the addresses `{channel}` is the channel. In the body of a push `{event}` is the event, `{quoted}` the same for a form; in that of a receipt
`{device}` and `{id}` are who answers for which event.
"""

import base64
import hashlib
import hmac
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

import orjson

STAMP = b'"@%020d"'  # when an event was to be sent, in nanoseconds of the monotonic clock, which all processes of a machine share
FORM = "application/x-www-form-urlencoded"
RECEIPT = "status=rx+ok"  # as the devices of 2014 gave it


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and how it is spoken to. With the `secret` of its tokens (HS256), every device has its own."""

    host: str
    port: int
    feed: str = "/feed/{channel}"
    push: str = "/push/{channel}"
    feedback: str = "/feedback/{channel}"
    body: str = "{event}"
    kind: str = "application/json"
    answer: str = RECEIPT
    answer_kind: str = FORM
    headers: tuple[str, ...] = ()
    secret: str = ""

    def _head(self, method: str, path: str, lines: Iterable[str], subject: str, *allowed: str) -> bytes:
        token = [f"Authorization: Bearer {_token(self.secret, subject, tuple(allowed))}"] if self.secret else []
        return "\r\n".join((f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", *self.headers, *token, *lines, "\r\n")).encode()

    def listening(self, channel: str, device: str) -> bytes:
        """The request that opens a feed; a `channel` that begins with `?` is a query to the feed of many."""
        path = self.feed.partition("/{channel}")[0] + channel if channel.startswith("?") else self.feed.format(channel=channel)
        return self._head("GET", path, ("Accept: text/event-stream", f"Device: {device}"), device, "feed")

    def event(self, at: int, size: int) -> bytes:
        """A JSON event of about so many bytes that was to be sent at this time."""
        stamp = STAMP % at
        return b'{"ts":%b,"pad":"%b"}' % (stamp, b"x" * (size - len(stamp) - 16))

    def pushing(self, channel: str) -> tuple[bytes, bytes]:
        """The head of a push without its length, and the body around the event."""
        head = self._head("POST", self.push.format(channel=channel), (f"Content-Type: {self.kind}", "Device: publisher"), "publisher", "push")
        return head[:-4], self.body.replace("{channel}", channel).encode()

    def pushed(self, made: tuple[bytes, bytes], event: bytes) -> bytes:
        """A whole push of this event."""
        head, body = made
        if body != b"{event}":
            event = body.replace(b"{event}", event).replace(b"{quoted}", quote(event).encode()) if b"{" in body else body
        return b"%b\r\nContent-Length: %d\r\n\r\n%b" % (head, len(event), event)

    def many(self, items: list[dict[str, object]]) -> bytes:
        """A push of many events to PERE."""
        body = orjson.dumps(items)
        return self._head("POST", "/push", ("Content-Type: application/json", f"Content-Length: {len(body)}"), "publisher", "push") + body

    def asking(self, path: str) -> bytes:
        """A GET by somebody who may administer."""
        return self._head("GET", path, (), "bench", "admin")

    def receipt(self, channel: str, device: str, id: str) -> bytes:
        """A receipt of one device for one event."""
        body = self.answer
        if "{" in body:
            body = body.replace("{channel}", channel).replace("{device}", device).replace("{id}", id)
        said = body.encode()
        head = self._head("POST", self.feedback.format(channel=channel), (
            f"Device: {device}", f"Last-Event-ID: {id}", f"Content-Type: {self.answer_kind}", f"Content-Length: {len(said)}"), device, "feed")
        return head + said

    def receipts(self, device: str, ids: list[str]) -> bytes:
        """The receipts of one device for many events, in one request to PERE."""
        body = orjson.dumps({"receipts": [{"event_id": id} for id in ids]})
        return self._head("POST", "/feedback", (f"Device: {device}", "Content-Type: application/json", f"Content-Length: {len(body)}"), device,
                          "feed") + body


@lru_cache(maxsize=1 << 17)
def _token(secret: str, subject: str, allowed: tuple[str, ...]) -> str:
    """A token (JWT, HS256) for a day: a device is given one, and uses it for all that it says."""
    claims = {"sub": subject, "exp": int(time.time()) + 86_400, "pere": {verb: True if verb == "admin" else ["**"] for verb in allowed}}
    text = b".".join(_b64(orjson.dumps(part)) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return (text + b"." + _b64(hmac.digest(secret.encode(), text, hashlib.sha256))).decode()


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
