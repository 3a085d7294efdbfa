"""The whole of PERE, put together. Read this first: it is the only place that knows every part.

A publisher pushes an event; the store keeps it and delivers it to the hub; the hub writes it to each open feed; a device
reads it and sends feedback; the receipt is entered in the ledger.
"""

import asyncio
import logging
import re
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Any

from tornado.web import Application, RequestHandler

import pere
from pere.auth import FEED, PUSH
from pere.bearers import Bearers
from pere.config import KIB, Config, without_password, words
from pere.cors import Cors
from pere.door import Door, Route
from pere.drain import Drain
from pere.feed import UNKEPT
from pere.followers import Followers
from pere.gate import Gate
from pere.guard import Guard
from pere.handlers.admin import AdminEvents, AllDevices, Connections, Health, Metrics, OneDevice, Ready
from pere.handlers.base import Elsewhere, Handler, NotThere, channel_of
from pere.handlers.behind import Behind
from pere.handlers.console import File, Home
from pere.handlers.description import Description, Document
from pere.handlers.events import Events, Status, StatusDevices
from pere.handlers.feed import FeedHead, OpenFeed
from pere.handlers.feedback import Feedback
from pere.handlers.many import Many
from pere.handlers.overview import Overview
from pere.handlers.push import Push
from pere.handlers.receipts import OpenReceipts
from pere.handlers.webhooks import AllWebhooks, DeadLetters, OneWebhook, ReplayWebhook, RotateWebhook, TestWebhook
from pere.handover import Line
from pere.hub import Hub
from pere.layers import Layers
from pere.limits import CONNECTS, PUSHES, RECEIPTS
from pere.listening import Listeners
from pere.log import change
from pere.metrics import Collector, Measures, Scrape, registry
from pere.openapi.asyncapi import asyncapi
from pere.openapi.document import openapi
from pere.outlets import Outlets
from pere.parts import jwks_of, keys_of, open_store, outside_of, spans_to, verifier_of
from pere.predecessor import Predecessor
from pere.reloading import Reloading
from pere.reporter import Reporter
from pere.revocations import KIND as REVOKED
from pere.revocations import Revocations
from pere.sender import Sender
from pere.storage import Store
from pere.storage.settling import tell
from pere.successor import Successor
from pere.waiting import Waits
from pere.watchdog import Watchdog
from pere.webhooks import Webhooks
from pere.wheel import Wheel

log = logging.getLogger("pere")

# Whose an address is: everybody's, or theirs who administer. Those are not there for who comes by the public listener, where
# there is another one for them (`--admin-port`).
PUBLIC, ADMIN = "public", "admin"
NAMED = re.compile(r"\{\w+\}")  # in a path, whatever stands there

ANSWERED, POSTED, LONGEST = 1.0, 0.25, 10.0  # seconds that requests, and those of webhooks, may take where another process takes over: it waits for the store, or not


