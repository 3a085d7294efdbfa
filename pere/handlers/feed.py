"""`GET /feed/{channel}` and `GET /feed?channel=...`: a connection becomes a feed."""

from collections.abc import Callable, Collection

from pere import sse
from pere.auth import FEED
from pere.config import Config
from pere.cors import Cors
from pere.devices import REMOVED_FOR
from pere.door import Ask
from pere.errors import BadRequest
from pere.event import ENVELOPE, RAW, UNCHUNKED, parse_id
from pere.gate import Gate
from pere.handlers.base import NO_QUERY, Handler, Query, channel_of, device_of, number, seconds, text
from pere.handlers.reaching import Reaching
from pere.hub import Hub
from pere.limits import CONNECTS, REGISTRATIONS
from pere.names import channel_name, is_pattern, pattern, shown
from pere.remembered import remembered
from pere.search import Search
from pere.storage import Store

MAX_ACK_WAIT = 3600.0  # seconds
MAX_WINDOW = 10_000  # events
PLACES_OF_A_FEED, LOOKS_OF_A_FEED = 20, 500  # channels, and looks for them, that cost as much as to open a feed
HEADERS = b"Content-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\n"


class Opening:
    """How the answer begins to who asks for a feed of any kind."""

    def __init__(self, retry: float, cors: Cors):
        self._cors = cors
        self._retry = sse.retry(retry)
        self._made = remembered(256)(self._make)

    def greet(self, ask: Ask) -> tuple[bytes, int]:
        """The head and `retry:`; and UNCHUNKED if that is how frames are to be written."""
        cors = self._cors.vary
        if b"origin" in ask.headers:
            cors += self._cors(ask.headers[b"origin"])
        return self._made((ask.version, cors))

    def _make(self, asked: tuple[str, bytes]) -> tuple[bytes, int]:
        version, cors = asked
        if version == "1.0":
            return b"HTTP/1.1 200 OK\r\n%b%bConnection: close\r\n\r\n%b" % (HEADERS, cors, self._retry), UNCHUNKED
        return b"HTTP/1.1 200 OK\r\n%b%bTransfer-Encoding: chunked\r\n\r\n%b" % (HEADERS, cors, sse.chunk(self._retry)), 0


