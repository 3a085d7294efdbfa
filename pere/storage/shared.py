"""The contents of a store in Redis: taken out while no node is there, and written so that there is all of it or nothing.

What is written stands under names of its own, which no node reads and which go away by themselves in an hour; all of them get their right
names in one piece, if by then nobody has begun to use those.
"""

import secrets
import time
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import orjson

from pere.config import DAY, Config, without_password
from pere.errors import ConfigError
from pere.event import SEQUENCE_BITS, SEQUENCE_MASK
from pere.storage import keeping, scripts
from pere.storage.contents import FOREVER, Contents, Watched
from pere.storage.copy import Copy
from pere.storage.loading import look, read
from pere.storage.redis import OLDEST, VERSION
from pere.storage.replica import LIMITS
from pere.storage.sharedlog import SILENCE, Lost, SharedLog

HOUR = 3_600_000  # milliseconds after which what was not finished is gone
FIELDS = 500  # written at once
PIECE = 10_000  # changes of states in one entry of the stream


# keys: head, nodes, all names that there are, and then by twos what was written and the name that it gets. arguments: the deployment that was there ("" for none), after
# how many seconds of silence a node is gone, time to live (ms), how many names there are. Answers 1 if nobody has begun to use these since.
RENAME = """
if (redis.call('HGET', KEYS[1], 'deployment') or '') ~= ARGV[1] then return 0 end
if redis.call('ZCOUNT', KEYS[2], redis.call('TIME')[1] - ARGV[2], '+inf') > 0 then return 0 end
for place = 3, 2 + ARGV[4] do redis.call('DEL', KEYS[place]) end
for place = 3 + ARGV[4], #KEYS, 2 do
    redis.call('RENAME', KEYS[place], KEYS[place + 1])
    redis.call('PEXPIRE', KEYS[place + 1], ARGV[3])
end
return 1
"""

# What nobody has said yet decides nothing.
UNLIMITED: dict[str, Any] = {each.name: min(FOREVER, each.metadata["high"] or FOREVER) for each in fields(Config) if each.name in LIMITS}


class Snapshot(Copy):
    """A copy that is moved as those of all nodes are, by the same limits, and then left as it is."""

    def contents(self, born: int) -> Contents:
        for node in {node for shelf in self._shelves.values() for member in shelf.audience for node in member.elsewhere}:
            self._apply_gone(None, node)  # nobody is there
        found = Contents(born, self.newest, self.newest_record, rows=self.records_after(0))
        for kind, name in self._things():
            value = self._value(kind, name)
            if value is not None:
                found.kept[kind][name] = keeping.squeeze(value) if kind == "columns" else value
        found.trim()
        return found

    def _things(self) -> Iterator[keeping.Thing]:
        for channel in sorted(self._begun):
            shelf = self._shelves[channel]
            yield "channels", channel
            yield from (("members", keeping.joined(channel, member.device)) for member in shelf.audience)
            for event in shelf.backlog:
                yield "events", keeping.joined(channel, str(event.id))
                yield "columns", keeping.joined(channel, str(event.id))
        yield from (("keys", keeping.joined(*each)) for each in self._keys)
        yield from (("wishes", keeping.joined(device, pattern)) for pattern, devices in self._wishes.items() for device in devices)
        yield from (("documents", keeping.joined(kind, name)) for kind, documents in self._documents.items() for name in documents)


