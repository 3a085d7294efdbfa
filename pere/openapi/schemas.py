"""What things look like on the wire, as JSON Schema 2020-12, with the limits that the settings of this server set.

Whatever has a name here has it in the README too. An answer may get further fields with time, so readers must let pass what they do not know.
"""

from typing import Any

from pere.config import Config
from pere.endpoint import ACTIVE, CONTENT_TYPES, DISABLED, PAUSED, PENDING, TYPES
from pere.names import CHANNEL, DEVICE, EVENT_TYPE, PATTERN
from pere.openapi.examples import SCHEMAS
from pere.receipt import NAMES, SENT

Schema = dict[str, Any]

# Milliseconds until the year 2223, and a sequence of 20 bits, which is up to 1048575.
EVENT_ID = "^(0|[1-7][0-9]{12}|[1-9][0-9]{0,11})-(0|[1-9][0-9]{0,5}|10[0-3][0-9]{4}|104[0-7][0-9]{3}|1048[0-4][0-9]{2}|10485[0-6][0-9]|104857[0-5])$"


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def null_or(schema: Schema) -> Schema:
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return schema | {"type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def record(fields: dict[str, Schema], optional: dict[str, Schema] | None = None, **more: Any) -> Schema:
    """An object with all of these fields, and maybe some of the others."""
    return {"type": "object", "required": list(fields), "properties": fields | (optional or {}), **more}


def text(description: str = "", **more: Any) -> Schema:
    return {"type": "string", **({"description": description} if description else {}), **more}


def whole(low: int = 0, high: int | None = None, **more: Any) -> Schema:
    return {"type": "integer", "minimum": low, **({"maximum": high} if high is not None else {}), **more}


def seconds(low: float, high: float, **more: Any) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high, **more}


def name(pattern: Any, description: str) -> Schema:
    return text(description, pattern=f"^{pattern.pattern}$")


YES = {"type": "boolean"}
COUNT = whole()


def schemas(config: Config) -> dict[str, Schema]:
    """All that have a name, by it, each with an example."""
    named = _names() | _pushes(config) | _receipts(config) | _statuses() | _webhooks(config) | _devices() | _texts()
    return {name: schema | {"examples": [SCHEMAS[name]]} for name, schema in named.items()}


def _names() -> dict[str, Schema]:
    return {
        "Channel": name(CHANNEL, "where events are pushed to"),
        "Device": name(DEVICE, "who listens and answers"),
        "Somebody": {"description": "a device, or empty, which is nobody", "anyOf": [ref("Device"), {"const": ""}]},
        "Pattern": name(PATTERN, "a channel, or several: `*` is any run within a dot-separated part, `**` at the end any rest"),
        "EventType": text("the event's name on the feed; those that begin with `pere.` are taken", pattern=f"^(?!pere\\.){EVENT_TYPE.pattern}$"),
        "EventId": text("`<unix ms>-<seq>`, growing over all channels and nodes", pattern=EVENT_ID),
        "Time": text("RFC 3339 in UTC with milliseconds", format="date-time"),
        "Error": record({"error": text("a code, which never changes"), "message": text("what came, and what was wanted")}),
        "State": text("where a delivery stands", enum=sorted({*NAMES, SENT})),
    }


