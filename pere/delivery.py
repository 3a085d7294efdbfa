"""Delivery status: how an event stands on the devices of its audience, as those are told who ask.

What devices said is in the event's entry. Whether it was written to one that said nothing is derived from how far the device has been
written to, so `sent` and `pending` are told apart here and nowhere else. No clock, no socket.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import orjson

from pere.audience import Member
from pere.devices import Device
from pere.entry import PRESENT, Entry
from pere.event import LEVELS, Event, format_id, timestamp
from pere.receipt import NAMES, OWED, PENDING, SENT, STATE, quantiles


def status(event: Event, entry: Entry | None) -> dict[str, Any]:
    """How many devices are in which state, as `GET /events/{channel}/{id}` answers it; `version` in it moves with every change. An event
    that asks for no receipts has no entry."""
    counts = dict(zip(NAMES, entry.counts, strict=True)) if entry is not None else dict.fromkeys(NAMES, 0)
    sent = counts["pending"] - _unsent(event, entry) if entry is not None else 0
    return {
        "id": format_id(event.id),
        "channel": event.channel,
        "type": event.type or "message",
        "time": timestamp(event.time),
        "expires": timestamp(event.expires),
        "publisher": event.publisher or None,
        "recalled": event.recalled,
        "receipt": next(word for word, level in LEVELS.items() if level == event.level),
        "audience": entry.size if entry is not None else 0,
        "counts": {"pending": counts.pop("pending") - sent, "sent": sent} | counts,
        "outstanding": entry.owed if entry is not None else 0,
        "need": entry.need if entry is not None else 0,
        "satisfied": entry is None or entry.is_satisfied,
        "complete": entry is None or entry.is_complete,
        "latency": quantiles(entry.histogram) if entry is not None else {},
        "version": (entry.version if entry is not None else int(event.recalled), sent),
    }


def lines(event: Event, entry: Entry | None, devices: Mapping[str, Device], state: str | None, start: int,
          limit: int) -> tuple[list[dict[str, Any]], int | None]:
    """At most `limit` devices of its audience in this state (`outstanding` is all that owe a receipt), from a slot on, and the slot to go
    on from, or None at the end. `devices` are all that there are, by name."""
    found: list[dict[str, Any]] = []
    if entry is None:
        return found, None
    members, is_own, accepted, ordinal = entry.audience.members, entry.slots is None, event.time, event.ordinal
    times: dict[float, str] = {}  # most were sent it at the same moment
    for device, slot, kept, late, resends, latency, status in entry.lines(start, _meant(state, event.level)):
        member = members.get(device)
        # As in `_is_sent`, which would take a tenth of the time for a page.
        is_sent = member is not None and (not is_own or slot == member.slot) and member.reached(ordinal) >= ordinal
        name = SENT if kept == PENDING and is_sent else NAMES[kept]
        if state is not None and state != name and state != "outstanding":
            continue
        if len(found) == limit:
            return found, slot
        sent_at = None
        if is_sent or latency is not None:
            sent = max(accepted, member.since) if is_sent and member is not None and latency is None else accepted
            sent_at = times.get(sent)
            if sent_at is None:
                sent_at = times[sent] = timestamp(sent)
        known = devices.get(device)
        found.append({
            "device": device,
            "state": name,
            "status": orjson.Fragment(status) if status is not None else None,
            "attempt": resends + is_sent,
            "late": late,
            "sent_at": sent_at,
            "receipt_at": timestamp(accepted + latency) if latency is not None else None,
            "latency": latency,
            "online": known is not None and known.is_online,
        })
    return found, None


def _unsent(event: Event, entry: Entry) -> int:
    """How many of the pending devices the event was never written to: only those who are away can be among them."""
    if not entry.counts[PENDING]:
        return 0
    ordinal, audience = event.ordinal, entry.audience
    is_pending = entry.states.translate(_meant("pending", event.level))
    if entry.slots is not None or entry.counts[PENDING] < len(audience) // 4:
        members, names, is_own = audience.members, entry.names, entry.slots is None
        return sum(not _is_sent(event, members.get(names[slot]), slot if is_own else -1) for slot in _marked(is_pending))
    # Who came after the event has no place in its column.
    is_pending += bytes(len(audience.names) - len(is_pending))
    return len([0 for member in audience.members.values() if not member.live and member.position < ordinal and not member.elsewhere and member.slot >= 0 and is_pending[member.slot]])


def _is_sent(event: Event, member: Member | None, slot: int) -> bool:
    """Whether the event was written to a device. `slot` is where it stands in the columns by its registration; -1 where the event names
    its devices."""
    # Who left and came back has another slot, and was sent nothing of what is from before.
    return member is not None and slot in (member.slot, -1) and member.reached(event.ordinal) >= event.ordinal


@cache
def _meant(state: str | None, level: int) -> bytes:
    """Which bytes of a column a state means (1, all others 0); `sent` and `pending` are the same there."""
    if state is None:
        return PRESENT
    if state == "outstanding":
        return bytes(OWED[level])
    wanted = PENDING if state == SENT else NAMES.index(state)
    return bytes(byte & STATE == wanted for byte in range(256))


def _marked(column: bytes | bytearray) -> Iterator[int]:
    """Where there is a 1."""
    slot = column.find(1)
    while slot >= 0:
        yield slot
        slot = column.find(1, slot + 1)
