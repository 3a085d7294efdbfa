"""The node that keeps: now and then it writes what changed beside the log, so that the log can be cut.

What is kept is how everything stood after one entry of the log. Each writing goes on from the one before it, and names it. One whose answer
was lost may have been done all the same, and one that waited in the socket of a Redis that stood still may be done late; the next is told what
is kept by then, and goes on from there. So nothing is written twice, and nothing old over what is new.

Of members most changes are where they are and how far they have been written to, and these come by the thousand when a node comes or goes. They are written ahead of the rest, few at a time: who reads what
is kept enters the log from an earlier entry on, and what that says of such a member may be entered twice. Else the keeper and Redis would serve nobody for as long as it takes to write all of it.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgpack  # type: ignore[import-untyped]

from pere.storage import keeping, scripts
from pere.storage.copy import Copy
from pere.storage.loading import Kept, look
from pere.storage.sharedlog import SharedLog

KEEP_EVERY = 2.0  # seconds between two times that what changed is kept
KEEP_ANYWAY = 20.0  # and after so long also where something is being said
AHEAD = 250  # members that are written ahead at a time: two milliseconds of the loop, half of one of Redis
TIMES = 40  # in a row, at most, and the next ones at the next beat
REST = 0.01  # seconds between two of these, in which others are served
PIECE = 1_000  # fields and values in one command of Redis; Lua hands over less than 8,000
PIECE_BYTES = 512 * 1024  # of values, unless one alone has more; Redis takes no argument above its `proto-max-bulk-len`, 512 MB unless somebody says otherwise
CUT_AFTER = 60.0  # seconds that an entry stays in the log after it was kept: for so long a node may be cut off without reading all anew

Field = tuple[str | bytes, ...]  # its name, and its value unless it is to go


class Keeper:
    """`copy` is whose changes these are, `lives` how long in milliseconds what is kept lives unless it is kept anew."""

    def __init__(self, log: SharedLog, copy: Copy, lives: int, clock: Callable[[], float]):
        self.kept = Kept(0, 0, 0)  # as far as this node knows
        self._log = log
        self._copy = copy
        self._lives = lives
        self._clock = clock
        self._at = 0.0
        self._cuts: list[tuple[float, int]] = []  # when was kept up to which entry
        self._script = log.client.register_script(scripts.KEEP)

    def begin(self, kept: Kept) -> None:
        """Go on from what was read: the log may be another one, and where that before was to be cut says nothing of it."""
        self.kept = kept
        self._cuts.clear()

    async def look(self) -> None:
        """Learn what another node has kept."""
        self.kept = await look(self._log)

    async def keep(self, is_busy: bool, is_last: bool = False) -> None:
        """Write what has changed, as it stands now, if it is time for that; not while something `is_busy` being said."""
        now, log, copy = self._clock(), self._log, self._copy
        # What follows from an entry (that a webhook is to be told) is said at once. As long as something is being said, that may be missing.
        if not is_last and now < self._at + (KEEP_ANYWAY if is_busy else KEEP_EVERY):
            return
        n, number, newest = log.taken, copy.newest_record, copy.newest
        found = copy.changed()
        rows = copy.records_after(self.kept.number)
        if not (found or rows or (self._cuts and self._cuts[0][0] < now - CUT_AFTER)):
            return
        cut = 0
        while self._cuts and self._cuts[0][0] < now - CUT_AFTER:
            cut = self._cuts.pop(0)[1]
        if (self._cuts[-1][1] if self._cuts else cut) != n:
            self._cuts.append((now, n))
        told = await asyncio.get_running_loop().run_in_executor(None, _pieces, found)
        await self._write(Kept(n, number, newest), cut, keeping.pack_rows(rows) if rows else b"", told)
        copy.changes.kept(self.kept.n)
        if self.kept.n == n:
            self._at = now

    async def keep_ahead(self) -> None:
        """Write where members are, if that has changed of many."""
        copy = self._copy
        for _ in range(TIMES):
            marked = copy.changes.marked(AHEAD)
            if len(marked) < AHEAD or not await self._write(self.kept, 0, b"", _pieces(copy.marked(marked))):
                break
            copy.changes.kept_ahead(marked)
            await asyncio.sleep(REST)

    async def _write(self, kept: Kept, cut: int, rows: bytes, told: Iterable[bytes]) -> bool:
        """This is kept from now on, if what is kept is what we know; whether it is."""
        log = self._log
        is_done, *known = await self._script(
            keys=[log.keys[name] for name in ("head", "log", "keeper", "loading", "kept", "records", *scripts.KINDS)],
            args=[log.deployment, log.node, self.kept.n, *kept, cut, rows, self._copy.oldest_record, self._lives, *told])
        self.kept = Kept.of(known)
        return bool(is_done)


def _pieces(found: Iterable[tuple[str, str, Any]]) -> list[bytes]:
    """As the script takes it. The columns are made small here, which takes a while."""
    by_command: dict[tuple[str, int], list[Field]] = {}
    for kind, name, value in found:
        told = by_command.setdefault(("HDEL" if value is None else "HSET", scripts.KINDS.index(kind) + 1), [])
        told.append((name,) if value is None else (name, keeping.squeeze(value) if kind == "columns" else value))
    # Without the types of MessagePack that are younger than what Redis has of it.
    return [msgpack.packb((*command, *piece), use_bin_type=False) for command, told in by_command.items() for piece in _cut(told)]


def _cut(told: Iterable[Field]) -> Iterator[list[str | bytes]]:
    piece: list[str | bytes] = []
    size = 0
    for each in told:
        if piece and (len(piece) >= PIECE or size + len(each[-1]) > PIECE_BYTES):
            yield piece
            piece, size = [], 0
        piece += each
        size += len(each[-1])
    if piece:
        yield piece
