"""The keys that tokens are verified with: a secret, public keys in PEM, or a JWKS document (RFC 7517).

What kind a key is of says by which one algorithm it verifies (RFC 8725, 3.1), and no token can say otherwise: a public key is never
taken for a secret, and `none` for nothing at all.
"""

import re
from binascii import b2a_base64
from collections.abc import Iterable
from hmac import compare_digest
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import InvalidKeyError, PyJWK, PyJWTError, get_algorithm_by_name

from pere.jws import bytes_of

SECRET_BYTES = 32  # RFC 7518, 3.2: a key for HS256 is at least as long as its hash
RSA_BITS = 2048  # RFC 7518, 3.3
MAX_KEYS = 100  # of a JWKS document
URLSAFE = bytes.maketrans(b"+/", b"-_")  # RFC 4648, 5
PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Key:
    """`id` is the `kid` by which a token may name it, None if it has none; `key` is what PyJWT has prepared for the algorithm, and of a secret
    an HMAC that has taken it in."""

    id: str | None
    algorithm: str
    key: Any

    def signed(self, message: bytes, signature: bytes) -> bool:
        """Whether it was this key, and no other, that signed the message so; the signature is in base64url, as it stands in a token. Raises
        Unauthorized for what may be none."""
        if self.algorithm == "HS256":
            # To take the secret in anew for each message costs more than the message. What comes of it can be written in one way only (RFC 7515, 2), so it
            # is that which is compared, with what Python writes behind it.
            mac = self.key.copy()
            mac.update(message)
            return compare_digest(b2a_base64(mac.finalize()).translate(URLSAFE), signature + b"=\n")
        return get_algorithm_by_name(self.algorithm).verify(message, self.key, bytes_of(signature))


def of_secret(secret: str) -> Key:
    """Raises ValueError if it is too short; what it is is not told."""
    if (length := len(secret.encode())) < SECRET_BYTES:
        raise ValueError(f"a secret has at least {SECRET_BYTES} bytes (RFC 7518, 3.2), and this one has {length}")
    try:
        return Key(None, "HS256", HMAC(get_algorithm_by_name("HS256").prepare_key(secret), SHA256()))
    except InvalidKeyError as error:
        raise ValueError(str(error)) from None  # such as a public key that was taken for a secret


def of_pem(text: bytes) -> list[Key]:
    """One public key or several, one behind the other. Raises ValueError where there is none, or one that cannot be taken."""
    found = []
    for match in PEM.finditer(text):
        if b"PRIVATE" in match[1]:
            raise ValueError("this is a private key, which only who mints tokens may have; here the public one is wanted")
        try:
            key = load_pem_public_key(match[0])
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError(f"a key in it cannot be read ({match[1].decode()})") from None
        found.append(Key(None, algorithm_of(key), key))
    if not found:
        raise ValueError("there is no public key in PEM in it (-----BEGIN PUBLIC KEY-----)")
    return found


def of_jwks(document: Any) -> list[Key]:
    """The keys of a JWKS document that can be taken; the others are for others (RFC 7517, 5). Raises ValueError where there are none."""
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ValueError('a JWKS document is an object with "keys"')
    found = [key for each in keys[:MAX_KEYS] if (key := _of_jwk(each)) is not None]
    if not found:
        raise ValueError("there is no RSA, P-256 or Ed25519 key for signatures in it")
    return found


def _of_jwk(jwk: Any) -> Key | None:
    # A secret (`oct`) has no place in a document that anybody may read.
    if not isinstance(jwk, dict) or jwk.get("kty") not in ("RSA", "EC", "OKP") or jwk.get("use", "sig") != "sig":
        return None
    if "verify" not in _list(jwk.get("key_ops", ["verify"])):
        return None
    id = jwk.get("kid")
    try:
        key = PyJWK({name: value for name, value in jwk.items() if name != "alg"}).key
        algorithm = algorithm_of(key)
    except (PyJWTError, ValueError, TypeError, UnsupportedAlgorithm):
        return None
    if jwk.get("alg", algorithm) != algorithm:
        return None
    return Key(id if isinstance(id, str) else None, algorithm, key)


def algorithm_of(key: object) -> str:
    """By which algorithm a public key verifies. Raises ValueError for one that none is taken of."""
    if isinstance(key, RSAPublicKey):
        if key.key_size < RSA_BITS:
            raise ValueError(f"an RSA key has at least {RSA_BITS} bits (RFC 7518, 3.3), not {key.key_size}")
        return "RS256"
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return "ES256"
    if isinstance(key, Ed25519PublicKey):
        return "EdDSA"
    raise ValueError("a public key is RSA, P-256 or Ed25519")


def _list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else ()
