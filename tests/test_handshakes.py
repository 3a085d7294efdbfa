"""Limits on who speaks TLS hold before the handshake: nothing is computed for who cannot stay."""

import asyncio
import resource
import socket
import ssl

import pytest
import wire

OTHER = "127.0.0.2"


@pytest.fixture
def secured(start, authority):
    """`server = await secured(peer_connects="0.1/1")`: one that speaks TLS, and exempts nobody."""

    async def secured(**config):
        cert, key = authority.sign("limited")
        return await start(**{"tls_cert": cert, "tls_key": key, "limits_exempt": ""} | config)

    return secured


@pytest.fixture
def come(start):
    """`line = await come("127.0.0.2")`: somebody who has connected and has said nothing yet."""
    lines = []

    async def come(address="127.0.0.1"):
        lines.append(await wire.Wire.open(start.servers[-1].port, source=address))
        return lines[-1]

    yield come
    for line in lines:
        line.close()


async def test_who_connects_too_often_is_cut_before_a_word_is_said_and_the_others_are_served(secured, come, authority):
    server = await secured(peer_connects="0.01/1")
    first, second, other = await come(), await come(), await come(OTHER)
    assert await second.rest() == b""
    for line in (first, other):
        await line.shake_hands(authority.context)
        await line.send(wire.said("GET", "/healthz"))
        assert (await line.answer()).status == 200
    assert +server.gate.limited == {("connects", "client"): 1}
    assert [account.connections for account in server.gate.accounts.known.values()] == [1, 1]


async def test_one_client_has_only_so_many_handshakes_under_way_and_its_others_wait(secured, come, authority, until):
    server = await secured(max_handshakes_per_peer=3)
    silent = [await come() for _ in range(3)]
    waiting = [await come() for _ in range(5)]
    await until(lambda: server.door.handshakes == 8)
    hands = [asyncio.ensure_future(line.shake_hands(authority.context)) for line in waiting]
    other = await come(OTHER)
    await other.shake_hands(authority.context)
    assert not any(each.done() for each in hands)
    await silent[0].shake_hands(authority.context)
    await asyncio.gather(*hands)
    await until(lambda: (server.door.handshakes, len(server.door.connections)) == (2, 7))
    await waiting[-1].send(wire.said("GET", "/healthz"))
    assert (await waiting[-1].answer()).status == 200


async def test_who_waits_for_a_handshake_when_the_server_ends_is_let_go(secured, come, until):
    server = await secured(max_handshakes_per_peer=1)
    lines = [await come() for _ in range(5)]
    await until(lambda: server.door.handshakes == 5)
    account, = server.gate.accounts.known.values()
    await server.stop()
    assert [await line.rest() for line in lines[1:]] == [b""] * 4
    assert account.connections <= 1


@pytest.mark.parametrize("how", ["is silent", "says what is not TLS", "goes"])
async def test_a_handshake_that_comes_to_nothing_leaves_nothing_behind(secured, come, until, monkeypatch, how):
    server = await secured(head_timeout=0.3 if how == "is silent" else 3600)
    monkeypatch.setattr(server.gate.accounts, "clear", lambda *_: None)  # else who holds nothing is forgotten once a second
    lines = [await come() for _ in range(20)]
    if how != "is silent":  # else the first have been let go before the last have come, on a slow machine
        await until(lambda: server.door.handshakes == 20)
    for line in lines:
        if how == "goes":
            line.reset()
        elif how == "is silent":
            assert await line.rest() == b""
        else:
            await line.send(b"GET / HTTP/1.1\r\n\r\n")
    await until(lambda: not server.door.handshakes)
    account, = server.gate.accounts.known.values()
    assert (account.connections, account.handshakes, len(server.door.connections)) == (0, 0, 0)


async def test_connections_that_are_yet_to_be_count_among_all_that_there_may_be(secured, come):
    server = await secured(max_connections=4, max_connections_per_peer=4)
    for number in range(4):
        await come(f"127.0.0.{number + 2}")
    assert await (await come("127.0.0.9")).rest() == b""
    assert +server.gate.limited == {("connections", "all"): 1}


async def test_many_handshakes_at_once_are_all_made_and_who_is_there_is_served_meanwhile(secured, come, authority, until):
    server = await secured(max_handshakes_per_peer=10)
    friend = await come(OTHER)
    await friend.shake_hands(authority.context)
    crowd = [await come() for _ in range(100)]
    hands = asyncio.gather(*(line.shake_hands(authority.context) for line in crowd))
    served = 0
    while not hands.done():
        await friend.send(wire.said("POST", "/push/c", b"1"))
        assert (await friend.answer()).status == 201
        served += 1
    await hands
    assert served
    await until(lambda: (len(server.door.connections), server.door.handshakes) == (101, 0))


