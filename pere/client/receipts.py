"""The receipts of one device, on their way to the server: nobody waits for them, and none is lost.

What is said while a request is under way goes together into the next one, so a single receipt leaves at once and a burst in a few
requests. A request without an answer is repeated until there is one, which is safe: the first receipt stands. There is an answer
when PERE itself gives one; a proxy's or a captive portal's is none.
"""

import asyncio
import random
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

import orjson

from pere.client.backoff import Backoff
from pere.client.http import Http, is_final, part
from pere.client.news import OnNews, Unreceipted, Unsent, log
from pere.errors import Refusal, Stranger

# Receipts in one request, where the server does not take fewer (`--max-batch`).
MOST = 1_000
# Receipts that may wait: a device that has more does not read on, so the events wait at the server.
ROOM = 10_000
# Receipts that are remembered when they were answered, for an event that comes again all the same.
REMEMBERED = 1_000

HARD = ("processed", "failed")
SOFT = ("processed", "failed", "delivered")
# Somebody may give the device its right back, or a better token: such a receipt is repeated as if the server were away.
DENIED = (401, 403)
# It owes none (`receipt=none`); it said otherwise before; nobody remembers the event: for whoever gave the receipt, that is an answer.
ANSWERED = (404, 409, 410)

Receipt = dict[str, Any]


