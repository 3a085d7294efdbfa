"""`/webhooks`: endpoints are added, looked at, changed, tested and removed, and what was given up is read and replayed."""

import math
from typing import Any

from pere.auth import ADMIN
from pere.endpoint import Endpoint
from pere.errors import BadRequest
from pere.event import parse_id, parse_time, timestamp
from pere.handlers.base import Handler, loads, number
from pere.names import shown
from pere.storage import Store
from pere.webhooks import Webhooks

PAGE, MAX_PAGE = 20, 100  # dead letters, of which each may have 20 KB


class Webhook(Handler):
    """What all of these share: they are for who administers, and see what other nodes have done."""

    needs = ADMIN
    store: Store
    webhooks: Webhooks

    async def prepare(self) -> None:  # type: ignore[override]  # Tornado awaits it
        super().prepare()
        await self.store.reach(0)
        self.webhooks.look()


class AllWebhooks(Webhook):
    """`POST /webhooks` adds an endpoint, and is the only one that tells its secret; `GET` lists them all."""

    methods = "GET, HEAD, POST, OPTIONS"

    def get(self) -> None:
        self.answer({"webhooks": [self.webhooks.told(endpoint) for endpoint in self.webhooks.all()]})

    async def post(self) -> None:
        endpoint, secret = await self.webhooks.add(loads(self.request.body, "the body"))
        self.set_header("Location", f"/webhooks/{endpoint.id}")
        self.answer(self.webhooks.told(endpoint) | {"secret": secret}, 201)


class OneWebhook(Webhook):
    """`GET`, `PATCH` and `DELETE /webhooks/{id}`."""

    methods = "GET, HEAD, PATCH, DELETE, OPTIONS"

    def get(self, id: str) -> None:
        self.answer(self.webhooks.told(self.webhooks.find(id)))

    async def patch(self, id: str) -> None:
        endpoint: Endpoint = await self.webhooks.change(id, loads(self.request.body, "the body"))
        self.answer(self.webhooks.told(endpoint))

    async def delete(self, id: str) -> None:
        await self.webhooks.remove(id)
        self.set_status(204)
        self.finish()


class RotateWebhook(Webhook):
    """`POST /webhooks/{id}/rotate`: a new secret; for a day the one before signs too."""

    methods = "POST, OPTIONS"

    async def post(self, id: str) -> None:
        endpoint, secret, until = await self.webhooks.rotate(id)
        self.answer(self.webhooks.told(endpoint) | {"secret": secret, "old_secret_until": timestamp(until)})


class TestWebhook(Webhook):
    """`POST /webhooks/{id}/test`: send a `pere.webhook.verify` now, and tell what became of it."""

    methods = "POST, OPTIONS"

    async def post(self, id: str) -> None:
        outcome = await self.webhooks.test(id)
        self.answer({
            "answered": outcome.is_success,
            "status": outcome.status or None,
            "trouble": outcome.message or None,
            "seconds": round(outcome.seconds, 4),
            "state": self.webhooks.find(id).state,
        })


class DeadLetters(Webhook):
    """`GET /webhooks/{id}/dead?since=&until=&after=&limit=`: what was given up, oldest first."""

    def get(self, id: str) -> None:
        since, until = moment(self.query.one("since"), "since", 0.0), moment(self.query.one("until"), "until", math.inf)
        after = self.query.one("after")
        limit = number(self.query.one("limit", str(PAGE)), "limit", 1, MAX_PAGE)
        letters, last = self.webhooks.letters(id, since, until, parse_id(after) if after else 0, limit)
        self.answer({"dead": letters, "after": last})


class ReplayWebhook(Webhook):
    """`POST /webhooks/{id}/replay`: queue again what was given up, `{"ids"?, "since"?, "until"?}`."""

    methods = "POST, OPTIONS"

    def post(self, id: str) -> None:
        said: Any = loads(self.request.body, "the body") if self.request.body.strip() else {}
        if not isinstance(said, dict) or said.keys() - {"ids", "since", "until"}:
            raise BadRequest("bad_replay", 'a replay is an object with some of "ids", "since" and "until", or with none for all')
        ids = said.get("ids")
        if ids is not None and not (isinstance(ids, list) and ids and all(isinstance(each, str) for each in ids)):
            raise BadRequest("bad_replay", '"ids" is a list of at least one id out of /dead')
        since, until = (moment(said.get(name), name, default) for name, default in (("since", 0.0), ("until", math.inf)))
        count = self.webhooks.replay(id, frozenset(map(parse_id, ids)) if ids is not None else None, since, until)
        self.answer({"replayed": count}, 202)


def moment(value: Any, name: str, default: float) -> float:
    """A time as RFC 3339 has it, in seconds since 1970."""
    if value is None:
        return default
    found = parse_time(value) if isinstance(value, str) else None
    if found is None:
        raise BadRequest(f"bad_{name}", f"{name} is a time such as 2026-11-25T14:00:00Z, not {shown(value)}")
    return found
