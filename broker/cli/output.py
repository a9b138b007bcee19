"""
How answers are shown: the proto's own JSON for programs, tables for people.

JSON is one document with the proto's field names in snake_case; fields that are not set stand with their default, so
that a program can rely on them. Enums are their bare words (`ACTIVE`, not `IDENTITY_STATE_ACTIVE`), as everywhere in
the broker. Tables have rules and colours on a terminal and are plain aligned columns elsewhere.
"""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

if TYPE_CHECKING:
    from rich.table import Table

# What generated messages have as descriptors is of the C extension, which has the same attributes and other types.
Descriptor = Any
EnumDescriptor = Any

_WORD_BEGINS: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def bare_word(enum: EnumDescriptor, number: int) -> str:
    """Return the name of an enum's value without its prefix; the number, where a newer broker knows more values."""
    value = enum.values_by_number.get(number)
    return str(number) if value is None else str(value.name).removeprefix(_prefix(enum))


def number_of(enum: EnumDescriptor, word: str) -> int:
    """Return the number of an enum's value from its bare word."""
    number: int = enum.values_by_name[_prefix(enum) + word].number
    return number


def words_of(enum: EnumDescriptor) -> list[str]:
    """Return the bare words of an enum that may be asked for: all but UNSPECIFIED."""
    return [bare_word(enum, value.number) for value in enum.values if value.number]


def _prefix(enum: EnumDescriptor) -> str:
    return f"{_WORD_BEGINS.sub('_', enum.name).upper()}_"


def word(message: Message, field: str) -> str:
    """Return an enum field of a message as its bare word; empty where it is unspecified."""
    descriptor = message.DESCRIPTOR.fields_by_name[field]
    number = getattr(message, field)
    return bare_word(descriptor.enum_type, number) if number else ""


def document_of(message: Message) -> dict[str, Any]:
    """Return a message as its JSON document."""
    document = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    _bare_enums(document, message.DESCRIPTOR)
    return document


def _bare_enums(document: dict[str, Any], descriptor: Descriptor) -> None:
    for field in descriptor.fields:
        value = document.get(field.name)
        if value is None:
            continue
        values = value if field.is_repeated else [value]
        if field.type == FieldDescriptor.TYPE_ENUM:
            words = [_bare(field.enum_type, name) for name in values]
            document[field.name] = words if field.is_repeated else words[0]
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for nested in values:
                if isinstance(nested, dict):
                    _bare_enums(nested, field.message_type)


def _bare(enum: EnumDescriptor, name: str | int) -> str | int:
    return name if isinstance(name, int) else name.removeprefix(_prefix(enum))


def echo_json(document: dict[str, Any] | Message, *, err: bool = False) -> None:
    """Print one document, ASCII only, so that nothing in it can speak to a terminal."""
    shown = document_of(document) if isinstance(document, Message) else document
    click.echo(json.dumps(shown, indent=2), err=err)


def echo_line(document: dict[str, Any] | Message) -> None:
    """Print one document on one line: of a stream of them a program reads one after the other."""
    shown = document_of(document) if isinstance(document, Message) else document
    click.echo(json.dumps(shown))
    sys.stdout.flush()


def show_time(timestamp: Timestamp) -> str:
    """Return a point in time in UTC, to the second; `-` where it is not set."""
    if not (timestamp.seconds or timestamp.nanos):
        return "-"
    return datetime.fromtimestamp(timestamp.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def show_seconds(seconds: float) -> str:
    """Return a span in the unit a person would choose."""
    sign, seconds = ("-" if seconds < 0 else ""), abs(seconds)
    for size, unit, part, part_size in ((86400, "d", "h", 3600), (3600, "h", "m", 60), (60, "m", "s", 1)):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            return f"{sign}{whole}{unit}" + (f" {rest // part_size}{part}" if rest >= part_size else "")
    if not seconds or seconds >= 1:
        return f"{sign}{seconds:.0f}s"
    return f"{sign}{max(1, round(1000 * seconds))}ms"


def printable(text: str) -> str:
    """Return a text with every character replaced that a terminal would act on or hide."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def echo_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str = "nothing to show") -> None:
    """Print a table; `empty` goes to standard error where there are no rows."""
    cells = [[printable(cell) or "-" for cell in row] for row in rows]
    if not cells:
        click.echo(empty, err=True)
        return
    if not sys.stdout.isatty():
        widths = [max(len(cell) for cell in column) for column in zip(head, *cells, strict=True)]
        for line in (head, *cells):
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return
    _print_rich_table(head, cells)


def echo_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values of one thing, without those that are empty."""
    shown = [(name, printable(value)) for name, value in fields if value not in ("", "-")]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{click.style(name.ljust(width), dim=True)}  {value}")


def _print_rich_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # Only here: nothing but a terminal pays for it.
    from rich.console import Console  # noqa: PLC0415

    Console(highlight=False).print(table_of(head, rows))


def table_of(head: Sequence[str], rows: Iterable[Sequence[str]]) -> "Table":
    """Return a table for a terminal; the cells must be printable."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(head):
        # The first column names the thing, and is copied into the next command: it stays on one line.
        table.add_column(name, overflow="fold", no_wrap=number == 0)
    for row in rows:
        # As Text, because a plain string could hold markup of rich.
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    return table


_STYLES: Final = {
    **dict.fromkeys(("ACTIVE", "SERVING", "LIVE", "AGENT_ASSERTION", "verified"), "green"),
    **dict.fromkeys(("DISABLED", "REJECTED", "REAUTH_REQUIRED", "DELETED", "REVOKED", "refused"), "red"),
    **dict.fromkeys(("REGISTERING", "ROTATING", "CLAIMED", "ORPHANED", "WARMING_UP", "OFFLINE", "DRAINING"), "yellow"),
    **dict.fromkeys(("REFRESHING", "REFRESH_FAILING", "ABSENT"), "yellow"),
}
