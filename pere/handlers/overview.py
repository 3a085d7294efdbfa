"""`GET /admin/overview`: how it stands, at a glance: what `/metrics` counts, the newest events, and the busiest channels."""

from contextlib import suppress
from heapq import nlargest
from itertools import islice
from operator import attrgetter
from typing import Any

import pere
from pere.auth import ADMIN
from pere.entry import Entry
from pere.errors import Unavailable
from pere.event import Event, format_id, timestamp
from pere.followers import Followers
from pere.gate import Gate
from pere.handlers.base import Handler
from pere.hub import Hub
from pere.receipt import NAMES, OUTCOMES, SECONDS
from pere.storage import Store
from pere.webhooks import Webhooks

EVENTS, CHANNELS = 20, 20  # of each so many are told
NOBODY_ASKED: dict[str, Any] = {"audience": 0, "need": 0, "satisfied": True, "complete": True, "outstanding": 0, "counts": dict.fromkeys(NAMES, 0), "latency": {}}
LOOKED_AT = 1_000  # channels, of which the busiest are told: some tenths of a millisecond, however many there are


class Overview(Handler):
    """All of it costs a millisecond, so it may be asked for every other second."""

    needs = ADMIN
    store: Store
    hub: Hub
    followers: Followers
    gate: Gate
    webhooks: Webhooks

    async def get(self) -> None:
        with suppress(Unavailable):  # `trouble` says why, and the rest is still worth to be told
            await self.store.reach(0)
        store, hub, ledger = self.store, self.hub, self.store.ledger
        oldest = store.oldest_outstanding()
        self.set_header("Cache-Control", "no-store")
        self.answer({
            "version": pere.__version__,
            "time": timestamp(store.clock()),
            "trouble": store.trouble(),
            "feeds": {"open": len(hub.feeds), "behind": hub.channels.behind, "receipts": self.followers.count},
            "devices": {"online": store.devices.online, "registered": len(store.devices.known)},
            "events": {"accepted": store.events, "bytes": store.event_bytes, "deliveries": hub.broadcast.deliveries, "replayed": hub.replay.events,
                       "redeliveries": sum(hub.redelivery.counts.values()), "gaps": hub.replay.gaps},
            "receipts": {
                **{outcome: sum(row[place] for row in ledger.receipts) for place, outcome in enumerate(OUTCOMES)},
                "outstanding": ledger.outstanding,
                "oldest": timestamp(oldest) if oldest is not None else None,
                "expired": sum(ledger.expired.values()),
                "cancelled": sum(ledger.cancelled.values()),
            },
            # How many first receipts took so many seconds, as far as there are any.
            "roundtrip": [[SECONDS[bucket], count] for bucket, counts in enumerate(zip(*ledger.roundtrips, strict=True)) if (count := sum(counts))],
            "webhooks": self._webhooks(),
            "limited": sum(self.gate.limited.values()),
            "channels": {
                "known": len(store.channels()),
                "busiest": [{"channel": channel.name, "feeds": channel.feeds, "devices": len(channel.shelf.audience)}
                            for channel in nlargest(CHANNELS, islice(hub.channels.values(), LOOKED_AT), key=attrgetter("feeds"))],
            },
            "recent": self._recent(),
        })

    def _webhooks(self) -> dict[str, int]:
        outboxes = self.webhooks.courier.outboxes.values()
        return {"endpoints": len(self.webhooks.all()), "failing": sum(bool(each.failures) for each in outboxes),
                "queued": sum(each.waiting for each in outboxes), "dead": sum(each.dead_count for each in outboxes)}

    def _recent(self) -> list[dict[str, Any]]:
        try:
            return [self._told(event, entry) for event, entry in self.store.recent(EVENTS)]
        except Unavailable:
            return []  # `trouble` says why, and the rest is still worth to be told

    def _told(self, event: Event, entry: Entry | None) -> dict[str, Any]:
        """An event and how it stands. Who was written to is not told apart from who was not: that is found only by looking at each."""
        told = entry.summary() if entry is not None else NOBODY_ASKED
        return {"id": format_id(event.id), "channel": event.channel, "type": event.type or "message", "time": timestamp(event.time),
                "publisher": event.publisher or None, "recalled": event.recalled, "bytes": len(event.data)} | told
