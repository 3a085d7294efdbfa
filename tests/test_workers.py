"""`--workers`: real processes on one port, with a real Redis, of which any may die."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import wire
from processes import SECONDS, Process, free_port, pere
from redises import named

from pere.config import Config
from pere.errors import ConfigError

TWO = ("serve", "--workers", "2")


class Crew(Process):
    """Two workers that listen, each with a port for administration."""

    def __init__(self, store: str, *flags: str):
        self.admin = free_ports()
        super().__init__(*TWO, "--store", store, "--port", "0", "--admin-port", str(self.admin[0]), *flags)
        try:
            self.pids = [self.listening(number) for number in (1, 2)]
        except BaseException:
            self.__exit__()
            raise
        self.port = int(self.until(r"listening .*url=https?://127\.0\.0\.1:(\d+)")[1])

    def listening(self, number: int, time: int = 1) -> int:
        """The pid of a worker that has said for the nth time that it listens."""
        self.until(f"(?s)(?:listening worker={number} .*){{{time}}}")
        (found,) = [pid for pid in children(self.pid) if b"%d" % self.admin[number - 1] in listened(pid)]
        return found


def free_ports() -> tuple[int, int]:
    """Two that follow each other."""
    while True:
        first = free_port()
        with socket.socket() as next:
            try:
                next.bind(("127.0.0.1", first + 1))
            except OSError:
                continue
            return first, first + 1


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as told:
        return [int(each) for each in told.read().split()]


def listened(pid: int) -> set[bytes]:
    """The ports on which a process listens."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # it was closed meanwhile
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    with open("/proc/net/tcp") as table:
        lines = [line.split() for line in table.readlines()[1:]]
    return {b"%d" % int(line[1].rpartition(":")[2], 16) for line in lines if line[9] in inodes and line[3] == "0A"}


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def crew(tmp_path):
    @contextmanager
    def crew(*flags: str) -> Iterator[Crew]:
        with Crew(named("redis", tmp_path), *flags) as crew:
            yield crew
            pids = children(crew.pid) if crew._popen.poll() is None else []
        deadline = time.monotonic() + SECONDS
        while any(map(is_there, pids)):
            assert time.monotonic() < deadline, pids
            time.sleep(0.01)
    return crew


async def told(port: int, name: str) -> float:
    answer = await wire.request(port, "GET", "/metrics")
    (line,) = [line for line in answer.body.decode().splitlines() if line.startswith(name + " ")]
    return float(line.split()[1])


async def test_workers_share_a_port_and_what_they_know_and_each_has_metrics_of_its_own(crew):
    with crew() as workers:
        feed = await wire.listen(workers.port, "c", device="d")
        # The kernel shares connections out: that all of forty go to one happens once in 10**12 times.
        for number in range(40):
            await wire.push(workers.port, "c", number)
        assert await feed.events(40) == [str(number) for number in range(40)]
        pushed = [await told(port, "pere_events_total") for port in workers.admin]
        assert sum(pushed) == 40 and min(pushed) > 0
        assert sum([await told(port, "pere_feeds") for port in workers.admin]) == 1
        assert (await wire.request(workers.port, "GET", "/metrics")).status == 404
        assert workers.end(signal.SIGTERM) == 0
        *_, last = await feed.end()
        assert last.event == "pere.bye"
        feed.close()
        assert not any(map(is_there, workers.pids))


async def test_a_worker_that_dies_is_started_again_and_takes_nothing_with_it(crew):
    with crew() as workers:
        feed = await wire.listen(workers.port, "c", device="d")
        first = (await wire.push(workers.port, "c")).json["id"]
        await feed.event()
        ((lost, admin),) = [each for each in zip(workers.pids, workers.admin, strict=True) if await told(each[1], "pere_feeds")]
        os.kill(lost, signal.SIGKILL)
        feed.close()
        number = workers.pids.index(lost) + 1
        workers.until(f"a worker ended and is started again worker={number} how=signal SIGKILL in=0.5 s")
        later = (await wire.push(workers.port, "c")).json["id"]
        assert workers.listening(number, 2) != lost
        assert await told(admin, "pere_worker_restarts_total") == 1
        feed = await wire.listen(workers.port, "c", device="d")
        assert [(await feed.event()).id for _ in range(2)] == [first, later]
        feed.close()
        # Who ends one by hand lets it say goodbye, and gets another.
        os.kill(workers.pids[2 - number], signal.SIGTERM)
        workers.listening(3 - number, 2)
        assert workers.end(signal.SIGINT) == 0


async def test_no_worker_is_left_when_the_process_that_watches_is_killed(crew):
    with crew() as workers:
        pids = workers.pids
        workers.end(signal.SIGKILL)
    while any(map(is_there, pids)):
        await asyncio.sleep(0.02)
    with socket.socket() as free:
        free.bind(("127.0.0.1", workers.port))


async def test_a_hangup_is_passed_on_and_a_supervisor_that_tells_everybody_ends_nobody_at_once(crew, authority):
    cert, key = authority.sign("worker")
    with crew("--tls-cert", cert, "--tls-key", key) as workers:
        workers._popen.send_signal(signal.SIGHUP)
        for number in (1, 2):
            workers.until(f"reloaded worker={number}")
        for pid in (*workers.pids, workers.pid):
            os.kill(pid, signal.SIGTERM)
        assert workers.end() == 0
        assert "at once" not in workers.err


async def test_told_twice_they_end_at_once(crew):
    with crew("--drain-seconds", "3600") as workers:
        hanging = await wire.Wire.open(workers.port)
        await hanging.send(b"POST /push/c HTTP/1.1\r\nHost: pere\r\nContent-Length: 9\r\n\r\n1")
        await wire.push(workers.port, "c")
        workers._popen.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionRefusedError):
            while True:  # until none of them takes anything more
                (await wire.Wire.open(workers.port)).close()
                await asyncio.sleep(0.02)
        assert workers.end(signal.SIGTERM) == 1
        assert "stopping at once" in workers.err
        hanging.close()


def test_what_cannot_be_at_the_start_ends_it(tmp_path):
    nobody = free_port()
    found = pere(*TWO, "--port", "0", "--store", f"redis://127.0.0.1:{nobody}/0")
    assert (found.returncode, f"127.0.0.1:{nobody} cannot be used" in found.stderr) == (2, True), found.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for flags in (("--port", str(port)), ("--port", "0", "--admin-port", str(port))):
            found = pere(*TWO, "--store", named("redis", tmp_path), *flags)
            assert (found.returncode, f"cannot listen on 127.0.0.1:{port}" in found.stderr) == (1, True), found.stderr


@pytest.mark.parametrize("settings, wrong", [
    ({"store": "sqlite:pere.db"}, "--workers 2 are nodes that share what they know by Redis: --store redis://HOST:PORT/DB, not sqlite:pere.db"),
    ({"unix": "/tmp/s"}, "--workers 2 cannot share a Unix socket"),
    ({"port": 4568, "admin_port": 4567}, "those up to 4568"),
    ({"admin_port": 65_535}, "above 65535"),
])
def test_workers_that_cannot_be_are_refused(settings, wrong):
    with pytest.raises(ConfigError, match=wrong):
        Config(**{"workers": 2, "store": "redis://127.0.0.1"} | settings)
