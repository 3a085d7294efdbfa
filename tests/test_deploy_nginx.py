"""deploy/nginx.conf in a real nginx, before a real server. Nothing of it is changed but addresses and paths, and where a test says so how
long nginx waits for a silent server."""

import asyncio
import re
import ssl
from pathlib import Path

import httpx
import pytest
import wire
from certificates import Authority
from minting import SECRET, token
from nginxes import Nginx
from processes import free_port

from pere.sse import Decoder

CONFIG = (Path(__file__).parent.parent / "deploy" / "nginx.conf").read_text()


def adapted(folder: Path, certificate: tuple[str, str], nodes: tuple[str, str], tls: int, plain: int, read_timeout: str = "1h") -> str:
    """The configuration for this machine, with these two nodes."""
    text = re.sub(r"^ *listen \[::\].*\n", "", CONFIG, flags=re.M)
    put = {"user www-data;": "user root;", "/var/log/nginx/access.log": f"{folder}/access.log", "/var/log/nginx/error.log": "stderr",
           "pere-1:4567": nodes[0], "pere-2:4567": nodes[1], "listen 443 ": f"listen 127.0.0.1:{tls} ", "listen 80;": f"listen 127.0.0.1:{plain};",
           "/etc/pere/tls/cert.pem": certificate[0], "/etc/pere/tls/key.pem": certificate[1], "proxy_read_timeout 1h;": f"proxy_read_timeout {read_timeout};"}
    for old, new in put.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


class Before:
    """nginx before a server: `way` is how to get to it, `url` the same for browsers."""

    def __init__(self, folder: Path, authority: Authority, tls: int, plain: int):
        self.way = wire.Secure(tls, authority.context)
        self.plain = plain
        self.url = f"https://localhost:{tls}"
        self._folder = folder
        self.trusted = authority.path

    @property
    def access_log(self) -> str:
        return (self._folder / "access.log").read_text()


def browser(url: str, authority: str) -> httpx.AsyncClient:
    """Who speaks HTTP/2, believes this authority, and has one connection for everything."""
    return httpx.AsyncClient(base_url=url, verify=ssl.create_default_context(cafile=authority), http1=False, http2=True, limits=httpx.Limits(max_connections=1), timeout=20)


@pytest.fixture
def nginx(tmp_path, start, authority):
    """`before = await nginx(heartbeat=0.2)`: nginx, and behind it a server with these settings, by its Unix socket if it has one. The other node is away."""
    running: list[Nginx] = []

    async def nginx(read_timeout: str = "1h", **config) -> Before:
        server = await start(**{"trusted_proxies": "127.0.0.1/32"} | config)
        tls, plain, nobody = free_port(), free_port(), free_port()
        nodes = (f"unix:{config['unix']}",) * 2 if "unix" in config else (f"127.0.0.1:{server.port}", f"127.0.0.1:{nobody}")
        text = adapted(tmp_path, authority.sign("localhost"), nodes, tls, plain, read_timeout)
        running.append(Nginx(tmp_path, text, tls, plain))
        await asyncio.to_thread(running[-1].start)
        return Before(tmp_path, authority, tls, plain)

    yield nginx
    for each in running:
        each.stop()


async def receipt(way: wire.Way, device: str, id: str) -> wire.Answer:
    return await wire.request(way, "POST", "/feedback/c", b"", Device=device, Last_Event_ID=id)


# Feeds and receipts


async def test_feeds_pushes_and_receipts_by_http_1_1_pass_as_they_are_and_a_node_that_is_away_is_stepped_over(nginx):
    before = await nginx()
    feeds = [await wire.listen(before.way, "c", device=f"d{number}") for number in range(4)]
    for data in ("one", "two"):
        id = (await wire.push(before.way, "c", data)).json["id"]
        for number, feed in enumerate(feeds):
            assert (await feed.event()).data == data
            assert (await receipt(before.way, f"d{number}", id)).json == {"state": "processed", "duplicate": False}
    status = (await wire.request(before.way, "GET", f"/events/c/{id}")).json
    assert (status["audience"], status["counts"]["processed"]) == (4, 4)
    for feed in feeds:
        assert feed.answer_head.headers["content-type"] == "text/event-stream" and "content-encoding" not in feed.answer_head.headers
        feed.close()


async def answer_in_a_browser(browser: httpx.AsyncClient) -> None:
    """A device in a browser with one connection: three events are read on its feed and answered beside it."""
    async with browser.stream("GET", "/feed/c", headers={"Device": "d"}) as feed:
        assert feed.http_version == "HTTP/2"
        decoder, pieces = Decoder(), feed.aiter_raw()
        heard: list[str] = []
        for number in range(3):
            pushed = (await browser.post("/push/c", json=number)).json()
            # Each comes while nothing follows: nobody waits for a buffer to be full.
            while pushed["id"] not in heard:
                heard += [message.id for message in decoder.feed(await anext(pieces)) if not message.event.startswith("pere.")]
            given = await browser.post("/feedback/c", headers={"Device": "d", "Last-Event-ID": pushed["id"]})
            assert (given.status_code, given.http_version, given.json()) == (200, "HTTP/2", {"state": "processed", "duplicate": False})
        assert (len(heard), (await browser.get("/admin/connections")).json()["total number"]) == (3, 1)


