"""How much one client may ask for: the rules alone, which are handed the time."""

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pere.errors import ConfigError
from pere.limits import CONNECTS, PUSHES, RECEIPTS, WORDS, Account, Accounts, Brought, Rate, Subjects, client_of, has_room


def accounts(per_second=10.0, burst=5, **more):
    return Accounts([Rate(per_second, burst)] * len(WORDS), **more)


def subjects(per_second=10.0, burst=5, **more):
    return Subjects([Rate(per_second, burst)] * len(WORDS), **more)


# A bucket


def test_so_many_at_once_and_then_so_many_a_second():
    all = accounts(per_second=10, burst=5)
    one = all.of("a", 100.0)
    assert [all.take(one.full, PUSHES, 100.0) for _ in range(5)] == [0.0] * 5
    assert all.take(one.full, PUSHES, 100.0) == pytest.approx(0.1)
    assert all.take(one.full, PUSHES, 100.05) == pytest.approx(0.05)
    assert all.take(one.full, PUSHES, 100.1001) == 0.0
    assert all.take(one.full, PUSHES, 100.1001) > 0


def test_the_wait_that_is_told_is_enough_and_no_less_would_be():
    all = accounts(per_second=3, burst=7)
    one = all.of("a", 0.0)
    assert all.take(one.full, RECEIPTS, 0.0, 7) == 0
    wait = all.take(one.full, RECEIPTS, 0.0, 4)
    assert wait == pytest.approx(4 / 3)
    assert all.take(one.full, RECEIPTS, wait - 0.001, 4) > 0
    assert all.take(one.full, RECEIPTS, wait + 1e-6, 4) == 0


def test_what_is_refused_is_not_taken():
    all = accounts(per_second=1, burst=2)
    one = all.of("a", 0.0)
    assert all.take(one.full, PUSHES, 0.0, 2) == 0
    for _ in range(100):
        assert all.take(one.full, PUSHES, 0.5) == pytest.approx(0.5)
    assert all.take(one.full, PUSHES, 1.0) == 0


@pytest.mark.parametrize("count", [30_000, 30_001, 10**9])
def test_a_whole_bucket_can_be_taken_at_once_and_is_all_that_is_taken_for_more(count):
    rate, now = Rate(1000, 30_000), 86_400.123
    full, wait = rate.take(0.0, now, count)
    assert (full, wait) == (pytest.approx(now + 30), 0.0)
    assert rate.take(full, now, 1)[1] == pytest.approx(0.001)
    assert rate.take(full, now + 15, count) == (full, pytest.approx(15))


def test_each_kind_has_a_bucket_of_its_own_and_so_has_each_client():
    all = accounts(per_second=1, burst=1)
    one, other = all.of("a", 0.0), all.of("b", 0.0)
    assert all.take(one.full, PUSHES, 0.0) == 0
    assert all.take(one.full, PUSHES, 0.0) > 0
    assert all.take(one.full, RECEIPTS, 0.0) == 0
    assert all.take(other.full, PUSHES, 0.0) == 0


def test_where_there_is_no_rate_there_is_no_limit():
    all = Accounts([None] * len(WORDS))
    one = all.of("a", 0.0)
    assert all.take(one.full, PUSHES, 0.0, sys.maxsize) == 0
    assert one.is_idle(0.0)


steps = st.lists(st.tuples(st.floats(0, 3), st.integers(1, 6)), max_size=80)
rates = st.tuples(st.floats(0.1, 1000), st.integers(1, 50))


@given(rates, steps)
def test_in_no_time_is_more_given_than_the_burst_and_the_rate_over_that_time(rate, asked):
    per_second, burst = rate
    all = accounts(per_second, burst)
    one, now, given = all.of("a", 0.0), 1000.0, []
    for step, count in asked:
        now += step
        if not all.take(one.full, PUSHES, now, count):
            given.append((now, min(count, burst)))
    for start in range(len(given)):
        taken = 0
        for end in range(start, len(given)):
            taken += given[end][1]
            assert taken <= burst + per_second * (given[end][0] - given[start][0]) + 1e-3


