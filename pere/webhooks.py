"""Webhooks: the endpoints that there are, and whether somebody is there who wants them.

An endpoint is kept before anybody is told of it. Until it has answered one `pere.webhook.verify` it is tried again and again, later
each time; whoever is in a hurry asks for a test. Nothing else is sent yet.
"""

import asyncio
import logging
import random
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import orjson

from pere.config import Config
from pere.endpoint import ACTIVE, DEFAULT_TYPES, DISABLED, PAUSED, PENDING, VERIFY, Endpoint, asked
from pere.errors import BadRequest, NotFound, Refusal, TooMany
from pere.event import timestamp
from pere.names import shown
from pere.outside import Outside
from pere.sender import Outcome, Sender
from pere.signing import signed
from pere.storage import Store

log = logging.getLogger("pere.webhooks")

KIND = "webhook"  # of the documents

# Seconds to wait after each failure in a row, each between half and whole; after the last one we give up.
BACKOFF = (5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800, 43_200)
MAX_RETRY_AFTER = 3600.0  # of an endpoint's wish to be left alone for a while


@dataclass(frozen=True, slots=True)
class Notice:
    """What is sent: its `id` stays the same however often that is, and so do the bytes of its body."""

    id: str
    body: bytes


def notice(type: str, source: str, data: dict[str, Any], now: float, id: str = "") -> Notice:
    """A notice as a CloudEvents 1.0 event in JSON (event format, 3): `data` is what it says."""
    id = id or f"msg_{token_hex(12)}"
    return Notice(id, orjson.dumps({
        "specversion": "1.0", "id": id, "source": source, "type": type, "time": timestamp(now), "datacontenttype": "application/json", "data": data}))


def wait_after(failures: int, wish: float | None) -> float | None:
    """In how many seconds to try again after so many failures in a row, one at least; None is not any more."""
    if failures > len(BACKOFF):
        return None
    return max(BACKOFF[failures - 1] * (0.5 + 0.5 * random.random()), min(wish or 0.0, MAX_RETRY_AFTER))


