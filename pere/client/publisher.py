"""A publisher's side: push events, and ask what became of them."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import orjson

from pere.client.backoff import Backoff
from pere.client.http import Http, is_final, part
from pere.errors import Refusal

# What the server takes in one POST /push unless it is told otherwise (`--max-batch`, `--max-batch-bytes`).
MOST, MOST_BYTES = 1_000, 4 * 1024 * 1024
# Lines on a page of devices.
PAGE = 1_000
# How long one question for a change may wait: proxies cut what is silent for a minute.
TURN = 30.0
# The server knows nothing shorter.
SHORTEST_TURN = 0.1


class Publisher:
    """What a publisher may ask of the server that `http` leads to, under the name of `device`."""

    def __init__(self, http: Http, device: str | None):
        self._http = http
        self.device = device

    async def push(self, channel: str, data: Any, *, type: str | None = None, to: Iterable[str] = (), ttl: int | None = None,
                   receipt: str | None = None, need: str | int | None = None, key: str | None = None, wait: int | None = None,
                   callback: str | None = None, traceparent: str | None = None, patience: float = 0.0) -> dict[str, Any]:
        """Publish an event; returns `{"id", "channel", "audience"}` once it is as safe as the server's store makes it.

        `data` as str is text, as bytes is JSON that is encoded already, and anything else becomes JSON. `key` is an
        Idempotency-Key: with one, a push whose answer got lost can be repeated and is still published once. With `wait` the answer is
        the delivery status, once `need` is met or cannot be any more, or after so many seconds. `callback` is the webhook that is told
        what becomes of it, `traceparent` where it stands in a trace (W3C Trace Context). For `patience` seconds it is tried again where the server is away or says "not now"; then a key is made if none is given
        (which the server remembers for `--idempotency-window`, 10 min, so have no more patience than that).
        """
        kind = "text/plain; charset=utf-8" if isinstance(data, str) else "application/json"
        body = data.encode() if isinstance(data, str) else data if isinstance(data, bytes) else orjson.dumps(data)
        if key is None and patience:
            key = secrets.token_hex(16)
        headers = self._named | {"Content-Type": kind} | ({} if key is None else {"Idempotency-Key": key}) | ({} if wait is None else {"Prefer": f"wait={wait}"})
        headers |= {} if traceparent is None else {"traceparent": traceparent}
        query = {"type": type, "to": list(to) or None, "ttl": ttl, "receipt": receipt, "need": need, "callback": callback}
        backoff, loop = Backoff(), asyncio.get_running_loop()
        end = loop.time() + patience
        while True:
            try:
                return (await self._http.ask("POST", f"/push/{part(channel)}", query, body, headers, patience=wait or 0)).told
            except (ConnectionError, Refusal) as error:
                pause = backoff.next(error)
                if is_final(error) or loop.time() + pause > end:
                    raise
            await asyncio.sleep(pause)

    async def push_many(self, events: Iterable[Mapping[str, Any]], *, patience: float = 0.0) -> list[dict[str, Any]]:
        """Publish many, each `{"channel", "data", "type"?, "to"?, "ttl"?, "receipt"?, "need"?, "callback"?, "traceparent"?}`. Returns a result for each, in order:
        what `push` would return, or `{"error", "message", "status"}`; a bad one does not spoil the others.

        They go in as many requests as the server's limits make necessary. The requests before one that fails have been published, so its error then
        stands in the results, for its events and for all after them; `status` is None where nobody knows whether they were published. Only
        where the very first fails is the error raised. For `patience` seconds a request is repeated that was refused as a whole because it is too early (429,
        503); one whose answer got lost never is.
        """
        results: list[dict[str, Any]] = []
        backoff, loop = Backoff(), asyncio.get_running_loop()
        end = loop.time() + patience
        waiting = [batch for batch in _batches([orjson.dumps(event) for event in events])]
        while waiting:
            batch = waiting.pop(0)
            try:
                told = (await self._http.ask("POST", "/push", None, b"[" + b",".join(batch) + b"]", self._named | {"Content-Type": "application/json"})).told
                results += told.get("results", ())
                backoff.reset()
            except (ConnectionError, Refusal) as error:
                if isinstance(error, Refusal) and error.status == 413 and len(batch) > 1:
                    # This server takes less at once than most.
                    waiting[:0] = [batch[:len(batch) // 2], batch[len(batch) // 2:]]
                    continue
                pause = backoff.next(error)
                if isinstance(error, Refusal) and error.status in (429, 503) and loop.time() + pause <= end:
                    waiting.insert(0, batch)
                    await asyncio.sleep(pause)
                    continue
                if not results:
                    raise
                code, status = (error.code, error.status) if isinstance(error, Refusal) else ("unreachable", None)
                results += [{"error": code, "message": str(error), "status": status} for each in (batch, *waiting) for _ in each]
                break
        return results

    async def recall(self, channel: str, id: str) -> dict[str, Any]:
        """Take an event back; returns `{"id", "channel", "cancelled"}`, the last being how many devices still owed a receipt."""
        return (await self._http.ask("DELETE", f"/events/{part(channel)}/{part(id)}", headers=self._named)).told

    async def status(self, channel: str, id: str) -> dict[str, Any]:
        """What became of an event: its audience, how many devices are in each state, latency quantiles in seconds."""
        return (await self._http.ask("GET", f"/events/{part(channel)}/{part(id)}", headers=self._named)).told

    async def wait(self, channel: str, id: str, *, until: str = "satisfied", seconds: float | None = None) -> dict[str, Any]:
        """The delivery status of an event once it is `satisfied` (as many devices have processed it as its push needed) or `complete` (every device has
        answered, so that it is too late for the other), or as it is after so many `seconds`: look at that field of what is returned. A server that goes
        away meanwhile is waited for."""
        if until not in ("satisfied", "complete"):
            raise ValueError(f"one waits until an event is satisfied or complete, not {until!r}")
        loop, backoff = asyncio.get_running_loop(), Backoff()
        end = loop.time() + seconds if seconds is not None else None
        told: dict[str, Any] = {}
        etag = ""
        while True:
            left = TURN if end is None else max(SHORTEST_TURN, min(TURN, end - loop.time()))
            try:
                query = {"wait": f"{left:.3f}"} if etag else {}
                headers = self._named | ({"If-None-Match": etag} if etag else {})
                answer = await self._http.ask("GET", f"/events/{part(channel)}/{part(id)}", query, headers=headers, patience=left)
            except (ConnectionError, Refusal) as error:
                pause = backoff.next(error)
                if is_final(error) or end is not None and loop.time() + pause > end:
                    raise
                await asyncio.sleep(pause)
                continue
            backoff.reset()
            if answer.status != 304:
                told, etag = answer.told, answer.etag
            if told.get(until) or told.get("complete") or end is not None and loop.time() >= end:
                return told

    async def devices(self, channel: str, id: str, state: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """Who has the event and who has not, device by device, page after page; `state` narrows it to `outstanding` or to one state."""
        cursor = None
        while True:
            query = {"state": state, "cursor": cursor, "limit": PAGE}
            page = (await self._http.ask("GET", f"/events/{part(channel)}/{part(id)}/devices", query, headers=self._named)).told
            for device in page.get("devices", ()):
                yield device
            cursor = page.get("cursor")
            if not cursor:
                return

    def outstanding(self, channel: str, id: str) -> AsyncIterator[dict[str, Any]]:
        """Who still owes a receipt, device by device: `{"device", "state", "status", "attempt", "late", "sent_at", "receipt_at", "latency", "online"}`."""
        return self.devices(channel, id, "outstanding")

    @property
    def _named(self) -> dict[str, str]:
        return {"Device": self.device} if self.device is not None else {}


def _batches(items: Sequence[bytes]) -> list[list[bytes]]:
    batches: list[list[bytes]] = []
    size = 0
    for item in items:
        if not batches or len(batches[-1]) >= MOST or size + len(item) > MOST_BYTES - 2:
            batches.append([])
            size = 0
        batches[-1].append(item)
        size += len(item) + 1
    return batches
