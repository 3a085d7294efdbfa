"""Tokens and what they allow: time is handed in, keys are real."""

import base64
from functools import partial

import jwt
import minting
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from minting import PRIVATE, SECRET, jwk, private_pem, public_pem

from pere import auth
from pere.auth import ADMIN, ANYBODY, FEED, NOBODY, OPEN, PUSH, Grant, UnknownKey, Verifier
from pere.errors import Forbidden, Unauthorized
from pere.jws import MAX_TOKEN
from pere.keys import of_jwks, of_pem, of_secret

NOW = 1_417_444_110.993
token = partial(minting.token, now=NOW)
ASYMMETRIC = ["RS256", "ES256", "EdDSA"]


def verifier(**said):
    return Verifier([of_secret(SECRET)], **said)


def refused(text: str | bytes, by: Verifier | None = None, now: float = NOW) -> str:
    """The code with which a token is refused."""
    with pytest.raises(Unauthorized) as caught:
        (by or verifier()).grant(text if isinstance(text, bytes) else text.encode(), now)
    return caught.value.code


def granted(text: str, by: Verifier | None = None, now: float = NOW) -> Grant:
    return (by or verifier()).grant(text.encode(), now)


# What a token allows


def test_a_token_allows_what_it_names_and_nothing_else():
    grant = granted(token("till-1", push=["orders", "log.*"], feed=["orders.**"]))
    assert grant.subject == "till-1"
    assert [grant.may_push(channel) for channel in ("orders", "log.1", "log.1.2", "orders.eu")] == [True, True, False, False]
    assert [grant.may_feed(wanted) for wanted in ("orders.eu", "orders.*", "orders.**", "orders", "**", "log.1")] == [True, True, True, False, False, False]
    assert not grant.scope.is_admin


def test_a_token_that_allows_nothing_holds_all_the_same():
    grant = granted(token("till-1"))
    for need in (PUSH, FEED, ADMIN, NOBODY):
        for channel in ("orders", None):
            with pytest.raises(Forbidden, match="does not allow"):
                grant.check(need, channel)
    grant.check(ANYBODY)


def test_an_administrator_may_neither_push_nor_listen():
    grant = granted(token("root", admin=True))
    grant.check(ADMIN)
    for need in (PUSH, FEED, NOBODY):
        with pytest.raises(Forbidden):
            grant.check(need, "orders")


def test_where_no_channel_is_named_any_will_do():
    granted(token(push=["a"])).check(PUSH)
    with pytest.raises(Forbidden):
        granted(token(push=["a"])).check(FEED)


def test_without_keys_everybody_may_do_everything_under_any_name():
    for need in (PUSH, FEED, ADMIN, NOBODY):
        OPEN.check(need, "orders")
    assert (OPEN.named("a", "b"), OPEN.named("", "b"), OPEN.named(None, "")) == ("a", "b", "")
    assert OPEN.expires is None


def test_the_bearer_is_the_subject_and_nobody_else():
    grant = granted(token("till-1"))
    assert grant.named() == grant.named("", None) == grant.named("till-1", "till-1") == "till-1"
    for names in (("till-2",), ("till-1", "till-2"), ("", "till-2"), ("Till-1",)):
        with pytest.raises(Forbidden) as caught:
            grant.named(*names)
        assert caught.value.code == "wrong_device"


def test_a_token_of_nobody_is_that_of_no_device():
    grant = granted(token(push=["a"]))
    assert grant.named() == ""
    with pytest.raises(Forbidden, match="no device"):
        grant.named("till-1")


# Time


def test_a_token_holds_until_its_end_and_the_leeway():
    text, by = token(expires=60), verifier(leeway=5)
    end = granted(text, by, NOW + 64).expires
    assert end == pytest.approx(NOW + 65, abs=1)
    assert refused(text, by, end) == "expired_token"
    assert refused(text, by, NOW + 66) == "expired_token"


def test_a_token_that_was_remembered_expires_too():
    by = verifier()
    text = token(expires=60)
    for _ in range(3):
        granted(text, by)
    assert list(by.known) == [text.encode()]
    assert refused(text, by, NOW + 61) == "expired_token"
    assert granted(text, by, NOW)


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_a_token_from_the_future_does_not_hold_yet(claim):
    text, by = token(issued=None, **{claim: NOW + 60}), verifier(leeway=5)
    assert refused(text, by, NOW + 54) == "early_token"
    assert granted(text, by, NOW + 55)