@given(rates, steps)
def test_whoever_keeps_to_the_rate_is_never_refused(rate, asked):
    per_second, burst = rate
    all = accounts(per_second, burst)
    one, now = all.of("a", 0.0), 1000.0
    for _, count in asked:
        count = min(count, burst)
        now += count / per_second
        assert all.take(one.full, PUSHES, now, count) == 0


@given(rates, st.lists(st.tuples(st.one_of(st.floats(-1e9, 1e9), st.floats(-1, 1)), st.integers(1, 6)), max_size=80))
def test_a_clock_that_jumps_gives_no_more_than_its_way_forward_and_refuses_nobody_for_longer_than_a_bucket_takes_to_fill(rate, asked):
    per_second, burst = rate
    all = accounts(per_second, burst)
    one, now, taken, forward = all.of("a", 0.0), 0.0, 0, 0.0
    for step, count in asked:
        now, forward = now + step, forward + max(step, 0.0)
        wait = all.take(one.full, PUSHES, now, count)
        assert wait <= count / per_second + 1e-3
        taken += 0 if wait else min(count, burst)
        # A float of a billion seconds is good to a tenth of a microsecond, over each step.
        assert taken <= burst + per_second * forward + 0.01 + len(asked) * per_second * 1e-6
    assert all.take(one.full, PUSHES, now + burst / per_second + 1e-3, burst) == 0


# Who is remembered


