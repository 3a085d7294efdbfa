"""`POST /feedback`: what a device says of many events.

These loops run once for a receipt where a request of its own costs ten times as much (`bench/micro/receipts.py`), so they take the
common forms as they come; whatever surprises them is left to the Reader, which takes its time and says what is wrong.
"""

import re
from functools import lru_cache
from typing import Any

import orjson

from pere.auth import FEED
from pere.bulk import Bulk
from pere.config import Config
from pere.door import Ask
from pere.errors import BadRequest, NotFound, Refusal, TooLarge, WrongType
from pere.event import format_id, parse_id
from pere.handlers.base import NO_QUERY, Query, device_of, loads, media_type
from pere.handlers.feedback import RESULTS, Feedback
from pere.handlers.said import FORM, Said, not_ahead, time_of
from pere.limits import RECEIPTS
from pere.names import channel_name, device_name, shown
from pere.receipt import DELIVERED, PROCESSED, WORDS, state_code

# Ids as numbers and as text: devices mostly answer for the same events, and a hit costs a tenth of reading one. About 3 MB each when full.
item_id = lru_cache(maxsize=16_384)(parse_id)
text_of = lru_cache(maxsize=16_384)(format_id)

ITEM = '{"event_id":"'  # before the id in a result; RESULTS are what follows it

# Items that were refused, and those that only say how it goes: their places, with the result or the event's id and what was said of it.
Apart = list[tuple[int, str, Said | None]]

# RFC 8259, 2: this and nothing else is space. The body up to the id of its first item, and from behind its last item.
SPACE = " \t\n\r"
BEGIN = re.compile(r'%s\{%s"receipts"%s:%s\[%s(\{%s"event_id"%s:%s")([0-9-]+)"' % ((rf"[{SPACE}]*",) * 8))
END = re.compile(r"%s\]%s\}%s" % ((rf"[{SPACE}]*",) * 3))


