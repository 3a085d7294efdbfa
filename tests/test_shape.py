"""A request that is recognised by its shape means what the parser would have read in it: nothing more, and nothing else."""

import httptools
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pere.shape import MAX_HEAD, Shapes

VARYING = (b"device", b"last-event-id")
REQUEST = (b"POST /feedback/orders HTTP/1.1\r\n"
           b"Host: pere.example:4567\r\n"
           b"Device: till-1\r\n"
           b"Last-Event-ID: 1417444110993-0\r\n"
           b"Content-Type: application/json\r\n"
           b"Content-Length: 21\r\n"
           b"\r\n"
           b'{"state":"processed"}')


class Parsed:
    """What httptools reads in these bytes: `whole` requests, the last of which had these parts."""

    def __init__(self, data: bytes):
        self.whole = 0
        self.url, self.fields, self.body = b"", [], b""
        self.parser = httptools.HttpRequestParser(self)
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.whole = -1

    def on_url(self, piece: bytes) -> None:
        self.url += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def on_message_complete(self) -> None:
        self.whole += 1
        self.method, self.version = self.parser.get_method(), self.parser.get_http_version()
        self.keep_alive = self.parser.should_keep_alive()

    def values(self) -> tuple[bytes, ...]:
        headers = dict(self.fields)
        return tuple(headers[name] for name in VARYING)

    def rest(self) -> tuple:
        """All that a request says beside what may vary."""
        fields = [field for field in self.fields if field[0] not in (*VARYING, b"content-length")]
        return self.method, self.url, self.version, self.keep_alive, fields


def assert_it_means_the_same(known: bytes, request: bytes) -> bool:
    """Whether the shape of the one recognises the other; where it does, the parser must agree with all that was read."""
    read = Shapes().learn(known, VARYING).read(request)
    if read is None:
        return False
    *values, length, body = read
    parsed = Parsed(request)
    assert parsed.whole == 1
    assert (parsed.values(), parsed.body, len(parsed.body)) == (tuple(values), body, int(length))
    assert parsed.rest() == Parsed(known).rest()
    return True


def test_a_request_that_differs_in_its_values_only_is_recognised():
    shape = Shapes().learn(REQUEST, VARYING)
    assert shape.read(REQUEST) == (b"till-1", b"1417444110993-0", b"21", b'{"state":"processed"}')
    other = REQUEST.replace(b"till-1", b"till@2").replace(b"0993-0", b"0994-17").replace(b"21", b"0").partition(b"{")[0]
    assert shape.read(other) == (b"till@2", b"1417444110994-17", b"0", b"")


def test_the_values_come_in_the_order_in_which_they_were_named():
    request = b"POST / HTTP/1.1\r\nContent-Length: %d\r\nlast-event-id:%b\r\nDEVICE:  %b\r\n\r\n%b"
    shape = Shapes().learn(request % (1, b"7-0", b"d1", b"1"), VARYING)
    assert shape.read(request % (2, b"8-0", b"d2", b"\r\n")) == (b"d2", b"8-0", b"2", b"\r\n")


def test_every_byte_changed_to_every_other_is_not_recognised_or_means_the_same():
    recognised = 0
    for place in range(len(REQUEST)):
        for byte in range(256):
            recognised += assert_it_means_the_same(REQUEST, REQUEST[:place] + bytes([byte]) + REQUEST[place + 1 :])
    # Each visible character at each place of a value, each byte at each place of the body, and all else as it is.
    values, body = len(b"till-1" + b"1417444110993-0"), 21
    assert recognised == 94 * values + 256 * body + (len(REQUEST) - values - body)


def test_every_byte_left_out_or_said_twice_is_not_recognised_or_means_the_same():
    for place in range(len(REQUEST)):
        assert_it_means_the_same(REQUEST, REQUEST[:place] + REQUEST[place + 1 :])
        assert_it_means_the_same(REQUEST, REQUEST[:place] + REQUEST[place : place + 1] + REQUEST[place:])
        assert not assert_it_means_the_same(REQUEST, REQUEST[:place])
        assert not assert_it_means_the_same(REQUEST, REQUEST + REQUEST[: place + 1])


