"""A RequestHandler behind the front door does all that it does on Tornado's own server, whatever becomes of its client."""

import asyncio

import pytest
from doors import LAST, eventually, io_loop, no_surprises, opened, request, turns  # noqa: F401

from pere import door, http1

# What handlers do


async def test_what_is_flushed_in_pieces_arrives_in_chunks():
    async with opened() as house:
        answer = await house.ask(request("GET /pieces"))
        assert answer.headers["transfer-encoding"] == "chunked"
        assert answer.body == b"".join(b"%d" % n * 3 for n in range(10))


async def test_what_has_an_announced_length_arrives_as_it_is():
    async with opened() as house:
        answer = await house.ask(request("GET /pieces?length=30"))
        assert (answer.headers["content-length"], "transfer-encoding" in answer.headers) == ("30", False)
        assert answer.body == b"".join(b"%d" % n * 3 for n in range(10))


@pytest.mark.parametrize("length", [29, 31])
async def test_an_answer_that_is_not_as_long_as_announced_is_cut_rather_than_mistaken(length):
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request(f"GET /pieces?length={length}") + request("GET /echo"))
        await caller.rest()
        assert any("Content-Length announced" in str(record.exc_info[1]) for record in house.take_log() if record.exc_info)


async def test_an_answer_without_content_has_no_body_and_no_length():
    async with opened() as house:
        caller = await house.caller()
        for status in (204, 304):
            await caller.say(request(f"GET /says/{status}"))
            answer = await caller.answer()
            assert (answer.status, answer.headers.keys() & {"content-length", "transfer-encoding"}) == (status, set())
        await caller.say(request("GET /echo", b"", "If-None-Match: *"))
        assert (await caller.answer()).status == 304
        await caller.say(request("GET /says/201"))
        answer = await caller.answer()
        assert (answer.status, answer.headers["content-length"]) == (201, "0")


async def test_who_writes_much_waits_for_who_reads_slowly():
    async with opened() as house:
        caller, size = await house.caller(receive_buffer=4096), 200_000
        await caller.say(request(f"GET /pieces?size={size}"))
        await turns(200)
        assert "flushed 9" not in house.stage.reached, "two megabytes do not fit in the socket"
        answer = await caller.answer()
        assert answer.body == b"".join(b"%d" % n * size for n in range(10))
        assert house.stage.reached[-1] == "flushed 9"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_last_answer_that_is_read_slowly_is_given_whole(version, monkeypatch):
    monkeypatch.setattr(door, "SWEEP", 0.02)
    monkeypatch.setattr(http1, "LINGER", 0.05)
    async with opened() as house:
        caller, size = await house.caller(receive_buffer=4096), 2_000_000
        await caller.say(b"GET /whole/%d HTTP/%b\r\nHost: a\r\nConnection: close\r\n\r\n" % (size, version.encode()))
        got = await caller.exactly(1000)
        # The server has given up its request long ago, and looks many times at who is still there.
        for _ in range(10):
            await asyncio.sleep(0.03)
            got += await caller.exactly(1000)
        got += await caller.rest()
        assert got.partition(b"\r\n\r\n")[2] == b"w" * size


@pytest.mark.parametrize("line", ["GET /raises/error", "POST /raises"])
async def test_what_raises_is_a_500_in_json_and_a_line_in_the_log(line):
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request(line))
        answer = await caller.answer()
        assert answer.error == (500, "internal")
        assert b"ZeroDivision" not in answer.body
        [record] = house.take_log()
        assert (record.levelname, record.exc_info[0]) == ("ERROR", ZeroDivisionError)
        await caller.say(request("GET /echo"))
        assert (await caller.answer()).status == 200


async def test_a_refusal_is_an_answer_like_another():
    async with opened() as house:
        caller = await house.caller()
        for line in ("GET /raises/refusal", "POST /refuses"):
            await caller.say(request(line, b"body"))
            answer = await caller.answer()
            assert (answer.error, answer.headers["retry-after"]) == ((503, "full"), "7")
        await caller.say(request("GET /nowhere") + request("PROPFIND /echo"))
        assert (await caller.answer()).error == (404, "not_found")
        answer = await caller.answer()
        assert (answer.error, answer.headers["allow"]) == ((405, "wrong_method"), "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")


