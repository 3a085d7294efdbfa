"""A receiver's side of webhooks: whether a notice is PERE's, whole and fresh, and what it says.

It needs no HTTP of its own, so it goes with whatever web framework receives the notice.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from pere.errors import BadRequest
from pere.signing import TOLERANCE, verify


@dataclass(frozen=True, slots=True)
class Notice:
    """What a webhook was sent. `id` is the same however often it comes: what was seen before is a repetition, and to be answered 2xx too. `type` is one of those
    in the README (`pere.event.completed`, ...), `data` what that says, `body` the whole CloudEvent."""

    id: str
    type: str
    data: Any
    body: dict[str, Any]


def verify_notice(secret: str | Iterable[str], headers: Mapping[str, str], body: bytes, *, tolerance: float = TOLERANCE, now: float | None = None) -> Notice:
    """The notice in a request with these headers (their names in any case) and this body, byte for byte as it came.

    `secret` is the endpoint's (`whsec_...`); several, while it changes. At most `tolerance` seconds may lie between its time and `now`, which is the clock's.
    Raises Refusal, whose `status` is what to answer: 400 where something is missing or malformed, 401 where the time or the signature is wrong.
    """
    secrets = [secret] if isinstance(secret, str) else list(secret)
    id = verify(headers, body, secrets, time.time() if now is None else now, tolerance)
    try:
        said = orjson.loads(body)
        return Notice(id, said["type"], said.get("data"), said)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise BadRequest("bad_notice", "a notice is a CloudEvent in JSON; this one is signed, and is none") from None
