"""`pere push`: publish one event, or one every few seconds."""

import asyncio
import secrets
import sys
from datetime import UTC, datetime
from itertools import count as endless
from typing import Any

import click
import orjson

from pere.cli.visit import client, json_option, printable, run, url_option, verdict

UNSATISFIED = 3  # the exit code where too few receipts came


@click.command
@click.argument("channel")
@click.argument("data", required=False)
@click.option("--every", type=click.FloatRange(min=0), metavar="SECONDS", help="push again and again, until --count or Ctrl-C")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="push N times  [default: 1, or no end with --every]")
@click.option("--type", metavar="NAME", help="the event's name on the feed; `message` unless given")
@click.option("--to", multiple=True, metavar="DEVICE", help="only this device; may be given again for more")
@click.option("--ttl", type=int, metavar="SECONDS", help="how long the event is still sent  [default: the server's]")
@click.option("--receipt", metavar="LEVEL", help="which receipt closes it: none, delivered or processed  [default: processed]")
@click.option("--need", metavar="N|N%|all", help="how many receipts are enough")
@click.option("--key", help="an Idempotency-Key: pushed twice with the same key, it is published once")
@click.option("--wait", type=click.IntRange(min=0), metavar="SECONDS", help="wait so long for the receipts; exit 3 if too few came")
@click.option("--callback", metavar="ID", help="the webhook that is told what becomes of it")
@click.option("--device", metavar="NAME", help="who publishes")
@url_option
@json_option
def command(channel: str, data: str | None, every: float | None, count: int | None, key: str | None, device: str | None,
            url: str, as_json: bool, **wanted: Any) -> None:
    """Publish DATA to CHANNEL: as JSON if it is JSON, else as text. `-` reads it from standard input; without DATA a sample
    event is made up.

    \b
    Examples:
      pere push orders '{"order": 1}'
      pere push orders 'plain text' --type note --to till-1 --to till-2
      pere push orders --every 1 --count 10          ten samples, a second apart
      pere push orders - < order.json
      pere push orders '{"order": 1}' --need 90% --ttl 60 --key order-1
      pere push orders '{"order": 1}' --need 2 --wait 30 && echo two have it
    """
    times = count or (1 if every is None else None)
    if key is not None and times != 1:
        raise click.UsageError("--key publishes once whatever is pushed with it, so it goes with neither --every nor --count")
    if data == "-":
        try:
            data = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError:
            raise click.UsageError("what came on standard input is not UTF-8") from None

    async def push() -> bool:
        is_satisfied = True
        async with client(url, device) as server:
            for number in range(1, times + 1) if times else endless(1):
                payload = sample(number, device) if data is None else as_pushed(data)
                answer = await server.push(channel, payload, key=key, **wanted)
                if as_json:
                    click.echo(orjson.dumps(answer))
                else:
                    told = f"; {verdict(answer)}" if "counts" in answer else ""
                    click.echo(printable(f"{answer.get('id')}  pushed to {channel}, for {devices(answer.get('audience'))}{told}"))
                is_satisfied = is_satisfied and answer.get("satisfied", True)
                if number != times:
                    await asyncio.sleep(every or 0)
        return is_satisfied

    if run(push()) is False:
        raise SystemExit(UNSATISFIED)


def as_pushed(text: str) -> str | bytes:
    """JSON as the very bytes that were typed, so that no number loses a digit; all else as text."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return text.encode()


def sample(number: int, device: str | None) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"device": device, "time": now, "id": number, "data": secrets.token_hex(8)}


def devices(audience: Any) -> str:
    return "1 device" if audience == 1 else f"{audience} devices"
