"""Who may ask for what: every address with every kind of token. An address that is not in the table fails a test."""

import asyncio
import time

import orjson
import pytest
import wire
from minting import PRIVATE, SECRET, bearer, token
from passing import passes

from pere.auth import NOBODY
from pere.handlers.base import Elsewhere, Handler, NotThere

ID = "1417444110993-0"
OTHER_SECRET = "a secret that the server has not got"

# What each address asks for: "push" and "feed" are on the channel c. The webhook, event and device are not there: who is let in hears 404.
ADDRESSES = [
    ("POST", "/push/c", "push", b"1"),
    ("POST", "/push", "push", b'[{"channel":"c","data":1}]'),
    ("GET", "/feed/c", "feed", b""),
    ("GET", "/feed?channel=c", "feed", b""),
    ("GET", "/feed?channel=c&channel=c.*", "feed", b""),
    ("GET", "/receipts/c", "push", b""),
    ("POST", f"/feedback/c?event_id={ID}", "feed", b""),
    ("POST", "/feedback", "feed", b'{"up_to":"1417444110993-0","channel":"c"}'),
    ("HEAD", "/feed/c", "feed", b""),
    ("HEAD", "/feed", "any feed", b""),
    ("HEAD", "/receipts/c", "push", b""),
    ("GET", "/events/c", "push", b""),
    ("GET", f"/events/c/{ID}", "push", b""),
    ("DELETE", f"/events/c/{ID}", "push", b""),
    ("GET", f"/events/c/{ID}/devices", "push", b""),
    ("GET", "/admin/overview", "admin", b""),
    ("GET", "/admin/connections", "admin", b""),
    ("GET", "/admin/behind", "admin", b""),
    ("GET", "/admin/events/c", "admin", b""),
    ("GET", "/admin/devices", "admin", b""),
    ("GET", "/admin/devices/c", "admin", b""),
    ("DELETE", "/admin/devices/d", "admin", b""),
    ("GET", "/webhooks", "admin", b""),
    ("POST", "/webhooks", "admin", b"{}"),
    ("GET", "/webhooks/w", "admin", b""),
    ("PATCH", "/webhooks/w", "admin", b"{}"),
    ("DELETE", "/webhooks/w", "admin", b""),
    ("POST", "/webhooks/w/rotate", "admin", b""),
    ("POST", "/webhooks/w/test", "admin", b""),
    ("GET", "/webhooks/w/dead", "admin", b""),
    ("POST", "/webhooks/w/replay", "admin", b""),
    ("GET", "/metrics", "admin", b""),
    ("GET", "/", "nothing", b""),
    ("GET", "/console/console.js", "nothing", b""),
    ("GET", "/pere.js", "nothing", b""),
    ("GET", "/pere.d.ts", "nothing", b""),
    ("GET", "/healthz", "nothing", b""),
    ("GET", "/readyz", "nothing", b""),
    ("GET", "/openapi.json", "nothing", b""),
    ("GET", "/asyncapi.json", "nothing", b""),
    ("GET", "/nowhere", "nothing", b""),
]
IDS = [f"{method} {target}" for method, target, _, _ in ADDRESSES]
EVERYTHING = {"push": ["**"], "feed": ["**"], "admin": True}

