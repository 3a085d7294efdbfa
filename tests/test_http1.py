"""The front door as clients and handlers see it: requests in, answers out, in order, whatever is behind it."""

import pytest
from doors import LAST, chunks, eventually, facts, io_loop, no_surprises, opened, request, turns  # noqa: F401

from pere import http1
from pere.conversation import Conversation

# One after the other


async def test_many_requests_on_one_connection_are_each_answered():
    async with opened() as house:
        caller = await house.caller()
        for number in range(5):
            await caller.say(request(f"GET /echo/{number}"))
            assert (await caller.answer()).json["path"] == f"/echo/{number}"
            await caller.say(request(f"POST /hot/{number}", b"body"))
            assert (await caller.answer()).json["path"] == f"/hot/{number}"


async def test_requests_that_come_together_are_answered_in_their_order():
    async with opened() as house:
        answers = await house.answers(b"".join(request(f"POST /hot/{n}") + request(f"GET /echo/{n}") for n in range(50)) + LAST)
        assert [a.json["path"] for a in answers] == [f"/{kind}/{n}" for n in range(50) for kind in ("hot", "echo")] + ["/echo/last"]


async def test_a_slow_answer_holds_back_those_that_are_ready():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request("GET /slow/a") + request("POST /hot/b") + request("GET /slow/c") + request("GET /echo/d"))
        await house.stage.until("a")
        house.stage.gate.set()
        assert (await caller.answer()).json == "a"
        assert (await caller.answer()).json["path"] == "/hot/b"
        assert (await caller.answer()).json == "c"
        assert (await caller.answer()).json["path"] == "/echo/d"


async def test_a_hot_request_that_is_answered_later_holds_back_the_next():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request("POST /later/a") + request("POST /later/b") + request("GET /echo/c"))
        await house.stage.until("/later/a")
        house.stage.asks[0].answer(200, b'"a"')
        await house.stage.until("/later/a", "/later/b")
        house.stage.asks[1].answer(202, b'"b"', b"X-More: yes\r\n")
        assert (await caller.answer()).json == "a"
        second = await caller.answer()
        assert (second.status, second.json, second.headers["x-more"]) == (202, "b", "yes")
        assert (await caller.answer()).json["path"] == "/echo/c"


async def test_only_so_many_wait_behind_a_slow_one_and_none_is_lost():
    async with opened(max_pipeline=4) as house:
        caller, one = await house.caller(), request("GET /echo/n")
        await caller.say(request("GET /slow/a"), *[one] * 20)
        heard = house.heard
        assert heard < 8 * len(one), "nobody reads on while four wait"
        await turns(50)
        assert house.heard == heard
        house.stage.gate.set()
        assert (await caller.answer()).json == "a"
        for _ in range(20):
            assert (await caller.answer()).json["path"] == "/echo/n"
        await caller.say(one)
        assert (await caller.answer()).status == 200


async def test_a_connection_that_cannot_be_served_in_line_is_closed_as_one_that_cannot_be_outside_of_it(monkeypatch):
    begin = Conversation._begin
    monkeypatch.setattr(Conversation, "_begin", lambda connection, ask: 1 / 0 if ask.path == b"/echo/b" else begin(connection, ask))
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request("GET /echo/a") + request("GET /echo/b"))
        assert (await caller.answer()).json["path"] == "/echo/a"
        assert await caller.rest() == b""
        await eventually(lambda: not house.door.connections)
        assert [record.exc_info[0] for record in house.take_log()] == [ZeroDivisionError]


@pytest.mark.parametrize("what", ["POST /hot", "GET /echo", "POST /raises", "POST /receipt/a"])
async def test_hundreds_that_wait_are_answered_one_by_one(what):
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request("POST /later/a") + request(what) * 600 + LAST)
        await house.stage.until("/later/a")
        house.stage.asks[0].answer(200, b"{}")
        answers = await caller.answers()
        assert len(answers) == 602
        assert answers[-1].json["path"] == "/echo/last"
        assert {a.status for a in answers[1:-1]} == {500 if "raises" in what else 200}
        assert len(house.take_log()) == (600 if "raises" in what else 0)


# What is asked


async def test_a_body_in_chunks_is_put_together():
    async with opened() as house:
        for path in ("/hot", "/echo"):
            answer = await house.ask(request(f"POST {path}", b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
                                     + chunks(b"one ", b"and ", b"two"))
            assert answer.json["body"] == "one and two"


async def test_what_stands_beside_the_chunks_is_not_heard():
    async with opened() as house:
        head = b"POST /hot HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        said = (await house.ask(head + b"3;name=value\r\none\r\n0\r\nDevice: another\r\nHost: b\r\n\r\n")).json
        assert (said["body"], said["headers"]) == ("one", {"host": "a", "transfer-encoding": "chunked"})


async def test_who_expects_100_continue_is_told_before_the_body_comes():
    async with opened() as house:
        for path in ("/hot", "/echo"):
            caller = await house.caller()
            await caller.say(request(f"POST {path}", b"body", "Expect: 100-continue")[:-4])
            assert (await caller.head()).status == 100
            await caller.say(b"body")
            assert (await caller.answer()).json["body"] == "body"


async def test_who_expects_100_continue_behind_a_slow_request_is_told_when_it_is_done():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request("GET /slow/a") + request("POST /hot", b"body", "Expect: 100-continue")[:-4])
        await house.stage.until("a")
        house.stage.gate.set()
        assert (await caller.answer()).json == "a"
        assert (await caller.head()).status == 100
        await caller.say(b"body")
        assert (await caller.answer()).json["body"] == "body"


