"""Is what was answered still true after kill -9? A real server under the load of a fleet, killed at random instants and
started again on the same file and port; then everything that it promised is asked for.

    python -m tests.crash --kills 50 --seed 7 --devices 20 --sync full

Beside the load, a webhook is told of all receipts and of every event that is completed; now and then it fails. It must have been told of all
that was answered, and what came twice must be the same.

The audit reads HTTP only: it knows nothing of files, tables or memory. SIGKILL leaves alone what the system already has
in its buffers, so this shows that nothing is answered before it is written; that it also survives a loss of power is the
business of fsync, and cannot be seen from here.

It is longer than a file should be because who kills, and who asks then for what was promised, tell one story; the fleet that is promised it has a
file of its own (`fleet.py`).
"""

import asyncio
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import orjson
import uvloop

# pytest finds the words of the tests beside this file, and so must `python -m tests.crash`.
sys.path.insert(0, str(Path(__file__).parent))

from fleet import CHANNELS, PATIENCE, RANK, REFUSED, Book, Device, Line, Promise, Publisher, chance, token_of
from hooks import Receiver
from processes import Process, free_port

from pere.event import parse_id
from pere.signing import verify

STALLED = 3.0  # seconds without any news after which what is still missing will never come
PAGE = 500
AUDITORS = 6  # requests under way at once in the audit
UNTOLD = 60.0  # seconds in which the webhook must be told of everything; it may have to be tried again after 5 s, and after 30 s
FAILING = 0.01  # the share of notices that the webhook answers 503
LOOK = 0.1  # seconds between two looks at that
ENOUGH = 60  # of pushes, receipts and events received: of less it could not be told that nothing is lost
QUIET_START = 0.3  # the least time from spawning within which a start is killed


@dataclass
class Plan:
    """What to do. `flags` are handed to `pere serve`; `retained` is how many events it was told to keep (0 is all)."""

    store: str
    kills: int = 5
    seed: int = 1
    devices: int = 20
    publishers: int = 6
    sync: str = ""
    retained: int = 0
    at_start: float = 0.2  # the share of kills that come while the server is still starting
    calm: float = 1.0  # seconds of load after the last start
    flags: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """The flags of the server: nothing may be given up for another reason than those that are looked for here."""
        if self.store == "memory:":
            kept = ["--backlog-events", "10000000"]
        else:
            # So few at hand that most of the past is read from the file.
            kept = ["--backlog-events", "50", "--retention-events", str(self.retained or 10_000_000), *(["--sync", self.sync] if self.sync else [])]
        return ["--store", self.store, *kept, "--backlog-bytes", str(1 << 30), "--backlog-total-bytes", str(1 << 32),
                "--max-attempts", "15", "--idempotency-window", "86400", "--webhook-allow-http", "--webhook-allow-networks", "127.0.0.0/8", *self.flags]


class Dead(Exception):
    """The server ended by itself, or never got ready."""


class Keeper:
    """Starts the server and kills it, always on the same port and store."""

    def __init__(self, plan: Plan, book: Book, port: int):
        self.kills = self.starts = self.ready = 0
        self.slowest = 0.0
        self.took = QUIET_START  # seconds that the last start took until the server was ready
        self._flags = ("serve", "--port", str(port), "--log-level", "warning", *plan.arguments())
        self._book, self._port = book, port
        self._process: Process | None = None
        self._spawned = 0.0
        self._is_ready = False

    def start(self) -> None:
        self._spawned = time.monotonic()
        self._process = Process(*self._flags)
        self._is_ready = False
        self.starts += 1

    async def until_ready(self) -> None:
        """Raises Dead where the server ends instead, or takes longer than anybody would wait."""
        if self._is_ready:
            return
        line = Line(self._port, self._book)
        try:
            while (answer := await line.ask("GET", "/readyz")) is None or answer.status != 200:
                self._check()
                if time.monotonic() > self._spawned + 2 * PATIENCE:
                    raise Dead(f"start {self.starts} is not ready after {2 * PATIENCE:g} s")
                await asyncio.sleep(0.005)
        finally:
            line.close()
        self._is_ready = True
        self.ready += 1
        self.took = time.monotonic() - self._spawned
        if self.kills:
            self.slowest = max(self.slowest, self.took)

    def kill(self) -> None:
        """Raises Dead where it was dead already."""
        self._check()
        assert self._process is not None
        self._process.kill()
        self.kills += 1
        self._look()

    def end(self) -> None:
        """At the end it is told to stop, and must; one that has lost something needs no goodbye."""
        if self._process is not None:
            try:
                if not self._book.lost and (code := self._process.end(signal.SIGTERM)) != 0:
                    self._book.find("end", f"SIGTERM ended it with {code}")
            except subprocess.TimeoutExpired:
                self._book.find("end", "SIGTERM did not end it")
            finally:
                self._process.kill()
                self._look()

    def _check(self) -> None:
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            raise Dead(f"start {self.starts} ended by itself with {self._process.end(seconds=0)}")

    def _look(self) -> None:
        """What it said at level `warning` and above is a finding: nothing that happens here is its fault or its trouble."""
        assert self._process is not None
        lines = [line for line in self._process.err.splitlines() if line]
        if self._book.may_forget:
            # So few are kept that some go before anybody could be told.
            lines = [line for line in lines if "made way before webhooks" not in line]
        if lines:
            self._book.find("log", "\n".join(lines)[-700:])
        self._process.__exit__()
        self._process = None