FIELDS = st.sampled_from([b"Host: a", b"Host: b:1", b"User-Agent: till/1.0 (x; y) [z]", b"Accept: */*", b"X-A:", b"X-A:  b\t",
                          b"x-a: c, d", b"Connection: keep-alive", b"Connection: close", b"Transfer-Encoding: chunked",
                          b"Upgrade: h2c", b"Cookie: \xe9", b" folded", b"X-Device: d2", b"Device : d3"])
DEVICE = st.sampled_from([b"Device: d1", b"device:d1", b"DEVICE:\t d1", b"Device: d1 ", b"Device:", b"Device: d1 d2",
                          b"Device: \xe9", b"Device: " + b"d" * 201])
EVENT = st.sampled_from([b"Last-Event-ID: 7-0", b"last-event-id: 7-0", b"Last-Event-ID:7-0"])
BODIES = st.sampled_from([b"", b"{}", b"\r\n\r\n", b"state=processed", b"0\r\n\r\n", b"\0\xff"])


@st.composite
def requests(draw) -> bytes:
    body = draw(BODIES)
    length = draw(st.sampled_from([b"Content-Length: %d", b"content-length:%d", b"Content-Length: 0%d"])) % len(body)
    fields = draw(st.permutations([draw(DEVICE), draw(EVENT), length, *draw(st.lists(FIELDS, max_size=3))]))
    target = draw(st.sampled_from([b"/feedback/a HTTP/1.1", b"/feedback/a+b?x=(y) HTTP/1.1", b"/feedback/a HTTP/1.0"]))
    return b"\r\n".join([b"POST " + target, *fields]) + b"\r\n\r\n" + body


SCRAPS = st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"0", b"9", b"d", b"\xff", b"\r\n\r\n",
                          b"\r\nDevice: d9", b"\r\n d9", b"\r\nContent-Length: 1", b"\r\nTransfer-Encoding: chunked",
                          b"POST / HTTP/1.1\r\n\r\n"])


@given(requests(), st.data())
def test_what_a_mutated_request_means_is_what_the_parser_reads_in_it(known, data):
    # As at the door: only what the parser has read is learned, and only if it was all that came.
    assume(Parsed(known).whole == 1 and Shapes().learn(known, VARYING) is not None)
    mutated = known
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(mutated)))
        end = start + data.draw(st.sampled_from([0, 0, 1, 2, 7]))
        mutated = mutated[:start] + data.draw(SCRAPS | st.just(b"")) + mutated[end:]
    assert_it_means_the_same(known, mutated)


@given(requests(), requests())
@example(REQUEST, REQUEST.replace(b"Device", b"device"))
def test_what_another_request_means_is_what_the_parser_reads_in_it(known, other):
    assume(Parsed(known).whole == 1 and Shapes().learn(known, VARYING) is not None)
    assert_it_means_the_same(known, other)


@pytest.mark.parametrize("request_", [
    REQUEST.replace(b"Device: till-1\r\n", b""),
    REQUEST.replace(b"Last-Event-ID: 1417444110993-0\r\n", b""),
    REQUEST.replace(b"Content-Length: 21\r\n", b""),
    REQUEST.replace(b"Device: till-1\r\n", b"Device: till-1\r\nDEVICE: till-2\r\n"),
    REQUEST.replace(b"Content-Length: 21\r\n", b"Content-Length: 21\r\nContent-Length: 21\r\n"),
    REQUEST.replace(b"Content-Length: 21\r\n", b"Transfer-Encoding: chunked\r\n"),
    REQUEST.partition(b"\r\n\r\n")[0],
], ids=["no device", "no event", "no length", "two devices", "two lengths", "chunked", "no end of the head"])
def test_a_request_without_each_value_exactly_once_has_no_shape(request_):
    assert Shapes().learn(request_, VARYING) is None


def test_a_head_that_takes_long_to_learn_is_not_learned():
    def padded(size: int) -> bytes:
        return REQUEST.replace(b"Host", b"X: " + b"~" * (size - len(REQUEST.partition(b"\r\n\r\n")[0]) - 5) + b"\r\nHost")

    assert Shapes().learn(padded(MAX_HEAD), VARYING).read(padded(MAX_HEAD))
    assert Shapes().learn(padded(MAX_HEAD + 1), VARYING) is None


@pytest.mark.parametrize("value, is_read", [(b"d" * 200, True), (b"d" * 201, False), (b"", False), (b"a b", False),
                                            (b"\xc3\xa9", False), (b"a\tb", False)])
