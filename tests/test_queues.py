"""Who connects waits in a queue by his address, so one who floods his own keeps nobody else out. Real sockets; on Linux alone there are many queues."""

import asyncio
import ipaddress
import re
import socket
import sys
from collections import Counter, defaultdict

import pytest
import wire

from pere import listening, queues

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has many queues on one port")

FLOODER = "127.0.0.2"
HOSTS = [f"127.0.7.{n}" for n in range(1, 251)]


@pytest.fixture
def port():
    """`first, others = port()`: a socket that listens, and those beside it."""
    made = []

    def port(family=socket.AF_INET, backlog=64):
        first = socket.socket(family)
        made.append(first)
        first.setblocking(False)
        first.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        first.listen(backlog)
        others = queues.beside(first, backlog)
        made.extend(others)
        return first, others

    yield port
    for sock in made:
        sock.close()


@pytest.fixture
def knock():
    """`knock(port, "127.0.0.2")`: somebody who connects, and whom nobody has to take."""
    socks = []

    def knock(port, address=""):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        socks.append(sock)
        sock.setblocking(False)
        if address:
            sock.bind((address, 0))
        sock.connect_ex(("::1" if ":" in address else "127.0.0.1", port))
        return sock

    yield knock
    for sock in socks:
        sock.close()


def taken(socks):
    """By address, the numbers of the queues in which it waited."""
    found = defaultdict(Counter)
    for number, sock in enumerate(socks):
        while True:
            try:
                visitor, address = sock.accept()
            except BlockingIOError:
                break
            visitor.close()
            found[address[0]][number] += 1
    return found


def test_each_client_waits_in_one_queue_and_there_are_many(port, knock):
    first, others = port()
    for host in HOSTS * 2:
        knock(first.getsockname()[1], host)
    assert sum(queues.waiting(sock) for sock in (first, *others)) == 500
    found = taken([first, *others])
    assert len(found) == len(HOSTS) and all(list(queue.values()) == [2] for queue in found.values())
    used = Counter(next(iter(queue)) for queue in found.values())
    assert len(used) > queues.QUEUES * 0.8 and max(used.values()) < 40  # 250 addresses, drawn at random: about 8 each


def test_another_secret_separates_who_shared_a_queue(port, knock):
    first, others = port()
    shares = []
    for _ in range(6):  # that somebody shares it each time by chance is one case in millions
        for host in HOSTS:
            knock(first.getsockname()[1], host)
        found = taken([first, *others])
        queue = {host: next(iter(found[host])) for host in HOSTS}
        shares.append({host for host in HOSTS if queue[host] == queue[HOSTS[0]]} - {HOSTS[0]})
        queues.sort(first)
    assert not set.intersection(*shares)


def test_who_is_loud_has_a_queue_that_nobody_else_comes_to(port, knock):
    first, others = port()
    queues.sort(first, ["2001:db8::/64", FLOODER, "127.0.7.9", "unix:"])
    for host in [FLOODER, *HOSTS] * 2:
        knock(first.getsockname()[1], host)
    found = {host: next(iter(queue)) for host, queue in taken([first, *others]).items()}
    assert {host for host, queue in found.items() if queue == queues.QUEUES - 2} == {FLOODER}
    assert {host for host, queue in found.items() if queue == queues.QUEUES - 3} == {"127.0.7.9"}
    assert len(found) == 1 + len(HOSTS) and len(set(found.values())) > queues.QUEUES * 0.8


@pytest.fixture
def by_hand(port, monkeypatch):
    """`of = by_hand("2001:db8::/64")`: the queue of an address of IPv6, beside who is loud. What the kernel is told is run here, for no machine has a
    thousand addresses of IPv6 to connect from."""
    told = []
    real = queues.attach
    monkeypatch.setattr(queues, "attach", lambda sock, program: told.append(program) or real(sock, program))

    def by_hand(*loud):
        queues.sort(port(socket.AF_INET6)[0], loud)
        program = told[-1]
        return lambda address: run(program, bytes(8) + ipaddress.IPv6Address(address).packed + bytes(16))

    return by_hand


