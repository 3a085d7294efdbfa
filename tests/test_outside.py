"""Every way that is known of to write an inside address, against the two fences: the URL as it is read, and the name as it is resolved."""

import asyncio
import ipaddress
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.simple_httpclient import SimpleAsyncHTTPClient
from tornado.tcpclient import TCPClient

from pere.config import networks
from pere.errors import BadRequest, ConfigError
from pere.outside import INSIDE, MAX_URL, NotPublic, Outside, OutsideResolver, system_lookup

PUBLIC = Outside()
OPEN = Outside(networks("127.0.0.0/8,10.0.0.0/8,::1/128"), http=True)

# As libc reads them, all of these are 127.0.0.1.
DISGUISED = ["2130706433", "0x7f000001", "0x7F.1", "017700000001", "0177.0.0.1", "0x7f.0x0.0x0.0x1", "127.1", "127.0.1", "127.0.0.01"]


def code(url: str, outside: Outside = PUBLIC) -> str:
    with pytest.raises(BadRequest) as caught:
        outside.target(url)
    return caught.value.code


def reason(address: str, outside: Outside = PUBLIC) -> str | None:
    return outside.why_not(ipaddress.ip_address(address))


class Answers:
    """A name server that gives its answers in order, the last one for ever."""

    def __init__(self, *answers: list[str]):
        self.asked = 0
        self._answers = list(answers)

    def __call__(self, host: str, port: int, family: int) -> list[tuple[int, tuple[str, int]]]:
        self.asked += 1
        found = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [(socket.AF_INET6 if ":" in each else socket.AF_INET, (each, port)) for each in found]


# Addresses


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "93.184.215.14", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0",
                                     "192.0.1.1", "223.255.255.255", "198.17.255.255", "198.20.0.0", "2606:4700:4700::1111",
                                     "2a00:1450:4001:80b::200e", "2001:4860:4860::8888", "2001:200::1", "::ffff:8.8.8.8"])
def test_a_public_address_is_outside(address):
    assert reason(address) is None


@pytest.mark.parametrize("address, words", [
    ("0.0.0.0", "this network"), ("0.1.2.3", "this network"), ("10.1.2.3", "private"), ("100.64.0.1", "carrier"),
    ("100.100.100.200", "carrier"), ("127.0.0.1", "loopback"), ("127.255.255.254", "loopback"), ("169.254.169.254", "link-local"),
    ("172.16.0.1", "private"), ("172.31.255.255", "private"), ("192.0.0.1", "assignments"), ("192.0.0.9", "assignments"),
    ("192.0.0.192", "assignments"), ("192.0.2.1", "documentation"), ("192.88.99.1", "6to4"), ("192.168.1.1", "private"),
    ("198.18.0.1", "benchmarks"), ("198.19.255.255", "benchmarks"), ("198.51.100.1", "documentation"), ("203.0.113.1", "documentation"),
    ("224.0.0.1", "multicast"), ("239.255.255.250", "multicast"), ("240.0.0.1", "reserved"), ("255.255.255.255", "reserved"),
    ("168.63.129.16", "Azure"),
    ("::", "unspecified"), ("::1", "loopback"), ("::7f00:1", "compatible"), ("::8.8.8.8", "compatible"), ("::ffff:127.0.0.1", "loopback"),
    ("::ffff:169.254.169.254", "link-local"), ("::ffff:0:10.0.0.1", "translated"), ("64:ff9b::7f00:1", "NAT64"), ("64:ff9b::8.8.8.8", "NAT64"),
    ("64:ff9b:1::a00:1", "NAT64"), ("100::1", "discard"), ("2001::1", "Teredo"), ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "Teredo"),
    ("2001:1::1", "assignments"), ("2001:2::1", "benchmarks"), ("2001:10::1", "assignments"), ("2001:20::1", "assignments"),
    ("2001:db8::1", "documentation"), ("3fff::1", "documentation"), ("3ffe::1", "6bone"), ("2002:7f00:1::1", "6to4"),
    ("2002:a00:1::", "6to4"), ("2002:808:808::1", "6to4"), ("5f00::1", "segment"), ("fc00::1", "local"), ("fd00:ec2::254", "local"),
    ("fe80::1", "link-local"), ("fe80::1%eth0", "link-local"), ("febf::1", "link-local"), ("fec0::1", "site-local"), ("feff::1", "site-local"),
    ("ff02::1", "multicast"), ("ff0e::1", "multicast"), ("4000::1", "not assigned"), ("1::1", "not assigned"), ("fe00::1", "not assigned"),
])
def test_an_inside_address_is_refused_by_name(address, words):
    assert words in reason(address)


