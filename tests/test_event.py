"""Events: ids that only grow, and the bytes that feeds get."""

from itertools import pairwise

import httptools
import made as a
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made import NOW

from pere.errors import BadRequest
from pere.event import ENVELOPE, LEVELS, RAW, UNCHUNKED, IdClock, format_id, parse_id, timestamp
from pere.receipt import DELIVERED, NONE, PROCESSED
from pere.sse import Decoder, Message

IDS = st.integers(0, 2**63 - 1)

# Ids


@given(IDS)
@example(2**63 - 1)
def test_an_id_comes_back_from_its_text_as_it_was(id):
    assert parse_id(format_id(id)) == id


@given(st.lists(st.tuples(st.integers(0, 2**43 - 1), st.integers(0, 2**20 - 1)), max_size=6))
def test_ids_sort_by_millisecond_and_then_by_sequence(parts):
    ids = sorted(parse_id(f"{ms}-{seq}") for ms, seq in parts)
    assert [tuple(map(int, format_id(id).split("-"))) for id in ids] == sorted(parts)


def test_an_id_is_the_time_and_a_sequence():
    assert format_id(parse_id("1417444110993-7")) == "1417444110993-7"
    assert parse_id("0-0") == 0
    assert parse_id("0-1") == 1


def test_the_last_id_of_all_is_the_last_that_64_bits_hold_with_a_sign():
    assert parse_id("8796093022207-1048575") == 2**63 - 1
    for text in ("8796093022208-0", "9999999999999-0", "10000000000000-0", "8796093022207-1048576"):
        with pytest.raises(BadRequest):
            parse_id(text)


@pytest.mark.parametrize("text", [
    "", "-", "7", "7-", "-7", "-7-0", "7--1", "+7-0", " 7-0", "7-0 ", "7-0\n", "07-0", "7-00", "7-0-0", "7.0-0", "7_0-0", "0x7-0",
    "\N{ARABIC-INDIC DIGIT SEVEN}-0", "7\N{MINUS SIGN}0", "7-1048576", "7-9999999", "7" * 5000 + "-0", "1e3-0", "7\0-0",
])
def test_what_is_no_id_is_refused(text):
    with pytest.raises(BadRequest) as caught:
        parse_id(text)
    assert caught.value.code == "bad_event_id"
    assert len(caught.value.message) < 200


@given(st.integers(0, 2**62), st.lists(st.floats(0, 4e9)))
@example(0, [1e9, 1e9, 1e9 - 3600, 1e9 - 3600, 1e9])
def test_ids_only_grow_whatever_the_clock_does(last, times):
    clock = IdClock(last)
    ids = [last, *(clock.next(now) for now in times)]
    assert all(older < newer for older, newer in pairwise(ids))


@given(st.lists(st.floats(0, 4e9), min_size=1))
def test_an_id_is_never_behind_the_clock(times):
    clock = IdClock()
    for now in times:
        assert clock.next(now) >= int(now * 1000) << 20


def test_an_id_tells_the_time_again_once_the_clock_has_caught_up():
    clock = IdClock()
    ids = [format_id(clock.next(now)) for now in (2.0, 2.0, 1.5, 2.0, 2.001)]
    assert ids == ["2000-0", "2000-1", "2000-2", "2000-3", "2001-0"]


def test_a_full_sequence_goes_on_in_the_next_millisecond():
    clock = IdClock(parse_id("2000-1048575"))
    assert format_id(clock.next(2.0)) == "2001-0"
    assert format_id(clock.next(2.001)) == "2001-1"


@pytest.mark.parametrize("seconds, text", [(NOW, "2014-12-01T14:28:30.993Z"), (0, "1970-01-01T00:00:00.000Z"),
                                           (1.5, "1970-01-01T00:00:01.500Z")])
def test_times_are_rfc_3339_in_utc_with_milliseconds(seconds, text):
    assert timestamp(seconds) == text


# What is accepted


def test_an_event_is_what_the_push_said_and_when_it_came():
    event = a.event(7, 3, now=100.0, channel="orders", data=b"{}", type="order", ttl=60, level=DELIVERED, publisher="shop")
    assert (event.id, event.ordinal, event.channel, event.data, event.type) == (7, 3, "orders", b"{}", "order")
    assert (event.time, event.expires, event.level, event.publisher, event.expired) == (100.0, 160.0, DELIVERED, "shop", False)


