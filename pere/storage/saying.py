"""What is said on a node and does not stand in the log yet, and who waits to hear what became of it.

It is queued in the order in which it was said, and what is queued is cut into batches, each one entry of the log. A batch that cannot be
entered is put back: of it, and of all that waits behind, what somebody asked for is refused, and the rest is said again.

What is only true of one node is mentioned: nobody waits for it, so it is queued a little at a time. Else each node would be held up, when thousands have come to one of them or leave it, for as
long as it takes to hear of them all.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from time import perf_counter
from typing import Any

from pere.bulk import Receipt
from pere.errors import Refusal
from pere.ledger import Ledger
from pere.storage.replica import Asker, Op
from pere.storage.sharedlog import ALL

MAX_OPS = 100_000  # in one batch
MAX_BYTES = 32 * 1024 * 1024  # of payloads in one batch, a fraction of what Redis takes
MAX_WOKEN = 1_000  # channels that one batch wakes; beyond, it wakes all nodes
MENTIONED = 500  # devices of which something is mentioned at a time, or some more: a millisecond or two of each node
# What is said of a channel, and in which place it stands; of an event; and to all nodes. Of all else they hear at the next beat, or when they are asked.
ABOUT = {"push": 1, "recall": 1, "expire": 1, "going": 2}
BY_EVENT = ("said", "end", "resent")
FOR_ALL = ("hello", "here", "remove", "document")
ASKED = ("push", "said", "recall", "document")  # of what is said, that somebody waits for and is told; the rest is said again
# Before these all is said that was mentioned before: who has left, a channel that begins anew and a node that has gone are not what they were.
LAST = ("leave", "remove", "forget", "gone")


class Batch:
    """What is said together. `askers` are those who said it, `told` those who are to be told when it is entered; `done` is over when it has been."""

    __slots__ = ("askers", "done", "ids", "now", "number", "ops", "started", "told", "_held", "_refusals")

    def __init__(self, number: int, now: float, ops: list[Op], askers: list[Any], done: "asyncio.Future[None]"):
        self.number = number
        self.now = now
        self.ops = ops
        self.askers = self.told = askers
        self.ids = sum(op[0] == "push" for op in ops)
        self.started = perf_counter()
        self.done = done
        self._held: list[Callable[[], None]] = []
        self._refusals: list[Callable[[Refusal], None]] = []

    def hold(self) -> None:
        """Nobody is answered before all are released, or refused, for that it is entered is not enough."""
        self.told = [
            None if asker is None
            else [(count, self._hold(then, partial(_refuse_all, count, then))) for count, then in asker] if op[0] == "said"
            else (self._hold(asker[0], asker[1]), self._hold(asker[1], asker[1]))
            for op, asker in zip(self.ops, self.askers, strict=True)]

    def _hold(self, then: Callable[..., None], refused: Callable[[Refusal], None]) -> Callable[..., None]:
        def held(*told: Any) -> None:
            self._held.append(partial(then, *told))
            self._refusals.append(refused)

        return held

    def release(self) -> None:
        """What of it was entered is safe: all are answered."""
        held, self._held = self._held, []
        for answer in held:
            answer()

    def refuse(self, refusal: Refusal) -> None:
        """What of it was entered is not safe enough."""
        refusals, self._refusals = self._refusals, []
        for refused in refusals:
            refused(refusal)

    def size(self) -> int:
        """How many events and changes of states that are."""
        return sum(len(op[1]) if op[0] == "said" else op[0] in ("push", "recall", "end") for op in self.ops)

    def concerned(self, ledger: Ledger) -> set[str]:
        """Who is to hear of it at once: the channels that it is about, or ALL. What is only true of one node is of no such interest."""
        concerned: set[str] = set()
        for op in self.ops:
            if op[0] in ABOUT:
                concerned.add(op[ABOUT[op[0]]])
            elif op[0] in BY_EVENT:
                ids = {row[1] for row in op[1]} if op[0] == "said" else {op[1]}
                concerned.update(entry.event.channel for id in ids if (entry := ledger.entries.get(id)) is not None)
            elif op[0] in FOR_ALL:
                return {ALL}
        return concerned if len(concerned) <= MAX_WOKEN else {ALL}


class Saying:
    """The queue. `under_way` are the events and devices of receipts that are not entered yet."""

    def __init__(self) -> None:
        self.under_way: set[tuple[int, str]] = set()
        self._ops: list[Op] = []
        self._askers: list[Any] = []
        self._mentioned: deque[tuple[int, Op]] = deque()
        self._about = 0  # devices of which something that was mentioned is queued
        self._batches = 0

    def __len__(self) -> int:
        return len(self._ops)

    def say(self, op: Op, asker: Asker | None) -> None:
        """One more thing, and who is told what becomes of it."""
        if op[0] in LAST:
            self.say_mentioned(inf)
        self._queue(op, asker)

    def _queue(self, op: Op, asker: Asker | None) -> None:
        self._ops.append(op)
        self._askers.append(asker)

    def mention(self, op: Op, size: int) -> None:
        """Something about so many devices that nobody waits for. Pushes and receipts that are said later may be said before it."""
        self._mentioned.append((size, op))

    @property
    def has_more(self) -> bool:
        """Whether something was mentioned and is not queued yet."""
        return bool(self._mentioned)

    def say_mentioned(self, most: float) -> None:
        """Queue what was mentioned, in its order, as long as it is about fewer devices than `most`, with what of it is queued already."""
        while self._mentioned and self._about < most:
            size, op = self._mentioned.popleft()
            self._queue(op, None)
            self._about += size

    def give(self, receipts: Sequence[Receipt], then: Callable[[list[Any]], None]) -> None:
        """Receipts: one op for all that stand in a row, and for each who gave some how many they are."""
        self.under_way.update([(receipt[1], receipt[0]) for receipt in receipts])
        if not self._ops or self._ops[-1][0] != "said":
            self.say(("said", []), [])  # type: ignore[arg-type]  # in place of one asker, all who gave some
        self._ops[-1][1].extend(receipts)
        self._askers[-1].append((len(receipts), then))

    def entered(self, receipts: Sequence[Receipt]) -> None:
        """These are on their way no more."""
        self.under_way.difference_update([(receipt[1], receipt[0]) for receipt in receipts])

    def cut(self, now: float, done: "asyncio.Future[None]") -> Batch:
        """What is queued, as far as one batch goes."""
        count, size = 0, 0
        for op in self._ops:
            size += len(op[2]) if op[0] == "push" else len(op[3] or b"") if op[0] == "document" else 0
            if count == MAX_OPS or (count and size > MAX_BYTES):
                break
            count += 1
        self._about = 0
        ops, askers = self._ops[:count], self._askers[:count]
        del self._ops[:count], self._askers[:count]
        self._batches += 1
        return Batch(self._batches, now, ops, askers, done)

    def put_back(self, batch: Batch) -> None:
        """It may be in the log or not. Who waits for it is told so; what nobody asked for is said again, for it may be said twice."""
        self._ops[:0] = batch.ops
        self._askers[:0] = batch.askers

    def refusals(self) -> list[Callable[[Refusal], None]]:
        """Take out what somebody waits for: whoever that is, is to be refused."""
        ops, askers, self._ops, self._askers = self._ops, self._askers, [], []
        refused: list[Callable[[Refusal], None]] = []
        for op, asker in zip(ops, askers, strict=True):
            if op[0] == "said":
                self.entered(op[1])
                refused += [partial(_refuse_all, count, then) for count, then in asker]
            elif op[0] in ASKED:
                refused.append(asker[1])
            else:
                self._queue(op, asker)
        return refused

    def clear(self) -> None:
        """Nothing of it is said."""
        self._ops.clear()
        self._askers.clear()
        self._mentioned.clear()
        self._about = 0


def _refuse_all(count: int, then: Callable[[list[Any]], None], refusal: Refusal) -> None:
    then([refusal] * count)
