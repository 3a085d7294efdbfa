"""A node's copy, moved by entries of the log alone: no Redis, no loop, and the time is that of the entries."""

import random
from typing import Any

import msgpack
import pytest

from pere.config import Config
from pere.event import LEVELS, SEQUENCE_BITS
from pere.receipt import DELIVERED, FAILED, PROCESSED
from pere.storage.scripts import KINDS
from pere.storage.shared import Snapshot
from pere.storage.sharedlog import Entry

CHANNELS, DEVICES = ("a.1", "a.2", "b"), ("d1", "d2", "d3", "d4")
BORN = 1_800_000_000_000


class Counted(Snapshot):
    shelved = 0

    def _shelve(self, id: int, now: float, op: Any) -> None:
        self.shelved += 1
        super()._shelve(id, now, op)


def copied() -> tuple[Counted, list[Any]]:
    """A copy with room for little, and what it delivers and decides."""
    copy = Counted(Config(backlog_events=4, max_event_bytes=1_000, backlog_bytes=5_000, backlog_total_bytes=8_000, max_event_status_bytes=1_000), lambda: BORN / 1000, "here")
    copy.begin_at(0, BORN, 0, 0, {kind: {} for kind in KINDS}, [])
    heard: list[Any] = []
    copy.deliver = lambda event: heard.append((event.id, event.ordinal, event.channel, event.data, event.expires, event.weight))
    copy.ledger.on_decision = lambda word, entry, moment: heard.append((word, entry.event.id, moment, entry.summary()))
    return copy, heard


def push(dice: random.Random) -> tuple[Any, ...]:
    is_plain = dice.random() < 0.7
    return ("push", dice.choice(CHANNELS), b"x" * dice.randrange(600), dice.random() < 0.5, dice.choice(("", "t")),
            () if is_plain else dice.sample(DEVICES, dice.randrange(3)), dice.choice((0, 60, 86_400)), LEVELS[dice.choice(("none", "delivered", "processed"))],
            None if is_plain else dice.choice((None, 0, 1, "50%", "all")), "p", "" if is_plain else dice.choice(("", "k1", "k2")), "", dice.choice(("", "00-1-2-01")))


def told(dice: random.Random, ids: list[int]) -> tuple[Any, ...]:
    """Anything that may stand between two pushes."""
    id = dice.choice(ids) if ids else 1
    return dice.choice((
        ("join", dice.choice(CHANNELS), dice.choice(DEVICES)), ("leave", dice.choice(CHANNELS), dice.choice(DEVICES)), ("want", dice.choice(DEVICES), "a.*"),
        ("said", [(dice.choice(DEVICES), dice.choice(ids or [1]), dice.choice((DELIVERED, PROCESSED, FAILED)), dice.choice((None, b'"well"')), None, None) for _ in range(3)]),
        ("recall", dice.choice(CHANNELS), id), ("expire", dice.choice(CHANNELS), id), ("end", id, dice.choice(DEVICES), 3), ("resent", id, dice.choice(DEVICES), 1)))


@pytest.mark.parametrize("seed", range(8))
def test_what_goes_the_straight_way_comes_to_the_same(seed: int) -> None:
    dice, ids = random.Random(seed), list[int]()
    (straight, heard), (other, heard_other) = copied(), copied()
    for n in range(1, 200):
        ops = [push(dice) if dice.random() < 0.7 else told(dice, ids[-8:]) for _ in range(dice.choice((1, 1, 1, 3)))]
        count, now = sum(op[0] == "push" for op in ops), BORN / 1000 + n
        entry = Entry.of(b"%d %d 0 %d there %d" % (n, BORN + n, count, n), msgpack.packb((now, ops)))
        straight.enter(entry)
        other._apply(n, entry.first, count, *msgpack.unpackb(entry.body), None)
        ids += range(entry.first, entry.first + count)
        assert heard == heard_other
        assert (straight.bytes, straight.ledger.bytes, straight.ledger.outstanding, straight.newest) == (other.bytes, other.ledger.bytes, other.ledger.outstanding, other.newest)
        assert set(straight.changes.things()) == set(other.changes.things())
        assert list(straight._pushed) == list(other._pushed)
        assert len(straight._schedule) == len(other._schedule)
        if dice.random() < 0.1:
            straight.changes.kept(n)
            other.changes.kept(n)
            assert not straight.changes and not straight.changes.things()
    straight.contents(BORN).check(other.contents(BORN), "the copy")
    # Nothing of it was said here, so nothing of it is counted here.
    for copy in (straight, other):
        assert (copy.events, copy.event_bytes, sum(copy.ledger.expired.values()), sum(map(sum, copy.ledger.receipts))) == (0, 0, 0, 0)
    assert straight.shelved > 50 > other.shelved and any(word == "expired" for word, *_ in heard), "what this is about did not happen"


def test_the_newest_id_stays_what_it_is_where_an_older_one_comes_the_straight_way() -> None:
    copy, heard = copied()
    newest = BORN + 1_000_000 << SEQUENCE_BITS
    copy.begin_at(0, BORN, newest, 0, {kind: {} for kind in KINDS}, [])
    for n in (1, 2):
        push = ("push", "b", b"1", True, "", (), 60, LEVELS["none"], None, "p", "", "", "")
        copy.enter(Entry.of(b"%d %d 0 1 there %d" % (n, BORN + n, n), msgpack.packb((BORN / 1000 + n, [push]))))
    assert (copy.shelved, len(heard), copy.newest) == (1, 2, newest)
