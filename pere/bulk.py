"""What one device says of many events at once, in columns: to make a row of each receipt would cost a third of entering it."""

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import overload

# What a device says: who it is, of which event, the state, its own word as JSON, when it did it (seconds since 1970), if it says so, and
# on which channel, if it names one.
Receipt = tuple[str, int, int, bytes | None, float | None, str | None]


class Bulk(Sequence[Receipt]):
    """The receipts of one device, in the order in which it gave them; none of them names a channel."""

    __slots__ = ("device", "ids", "states", "statuses", "times")

    def __init__(self, device: str, ids: list[int], states: list[int], statuses: list[bytes | None], times: list[float | None]):
        self.device = device
        self.ids = ids
        self.states = states
        self.statuses = statuses
        self.times = times

    @classmethod
    def of(cls, device: str, ids: list[int], state: int, status: bytes | None = None, at: float | None = None) -> "Bulk":
        """The same said of all."""
        count = len(ids)
        return cls(device, ids, [state] * count, [status] * count, [at] * count)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Receipt]:
        return zip(repeat(self.device), self.ids, self.states, self.statuses, self.times, repeat(None))

    @overload
    def __getitem__(self, place: int) -> Receipt: ...

    @overload
    def __getitem__(self, place: slice) -> "Bulk": ...

    def __getitem__(self, place: int | slice) -> "Receipt | Bulk":
        if isinstance(place, slice):
            return Bulk(self.device, self.ids[place], self.states[place], self.statuses[place], self.times[place])
        return self.device, self.ids[place], self.states[place], self.statuses[place], self.times[place], None