def test_a_value_is_of_visible_ascii_and_not_longer_than_any_name(value, is_read):
    shape = Shapes().learn(REQUEST, VARYING)
    assert (shape.read(REQUEST.replace(b"till-1", value)) is not None) == is_read


# Tokens

TOKEN = b"e" * 100 + b"." + b"y" * 100 + b"." + b"s" * 43
WITH_TOKEN = REQUEST.replace(b"Device", b"Authorization:  Bearer  " + TOKEN + b"\r\nDevice")
BEARERS = (*VARYING, b"authorization")


@pytest.mark.parametrize("token", [TOKEN, TOKEN[:-20], TOKEN + b"more", b"x" * 4096, TOKEN + b" "], ids=len)
def test_a_token_is_what_stands_behind_the_scheme_up_to_the_end_of_the_line(token):
    shape = Shapes().learn(WITH_TOKEN, BEARERS)
    assert shape.read(WITH_TOKEN.replace(TOKEN, token)) == (b"till-1", b"1417444110993-0", token, b"21", b'{"state":"processed"}')


@pytest.mark.parametrize("other", [WITH_TOKEN.replace(b"Bearer", b"bearer"), WITH_TOKEN.replace(b"Bearer  ", b"Bearer "), WITH_TOKEN.replace(TOKEN, b"x" * 5000), REQUEST],
                         ids=["scheme", "spaces", "too long", "none"])
def test_a_token_that_is_said_otherwise_is_not_recognised(other):
    assert Shapes().learn(WITH_TOKEN, BEARERS).read(other) is None


def test_a_shape_that_was_learned_from_a_short_token_recognises_long_ones_too():
    shape = Shapes().learn(WITH_TOKEN.replace(TOKEN, TOKEN[:60]), BEARERS)
    for longer in (TOKEN, TOKEN * 4, b"x" * 4000):
        assert shape.read(WITH_TOKEN.replace(TOKEN, longer)) is not None


def test_whatever_is_taken_for_a_token_if_it_is_one_the_rest_is_what_the_parser_reads():
    shape, recognised = Shapes().learn(WITH_TOKEN, BEARERS), 0
    for place in range(len(WITH_TOKEN)):
        for scrap in (b"\r\n", b"\n", b" ", b"\0", b"a", b"1", b"\r\nTransfer-Encoding: chunked", b"\r\nDevice: d"):
            for changed in (WITH_TOKEN[:place] + scrap + WITH_TOKEN[place:], WITH_TOKEN[:place] + scrap + WITH_TOKEN[place + len(scrap) :]):
                values = shape.read(changed)
                # What is none is known to nobody.
                if values is not None and values[2] == TOKEN:
                    recognised += 1
                    parsed = Parsed(changed)
                    assert parsed.whole == 1
                    assert (parsed.values(), parsed.body) == (values[:2], values[-1])
                    assert parsed.rest() == Parsed(WITH_TOKEN).rest()
    assert recognised > 50


# What is learned


def test_requests_of_one_shape_share_it():
    shapes = Shapes()
    assert shapes.learn(REQUEST, VARYING) is shapes.learn(REQUEST.replace(b"till-1", b"till-2"), VARYING)


def shaped(number: int) -> bytes:
    return REQUEST.replace(b"orders", b"orders-%d" % number)


def test_a_client_that_never_says_the_same_twice_teaches_only_so_much_before_a_rest():
    shapes = Shapes(lessons=3)
    assert [shapes.learn(shaped(number), VARYING) is not None for number in range(5)] == [True, True, True, False, False]
    assert shapes.learn(shaped(1), VARYING) is not None  # what is known costs no lesson
    shapes.rest()
    assert [shapes.learn(shaped(number), VARYING) is not None for number in range(5, 9)] == [True, True, True, False]


def test_the_oldest_shape_makes_way_for_the_newest():
    shapes = Shapes(most=2, lessons=3)
    first, second, third = (shapes.learn(shaped(number), VARYING) for number in range(3))
    assert shapes.learn(shaped(1), VARYING) is second
    assert shapes.learn(shaped(2), VARYING) is third
    assert shapes.learn(shaped(0), VARYING) is None  # forgotten, and there is no lesson left
    assert first.read(shaped(0)) is not None  # but whoever holds it may go on using it