@pytest.mark.parametrize("earlier, later", [("nbf", "iat"), ("iat", "nbf")])
def test_of_the_times_from_which_it_holds_the_later_one_counts_to_the_very_second(earlier, later):
    now = 1_417_444_110
    text = token(issued=None, exp=now + 300, **{earlier: now + 60, later: now + 120})
    assert [refused(text, by, now + 120 - by._leeway - 0.25) for by in (verifier(), verifier(leeway=5))] == ["early_token"] * 2
    assert [granted(text, by, now + 120 - by._leeway).expires for by in (verifier(), verifier(leeway=5))] == [now + 300, now + 305]
    assert granted(text, verifier(leeway=5), now + 304.75)
    assert [refused(text, by, now + 300 + by._leeway) for by in (verifier(), verifier(leeway=5))] == ["expired_token"] * 2


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", ["soon", str(NOW), True, None, [], float("nan"), float("inf"), -1, 1e300])
def test_what_is_no_time_is_no_token(claim, value):
    assert refused(token(**{claim: value})) == "bad_token"


def test_a_token_without_an_end_does_not_hold():
    assert refused(token(expires=None)) == "bad_token"


def test_a_token_may_not_hold_longer_than_is_allowed_and_must_say_how_long():
    by = verifier(max_age=3600)
    assert granted(token(expires=3600, issued=1), by, NOW + 1)
    assert granted(token(iat=1_417_444_000, exp=1_417_447_600), by), "as long as it may hold, and no longer"
    assert refused(token(iat=1_417_444_000, exp=1_417_447_600.25), by) == "long_token"
    assert refused(token(expires=3700), by) == "long_token"
    assert refused(token(expires=10, issued=None), by) == "long_token"


# Audience


def test_a_token_is_for_us_or_for_nobody_in_particular():
    by = verifier(audience="pere")
    for aud in ("pere", ["other", "pere"]):
        assert granted(token(aud=aud), by)
    for aud in ("other", ["other"]):
        assert refused(token(aud=aud), by) == "wrong_audience"
    assert refused(token(), by) == "bad_token"
    assert refused(token(aud="pere"), verifier()) == "wrong_audience"


# What is none


@pytest.mark.parametrize("said", [
    {"pere": []}, {"pere": "push"}, {"pere": None}, {"pere": {"admin": 1}}, {"pere": {"admin": "true"}}, {"pere": {"push": "orders"}}, {"pere": {"push": {"a": 1}}},
    {"pere": {"feed": ["a b"]}}, {"pere": {"feed": [1]}}, {"pere": {"feed": [""]}}, {"pere": {"feed": ["**a"]}}, {"pere": {"feed": ["a"] * 101}},
    {"sub": 7}, {"sub": "a b"}, {"sub": "x" * 129}, {"sub": "a\r\nb"}, {"sub": ["till-1"]}, {"sub": "*"}])
def test_claims_that_say_what_cannot_be_are_refused_as_a_whole(said):
    assert refused(token(**said)) == "bad_token"


GOOD = token("till-1", feed=["orders"])
HEAD, BODY, SIGNATURE = GOOD.split(".")


@pytest.mark.parametrize("text", [
    "", ".", "..", "x", HEAD, f"{HEAD}.{BODY}", f"{HEAD}.{BODY}.", f".{BODY}.{SIGNATURE}", f"{HEAD}..{SIGNATURE}", f"{GOOD}.{SIGNATURE}", f"{HEAD}.{BODY}.{SIGNATURE[:-4]}AAAA",
    f"{HEAD}.{BODY}.{SIGNATURE[:-1]}", f"{HEAD}.{BODY[:-2]}.{SIGNATURE}", f"{HEAD}.{token('till-2').split('.')[1]}.{SIGNATURE}", GOOD + " ", GOOD + "\n", GOOD + "=", GOOD.replace(".", ".\0"),
    "é" + GOOD, "bnVsbA." + BODY + "." + SIGNATURE, "W10." + BODY + "." + SIGNATURE, "eyJhbGciOltdfQ." + BODY + "." + SIGNATURE, "e30." + BODY + "." + SIGNATURE, GOOD + "A" * MAX_TOKEN])
