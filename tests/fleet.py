"""Devices and publishers that do what real ones do, over real sockets, and a Book of what they were told.

Each promise is entered at the moment at which its answer was read, never before: so the book holds what a publisher or a
device may rely on, and no more. They all carry on when the server dies under them, and come back until it answers again.

It is a little longer than a file should be: devices and publishers enter in the one book, and what an entry means is only plain beside who makes it.
"""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
import wire

from pere.event import parse_id

CHANNELS = ("orders", "alarms", "news.a", "news.b")
RANK = {"pending": 0, "sent": 1, "delivered": 2, "expired": 3, "cancelled": 3, "processed": 4, "failed": 4}
REFUSED = (404, 410)  # what a device may be told for good: it is not asked, or not any more
PATIENCE = 30.0  # seconds without an answer after which a server counts as silent, however busy the machine
EXAMPLES = 4  # sentences that are kept of each kind of loss


@dataclass(eq=False, slots=True)
class Push:
    """One event that a publisher wants to exist. `token` is in its payload. `known` are the devices that had read their
    `pere.hello` before it was first sent, `floor` is the newest id that anybody had been told by then."""

    channel: str
    token: str
    data: Any = field(repr=False)
    query: dict[str, Any]
    key: str
    known: frozenset[str] = frozenset()
    floor: int = 0
    id: str = ""  # empty as long as no 201 told it
    audience: int = 0
    begun: frozenset[str] = frozenset()  # the devices that had asked for a feed by the time of the 201

    @property
    def to(self) -> frozenset[str]:
        return frozenset(self.query.get("to", ()))

    def due(self) -> frozenset[str]:
        """Who must get it. A device that is named by `to` gets it even if it was never seen before."""
        return self.to or self.known


@dataclass(slots=True)
class Promise:
    """A receipt that was answered 200: the state that stands at least, and the device's own word on it."""

    channel: str
    state: str
    word: str | None = None


@dataclass
class Book:
    """What everybody was told, and what was found to be untrue."""

    pushes: dict[str, Push] = field(default_factory=dict)  # by token
    receipts: dict[tuple[str, str], Promise] = field(default_factory=dict)  # by id and device
    refused: dict[tuple[str, str], int] = field(default_factory=dict)
    seen: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))  # device: id: channel
    members: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # channel: all who will ever listen
    begun: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    known: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    newest: int = 0
    news: int = 0  # moves with all that happens
    closing: bool = False  # publishers push nothing more, devices stay
    received: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    may_forget: bool = False

    def find(self, kind: str, sentence: str) -> None:
        self.lost[kind] += 1
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append(sentence)

    def sends(self, push: Push) -> None:
        """Just before its first sending."""
        push.known, push.floor = frozenset(self.known[push.channel]), self.newest
        self.pushes[push.token] = push

    def pushed(self, push: Push, told: dict[str, Any]) -> None:
        self.news += 1
        if push.id:
            if (push.id, push.audience) != (told["id"], told["audience"]):
                self.find("key", f"{push.key} was answered {push.id} and then {told}")
            return
        push.id, push.audience, push.begun = told["id"], told["audience"], frozenset(self.begun[push.channel])
        if parse_id(push.id) <= push.floor:
            self.find("order", f"{push.id} was told to who had sent {push.token} after a larger id had been told")
        self.newest = max(self.newest, parse_id(push.id))

    def answered(self, channel: str, device: str, id: str, state: str, word: str | None, told: dict[str, Any]) -> None:
        """A 200 to this receipt: `told` is what the server says that stands now."""
        self.news += 1
        promise = self.receipts.get((id, device))
        if promise is None:
            promise = self.receipts[id, device] = Promise(channel, told["state"])
        elif RANK[told["state"]] < RANK[promise.state] or (RANK[promise.state] == 4 and told["state"] != promise.state):
            self.find("receipt", f"{device} was told that {promise.state} stands for {id}, and then {told}")
        elif not told["duplicate"] and RANK[state] <= RANK[promise.state]:
            self.find("receipt", f"{device} had been answered {promise.state} for {id}, and {state} was taken as new: {told}")
        promise.state = told["state"]
        if told["state"] == state and word is not None:
            promise.word = word

    def is_settled(self, id: str, device: str) -> bool:
        promise = self.receipts.get((id, device))
        return (promise is not None and RANK[promise.state] == 4) or (id, device) in self.refused

    def is_over(self) -> bool:
        """Whether all devices have all that is due to them, and have answered for it."""
        return all(push.id in self.seen[device] for push in self.pushes.values() if push.id for device in push.due()) \
            and all(self.is_settled(id, device) for device, ids in self.seen.items() for id in ids)


