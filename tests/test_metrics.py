"""What Prometheus reads: the names that were promised, numbers that move as they should, and labels that stay few."""

import asyncio
import time

import pytest
import wire
from prometheus_client.core import CounterMetricFamily
from prometheus_client.parser import text_string_to_metric_families

import pere
from pere.metrics import FAST, Histogram, Scrape

# DESIGN, 8: name, type, labels.
PROMISED = {
    ("pere_feeds", "gauge", ()), ("pere_devices", "gauge", ("state",)), ("pere_channels", "gauge", ()),
    ("pere_feed_opens", "counter", ()), ("pere_feed_closes", "counter", ("reason",)),
    ("pere_events", "counter", ()), ("pere_event_bytes", "counter", ()), ("pere_deliveries", "counter", ()),
    ("pere_fanout_seconds", "histogram", ("le",)), ("pere_publish_seconds", "histogram", ("le",)),
    ("pere_store_commit_seconds", "histogram", ("le",)), ("pere_store_batch_size", "histogram", ("le",)),
    ("pere_feeds_behind", "gauge", ()), ("pere_gaps", "counter", ()), ("pere_replayed_events", "counter", ()),
    ("pere_redeliveries", "counter", ("reason",)), ("pere_receipts", "counter", ("outcome", "state")),
    ("pere_receipt_roundtrip_seconds", "histogram", ("le", "state")), ("pere_outstanding", "gauge", ()),
    ("pere_oldest_outstanding_seconds", "gauge", ()), ("pere_loop_lag_seconds", "histogram", ("le",)),
    ("pere_http_requests", "counter", ("code", "method", "route")), ("pere_build", "info", ("version",)),
}


async def test_every_metric_that_was_promised_is_there_explained_and_of_its_type(ask, push):
    await push("c")
    answer = await ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.body.decode()))
    assert len(families) == len({family.name for family in families})
    assert all(family.documentation for family in families)
    found = {(family.name, family.type if family.name != "pere_build_info" else "info",
              tuple(sorted({label for sample in family.samples for label in sample.labels}))) for family in families}
    found = {("pere_build", kind, labels) if name == "pere_build_info" else (name, kind, labels) for name, kind, labels in found}
    assert PROMISED <= found
    assert any(family.name.startswith("process_") for family in families)


async def test_each_sample_stands_once(ask, push, listen, feedback):
    await listen("c", device="d")
    await feedback("c", "d", await push("c"))
    lines = [line.rpartition(" ")[0] for line in (await ask("GET", "/metrics")).body.decode().splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines))


async def test_events_and_deliveries_are_counted_as_they_happen(measured, push, listen, until, start):
    server = await start()
    feeds = [await listen("c", device="d"), await listen("c", "d"), await listen("other")]
    await push("c", "12345")
    await push("c", "678", to="d")
    await push("nobody", "9")
    for feed, count in zip(feeds, (2, 1, 0), strict=True):
        await feed.events(count)
    metrics = await measured()
    assert {name: metrics[f"pere_{name}"] for name in ("events_total", "event_bytes_total", "deliveries_total", "replayed_events_total", "feeds", "feed_opens_total")} == {
        "events_total": 3, "event_bytes_total": 9, "deliveries_total": 3, "replayed_events_total": 0, "feeds": 3, "feed_opens_total": 3}
    assert (metrics["pere_publish_seconds_count"], metrics["pere_fanout_seconds_count"]) == (3, 2)
    assert metrics["pere_backlog_bytes"] == server.store.bytes > 0
    feeds[0].close()
    await until(lambda: len(server.hub.feeds) == 2)
    again = await listen("c", device="d")
    await again.events(2)
    metrics = await measured()
    assert (metrics["pere_replayed_events_total"], metrics["pere_redeliveries_total", "resume"], metrics["pere_deliveries_total"]) == (2, 2, 3)


async def test_devices_and_channels_are_counted(measured, listen, push, until, start):
    server = await start()
    (await listen("a", device="away")).close()
    await until(lambda: not server.hub.feeds)
    await listen("a", "b", device="here")
    await listen("a", device="here")
    await push("c")
    metrics = await measured()
    assert (metrics["pere_devices", "online"], metrics["pere_devices", "registered"], metrics["pere_channels"], metrics["pere_feeds"]) == (1, 2, 3, 2)


