"""A real browser: Debian's Chromium, driven by Playwright.

The loop of a test ends with it, and the browser is there for all of them. So it lives on a loop of its own, in a thread, and what a
test does with it is done there, while the test's own loop, which may serve, goes on.
"""

import asyncio
import os
import shutil
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext

Told = TypeVar("Told")
PATIENCE = 100  # seconds for whatever a test waits for: a browser takes its time where the machine is busy
patiently = pytest.mark.timeout(seconds=PATIENCE + 20)  # for the tests


class Chromium:
    """`await chromium(story)` is `await story(context)`, with a context of its own: no cookies, no storage, no pages."""

    def __init__(self) -> None:
        program = shutil.which("chromium")
        if program is None:
            pytest.skip("chromium is not installed")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self._start(program)).result(PATIENCE)

    def _do(self, doing):
        return asyncio.run_coroutine_threadsafe(doing, self._loop)

    async def _start(self, program: str) -> None:
        from playwright.async_api import async_playwright  # only where a browser starts does anybody wait for its import

        self._playwright = await async_playwright().start()
        # Root, as in a container, may have no sandbox; what is seen here is our own.
        self._browser = await self._playwright.chromium.launch(executable_path=program, args=["--no-sandbox"] if os.getuid() == 0 else [])

    async def __call__(self, story: Callable[["BrowserContext"], Awaitable[Told]], **wanted: object) -> Told:
        async def told() -> Told:
            context = await self._browser.new_context(**wanted)
            context.set_default_timeout(1000 * PATIENCE)
            try:
                async with asyncio.timeout(PATIENCE + 10):  # before the test is cancelled, which does not know where in its story it stands
                    return await story(context)
            finally:
                await context.close()

        return await asyncio.wrap_future(self._do(told()))

    async def _end(self) -> None:
        await self._browser.close()
        await self._playwright.stop()

    def close(self) -> None:
        self._do(self._end()).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
