"""Names that may go into a header, a log line or an SSE field, and the patterns that mean several."""

import string
from ast import literal_eval
from functools import lru_cache
from itertools import product, zip_longest

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pere.errors import BadRequest
from pere.names import channel_name, device_name, event_type, is_pattern, pattern, shown, whole

COMMON = string.ascii_letters + string.digits + "_.:~-"
KINDS = [
    pytest.param(channel_name, COMMON, "bad_channel", id="channel"),
    pytest.param(device_name, COMMON + "@", "bad_device", id="device"),
    pytest.param(event_type, COMMON + "/", "bad_type", id="event type"),
]

# Mostly what is almost a name, and what ends a line for some reader, or is a letter or digit for another.
FOREIGN = "é\N{ARABIC-INDIC DIGIT THREE}\N{FULLWIDTH LATIN CAPITAL LETTER A}"
ALMOST = st.text(st.sampled_from(COMMON + "@/*% ,;\"'\\\0\r\n\t\x0b\x85\u2028" + FOREIGN), max_size=6)


@pytest.mark.parametrize("check, letters, code", KINDS)
@given(text=ALMOST)
@example("a\n")  # which `$` at the end of an expression would let through
@example("")
def test_a_name_is_made_of_its_letters_only(check, letters, code, text):
    if text and set(text) <= set(letters):
        assert check(text) == text
        return
    with pytest.raises(BadRequest) as caught:
        check(text)
    assert caught.value.code == code


@pytest.mark.parametrize("check, letters, code", KINDS)
def test_a_name_has_128_letters_at_most_and_all_of_them_may_be_used(check, letters, code):
    for letter in letters:
        assert check(letter) == letter
    assert check("a" * 128) == "a" * 128
    with pytest.raises(BadRequest) as caught:
        check("a" * 129)
    assert caught.value.code == code


def test_the_names_of_control_frames_cannot_be_pushed():
    for text in ("pere.hello", "pere."):
        with pytest.raises(BadRequest, match="control frames"):
            event_type(text)
    assert event_type("pere") == "pere"
    assert event_type("peres.order") == "peres.order"


@given(ALMOST)
@example("\ud800")
def test_what_a_stranger_sent_stands_in_an_error_on_one_short_printable_line(text):
    assert shown(text, 3).isprintable()
    assert literal_eval(shown(text, 3)) == (text if len(text) <= 3 else text[:3] + "...")


# Patterns


@pytest.mark.parametrize("text, meant, others", [
    ("news", ["news"], ["new", "newss", "news.eu"]),
    ("orders.*", ["orders.eu", "orders."], ["orders", "orders.eu.1", "order.eu"]),
    ("*.eu", ["orders.eu", ".eu"], ["orders.us", "a.b.eu"]),
    ("orders.*.paid", ["orders.7.paid"], ["orders.paid", "orders.7.8.paid"]),
    ("o*s", ["orders", "os", "odds"], ["o.s", "order"]),
    ("*", ["orders"], ["orders.eu"]),
    ("orders.**", ["orders.eu", "orders.eu.1", "orders."], ["orders", "order.eu"]),
    ("orders**", ["orders", "orders2", "orders.eu.1"], ["order"]),
    ("**", ["a", "a.b.c"], []),
    ("a-b.c", ["a-b.c"], ["a-bxc", "ab.c"]),
])
def test_a_star_stays_within_its_part_and_two_at_the_end_mean_any_rest(text, meant, others):
    matches = pattern(text)
    assert [name for name in meant + others if matches(name)] == meant


def by_definition(pattern: str, channel: str) -> bool:
    """Letter by letter, what a pattern means."""

    @lru_cache(None)
    def meant(p: str, c: str) -> bool:
        if p == "**":
            return True
        if not p:
            return c == ""
        if p[0] == "*":
            return meant(p[1:], c) or (c[:1] not in ("", ".") and meant(p, c[1:]))
        return c[:1] == p[0] and meant(p[1:], c[1:])

    return meant(pattern, channel)


@given(st.text("a.*b", min_size=1, max_size=9), st.text("ab.", max_size=9))
@example("a*ab*b**", "aabb")
@example("***", "a")
def test_a_pattern_means_what_it_means_letter_by_letter(text, channel):
    head = text.removesuffix("**")
    if "**" in head:
        with pytest.raises(BadRequest, match="only at the end"):
            pattern(text)
    else:
        assert bool(pattern(text)(channel)) == by_definition(text, channel)


