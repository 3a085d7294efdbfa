"""One process of a load: its devices, and what they do when they are told to. `python -m pere.load.fleet`, started by a crew.

Orders come as lines of JSON on standard input, one at a time, and each is answered by a line on standard output. Between them go lines
that say how far it is. At the end of its input it ends: no process outlives who started it.
"""

import asyncio
import errno
import gc
import os
import random
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import uvloop

from pere.load.arrivals import Arrivals
from pere.load.histogram import Histogram
from pere.load.lines import SHOWN, Feed, Lines
from pere.load.target import Target

SAYS = 0.5  # seconds between two words on how far it is
STALL = 20.0  # seconds without any event or answer, after which it is given up
PATIENCE = 60.0  # for all feeds to open
AHEAD = 1000  # requests that are made before there is a line for them
SMALL = 4096  # bytes that the kernel takes for a feed that never reads


class Trouble(Exception):
    """It cannot go on; said to who runs the load."""


class Fleet:
    """The devices of this process, and the lines on which they answer."""

    def __init__(self, target: Target, number: int):
        self._target = target
        self._number = number  # which process of the load this is
        self._loop = asyncio.get_running_loop()
        self.feeds: list[Feed] = []
        self.stuck: list[Feed] = []
        self.lines = Lines()
        self.lines.on_answer = self._check
        self.answers = False
        self.late = self.never = 0.0
        self.want = sys.maxsize
        self._full = 0
        self._refusal = ""
        self._losses = 0
        self._arrivals = Arrivals(self._begin, self._ask, self._unreachable)
        self._returned: Histogram | None = None
        self._since = 0
        self._done: asyncio.Future[None] | None = None
        self._random = random.Random(number)
        self.reset()

    # Verbs

    def reset(self) -> None:
        """Count from here on."""
        self.latency, self.lines.latency = Histogram(), Histogram()
        self._returned = None
        self.delivered = 0
        self.lines.asked = self.lines.answers = 0
        self._cpu = time.process_time()
        self.want, self._full = sys.maxsize, 0
        for feed in self.feeds:
            feed.got = 0

    async def open(self, first: int, count: int, channels: list[str], stuck: int = 0, lines: int = 0, answers: bool = False, late: float = 0.0,
                   never: float = 0.0) -> None:
        """So many feeds, of the devices numbered from `first` on, each of the channel whose turn it is; every `stuck`-th never reads.
        With `answers` a receipt is given for each event, on so many `lines`: `late` seconds later on the average, and `never` for that share."""
        self.answers, self.late, self.never = answers, late, never
        if lines:
            await self.lines.open(self.connect, lines)
        made = [Feed(self, number, channels[number % len(channels)], bool(stuck) and number % stuck == 0) for number in range(first, first + count)]
        await self._open(made)
        self.feeds += [feed for feed in made if not feed.stuck]
        self.stuck += [feed for feed in made if feed.stuck]

    async def settle(self) -> None:
        """All who have come are to hear at once what they are told from now on."""
        await self._arrivals.settle()

    async def leave(self) -> None:
        """All go."""
        for feed in self.feeds:
            feed.close()

    async def release(self) -> None:
        """Those go who never read."""
        for feed in self.stuck:
            feed.close()
        self.stuck = []

    async def come_back(self, want: int, since: int) -> None:
        """All that left come back at once, and get so many events; how long that took each is counted from `since`, to a millisecond or two."""
        self.want, self._full, self._since, self._returned = want, 0, since, Histogram()
        self.feeds = [Feed(self, feed.number, feed.channel, False) for feed in self.feeds]
        await self._open(self.feeds)
        await self.gather(want)

    async def gather(self, want: int) -> None:
        """Wait until each feed has got so many events since the count began, and all receipts are answered."""
        self.want = want
        self._full = sum(feed.got >= want for feed in self.feeds)
        await self._until_done()

    async def ask(self, requests: Iterator[bytes], lines: int, rate: float) -> None:
        """Say all this on so many lines: as fast as it is answered, or so many a second, on time whether answered or not."""
        await self.lines.open(self.connect, lines - len(self.lines.all))
        if rate:
            began = time.monotonic_ns()
            for number, request in enumerate(requests):
                at = began + int(number / rate * 1e9)
                if (ahead := at - time.monotonic_ns()) > 0:
                    await asyncio.sleep(ahead / 1e9)
                self.lines.ask(request, at)
        else:
            # What is to be said is made as it is needed, so it is never all in memory.
            for request in requests:
                self.lines.ask(request)
                if len(self.lines.waiting) >= 2 * AHEAD:
                    await self._room()
        await self._until_done()

    async def push(self, channels: list[str], count: int, size: int, lines: int, rate: float) -> None:
        """Push so many events, channel by channel."""
        made = [self._target.pushing(channel) for channel in channels]
        await self.ask((self._target.pushed(made[number % len(made)], self._target.event(time.monotonic_ns(), size)) for number in range(count)), lines, rate)

    async def receipts(self, channel: str, devices: list[str], ids: list[str], batch: int, lines: int, rate: float) -> None:
        """Every device answers for every event: one by one, or so many in one request."""
        say = self._target
        if batch:
            pieces = [ids[start : start + batch] for start in range(0, len(ids), batch)]
            requests: Iterator[bytes] = (say.receipts(device, piece) for piece in pieces for device in devices)
        else:
            requests = (say.receipt(channel, device, id) for id in ids for device in devices)
        await self.ask(requests, lines, rate)

    async def live(self, seconds: float, leave: float) -> None:
        """For so long, this share of the feeds is lost every second, and comes back after a moment."""
        end = self._loop.time() + seconds
        comings: set[asyncio.Task[None]] = set()
        owed = 0.0
        while self._loop.time() < end:
            await asyncio.sleep(0.1)
            self._check_trouble()
            owed += leave * len(self.feeds) * 0.1
            while owed >= 1 and self.feeds:
                owed -= 1
                place = self._random.randrange(len(self.feeds))
                feed = self.feeds[place]
                if feed.is_open and not feed.closing:
                    feed.close()
                    task = asyncio.create_task(self._return(place))
                    comings.add(task)
                    task.add_done_callback(comings.discard)
        if comings:
            await asyncio.wait(comings)
        await self._until_done()

    async def _return(self, place: int) -> None:
        await asyncio.sleep(self._random.uniform(0.1, 2.0))
        feed = self.feeds[place] = Feed(self, self.feeds[place].number, self.feeds[place].channel, False)
        try:
            await self._open([feed])
            await self.settle()
        except Trouble as trouble:
            self._refusal = self._refusal or str(trouble)

    def figures(self) -> dict[str, Any]:
        """What there is to tell since the count began."""
        return {
            "feeds": sum(feed.is_open and not feed.closing for feed in self.feeds), "stuck": len(self.stuck), "delivered": self.delivered,
            "over": sum(max(0, feed.got - self.want) for feed in self.feeds), "asked": self.lines.asked, "answered": self.lines.answers,
            "refused": self.lines.refused, "trouble": self.lines.trouble, "lost": self._losses, "cpu": time.process_time() - self._cpu,
            "latency": list(self.latency.counts.items()), "answer": list(self.lines.latency.counts.items()),
            "returned": list(self._returned.counts.items()) if self._returned is not None else [],
        }

    def progress(self) -> dict[str, int]:
        return {"feeds": sum(feed.is_open for feed in self.feeds), "delivered": self.delivered, "answered": self.lines.answers}

    def end(self) -> None:
        self.lines.close()
        for feed in self.feeds + self.stuck:
            if feed.transport is not None:
                feed.close()
        self._arrivals.close()

    # What feeds say

    def opened(self, feed: Feed) -> None:
        self._arrivals.arrived(feed)

    def refused(self, feed: Feed, text: bytes) -> None:
        self._refusal = self._refusal or f"a feed was refused: {text[:SHOWN].decode('utf-8', 'replace')}"
        self.opened(feed)

    def lost(self, feed: Feed) -> None:
        if feed.stuck and feed.is_open:
            return  # as it should be
        self._losses += 1
        self._refusal = self._refusal or f"the server closed the feed of device {feed.number} after {feed.got} events"
        if not feed.is_open:
            self.opened(feed)
        self._check()

    def full(self, feed: Feed) -> None:
        self._full += 1
        if self._returned is not None:
            self._returned.add((time.monotonic_ns() - self._since) // 1000)
        self._check()

    def owes(self, feed: Feed, id: bytes) -> None:
        if self.never and self._random.random() < self.never:
            return
        request = self._target.receipt(feed.channel, device(feed.number), id.decode())
        if self.late:
            self._loop.call_later(self._random.expovariate(1 / self.late), self._answer, request)
        else:
            self.lines.ask(request)

    def _answer(self, request: bytes) -> None:
        self.lines.ask(request, time.monotonic_ns())

    # How it goes

    def _check(self) -> None:
        if self._done is not None and not self._done.done() and (
                self._refusal or self._full >= len(self.feeds) and self.lines.answers >= self.lines.asked or self.lines.trouble):
            self._done.set_result(None)

    def _check_trouble(self) -> None:
        if self._refusal:
            raise Trouble(self._refusal)
        if self.lines.trouble:
            raise Trouble(f"refused: {self.lines.trouble}")

    async def _room(self) -> None:
        """Until only so many requests wait for a line that they just do not run out."""
        answers, since = self.lines.answers, self._loop.time()
        while len(self.lines.waiting) > AHEAD:
            self._check_trouble()
            await asyncio.sleep(0.005)
            if answers != self.lines.answers:
                answers, since = self.lines.answers, self._loop.time()
            elif self._loop.time() - since > STALL:
                raise Trouble(f"stalled: no answer for {STALL:g} s")

    async def _until_done(self) -> None:
        while self._full < len(self.feeds) and self.want < sys.maxsize or self.lines.answers < self.lines.asked:
            self._check_trouble()
            before = self.delivered, self.lines.answers
            self._done = self._loop.create_future()
            await asyncio.wait((self._done,), timeout=STALL)
            self._done = None
            if before == (self.delivered, self.lines.answers):
                raise Trouble(f"stalled for {STALL:g} s: {self._full} of {len(self.feeds)} feeds have got {self.want} events; {self.lines.answers} of "
                              f"{self.lines.asked} requests were answered")
        self._check_trouble()

    async def _open(self, feeds: list[Feed]) -> None:
        try:
            await asyncio.wait_for(self._arrivals.open(feeds), PATIENCE)
        except TimeoutError:
            raise Trouble(f"only {sum(feed.is_open for feed in feeds)} of {len(feeds)} feeds opened in {PATIENCE:g} s") from None
        self._check_trouble()

    def _socket(self, buffer: int = 0) -> socket.socket:
        """One that is not connected yet; `buffer` bounds what the kernel takes for it. Raises OSError."""
        sock = socket.socket()
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            if self._target.host == "127.0.0.1" and sys.platform == "linux":
                # One address has 28,000 ports; all of 127.0.0.0/8 is this machine, so every process has one of its own.
                sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
                sock.bind((f"127.0.{1 + self._number % 250}.1", 0))
        except OSError:
            sock.close()
            raise
        return sock

    def _begin(self, feed: Feed) -> socket.socket:
        """A connection for a feed, which is being made. Raises OSError."""
        sock = self._socket(SMALL if feed.stuck else 0)
        code = sock.connect_ex((self._target.host, self._target.port))
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            raise OSError(code, os.strerror(code))
        return sock

    def _ask(self, feed: Feed) -> bytes:
        return self._target.listening(feed.channel, device(feed.number))

    async def connect(self, made: Callable[[], Any]) -> Any:
        try:
            sock = self._socket()
            try:
                await self._loop.sock_connect(sock, (self._target.host, self._target.port))
                return (await self._loop.create_connection(made, sock=sock))[1]
            except OSError:
                sock.close()
                raise
        except OSError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: OSError) -> Trouble:
        from pere.client.http import reason  # only who has failed waits for it

        return Trouble(f"{self._target.host}:{self._target.port} cannot be reached: {reason(error)}")


