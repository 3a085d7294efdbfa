"""What stands in Redis as others than the nodes see it: what is in it, whether it is sound, all of it in order.

Everything is read as by a node that starts, and nothing is said: the nodes only wait with what they keep for as long as that takes. Afterwards
it is one state of everything, in memory, and Redis is asked no more.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, Self

import orjson

from pere.config import Config, without_password
from pere.entry import Entry
from pere.errors import ConfigError
from pere.event import Event, format_id, given_at, timestamp
from pere.names import is_pattern, pattern
from pere.receipt import ABSENT, CANCELLED, EXPIRED, NAMES, NONE, STATE
from pere.storage import scripts
from pere.storage.copy import Copy
from pere.storage.loading import load
from pere.storage.replica import LIMITS
from pere.storage.shared import UNLIMITED
from pere.storage.sharedlog import Errors, Lost, SharedLog

SAMPLES = 50  # of the fields of a key, by which Redis tells its size


class Onlooker:
    """Raises ConfigError for a Redis that cannot be read, or has nothing of ours."""

    def __init__(self, url: str):
        self.url = without_password(url)
        self._figures: dict[str, Any] = {}
        self._broken = ""
        asyncio.run(self._read(url))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing is open any more."""

    async def _read(self, url: str) -> None:
        log = SharedLog(url, "onlooker", lambda entries: self._copy.enter(entries))
        try:
            head = {name.decode(): value for name, value in (await log.client.hgetall(log.keys["head"])).items()}
            if not head:
                raise ConfigError(f"{self.url}: nothing of PERE is there, under the prefix {log.prefix}")
            limits = orjson.loads(head.get("limits") or b"{}")
            self._copy = Copy(Config(**UNLIMITED | {name: value for name, value in limits.items() if name in LIMITS}), time.time, log.node)
            try:
                base = await load(log, self._copy, int(head["born"]))
            except (Lost, ValueError, KeyError, TypeError, IndexError) as error:
                self._broken = f"what is kept cannot be read: {error or type(error).__name__}"
                return
            self._figures = await self._sizes(log, head, base.n)
        except Errors as error:
            raise ConfigError(f"{self.url} cannot be read: {error}") from None
        finally:
            await log.close()

    async def _sizes(self, log: SharedLog, head: dict[str, bytes], kept: int) -> dict[str, Any]:
        client, keys = log.client, log.keys
        now, _ = await client.time()
        keeper = (await client.get(keys["keeper"]) or b"").decode()
        length: dict[str, Callable[[str], Any]] = dict.fromkeys(scripts.KINDS, client.hlen) | {"log": client.xlen, "records": client.xlen, "head": client.hlen}
        sizes = {name: {"items": await length[name](keys[name]), "bytes": await client.memory_usage(keys[name], samples=SAMPLES) or 0} for name in length}
        n = int(head["n"])
        return {
            "prefix": log.prefix,
            "version": int(head["version"]),
            "log": {"newest": n, "kept": kept, "not_kept": n - kept, "entries": sizes["log"]["items"]},
            "nodes": [{"node": name.decode(), "is_keeper": name.decode() == keeper, "heard_ago": now - int(heard), "behind": n - int(head.get(f"t:{name.decode()}", n))}
                      for name, heard in await client.zrange(keys["nodes"], 0, -1, withscores=True)],
            "keys": sizes,
            "bytes": sum(size["bytes"] for size in sizes.values()),
        }

    # What is in it

    def stats(self) -> dict[str, Any]:
        """Numbers, sizes in bytes, and the ends of what is kept. How far a node is `behind` in the log is as it was when it was last heard, at
        most a second ago."""
        if self._broken:
            raise ConfigError(f"{self.url}: {self._broken}")
        copy = self._copy
        ids = [event.id for shelf in copy.shelves() for event in shelf.backlog]
        return {
            "url": self.url,
            "events": len(ids),
            "channels": len(copy.channels()),
            "devices": len(copy.devices.known),
            "registrations": sum(len(shelf.audience) for shelf in copy.shelves()),
            "receipts": len(copy.records_after(0)),
            "outstanding": copy.ledger.outstanding,
            "oldest": _when(min(ids, default=0)),
            "newest": _when(max(ids, default=0)),
        } | self._figures

    def count(self, channels: Collection[str] = (), after: int = 0) -> tuple[int, int]:
        """How many events an export will give, and at most how many receipts."""
        return sum(1 for _ in self.events(channels, after)), len(self._copy.records_after(0))

    def events(self, channels: Collection[str] = (), after: int = 0) -> Iterator[Event]:
        """The events above an id, oldest first; those of `channels`, names or patterns, channel by channel."""
        shelves = sorted((shelf for shelf in self._copy.shelves() if _meant(channels, shelf.name)), key=lambda shelf: shelf.name)
        if channels:
            return (event for shelf in shelves for event in shelf.backlog if event.id > after)
        return iter(sorted((event for shelf in shelves for event in shelf.backlog if event.id > after), key=lambda event: event.id))

    def receipts(self, channels: Collection[str] = (), after: int = 0) -> Iterator[dict[str, Any]]:
        """What devices said of those events, as far as it is kept, in the order in which it was entered. What expired or was cancelled is no receipt."""
        kept = {event.id for event in self.events(channels, after)}
        rows = self._copy.records_after(0)
        for _, id, channel, accepted, device, byte, status, at in sorted(rows, key=lambda row: row[2]) if channels else rows:
            if id in kept and byte & STATE not in (EXPIRED, CANCELLED):
                yield {"event_id": format_id(id), "channel": channel, "device": device, "state": NAMES[byte & STATE],
                       "status": orjson.Fragment(status) if status is not None else None, "at": timestamp(at), "latency": round(max(0.0, at - accepted), 3)}

    # Whether it is sound

    def checks(self) -> Iterator[tuple[str, int | None, Iterator[str | None]]]:
        """What is looked at, one after the other: its name, how many that are, and for each what is wrong with it, or None."""
        yield "log", 1, iter([self._broken or None])
        if not self._broken:
            yield "events", None, self._bad_events()
            yield "entries", len(self._copy.ledger.entries), (entry_fault(entry) for entry in self._copy.ledger.entries.values())
            yield "receipts", None, self._bad_records()

    def _bad_events(self) -> Iterator[str | None]:
        for shelf in self._copy.shelves():
            ordinal, last = shelf.backlog.first, shelf.backlog.evicted_id
            for event in shelf.backlog:
                fault = None
                if event.ordinal != ordinal:
                    fault = f"has ordinal {event.ordinal} on channel {shelf.name}, where {ordinal} was to come"
                elif event.id <= last:
                    fault = f"stands on channel {shelf.name} behind {format_id(last)}"
                elif (event.level == NONE) != (event.id not in self._copy.ledger.entries):
                    fault = "asks for receipts, but has no entry" if event.level != NONE else "asks for no receipts, and has an entry"
                ordinal, last = event.ordinal + 1, event.id
                yield f"events: {format_id(event.id)} {fault}" if fault is not None else None

    def _bad_records(self) -> Iterator[str | None]:
        rows = self._copy.records_after(0)
        number = self._copy.oldest_record
        for row in rows:
            yield f"receipts: {row[0]} stands where {number} was to come" if row[0] != number else None
            number = row[0] + 1


def entry_fault(entry: Entry) -> str | None:
    """What is wrong with an entry of the ledger; None if nothing is."""
    plain = [byte & STATE for byte in entry.states if byte != ABSENT]
    fault = None
    if len(entry.states) > len(entry.names):
        fault = f"has {len(entry.states)} states for {len(entry.names)} devices"
    elif sum(entry.counts) != entry.size or entry.counts != [plain.count(state) for state in range(len(entry.counts))]:
        fault = f"counts {entry.counts}, which are not its {len(plain)} states"
    return f"entries: that of {format_id(entry.event.id)} {fault}" if fault is not None else None


def _meant(channels: Collection[str], name: str) -> bool:
    return not channels or any(pattern(text)(name) if is_pattern(text) else text == name for text in channels)


def _when(id: int) -> dict[str, str] | None:
    return {"id": format_id(id), "time": timestamp(given_at(id))} if id else None
