"""The file of a store as others than its server see it: what is in it, whether it is sound, all of it in order.

Nothing is written, and a server may go on meanwhile. What is counted or checked is one state of the file, and as long as that is looked at,
the write-ahead log can only grow. An export takes as long as its reader likes, so it looks at some rows at a time and holds nothing in between.
"""

import os
import sqlite3
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, Self

import orjson

from pere.audience import Audience
from pere.entry import Entry
from pere.errors import ConfigError
from pere.event import Event, format_id, given_at, timestamp
from pere.ledger import ALL, Ledger
from pere.names import is_pattern, pattern, shown
from pere.receipt import ABSENT, CANCELLED, DELIVERED, EXPIRED, NAMES, NONE, PENDING, STATE
from pere.storage import schema
from pere.storage.packing import EVENT, MAX_RECORDS, RECORD, SATISFIED, Malformed, event_of, parted, words

EVENTS_AT_ONCE = 100  # read and held; one is 64 KiB at most, unless the server was told otherwise
ROWS_AT_ONCE = 10  # of the log, with up to MAX_RECORDS each
MAX_EVENTS = 10_000  # whose devices are remembered while the log is read
MAX_CHANNELS = 100
INTERRUPTED = sqlite3.SQLITE_INTERRUPT


class Addressed(NamedTuple):
    """What the log does not say of an event: its channel, when it was accepted, and the device in each slot."""

    channel: int
    time: float
    devices: Mapping[int, str]


