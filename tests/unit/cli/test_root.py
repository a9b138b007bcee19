"""The root of the command line: how it names commands, and that every command teaches."""

import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from broker.cli import SECTIONS, root


def commands(group: click.Group = root, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it."""
    for name in group.commands:
        command = group.commands[name]
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


OURS = [
    pytest.param(path, command, id=" ".join(path))
    for path, command in commands()
    if path[0] != "emulator" and not isinstance(command, click.Group)
]


def test_root_help_names_every_command_with_its_own_summary() -> None:
    """What the root says of a command without loading it is the first line of that command's help."""
    for section in SECTIONS.values():
        for name, lazy in section.items():
            help_text = root.commands[name].help
            assert help_text is not None
            assert lazy.summary == help_text.strip().splitlines()[0], name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_names_the_program(shell: str) -> None:
    """Each shell gets a script that completes `credential-broker`."""
    shown = CliRunner().invoke(root, ["completion", shell], prog_name="credential-broker")
    assert shown.exit_code == 0
    assert "_CREDENTIAL_BROKER_COMPLETE" in shown.output


def test_a_mistyped_command_is_met_with_the_one_that_was_meant() -> None:
    """A command that does not exist is a usage error that offers a similar one."""
    shown = CliRunner().invoke(root, ["explian"])
    assert shown.exit_code == 2
    assert "'explain'" in shown.stderr


def test_version_is_the_packages() -> None:
    """`--version` says the one version."""
    from broker import __version__

    assert CliRunner().invoke(root, ["--version"]).output == f"credential-broker {__version__}\n"


@pytest.mark.parametrize(("path", "command"), OURS)
def test_every_command_has_a_summary_and_examples_that_parse(path: tuple[str, ...], command: click.Command) -> None:
    """A command's help begins with a sentence, and each of its examples is a command line that exists."""
    assert command.help is not None
    assert command.help.strip().splitlines()[0].endswith(".")
    assert command.epilog is not None
    lines = command.epilog.splitlines()
    assert lines[:2] == ["\b", "Examples:"]
    shown = [line for line in lines[2:] if not line.lstrip().startswith("#")]
    ours = [line for line in shown if " ".join(path) in line]
    assert ours, "no example shows this command"
    for line in shown:
        for arguments in program_calls(line):
            assert parses(arguments), arguments


def program_calls(line: str) -> Iterator[list[str]]:
    """Every call of the program in a line of shell."""
    for part in line.replace("$(", "\0").replace(")", "\0").split("\0"):
        for command in part.split("|"):
            words = shlex.split(command.replace('"', " "), posix=True)
            if "credential-broker" in words:
                yield words[words.index("credential-broker") + 1 :]


def parses(arguments: list[str]) -> bool:
    """Whether a command line names a command and options that exist, whatever its values."""
    command: click.Command = root
    while isinstance(command, click.Group):
        if not arguments or arguments[0] not in command.commands:
            return command.name == "emulator" and not arguments
        command, arguments = command.commands[arguments[0]], arguments[1:]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return all(word in options for word in arguments if word.startswith("--"))


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR in the environment nothing is coloured, even where colours were forced on."""
    monkeypatch.setenv("NO_COLOR", "yes please")
    plain = CliRunner().invoke(root, ["check-config", "--config", "/nowhere.toml"], color=True)
    monkeypatch.delenv("NO_COLOR")
    coloured = CliRunner().invoke(root, ["check-config", "--config", "/nowhere.toml"], color=True)
    assert "\x1b[" not in plain.stderr
    assert "\x1b[" in coloured.stderr
