"""The ledger: what every device said of every event, and who has said nothing yet.

An event that asks for receipts has an Entry for as long as it is kept: a column of state bytes and a column of latency
bytes with one place for each device of its audience, and counters that move with each transition. The counters always
add up to the audience. Nothing here waits, sends or looks at a clock; a store calls it and makes the result safe.

It is longer than a file should be because receipts are entered in three ways that must not differ (one, many of all kinds, a run of one
device) and stand beside each other; what an Entry is by itself is in `entry.py`.
"""

import math
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable

from pere.audience import Audience, Column, Member
from pere.bulk import Bulk, Receipt
from pere.entry import SAYING_BYTES, Entry, Unasked, unasked
from pere.errors import BadRequest, Gone, NotFound
from pere.event import Event, format_id
from pere.names import shown
from pere.receipt import (
    ABSENT,
    CANCELLED,
    DELIVERED,
    EXPIRED,
    FIRST,
    MAX_RESENDS,
    NAMES,
    NONE,
    OWED,
    PENDING,
    PROCESSED,
    RESENT,
    STATE,
    bucket,
    edges,
    ending,
)

DECISIONS = ("satisfied", "completed", "expired")
ALL = 0xFFFFFFFF  # as a slot: every device that still owes a receipt


def unknown_receipt() -> NotFound:
    """One answer for both, so that nobody learns which events there are."""
    return NotFound("unknown_event", "there is no such event, or this device is not in its audience")


def gone_event(id: int) -> Gone:
    return Gone("event_gone", f"event {format_id(id)} is no longer kept")


def needed(need: int | str | None, audience: int) -> int:
    """How many receipts satisfy: a number, `90%` (rounded up) or `all`, which is also the default.
    Raises BadRequest if it can never be met, or is none of these."""
    if need is None or need == "all":
        return audience
    text = str(need)
    digits, percent = (text[:-1], True) if text.endswith("%") else (text, False)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 9) or (percent and int(digits) > 100):
        raise BadRequest("bad_need", f"need is a number, a percentage such as 90%, or all, not {shown(text)}")
    count = math.ceil(audience * int(digits) / 100) if percent else int(digits)
    if count > audience:
        raise BadRequest("need_over_audience", f"{count} receipts are needed, but the audience is {audience}")
    return count


def moment_of(event: Event, at: float | None, now: float) -> float:
    """When a device did what it says that it did `at`: not before there was the event, and not later than now; now, if it does not say."""
    return now if at is None else min(max(at, event.time), now)


# A receipt that was found to be possible: whose, the slot, the state it says, the device's own word as JSON, and when it did it.
Row = tuple[Entry, Member | None, int, int, bytes | None, float]