class Archive:
    """A file of this version, opened to read. Raises ConfigError where it is missing, or not to be read."""

    def __init__(self, path: str):
        ready(path)
        self.path = path
        self._file = schema.connect(path, read_only=True)
        # SQLite asks now and then whether to go on, and it is then that Python notices Ctrl-C.
        self._file.set_progress_handler(lambda: 0, 100_000)
        self._devices = lru_cache(MAX_CHANNELS)(self._members)
        self._addressed = lru_cache(MAX_EVENTS)(self._look_up)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def _one(self, sql: str, *values: Any) -> Any:
        row = self._file.execute(sql, values).fetchone()
        return row[0] if row is not None else None

    @contextmanager
    def _one_state(self) -> Iterator[None]:
        self._file.execute("begin")
        try:
            yield
        finally:
            if self._file.in_transaction:
                self._file.execute("rollback")

    def _channels(self) -> dict[int, str]:
        return dict(self._file.execute("select id, name from channels order by name"))

    def _members(self, channel: int) -> dict[int, str]:
        return dict(self._file.execute("select slot, device from members where channel = ?", (channel,)))

    def _look_up(self, id: int) -> Addressed | None:
        """None where the event is no longer kept."""
        row = self._file.execute("select channel, time, recipients from events where id = ?", (id,)).fetchone()
        if row is None:
            return None
        channel, time, recipients = row
        return Addressed(channel, time, self._devices(channel) if recipients is None else dict(enumerate(sorted(set(orjson.loads(recipients))))))

    # What is in it

    def stats(self) -> dict[str, Any]:
        """Numbers, sizes in bytes, and the ends of what is kept; `receipts` are the records of the log, an expiry counting as one.
        `tables` is None where SQLite was built without dbstat."""
        one = self._one
        with self._one_state():
            return {
                "path": self.path,
                "version": one("pragma user_version"),
                "events": one("select count(*) from events"),
                "channels": one("select count(*) from channels"),
                "devices": one("select count(*) from (select device from members where gone is null union select device from wishes)"),
                "registrations": one("select count(*) from members where gone is null"),
                "receipts": self._records(),
                "outstanding": self._outstanding(),
                "oldest": _when(one("select min(id) from events")),
                "newest": _when(one("select max(id) from events")),
                "file_bytes": os.path.getsize(self.path),
                "log_bytes": size(self.path) - os.path.getsize(self.path),
                "page_bytes": one("pragma page_size"),
                "pages": one("pragma page_count"),
                "free_pages": one("pragma freelist_count"),
                "tables": self._tables(),
            }

    def _records(self, where: str = "", *values: Any) -> int:
        return (self._one(f"select sum(length(records)) from receipts {where}", *values) or 0) // RECORD.size  # nosec B608 # our own words

    def _tables(self) -> dict[str, int] | None:
        """Bytes by table, its indexes included."""
        try:
            return dict(self._file.execute("select tbl_name, sum(pgsize) from dbstat join sqlite_master using (name) group by 1 order by 2 desc"))
        except sqlite3.OperationalError as error:
            if "dbstat" in str(error):
                return None
            raise

    def _outstanding(self) -> int:
        """How many receipts are owed: by the columns, and then by what the log says beyond them, as a server enters it at its start."""
        ledger = Ledger()
        ledger.outstanding = self._one("select sum(owed) from entries where owed > 0") or 0
        floor = self._one("select value from meta where name = 'floor'") or 1
        rows = self._file.execute("select number, records from receipts where number >= ? order by number", (floor - MAX_RECORDS,))
        for first, records in rows:
            for number, (id, slot, state, _, at) in enumerate(RECORD.iter_unpack(records), first):
                entry = (ledger.entries.get(id) or self._restore(ledger, id)) if number >= floor else None
                if entry is None or number <= entry.logged:
                    continue
                ledger.apply(entry, None, slot, state, None, at)
        return ledger.outstanding

    def _restore(self, ledger: Ledger, id: int) -> Entry | None:
        row = self._file.execute("select columns, logged from entries where event = ?", (id,)).fetchone()
        event = self._file.execute(EVENT + "where id = ?", (id,)).fetchone()
        if row is None or event is None:
            return None
        states, latencies, _ = parted(zlib.decompress(row[0]))
        entry = Entry(event_of("", event), Audience(), bytearray(states), [], None)
        entry.restore(0, 0, latencies, b"", [], True)
        entry.logged = row[1]
        ledger.restore(entry)
        return entry

    # All of it in order

    def count(self, channels: Collection[str] = (), after: int = 0) -> tuple[int, int]:
        """About how many events and receipts an export will give."""
        numbers = self._meant(channels)
        if numbers is None:
            return self._one("select count(*) from events where id > ?", after), self._records()
        return (sum(self._one("select count(*) from events where channel = ? and id > ?", number, after) for number in numbers),
                sum(self._records("where channel = ?", number) for number in numbers))

    def events(self, channels: Collection[str] = (), after: int = 0) -> Iterator[Event]:
        """The events above an id that are kept now, oldest first; those of `channels`, names or patterns, channel by channel."""
        names, newest, numbers = self._channels(), self._one("select max(id) from events") or 0, self._meant(channels)
        select, limit = EVENT.replace("select", "select channel,"), f"limit {EVENTS_AT_ONCE}"
        if numbers is None:
            rows = self._paged(select + f"where id <= ? and id > ? order by id {limit}", 1, after, newest)
            yield from (event_of(names[number], row) for number, *row in rows)
        for number in numbers or ():
            rows = self._paged(select + f"where channel = ? and id > ? and id <= ? and ordinal > ? order by ordinal {limit}", 2, 0, number, after, newest)
            yield from (event_of(names[number], row) for _, *row in rows)

    def receipts(self, channels: Collection[str] = (), after: int = 0) -> Iterator[dict[str, Any]]:
        """What devices said of those events, in the order in which it was kept. What expired or was cancelled is no receipt."""
        names, newest, numbers = self._channels(), self._one("select max(id) from events") or 0, self._meant(channels)
        last = self._one("select max(number) from receipts") or 0
        select, limit = "select number, records, sayings from receipts where number <= ? and ", f"order by number limit {ROWS_AT_ONCE}"
        if numbers is None:
            yield from self._said(self._paged(select + f"number > ? {limit}", 0, -1, last), names, after, newest)
        for number in numbers or ():
            yield from self._said(self._paged(select + f"channel = ? and number > ? {limit}", 0, -1, last, number), names, after, newest)

    def _said(self, rows: Iterator[Any], names: dict[int, str], after: int, newest: int) -> Iterator[dict[str, Any]]:
        for _, records, sayings in rows:
            said = words(sayings)
            for id, slot, state, saying, at in RECORD.iter_unpack(records):
                if slot == ALL or state in (PENDING, EXPIRED, CANCELLED) or not after < id <= newest:
                    continue
                addressed = self._addressed(id)
                if addressed is None:
                    continue  # the log is pruned by the row, events one by one
                yield {
                    "event_id": format_id(id),
                    "channel": names[addressed.channel],
                    "device": addressed.devices[slot],
                    "state": NAMES[state],
                    "status": orjson.Fragment(said[saying - 1]) if saying else None,
                    "at": timestamp(at),
                    "latency": round(at - addressed.time, 3),
                }

    def _meant(self, channels: Collection[str]) -> list[int] | None:
        """The numbers of the channels that are named, in the order of their names; None is all."""
        if not channels:
            return None
        tests: list[Callable[[str], object]] = [pattern(text) if is_pattern(text) else text.__eq__ for text in channels]
        return [number for number, name in self._channels().items() if any(test(name) for test in tests)]

    def _paged(self, sql: str, key: int, start: int, *values: Any) -> Iterator[Any]:
        """All rows of a question, some at a time: each time those beyond the last one's `key`, which is the question's last parameter."""
        while rows := self._file.execute(sql, (*values, start)).fetchall():
            yield from rows
            start = rows[-1][key]

    # Whether it is sound

    def checks(self) -> Iterator[tuple[str, int | None, Iterator[str | None]]]:
        """What is looked at, one after the other: its name, how many rows that are, and for each row what is wrong with it, or None."""
        with self._one_state():
            yield "pages", None, self._readable("pages", self._bad_pages())
            yield "channels", None, self._readable("channels", self._bad_channels())
            for table, rows in (("events", self._bad_events()), ("entries", self._bad_entries()), ("receipts", self._bad_receipts())):
                try:
                    total = self._one(f"select count(*) from {table}")  # nosec B608 # one of the three above
                except sqlite3.DatabaseError:
                    total = None  # which `rows` will say
                yield table, total, self._readable(table, rows)

    def _readable(self, table: str, faults: Iterator[str | None]) -> Iterator[str | None]:
        try:
            yield from faults
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) == INTERRUPTED:
                raise
            yield f"{table}: cannot be read any further: {error}"

    def _bad_pages(self) -> Iterator[str | None]:
        for (finding,) in self._file.execute("pragma integrity_check"):
            yield f"pages: {shown(finding, 500)[1:-1]}" if finding != "ok" else None

    def _bad_channels(self) -> Iterator[str | None]:
        """A start puts members side by side by their slots, so one that is missing would move all that follow."""
        names = self._channels()
        for channel, count, slots, here in self._file.execute("select channel, count(*), max(slot) + 1, sum(gone is null) from members group by channel"):
            if channel not in names:
                # What is left of members who went with their channel harms nobody.
                yield f"members: {here} devices are registered on channel number {channel}, which is not there" if here else None
            else:
                yield f"members: of the {slots} slots of channel {shown(names[channel])} only {count} are there" if count != slots else None

    def _bad_events(self) -> Iterator[str | None]:
        """By id, the ordinals of each channel must come one by one: then they are contiguous, and ids grow with them."""
        due, gone, names = {}, {}, {}
        for number, name, first, gone_id in self._file.execute("select id, name, first, gone from channels"):
            due[number], gone[number], names[number] = first, gone_id, shown(name)
        for id, channel, ordinal, level, has_entry in self._file.execute(
                "select v.id, v.channel, v.ordinal, v.level, e.event is not null from events v left join entries e on e.event = v.id order by v.id"):
            fault = None
            if channel not in names:
                fault = f"is on channel number {channel}, which is not there"
            elif ordinal != due[channel]:
                fault = f"has ordinal {ordinal} on channel {names[channel]}, where {due[channel]} was to come"
            elif id <= gone[channel]:
                fault = f"is kept, though on channel {names[channel]} all up to {format_id(gone[channel])} is gone"
            elif level != NONE and not has_entry:
                fault = "asks for receipts, but has no entry"
            due[channel] = ordinal + 1
            yield f"events: {format_id(id)} {fault}" if fault else None

    def _bad_entries(self) -> Iterator[str | None]:
        for id, channel, owed, need, columns, sayings, home, level in self._file.execute(
                "select e.event, e.channel, e.owed, e.need, e.columns, e.sayings, v.channel, v.level from entries e left join events v on v.id = e.event"):
            try:
                if home is None:
                    fault: str | None = "has no event"
                elif home != channel:
                    fault = f"is of channel number {channel}, its event of {home}"
                elif level == NONE:
                    fault = "is of an event that asks for no receipts"
                else:
                    addressed = self._addressed(id)
                    assert addressed is not None
                    fault = entry_fault(zlib.decompress(columns), words(sayings), level, owed, need, len(addressed.devices))
            except Malformed as error:
                fault = f"cannot be unpacked: {error}"
            yield f"entries: that of {format_id(id)} {fault}" if fault else None

    def _bad_receipts(self) -> Iterator[str | None]:
        names, free = self._channels(), 0
        for number, channel, records, sayings in self._file.execute("select number, channel, records, sayings from receipts order by number"):
            try:
                fault = self._log_fault(records, words(sayings), channel, names)
                if number < free:
                    fault = f"overlaps the one before it, which goes on to {free - 1}"
                free = number + len(records) // RECORD.size
            except Malformed as error:
                fault = f"cannot be unpacked: {error}"
            yield f"receipts: row {number} {fault}" if fault else None

    def _log_fault(self, records: bytes, said: list[bytes], channel: int, names: dict[int, str]) -> str | None:
        if not records or len(records) % RECORD.size:
            return f"has {len(records)} bytes, which are not records of {RECORD.size}"
        for id, slot, state, saying, _ in RECORD.iter_unpack(records):
            if state >= len(NAMES) or saying > len(said):
                return f"has a record with state {state} and saying {saying} of {len(said)}"
            addressed = self._addressed(id)
            # A row stays until all its events are gone, and may outlive its channel.
            if addressed is None:
                continue
            if channel != addressed.channel or channel not in names:
                return f"is of channel number {channel}, and its event {format_id(id)} of {addressed.channel}"
            if slot != ALL and slot not in addressed.devices:
                return f"has a record for slot {slot} of {format_id(id)}, where nobody is"
        return None


