"""What is the memory store's own: what has expired makes way some time later, and a channel of which nothing is left goes with it."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import NOW, draft
from test_contract import HOUR, Clock, Desk

from pere.bulk import Bulk
from pere.config import Config
from pere.errors import Gone, Refusal
from pere.event import LEVELS
from pere.receipt import DELIVERED, FAILED, PROCESSED
from pere.storage import memory
from pere.storage.memory import MemoryStore


@pytest.fixture
def open_desk() -> Callable[..., Awaitable[Desk]]:
    """`desk = await open_desk(ttl=60)`: a new store with these settings."""

    async def open_desk(**settings: Any) -> Desk:
        clock = Clock()
        return Desk(MemoryStore(Config(**settings), clock), clock)

    return open_desk


async def test_an_expired_event_can_be_asked_for_a_while_and_is_gone_then(open_desk):
    desk = await open_desk(keep_expired=600)
    desk.store.register("c", "d1")
    id, longer = await desk.push(ttl=60), await desk.push(ttl=7200)
    await desk.sweep(later=62)
    await desk.sweep(later=590)
    assert desk.kept() == [id, longer]
    await desk.sweep(later=20)
    assert desk.kept() == [longer]
    with pytest.raises(Gone):
        desk.store.find("c", id)
    assert desk.store.bytes == desk.store.find("c", longer).weight


async def test_an_event_without_receipts_expires_too(open_desk):
    desk = await open_desk(keep_expired=600)
    id = await desk.push(ttl=60, receipt="none")
    await desk.sweep(later=62)
    assert desk.store.find("c", id).expired
    await desk.sweep(later=601)
    assert desk.kept() == []


async def test_an_expired_event_behind_one_that_lives_longer_goes_with_it(open_desk):
    desk = await open_desk(keep_expired=600)
    await desk.push(ttl=7200)
    await desk.push(ttl=60)
    for _ in range(3):
        await desk.sweep(later=700)
    assert len(desk.kept()) == 2
    await desk.sweep(later=7200)
    await desk.sweep(later=601)
    assert desk.kept() == []
    assert desk.store.bytes == 0


async def test_a_channel_remembers_over_a_pause_what_was_there(open_desk):
    desk = await open_desk(keep_expired=0)
    await desk.push(ttl=1)
    await desk.sweep(later=30)
    desk.clock.now += HOUR
    id = await desk.push(ttl=1)
    for _ in range(3):
        await desk.sweep(later=2)
    assert desk.kept() == []
    with pytest.raises(Gone):
        desk.store.find("c", id)


async def test_ids_grow_even_over_a_channel_that_was_forgotten(open_desk):
    desk = await open_desk(keep_expired=0)
    first = await desk.push(ttl=1)
    for _ in range(3):
        await desk.sweep(later=2 * HOUR)
    assert desk.store.shelf("c") is None
    desk.clock.now -= 10 * HOUR
    assert await desk.push() > first


async def test_what_devices_say_counts_in_what_is_kept_over_all_channels_and_older_events_make_way_for_it(open_desk):
    desk = await open_desk(backlog_bytes=20_000, max_event_bytes=1_000, backlog_total_bytes=20_000, max_event_status_bytes=10_000)
    for number in range(12):
        desk.store.register("new", f"d{number}")
    old, new = await desk.push("old"), await desk.push("new")
    weight = desk.store.bytes
    for number in range(4):
        await desk.receipt(f"d{number}", new, status=f"{number}" * 1_000, channel="new")
    assert desk.store.ledger.bytes == pytest.approx(4 * 1_152)
    assert desk.store.find("old", old)
    more = [await desk.push("old", data=b"1" * 1_000) for _ in range(4)]
    assert desk.store.bytes > weight
    with pytest.raises(Gone):
        for number in range(4, 12):
            await desk.receipt(f"d{number}", new, status=f"{number % 10}" * (900 + number), channel="new")
            assert desk.store.bytes + desk.store.ledger.bytes <= 20_000
    assert desk.store.find("old", more[-1])
    assert desk.store.ledger.bytes == 0


PUSHES = [("c", "processed", (), 1), ("c", "delivered", (), None), ("c", "processed", ("d3", "d1"), None), ("c", "processed", ("d3", "d1"), 1), ("c", "none", (), None),
          ("other", "processed", (), "50%"), ("other", "delivered", ("d1", "d2"), 2), ("far", "processed", (), None)]
SAID = st.lists(st.tuples(st.integers(0, len(PUSHES)), st.sampled_from([DELIVERED, PROCESSED, FAILED]), st.sampled_from([None, b'"fine"', b'"paper jam"']),
                          st.none() | st.floats(NOW - 1, NOW + 90)), max_size=20)


@given(SAID, SAID, st.booleans(), st.booleans(), st.booleans())
def test_what_a_device_says_of_many_events_is_entered_as_if_each_had_come_alone(said, before, is_watched, is_careful, is_expired):
    """Whatever was said before, of whichever events, known and unknown ones, and who hears of it: decisions, followers, who waits."""
    found = []
    for is_together in (True, False):
        clock, heard, ids, answers = Clock(), [], [1], []
        store = MemoryStore(Config(), clock)
        for channel, device in [("c", "d1"), ("c", "d2"), ("c", "d3"), ("other", "d1"), ("other", "d2"), ("far", "d2")]:
            store.register(channel, device).since = NOW + 10 * int(device[1:])
        for channel, level, to, need in PUSHES:
            clock.now += 7
            store.append(draft(channel, to=to, level=LEVELS[level], need=need, ttl=40), lambda accepted, ids=ids: ids.append(accepted.id))
        clock.now += 10
        if is_expired:
            store.sweep(clock.now, lambda channel: False)
        store.open("c").audience.members["d1"].careful = is_careful
        store.ledger.on_answer = lambda device, id, heard=heard: heard.append((device, id))
        store.ledger.on_decision = lambda word, entry, moment, heard=heard: heard.append((word, entry.event.id, moment))
        seen = []
        if is_watched:
            store.ledger.entries[ids[1]].watch(lambda seen=seen, entry=store.ledger.entries[ids[1]]: seen.append(entry.version))
        store.record_many([("d2", ids[place], state, status, at, None) for place, state, status, at in before], lambda answers: None)
        del seen[:]
        columns = [[each[part] for each in said] for part in range(4)]
        bulk = Bulk("d1", [ids[place] for place in columns[0]], *columns[1:])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory, "LONG_WAY", 2)
            for receipts in [bulk] if is_together else [[each] for each in bulk]:
                store.record_many(receipts, answers.extend)
        ledger = store.ledger
        assert len(seen) <= 1 + len(said) // 2 or not is_together
        found.append((
            [answer.code if isinstance(answer, Refusal) else answer for answer in answers], heard, seen[-1:], store._recent.after(0),
            [(member.answered, member.last_id) for name in store.channels() for member in store.shelf(name).audience],
            [(list(entry.lines()), entry.summary(), entry.version, entry.owed, entry.histogram) for entry in ledger.entries.values()],
            ledger.receipts, ledger.roundtrips, ledger.outstanding, list(ledger._open), ledger.bytes))
    assert found[0] == found[1]
