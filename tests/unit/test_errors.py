"""The outcomes: one class a reason, constant texts, and nothing that could carry a secret to a caller."""

import re

import pytest

from broker import errors
from broker.errors import BrokerError, StartupError


def every_outcome() -> list[type[BrokerError]]:
    """List every class of an outcome, children of children too."""
    found, waiting = [], [BrokerError]
    while waiting:
        for child in waiting.pop().__subclasses__():
            if child.__module__ == errors.__name__:
                found.append(child)
                waiting.append(child)
    return found


@pytest.mark.parametrize("outcome", every_outcome())
def test_an_outcome_has_a_reason_and_a_constant_text(outcome: type[BrokerError]) -> None:
    """The reason is one word in capitals and the text one line that names no value."""
    assert re.fullmatch(r"[A-Z][A-Z_]*[A-Z]", outcome.reason)
    assert outcome.text
    assert "\n" not in outcome.text
    assert "{" not in outcome.text
    assert outcome.__name__ == "".join(word.title() for word in outcome.reason.split("_")) + "Error"


def test_no_two_outcomes_share_a_reason() -> None:
    """A reason names one class."""
    reasons = [outcome.reason for outcome in every_outcome()]
    assert len(set(reasons)) == len(reasons) > 40


@pytest.mark.parametrize("outcome", every_outcome())
def test_the_note_stays_inside(outcome: type[BrokerError]) -> None:
    """What is noted for the log stands in no text of the exception; what is said of fields does."""
    error = outcome(note="hunter2", violations={"scope": "is unknown"}, metadata={"k": "v"}, retry_after=2.0)
    assert "hunter2" not in str(error) + repr(error)
    assert str(error) == f"{outcome.reason}: {outcome.text}; scope: is unknown"
    assert (error.note, error.metadata, error.retry_after) == ("hunter2", {"k": "v"}, 2.0)


def test_what_is_given_is_copied() -> None:
    """An outcome does not change when the dictionary it was made from does."""
    violations = {"scope": "is unknown"}
    error = errors.FieldInvalidError(violations=violations)
    violations.clear()
    assert error.violations == {"scope": "is unknown"}


def test_a_startup_error_tells_every_problem() -> None:
    """All problems stand in the error, with the exit code of a wrong configuration unless another is given."""
    error = StartupError("one is wrong", "two is wrong")
    assert error.problems == ("one is wrong", "two is wrong")
    assert (str(error), error.exit_code) == ("one is wrong; two is wrong", 78)
    assert StartupError("away", exit_code=69).exit_code == 69
