"""`pere store backup` and `restore`: a store from one place to another."""

from collections.abc import Callable

import click
from rich.progress import Progress

from pere.cli.store import progress, spoken
from pere.storage import backup as copying

force_option = click.option("--force", is_flag=True, help="also where something is there already")


@click.command
@click.argument("path", metavar="FROM")
@click.argument("target", metavar="TO")
@force_option
def backup(path: str, target: str, force: bool) -> None:
    """Copy the file FROM of a store to the file TO, while a server uses it or not: as it is at one moment. TO appears when it is whole,
    on the disk, and was found to be sound and to have as many rows as FROM. Meanwhile the write-ahead log of the server can only grow.

    \b
    Exit codes: 0, 2 if it cannot be done, 130 for Ctrl-C; then there is no TO, or the one that was there.
    Examples:
      pere store backup pere.db pere-$(date +%F).db
      pere store backup pere.db copy.db --force && pere store stats copy.db
    """
    with spoken(path), progress() as bar:
        counts = copying.backup(path, target, force, watching(bar, "copying"))
    click.echo(f"{target}: {told(counts)}")


@click.command
@click.argument("copy", metavar="BACKUP")
@click.argument("path", metavar="TO")
@force_option
def restore(copy: str, path: str, force: bool) -> None:
    """Put the copy BACKUP where a server will look for its file, TO. No server may be using that. What is there already is kept beside it,
    and only moved away with --force.

    What was said after the backup was made is not in it: devices that answered since are sent those events again.

    \b
    Exit codes: 0, 2 if it cannot be done, 130 for Ctrl-C; then TO is as it was.
    Examples:
      pere store restore pere-2026-11-26.db pere.db
      pere store restore copy.db pere.db --force && pere serve
    """
    with spoken(copy), progress() as bar:
        counts, before = copying.restore(copy, path, force, watching(bar, "copying"))
    click.echo(f"{path}: {told(counts)}" + (f"; what was there is {before}" if before is not None else ""))


def watching(bar: Progress, name: str) -> Callable[[int, int], None]:
    """A bar that is told how many of how many are done."""
    task = bar.add_task(name, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


def told(counts: dict[str, int]) -> str:
    return f"{counts['events']:,} events, {counts['members']:,} registrations, {counts['documents']:,} documents"
