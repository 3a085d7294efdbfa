"""The ledger against a plain dict of who said what; and what it tells, to the publisher and to metrics."""

import math

import made as a
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from made import NOW
from model import answered, owes

from pere.audience import Audience
from pere.errors import BadRequest, NotFound
from pere.event import LEVELS
from pere.ledger import Ledger, needed
from pere.receipt import CANCELLED, CONFLICT, DELIVERED, DUPLICATE, EXPIRED, FAILED, FIRST, LATE_FIRST, NAMES, OUTCOMES, PROCESSED, SECONDS, state_code


def cancel(ledger, id, device):
    """As a store does when a device is removed."""
    entry = ledger.entries.get(id)
    if entry is not None and (slot := entry.slot(device)) >= 0:
        ledger.end(entry, slot, CANCELLED)


class Told:
    """What is known of one device and one event."""

    def __init__(self):
        self.state, self.late, self.resends, self.status, self.latency = "pending", False, 0, None, None

    def as_tuple(self):
        return self.state, self.late, self.resends, self.status


class Entered:
    """One event: what is known of each device, and by which registration it may answer (None where it is addressed by name)."""

    def __init__(self, event, level, need, registrations):
        self.event, self.level, self.need, self.registrations = event, level, need, registrations
        self.satisfied = False
        self.told = {device: Told() for device in registrations}

    def owing(self):
        return [told for told in self.told.values() if owes(told.state, self.level)]

    def end(self, told, state):
        if owes(told.state, self.level):
            told.state = state


MAX_ATTEMPTS = 3
DEVICES = st.sampled_from(["d1", "d2", "d3", "d4"])


