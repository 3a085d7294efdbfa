"""`pere recall`: take an event back."""

import click
import orjson

from pere.cli.visit import channel_argument, client, json_option, printable, run, url_option


@click.command
@channel_argument()
@click.argument("event_id")
@url_option
@json_option
def command(channel: str, event_id: str, url: str, as_json: bool) -> None:
    """Take EVENT_ID back: who lacks it will not be sent it, who has it is told to forget it.

    \b
    Examples:
      pere recall orders 1417444110993-0
      pere recall orders 1417444110993-0 --json | jq .cancelled
    """

    async def recall() -> None:
        async with client(url) as server:
            answer = await server.recall(channel, event_id)
        if as_json:
            click.echo(orjson.dumps(answer))
        else:
            click.echo(printable(f"{answer.get('id')}  recalled from {channel}; receipts still owed: {answer.get('cancelled')}"))

    run(recall())
