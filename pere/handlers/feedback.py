"""`POST /feedback/{channel}`: a device answers for an event.

This is the most frequent request of all, ten thousand for one event: what can be remembered of the last one is.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from operator import itemgetter

import orjson

from pere.auth import Grant, Open
from pere.bearers import Bearers
from pere.bulk import Receipt
from pere.config import Config
from pere.door import Ask
from pere.errors import BadRequest, Conflict, NotFound, Refusal
from pere.guard import bearer_of
from pere.handlers.base import Query, channel_of, event_id
from pere.handlers.reaching import Reaching
from pere.handlers.said import NOTHING, Reader, Said, not_ahead
from pere.names import device_name
from pere.receipt import CONFLICT, DUPLICATE, FIRST, LATE_FIRST, NAMES, OUTCOMES, PROCESSED, WORKING
from pere.redelivery import Redelivery
from pere.shape import Again
from pere.storage import Store

VARYING = (b"device", b"last-event-id")  # what differs from one receipt of a device fleet to the next
MAX_REMEMBERED = 1024

# What is told, by state and outcome, and as bytes.
TOLD: list[list[dict[str, object]]] = [
    [{"state": state, "duplicate": outcome == DUPLICATE} | ({"late": True} if outcome == LATE_FIRST else {}) for outcome in range(len(OUTCOMES))]
    for state in NAMES
]
ANSWERS = [[orjson.dumps(told) for told in row] for row in TOLD]


class Feedback:
    """It makes a Receipt and hands it to the store; what only says how it goes is for the redelivery."""

    def __init__(self, store: Store, redelivery: Redelivery, config: Config, bearers: Bearers | None = None):
        self.varying = VARYING if bearers is None else (*VARYING, b"authorization")
        self._bearers = bearers
        self.store = store
        self.reaching = Reaching(store)
        self.reader = Reader(config)
        self._redelivery = redelivery
        # Devices mostly say the same words, so what was read is remembered: at most MAX_REMEMBERED times `max_body` bytes.
        self.remembered = lru_cache(maxsize=MAX_REMEMBERED)(self.reader.body)
        self._alike = lru_cache(maxsize=MAX_REMEMBERED)(self._receipts)

    def forget(self) -> None:
        """What is remembered of how receipts are read was made under other settings."""
        self.remembered.cache_clear()
        self._alike.cache_clear()

    def one(self, ask: Ask) -> None:
        """One receipt. Each value is taken from the first that has it: header, body, query."""
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
            asked = self.reader.fields(Query(ask.query))
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
        if self._bearers is not None and (bearer_of(ask.headers) is None or b"cookie" in ask.headers):
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

    def at(self, at: float | None) -> float | None:
        """When a device says that it did it, if that can be. Raises BadRequest."""
        return at if at is None else not_ahead(at, self.store.clock())


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
        """Enter what these devices said, all in one piece of work, and tell once what each is answered."""
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


def _conflict(state: int) -> Refusal:
    return Conflict("conflict", f"this device has already said {NAMES[state]}, and the first word stands")


# What is answered to a receipt, by the state that stands and the outcome.
ANSWERED: dict[tuple[int, int], bytes | Refusal] = {
    (state, outcome): _conflict(state) if outcome == CONFLICT else ANSWERS[state][outcome] for state in range(len(NAMES)) for outcome in range(len(OUTCOMES))
}

# The rest of a result among many, from behind the event's id on, by the state that stands and the outcome.
RESULTS = {
    (state, outcome): '",' + orjson.dumps(_conflict(state).as_dict() | {"status": 409} if outcome == CONFLICT else TOLD[state][outcome]).decode()[1:]
    for state in range(len(NAMES)) for outcome in range(len(OUTCOMES))
}
