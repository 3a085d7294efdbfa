"""`POST /feedback/{channel}` and `POST /feedback`: a device answers for an event, or for many.

This is the most frequent request of all, ten thousand for one event: what can be remembered of the last one is.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any

import orjson

from pere.auth import FEED, Grant, Open
from pere.bearers import Bearers
from pere.config import Config
from pere.door import Ask
from pere.errors import BadRequest, Conflict, NotFound, Refusal, TooLarge, WrongType
from pere.event import format_id, parse_id, parse_time
from pere.guard import bearer_of
from pere.handlers.base import DURATION, NO_QUERY, Query, channel_of, device_of, dumps, event_id, loads, media_type
from pere.handlers.reaching import Reaching
from pere.ledger import Receipt
from pere.limits import RECEIPTS
from pere.names import channel_name, device_name, shown
from pere.receipt import CONFLICT, DELIVERED, DUPLICATE, FIRST, LATE_FIRST, NAMES, OUTCOMES, PROCESSED, RETRY, WORDS, WORKING, state_code
from pere.redelivery import Redelivery
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

ITEM = frozenset(("event_id", "state", "status", "at", "delay"))
MAX_AHEAD = 300.0  # seconds by which a device's clock may be ahead of ours
MAX_DELAY = 3600.0  # seconds

# The id of an item: devices mostly answer for the same events, and a hit costs a tenth of reading it. About 3 MB when full.
item_id = lru_cache(maxsize=16_384)(parse_id)


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


class Feedback:
    """The two ways to give receipts. Both make Receipts and hand them to the store; what only says how it goes is for the redelivery."""

    def __init__(self, store: Store, redelivery: Redelivery, config: Config, bearers: Bearers | None = None):
        self.varying = VARYING if bearers is None else (*VARYING, b"authorization")
        self._bearers = bearers
        self.store = store
        self.reaching = Reaching(store)
        self._redelivery = redelivery
        self._config = config
        # Devices mostly say the same words, so what was read is remembered: at most MAX_REMEMBERED times `max_body` bytes.
        self.remembered = lru_cache(maxsize=MAX_REMEMBERED)(self._read)
        self._alike = lru_cache(maxsize=MAX_REMEMBERED)(self._receipts)

    def forget(self) -> None:
        """What is remembered of how receipts are read was made under other settings."""
        self.remembered.cache_clear()
        self._alike.cache_clear()

    def one(self, ask: Ask) -> None:
        channel = channel_of(ask.path)
        headers, body = ask.headers, ask.body
        said = NOTHING
        if body:
            kind = headers.get(b"content-type", b"")
            said = self.remembered(body, kind)
        raw = headers.get(b"last-event-id") or headers.get(b"last_event_id")
        id = event_id(raw) if raw else said.event_id
        device = ask.grant.named(headers.get(b"device", b"").decode("latin-1"), said.device)
        state, status, at, is_receipt = said.state, said.status, said.at, said.is_receipt
        if ask.query:
            asked = self._fields(Query(ask.query))
            id = id if id is not None else asked.event_id
            device = ask.grant.named(device, asked.device)
            state = state if state is not None else asked.state
            status = status if status is not None else asked.status
            at = at if at is not None else asked.at
            said = Said(None, None, state, status, at, said.delay if said.delay is not None else asked.delay)
            is_receipt = said.is_receipt
        if not device:
            raise BadRequest("no_device", "say who you are: a Device header, or ?device=")
        if id is None:
            raise BadRequest("no_event_id", "say which event: a Last-Event-ID header, or event_id in query, form or JSON")

        def then(state: int, outcome: int) -> None:
            answer = ANSWERED[state, outcome]
            if isinstance(answer, Refusal):
                ask.refuse(answer)
            else:
                ask.answer(200, answer)

        def not_kept(refusal: Refusal) -> None:
            ask.refuse(refused(device, refusal))

        if is_receipt:
            self.store.record(channel, device, id, PROCESSED if state is None else state, status, then, not_kept, self.at(at))
            return
        said.check()

        def go_on() -> None:
            try:
                stands, outcome = self.go_on(channel, device, id, said)
            except NotFound as refusal:
                not_kept(refusal)
            else:
                ask.answer(200, ANSWERS[stands][outcome])

        self.reaching.first(ask, id, (channel,), go_on)

    def again(self, ask: Ask) -> Again | None:
        """For the requests that will differ from this one only in device, event and body: what is the same is looked up now."""
        if ask.query:
            return None
        try:
            channel = channel_of(ask.path)
        except BadRequest:
            return None  # which was its answer, and will be that of the next one
        if self._bearers is not None and (bearer_of(ask) is None or b"cookie" in ask.headers):
            return None  # a token that is not in the header, or may not be there alone, takes the usual way
        return self._alike(channel, ask.headers.get(b"content-type", b""))

    def _receipts(self, channel: str, kind: bytes) -> Again:
        if self._bearers is None:
            return Receipts(self, channel, kind, named, Open)
        return Receipts(self, channel, kind, self._bearers.of(channel), Grant)

    def go_on(self, channel: str | None, device: str, id: int, said: Said) -> tuple[int, int]:
        """The device says how it goes. Returns the state that stands, and DUPLICATE where the device owes nothing any more; raises as
        `Store.record` does."""
        event, state = self.store.standing(channel, device, id)
        if said.state == WORKING:
            is_taken = self._redelivery.working(device, event)
        else:
            is_taken = self._redelivery.retry(device, event, said.delay or 0.0)
        if is_taken and said.state is not None:
            self.store.pass_on(device, event.channel, event.id, said.state, said.delay or 0.0)
        return state, FIRST if is_taken else DUPLICATE

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
                    self._status(status) if status else None, _time(at) if (at := fields.one("at")) else None,
                    _delay(float(delay) if DURATION.fullmatch(delay) else delay) if (delay := fields.one("delay")) else None)

    def _object(self, fields: dict[str, Any]) -> Said:
        for name in ("device", "event_id", "state"):
            if not isinstance(fields.get(name, ""), str):
                raise BadRequest("bad_receipt", f'"{name}" is a string')
        id, state, status = fields.get("event_id"), fields.get("state"), fields.get("status")
        return Said(fields.get("device"), parse_id(id) if id else None, state_code(state) if state else None,
                    self._status(status) if status is not None else None, _time(fields["at"]) if "at" in fields else None,
                    _delay(fields["delay"]) if "delay" in fields else None)

    def at(self, at: float | None) -> float | None:
        return at if at is None else _not_ahead(at, self.store.clock())

    def _status(self, status: Any) -> bytes:
        """The device's own word, as JSON."""
        word = dumps(status, "a status")
        if len(word) > self._config.max_status_bytes:
            raise BadRequest("large_status", f"a status has at most {self._config.max_status_bytes} bytes as JSON, not {len(word)}", whose="request")
        return word

    def many(self, ask: Ask) -> None:
        query = Query(ask.query) if ask.query else NO_QUERY
        kind = media_type(ask)
        if kind not in ("", "application/json", FORM):
            raise WrongType("wrong_type", f"many receipts are application/json, not {shown(kind)}")
        fields = loads(ask.body, "the body")
        if not isinstance(fields, dict):
            raise BadRequest("bad_json", 'the body is an object with "receipts" or "up_to"')
        named = fields.get("device")
        device = ask.grant.named(device_of(ask, query), named if isinstance(named, str) else None)
        if not device:
            raise BadRequest("no_device", "say who you are: a Device header, ?device= or \"device\"")
        device_name(device)
        if "up_to" in fields:
            self._up_to(ask, device, fields)
            return
        items = fields.get("receipts")
        if not isinstance(items, list):
            raise BadRequest("bad_receipts", '"receipts" is a list of {"event_id", "state"?, "status"?, "at"?, "delay"?}')
        if len(items) > self._config.max_batch:
            raise TooLarge("large_batch", f"a batch has at most {self._config.max_batch} receipts, not {len(items)}")
        self._answer(ask, device, items)

    def _answer(self, ask: Ask, device: str, items: list[Any], end: bytes = b"") -> None:
        """Enter the receipts and answer with a result for each, in their order."""
        # This loop runs once for a receipt where a request of its own costs ten times as much (`bench/micro/receipts.py`), so it takes
        # the common forms as they come; whatever surprises it is left to `_item`, which takes its time and says what is wrong.
        ask.charge(RECEIPTS, len(items) - 1)
        now = self.store.clock()
        receipts: list[Receipt] = []
        texts: list[str] = []
        apart: list[tuple[int, str, Said | None]] = []  # what was refused; and what only says how it goes, with its event
        words: dict[str, bytes] = {}
        for place, item in enumerate(items):
            try:
                text = item["event_id"]
                id = item_id(text)
                state, status, at = PROCESSED, None, None
                more = len(item) - 1
                if more and (said := item.get("status")) is not None:
                    status = words.get(said)
                    if status is None:
                        status = self._status(said)
                        if said.__class__ is str:
                            words[said] = status
                    more -= 1
                if more and (word := item.get("state")) is not None:
                    state = WORDS[word]
                    more -= 1
                if more and (when := item.get("at")) is not None:
                    at = _not_ahead(_time(when), now)
                    more -= 1
                if more:
                    raise KeyError
                receipts.append((device, id, state, status, at, None))
                texts.append(text)
            except (BadRequest, TypeError, KeyError):
                try:
                    said, id = self._item(item)
                    if not said.is_receipt:
                        apart.append((place, item["event_id"], said))
                        continue
                    receipts.append((device, id, PROCESSED if said.state is None else said.state, said.status, _not_ahead(said.at, now), None))
                    texts.append(item["event_id"])
                except BadRequest as refusal:
                    ask.note(refusal)
                    named = item.get("event_id") if isinstance(item, dict) else None
                    apart.append((place, _spoilt(named if isinstance(named, str) else None, refusal), None))

        def then(answers: list[tuple[int, int] | Refusal]) -> None:
            results = [
                f'{{"event_id":"{text}"{RESULTS[answer]}' if answer.__class__ is tuple else _spoilt(text, answer)  # type: ignore[arg-type]
                for text, answer in zip(texts, answers, strict=True)
            ]

            def answer() -> None:
                # How it goes counts after what was said beside it.
                for place, text, said in apart:
                    results.insert(place, text if said is None else self._told(ask, device, text, said))
                ask.answer(200, b'{"results":[%b]%b}' % (",".join(results).encode(), end))

            if any(said is not None for _, _, said in apart):
                self.reaching.first(ask, 0, (), answer)
            else:
                answer()

        self.store.record_many(receipts, then)

    def _told(self, ask: Ask, device: str, text: str, said: Said) -> str:
        """The result of an item that only says how it goes with the event of this id."""
        try:
            return f'{{"event_id":"{text}"{RESULTS[self.go_on(None, device, item_id(text), said)]}'
        except Refusal as refusal:
            ask.note(refusal)
            return _spoilt(text, refusal)

    def _item(self, item: Any) -> tuple[Said, int]:
        """What an item among many says, and of which event. Raises BadRequest where it says nothing."""
        if not isinstance(item, dict):
            raise BadRequest("bad_receipt", 'a receipt is an object with "event_id"')
        unknown = item.keys() - ITEM
        if unknown:
            # What is left out has a default, so a slip of the pen would turn a failure into a success.
            raise BadRequest("unknown_field", f'a receipt among many has "event_id", "state", "status", "at" and "delay", and no {shown(min(unknown))}')
        said = self._object(item)
        if said.event_id is None:
            raise BadRequest("no_event_id", 'a receipt names its "event_id"')
        said.check()
        return said, said.event_id

    def _up_to(self, ask: Ask, device: str, fields: dict[str, Any]) -> None:
        """Everything up to an id that the device still owes, as `delivered`: it has it, but nobody can have worked on all that. The id is
        a place in the order of all events, such as `pere.hello` tells it, so it may be of another channel, or of an event long gone."""
        if "receipts" in fields:
            raise BadRequest("receipts_and_up_to", 'the body has either "receipts" or "up_to", not both')
        for name in ("event_id", "status", "at", "delay"):
            if name in fields:
                raise BadRequest("unknown_field", f'"{name}" is said of one event; beside "up_to" there is "channel", and "state" and "device" if need be')
        state, channel, last = fields.get("state", "delivered"), fields.get("channel"), fields["up_to"]
        if not isinstance(state, str) or state_code(state) != DELIVERED:
            raise BadRequest("bad_up_to", f"up_to can only say delivered, not {shown(state)}")
        if not isinstance(channel, str):
            raise BadRequest("no_channel", 'up_to is of one channel: "channel" says which')
        if not isinstance(last, str):
            raise BadRequest("bad_event_id", f"up_to is an event id, not {shown(last)}")
        channel, id = channel_name(channel), parse_id(last)
        ask.grant.check(FEED, channel)

        def look() -> None:
            if id > self.store.newest:
                raise BadRequest("future_event_id", f"there is no event yet that is as new as {last}")
            shelf = self.store.shelf(channel)
            if shelf is None or (device not in shelf.audience.members and device not in shelf.waiting):
                raise NotFound("unknown_channel", "there is no such channel, or this device is not registered on it")
            ids, is_more = self.store.pending(channel, device, id, self._config.max_batch)
            self._answer(ask, device, [{"event_id": format_id(id), "state": "delivered"} for id in ids], b',"more":true' if is_more else b',"more":false')

        self.reaching.first(ask, id, (channel,), look)


