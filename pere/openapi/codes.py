"""Every code of an error, with its status and what it means: the README's table is this one, and so is what `/openapi.json` says.

A code is for programs, and never changes. Those of `pere.client` and `pere.webhooks`, which no server gives, are not here.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """Some codes that mean the same."""

    status: int
    codes: tuple[str, ...]
    meaning: str


def _row(status: int, codes: str, meaning: str) -> Row:
    return Row(status, tuple(codes.split()), meaning)


TABLE = (
    _row(400, "bad_channel bad_device bad_type bad_event_id", "this is no such name"),
    _row(400, "bad_json deep_json bad_text bad_encoding bad_query", "the body, path, header or query cannot be read"),
    _row(400, "bad_ttl bad_need bad_wait bad_to bad_receipt bad_item bad_idempotency_key", "a push says what cannot be; `bad_receipt` also a receipt whose fields are of the wrong kind"),
    _row(400, "need_over_audience need_without_receipt too_many_to", "it asks for more receipts than devices, for receipts and none, or names too many devices"),
    _row(400, "no_channel too_many_channels bad_format", "a feed names no channel, too many, or a format that there is not"),
    _row(400, "bad_ack_wait bad_window", "a feed asks for what cannot be; without a device it is `no_device`"),
    _row(400, "no_device no_event_id bad_state bad_at bad_delay delay_without_retry status_without_receipt at_without_receipt unknown_field bad_receipts bad_up_to receipts_and_up_to future_event_id large_status", "a receipt says too little, or what cannot be"),
    _row(400, "bad_receipt_id", "this is no id of a receipt"),
    _row(400, "bad_webhook_url insecure_webhook_url inside_address bad_webhook_types bad_webhook_channels bad_webhook_state bad_content_type", "a webhook's address may not be, or it asks for what cannot be"),
    _row(400, "unknown_callback callback_without_receipt", "a push names a webhook that is not there or was given up, or wants to hear of receipts that it does not ask for"),
    _row(400, "bad_since bad_until bad_replay", "this is no time, or no replay"),
    _row(400, "bad_limit bad_cursor", "this is no page"),
    _row(400, "bad_http bad_target no_host bad_host repeated_header bad_request", "this is not HTTP/1.1, or two readers could read it differently"),
    _row(400, "two_tokens", "a request has several tokens, and they are not the same"),
    _row(400, "bad_revoke", "`revoke` is neither `true` nor `false`, or there are no keys"),
    _row(401, "no_token", "this asks for a token; every 401 has a `WWW-Authenticate: Bearer`"),
    _row(401, "bad_token", "this is no token, its signature is not right, or it says what cannot be"),
    _row(401, "expired_token early_token", "its time is over, or has not come"),
    _row(401, "wrong_audience", "it is for somebody else (`aud`)"),
    _row(401, "unknown_key", "it is signed with a key that is not in the JWKS document"),
    _row(401, "revoked_token", "it was taken back"),
    _row(401, "long_token", "it holds longer than `--jwt-max-age`, or does not say how long"),
    _row(403, "not_allowed", "the token does not allow it"),
    _row(403, "wrong_device", "the token is that of another device"),
    _row(403, "foreign_origin foreign_host", "a web page asks that may not, or under a name that is not this server's"),
    _row(404, "not_found", "there is no such address"),
    _row(404, "unknown_event", "there is no such event; or, for a receipt, the device is not in its audience"),
    _row(404, "unknown_channel", "there is no such channel, or the device is not registered on it"),
    _row(404, "unknown_device", "no such device is registered"),
    _row(404, "unknown_webhook unknown_notice", "there is no such endpoint, or it has no such dead letter"),
    _row(405, "wrong_method", "see `Allow`"),
    _row(408, "slow_request", "headers or body took longer than `--head-timeout` or `--body-timeout`"),
    _row(409, "conflict", "the device has said `processed` and now says `failed`, or the other way round"),
    _row(409, "too_many_open", "too many older events are open before the first that the device has said nothing of: name an id nearer to it"),
    _row(409, "rotating", "the secret before this one still signs"),
    _row(409, "webhook_disabled", "it was given up, so nothing can be replayed to it"),
    _row(410, "event_gone", "the event made way for newer ones, or it expired long ago"),
    _row(413, "large_event large_body large_batch", "over a limit"),
    _row(414, "long_line", "the request line is over `--max-line-bytes`"),
    _row(415, "wrong_type content_encoding", "a Content-Type or Content-Encoding that is not taken here"),
    _row(417, "expectation", "an `Expect` other than `100-continue`"),
    _row(429, "too_many_connects too_many_pushes too_many_receipts too_many_requests", "one client asks more often than it may ([Limits](#limits)); the connection is closed"),
    _row(429, "too_many_registrations too_many_channels", "one client brings new names faster than it may, or has its share: a device of channels, a subject of those that it brought into being"),
    _row(429, "too_many_connections too_many_feeds", "one client has its share of connections or feeds"),
    _row(429, "too_many_retries too_many_webhooks", "a device waits for 1,000 events by `retry` already; there are `--max-webhooks`"),
    _row(431, "long_headers", "the headers are over `--max-header-bytes`"),
    _row(500, "internal", "a mistake of the server, which has logged it"),
    _row(501, "unknown_method transfer_encoding upgrade", "HTTP has it, PERE does not"),
    _row(503, "keys_unavailable", "the JWKS document could not be fetched yet"),
    _row(503, "stuck", "a commit of the store does not end (`/healthz` says so)"),
    _row(503, "store_failed", "the store can keep nothing at present"),
    _row(503, "too_many_connections too_many_feeds too_many_devices too_many_channels too_many_retries busy not_ready", "a limit of the server is reached, or it is about to end"),
    _row(505, "http_version", "it speaks HTTP/1.1 and 1.0"),
)
