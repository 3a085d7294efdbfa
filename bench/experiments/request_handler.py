"""Tornado as its documentation has it: a RequestHandler for each feed, `write()` and `flush()` for each event. Receipts go to a handler of their own,
which remembers who has answered, as an application would."""

import asyncio

from tornado.iostream import StreamClosedError
from tornado.web import Application, RequestHandler

from bench import words

feeds: set["Feed"] = set()
receipts: dict[str, set[str]] = {}
count = 0


class Feed(RequestHandler):
    async def get(self, channel: str) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-cache")
        await self.flush()
        feeds.add(self)
        self.over = asyncio.Event()
        await self.over.wait()

    def on_connection_close(self) -> None:
        feeds.discard(self)
        self.over.set()


class Push(RequestHandler):
    def post(self, channel: str) -> None:
        global count
        count += 1
        id = f"{count}-0"
        receipts[id] = set()
        frame = b"id: %b\ndata: %b\n\n" % (id.encode(), self.request.body)
        for feed in feeds:
            feed.write(frame)
            feed.flush().add_done_callback(swallow)
        self.set_status(201)
        self.write({"id": id})


class Feedback(RequestHandler):
    def post(self, channel: str) -> None:
        receipts[self.request.headers["Last-Event-ID"]].add(self.request.headers["Device"])
        self.write({"state": "processed"})


def swallow(written: "asyncio.Future[None]") -> None:
    """Who has gone is removed when its connection says so."""
    if not written.cancelled() and not isinstance(written.exception(), StreamClosedError | None):
        raise written.exception()  # type: ignore[misc]


async def main() -> None:
    application = Application([(r"/feed/(.*)", Feed), (r"/push/(.*)", Push), (r"/feedback/(.*)", Feedback)], log_function=lambda handler: None)
    application.listen(int(*words("PORT")), "127.0.0.1", backlog=4096)
    await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
