"""The command line: one file per verb, read only when the verb is used.

`pere serve` has no use for an HTTP client and `pere push` none for a server, so neither waits for the other's imports.
"""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from pere import __version__

UNREAD = 141  # the exit code where a pipe was closed, as a shell has it

VERBS = {
    "serve": "Run the server.",
    "config": "Show the settings, and where each comes from.",
    "doctor": "Look for what is wrong, and say how to mend it.",
    "push": "Publish events to a channel.",
    "listen": "Follow channels as a device does, and send receipts.",
    "status": "Ask what became of an event: who has it, who does not.",
    "top": "Show live what a server does.",
    "recall": "Take an event back.",
    "token": "Mint tokens, and explain them.",  # nosec B105: a verb
    "bench": "Put a load on a server, and measure it.",
    "webhooks": "Endpoints that notices go to; and a receiver that verifies and prints them.",
    "completion": "Print what makes a shell complete verbs, options and channels.",
    "store": "Look after what a store holds: stats, check, export, compact, backup, restore, copy.",
}


@contextmanager
def loading() -> Iterator[None]:
    """While modules are imported. All that they make stays, and to look for what may go takes a twelfth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def leave_unread() -> NoReturn:
    """Exit, since whoever read this has gone. What is still to be written would fail again at the end, and be complained of."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(UNREAD)


class Verbs(click.Group):
    """A group whose commands are called `command`, in the module of their name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        with loading():
            found: click.Command = import_module(f"pere.cli.{name}").command
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS:
            from difflib import get_close_matches  # only who has slipped waits for it

            near = get_close_matches(args[0], VERBS, 1)
            ctx.fail(f"there is no verb {args[0]!r}" + (f"; is {near[0]} meant?" if near else "; `pere --help` lists them"))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            leave_unread()

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # Nor need they all be imported to be named.
        verbs = [CompletionItem(name, help=told) for name, told in VERBS.items() if name.startswith(incomplete)]
        return verbs or super().shell_complete(ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click would import every command for a line of its help.
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pere")
def main() -> None:
    """Push events to devices over Server-Sent Events, and know which device has them.

    \b
    pere serve                                      start a server on http://127.0.0.1:4567
    pere listen orders --device till-1              listen as a device, in a second terminal
    pere push orders '{"order": 1}'                 publish an event, in a third
    pere status orders 1417444110993-0              ask who has it
    """
