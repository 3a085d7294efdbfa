"""An example of everything that has a name in the descriptions: one order, its devices, and a webhook that hears of it."""

from typing import Any

import orjson

from pere.sse import frame, retry

ID, LATER = "1764100000123-0", "1764100003456-0"
TIME, SOON, NEXT_DAY = "2025-11-25T19:46:40.123Z", "2025-11-25T19:46:40.198Z", "2025-11-26T19:46:40.123Z"
HOOK, URL, SECRET = "wh_2b7e151628aed2a6", "https://example.com/receipts", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

EVENT = {"id": ID, "channel": "orders", "type": "created", "time": TIME, "data": {"order": 1, "dish": "minestrone"}}
COUNTS = {"pending": 1, "sent": 0, "delivered": 0, "expired": 0, "cancelled": 0, "processed": 2, "failed": 0}
LATENCY = {"p50": 0.075, "p90": 0.12, "p99": 0.12}
REFUSED = {"error": "bad_channel", "message": "a channel is 1 to 128 of A-Z a-z 0-9 _ . : ~ -, not 'or ders'"}
TOLD = {"state": "processed", "duplicate": False}
LINE = {"device": "kitchen", "state": "processed", "status": "printed", "attempt": 1, "late": False, "sent_at": TIME, "receipt_at": SOON, "latency": 0.075, "online": True}
ASKED = {"types": ["pere.event.completed", "pere.event.expired"], "channels": ["orders.*"], "content_type": "application/json"}
ENDPOINT = {"id": HOOK, "url": URL, **ASKED, "state": "active", "created": TIME, "trouble": None, "failures": 0, "next_try": None, "queued": 0, "dropped": 0, "dead": 0}
RECEIPT = {"id": "17", "event_id": ID, "channel": "orders", "device": "kitchen", "state": "processed", "status": "printed", "late": False, "at": SOON, "latency": 0.075}
SUMMARY = {"id": ID, "channel": "orders", "type": "created", "time": TIME, "publisher": "shop", "audience": 3, "need": 2, "satisfied": True, "complete": False, "outstanding": 1,
           "counts": COUNTS, "latency": LATENCY}
FINISHED = SUMMARY | {"complete": True, "outstanding": 0, "counts": COUNTS | {"pending": 0, "processed": 3}}
ACCEPTED = {"id": ID, "channel": "orders", "audience": 3}
HELLO = {"device": "kitchen", "position": "1764100000000-0", "feedback": "/feedback/orders", "ack_wait": None, "window": None, "receipt_jitter": 0.0, "heartbeat": 20.0}
FOLLOWING = {"channel": "orders", "position": "16"}


def _stream(*frames: tuple[str, str, Any]) -> str:
    """What is on a feed when it has opened: the id, the name and the data of each frame."""
    return (retry(3.0) + b"".join(frame(orjson.dumps(data), id=id.encode(), event=event.encode()) for id, event, data in frames)).decode()