def test_a_hundred_thousand_addresses_that_ask_once_are_not_kept():
    all = accounts(per_second=1000, burst=100)
    most = 0
    for n in range(100_000):
        now = n / 30_000
        all.take(all.of(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", now).full, CONNECTS, now)
        most = max(most, len(all.known))
    assert most < 1000


def test_no_flood_of_strangers_makes_us_forget_what_somebody_has_used():
    all = accounts(per_second=1, burst=10, most=1000)
    victim = all.of("victim", 0.0)
    assert all.take(victim.full, PUSHES, 0.0, 10) == 0
    for n in range(100_000):
        all.take(all.of(f"stranger {n}", 0.001).full, PUSHES, 0.001)
        assert len(all.known) <= 1000
    assert all.of("victim", 0.002) is victim
    assert all.take(victim.full, PUSHES, 0.002) > 0


def test_those_who_find_no_place_share_one_account_and_have_their_own_again_later():
    all = accounts(per_second=1, burst=2, most=3)
    for n in range(3):
        all.take(all.of(str(n), 0.0).full, PUSHES, 0.0)
    late, later = all.of("late", 0.0), all.of("later", 0.0)
    assert late is later
    assert all.take(late.full, PUSHES, 0.0, 2) == 0
    assert all.take(later.full, PUSHES, 0.0) > 0
    assert all.of("later", 1.5) is not late
    assert all.take(all.of("later", 1.5).full, PUSHES, 1.5, 2) == 0


@pytest.mark.parametrize("held", ["connections", "feeds"])
def test_who_holds_something_is_remembered_as_long_as_that_lasts(held):
    all = accounts()
    one = all.of("a", 0.0)
    setattr(one, held, 1)
    all.clear(1e6, 10)
    assert all.of("a", 1e6) is one
    setattr(one, held, 0)
    all.clear(1e6, 10)
    assert all.known == {}


def test_clearing_looks_at_all_in_turn():
    all = accounts()
    for n in range(100):
        all.of(str(n), 0.0).connections = n % 2
    for _ in range(10):
        all.clear(1.0, 10)
    assert sorted(map(int, all.known)) == list(range(1, 100, 2))


def test_who_has_kept_the_buckets_of_an_account_that_was_cleared_away_finds_nothing_in_them():
    all = subjects()
    buckets = all.of("a", 0.0)
    all.clear(100.0, 1)
    assert all.known == {}
    assert buckets == [math.inf] * len(WORDS)
    assert all.of("a", 100.0) == [0.0] * len(WORDS)


def test_what_a_subject_has_taken_lingers_when_it_is_idle():
    all = subjects(linger=60)
    all.take(all.of("a", 0.0), PUSHES, 0.0)
    all.clear(59.0, 1)
    assert "a" in all.known
    all.clear(61.0, 1)
    assert "a" not in all.known


def test_no_subject_makes_way_before_half_of_all_that_may_be_kept_are():
    all = subjects(linger=60, most=10)
    for n in range(5):
        all.of(str(n), 0.0)
    all.of("4", 1000.0)
    assert len(all.known) == 5
    all.of("5", 1000.0)
    assert len(all.known) < 5


def test_an_account_that_used_nothing_is_idle():
    assert Account().is_idle(0.0)


# Shares


def test_one_who_takes_all_he_can_gets_half_and_two_a_third_each():
    own = 0
    while has_room(own, own, 1000, 0):
        own += 1
    assert own == 500
    one = other = 0
    while has_room(one, one + other, 999, 0) or has_room(other, one + other, 999, 0):
        one += has_room(one, one + other, 999, 0)
        other += has_room(other, one + other, 999, 0)
    assert (one, other) == (333, 333)


def test_a_greedy_client_leaves_room_for_a_small_one():
    greedy = 0
    while has_room(greedy, greedy, 1000, 0):
        greedy += 1
    for own in range(100):
        assert has_room(own, greedy + own, 1000, 0)
        assert not has_room(greedy, greedy + own, 1000, 0)


def test_a_share_can_be_a_number():
    assert has_room(9, 9, 1000, 10) and not has_room(10, 10, 1000, 10)
    assert has_room(900, 950, 1000, 901)  # which may be more than is left for the others
    assert not has_room(0, 1000, 1000, 10)


# Words


@pytest.mark.parametrize("text, interval, burst", [("100/500", 0.01, 500), ("0.5/1", 2.0, 1), ("1000/30000", 0.001, 30_000)])
def test_a_rate_is_read(text, interval, burst):
    rate = Rate.read(text)
    assert rate is not None and (rate.interval, rate.burst) == (pytest.approx(interval), burst)


def test_0_is_no_limit():
    assert Rate.read("0") is None


@pytest.mark.parametrize("text", ["", "100", "100/", "/5", "0/5", "5/0", "-1/5", "1e3/5", "100/5.5", "100/500/1", "nan/5", " 1/1", "99999999/1", "1/1\n", "١/1"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(ConfigError, match="a rate is so many a second"):
        Rate.read(text)


@pytest.mark.parametrize("address, client", [
    ("192.0.2.1", "192.0.2.1"),
    ("::ffff:192.0.2.1", "192.0.2.1"),
    ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
    ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
    ("fe80::1%eth0", "fe80::/64"),
    ("unix:", "unix:"),
])
def test_an_address_stands_for_a_client(address, client):
    assert client_of(address) == client


# What a subject has brought into being


def test_what_is_not_there_any_more_counts_for_nobody():
    brought, there = Brought(), {"a", "b", "c", "d"}
    brought.is_there = there.__contains__
    brought.note("shop", "abc")
    brought.note("other", "d")
    there -= {"a", "c"}
    brought.clear(1)
    assert brought.counts == {"shop": 2, "other": 1}
    brought.clear(100)
    assert brought.counts == {"shop": 1, "other": 1}
    brought.note("other", "b")  # it was there no more when somebody else brought it anew
    assert brought.counts == {"other": 2}
    there.clear()
    brought.clear(100)
    assert not brought.counts


def test_to_note_more_looks_at_what_was_noted_before():
    brought = Brought()
    brought.is_there = lambda channel: False
    for number in range(1_000):
        brought.note("shop", [f"c{number}"])
        assert brought.counts["shop"] == 1


def test_to_note_many_at_once_looks_at_as_many_as_to_note_them_one_by_one():
    brought = Brought()
    brought.is_there = lambda channel: channel.startswith("new")
    for age in ("old", "new"):
        brought.note("shop", [f"{age}{number}" for number in range(100)])
    assert brought.counts["shop"] == 100


def test_who_takes_all_he_can_in_several_lives_or_by_several_nodes_leaves_room_for_others():
    most = 1_000_000

    def greedy(taken):
        own = 0
        while has_room(own, taken + own, most, 0):
            own += 1
        return own

    taken = 0
    for life in range(1, 6):
        taken += greedy(taken)
        assert most - taken == most >> life
