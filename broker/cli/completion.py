"""`credential-broker completion`."""

import click
from click.shell_completion import get_completion_class

from broker.cli.help import examples

COMPLETE_VARIABLE = "_CREDENTIAL_BROKER_COMPLETE"


@click.command(
    epilog=examples(
        "# for this shell session (bash; zsh likewise)",
        'eval "$(credential-broker completion bash)"',
        "# for every session",
        "credential-broker completion bash >> ~/.bashrc",
        "credential-broker completion zsh >> ~/.zshrc",
        "credential-broker completion fish > ~/.config/fish/completions/credential-broker.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, *, shell: str) -> None:
    """
    Print a shell's completion script.

    It completes commands, options and their choices. Nothing is installed by itself: the script goes to standard
    output.
    """
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - the choices above are the shells that Click knows
    click.echo(found(context.find_root().command, {}, "credential-broker", COMPLETE_VARIABLE).source())
