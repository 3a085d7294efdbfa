"""What watches a deployment, watching a real one: Prometheus with the configuration and the rules of deploy/ reads a server that has work
to do, and every expression of the dashboard is asked of it. With -s each panel is printed with what it shows."""

import asyncio
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvloop
import wire
import yaml
from hooks import Receiver
from minting import SECRET, bearer, token
from processes import Served, free_port
from prometheus_client.parser import text_string_to_metric_families
from prometheuses import Prometheus, promtool

DEPLOY = Path(__file__).parent.parent / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
RECORDING = DEPLOY / "prometheus" / "recording.yml"
CASES = DEPLOY / "prometheus" / "alerts.test.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "pere.json").read_text())


def rules(path: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


NAMES = [rule["alert"] for rule in rules(ALERTS)]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]

# A metric, where it is no label, function or number: what follows is a selector, a bracket or the end of an argument.
METRIC = re.compile(r"\b(?:pere|process|python)_\w+")


def names_in(expressions: list[str]) -> set[str]:
    # What is recorded has its metric's name in the middle of its own.
    return {name for each in expressions for name in METRIC.findall(re.sub(r"\b\w+:\w+(:\w+)?", "", each))}


# Prometheus beside a server


class Watched(NamedTuple):
    prometheus: Prometheus
    admin_port: int
    here: str  # the instance that is there
    away: str  # one that is not

    async def metrics(self) -> str:
        return (await wire.request(self.admin_port, "GET", "/metrics", **bearer(admin=True))).body.decode()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A server with everything to do, and Prometheus, which has read it a few times meanwhile, with the files of deploy/ but for the
    addresses and how often it reads."""
    folder = tmp_path_factory.mktemp("watched")
    flags = ("--admin-port", "0", "--store", f"sqlite:{folder / 'pere.db'}", "--webhook-allow-http", "--webhook-allow-networks", "127.0.0.0/8")
    with Served(*flags, PERE_JWT_SECRET=SECRET) as served:
        port, admin_port = (int(url.rpartition(":")[2]) for url in served.until(r"url=(\S+)")[1].split(","))
        for path in (ALERTS, RECORDING):
            (folder / path.name).write_text(path.read_text())
        (folder / "token").write_text(token(admin=True))
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        away = free_port()
        config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{admin_port}", f"127.0.0.1:{away}"]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        # A loop that is nobody's current one: the tests have their own.
        with Prometheus(folder / "prometheus.yml", folder) as prometheus, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work(port, admin_port, prometheus))
            yield Watched(prometheus, admin_port, f"127.0.0.1:{admin_port}", f"127.0.0.1:{away}")


async def work(port: int, admin_port: int, prometheus: Prometheus) -> None:
    """Devices that listen, answer well and badly, leave and come back, and a webhook, until Prometheus has seen all of it move."""
    there = Receiver(204)
    publisher = bearer("shop", push=["**"])
    try:
        types = ["pere.receipt.batch", "pere.event.completed"]
        assert (await wire.request(admin_port, "POST", "/webhooks", {"url": there.url, "types": types}, **bearer(admin=True))).status == 201
        moved = ("rate(pere_webhook_post_seconds_count[1m]) > 0", "rate(pere_redeliveries_total[1m]) > 0", "rate(pere_gaps_total[1m]) >= 0",
                 *(f'rate(pere_receipt_roundtrip_seconds_count{{state="{state}"}}[1m]) > 0' for state in ("delivered", "processed", "failed")),
                 "instance:pere_store_commit_seconds:p99_5m > 0", "job:pere_oldest_outstanding_seconds:max >= 0", 'ALERTS{alertname="PereDown"}')
        while not all([await asyncio.to_thread(prometheus.ask, each) for each in moved]):
            feeds = [await come(port, f"d{number}") for number in range(3)]
            try:
                for _ in range(3):
                    event = (await wire.request(port, "POST", "/push/orders", b"[1]", **publisher)).json["id"]
                    for number, state in enumerate(("delivered", "processed", "failed")):
                        while (await feeds[number].event()).id != event:
                            pass
                        answer = await wire.request(port, "POST", "/feedback/orders", {"state": state, "event_id": event}, **bearer(f"d{number}", feed=["orders"]))
                        assert answer.status == 200, answer
                # They leave owing one, and are sent it when they are back.
                await wire.request(port, "POST", "/push/orders", b"[2]", **publisher)
            finally:
                for feed in feeds:
                    feed.close()
    finally:
        there.close()


async def come(port: int, device: str) -> wire.Feed:
    feed = await wire.Feed.open(port)
    await feed.start("/feed/orders", bearer(device, feed=["orders"]))
    await feed.control("pere.hello")
    return feed


async def test_prometheus_reads_it_with_the_token_that_the_configuration_names(watched):
    assert {dict(labels)["instance"]: value for labels, value in watched.prometheus.ask('up{job="pere"}').items()} == {watched.here: 1, watched.away: 0}
    assert (await wire.request(watched.admin_port, "GET", "/metrics")).error == (401, "no_token")


def test_every_rule_is_evaluated_a_node_that_is_away_is_missed_and_one_that_is_well_alerts_nobody(watched):
    told = [rule for group in watched.prometheus.api("rules")["groups"] for rule in group["rules"]]
    recorded = [rule["record"] for rule in rules(RECORDING)]
    assert {rule["name"] for rule in told} == {*NAMES, *recorded}
    assert [(rule["name"], rule["lastError"]) for rule in told if rule["health"] != "ok"] == []
    for name in recorded:
        values = watched.prometheus.ask(name).values()
        assert values and not any(map(math.isnan, values)), name
    # Who was away for a minute has been reported; until then it is pending.
    assert {dict(labels)["instance"] for labels in watched.prometheus.ask('ALERTS{alertname="PereDown"}')} == {watched.away}
    assert watched.prometheus.ask('ALERTS{alertstate="firing", alertname!="PereDown"}') == {}


# The dashboard


def asked(expression: str) -> str:
    """An expression as Grafana asks it, once somebody has chosen."""
    said = expression.replace("$job", "pere").replace("$instance", ".+").replace("$__rate_interval", "5m")
    assert "$" not in said, said
    return said


def test_every_panel_of_the_dashboard_shows_something(watched):
    empty = []
    for panel in PANELS:
        print(f"\n{panel['title']} ({panel['type']}): {panel['description']}")
        for target in panel["targets"]:
            values = watched.prometheus.ask(asked(target["expr"]))
            print("   " + target["expr"])
            for labels, value in values.items():
                print("      ", legend(target["legendFormat"], dict(labels)), f"{value:.6g}")
            if not values or any(map(math.isnan, values.values())):
                empty.append((panel["title"], target["expr"], values))
    assert empty == []


def legend(format: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels[found[1]], format) or "value"


def test_what_may_be_chosen_on_the_dashboard_is_there(watched):
    found = {}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
            found[variable["name"]] = {dict(labels)[label] for labels in watched.prometheus.ask(asked(series))}
    assert found == {"job": {"pere"}, "instance": {watched.here}}


async def test_what_the_dashboard_and_the_rules_ask_for_is_there_and_the_dashboard_leaves_nothing_out(watched):
    there = {sample.name for family in text_string_to_metric_families(await watched.metrics()) for sample in family.samples if family.name.startswith(("pere", "process", "python"))}
    for said in (EXPRESSIONS, [rule["expr"] for path in (ALERTS, RECORDING) for rule in rules(path)]):
        assert names_in(said) - there == set()
    families = {re.sub("_(bucket|count|sum)$", "", name) for name in there if name.startswith("pere_")}
    assert families - {re.sub("_(bucket|count|sum)$", "", name) for name in names_in(EXPRESSIONS)} == set()


def test_the_dashboard_is_laid_out_as_grafana_wants_it():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, f"{panel['title']} lies on another one"
        taken |= cells
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        assert [target["refId"] for target in panel["targets"]] == [chr(ord("A") + place) for place in range(len(panel["targets"]))]


# Alerts


def test_promtool_finds_nothing_wrong(tmp_path):
    for path in (ALERTS, RECORDING, DEPLOY / "prometheus" / "prometheus.yml"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "token").write_text("x")
    assert "SUCCESS" in promtool("check", "config", tmp_path / "prometheus.yml")
    assert f"{len(NAMES)} rules found" in promtool("check", "rules", ALERTS)


def test_every_alert_fires_where_it_should_and_not_where_it_should_not():
    promtool("test", "rules", CASES)


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases} == set(NAMES)
    assert [name for name in NAMES if not any(case["exp_alerts"] for case in cases if case["alertname"] == name)] == []
    assert [name for name in NAMES if not any(case["exp_alerts"] == [] for case in cases if case["alertname"] == name)] == []


def test_every_alert_has_a_section_that_says_what_to_do():
    told = re.findall(r"^## (Pere\w+)\n\n(.+?)(?=\n\n#|\Z)", ALERTS.with_suffix(".md").read_text("utf-8"), re.M | re.S)
    assert [name for name, _ in told] == NAMES
    assert [name for name, text in told if "**Do:**" not in text] == []


def test_every_alert_says_how_bad_it_is_what_is_wrong_and_where_to_read_on():
    for rule in rules(ALERTS):
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"deploy/prometheus/alerts.md#{rule['alert'].lower()}"