# Tokens that do not hold, with the code that says so. All would allow everything.
REFUSED = {
    "none": (lambda: None, "no_token"),
    "empty": (lambda: "", "no_token"),
    "no token": (lambda: "hello", "bad_token"),
    "wrong secret": (lambda: token("d", key=OTHER_SECRET, **EVERYTHING), "bad_token"),
    "unsigned": (lambda: token("d", key=None, algorithm="none", **EVERYTHING), "bad_token"),
    "wrong algorithm": (lambda: token("d", key=SECRET * 2, algorithm="HS512", **EVERYTHING), "bad_token"),
    "wrong kind of key": (lambda: token("d", key=PRIVATE["ES256"], algorithm="ES256", **EVERYTHING), "bad_token"),
    "without end": (lambda: token("d", expires=None, **EVERYTHING), "bad_token"),
    "wrong claims": (lambda: token("d", pere={"push": "c", "admin": True}), "bad_token"),
    "expired": (lambda: token("d", expires=-60, issued=-120, **EVERYTHING), "expired_token"),
    "not yet": (lambda: token("d", nbf=time.time() + 60, **EVERYTHING), "early_token"),
    "from the future": (lambda: token("d", issued=60, **EVERYTHING), "early_token"),
    "for somebody else": (lambda: token("d", aud="other", **EVERYTHING), "wrong_audience"),
    "revoked": (lambda: token("gone", issued=-60, **EVERYTHING), "revoked_token"),
    "revoked, without a time": (lambda: token("gone", issued=None, **EVERYTHING), "revoked_token"),
}

# Tokens that hold, and what they are enough for.
GRANTED = {
    "nothing": (lambda: token("d"), set()),
    "a device on the channel": (lambda: token("d", feed=["c"]), {"feed of c alone", "any feed"}),
    "a device on it and below": (lambda: token("d", feed=["c", "c.*"]), {"feed of c alone", "feed", "any feed"}),
    "a device on a pattern": (lambda: token("d", feed=["c**"]), {"feed of c alone", "feed", "any feed"}),
    "a device on another channel": (lambda: token("d", feed=["d", "c.*", "*.c", "c.**"]), {"any feed"}),
    "a publisher on the channel": (lambda: token("p", push=["c"]), {"push"}),
    "a publisher on a pattern": (lambda: token("p", push=["*"]), {"push"}),
    "a publisher on another channel": (lambda: token("p", push=["d", "c.*", "cc"]), set()),
    "a publisher of no name": (lambda: token(push=["c"]), {"push"}),
    "an administrator": (lambda: token("root", admin=True), {"admin"}),
    "everything": (lambda: token("d", **EVERYTHING), {"push", "feed of c alone", "feed", "any feed", "admin"}),
    "everything, again after it was revoked": (lambda: token("back", **EVERYTHING), {"push", "feed of c alone", "feed", "any feed", "admin"}),
}


def asked(target: str, needs: str) -> str:
    """What an address asks for, where that is more or less than what its kind does."""
    return "feed of c alone" if needs == "feed" and "c.*" not in target else needs


@pytest.fixture
def kept(start):
    """`server = await kept()`: a server with keys that has revoked the tokens of `gone`, and those that `back` had before."""

    async def kept(**config):
        server = await start(jwt_secret=SECRET, jwt_leeway=1.0, **config)
        assert server.verifier is not None
        server.verifier.revoke("gone", time.time())
        server.verifier.revoke("back", time.time() - 1000)
        return server

    return kept


# The table


async def test_every_address_is_in_the_table(start):
    server = await start(jwt_secret=SECRET)
    paths = [(method, target.partition("?")[0]) for method, target, _, _ in ADDRESSES]
    missing = []
    for key, route in server.door.routes.items():
        method, _, segment = key.decode().partition(" ")
        if not [path for asked, path in paths if asked == method and path.startswith(segment) and path.count("/") == segment.count("/")]:
            missing.append(f"{key.decode()} {route.name}")
    for rule in server.app.wildcard_router.rules:
        for method in rule.target.methods.replace(" ", "").split(","):
            is_hot = rule.target.__name__ == "FeedHead" and method == "GET"
            if method in ("OPTIONS", "HEAD") and rule.target.__name__ != "FeedHead" or method == "OPTIONS" or is_hot or rule.target is Elsewhere:
                continue
            if not [path for asked, path in paths if asked == method and rule.matcher.regex.match(path)]:
                missing.append(f"{method} {rule.matcher.regex.pattern}")
    assert missing == []


