"""A small receiver of webhooks, for people who build theirs: it verifies each notice, prints it and answers.

It shows what a receiver has to do, and no more: verify before anything is believed, answer at once, and know a notice again by
its id, since what is delivered at least once may come twice.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.client import responses
from typing import Any

import click
import orjson
from rich.text import Text
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest, ResponseStartLine
from tornado.netutil import bind_sockets

from pere.cli.paper import Paper
from pere.cli.visit import printable
from pere.config import MIB
from pere.errors import Refusal, TooLarge, WrongMethod
from pere.signing import TIMESTAMP, verify

# A notice has some 20 KB; Standard Webhooks recommends no more.
MAX_BODY = MIB
# What Tornado reads at all. It says no in few words, so what is only somewhat too long gets ours.
MOST_READ = 16 * MIB
# Ids that are remembered; the specification recommends five minutes of them, and nobody tests that fast.
REMEMBERED = 10_000
# Lines that people are shown of one list.
SHOWN = 20


class Receiver:
    """Answers `answer` to every notice that was signed with one of the `secrets`, `delay` seconds after it came."""

    def __init__(self, secrets: tuple[str, ...], answer: int, delay: float, screen: "Screen", clock: Callable[[], float] = time.time):
        self._secrets = secrets
        self._answer = answer
        self._delay = delay
        self._screen = screen
        self._clock = clock
        self._known: dict[str, None] = {}

    def __call__(self, request: HTTPServerRequest) -> None:
        """One request, as Tornado's HTTPServer hands it in when its body is there."""
        try:
            id = self._verified(request)
        except Refusal as refusal:
            self._screen.refused(refusal)
            reply(request, refusal.status, refusal.body(), getattr(refusal, "allow", ""))
            return
        self._screen.notice(id, int(request.headers[TIMESTAMP]), request.body, self._remember(id), self._answer)
        asyncio.get_running_loop().call_later(self._delay, reply, request, self._answer)

    def _remember(self, id: str) -> bool:
        """Whether it was here before."""
        if id in self._known:
            return True
        self._known[id] = None
        if len(self._known) > REMEMBERED:
            # The oldest: a dict keeps the order in which things came.
            del self._known[next(iter(self._known))]
        return False

    def _verified(self, request: HTTPServerRequest) -> str:
        if request.method != "POST":
            raise WrongMethod("wrong_method", f"a webhook is a POST, not a {printable(request.method or '')}", allow="POST")
        if len(request.body) > MAX_BODY:
            raise TooLarge("too_large", f"a notice has at most {MAX_BODY} bytes here, not {len(request.body)}")
        return verify(request.headers, request.body, self._secrets, self._clock())


def reply(request: HTTPServerRequest, status: int, body: bytes = b"", allow: str = "") -> None:
    headers = HTTPHeaders()
    # RFC 9110, 8.6: neither a 204 nor a 304 has a length.
    if status not in (204, 304):
        headers["Content-Length"] = str(len(body))
    if body:
        headers["Content-Type"] = "application/json"
    if allow:
        headers["Allow"] = allow
    assert request.connection is not None
    # Whoever hung up meanwhile gets nothing, and Tornado takes it without complaint.
    request.connection.write_headers(ResponseStartLine("HTTP/1.1", status, responses.get(status, "-")), headers, body)
    request.connection.finish()


async def receive(receiver: Receiver, port: int, screen: "Screen") -> None:
    """Listen on 127.0.0.1 until cancelled. Raises OSError if the port cannot be had."""
    sockets = bind_sockets(port, "127.0.0.1")
    server = HTTPServer(receiver, max_body_size=MOST_READ, max_buffer_size=MOST_READ)
    server.add_sockets(sockets)
    screen.news(f"listening on http://127.0.0.1:{sockets[0].getsockname()[1]}/ (any path); Ctrl-C ends it")
    try:
        await asyncio.Event().wait()
    finally:
        server.stop()
        await server.close_all_connections()


class Screen:
    """What people see: notices on standard output, all else on standard error."""

    def __init__(self, as_json: bool):
        self._out = Paper()
        self._err = Paper(stderr=True)
        self._as_json = as_json

    def notice(self, id: str, timestamp: int, body: bytes, again: bool, answer: int) -> None:
        try:
            said = orjson.loads(body)
        except orjson.JSONDecodeError:
            said = body.decode("utf-8", "replace")
            raw: Any = said
        else:
            # As it came, since to read and write it again would round long numbers. Line ends in JSON are mere space.
            raw = orjson.Fragment(body.replace(b"\n", b" ").replace(b"\r", b" "))
        kind = said.get("type") if isinstance(said, dict) else None
        if self._as_json:
            click.echo(orjson.dumps({"id": id, "timestamp": timestamp, "type": kind, "again": again, "answer": answer, "body": raw}))
            return
        line = Text()
        line.append(moment(timestamp) + "  ", "dim")
        line.append(printable(id) + "  ", "cyan")
        if kind is not None:
            line.append(printable(kind) + "  ", "magenta")
        line.append(f"{len(body)} bytes, answered {answer}", "dim")
        if again:
            line.append("  again", "yellow")
        self._out.print(line)
        if not again:
            for each in lines(said):
                self._out.print(Text("  " + each))

    def refused(self, refusal: Refusal) -> None:
        self.news(f"refused with {refusal.status}, {refusal.code}: {refusal.message}", "red")

    def news(self, text: str, style: str = "dim") -> None:
        self._err.print(Text(printable(text), style))


def moment(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat().replace("+00:00", "Z")


def lines(said: Any) -> list[str]:
    """What a notice says, for people: a line for each field, and one for each item of a list."""
    if not isinstance(said, dict):
        return [printable(said)]
    # CloudEvents 1.0, 2.1: all but `data` is envelope. What is no CloudEvent is shown as it is.
    fields = said["data"] if isinstance(said.get("data"), dict) else said
    found = []
    for name, value in fields.items():
        if isinstance(value, list) and value:
            found.append(f"{printable(name)}: {len(value)}")
            found += [f"  {printable(item)}" for item in value[:SHOWN]]
            if len(value) > SHOWN:
                found.append(f"  and {len(value) - SHOWN} more")
        else:
            found.append(f"{printable(name)}: {printable(value)}")
    return found
