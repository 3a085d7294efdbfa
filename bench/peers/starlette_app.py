"""sse-starlette on uvicorn with uvloop and httptools, as its README has it: a generator for each feed, that waits on a queue."""

import asyncio
from collections.abc import AsyncIterator

import uvicorn
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from bench import words

queues: set["asyncio.Queue[dict[str, str]]"] = set()
receipts: dict[str, set[str]] = {}


async def feed(request: Request) -> EventSourceResponse:
    queue: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def events() -> AsyncIterator[dict[str, str]]:
        queues.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            queues.discard(queue)

    return EventSourceResponse(events(), sep="\n")


async def push(request: Request) -> JSONResponse:
    id = f"{len(receipts) + 1}-0"
    receipts[id] = set()
    event = {"id": id, "data": (await request.body()).decode()}
    for queue in queues:
        queue.put_nowait(event)
    return JSONResponse({"id": id}, 201)


async def feedback(request: Request) -> JSONResponse:
    receipts[request.headers["last-event-id"]].add(request.headers["device"])
    return JSONResponse({"state": "processed"})


app = Starlette(routes=[Route("/feed/{channel}", feed), Route("/push/{channel}", push, methods=["POST"]), Route("/feedback/{channel}", feedback, methods=["POST"])])

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(*words("PORT")), loop="uvloop", http="httptools", access_log=False, log_level="warning", backlog=4096)
