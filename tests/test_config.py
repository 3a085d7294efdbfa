"""The settings: their limits, the pairs that cannot be, and where they come from."""

import math
from dataclasses import fields

import pytest

from pere.config import DAY, KIB, MIB, Config, flag, from_environment, is_loopback, strangers, types, variable, without_password, words
from pere.errors import ConfigError

LIMITED = {f.name: f.metadata for f in fields(Config) if f.metadata["low"] is not None or f.metadata["high"] is not None}
LOWEST = [(name, meta["low"]) for name, meta in LIMITED.items() if meta["low"] is not None]
HIGHEST = [(name, meta["high"]) for name, meta in LIMITED.items() if meta["high"] is not None]

# What must move along when a setting goes to one of its limits, as the one may not exceed the other.
ALONG = {
    "max_ttl": {"ttl": 0},
    "backlog_bytes": {"max_event_bytes": 1},
    "backlog_total_bytes": {"max_event_bytes": 1, "backlog_bytes": KIB},
    "max_event_bytes": {"backlog_bytes": 16 * MIB},
    "workers": {"store": "redis://127.0.0.1"},
    "redis_wait": {"store": "redis://127.0.0.1"},
}


def test_a_config_of_which_nothing_is_said_can_be():
    config = Config()
    assert (config.host, config.port, config.insecure) == ("127.0.0.1", 4567, False)


@pytest.mark.parametrize("setting", fields(Config), ids=lambda f: f.name)
def test_a_setting_has_a_default_of_its_type_and_says_what_it_is_for(setting):
    assert type(setting.default) is types()[setting.name]
    assert setting.metadata["help"]


@pytest.mark.parametrize("name, limit", LOWEST + HIGHEST)
def test_a_setting_may_be_at_its_limit(name, limit):
    assert getattr(Config(**{**ALONG.get(name, {}), name: limit}), name) == limit


@pytest.mark.parametrize("name, limit", LOWEST)
def test_a_setting_below_its_limit_is_refused_by_the_name_of_its_flag(name, limit):
    with pytest.raises(ConfigError, match=f"^{flag(name)} is at least {limit}, not "):
        Config(**{name: limit - (1 if types()[name] is int else 0.01)})


@pytest.mark.parametrize("name, limit", HIGHEST)
def test_a_setting_above_its_limit_is_refused_by_the_name_of_its_flag(name, limit):
    with pytest.raises(ConfigError, match=f"^{flag(name)} is at most {limit}, not "):
        Config(**{name: limit + (1 if types()[name] is int else 0.01)})


@pytest.mark.parametrize("name", [name for name in LIMITED if types()[name] is float])
def test_what_is_not_a_number_keeps_no_limit(name):
    with pytest.raises(ConfigError, match=flag(name)):
        Config(**{name: math.nan})


@pytest.mark.parametrize("setting", [f for f in fields(Config) if f.metadata["choices"]], ids=lambda f: f.name)
def test_a_word_is_one_of_its_choices(setting):
    for choice in setting.metadata["choices"]:
        assert getattr(Config(**{setting.name: choice}), setting.name) == choice
    with pytest.raises(ConfigError, match=f"^{flag(setting.name)} is one of .*, not 'loud'"):
        Config(**{setting.name: "loud"})


@pytest.mark.parametrize("pair, flags", [
    ({"ttl": DAY + 1, "max_ttl": DAY}, "--ttl .* --max-ttl"),
    ({"max_event_bytes": 2049, "backlog_bytes": 2048}, "--backlog-bytes .* --max-event-bytes"),
    ({"max_event_bytes": 1, "backlog_bytes": 2049, "backlog_total_bytes": 2048}, "--backlog-total-bytes .* --backlog-bytes"),
])
def test_a_pair_that_cannot_be_is_refused_by_both_flags(pair, flags):
    with pytest.raises(ConfigError, match=flags):
        Config(**pair)


def test_the_two_of_a_pair_may_be_equal():
    config = Config(ttl=DAY, max_ttl=DAY, max_event_bytes=2048, backlog_bytes=2048, backlog_total_bytes=2048)
    assert (config.ttl, config.backlog_bytes) == (config.max_ttl, config.max_event_bytes)


# Who can reach it


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_keys(host):
    assert is_loopback(host)
    assert Config(host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.7", "8.8.8.8", "pere.example", "127.0.0.1.example"])
def test_any_other_address_is_refused_unless_insecure_says_so(host):
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="--insecure"):
        Config(host=host)
    assert Config(host=host, insecure=True).host == host


