"""The processes of a load, and the one who tells them what to do: orders out, figures back, progress in between."""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Self

import orjson

from pere.load.fleet import Trouble
from pere.load.histogram import Histogram
from pere.load.target import Target


class Counted:
    """The figures of all processes, added up."""

    def __init__(self, told: list[dict[str, Any]]):
        self.feeds, self.stuck, self.delivered, self.over, self.asked, self.answered, self.refused, self.lost = (
            sum(each[name] for each in told) for name in ("feeds", "stuck", "delivered", "over", "asked", "answered", "refused", "lost"))
        self.cpu: float = sum(each["cpu"] for each in told)
        self.trouble: str = next((each["trouble"] for each in told if each["trouble"]), "")
        self.latency, self.answer, self.returned = (_sum([each[name] for each in told]) for name in ("latency", "answer", "returned"))


def _sum(parts: list[list[tuple[int, int]]]) -> Histogram:
    whole = Histogram()
    for part in parts:
        whole.merge(Histogram(part))
    return whole


class Crew:
    """So many processes with a fleet each: `async with Crew(target, 2, heard) as crew`. `heard` is told how far all are together."""

    def __init__(self, target: Target, processes: int, heard: Callable[[dict[str, int]], None]):
        self._target = target
        self._count = processes
        self._heard = heard
        self._progress: list[dict[str, int]] = [{} for _ in range(processes)]
        self._processes: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Self:
        try:
            for number in range(self._count):
                process = await asyncio.create_subprocess_exec(sys.executable, "-m", "pere.load.fleet", stdin=-1, stdout=-1, limit=1 << 26)
                self._processes.append(process)
                self._say(process, {"target": asdict(self._target), "number": number})
            await asyncio.gather(*(self._answer(number) for number in range(self._count)))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()

    def _say(self, process: asyncio.subprocess.Process, said: dict[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(orjson.dumps(said) + b"\n")

    async def _answer(self, number: int) -> Any:
        reader = self._processes[number].stdout
        assert reader is not None
        while line := await reader.readline():
            told = orjson.loads(line)
            if "progress" in told:
                self._progress[number] = told["progress"]
                self._heard({name: sum(each.get(name, 0) for each in self._progress) for name in told["progress"]})
            elif "trouble" in told:
                raise Trouble(told["trouble"])
            else:
                return told["done"]
        raise Trouble("a process of the load has died")

    async def each(self, *orders: dict[str, Any]) -> list[Any]:
        """An order for every process; what they answer, once all have done it."""
        for process, order in zip(self._processes, orders, strict=True):
            self._say(process, order)
        return await asyncio.gather(*(self._answer(number) for number in range(self._count)))

    async def all(self, do: str, **order: Any) -> list[Any]:
        """The same order for every process."""
        return await self.each(*({"do": do} | order for _ in self._processes))

    def shares(self, count: int) -> list[tuple[int, int]]:
        """So many things dealt out: for each process the first, and how many."""
        ends = [count * place // self._count for place in range(self._count + 1)]
        return [(start, end - start) for start, end in zip(ends, ends[1:], strict=False)]

    async def open(self, count: int, channels: list[str], **more: Any) -> None:
        await self.each(*({"do": "open", "first": first, "count": share, "channels": channels} | more for first, share in self.shares(count)))

    async def counted(self) -> Counted:
        return Counted(await self.all("figures"))


async def until(at: int) -> None:
    """Sleep until this time of the monotonic clock, in nanoseconds. The last millisecond is slept for without the loop, whose timers
    know no fractions of it."""
    ahead = (at - time.monotonic_ns()) / 1e9
    if ahead > 0.002:
        await asyncio.sleep(ahead - 0.002)
    else:
        await asyncio.sleep(0)
    ahead = (at - time.monotonic_ns()) / 1e9
    if ahead > 0:
        time.sleep(ahead)
