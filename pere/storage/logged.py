"""The log of receipts as the file has it, read a piece at a time, with what the file says of the events that it is about.

This file knows rows, and not what is at hand in memory.
"""

import sqlite3
import zlib
from typing import Any, NamedTuple

import orjson

from pere.receipt import PENDING
from pere.storage.packing import RECORD, parted, words


class Known:
    """What the file says of an event in the log: when it was accepted, who is meant if only some are, and the states of its
    entry with the log up to the number `logged` in them."""

    __slots__ = ("level", "logged", "names", "states", "time")

    def __init__(self, time: float, level: int, recipients: str | None, logged: int, columns: bytes):
        self.time = time
        self.level = level
        self.names = sorted(set(orjson.loads(recipients))) if recipients is not None else None
        self.logged = logged
        self.states = parted(zlib.decompress(columns))[0]


class Piece(NamedTuple):
    """Rows of number, channel, event, slot, state, what was said, and when; up to where it reaches, whether what came before is
    deleted, and the number of the channel of the record before it."""

    rows: list[tuple[Any, ...]]
    through: int
    is_lost: bool
    before: int
    events: dict[int, Known]


def piece(file: sqlite3.Connection, channel: int | None, after: int, newest: int, limit: int) -> Piece:
    """At most `limit` records above a number and up to `newest`, and what is needed to understand them, all of one state of the file."""
    ask = file.execute
    ask("begin")
    try:
        first = ask("select min(number) from receipts").fetchone()[0] or newest + 1
        # Whose record comes before it; who reads all channels has seen what was said of those that are gone.
        before = ask("select channel from receipts where number <= ? order by number desc limit 1", (after,)).fetchone() if channel is not None else None
        where, of = ("channel = ? and ", (channel,)) if channel is not None else ("", ())
        # The row that holds the record may begin before it.
        begin = ask(f"select max(number) from receipts where {where}number <= ?", (*of, after + 1)).fetchone()[0] or 0  # nosec B608 # our own words
        found: list[tuple[Any, ...]] = []
        through = newest
        cursor = ask(f"select number, channel, records, sayings from receipts where {where}number >= ? and number <= ? order by number",  # nosec B608 # our own words
                     (*of, begin, newest))
        for number, home, records, sayings in cursor:
            start = max(0, after + 1 - number)
            said: list[bytes] | None = None
            for place, (id, slot, state, saying, at) in enumerate(RECORD.iter_unpack(records[start * RECORD.size :]), number + start):
                if place > newest or len(found) == limit:
                    break
                if state != PENDING:
                    said = words(sayings) if saying and said is None else said
                    found.append((place, home, id, slot, state, said[saying - 1] if saying and said is not None else None, at))
            if len(found) == limit:
                through = found[-1][0]
                break
        cursor.close()
        ids = list({row[2] for row in found})
        events = ask("select v.id, v.time, v.level, v.recipients, e.logged, e.columns from events v join entries e on e.event = v.id "
                     f"where v.id in ({', '.join('?' * len(ids))})", ids).fetchall()  # nosec B608 # question marks
    finally:
        ask("rollback")
    return Piece(found, through, 0 < after < first - 1, before[0] if before is not None else 0,
                 {id: Known(*about) for id, *about in events})
