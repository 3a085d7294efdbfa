"""The short form of tests/crash.py, which `make crash` runs long; and the proof that it would see what is lost."""

from collections.abc import Callable, Iterable

import crash
import pytest
from crash import Plan


async def account(plan: Plan) -> crash.Report:
    """Run it; whatever does not add up is the message of the failure."""
    report = await crash.run(plan)
    assert not report.losses, report.text
    # Nothing was lost, but not because nothing was there to lose.
    assert report.kills == plan.kills
    assert min(report.pushes, report.receipts, report.received) > 50 and report.notices > 5, report.text
    return report


async def test_nothing_is_lost_while_nobody_is_killed():
    report = await account(Plan(store="memory:", kills=0))
    assert report.kept == report.pushes


async def are_found(lost: Callable[[set[str]], bool], plans: Iterable[Plan]) -> bool:
    """Whether such losses are seen in one of these runs: on a slow machine all kills of one may come before anybody was answered."""
    seen: set[str] = set()
    for plan in plans:
        seen |= set((await crash.run(plan)).losses)
        if lost(seen):
            return True
    return False


@pytest.mark.timeout(seconds=600)
async def test_a_store_that_forgets_with_its_process_is_found_out():
    assert await are_found(lambda seen: {"push", "receipt", "phantom"} <= seen, (Plan(store="memory:", kills=2, seed=seed) for seed in range(1, 9)))


@pytest.mark.timeout(seconds=600)
async def test_what_is_answered_before_it_is_written_is_found_lost(tmp_path):
    plans = (Plan(store=f"sqlite:{tmp_path / f'{seed}.db'}", sync="off", kills=3, seed=seed) for seed in range(2, 10))
    assert await are_found(lambda seen: "push" in seen or "receipt" in seen, plans)


async def test_what_was_answered_survives_five_kills(tmp_path):
    report = await account(Plan(store=f"sqlite:{tmp_path / 'pere.db'}", sync="full", kills=5))
    assert report.kept >= report.pushes


async def test_kills_while_it_is_starting_lose_nothing(tmp_path):
    await account(Plan(store=f"sqlite:{tmp_path / 'pere.db'}", sync="full", kills=8, seed=3, at_start=0.7))


async def test_kills_while_it_is_pruning_lose_nothing_that_is_to_be_kept(tmp_path):
    report = await account(Plan(store=f"sqlite:{tmp_path / 'pere.db'}", sync="full", kills=4, seed=4, retained=200, publishers=12))
    assert report.kept < report.pushes, "nothing was pruned"
