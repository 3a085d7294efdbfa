"""`GET /events/...`: what is kept, and who has it."""

import asyncio
from typing import Any

from pere.auth import PUSH
from pere.config import Config
from pere.errors import BadRequest
from pere.event import format_id, parse_id
from pere.handlers.base import Handler, number, seconds
from pere.names import shown
from pere.receipt import NAMES, SENT
from pere.storage import Store
from pere.waiting import Wait, Waits

PAGE = 100  # items of a page, where nothing is said
MAX_PAGE = 1_000
STATES = frozenset((*NAMES, SENT, "outstanding"))


class Events(Handler):
    """`GET /events/{channel}?after=&limit=`: the kept events, oldest first, and the id to go on after."""

    needs = PUSH
    store: Store

    async def get(self, channel: str) -> None:
        name = self.channel(channel)
        after = self.query.one("after")
        last = parse_id(after) if after else 0
        limit = number(self.query.one("limit", str(PAGE)), "limit", 1, MAX_PAGE)
        await self.store.reach(last, name)
        events, is_more = await self.store.history(channel, last, limit)
        self.answer({
            "events": [event.as_dict() for event in events],
            "after": format_id(events[-1].id) if events else after,
            "more": is_more,
        })


class Status(Handler):
    """`GET /events/{channel}/{id}`: the delivery status. The ETag moves with every receipt, so asking again costs little; `?wait=N` waits
    for the next change, with `If-None-Match` for one that is not known yet. `DELETE` recalls the event."""

    needs = PUSH
    methods = "GET, HEAD, DELETE, OPTIONS"
    store: Store
    waits: Waits
    config: Config
    _wait: Wait | None = None  # what it waits for, if it has begun

    async def get(self, channel: str, id: str) -> None:
        most = seconds(self.query.one("wait", "0"), "wait", self.config.max_wait)
        await self.store.reach(parse_id(id), self.channel(channel))
        with self.waits.on(self.channel(channel), parse_id(id)) as self._wait:
            status = await self._status(channel, id)
            # Who says what it knows waits as long as that is so, and who says nothing waits for something new.
            if most and ("If-None-Match" not in self.request.headers or self.check_etag_header()):
                await self._wait.changed(most)
                if self._wait.is_over:
                    return
                status = await self._status(channel, id)
        # A status is never stale by time, only by change.
        self.set_header("Cache-Control", "no-cache")
        if self.check_etag_header():  # which Tornado leaves to who sets the ETag
            self.set_status(304)
            self.finish()
        else:
            self.answer(status)

    async def _status(self, channel: str, id: str) -> dict[str, Any]:
        status = await self.store.status(channel, parse_id(id))
        self.set_header("ETag", '"{}-{}"'.format(*status.pop("version")))
        return status

    def on_connection_close(self) -> None:
        if self._wait is not None:
            self._wait.hang_up()

    async def delete(self, channel: str, id: str) -> None:
        """Recall: whoever lacks the event will not get it, whoever has it is told to forget it."""
        await self.store.reach(parse_id(id), self.channel(channel))
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.store.recall(self.channel(channel), parse_id(id), done.set_result, done.set_exception)
        self.answer({"id": id, "channel": channel, "cancelled": await done})


class StatusDevices(Handler):
    """`GET /events/{channel}/{id}/devices?state=&limit=&cursor=`: who has it, and who has not."""

    needs = PUSH
    store: Store

    async def get(self, channel: str, id: str) -> None:
        state = self.query.one("state")
        if state and state not in STATES:
            raise BadRequest("bad_state", f"state is one of {', '.join(sorted(STATES))}, not {shown(state)}")
        limit = number(self.query.one("limit", str(PAGE)), "limit", 1, MAX_PAGE)
        start = self._cursor(id)
        await self.store.reach(parse_id(id), self.channel(channel))
        lines, following = await self.store.lines(self.channel(channel), parse_id(id), state or None, start, limit)
        self.answer({"devices": lines, "cursor": f"{id}.{following}" if following is not None else None})

    def _cursor(self, id: str) -> int:
        """The slot in a cursor, which is good for the event that it was given for and no other."""
        cursor = self.query.one("cursor")
        if not cursor:
            return 0
        event, _, slot = cursor.rpartition(".")
        if event != id or not (slot.isascii() and slot.isdigit() and len(slot) <= 9):
            raise BadRequest("bad_cursor", f"a cursor is what the page before gave for this event, not {shown(cursor)}")
        return int(slot)
