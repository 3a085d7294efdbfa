"""Tokens are taken where PyJWT takes them at that second and the rules of PERE have nothing against it, and nowhere else."""

from datetime import datetime
from typing import Any

import jwt
import jwt.api_jwt
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minting import PRIVATE, SECRET, jwk, public_pem

from pere.auth import Grant, Verifier
from pere.errors import Unauthorized
from pere.keys import of_jwks, of_pem, of_secret
from pere.names import DEVICE

START = 1_417_444_000
MOMENTS = [START + each for each in (0, 59, 60, 61, 64, 65, 66, 120, 125, 3599, 3600, 3601, 3605)]
REVOKED = START + 60
FEEDS: list[Any] = [["load"], ["a.*", "b"], [], ["a b"], [1], [["a"]], [True], "load", None, {}, ["a"] * 101]
# Each claim as it is said most often, and as it may be said.
CLAIMS: dict[str, Any] = {
    "exp": st.sampled_from([*MOMENTS, True, None, "60", -1, 10**12, [START]]),
    "iat": st.sampled_from([*MOMENTS, True, None, "60", -1, 10**12]),
    "nbf": st.sampled_from([*MOMENTS, True, None, "60", -1, 10**12]),
    "aud": st.sampled_from(["pere", "other", ["pere"], ["other", "pere"], ["other"], [], "", None, 7, [7, "pere"], {"pere": 1}]),
    "sub": st.sampled_from(["d000001", "till-1", "back", "", "a b", "x" * 129, 7, None, ["d"]]),
    "jti": st.sampled_from(["1", "", 1, None]),
    "iss": st.sampled_from(["me", "https://me", 7]),
    "pere": st.sampled_from([{"feed": feed} for feed in FEEDS] + [{"feed": ["load"], "push": ["p"]}, {"push": ["a b"]}, {"admin": True}, {"admin": 1}, {"admin": True, "feed": 1}, {}, [], None, 1, "x"])
}
LIKELY = {"exp": START + 3600, "sub": "d000001", "pere": {"feed": ["load"]}}


class Clock(datetime):
    """What PyJWT looks at. It can be told nothing of the time."""

    moment = 0.0

    @classmethod
    def now(cls, tz: Any = None) -> "Clock":
        return cls.fromtimestamp(cls.moment, tz)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(jwt.api_jwt, "datetime", Clock)


@st.composite
def said(draw: Any) -> dict[str, Any]:
    """Claims of which most are good, in any order."""
    claims = {name: draw(CLAIMS[name]) for name in draw(st.sets(st.sampled_from(sorted(CLAIMS))))}
    return {name: claims.get(name, LIKELY.get(name)) for name in draw(st.permutations(sorted(LIKELY.keys() | claims.keys())))}


def minted(claims: dict[str, Any]) -> bytes:
    # PyJWT would not mint all of these.
    return jwt.api_jws.encode(orjson.dumps(claims), SECRET, "HS256").encode()


def allows(said: Any) -> bool:
    """Whether this is what a token may allow."""
    if not isinstance(said, dict) or not isinstance(said.get("admin", False), bool):
        return False
    lists = [said.get(name, []) for name in ("push", "feed")]
    return all(isinstance(each, list) and len(each) <= 100 and all(name in ("load", "p", "a.*", "b") or name == "a" for name in each) for each in lists)


def by_the_rules(token: bytes, now: float, audience: str, leeway: int, max_age: int) -> tuple[str, list[str], bool] | None:
    """Whose it is, and what it allows; None where it does not hold."""
    Clock.moment = now
    try:
        claims = jwt.decode(token, SECRET, ["HS256"], audience=audience or None, leeway=leeway, options={"require": ["exp"]})
    except jwt.PyJWTError:
        return None
    times, subject = {name: claims[name] for name in ("exp", "iat", "nbf") if name in claims}, claims.get("sub", "")
    if any(type(each) is not int or not 0 <= each < 1e11 for each in times.values()):
        return None
    if max_age and ("iat" not in times or times["exp"] - times["iat"] > max_age):
        return None
    if subject and not DEVICE.fullmatch(subject) or subject == "back" and ("iat" not in times or times["iat"] <= REVOKED + leeway):
        return None
    allowed = claims.get("pere", {})
    return (subject, allowed.get("feed", []), allowed.get("admin", False)) if allows(allowed) else None


def by_us(by: Verifier, token: bytes, now: float) -> tuple[str, list[str], bool] | None:
    try:
        grant = by.grant(token, now)
    except Unauthorized:
        assert token not in by.known or now >= by.known[token].expires or now < by.known[token].begins
        return None
    assert grant.name == grant.subject.encode()
    return grant.subject, list(grant.scope.feed), grant.scope.is_admin


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(said(), min_size=1, max_size=4), st.sampled_from(["", "pere"]), st.sampled_from([0, 5]), st.sampled_from([0, 3600]))
def test_a_token_is_taken_at_each_second_where_pyjwt_and_the_rules_take_it(clock, tokens, audience, leeway, max_age):
    by = Verifier([of_secret(SECRET)], audience, leeway, max_age)
    by.revoke("back", REVOKED)
    for token in map(minted, tokens):
        for now in (*MOMENTS, *MOMENTS[::-1]):  # what is known is asked for anew, and the clock may step back
            assert by_us(by, token, now) == by_the_rules(token, now, audience, leeway, max_age)


