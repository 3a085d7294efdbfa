"""`pere.js` in a real browser: tabs as devices, their receipts, and what happens when tabs, servers and networks go."""

import asyncio
import signal
import time

import wire
from browsers import patiently
from elsewhere import serving
from minting import SECRET, bearer, token
from processes import Served, free_port

pytestmark = patiently

# A page that is a device: it notes what it is told, in order, and answers as it is asked to.
DEVICE = """
async ([channels, options]) => {
    const { Pere } = await import("/pere.js");
    window.told = [];
    window.states = [];
    window.pere = new Pere("", { channels, ...options });
    for (const type of ["connecting", "open", "closed", "gap", "bye", "cancel", "error"])
        pere.on(`pere.${type}`, (detail) => states.push({ type, ...detail }));
    pere.on("*", (data, event) => { told.push(data); return window.answer?.(data, event); });
}
"""


async def open_app(page, port):
    """Some page of the server's own origin."""
    await page.route("**/app", lambda route: route.fulfill(content_type="text/html", body="<!doctype html><title>app</title>"))
    await page.goto(f"http://127.0.0.1:{port}/app")


async def reason(page, word):
    """Wait until an error is told with this reason."""
    await page.wait_for_function("word => states.some((each) => each.type === 'error' && each.reason === word)", arg=word)


DENIED = 'Object.defineProperty(window, "localStorage", { get() { throw new DOMException("denied", "SecurityError"); } })'


async def device(context, port, channels="c", script="", **options):
    """A page that is a device, once its feed is open; `script` runs before all others."""
    page = await context.new_page()
    await page.add_init_script(script)
    await open_app(page, port)
    await page.evaluate(DEVICE, [channels, options])
    await page.wait_for_function("pere.state === 'open'")
    return page


async def told(page, count):
    """The payloads, once there are so many."""
    await page.wait_for_function("count => told.length >= count", arg=count)
    return await page.evaluate("told")


async def crash(context, page):
    """The process of a page ends, without a word to anybody."""
    line = await context.new_cdp_session(page)
    async with page.expect_event("crash"):
        last = asyncio.ensure_future(line.send("Page.crash"))  # which is never answered
    last.cancel()


async def counts(port, id, channel="c"):
    answer = await wire.request(port, "GET", f"/events/{channel}/{id}")
    return {state: count for state, count in answer.json["counts"].items() if count}


async def answered(port, id, channel="c", **headers):
    """How an event stands, once nobody owes a receipt."""
    while (status := (await wire.request(port, "GET", f"/events/{channel}/{id}", **headers)).json)["outstanding"]:
        await asyncio.sleep(0.01)
    return {state: count for state, count in status["counts"].items() if count}


async def test_two_devices_are_sent_events_and_their_receipts_say_what_became_of_them(start, chromium):
    port = (await start()).port

    async def story(context):
        kitchen, bar = await device(context, port, device="kitchen"), await device(context, port, device="bar", script=DENIED)
        await kitchen.evaluate("void (window.answer = async (data) => ({ printed: data.n }))")
        await bar.evaluate("void (window.answer = () => { throw new Error('out of paper'); })")
        id = (await wire.push(port, "c", {"n": 1}, type="order")).json["id"]
        assert await told(kitchen, 1) == await told(bar, 1) == [{"n": 1}]
        assert await answered(port, id) == {"processed": 1, "failed": 1}
        lines = (await wire.request(port, "GET", f"/events/c/{id}/devices")).json["devices"]
        assert {line["device"]: line["status"] for line in lines} == {"kitchen": {"printed": 1}, "bar": "Error: out of paper"}
        await kitchen.wait_for_function("Object.keys(localStorage).length === 0")

    await chromium(story)


async def test_tabs_of_one_device_share_one_feed_and_another_takes_over_when_it_dies(start, chromium):
    server = await start()
    port = server.port

    async def story(context):
        tabs = [await device(context, port, device="till") for _ in range(3)]
        assert [await tab.evaluate("pere.holds") for tab in tabs] == [True, False, False]
        assert len(server.hub.feeds) == 1
        ids = [(await wire.push(port, "c", n)).json["id"] for n in range(20)]
        for tab in tabs:
            assert await told(tab, 20) == [*range(20)]
        for id in ids:
            assert await answered(port, id) == {"processed": 1}
        # The one that holds the feed never answers for this one, and dies; those beside it have dealt with it, and one of them says so.
        await tabs[0].evaluate("void (window.answer = () => new Promise(() => {}))")
        await tabs[1].evaluate("void (window.answer = () => 'by the second')")
        hung = (await wire.push(port, "c", 20)).json["id"]
        for tab in tabs:
            await told(tab, 21)
        assert await counts(port, hung) == {"sent": 1}
        await crash(context, tabs[0])
        assert await answered(port, hung) == {"processed": 1}
        assert (await wire.request(port, "GET", f"/events/c/{hung}/devices")).json["devices"][0]["status"] == "by the second"
        last = (await wire.push(port, "c", 21)).json["id"]
        assert await answered(port, last) == {"processed": 1}
        for tab in tabs[1:]:
            assert await told(tab, 22) == [*range(22)]
        assert [await tab.evaluate("pere.holds") for tab in tabs[1:]] == [True, False]
        assert len(server.hub.feeds) == 1
        await tabs[1].evaluate("pere.close()")
        await tabs[2].wait_for_function("pere.holds && pere.state === 'open'")
        assert await tabs[1].evaluate("[pere.state, pere.holds]") == ["closed", False]

    await chromium(story)