class Server:
    """One PERE, in this process and on the running loop: the same in production and in tests.

        server = Server(Config(port=0))
        await server.start()
        ... server.url ...
        await server.stop()
    """

    def __init__(self, config: Config, store: Store | None = None, sockets: Mapping[str, list[socket.socket]] = {},
                 layers: Layers | None = None, taken: Mapping[str, list[socket.socket]] = {}):
        loop = asyncio.get_running_loop()
        self.config = config
        self.wheel = Wheel(loop.time, loop.call_later)
        self.gate = Gate(config, lambda: self.wheel.now)
        self.store = store if store is not None else open_store(config)
        self.outlets = Outlets(loop)
        self.hub = Hub(self.store, self.wheel, self.outlets, config)
        self.store.deliver = self.hub.broadcast.deliver
        self.store.withdraw = self.hub.broadcast.withdraw
        self.store.dismiss = self.hub.kick
        self.store.forsake = partial(self.hub.drain, UNKEPT)
        self.store.heed = self.hub.redelivery.heed
        self.followers = Followers(self.store, self.wheel, self.outlets, config)
        self.gate.feeds = self._feeds
        self.gate.channels, self.gate.brought.is_there = self.store.count_channels, self.store.has
        self.store.ledger.on_answer = partial(tell, self.hub.redelivery.heard)

        self.measures = Measures()
        self.hub.broadcast.on_fanout = self.measures.fanout.observe
        self.wheel.on_turn = self.measures.lag.observe
        self.store.on_commit = self.measures.committed
        self.answered: Counter[tuple[str, str, int]] = Counter()

        self.verifier = verifier_of(config)
        self.revocations = Revocations(self.store, self.verifier, self.followers.kick) if self.verifier is not None else None
        self.jwks = jwks_of(config, self.verifier)
        self.guard = guard = Guard(config, self.verifier, self.store.clock, channel_of, self.jwks.fetch if self.jwks is not None else lambda then: False,
                                   self.store.waking)

        cors = Cors(config.origins)
        self.waits = Waits(self.store)
        outside = outside_of(config)
        sender = Sender(outside, timeout=config.webhook_timeout)
        self.spans = spans_to(config.otlp)
        if self.spans is not None:
            self.spans.watch(self.store, self.hub, sender)
        self.webhooks = Webhooks(self.store, sender, outside, config, self.measures.post.observe)
        self.reporter = Reporter(self.store, self.webhooks, not config.is_shared)
        push = Push(self.store, self.waits, config, self.measures.publish.observe, self.webhooks.can_hear)
        feed = OpenFeed(self.hub, self.store, config, cors, self.gate, guard.look_again)
        receipts = OpenReceipts(self.store, self.followers, config, cors, self.gate, guard.look_again)
        feedback = Feedback(self.store, self.hub.redelivery, config,
                            Bearers(self.verifier, self.gate, RECEIPTS, lambda: self.store.clock()) if self.verifier is not None else None)
        hot = {
            b"POST /push/": Route("/push/{channel}", 0, push.one, kind=PUSHES, needs=PUSH),
            b"POST /push": Route("/push", 0, push.many, kind=PUSHES, needs=PUSH),
            b"GET /feed/": Route("/feed/{channel}", 0, feed.one, kind=CONNECTS, needs=FEED, is_first=True),
            b"GET /feed": Route("/feed", 0, feed.many, kind=CONNECTS, needs=FEED, is_first=True),
            b"GET /receipts/": Route("/receipts/{channel}", 0, receipts.one, kind=CONNECTS, needs=PUSH),
            b"POST /feedback/": Route("/feedback/{channel}", 0, feedback.one, feedback.again, feedback.varying, RECEIPTS, FEED),
            b"POST /feedback": Route("/feedback", 0, Many(feedback, config).many, kind=RECEIPTS, needs=FEED),
        }
        self.watchdog = Watchdog(config, lambda: self.wheel.now, lambda: self.store.writing)
        self._cors = cors
        self._openapi, self._asyncapi = Document(lambda: openapi(self.config, self._addresses())), Document(lambda: asyncapi(self.config))
        self.registry = registry()
        self._table = self._handlers()
        self.app = self._app(PUBLIC, ADMIN)
        self._forget_receipts = feedback.forget
        self.door = Door(self.app, config, hot, cors, self.wheel, self.gate, guard.look_at)
        self.hub.line_up = self.door.line.join
        self._renew_bodies(config)()
        self._collector = Collector(self.store, self.hub, self.followers, self.door, self.gate, self.webhooks, self.measures, words(config.metrics_channels), self.answered, self.watchdog)
        self.registry.register(self._collector)
        self._sweeper = Sweeper(self.store, self.hub)
        self.listeners = Listeners(self.door, config, self._app(PUBLIC) if config.admin_port >= 0 else self.app, self.app, sockets, taken)
        self._reloading = Reloading(config, layers, [
            self.gate.renew, guard.renew, self.door.renew, self.listeners.renew, self._collector.renew, self._openapi.renew, self._asyncapi.renew,
            self.hub.renew, self._renew_bodies, self._renew_keys, _renew_log,
        ])

    def _handlers(self) -> list[tuple[str, str, type[Handler], dict[str, Any]]]:
        """What Tornado answers, and for whom. The addresses whose own methods are hot are here for all the other methods."""
        store, hub, webhooks = {"store": self.store}, {"hub": self.hub}, {"store": self.store, "webhooks": self.webhooks}
        post = {"methods": "POST, OPTIONS"}
        return [
            (PUBLIC, "/push", Elsewhere, post),
            (PUBLIC, "/push/{channel}", Elsewhere, post),
            (PUBLIC, "/feedback", Elsewhere, post),
            (PUBLIC, "/feedback/{channel}", Elsewhere, post),
            (PUBLIC, "/feed", FeedHead, {"needs": FEED}),
            (PUBLIC, "/feed/{channel}", FeedHead, {"needs": FEED}),
            (PUBLIC, "/receipts/{channel}", FeedHead, {"needs": PUSH}),
            (PUBLIC, "/events/{channel}", Events, store),
            (PUBLIC, "/events/{channel}/{id}", Status, store | {"waits": self.waits, "config": self.config}),
            (PUBLIC, "/events/{channel}/{id}/devices", StatusDevices, store),
            (ADMIN, "/admin/overview", Overview, store | hub | webhooks | {"followers": self.followers, "gate": self.gate}),
            (ADMIN, "/admin/connections", Connections, hub),
            (ADMIN, "/admin/behind", Behind, hub),
            (ADMIN, "/admin/events/{channel}", AdminEvents, store),
            (ADMIN, "/admin/devices", AllDevices, store),
            (ADMIN, "/admin/devices/{name}", OneDevice, store | hub | {"followers": self.followers, "revocations": self.revocations}),
            (ADMIN, "/webhooks", AllWebhooks, webhooks),
            (ADMIN, "/webhooks/{id}", OneWebhook, webhooks),
            (ADMIN, "/webhooks/{id}/rotate", RotateWebhook, webhooks),
            (ADMIN, "/webhooks/{id}/test", TestWebhook, webhooks),
            (ADMIN, "/webhooks/{id}/dead", DeadLetters, webhooks),
            (ADMIN, "/webhooks/{id}/replay", ReplayWebhook, webhooks),
            (ADMIN, "/metrics", Metrics, {"scrape": Scrape(self.registry)}),
            (PUBLIC, "/healthz", Health, {"watchdog": self.watchdog}),
            (PUBLIC, "/readyz", Ready, store),
            (PUBLIC, "/openapi.json", Description, {"document": self._openapi}),
            (PUBLIC, "/asyncapi.json", Description, {"document": self._asyncapi}),
            (PUBLIC, "/", Home, {}),
            (PUBLIC, "/console/{name}", File, {"folder": "console", "name": ""}),
            (PUBLIC, "/pere.js", File, {"folder": "browser", "name": "pere.js"}),
            (PUBLIC, "/pere.d.ts", File, {"folder": "browser", "name": "pere.d.ts"}),
        ]

    def _addresses(self) -> set[tuple[str, str]]:
        """Every method of every address, but for HEAD and OPTIONS, which all have, and for files."""
        hot = {(key.decode().partition(" ")[0], route.name) for key, route in self.door.routes.items()}
        return hot | {(method, path) for _, path, handler, _ in self._table if not issubclass(handler, Elsewhere | FeedHead | File)
                      for method in handler.methods.split(", ") if method not in ("HEAD", "OPTIONS")}

    def _app(self, *kinds: str) -> Application:
        """What is there for those who may ask for addresses of these kinds."""
        handlers = [(NAMED.sub("([^/]*)", path.replace(".", r"\.")), handler, parts) for kind, path, handler, parts in self._table if kind in kinds]
        return Application(handlers, default_handler_class=NotThere, log_function=self._count, cors=self._cors, is_draining=lambda: self.door.draining, note=self.gate.note)

    def _count(self, handler: RequestHandler) -> None:
        """One request that a Tornado handler has answered."""
        method = handler.request.method or ""
        self.answered[type(handler).__name__.lower(), method, handler.get_status()] += 1

    @property
    def url(self) -> str:
        """Where it listens: the first address of those that there are."""
        return self.listeners.urls[0]

    @property
    def port(self) -> int:
        return self.listeners.port

    async def start(self) -> None:
        """Listen. Raises OSError where the address cannot be had."""
        # Before anything is awaited: what was decided while the store started is kept with the columns that say so.
        self.reporter.begin()
        self._lead(self.store.leads)
        self.store.on_lead, self.store.on_document = self._lead, self._heard
        if self.revocations is not None:
            self.revocations.look()
            self.store.on_anew = self.revocations.look
            self.wheel.add(self.revocations, 1)
        if self.jwks is not None:
            self.wheel.add(self.jwks, 0)
        await self.listeners.open()
        self.wheel.add(self.door, 0)
        self.wheel.add(self._sweeper, 1)
        self.wheel.add(self.gate, 1)
        self.wheel.start()
        self.watchdog.start()
        log.info("listening", extra={"facts": {"url": ",".join(self.listeners.urls), "store": without_password(self.config.store), "version": pere.__version__}})

    async def expect(self, before: Successor) -> None:
        """It is to go on with what the process before this one has open."""
        revoked = self.verifier.revoked if self.verifier is not None else {}
        await before.expect(self.store, self.hub, self.followers, self.gate, self.outlets, revoked)

    async def follow(self, before: Successor) -> None:
        """Start, and go on with what it has expected."""
        async def serve() -> None:
            await self.start()
            self.reporter.take_over(before.away)

        await before.settle(self.listeners, serve)

    def reload(self) -> None:
        """Read again what may change while the server runs (see `reloading.py`)."""
        self._reloading.reload()

    def _renew_bodies(self, config: Config) -> Callable[[], None]:
        """How large a body may be; where none is named there is none."""
        most = {b"POST /push/": config.max_event_bytes, b"POST /push": config.max_batch_bytes,
                b"POST /feedback/": 16 * KIB + 4 * config.max_status_bytes, b"POST /feedback": config.max_batch_bytes}

        def renewed() -> None:
            for name, bytes in most.items():
                self.door.routes[name].max_body = bytes
            self._forget_receipts()

        return renewed

    def _renew_keys(self, config: Config) -> Callable[[], None]:
        """The keys of tokens; where there were none at the start, and so nobody needs one, there are none."""
        verifier, keys = self.verifier, keys_of(config)
        return (lambda: verifier.stand(keys)) if verifier is not None else lambda: None

    def _heard(self, kind: str, name: str, document: bytes | None) -> None:
        """Another node has put a document away, or has taken it away."""
        if kind != REVOKED:
            self.webhooks.heard(kind, name, document)
        elif self.revocations is not None:
            self.revocations.heard(name, document)

    def _lead(self, is_leading: bool) -> None:
        """It is this node that sends webhooks from now on, or another one."""
        if is_leading:
            self.webhooks.start()
            self.reporter.start()
        elif self.webhooks.is_leading:
            self._resigning = asyncio.ensure_future(self._resign())  # held, for the loop itself holds no task

    async def _resign(self, seconds: float = 0.0) -> None:
        await self.reporter.stop()
        await self.webhooks.stop(seconds)

    async def show(self, heir: Line) -> Predecessor | None:
        """Let the process that is to follow have what it may while this one serves. None where it has died: then nothing has happened."""
        handing = Predecessor(heir, self.hub, self.followers, self.store, self.door, self.config)
        await handing.hear_out(ANSWERED)
        await handing.show()
        if handing.is_broken:
            handing.drop()
            return None
        return handing

    async def stop(self, handing: Predecessor | None = None) -> bool:
        """Take leave, so that nobody notices: say that it ends (`/readyz`), and after `drain_delay` take no further connections; let the
        feeds go (see `drain.py`) while all else is answered; then answer what is under way, for at most `drain_seconds`, and put all away.
        What an heir can take is handed over to it instead, and there is no delay; whether it goes on with it."""
        config, loop = self.config, asyncio.get_running_loop()
        seconds, is_followed = config.drain_seconds, True
        if handing is not None:
            if not config.is_shared:
                seconds = 0.0  # it waits for the store
                await self.webhooks.courier.rest(POSTED)
            # From here on somebody waits.
            self.listeners.share()
            await self.listeners.close()
            await self.listeners.close_apart()
            await handing.pass_connections(self.listeners.is_admin, self.waits.drain, ANSWERED if not config.is_shared else min(config.drain_seconds, LONGEST))
        self.door.draining = True
        if handing is not None:
            if not config.is_shared:
                await self._resign()
                handing.away = self.reporter.away()
            await self.store.settle()
            await handing.pass_feeds()
            if config.is_shared:
                is_followed = await handing.end({})
        elif config.drain_delay and self.listeners.sockets:
            log.info("ending", extra={"facts": {"feeds": self._feeds(), "delay": config.drain_delay}})
            await asyncio.sleep(config.drain_delay)
        await self.listeners.close()
        feeds = self._feeds()
        # Who is stopped again has no feeds, and a store that must not be asked any more.
        has_others = feeds > 0 and await self.store.has_others()
        drain = self._collector.drain = Drain(lambda: chain(self.hub.feeds.values(), self.followers.feeds()), self._feeds, config.retry, seconds, has_others)
        await drain.let_go()
        self.door.drain()
        self.waits.drain()
        # Who asked in the last moment is to have one too.
        drain.deadline = max(drain.deadline, loop.time() + min(ANSWERED, config.drain_seconds))
        while (cut := self.door.under_way()) and drain.seconds_left:
            await asyncio.sleep(0.02)
            self.door.drain()
        for connection in list(self.door.connections):
            connection.transport.abort()
        self.watchdog.stop()
        self.wheel.stop()
        self.store.on_lead = lambda is_leading: None
        await self._resign(drain.seconds_left)
        if self.jwks is not None:
            await self.jwks.stop()
        if handing is not None and not config.is_shared:
            is_followed = await handing.end(await self.store.put_down(handing.moved, handing.flushed))
        await self.store.close()
        if self.spans is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.spans.close)
        await self.listeners.close_apart()
        # One more turn of the loop, in which the transports that were closed say so.
        await asyncio.sleep(0.02)
        self.outlets.close()
        log.info("stopped", extra={"facts": {"feeds": feeds, "requests_cut": cut, "events": self.store.events}})
        return is_followed

    def _feeds(self) -> int:
        return len(self.hub.feeds) + self.followers.count


class Sweeper:
    """Lets the store clear away what is due, once a second."""

    def __init__(self, store: Store, hub: Hub):
        self._store = store
        self._hub = hub

    def due(self, now: float) -> float:
        self._store.sweep(self._store.clock(), self._hub.is_used)
        return 1.0


def _renew_log(config: Config) -> Callable[[], None]:
    return lambda: change(config.log_level, config.log_format)
