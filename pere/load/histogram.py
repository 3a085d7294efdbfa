"""How often something took how long, in bounded memory, whatever the load.

Logarithmic buckets of linear parts, as HdrHistogram has them: a value is kept to its leading eight bits, so a quantile is wrong by less
than one in 128, and microseconds up to hours fit in some thousand buckets.
"""

from collections.abc import Iterable

BITS = 8
POINTS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999, 1.0)  # of a curve


class Histogram:
    """Durations in microseconds. `counts` is how many there are by the lower end of their bucket."""

    __slots__ = ("counts",)

    def __init__(self, counts: Iterable[tuple[int, int]] = ()):
        self.counts: dict[int, int] = dict(counts)

    def add(self, us: int) -> None:
        shift = us.bit_length() - BITS
        value = us >> shift << shift if shift > 0 else max(us, 0)
        self.counts[value] = self.counts.get(value, 0) + 1

    def merge(self, other: "Histogram") -> None:
        for value, count in other.counts.items():
            self.counts[value] = self.counts.get(value, 0) + count

    def __len__(self) -> int:
        return sum(self.counts.values())

    def quantile(self, share: float) -> int:
        """The duration that this share of all did not exceed; 0 if there are none."""
        left = share * len(self)
        value = 0
        for value in sorted(self.counts):
            left -= self.counts[value]
            if left <= 0:
                break
        return value

    def milliseconds(self) -> dict[str, float]:
        """The quantiles that people ask for."""
        return {name: self.quantile(share) / 1000 for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0))}

    def curve(self) -> list[tuple[float, float]]:
        """Shares, and the milliseconds that these did not exceed."""
        return [(share, self.quantile(share) / 1000) for share in POINTS]
