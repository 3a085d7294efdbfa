"""Receipts: every state, every word, and what becomes of the one when the other comes."""

import math
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pere.errors import BadRequest
from pere.receipt import (
    ABSENT,
    CANCELLED,
    CONFLICT,
    DELIVERED,
    DUPLICATE,
    EXPIRED,
    FAILED,
    LATE,
    LONGEST,
    MAX_RESENDS,
    NAMES,
    OUTCOMES,
    PENDING,
    PROCESSED,
    RESENT,
    RULES,
    SECONDS,
    SHORTEST,
    STATE,
    WORDS,
    bucket,
    closes,
    edges,
    ending,
    quantiles,
    state_code,
    transition,
)

# Transitions only go up. The first of the hard states, processed and failed, stands. The soft ends, expired and cancelled, give
# way to a late receipt that would have closed the event in time. "Closes" is whether a device that owed a receipt owes none now.
TABLE = """
level      state      receipt      becomes    outcome    flagged  closes

processed  pending    delivered    delivered  accepted   -        -
processed  pending    processed    processed  accepted   -        closes
processed  pending    failed       failed     accepted   -        closes
processed  delivered  delivered    delivered  duplicate  -        -
processed  delivered  processed    processed  accepted   -        closes
processed  delivered  failed       failed     accepted   -        closes
processed  expired    delivered    expired    duplicate  -        -
processed  expired    processed    processed  late       late     -
processed  expired    failed       failed     late       late     -
processed  cancelled  delivered    cancelled  duplicate  -        -
processed  cancelled  processed    processed  late       late     -
processed  cancelled  failed       failed     late       late     -
processed  processed  delivered    processed  duplicate  -        -
processed  processed  processed    processed  duplicate  -        -
processed  processed  failed       processed  conflict   -        -
processed  failed     delivered    failed     duplicate  -        -
processed  failed     processed    failed     conflict   -        -
processed  failed     failed       failed     duplicate  -        -

delivered  pending    delivered    delivered  accepted   -        closes
delivered  pending    processed    processed  accepted   -        closes
delivered  pending    failed       failed     accepted   -        closes
delivered  delivered  delivered    delivered  duplicate  -        -
delivered  delivered  processed    processed  accepted   -        -
delivered  delivered  failed       failed     accepted   -        -
delivered  expired    delivered    delivered  late       late     -
delivered  expired    processed    processed  late       late     -
delivered  expired    failed       failed     late       late     -
delivered  cancelled  delivered    delivered  late       late     -
delivered  cancelled  processed    processed  late       late     -
delivered  cancelled  failed       failed     late       late     -
delivered  processed  delivered    processed  duplicate  -        -
delivered  processed  processed    processed  duplicate  -        -
delivered  processed  failed       processed  conflict   -        -
delivered  failed     delivered    failed     duplicate  -        -
delivered  failed     processed    failed     conflict   -        -
delivered  failed     failed       failed     duplicate  -        -
"""
ROWS = [line.split() for line in TABLE.splitlines()[2:] if line]
LEVELS = [DELIVERED, PROCESSED]
DAY = 86_400
WORD_CODES = [DELIVERED, PROCESSED, FAILED]


@pytest.mark.parametrize("level, state, receipt, becomes, outcome, flagged, does_close", ROWS, ids=map(" ".join, ROWS))
def test_what_becomes_of_a_receipt(level, state, receipt, becomes, outcome, flagged, does_close):
    old, new = NAMES.index(state), state_code(receipt)
    byte, what = transition(old, new, WORDS[level])
    assert (NAMES[byte & STATE], OUTCOMES[what]) == (becomes, outcome)
    assert byte & LATE == (LATE if flagged == "late" else 0)
    assert RULES[WORDS[level]][new][old] == (byte, what, does_close == "closes", (byte & STATE, what))


def test_the_table_says_of_each_state_what_each_receipt_does_at_each_level():
    assert sorted(row[:3] for row in ROWS) == sorted([level, state, receipt] for level in ("processed", "delivered")
                                                     for state in NAMES for receipt in ("delivered", "processed", "failed"))


@pytest.mark.parametrize("level", LEVELS)
def test_a_receipt_takes_nothing_away_of_how_often_an_event_was_sent_or_that_it_came_late(level):
    for old in range(256):
        for new in WORD_CODES:
            byte, outcome = transition(old, new, level)
            assert byte // RESENT == old // RESENT
            assert byte & LATE >= old & LATE
            assert (byte == old) == (outcome in (DUPLICATE, CONFLICT))


@given(st.sampled_from(range(6)), st.lists(st.sampled_from(WORD_CODES)), st.sampled_from(LEVELS))
def test_the_first_hard_state_stands(byte, words, level):
    first = next((state for state in (byte, *words) if state in (PROCESSED, FAILED)), None)
    for word in words:
        byte, _ = transition(byte, word, level)
    if first is not None:
        assert byte & STATE == first
    else:
        assert byte & STATE not in (PROCESSED, FAILED)


