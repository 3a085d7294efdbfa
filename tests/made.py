"""What many stories begin with."""

from pere.event import Draft, Event

NOW = 1_417_444_110.993  # 2014-12-01T14:28:30.993Z


def draft(channel: str = "c", data: bytes = b"1", ttl: int = 3600, **said) -> Draft:
    return Draft(channel=channel, data=data, ttl=ttl, **said)


def event(id: int = 1, ordinal: int | None = None, now: float = NOW, **said) -> Event:
    """An accepted event; its ordinal is its id where none is named."""
    return Event(draft(**said), id, id if ordinal is None else ordinal, now)