async def test_a_server_that_is_killed_and_comes_back_has_lost_nothing_and_nothing_is_done_twice(tmp_path, chromium):
    store = ("--store", f"sqlite:{tmp_path}/pere.db", "--retry", "0.1")
    first = Served(*store, port=free_port())
    port = first.port

    async def story(context):
        tabs = [await device(context, port, device="till"), await device(context, port, device="till"), await device(context, port, device="bar")]
        ids = [(await wire.push(port, "c", n)).json["id"] for n in range(10)]
        for tab in tabs:
            await told(tab, 10)
        # What is under way when it dies is answered when it is back.
        await tabs[0].evaluate("void (window.answer = () => new Promise((done) => { window.finish = done; }))")
        ids.append((await wire.push(port, "c", 10)).json["id"])
        for tab in tabs:
            await told(tab, 11)
        first.end(signal.SIGKILL)
        for tab in tabs:
            await tab.wait_for_function("states.some((each) => each.type === 'error' && /lost|unreachable/.test(each.reason))")
        await tabs[0].evaluate("window.answer = undefined, finish('done meanwhile')")  # before it can be back on its own
        await tabs[0].wait_for_function("Object.keys(localStorage).some((key) => key.startsWith('pere  till '))")
        with Served(*store, port=port):
            ids += [(await wire.push(port, "c", n)).json["id"] for n in range(11, 15)]
            for tab in tabs:
                await tab.evaluate("dispatchEvent(new Event('online'))")
            for id in ids:
                assert await answered(port, id) == {"processed": 2}
            for tab in tabs:
                assert await told(tab, 15) == [*range(15)]
            await tabs[0].wait_for_function("Object.keys(localStorage).length === 0")

    try:
        await chromium(story)
    finally:
        first.__exit__()


async def test_a_receipt_outlives_its_page_and_is_not_earned_twice(start, chromium):
    port = (await start()).port

    async def story(context):
        page = await device(context, port, device="d")
        # Nothing gets through, and the next attempt is far away.
        await page.route("**/feedback", lambda route: route.abort())
        await page.evaluate("void (Math.random = () => 1000)")
        id = (await wire.push(port, "c", 1)).json["id"]
        await page.wait_for_function("states.some((each) => each.type === 'error' && each.reason === 'unreachable')")
        assert await counts(port, id) == {"sent": 1}
        await page.unroute("**/feedback")
        # Going away, the page says it once more.
        await page.goto("about:blank")
        assert await answered(port, id) == {"processed": 1}
        # It does not know that it was heard, so it says so when it is back; and does nothing again.
        page = await device(context, port, device="d")
        await page.wait_for_function("Object.keys(localStorage).length === 0")
        # And where its last word was not heard, the receipt waits for the next page.
        await context.route("**/feedback", lambda route: route.abort())
        id = (await wire.push(port, "c", 2)).json["id"]
        assert await told(page, 1) == [2]
        await page.wait_for_function("states.some((each) => each.type === 'error')")
        await page.goto("about:blank")
        await context.unroute("**/feedback")
        page = await device(context, port, device="d")
        assert await answered(port, id) == {"processed": 1}
        assert await page.evaluate("told") == []

    await chromium(story)


