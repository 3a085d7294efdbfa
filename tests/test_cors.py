"""Pages of other origins: what a browser is told of them, on every answer, and what of our own pages."""

import pytest
import wire
from browsers import patiently
from elsewhere import serving

from pere.config import Config
from pere.cors import Cors
from pere.errors import ConfigError
from pere.handlers.base import Page

NAMED = "https://a.example"
ASKED = [("GET", "/events/c", 200), ("GET", "/nothing", 404), ("GET", "/feed/a%20b", 400), ("POST", "/push/c", 201), ("POST", "/push/a%20b", 400), ("POST", "/push", 200),
         ("POST", "/feedback/c", 400), ("PUT", "/push/c", 405), ("OPTIONS", "/push/c", 204), ("HEAD", "/events/c", 200)]


def told(answer: wire.Answer) -> dict[str, str]:
    return {name.removeprefix("access-control-"): value for name, value in answer.headers.items() if name.startswith("access-control-")}


@pytest.mark.parametrize("method, target, status", ASKED)
async def test_a_named_origin_may_read_every_answer_and_send_what_the_browser_keeps(start, ask, method, target, status):
    await start(cors_origins=f"{NAMED},*")
    answer = await ask(method, target, b"[]" if method == "POST" else b"", Origin=NAMED)
    assert (answer.status, answer.headers["vary"]) == (status, "Origin")
    assert (told(answer)["allow-origin"], told(answer)["allow-credentials"]) == (NAMED, "true")
    assert {"ETag", "Retry-After", "Preference-Applied"} <= set(told(answer)["expose-headers"].split(", "))


@pytest.mark.parametrize("origin", ["https://b.example", "http://a.example", "https://a.example:8443", "https://a.example.b.example", "HTTPS://A.EXAMPLE", "null", "*", "", "https://a.example, https://b.example"])
@pytest.mark.parametrize("method, target", [asked[:2] for asked in ASKED[:8]])
async def test_any_other_origin_may_read_nothing_and_a_cache_is_told_that_it_depends(start, ask, method, target, origin):
    await start(cors_origins=NAMED)
    answer = await ask(method, target, b"[]" if method == "POST" else b"", Origin=origin)
    assert (told(answer), answer.headers["vary"]) == ({}, "Origin")


@pytest.mark.parametrize("method, target, status", ASKED)
async def test_an_answer_to_no_origin_tells_a_cache_too_that_it_depends(start, ask, method, target, status):
    await start(cors_origins=NAMED)
    answer = await ask(method, target, b"[]" if method == "POST" else b"")
    assert (answer.status, told(answer), answer.headers["vary"]) == (status, {}, "Origin")


@pytest.mark.parametrize("method, target, status", ASKED)
async def test_any_page_may_read_where_all_may_and_none_sends_what_the_browser_keeps(start, ask, method, target, status):
    await start(cors_origins="*")
    for origin in ("https://b.example", "null"):
        answer = await ask(method, target, b"[]" if method == "POST" else b"", Origin=origin)
        assert (answer.status, told(answer)["allow-origin"]) == (status, "*")
        assert "allow-credentials" not in told(answer)
        assert "vary" not in answer.headers


async def test_feeds_and_recognised_receipts_say_the_same(start, listen, push, connect):
    server = await start(cors_origins=NAMED)
    assert (await listen("c", device="d")).answer_head.headers["vary"] == "Origin"
    line = await connect()
    await line.send(wire.said("GET", "/feed/c", b"", {"Origin": NAMED}))
    assert told(await line.head()) == told(await wire.request(server.port, "GET", "/events/c", Origin=NAMED))
    id = await push("c")
    line = await connect()
    for _ in range(4):
        await line.send(wire.said("POST", "/feedback/c", b"", {"Device": "d", "Last-Event-ID": id}))
        assert (await line.answer()).headers["vary"] == "Origin"
    assert server.door.shapes._known


@pytest.mark.parametrize("target, method", [("/push/c", "POST"), ("/feedback/c", "POST"), ("/feed/c", "GET"), ("/events/c/1-0", "DELETE"), ("/webhooks/w", "PATCH")])
async def test_a_preflight_allows_all_that_pages_send(start, ask, target, method):
    await start(cors_origins=NAMED)
    answer = await ask("OPTIONS", target, Origin=NAMED, Access_Control_Request_Method=method, Access_Control_Request_Headers="authorization")
    assert (answer.status, answer.body) == (204, b"")
    assert method in told(answer)["allow-methods"].split(", ")
    assert {"Authorization", "Device", "Last-Event-ID", "last_event_id", "Prefer", "Idempotency-Key", "Content-Type", "If-None-Match"} <= set(told(answer)["allow-headers"].split(", "))
    assert "allow-private-network" not in told(answer)


