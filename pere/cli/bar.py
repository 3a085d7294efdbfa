"""How much is done, as a bar on standard error."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def progress(is_shown: bool = True) -> Progress:
    """A bar on standard error, if that is a terminal. It leaves the other stream alone, which may be a file."""
    console = Console(stderr=True)
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True,
                    redirect_stdout=False, redirect_stderr=False, disable=not (is_shown and console.is_terminal))
