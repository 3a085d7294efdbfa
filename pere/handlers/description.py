"""`/openapi.json` and `/asyncapi.json`: what a program may know of this server."""

from collections.abc import Callable


from pere.auth import ANYBODY
from pere.handlers.base import Handler


class Description(Handler):
    """One of the two; `describe` makes it, each time, for that is seldom and costs a few milliseconds."""

    needs = ANYBODY
    describe: Callable[[], dict[str, object]]

    def get(self) -> None:
        self.set_header("Cache-Control", "no-cache")
        self.answer(self.describe())
