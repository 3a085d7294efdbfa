"""The contents of a store in its file: taken out of one, and written to a new one.

The file is brought up to date first, by its own store: what the log of receipts says beyond the columns is entered in them.
"""

import os
import secrets
import sqlite3
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import groupby

import orjson

from pere.audience import Member
from pere.backlog import Backlog
from pere.config import Config
from pere.errors import ConfigError
from pere.event import SEQUENCE_BITS, Event
from pere.ledger import ALL
from pere.receipt import CANCELLED, DELIVERED, EXPIRED, LATE, PENDING, STATE, closes
from pere.storage import Accepted, Shelf, keeping, schema
from pere.storage.archive import ready
from pere.storage.backup import check_target, put_aside, settle
from pere.storage.contents import FOREVER, Contents, Watched
from pere.storage.keeping import joined
from pere.storage.packing import MAX_RECORDS, RECORD, event_of, parted, words
from pere.storage.recent import Row
from pere.storage.sqlite import SqliteStore

# What EVENT selects, with its channel and its entry before it.
ALL_EVENTS = ("select v.channel, e.need, e.version, e.columns, e.sayings, v.id, v.ordinal, v.time, v.ttl, v.level, v.is_json, v.type, v.publisher, v.recipients, "
              "v.data, v.recalled, v.callback, v.traceparent from events v left join entries e on e.event = v.id order by v.id desc")
EVERYTHING = Config(backlog_events=FOREVER, backlog_bytes=FOREVER, backlog_total_bytes=FOREVER, receipts_kept=FOREVER,
                    retention_age=FOREVER, retention_events=FOREVER, retention_bytes=FOREVER)


async def take(path: str, config: Config, watched: Watched) -> Contents:
    """All that is in a file, as far as the limits of `config` leave room for events and receipts. Raises ConfigError where a server uses it."""
    if not os.path.isfile(path) or not schema.check(path):
        ready(path)
    store = SqliteStore(EVERYTHING, time.time, path)
    await store.close()
    lock = schema.Lock(path)
    try:
        with closing(schema.connect(path, read_only=True)) as file:
            return Taking(file, config, watched).all()
    finally:
        lock.release()


