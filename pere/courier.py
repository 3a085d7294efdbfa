"""The courier: takes what is in the outboxes to the endpoints, and is in no hurry with those that do not answer.

An endpoint that fails is left alone, longer each time, and with it all that waits for it; a single notice that fails where others
arrive waits by itself. So a receiver that is down costs one request now and then, and delays nobody else.
"""

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable

from pere.endpoint import ACTIVE, DISABLED, Endpoint
from pere.errors import Refusal
from pere.event import IdClock
from pere.notice import Kept, Notice
from pere.outbox import AGAIN, CURSOR, DEAD, QUEUED, STATE, Outbox, named, number_of
from pere.sender import FAILURES, Outcome
from pere.storage import Store

log = logging.getLogger("pere.webhooks")

# Seconds to wait after each failure in a row, each between half and whole; after the last one we give up.
BACKOFF = (5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800, 43_200)
MAX_RETRY_AFTER = 3600.0  # of an endpoint's wish to be left alone for a while
PROBE_AFTER = 5  # failures in a row, after which one request at a time is enough to find out
MAX_EACH = 2  # requests at once to one endpoint
MAX_ALL = 32  # and to all; those that are failing get half of these, so that they do not stand in the others' way


def wait_after(failures: int, wish: float | None) -> float | None:
    """In how many seconds to try again after so many failures in a row; None is not any more. A server's wish is heard, to an extent."""
    if failures > len(BACKOFF):
        return None
    return max(BACKOFF[failures - 1] * (0.5 + 0.5 * random.random()), min(wish or 0.0, MAX_RETRY_AFTER))


