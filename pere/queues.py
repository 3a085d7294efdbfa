"""Who waits to be accepted, each client in one of many queues.

The kernel has one queue for all who connect to a socket, and drops who comes while it is full. So whoever connects without end keeps the others
out before we hear of them. Where many wait there are therefore many sockets on the one port (SO_REUSEPORT), and a small program (classic BPF)
tells the kernel which of them a client comes to, by the address: of IPv6 by the /64, as limits do. A flood then fills its own queue, and
the loop takes one connection of each in each turn. Who shares a queue with whom is a secret, and another one every few seconds, so nobody is left
for long with the one who floods (McKenney, Stochastic fairness queueing, 1990); and who is seen to fill one is *loud*, and has another one for itself. Linux
does that; elsewhere there is the one queue.

The port is ours alone all the same: who wants it has to be refused by all sockets on it, and the first listened before it shared.
"""

import ctypes
import ipaddress
import socket
import struct
import sys
from collections.abc import Collection
from random import SystemRandom

QUEUES = 32  # one in so many shares that of a flood, as long as it is not known whose that is

# From <asm/socket.h>, <linux/tcp.h> and <linux/bpf_common.h>; the socket module does not name them.
SO_ATTACH_REUSEPORT_CBPF = 51
UNACKED = struct.Struct("24x I")  # in what TCP_INFO tells: of a socket that listens, how many wait
LOAD, TO_X, XOR_K, XOR_X, MULTIPLY, SHIFT, REMAINDER, EQUAL, RETURN, RETURN_K = 0x20, 0x07, 0xA4, 0xAC, 0x24, 0x74, 0x94, 0x15, 0x16, 0x06
Step = tuple[int, int, int]  # an instruction, its operand, and how many steps are left out where what it compares is not equal
NETWORK = -0x100000  # SKF_NET_OFF: from where the head of IP begins
SOURCE = {socket.AF_INET: (12,), socket.AF_INET6: (8, 12)}  # where in it the address is that counts, in words of four bytes

secrets = SystemRandom()


def can_be_many(sock: socket.socket) -> bool:
    """Whether there can be further queues beside this one; where somebody else may listen on its port too, whose clients these are is not ours to say."""
    return sys.platform == "linux" and sock.family in SOURCE and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)


def waiting(sock: socket.socket) -> int:
    """How many wait to be accepted."""
    count: int = UNACKED.unpack_from(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, UNACKED.size))[0]
    return count


def beside(first: socket.socket, backlog: int) -> list[socket.socket]:
    """The other sockets on the address where this one listens, which listen too. Raises OSError, and then there are none."""
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made: list[socket.socket] = []
    try:
        for _ in range(QUEUES - 1):
            made.append(each := socket.socket(first.family, first.type))
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if first.family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.bind(first.getsockname())
            each.listen(backlog)
        sort(first)
    except OSError:
        for each in made:
            each.close()
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
        raise
    return made


def sort(first: socket.socket, loud: Collection[str] = ()) -> None:
    """From now on it is another secret by which clients are put into the queues. The first of the loud ones (as `limits.client_of` names them) has the
    last queue, and so on; nobody else comes to these. Who waits in one stays there."""
    places = SOURCE[first.family]
    program: list[Step] = []
    for queue, client in enumerate(loud, 1):
        words = _words(client, socket.AddressFamily(first.family))
        for number, word in enumerate(words):
            program += [(LOAD, NETWORK + places[number], 0), (EQUAL, word, 2 * (len(words) - number) - 1)]
        program += [(RETURN_K, QUEUES - queue, 0)] if words else []
    program += [(LOAD, NETWORK + places[0], 0), (XOR_K, secrets.getrandbits(32), 0), (MULTIPLY, secrets.getrandbits(32) | 1, 0)]
    for place in places[1:]:
        program += [(TO_X, 0, 0), (LOAD, NETWORK + place, 0), (XOR_X, 0, 0), (MULTIPLY, secrets.getrandbits(32) | 1, 0)]
    program += [(TO_X, 0, 0), (SHIFT, 16, 0), (XOR_X, 0, 0), (MULTIPLY, secrets.getrandbits(32) | 1, 0), (SHIFT, 16, 0), (REMAINDER, QUEUES - len(loud), 0), (RETURN, 0, 0)]
    attach(first, program)


def _words(client: str, family: socket.AddressFamily) -> tuple[int, ...]:
    """What stands at its places in the heads of what this client sends; nothing if that is of another family."""
    try:
        packed = ipaddress.ip_network(client).network_address.packed
    except ValueError:
        return ()
    return struct.unpack_from(f">{len(SOURCE[family])}I", packed) if len(packed) == (4 if family == socket.AF_INET else 16) else ()


def gather(first: socket.socket) -> None:
    """From now on all come to the first queue again, so that the others can be closed."""
    attach(first, [(RETURN_K, 0, 0)])


def attach(sock: socket.socket, program: list[Step]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", instruction, 0, left_out, operand & 0xFFFFFFFF) for instruction, operand, left_out in program))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, struct.pack("HP", len(program), ctypes.addressof(code)))
