"""Servers under the same load, in turn: what all measurements here share.

Each round starts every server afresh, one after the other, so that a moment in which the machine is slow falls on all of them; the server is
pinned to the first processor and the load to the second. What is told is the median of the rounds, with the least and the most, and each
server's cost as a ratio to that of the floor in the same round. `bench/README.md` says how to read it.
"""

import argparse
import importlib.metadata
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from bench import program
from bench.handing import listening
from pere.cli.bench import SHOWN, processor

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PINNED = shutil.which("taskset") is not None and (os.cpu_count() or 1) > 1
SECRET = "only for measuring, and at least 32 bytes"  # of tokens, which are checked as they would be
START, STOP = 30.0, 15.0  # seconds for a server to listen, and to end


@dataclass(frozen=True)
class Server:
    """How a server is started, and what the load must know of it. In the command `{port}` becomes a free port, `{tmp}` an empty folder and
    `{here}` this folder. `child` is whether its first child does the work. `inside` is a file in `{tmp}` in which it tells of itself, by lines of JSON."""

    name: str
    command: tuple[str, ...]
    load: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    child: bool = False
    version: str = ""
    inside: str = ""


class Failed(Exception):
    """A server did not stand it."""


@dataclass(frozen=True)
class Measure:
    """One question to some servers. `shows` names the figures of the table, the first of which is compared with `floor`; `short` are sizes for
    a tour; `absent` says who is not among them, and what to do about it."""

    name: str
    scenario: str
    servers: tuple[Server, ...]
    sizes: str = ""
    short: str = ""
    shows: tuple[str, ...] = ("server_us", "capacity", "load_us")
    floor: str = ""
    absent: tuple[str, ...] = ()


def pere(name: str, store: str, tokens: bool = True, *flags: str) -> Server:
    """PERE with this store, with tokens or open. The one publisher of a load may push as much as it likes."""
    return Server(name, (sys.executable, "-m", "pere", "serve", "--port", "{port}", "--store", store, "--log-level", "error", "--subject-pushes", "0", *flags),
                  ("--jwt-secret", SECRET) if tokens else (), {"PERE_JWT_SECRET": SECRET} if tokens else {})


PERE = pere("PERE, memory", "memory:")
SQLITE = pere("PERE, SQLite", "sqlite:{tmp}/pere.db")
SEND = Server("floor: bare send()", (sys.executable, "-m", "bench.floor", "send", "--port", "{port}"))
ECHO = Server("floor: httptools echo", (sys.executable, "-m", "bench.floor", "echo", "--port", "{port}"))


def pinned(place: int) -> list[str]:
    return ["taskset", "-c", str(place)] if PINNED else []


