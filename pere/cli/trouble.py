"""What prevents a command that looks after a store, as it is told."""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from pere.errors import ConfigError
from pere.storage.archive import INTERRUPTED
from pere.storage.packing import Malformed


@contextmanager
def spoken(path: str) -> Iterator[None]:
    """In one line and with exit code 2; Ctrl-C is 130, as a shell has it, for 1 is said of a file that is not sound."""
    try:
        yield
    except ConfigError as error:
        sentence = str(error)
    except (sqlite3.Error, *Malformed) as error:
        if getattr(error, "sqlite_errorcode", None) == INTERRUPTED:
            sys.exit(130)
        sentence = f"{path} cannot be used: {error}; `pere store check` looks at all of it"
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        return
    click.echo(f"pere: {sentence}", err=True)
    sys.exit(2)
