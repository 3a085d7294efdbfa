"""Who is let in, and to how much: limits as clients meet them. The peers here are addresses of the loopback network, which are exempt
unless a test says otherwise."""

import asyncio
import resource

import pytest
import wire
from hypothesis import given
from hypothesis import strategies as st
from minting import SECRET, bearer

from pere.auth import Grant
from pere.config import Config
from pere.errors import ConfigError, TooMany
from pere.gate import SPARE, Gate, most_connections
from pere.limits import CONNECTS, LINGER, REGISTRATIONS, REQUESTS, Rate, Subjects

OTHER = "127.0.0.2"
POST = b"POST /push/c HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1"


@pytest.fixture
def limited(start):
    """`server = await limited(peer_pushes="1/1000")`: where nobody is exempt."""

    async def limited(**config):
        return await start(**{"limits_exempt": "", "peer_requests": "0"} | config)

    return limited


@pytest.fixture
def come(start):
    """`wire = await come("127.0.0.2")`: a connection from this address."""
    wires = []

    async def come(address="127.0.0.1"):
        wires.append(await wire.Wire.open(await start.port(), source=address))
        return wires[-1]

    yield come
    for each in wires:
        each.close()


def receipt(id, device="d"):
    return wire.said("POST", "/feedback/c", b"", {"Device": device, "Last-Event-ID": id})


async def refusal(peer):
    answer = await peer.answer()
    assert int(answer.headers["retry-after"]) > 0
    return answer.error


# How often


async def test_who_pushes_too_often_is_told_when_there_is_room_and_the_others_go_on(limited, come, measured):
    await limited(peer_pushes="0.01/1000", max_batch=1000)
    one, other = await come(), await come(OTHER)
    await one.send(wire.said("POST", "/push", b"[" + b",".join([b'{"channel":"c","data":1}'] * 1000) + b"]"))
    assert (await one.answer()).status == 200
    await one.send(POST)
    answer = await one.answer()
    assert answer.error == (429, "too_many_pushes")
    assert 1 <= int(answer.headers["retry-after"]) <= 101
    await other.send(POST)
    assert (await other.answer()).status == 201
    assert (await measured())["pere_limited_total", "pushes", "client"] == 1


async def test_a_batch_is_counted_as_what_is_in_it_and_is_taken_whole_or_not_at_all(limited, come, get):
    await limited(peer_pushes="0.01/10", max_batch=10)
    peer = await come()
    batch = wire.said("POST", "/push", b"[" + b",".join([b'{"channel":"c","data":1}'] * 6) + b"]")
    await peer.send(batch)
    assert (await peer.answer()).status == 200
    await peer.send(batch)
    assert await refusal(peer) == (429, "too_many_pushes")
    assert len((await get("/events/c"))["events"]) == 6


async def test_a_refused_client_is_sent_away_and_its_body_is_not_read(limited, come):
    await limited(peer_pushes="0.01/1", max_batch=1)
    peer = await come()
    await peer.send(POST)
    assert (await peer.answer()).status == 201
    await peer.send(b"POST /push/c HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n")
    answer = await peer.answer()
    assert (answer.error, answer.headers["connection"]) == ((429, "too_many_pushes"), "close")
    assert await peer.more() == b""


async def test_what_is_pipelined_behind_a_refusal_is_dropped(limited, come, get):
    await limited(peer_pushes="0.01/3", max_batch=3)
    peer = await come()
    await peer.send(POST * 50)
    answers = [(await peer.answer()).status for _ in range(4)]
    assert answers == [201, 201, 201, 429]
    assert await peer.rest() == b""
    assert len((await get("/events/c"))["events"]) == 3


async def test_receipts_are_limited_whether_they_are_parsed_or_recognised(limited, come, listen, push, measured):
    server = await limited(peer_receipts="0.01/20", max_batch=20)
    feeds = [await listen("c", device=f"d{n}") for n in range(30)]
    id = await push("c")
    peer, statuses = await come(), []
    for n in range(len(feeds)):
        await peer.send(receipt(id, f"d{n}"))
        answer = await peer.answer()
        statuses.append(answer.status)
        if answer.status == 429:
            assert answer.error == (429, "too_many_receipts")
            break
    assert statuses == [200] * 20 + [429]
    assert server.store.ledger.receipts[4][0] == 20
    other = await come(OTHER)
    await other.send(receipt(id, "d25"))
    assert (await other.answer()).status == 200
    assert (await measured())["pere_limited_total", "receipts", "client"] == 1