async def test_where_no_file_can_be_opened_they_wait_until_one_can(secured, come, authority, caplog, monkeypatch):
    server = await secured()
    monkeypatch.setattr("pere.listening.REST", 0.05)
    listener, = server.listeners._open
    taken = listener.sock

    class Full:
        """The socket of a process that has as many files open as it may have, for a moment."""

        def __init__(self):
            self.left = 2

        def fileno(self):
            return taken.fileno()

        def accept(self):
            self.left -= 1
            if self.left >= 0:
                raise OSError(24, "Too many open files")
            listener.sock = taken
            return taken.accept()

    listener.sock = Full()
    line = await come()
    await line.shake_hands(authority.context)
    assert [record.getMessage() for record in caplog.records if record.name == "pere.listening"] == ["no connection can be taken"] * 2
    caplog.clear()


async def test_certificates_are_checked_as_ever(secured, come):
    await secured()
    line = await come()
    with pytest.raises(ssl.SSLCertVerificationError):
        await line.shake_hands(ssl.create_default_context())


# A crowd


async def test_a_crowd_is_taken_some_at_a_time_and_when_it_is_over_the_loop_takes_them_again(start, come, until, monkeypatch):
    monkeypatch.setattr("pere.listening.CROWD", 5)
    monkeypatch.setattr("pere.listening.MOMENT", 3600.0)
    monkeypatch.setattr("pere.listening.CALM", 3600.0)
    monkeypatch.setattr("pere.listening.TURN", 3600.0)  # else one that takes long passes for many, and nobody comes behind it here
    server = await start(limits_exempt="", max_connections_per_peer=20, reuse_port=True)
    listener, = server.listeners._open
    fleet = [await _knock(server.port) for _ in range(20)]
    await until(lambda: len(server.door.connections) == 20)
    assert listener._server is not None  # a fleet that may come is no crowd
    socks = [*fleet, *[await _knock(server.port) for _ in range(6)]]
    await until(lambda: listener._server is None)
    crowd = [await come(OTHER) for _ in range(10)]
    for line in crowd:
        await line.send(wire.said("POST", "/push/c", b"1"))
        assert (await line.answer()).status == 201
    late = await come()
    answer = await late.answer()
    assert answer.error == (429, "too_many_connections")
    assert await late.rest() == b""
    assert +server.gate.limited == {("connections", "client"): 7}
    listener._crowded = 0.0  # long ago
    friend = await come(OTHER)
    await friend.send(wire.said("POST", "/push/c", b"1"))
    assert (await friend.answer()).status == 201
    await until(lambda: listener._server is not None)
    again = await come(OTHER)
    await again.send(wire.said("POST", "/push/c", b"1"))
    assert (await again.answer()).status == 201
    for sock in socks:
        sock.close()
    for line in crowd:
        line.close()
    await until(lambda: len(server.door.connections) == 2)
    assert server.door.handshakes == 0


async def test_a_server_that_ends_in_the_middle_of_a_crowd_still_serves_who_was_connected(start, until, monkeypatch):
    monkeypatch.setattr("pere.listening.CROWD", 5)
    monkeypatch.setattr("pere.listening.MOMENT", 3600.0)
    monkeypatch.setattr("pere.listening.CALM", 3600.0)
    server = await start(limits_exempt="", max_connections_per_peer=20, reuse_port=True)
    listener, = server.listeners._open
    socks = [await _knock(server.port) for _ in range(26)]
    await until(lambda: listener._server is None)
    socks += [await _knock(server.port) for _ in range(26)]
    await server.stop()
    for sock in socks:
        sock.close()
    assert not server.door.connections


async def test_where_no_file_can_be_opened_when_a_crowd_is_over_they_are_taken_all_the_same(start, come, caplog, monkeypatch):
    monkeypatch.setattr("pere.listening.TURN", 3600.0)  # else it may be over before somebody was looked for
    server = await start(reuse_port=True)
    listener, = server.listeners._open
    listener.take_over()
    listener._crowded = 0.0  # long ago
    listener._accept()  # nobody is there, so the loop is to take them again
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
    try:
        await asyncio.wait((listener._starting,))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    friend = await come()
    await friend.send(wire.said("POST", "/push/c", b"1"))
    assert (await friend.answer()).status == 201
    assert "Too many open files" in str([record.facts for record in caplog.records if record.levelname == "ERROR"])
    caplog.clear()


async def _knock(port):
    """A connection that nobody is given time to take."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(("127.0.0.1", port))
    return sock
