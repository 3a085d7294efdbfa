"""A signed token (RFC 7515, the compact form) taken apart.

What a header may say and what a signature proves is for PyJWT to tell; but to decode a whole token costs it as much as all else that
opens a feed, or twice that: it reads the header of each token anew, though a fleet has one, and looks at each character by itself. So it is
shown each header once, and the signature (`Key.signed`); what is between is here, and takes a tenth of the time. No clock, and no meaning
of any claim.
"""

import re
from binascii import Error, a2b_base64
from functools import lru_cache
from typing import Any

import orjson

from pere.errors import Unauthorized

MAX_TOKEN = 4096  # bytes
URLSAFE = bytes.maketrans(b"-_+/=", b"+/---")  # RFC 4648, 5; what only the other alphabet has becomes what none has
# The last letters of a part of so many letters, modulo four, in which no bit stands beyond the last byte (RFC 4648, 3.5), and what pads it.
LAST = (bytes(range(256)), b"", b"AQgw", b"AEIMQUYcgkosw048")
LETTERS = re.compile(rb"[A-Za-z0-9_-]+")
PADDING = (b"", b"", b"==", b"=")


def parts_of(token: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """What is signed; the header and the body, which are parts of that; and the signature: all as they stand in what may be a token."""
    message, _, signature = token.rpartition(b".")
    header, _, body = message.partition(b".")
    if not header or not body or not signature or len(token) > MAX_TOKEN:
        raise no_token()
    return message, header, body, signature


def claims_of(body: bytes) -> dict[str, Any]:
    """What is said, which nobody should believe whose signature is not right."""
    try:
        claims = orjson.loads(bytes_of(body))
    except orjson.JSONDecodeError:
        raise bad_token("the claims of the token are no JSON") from None
    if not isinstance(claims, dict):
        raise bad_token("the claims of a token are an object")
    return claims


@lru_cache(maxsize=64)
def key_of(part: bytes) -> tuple[Any, Any]:
    """The algorithm and the id of the key, as a header has them. What is refused is not remembered."""
    if not LETTERS.fullmatch(part):
        raise no_token()
    import jwt  # loaded long since where there are keys; who has none need not wait for it

    try:
        header = jwt.get_unverified_header(part + b".e30.AA")
    except jwt.PyJWTError as error:
        raise bad_token(f"the header of the token cannot be read: {error}") from None
    return header.get("alg"), header.get("kid")


def bytes_of(part: bytes) -> bytes:
    """RFC 4648, 3.5: what could be written in two ways is taken in one."""
    over = len(part) % 4
    if part[-1] not in LAST[over]:
        raise bad_token("a part of the token is no base64url as it is to be written")
    try:
        return a2b_base64(part.translate(URLSAFE) + PADDING[over], strict_mode=True)
    except Error:
        raise no_token() from None


def no_token() -> Unauthorized:
    return bad_token(f"a token is a JWT of at most {MAX_TOKEN} bytes: three parts in base64url, with dots between them")


def bad_token(message: str) -> Unauthorized:
    """Why nobody need look any further at a token."""
    return Unauthorized("bad_token", message)
