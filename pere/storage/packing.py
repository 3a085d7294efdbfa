"""What the rows of the file hold in packed form: the records of the log, the columns of an entry, an event.

Who writes the file and who reads it beside the server must agree on this. This file knows bytes, and asks nobody for them.
"""

import struct
import zlib
from typing import Any

import orjson

from pere.entry import Entry
from pere.event import Draft, Event

# One change of a state in the log: event, slot, state, what was said beside it (its place in the row's list, from 1), when.
RECORD = struct.Struct("<qIBHd")
MAX_RECORDS = 10_000  # in a row of the log
SATISFIED = 4  # in the first byte of an entry's columns

# What unpacking says of bytes that are not what they should be.
Malformed = (zlib.error, struct.error, ValueError, TypeError, LookupError)

EVENT = "select id, ordinal, time, ttl, level, is_json, type, publisher, recipients, data, recalled, callback, traceparent from events "


def event_of(channel: str, row: Any) -> Event:
    """The event of a row that EVENT selects."""
    id, ordinal, time, ttl, level, is_json, type, publisher, recipients, data, recalled, callback, trace = row
    to = tuple(orjson.loads(recipients)) if recipients is not None else ()
    draft = Draft(channel=channel, data=data, is_json=bool(is_json), type=type, to=to, ttl=ttl, level=level, publisher=publisher,
                  callback=callback, traceparent=trace)
    event = Event(draft, id, ordinal, time)
    event.recalled = bool(recalled)
    return event


def words(sayings: bytes | None) -> list[bytes]:
    """What devices said, each as JSON; a number of a saying counts from 1."""
    return [orjson.dumps(word) for word in orjson.loads(sayings)] if sayings is not None else []


def packed(entry: Entry) -> bytes:
    """States, latencies and numbers of sayings one after the other, behind a byte that tells which of the latter two are there, and
    whether the event was satisfied."""
    has_latencies, has_said = entry.latencies is not None, entry.said is not None
    return b"".join((bytes((has_latencies + 2 * has_said + SATISFIED * entry.is_satisfied,)), entry.states, entry.latencies or b"", entry.said.tobytes() if entry.said is not None else b""))


def parted(columns: bytes) -> tuple[bytes, bytes, bytes]:
    """States, latencies and numbers of sayings; those that are not there are empty."""
    kind = columns[0]
    width = (len(columns) - 1) // (1 + (kind & 1) + (kind & 2))
    middle = 1 + width + (width if kind & 1 else 0)
    return columns[1 : 1 + width], columns[1 + width : middle], columns[middle:]
