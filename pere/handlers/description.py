"""`/openapi.json` and `/asyncapi.json`: what a program may know of this server."""

from collections.abc import Callable

import orjson

from pere.auth import ANYBODY
from pere.config import Config
from pere.handlers.base import Handler


class Document:
    """What `make` makes, as JSON: made where it is first asked for, since that holds the loop for some milliseconds, and again where a setting of which it tells has changed."""

    def __init__(self, make: Callable[[], dict[str, object]]):
        self._make = make
        self._said: orjson.Fragment | None = None

    def renew(self, _: Config) -> Callable[[], None]:
        """It is made anew when it is next asked for (see `reloading.py`)."""
        return self._forget

    def _forget(self) -> None:
        self._said = None

    @property
    def said(self) -> orjson.Fragment:
        """The JSON as it is answered."""
        if self._said is None:
            self._said = orjson.Fragment(orjson.dumps(self._make()))
        return self._said


class Description(Handler):
    """One of the two."""

    needs = ANYBODY
    document: Document

    def get(self) -> None:
        self.set_header("Cache-Control", "no-cache")
        self.answer(self.document.said)
