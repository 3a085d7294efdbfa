"""What one endpoint is still to be sent, and what was given up: in the store before it goes out, and until it has arrived.

Only names are at hand here, a hundred thousand of them for one endpoint that is down; the notices are read when their turn comes. A
name tells when a notice was made, and how much it tells of: `wh_0123456789abcdef/0016a1b2c3d4e5f6/100`.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import orjson

from pere.errors import Refusal
from pere.event import IdClock, first_id, given_at
from pere.notice import Kept, Packed
from pere.storage import Store
from pere.storage.settling import telling

QUEUED, DEAD, STATE, CURSOR = "notice", "dead", "webhook-state", "webhook-cursor"  # kinds of documents
MAX_QUEUED = 100_000  # receipts, devices and other notices that wait for one endpoint; what is more is counted, and dropped
MAX_DEAD = 100_000  # the same of what was given up: then the oldest goes
AGAIN = 1.0  # seconds until what could not be kept is tried again
TRIES = 3  # at the end, when there is no later: if the disk refuses all of these it keeps nothing else either, and the next process tells what is in the log and was not told
SLICE = 100  # notices that are moved in one turn of the loop

Done = Callable[[Refusal | None], None]


def named(names: Iterable[str]) -> dict[str, list[str]]:
    """These names by the endpoint that they are for, each in the order of time."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(name.partition("/")[0], []).append(name)
    return found


def number_of(name: str) -> int:
    """When a notice was made, as the id of an event tells it."""
    return int(name.split("/")[1], 16)


def count_of(name: str) -> int:
    """Of how many receipts or devices a notice tells."""
    return int(name.rpartition("/")[2])


def _ignore(refusal: Refusal | None) -> None:
    """What else is put away in this turn of the loop tells of both; or it is no matter."""


