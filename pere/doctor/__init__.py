"""What is wrong, and how to mend it: each thing that is looked at is a Finding, and each that is not well has a remedy.

Nothing is changed by looking: what has to be tried (may this folder be written to?) is taken away again.
"""

from collections.abc import Iterator
from typing import NamedTuple

OK, ADVICE, WRONG = "ok", "advice", "wrong"


class Finding(NamedTuple):
    """`about` is what was looked at. `advice` is what works, and could be better or is not what it looks like; `wrong` does not work."""

    about: str
    state: str
    what: str
    remedy: str = ""


Findings = Iterator[Finding]


def ok(about: str, what: str) -> Finding:
    return Finding(about, OK, what)


def advice(about: str, what: str, remedy: str) -> Finding:
    return Finding(about, ADVICE, what, remedy)


def wrong(about: str, what: str, remedy: str) -> Finding:
    return Finding(about, WRONG, what, remedy)


def counted(count: int, what: str) -> str:
    """`1 node is`, `2 nodes are`."""
    return f"{count:,} {what}{' is' if count == 1 else 's are'}"