class Line:
    """One kept connection, which is opened again after each loss."""

    def __init__(self, port: int, book: Book):
        self._port = port
        self._book = book
        self._wire: wire.Wire | None = None

    async def ask(self, method: str, target: str, body: object = b"", headers: dict[str, str] | None = None) -> wire.Answer | None:
        """The answer; None where it was lost, or was to come back later: then nobody knows whether it was done."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        kind = {} if isinstance(body, bytes) else {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(PATIENCE):
                if self._wire is None:
                    self._wire = await wire.Wire.open(self._port)
                await self._wire.send(wire.said(method, target, data, kind | (headers or {})))
                answer = await self._wire.answer(method)
        except (OSError, EOFError) as error:
            if isinstance(error, TimeoutError):
                self._book.find("silent", f"no answer to {method} {target} in {PATIENCE:g} s")
            self.close()
            return None
        if answer.status >= 500:
            if answer.status != 503:
                self._book.find("5xx", f"{method} {target}: {answer}")
            return None
        return answer

    async def insist(self, rng: random.Random, *said: Any) -> wire.Answer:
        """Ask until there is an answer."""
        while (answer := await self.ask(*said)) is None:
            await asyncio.sleep(rng.uniform(0.01, 0.1))
        return answer

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
        self._wire = None


def chance(seed: int, name: str) -> random.Random:
    """Each party has a chance of its own, so that one more of them does not change what the others do."""
    return random.Random(f"{seed}/{name}")


@dataclass(frozen=True)
class Habit:
    """How a device answers: the `states` that it says one after the other, how long it `naps` (at most) before, for how long it
    goes `away`, whether many go in one request, and whether it `insists` or leaves a lost receipt to the redelivery."""

    states: tuple[str, ...] = ("processed",)
    nap: float = 0.0
    away: float = 0.0
    batch: bool = False
    up_to: bool = False
    insists: bool = True
    says: str | None = "json"  # where the status goes; None says nothing


HABITS = (
    Habit(), Habit(("delivered", "processed"), says="form"), Habit(nap=1.2, says="query"), Habit(away=1.5), Habit(insists=False, says=None),
    Habit(batch=True, nap=0.3), Habit(("delivered", "failed"), batch=True, away=0.8), Habit(up_to=True, batch=True, nap=0.2),
    Habit(("processed", "failed")), Habit(("failed", "processed"), nap=0.4, says="form"))


class Device:
    """Listens, comes back by itself with its Last-Event-ID, as an EventSource does, and answers for every event."""

    FEEDS = (("orders",), ("alarms",), ("orders", "alarms"), ("news.a",), ("news.*",), ("**",))

    def __init__(self, number: int, seed: int, port: int, book: Book):
        self.name = f"device-{number}"
        self.habit = HABITS[number % len(HABITS)]
        wanted = self.FEEDS[number % len(self.FEEDS)]
        self.channels = [name for name in CHANNELS if name in wanted or "**" in wanted or (name.startswith("news") and "news.*" in wanted)]
        self._envelope = len(wanted) > 1 or "*" in wanted[0] or number % 4 == 1
        self._target = wire.feed_target(wanted, format="envelope" if self._envelope else "raw")
        self._rng, self._port, self._book = chance(seed, self.name), port, book
        self._line = Line(port, book)
        self._last = ""
        self._owed: asyncio.Queue[str] = asyncio.Queue()
        self.is_connected = False
        for channel in self.channels:
            book.members[channel].add(self.name)

    async def live(self, after: float) -> None:
        await asyncio.sleep(after)
        try:
            await asyncio.gather(self._listen(), self._answer())
        finally:
            self._line.close()

    async def _listen(self) -> None:
        while True:
            stay = self._rng.uniform(0.2, 2.0) if self.habit.away and not self._book.closing else None
            with suppress(OSError, EOFError):
                async with asyncio.timeout(stay):
                    await self._read()
            if stay is not None:
                await asyncio.sleep(self._rng.uniform(0, self.habit.away))
            await asyncio.sleep(self._rng.uniform(0.005, 0.05))

    async def _read(self) -> None:
        book, before = self._book, 0
        feed = await wire.Feed.open(self._port)
        try:
            for channel in self.channels:
                book.begun[channel].add(self.name)
            # Not what was refused: an event that asks for no receipts goes by the Last-Event-ID, which a redelivery moves back.
            settled = {id for id in book.seen[self.name] if book.is_settled(id, self.name) and (id, self.name) not in book.refused}
            await feed.start(self._target, {"Device": self.name} | ({"Last-Event-ID": self._last} if self._last else {}))
            if feed.answer_head.status != 200:
                if feed.answer_head.status != 503:
                    book.find("feed", f"{self.name} was answered {feed.answer_head.status}")
                return
            while (message := await feed.next()) is not None:
                feed.text = b""
                if message.event == "pere.hello":
                    self._last = self._last or orjson.loads(message.data)["position"]
                    self.is_connected = True
                    for channel in self.channels:
                        book.known[channel].add(self.name)
                elif message.event == "pere.gap":
                    if not book.may_forget:
                        book.find("gap", f"{self.name} was told of a gap: {message.data}")
                elif not message.event.startswith("pere."):
                    told = orjson.loads(message.data) if self._envelope else {"id": message.id, "channel": self.channels[0], "data": read(message.data)}
                    self._last = message.id or self._last
                    if parse_id(told["id"]) <= before:
                        book.find("feed order", f"{self.name} got {told['id']} after a larger id, on one feed")
                    if told["id"] in settled:
                        book.find("came again", f"{self.name} got {told['id']} again, for which its receipt had been answered")
                    before = parse_id(told["id"])
                    self._see(told)
        finally:
            self.is_connected = False
            feed.close()

    def _see(self, told: dict[str, Any]) -> None:
        book, id = self._book, told["id"]
        push = book.pushes.get(token_of(told["data"]))
        if push is None or push.data != told["data"] or push.channel != told["channel"]:
            book.find("payload", f"{self.name} got what nobody pushed: {told}")
        if id not in book.seen[self.name]:
            book.news += 1
        book.received += 1
        book.seen[self.name][id] = told["channel"]
        self._owed.put_nowait(id)

    # Receipts

    async def _answer(self) -> None:
        while True:
            owed = [await self._owed.get()]
            await asyncio.sleep(self._rng.uniform(0, self.habit.nap))
            while not self._owed.empty():
                owed.append(self._owed.get_nowait())
            owed = [id for id in dict.fromkeys(owed) if not self._book.is_settled(id, self.name)]
            for start in range(0, len(owed), 100):
                await (self._many if self.habit.batch else self._each)(owed[start : start + 100])

    async def _each(self, ids: Iterable[str]) -> None:
        for id in ids:
            for state in self.habit.states:
                word = f"{state} by {self.name} for {id}" if self.habit.says else None
                channel = self._book.seen[self.name][id]
                request: list[Any] = ["POST", f"/feedback/{channel}", b"", {"Device": self.name, "Last-Event-ID": id}]
                if self.habit.says == "json":
                    request[2] = {"state": state, "status": word}
                else:
                    fields = wire.urlencode({"state": state} | ({"status": word} if word else {}))
                    if self.habit.says == "form":
                        request[2], request[3] = fields.encode(), request[3] | {"Content-Type": "application/x-www-form-urlencoded"}
                    else:
                        request[1] += "?" + fields
                answer = await (self._line.insist(self._rng, *request) if self.habit.insists else self._line.ask(*request))
                if answer is None or not self._told(id, state, word, answer.status, answer.json):
                    break

    async def _many(self, ids: list[str]) -> None:
        words = {id: f"seen by {self.name}: {id}" for id in ids}
        if self.habit.up_to:
            for channel, newest in {self._book.seen[self.name][id]: id for id in sorted(ids, key=parse_id)}.items():
                await self._batch({"up_to": newest, "channel": channel, "state": "delivered"}, "delivered", {})
        for state in self.habit.states:
            await self._batch({"receipts": [{"event_id": id, "state": state, "status": words[id]} for id in ids]}, state, words)

    async def _batch(self, body: dict[str, Any], state: str, words: dict[str, str]) -> None:
        answer = await self._line.insist(self._rng, "POST", "/feedback", body, {"Device": self.name})
        if answer.status != 200:
            self._book.find("receipt", f"{self.name} said {body} and was answered {answer}")
            return
        for told in answer.json["results"]:
            id = told["event_id"]
            # By `up_to` it answers for what it may not have read yet, if that is on its way.
            self._told(id, state, words.get(id), told["status"] if "error" in told else 200, told, body.get("channel"))

    def _told(self, id: str, state: str, word: str | None, status: int, told: dict[str, Any], channel: str | None = None) -> bool:
        """Enter the answer to a receipt; whether there is more to say of this event."""
        book, promise = self._book, self._book.receipts.get((id, self.name))
        if status == 200:
            book.answered(channel or book.seen[self.name][id], self.name, id, state, word, told)
            return True
        if status in REFUSED:
            book.news += 1
            book.refused[id, self.name] = status
        # Who says the contrary of its own hard word is told so, and after a kill this shows whether the first word still stands.
        elif status != 409 or promise is None or RANK[promise.state] < 4 or promise.state == state:
            book.find("receipt", f"{self.name} said {state} for {id} and was answered {status} {told}, after {promise}")
        return False


class Publisher:
    """Pushes until it is told to stop. Who uses a key insists until it has a 201; who uses none never asks twice."""

    HABITS = ("once", "keyed", "batch", "addressed", "keyed", "once")

    def __init__(self, number: int, seed: int, port: int, book: Book):
        self.name = f"publisher-{number}"
        self._habit = self.HABITS[number % len(self.HABITS)]
        self._rng, self._book, self._line = chance(seed, self.name), book, Line(port, book)
        self._count = 0
        self._keyed: list[Push] = []

    async def live(self) -> None:
        try:
            while not self._book.closing:
                await asyncio.sleep(self._rng.uniform(0, 0.1))
                await self._push()
        finally:
            self._line.close()

    async def _push(self) -> None:
        if self._habit == "batch":
            await self._batch([self._make("") for _ in range(self._rng.randint(1, 12))])
        elif self._habit == "once":
            await self._one(self._make(""), self._line.ask)
        else:
            await self._one(self._make("key"), self._insist)
            if self._rng.random() < 0.1:
                # A key that was answered is good for the same answer, over all kills.
                await self._one(self._rng.choice(self._keyed[-200:]), self._insist)

    async def _insist(self, *said: Any) -> wire.Answer | None:
        return await self._line.insist(self._rng, *said)

    def _make(self, key: str) -> Push:
        self._count += 1
        rng, token = self._rng, f"{self.name}/{self._count}"
        channel = rng.choice(CHANNELS)
        text = "è più «quattro stagioni» " * rng.choice((0, 1, 1, 2, 40))
        data: Any = f"{token}\n{text}" if rng.random() < 0.2 and self._habit != "batch" else {"token": token, "text": text, "n": self._count}
        query: dict[str, Any] = {"receipt": rng.choice(("processed", "processed", "processed", "delivered", "none"))}
        if self._habit == "addressed":
            query["to"] = sorted(rng.sample(sorted(self._book.members[channel]), min(3, len(self._book.members[channel]))))
        elif query["receipt"] != "none" and rng.random() < 0.2:
            query["need"] = "50%"
        push = Push(channel, token, data, query, f"{key}-{token}" if key else "")
        if key:
            self._keyed.append(push)
        return push

    async def _one(self, push: Push, ask: Callable[..., Any]) -> None:
        if push.token not in self._book.pushes:
            self._book.sends(push)
        is_text = isinstance(push.data, str)
        headers = {"Content-Type": "text/plain" if is_text else "application/json", "Device": self.name} | ({"Idempotency-Key": push.key} if push.key else {})
        target = f"/push/{push.channel}?{wire.urlencode(push.query, doseq=True)}"
        answer = await ask("POST", target, push.data.encode() if is_text else orjson.dumps(push.data), headers)
        if answer is not None:
            self._told(push, answer.status, answer.json)

    async def _batch(self, pushes: list[Push]) -> None:
        for push in pushes:
            self._book.sends(push)
        answer = await self._line.ask("POST", "/push", [{"channel": push.channel, "data": push.data} | push.query for push in pushes])
        if answer is not None:
            for push, told in zip(pushes, answer.json["results"], strict=True):
                self._told(push, told["status"] if "error" in told else 201, told)

    def _told(self, push: Push, status: int, told: dict[str, Any]) -> None:
        if status == 201:
            self._book.pushed(push, told)
        elif status != 503:
            self._book.find("push", f"{push.token} was answered {status} {told}")


def read(data: str) -> Any:
    """A payload of a raw feed: JSON or text."""
    with suppress(orjson.JSONDecodeError):
        return orjson.loads(data)
    return data


def token_of(data: Any) -> str:
    return data.get("token", "") if isinstance(data, dict) else str(data).partition("\n")[0]
