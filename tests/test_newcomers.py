"""A head like one that another connection began with is read as the parser reads it, and nobody is let in who would not be otherwise."""

from types import SimpleNamespace
from typing import Any

import pytest
from doors import LAST, House, facts, io_loop, no_surprises, on_uvloop, opened, request, turns  # noqa: F401
from hypothesis import event, given, settings
from hypothesis import strategies as st
from test_http1_alike import for_all, plainly

from pere.config import Config
from pere.gate import Gate
from pere.newcomers import KINDS, LESSONS, MOST, Newcomers


def feed(device: str = "d", *fields: str, path: str = "/hot/a", word: str = "a.b.c") -> bytes:
    return request(f"GET {path}", b"", "Accept: text/event-stream", f"Authorization: Bearer {word}", f"Device: {device}", *fields)


async def said(house: House, request: bytes) -> tuple[Any, bool]:
    """What somebody is answered who comes and says this, and whether a parser had to read it."""
    caller = await house.caller()
    await caller.say(request)
    answer = await caller.answer()
    (connection,) = [each for each in house.door.connections if each.transport.get_extra_info("peername")[1] == caller.sock.getsockname()[1]]
    return answer, connection._parser is not None


async def test_the_third_head_of_a_kind_needs_no_parser_and_is_read_alike():
    async with opened() as house:
        for number, (device, word) in enumerate([("d", "a.b.c"), ("e", "x"), ("another", "y" * 1000), ("~!@", "~"), ("d" * 200, "z")]):
            one = feed(device, f"Last-Event-ID: {number}-0", word=word)
            answer, is_parsed = await said(house, one)
            assert answer.json == plainly(one)
            assert is_parsed == (number < 2)


@pytest.mark.parametrize("heads", [
    [feed(path=f"/hot/a?x=y&access_token={word}&device={word}") for word in ("a.b", "c", "d" * 500, "e%20f")],
    [feed("d", f"Cookie: {words}") for words in ("pere_token=a", "a=b; pere_token=cd; e=f", "a=b;c", "d" * 1000)]], ids=["query", "cookie"])
async def test_a_token_may_also_stand_where_a_browser_has_it(heads):
    async with opened() as house:
        for number, head in enumerate(heads):
            answer, is_parsed = await said(house, head)
            assert answer.json == plainly(head) and is_parsed == (number < 2)


async def test_the_heads_of_several_programs_that_ask_for_the_same_are_known():
    async with opened() as house:
        programs = [lambda device, number=number: feed(device, f"X-Program: {number}") for number in range(KINDS)]
        for device in ("a", "b", "c"):
            house.door.newcomers.rest()
            for program in programs:
                answer, is_parsed = await said(house, program(device))
                assert answer.json == plainly(program(device)) and is_parsed == (device != "c")
        for device in ("a", "b"):
            house.door.newcomers.rest()
            await said(house, feed(device, "X-Program: another"))
        assert [(await said(house, program("d")))[1] for program in programs[::-1]] == [False] * (KINDS - 1) + [True]
        assert len(house.door.newcomers._known[b"GET /hot/a HTTP/1.1"]) == house.door.newcomers._count == KINDS


CHROME = ("Connection: keep-alive", 'sec-ch-ua-platform: "{}"', "Cache-Control: no-cache", "User-Agent: Mozilla/5.0 ({}; x64) Chrome/{}", "Accept: text/event-stream",
          'sec-ch-ua: "Chromium";v="{}", "Not.A/Brand";v="99"', "sec-ch-ua-mobile: ?0", "Origin: https://a.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors",
          "Sec-Fetch-Dest: empty", "Referer: https://a.example/{}", "Accept-Encoding: gzip, deflate, br, zstd", "Accept-Language: {},en;q=0.9", "Last-Event-ID: {}-0")
NGINX = ("X-Forwarded-For: 192.0.2.{}, 198.51.100.7", "X-Forwarded-Proto: https", "User-Agent: curl/8.{}.0", "Accept: text/event-stream", "Authorization: Bearer {}.b.c")


@pytest.mark.parametrize("lines", [CHROME, NGINX], ids=["a browser, from a page of another origin", "curl, behind nginx"])
async def test_what_clients_really_say_is_known_whoever_they_are(lines):
    async with opened(origins="https://a.example") as house:
        for number in range(8):
            head = request(f"GET /hot/a?access_token=a.{number}&device=d{number}", b"", *(line.format(number, number) for line in lines))
            answer, is_parsed = await said(house, head)
            assert answer.json == plainly(head) and is_parsed == (number < 2)
            assert answer.headers.get("access-control-allow-origin") == ("https://a.example" if lines is CHROME else None)


