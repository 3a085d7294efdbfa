"""Who a client is: the address of its socket, and which part of what proxies say of it is believed."""

import pytest
from doors import io_loop, no_surprises, opened, request  # noqa: F401

from pere.config import Config
from pere.errors import ConfigError
from pere.peers import MAX_HOPS, UNIX, Proxies, of_socket


def trusting(text: str) -> Proxies:
    return Proxies(*Config(trusted_proxies=text).proxies)


INSIDE = trusting("10.0.0.0/8, 192.168.1.1, fd00::/8, unix")


def said(*lines: str) -> list[tuple[bytes, bytes]]:
    """Headers in which each line is an X-Forwarded-For."""
    return [(b"host", b"a"), *((b"x-forwarded-for", line.encode("latin-1")) for line in lines)]


# The socket


@pytest.mark.parametrize("name, address", [
    (("192.0.2.1", 4321), "192.0.2.1"), (("2001:db8::1", 4321, 0, 0), "2001:db8::1"), (("::ffff:192.0.2.1", 4321, 0, 0), "192.0.2.1"),
    (("fe80::1%eth0", 4321, 0, 2), "fe80::1"), ("", UNIX), (b"", UNIX), (None, UNIX)])
def test_a_socket_has_an_address_or_is_a_unix_socket(name, address):
    assert of_socket(name) == address


# What is believed


@pytest.mark.parametrize("lines, client", [
    ((), "10.1.2.3"),
    (("",), "10.1.2.3"),
    (("198.51.100.7",), "198.51.100.7"),
    (("6.6.6.6, 198.51.100.7",), "198.51.100.7"),
    (("6.6.6.6, 198.51.100.7, 10.9.9.9, 192.168.1.1",), "198.51.100.7"),
    (("6.6.6.6", "198.51.100.7", "10.9.9.9"), "198.51.100.7"),
    (("198.51.100.7,10.9.9.9 ,\t192.168.1.1 ",), "198.51.100.7"),
    (("10.9.9.9, 10.8.8.8",), "10.9.9.9"),
    (("2001:db8::0001",), "2001:db8::1"),
    (("2001:DB8::1, fd00::2",), "2001:db8::1"),
    (("::ffff:198.51.100.7",), "198.51.100.7"),
    (("198.51.100.7, ::ffff:10.9.9.9",), "198.51.100.7"),
    (("198.51.100.7:4711",), "198.51.100.7"),
    (("[2001:db8::1]:4711",), "2001:db8::1"),
    (("[2001:db8::1]",), "2001:db8::1"),
])
def test_the_client_is_the_rightmost_address_that_is_no_trusted_proxy(lines, client):
    assert INSIDE.peer("10.1.2.3", said(*lines)) == client


@pytest.mark.parametrize("word", ["unknown", "_hidden", "", "198.51.100", "198.51.100.7.8", "0x7f000001", "127.1", "198.51.100.7:port", "[2001:db8::1", "[2001:db8::1]x",
                                  "[]", ":", "198.51.100.7 10.0.0.1", '"198.51.100.7"', "a" * 16_000, "1" * 16_000, "\xe9", "198.51.100.7;by=me", "http://198.51.100.7"])
def test_where_a_word_is_no_address_it_is_the_proxy_that_said_so(word):
    assert INSIDE.peer("10.1.2.3", said(f"6.6.6.6, {word}, 10.9.9.9")) == "10.9.9.9"
    assert INSIDE.peer("10.1.2.3", said(word)) == "10.1.2.3"


def test_who_is_no_trusted_proxy_says_what_it_likes():
    for proxies in (INSIDE, trusting(""), trusting("unix")):
        assert proxies.peer("203.0.113.9", said("10.0.0.1")) == "203.0.113.9"
        assert proxies.scheme("203.0.113.9", [(b"x-forwarded-proto", b"https")], "http") == "http"


def test_a_unix_socket_is_believed_where_that_was_said():
    assert INSIDE.peer(UNIX, said("198.51.100.7")) == "198.51.100.7"
    assert INSIDE.peer(UNIX, said()) == UNIX
    assert trusting("10.0.0.0/8").peer(UNIX, said("198.51.100.7")) == UNIX


def test_a_chain_that_goes_round_and_round_is_not_followed_for_ever():
    assert INSIDE.peer("10.1.2.3", said("6.6.6.6" + ", 10.9.9.9" * MAX_HOPS)) == "10.9.9.9"
    assert INSIDE.peer("10.1.2.3", said("6.6.6.6" + ", 10.9.9.9" * (MAX_HOPS - 1))) == "6.6.6.6"


@pytest.mark.parametrize("words, scheme", [
    ([], "http"), (["https"], "https"), (["HTTPS "], "https"), (["http"], "http"), (["http, https"], "https"), (["https", "http"], "http"),
    (["ftp"], "http"), ([""], "http"), (["https\xe9"], "http")])
def test_a_trusted_proxy_says_what_the_client_speaks(words, scheme):
    assert INSIDE.scheme("10.1.2.3", [(b"x-forwarded-proto", word.encode("latin-1")) for word in words], "http") == scheme


@pytest.mark.parametrize("trusted", ["everybody", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/8;unix", "*"])
def test_what_is_no_network_cannot_be_trusted(trusted):
    with pytest.raises(ConfigError, match="^--trusted-proxies: networks are like"):
        trusting(trusted)


# Over real sockets


@pytest.mark.parametrize("trusted, seen", [("", ("127.0.0.1", "http")), ("127.0.0.0/8", ("198.51.100.7", "https")), ("192.0.2.0/24", ("127.0.0.1", "http"))])
async def test_handlers_and_hot_functions_see_the_same_client(trusted, seen):
    forwarded = ["X-Forwarded-For: 6.6.6.6", "x-forwarded-for: 198.51.100.7", "X-Forwarded-Proto: https", "Forwarded: for=7.7.7.7", "X-Real-IP: 8.8.8.8"]
    async with opened(trusted_proxies=trusted) as house:
        for line, body in (("GET /echo/a", b""), ("POST /hot/a", b"body")):
            told = (await house.ask(request(line, body, *forwarded))).json
            assert (told["ip"], told["scheme"]) == seen
            told = (await house.ask(request(line, body))).json
            assert (told["ip"], told["scheme"]) == ("127.0.0.1", "http")
