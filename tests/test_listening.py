"""Where connections come from: TLS and its certificate, Unix sockets, and the listener for administration."""

import os
import re
import signal
import socket
import ssl
import stat
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import wire
from cryptography.hazmat.primitives import serialization as form
from processes import Process, Served, pere

from pere.client import Client
from pere.config import Config
from pere.errors import ConfigError
from pere.server import Server
from pere.tls import Certificate


@pytest.fixture
def secured(start, authority):
    """`port = await secured("name", head_timeout=1)`: a server with a certificate of this name."""

    async def secured(name: str = "first", **config):
        cert, key = authority.sign(name)
        return await start(tls_cert=cert, tls_key=key, **config)

    return secured


class Ask:
    """What tells where a request came from."""

    fields = [(b"x-forwarded-for", b"198.51.100.7"), (b"x-forwarded-proto", b"gopher")]


async def name_shown(port: int, context: ssl.SSLContext) -> str:
    """Whose certificate a new connection is shown."""
    line = await wire.Wire.open(wire.Secure(port, context))
    try:
        await line.send(wire.said("GET", "/healthz"))
        assert (await line.answer()).status == 200
        return next(part[0][1] for part in line.tls.getpeercert()["subject"] if part[0][0] == "commonName")
    finally:
        line.close()


# What is spoken


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_1_2_and_1_3_are_spoken_with_forward_secrecy(secured, authority, version):
    server = await secured()
    context = ssl.create_default_context(cafile=authority.path)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    line = await wire.Wire.open(wire.Secure(server.port, context))
    assert line.tls.selected_alpn_protocol() == "http/1.1"
    assert line.tls.cipher()[0].startswith("TLS_" if version == ssl.TLSVersion.TLSv1_3 else "ECDHE-")
    await line.send(wire.said("GET", "/healthz"))
    assert (await line.answer()).json == {"status": "alive"}
    line.close()
    assert server.url == f"https://127.0.0.1:{server.port}"


def old(context: ssl.SSLContext) -> None:
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = ssl.TLSVersion.TLSv1_1


def weak(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES256-GCM-SHA384:AES256-SHA:@SECLEVEL=0")  # without forward secrecy


@pytest.mark.parametrize("spoil", [old, weak])
async def test_what_is_older_or_weaker_is_refused(secured, authority, spoil):
    server = await secured()
    context = ssl.create_default_context(cafile=authority.path)
    spoil(context)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await wire.Wire.open(wire.Secure(server.port, context))
    assert not server.door.connections


async def test_an_ask_knows_that_it_came_over_tls(secured, authority, until):
    server = await secured()
    line = await wire.Wire.open(wire.Secure(server.port, authority.context))
    await until(lambda: server.door.connections)
    connection = next(iter(server.door.connections))
    assert (connection.scheme(Ask()), connection.peer(Ask())) == ("https", "127.0.0.1")
    line.close()


@pytest.mark.parametrize("target", ["/feed/c", "/receipts/c"])
async def test_a_feed_that_is_asked_for_in_one_breath_with_the_end_of_the_handshake_is_live_once(secured, authority, until, target):
    """The server has something of its own to say then that is still under way when the connection becomes a feed."""
    server = await secured()
    feed = await wire.Feed.open(server.port)
    await feed.shake_hands(authority.context, wire.said("GET", target, headers={"Device": "d"}))
    assert b"200 OK" in await feed.until(b"pere.hello")
    await until(lambda: not server.hub.channels.behind)
    feed.close()
    await until(lambda: not server.hub.feeds and not server.followers.count)
    assert server.hub.channels.behind == 0
    way = wire.Secure(server.port, authority.context)
    id = (await wire.push(way, "c", "while it is away", to="d")).json["id"]
    told = (await wire.request(way, "GET", f"/events/c/{id}")).json
    assert (told["counts"]["pending"], told["counts"]["sent"]) == (1, 0)


# Handshakes that come to nothing


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x40\x00" + 200 * b"x", bytes(range(256))],
                         ids=["silent", "begun", "HTTP", "half", "noise"])
async def test_a_handshake_that_comes_to_nothing_is_cut_and_harms_nobody(secured, authority, first):
    server = await secured(head_timeout=3600)

    async def five() -> list[wire.Wire]:
        lines = [await wire.Wire.open(server.port) for _ in range(5)]
        for line in lines:
            with suppress(ConnectionError):  # on a machine that takes its time it may have been cut by now
                await line.send(first)
        return lines

    lines = await five()
    assert await name_shown(server.port, authority.context) == "first"
    for line in lines:
        line.close()
    listener, = server.listeners._open
    listener._secured["ssl_handshake_timeout"] = 0.3
    for line in await five():
        assert b"HTTP/1.1" not in await line.rest()
        line.close()


