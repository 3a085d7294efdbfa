"""aiohttp-sse on aiohttp and uvloop, as its README has it: a response for each feed that waits on a queue."""

import asyncio

import uvloop
from aiohttp import web
from aiohttp_sse import sse_response

from bench import words

queues: set["asyncio.Queue[tuple[str, str]]"] = set()
receipts: dict[str, set[str]] = {}


async def feed(request: web.Request) -> web.StreamResponse:
    queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    async with sse_response(request, sep="\n") as response:
        queues.add(queue)
        try:
            while response.is_connected():
                id, data = await queue.get()
                await response.send(data, id=id)
        finally:
            queues.discard(queue)
    return response


async def push(request: web.Request) -> web.Response:
    id = f"{len(receipts) + 1}-0"
    receipts[id] = set()
    event = id, (await request.read()).decode()
    for queue in queues:
        queue.put_nowait(event)
    return web.json_response({"id": id}, status=201)


async def feedback(request: web.Request) -> web.Response:
    receipts[request.headers["Last-Event-ID"]].add(request.headers["Device"])
    return web.json_response({"state": "processed"})


async def main() -> None:
    app = web.Application()
    app.add_routes([web.get("/feed/{channel}", feed), web.post("/push/{channel}", push), web.post("/feedback/{channel}", feedback)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(*words("PORT")), backlog=4096).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
