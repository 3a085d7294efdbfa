"""`pere store`: look into the file of a store, check it, take it out line by line, make it smaller. No server is asked."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click
import orjson
from rich.progress import Progress
from rich.table import Table

from pere.cli.bar import progress
from pere.cli.paper import Paper
from pere.cli.trouble import spoken
from pere.config import SHARED, without_password
from pere.errors import BadRequest, ConfigError, installing
from pere.event import parse_id
from pere.names import channel_name, is_pattern, pattern
from pere.space import space
from pere.storage.archive import Archive
from pere.storage.compacting import compact as compacted

if TYPE_CHECKING:
    from pere.storage.onlooker import Onlooker

MOST_FAULTS = 100  # that are printed of one kind; the rest is counted
MOVING = ("backup", "restore", "copy")
STEP = 1_000  # rows between two looks at the bar

Row = TypeVar("Row")

path_argument = click.argument("path", metavar="PATH")


class Verbs(click.Group):
    """Those that move a store from one place to another are in a file of their own, which is read when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *MOVING]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        moved: click.Command | None = getattr(import_module("pere.cli.moving"), name) if name in MOVING else super().get_command(ctx, name)
        return moved


@click.group(cls=Verbs)
def command() -> None:
    """Look after the file of a store, such as pere.db of `pere serve --store sqlite:pere.db`; or after a store in Redis, by its URL.

    \b
    Examples:
      pere store stats pere.db                        what is in it
      pere store check pere.db                        is it sound?
      pere store export pere.db > events.ndjson       take everything out
      pere store compact pere.db                      give space back, while no server runs
      pere store backup pere.db copy.db               a copy, while the server goes on
      pere store restore copy.db pere.db              bring it back
      pere store copy pere.db redis://127.0.0.1:6379/0   from one kind of store to another
    """


@command.command
@path_argument
@click.option("--json", "as_json", is_flag=True, help="print one JSON value, for programs")
def stats(path: str, as_json: bool) -> None:
    """Show what is in the file PATH: how many events, devices and receipts, and what takes how much space. A server may be using it.
    Of Redis, whose URL stands for the PATH, it shows which nodes there are too, and how far behind.

    \b
    Examples:
      pere store stats pere.db
      pere store stats pere.db --json | jq .outstanding
      pere store stats redis://127.0.0.1:6379/0
    """
    with spoken(path), opened(path) as archive, progress() as bar:
        bar.add_task("counting", total=None)
        found = archive.stats()
    if as_json:
        click.echo(orjson.dumps(found))
    else:
        Paper().print(table_of(found))


@command.command
@path_argument
def check(path: str) -> None:
    """Check that the file PATH is sound: its pages, and that what PERE keeps in it (or in Redis, by its URL) agrees with itself. Nothing is changed, and a
    server may be using it. The exit code is 1 if anything is wrong.

    \b
    Examples:
      pere store check pere.db
      pere store check pere.db && pere store stats pere.db
    """
    faults: list[str] = []
    count = 0
    with spoken(path), opened(path) as archive, progress() as bar:
        for name, total, rows in archive.checks():
            found = 0
            for fault in followed(bar, name, total, rows):
                if fault is not None:
                    found += 1
                    if found <= MOST_FAULTS:
                        faults.append(fault)
            if found > MOST_FAULTS:
                faults.append(f"{name}: and {found - MOST_FAULTS:,} more")
            count += found
    for fault in faults:
        click.echo(fault)
    if count:
        click.echo(f"{without_password(path)} is not sound: {count:,} fault{'s' if count > 1 else ''} found")
        sys.exit(1)
    click.echo(f"{without_password(path)} is sound")


@command.command
@path_argument
def compact(path: str) -> None:
    """Give the space back that is free in the file PATH. No server may be using it, and for a while the disk must hold up to two
    copies more.

    \b
    Examples:
      pere store compact pere.db
    """
    if path.startswith(SHARED):
        raise click.UsageError("Redis gives space back by itself")
    with spoken(path), progress() as bar:
        bar.add_task("compacting", total=None)
        before, after = compacted(path)
    click.echo(f"{path}: {space(before)} before, {space(after)} now")


