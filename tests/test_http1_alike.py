"""The same bytes have the same answers: however they are cut, whether a request is recognised or read, and at Tornado's own door."""

from collections.abc import Callable
from typing import Any

import pytest
from doors import LAST, PATIENCE, Caller, chunks, eventually, facts, io_loop, no_surprises, on_uvloop, opened, request, tornado, turns  # noqa: F401
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pere.line import MUCH, Work


def for_all(examples: int, **strategies: Any) -> Callable[[Any], Any]:
    """Runs an async test with so many examples, each on a door of its own."""

    def decorate(test: Any) -> Any:
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(**strategies)
        def run(io_loop: Any, **values: Any) -> None:  # noqa: F811
            io_loop.run_sync(lambda: test(**values), timeout=PATIENCE)

        run.__doc__ = test.__doc__
        return run

    return decorate


def cut(said: bytes, where: list[int]) -> list[bytes]:
    """In pieces; each number is a place to cut, taken round and round."""
    places = sorted({place % (len(said) - 1) + 1 for place in where})
    return [said[a:b] for a, b in zip([0, *places], [*places, len(said)], strict=True)]


ONE_OF_EACH = [
    request("GET /echo"),
    request("GET /echo/a%20b?c=d&c=%C3%A9", b"", "X-A: 1", "X-A: 2", "Cookie: a=b"),
    request("POST /hot", b"body"),
    request("POST /hot"),
    request("PUT /hot/a?b", b"\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
    request("POST /echo", b"a=1&b=2", "Content-Type: application/x-www-form-urlencoded"),
    request("PUT /hot/c", b"", "Transfer-Encoding: chunked", "Trailer: X") + b"3;a=b\r\none\r\nA\r\n0123456789\r\n000\r\nX: y\r\n\r\n",
    request("PUT /echo", b"", "Transfer-Encoding: Chunked") + chunks(b"\r\n", b"0\r\n\r\n"),
    b"\r\n" + request("GET /hot/"),
    b"POST /hot HTTP/1.0\r\nConnection: Keep-Alive\r\nContent-Length: 4\r\n\r\nbody",
    request("GET http://pere.test/echo"),
    request("OPTIONS /echo"),
    request("GET /says/204"),
    request("GET /pieces"),
    request("POST /later", b"nobody has this"),
    request("POST /refuses", b"body"),
    request("POST /receipt/a", b"body", "Device: d", "Last-Event-ID: 1-1"),
    request("POST /receipt/a", b"other body", "Device: later", "Last-Event-ID: 1-2"),
    request("POST /streamed", b"body"),
]


async def test_byte_by_byte_is_like_all_at_once():
    async with opened() as house:
        whole = b"".join(ONE_OF_EACH) + LAST
        at_once = await house.answers(whole)
        assert len(at_once) == len(ONE_OF_EACH) + 1
        assert {answer.status for answer in at_once} == {200, 204, 404, 503}
        one_by_one = await house.answers(*ONE_OF_EACH, LAST)
        byte_by_byte = await house.answers(*(whole[i : i + 1] for i in range(len(whole))))
        assert [facts(answer) for answer in one_by_one] == [facts(answer) for answer in at_once]
        assert [facts(answer) for answer in byte_by_byte] == [facts(answer) for answer in at_once]


@for_all(40, requests=st.lists(st.sampled_from(ONE_OF_EACH), min_size=1, max_size=6), where=st.lists(st.integers(0, 5000), max_size=12))
async def test_wherever_the_bytes_are_cut_the_answers_are_the_same(requests, where):
    async with opened() as house:
        alone = [facts(await house.ask(one)) for one in [*requests, LAST]]
        assert [facts(answer) for answer in await house.answers(*cut(b"".join([*requests, LAST]), where))] == alone


# What a hot function is asked is what the bytes say.

NAME = st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=8).map(lambda name: "x" + name)
VALUE = st.text("".join(map(chr, [*range(33, 127), *range(161, 256)])), max_size=12)
SPACE = st.text(" \t", max_size=2)
FIELDS = st.lists(st.tuples(NAME, SPACE, st.lists(VALUE, min_size=1, max_size=2).map(" \t".join), SPACE), max_size=6)
PATH = st.text("abcXYZ019-._~:@!$&'()*+,;=%/[]{}|^\\\"<>`", max_size=12)
QUERY = st.none() | st.text("abcXYZ019-._~:@!$&'()*+,;=%/?[]{}|^\\\"<>`", max_size=12)
BODY = st.lists(st.binary(min_size=1, max_size=40), max_size=4)


