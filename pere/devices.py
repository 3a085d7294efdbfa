"""Which devices there are, over all channels: what each is registered for, and which feeds it has open.

A feed is opaque here. Presence is derived: a device is online as long as it has a feed. No clock, no socket.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from pere.audience import NOWHERE
from pere.wishes import Wishes

BEFORE = "before"  # where a device has feeds that are on their way from another process, as if that were another node
REMOVED_FOR = 60.0  # seconds in which a removed device that reconnects by itself is told to stop
FEW = 8  # channels that stand in a tuple, which is small; among more, each is found at once


class Device:
    """A device that is registered somewhere. `feeds` are in the order of their opening. `seen` is when one of them last opened or
    closed, as far as the device wants patterns. `elsewhere` are the nodes, beside this one, on which it has feeds."""

    __slots__ = ("channels", "elsewhere", "feeds", "name", "patterns", "seen")

    def __init__(self, name: str):
        self.name = name
        self.channels: Collection[str] = ()
        self.patterns: tuple[str, ...] = ()
        self.feeds: tuple[Any, ...] = ()
        self.elsewhere = NOWHERE
        self.seen = 0.0

    @property
    def is_online(self) -> bool:
        return bool(self.feeds or self.elsewhere)


class Devices:
    """All devices, by name; and by pattern those who want every channel that is yet to be born. `registrations` counts the channels and
    patterns of each."""

    lasting = ("on_presence",)  # as in `storage/working.py`

    def __init__(self) -> None:
        self.known: dict[str, Device] = {}
        self.patterns: Wishes[set[str]] = Wishes()
        self.registrations = 0
        self.online = 0
        # Told of a device that opens its first feed, or closes its last one: its name, its channels, and which of both; None if nobody wants to know.
        self.on_presence: Callable[[str, Collection[str], bool], None] | None = None
        self.removed: dict[str, float] = {}  # and when, as long as that may be of interest
        self._wanting: OrderedDict[str, Device] = OrderedDict()  # who has patterns, in the order in which they are looked at

    def get(self, name: str) -> Device | None:
        return self.known.get(name)

    def add(self, name: str) -> Device:
        """The device of this name, made if there is none; whether it is registered anywhere is for the caller to say."""
        return self.known.get(name) or self._make(name)

    def _make(self, name: str) -> Device:
        device = self.known[name] = Device(name)
        if self.removed:
            self.removed.pop(name, None)
        return device

    def register(self, name: str, channel: str) -> Device:
        """The device, which now counts as registered on the channel too."""
        device = self.known.get(name)
        if device is None:
            device = self._make(name)
        channels = device.channels
        if not channels:
            device.channels = (channel,)
        elif channel in channels:
            return device
        elif isinstance(channels, dict):
            channels[channel] = None
        else:
            device.channels = (*channels, channel) if len(channels) < FEW else dict.fromkeys((*channels, channel))
        self.registrations += 1
        return device

    def restore(self, registrations: Iterable[tuple[str, str]]) -> None:
        """The same for many, at a start: most are on one channel."""
        known = self.known
        for name, channel in registrations:
            if name in known:
                self.register(name, channel)
            else:
                device = known[name] = Device(name)
                device.channels = (channel,)
                self.registrations += 1

    def want(self, name: str, pattern: str) -> Device:
        """The device, which from now on is registered on every channel that the pattern means when it is born."""
        device = self.add(name)
        if pattern not in device.patterns:
            device.patterns += (pattern,)
            self.registrations += 1
            self._wanting[name] = device
            self.patterns.setdefault(pattern, set()).add(name)
        return device

    def unregister(self, device: Device, channel: str) -> None:
        """Off one channel; a device that is registered nowhere and has no feed is forgotten."""
        if isinstance(device.channels, dict):
            del device.channels[channel]
        else:
            device.channels = tuple(name for name in device.channels if name != channel)
        self.registrations -= 1
        if not device.channels and not device.is_online:
            self.forget(device)

    def quiet_since(self, moment: float, looks: int) -> list[Device]:
        """Those who want patterns, are registered nowhere, have no feed and were last seen before this moment; so many are looked at, in turn."""
        quiet = []
        for _ in range(min(looks, len(self._wanting))):
            name, device = next(iter(self._wanting.items()))
            self._wanting.move_to_end(name)
            if not device.channels and not device.is_online and device.seen < moment:
                quiet.append(device)
        return quiet

    def remove(self, name: str, now: float) -> Device | None:
        """Forget a device altogether; for a while it is remembered that it was removed. Its channels are still in the answer."""
        device = self.known.get(name)
        if device is not None:
            self.registrations -= len(device.channels)
            self.forget(device)
            self.removed[name] = now
        return device

    def removed_since(self, name: str, moment: float) -> bool:
        """Whether the device was removed after this moment and has not come back."""
        return name in self.all_removed_since(moment)

    def all_removed_since(self, moment: float) -> dict[str, float]:
        """Those that were, and when."""
        # What is older is of no more interest to anybody: dropped from the front, as they stand in the order of time.
        while self.removed:
            oldest = next(iter(self.removed))
            if self.removed[oldest] >= moment:
                break
            del self.removed[oldest]
        return self.removed

    def open(self, device: Device, feed: Any) -> None:
        """It has a further feed."""
        if device.feeds:
            device.feeds += (feed,)
            return
        device.feeds = (feed,)
        self.online += 1
        if self.on_presence is not None and not device.elsewhere:
            self.on_presence(device.name, device.channels, True)

    def is_elsewhere(self, device: Device, node: str, is_there: bool) -> None:
        """The device has its first feed on another node, or none any more."""
        was_online = device.is_online
        device.elsewhere = device.elsewhere | {node} if is_there else device.elsewhere - {node}
        self._tell(device, was_online)

    def _tell(self, device: Device, was_online: bool) -> None:
        if self.on_presence is not None and device.is_online != was_online:
            self.on_presence(device.name, device.channels, device.is_online)

    def close(self, device: Device, feed: Any) -> None:
        """It has one feed less; that may be said twice."""
        if feed not in device.feeds:
            return
        device.feeds = tuple(other for other in device.feeds if other is not feed)
        if not device.feeds:
            self.online -= 1
            self._tell(device, True)

    def after(self, name: str, limit: int) -> Iterator[Device]:
        """At most `limit` devices whose names come after this one, in order."""
        names = sorted(other for other in self.known if other > name)
        return (self.known[other] for other in names[:limit])

    def forget(self, device: Device) -> None:
        """No more of a device that is registered nowhere: what it wanted goes with it."""
        del self.known[device.name]
        self._wanting.pop(device.name, None)
        self.registrations -= len(device.patterns)
        for pattern in device.patterns:
            self.patterns[pattern].discard(device.name)
            if not self.patterns[pattern]:
                del self.patterns[pattern]
