"""The units of deploy/: systemd finds nothing wrong with them, and a server that gets the sockets and variables that they say serves there."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import wire
from minting import SECRET, bearer
from processes import ENVIRONMENT, Process, free_port
from programs import needed

from pere.config import Config

DEPLOY = Path(__file__).parent.parent / "deploy"
SERVICE = (DEPLOY / "pere.service").read_text()
SOCKETS = [(DEPLOY / name).read_text() for name in ("pere.socket", "pere-admin.socket")]


def said(unit: str, name: str) -> list[str]:
    """The values of a setting of a unit, which may be there again and again."""
    return re.findall(rf"^{name}=(.*)$", unit, re.M)


@pytest.fixture
def units(tmp_path):
    """The units with a program that is there, as systemd asks for."""
    for name, text in (("pere.service", SERVICE), ("pere.socket", SOCKETS[0]), ("pere-admin.socket", SOCKETS[1])):
        assert name != "pere.service" or "ExecStart=/opt/pere/bin/pere serve\n" in text
        (tmp_path / name).write_text(text.replace("/opt/pere/bin/pere serve", f"{sys.executable} -m pere serve"))
    return tmp_path


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([needed("systemd-analyze", "systemd"), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def test_systemd_finds_nothing_wrong(units):
    told = analyze("verify", *sorted(units.iterdir()))
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


@pytest.mark.parametrize(("right", "wrong", "found"), [("Type=notify", "Type=notice", "notice"), ("WatchdogSec=30", "WatchdogSec=soon", "soon"), ("ProtectSystem", "ProtectSytem", "ProtectSytem")])
def test_what_systemd_does_not_know_would_be_found(units, right, wrong, found):
    (units / "pere.service").write_text((units / "pere.service").read_text().replace(right, wrong))
    assert found in analyze("verify", units / "pere.service").stderr


def test_who_gets_in_can_do_little(units):
    told = analyze("security", "--offline=true", "--threshold=15", "--no-pager", units / "pere.service")
    assert told.returncode == 0, told.stdout


def test_the_manager_gives_it_time_to_end_and_does_not_try_again_what_cannot_be():
    assert said(SERVICE, "Type") == ["notify"] and said(SERVICE, "RestartPreventExitStatus") == ["2"]
    assert int(said(SERVICE, "TimeoutStopSec")[0]) >= Config().drain_delay + Config().drain_seconds + 5
    assert [said(unit, "FileDescriptorName") for unit in SOCKETS] == [["pere"], ["admin"]]
    assert all(said(unit, "Service") == ["pere.service"] for unit in SOCKETS)


class Activated(Process):
    """What systemd would start: with these sockets, listening already, and these variables."""

    command = ["systemd-socket-activate"]

    def __init__(self, *ways: str, **variables: str):
        listen = [part for way in ways for part in ("--listen", way)]
        names = ":".join(said(unit, "FileDescriptorName")[0] for unit in SOCKETS)
        kept = [part for name in ENVIRONMENT | variables for part in ("--setenv", name)]
        super().__init__(*listen, "--fdname", names, *kept, sys.executable, "-m", *said(SERVICE, "ExecStart")[0].rpartition("/")[2].split(), **variables)


async def test_a_server_with_these_sockets_and_settings_serves_nginx_by_the_one_and_prometheus_by_the_other(tmp_path):
    needed("systemd-socket-activate", "systemd")
    variables = dict(value.split("=", 1) for value in said(SERVICE, "Environment"))
    assert variables["PERE_STORE"].startswith(f"sqlite:/var/lib/{said(SERVICE, 'StateDirectory')[0]}/")
    variables |= {"PERE_STORE": f"sqlite:{tmp_path / 'pere.db'}", "PERE_JWT_SECRET": SECRET}
    path, port = str(tmp_path / "pere.sock"), free_port()
    assert [said(unit, "ListenStream") for unit in SOCKETS] == [["/run/pere/pere.sock"], ["127.0.0.1:4568"]]
    with Activated(path, f"127.0.0.1:{port}", **variables) as served:
        served.until("Listening on")
        # Whoever comes first has it started, and waits.
        feed = await wire.Feed.open(path)
        await feed.start("/feed/c", bearer("d", feed=["c"]))
        pushed = await wire.request(path, "POST", "/push/c", b"1", X_Forwarded_For="192.0.2.7", **bearer("p", push=["c"]))
        assert (pushed.status, (await feed.event()).id) == (201, pushed.json["id"])
        assert (await wire.request(path, "GET", "/metrics", **bearer(admin=True))).status == 404
        assert b"\npere_feeds 1.0\n" in (await wire.request(port, "GET", "/metrics", **bearer(admin=True))).body
        feed.close()
        assert served.end(signal.SIGTERM) == 0
    assert Path(path).exists(), "it is the manager's, and the next process has it"


def test_with_the_settings_as_they_lie_here_it_does_not_start(tmp_path):
    variables = dict(line.split("=", 1) for line in (DEPLOY / "pere.env").read_text().splitlines() if re.match("[A-Z]", line))
    with Process("serve", "--store", "memory:", "--no-tcp", "--unix", str(tmp_path / "pere.sock"), **variables) as refused:
        assert refused.end() == int(said(SERVICE, "RestartPreventExitStatus")[0])
        assert "--jwt-secret: " in refused.err and "32 bytes" in refused.err