class OpenFeed:
    """Checks all that a feed asks for, then hands the connection to the hub. `look_again` raises a Refusal where who was let in would not be any more."""

    def __init__(self, hub: Hub, store: Store, config: Config, cors: Cors, gate: Gate, look_again: Callable[[Ask], None]):
        self._look_again = look_again
        self._gate = gate
        self._hub = hub
        self._store = store
        self._config = config
        self._opening = Opening(config.retry, cors)
        self._reaching = Reaching(store)

    def one(self, ask: Ask) -> None:
        """`GET /feed/{channel}`."""
        self._open(ask, Query(ask.query) if ask.query else NO_QUERY, [channel_of(ask.path)], (), RAW)

    def many(self, ask: Ask) -> None:
        """`GET /feed?channel=...`."""
        query = Query(ask.query)
        asked = dict.fromkeys(query.every("channel"))
        if not asked:
            raise BadRequest("no_channel", "name at least one channel, as in /feed?channel=news")
        if len(asked) > self._config.max_feed_channels:
            raise BadRequest("too_many_channels", f"a feed has at most {self._config.max_feed_channels} channels, not {len(asked)}", whose="request")
        for name in asked:
            if is_pattern(name):
                pattern(name)
        channels = [channel_name(name) for name in asked if not is_pattern(name)]
        patterns = tuple(name for name in asked if is_pattern(name))
        for name in asked:
            ask.grant.check(FEED, name)
        self._open(ask, query, channels, patterns, ENVELOPE if len(asked) > 1 or patterns else RAW)

    def _open(self, ask: Ask, query: Query, channels: list[str], patterns: tuple[str, ...], form: int) -> None:
        device = device_of(ask, query)
        devices = self._store.devices
        if devices.removed and device and devices.removed_since(device, self._store.clock() - REMOVED_FOR):
            # WHATWG 9.2.3: 204 tells an EventSource to stop reconnecting, for good.
            ask.answer(204, b"")
            return
        cursor = cursor_of(ask, query, parse_id)
        start, ack_wait, window = None, 0.0, 0
        if query is not NO_QUERY:
            start, form, ack_wait, window = wishes(query, form)
            if (ack_wait or window) and not device:
                raise BadRequest("no_device", "ack_wait and window count the receipts of a device: say which, by a Device header or ?device=")
        if patterns or self._store.lags(cursor or 0, channels):
            self._begin_when_there(ask, channels, device, patterns, form, start, cursor, ack_wait, window)
        else:
            self._begin(ask, channels, device, patterns, form, start, cursor, ack_wait, window)

    def _begin_when_there(self, ask: Ask, channels: list[str], device: str, patterns: tuple[str, ...], form: int, start: int | None, cursor: int | None,
                          ack_wait: float, window: int) -> None:
        """What the patterns mean is looked for first; and another node may have sent the device something a moment ago, or heard it: that is to be at hand
        here too, or it would come twice."""
        is_later = False

        def begin(named: Collection[str]) -> None:
            if is_later:
                self._look_again(ask)
            self._begin(ask, named, device, patterns, form, start, cursor, ack_wait, window)

        def search_and_begin() -> None:
            if not patterns:
                begin(channels)
                return
            search = Search(self._store, channels, patterns)
            ask.charge(CONNECTS, search.looks // LOOKS_OF_A_FEED)
            self._look(ask, search, lambda: begin(search.found()))

        self._reaching.first(ask, cursor or 0, (*channels, *patterns), search_and_begin)
        is_later = True

    def _begin(self, ask: Ask, named: Collection[str], device: str, patterns: tuple[str, ...], form: int, start: int | None, cursor: int | None,
               ack_wait: float, window: int) -> None:
        """All that can still be refused, first; then the feed."""
        account = ask.account
        self._gate.check_feeds(account)
        registrations, born = self._store.check_room(device, named, patterns)
        if len(named) >= PLACES_OF_A_FEED:
            ask.charge(CONNECTS, len(named) // PLACES_OF_A_FEED)
        if registrations:
            ask.charge(REGISTRATIONS, registrations)
        if born:
            ask.bring([channel for channel in named if not self._store.has(channel)])
        known, meant = self._hub.admit(device, named, patterns)
        greeting, framing = self._opening.greet(ask)
        self._hub.open(ask.outlet(), form | framing, known, meant, patterns, start, cursor, greeting, ack_wait, window, ask.grant.expires, account)

    def _look(self, ask: Ask, search: Search, then: Callable[[], None]) -> None:
        """Look for what the patterns mean, and go on with it, unless the client has gone by then."""
        gone: list[bool] = []
        ask.on_gone(lambda: gone.append(True))

        def some(ask: Ask) -> bool:
            is_more = not gone and search.step()
            if not is_more and not gone:
                then()
            return is_more

        if some(ask):
            ask.go_on(some)


def cursor_of(ask: Ask, query: Query, parse: Callable[[str], int]) -> int | None:
    """What the client has read up to. The header wins: an EventSource moves it, while its URL stays as it was at first."""
    headers = ask.headers
    raw = headers.get(b"last-event-id") or headers.get(b"last_event_id")
    if raw:
        return parse(text(raw, "Last-Event-ID"))
    if query is NO_QUERY:
        return None
    named = query.one("last_event_id")
    return parse(named) if named else None


def wishes(query: Query, form: int) -> tuple[int | None, int, float, int]:
    """Where to begin, in which form (`form` unless it is said), and `ack_wait` (s) and `window` (events), as its query has it."""
    wanted = query.one("format")
    if wanted is not None:
        if wanted not in ("raw", "envelope"):
            raise BadRequest("bad_format", f"format is raw or envelope, not {shown(wanted)}")
        form = ENVELOPE if wanted == "envelope" else RAW
    ack_wait = seconds(word, "ack_wait", MAX_ACK_WAIT) if (word := query.one("ack_wait")) else 0.0
    window = number(word, "window", 0, MAX_WINDOW) if (word := query.one("window")) else 0
    return start_of(query, parse_id), form, ack_wait, window


def start_of(query: Query, parse: Callable[[str], int]) -> int | None:
    """The id after which to begin, by `?from=`: 0 is everything that is kept, None is what is new."""
    word = query.one("from")
    if word is None or word == "new":
        return None
    try:
        return 0 if word == "all" else parse(word)
    except BadRequest as error:
        raise BadRequest(error.code, f"from is new, all or an id, and {error.message}") from None


class FeedHead(Handler):
    """`HEAD /feed/...` and the like: what GET would say, without the feed."""

    methods = "GET, HEAD, OPTIONS"
    store: Store
    config: Config

    def head(self, channel: str | None = None) -> None:  # type: ignore[override]  # what its address holds
        if channel is not None:
            channel_name(channel)
        for line in HEADERS.decode().splitlines():
            name, _, value = line.partition(": ")
            self.set_header(name, value)
        self.finish()
