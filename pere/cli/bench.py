"""`pere bench`: put a load on a server, and say what it took. The load is a visitor like any other: it speaks HTTP, and knows nothing of what is inside."""

import ipaddress
import os
import platform
import secrets
import socket
import sys
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import orjson
import uvloop
from rich.table import Table

from pere import __version__
from pere.cli.paper import Paper
from pere.cli.visit import DEFAULT_URL, INTERRUPTED, fail
from pere.errors import installing
from pere.load import picture
from pere.load.crew import Crew
from pere.load.fleet import Fleet, Trouble, raise_limit
from pere.load.gauge import gauge
from pere.load.lines import Lines
from pere.load.scenarios import SCENARIOS, Load, Scenario
from pere.load.target import FORM, RECEIPT, Target

PUBLISHER_LINES = 8  # of which most stories use one, so that their events keep their order
SPARE = 64  # open files that a process needs beside its feeds and lines

# What figures are called, their unit, and how many digits they are worth.
SHOWN = {
    "feeds": ("feeds", "", 0), "stuck": ("feeds that never read", "", 0), "deliveries": ("deliveries", "", 0), "acknowledged": ("acknowledged deliveries", "", 0),
    "receipts": ("receipts", "", 0), "requests": ("requests", "", 0), "pushes": ("pushes", "", 0), "returned": ("devices that came back", "", 0),
    "replayed": ("events that they had missed", "", 0), "seconds": ("time", "s", 2), "per_second": ("per second, as it came", "", 0),
    "server_us": ("server's processor, each", "us", 2), "capacity": ("that is, per second of a processor", "", 0), "load_us": ("the load's own processor, each", "us", 2),
    "server_busy": ("server busy", "%", 1), "load_busy": ("load busy", "%", 1), "open_us": ("server's processor to open a feed", "us", 1),
    "open_per_second": ("feeds opened per second", "", 0), "feed_kib": ("server's memory per feed", "KiB", 2), "server_us_alone": ("the same where all read", "us", 2),
    "p99_alone_ms": ("p99 where all read", "ms", 2), "p99_beside_ms": ("p99 beside those that do not", "ms", 2), "p99_ratio": ("which is, turn by turn,", "times", 3),
    "p99_least": ("with 95 % certainty at least", "times", 3), "p99_most": ("and at most", "times", 3),
    "memory_mib": ("memory, in the last three quarters", "MiB", 1), "memory_rise": ("by which it rises meanwhile", "KiB/min", 1),
    "memory_least": ("and with 95 % certainty at least", "KiB/min", 1), "memory_most": ("and at most", "KiB/min", 1),
}


def sizes(command: Any) -> Any:
    """The options that make a scenario larger or smaller; each scenario has defaults of its own."""
    for name, kind, text in reversed((
        ("feeds", click.IntRange(1), "devices, each with a feed"),
        ("events", click.IntRange(1), "events that are pushed (receipts: that each device answers; spread: on each channel)"),
        ("bytes", click.IntRange(60, 1 << 20), "size of an event"),
        ("every", click.FloatRange(0), "seconds between two pushes; mission: 0 waits until all have answered"),
        ("burst", click.IntRange(1), "events that are pushed at once"),
        ("lines", click.IntRange(1), "connections on which receipts are given, or events pushed"),
        ("rate", click.FloatRange(0), "receipts, push: so many requests a second, on time whether answered or not; 0 is as fast as they are answered"),
        ("batch", click.IntRange(0, 1_000), "receipts: so many in one request; 0 is one by one"),
        ("channels", click.IntRange(1), "push, spread, patterns, mixed, soak: how many channels"),
        ("seconds", click.FloatRange(0.1), "idle, mixed, soak: how long"),
        ("behind", click.IntRange(1), "reconnect: events that were missed meanwhile"),
        ("stuck", click.IntRange(1), "slow: one in so many never reads"),
        ("turns", click.IntRange(2), "slow: so many turns with those, and as many without, each of so many events"),
        ("late", click.FloatRange(0), "mixed, soak: seconds until a receipt comes, on the average"),
        ("never", click.FloatRange(0, 1), "mixed, soak: share of receipts that never come"),
        ("leave", click.FloatRange(0, 1), "mixed, soak: share of feeds that are lost every second"),
    )):
        command = click.option(f"--{name}", type=kind, metavar="N", help=text)(command)
    return command