def device(number: int) -> str:
    return f"device-{number:06}"


async def serve() -> None:
    """Take orders until there are no more."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)

    def say(**told: Any) -> None:
        # Whoever started this reads all the time, and a line is short; a pipe that is full would be a crew that has gone.
        data = orjson.dumps(told) + b"\n"
        while data:
            data = data[os.write(1, data) :]

    asked = orjson.loads(await reader.readline())
    fleet = Fleet(Target(**asked["target"] | {"headers": tuple(asked["target"]["headers"])}), asked["number"])
    say(done=None)

    async def tell() -> None:
        while True:
            await asyncio.sleep(SAYS)
            say(progress=fleet.progress())

    async def obey(order: dict[str, Any]) -> None:
        try:
            done = getattr(fleet, order.pop("do"))(**order)
            say(done=await done if asyncio.iscoroutine(done) else done)
        except Trouble as trouble:
            say(trouble=str(trouble))

    telling = asyncio.create_task(tell())
    reading = asyncio.create_task(reader.readline())
    while line := await reading:
        obeying, reading = asyncio.create_task(obey(orjson.loads(line))), asyncio.create_task(reader.readline())
        await asyncio.wait((obeying, reading), return_when=asyncio.FIRST_COMPLETED)
        if not obeying.done():
            obeying.cancel()  # nobody waits for it: what comes before the answer can only be the end
            break
        obeying.result()
    telling.cancel()
    fleet.end()


def raise_limit() -> int:
    """Open as many files as this process may; returns how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 16, hard))
        except (ValueError, OSError):
            pass  # macOS says that there is no limit, and has one
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


if __name__ == "__main__":
    raise_limit()
    # As a server does (`serving.py`): what a load has it has until it ends, and to look through it again and again is a tenth of its work.
    gc.set_threshold(10_000, 100, 50)
    uvloop.run(serve())
