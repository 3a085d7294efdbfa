"""Real Prometheus for tests, as a process of its own with its data in a folder of the test."""

import json
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

from programs import needed
from processes import SECONDS, free_port


def promtool(*arguments: str | Path) -> str:
    """What it says, which must be no complaint."""
    told = subprocess.run([needed("promtool", "prometheus"), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


class Prometheus:
    """One that runs with the configuration in this file."""

    def __init__(self, config: Path, folder: Path):
        self._config = config
        self._folder = folder
        self.url = f"http://127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [needed("prometheus", "prometheus"), f"--config.file={self._config}", f"--storage.tsdb.path={self._folder / 'data'}", f"--web.listen-address={self.url[7:]}"]
        with open(self._folder / "prometheus.log", "wb") as out:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        deadline = time.monotonic() + 30
        while not self._is_ready():
            assert self._process.poll() is None and time.monotonic() < deadline, (self._folder / "prometheus.log").read_text()
            time.sleep(0.05)
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(SECONDS)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def api(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urlencode(query)}", timeout=20) as answer:
            return json.load(answer)["data"]

    def ask(self, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
        """What an expression is now: a value for each set of labels, without the name of the metric."""
        return {tuple(sorted((name, value) for name, value in each["metric"].items() if name != "__name__")): float(each["value"][1])
                for each in self.api("query", query=expression)["result"]}