class Receipts:
    """What answers recognised receipts on this channel with bodies of this Content-Type; `who` tells whose they are, and a `grant` of whoever that
    is what else a body may call them."""

    def __init__(self, feedback: Feedback, channel: str, kind: bytes, who: Callable[[list[tuple[bytes, ...]]], tuple[list[str | None], list[int]]],
                 grant: type[Grant]):
        self.who = who
        self._grant = grant
        self._feedback = feedback
        self._channel = channel
        self._kind = kind

    def answer(self, names: list[str], requests: list[tuple[bytes, ...]], then: Callable[[list[bytes | Refusal]], None]) -> None:
        # This loop runs once for every receipt. Most say the same of the same event, so what was said is looked up only where it is something else.
        feedback, channel, kind = self._feedback, self._channel, self._kind
        receipts: list[Receipt] = []
        apart: list[tuple[int, bytes | Refusal]] = []
        going: list[tuple[int, str, int, Said]] = []  # what only says how it goes
        last, said, is_plain, state, status, at = None, NOTHING, True, PROCESSED, None, None  # type: bytes | None, Said, bool, int, bytes | None, float | None
        named, id = None, 0  # type: bytes | None, int
        for place, (device, values) in enumerate(zip(names, requests, strict=True)):
            try:
                body = values[-1]
                if body != last:
                    said = feedback.remembered(body, kind) if body else NOTHING
                    last, state, status, at = body, PROCESSED if said.state is None else said.state, said.status, feedback.at(said.at)
                    is_plain = said.is_receipt and not said.device
                if values[1] != named:
                    named, id = values[1], event_id(values[1])
                if not is_plain:
                    self._grant(device).named(device, said.device)
                if is_plain or said.is_receipt:
                    receipts.append((device, id, state, status, at, channel))
                else:
                    said.check()
                    going.append((place, device, id, said))
            except Refusal as refusal:
                last = named = None
                apart.append((place, refusal))

        def go_on(answers: list[tuple[int, int] | Refusal]) -> None:
            # Another node may have sent the event a moment ago.
            feedback.reaching.reach(max(id for _, _, id, _ in going), (channel,), partial(reached, answers))

        def reached(answers: list[tuple[int, int] | Refusal], refusal: Refusal | None) -> None:
            for place, device, id, said in going:
                try:
                    if refusal is not None:
                        raise refusal
                    apart.append((place, ANSWERED[feedback.go_on(channel, device, id, said)]))
                except Refusal as why:
                    apart.append((place, refused(device, why)))
            apart.sort(key=itemgetter(0))
            tell(answers)

        def tell(answers: list[tuple[int, int] | Refusal]) -> None:
            bodies = [ANSWERED[answer] if answer.__class__ is tuple else refused(device, answer)  # type: ignore[arg-type]
                      for answer, (device, *_) in zip(answers, receipts, strict=True)]
            for place, answer in apart:
                bodies.insert(place, answer)
            then(bodies)

        feedback.store.record_many(receipts, go_on if going else tell)


