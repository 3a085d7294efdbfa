"""A node's copy, moved by entries of the log alone: no Redis, no loop, and the time is that of the entries."""

import random
from collections.abc import Sequence
from typing import Any

import msgpack
import pytest

from pere.config import Config
from pere.entry import Entry
from pere.event import LEVELS, SEQUENCE_BITS, Event
from pere.ledger import DECISIONS
from pere.receipt import DELIVERED, FAILED, PROCESSED
from pere.storage import Shelf
from pere.storage.scripts import KINDS
from pere.storage.shared import Snapshot
from pere.storage.sharedlog import Entry as Written

CHANNELS, DEVICES = ("a.1", "a.2", "b"), ("d1", "d2", "d3", "d4")
BORN = 1_800_000_000_000
FOREVER = 1e12


class Counted(Snapshot):
    applied = together = 0

    def _apply_push(self, *said: Any) -> None:
        self.applied += 1
        super()._apply_push(*said)

    def _take_many(self, shelf: Shelf, events: list[Event]) -> None:
        self.together += len(events)
        super()._take_many(shelf, events)


def copied(heard: Sequence[str] = DECISIONS, room: int = 8_000) -> tuple[Counted, list[Any]]:
    """A copy with room for little, and what it delivers and decides; `heard` is what of the latter somebody wants to hear."""
    copy = Counted(Config(backlog_events=4, max_event_bytes=1_000, backlog_bytes=5_000, backlog_total_bytes=room, max_event_status_bytes=1_000), lambda: BORN / 1000, "here")
    copy.begin_at(0, BORN, 0, 0, {kind: {} for kind in KINDS}, [])
    copy.ledger.heard = heard
    told: list[Any] = []
    copy.deliver = lambda event: told.append((event.id, event.ordinal, event.channel, event.data, event.expires, event.weight))
    copy.ledger.on_decision = lambda word, entry, moment: told.append((word, entry.event.id, moment, entry.summary())) if word in heard or entry.event.callback else None
    return copy, told


def events_of(told: list[Any]) -> list[Any]:
    return [each for each in told if each[0] not in DECISIONS]


def push(dice: random.Random) -> tuple[Any, ...]:
    is_plain = dice.random() < 0.7
    return ("push", dice.choice(CHANNELS), b"x" * dice.randrange(600), dice.random() < 0.5, dice.choice(("", "t")),
            () if is_plain else dice.sample(DEVICES, dice.randrange(3)), dice.choice((0, 60, 86_400)), LEVELS[dice.choice(("none", "delivered", "processed"))],
            None if is_plain else dice.choice((None, 0, 1, "50%", "all")), "p", "" if is_plain else dice.choice(("", "k1", "k2")), dice.choice(("", "", "hook")), dice.choice(("", "00-1-2-01")))


def told(dice: random.Random, ids: list[int]) -> tuple[Any, ...]:
    """Anything that may stand between two pushes."""
    id = dice.choice(ids) if ids else 1
    return dice.choice((
        ("join", dice.choice(CHANNELS), dice.choice(DEVICES)), ("leave", dice.choice(CHANNELS), dice.choice(DEVICES)), ("want", dice.choice(DEVICES), "a.*"),
        ("said", [(dice.choice(DEVICES), dice.choice(ids or [1]), dice.choice((DELIVERED, PROCESSED, FAILED)), dice.choice((None, b'"well"')), None, None) for _ in range(3)]),
        ("recall", dice.choice(CHANNELS), id), ("expire", dice.choice(CHANNELS), id), ("end", id, dice.choice(DEVICES), 3), ("resent", id, dice.choice(DEVICES), 1)))


@pytest.mark.parametrize("heard", [DECISIONS, ["expired"], []], ids=["all", "some", "none"])
@pytest.mark.parametrize("room", [8_000, 100_000], ids=["narrow", "wide"])
@pytest.mark.parametrize("seed", range(6))
def test_what_goes_the_straight_way_comes_to_the_same(seed: int, heard: Sequence[str], room: int) -> None:
    dice, ids, n = random.Random(seed), list[int](), 0
    (straight, news), (other, news_other) = copied(heard, room), copied(heard, room)
    straight.lead(not heard)  # what is due is known to who leads, and to who comes to lead
    while n < 200:
        entries = []
        for _ in range(dice.choice((1, 1, 2, 5, 20))):
            n += 1
            ops = [push(dice) if dice.random() < 0.7 else told(dice, ids[-8:]) for _ in range(dice.choice((1, 1, 1, 3)))]
            count, now = sum(op[0] == "push" for op in ops), BORN / 1000 + n
            entries.append(entry := Written.of(b"%d %d 0 %d there %d" % (n, BORN + n, count, n), msgpack.packb((now, ops))))
            other._apply(n, entry.first, entry.ids, *msgpack.unpackb(entry.body), None)
            ids += range(entry.first, entry.first + count)
        straight.enter(entries)
        # What comes together is delivered in its order, and what is decided of it is told before that, for one channel after the other.
        assert events_of(news) == events_of(news_other)
        assert sorted(map(repr, news)) == sorted(map(repr, news_other))
        assert (straight.bytes, straight.ledger.bytes, straight.ledger.outstanding, straight.newest) == (other.bytes, other.ledger.bytes, other.ledger.outstanding, other.newest)
        assert straight.stand() == other.stand()
        assert set(straight.changes.things()) == set(other.changes.things())
        assert list(straight._pushed) == list(other._pushed)
        if dice.random() < 0.1:
            straight.changes.kept(n)
            other.changes.kept(n)
            assert not straight.changes and not straight.changes.things()
    straight.lead(True)
    assert sorted(event.id for event in straight._schedule.due(FOREVER)) == sorted(event.id for event in other._schedule.due(FOREVER))
    straight.contents(BORN).check(other.contents(BORN), "the copy")
    # Nothing of it was said here, so nothing of it is counted here.
    for copy in (straight, other):
        assert (copy.events, copy.event_bytes, sum(copy.ledger.expired.values()), sum(map(sum, copy.ledger.receipts))) == (0, 0, 0, 0)
    assert other.applied > straight.applied + 50 and any(word == "expired" for word, *_ in news), "what this is about did not happen"
    assert room == 8_000 or straight.together > 50


