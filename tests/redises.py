"""Real redis-servers for tests, as processes of their own that keep their files in a folder of the test."""

import atexit
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Self

import programs
import pytest
from processes import SECONDS, free_port

# What a test says that is to hold on every store; its servers are on it, whoever starts them.
EACH_STORE = pytest.mark.parametrize("kept_in", ["memory", "sqlite", "redis"], indirect=True)
KEPT = pytest.mark.parametrize("kind", ["sqlite", "redis"])  # what goes on after a restart, or is written beside what is at hand
MEMORY_AND_REDIS = pytest.mark.parametrize("kept_in", ["memory", "redis"], indirect=True)


def needed() -> str:
    return programs.needed("redis-server", "redis-server", "valkey-server")


@cache
def common() -> "RedisServer":
    """One for all tests that do it no harm; it ends with them."""
    folder = Path(tempfile.mkdtemp(prefix="pere-redis-"))
    server = RedisServer(folder, appendonly="no").start()
    atexit.register(lambda: (server.kill(), shutil.rmtree(folder)))
    return server


def named(kind: str, folder: Path) -> str:
    """What `--store` says for a store of this kind of a test with this folder."""
    return {"memory": "memory:", "sqlite": f"sqlite:{folder / 'pere.db'}"}.get(kind) or f"{common().url}?prefix={folder.name}"


class RedisServer:
    """One that runs in this folder; `settings` are those of redis.conf. It appends to a file, so that what it has survives a kill."""

    def __init__(self, folder: Path, **settings: str):
        self.folder = folder
        self.port = free_port()
        self._settings = {"appendonly": "yes", "appendfsync": "always", "save": "", "bind": "127.0.0.1", "dir": str(folder)} | settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        flags = [part for name, value in self._settings.items() for part in (f"--{name.replace('_', '-')}", value)]
        with open(self.folder / "redis.log", "ab") as out:
            self._process = subprocess.Popen([needed(), "--port", str(self.port), *flags], stdout=out, stderr=out)
        deadline = time.monotonic() + SECONDS
        while self.ask("PING") != b"+PONG":
            assert self._process.poll() is None and time.monotonic() < deadline, (self.folder / "redis.log").read_text()
            time.sleep(0.01)
        return self

    def ask(self, *words: str) -> bytes:
        """One command, and the first line of its answer; empty if there is none."""
        said = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in words)
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as there:
                there.sendall(said)
                return there.makefile("rb").readline().rstrip()
        except OSError:
            return b""

    def signal(self, how: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(how)

    def kill(self) -> None:
        """At once, and with no chance to write anything more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(SECONDS)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
