"""What a process says to the one that follows it on the same machine, so that this goes on with its sockets: words, and descriptors beside them (SCM_RIGHTS, unix(7)).

Who serves (the *predecessor*) waits on the Unix socket `--handover`. Who starts (the *successor*) comes there first, and they say, each word a line of JSON:

    successor      {"pere": VERSION, "store": where}
    predecessor    {"pere": VERSION, "store": where, "listening": [[kind, host, port], ...]}    with the sockets that listen, or {"refused": why}
                   {"ahead": [[number, what it is, or null], ...]}                          with the sockets of feeds, which are served where they are
                   {"shown": [true]}
    successor      {"seen": true}                                                           what can be made of them before is made
    predecessor    {"saved": [news]}                                                        what can be is in the file, after so much news of who is registered
    successor      {"looked": true}                                                         it has read that
    predecessor    {"connections": [is_admin, ...]}                                         with theirs
                   {"feeds": [[number, ...], ...]}, {"followers": ...}, {"retries": ...}    where those are, with the sockets of those that have no number (-1)
                   {"live": [true], "but": [number, ...], "flushed": {channel: ordinal}}    all but these are as they were shown, and were written all up to there
                   {"over": [true], "left": {"news": news, ...},                            the store is free, and nobody need look for this;
                    "recalled": [[channel, id], ...], "removed": {device: when},            of these events the feeds were not told that they are; who is to stop;
                    "away": [[device, when, [channel, ...]], ...]}                          who has just gone, which was not told
    successor      {"serving": true}                                                        they are its own now, and the other may end

With a store that is shared nothing is saved, and the successor says {"seen": true} of each word with feeds, when it serves them: then the next ones come.

Where a manager exchanges processes (systemd), the one ends before the other begins, and nobody is there to answer: then it keeps what was said, descriptors and all, until somebody
hears it (`Deposit`).

The first two are understood by every version. Where the versions differ only the sockets that listen go over, and the predecessor lets its feeds go. Who dies
on the way leaves devices that connect anew: each word is said when what it is about is safe in the store, or was never answered.

This file knows no feed and no connection.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson

from pere.config import Config, without_password

log = logging.getLogger("pere.handover")

VERSION = 3
MOST = 200  # descriptors beside one word; Linux takes 253
MAX_WORD = 64 * 1024 * 1024  # bytes
APART = 1 << 31  # in a word's size: it stands in a file, whose descriptor comes first
PATIENCE = 30.0  # seconds that the other may take for its next word: a large file is read before it serves
GREETING = 5.0  # and for its first one
LOOK = 0.05  # between two looks whether there is room in its queue, or it has left its place

Word = dict[str, Any]


class Broken(Exception):
    """The other end has gone, or says what nobody understands."""


class Line:
    """One end of the talk. What it does it waits for, so the loop leaves it to a thread."""

    def __init__(self, sock: socket.socket):
        self._sock = sock
        sock.settimeout(PATIENCE)

    def say(self, word: Word, descriptors: Sequence[int] = ()) -> None:
        """Raises Broken."""
        data = orjson.dumps(word)
        data = len(data).to_bytes(4, "big") + data
        try:
            sent = socket.send_fds(self._sock, [data], descriptors) if descriptors else 0
            self._sock.sendall(data[sent:])
        except OSError as error:
            raise Broken(str(error)) from None

    def is_seen(self) -> None:
        """Done when the other end has worked on what was said so far. Raises Broken where it has gone."""
        self.hear()

    def is_taken(self) -> None:
        """Done when the other end has all, and goes on with it. Raises Broken where it does not."""
        self.hear()

    def hear(self, seconds: float = PATIENCE) -> tuple[Word, list[socket.socket]]:
        """The next word, and the sockets that came with it. Raises Broken."""
        handed: list[int] = []
        try:
            self._sock.settimeout(seconds)
            # Descriptors come with the first byte that they were sent with.
            head, handed, flags, _ = socket.recv_fds(self._sock, 4, MOST + 1, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
            size = int.from_bytes(head + self._read(4 - len(head)), "big")
            if flags & socket.MSG_CTRUNC or size & ~APART > MAX_WORD:
                raise Broken("more descriptors or bytes came than can be")
            word = orjson.loads(self._read(size) if not size & APART else _content(handed, size & ~APART))
            if not isinstance(word, dict):
                raise Broken("what came is no word")
            sockets = []
            while handed:
                sockets.append(socket.socket(fileno=handed[0]))
                del handed[0]
                sockets[-1].setblocking(False)
                sockets[-1].set_inheritable(False)
            return word, sockets
        except (OSError, ValueError) as error:
            raise Broken(str(error)) from None
        finally:
            for fd in handed:
                os.close(fd)

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._sock.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise Broken("the other end has gone")
            data += piece
        return bytes(data)

    def is_own(self) -> bool:
        """Whether the other end is a process of the same user; where the system does not tell, the file's mode must do."""
        if not hasattr(socket, "SO_PEERCRED"):
            return True
        _, user, _ = struct.unpack("3i", self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return bool(user == os.geteuid())

    def close(self) -> None:
        self._sock.close()


def _content(handed: list[int], size: int) -> bytes:
    """What stands in the file that came first. Raises Broken."""
    if not handed:
        raise Broken("a file is missing")
    file = handed.pop(0)
    try:
        return os.pread(file, size, 0)
    finally:
        os.close(file)


class Deposit(Line):
    """What is said here is heard by a process that is yet to begin: a manager keeps the other end. As nobody reads meanwhile, only descriptors are in the socket's
    queue, and words in files (memfd) beside them. `keep` hands a descriptor to the manager, and tells whether it has it."""

    def __init__(self, keep: Callable[[int], bool]):
        mine, self._other = socket.socketpair()
        super().__init__(mine)
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        mine.setblocking(False)
        self._keep = keep

    def say(self, word: Word, descriptors: Sequence[int] = ()) -> None:
        data = orjson.dumps(word)
        try:
            with open(os.memfd_create("pere"), "wb", buffering=0) as file:
                file.write(data)
                socket.send_fds(self._sock, [(APART | len(data)).to_bytes(4, "big")], [file.fileno(), *descriptors])
        except OSError as error:
            raise Broken(str(error)) from None

    def is_seen(self) -> None:
        """Nobody is there yet."""

    def is_taken(self) -> None:
        if not self._keep(self._other.fileno()):
            raise Broken("the manager does not keep it")

    def close(self) -> None:
        super().close()
        self._other.close()


async def aside(does: Callable[..., Any], *arguments: Any) -> Any:
    """Wait for it in a thread."""
    return await asyncio.get_running_loop().run_in_executor(None, does, *arguments)


def place_of(config: Config) -> str:
    """What two processes must have in common to follow each other."""
    kind, _, path = config.store.partition(":")
    return f"sqlite:{os.path.realpath(path)}" if kind == "sqlite" else without_password(config.store)


def visit(path: str) -> Line | None:
    """Who serves there; None if nobody does. Raises OSError, with the path in `filename`, where that cannot be found out, or it is somebody else's; and
    where the path is not the socket's own, such as a link to it: who took over could not wait there for the next one."""
    if not _is_socket(path):
        return None
    sock, until = socket.socket(socket.AF_UNIX), time.monotonic() + PATIENCE
    try:
        while not _is_through(sock, path):
            if time.monotonic() > until:
                raise OSError(errno.ETIMEDOUT, "who listens there takes no connections")
            time.sleep(LOOK)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror or str(error), path) from None
    line = Line(sock)
    if not line.is_own():
        line.close()
        raise OSError(errno.EPERM, "who listens there is a process of another user", path)
    return line