def other_servers(command: Any) -> Any:
    """The options for servers that are not PERE."""
    for name, default, text in reversed((
        ("feed-path", "/feed/{channel}", "where a feed is opened"), ("push-path", "/push/{channel}", "where an event is pushed"),
        ("feedback-path", "/feedback/{channel}", "where a receipt is given"), ("push-body", "{event}", "what is pushed; {quoted} is the event for a form"),
        ("push-type", "application/json", "its Content-Type"),
        ("feedback-body", RECEIPT, "what a receipt says; {device} and {id} are who answers for which event"), ("feedback-type", FORM, "its Content-Type"),
    )):
        command = click.option(f"--{name}", default=default, show_default=True, metavar="TEXT", help=text)(command)
    return click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="a header of every request; may be given again")(command)


@click.command
@click.argument("scenario", type=click.Choice(list(SCENARIOS)))
@click.option("--url", default=DEFAULT_URL, envvar="PERE_URL", show_envvar=True, show_default=True, help="the server's address, by http:// without TLS")
@click.option("--pid", type=int, metavar="PID", help="the server's process, to read what it spends; else its /metrics is asked")
@click.option("--processes", type=click.IntRange(1, 256), metavar="N", help="processes of the load  [default: as many as there are processors but one]")
@sizes
@click.option("--jwt-secret", envvar="PERE_JWT_SECRET", show_envvar=True, metavar="TEXT", default="", help="the secret of the server's tokens: every device gets one of its own")
@click.option("--anywhere", is_flag=True, help="aim at a server that is not on this machine")
@other_servers
@click.option("--json", "as_json", is_flag=True, help="print the figures as one JSON object")
@click.option("--plot", type=click.Path(dir_okay=False, writable=True), metavar="FILE", help="draw the latencies: out.png, .svg or .pdf (needs pere[bench])")
def command(scenario: str, url: str, pid: int | None, processes: int | None, jwt_secret: str, anywhere: bool, feed_path: str, push_path: str, feedback_path: str,
            push_body: str, push_type: str, feedback_body: str, feedback_type: str, headers: tuple[str, ...], as_json: bool, plot: str | None, **given: Any) -> None:
    """Put the load of SCENARIO on a server, and print what it cost: the server, and the load itself.

    A latency counts from when something was to be sent, not from when the load got round to it.

    \b
    fanout     {fanout}
    burst      {burst}
    mission    {mission}
    receipts   {receipts}
    push       {push}
    reconnect  {reconnect}
    slow       {slow}
    spread     {spread}
    patterns   {patterns}
    idle       {idle}
    mixed      {mixed}
    soak       {soak}

    \b
    Examples:
      pere bench fanout                                    5,000 feeds on http://127.0.0.1:4567
      pere bench mission --feeds 1000 --pid $(pgrep -f 'pere serve')
      pere bench receipts --batch 1000 --feeds 100 --events 1000
      pere bench push --rate 2000 --plot push.png
      pere bench soak --seconds 600 --json > soak.json
    """
    chosen = SCENARIOS[scenario]
    options = replace(chosen.defaults, **{name: value for name, value in given.items() if value is not None})
    chosen = Scenario(chosen.run, chosen.question, options)
    if plot is not None and not plot.endswith(picture.FORMS):
        raise click.BadParameter(f"a picture is one of {', '.join(picture.FORMS)}, not {plot}", param_hint="--plot")
    if plot is not None and not Path(plot).absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {Path(plot).parent}", param_hint="--plot")
    if plot is not None and find_spec("matplotlib") is None:
        raise click.UsageError(f"--plot needs what `{installing('bench')}` installs")
    host, port = aim(url, anywhere)
    target = Target(host, port, feed_path, push_path, feedback_path, push_body, push_type, feedback_body, feedback_type, headers, jwt_secret)
    processes = processes or max(1, len(os.sched_getaffinity(0)) - 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 2) - 1)
    need, limit = -(-options.feeds // processes) + options.lines + SPARE, raise_limit()
    if scenario != "receipts" and scenario != "push" and need > limit:
        fail(f"{options.feeds} feeds in {processes} processes need {need} open files each, and the limit is {limit}: raise it (ulimit -n {need}), or "
             f"spread them over --processes {-(-options.feeds // max(1, limit - options.lines - SPARE))}")
    try:
        figures, curves = uvloop.run(measure(chosen, target, pid, processes, as_json))
    except Trouble as trouble:
        fail(str(trouble))
    except ProcessLookupError:
        raise click.BadParameter(f"there is no process {pid}", param_hint="--pid") from None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--pid") from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    told = {"scenario": scenario, "figures": figures, "curves": curves, "arguments": asdict(options) | {"processes": processes},
            "when": datetime.now(UTC).isoformat(timespec="seconds"), "pere": __version__, "python": platform.python_version(), "system": platform.platform(),
            "processor": processor(), "processors": os.cpu_count()}
    if as_json:
        click.echo(orjson.dumps(told))
    else:
        show(scenario, chosen.question, figures)
    if plot is not None:
        try:
            picture.draw(plot, f"{scenario}: {chosen.question}", curves)
        except OSError as error:
            fail(f"{plot} cannot be written: {error.strerror or error}")