def _pushes(config: Config) -> dict[str, Schema]:
    item = {"type": null_or(ref("EventType")), "to": {"anyOf": [ref("Device"), array(ref("Device"), minItems=1, maxItems=config.max_to), {"type": "null"}]},
            "ttl": null_or(whole(0, config.max_ttl, default=config.ttl)), "receipt": null_or(text(enum=["none", "delivered", "processed"], default="processed")), "need": null_or(ref("Need")),
            "callback": null_or(text("a webhook that is told what becomes of it")), "traceparent": {"description": "W3C Trace Context; what is none counts as not said"}}
    accepted = {"id": ref("EventId"), "channel": ref("Channel"), "audience": whole(description="how many devices it is for", examples=[3])}
    event = {"id": ref("EventId"), "channel": ref("Channel"), "type": text(), "time": ref("Time"), "data": {"description": "the payload; text is a string"}}
    return {
        "Need": {"description": "how many receipts satisfy: a number, a share, or `all`", "anyOf": [whole(), text(pattern="^(all|[0-9]{1,9}|(100|[1-9]?[0-9])%)$")]},
        "Accepted": record(accepted),
        "Pushed": {"description": "`Accepted`; with `Prefer: wait`, `Status`", "anyOf": [ref("Status"), ref("Accepted")]},
        "Push": record({"channel": ref("Channel"), "data": {"description": f"any JSON, up to {config.max_event_bytes} bytes"}}, item, additionalProperties=False),
        "PushResults": record({"results": array({"anyOf": [ref("Accepted"), ref("ItemError")]})}),
        "ItemError": record({"error": text(), "message": text(), "status": whole(400, 599)}),
        "Event": record(event, {"recalled": YES, "traceparent": text()}),
        "Payloads": array({"description": "what was pushed"}),
        "Events": record({"events": array(ref("Event")), "after": null_or(text("to hand in for the next page")), "more": YES}),
        "Recalled": record({"id": ref("EventId"), "channel": ref("Channel"), "cancelled": whole(description="how many devices still owed a receipt")}),
    }


def _receipts(config: Config) -> dict[str, Schema]:
    said = {"state": text("what became of it; `working` and `retry` change no state", enum=["delivered", "processed", "failed", "working", "retry"]),
            "status": {"description": f"the device's own word, any JSON, at most {config.max_status_bytes} bytes"}, "at": text("when the device did it", format="date-time"),
            "delay": seconds(0, 3600, description="with `retry`: in how many seconds")}
    told = {"state": ref("State"), "duplicate": YES}
    many = record({"receipts": array(record({"event_id": ref("EventId")}, said, additionalProperties=False), maxItems=config.max_batch)}, {"device": ref("Somebody")})
    up_to = record({"up_to": ref("EventId"), "channel": ref("Channel")}, {"state": text(enum=["delivered"]), "device": ref("Somebody")})
    return {
        "Receipt": record({}, {"event_id": ref("EventId"), "device": ref("Somebody"), **said}),
        "Told": record(told, {"late": YES}),
        "Receipts": {"oneOf": [many, up_to]},
        "ReceiptResults": record({"results": array({"anyOf": [record({"event_id": {}} | told, {"late": YES}), record({"event_id": {}, "error": text(), "message": text(), "status": whole(400, 599)})]})},
                                 {"more": YES}),
    }


def _statuses() -> dict[str, Schema]:
    moment, share, quantile = null_or(ref("Time")), null_or({"type": "number"}), {"type": "number"}
    status = {
        "id": ref("EventId"), "channel": ref("Channel"), "type": text(), "time": ref("Time"), "expires": ref("Time"), "publisher": null_or(text()), "recalled": YES,
        "receipt": text("which receipt closes it", enum=["none", "delivered", "processed"]), "audience": COUNT,
        "counts": record({state: COUNT for state in sorted({*NAMES, SENT})}, description="they add up to the audience"), "outstanding": COUNT, "need": COUNT, "satisfied": YES,
        "complete": YES, "latency": record({}, {"p50": quantile, "p90": quantile, "p99": quantile}, description="seconds from acceptance to the first receipt; empty before there is one"),
    }
    line = {"device": ref("Device"), "state": ref("State"), "status": {"description": "the device's own word"}, "attempt": COUNT, "late": YES, "sent_at": moment,
            "receipt_at": moment, "latency": share, "online": YES}
    return {
        "Status": record(status),
        "Lines": record({"devices": array(record(line)), "cursor": null_or(text("to hand in for the next page"))}),
    }


