"""Web pages, names and cookies: who makes a browser ask, and whether it is they who may."""

import re

import pytest
import wire
from hypothesis import given
from hypothesis import strategies as st
from minting import SECRET, token

from pere.guard import bearer_of

PUSH = ("POST", "/push/c", b"1")


async def ask(server, method="POST", target="/push/c", body=b"1", **headers: str) -> wire.Answer:
    """What a browser on this machine is answered."""
    return await wire.begun(server.port, method, target, body, **{"Host": f"localhost:{server.port}"} | headers)


# Without keys, on this machine


@pytest.mark.parametrize("method, target, body", [
    PUSH, ("POST", "/push", b"[]"), ("POST", "/feedback/c?device=d&event_id=1417444110993-0", b""), ("POST", "/feedback", b'{"receipts":[],"device":"d"}'),
    ("DELETE", "/events/c/1417444110993-0", b""), ("DELETE", "/admin/devices/d", b""), ("POST", "/webhooks", b"{}"), ("PATCH", "/webhooks/w", b"{}"),
    ("GET", "/feed/c?device=d", b""), ("GET", "/feed?channel=c&device=d", b""), ("GET", "/feed?channel=c&devic%65=d", b"")])
async def test_a_page_of_a_stranger_changes_nothing(start, method, target, body):
    server = await start(cors_origins="https://console.example, http://localhost:3000")
    for origin in ("https://evil.example", "null", "http://localhost:1", "https://console.example.evil.example", "https://console.example:444", "", "http://127.0.0.1", "file://"):
        answer = await ask(server, method, target, body, Origin=origin)
        assert answer.error == (403, "foreign_origin"), origin
    # A form or an image says where it is from in this way only.
    for site in ("cross-site", "same-site"):
        assert (await ask(server, method, target, body, Sec_Fetch_Site=site)).error == (403, "foreign_origin")
    assert server.store.events == 0 and not server.hub.feeds
    for origin in ("https://console.example", "http://localhost:3000", f"http://localhost:{server.port}"):
        assert (await ask(server, method, target, body, Origin=origin, Sec_Fetch_Site="cross-site")).status != 403
    for site in ("same-origin", "none"):
        assert (await ask(server, method, target, body, Sec_Fetch_Site=site)).status != 403


async def test_what_a_page_may_only_look_at_is_none_of_its_business_either_but_changes_nothing(start):
    server = await start()
    for method, target in (("GET", "/feed/c"), ("GET", "/events/c"), ("GET", "/"), ("HEAD", "/feed/c"), ("OPTIONS", "/push/c")):
        answer = await ask(server, method, target, b"", Origin="https://evil.example")
        assert answer.status in (200, 204)
        assert "access-control-allow-origin" not in answer.headers


async def test_any_origin_may_call_where_that_is_asked_for(start):
    server = await start(cors_origins="*")
    assert (await ask(server, Origin="https://anybody.example")).status == 201


async def test_programs_say_no_origin_and_go_on_as_ever(start):
    server = await start()
    assert (await ask(server)).status == 201
    # As the programs of 2014: HTTP/1.0, with no Host or any short one.
    line = await wire.Wire.open(server.port)
    await line.send(b"POST /push/c HTTP/1.0\r\nContent-Length: 1\r\n\r\n1")
    assert (await line.answer()).status == 201
    line.close()


OURS = ["localhost", "localhost:4567", "LOCALHOST", "127.0.0.1", "127.0.0.1:4567", "[::1]", "[::1]:4567", "192.168.1.7", "x", "pere", "pere.example", "PERE.example:80"]
STRANGE = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:4567", "pere.example.evil.example", "localhost.", "1.2.3", "127.0.0.1.", "a.b"]


async def test_a_name_that_anybody_may_bind_to_this_machine_is_not_ours(start):
    server = await start(host_names="pere.example")
    for method, target, body in (PUSH, ("GET", "/feed/c", b""), ("GET", "/events/c", b""), ("GET", "/", b""), ("GET", "/nowhere", b"")):
        for host in STRANGE:
            answer = await ask(server, method, target, body, Host=host)
            assert answer.error == (403, "foreign_host"), (host, answer)
            # The page counts as one of its own, so this says nothing.
            assert (await ask(server, method, target, body, Host=host, Origin=f"http://{host}")).error == (403, "foreign_host")
        for host in OURS:
            assert (await ask(server, method, target, body, Host=host)).status != 403, host


