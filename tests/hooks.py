"""The other end of a webhook: a server that notes what it is sent, and answers as it is told."""

import asyncio
from typing import Any

import orjson
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, ResponseStartLine
from tornado.testing import bind_unused_port

# The settings of a server that may send to it.
LOCAL: dict[str, Any] = {"webhook_allow_networks": "127.0.0.0/8", "webhook_allow_http": True}


class Receiver:
    """Somebody's server: `answers` are the statuses that it gives, the last one for ever; `got` is what came, headers and body, and `headers`
    is what it says beside its status."""

    def __init__(self, *answers: int):
        self.answers = list(answers)
        self.at: list[float] = []  # when each came, by the loop's time
        self.headers: dict[str, str] = {}
        self.got: list[tuple[dict[str, str], bytes]] = []
        sock, self.port = bind_unused_port()
        self._server = HTTPServer(lambda request: self.take(request))
        self._server.add_socket(sock)

    def take(self, request) -> None:
        self.got.append(({name.lower(): value for name, value in request.headers.get_all()}, request.body))
        self.at.append(asyncio.get_running_loop().time())
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        request.connection.write_headers(ResponseStartLine("HTTP/1.1", status, "-"), HTTPHeaders({"Content-Length": "0"} | self.headers))
        request.connection.finish()

    def notices(self, type: str = "") -> list[dict[str, Any]]:
        """What came, parsed, each once; without those that only ask whether it is there, unless they are asked for."""
        found = {headers["webhook-id"]: orjson.loads(body) for headers, body in self.got}
        return [said for said in found.values() if (said["type"] == type if type else said["type"] != "pere.webhook.verify")]

    def receipts(self) -> list[tuple[str, str, str]]:
        """Event, device and state of all that it was told of, by the number of the record."""
        told = [each for said in self.notices("pere.receipt.batch") for each in said["data"]["receipts"]]
        return [(each["event_id"], each["device"], each["state"]) for each in sorted(told, key=lambda each: int(each["id"]))]

    def again(self, port: int) -> None:
        """Listen, as who was away does when it is back."""
        self._server = HTTPServer(lambda request: self.take(request))
        self._server.listen(port, "127.0.0.1")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def close(self) -> None:
        """Nobody is let in any more."""
        self._server.stop()

    async def end(self) -> None:
        """The same, and who is there is cut: one who came a moment ago would be there longer than the loop."""
        self.close()
        await self._server.close_all_connections()
