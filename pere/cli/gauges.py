"""What a server says of itself, looked at again and again: `/metrics`, and the addresses of administration.

From two looks come rates, and from what a histogram has gained between them the quantiles of just that time.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import aiohttp
import orjson
from prometheus_client.parser import text_string_to_metric_families

from pere.client.http import reason

PATIENCE = 5.0  # seconds for an answer
MOST = 8  # channels, and feeds behind, that are shown
UNIX = "unix:"

# What is counted, by the name that it is shown under; and what stands at a moment.
COUNTED = {"pushes": "pere_events_total", "deliveries": "pere_deliveries_total", "receipts": "pere_receipts_total", "replayed": "pere_replayed_events_total",
           "redelivered": "pere_redeliveries_total", "expired": "pere_expired_total", "refused": "pere_limited_total"}
STANDING = {"feeds": "pere_feeds", "behind": "pere_feeds_behind", "channels": "pere_channels", "outstanding": "pere_outstanding", "oldest": "pere_oldest_outstanding_seconds",
            "webhooks_queued": "pere_webhook_queued", "webhooks_dead": "pere_webhook_dead", "webhooks_failing": "pere_webhook_failing", "memory": "process_resident_memory_bytes"}
MEASURED = {"round_trip": "pere_receipt_roundtrip_seconds", "commit": "pere_store_commit_seconds", "lag": "pere_loop_lag_seconds", "fanout": "pere_fanout_seconds"}


class Look(NamedTuple):
    """What one server said at `at` (monotonic seconds): the sums of samples by name, buckets by name and bound, and the rest as it is."""

    at: float
    sums: defaultdict[str, float]
    labelled: dict[tuple[str, str], float]
    buckets: dict[str, defaultdict[float, float]]
    version: str
    connections: dict[str, int]
    behind: list[dict[str, Any]]


class Away(Exception):
    """Why a server has said nothing; in plain words."""


class Node:
    """One server, which may come and go."""

    def __init__(self, url: str, token: str | None):
        self.url = url.rstrip("/")
        self._base = "http://localhost" if url.startswith(UNIX) else self.url
        self._path = url.removeprefix(UNIX) if url.startswith(UNIX) else None
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None
        self._before: Look | None = None

    async def figures(self) -> dict[str, Any]:
        """What happened since the last time this was asked; without rates, the first time. Raises Away."""
        look, before = await self._look(), self._before
        self._before = look
        return {"url": self.url, **told(before, look)}

    async def _look(self) -> Look:
        if self._session is None:
            connector = aiohttp.UnixConnector(self._path) if self._path is not None else None
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, cookie_jar=aiohttp.DummyCookieJar(), trust_env=True,
                                                  timeout=aiohttp.ClientTimeout(PATIENCE))
        metrics, connections, behind = await asyncio.gather(self._ask("/metrics"), self._ask("/admin/connections"), self._ask(f"/admin/behind?limit={MOST}"))
        try:
            return look_of(metrics.decode(), orjson.loads(connections), orjson.loads(behind)["feeds"])
        except (ValueError, KeyError, TypeError):
            raise Away("what answers there is not PERE") from None

    async def _ask(self, path: str) -> bytes:
        assert self._session is not None
        try:
            async with self._session.get(self._base + path, allow_redirects=False) as answer:
                body = await answer.read()
        except TimeoutError:
            raise Away(f"it does not answer within {PATIENCE:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            raise Away((reason(cause) if isinstance(cause, OSError) else str(cause)) or type(error).__name__) from None
        if answer.status == 200:
            return body
        if answer.status in (401, 403):
            raise Away("it wants a token that may administer (--token, PERE_TOKEN)")
        raise Away(f"{path} is answered {answer.status}" + ("; where there is an --admin-port, name that" if answer.status == 404 else ""))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def look_of(metrics: str, connections: dict[str, int], behind: list[dict[str, Any]]) -> Look:
    sums: defaultdict[str, float] = defaultdict(float)
    labelled: dict[tuple[str, str], float] = {}
    buckets: dict[str, defaultdict[float, float]] = defaultdict(lambda: defaultdict(float))
    version = "?"
    for family in text_string_to_metric_families(metrics):
        for name, labels, value, *_ in family.samples:
            if name == "pere_build_info":
                version = labels.get("version", "?")
            elif "le" in labels:
                buckets[name.removesuffix("_bucket")][float(labels["le"])] += value
            else:
                sums[name] += value
                if len(labels) == 1:
                    labelled[name, *labels.values()] = value  # type: ignore[index]
    return Look(time.monotonic(), sums, labelled, buckets, version, {name: count for name, count in connections.items() if name != "total number"}, behind)


def told(before: Look | None, now: Look) -> dict[str, Any]:
    """Figures for programs and people: rates a second, quantiles in seconds, None where there is nothing to tell."""
    figures: dict[str, Any] = {name: now.sums[metric] for name, metric in STANDING.items()}
    figures |= {"version": now.version, "online": now.labelled.get(("pere_devices", "online"), 0), "registered": now.labelled.get(("pere_devices", "registered"), 0)}
    # A server that was started again counts from the beginning.
    is_known = before is not None and before.sums["pere_feed_opens_total"] <= now.sums["pere_feed_opens_total"] and before.sums["process_start_time_seconds"] == now.sums["process_start_time_seconds"]
    if before is not None and is_known:
        passed = max(now.at - before.at, 1e-3)
        figures |= {name: (now.sums[metric] - before.sums[metric]) / passed for name, metric in COUNTED.items()}
        figures["busy"] = (now.sums["process_cpu_seconds_total"] - before.sums["process_cpu_seconds_total"]) / passed
    else:
        figures |= dict.fromkeys([*COUNTED, "busy"])
    for name, metric in MEASURED.items():
        old: Mapping[float, float] = before.buckets.get(metric, {}) if before is not None and is_known else {}
        gained = {bound: count - old.get(bound, 0.0) for bound, count in now.buckets.get(metric, {}).items()}
        figures[name] = {"p50": quantile(gained, 0.5), "p99": quantile(gained, 0.99)}
    most = sorted(now.connections.items(), key=lambda each: (-each[1], each[0]))[:MOST]
    return figures | {"most_feeds": dict(most), "furthest_behind": now.behind}


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """The value below which this share is, as Prometheus has it: within a bucket evenly spread; beyond all bounds, the last of them. None of nothing."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0
    if total <= 0:
        return None
    place = next(place for place, bound in enumerate(bounds) if buckets[bound] >= share * total)
    below, under = (bounds[place - 1], buckets[bounds[place - 1]]) if place else (0.0, 0.0)
    return below if bounds[place] == float("inf") else below + (bounds[place] - below) * (share * total - under) / (buckets[bounds[place]] - under)


def together(nodes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Of several nodes: what each counts for itself is added up; what all of them know alike is told once, and of times the worst."""
    nodes = list(nodes)
    own = ("feeds", "behind", *COUNTED, "memory", "busy")
    alike = ("channels", "outstanding", "oldest", "online", "registered", "webhooks_queued", "webhooks_dead", "webhooks_failing")
    figures: dict[str, Any] = {name: sum(node[name] or 0 for node in nodes) if any(node[name] is not None for node in nodes) else None for name in own}
    figures |= {name: max((node[name] for node in nodes), default=0) for name in alike}
    figures |= {name: {word: max((node[name][word] for node in nodes if node[name][word] is not None), default=None) for word in ("p50", "p99")} for name in MEASURED}
    most: Counter[str] = sum((Counter(node["most_feeds"]) for node in nodes), Counter())
    behind = sorted((each for node in nodes for each in node["furthest_behind"]), key=lambda each: -each["events"])
    return figures | {"version": nodes[0]["version"] if nodes else "?", "most_feeds": dict(most.most_common(MOST)), "furthest_behind": behind[:MOST]}
