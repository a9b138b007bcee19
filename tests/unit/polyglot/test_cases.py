"""The cases as data: enough of them, each able to run and to fail, and each reason of the broker among them."""

import re
from collections import Counter

import pytest
from credentialbroker.v1 import error_reason_pb2

from broker.rpc.status import CODES
from tests.polyglot.suite.cases import EVIDENCE, Case, load, walk

CASES = load()
GROUPS = frozenset(
    {"connect", "deadline", "cache", "flight", "refresh", "expiry", "bounds", "watch", "withdrawal", "away", "errors",
     "rejection", "http", "grpc", "connection", "identities", "tasks", "secrets", "close"}
)  # fmt: skip
MOST_SECONDS_OF_WAITING = 16.0
COUNTED_SECONDS_OF_WAITING = 1.5
"""Cases of this lane run one after the other, so a wait of one is a wait of all."""
IDLE_SECONDS_OF_WAITING = 85.0
"""Cases of this lane wait for timers of a minute and more, beside all others: a run takes longer than that anyway."""


def waits(case: Case) -> float:
    """Return how long a case waits on purpose, in seconds."""
    steps = [step for step in walk(case.steps) if "do" not in step]
    return sum(step.get("wait", 0) + (step["seconds"] if "stays" in step else 0) for step in steps)


def test_there_are_enough_in_every_group() -> None:
    """At least eighty, in all groups that a defect is put into each client for."""
    assert len(CASES) >= 80
    assert {case.group for case in CASES} == GROUPS


def test_each_covers_something_of_its_own() -> None:
    """No two cases have the same behaviour or catch the same defect."""
    for told in ([case.behaviour for case in CASES], [case.catches for case in CASES]):
        assert [text for text, times in Counter(told).items() if times > 1] == []
    assert [case.name for case in CASES if not case.behaviour.endswith(".") or case.catches.endswith(".")] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_looks_at_what_the_other_side_saw(case: Case) -> None:
    """A client that says what is wished for and does something else must not pass."""
    verified = any(step.get("world") == "verify" for step in walk(case.steps))
    assert case.functions & EVIDENCE or verified


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_is_quick(case: Case) -> None:
    """Waits are short, and shortest where others wait behind them."""
    most = {"counted": COUNTED_SECONDS_OF_WAITING, "idle": IDLE_SECONDS_OF_WAITING}
    assert waits(case) <= most.get(case.lane, MOST_SECONDS_OF_WAITING)


def test_cases_of_adapters_name_theirs() -> None:
    """One that is run for each adapter and uses none would prove nothing of them."""
    assert [case.name for case in CASES if (case.adapters is not None) != ("adapter" in case.variables)] == []


def test_every_reason_is_tried_with_its_code() -> None:
    """The list in the case is the enum, and the codes are those of the broker's table."""
    (case,) = [case for case in CASES if case.name == "errors-every-reason"]
    tried = {
        (word, step["steps"][0]["fails"]["code"])
        for step in case.steps
        if "for" in step and "join" in step["steps"][0]
        for word in step["in"]
    }
    assert tried == {(outcome.reason, code.name) for outcome, code in CODES.items()}
    enum = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}
    assert {word for word, _ in tried} == enum


def test_names_begin_with_their_group_so_that_patterns_find_them() -> None:
    """Except those of retries, which are part of calling."""
    begin = {"deadline": ("deadline", "retry")}
    odd = [case.name for case in CASES if not re.match("|".join(begin.get(case.group, (case.group,))), case.name)]
    assert odd == []
