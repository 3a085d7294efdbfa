"""Keys on somebody's server: a real one, that turns its keys, goes away, lies and is slow."""

import asyncio
import gzip
import time
from typing import Any

import orjson
import pytest
import wire
from cryptography.hazmat.primitives.asymmetric import ec
from minting import PRIVATE, jwk, token
from processes import SECONDS
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from pere.errors import ConfigError
from pere.jwks import MAX_BYTES, check_url


class Keys:
    """A JWKS server on loopback. `body` is what it says, `status` with which status, `gate` when; `asked` counts."""

    def __init__(self) -> None:
        self.asked = 0
        self.status = 200
        self.body = b""
        self.headers: dict[str, str] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        [socket] = bind_sockets(0, "127.0.0.1")
        self.port = socket.getsockname()[1]
        keys = self

        class Document(RequestHandler):
            async def get(self) -> None:
                keys.asked += 1
                await keys.gate.wait()
                self.set_status(keys.status)
                for name, value in keys.headers.items():
                    self.set_header(name, value)
                self.finish(keys.body)

        self._server = HTTPServer(Application([("/jwks.json", Document)], log_function=lambda handler: None))
        self._server.add_socket(socket)
        self.url = f"http://127.0.0.1:{self.port}/jwks.json"

    def has(self, *keys: dict[str, Any]) -> None:
        self.status, self.body = 200, orjson.dumps({"keys": keys})

    async def close(self) -> None:
        self._server.stop()
        await self._server.close_all_connections()


@pytest.fixture
def keys(io_loop):
    yield from _standing(io_loop)


@pytest.fixture
def strangers(io_loop):
    """Those of somebody else."""
    yield from _standing(io_loop)


def _standing(io_loop):
    async def make() -> Keys:
        return Keys()

    keys = io_loop.run_sync(make)
    yield keys
    io_loop.run_sync(keys.close, timeout=SECONDS)


@pytest.fixture
def served(start, keys, until):
    """A server that has the keys of that one, and may ask for them again at once."""

    async def served(cooldown: float = 0.0, **config):
        server = await start(jwt_jwks=keys.url, **config)
        server.jwks.cooldown = cooldown
        # The wheel has had its first turn, and fetches nothing more between two requests.
        await until(lambda: keys.asked)
        return server

    return served


def signed(kid: str | None = "e", algorithm: str = "ES256", key: Any = None, **said: Any) -> str:
    return token("p", push=["c"], key=key or PRIVATE[algorithm], algorithm=algorithm, kid=kid, **said)


async def pushed(server, text: str) -> wire.Answer:
    return await wire.request(server.port, "POST", "/push/c", b"1", Authorization=f"Bearer {text}")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_tokens_of_every_kind_of_key_are_verified(served, keys, algorithm):
    keys.has(jwk("RS256", "RS256"), jwk("ES256", "ES256"), jwk("EdDSA", "EdDSA"))
    server = await served()
    assert (await pushed(server, signed(algorithm, algorithm))).status == 201
    other = {"RS256": "ES256", "ES256": "EdDSA", "EdDSA": "RS256"}[algorithm]
    assert (await pushed(server, signed(other, algorithm))).error == (401, "bad_token")


async def test_a_key_that_is_turned_is_fetched_by_the_first_token_that_names_it(served, keys):
    keys.has(jwk("ES256", "old"))
    server = await served()
    assert (await pushed(server, signed("old"))).status == 201
    before, new = keys.asked, ec.generate_private_key(ec.SECP256R1())
    keys.has(jwk("ES256", "new", new))
    # Ten at once ask for it once, and all wait for the answer.
    answers = await asyncio.gather(*(pushed(server, signed("new", key=new)) for _ in range(10)))
    assert [answer.status for answer in answers] == [201] * 10
    assert keys.asked == before + 1
    assert (await pushed(server, signed("old"))).error == (401, "unknown_key")


async def test_every_route_waits_for_a_key(served, keys):
    keys.has(jwk("ES256", "old"))
    server = await served()
    await pushed(server, signed("old"))
    keys.has(jwk("ES256", "new"))
    answer = await wire.request(server.port, "GET", "/events/c", Authorization=f"Bearer {signed('new')}")
    assert (answer.status, len(answer.json["events"])) == (200, 1)


async def test_invented_keys_are_not_asked_for_each(served, keys):
    keys.has(jwk("ES256", "e"))
    server = await served(cooldown=60)
    assert (await pushed(server, signed())).status == 201
    server.jwks._earliest = 0.0
    for n in range(20):
        assert (await pushed(server, signed(f"invented-{n}"))).error == (401, "unknown_key")
    assert keys.asked == 2
    assert (await pushed(server, signed())).status == 201


async def test_a_recognised_receipt_whose_key_is_turned_waits_for_it_too(served, keys, connect):
    keys.has(jwk("ES256", "old"))
    server = await served()

    def receipt(kid: str) -> bytes:
        text = token("d", feed=["c"], key=PRIVATE["ES256"], algorithm="ES256", kid=kid)
        return wire.said("POST", "/feedback/c", b"", {"Device": "d", "Last-Event-ID": id, "Authorization": f"Bearer {text}"})

    answer = await wire.request(server.port, "POST", "/push/c?to=d", b"1", Authorization=f"Bearer {signed('old')}")
    id = answer.json["id"]
    line = await connect()
    for kid in ("old", "old", "new", "new"):
        if kid == "new":
            keys.has(jwk("ES256", "new"))
        await line.send(receipt(kid))
        assert (await line.answer()).status == 200


