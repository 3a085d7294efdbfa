"""`pere serve`: every field of Config as a flag. What a setting means, and what it may be, is said in config.py alone."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, fields
from errno import EADDRINUSE
from functools import partial
from typing import Any

import click
from click.core import ParameterSource

from pere.cli import loading
from pere.config import Config, flag, types, variable
from pere.errors import ConfigError, StoreInUse
from pere.layers import Layers


def option(field: Field[Any], kind: type) -> click.Option:
    """The flag of one setting. It has no default here, so that only what was typed outranks the environment."""
    name, unless = flag(field.name), field.default if field.default != "" else "none"
    is_switch = kind is bool
    return click.Option(
        [f"{name}/--no-{name[2:]}" if is_switch else name, field.name],
        type=kind,
        is_flag=is_switch,
        metavar=None if is_switch else "|".join(field.metadata["choices"]) or {int: "N", float: "SECONDS", str: "TEXT"}[kind],
        help=f"{field.metadata['help']}  [{variable(field.name)}; default: {str(unless).lower() if is_switch else unless}]",
    )


def with_settings(command: click.Command) -> click.Command:
    command.params += [option(field, types()[field.name]) for field in fields(Config)]
    return command


def typed(ctx: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """The settings that were said on the command line."""
    return {name: value for name, value in given.items() if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}


@with_settings
@click.command
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Run the server until a signal ends it (SIGINT or SIGTERM: it says goodbye to its feeds first).

    A flag wins over its PERE_* variable, that over the file (--config), and that over the default. Durations are seconds, sizes are bytes.

    \b
    Examples:
      pere serve
      pere serve --port 8080 --log-format json
      pere serve --host 0.0.0.0 --insecure           where a firewall or a proxy keeps strangers out
      pere serve --store redis://127.0.0.1 --workers 4
      PERE_BACKLOG_EVENTS=5000 pere serve
    """
    try:
        layers = Layers(typed(ctx, given))
    except ConfigError as error:
        click.echo(f"pere: {error}", err=True)
        sys.exit(2)
    config, serve = layers.config, partial(run, layers=layers)
    if config.workers == 1:
        serve(config)
        return
    from pere.workers import Workers

    with told(config):
        workers = Workers(config, serve)
    sys.exit(workers.run())


def run(config: Config, ready: Callable[..., None] = lambda server: None, facts: Mapping[str, object] | None = None,
        layers: Layers | None = None) -> None:
    """Serve in this process."""
    with loading():
        from pere.serving import serve

    with told(config):
        serve(config, ready, facts, layers)


@contextmanager
def told(config: Config) -> Iterator[None]:
    """What prevents a server from starting, in one line and with an exit code."""
    try:
        yield
    except ConfigError as error:
        remedy = ": end that one, or name another file (--store sqlite:PATH)" if isinstance(error, StoreInUse) and not config.is_shared else ""
        click.echo(f"pere: {error}{remedy}", err=True)
        sys.exit(2)
    except OSError as error:
        where = str(error.filename or f"{config.host}:{config.port}")
        remedy = f"; `pere doctor` says by whom, and {'--admin-port' if where.endswith(f':{config.admin_port}') else '--port'} names another one" if error.errno == EADDRINUSE and ":" in where else ""
        click.echo(f"pere: cannot listen on {where}: {error.strerror or error}{remedy}", err=True)
        sys.exit(1)
