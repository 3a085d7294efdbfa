"""`pere webhooks`: the endpoints of a server, and `receive`, the other end of a webhook, to try things with."""

from collections.abc import Awaitable, Callable
from typing import Any

import click
import orjson

from pere.cli.visit import client, fail, json_option, printable, run, url_option
from pere.client import Client
from pere.errors import BadRequest
from pere.signing import key


@click.group
def command() -> None:
    """Endpoints that notices are sent to, signed as Standard Webhooks has it.

    \b
    Examples:
      pere webhooks add https://example.com/hook --channel 'orders.*'      prints the secret, once
      pere webhooks list                                                   all there are
      pere webhooks test wh_0123456789abcdef                               send it something now
      pere webhooks dead wh_0123456789abcdef                               what was given up, and why
      pere webhooks replay wh_0123456789abcdef                             send all of that again
      pere webhooks receive --secret whsec_...             verify and print what comes to http://127.0.0.1:4568/
      pere webhooks receive --help                         tell the rest
    """


def visit(url: str, ask: Callable[[Client], Awaitable[Any]], show: Callable[[Any], str], as_json: bool) -> Any:
    """Ask a server something and print the answer; returns it."""

    async def ask_it() -> Any:
        async with client(url) as server:
            answer = await ask(server)
        click.echo(orjson.dumps(answer) if as_json else show(answer))
        return answer

    return run(ask_it())


def line(endpoint: dict[str, Any]) -> str:
    """One endpoint on one line."""
    types = ", ".join(type.removeprefix("pere.") for type in endpoint.get("types", ()))
    channels = ", ".join(endpoint.get("channels", ())) or "all channels"
    trouble = f"  ({endpoint['trouble']})" if endpoint.get("trouble") else ""
    counts = "".join(f", {endpoint[name]} {name}" for name in ("queued", "dropped", "dead") if endpoint.get(name))
    return printable(f"{endpoint.get('id')}  {endpoint.get('state'):<8}  {endpoint.get('url')}  {types} of {channels}{counts}{trouble}")


def with_secret(endpoint: dict[str, Any]) -> str:
    until = f"\nthe secret before it signs too until {printable(endpoint['old_secret_until'])}" if "old_secret_until" in endpoint else ""
    return f"{line(endpoint)}\nsecret {printable(endpoint.get('secret', ''))}  (it is not told again){until}"


@command.command
@click.argument("address", metavar="URL")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="what to hear of, such as pere.receipt.batch; may be given again  [default: pere.event.completed and .expired]")
@click.option("--channel", "channels", multiple=True, metavar="CHANNEL", help="only of this channel or pattern; may be given again")
@url_option
@json_option
def add(address: str, types: tuple[str, ...], channels: tuple[str, ...], url: str, as_json: bool) -> None:
    """Add the endpoint at URL, and print its secret. It is active once it has answered with 2xx.

    \b
    Examples:
      pere webhooks add https://example.com/hook
      pere webhooks add https://example.com/hook --type pere.receipt.batch --channel orders --channel 'alarms.*'
    """
    visit(url, lambda server: server.add_webhook(address, types=types, channels=channels), with_secret, as_json)


@command.command("list")
@url_option
@json_option
def list_(url: str, as_json: bool) -> None:
    """List all endpoints, and what is wrong with those that are not well."""

    async def ask() -> None:
        async with client(url) as server:
            endpoints = await server.webhooks()
        for endpoint in endpoints:
            click.echo(orjson.dumps(endpoint) if as_json else line(endpoint))
        if not endpoints and not as_json:
            click.echo("there is no endpoint; `pere webhooks add URL` adds one", err=True)

    run(ask())


@command.command
@click.argument("id")
@url_option
@json_option
def test(id: str, url: str, as_json: bool) -> None:
    """Send endpoint ID a pere.webhook.verify now; exit 1 if it does not answer with 2xx."""

    def told(answer: dict[str, Any]) -> str:
        said = f"answered {answer.get('status')}" if answer.get("answered") else f"failed: {answer.get('trouble')}"
        return printable(f"{said}, in {answer.get('seconds')} s; it is {answer.get('state')}")

    answer = visit(url, lambda server: server.test_webhook(id), told, as_json)
    if answer is not None and not answer.get("answered"):
        raise SystemExit(1)


def verb(name: str, ask: Callable[[Client, str], Awaitable[Any]], show: Callable[[Any], str], help: str) -> None:
    """A verb that asks one thing of the endpoint ID, and prints what that is then."""

    @command.command(name, help=help)
    @click.argument("id")
    @url_option
    @json_option
    def asked(id: str, url: str, as_json: bool) -> None:
        visit(url, lambda server: ask(server, id), show, as_json)