@dataclass
class Report:
    """The figures of a run. `losses` counts by kind what was found untrue; `text` tells it all."""

    kills: int
    restarts: int
    ready: int
    slowest: float
    pushes: int
    receipts: int
    notices: int
    posts: int
    received: int
    kept: int
    losses: Counter[str]
    examples: dict[str, list[str]]

    @property
    def text(self) -> str:
        figures = {
            "kills": self.kills, "restarts": self.restarts, "starts that became ready": self.ready, "pushes acknowledged": self.pushes,
            "receipts acknowledged": self.receipts, "notices that the webhook got": self.notices, "requests that brought them": self.posts, "events received": self.received, "events kept at the end": self.kept,
            "losses": self.losses.total(), "slowest restart until /readyz is 200": f"{self.slowest:.2f} s"}
        lines = [f"{name:<40}{value:>12,}" if isinstance(value, int) else f"{name:<40}{value:>12}" for name, value in figures.items()]
        for kind, count in self.losses.most_common():
            lines += [f"\n{kind}: {count:,}", *(f"    {sentence}" for sentence in self.examples[kind])]
        return "\n".join(lines)


async def run(plan: Plan, say: Callable[[str], None] = lambda line: None) -> Report:
    """Do it all."""
    book, port, rng = Book(may_forget=bool(plan.retained)), free_port(), chance(plan.seed, "killer")
    keeper = Keeper(plan, book, port)
    devices = [Device(number, plan.seed, port, book) for number in range(plan.devices)]
    publishers = [Publisher(number, plan.seed, port, book) for number in range(plan.publishers)]
    # Two thirds are there from the start; the others come one after the other, so that registering is under fire too.
    late = plan.kills * 0.8
    lives: list[asyncio.Task[None]] = []
    pushing: list[asyncio.Task[None]] = []
    hook, kept = Hook(plan, book), 0
    try:
        keeper.start()
        await hook.begin(keeper, port)
        lives += [asyncio.ensure_future(device.live(rng.uniform(0, late) if n % 3 == 2 else 0)) for n, device in enumerate(devices)]
        pushing += [asyncio.ensure_future(publisher.live()) for publisher in publishers]
        for _ in range(plan.kills):
            when = await _until_the_kill(plan, keeper, rng)
            keeper.kill()
            say(f"kill {keeper.kills}/{plan.kills} {when}: {_acknowledged(book):,} pushes, {len(book.receipts):,} receipts, "
                f"{book.received:,} events received, {book.lost.total()} losses")
            keeper.start()
        await keeper.until_ready()
        await asyncio.sleep(plan.calm)
        enough, deadline = max(ENOUGH, 2 * plan.retained), time.monotonic() + PATIENCE
        while min(_acknowledged(book) - enough, len(book.receipts) - ENOUGH, book.received - ENOUGH) < 0 and time.monotonic() < deadline:
            await asyncio.sleep(0.1)  # on a slow machine all the kills may have come before anything was done
        book.closing = True
        async with asyncio.timeout(60):
            await asyncio.gather(*pushing)
        await _settle(book, devices)
        audit = Audit(plan, book, port)
        kept = await audit.run()
        await hook.audit(audit)
        for task in lives:
            if task.done():
                task.result()  # a mistake of the harness, not of the server
    except Dead as dead:
        book.find("dead", str(dead))
    finally:
        for task in (*lives, *pushing):
            task.cancel()
        await asyncio.gather(*lives, *pushing, return_exceptions=True)
        keeper.end()
        hook.receiver.close()
    return Report(keeper.kills, keeper.starts - 1, keeper.ready, keeper.slowest, _acknowledged(book), len(book.receipts), len(hook.bodies),
                  len(hook.receiver.got), book.received, kept,
                  book.lost, book.examples)