def named(requests: list[tuple[bytes, ...]]) -> tuple[list[str | None], list[int]]:
    """Without tokens, whoever a request says that it is."""
    return [values[0].decode() for values in requests], []


def refused(device: str, refusal: Refusal) -> Refusal:
    """Why a receipt could not be kept. Only now does it matter whether that could be a device at all: one that is known has been checked."""
    if isinstance(refusal, NotFound):
        try:
            device_name(device)
        except BadRequest as wrong:
            return wrong
    return refusal


def _time(text: Any) -> float:
    """When a device did it. Raises BadRequest where that is no time."""
    seconds = parse_time(text) if isinstance(text, str) else None
    if seconds is None:
        raise BadRequest("bad_at", f'"at" is a time such as 2014-12-01T14:28:30.993Z, not {shown(text)}')
    return seconds


def _not_ahead(at: float | None, now: float) -> float | None:
    """The time itself, if a clock that is no more than a little wrong can have said so. Raises BadRequest otherwise."""
    if at is not None and at > now + MAX_AHEAD:
        raise BadRequest("bad_at", f'"at" is {at - now:.0f} s in the future, more than a clock may be wrong ({MAX_AHEAD:.0f} s)')
    return at


def _delay(said: Any) -> float:
    """How long to wait before it is sent again. Raises BadRequest where that is no such time."""
    if said.__class__ not in (int, float) or not 0 <= said <= MAX_DELAY:
        raise BadRequest("bad_delay", f'"delay" is a number of seconds from 0 to {MAX_DELAY:g}, not {shown(said)}')
    return float(said)


def _spoilt(named: str | None, refusal: Refusal) -> str:
    """The result of a receipt that was refused."""
    return orjson.dumps({"event_id": named, "status": refusal.status} | refusal.as_dict()).decode()


def _conflict(state: int) -> Refusal:
    return Conflict("conflict", f"this device has already said {NAMES[state]}, and the first word stands")


# What is answered to a receipt, by the state that stands and the outcome.
ANSWERED: dict[tuple[int, int], bytes | Refusal] = {
    (state, outcome): _conflict(state) if outcome == CONFLICT else ANSWERS[state][outcome] for state in range(len(NAMES)) for outcome in range(len(OUTCOMES))
}

# The rest of a result behind the event id, by the state that stands and the outcome.
RESULTS = {
    (state, outcome): "," + orjson.dumps(_conflict(state).as_dict() | {"status": 409} if outcome == CONFLICT else TOLD[state][outcome]).decode()[1:]
    for state in range(len(NAMES)) for outcome in range(len(OUTCOMES))
}
