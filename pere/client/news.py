"""What a listener is told beside its events: how its connection fares, and what will never come.

Every one names the `device` that it concerns (None for an anonymous feed). Nothing of this has to be acted upon; whoever hands in
no `on_news` finds it in the log, under `pere.client`: what is amiss as a warning, all else as information.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

log = logging.getLogger("pere.client")


@dataclass(frozen=True, slots=True)
class Opened:
    """A feed is open. `hello` is what the server said first: see `pere.hello` in the README."""

    device: str | None
    hello: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lost:
    """A feed was lost, or could not be had, for the reason in `error`; the next try is in `wait` seconds."""

    device: str | None
    error: Exception
    wait: float


@dataclass(frozen=True, slots=True)
class Bye:
    """The server ended the feed, and told why and in how many seconds to come back."""

    device: str | None
    reason: str
    retry: float


@dataclass(frozen=True, slots=True)
class Removed:
    """The server says that coming back is pointless (204): this device was deleted. The feed is over."""

    device: str | None


@dataclass(frozen=True, slots=True)
class Gap:
    """After the id `after`, `lost` events of the channel will never come (None: nobody knows how many); it goes on with the id `to`."""

    device: str | None
    channel: str
    after: str
    to: str | None
    lost: int | None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The publisher took an event back: forget it, if it is not done."""

    device: str | None
    channel: str
    id: str


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An event came again whose receipt was given here before. It was not handed on; the server is told again what became of it."""

    device: str | None
    channel: str
    id: str


@dataclass(frozen=True, slots=True)
class Unreceipted:
    """A receipt that the server will not have, now or later, for the reason in `error`: it is given up."""

    device: str | None
    id: str
    error: Exception


@dataclass(frozen=True, slots=True)
class Unsent:
    """So many receipts are not answered, for the reason in `error`; the next try is in `wait` seconds. None is lost."""

    device: str | None
    waiting: int
    error: Exception
    wait: float


News = Opened | Lost | Bye | Removed | Gap | Cancelled | Duplicate | Unreceipted | Unsent
OnNews = Callable[[News], object]


def to_log(news: News) -> None:
    """What happens to news that nobody asked for."""
    who = f"device {news.device}" if news.device is not None else "an anonymous feed"
    match news:
        case Lost(error=error, wait=wait):
            log.warning("%s: the feed was lost: %s; trying again in %.1f s", who, error, wait)
        case Gap(channel=channel, lost=lost):
            log.warning("%s: %s events of %s will never come", who, "nobody knows how many" if lost is None else lost, channel)
        case Removed():
            log.warning("%s was deleted, and listens no more", who)
        case Unsent(waiting=waiting, error=error, wait=wait):
            log.warning("%s: %d receipts wait: %s; trying again in %.1f s", who, waiting, error, wait)
        case Unreceipted(id=id, error=error):
            log.warning("%s: the receipt for %s is refused: %s", who, id, error)
        case _:
            log.info("%s: %s", who, news)