async def test_receipts_in_a_batch_are_counted_one_by_one(limited, come, listen, push):
    await limited(peer_receipts="0.01/5", max_batch=5)
    await listen("c", device="d")
    ids = [await push("c") for _ in range(5)]
    peer = await come()
    body = b'{"receipts":[' + b",".join(b'{"event_id":"%b"}' % id.encode() for id in ids[:4]) + b"]}"
    await peer.send(wire.said("POST", "/feedback", body, {"Device": "d"}))
    assert (await peer.answer()).status == 200
    await peer.send(wire.said("POST", "/feedback", body, {"Device": "d"}))
    assert await refusal(peer) == (429, "too_many_receipts")


async def test_connections_and_feeds_are_counted_together(limited, come):
    await limited(peer_connects="0.01/3")
    first = await come()
    await first.send(wire.said("GET", "/feed/c"))
    assert (await first.head()).status == 200
    await come()
    late = await come()
    assert await refusal(late) == (429, "too_many_connects")
    assert await late.more() == b""
    other = await come(OTHER)
    await other.send(wire.said("GET", "/feed/c"))
    assert (await other.head()).status == 200


async def test_a_feed_that_is_opened_too_soon_is_refused(limited, come):
    await limited(peer_connects="0.01/2")
    one, two = await come(), await come()
    await one.send(wire.said("GET", "/feed/c"))
    assert await refusal(one) == (429, "too_many_connects")
    await two.send(wire.said("GET", "/healthz"))
    assert (await two.answer()).status == 200


async def test_all_other_requests_are_counted_too(limited, come):
    await limited(peer_requests="0.01/2")
    peer = await come()
    for _ in range(2):
        await peer.send(wire.said("GET", "/nowhere"))
        assert (await peer.answer()).status == 404
    await peer.send(wire.said("GET", "/healthz"))
    assert await refusal(peer) == (429, "too_many_requests")


async def test_there_is_room_again_after_as_long_as_was_said(limited, come):
    gate = (await limited(peer_pushes="2/1", max_batch=1)).gate
    time, now = gate.time, gate.time()
    gate.time = lambda: now  # however long it takes, none of it passes
    peer = await come()
    await peer.send(POST)
    assert (await peer.answer()).status == 201
    await peer.send(POST)
    answer = await peer.answer()
    assert answer.status == 429
    gate.time = time
    await asyncio.sleep(int(answer.headers["retry-after"]))
    again = await come()
    await again.send(POST)
    assert (await again.answer()).status == 201


# What share


async def test_one_client_can_have_half_of_all_connections_and_the_others_find_room(limited, come):
    server = await limited(max_connections=20)
    held = [await come() for _ in range(10)]
    assert await refusal(await come()) == (429, "too_many_connections")
    for n in range(2, 6):
        peer = await come(f"127.0.0.{n}")
        await peer.send(POST)
        assert (await peer.answer()).status == 201
    assert len(server.door.connections) == 14
    held.pop().close()
    while len(server.door.connections) > 13:
        await asyncio.sleep(0.001)
    assert await refusal(await come()) == (429, "too_many_connections")  # for there is less room now


async def test_where_there_is_no_room_for_anybody_that_is_what_is_said(limited, come):
    server = await limited(max_connections=3, max_connections_per_peer=3)
    for n in range(2, 5):
        await (await come(f"127.0.0.{n}")).send(b"GET")
    assert await refusal(await come("127.0.0.9")) == (503, "too_many_connections")
    assert server.gate.limited["connections", "all"] == 1


async def test_a_feed_is_one_of_its_clients_connections_until_it_is_closed(limited, come, until):
    server = await limited(max_connections_per_peer=2)
    feed, idle = await come(), await come()
    await feed.send(wire.said("GET", "/feed/c"))
    assert (await feed.head()).status == 200
    assert await refusal(await come()) == (429, "too_many_connections")
    feed.close()
    await until(lambda: not server.hub.feeds)
    again = await come()
    await again.send(wire.said("GET", "/receipts/c"))
    assert (await again.head()).status == 200
    assert await refusal(await come()) == (429, "too_many_connections")
    again.close()
    idle.close()
    await until(lambda: not server.door.connections and not server.followers.count)
    server.gate.due(server.wheel.time() + 1e6)
    assert server.gate.accounts.known == {}


async def test_one_client_can_have_only_so_many_feeds_and_may_ask_for_other_things(limited, come):
    server = await limited(max_feeds=4)
    for n in range(3):
        peer = await come()
        await peer.send(wire.said("GET", "/feed/c" if n else "/receipts/c"))
        if n < 2:
            assert (await peer.head()).status == 200
    answer = await peer.answer()
    assert (answer.error, "connection" in answer.headers) == ((429, "too_many_feeds"), False)
    await peer.send(POST)
    assert (await peer.answer()).status == 201
    other = await come(OTHER)
    await other.send(wire.said("GET", "/feed/c"))
    assert (await other.head()).status == 200
    assert server.gate.limited["feeds", "client"] == 1


