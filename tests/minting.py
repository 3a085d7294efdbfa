"""Tokens for tests, of every kind of key, good and bad."""

import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

SECRET = "a secret that only the tests have"

# One of each kind for all tests: to make an RSA key takes longer than most of them.
PRIVATE: dict[str, Any] = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
JWK: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}


def token(sub: str | None = None, *, push: list[str] | None = None, feed: list[str] | None = None, admin: bool = False, key: Any = SECRET,
          algorithm: str = "HS256", kid: str | None = None, expires: float | None = 3600, issued: float | None = 0, now: float | None = None, **claims: Any) -> str:
    """`expires` and `issued` are seconds from `now`."""
    now = time.time() if now is None else now
    said: dict[str, Any] = {"pere": {name: value for name, value in {"push": push, "feed": feed, "admin": admin}.items() if value}}
    said |= {"sub": sub} if sub is not None else {}
    said |= {"exp": now + expires} if expires is not None else {}
    said |= {"iat": int(now + issued)} if issued is not None else {}
    return jwt.encode(said | claims, key, algorithm, headers={"kid": kid} if kid is not None else None)


def bearer(*args: Any, **said: Any) -> dict[str, str]:
    """The header, as `wire` takes it."""
    return {"Authorization": f"Bearer {token(*args, **said)}"}


def public_pem(private: Any) -> bytes:
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(private: Any) -> bytes:
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def jwk(algorithm: str, kid: str | None = None, private: Any = None, **more: Any) -> dict[str, Any]:
    """A public key as it stands in a JWKS document."""
    key = (private or PRIVATE[algorithm]).public_key()
    return JWK[algorithm].to_jwk(key, as_dict=True) | ({"kid": kid} if kid is not None else {}) | more