@pytest.mark.parametrize("trouble", ["away", "refuses", "redirects", "lies", "empty", "endless", "secret", "deep", "compressed"])
async def test_while_their_server_is_in_trouble_the_old_keys_are_good(served, keys, strangers, trouble, caplog):
    keys.has(jwk("ES256", "e"))
    strangers.has(jwk("ES256", "new"))
    server = await served()
    assert (await pushed(server, signed())).status == 201
    if trouble == "away":
        await keys.close()
    keys.status = {"refuses": 503, "redirects": 302}.get(trouble, 200)
    keys.headers = {"redirects": {"Location": strangers.url}, "compressed": {"Content-Encoding": "gzip"}}.get(trouble, {})
    keys.body = {"lies": b"<html>", "empty": b'{"keys":[]}', "endless": b'"' + b"x" * MAX_BYTES + b'"',
                 "secret": orjson.dumps({"keys": [{"kty": "oct", "k": "AAAA", "kid": "new"}]}), "deep": b'{"keys":' + b"[" * 100_000,
                 "compressed": gzip.compress(strangers.body)}.get(trouble, b"")
    for _ in range(2):
        assert (await pushed(server, signed("new"))).error == (401, "unknown_key")
    assert (await pushed(server, signed())).status == 201
    assert strangers.asked == 0
    assert [record.getMessage() for record in caplog.records if record.name == "pere.keys"] == ["the keys of --jwt-jwks cannot be fetched"]
    caplog.clear()


async def test_before_there_are_keys_nobody_can_say_whether_a_token_is_good(served, keys, until, caplog):
    keys.status = 500
    server = await served(cooldown=60)
    await until(lambda: server.jwks._is_away)
    answer = await pushed(server, signed())
    assert answer.error == (503, "keys_unavailable")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert (await wire.request(server.port, "GET", "/healthz")).status == 200
    assert (await wire.request(server.port, "POST", "/push/c", b"1")).error == (401, "no_token")
    assert (await pushed(server, token("p", push=["c"]))).error == (401, "bad_token")
    keys.has(jwk("ES256", "e"))
    server.jwks._earliest = 0.0
    assert (await pushed(server, signed())).status == 201
    caplog.clear()


async def test_keys_are_fetched_anew_without_a_reason_too(served, keys, until):
    keys.has(jwk("ES256", "e"))
    server = await served()
    assert (await pushed(server, signed())).status == 201
    keys.has(jwk("EdDSA", "o"))
    before = keys.asked
    server.jwks.due(0.0)
    await until(lambda: keys.asked > before and server.jwks._task is None)
    assert (await pushed(server, signed())).error == (401, "unknown_key")


async def test_a_client_that_goes_away_while_a_key_is_fetched_hurts_nobody(served, keys, connect, until):
    keys.has(jwk("ES256", "old"))
    server = await served()
    assert (await pushed(server, signed("old"))).status == 201
    keys.gate.clear()
    keys.has(jwk("ES256", "new"))
    lines = [await connect() for _ in range(2)]
    for line in lines:
        await line.send(wire.said("POST", "/push/c", b"1", {"Authorization": f"Bearer {signed('new')}"}))
    await until(lambda: len(server.jwks._waiting) == 2)
    lines[0].reset()
    await until(lambda: len(server.door.connections) == 1)
    keys.gate.set()
    assert (await lines[1].answer()).status == 201
    assert server.store.events == 2


async def test_a_server_stops_while_a_key_is_fetched(served, keys, until):
    keys.gate.clear()
    server = await served()
    await until(lambda: keys.asked)
    await server.stop()


async def test_others_are_served_while_a_key_is_fetched(served, keys, until, connect):
    keys.has(jwk("ES256", "old"))
    server = await served()
    assert (await pushed(server, signed("old"))).status == 201
    keys.gate.clear()
    line = await connect()
    await line.send(wire.said("POST", "/push/c", b"1", {"Authorization": f"Bearer {signed('new')}"}))
    await until(lambda: server.jwks._waiting)
    assert (await pushed(server, signed("old"))).status == 201
    keys.gate.set()
    assert (await line.answer()).error == (401, "unknown_key")


async def test_a_secret_and_keys_of_both_kinds_go_together(start, keys, tmp_path, until):
    from minting import SECRET, public_pem
    keys.has(jwk("ES256", "e"))
    (tmp_path / "key.pem").write_bytes(public_pem(PRIVATE["EdDSA"]))
    server = await start(jwt_jwks=keys.url, jwt_secret=SECRET, jwt_public_key=str(tmp_path / "key.pem"))
    await until(lambda: keys.asked and server.jwks._task is None)
    for text in (signed(), signed(None, "EdDSA"), token("p", push=["c"])):
        assert (await pushed(server, text)).status == 201
    assert (await pushed(server, signed("e", "RS256"))).status == 401


async def test_an_expired_token_of_an_unknown_key_is_no_reason_to_wait_twice(served, keys):
    keys.has(jwk("ES256", "e"))
    server = await served()
    assert (await pushed(server, signed(expires=-60, now=time.time()))).error == (401, "expired_token")


@pytest.mark.parametrize("url", ["http://login.example/jwks", "http://10.0.0.1/jwks", "ftp://x/jwks", "login.example", "", "https://", "http://127.0.0.1.evil.example/",
                                 "https://me:secret@login.example/", "http://[::1", "http://127.0.0.1:port/", "file:///etc/jwks"])
def test_an_address_from_which_nobody_can_be_sure_of_the_keys_is_refused(url):
    with pytest.raises(ConfigError, match="--jwt-jwks"):
        check_url(url)


@pytest.mark.parametrize("url", ["https://login.example/jwks", "https://10.0.0.1:8443/jwks?x=1", "http://127.0.0.1:9/jwks", "http://localhost/", "http://[::1]:8080/"])
def test_an_address_with_tls_or_on_this_machine_will_do(url):
    check_url(url)
