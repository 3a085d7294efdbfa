"""What an endpoint is, without sockets and with the time handed in."""

import pytest

from pere.endpoint import DEFAULT_TYPES, GRACE, TYPES, Endpoint, asked
from pere.errors import BadRequest, Conflict
from pere.signing import key


def endpoint(types=TYPES, channels=()):
    return Endpoint("https://example.com/hook", tuple(types), tuple(channels), "application/json", 1000.0)


def test_it_is_kept_with_all_that_it_has_and_told_without_its_secrets():
    one = endpoint(channels=["orders.*"])
    one.rotate(2000.0)
    one.state, one.is_verified, one.trouble = "active", True, "closed"
    again = Endpoint.of(one.document())
    assert again.document() == one.document()
    assert again.signing(2000.0) == one.signing(2000.0)
    told = repr(again.as_dict())
    assert not any(secret in told for secret in again.signing(2000.0))


@pytest.mark.parametrize("channels, heard, unheard", [
    ([], ["a", "orders.eu"], []),
    (["orders.*", "a"], ["a", "orders.eu"], ["b", "orders.eu.1"]),
    (["orders.**"], ["orders.eu.1"], ["orders"]),
])
def test_it_hears_of_the_channels_that_it_names_and_of_all_if_it_names_none(channels, heard, unheard):
    one = endpoint(["pere.event.completed"], channels)
    assert all(one.wants("pere.event.completed", (channel,)) for channel in heard)
    assert not any(one.wants("pere.event.completed", (channel,)) for channel in unheard)
    assert not any(one.wants("pere.event.expired", (channel,)) for channel in heard)


def test_for_a_day_the_secret_before_signs_too():
    one = endpoint()
    (old,) = one.signing(0)
    until = one.rotate(5000.0)
    assert until == 5000.0 + GRACE
    new, before = one.signing(until - 1)
    assert (before, key(new) != key(old)) == (old, True)
    assert one.signing(until) == [new]


def test_a_secret_that_is_on_its_way_out_is_not_pushed_out_by_a_third():
    one = endpoint()
    until = one.rotate(5000.0)
    with pytest.raises(Conflict, match="still signs"):
        one.rotate(until - 1)
    one.rotate(until)
    assert len(one.signing(until)) == 2


def test_what_is_said_is_what_is_asked():
    said = asked({"url": "u", "types": ["pere.receipt.batch"] * 2, "channels": ["a", "b.*"], "content_type": "application/cloudevents+json"}, str)
    assert said == {"url": "u", "types": ("pere.receipt.batch",), "channels": ("a", "b.*"), "content_type": "application/cloudevents+json"}
    assert asked({}, str) == {}
    assert set(DEFAULT_TYPES) <= set(TYPES)


@pytest.mark.parametrize("fields, code", [
    ([], "bad_json"), ("x", "bad_json"), ({"secret": "x"}, "unknown_field"), ({"state": "active"}, "unknown_field"), ({"url": 1}, "bad_webhook_url"),
    ({"types": "pere.event.expired"}, "bad_webhook_types"), ({"types": []}, "bad_webhook_types"), ({"types": ["expired"]}, "bad_webhook_types"),
    ({"types": [1]}, "bad_webhook_types"), ({"types": ["pere.webhook.verify"]}, "bad_webhook_types"), ({"types": [*TYPES, *TYPES]}, "bad_webhook_types"),
    ({"channels": "a"}, "bad_webhook_channels"), ({"channels": ["a"] * 101}, "bad_webhook_channels"), ({"channels": ["ä"]}, "bad_channel"),
    ({"channels": ["**.a"]}, "bad_channel"), ({"content_type": "text/plain"}, "bad_content_type"), ({"content_type": None}, "bad_content_type"),
])
def test_what_cannot_be_is_refused(fields, code):
    with pytest.raises(BadRequest) as refused:
        asked(fields, str)
    assert refused.value.code == code
