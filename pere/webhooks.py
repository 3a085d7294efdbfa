"""Webhooks: the endpoints that there are, and whether somebody is there who wants them.

An endpoint is kept before anybody is told of it, and from then on what is for it is queued. Until it has answered one
`pere.webhook.verify` nothing else is sent, and that is tried again and again, later each time; whoever is in a hurry asks for a test.
"""

import asyncio
import logging
from collections.abc import Callable
from itertools import islice
from typing import Any

import orjson

from pere.config import Config
from pere.courier import Courier, wait_after
from pere.endpoint import ACTIVE, DEFAULT_TYPES, DISABLED, PAUSED, PENDING, Endpoint, asked
from pere.errors import BadRequest, Conflict, NotFound, Refusal, TooMany
from pere.event import format_id, timestamp
from pere.names import shown
from pere.notice import GIVEN_UP, RECEIPTS, VERIFY, Notice, Packed, notice
from pere.outbox import CURSOR, Outbox, number_of
from pere.outside import Outside
from pere.sender import Outcome, Sender
from pere.signing import signed
from pere.storage import Store
from pere.storage.settling import telling

log = logging.getLogger("pere.webhooks")

KIND = "webhook"  # of the documents


class Webhooks:
    """All endpoints. Everything here is kept when it returns; what could not be kept raises Unavailable and has not happened.
    `on_change` is called whenever what some endpoint wants may be another than before."""

    def __init__(self, store: Store, sender: Sender, outside: Outside, config: Config, on_post: Callable[[float], None] = lambda seconds: None):
        self._store = store
        self._sender = sender
        self._outside = outside
        self._config = config
        self._endpoints: dict[str, Endpoint] = {}
        self._on_post = on_post
        self.is_leading = False  # it is this node that sends
        self._verifying: dict[str, asyncio.Task[None]] = {}
        self._lock = asyncio.Lock()  # one change at a time: each is made to a copy, which must not be an old one
        self.on_change: Callable[[], None] = lambda: None
        self.courier = self._read()

    def _read(self) -> Courier:
        """The endpoints as they are kept, and a courier that has all that waits for them."""
        self._endpoints.clear()
        self._endpoints.update((name, Endpoint.of(document)) for name, document in sorted(self._store.documents(KIND).items()))
        courier = Courier(self._store, self._send, self._endpoints.get, self._give_up, self._on_post)
        for id in self._endpoints:
            courier.open(id)
        return courier

    def look(self) -> None:
        """See how things are now, if it is another node that sends."""
        if not self.is_leading:
            before, self.courier = self.courier, self._read()
            self.courier.posts, self.courier.buried, self.courier.lost = before.posts, before.buried, before.lost

    def heard(self, kind: str, name: str, document: bytes | None) -> None:
        """Another node has put a document away, or has taken it away."""
        if kind != KIND:
            if self.is_leading:
                self.courier.heard(kind, name, document)
            return
        if document is None:
            if self._endpoints.pop(name, None) is not None and (outbox := self.courier.outboxes.get(name)) is not None:
                self.courier.remove(outbox)
            if (task := self._verifying.pop(name, None)) is not None:
                task.cancel()
        else:
            endpoint = self._endpoints[name] = Endpoint.of(document)
            if name not in self.courier.outboxes:
                cursor = self._store.document(CURSOR, name)
                self.courier.open(name).heard(CURSOR, name, cursor)
            if endpoint.state == PENDING and name not in self._verifying:
                self._verify(endpoint)
            self.courier.go(self.courier.outboxes[name])
        self.on_change()

    def start(self) -> None:
        """From now on it is this node that sends."""
        self.look()
        self.is_leading = True
        self.courier.start()
        for endpoint in self._endpoints.values():
            if endpoint.state == PENDING:
                self._verify(endpoint)

    async def stop(self, seconds: float = 0.0) -> None:
        """Requests that are under way may take so long."""
        self.is_leading = False
        await self.courier.stop(seconds)
        tasks = list(self._verifying.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def all(self) -> list[Endpoint]:
        """The oldest first."""
        return sorted(self._endpoints.values(), key=lambda endpoint: (endpoint.created, endpoint.id))

    def find(self, id: str) -> Endpoint:
        """Raises NotFound."""
        endpoint = self._endpoints.get(id)
        if endpoint is None:
            raise NotFound("unknown_webhook", f"there is no webhook {shown(id)}")
        return endpoint

    def told(self, endpoint: Endpoint) -> dict[str, Any]:
        """An endpoint as its owner is told of it: never with a secret."""
        outbox = self.courier.outboxes[endpoint.id]
        wait = outbox.due - asyncio.get_running_loop().time()
        return endpoint.as_dict() | {
            "trouble": (endpoint.trouble if endpoint.state == DISABLED else outbox.trouble or endpoint.trouble) or None,
            "failures": outbox.failures,
            "next_try": timestamp(self._store.clock() + wait) if wait > 0 and endpoint.state == ACTIVE else None,
            "queued": outbox.waiting,
            "dropped": outbox.lost,
            "dead": outbox.dead_count,
        }

    def hearing(self, type: str) -> list[Endpoint]:
        """Who hears of this type, if of no more than some channels."""
        return [endpoint for endpoint in self._endpoints.values() if type in endpoint.types and endpoint.state != DISABLED]

    def can_hear(self, id: str) -> bool:
        """Whether there is such an endpoint, and it was not given up."""
        endpoint = self._endpoints.get(id)
        return endpoint is not None and endpoint.state != DISABLED

    # What was given up

    def letters(self, id: str, since: float, until: float, after: int, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """At most `limit` notices that were given up and had been made in this time (seconds since 1970), oldest first, and the id after
        which to go on, or None at the end. Raises Unavailable."""
        outbox = self._outbox(id)
        names = list(islice(outbox.letters(since, until, after), limit + 1))
        told = []
        for name in names[:limit]:
            kept = outbox.letter(name)
            if kept is not None:
                told.append({
                    "id": format_id(number_of(name)), "webhook_id": kept.notice.id, "type": kept.notice.type, "count": kept.notice.count,
                    "attempts": kept.attempts, "trouble": kept.trouble or None, "body": orjson.Fragment(kept.notice.body)})
        return told, format_id(number_of(names[limit - 1])) if len(names) > limit else None

    def replay(self, id: str, ids: frozenset[int] | None, since: float, until: float) -> int:
        """Queue again what was given up and had been made in this time; only those of these ids, where some are given. How many that
        are; it takes a moment."""
        outbox = self._outbox(id)
        if not self.can_hear(id):
            raise Conflict("webhook_disabled", "the webhook was given up; set its state to active first")
        names = [name for name in outbox.letters(since, until) if ids is None or number_of(name) in ids]
        if ids is not None and len(names) < len(ids):
            found = set(map(number_of, names))
            raise NotFound("unknown_notice", f"nothing of the id {format_id(next(each for each in ids if each not in found))} was given up")
        self.courier.chore(outbox.replay(names))
        return len(names)

    def _outbox(self, id: str) -> Outbox:
        self.find(id)
        return self.courier.outboxes[id]

    async def add(self, fields: Any) -> tuple[Endpoint, str]:
        """A new endpoint, as a request describes it, and its secret, which nobody is told again."""
        said = asked(fields, self._outside.target)
        if "url" not in said:
            raise BadRequest("bad_webhook_url", 'an endpoint has a "url"')
        if len(self._endpoints) >= self._config.max_webhooks:
            raise TooMany("too_many_webhooks", f"no more than {self._config.max_webhooks} webhooks are kept; remove one first", retry_after=60, whose="all")
        endpoint = Endpoint(said["url"], said.get("types", DEFAULT_TYPES), said.get("channels", ()), said.get("content_type", "application/json"),
                            self._store.clock())
        # Taken at once, so that many that come at the same time do not pass the limit together.
        self._endpoints[endpoint.id] = endpoint
        outbox = self.courier.open(endpoint.id)
        try:
            async with self._lock:
                await self._keep(endpoint.id, endpoint)
        except Refusal:
            self._endpoints.pop(endpoint.id, None)
            self.courier.remove(outbox)
            self.on_change()
            raise
        self.on_change()
        log.info("webhook added", extra={"facts": {"id": endpoint.id}})
        self._verify(endpoint)
        return endpoint, endpoint.secrets[0][0]

    async def change(self, id: str, fields: Any) -> Endpoint:
        """Change what an endpoint hears of, where it is, or whether it is heard: `state` may be `paused`, or `active`, which one that has
        never been verified, or was given up, is only when it answers."""
        said = asked(fields, self._outside.target, frozenset(("state",)))
        if said.get("state", ACTIVE) not in (ACTIVE, PAUSED):
            raise BadRequest("bad_webhook_state", f"a webhook is set to {ACTIVE} or {PAUSED}, not {shown(said['state'])}")
        state = said.pop("state", None)
        async with self._lock:
            changed = Endpoint.of(self.find(id).document())
            changed.is_verified = changed.is_verified and said.get("url", changed.url) == changed.url
            for name, value in said.items():
                setattr(changed, name, value)
            if state == PAUSED:
                changed.state = PAUSED
            elif state == ACTIVE and changed.state == PAUSED and changed.is_verified:
                changed.state = ACTIVE
                self.courier.outboxes[id].due = 0.0  # its owner says that it is well
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
        """It is no more, nor anything that waits for it."""
        async with self._lock:
            self.find(id)
            await self._keep(id, None)
            self._endpoints.pop(id, None)
            self.courier.remove(self.courier.outboxes[id])
        self.on_change()
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
        if not self.is_leading:
            return  # who leads hears of it
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
                return await self._disable(endpoint, f"it was never verified: {outcome.message}")
            await asyncio.sleep(wait)

    def _greeting(self, endpoint: Endpoint) -> Notice:
        return notice(VERIFY, f"/webhooks/{endpoint.id}", {"webhook": endpoint.id, "types": endpoint.types, "channels": endpoint.channels},
                      self._store.clock())

    async def _heard(self, greeted: Endpoint, outcome: Outcome) -> None:
        """What an endpoint that was greeted has answered. Who meanwhile moved it to another URL has the last word."""
        async with self._lock:
            endpoint = self._endpoints.get(greeted.id)
            if endpoint is None or endpoint.url != greeted.url:
                return
            changed = Endpoint.of(endpoint.document())
            if outcome.is_success:
                self.courier.outboxes[endpoint.id].well()
                changed.is_verified, changed.trouble = True, ""
                if changed.state == PENDING:
                    changed.state = ACTIVE
            else:
                changed.trouble = outcome.message
            if changed.document() != endpoint.document():
                await self._replace(changed)
            if changed.state != endpoint.state:
                log.info("webhook is now %s", changed.state, extra={"facts": {"id": changed.id}})
        if outcome.status == 410 and changed.state != PAUSED:
            await self._disable(changed, "it is gone (410)")  # RFC 9110, 15.5.11: it wishes that nobody asks again

    # What the courier asks and says

    def _give_up(self, endpoint: Endpoint, why: str) -> None:
        self.courier.chore(self._disable(endpoint, why))

    async def _disable(self, failed: Endpoint, why: str) -> None:
        """It gets nothing more, and the others are told. What waits for it can be replayed when it is well again. Who meanwhile moved it to
        another URL, or wants it to try once more, has the last word."""
        id = failed.id
        async with self._lock:
            endpoint = self._endpoints.get(id)
            is_over = endpoint is None or endpoint.state == DISABLED or endpoint.url != failed.url
            if endpoint is not None and not is_over:
                changed = Endpoint.of(endpoint.document())
                changed.state, changed.trouble, changed.is_verified = DISABLED, why, False
                try:
                    await self._replace(changed)
                except Refusal:
                    # It has failed too often to ask the disk; after a start it is tried anew.
                    self._endpoints[id] = changed
                    self.on_change()
        self.courier.ended(id)
        if is_over:
            return
        log.warning("webhook was given up", extra={"facts": {"id": id, "trouble": why}})
        told = Packed.of(notice(GIVEN_UP, f"/webhooks/{id}", {"webhook": id, "url": failed.url, "trouble": why}, self._store.clock()))
        for other in self.hearing(GIVEN_UP):
            if other.id != id:
                self.courier.outboxes[other.id].tell(told)

    async def _send(self, endpoint: Endpoint, notice: Notice) -> Outcome:
        now = self._store.clock()
        headers = {"Content-Type": endpoint.content_type} | signed(notice.id, int(now), notice.body, endpoint.signing(now))
        return await self._sender.post(endpoint.url, headers, notice.body)

    # Keeping

    async def _replace(self, changed: Endpoint) -> None:
        await self._keep(changed.id, changed)
        if changed.id in self._endpoints:
            self._endpoints[changed.id] = changed
            self.on_change()
            self.courier.go(self.courier.outboxes[changed.id])

    async def _keep(self, id: str, endpoint: Endpoint | None) -> None:
        if endpoint is not None:
            # From the moment in which this is kept: so it goes to the disk together.
            outbox, is_told = self.courier.outboxes[id], endpoint.state != DISABLED and RECEIPTS in endpoint.types
            if is_told != (outbox.cursor is not None):
                outbox.move(self._store.newest_record if is_told else None)
        self._store.put_away(KIND, id, endpoint.document() if endpoint is not None else None, telling(done := asyncio.get_running_loop().create_future()))
        if (refusal := await done) is not None:
            raise refusal