def plainly(said: bytes) -> dict[str, Any]:
    """A request read in the simplest way there is, by somebody who has all of it before him."""
    head, _, body = said.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    method, target, version = line.split(" ")
    path, _, query = target.partition("?")
    fields = [[name.lower(), value.strip(" \t")] for name, _, value in (one.partition(":") for one in lines)]
    headers = dict(fields)
    if "transfer-encoding" in headers:
        rest, body = body, b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return {"method": method, "path": path, "query": query, "version": version.removeprefix("HTTP/"), "fields": fields, "headers": headers,
            "keep_alive": headers.get("connection", "close" if version == "HTTP/1.0" else "") in ("", "keep-alive"), "body": body.decode("latin-1"),
            "ip": "127.0.0.1", "scheme": "http"}


@for_all(80, method=st.sampled_from(["POST", "PUT"]), path=PATH, query=QUERY, fields=FIELDS, body=BODY, in_chunks=st.booleans(),
         version=st.sampled_from(["1.1", "1.1", "1.0"]), connection=st.sampled_from([None, "close", "keep-alive"]), where=st.lists(st.integers(0, 500)))
async def test_what_a_hot_function_is_asked_is_what_the_bytes_say(method, path, query, fields, body, in_chunks, version, connection, where):
    lines = [f"{method} /hot/{path}{'' if query is None else '?' + query} HTTP/{version}", "Host: a"]
    lines += [f"{name}:{before}{value}{after}" for name, before, value, after in fields]
    lines += [f"Connection: {connection}"] if connection else []
    if in_chunks and version == "1.1":
        lines, content = [*lines, "Transfer-Encoding: chunked"], chunks(*body)
    else:
        lines, content = [*lines, f"Content-Length: {len(b''.join(body))}"], b"".join(body)
    said = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content
    async with opened() as house:
        caller = await house.caller()
        await caller.say(*cut(said, where))
        answer = await caller.answer()
        assert answer.json == plainly(said)
        assert answer.headers.get("connection") == (None if version == "1.1" and connection != "close" else "close" if not answer.json["keep_alive"] else "keep-alive")


# What is recognised has the same answer as what is read.


def receipt(device: str = "d", id: str = "1-1", body: bytes = b"", *fields: str, path: str = "/receipt/a") -> bytes:
    return request(f"POST {path}", body, f"Device: {device}", f"Last-Event-ID: {id}", *fields)


async def test_a_request_like_the_last_one_is_recognised_wherever_it_may_differ():
    async with opened() as house:
        caller = await house.caller()
        for number, (device, id, body) in enumerate([("d", "1-1", b""), ("another", "1-2", b""), ("d", "99-99", b"body"), ("~!@", "x", b"\r\n\r\n\0\xff"), ("d", "1", b"b" * 999)]):
            await caller.say(receipt(device, id, body))
            assert (await caller.answer()).json == ["/receipt/a?", "", device, id, body.decode("latin-1")]
            assert len(house.stage.reached) == number
        assert house.door.routes[b"POST /receipt/"].tally == {200: 5}


async def test_each_connection_is_recognised_by_itself():
    async with opened() as house:
        for path in ("/receipt/a", "/receipt/b"):
            caller = await house.caller()
            await caller.say(receipt(path=path))
            assert (await caller.answer()).json[0] == path + "?"
        assert house.stage.reached == []


