"""What may be asked of a server, as stories: each opens what it needs, does one thing, and says what that cost.

A story is handed a Load and returns figures. `server_us` is processor time of the server per operation, `load_us` that of the load itself,
`per_second` is how many there were, and `capacity` how many there would be if the server had one processor to itself and nothing to wait for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import orjson

from pere.load import estimate
from pere.load.crew import Counted, Crew, until
from pere.load.fleet import Trouble, device
from pere.load.gauge import Gauge
from pere.load.histogram import Histogram
from pere.load.lines import Lines
from pere.load.target import Target

SETTLE = 0.7  # seconds between opening feeds and measuring: greetings are read, buffers find their size
TO = 1_000  # devices that one push may address, unless the server is told otherwise
MANY_BYTES = 1 << 20  # of a push of many
PAUSE = 0.1  # seconds before a turn: whoever came or went has done so
FULL = 72, 60_000  # events and their bytes that no socket takes for one who does not read: together more than the most of Linux (tcp_wmem), 4 MiB

Figures = dict[str, Any]


@dataclass(slots=True)
class Load:
    """All that a story needs. `run` is a word of its own, so that no run meets the devices of the one before; `options` are the sizes."""

    target: Target
    crew: Crew
    gauge: Gauge
    publisher: Lines
    run: str
    options: "Options"
    curves: dict[str, Histogram] = field(default_factory=dict)

    @property
    def channel(self) -> str:
        return f"bench-{self.run}"

    async def broadcast(self, channels: list[str], options: "Options") -> None:
        """Push the events at their times, channel by channel."""
        made = [self.target.pushing(channel) for channel in channels]
        began = time.monotonic_ns() + 20_000_000
        for number in range(0, options.events, options.burst):
            at = began + int(number // options.burst * options.every * 1e9)
            await until(at)
            for each in range(number, min(number + options.burst, options.events)):
                self.publisher.follow(self.target.pushed(made[each % len(made)], self.target.event(at, options.bytes)), at)
        await self.pushed()

    async def pushed(self) -> None:
        """All pushes are answered, and none was refused."""
        deadline = time.monotonic() + 20
        while self.publisher.answers < self.publisher.asked and not self.publisher.trouble:
            if time.monotonic() > deadline:
                raise Trouble("a push was not answered for 20 s")
            await asyncio.sleep(0.001)
        if self.publisher.trouble:
            raise Trouble(f"a push was refused: {self.publisher.trouble}")

    async def ask(self, request: bytes) -> Any:
        """What one request is answered, as JSON."""
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self.publisher.ask(request, 0, lambda status, body: answer.set_result((status, body)))
        status, body = await asyncio.wait_for(answer, 30)
        if not 200 <= status < 300:
            raise Trouble(f"refused: {status} {body[:300].decode('utf-8', 'replace')}")
        return orjson.loads(body)

    async def during(self, *work: Awaitable[object]) -> "Spent":
        """Do it, and tell what was spent meanwhile."""
        await self.crew.all("reset")
        cpu, own, start = await self.gauge.cpu(), time.process_time(), time.monotonic()
        await asyncio.gather(*work)
        seconds, own = time.monotonic() - start, time.process_time() - own
        after, counted = await self.gauge.cpu(), await self.crew.counted()
        if counted.over:
            raise Trouble(f"{counted.over} events came more often than they were sent")
        return Spent(seconds, None if cpu is None or after is None else after - cpu, own + counted.cpu, counted)

    async def hold(self, first: int, count: int) -> None:
        """Open feeds that nobody reads, and fill their sockets by events for them alone."""
        await self.crew.each(*({"do": "open", "first": first + start, "count": share, "channels": [self.channel], "stuck": 1}
                               for start, share in self.crew.shares(count)))
        made = self.target.pushing(self.channel + "?to=" + "&to=".join(device(number) for number in range(first, first + count)))
        for _ in range(FULL[0]):
            self.publisher.follow(self.target.pushed(made, self.target.event(time.monotonic_ns(), FULL[1])), time.monotonic_ns())
        await self.pushed()

    async def open(self, count: int, channels: list[str], **more: Any) -> Figures:
        """Open feeds, and tell what one costs."""
        before, cpu, start = await self.gauge.memory(), await self.gauge.cpu(), time.monotonic()
        await self.crew.open(count, channels, **more)
        seconds, after = time.monotonic() - start, await self.gauge.cpu()
        await self.crew.all("settle")
        await asyncio.sleep(SETTLE)
        memory = await self.gauge.memory()
        return {
            "feeds": count, "open_per_second": count / seconds,
            "open_us": None if cpu is None or after is None else (after - cpu) * 1e6 / count,
            "feed_kib": None if before is None or memory is None else (memory - before) / 1024 / count,
        }


@dataclass(frozen=True, slots=True)
class Spent:
    """Wall clock, processor seconds of the server and of the load, and what was counted."""

    seconds: float
    server: float | None
    load: float
    counted: Counted

    def per(self, count: int) -> Figures:
        """What one of so many operations cost."""
        us = None if self.server is None else self.server * 1e6 / max(count, 1)
        return {"seconds": self.seconds, "per_second": count / self.seconds, "server_us": us, "capacity": 1e6 / us if us else None,
                "load_us": self.load * 1e6 / max(count, 1), "server_busy": None if self.server is None else self.server / self.seconds,
                "load_busy": self.load / self.seconds}


@dataclass(frozen=True, slots=True)
class Options:
    """The sizes of a story. Not every story has a use for all."""

    feeds: int = 5_000
    events: int = 60
    bytes: int = 150
    every: float = 0.05
    burst: int = 1
    lines: int = 64
    rate: float = 0.0
    batch: int = 0
    channels: int = 1
    seconds: float = 30.0
    behind: int = 10
    stuck: int = 100
    turns: int = 100
    late: float = 1.0
    never: float = 0.05
    leave: float = 0.01


async def fanout(load: Load) -> Figures:
    o = load.options
    opened = await load.open(o.feeds, [load.channel])
    spent = await load.during(load.broadcast([load.channel], o), load.crew.all("gather", want=o.events))
    load.curves["delivery"] = spent.counted.latency
    return opened | {"deliveries": spent.counted.delivered} | spent.per(spent.counted.delivered)


async def mission(load: Load) -> Figures:
    """With `every` 0 an event is pushed when all have answered the one before."""
    o = load.options
    opened = await load.open(o.feeds, [load.channel], answers=True, lines=-(-o.lines // len(load.crew.shares(1))))
    made = load.target.pushing(load.channel)

    async def one_by_one() -> None:
        for number in range(1, o.events + 1):
            at = time.monotonic_ns()
            load.publisher.follow(load.target.pushed(made, load.target.event(at, o.bytes)), at)
            await load.crew.all("gather", want=number)
        await load.pushed()

    spent = await load.during(*([load.broadcast([load.channel], o), load.crew.all("gather", want=o.events)] if o.every else [one_by_one()]))
    load.curves |= {"delivery": spent.counted.latency, "receipt": spent.counted.answer}
    return opened | {"acknowledged": spent.counted.answered} | spent.per(spent.counted.answered)


async def receipts(load: Load) -> Figures:
    o = load.options
    devices, ids = [device(number) for number in range(o.feeds)], []
    if o.feeds > TO:
        raise Trouble(f"these receipts are for pushes to at most {TO} devices: use --feeds {TO} and more --events")
    at_once = max(1, min(500, MANY_BYTES // (16 * o.feeds + o.bytes)))
    for start in range(0, o.events, at_once):
        told = await load.ask(load.target.many([{"channel": load.channel, "data": number, "to": devices}
                                                for number in range(start, min(start + at_once, o.events))]))
        ids += [each["id"] for each in told["results"]]
    lines = -(-o.lines // len(load.crew.shares(1)))
    orders = [{"do": "receipts", "channel": load.channel, "devices": devices[first : first + count], "ids": ids, "batch": o.batch, "lines": lines,
               "rate": o.rate / len(load.crew.shares(1))} for first, count in load.crew.shares(o.feeds)]
    spent = await load.during(load.crew.each(*orders))
    load.curves["batch" if o.batch else "receipt"] = spent.counted.answer
    return {"receipts": o.feeds * o.events, "requests": spent.counted.answered} | spent.per(o.feeds * o.events)


async def push(load: Load) -> Figures:
    o = load.options
    channels = [f"{load.channel}.{number}" for number in range(o.channels)]
    processes = len(load.crew.shares(1))
    orders = [{"do": "push", "channels": channels, "count": count, "size": o.bytes, "lines": -(-o.lines // processes), "rate": o.rate / processes}
              for _, count in load.crew.shares(o.events)]
    spent = await load.during(load.crew.each(*orders))
    load.curves["push"] = spent.counted.answer
    return {"pushes": spent.counted.answered} | spent.per(spent.counted.answered)


async def reconnect(load: Load) -> Figures:
    o = load.options
    opened = await load.open(o.feeds, [load.channel])
    await load.crew.all("leave")
    await asyncio.sleep(SETTLE)
    await load.broadcast([load.channel], Options(events=o.behind, bytes=o.bytes, every=0.0))

    async def come_back() -> None:
        await load.crew.all("come_back", want=o.behind, since=time.monotonic_ns())

    spent = await load.during(come_back())
    load.curves["back and up to date"] = spent.counted.returned
    return opened | {"returned": o.feeds, "replayed": spent.counted.delivered} | spent.per(o.feeds)


async def slow(load: Load) -> Figures:
    """In turns of a moment, with those who do not read and without, each beside its neighbour: from one minute to the next p99 differs by
    more than they cost."""
    o = load.options
    opened, stuck = await load.open(o.feeds, [load.channel]), max(1, o.feeds // o.stuck)
    turns: dict[bool, list[Spent]] = {False: [], True: []}
    for turn in range(2 * o.turns):
        # Without, with, with, without: what drifts meanwhile falls on both.
        is_beside = turn % 4 in (1, 2)
        await load.hold(o.feeds + turn * stuck, stuck)  # before each, so that a turn without them begins with the same
        if not is_beside:
            await load.crew.all("release")
        await asyncio.sleep(PAUSE)
        turns[is_beside].append(await load.during(load.broadcast([load.channel], o), load.crew.all("gather", want=o.events)))
        if is_beside:
            await load.crew.all("release")
    alone, beside = turns[False], turns[True]
    apart, load.curves["delivery, all read"], _ = _whole(alone)
    together, load.curves["delivery, some never read"], deliveries = _whole(beside)
    ratio, low, high = estimate.ratio([*map(_p99, alone)], [*map(_p99, beside)])
    return opened | {
        "stuck": stuck, "deliveries": deliveries, "p99_alone_ms": median(map(_p99, alone)), "p99_beside_ms": median(map(_p99, beside)),
        "p99_ratio": ratio, "p99_least": low, "p99_most": high, "server_us_alone": apart["server_us"],
    } | together


def _whole(parts: list[Spent]) -> tuple[Figures, Histogram, int]:
    """What one delivery of several broadcasts cost, how long all took, and how many these were."""
    latency, count, servers = Histogram(), sum(part.counted.delivered for part in parts), [part.server for part in parts if part.server is not None]
    for part in parts:
        latency.merge(part.counted.latency)
    spent = Spent(sum(part.seconds for part in parts), sum(servers) if servers else None, sum(part.load for part in parts), parts[-1].counted)
    return spent.per(count), latency, count


def _p99(spent: Spent) -> float:
    return spent.counted.latency.quantile(0.99) / 1000


async def spread(load: Load) -> Figures:
    o = load.options
    channels = [f"{load.channel}.{number}" for number in range(o.channels)]
    opened = await load.open(o.feeds, channels)
    events = Options(events=o.events * o.channels, bytes=o.bytes, every=o.every, burst=o.burst)
    spent = await load.during(load.broadcast(channels, events), load.crew.all("gather", want=o.events))
    load.curves["delivery"] = spent.counted.latency
    return opened | {"pushes": events.events, "deliveries": spent.counted.delivered} | spent.per(events.events)


async def patterns(load: Load) -> Figures:
    o = load.options
    opened = await load.open(o.feeds, [f"?channel={load.channel}.*.on"])
    channels = [f"{load.channel}.{number}.on" for number in range(o.channels)]
    spent = await load.during(load.broadcast(channels, o), load.crew.all("gather", want=o.events))
    load.curves["delivery"] = spent.counted.latency
    return opened | {"deliveries": spent.counted.delivered} | spent.per(spent.counted.delivered)


async def idle(load: Load) -> Figures:
    o = load.options
    opened = await load.open(o.feeds, [load.channel])
    spent = await load.during(load.crew.all("live", seconds=o.seconds, leave=0.0))
    return opened | {"seconds": spent.seconds, "server_busy": None if spent.server is None else spent.server / spent.seconds}


async def mixed(load: Load) -> Figures:
    """A day in small: broadcasts, events for single devices, receipts that are late or never come, feeds that are lost and come back."""
    o = load.options
    channels = [f"{load.channel}.{number}" for number in range(o.channels)]
    opened = await load.open(o.feeds, channels, answers=True, late=o.late, never=o.never, lines=-(-o.lines // len(load.crew.shares(1))))

    async def publish() -> None:
        began = time.monotonic_ns()
        number = 0
        while (at := began + int(number * o.every * 1e9)) < began + o.seconds * 1e9:
            await until(at)
            channel = channels[number % len(channels)]
            if number % 5 == 0:
                to = f"?to={device((number * 7919) % o.feeds)}"
                channel = channels[(number * 7919) % o.feeds % len(channels)] + to
            load.publisher.ask(load.target.pushed(load.target.pushing(channel), load.target.event(at, o.bytes)), at)
            number += 1
        await load.pushed()

    spent = await load.during(publish(), load.crew.all("live", seconds=o.seconds, leave=o.leave))
    load.curves |= {"delivery": spent.counted.latency, "receipt": spent.counted.answer}
    return opened | {"deliveries": spent.counted.delivered, "acknowledged": spent.counted.answered} | spent.per(spent.counted.delivered)


async def soak(load: Load) -> Figures:
    """A mixed load for as long as it is told, and sixty times the memory. What is kept fills up first, so the first quarter does not count."""
    memories: list[float] = []
    step = load.options.seconds / 60

    async def watch() -> None:
        began = time.monotonic_ns()
        while True:
            memories.append((await load.gauge.memory() or 0.0) / 1024)
            await until(began + int(len(memories) * step * 1e9))

    watching = asyncio.create_task(watch())
    try:
        figures = await mixed(load)
    finally:
        watching.cancel()
    kept = memories[len(memories) // 4 :]
    rise, low, high = (each * 60 / step for each in estimate.slope(kept))
    return figures | {"memory_kib": memories, "memory_every": step, "memory_mib": median(kept) / 1024, "memory_rise": rise, "memory_least": low, "memory_most": high}


@dataclass(frozen=True, slots=True)
class Scenario:
    """`question` is what it answers, `defaults` the sizes that it has unless told otherwise."""

    run: Callable[[Load], Awaitable[Figures]]
    question: str
    defaults: Options


SCENARIOS = {
    "fanout": Scenario(fanout, "what does one delivery of a broadcast cost?", Options()),
    "burst": Scenario(fanout, "and where ten events come at once?", Options(events=200, burst=10)),
    "mission": Scenario(mission, "what does a delivery cost that its device acknowledges?", Options(events=30, every=0.0)),
    "receipts": Scenario(receipts, "how many receipts a second, one by one or (--batch) many in a request?", Options(feeds=1_000, events=50)),
    "push": Scenario(push, "how many pushes a second, each as safe as the store makes it?", Options(events=20_000, channels=16)),
    "reconnect": Scenario(reconnect, "how long until all are back at once, and up to date?", Options(feeds=10_000)),
    "slow": Scenario(slow, "do some that never read delay the others?", Options(feeds=1_000, events=3, bytes=4_096)),
    "spread": Scenario(spread, "what does a push cost where there are thousands of channels with few devices?",
                       Options(feeds=10_000, channels=5_000, events=1, every=0.02, burst=20)),
    "patterns": Scenario(patterns, "what does a delivery cost to feeds that listen by a pattern?", Options(feeds=1_000, channels=50, events=200, every=0.02)),
    "idle": Scenario(idle, "what do feeds cost that are quiet?", Options(feeds=10_000)),
    "mixed": Scenario(mixed, "how is a day of all this at once?", Options(feeds=2_000, channels=4, every=0.1, lines=256)),
    "soak": Scenario(soak, "and for an hour: does the memory stay as it is?", Options(feeds=2_000, channels=4, every=0.1, lines=256, seconds=3_600)),
}
