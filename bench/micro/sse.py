"""What does it cost to encode an event, once for all feeds, and to decode it, once per device?

    python -m bench.micro sse
"""

from collections.abc import Callable

from pere import sse
from pere.event import ENVELOPE, RAW, Draft, Event, IdClock


def operations() -> dict[str, tuple[Callable[[], object], int]]:
    draft = Draft(channel="orders", data=b'{"seq":1,"pad":"%b"}' % (b"x" * 130), ttl=60)
    event = Event(draft, IdClock().next(1_700_000_000.0), 1, 1_700_000_000.0)
    stream = event.encode(RAW | 2) * 100
    return {
        "a raw frame of a 150 byte event": (lambda: event.encode(RAW), 1),
        "an envelope frame of it": (lambda: event.encode(ENVELOPE), 1),
        "decoding it": (lambda: list(sse.Decoder().feed(stream)), 100),
    }
