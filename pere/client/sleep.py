"""How long this machine has slept: a laptop's lid, a virtual machine that was put away.

Timers stand still meanwhile, so after it they would wait for the rest of a time that is long over, on connections that are long
dead. The wall clock is no witness, since it also moves when somebody sets it.
"""

import time
from collections.abc import Callable

# Two clocks of which one goes on in suspension and the other does not; on macOS it is CLOCK_MONOTONIC that goes on.
PAIRS = (("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"), ("CLOCK_MONOTONIC", "CLOCK_UPTIME_RAW"))


def clock() -> Callable[[], float]:
    """What tells how many seconds the machine has slept, counted from anywhere; always 0 where that cannot be known."""
    for awake_and_asleep, awake in PAIRS:
        both, one = getattr(time, awake_and_asleep, None), getattr(time, awake, None)
        if both is not None and one is not None:
            return lambda: time.clock_gettime(both) - time.clock_gettime(one)
    return lambda: 0.0