async def test_a_preflight_of_a_stranger_is_told_nothing(start, ask):
    await start(cors_origins=NAMED)
    answer = await ask("OPTIONS", "/push/c", Origin="https://b.example", Access_Control_Request_Method="POST", Access_Control_Request_Private_Network="true")
    assert (answer.status, told(answer), answer.headers["allow"]) == (204, {}, "POST, OPTIONS")


def test_a_page_from_a_wider_network_may_come_in_only_if_it_is_named():
    both = Cors(frozenset((NAMED, "*")))
    assert b"Access-Control-Allow-Private-Network: true\r\n" in both.preflight(NAMED.encode(), "GET", True)
    assert b"Private-Network" not in both.preflight(NAMED.encode(), "GET", False)
    assert b"Private-Network" not in both.preflight(b"https://b.example", "GET", True)


@pytest.mark.parametrize("origin", ["https://a.example", "http://localhost:3000", "http://127.0.0.1", "http://[::1]:8080", "chrome-extension://abcdef", "capacitor://localhost", "*"])
def test_an_origin_is_named_as_browsers_send_it(origin):
    assert Config(cors_origins=origin).origins == {origin}


@pytest.mark.parametrize("origin", ["null", "a.example", "https://a.example/", "https://a.example/app", "https://A.example", "https://*.a.example", "https://a.example:443",
                                    "http://a.example:80", "https://u@a.example", "https://", "https://a.example:port", "https://a example", "https://a\r\nX: y"])
def test_what_no_browser_would_send_is_refused_at_the_start(origin):
    with pytest.raises(ConfigError, match="^--cors-origins are as browsers send them"):
        Config(cors_origins=f"https://b.example,{origin}")


# What is said of ourselves


@pytest.mark.parametrize("target", ["/", "/events/c", "/admin/connections", "/metrics", "/nothing", "/webhooks"])
async def test_what_a_page_could_include_is_taken_for_nothing_else(ask, target):
    answer = await ask("GET", target)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert answer.headers["referrer-policy"] == "no-referrer"


async def test_a_feed_is_taken_for_no_script(listen):
    assert (await listen("c")).answer_head.headers["x-content-type-options"] == "nosniff"


async def test_a_page_of_ours_runs_only_what_comes_from_here_and_stands_in_no_frame(start, ask):
    class Hello(Page):
        needs = "anybody"

        def prepare(self) -> None:
            """Everybody may see it."""

        def get(self) -> None:
            self.show(b"<!doctype html><title>hello</title>")

    server = await start()
    server.app.add_handlers(".*", [("/hello", Hello)])
    answer = await ask("GET", "/hello")
    assert (answer.headers["content-type"], answer.body) == ("text/html; charset=utf-8", b"<!doctype html><title>hello</title>")
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["script-src"], policy["frame-ancestors"], policy["base-uri"]) == ("'none'", "'self'", "'none'", "'none'")
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == ("nosniff", "no-referrer")


# In a real browser

ASKS = """
async (server) => {
    const fetched = async (path, options) => {
        try {
            const answer = await fetch(server + path, options);
            return [answer.status, answer.headers.get("ETag") !== null];
        } catch (error) { return [error.name, false]; }
    };
    const json = (body) => ({ method: "POST", body, headers: { "Content-Type": "application/json", Device: "page" } });
    const pushed = await fetched("/push/c?to=page", json("1"));
    const plain = await fetched("/push/c", { method: "POST", body: "2", headers: { "Content-Type": "text/plain" } });
    const kept = await fetched("/events/c");
    const status = await fetched("/events/c/" + window.known);
    const feed = await new Promise((resolve) => {
        const source = new EventSource(server + "/feed/c");
        source.onopen = () => { source.close(); resolve("open"); };
        source.onerror = () => { source.close(); resolve("error"); };
    });
    return { pushed, plain, kept, status, feed };
}
"""


@patiently
async def test_a_browser_lets_pages_of_a_named_origin_read_and_others_neither_read_nor_change_anything(start, push, chromium):
    async def page_of(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<!doctype html><title>page</title>")

    async def story(context):
        found = []
        for origin in (named, stranger):
            page = await context.new_page()
            await page.goto(origin)
            await page.evaluate("id => { window.known = id; }", id)
            found.append((await page.evaluate(ASKS, f"http://127.0.0.1:{server.port}"), server.store.events))
        return found

    async with serving(page_of) as first, serving(page_of) as second:
        named, stranger = (f"http://127.0.0.1:{port}" for port in (first, second))
        server = await start(cors_origins=named)
        id = await push("c", 0)
        (ours, after_ours), (theirs, after_theirs) = await chromium(story)
    assert ours == {"pushed": [201, False], "plain": [201, False], "kept": [200, True], "status": [200, True], "feed": "open"}
    assert theirs == {name: ["TypeError", False] for name in ("pushed", "plain", "kept", "status")} | {"feed": "error"}
    assert (after_ours, after_theirs) == (3, 3)
