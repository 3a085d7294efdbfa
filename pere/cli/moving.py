"""`pere store backup`, `restore` and `copy`: a store from one place to another."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click
import orjson
from rich.progress import Progress

from pere.cli.bar import progress
from pere.cli.serve import option, typed
from pere.cli.trouble import spoken
from pere.config import SHARED, Config, types, without_password
from pere.errors import ConfigError, installing
from pere.layers import gather
from pere.storage import backup as copying

if TYPE_CHECKING:  # they need what the extra `redis` installs, and who makes a backup may not have it
    from pere.storage.contents import Contents, Watched
    from pere.storage.shared import Shared

ROOM = ("backlog_events", "backlog_bytes", "backlog_total_bytes", "receipts_kept")
DOCUMENTS = "records of webhooks and revoked tokens"
KINDS = {"members": "registrations", "keys": "Idempotency-Keys", "wishes": "patterns", "documents": DOCUMENTS}

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


def with_limits(command: click.Command) -> click.Command:
    """Those settings that say how much a store in memory has room for."""
    command.params += [option(each, types()[each.name]) for each in fields(Config) if each.name in ROOM]
    return command


@with_limits
@click.command
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--force", is_flag=True, help="also where something is in TO already; a file is kept beside it, what is in Redis is replaced")
@click.option("--json", "as_json", is_flag=True, help="print one JSON value, for programs")
@click.pass_context
def copy(ctx: click.Context, /, source: str, target: str, force: bool, as_json: bool, **given: int) -> None:
    """Copy all that is in the store FROM to the store TO: a file (PATH, or sqlite:PATH) and Redis (redis://...), in either direction, or from
    one Redis to another. No server may be using them. Events, receipts, devices, webhooks, revoked tokens and Idempotency-Keys go along,
    with the positions of devices and of those who follow receipts: start the servers with the new store, and everybody goes on where they were.

    It is all of it or nothing: TO has it only once it was written, read back and found to be the same. FROM keeps what it has.

    Redis keeps what its nodes can hold in memory. What is beyond these limits stays in the file, and how much that is is told.

    \b
    Exit codes: 0, 2 if it cannot be done, 130 for Ctrl-C; then TO is as it was.
    Examples:
      pere store copy pere.db redis://127.0.0.1:6379/0
      pere store copy redis://127.0.0.1:6379/0 pere.db
      pere store copy pere.db 'redis://127.0.0.1:6379/0?prefix=shop' --backlog-events 10000
    """
    with spoken(without_password(source)), progress() as bar:
        config = gather(typed(ctx, given)).config
        contents, before = asyncio.run(copied(source, target, config, force, stages(bar)))
    counts = {kind: count for kind, (count, _) in contents.digests().items() if kind not in ("columns", "ends")}
    if as_json:
        click.echo(orjson.dumps({"copied": counts, "left_out": contents.left_out, "before": before}))
        return
    click.echo(f"{without_password(target)}: " + ", ".join(f"{count:,} {KINDS.get(kind, kind)}" for kind, count in counts.items()))
    if contents.left_out:
        click.echo(f"{contents.left_out:,} older events stay in {source}, for which there is no room (--backlog-events, --backlog-bytes, --backlog-total-bytes)")
    if before is not None:
        click.echo(f"what was there is {before}")


async def copied(source: str, target: str, config: Config, is_forced: bool, watched: "Watched") -> tuple["Contents", str | None]:
    """What was copied, and where that is which was in the file before. Raises ConfigError."""
    for name in (source, target):
        if name == "memory:":
            raise ConfigError("memory: keeps nothing that could be copied: name a file or a Redis")
    if not source.startswith(SHARED) and not target.startswith(SHARED):
        raise ConfigError("from one file to another goes `pere store backup`, while a server runs too")
    if source.startswith(SHARED) and target.startswith(SHARED) and source == target:
        raise ConfigError("FROM and TO are the same")
    try:
        from pere.storage import filed
    except ImportError as error:
        raise ConfigError(f"this needs what `{installing('redis')}` installs ({error})") from None
    if source.startswith(SHARED):
        async with shared(source, config) as there:
            contents = await there.take(watched)
    else:
        contents = await filed.take(path_of(source), config, watched)
    if target.startswith(SHARED):
        async with shared(target, config) as there:
            await there.put(contents, is_forced, watched)
        return contents, None
    return contents, filed.put(path_of(target), contents, is_forced, watched)


@asynccontextmanager
async def shared(url: str, config: Config) -> AsyncIterator["Shared"]:
    from pere.storage.shared import Shared
    from pere.storage.sharedlog import Errors

    there = Shared(url, config)
    try:
        yield there
    except Errors as error:
        raise ConfigError(f"{there.name} cannot be used: {str(error) or type(error).__name__}") from None
    finally:
        await there.close()


def path_of(name: str) -> str:
    return name.removeprefix("sqlite:")


def stages(bar: Progress) -> "Watched":
    """A bar for each thing that is done, made when it begins."""
    tasks: dict[str, Any] = {}

    def watched(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=total)
        bar.update(tasks[name], completed=done, total=total)

    return watched


def watching(bar: Progress, name: str) -> Callable[[int, int], None]:
    """A bar that is told how many of how many are done."""
    task = bar.add_task(name, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


def told(counts: dict[str, int]) -> str:
    return f"{counts['events']:,} events, {counts['members']:,} registrations, {counts['documents']:,} {DOCUMENTS}"
