"""What is the memory store's own: what has expired makes way some time later, and a channel of which nothing is left goes with it."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from test_contract import HOUR, Clock, Desk

from pere.config import Config
from pere.errors import Gone
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
