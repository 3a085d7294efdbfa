"""What a device says in a request: in a body or a query of one event, or in an item among many."""

from typing import Any

from pere.config import Config
from pere.errors import BadRequest, WrongType
from pere.event import parse_id, parse_time
from pere.handlers.base import DURATION, Query, dumps, loads
from pere.names import shown
from pere.receipt import RETRY, WORKING, state_code

FORM = "application/x-www-form-urlencoded"
ITEM = frozenset(("event_id", "state", "status", "at", "delay"))
MAX_AHEAD = 300.0  # seconds by which a device's clock may be ahead of ours
MAX_DELAY = 3600.0  # seconds


class Said:
    """What a body or a query says: each part is None where it says nothing. `is_receipt` is false of what only says how it goes, and
    of what has a delay, which nothing else may have."""

    __slots__ = ("at", "delay", "device", "event_id", "is_receipt", "state", "status")

    def __init__(self, device: str | None, event_id: int | None, state: int | None, status: bytes | None, at: float | None = None,
                 delay: float | None = None):
        self.device = device
        self.event_id = event_id
        self.state = state
        self.status = status
        self.at = at
        self.delay = delay
        self.is_receipt = state not in (WORKING, RETRY) and delay is None

    def check(self) -> None:
        """Raises BadRequest where a part has nothing to say beside another."""
        if self.delay is not None and self.state != RETRY:
            raise BadRequest("delay_without_retry", '"delay" is how long to wait before an event is sent again: only state=retry has it')
        if self.state not in (WORKING, RETRY):
            return
        if self.status is not None:
            raise BadRequest("status_without_receipt", '"status" is kept with a receipt, and "working" and "retry" are none')
        if self.at is not None:
            raise BadRequest("at_without_receipt", '"at" is kept with a receipt, and "working" and "retry" are none')


NOTHING = Said(None, None, None, None)


class Reader:
    """Reads it. Raises BadRequest for what cannot be meant, and WrongType for a body that is neither a form nor JSON."""

    def __init__(self, config: Config):
        self._config = config

    def body(self, body: bytes, kind: bytes) -> Said:
        """What a body of this Content-Type says."""
        media = kind.decode("latin-1").partition(";")[0].strip().lower()
        if media == "application/json" or media in ("", FORM) and body.lstrip().startswith(b"{"):
            fields = loads(body, "the body")
            if not isinstance(fields, dict):
                raise BadRequest("bad_json", 'a receipt is an object such as {"state": "processed"}')
            return self.object(fields)
        if media in ("", FORM):
            return self.fields(Query(body, "the form"))
        raise WrongType("wrong_type", f"a receipt is a form or application/json, not {shown(media)}")

    def fields(self, fields: Query) -> Said:
        """What a form or a query says."""
        id, state, status = fields.one("event_id"), fields.one("state"), fields.one("status")
        return Said(fields.one("device"), parse_id(id) if id else None, state_code(state) if state else None,
                    self.status(status) if status else None, time_of(at) if (at := fields.one("at")) else None,
                    delay_of(float(delay) if DURATION.fullmatch(delay) else delay) if (delay := fields.one("delay")) else None)

    def object(self, fields: dict[str, Any]) -> Said:
        """What a JSON object says."""
        for name in ("device", "event_id", "state"):
            if not isinstance(fields.get(name, ""), str):
                raise BadRequest("bad_receipt", f'"{name}" is a string')
        id, state, status = fields.get("event_id"), fields.get("state"), fields.get("status")
        return Said(fields.get("device"), parse_id(id) if id else None, state_code(state) if state else None,
                    self.status(status) if status is not None else None, time_of(fields["at"]) if "at" in fields else None,
                    delay_of(fields["delay"]) if "delay" in fields else None)

    def status(self, status: Any) -> bytes:
        """The device's own word, as JSON."""
        word = dumps(status, "a status")
        if len(word) > self._config.max_status_bytes:
            raise BadRequest("large_status", f"a status has at most {self._config.max_status_bytes} bytes as JSON, not {len(word)}", whose="request")
        return word

    def item(self, item: Any) -> tuple[Said, int]:
        """What an item among many says, and of which event. Raises BadRequest where it says nothing."""
        if not isinstance(item, dict):
            raise BadRequest("bad_receipt", 'a receipt is an object with "event_id"')
        unknown = item.keys() - ITEM
        if unknown:
            # What is left out has a default, so a slip of the pen would turn a failure into a success.
            raise BadRequest("unknown_field", f'a receipt among many has "event_id", "state", "status", "at" and "delay", and no {shown(min(unknown))}')
        said = self.object(item)
        if said.event_id is None:
            raise BadRequest("no_event_id", 'a receipt names its "event_id"')
        said.check()
        return said, said.event_id


def time_of(text: Any) -> float:
    """When a device did it. Raises BadRequest where that is no time."""
    seconds = parse_time(text) if isinstance(text, str) else None
    if seconds is None:
        raise BadRequest("bad_at", f'"at" is a time such as 2014-12-01T14:28:30.993Z, not {shown(text)}')
    return seconds


def not_ahead(at: float | None, now: float) -> float | None:
    """The time itself, if a clock that is no more than a little wrong can have said so. Raises BadRequest otherwise."""
    if at is not None and at > now + MAX_AHEAD:
        raise BadRequest("bad_at", f'"at" is {at - now:.0f} s in the future, more than a clock may be wrong ({MAX_AHEAD:.0f} s)')
    return at


def delay_of(said: Any) -> float:
    """How long to wait before it is sent again. Raises BadRequest where that is no such time."""
    if said.__class__ not in (int, float) or not 0 <= said <= MAX_DELAY:
        raise BadRequest("bad_delay", f'"delay" is a number of seconds from 0 to {MAX_DELAY:g}, not {shown(said)}')
    return float(said)