def entry_fault(columns: bytes, said: list[bytes], level: int, owed: int, need: int, devices: int) -> str | None:
    """What is wrong with an entry for an audience of at most so many devices; None if nothing is."""
    kind, rest = columns[0], len(columns) - 1
    states, _, numbers = parted(columns)
    if kind >= 2 * SATISFIED or rest % (1 + (kind & 1) + (kind & 2)) or len(numbers) != (kind & 2) * len(states):
        return f"has columns that do not fit each other ({rest} bytes of kind {kind})"
    if len(states) > devices:
        return f"has {len(states)} slots for {devices} devices"
    counts = Counter(byte & STATE for byte in states if byte != ABSENT)
    if strange := counts.keys() - set(range(len(NAMES))):
        return f"has states that there are not: {sorted(strange)}"
    open = counts[PENDING] + (counts[DELIVERED] if level != DELIVERED else 0)
    if open != owed:
        return f"owes {owed} receipts, and its columns {open}"
    if need > counts.total():
        return f"needs {need} receipts of {counts.total()} devices"
    if numbers and max(array("H", numbers), default=0) > len(said):
        return f"refers to more sayings than the {len(said)} that are there"
    return None


def ready(path: str) -> None:
    """Raises ConfigError where there is no file of this version."""
    if not os.path.isfile(path):
        raise ConfigError(f"there is no file {path}")
    version = schema.check(path)
    if not version:
        raise ConfigError(f"{path} is empty: no server has made its tables yet")
    if version < schema.VERSION:
        raise ConfigError(f"{path} is of version {version}: the next start of a server makes it version {schema.VERSION}, which this command reads")


def size(path: str) -> int:
    """Bytes of a file and of the write-ahead log beside it."""
    return sum(os.path.getsize(name) for name in (path, path + "-wal") if os.path.exists(name))


def _when(id: int | None) -> dict[str, str] | None:
    return {"id": format_id(id), "time": timestamp(given_at(id))} if id is not None else None
