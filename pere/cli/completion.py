"""`pere completion`: what makes a shell complete verbs, options, and the channels of a server that runs."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print a script for SHELL that has it complete verbs, options, and the channels that somebody listens to at PERE_URL.

    \b
    Examples:
      eval "$(pere completion bash)"                 for this shell; in ~/.bashrc for all
      pere completion zsh > ~/.zfunc/_pere           a folder of fpath
      pere completion fish > ~/.config/fish/completions/pere.fish
    """
    from pere.cli import main

    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(main, {}, "pere", "_PERE_COMPLETE").source())
