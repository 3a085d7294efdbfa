"""What Prometheus reads: a Collector that looks at everybody's plain integers when it is asked, and costs nothing until then.

No label ever holds a device, an event id or an address. A histogram is a list of counts that whoever measures adds one to.
"""

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import mul
from time import perf_counter
from typing import TypeVar

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, Metric

import pere
from pere.config import Config, words
from pere.door import Door
from pere.drain import Drain
from pere.endpoint import ACTIVE, DISABLED, PAUSED, PENDING
from pere.followers import Followers
from pere.gate import Gate
from pere.hub import Hub
from pere.receipt import OUTCOMES, SECONDS, WORDS
from pere.storage import Store
from pere.watchdog import Watchdog
from pere.webhooks import Webhooks

SHARE = 0.1  # of all time may be spent on telling

# The bounds of histograms: of what is over in a moment (s), of what somebody else takes his time for (s), and of how many.
FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
SLOW = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 86_400.0)
SIZES = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000)

Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily)


class Histogram:
    """Counts by upper bound, and the sum of what was counted."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = FAST):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus wants them: each with all below it."""
        return _cumulative(self.bounds, self.counts)


def _cumulative(bounds: Iterable[float], counts: Iterable[int]) -> list[tuple[str, float]]:
    sum, buckets = 0, []
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
        sum += count
        buckets.append((bound, float(sum)))
    return buckets


class Measures:
    """The histograms that only metrics want; whoever measures is handed `observe`."""

    def __init__(self) -> None:
        self.fanout = Histogram()
        self.publish = Histogram()
        self.lag = Histogram()
        self.commit = Histogram()
        self.batch = Histogram(SIZES)
        self.post = Histogram(SLOW)

    def committed(self, seconds: float, size: int) -> None:
        """A commit took so many seconds, for so many events and changes."""
        self.commit.observe(seconds)
        self.batch.observe(size)


