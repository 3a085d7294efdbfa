"""`pere config`: what `pere serve` would be told, and by whom: a flag, a variable, a file, or nobody.

`layers.py` stops at the first thing that is wrong, as a server does; here each is looked at for itself.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any, NamedTuple

import click
import orjson
from rich.table import Table
from rich.text import Text

from pere.cli.paper import Paper
from pere.cli.serve import typed, with_settings
from pere.cli.visit import printable
from pere.config import Config, check, flag, parsed, strangers, variable, without_password
from pere.errors import ConfigError
from pere.layers import DEFAULT, from_file

HIDDEN = "(set, and not shown)"


class Setting(NamedTuple):
    """One setting: its value as it may be shown, who says so (a flag, a variable, the path of a file, or `default`), and what is wrong with it."""

    name: str
    value: Any
    source: str
    trouble: str | None

    def shown(self) -> str:
        return str(self.value).lower() if isinstance(self.value, bool) else str(self.value) if self.value != "" else "none"


@with_settings
@click.command
@click.option("--changed", is_flag=True, help="show only what is not the default")
@click.option("--json", "as_json", is_flag=True, help="print one JSON value, for programs")
@click.pass_context
def command(ctx: click.Context, /, changed: bool, as_json: bool, **given: Any) -> None:
    """Show the settings with which `pere serve` would start here, and where each comes from: a flag, a PERE_* variable, the file that
    --config names, or the default. It takes the flags of `pere serve`, and starts nothing. Secrets are not shown.

    The exit code is 2 if a value cannot be; all of these are told, on standard error.

    \b
    Examples:
      pere config --changed
      pere config --port 8080 --log-format json
      pere config --json | jq .settings.store
    """
    found, troubles = settled(typed(ctx, given), os.environ)
    unknown = strangers()
    if as_json:
        click.echo(orjson.dumps({
            "settings": {each.name: {"value": each.value, "source": each.source, "flag": flag(each.name), "variable": variable(each.name)}
                         for each in found if not changed or each.source != DEFAULT},
            "wrong": troubles, "unknown": [name for name, _ in unknown]}))
    else:
        Paper().print(table_of([each for each in found if not changed or each.source != DEFAULT]))
    for name, meant in unknown:
        click.echo(printable(f"pere: {name} is no setting" + (f"; is {meant} meant?" if meant else "")), err=True)
    for sentence in troubles:
        click.echo(printable(f"pere: {sentence}"), err=True)
    if troubles:
        sys.exit(2)


def settled(flags: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[list[Setting], list[str]]:
    """Every setting, and all that is wrong: with one value for itself first, and then, with the defaults in place of those that cannot
    be, with two that do not go together."""
    found, right, troubles = [], {}, []
    file, trouble = _file(flags, environ)
    if trouble is not None:
        troubles.append(trouble)
    for each in fields(Config):
        value, source, trouble = _of(each, flags, environ, file)
        found.append(Setting(each.name, _showable(each, value), source, trouble))
        if trouble is None:
            right[each.name] = value
        else:
            troubles.append(trouble)
    try:
        Config(**right)
    except ConfigError as error:
        troubles.append(without_password(str(error)))
    return found, troubles


def _file(flags: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, tuple[Any, str]], str | None]:
    """What the file says, each with its path, and what is wrong with it as a whole: then it says nothing."""
    path = flags.get("config", environ.get(variable("config"), ""))
    try:
        return ({name: (value, path) for name, value in from_file(path).items()} if path else {}), None
    except ConfigError as error:
        return {}, str(error)


def _of(setting: Field[Any], flags: Mapping[str, Any], environ: Mapping[str, str], file: Mapping[str, tuple[Any, str]]) -> tuple[Any, str, str | None]:
    """Its value, who says so, and what is wrong with that."""
    name = setting.name
    value, source = file.get(name, (setting.default, DEFAULT))
    try:
        if name in flags:
            value, source = flags[name], flag(name)
        elif (text := environ.get(variable(name))) is not None:
            value, source = text, variable(name)
            value = parsed(name, text)
        check(setting, value)
    except ConfigError as error:
        return value, source, str(error)
    return value, source, None


def _showable(setting: Field[Any], value: Any) -> Any:
    if not setting.repr:
        return HIDDEN if value else ""
    return without_password(value) if isinstance(value, str) else value


def table_of(found: list[Setting]) -> Table:
    table = Table("setting", "value", "from", box=None, padding=(0, 2, 0, 0))
    for each in found:
        style = "red" if each.trouble else "dim" if each.source == DEFAULT else "bold"
        table.add_row(*(Text(printable(text), style) for text in (flag(each.name), each.shown(), each.source)))
    return table