def test_of_ipv6_who_is_loud_is_so_with_its_whole_network(by_hand):
    of = by_hand("2001:db8:1:2::/64", "127.0.0.2", "2001:db8:1:3::/64")
    last = queues.QUEUES - 1
    assert {of(f"2001:db8:1:2:{n:x}::{n:x}") for n in range(50)} == {last} and of("2001:db8:1:3::9") == last - 2
    assert {of(f"2001:db8:1:{n:x}::1") for n in range(4, 500)} | {of("2001:db8:2:2::1")} == set(range(last - 2))


def test_of_ipv6_the_network_counts(by_hand):
    of = by_hand()
    assert len({of(f"2001:db8:1:2:{n:x}::{n:x}") for n in range(200)}) == 1
    assert len({of(f"2001:db8:1:{n:x}::1") for n in range(500)}) == queues.QUEUES
    assert len({of(f"2001:{n:x}:1:2::1") for n in range(500)}) == queues.QUEUES


def run(program, head):
    """What a program of classic BPF makes of the head of a packet."""
    a = x = left_out = 0
    for instruction, operand, otherwise in program:
        if left_out:
            left_out -= 1
            continue
        match instruction:
            case queues.EQUAL:
                left_out = otherwise if a != operand else 0
            case queues.RETURN_K:
                return operand
            case queues.LOAD:
                place = operand - queues.NETWORK
                a = int.from_bytes(head[place : place + 4], "big")
            case queues.TO_X:
                x = a
            case queues.XOR_K:
                a ^= operand
            case queues.XOR_X:
                a ^= x
            case queues.MULTIPLY:
                a = a * operand & 0xFFFFFFFF
            case queues.SHIFT:
                a >>= operand
            case queues.REMAINDER:
                a %= operand
            case queues.RETURN:
                return a
    raise AssertionError("it does not return")


