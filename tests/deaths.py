"""Does one process serve at the end, and is nothing lost, whoever is killed while one takes over from another?

    python -m tests.deaths                          each of both, killed at every word, with a file; two minutes
    python -m tests.deaths --store redis --rounds 3

Real processes (`--handover`) under load. Between them stands one who passes on what they say, with the descriptors, and kills the one or the other (SIGKILL) when a certain word has been said: before the
other hears it, or some milliseconds after. Devices come back, a push that was cut is said again with its Idempotency-Key. In the end each event that was answered 201 must have come to each device,
and each receipt that was answered 200 must be in the delivery status. Where the successor is killed after it has said that it serves, it is a server like any other that is killed: then one is started.
"""

import argparse
import asyncio
import logging
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop

# pytest finds the words of the tests beside this file, and so must `python -m tests.deaths`.
sys.path.insert(0, str(Path(__file__).parent))

from processes import ENVIRONMENT, free_port
from redises import named

from bench.load import restart
from pere.handover import Broken, Line, visit

# What they say, and who says it, with a store of one process and with one that is shared.
WORDS = {"sqlite": ("pere", "listening", "ahead", "shown", "seen", "saved", "looked", "connections", "live", "over", "serving"),
         "redis": ("pere", "listening", "ahead", "shown", "seen", "connections", "feeds", "over", "serving")}
log = logging.getLogger("deaths")

BACK = "0.2"  # seconds after which a device comes back


class Between:
    """Waits at the path of the one who starts, and visits that of the one who serves. When `word` was said, somebody is killed."""

    def __init__(self, here: str, there: str, word: str, after: float):
        self.victim: subprocess.Popen[bytes] | None = None  # set before anybody comes
        self.was_said: list[str] = []
        self._there = there
        self._word = word
        self._after = after  # seconds; below 0 is before the other hears it
        self._path = here
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(here)
        self._socket.listen()
        self._thread = threading.Thread(target=self._pass_on, daemon=True)
        self._thread.start()

    def _pass_on(self) -> None:
        self._socket.settimeout(60)
        visitor, _ = self._socket.accept()
        self._socket.close()
        os.unlink(self._path)
        lines = Line(visitor), visit(self._there)
        assert lines[1] is not None, "nobody serves there"
        back = threading.Thread(target=self._carry, args=(lines[1], lines[0]), daemon=True)
        back.start()
        self._carry(*lines)
        back.join()
        for line in lines:
            line.close()

    def _carry(self, one: Line, other: Line) -> None:
        with suppress(Broken):
            while True:
                word, sockets = one.hear(60)
                name = "listening" if "listening" in word else next(iter(word))
                self.was_said.append(name)
                is_it = name == self._word
                if is_it and self._after < 0:
                    self._kill()
                try:
                    other.say(word, [each.fileno() for each in sockets])
                finally:
                    for each in sockets:
                        each.close()
                if is_it and self._after >= 0:
                    time.sleep(self._after)
                    self._kill()
        with suppress(OSError):
            other._sock.shutdown(socket.SHUT_RDWR)

    def _kill(self) -> None:
        while self.victim is None:
            time.sleep(0.001)
        self.victim.send_signal(signal.SIGKILL)
        self.victim.wait(60)

    def end(self) -> None:
        self._thread.join(90)
        assert not self._thread.is_alive()


class Chain:
    """One process after the other, each at a path of its own, on one port."""

    def __init__(self, store: str, folder: Path, port: int):
        self.outcomes: Counter[str] = Counter()
        self._folder = folder
        self._log = open(folder / "servers.log", "ab")
        self._arguments = [sys.executable, "-m", "pere", "serve", "--store", store, "--port", str(port), "--retry", BACK, "--backlog-events", "100000"]  # so all can be asked for at the end
        self._count = 0
        self._all: list[subprocess.Popen[bytes]] = []
        self.current, self._path = self._start()

    def _start(self, path: str = "") -> tuple["subprocess.Popen[bytes]", str]:
        path = path or self._new()
        self._all.append(subprocess.Popen([*self._arguments, "--handover", path], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=self._log))
        return self._all[-1], path

    def _new(self) -> str:
        self._count += 1
        return str(self._folder / f"h{self._count}")

    async def until(self, what: Any, seconds: float = 60) -> None:
        for _ in range(int(seconds / 0.01)):
            if what():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"it did not come to pass within {seconds} s; {self.said()}")

    async def until_offered(self) -> None:
        await self.until(lambda: os.path.exists(self._path))

    async def take_over(self, who: str, word: str, after: float) -> None:
        """A further process takes over, and in the middle of it one of both is killed: `before` or `next`."""
        await self.until_offered()
        log.info("%s is killed at %s, %.3f s", who, word, after)
        here = self._new()
        between = Between(here, self._path, word, after)
        before, (following, _) = self.current, self._start(here)
        between.victim = before if who == "before" else following
        await self.until(lambda: between.victim is not None and between.victim.poll() is not None)
        await asyncio.get_running_loop().run_in_executor(None, between.end)
        assert word in between.was_said
        if who == "before":
            self.current, self._path = following, here
            outcome = "the next one serves"
        elif "serving" not in between.was_said:
            outcome = "the one before serves"
        else:
            await self.until(lambda: before.poll() is not None)
            self.current, self._path = self._start()
            outcome = "one was started"
        await self.until_offered()
        assert self.current.poll() is None, self.said()
        self.outcomes[outcome] += 1

    def said(self) -> str:
        return (self._folder / "servers.log").read_text()[-3000:]

    def close(self) -> None:
        for process in self._all:
            process.kill()
            process.wait(60)
        self._log.close()


async def measure(kind: str, folder: Path, plan: list[tuple[str, str, float]], devices: int = 40, per_second: float = 40.0) -> dict[str, Any]:
    """What became of a load while all of the plan happened."""
    port = free_port()
    chain = Chain(named(kind, folder), folder, port)
    restart.RETRY = float(BACK)
    load = restart.Load(port, devices, per_second)
    try:
        await chain.until_offered()  # so all that is refused is because of a death
        await load.begin()
        pushing = asyncio.ensure_future(load.push())
        for who, word, after in plan:
            await chain.take_over(who, word, after)
            pushed = len(load.pushed)
            await chain.until(lambda pushed=pushed: not load.away and len(load.pushed) > pushed + 5)
        load.is_over = True
        await pushing
        await load.all_back()
        await load.settle()
        return {"pushes": len(load.pushed), "receipts": load.receipts, "lost events": load.missing(), "lost receipts": max(0, await load.unkept()), "doubled": load.doubled(),
                "refused": load.counts["refused"], "cut": load.counts["cut"], **chain.outcomes}
    finally:
        await load.close()
        chain.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=tuple(WORDS), default="sqlite")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    said = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    chance = random.Random(said.seed)
    for number in range(said.rounds):
        plan = [(who, word, after) for word in WORDS[said.store] for who in ("next", "before") for after in (-1.0, chance.random() * 0.1)]
        chance.shuffle(plan)
        with tempfile.TemporaryDirectory() as folder:
            print(number, uvloop.run(measure(said.store, Path(folder), plan, said.devices)), flush=True)


if __name__ == "__main__":
    main()
