"""What each address does, takes and answers, and with which errors it refuses: one Operation for each method of each address.

An error that belongs to a parameter stands with the parameter. What the front door refuses of any request, whatever it is for, is
EVERYWHERE, and stands with none of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pere.auth import ADMIN, ANYBODY, FEED, PUSH
from pere.config import Config
from pere.openapi.codes import Row
from pere.openapi.schemas import Schema, array, ref, seconds, text, whole

JSON, STREAM = "application/json", "text/event-stream"

# Of any request; the codes of the others stand with what they are for.
EVERYWHERE = ("bad_http", "bad_target", "no_host", "bad_host", "repeated_header", "bad_request", "bad_encoding", "bad_query", "foreign_host", "foreign_origin", "not_found", "wrong_method", "slow_request",
              "large_body", "long_line", "content_encoding", "expectation", "too_many_requests", "too_many_connections", "long_headers", "internal", "unknown_method", "transfer_encoding", "upgrade",
              "busy", "http_version")
NEEDS_TOKEN = ("no_token", "two_tokens", "bad_token", "expired_token", "early_token", "wrong_audience", "unknown_key", "revoked_token", "long_token", "not_allowed", "keys_unavailable")
EVENT_CODES = ("unknown_event", "event_gone", "store_failed")


@dataclass(frozen=True)
class Parameter:
    """Something in the path, the query or a header, and the codes for what is wrong with it."""

    name: str
    place: str
    description: str
    schema: Schema
    codes: tuple[str, ...] = ()
    is_list: bool = False

    def document(self) -> Schema:
        return {"name": self.name, "in": self.place, "description": self.description, "schema": self.schema, "required": self.place == "path"} | (
            {"style": "form", "explode": True} if self.is_list else {})


@dataclass(frozen=True)
class Operation:
    """`needs` is what a token must allow; `bodies` are what it takes, by Content-Type; `answers` what it says, by status: a description,
    and by Content-Type what it looks like. With what it answers one can go on at what it `leads_to`."""

    id: str
    summary: str
    needs: str
    answers: dict[int, tuple[str, dict[str, Schema]]]
    codes: tuple[str, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    bodies: dict[str, Schema] = field(default_factory=dict)
    needs_body: bool = True
    headers: dict[int, tuple[str, ...]] = field(default_factory=dict)
    leads_to: tuple[str, ...] = ()

    def all_codes(self) -> set[str]:
        """Those that it may refuse with, beside what is refused everywhere."""
        own = set(self.codes).union(*(parameter.codes for parameter in self.parameters))
        return own.union(NEEDS_TOKEN if self.needs != ANYBODY else ())


def says(description: str, schema: str = "", kind: str = JSON) -> tuple[str, dict[str, Schema]]:
    """A description, and what has a name in `schemas.py`; without one there is no body."""
    return description, {kind: ref(schema)} if schema else {}


def path(name: str, schema: str, *codes: str) -> Parameter:
    return Parameter(name, "path", "", ref(schema), codes)


def query(name: str, description: str, schema: Schema, *codes: str, is_list: bool = False) -> Parameter:
    return Parameter(name, "query", description, schema, codes, is_list)


def header(name: str, description: str, schema: Schema, *codes: str) -> Parameter:
    return Parameter(name, "header", description, schema, codes)


CHANNEL = path("channel", "Channel", "bad_channel")
EVENT = path("id", "EventId", "bad_event_id")
WEBHOOK = Parameter("id", "path", "as `POST /webhooks` told it", text(pattern="^[A-Za-z0-9_-]{1,64}$"), ("unknown_webhook",))
DEVICE_HEADER = header("Device", "who it is, and empty nobody; a token says so by itself", ref("Somebody"), "bad_device", "wrong_device")
DEVICE_QUERY = query("device", "the same, for who cannot set headers; empty is nobody", ref("Somebody"))
AFTER: Schema = {"anyOf": [ref("EventId"), {"const": ""}]}
CURSOR = header("Last-Event-ID", "what was read up to", ref("EventId"), "bad_event_id")


def page(most: int, usual: int) -> Parameter:
    return query("limit", "how many at most", whole(1, most, default=usual), "bad_limit")


def operations(config: Config) -> dict[tuple[str, str], Operation]:
    """By method and path."""
    return _publishing(config) | _feeds(config) | _receipts(config) | _events(config) | _webhooks() | _administration(config) | _server()


def _publishing(config: Config) -> dict[tuple[str, str], Operation]:
    wrong = ("bad_type", "bad_to", "too_many_to", "bad_ttl", "bad_receipt", "bad_need", "need_over_audience", "need_without_receipt", "unknown_callback", "callback_without_receipt",
             "bad_device", "wrong_device", "too_many_pushes", "too_many_channels", "too_many_devices", "store_failed")
    return {
        ("POST", "/push/{channel}"): Operation(
            "push", "Publish one event", PUSH,
            {201: says("It is as safe as the store makes it. With `Prefer: wait`, the delivery status once `need` is decided or the time is over.", "Pushed")},
            (*wrong, "bad_json", "deep_json", "bad_text", "large_event", "wrong_type"),
            (CHANNEL, DEVICE_HEADER, query("type", "the event's name on the feed; empty is none", {"anyOf": [ref("EventType"), {"const": ""}]}), query("to", "only for these devices", array(ref("Device"), maxItems=config.max_to), is_list=True),
             query("ttl", "seconds for which it is sent", whole(0, config.max_ttl, default=config.ttl)),
             query("receipt", "which receipt closes it on a device", text(enum=["none", "delivered", "processed"], default="processed")), query("need", "how many receipts satisfy; empty is all", {"anyOf": [ref("Need"), {"const": ""}]}),
             query("callback", "a webhook that is told what becomes of it", text()), header("traceparent", "the publisher's trace (W3C Trace Context), which goes with the event", text()),
             header("Idempotency-Key", "the same key within some minutes publishes nothing and answers with the first id", text(maxLength=255), "bad_idempotency_key"),
             header("Prefer", f"`wait=N`: answer when `need` is met, or after N seconds, at most {config.max_wait} (RFC 7240)", text(examples=["wait=5"]), "bad_wait")),
            {JSON: {"description": f"any JSON, up to {config.max_event_bytes} bytes", "examples": [{"order": 1, "dish": "minestrone"}]}, "text/plain": text()},
            headers={201: ("Preference-Applied",)}, leads_to=("status", "devices", "recall", "events")),
        ("POST", "/push"): Operation(
            "pushMany", "Publish many events", PUSH, {200: says("A result for each, in order; a bad item spoils no other.", "PushResults")},
            ("bad_json", "bad_item", "large_batch", "wrong_type", "too_many_pushes", "bad_device", "wrong_device", "store_failed"), (DEVICE_HEADER,),
            {JSON: array(ref("Push"), maxItems=config.max_batch), "application/x-ndjson": text("one item a line")}, needs_body=False),
    }


def _feeds(config: Config) -> dict[tuple[str, str], Operation]:
    open_ended = "The feed, for as long as both sides keep it open; `/asyncapi.json` tells what is on it."
    stream = {200: says(open_ended, "Feed", STREAM), 204: says("The device was deleted a moment ago: do not come back.")}
    shared = (DEVICE_HEADER, DEVICE_QUERY, CURSOR, query("last_event_id", "the same, for who cannot set headers", ref("EventId")),
              query("from", "where to begin, without a `Last-Event-ID`: `new`, `all`, or after an id", text(pattern="^(new|all|[0-9]+-[0-9]+)$", default="new")),
              query("format", "`raw`: the payload as it was pushed; `envelope`: with its id, channel, type and time", text(enum=["raw", "envelope"]), "bad_format"),
              query("ack_wait", "send again what is not answered after so many seconds", seconds(0.1, 3600), "bad_ack_wait", "no_device"),
              query("window", "at most so many events that are not answered; 0 is any", whole(0, 10_000), "bad_window", "no_device"))
    full = ("too_many_connects", "too_many_feeds", "too_many_registrations", "too_many_devices", "too_many_channels", "store_failed", "not_ready")
    receipts = (CHANNEL, header("Last-Event-ID", "the id of the last receipt that was read", whole(), "bad_receipt_id"), query("last_event_id", "the same", whole()),
                query("from", "`new`, `all`, or after an id", text(pattern="^(new|all|[0-9]{1,18})$", default="new")))
    return {
        ("GET", "/feed/{channel}"): Operation("feed", "Listen to a channel", FEED, stream, full, (CHANNEL, *shared)),
        ("GET", "/feed"): Operation("feedMany", "Listen to many channels", FEED, stream, (*full, "no_channel", "bad_channel"), (
            query("channel", "a channel or a pattern; again for more", array(ref("Pattern"), minItems=1, maxItems=config.max_feed_channels), is_list=True), *shared)),
        ("GET", "/receipts/{channel}"): Operation("followReceipts", "Follow the receipts of a channel", PUSH, {200: says(open_ended, "ReceiptFeed", STREAM)}, ("too_many_connects", "too_many_feeds", "store_failed", "not_ready"), receipts),
    }


def _receipts(config: Config) -> dict[tuple[str, str], Operation]:
    wrong = ("no_device", "bad_device", "wrong_device", "bad_event_id", "bad_state", "bad_at", "bad_delay", "delay_without_retry", "status_without_receipt", "at_without_receipt", "large_status",
             "bad_json", "deep_json", "bad_receipt", "wrong_type", "too_many_receipts", "too_many_retries", "store_failed")
    form = ref("Receipt")
    return {
        ("POST", "/feedback/{channel}"): Operation(
            "receipt", "Give a receipt", FEED, {200: says("It is as safe as the store makes it.", "Told")}, (*wrong, "no_event_id", "unknown_event", "event_gone", "conflict"),
            (CHANNEL, DEVICE_HEADER, DEVICE_QUERY, CURSOR, query("event_id", "which event, where no header says so", ref("EventId")),
             query("state", "what became of it", text(enum=["delivered", "processed", "failed", "working", "retry"], default="processed")), query("status", "the device's own word", text()),
             query("at", "when the device did it", text(format="date-time")), query("delay", "with `retry`: in how many seconds", seconds(0, 3600))),
            {JSON: form, "application/x-www-form-urlencoded": form}, needs_body=False),
        ("POST", "/feedback"): Operation(
            "receipts", "Give many receipts", FEED, {200: says("A result for each, in order; a wrong one spoils no other.", "ReceiptResults")},
            (*wrong, "bad_receipts", "large_batch", "receipts_and_up_to", "unknown_field", "bad_up_to", "no_channel", "bad_channel", "future_event_id", "unknown_channel", "too_many_open"),
            (DEVICE_HEADER, DEVICE_QUERY), {JSON: ref("Receipts")}),
    }


def _events(config: Config) -> dict[tuple[str, str], Operation]:
    status = query("wait", f"wait for the next change, at most so many seconds and {config.max_wait}", {"anyOf": [{"const": 0}, seconds(0.1, config.max_wait)]}, "bad_wait")
    state = query("state", "only those where it stands so", {"anyOf": [ref("State"), {"const": "outstanding"}]}, "bad_state")
    return {
        ("GET", "/events/{channel}"): Operation("events", "The kept events, oldest first", PUSH, {200: says("A page of them.", "Events")}, ("store_failed",),
                                                (CHANNEL, query("after", "only those after this id; empty is from the first", AFTER, "bad_event_id"), page(1000, 100))),
        ("GET", "/events/{channel}/{id}"): Operation(
            "status", "What became of an event", PUSH, {200: says("The delivery status.", "Status"), 304: says("It is as `If-None-Match` has it.")}, EVENT_CODES,
            (CHANNEL, EVENT, status, header("If-None-Match", "the `ETag` that is known", text())), headers={200: ("ETag",), 304: ("ETag",)}),
        ("DELETE", "/events/{channel}/{id}"): Operation("recall", "Recall an event", PUSH, {200: says("It is not sent any more.", "Recalled")}, EVENT_CODES, (CHANNEL, EVENT)),
        ("GET", "/events/{channel}/{id}/devices"): Operation(
            "devices", "Who has an event, and who has not", PUSH, {200: says("A page, stable while receipts come in.", "Lines")}, EVENT_CODES,
            (CHANNEL, EVENT, state, page(1000, 100), query("cursor", "what the page before gave", text(), "bad_cursor"))),
    }


def _webhooks() -> dict[tuple[str, str], Operation]:
    wrong = ("bad_json", "bad_webhook_url", "insecure_webhook_url", "inside_address", "bad_webhook_types", "bad_webhook_channels", "bad_channel", "bad_webhook_state", "bad_content_type", "unknown_field", "store_failed")
    moment = text(format="date-time")
    return {
        ("GET", "/webhooks"): Operation("webhooks", "All endpoints", ADMIN, {200: says("All of them.", "Webhooks")}),
        ("POST", "/webhooks"): Operation("addWebhook", "Add an endpoint", ADMIN, {201: says("It is there, and is asked to verify.", "WebhookWithSecret")}, (*wrong, "too_many_webhooks"),
                                         bodies={JSON: ref("NewWebhook")}, headers={201: ("Location",)}, leads_to=("webhook", "changeWebhook", "rotateSecret", "deadLetters", "replay", "removeWebhook")),
        ("GET", "/webhooks/{id}"): Operation("webhook", "One endpoint", ADMIN, {200: says("How it stands.", "Webhook")}, (), (WEBHOOK,)),
        ("PATCH", "/webhooks/{id}"): Operation("changeWebhook", "Change an endpoint", ADMIN, {200: says("As it is now.", "Webhook")}, wrong, (WEBHOOK,), {JSON: ref("WebhookChange")}),
        ("DELETE", "/webhooks/{id}"): Operation("removeWebhook", "Remove an endpoint", ADMIN, {204: says("It is gone, with all that waited for it.")}, ("store_failed",), (WEBHOOK,)),
        ("POST", "/webhooks/{id}/rotate"): Operation("rotateSecret", "A new secret", ADMIN, {200: says("For a day the one before signs too.", "RotatedWebhook")}, ("rotating", "store_failed"), (WEBHOOK,)),
        ("POST", "/webhooks/{id}/test"): Operation("testWebhook", "Send a notice now", ADMIN, {200: says("What became of it.", "Tested")}, ("store_failed",), (WEBHOOK,)),
        ("GET", "/webhooks/{id}/dead"): Operation("deadLetters", "What was given up", ADMIN, {200: says("A page, oldest first.", "DeadLetters")}, ("bad_event_id",), (
            WEBHOOK, query("since", "made then or later", moment, "bad_since"), query("until", "made before", moment, "bad_until"), query("after", "what the page before gave", AFTER), page(100, 20))),
        ("POST", "/webhooks/{id}/replay"): Operation("replay", "Send again what was given up", ADMIN, {202: says("So many are queued.", "Replayed")},
                                                     ("bad_json", "bad_replay", "bad_since", "bad_until", "bad_event_id", "unknown_notice", "webhook_disabled", "store_failed"), (WEBHOOK,), {JSON: ref("Replay")}, needs_body=False),
    }


def _administration(config: Config) -> dict[tuple[str, str], Operation]:
    name = path("name", "Device", "bad_device")
    return {
        ("GET", "/admin/overview"): Operation("overview", "How it stands, at a glance", ADMIN, {200: says("What the console shows.", "Overview")}),
        ("GET", "/admin/connections"): Operation("connections", "Open feeds by channel", ADMIN, {200: says("As in 2014.", "Connections")}),
        ("GET", "/admin/behind"): Operation("behind", "Which feeds are not up to date", ADMIN, {200: says("Those first that are furthest behind.", "Behind")}, (), (page(1000, 100),)),
        ("GET", "/admin/events/{channel}"): Operation("payloads", "The payloads that are kept", ADMIN, {200: says("As in 2014.", "Payloads")}, (), (CHANNEL,)),
        ("GET", "/admin/devices"): Operation("allDevices", "Every device by name", ADMIN, {200: says("A page.", "Devices")}, (), (
            query("after", "only those after this name", text()), page(1000, 100))),
        ("GET", "/admin/devices/{name}"): Operation("channelDevices", "The devices of a channel, which is the name here", ADMIN, {200: says("As in 2014.", "ChannelDevices")}, (), (
            path("name", "Channel", "bad_channel"),)),
        ("DELETE", "/admin/devices/{name}"): Operation("removeDevice", "Send a device away and forget it", ADMIN, {204: says("Its feeds are closed, and it is in no audience.")},
                                                       ("unknown_device", "store_failed"), (name, query("revoke", "refuse its tokens too" if config.has_keys else "there are no tokens here", text(enum=["false", "true"] if config.has_keys else ["false"], default="false"), "bad_revoke"))),
        ("GET", "/metrics"): Operation("metrics", "For Prometheus", ADMIN, {200: says("Its text format.", "Metrics", "text/plain")}),
    }


def _server() -> dict[tuple[str, str], Operation]:
    return {
        ("GET", "/healthz"): Operation("alive", "Whether it is alive", ANYBODY, {200: says("It is.", "Alive")}, ("stuck",)),
        ("GET", "/readyz"): Operation("ready", "Whether requests should be sent here", ANYBODY, {200: says("They should.", "Alive")}, ("not_ready",)),
        ("GET", "/"): Operation("home", "That it is running", ANYBODY, {200: says("In the words of 2014.", "Home")}),
        ("GET", "/openapi.json"): Operation("openapi", "This description", ANYBODY, {200: says("OpenAPI 3.1.", "OpenAPI")}),
        ("GET", "/asyncapi.json"): Operation("asyncapi", "What is on feeds and in webhooks", ANYBODY, {200: says("AsyncAPI 3.0.", "AsyncAPI")}),
    }


def codes_of(codes: Iterable[str], table: Iterable[Row]) -> dict[int, list[str]]:
    """These codes by status."""
    wanted = set(codes)
    found: dict[int, list[str]] = {}
    for row in table:
        if those := [code for code in row.codes if code in wanted]:
            found.setdefault(row.status, []).extend(those)
    return dict(sorted(found.items()))
