"""What does it save to recognise a receipt instead of parsing it?

    python -m bench.micro shape
"""

from collections.abc import Callable

import httptools

from pere.shape import Shapes

RECEIPT = (b"POST /feedback/mission HTTP/1.1\r\nHost: x\r\nDevice: d%d\r\nLast-Event-ID: 1790000000000-17\r\n"
           b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 12\r\n\r\nstatus=rx+ok")


class Listener:
    """The least that a parser must be listened to: the headers by name."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.headers: dict[bytes, bytes] = {}

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body = body

    def on_message_complete(self) -> None:
        self.headers, self.fields = dict(self.fields), []


def operations() -> dict[str, tuple[Callable[[], object], int]]:
    shape = Shapes().learn(RECEIPT % 1, (b"device", b"last-event-id"))
    assert shape is not None
    parser = httptools.HttpRequestParser(Listener())
    other = RECEIPT % 12345
    return {
        "recognised": (lambda: shape.read(other), 1),
        "parsed by httptools": (lambda: parser.feed_data(other), 1),
        "learning a shape that is known": (lambda: Shapes(lessons=0).learn(other, (b"device", b"last-event-id")), 1),
    }