async def test_a_token_is_renewed_in_mid_stream_and_one_that_cannot_be_is_the_end(start, chromium):
    server = await start(jwt_secret=SECRET, jwt_leeway=0.0, retry=0.1)
    port = server.port
    lives = [1800, -1, 7200]

    async def story(context):
        page = await context.new_page()
        await page.expose_function("fresh", lambda: token("d", feed=["c"], expires=lives.pop(0) if len(lives) > 1 else lives[0]))
        await open_app(page, port)
        await page.evaluate(DEVICE.replace("...options", "...options, token: () => fresh()"), ["c", {}])
        await page.wait_for_function("pere.state === 'open'")
        server.hub.clock = lambda: time.time() + 3600
        await page.wait_for_function("states.some((each) => each.type === 'bye' && each.reason === 'expired')")
        # The second one is no good any more, the third is.
        await page.wait_for_function("states.some((each) => each.type === 'error' && each.reason === 'expired_token' && each.status === 401)")
        await page.wait_for_function("pere.state === 'open'")
        publisher = bearer("p", push=["c"])
        id = (await wire.request(port, "POST", "/push/c", 1, **publisher)).json["id"]
        assert await told(page, 1) == [1]
        assert await answered(port, id, **publisher) == {"processed": 1}
        other = await context.new_page()
        await open_app(other, port)
        await other.evaluate(DEVICE, ["c", {"device": "e", "token": token("e", feed=["c"], expires=-1)}])
        await other.wait_for_function("pere.state === 'closed'")
        assert (await other.evaluate("states.at(-1)")) == {"type": "closed", "reason": "expired_token", "status": 401, "retry": None, "isFinal": True,
                                                          "message": await other.evaluate("states.at(-1).message")}
        # Nothing of it was in an address.
        assert not [each for each in await page.evaluate("performance.getEntriesByType('resource').map((each) => each.name)") if "token" in each]

    await chromium(story)


async def test_what_stands_in_the_way_has_a_name_and_nothing_is_lost(start, chromium, until):
    server = await start(retry=0.1)
    port = server.port

    async def story(context):
        page = await context.new_page()
        await page.clock.install()
        await open_app(page, port)
        # A captive portal.
        await page.route("**/feed?**", lambda route: route.fulfill(content_type="text/html", body="<h1>Welcome to our hotel</h1>"))
        await page.evaluate(DEVICE, ["c", {"device": "d", "from": "all"}])
        await reason(page, "foreign")
        await page.unroute("**/feed?**")
        await page.wait_for_function("pere.state === 'open'")
        assert await told(page, 1) == [0]
        # Silence, where heartbeats should be; and a machine that was asleep.
        await page.clock.run_for(62_000)
        await reason(page, "silent")
        await page.wait_for_function("pere.state === 'open'")
        await page.clock.fast_forward(3_600_000)
        await reason(page, "slept")
        await page.wait_for_function("pere.state === 'open'")
        await wire.push(port, "c", 1)
        assert await told(page, 2) == [0, 1]
        await page.evaluate("pere.close()")

    await wire.push(port, "c", 0)
    await chromium(story)
    await until(lambda: not server.hub.feeds)


class Holding:
    """A proxy that lets the head of a feed through, and holds back what follows, until it is told not to."""

    def __init__(self, port):
        self._port = port
        self.is_holding = True
        self._serving = serving(self._pass)

    async def __aenter__(self):
        self.port = await self._serving.__aenter__()
        return self

    async def __aexit__(self, *exc_info):
        await self._serving.__aexit__(*exc_info)

    async def _pass(self, reader, writer):
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        is_feed = False

        async def up():
            nonlocal is_feed
            while data := await reader.read(65_536):
                is_feed = is_feed or data.startswith(b"GET /feed?")
                up_writer.write(data)
            up_writer.close()

        async def down():
            while data := await up_reader.read(65_536):
                if not is_feed or not self.is_holding:
                    writer.write(data)
                elif data.startswith(b"HTTP"):
                    writer.write(data[: data.index(b"\r\n\r\n") + 4])
            writer.close()

        try:
            await asyncio.gather(up(), down(), return_exceptions=True)
        finally:
            up_writer.close()


async def test_a_proxy_that_holds_back_what_it_is_sent_is_named(start, chromium):
    port = (await start(retry=0.1)).port

    async def story(context):
        page = await context.new_page()
        await page.clock.install()
        async with Holding(port) as proxy:
            await open_app(page, proxy.port)
            await page.evaluate(DEVICE, ["c", {"device": "d", "from": "all"}])
            while not await page.evaluate("states.some((each) => each.reason === 'buffered')"):
                await page.clock.run_for(1_000)
            id = (await wire.push(port, "c", 1)).json["id"]
            proxy.is_holding = False
            assert await answered(port, id) == {"processed": 1}
            assert await told(page, 1) == [1]

    await chromium(story)


