"""A `pere` that need not load itself: it is forked from a process that has loaded all of it, and goes on as `python -m pere` does.

To load what a command is made of takes a quarter of a second of a processor, and the tests start a thousand commands. What is forked is a
process like any other, with streams, a folder, limits and variables of its own, that ends or is killed as any other. What it does not show is
a start from nothing. That have all who are started with more than PERE's own variables, and those who run what is in the README, an image,
a unit, or a bare environment.
"""

import atexit
import gc
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

LARGEST = 1 << 18  # bytes of a command line with all its variables
NUMBER = 16  # bytes of a number that is said
DONE = 60.0  # seconds within which what is asked for is done: a machine may be as busy as it likes


class Fork:
    """As much of `subprocess.Popen` as tests use, of a process that is no child of this one."""

    def __init__(self, arguments: tuple[str, ...], variables: dict[str, str], stdin: IO[bytes] | int, stdout: IO[bytes], stderr: IO[bytes]):
        self.args = arguments
        self.returncode: int | None = None
        self._line, theirs = socket.socketpair()
        self._line.settimeout(DONE)
        said = {"arguments": arguments, "variables": variables, "folder": os.getcwd(), "files": resource.getrlimit(resource.RLIMIT_NOFILE)}
        with open(os.devnull, "rb") as nothing, theirs:
            streams = [nothing if stdin == subprocess.DEVNULL else stdin, stdout, stderr, theirs]
            socket.send_fds(_nursery(), [json.dumps(said).encode()], [each if isinstance(each, int) else each.fileno() for each in streams])
        self.pid = int(self._line.recv(NUMBER))

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        if (code := self._ended(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended, and that is about to be said
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def end(self) -> None:
        self.kill()
        self.wait(DONE)

    def _ended(self, seconds: float | None) -> int | None:
        if self.returncode is None:
            self._line.settimeout(seconds)
            with suppress(BlockingIOError, TimeoutError):
                self.returncode = os.waitstatus_to_exitcode(int(self._line.recv(NUMBER)))
                self._line.close()
        return self.returncode


def can(variables: dict[str, str]) -> bool:
    """Whether a command with these variables besides may be forked: those of others than PERE may have been read when all was loaded."""
    return sys.platform == "linux" and all(name.startswith("PERE_") for name in variables)


@cache
def _nursery() -> socket.socket:
    """The line to the process that forks, which ends with this one."""
    from processes import ENVIRONMENT

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
    with theirs:
        process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], env=ENVIRONMENT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])

    @atexit.register
    def end() -> None:
        ours.close()
        process.wait()

    return ours


# In the process that forks


def load() -> None:
    """All that any command loads."""
    folder = Path(__file__).parent.parent
    sys.path[0] = str(folder)  # where the tests are is no place that `pere` finds anything in
    for path in sorted((folder / "pere").rglob("*.py")):
        if path.name != "__main__.py":
            import_module(".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"))
    gc.collect()
    gc.freeze()


def fork(asked: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Returns only in what was forked: what that is to be, and its streams."""
    ended, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who ends the tests by Ctrl-C hangs up too
    lines: dict[int, int] = {}
    while True:
        ready = select.select([asked, ended], [], [])[0]
        if ended in ready:
            os.read(ended, 4096)
            while lines and (found := os.waitpid(-1, os.WNOHANG))[0]:
                _say(lines.pop(found[0]), found[1])
        if asked in ready:
            said, streams, _, _ = socket.recv_fds(asked, LARGEST, 4)
            if not said:
                sys.exit()
            line = streams.pop()
            if not (pid := os.fork()):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for each in (ended, woken, line, asked.detach(), *lines.values()):
                    os.close(each)
                return json.loads(said), streams
            lines[pid] = os.dup(line)
            _say(line, pid)
            for each in streams:
                os.close(each)


def _say(line: int, number: int) -> None:
    with suppress(BrokenPipeError), socket.socket(fileno=line) as end:
        end.send(b"%*d" % (NUMBER, number))


def become(said: dict[str, Any], streams: list[int]) -> None:
    for place, each in enumerate(streams):
        os.dup2(each, place)
        os.close(each)
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(said["folder"])
    resource.setrlimit(resource.RLIMIT_NOFILE, said["files"])
    os.environ.clear()
    os.environ.update(said["variables"])
    sys.argv[1:] = said["arguments"]


if __name__ == "__main__":
    line = socket.socket(fileno=int(sys.argv[1]))
    load()
    become(*fork(line))
    runpy.run_module("pere", run_name="__main__", alter_sys=True)