def free_port() -> int:
    """One that nobody is given before a server that takes its time listens there."""
    with listening() as each:
        return int(each.getsockname()[1])


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put a Ctrl-C or SIGTERM off until this is done: in the middle of a start nobody would know of the process that is there already."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told: list[int] = []
    before = {each: signal.signal(each, lambda number, _: told.append(number)) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    for number in told[:1]:
        signal.raise_signal(number)


def last_words(folder: str | Path) -> str:
    """What a server said last, by its folder."""
    return (Path(folder) / "log").read_text("utf-8", "replace")[-2000:]


@contextmanager
def running(server: Server) -> Iterator[tuple[int, int, Path]]:
    """A server that listens: its port, the process that does the work, and its folder. Whatever happens, it is ended."""
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        port = free_port()

        def filled(text: str) -> str:
            return text.replace("{port}", str(port)).replace("{tmp}", folder).replace("{here}", str(HERE))

        process = None
        try:
            with undisturbed():
                process = subprocess.Popen([*pinned(0), *map(filled, server.command)], stdout=log, stderr=log, start_new_session=True, cwd=HERE.parent,
                                           env=os.environ | {name: filled(value) for name, value in server.environment.items()})
            deadline = time.monotonic() + START
            is_there = False
            while not is_there:
                with socket.socket() as sock:
                    is_there = sock.connect_ex(("127.0.0.1", port)) == 0
                time.sleep(0.5 if is_there else 0.05)
                # Somebody is there, but it may be somebody else.
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{server.name} did not start: {last_words(folder)}")
            pid = process.pid
            if server.child:
                pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
            yield port, pid, Path(folder)
        finally:
            for how in (signal.SIGTERM, signal.SIGKILL) if process is not None else ():
                try:
                    os.killpg(process.pid, how)
                    process.wait(STOP)
                    break
                except subprocess.TimeoutExpired:
                    continue
                except ProcessLookupError:
                    break


def once(measure: Measure, server: Server, sizes: str) -> dict[str, Any]:
    """One run of one server."""
    with running(server) as (port, pid, folder):
        done = subprocess.run([*pinned(1), sys.executable, "-m", "pere", "bench", measure.scenario, "--url", f"http://127.0.0.1:{port}", "--pid", str(pid),
                               "--processes", "1", "--json", *server.load, *sizes.split()], capture_output=True, text=True, timeout=7_200, cwd=HERE.parent)
        if done.returncode:
            raise Failed(f"{server.name}, {measure.scenario}: {done.stderr.strip()}" + "".join(f" ({line})" for line in last_words(folder).splitlines()[-1:]))
        inside = [orjson.loads(line) for line in (folder / server.inside).read_bytes().splitlines()] if server.inside else []
    told: dict[str, Any] = orjson.loads(done.stdout)
    if inside:
        told["figures"]["inside"] = inside
    return told


@contextmanager
def ending_well() -> Iterator[None]:
    """Let a SIGTERM end this program as an exception does, so that no server outlives it; and say what is left after Ctrl-C."""
    def interrupted(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough: what follows ends the servers
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    except KeyboardInterrupt:
        print("\nstopped: all servers have ended; what was kept so far stays, the rounds under way are lost", file=sys.stderr)
        sys.exit(130)


def measured(measure: Measure, rounds: int, is_short: bool = False, more: str = "", left: Callable[[], str] = str) -> dict[str, Any]:
    """All rounds, as they are kept in a file of results. `left` says before each server for how long it will still go on."""
    sizes = f"{measure.sizes} {measure.short if is_short else ''} {more}"
    runs: dict[str, list[dict[str, Any]]] = {server.name: [] for server in measure.servers}
    curves: dict[str, Any] = {}
    failures: dict[str, str] = {}
    arguments: dict[str, Any] = {}
    for number in range(rounds):
        for server in measure.servers:
            line = f"\r\x1b[K{measure.name}: round {number + 1} of {rounds}, {server.name}{left()}"
            print(line if sys.stderr.isatty() else ".", end="", file=sys.stderr, flush=True)
            try:
                told = once(measure, server, sizes)
            except Failed as failed:
                # That somebody else's server does not stand a load is a result; that ours or the floor does not is a mistake.
                if not server.version:
                    raise SystemExit(str(failed)) from None
                failures[server.name] = str(failed)
                continue
            runs[server.name].append(told["figures"])
            curves[server.name], arguments = told["curves"], told["arguments"]
    print("\r\x1b[K" if sys.stderr.isatty() else "", end="" if sys.stderr.isatty() else "\n", file=sys.stderr)
    return {"name": measure.name, "scenario": measure.scenario} | here() | {
        "servers": {server.name: {"version": server.version, "command": " ".join(server.command).replace(sys.executable, "python")} for server in measure.servers},
        "arguments": arguments, "rounds": rounds, "is_short": is_short, "floor": measure.floor, "shows": measure.shows, "runs": runs, "curves": curves, "failures": failures,
        "absent": measure.absent,
    }


def here() -> dict[str, Any]:
    """What something was measured on, and when."""
    return {"when": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(), "processor": processor(), "processors": os.cpu_count(), "pinned": PINNED,
            "system": platform.platform(), "python": platform.python_version(), "versions": versions()}


def commit() -> str:
    """The last change of PERE itself, which is what was measured; with a + where it has been changed since."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()

    return git("log", "-1", "--format=%h", "--", "../pere") + ("+" if git("status", "--porcelain", "--untracked-files=no", "../pere") else "")


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("pere", "tornado", "uvloop", "httptools", "orjson")}


def values(runs: list[dict[str, Any]], figure: str) -> list[float]:
    """A figure over the rounds; `a/b` is one inside another."""
    found = []
    for run in runs:
        value: Any = run
        for part in figure.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            found.append(float(value))
    return found


def ratios(result: dict[str, Any], server: str) -> list[float]:
    """The first figure beside the floor's, round by round."""
    figure = result["shows"][0]
    return [own / floor for own, floor in zip(values(result["runs"][server], figure), values(result["runs"][result["floor"]], figure), strict=False) if floor]


def said(numbers: list[float]) -> str:
    """`1.13 (1.10 to 1.20)`."""
    if not numbers:
        return "unknown"
    digits = 0 if abs(median(numbers)) >= 1_000 else 1 if abs(median(numbers)) >= 100 else 2
    middle = f"{median(numbers):,.{digits}f}"
    return middle if len(numbers) == 1 else f"{middle} ({min(numbers):,.{digits}f} to {max(numbers):,.{digits}f})"


def share(figure: str) -> bool:
    """Whether it is shown in percent."""
    return figure in SHOWN and SHOWN[figure][1] == "%"


def title(figure: str) -> str:
    """`server_us`, `server_busy, %`, `delivery p99, ms`: with its unit where the name does not say it."""
    if figure.startswith("latency/"):
        return " ".join(figure.split("/")[1:]) + ", ms"
    unit = SHOWN[figure][1] if figure in SHOWN else ""
    return f"{figure}, {unit}" if unit in ("%", "KiB/min") else figure


def rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of a result: its head, and a line for each server."""
    head = ["operation" if result["scenario"] == "micro" else "server", *map(title, result["shows"]), *(["x the floor"] if result["floor"] else [])]
    lines = []
    for server, runs in result["runs"].items():
        line = [server, *(said([value * 100 if share(figure) else value for value in values(runs, figure)]) for figure in result["shows"])]
        if result["floor"]:
            line.append("1" if server == result["floor"] else said(ratios(result, server)))
        lines.append(line)
    return head, lines


def often(result: dict[str, Any]) -> str:
    return "one round" if result["rounds"] == 1 else f"{result['rounds']} rounds, medians (least to most)"


def show(result: dict[str, Any]) -> None:
    head, lines = rows(result)
    table = Table(*head[:1], title=f"{result['name']}: {often(result)}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in head[1:]:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*line)
    console = Console(width=130, markup=False, emoji=False, highlight=False)
    console.print(table)
    for failure in result["failures"].values():
        console.print(f"failed: {failure}")
    for each in result["absent"]:
        console.print(each)


def keep(result: dict[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result['name']}.json"
    path.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    return path


def main(doc: str | None, measures: Sequence[Measure]) -> None:
    """The command line that all files of measures share."""
    parser = argparse.ArgumentParser(prog=program(), description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each server is measured, in turn (5)")
    parser.add_argument("--short", action="store_true", help="small sizes, as in a tour")
    parser.add_argument("--sizes", default="", help="sizes for pere bench, such as '--feeds 1000'")
    parser.add_argument("--measure", choices=[measure.name for measure in measures], help="only this one")
    parser.add_argument("--only", default="", help="only servers whose name has this in it, and the floor")
    parser.add_argument("--no-keep", action="store_true", help="write nothing to bench/results")
    asked = parser.parse_args()
    if asked.rounds < 1:
        parser.error(f"--rounds is 1 or more, not {asked.rounds}")
    with ending_well():
        for measure in measures:
            if asked.measure not in (None, measure.name):
                continue
            servers = tuple(each for each in measure.servers if asked.only in each.name or each.name == measure.floor)
            if not any(asked.only in server.name for server in servers):
                parser.error(f"{measure.name} has no server with {asked.only!r} in its name; it has {'; '.join([*(server.name for server in measure.servers), *measure.absent])}")
            result = measured(replace(measure, servers=servers), asked.rounds, asked.short, asked.sizes)
            show(result)
            if not asked.no_keep:
                print(f"kept in {keep(result).relative_to(HERE.parent)}\n")
