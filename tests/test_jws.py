"""Tokens taken apart as PyJWT takes them, or not at all."""

import base64
import json
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from minting import SECRET

from pere.errors import Unauthorized
from pere.jws import claims_of, key_of, parts_of
from pere.keys import of_secret

KEY = of_secret(SECRET)
HEADERS = [
    b'{"alg":"HS256","typ":"JWT"}', b'{"alg":"HS256"}', b' {"alg" : "HS256", "kid":"a"}\n', b'{"alg":"HS256","kid":7}', b'{"alg":"HS256","kid":null}', b'{"alg":"none"}',
    b'{"alg":"none","alg":"HS256"}', b'{"alg":"HS256","alg":"none"}', b'{"alg":"hs256"}', b'{"alg":["HS256"]}', b"{}", b"[]", b'"HS256"', b"null", b"{", b"\xff",
    b'{"alg":"HS256","crit":["exp"],"exp":1}', b'{"alg":"HS256","crit":[]}', b'{"alg":"HS256","crit":["b64"],"b64":true}', b'{"alg":"HS256","crit":["b64"],"b64":false}',
    b'{"alg":"HS256","b64":false}', b'{"alg":"HS256","zip":"DEF"}', '{"alg":"HS256"}'.encode("utf-16"), b'{"alg":"HS256","jwk":{"kty":"oct","k":"AA"}}']
BODIES = [b'{"exp":1}', b'{"exp":1,"sub":"a"}', b"{}", b"[]", b'"x"', b"7", b"null", b"", b"{", b'{"a":1,"a":2}', '{"a":"é"}'.encode(), b'{"a":[' + b"[" * 100 + b"]" * 100 + b"]}"]
# What Python's own reader takes for JSON, and RFC 8259 does not, or not in a token (RFC 7519, 7.2: UTF-8).
LOOSE = [b'{"exp":NaN}', b'{"exp":Infinity}', '{"exp":1}'.encode("utf-16"), '{"exp":1}'.encode("utf-32"), b'\xef\xbb\xbf{"exp":1}', b'{"a":"\\ud800"}', b'{"a":"\xff"}',
         b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}"]


def part(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def made(header: bytes, body: bytes) -> bytes:
    """Signed, whatever it says."""
    message = part(header) + b"." + part(body)
    return message + b"." + part(jwt.get_algorithm_by_name("HS256").sign(message, SECRET.encode()))


def by_pyjwt(token: bytes) -> Any:
    try:
        return jwt.decode(token, SECRET, algorithms=["HS256"], options={"verify_exp": False, "verify_aud": False, "verify_sub": False, "verify_jti": False})
    except jwt.PyJWTError:
        return None


def by_us(token: bytes) -> Any:
    try:
        message, header, body, signature = parts_of(token)
        return claims_of(body) if key_of(header)[0] == "HS256" and KEY.signed(message, signature) else None
    except Unauthorized as refusal:
        assert refusal.code == "bad_token"
        return None


@pytest.mark.parametrize("header", HEADERS, ids=repr)
def test_a_header_is_taken_where_pyjwt_takes_it(header):
    for body in BODIES[:2]:
        for _ in range(2):  # the second time it is remembered
            assert by_us(made(header, body)) == by_pyjwt(made(header, body))
    assert header not in HEADERS[:3] or by_us(made(header, body)) is not None


@pytest.mark.parametrize("body", BODIES, ids=repr)
def test_claims_are_what_pyjwt_reads(body):
    assert by_us(made(HEADERS[0], body)) == by_pyjwt(made(HEADERS[0], body))
    assert (by_us(made(HEADERS[0], body)) is not None) == (body in (*BODIES[:3], *BODIES[-3:]))


@pytest.mark.parametrize("body", LOOSE, ids=lambda body: repr(body[:30]))
def test_claims_that_are_json_for_python_alone_are_none(body):
    assert by_us(made(HEADERS[0], body)) is None


def test_what_was_written_in_another_way_than_is_right_is_refused():
    token = made(HEADERS[1], b'{"exp":12}')
    head, body, signature = token.split(b".")
    for changed in (head + b"." + body[:-1] + bytes([body[-1] + 1]) + b"." + signature, head + b"=." + body + b"." + signature, token + b"=", token + b"\n",
                    head + b"." + body + b"." + signature[:-1] + bytes([signature[-1] + 1]), head + b".." + signature, b"." + body + b"." + signature, head + b"." + body + b".",
                    token.replace(b".", b"..", 1), head + b"." + body, token + b"." + signature, b" " + token, token.replace(b".", b"\x00.", 1), token + "é".encode()):
        assert by_us(changed) is None
    assert by_us(token) == {"exp": 12} == json.loads(b'{"exp":12}')


@given(st.sampled_from(HEADERS), st.sampled_from(BODIES), st.data())
def test_a_token_that_was_changed_anywhere_is_taken_by_both_or_by_none(header, body, data):
    token = made(header, body)
    for _ in range(data.draw(st.integers(0, 2))):
        start = data.draw(st.integers(0, len(token)))
        end = start + data.draw(st.integers(0, 3))
        token = token[:start] + data.draw(st.sampled_from([b"", b"A", b"-", b"_", b".", b"g", b"+", b"/", b" ", b"\xff"])) + token[end:]
    assert by_us(token) == by_pyjwt(token)
