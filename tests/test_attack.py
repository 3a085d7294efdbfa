"""The short form of tests/attack.py, which `make attack` runs long."""

import attack
import pytest


@pytest.mark.parametrize("has_keys", [False, True], ids=["open", "keys"])
async def test_strangers_do_what_they_like_and_the_honest_notice_nothing(tmp_path, has_keys):
    store = f"sqlite:{tmp_path}/attack.db" if has_keys else "memory:"
    with attack.serve(store, has_keys) as server:
        run = attack.Attack(server, 7, has_keys, strangers=8)
        await run.run(seconds=1.5)
    assert not run.found, run.text()
    # Nothing was wrong, but not because nothing was done.
    assert run.pushed and run.checked + run.evicted == len(run.pushed) and run.deeds.total() >= 8, run.text()
