"""`pere doctor`: what is wrong, and how to mend it."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click
import orjson
from rich.text import Text

from pere.cli.paper import Paper
from pere.cli.serve import typed, with_settings
from pere.cli.visit import json_option, printable
from pere.errors import BadRequest, ConfigError
from pere.layers import gather
from pere.names import channel_name

COLOURS = {"ok": "green", "advice": "yellow", "wrong": "bold red"}


@with_settings
@click.command
@click.option("--url", metavar="URL", help="look at the way to the server at this address instead, unix:PATH for a Unix socket")
@click.option("--token", envvar="PERE_TOKEN", show_envvar=True, metavar="TOKEN", help="with --url what the server lets us in by; without, one that is to be tried")
@click.option("--channel", default="pere.doctor", show_default=True, metavar="CHANNEL", help="with --url the channel that is listened to")
@click.option("--watch", type=click.FloatRange(min=0), default=30.0, show_default=True, metavar="SECONDS", help="with --url how long to wait for a heartbeat")
@json_option
@click.pass_context
def command(ctx: click.Context, /, url: str | None, token: str | None, channel: str, watch: float, as_json: bool, **given: Any) -> None:
    """Look for what is wrong, and say how to mend it. It changes nothing.

    Without --url it looks at this machine with the settings of `pere serve`, whose flags and variables it takes: open files, the kernel,
    addresses, the clock, the store, tokens, certificates, settings that contradict each other. With --url it visits a server through
    whatever is in between: does it hold feeds back, compress them, cut them off, strip headers, or answer in the server's place?

    The exit code is 1 if anything is wrong, 2 for a wrong command line or setting.

    \b
    Examples:
      pere doctor
      pere doctor --store redis://127.0.0.1:6379/0 --host 0.0.0.0
      pere doctor --url https://pere.example --token "$PERE_TOKEN"
      pere doctor --json | jq 'select(.state != "ok")'
    """
    console = Paper()
    try:
        findings = on_the_way(url, token, channel, watch) if url is not None else on_this_machine(typed(ctx, given), token)
        states = [shown(finding, console, as_json) for finding in findings]
    except ConfigError as error:
        click.echo(printable(f"pere: {error}"), err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    if not as_json:
        click.echo(f"{states.count('wrong')} wrong, {states.count('advice')} to be considered, {states.count('ok')} well")
    if "wrong" in states:
        sys.exit(1)


def on_this_machine(said: dict[str, Any], token: str | None) -> Iterator[Any]:
    """With the settings with which a server would start. Raises ConfigError for those with which none would."""
    from pere.doctor import keys, machine, stores

    config = gather(said).config
    looks: list[Callable[[], Iterator[Any]]] = [
        machine.interpreter, lambda: machine.files(config), lambda: machine.kernel(config), lambda: machine.addresses(config), machine.clock, lambda: stores.store(config),
        lambda: keys.tokens(config, token.strip() if token else None), lambda: keys.certificate(config), lambda: keys.misspelt(os.environ),
        lambda: keys.contradictions(config)]
    for look in looks:
        yield from look()


def on_the_way(url: str, token: str | None, channel: str, watch: float) -> Iterator[Any]:
    """To a server. Raises click's UsageError where the address is none."""
    from pere.client import Client
    from pere.doctor.way import Way

    try:
        Client(url, token=token.strip() if token else None)
        channel_name(channel)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except BadRequest as refusal:
        raise click.UsageError(refusal.message) from None
    # One loop to the end, with each finding handed out as it is made: a feed that is silent takes half a minute.
    with asyncio.Runner() as runner:
        findings = Way(url, token.strip() if token else None, channel, watch).findings()
        while (finding := runner.run(_next(findings))) is not None:
            yield finding


async def _next(findings: Any) -> Any:
    return await anext(findings, None)


def shown(finding: Any, console: Paper, as_json: bool) -> str:
    """Print one, and return its state."""
    if as_json:
        click.echo(orjson.dumps(finding._asdict()))
    else:
        console.print(Text.assemble((f"{finding.state:7}", COLOURS[finding.state]), (f"{finding.about}: ", "bold"), printable(finding.what)))
        if finding.remedy:
            console.print(Text(f"       -> {printable(finding.remedy)}", "cyan"))
    return str(finding.state)