async def test_receipts_are_counted_by_state_and_by_what_became_of_them(start, measured, listen, push, feedback):
    server = await start()
    await listen("c", device="d")
    first, second, short = await push("c"), await push("c"), await push("c", ttl=5)
    for id, state in ((first, "delivered"), (first, "processed"), (first, "processed"), (first, "failed"), (second, "failed")):
        await feedback("c", "d", id, state=state)
    await feedback("c", "stranger", first)
    now = server.store.clock()
    server.store.clock = lambda: now + 10
    server.store.sweep(now + 10, server.hub.is_used)
    await feedback("c", "d", short)
    metrics = await measured()
    counted = {labels[1:]: value for labels, value in metrics.items() if labels[0] == "pere_receipts_total" and value}
    assert counted == {
        ("accepted", "delivered"): 1, ("accepted", "processed"): 1, ("duplicate", "processed"): 1, ("conflict", "failed"): 1,
        ("accepted", "failed"): 1, ("late", "processed"): 1}
    # The round trip is that of the first receipt of each device and event, and no other.
    assert {state: metrics["pere_receipt_roundtrip_seconds_count", state] for state in ("delivered", "processed", "failed")} == {
        "delivered": 1, "processed": 1, "failed": 1}
    assert metrics["pere_expired_total", "ttl"] == 1


async def test_what_is_owed_is_counted_with_the_age_of_the_oldest(start, measured, listen, push, feedback):
    server = await start()
    metrics = await measured()
    assert (metrics["pere_outstanding"], metrics["pere_oldest_outstanding_seconds"]) == (0, 0)
    now = server.store.clock()
    server.store.clock = lambda: now
    await listen("c", device="a")
    await listen("c", device="b")
    old, young = await push("c"), None
    server.store.clock = lambda: now + 50
    young = await push("c")
    server.store.clock = lambda: now + 60
    metrics = await measured()
    assert (metrics["pere_outstanding"], metrics["pere_oldest_outstanding_seconds"]) == (4, pytest.approx(60))
    for device in "ab":
        await feedback("c", device, old)
    metrics = await measured()
    assert (metrics["pere_outstanding"], metrics["pere_oldest_outstanding_seconds"]) == (2, pytest.approx(10))
    await feedback("c", "a", young)
    assert (await measured())["pere_outstanding"] == 1


async def test_requests_are_counted_by_route_method_and_code(measured, ask, listen, push, feedback):
    await listen("c", device="d")
    id = await push("c")
    for _ in range(3):
        await feedback("c", "d", id)
    await feedback("c", "d", id, state="failed")
    await feedback("c", "stranger", id)
    await ask("POST", "/push/a%20b", b"1")
    await ask("POST", "/push", [])
    await ask("POST", "/feedback", {"receipts": []}, Device="d")
    await ask("GET", "/feed?channel=")
    await ask("GET", "/nothing/at/all")
    await ask("DELETE", "/push/c")
    metrics = await measured()
    counted = {labels[1:]: value for labels, value in metrics.items() if labels[0] == "pere_http_requests_total"}
    by = {(route, method, code): counted.get((code, method, route)) for route, method, code in [
        ("/feed/{channel}", "GET", "200"), ("/push/{channel}", "POST", "201"), ("/push/{channel}", "POST", "400"), ("/push", "POST", "200"),
        ("/feedback/{channel}", "POST", "200"), ("/feedback/{channel}", "POST", "409"), ("/feedback/{channel}", "POST", "404"),
        ("/feedback", "POST", "200"), ("/feed", "GET", "400")]}
    assert list(by.values()) == [1, 1, 1, 1, 3, 1, 1, 1, 1], by
    assert sum(value for (code, method, _), value in counted.items() if (method, code) == ("GET", "404")) == 1
    assert sum(value for (code, method, _), value in counted.items() if (method, code) == ("DELETE", "405")) == 1
    again = await measured()
    assert sum(value for labels, value in again.items() if labels[0] == "pere_http_requests_total") == sum(counted.values()) + 1