class Outbox:
    """Of the endpoint `id`. `waiting` is how many receipts, devices and others are yet to arrive, `dropped` how many found no room and
    were not told of yet. `failures` in a row, the loop's time until which it is left alone (`due`), and what went wrong last
    are the endpoint's; `cursor` is up to which record it has been told of receipts, None if it does not hear of them."""

    def __init__(self, store: Store, ids: IdClock, id: str, queued: Iterable[str], dead: Iterable[str], state: bytes | None,
                 cursor: bytes | None):
        self.id = id
        self.queue = deque(queued)
        self.flying: set[str] = set()
        self.dead = dict.fromkeys(dead)
        self.waiting = sum(map(count_of, self.queue))
        self.dead_count = sum(map(count_of, self.dead))
        self.dropped = self.failures = 0
        self.due = 0.0
        self.cursor: int | None = None
        self.trouble = ""
        self.is_removed = False
        self.on_more: Callable[[Outbox], None] = lambda outbox: None
        self.lost = 0  # for want of room, in all
        self._retries: list[tuple[float, str]] = []
        self._untold: dict[str, Packed] = {}  # by id, as long as they are not kept
        self._is_last = False  # there is no later
        self._store = store
        self._ids = ids
        self._loop = asyncio.get_running_loop()
        if state is not None:
            kept = orjson.loads(state)
            self.failures, self.trouble = kept["failures"], kept["trouble"]
            # Were the clock wrong, then or now, it would be left alone for no longer than anybody ever is.
            self.due = self._loop.time() + min(max(0.0, kept["due"] - store.clock()), 86_400.0)
        if cursor is not None:
            kept = orjson.loads(cursor)
            self.cursor, self.dropped = kept["cursor"], kept["dropped"]

    # In

    @property
    def room(self) -> int:
        """For how many more there is room."""
        return MAX_QUEUED - self.waiting

    def drop(self, count: int) -> None:
        """So many found no room."""
        self.dropped += count
        self.lost += count

    def put(self, notices: Sequence[Packed], then: Done, cursor: int | None = None) -> None:
        """Keep notices, with a new `cursor` if there is one, and queue them when that is done; or all this has not happened, and `then` is
        told why."""
        now = self._store.clock()
        names: list[str] = []
        count = sum(each.count for each in notices)
        self.waiting += count

        def kept(refusal: Refusal | None) -> None:
            if refusal is not None:
                self.waiting -= count
            elif self.is_removed:
                self._forget(QUEUED, names)
            else:
                self.queue += names
                self.on_more(self)
            then(refusal)

        if cursor is not None:
            self.move(cursor)
        for left, each in enumerate(notices, 1 - len(notices)):
            name = f"{self.id}/{self._ids.next(now):016x}/{each.count}"
            names.append(name)
            # The last one stands for all.
            self._store.put_away(QUEUED, name, each.document, kept if not left else _ignore)

    def heard(self, kind: str, name: str, document: bytes | None) -> None:
        """Another node has put something of this outbox away, or has taken it away."""
        if kind == CURSOR:
            kept: dict[str, Any] = orjson.loads(document) if document is not None else {"cursor": None, "dropped": 0}
            self.cursor, self.dropped = kept["cursor"], kept["dropped"]
        elif kind == DEAD and document is not None and name not in self.dead:
            self._died((name,))
        elif kind == DEAD and document is None and name in self.dead:
            del self.dead[name]
            self.dead_count -= count_of(name)
        elif kind == QUEUED and document is not None and name not in self.queue and name not in self.flying:
            self.queue.append(name)
            self.waiting += count_of(name)
        elif kind == QUEUED and document is None and name in self.queue:
            self.queue.remove(name)
            self.waiting -= count_of(name)

    def move(self, cursor: int | None, then: Done = _ignore) -> None:
        """It has been told of receipts up to this record, or does not hear of them any more. So many as are `dropped` now are a part of this."""

        def kept(refusal: Refusal | None) -> None:
            if refusal is None and not self.is_removed:
                self.cursor = cursor
            then(refusal)

        document = orjson.dumps({"cursor": cursor, "dropped": self.dropped}) if cursor is not None else None
        self._store.put_away(CURSOR, self.id, document, kept)

    def tell(self, notice: Packed) -> None:
        """Queue a notice that nobody would make anew: as often as the disk refuses it, it is tried again. Without room it is dropped."""
        if self.room < notice.count:
            self.drop(notice.count)
        else:
            self._tell(notice)

    def _tell(self, notice: Packed) -> None:
        self._untold[notice.id] = notice

        def kept(refusal: Refusal | None) -> None:
            if refusal is None:
                self._untold.pop(notice.id, None)
            elif self._is_last:
                if self._untold.pop(notice.id, None) is not None:
                    self._put_last((notice,), TRIES)
            elif not self.is_removed:
                self._loop.call_later(AGAIN, lambda: self._tell(notice) if notice.id in self._untold else None)

        self.put((notice,), kept)

    def tell_now(self) -> None:
        """What the disk has refused, once more: there will be no later, nor for what is told from now on."""
        self._is_last = True
        untold, self._untold = self._untold, {}
        if untold:
            self._put_last(tuple(untold.values()), TRIES)

    def _put_last(self, notices: Sequence[Packed], tries: int) -> None:
        # At once: who waits until all is kept waits for this too.
        self.put(notices, lambda refusal: self._put_last(notices, tries - 1) if refusal is not None and tries > 1 and not self.is_removed else None)

    def document(self) -> bytes:
        """The state, to be kept."""
        wait = max(0.0, self.due - self._loop.time())
        return orjson.dumps({"failures": self.failures, "trouble": self.trouble, "due": self._store.clock() + wait if wait else 0})

    def save(self) -> None:
        """Keep the state. Where that fails it is a little old after a crash, and nothing else."""
        self._store.put_away(STATE, self.id, self.document(), _ignore)

    def well(self) -> None:
        """The endpoint has answered: nothing holds it up."""
        if self.failures or self.due or self.trouble:
            self.failures, self.due, self.trouble = 0, 0.0, ""
            self.save()

    # Out

    def take(self) -> str | None:
        """The next one to be sent; None if none is due. It is under way until it is `done`, `failed` or `buried`."""
        name = None
        if self._retries and self._retries[0][0] <= self._loop.time():
            _, name = heapq.heappop(self._retries)
        elif self.queue:
            name = self.queue.popleft()
        if name is not None:
            self.flying.add(name)
        return name

    def next_retry(self) -> float | None:
        """When one of those that have failed is due again (the loop's time)."""
        return self._retries[0][0] if self._retries else None

    def oldest(self) -> float:
        """When the oldest notice was made that waits (seconds since 1970); 0 if none does."""
        names = [*islice(self.queue, 1), *(name for _, name in self._retries[:1]), *self.flying]
        return given_at(min(map(number_of, names))) if names else 0.0

    def read(self, name: str) -> Kept | None:
        """A notice that is under way; None if it is not there any more. Raises Unavailable, and ValueError for what cannot be read."""
        return self._read(QUEUED, name)

    def done(self, name: str) -> None:
        """It has arrived."""
        self._land(name)
        self._forget(QUEUED, (name,))

    def set_aside(self, name: str) -> None:
        """It is not to be read, and stays where it is for who can read it."""
        self._land(name)

    def failed(self, name: str, kept: Kept | None, wait: float) -> None:
        """It has not, and is due again in so many seconds. `kept` is how it is known from now on, None if as before."""
        if self.is_removed:
            return
        self.flying.discard(name)
        heapq.heappush(self._retries, (self._loop.time() + wait, name))
        if kept is not None:
            self._store.put_away(QUEUED, name, kept.document(), _ignore)

    def bury(self, name: str, kept: Kept) -> None:
        """It is given up."""
        if self.is_removed:
            return
        self._put_move(QUEUED, DEAD, name, kept, buried := self._loop.create_future())

        def done(_: object) -> None:
            refusal = buried.result()
            if refusal is not None and not self.is_removed:
                self._loop.call_later(AGAIN, self.bury, name, kept)
            else:
                self._land(name)
                self._died((name,))

        buried.add_done_callback(done)

    def _land(self, name: str) -> None:
        self.flying.discard(name)
        self.waiting -= count_of(name)

    async def bury_all(self, trouble: str, is_over: Callable[[], bool]) -> None:
        """Give all up that is queued, a piece at a time, unless it `is_over` before."""
        while not is_over() and self.has_more():
            self.queue.extendleft(name for _, name in self._retries)
            self._retries.clear()
            names = [self.queue.popleft() for _ in range(min(SLICE, len(self.queue)))]

            def dead(kept: Kept) -> Kept:
                return Kept(kept.notice, kept.attempts, kept.trouble or trouble)

            if await self._move(QUEUED, DEAD, names, dead):
                self.waiting -= sum(map(count_of, names))
                self._died(names)
            else:
                self.queue.extendleft(reversed(names))
                await asyncio.sleep(AGAIN)

    def has_more(self) -> bool:
        """Whether anything waits that is not under way."""
        return bool(self.queue or self._retries)

    def _died(self, names: Iterable[str]) -> None:
        for name in names:
            self.dead[name] = None
            self.dead_count += count_of(name)
        while self.dead_count > MAX_DEAD and len(self.dead) > 1:
            oldest = next(iter(self.dead))
            self.dead_count -= count_of(oldest)
            del self.dead[oldest]
            self._forget(DEAD, (oldest,))

    # Given up

    def letters(self, since: float, until: float, after: int = 0) -> Iterator[str]:
        """The names of what was given up and was made in this time (seconds since 1970, `until` not included), after this number."""
        first = max(first_id(max(0.0, since)), after + 1)
        last = first_id(min(until, 8e9))
        return (name for name in sorted(self.dead) if first <= number_of(name) < last)

    def letter(self, name: str) -> Kept | None:
        """One of them; None if it is there no more, or cannot be read. Raises Unavailable."""
        try:
            return self._read(DEAD, name)
        except ValueError:
            return None

    async def replay(self, names: Sequence[str]) -> None:
        """Queue these again, a piece at a time, as if they had never been tried."""
        for start in range(0, len(names), SLICE):
            # What another replay has taken meanwhile is not taken twice, and ends nothing.
            piece = [name for name in names[start : start + SLICE] if name in self.dead]
            if not piece:
                continue
            for name in piece:
                del self.dead[name]
            while not await self._move(DEAD, QUEUED, piece, lambda kept: Kept(kept.notice)):
                await asyncio.sleep(AGAIN)
            count = sum(map(count_of, piece))
            self.dead_count -= count
            self.waiting += count
            self.queue += piece
            self.on_more(self)

    async def _move(self, source: str, target: str, names: Sequence[str], made: Callable[[Kept], Kept]) -> bool:
        """From one kind to the other, together; whether that is kept. What is not to be read stays where it is."""
        moved = None
        for name in names:
            try:
                kept = self._read(source, name)
            except ValueError:
                continue
            except Refusal:
                return False
            if kept is not None:
                self._put_move(source, target, name, made(kept), moved := self._loop.create_future())
        # The last one stands for all: so few are one commit.
        return moved is None or await moved is None

    def _put_move(self, source: str, target: str, name: str, kept: Kept, moved: "asyncio.Future[Refusal | None]") -> None:
        self._store.put_away(target, name, kept.document(), _ignore)
        self._store.put_away(source, name, None, telling(moved))

    async def remove(self) -> None:
        """The endpoint is no more: nor is anything that was for it."""
        self.is_removed = True
        gone = {QUEUED: [*self.queue, *(name for _, name in self._retries), *self.flying], DEAD: [*self.dead]}
        self.queue.clear()
        self._retries.clear()
        self.dead.clear()
        self.waiting = self.dead_count = 0
        for kind in (STATE, CURSOR):
            self._forget(kind, (self.id,))
        for kind, names in gone.items():
            for start in range(0, len(names), SLICE):
                done = self._loop.create_future()
                self._forget(kind, names[start : start + SLICE], done)
                await done

    def _read(self, kind: str, name: str) -> Kept | None:
        document = self._store.document(kind, name)
        return Kept.of(document) if document is not None else None

    def _forget(self, kind: str, names: Sequence[str], done: "asyncio.Future[None] | None" = None) -> None:
        """Together, as often as it takes."""

        def told(refusal: Refusal | None) -> None:
            if refusal is not None:
                self._loop.call_later(AGAIN, self._forget, kind, names, done)
            elif done is not None and not done.done():
                done.set_result(None)

        for name in names[:-1]:
            self._store.put_away(kind, name, None, _ignore)
        if names:
            self._store.put_away(kind, names[-1], None, told)
