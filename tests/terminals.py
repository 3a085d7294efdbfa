"""A command on a terminal of its own: 80 columns, 24 lines, and keys that are typed."""

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Sequence
from typing import Self

from processes import ENVIRONMENT, PERE, SECONDS


class Terminal:
    """`seen` is all that was written so far, as a terminal gets it."""

    command: Sequence[str] = PERE

    def __init__(self, *arguments: str, **variables: str):
        self.seen = b""
        self._pid, self._file = pty.fork()
        if not self._pid:
            os.execve(self.command[0], [*self.command, *arguments], ENVIRONMENT | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"} | variables)
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._pid:
            os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)
        os.close(self._file)

    def read(self, seconds: float = 0.05) -> bool:
        """Take in what has been written; False at the end."""
        if not select.select([self._file], [], [], seconds)[0]:
            return True
        try:
            found = os.read(self._file, 65536)
        except OSError:  # Linux says EIO where the other end is closed
            return False
        self.seen += found
        return bool(found)

    @property
    def text(self) -> str:
        """Without colours and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen.decode(errors="replace"))

    def until(self, pattern: str, seconds: float = SECONDS) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text)):
            assert self.read() and time.monotonic() < deadline, f"{pattern!r} did not come: {self.text!r}"
        return found

    def type(self, keys: bytes) -> None:
        os.write(self._file, keys)

    def end(self, seconds: float = SECONDS) -> int:
        """Wait for its end; the exit code."""
        deadline = time.monotonic() + seconds
        while self.read():
            assert time.monotonic() < deadline, self.text
        while not (found := os.waitpid(self._pid, os.WNOHANG))[0]:
            assert time.monotonic() < deadline, f"it has closed its terminal, and goes on: {self.text}"
            time.sleep(0.01)
        _, status = found
        self._pid = 0
        return os.waitstatus_to_exitcode(status)
