"""Log lines: one for each event of interest, for people or as JSON, without payloads and without tokens."""

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

import orjson

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_always: dict[str, object] = {}  # what stands in every line


def _facts(record: logging.LogRecord) -> dict[str, object]:
    """What was given as `extra={"facts": {...}}`."""
    return _always | getattr(record, "facts", {})


class Text(logging.Formatter):
    """`2026-11-23T20:08:35.123Z info  listening url=http://127.0.0.1:4567`"""

    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {name}={value}" for name, value in _facts(record).items())
        line = f"{_time(record)} {record.levelname.lower():<7} {record.getMessage()}{facts}"
        return line + "\n" + self.formatException(record.exc_info) if record.exc_info else line


class Json(logging.Formatter):
    """`{"time":"...","level":"info","logger":"pere","message":"listening","url":"http://127.0.0.1:4567"}`"""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        line |= _facts(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def change(level: str, format: str) -> None:
    """Go on so, where it was set up for the process."""
    logging.getLogger("pere").setLevel(LEVELS[level])
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, Text | Json):
            handler.setFormatter(Json() if format == "json" else Text())


def set_up(level: str, format: str, always: Mapping[str, object] | None = None) -> None:
    """Log to standard error, PERE's lines from `level` on and warnings of everybody else; `always` stands in every line."""
    _always.clear()
    _always.update(always or {})
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if format == "json" else Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("pere").setLevel(LEVELS[level])
    # A refused request is the client's business, not a warning of ours.
    logging.getLogger("tornado.access").setLevel(logging.ERROR)
    logging.getLogger("tornado.general").setLevel(logging.ERROR)
