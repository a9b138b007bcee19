"""What is held against registrations: for how long, for whom, and what clears it."""

import random
from dataclasses import replace

import pytest

from broker import errors, troubles
from broker.model import UpstreamKey
from broker.policy import TaskFact
from broker.troubles import Troubles
from tests.support.stores import agent_identity

ONE, TWO = UpstreamKey("one"), UpstreamKey("two")
DOWN = (TaskFact.COOLING_DOWN, errors.BackendDownError())
REFUSED = (TaskFact.REFUSED, errors.IdentityRejectedError())


@pytest.fixture
def known() -> Troubles:
    """Nothing held against anybody."""
    return Troubles(random.Random(1))


def test_a_transient_failure_is_held_against_its_own_task(known: Troubles) -> None:
    """Another upstream task of the identity may be registered meanwhile; after the wait this one too."""
    agent = agent_identity()
    noted = known.note(agent, ONE, *DOWN, now=100.0, status=503)
    assert known.of(agent, ONE, now=100.0) is noted
    assert (noted.fact, noted.outcome, noted.status) == (TaskFact.COOLING_DOWN, errors.BackendDownError, 503)
    assert known.of(agent, TWO, now=100.0) is None
    assert known.of(agent, ONE, now=noted.until) is None


def test_a_refusal_is_held_against_the_whole_identity(known: Troubles) -> None:
    """But not against another identity, nor against this one with another key."""
    agent = agent_identity()
    noted = known.note(agent, ONE, *REFUSED, now=100.0)
    assert known.of(agent, TWO, now=159.9) is noted
    assert known.of(agent_identity("other"), ONE, now=100.0) is None
    assert known.of(replace(agent, generation=2), ONE, now=100.0) is None


def test_a_row_that_was_written_since_clears_it(known: Troubles) -> None:
    """The next failure of the changed identity counts as the first; one told late of the old row is not held."""
    agent = agent_identity()
    for now in (100.0, 160.0):
        known.note(agent, ONE, *REFUSED, now=now)
    changed = replace(agent, version=agent.version + 1)
    assert known.of(changed, ONE, now=161.0) is None
    known.note(agent, ONE, *REFUSED, now=162.0)
    assert known.of(changed, ONE, now=163.0) is None
    assert known.note(changed, ONE, *REFUSED, now=164.0).strikes == 1


def test_failures_of_one_moment_are_one(known: Troubles) -> None:
    """What fails while the last failure still cools down does not lengthen the row of strikes."""
    agent = agent_identity()
    assert [known.note(agent, ONE, *REFUSED, now=now).strikes for now in (100.0, 101.0, 102.0)] == [1, 1, 1]
    assert known.note(agent, ONE, *REFUSED, now=163.0).strikes == 2


def test_success_settles_both_kinds(known: Troubles) -> None:
    """A registration that went well disproves what was held against its task and against its identity."""
    agent = agent_identity()
    known.note(agent, ONE, *DOWN, now=100.0)
    known.note(agent, ONE, *REFUSED, now=100.0)
    other = known.note(agent, TWO, *DOWN, now=100.0)
    known.settle(agent, ONE)
    assert known.of(agent, ONE, now=100.0) is None
    assert known.of(agent, TWO, now=100.0) is other


def test_the_oldest_go_when_there_are_too_many(known: Troubles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that fails for ever new threads does not fill the memory."""
    monkeypatch.setattr(troubles, "_MOST", 3)
    agent = agent_identity()
    for number in range(5):
        known.note(agent, UpstreamKey(f"key-{number}"), *DOWN, now=100.0)
    held = [known.of(agent, UpstreamKey(f"key-{number}"), now=100.0) is not None for number in range(5)]
    assert held == [False, False, True, True, True]
