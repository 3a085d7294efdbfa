"""`GET /feed/{channel}` and `GET /feed?channel=...`: a connection becomes a feed."""


from pere import sse
from pere.config import Config
from pere.door import Ask
from pere.errors import BadRequest
from pere.event import ENVELOPE, RAW, UNCHUNKED, parse_id
from pere.handlers.base import NO_QUERY, Cors, Handler, Query, channel_of, device_of, text
from pere.hub import Hub
from pere.names import channel_name, is_pattern, pattern, shown
from pere.storage import Store

REMOVED_FOR = 60.0  # seconds in which a removed device that reconnects by itself is told to stop
HEADERS = (b"Content-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\n")


class OpenFeed:
    """Checks all that a feed asks for, then hands the connection to the hub."""

    def __init__(self, hub: Hub, store: Store, config: Config, cors: Cors):
        self._hub = hub
        self._store = store
        self._config = config
        self._cors = cors
        self._retry = sse.retry(config.retry)
        self._retry_chunk = sse.chunk(self._retry)

    def one(self, ask: Ask) -> None:
        self._open(ask, Query(ask.query) if ask.query else NO_QUERY, [channel_of(ask.path)], (), RAW)

    def many(self, ask: Ask) -> None:
        query = Query(ask.query)
        asked = dict.fromkeys(query.every("channel"))
        if not asked:
            raise BadRequest("no_channel", "name at least one channel, as in /feed?channel=news")
        if len(asked) > self._config.max_feed_channels:
            raise BadRequest("too_many_channels", f"a feed has at most {self._config.max_feed_channels} channels, not {len(asked)}")
        for name in asked:
            if is_pattern(name):
                pattern(name)
        channels = [channel_name(name) for name in asked if not is_pattern(name)]
        patterns = tuple(name for name in asked if is_pattern(name))
        self._open(ask, query, channels, patterns, ENVELOPE if len(asked) > 1 or patterns else RAW)

    def _open(self, ask: Ask, query: Query, channels: list[str], patterns: tuple[str, ...], form: int) -> None:
        device = device_of(ask, query)
        cursor = _cursor(ask, query)
        start = _start(query.one("from"))
        wanted = query.one("format")
        if wanted is not None:
            if wanted not in ("raw", "envelope"):
                raise BadRequest("bad_format", f"format is raw or envelope, not {shown(wanted)}")
            form = ENVELOPE if wanted == "envelope" else RAW
        if device and self._store.devices.removed_since(device, self._store.clock() - REMOVED_FOR):
            # WHATWG 9.2.3: 204 tells an EventSource to stop reconnecting, for good.
            ask.answer(204, b"")
            return
        meant = self._hub.admit(device, channels, patterns)
        cors = self._cors(ask.headers[b"origin"]) if b"origin" in ask.headers else b""
        if ask.version == "1.0":
            greeting = b"HTTP/1.1 200 OK\r\n%b%bConnection: close\r\n\r\n%b" % (HEADERS, cors, self._retry)
            form |= UNCHUNKED
        else:
            greeting = b"HTTP/1.1 200 OK\r\n%b%bTransfer-Encoding: chunked\r\n\r\n%b" % (HEADERS, cors, self._retry_chunk)
        self._hub.open(ask.detach(), form, device, meant, patterns, start, cursor, greeting)


def _cursor(ask: Ask, query: Query) -> int | None:
    """What the client has read up to. The header wins: an EventSource moves it, while its URL stays as it was at first."""
    raw = ask.headers.get(b"last-event-id") or ask.headers.get(b"last_event_id")
    named = text(raw, "Last-Event-ID") if raw else query.one("last_event_id")
    return parse_id(named) if named else None


def _start(word: str | None) -> int | None:
    """The id after which to begin: 0 is everything that is kept, None is what is new."""
    if word is None or word == "new":
        return None
    return 0 if word == "all" else parse_id(word)


class FeedHead(Handler):
    """`HEAD /feed/...`: what GET would say, without the feed."""

    methods = "GET, HEAD, OPTIONS"
    store: Store
    config: Config

    def head(self, channel: str = "") -> None:
        if channel:
            channel_name(channel)
        for line in HEADERS.decode().splitlines():
            name, _, value = line.partition(": ")
            self.set_header(name, value)
        self.finish()
