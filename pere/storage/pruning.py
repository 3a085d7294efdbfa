"""Making room in the file: the oldest events go, with what the ledger and the log say of them.

This is done by the journal's thread, within the commit of whatever else is written: a slice at a time, so that nobody waits long.
"""

import sqlite3
from typing import Any

from pere.storage.packing import RECORD
from pere.storage.schema import PAGE_BYTES


def prune(connection: sqlite3.Connection, cutoff: int, count: int, limit: int, floor: int) -> tuple[Any, ...]:
    """Delete the oldest events, `count` of them and all below `cutoff`, but not more than `limit`, with
    what belongs to them. Returns what the loop must know of it."""
    rows = connection.execute("select id, channel, ordinal from events order by id limit ?", (limit,)).fetchall()
    rows = [row for place, row in enumerate(rows) if place < count or row[0] < cutoff]
    pruned: list[tuple[int, int]] = []
    channels: dict[int, tuple[int, int, int]] = {}
    if rows:
        through = rows[-1][0]
        for id, channel, ordinal in rows:
            channels[channel] = (channel, ordinal + 1, id)
        owed = dict(connection.execute("select event, owed from entries where event <= ?", (through,)))
        pruned = [(id, owed.get(id, 0)) for id, _, _ in rows]
        connection.execute("delete from events where id <= ?", (through,))
        connection.execute("delete from entries where event <= ?", (through,))
        connection.executemany("update channels set first = ?, gone = ? where id = ?", [(first, gone, number) for number, first, gone in channels.values()])
        last = 0
        for number, records in connection.execute("select number, records from receipts where number < ? order by number limit 500", (floor,)):
            if number + len(records) // RECORD.size > floor or max(record[0] for record in RECORD.iter_unpack(records)) > through:
                break
            last = number
        if last:
            connection.execute("delete from receipts where number <= ?", (last,))
    oldest = connection.execute("select min(id) from events").fetchone()[0] or 0
    used = connection.execute("select page_count - freelist_count from pragma_page_count, pragma_freelist_count").fetchone()[0]
    return oldest, used * PAGE_BYTES, pruned, list(channels.values())
