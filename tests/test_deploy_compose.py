"""deploy/compose.yml: Compose takes it, its parts mean each other, and what it starts does together what it should: the same commands and
variables, started without containers, and all addresses on this machine."""

import re
from pathlib import Path
from typing import Any

import pytest
import wire
import yaml
from minting import SECRET, bearer
from nginxes import Nginx
from processes import Served, free_port
from redises import RedisServer
from test_deploy_nginx import CONFIG, adapted

from pere.config import Config, from_environment, networks

DEPLOY = Path(__file__).parent.parent / "deploy"
TEXT = (DEPLOY / "compose.yml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
NODES = ["pere-1", "pere-2"]


def settings(node: str) -> dict[str, str]:
    """The variables of a node, with what stands in `.env` put in."""
    return {name: SECRET if str(value).startswith("${") else str(value) for name, value in SERVICES[node]["environment"].items()}


def mounts(service: str) -> dict[str, str]:
    """What is mounted where, by its place in the container."""
    told = SERVICES[service].get("volumes", [])
    return {each["target"]: each["source"] for each in told if isinstance(each, dict)} | {each.split(":")[1]: each.split(":")[0] for each in told if isinstance(each, str)}


def taken(text: str) -> list[str]:
    """The services of a file that Compose takes. Raises ValueError for another one."""
    from compose_spec import PyCompose  # each worker collects all tests, and one runs this

    return sorted(PyCompose.from_yaml(text).service_names())


def test_compose_takes_it():
    assert taken(TEXT) == sorted(SERVICES)


@pytest.mark.parametrize("wrong", ["restart: unless-stoped", "enviroment: {}", "ports: [\"http:80\"]", "depends_on: {redis: {condition: healthy}}"])
def test_what_compose_does_not_know_would_be_found(wrong):
    with pytest.raises(ValueError, match="services"):
        taken("services: {a: {image: b, %s}}" % wrong)


def test_all_that_is_mounted_is_there_or_is_to_be_made_as_the_first_lines_say():
    mounted = {source for service in SERVICES for source in mounts(service).values()}
    assert {name for name in mounted if not name.startswith("./")} == COMPOSE["volumes"].keys()
    missing = {name for name in mounted if name.startswith("./") and not (DEPLOY / name).exists()}
    assert missing == {"./tls", "./secrets/metrics-token"}
    assert all(name[2:] in TEXT.split("\n\n")[0] for name in missing)


def test_a_node_starts_with_what_it_is_told_and_has_time_to_end():
    for node in NODES:
        config = Config(host="0.0.0.0", **from_environment(settings(node)))
        assert int(SERVICES[node]["stop_grace_period"].removesuffix("s")) >= config.drain_delay + config.drain_seconds + 5
        assert networks(config.trusted_proxies) == networks(COMPOSE["networks"]["default"]["ipam"]["config"][0]["subnet"])


def test_each_part_is_named_as_the_others_name_it():
    config = Config(host="0.0.0.0", **from_environment(settings("pere-1")))
    assert re.findall(r"^ *server (\S+) max_fails", CONFIG, re.M) == [f"{node}:{config.port}" for node in NODES]
    assert re.findall(r"reverse_proxy (.*) {", (DEPLOY / "Caddyfile").read_text()) == [" ".join(f"{node}:{config.port}" for node in NODES)]
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == [f"{node}:{config.admin_port}" for node in NODES]
    in_prometheus = {Path(target).name for target in mounts("prometheus")}
    assert {*prometheus["rule_files"], prometheus["scrape_configs"][0]["authorization"]["credentials_file"]} <= in_prometheus
    for path in ("/etc/nginx/nginx.conf", *{str(Path(found).parent) for found in re.findall(r"ssl_certificate(?:_key)? (\S+);", CONFIG)}):
        assert path in mounts("nginx")


def test_grafana_is_told_of_the_source_and_finds_the_dashboard():
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    folder = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/pere.yml").read_text())["providers"][0]["options"]["path"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in SERVICES
    assert {folder: "./grafana/dashboards", "/etc/grafana/provisioning": "./grafana/provisioning"}.items() <= mounts("grafana").items()


async def test_together_they_serve_and_when_a_node_is_taken_away_its_devices_go_on_at_the_other(tmp_path, authority):
    command = SERVICES["redis"]["command"]
    told = {name.removeprefix("--"): value for name, value in zip(command[1::2], command[2::2], strict=True)}
    with RedisServer(tmp_path, **told) as redis:
        here = ("--store", redis.url, "--admin-host", "127.0.0.1", "--admin-port")
        first_admin, second_admin, tls, plain = (free_port() for _ in range(4))
        with Served(*here, str(first_admin), **settings("pere-1")) as first, Served(*here, str(second_admin), **settings("pere-2")) as second:
            text = adapted(tmp_path, authority.sign("localhost"), (f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}"), tls, plain)
            with Nginx(tmp_path, text, tls, plain):
                await story(wire.Secure(tls, authority.context), [first_admin, second_admin], second)


async def story(way: wire.Way, admins: list[int], second: Served) -> None:
    shop, admin = bearer("shop", push=["**"]), bearer(admin=True)
    names = [f"till-{number}" for number in range(4)]
    feeds = {name: await come(way, name) for name in names}
    # nginx has given to each node as many as to the other.
    assert [(await wire.request(port, "GET", "/admin/connections", **admin)).json["total number"] for port in admins] == [2, 2]
    assert (await wire.request(way, "GET", "/metrics", **admin)).status == 404
    id = (await wire.request(way, "POST", "/push/orders", b"1", **shop)).json["id"]
    for name, feed in feeds.items():
        assert (await feed.event()).id == id
        assert (await wire.request(way, "POST", "/feedback/orders", {"event_id": id}, **bearer(name, feed=["orders"]))).json["state"] == "processed"
    assert (await wire.request(way, "GET", f"/events/orders/{id}", **shop)).json["counts"]["processed"] == 4

    second.kill()
    later = (await wire.request(way, "POST", "/push/orders", b"2", **shop)).json["id"]
    ended = [name for name in names if not await goes_on(feeds[name], later)]
    assert len(ended) == 2
    for name in ended:
        feeds[name].close()
        feeds[name] = await come(way, name)
        assert (await feeds[name].event()).id == later
    for feed in feeds.values():
        feed.close()


async def come(way: wire.Way, device: str) -> wire.Feed:
    feed = await wire.Feed.open(way)
    await feed.start("/feed/orders", bearer(device, feed=["orders"]))
    await feed.control("pere.hello")
    return feed


async def goes_on(feed: wire.Feed, id: str) -> bool:
    """Whether it brings this event, or has ended."""
    message = await feed.next()
    assert message is None or message.id == id
    return message is not None