def _webhooks(config: Config) -> dict[str, Schema]:
    asked = {"types": array(text(enum=list(TYPES)), minItems=1, maxItems=len(TYPES)), "channels": array(ref("Pattern"), maxItems=100),
             "content_type": text(enum=list(CONTENT_TYPES), default=CONTENT_TYPES[0])}
    url = text("where notices are posted to" + ("" if config.webhook_allow_http else "; https only"), format="uri", examples=["https://example.com/receipts"])
    endpoint = {"id": text(), "url": url, "types": asked["types"], "channels": asked["channels"], "content_type": asked["content_type"], "state": text(enum=[PENDING, ACTIVE, PAUSED, DISABLED]),
                "created": ref("Time"), "trouble": null_or(text("what went wrong last")), "failures": COUNT, "next_try": null_or(ref("Time")), "queued": COUNT, "dropped": COUNT, "dead": COUNT}
    letter = {"id": text(), "webhook_id": text(), "type": text(), "count": COUNT, "attempts": COUNT, "trouble": null_or(text()), "body": {}}
    return {
        "NewWebhook": record({"url": url}, asked, additionalProperties=False),
        "WebhookChange": record({}, {"url": url, **asked, "state": text(enum=[ACTIVE, PAUSED])}, additionalProperties=False),
        "Webhook": record(endpoint),
        "WebhookWithSecret": record(endpoint | {"secret": text("`whsec_...`, told this once")}),
        "RotatedWebhook": record(endpoint | {"secret": text(), "old_secret_until": ref("Time")}),
        "Webhooks": record({"webhooks": array(ref("Webhook"))}),
        "Tested": record({"answered": YES, "status": null_or(whole()), "trouble": null_or(text()), "seconds": {"type": "number"}, "state": text()}),
        "DeadLetters": record({"dead": array(record(letter)), "after": null_or(text())}),
        "Replay": record({}, {"ids": null_or(array(ref("EventId"), minItems=1)), "since": null_or(text(format="date-time")), "until": null_or(text(format="date-time"))}, additionalProperties=False),
        "Replayed": record({"replayed": COUNT}),
    }


def _devices() -> dict[str, Schema]:
    told = {"op": text(enum=["feed", "feedback"]), "at": ref("Time"), "Last-Event-Id": null_or(ref("EventId")), "online": YES}
    device = {"device": ref("Device"), "online": YES, "feeds": COUNT, "channels": array(ref("Channel")), "patterns": array(ref("Pattern"))}
    return {
        "Connections": {"type": "object", "required": ["total number"], "additionalProperties": COUNT},
        "ChannelDevices": {"type": "object", "additionalProperties": record(told)},
        "Devices": record({"devices": array(record(device)), "after": null_or(text())}),
        "Behind": record({"feeds": array(record({"device": null_or(ref("Device")), "channel": null_or(text()), "events": COUNT, "stuck": null_or({"type": "number"})})), "count": COUNT}),
        "Overview": record({"version": text(), "time": ref("Time"), "trouble": null_or(text())} | {part: {"type": "object"} for part in ("feeds", "devices", "events", "receipts", "webhooks", "channels")}
                           | {"roundtrip": array(array({"type": "number"})), "limited": COUNT, "recent": array({"type": "object"})}),
        "Alive": record({"status": text()}),
        "Home": record({"message": text(), "version": text()}),
    }


def _texts() -> dict[str, Schema]:
    """What others have described: streams, the format of Prometheus, and the two descriptions."""
    return {
        "Feed": text("frames of a `text/event-stream`: `feed` in /asyncapi.json"),
        "ReceiptFeed": text("frames of a `text/event-stream`: `receipts` in /asyncapi.json"),
        "Metrics": text("Prometheus' text format"),
        "OpenAPI": {"type": "object", "required": ["openapi", "info", "paths"]},
        "AsyncAPI": {"type": "object", "required": ["asyncapi", "info", "channels"]},
    }
