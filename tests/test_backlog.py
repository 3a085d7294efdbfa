"""The backlog against a plain list of the events that it should hold."""

from sys import getrefcount

import made as a
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pere.backlog import Backlog


class AgainstAList(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.backlog = Backlog(max_events=10**9, max_bytes=10**9)
        self.events = []
        self.evicted = []
        self.last_id = 100

    @rule(gaps=st.lists(st.integers(1, 3), min_size=1, max_size=30))
    def append(self, gaps):
        for gap in gaps:
            self.last_id += gap
            event = a.event(self.last_id, self.backlog.last + 1, data=b"x" * gap)
            self.events.append(event)
            self.backlog.append(event)

    @precondition(lambda self: self.events)
    @rule(data=st.data())
    def evict(self, data):
        for _ in range(data.draw(st.integers(1, len(self.events)))):
            assert self.backlog.evict() is self.events[0]
            self.evicted.append(self.events.pop(0))

    @invariant()
    def it_holds_the_events_and_counts_them(self):
        assert list(self.backlog) == self.events
        assert len(self.backlog) == len(self.events)
        assert self.backlog.bytes == sum(event.size for event in self.events)
        assert self.backlog.oldest() is (self.events[0] if self.events else None)
        assert self.backlog.first == len(self.evicted) + 1
        assert self.backlog.last == len(self.evicted) + len(self.events)
        assert self.backlog.evicted_id == (self.evicted[-1].id if self.evicted else 0)

    @invariant()
    def each_is_found_by_its_ordinal(self):
        kept = {event.ordinal: event for event in self.events}
        for ordinal in (*kept, -1, 0, self.backlog.first - 1, self.backlog.last + 1):
            assert self.backlog.at(ordinal) is kept.get(ordinal)

    @rule(data=st.data(), limit=st.integers(0, 5))
    def look_for_an_id(self, data, limit):
        kept = [event.id for event in self.events]
        id = data.draw(st.integers(98, self.last_id + 2) | st.just(0) | st.sampled_from(kept or [1]))
        assert self.backlog.seek(id) == self.backlog.first - 1 + sum(event.id <= id for event in self.events)
        assert self.backlog.find(id) is next((event for event in self.events if event.id == id), None)
        assert self.backlog.after(id, limit) == [event for event in self.events if event.id > id][:limit]


TestAgainstAList = AgainstAList.TestCase
TestAgainstAList.settings = settings(max_examples=50, stateful_step_count=25)


def backlog_of(count: int, max_events: int = 1000, max_bytes: int = 10**6) -> Backlog:
    backlog = Backlog(max_events, max_bytes)
    for ordinal in range(1, count + 1):
        backlog.append(a.event(ordinal))
    return backlog


def test_a_backlog_is_over_when_it_holds_one_more_than_it_may():
    assert not backlog_of(3, max_events=3).is_over()
    backlog = backlog_of(4, max_events=3)
    assert backlog.is_over()
    backlog.evict()
    assert not backlog.is_over()


def test_a_backlog_is_over_when_its_events_weigh_more_than_they_may():
    weight = a.event().size
    assert not backlog_of(3, max_bytes=3 * weight).is_over()
    assert backlog_of(3, max_bytes=3 * weight - 1).is_over()


def test_one_event_always_has_its_place():
    assert not backlog_of(1, max_events=1, max_bytes=1).is_over()
    assert not backlog_of(0, max_events=1, max_bytes=1).is_over()
    assert backlog_of(2, max_events=9, max_bytes=1).is_over()


@pytest.mark.parametrize("count", [0, 5])
def test_there_is_nothing_to_let_go_of_an_empty_backlog(count):
    backlog = backlog_of(count)
    for _ in range(count):
        backlog.evict()
    with pytest.raises((AssertionError, IndexError)):
        backlog.evict()
    assert (len(backlog), backlog.first, backlog.last, backlog.bytes) == (0, count + 1, count, 0)


def test_an_event_that_was_evicted_is_let_go_at_once():
    backlog = backlog_of(5)
    event, other = backlog.evict(), a.event()
    assert getrefcount(event) == getrefcount(other)


def test_what_was_evicted_takes_no_room_for_long():
    backlog = backlog_of(1)
    for ordinal in range(2, 10_000):
        backlog.append(a.event(ordinal))
        backlog.evict()
    assert sum(getattr(backlog, name).__sizeof__() for name in Backlog.__slots__) < 10_000


def test_what_was_taken_back_is_known_in_the_order_in_which_it_came_and_as_long_as_it_is_kept():
    backlog = backlog_of(5)
    for ordinal in (4, 2, 5):
        backlog.recall(backlog.at(ordinal))
    backlog.recall(backlog.at(2))
    assert backlog.recalled == [2, 4, 5]
    backlog.evict()
    backlog.evict()
    assert backlog.recalled == [4, 5]


def test_what_was_taken_back_before_it_came_here_is_known_too():
    backlog = backlog_of(2)
    event = a.event(3)
    event.recalled = True
    backlog.append(event)
    assert backlog.recalled == [3]