def _is_through(sock: socket.socket, path: str) -> bool:
    """False where too many stand in the queue: who comes to a Unix socket is not told when there is room (connect(2), EAGAIN), and to wait for that in the system has no end."""
    sock.setblocking(False)
    try:
        sock.connect(path)
    except BlockingIOError:
        return False
    return True


class Offer:
    """Waits on `path` for a successor. `hear` is told of each visitor's greeting, and says whether it is one; then no other is heard."""

    def __init__(self, path: str, hear: Callable[[Line, Word], Awaitable[bool]]):
        self._path = path
        self._hear = hear
        self._sock: socket.socket | None = None
        self._file = 0, 0
        self._hearing: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Raises OSError, with the path in `filename`, where it cannot be had."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            make_room(self._path)
            sock.bind(self._path)
            # Before it listens, so nobody gets in who may not.
            os.chmod(self._path, 0o600)
            found = os.stat(self._path)
            sock.listen(8)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            raise OSError(error.errno, error.strerror or str(error), self._path) from None
        self._sock, self._file = sock, (found.st_dev, found.st_ino)
        asyncio.get_running_loop().add_reader(sock, self._accept)

    def close(self) -> None:
        """From here on the path is free for somebody else."""
        if self._sock is None:
            return
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        self._sock = None
        with contextlib.suppress(OSError):
            found = os.lstat(self._path)
            if (found.st_dev, found.st_ino) == self._file:
                os.unlink(self._path)

    def _accept(self) -> None:
        assert self._sock is not None
        try:
            visitor, _ = self._sock.accept()
        except OSError:
            return
        task = asyncio.ensure_future(self._greet(Line(visitor)))
        self._hearing.add(task)
        task.add_done_callback(self._hearing.discard)

    async def _greet(self, line: Line) -> None:
        is_heir = False
        try:
            if line.is_own():
                word, sockets = await aside(line.hear, GREETING)
                for each in sockets:
                    each.close()
                is_heir = self._sock is not None and await self._hear(line, word)
        except Broken as broken:
            log.info("nobody who came to take over", extra={"facts": {"because": str(broken)}})
        finally:
            if not is_heir:
                line.close()


def make_room(path: str) -> None:
    """Remove a socket that a process left behind. Raises OSError where what is there is no socket, or somebody listens on it."""
    if not _is_socket(path):
        return
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.setblocking(False)
        try:
            visitor.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its queue is full, so somebody has one
    raise OSError(errno.EADDRINUSE, "another process listens there")


def is_free(path: str) -> bool:
    """Whether nobody waits there any more."""
    try:
        make_room(path)
    except OSError:
        return False
    return True


def _is_socket(path: str) -> bool:
    """False where nothing is. Raises OSError, with the path in `filename`, where what is there is something else."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "a file is there that is no socket", path)
    return True
