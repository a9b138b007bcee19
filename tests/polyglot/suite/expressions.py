"""What cases expect: Python expressions over saved answers and counters, and what to show when one is not true."""

import ast
import builtins
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

_BUILTINS: Final = {
    name: getattr(builtins, name)
    for name in (
        "abs", "all", "any", "bool", "dict", "enumerate", "float", "int", "len", "list", "max", "min", "range", "round",
        "set", "sorted", "str", "sum", "tuple", "zip",
    )
}  # fmt: skip
_OPTIONAL: Final = {
    "stale": False, "error": None, "last_error": None, "first_end_in": None, "retry_delay": None, "location": None,
    "reason_text": "", "metadata": {}, "reason": None, "code": None, "unsupported": False, "body": "",
}  # fmt: skip
"""Members of answers that drivers may leave out, and what that means."""
_SHOWN: Final = 300


class ExpressionError(Exception):
    """An expression cannot be evaluated, or is not true."""


class View:
    """
    A table of an answer, with its members as attributes.

    Args:
        name: what it is called in messages.
        table: the members.
    """

    def __init__(self, name: str, table: Mapping[str, Any]) -> None:
        self._name = name
        self._table = table

    def __getattr__(self, member: str) -> Any:
        if member.startswith("__"):
            raise AttributeError(member)
        if member in self._table:
            return viewed(f"{self._name}.{member}", self._table[member])
        if member in _OPTIONAL:
            return _OPTIONAL[member]
        raise ExpressionError(f"{self._name} has no {member}; it has {', '.join(self._table) or 'nothing'}")

    def __getitem__(self, member: str) -> Any:
        return viewed(f"{self._name}.{member}", self._table[member])

    def __contains__(self, member: object) -> bool:
        return member in self._table

    def __eq__(self, other: object) -> bool:
        return self._table == (other._table if isinstance(other, View) else other)

    def __hash__(self) -> int:
        return hash(repr(sorted(self._table.items())))

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        return repr(dict(self._table))


def viewed(name: str, value: Any) -> Any:
    """Return a value with tables as views, also inside lists."""
    if isinstance(value, Mapping):
        return View(name, value)
    if isinstance(value, list):
        return [viewed(f"{name}[{index}]", one) for index, one in enumerate(value)]
    return value


def names_in(expression: str) -> set[str]:
    """
    Return the names that an expression takes from outside: saved answers and functions, not builtins.

    Raises:
        ExpressionError: it is no expression.
    """
    # Words of a `for` and variables may stand in it before they are known.
    tree = _parsed(re.sub(r"\$[a-z][a-z0-9_]*", "0", expression))
    bound = {
        node.id
        for comprehension in ast.walk(tree)
        if isinstance(comprehension, ast.comprehension)
        for node in ast.walk(comprehension.target)
        if isinstance(node, ast.Name)
    }
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - bound - _BUILTINS.keys()


def evaluate(expression: str, names: Mapping[str, Any]) -> Any:
    """
    Return what an expression is.

    Raises:
        ExpressionError: it cannot be evaluated.
    """
    _parsed(expression)
    try:
        # Cases are files of this repository, not input.
        return eval(expression, {"__builtins__": _BUILTINS, **names})  # noqa: S307
    except ExpressionError:
        raise
    except Exception as error:
        raise ExpressionError(f"{expression}: {type(error).__name__}: {error}") from error


def explained(expression: str, names: Mapping[str, Any]) -> str:
    """Return an expression with the values of what stands in it, a line each."""
    tree = _parsed(expression)
    lines = [f"not so: {expression}"]
    seen: set[str] = set()
    for node in _telling(tree.body):
        text = ast.unparse(node)
        if text in seen:
            continue
        seen.add(text)
        try:
            value = repr(evaluate(text, names))
        except ExpressionError as error:
            value = f"({error})"
        lines.append(f"  {text} is {value if len(value) <= _SHOWN else value[:_SHOWN] + '...'}")
    return "\n".join(lines)


def replaced(text: str, variables: Mapping[str, str]) -> str:
    """Put variables (`$name`) into a text; a name that is none stays."""
    return re.sub(r"\$([a-z][a-z0-9_]*)", lambda match: variables.get(match[1], match[0]), text)


def _parsed(expression: str) -> ast.Expression:
    try:
        return ast.parse(expression.strip(), mode="eval")
    except SyntaxError as error:
        raise ExpressionError(f"{expression}: is no expression: {error.msg}") from error


def _telling(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the parts whose values tell why: calls and members, but not the builtins around them."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _BUILTINS:
        for argument in node.args:
            yield from _telling(argument)
    elif isinstance(node, ast.GeneratorExp | ast.ListComp | ast.SetComp | ast.DictComp):
        # What it binds has no value outside; what it goes over has.
        yield from _telling(node.generators[0].iter)
    elif isinstance(node, ast.Call | ast.Attribute | ast.Subscript | ast.Name):
        yield node
    else:
        for child in ast.iter_child_nodes(node):
            yield from _telling(child)