def alike(body: bytes) -> tuple[list[str], list[int], dict[str, Any]] | None:
    """The ids of `{"receipts": [...]}`, as text and as numbers, where the items differ in nothing but their `event_id`, which comes first, and
    one of these items; None of any other body, and where that is not sure. Ids hold nothing that could end a string: if one item is an
    object, and between it and the next there is a comma, then so it is of all others, which are the same to the byte."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    begin = BEGIN.match(text)
    following = text.find(begin[1], begin.end()) if begin is not None else -1
    if begin is None or following < 0:
        return None
    opening, between = begin[1], text[begin.end(2) : following]
    closing, _, gap = between.rpartition(",")
    texts = text[begin.start(2) :].split(between + opening)
    texts[-1], quote, end = texts[-1].partition('"')
    end = quote + end
    if gap.strip(SPACE) or not end.startswith(closing) or END.fullmatch(end, len(closing)) is None:
        return None
    try:
        # Of two ids, so that it is not said a second time further on.
        first, second = orjson.loads(f"[{opening}0-0{closing},{opening}0-1{closing}]")
        ids = list(map(item_id, texts))
    except (ValueError, BadRequest):
        return None
    return (texts, ids, first) if (first["event_id"], second["event_id"]) == ("0-0", "0-1") else None


class Many:
    """It makes a Bulk and hands it to the store; what only says how it goes is for the redelivery."""

    def __init__(self, feedback: Feedback, config: Config):
        self._feedback = feedback
        self._store = feedback.store
        self._reader = feedback.reader
        self._config = config

    def many(self, ask: Ask) -> None:
        """Many receipts of one device, or all up to an id."""
        query = Query(ask.query) if ask.query else NO_QUERY
        kind = media_type(ask)
        if kind not in ("", "application/json", FORM):
            raise WrongType("wrong_type", f"many receipts are application/json, not {shown(kind)}")
        found = alike(ask.body)
        fields = {"receipts": found[0]} if found is not None else loads(ask.body, "the body")
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
        ask.charge(RECEIPTS, len(items) - 1)
        if found is None or not self._answer_alike(ask, device, *found):
            self._answer(ask, *self._read(ask, device, items if found is None else orjson.loads(ask.body)["receipts"]))

    def _answer_alike(self, ask: Ask, device: str, texts: list[str], ids: list[int], item: dict[str, Any]) -> bool:
        """Enter the receipts whose items are all like this one; false if they have to be looked at one by one."""
        try:
            said, _ = self._reader.item(item)
            at = not_ahead(said.at, self._store.clock())
        except BadRequest:
            return False
        if not said.is_receipt:
            return False
        self._answer(ask, Bulk.of(device, ids, PROCESSED if said.state is None else said.state, said.status, at), texts, [])
        return True

    def _read(self, ask: Ask, device: str, items: list[Any]) -> tuple[Bulk, list[str], Apart]:
        """The receipts among the items, their ids as they came, and what else there is."""
        now = self._store.clock()
        bulk = Bulk(device, [], [], [], [])
        texts: list[str] = []
        apart: Apart = []
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
                        status = self._reader.status(said)
                        if said.__class__ is str:
                            words[said] = status
                    more -= 1
                if more and (word := item.get("state")) is not None:
                    state = WORDS[word]
                    more -= 1
                if more and (when := item.get("at")) is not None:
                    at = not_ahead(time_of(when), now)
                    more -= 1
                if more:
                    raise KeyError
            except (BadRequest, TypeError, KeyError):
                try:
                    said, id = self._reader.item(item)
                    text = item["event_id"]
                    if not said.is_receipt:
                        apart.append((place, text, said))
                        continue
                    state, status, at = PROCESSED if said.state is None else said.state, said.status, not_ahead(said.at, now)
                except BadRequest as refusal:
                    ask.note(refusal)
                    named = item.get("event_id") if isinstance(item, dict) else None
                    apart.append((place, _spoilt(named if isinstance(named, str) else None, refusal), None))
                    continue
            bulk.ids.append(id)
            bulk.states.append(state)
            bulk.statuses.append(status)
            bulk.times.append(at)
            texts.append(text)
        return bulk, texts, apart

    def _answer(self, ask: Ask, bulk: Bulk, texts: list[str], apart: Apart, end: str = "") -> None:
        """Enter the receipts and answer with a result for each item, in their order."""
        def then(answers: list[tuple[int, int] | Refusal]) -> None:
            if not apart and answers and answers.count(answers[0]) == len(answers) and answers[0].__class__ is tuple:
                same = RESULTS[answers[0]]
                ask.answer(200, f'{{"results":[{ITEM}{(same + "," + ITEM).join(texts)}{same}]{end}}}'.encode())
                return
            results = [
                f"{ITEM}{text}{RESULTS[answer]}" if answer.__class__ is tuple else _spoilt(text, answer)  # type: ignore[arg-type]
                for text, answer in zip(texts, answers, strict=True)
            ]

            def answer() -> None:
                # How it goes counts after what was said beside it.
                for place, text, said in apart:
                    results.insert(place, text if said is None else self._told(ask, bulk.device, text, said))
                ask.answer(200, f'{{"results":[{",".join(results)}]{end}}}'.encode())

            if any(said is not None for _, _, said in apart):
                self._feedback.reaching.first(ask, 0, (), answer)
            else:
                answer()

        self._store.record_many(bulk, then)

    def _told(self, ask: Ask, device: str, text: str, said: Said) -> str:
        """The result of an item that only says how it goes with the event of this id."""
        try:
            return f'{ITEM}{text}{RESULTS[self._feedback.go_on(None, device, item_id(text), said)]}'
        except Refusal as refusal:
            ask.note(refusal)
            return _spoilt(text, refusal)

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
            if id > self._store.newest:
                raise BadRequest("future_event_id", f"there is no event yet that is as new as {last}")
            shelf = self._store.shelf(channel)
            if shelf is None or (device not in shelf.audience.members and device not in shelf.waiting):
                raise NotFound("unknown_channel", "there is no such channel, or this device is not registered on it")
            ids, is_more = self._store.pending(channel, device, id, self._config.max_batch)
            ask.charge(RECEIPTS, len(ids) - 1)
            self._answer(ask, Bulk.of(device, ids, DELIVERED), list(map(text_of, ids)), [], f',"more":{"true" if is_more else "false"}')

        self._feedback.reaching.first(ask, id, (channel,), look)


def _spoilt(named: str | None, refusal: Refusal) -> str:
    """The result of a receipt that was refused."""
    return orjson.dumps({"event_id": named, "status": refusal.status} | refusal.as_dict()).decode()
