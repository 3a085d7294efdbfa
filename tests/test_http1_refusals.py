"""What the front door does not let in: the malformed, the too long, the too large and the too slow. Each is told why in JSON, after
the answers to all that came before it, and is then let go."""

import asyncio

import pytest
from doors import LAST, chunks, eventually, facts, io_loop, no_surprises, on_uvloop, opened, request, turns  # noqa: F401

from pere import door, http1

HOST = b"Host: a\r\n"
GET = b"GET /echo HTTP/1.1\r\n" + HOST
POST = b"POST /hot HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BAD = (400, "bad_http")

MALFORMED = {
    "length and chunks": (POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    "chunks and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", BAD),
    "two lengths": (POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody", BAD),
    "the same length twice": (POST + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody", BAD),
    "a list of lengths": (POST + b"Content-Length: 4, 4\r\n\r\nbody", BAD),
    "a length with a sign": (POST + b"Content-Length: +4\r\n\r\nbody", BAD),
    "a negative length": (POST + b"Content-Length: -4\r\n\r\nbody", BAD),
    "a hexadecimal length": (POST + b"Content-Length: 0x4\r\n\r\nbody", BAD),
    "a length in two words": (POST + b"Content-Length: 4 4\r\n\r\nbody", BAD),
    "an empty length": (POST + b"Content-Length:\r\n\r\n", BAD),
    "a length beyond all numbers": (POST + b"Content-Length: 99999999999999999999999\r\n\r\n", BAD),
    "a length just beyond 64 bits": (POST + b"Content-Length: 18446744073709551620\r\n\r\nbody", BAD),
    "the longest length of all": (POST + b"Content-Length: 18446744073709551615\r\n\r\nbody", (413, "large_body")),
    "the same length in two cases": (POST + b"Content-Length: 4\r\ncontent-length: 4\r\n\r\nbody", BAD),
    "a length and a comma": (POST + b"Content-Length: 4,\r\n\r\nbody", BAD),
    "a length with an underscore": (POST + b"Content-Length: 4_0\r\n\r\nbody", BAD),
    "a length in quotes": (POST + b'Content-Length: "4"\r\n\r\nbody', BAD),
    "a fraction of a length": (POST + b"Content-Length: 4.0\r\n\r\nbody", BAD),
    "a length of another script": (POST + b"Content-Length: \xb2\r\n\r\nbody", BAD),
    "a space that is none before a length": (POST + b"Content-Length:\x0c4\r\n\r\nbody", BAD),
    "a length behind a bare return": (POST + b"X: a\rContent-Length: 4\r\n\r\nbody", BAD),
    "a length in a fold": (POST + b"X: a\r\n Content-Length: 4\r\n\r\nbody", BAD),
    "chunks of chunks": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    "chunks in gzip": (POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", BAD),
    "chunks and a comma": (POST + b"Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n", BAD),
    "a comma and chunks": (POST + b"Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n", (501, "transfer_encoding")),
    "chunks with a parameter": (POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", (501, "transfer_encoding")),
    "chunks in quotes": (POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', (501, "transfer_encoding")),
    "almost chunks": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", (501, "transfer_encoding")),
    "chunks behind a space that is none": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", BAD),
    "chunks behind a fold": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", BAD),
    "chunks behind a space and the colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", BAD),
    "no coding": (POST + b"Transfer-Encoding:\r\n\r\n", BAD),
    "no coding, and a length": (POST + b"Transfer-Encoding:\r\nContent-Length: 4\r\n\r\nbody", BAD),
    "the coding that is none": (POST + b"Transfer-Encoding: identity\r\n\r\n", (501, "transfer_encoding")),
    "the coding that is none, and a length": (POST + b"Transfer-Encoding: identity\r\nContent-Length: 4\r\n\r\nbody", BAD),
    "two lines of codings": (POST + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (400, "repeated_header")),
    "gzip in chunks": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", (501, "transfer_encoding")),
    "gzip without chunks": (POST + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n", (501, "transfer_encoding")),
    "chunks by HTTP/1.0": (b"POST /hot HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    "a chunk of no size": (CHUNKED + b"\r\nbody\r\n0\r\n\r\n", BAD),
    "a chunk of bad size": (CHUNKED + b"four\r\nbody\r\n0\r\n\r\n", BAD),
    "a chunk of negative size": (CHUNKED + b"-4\r\nbody\r\n0\r\n\r\n", BAD),
    "a chunk of a size beyond all numbers": (CHUNKED + b"fffffffffffffffff\r\nbody\r\n0\r\n\r\n", BAD),
    "a chunk longer than its size": (CHUNKED + b"3\r\nbody\r\n0\r\n\r\n", BAD),
    "a chunk of a size in another notation": (CHUNKED + b"0x4\r\nbody\r\n0\r\n\r\n", BAD),
    "a chunk of a size with a sign": (CHUNKED + b"+4\r\nbody\r\n0\r\n\r\n", BAD),
    "a chunk of a size with an underscore": (CHUNKED + b"0_4\r\nbody\r\n0\r\n\r\n", BAD),
    "a space before the size of a chunk": (CHUNKED + b" 4\r\nbody\r\n0\r\n\r\n", BAD),
    "a space before the extension of a chunk": (CHUNKED + b"4 ;a=b\r\nbody\r\n0\r\n\r\n", BAD),
    "an extension without a name": (CHUNKED + b"4;\r\nbody\r\n0\r\n\r\n", BAD),
    "a line feed in an extension": (CHUNKED + b"4;a\nb\r\nbody\r\n0\r\n\r\n", BAD),
    "a line feed in the quotes of an extension": (CHUNKED + b'4;a="\nGET /"\r\nbody\r\n0\r\n\r\n', BAD),
    "NUL in an extension": (CHUNKED + b"4;a=\0\r\nbody\r\n0\r\n\r\n", BAD),
    "a return behind the size of a chunk": (CHUNKED + b"4\r\r\nbody\r\n0\r\n\r\n", BAD),
    "no line end behind a chunk": (CHUNKED + b"4\r\nbody0\r\n\r\n", BAD),
    "any two bytes behind a chunk": (CHUNKED + b"4\r\nbodyXX0\r\n\r\n", BAD),
    "a bare line feed behind the last chunk": (CHUNKED + b"4\r\nbody\r\n0\r\n\n", BAD),
    "a trailer with a space before the colon": (CHUNKED + b"0\r\nX : a\r\n\r\n", BAD),
    "a trailer without a colon": (CHUNKED + b"0\r\nX\r\n\r\n", BAD),
    "a trailer in a fold": (CHUNKED + b"0\r\nX: a\r\n b\r\n\r\n", BAD),
    "a length in the trailer": (CHUNKED + b"0\r\nContent-Length: 4\r\n\r\nbody", BAD),
    "chunks in the trailer": (CHUNKED + b"0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    "a space behind the size of a chunk": (CHUNKED + b"4 \r\nbody\r\n0\r\n\r\n", BAD),
    "bare line feeds around chunks": (CHUNKED + b"4\nbody\n0\n\n", BAD),
    "a folded header": (GET + b"X: a\r\n b\r\n\r\n", BAD),
    "a fold before all headers": (b"GET /echo HTTP/1.1\r\n Host: a\r\n\r\n", BAD),
    "a space before the colon": (GET + b"X : a\r\n\r\n", BAD),
    "a header without a colon": (GET + b"X\r\n\r\n", BAD),
    "a header without a name": (GET + b": a\r\n\r\n", BAD),
    "a tab before the colon": (GET + b"X\t: a\r\n\r\n", BAD),
    "a name with a bracket": (GET + b"X(: a\r\n\r\n", BAD),
    "a name that is not ASCII": (GET + b"X\xe9: a\r\n\r\n", BAD),
    "a bare return behind the line": (b"GET /echo HTTP/1.1\r" + HOST + b"\r\n", BAD),
    "a bare return at the end of a value": (GET + b"X: a\r\r\n\r\n", BAD),
    "a bare return that begins a header": (GET + b"X: a\rDevice: b\r\n\r\n", BAD),
    "bare line feeds at the end of the headers": (GET + b"X: a\n\n", BAD),
    "a bare line feed in the line": (b"GET /echo HTTP/1.1\n" + HOST + b"\r\n", BAD),
    "a bare line feed in the headers": (GET + b"X: a\n\r\n", BAD),
    "a bare return in a value": (GET + b"X: a\rb\r\n\r\n", BAD),
    "NUL in a value": (GET + b"X: a\0b\r\n\r\n", BAD),
    "NUL in a name": (GET + b"X\0: a\r\n\r\n", BAD),
    "NUL in the target": (b"GET /ec\0ho HTTP/1.1\r\n" + HOST + b"\r\n", BAD),
    "a control character in a value": (GET + b"X: \x01\r\n\r\n", BAD),
    "a space in the target": (b"GET /echo and more HTTP/1.1\r\n" + HOST + b"\r\n", BAD),
    "UTF-8 in the target": ("GET /écho HTTP/1.1\r\nHost: a\r\n\r\n".encode(), BAD),
    "a tab in the target": (b"GET /ec\tho HTTP/1.1\r\n" + HOST + b"\r\n", BAD),
    "DEL in the target": (b"GET /ec\x7fho HTTP/1.1\r\n" + HOST + b"\r\n", BAD),
    "a fragment": (b"GET /echo#there HTTP/1.1\r\n" + HOST + b"\r\n", (400, "bad_target")),
    "a fragment behind a query": (b"POST /hot?a=b#there HTTP/1.1\r\n" + HOST + b"\r\n", (400, "bad_target")),
    "a backslash for a slash": (b"GET \\echo HTTP/1.1\r\n" + HOST + b"\r\n", BAD),
    "no target": (b"GET HTTP/1.1\r\n" + HOST + b"\r\n", BAD),
    "a target that begins nowhere": (b"GET echo HTTP/1.1\r\n" + HOST + b"\r\n", BAD),
    "a target of another protocol": (b"GET ftp://a/echo HTTP/1.1\r\n" + HOST + b"\r\n", (400, "bad_target")),
    "a target of no host": (b"GET http:///echo HTTP/1.1\r\n" + HOST + b"\r\n", (400, "bad_target")),
    "a target of nothing": (b"GET http:// HTTP/1.1\r\n" + HOST + b"\r\n", (400, "bad_target")),
    "a target with one slash": (b"GET http:/echo HTTP/1.1\r\n" + HOST + b"\r\n", BAD),
    "a target with somebody's name": (b"GET http://me@a/echo HTTP/1.1\r\n" + HOST + b"\r\n", (400, "bad_target")),
    "a target with a secret": (b"POST http://me:secret@a/hot HTTP/1.1\r\n" + HOST + b"\r\n", (400, "bad_target")),
    "a target of half an address": (b"GET http://[::1/echo HTTP/1.1\r\n" + HOST + b"\r\n", (400, "bad_target")),
    "a target with a port beyond all ports": (b"GET http://a:999999/echo HTTP/1.1\r\n" + HOST + b"\r\n", (400, "bad_target")),
    "a target that is only a host": (b"GET a:80 HTTP/1.1\r\n" + HOST + b"\r\n", BAD),
    "a tunnel": (b"CONNECT a:443 HTTP/1.1\r\n" + HOST + b"\r\n", (400, "bad_target")),
    "no Host": (b"GET /echo HTTP/1.1\r\nX: a\r\n\r\n", (400, "no_host")),
    "a Host with a space": (POST.replace(HOST, b"Host: a b\r\n") + b"\r\n", (400, "bad_host")),
    "a Host with a path": (POST.replace(HOST, b"Host: a/hot\r\n") + b"\r\n", (400, "bad_host")),
    "a Host with a scheme": (POST.replace(HOST, b"Host: http://a\r\n") + b"\r\n", (400, "bad_host")),
    "a Host with somebody's name": (POST.replace(HOST, b"Host: me@a\r\n") + b"\r\n", (400, "bad_host")),
    "a list of Hosts": (POST.replace(HOST, b"Host: a, b\r\n") + b"\r\n", (400, "bad_host")),
    "a Host with two ports": (POST.replace(HOST, b"Host: a:80:80\r\n") + b"\r\n", (400, "bad_host")),
    "a Host that is half an address": (POST.replace(HOST, b"Host: [::1\r\n") + b"\r\n", (400, "bad_host")),
    "a Host that is not ASCII": (POST.replace(HOST, b"Host: \xe9\r\n") + b"\r\n", (400, "bad_host")),
    "a Host with an escape that is none": (POST.replace(HOST, b"Host: a%zz\r\n") + b"\r\n", (400, "bad_host")),
    "no Host, but one in the target": (b"GET http://a/echo HTTP/1.1\r\n\r\n", (400, "no_host")),
    "two Hosts": (GET + HOST + b"\r\n", (400, "repeated_header")),
    "two Devices": (POST + b"Device: a\r\nDevice: b\r\nContent-Length: 0\r\n\r\n", (400, "repeated_header")),
    "two events": (POST + b"Last-Event-ID: 1-1\r\nlast-event-id: 1-2\r\nContent-Length: 0\r\n\r\n", (400, "repeated_header")),
    "garbage": (b"\x8f\x1d\x00\xffgarbage\r\n\r\n", (501, "unknown_method")),
    "the hello of TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (501, "unknown_method")),
    "a method that is none": (b"BREW /echo HTTP/1.1\r\n" + HOST + b"\r\n", (501, "unknown_method")),
    "a method in lower case": (b"get /echo HTTP/1.1\r\n" + HOST + b"\r\n", (501, "unknown_method")),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", BAD),
    "HTTP/2 in words": (b"GET /echo HTTP/2.0\r\n" + HOST + b"\r\n", (505, "http_version")),
    "HTTP/0.9": (b"GET /echo\r\n\r\n", (505, "http_version")),
    "HTTP/1": (b"GET /echo HTTP/1\r\n" + HOST + b"\r\n", BAD),
    "HTTP/1.10": (b"GET /echo HTTP/1.10\r\n" + HOST + b"\r\n", BAD),
    "HTTP/01.1": (b"GET /echo HTTP/01.1\r\n" + HOST + b"\r\n", BAD),
    "HTTP in lower case": (b"GET /echo http/1.1\r\n" + HOST + b"\r\n", BAD),
    "something behind the version": (b"GET /echo HTTP/1.1 \r\n" + HOST + b"\r\n", BAD),
    "HTTP/1.2": (b"GET /echo HTTP/1.2\r\n" + HOST + b"\r\n", BAD),
    "an expectation": (POST + b"Expect: the-unexpected\r\nContent-Length: 4\r\n\r\nbody", (417, "expectation")),
    "a compressed body": (POST + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nbody", (415, "content_encoding")),
    "a body that is and is not compressed": (POST + b"Content-Encoding: gzip\r\nContent-Encoding: identity\r\nContent-Length: 4\r\n\r\nbody", (400, "repeated_header")),
    "two expectations": (POST + b"Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\nbody", (400, "repeated_header")),
    "a list of expectations": (POST + b"Expect: 100-continue, more\r\nContent-Length: 4\r\n\r\nbody", (417, "expectation")),
    "chunks for another protocol": (POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (501, "upgrade")),
    "a body for another protocol": (POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nbody", (501, "upgrade")),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_malformed_is_refused_however_it_comes(name):
    bad, error = MALFORMED[name]
    async with opened() as house:
        [whole] = await house.answers(bad)
        assert (whole.error, whole.headers["connection"]) == (error, "close")
        [dripped] = await house.answers(*(bad[i : i + 1] for i in range(len(bad))))
        assert facts(dripped) == facts(whole)
        [followed] = await house.answers(bad + GET + b"\r\n", GET, b"\r\n")
        assert facts(followed) == facts(whole)
        *before, last = await house.answers(request("POST /hot", b"one") + request("GET /echo") + bad)
        assert [answer.status for answer in before] == [200, 200]
        assert facts(last) == facts(whole)
        assert house.door.routes[b"POST /hot"].tally[200] == 1, "nobody behind the door saw any of them"


async def test_a_refusal_waits_for_its_turn():
    async with opened() as house:
        for path in ("GET /slow/a", "POST /later/a"):
            caller = await house.caller()
            await caller.say(request(path) + request("GET /echo") + b"garbage\r\n\r\n" + request("GET /slow/never"))
            await eventually(lambda: house.stage.reached)
            house.stage.reached.clear()
            house.stage.gate.set()
            if house.stage.asks:
                house.stage.asks[0].answer(200, b"{}")
            assert [answer.status for answer in await caller.answers()] == [200, 200, 501]
            assert house.stage.reached == []


async def test_a_head_that_is_refused_gets_no_body():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(b"HEAD /echo HTTP/1.1\r\n\r\n")
        answer = await caller.answer("HEAD")
        assert answer.status == 400
        assert int(answer.headers["content-length"]) > 0
        assert await caller.rest() == b""


async def test_a_tunnel_to_a_path_is_answered_and_is_the_end(monkeypatch):
    monkeypatch.setattr(door, "SWEEP", 0.02)
    monkeypatch.setattr(http1, "LINGER", 0.05)
    async with opened() as house:
        answers = await house.answers(b"CONNECT /echo HTTP/1.1\r\n" + HOST + b"\r\n", GET + b"\r\n")
        assert [answer.error for answer in answers] == [(405, "wrong_method")]


# Too long


@pytest.mark.parametrize("step", [100_000, 700, 97])
@pytest.mark.parametrize(("head", "error"), [
    (b"GET /echo?%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"q" * 8300), (414, "long_line")),
    (b"GET /echo?%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"q" * 30_000), (414, "long_line")),
    (b"GET /echo HTTP/1.1\r\nHost: a\r\n%b\r\n" % (b"X: a\r\n" * 2800), (431, "long_headers")),
    (b"GET /echo HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"a" * 17_000), (431, "long_headers")),
    (b"GET /echo HTTP/1.1\r\nX: %b\r\nHost: a\r\n\r\n" % (b"a" * 30_000), (431, "long_headers")),
    (b"GET /echo HTTP/1.1\r\n%b: a\r\nHost: a\r\n\r\n" % (b"X" * 30_000), (431, "long_headers")),
], ids=["line", "very long line", "many headers", "header", "first header", "name"])
async def test_a_head_is_only_so_long_in_one_piece_and_in_many(head, error, step):
    async with opened() as house:
        [answer] = await house.answers(*(head[i : i + step] for i in range(0, len(head), step)))
        assert answer.error == error


async def test_a_head_without_an_end_is_not_kept():
    async with opened() as house:
        for start, error in ((b"GET /", 414), (b"GET / HTTP/1.1\r\nX: ", 431)):
            caller = await house.caller()
            await caller.say(start, *[b"a" * 1000] * 60)
            assert [answer.status for answer in await caller.answers()] == [error]


@pytest.mark.parametrize(("head", "error"), [
    (b"GET /" + b"a" * 200_000, 414), (b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000, 431), (b"GET / HTTP/1.1\r\n" + b"X" * 200_000, 431),
    (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 30_000, 431), (request("GET /echo") * 3 + b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000, 431),
], ids=["line", "value", "name", "headers", "behind others"])
async def test_a_head_that_is_too_long_already_is_not_waited_for(head, error):
    async with opened() as house:
        *before, last = await house.answers(head)
        assert (len(before), last.status) == (head.count(b"\r\n\r\n"), error)


async def test_what_came_before_a_head_in_pieces_is_not_part_of_it():
    async with opened() as house:
        before, head = request("GET /echo") * 1500, request("GET /echo/last", b"", "X: " + "a" * 12_000, "Connection: close")
        answers = await house.answers(before + head[:6000], head[6000:])
        assert [answer.status for answer in answers] == [200] * 1501


async def test_a_head_up_to_its_limits_is_taken():
    async with opened(max_line_bytes=256, max_header_bytes=1024) as house:
        fits = b"GET /echo?%b HTTP/1.1\r\nHost: a\r\nX: %b\r\nConnection: close\r\n\r\n" % (b"q" * 240, b"a" * 985)
        for step in (2000, 50):
            answers = await house.answers(*(fits[i : i + step] for i in range(0, len(fits), step)))
            assert [answer.status for answer in answers] == [200]
        assert (await house.ask(fits.replace(b"q" * 240, b"q" * 260))).error == (414, "long_line")
        assert (await house.ask(fits.replace(b"a" * 985, b"a" * 1000))).error == (431, "long_headers")


async def test_the_limit_of_headers_holds_where_lines_may_be_longer():
    async with opened(max_line_bytes=8192, max_header_bytes=1024) as house:
        assert (await house.ask(request("GET /echo", b"", "X: " + "a" * 2000))).error == (431, "long_headers")


# Too large


async def test_a_body_is_refused_before_it_comes():
    async with opened() as house:
        for expect in ("", "Expect: 100-continue"):
            caller = await house.caller()
            await caller.say(POST.replace(b"hot", b"small") + b"Content-Length: 9\r\n" + (expect + "\r\n").encode().lstrip() + b"\r\n")
            assert (await caller.answer()).error == (413, "large_body")


async def test_each_route_has_its_own_limit():
    async with opened(max_event_bytes=100) as house:
        for path, limit in (("small", 8), ("hot", 100_000), ("echo", 100)):
            for size, statuses in ((limit, [200, 200]), (limit + 1, [413])):
                whole, body = b"POST /%b HTTP/1.1\r\nHost: a\r\n" % path.encode(), b"b" * size
                assert [a.status for a in await house.answers(whole + b"Content-Length: %d\r\n\r\n" % size + body + LAST)] == statuses
                pieces = [body[i : i + size // 3 + 1] for i in range(0, size, size // 3 + 1)]
                in_chunks = whole + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(*pieces) + LAST
                assert [a.status for a in await house.answers(in_chunks)] == statuses


async def test_a_client_that_is_refused_may_finish_what_it_says_and_reads_why():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(POST + b"Content-Length: 300000\r\n\r\n", *[b"b" * 10_000] * 30)
        assert (await caller.answer()).error == (413, "large_body")
        assert await caller.rest() == b""


@pytest.mark.parametrize("start", [b"0\r\nX: ", b"0\r\n", b"4;"], ids=["trailer", "name of a trailer", "extension"])
async def test_what_stands_around_the_chunks_has_a_limit_too(start):
    async with opened() as house:
        caller = await house.caller()
        await caller.say(CHUNKED.replace(b"hot", b"small") + start, *[b"a" * 4000] * 20)
        assert (await caller.answer()).error == (413, "large_body")


async def test_a_body_may_come_in_the_smallest_of_chunks():
    async with opened() as house:
        step, said = 500, CHUNKED + chunks(*[b"b"] * 5000)
        caller = await house.caller()
        await caller.say(*(said[i : i + step] for i in range(0, len(said), step)))
        assert (await caller.answer()).json["body"] == "b" * 5000


async def test_bodies_that_are_under_way_have_room_for_so_many_bytes_together():
    async with opened(max_held_bytes=1024 * 1024, max_event_bytes=600_000) as house:
        head, piece = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n", b"b" * 100_000
        one, two, three = [await house.caller() for _ in range(3)]
        for caller in (one, two):
            await caller.say(head, *[piece] * 4)
        await eventually(lambda: house.door.held == 800_000)
        await three.say(head, *[piece] * 3)
        assert (await three.answer()).error == (503, "busy")
        three.close()
        # Those that are whole when they come need no room, and those that were there first have it.
        assert (await house.ask(request("POST /hot", b"body"))).status == 200
        for caller in (one, two):
            await caller.say(piece)
            assert len((await caller.answer()).json["body"]) == 500_000
        assert house.door.held == 0
        await one.say(head, *[piece] * 4)
        await two.say(head.replace(b"Content-Length: 500000", b"Transfer-Encoding: chunked"), b"61a80\r\n", *[piece] * 3)
        await eventually(lambda: house.door.held > 600_000)
        one.close()
        two.reset()
        await eventually(lambda: not house.door.connections)
        assert house.door.held == 0


@pytest.mark.parametrize("first", ["GET /slow/a", "POST /later/a"])
async def test_bodies_that_wait_behind_another_request_are_few(first):
    async with opened(max_event_bytes=100_000) as house:
        caller, one = await house.caller(), request("POST /hot", b"b" * 90_000)
        await caller.say(request(first))
        await eventually(lambda: house.stage.reached)
        sending = asyncio.ensure_future(caller.send(one * 40 + LAST))
        await eventually(lambda: house.door.held > 100_000)
        await turns(100)
        assert house.door.held < 100_000 + 2 * 90_000 + 256 * 1024
        heard = house.heard
        await turns(100)
        assert house.heard == heard, "nobody reads on"
        house.stage.gate.set()
        if house.stage.asks:
            house.stage.asks[0].answer(200, b"{}")
        answers = await caller.answers()
        await sending
        assert [answer.status for answer in answers] == [200] * 42
        assert house.door.held == 0


@pytest.mark.parametrize("how", ["the client goes", "somebody takes the connection", "the server ends"])
async def test_what_waits_and_will_never_be_answered_is_let_go(how):
    async with opened() as house:
        caller = await house.caller()
        line = "GET /detaches/hot" if how == "somebody takes the connection" else "POST /hot"
        await caller.say(request("POST /later/a"), request(line) + request("POST /hot", b"b" * 5000) * 3)
        await eventually(lambda: house.stage.asks and house.door.held >= 15_000)
        assert house.door.held < 15_400, "the bodies, and what was not parsed yet"
        if how == "the client goes":
            caller.reset()
        elif how == "the server ends":
            house.door.drain()
        house.stage.asks.pop().answer(200, b"{}")
        await eventually(lambda: not house.door.held)


# Too slow


@pytest.fixture
def hurried(monkeypatch):
    """The door looks all the time at who is too slow."""
    monkeypatch.setattr(door, "SWEEP", 0.02)
    monkeypatch.setattr(http1, "LINGER", 0.05)


@pytest.mark.parametrize("said", [b"", b"G", request("GET /echo"), request("POST /hot"), request("POST /receipt/a", b"", "Device: a", "Last-Event-ID: 1")])
async def test_who_asks_nothing_is_let_go_without_a_word(hurried, said):
    async with opened(idle_timeout=3600) as house:
        caller = await house.caller()
        await caller.say(said)
        if len(said) > 1:
            assert (await caller.answer()).status == 200
        await eventually(lambda: house.door.connections and house.heard == len(said))
        house.later(3540)  # and all of a minute may have passed by itself, on a slow machine
        assert house.door.connections
        house.later(61)
        assert await caller.rest() == b""


async def dripping(caller, drop):
    """The answers to a client that says this again and again and never comes to an end."""
    answers = asyncio.create_task(caller.answers())
    for _ in range(100):
        await caller.say(drop)
        await asyncio.sleep(0.02)
        if answers.done():
            return await answers
    raise AssertionError("it could go on for ever")


@pytest.mark.parametrize(("said", "drop"), [(b"GET /ec", b"h"), (GET, b"X: a\r\n"), (request("GET /echo") + b"GET /ec", b"h")])
async def test_a_head_has_so_much_time_in_all(hurried, said, drop):
    async with opened(head_timeout=0.3) as house:
        caller = await house.caller()
        await caller.say(said)
        *before, last = await dripping(caller, drop)
        assert [answer.status for answer in before] == [200] * said.count(b"\r\n\r\n")
        assert last.error == (408, "slow_request")


async def test_a_body_has_so_much_time_in_all(hurried):
    async with opened(body_timeout=0.3) as house:
        for head, drop in ((POST + b"Content-Length: 1000\r\n\r\n", b"b"), (CHUNKED, b"1\r\nb\r\n")):
            caller = await house.caller()
            await caller.say(head)
            [answer] = await dripping(caller, drop)
            assert answer.error == (408, "slow_request")


async def test_nobody_hurries_a_request_that_is_being_answered(hurried):
    async with opened(idle_timeout=60, head_timeout=0.1, body_timeout=0.1) as house:
        caller = await house.caller()
        await caller.say(request("GET /slow/a") + b"GET /ec")
        await house.stage.until("a")
        house.later(3600)
        house.stage.gate.set()
        assert (await caller.answer()).json == "a"
        assert (await caller.answer()).error == (408, "slow_request")


@on_uvloop
async def test_who_never_reads_its_answer_is_cut(hurried):
    async with opened(stuck_after=1.0) as house:
        for line in ("GET /whole/2000000", "GET /pieces?size=200000"):
            for version in (b"1.1", b"1.0"):
                caller = await house.caller(receive_buffer=4096)
                await caller.say(request(line).replace(b"1.1", version))
        await eventually(lambda: not house.door.connections)


@on_uvloop
async def test_who_never_reads_small_answers_is_cut_too(hurried):
    async with opened(stuck_after=30, idle_timeout=60) as house:
        caller = await house.caller(receive_buffer=4096)
        await eventually(lambda: house.door.connections)
        [connection] = house.door.connections
        while not connection.transport.get_write_buffer_size():
            assert house.door.connections
            await caller.say(request("GET /whole/5000"))
        for _ in range(2):  # it is idle, and then it is stuck too
            house.later(61)
        await eventually(lambda: not house.door.connections)


@on_uvloop
async def test_who_reads_slowly_but_reads_is_not_cut(hurried):
    async with opened(stuck_after=100) as house:
        caller, size = await house.caller(receive_buffer=4096), 400_000
        await caller.say(request(f"GET /whole/{size}"))
        got = b""
        for _ in range(20):
            got += await caller.exactly(10_000)
            await asyncio.sleep(0.01)
            house.later(8)
        got += await caller.exactly(size - len(got))
        assert b"200 OK" in got


@pytest.mark.parametrize("line", ["POST /hot", "GET /echo", "POST /receipt/a"])
async def test_who_does_not_read_its_answers_may_not_go_on_asking(line):
    async with opened() as house:
        caller, one = await house.caller(receive_buffer=4096), request(line, b"", "Device: a", "Last-Event-ID: 1", "X-Pad: " + "p" * 500)
        asked = 0
        while True:
            heard = house.heard
            await caller.say(one)
            if house.heard == heard:
                break
            asked += 1
            assert asked < 5000, "it could go on for ever"
        # Now it reads, and gets all that it asked for.
        for _ in range(asked + 1):
            assert (await caller.answer()).status == 200
        await caller.say(one)
        assert (await caller.answer()).status == 200


async def test_who_was_refused_and_talks_on_is_cut(hurried):
    async with opened() as house:
        caller = await house.caller()
        await caller.say(b"garbage\r\n\r\n")
        assert (await caller.answer()).status == 501
        for _ in range(300):
            await caller.say(b"more garbage")
            if not house.door.connections:
                break
            await asyncio.sleep(0.01)
        assert not house.door.connections
