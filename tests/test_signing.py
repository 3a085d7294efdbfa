"""Signatures, held against those of the package that the authors of Standard Webhooks publish."""

import base64
import re
from datetime import UTC, datetime
from time import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from pere.errors import Refusal
from pere.signing import key, new_secret, signed, verify

# The example in the tests of all their libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOW = 1_614_265_330
BODY = b'{"test": 2432232314}'


def headers(secret: str = SECRET, **changed: str) -> dict[str, str]:
    made = signed("msg_p5jXN8AQM9LWM0D4loKWxJek", NOW, BODY, [secret])
    return made | {f"webhook-{name}": value for name, value in changed.items()}


def refused(given: dict[str, str], body: bytes = BODY, secrets: tuple[str, ...] = (SECRET,), now: float = NOW) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        verify(given, body, secrets, now)
    assert not any(secret.removeprefix("whsec_") in caught.value.message for secret in secrets)
    return caught.value.status, caught.value.code


# Against the other library


def test_the_example_that_all_libraries_share_has_the_signature_that_they_share():
    assert headers()["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.text(), st.binary(min_size=24, max_size=64), st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True))
def test_their_verifier_takes_what_we_sign(text, raw, id):
    secret = "whsec_" + base64.b64encode(raw).decode()
    Webhook(secret).verify(text.encode(), signed(id, int(time()), text.encode(), [secret]), json_parse=False)


@given(st.text(), st.binary(min_size=24, max_size=64), st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True))
def test_our_verifier_takes_what_they_sign(text, raw, id):
    secret = "whsec_" + base64.b64encode(raw).decode()
    signature = Webhook(secret).sign(id, datetime.fromtimestamp(NOW, UTC), text)
    given = {"Webhook-Id": id, "Webhook-Timestamp": str(NOW), "Webhook-Signature": signature}
    assert verify(given, text.encode(), [secret], NOW) == id


def test_their_verifier_refuses_what_was_changed_on_the_way():
    secret = new_secret()
    given = signed("msg_1", int(time()), BODY, [secret])
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY + b" ", given)


def test_while_a_secret_is_replaced_their_verifier_knows_us_by_either():
    old, new = new_secret(), new_secret()
    given = signed("msg_1", int(time()), BODY, [new, old])
    assert Webhook(old).verify(BODY, given) == Webhook(new).verify(BODY, given)
    assert given["webhook-signature"].count("v1,") == 2
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(BODY, given)


# Secrets


def test_a_new_secret_is_new_and_of_the_size_that_was_wanted():
    for size in (24, 32, 64):
        assert re.fullmatch(r"whsec_[A-Za-z0-9+/]+=*", new_secret(size))
        assert len(key(new_secret(size))) == size
    assert len(key(new_secret())) == 32
    assert new_secret() != new_secret()


@pytest.mark.parametrize("size", [0, 23, 65])
def test_no_secret_is_made_that_is_too_short_or_too_long(size):
    with pytest.raises(ValueError, match="24 to 64"):
        new_secret(size)


def test_a_secret_without_its_padding_is_the_same():
    secret = "whsec_" + base64.b64encode(b"k" * 32).decode()
    assert secret.endswith("=")
    assert key(secret) == key(secret.rstrip("="))


@pytest.mark.parametrize("secret", ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_not base64!", "whsec_MfKQ9r8\u00e9", "whsec_aGVsbG8=",
                                    "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_" + base64.b64encode(bytes(65)).decode(),
                                    "whsec_" + base64.urlsafe_b64encode(b"\xff" * 32).decode()])
def test_what_is_no_secret_is_refused_and_not_repeated(secret):
    with pytest.raises(Refusal) as caught:
        key(secret)
    assert caught.value.code == "bad_secret"
    assert len(secret) < 8 or secret[6:] not in caught.value.message


# Signing


def test_a_retry_signs_the_same_notice_anew():
    first, second = signed("msg_1", NOW, BODY, [SECRET]), signed("msg_1", NOW + 5, BODY, [SECRET])
    assert first["webhook-id"] == second["webhook-id"]
    assert first["webhook-signature"] != second["webhook-signature"]


