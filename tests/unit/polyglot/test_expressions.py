"""Expressions of cases: what they may name, and that a failed one shows why."""

import pytest

from tests.polyglot.suite.expressions import ExpressionError, View, evaluate, explained, names_in, replaced, viewed


def test_members_of_an_answer_are_attributes() -> None:
    """Also in lists and below; what drivers may leave out has its meaning."""
    answer = viewed("many", {"results": [{"revision": "r1"}, {"error": {"reason": "TASK_ENDED"}}]})
    assert evaluate("[one.error and one.error.reason for one in many.results]", {"many": answer}) == [
        None,
        "TASK_ENDED",
    ]


def test_a_misspelt_member_is_an_error_and_no_silent_none() -> None:
    """It names what there is."""
    with pytest.raises(ExpressionError, match="first has no revison; it has revision"):
        evaluate("first.revison == 'r1'", {"first": View("first", {"revision": "r1"})})


def test_a_failed_one_shows_the_values_in_it() -> None:
    """Calls and members with what they are, also inside builtins and of what a comprehension goes over; each once."""
    names = {"calls": (lambda *_: 2), "first": View("first", {"headers": ["a", "b"], "revision": "r1"})}
    expression = "calls('X') == 1 and len(first.headers) == 3 and all(one > 'a' for one in first.headers)"
    assert explained(expression, names).splitlines() == [
        f"not so: {expression}",
        "  calls('X') is 2",
        "  first.headers is ['a', 'b']",
    ]


def test_names_from_outside() -> None:
    """Neither builtins nor what a comprehension binds; a variable or the word of a `for` is none, and no mistake."""
    assert names_in("len([x for x in first.results if x > low]) == $count") == {"first", "low"}


@pytest.mark.parametrize("expression", ["1 +", "first = 2", "import os"])
def test_no_expression(expression: str) -> None:
    """Is told as such."""
    with pytest.raises(ExpressionError, match="is no expression"):
        names_in(expression)


def test_what_raises_is_told_with_the_expression() -> None:
    """Whatever it is."""
    with pytest.raises(ExpressionError, match=r"results\[3\] == 1: IndexError"):
        evaluate("results[3] == 1", {"results": []})


def test_variables() -> None:
    """The longest name counts, and what is none stays."""
    assert replaced("$thread2/$thread $5 $unknown", {"thread": "a", "thread2": "b"}) == "b/a $5 $unknown"