@given(st.sampled_from(sorted(INSIDE, key=str)), st.integers(min_value=0))
def test_every_address_of_an_inside_network_is_inside(network, number):
    assert PUBLIC.why_not(network[number % network.num_addresses]) is not None


@given(st.ip_addresses())
def test_nothing_is_outside_that_python_holds_to_be_inside(address):
    if PUBLIC.why_not(address) is None:
        judged = getattr(address, "ipv4_mapped", None) or address
        assert judged.is_global and not (judged.is_multicast or judged.is_private or judged.is_loopback or judged.is_link_local or judged.is_reserved)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_that_is_written_as_ipv6_is_judged_as_what_it_is(address):
    assert PUBLIC.why_not(ipaddress.IPv6Address(f"::ffff:{address}")) == PUBLIC.why_not(address)


def test_an_allowed_network_is_outside_and_no_more_than_that():
    assert reason("127.0.0.1", OPEN) is reason("10.255.0.1", OPEN) is reason("::1", OPEN) is reason("::ffff:10.0.0.1", OPEN) is None
    assert reason("192.168.0.1", OPEN) and reason("169.254.169.254", OPEN) and reason("::2", OPEN) and reason("64:ff9b::a00:1", OPEN)
    assert reason("64:ff9b::a00:1", Outside(networks("64:ff9b::/96"))) is None


def test_a_setting_of_networks_is_read():
    assert [str(network) for network in networks(" 10.0.0.0/8, fd00::/8,,127.0.0.1 ")] == ["10.0.0.0/8", "fd00::/8", "127.0.0.1/32"]
    assert networks("") == ()


@pytest.mark.parametrize("text", ["10.0.0.0/33", "10.0.0.1/8", "localhost", "10.0.0.0/8;127.0.0.0/8", "*"])
def test_a_setting_that_is_no_network_is_refused(text):
    with pytest.raises(ConfigError, match="networks are like"):
        networks(text)


# URLs


@pytest.mark.parametrize("url, target", [
    ("https://example.com", ("https", "example.com", 443, "/")),
    ("HTTPS://Example.COM/Hook?A=b%20c", ("https", "example.com", 443, "/Hook?A=b%20c")),
    ("https://example.com:8443?x", ("https", "example.com", 8443, "/?x")),
    ("https://xn--mnchen-3ya.example/", ("https", "xn--mnchen-3ya.example", 443, "/")),
    ("https://my_host-1.example/a@b", ("https", "my_host-1.example", 443, "/a@b")),
    ("https://8.8.8.8/", ("https", "8.8.8.8", 443, "/")),
    ("https://[2606:4700::1111]:444/", ("https", "2606:4700::1111", 444, "/")),
    ("https://[2606:4700:0:0::0:1111]/", ("https", "2606:4700::1111", 443, "/")),
    ("https://1.example", ("https", "1.example", 443, "/")),
    ("https://example.0a", ("https", "example.0a", 443, "/")),
])
def test_a_url_is_read_as_it_is_meant(url, target):
    assert PUBLIC.target(url) == target


@pytest.mark.parametrize("url, normal, host", [
    ("https://Example.com:443", "https://example.com/", "example.com"),
    ("http://example.com:443/", "http://example.com:443/", "example.com:443"),
    ("http://[::1]:80/x?y", "http://[::1]/x?y", "[::1]"),
    ("http://[::1]:81/", "http://[::1]:81/", "[::1]:81"),
])
def test_a_target_says_itself_as_a_url_and_as_a_host_header(url, normal, host):
    assert (OPEN.target(url).url, OPEN.target(url).authority) == (normal, host)
    assert OPEN.target(normal) == OPEN.target(url)


def test_http_is_taken_only_where_it_is_allowed():
    assert code("http://example.com/") == "insecure_webhook_url"
    assert Outside(http=True).target("http://example.com/").port == 80


