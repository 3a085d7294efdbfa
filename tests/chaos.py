"""Several nodes, one Redis, a load, and whatever can go wrong with each of them; at the end all that was answered is accounted for.

    make chaos ARGS="--minutes 10 --nodes 3 --seed 7"

What goes wrong: a node is killed and started again; Redis is killed and started again (it appends to a file, and waits for the disk); it is
stopped for a while; its connections are cut; its memory is full. What is looked for at the end, on every node: each 201 and each 200 is
there, ids grow, each device was sent each event that it was asked for, no device has two states, and every count adds up.
"""

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import uvloop

# pytest finds the words of the tests beside this file, and so must `python -m tests.chaos`.
sys.path.insert(0, str(Path(__file__).parent))

import wire
from processes import Served
from redises import RedisServer

CHANNELS = ("orders", "news")
TROUBLES = ("node", "redis", "stop", "cut", "full", "pause")
AWAY = (OSError, EOFError, AssertionError, ValueError, IndexError, asyncio.TimeoutError)  # what a client sees of a node that dies


class Chaos:
    """The load, what was answered, and what goes wrong. `lost` are the sentences on what is not as it should be."""

    def __init__(self, folder: Path, nodes: int, devices: int, seed: int, troubles: tuple[str, ...] = TROUBLES, patience: float = 40.0, **redis: str):
        self.chance = random.Random(seed)
        self.redis = RedisServer(folder, **redis)
        self._choice = troubles
        self._patience = patience  # seconds after which what does not move any more counts as lost
        self.nodes: list[Served] = []
        self.devices = [f"d{number}" for number in range(devices)]
        self.pushed: dict[str, tuple[str, str, int]] = {}  # by id: channel, key, audience
        self.ids: list[str] = []  # in the order of their answers, of one publisher each
        self.answered: dict[tuple[str, str], str] = {}  # event and device: the state of a 200
        self.seen: dict[str, set[str]] = {device: set() for device in self.devices}
        self.troubles: Counter[str] = Counter()
        self.refused = 0
        self.lost: list[str] = []
        self._count = nodes
        self._is_over = False

    @property
    def port(self) -> int:
        """That of a node, as a balancer would choose it."""
        return self.chance.choice(self.nodes).port

    def _node(self, port: int = 0) -> Served:
        return Served("--store", self.redis.url, "--heartbeat", "1", "--max-attempts", "15", "--backlog-events", "100000",
                      "--backlog-bytes", str(128 << 20), port=port)

    async def run(self, seconds: float, wait: float) -> None:
        with self.redis:
            try:
                for _ in range(self._count):
                    self.nodes.append(await asyncio.to_thread(self._node))
                listening = [asyncio.ensure_future(self._listen(device)) for device in self.devices]
                for channel in CHANNELS:
                    while len(await self._members(channel)) < len(self.devices):
                        await asyncio.sleep(0.1)
                pushing = [asyncio.ensure_future(self._push(number)) for number in range(4)]
                end, pushed = time.monotonic() + seconds, 0
                while time.monotonic() < end or self.troubles.total() < 2:
                    await asyncio.sleep(self.chance.uniform(0.3, 1.0) * wait)
                    while len(self.pushed) < pushed + 12:  # however slow a machine is, there is something to lose
                        await asyncio.sleep(0.02)
                    pushed = len(self.pushed)
                    await self._trouble()
                self._is_over = True
                await asyncio.gather(*pushing)
                await self._settle()
                for task in listening:
                    task.cancel()
                await asyncio.gather(*listening, return_exceptions=True)
                for node in self.nodes:
                    while (answer := await self._ask("GET", "/readyz", port=node.port)) is None or answer.status != 200:
                        await asyncio.sleep(0.1)  # all may have been answered by the others before it has noticed that Redis is back
                    await self._check(node.port)
            finally:
                for node in self.nodes:
                    node.__exit__()

    # The load

    async def _ask(self, method: str, target: str, body: object = b"", port: int = 0, **headers: str) -> wire.Answer | None:
        """The answer of some node, or of the one at this port; None if there was none."""
        try:
            async with asyncio.timeout(15):
                return await wire.request(port or self.port, method, target, body, **headers)
        except AWAY:
            return None

    async def _members(self, channel: str) -> Any:
        answer = await self._ask("GET", f"/admin/devices/{channel}")
        return answer.json if answer is not None and answer.status == 200 else {}

    async def _push(self, publisher: int) -> None:
        number, last = 0, ""
        while not self._is_over:
            number += 1
            channel, key = self.chance.choice(CHANNELS), f"{publisher}.{number}"
            while (answer := await self._ask("POST", f"/push/{channel}", number, Idempotency_Key=key)) is None or answer.status == 503:
                self.refused += 1
                await asyncio.sleep(0.1)
            if answer.status != 201:
                self.lost.append(f"a push was answered {answer.status}: {answer.json}")
                continue
            id = answer.json["id"]
            if id in self.pushed:
                self.lost.append(f"{id} is the answer to {key} and to {self.pushed[id][1]}")
            if _number(id) <= _number(last):
                self.lost.append(f"{id} came after {last}")
            self.pushed[id], last = (channel, key, answer.json["audience"]), id
            await asyncio.sleep(0.04)

    async def _listen(self, device: str) -> None:
        """A device that comes back whenever it loses its feed, to whichever node, and answers each event on another."""
        work: set[asyncio.Task[None]] = set()
        while True:
            try:
                feed = await wire.listen(self.port, *CHANNELS, device=device)
            except AWAY:
                await asyncio.sleep(0.1)
                continue
            try:
                while True:
                    async with asyncio.timeout(15):  # there is a heartbeat each second
                        message = await feed.next()
                    if message is None:
                        break
                    if message.event.startswith("pere."):
                        continue
                    id = orjson.loads(message.data)["id"]
                    self.seen[device].add(id)
                    work.add(task := asyncio.ensure_future(self._answer(device, id)))
                    task.add_done_callback(work.discard)
            except AWAY:
                pass
            finally:
                feed.close()

    async def _answer(self, device: str, id: str) -> None:
        while True:
            answer = await self._ask("POST", "/feedback", {"receipts": [{"event_id": id, "status": device}]}, Device=device)
            if answer is not None and answer.status == 200:
                result = answer.json["results"][0]
                if "state" in result:
                    self.answered[id, device] = result["state"]
                    return
                if result["status"] != 503:
                    self.lost.append(f"the receipt of {device} for {id} was answered {result}")
                    return
            self.refused += 1
            await asyncio.sleep(0.1)

    # What goes wrong

    async def _trouble(self) -> None:
        trouble = self.chance.choice(self._choice)
        self.troubles[trouble] += 1
        redis = self.redis
        if trouble == "node":
            place = self.chance.randrange(len(self.nodes))
            old = self.nodes[place]
            old.kill()
            await asyncio.sleep(self.chance.uniform(0, 1))
            self.nodes[place] = await asyncio.to_thread(self._node)
            old.__exit__()
        elif trouble == "redis":
            redis.kill()
            await asyncio.sleep(self.chance.uniform(0, 2))
            await asyncio.to_thread(redis.start)
        elif trouble == "stop":
            redis.signal(signal.SIGSTOP)
            await asyncio.sleep(self.chance.uniform(0.1, 5))
            redis.signal(signal.SIGCONT)
        elif trouble == "cut":
            for kind in ("normal", "pubsub"):
                await asyncio.to_thread(redis.ask, "CLIENT", "KILL", "TYPE", kind)
        elif trouble == "pause":
            await asyncio.to_thread(redis.ask, "CLIENT", "PAUSE", str(self.chance.randrange(100, 4_000)), "ALL")
        else:
            await asyncio.to_thread(redis.ask, "CONFIG", "SET", "maxmemory", "1")
            await asyncio.sleep(self.chance.uniform(0.1, 2))
            await asyncio.to_thread(redis.ask, "CONFIG", "SET", "maxmemory", "0")

    # What is left

    async def _settle(self) -> None:
        """Until every device has answered for every event, or nothing moves any more."""
        moved, before = time.monotonic(), -1
        while len(self.answered) < len(self.pushed) * len(self.devices) and time.monotonic() < moved + self._patience:
            if len(self.answered) != before:
                moved, before = time.monotonic(), len(self.answered)
            await asyncio.sleep(0.1)

    async def _check(self, port: int) -> None:
        for id, (channel, _, audience) in self.pushed.items():
            answer = await wire.request(port, "GET", f"/events/{channel}/{id}")
            if answer.status != 200:
                self.lost.append(f"{id} was answered 201, and is {answer.status} on {port}")
                continue
            status = answer.json
            if sum(status["counts"].values()) != status["audience"] or status["audience"] != audience:
                self.lost.append(f"the counts of {id} on {port} are {status['counts']}, its audience {audience}")
            if status["counts"]["processed"] != len(self.devices):
                self.lost.append(f"{id} on {port} was answered by {status['counts']['processed']} of {len(self.devices)}")
        for channel in CHANNELS:
            ids: list[str] = []
            more = True
            while more:
                page = (await wire.request(port, "GET", f"/events/{channel}?limit=1000&after={ids[-1] if ids else ''}")).json
                ids += [each["id"] for each in page["events"]]
                more = page["more"]
            if ids != sorted(set(ids), key=_number):
                self.lost.append(f"the ids of {channel} on {port} do not grow")
        for device, seen in self.seen.items():
            if missing := self.pushed.keys() - seen:
                self.lost.append(f"{device} was never sent {sorted(missing)[:3]} ({len(missing)} in all)")

    def text(self) -> str:
        troubles = ", ".join(f"{count} x {name}" for name, count in sorted(self.troubles.items()))
        return (f"{self._count} nodes, {len(self.devices)} devices; {troubles}\n{len(self.pushed)} events and {len(self.answered)} receipts were answered, "
                f"{self.refused} requests not at once\n" + ("\n".join(self.lost[:40]) or "nothing was lost, and every count adds up"))


def _number(id: str) -> tuple[int, int]:
    milliseconds, _, sequence = id.partition("-")
    return (int(milliseconds), int(sequence)) if id else (0, 0)


def chaos(seconds: float, nodes: int = 3, devices: int = 10, seed: int = 1, wait: float = 3.0) -> Chaos:
    with tempfile.TemporaryDirectory() as folder:
        run = Chaos(Path(folder), nodes, devices, seed)
        uvloop.run(run.run(seconds, wait))
        return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    said = parser.parse_args()
    print(f"seed {said.seed}")
    found = chaos(said.minutes * 60, said.nodes, said.devices, said.seed)
    print(found.text())
    raise SystemExit(bool(found.lost))