@pytest.mark.parametrize("name", sorted({*Entry.__slots__} - {"audience", "column", "event"}))
@pytest.mark.parametrize("level", ["delivered", "processed"])
@pytest.mark.parametrize("there", [(), ("d1",), ("d1", "d2")])
def test_an_entry_of_which_nobody_had_asked_is_at_the_first_look_what_it_would_have_been(there: Sequence[str], level: str, name: str) -> None:
    asked = []
    for is_straight in (True, False):
        copy, _ = copied([])
        for n, op in enumerate((*(("join", "b", device) for device in there), push_to("b", level), ("join", "b", "d3"), ("leave", "b", there[0] if there else "d3")), 1):
            entry = Written.of(b"%d %d 0 %d there %d" % (n, BORN + n, op[0] == "push", n), msgpack.packb((BORN / 1000 + n, [op])))
            if is_straight or op[0] != "push":
                copy.enter([entry])
            else:
                copy._apply(n, entry.first, 1, *msgpack.unpackb(entry.body), None)
        [found] = copy.ledger.entries.values()
        asked.append((getattr(found, name), type(found), [getattr(found, each) for each in sorted({*Entry.__slots__} - {"audience", "column", "event"})], found.summary()))
    assert asked[0] == asked[1]


def test_an_entry_that_cannot_be_read_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    copy, heard = copied()
    bodies = (msgpack.packb((BORN / 1000, [("join", "b", "d1")])), b"\xc1", msgpack.packb((BORN / 1000, [push_to("b", "processed")])))
    copy.enter([Written.of(b"%d %d 0 1 there %d" % (n, BORN + n, n), body) for n, body in enumerate(bodies, 1)])
    assert [event[2] for event in heard] == ["b"]
    assert [record.message for record in caplog.records] == ["an entry of the log could not be taken in"]
    caplog.clear()


def test_an_event_that_cannot_be_delivered_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    copy, _ = copied()
    came = []

    def deliver(event: Event) -> None:
        came.append(event.ordinal)
        if event.ordinal == 2:
            raise ValueError("it has a fault")

    copy.deliver = deliver
    for n, ops in enumerate(([("join", "b", "d1")], [push_to("b", "processed") for _ in range(4)]), 1):
        copy.enter([Written.of(b"%d %d 0 4 there %d" % (n, BORN + n, n), msgpack.packb((BORN / 1000, ops)))])
    assert came == [1, 2, 3, 4] and len(copy.shelf("b").backlog) == 4
    assert [record.message for record in caplog.records] == ["an event could not be delivered"]
    caplog.clear()


def push_to(channel: str, level: str) -> tuple[Any, ...]:
    return ("push", channel, b"1", True, "", (), 60, LEVELS[level], None, "p", "", "", "")


def test_of_what_comes_together_the_oldest_is_owed_the_longest_whatever_channels_it_is_of() -> None:
    copy, _ = copied([], 100_000)
    said = (("join", "a.1", "d1"), ("join", "b", "d1"), push_to("a.1", "processed"), push_to("b", "processed"), push_to("a.1", "processed"))
    entries = [Written.of(b"%d %d 0 %d there %d" % (n, BORN + n, op[0] == "push", n), msgpack.packb((BORN / 1000 + n, [op]))) for n, op in enumerate(said, 1)]
    copy.enter(entries)
    assert copy.together == 3 and list(copy.ledger.entries) == [entry.first for entry in entries[2:]]
    assert copy.oldest_outstanding() == BORN / 1000 + 3


def test_the_newest_id_stays_what_it_is_where_an_older_one_comes_the_straight_way() -> None:
    copy, heard = copied()
    newest = BORN + 1_000_000 << SEQUENCE_BITS
    copy.begin_at(0, BORN, newest, 0, {kind: {} for kind in KINDS}, [])
    for n in (1, 2):
        copy.enter([Written.of(b"%d %d 0 1 there %d" % (n, BORN + n, n), msgpack.packb((BORN / 1000 + n, [push_to("b", "none")])))])
    assert (copy.applied, len(heard), copy.newest) == (1, 2, newest)
