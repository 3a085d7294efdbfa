"""The reporter: hears what happens to receipts, events and devices, and writes notices of it to those who want them.

Receipts are read from the store's log, up to where each endpoint was told: so who dies here goes on there, and what was answered
is told. What becomes of an event is heard from the ledger; a store tells again at start what may have been missed. Presence is of
this process: a device is news once it is there, or has been away for longer than a reconnect takes.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import orjson

from pere.endpoint import Endpoint
from pere.errors import Refusal
from pere.event import Event, format_id, timestamp
from pere.ledger import Entry
from pere.notice import BATCH, CONNECTED, DISCONNECTED, RECEIPTS, Packed, batches, notice
from pere.outbox import AGAIN, Outbox
from pere.storage import Page, Store
from pere.webhooks import Webhooks

log = logging.getLogger("pere.webhooks")

GATHER = 0.1  # seconds in which receipts come together before they are read
OLDEST = 1.0  # seconds after which a batch goes that is not full
PAGE = 500  # records that are read at once: a few milliseconds of the loop
SAVE = 10.0  # seconds after which it is noted how far the log was read, though nothing in it was wanted
SAID = 60.0  # seconds in which a loss is said once
AWAY = 10.0  # seconds without a feed, three times what `retry:` asks for, after which a device is gone


class Tail:
    """How far one endpoint has read the log of receipts, and what is not in a batch yet."""

    __slots__ = ("came", "frames", "numbers", "outbox", "position", "saved", "since")

    def __init__(self, outbox: Outbox, now: float):
        self.outbox = outbox
        self.position = outbox.cursor or 0
        self.frames: list[bytes] = []
        self.numbers: list[int] = []
        self.since = self.came = self.saved = now

    def take(self, endpoint: Endpoint, piece: "Piece", now: float) -> None:
        """What was read from its position on."""
        self.came = now
        if not self.frames:
            self.since = now
        frames, numbers = piece.of(endpoint)
        room = max(0, self.outbox.room - len(self.frames))
        self.frames += frames[:room]
        self.numbers += numbers[:room]
        if len(frames) > room:
            self.outbox.drop(len(frames) - room)
        self.position = piece.through

    def cut(self, now: float, made: "Made", is_last: bool = False) -> tuple[list[Packed], int]:
        """The batches that are full, or all if the first receipt has waited for long enough; and the cursor that goes with them."""
        pieces = made.pieces(self.frames)
        if pieces and len(pieces[-1]) < BATCH and now - self.since < OLDEST and not is_last:
            pieces = pieces[:-1]
        count = sum(map(len, pieces))
        cut = []
        for piece in pieces:
            cut.append(made.batch(piece, self.outbox.dropped))
            self.outbox.dropped = 0
        cursor = self.position if count == len(self.numbers) else self.numbers[count - 1] if count else self.outbox.cursor or 0
        del self.frames[:count], self.numbers[:count]
        if cut:
            self.since, self.saved = self.came, now
        return cut, cursor


class Piece:
    """A page of the log, encoded; and what is in it for an endpoint, found once for all that hear of the same channels."""

    def __init__(self, page: Page):
        self.through = page.through
        self._channels = [record.channel for record in page.records]
        self._all = [record.encode() for record in page.records], [record.number for record in page.records]
        self._found: dict[tuple[str, ...], tuple[list[bytes], list[int]]] = {(): self._all}

    def of(self, endpoint: Endpoint) -> tuple[list[bytes], list[int]]:
        found = self._found.get(endpoint.channels)
        if found is None:
            wanted = {channel: endpoint.wants(RECEIPTS, (channel,)) for channel in set(self._channels)}
            places = [place for place, channel in enumerate(self._channels) if wanted[channel]]
            frames, numbers = self._all
            found = self._found[endpoint.channels] = [frames[place] for place in places], [numbers[place] for place in places]
        return found


class Made:
    """The batches of one moment: most endpoints are told the same receipts, and then get the same notice, made once."""

    def __init__(self, clock: float):
        self._clock = clock
        self._pieces: dict[tuple[int, ...], list[Sequence[bytes]]] = {}
        self._batches: dict[tuple[int, ...], Packed] = {}

    def pieces(self, frames: list[bytes]) -> list[Sequence[bytes]]:
        key = tuple(map(id, frames))
        if key not in self._pieces:
            self._pieces[key] = list(batches(frames))
        return self._pieces[key]

    def batch(self, piece: Sequence[bytes], dropped: int) -> Packed:
        key = (dropped, *map(id, piece))
        packed = self._batches.get(key)
        if packed is None:
            data: dict[str, Any] = {"receipts": [orjson.Fragment(frame) for frame in piece]}
            if dropped:
                data["dropped"] = dropped
            packed = self._batches[key] = Packed.of(notice(RECEIPTS, "/receipts", data, self._clock, count=len(piece)))
        return packed


class Reporter:
    """Writes to the outboxes of `webhooks`."""

    def __init__(self, store: Store, webhooks: Webhooks):
        self._store = store
        self._webhooks = webhooks
        self._loop = asyncio.get_running_loop()
        self._tails: dict[str, Tail] = {}
        self._task: asyncio.Task[None] | None = None
        self._by_type: dict[str, list[Endpoint]] = {}
        # Devices whose last feed has closed, with the moment and their channels, in the order of time; and what is to be told of others.
        self._away: dict[str, tuple[float, float, tuple[str, ...]]] = {}
        self._news: list[tuple[str, str, float, tuple[str, ...]]] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._said = -SAID  # when it was last said that receipts were lost
        webhooks.on_change = self._changed
        store.ledger.on_decision = self._decided

    def start(self) -> None:
        self._changed()
        decided, self._store.decided = self._store.decided, []
        for each in decided:
            self._tell(*each)

    async def stop(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _changed(self) -> None:
        """Who wants what may be another than before."""
        self._by_type = {type: self._webhooks.hearing(type) for type in {type for each in self._webhooks.all() for type in each.types}}
        outboxes = self._webhooks.courier.outboxes
        now = self._loop.time()
        wanted = {endpoint.id for endpoint in self._by_type.get(RECEIPTS, ()) if outboxes[endpoint.id].cursor is not None}
        for id, tail in self._tails.items():
            if id not in wanted and id in outboxes and tail.frames:
                # It was given up, or wants no more of them: what it should have been told of until now is with what waits for it.
                outboxes[id].put(tail.cut(now, Made(self._store.clock()), is_last=True)[0], lambda refusal: None)
        self._tails = {id: self._tails.get(id) or Tail(outboxes[id], now) for id in wanted}
        is_seen = bool(self._by_type.get(CONNECTED) or self._by_type.get(DISCONNECTED))
        self._store.devices.on_presence = self._moved if is_seen else None
        # Who hears of nothing costs nothing.
        if self._tails and self._task is None:
            self._task = asyncio.ensure_future(self._follow())
        elif self._task is not None and not self._tails:
            self._task.cancel()
            self._task = None

    # Receipts

    async def _follow(self) -> None:
        # To look ten times a second whether there is more costs less than to be told of every receipt.
        while True:
            await asyncio.sleep(GATHER)
            try:
                while await self._read():
                    await asyncio.sleep(0)
                await self._cut()
            except Refusal as refusal:
                log.debug("receipts could not be told", extra={"facts": {"error": refusal.code}})
                await asyncio.sleep(AGAIN)
            except Exception:
                log.exception("receipts could not be told")
                await asyncio.sleep(AGAIN)

    async def _read(self) -> bool:
        """A page, for all who are where the last one is; whether there may be more."""
        position = min((tail.position for tail in self._tails.values()), default=self._store.newest_record)
        if position >= self._store.newest_record:
            return False
        page = await self._store.records(None, position, PAGE)
        now, endpoints = self._loop.time(), {endpoint.id: endpoint for endpoint in self._by_type.get(RECEIPTS, ())}
        if page.is_lost and now > self._said + SAID:
            self._said = now
            log.warning("receipts have made way before webhooks were told of them", extra={"facts": {"after": position}})
        piece = Piece(page)
        for id, tail in self._tails.items():
            if tail.position == position:
                tail.take(endpoints[id], piece, now)
        await self._cut()
        return True

    async def _cut(self) -> None:
        """Put what is to go into the outboxes, and wait until it is kept."""
        now, made, waiting = self._loop.time(), Made(self._store.clock()), []
        for tail in self._tails.values():
            if not tail.frames and tail.position == tail.outbox.cursor:
                continue
            cut, cursor = tail.cut(now, made)
            if cut:
                waiting.append(self._put(tail, cut, cursor))
            elif cursor != tail.outbox.cursor and now - tail.saved >= SAVE:
                tail.saved = now
                tail.outbox.move(cursor)
        if waiting:
            await asyncio.gather(*waiting)

    async def _put(self, tail: Tail, cut: list[Packed], cursor: int) -> None:
        while not tail.outbox.is_removed:
            done: asyncio.Future[Refusal | None] = self._loop.create_future()
            tail.outbox.put(cut, lambda refusal, done=done: None if done.done() else done.set_result(refusal), cursor)  # type: ignore[misc]
            if await done is None:
                return
            await asyncio.sleep(AGAIN)  # nothing more is read meanwhile, or it would be told in another order

    # Events

    def _decided(self, word: str, entry: Entry, moment: float) -> None:
        if f"pere.event.{word}" in self._by_type or entry.event.callback:
            self._tell(word, entry.event, moment, entry.summary())

    def _tell(self, word: str, event: Event, moment: float, summary: dict[str, Any]) -> None:
        type, id = f"pere.event.{word}", format_id(event.id)
        meant = {endpoint.id for endpoint in self._by_type.get(type, ()) if endpoint.wants(type, (event.channel,))}
        if event.callback and self._webhooks.can_hear(event.callback):
            meant.add(event.callback)
        if not meant:
            return
        told = {
            "id": id,
            "channel": event.channel,
            "type": event.type or "message",
            "time": timestamp(event.time),
            "publisher": event.publisher or None,
        } | summary
        # Should it be told again after a crash, it is the same in every byte.
        packed = Packed.of(notice(type, f"/events/{event.channel}/{id}", told, moment, f"event_{id}_{word}"))
        for webhook in meant:
            # No webhook may hold up what is told, so nothing fails here.
            if (outbox := self._webhooks.courier.outboxes.get(webhook)) is not None:
                outbox.tell(packed)

    # Devices

    def _moved(self, name: str, channels: tuple[str, ...], is_online: bool) -> None:
        """A device has opened its first feed, or closed its last one."""
        now, clock = self._loop.time(), self._store.clock()
        if not is_online:
            self._away[name] = now + AWAY, clock, channels
            self._ring(AWAY)
        elif self._away.pop(name, None) is None:
            self._news.append((CONNECTED, name, clock, channels))
            self._ring(OLDEST)

    def _ring(self, wait: float) -> None:
        moment = self._loop.time() + wait
        if self._alarm is None or self._alarm.when() > moment:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self._loop.call_at(moment, self._tell_devices)

    def _tell_devices(self) -> None:
        self._alarm = None
        now = self._loop.time()
        while self._away:
            name = next(iter(self._away))
            due, moment, channels = self._away[name]
            if due > now:
                self._ring(max(due - now, 0.1))
                break
            del self._away[name]
            self._news.append((DISCONNECTED, name, moment, channels))
        news, self._news = self._news, []
        now = self._store.clock()
        for type in (CONNECTED, DISCONNECTED):
            for endpoint in self._by_type.get(type, ()):
                told = [orjson.dumps({"device": name, "at": timestamp(at)}) for kind, name, at, channels in news
                        if kind == type and endpoint.wants(type, channels)]
                if (outbox := self._webhooks.courier.outboxes.get(endpoint.id)) is None:
                    continue
                for piece in batches(told):
                    data = {"devices": [orjson.Fragment(each) for each in piece]}
                    outbox.tell(Packed.of(notice(type, "/devices", data, now, count=len(piece))))