async def test_the_name_in_an_absolute_target_counts(start):
    server = await start()
    assert (await ask(server, target="http://evil.example/push/c")).error == (403, "foreign_host")
    assert (await ask(server, target="http://localhost/push/c", Host="evil.example")).status == 201


@pytest.mark.parametrize("config", [{"jwt_secret": SECRET}, {"host": "0.0.0.0", "insecure": True}])
async def test_where_others_may_come_every_name_will_do(start, config):
    server = await start(**config)
    answer = await ask(server, Host="push.example.com", Authorization=f"Bearer {token('p', push=['c'])}")
    assert answer.status == 201


async def test_whoever_may_serve_strangers_still_serves_no_pages_of_theirs_without_keys(start):
    server = await start(host="0.0.0.0", insecure=True)
    assert (await ask(server, Host="push.example.com", Origin="https://evil.example")).error == (403, "foreign_origin")
    assert (await ask(server, Host="push.example.com", Origin="https://push.example.com")).status == 201


async def test_a_request_that_is_like_the_last_one_is_looked_at_as_closely(start, listen, push, connect):
    await start()
    await listen("c", device="d")
    id = await push("c")
    line = await connect()
    for more, status in (({}, 200), ({}, 200), ({"Origin": "https://evil.example"}, 403), ({"Host": "evil.example"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403), ({}, 200)):
        await line.send(wire.said("POST", "/feedback/c", b"", {"Host": "localhost", "Device": "d", "Last-Event-ID": id} | more))
        assert (await line.answer()).status == status
        # And what came in is no model for the next.
        await line.send(wire.said("POST", "/feedback/c", b"", {"Host": "localhost", "Device": "d", "Last-Event-ID": id} | more))
        assert (await line.answer()).status == status


# With a cookie


@pytest.mark.parametrize("method, target, body", [PUSH, ("GET", "/feed/c", b""), ("GET", "/receipts/c", b""), ("DELETE", "/admin/devices/d", b""), ("POST", "/feedback/c?event_id=1-0", b"")])
async def test_a_cookie_does_not_speak_for_whoever_has_it_on_a_page_of_a_stranger(start, method, target, body):
    server = await start(jwt_secret=SECRET, cors_origins="https://console.example")
    cookie = f"pere_token={token('d', push=['c'], feed=['c'], admin=True)}"
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}):
        assert (await ask(server, method, target, body, Cookie=cookie, **headers)).error == (403, "foreign_origin")
    for headers in ({}, {"Origin": "https://console.example"}, {"Origin": f"https://localhost:{server.port}"}, {"Sec_Fetch_Site": "same-origin"}, {"Sec_Fetch_Site": "none"}):
        assert (await ask(server, method, target, body, Cookie=cookie, **headers)).status not in (401, 403)


async def test_any_origin_is_not_one_that_may_use_a_cookie(start):
    server = await start(jwt_secret=SECRET, cors_origins="*")
    text = token("d", push=["c"])
    assert (await ask(server, Cookie=f"pere_token={text}", Origin="https://evil.example")).error == (403, "foreign_origin")
    # Who has the token itself has it from its owner.
    assert (await ask(server, Authorization=f"Bearer {text}", Origin="https://evil.example")).status == 201
    assert (await ask(server, target=f"/push/c?access_token={text}", Origin="https://evil.example")).status == 201
    assert (await ask(server, Authorization=f"Bearer {text}", Cookie=f"pere_token={text}", Origin="https://evil.example")).status == 201


# Where a token stands


@given(st.builds(lambda scheme, spaces, rest: scheme + b" " * spaces + rest, st.sampled_from([b"Bearer", b"bearer", b"BEARER", b"Bearer\t", b"Basic", b"", b" Bearer"]),
                 st.integers(0, 3), st.text(alphabet="a.\xe9 \t=", max_size=4).map(lambda text: text.encode("latin-1"))))
def test_a_bearer_is_the_one_word_behind_its_scheme(said):
    found = re.fullmatch(rb"bearer +([^ ]+)", said, re.IGNORECASE)  # RFC 6750, 2.1; RFC 9110, 11.1
    assert bearer_of({b"authorization": said}) == (found[1] if found is not None else None)
    assert bearer_of({}) is None
