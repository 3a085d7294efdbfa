"""What a channel, a device and an event type may be called, and which channels a pattern means.

Every name that reaches a header, a log line, a metric or an SSE field has passed one of these, so none of them can
carry a line break.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from pere.errors import BadRequest

CHANNEL = re.compile(r"[A-Za-z0-9_.:~-]{1,128}")
DEVICE = re.compile(r"[A-Za-z0-9_.:@~-]{1,128}")
PATTERN = re.compile(r"[A-Za-z0-9_.:~*-]{1,128}")
EVENT_TYPE = re.compile(r"[A-Za-z0-9_.:/~-]{1,128}")


def channel_name(text: str) -> str:
    """The name itself; raises BadRequest if it is none."""
    if CHANNEL.fullmatch(text):
        return text
    raise BadRequest("bad_channel", f"a channel is 1 to 128 of A-Z a-z 0-9 _ . : ~ -, not {shown(text)}")


def device_name(text: str) -> str:
    """The name itself; raises BadRequest if it is none."""
    if DEVICE.fullmatch(text):
        return text
    raise BadRequest("bad_device", f"a device is 1 to 128 of A-Z a-z 0-9 _ . : @ ~ -, not {shown(text)}")


def event_type(text: str) -> str:
    """The SSE event name itself; raises BadRequest if it is none, or one that PERE keeps for its control frames."""
    if not EVENT_TYPE.fullmatch(text):
        raise BadRequest("bad_type", f"an event type is 1 to 128 of A-Z a-z 0-9 _ . : / ~ -, not {shown(text)}")
    if text.startswith("pere."):
        raise BadRequest("bad_type", f"types that begin with `pere.` are PERE's own control frames, so {shown(text)} cannot be pushed")
    return text


def is_pattern(text: str) -> bool:
    return "*" in text


@lru_cache(maxsize=4096)
def pattern(text: str) -> Callable[[str], object]:
    """What tells whether a channel is meant by the pattern: `*` is any run within a dot-separated part, `**` at the end any rest; both may
    be nothing.

    >>> bool(pattern("orders.*")("orders.eu")), bool(pattern("orders.*")("orders.eu.1")), bool(pattern("orders.**")("orders.eu.1"))
    (True, False, True)

    Raises BadRequest if it is no pattern.
    """
    if not PATTERN.fullmatch(text):
        raise BadRequest("bad_channel", f"a channel pattern is 1 to 128 of A-Z a-z 0-9 _ . : ~ - and *, not {shown(text)}")
    head, rest = (text[:-2], ".*") if text.endswith("**") else (text, "")
    if "**" in head:
        raise BadRequest("bad_channel", f"** stands only at the end of a pattern, not as in {shown(text)}")
    return re.compile(r"\.".join(map(_part, head.split("."))) + rest).fullmatch


def _part(glob: str) -> str:
    """One dot-separated part as a regular expression. Each piece between stars is taken where it first fits and never
    elsewhere (an atomic group, as in the standard library's fnmatch), so a hostile pattern costs no more than a plain one."""
    first, *pieces = map(re.escape, glob.split("*"))
    if not pieces:
        return first
    *middle, last = pieces
    return first + "".join(f"(?>[^.{REST}]*?{piece})" for piece in middle) + f"[^.{REST}]*" + last


# Two letters of no channel, that stand for all that a `*` or a `**` may be.
RUN, REST = "\x01", "\x02"


def whole(text: str) -> str:
    """All that a pattern means, written as one name: whichever pattern means this name means every channel that `text` means.

    For a `*` takes the place of any run without a dot, RUN among it, and only a `**` that of REST too: put any other run or rest there,
    and it is taken in the same way. A channel is its own whole.

    >>> bool(pattern("orders.**")(whole("orders.*"))), bool(pattern("orders.*")(whole("orders.**")))
    (True, False)

    Raises BadRequest if it is no pattern.
    """
    pattern(text)
    head, rest = (text[:-2], REST) if text.endswith("**") else (text, "")
    return head.replace("*", RUN) + rest


def shown(said: object, most: int = 80) -> str:
    """What a stranger said, made safe and short enough to stand in an error. A list or an object may be of any size and depth, so it is
    only called one."""
    if isinstance(said, (list, dict)):
        return "a list" if isinstance(said, list) else "an object"
    text = str(said)
    return repr(text if len(text) <= most else text[:most] + "...")
