"""`POST /push/{channel}` and `POST /push`: a publisher pushes an event, or many."""

import asyncio
import json
from collections.abc import Callable, Iterable
from functools import partial
from time import perf_counter
from typing import Any

import orjson

from pere.auth import PUSH, Grant
from pere.config import Config
from pere.door import Ask
from pere.errors import BadRequest, Refusal, TooLarge, WrongType
from pere.event import LEVELS, Draft, format_id
from pere.handlers.base import NO_QUERY, Query, channel_of, device_of, dumps, loads, media_type, number, text
from pere.limits import PUSHES
from pere.names import channel_name, device_name, event_type, shown
from pere.receipt import NONE
from pere.storage import Accepted, Store
from pere.trace import traceparent
from pere.waiting import Waits

JSON_TYPES = frozenset(("application/json", "text/json", "application/cloudevents+json"))
# What curl -d says when nothing is said; such a body is taken if it is JSON.
UNSAID = frozenset(("", "application/x-www-form-urlencoded"))
NAMES_OF_A_PUSH = 10  # devices that `to` names cost as much as a push
NAMES_AT_ONCE = 500  # of a batch, in one piece of work: about a millisecond
ITEMS_AT_ONCE = 250  # events of a batch that are pushed in one turn of the loop: some 8 ms

# Of what a number is made, all of it made one figure; and so many that a float, which holds 15 digits whatever they are, may not be what was written.
FIGURES, MANY = bytes(ord("0" if chr(byte) in "0123456789." else " ") for byte in range(256)), b"0" * 16