async def test_every_address_says_what_it_needs(start):
    server = await start(jwt_secret=SECRET)
    assert [key for key, route in server.door.routes.items() if route.needs == NOBODY] == []
    for rule in server.app.wildcard_router.rules:
        assert issubclass(rule.target, Handler)
        assert (rule.target_kwargs.get("needs") or rule.target.needs) != NOBODY, rule.target
    assert server.app.settings["default_handler_class"] is NotThere


@pytest.mark.parametrize("kind", REFUSED)
async def test_a_token_that_does_not_hold_opens_nothing(kept, kind):
    server = await kept()
    make, code = REFUSED[kind]
    text = make()
    for method, target, needs, body in ADDRESSES:
        for named in (method, "HEAD") if method == "GET" and needs in ("push", "admin") and not target.startswith("/receipts") else (method,):
            answer = await wire.begun(server.port, named, target, body, **({} if text is None else {"Authorization": f"Bearer {text}".strip()}))
            if needs == "nothing":
                assert answer.status in (200, 404), (named, target, answer)
                continue
            assert answer.status == 401, (named, target, answer)
            assert answer.headers["www-authenticate"] == ('Bearer realm="pere"' if code == "no_token" else 'Bearer realm="pere", error="invalid_token"')
            if named != "HEAD":
                assert answer.error == (401, code), (named, target)
    assert not server.hub.feeds and not server.followers.count and not server.store.events


async def test_a_device_whose_head_is_like_that_of_others_is_asked_for_its_own_token(kept):
    server = await kept()

    async def opened(text: str, device: str) -> tuple[int, str]:
        answer = await wire.begun(server.port, "GET", "/feed/c", b"", Authorization=f"Bearer {text}", Device=device)
        return answer.status, answer.json["error"] if answer.status != 200 else ""

    for name in ("a", "b"):
        assert await opened(token(name, feed=["c"]), name) == (200, "")
    assert server.door.newcomers._known
    for make, code in REFUSED.values():
        if text := make():
            assert await opened(text, "d") == (401, code)
    for make, enough in GRANTED.values():
        text = make()
        device = server.verifier.grant(text.encode(), time.time()).subject or "d"
        assert await opened(text, device) == ((200, "") if "feed of c alone" in enough else (403, "not_allowed"))
        assert await opened(text, "somebody") == ((403, "wrong_device") if "feed of c alone" in enough else (403, "not_allowed"))


@pytest.mark.parametrize("kind", GRANTED)
async def test_a_token_opens_what_it_allows_and_nothing_else(kept, kind):
    server = await kept()
    make, enough = GRANTED[kind]
    header = f"Bearer {make()}"
    for method, target, needs, body in ADDRESSES:
        answer = await wire.begun(server.port, method, target, body, Authorization=header)
        if method == "POST" and target == "/push" and needs not in enough and answer.status == 200:
            assert [result["error"] for result in answer.json["results"]] == ["not_allowed"]
        elif needs == "nothing" or asked(target, needs) in enough:
            assert answer.status not in (401, 403), (method, target, answer)
        else:
            assert answer.status == 403, (method, target, answer)
            assert answer.headers["www-authenticate"] == 'Bearer realm="pere", error="insufficient_scope"'
            assert method == "HEAD" or answer.error == (403, "not_allowed")


async def test_without_keys_every_address_is_open(start):
    server = await start()
    for method, target, _, body in ADDRESSES:
        assert (await wire.begun(server.port, method, target, body)).status not in (401, 403), target


async def test_an_address_that_does_not_say_what_it_needs_is_shut_to_everybody(start):
    class Forgotten(Handler):
        def get(self) -> None:
            self.answer("secret")

    server = await start(jwt_secret=SECRET)
    server.app.add_handlers(".*", [("/forgotten", Forgotten)])
    assert (await wire.begun(server.port, "GET", "/forgotten", b"")).status == 401
    assert (await wire.begun(server.port, "GET", "/forgotten", b"", **bearer("root", **EVERYTHING))).error == (403, "not_allowed")
    for route in server.door.routes.values():
        route.needs = NOBODY
    assert (await wire.begun(server.port, "POST", "/push/c", b"1", **bearer("root", **EVERYTHING))).error == (403, "not_allowed")