# Another certificate


async def test_a_certificate_is_changed_without_losing_a_connection(secured, authority):
    server = await secured("before")
    cert, key = server.config.tls_cert, server.config.tls_key
    way = wire.Secure(server.port, authority.context)
    feed = await wire.listen(way, "c", device="d")
    line = await wire.Wire.open(way)
    newer = authority.sign("after")
    os.replace(newer[0], cert)
    os.replace(newer[1], key)
    assert await name_shown(server.port, authority.context) == "before"  # until it is told
    server.reload()
    assert await name_shown(server.port, authority.context) == "after"
    by_address = ssl.create_default_context(cafile=authority.path)
    by_address.check_hostname = False  # and so names no server in the handshake
    assert await name_shown(server.port, by_address) == "after"
    id = (await wire.push(way, "c", "still there")).json["id"]
    assert (await feed.event()).id == id
    await line.send(wire.said("POST", "/feedback/c", b"", {"Device": "d", "Last-Event-ID": id}))
    assert (await line.answer()).json["state"] == "processed"
    for each in (feed, line):
        each.close()


@pytest.mark.parametrize("broken", ["gone", "empty", "another key"])
async def test_a_certificate_that_is_broken_is_told_and_the_one_before_stays(secured, authority, caplog, broken):
    server = await secured("good")
    cert, key = server.config.tls_cert, server.config.tls_key
    if broken == "gone":
        os.unlink(key)
    elif broken == "empty":
        Path(cert).write_bytes(b"")
    else:
        os.replace(authority.sign("stranger")[1], key)
    server.reload()
    assert [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "pere" and record.levelname != "INFO"] == [("ERROR", "not reloaded")]
    caplog.clear()
    assert await name_shown(server.port, authority.context) == "good"


async def test_a_hangup_reads_the_certificate_again(authority):
    cert, key = authority.sign("process")
    with Process("serve", "--port", "0", "--store", "memory:", "--tls-cert", cert, "--tls-key", key) as served:
        port = int(served.until(r"https://127\.0\.0\.1:(\d+)")[1])
        assert await name_shown(port, authority.context) == "process"
        newer = authority.sign("later")
        os.replace(newer[0], cert)
        os.replace(newer[1], key)
        served._popen.send_signal(signal.SIGHUP)
        served.until("reloaded")
        assert await name_shown(port, authority.context) == "later"
        os.unlink(key)
        served._popen.send_signal(signal.SIGHUP)
        assert "cannot be read" in served.until("not reloaded.*")[0]
        assert await name_shown(port, authority.context) == "later"
        assert served.end(signal.SIGTERM) == 0


def test_who_takes_tls_for_plain_http_or_the_other_way_round_is_told(authority):
    cert, key = authority.sign("process")
    with Served("--tls-cert", cert, "--tls-key", key, "--admin-port", "0") as served:
        url, plain = (served.until(rf"{scheme}://127\.0\.0\.1:\d+")[0] for scheme in ("https", "http"))
        told = {}
        for verb in (["push", "c", "1"], ["listen", "c", "--device", "d"]):
            for there in (url.replace("https", "http"), url, plain.replace("http", "https")):
                done = pere(*verb, "--url", there)
                assert (done.returncode, done.stdout) == (1, "")
                told.setdefault(there, set()).add(done.stderr.strip().rpartition("; ")[2])
        assert told == {url.replace("https", "http"): {f"TLS is spoken there: try {url}"}, url: {"SSL_CERT_FILE names the certificates to trust instead of the system's"},
                        plain.replace("http", "https"): {f"nobody speaks TLS there: try {plain}"}}
        assert f"{url.replace('https', 'http')} speaks TLS" in pere("doctor", "--url", url.replace("https", "http")).stdout


def test_what_makes_no_certificate_is_said_at_the_start(tmp_path, authority):
    cert, key = authority.sign("one")
    other = authority.sign("two")[1]
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "both").write_bytes(b"".join(Path(path).read_bytes() for path in (cert, key)))
    for pair, wrong in {
        (cert, str(tmp_path / "none")): "--tls-key .*none cannot be read: No such file", (str(tmp_path / "none"), key): "--tls-cert .*none cannot be read: No such file",
        (cert, other): "--tls-key .*two.key is not the key of --tls-cert .*one.pem", (str(tmp_path / "junk"), key): "hold no certificate and key in PEM",
        (cert, ""): "hold no certificate and key in PEM", (str(tmp_path), key): "cannot be read: Is a directory",
    }.items():
        with pytest.raises(ConfigError, match=wrong):
            Certificate(*pair)
    Certificate(str(tmp_path / "both"), "")
    told = pere("serve", "--port", "0", "--store", "memory:", "--tls-cert", cert, "--tls-key", other)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert told.stderr.startswith("pere: --tls-key ")


