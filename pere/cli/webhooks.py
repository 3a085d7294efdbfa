"""`pere webhooks`: so far `receive`, the other end of a webhook, to try things with."""

import click

from pere.cli.visit import fail, json_option, run
from pere.errors import BadRequest
from pere.signing import key


@click.group
def command() -> None:
    """Try out webhooks that are signed as Standard Webhooks has it.

    \b
    Examples:
      pere webhooks receive --secret whsec_...             verify and print what comes to http://127.0.0.1:4568/
      pere webhooks receive --help                         tell the rest
    """


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
