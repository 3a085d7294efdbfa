"""What lies in deploy/ agrees with the server, with itself, with the kernel and with Kubernetes."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import latest_version, validate
from test_house import section

from pere.config import Config, flag, from_environment, variable

DEPLOY = Path(__file__).parent.parent / "deploy"
MADE = {".env", "secrets", "tls"}  # by whoever deploys
FILES = sorted(path.relative_to(DEPLOY.parent).as_posix() for path in DEPLOY.rglob("*") if path.is_file() and not MADE & set(path.relative_to(DEPLOY).parts))
TEXTS = {name: (DEPLOY.parent / name).read_text() for name in FILES}

# Flags of other programs that are said there.
FOREIGN = {"--no-legend", "--plain", "--from", "--mount", "--no-deps", "--wheel-dir", "--without-pip", "--python", "--system", "--gid", "--uid", "--no-log-init", "--home-dir", "--create-home", "--skel", "--shell",
           "--interval", "--timeout", "--start-period", "--build", "--detach", "--appendonly", "--appendfsync", "--save", "--maxmemory", "--maxmemory-policy",
           "--config.file", "--storage.tsdb.path", "--storage.tsdb.retention.time", "--admin"}


def test_the_readme_says_of_every_file_what_it_is_for():
    told = re.findall(r"^(deploy/\S+) {2,}\S", section("Deploying"), re.M)
    assert sorted(told) == FILES


def test_every_setting_that_is_made_there_is_one():
    said = {name for text in TEXTS.values() for name in re.findall(r"\bPERE_[A-Z_]+\b", text)}
    assert {"PERE_STORE", "PERE_JWT_SECRET", "PERE_TRUSTED_PROXIES"} <= said
    assert said - {variable(setting.name) for setting in fields(Config)} == set()


def test_every_flag_that_is_named_there_is_one():
    said = {found for text in TEXTS.values() for found in re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", text)}
    settings = {flag(setting.name) for setting in fields(Config)}
    assert "--idle-timeout" in said & settings
    assert said - settings == FOREIGN


# The kernel


def test_every_line_for_the_kernel_is_known_to_it_and_says_why():
    blocks = TEXTS["deploy/sysctl.conf"].strip().split("\n\n")[1:]
    for block in blocks:
        *why, line = re.sub(r"(?m)^(?!#)(.+)\n(?!#)(.+)$", r"\2", block).split("\n")
        assert why and all(each.startswith("# ") for each in why), block
        for name, value in re.findall(r"^([\w.]+) = (.+)$", block, re.M):
            assert Path("/proc/sys", *name.split(".")).exists(), name
            assert re.fullmatch(r"\d+( \d+)?", value), line


# Kubernetes


def resources() -> dict[str, dict[str, Any]]:
    """All that is applied, by kind and name."""
    folder = DEPLOY / "kubernetes"
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(path.name for path in folder.iterdir() if path.name != "kustomization.yaml")
    found = [each for name in listed for each in yaml.safe_load_all((folder / name).read_text())]
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}


POD = resources()["Deployment/pere"]["spec"]["template"]
CONTAINER = POD["spec"]["containers"][0]


def test_kubernetes_takes_every_resource():
    for name, each in resources().items():
        if name != "ServiceMonitor/pere":  # which is the Prometheus Operator's
            validate(each, latest_version(), strict=True)


def test_what_kubernetes_does_not_know_would_be_found():
    wrong = resources()["Deployment/pere"]
    wrong["spec"]["template"]["spec"]["containers"][0]["readyProbe"] = {}
    with pytest.raises(Exception, match="readyProbe"):
        validate(wrong, latest_version(), strict=True)


def test_the_pods_are_those_that_everything_else_means():
    labels, ports = POD["metadata"]["labels"], {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    found = resources()
    assert found["Deployment/pere"]["spec"]["selector"]["matchLabels"] == labels
    assert found["PodDisruptionBudget/pere"]["spec"]["selector"]["matchLabels"] == labels
    assert found["HorizontalPodAutoscaler/pere"]["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "pere"}
    for service in ("Service/pere", "Service/pere-admin"):
        assert found[service]["spec"]["selector"] == labels
        assert {port["targetPort"] for port in found[service]["spec"]["ports"]} <= ports.keys()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["httpGet"]["port"] == "http"


def test_the_service_monitor_finds_the_listener_for_administration_and_names_the_job_as_the_alerts_do():
    found = resources()
    monitor, admin = found["ServiceMonitor/pere"], found["Service/pere-admin"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1" and monitor["spec"].keys() <= {"jobLabel", "selector", "endpoints"}
    endpoint, = monitor["spec"]["endpoints"]
    assert endpoint.keys() == {"port", "path", "interval", "authorization"} and endpoint["authorization"].keys() == {"type", "credentials"}
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= admin["metadata"]["labels"].items() and not wanted.items() <= found["Service/pere"]["metadata"]["labels"].items()
    assert endpoint["port"] in {port["name"] for port in admin["spec"]["ports"]}
    assert admin["metadata"]["labels"][monitor["spec"]["jobLabel"]] == yaml.safe_load(TEXTS["deploy/prometheus/prometheus.yml"])["scrape_configs"][0]["job_name"]


def test_a_pod_starts_with_what_it_is_told_has_time_to_end_and_is_scaled_by_a_metric_that_there_is():
    secrets = {"redis-url": "redis://redis:6379/0", "jwt-secret": "x" * 32}
    told = {each["name"]: each.get("value") or secrets[each["valueFrom"]["secretKeyRef"]["key"]] for each in CONTAINER["env"]}
    config = Config(**from_environment(told))
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert (config.port, config.admin_port) == (ports["http"], ports["admin"])
    before = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["spec"]["terminationGracePeriodSeconds"] >= before + config.drain_delay + config.drain_seconds + 5
    metric = resources()["HorizontalPodAutoscaler/pere"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert f"| `{metric}` |" in section("Watching")
    user = re.search(r"^USER (\d+):(\d+)$", TEXTS["deploy/Dockerfile"], re.M)
    assert (str(POD["spec"]["securityContext"]["runAsUser"]), str(POD["spec"]["securityContext"]["runAsGroup"])) == user.groups()