class Shared:
    """One deployment in Redis. Raises ConfigError wherever something is not as it must be, Redis being away included."""

    def __init__(self, url: str, config: Config):
        self._config = config
        self.name = without_password(url)
        self._log = SharedLog(url, secrets.token_hex(6), lambda entries: None)
        self._client, self._keys = self._log.client, self._log.keys

    async def close(self) -> None:
        await self._log.close()

    async def check_nobody(self) -> None:
        """Nobody may use it meanwhile."""
        seconds, _ = await self._client.time()
        if nodes := await self._client.zcount(self._keys["nodes"], seconds - SILENCE, "+inf"):
            raise ConfigError(f"{self.name} is in use: {'a node is' if nodes == 1 else f'{nodes} nodes are'} there; end them, and wait for {SILENCE} s if they were killed")

    async def is_there(self) -> bool:
        """Whether anything of ours stands there."""
        return bool(await self._client.exists(self._keys["head"]))

    # Taking

    async def take(self, watched: Watched) -> Contents:
        """All that is there: what is kept, and what the log says beyond it."""
        await self.check_nobody()
        if not await self.is_there():
            raise ConfigError(f"there is nothing in {self.name}")
        before = await self._client.hgetall(self._keys["head"])
        if not OLDEST <= (version := int(before[b"version"])) <= VERSION:
            raise ConfigError(f"what is in {self.name} is of version {version}, and this PERE reads {OLDEST} to {VERSION}")
        base = await look(self._log)
        kept, rows = await self._read(self._keys, watched)
        known = orjson.loads(before.get(b"limits", b"{}"))
        copy = Snapshot(Config(**UNLIMITED | {name: known[name] for name in LIMITS if name in known}), time.time, self._log.node)
        copy.begin_at(base.n, int(before[b"born"]), base.newest, base.number, kept, rows)
        self._log.take = copy.enter
        self._log.deployment = before[b"deployment"]
        self._log.begin(base.n)
        try:
            await self._log.catch_up()
        except Lost as lost:
            raise ConfigError(f"{self.name} cannot be read: {lost}") from None
        if await self._client.hgetall(self._keys["head"]) != before:
            raise ConfigError(f"{self.name} was changed while it was read: a node has come; end it, and try again")
        return copy.contents(int(before[b"born"]))

    async def _read(self, keys: dict[str, str], watched: Watched) -> tuple[dict[str, dict[str, bytes]], list[Any]]:
        return await read(self._client, keys, lambda place: watched("reading", place, len(scripts.KINDS)))

    # Putting

    async def put(self, contents: Contents, is_forced: bool, watched: Watched) -> None:
        """Write it, see whether it is what it was written from, and then let it take the place of what is there."""
        await self.check_nobody()
        deployment = await self._client.hget(self._keys["head"], "deployment") or b""
        if deployment and not is_forced:
            raise ConfigError(f"{self.name} is not empty, and is left as it is; --force replaces it")
        parts = {name: f"{self._log.prefix}:copied:{name}" for name in scripts.KEYS}
        await self._client.delete(*parts.values())
        try:
            there = await self._write(parts, contents, watched)
            kept, rows = await self._read(parts, watched)
            Contents(contents.born, contents.newest, contents.number, kept, rows).check(contents, self.name)
            await self._rename({name: parts[name] for name in there}, deployment)
        finally:
            await self._client.delete(*parts.values())

    async def _write(self, parts: dict[str, str], contents: Contents, watched: Watched) -> list[str]:
        """Returns the names that there are now."""
        there, done, total = ["head", "kept"], 0, sum(map(len, contents.kept.values()))
        for kind, things in contents.kept.items():
            items = list(things.items())
            for start in range(0, len(items), FIELDS):
                await self._client.hset(parts[kind], mapping=dict(items[start : start + FIELDS]))
                await self._client.pexpire(parts[kind], HOUR)
                done += FIELDS
                watched("writing", min(done, total), total)
            there += [kind] if items else []
        for start in range(0, len(contents.rows), PIECE):
            piece = contents.rows[start : start + PIECE]
            await self._client.xadd(parts["records"], {"b": keeping.pack_rows(piece)}, id=f"{piece[-1][0]}-0")
            await self._client.pexpire(parts["records"], HOUR)
        there += ["records"] if contents.rows else []
        await self._client.hset(parts["kept"], mapping={"n": 0, "number": contents.number, "newest": contents.newest})
        # Another deployment than was there before: a node of that one which comes back reads everything anew.
        await self._client.hset(parts["head"], mapping={
            "deployment": secrets.token_hex(8), "n": 0, "ms": contents.newest >> SEQUENCE_BITS, "seq": contents.newest & SEQUENCE_MASK, "born": contents.born, "version": VERSION})
        return there

    async def _rename(self, parts: dict[str, str], deployment: bytes) -> None:
        lives = (max(self._config.device_ttl, self._config.max_ttl) + DAY) * 1000
        keys = [self._keys["head"], self._keys["nodes"], *self._keys.values(), *(each for name, part in parts.items() for each in (part, self._keys[name]))]
        if not await self._client.register_script(RENAME)(keys=keys, args=[deployment, SILENCE, lives, len(self._keys)]):
            raise ConfigError(f"a node has come to {self.name} meanwhile; end it, and try again")
