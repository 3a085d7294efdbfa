"""Signatures of webhooks, as Standard Webhooks 1.0.0 has them: who receives a notice can tell that it is ours, whole, and fresh.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

    webhook-id          the same however often the notice is sent, so that it can be known again
    webhook-timestamp   of this attempt, in whole seconds since 1970
    webhook-signature   `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`; one for each secret, a space between them

This file knows bytes and secrets; what a notice says, and how it travels, is not its business. No error ever shows a secret.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from secrets import token_bytes

from pere.errors import BadRequest, Refusal
from pere.names import shown

PREFIX = "whsec_"
# "Signature scheme" of the specification: a symmetric key has 192 to 512 bits.
SHORTEST, LONGEST = 24, 64
# The specification wants "some allowable tolerance"; its own libraries take five minutes, in both directions.
TOLERANCE = 5 * 60

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"

# The parts of what is signed are told apart by full stops, so an id with one in it could lend its signature to another notice.
_ID = re.compile(r"[!-\-/-~]{1,256}")
_TIMESTAMP = re.compile(r"[0-9]{1,11}")


def new_secret(size: int = 32) -> str:
    """A secret that nobody has: `whsec_` and the base64 of `size` random bytes, 24 to 64."""
    if not SHORTEST <= size <= LONGEST:
        raise ValueError(f"a secret has {SHORTEST} to {LONGEST} bytes, not {size}")
    return PREFIX + base64.b64encode(token_bytes(size)).decode()


def key(secret: str) -> bytes:
    """The bytes that a secret stands for. Raises BadRequest if it is none; padding may be missing, as the other libraries have it."""
    text = secret.removeprefix(PREFIX)
    if text == secret:
        raise BadRequest("bad_secret", f"a secret begins with {PREFIX}, and this one does not")
    try:
        found = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("bad_secret", f"a secret is {PREFIX} and base64, and what follows {PREFIX} here is not base64") from None
    if not SHORTEST <= len(found) <= LONGEST:
        raise BadRequest("bad_secret", f"a secret has {SHORTEST} to {LONGEST} bytes, and this one has {len(found)}")
    return found


def signed(id: str, timestamp: int, body: bytes, secrets: Iterable[str]) -> dict[str, str]:
    """The three headers that make a notice ours. With several secrets it is signed with each, in their order: while one secret
    takes the place of another, whoever knows either can verify it. `timestamp` is that of this attempt, in seconds.

    Raises ValueError if the id is none, and BadRequest if a secret is.
    """
    if not _ID.fullmatch(id):
        raise ValueError(f"a webhook-id is 1 to 256 printable characters without spaces and full stops, not {shown(id)}")
    signatures = " ".join(f"v1,{base64.b64encode(_mac(secret, id, str(timestamp), body)).decode()}" for secret in secrets)
    if not signatures:
        raise ValueError("a notice is signed with at least one secret")
    return {ID: id, TIMESTAMP: str(timestamp), SIGNATURE: signatures}


def verify(headers: Mapping[str, str], body: bytes, secrets: Iterable[str], now: float, tolerance: float = TOLERANCE) -> str:
    """The id of a notice that was signed with one of these secrets not more than `tolerance` seconds before or after `now`.

    `headers` are those of the request, their names in any case. Raises BadRequest (400) where a header is missing or malformed,
    and a Refusal with status 401 where the time or the signature is wrong.
    """
    named = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in (ID, TIMESTAMP, SIGNATURE) if not named.get(name)]
    if missing:
        raise BadRequest("not_signed", f"a webhook has the headers {ID}, {TIMESTAMP} and {SIGNATURE}; missing here: {', '.join(missing)}")
    id, timestamp, given = named[ID], named[TIMESTAMP], named[SIGNATURE]
    if not _ID.fullmatch(id):
        raise BadRequest("bad_webhook_id", f"a {ID} is 1 to 256 printable characters without spaces and full stops, not {shown(id)}")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise BadRequest("bad_webhook_timestamp", f"a {TIMESTAMP} is whole seconds since 1970, not {shown(timestamp)}")
    # Of other versions (v1a is a public-key signature) we know nothing, and each may stand beside ours.
    candidates = [found for each in given.split(" ") if (found := _decoded(each)) is not None]
    if not candidates:
        raise BadRequest("bad_webhook_signature", f"a {SIGNATURE} is `v1,` and the base64 of 32 bytes, and more of them after spaces; not {shown(given)}")
    # The signature first: to a stranger, our clock is nobody's business.
    genuine = False
    for secret in secrets:
        expected = _mac(secret, id, timestamp, body)
        for candidate in candidates:
            # In constant time, or the time of our refusal would tell a forger how many bytes were right.
            genuine |= hmac.compare_digest(expected, candidate)
    if not genuine:
        raise Refusal("wrong_signature", "no signature is of this id, timestamp and body with a secret that is known here", status=401)
    age = now - int(timestamp)
    if abs(age) > tolerance:
        raise Refusal("wrong_time", f"the notice is from {abs(age):.0f} s {'ago' if age > 0 else 'ahead'}, and at most {tolerance:g} s are allowed",
                      status=401)
    return id


def _mac(secret: str, id: str, timestamp: str, body: bytes) -> bytes:
    return hmac.digest(key(secret), f"{id}.{timestamp}.".encode() + body, hashlib.sha256)


def _decoded(signature: str) -> bytes | None:
    version, _, text = signature.partition(",")
    if version != "v1":
        return None
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return found if len(found) == hashlib.sha256().digest_size else None
