"""`pere top`: what a server does, live."""

import asyncio
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click
import orjson
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pere.cli.gauges import Away, Node, together
from pere.cli.paper import Paper
from pere.cli.status import duration
from pere.cli.visit import KEPT, client, json_option, printable, url_option

WIDTH = 80


@click.command
@click.option("--every", type=click.FloatRange(min=0.1), default=2.0, show_default=True, metavar="SECONDS", help="look again after so long")
@click.option("--once", is_flag=True, help="look for that long, print what was seen, and end")
@click.option("--node", "nodes", multiple=True, metavar="URL", help="another node of the same deployment; may be given again for more")
@url_option
@json_option
def command(every: float, once: bool, nodes: tuple[str, ...], url: str, as_json: bool) -> None:
    """Show what a server does: pushes, deliveries and receipts a second, feeds and devices, who is behind, what is owed, how long receipts
    take, commits and the loop. `q` or Ctrl-C ends it. It asks /metrics and /admin, which want a token that may administer. A server that is away is
    said to be, and looked for again. What is no terminal is shown one look, as with --once; with --json a line for each look.

    \b
    Exit codes: 0; with --once 1 if a server cannot be looked at.
    Examples:
      pere top
      pere top --url http://127.0.0.1:4501 --node http://127.0.0.1:4502
      pere top --once --json | jq .total.receipts
    """
    for each in (url, *nodes):
        client(each)  # which says what is wrong with an address, and is not used
    token = click.get_current_context().meta[KEPT]
    is_live = not once and not as_json and sys.stdout.isatty()
    watch = Watch([Node(each, token) for each in dict.fromkeys((url, *nodes))], every)
    try:
        is_well = asyncio.run(watch.live() if is_live else watch.lines(as_json, once or not as_json))
    except KeyboardInterrupt:
        if not is_live:
            sys.exit(130)
        return
    if not is_well:
        sys.exit(1)


class Watch:
    """Some nodes that are looked at all `every` seconds."""

    def __init__(self, nodes: list[Node], every: float):
        self._nodes = nodes
        self._every = every

    async def look(self) -> dict[str, Any]:
        """`{"time", "nodes", "total"}`; of a node that is away only why."""
        found = await asyncio.gather(*(node.figures() for node in self._nodes), return_exceptions=True)
        nodes: list[dict[str, Any]] = []
        for node, figures in zip(self._nodes, found, strict=True):
            if isinstance(figures, BaseException) and not isinstance(figures, Away):
                raise figures
            nodes.append({"url": node.url, "away": str(figures)} if isinstance(figures, BaseException) else figures)
        here = [node for node in nodes if "away" not in node]
        return {"time": time.time(), "nodes": nodes, "total": together(here) if here else None}

    async def lines(self, as_json: bool, is_once: bool) -> bool:
        """One look after the other, or one, as text or JSON; whether all could be looked at."""
        console = Paper()
        try:
            seen = await self.look()
            while True:
                if seen["total"] is not None or not is_once:
                    await asyncio.sleep(self._every)
                    seen = await self.look()
                if as_json:
                    click.echo(orjson.dumps(seen))
                else:
                    console.print(screen(seen), soft_wrap=False)
                if is_once:
                    return all("away" not in node for node in seen["nodes"])
        finally:
            await self._close()

    async def live(self) -> bool:
        """On the whole terminal, until somebody types `q`."""
        ended = asyncio.Event()
        console = Paper(soft_wrap=False)
        try:
            with typed(ended), Live(Text("looking ..."), console=console, screen=True, auto_refresh=False) as view:
                while not ended.is_set():
                    view.update(screen(await self.look(), console.width, "  q quits"), refresh=True)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(ended.wait(), self._every)
        finally:
            await self._close()
        return True

    async def _close(self) -> None:
        for node in self._nodes:
            await node.close()


@contextmanager
def typed(ended: asyncio.Event) -> Iterator[None]:
    """Hear each key at once, and let a `q` end it; the terminal is then as it was."""
    if not sys.stdin.isatty():
        yield
        return
    file, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(file)
    tty.setcbreak(file)
    loop.add_reader(file, lambda: ended.set() if sys.stdin.read(1) in ("q", "Q", "") else None)
    try:
        yield
    finally:
        loop.remove_reader(file)
        termios.tcsetattr(file, termios.TCSADRAIN, before)


def screen(seen: dict[str, Any], width: int = WIDTH, hint: str = "") -> Group:
    """All of it, in `width` columns; `hint` tells which keys there are."""
    total, nodes = seen["total"], seen["nodes"]
    head = Text("PERE", "bold")
    head.append(f" {total['version']}" if total is not None else "")
    head.append(f"  {nodes[0]['url'] if len(nodes) == 1 else f'{len(nodes)} nodes'}", "cyan")
    head.append(f"  {time.strftime('%H:%M:%S', time.localtime(seen['time']))}{hint}", "dim")
    head.truncate(width)
    parts: list[Any] = [head]
    parts += [Text(printable(f"{node['url']} is away: {node['away']}"), "bold red") for node in nodes if "away" in node]
    if total is not None:
        parts += [Text(), figures(total), webhooks(total), Text(), beside(total, width)]
        if len(nodes) > 1:
            parts += [Text(), by_node([node for node in nodes if "away" not in node])]
    return Group(*parts)