class Push:
    """The two ways to publish. Both make Drafts and hand them to the store."""

    def __init__(self, store: Store, waits: Waits, config: Config, on_publish: Callable[[float], None], is_webhook: Callable[[str], bool]):
        self._store = store
        self._is_webhook = is_webhook
        self._waits = waits
        self._waiting: set[asyncio.Task[None]] = set()  # the loop itself holds no task
        self._config = config
        self._on_publish = on_publish

    def one(self, ask: Ask) -> None:
        """`POST /push/{channel}`."""
        started = perf_counter()
        channel = channel_of(ask.path)
        query = Query(ask.query) if ask.query else NO_QUERY
        is_json = self._check_payload(ask.body, media_type(ask))
        draft = self._draft(
            channel, ask.body, is_json, device_of(ask, NO_QUERY), query.one("type"), query.every("to"), query.one("ttl"),
            query.one("receipt"), query.one("need"), _key(ask), query.one("callback"), _trace(ask) if b"traceparent" in ask.headers else "")
        self._charge(ask, [draft.channel], len(draft.to))
        wait = _preferred_wait(ask.headers[b"prefer"], self._config.max_wait) if b"prefer" in ask.headers else None

        def then(result: Accepted | Refusal) -> None:
            if isinstance(result, Accepted):
                self._on_publish(perf_counter() - started)
                if wait is not None:
                    task = asyncio.ensure_future(self._wait(ask, result, channel, wait))
                    self._waiting.add(task)
                    task.add_done_callback(self._waiting.discard)
                    return
                ask.answer(201, orjson.dumps(_told(result, channel)))
            else:
                ask.refuse(result)

        self._store.append(draft, then)

    async def _wait(self, ask: Ask, accepted: Accepted, channel: str, seconds: int) -> None:
        """The answer to a push that waits (RFC 7240, 4.3): once enough devices have answered, with the delivery status."""
        told = _told(accepted, channel)
        try:
            with self._waits.on(channel, accepted.id) as wait:
                ask.on_gone(wait.hang_up)
                await wait.decided(seconds)
                if wait.is_over:
                    return
                told = await self._store.status(channel, accepted.id)
                del told["version"]
        except Refusal:
            pass  # it was published, and has made way by now
        ask.answer(201, orjson.dumps(told), b"Preference-Applied: wait=%d\r\n" % seconds)

    def many(self, ask: Ask) -> None:
        """`POST /push`: a result for each item, in order; a bad one spoils no other."""
        batch = Batch(ask, self._config.max_batch)
        items = batch.items
        publisher, trace = device_of(ask, NO_QUERY), _trace(ask)
        ask.charge(PUSHES, len(items) - 1)
        named = {name for item in items if isinstance(item, dict) and isinstance(name := item.get("channel"), str)}
        self._charge(ask, named, sum(map(_count_names, items)))
        results: list[Any] = [None] * len(items)
        left = len(items)

        def keep(place: int, channel: str) -> Callable[[Accepted | Refusal], None]:
            def then(result: Accepted | Refusal) -> None:
                nonlocal left
                if isinstance(result, Accepted):
                    results[place] = _told(result, channel)
                else:
                    ask.note(result)
                    results[place] = result.as_dict() | {"status": result.status}
                left -= 1
                if not left:
                    ask.answer(200, orjson.dumps({"results": results}))

            return then

        if not items:
            ask.answer(200, b'{"results":[]}')
        todo = enumerate(items)

        def some(ask: Ask) -> bool:
            names = items = 0
            for place, item in todo:
                names += _count_names(item)
                items += 1
                try:
                    draft = self._draft_of(item, publisher, trace, ask.grant, partial(batch.data, place))
                    self._store.append(draft, keep(place, draft.channel))
                except Refusal as refusal:
                    keep(place, "")(refusal)
                if names > NAMES_AT_ONCE or items == ITEMS_AT_ONCE:
                    return True
            return False

        # Most batches are done at once, so what they push to one channel is written to its feeds at once.
        if some(ask):
            ask.go_on(some)

    def _charge(self, ask: Ask, channels: Iterable[str], names: int) -> None:
        """What it costs beside the push itself: channels that nobody has used, and devices that it names."""
        ask.bring([channel for channel in channels if not self._store.has(channel)])
        ask.charge(PUSHES, names // NAMES_OF_A_PUSH)

    def _draft_of(self, item: Any, publisher: str, trace: str, grant: Grant, read_data: Callable[[], bytes]) -> Draft:
        if isinstance(item, BadRequest):
            raise item
        if not isinstance(item, dict) or not isinstance(item.get("channel"), str) or "data" not in item:
            raise BadRequest("bad_item", 'an item is an object with "channel" and "data"')
        unknown = item.keys() - {"channel", "data", "type", "to", "ttl", "receipt", "need", "callback", "traceparent"}
        if unknown:
            raise BadRequest("bad_item", f"an item has no {shown(min(unknown))}")
        channel = channel_name(item["channel"])
        grant.check(PUSH, channel)
        to = item.get("to")
        if isinstance(to, str):
            to = [to]
        if isinstance(to, list):
            self._check_names(to)  # before each of them is looked at
        # An empty list is most likely a mistake of the program that made it; it must not mean everybody.
        if to is not None and not (isinstance(to, list) and to and all(isinstance(name, str) for name in to)):
            raise BadRequest("bad_to", '"to" is a device or a list of at least one')
        data = read_data()
        self._check_size(data)
        word = {name: _word(name, value) for name in ("type", "ttl", "receipt", "need", "callback") if (value := item.get(name)) is not None}
        own = item.get("traceparent")
        return self._draft(channel, data, True, publisher, word.get("type"), to or [], word.get("ttl"),
                           word.get("receipt"), word.get("need"), "", word.get("callback"), traceparent(own) if isinstance(own, str) else trace)

    def _draft(self, channel: str, data: bytes, is_json: bool, publisher: str, type: str | None, to: list[str], ttl: str | None,
               receipt: str | None, need: str | None, key: str, callback: str | None, trace: str) -> Draft:
        config = self._config
        level = LEVELS.get(receipt or "processed")
        if level is None:
            raise BadRequest("bad_receipt", f"receipt is none, delivered or processed, not {shown(receipt or '')}")
        if level == NONE and need is not None:
            raise BadRequest("need_without_receipt", "need counts receipts, and receipt=none asks for none")
        if callback and level == NONE:
            raise BadRequest("callback_without_receipt", "a callback tells what becomes of receipts, and receipt=none asks for none")
        if callback and not self._is_webhook(callback):
            raise BadRequest("unknown_callback", f"callback names a webhook, and there is no {shown(callback)}")
        self._check_names(to)
        return Draft(
            channel=channel, data=data, is_json=is_json, type=event_type(type) if type else "",
            to=tuple(dict.fromkeys(device_name(name) for name in to)),
            ttl=config.ttl if ttl is None else number(ttl, "ttl", 0, config.max_ttl), level=level, need=need, publisher=publisher, key=key,
            callback=callback or "", traceparent=trace)

    def _check_names(self, to: list[Any]) -> None:
        if len(to) > self._config.max_to:
            raise BadRequest("too_many_to", f"a push is for at most {self._config.max_to} named devices, not {len(to)}", whose="request")

    def _check_size(self, data: bytes) -> None:
        if len(data) > self._config.max_event_bytes:
            raise TooLarge("large_event", f"an event has at most {self._config.max_event_bytes} bytes, not {len(data)}")

    def _check_payload(self, body: bytes, kind: str) -> bool:
        """Whether a payload is JSON (else it is text); raises if it is neither."""
        self._check_size(body)
        if kind == "text/plain":
            if b"\0" in body:
                raise BadRequest("bad_text", "text cannot hold NUL, which no SSE client could read")
            text(body, "the body")
            return False
        if kind in JSON_TYPES or kind in UNSAID or kind.endswith("+json"):
            loads(body, "the body" if kind in JSON_TYPES else "the body, which without `Content-Type: text/plain` must be JSON,")
            return True
        raise WrongType("wrong_type", f"an event is application/json or text/plain, not {shown(kind)}")


def _word(name: str, value: Any) -> str:
    """A field of an item as it would stand in a query. What is of a wrong kind is quoted, and so is no word of any field."""
    if isinstance(value, str) and name != "ttl" or value.__class__ is int and name in ("ttl", "need"):
        return str(value)
    return shown(value)


def _count_names(item: Any) -> int:
    """How many devices an item of a batch names, whether it is one or not."""
    to = item.get("to") if isinstance(item, dict) else None
    return len(to) if isinstance(to, list) else 0


def _told(accepted: Accepted, channel: str) -> dict[str, object]:
    return {"id": format_id(accepted.id), "channel": channel, "audience": accepted.audience}


def _trace(ask: Ask) -> str:
    """Where the push stands in its publisher's trace; "" if nothing of that is said."""
    raw = ask.headers.get(b"traceparent")
    return traceparent(raw.decode("latin-1")) if raw is not None else ""


def _preferred_wait(prefer: bytes, most: int) -> int | None:
    """The seconds of `Prefer: wait=N` (RFC 7240), at most those that are allowed; None if nothing is said of it. Other preferences are
    none of ours. Raises BadRequest where N is no number."""
    for preference in prefer.decode("latin-1").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            value = value.strip().strip('"')
            if not (value.isascii() and value.isdigit() and len(value) <= 9):
                raise BadRequest("bad_wait", f"Prefer: wait is a whole number of seconds, not {shown(value)}")
            return min(int(value), most)
    return None


def _key(ask: Ask) -> str:
    raw = ask.headers.get(b"idempotency-key", b"")
    if len(raw) > 255 or not raw.isascii():
        raise BadRequest("bad_idempotency_key", "an Idempotency-Key has at most 255 characters of ASCII")
    return raw.decode()


class Batch:
    """A JSON array, or NDJSON, in which a line that is no JSON spoils only itself: there, the item is the refusal. Raises TooLarge where
    there are more than `most`."""

    def __init__(self, ask: Ask, most: int):
        body = ask.body.strip()
        kind = media_type(ask)
        if kind not in UNSAID and kind not in ("application/json", "application/x-ndjson", "application/ndjson", "application/jsonl"):
            raise WrongType("wrong_type", f"a batch is application/json or application/x-ndjson, not {shown(kind)}")
        self._body = body
        self._lines = None if body.startswith(b"[") else [line for line in body.splitlines() if line.strip()]
        self._exact: list[Any] | None = None
        self._is_fine_somewhere: bool | None = None
        items = loads(body, "the body") if self._lines is None else self._lines
        if len(items) > most:
            # Before each line is read: two million of them would take half a second.
            raise TooLarge("large_batch", f"a batch has at most {most} events, not {len(items)}")
        self.items: list[Any] = items if self._lines is None else [_line(line) for line in self._lines]

    def data(self, place: int) -> bytes:
        """The payload of an item, in which no number has lost a digit."""
        data = dumps(self.items[place]["data"], "an item")
        # What was read as a float is written with a point, or with an exponent.
        if b"." in data and self._is_fine(place) or data.find(b"e+") >= 0:
            data = dumps(self._exactly(place)["data"], "an item")
        return data

    def _is_fine(self, place: int) -> bool:
        """Whether a float may not be what was written there; in an array, whether it is in any item."""
        if self._lines is not None:
            return _has_fine(self._lines[place])
        if self._is_fine_somewhere is None:
            self._is_fine_somewhere = _has_fine(self._body)
        return self._is_fine_somewhere

    def _exactly(self, place: int) -> Any:
        """An item, in which each number is its own text. It takes four times as long to read."""
        try:
            if self._lines is not None:
                return _with_numbers_as_written(self._lines[place])
            if self._exact is None:
                self._exact = _with_numbers_as_written(self._body)
            return self._exact[place]
        except RecursionError:
            raise BadRequest("deep_json", "what is nested so deep cannot be read number for number") from None


def _has_fine(text: bytes) -> bool:
    """Whether some number in it may have more digits than a float, or be nearer to zero; where it is only a text that looks like one, nothing is lost but time."""
    return MANY in text.translate(FIGURES) or b"e-" in text or b"E-" in text


def _with_numbers_as_written(body: bytes) -> Any:
    return json.loads(body, parse_int=orjson.Fragment, parse_float=orjson.Fragment)


def _line(line: bytes) -> Any:
    try:
        return loads(line, "the line")
    except BadRequest as refusal:
        return refusal
