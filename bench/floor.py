"""The cheapest servers that Python allows, beside which PERE is measured: no server in Python can cost less per delivery, or per receipt.

    python -m bench.floor send --port 4567
    python -m bench.floor echo --port 4567

`send` broadcasts by a bare loop of `send()` over its sockets, and answers whatever else is POSTed with an empty object. `echo` answers each
request that httptools has parsed, on uvloop, with two bytes. Both keep nothing, check nothing and know just enough HTTP to be driven.
"""

import argparse
import asyncio
import re
import select
import socket
from typing import Any

import httptools
import orjson
import uvloop

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n", re.IGNORECASE)


def framed(body: bytes, number: int) -> bytes:
    """An event as a chunk of a feed."""
    frame = b"id: %d-0\ndata: %b\n\n" % (number, body)
    return b"%x\r\n%b\r\n" % (len(frame), frame)


def send(listener: socket.socket) -> None:
    """One channel, one loop, no loop library."""
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    sockets: dict[int, socket.socket] = {}
    feeds: dict[int, Any] = {}  # what sends to them, by descriptor
    rests: dict[int, bytes] = {}  # of requests that came in pieces
    number = 0
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sockets[sock.fileno()] = sock
                poll.register(sock, select.EPOLLIN)
                continue
            sock = sockets[fd]
            try:
                data = sock.recv(1 << 20)
            except OSError:
                data = b""
            if not data:
                poll.unregister(fd)
                del sockets[fd]
                feeds.pop(fd, None)
                sock.close()
                continue
            if data[0] == 71:  # GET
                sock.send(HEAD)
                feeds[fd] = sock.send
                continue
            if fd in rests:
                data = rests.pop(fd) + data
            while data:
                end = data.find(b"\r\n\r\n") + 4
                length = LENGTH.search(data, 0, end)
                whole = end + (int(length[1]) if length else 0)
                if end < 4 or len(data) < whole:
                    rests[fd] = data
                    break
                if data.startswith(b"POST /push"):
                    number += 1
                    frame = framed(data[end:whole], number)
                    for write in feeds.values():
                        try:
                            write(frame)
                        except OSError:
                            pass  # full or gone: the floor loses what does not fit
                sock.send(ANSWER)
                data = data[whole:]


class Echo(asyncio.Protocol):
    """Parse, answer, nothing else; only what makes up the events that are answered for is given ids."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.url = self.body = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        body, self.body = self.body, b""
        if self.url != b"/push":
            self.transport.write(ANSWER)
            return
        told = orjson.dumps({"results": [{"id": f"{number + 1}-0"} for number, _ in enumerate(orjson.loads(body))]})
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(told), told))


async def echo(listener: socket.socket) -> None:
    server = await asyncio.get_running_loop().create_server(Echo, sock=listener, backlog=4096)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["send", "echo"])
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", asked.port), backlog=4096)
    try:
        if asked.kind == "send":
            listener.setblocking(True)
            send(listener)
        else:
            uvloop.run(echo(listener))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
