"""
Reading the settings from TOML, the environment and the command line, with all problems told at once.

An unknown key is a problem, never ignored; so is an environment variable `CREDENTIAL_BROKER_<SECTION>__<KEY>` that
names no setting.
"""

import contextlib
import copy
import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from broker.config.sections import ScopeSection
from broker.config.settings import Config, ProblemsError
from broker.config.sources import SOURCE_SECTIONS
from broker.errors import StartupError

ENVIRONMENT_PREFIX: Final = "CREDENTIAL_BROKER_"
_KIND: Final = 2
"""Where in the location of a problem the kind of a source stands."""


def load_config(
    path: Path | None,
    environment: Mapping[str, str],
    *,
    dev: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """
    Read the settings: `overrides` (from the command line) before the environment before the file before the defaults.

    Raises:
        StartupError: exit code 78, naming every problem.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StartupError(f"{path}: there is no such file; --config names the configuration") from None
        except (OSError, UnicodeDecodeError) as error:
            raise StartupError(f"{path}: cannot be read: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise StartupError(f"{path}: is not TOML: {error}") from error
    problems, variables = _overlay_environment(values, environment)
    for section, settings in (overrides or {}).items():
        if isinstance(values.setdefault(section, {}), dict):  # else it is told below
            values[section].update(settings)
    if "dev" in values:
        problems.append("dev: is not a setting; dev mode is chosen on the command line")
        del values["dev"]
    try:
        config = Config(**values, dev=dev)
    except ValidationError as error:
        problems += _explain(error)
        problems += _problems_of_the_rest(values, error, dev=dev)
        raise StartupError(*(_naming_its_variable(problem, variables) for problem in problems)) from None
    if problems:
        raise StartupError(*problems)
    return config


def _overlay_environment(values: dict[str, Any], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """
    Write `CREDENTIAL_BROKER_<SECTION>__<KEY>` over `values`; a list or table is written as in TOML.

    Returns the problems, and which variable set which setting.
    """
    problems = []
    variables: dict[str, str] = {}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or "__" not in variable:
            continue
        *sections, key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        value: Any = text
        if text[:1] in ("[", "{"):
            # What is neither a list nor a table is a text that begins like one: an IPv6 address.
            with contextlib.suppress(tomllib.TOMLDecodeError):
                value = tomllib.loads(f"value = {text}")["value"]
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                problems.append(f"{variable}: {section} is not a section")
                break
        else:
            target[key] = value
            variables[".".join((*sections, key))] = variable
    return problems, variables


def _naming_its_variable(problem: str, variables: Mapping[str, str]) -> str:
    """Name the environment variable in a problem with what it set: in the file nobody would find it."""
    variable = variables.get(problem.partition(": ")[0])
    return problem if variable is None else f"{problem} (set by {variable})"


_WORDS: Final = {
    "missing": "is required",
    "string_type": "must be a text",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "is not of the form {pattern}",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "greater_than": "must be more than {gt:,.15g}",
    "greater_than_equal": "must be at least {ge:,.15g}",
    "less_than_equal": "must be at most {le:,.15g}",
}
"""What pydantic finds, by its name for it, in the words of a settings file; for the rest its own text is plain."""


def _explain(error: ValidationError) -> list[str]:
    problems: list[str] = []
    for detail in error.errors(include_url=False):
        place = ".".join(str(part) for part in _location(detail["loc"]))
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, ProblemsError):
            problems += cause.problems
        elif detail["type"] == "extra_forbidden":
            suggestion = _suggestion(detail["loc"], is_table=isinstance(detail["input"], dict))
            problems.append(f"{place}: there is no such setting{suggestion}")
        elif detail["type"].startswith("union_tag_"):
            problems.append(f"{place}.type: must be one of {', '.join(SOURCE_SECTIONS)}")
        else:
            words = _WORDS.get(detail["type"])
            problem = words.format(**detail.get("ctx", {})) if words else detail["msg"].removeprefix("Value error, ")
            problems.append(f"{place.removesuffix('.[key]')}: {problem}")
    return problems


def _problems_of_the_rest(values: dict[str, Any], error: ValidationError, *, dev: bool) -> list[str]:
    """Return what does not fit together among the settings that `error` does not name: that is looked at last."""
    rest = copy.deepcopy(values)
    for detail in error.errors(include_url=False):
        if not detail["loc"]:
            return []  # it was looked at
        _leave_out(rest, _location(detail["loc"]))
    try:
        Config(**rest, dev=dev)
    except ValidationError as second:
        causes = [detail.get("ctx", {}).get("error") for detail in second.errors(include_url=False)]
        if found := [problem for cause in causes if isinstance(cause, ProblemsError) for problem in cause.problems]:
            return found
        # Something that is required was wrong and is missing now: its table goes as well.
        return [] if rest == values else _problems_of_the_rest(rest, second, dev=dev)
    return []


def _location(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return where a problem is in the file: pydantic names the kind of a bearer source behind the source's name."""
    if location[:1] == ("bearer_sources",) and len(location) > _KIND and location[_KIND] in SOURCE_SECTIONS:
        return (*location[:_KIND], *location[_KIND + 1 :])
    return location


def _leave_out(values: dict[str, Any], location: tuple[int | str, ...]) -> None:
    """Remove the setting at `location`; where something is missing there, the table that misses it."""
    way: list[tuple[dict[Any, Any], int | str]] = []
    table: Any = values
    for part in location:
        if not isinstance(table, dict) or part not in table:
            break
        way.append((table, part))
        table = table[part]
    if way and len(way) >= len(location) - 1:  # else that table was left out for another problem
        holder, key = way[-1]
        del holder[key]


def _suggestion(location: tuple[int | str, ...], *, is_table: bool) -> str:
    """Offer the setting that was probably meant."""
    model: Any = Config
    if location != _location(location):
        model, location = SOURCE_SECTIONS[str(location[_KIND])], location[_KIND:]
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(str(part))
        annotation = field.annotation if field else model
        model = next(
            (
                candidate
                for candidate in (annotation, *getattr(annotation, "__args__", ()))
                if isinstance(candidate, type) and issubclass(candidate, BaseModel)
            ),
            model,
        )
    if is_table and model is ScopeSection:
        name = ".".join(str(part) for part in location[1:])
        return f'; the name of a scope is quoted: [scopes."{name}"]'
    known = [name for name, field in getattr(model, "model_fields", {}).items() if not field.exclude]
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
