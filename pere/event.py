"""An event: its id, what the publisher asked for, and the bytes that every feed gets.

An event is encoded once per form (raw or envelope, chunked or not) and only when a feed of that form wants it. This file
knows no socket, no channel and no device.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import orjson

from pere import sse
from pere.errors import BadRequest
from pere.names import shown
from pere.receipt import DELIVERED, NONE, PROCESSED

# Ids travel as text and are kept as one integer, which compares and sorts faster: milliseconds above, sequence below.
# 20 bits of sequence are a million events in a millisecond; 43 of milliseconds end in the year 2248, and both fit a
# signed 64-bit integer, which is what stores have.
SEQUENCE_BITS = 20
SEQUENCE_MASK = (1 << SEQUENCE_BITS) - 1
LAST_MILLISECOND = (1 << 63 - SEQUENCE_BITS) - 1
ID = re.compile(r"(0|[1-9][0-9]{0,12})-(0|[1-9][0-9]{0,6})")


def parse_id(text: str) -> int:
    """The integer form of `<unix ms>-<seq>`; raises BadRequest if it is none."""
    match = ID.fullmatch(text)
    if match:
        milliseconds, sequence = int(match[1]), int(match[2])
        # What a stranger made up must fit as well: no store is to choke on it.
        if milliseconds <= LAST_MILLISECOND and sequence <= SEQUENCE_MASK:
            return milliseconds << SEQUENCE_BITS | sequence
    raise BadRequest("bad_event_id", f"an event id is <unix ms>-<seq>, not {shown(text)}")


def format_id(id: int) -> str:
    return f"{id >> SEQUENCE_BITS}-{id & SEQUENCE_MASK}"


def given_at(id: int) -> float:
    """When it was given, in seconds since 1970, to the millisecond."""
    return (id >> SEQUENCE_BITS) / 1000


def first_id(moment: float) -> int:
    """The least id that could be given at this moment, in seconds since 1970."""
    return int(moment * 1000) << SEQUENCE_BITS


class IdClock:
    """Ids that only grow, whatever the system clock does; one clock per store, so ids also order events across channels."""

    __slots__ = ("last",)

    def __init__(self, last: int = 0):
        self.last = last

    def next(self, now: float) -> int:
        """The next id; `now` in seconds since 1970. A clock that stands still or steps back only makes the sequence count."""
        fresh = first_id(now)
        # Adding one to a full sequence carries into the milliseconds by itself.
        self.last = fresh if fresh > self.last else self.last + 1
        return self.last


def timestamp(seconds: float) -> str:
    """RFC 3339, UTC, milliseconds: `2014-12-01T14:28:30.993Z`."""
    # To the microsecond first, as datetime does it: 0.993 is a little less than that.
    whole, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{_second(whole)}.{micros // 1000:03d}Z"


@lru_cache(1024)
def _second(whole: int) -> str:
    # Of ten thousand receipts in a row, most are of the same second.
    return datetime.fromtimestamp(whole, UTC).isoformat()[:19]


TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})")


def parse_time(text: str) -> float | None:
    """Seconds since 1970 of a time as RFC 3339, 5.6 writes it; None if it is none, or before 1970."""
    try:
        seconds = datetime.fromisoformat(text.upper()).timestamp() if TIME.fullmatch(text) else -1.0
    except (ValueError, OverflowError):
        return None
    return seconds if seconds >= 0 else None


# The level of receipt that closes an event on a device. `none` asks for no receipts: nothing is entered in the ledger.
LEVELS = {"none": NONE, "delivered": DELIVERED, "processed": PROCESSED}


# Nobody changes one once it is made; to have that enforced (frozen) would cost each push 1.5 us.
@dataclass(slots=True)
class Draft:
    """An event before it is accepted: all that a push says, already checked.

    `data` is the payload as bytes: valid JSON if `is_json`, else UTF-8 text. `to` names the only devices it is for; empty is
    all. `need` is how many receipts satisfy the publisher: a number, a percentage such as "90%", "all", or None. `callback` is the
    webhook that is told what becomes of it, `traceparent` where the push stands in somebody's trace (see `trace.py`).
    """

    channel: str
    data: bytes
    ttl: int
    is_json: bool = True
    type: str = ""
    to: tuple[str, ...] = ()
    level: int = PROCESSED
    need: int | str | None = None
    publisher: str = ""
    key: str = ""
    callback: str = ""
    traceparent: str = ""


# How a frame is written: bit 0 is envelope instead of raw, bit 1 is without chunk framing (HTTP/1.0). Bit 2 changes no byte: it
# goes over TLS, so it is written in another way.
RAW, ENVELOPE, UNCHUNKED, SECURE = 0, 1, 2, 4


NAMED_BYTES = 1_000  # what a device takes that an event names: its place in the ledger, and on the shelf as long as it was never seen there


class Event:
    """An accepted event. `ordinal` counts the events of its channel from 1, so that what is lost between two can be said exactly."""

    __slots__ = ("id", "ordinal", "channel", "type", "data", "is_json", "time", "expires", "level", "to", "publisher", "callback", "traceparent",
                 "expired", "recalled", "size", "weight", "_form", "_frame")

    def __init__(self, draft: Draft, id: int, ordinal: int, now: float):
        self.id = id
        self.ordinal = ordinal
        self.channel = draft.channel
        self.type = draft.type
        self.data = draft.data
        self.is_json = draft.is_json
        self.time = now
        self.expires = now + draft.ttl
        self.level = draft.level
        self.to = frozenset(draft.to) if draft.to else None
        self.publisher = draft.publisher
        self.callback = draft.callback
        self.traceparent = draft.traceparent
        self.expired = False
        self.recalled = False
        # What it weighs in a backlog: the payload, one frame of it, and about what Python needs around them.
        self.size = 2 * len(draft.data) + 640
        self.weight = self.size  # and with it those who are to answer, as far as that is known
        self._form = -1
        self._frame = b""

    @classmethod
    def plain(cls, id: int, now: float, channel: str, data: bytes, is_json: bool, type: str, ttl: int, level: int, publisher: str, callback: str,
              traceparent: str) -> "Event":
        """One that is for everybody, and whose place on its channel is yet to be found. It does what `__init__` does, and needs no Draft, which takes a third less (measured)."""
        event = cls.__new__(cls)
        event.id = id
        event.channel = channel
        event.type = type
        event.data = data
        event.is_json = is_json
        event.time = now
        event.expires = now + ttl
        event.level = level
        event.to = None
        event.publisher = publisher
        event.callback = callback
        event.traceparent = traceparent
        event.expired = event.recalled = False
        event.size = event.weight = 2 * len(data) + 640
        event._form = -1
        event._frame = b""
        return event

    def weigh(self, owing: int) -> None:
        """It has a place in the ledger, for so many devices."""
        self.weight = self.size + 2 * owing + NAMED_BYTES * len(self.to or ())

    def frame(self, form: int) -> bytes:
        """The bytes for a feed of this form. Only the form asked for last is kept: a broadcast asks for one form at a time."""
        if form != self._form:
            self._form, self._frame = form, self.encode(form)
        return self._frame

    def encode(self, form: int, attempt: int = 1, is_repeated: bool = False) -> bytes:
        """The bytes of a given attempt; only an envelope tells the attempts apart. What is repeated in a stream names no id."""
        data = self.envelope(attempt) if form & ENVELOPE else self.data
        body = sse.frame(data, id=b"" if is_repeated else format_id(self.id).encode(), event=self.type.encode())
        return body if form & UNCHUNKED else sse.chunk(body)

    def envelope(self, attempt: int = 1) -> bytes:
        return orjson.dumps(self.as_dict() | {"attempt": attempt})

    def as_dict(self) -> dict[str, object]:
        """`{"id", "channel", "type", "time", "data"}`; a text payload becomes a JSON string. One that has a `traceparent`, or was recalled, says so."""
        told: dict[str, object] = {
            "id": format_id(self.id),
            "channel": self.channel,
            "type": self.type or "message",
            "time": timestamp(self.time),
            "data": self.payload(),
        }
        if self.traceparent:
            told["traceparent"] = self.traceparent
        return told | {"recalled": True} if self.recalled else told

    def payload(self) -> object:
        return orjson.Fragment(self.data) if self.is_json else self.data.decode()