@pytest.mark.parametrize("other", [
    receipt(path="/receipt/b"), receipt("d", "1-1", b"", "X: y"), receipt("d", "1-1", b"", "Content-Type: text/plain"), receipt("d" * 201),
    receipt("d d"), receipt("\xe9"), receipt(""), receipt("d", "1-1", b"", "Device: e"), receipt("d", "1-1", b"b" * 1001), receipt("nobody"),
    receipt("d", "1-1", b"", "Origin: https://a.example"), receipt("d", "1-1", b"", "Connection: close"), receipt("d", "1-1", b"", "Expect: nothing"),
    receipt("d", "1-1", b"body", "Content-Encoding: gzip"), receipt().replace(b"HTTP/1.1", b"HTTP/1.0"), receipt().replace(b"Device", b"device"),
    receipt(path="/receipt/a?event_id=1"), receipt().replace(b"Host: pere.test\r\n", b""), receipt() + receipt(), receipt() + b"GET ", receipt("d", "1-1", b"body")[:-2],
    receipt().replace(b"Length: 0", b"Length: 1"), receipt("d", "1-1", b"body").replace(b"Length: 4", b"Length: 3"), receipt("d\r\nX: y"),
    receipt().replace(b"\r\n", b"\n"), b"\r\n" + receipt(), receipt("d \t"), receipt("later"), receipt("d", "conflict"), receipt(path="/receipt/nobody"),
    receipt().replace(b"Length: 0", b"Length: +0"), receipt().replace(b"Length: 0", b"Length: 00"), receipt().replace(b"Length: 0", b"Length: "),
])
async def test_whatever_follows_a_request_that_could_be_recognised_is_answered_as_if_it_stood_alone(other):
    answers = []
    for recognise in (True, False):
        async with opened(recognise=recognise, origins="https://a.example") as house:
            caller = await house.caller()
            for said in (receipt(), receipt("e"), other, receipt("f"), receipt("g"), LAST):
                await caller.say(said)
                await turns(3)
            answers.append([facts(answer) for answer in await caller.answers()])
            assert ("again" in house.stage.reached) == recognise
    assert answers[0] == answers[1]


RECEIPT = st.builds(
    receipt, st.sampled_from(["d", "e", "later", "nobody", "broken", "unknown", "d d", ""]), st.sampled_from(["1-1", "1-2", "conflict"]),
    st.sampled_from([b"", b"body", b"\r\n\r\n", receipt(), b"b" * 1000]), path=st.sampled_from(["/receipt/a", "/receipt/a", "/receipts/b", "/receipt/nobody", "/receipt/a?b"]))
KIND = st.builds(lambda said, kind: said.replace(b"\r\nDevice", kind + b"\r\nDevice"), RECEIPT,
                 st.sampled_from([b"", b"\r\nContent-Type: application/json", b"\r\nOrigin: https://a.example", b"\r\nDevice: twice"]))
LENGTH = st.builds(lambda said, add: said.replace(b"Content-Length: ", b"Content-Length: " + add, 1), KIND, st.sampled_from([b"", b"", b"", b"0", b"1", b"x"]))


@for_all(80, requests=st.lists(RECEIPT | RECEIPT | LENGTH | st.sampled_from(ONE_OF_EACH[:4]), min_size=2, max_size=10),
         where=st.none() | st.lists(st.integers(0, 3000), max_size=10))
async def test_what_is_recognised_has_the_same_answer_as_what_is_read(requests, where):
    # A length with a digit too many swallows what follows; it ends at the latest here.
    requests = [*requests, *[LAST] * 30]
    answers = []
    for recognise in (True, False):
        async with opened(recognise=recognise, origins="https://a.example") as house:
            pieces = requests if where is None else cut(b"".join(requests), where)
            answers.append(([facts(answer) for answer in await house.answers(*pieces)], [record.getMessage() for record in house.take_log()]))
            if recognise:
                event("recognised" if "again" in house.stage.reached else "not recognised")
    assert answers[0] == answers[1]


async def test_what_arrives_with_the_end_of_something_else_is_not_learned():
    whole, line = receipt(), b"POST /receipt/a HTTP/1.1\r\n"
    async with opened() as house:
        for start in (5, len(line), len(line) + len("Host: pere.test\r\n")):
            # The end of a head is no request, even if it comes again.
            answers = await house.answers(whole[:start], whole[start:], whole[start:])
            assert [answer.status for answer in answers] == [200, 501]
        for before in (b"the end of a body", line + b"X: "):
            said = request("POST /hot", before)
            answers = await house.answers(said[: -len(before)], before + whole, before + whole, LAST)
            # Behind `X: ` it is one, if an odd one, but not the one that was answered before.
            assert [answer.status for answer in answers] == ([200, 200, 501] if before.startswith(b"the") else [200] * 4)
        caller = await house.caller()
        await caller.say(receipt(), b"GET /echo HTTP/1.1\r\nX: ", whole.replace(b"Device: d", b"Origin: d"), LAST)
        assert [answer.status for answer in await caller.answers()] == [200, 200, 200]
        assert house.stage.reached == []


