"""`pere token`: mint tokens, and say in plain words what is in one."""

import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import jwt
import orjson
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from pere.auth import Verifier
from pere.cli.visit import fail, json_option, printable
from pere.errors import BadRequest, Refusal
from pere.keys import Key, algorithm_of, of_jwks, of_pem, of_secret
from pere.names import device_name, pattern

STDIN = "-"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def duration(text: str) -> int:
    """The seconds of `90`, `90s`, `15m`, `12h`, `30d`."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if match is None or not int(match[1]):
        raise click.BadParameter(f"{text!r} is no time such as 90s, 15m, 12h or 30d")
    return int(match[1]) * UNITS[match[2] or "s"]


secret_option = click.option("--secret", envvar="PERE_JWT_SECRET", show_envvar=True, metavar="TEXT", help="the secret that the server has as --jwt-secret")


@click.group(invoke_without_command=True)
@click.option("--device", "--sub", "subject", metavar="NAME", help="whose token it is: the device, or who publishes")
@click.option("--push", multiple=True, metavar="PATTERN", help="a channel or pattern to push to; may be given again")
@click.option("--feed", multiple=True, metavar="PATTERN", help="a channel or pattern to listen to, and to give receipts on; may be given again")
@click.option("--admin", is_flag=True, help="let it administer, and read the metrics")
@click.option("--expires", type=duration, default="1h", show_default=True, metavar="TIME", help="how long it holds: 90s, 15m, 12h, 30d")
@click.option("--audience", metavar="NAME", help="whom it is for, if the server has --jwt-audience")
@click.option("--kid", metavar="ID", help="the id of the key in the JWKS document")
@click.option("--private-key", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="sign with this key (PEM; RSA, P-256 or Ed25519) instead of a secret")
@secret_option
@click.pass_context
def command(ctx: click.Context, /, subject: str | None, push: tuple[str, ...], feed: tuple[str, ...], admin: bool, expires: int, audience: str | None,
            kid: str | None, private_key: str | None, secret: str | None) -> None:
    """Mint a token, which is all that is printed. It allows what is named here and nothing else.

    \b
    Examples:
      export PERE_JWT_SECRET=$(openssl rand -base64 32)        the server wants the same one
      pere token --device till-1 --feed orders                 for a device, for an hour
      pere token --sub shop --push 'orders.**' --expires 30d   for a publisher
      pere token --admin --private-key key.pem --kid 2026-1    signed by a private key
      pere token inspect                                       what is in PERE_TOKEN
    """
    if ctx.invoked_subcommand is not None:
        return
    try:
        if subject is not None:
            device_name(subject)
        for each in (*push, *feed):
            pattern(each)
    except BadRequest as refusal:
        raise click.UsageError(refusal.message) from None
    if subject is None and not (push or feed or admin):
        raise click.UsageError("a token is somebody's, or allows something: --device, --push, --feed, --admin")
    algorithm, key = _signing(private_key, secret)
    now = int(time.time())
    allowed: dict[str, Any] = {"push": list(push), "feed": list(feed), "admin": admin}
    claims: dict[str, Any] = {"sub": subject, "aud": audience, "iat": now, "exp": now + expires, "pere": {name: value for name, value in allowed.items() if value}}
    click.echo(jwt.encode({name: value for name, value in claims.items() if value is not None}, key, algorithm, {"kid": kid} if kid else None))


def _signing(private_key: str | None, secret: str | None) -> tuple[str, Any]:
    """The algorithm and the key to sign with."""
    # A secret in the environment is no wish to use it where a key is named.
    if private_key is not None:
        try:
            key = load_pem_private_key(Path(private_key).read_bytes(), None)
            return algorithm_of(key.public_key()), key
        except TypeError:
            raise click.BadParameter("this key has a password", param_hint="--private-key") from None
        except ValueError as error:
            raise click.BadParameter(f"this is no private key in PEM that can be taken: {error}", param_hint="--private-key") from None
    if secret is None:
        raise click.UsageError("say what to sign with: --secret (PERE_JWT_SECRET) or --private-key")
    _secret(secret)
    return "HS256", secret


def _secret(secret: str) -> Key:
    try:
        return of_secret(secret)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--secret") from None


@command.command
@click.argument("token", envvar="PERE_TOKEN", required=False)
@click.option("--public-key", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="what the server has as --jwt-public-key")
@click.option("--jwks", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="what is at the server's --jwt-jwks")
@click.option("--audience", default="", metavar="NAME", help="what the server has as --jwt-audience")
@secret_option
@json_option
def inspect(token: str | None, public_key: str | None, jwks: str | None, audience: str, secret: str | None, as_json: bool) -> None:
    """Say whose TOKEN it is, what it allows and until when; and with a key, whether it holds (exit code 1 if not). Without TOKEN it is
    PERE_TOKEN, or what comes on standard input.

    \b
    Examples:
      pere token inspect
      pere token inspect eyJhbGciOi... --public-key key.pub.pem
      pere token inspect --json < token.txt | jq .pere
    """
    # Nobody who only forgot to say which one is left waiting.
    text = "" if token is None and sys.stdin.isatty() else (sys.stdin.read() if token in (None, STDIN) else token).strip()
    if not text:
        raise click.UsageError("say which token: TOKEN, PERE_TOKEN, or on standard input")
    try:
        parts: dict[str, Any] = jwt.decode_complete(text, options={"verify_signature": False})
    except jwt.PyJWTError as error:
        fail(f"this is no token: {error}")
    keys, fetched = _keys(public_key, secret), _fetched(jwks)
    trouble = _trouble(text, Verifier(keys, audience, fetched=fetched)) if keys or fetched is not None else None
    is_tried = bool(keys) or fetched is not None
    if as_json:
        click.echo(orjson.dumps({"header": parts["header"], **parts["payload"], "holds": trouble is None if is_tried else None, "trouble": trouble}))
    else:
        for line in described(parts["header"], parts["payload"], time.time()):
            click.echo(printable(line))
        click.echo(printable("whether it holds, only a key can tell: --secret, --public-key, --jwks" if not is_tried else
                             "it holds" if trouble is None else f"it does not hold: {trouble}"))
    if trouble is not None:
        raise SystemExit(1)


def _keys(public_key: str | None, secret: str | None) -> list[Key]:
    keys = [_secret(secret)] if secret is not None else []
    if public_key is not None:
        try:
            keys += of_pem(Path(public_key).read_bytes())
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--public-key") from None
    return keys


def _fetched(jwks: str | None) -> list[Key] | None:
    if jwks is None:
        return None
    try:
        return of_jwks(orjson.loads(Path(jwks).read_bytes()))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--jwks") from None


def _trouble(text: str, verifier: Verifier) -> str | None:
    """Why a token does not hold; None if it does."""
    try:
        verifier.grant(text.encode(), time.time())
    except Refusal as refusal:
        return refusal.message
    return None


def described(header: dict[str, Any], claims: dict[str, Any], now: float) -> list[str]:
    """What a token says, in plain words; whatever it says, since it may be anybody's."""
    said = claims.get("pere")
    said = said if isinstance(said, dict) else {}
    allowed = [f"{word} {', '.join(map(str, said[name]))}" for name, word in (("push", "push to"), ("feed", "listen to")) if isinstance(said.get(name), list) and said[name]]
    allowed += ["administer"] if said.get("admin") is True else []
    lines = [
        f"whose     {claims.get('sub', 'nobody in particular')}",
        f"may       {'; '.join(allowed) or 'nothing'}",
        f"until     {_moment(claims.get('exp'), now)}",
        f"issued    {_moment(claims.get('iat'), now)}",
    ]
    lines += [f"not before {_moment(claims['nbf'], now)}"] if "nbf" in claims else []
    lines += [f"for       {claims['aud'] if isinstance(claims['aud'], str) else orjson.dumps(claims['aud']).decode()}"] if "aud" in claims else []
    return [*lines, f"signed    {header.get('alg')}" + (f", by the key {header['kid']}" if "kid" in header else "")]


def _moment(value: Any, now: float) -> str:
    """`2026-11-23T22:40:36Z, in 59 min`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 253_402_300_800:
        return "it does not say" if value is None else f"{value!r}, which is no time"
    distance = abs(value - now)
    told = next((f"{distance / size:.0f} {word}" for size, word in ((86_400, "days"), (3600, "h"), (60, "min")) if distance >= 2 * size), f"{distance:.0f} s")
    return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%dT%H:%M:%SZ}, {f'in {told}' if value > now else f'{told} ago'}"
