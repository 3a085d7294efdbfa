"""The short form of tests/crash.py, which `make crash` runs long; and the proof that it would see what is lost."""

import crash
from crash import Plan


async def account(plan: Plan) -> crash.Report:
    """Run it; whatever does not add up is the message of the failure."""
    report = await crash.run(plan)
    assert not report.losses, report.text
    # Nothing was lost, but not because nothing was there to lose.
    assert report.kills == plan.kills
    assert min(report.pushes, report.receipts, report.received) > 50, report.text
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
