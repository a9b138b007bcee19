"""
JSON from strangers, read the one way that leaves nothing open.

Pure. Python's reader takes `NaN`, lets the last of two equal names win, turns `1e999` into infinity and recurses as
deep as its input says; two programs that read such a text differently can be played against each other. Here all of
that is refused. No exception text or chain holds a piece of the input, which may be secret.
"""

import json
import math
import re
from enum import StrEnum
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 16

_STRING_OR_BRACKET: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]|[\]}]', re.DOTALL)
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")


class JsonProblem(StrEnum):
    """Why a text was refused; constant texts that are safe to show and to log."""

    NOT_UTF8 = "it is not UTF-8"
    TOO_DEEP = "it is nested deeper than 16 levels"
    SYNTAX = "it is not JSON"
    DUPLICATE_NAME = "a name stands twice in one object"
    NUMBER = "a number is not finite or too long"
    SURROGATE = "a string holds half of a surrogate pair"
    NOT_AN_OBJECT = "it is not a JSON object"


class StrictJsonError(ValueError):
    """A text that is not strict JSON; the text of the error is a constant."""

    def __init__(self, problem: JsonProblem) -> None:
        super().__init__(problem.value)
        self.problem: Final = problem


def parse_object(data: bytes) -> dict[str, Any]:
    """
    Read a JSON object from UTF-8 bytes.

    Raises:
        StrictJsonError: anything but one object of strict JSON (RFC 8259, names unique, finite numbers, at most 16
            levels), a byte order mark included.
    """
    result = _parse(data)
    if isinstance(result, JsonProblem):
        # Raised here, outside of any except clause, so that no decoder error with the input in it is chained.
        raise StrictJsonError(result)
    if not isinstance(result, dict):
        raise StrictJsonError(JsonProblem.NOT_AN_OBJECT)
    return result


def _parse(data: bytes) -> Any:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return JsonProblem.NOT_UTF8
    if _depth(text) > MAX_DEPTH:
        return JsonProblem.TOO_DEEP
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_number,
            parse_float=_finite,
            parse_int=_bounded,
        )
    except StrictJsonError as error:
        return error.problem
    except (ValueError, RecursionError):
        return JsonProblem.SYNTAX
    if _SURROGATE_ESCAPE.search(text) is not None and not _is_encodable(value):
        return JsonProblem.SURROGATE
    return value


def _depth(text: str) -> int:
    depth = deepest = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        if token[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token[0] in "]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise StrictJsonError(JsonProblem.DUPLICATE_NAME)
    return members


def _refuse_number(_: str) -> NoReturn:
    raise StrictJsonError(JsonProblem.NUMBER)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise StrictJsonError(JsonProblem.NUMBER)
    return number


def _bounded(text: str) -> int:
    # Python's own limit (4,300 digits) is about time; no field here has any use for more than 64 bits.
    if len(text) > len("-9223372036854775808"):
        raise StrictJsonError(JsonProblem.NUMBER)
    return int(text)


def _is_encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
