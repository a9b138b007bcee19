"""The strict JSON reader."""

import pytest

from broker.strict_json import JsonProblem, StrictJsonError, parse_object

REFUSED = {
    b"": JsonProblem.SYNTAX,
    b" ": JsonProblem.SYNTAX,
    b"{": JsonProblem.SYNTAX,
    b"{}}": JsonProblem.SYNTAX,
    b"{} {}": JsonProblem.SYNTAX,
    b"{'a':1}": JsonProblem.SYNTAX,
    b'{"a":1,}': JsonProblem.SYNTAX,
    b'{"a":01}': JsonProblem.SYNTAX,
    b'{"a":.5}': JsonProblem.SYNTAX,
    b'{"a":+1}': JsonProblem.SYNTAX,
    b'{"a":"\n"}': JsonProblem.SYNTAX,
    b'{"a":"\\x"}': JsonProblem.SYNTAX,
    b'{"a":"unterminated}': JsonProblem.SYNTAX,
    b"{}//comment": JsonProblem.SYNTAX,
    b"\xef\xbb\xbf{}": JsonProblem.SYNTAX,
    b"{}\x00": JsonProblem.SYNTAX,
    b"[]": JsonProblem.NOT_AN_OBJECT,
    b"null": JsonProblem.NOT_AN_OBJECT,
    b'"{}"': JsonProblem.NOT_AN_OBJECT,
    b"1": JsonProblem.NOT_AN_OBJECT,
    b"\xff": JsonProblem.NOT_UTF8,
    b'{"a":"\xc0\xaf"}': JsonProblem.NOT_UTF8,
    b'{"a":"\xed\xa0\x80"}': JsonProblem.NOT_UTF8,
    "{}".encode("utf-16"): JsonProblem.NOT_UTF8,
    b'{"a":1,"a":1}': JsonProblem.DUPLICATE_NAME,
    b'{"a":1,"\\u0061":2}': JsonProblem.DUPLICATE_NAME,
    b'{"b":[{"a":1,"a":1}]}': JsonProblem.DUPLICATE_NAME,
    b'{"a":NaN}': JsonProblem.NUMBER,
    b'{"a":Infinity}': JsonProblem.NUMBER,
    b'{"a":-Infinity}': JsonProblem.NUMBER,
    b'{"a":1e999}': JsonProblem.NUMBER,
    b'{"a":-1e999}': JsonProblem.NUMBER,
    b'{"a":' + b"9" * 21 + b"}": JsonProblem.NUMBER,
    b'{"a":' + b"9" * 10_000 + b"}": JsonProblem.NUMBER,
    b'{"a":"\\ud800"}': JsonProblem.SURROGATE,
    b'{"\\udfff":1}': JsonProblem.SURROGATE,
    b'{"a":["\\udc00\\ud800"]}': JsonProblem.SURROGATE,
    b'{"a":' * 17 + b"1" + b"}" * 17: JsonProblem.TOO_DEEP,
    b'{"a":' + b"[" * 16 + b"]" * 16 + b"}": JsonProblem.TOO_DEEP,
    b"[" * 100_000: JsonProblem.TOO_DEEP,
    b'{"a":' * 100_000: JsonProblem.TOO_DEEP,
}


@pytest.mark.parametrize(("data", "problem"), REFUSED.items(), ids=range(len(REFUSED)))
def test_what_two_readers_could_read_differently_is_refused(data: bytes, problem: JsonProblem) -> None:
    """Each text is refused for its reason, and nothing that is raised holds a piece of it."""
    with pytest.raises(StrictJsonError) as refused:
        parse_object(data)
    assert refused.value.problem is problem
    assert (str(refused.value), refused.value.__context__) == (problem.value, None)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"{}", {}),
        (b' {"a" : [1, -2.5e3, true, null, "x"]}\n', {"a": [1, -2500.0, True, None, "x"]}),
        (b'{"a":"\\ud83d\\ude00","b":"\xf0\x9f\x98\x80"}', {"a": "\U0001f600", "b": "\U0001f600"}),
        (b'{"a":"[[[[[[[[[[[[[[[[[[[[[[[[[[[","b":"\\"{{{{{{{{{{{{{{{{{{"}', {"a": "[" * 27, "b": '"' + "{" * 18}),
        (b'{"a":' * 2 + b"[[]]" + b"}" * 2, {"a": {"a": [[]]}}),
        (b'{"a":9223372036854775807}', {"a": 2**63 - 1}),
        (b'{"a":{"x":1},"b":{"x":1}}', {"a": {"x": 1}, "b": {"x": 1}}),
        (b'{"a":"\\u0000\\\\ud800"}', {"a": "\x00\\ud800"}),
    ],
)
def test_plain_json_is_read(data: bytes, expected: object) -> None:
    """What the format allows and everybody reads the same way is accepted."""
    assert parse_object(data) == expected


def test_sixteen_levels_are_enough() -> None:
    """The limit itself is allowed."""
    assert parse_object(b'{"a":' * 16 + b"1" + b"}" * 16)
