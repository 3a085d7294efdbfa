"""`POST /feedback/{channel}` and `POST /feedback`: a device answers for an event, or for many.

This is the most frequent request of all, ten thousand for one event: what can be remembered of the last one is.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import orjson

from pere.config import Config
from pere.door import Ask
from pere.errors import BadRequest, Conflict, NotFound, Refusal, TooLarge, WrongType
from pere.event import format_id, parse_id
from pere.handlers.base import NO_QUERY, Query, channel_of, device_of, event_id, loads, media_type
from pere.names import channel_name, device_name, shown
from pere.receipt import CONFLICT, DUPLICATE, LATE_FIRST, NAMES, OUTCOMES, PROCESSED, state_code
from pere.shape import Again
from pere.storage import Store

VARYING = (b"device", b"last-event-id")  # what differs from one receipt of a device fleet to the next
MAX_REMEMBERED = 1024
FORM = "application/x-www-form-urlencoded"

# What is told, by state and outcome, and as bytes.
TOLD: list[list[dict[str, object]]] = [
    [{"state": state, "duplicate": outcome == DUPLICATE} | ({"late": True} if outcome == LATE_FIRST else {}) for outcome in range(len(OUTCOMES))]
    for state in NAMES
]
ANSWERS = [[orjson.dumps(told) for told in row] for row in TOLD]


class Said:
    """What a body or a query says: each part is None where it says nothing."""

    __slots__ = ("device", "event_id", "state", "status")

    def __init__(self, device: str | None, event_id: int | None, state: int | None, status: bytes | None):
        self.device = device
        self.event_id = event_id
        self.state = state
        self.status = status


NOTHING = Said(None, None, None, None)


class Feedback:
    """The two ways to give receipts. Both make Receipts and hand them to the store."""

    def __init__(self, store: Store, config: Config):
        self._store = store
        self._config = config
        # Devices mostly say the same words, so what was read is remembered: at most MAX_REMEMBERED times `max_body` bytes.
        self._remembered = lru_cache(maxsize=MAX_REMEMBERED)(self._read)

    def one(self, ask: Ask) -> None:
        channel = channel_of(ask.path)
        headers, body = ask.headers, ask.body
        said = NOTHING
        if body:
            kind = headers.get(b"content-type", b"")
            said = self._remembered(body, kind)
        raw = headers.get(b"last-event-id") or headers.get(b"last_event_id")
        id = event_id(raw) if raw else said.event_id
        device = headers.get(b"device", b"").decode("latin-1") or said.device
        state, status = said.state, said.status
        if ask.query:
            asked = self._fields(Query(ask.query))
            id = id if id is not None else asked.event_id
            device = device or asked.device
            state = state if state is not None else asked.state
            status = status if status is not None else asked.status
        if not device:
            raise BadRequest("no_device", "say who you are: a Device header, or ?device=")
        if id is None:
            raise BadRequest("no_event_id", "say which event: a Last-Event-ID header, or event_id in query, form or JSON")

        def then(state: int, outcome: int) -> None:
            if outcome == CONFLICT:
                ask.refuse(_conflict(state))
            else:
                ask.answer(200, ANSWERS[state][outcome])

        try:
            self._store.record(channel, device, id, PROCESSED if state is None else state, status, then, ask.refuse)
        except NotFound:
            # Only now does it matter whether that could be a device at all: one that is known has been checked.
            device_name(device)
            raise

    def again(self, ask: Ask) -> Again | None:
        """For the requests that will differ from this one only in device, event and body: what is the same is looked up now."""
        if ask.query:
            return None
        try:
            channel = channel_of(ask.path)
        except BadRequest:
            return None  # which was its answer, and will be that of the next one
        kind = ask.headers.get(b"content-type", b"")
        record, remembered = self._store.record, self._remembered

        def answer(values: tuple[bytes, ...], then: Callable[[int, bytes], None], refused: Callable[[Refusal], None]) -> None:
            device, id, _, body = values
            said = remembered(body, kind) if body else NOTHING

            def recorded(state: int, outcome: int) -> None:
                if outcome == CONFLICT:
                    then(409, _conflict(state).body())
                else:
                    then(200, ANSWERS[state][outcome])

            record(channel, device.decode(), event_id(id), PROCESSED if said.state is None else said.state, said.status, recorded,
                   refused)

        return answer

    def _read(self, body: bytes, kind: bytes) -> Said:
        """What a body of this Content-Type says."""
        media = kind.decode("latin-1").partition(";")[0].strip().lower()
        if media == "application/json" or media in ("", FORM) and body.lstrip().startswith(b"{"):
            fields = loads(body, "the body")
            if not isinstance(fields, dict):
                raise BadRequest("bad_json", 'a receipt is an object such as {"state": "processed"}')
            return self._object(fields)
        if media in ("", FORM):
            return self._fields(Query(body, "the form"))
        raise WrongType("wrong_type", f"a receipt is a form or application/json, not {shown(media)}")

    def _fields(self, fields: Query) -> Said:
        id, state, status = fields.one("event_id"), fields.one("state"), fields.one("status")
        return Said(fields.one("device"), parse_id(id) if id else None, state_code(state) if state else None,
                    self._status(status) if status else None)

    def _object(self, fields: dict[str, Any]) -> Said:
        for name in ("device", "event_id", "state"):
            if not isinstance(fields.get(name, ""), str):
                raise BadRequest("bad_receipt", f'"{name}" is a string')
        id, state, status = fields.get("event_id"), fields.get("state"), fields.get("status")
        return Said(fields.get("device"), parse_id(id) if id else None, state_code(state) if state else None,
                    self._status(status) if status is not None else None)

    def _status(self, status: Any) -> bytes:
        """The device's own word, as JSON."""
        word = orjson.dumps(status)
        if len(word) > self._config.max_status_bytes:
            raise BadRequest("large_status", f"a status has at most {self._config.max_status_bytes} bytes as JSON, not {len(word)}")
        return word

    def many(self, ask: Ask) -> None:
        query = Query(ask.query) if ask.query else NO_QUERY
        kind = media_type(ask)
        if kind not in ("", "application/json", FORM):
            raise WrongType("wrong_type", f"many receipts are application/json, not {shown(kind)}")
        fields = loads(ask.body, "the body")
        if not isinstance(fields, dict):
            raise BadRequest("bad_json", 'the body is an object with "receipts" or "up_to"')
        device = device_of(ask, query) or fields.get("device")
        if not device or not isinstance(device, str):
            raise BadRequest("no_device", "say who you are: a Device header, ?device= or \"device\"")
        device_name(device)
        if "up_to" in fields:
            items: Any = self._up_to(device, fields)
        else:
            items = fields.get("receipts")
            if not isinstance(items, list):
                raise BadRequest("bad_receipts", '"receipts" is a list of {"event_id", "state"?, "status"?}')
            if len(items) > self._config.max_batch:
                raise TooLarge("large_batch", f"a batch has at most {self._config.max_batch} receipts, not {len(items)}")
        results: list[Any] = [None] * len(items)
        left = len(items)

        def done(place: int, result: dict[str, object]) -> None:
            nonlocal left
            results[place] = result
            left -= 1
            if not left:
                ask.answer(200, orjson.dumps({"results": results}))

        if not items:
            ask.answer(200, b'{"results":[]}')
        for place, item in enumerate(items):
            try:
                id, said, status = self._item(item)

                def then(state: int, outcome: int, place: int = place, id: int = id) -> None:
                    told = _conflict(state).as_dict() | {"status": 409} if outcome == CONFLICT else TOLD[state][outcome]
                    done(place, {"event_id": format_id(id)} | told)

                def refused(refusal: Refusal, place: int = place, id: int = id) -> None:
                    done(place, {"event_id": format_id(id), "status": refusal.status} | refusal.as_dict())

                self._store.record(None, device, id, said, status, then, refused)
            except Refusal as refusal:
                named = item.get("event_id") if isinstance(item, dict) else None
                done(place, {"event_id": named if isinstance(named, str) else None, "status": refusal.status} | refusal.as_dict())

    def _item(self, item: Any) -> tuple[int, int, bytes | None]:
        """The event id, state and status of an item."""
        if not isinstance(item, dict):
            raise BadRequest("bad_receipt", 'a receipt is an object with "event_id"')
        said = self._object(item)
        if said.event_id is None:
            raise BadRequest("no_event_id", 'a receipt names its "event_id"')
        return said.event_id, PROCESSED if said.state is None else said.state, said.status

    def _up_to(self, device: str, fields: dict[str, Any]) -> list[dict[str, str]]:
        """Everything up to an id that the device still owes, as `delivered`: it has it, but nobody can have worked on all that."""
        if fields.get("state", "delivered") != "delivered":
            raise BadRequest("bad_up_to", "up_to can only say delivered")
        if not isinstance(fields["up_to"], str) or not isinstance(fields.get("channel"), str):
            raise BadRequest("bad_up_to", 'up_to is an event id, and "channel" says of which channel')
        channel, last = channel_name(fields["channel"]), parse_id(fields["up_to"])
        return [{"event_id": format_id(id), "state": "delivered"} for id in self._store.pending(channel, device, last)]


def _conflict(state: int) -> Refusal:
    return Conflict("conflict", f"this device has already said {NAMES[state]}, and the first word stands")