async def test_a_recognised_request_that_is_answered_later_keeps_its_place():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(receipt())
        await caller.answer()
        await caller.say(receipt("held", "1-2"), receipt("d", "1-3") + request("GET /echo"), receipt("held", "1-4"), LAST)
        assert house.stage.reached == ["again"]
        assert len(house.stage.asks) == 1
        house.stage.asks.pop()()
        await eventually(lambda: house.stage.asks)
        house.stage.asks.pop()()
        answers = [answer.json for answer in await caller.answers()]
        assert [answer[3] if isinstance(answer, list) else answer["path"] for answer in answers] == ["1-2", "1-3", "/echo", "1-4", "/echo/last"]


async def test_what_is_recognised_does_not_overtake_what_waits_for_its_turn():
    async with opened() as house:
        caller, line = await house.caller(), house.door.line
        await caller.say(request("POST /later/x"))
        await house.stage.until("/later/x")
        await caller.say(receipt("d", "1-1"))
        await turns(5)
        for _ in range(50):  # others have their turn first, and take all of it
            line.join(object(), Work(lambda: setattr(line, "is_enough", True)))
        house.stage.asks.pop().answer(200, b"[]")
        await caller.say(receipt("d", "1-2"), LAST)
        answers = [answer.json for answer in await caller.answers()]
        assert [answer[3] for answer in answers[1:3]] == ["1-1", "1-2"]


async def test_much_that_arrives_behind_a_recognised_request_that_is_answered_later_is_answered_too():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(receipt())
        await caller.answer()
        many = MUCH // len(receipt()) + 1
        await caller.say(receipt("held", "1-0"), b"".join(receipt("d", f"1-{n}") for n in range(1, many)) + LAST)
        (held,) = house.stage.asks
        held()
        assert [answer.json[3] for answer in (await caller.answers())[:-1]] == [f"1-{n}" for n in range(many)]


@pytest.mark.parametrize("next", [receipt("nobody"), request("GET /echo"), request("GET /detaches/hot"), receipt("d") + receipt("e")])
async def test_what_arrives_just_after_a_recognised_request_was_answered_does_not_overtake_it(next):
    async with opened() as house:
        caller = await house.caller()
        for device in ("d", "held"):
            await caller.say(receipt(device))
        await eventually(lambda: house.stage.asks)
        # Both in one turn of the loop: the answer is ready to be written, and the next request ready to be read.
        house.stage.asks.pop()()
        caller.sock.send(next)
        assert [(await caller.answer()).json[2] for _ in "12"] == ["d", "held"]
        assert (await caller.head()).status in (200, 404)


@pytest.mark.parametrize("leave", ["client resets", "client closes", "server aborts"])
async def test_who_has_gone_does_not_keep_the_others_from_their_answers(leave):
    async with opened() as house:
        one, two, three = [await house.caller() for _ in range(3)]
        for caller in (one, two, three):
            await caller.say(receipt())
            await caller.answer()
        connections = {connection.transport.get_extra_info("peername"): connection for connection in house.door.connections}
        gone = connections[two.sock.getsockname()]
        for caller in (one, two, three):
            await caller.say(receipt("held"))
        await eventually(lambda: len(house.stage.asks) == 3)
        if leave == "server aborts":
            gone.transport.abort()
        elif leave == "client resets":
            two.reset()
        else:
            two.close()
        for answer in house.stage.asks:
            answer()
        for caller in (one, three):
            assert (await caller.answer()).json[2] == "held"
        await eventually(lambda: len(house.door.connections) == 2)


async def test_a_recognised_request_that_cannot_be_answered_is_a_500():
    async with opened() as house:
        caller = await house.caller()
        for device, status in (("d", 200), ("broken", 500), ("d", 200), ("broken", 500)):
            await caller.say(receipt(device))
            assert (await caller.answer()).status == status
        assert [record.exc_info[0] for record in house.take_log()] == [ZeroDivisionError] * 2
        assert house.stage.reached == ["again"] * 3


async def test_one_that_cannot_be_answered_does_not_spoil_those_that_came_with_it():
    async with opened() as house:
        callers = [await house.caller() for _ in range(5)]
        for caller in callers:
            await caller.say(receipt())
            await caller.answer()
        # At once, so that they are read in one turn of the loop.
        for caller, device in zip(callers, ("d", "broken", "e", "nobody", "f"), strict=True):
            caller.sock.send(receipt(device))
        assert [(await caller.answer()).status for caller in callers] == [200, 500, 200, 404, 200]
        assert [record.exc_info[0] for record in house.take_log()] == [ZeroDivisionError]
        for caller in callers:
            await caller.say(receipt())
            assert (await caller.answer()).status == 200


