"""What every test finds in its place."""

import asyncio

import pytest
from tornado.ioloop import IOLoop


@pytest.fixture(autouse=True)
def io_loop():
    """A loop of its own for each test, which leaves nothing behind. (pytest-tornasync's own fixture of this name calls what
    Tornado has deprecated, and closes descriptors under transports that still use them.)"""
    loop = IOLoop(make_current=True)
    yield loop
    loop.run_sync(_end)
    loop.close()


async def _end() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
    # A transport that was told to close does so in the next turn.
    await asyncio.sleep(0)
