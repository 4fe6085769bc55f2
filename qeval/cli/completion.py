"""`qeval completion`: what a shell reads to complete commands and options."""

from __future__ import annotations

import click

from qeval.cli.shared import command
from qeval.core.console import echo


@command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete qeval's commands, options and file names.

    \b
    Examples:
      echo 'eval "$(qeval completion bash)"' >> ~/.bashrc
      echo 'eval "$(qeval completion zsh)"' >> ~/.zshrc
      qeval completion fish > ~/.config/fish/completions/qeval.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None  # click has these three
    echo(found(context.find_root().command, {}, "qeval", "_QEVAL_COMPLETE").source())