class Courier:
    """`post` sends a notice to an endpoint, `look` tells how one stands, and `give_up` is told which is to get nothing more, and why.
    `posts` by outcome, and `buried`, are for metrics."""

    def __init__(self, store: Store, post: Callable[[Endpoint, Notice], Awaitable[Outcome]], look: Callable[[str], Endpoint | None],
                 give_up: Callable[[Endpoint, str], None], on_post: Callable[[float], None] = lambda seconds: None):
        self.outboxes: dict[str, Outbox] = {}
        self.posts: Counter[str] = Counter(dict.fromkeys(("ok", *FAILURES), 0))
        self.on_post = on_post
        self.buried = 0
        self.lost = 0  # of outboxes that are no more
        self._store = store
        self._post = post
        self._look = look
        self._ending: set[str] = set()  # who is about to be given up
        self._burying: set[str] = set()
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        queued, dead = store.names(QUEUED), store.names(DEAD)
        self._ids = IdClock(max(map(number_of, queued + dead), default=0))
        self._kept = named(queued), named(dead), store.documents(STATE), store.documents(CURSOR)
        self._under_way: dict[asyncio.Task[None], Outbox] = {}
        self._unwell = 0  # of these, those whose endpoint was failing
        self._line: deque[Outbox] = deque()  # who waits for one of the MAX_ALL
        self._alarms: dict[str, asyncio.TimerHandle] = {}
        self._chores: set[asyncio.Task[None]] = set()
        self._is_stopped = True  # until it is started

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    def open(self, id: str) -> Outbox:
        """The outbox of an endpoint, with what was kept of it when this began; `heard` tells of what came later."""
        queued, dead, states, cursors = self._kept
        outbox = self.outboxes[id] = Outbox(
            self._store, self._ids, id, queued.pop(id, ()), dead.pop(id, ()), states.pop(id, None), cursors.pop(id, None))
        outbox.on_more = self.go
        return outbox

    def start(self) -> None:
        """All are open: send. What is kept for nobody is cleared away."""
        self._is_stopped = False
        for id in set().union(*self._kept):
            log.debug("notices for nobody were cleared away", extra={"facts": {"id": id}})
            self.remove(self.open(id))
        for outbox in tuple(self.outboxes.values()):
            self.go(outbox)

    def remove(self, outbox: Outbox) -> None:
        """Its endpoint is no more: nothing of it is sent any further, and nothing is kept."""
        self.outboxes.pop(outbox.id, None)
        if (alarm := self._alarms.pop(outbox.id, None)) is not None:
            alarm.cancel()
        self.lost += outbox.lost
        for task in [task for task, whose in self._under_way.items() if whose is outbox]:
            task.cancel()
        self.chore(outbox.remove())

    def chore(self, work: Awaitable[None]) -> None:
        """Something that takes a while, and that nobody waits for."""
        task = asyncio.ensure_future(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def rest(self, seconds: float) -> None:
        """Begin nothing more, and wait for what is under way, for so many seconds."""
        self._is_stopped = True
        if self._under_way and seconds:
            await asyncio.wait(tuple(self._under_way), timeout=seconds)

    async def stop(self, seconds: float = 0.0) -> None:
        """Begin nothing more, and drop what is still under way after so many seconds: it is sent again after the next start."""
        await self.rest(seconds)
        for outbox in self.outboxes.values():
            outbox.tell_now()
        for alarm in self._alarms.values():
            alarm.cancel()
        tasks = [*self._under_way, *self._chores]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def heard(self, kind: str, name: str, document: bytes | None) -> None:
        """Another node has put away something of an outbox, or has taken it away."""
        outbox = self.outboxes.get(name.partition("/")[0])
        if outbox is not None and kind in (QUEUED, DEAD, CURSOR):
            outbox.heard(kind, name, document)
            self.go(outbox)

    # Who is next

    def go(self, outbox: Outbox) -> None:
        """Send what is due of an outbox, as much as may be under way at once."""
        if self._is_stopped:
            return
        endpoint = self._look(outbox.id)
        if endpoint is not None and endpoint.state == DISABLED and outbox.has_more():
            self.bury_all(outbox, endpoint.trouble)
        while not outbox.is_removed and endpoint is not None and endpoint.state == ACTIVE and outbox.id not in self._ending:
            if len(outbox.flying) >= (1 if outbox.failures >= PROBE_AFTER else MAX_EACH):
                return
            if outbox.due > self._loop.time():
                return self._go_at(outbox, outbox.due)
            if len(self._under_way) >= MAX_ALL or (outbox.failures and self._unwell >= MAX_ALL // 2):
                if outbox not in self._line:
                    self._line.append(outbox)
                return
            name = outbox.take()
            if name is None:
                moment = outbox.next_retry()
                return self._go_at(outbox, moment) if moment is not None else None
            task = asyncio.ensure_future(self._send(outbox, endpoint, name))
            self._under_way[task] = outbox
            is_unwell = bool(outbox.failures)
            self._unwell += is_unwell
            task.add_done_callback(lambda task, is_unwell=is_unwell: self._landed(task, is_unwell))  # type: ignore[misc]

    def _go_at(self, outbox: Outbox, moment: float) -> None:
        if (alarm := self._alarms.pop(outbox.id, None)) is not None:
            alarm.cancel()
        self._alarms[outbox.id] = self._loop.call_at(moment, self.go, outbox)

    def _landed(self, task: "asyncio.Task[None]", is_unwell: bool) -> None:
        outbox = self._under_way.pop(task)
        self._unwell -= is_unwell
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a notice could not be sent", exc_info=error)
        # Who has just had a turn stands behind those who wait for theirs.
        if outbox not in self._line:
            self._line.append(outbox)
        for _ in range(len(self._line)):
            if len(self._under_way) >= MAX_ALL:
                break
            self.go(self._line.popleft())

    # One is sent

    async def _send(self, outbox: Outbox, endpoint: Endpoint, name: str) -> None:
        began = self._loop.time()
        try:
            kept = outbox.read(name)
            if kept is None:
                log.warning("a notice is not there any more", extra={"facts": {"name": name}})
                return outbox.done(name)
            outcome = await self._post(endpoint, kept.notice)
        except ValueError as error:
            log.warning("a notice was set aside", extra={"facts": {"name": name, "error": str(error)}})
            return outbox.set_aside(name)
        except BaseException as error:
            outbox.due = max(outbox.due, began + AGAIN)
            outbox.failed(name, None, 0)
            if isinstance(error, Refusal):
                return  # the disk is in trouble, which is said elsewhere
            raise
        self.posts[outcome.error or "ok"] += 1
        self.on_post(outcome.seconds)
        if outbox.is_removed:
            return
        if outcome.is_success:
            outbox.done(name)
            if outbox.failures:
                log.info("webhook answers again", extra={"facts": {"id": outbox.id, "failures": outbox.failures}})
            return outbox.well()
        now = self._look(outbox.id)
        if now is not None and now.url != endpoint.url:
            outbox.failed(name, None, 0)  # what it was sent to is of no interest any more
        else:
            self._failed(outbox, endpoint, name, kept, outcome, began)

    def _failed(self, outbox: Outbox, endpoint: Endpoint, name: str, kept: Kept, outcome: Outcome, began: float) -> None:
        # Of two that were under way together, one failure tells as much as both.
        if outbox.due <= began:
            outbox.failures += 1
            if outbox.failures in (1, PROBE_AFTER):
                # That one request fails is no news to anybody but its owner.
                log.log(logging.INFO if outbox.failures == 1 else logging.WARNING, "webhook does not answer", extra={"facts": {"id": outbox.id, "failures": outbox.failures, "trouble": outcome.message}})
        outbox.trouble = outcome.message
        attempts = kept.attempts + 1
        kept = Kept(kept.notice, attempts, outcome.message)
        wait = wait_after(outbox.failures, outcome.retry_after)
        if outcome.status == 410 or wait is None:
            outbox.failed(name, kept, 0)
            if outbox.id in self._ending:
                return
            self._ending.add(outbox.id)
            why = "it is gone (410)" if outcome.status == 410 else f"it failed {outbox.failures} times in a row, at last: {outcome.message}"
            outbox.failures, outbox.due = 0, 0.0
            outbox.save()
            return self._give_up(endpoint, why)
        now = self._loop.time()
        outbox.due = max(outbox.due, now + wait)
        own = wait_after(attempts, None)
        if own is None:
            self.buried += kept.notice.count
            outbox.bury(name, kept)
            log.warning("a notice was given up", extra={"facts": {"id": outbox.id, "notice": kept.notice.id, "trouble": outcome.message}})
        else:
            # As long as all fail, it is the endpoint that is waited for, and the oldest is what is tried.
            outbox.failed(name, kept, outbox.due - now if attempts <= outbox.failures else max(own, outbox.due - now))
        outbox.save()

    def bury_all(self, outbox: Outbox, why: str) -> None:
        """The endpoint was given up, and with it all that waits for it."""
        if outbox.id not in self._burying:
            self._burying.add(outbox.id)
            self.chore(self._bury(outbox, why))

    async def _bury(self, outbox: Outbox, why: str) -> None:
        def is_over() -> bool:
            endpoint = self._look(outbox.id)
            return endpoint is None or endpoint.state != DISABLED

        before = outbox.waiting
        try:
            await outbox.bury_all(why, is_over)
        finally:
            self._burying.discard(outbox.id)
            self.buried += max(0, before - outbox.waiting)
        self.go(outbox)

    def ended(self, id: str) -> None:
        """The endpoint was given up, or is not to be after all."""
        self._ending.discard(id)
        if id in self.outboxes:
            self.go(self.outboxes[id])
