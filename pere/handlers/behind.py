"""`GET /admin/behind`: which feeds are not up to date, and by how much."""

import asyncio

from pere.auth import ADMIN
from pere.handlers.base import Handler, number
from pere.handlers.events import MAX_PAGE, PAGE
from pere.hub import Hub


class Behind(Handler):
    """`GET /admin/behind?limit=`: the feeds that events wait for, those first that are furthest behind; without a name a feed is null. `stuck` is for how
    many seconds its socket has taken nothing."""

    needs = ADMIN
    hub: Hub

    def get(self) -> None:
        limit = number(self.query.one("limit", str(PAGE)), "limit", 1, MAX_PAGE)
        now = asyncio.get_running_loop().time()
        found = []
        for feed in self.hub.feeds.values():
            if feed.live:
                continue
            behind = [(place.channel.shelf.backlog.last - place.ordinal, place.channel.name) for place in feed.places]
            events = sum(max(0, count) for count, _ in behind)
            if events or feed.stuck_since:
                found.append((events, feed, max(behind, default=(0, ""))[1]))
        found.sort(key=lambda each: -each[0])
        self.answer({"feeds": [
            {"device": feed.device.name if feed.device is not None else None, "channel": channel, "events": events, "stuck": round(now - feed.stuck_since, 1) if feed.stuck_since else 0}
            for events, feed, channel in found[:limit]], "count": len(found)})
