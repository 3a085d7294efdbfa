"""What is printed on, where a stranger may have made up the words: none of them is markup, and who stops reading ends it without one."""

from typing import Any, NoReturn

from rich.console import Console

from pere.cli import leave_unread


class Paper(Console):
    """A console that leaves text as it is; lines are not broken unless `soft_wrap` is False."""

    def __init__(self, *, soft_wrap: bool = True, **how: Any):
        super().__init__(soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False, **how)

    def on_broken_pipe(self) -> NoReturn:
        leave_unread()
