"""`/webhooks`: endpoints are added, looked at, changed, tested and removed."""

from pere.endpoint import Endpoint
from pere.event import timestamp
from pere.handlers.base import Handler, loads
from pere.webhooks import Webhooks


class AllWebhooks(Handler):
    """`POST /webhooks` adds an endpoint, and is the only one that tells its secret; `GET` lists them all."""

    methods = "GET, HEAD, POST, OPTIONS"
    webhooks: Webhooks

    def get(self) -> None:
        self.answer({"webhooks": [endpoint.as_dict() for endpoint in self.webhooks.all()]})

    async def post(self) -> None:
        endpoint, secret = await self.webhooks.add(loads(self.request.body, "the body"))
        self.set_header("Location", f"/webhooks/{endpoint.id}")
        self.answer(endpoint.as_dict() | {"secret": secret}, 201)


class OneWebhook(Handler):
    """`GET`, `PATCH` and `DELETE /webhooks/{id}`."""

    methods = "GET, HEAD, PATCH, DELETE, OPTIONS"
    webhooks: Webhooks

    def get(self, id: str) -> None:
        self.answer(self.webhooks.find(id).as_dict())

    async def patch(self, id: str) -> None:
        endpoint: Endpoint = await self.webhooks.change(id, loads(self.request.body, "the body"))
        self.answer(endpoint.as_dict())

    async def delete(self, id: str) -> None:
        await self.webhooks.remove(id)
        self.set_status(204)
        self.finish()


class RotateWebhook(Handler):
    """`POST /webhooks/{id}/rotate`: a new secret; for a day the one before signs too."""

    methods = "POST, OPTIONS"
    webhooks: Webhooks

    async def post(self, id: str) -> None:
        endpoint, secret, until = await self.webhooks.rotate(id)
        self.answer(endpoint.as_dict() | {"secret": secret, "old_secret_until": timestamp(until)})


class TestWebhook(Handler):
    """`POST /webhooks/{id}/test`: send a `pere.webhook.verify` now, and tell what became of it."""

    methods = "POST, OPTIONS"
    webhooks: Webhooks

    async def post(self, id: str) -> None:
        outcome = await self.webhooks.test(id)
        self.answer({
            "answered": outcome.is_success,
            "status": outcome.status or None,
            "trouble": outcome.message or None,
            "seconds": round(outcome.seconds, 4),
            "state": self.webhooks.find(id).state,
        })
