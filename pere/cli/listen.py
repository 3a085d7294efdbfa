"""`pere listen`: a device on the command line. It prints what it is sent, answers for it, and comes back when it is cut off."""

from contextlib import aclosing
from typing import Any

import click
import orjson
from rich.text import Text

from pere.cli.paper import Paper
from pere.cli.status import COLOURS
from pere.cli.visit import channel_argument, client, json_option, printable, run, url_option
from pere.client import Client
from pere.errors import Refusal
from pere.sse import Message


@click.command
@channel_argument("channels", nargs=-1, required=True, metavar="CHANNEL...")
@click.option("--device", metavar="NAME", help="who listens; without a name the feed is anonymous and gives no receipts")
@click.option("--receipt", type=click.Choice(["delivered", "processed", "failed", "none"]),
              help="what to answer for each event  [default: processed]")
@click.option("--status", metavar="TEXT", help="the device's own word, sent with each receipt")
@click.option("--from", "from_", metavar="new|all|ID", help="where to begin  [default: at the first event it owes a receipt for]")
@click.option("--ack-wait", type=click.FloatRange(min=0), metavar="SECONDS", help="be sent again what was not answered for so long")
@click.option("--window", type=click.IntRange(min=0), metavar="N", help="be sent at most N events that are not answered")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="leave after N events")
@url_option
@json_option
def command(channels: tuple[str, ...], device: str | None, receipt: str | None, status: str | None, from_: str | None,
            ack_wait: float | None, window: int | None, count: int | None, url: str, as_json: bool) -> None:
    """Listen to each CHANNEL, or pattern such as `orders.*`, as a device does: print each event and send a receipt for it.
    Events go to standard output, news of the connection to standard error; on a terminal each event has a line, with what was answered. Ctrl-C ends it.

    Exit codes: 0 after --count events, or where there is nothing to come back for; 1 if the server refuses or cannot be reached at first, 2 for a wrong
    command line, 130 for Ctrl-C.

    \b
    Examples:
      pere listen orders --device till-1
      pere listen 'orders.*' alarms --device till-1 --receipt failed --status 'no paper'
      pere listen orders --from all --json           anonymous, everything that is kept
      pere listen orders --device till-1 --count 1 --json | jq .data
    """
    if device is None and (status is not None or receipt not in (None, "none")):
        raise click.UsageError("a receipt is given in a device's name: add --device")
    state = (receipt or "processed") if device is not None else "none"

    async def listen() -> None:
        async with client(url, device) as server:
            screen = Screen(as_json, device, channels)
            left = count
            async with aclosing(server.frames(channels, format="envelope", from_=from_, ack_wait=ack_wait, window=window, on_lost=screen.lost)) as feed:
                async for message in feed:
                    if message.event.startswith("pere."):
                        screen.notice(message)
                        continue
                    event = orjson.loads(message.data)
                    screen.event(event, message.data)
                    if state != "none":
                        await answer(server, event, state, status, screen)
                    screen.done()
                    if left is not None:
                        left -= 1
                        if not left:
                            return
            screen.news("the server says that there is nothing to come back for")

    run(listen())


async def answer(server: Client, event: dict[str, Any], state: str, status: str | None, screen: "Screen") -> None:
    try:
        result = await server.feedback(event["channel"], event["id"], state, status, until_answered=True)
    except Refusal as refusal:
        # An event that asks for no receipt, or somebody was faster: no reason to stop listening.
        screen.receipt(f"refused, {refusal.code}: {refusal.message}", "yellow")
    else:
        screen.receipt(f"{result.get('state')}" + (" (again)" if result.get("duplicate") else ""), COLOURS.get(str(result.get("state")), ""))


class Screen:
    """What people see: events on standard output, all else on standard error. Where both are one terminal, what was answered stands on the line of the event."""

    def __init__(self, as_json: bool, device: str | None, channels: tuple[str, ...]):
        self._out = Paper()
        self._err = Paper(stderr=True)
        self._as_json = as_json
        self._is_one = not as_json and self._out.is_terminal and self._err.is_terminal
        self._who = f"listening to {', '.join(channels)}" + (f" as {device}" if device is not None else ", without a name: nothing is answered")
        self._is_open = False  # the line of an event has no end yet
        self._met = False

    def event(self, event: dict[str, Any], raw: str) -> None:
        if self._as_json:
            # As it came, since to read and write it again would round long numbers. Line ends in JSON are mere space.
            click.echo(raw.replace("\n", " "))
            return
        line = Text()
        line.append(printable(f"{event.get('time')}  "), "dim")
        line.append(printable(f"{event.get('channel')}  "), "cyan")
        line.append(printable(f"{event.get('id')}  "), "dim")
        if event.get("type") not in (None, "message"):
            line.append(printable(f"{event['type']}  "), "magenta")
        if event.get("attempt", 1) != 1:
            line.append(printable(f"attempt {event['attempt']}  "), "yellow")
        line.append(printable(event.get("data")))
        self._is_open = self._is_one
        self._out.print(line, end="" if self._is_open else "\n")

    def receipt(self, told: str, style: str) -> None:
        if self._is_open:
            self._out.print(Text.assemble("  ", (printable(told), style)), end="")
        else:
            self.news(f"receipt {told}", style if style == "yellow" else "dim")

    def done(self) -> None:
        """There is no more to be said of the event."""
        if self._is_open:
            self._is_open = False
            self._out.print()

    def notice(self, message: Message) -> None:
        self._met = True
        if self._is_one and message.event == "pere.hello":
            self.news(f"{self._who}; Ctrl-C ends it")
            return
        self.news(f"{message.event} {message.data}", "yellow" if message.event == "pere.gap" else "dim")

    def lost(self, error: Exception, wait: float) -> None:
        """A feed that was never there is most likely an address mistyped: say so, and wait for nothing."""
        if not self._met:
            raise error
        self.news(f"{error}; trying again in {wait:.1f} s", "red")

    def news(self, text: str, style: str = "dim") -> None:
        self.done()
        self._err.print(Text(printable(text), style))