SECRET = "thirty-two bytes of a test secret"


@pytest.mark.parametrize("keys", [{"jwt_secret": SECRET}, {"jwt_public_key": "key.pem"}, {"jwt_jwks": "https://login.example/jwks"}])
def test_with_keys_it_may_be_reached_from_anywhere(keys):
    config = Config(host="0.0.0.0", **keys)
    assert (config.has_keys, config.exposed, config.is_open_to_this_machine) == (True, "--host 0.0.0.0", False)
    assert not Config(**keys).is_open_to_this_machine


def test_insecure_is_without_keys_and_so_not_with_any():
    with pytest.raises(ConfigError, match="--insecure means without keys"):
        Config(insecure=True, jwt_secret=SECRET)


def test_a_secret_is_not_shown():
    assert SECRET not in repr(Config(jwt_secret=SECRET))


# Where it comes from


def test_a_setting_has_one_name_in_three_spellings():
    assert (flag("max_ttl"), variable("max_ttl")) == ("--max-ttl", "PERE_MAX_TTL")


def test_the_environment_gives_each_setting_in_its_type():
    found = from_environment({"PERE_HOST": "::1", "PERE_PORT": "8080", "PERE_RETRY": "0.5", "PERE_INSECURE": "yes", "HOME": "h"})
    assert found == {"host": "::1", "port": 8080, "retry": 0.5, "insecure": True}
    assert type(found["port"]) is int
    assert Config(**found).port == 8080


def test_an_environment_that_says_nothing_changes_nothing():
    assert from_environment({"PERE_PROT": "8080", "port": "8080"}) == {}


@pytest.mark.parametrize("text, meant", [("1", True), ("true", True), ("True", True), ("ON", True), ("yes", True),
                                         ("0", False), ("false", False), ("no", False), ("off", False), ("", False)])
def test_a_switch_can_be_said_in_the_usual_words(text, meant):
    assert from_environment({"PERE_INSECURE": text}) == {"insecure": meant}


@pytest.mark.parametrize("name, text", [("PERE_PORT", "http"), ("PERE_PORT", "80.5"), ("PERE_PORT", ""), ("PERE_RETRY", "soon")])
def test_a_number_that_is_none_is_refused_by_the_name_of_its_variable(name, text):
    with pytest.raises(ConfigError, match=f"^{name} is a number, not {text!r}$"):
        from_environment({name: text})


def test_a_switch_that_is_neither_on_nor_off_is_refused():
    with pytest.raises(ConfigError, match="^PERE_TCP is true or false, not 'ture'$"):
        from_environment({"PERE_TCP": "ture"})


def test_what_is_said_otherwise_is_not_asked_of_the_environment():
    assert from_environment({"PERE_PORT": "http", "PERE_TTL": "9"}, but={"port": 1}) == {"ttl": 9}


def test_a_variable_that_is_no_setting_is_found_with_the_one_that_is_meant():
    assert strangers({"PERE_PROT": "1", "PERE_PORT": "1", "PERE_URL": "u", "HOME": "h", "PERE_XYZZY": "", "PERE_SERVICE_HOST": "10.0.0.1", "PERE_PORT_4567_TCP_ADDR": "10.0.0.1"}) == [("PERE_PROT", "PERE_PORT"), ("PERE_XYZZY", None)]


@pytest.mark.parametrize("url, shown", [
    ("redis://u:p@h:1/0", "redis://u:***@h:1/0"), ("redis://:p@h/0?prefix=a", "redis://:***@h/0?prefix=a"), ("redis://:a:b/c@d@h/0", "redis://:***@h/0"),
    ("redis+sentinel://u:p@h:26379,g:26379/s/0", "redis+sentinel://u:***@h:26379,g:26379/s/0"), ("unix:///r.sock?password=p&db=1", "unix:///r.sock?password=***&db=1"),
    ("redis://h:6379/0", "redis://h:6379/0"), ("sqlite:pere.db", "sqlite:pere.db")])
def test_a_password_in_an_address_is_not_shown(url, shown):
    assert without_password(url) == shown


def test_a_list_is_written_with_commas_and_blanks_do_not_matter():
    assert words(" a, b,,a ,") == {"a", "b"}
    assert Config(cors_origins="https://a.example, https://b.example").origins == {"https://a.example", "https://b.example"}
    assert Config().origins == frozenset()
