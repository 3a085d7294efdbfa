"""Server-Sent Events as bytes: what is encoded is decoded, wherever the network cuts it, and as the standard has it."""

import re
from itertools import pairwise

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pere import sse
from pere.sse import Decoder, Message

MARK = b"\xef\xbb\xbf"  # the byte order mark

# What streams are made of, so that most of what is drawn means something.
SCRAPS = st.sampled_from([b"data", b"id", b"event", b"retry", b":", b" ", b"\r", b"\n", b"\r\n", b"\0", b"7", b"a", "é".encode(),
                          b"\xc3", MARK, b"data: a\n", b"data\n", b"id: 1\n", b"event: b\r\n", b"retry: 50\n", b":\n\n", b"\n\n"])
STREAMS = st.lists(SCRAPS, max_size=24).map(b"".join)
ONE_LINE = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=8)


def decoded(stream: bytes, *cuts: int) -> tuple[list[Message], str, float | None]:
    """All messages of a stream that arrives cut at these places, the last id, and what it said of `retry`."""
    decoder = Decoder()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(edges)]
    return [message for piece in pieces for message in decoder.feed(piece)], decoder.last_id, decoder.retry


def messages(stream: bytes) -> list[Message]:
    return decoded(stream)[0]


def by_the_standard(stream: bytes) -> tuple[list[Message], str, float | None]:
    """WHATWG 9.2.6 step by step, for a stream that is there as a whole."""
    found, last_id, retry = [], "", None
    data = event = id = ""
    *lines, _ = re.split("\r\n|\n|\r", stream.decode("utf-8", "replace").removeprefix("\ufeff"))
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            last_id = id
            if data:
                found.append(Message(data.removesuffix("\n"), event or "message", last_id))
            data = event = ""
        elif field == "data":
            data += value + "\n"
        elif field == "event":
            event = value
        elif field == "id" and "\0" not in value:
            id = value
        elif field == "retry" and re.fullmatch("[0-9]+", value):
            retry = int(value) / 1000
    return found, last_id, retry


# There and back


@given(data=st.text(st.characters(exclude_categories=["Cs"])), id=ONE_LINE, event=ONE_LINE)
@example(data="", id="", event="")
@example(data="\n", id="1-0", event="order")
@example(data=" a\r\n\rb\r", id=" 1", event=":")
def test_an_event_arrives_as_it_was_sent_but_for_the_kind_of_its_line_ends(data, id, event):
    stream = sse.frame(data.encode(), id=id.encode(), event=event.encode())
    assert messages(stream) == [Message(re.sub("\r\n|\r", "\n", data), event or "message", id)]


def test_an_event_is_written_in_the_fewest_bytes_that_say_it():
    assert sse.frame(b"1") == b"data: 1\n\n"
    assert sse.frame(b"1\n2", id=b"7-0", event=b"order") == b"id: 7-0\nevent: order\ndata: 1\ndata: 2\n\n"


def test_what_a_heartbeat_says_nobody_hears():
    assert messages(b"data: 1\n\n" + sse.HEARTBEAT + b"data: 2\n\n") == [Message("1"), Message("2")]


@pytest.mark.parametrize("seconds", [3.0, 0.25, 0.001, 0.0])
def test_how_long_to_wait_is_said_in_milliseconds_and_read_in_seconds(seconds):
    assert decoded(sse.retry(seconds)) == ([], "", seconds)
    assert sse.retry(3.0) == b"retry: 3000\n\n"


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=4))
def test_an_http_client_reads_chunks_as_one_body(bodies):
    class Answer:
        body, is_over = b"", False

        def on_body(self, piece: bytes) -> None:
            self.body += piece

        def on_message_complete(self) -> None:
            self.is_over = True

    answer = Answer()
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    httptools.HttpResponseParser(answer).feed_data(head + b"".join(map(sse.chunk, bodies)) + sse.chunk(b""))
    assert (answer.body, answer.is_over) == (b"".join(bodies), True)


# However it arrives


@given(STREAMS, st.lists(st.integers(0, 120), max_size=6))
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", [8, 10])
@example(MARK + b"data: a\n\n" + MARK + b"data: b\n\n", [1, 2, 12])
def test_the_messages_are_the_same_wherever_the_stream_is_cut(stream, cuts):
    assert decoded(stream, *cuts) == decoded(stream)


@given(STREAMS)
@example(b"data: a\r\n\r\ndata: b\r\r")
@example(MARK + b"data: a\n\n" + MARK + b"data: b\n\n")
def test_the_messages_are_the_same_byte_by_byte(stream):
    assert decoded(stream, *range(len(stream))) == decoded(stream)


@given(STREAMS)
def test_the_messages_are_those_of_the_standard(stream):
    assert decoded(stream) == by_the_standard(stream)


def test_an_event_is_there_with_the_byte_that_ends_it():
    for stream in (b"data: 1\n\n", b"data: 1\r\r", b"data: 1\n\r"):
        decoder = Decoder()
        assert list(decoder.feed(stream[:-1])) == []
        assert list(decoder.feed(stream[-1:])) == [Message("1")]


def test_the_second_half_of_a_line_end_is_no_empty_line():
    decoder = Decoder()
    assert list(decoder.feed(b"data: 1\r")) == []
    assert list(decoder.feed(b"")) == []
    assert list(decoder.feed(b"\ndata: 2\r")) == []
    assert list(decoder.feed(b"\n\r")) == [Message("1\n2")]
    assert list(decoder.feed(b"\ndata: 3\n\n")) == [Message("3")]


