"""Devices that come and go on this node: here at once, and everywhere when the log says so.

In between a device that has come is expected: it counts as registered, but is in no audience and has no slot. One that has left is no member here any
more, but is still one wherever an entry of the log is applied that was written before it left.
"""

from collections.abc import Callable, Iterable
from functools import partial

from pere.audience import Member
from pere.config import Config
from pere.devices import Device
from pere.errors import Refusal
from pere.storage import Shelf
from pere.storage.copy import Copy
from pere.storage.replica import Op


class Joining(Copy):
    """A copy whose devices may be registered here."""

    def __init__(self, config: Config, clock: Callable[[], float], node: str):
        super().__init__(config, clock, node)
        self._coming: dict[str, int] = {}  # devices, and how many of their registrations are on their way
        self._assured: dict[str, list[Callable[[Refusal | None], None]]] = {}

    def _join(self, shelf: Shelf, device: str) -> Member:
        """It counts as registered here at once, and is in the audience when the log says so."""
        member = shelf.audience.expect(device, shelf.backlog.last, self.clock())
        self.devices.register(device, shelf.name)
        if ordinals := shelf.waiting.get(device):
            member.settled = member.position = ordinals[0] - 1
        self._expect(device, ("join", shelf.name, device))
        return member

    def _unwell(self) -> Refusal | None:
        """Why nothing can be said now, if that is so."""
        return None

    def _expect(self, device: str, op: Op) -> None:
        self._coming[device] = self._coming.get(device, 0) + 1
        self._say(op, (partial(self._came, device), partial(self._came, device)))

    def _came(self, device: str, _: object) -> None:
        self._coming[device] -= 1
        if not self._coming[device]:
            del self._coming[device]
            for assured in self._assured.pop(device, ()):
                assured(None)

    def is_assured(self, device: str) -> bool:
        return device not in self._coming

    def assure(self, device: str, then: Callable[[Refusal | None], None]) -> None:
        if self.is_assured(device):
            then(None)
        elif (refusal := self._unwell()) is not None:
            then(refusal)
        else:
            self._assured.setdefault(device, []).append(then)

    def want(self, device: str, pattern: str, channels: Iterable[str] | None = None) -> None:
        super().want(device, pattern, channels)
        self._asking.add(device)
        self._expect(device, ("want", device, pattern))

    def arrive(self, device: Device) -> None:
        """All nodes hear of it with the next sweep. Where what it wants could have lapsed by then that is said at once, and it is not greeted before."""
        self._asking.add(device.name)
        safe = self.clock() - self._config.device_ttl + self._stay
        if any(self._wishes.get(pattern, {}).get(device.name, safe) < safe for pattern in device.patterns):
            self._expect(device.name, ("present", self.node, (device.name,), ()))

    def _forget_wishes(self, device: Device) -> None:
        super()._forget_wishes(device)
        self._say(("unwant", device.name))

    def _depart(self, channel: str, device: str) -> bool:
        """It is no member here any more; whether it was."""
        shelf = self._shelves.get(channel)
        member = shelf.audience.members.pop(device, None) if shelf is not None else None
        if member is not None and member.slot >= 0:
            self._leaving[channel, device] = member
        return member is not None

    def unregister(self, channel: str, device: str) -> None:
        if self._depart(channel, device):
            self._say(("leave", channel, device))
        known = self.devices.get(device)
        if known is not None and channel in known.channels:
            self.devices.unregister(known, channel)
            if known.patterns and device not in self.devices.known:
                self._say(("unwant", device))

    def remove(self, device: str) -> Device | None:
        known = self.devices.get(device)
        for channel in known.channels if known is not None else ():
            self._depart(channel, device)
        if known is not None:
            self._say(("remove", device), (lambda _: None, lambda _: None))
        return self.devices.remove(device, self.clock())