async def test_by_http_1_0_nobody_expects_anything():
    async with opened() as house:
        answer = await house.ask(b"POST /hot HTTP/1.0\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody")
        assert (answer.status, answer.json["body"]) == (200, "body")


async def test_head_is_answered_like_get_without_the_body():
    async with opened() as house:
        caller = await house.caller()
        for path in ("/whole/30", "/pieces?length=30", "/nowhere"):
            for method in ("GET", "HEAD", "GET"):
                await caller.say(request(f"{method} {path}"))
                answer = await caller.answer(method)
                status, headers, body = facts(answer)
                if method == "GET":
                    got = status, headers
                    assert body
                else:
                    assert (status, headers, body) == (*got, b"")


async def test_a_head_of_unknown_length_has_no_end_to_wait_for():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request("HEAD /pieces") + request("GET /echo/next"))
        assert "content-length" not in (await caller.answer("HEAD")).headers
        assert (await caller.answer()).json["path"] == "/echo/next"


async def test_http_1_0_is_one_request_unless_it_asks_for_more():
    async with opened() as house:
        for path in ("/echo", "/hot/"):
            caller = await house.caller()
            for _ in range(2):
                await caller.say(b"GET %b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" % path.encode())
                answer = await caller.answer()
                assert answer.status == 200
                assert answer.headers["connection"].lower() == "keep-alive"
            await caller.say(b"GET %b HTTP/1.0\r\n\r\n" % path.encode())
            answer = await caller.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await caller.rest() == b""


async def test_to_http_1_0_nothing_is_sent_in_chunks():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(b"GET /pieces HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = await caller.answer()
        assert answer.headers["connection"] == "close"
        assert "transfer-encoding" not in answer.headers
        assert answer.body == b"".join(b"%d" % n * 3 for n in range(10))


async def test_connection_close_is_the_end():
    async with opened() as house:
        for line in ("GET /echo", "POST /hot", "GET /pieces", "GET /says/204"):
            caller = await house.caller()
            await caller.say(request(line, b"", "Connection: close"))
            assert (await caller.answer()).headers["connection"] == "close"
            assert await caller.rest() == b""


async def test_nothing_behind_the_last_request_is_answered():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request("GET /slow/a", b"", "Connection: close") + request("GET /slow/b"))
        await house.stage.until("a")
        house.stage.gate.set()
        assert [answer.json for answer in await caller.answers()] == ["a"]
        assert house.stage.reached == ["a"]


@pytest.mark.parametrize("line", ["GET /echo", "POST /hot", "GET /whole/300000"])
async def test_what_is_said_behind_the_last_request_does_not_destroy_its_answer(line):
    async with opened() as house:
        caller = await house.caller(receive_buffer=4096)
        await caller.say(request(line, b"", "Connection: close"), *[b"and another thing" * 1000] * 10)
        assert [answer.status for answer in await caller.answers()] == [200]


