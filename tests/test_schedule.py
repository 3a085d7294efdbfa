"""The schedule against a plain dict of deadlines."""

import math
from itertools import chain
from sys import getsizeof

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pere.schedule import Schedule

# Close together, so that many share a second.
DEADLINES = st.floats(0, 12) | st.integers(0, 12).map(float)


class AgainstADict(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.schedule = Schedule()
        self.deadlines = {}
        self.items = 0

    @rule(deadlines=st.lists(DEADLINES, min_size=1, max_size=8))
    def add(self, deadlines):
        for deadline in deadlines:
            self.items += 1
            self.deadlines[self.items] = deadline
            self.schedule.add(self.items, deadline)

    @rule(data=st.data())
    def remove(self, data):
        if self.deadlines:
            item = data.draw(st.sampled_from(list(self.deadlines)))
            self.schedule.remove(item, self.deadlines.pop(item))

    @rule(deadline=DEADLINES)
    def remove_what_is_not_there(self, deadline):
        self.schedule.remove("a stranger", deadline)

    @rule(now=st.floats(0, 14), limit=st.integers(1, 5))
    def take_what_is_due(self, now, limit):
        due = [item for item, deadline in self.deadlines.items() if math.ceil(deadline) <= now]
        found = self.schedule.due(now, limit)
        assert len(found) == min(limit, len(due))
        assert set(found) <= set(due)
        for item in found:
            del self.deadlines[item]  # none comes twice

    @invariant()
    def it_holds_as_many(self):
        assert len(self.schedule) == len(self.deadlines)


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(max_examples=100, stateful_step_count=30)


@given(st.lists(DEADLINES, unique=True))
def test_what_is_due_comes_second_by_second_and_never_early(deadlines):
    schedule = Schedule()
    for deadline in deadlines:
        schedule.add(deadline, deadline)
    for now in range(14):
        assert sorted(schedule.due(float(now))) == sorted(deadline for deadline in deadlines if now - 1 < deadline <= now)


def test_the_earlier_second_comes_first():
    schedule = Schedule()
    for item, deadline in (("c", 30.0), ("a", 10.0), ("b", 20.0)):
        schedule.add(item, deadline)
    assert schedule.due(100.0) == ["a", "b", "c"]


@pytest.mark.parametrize("deadline", [10.0, 9.1, 9.999])
def test_an_item_is_due_at_the_next_whole_second(deadline):
    schedule = Schedule()
    schedule.add("event", deadline)
    assert schedule.due(9.999) == []
    assert schedule.due(10.0) == ["event"]
    assert schedule.due(10.0) == []


def test_what_does_not_fit_into_the_limit_comes_next_time():
    schedule = Schedule()
    for item in range(25):
        schedule.add(item, item / 10)
    rounds = [schedule.due(100.0, limit=10) for _ in range(4)]
    assert list(map(len, rounds)) == [10, 10, 5, 0]
    assert sorted(chain(*rounds)) == list(range(25))


def test_what_makes_way_before_its_time_leaves_nothing_behind():
    schedule = Schedule()
    for item in range(20_000):
        schedule.add(item, float(item))
        schedule.remove(item, float(item))
    assert len(schedule) == 0
    assert sum(getsizeof(getattr(schedule, name)) for name in Schedule.__slots__) < 10_000
    schedule.add("event", 5.0)
    assert schedule.due(30_000.0) == ["event"]


def test_a_second_that_was_emptied_can_be_used_again():
    schedule = Schedule()
    for item in ("first", "second"):
        schedule.add(item, 5.0)
        schedule.remove(item, 5.0)
    schedule.add("third", 5.0)
    schedule.add("fourth", 6.0)
    assert schedule.due(5.0) == ["third"]
    assert schedule.due(6.0) == ["fourth"]
