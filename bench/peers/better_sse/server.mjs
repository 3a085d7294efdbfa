// better-sse on Node's own server, as its documentation has it: a session for each feed, and a channel that broadcasts.
import { createServer } from "node:http";
import { createSession, createChannel } from "better-sse";

const channel = createChannel();
const receipts = new Map();
let count = 0;

function body(request) {
  return new Promise((resolve) => {
    const parts = [];
    request.on("data", (part) => parts.push(part));
    request.on("end", () => resolve(Buffer.concat(parts).toString()));
  });
}

const server = createServer(async (request, response) => {
  if (request.method === "GET") {
    channel.register(await createSession(request, response, { retry: null, keepAlive: 20000 }));
    return;
  }
  if (request.url.startsWith("/push")) {
    const id = `${++count}-0`;
    receipts.set(id, new Set());
    channel.broadcast(JSON.parse(await body(request)), "message", { eventId: id });
    response.writeHead(201, { "Content-Type": "application/json" }).end(JSON.stringify({ id }));
    return;
  }
  request.resume();
  receipts.get(request.headers["last-event-id"])?.add(request.headers["device"]);
  response.writeHead(200, { "Content-Type": "application/json" }).end('{"state":"processed"}');
});
server.keepAliveTimeout = 75000;
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