class Taking:
    """Everything out of an open file."""

    def __init__(self, file: sqlite3.Connection, config: Config, watched: Watched):
        self._file = file
        self._config = config
        self._watched = watched
        self._contents = Contents()
        self._names: dict[int, str] = dict(file.execute("select id, name from channels"))
        self._shelves: dict[int, Shelf] = {}
        self._devices: dict[str, list[str]] = {}  # by channel, by slot
        self._entries: dict[int, tuple[Event, bytes]] = {}  # events that are in the log, with their states

    def all(self) -> Contents:
        """What is in it."""
        found, one = self._contents, self._one
        values = dict(self._file.execute("select name, value from meta"))
        found.born = (values["born"] + 1) >> SEQUENCE_BITS
        found.newest = max(values["born"], one("select max(id) from events") or 0, values.get("newest", 0))
        self._channels()
        self._events()
        for channel, key, event, audience, at in self._file.execute("select channel, key, event, audience, at from keys"):
            found.kept["keys"][joined(channel, key)] = keeping.pack_key(at, Accepted(event, audience))
        for device, pattern in self._file.execute("select device, pattern from wishes"):
            found.kept["wishes"][joined(device, pattern)] = keeping.pack_value(time.time())
        for kind, name, document in self._file.execute("select kind, name, document from documents"):
            found.kept["documents"][joined(kind, name)] = keeping.pack_value(document)
        self._rows(values.get("number", 0))
        return found

    def _one(self, sql: str) -> int | None:
        found: int | None = self._file.execute(sql).fetchone()[0]
        return found

    def _channels(self) -> None:
        kept = self._contents.kept
        for number, name, first, gone, sent in self._file.execute("select id, name, first, gone, sent from channels").fetchall():
            last = self._file.execute("select max(ordinal) from events where channel = ?", (number,)).fetchone()[0] or first - 1
            shelf = self._shelves[number] = Shelf(name, Backlog(1, 1), time.time())
            shelf.backlog.begin(last, gone)
            left = []
            for slot, device, position, settled, since, seen, answered, last_id, gone_at in self._file.execute(
                    "select slot, device, position, settled, since, seen, answered, last_id, gone from members where channel = ? order by slot", (number,)):
                # As a start reads them (`reading.py`): with an open feed it had been written to as all of them had.
                member = Member(device, slot, max(sent, settled) if position is None else position, seen)
                member.since, member.answered, member.last_id = since, answered, last_id
                if gone_at is None:
                    kept["members"][joined(name, device)] = keeping.pack_member(member)
                    shelf.audience.restore(member, None)
                else:
                    left.append((gone_at, slot))
                    shelf.audience.restore(member, gone_at)
            self._devices[name] = shelf.audience.names

    def _events(self) -> None:
        """The newest of each channel, as far as there is room, newest first: so each channel has those that come one after the other."""
        config, kept = self._config, self._contents.kept
        total = self._one("select count(*) from events") or 0
        count: Counter[int] = Counter()
        held: Counter[int] = Counter()
        full: set[int] = set()
        weight, now = 0, time.time()
        for place, (number, need, version, columns, sayings, *row) in enumerate(self._file.execute(ALL_EVENTS)):
            event, shelf = event_of(self._names[number], row), self._shelves[number]
            opened = zlib.decompress(columns) if columns is not None else None
            event.weigh(len(parted(opened)[0]) if opened is not None else 0)
            if number not in full and (count[number] >= config.backlog_events or (count[number] and held[number] + event.size > config.backlog_bytes)
                                       or weight + event.weight > config.backlog_total_bytes):
                full.add(number)
                shelf.backlog.begin(shelf.backlog.last, event.id)
            if number in full:
                self._contents.left_out += 1
                continue
            count[number] += 1
            held[number] += event.size
            weight += event.weight
            name = joined(event.channel, str(event.id))
            kept["events"][name] = keeping.pack_event(event)
            if opened is not None:
                kept["columns"][name] = keeping.squeeze((need, version, opened, words(sayings)))
                self._entries[event.id] = event, parted(opened)[0]
            for device in event.to or () if event.expires > now else ():
                if not shelf.audience.has(device):  # as a start finds them (`reading.py`)
                    shelf.waiting.setdefault(device, deque()).appendleft(event.ordinal)
            if not place % 1000:
                self._watched("events", place, total)
        for shelf in self._shelves.values():
            kept["channels"][shelf.name] = keeping.pack_shelf(shelf, {})

    def _rows(self, number: int) -> None:
        """The newest changes of states, as far as no number is missing and their events go along."""
        found, most = self._contents, self._config.receipts_kept
        last = self._file.execute("select number, length(records) from receipts order by number desc limit 1").fetchone()
        found.number = max(number, last[0] + last[1] // RECORD.size - 1) if last is not None else number
        rows: list[Row] = []
        for first, records, sayings in self._file.execute("select number, records, sayings from receipts order by number desc"):
            said = words(sayings)
            piece = [self._row(place, id, slot, state, said[saying - 1] if saying else None, at)
                     for place, (id, slot, state, saying, at) in enumerate(RECORD.iter_unpack(records), first)]
            rows += [row for row in reversed(piece) if row is not None]
            if len(rows) >= most or None in piece:
                break
        found.rows = rows[:most][::-1]
        found.trim()

    def _row(self, number: int, id: int, slot: int, state: int, status: bytes | None, at: float) -> Row | None:
        """None of what changed nothing, and of an event that does not go along."""
        known = self._entries.get(id)
        if known is None or state == PENDING:
            return None
        event, states = known
        device: str | None = None
        if slot != ALL:
            device = sorted(event.to)[slot] if event.to is not None else self._devices[event.channel][slot]
        is_late = state not in (EXPIRED, CANCELLED) and closes(state, event.level) and states[slot] & LATE
        return number, id, event.channel, event.time, device, state | (LATE if is_late else 0), status, at


# A file that is written


@contextmanager
def _written(path: str, contents: Contents, watched: Watched) -> Iterator[str]:
    """The contents in a file beside `path`, on the disk; if nobody takes it, it is removed. Raises ConfigError."""
    part = f"{path}.{secrets.token_hex(4)}.part"
    try:
        with closing(schema.prepare(part, "normal")) as file:
            file.execute("begin")
            _fill(file, contents, watched)
            file.execute("commit")
            file.execute("pragma journal_mode = delete")  # one file, and nothing beside it
            Taking(file, EVERYTHING, watched).all().check(contents, path)
        settle(part)
        yield part
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    finally:
        for end in ("", "-wal", "-shm", "-journal"):
            with suppress(FileNotFoundError):
                os.unlink(part + end)


def put(path: str, contents: Contents, is_forced: bool, watched: Watched) -> str | None:
    """Write the contents to a file, which appears when it was read back and found to be the same; where that is which had its name before.
    Raises ConfigError where a server uses it, or where something is there and it is not forced."""
    check_target(path, is_forced)
    lock = schema.Lock(path)
    try:
        with _written(path, contents, watched) as part:
            before = put_aside(path)
            os.replace(part, path)
            settle(os.path.dirname(os.path.abspath(path)))
    finally:
        lock.release()
    return before


def _fill(file: sqlite3.Connection, contents: Contents, watched: Watched) -> None:
    kept = contents.kept
    numbers = {name: number for number, name in enumerate(sorted(kept["channels"]), 1)}
    slots = _fill_channels(file, contents, numbers)
    named: dict[int, list[str]] = {}  # of events that are for some only: who, by slot
    for place, (name, value) in enumerate(kept["events"].items()):
        channel, _, id = name.partition(keeping.SEPARATOR)
        event = keeping.unpack_event(int(id), value)
        if event.to is not None:
            named[event.id] = sorted(event.to)
        file.execute("insert into events (id, channel, ordinal, time, ttl, level, is_json, type, publisher, recipients, data, recalled, callback, traceparent) "
                     "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                     (event.id, numbers[channel], event.ordinal, event.time, round(event.expires - event.time), event.level, event.is_json, event.type, event.publisher,
                      orjson.dumps(named[event.id]).decode() if event.to is not None else None, event.data, event.recalled, event.callback, event.traceparent))
        if name in kept["columns"]:
            need, version, columns, sayings = keeping.unpack_value(kept["columns"][name])
            file.execute("insert into entries (event, channel, expires, owed, need, version, logged, columns, sayings) values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                         (event.id, numbers[channel], event.expires, _owed(zlib.decompress(columns), event.level), need, version, contents.number, columns,
                          b"[" + b",".join(sayings) + b"]" if sayings else None))
        if not place % 1000:
            watched("writing", place, len(kept["events"]))
    for name, value in kept["keys"].items():
        channel, _, key = name.partition(keeping.SEPARATOR)
        at, accepted = keeping.unpack_key(value)
        file.execute("insert into keys (channel, key, event, audience, at) values (?, ?, ?, ?, ?)", (channel, key, accepted.id, accepted.audience, at))
    for name in kept["wishes"]:
        device, _, pattern = name.partition(keeping.SEPARATOR)
        file.execute("insert into wishes (device, pattern) values (?, ?)", (device, pattern))
    for name, value in kept["documents"].items():
        kind, _, rest = name.partition(keeping.SEPARATOR)
        file.execute("insert into documents (kind, name, document) values (?, ?, ?)", (kind, rest, keeping.unpack_value(value)))
    _fill_receipts(file, contents, numbers, slots, named)
    for name, number in (("born", (contents.born << SEQUENCE_BITS) - 1), ("newest", contents.newest), ("told", contents.newest), ("number", contents.number),
                         ("floor", contents.number + 1), ("channel", len(numbers))):
        file.execute("insert into meta (name, value) values (?, ?)", (name, number))


