"""The store that several nodes share: each has everything at hand, and one log in Redis moves them all (`replica.py`, `sharedlog.py`).

What is said is queued, the queue becomes a batch and one entry of the log, as `committing.py` has it for the disk; while one is under way the
next is gathered. When the entry comes back it is applied, told to the hub, and answered, here as on every node. So an answer of 201 or
200 means that Redis has it: how safe that is, its `appendfsync` decides.

Why the rules (which receipt stands, who is in an audience, which key was there before) are not in Redis, but only the number and the ids of an entry: they would have
to be there a second time, in another language, and each receipt would be some commands of Redis. So ten thousand receipts are one command, and there is one
ledger, in which a device takes two bytes for an event. It is as safe: what moves the copies is one log, so they decide alike. The price is that each node holds and moves
everything.

One node at a time is the keeper: it writes what changed beside the log, so that this can be cut, says when time is over, and sends webhooks. It is one by a lease, and not as
one of a consumer group of Redis: what is to be told follows from the log, which every node has, and is gathered into batches, put off and given up for each endpoint as a
whole. A group would have it in Redis a second time, hand it out piece by piece to whoever asks, and not know that an endpoint is to be left in peace. Either way what
was on its way when a node died is sent once more, under the same id, by which a receiver knows it.

It is long and one thing: the whole contract of a store, in short methods, of which each says to the log or the copy what is asked. What has an idea of its own (the copy,
the log, the ear, the keeper, who is on the way in) has a file of its own.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Any

import msgpack  # type: ignore[import-untyped]
import orjson

from pere.audience import Member
from pere.bulk import Receipt
from pere.config import DAY, Config
from pere.entry import Entry
from pere.errors import ConfigError, Refusal, Unavailable
from pere.event import Draft, Event
from pere.ledger import unknown_receipt
from pere.names import is_pattern
from pere.storage import Accepted, Page, Stand
from pere.storage.dozing import Doze, read_whole
from pere.storage.ear import ended
from pere.storage.joining import Joining
from pere.storage.keeper import Keeper
from pere.storage.loading import load
from pere.storage.replica import DRAFT, LIMITS, Asker, Group, Op
from pere.storage.saying import MENTIONED, Batch, Saying
from pere.storage.settling import Settling
from pere.storage.sharedlog import BEAT, TIMEOUT, Errors, Lost, SharedLog, TooFew
from pere.storage.sharedlog import Entry as Written
from pere.storage.together import Together

log = logging.getLogger("pere.store")

WEBHOOK = "webhook"  # documents of this kind are endpoints
VERSION, OLDEST = 2, 1  # of what stands in Redis: what is written, and what is still read
RETRY = 5  # seconds after which a client may ask again when Redis is away
MAX_DUE = 1_000  # events that expire in one sweep
REST = 0.01  # seconds between two times that something is mentioned (`saying.py`): the other nodes serve meanwhile


class RedisStore(Joining):
    """`url` is as `--store` has it. Nothing may be asked of it before it has begun."""

    def __init__(self, config: Config, clock: Callable[[], float], url: str):
        super().__init__(config, clock, secrets.token_hex(6))
        self._loop = asyncio.get_running_loop()
        self._lives = (max(config.device_ttl, config.max_ttl) + DAY) * 1000
        self._is_alone = self._hears_all = False
        self.lead(False)  # who keeps, sends webhooks too
        self._replicas = config.redis_wait
        self._log = SharedLog(url, self.node, self._take_in, config.redis_wait)
        self._log.on_trouble = self._in_trouble
        self._log.on_lost = self._lost
        self._log.on_call = self._called
        self._doze = Doze(self._log, self._wake_anew, self._not_woken)
        self._told: Stand | None = None  # how everything stands, as the keeper told it
        self._keeper = Keeper(self._log, self, self._lives, self._loop.time)
        self._trouble: str | None = "it has not begun"
        self._saying = Saying()
        self._flying: Batch | None = None
        self._writing: asyncio.Task[None] | None = None
        self._is_called = False
        self._mentioning: asyncio.Handle | None = None
        self._settling = Settling()
        self._beating: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # Start

    async def begin(self) -> None:
        # What is in the log behind what is kept was decided a moment before somebody died, and maybe nobody was told.
        self.ledger.on_decision = lambda word, entry, moment: self.decided.append((word, entry.event, moment, entry.summary()))
        try:
            await read_whole(self._load_anew)
            self._trouble = None
            self._log.listen()
            await self._beat_once()
        except (*Errors, Lost) as error:
            await self._log.close()
            raise ConfigError(f"--store: {self._where()} cannot be used: {error}") from None
        except ConfigError:
            await self._log.close()
            raise
        self.ledger.on_decision = lambda word, entry, moment: None
        self._beating = asyncio.ensure_future(self._beat())
        self._say(("hello", self.node))

    def _where(self) -> str:
        kwargs = self._log.client.connection_pool.connection_kwargs
        return str(kwargs.get("path") or f"{kwargs.get('host', 'Redis')}:{kwargs.get('port', '')}")

    async def _read_all(self) -> None:
        """What is kept, and the log from there. Raises Lost if it is cut meanwhile."""
        born, version, limits = await self._log.open(self._system(), secrets.token_hex(8), VERSION)
        if not OLDEST <= version <= VERSION:
            raise ConfigError(f"--store: what is in {self._where()} is of version {version}, and this server reads {OLDEST} to {VERSION}")
        await self._agree(limits)
        self._keeper.begin(await load(self._log, self, born))

    async def _agree(self, known: bytes | None) -> None:
        """All nodes move alike only if they have the same limits; who is alone may change them."""
        mine = {name: getattr(self._config, name) for name in LIMITS}
        theirs = orjson.loads(known) if known else mine
        client, keys = self._log.client, self._log.keys
        if known and theirs != mine and await client.zcard(keys["nodes"]):
            raise ConfigError("--store: the nodes that are there have " + ", ".join(
                f"--{name.replace('_', '-')} {theirs.get(name)}, not {mine[name]}" for name in LIMITS if theirs.get(name) != mine[name]))
        # What is kept from now on is not for nodes of an older version.
        await client.hset(keys["head"], mapping={"limits": orjson.dumps(mine), "version": VERSION})

    async def has_others(self) -> bool:
        # One that has just come may not have been heard of here yet.
        try:
            return int(await self._log.client.zcard(self._log.keys["nodes"])) > 1
        except Errors:
            return bool(self._nodes - {self.node})

    # What is said is queued

    def _say(self, op: Op, asker: Asker | None = None) -> None:
        self._saying.say(op, asker)
        self._soon()

    def _mention(self, op: Op, size: int = 1) -> None:
        self._saying.mention(op, size)
        if self._mentioning is None:
            self._mentioning = self._loop.call_soon(self._say_mentioned)

    def _say_mentioned(self) -> None:
        """Some of it now, and the rest when the other nodes have heard that."""
        self._saying.say_mentioned(MENTIONED)
        self._mentioning = self._loop.call_later(REST, self._say_mentioned) if self._saying.has_more else None
        if self._saying:
            self._soon()
        else:
            self._settling.tell()

    def _unwell(self) -> Refusal | None:
        return Unavailable("store_failed", self._trouble, retry_after=RETRY) if self._trouble is not None else None

    def _check_well(self) -> None:
        if (refusal := self._unwell()) is not None:
            raise refusal

    def append(self, draft: Draft, then: Callable[[Accepted | Refusal], None]) -> None:
        self._check_well()
        if self._log.is_asleep:
            self._doze.wake(lambda: self.append(draft, then), then)
            return
        if draft.channel not in self._shelves:
            self._check_channels((draft.channel,))
        self._say(("push", *[getattr(draft, name) for name in DRAFT]), (then, then))

    def record_many(self, receipts: Sequence[Receipt], then: Callable[[list[tuple[int, int] | Refusal]], None]) -> None:
        if self._log.is_asleep:
            self._record_awake(receipts[:], then)
            return
        # Most come by the hundred and are all news: those are looked up, queued and answered together.
        rows, missing = self.ledger.find_many(receipts, self.clock())
        if receipts and not missing and self._trouble is None and (self._replicas or all([
                entry.rules[state][byte := entry.states[slot]][0] != byte for entry, _, slot, state, _, _ in rows])):
            self._tell(receipts, then)
            return
        together = Together(len(receipts), then)
        newest: dict[str, int] = {}
        for place, receipt in enumerate(receipts):
            self._record(receipt, partial(together.answer, [place]), newest)
        if not receipts:
            then([])

    def _record_awake(self, receipts: Sequence[Receipt], then: Callable[[list[tuple[int, int] | Refusal]], None]) -> None:
        def refused(refusal: Refusal) -> None:
            then([refusal] * len(receipts))

        if (refusal := self._unwell()) is not None:
            refused(refusal)
        else:
            self._doze.wake(lambda: self.record_many(receipts, then), refused)

    def _record(self, receipt: Receipt, then: Callable[[list[Any]], None], newest: dict[str, int]) -> None:
        device, id, state, _, _, channel = receipt
        if id > self._ids.last:
            # Another node may have sent it a moment ago.
            self._later(id, lambda: self._record(receipt, then, {}), lambda refusal: then([refusal]))
            return
        rows, missing = self.ledger.find_many((receipt,), self.clock())
        if missing:
            then([self._why(device, id, channel, newest)])
            return
        entry, _, slot, *_ = rows[0]
        old = entry.states[slot]
        if entry.rules[state][old][0] == old and not self._replicas and (id, device) not in self._saying.under_way:
            # It changes nothing, so there is nothing to keep. (What it repeats may not be on the replicas yet, where that counts.)
            then(self.ledger.enter_many(rows, self.clock()))
        elif (refusal := self._unwell()) is not None:
            then([refusal])
        else:
            self._tell((receipt,), then)

    def _tell(self, receipts: Sequence[Receipt], then: Callable[[list[Any]], None]) -> None:
        self._saying.give(receipts, then)
        if self._writing is None and not self._is_called:
            self._soon()

    def _later(self, id: int, again: Callable[[], None], refused: Callable[[Refusal], None]) -> None:
        """Once more, when all that there is up to this id is at hand."""

        async def reached() -> None:
            try:
                await self.reach(id)
                if id > self._ids.last:
                    raise unknown_receipt()
                again()
            except Refusal as refusal:
                refused(refusal)

        self._start(reached())

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def waking(self) -> Callable[[Callable[[], None]], None] | None:
        return self._doze.wait if self._doze.is_waking else None

    def lags(self, id: int, names: Collection[str]) -> bool:
        self._doze.asked()
        if self._log.is_asleep or id > self._ids.last:
            return True
        if self._is_alone or self._trouble is not None:
            return False
        return not (all(map(self._hears, names)) if names else self._log.hears("*", is_pattern=True))

    def _hears(self, name: str) -> bool:
        return self._log.hears(*_topic(name))

    async def reach(self, id: int, *names: str) -> None:
        if self._log.is_asleep:
            self._check_well()
            await self._doze.woken()
        if not self.lags(id, names):
            return
        if id > self._ids.last:
            self._check_well()
        try:
            await self._log.refresh()
        except Lost as lost:
            self._lost(str(lost))
            self._check_well()
        except Errors as error:
            refusal = self._failed(error)
            if id > self._ids.last:
                raise refusal from None

    def follow(self, name: str) -> None:
        self._log.follow(*_topic(name))

    def unfollow(self, name: str) -> None:
        self._visits = 0  # who has left may not be told of yet
        self._log.unfollow(*_topic(name))

    def watch(self, channel: str, id: int, then: Callable[[bool], None]) -> tuple[bool, Callable[[], None]]:
        is_decided, stop = super().watch(channel, id, then)
        self.follow(channel)

        def end() -> None:
            stop()
            self.unfollow(channel)

        return is_decided, end

    def stand(self) -> Stand:
        return self._told if self._log.is_asleep and self._told is not None else super().stand()

    async def records(self, channel: str | None, after: int, limit: int) -> Page:
        await self.reach(0, *((channel,) if channel is not None else ()))
        return await super().records(channel, after, limit)

    def recall(self, channel: str, id: int, then: Callable[[int], None], refused: Callable[[Refusal], None]) -> None:
        self.find(channel, id)
        self._check_well()
        self._say(("recall", channel, id), (then, refused))

    def put_away(self, kind: str, name: str, document: bytes | None, then: Callable[[Refusal | None], None]) -> None:
        if (refusal := self._unwell()) is not None:
            then(refusal)
        else:
            self._say(("document", kind, name, document), (then, then))

    def _end(self, entry: Entry, slot: int, end: int) -> None:
        self._say(("end", entry.event.id, entry.names[slot], end))

    def attempt(self, event: Event, device: str, again: bool) -> int | None:
        attempt = super().attempt(event, device, again)
        if attempt is not None and attempt > 1:
            self._say(("resent", event.id, device, attempt - 1))
        return attempt

    def owes_all(self, events: Iterable[Event], member: Member) -> bool:
        return super().owes_all(events, member) and all((event.id, member.device) not in self._saying.under_way for event in events)

    def _open_slot(self, event: Event, device: str) -> tuple[Entry, int] | None:
        return super()._open_slot(event, device) if (event.id, device) not in self._saying.under_way else None

    def _introduce(self, is_anew: bool = False) -> None:
        if self._beating is not None:  # else it is about to go
            super()._introduce(is_anew)

    def pass_on(self, device: str, channel: str, id: int, word: int, delay: float) -> None:
        if self._nodes - {self.node}:
            self._say(("going", device, channel, id, word, delay), (lambda _: None, lambda _: None))

    # The queue is appended to the log

    def _soon(self) -> None:
        """At the end of this turn of the loop, or after the batch that is under way."""
        if self._log.is_asleep:
            self._called()
        elif self._writing is None and not self._is_called and self._trouble is None:
            self._is_called = True
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._is_called = False
        self._doze.asked()
        if self._writing is None and self._trouble is None and self._saying:
            self._writing = asyncio.ensure_future(self._write())

    async def _write(self) -> None:
        try:
            while self._saying and self._trouble is None:
                batch = self._flying = self._saying.cut(self._system(), self._loop.create_future())
                body = msgpack.packb((batch.now, batch.ops))
                if self._replicas:
                    batch.hold()
                try:
                    replicas = await self._log.append(batch.number, batch.now, batch.ids, body, self._lives, batch.concerned(self.ledger))
                    # It is applied by now, unless something is missing before it.
                    if not batch.done.done():
                        async with asyncio.timeout(TIMEOUT):
                            await batch.done
                    if replicas < self._replicas:
                        raise TooFew(replicas, self._replicas)
                    batch.release()
                    self.on_commit(perf_counter() - batch.started, batch.size())
                except Errors as error:
                    refusal = self._failed(error)
                    if self._flying is batch:
                        self._undo(batch)
                    self._refuse_waiting(refusal)
                    batch.refuse(refusal)
        finally:
            self._writing = None
            self._settling.tell()

    def _take_in(self, entries: list[Written]) -> None:
        batch = self._flying
        own = b" %b %d" % (self.node.encode(), batch.number) if batch is not None else b""
        place = next((place for place, entry in enumerate(entries) if entry.header.endswith(own)), None) if own else None
        if batch is None or place is None:
            self.enter(entries)
            return
        self.enter(entries[:place])
        entry, self._flying = entries[place], None
        try:
            self._apply(entry.n, entry.first, entry.ids, batch.now, batch.ops, batch.told)
            if not batch.done.done():  # as it is when it was waited for as long as that may take
                batch.done.set_result(None)
        finally:
            self.enter(entries[place + 1 :])

    def _apply_said(self, askers: Sequence[Group] | None, rows: Sequence[Receipt]) -> None:
        if askers is not None:
            self._saying.entered(rows)
        super()._apply_said(askers, rows)

    # Redis refuses, or is away

    def trouble(self) -> str | None:
        return self._trouble

    def _failed(self, error: BaseException) -> Unavailable:
        reason = str(error) or type(error).__name__
        if self._trouble is None:
            log.warning("the store is in trouble", extra={"facts": {"error": reason}})
        self._trouble = f"the store cannot keep anything at present: {reason}"
        refusal = Unavailable("store_failed", self._trouble, retry_after=RETRY)
        if self._flying is None:
            self._refuse_waiting(refusal)
        return refusal

    def _in_trouble(self, error: BaseException) -> None:
        self._failed(error)

    def _well(self) -> None:
        if self._trouble is not None:
            log.warning("the store is well again", extra={"facts": {"was": self._trouble}})
            self._trouble = None
            self._soon()

    def _undo(self, batch: Batch) -> None:
        """Nobody knows whether it is in the log."""
        self._flying = None
        self._log.give_up()
        self._saying.put_back(batch)

    def _refuse_waiting(self, refusal: Refusal) -> None:
        refused = self._saying.refusals()
        self._doze.refuse(refusal)
        assured, self._assured = self._assured, {}
        refused += [then for waiting in assured.values() for then in waiting]
        for refuse in refused:
            refuse(refusal)
        self._settling.tell()

    def _lost(self, why: str) -> None:
        """The log is another one, or has gone on without us."""
        if not self._is_reading_anew:
            log.warning("everything is read anew", extra={"facts": {"why": why}})
            self._log.is_asleep = True  # what is heard from now on is entered behind what is to be read, and nothing is answered before
            refusal = self._failed(Lost(why))
            if self._flying is not None:
                self._undo(self._flying)
            self._refuse_waiting(refusal)
            self._reading = asyncio.ensure_future(self._read_anew())

    @property
    def _is_reading_anew(self) -> bool:
        return self._reading is not None and not self._reading.done()

    async def _read_anew(self) -> None:
        await self._doze.stop()
        await self._log.still()  # else what of it is yet to be taken would be, by an empty copy
        self.forsake()
        self._saying.clear()
        self._coming.clear()
        while True:
            try:
                await self._load_anew()
                break
            except (*Errors, Lost, ConfigError) as error:
                self._failed(error)
                await asyncio.sleep(BEAT)
        self._log.listen()
        self._trouble = None
        self._doze.rise()
        # Whoever was here is told to come again, and may come to another node or not at all: till then it is nowhere.
        self._say(("gone", self.node))
        self._say(("hello", self.node))

    async def _load_anew(self) -> None:
        self._clear()
        self.lead(self.leads)
        self.changes.clear()
        await self._read_all()
        self.on_anew()

    # Nobody asks

    async def _wake_anew(self) -> None:
        await self._load_anew()
        # Who is there, and what is listened to where, is kept nowhere; and the others may have taken this one for dead.
        self._say(("hello", self.node))

    def _called(self) -> None:
        """All nodes are to hear of something, or there is something to be said."""
        if self._trouble is None:
            self._doze.wake(self._soon, lambda refusal: None)

    def _not_woken(self, error: Exception) -> Refusal:
        if isinstance(error, Lost):
            self._lost(str(error))
        elif not isinstance(error, (*Errors, ConfigError)):
            log.error("what there was could not be read", exc_info=error)
        return self._unwell() or self._failed(error)

    def _may_sleep(self) -> bool:
        """Whether nobody here waits for anything, and the others know all that is to be known of this node."""
        return not (self.leads or self._is_alone or self._told is None or self._log.is_followed or self._saying or self._mentioning is not None or self._flying is not None or self._coming
                    or self._trouble is not None or not self._log.is_listening or self._has_to_tell())

    # Time

    def sweep(self, now: float, is_used: Callable[[str], bool]) -> None:
        if self._trouble is not None or self._log.is_asleep:
            return
        if self.leads:
            for event in self._schedule.due(now, MAX_DUE):
                self._say(("expire", event.channel, event.id) if not event.expired else ("drop", event.channel, now))
        self._is_used = is_used
        self._sweep_channels(now, is_used)
        self._say_present({device.name for device in self.devices.known.values() if device.feeds}, now)

    async def _beat(self) -> None:
        while self._beating is not None:
            await asyncio.sleep(BEAT)
            if self._is_reading_anew:
                continue
            try:
                await self._beat_once()
                if self.leads:
                    await self._keeper.keep_ahead()
                # Meanwhile it may have forgotten all that it had at hand: that is not to be kept.
                if self.leads and not self._is_reading_anew:
                    await self._keeper.keep(bool(self._saying) or self._flying is not None)
            except Lost as lost:
                self._lost(str(lost))
            except Errors as error:
                self._failed(error)
            except Unavailable:
                log.debug("who is to be the keeper could not be woken", extra={"facts": {"node": self.node}})  # which is known by now, and tried again
            except Exception:
                log.exception("a beat was missed")

    def _hear_all(self, is_wanted: bool) -> None:
        """Whoever sends webhooks is to hear of everything at once."""
        if is_wanted != self._hears_all:
            self._hears_all = is_wanted
            (self._log.follow if is_wanted else self._log.unfollow)("*", True)

    def _apply_hello(self, asker: Asker | None, node: str) -> None:
        self._is_alone = self._is_alone and node == self.node
        super()._apply_hello(asker, node)

    def _apply_document(self, asker: Asker | None, kind: str, name: str, document: bytes | None) -> None:
        super()._apply_document(asker, kind, name, document)
        self._hear_all(self.leads and bool(self._documents.get(WEBHOOK)))

    async def _beat_once(self) -> None:
        beat = await self._log.beat(self._lives, orjson.dumps([*self.stand()]) if self.leads else b"")
        if beat.replicas < self._replicas:
            self._failed(TooFew(beat.replicas, self._replicas))
        elif self._log.is_listening and not self._is_reading_anew:
            self._well()
        self._told = Stand(*orjson.loads(beat.stand)) if beat.stand is not None else None
        if beat.is_keeper and self._log.is_asleep:
            await self._doze.woken()
        if beat.is_keeper != self.leads:
            await self._keeper.look()
            self.lead(beat.is_keeper)
            log.info("this node is the keeper" if self.leads else "another node is the keeper", extra={"facts": {"node": self.node}})
            self.on_lead(self.leads)
        self._is_alone = beat.nodes == 1 and self._nodes <= {self.node}
        self._hear_all(self.leads and bool(self._documents.get(WEBHOOK)))
        self.changes.kept(beat.kept)
        for node in beat.gone if beat.is_keeper else ():
            # Not forgotten before all have heard of it: should we die now, the next keeper finds it again.
            self._say(("gone", node), (lambda _, node=node: self._start(self._forget_node(node)), lambda _: None))
        self._doze.beat(self._may_sleep())

    async def _forget_node(self, node: str) -> None:
        with suppress(*Errors):  # then it is found again
            await self._log.forget(node)

    # End

    async def settle(self) -> None:
        while self._trouble is None and (self._saying or self._mentioning is not None or self._writing is not None):
            self._soon()
            await self._settling.wait()

    async def close(self) -> None:
        if self._beating is None:
            return
        beating, self._beating = self._beating, None
        await ended(beating)
        if self._reading is not None:
            await ended(self._reading)  # where that ends by itself all the same it says that we are here
        if self._log.is_asleep and self._trouble is None:
            with suppress(Unavailable):
                await self._doze.woken()
        await self.settle()
        try:
            if self._trouble is None:
                self._is_used = lambda channel: False
                for shelf in self._shelves.values():
                    self._visit(shelf)
                # That the node has gone says it of all others: only what somebody has asked for holds from when that was last here.
                self._say_present({name for name in self._present if (device := self.devices.get(name)) is not None and not device.patterns}, self.clock())
                await self.settle()
                self._say(("gone", self.node))
                await self.settle()
                if self.leads:
                    await self._keeper.look()
                    await self._keeper.keep_ahead()  # of thousands who were here a moment ago, while others may be served by another node
                    await self._keeper.keep(False, is_last=True)
            await self._log.forget(self.node)
        except Errors as error:
            log.warning("Redis was away at the end", extra={"facts": {"error": str(error)}})
        if self._mentioning is not None:
            self._mentioning.cancel()
        self._trouble = "it is closed"  # what somebody says from now on would open a connection that nobody closes
        for task in (*self._tasks, self._reading, self._writing):
            if task is not None:
                await ended(task)  # one that goes on would say once more that we are here
        await self._doze.stop()
        await self._log.close()


def _topic(name: str) -> tuple[str, bool]:
    """A channel, or a pattern as Redis has them: there `*` is any run, dots included, which means a little more."""
    return (name.replace("**", "*"), True) if is_pattern(name) else (name, False)