@pytest.mark.parametrize("target", ["/push/c", "/feed/c", "/admin/devices", "/webhooks/x", "/nowhere", "/events/c"])
async def test_a_preflight_needs_no_token(kept, target):
    server = await kept(cors_origins="https://a.example")
    answer = await wire.begun(server.port, "OPTIONS", target, b"", Origin="https://a.example", Access_Control_Request_Method="POST")
    assert answer.status == (404 if target == "/nowhere" else 204)


# No oracle


async def test_who_may_not_know_is_told_the_same_of_what_is_there_and_what_is_not(kept):
    server = await kept()
    answer = await wire.begun(server.port, "POST", "/push/there", b"1", **bearer("p", push=["there"]))
    id = answer.json["id"]
    for sub, may in (("d", {"feed": ["c"]}), ("p", {"push": ["c"]})):
        header = bearer(sub, **may)
        for method, target in (("GET", "/events/{}"), ("GET", "/events/{}/" + id), ("DELETE", "/events/{}/" + id), ("GET", "/feed/{}"), ("GET", "/receipts/{}"),
                               ("POST", "/push/{}"), ("POST", "/feedback/{}?event_id=" + id), ("GET", "/feed?channel={}"), ("GET", "/admin/devices/{}")):
            told = [await wire.begun(server.port, method, target.format(name), b"1" if method == "POST" else b"", **header) for name in ("there", "absent")]
            assert told[0].error[0] == 403
            assert told[0].body.replace(b"there", b"absent") == told[1].body


async def test_a_batch_of_receipts_says_nothing_of_events_whose_audience_the_device_is_not_in(kept):
    server = await kept()
    id = (await wire.begun(server.port, "POST", "/push/secret?to=other", b"1", **bearer("p", push=["**"]))).json["id"]
    answer = await wire.begun(server.port, "POST", "/feedback", f'{{"receipts":[{{"event_id":"{id}"}},{{"event_id":"{ID}"}}]}}'.encode(), **bearer("d", feed=["c"]))
    there, absent = answer.json["results"]
    assert (there["error"], absent["error"]) == ("unknown_event", "unknown_event")
    assert there["message"].replace(id, "") == absent["message"].replace(ID, "")


# The bearer is the device


@pytest.mark.parametrize("method, target, body", [
    ("GET", "/feed/c", b""), ("GET", "/feed?channel=c", b""), ("POST", f"/feedback/c?event_id={ID}", b""), ("POST", "/feedback", b'{"receipts":[]}'),
    ("POST", "/push/c", b"1"), ("POST", "/push", b"[]")])
async def test_another_device_than_that_of_the_token_is_refused_wherever_it_is_named(kept, method, target, body):
    server = await kept()
    header = bearer("d", push=["c"], feed=["c"])
    assert (await wire.begun(server.port, method, target, body, **header, Device="other")).error == (403, "wrong_device")
    assert (await wire.begun(server.port, method, target, body, **header, Device="d")).status not in (401, 403)
    if not target.startswith("/push"):
        mark = "&" if "?" in target else "?"
        assert (await wire.begun(server.port, method, f"{target}{mark}device=other", body, **header)).error == (403, "wrong_device")
        assert (await wire.begun(server.port, method, f"{target}{mark}device=other", body, **header, Device="d")).error == (403, "wrong_device")
        assert (await wire.begun(server.port, method, f"{target}{mark}device=d", body, **header)).status not in (401, 403)


@pytest.mark.parametrize("target, body", [("/feedback/c", b'{"event_id":"1417444110993-0","device":"other"}'), ("/feedback", b'{"receipts":[],"device":"other"}')])
async def test_a_body_may_not_name_another_device_either(kept, target, body):
    server = await kept()
    for more in ({}, {"Device": "d"}):
        answer = await wire.begun(server.port, "POST", target, body, **bearer("d", feed=["c"]), **more)
        assert answer.error == (403, "wrong_device")