async def test_who_is_not_certain_is_read_and_the_others_are_recognised():
    async with opened() as house:
        callers = [await house.caller() for _ in range(5)]
        for caller in callers:
            await caller.say(receipt())
            await caller.answer()
        for caller, device in zip(callers, ("d", "unknown", "e", "unknown", "f"), strict=True):
            caller.sock.send(receipt(device))
        assert [(await caller.answer()).json[2] for caller in callers] == ["d", "unknown", "e", "unknown", "f"]
        assert house.stage.reached == ["again"] * 3
        # What was read is learned from.
        await callers[1].say(receipt("g"))
        assert (await callers[1].answer()).json[2] == "g"
        assert house.stage.reached == ["again"] * 4
        assert house.door.routes[b"POST /receipt/"].tally == {200: 11}


@pytest.mark.parametrize("first", ["unknown", "d", "held", "later"])
@pytest.mark.parametrize("next, rest, ids", [
    (receipt("e", "1-2"), LAST, ["1-1", "1-2"]), (receipt("unknown", "1-2"), LAST, ["1-1", "1-2"]), (receipt("e", "1-2")[:-9], receipt("e", "1-2")[-9:] + LAST, ["1-1", "1-2"]),
    (receipt("e", "1-2") + receipt("f", "1-3"), LAST, ["1-1", "1-2", "1-3"]), (LAST, b"", ["1-1"]),
], ids=["one", "another", "half of one", "two", "the last"])
async def test_what_arrives_behind_one_that_is_not_certain_yet_keeps_its_place(first, next, rest, ids):
    async with opened() as house:
        caller = await house.caller()
        await caller.say(receipt())
        await caller.answer()
        (connection,) = house.door.connections
        # Both are read in one turn of the loop.
        connection.data_received(receipt(first, "1-1"))
        connection.data_received(next)
        await caller.say(*filter(None, [rest]))
        await turns(3)
        for answer in house.stage.asks:
            answer()
        assert [answer.json[3] if isinstance(answer.json, list) else "last" for answer in await caller.answers()] == [*ids, "last"]


async def test_one_that_is_not_certain_is_read_though_its_client_hangs_up_at_once():
    async with opened() as house:
        caller = await house.caller()
        await caller.say(receipt())
        await caller.answer()
        caller.sock.send(receipt("unknown"))
        caller.end()
        await eventually(lambda: not house.door.connections)
        assert house.door.routes[b"POST /receipt/"].tally == {200: 2}


async def test_one_that_is_not_certain_is_answered_though_the_server_ends():
    async with opened() as house:
        callers = [await house.caller() for _ in range(2)]
        for caller in callers:
            await caller.say(receipt())
            await caller.answer()
        for connection, device in zip(house.door.connections, ("unknown", "d"), strict=True):
            connection.data_received(receipt(device))
        house.door.drain()
        answers = [await caller.answers() for caller in callers]
        assert sorted(answer.json[2] for (answer,) in answers) == ["d", "unknown"]
        assert all(answer.headers["connection"] == "close" for (answer,) in answers)


async def test_once_the_server_is_about_to_end_the_next_answer_is_the_last_though_its_request_is_like_the_one_before():
    async with opened() as house:
        caller = await house.caller()
        for device in ("d", "e"):
            await caller.say(receipt(device))
            assert "connection" not in (await caller.answer()).headers
        assert house.stage.reached == ["again"]
        house.door.draining = True
        await caller.say(receipt("f"))
        (answer,) = await caller.answers()
        assert (answer.json[2], answer.headers["connection"]) == ("f", "close")


async def test_who_says_it_differently_each_time_is_answered_all_the_same():
    async with opened() as house:
        caller = await house.caller()
        for number in range(40):
            await caller.say(receipt("d", "1-1", b"", f"Content-Type: kind/{number % 2}"))
            assert (await caller.answer()).json[1] == f"kind/{number % 2}"
            await caller.say(receipt("d", "1-1", b"", f"X-Request-Id: {number}"))
            assert (await caller.answer()).status == 200


async def test_a_recognised_answer_to_who_does_not_read_waits_for_it():
    async with opened() as house:
        caller, body = await house.caller(receive_buffer=4096), b"b" * 900
        sent = 0
        await eventually(lambda: house.door.connections)
        (connection,) = house.door.connections
        while not connection.transport.get_write_buffer_size():
            assert house.door.connections
            await caller.say(receipt("d", str(sent), body))
            sent += 1
        for number in range(sent):
            assert (await caller.answer()).json[3:] == [str(number), body.decode()]
        assert house.stage.reached