@given(st.sampled_from(range(6)), st.sampled_from(WORD_CODES), st.sampled_from(LEVELS))
def test_the_same_receipt_again_is_a_duplicate_or_the_same_conflict(old, word, level):
    byte, outcome = transition(old, word, level)
    assert transition(byte, word, level) == (byte, CONFLICT if outcome == CONFLICT else DUPLICATE)


def test_who_is_not_in_the_audience_stays_so_whatever_it_says():
    for level in LEVELS:
        for new in WORD_CODES:
            byte, _, closed, _ = RULES[level][new][ABSENT]
            assert (byte, closed) == (ABSENT, False)


def test_the_states_stand_in_the_order_of_their_ranks():
    ranks = {"failed": 4, "processed": 4, "cancelled": 3, "expired": 3, "delivered": 2, "pending": 0}
    assert [ranks[name] for name in NAMES] == sorted(ranks.values())


def test_the_words_of_a_receipt():
    assert (state_code("delivered"), state_code("processed"), state_code("failed")) == (DELIVERED, PROCESSED, FAILED)
    for word in ("pending", "expired", "cancelled", "sent", "Processed", "", "lost"):
        with pytest.raises(BadRequest) as caught:
            state_code(word)
        assert caught.value.code == "bad_state"


# What is done with


def test_what_closes_an_event_depends_on_the_receipt_that_it_asks_for():
    assert [NAMES[state] for state in range(6) if not closes(state, DELIVERED)] == ["pending"]
    assert [NAMES[state] for state in range(6) if not closes(state, PROCESSED)] == ["pending", "delivered"]


@pytest.mark.parametrize("end", [EXPIRED, CANCELLED])
@pytest.mark.parametrize("level", LEVELS)
def test_an_ending_ends_what_is_open_and_nothing_else(level, end):
    column = bytes(byte for byte in range(256) if byte & STATE in (*range(6), ABSENT))
    for old, new in zip(column, column.translate(ending(end, level)), strict=True):
        state = old & STATE
        assert new & ~STATE == old & ~STATE
        assert new & STATE == (end if state == PENDING or (state == DELIVERED and level == PROCESSED) else state)


def test_a_byte_has_room_for_every_state_and_for_sixteen_attempts():
    assert MAX_RESENDS * RESENT | LATE | ABSENT == 255
    assert max(range(6)) < ABSENT


# How long it took


@given(st.floats(SHORTEST, LONGEST))
@example(0.0010104137)
def test_a_latency_is_told_within_five_percent(seconds):
    assert math.isclose(SECONDS[bucket(seconds)], seconds, rel_tol=0.05)


def test_no_bucket_tells_more_than_five_percent_off_even_at_its_edges():
    # Where the bucket changes between two neighbours, the one is told too low and the other too high, both by the most there is.
    steps = [SHORTEST * (LONGEST / SHORTEST) ** (i / 100_000) for i in range(100_001)]
    assert max(abs(SECONDS[bucket(seconds)] / seconds - 1) for seconds in steps) <= 0.05


@pytest.mark.parametrize("seconds, told", [(0.0, 0.0001), (-5.0, 0.0001), (1e-9, 0.0001), (30 * DAY, 30 * DAY), (1e12, 30 * DAY)])
def test_a_latency_beyond_the_scale_is_at_its_end(seconds, told):
    assert math.isclose(SECONDS[bucket(seconds)], told, rel_tol=0.001)


@given(st.floats(-10, 1e8))
@example(SHORTEST)
def test_a_latency_lies_between_the_edges_of_its_bucket(seconds):
    low, high = edges(bucket(seconds))
    assert low <= seconds < high


@given(st.floats(0, 1e8), st.floats(0, 1e8))
def test_a_longer_latency_is_in_no_lower_bucket(one, other):
    shorter, longer = sorted((one, other))
    assert 1 <= bucket(shorter) <= bucket(longer) <= 255


@given(st.lists(st.floats(SHORTEST, LONGEST), min_size=1, max_size=200), st.integers(0, 5))
def test_the_quantiles_are_those_of_the_latencies_that_there_are(latencies, without):
    column = bytes([0] * without + [bucket(seconds) for seconds in latencies])
    told, ordered = quantiles(Counter(filter(None, column)), (0, 0.5, 0.9, 0.99, 1)), sorted(latencies)
    assert list(told) == ["p0", "p50", "p90", "p99", "p100"]
    for name, seconds in told.items():
        rank = min(len(ordered) - 1, int(float(name[1:]) / 100 * len(ordered)))
        assert math.isclose(seconds, ordered[rank], rel_tol=0.05)


def test_where_nothing_was_measured_there_are_no_quantiles():
    assert quantiles({}) == {}


def test_the_quantiles_that_are_told_are_the_middle_and_the_slowest():
    column = bytes([bucket(0.01)] * 98 + [bucket(1.0)] + [bucket(60.0)])
    told = quantiles(Counter(column))
    assert list(told) == ["p50", "p90", "p99"]
    assert (round(told["p50"], 3), round(told["p90"], 3), round(told["p99"])) == (0.01, 0.01, 60)
