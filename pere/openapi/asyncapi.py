"""What is on a feed and in a webhook, which OpenAPI has no words for: `/asyncapi.json` (AsyncAPI 3.0)."""

from typing import Any

import pere
from pere.config import Config
from pere.notice import COMPLETED, CONNECTED, DISCONNECTED, EXPIRED, GIVEN_UP, RECEIPTS, SATISFIED, VERIFY
from pere.openapi.examples import MESSAGES
from pere.openapi.schemas import COUNT, YES, Schema, array, null_or, record, ref, schemas, text

NUMBER = {"type": "number"}
PATH = {"channel": {"description": "where events are pushed to"}}


def asyncapi(config: Config) -> Schema:
    """The feed of events, that of receipts, and what endpoints are posted."""
    frames, notices = _frames(), _notices()
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "PERE", "version": pere.__version__, "license": {"name": "MIT"},
                 "description": "What the server says: the frames of a `text/event-stream`, and notices, signed as Standard Webhooks has it. What it is told is in /openapi.json."},
        "defaultContentType": "application/json",
        "channels": {
            "feed": {"address": "/feed/{channel}", "parameters": PATH, "description": "Control frames have no `id:`; an event has its own.",
                     "messages": {name: _refer(name) for name in ("event", "envelope", "hello", "gap", "cancel", "bye")}},
            "receipts": {"address": "/receipts/{channel}", "parameters": PATH, "messages": {name: _refer(name) for name in ("receipt", "following", "gap", "bye")}},
            "webhook": {"address": None, "description": "An address that `POST /webhooks` named.", "messages": {name: _refer(name) for name in notices}},
        },
        "operations": {name: {"action": "send", "channel": {"$ref": f"#/channels/{name}"}} for name in ("feed", "receipts", "webhook")},
        "components": {
            "schemas": schemas(config),
            "messages": {name: message | {"examples": [{"payload": MESSAGES[name]}]} for name, message in (frames | notices).items()},
        },
    }


def _refer(name: str) -> Schema:
    return {"$ref": f"#/components/messages/{name}"}


def _message(name: str, summary: str, payload: Schema, **more: Any) -> Schema:
    return {"name": name, "summary": summary, "contentType": "application/json", "payload": payload, **more}


def _frames() -> dict[str, Schema]:
    id, moment = ref("EventId"), ref("Time")
    envelope = {"id": id, "channel": ref("Channel"), "type": text(), "time": moment, "attempt": COUNT, "data": {}}
    receipt = {"id": text("a number"), "event_id": id, "channel": ref("Channel"), "device": null_or(ref("Device")), "state": ref("State"), "status": {}, "late": YES, "at": moment, "latency": null_or(NUMBER)}
    gap = {"channel": ref("Channel"), "from": {}, "to": {}, "lost": {"type": ["integer", "null"], "minimum": 0}}
    greeting = {"device": null_or(ref("Device")), "position": id, "feedback": text(), "ack_wait": null_or(NUMBER), "window": null_or(COUNT), "receipt_jitter": NUMBER, "heartbeat": NUMBER}
    return {
        "event": {"name": "message", "summary": "an event of a raw feed: the payload as it was pushed; `event:` is its type, `id:` its id", "contentType": "text/plain", "payload": {}},
        "envelope": _message("message", "an event of an envelope feed; a second attempt has no `id:`", record(envelope, {"traceparent": text("where its push stands in a trace")})),
        "hello": _message("pere.hello", "who the server takes the client for, and where receipts go", record(greeting)),
        "gap": _message("pere.gap", "what will never come", record(gap)),
        "cancel": _message("pere.cancel", "an event was recalled", record({"id": id, "channel": ref("Channel")})),
        "bye": _message("pere.bye", "the server ends the feed", record({"reason": text(enum=["drain", "replaced", "kicked", "expired", "redeliver", "unkept"]), "retry": NUMBER})),
        "receipt": _message("receipt", "what became of an event on a device", record(receipt)),
        "following": _message("pere.hello", "where a feed of receipts begins", record({"channel": ref("Channel"), "position": text("a number")})),
    }


def _notices() -> dict[str, Schema]:
    summary = {"id": ref("EventId"), "channel": ref("Channel"), "type": text(), "time": ref("Time"), "publisher": null_or(text()), "audience": COUNT, "need": COUNT, "satisfied": YES,
               "complete": YES, "outstanding": COUNT, "counts": {"type": "object"}, "latency": {"type": "object"}}
    presence = record({"devices": array(record({"device": ref("Device"), "at": ref("Time")}))})
    data = {
        RECEIPTS: ("receipts were given, or deliveries ended without", record({"receipts": array({"type": "object"})})),
        SATISFIED: ("as many devices have it as were needed", record(summary)),
        COMPLETED: ("every device has answered", record(summary)),
        EXPIRED: ("its time is over while receipts are owed", record(summary)),
        CONNECTED: ("devices opened a feed, and had none", presence),
        DISCONNECTED: ("devices have had no feed for some seconds", presence),
        GIVEN_UP: ("another endpoint was given up", record({"webhook": text(), "url": text(), "trouble": null_or(text())})),
        VERIFY: ("an endpoint was added, or is tested", record({"webhook": text(), "types": array(text()), "channels": array(text())})),
    }
    headers = record({"webhook-id": text("the same each time it is sent"), "webhook-timestamp": text("seconds since 1970"), "webhook-signature": text("`v1,` and a signature, one for each secret")})
    return {type.removeprefix("pere.").replace(".", "_"): _message(type, summary, _cloud_event(type, schema), headers=headers) for type, (summary, schema) in data.items()}


def _cloud_event(type: str, data: Schema) -> Schema:
    """CloudEvents 1.0, JSON format."""
    return record({"specversion": text(enum=["1.0"]), "id": text(), "source": text(), "type": text(enum=[type]), "time": ref("Time"), "data": data}, {"datacontenttype": text(), "traceparent": text()})
