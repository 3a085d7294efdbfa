"""The short form of tests/chaos.py, which `make chaos` runs long."""

import chaos
import pytest


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_whatever_dies_of_two_nodes_and_their_redis(tmp_path, seed):
    run = chaos.Chaos(tmp_path, nodes=2, devices=5, seed=seed)
    await run.run(seconds=6, wait=1.5)
    assert not run.lost, run.text()
    # Nothing was lost, but not because nothing was there to lose.
    assert len(run.pushed) > 20 and run.troubles.total() >= 2, run.text()
    assert len(run.answered) == len(run.pushed) * 5, run.text()


async def test_a_redis_that_forgets_when_it_is_killed_is_found_out(tmp_path):
    run = chaos.Chaos(tmp_path, nodes=2, devices=3, seed=1, troubles=("redis",), patience=3, appendonly="no")
    await run.run(seconds=3, wait=1.5)
    assert any("was answered 201, and is" in sentence for sentence in run.lost), run.text()