@command.command
@path_argument
@click.option("--output", metavar="FILE", help="write to this file, which appears when it is complete  [default: standard output]")
@click.option("--channel", "channels", multiple=True, metavar="CHANNEL", help="only this channel or pattern; may be given again for more")
@click.option("--events", "only_events", is_flag=True, help="only events")
@click.option("--receipts", "only_receipts", is_flag=True, help="only receipts")
@click.option("--after", metavar="ID", help="only events after this one, and their receipts")
def export(path: str, output: str | None, channels: tuple[str, ...], only_events: bool, only_receipts: bool, after: str | None) -> None:
    """Print what is in the file PATH as one JSON value per line: the events, oldest first, and then the receipts in the order in
    which they came. With --channel it goes channel by channel. A server may be using the file.

    \b
    Examples:
      pere store export pere.db --output all.ndjson
      pere store export pere.db --events --channel 'orders.*' | jq .data
      pere store export pere.db --receipts --after 1417444110993-0
    """
    try:
        last = parse_id(after) if after is not None else 0
        for channel in channels:
            (pattern if is_pattern(channel) else channel_name)(channel)
    except BadRequest as refusal:
        raise click.UsageError(refusal.message) from None
    if output is not None and os.path.exists(output) and os.path.exists(path) and os.path.samefile(output, path):
        raise click.UsageError("--output is the file that is to be read")
    both = only_events == only_receipts
    # Between the lines on a terminal a bar would only be in the way.
    is_shown = output is not None or not sys.stdout.isatty()
    with spoken(path), opened(path) as archive, progress(is_shown) as bar, written(output) as file:
        events, receipts = archive.count(channels, last) if not bar.disable else (None, None)
        lines: list[Iterable[bytes]] = []
        if both or only_events:
            lines.append(followed(bar, "events", events, (line("event", event.as_dict()) for event in archive.events(channels, last))))
        if both or only_receipts:
            lines.append(followed(bar, "receipts", receipts, (line("receipt", receipt) for receipt in archive.receipts(channels, last))))
        for each in chain(*lines):
            file.write(each)


def opened(path: str) -> "Archive | Onlooker":
    """A file, or Redis by its URL."""
    if not path.startswith(SHARED):
        return Archive(path)
    try:
        from pere.storage.onlooker import Onlooker
    except ImportError as error:
        raise ConfigError(f"{without_password(path)}: needs what `{installing('redis')}` installs ({error})") from None
    return Onlooker(path)


def line(kind: str, what: dict[str, Any]) -> bytes:
    # A payload stays as it was pushed, and line ends between its parts are mere space; in a JSON string there are none.
    return orjson.dumps({"kind": kind} | what).replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"


@contextmanager
def written(output: str | None) -> Iterator[BinaryIO]:
    """Standard output, or a file that has its name only once it is whole and on the disk."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = f"{output}.{os.getpid()}.part"
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, output)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}") from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part)


def followed(bar: Progress, name: str, total: int | None, rows: Iterable[Row]) -> Iterator[Row]:
    task, count = bar.add_task(name, total=total), 0
    for count, row in enumerate(rows, 1):
        yield row
        if not count % STEP:
            bar.update(task, completed=count)
    bar.update(task, completed=count, total=count)


def table_of(found: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name in ("events", "channels", "devices", "registrations", "receipts", "outstanding"):
        table.add_row(name, f"{found[name]:,}")
    for name in ("oldest", "newest"):
        event = found[name]
        table.add_row(f"{name} event", f"{event['time']}  {event['id']}" if event is not None else "none")
    if "nodes" in found:
        return with_nodes(table, found)
    table.add_row("file", space(found["file_bytes"]))
    table.add_row("  free in it", space(found["free_pages"] * found["page_bytes"]))
    for name, size in (found["tables"] or {}).items():
        table.add_row(f"  {name}", space(size))
    table.add_row("write-ahead log", space(found["log_bytes"]))
    table.add_row("version", str(found["version"]))
    return table


def with_nodes(table: Table, found: dict[str, Any]) -> Table:
    """The same of Redis: its keys, the log, and who is there."""
    table.add_row("in Redis, about", space(found["bytes"]))
    for name, key in sorted(found["keys"].items(), key=lambda item: -item[1]["bytes"]):
        table.add_row(f"  {found['prefix']}:{name}", f"{key['items']:,} items  {space(key['bytes'])}")
    table.add_row("log", f"entry {found['log']['newest']:,}, {found['log']['not_kept']:,} not yet kept beside it")
    table.add_row("nodes", f"{len(found['nodes']):,}")
    for node in found["nodes"]:
        table.add_row(f"  {node['node']}{' (keeper)' if node['is_keeper'] else ''}", f"heard {node['heard_ago']} s ago, {node['behind']:,} entries behind")
    table.add_row("version", str(found["version"]))
    return table