def _owed(columns: bytes, level: int) -> int:
    count = Counter(byte & STATE for byte in parted(columns)[0])
    return count[PENDING] + (count[DELIVERED] if level != DELIVERED else 0)


def _fill_channels(file: sqlite3.Connection, contents: Contents, numbers: dict[str, int]) -> dict[str, dict[str, int]]:
    """The channels and who is registered there; which slot each device has, or had."""
    kept = contents.kept
    members: dict[str, list[bytes]] = {}
    for name, value in kept["members"].items():
        members.setdefault(name.partition(keeping.SEPARATOR)[0], []).append(value)
    events = Counter(name.partition(keeping.SEPARATOR)[0] for name in kept["events"])
    slots: dict[str, dict[str, int]] = {}
    for name, value in kept["channels"].items():
        shelf = Shelf(name, Backlog(1, 1), 0.0)
        keeping.unpack_shelf(shelf, value, members.get(name, ()), 0)
        last, number = shelf.backlog.last, numbers[name]
        file.execute("insert into channels (id, name, first, gone, sent) values (?, ?, ?, ?, 0)", (number, name, last - events[name] + 1, shelf.backlog.evicted_id))
        put_member = "insert into members (channel, slot, device, position, settled, since, seen, answered, last_id, gone) values (?, ?, ?, ?, 0, ?, ?, ?, ?, ?)"
        for device, slot, gone in shelf.audience.left():
            slots.setdefault(name, {})[device] = slot
            file.execute(put_member, (number, slot, device, 0, 0, 0, 0, 0, gone))
        for member in shelf.audience:
            slots.setdefault(name, {})[member.device] = member.slot  # who left and came back has the newer one
            file.execute(put_member, (number, member.slot, member.device, member.position, member.since, member.seen, member.answered, member.last_id, None))
    return slots


def _fill_receipts(file: sqlite3.Connection, contents: Contents, numbers: dict[str, int], slots: dict[str, dict[str, int]], named: dict[int, list[str]]) -> None:
    """A row for each run of changes on one channel."""
    for channel, run in groupby(contents.rows, key=lambda row: row[2]):
        found = list(run)
        for start in range(0, len(found), MAX_RECORDS):
            piece, records, sayings = found[start : start + MAX_RECORDS], [], {}  # type: list[Row], list[bytes], dict[bytes, int]
            for _, id, _, _, device, byte, status, at in piece:
                slot = ALL if device is None else named[id].index(device) if id in named else slots[channel][device]
                saying = sayings.setdefault(status, len(sayings) + 1) if status is not None else 0
                records.append(RECORD.pack(id, slot, byte & STATE, saying, at))
            file.execute("insert into receipts (number, channel, records, sayings) values (?, ?, ?, ?)",
                         (piece[0][0], numbers[channel], b"".join(records), b"[" + b",".join(sayings) + b"]" if sayings else None))