@pytest.mark.parametrize("url", [
    "", "example.com", "//example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://127.0.0.1:6379/_x", "javascript:alert(1)",
    "https:/example.com", "https:example.com", "https://", "https:///path", "https://:443/", "https://?x", " https://example.com",
    # userinfo, and what one reader takes for it and another not
    "https://user:secret@example.com/", "https://@example.com/", "https://example.com@127.0.0.1/", "https://example.com\\@127.0.0.1/",
    "https://127.0.0.1\\.example.com/", "https://example.com/\\x", "https://a@b@c/",
    # fragments
    "https://example.com/#top", "https://example.com#@127.0.0.1/", "https://example.com/?x#",
    # ports
    "https://example.com:0/", "https://example.com:65536/", "https://example.com:99999999/", "https://example.com:/", "https://example.com:-1/",
    "https://example.com:80:80/", "https://example.com:+80/", "https://example.com:8o/",
    # what breaks lines, and what is silently dropped or turned into something else elsewhere
    "https://example.com/\r\nX: y", "https://exa\tmple.com/", "https://example.com/\x00", "https://example.com/a b", "https://example.com/\u00e9",
    "https://m\u00fcnchen.example/", "https://ex\u00adample.com/", "https://%65xample.com/", "https://example.com%00/", "https://example.com/{x}",
    # names that are none
    "https://.example.com/", "https://example..com/", "https://example.com./", "https://example.com../", "https://-a.example/",
    "https://a-.example/", "https://a b/", "https://a,b/", "https://" + "a" * 64 + ".example/", "https://" + "a." * 126 + "aa/", "https://*/",
    # addresses that are none
    "https://[::1/", "https://::1/", "https://[::1]x/", "https://[]/", "https://[127.0.0.1]/", "https://[v1.x]/", "https://[::1%25eth0]/",
    "https://[fe80::1%eth0]/", "https://[::1]]/", "https://256.1.1.1/", "https://1.2.3.4.5/", "https://example.1/", "https://a.0x7f/", "https://1.2.3./",
    "https://0x/", "https://08.8.8.8/", "https://8.8.8.8./", "https://134744072/",
])
def test_a_url_that_could_be_read_in_two_ways_is_refused(url):
    assert code(url) == "bad_webhook_url"
    assert code(url, OPEN) == "bad_webhook_url"


def test_a_url_has_a_longest_length():
    url = "https://example.com/"
    assert PUBLIC.target(url + "x" * (MAX_URL - len(url)))
    assert code(url + "x" * (MAX_URL - len(url) + 1)) == "bad_webhook_url"


def test_a_password_in_a_url_is_not_repeated():
    with pytest.raises(BadRequest) as caught:
        PUBLIC.target("https://user:hunter2@example.com/")
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
                                  "[::127.0.0.1]", "[64:ff9b::10.0.0.1]", "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2001::1]", "[fe80::1]", "[fec0::1]",
                                  "[ff02::1]", "[0:0:0:0:0:ffff:a9fe:a9fe]"])
def test_an_inside_address_is_refused_in_the_url_already(host):
    assert code(f"https://{host}/") == "inside_address"


@pytest.mark.parametrize("host", DISGUISED)
def test_an_address_in_disguise_is_refused_even_where_it_is_allowed(host):
    assert code(f"https://{host}/") == code(f"http://{host}:8080/x", OPEN) == "bad_webhook_url"
    assert code(f"https://{host}./") == "bad_webhook_url"


@given(st.text(max_size=40))
def test_whatever_stands_in_a_url_it_is_read_or_refused(text):
    for url in (text, f"https://{text}", f"https://{text}.example/", f"https://example.com{text}"):
        try:
            target = PUBLIC.target(url)
        except BadRequest:
            continue
        assert PUBLIC.target(target.url) == target
        assert target.url.isascii() and target.url.isprintable() and " " not in target.url


@given(st.ip_addresses(v=4), st.sampled_from(["{}", "{:#x}", "0{:o}", "{:#X}"]))
def test_no_form_of_an_ipv4_address_but_one_is_ever_taken(address, form):
    text = form.format(int(address))
    assert code(f"https://{text}/", OPEN) == "bad_webhook_url"


# Names, as they are resolved


async def resolved(host: str, outside: Outside = PUBLIC, lookup=None) -> list[str]:
    return [address[0] for _, address in await OutsideResolver(outside, lookup).resolve(host, 443)]


@pytest.mark.parametrize("host", [*DISGUISED, "127.0.0.1", "::1", "::ffff:127.0.0.1", "localhost", "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
                                  "127\u30020\u30020\u30021", "\u2460\u2461\u2466.0.0.1"])