async def test_a_connection_that_goes_on_is_read_by_the_parser_from_there():
    async with opened() as house:
        for _ in range(3):
            caller = await house.caller()
            for one in (feed("d"), request("POST /hot", b"body"), feed("e")):
                await caller.say(one)
                assert (await caller.answer()).json["body"] == plainly(one)["body"]


async def test_a_head_that_is_known_takes_nobodys_place_though_it_comes_again_where_there_is_a_parser():
    async with opened() as house:
        for program in ("another", "this"):
            for _ in range(2):
                await said(house, feed("d", f"X-Program: {program}"))
            house.door.newcomers.rest()
        caller = await house.caller()
        for number in range(LESSONS * 2):
            await caller.say(request("POST /hot", b"body") if not number else feed(f"d{number}", "X-Program: this"))
            await caller.answer()
            house.door.newcomers.rest()
        assert len(house.door.newcomers._known[b"GET /hot/a HTTP/1.1"]) == house.door.newcomers._count == 2
        assert not (await said(house, feed("d", "X-Program: another")))[1]


OTHER = [
    feed(path="/hot/b"), feed("d", "X: y"), feed("d" * 201), feed("d d"), feed("\xe9"), feed(""), feed("d", "Device: e"), feed("d", "Origin: https://a.example"),
    feed("d", "Connection: close"), feed("d", "Expect: nothing"), feed().replace(b"HTTP/1.1", b"HTTP/1.0"), feed().replace(b"Device", b"device"),
    feed().replace(b"Bearer ", b"Bearer"), feed().replace(b"Bearer", b"Basic"), feed(word="a b"), feed(word="a\r\nX: y"), feed(word="a\nX: y"), feed(word=""), feed(word="a" * 5000),
    feed(path="/hot/a?b"), feed().replace(b"Host: pere.test\r\n", b""), feed() + feed("e"), feed() + b"GET ", b"\r\n" + feed(), feed("d \t"), feed().replace(b"\r\n", b"\n"),
    feed("d", "Transfer-Encoding: chunked") + b"0\r\n\r\n", feed("d", "X-Forwarded-For: 1.2.3.4"), feed("d\r\n folded"), feed("d\0"), feed().replace(b": Bearer", b":Bearer"),
    request("GET /hot/a"), request("POST /hot/a", b"body"), feed(path="/detaches/a"),
    *(feed("d", f"Cookie: {words}") for words in ("a", "a=b; pere_token=c", "a=b;  c ", "a\tb", " a", "a\xe9", "a=b\r\nCookie: c", "")), *(feed(word=word) for word in ("a b", " a", "a ", "a\tb", "b" * 40 + " c")),
    *(feed(path=f"/hot/a?{query}") for query in ("access_token=a.b", "access_token=a b", "access_token=a#b", "access_token=a&x=y", "access_token=a&device=b", "access_token=&device=b", "xaccess_token=a", "access_token=%41", "access_token=a\"b", "access_token=a\xe9", "device=a\tb"))]


@pytest.mark.parametrize("other", OTHER, ids=range(len(OTHER)))
async def test_whatever_is_like_it_or_not_is_answered_as_if_no_other_had_been_there(other):
    answers = []
    for recognise in (True, False):
        async with opened(recognise=recognise, origins="https://a.example") as house:
            answers.append([])
            for one in (feed(), feed("e"), feed("f"), other, other, other, feed("g")):
                caller = await house.caller()
                await caller.say(one)
                await caller.say(LAST)
                if b"detaches" in one:
                    await turns(3)
                    house.stage.transports[-1].close()
                    answers[-1].append(await caller.rest())
                else:
                    answers[-1].append([facts(answer) for answer in await caller.answers()])
            assert bool(house.door.newcomers._known) == recognise
    assert answers[0] == answers[1]


LINES = st.lists(st.sampled_from(["Device: d", "Device: e", "device: f", "Device:g", "Device: \t h ", "Device: two words", "Authorization: Bearer a", "Authorization: bearer  b", "Authorization: c",
                                  "Last-Event-ID: 1-1", "Last-Event-ID: 1-2", "last_event_id: 7", "X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 192.0.2.2", "X: a", "Cookie: a=b", "Cookie: c=d; e=f", "Connection: keep-alive"]), max_size=5)
PARAMETERS = st.lists(st.sampled_from(["access_token=a.b-c", "access_token=d", "access_token=", "access_token", "device=e", "device=f%20g", "last_event_id=1-1", "x=y", "x=?", "\"", "", "a%", "device=#"]), max_size=4)