class Collector:
    """Reads everybody. `channels` are those that a label may name; `answered` counts what Tornado handlers answered, by route,
    method and status (the door counts the hot ones)."""

    def __init__(self, store: Store, hub: Hub, followers: Followers, door: Door, gate: Gate, webhooks: Webhooks, measures: Measures, channels: frozenset[str],
                 answered: Counter[tuple[str, str, int]], watchdog: Watchdog):
        self._store = store
        self._hub = hub
        self._followers = followers
        self._door = door
        self._gate = gate
        self._webhooks = webhooks
        self._measures = measures
        self._channels = channels
        self._answered = answered
        self._watchdog = watchdog
        self.drain: Drain | None = None  # once the server ends

    def renew(self, config: Config) -> Callable[[], None]:
        """Which channels may be named, as these settings have it (see `reloading.py`)."""
        def renewed() -> None:
            self._channels = words(config.metrics_channels)

        return renewed

    def collect(self) -> Iterator[Metric]:
        """All samples, as prometheus-client asks for them."""
        yield from self._feeds()
        yield from self._events()
        yield from self._receipts()
        yield from self._posts()
        yield from self._process()

    def _feeds(self) -> Iterator[Metric]:
        hub, stand = self._hub, self._store.stand()
        yield GaugeMetricFamily("pere_feeds", "Open feeds.", len(hub.feeds))
        yield GaugeMetricFamily("pere_feeds_behind", "Open feeds that read from the backlog.", hub.channels.behind)
        yield _by(GaugeMetricFamily, "pere_devices", "Devices: online with an open feed, or registered.", "state", {"online": stand.online, "registered": stand.registered})
        yield GaugeMetricFamily("pere_channels", "Channels of which anything is kept.", stand.channels)
        yield CounterMetricFamily("pere_feed_opens", "Feeds opened.", hub.opens)
        yield CounterMetricFamily("pere_feeds_taken_over", "Open feeds, those of receipts included, that went on here from the process before.", hub.taken_over + self._followers.taken_over)
        yield _by(CounterMetricFamily, "pere_feed_closes", "Feeds closed, by reason.", "reason", hub.closes)
        followers = self._followers
        yield GaugeMetricFamily("pere_receipt_feeds", "Open feeds of receipts.", followers.count)
        yield CounterMetricFamily("pere_receipts_written", "Receipts written to feeds of receipts.", followers.written)
        yield _by(CounterMetricFamily, "pere_receipt_feed_closes", "Feeds of receipts closed, by reason.", "reason", followers.closes)
        if self._channels:
            counts = Counter({name if name in self._channels else "other": 0 for name in (*self._channels, "other")})
            for name, channel in hub.channels.items():
                counts[name if name in self._channels else "other"] += channel.feeds
            yield _by(GaugeMetricFamily, "pere_channel_feeds", "Open feeds of the channels that may be named; all others together.", "channel", dict(sorted(counts.items())))

    def _events(self) -> Iterator[Metric]:
        hub, store, measures = self._hub, self._store, self._measures
        yield CounterMetricFamily("pere_events", "Events accepted.", store.events)
        yield CounterMetricFamily("pere_event_bytes", "Bytes of their payloads.", store.event_bytes)
        yield GaugeMetricFamily("pere_backlog_bytes", "Bytes of events that are kept in memory.", store.bytes)
        yield CounterMetricFamily("pere_deliveries", "Events written to a live feed.", hub.broadcast.deliveries)
        yield CounterMetricFamily("pere_replayed_events", "Events written to a feed from the backlog.", hub.replay.events)
        yield _by(CounterMetricFamily, "pere_redeliveries", "Events written to a device again, by reason.", "reason", hub.redelivery.counts)
        yield CounterMetricFamily("pere_gaps", "Gaps that feeds were told of.", hub.replay.gaps + self._followers.gaps)
        yield _histogram("pere_fanout_seconds", "From accepted until the last write of the broadcast, without those of a client with very many feeds, which wait in line.", measures.fanout)
        yield _histogram("pere_publish_seconds", "From a push that was read until the store had it.", measures.publish)
        yield _histogram("pere_store_commit_seconds", "How long a commit took, the wait for the disk included.", measures.commit)
        yield _histogram("pere_store_batch_size", "How many events and changes of states were in a commit.", measures.batch)

    def _receipts(self) -> Iterator[Metric]:
        ledger, stand = self._store.ledger, self._store.stand()
        receipts = CounterMetricFamily("pere_receipts", "Receipts, by what the device said and what became of it.", labels=["state", "outcome"])
        trips = HistogramMetricFamily("pere_receipt_roundtrip_seconds", "From sent until the first receipt, by its state.", labels=["state"])
        for name, code in WORDS.items():
            for outcome, count in zip(OUTCOMES, ledger.receipts[code], strict=True):
                receipts.add_metric([name, outcome], count)
            counts = [0] * (len(SLOW) + 1)
            for seconds, count in zip(SECONDS, ledger.roundtrips[code], strict=True):
                counts[bisect_left(SLOW, seconds)] += count
            total = sum(map(mul, SECONDS, ledger.roundtrips[code]))
            trips.add_metric([name], _cumulative(SLOW, counts), total)
        for word, counts in self._hub.redelivery.asked.items():
            for outcome, count in zip(("accepted", "duplicate"), counts, strict=True):
                receipts.add_metric([word, outcome], count)
        yield receipts
        yield trips
        yield _by(CounterMetricFamily, "pere_expired", "Deliveries that ended without a receipt, by reason.", "reason", ledger.expired)
        yield _by(CounterMetricFamily, "pere_cancelled", "Deliveries that were called off, by reason.", "reason", ledger.cancelled)
        yield GaugeMetricFamily("pere_outstanding", "Receipts that are owed.", stand.outstanding)
        age = max(0.0, self._store.clock() - stand.oldest) if stand.oldest is not None else 0.0
        yield GaugeMetricFamily("pere_oldest_outstanding_seconds", "Age of the oldest event that is still owed a receipt.", age)
        yield CounterMetricFamily("pere_statuses_dropped", "Statuses of receipts that were not kept, for want of room.", ledger.statuses_dropped)

    def _posts(self) -> Iterator[Metric]:
        courier = self._webhooks.courier
        outboxes = courier.outboxes.values()
        states = Counter({PENDING: 0, ACTIVE: 0, PAUSED: 0, DISABLED: 0})
        states.update(endpoint.state for endpoint in self._webhooks.all())
        yield _by(GaugeMetricFamily, "pere_webhook_endpoints", "Endpoints of webhooks, by state.", "state", states)
        yield GaugeMetricFamily("pere_webhook_failing", "Endpoints that did not answer when they were last asked.", sum(bool(each.failures) for each in outboxes))
        yield GaugeMetricFamily("pere_webhook_queued", "Receipts, devices and other notices that wait to be sent.", sum(each.waiting for each in outboxes))
        oldest = min((each.oldest() for each in outboxes if each.waiting), default=0.0)
        age = max(0.0, self._store.clock() - oldest) if oldest else 0.0
        yield GaugeMetricFamily("pere_webhook_oldest_queued_seconds", "Age of the oldest notice that waits to be sent.", age)
        yield GaugeMetricFamily("pere_webhook_dead", "What was given up and can be replayed.", sum(each.dead_count for each in outboxes))
        yield GaugeMetricFamily("pere_webhook_under_way", "Requests to endpoints that are under way.", courier.under_way)
        yield _by(CounterMetricFamily, "pere_webhook_posts", "Requests to endpoints, by what became of them.", "outcome", courier.posts)
        yield CounterMetricFamily("pere_webhook_given_up", "Receipts, devices and other notices that were given up.", courier.buried)
        yield CounterMetricFamily("pere_webhook_dropped", "The same for which a queue had no room.", courier.lost + sum(each.lost for each in outboxes))
        yield _histogram("pere_webhook_post_seconds", "How long endpoints took to answer, or to fail.", self._measures.post)

    def _process(self) -> Iterator[Metric]:
        is_ready = not self._door.draining and self._store.trouble() is None
        yield GaugeMetricFamily("pere_ready", "1 where /readyz says so too: it neither ends, nor is its store in trouble.", is_ready)
        yield GaugeMetricFamily("pere_draining", "1 from the signal that ends it on.", self._door.draining)
        yield _by(CounterMetricFamily, "pere_stuck", "How often the watchdog found something stuck.", "what", self._watchdog.stuck)
        yield GaugeMetricFamily("pere_store_writing_seconds", "For how long the writer of the file has been at the commit that is under way.", self._store.writing)
        drain = self.drain
        yield GaugeMetricFamily("pere_drain_feeds_left", "Feeds that are still to be let go, while it ends.", drain.left if drain is not None else 0)
        yield CounterMetricFamily("pere_drain_feeds_closed", "Feeds that were let go because it ends.", drain.closed if drain is not None else 0)
        yield GaugeMetricFamily("pere_drain_seconds_left", "Until what is under way is cut off, while it ends.", drain.seconds_left if drain is not None else 0)
        yield _histogram("pere_loop_lag_seconds", "How late the wheel turned: for so long the loop was busy.", self._measures.lag)
        requests = CounterMetricFamily("pere_http_requests", "Requests answered.", labels=["route", "method", "code"])
        for key, route in (*self._door.routes.items(), (b"- other", self._door.other)):
            for code, count in route.tally.items():
                requests.add_metric([route.name, key.split()[0].decode(), str(code)], count)
        for (name, method, status), count in self._answered.items():
            requests.add_metric([name, method, str(status)], count)
        yield requests
        limited = CounterMetricFamily("pere_limited", "Refused at a limit, by what it limits and whose it is.", labels=["limit", "whose"])
        for (limit, whose), count in self._gate.limited.items():
            limited.add_metric([limit, whose], count)
        yield limited
        yield InfoMetricFamily("pere_build", "What is running.", {"version": pere.__version__})