async def test_whatever_the_system_takes_for_loopback_is_refused_if_it_gets_that_far(host):
    """The URL with such a host was refused already: here is what would happen if it had not been."""
    try:
        system_lookup(host, 443, 0)
    except OSError:
        with pytest.raises(OSError):
            await resolved(host)
        return
    with pytest.raises(NotPublic, match=r"no public address: .*loopback"):
        await resolved(host)
    assert set(await resolved(host, OPEN)) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.parametrize("host", ["fe80::1%lo", "0", "0.0.0.0", "::", "169.254.169.254", "64:ff9b::7f00:1", "2852039166", "0xa9fea9fe"])
async def test_whatever_the_system_takes_for_another_inside_address_is_refused(host):
    with pytest.raises(OSError):
        await resolved(host)


async def test_a_public_address_resolves_to_itself():
    assert await resolved("8.8.8.8") == ["8.8.8.8"]
    assert await resolved("2606:4700::1111") == ["2606:4700::1111"]


async def test_of_a_mixed_answer_only_what_is_outside_is_used():
    mixed = Answers(["10.0.0.1", "93.184.215.14", "::1", "2606:4700::1111", "169.254.169.254"])
    assert await resolved("mixed.example", lookup=mixed) == ["93.184.215.14", "2606:4700::1111"]
    assert await resolved("mixed.example", OPEN, mixed) == ["10.0.0.1", "93.184.215.14", "::1", "2606:4700::1111"]


async def test_a_refusal_names_the_addresses_and_what_they_belong_to():
    with pytest.raises(NotPublic, match=r"'in.example' has no public address: 10.0.0.1 \(private .*\), fe80::1 \(link-local"):
        await resolved("in.example", lookup=Answers(["10.0.0.1", "fe80::1", "10.0.0.1"]))
    with pytest.raises(NotPublic, match="none at all"):
        await resolved("in.example", lookup=Answers([]))


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "nul\x00.example", "", "\ud800"])
async def test_a_name_that_is_none_is_not_found_and_nothing_worse(host):
    with pytest.raises(socket.gaierror):
        await resolved(host)


async def test_an_answer_that_changes_after_it_was_checked_is_harmless():
    """DNS rebinding: the addresses that are judged are those that are connected to, and each connection has its own."""
    name_server = Answers(["8.8.8.8"], ["127.0.0.1"])
    knocks = []
    server = await asyncio.start_server(lambda reader, writer: knocks.append(writer.close()), "127.0.0.1")
    async with server:
        port = server.sockets[0].getsockname()[1]
        resolver = OutsideResolver(PUBLIC, name_server)
        assert [address for _, address in await resolver.resolve("rebind.example", port)] == [("8.8.8.8", port)]
        for _ in range(2):
            with pytest.raises(NotPublic):
                await TCPClient(resolver).connect("rebind.example", port)
    assert name_server.asked == 3
    assert knocks == []


@pytest.mark.parametrize("host", ["rebind.example", "127.0.0.1", "127.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "localhost"])
async def test_the_resolver_guards_tornados_own_client_as_well(host):
    knocks = []
    server = await asyncio.start_server(lambda reader, writer: knocks.append(writer.close()), "127.0.0.1")
    async with server:
        lookup = Answers(["127.0.0.1"]) if host == "rebind.example" else None
        client = SimpleAsyncHTTPClient(force_instance=True, resolver=OutsideResolver(PUBLIC, lookup))
        with pytest.raises(NotPublic):
            await client.fetch("http://%s:%d/" % (host, server.sockets[0].getsockname()[1]))
        client.close()
    assert knocks == []


class Silent:
    """A name server that does not answer for `slow.example` until it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.told = threading.Event()

    def __call__(self, host: str, port: int, family: int) -> list[tuple[int, tuple[str, int]]]:
        self.asked += 1
        if host == "slow.example":
            self.told.wait(20)
        return [(socket.AF_INET, ("8.8.8.8", port))]


async def test_a_name_server_that_is_silent_delays_nobody_else():
    silent = Silent()
    resolver = OutsideResolver(PUBLIC, silent)
    waiting = [asyncio.ensure_future(resolver.resolve("slow.example", 443)) for _ in range(100)]
    for number in range(100):
        assert await resolver.resolve(f"{number}.example", 443)
    # A hundred who ask for the same name take no more than one thread.
    assert silent.asked == 101
    waiting[0].cancel()
    silent.told.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    assert all(await asyncio.gather(*waiting[1:]))
    # What was found is not kept: the next one asks again.
    assert await resolver.resolve("slow.example", 443)
    assert silent.asked == 102