async def test_who_names_no_device_is_the_one_of_the_token(kept):
    server = await kept()
    feed = wire.Feed((await wire.Wire.open(server.port)).sock)
    await feed.start("/feed/c", bearer("d", feed=["c"]))
    assert (await feed.control("pere.hello"))["device"] == "d"
    pushed = await wire.begun(server.port, "POST", "/push/c", b"1", **bearer("shop", push=["c"]))
    assert pushed.json["audience"] == 1
    id = (await feed.event()).id
    for expected in (False, True):
        answer = await wire.begun(server.port, "POST", f"/feedback/c?event_id={id}", b"", **bearer("d", feed=["c"]))
        assert answer.json == {"state": "processed", "duplicate": expected}
    status = await wire.begun(server.port, "GET", f"/events/c/{id}", b"", **bearer("shop", push=["c"]))
    assert status.json["publisher"] == "shop"
    feed.close()


async def test_a_token_of_nobody_gives_no_receipts_and_its_feed_is_anonymous(kept):
    server = await kept()
    assert (await wire.begun(server.port, "POST", f"/feedback/c?event_id={ID}", b"", **bearer(feed=["c"]))).error == (400, "no_device")
    assert (await wire.begun(server.port, "POST", "/feedback", b'{"receipts":[]}', **bearer(feed=["c"]))).error == (400, "no_device")
    feed = wire.Feed((await wire.Wire.open(server.port)).sock)
    await feed.start("/feed/c", bearer(feed=["c"]))
    assert (await feed.control("pere.hello"))["device"] is None
    feed.close()


# Patterns


async def test_a_feed_of_a_pattern_needs_all_of_it_and_gets_what_is_born_later(kept):
    server = await kept()
    header = bearer("d", feed=["orders.**", "log"])
    for query in ("channel=orders.*", "channel=orders.**", "channel=log&channel=orders.eu"):
        assert (await wire.begun(server.port, "GET", f"/feed?{query}", b"", **header)).status == 200
    for query in ("channel=**", "channel=*", "channel=orders**", "channel=log&channel=other", "channel=o*.eu", "channel=log*"):
        assert (await wire.begun(server.port, "GET", f"/feed?{query}", b"", **header)).error == (403, "not_allowed")
    feed = wire.Feed((await wire.Wire.open(server.port)).sock)
    await feed.start("/feed?channel=orders.*", header)
    await feed.control("pere.hello")
    for channel in ("orders.born", "other", "orders.born.later", "orders.late"):
        await wire.begun(server.port, "POST", f"/push/{channel}", b'"%b"' % channel.encode(), **bearer("p", push=["**"]))
    told = [(await feed.event()).data for _ in range(2)]
    assert ["orders.born" in told[0], "orders.late" in told[1]] == [True, True]
    feed.close()


async def test_a_batch_is_pushed_as_far_as_the_token_allows(kept):
    server = await kept()
    body = b'[{"channel":"a","data":1},{"channel":"b","data":2},{"channel":"a.b","data":3},{"channel":"a","data":4}]'
    answer = await wire.begun(server.port, "POST", "/push", body, **bearer("p", push=["a"]))
    assert [result.get("error") for result in answer.json["results"]] == [None, "not_allowed", "not_allowed", None]
    assert server.store.events == 2


# Where the token is


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
async def test_a_scheme_may_be_written_as_one_likes(kept, scheme):
    server = await kept()
    assert (await wire.begun(server.port, "POST", "/push/c", b"1", Authorization=f"{scheme} {token('p', push=['c'])}")).status == 201


@pytest.mark.parametrize("header", ["Basic cGVyZTpwZXJl", "Bearer", "Bearer ", "Token x", "", "Bearer a b"])
async def test_any_other_authorization_is_no_token(kept, header):
    server = await kept()
    assert (await wire.begun(server.port, "POST", "/push/c", b"1", Authorization=header)).error == (401, "no_token")