def test_bytes_are_taken_even_if_nobody_looks_at_the_messages():
    decoder = Decoder()
    decoder.feed(b"id: 1\ndata: 1\n\nid: 2\nda")
    assert decoder.last_id == "1"
    assert list(decoder.feed(b"ta: 2\n\n")) == [Message("2", id="2")]


# The corner cases of WHATWG 9.2.6


@pytest.mark.parametrize("stream, data", [
    (b"data\n\ndata\ndata\n\ndata:", ["", "\n"]),
    (b"data:test\n\ndata: test\n\n", ["test", "test"]),
    (b"data:  two\n\n", [" two"]),
    (b"data:\ta\n\n", ["\ta"]),
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", ["YHOO\n+2\n10"]),
], ids=["the standard's example of empty lines", "one space or none", "only one space is taken", "a tab is not a space",
        "the standard's example of three lines"])
def test_the_data_of_an_event_are_its_lines_joined(stream, data):
    assert [message.data for message in messages(stream)] == data


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_each_of_the_three_line_ends_ends_a_line(end):
    assert messages(end.join([b"event: order", b"data: 1", b"data: 2", b"", b""])) == [Message("1\n2", "order")]


def test_an_event_with_no_data_is_not_dispatched_and_its_name_is_forgotten():
    assert messages(b"event: order\n\ndata: 1\n\n") == [Message("1")]


def test_an_id_takes_effect_even_where_its_block_dispatches_nothing():
    assert decoded(b"id: 7\n\n") == ([], "7", None)


def test_an_id_takes_effect_only_when_its_block_ends():
    assert decoded(b"id: 7\ndata: 1\n")[1] == ""


def test_an_id_stays_for_the_events_that_name_none():
    assert messages(b"id: 7\ndata: 1\n\ndata: 2\n\n") == [Message("1", id="7"), Message("2", id="7")]


def test_an_empty_id_takes_the_id_back():
    assert decoded(b"id: 7\ndata: 1\n\nid\ndata: 2\n\n") == ([Message("1", id="7"), Message("2", id="")], "", None)


def test_an_id_that_holds_nul_is_ignored():
    assert messages(b"id: 7\nid: 8\0\ndata: 1\n\n") == [Message("1", id="7")]


def test_the_last_name_and_the_last_id_of_an_event_count():
    assert messages(b"event: a\nid: 1\nevent: b\nid: 2\ndata: 1\n\n") == [Message("1", "b", "2")]


def test_the_name_of_an_event_is_for_that_event_only():
    assert messages(b"event: order\ndata: 1\n\ndata: 2\n\n") == [Message("1", "order"), Message("2")]


@pytest.mark.parametrize("line", [b": a comment", b":", b"note: a", b"Data: a", b" data: a", b"data : a", b"dat", b"datas: a"])
def test_comments_and_unknown_fields_are_ignored(line):
    assert messages(line + b"\ndata: 1\n" + line + b"\n\n") == [Message("1")]


@pytest.mark.parametrize("text", [b"1.5", b"-1", b"+1", b"1s", b"", b" 1", b"\xd9\xa3"])
def test_a_retry_that_is_not_all_digits_is_ignored(text):
    assert decoded(b"retry: 40\nretry: " + text + b"\n")[2] == 0.04


def test_a_retry_of_ever_so_many_digits_is_a_very_long_time():
    assert decoded(b"retry: " + b"9" * 5000 + b"\n")[2] > 1e9


def test_an_event_that_is_not_finished_is_discarded():
    assert messages(b"data: 1\n\ndata: 2\n") == [Message("1")]


def test_a_byte_order_mark_is_ignored_at_the_start_and_only_there():
    assert messages(MARK + b"data: 1\n\n") == [Message("1")]
    assert messages(MARK + MARK + b"data: 1\n\n") == []
    assert messages(b"data: 1\n\n" + MARK + b"data: 2\n\n") == [Message("1")]
    assert messages(b"data: " + MARK + b"\n\n") == [Message("\ufeff")]


def test_what_only_begins_like_a_byte_order_mark_is_none():
    assert decoded(b"\xef\xbbdata: 1\n\ndata: 2\n\n", 1, 2)[0] == [Message("2")]


def test_bytes_that_are_not_utf_8_are_replaced():
    assert messages(b"data: a\xff\xc3\n\n") == [Message("a\ufffd\ufffd")]


# What is remembered


def test_a_decoder_goes_on_from_the_id_of_an_earlier_stream():
    decoder = Decoder("7-0")
    assert list(decoder.feed(b"data: 1\n\n")) == [Message("1", id="7-0")]
    assert decoder.last_id == "7-0"


def test_an_event_over_the_limit_is_not_waited_for():
    for stream in (b"data: 1234567890\n", b"data: 1234\ndata: 5678", b": 123456789", b"data\n" * 11):
        with pytest.raises(ValueError, match="more than 10 bytes"):
            Decoder(limit=10).feed(stream)


def test_an_event_within_the_limit_is_read_however_many_there_are():
    decoder = Decoder(limit=10)
    for _ in range(5):
        assert list(decoder.feed(b"data: 123456789\n")) == []
        assert list(decoder.feed(b"\n: 34567890")) == [Message("123456789")]
        assert list(decoder.feed(b"\n")) == []