async def test_by_http_2_a_feed_and_its_receipts_are_on_one_connection(nginx):
    before = await nginx()
    async with browser(before.url, before.trusted) as visitor:
        await answer_in_a_browser(visitor)


async def test_a_connection_may_ask_more_often_than_nginx_allows_by_itself(nginx):
    before = await nginx()
    line = await wire.Wire.open(before.way)
    for _ in range(11):
        await line.send(100 * wire.said("GET", "/healthz"))
        assert {(await line.answer()).status for _ in range(100)} == {200}
    line.close()


async def test_a_feed_outlives_the_time_that_nginx_waits_because_its_heart_beats(nginx):
    before = await nginx("2s", heartbeat=0.2)
    feed = await wire.listen(before.way, "c", device="d")
    for _ in range(12):
        await feed.comment()
    await wire.push(before.way, "c", "late")
    assert (await feed.event()).data == "late"
    feed.close()


async def test_a_feed_that_nginx_cut_is_opened_again_and_misses_nothing(nginx):
    before = await nginx("1s", heartbeat=3600)
    feed = await wire.listen(before.way, "c", device="d")
    assert await feed.end() == []
    feed.close()
    id = (await wire.push(before.way, "c", "while it was away")).json["id"]
    again = await wire.listen(before.way, "c", device="d")
    assert (await again.event()).id == id
    again.close()


async def test_a_push_that_waits_longer_than_most_proxies_do_is_answered(nginx):
    before = await nginx()
    feed = await wire.listen(before.way, "c", device="d")
    line = await wire.Wire.open(before.way)
    await line.send(wire.said("POST", "/push/c", b"1", {"Prefer": "wait=300"}))
    id = (await feed.event()).id
    await receipt(before.way, "d", id)
    answer = await line.answer()
    assert (answer.status, answer.json["counts"]["processed"], answer.headers["preference-applied"]) == (201, 1, "wait=300")
    line.close()
    feed.close()


# Who asks


async def pushed_from(before: Before, source: str, **headers: str) -> int:
    line = await wire.Wire.open(before.way, source=source)
    try:
        await line.send(wire.said("POST", "/push/c", b"1", {name.replace("_", "-"): value for name, value in headers.items()}))
        return (await line.answer()).status
    finally:
        line.close()


@pytest.mark.parametrize("way", ["tcp", "unix"])
async def test_limits_are_those_of_who_is_behind_nginx_whatever_he_calls_himself(nginx, tmp_path, way):
    by = {"tcp": {}, "unix": {"tcp": False, "unix": str(tmp_path / "pere.sock"), "trusted_proxies": "unix"}}[way]
    before = await nginx(peer_pushes="0.001/2", max_batch=1, limits_exempt="127.0.0.1/32,unix", **by)
    assert [await pushed_from(before, "127.0.0.2") for _ in range(3)] == [201, 201, 429]
    assert await pushed_from(before, "127.0.0.3") == 201
    assert await pushed_from(before, "127.0.0.2", X_Forwarded_For="192.0.2.7") == 429


async def test_the_server_hears_under_which_name_and_port_it_was_asked_so_its_own_pages_may_ask(nginx):
    before = await nginx()
    assert await pushed_from(before, "127.0.0.1", Host=before.url[8:], Origin=before.url) == 201
    assert await pushed_from(before, "127.0.0.1", Host=before.url[8:], Origin="https://localhost") == 403


async def test_a_token_in_an_address_is_not_written_down(nginx):
    before = await nginx(jwt_secret=SECRET)
    feed = await wire.listen(before.way, "c", access_token=token("d", feed=["c"]))
    assert feed.hello["device"] == "d"
    feed.close()
    while "/feed/c" not in before.access_log:
        await asyncio.sleep(0.01)
    assert "eyJ" not in before.access_log


async def test_who_comes_in_the_plain_is_sent_to_tls(nginx):
    before = await nginx()
    answer = await wire.request(before.plain, "GET", "/feed/c?device=d", Host="localhost")
    assert (answer.status, answer.headers["location"]) == (301, "https://localhost/feed/c?device=d")


async def test_what_is_too_large_is_refused_by_the_server_and_not_by_nginx(nginx):
    before = await nginx()
    assert (await wire.request(before.way, "POST", "/push/c", b"x" * 70_000)).error == (413, "large_body")
    assert (await wire.request(before.way, "POST", "/push", b"[" + b" " * 4_300_000 + b"]")).error[0] == 413
    assert (await wire.request(before.way, "GET", f"/events/{'x' * 9000}")).error == (414, "long_line")
