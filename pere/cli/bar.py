"""How much is done, as a bar on standard error."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # of what has no bar, nobody waits for its import
    from rich.progress import Progress


def progress(is_shown: bool = True) -> "Progress":
    """A bar on standard error, if that is a terminal. It leaves the other stream alone, which may be a file."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True,
                    redirect_stdout=False, redirect_stderr=False, disable=not (is_shown and console.is_terminal))