async def test_control_frames_refusals_and_types_are_told(start, chromium):
    server = await start(backlog_events=2, retry=0.1)
    port = server.port

    async def story(context):
        page = await device(context, port, ["c", "d.*"], device="d")
        assert await page.evaluate("[pere.device, states.at(-1).feedback]") == ["d", "/feedback"]
        # Only those who asked for the type hear it; who has stopped hears nothing.
        await page.evaluate("""() => {
            window.orders = [];
            pere.on("order", (data, event) => { orders.push([event.channel, event.type, event.attempt]); return data > 1 ? "x".repeat(2000) : ""; });
            pere.on("order", () => orders.push("not any more"))();
        }""")
        id = (await wire.push(port, "d.born", 1, type="order")).json["id"]
        assert await answered(port, id, "d.born") == {"processed": 1}
        assert await page.evaluate("orders") == [["d.born", "order", 1]]
        await page.wait_for_function("Object.keys(localStorage).length === 0")
        # Who is asked for no receipt gives one that nobody minds; a status that is too long is refused, which is told.
        await wire.push(port, "c", 2, receipt="none")
        await told(page, 2)
        await page.wait_for_function("Object.keys(localStorage).length === 0")
        assert not await page.evaluate("states.filter((each) => each.type === 'error')")
        await wire.push(port, "c", 2, type="order")
        await reason(page, "large_status")
        id = (await wire.push(port, "c", 3)).json["id"]
        await told(page, 4)
        await wire.request(port, "DELETE", f"/events/c/{id}")
        await page.wait_for_function("id => states.some((each) => each.type === 'cancel' && each.id === id)", arg=id)
        assert (await wire.request(port, "DELETE", "/admin/devices/d")).status == 204
        await page.wait_for_function("states.at(-1).type === 'closed' && states.at(-1).retry === null")
        assert await page.evaluate("states.filter((each) => each.reason).map((each) => [each.type, each.reason])") == [
            ["error", "large_status"], ["bye", "kicked"], ["closed", "kicked"], ["error", "removed"], ["closed", "removed"]]

    await chromium(story)


async def test_the_browsers_own_eventsource_comes_back_by_itself_and_goes_on_where_it_was(tmp_path, chromium):
    store = ("--store", f"sqlite:{tmp_path}/pere.db", "--retry", "0.1")
    first = Served(*store, port=free_port())
    port = first.port

    async def story(context):
        page = await context.new_page()
        await open_app(page, port)
        await page.evaluate("""() => {
            window.told = [];
            const source = new EventSource("/feed/c?device=page");
            source.onmessage = ({ data, lastEventId }) => told.push([data, lastEventId]);
            source.addEventListener("pere.hello", ({ data }) => { window.hello = JSON.parse(data); });
        }""")
        await page.wait_for_function("window.hello")
        # Without receipts: what was read is what Last-Event-ID says.
        ids = [(await wire.push(port, "c", f"{n}", receipt="none")).json["id"] for n in range(5)]
        await told(page, 5)
        first.end(signal.SIGKILL)
        with Served(*store, port=port):
            ids += [(await wire.push(port, "c", f"{n}", receipt="none")).json["id"] for n in range(5, 10)]
            assert await told(page, 10) == [[f"{n}", id] for n, id in enumerate(ids)]
            # A page that was sent away by name does not come back.
            await wire.request(port, "DELETE", "/admin/devices/page")

    try:
        await chromium(story)
    finally:
        first.__exit__()


async def test_a_page_of_another_origin_is_a_device_with_a_token_or_with_a_cookie(start, chromium):
    """Its own server is elsewhere; it imports the module from PERE, which has named its origin."""

    async def page_of(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<!doctype html><title>shop</title>")

    publisher = bearer("p", push=["c"])

    async def story(context):
        await context.add_cookies([{"name": "pere_token", "value": token("baked", feed=["c"]), "url": f"http://127.0.0.1:{port}", "httpOnly": True}])
        asked = []
        context.on("request", lambda request: asked.append(request.url))
        script = DEVICE.replace('"/pere.js"', f'"http://127.0.0.1:{port}/pere.js"').replace('Pere("",', f'Pere("http://127.0.0.1:{port}",')
        pages = []
        for options in ({"token": token("told", feed=["c"]), "credentials": "omit"}, {"device": "baked", "credentials": "include"}):
            pages.append(await context.new_page())
            await pages[-1].goto(origin)
            await pages[-1].evaluate(script, ["c", options])
            await pages[-1].wait_for_function("pere.state === 'open'")
        assert [await page.evaluate("pere.device") for page in pages] == ["told", "baked"]
        id = (await wire.request(port, "POST", "/push/c", 1, **publisher)).json["id"]
        for page in pages:
            assert await told(page, 1) == [1]
        assert await answered(port, id, **publisher) == {"processed": 2}
        # Nobody finds a token in a history, or in the log of a proxy.
        assert any("/feed?" in each for each in asked) and not [each for each in asked if "token" in each]

    async with serving(page_of) as shop:
        origin = f"http://127.0.0.1:{shop}"
        port = (await start(jwt_secret=SECRET, cors_origins=origin)).port
        await chromium(story)