async def test_a_token_may_be_in_the_query_or_in_a_cookie(kept):
    server = await kept()
    text = token("p", push=["c"])
    for target in (f"/push/c?access_token={text}", f"/push/c?ttl=60&access_token={text}", f"/push/c?access_token={text}&type=x",
                   f"/push/c?access_token={text.replace('.', '%2e')}"):
        assert (await wire.begun(server.port, "POST", target, b"1")).status == 201
        assert (await wire.begun(server.port, "GET", target.replace("push", "events"), b"")).status in (200, 400)
    for cookie in (f"pere_token={text}", f"a=b; pere_token={text}; c=d", f'pere_token="{text}"'):
        assert (await wire.begun(server.port, "POST", "/push/c", b"1", Cookie=cookie)).status == 201
    for cookie in (f"Pere_token={text}", f"xpere_token={text}", f"a=pere_token={text}", f"pere_token{text}"):
        assert (await wire.begun(server.port, "POST", "/push/c", b"1", Cookie=cookie)).error == (401, "no_token")


async def test_several_tokens_must_be_the_same(kept):
    server = await kept()
    one, other = token("p", push=["c"]), token("q", push=["c"])
    for first, second, third in ((one, one, one), (one, one, ""), ("", one, one), (one, "", one)):
        target = "/push/c" + (f"?access_token={second}" if second else "")
        headers = ({"Authorization": f"Bearer {first}"} if first else {}) | ({"Cookie": f"pere_token={third}"} if third else {})
        assert (await wire.begun(server.port, "POST", target, b"1", **headers)).status == 201
        for change in ("Authorization", "query", "Cookie"):
            changed, where = dict(headers), target
            if change == "query":
                where = f"{target}{'&' if '?' in target else '?'}access_token={other}"
            elif change in headers:
                changed[change] = headers[change].replace(one, other)
            else:
                changed[change] = {"Authorization": f"Bearer {other}", "Cookie": f"pere_token={other}"}[change]
            assert (await wire.begun(server.port, "POST", where, b"1", **changed)).error == (400, "two_tokens")


# Requests that are recognised


async def receipts(line: wire.Wire, channel: str, device: str, text: str, id: str) -> wire.Answer:
    await line.send(wire.said("POST", f"/feedback/{channel}", b"", {"Device": device, "Last-Event-ID": id, "Authorization": f"Bearer {text}"}))
    return await line.answer()


def in_the_usual_way(server) -> list[bytes]:
    """The devices whose receipts were let in without being recognised."""
    route, devices = server.door.routes[b"POST /feedback/"], []
    let_in = route.hot

    def hot(ask):
        devices.append(ask.headers[b"device"])
        let_in(ask)

    route.hot = hot
    return devices


async def test_receipts_of_many_devices_on_one_connection_are_recognised_and_each_is_looked_at(kept, connect):
    server = await kept()
    tokens = {name: token(name, feed=["c"]) for name in ("a", "b", "x")}
    for name in ("a", "b"):
        await wire.begun(server.port, "GET", "/feed/c", b"", Authorization=f"Bearer {tokens[name]}")
    id = (await wire.begun(server.port, "POST", "/push/c", b"1", **bearer("p", push=["c"]))).json["id"]
    line, unrecognised = await connect(), in_the_usual_way(server)
    for name in ("a", "b"):
        assert (await receipts(line, "c", name, tokens[name], id)).json == {"state": "processed", "duplicate": False}
    assert unrecognised == [b"a"]
    refused = [
        ("a", tokens["b"], (403, "wrong_device")), ("b", tokens["a"], (403, "wrong_device")), ("x", tokens["x"], (404, "unknown_event")),
        ("a", tokens["a"][:-4] + "AAAA", (401, "bad_token")), ("a", "x", (401, "bad_token")), ("a", token("a"), (403, "not_allowed")),
        ("a", token("a", feed=["d"]), (403, "not_allowed")), ("a", token("a", feed=["c"], expires=-60), (401, "expired_token")),
        ("a", token("a", feed=["c"], key=OTHER_SECRET), (401, "bad_token")), ("a", token(feed=["c"]), (403, "wrong_device")),
        ("a", token("gone", feed=["c"], issued=-60), (401, "revoked_token"))]
    for device, text, error in refused:
        unrecognised.clear()
        line = await connect()
        for _ in range(2):
            assert (await receipts(line, "c", "b", tokens["b"], id)).json["duplicate"] is True
        assert (await receipts(line, "c", device, text, id)).error == error
        assert unrecognised.count(b"b") == 1 + (device == "b"), "the second one of b is not recognised"


