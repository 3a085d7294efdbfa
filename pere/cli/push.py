"""`pere push`: publish one event, one every few seconds, or one for each line that comes."""

import asyncio
import os
import secrets
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from datetime import UTC, datetime
from itertools import count as endless
from typing import Any, BinaryIO, NamedTuple

import click
import orjson

from pere.cli.bar import progress
from pere.cli.visit import channel_argument, client, json_option, printable, run, url_option, verdict

UNSATISFIED = 3  # the exit code where too few receipts came
BATCH = 500  # lines in one request
MOST_TOLD = 20  # lines that were refused, one by one
PART = 256 * 1024  # bytes that are read at once


@click.command
@channel_argument(required=False)
@click.argument("data", required=False)
@click.option("--lines", type=click.File("rb", lazy=False), metavar="FILE|-", help="each line of it is an event; without CHANNEL each is {\"channel\", \"data\", ...} in JSON")
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
def command(channel: str | None, data: str | None, lines: BinaryIO | None, every: float | None, count: int | None, key: str | None, device: str | None,
            url: str, as_json: bool, **wanted: Any) -> None:
    """Publish DATA to CHANNEL: as JSON if it is JSON, else as text. `-` reads it from standard input; without DATA a sample
    event is made up. With --lines every line is published as it comes, many at once; those that are refused are told.

    Exit codes: 0, 1 if something is refused or the server cannot be reached, 2 for a wrong command line, 3 if --wait did not see enough receipts,
    130 for Ctrl-C.

    \b
    Examples:
      pere push orders '{"order": 1}'
      pere push orders 'plain text' --type note --to till-1 --to till-2
      pere push orders --every 1 --count 10          ten samples, a second apart
      pere push orders - < order.json
      pere push orders --lines events.ndjson         an event for each line
      tail -f app.log | pere push logs --lines -     and as they come
      pere store export pere.db --events | jq -c '{channel, type, data}' | pere push --lines -
      pere push orders '{"order": 1}' --need 90% --ttl 60 --key order-1
      pere push orders '{"order": 1}' --need 2 --wait 30 && echo two have it
    """
    if lines is not None:
        if data is not None or every is not None or count is not None or key is not None or wanted["wait"] is not None:
            raise click.UsageError("--lines brings the data, once: it goes with neither DATA, --every, --count, --key nor --wait")
        wanted.pop("wait")
        push_lines(lines, channel, device, url, as_json, wanted)
        return
    if channel is None:
        raise click.UsageError("say where to: CHANNEL, or --lines that name it")
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
                if number == 1 and not as_json:
                    tell_if_meant_as_json(payload)
                answer = await server.push(channel, payload, key=key, **wanted)
                if as_json:
                    click.echo(orjson.dumps(answer))
                else:
                    told = f"; {verdict(answer)}" if "counts" in answer else ""
                    if answer.get("audience") == 0 and wanted.get("receipt") != "none":
                        told = f" (none is registered there){told}"
                    click.echo(printable(f"{answer.get('id')}  pushed to {channel}, for {devices(answer.get('audience'))}{told}"))
                is_satisfied = is_satisfied and answer.get("satisfied", True)
                if number != times:
                    await asyncio.sleep(every or 0)
        return is_satisfied

    if run(push()) is False:
        raise SystemExit(UNSATISFIED)


def push_lines(lines: BinaryIO, channel: str | None, device: str | None, url: str, as_json: bool, wanted: dict[str, Any]) -> None:
    """Publish all lines, many at once as far as they are there; exits with 1 if any was refused."""
    said = {name: list(value) if name == "to" else value for name, value in wanted.items() if value not in (None, ())}
    counts = {"pushed": 0, "refused": 0}

    async def push() -> None:
        number = 0
        async with client(url, device) as server:
            with progress() as bar:
                task = bar.add_task("pushed", total=None)
                async for batch in batches(lines):
                    items = [item_of(line, channel, said) for line in batch]
                    sent = iter(await server.push_many([item for item in items if not isinstance(item, Wrong)]))
                    for item in items:
                        number += 1
                        answer = item.told if isinstance(item, Wrong) else next(sent)
                        is_refused = "error" in answer
                        counts["refused" if is_refused else "pushed"] += 1
                        if as_json:
                            click.echo(orjson.dumps(answer))
                        elif is_refused and counts["refused"] <= MOST_TOLD:
                            click.echo(printable(f"pere: line {number}: {answer['error']}: {answer.get('message')}"), err=True)
                    bar.update(task, completed=number)
        if not as_json:
            if counts["refused"] > MOST_TOLD:
                click.echo(f"pere: and {counts['refused'] - MOST_TOLD:,} more lines were refused", err=True)
            click.echo(f"{counts['pushed']:,} pushed" + (f", {counts['refused']:,} refused" if counts["refused"] else ""))

    run(push())
    if counts["refused"]:
        raise SystemExit(1)


class Wrong(NamedTuple):
    """A line that cannot be sent, and what is told of it."""

    told: dict[str, Any]


def item_of(line: bytes, channel: str | None, said: dict[str, Any]) -> Any:
    """What stands for a line in a request: its very bytes if it is JSON, so that no number loses a digit."""
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if channel is None:
            return Wrong({"error": "bad_json", "message": f"this is not JSON: {error}", "status": 400})
        try:
            return {"channel": channel, "data": line.decode(), **said}
        except UnicodeDecodeError:
            return Wrong({"error": "bad_encoding", "message": "this is not UTF-8", "status": 400})
    return orjson.Fragment(line) if channel is None else {"channel": channel, "data": orjson.Fragment(line), **said}


async def batches(lines: BinaryIO) -> AsyncIterator[list[bytes]]:
    """The lines that are there, at most BATCH at once, and then those that came meanwhile: a pipe that drips is not waited for."""
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(2 * BATCH)
    loop = asyncio.get_running_loop()

    def read() -> None:
        rest = b""
        try:
            # By the descriptor: an object that is being read from cannot be done away with at the end.
            while part := os.read(lines.fileno(), PART):
                *whole, rest = (rest + part).split(b"\n")
                for line in filter(None, map(bytes.strip, whole)):
                    asyncio.run_coroutine_threadsafe(queue.put(line), loop).result()
            if rest := rest.strip():
                asyncio.run_coroutine_threadsafe(queue.put(rest), loop).result()
            asyncio.run_coroutine_threadsafe(queue.put(None), loop).result()
        except (RuntimeError, CancelledError):
            pass  # nobody waits for them any more

    # Nobody can end a thread that waits for somebody to type, so it is not waited for.
    threading.Thread(target=read, daemon=True).start()
    is_over = False
    while not is_over:
        batch = [await queue.get()]
        while len(batch) < BATCH and not queue.empty():
            batch.append(queue.get_nowait())
        is_over = None in batch
        if found := [line for line in batch if line is not None]:
            yield found


def as_pushed(text: str) -> str | bytes:
    """JSON as the very bytes that were typed, so that no number loses a digit; all else as text."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return text.encode()


def tell_if_meant_as_json(payload: object) -> None:
    """Text that begins as JSON does is most often JSON with a slip in it."""
    if isinstance(payload, str) and payload.lstrip().startswith(("{", "[{", '["')):
        try:
            orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            click.echo(f"pere: this is not JSON, so it goes as text: {error}", err=True)


def sample(number: int, device: str | None) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"device": device, "time": now, "id": number, "data": secrets.token_hex(8)}


def devices(audience: Any) -> str:
    return "1 device" if audience == 1 else f"{audience} devices"