verb("pause", lambda server, id: server.change_webhook(id, state="paused"), line, "Send endpoint ID nothing until it is resumed.")
verb("resume", lambda server, id: server.change_webhook(id, state="active"), line,
     "Let endpoint ID be active again; one that was never verified, or was given up, has to answer first.")
verb("rotate", lambda server, id: server.rotate_webhook(id), with_secret, "Give endpoint ID a new secret, and print it. For a day the one before signs too.")


since_option = click.option("--since", metavar="TIME", help="only what was made since then, such as 2026-11-25T14:00:00Z")
until_option = click.option("--until", metavar="TIME", help="only what was made before then")


@command.command
@click.argument("id")
@since_option
@until_option
@url_option
@json_option
def dead(id: str, since: str | None, until: str | None, url: str, as_json: bool) -> None:
    """List what endpoint ID was not to be sent any more, oldest first; --json tells all that was in it."""

    async def ask() -> None:
        async with client(url) as server:
            async for letter in server.dead_letters(id, since, until):
                click.echo(orjson.dumps(letter) if as_json else printable(
                    f"{letter.get('id')}  {letter.get('type')}  {letter.get('count')} in it, tried {letter.get('attempts')} times  ({letter.get('trouble')})"))

    run(ask())


@command.command
@click.argument("id")
@click.argument("letters", nargs=-1)
@since_option
@until_option
@url_option
@json_option
def replay(id: str, letters: tuple[str, ...], since: str | None, until: str | None, url: str, as_json: bool) -> None:
    """Send endpoint ID again what was given up: LETTERS, as `dead` lists them, or all of a time, or all.

    \b
    Examples:
      pere webhooks replay wh_0123456789abcdef
      pere webhooks replay wh_0123456789abcdef 1764100000123-0 1764100000456-0
      pere webhooks replay wh_0123456789abcdef --since 2026-11-25T14:00:00Z --until 2026-11-25T15:00:00Z
    """

    async def ask() -> None:
        async with client(url) as server:
            count = await server.replay_webhook(id, letters, since, until)
        click.echo(orjson.dumps({"replayed": count}) if as_json else printable(f"{id}  {count} queued again"))

    run(ask())


@command.command
@click.argument("id")
@url_option
def remove(id: str, url: str) -> None:
    """Remove endpoint ID for good."""

    async def ask() -> None:
        async with client(url) as server:
            await server.remove_webhook(id)
        click.echo(printable(f"{id}  removed"))

    run(ask())


def known_secrets(ctx: click.Context, option: click.Parameter, secrets: tuple[str, ...]) -> tuple[str, ...]:
    for secret in secrets:
        try:
            key(secret)
        except BadRequest as refusal:
            raise click.BadParameter(refusal.message) from None
    return secrets


@command.command
@click.option("--port", type=click.IntRange(0, 65_535), default=4568, show_default=True, metavar="N",
              help="port to listen on, at 127.0.0.1; 0 takes a free one and says which")
@click.option("--secret", "secrets", multiple=True, required=True, metavar="whsec_...", envvar="PERE_WEBHOOK_SECRET", show_envvar=True,
              callback=known_secrets, help="what notices are signed with; may be given again, as while one secret takes the place of another")
@click.option("--answer", type=click.IntRange(200, 599), default=204, show_default=True, metavar="STATUS",
              help="what to answer to a notice that is genuine; 500 plays an endpoint that fails")
@click.option("--delay", type=click.FloatRange(0, 3600), default=0.0, metavar="SECONDS", help="how long to let the sender wait for the answer")
@json_option
def receive(port: int, secrets: tuple[str, ...], answer: int, delay: float, as_json: bool) -> None:
    """Receive webhooks on 127.0.0.1: verify each one's signature and time, print it, and answer 204; or 401 or 400, and print why. One
    that was here before is marked `again`. Notices go to standard output, the rest to standard error. Ctrl-C ends it.

    \b
    Examples:
      pere webhooks receive --secret whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw
      pere webhooks receive --port 9000 --json | jq .body         with the secret in PERE_WEBHOOK_SECRET
      pere webhooks receive --secret whsec_... --answer 500       an endpoint that always fails
      pere webhooks receive --secret whsec_... --delay 60         one that is too slow
    """
    # Only here, so that the verbs that visit a server do not wait for the imports of one.
    from pere.cli import receiver

    screen = receiver.Screen(as_json)
    try:
        run(receiver.receive(receiver.Receiver(secrets, answer, delay, screen), port, screen))
    except OSError as error:
        fail(f"cannot listen on 127.0.0.1:{port}: {error.strerror or error}")