async def _until_the_kill(plan: Plan, keeper: Keeper, rng: random.Random) -> str:
    """Wait until the server is to be killed: mostly at work, at times while it is still starting."""
    if rng.random() < plan.at_start:
        # Up to the moment at which the last start was ready, so that reading the file is hit too, not only the loading of Python.
        wait = rng.uniform(0, max(QUIET_START, keeper.took))
        await asyncio.sleep(wait)
        return f"{wait:.2f} s after spawning"
    await keeper.until_ready()
    wait = rng.uniform(0.05, 1.5)
    await asyncio.sleep(wait)
    return f"{wait:.2f} s after it was ready, which took {keeper.took:.2f} s"


def _acknowledged(book: Book) -> int:
    return sum(bool(push.id) for push in book.pushes.values())


async def _settle(book: Book, devices: list[Device]) -> None:
    """Until everybody is connected and has answered for everything, or nothing has happened for so long that nothing will."""
    news, looks = book.news, 0
    while not ((connected := all(device.is_connected for device in devices)) and book.is_over()):
        if book.news != news:
            news, looks = book.news, 0
        elif looks > (STALLED if connected else PATIENCE) / LOOK:  # a machine that stands still for as long has not looked
            return
        looks += 1
        await asyncio.sleep(LOOK)


class Hook:
    """A webhook, and what it was told."""

    def __init__(self, plan: Plan, book: Book):
        self.receiver = Receiver(*(503 if chance(plan.seed, f"hook {n}").random() < FAILING else 204 for n in range(1, 20_000)), 204)
        self.receiver.answers.insert(0, 204)
        self.bodies: dict[str, bytes] = {}
        self.told: dict[tuple[str, str], set[str]] = defaultdict(set)  # event and device: states
        self.completed: set[str] = set()
        self._book = book
        self._read = 0

    async def begin(self, keeper: Keeper, port: int) -> None:
        """Be there before anything else is."""
        await keeper.until_ready()
        line = Line(port, self._book)
        try:
            answer = await line.ask("POST", "/webhooks", {"url": self.receiver.url, "types": ["pere.receipt.batch", "pere.event.completed"]})
            if answer is None or answer.status != 201:
                raise Dead(f"the webhook was answered {answer}")
            self._secret = answer.json["secret"]
        finally:
            line.close()

    def read(self) -> None:
        """What came since."""
        got, self._read = self.receiver.got[self._read :], len(self.receiver.got)
        for headers, body in got:
            id = verify(headers, body, (self._secret,), time.time(), 3600)
            if self.bodies.setdefault(id, body) != body:
                self._book.find("notice", f"{id} came again with another body: {body[:200]!r}, before {self.bodies[id][:200]!r}")
            said = orjson.loads(body)
            if said["data"].get("dropped"):
                self._book.find("notice", f"{id} says that something was dropped")
            if said["type"] == "pere.event.completed":
                self.completed.add(said["data"]["id"])
            for each in said["data"].get("receipts", ()):
                self.told[each["event_id"], each["device"]].add(each["state"])

    async def audit(self, audit: "Audit") -> None:
        """Wait until it was told of everything that was answered and that is kept, or nothing comes any more."""
        await asyncio.sleep(0.1)
        deadline, came = time.monotonic() + UNTOLD, -1
        # Who has lost something already need not be waited for.
        while (missing := self._missing(audit)) and not self._book.lost and time.monotonic() < deadline:
            if came != len(self.receiver.got):
                deadline, came = time.monotonic() + UNTOLD, len(self.receiver.got)
            await asyncio.sleep(0.2)
        for sentence in missing:
            self._book.find("webhook", sentence)

    def _missing(self, audit: "Audit") -> list[str]:
        self.read()
        missing = []
        for (id, device), promise in self._book.receipts.items():
            if not audit.is_pruned(id) and max((RANK[state] for state in self.told[id, device]), default=0) < RANK[promise.state]:
                missing.append(f"{device} was answered {promise} for {id}, and the webhook was told {self.told[id, device]}")
        return missing + [f"{id} is complete, and the webhook was not told" for id in audit.complete if id not in self.completed]


