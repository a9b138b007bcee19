"""
The command line: one group of commands a module, each loaded only when it is used.

The root knows every command's name and summary without importing it, so that `--help` and completion load neither gRPC
nor a web server, and `serve` never loads the emulator. A test compares the summaries with the commands' own.
"""

import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from typing import Final

import click
from click.shell_completion import CompletionItem

from broker import __version__


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """
    A command that is imported on first use.

    Attributes:
        module: where it is.
        attribute: what it is called there.
        summary: the first line of its help.
    """

    module: str
    attribute: str
    summary: str


SECTIONS: Final[dict[str, dict[str, LazyCommand]]] = {
    "Start": {
        "dev": LazyCommand("broker.cli.dev", "dev", "Try it: broker, backend and a ready identity, in one go."),
        "serve": LazyCommand("broker.cli.serve", "serve", "Run the broker."),
        "emulator": LazyCommand(
            "broker.cli.emulator",
            "command",
            "Run a backend on loopback that verifies every credential and says what it saw.",
        ),
    },
    "Ask for authorizations": {
        "get": LazyCommand("broker.cli.caller", "get", "Get the headers to attach to a call."),
        "watch": LazyCommand(
            "broker.cli.watch", "watch", "Watch authorizations: each new value, withdrawal and error as it comes."
        ),
        "explain": LazyCommand(
            "broker.cli.caller", "explain", "Say what `get` would decide, and which rules lead to it."
        ),
        "scopes": LazyCommand("broker.cli.caller", "scopes", "List the scopes that may be asked for."),
        "register-task": LazyCommand(
            "broker.cli.caller", "register_task", "Register the task of a thread ahead of its first call."
        ),
        "end-task": LazyCommand("broker.cli.caller", "end_task", "End the task of a thread."),
    },
    "Operate": {
        "identity": LazyCommand(
            "broker.cli.identity", "identity", "Create, import, look at, renew and switch identities."
        ),
        "task": LazyCommand("broker.cli.task", "task", "Look at and revoke tasks."),
        "status": LazyCommand(
            "broker.cli.status",
            "status",
            "Say how a broker is doing: who holds what, what is due next, and what somebody must do.",
        ),
        "check-config": LazyCommand(
            "broker.cli.config", "check_config", "Check a configuration and name every problem at once."
        ),
        "migrate": LazyCommand(
            "broker.cli.config", "migrate", "Bring the database to this version's schema and say its revision."
        ),
        "completion": LazyCommand("broker.cli.completion", "completion", "Print a shell's completion script."),
    },
}


class _LazyCommands(MutableMapping[str, click.Command]):
    """Commands by name; taking one imports it, listing them does not."""

    def __init__(self, lazy: dict[str, LazyCommand]) -> None:
        self._lazy: Final = lazy
        self._added: Final[dict[str, click.Command]] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name in self._lazy:
            lazy = self._lazy[name]
            command: click.Command = getattr(import_module(lazy.module), lazy.attribute)
            return command
        return self._added[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._added[name] = command

    def __delitem__(self, name: str) -> None:
        del self._added[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._lazy
        yield from self._added

    def __len__(self) -> int:
        return len(self._lazy) + len(self._added)


class _RootGroup(click.Group):
    """Shows the commands in sections, from their summaries alone."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section of commands after the other."""
        _ = ctx
        width = max(len(name) for section in SECTIONS.values() for name in section)
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), lazy.summary) for name, lazy in section.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the commands, with their summaries."""
        names = [
            CompletionItem(name, help=lazy.summary)
            for section in SECTIONS.values()
            for name, lazy in section.items()
            if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(
    cls=_RootGroup,
    commands=_LazyCommands({name: lazy for section in SECTIONS.values() for name, lazy in section.items()}),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Begin here:
  credential-broker dev                                  # terminal 1: everything, ready to use
  credential-broker get --scope inference --thread t1    # terminal 2: one authorization
\b
Exit codes:
  0   done; also serve, dev and emulator ended by Ctrl-C
  1   failed; the reason stands on standard error
  2   not a command line that exists
  69  something needed at start cannot be reached
  78  wrong configuration, a port in use, keys missing
""",
)
@click.version_option(__version__, message="credential-broker %(version)s")
@click.pass_context
def root(context: click.Context) -> None:
    """
    Keep agent identities, and hand out ready-made authorization headers.

    Callers name what a call is for (a scope) and which conversation it belongs to (a thread), and get the complete set
    of headers to attach. Keys, backend task ids and refresh tokens never leave the broker.

    `credential-broker COMMAND --help` explains a command, with examples that work beside a running
    `credential-broker dev`.
    """
    # https://no-color.org: any value but the empty one. Click itself only looks at whether a terminal is there.
    if os.environ.get("NO_COLOR"):  # noqa: TID251 - the terminal's setting, not one of the broker's
        context.color = False
