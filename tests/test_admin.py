"""The answers of 2014, presence, and sending a device away; whether the server is alive and ready."""

import pytest

import pere

# 2014


async def test_connections_are_counted_by_channel_and_in_all(get, listen, until, start):
    server = await start()
    assert await get("/admin/connections") == {"total number": 0}
    for _ in range(4):
        await listen("CHANNEL_1")
    feeds = [await listen("CHANNEL_2"), await listen("CHANNEL_2", device="d")]
    assert await get("/admin/connections") == {"CHANNEL_1": 4, "CHANNEL_2": 2, "total number": 6}
    await listen("CHANNEL_1", "CHANNEL_3")
    assert await get("/admin/connections") == {"CHANNEL_1": 5, "CHANNEL_2": 2, "CHANNEL_3": 1, "total number": 7}
    for feed in feeds:
        feed.close()
    await until(lambda: len(server.hub.feeds) == 5)
    assert await get("/admin/connections") == {"CHANNEL_1": 5, "CHANNEL_3": 1, "total number": 5}


async def test_admin_events_are_the_payloads_that_are_kept(push, get):
    assert await get("/admin/events/c") == []
    for data in ({"n": 1}, "text\nof two lines", [1, None], 17):
        await push("c", data)
    assert await get("/admin/events/c") == [{"n": 1}, "text\nof two lines", [1, None], 17]


async def test_admin_devices_tell_what_each_did_last_when_and_with_which_event(start, listen, push, feedback, get):
    server = await start()
    assert await get("/admin/devices/c") == {}
    server.store.clock = lambda: 1_700_000_000.0
    await listen("c", device="kitchen")
    await listen("c", device="bar", last="1417444110993-0")
    assert await get("/admin/devices/c") == {
        "kitchen": {"op": "feed", "at": "2023-11-14T22:13:20.000Z", "Last-Event-Id": None, "online": True},
        "bar": {"op": "feed", "at": "2023-11-14T22:13:20.000Z", "Last-Event-Id": "1417444110993-0", "online": True}}
    id = await push("c")
    server.store.clock = lambda: 1_700_000_005.0
    await feedback("c", "kitchen", id)
    devices = await get("/admin/devices/c")
    assert devices["kitchen"] == {"op": "feedback", "at": "2023-11-14T22:13:25.000Z", "Last-Event-Id": id, "online": True}
    assert devices["bar"]["op"] == "feed"


async def test_a_device_that_is_away_is_still_registered(start, listen, get, until):
    server = await start()
    (await listen("c", device="d")).close()
    await until(lambda: not server.hub.feeds)
    assert (await get("/admin/devices/c"))["d"]["online"] is False


# Presence


async def test_all_devices_are_listed_by_name_with_their_channels_and_feeds(listen, get, start, until):
    server = await start()
    (await listen("b", device="away")).close()
    for _ in range(2):
        await listen("b", "a", device="two")
    await listen("x.*", "a", device="wild")
    await until(lambda: len(server.hub.feeds) == 3)
    assert await get("/admin/devices") == {"after": None, "devices": [
        {"device": "away", "online": False, "feeds": 0, "channels": ["b"], "patterns": []},
        {"device": "two", "online": True, "feeds": 2, "channels": ["a", "b"], "patterns": []},
        {"device": "wild", "online": True, "feeds": 1, "channels": ["a"], "patterns": ["x.*"]}]}


async def test_all_devices_are_read_page_by_page(start, get):
    server = await start()
    names = sorted(f"d{n}" for n in range(12))
    for name in reversed(names):
        server.store.register("c", name)
    seen, after = [], ""
    while after is not None:
        page = await get(f"/admin/devices?limit=5&after={after}")
        seen += [device["device"] for device in page["devices"]]
        after = page["after"]
    assert seen == names


async def test_a_device_that_was_removed_is_forgotten_everywhere(ask, listen, get):
    await listen("a", "b", "x.*", device="d")
    assert (await ask("DELETE", "/admin/devices/d")).status == 204
    assert await get("/admin/devices") == {"devices": [], "after": None}
    assert await get("/admin/devices/a") == await get("/admin/devices/b") == {}
    assert (await ask("DELETE", "/admin/devices/d")).error == (404, "unknown_device")
    for channel in ("a", "x.1"):
        assert (await ask("POST", f"/push/{channel}", b"1")).json["audience"] == 0


@pytest.mark.parametrize("method, target, error", [
    ("GET", "/admin/devices/a%20b", (400, "bad_channel")), ("GET", "/admin/devices/", (400, "bad_channel")),
    ("GET", "/admin/devices?limit=0", (400, "bad_limit")), ("GET", "/admin/devices?limit=x", (400, "bad_limit")),
    ("GET", "/admin/events/a%20b", (400, "bad_channel")), ("GET", "/admin/events/", (400, "bad_channel")),
    ("DELETE", "/admin/devices/a%20b", (400, "bad_device")), ("DELETE", "/admin/devices/", (400, "bad_device")),
    ("DELETE", "/admin/devices/nobody", (404, "unknown_device")), ("DELETE", "/admin/devices/%FF", (400, "bad_request")),
    ("DELETE", "/admin/devices", (405, "wrong_method")), ("POST", "/admin/devices/d", (405, "wrong_method")),
    ("DELETE", "/admin/connections", (405, "wrong_method")), ("POST", "/admin/events/c", (405, "wrong_method")),
    ("GET", "/admin", (404, "not_found")), ("GET", "/admin/", (404, "not_found")), ("GET", "/admin/nothing", (404, "not_found")),
    ("GET", "/admin/connections/c", (404, "not_found")),
])
async def test_what_is_asked_for_wrongly_is_refused_and_says_why(ask, method, target, error):
    assert (await ask(method, target)).error == error


# Alive and ready


async def test_home_speaks_in_the_words_of_2014(get):
    assert await get("/") == {"message": "PERE server up and running", "version": pere.__version__}


async def test_who_answers_is_alive_and_ready(get):
    assert await get("/healthz") == {"status": "alive"}
    assert await get("/readyz") == {"status": "ready"}


async def test_a_store_that_can_keep_nothing_is_not_ready_but_alive(start, ask, get):
    server = await start()
    server.store.trouble = lambda: "the disk is full"
    answer = await ask("GET", "/readyz")
    assert (answer.error, answer.json["message"], answer.headers["retry-after"]) == ((503, "not_ready"), "the disk is full", "5")
    assert await get("/healthz") == {"status": "alive"}


@pytest.mark.parametrize("target", ["/", "/healthz", "/readyz", "/metrics", "/admin/connections", "/admin/devices", "/admin/devices/c", "/admin/events/c"])
async def test_head_says_what_get_would_say(ask, target):
    head, whole = await ask("HEAD", target), await ask("GET", target)
    assert (head.status, head.body, head.headers["content-type"]) == (200, b"", whole.headers["content-type"])


@pytest.mark.parametrize("target", ["/nothing", "/pushes/c", "/push/c/d/", "/feeds", "/favicon.ico", "//", "/%2e%2e/etc/passwd", "/healthz/", "*"])
async def test_an_address_that_is_none_says_so(ask, target):
    answer = await ask("GET", target)
    assert answer.error == (404, "not_found")
    assert len(answer.body) < 300