def _by(kind: type[Family], name: str, help: str, label: str, counts: Mapping[str, float]) -> Family:
    """A family with one label, and a sample for each of its values."""
    family = kind(name, help, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _histogram(name: str, help: str, histogram: Histogram) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, help, histogram.buckets(), histogram.total)


class Scrape:
    """What `/metrics` tells. To look at everything takes some milliseconds, in which nobody is served, and at most a tenth of all time is given to
    that: who asks sooner waits, and all who wait are told the same. Nobody is told what was so before he asked."""

    def __init__(self, registry: CollectorRegistry):
        self._registry = registry
        self._earliest = 0.0
        self._due: asyncio.Future[bytes] | None = None

    async def told(self) -> bytes:
        """The text format, of a look that was begun after this was asked."""
        loop = asyncio.get_running_loop()
        if self._due is None:
            self._due = loop.create_future()
            loop.call_at(max(self._earliest, loop.time()), self._look)
        return await asyncio.shield(self._due)

    def _look(self) -> None:
        due, self._due = self._due, None
        assert due is not None
        started = perf_counter()
        try:
            due.set_result(generate_latest(self._registry))
        except Exception as error:
            due.set_exception(error)
        self._earliest = asyncio.get_running_loop().time() + (perf_counter() - started) / SHARE


def registry() -> CollectorRegistry:
    """A registry of its own, so that two servers in one process do not meet."""
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    GCCollector(registry=made)
    return made
