"""The sender against every peer that networks have: real sockets on loopback, which is allowed here."""

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import elsewhere
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pere.config import networks
from pere.outside import Outside, OutsideResolver
from pere.sender import FAILURES, LONGEST_WISH, Outcome, Sender, retry_after

LOOPBACK = Outside(networks("127.0.0.0/8,::1/128"), http=True)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HEADERS = {"webhook-id": "msg_1", "content-type": "application/json"}

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Behaviour = Callable[[Reader, Writer], Awaitable[None]]


class Peer:
    """A server that reads a request and then behaves as it was told; `requests` is what came, `cut` whether we hung up on it."""

    def __init__(self, behave: Behaviour, listens: bool = True):
        self.requests: list[bytes] = []
        self.cut = asyncio.Event()
        self.url = ""
        self._behave = behave
        self._listens = listens

    async def serve(self, reader: Reader, writer: Writer) -> None:
        try:
            if self._listens:
                self.requests.append(await read_request(reader))
            await self._behave(reader, writer)
        finally:
            self.cut.set()


async def read_request(reader: Reader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head + await reader.readexactly(length)


@asynccontextmanager
async def peer(behave: Behaviour, listens: bool = True, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    made = Peer(behave, listens)
    async with elsewhere.serving(made.serve, ssl=tls) as port:
        made.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/hook?x=1"
        yield made


def says(*pieces: bytes, then: Behaviour | None = None) -> Behaviour:
    async def behave(reader: Reader, writer: Writer) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if then is not None:
            await then(reader, writer)

    return behave


async def silence(reader: Reader, writer: Writer) -> None:
    """Until the other side hangs up."""
    while await reader.read(65536):
        pass


def endless(piece: bytes, pause: float = 0.0) -> Behaviour:
    async def behave(reader: Reader, writer: Writer) -> None:
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    return behave


async def sent(behave: Behaviour, body: bytes = b"{}", **how: object) -> Outcome:
    """What becomes of a POST to a peer that behaves so; afterwards the connection is gone."""
    async with peer(behave, how.pop("listens", True)) as other:
        outcome = await Sender(LOOPBACK, **{"timeout": 60, "linger": 0.05} | how).post(other.url, HEADERS, body)
        await other.cut.wait()
    assert outcome.error in ("", *FAILURES)
    assert outcome.message and "\n" not in outcome.message
    assert outcome.seconds >= 0
    return outcome


def what(outcome: Outcome) -> tuple[int, str]:
    return outcome.status, outcome.error


# Sending


async def test_a_post_arrives_whole_and_once():
    async with peer(says(OK)) as other:
        outcome = await Sender(LOOPBACK).post(other.url, HEADERS, b'{"n":1}')
    (request,) = other.requests
    head, _, body = request.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    named = dict(each.split(": ", 1) for each in lines)
    assert (line, body) == ("POST /hook?x=1 HTTP/1.1", b'{"n":1}')
    assert named.pop("User-Agent").startswith("pere/")
    assert named == {"Host": other.url[7:].partition("/")[0], "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close",
                     "Content-Length": "7", "Webhook-Id": "msg_1", "Content-Type": "application/json"}
    assert (what(outcome), outcome.is_success, outcome.message, outcome.retry_after) == ((200, ""), True, "answered 200", None)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_every_2xx_is_a_success(status):
    assert what(await sent(says(b"HTTP/1.1 %d x\r\n\r\n" % status))) == (status, "")


@pytest.mark.parametrize("status", [400, 401, 404, 410, 418, 429, 500, 503, 599])
async def test_every_4xx_and_5xx_is_a_failure(status):
    outcome = await sent(says(b"HTTP/1.1 %d x\r\nContent-Length: 0\r\n\r\n" % status))
    assert (what(outcome), outcome.is_success, outcome.message) == ((status, "status"), False, f"answered {status}, not 2xx")


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
async def test_a_redirect_is_a_failure_and_is_not_followed(status):
    async with peer(says(OK)) as inside:
        location = inside.url.encode()
        assert what(await sent(says(b"HTTP/1.1 %d x\r\nLocation: %b\r\n\r\n" % (status, location)))) == (status, "redirect")
        assert what(await sent(says(b"HTTP/1.1 %d x\r\nLocation: http://169.254.169.254/\r\nRefresh: 0\r\n\r\n" % status))) == (status, "redirect")
    assert inside.requests == []


async def test_interim_answers_are_passed_over():
    assert what(await sent(says(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK))) == (200, "")


async def test_an_answer_is_understood_however_it_is_cut_into_pieces():
    assert what(await sent(says(*(OK[n:n + 1] for n in range(len(OK)))))) == (200, "")


async def test_an_answer_that_comes_before_the_request_was_read_counts():
    big = b"x" * 4_000_000
    assert what(await sent(says(b"HTTP/1.1 413 too large\r\nContent-Length: 0\r\n\r\n", then=silence), big, listens=False)) == (413, "status")


async def test_many_are_sent_at_once():
    async with peer(says(OK)) as other:
        sender = Sender(LOOPBACK)
        outcomes = await asyncio.gather(*(sender.post(other.url, HEADERS, b"x" * 20_000) for _ in range(100)))
    assert {what(outcome) for outcome in outcomes} == {(200, "")}
    assert len(other.requests) == 100


@pytest.mark.parametrize("name, value", [("x", "a\r\nb: c"), ("x", "a\nb"), ("x", "\x00"), ("x", "\u00e9"), ("a b", "x"), ("", "x"), ("x:", "y")])
async def test_a_header_that_would_be_two_is_never_sent(name, value):
    async with peer(says(OK)) as other:
        with pytest.raises(ValueError, match="cannot stand in a header"):
            await Sender(LOOPBACK).post(other.url, {name: value}, b"")
    assert other.requests == []


# Bodies: the status has been said, and nothing that follows it matters


@pytest.mark.parametrize("status, error", [(200, ""), (500, "status"), (302, "redirect")])
@pytest.mark.parametrize("framing", [b"Content-Length: 1000000000000", b"Transfer-Encoding: chunked", b"Connection: close", b"Content-Length: 100"])
@pytest.mark.parametrize("pause", [0.0, 0.01])
async def test_an_answer_with_an_endless_or_dripping_body_is_what_its_status_says(status, error, framing, pause):
    piece = (b"x" if pause else b"x" * 16_384)
    if framing.startswith(b"Transfer"):
        piece = b"%x\r\n%b\r\n" % (len(piece), piece)
    behave = says(b"HTTP/1.1 %d x\r\n%b\r\n\r\n" % (status, framing), then=endless(piece, pause))
    assert what(await sent(behave)) == (status, error)


@pytest.mark.parametrize("rest", [
    b"Content-Length: 100\r\n\r\nno more", b"Content-Length: -1\r\n\r\n", b"Content-Length: x\r\n\r\n", b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", b"Transfer-Encoding: gzip\r\n\r\n\x1f\x8b",
    b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nbomb", b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nok",
])
async def test_a_body_that_is_broken_off_or_nonsense_changes_nothing(rest):
    assert what(await sent(says(b"HTTP/1.1 200 OK\r\n" + rest))) == (200, "")


async def test_a_body_that_never_begins_is_not_waited_for():
    assert what(await sent(says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", then=silence))) == (200, "")


async def test_an_honest_server_can_finish_its_answer():
    """Its body comes a moment after its headers, and it would log a broken pipe if nobody took it."""
    finished = []

    async def slow(reader: Reader, writer: Writer) -> None:
        for _ in range(20):
            await asyncio.sleep(0.005)
            writer.write(b"x" * 1000)
            await writer.drain()
        finished.append(True)

    assert what(await sent(says(b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n", then=slow), linger=10)) == (200, "")
    assert finished


# Peers that never get to an answer


async def test_a_peer_that_never_answers_is_cut_at_the_timeout():
    for seconds in (0.1, 1, 10):
        outcome = await sent(silence, timeout=seconds)
        if "to connect: " not in outcome.message:  # a busy machine may not even be connected in so short a time
            break
    assert (what(outcome), outcome.message) == ((0, "timeout"), f"no time left for an answer: {seconds} s in all, 5 s to connect")


async def test_a_peer_that_drips_its_headers_is_cut_at_the_timeout():
    assert what(await sent(says(b"HTTP/1.1 200 OK\r\nX: ", then=endless(b"x", 0.01)), timeout=0.2)) == (0, "timeout")
    assert what(await sent(endless(b"H", 0.01), timeout=0.2)) == (0, "timeout")
    assert what(await sent(endless(b"HTTP/1.1 100 x\r\n\r\n", 0.05), timeout=0.2)) == (0, "timeout")


async def test_a_peer_that_does_not_read_is_cut_at_the_timeout():
    async def asleep(reader: Reader, writer: Writer) -> None:
        await asyncio.sleep(0.5)

    assert what(await sent(asleep, b"x" * 10_000_000, listens=False, timeout=0.2)) == (0, "timeout")


@pytest.mark.parametrize("listens", [True, False])
async def test_a_peer_that_closes_without_an_answer_has_closed(listens):
    outcome = await sent(says(), listens=listens)
    assert what(outcome) == (0, "closed")
    assert outcome.message.startswith("the connection ended before an answer")
    assert what(await sent(says(b"HTTP/1.1 200 OK\r\nX: y"), listens=listens)) == (0, "closed")


async def test_a_peer_that_resets_the_connection_has_closed():
    async def reset(reader: Reader, writer: Writer) -> None:
        writer.transport.abort()

    assert what(await sent(reset, b"x" * 1_000_000, listens=False)) == (0, "closed")


@pytest.mark.parametrize("garbage", [
    b"\x00\xff\xfe" * 100 + b"\r\n\r\n", b"SSH-2.0-OpenSSH_9.9\r\n\r\n", b"<html>hello</html>\r\n\r\n", b"220 mail.example ESMTP\r\n\r\n",
    b"HTTP/2 200\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 two hundred\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b"HTTP/1.1 200 OK\r\na b: c\r\n\r\n", b"HTTP/1.1 000 OK\r\n\r\n", b"HTTP/1.1 999 OK\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nContent-Length: 3\r\n\r\nxxx", b"HTTP/1.1 100 x\r\n\r\n" * 20,
])
async def test_an_answer_that_is_not_http_is_malformed(garbage):
    assert what(await sent(says(garbage))) == (0, "malformed")


async def test_headers_without_end_are_malformed():
    outcome = await sent(says(b"HTTP/1.1 200 OK\r\n", then=endless(b"X: %b\r\n" % (b"y" * 1000))))
    assert (what(outcome), outcome.message) == ((0, "malformed"), "the head of the answer is too long")
    assert what(await sent(endless(b"x" * 1000))) == (0, "malformed")


async def test_a_head_may_be_long_and_no_longer():
    long = b"HTTP/1.1 200 OK\r\nX: %b\r\nContent-Length: 0\r\n\r\n" % (b"y" * 1000)
    assert what(await sent(says(long), max_head_bytes=len(long))) == (200, "")
    assert what(await sent(says(long), max_head_bytes=len(long) - 1)) == (0, "malformed")


async def test_a_port_on_which_nobody_listens_is_unreachable():
    async with peer(says(OK)) as other:
        pass
    outcome = await Sender(LOOPBACK).post(other.url, HEADERS, b"")
    assert (what(outcome), outcome.message) == ((0, "unreachable"), "Connection refused")


async def test_a_name_that_there_is_not_is_unresolved():
    def nobody(host: str, port: int, family: int):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    outcome = await Sender(LOOPBACK, resolver=OutsideResolver(LOOPBACK, nobody)).post("http://nobody.example/", HEADERS, b"")
    assert (what(outcome), outcome.message) == ((0, "unresolved"), "Name or service not known")


async def test_a_name_server_that_is_silent_uses_up_the_time_to_connect():
    over = threading.Event()

    def slow(host: str, port: int, family: int):
        over.wait(60)
        raise OSError("too late to matter")

    resolver = OutsideResolver(LOOPBACK, slow)
    outcome = await Sender(LOOPBACK, connect_timeout=0.05, resolver=resolver).post("http://slow.example/", HEADERS, b"")
    # What fails when nobody waits any more is nobody's error.
    over.set()
    assert (what(outcome), outcome.message) == ((0, "timeout"), "no time left to connect: 20 s in all, 0.05 s to connect")
    while resolver._under_way:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("url, error", [
    ("http://127.0.0.1:%d/", "inside"), ("http://[::ffff:127.0.0.1]:%d/", "inside"), ("http://localhost:%d/", "inside"),
    ("http://rebind.example:%d/", "inside"),
    ("http://2130706433:%d/", "url"), ("http://127.1:%d/", "url"), ("http://user@127.0.0.1:%d/", "url"), ("ftp://127.0.0.1:%d/", "url"), ("nonsense:%d", "url"),
])
async def test_nothing_inside_is_ever_connected_to(url, error):
    outside = Outside(http=True)
    rebinding = OutsideResolver(outside, lambda host, port, family: [(2, ("127.0.0.1", port))])
    async with peer(says(OK), listens=False) as other:
        port = int(other.url.rpartition(":")[2].partition("/")[0])
        outcome = await Sender(outside, resolver=rebinding).post(url % port, HEADERS, b"")
        assert what(outcome) == (0, error)
        assert not other.cut.is_set()


async def test_http_is_refused_where_only_https_is_allowed():
    assert what(await Sender(Outside(networks("127.0.0.0/8"))).post("http://127.0.0.1/", HEADERS, b"")) == (0, "url")


async def test_what_is_cancelled_drops_its_connection_at_once():
    for behave in (silence, says(b"HTTP/1.1 200 OK\r\n\r\n", then=silence), says(b"HTTP/1.1 2", then=silence)):
        async with peer(behave) as other:
            post = asyncio.ensure_future(Sender(LOOPBACK, timeout=600, linger=600).post(other.url, HEADERS, b""))
            while not other.requests:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            post.cancel()
            with pytest.raises(asyncio.CancelledError):
                await post
            await other.cut.wait()


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that signs itself, as the paths of certificate and key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    made = folder / "cert.pem", folder / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=test",
                    "-addext", "subjectAltName=IP:127.0.0.1,DNS:trusted.example", "-out", made[0], "-keyout", made[1]], check=True, capture_output=True, timeout=60)
    return made


def serving(certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


async def test_a_certificate_is_verified(certificate):
    async with peer(says(OK), tls=serving(certificate)) as other:
        outcome = await Sender(LOOPBACK).post(other.url, HEADERS, b"secret")
        assert what(outcome) == (0, "tls")
        assert "self-signed" in outcome.message.replace(" ", "-")
        trusting = ssl.create_default_context(cafile=certificate[0])
        assert what(await Sender(LOOPBACK, tls=trusting).post(other.url, HEADERS, b"secret")) == (200, "")
        # The certificate must be for the name that was asked for, not for the address that it led to.
        local = OutsideResolver(LOOPBACK, lambda host, port, family: [(2, ("127.0.0.1", port))])
        sender = Sender(LOOPBACK, tls=trusting, resolver=local)
        assert what(await sender.post(other.url.replace("127.0.0.1", "trusted.example"), HEADERS, b"")) == (200, "")
        assert what(await sender.post(other.url.replace("127.0.0.1", "other.example"), HEADERS, b"")) == (0, "tls")
    assert len(other.requests) == 2


async def test_a_server_without_tls_is_a_failure_of_tls():
    async with peer(says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), listens=False) as other:
        outcome = await Sender(LOOPBACK).post(other.url.replace("http:", "https:"), HEADERS, b"")
        assert what(outcome) == (0, "tls")


async def test_a_peer_that_never_shakes_hands_is_cut_at_the_time_to_connect():
    async with peer(silence, listens=False) as other:
        outcome = await Sender(LOOPBACK, connect_timeout=0.1).post(other.url.replace("http:", "https:"), HEADERS, b"")
        await other.cut.wait()
    assert what(outcome) == (0, "timeout")


# Retry-After

NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110


@pytest.mark.parametrize("text, wait", [
    ("0", 0), ("120", 120), (" 7 ", 7), ("007", 7), ("9" * 5000, LONGEST_WISH),
    ("Sun, 06 Nov 1994 08:49:37 GMT", 0), ("Sun, 06 Nov 1994 08:51:37 GMT", 120), ("Sunday, 06-Nov-94 08:51:37 GMT", 120),
    ("Sun Nov  6 08:51:37 1994", 120), ("Wed, 21 Oct 1992 07:28:00 GMT", 0), ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_WISH),
    ("", None), ("soon", None), ("-1", None), ("1.5", None), ("+5", None), ("1e3", None), ("\N{SUPERSCRIPT TWO}", None), ("\u0663", None),
    ("Sun, 99 Nov 1994 08:49:37 GMT", None), ("Sun, 06 Nov 99999 08:49:37 GMT", None), ("x" * 5000, None), ("inf", None), ("nan", None),
])
def test_retry_after_is_seconds_or_a_date(text, wait):
    assert retry_after(text, NOW) == wait


@given(st.text(max_size=80))
def test_whatever_retry_after_holds_it_is_a_time_or_nothing(text):
    wait = retry_after(text, NOW)
    assert wait is None or 0 <= wait <= LONGEST_WISH


async def test_an_outcome_has_the_servers_wish():
    for status in (200, 302, 429, 503):
        outcome = await sent(says(b"HTTP/1.1 %d x\r\nRetry-After: 17\r\nContent-Length: 0\r\n\r\n" % status))
        assert (outcome.status, outcome.retry_after) == (status, 17)
    outcome = await sent(says(b"HTTP/1.1 503 x\r\nRetry-After: Sun, 06 Nov 1994 08:51:37 GMT\r\n\r\n"), clock=lambda: NOW)
    assert (outcome.status, outcome.retry_after) == (503, 120)


async def test_the_authorities_of_the_system_are_read_beside_the_loop(monkeypatch):
    # It takes tens of milliseconds.
    threads, real = [], ssl.create_default_context

    def create():
        threads.append(threading.get_ident())
        return real()

    monkeypatch.setattr(ssl, "create_default_context", create)
    outcome = await Sender(LOOPBACK).post("https://127.0.0.1:1/hook", {}, b"1")
    assert outcome.error == "unreachable" and threads and threading.get_ident() not in threads
