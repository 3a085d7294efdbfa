"""A receipt: the states of an event on a device, which may follow which, and how long it took.

Two bytes are kept per device and event. The first holds the state in its low three bits, whether the receipt was late
in the fourth, and in the high four how often the event was sent again. The second is the latency in one of 255
logarithmic buckets. This file is the only one that knows the bits. It has no clock and no socket.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import cache, partial

from pere.errors import BadRequest
from pere.names import shown

# The codes of the states, in the order of their ranks: 0 pending, 2 delivered, 3 expired and cancelled, 4 processed and failed. So a
# comparison of codes mostly answers "is this lower".
PENDING, DELIVERED, EXPIRED, CANCELLED, PROCESSED, FAILED = range(6)
NAMES = ("pending", "delivered", "expired", "cancelled", "processed", "failed")
SENT = "sent"  # rank 1, derived from positions and never stored

# As the level that a push asks for: no receipts at all.
NONE = -1

STATE, LATE, RESENT = 0x07, 0x08, 0x10
ABSENT = 0x07  # a slot that is not in the audience: the device had left before the event came
MAX_RESENDS = 15

# The words of a receipt's `state`.
WORDS = {"delivered": DELIVERED, "processed": PROCESSED, "failed": FAILED}

# And those that only say how it goes: they change no state, so nothing keeps them.
WORKING, RETRY = 6, 7
GOINGS = {"working": WORKING, "retry": RETRY}


def state_code(word: str) -> int:
    """The state that a receipt's word sets, or how it goes; raises BadRequest for a word that is neither."""
    code = WORDS.get(word)
    if code is None:
        code = GOINGS.get(word)
    if code is None:
        raise BadRequest("bad_state", f"a receipt's state is delivered, processed, failed, working or retry, not {shown(word)}")
    return code


# What may become of a receipt. The order is that of the counters in the ledger.
FIRST, DUPLICATE, LATE_FIRST, CONFLICT = range(4)
OUTCOMES = ("accepted", "duplicate", "late", "conflict")


def transition(old: int, new: int, level: int) -> tuple[int, int]:
    """The byte after a receipt that says `new` (a code), and the outcome. `old` is the stored byte of a device in the audience.

    Transitions only go up: a higher state implies the lower ones, and the first hard state (processed, failed) stands. A late
    receipt still wins over a soft end (expired, cancelled), if it is one that would have closed the event in time.
    """
    state = old & STATE
    if state == PENDING or state == DELIVERED != new:
        return old & ~STATE | new, FIRST
    if state == EXPIRED or state == CANCELLED:
        return (old & ~STATE | LATE | new, LATE_FIRST) if closes(new, level) else (old, DUPLICATE)
    return old, CONFLICT if {state, new} == {PROCESSED, FAILED} else DUPLICATE


def closes(state: int, level: int) -> bool:
    """Whether an event that asks for receipts of this level is done with on a device in this state."""
    return state != PENDING if level == DELIVERED else state > DELIVERED


# The same, looked up: OWED[level][byte] tells whether a device of which that byte is kept still owes a receipt.
OWED = {level: tuple(not closes(byte & STATE, level) for byte in range(256)) for level in (DELIVERED, PROCESSED)}


@cache
def ending(end: int, level: int) -> bytes:
    """A table for `bytearray.translate` that turns every state that is still open into `end`, and leaves all else."""
    return bytes(byte if closes(byte & STATE, level) else byte & ~STATE | end for byte in range(256))


def _rules(level: int) -> tuple[tuple[tuple[int, int, bool, tuple[int, int]], ...], ...]:
    def rule(old: int, new: int) -> tuple[int, int, bool, tuple[int, int]]:
        byte, outcome = transition(old, new, level)
        # Expired and cancelled were closed before, so a late receipt closes nothing more.
        closed = closes(byte & STATE, level) and not closes(old & STATE, level)
        return byte, outcome, closed, (byte & STATE, outcome)

    return tuple(tuple(rule(old, new) for old in range(256)) for new in range(len(NAMES)))


# All of the above, looked up: RULES[level][new][old] is the byte after, the outcome, whether that closed the event on the device, and
# what is answered: the state that stands and the outcome.
RULES = {level: _rules(level) for level in (DELIVERED, PROCESSED)}

# Latency buckets: 0 is "none yet", 1 to 255 are equal steps of the logarithm from 0.1 ms to 30 days, so a bucket is
# 10 % wide wherever it lies, and its middle is never off by more than 5 %.
SHORTEST, LONGEST = 1e-4, 30 * 86_400.0
_STEPS = 254 / math.log(LONGEST / SHORTEST)
# Where each bucket begins; the first one with all that is shorter still.
_EDGES = (-math.inf, *(SHORTEST * math.exp((i - 0.5) / _STEPS) for i in range(1, 255)))

# The bucket of a latency in seconds, 1 to 255. It is asked once for every receipt: to look it up takes a third of a logarithm and
# the arithmetic around it.
bucket: Callable[[float], int] = partial(bisect_right, _EDGES)


def edges(bucket: int) -> tuple[float, float]:
    """The latencies of a bucket: from the first up to, and without, the second."""
    return _EDGES[bucket - 1], _EDGES[bucket] if bucket < len(_EDGES) else math.inf


# The middle of each bucket in seconds, to four digits: with fewer, the rounding would add to the 5 %.
SECONDS = (0.0, *(float(f"{SHORTEST * math.exp((i - 1) / _STEPS):.4g}") for i in range(1, 256)))


def quantiles(histogram: Mapping[int, int], wanted: tuple[float, ...] = (0.5, 0.9, 0.99)) -> dict[str, float]:
    """Seconds at each wanted quantile, such as `{"p50": 0.012, ...}`, of how many are in which bucket; empty where there are none."""
    measured = sum(histogram.values())
    if not measured:
        return {}
    found, passed, ranks = {}, 0, [(min(measured - 1, int(q * measured)), f"p{q * 100:g}") for q in sorted(wanted, reverse=True)]
    for bucket, count in sorted(histogram.items()):
        passed += count
        while ranks and ranks[-1][0] < passed:
            found[ranks.pop()[1]] = SECONDS[bucket]
    return found
