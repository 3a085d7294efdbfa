"""What is stuck is noticed: a loop that cannot say so itself, and a writer whose disk does not answer."""

import asyncio
import os
import re
import signal
import sqlite3
import threading

import pytest
import wire
from managing import Notices
from processes import SECONDS, Served


def filled(path: str, text: str) -> threading.Thread:
    """Somebody writes this into a pipe as soon as it is read."""

    def fill() -> None:
        with open(path, "w") as pipe:
            pipe.write(text)

    filling = threading.Thread(target=fill, daemon=True)
    filling.start()
    return filling


def is_read(filling: threading.Thread) -> bool:
    filling.join(SECONDS)
    return not filling.is_alive()


async def test_a_loop_that_is_stuck_is_logged_with_where_it_stands_and_the_manager_is_not_told_that_all_is_well(tmp_path):
    """It is stuck in a file of settings that is a pipe, into which nobody writes."""
    path = str(tmp_path / "settings")
    os.mkfifo(path)
    filling = filled(path, "max_to = 7")
    with Notices(str(tmp_path / "n")) as manager, Served("--config", path, "--watchdog", "0.2", NOTIFY_SOCKET=manager.path, WATCHDOG_USEC="400000") as server:
        assert is_read(filling)
        manager.until("READY")
        for _ in range(3):
            assert manager.next() == {"WATCHDOG": "1"}
        server._popen.send_signal(signal.SIGHUP)
        server.until(r"the loop is stuck seconds=(?s:.*)in from_file\b")
        manager.until("RELOADING")
        manager.drain()  # what was said before it counted as stuck
        with pytest.raises(TimeoutError):
            manager.next(0.5)  # ten looks; when it goes on, that may be seen before it has said that it is ready
        assert is_read(filled(path, "max_to = 8"))
        manager.until("READY")
        server.until("reloaded changed=--max-to")
        server.until("the loop goes on")
        assert manager.next() == {"WATCHDOG": "1"}
        told = (await wire.request(server.port, "GET", "/metrics")).body.decode()
        # A busy machine may have let it stand still for 0.2 s once more.
        assert re.search(r'^pere_stuck_total\{what="loop"\} [1-9]', told, re.M) and 'pere_stuck_total{what="writer"} 0.0' in told
        assert server.end(signal.SIGTERM) == 0


async def test_a_writer_that_is_stuck_is_told_by_healthz_until_it_goes_on(tmp_path):
    """Somebody else holds the file, as a tool for SQLite does that began to write and was left."""
    path = tmp_path / "pere.db"
    with Served("--store", f"sqlite:{path}", "--watchdog", "0.2") as server:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("begin immediate")
        pushing = asyncio.ensure_future(wire.request(server.port, "POST", "/push/c", b"1"))
        while (answer := await wire.request(server.port, "GET", "/healthz")).status == 200:
            await asyncio.sleep(0.02)
        assert answer.error == (503, "stuck")
        assert "pere_store_writing_seconds 0.0" not in (await wire.request(server.port, "GET", "/metrics")).body.decode()
        server.until("the writer is stuck")
        holder.execute("rollback")
        holder.close()
        assert (await pushing).status == 201
        server.until("the writer goes on")
        assert (await wire.request(server.port, "GET", "/healthz")).json == {"status": "alive"}
        assert server.end(signal.SIGTERM) == 0


def test_a_process_that_was_stopped_as_a_whole_was_not_stuck():
    with Served("--watchdog", "0.5") as server:
        os.kill(server.pid, signal.SIGSTOP)
        threading.Event().wait(2.5)
        os.kill(server.pid, signal.SIGCONT)
        assert server.end(signal.SIGTERM) == 0
        assert "stuck" not in server.err