# At Tornado's own door.


VALID = [
    request("GET /echo"), request("GET /echo/a/b?c=d&c=e&f"), request("GET /echo?%C3%A9=%20+&=&x"), request("GET //echo//"), request("GET /echo/%2F%00%ff"),
    request("GET /echo?url=http://a.example/?b=c&d=[1]"), request("GET /echo/;a=b,c'(d)!$*~"), request("GET /echo", b"", "X-A: 1", "x-a: 2", "X-B:", "X-C:  \t"),
    request("GET /echo", b"", "X-Latin: \xe9\xff", "Cookie: a=b; c=\"d e\"", "Accept: */*"), request("GET /echo", b"a body"), request("GET /echo", b"", "X-Long: " + "x" * 7000),
    request("GET /echo", b"", "Host-Not: a").replace(b"pere.test", b"[::1]:4567"), request("GET /echo").replace(b"pere.test", b"10.0.0.1:80"), request("GET /echo").replace(b"pere.test", b""),
    request("HEAD /echo"), request("HEAD /whole/10000"), request("HEAD /pieces"), request("HEAD /pieces?length=30"), request("HEAD /nowhere"), request("HEAD /slow/a"),
    request("POST /echo"), request("POST /echo", b"text", "Content-Type: text/plain"), request("POST /echo", b'{"a": "\xff"}', "Content-Type: application/json"),
    request("POST /echo", b"a=1&b=2&a=3&c=%C3%A9", "Content-Type: application/x-www-form-urlencoded"),
    request("POST /echo", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n', "Content-Type: multipart/form-data; boundary=x"),
    request("PUT /echo", b"", "Transfer-Encoding: chunked") + chunks(b"in", b" ", b"pieces"), request("PATCH /echo", b"body"), request("DELETE /echo", b"body"), request("DELETE /echo"),
    request("OPTIONS /echo"), request("OPTIONS /nowhere"), request("OPTIONS *"), request("PROPFIND /echo"), request("TRACE /echo"), request("DELETE /pieces"),
    request("GET /nowhere"), request("GET /raises/refusal"), request("GET /says/200"), request("GET /says/201"), request("GET /says/204"), request("GET /says/304"), request("GET /says/418"),
    request("GET /whole/0"), request("GET /whole/200000"), request("GET /pieces"), request("GET /pieces?length=30"), request("GET /pieces?size=50000"), request("GET /slow/word"),
    request("GET /echo", b"", "If-None-Match: *"), request("GET /echo", b"", 'If-None-Match: "another"'), request("GET /echo", b"", "Range: bytes=0-1"),
    request("POST /streamed", b"the body"), request("POST /streamed", b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"") + chunks(b"the ", b"body"),
    request("GET /echo", b"", "Upgrade: h2c"), request("GET /echo", b"", "Connection: keep-alive"), request("GET /echo", b"", "Connection: close"), request("GET /pieces", b"", "Connection: Close"),
    b"GET /echo HTTP/1.0\r\n\r\n", b"GET /echo HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", b"GET /pieces HTTP/1.0\r\n\r\n", b"POST /echo HTTP/1.0\r\nContent-Length: 4\r\n\r\nbody",
    b"GET /pieces?length=30 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b"HEAD /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
]


@on_uvloop
@pytest.mark.parametrize("said", VALID, ids=[said.partition(b"\r\n")[0].decode("latin-1") for said in VALID])
async def test_a_handler_sees_and_answers_what_it_would_behind_tornados_own_door(said):
    async with opened() as house, tornado() as (port, stage):
        house.stage.gate.set()
        callers = [await house.caller(), await Caller.open(port)]
        told: list[list[Any]] = []
        for caller in callers:
            told.append([])
            for _ in range(2):
                try:
                    await caller.send(said)
                    status, headers, body = facts(await caller.answer(said.partition(b" ")[0].decode()))
                except (EOFError, ConnectionError):
                    told[-1].append("the end")
                    break
                # It is not said alike, but meant alike, whether the connection stays.
                headers.pop("connection", None)
                told[-1].append((status, headers, body))
            caller.close()
        assert told[0] == told[1]
        assert house.stage.reached == stage.reached
        assert told[0][0] != "the end"
