"""What a store that is a file has at hand from its first moment: which channels there are, who is registered, which Idempotency-Keys were used.

To read this is most of its start. Where another process has the file, and is to hand it over, it is read while that one still serves; when the file is free
it is read again, and nothing is left to do but what has changed. Who has had the file knows whether anything but keys and events has, and then not even that is left.
"""

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from pere.devices import Devices
from pere.storage import Accepted

LATEST = 256  # events whose keys are read again: those of the newest commit, behind which what a key says may still change (`committing.MAX_EVENTS`)


class Beginning:
    """`names`, `numbers` and `kept` are of channels: the number of each in the file, back, and with `first`, `gone` and `sent` as they are there. `oldest` and
    `newest` are ids of events, and `events` how many there are."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.numbers: dict[int, str] = {}
        self.kept: dict[str, tuple[int, int, int]] = {}
        self.devices = Devices()
        self.keys: OrderedDict[tuple[str, str], tuple[float, Accepted]] = OrderedDict()
        self.oldest = self.newest = self.events = 0
        self._members: dict[int, str] = {}  # the devices of each channel, as one text: so what has not changed is told at once
        self._wishes: set[tuple[str, str]] = set()
        self._latest: list[int] = []  # events, the newest first

    def read(self, file: sqlite3.Connection, now: float, since: float, is_same: bool = False) -> None:
        """All of it; a second time what has changed, and with `is_same` channels and who is registered have not. Keys count that were used after `since`."""
        file.execute("begin")
        try:
            if not is_same:
                self._read_channels(file)
                self._read_devices(file, now)
            self._read_keys(file, since, is_same)
            self._count_events(file)
        finally:
            file.execute("rollback")

    def _count_events(self, file: sqlite3.Connection) -> None:
        oldest, newest = file.execute("select (select min(id) from events), (select max(id) from events)").fetchone()
        if self.events and oldest == self.oldest:
            # To count millions takes long, and they go from the front only: where the first is the same, all are there that were.
            self.events += file.execute("select count(*) from events where id > ?", (self.newest,)).fetchone()[0]
        else:
            self.events, = file.execute("select count(*) from events").fetchone()
        self.oldest, self.newest = oldest or 0, newest or 0

    def _read_channels(self, file: sqlite3.Connection) -> None:
        rows = file.execute("select id, name, first, gone, sent from channels").fetchall()
        self.names = {name: number for number, name, *_ in rows}
        self.numbers = {number: name for number, name, *_ in rows}
        self.kept = {name: (first, gone, sent) for _, name, first, gone, sent in rows}

    def _read_devices(self, file: sqlite3.Connection, now: float) -> None:
        # No name has a comma in it.
        members = dict(file.execute("select channel, group_concat(device) from members where gone is null group by channel"))
        wishes: set[tuple[str, str]] = set(file.execute("select device, pattern from wishes"))
        changed = {number: known.split(",") for number, known in self._members.items() if members.get(number) != known}
        if not self._wishes <= wishes or any(not set(known) <= set(members.get(number, "").split(",")) for number, known in changed.items()):
            # Somebody left, which is rare: what else a device is, or was, is not looked for.
            self.devices, self._members, changed = Devices(), {}, {}
        for number, devices in members.items():
            if number in changed or number not in self._members:
                known = set(changed.get(number, ()))
                self.devices.restore((device, self.numbers[number]) for device in devices.split(",") if device not in known)
        for device, pattern in wishes:
            self.devices.want(device, pattern).seen = now
        self._members, self._wishes = members, wishes

    def _read_keys(self, file: sqlite3.Connection, since: float, is_same: bool) -> None:
        sql = "select channel, key, event, audience, at from keys where at > ? {} order by at"
        if is_same:
            # What the others say is said for good: to change it would have been news.
            first, = file.execute("select min(time) from events where id > ?", (self.newest,)).fetchone()
            rows: Iterable[tuple[Any, ...]] = file.execute(sql.format("and at >= ?"), (since, first)) if first is not None else ()
        elif self._latest and file.execute("select 1 from events where id = ?", (self._latest[0],)).fetchone() is not None:
            # By the ids of events, for the clock may have been set back meanwhile.
            first, = file.execute("select min(time) from events where id >= ?", (self._latest[-1],)).fetchone()
            rows = file.execute(sql.format("and at >= ?"), (since, first))
        else:
            # The first time; or what stands there now is another file.
            self.keys.clear()
            rows = file.execute(sql.format(""), (since,))
        for channel, key, event, audience, at in rows:
            self.keys.pop((channel, key), None)  # so it is in its place in the order of time
            self.keys[channel, key] = at, Accepted(event, audience)
        if not is_same:
            self._latest = [id for id, in file.execute("select id from events order by id desc limit ?", (LATEST,))]