@pytest.mark.parametrize("path", ["/detaches", "/detaches/hot"])
async def test_a_detached_connection_belongs_to_who_took_it(path):
    async with opened() as house:
        caller, heard = await house.caller(), []

        class Other(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                heard.append(data)

        await caller.say(request(f"GET {path}"))
        await eventually(lambda: house.stage.transports)
        [transport] = house.stage.transports
        assert not house.door.connections
        transport.set_protocol(Other())
        await caller.say(b"not HTTP at all")
        await eventually(lambda: heard == [b"not HTTP at all"])
        transport.close()
        assert (await caller.answer()).body == b"free"


async def test_what_came_behind_a_request_that_took_the_connection_is_dropped():
    async with opened(max_pipeline=2) as house:
        for path in ("/detaches", "/detaches/hot"):
            caller = await house.caller()
            await caller.say(request(f"GET {path}") + request("GET /echo") * 5 + b"GET /ec")
            await eventually(lambda: house.stage.transports)
            house.stage.transports.pop().close()
            assert (await caller.answer()).body == b"free"


async def test_a_handler_may_read_its_body_as_it_comes():
    async with opened() as house:
        caller = await house.caller()
        for line in ("POST /streamed", "POST /streamed?slowly=1"):
            await caller.say(request(line, b"the body"))
            house.stage.gate.set()
            assert (await caller.answer()).json == "the body"
        assert house.stage.reached == ["prepared", "data", "post"] * 2
        await caller.say(request("POST /streamed?refuse=1", b"the body") + request("GET /echo"))
        assert (await caller.answer()).error == (503, "full")
        assert (await caller.answer()).status == 200


async def test_a_handler_that_cannot_read_its_body_is_a_500():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request("POST /streamed?raise=1", b"the body"))
        assert (await caller.answer()).error == (500, "internal")
        assert await caller.rest() == b""
        [record] = house.take_log()
        assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize("line", ["POST /echo", "PUT /echo"])
async def test_a_form_that_cannot_be_read_is_refused(line):
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request(line, b"no form", "Content-Type: multipart/form-data; boundary=") + LAST)
        assert [answer.status for answer in await caller.answers()] == [400, 200]
        assert [record.name for record in house.take_log()] == []  # its line would hold the whole address, and that may have a token


async def test_what_a_host_cannot_be_is_refused_and_is_the_end():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(b"GET /echo HTTP/1.1\r\nHost: a b\r\n\r\n", request("GET /echo"))
        [answer] = await caller.answers()
        assert (answer.error, answer.headers["connection"]) == ((400, "bad_host"), "close")


# Clients that go away


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize("path", ["/slow/a", "/pieces?size=200000"])
async def test_a_handler_is_told_once_that_its_client_has_gone(path, leave):
    async with opened() as house:
        caller = await house.caller(receive_buffer=4096)
        await caller.say(request(f"GET {path}"))
        await eventually(lambda: house.stage.reached or any(each.transport.get_write_buffer_size() for each in house.door.connections))
        await turns(50)
        assert "flushed 9" not in house.stage.reached
        getattr(caller, leave)()
        await eventually(lambda: not house.door.connections)
        await turns(20)
        assert house.stage.reached.count("gone") + house.stage.reached.count("cut") == 1
        house.stage.gate.set()
        await turns(20)
        assert (await house.ask(request("GET /echo"))).status == 200


async def test_an_answer_for_a_client_that_has_gone_is_dropped():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request("POST /later/a") + request("POST /later/b"))
        await house.stage.until("/later/a")
        caller.reset()
        await eventually(lambda: not house.door.connections)
        house.stage.asks[0].answer(200, b"{}")
        await turns(5)
        assert house.stage.reached == ["/later/a"], "what waited behind it is dropped too"


async def test_an_answer_is_given_once():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request("POST /later/a") + request("POST /later/b"))
        await house.stage.until("/later/a")
        house.stage.asks[0].answer(200, b'"a"')
        house.stage.asks[0].answer(200, b'"again"')
        await house.stage.until("/later/a", "/later/b")
        house.stage.asks[1].answer(200, b'"b"')
        assert [(await caller.answer()).json for _ in "ab"] == ["a", "b"]


@pytest.mark.parametrize("cut", [b"", b"0", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("path", ["/hot", "/echo"])
async def test_a_publisher_that_dies_in_the_middle_has_said_nothing(path, cut):
    async with opened() as house:
        caller = await house.caller()
        whole = request(f"POST {path.replace('/echo', '/streamed')}", b"half a body")
        if cut.startswith(b"T"):
            whole = whole.replace(b"Content-Length: 11", cut).replace(b"half a body", b"b\r\nhalf a body\r\n0\r\n")
        await caller.say(whole if cut.startswith(b"T") else whole[: -len(cut) - 1])
        caller.end()
        assert await caller.rest() == b""
        assert house.stage.reached == []
        assert house.door.routes[b"POST /hot"].tally == {}


async def test_who_says_that_it_will_say_no_more_still_hears_what_is_ready():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request("POST /hot") + request("GET /echo"))
        caller.end()
        assert len(await caller.answers()) == 2


async def test_a_handler_whose_client_goes_while_it_reads_the_body_is_left_in_peace():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request("POST /streamed?slowly=1", b"the body"))
        await house.stage.until("prepared", "data")
        caller.reset()
        await eventually(lambda: "gone" in house.stage.reached)
        house.stage.gate.set()
        await turns(20)
        assert house.stage.reached == ["prepared", "data", "gone"]
