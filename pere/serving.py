"""A server as a process: its signals, what it has from the process before it or from a manager, and how it becomes ready and ends."""

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping

import uvloop

from pere import systemd
from pere.config import Config, strangers
from pere.early import Early
from pere.errors import StoreInUse
from pere.handover import Deposit, Line
from pere.layers import Layers
from pere.listening import bound
from pere.log import set_up
from pere.parts import open_store
from pere.predecessor import Following, Predecessor
from pere.server import Server
from pere.storage import Store
from pere.successor import Successor

log = logging.getLogger("pere")

PATIENCE = 30.0  # seconds that the process before us may take for its end, beside those that it is given for it


def serve(config: Config, ready: Callable[[Server], None] = lambda server: None, facts: Mapping[str, object] | None = None,
          layers: Layers | None = None) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends it at once. After SIGINT nothing is left to a manager, for nobody is to follow. `ready` is called when it listens, `facts` stand in every line of
    the log, and `layers` say what the settings are by the time of a SIGHUP. Raises OSError where the address cannot be had, ConfigError for a setting that cannot be."""
    set_up(config.log_level, config.log_format, facts)
    if facts is None or facts.get("worker") == 1:  # which says it for all
        for name, meant in strangers():
            log.warning("%s is no setting%s", name, f"; is {meant} meant?" if meant else "")
    handed = systemd.inherited()
    left = handed.pop(systemd.HANDOVER, [])
    config, sockets = systemd.adopted(config, handed)
    with contextlib.suppress(OSError, ValueError):  # where there is no standard error
        faulthandler.enable()  # what a manager kills because it is stuck says where it was
    again: dict[str, list[socket.socket]] | None = {}
    while again is not None:
        # Who was to follow has died when all was in its hands: then we begin anew, with the sockets that listen.
        again = uvloop.run(_serve(config, sockets, again, left, ready, layers))


async def _serve(config: Config, sockets: dict[str, list[socket.socket]], taken: dict[str, list[socket.socket]], left: list[socket.socket],
                 ready: Callable[[Server], None], layers: Layers | None) -> dict[str, list[socket.socket]] | None:
    """Until it ends. Where it is to begin anew, the sockets that listen and are its own."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    asked: list[signal.Signals] = []
    heirs: list[Line | None] = []

    def end(how: signal.Signals) -> None:
        if asked:
            log.warning("stopping at once")
            raise SystemExit(1)
        asked.append(how)
        ended.set()

    def follow(heir: Line | None) -> None:
        heirs.append(heir)
        ended.set()

    is_at_terminal = os.isatty(0)
    serving: list[Server] = []
    hung_up: list[None] = []
    reloads: set[asyncio.Future[None]] = set()  # of which the manager has not heard yet that they are done

    def hang_up() -> None:
        if is_at_terminal and not os.isatty(0):
            end(signal.SIGINT)  # it was closed, and nobody can end us from there any more
        elif serving:
            systemd.notify(*systemd.reloading())
            serving[0].reload()
            reloads.add(done := asyncio.ensure_future(systemd.serves()))
            done.add_done_callback(reloads.discard)
        else:
            hung_up.append(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    before: Successor | None = None
    server: Server | None = None

    def make(store: Store) -> Server:
        return Server(config, store, sockets, layers, before.sockets if before is not None else taken)

    if config.handover or left:
        # No cycles are looked for while another one serves, who has the same processors, and least while others wait: it was 40 to 60 ms of a start of half a second.
        gc.disable()
    if not config.is_shared:
        before = await _take_over(config, sockets, left)
        server = await _gather(config, before, make)
    if config.reuse_port and config.tcp and config.port and "tcp" not in sockets and not config.handover:
        # Whoever connects from now on may be given to us, and waits until we serve; while somebody else still does, we may be refused nothing.
        sockets["tcp"] = bound(config.host, config.port, is_shared=True)
    store = server.store if server is not None else await _store_when_free(config, before, bool(sockets) or before is not None, ended)
    if store is None:
        return None
    try:
        if server is None:
            await store.begin()
            if config.is_shared:
                before = await _take_over(config, sockets, left)
            server = make(store)
            if before is not None:
                await server.expect(before)
        await (server.follow(before) if before is not None else server.start())
        following = Following(config, server.listeners, follow)
        if config.handover:
            _wait_for_next(following, before is not None or bool(taken))
    except BaseException:
        await store.close()
        raise
    if not config.has_keys and config.exposed:
        log.warning("there are no keys: whoever reaches %s may push, read every channel, answer for every device and administer (--insecure)", config.exposed)
    serving.append(server)
    if hung_up:
        hang_up()
    # What was made so far lives as long as the process. Without this each full collection would walk all of it, and with ten
    # thousand feeds that is a pause that everybody feels; cycles are rare here, so collecting seldom is enough. What is new is looked
    # through ten thousand objects at a time, while they are still in the processor's caches, and in 1 ms; fifty thousand, 5,500 feeds, took 7.
    if before is None:
        gc.collect()  # a start leaves next to nothing to be collected, which is not worth that others wait
    gc.freeze()
    gc.enable()
    gc.set_threshold(10_000, 100, 50)
    ready(server)
    await systemd.serves(f"STATUS=listening on {', '.join(server.listeners.urls)}")
    handing, is_left = await _handing(server, following, ended, asked, heirs)
    if asked:
        systemd.notify("STOPPING=1")
    following.close()
    copies = server.listeners.copies() if handing is not None and not is_left else {}
    is_followed = await server.stop(handing)
    gc.freeze()  # who ends has nothing to collect
    if is_followed or is_left or asked:
        return None
    log.error("this process goes on itself")
    sockets |= {kind: copies.pop(kind) for kind in list(sockets) if kind in copies}
    return copies


async def _handing(server: Server, following: Following, ended: asyncio.Event, asked: list[signal.Signals], heirs: list[Line | None]) -> tuple[Predecessor | None, bool]:
    """Serve until the end. What is handed over at it, if somebody follows; and whether it is only left to a manager, for who is yet to come."""
    while True:
        await ended.wait()
        is_left = not heirs and asked == [signal.SIGTERM] and systemd.keeps() and server.config.store != "memory:" and not await server.store.has_others()
        heir = heirs.pop() if heirs else following.leave(Deposit(systemd.keep)) if is_left else None
        handing = await server.show(heir) if heir is not None else None
        if handing is not None or heir is None or asked:
            return handing, is_left
        log.error("the process that was to take over has died, and this one goes on")
        ended.clear()
        _wait_for_next(following, True)


def _wait_for_next(following: Following, is_serving: bool) -> None:
    """Let somebody follow. Raises OSError where nobody can, unless `is_serving`, for whom devices rely on that."""
    try:
        following.open()
    except OSError as error:
        if not is_serving:
            raise
        log.error("no process can take over from this one", extra={"facts": {"path": error.filename, "because": error.strerror}})


async def _take_over(config: Config, sockets: Mapping[str, list[socket.socket]], left: list[socket.socket]) -> Successor | None:
    """Who hands over what is open: the process before us, if there is one and it does, or has left it."""
    before = None
    if left:
        systemd.notify("FDSTOREREMOVE=1", f"FDNAME={systemd.HANDOVER}")
        before = await Successor.hear(Line(left.pop()), config, sockets, is_there=False)
        while left:
            left.pop().close()  # of one that was never followed
    elif config.handover:
        before = await Successor.find(config, sockets)
    return before


async def _gather(config: Config, before: Successor | None, make: Callable[[Store], Server]) -> Server | None:
    """Have all that the process before us hands over, if there is one; when this returns it has put the store away. A server that has it, where there could be one before."""
    if before is None:
        return None
    early = Early(config, before, make)
    await before.gather(early.get_ready, early.look)
    return await early.take()


async def _store_when_free(config: Config, before: Successor | None, is_handed_over: bool, ended: asyncio.Event) -> Store | None:
    """The store, or None if we are ended before it could be had. A process that has its sockets from somebody, or shares them, is to follow
    another one, which has the file until it ends."""
    until = asyncio.get_running_loop().time() + PATIENCE + config.drain_delay + 2 * config.drain_seconds
    is_waiting = False
    while not ended.is_set():
        try:
            return open_store(config, before.left if before is not None else {})
        except StoreInUse as refusal:
            if not is_handed_over or asyncio.get_running_loop().time() > until:
                raise
            if not is_waiting:
                log.info("waiting for the store", extra={"facts": {"because": str(refusal)}})
                is_waiting = True
            await asyncio.sleep(0.01)
    return None
