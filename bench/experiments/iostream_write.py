"""Tornado's connection, detached from its handler, and IOStream.write() for each feed: half of Tornado's cost is gone, and its stream's is not."""

import asyncio

import uvloop
from tornado.iostream import IOStream, StreamClosedError
from tornado.web import Application, RequestHandler

from bench import words
from bench.floor import HEAD, framed

feeds: set[IOStream] = set()
count = 0


class Feed(RequestHandler):
    def get(self, channel: str) -> None:
        stream = self.detach()
        stream.set_close_callback(lambda: feeds.discard(stream))
        stream.write(HEAD)
        feeds.add(stream)


class Push(RequestHandler):
    def post(self, channel: str) -> None:
        global count
        count += 1
        frame = framed(self.request.body, count)
        for stream in tuple(feeds):
            try:
                stream.write(frame)
            except StreamClosedError:
                feeds.discard(stream)
        self.write({})


async def main() -> None:
    application = Application([(r"/feed/(.*)", Feed), (r"/push/(.*)", Push)], log_function=lambda handler: None)
    application.listen(int(*words("PORT")), "127.0.0.1", backlog=4096)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