SCHEMAS: dict[str, Any] = {
    "Channel": "orders",
    "Device": "kitchen",
    "Somebody": "kitchen",
    "Pattern": "orders.*",
    "EventType": "created",
    "EventId": ID,
    "Time": TIME,
    "Error": REFUSED,
    "State": "processed",
    "Need": "90%",
    "Accepted": ACCEPTED,
    "Pushed": ACCEPTED,
    "Push": {"channel": "orders", "data": {"order": 1}, "to": ["kitchen"]},
    "PushResults": {"results": [ACCEPTED, REFUSED | {"status": 400}]},
    "ItemError": REFUSED | {"status": 400},
    "Event": EVENT,
    "Payloads": [EVENT["data"]],
    "Events": {"events": [EVENT], "after": ID, "more": False},
    "Recalled": {"id": ID, "channel": "orders", "cancelled": 1},
    "Receipt": {"event_id": ID, "state": "processed", "status": "printed"},
    "Told": TOLD,
    "Receipts": {"receipts": [{"event_id": ID}]},
    "ReceiptResults": {"results": [{"event_id": ID, **TOLD},
                                   {"event_id": LATER, "status": 404, "error": "unknown_event", "message": "there is no such event, or this device is not in its audience"}]},
    "Status": {"id": ID, "channel": "orders", "type": "created", "time": TIME, "expires": NEXT_DAY, "publisher": "shop", "recalled": False, "receipt": "processed", "audience": 3,
               "counts": COUNTS, "outstanding": 1, "need": 2, "satisfied": True, "complete": False, "latency": LATENCY},
    "Lines": {"devices": [LINE], "cursor": None},
    "NewWebhook": {"url": URL, **ASKED},
    "WebhookChange": {"state": "paused"},
    "Webhook": ENDPOINT,
    "WebhookWithSecret": ENDPOINT | {"state": "pending", "secret": SECRET},
    "RotatedWebhook": ENDPOINT | {"secret": SECRET, "old_secret_until": NEXT_DAY},
    "Webhooks": {"webhooks": [ENDPOINT]},
    "Tested": {"answered": True, "status": 204, "trouble": None, "seconds": 0.031, "state": "active"},
    "DeadLetters": {"dead": [{"id": LATER, "webhook_id": f"event_{ID}_completed", "type": "pere.event.completed", "count": 1, "attempts": 11, "trouble": "status 500", "body": FINISHED}], "after": None},
    "Replay": {"since": TIME},
    "Replayed": {"replayed": 1},
    "Connections": {"orders": 4, "total number": 6},
    "ChannelDevices": {"kitchen": {"op": "feedback", "at": SOON, "Last-Event-Id": ID, "online": True}},
    "Devices": {"devices": [{"device": "kitchen", "online": True, "feeds": 1, "channels": ["orders"], "patterns": ["specials.*"]}], "after": None},
    "Behind": {"feeds": [{"device": "till-12", "channel": "orders", "events": 206, "stuck": 6.1}], "count": 1},
    "Overview": {
        "version": "1.0.0", "time": SOON, "trouble": None, "feeds": {"open": 3, "behind": 0, "receipts": 0}, "devices": {"online": 2, "registered": 3},
        "events": {"accepted": 1, "bytes": 32, "deliveries": 2, "replayed": 0, "redeliveries": 0, "gaps": 0},
        "receipts": {"accepted": 2, "duplicate": 0, "late": 0, "conflict": 0, "outstanding": 1, "oldest": TIME, "expired": 0, "cancelled": 0}, "roundtrip": [[0.075, 1], [0.12, 1]],
        "webhooks": {"endpoints": 1, "failing": 0, "queued": 0, "dead": 0}, "limited": 0, "channels": {"known": 1, "busiest": [{"channel": "orders", "feeds": 3, "devices": 3}]}, "recent": []},
    "Alive": {"status": "alive"},
    "Home": {"message": "PERE server up and running", "version": "1.0.0"},
    "Feed": _stream(("", "pere.hello", HELLO), (ID, "created", EVENT["data"])),
    "ReceiptFeed": _stream(("", "pere.hello", FOLLOWING), ("17", "receipt", RECEIPT)),
    "Metrics": "# HELP pere_feeds Open feeds.\n# TYPE pere_feeds gauge\npere_feeds 3.0\n",
    "OpenAPI": {"openapi": "3.1.0", "info": {"title": "PERE", "version": "1.0.0"}, "paths": {}},
    "AsyncAPI": {"asyncapi": "3.0.0", "info": {"title": "PERE", "version": "1.0.0"}, "channels": {}},
}


def _notice(type: str, id: str, source: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"specversion": "1.0", "id": id, "source": source, "type": f"pere.{type}", "time": SOON, "datacontenttype": "application/json", "data": data}


MESSAGES: dict[str, Any] = {
    "event": {"order": 1, "dish": "minestrone"},
    "envelope": EVENT | {"attempt": 1},
    "hello": HELLO,
    "gap": {"channel": "orders", "from": ID, "to": LATER, "lost": 12},
    "cancel": {"id": ID, "channel": "orders"},
    "bye": {"reason": "drain", "retry": 3.0},
    "receipt": RECEIPT,
    "following": FOLLOWING,
    "receipt_batch": _notice("receipt.batch", "msg_0a1b2c3d4e5f60718293a4b5", "/receipts", {"receipts": [RECEIPT]}),
    "event_satisfied": _notice("event.satisfied", f"event_{ID}_satisfied", f"/events/orders/{ID}", SUMMARY),
    "event_completed": _notice("event.completed", f"event_{ID}_completed", f"/events/orders/{ID}", FINISHED),
    "event_expired": _notice("event.expired", f"event_{ID}_expired", f"/events/orders/{ID}", SUMMARY | {"outstanding": 0, "counts": COUNTS | {"pending": 0, "expired": 1}}),
    "device_connected": _notice("device.connected", "msg_1b2c3d4e5f60718293a4b50a", "/devices", {"devices": [{"device": "kitchen", "at": TIME}]}),
    "device_disconnected": _notice("device.disconnected", "msg_2c3d4e5f60718293a4b50a1b", "/devices", {"devices": [{"device": "kitchen", "at": NEXT_DAY}]}),
    "webhook_disabled": _notice("webhook.disabled", "msg_3d4e5f60718293a4b50a1b2c", f"/webhooks/{HOOK}", {"webhook": HOOK, "url": URL, "trouble": "status 410"}),
    "webhook_verify": _notice("webhook.verify", "msg_4e5f60718293a4b50a1b2c3d", f"/webhooks/{HOOK}", {"webhook": HOOK, "types": ASKED["types"], "channels": ASKED["channels"]}),
}
