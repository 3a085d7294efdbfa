"""Who is registered on a channel; and that no kept event ever shows another device's name."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pere.audience import Audience
from pere.receipt import ABSENT, PENDING

DEVICES = [f"d{number}" for number in range(6)]


class Slots(RuleBasedStateMachine):
    """A channel whose events come and make way while devices come and go. `kept` holds the column of each event beside the names
    of those who were registered when it came, by slot."""

    def __init__(self):
        super().__init__()
        self.audience = Audience()
        self.registered = {}
        self.first, self.last = 1, 0
        self.kept = []

    @rule(device=st.sampled_from(DEVICES))
    def join(self, device):
        member = self.audience.join(device, self.last, self.first, now=0.0)
        assert member.device == device
        assert self.registered.setdefault(device, member) is member

    @rule(device=st.sampled_from(DEVICES))
    def leave(self, device):
        assert self.audience.leave(device, self.last) is self.registered.pop(device, None)

    @rule()
    def an_event_comes(self):
        self.last += 1
        self.kept.append((self.audience.template[:], {member.slot: device for device, member in self.registered.items()}))

    @precondition(lambda self: self.kept)
    @rule()
    def the_oldest_event_makes_way(self):
        self.first += 1
        self.kept.pop(0)

    @invariant()
    def every_kept_event_shows_the_names_of_its_own_audience(self):
        for column, names in self.kept:
            assert {slot: self.audience.names[slot] for slot, byte in enumerate(column) if byte != ABSENT} == names

    @invariant()
    def the_next_event_is_for_those_who_are_registered(self):
        pending = {slot: self.audience.names[slot] for slot, byte in enumerate(self.audience.template) if byte == PENDING}
        assert pending == {member.slot: device for device, member in self.registered.items()}
        assert set(self.audience.template) <= {PENDING, ABSENT}

    @invariant()
    def its_members_are_those_who_are_registered(self):
        assert len(self.audience) == len(self.registered)
        assert list(self.audience) == list(self.audience.members.values())
        assert self.audience.members == self.registered


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=100, stateful_step_count=40)


def test_a_device_begins_at_the_newest_event_and_owes_nothing_of_what_was_before():
    member = Audience().join("d1", position=7, oldest=3, now=100.0)
    assert (member.position, member.settled, member.live, member.last_id) == (7, 7, 0, 0)
    assert (member.since, member.seen, member.answered) == (0.0, 100.0, 0.0)


def test_a_device_that_joins_again_keeps_its_place():
    audience = Audience()
    member = audience.join("d1", 0, 1, now=100.0)
    assert audience.join("d1", position=9, oldest=5, now=200.0) is member
    assert (member.slot, member.position, member.seen) == (0, 0, 100.0)


def test_a_slot_waits_until_no_kept_event_can_mean_the_one_who_had_it():
    audience = Audience()
    left = audience.join("d1", 0, 1, now=0.0).slot
    audience.leave("d1", newest=5)
    assert audience.join("d2", 5, oldest=5, now=0.0).slot != left
    assert audience.join("d3", 5, oldest=6, now=0.0).slot == left


def test_slots_that_were_left_are_given_anew_so_that_columns_do_not_grow_for_ever():
    audience = Audience()
    for ordinal in range(1, 1000):
        audience.join(f"d{ordinal}", ordinal - 1, ordinal, now=0.0)
        audience.leave(f"d{ordinal}", ordinal)
    assert len(audience.template) == len(audience.names) < 4


def test_a_device_that_was_not_registered_cannot_leave():
    audience = Audience()
    assert audience.leave("d1", newest=0) is None
    assert audience.template == b""


def test_those_are_quiet_who_have_no_feed_and_were_not_seen_for_long():
    audience = Audience()
    audience.join("gone", 0, 1, now=99.9)
    audience.join("seen", 0, 1, now=100.0)
    audience.join("answering", 0, 1, now=1.0).answered = 100.0
    audience.join("listening", 0, 1, now=1.0).feeds = 1
    audience.join("listening elsewhere", 0, 1, now=1.0).elsewhere = frozenset(("another node",))
    assert [member.device for member in audience.quiet_since(100.0)] == ["gone"]
