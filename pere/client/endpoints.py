"""An administrator's side: the endpoints of webhooks."""

from collections.abc import AsyncIterator, Iterable
from typing import Any

import orjson

from pere.client.http import part
from pere.client.publisher import Publisher


class Administrator(Publisher):
    """Who looks after webhooks, besides."""

    async def webhooks(self) -> list[dict[str, Any]]:
        """The endpoints that notices are sent to."""
        webhooks: list[dict[str, Any]] = (await self._http.ask("GET", "/webhooks")).told.get("webhooks", [])
        return webhooks

    async def add_webhook(self, url: str, *, types: Iterable[str] = (), channels: Iterable[str] = (), content_type: str | None = None) -> dict[str, Any]:
        """A new endpoint; in what is returned is its `secret`, which is told once and never again."""
        said = {"url": url, "types": list(types), "channels": list(channels), "content_type": content_type}
        return (await self._http.ask("POST", "/webhooks", body=_given(said))).told

    async def change_webhook(self, id: str, **said: Any) -> dict[str, Any]:
        """Change its `url`, `types`, `channels`, `content_type`, or `state` (`paused`, `active`)."""
        return (await self._http.ask("PATCH", f"/webhooks/{part(id)}", body=orjson.dumps(said))).told

    async def rotate_webhook(self, id: str) -> dict[str, Any]:
        """A new `secret`; the one before signs too until `old_secret_until`."""
        return (await self._http.ask("POST", f"/webhooks/{part(id)}/rotate")).told

    async def test_webhook(self, id: str) -> dict[str, Any]:
        """Send it something now; returns `{"answered", "status", "trouble", "seconds", "state"}`."""
        return (await self._http.ask("POST", f"/webhooks/{part(id)}/test", patience=60)).told

    async def dead_letters(self, id: str, since: str | None = None, until: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """What a webhook was not to be sent any more and had been made in this time (RFC 3339), oldest first: `{"id", "webhook_id", "type", "count",
        "attempts", "trouble", "body"}`."""
        after = None
        while True:
            page = (await self._http.ask("GET", f"/webhooks/{part(id)}/dead", {"since": since, "until": until, "after": after, "limit": 100})).told
            for letter in page.get("dead", []):
                yield letter
            after = page.get("after")
            if after is None:
                return

    async def replay_webhook(self, id: str, ids: Iterable[str] = (), since: str | None = None, until: str | None = None) -> int:
        """Send again what was given up, all of it, or these, or what had been made in this time; how many notices that are."""
        said = {"ids": list(ids), "since": since, "until": until}
        return int((await self._http.ask("POST", f"/webhooks/{part(id)}/replay", body=_given(said))).told.get("replayed", 0))

    async def remove_webhook(self, id: str) -> None:
        await self._http.ask("DELETE", f"/webhooks/{part(id)}")


def _given(said: dict[str, Any]) -> bytes:
    return orjson.dumps({name: value for name, value in said.items() if value})
