"""How a node comes to have everything: what was kept is read, and the log from there on."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pere.storage import keeping, scripts
from pere.storage.copy import Copy
from pere.storage.sharedlog import Cut, SharedLog

PATIENCE = 30  # seconds for which what is kept stands still while somebody reads it, at most


class Kept(NamedTuple):
    """After which entry of the log everything was kept, with the numbers of the newest record and the newest event by then."""

    n: int
    number: int
    newest: int

    @classmethod
    def of(cls, answer: list[bytes | None]) -> "Kept":
        return cls(*[int(value or 0) for value in answer])


async def look(log: SharedLog) -> Kept:
    """How far everything is kept now."""
    return Kept.of(await log.client.hmget(log.keys["kept"], *Kept._fields))


async def read(client: Any, keys: Mapping[str, str], kind_begins: Callable[[int], object] = lambda place: None) -> tuple[dict[str, dict[str, bytes]], list[Any]]:
    """All that stands under these keys beside the log: by kind and name, and the log of receipts in rows. `kind_begins` is told the place of each kind before
    it is read."""
    kept: dict[str, dict[str, bytes]] = {}
    for place, kind in enumerate(scripts.KINDS):
        kind_begins(place)
        kept[kind] = {name.decode(): value async for name, value in client.hscan_iter(keys[kind], count=1000)}
    return kept, [row for _, (_, packed) in await client.xrange(keys["records"]) for row in keeping.unpack_rows(packed)]


async def load(log: SharedLog, copy: Copy, born: int) -> Kept:
    """Fill a copy that is empty; what the log has beyond what was kept is taken as it comes. `born` is in milliseconds. Returns how far it was
    kept. Raises Lost if it is cut meanwhile."""
    client, keys = log.client, log.keys
    await client.set(keys["loading"], log.node, ex=PATIENCE)
    try:
        base = await look(log)
        kept, rows = await read(client, keys)
        if base != await look(log):
            raise Cut("it was kept anew while it was read")
        copy.begin_at(base.n, born, base.newest, base.number, kept, rows)
        log.begin(base.n)
        await log.catch_up()
    finally:
        await client.delete(keys["loading"])
    return base