def test_what_is_no_token_or_was_changed_on_the_way_is_refused(text):
    assert refused(text.encode()) == "bad_token"


def test_a_body_that_is_no_object_is_refused():
    for body in (b"[]", b"null", b"1", b'"x"', b"{", b"[" * 1500, b"\xff"):
        text = jwt.PyJWS().encode(body, SECRET, "HS256")
        assert refused(text) == "bad_token"


def unsigned(algorithm: str, body: str = BODY) -> str:
    head = base64.urlsafe_b64encode(f'{{"alg":"{algorithm}","typ":"JWT"}}'.encode()).rstrip(b"=").decode()
    return f"{head}.{body}."


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
def test_an_unsigned_token_is_refused_by_every_kind_of_key(algorithm):
    for by in (verifier(), Verifier(of_pem(public_pem(PRIVATE["RS256"]))), Verifier((), fetched=of_jwks({"keys": [jwk("ES256", "k")]}))):
        assert refused(unsigned(algorithm), by) == "bad_token"
        assert refused(unsigned(algorithm) + "AAAA", by) == "bad_token"


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_a_public_key_is_never_taken_for_a_secret(algorithm):
    pem = public_pem(PRIVATE[algorithm])
    # PyJWT refuses to sign with it, so this is done by hand.
    import hashlib
    import hmac
    body = base64.urlsafe_b64encode(b'{"sub":"x","exp":9999999999}').rstrip(b"=").decode()
    signed = unsigned("HS256", body)[:-1]
    for key in (pem, pem.strip()):
        mac = base64.urlsafe_b64encode(hmac.new(key, signed.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
        for by in (Verifier(of_pem(pem)), Verifier((), fetched=of_jwks({"keys": [jwk(algorithm)]}))):
            assert refused(f"{signed}.{mac}", by) == "bad_token"


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_only_the_one_algorithm_of_a_secret_is_taken(algorithm):
    assert refused(token(key=SECRET * 2, algorithm=algorithm), Verifier([of_secret(SECRET * 2)])) == "bad_token"


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256"])
def test_only_the_one_algorithm_of_an_rsa_key_is_taken(algorithm):
    assert refused(token(key=PRIVATE["RS256"], algorithm=algorithm), Verifier(of_pem(public_pem(PRIVATE["RS256"])))) == "bad_token"


def test_a_token_signed_with_another_secret_is_refused_and_not_remembered():
    by = verifier()
    for _ in range(3):
        assert refused(token(key="another secret of thirty-two bytes"), by) == "bad_token"
    assert not by.known


def test_no_refusal_repeats_the_token_or_the_secret():
    for text in (GOOD[:-4] + "AAAA", token(expires=-60), token(aud="x"), token(sub="a b"), unsigned("none"), GOOD + "!"):
        with pytest.raises(Unauthorized) as caught:
            granted(text)
        told = f"{caught.value!r}{caught.value.challenge}{caught.value.body()}"
        assert not any(part in told for part in (*text.split("."), SECRET[:10]) if len(part) > 8 and part != SECRET)


def test_what_is_remembered_is_bounded_and_what_is_asked_for_stays(monkeypatch):
    monkeypatch.setattr(auth, "MAX_KNOWN", 8)
    by, verified = verifier(), []
    verify = by._verify
    monkeypatch.setattr(by, "_verify", lambda token: (verified.append(token), verify(token))[1])
    texts = [token(f"d{n}") for n in range(30)]
    for text in texts:
        assert granted(text, by).subject and granted(texts[0], by).subject == "d0"
        assert len(by.known) + len(by._older) <= 8
    assert [each.decode() for each in verified] == texts


def test_a_token_that_is_known_is_not_taken_for_another_one_with_the_same_end():
    by = verifier()
    granted(GOOD, by)
    for text in (f"{HEAD}.{token('till-2').split('.')[1]}.{SIGNATURE}", f"{HEAD}.{BODY[:-4]}AAAA.{SIGNATURE}", f"A{GOOD}", SIGNATURE):
        assert refused(text, by) == "bad_token"
    assert len(by.known) == 1


# Keys


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_a_public_key_in_pem_verifies_what_its_private_one_signed(algorithm):
    by = Verifier(of_pem(public_pem(PRIVATE[algorithm])))
    assert granted(token("d", key=PRIVATE[algorithm], algorithm=algorithm), by).subject == "d"
    assert granted(token("d", key=PRIVATE[algorithm], algorithm=algorithm, kid="whatever"), by).subject == "d"
    assert refused(token("d"), by) == "bad_token"


def test_several_keys_in_one_file_are_all_good():
    other = ec.generate_private_key(ec.SECP256R1())
    by = Verifier(of_pem(b"# old\n" + public_pem(PRIVATE["ES256"]) + b"\n# new\n" + public_pem(other) + public_pem(PRIVATE["EdDSA"])))
    for key, algorithm in ((PRIVATE["ES256"], "ES256"), (other, "ES256"), (PRIVATE["EdDSA"], "EdDSA")):
        assert granted(token(key=key, algorithm=algorithm), by)
    assert refused(token(key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"), by) == "bad_token"


@pytest.mark.parametrize("text, said", [
    (b"", "no public key"), (b"hello", "no public key"), (private_pem(PRIVATE["ES256"]), "private key"),
    (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "cannot be read"),
    (public_pem(ec.generate_private_key(ec.SECP384R1())), "RSA, P-256 or Ed25519"),
    (public_pem(ed448.Ed448PrivateKey.generate()), "RSA, P-256 or Ed25519"),
    (public_pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)), "2048 bits")])
def test_a_file_without_a_key_that_can_be_taken_says_why(text, said):
    with pytest.raises(ValueError, match=said):
        of_pem(text)


def test_a_short_secret_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="at least 32 bytes .* has 31") as caught:
        of_secret("s3cret-" + "x" * 24)
    assert "s3cret" not in str(caught.value)
    assert of_secret("é" * 16).algorithm == "HS256"


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_a_key_of_a_jwks_document_is_found_by_its_id(algorithm):
    by = Verifier((), fetched=of_jwks({"keys": [jwk("RS256", "r"), jwk("ES256", "e", alg="ES256", use="sig"), jwk("EdDSA", "o", key_ops=["verify"])]}))
    kid = {"RS256": "r", "ES256": "e", "EdDSA": "o"}[algorithm]
    assert granted(token("d", key=PRIVATE[algorithm], algorithm=algorithm, kid=kid), by).subject == "d"
    assert granted(token("d", key=PRIVATE[algorithm], algorithm=algorithm), by).subject == "d"
    with pytest.raises(UnknownKey):
        granted(token("d", key=PRIVATE[algorithm], algorithm=algorithm, kid="new"), by)
    other = {"RS256": "e", "ES256": "r", "EdDSA": "r"}[algorithm]
    assert refused(token("d", key=PRIVATE[algorithm], algorithm=algorithm, kid=other), by) == "bad_token"


def test_keys_of_one_name_may_all_have_signed_and_each_by_its_own_algorithm_only():
    other = ec.generate_private_key(ec.SECP256R1())
    by = Verifier((), fetched=of_jwks({"keys": [jwk("ES256", "k"), jwk("ES256", "k", other), jwk("RS256", "k"), {"kty": "oct", "kid": "k", "k": "QUFB" * 16}]}))
    for key, algorithm in ((PRIVATE["ES256"], "ES256"), (other, "ES256"), (PRIVATE["RS256"], "RS256")):
        assert granted(token("d", key=key, algorithm=algorithm, kid="k"), by).subject == "d"
    for key, algorithm in ((PRIVATE["EdDSA"], "EdDSA"), (PRIVATE["RS256"], "PS256"), (PRIVATE["RS256"], "RS512"), ("AAA" * 16, "HS256"), (ec.generate_private_key(ec.SECP256R1()), "ES256")):
        assert refused(token("d", key=key, algorithm=algorithm, kid="k"), by) == "bad_token"


def test_keys_that_are_for_others_are_passed_over():
    secret = {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode(), "kid": "s"}
    others = [secret, jwk("RS256", "enc", use="enc"), jwk("ES256", "alg", alg="ES384"), jwk("RS256", "ps", alg="PS256"), jwk("EdDSA", "sign", key_ops=["sign"]),
              {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, {"kty": "RSA"}, {}, [], "key", None, {"kty": "OKP", "crv": "X25519", "x": "AA"},
              jwk("RS256", "small", rsa.generate_private_key(public_exponent=65537, key_size=1024))]
    with pytest.raises(ValueError, match="no RSA, P-256 or Ed25519"):
        of_jwks({"keys": others})
    assert [key.id for key in of_jwks({"keys": [*others, jwk("EdDSA", "good")]})] == ["good"]


@pytest.mark.parametrize("document", [None, [], {}, {"keys": {}}, {"keys": "x"}, {"keys": []}, 7])
def test_a_document_without_keys_is_none(document):
    with pytest.raises(ValueError):
        of_jwks(document)


def test_what_a_key_verified_is_forgotten_when_the_keys_change():
    by = Verifier((), fetched=of_jwks({"keys": [jwk("ES256", "old")]}))
    text = token(key=PRIVATE["ES256"], algorithm="ES256", kid="old")
    assert granted(text, by)
    by.fetch(of_jwks({"keys": [jwk("EdDSA", "new")]}))
    assert refused(text, by) == "unknown_key"


def test_what_was_verified_long_ago_is_forgotten_too(monkeypatch):
    monkeypatch.setattr(auth, "MAX_KNOWN", 4)
    by, texts = verifier(), [token(f"d{n}") for n in range(3)]
    for text in texts:
        granted(text, by)
    by.stand([of_secret("another secret of thirty-two bytes")])
    assert {refused(text, by) for text in texts} == {"bad_token"}


def test_keys_that_stand_may_be_followed_by_keys_of_another_kind():
    by = Verifier(of_pem(public_pem(PRIVATE["RS256"])))
    by.stand(of_pem(public_pem(PRIVATE["ES256"])))
    assert granted(token("d", key=PRIVATE["ES256"], algorithm="ES256"), by).subject == "d"
    assert refused(token("d", key=PRIVATE["RS256"], algorithm="RS256"), by) == "bad_token"


def test_a_wrong_secret_is_no_reason_to_look_for_keys():
    by = Verifier([of_secret(SECRET)], fetched=of_jwks({"keys": [jwk("ES256", "e")]}))
    assert refused(token(key="another secret of thirty-two bytes"), by) == "bad_token"


# Revoked


def test_a_revoked_subject_needs_a_token_that_was_issued_later():
    by = verifier(leeway=5)
    old, other = token("till-1", issued=-10), token("till-2", issued=-10)
    assert granted(old, by)
    by.revoke("till-1", NOW)
    assert refused(old, by) == "revoked_token"
    assert granted(other, by)
    # The clock of who issues may be ahead by the leeway.
    assert refused(token("till-1", issued=4), by, NOW + 4) == "revoked_token"
    assert refused(token("till-1", iat=NOW + 5), by, NOW + 5) == "revoked_token"
    assert granted(token("till-1", issued=7), by, NOW + 7)


def test_a_token_that_does_not_say_when_it_was_issued_is_refused_once_its_subject_is_revoked():
    by = verifier()
    text = token("till-1", issued=None)
    assert granted(text, by)
    by.revoke("till-1", NOW - 1000)
    assert refused(text, by) == "revoked_token"


def test_an_earlier_revocation_does_not_take_the_place_of_a_later_one():
    by = verifier()
    by.revoke("d", NOW)
    by.revoke("d", NOW - 100)
    assert refused(token("d", issued=-50), by) == "revoked_token"


def test_revocations_are_forgotten_when_no_token_can_have_outlived_them_and_else_never():
    by = verifier(max_age=100, leeway=5)
    by.revoke("d", NOW)
    assert by.outlived(NOW + 110) == []
    assert by.outlived(NOW + 111) == ["d"]
    assert by.revoked == {}
    for_good = verifier()
    for_good.revoke("d", NOW)
    assert for_good.outlived(NOW + 1e9) == []
