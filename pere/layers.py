"""Where settings come from: defaults, over them a file, over that the environment, and over all what was typed.

The file is TOML (https://toml.io), as `--config` or `PERE_CONFIG` names it, with each setting under its own name:

    max_feeds = 20_000
    log_level = "debug"

A name may be written as its flag is (`max-feeds`). What is unknown, or of the wrong type, is refused: a slip of the pen that is
silently left out would be noticed in the night.
"""

import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from pere.config import Config, from_environment, types
from pere.errors import ConfigError

DEFAULT, FILE, VARIABLE, FLAG = "default", "file", "variable", "flag"

# What a type is called in TOML.
TOML = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


class Gathered(NamedTuple):
    """All settings together, and of each which layer it is from."""

    config: Config
    sources: dict[str, str]


class Layers:
    """What a server was started with, and how to read it again: `config` is how it stood at first."""

    def __init__(self, typed: Mapping[str, Any]):
        self._typed = typed
        self.config = gather(typed).config

    def read(self) -> Config:
        """As it stands now. Raises ConfigError."""
        return gather(self._typed).config


def gather(typed: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Gathered:
    """The settings as they stand now; the file is read anew each time. `typed` are those of the command line. Raises ConfigError."""
    said = {VARIABLE: from_environment(environ, but=typed), FLAG: dict(typed)}
    path = (said[VARIABLE] | said[FLAG]).get("config", "")
    layers = {FILE: from_file(path) if path else {}, **said}
    sources, values = dict.fromkeys(types(), DEFAULT), {}  # type: dict[str, str], dict[str, Any]
    for source, layer in layers.items():
        values |= layer
        sources |= dict.fromkeys(layer, source)
    return Gathered(Config(**values), sources)


def from_file(path: str) -> dict[str, Any]:
    """The settings that a file gives. Raises ConfigError where it cannot be read, or something in it is no setting."""
    try:
        with open(path, "rb") as file:
            said = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not TOML: {error}") from None
    found: dict[str, Any] = {}
    known = types()
    for word, value in said.items():
        name = word.replace("-", "_")
        if name == "config" or name not in known:
            near = get_close_matches(name, known.keys() - {"config"}, 1)
            raise ConfigError(f"--config {path}: there is no setting {word}" + (f"; is {near[0]} meant?" if near else ""))
        if name in found:
            raise ConfigError(f"--config {path}: {name} stands there twice, in two spellings")
        found[name] = _of_type(known[name], value, f"--config {path}: {word}")
    return found


def _of_type(kind: type, value: Any, what: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{what} is {TOML[kind]}, not {value!r}")
    return value
