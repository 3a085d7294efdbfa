"""Where a piece of work stands in a trace that others began: `traceparent` (W3C Trace Context, 3.2).

    00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
    |  |                                |                |
    |  trace                            the span before  flags, of which the first says that it is recorded
    version

A publisher's goes with its event, to whoever works on it next. What is not right is left out, and never a reason to refuse anything (4.3).
"""

import re

SAID = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
LENGTH = 55


def traceparent(said: str) -> str:
    """What was said, as it is passed on; "" if it is none. Of a version that is not known yet we take what this one has (4.3), and say so."""
    if len(said) == LENGTH:
        return ("00" + said[2:]) if SAID.fullmatch(said) else ""
    # 3.2.2.1: a higher version may say more, behind another dash.
    return "00" + said[2:LENGTH] if said[LENGTH : LENGTH + 1] == "-" and said[:2] != "00" and SAID.fullmatch(said[:LENGTH]) else ""
