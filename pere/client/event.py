"""An event as it is handed to whoever listens, and what can be said of it."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

import orjson

from pere.client.news import log
from pere.client.receipts import HARD, Receipt
from pere.sse import Message

# An exception's text, as the word that goes with `failed`: the server keeps 1 KiB as JSON (`--max-status-bytes`).
LONGEST_WORD = 300
LONG = re.compile(r"\d{19}")


class Retry(Exception):
    """Raised by a handler: not now, send it again in `delay` seconds."""

    def __init__(self, delay: float = 0.0):
        super().__init__(f"send it again in {delay:g} s")
        self.delay = delay


class Event:
    """One event of a feed.

    id       its name, the same on every device and each time that it comes
    channel  where it was pushed
    type     the publisher's word for what it is; `message` unless it said one
    data     the payload: what the JSON means, or the text
    traceparent  where it stands in a trace of the publisher (W3C Trace Context), None if it does not
    attempt  1, or how often it was sent to this device by now
    answer   the last that was said of it here: `processed`, ...; None so far
    is_cancelled  whether the publisher has taken it back since it came

    Receipts go out in the background, at once, and are repeated until the server has answered; to give one takes no time, and may be done in any
    thread. The first `processed` or `failed` stands, and what is said after it is dropped.
    """

    __slots__ = ("__weakref__", "_say", "_time", "answer", "attempt", "channel", "data", "id", "is_cancelled", "traceparent", "type")

    def __init__(self, message: Message, say: Callable[[Receipt], None] | None):
        told = _read(message.data)
        self.id: str = told["id"]
        self.channel: str = told["channel"]
        self.type: str = told.get("type") or "message"
        self.data: Any = told.get("data")
        self.traceparent: str | None = told.get("traceparent")
        self.attempt: int = told.get("attempt", 1)
        self.answer: str | None = None
        self.is_cancelled = False
        self._time: str = told["time"]
        self._say = say

    @property
    def time(self) -> datetime:
        """When the server took it, by its clock."""
        return datetime.fromisoformat(self._time)

    def processed(self, status: Any = None) -> None:
        """It is done. `status` is the device's own word for the publisher, text or JSON, at most 1 KiB."""
        self.say("processed", status=status)

    def failed(self, status: Any = None) -> None:
        """It cannot be done, here and by nobody's fault but ours: it will not be sent again."""
        self.say("failed", status=status)

    def delivered(self, status: Any = None) -> None:
        """It is here, and not done yet."""
        self.say("delivered", status=status)

    def working(self) -> None:
        """It takes longer: with `ack_wait`, count that from now on again."""
        self.say("working")

    def retry(self, delay: float = 0.0) -> None:
        """Not now: send it again in `delay` seconds, at most 3600."""
        self.say("retry", delay=delay)

    def conclude(self, told: object) -> None:
        """Its handler has returned this: it is processed, unless something else was said of it."""
        if self.answer in (None, "working"):
            self.processed(told if isinstance(told, (str, dict, list)) else None)

    def raised(self, trouble: Exception) -> None:
        """Its handler has raised this: it is asked for again, if that is Retry, and has failed otherwise."""
        if isinstance(trouble, Retry):
            self.retry(trouble.delay)
        else:
            log.error("the handler of %s failed", self, exc_info=trouble)
            self.failed(word(trouble))

    def say(self, state: str, *, status: Any = None, delay: float | None = None) -> None:
        """Raises ValueError on an anonymous feed, in whose name nothing can be said."""
        if self._say is None:
            raise ValueError("a receipt is given in a device's name: listen as a device")
        if self.answer in HARD:
            return
        self.answer = state
        receipt: Receipt = {"event_id": self.id, "channel": self.channel, "state": state}
        if status is not None:
            receipt["status"] = status
        if delay is not None:
            receipt["delay"] = delay
        self._say(receipt)

    def __repr__(self) -> str:
        return f"<Event {self.id} on {self.channel}: {self.data!r}>"


def _read(text: str) -> Any:
    # The server passes numbers on as they were written, and orjson makes a float of what has no room in 64 bits.
    if LONG.search(text):
        with suppress(ValueError, RecursionError):  # which it raises for thousands of digits, or of brackets
            return json.loads(text)
    return orjson.loads(text)


def word(trouble: BaseException) -> str:
    """What a handler raised, as a device's own word."""
    return f"{type(trouble).__name__}: {trouble}"[:LONGEST_WORD]