@pytest.mark.parametrize("state", ["processed", "working"])
async def test_the_body_of_a_recognised_receipt_may_not_name_another_device_either(kept, connect, state):
    server = await kept()
    text = token("d", feed=["c"])
    await wire.begun(server.port, "GET", "/feed/c", b"", Authorization=f"Bearer {text}")
    id = (await wire.begun(server.port, "POST", "/push/c", b"1", **bearer("p", push=["c"]))).json["id"]
    line, unrecognised, answers = await connect(), in_the_usual_way(server), []
    for named in ("d", "other", "d"):
        body = orjson.dumps({"state": state, "device": named})
        await line.send(wire.said("POST", "/feedback/c", body, {"Device": "d", "Last-Event-ID": id, "Authorization": f"Bearer {text}"}))
        answers.append(await line.answer())
    assert [answer.status for answer in answers] == [200, 403, 200]
    assert answers[1].error == (403, "wrong_device")
    assert unrecognised == [b"d"]


@pytest.mark.parametrize("end", ["it expires", "it is revoked"])
async def test_a_recognised_token_ends(kept, connect, end):
    server = await kept()
    text = token("a", feed=["c"], expires=-0.5 if end == "it expires" else 60)  # and a second is given
    await wire.begun(server.port, "GET", "/feed/c", b"", Authorization=f"Bearer {text}")
    id = (await wire.begun(server.port, "POST", "/push/c", b"1", **bearer("p", push=["c"]))).json["id"]
    line = await connect()
    for _ in range(3):
        answer = await receipts(line, "c", "a", text, id)
        # On a machine that is slow it may be over before it was recognised.
        assert answer.status == 200 or end == "it expires" and answer.error == (401, "expired_token")
    if end == "it expires":
        await asyncio.sleep(0.5)
    else:
        server.verifier.revoke("a", time.time())
    assert (await receipts(line, "c", "a", text, id)).error == (401, "expired_token" if end == "it expires" else "revoked_token")


async def test_of_those_who_are_recognised_together_each_is_looked_at_by_itself(kept, connect):
    server = await kept()
    tokens = {name: token(name, feed=["c"]) for name in ("a", "b", "gone-later")}
    for text in tokens.values():
        await wire.begun(server.port, "GET", "/feed/c", b"", Authorization=f"Bearer {text}")
    id = (await wire.begun(server.port, "POST", "/push/c", b"1", **bearer("p", push=["c"]))).json["id"]
    said = [
        ("a", tokens["a"], 200), ("b", tokens["a"], (403, "wrong_device")), ("b", tokens["b"], 200), ("gone-later", tokens["gone-later"], (401, "revoked_token")),
        ("a", tokens["a"][:-4] + "AAAA", (401, "bad_token")), ("a", token("a", feed=["c"], jti="new"), 200), ("a", token("a", feed=["d"]), (403, "not_allowed")),
        ("a", token("a", feed=["c"], expires=-60), (401, "expired_token")), ("a", tokens["a"] + "\x00", 400), ("a", tokens["a"] + " " + tokens["a"], (401, "no_token")),
        ("c", token("c", feed=["c"]), (404, "unknown_event")), ("a", tokens["a"], 200)]
    lines = [await connect() for _ in said]
    for line in lines:
        for _ in range(2):
            assert (await receipts(line, "c", "b", tokens["b"], id)).status == 200
    server.verifier.revoke("gone-later", time.time() + 1)
    for name in ("a", "b"):  # to revoke is to forget whom one knows
        assert (await receipts(lines[0], "c", name, tokens[name], id)).status == 200
    unrecognised = in_the_usual_way(server)
    for line, (device, text, _) in zip(lines, said, strict=True):
        # All at once, so that they are read in one turn of the loop.
        line.sock.send(wire.said("POST", "/feedback/c", b"", {"Device": device, "Last-Event-ID": id, "Authorization": f"Bearer {text}"}))
    for line, (device, _, expected) in zip(lines, said, strict=True):
        answer = await line.answer()
        assert (answer.error if isinstance(expected, tuple) else answer.status) == expected, (device, expected)
    # All others were recognised, or let in by nobody.
    assert sorted(unrecognised) == [b"a", b"b", b"c"]


