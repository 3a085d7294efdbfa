"""Several nodes on one machine that are started together: a process that serves nothing, and watches those that do.

Each worker is a whole server, a node of the deployment like any other. They share a port (SO_REUSEPORT) and a store, and know nothing of
each other. One that dies is started again, later each time. They all end when this process does, whatever ends it: each holds
one end of a pipe whose other end only this process has.

This process has no loop and no threads: it waits for signals, and forks.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import monotonic
from typing import NoReturn

from prometheus_client.core import CounterMetricFamily, Metric

from pere import systemd
from pere.config import Config
from pere.errors import ConfigError
from pere.log import set_up
from pere.server import Server

log = logging.getLogger("pere.workers")

SOON, LATE = 0.5, 30.0  # seconds until one that died is started again: at first, and at most; each time twice as long
STEADY = 30.0  # seconds after which one that lived so long counts as sound
PATIENCE = 30.0  # seconds beyond `--drain-delay` and `--drain-seconds` after which one that does not end is killed
GATHER = 0.2  # seconds: a supervisor may tell a worker itself that it is to end, and once is enough

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM}

# Serves with this configuration, and calls back when it listens. What goes wrong it prints, and raises SystemExit.
Serve = Callable[[Config, Callable[[Server], None], dict[str, object]], None]


class Worker:
    """One of them, by its number from 1; `pid` is 0 while it does not run. `due` is when it is to be started again."""

    def __init__(self, number: int, config: Config):
        self.number = number
        self.config = config
        self.pid = 0
        self.starts = 0
        self.started = self.due = 0.0
        self.pause = SOON
        self.has_listened = False
        self.ear = -1  # from which a byte comes when it listens


class Workers:
    """All of them. Raises OSError where the port cannot be had."""

    def __init__(self, config: Config, serve: Serve):
        set_up(config.log_level, config.log_format)
        if systemd.inherited():
            raise ConfigError(f"--workers {config.workers} listen on a port that they share, and not on sockets that are handed in (LISTEN_FDS)")
        # Bound and never listened on: it holds the port, also while no worker has it, and chooses one where that was left open.
        self._holder = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._holder.bind((config.host, config.port))
        config = replace(config, port=self._holder.getsockname()[1])
        self._workers = [
            Worker(number, replace(config, workers=1, reuse_port=True, admin_port=config.admin_port + number - 1 if config.admin_port > 0 else config.admin_port))
            for number in range(1, config.workers + 1)]
        self._config = config  # with the port that was chosen
        self._serve = serve
        self._lifeline, self._end = os.pipe()
        self._is_ending = False
        self._is_ready = False
        self._pulse = systemd.watchdog() / 2
        self._kill_at = 0.0
        self._code = 0

    def run(self) -> int:
        """Until a signal ends it; the exit code."""
        for each in SIGNALS:
            signal.signal(each, lambda *_: None)  # what would be ignored might not be waited for
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for worker in self._workers:
            self._start(worker)
        self._look_at_the_time()
        while any(worker.pid for worker in self._workers) or not self._is_ending:
            number = signal.sigwait(SIGNALS)
            if number == signal.SIGHUP:
                self._tell(signal.SIGHUP)
            elif number not in (signal.SIGCHLD, signal.SIGALRM):
                self._stop()
            self._reap()
            self._look_at_the_time()
        log.info("all workers have ended")
        return self._code

    def _start(self, worker: Worker) -> None:
        ear, mouth = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        worker.pid = os.fork()
        if not worker.pid:
            self._work(worker, mouth)
        os.close(mouth)
        os.set_blocking(ear, False)
        worker.ear, worker.has_listened = ear, False
        worker.starts += 1
        worker.started, worker.due = monotonic(), 0.0
        log.debug("worker started", extra={"facts": {"worker": worker.number, "pid": worker.pid}})

    def _work(self, worker: Worker, mouth: int) -> NoReturn:
        """What the new process does, and all that it does."""
        code = 1
        try:
            os.setsid()  # Ctrl-C is for the process that watches
            for number in SIGNALS:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            self._holder.close()
            os.close(self._end)
            os.environ.pop("NOTIFY_SOCKET", None)  # it is this process whom the manager hears

            def ready(server: Server) -> None:
                os.write(mouth, b"1")
                server.registry.register(Restarts(worker.starts))
                loop = asyncio.get_running_loop()
                loop.add_reader(self._lifeline, _end_of, server, self._lifeline)

            self._serve(worker.config, ready, {"worker": worker.number})
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            log.exception("a worker could not go on")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        """Look who has ended."""
        for worker in self._workers:
            if not worker.pid:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if not pid:
                continue
            self._is_listening(worker)
            os.close(worker.ear)
            worker.pid = 0
            self._ended(worker, os.waitstatus_to_exitcode(status))

    def _ended(self, worker: Worker, code: int) -> None:
        """A process has ended: with this exit code, or minus the signal."""
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if self._is_ending:
            # One that was not yet listening knows nothing of orderly ends.
            if code and (worker.has_listened or code != -signal.SIGTERM):
                self._code = self._code or 1
                log.warning("a worker did not end well", extra={"facts": {"worker": worker.number, "how": how}})
            return
        if code > 0 and worker.starts == 1 and not worker.has_listened:
            # It has said why. What cannot be at the start will not be later.
            self._code = code
            self._stop()
            return
        if monotonic() - worker.started >= STEADY:
            worker.pause = SOON
        worker.due = monotonic() + worker.pause
        log.log(logging.ERROR if code else logging.WARNING, "a worker ended and is started again",
                extra={"facts": {"worker": worker.number, "how": how, "in": f"{worker.pause:g} s"}})
        worker.pause = min(2 * worker.pause, LATE)

    def _look_at_the_time(self) -> None:
        now = monotonic()
        if self._is_ending:
            if now >= self._kill_at:
                log.error("what does not end is killed")
                self._kill_at = now + PATIENCE
                self._tell(signal.SIGKILL)
            times = [self._kill_at]
        else:
            for worker in self._workers:
                if worker.due and now >= worker.due:
                    self._start(worker)
            times = [worker.due for worker in self._workers if worker.due]
        if (wait := self._notify()):
            times.append(now + wait)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, min(times) - now) if times else 0)

    def _notify(self) -> float:
        """Tell the manager, if there is one, when all listen, and again and again that somebody watches. In how many seconds to come again; 0 is never."""
        if "NOTIFY_SOCKET" not in os.environ:
            return 0.0
        if not self._is_ready and not self._is_ending:
            self._is_ready = all(worker.pid and self._is_listening(worker) for worker in self._workers)
            if not self._is_ready:
                return GATHER
            self._is_ready = systemd.notify("READY=1", f"STATUS={len(self._workers)} workers on port {self._config.port}")
            if not self._is_ready:
                return GATHER
        if self._pulse:
            systemd.notify("WATCHDOG=1")
        return self._pulse

    def _stop(self) -> None:
        """Let all end; said again, at once."""
        if self._is_ending:
            self._tell(signal.SIGTERM)
            return
        self._is_ending = True
        systemd.notify("STOPPING=1")
        self._kill_at = monotonic() + self._config.drain_delay + self._config.drain_seconds + PATIENCE
        os.close(self._end)
        for worker in self._workers:
            if worker.pid and not self._is_listening(worker):
                os.kill(worker.pid, signal.SIGTERM)

    def _is_listening(self, worker: Worker) -> bool:
        try:
            worker.has_listened = worker.has_listened or bool(os.read(worker.ear, 1))
        except BlockingIOError:
            pass  # it has said nothing yet
        return worker.has_listened

    def _tell(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, number)


class Restarts:
    """What Prometheus reads of it."""

    def __init__(self, count: int):
        self._count = count

    def collect(self) -> Iterator[Metric]:
        """As prometheus-client asks for it."""
        yield CounterMetricFamily("pere_worker_restarts", "How often this worker has ended and was started again.", self._count)


def _end_of(server: Server, lifeline: int) -> None:
    """The process that watches ends, or is gone."""
    loop = asyncio.get_running_loop()
    loop.remove_reader(lifeline)
    loop.call_later(GATHER, lambda: None if server.door.draining else os.kill(os.getpid(), signal.SIGTERM))