class Webhooks:
    """All endpoints. Everything here is kept when it returns; what could not be kept raises Unavailable and has not happened."""

    def __init__(self, store: Store, sender: Sender, outside: Outside, config: Config):
        self._store = store
        self._sender = sender
        self._outside = outside
        self._config = config
        self._endpoints = {name: Endpoint.of(document) for name, document in sorted(store.documents(KIND).items())}
        self._verifying: dict[str, asyncio.Task[None]] = {}
        self._lock = asyncio.Lock()  # one change at a time: each is made to a copy, which must not be an old one

    def start(self) -> None:
        for endpoint in self._endpoints.values():
            if endpoint.state == PENDING:
                self._verify(endpoint)

    async def stop(self) -> None:
        tasks = list(self._verifying.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def all(self) -> list[Endpoint]:
        """The oldest first."""
        return sorted(self._endpoints.values(), key=lambda endpoint: (endpoint.created, endpoint.id))

    def find(self, id: str) -> Endpoint:
        endpoint = self._endpoints.get(id)
        if endpoint is None:
            raise NotFound("unknown_webhook", f"there is no webhook {shown(id)}")
        return endpoint

    async def add(self, fields: Any) -> tuple[Endpoint, str]:
        """A new endpoint, as a request describes it, and its secret, which nobody is told again."""
        said = asked(fields, self._outside.target)
        if "url" not in said:
            raise BadRequest("bad_webhook_url", 'an endpoint has a "url"')
        if len(self._endpoints) >= self._config.max_webhooks:
            raise TooMany("too_many_webhooks", f"no more than {self._config.max_webhooks} webhooks are kept; remove one first")
        endpoint = Endpoint(said["url"], said.get("types", DEFAULT_TYPES), said.get("channels", ()), said.get("content_type", "application/json"),
                            self._store.clock())
        # Taken at once, so that many that come at the same time do not pass the limit together.
        self._endpoints[endpoint.id] = endpoint
        try:
            async with self._lock:
                await self._keep(endpoint.id, endpoint)
        except Refusal:
            self._endpoints.pop(endpoint.id, None)
            raise
        log.info("webhook added", extra={"facts": {"id": endpoint.id}})
        self._verify(endpoint)
        return endpoint, endpoint.secrets[0][0]

    async def change(self, id: str, fields: Any) -> Endpoint:
        """Change what an endpoint hears of, where it is, or whether it is heard: `state` may be `paused`, or `active`, which one that has
        never been verified, or was given up, is only when it answers."""
        said = asked(fields, self._outside.target, frozenset(("state",)))
        state = said.pop("state", None)
        if state not in (None, ACTIVE, PAUSED):
            raise BadRequest("bad_webhook_state", f"a webhook is set to {ACTIVE} or {PAUSED}, not {shown(str(state))}")
        async with self._lock:
            changed = Endpoint.of(self.find(id).document())
            changed.is_verified = changed.is_verified and said.get("url", changed.url) == changed.url
            for name, value in said.items():
                setattr(changed, name, value)
            if state == PAUSED:
                changed.state = PAUSED
            elif state == ACTIVE and changed.state == PAUSED and changed.is_verified:
                changed.state = ACTIVE
            elif state == ACTIVE and changed.state != ACTIVE or changed.state == ACTIVE and not changed.is_verified:
                changed.state = PENDING
            await self._replace(changed)
        if changed.state == PENDING:
            self._verify(changed)
        return changed

    async def rotate(self, id: str) -> tuple[Endpoint, str, float]:
        """A new secret, which nobody is told again, and until when the one before signs too."""
        async with self._lock:
            changed = Endpoint.of(self.find(id).document())
            until = changed.rotate(self._store.clock())
            await self._replace(changed)
        return changed, changed.secrets[0][0], until

    async def remove(self, id: str) -> None:
        async with self._lock:
            self.find(id)
            await self._keep(id, None)
            self._endpoints.pop(id, None)
        if (task := self._verifying.pop(id, None)) is not None:
            task.cancel()
        log.info("webhook removed", extra={"facts": {"id": id}})

    async def test(self, id: str) -> Outcome:
        """Send a `pere.webhook.verify` now. An endpoint that is pending and answers becomes active."""
        endpoint = self.find(id)
        outcome = await self._send(endpoint, self._greeting(endpoint))
        await self._heard(endpoint, outcome)
        return outcome

    # Verifying

    def _verify(self, endpoint: Endpoint) -> None:
        if (task := self._verifying.pop(endpoint.id, None)) is not None:
            task.cancel()
        task = self._verifying[endpoint.id] = asyncio.ensure_future(self._until_verified(endpoint.id))
        task.add_done_callback(lambda done: self._verifying.get(endpoint.id) is done and self._verifying.pop(endpoint.id))

    async def _until_verified(self, id: str) -> None:
        endpoint = self._endpoints.get(id)
        greeting = self._greeting(endpoint) if endpoint is not None else None
        failures = 0
        # Each time anew: meanwhile it may have been changed, or be gone.
        while greeting is not None and (endpoint := self._endpoints.get(id)) is not None and endpoint.state == PENDING:
            outcome = await self._send(endpoint, greeting)
            try:
                await self._heard(endpoint, outcome)
            except Refusal as refusal:
                # The disk is in trouble: it is asked again like one that did not answer.
                outcome = outcome._replace(error="unkept", message=refusal.message)
            if outcome.is_success:
                return
            failures += 1
            wait = wait_after(failures, outcome.retry_after)
            if wait is None:
                log.warning("webhook was never verified", extra={"facts": {"id": id, "trouble": outcome.message}})
                return
            await asyncio.sleep(wait)

    def _greeting(self, endpoint: Endpoint) -> Notice:
        return notice(VERIFY, f"/webhooks/{endpoint.id}", {"webhook": endpoint.id, "types": endpoint.types, "channels": endpoint.channels},
                      self._store.clock())

    async def _heard(self, endpoint: Endpoint, outcome: Outcome) -> None:
        """What an endpoint that was greeted has answered."""
        changed = Endpoint.of(endpoint.document())
        if outcome.is_success:
            changed.is_verified, changed.trouble = True, ""
            if changed.state == PENDING:
                changed.state = ACTIVE
        else:
            changed.trouble = outcome.message
            if outcome.status == 410 and changed.state != PAUSED:
                changed.state = DISABLED  # RFC 9110, 15.5.11: it is gone, and wishes that nobody asks again
        async with self._lock:
            # Only if it is still what was greeted: who changed it meanwhile has the last word.
            if self._endpoints.get(endpoint.id) is not endpoint or changed.document() == endpoint.document():
                return
            await self._replace(changed)
            if changed.state != endpoint.state:
                log.info("webhook is now %s", changed.state, extra={"facts": {"id": changed.id}})

    async def _send(self, endpoint: Endpoint, notice: Notice) -> Outcome:
        now = self._store.clock()
        headers = {"Content-Type": endpoint.content_type} | signed(notice.id, int(now), notice.body, endpoint.signing(now))
        return await self._sender.post(endpoint.url, headers, notice.body)

    # Keeping

    async def _replace(self, changed: Endpoint) -> None:
        await self._keep(changed.id, changed)
        if changed.id in self._endpoints:
            self._endpoints[changed.id] = changed

    async def _keep(self, id: str, endpoint: Endpoint | None) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def kept(refusal: Refusal | None) -> None:
            if done.done():
                return
            if refusal is None:
                done.set_result(None)
            else:
                done.set_exception(refusal)

        self._store.put_away(KIND, id, endpoint.document() if endpoint is not None else None, kept)
        await done
