"""`pere status`: what became of an event, as numbers, a bar and a list of devices."""

import sys
from typing import Any

import click
import orjson
from rich.table import Table
from rich.text import Text

from pere.cli.paper import Paper
from pere.cli.visit import channel_argument, client, json_option, printable, run, url_option, verdict

# In the order of the bar: what is done first, what is open last.
COLOURS = {"processed": "green", "delivered": "cyan", "sent": "blue", "pending": "bright_black", "failed": "red",
           "expired": "yellow", "cancelled": "magenta"}
BAR = 60  # cells
WIDE = 240


@click.command
@channel_argument()
@click.argument("event_id")
@click.option("--devices", "with_devices", is_flag=True, help="list the devices too, one by one")
@click.option("--state", metavar="STATE", help="list only devices in this state: outstanding, pending, sent, delivered ...")
@url_option
@json_option
def command(channel: str, event_id: str, with_devices: bool, state: str | None, url: str, as_json: bool) -> None:
    """Show how many devices have EVENT_ID, and how long they took; with --devices or --state, which ones.

    \b
    Examples:
      pere status orders 1417444110993-0
      pere status orders 1417444110993-0 --state outstanding
      pere status orders 1417444110993-0 --json | jq .counts.processed
      pere status orders 1417444110993-0 --devices --json       the status, then a line per device
    """

    async def ask() -> None:
        # Where nobody looks at a terminal, nothing is cut off to fit one.
        console = Paper(width=None if sys.stdout.isatty() else WIDE)
        async with client(url) as server:
            answer = await server.status(channel, event_id)
            if as_json:
                click.echo(orjson.dumps(answer))
            else:
                show(console, answer)
            if not with_devices and state is None:
                return
            devices = server.devices(channel, event_id, state)
            if as_json:
                async for device in devices:
                    click.echo(orjson.dumps(device))
            else:
                console.print(device_table([device async for device in devices]))

    run(ask())


def show(console: Paper, answer: dict[str, Any]) -> None:
    audience, counts = answer.get("audience") or 0, answer.get("counts") or {}
    console.print(Text(printable(f"{answer.get('id')} on {answer.get('channel')}, {answer.get('time')}"), "bold"))
    console.print(Text(printable(f"{verdict(answer)}; asks for: {answer.get('receipt')}, expires {answer.get('expires')}")))
    if audience:
        console.print(bar(counts, audience, "#" if console.options.ascii_only else "█"))
    table = Table("state", box=None, padding=(0, 2, 0, 0))
    table.add_column("devices", justify="right")
    table.add_column("", justify="right")
    for state, colour in COLOURS.items():
        count = counts.get(state, 0)
        share = f"{100 * count / audience:.1f} %" if audience else ""
        table.add_row(Text(state, colour if count else "dim"), str(count), share, style="" if count else "dim")
    table.add_row("in all", str(audience), style="bold")
    console.print(table)
    latency = answer.get("latency") or {}
    if latency:
        console.print("receipts took  " + "  ".join(f"{name} {duration(seconds)}" for name, seconds in latency.items()))


def bar(counts: dict[str, int], audience: int, cell: str) -> Text:
    """Each state's share of the audience in cells. The ends are rounded, not the lengths, so the whole is always BAR long."""
    line, seen, drawn = Text(), 0, 0
    for state, colour in COLOURS.items():
        seen += counts.get(state, 0)
        end = round(BAR * seen / audience)
        line.append(cell * (end - drawn), colour)
        drawn = max(drawn, end)
    return line


def device_table(devices: list[dict[str, Any]]) -> Table:
    table = Table("device", "state", "attempt", "latency", "receipt at", "online", "status", box=None, padding=(0, 2, 0, 0))
    for device in devices:
        state, status = device.get("state", "?"), device.get("status")
        latency, attempt = device.get("latency"), device.get("attempt")
        table.add_row(
            Text(printable(device.get("device", "?"))),
            Text(printable(state) + (" (late)" if device.get("late") else ""), COLOURS.get(state, "")),
            "" if attempt is None else str(attempt),
            "" if latency is None else duration(latency),
            Text(printable(device.get("receipt_at") or "")),
            "yes" if device.get("online") else "no",
            Text("" if status is None else printable(status)),
        )
    return table


def duration(seconds: float) -> str:
    """`850 ms`, `12 s`, `3.5 h`: two digits are all that a latency is good for."""
    seconds = float(f"{seconds:.3g}")  # first: 999.6 ms is a second
    for limit, divisor, unit in ((1, 0.001, "ms"), (120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds / 86_400:.3g} d"
