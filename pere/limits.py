"""How much one client may ask for: how often, and what share of that of which there is only so much.

*How often* is a token bucket. It is kept as the GCRA keeps it (ITU-T I.371, annex A: the generic cell rate algorithm in its form of
virtual scheduling): one number, the moment at which the bucket is full again. What is taken moves that moment on; what
would move it further than the whole bucket takes to fill is refused, and it is known when there will be room.

*What share* is a dynamic threshold (Choudhury and Hahne, Dynamic queue length thresholds for shared-memory packet switches, 1998): nobody
may hold more than what is left for all others. One who takes all he can gets half, and two of them a third each, so there is
always room for who comes next; but a fleet behind one address may have as much as it needs as long as nobody else does.

This file knows no socket and no clock. It is handed the time, which may stand still or jump.
"""

import ipaddress
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Generic, TypeVar

from pere.errors import ConfigError
from pere.remembered import remembered

# What is counted, each in a bucket of its own.
CONNECTS, PUSHES, RECEIPTS, REQUESTS, REGISTRATIONS, CHANNELS = range(6)
WORDS = ("connects", "pushes", "receipts", "requests", "registrations", "channels")
NEW = {REGISTRATIONS: "new registrations", CHANNELS: "new channels"}  # what is kept of these is no more by asking again

FULL = [0.0] * len(WORDS)
EMPTY = [math.inf] * len(WORDS)
MAX_ACCOUNTS = 100_000  # clients that are told apart at once; some 200 bytes each
LOOKS = 3  # accounts that are looked at for each that is made: more are cleared away than made
LINGER = 60.0  # seconds for which what a subject has used is at hand, though it says nothing any more: else each receipt would look for it anew

RATE = re.compile(r"([0-9]{1,7}(?:\.[0-9]{1,3})?)/([0-9]{1,9})")


class Rate:
    """So many a second, and so many at once: `burst` tokens that come back one in `interval` seconds."""

    __slots__ = ("burst", "interval", "window")

    def __init__(self, per_second: float, burst: int):
        self.burst = burst
        self.interval = 1 / per_second
        self.window = burst * self.interval  # how long an empty bucket takes to fill

    @classmethod
    def read(cls, text: str) -> "Rate | None":
        """`100/500` is 100 a second and 500 at once, `0` is no limit. Raises ConfigError, which does not know the flag's name."""
        if text == "0":
            return None
        found = RATE.fullmatch(text)
        if found is None or not float(found[1]) or not int(found[2]):
            raise ConfigError(f"a rate is so many a second and so many at once, as in 100/500, or 0 for none, not {text!r}")
        return cls(float(found[1]), int(found[2]))

    def take(self, full: float, now: float, count: int) -> tuple[float, float]:
        """Take so many out of a bucket that is full again at `full`. Returns when it is full then, and 0; or, where it has not as many,
        `full` as it stands, and in how many seconds it has. What is more than a whole bucket takes a whole one: it can be had."""
        count = min(count, self.burst)
        # It was at most empty when it was last looked at: where it seems to be more than that, the clock has stepped back.
        full = min(max(full, now), now + self.window)
        wait = full + count * self.interval - (now + self.window)
        # In floats a whole bucket may seem to miss a trillionth.
        return (full, wait) if wait > 1e-9 * self.interval * self.burst else (full + count * self.interval, 0.0)


Buckets = list[float]  # when each bucket of somebody is full again


class Account:
    """What one client has taken, and what it holds: `full` is its buckets; `connections`, `feeds` and `handshakes`; `served` is what it was given in the
    newest `turn` of the loop."""

    __slots__ = ("connections", "feeds", "full", "handshakes", "served", "turn")

    def __init__(self) -> None:
        self.full: Buckets = FULL.copy()
        self.connections = 0
        self.feeds = 0
        self.handshakes = 0  # which are connections too
        self.served = 0
        self.turn = 0.0

    def is_idle(self, now: float) -> bool:
        """Whether a new one would say the same."""
        return not self.connections and not self.feeds and max(self.full) <= now


Kept = TypeVar("Kept", Account, Buckets)