assert command.help is not None
command.help = command.help.format_map({name: scenario.question for name, scenario in SCENARIOS.items()})


def aim(url: str, anywhere: bool) -> tuple[str, int]:
    """Where the server listens; an address that is not of this machine only if that is meant."""
    parsed = urlsplit(url)
    try:
        port = parsed.port or 80
    except ValueError:
        port = 0
    if parsed.scheme != "http" or not parsed.hostname or not port:
        raise click.BadParameter(f"a load is put on an http:// address such as http://127.0.0.1:4567, not {url!r}", param_hint="--url")
    try:
        address = socket.getaddrinfo(parsed.hostname, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        fail(f"{parsed.hostname} cannot be found: {error.strerror or error}")
    if not ipaddress.ip_address(address).is_loopback and not anywhere:
        fail(f"{parsed.hostname} ({address}) is not this machine, and whoever is there may not want this load: say --anywhere if they do")
    return str(address), port


async def measure(scenario: Scenario, target: Target, pid: int | None, processes: int, quiet: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures of one run, and the curves of its latencies."""
    gauging = gauge(pid, target)
    async with Crew(target, processes, Progress(quiet)) as crew:
        # The publisher's connections are made as a fleet makes them.
        publisher = Lines()
        await publisher.open(Fleet(target, processes).connect, PUBLISHER_LINES)
        load = Load(target, crew, gauging, publisher, secrets.token_hex(4), scenario.defaults)
        try:
            figures = await scenario.run(load)
        finally:
            publisher.close()
            if sys.stderr.isatty() and not quiet:
                click.echo("\r\x1b[K", nl=False, err=True)
        latency = {name: histogram.milliseconds() for name, histogram in load.curves.items() if len(histogram)}
        return figures | {"latency": latency}, {name: histogram.curve() for name, histogram in load.curves.items() if len(histogram)}


class Progress:
    """One line on a terminal that is written over; elsewhere a line every few seconds."""

    EVERY = 2.0

    def __init__(self, quiet: bool):
        self._quiet = quiet
        self._began = self._said = time.monotonic()

    def __call__(self, told: dict[str, int]) -> None:
        now = time.monotonic()
        is_terminal = sys.stderr.isatty()
        if self._quiet or (not is_terminal and now - self._said < self.EVERY):
            return
        self._said = now
        line = f"{now - self._began:6.1f} s  {told['feeds']:,} feeds open, {told['delivered']:,} deliveries, {told['answered']:,} answers"
        click.echo(f"\r\x1b[K{line}" if is_terminal else line, nl=not is_terminal, err=True)


def show(scenario: str, question: str, figures: dict[str, Any]) -> None:
    console = Paper()
    console.print(f"{scenario}: {question}", style="bold")
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for name, (label, unit, digits) in SHOWN.items():
        if name not in figures:
            continue
        value = figures[name]
        table.add_row(label, "unknown" if value is None else f"{value * (100 if unit == '%' else 1):,.{digits}f}", unit)
    console.print(table)
    for what, quantiles in figures["latency"].items():
        console.print(f"latency in ms, {what}:  " + "  ".join(f"{name} {value:,.2f}" for name, value in quantiles.items()))
    if figures.get("server_busy", 0) is None:
        console.print("What the server spends is unknown: name its process by --pid. What the load spends is not the server's.", style="dim")


def processor() -> str:
    """What this machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