async def test_a_cookie_beside_the_header_is_seen_though_the_rest_is_the_same(kept, connect):
    server = await kept()
    text, other = token("a", feed=["c"]), token("b", feed=["c"])
    for bearer_of in (text, other):
        await wire.begun(server.port, "GET", "/feed/c", b"", Authorization=f"Bearer {bearer_of}")
    id = (await wire.begun(server.port, "POST", "/push/c", b"1", **bearer("p", push=["c"]))).json["id"]
    line = await connect()
    for device, bearer_of, status in (("a", text, 200), ("a", text, 200), ("b", other, 400), ("a", text, 200)):
        await line.send(wire.said("POST", "/feedback/c", b"", {"Device": device, "Last-Event-ID": id, "Authorization": f"Bearer {bearer_of}", "Cookie": f"pere_token={text}"}))
        assert (await line.answer()).status == status


# The end of a token


def expires(server):
    """An hour passes for all feeds."""

    def later() -> float:
        return time.time() + 3601

    server.hub.clock = later
    for each in server.followers._all():
        each.clock = later
    passes(server.wheel, 3601)


async def test_a_feed_ends_with_its_token(kept):
    server = await kept(heartbeat=3600)
    feeds = []
    for target, may in (("/feed/c", {"feed": ["c"]}), ("/receipts/c", {"push": ["c"]})):
        feeds.append(wire.Feed((await wire.Wire.open(server.port)).sock))
        await feeds[-1].start(target, bearer("d", expires=3600, **may))
        await feeds[-1].control("pere.hello")
    expires(server)
    for feed in feeds:
        assert (await feed.control("pere.bye"))["reason"] == "expired"
        assert await feed.end() == [] and feed.is_whole
        feed.close()
    assert (server.hub.closes["expired"], server.followers.closes["expired"]) == (1, 1)


async def test_a_feed_whose_token_holds_goes_on(kept):
    server = await kept(heartbeat=0.1)
    feed = wire.Feed((await wire.Wire.open(server.port)).sock)
    await feed.start("/feed/c", bearer("d", feed=["c"], expires=3600))
    await feed.control("pere.hello")
    for _ in range(3):
        await feed.comment()
    assert len(server.hub.feeds) == 1
    feed.close()


async def test_a_clock_that_is_set_forward_ends_a_feed_at_its_next_turn(kept):
    server = await kept(heartbeat=0.1)
    feed = wire.Feed((await wire.Wire.open(server.port)).sock)
    await feed.start("/feed/c", bearer("d", feed=["c"], expires=3600))
    await feed.control("pere.hello")
    server.hub.clock = lambda: time.time() + 3700
    assert (await feed.control("pere.bye"))["reason"] == "expired"
    feed.close()


async def test_a_client_that_went_away_while_its_token_expires_hurts_nobody(kept, until):
    server = await kept()
    feed = wire.Feed((await wire.Wire.open(server.port)).sock)
    await feed.start("/feed/c", bearer("d", feed=["c"], expires=3600))
    await feed.control("pere.hello")
    feed.reset()
    expires(server)
    await until(lambda: not server.hub.feeds)
    assert server.hub.closes["gone"] + server.hub.closes["expired"] == 1