class AgainstADict(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        self.audience = Audience()
        self.now = NOW
        self.last = 0
        self.first = 1
        self.registered = {}
        self.kept = {}
        self.tally = {state: dict.fromkeys(OUTCOMES, 0) for state in NAMES}
        self.expired = {"ttl": 0, "evicted": 0, "attempts": 0}

    def may_answer(self, entered, device):
        registration = entered.registrations.get(device, "none")
        return registration is None or registration is self.registered.get(device)

    @rule(device=DEVICES)
    def register(self, device):
        self.audience.join(device, self.last, self.first, self.now)
        self.registered.setdefault(device, object())

    @rule(device=DEVICES)
    def leave(self, device):
        if device not in self.registered:
            return
        for id, entered in self.kept.items():
            cancel(self.ledger, id, device)
            if self.may_answer(entered, device):
                entered.end(entered.told[device], "cancelled")
        self.audience.leave(device, self.last)
        del self.registered[device]

    @rule(level=st.sampled_from(["delivered", "processed"]), to=st.none() | st.sets(DEVICES, min_size=1),
          need=st.sampled_from([None, 0, "50%"]))
    def push(self, level, to, need):
        self.last += 1
        event = a.event(self.last, now=self.now, level=LEVELS[level], to=tuple(to or ()))
        self.ledger.decide(self.ledger.open(event, self.audience, need), event.time)
        registrations = dict.fromkeys(to) if to else dict(self.registered)
        count = {None: len(registrations), 0: 0, "50%": math.ceil(len(registrations) / 2)}[need]
        self.kept[event.id] = Entered(event, level, count, registrations)

    @rule()
    def push_without_receipts(self):
        self.last += 1
        assert self.ledger.open(a.event(self.last, level=LEVELS["none"]), self.audience, None) is None
        assert self.last not in self.ledger

    @rule(data=st.data(), device=DEVICES, word=st.sampled_from(["delivered", "processed", "failed"]),
          status=st.none() | st.sampled_from([b'"fine"', b'"paper jam"']), after=st.floats(0, 100))
    def answer(self, data, device, word, status, after):
        id = data.draw(st.sampled_from([*self.kept, self.last + 1]))
        self.now += after
        entered = self.kept.get(id)
        if entered is None or not self.may_answer(entered, device):
            with pytest.raises(NotFound):
                self.ledger.record(id, None, device, state_code(word), status, self.now)
            return
        told = entered.told[device]
        state, outcome = answered(told.state, word, entered.level)
        stands, what = self.ledger.record(id, "c", device, state_code(word), status, self.now)
        assert (NAMES[stands], OUTCOMES[what]) == (state, outcome)
        self.tally[word][outcome] += 1
        if outcome in ("accepted", "late"):
            told.state, told.late = state, told.late or outcome == "late"
            told.status = status or told.status
            told.latency = self.now - entered.event.time if told.latency is None else told.latency

    @precondition(lambda self: any(entered.owing() for entered in self.kept.values()))
    @rule(data=st.data())
    def send_again(self, data):
        id = data.draw(st.sampled_from([id for id, entered in self.kept.items() if entered.owing()]))
        entered, entry = self.kept[id], self.ledger.entries[id]
        line = data.draw(st.sampled_from([line for line in entry.lines() if owes(NAMES[line.state], entered.level)]))
        told = entered.told[line.device]
        attempt = self.ledger.resend(entry, line.slot, MAX_ATTEMPTS)
        if told.resends + 1 == MAX_ATTEMPTS:
            assert attempt == 0
            self.ledger.end(entry, line.slot, EXPIRED)
            told.state = "expired"
            self.expired["attempts"] += 1
        else:
            told.resends += 1
            assert attempt == 1 + told.resends

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def expire(self, data):
        id = data.draw(st.sampled_from(list(self.kept)))
        owing = self.kept[id].owing()
        assert self.ledger.expire(id, "ttl") == len(owing)
        self.expired["ttl"] += len(owing)
        for told in owing:
            told.state = "expired"

    @precondition(lambda self: self.kept)
    @rule()
    def let_the_oldest_go(self):
        id = next(iter(self.kept))
        owing = self.kept.pop(id).owing()
        assert self.ledger.drop(id) == len(owing)
        self.expired["evicted"] += len(owing)
        self.first = id + 1

    @invariant()
    def the_counts_add_up_to_the_audience(self):
        assert list(self.ledger.entries) == list(self.kept)
        for id, entered in self.kept.items():
            entry = self.ledger.entries[id]
            states = [told.state for told in entered.told.values()]
            assert entry.counts == [states.count(state) for state in NAMES]
            assert sum(entry.counts) == entry.size == len(entered.told)

    @invariant()
    def what_is_outstanding_is_what_is_owed(self):
        owing = {id: len(entered.owing()) for id, entered in self.kept.items()}
        assert self.ledger.outstanding == sum(owing.values())
        assert owing == {id: entry.owed for id, entry in self.ledger.entries.items()}
        oldest = self.ledger.oldest_open()
        assert (oldest.event.id if oldest is not None else None) == next((id for id, count in owing.items() if count), None)

    @invariant()
    def every_device_is_told_by_its_name(self):
        for id, entered in self.kept.items():
            lines = list(self.ledger.entries[id].lines())
            assert [line.slot for line in lines] == sorted({line.slot for line in lines})
            assert {line.device: (NAMES[line.state], line.late, line.resends, line.status) for line in lines} == \
                {device: told.as_tuple() for device, told in entered.told.items()}
            for line in lines:
                latency = entered.told[line.device].latency
                assert (line.latency is None) == (latency is None)
                assert latency is None or math.isclose(line.latency, latency, rel_tol=0.05, abs_tol=1e-4)

    @invariant()
    def an_event_is_satisfied_and_complete_as_its_devices_say(self):
        for id, entered in self.kept.items():
            states = [told.state for told in entered.told.values()]
            good = states.count("processed") + (states.count("delivered") if entered.level == "delivered" else 0)
            entry = self.ledger.entries[id]
            entered.satisfied |= good >= entered.need
            assert entry.is_satisfied == entered.satisfied
            assert entry.is_complete == (good + states.count("failed") == len(states))

    @invariant()
    def the_tallies_are_what_happened(self):
        assert self.ledger.receipts == [list(self.tally[state].values()) for state in NAMES]
        assert self.ledger.expired == self.expired


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(max_examples=100, stateful_step_count=40)


# One event, told as a story


def opened(*devices: str, need: int | str | None = None, ledger: Ledger | None = None, to: tuple[str, ...] = ()):
    """A ledger with one event, 1, for these devices, and its entry."""
    ledger, audience = ledger or Ledger(), Audience()
    for device in devices:
        audience.join(device, 0, 1, NOW - 100)
    return ledger, ledger.open(a.event(1, to=to), audience, need)


def test_a_receipt_is_entered_and_told():
    ledger, entry = opened("d1", "d2")
    assert ledger.record(1, "c", "d1", DELIVERED, None, NOW + 1) == (DELIVERED, FIRST)
    assert ledger.record(1, "c", "d1", PROCESSED, b'"printed"', NOW + 2) == (PROCESSED, FIRST)
    assert ledger.record(1, "c", "d1", PROCESSED, b'"again"', NOW + 3) == (PROCESSED, DUPLICATE)
    assert ledger.record(1, "c", "d1", FAILED, b'"burnt"', NOW + 4) == (PROCESSED, CONFLICT)
    first, second = entry.lines()
    assert (first.device, first.state, first.status, second.device, second.state) == ("d1", PROCESSED, b'"printed"', "d2", 0)
    assert math.isclose(first.latency, 1.0, rel_tol=0.05)  # the first time stands
    assert second.latency is None


def test_nobody_learns_whether_it_is_the_event_or_the_device_that_is_unknown():
    ledger, _ = opened("d1")
    answers = set()
    for id, channel, device in ((2, "c", "d1"), (1, "c", "d2"), (1, "another", "d1"), (1, None, "d2")):
        with pytest.raises(NotFound) as caught:
            ledger.record(id, channel, device, PROCESSED, None, NOW)
        answers.add(caught.value.body())
    assert len(answers) == 1
    assert orjson.loads(answers.pop())["error"] == "unknown_event"


def test_a_receipt_need_not_name_the_channel():
    ledger, _ = opened("d1")
    assert ledger.record(1, None, "d1", PROCESSED, None, NOW) == (PROCESSED, FIRST)


def test_who_registers_later_is_not_in_the_audience():
    ledger, entry = opened("d1")
    entry.audience.join("d2", 1, 1, NOW)
    with pytest.raises(NotFound):
        ledger.record(1, "c", "d2", PROCESSED, None, NOW)
    assert [line.device for line in entry.lines()] == ["d1"]


def test_an_event_with_to_is_for_the_named_ones_registered_or_not():
    ledger, entry = opened("d1", "d2", to=("d9", "d2"))
    assert [line.device for line in entry.lines()] == ["d2", "d9"]
    assert ledger.record(1, "c", "d9", PROCESSED, None, NOW) == (PROCESSED, FIRST)
    with pytest.raises(NotFound):
        ledger.record(1, "c", "d1", PROCESSED, None, NOW)


def test_who_was_named_and_is_cancelled_owes_nothing_registered_or_not():
    ledger, entry = opened("d1", "d2", to=("d2", "d9"))
    for device, left in (("d1", 2), ("d9", 1), ("d2", 0)):
        cancel(ledger, 1, device)
        assert (ledger.outstanding, entry.owed) == (left, left)


def test_a_receipt_after_the_end_wins_and_is_told_as_late():
    ledger, entry = opened("d1", "d2")
    assert ledger.expire(1, "ttl") == 2
    assert ledger.record(1, "c", "d1", FAILED, None, NOW + 9) == (FAILED, LATE_FIRST)
    assert [line.late for line in entry.lines()] == [True, False]
    assert ledger.outstanding == 0
    assert ledger.expire(1, "ttl") == 0


def test_a_receipt_is_a_sign_of_life():
    ledger, entry = opened("d1")
    ledger.record(1, "c", "d1", PROCESSED, None, NOW + 7)
    member = entry.audience.members["d1"]
    assert (member.last_id, member.answered) == (1, NOW + 7)


def test_every_change_that_can_be_seen_moves_the_version():
    ledger, entry = opened("d1", "d2", "d3")
    versions = [entry.version]
    for change in (lambda: ledger.record(1, "c", "d1", DELIVERED, None, NOW),
                   lambda: ledger.record(1, "c", "d1", PROCESSED, None, NOW),
                   lambda: ledger.resend(entry, 1, 5),
                   lambda: cancel(ledger, 1, "d2"),
                   lambda: ledger.expire(1, "ttl")):
        change()
        versions.append(entry.version)
    assert versions == sorted(set(versions))
    ledger.record(1, "c", "d1", PROCESSED, None, NOW)
    cancel(ledger, 1, "d2")
    ledger.expire(1, "ttl")
    assert entry.version == versions[-1]


def test_who_is_taken_into_the_audience_later_has_a_place_in_every_column():
    ledger, entry = opened("d1")
    ledger.record(1, "c", "d1", PROCESSED, b'"printed"', NOW + 1)
    assert entry.is_complete
    entry.audience.join("d2", 0, 1, NOW)
    ledger.admit(entry, 1)
    assert (entry.is_complete, entry.size, ledger.outstanding, ledger.oldest_open()) == (False, 2, 1, entry)
    ledger.record(1, "c", "d2", PROCESSED, b'"printed too"', NOW + 60)
    assert [line.status for line in entry.lines()] == [b'"printed"', b'"printed too"']
    assert [round(line.latency) for line in entry.lines()] == [1, 60]
    assert entry.is_complete


def test_a_recall_of_which_nothing_was_owed_any_more_can_be_seen_too():
    ledger, entry = opened("d1")
    ledger.record(1, "c", "d1", PROCESSED, None, NOW)
    before, seen = entry.version, []
    entry.watch(lambda: seen.append(entry.version))
    assert ledger.recall(1) == 0
    assert seen == [entry.version] and entry.version > before


def test_who_watches_an_event_is_told_when_it_is_forgotten():
    ledger, entry = opened("d1")
    ledger.record(1, "c", "d1", PROCESSED, None, NOW)
    seen = []
    entry.watch(lambda: seen.append(1 in ledger))
    assert ledger.drop(1) == 0
    assert seen == [False]


def test_an_entry_that_is_kept_elsewhere_is_neither_open_nor_weighed_until_it_is_back():
    ledger, entry = opened("d1", "d2")
    ledger.record(1, "c", "d1", DELIVERED, b'"working on it"', NOW)
    weight = ledger.bytes
    assert weight > len(b'"working on it"')
    ledger.unload(1)
    assert (1 in ledger, ledger.oldest_open(), ledger.bytes, ledger.outstanding) == (False, None, 0, 2)
    ledger.restore(entry)
    assert (1 in ledger, ledger.oldest_open(), ledger.bytes, ledger.outstanding) == (True, entry, weight, 2)


def test_of_many_receipts_each_is_found_where_its_device_stands_on_the_channel_of_its_event():
    ledger, audiences = Ledger(), {"c": Audience(), "other": Audience()}
    for channel, devices in (("c", ("d1", "d2")), ("other", ("d2", "d1"))):
        for device in devices:
            audiences[channel].join(device, 0, 1, NOW)
    for id, channel in ((1, "c"), (2, "other")):
        ledger.open(a.event(id, channel=channel), audiences[channel], None)
    rows, missing = ledger.find_many([("d1", 1, PROCESSED, None, None, None), ("d1", 2, PROCESSED, None, None, None)], NOW)
    assert ([slot for _, _, slot, *_ in rows], missing) == ([0, 1], [])


def test_what_is_not_in_the_ledger_has_no_end():
    ledger, _ = opened("d1")
    cancel(ledger, 2, "d1")
    cancel(ledger, 1, "d2")
    assert (ledger.expire(2, "ttl"), ledger.drop(2)) == (0, 0)
    assert 1 in ledger and 2 not in ledger
    assert ledger.outstanding == 1


def test_lines_can_be_read_on_from_a_slot_while_receipts_come_in():
    ledger, entry = opened("d1", "d2", "d3", "d4")
    page = [line.device for line in entry.lines()][:2]
    ledger.record(1, "c", "d1", PROCESSED, None, NOW)
    assert page + [line.device for line in entry.lines(2)] == ["d1", "d2", "d3", "d4"]


@pytest.mark.parametrize("max_attempts, sends", [(1, 1), (5, 5), (15, 15), (16, 16), (99, 16)])
def test_an_event_is_sent_to_a_device_so_many_times_and_then_given_up(max_attempts, sends):
    ledger, entry = opened("d1")
    attempts = [1]
    while attempt := ledger.resend(entry, 0, max_attempts):
        attempts.append(attempt)
    assert attempts == list(range(1, sends + 1))
    ledger.end(entry, 0, EXPIRED)
    assert not ledger.is_open(entry, 0)
    assert ledger.expired["attempts"] == 1


# How much it takes


@pytest.mark.parametrize("need, audience, count", [
    (None, 7, 7), ("all", 7, 7), (3, 7, 3), ("3", 7, 3), (0, 7, 0), (7, 7, 7), ("100%", 7, 7), ("0%", 7, 0),
    ("90%", 10, 9), ("90%", 11, 10), ("1%", 7, 1), ("33%", 3, 1), ("34%", 3, 2), ("70%", 10, 7), ("57%", 100, 57),
    ("all", 0, 0), ("50%", 0, 0),
])
def test_how_many_receipts_satisfy(need, audience, count):
    assert needed(need, audience) == count


def test_a_percentage_is_rounded_up_to_whole_devices():
    for audience in range(300):
        for percent in range(101):
            assert needed(f"{percent}%", audience) == -(-audience * percent // 100)


@pytest.mark.parametrize("need, code", [
    (8, "need_over_audience"), ("8", "need_over_audience"),
    *((need, "bad_need") for need in ("101%", -1, "", "%", "some", "5.5", 5.5, True, "90 %", "-5%", "All", "9" * 10, "9" * 5000,
                                      "\N{ARABIC-INDIC DIGIT THREE}")),
])
def test_a_need_that_cannot_be_is_refused_and_nothing_is_entered(need, code):
    ledger = Ledger()
    with pytest.raises(BadRequest) as caught:
        opened(*(f"d{number}" for number in range(7)), need=need, ledger=ledger)
    assert caught.value.code == code
    assert len(caught.value.message) < 200
    assert (ledger.entries, ledger.outstanding) == ({}, 0)


# What devices say


def test_a_saying_is_kept_once_however_many_say_it():
    ledger, entry = opened("d1", "d2", "d3")
    for device, status in (("d1", b'"fine"'), ("d2", b'"paper jam"'), ("d3", bytes(bytearray(b'"fine"')))):
        ledger.record(1, "c", device, PROCESSED, status, NOW)
    first, second, third = entry.lines()
    assert (first.status, second.status) == (b'"fine"', b'"paper jam"')
    assert third.status is first.status


def test_a_device_that_says_nothing_more_keeps_what_it_said():
    ledger, entry = opened("d1")
    ledger.record(1, "c", "d1", DELIVERED, b'"unpacking"', NOW)
    ledger.record(1, "c", "d1", PROCESSED, None, NOW)
    assert next(entry.lines()).status == b'"unpacking"'


def test_sayings_beyond_their_limit_are_dropped_and_counted_and_the_receipt_stands():
    ledger, entry = opened("d1", "d2", "d3", "d4", ledger=Ledger(max_status_bytes=8))
    for device, status in (("d1", b'"fine"'), ("d2", b"123"), ("d3", b"12"), ("d4", b'"fine"')):
        assert ledger.record(1, "c", device, PROCESSED, status, NOW) == (PROCESSED, FIRST)
    assert [line.status for line in entry.lines()] == [b'"fine"', None, b"12", b'"fine"']
    assert ledger.statuses_dropped == 1


def test_no_more_different_sayings_are_kept_than_have_a_number():
    devices = [f"d{number}" for number in range(65_536)]
    ledger, entry = opened(*devices)
    for number, device in enumerate(devices):
        ledger.record(1, "c", device, PROCESSED, b"%d" % number, NOW)
    assert ledger.statuses_dropped == 1
    assert [line.status for line in entry.lines(65_534)] == [b"65534", None]


# How long it takes


def test_the_publishers_clock_starts_when_the_event_is_accepted():
    ledger, entry = opened("d1")
    entry.audience.members["d1"].since = NOW + 60  # it was away for the first minute
    ledger.record(1, "c", "d1", PROCESSED, None, NOW + 61)
    assert math.isclose(next(entry.lines()).latency, 61, rel_tol=0.05)


def roundtrips(ledger: Ledger, state: int) -> list[float]:
    return [SECONDS[bucket] for bucket, count in enumerate(ledger.roundtrips[state]) for _ in range(count)]


def test_the_round_trip_starts_when_the_event_was_sent_to_the_device():
    ledger, entry = opened("away", "here")
    entry.audience.members["away"].since = NOW + 60
    entry.audience.members["here"].since = NOW - 60
    ledger.record(1, "c", "away", PROCESSED, None, NOW + 61)
    ledger.record(1, "c", "here", PROCESSED, None, NOW + 4)
    assert roundtrips(ledger, PROCESSED) == pytest.approx([1, 4], rel=0.05)


def test_the_round_trip_ends_with_the_first_receipt():
    ledger, _ = opened("d1")
    ledger.record(1, "c", "d1", DELIVERED, None, NOW + 1)
    ledger.record(1, "c", "d1", PROCESSED, None, NOW + 5)
    ledger.record(1, "c", "d1", PROCESSED, None, NOW + 6)
    assert roundtrips(ledger, DELIVERED) == pytest.approx([1], rel=0.05)
    assert roundtrips(ledger, PROCESSED) == []


def test_an_event_for_ten_thousand_devices_takes_two_bytes_for_each():
    ledger, entry = opened(*(f"d{number}" for number in range(10_000)))
    ledger.record(1, "c", "d7", PROCESSED, None, NOW)
    columns = [getattr(entry, name) for name in type(entry).__slots__ if name not in ("audience", "column", "names", "rules", "event")]
    assert 20_000 <= sum(column.__sizeof__() for column in columns) < 22_000


SAID = st.lists(st.tuples(st.sampled_from(["d1", "d2", "d3", "d4"]), st.integers(1, 3), st.sampled_from([DELIVERED, PROCESSED, FAILED]),
                          st.sampled_from([None, b'"fine"', b'"paper jam"']), st.none() | st.floats(NOW - 1, NOW + 20), st.sampled_from([None, "c", "other"])))


@given(SAID, st.sampled_from(["delivered", "processed"]))
def test_receipts_that_are_entered_together_are_entered_as_if_each_came_alone(said, level):
    """Also who hears of it, and in which order: of decisions, of answers of devices that are careful. Who watches an event hears of what came together once."""
    found = []
    for is_together in (True, False):
        ledger, audience, heard = Ledger(), Audience(), []
        for device in ("d1", "d2", "d3"):
            audience.join(device, 0, 1, NOW)
        audience.members["d2"].since = NOW + 2
        audience.members["d3"].careful = 1
        ledger.on_answer = lambda device, id, heard=heard: heard.append((device, id))
        ledger.on_decision = lambda word, entry, moment, heard=heard: heard.append((word, entry.event.id, moment))
        entries = [ledger.open(a.event(id, now=NOW, level=LEVELS[level], to=to), audience, need) for id, to, need in ((1, (), 2), (2, ("d4", "d1"), None), (3, (), "50%"))]
        seen: list[int] = []
        entries[2].watch(lambda entry=entries[2], seen=seen: seen.append(entry.version))
        answers = []
        for receipts in [said] if is_together else [[each] for each in said]:
            rows, missing = ledger.find_many(receipts, NOW + 10)
            entered = iter(ledger.enter_many(rows, NOW + 10))
            answers += [None if place in missing else next(entered) for place in range(len(receipts))]
        members = [(member.answered, member.last_id) for member in audience.members.values()]
        columns = [(list(entry.lines()), entry.summary(), entry.version, entry.owed, entry.is_satisfied, entry.is_complete) for entry in entries]
        assert len(seen) == bool(seen) or not is_together
        found.append((answers, heard, seen[-1:], members, columns, ledger.receipts, ledger.roundtrips, ledger.outstanding, ledger.oldest_open() and ledger.oldest_open().event.id))
    assert found[0] == found[1]
