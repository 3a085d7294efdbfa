"""A device that listens by the client beside a test, which looks at what it was handed and told."""

import asyncio
from contextlib import aclosing

import pytest

from pere import Client
from pere.client import backoff
from pere.client.news import Opened


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(backoff, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(backoff, "LONGEST_WAIT", 0.1)
    monkeypatch.setattr(backoff, "SHORTEST_WISH", 0.001)
    monkeypatch.setenv("NO_PROXY", "*")


class Device:
    """A device that listens to `c` in the background: `events` is what it was handed, `news` what else it was told."""

    def __init__(self, url: str, *, name: str | None = "d", kept=None, work=lambda event: None, channels="c", **wanted):
        self.events = []
        self.news = []
        self.client = Client(url, device=name, on_news=self.news.append, kept=kept, **{each: wanted.pop(each) for each in ("token", "timeout", "silence") if each in wanted})
        self._work, self._channels, self._wanted = work, channels, wanted
        self.over = asyncio.Event()

    async def __aenter__(self):
        await self.client.__aenter__()
        self.task = asyncio.ensure_future(self._listen())
        return self

    async def __aexit__(self, *exc_info):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.client.aclose()

    async def _listen(self):
        try:
            async with aclosing(self.client.listen(self._channels, **self._wanted)) as feed:
                async for event in feed:
                    self.events.append(event)
                    self._work(event)
                    # Who listens with answer=None and keeps nothing of an event has dropped it.
                    del event
        finally:
            self.over.set()

    @property
    def data(self):
        return [event.data for event in self.events]

    def told(self, kind):
        return [news for news in self.news if isinstance(news, kind)]

    async def until(self, is_true):
        while not is_true():
            if self.task.done():
                await self.task
                assert is_true(), (self.events, self.news)
            await asyncio.sleep(0.002)

    async def opened(self, times=1):
        await self.until(lambda: len(self.told(Opened)) >= times)

    async def has(self, *data):
        await self.until(lambda: len(self.events) >= len(data))
        assert self.data == list(data)
        await self.client.flush()