class Ledger:
    """All entries, by event id. The tallies are plain integers that metrics read."""

    lasting = ("receipts", "roundtrips", "expired", "cancelled", "on_answer", "on_decision", "heard", "statuses_dropped")  # as in `storage/working.py`

    def __init__(self, max_status_bytes: int = 1024 * 1024):
        self.entries: dict[int, Entry] = {}
        self.outstanding = 0
        self._open: dict[int, Entry] = {}  # those for which a receipt is owed, oldest first
        # Receipts by state and outcome, and the latencies of the first ones by bucket: [state][outcome], [state][bucket].
        self.receipts = [[0, 0, 0, 0] for _ in NAMES]
        self.roundtrips = [[0] * 256 for _ in NAMES]
        self.expired = {"ttl": 0, "evicted": 0, "attempts": 0}
        self.cancelled = {"recalled": 0, "removed": 0}
        self.on_answer: Callable[[str, int], None] = lambda device, id: None  # of devices that are `careful`
        # Told of an event that is `satisfied` or `completed`, or `expired` (its time is over, or it makes way) with receipts owed; and when
        # that was, in seconds since 1970.
        self.on_decision: Callable[[str, Entry, float], None] = lambda word, entry, moment: None
        self.heard: Collection[str] = DECISIONS  # of what it is to be told at least; and of all where the event has a `callback`
        self.statuses_dropped = 0
        self.bytes = 0  # what the sayings of all entries take
        self.most_bytes = sys.maxsize  # beyond, what is said is dropped: where nothing makes way for it
        self._max_status_bytes = max_status_bytes
        # Whom the newest event with `to` is for, and where they stand: often it is the same devices again, and a hundred of them take 6 KB.
        self._named: frozenset[str] = frozenset()
        self._names: list[str] = []
        self._slots: dict[str, int] = {}

    def open(self, event: Event, audience: Audience, need: int | str | None) -> Entry | None:
        """Enter an accepted event for its audience; None if it asks for no receipts. Raises BadRequest for an impossible `need`."""
        if event.level == NONE:
            return None
        if event.to:
            if event.to != self._named:
                self._names = sorted(event.to)
                self._slots = {name: slot for slot, name in enumerate(self._names)}
                self._named = event.to
            entry = Entry(event, audience, bytearray(len(self._names)), self._names, self._slots)
        else:
            entry = Entry(event, audience, audience.template[:], audience.names, None)
        if need is not None or event.level == DELIVERED:
            entry.demand(needed(need, entry.size))
        self.entries[event.id] = entry
        self.outstanding += entry.size
        if entry.size:
            self._open[event.id] = entry
        return entry

    def lay(self, event: Event, audience: Audience) -> Entry | None:
        """The same for an event that asks receipts of everybody, and of which probably nobody here will ask anything. Returns its entry where something is
        to be decided at once, and told, because it is for nobody."""
        column, id = audience.column(), event.id
        size = column[2]
        if not size and (self.heard or event.callback):
            return self.open(event, audience, None)
        self.entries[id] = entry = unasked(event, column)
        if size:
            self.outstanding += size
            self._open[id] = entry
        return None

    def lay_many(self, events: list[Event], columns: dict[str, Column]) -> None:
        """The same for many, of which nothing is to be decided at once, in their order; `columns` are those of the audiences of their channels."""
        laid = {event.id: unasked(event, columns[event.channel]) for event in events}
        self.entries.update(laid)
        owing = [entry.column[2] for entry in laid.values()]
        self.outstanding += sum(owing)
        self._open.update(laid if all(owing) else {id: entry for id, entry in laid.items() if entry.column[2]})

    def decide(self, entry: Entry, moment: float) -> None:
        """Say so if the event has just become satisfied, or complete: after each receipt, and once when it is accepted."""
        satisfied, complete = entry.decide()
        if satisfied:
            self.on_decision("satisfied", entry, moment)
        if complete:
            self.on_decision("completed", entry, moment)

    def record(self, event_id: int, channel: str | None, device: str, new: int, status: bytes | None, now: float,
               at: float | None = None) -> tuple[int, int]:
        """Enter a receipt and return the state that stands now and the outcome (`receipt.FIRST` and so on).

        Raises NotFound where the event is not known (on this channel, if one is given) or the device not in its audience.
        """
        entry = self.entries.get(event_id)
        if entry is None:
            raise unknown_receipt()
        member, slot = self.find(entry, channel, device)
        return self.enter(entry, member, slot, new, status, now, moment_of(entry.event, at, now))

    def find_many(self, receipts: Iterable[Receipt], now: float, fetch: Callable[[int], Entry | None] = lambda id: None) -> tuple[list[Row], list[int]]:
        """Who answers, and where in the columns, of those that are possible; and the places of the others, for which `find` would raise.
        `fetch` brings in an entry that is not here, if there is one."""
        rows: list[Row] = []
        missing: list[int] = []
        entries, who, audience, members, member, own = self.entries, "", None, {}, None, -1
        for place, (device, id, new, status, at, channel) in enumerate(receipts):
            entry = entries.get(id) or fetch(id)
            if entry is not None and (channel is None or channel == entry.event.channel):
                # As in `find`, but whose audience it is, and who that is there, is looked up when it is another than before.
                if entry.audience is not audience:
                    audience, who = entry.audience, ""
                    members = audience.members
                if device is not who:
                    who, member = device, members.get(device)
                    own = member.slot if member is not None else -1
                slot = own if entry.slots is None else entry.slots.get(device, -1)
                states = entry.states
                if 0 <= slot < len(states) and states[slot] != ABSENT:
                    rows.append((entry, member, slot, new, status, now if at is None else moment_of(entry.event, at, now)))
                    continue
            missing.append(place)
        return rows, missing

    def find(self, entry: Entry, channel: str | None, device: str) -> tuple[Member | None, int]:
        """Who answers, and where in the columns. Raises NotFound where the device is not in the event's audience, or the event
        is of another channel than the one that is given."""
        member = entry.audience.members.get(device)
        # As in Entry.slot, without a second look for the member: this runs once for every receipt.
        if entry.slots is not None:
            slot = entry.slots.get(device, -1)
        else:
            slot = member.slot if member is not None else -1
        if not 0 <= slot < len(entry.states) or entry.states[slot] == ABSENT or (channel is not None and channel != entry.event.channel):
            raise unknown_receipt()
        return member, slot

    def enter(self, entry: Entry, member: Member | None, slot: int, new: int, status: bytes | None, now: float,
              at: float | None = None) -> tuple[int, int]:
        """Enter a receipt that was found to be possible: the state that stands now, and the outcome. `at` is when the device did it,
        where it says so."""
        return self.enter_many(((entry, member, slot, new, status, now if at is None else at),), now)[0]

    def enter_many(self, rows: Iterable[Row], now: float) -> list[tuple[int, int]]:
        """Enter receipts one after the other, and return for each the state that stands now and the outcome."""
        answers: list[tuple[int, int]] = []
        watched: dict[Entry, None] = {}
        receipts, roundtrips, current, closings = self.receipts, self.roundtrips, None, 0
        for entry, member, slot, new, status, at in rows:
            if entry is not current:
                # Most are of the same event: what is the event's is looked up when it is another than before.
                current, event, states, counts, rules, latencies, sayings = entry, entry.event, entry.states, entry.counts, entry.rules, entry.latencies, entry.sayings
                histogram = entry.histogram
                id, accepted, last, last_took, said, code = event.id, event.time, None, 0, None, 0
                if latencies is None:
                    latencies = entry.latencies = bytearray(len(states))
            old = states[slot]
            byte, outcome, closed, answer = rules[new][old]
            receipts[new][outcome] += 1
            answers.append(answer)
            if member is not None:
                member.answered = now
                member.last_id = id
            if byte != old:
                states[slot] = byte
                counts[old & STATE] -= 1
                counts[new] += 1
                if closed:
                    closings += 1
                    entry.owed -= 1
                if not latencies[slot]:  # type: ignore[index]  # there are some where there are devices
                    # The publisher's clock starts when the event is accepted, the round trip's when it was sent to this device,
                    # which was when it was accepted or, for one that was away, when the device came back.
                    if at is not last:
                        last, last_took = at, bucket(at - accepted)
                    took = latencies[slot] = last_took  # type: ignore[index]  # there are some where there are devices
                    histogram[took] = histogram.get(took, 0) + 1
                    if member is not None and accepted < member.since <= at:
                        took = bucket(at - member.since)
                    roundtrips[new][took] += 1
                if status is not None:
                    if status is not said:
                        said, code = status, sayings.get(status, 0) if entry.said is not None else 0
                    if code:
                        entry.said[slot] = code  # type: ignore[index]
                    else:
                        self._say(entry, slot, status)
                        said = None
                if counts[PROCESSED] >= entry.goal or not entry.owed:
                    if not entry.owed:
                        self._open.pop(id, None)
                    self.decide(entry, at)
                    current = None
                entry.version += 1
                if entry.watchers:
                    watched[entry] = None
            if member is not None and member.careful:
                self.on_answer(member.device, id)
                current = None
        self.outstanding -= closings
        # Once for all that came together: thousands may watch one event, and thousands answer it.
        for entry in watched:
            entry.tell()
        return answers

    def enter_run(self, bulk: Bulk, now: float) -> list[Event]:
        """Enter the first of many receipts, for as long as each is the device's first word on its event, as nearly all are; returns
        these events. It does what `find_many` and `enter_many` do, which are for what is behind them, without a row for each receipt:
        what both do is written out in both, for a call for each receipt would make it a tenth dearer (measured)."""
        events: list[Event] = []
        watched: dict[Entry, None] = {}
        entries, roundtrips, device, closings = self.entries, self.roundtrips, bulk.device, 0
        audience: Audience | None = None
        member: Member | None = None
        slots: dict[str, int] | None = None
        own = named = -1
        since = low = high = 0.0  # when it came back; and the latencies that are in the bucket `took`
        for id, new, status, at in zip(bulk.ids, bulk.states, bulk.statuses, bulk.times, strict=True):
            entry = entries.get(id)
            if entry is None:
                break
            if entry.audience is not audience:
                audience, slots = entry.audience, None
                member = audience.members.get(device)
                if member is not None:
                    if member.careful:
                        break
                    since = member.since
                own = member.slot if member is not None else -1
            if entry.slots is None:
                slot = own
            else:
                if entry.slots is not slots:
                    slots = entry.slots
                    named = slots.get(device, -1)
                slot = named
            states = entry.states
            if not 0 <= slot < len(states) or states[slot] != PENDING:
                break
            event, counts, latencies, histogram = entry.event, entry.counts, entry.latencies, entry.histogram
            accepted = event.time
            moment = now if at is None else moment_of(event, at, now)
            # They come in the order of their events, so most are in the bucket of the one before.
            if not low <= moment - accepted < high:
                took = bucket(moment - accepted)
                low, high = edges(took)
            if latencies is None:
                latencies = entry.latencies = bytearray(len(states))
            states[slot] = new
            latencies[slot] = took
            counts[PENDING] -= 1
            counts[new] += 1
            histogram[took] = histogram.get(took, 0) + 1
            roundtrips[new][took if member is None or not accepted < since <= moment else bucket(moment - since)] += 1
            if new != DELIVERED or event.level == DELIVERED:
                closings += 1
                entry.owed -= 1
            if member is not None:
                member.answered = now
                member.last_id = id
            if status is not None:
                code = entry.sayings.get(status) if entry.said is not None else None
                if code is not None:
                    entry.said[slot] = code  # type: ignore[index]
                else:
                    self._say(entry, slot, status)
            if counts[PROCESSED] >= entry.goal or not entry.owed:
                if not entry.owed:
                    self._open.pop(id, None)
                self.decide(entry, moment)
                audience = None
            entry.version += 1
            if entry.watchers:
                watched[entry] = None
            events.append(event)
        for new, number in Counter(bulk.states[: len(events)]).items():
            self.receipts[new][FIRST] += number
        self.outstanding -= closings
        for entry in watched:
            entry.tell()
        return events

    def apply(self, entry: Entry, member: Member | None, slot: int, state: int, status: bytes | None, now: float) -> int:
        """Enter a change of any kind, as a log says it: a receipt, a slot that joins (`pending`), an end of one delivery or of ALL that
        are open. Returns how many the latter were."""
        if slot == ALL:
            return self.recall(entry.event.id) if state == CANCELLED else self.expire(entry.event.id, "ttl")
        if state == PENDING:
            self.admit(entry, slot)
        elif state in (CANCELLED, EXPIRED):
            self.end(entry, slot, state)
        else:
            self.enter(entry, member, slot, state, status, now)
        return 0

    def _say(self, entry: Entry, slot: int, status: bytes) -> None:
        """Keep a device's own words. Most devices say the same, so each saying is kept once; they are bounded per event."""
        code = entry.sayings.get(status)
        if code is None:
            if entry.saying_bytes + len(status) > self._max_status_bytes or len(entry.sayings) == 65_535 or self.bytes >= self.most_bytes:
                self.statuses_dropped += 1
                return
            code = entry.sayings[status] = len(entry.sayings) + 1
            entry.saying_bytes += len(status)
            self.bytes += len(status) + SAYING_BYTES
        if entry.said is None:
            entry.said = array("H", bytes(2 * len(entry.states)))
        entry.said[slot] = code

    def is_open(self, entry: Entry, slot: int) -> bool:
        """Whether the device in this slot still owes a receipt."""
        return OWED[entry.event.level][entry.states[slot]]

    def resend(self, entry: Entry, slot: int, max_attempts: int) -> int:
        """Count one more send to a device that has not answered, and return which attempt it is; 0 if it has had `max_attempts`."""
        byte = entry.states[slot]
        attempt = byte // RESENT + 2
        if attempt > min(max_attempts, MAX_RESENDS + 1):
            return 0
        entry.states[slot] = byte + RESENT
        entry.changed()
        return attempt

    def end(self, entry: Entry, slot: int, end: int) -> None:
        """The device owes no receipt for this event any more: it was removed (`cancelled`), or has had its attempts (`expired`)."""
        if not self.is_open(entry, slot):
            return
        byte = entry.states[slot]
        entry.states[slot] = byte & ~STATE | end
        entry.counts[byte & STATE] -= 1
        entry.counts[end] += 1
        self._close(entry, 1)
        if end == EXPIRED:
            self.expired["attempts"] += 1
        else:
            self.cancelled["removed"] += 1
        entry.changed()

    def _close(self, entry: Entry, count: int) -> None:
        """So many devices owe nothing more."""
        self.outstanding -= count
        entry.owed -= count
        if not entry.owed:
            self._open.pop(entry.event.id, None)

    def admit(self, entry: Entry, slot: int) -> None:
        """Take a slot into the audience of an event that was entered without it; what it needs now is for the caller to say."""
        missing = slot + 1 - len(entry.states)
        if missing > 0:
            entry.states += bytes((ABSENT,)) * missing
            if entry.latencies is not None:
                entry.latencies += bytes(missing)
            if entry.said is not None:
                entry.said.extend([0] * missing)
        if entry.states[slot] != ABSENT:
            return
        entry.states[slot] = PENDING
        entry.size += 1
        entry.is_complete = False
        entry.counts[PENDING] += 1
        entry.owed += 1
        self.outstanding += 1
        self._open[entry.event.id] = entry
        entry.changed()

    def restore(self, entry: Entry) -> None:
        """Take an entry in again that was kept elsewhere meanwhile; what it owes was counted all the time."""
        self.entries[entry.event.id] = entry
        self.bytes += entry.weight
        if entry.owed:
            self._open[entry.event.id] = entry

    def unload(self, event_id: int) -> None:
        """Let go of an entry that is kept elsewhere."""
        self._pop(event_id)
        self._open.pop(event_id, None)

    def _pop(self, event_id: int) -> Entry | None:
        entry = self.entries.pop(event_id, None)
        if entry is not None and entry.sayings:
            self.bytes -= entry.weight
        return entry

    def expire(self, event_id: int, reason: str) -> int:
        """Close what is still open of an event as `expired`, because of its `ttl` or because it is `evicted`; how many that were."""
        count = self._end_all(event_id, EXPIRED)
        self.expired[reason] += count
        if count:
            entry = self.entries[event_id]
            self.on_decision("expired", entry, entry.event.expires)
        return count

    def recall(self, event_id: int) -> int:
        """Close what is still open of an event as `cancelled`; how many that were."""
        count = self._end_all(event_id, CANCELLED)
        self.cancelled["recalled"] += count
        if not count and event_id in self.entries:
            self.entries[event_id].changed()  # it says that it was recalled
        return count

    def _end_all(self, event_id: int, end: int) -> int:
        entry = self.entries.get(event_id)
        count = entry.owed if entry is not None else 0
        if entry is not None and count:
            entry.states = entry.states.translate(ending(end, entry.event.level))
            entry.counts[PENDING] = 0
            if entry.event.level != DELIVERED:
                entry.counts[DELIVERED] = 0
            entry.counts[end] += count
            self._close(entry, count)
            entry.changed()
        return count

    def drop(self, event_id: int) -> int:
        """Forget an event that is no longer kept; how many devices still owed a receipt."""
        entry = self.entries.get(event_id)
        if entry.__class__ is Unasked and "expired" not in self.heard and not entry.event.callback:
            # Nobody has said anything of it, and nobody is to be told.
            del self.entries[event_id]
            if count := entry.column[2]:
                del self._open[event_id]
                self.outstanding -= count
                self.expired["evicted"] += count
            return count
        count = self.expire(event_id, "evicted")
        entry = self._pop(event_id)
        if entry is not None and entry.watchers:
            entry.changed()  # there is nothing more to wait for
        return count

    def drop_many(self, ids: list[int]) -> None:
        """The same for many."""
        entries, open = self.entries, self._open
        is_heard, count = "expired" in self.heard, 0
        for id in ids:
            entry = entries.get(id)
            if entry.__class__ is Unasked and not is_heard and not entry.event.callback:
                del entries[id]
                if size := entry.column[2]:
                    del open[id]
                    count += size
            elif entry is not None:
                self.drop(id)
        self.outstanding -= count
        self.expired["evicted"] += count

    def oldest_open(self) -> Entry | None:
        """The oldest event that somebody still owes a receipt for."""
        return next(iter(self._open.values()), None)

    def __contains__(self, event_id: int) -> bool:
        return event_id in self.entries