@pytest.mark.parametrize("hostile", ["*a" * 63 + "*", "a*" * 60 + "b", "*." * 63 + "b", "*a*." * 31 + "b", "a*" * 62 + "b**",
                                     "*" + "a" * 120 + "**"])
@pytest.mark.parametrize("channel", ["a" * 128, "a." * 64, "aa." * 42 + "c", "ab" * 64])
def test_no_pattern_takes_longer_than_the_patience_of_a_test(hostile, channel):
    # Where each star tries every end for itself, one of these would take longer than there has been time.
    assert bool(pattern(hostile)(channel)) == by_definition(hostile, channel)


@given(ALMOST)
def test_a_pattern_is_made_of_the_letters_of_channels_and_stars(text):
    if text and set(text) <= set(COMMON + "*"):
        assert "**" in text or pattern(text)
    else:
        with pytest.raises(BadRequest) as caught:
            pattern(text)
        assert caught.value.code == "bad_channel"


def test_only_a_star_makes_a_pattern():
    assert is_pattern("orders.*")
    assert not is_pattern("orders.eu")


# One pattern within another


def covers(granted: str, asked: str) -> bool:
    return bool(pattern(granted)(whole(asked)))


def patterns(letters: str, most: int) -> list[str]:
    """Every pattern of these letters that is no longer than this."""
    texts = ["".join(chosen) for size in range(1, most + 1) for chosen in product(letters, repeat=size)]
    return [text for text in texts if "**" not in text.removesuffix("**")]


@pytest.mark.parametrize("granted, within, beyond", [
    ("orders", ["orders"], ["orders.*", "order", "o*"]),
    ("orders.*", ["orders.*", "orders.eu", "orders.e*", "orders."], ["orders.**", "orders.*.*", "*.eu", "*", "orders"]),
    ("orders.**", ["orders.*", "orders.**", "orders.eu.**", "orders.*.paid"], ["orders**", "orders", "**", "o*.eu"]),
    ("**", ["**", "*", "a*", "a.b.**"], []),
    ("*", ["*", "a", "a*b"], ["**", "*.*", "a.b"]),
    ("a*b", ["a*b", "ab", "a*b*b"], ["a*", "*b", "a*.b", "a**"]),
])
def test_one_pattern_covers_another_if_it_means_all_that_the_other_means(granted, within, beyond):
    assert [text for text in within + beyond if covers(granted, text)] == within


def test_no_small_pattern_is_covered_by_one_that_does_not_mean_all_of_its_channels_and_every_other_is():
    # The letter b is in no pattern that covers: it stands for all that it does not name.
    channels = ["".join(letters) for size in range(1, 6) for letters in product("ab.", repeat=size)]
    meant = {text: frozenset(filter(pattern(text), channels)) for text in patterns("a.*", 4)}
    wrong = [(granted, asked) for granted in meant for asked in meant
             if covers(granted, asked) != (meant[asked] <= meant[granted]) and "*" in asked and len(asked) <= 3]
    assert wrong == []


@given(st.text("ab.*", min_size=1, max_size=9), st.text("ab.*", min_size=1, max_size=9), st.lists(st.text("abc", max_size=3), max_size=9),
       st.text("abc.", max_size=5))
@example("a*b*", "ab*", ["b"], "")
def test_what_is_covered_is_meant_whatever_stands_in_the_place_of_its_stars(granted, asked, runs, rest):
    for text in (granted, asked):
        assume("**" not in text.removesuffix("**"))
    head, tail = (asked[:-2], rest) if asked.endswith("**") else (asked, "")
    pieces = head.split("*")
    channel = "".join(piece + run for piece, run in zip_longest(pieces, runs[: len(pieces) - 1], fillvalue="")) + tail
    assert not channel or pattern(asked)(channel)
    if covers(granted, asked):
        assert pattern(granted)(channel)


def test_every_pattern_covers_itself():
    assert [text for text in patterns("a.*", 6) if not covers(text, text)] == []


@pytest.mark.parametrize("granted", ["*a" * 63 + "*", "a*" * 62 + "b**", "*." * 63 + "b"])
@pytest.mark.parametrize("asked", ["*a" * 63 + "*", "a*" * 63 + "b", "a." * 62 + "**"])
def test_whether_a_hostile_pattern_is_covered_is_known_at_once_too(granted, asked):
    covers(granted, asked)