def test_an_event_is_for_everybody_unless_it_names_devices():
    assert a.event().to is None
    assert a.event(to=("d1", "d2", "d1")).to == {"d1", "d2"}


def test_the_words_for_the_levels_of_receipt():
    assert LEVELS == {"none": NONE, "delivered": DELIVERED, "processed": PROCESSED}


def test_a_heavier_payload_weighs_as_much_more_as_it_and_its_frame_take():
    assert a.event(data=b"x" * 1000).size - a.event(data=b"").size == 2000
    assert a.event(data=b"x" * 1000).size > 1000 + len(a.event(data=b"x" * 1000).frame(RAW))


# What is written

WORD = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
JSON = st.recursive(st.none() | st.booleans() | st.integers(-2**53, 2**53) | WORD,
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner), max_leaves=5)


def message(frame: bytes) -> Message:
    (found,) = Decoder().feed(frame)
    return found


def unchunked(frame: bytes) -> bytes:
    """The body that an HTTP client finds in a frame."""
    pieces: list[bytes] = []

    class Answer:
        on_body = pieces.append

    httptools.HttpResponseParser(Answer()).feed_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + frame)
    return b"".join(pieces)


def test_a_raw_frame_is_the_payload_as_it_was_pushed():
    event = a.event(id=parse_id("1417444110993-0"), data=b'{"order":  1}', type="order")
    assert event.frame(RAW | UNCHUNKED) == b'id: 1417444110993-0\nevent: order\ndata: {"order":  1}\n\n'


def test_an_envelope_says_everything_about_an_event():
    event = a.event(id=parse_id("1417444110993-0"), channel="orders", data=b'{"order":1}', type="order")
    told = message(event.frame(ENVELOPE | UNCHUNKED))
    assert (told.id, told.event) == ("1417444110993-0", "order")
    assert orjson.loads(told.data) == {"id": "1417444110993-0", "channel": "orders", "type": "order",
                                       "time": "2014-12-01T14:28:30.993Z", "attempt": 1, "data": {"order": 1}}


def test_an_event_without_a_type_is_a_message():
    event = a.event(data=b"1")
    assert b"event:" not in event.frame(RAW)
    assert event.as_dict()["type"] == "message"


@given(JSON, st.sampled_from([0, orjson.OPT_INDENT_2]))
def test_json_arrives_as_json_in_either_form(value, style):
    event = a.event(data=orjson.dumps(value, option=style))
    assert orjson.loads(message(event.frame(RAW | UNCHUNKED)).data) == value
    assert orjson.loads(message(event.frame(ENVELOPE | UNCHUNKED)).data)["data"] == value
    assert orjson.loads(orjson.dumps(event.as_dict()))["data"] == value


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example('two\nlines, "quoted"')
def test_text_arrives_as_text_in_either_form(text):
    event = a.event(data=text.encode(), is_json=False)
    assert message(event.frame(RAW | UNCHUNKED)).data == text.replace("\r\n", "\n").replace("\r", "\n")
    assert orjson.loads(message(event.frame(ENVELOPE | UNCHUNKED)).data)["data"] == text


@pytest.mark.parametrize("form", [RAW, ENVELOPE])
def test_a_frame_is_one_chunk_for_those_who_take_chunks(form):
    event = a.event(data=b'"' + b"x" * 300 + b'"')
    assert unchunked(event.frame(form)) == event.frame(form | UNCHUNKED)


def test_only_an_envelope_tells_the_attempts_apart():
    event = a.event()
    assert orjson.loads(message(event.encode(ENVELOPE | UNCHUNKED, attempt=3)).data)["attempt"] == 3
    assert event.encode(RAW, attempt=3) == event.frame(RAW)


def test_an_event_is_encoded_once_for_all_feeds_of_a_form():
    event = a.event()
    frame = event.frame(RAW)
    assert event.frame(RAW) is frame
    assert event.frame(ENVELOPE) == event.encode(ENVELOPE) != frame
    assert event.frame(RAW) == frame