async def test_options_says_which_methods_there_are():
    async with opened(origins="https://a.example") as house:
        answer = await house.ask(request("OPTIONS /echo"))
        assert (answer.status, answer.headers["allow"], answer.body) == (204, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS", b"")
        asked = ("Origin: https://a.example", "Access-Control-Request-Method: POST")
        answer = await house.ask(request("OPTIONS /echo", b"", *asked))
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert (await house.ask(request("OPTIONS *"))).error == (404, "not_found")


async def test_a_hot_answer_tells_a_browser_whether_it_may_read_it():
    async with opened(origins="https://a.example") as house:
        answer = await house.ask(request("POST /hot", b"", "Origin: https://a.example"))
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert "access-control-allow-origin" not in (await house.ask(request("POST /hot", b"", "Origin: https://b.example"))).headers


async def test_the_absolute_form_is_taken_as_the_path_in_it():
    async with opened() as house:
        for target in ("http://pere.test/hot/a?b=c", "HTTPS://pere.test:80/hot/a?b=c"):
            said = (await house.ask(request(f"POST {target}"))).json
            assert (said["path"], said["query"]) == ("/hot/a", "b=c")
        assert (await house.ask(request("GET http://pere.test/echo?b=c"))).json["uri"] == "/echo?b=c"
        assert (await house.ask(request("GET http://pere.test"))).error == (404, "not_found")
        assert (await house.ask(request("GET http://pere.test?a=b"))).error == (404, "not_found")


async def test_the_host_in_the_target_is_believed_before_the_other():
    async with opened() as house:
        assert (await house.ask(request("GET http://other.test:80/echo"))).json["host"] == "other.test:80"
        said = (await house.ask(request("POST http://other.test/hot"))).json
        assert (said["headers"]["host"], said["fields"][0]) == ("other.test", ["host", "other.test"])


@pytest.mark.parametrize("host", ["", "a", "a.example:4567", "A-b_c~d:", ":80", "10.0.0.1:80", "[::1]:4567", "[::ffff:10.0.0.1]", "xn--mgba3a4f16a", "a%20b", "a!$&'()*+;=b"])
async def test_a_host_may_be_a_name_or_an_address_and_a_port(host):
    async with opened() as house:
        for line in ("GET /echo", "POST /hot"):
            assert (await house.ask(request(line).replace(b"pere.test", host.encode()))).status == 200


async def test_only_so_many_hosts_are_remembered():
    async with opened() as house:
        for number in range(http1.MAX_HOSTS + 10):
            assert (await house.ask(request("POST /hot").replace(b"pere", b"p%d" % number))).status == 200
        assert len(house.door.hosts) <= http1.MAX_HOSTS


async def test_a_chunk_may_have_extensions():
    async with opened() as house:
        for extension in (b";a", b";a=b", b';a="b;c\\"";d'):
            said = request("PUT /hot/a", b"", "Transfer-Encoding: chunked") + b"4" + extension + b"\r\nbody\r\n0\r\n\r\n"
            assert (await house.ask(said)).json["body"] == "body"


async def test_who_asks_for_another_protocol_gets_an_answer_in_this_one():
    async with opened() as house:
        upgrade = ("Connection: Upgrade", "Upgrade: websocket")
        caller = await house.caller()
        await caller.say(request("GET /echo/a", b"", *upgrade) + b"\x81\x05hello")
        answer = await caller.answer()
        assert (answer.status, answer.json["path"], answer.headers["connection"]) == (200, "/echo/a", "close")
        assert await caller.rest() == b""
        # An offer that does not bind the connection changes nothing.
        caller = await house.caller()
        await caller.say(request("GET /echo/a", b"", "Upgrade: h2c"), request("GET /echo/b"))
        assert [(await caller.answer()).json["path"] for _ in "ab"] == ["/echo/a", "/echo/b"]


async def test_the_space_around_a_value_does_not_belong_to_it():
    async with opened() as house:
        asked = request("POST /hot", b"", "Device: \t a b \t ", "X-Empty:", "X-Blank:  \t")
        assert (await house.ask(asked)).json["headers"] == {"host": "pere.test", "content-length": "0", "device": "a b", "x-empty": "", "x-blank": ""}
        asked = request("POST /echo", b"", "Device: \t a b \t ", "X-Empty:", "X-Blank:  \t")
        assert dict((await house.ask(asked)).json["fields"]) == {"host": "pere.test", "content-length": "0", "device": "a b", "x-empty": "", "x-blank": ""}


# The end


async def test_at_the_end_who_waits_is_answered_and_who_does_not_is_let_go():
    async with opened() as house:
        idle, slow, held = [await house.caller() for _ in range(3)]
        await idle.say(request("GET /echo"))
        await idle.answer()
        await slow.say(request("GET /slow/a"))
        await held.say(request("POST /later/b"))
        await eventually(lambda: len(house.stage.reached) == 2)
        house.door.drain()
        assert await idle.rest() == b""
        house.stage.gate.set()
        house.stage.asks[0].answer(200, b"{}")
        for caller in (slow, held):
            answer = await caller.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await caller.rest() == b""
            caller.close()
        late = await house.caller()  # the kernel had let it in before
        await late.say(request("GET /echo"))
        answer = await late.answer()
        assert (answer.status, answer.headers["connection"], await late.rest()) == (200, "close", b"")
        late.close()
        await eventually(lambda: not house.door.connections)


async def test_at_the_end_a_half_said_request_may_still_be_said():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(request("POST /hot", b"body")[:-2])
        house.door.drain()
        await caller.say(b"dy")
        answer = await caller.answer()
        assert (answer.json["body"], answer.headers["connection"]) == ("body", "close")
        assert await caller.rest() == b""


async def test_at_the_end_a_recognised_request_is_answered_too():
    async with opened() as house:
        caller, held = await house.caller(), request("POST /receipt/a", b"", "Device: held", "Last-Event-ID: 1")
        await caller.say(held)
        house.stage.asks.pop()()
        await caller.answer()
        await caller.say(held)
        await turns(1)
        assert house.stage.reached == ["again"]
        house.door.drain()
        house.stage.asks.pop()()
        assert (await caller.answer()).status == 200
        assert await caller.rest() == b""


async def test_each_hot_answer_is_counted_by_its_status():
    async with opened() as house:
        await house.answers(request("POST /hot") * 3 + request("POST /refuses") * 2 + LAST)
        tallies = {route.name: route.tally for route in house.door.routes.values() if route.tally}
        assert tallies == {"hot": {200: 3}, "refuses": {503: 2}}