@pytest.mark.parametrize("options", [(), (socket.SO_REUSEADDR,)], ids=["plain", "reuseaddr"])
def test_the_port_is_still_ours_alone(port, options):
    first, _ = port()
    with socket.socket() as other:
        for option in options:
            other.setsockopt(socket.SOL_SOCKET, option, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(first.getsockname())
            other.listen()


def test_where_somebody_else_may_listen_too_there_is_one_queue():
    with socket.socket() as sock:
        assert queues.can_be_many(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        assert not queues.can_be_many(sock)
    with socket.socket(socket.AF_UNIX) as sock:
        assert not queues.can_be_many(sock)


async def test_who_floods_the_queue_keeps_nobody_out(start, knock, until, monkeypatch):
    monkeypatch.setattr(listening, "BACKLOG", 64)
    server = await start(limits_exempt="", max_connections_per_peer=40)
    (listener,) = server.listeners._open
    flood = [knock(server.port, FLOODER) for _ in range(60)]  # before the loop has a turn, so they wait
    assert queues.waiting(listener.sock) == 60
    listener.look(server.wheel.now)
    assert len(listener._others) == queues.QUEUES - 1
    await until(lambda: all(other._starting.done() for other in listener._others))
    # Without a turn of the loop again: his queue is full, and those of nearly all others are empty.
    for _ in range(300):
        flood.append(knock(server.port, FLOODER))
    friends = [knock(server.port, host) for host in HOSTS[:40]]
    assert max(queues.waiting(each.sock) for each in (listener, *listener._others)) > 60
    asyncio.get_running_loop().call_soon(listener.look, server.wheel.now + listening.SORTED)
    served = 0
    for friend in friends:
        try:
            friend.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        except BlockingIOError:
            continue  # not even connected: it shares the queue of the flood
        got = b""
        while piece := await asyncio.get_running_loop().sock_recv(friend, 4096):
            got += piece
        served += got.startswith(b"HTTP/1.1 200")
    assert served > 30
    assert server.gate.limited["connections", "client"]


async def test_who_fills_a_queue_has_one_for_itself_as_long_as_it_does(start, knock, until, monkeypatch):
    monkeypatch.setattr(listening, "MANY", 5)
    server = await start(limits_exempt="", max_connections_per_peer=10)
    (listener,) = server.listeners._open
    flood = []

    def is_loud():
        # Who was let in, was refused and has gone again is not told of by the loop; and its queue is never empty.
        while flood:
            flood.pop().close()
        flood.extend(knock(server.port, FLOODER) for _ in range(60))
        listener.look(server.wheel.now)
        return list(listener._loud) == [FLOODER]

    await until(is_loud)
    for host in HOSTS[:20]:
        friend = await wire.Wire.open(server.port, source=host)
        await friend.send(wire.said("GET", "/healthz"))
        assert (await friend.answer()).status == 200
        friend.close()
    for sock in flood:
        sock.close()
    await until(lambda: not any(queues.waiting(each.sock) for each in (listener, *listener._others)))
    listener.look(server.wheel.now + listening.STILL + 1)
    assert not listener._loud


async def test_a_server_that_ends_with_many_queues_serves_who_was_connected_and_frees_its_port(start, knock, until, monkeypatch):
    monkeypatch.setattr(listening, "MANY", 5)
    server = await start(limits_exempt="")
    (listener,) = server.listeners._open
    first = [knock(server.port) for _ in range(6)]
    listener.look(server.wheel.now)
    await until(lambda: all(other._starting.done() for other in listener._others))
    assert listener._others and server.listeners.urls == [server.url]
    late = [await wire.Wire.open(server.port, source=host) for host in HOSTS[:20]]
    for line in late:
        await line.send(wire.said("POST", "/push/c", b"1"))
    await server.stop()
    assert [(await line.answer()).status for line in late] == [201] * 20
    for line in late:
        line.close()
    assert not server.door.connections and first
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", server.port))
        again.listen()


async def test_tls_has_many_queues_too(start, authority, knock, until, monkeypatch):
    monkeypatch.setattr(listening, "MANY", 5)
    cert, key = authority.sign("queued")
    server = await start(tls_cert=cert, tls_key=key, limits_exempt="")
    (listener,) = server.listeners._open
    crowd = [knock(server.port) for _ in range(6)]
    listener.look(server.wheel.now)
    await until(lambda: all(other._starting.done() for other in listener._others))
    for host in HOSTS[:5]:
        line = await wire.Wire.open(server.port, source=host)
        await line.shake_hands(authority.context)
        await line.send(wire.said("GET", "/healthz"))
        assert (await line.answer()).status == 200
        line.close()
    assert len(crowd) == 6 and len(listener._others) == queues.QUEUES - 1


async def test_without_files_for_more_queues_there_stays_the_one(start, knock, monkeypatch, caplog):
    monkeypatch.setattr(listening, "MANY", 5)
    server = await start(limits_exempt="")
    (listener,) = server.listeners._open
    crowd = [knock(server.port) for _ in range(6)]

    def none(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(listening, "beside", none)
    listener.look(server.wheel.now)
    assert not listener._others and len(crowd) == 6
    assert re.search("no further queues", caplog.text)
    caplog.clear()


def test_who_comes_while_the_other_queues_are_closed_comes_to_the_first_which_can_have_others_again(port, knock):
    # So it is where another process goes on with the first one.
    first, others = port()
    queues.gather(first)
    for host in HOSTS[:100]:
        if int(host.rpartition(".")[2]) % 4 == 0 and others:
            others.pop().close()
        knock(first.getsockname()[1], host)
    assert queues.waiting(first) == 65  # its backlog is 64, and the kernel takes one more
    taken([first])
    for other in others:
        other.close()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    assert queues.can_be_many(first)
    others[:] = queues.beside(first, 64)
    for host in HOSTS:
        knock(first.getsockname()[1], host)
    assert len({next(iter(queue)) for queue in taken([first, *others]).values()}) > queues.QUEUES * 0.8
    for other in others:
        other.close()
