"""What all verbs that visit a server share: where it is, how to leave it, and how to show what it says."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

import click
import orjson

from pere.client import Client
from pere.errors import Refusal

Visited = TypeVar("Visited")

KEPT = "pere.token"


def url_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the server is, and by which token it knows us; `client` finds that by itself."""
    command = click.option("--token", envvar="PERE_TOKEN", show_envvar=True, metavar="TOKEN", expose_value=False, callback=_keep_token,
                           help="what the server lets us in by; rather a variable than a flag, which every user of the machine can read")(command)
    return click.option("--url", default="http://127.0.0.1:4567", envvar="PERE_URL", show_envvar=True, show_default=True,
                        help="the server's address; unix:PATH for a Unix socket")(command)


def _keep_token(ctx: click.Context, param: click.Parameter, token: str | None) -> None:
    ctx.meta[KEPT] = token.strip() if token else None


json_option = click.option("--json", "as_json", is_flag=True, help="print one JSON value per line, for programs")


def client(url: str, device: str | None = None) -> Client:
    try:
        return Client(url, device=device, token=click.get_current_context().meta[KEPT])
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def run(visit: Coroutine[Any, Any, Visited]) -> Visited | None:
    """See a visit through, and return what it does; exits with 1 and the server's own words if it refuses or cannot be reached. Ctrl-C is a good end."""
    try:
        return asyncio.run(visit)
    except KeyboardInterrupt:
        return None
    except Refusal as refusal:
        fail(f"{refusal.code}: {refusal.message}")
    except ConnectionError as error:
        fail(str(error))


def fail(sentence: str) -> NoReturn:
    click.echo(f"pere: {printable(sentence)}", err=True)
    sys.exit(1)


def printable(value: object) -> str:
    """A stranger's text or JSON as one line, with nothing in it that a terminal would obey."""
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def verdict(answer: dict[str, Any]) -> str:
    """`4 outstanding, satisfied (3 needed), 1 late`, as far as the answer tells."""
    parts = ["complete" if answer.get("complete") else f"{answer.get('outstanding', '?')} outstanding"]
    if answer.get("need") is not None:
        parts.append(f"{'satisfied' if answer.get('satisfied') else 'not yet satisfied'} ({answer['need']} needed)")
    if answer.get("late"):
        parts.append(f"{answer['late']} late")
    return ", ".join(parts)
