# ruff: noqa: INP001 - a script beside the page that it writes, not a package
"""
Writes docs/configuration.md from broker/config/, or checks that it is current.

    python docs/build_configuration.py            write
    python docs/build_configuration.py --check    write nothing; exit 1 where the page is not what the settings give

The meaning of a setting is the text below it in `broker/config/`; one without a text is an error.
"""

import ast
import inspect
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from broker import config
from broker.config import Config
from broker.profiles import PRESETS

PAGE: Final = Path(__file__).with_name("configuration.md")
_HEAD: Final = """\
# Configuration

<!-- Written by docs/build_configuration.py from broker/config/; change it there. -->

The broker runs without any configuration; `deploy/broker.toml` is a commented example to start from.

- **One file, TOML**, named by `--config` or `CREDENTIAL_BROKER_CONFIG`. It is read once, at the start.
- **Each key can be set in the environment** as `CREDENTIAL_BROKER_<SECTION>__<KEY>`, in capitals, with two underscores
  between the parts: `CREDENTIAL_BROKER_LOG__LEVEL=debug`, `CREDENTIAL_BROKER_BACKENDS__DEFAULT__PROFILE=codex-2026-05`.
  A list or a table is written as in TOML: `CREDENTIAL_BROKER_LISTEN__CALLERS='["unix:///run/broker/callers.sock"]'`.
  Names with a dot or a dash (`control_plane.models`) cannot be part of a variable's name; set those in the file.
- **What wins:** the command line (`--state-dir`), then the environment, then the file, then the default.
- **Nothing is ignored.** An unknown key, an unknown variable with `__`, or a value that does not fit is an error; all
  of them are told at once, with exit code 78. `credential-broker check-config` looks without starting anything.
- **No secret stands here.** The configuration names the files that secrets are read from.

Durations are seconds. "unset" is what a key is when it is not there. A section written `[backends.NAME]` may be there
several times, each under a name of its own (lower case letters, digits, `.`, `_` and `-`); without any
`[backends.NAME]` there is one backend `default` with the defaults below.
"""


def page() -> str:
    """Return the whole page."""
    parts = [_HEAD]
    for name, field in Config.model_fields.items():
        if field.exclude:
            continue
        path = f"{name}.NAME" if _is_table_of(field.annotation) else name
        for model in _models_of(field.annotation):
            parts += _section(model, path)
    return "\n".join(parts)


def _section(model: type[BaseModel], path: str) -> Iterator[str]:
    nested: list[tuple[type[BaseModel], str]] = []
    rows = []
    meanings = _texts_below(model)
    own = inspect.get_annotations(model)
    for key, field in sorted(model.model_fields.items(), key=lambda item: item[0] not in own):
        if not meanings.get(key):
            message = f"{path}.{key} has no text below it in broker/config/"
            raise SystemExit(message)
        if (inner := _model_of(field.annotation)) is not None:
            nested.append((inner, f"{path}.{key}"))
            rows.append((f"`{key}`", "table", "unset", meanings[key]))
        else:
            schema = model.model_json_schema(mode="validation")["properties"][key]
            definitions = model.model_json_schema(mode="validation").get("$defs", {})
            rows.append((f"`{key}`", _type(schema, definitions), _default(field), _meaning(path, key, meanings[key])))
    yield f"## `[{path}]`{_kind(model)}\n"
    yield f"{' '.join((model.__doc__ or '').split())}\n"
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    yield from (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    yield ""
    for inner, inner_path in nested:
        yield from _section(inner, inner_path)


def _kind(model: type[BaseModel]) -> str:
    """Return what tells this section from the others of its name, if there are others."""
    field = model.model_fields.get("type")
    return "" if field is None else f', `type = "{get_args(field.annotation)[0]}"`'


def _meaning(path: str, key: str, text: str) -> str:
    if (path, key) == ("backends.NAME", "profile"):
        return f"{text} One of {', '.join(f'`{name}`' for name in PRESETS)}."
    return text


def _texts_below(model: type[BaseModel]) -> dict[str, str]:
    """Return the text that stands below each field in the source, of the section or of one that it is made from."""
    classes = {
        node.name: node
        for module in Path(config.__file__).parent.glob("*.py")
        for node in ast.parse(module.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    texts = {}
    for one in reversed(model.__mro__):
        found = classes[one.__name__].body if one.__name__ in classes else []
        for field, below in itertools.pairwise(found):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                texts[field.target.id] = " ".join(str(below.value.value).split()) if is_text else ""
    return texts


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that an annotation holds, if it holds one."""
    return next(_models_of(annotation), None)


def _models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Return the sections that an annotation holds: several where their `type` tells which it is."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_of(argument)


def _is_table_of(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is dict


def _type(schema: dict[str, Any], definitions: dict[str, Any]) -> str:  # noqa: PLR0911 - a table
    if "$ref" in schema:
        return _type(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " or ".join(_type(one, definitions) for one in schema["anyOf"] if one.get("type") != "null")
    if "const" in schema:
        return f'`"{schema["const"]}"`'
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    match schema["type"]:
        case "array":
            return "list of texts"
        case "object":
            return "table of true or false"
        case "boolean":
            return "true or false"
        case "integer" | "number":
            return _number(schema)
        case _:
            return "path" if schema.get("format") == "path" else "text"


def _number(schema: dict[str, Any]) -> str:
    word = "whole number" if schema["type"] == "integer" else "number"
    lowest = _plain(schema["minimum"]) if "minimum" in schema else f"more than {_plain(schema['exclusiveMinimum'])}"
    return f"{word}, {lowest} to {_plain(schema['maximum'])}"


def _plain(number: float) -> str:
    return f"{number:,}".removesuffix(".0")


def _default(field: FieldInfo) -> str:  # noqa: PLR0911 - a table
    if field.is_required():
        return "required"
    match field.default:
        case None:
            return "unset"
        case bool():
            return f"`{str(field.default).lower()}`"
        case tuple():
            return f"`[{', '.join(_quoted(item) for item in field.default)}]`"
        case dict():
            return "`{}`"
        case float():
            return f"`{field.default!r}`".replace(".0`", "`")
        case int():
            return f"`{field.default}`"
        case _:
            return f"`{_quoted(field.default)}`"


def _quoted(text: object) -> str:
    return f'"{text}"'


def main() -> int:
    """Write the page, or say whether it is current."""
    wanted = page()
    if sys.argv[1:] == ["--check"]:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == wanted:
            return 0
        print(f"{PAGE}: is not current; run python docs/build_configuration.py", file=sys.stderr)  # noqa: T201
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