class Audit:
    """Asks the server for everything that it promised."""

    def __init__(self, plan: Plan, book: Book, port: int):
        self._plan, self._book = plan, book
        self._lines = [Line(port, book) for _ in range(AUDITORS)]
        self.kept: dict[str, dict[str, dict[str, Any]]] = {}  # channel: id: event
        self.oldest = 0  # the oldest id that is kept
        self.told: dict[tuple[str, str], dict[str, Any]] = {}  # id, device: what the server says of it
        self.complete: set[str] = set()

    async def run(self) -> int:
        """How many events are kept."""
        try:
            for channel in CHANNELS:
                self.kept[channel] = await self._listing(channel)
            events = [(channel, event) for channel in CHANNELS for event in self.kept[channel].values()]
            self.oldest = min((parse_id(event["id"]) for _, event in events), default=0)
            if (wanted := self._plan.retained) and not min(wanted, len(self._book.pushes)) <= len(events) <= 2 * wanted:
                self._book.find("retention", f"{len(events)} events are kept, and {wanted} were to be")
            await asyncio.gather(*(self._events(line, events[n::AUDITORS]) for n, line in enumerate(self._lines)))
            await self._pushes()
            self._receipts()
            self._received()
            return len(events)
        finally:
            for line in self._lines:
                line.close()

    def is_pruned(self, id: str) -> bool:
        """Whether an event may be gone: it is older than the oldest that is kept, and the server was told to keep no more."""
        return bool(self._plan.retained) and parse_id(id) < self.oldest

    async def _get(self, line: Line, target: str) -> tuple[int, Any]:
        answer = await line.ask("GET", target)
        return (answer.status, answer.json) if answer is not None else (0, {})

    async def _listing(self, channel: str) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        last, more = "", True
        while more:
            status, page = await self._get(self._lines[0], f"/events/{channel}?limit={PAGE}" + (f"&after={last}" if last else ""))
            if status != 200:
                self._book.find("listing", f"/events/{channel} after {last!r} was answered {status} {page}")
                break
            for event in page["events"]:
                if last and parse_id(event["id"]) <= parse_id(last):
                    self._book.find("order", f"{event['id']} is listed after {last}")
                last = event["id"]
                found[last] = event
            more = page["more"]
        return found

    async def _events(self, line: Line, events: list[tuple[str, dict[str, Any]]]) -> None:
        for channel, event in events:
            id = event["id"]
            status, told = await self._get(line, f"/events/{channel}/{id}")
            if status != 200:
                self._book.find("status", f"{id} is listed on {channel}, and its status is {status} {told}")
                continue
            target, devices, cursor = f"/events/{channel}/{id}/devices?limit=7", [], ""
            while True:
                status, page = await self._get(line, target + (f"&cursor={cursor}" if cursor else ""))
                if status != 200:
                    self._book.find("status", f"the devices of {id} are {status} {page}")
                    break
                devices += page["devices"]
                if not (cursor := page["cursor"]):
                    break
            self._event(channel, event, told, devices)

    def _event(self, channel: str, event: dict[str, Any], told: dict[str, Any], devices: list[dict[str, Any]]) -> None:
        """One event that is kept, its status and its devices: do they agree with each other, and with what was pushed?"""
        id, find = event["id"], self._book.find
        push = self._book.pushes.get(token_of(event["data"]))
        if push is None or event["data"] != push.data or push.channel != channel:
            find("payload", f"{id} on {channel} is what nobody pushed: {event}")
            return
        for line in devices:
            self.told[id, line["device"]] = line
        names = {line["device"] for line in devices}
        counts, states = told["counts"], Counter(line["state"] for line in devices)
        if sum(counts.values()) != told["audience"] or {name: count for name, count in counts.items() if count} != states or len(names) != len(devices):
            find("counts", f"{id}: the counts {counts} of an audience of {told['audience']} do not agree with the devices {dict(states)}")
        if push.query["receipt"] == "none":
            return
        if told["complete"]:
            self.complete.add(id)
        if push.id == id and told["audience"] != push.audience:
            find("audience", f"{id} was answered with an audience of {push.audience}, and has {told['audience']}")
        if push.id == id and not push.due() <= names <= (push.to or push.begun):
            find("audience", f"{id} is for {sorted(names)}, which is not between {sorted(push.due())} and {sorted(push.to or push.begun)}")
        if told["need"] != (-(-told["audience"] // 2) if "need" in push.query else told["audience"]):
            find("need", f"{id} was pushed with {push.query}, and needs {told['need']} of {told['audience']}")

    async def _pushes(self) -> None:
        """Every push that was answered 201 is there, once; one that was not answered is there at most once."""
        tokens = Counter(token_of(event["data"]) for events in self.kept.values() for event in events.values())
        for token, count in tokens.items():
            if count > 1:
                self._book.find("twice", f"{token} exists {count} times: {self._book.pushes.get(token)}")
        for push in self._book.pushes.values():
            if push.id and push.id not in self.kept[push.channel]:
                if not self.is_pruned(push.id):
                    self._book.find("push", f"{push.id} of {push.channel} was answered 201 and is not there: {push.token}")
                elif (status := (await self._get(self._lines[0], f"/events/{push.channel}/{push.id}"))[0]) not in REFUSED:
                    self._book.find("status", f"{push.id} of {push.channel} is no longer kept, and its status is {status}")

    def _receipts(self) -> None:
        for (id, device), promise in self._book.receipts.items():
            if self.is_pruned(id):
                continue
            line = self.told.get((id, device))
            if line is None or not _keeps(promise, line):
                self._book.find("receipt", f"{device} was answered {promise} for {id}, of which is known {line}")
        for (id, device), status in self._book.refused.items():
            if (line := self.told.get((id, device))) is not None:
                self._book.find("refused", f"{device} was answered {status} for {id}, which owes its receipt: {line}")

    def _received(self) -> None:
        """Every device has every event of its audience; no device has an event that does not exist."""
        seen, audiences = self._book.seen, defaultdict(set)
        for id, device in self.told:
            audiences[id].add(device)
        for channel, events in self.kept.items():
            for id, event in events.items():
                push = self._book.pushes.get(token_of(event["data"]))
                due = push.due() if push is not None else frozenset()
                for device in due | audiences[id]:
                    if id not in seen[device]:
                        self._book.find("never came", f"{id} on {channel} never came to {device}: {self.told.get((id, device))}, {push}")
        for device, ids in seen.items():
            for id, channel in ids.items():
                if id not in self.kept[channel] and not self.is_pruned(id):
                    self._book.find("phantom", f"{device} got {id} on {channel}, which does not exist")


def _keeps(promise: Promise, line: dict[str, Any]) -> bool:
    """A hard state stands as it is, a lower one may have become higher; the device's last word stays with its state."""
    if line["state"] == promise.state:
        return line["status"] == promise.word
    return RANK[line["state"]] > RANK[promise.state]


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--kills", default=50, help="How many times the server is killed.")
@click.option("--seed", default=1, help="Decides the instants of the kills, and who does what.")
@click.option("--devices", default=20, help="How many devices listen and answer.")
@click.option("--publishers", default=6, help="How many publishers push.")
@click.option("--sync", default="full", help="--sync of the server; `off` is known to lose what it has answered.")
@click.option("--calm", default=1.0, help="Seconds of load after the last start.")
@click.option("--retention-events", "retained", default=0, help="Keep only so many events, so that the kills meet the pruning too.")
@click.option("--store", default="", help="Another store than a file of its own.")
@click.argument("flags", nargs=-1)
def main(store: str, **told: Any) -> None:
    """Kill a server under load, again and again, and count what it has lost of that which it had answered. FLAGS are handed to the server."""
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(store=store or f"sqlite:{folder}/pere.db", **told)
        report = uvloop.run(run(plan, lambda line: print(line, flush=True)))
    print(f"\n{report.text}")
    sys.exit(bool(report.losses))


if __name__ == "__main__":
    main()
