"""`pere config`: what a server would be told, and by whom."""

import json
import re
from dataclasses import fields
from signal import SIGTERM

import pytest
from processes import Served, pere
from redises import common

from pere.config import Config, flag, variable

SECRET = "thirty-two bytes of a test secret"


def told(*flags: str, code: int = 0, **variables: str) -> dict:
    done = pere("config", "--json", *flags, **variables)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def test_every_setting_is_told_with_its_value_its_flag_and_its_variable():
    assert told()["settings"] == {
        each.name: {"value": each.default, "source": "default", "flag": flag(each.name), "variable": variable(each.name)} for each in fields(Config)}


def test_a_flag_wins_over_its_variable_and_that_over_the_default_and_each_is_named():
    settings = told("--port", "8080", "--insecure", PERE_PORT="9", PERE_TTL="60")["settings"]
    assert [(settings[name]["value"], settings[name]["source"]) for name in ("port", "insecure", "ttl", "host")] == [
        (8080, "--port"), (True, "--insecure"), (60, "PERE_TTL"), ("127.0.0.1", "default")]


def test_a_file_is_a_layer_and_is_named_by_its_path(tmp_path):
    path = tmp_path / "pere.toml"
    path.write_text("port = 1\nttl = 2\n")
    settings = told("--config", str(path), PERE_TTL="3")["settings"]
    assert [(settings[name]["value"], settings[name]["source"]) for name in ("port", "ttl", "config")] == [(1, str(path)), (3, "PERE_TTL"), (str(path), "--config")]


def test_a_file_that_cannot_be_is_told_with_all_else_that_is_wrong(tmp_path):
    path = tmp_path / "pere.toml"
    path.write_text("prot = 1\n")
    assert told("--log-level", "loud", code=2, PERE_CONFIG=str(path))["wrong"] == [
        f"--config {path}: there is no setting prot; is port meant?", "--log-level is one of debug, info, warning, error, not 'loud'"]


def test_for_people_it_is_a_table_of_what_is_not_the_default():
    done = pere("config", "--changed", "--no-tcp", "--unix", "p.sock", PERE_HEARTBEAT="5")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["setting", "value", "from"], ["--tcp", "false", "--tcp"], ["--unix", "p.sock", "--unix"], ["--heartbeat", "5.0", "PERE_HEARTBEAT"]]
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments, variables", [
    (["--jwt-secret", SECRET], {}), ([], {"PERE_JWT_SECRET": SECRET}),
    (["--store", f"redis://user:{SECRET}@nowhere/0"], {}), (["--store", f"redis://nowhere/0?password={SECRET}"], {}),
])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_secret_is_never_shown(arguments, variables, form):
    done = pere("config", *arguments, *form, **variables)
    assert done.returncode == 0
    assert SECRET not in done.stdout + done.stderr
    assert "not shown" in done.stdout or "***" in done.stdout


def test_that_a_secret_is_set_is_shown_and_from_where():
    assert told(PERE_JWT_SECRET=SECRET)["settings"]["jwt_secret"] | {"value": ""} == {
        "value": "", "source": "PERE_JWT_SECRET", "flag": "--jwt-secret", "variable": "PERE_JWT_SECRET"}


def test_all_that_is_wrong_is_told_at_once():
    found = told("--log-level", "loud", "--ttl", "9", "--max-ttl", "8", code=2, PERE_PORT="http", PERE_TCP="maybe")
    assert found["wrong"] == ["PERE_PORT is a number, not 'http'", "PERE_TCP is true or false, not 'maybe'",
                              "--log-level is one of debug, info, warning, error, not 'loud'", "--ttl is at most --max-ttl (8), not 9"]


def test_a_wrong_variable_that_a_flag_overrides_does_no_harm_here_or_there():
    assert told("--heartbeat", "5", PERE_HEARTBEAT="often")["wrong"] == []
    with Served("--heartbeat", "5", PERE_HEARTBEAT="often"):
        pass


def test_a_variable_that_kubernetes_sets_is_explained():
    done = pere("config", "--changed", PERE_PORT="tcp://10.0.0.1:4567")
    assert done.returncode == 2
    assert "enableServiceLinks: false" in done.stderr


def test_a_slip_of_the_pen_in_a_variable_is_told_and_is_no_failure():
    done = pere("config", "--changed", PERE_PROT="8080")
    assert (done.returncode, done.stderr) == (0, "pere: PERE_PROT is no setting; is PERE_PORT meant?\n")
    assert told(PERE_PROT="8080")["unknown"] == ["PERE_PROT"]


def test_a_server_says_so_too_and_starts():
    with Served(PERE_PROT="8080", PERE_XYZZY="1") as served:
        assert served.end(SIGTERM) == 0
        assert re.findall(r"warning (.*)", served.err) == ["PERE_PROT is no setting; is PERE_PORT meant?", "PERE_XYZZY is no setting"]


def test_a_flag_that_is_none_is_a_wrong_command_line():
    done = pere("config", "--prot", "8080")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--port" in done.stderr


def test_a_server_does_not_log_the_password_of_its_redis():
    there = common()
    assert there.ask("ACL", "SETUSER", "pere", "on", f">{SECRET}", "~*", "&*", "+@all") == b"+OK"
    with Served("--store", f"redis://pere:{SECRET}@127.0.0.1:{there.port}/0?prefix=quiet") as served:
        assert "store=redis://pere:***@" in served.err
        assert SECRET not in served.err
