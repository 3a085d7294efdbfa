"""The newest changes of states, in memory, for those who follow them: a log over all channels and one for each, bounded over all.

A number counts the changes of the whole store, so a channel's numbers have holes. They begin at the microsecond in which the store
was born: who comes back with a number from an earlier life is below all that are given now, and is told that something is missing.
"""

from bisect import bisect_right
from collections import deque
from itertools import count, groupby, islice, repeat
from operator import attrgetter, itemgetter

from pere.bulk import Bulk
from pere.event import Event
from pere.ledger import Row as Entered
from pere.ledger import moment_of
from pere.receipt import CANCELLED, EXPIRED, FIRST, LATE, LATE_FIRST, STATE
from pere.storage import Page, Record

# Number, event, its channel, when it was accepted, device (None: all that were open), state and whether it was late, what was said, and when.
Row = tuple[int, int, str, float, str | None, int, bytes | None, float]

_number, _channel_of = itemgetter(0), itemgetter(2)
_channel, _time = attrgetter("channel"), attrgetter("time")


class Log(deque[Row]):
    """The changes of one channel, oldest first; `gone` is the newest number that may have been here and is not any more."""

    __slots__ = ("gone",)
    gone: int


class Recent:
    """The newest `most` changes over all channels. Numbers have no holes over all, so what is too old is known by its number; it is
    cleared away now and then, so that to add one costs little. `born` is seconds since 1970."""

    def __init__(self, most: int, born: float):
        self.newest = int(born * 1_000_000)
        self._most = most
        self._gone = self.newest  # for channels of which nothing is here
        self._all: deque[Row] = deque(maxlen=most)
        self._logs: dict[str, Log] = {}
        self._full_at = self.newest + most

    def add(self, event: Event, device: str | None, byte: int, status: bytes | None, at: float) -> None:
        """A change to the state in `byte`, which may have LATE beside it."""
        self.newest = number = self.newest + 1
        log = self._log(event.channel)
        row = (number, event.id, event.channel, event.time, device, byte, status, at)
        log.append(row)
        self._all.append(row)
        if number > self._full_at:
            self._clear()

    def add_many(self, rows: list[Entered], answers: list[tuple[int, int]]) -> set[str]:
        """The receipts that were entered, by what was answered: those that changed a state. Returns their channels."""
        number, all, channels, current, channel = self.newest, self._all, set(), None, ""
        for (entry, _, slot, _, status, at), (stands, outcome) in zip(rows, answers, strict=True):
            if outcome == FIRST or outcome == LATE_FIRST:
                if entry is not current:
                    current, event, states, names = entry, entry.event, entry.states, entry.names
                    id, accepted = event.id, event.time
                    if event.channel != channel:
                        channel = event.channel
                        log = self._log(channel)
                        channels.add(channel)
                number += 1
                # Only what closes an event can be late, so this is so of all that follows too.
                row = (number, id, channel, accepted, names[slot], stands | states[slot] & LATE, status, at)
                log.append(row)
                all.append(row)
        self.newest = number
        if number > self._full_at:
            self._clear()
        return channels

    def add_run(self, bulk: Bulk, events: list[Event], now: float) -> set[str]:
        """The same for the first of many receipts, which were the device's first words on these events."""
        channels = list(map(_channel, events))
        times = [now if at is None else moment_of(event, at, now) for event, at in zip(events, bulk.times, strict=False)]
        rows = list(zip(count(self.newest + 1), bulk.ids, channels, map(_time, events), repeat(bulk.device), bulk.states, bulk.statuses, times, strict=False))
        self._all.extend(rows)
        for channel, run in groupby(rows, _channel_of):
            self._log(channel).extend(run)
        self.newest += len(rows)
        if self.newest > self._full_at:
            self._clear()
        return set(channels)

    def _log(self, channel: str) -> Log:
        log = self._logs.get(channel)
        if log is None:
            log = self._logs[channel] = Log()
            log.gone = self._gone
        return log

    def restore(self, rows: list[Row], newest: int) -> None:
        """Go on after the number `newest`, up to which these are the newest changes."""
        self.newest = newest - len(rows)
        self._gone, self._full_at = self.newest, self.newest + self._most
        for row in rows:
            self._log(row[2]).append(row)
            self._all.append(row)
        self.newest = newest

    def after(self, number: int) -> list[Row]:
        """The changes above this number, as far as they are here, oldest first."""
        count = min(max(0, self.newest - number), len(self._all))
        return list(islice(reversed(self._all), count))[::-1]

    def _clear(self) -> None:
        for channel, log in tuple(self._logs.items()):
            self._trim(log)
            if not log:
                del self._logs[channel]
                self._gone = max(self._gone, log.gone)
        self._full_at = self.newest + self._most // 4

    def _trim(self, log: Log) -> None:
        first = self.newest - self._most + 1
        while log and log[0][0] < first:
            log.gone = log.popleft()[0]

    def page(self, channel: str | None, after: int, limit: int) -> Page:
        """As `Store.records` tells it."""
        log: deque[Row] | None
        if channel is None:
            # Numbers have no holes here, so what is wanted need not be searched for.
            log, gone = self._all, self.newest - len(self._all)
            start = max(0, min(after, self.newest) - gone)
        else:
            log, gone = self._logs.get(channel), self._gone
            if isinstance(log, Log):
                self._trim(log)
                gone = log.gone
        is_lost = after != 0 and not gone <= after <= self.newest
        after = min(after, self.newest)
        if log is None:
            return Page([], self.newest, False, is_lost)
        if channel is not None:
            start = bisect_right(log, after, key=_number)
        rows = [log[place] for place in range(start, min(start + limit, len(log)))]
        is_more = start + limit < len(log)
        records = [
            Record(number, id, channel, device, byte & STATE, status, bool(byte & LATE), at, max(0.0, at - time) if byte not in (EXPIRED, CANCELLED) else None)
            for number, id, channel, time, device, byte, status, at in rows
        ]
        return Page(records, records[-1].number if is_more else self.newest, is_more, is_lost)