class Receipts:
    """Those of `device`. What is not answered is also in `kept`, if there is one, by the device and the event's id."""

    def __init__(self, http: Http, device: str, on_news: OnNews, kept: MutableMapping[str, bytes] | None):
        self.jitter = 0.0  # seconds over which the server wants them spread
        self._http = http
        self._device = device
        self._on_news = on_news
        self._kept = kept
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, Receipt] = {}
        self._sending: dict[str, Receipt] = {}
        self._answered: dict[str, Receipt] = {}
        self._most = MOST
        self._task: asyncio.Task[None] | None = None
        self._is_stopped = False
        self._changed = asyncio.Event()
        self._there = asyncio.Event()

    def __len__(self) -> int:
        """How many are not answered yet."""
        return len(self._waiting) + len(self._sending)

    def say(self, receipt: Receipt) -> None:
        """Give a receipt, `{"event_id", "channel", "state", ...}`. May be called from any thread."""
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            self._say(receipt)
        else:
            self._loop.call_soon_threadsafe(self._say, receipt)

    def _say(self, receipt: Receipt) -> None:
        id = receipt["event_id"]
        said = self._waiting.get(id) or self._sending.get(id)
        if said is not None and said["state"] in HARD:
            return  # the first word stands
        if receipt["state"] == "retry":
            self._answered.pop(id, None)
        self._waiting[id] = receipt
        if self._kept is not None and receipt["state"] in SOFT:
            with _spared():
                self._kept[f"{self._device} {id}"] = orjson.dumps(receipt)
        if (self._task is None or self._task.done()) and not self._is_stopped:
            self._task = self._loop.create_task(self._send_all())

    def again(self, id: str, last: tuple[str, ...] = HARD) -> bool:
        """Whether this event was given one of the `last` receipts before. The server seems not to know, so it is told once more, unless it is being told."""
        said = self._waiting.get(id) or self._sending.get(id)
        if said is not None:
            return said["state"] in last
        if id not in self._answered or self._answered[id]["state"] not in last:
            return False
        self._say(self._answered.pop(id))
        return True

    def hurry(self) -> None:
        """The server is there again, as its feed shows: try now what was waiting for that."""
        self._there.set()

    async def room(self) -> None:
        """Wait until there is room for one more."""
        while len(self) >= ROOM:
            await self._change()

    async def flush(self) -> None:
        """Wait until all are answered."""
        while len(self):
            await self._change()

    async def _change(self) -> None:
        if self._is_stopped:
            raise RuntimeError("this client is closed")
        self._changed.clear()
        await self._changed.wait()

    def stop(self) -> None:
        """Send no more; what is not answered is kept, if anything is."""
        self._is_stopped = True
        self._changed.set()  # nobody is to wait for what does not come any more
        if self._task is not None:
            self._task.cancel()

    async def _send_all(self) -> None:
        if self.jitter:
            await asyncio.sleep(random.uniform(0, self.jitter))
        backoff = Backoff()
        while self._waiting:
            if len(self._waiting) <= self._most:
                self._sending, self._waiting = self._waiting, {}
            else:
                self._sending = {id: self._waiting.pop(id) for id in list(self._waiting)[:self._most]}
            self._there.clear()
            try:
                results = await self._send(list(self._sending.values()))
            except Exception as error:  # what a giver of tokens raises may be anything
                wait = self._unsent(error, backoff)
                # Who said "not now" is taken at his word, whatever the feed shows.
                await self._until_there(wait) if isinstance(error, (ConnectionError, Stranger)) else await asyncio.sleep(wait)
            else:
                backoff.reset()
                self._answer(results)
            self._changed.set()

    async def _until_there(self, most: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(most):
                await self._there.wait()

    async def _send(self, receipts: list[Receipt]) -> list[Refusal | None]:
        """Send these; the refusal of each that was refused. Raises where there is no answer for all."""
        if len(receipts) == 1:
            # One by one they look alike, and such the server answers together with those of other devices.
            receipt, = receipts
            body = orjson.dumps({name: value for name, value in receipt.items() if name not in ("channel", "event_id")})
            try:
                await self._http.ask("POST", f"/feedback/{part(receipt['channel'])}", body=body, headers=self._headers | {"Last-Event-ID": receipt["event_id"]})
            except Refusal as refusal:
                if is_final(refusal) and refusal.status not in DENIED:
                    return [refusal]
                raise
            return [None]
        body = orjson.dumps({"receipts": [{name: value for name, value in receipt.items() if name != "channel"} for receipt in receipts]})
        told = (await self._http.ask("POST", "/feedback", body=body, headers=self._headers)).told
        results = told.get("results")
        if not isinstance(results, list) or len(results) != len(receipts) or not all(isinstance(result, dict) for result in results):
            raise ConnectionError(f"{self._http.url} answered {len(receipts)} receipts with something else")
        return [Refusal(result["error"], result.get("message", ""), status=result.get("status", 400)) if "error" in result else None for result in results]

    @property
    def _headers(self) -> dict[str, str]:
        return {"Device": self._device, "Content-Type": "application/json"}

    def _unsent(self, error: Exception, backoff: Backoff) -> float:
        """What was sent is not answered: in how many seconds to try again, if it is worth it."""
        sent, self._sending = self._sending, {}
        if isinstance(error, Refusal) and error.status == 413 and len(sent) > 1:
            self._most = len(sent) // 2
            wait = 0.0
        elif _is_given_up(error):
            for id in sent:
                self._give_up(id, error)
            return 0.0
        else:
            wait = backoff.next(error)
            self._on_news(Unsent(self._device, len(sent) + len(self._waiting), error, wait))
        # What was said meanwhile of the same events is newer.
        self._waiting = sent | self._waiting
        return wait

    def _answer(self, results: list[Refusal | None]) -> None:
        sent, self._sending = self._sending, {}
        for (id, receipt), refusal in zip(sent.items(), results, strict=True):
            if refusal is not None and refusal.code == "large_status" and "status" in receipt:
                # Better without the device's own word than not at all.
                self._waiting.setdefault(id, {name: value for name, value in receipt.items() if name != "status"})
                continue
            if refusal is not None and _is_given_up(refusal):
                self._give_up(id, refusal)
                continue
            if refusal is not None and refusal.status not in ANSWERED:
                self._waiting.setdefault(id, receipt)
                continue
            self._forget(id)
            if receipt["state"] in SOFT:
                self._answered[id] = receipt
                if len(self._answered) > REMEMBERED:
                    # The oldest: a dict keeps the order in which things came.
                    del self._answered[next(iter(self._answered))]

    def _give_up(self, id: str, error: Exception) -> None:
        self._forget(id)
        self._on_news(Unreceipted(self._device, id, error))

    def _forget(self, id: str) -> None:
        if self._kept is not None:
            # It may never have been there: only receipts are, not `working`.
            with _spared():
                self._kept.pop(f"{self._device} {id}", None)


@contextmanager
def _spared() -> Iterator[None]:
    """A disk that is full, or whatever else happens to what is kept, stops no receipt."""
    try:
        yield
    except Exception:
        log.exception("a receipt cannot be kept, or not be removed from what is kept")


def _is_given_up(error: Exception) -> bool:
    """Whether this is PERE's last word, and a no."""
    return isinstance(error, Refusal) and is_final(error) and error.status not in (*DENIED, *ANSWERED)
