"""All that a store holds, apart from any store: what is read from one and written to another.

Things look as they are kept in Redis (`keeping.py`): by kind and name, each as bytes. The log of receipts is in rows (`recent.py`). Whether
two stores hold the same is told by a digest of each kind, of what they have in common: when a channel was last touched, who is waited for there, or
whether an event has been found to be over, a file does not say, and finds out again.
"""

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pere.errors import ConfigError
from pere.storage import keeping
from pere.storage.recent import Row
from pere.storage.scripts import KINDS

FOREVER = 10**11  # of seconds, events or bytes: nothing makes way because it is looked at

# Told what is being done, how many of how many are done.
Watched = Callable[[str, int, int], None]


@dataclass
class Contents:
    """`born` is the millisecond in which the store was born, `newest` the newest id that it gave, `number` that of the newest row.
    `left_out` counts events that the limits of a store in memory have no room for."""

    born: int = 0
    newest: int = 0
    number: int = 0
    kept: dict[str, dict[str, bytes]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    rows: list[Row] = field(default_factory=list)
    left_out: int = 0

    def trim(self) -> None:
        """The log of receipts goes as far back as each of its rows has an event that is kept, and no number is missing: before that
        nobody could say what was said, and who follows it is told of the gap."""
        known = {int(name.rpartition(keeping.SEPARATOR)[2]) for name in self.kept["events"]}
        due = self.number
        for place in range(len(self.rows) - 1, -1, -1):
            number, id, *_ = self.rows[place]
            if number != due or id not in known:
                del self.rows[: place + 1]
                break
            due -= 1

    def check(self, source: "Contents", where: str) -> None:
        """Raises ConfigError where it is not what it was written from."""
        mine, theirs = self.digests(), source.digests()
        if differing := [f"{kind} ({mine[kind][0]:,}, and {theirs[kind][0]:,} were written)" for kind in mine if mine[kind] != theirs[kind]]:
            raise ConfigError(f"what stands in {where} is not what was written, and is thrown away: {', '.join(differing)}")

    def digests(self) -> dict[str, tuple[int, str]]:
        """How many there are of each kind, and a digest of them."""
        found = {kind: (len(things), _digest((name, _common(kind, things[name])) for name in sorted(things))) for kind, things in self.kept.items()}
        return found | {"receipts": (len(self.rows), _digest(map(tuple, self.rows))), "ends": (1, _digest([(self.born, self.newest, self.number)]))}


def _common(kind: str, value: bytes) -> Any:
    """What every store knows of a thing."""
    told = keeping.unpack_value(value)
    if kind == "channels":
        last, gone, _, left, *_ = told
        return last, gone, sorted(map(tuple, left))
    if kind == "events":
        return [*told[:10], *told[11:]]  # 10 is whether it has been found to be over
    if kind == "columns":
        need, version, columns, sayings = told
        return need, version, zlib.decompress(columns), sayings
    return None if kind == "wishes" else told


def _digest(things: Any) -> str:
    digest = hashlib.sha256()
    for thing in things:
        digest.update(keeping.pack_value(thing))
    return digest.hexdigest()