async def test_receipts_that_are_recognised_by_their_shape_are_counted_too(connect, listen, push, measured):
    await listen("c", device="d")
    ids = [await push("c") for _ in range(10)]
    line = await connect()
    for id in ids:
        await line.send(wire.said("POST", "/feedback/c", b"", {"Device": "d", "Last-Event-ID": id}))
        assert (await line.answer()).status == 200
    metrics = await measured()
    assert (metrics["pere_http_requests_total", "200", "POST", "/feedback/{channel}"], metrics["pere_receipts_total", "accepted", "processed"]) == (10, 10)


async def test_no_label_holds_a_device_a_channel_an_event_or_an_address(ask, listen, push, feedback):
    names = ("secret-channel", "secret-device", "secret-type", "secret-publisher", "secret-path", "secret-key")
    await listen("secret-channel", device="secret-device")
    await listen("secret-channel.*")
    id = await push("secret-channel", type="secret-type", device="secret-publisher", key="secret-key", to="secret-device")
    await feedback("secret-channel", "secret-device", id)
    for method in ("GET", "DELETE"):
        for target in ("/secret-path", "/push/secret-path", "/feed/secret-path/x", f"/events/secret-channel/{id}", "/admin/devices/secret-device"):
            await ask(method, target)
    text = (await ask("GET", "/metrics")).body.decode()
    assert not [name for name in (*names, id) if name in text]


async def test_only_channels_that_were_configured_are_named(start, listen, measured):
    await start(metrics_channels="a, b")
    for channel in ("a", "a", "c", "d"):
        await listen(channel)
    metrics = await measured()
    assert {labels[1]: value for labels, value in metrics.items() if labels[0] == "pere_channel_feeds"} == {"a": 2, "b": 0, "other": 2}


async def test_two_servers_in_one_process_do_not_meet(start, push, measured):
    await start()
    await push("c")
    await start()
    metrics = await measured()
    assert (metrics["pere_events_total"], metrics["pere_build_info", pere.__version__]) == (0, 1)


async def test_why_feeds_were_closed_is_named_from_the_start(measured):
    assert {labels[1] for labels in await measured() if labels[0] == "pere_feed_closes_total"} >= {"gone", "slow", "drain", "replaced", "kicked", "unkept"}


def test_a_histogram_counts_each_value_in_its_bucket_and_all_above():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 7.0):
        histogram.observe(value)
    assert (histogram.buckets(), histogram.total) == ([("1.0", 2), ("2.0", 3), ("+Inf", 4)], 10.0)
    assert list(FAST) == sorted(FAST)


async def test_it_tells_that_it_is_ready_until_it_ends(start, connect, measured):
    server = await start()
    metrics = await measured()
    assert (metrics["pere_ready"], metrics["pere_draining"]) == (1, 0)
    line = await connect()
    await line.send(wire.said("GET", "/metrics"))
    await line.answer()
    server.door.draining = True
    await line.send(wire.said("GET", "/metrics"))
    told = (await line.answer()).body.decode()
    assert "\npere_ready 0.0\n" in told and "\npere_draining 1.0\n" in told


async def test_those_who_ask_soon_after_wait_and_share_one_look_at_everything():
    looks = []

    class Slow:
        """A registry that takes its time, and tells how often it was looked at."""

        def collect(self):
            looks.append(len(looks))
            time.sleep(0.02)
            yield CounterMetricFamily("looks", "How often.", len(looks))

    scrape, started = Scrape(Slow()), asyncio.get_running_loop().time()
    assert b"looks_total 1.0" in await scrape.told()
    told = await asyncio.gather(*(scrape.told() for _ in range(50)))
    assert asyncio.get_running_loop().time() - started > 0.2, "not a tenth of the time is left for others"
    assert set(told) == {told[0]}
    assert b"looks_total 2.0" in told[0]


async def test_a_scrape_that_fails_fails_for_those_who_waited_for_it_and_no_longer(start, ask, caplog):
    server = await start()
    collectors = [collector for collector in server.registry._collector_to_names if type(collector).__name__ == "Collector"]
    broken = collectors[0]._events
    collectors[0]._events = lambda: 1 / 0
    assert (await ask("GET", "/metrics")).error == (500, "internal")
    collectors[0]._events = broken
    assert (await ask("GET", "/metrics")).status == 200
    caplog.clear()
