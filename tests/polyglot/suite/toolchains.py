"""Which languages are asked for, and which of them can be built on this machine."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tests.polyglot.languages import NAMES, Language, language

VARIABLE: Final = "LANGS"
"""Names of languages, apart by spaces or commas; unset or empty: all. `make test LANGS="go rust"` sets it."""


class UnknownLanguageError(Exception):
    """A name is not that of a language."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A language that is asked for and cannot be built here, and why."""

    name: str
    reason: str


def wanted(text: str | None = None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """
    Return the names that are asked for, in the order of the matrix.

    Args:
        text: names; None takes them from `LANGS`.
        environment: where `LANGS` is looked for.

    Raises:
        UnknownLanguageError: naming what is not a language.
    """
    given = environment.get(VARIABLE, "") if text is None else text
    names = given.replace(",", " ").split()
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise UnknownLanguageError(f"no language {', '.join(unknown)}; there are: {', '.join(NAMES)}")
    return tuple(name for name in NAMES if name in names or not names)


def in_ci(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether what is missing is a failure here."""
    return environment.get("CI", "") == "true"


def missing_reason(name: str) -> str | None:
    """Say why a language cannot be built here; None when it can."""
    if importlib.util.find_spec(f"tests.polyglot.languages.{name}") is None:
        return "it has no description in tests/polyglot/languages"
    absent = [program for program in language(name).programs if shutil.which(program) is None]
    return f"{', '.join(absent)} is not installed" if absent else None


def present(names: tuple[str, ...]) -> tuple[list[Language], list[Missing]]:
    """Part languages into those that can be built here and those that cannot."""
    missing = [Missing(name, reason) for name in names if (reason := missing_reason(name)) is not None]
    absent = {one.name for one in missing}
    return [language(name) for name in names if name not in absent], missing


def run_for_wanted(work: Callable[[list[Language]], bool]) -> int:
    """
    Do something for the languages that are asked for by `LANGS`, and tell of those that cannot be built here.

    Args:
        work: takes the languages; says whether all went well.

    Returns:
        The exit code: 0 when all went well, 1 when not, or when a language is missing in CI, 2 when there is no such language.
    """
    try:
        languages, missing = present(wanted())
    except UnknownLanguageError as error:
        print(error, file=sys.stderr)
        return 2
    well = work(languages)
    for one in missing:
        print(f"{one.name:12}skipped: {one.reason}")
    return 0 if well and not (missing and in_ci()) else 1
