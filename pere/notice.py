"""A notice: what a publisher is told by webhook, as it is sent and as it is kept until then.

The body is a CloudEvents 1.0 event in JSON. Id and bytes of a notice stay the same however often it is sent, so that who gets it
twice can tell; so it is kept as bytes, compressed, because a hundred thousand of them may wait for one endpoint. No socket, no clock.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, NamedTuple

import orjson

from pere.event import timestamp

RECEIPTS = "pere.receipt.batch"
SATISFIED, COMPLETED, EXPIRED = "pere.event.satisfied", "pere.event.completed", "pere.event.expired"
CONNECTED, DISCONNECTED = "pere.device.connected", "pere.device.disconnected"
GIVEN_UP = "pere.webhook.disabled"
VERIFY = "pere.webhook.verify"

BATCH = 100  # items in one notice
BATCH_BYTES = 20_000  # and bytes of them: well below what the receivers of others take

# What most notices have in common, and so need not hold (RFC 1950, 2.2, FDICT). It is part of what is kept, so it never changes: another
# one would need another first byte.
_FORMAT = b"\1"
_COMMON = (
    b'{"specversion":"1.0","id":"msg_","source":"/receipts","type":"pere.receipt.batch","time":"2026-01-01T00:00:00.000Z",'
    b'"datacontenttype":"application/json","data":{"receipts":[{"id":"1764","event_id":"1764","channel":"","device":"","state":"failed",'
    b'"status":null,"late":true,"at":"2026-01-01T00:00:00.000Z","latency":0.0},"state":"processed","status":null,"late":false,"at":"2026-'
    b'"type":"pere.event.expired""type":"pere.event.satisfied","data":{"dropped":,"id":"event_-0_completed","source":"/events/","type":"pere.event.completed",'
    b'"time":"2026-","datacontenttype":"application/json","data":{"id":"1764-0","channel":"","type":"message","time":"2026-","publisher":null,'
    b'"audience":1,"need":1,"satisfied":true,"complete":true,"outstanding":0,"counts":{"pending":0,"delivered":0,"expired":0,"cancelled":0,'
    b'"processed":1,"failed":0},"latency":{"p50":0.0,"p90":0.0,"p99":0.0}}}')


@dataclass(frozen=True, slots=True)
class Notice:
    """`id` is the `webhook-id`; `count` is how many receipts or devices it tells of, 1 for all else."""

    id: str
    type: str
    body: bytes
    count: int = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """A notice that waits: how often it was tried, and what went wrong the last time."""

    notice: Notice
    attempts: int = 0
    trouble: str = ""

    def document(self) -> bytes:
        """All of it, to be kept."""
        notice = self.notice
        head = orjson.dumps((notice.id, notice.type, notice.count, self.attempts, self.trouble))
        packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY, _COMMON)
        return b"".join((_FORMAT, packer.compress(b"%b\n%b" % (head, notice.body)), packer.flush()))

    @classmethod
    def of(cls, document: bytes) -> "Kept":
        """Raises ValueError for what is none."""
        if document[:1] != _FORMAT:
            raise ValueError("a notice of a format that is not known")
        try:
            head, _, body = zlib.decompressobj(-zlib.MAX_WBITS, _COMMON).decompress(document[1:]).partition(b"\n")
        except zlib.error as error:
            raise ValueError(f"a notice that cannot be read: {error}") from None
        id, type, count, attempts, trouble = orjson.loads(head)
        return cls(Notice(id, type, body, count), attempts, trouble)


class Packed(NamedTuple):
    """A notice that was never tried, as it is kept: the same for all whom it is for."""

    id: str
    count: int  # type: ignore[assignment]  # a tuple has a method of this name, which nobody calls here
    document: bytes

    @classmethod
    def of(cls, notice: Notice) -> "Packed":
        return cls(notice.id, notice.count, Kept(notice).document())


def notice(type: str, source: str, data: dict[str, Any], now: float, id: str = "", count: int = 1, trace: str = "") -> Notice:
    """A notice as a CloudEvents 1.0 event (JSON format, 3): `data` is what it says, `now` in seconds since 1970; `trace` is the attribute of its
    extension for distributed tracing."""
    id = id or f"msg_{token_hex(12)}"
    return Notice(id, type, orjson.dumps({
        "specversion": "1.0", "id": id, "source": source, "type": type, "time": timestamp(now), "datacontenttype": "application/json", **({"traceparent": trace} if trace else {}), "data": data,
    }), count)


def batches(items: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Items, each as JSON, in as few batches as may be."""
    start = size = 0
    for place, item in enumerate(items):
        if place > start and (place - start == BATCH or size + len(item) > BATCH_BYTES):
            yield items[start:place]
            start, size = place, 0
        size += len(item) + 1
    if start < len(items):
        yield items[start:]