# Whoever has a token


async def test_a_subject_has_limits_of_its_own_wherever_it_comes_from(start, come, ask):
    await start(jwt_secret=SECRET, subject_pushes="0.01/3", max_batch=3)
    shop = bearer("shop", push=["c"])
    for n in range(2, 5):
        peer = await come(f"127.0.0.{n}")
        await peer.send(wire.said("POST", "/push/c", b"1", shop))
        assert (await peer.answer()).status == 201
    await peer.send(wire.said("POST", "/push/c", b"1", shop))
    assert await refusal(peer) == (429, "too_many_pushes")
    await peer.send(wire.said("POST", "/push/c", b"1", bearer("other-shop", push=["c"])))
    assert (await peer.answer()).status == 201
    answer = await ask("GET", "/metrics", **bearer("watcher", admin=True))
    assert b'pere_limited_total{limit="pushes",whose="subject"} 1.0' in answer.body


async def test_a_batch_of_a_subject_is_counted_as_what_is_in_it(start, come):
    await start(jwt_secret=SECRET, subject_pushes="0.01/10", max_batch=10)
    peer, shop = await come(), bearer("shop", push=["c"])
    for expected in (200, 429):
        await peer.send(wire.said("POST", "/push", b"[" + b",".join([b'{"channel":"c","data":1}'] * 6) + b"]", shop))
        assert (await peer.answer()).status == expected


@pytest.mark.parametrize("tokens", ["the same each time", "another each time"])
async def test_receipts_of_a_subject_are_limited_though_they_are_recognised(start, come, tokens):
    await start(jwt_secret=SECRET, subject_receipts="0.01/5", max_batch=5)
    feed, peer = await come(), await come()
    await feed.send(wire.said("GET", "/feed/c", b"", {"Device": "d"} | bearer("d", feed=["c"])))
    await feed.until(b"pere.hello")
    await peer.send(wire.said("POST", "/push/c", b"1", bearer("shop", push=["c"])))
    id, statuses, own = (await peer.answer()).json["id"], [], bearer("d", feed=["c"])
    for n in range(7):
        token = own if tokens == "the same each time" else bearer("d", feed=["c"], jti=str(n))
        await peer.send(wire.said("POST", "/feedback/c", b"", {"Device": "d", "Last-Event-ID": id} | token))
        statuses.append((await peer.answer()).status)
    assert statuses == [200] * 5 + [429] * 2


async def test_a_subject_that_has_asked_for_enough_in_the_middle_of_a_crowd_is_told_so(start, come):
    server = await start(jwt_secret=SECRET, subject_receipts="0.01/10", max_batch=10)
    feed, shop, own = await come(), await come(), {name: bearer(name, feed=["c"]) for name in "de"}
    await feed.send(wire.said("GET", "/feed/c", b"", {"Device": "d"} | own["d"]))
    await feed.until(b"pere.hello")
    await shop.send(wire.said("POST", "/push/c", b"1", bearer("shop", push=["c"])))
    id = (await shop.answer()).json["id"]

    def said(device):
        return wire.said("POST", "/feedback/c", b"", {"Device": device, "Last-Event-ID": id} | own[device])

    peers = [await come() for _ in range(9)]
    for peer in peers[:7]:  # which is recognised from now on
        await peer.send(said("d"))
        assert (await peer.answer()).status == 200
    for peer in peers[7:]:
        await peer.send(said("e"))
        assert (await peer.answer()).status == 404
    for peer, device in zip(peers, "dddedddde", strict=True):
        peer.sock.send(said(device))
    answers = [await peer.answer() for peer in peers]
    assert [answer.status for answer in answers] == [200, 200, 200, 404, 429, 429, 429, 429, 404]
    assert all(answer.error == (429, "too_many_receipts") and int(answer.headers["retry-after"]) > 0 for answer in answers[4:8])
    assert server.gate.limited["receipts", "subject"] == 4


@pytest.mark.parametrize("proxy", ["", "127.0.0.0/8"])
async def test_a_receipt_that_is_recognised_but_not_certain_is_charged_once(start, come, proxy):
    await start(jwt_secret=SECRET, peer_receipts="0.01/5", max_batch=5, limits_exempt="", trusted_proxies=proxy)
    client = {"X-Forwarded-For": "192.0.2.1"} if proxy else {}
    peer, statuses = await come(), []
    for n in range(6):
        await peer.send(wire.said("POST", "/feedback/c", b"", {"Device": f"d{n % 4}", "Last-Event-ID": "1-1"} | client | bearer(f"d{n % 4}", feed=["c"], jti=str(n))))
        statuses.append((await peer.answer()).status)
    assert statuses == [404] * 5 + [429]


