"""`pere` commands as processes of their own, for tests that must see what a person at a terminal sees."""

import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from typing import Any, Self

from forks import Fork, can

# Nothing from outside may steer what is tested here: no settings, no proxy between two addresses of one machine.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PERE_")} | {"NO_PROXY": "*"}

PERE = [sys.executable, "-m", "pere"]
SECONDS = 60.0  # that anything may take here: a machine may be as busy as it likes


def pere(*arguments: str, typed: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `typed` is its standard input."""
    if can(variables):
        with tempfile.TemporaryFile("w+") as stdin, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            stdin.write(typed)
            stdin.seek(0)
            fork = Fork(arguments, ENVIRONMENT | variables, stdin.buffer, out.buffer, err.buffer)
            try:
                fork.wait(SECONDS)
            finally:
                fork.end()
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(arguments, fork.wait(), out.read(), err.read())
    return subprocess.run([*PERE, *arguments], input=typed, env=ENVIRONMENT | variables, capture_output=True, text=True,
                          timeout=SECONDS, check=False)


@contextmanager
def piped(*command: str, **wanted: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A command that is spoken with through pipes, and is killed at the end of the `with` if it has not ended by then."""
    with subprocess.Popen(command, **{"env": ENVIRONMENT, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | wanted) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    """The next line that it says, where nothing that it has said before is still to be read."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], SECONDS)[0], "it says nothing"
    return process.stdout.readline()


# Those of this worker of pytest, each with the one that follows it.
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 8
_ports = cycle(random.SystemRandom().sample(own := range(11_000 + 2 * _worker, 28_000, 16), len(own)))


def free_port() -> int:
    """A free port below those that the system gives to whoever asks for any. Nobody is given it before it is listened on, nor while who listens is
    dead, by the system or by this: a client that were given the very port that it asks for would be connected to itself."""
    while True:
        port = next(_ports)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


class Process:
    """A command that runs beside the test, and is killed at the end of the `with` if it has not ended by then."""

    command = PERE
    stdin = subprocess.DEVNULL

    def __init__(self, *arguments: str, **variables: str):
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._popen = self._start(arguments, variables)

    def _start(self, arguments: tuple[str, ...], variables: dict[str, str]) -> subprocess.Popen[bytes] | Fork:
        if self.command is PERE and can(variables):
            return Fork(arguments, ENVIRONMENT | variables, self.stdin, self._out, self._err)
        return subprocess.Popen([*self.command, *arguments], env=ENVIRONMENT | variables, stdin=self.stdin,
                                stdout=self._out, stderr=self._err)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        self._out.close()
        self._err.close()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def out(self) -> str:
        return os.pread(self._out.fileno(), 1 << 20, 0).decode()

    @property
    def err(self) -> str:
        return os.pread(self._err.fileno(), 1 << 20, 0).decode()

    def until(self, pattern: str, seconds: float = SECONDS) -> re.Match[str]:
        """Wait until it has printed this, on either stream."""
        deadline = time.monotonic() + seconds
        while True:
            is_over = self._popen.poll() is not None
            match = re.search(pattern, self.out + self.err)
            if match:
                return match
            if is_over or time.monotonic() > deadline:
                raise AssertionError(f"{pattern!r} did not come; out: {self.out!r}, err: {self.err!r}")
            time.sleep(0.01)

    def end(self, how: signal.Signals | None = None, seconds: float = SECONDS) -> int:
        """Wait for its end, after this signal if one is given; returns the exit code."""
        if how is not None:
            self._popen.send_signal(how)
        return self._popen.wait(seconds)

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait(SECONDS)


class Served(Process):
    """A server on a free port, or on the port of one that was there before."""

    def __init__(self, *flags: str, port: int = 0, **variables: str):
        # What a test keeps on disk it names; nobody else leaves a file where the tests were started.
        store = () if "--store" in flags else ("--store", "memory:")
        super().__init__("serve", "--port", str(port), *store, *flags, **variables)
        try:
            self.url = self.until(r"http://127\.0\.0\.1:\d+")[0]
        except BaseException:
            self.__exit__()
            raise
        self.port = int(self.url.rpartition(":")[2])


class Started(Served):
    """One that is started from nothing, and so has a command line that others can see."""

    command = [*PERE]
