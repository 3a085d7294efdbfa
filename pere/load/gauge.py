"""What the server under load spends: its processor time and memory, read from its process or from its own metrics.

The load's own processor time is told beside it, so that nobody takes one for the other.
"""

import asyncio
import os
import re
import sys
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from pere.load.target import Target

CPU = re.compile(rb"^process_cpu_seconds_total (\S+)", re.M)
MEMORY = re.compile(rb"^process_resident_memory_bytes (\S+)", re.M)


class Gauge:
    """`cpu` in seconds since its start, `memory` in bytes; None where it does not say."""

    async def cpu(self) -> float | None:
        return None

    async def memory(self) -> float | None:
        return None


class ProcessGauge(Gauge):
    """A process of this machine. Raises ProcessLookupError if there is none of this id."""

    def __init__(self, pid: int):
        os.kill(pid, 0)
        self._pid = pid

    async def cpu(self) -> float | None:
        # clock_getcpuclockid(3): the clock of a process by its id, in nanoseconds where /proc counts in hundredths of a second.
        return time.clock_gettime(~self._pid << 3 | 2)

    async def memory(self) -> float | None:
        found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{self._pid}/status").read_text(), re.M)
        return float(found[1]) * 1024 if found else None


class MetricsGauge(Gauge):
    """A server that tells Prometheus about its process."""

    def __init__(self, target: Target, path: str = "/metrics"):
        self._target = target
        self._path = path

    def _scrape(self) -> bytes:
        request = self._target.asking(self._path).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in request[1:] if line)
        connection = HTTPConnection(self._target.host, self._target.port, timeout=10)
        try:
            connection.request("GET", self._path, headers=headers)
            return connection.getresponse().read()
        except (OSError, HTTPException):
            return b""
        finally:
            connection.close()

    async def _value(self, name: re.Pattern[bytes]) -> float | None:
        found = name.search(await asyncio.to_thread(self._scrape))
        return float(found[1]) if found else None

    async def cpu(self) -> float | None:
        return await self._value(CPU)

    async def memory(self) -> float | None:
        return await self._value(MEMORY)


def gauge(pid: int | None, target: Target) -> Gauge:
    """The best that there is here. Raises ProcessLookupError if the process is none, ValueError where it cannot be asked."""
    if pid is None:
        return MetricsGauge(target)
    if sys.platform != "linux":
        raise ValueError("the processor time of another process can only be read on Linux; leave --pid away, and /metrics is asked")
    return ProcessGauge(pid)
