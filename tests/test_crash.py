"""The short form of tests/crash.py, which `make crash` runs long; and the proof that it would see what is lost."""

import crash
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


async def test_a_store_that_forgets_with_its_process_is_found_out():
    report = await crash.run(Plan(store="memory:", kills=2))
    assert {"push", "receipt", "phantom"} <= set(report.losses), report.text


async def test_what_is_answered_before_it_is_written_is_found_lost(tmp_path):
    report = await crash.run(Plan(store=f"sqlite:{tmp_path / 'pere.db'}", sync="off", kills=3, seed=2))
    assert report.losses["push"] + report.losses["receipt"] > 0, report.text


async def test_what_was_answered_survives_five_kills(tmp_path):
    report = await account(Plan(store=f"sqlite:{tmp_path / 'pere.db'}", sync="full", kills=5))
    assert report.kept >= report.pushes


async def test_kills_while_it_is_starting_lose_nothing(tmp_path):
    await account(Plan(store=f"sqlite:{tmp_path / 'pere.db'}", sync="full", kills=8, seed=3, at_start=0.7))


async def test_kills_while_it_is_pruning_lose_nothing_that_is_to_be_kept(tmp_path):
    report = await account(Plan(store=f"sqlite:{tmp_path / 'pere.db'}", sync="full", kills=4, seed=4, retained=200, publishers=12))
    assert report.kept < report.pushes, "nothing was pruned"