def test_a_key_with_a_passphrase_asks_nobody(tmp_path, authority):
    cert, key = authority.sign("locked")
    private = form.load_pem_private_key(Path(key).read_bytes(), None)
    (tmp_path / "locked").write_bytes(private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"word")))
    with pytest.raises(ConfigError, match="locked by a passphrase"):
        Certificate(cert, str(tmp_path / "locked"))


# Unix sockets


async def test_a_unix_socket_has_the_mode_that_was_asked_for_and_is_removed_at_the_end(start, tmp_path):
    path = str(tmp_path / "s")
    server = await start(unix=path, unix_mode="600")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert (await wire.request(path, "GET", "/healthz")).status == (await wire.request(server.port, "GET", "/healthz")).status == 200
    await server.stop()
    assert not os.path.exists(path)


async def test_a_socket_that_was_left_behind_is_replaced(start, tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
        left.listen()
    await start(tcp=False, unix=path)
    assert (await wire.request(path, "GET", "/healthz")).status == 200


async def test_a_socket_on_which_somebody_listens_is_left_to_them(start, tmp_path):
    path = str(tmp_path / "s")
    await start(unix=path)
    second = Server(Config(store="memory:", port=0, unix=path))
    with pytest.raises(OSError, match="another process listens there"):
        await second.start()
    assert second.listeners.sockets == []
    assert (await wire.request(path, "GET", "/healthz")).status == 200


@pytest.mark.parametrize("make", [lambda path: path.write_text("mine"), lambda path: path.mkdir(), lambda path: path.symlink_to("/dev/null")])
async def test_a_file_that_is_no_socket_is_not_touched(tmp_path, make):
    path = tmp_path / "s"
    make(path)
    before = os.lstat(path)
    with pytest.raises(OSError, match="no socket") as told:
        await Server(Config(store="memory:", tcp=False, unix=str(path))).start()
    assert told.value.filename == str(path)
    assert os.lstat(path) == before


async def test_a_socket_that_another_server_put_in_the_place_of_ours_stays(start, tmp_path):
    path = str(tmp_path / "s")
    server = await start(unix=path)
    os.unlink(path)
    await start(unix=path)
    await server.stop()
    assert (await wire.request(path, "GET", "/healthz")).status == 200


@pytest.mark.parametrize("path, wrong", [("nowhere/s", "No such file"), ("x" * 200, "too long|name")])
def test_a_unix_socket_that_cannot_be_is_said_at_the_start(tmp_path, path, wrong):
    told = pere("serve", "--no-tcp", "--store", "memory:", "--unix", str(tmp_path / path))
    assert told.returncode == 1
    assert told.stderr.startswith(f"pere: cannot listen on {tmp_path}") and re.search(wrong, told.stderr)


async def test_a_unix_socket_counts_as_this_machine_and_its_clients_have_no_address(start, tmp_path):
    Config(tcp=False, unix="s", host="0.0.0.0")  # which is not listened on
    with pytest.raises(ConfigError, match="--host 0.0.0.0"):
        Config(unix="s", host="0.0.0.0")
    server = await start(tcp=False, unix=str(tmp_path / "s"))
    line = await wire.Wire.open(server.config.unix)
    await line.send(wire.said("GET", "/healthz"))
    await line.answer()
    assert [(each.peer(Ask()), each.scheme(Ask())) for each in server.door.connections] == [("unix:", "http")]
    line.close()


# For administration alone

ADMIN = ["/admin/connections", "/admin/events/c", "/admin/devices", "/admin/devices/d", "/metrics", "/webhooks", "/webhooks/w", "/webhooks/w/rotate", "/webhooks/w/test",
         "/webhooks/w/dead", "/webhooks/w/replay"]


async def test_what_administers_is_not_there_for_the_public_where_it_has_a_listener_of_its_own(start, tmp_path):
    server = await start(admin_port=0, unix=str(tmp_path / "s"), cors_origins="https://a.example")
    for target in ADMIN:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
            answers = [await wire.request(way, method, target, Origin="https://a.example", Access_Control_Request_Method="GET")
                       for way in (server.port, server.config.unix)]
            for answer in answers:
                assert (answer.status, answer.headers.get("allow")) == (404, None)
                assert method == "HEAD" or answer.json == {"error": "not_found", "message": f"there is nothing at '{target}'"}
        assert (await wire.request(server.listeners.admin_port, "OPTIONS", target)).status == 204
    for target in ("/", "/healthz", "/readyz"):
        assert {(await wire.request(way, "GET", target)).status for way in (server.port, server.listeners.admin_port)} == {200}


async def test_the_listener_for_administration_has_everything(start):
    server = await start(admin_port=0)
    admin = server.listeners.admin_port
    feed = await wire.listen(admin, "c", device="d")
    id = (await wire.push(server.port, "c", "hello")).json["id"]
    assert (await feed.event()).id == id
    assert (await wire.request(admin, "GET", "/admin/connections")).json == {"c": 1, "total number": 1}
    assert (await wire.request(admin, "DELETE", "/admin/devices/d")).status == 204
    feed.close()


async def test_without_a_listener_of_its_own_administration_is_where_everything_is(start):
    server = await start()
    assert (await wire.request(server.port, "GET", "/admin/connections")).json == {"total number": 0}


async def test_administration_on_loopback_is_plain_beside_tls_for_the_public(secured):
    server = await secured(admin_port=0)
    assert (await wire.request(server.listeners.admin_port, "GET", "/metrics")).status == 200
    assert server.listeners.urls == [f"https://127.0.0.1:{server.port}", f"http://127.0.0.1:{server.listeners.admin_port}"]


async def test_administration_beyond_loopback_speaks_tls_where_there_is_a_certificate(secured, authority):
    server = await secured(admin_port=0, admin_host="0.0.0.0", insecure=True)
    assert (await wire.request(wire.Secure(server.listeners.admin_port, authority.context), "GET", "/metrics")).status == 200


async def test_where_one_address_cannot_be_had_none_is_listened_on(start, tmp_path):
    taken = await start()
    path = tmp_path / "s"
    second = Server(Config(store="memory:", port=0, unix=str(path), admin_port=taken.port))
    with pytest.raises(OSError) as told:
        await second.start()
    assert told.value.filename == f"127.0.0.1:{taken.port}"
    assert second.listeners.sockets == []
    assert not path.exists()


@pytest.mark.parametrize("config, wrong", [
    ({"tcp": False}, "--no-tcp leaves nothing"), ({"tls_key": "k"}, "--tls-key is the key of"), ({"unix_mode": "rw"}, "--unix-mode is"),
    ({"unix_mode": "888"}, "--unix-mode is"), ({"admin_port": 1, "admin_host": "0.0.0.0"}, "--admin-host 0.0.0.0 can be reached"),
    ({"admin_port": 1, "admin_host": "::", "host": "0.0.0.0"}, "--host 0.0.0.0 and --admin-host :: can be reached")])
def test_listeners_that_cannot_be_are_refused_by_their_flags(config, wrong):
    with pytest.raises(ConfigError, match=wrong):
        Config(**config)


# Visitors


async def test_our_own_client_comes_by_tls_and_by_a_unix_socket(secured, authority, tmp_path, monkeypatch):
    path = str(tmp_path / "s")
    server = await secured(unix=path)
    monkeypatch.setenv("SSL_CERT_FILE", authority.path)
    for url in (server.url, f"unix:{path}"):
        async with Client(url, device="d") as client:
            id = (await client.push("c", {"by": url}, to=["d"]))["id"]
            async for message in client.frames("c"):
                if message.id == id:
                    break
            assert (await client.feedback("c", id))["state"] == "processed"
    monkeypatch.delenv("SSL_CERT_FILE")
    async with Client(server.url) as stranger:
        with pytest.raises(ConnectionError, match="certificate"):
            await stranger.push("c", 1)
    async with Client(f"unix:{tmp_path}/none") as lost:
        with pytest.raises(ConnectionError, match=f"unix:{tmp_path}/none cannot be reached"):
            await lost.push("c", 1)


async def test_the_command_line_comes_by_tls_and_by_a_unix_socket(authority, tmp_path):
    cert, key = authority.sign("command")
    path = str(tmp_path / "s")
    with Process("serve", "--port", "0", "--store", "memory:", "--tls-cert", cert, "--tls-key", key, "--unix", path) as served:
        url = served.until(r"https://127\.0\.0\.1:\d+")[0]
        for given in ({"PERE_URL": url, "SSL_CERT_FILE": authority.path}, {"PERE_URL": f"unix:{path}"}):
            done = pere("push", "c", "1", **given)
            assert (done.returncode, done.stderr) == (0, "")
        assert "certificate" in pere("push", "c", "1", PERE_URL=url).stderr


async def test_what_was_said_on_a_connection_that_was_reset_is_not_heard(start, ask):
    # Nobody knows whose it was: it would pass for somebody from a Unix socket, who has no limits and may be believed to be a proxy.
    server = await start()
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(wire.said("POST", "/push/reset", b"1"))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert (await ask("POST", "/push/after", b"1")).status == 201  # it came later, by the same queue
    assert not server.store.has("reset")
