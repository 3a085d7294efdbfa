"""Who receives webhooks: what a real server sends is verified and read, and nothing else is."""

import asyncio
import time

import orjson
import pytest

from pere import Notice, Refusal, verify_notice
from pere.signing import new_secret, signed

SECRET = new_secret()
BODY = orjson.dumps({"specversion": "1.0", "type": "pere.event.completed", "id": "n-1", "data": {"id": "1-0"}})


def request(body=BODY, secret=SECRET, at=None):
    return signed("n-1", int(time.time() if at is None else at), body, [secret]), body


async def test_a_notice_of_a_real_server_is_verified_and_read(hooked, receiver, add, in_state, push):
    await hooked()
    there = receiver()
    endpoint = await add(there.url, types=["pere.event.satisfied"])
    await in_state(endpoint["id"], "active")
    id = await push("c", 1)
    while len(there.got) < 2:
        await asyncio.sleep(0.005)
    headers, body = there.got[-1]
    notice = verify_notice(endpoint["secret"], headers, body)
    assert (notice.type, notice.data["id"], notice.id) == ("pere.event.satisfied", id, headers["webhook-id"])
    assert notice.body["specversion"] == "1.0"


def test_names_of_headers_are_taken_in_any_case_and_either_secret_while_one_takes_the_place_of_the_other():
    headers, body = request()
    assert verify_notice(iter([new_secret(), SECRET]), {name.title(): value for name, value in headers.items()}, body) == Notice(
        "n-1", "pere.event.completed", {"id": "1-0"}, orjson.loads(BODY))


@pytest.mark.parametrize("spoil, status", [
    (lambda headers, body: (headers, body + b" "), 401),
    (lambda headers, body: request(secret=new_secret()), 401),
    (lambda headers, body: request(at=time.time() - 301), 401),
    (lambda headers, body: request(at=time.time() + 310), 401),
    (lambda headers, body: ({}, body), 400),
    (lambda headers, body: (headers | {"webhook-signature": "v1,?"}, body), 400),
    (lambda headers, body: request(b"not JSON"), 400),
    (lambda headers, body: request(b"[]"), 400),
    (lambda headers, body: request(b"{}"), 400),
])
def test_what_is_no_notice_is_refused_with_the_status_to_answer(spoil, status):
    with pytest.raises(Refusal) as caught:
        verify_notice(SECRET, *spoil(*request()))
    assert caught.value.status == status


def test_the_time_may_be_handed_in():
    headers, body = request(at=1000)
    assert verify_notice(SECRET, headers, body, now=1010, tolerance=20).id == "n-1"
    with pytest.raises(Refusal):
        verify_notice(SECRET, headers, body, now=1030, tolerance=20)
