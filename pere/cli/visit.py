"""What all verbs that visit a server share: where it is, how to leave it, and how to show what it says."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

import click
import orjson

from pere.cli import leave_unread
from pere.client import Client
from pere.client.http import speaks_tls
from pere.errors import Refusal

Visited = TypeVar("Visited")

KEPT = "pere.token"
DEFAULT_URL = "http://127.0.0.1:4567"
AT_ONCE = 0.5  # seconds that a shell waits for names to complete
INTERRUPTED = 130  # the exit code after Ctrl-C


def url_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the server is, and by which token it knows us; `client` finds that by itself."""
    command = click.option("--token", envvar="PERE_TOKEN", show_envvar=True, metavar="TOKEN", expose_value=False, callback=_keep_token,
                           help="what the server lets us in by; rather a variable than a flag, which every user of the machine can read")(command)
    return click.option("--url", default=DEFAULT_URL, envvar="PERE_URL", show_envvar=True, show_default=True,
                        help="the server's address; unix:PATH for a Unix socket")(command)


def _keep_token(ctx: click.Context, param: click.Parameter, token: str | None) -> None:
    ctx.meta[KEPT] = token.strip() if token else None


json_option = click.option("--json", "as_json", is_flag=True, help="print one JSON value per line, for programs")


def channel_argument(name: str = "channel", **wanted: Any) -> Callable[..., Any]:
    """A channel, which a shell that completes asks the server for."""
    return click.argument(name, shell_complete=_channels, **wanted)


def _channels(ctx: click.Context, param: click.Parameter, begun: str) -> list[str]:
    """The channels that somebody listens to now; none if the server does not say so at once."""
    import json  # while somebody waits at a prompt, nothing is loaded that is not needed
    from urllib.request import Request, urlopen

    url, token = ctx.params.get("url") or os.environ.get("PERE_URL") or DEFAULT_URL, os.environ.get("PERE_TOKEN")
    if not url.startswith(("http://", "https://")):
        return []
    try:
        request = Request(url.rstrip("/") + "/admin/connections", headers={"Authorization": f"Bearer {token}"} if token else {})
        with urlopen(request, timeout=AT_ONCE) as answer:  # nosec B310 # http or https, see above
            found = json.load(answer)
        return sorted(name for name in found if name != "total number" and name.startswith(begun))
    except (OSError, ValueError, TypeError):
        return []


def client(url: str, device: str | None = None) -> Client:
    try:
        return Client(url, device=device, token=click.get_current_context().meta[KEPT])
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def run(visit: Coroutine[Any, Any, Visited]) -> Visited | None:
    """See a visit through, and return what it does; exits with 1 and the server's own words if it refuses or cannot be reached; with 130
    after Ctrl-C, and 141 where nobody reads on, as a shell has it."""
    try:
        return asyncio.run(visit)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        leave_unread()
    except Refusal as refusal:
        fail(f"{refusal.code}: {refusal.message}")
    except ConnectionError as error:
        fail(f"{error}{_remedy(str(error))}")


def _remedy(said: str) -> str:
    """What to try where one end speaks TLS and the other does not, or is not known."""
    url = str(click.get_current_context().params.get("url"))
    if "WRONG_VERSION_NUMBER" in said:
        return f"; nobody speaks TLS there: try {url.replace('https://', 'http://', 1)}"
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return "; SSL_CERT_FILE names the certificates to trust instead of the system's"
    if "broke off" in said and url.startswith("http://") and asyncio.run(speaks_tls(url)):
        return f"; TLS is spoken there: try {url.replace('http://', 'https://', 1)}"
    return ""


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
