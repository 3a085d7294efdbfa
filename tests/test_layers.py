"""Where settings come from: a default, a file, a variable, a flag; and what a file may not say."""

from dataclasses import fields

import pytest
from processes import Served, pere

from pere.config import Config, flag, types, variable
from pere.errors import ConfigError
from pere.layers import DEFAULT, FILE, FLAG, VARIABLE, from_file, gather

# Another value than the default, that can be whatever the others are.
OTHER = {str: "other", int: 5, float: 5.5, bool: True}


@pytest.fixture
def written(tmp_path):
    """`path = written("port = 1")`: a file of settings."""

    def written(text: str | bytes) -> str:
        path = tmp_path / "pere.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return written


def test_where_nothing_is_said_all_is_as_it_is_by_itself():
    config, sources = gather({}, {})
    assert config == Config()
    assert set(sources.values()) == {DEFAULT} and sources.keys() == types().keys()


def test_a_flag_wins_over_a_variable_that_over_the_file_and_that_over_the_default(written):
    path = written("port = 1\nretry = 2\nttl = 3\n")
    config, sources = gather({"port": 11, "config": path}, {"PERE_PORT": "21", "PERE_RETRY": "22"})
    assert (config.port, config.retry, config.ttl, config.max_ttl) == (11, 22.0, 3, Config().max_ttl)
    assert [sources[name] for name in ("port", "retry", "ttl", "max_ttl", "config")] == [FLAG, VARIABLE, FILE, DEFAULT, FLAG]


def test_the_file_may_be_named_by_a_variable_and_a_flag_names_another_one(written, tmp_path):
    path = written("port = 1")
    assert gather({}, {"PERE_CONFIG": path}).config.port == 1
    (tmp_path / "other.toml").write_text("port = 2")
    assert gather({"config": str(tmp_path / "other.toml")}, {"PERE_CONFIG": path}).config.port == 2
    assert gather({"config": ""}, {"PERE_CONFIG": path}).config.port == Config().port


@pytest.mark.parametrize("setting", [each for each in fields(Config) if each.name != "config"], ids=lambda each: each.name)
def test_every_setting_may_stand_in_the_file_as_it_is_called_or_as_its_flag(written, setting):
    kind = types()[setting.name]
    said = {str: '"other"', int: "5", float: "5.5", bool: "true"}[kind]
    for name in (setting.name, flag(setting.name)[2:]):
        assert from_file(written(f"{name} = {said}")) == {setting.name: OTHER[kind]}


def test_the_file_is_read_anew_each_time(written):
    path = written("port = 1")
    assert gather({"config": path}, {}).config.port == 1
    written("port = 2")
    assert gather({"config": path}, {}).config.port == 2


@pytest.mark.parametrize("text, why", [
    ("prot = 1", "there is no setting prot; is port meant?"), ("qqqqq = 1", "there is no setting qqqqq$"), ("[limits]\nport = 1", "there is no setting limits"),
    ('config = "other.toml"', "there is no setting config"), ("max_feeds = 1\nmax-feeds = 2", "max_feeds stands there twice"),
    ('port = "1"', "port is a whole number, not '1'"), ("port = 1.5", "port is a whole number, not 1.5"), ("port = true", "port is a whole number, not True"),
    ("host = 1", "host is a string, not 1"), ('retry = "3"', "retry is a number, not '3'"), ("retry = false", "retry is a number, not False"),
    ("insecure = 1", "insecure is true or false, not 1"), ('cors_origins = ["https://a.example"]', "cors_origins is a string, not"),
    ("port 1", "is not TOML"), ("port = 1\nport = 2", "is not TOML"), (b"host = \"\xff\"", "is not TOML"), (b"port = 1\0", "is not TOML")])
def test_what_is_no_setting_is_refused_with_the_name_of_the_file(written, text, why):
    with pytest.raises(ConfigError, match=why) as refused:
        from_file(written(text))
    assert str(refused.value).startswith(f"--config {written(text)}")


def test_a_whole_number_is_a_number_too(written):
    assert from_file(written("retry = 3")) == {"retry": 3.0}
    assert type(from_file(written("retry = 3"))["retry"]) is float


@pytest.mark.parametrize("path", ["", "there/is/none.toml"])
def test_a_file_that_is_not_there_is_an_error(tmp_path, path):
    with pytest.raises(ConfigError, match="cannot be read: (No such file|Is a directory)"):
        from_file(str(tmp_path / path))


def test_limits_hold_for_the_file_too(written):
    with pytest.raises(ConfigError, match="^--port is at most 65535, not 65536$"):
        gather({"config": written("port = 65536")}, {})


# As a process


def test_a_server_takes_its_settings_from_a_file(written):
    path = written('max_event_bytes = 7\nlog_format = "json"\nlog_level = "debug"')
    with Served(PERE_CONFIG=path, PERE_LOG_LEVEL="info") as server:
        assert server.until('"message":"listening"')
        assert '"level":"debug"' not in server.err
        refused = pere("push", "c", "123456789", "--url", server.url)
        assert refused.returncode == 1 and "at most 7 bytes" in refused.stderr


def test_a_file_that_cannot_be_is_said_before_anything_is_done(written):
    ended = pere("serve", "--config", written("prot = 1"))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"pere: --config {written('prot = 1')}: there is no setting prot; is port meant?\n"
    assert variable("config") in pere("serve", "--help").stdout
