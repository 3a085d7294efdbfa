"""What all verbs that visit a server share: where it is, how to leave it, and how to show what it says."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

import click
import orjson

from pere.client import Client
from pere.errors import Refusal

url_option = click.option("--url", default="http://127.0.0.1:4567", envvar="PERE_URL", show_envvar=True, show_default=True,
                          help="the server's address")
json_option = click.option("--json", "as_json", is_flag=True, help="print one JSON value per line, for programs")


def client(url: str, device: str | None = None) -> Client:
    try:
        return Client(url, device=device)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--url") from None


def run(visit: Coroutine[Any, Any, None]) -> None:
    """See a visit through; exits with 1 and the server's own words if it refuses or cannot be reached. Ctrl-C is a good end."""
    try:
        asyncio.run(visit)
    except KeyboardInterrupt:
        pass
    except Refusal as refusal:
        fail(f"{refusal.code}: {refusal.message}")
    except ConnectionError as error:
        fail(str(error))


def fail(sentence: str) -> None:
    click.echo(f"pere: {printable(sentence)}", err=True)
    sys.exit(1)


def printable(value: object) -> str:
    """A stranger's text or JSON as one line, with nothing in it that a terminal would obey."""
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