@for_all(60, heads=st.lists(st.tuples(PARAMETERS, LINES), min_size=2, max_size=8), proxies=st.sampled_from(["", "127.0.0.1"]))
async def test_any_heads_one_after_the_other_are_answered_as_each_alone(heads, proxies):
    requests = [request("GET /hot/a" + "?" * bool(query) + "&".join(query), b"", *lines) for query, lines in heads for _ in range(3)]
    answers = []
    for recognise in (True, False):
        async with opened(recognise=recognise, trusted_proxies=proxies) as house:
            house.door.newcomers._left = 1000
            answers.append([facts((await said(house, one))[0]) for one in requests])
            event(f"{len(house.door.newcomers._known)} known")
    assert answers[0] == answers[1]


async def test_who_needs_no_parser_is_charged_as_everybody_is():
    async with opened() as house:
        house.door.gate = Gate(Config(peer_requests="0.001/4", peer_connects="0", limits_exempt=""), lambda: house.door.wheel.now)
        answers = [await said(house, feed()) for _ in range(4)]
        assert [(answer.status, is_parsed) for answer, is_parsed in answers] == [(200, True), (200, True), (200, False), (200, False)]
        caller = await house.caller()
        await caller.say(feed())
        (answer,) = await caller.answers()
        assert answer.error == (429, "too_many_requests")
        assert answer.headers["connection"] == "close" and int(answer.headers["retry-after"]) > 100
        assert house.door.gate.limited["requests", "client"] == 1
        assert house.door.routes[b"GET /hot/"].tally == {200: 4, 429: 1}


async def test_where_heads_must_be_shorter_than_what_is_read_at_once_the_parser_reads_and_measures_them_all():
    async with opened(max_line_bytes=1024) as house:
        for _ in range(3):
            answer, is_parsed = await said(house, feed())
            assert answer.status == 200 and is_parsed
        caller = await house.caller()
        await caller.say(feed(path=f"/hot/a?access_token={'a' * 1024}"))
        assert (await caller.answer()).status == 414


async def test_who_needs_no_parser_waits_his_turn():
    async with opened() as house:
        for _ in range(3):
            await said(house, feed())
        callers = [await house.caller() for _ in range(60)]
        for number, caller in enumerate(callers):
            await caller.send(feed(f"d{number}"))
        for number, caller in enumerate(callers):
            assert (await caller.answer()).json["headers"]["device"] == f"d{number}"


def learned(newcomers: Newcomers, path: str, device: str = "d") -> None:
    headers = {b"host": b"a", b"device": device.encode()}
    ask = SimpleNamespace(method=b"GET", path=path.encode(), query=b"", headers=headers, route=None)
    newcomers.learn(ask, f"GET {path} HTTP/1.1\r\nHost: a\r\nDevice: {device}\r\n\r\n".encode())


def test_who_never_says_the_same_twice_teaches_nothing_and_costs_little():
    newcomers = Newcomers()
    for number in range(3000):
        learned(newcomers, f"/feed/{number}")
        if number % LESSONS == 0:
            newcomers.rest()
    assert not newcomers._known and len(newcomers._seen) == MOST
    for number in range(MOST + 10):
        newcomers.rest()
        learned(newcomers, f"/feed/{number}")
        learned(newcomers, f"/feed/{number}")
    assert len(newcomers._known) == len(newcomers._seen) == MOST


def test_a_head_that_made_way_for_others_is_not_known_any_more_though_it_came_last():
    newcomers = Newcomers(lessons=4 * MOST)
    for number in (*range(MOST), MOST):
        for _ in range(2):
            learned(newcomers, f"/feed/{number}")
        if number == MOST - 1:
            assert newcomers.read(b"GET /feed/0 HTTP/1.1\r\nHost: a\r\nDevice: d\r\n\r\n") is not None
    found = [newcomers.read(f"GET /feed/{number} HTTP/1.1\r\nHost: a\r\nDevice: d\r\n\r\n".encode()) for number in (0, 1, MOST)]
    assert [each is not None for each in found] == [False, True, True]


@given(st.binary(max_size=100) | st.builds(lambda a, b: b"GET /feed/a HTTP/1.1\r\nHost: a\r\nDevice: " + a + b"\r\n\r\n" + b, st.binary(max_size=20), st.binary(max_size=3)))
@settings(database=None)
def test_only_a_whole_head_that_differs_in_words_of_visible_letters_is_recognised(data):
    newcomers = Newcomers()
    learned(newcomers, "/feed/a")
    learned(newcomers, "/feed/a", "e")
    found, device = newcomers.read(data), data[39:-4]
    is_one = data == b"GET /feed/a HTTP/1.1\r\nHost: a\r\nDevice: " + device + b"\r\n\r\n" and device and device == device.strip() and all(32 <= letter <= 126 for letter in device)
    assert (found is not None) == bool(is_one)
    assert found is None or found[1:] == (b"", {b"host": b"a", b"device": device})