def figures(total: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), show_header=False)
    for _ in range(3):
        table.add_column(style="dim", no_wrap=True)
        table.add_column(justify="right", min_width=11, no_wrap=True)
    owed, behind = total["outstanding"], total["behind"]
    rows: list[tuple[str, str | Text]] = [
        ("pushes/s", rate(total["pushes"])), ("deliveries/s", rate(total["deliveries"])), ("receipts/s", rate(total["receipts"])),
        ("feeds", f"{total['feeds']:,.0f}"), ("online", f"{total['online']:,.0f}"), ("registered", f"{total['registered']:,.0f}"),
        ("owed", Text(f"{owed:,.0f}", "yellow" if owed else "")), ("oldest", duration(total["oldest"]) if total["oldest"] else "none"), ("behind", Text(f"{behind:,.0f}", "yellow" if behind else "")),
        ("round trip", times(total["round_trip"])), ("fan-out", times(total["fanout"])), ("commit", times(total["commit"])),
        ("loop lag", times(total["lag"])), ("busy", "" if total["busy"] is None else f"{100 * total['busy']:.0f} %"), ("memory", f"{total['memory'] / 1e6:,.0f} MB"),
        ("again/s", rate(total["redelivered"])), ("expired/s", rate(total["expired"])), ("refused/s", rate(total["refused"])),
    ]
    for start in range(0, len(rows), 3):
        table.add_row(*(cell for row in rows[start : start + 3] for cell in row))
    return table


def webhooks(total: dict[str, Any]) -> Text:
    """Those who look at webhooks look for what does not get through."""
    hooks = [f"{total[f'webhooks_{word}']:,.0f} {word}" for word in ("queued", "failing", "dead") if total[f"webhooks_{word}"]]
    return Text.assemble((f"channels {total['channels']:,.0f}, webhooks ", "dim"), (", ".join(hooks) or "quiet", "yellow" if total["webhooks_failing"] or total["webhooks_dead"] else ""))


def beside(total: dict[str, Any], width: int) -> Table:
    """Channels with most feeds, and the feeds that are furthest behind."""
    half = max(20, width // 2 - 2)
    table = Table.grid(padding=(0, 2, 0, 0))
    channels = Table("channel", box=None, padding=(0, 1, 0, 0), width=half)
    channels.add_column("feeds", justify="right", no_wrap=True)
    for name, count in total["most_feeds"].items():
        channels.add_row(short(name, half - 12), f"{count:,}")
    behind = Table("feed behind", box=None, padding=(0, 1, 0, 0), width=half)
    behind.add_column("events", justify="right", no_wrap=True)
    behind.add_column("stuck", justify="right", no_wrap=True)
    for each in total["furthest_behind"]:
        behind.add_row(short(each["device"] or f"(anonymous) {each['channel']}", half - 18), f"{each['events']:,}", duration(each["stuck"]) if each["stuck"] else "")
    table.add_row(channels, behind)
    return table


def by_node(nodes: list[dict[str, Any]]) -> Table:
    table = Table("node", box=None, padding=(0, 1, 0, 0))
    for name in ("feeds", "pushes/s", "deliv./s", "receipts/s", "behind", "lag p99", "busy"):
        table.add_column(name, justify="right", no_wrap=True)
    for node in nodes:
        table.add_row(short(node["url"].partition("://")[2] or node["url"], 24), f"{node['feeds']:,.0f}", rate(node["pushes"]), rate(node["deliveries"]), rate(node["receipts"]),
                      f"{node['behind']:,.0f}", "" if node["lag"]["p99"] is None else duration(node["lag"]["p99"]), "" if node["busy"] is None else f"{100 * node['busy']:.0f} %")
    return table


def rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.1f}"


def times(found: dict[str, float | None]) -> str:
    """`5 / 25 ms`: the half is below the first, 99 of 100 below the second."""
    if found["p50"] is None or found["p99"] is None:
        return "none"
    (half, unit), (most, other) = ((f"{float(f'{seconds:.2g}'):g}", unit) for seconds, unit in map(in_units, (found["p50"], found["p99"])))
    return f"{half} / {most} {other}" if unit == other else f"{half} {unit} / {most} {other}"


def in_units(seconds: float) -> tuple[float, str]:
    value, unit = duration(seconds).split()
    return float(value), unit


def short(text: str, width: int) -> Text:
    shown = Text(printable(text))
    shown.truncate(width, overflow="ellipsis")
    return shown