RATES = {CONNECTS: Rate(1, 3), REGISTRATIONS: Rate(0.25, 20), REQUESTS: None}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.sampled_from(sorted(RATES)), st.sampled_from([1, 1, 1, 2, 25]), st.sampled_from([0.0, 0.0, 0.25, 1.0, 3.0, LINGER, 2 * LINGER])), max_size=30))
def test_a_subject_gets_what_buckets_of_its_own_hold_whatever_tokens_it_has_and_whoever_is_cleared_away(asked):
    now = [1000.0]
    gate = Gate(Config(subject_connects="1/3", subject_registrations="0.25/20", subject_requests="0"), lambda: now[0])
    grants = {(name, is_new): Grant(name) for name in "ab" for is_new in (False, True)}
    own = {(name, kind): 0.0 for name in "ab" for kind in RATES}
    for name, is_new, kind, count, pause in asked:
        now[0] += pause
        gate.due(now[0])
        rate, wait = RATES[kind], 0.0
        if rate is not None:
            own[name, kind], wait = rate.take(own[name, kind], now[0], count)
        try:
            gate.charge_subject(grants[name, is_new], kind, count)
        except TooMany as refusal:
            assert (refusal.retry_after, refusal.whose) == (int(wait) + 1, "subject")
            assert wait
        else:
            assert not wait


def test_those_beyond_all_that_are_told_apart_share_one_account_whatever_they_ask_for():
    gate = Gate(Config(subject_connects="1/2"), lambda: 1000.0)
    gate.subjects = Subjects(gate.subjects.rates, most=1)
    first, *others = (Grant(name) for name in "abcd")
    for _ in range(2):
        gate.charge_subject(first, CONNECTS)
    for grant in others[:2]:
        gate.charge_subject(grant, CONNECTS)
    for grant in (first, *others):
        with pytest.raises(TooMany):
            gate.charge_subject(grant, CONNECTS)


# Who has limits


async def test_whoever_is_on_this_machine_is_exempt_unless_somebody_says_otherwise(start, come):
    server = await start(peer_pushes="0.01/1", peer_connects="0.01/1", max_batch=1)
    for n in range(1, 4):
        peer = await come(f"127.0.0.{n}")
        await peer.send(POST * 3)
        assert [(await peer.answer()).status for _ in range(3)] == [201] * 3
    assert server.gate.accounts.known == {}


async def test_behind_a_trusted_proxy_each_client_has_limits_of_its_own_and_the_proxy_has_none(limited, come):
    server = await limited(trusted_proxies="127.0.0.0/8", peer_pushes="0.01/1", peer_connects="0.01/1", max_batch=1)

    def push(client):
        return wire.said("POST", "/push/c", b"1", {"X-Forwarded-For": client})

    for client in ("192.0.2.1", "192.0.2.2", "2001:db8::1"):
        proxy = await come()
        await proxy.send(push(client))
        assert (await proxy.answer()).status == 201
    await proxy.send(push("2001:db8::2"))
    assert await refusal(proxy) == (429, "too_many_pushes")
    assert sorted(server.gate.accounts.known) == ["192.0.2.1", "192.0.2.2", "2001:db8::/64"]


async def test_a_client_is_charged_for_what_it_sends_by_a_recognised_request_too(limited, come, listen, push):
    await limited(trusted_proxies="127.0.0.0/8", peer_receipts="0.01/5", max_batch=5)
    for n in range(9):
        await listen("c", device=f"d{n}")
    id = await push("c")
    proxy = await come()
    for client in ("192.0.2.1", "192.0.2.2"):
        statuses = []
        for n in range(6):
            if statuses[-1:] == [429]:
                break
            await proxy.send(wire.said("POST", "/feedback/c", b"", {"Device": f"d{n}", "Last-Event-ID": id, "X-Forwarded-For": client}))
            statuses.append((await proxy.answer()).status)
        assert statuses == [200] * 5 + [429]
        proxy = await come()


# Settings


def test_there_can_be_no_more_connections_than_open_files():
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert most_connections(Config()) == most_connections(Config(max_connections=10 * files)) == files - SPARE
    assert most_connections(Config(max_connections=7)) == 7


@pytest.mark.parametrize("setting, message", [
    ({"peer_pushes": "many"}, "--peer-pushes: a rate is"),
    ({"peer_receipts": "10/999"}, "--peer-receipts must let one batch"),
    ({"limits_exempt": "here"}, "--limits-exempt: networks are"),
])
def test_limits_that_cannot_be_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        Gate(Config(**setting), lambda: 0.0)