@pytest.mark.parametrize("id", ["", "a.b", "a b", "a\r\nx: y", "\u00e9", "a" * 257])
def test_an_id_that_could_be_mistaken_is_not_signed(id):
    with pytest.raises(ValueError, match="webhook-id"):
        signed(id, NOW, BODY, [SECRET])


def test_a_notice_is_never_sent_unsigned():
    with pytest.raises(ValueError, match="at least one"):
        signed("msg_1", NOW, BODY, [])


# Verifying


def test_a_receiver_knows_any_of_its_secrets_among_any_of_the_signatures():
    old, new, other = new_secret(), new_secret(), new_secret()
    given = signed("msg_1", NOW, BODY, [new, old])
    assert verify(given, BODY, [other, old], NOW) == verify(given, BODY, [new], NOW) == "msg_1"
    assert refused(given, secrets=(other,)) == (401, "wrong_signature")


def test_a_signature_of_another_version_stands_beside_ours():
    ours = headers()["webhook-signature"]
    assert verify(headers(signature=f"v1a,{'A' * 86}== {ours}"), BODY, [SECRET], NOW)
    assert verify(headers(signature=f"v1,short {ours} v2,x"), BODY, [SECRET], NOW)
    # A version is no ornament: what v1 has signed is not said under another name.
    for version in ("v1a,", "v2,"):
        assert refused(headers(signature=ours.replace("v1,", version))) == (400, "bad_webhook_signature")


@pytest.mark.parametrize("age", [-300, -299, 0, 300])
def test_a_notice_is_fresh_for_five_minutes_in_both_directions(age):
    assert verify(headers(), BODY, [SECRET], NOW + age)


@pytest.mark.parametrize("age, words", [(-301, "301 s ahead"), (301, "301 s ago"), (10**6, "ago")])
def test_a_notice_that_is_not_fresh_is_refused(age, words):
    with pytest.raises(Refusal, match=words) as caught:
        verify(headers(), BODY, [SECRET], NOW + age)
    assert (caught.value.status, caught.value.code) == (401, "wrong_time")


def test_a_stale_notice_with_a_wrong_signature_is_told_nothing_of_our_clock():
    assert refused(headers(new_secret()), now=NOW + 10**6) == (401, "wrong_signature")


def test_whatever_is_changed_the_signature_is_wrong():
    assert refused(headers(), body=BODY + b" ") == (401, "wrong_signature")
    assert refused(headers(id="msg_2")) == (401, "wrong_signature")
    assert refused(headers(timestamp=str(NOW + 1))) == (401, "wrong_signature")
    # A leading zero is the same second, and yet not what was signed.
    assert refused(headers(timestamp=f"0{NOW}")) == (401, "wrong_signature")
    assert refused(headers(new_secret())) == (401, "wrong_signature")
    assert refused(headers(), secrets=()) == (401, "wrong_signature")


@pytest.mark.parametrize("name", ["id", "timestamp", "signature"])
def test_a_header_that_is_missing_is_named(name):
    given = headers()
    del given[f"webhook-{name}"]
    with pytest.raises(Refusal, match=f"missing here: webhook-{name}$") as caught:
        verify(given, BODY, [SECRET], NOW)
    assert (caught.value.status, caught.value.code) == (400, "not_signed")
    assert refused(headers(**{name: ""})) == (400, "not_signed")


@pytest.mark.parametrize("timestamp", ["now", "1.5", "-1", "+1614265330", " 1614265330", "1_614_265_330", "9" * 5000, "\u0661", "1e9", "nan"])
def test_a_timestamp_is_whole_seconds(timestamp):
    assert refused(headers(timestamp=timestamp)) == (400, "bad_webhook_timestamp")


@pytest.mark.parametrize("id", ["a.b", "a b", "\u00e9", "a" * 257])
def test_an_id_is_printable_and_has_no_full_stop(id):
    assert refused(headers(id=id)) == (400, "bad_webhook_id")


@pytest.mark.parametrize("signature", ["v1", "v1,", "v1,!", "v1,QQ==", "g0hM9SsE", ",", "  ", "v1,\u00e9", "v1a,g0hM"])
def test_a_signature_that_is_none_is_refused_as_malformed(signature):
    assert refused(headers(signature=signature)) == (400, "bad_webhook_signature")
