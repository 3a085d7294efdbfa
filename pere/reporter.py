"""The reporter: hears what happens to receipts, events and devices, and writes notices of it to those who want them.

Receipts are read from the store's log, up to where each endpoint was told: so who dies here goes on there, and what was answered
is told. What becomes of an event is heard from the ledger; a store tells again at start what may have been missed. Presence is of
this process: a device is news once it is there, or has been away for longer than a reconnect takes.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any

import orjson

from pere.endpoint import Endpoint
from pere.entry import Entry
from pere.errors import Refusal
from pere.event import Event, format_id, timestamp
from pere.ledger import DECISIONS
from pere.notice import BATCH, CONNECTED, DISCONNECTED, RECEIPTS, Packed, batches, notice
from pere.outbox import AGAIN, Outbox
from pere.storage import Page, Store
from pere.storage.settling import tell, telling
from pere.webhooks import Webhooks

log = logging.getLogger("pere.webhooks")

GATHER = 0.1  # seconds in which receipts come together before they are read
OLDEST = 1.0  # seconds after which a batch goes that is not full
PAGE = 500  # records that are read at once: a few milliseconds of the loop
SAVE = 10.0  # seconds after which it is noted how far the log was read, though nothing in it was wanted
SAID = 60.0  # seconds in which a loss is said once
MEMORY = 60.0  # seconds for which it is remembered what another node is to tell; it takes less to find out that it has died
AWAY = 10.0  # seconds without a feed, three times what `retry:` asks for, after which a device is gone


class Tail:
    """How far the log of receipts was read for some endpoints, which hear of the same channels, and what is not in a batch yet. So what many
    are told is read and written once."""

    __slots__ = ("came", "endpoint", "frames", "numbers", "outboxes", "position", "saved", "since")

    def __init__(self, endpoint: Endpoint, position: int, now: float):
        self.endpoint = endpoint  # one of them
        self.outboxes: list[Outbox] = []
        self.position = position
        self.frames: list[bytes] = []
        self.numbers: list[int] = []
        self.since = self.came = self.saved = now

    def take(self, page: Page, frames: list[bytes], now: float) -> None:
        """What was read from its position on."""
        self.came = now
        if not self.frames:
            self.since = now
        wanted = {channel: self.endpoint.wants(RECEIPTS, (channel,)) for channel in {record.channel for record in page.records}}
        for record, frame in zip(page.records, frames, strict=True):
            if wanted[record.channel]:
                self.frames.append(frame)
                self.numbers.append(record.number)
        self.position = page.through

    def cut(self, now: float) -> tuple[list[Sequence[bytes]], int]:
        """What is in the batches that are full, or in all if the first receipt has waited for long enough; and the cursor that goes with them."""
        pieces = list(batches(self.frames))
        if pieces and len(pieces[-1]) < BATCH and now - self.since < OLDEST:
            pieces.pop()
        count = sum(map(len, pieces))
        cursor = self.position if count == len(self.numbers) else self.numbers[count - 1] if count else 0
        del self.frames[:count], self.numbers[:count]
        if pieces:
            self.since, self.saved = self.came, now
        return pieces, cursor


class Reporter:
    """Writes to the outboxes of `webhooks`. Where it `is_alone` there is no other node, and the next process knows only what was kept."""

    def __init__(self, store: Store, webhooks: Webhooks, is_alone: bool):
        self._store = store
        self._webhooks = webhooks
        self._loop = asyncio.get_running_loop()
        self._tails: list[Tail] = []
        self._task: asyncio.Task[None] | None = None
        self._by_type: dict[str, list[Endpoint]] = {}
        # Devices whose last feed has closed, with the moment and their channels, in the order of time; and what is to be told of others.
        self._away: dict[str, tuple[float, float, Collection[str]]] = {}
        self._news: list[tuple[str, str, float, Collection[str]]] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._said = -SAID  # when it was last said that receipts were lost
        # What was decided while another node told of it, and the moment: should that node die, it is told once more.
        self._untold: deque[tuple[float, tuple[str, Event, float, dict[str, Any]]]] = deque()
        self._is_alone = is_alone
        self._is_stopped = False
        webhooks.on_change = self._changed
        store.ledger.on_decision = partial(tell, self._decided)

    def begin(self) -> None:
        """Hear what is decided."""
        self._changed()

    def start(self) -> None:
        """From now on it is this node that tells."""
        self._is_stopped = False
        self._changed()
        decided, self._store.decided = self._store.decided, []
        while self._untold:
            moment, each = self._untold.popleft()
            if moment > self._loop.time() - MEMORY:
                decided.append(each)
        for each in decided:
            self._tell(*each)

    async def stop(self) -> None:
        """It is not this node any more that tells. What is decided until the end, where it is alone, goes into the outboxes all the same, for the next process to send."""
        self._is_stopped = True
        if self._news:
            self._tell_devices()
        if self._alarm is not None:
            self._alarm.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._alarm = self._task = None
        self._tails.clear()
        self._store.devices.on_presence = None

    def _changed(self) -> None:
        """Who wants what may be another than before."""
        self._by_type = {type: self._webhooks.hearing(type) for type in {type for each in self._webhooks.all() for type in each.types}}
        self._store.ledger.heard = [word for word in DECISIONS if f"pere.event.{word}" in self._by_type]
        if not self._webhooks.is_leading:
            return
        self._regroup()
        is_seen = bool(self._by_type.get(CONNECTED) or self._by_type.get(DISCONNECTED))
        self._store.devices.on_presence = self._moved if is_seen else None
        # Who hears of nothing costs nothing.
        if self._tails and self._task is None:
            self._task = asyncio.ensure_future(self._follow())
        elif self._task is not None and not self._tails:
            self._task.cancel()
            self._task = None

    # Receipts

    def _regroup(self) -> None:
        """Each endpoint to where it belongs; what it has not been told of yet goes out, or is with what waits for it if it was given up."""
        outboxes, now = self._webhooks.courier.outboxes, self._loop.time()
        hearing = {endpoint.id: endpoint for endpoint in self._by_type.get(RECEIPTS, ()) if outboxes[endpoint.id].cursor is not None}
        for tail in self._tails:
            for outbox in [each for each in tail.outboxes if each.id not in hearing or hearing[each.id].channels != tail.endpoint.channels]:
                tail.outboxes.remove(outbox)
                if not outbox.is_removed and tail.frames:
                    rest = [self._batch(piece) for piece in batches(tail.frames)]
                    outbox.put(rest, lambda refusal: None, tail.position if outbox.id in hearing else None)
                if outbox.id in hearing:
                    self._join(outbox, hearing.pop(outbox.id), tail.position, now)
            for outbox in tail.outboxes:
                tail.endpoint = hearing.pop(outbox.id, tail.endpoint)
        for id, endpoint in hearing.items():
            self._join(outboxes[id], endpoint, outboxes[id].cursor or 0, now)
        self._tails = [tail for tail in self._tails if tail.outboxes]

    def _join(self, outbox: Outbox, endpoint: Endpoint, position: int, now: float) -> None:
        tail = next((each for each in self._tails if each.endpoint.channels == endpoint.channels and each.position == position and not each.frames), None)
        if tail is None:
            tail = Tail(endpoint, position, now)
            self._tails = [*self._tails, tail]
        tail.outboxes.append(outbox)

    def _merge(self) -> None:
        """Who hears of the same channels and has come as far goes on together."""
        merged: dict[tuple[object, ...], Tail] = {}
        for tail in self._tails:
            first = merged.setdefault((tail.endpoint.channels, tail.position, *tail.numbers), tail)
            if first is not tail:
                first.outboxes += tail.outboxes
        self._tails = list(merged.values())

    async def _follow(self) -> None:
        # To look ten times a second whether there is more costs less than to be told of every receipt.
        while True:
            await asyncio.sleep(GATHER)
            try:
                while await self._read():
                    await asyncio.sleep(0)
                await self._cut()
                self._merge()
            except Refusal as refusal:
                log.debug("receipts could not be told", extra={"facts": {"error": refusal.code}})
                await asyncio.sleep(AGAIN)
            except Exception:
                log.exception("receipts could not be told")
                await asyncio.sleep(AGAIN)

    async def _read(self) -> bool:
        """A page, for all who are where the last one is; whether there may be more."""
        position = min((tail.position for tail in self._tails), default=self._store.newest_record)
        if position >= self._store.newest_record:
            return False
        page = await self._store.records(None, position, PAGE)
        now = self._loop.time()
        if page.is_lost and now > self._said + SAID:
            self._said = now
            log.warning("receipts have made way before webhooks were told of them", extra={"facts": {"after": position}})
        frames = [record.encode() for record in page.records]
        for tail in self._tails:
            if tail.position == position:
                tail.take(page, frames, now)
        await self._cut()
        return True

    async def _cut(self) -> None:
        """Put what is to go into the outboxes, and wait until it is kept."""
        now, waiting = self._loop.time(), []
        for tail in self._tails:
            pieces, cursor = tail.cut(now)
            if pieces:
                told = [self._batch(piece) for piece in pieces]
                waiting += [self._put(outbox, pieces, told, cursor) for outbox in tail.outboxes]
            elif not tail.frames and now - tail.saved >= SAVE:
                tail.saved = now
                for outbox in tail.outboxes:
                    if outbox.cursor != tail.position:
                        outbox.move(tail.position)
        if waiting:
            await asyncio.gather(*waiting)

    def _batch(self, piece: Sequence[bytes], dropped: int = 0) -> Packed:
        data: dict[str, Any] = {"receipts": [orjson.Fragment(frame) for frame in piece]} | ({"dropped": dropped} if dropped else {})
        return Packed.of(notice(RECEIPTS, "/receipts", data, self._store.clock(), count=len(piece)))

    async def _put(self, outbox: Outbox, pieces: list[Sequence[bytes]], told: list[Packed], cursor: int) -> None:
        """As many of the batches as there is room for. The next one tells of those for which there was none."""
        room, mine = outbox.room, []
        for piece, batch in zip(pieces, told, strict=True):
            if room < batch.count:
                outbox.drop(batch.count)
                continue
            room -= batch.count
            mine.append(self._batch(piece, outbox.dropped) if outbox.dropped else batch)
            outbox.dropped = 0
        while not outbox.is_removed:
            done: asyncio.Future[Refusal | None] = self._loop.create_future()
            if mine:
                outbox.put(mine, telling(done), cursor)
            else:
                outbox.move(cursor, telling(done))
            if await done is None:
                return
            await asyncio.sleep(AGAIN)  # nothing more is read meanwhile, or it would be told in another order

    # Events

    def _decided(self, word: str, entry: Entry, moment: float) -> None:
        if f"pere.event.{word}" in self._by_type or entry.event.callback:
            told = word, entry.event, moment, entry.summary()
            if self._webhooks.is_leading or self._is_alone and self._is_stopped:
                self._tell(*told)
                return
            now = self._loop.time()
            self._untold.append((now, told))
            while self._untold[0][0] < now - MEMORY:
                self._untold.popleft()

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
        packed = Packed.of(notice(type, f"/events/{event.channel}/{id}", told, moment, f"event_{id}_{word}", trace=event.traceparent))
        for webhook in meant:
            # No webhook may hold up what is told, so nothing fails here.
            if (outbox := self._webhooks.courier.outboxes.get(webhook)) is not None:
                outbox.tell(packed)

    # Devices

    def _moved(self, name: str, channels: Collection[str], is_online: bool) -> None:
        """A device has opened its first feed, or closed its last one."""
        now, clock = self._loop.time(), self._store.clock()
        if not is_online:
            self._away[name] = now + AWAY, clock, channels
            self._ring(AWAY)
        elif self._away.pop(name, None) is None:
            self._news.append((CONNECTED, name, clock, channels))
            self._ring(OLDEST)

    def away(self) -> list[tuple[str, float, list[str]]]:
        """Devices that may be about to be told of as gone: each with the moment in which its last feed closed, and its channels."""
        return [(name, moment, list(channels)) for name, (_, moment, channels) in self._away.items()]

    def take_over(self, away: Iterable[tuple[str, float, Collection[str]]]) -> None:
        """These were so in the process before. Who has come back is no news."""
        now, clock, known = self._loop.time(), self._store.clock(), self._store.devices.known
        before = {name: (now + min(max(0.0, moment + AWAY - clock), AWAY), moment, channels) for name, moment, channels in away
                  if name not in self._away and (name not in known or not known[name].is_online)}
        if before:
            self._away = {**before, **self._away}
            self._ring(0.0)

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