class Takers(Generic[Kept]):
    """What each has taken who has used anything of late, as `make` makes it. What is idle is cleared away, and nothing else is: no stranger can make us
    forget what somebody has used. Where there are too many all the same, those who come new share what one has, the `crowd`. Names can be made up,
    unless what is idle is to `linger` for so many seconds: then those who come new clear nothing away before half of all that may be kept is."""

    def __init__(self, rates: Sequence[Rate | None], make: Callable[[], Kept], most: int, linger: float):
        self.known: dict[str, Kept] = {}
        self.rates = tuple(rates)
        self.crowd: Kept = make()
        self._make: Callable[[], Kept] = make
        self._most = most
        self._plenty = most // 2 if linger else 0
        self._linger = linger
        self._round: list[str] = []  # those that are yet to be looked at

    def of(self, name: str, now: float) -> Kept:
        known = self.known
        found = known.get(name)
        if found is None:
            if len(known) >= self._plenty:
                self.clear(now, LOOKS)
                if len(known) >= self._most:
                    return self.crowd
            found = known[name] = self._make()
        return found

    def take(self, buckets: Buckets, kind: int, now: float, count: int = 1) -> float:
        """Take so many of a kind out of somebody's buckets. Returns 0, or in how many seconds there will be room for them, and then nothing was taken."""
        rate = self.rates[kind]
        if rate is None:
            return 0.0
        if count == 1 and buckets[kind] <= now:  # one out of a full one, as it mostly is
            buckets[kind] = now + rate.interval
            return 0.0
        buckets[kind], wait = rate.take(buckets[kind], now, count)
        return wait

    def clear(self, now: float, looks: int) -> None:
        """Look at so many, all in turn, and drop the idle ones."""
        known = self.known
        for _ in range(min(looks, len(known))):
            if not self._round:
                self._round = list(known)
            name = self._round.pop()
            if self._is_idle(known[name], now - self._linger):
                self._drop(known.pop(name))

    def _is_idle(self, kept: Kept, now: float) -> bool:
        """Whether a new one would say the same."""
        raise NotImplementedError

    def _drop(self, kept: Kept) -> None:
        """It does not count any more."""


class Accounts(Takers[Account]):
    """An account for each client."""

    def __init__(self, rates: Sequence[Rate | None], most: int = MAX_ACCOUNTS):
        super().__init__(rates, Account, most, 0.0)

    def _is_idle(self, kept: Account, now: float) -> bool:
        return kept.is_idle(now)


class Subjects(Takers[Buckets]):
    """The buckets of each subject, which a token keeps too once they have been looked for."""

    def __init__(self, rates: Sequence[Rate | None], most: int = MAX_ACCOUNTS, linger: float = LINGER):
        super().__init__(rates, FULL.copy, most, linger)

    def _is_idle(self, kept: Buckets, now: float) -> bool:
        return max(kept) <= now

    def _drop(self, kept: Buckets) -> None:
        # Who has kept them finds nothing in them, and so looks for those that count.
        kept[:] = EMPTY


class Brought:
    """Which channels each subject has brought into being, as far as they are still there and this process knows of it: on this node, since it began.

    That is not kept anywhere, and need not be. The share of a subject is what is left for all others, and *that* is counted in the store, over restarts and
    nodes. Who takes all he can through k nodes leaves one part in k + 1, and who goes on after a restart gets half of what was left: there is
    always room for who comes next. (Devices need no such count: a subject is one device, whose channels and patterns `--max-channels-per-device` bounds, and the store knows.)"""

    def __init__(self) -> None:
        self.is_there: Callable[[str], bool] = lambda channel: True
        self.counts: Counter[str] = Counter()
        self._by: OrderedDict[str, str] = OrderedDict()  # by channel, in the order in which they are looked at

    def note(self, subject: str, channels: Collection[str]) -> None:
        """These are brought into being by this subject."""
        self.clear(LOOKS * len(channels))
        for channel in channels:
            self._drop(channel)
            self._by[channel] = subject
            self.counts[subject] += 1

    def clear(self, looks: int) -> None:
        """Look at so many channels, those first that were not looked at for longest, and forget those that are not there any more."""
        for _ in range(min(looks, len(self._by))):
            channel = next(iter(self._by))
            if self.is_there(channel):
                self._by.move_to_end(channel)
            else:
                self._drop(channel)

    def _drop(self, channel: str) -> None:
        subject = self._by.pop(channel, None)
        if subject is not None:
            self.counts[subject] -= 1
            if not self.counts[subject]:
                del self.counts[subject]


def has_room(own: int, all: int, most: int, most_own: int) -> bool:
    """Whether a client that holds `own` of the `all` that are taken may have one more, where there are `most`, and `most_own` for one; 0 is
    as many as are left for the others."""
    return all < most and (own < most_own if most_own else own < most - all)


@remembered(4096)
def client_of(address: str) -> str:
    """Whom an address stands for. IPv6 is given out by /64 (RFC 6177), so whoever has one address has 2^64."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
