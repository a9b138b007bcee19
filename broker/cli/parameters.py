"""What people type: types of options that are more than a word, and the one way secrets come in."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click

_MOST_SECRET_BYTES: Final = 65_536
"""More than any secret the API takes; a wrong file is refused here rather than sent."""

_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)?")
_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

Function = TypeVar("Function", bound=Callable[..., Any])


class Duration(click.ParamType[float]):
    """Seconds, written `30`, `30s`, `500ms`, `5m` or `1h`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        if isinstance(value, int | float):
            return float(value)
        match = _DURATION.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is not a duration; write 30s, 500ms, 5m or 1h", param, ctx)
        return float(match[1]) * _UNIT_SECONDS[match[2] or "s"]


class Moment(click.ParamType[datetime]):
    """A point in time, written as in RFC 3339 with its zone: `2027-01-31T12:00:00Z`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the time with its zone."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            self.fail(f"{value!r} is not a time with its zone; write 2027-01-31T12:00:00Z", param, ctx)
        return moment


class Address(click.ParamType[str]):
    """Where a broker listens, as gRPC names it: `dns:///HOST:PORT`, `HOST:PORT` or `unix:///PATH`."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the address."""
        if re.match(r"https?://", value):
            self.fail(f"{value!r} is a web address; write dns:///HOST:PORT, HOST:PORT or unix:///PATH", param, ctx)
        if not value.startswith("unix:") and not re.search(r":\d+$", value):
            self.fail(f"{value!r} names no port; write dns:///HOST:PORT, HOST:PORT or unix:///PATH", param, ctx)
        return str(value)


@dataclass(frozen=True, slots=True)
class Secret:
    """What a secret file held, without the line end; never shown."""

    content: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """
        The secret as text.

        Raises:
            click.UsageError: it is not ASCII.
        """
        try:
            return self.content.decode("ascii")
        except UnicodeDecodeError:
            raise click.UsageError("the secret holds characters that are not ASCII; is it the right file?") from None


class SecretFile(click.ParamType[Secret]):
    """
    A file that holds a secret, or `-` for standard input.

    The secret itself is never an argument: arguments stand in process lists and shell histories. What is typed here is
    therefore never repeated in an error either.
    """

    name = "path"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Show that `-` is possible."""
        _ = param, ctx
        return "PATH|-"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Secret:
        """Read the secret."""
        if isinstance(value, Secret):
            return value
        try:
            content = _read_standard_input() if value == "-" else _read_file(Path(value))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self.fail(
                f"cannot be read: {reason}. A path is expected here, or - for standard input; never the secret itself,"
                " because arguments stand in process lists and in the shell's history (if you just typed one, replace"
                " it)",
                param,
                ctx,
            )
        if not content:
            self.fail("is empty", param, ctx)
        return Secret(content)


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return _bounded(file.read(_MOST_SECRET_BYTES + 1))


def _read_standard_input() -> bytes:
    if sys.stdin.isatty():
        typed: str = click.prompt("secret", hide_input=True, err=True)
        return typed.encode()
    return _bounded(sys.stdin.buffer.read(_MOST_SECRET_BYTES + 1))


def _bounded(content: bytes) -> bytes:
    if len(content) > _MOST_SECRET_BYTES:
        raise ValueError(f"it holds more than {_MOST_SECRET_BYTES} bytes")
    return content.strip()


def refuse_typed_secrets(instead: Mapping[str, str]) -> Callable[[Function], Function]:
    """
    Answer options that would take a secret as an argument with what to use instead.

    Args:
        instead: the refused option to the option that takes a file.
    """

    def refuse(_context: click.Context, param: click.Parameter, value: str | None) -> None:
        if value is not None:
            refused = param.opts[0]
            raise click.UsageError(
                f"{refused} does not exist: secrets are read from a file or standard input and never taken as an"
                " argument, which stands in process lists and in the shell's history (replace the one you typed). Use"
                f" {instead[refused]} PATH, or {instead[refused]} - for standard input."
            )

    def decorate(function: Function) -> Function:
        decorated: Any = function
        for option in instead:
            decorated = click.option(option, hidden=True, expose_value=False, callback=refuse)(decorated)
        refusing: Function = decorated
        return refusing

    return decorate
