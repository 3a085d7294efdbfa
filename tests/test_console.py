"""The console's files and `pere.js`, as they are served; what the console asks for; and the console in a real browser."""

import json
from pathlib import Path

import axe_playwright_python
import pytest
import wire
from browsers import patiently
from hooks import LOCAL
from minting import SECRET, bearer, token

import pere

BROWSER = Path(pere.__file__).parent / "browser"
AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
PICTURES = Path(__file__).parent.parent / "build" / "screenshots"
EVERYTHING = {"push": ["**"], "feed": ["**"], "admin": True}
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


# Files


@pytest.mark.parametrize("target, kind", [("/pere.js", "text/javascript; charset=utf-8"), ("/pere.d.ts", "text/plain; charset=utf-8"), ("/console/console.js", "text/javascript; charset=utf-8"),
                                          ("/console/console.css", "text/css; charset=utf-8"), ("/console/pear.svg", "image/svg+xml")])
async def test_a_file_is_what_it_says_and_is_asked_for_again_only_if_it_changed(ask, target, kind):
    answer = await ask("GET", target)
    assert (answer.status, answer.headers["content-type"], answer.headers["cache-control"], answer.headers["x-content-type-options"]) == (200, kind, "no-cache", "nosniff")
    again = await ask("GET", target, If_None_Match=answer.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert (await ask("HEAD", target)).headers["content-length"] == str(len(answer.body))


@pytest.mark.parametrize("target", ["/console/", "/console/nothing.js", "/console/..%2fserver.py", "/console/index.html%00", "/console/%2e%2e%2fbrowser%2fpere.js", "/console/OFL.txt", "/pere.py", "/browser/pere.js",
                                    "/console/package.json", "/package.json", "/pereXjs"])
async def test_nothing_but_these_is_served(ask, target):
    assert (await ask("GET", target)).error == (404, "not_found")


async def test_a_page_of_a_named_origin_may_import_it(start, ask):
    await start(cors_origins="https://shop.example")
    answer = await ask("GET", "/pere.js", Origin="https://shop.example")
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"


async def test_home_is_the_console_for_a_browser_and_for_others_what_it_was(ask, get):
    page = await ask("GET", "/", **HTML)
    assert (page.status, page.headers["content-type"], page.headers["vary"]) == (200, "text/html; charset=utf-8", "Accept")
    assert "script-src 'self'" in page.headers["content-security-policy"] and "unsafe" not in page.headers["content-security-policy"]
    assert b"<script type=\"module\" src=\"/console/console.js\">" in page.body
    for accept in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        assert await get("/", **accept) == {"message": "PERE server up and running", "version": pere.__version__}


async def test_what_the_page_has_in_it_needs_no_exception_from_its_policy(ask):
    page = (await ask("GET", "/", **HTML)).body.decode()
    assert "style=" not in page and "onclick" not in page and "<style" not in page and page.count("<script") == 1
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


# The package


async def test_the_module_is_small(ask):
    assert len((await ask("GET", "/pere.js")).body) < 6 * 1024


def test_the_package_is_what_npm_wants():
    package = json.loads((BROWSER / "package.json").read_text())
    assert (package["type"], package["license"], package["types"]) == ("module", "MIT", package["exports"]["."]["types"])
    assert {package["types"], package["exports"]["."]["default"]} == {f"./{name}" for name in package["files"]}
    assert all((BROWSER / name).is_file() for name in package["files"])
    assert package["version"].split("-")[0] == pere.__version__.partition(".dev")[0]


# What it asks for


async def test_an_overview_tells_how_it_stands(start, listen, push, feedback, get):
    server = await start()
    assert (await get("/admin/overview"))["recent"] == []
    for name in ("a", "b"):
        await listen("c", device=name)
    await listen("d.e", "c", device="b")
    first, second = await push("c", {"n": 1}, type="order", device="shop"), await push("d.e", 2)
    quiet = await push("c", 3, receipt="none")
    await feedback("c", "a", first)
    await feedback("c", "b", first, state="failed")
    await feedback("c", "b", first, state="failed")
    told = await get("/admin/overview")
    assert (told["version"], told["trouble"], told["feeds"], told["devices"]) == (pere.__version__, None, {"open": 3, "behind": 0, "receipts": 0}, {"online": 2, "registered": 2})
    assert (told["events"]["accepted"], told["events"]["deliveries"]) == (3, server.hub.broadcast.deliveries)
    assert {name: told["receipts"][name] for name in ("accepted", "duplicate", "outstanding")} == {"accepted": 2, "duplicate": 1, "outstanding": 1}
    assert sum(count for _, count in told["roundtrip"]) == 2
    assert told["channels"] == {"known": 2, "busiest": [{"channel": "c", "feeds": 3, "devices": 2}, {"channel": "d.e", "feeds": 1, "devices": 1}]}
    assert [event["id"] for event in told["recent"]] == [quiet, second, first]
    assert [(event["audience"], event["outstanding"], event["complete"]) for event in told["recent"]] == [(0, 0, True), (1, 1, False), (2, 0, True)]
    assert (told["recent"][2]["type"], told["recent"][2]["publisher"], told["recent"][2]["counts"]["failed"]) == ("order", "shop", 1)


async def test_an_overview_tells_of_events_from_before_a_restart_what_the_file_says(hooked, listen, push, feedback, get):
    server = await hooked("sqlite")
    feeds = [await listen("c", device=name) for name in ("a", "b")]
    id = await push("c")
    await feedback("c", "a", id)
    for feed in feeds:
        feed.close()
    await server.stop()
    await hooked("sqlite")
    await listen("c", device="b")
    assert [(event["id"], event["audience"], event["outstanding"], event["counts"]["processed"]) for event in (await get("/admin/overview"))["recent"]] == [(id, 2, 1, 1)]


async def test_an_overview_is_short_however_much_there_is(start, get, push):
    server = await start()
    for n in range(300):
        await push(f"c{n % 100}", n)
    for n in range(2000):
        server.store.register("c1", f"d{n}")
    told = await get("/admin/overview")
    assert (len(told["recent"]), len(told["channels"]["busiest"]), told["channels"]["known"], told["devices"]["registered"]) == (20, 0, 100, 2000)
    assert [event["channel"] for event in told["recent"]] == [f"c{n % 100}" for n in range(299, 279, -1)]


# In a browser


async def goes_to(page, name):
    await page.get_by_role("navigation").get_by_role("link", name=name).click()
    await page.get_by_role("heading", level=1, name=name).wait_for()


async def picture(page, name):
    PICTURES.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def listening(page, troubles):
    """Whatever the page complains of is a failure."""
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" and "401" not in message.text and "403" not in message.text else None)


@patiently
async def test_the_whole_story_is_told_in_the_console(start, receiver, chromium, caplog):
    server = await start(jwt_secret=SECRET, **LOCAL)
    port, there, troubles = server.port, receiver(204, 204, 410, 204), []
    server.store.register("orders", "till-9")

    async def story(context):
        page = await context.new_page()
        listening(page, troubles)
        await page.goto(f"http://127.0.0.1:{port}/")
        # It asks who is there, and takes only what the server takes.
        dialog = page.get_by_role("dialog", name="Who is asking?")
        await dialog.get_by_label("Token").fill("nonsense")
        await dialog.get_by_role("button", name="Use it").click()
        await dialog.get_by_text("a token is").wait_for()
        await dialog.get_by_label("Token").fill(token("root", admin=True))
        await dialog.get_by_role("button", name="Use it").click()
        await page.get_by_text("live", exact=True).wait_for()
        assert page.url == f"http://127.0.0.1:{port}/" and await page.evaluate("Object.keys(localStorage)") == []

        # Who may only look may not push, and is told so.
        await goes_to(page, "Try it")
        await page.get_by_role("button", name="Push").click()
        await page.get_by_text("this token does not allow to push to 'orders'").wait_for()
        await page.get_by_role("button", name="Token").click()
        await dialog.get_by_label("Token").fill(token("shop-window", **EVERYTHING))
        await dialog.get_by_role("button", name="Use it").click()

        # Be a device, push, and answer by hand.
        await page.get_by_label("Name", exact=True).fill("shop-window")
        await page.get_by_label("When it is sent something, it").select_option("waits for you")
        await page.get_by_role("button", name="Be this device").click()
        await page.get_by_text("listening to orders as shop-window").wait_for()
        await page.get_by_label("Type (optional)").fill("order")
        # The device is not another one than the token's, and so is who pushes.
        await page.get_by_role("button", name="Push").click()
        await page.get_by_text("Pushed to 2 devices").wait_for()
        await page.get_by_text("none of 2. 2 devices owe a receipt.").wait_for()
        tape = page.get_by_role("list", name="What the device was told")
        await tape.get_by_text("pere al vino").wait_for()
        await tape.get_by_role("button", name="processed").click()
        await page.get_by_text("1 processed of 2. 1 device owes a receipt.").wait_for()
        owing = page.get_by_role("row", name="till-9")
        await owing.get_by_text("pending").wait_for()
        await owing.get_by_text("away").wait_for()
        await picture(page, "story")
        await page.get_by_role("button", name="Token").click()
        await dialog.get_by_role("button", name="Cancel").click()
        await dialog.wait_for(state="hidden")
        id = (await wire.request(port, "GET", "/events/orders", **bearer("p", push=["**"]))).json["events"][0]["id"]
        await wire.request(port, "POST", "/feedback", {"receipts": [{"event_id": id, "state": "failed", "status": "no paper"}]}, **bearer("till-9", feed=["orders"]))
        await page.get_by_text("1 processed, 1 failed of 2. Everybody has answered.").wait_for()
        await page.get_by_label("Devices in this state").last.select_option("failed")
        await page.get_by_role("cell", name="no paper").wait_for()

        # All of that shows in what happens now.
        await goes_to(page, "Now")
        event = page.get_by_role("button", name="orders order")
        await event.get_by_text("2 / 2").wait_for()
        await event.get_by_text("1 failed").wait_for()
        await page.get_by_text("100 %", exact=True).wait_for()
        await event.click()
        await page.get_by_text("1 processed, 1 failed of 2.").first.wait_for()
        # Nothing moves under the hand of whoever chooses.
        await wire.request(port, "POST", "/push/later", 1, **bearer("p", push=["**"]))
        await page.get_by_text("held while you choose").wait_for()
        assert not await page.get_by_role("button", name="later").count()
        await page.mouse.move(0, 0)
        await page.evaluate("document.activeElement.blur()")
        await page.get_by_role("button", name="later").wait_for()

        await goes_to(page, "Devices")
        await page.get_by_text("1 online of 2 registered").wait_for()
        await page.get_by_role("row", name="shop-window online 1 orders").wait_for()
        await page.get_by_label("After this name").fill("shop-window")
        await page.get_by_role("button", name="Look").click()
        await page.get_by_role("row", name="till-9 away 0 orders").wait_for()
        await page.get_by_role("row", name="shop-window").wait_for(state="detached")

        # An endpoint that takes a test, and then says that it is gone.
        await goes_to(page, "Webhooks")
        await page.get_by_label("Address").fill(there.url)
        await page.get_by_role("button", name="Add").click()
        await page.get_by_text("Its secret is told only now: whsec_").wait_for()
        await page.get_by_role("button", name="Test").click()
        await page.get_by_text("It answered 204").wait_for()
        await wire.request(port, "POST", "/push/orders?to=shop-window", 1, **bearer("p", push=["**"]))
        await goes_to(page, "Try it")
        await tape.get_by_role("button", name="processed").click()
        while (await wire.request(port, "GET", "/webhooks", **bearer("root", admin=True))).json["webhooks"][0]["dead"] != 1:
            await page.wait_for_timeout(20)
        await goes_to(page, "Webhooks")
        await page.get_by_role("button", name="Dead letters").click()
        await page.get_by_role("cell", name="answered 410, not 2xx").wait_for()
        await page.get_by_role("button", name="Replay all").click()
        await page.get_by_text("set its state to active first").wait_for()
        await page.get_by_role("button", name="Resume").click()
        await page.get_by_role("button", name="Pause").wait_for()
        await page.get_by_role("button", name="Replay all").click()
        await page.get_by_text("1 notice on the way again.").wait_for()

        # Who goes leaves nothing behind.
        await page.get_by_role("button", name="Token").click()
        await dialog.get_by_role("button", name="Log out").click()
        await page.get_by_text("a token is needed").wait_for()
        assert await page.evaluate("Object.values(sessionStorage)") == ["shop-window"]

    await chromium(story)
    assert [each for each in troubles if "409" not in each] == []
    assert "webhook was given up" in caplog.messages
    caplog.clear()


@patiently
async def test_it_looks_only_while_somebody_sees_it_and_says_when_nobody_answers(start, chromium):
    server = await start()
    port = server.port

    async def story(context):
        page = await context.new_page()
        await page.clock.install()
        await page.goto(f"http://127.0.0.1:{port}/")
        await page.get_by_text("live", exact=True).wait_for()
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        await page.evaluate("""() => {
            Object.defineProperty(document, "hidden", { value: true, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""")
        await page.get_by_text("paused", exact=True).wait_for()
        asked.clear()
        await page.clock.run_for(60_000)
        assert asked == []
        await page.route("**/admin/overview", lambda route: route.abort())
        await page.evaluate("""() => {
            Object.defineProperty(document, "hidden", { value: false });
            document.dispatchEvent(new Event("visibilitychange"));
        }""")
        await page.get_by_text("no answer", exact=True).wait_for()
        await page.unroute("**/admin/overview")
        await page.clock.run_for(31_000)
        await page.get_by_text("live", exact=True).wait_for()

    await chromium(story)


@patiently
async def test_where_administration_is_elsewhere_it_says_so(start, chromium):
    port = (await start(admin_port=0)).port

    async def story(context):
        page = await context.new_page()
        await page.goto(f"http://127.0.0.1:{port}/")
        await page.get_by_role("alert").get_by_text("--admin-port").wait_for()
        await goes_to(page, "Try it")
        await page.get_by_role("button", name="Push").click()
        await page.get_by_text("Pushed to 0 devices").wait_for()

    await chromium(story)


@patiently
@pytest.mark.parametrize("width, scheme", [(1440, "light"), (390, "dark")])
async def test_everybody_can_use_it(start, receiver, chromium, width, scheme):
    """What axe finds (WCAG 2 A and AA, best practices), with something of everything on every page."""
    server = await start(**LOCAL)
    port, troubles = server.port, []
    for n in range(40):
        server.store.register("orders", f"till-{n:02}")
    for n in range(12):
        id = (await wire.push(port, "orders", {"n": n}, type="order")).json["id"]
        for place, state in enumerate(["processed"] * 20 + ["failed"] * n + ["delivered"] * 3):
            await wire.request(port, "POST", "/feedback/orders", {"event_id": id, "state": state, "status": f"shelf {place}"}, Device=f"till-{place:02}")
    await wire.request(port, "POST", "/webhooks", {"url": receiver(500).url})

    async def story(context):
        page = await context.new_page()
        listening(page, troubles)
        await page.goto(f"http://127.0.0.1:{port}/")
        await page.evaluate(AXE.read_text())

        async def is_accessible(name):
            await page.wait_for_timeout(50)
            found, looked = await page.evaluate("axe.run(document).then(({ violations, passes }) => [violations.map(({ id, nodes }) => [id, ...nodes.map(({ html }) => html.slice(0, 200))]), passes.length])")
            await picture(page, f"{name}-{width}-{scheme}")
            assert found == [] and looked > 20, (name, found)
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"

        await page.get_by_role("button", name="orders order").first.click()
        await page.get_by_role("row", name="till-39").or_(page.get_by_role("button", name="More devices")).first.wait_for()
        await is_accessible("now")
        await goes_to(page, "Try it")
        await page.get_by_role("button", name="Be this device").click()
        await page.get_by_text("listening to orders").wait_for()
        await page.get_by_role("button", name="Push").click()
        await page.get_by_role("list", name="What the device was told").get_by_text("pere al vino").wait_for()
        await is_accessible("try")
        await goes_to(page, "Devices")
        await page.get_by_role("row", name="till-00").wait_for()
        await is_accessible("devices")
        await goes_to(page, "Webhooks")
        await page.get_by_role("button", name="Test").wait_for()
        await is_accessible("webhooks")
        await page.get_by_role("button", name="Token").click()
        await is_accessible("token")

    await chromium(story, viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
    assert troubles == []


@patiently
async def test_a_keyboard_is_enough(start, chromium):
    port = (await start()).port

    async def story(context):
        page = await context.new_page()
        await page.goto(f"http://127.0.0.1:{port}/")
        await page.get_by_text("live", exact=True).wait_for()
        press, focused = page.keyboard.press, "document.activeElement.textContent.trim()"
        await press("Tab")
        assert await page.evaluate(focused) == "Skip to the content"
        for _ in range(3):
            await press("Tab")
        assert await page.evaluate(focused) == "Try it"
        await press("Enter")
        await page.get_by_role("heading", level=1, name="Try it").wait_for()
        # Whoever hears the page is where the page is.
        assert await page.evaluate(focused) == "Try it" and await page.evaluate("document.activeElement.tagName") == "H1"
        await press("Tab")
        await page.keyboard.type("x")
        assert "x" in await page.get_by_label("Name", exact=True).input_value()
        for name in ("light", "dark", "system"):
            await page.get_by_role("button", name="Theme").press("Enter")
            await page.get_by_role("button", name=f"Theme: {name}").wait_for()

    await chromium(story)


FIRES = "<img src=x onerror=fire()></script><script>fire()</script>\"'><svg onload=fire()>"
NAMES = ["javascript:fire", "__proto__", "constructor"]  # what else a name may be made of does no more

# Whatever runs, or is made of markup, on a page that has none of it by itself.
WATCH = """
window.ran = [];
window.fire = window.alert = () => ran.push("a script of somebody else");
addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) => ran.push(`${violatedDirective} ${blockedURI}`));
"""
MADE = "[...document.querySelectorAll('img, iframe, object, embed, base, body script, main style, form[action], svg[onload], [onerror], a[href]:not([href^=\"#\"])')].map((each) => each.outerHTML)"


@patiently
async def test_what_others_made_up_is_text_on_every_page_and_nobody_frames_it(start, chromium):
    server = await start(**LOCAL)
    port, troubles = server.port, []
    home = f"http://127.0.0.1:{port}"
    for name in NAMES:
        server.store.register(name, name + "@~:.")
        id = (await wire.request(port, "POST", f"/push/{name}?type={name}", FIRES, Content_Type="text/plain", Device=name, X_Request_Id=FIRES)).json["id"]
        answer = await wire.request(port, "POST", f"/feedback/{name}", {"event_id": id, "state": "failed", "status": FIRES}, Device=name + "@~:.")
        assert answer.status == 200
    assert (await wire.request(port, "POST", "/webhooks", {"url": "http://127.0.0.1:9/javascript:fire()'"})).status == 201

    async def story(context):
        await context.add_init_script(WATCH)
        await context.set_extra_http_headers({"X-Request-Id": FIRES})
        page = await context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(dialog.message))

        async def is_only_text():
            assert (await page.evaluate("ran"), await page.evaluate(MADE), troubles) == ([], [], [])

        await page.goto(home)
        for name in NAMES:
            await page.get_by_role("button", name=f"{name} {name}").click()
            await page.get_by_label("Devices in this state").first.select_option("failed")
            await page.get_by_role("cell", name=FIRES).wait_for()
            await page.get_by_role("cell", name=f"{name}@~:.").wait_for()
        await is_only_text()
        await goes_to(page, "Try it")
        await page.get_by_label("Name", exact=True).fill("constructor")
        await page.get_by_label("Channels, with commas").fill(",".join(NAMES))
        await page.get_by_role("button", name="Be this device").click()
        await page.get_by_text("listening to javascript:fire").wait_for()
        await page.get_by_label("What, as JSON or as text").fill(FIRES)
        for name in NAMES:
            await page.get_by_label("Channel", exact=True).fill(name)
            await page.get_by_label("Type (optional)").fill(name)
            await page.get_by_role("button", name="Push").click()
            await page.get_by_text("Pushed as text to").wait_for()
            await page.get_by_role("list", name="What the device was told").get_by_role("listitem").filter(has_text=f"{name}{name} ·").get_by_text(FIRES).wait_for()
        await page.get_by_label("Channel", exact=True).fill(FIRES[:50])
        await page.get_by_role("button", name="Push").click()
        await page.get_by_text(f"a channel is 1 to 128 of A-Z a-z 0-9 _ . : ~ -, not '{FIRES[:50]}'").wait_for()
        await is_only_text()
        await goes_to(page, "Devices")
        await page.get_by_role("row", name="javascript:fire@~:.").wait_for()
        await is_only_text()
        await goes_to(page, "Webhooks")
        await page.get_by_role("heading", name="javascript:fire()").wait_for()
        await page.get_by_label("Address").fill(f"http://127.0.0.1/{FIRES}")
        await page.get_by_role("button", name="Add").click()
        await page.get_by_text("'<' cannot stand in a URL").wait_for()
        await is_only_text()
        # What was made up is no page either where a browser goes to it by itself.
        for target in (f"/events/{NAMES[0]}", "/events/" + FIRES[:26]):
            await page.goto(home + target)
            assert FIRES[:26] in await page.locator("pre").inner_text() and await page.evaluate(MADE) == []
        # Nobody frames it, and be it a page of its own origin.
        await page.route("**/frame", lambda route: route.fulfill(content_type="text/html", body="<iframe src='/'></iframe><iframe src='/healthz'></iframe>"))
        await page.goto(f"{home}/frame")
        assert [frame.url for frame in page.frames] == [f"{home}/frame", "chrome-error://chromewebdata/", "chrome-error://chromewebdata/"]
        assert troubles == []

    await chromium(story)
