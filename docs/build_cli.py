# ruff: noqa: INP001 - a script beside the page that it writes, not a package
"""
Writes docs/cli.md from the commands' own help, or checks that it is current.

    python docs/build_cli.py            write
    python docs/build_cli.py --check    write nothing; exit 1 where the page is not what the help gives
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from broker.cli import SECTIONS, root

PAGE: Final = Path(__file__).with_name("cli.md")
PROGRAM: Final = "credential-broker"
_WIDTH: Final = 100
_HEAD: Final = """\
# The command line

<!-- Written by docs/build_cli.py from the commands' help; change it there. -->

Every command explains itself with `--help`, and its examples work beside a running `credential-broker dev`.

- **Addresses.** Callers' commands go to `dns:///127.0.0.1:50051`, or to `--address` or `CREDENTIAL_BROKER_ADDRESS`;
  operators' commands to `127.0.0.1:50052`, or to `--admin-address` or `CREDENTIAL_BROKER_ADMIN_ADDRESS`. Both also take
  `unix:///PATH`.
- **Output.** Tables with colours on a terminal (`NO_COLOR` is honoured), plain aligned columns through a pipe, and with
  `--format json` one document: the API's own JSON with snake_case names, every field present, enums as bare words
  (`ACTIVE`, not `IDENTITY_STATE_ACTIVE`).
- **Secrets** enter by file or standard input (`--token-file PATH`, `--token-file -`) and never as an argument, which
  stands in process lists and in the shell's history. Only `get` prints one: that is what it is for.
- **Failures** are told on standard error: the reason, which field, what to do next. With `--format json` they are one
  document `{"error": {...}}`; programs switch on `reason`.
- **Exit codes.** 0: done, also `serve`, `dev` and `emulator` ended by Ctrl-C. 1: failed. 2: not a command line that
  exists. 69: something needed at start cannot be reached. 78: wrong configuration, a port in use, keys missing.
"""


def page() -> str:
    """Return the whole page."""
    parts = [_HEAD]
    settings = {**root.context_settings, "max_content_width": _WIDTH}
    outermost = click.Context(root, info_name=PROGRAM, terminal_width=_WIDTH, **settings)
    for title, section in SECTIONS.items():
        rows = [f"| [`{name}`](#{PROGRAM}-{name}) | {lazy.summary} |" for name, lazy in section.items()]
        parts.append("\n".join((f"## {title}", "", "| command | does |", "|---|---|", *rows, "")))
        for name in section:
            parts += _help_of(root.commands[name], name, outermost)
    return "\n".join(parts)


def _help_of(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=_WIDTH, max_content_width=_WIDTH)
    shown = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield f"### {context.command_path}\n\n```text\n{shown}\n```\n"
    if isinstance(command, click.Group):
        for nested in command.list_commands(context):
            yield from _help_of(command.commands[nested], nested, context)


def main(arguments: list[str]) -> int:
    """Write or check the page; return the exit code."""
    current = page()
    if arguments == ["--check"]:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == current:
            return 0
        sys.stderr.write("docs/cli.md is not current; run: python docs/build_cli.py\n")
        return 1
    PAGE.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