@pytest.mark.parametrize("leeway, max_age", [(0, 0), (5, 0), (5, 3600)])
def test_a_token_holds_from_its_very_second_to_its_very_second(clock, leeway, max_age):
    by = Verifier([of_secret(SECRET)], leeway=leeway, max_age=max_age)
    token = minted({**LIKELY, "iat": START, "nbf": START + 60})
    held = [now for now in range(START - 10, START + 3700) if by_us(by, token, now) is not None]
    assert held == [now for now in range(START - 10, START + 3700) if by_the_rules(token, now, "", leeway, max_age) is not None] == list(range(START + 60 - leeway, START + 3600 + leeway))


@pytest.mark.parametrize("said", [{"admin": 1}, {"admin": 1.0}, {"feed": ["load"], "admin": 0}])
def test_what_is_like_what_another_token_allows_is_not_taken_for_it(said):
    by = Verifier([of_secret(SECRET)])
    for good in ({"admin": True}, {"feed": ["load"], "admin": False}):
        assert by.grant(minted({**LIKELY, "pere": good}), START)
    assert by_us(by, minted({**LIKELY, "pere": said}), START) is None


def test_what_a_token_allows_may_stand_beside_what_means_nothing_however_deep_that_is():
    said = b'{"sub":"d","exp":%d,"pere":{"feed":["load"],"more":%b}}' % (START + 60, b"[" * 300 + b"]" * 300)
    grant = Verifier([of_secret(SECRET)]).grant(jwt.api_jws.encode(said, SECRET, "HS256").encode(), START)
    assert (grant.subject, grant.scope.feed) == ("d", ("load",))


@pytest.mark.parametrize("deep", [1, 250, 300, 1000])
def test_what_stands_for_a_pattern_is_refused_however_deep_it_is(deep):
    said = b'{"sub":"d","exp":%d,"pere":{"feed":[%b]}}' % (START + 60, b"[" * deep + b"]" * deep)
    with pytest.raises(Unauthorized) as caught:
        Verifier([of_secret(SECRET)]).grant(jwt.api_jws.encode(said, SECRET, "HS256").encode(), START)
    assert (caught.value.code, "a list" in caught.value.message) == ("bad_token", True)


def test_a_revoked_token_is_called_so_whatever_it_allows():
    by = Verifier([of_secret(SECRET)])
    by.revoke("back", REVOKED)
    for allowed in ({"feed": ["a b"]}, [], {"admin": 1}):
        with pytest.raises(Unauthorized) as caught:
            by.grant(minted({**LIKELY, "sub": "back", "pere": allowed}), START)
        assert caught.value.code == "revoked_token"


def test_a_header_means_other_keys_once_they_have_changed():
    secret, by = of_secret(SECRET), Verifier([of_secret("another secret of thirty-two bytes")], fetched=())

    def taken(token: bytes | str) -> Grant | None:
        try:
            return by.grant(token.encode() if isinstance(token, str) else token, START)
        except Unauthorized:
            return None

    ours = minted(LIKELY)
    theirs = jwt.encode(LIKELY, PRIVATE["ES256"], "ES256", headers={"kid": "k"})
    steps = [
        (lambda: None, False, False), (lambda: by.stand([secret]), True, False), (lambda: by.fetch(of_jwks({"keys": [jwk("ES256", "k")]})), True, True),
        (lambda: by.stand([]), False, True), (lambda: by.fetch(of_jwks({"keys": [jwk("ES256", "new")]})), False, False),
        (lambda: by.stand(of_pem(public_pem(PRIVATE["ES256"]))), False, True), (lambda: by.stand([secret]), True, False)]
    for change, *expected in steps:
        change()
        assert [[taken(token) is not None for token in (ours, theirs)] for _ in range(2)] == [expected] * 2


@pytest.mark.parametrize("algorithm", sorted(PRIVATE))
def test_a_signature_that_was_spoilt_is_refused_as_one_that_is_none_or_not_right(algorithm):
    by = Verifier([of_secret(SECRET), *of_pem(public_pem(PRIVATE[algorithm]))])
    for token in (minted(LIKELY), jwt.encode(LIKELY, PRIVATE[algorithm], algorithm).encode()):
        message, _, signature = token.rpartition(b".")
        assert by.grant(token, START)
        for spoilt in (signature + b"=", signature + b"A", signature[:-1], b"+" + signature[1:], b"\xff" + signature[1:], signature + b"\n", signature.swapcase(), b"A" * len(signature), b"A"):
            with pytest.raises(Unauthorized) as caught:
                by.grant(message + b"." + spoilt, START)
            assert caught.value.code == "bad_token"
            assert caught.value.message.startswith(("the signature of the token is not right", "a part of the token is no base64url", "a token is a JWT of at most"))
