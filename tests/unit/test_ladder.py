"""The ladder: each rung in order, and what holds whatever is reported in whatever order."""

import dataclasses
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import ladder
from broker.ladder import (
    AssertionRejected,
    BearerRejected,
    BearerUnchanged,
    Ladder,
    LadderUnreadableError,
    RegistrationRefused,
    Report,
    Step,
    climb,
)
from broker.model import ScopeName, UpstreamKey

WINDOW = 600.0
NOW = 1_790_000_000.0
INFERENCE, FILES = ScopeName("inference"), ScopeName("thread.files")


def rejected(
    version: int = 7,
    *,
    route: ScopeName = INFERENCE,
    key: str = "task",
    generation: int = 1,
    can_register: bool = True,
    register_time: float = NOW - 5,
) -> AssertionRejected:
    """Return a report of an assertion."""
    return AssertionRejected(
        generation=generation,
        upstream_key=UpstreamKey(key),
        version=version,
        register_time=register_time,
        route=route,
        can_register=can_register,
    )


def refused(*, generation: int = 1, can_register: bool = True, reported: bool = True) -> RegistrationRefused:
    """Return a report of a task registration."""
    return RegistrationRefused(generation=generation, can_register=can_register, reported=reported)


def after(*reports: Report, now: float = NOW, held: Ladder | None = None) -> tuple[Ladder, list[Step]]:
    """Climb with one report after the other."""
    held, steps = held or Ladder(), []
    for report in reports:
        held, step = climb(held, report, now=now, window=WINDOW)
        steps.append(step)
    return held, steps


def test_a_first_rejection_costs_one_fresh_task_however_often_it_is_reported() -> None:
    """Until the fresh one is there each report names the same replacement, and records nothing more."""
    once, steps = after(rejected())
    again, more = after(*[rejected(route=route) for route in (INFERENCE, FILES) * 50], held=once)
    assert steps == [Step.REPLACE_TASK]
    assert {Step.REPLACE_TASK} == set(more)
    assert once == again


def test_each_upstream_task_has_a_fresh_one_of_its_own() -> None:
    """Another task's rejection is not held against this one."""
    _, steps = after(rejected(7, key="one"), rejected(8, key="two"))
    assert steps == [Step.REPLACE_TASK, Step.REPLACE_TASK]


def test_a_route_that_alone_rejects_the_fresh_task_is_marked_and_no_more() -> None:
    """The second rung speaks against the route only, until the window ends."""
    held, steps = after(rejected(7), rejected(8))
    document = ladder.write(held)
    assert steps == [Step.REPLACE_TASK, Step.MARK_ROUTE]
    assert ladder.rejected_routes(document, generation=1, now=NOW + WINDOW - 1) == (INFERENCE,)
    assert ladder.rejected_routes(document, generation=1, now=NOW + WINDOW) == ()
    assert ladder.rejected_routes(document, generation=2, now=NOW) == ()
    assert held.renewal is None


def test_two_routes_that_reject_fresh_tasks_cost_one_other_agent() -> None:
    """The third rung, which every further report names until the agent is there."""
    held, steps = after(rejected(7), rejected(8), rejected(8, route=FILES))
    _, more = after(rejected(8), rejected(8, route=FILES), refused(), held=held)
    assert steps == [Step.REPLACE_TASK, Step.MARK_ROUTE, Step.REGISTER_ANEW]
    assert more == [Step.REGISTER_ANEW] * 3


def test_the_new_agent_begins_without_marks_and_ends_with_the_second_route() -> None:
    """No fresh task for tasks that are fresh already: one route is marked, two are the end."""
    held, _ = after(rejected(7), rejected(8), rejected(8, route=FILES))
    held, steps = after(rejected(20, generation=2, route=FILES), held=held)
    assert steps == [Step.MARK_ROUTE]
    assert ladder.rejected_routes(ladder.write(held), generation=2, now=NOW) == (FILES,)
    _, steps = after(rejected(20, generation=2, route=FILES), rejected(20, generation=2), held=held)
    assert steps == [Step.MARK_ROUTE, Step.REJECT_IDENTITY]


def test_a_refused_registration_costs_one_other_agent_then_the_identity() -> None:
    """The backend refuses the agent itself: no route needs to reject twice for that."""
    held, steps = after(rejected(), refused())
    _, more = after(refused(generation=2), held=held)
    assert steps == [Step.REPLACE_TASK, Step.REGISTER_ANEW]
    assert more == [Step.REJECT_IDENTITY]


@pytest.mark.parametrize("report", [refused(can_register=False), rejected(8, route=FILES, can_register=False)])
def test_an_identity_that_cannot_register_itself_skips_that_rung(report: Report) -> None:
    """Where another agent cannot be had, or could not just now, the end comes at once."""
    held, _ = after(rejected(7), rejected(8))
    assert after(report, held=held)[1] == [Step.REJECT_IDENTITY]


def test_a_refusal_that_nobody_reported_leaves_an_identity_alone_that_cannot_register() -> None:
    """Its tasks cool down, and the backend may think better of it."""
    assert after(refused(can_register=False, reported=False))[1] == [Step.LEAVE]
    assert after(refused(reported=False))[1] == [Step.REGISTER_ANEW]


def test_a_new_agent_of_somebody_else_clears_what_was_held_against_the_old_one() -> None:
    """Two generations on, an operator has changed the identity since: the ladder begins at its foot."""
    held, _ = after(rejected(7), rejected(8), rejected(8, route=FILES))
    assert after(rejected(30, generation=3), held=held)[1] == [Step.REPLACE_TASK]


def test_a_rejected_identity_begins_at_the_foot_once_it_serves_again() -> None:
    """A person has looked at it: with the same key or another, what was tried before is not held against it."""
    held, steps = after(rejected(7), refused(can_register=False))
    assert steps == [Step.REPLACE_TASK, Step.REJECT_IDENTITY]
    assert held == Ladder(generation=1)


def test_a_report_of_a_generation_that_is_past_changes_nothing() -> None:
    """A process that has not heard of the new agent yet cannot take steps on the old one."""
    held, _ = after(rejected(7, generation=5))
    assert (held, [Step.LEAVE]) == after(rejected(3, generation=4), held=held)


def test_all_begins_anew_when_the_window_is_over() -> None:
    """A route that rejected is tried again, with one fresh task."""
    held, _ = after(rejected(7), rejected(8))
    assert after(rejected(8), held=held, now=NOW + WINDOW)[1] == [Step.REPLACE_TASK]


def test_a_bearer_costs_one_refresh_then_itself() -> None:
    """The token that the refresh brought is over when it is rejected too; a later one serves."""
    held, steps = after(BearerRejected(bearer="a"), BearerRejected(bearer="a"), BearerRejected(bearer="b"))
    assert steps == [Step.REFRESH_BEARER, Step.REFRESH_BEARER, Step.END_BEARER]
    assert ladder.rejected_bearers(ladder.write(held)) == ("b",)


def test_a_bearer_whose_refresh_changed_nothing_is_over_for_good() -> None:
    """Only another token helps: the end of the window does not bring it back."""
    held, steps = after(BearerRejected(bearer="a"), BearerUnchanged(bearer="a"))
    assert steps == [Step.REFRESH_BEARER, Step.END_BEARER]
    held, steps = after(BearerRejected(bearer="a"), held=held, now=NOW + 2 * WINDOW)
    assert steps == [Step.END_BEARER]
    assert ladder.rejected_bearers(ladder.write(held)) == ("a",)


def test_beyond_what_is_remembered_only_old_tasks_are_replaced() -> None:
    """With the room for fresh tasks used up, one that is younger than a window counts as fresh itself."""
    held, steps = after(*(rejected(key=f"task-{number}") for number in range(ladder.MOST_TASKS)))
    assert {Step.REPLACE_TASK} == set(steps)
    assert len(ladder.write(held)) < 32_768
    old, young = rejected(key="old", register_time=NOW - WINDOW), rejected(key="young", register_time=NOW - WINDOW + 1)
    assert after(old, young, held=held)[1] == [Step.REPLACE_TASK, Step.MARK_ROUTE]


# --- the document -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        '{"format":2}',
        '{"format":1,"generation":"1"}',
        '{"format":1,"mark":{"route":"inference"}}',
        '{"format":1,"mark":{"route":"inference","until":Infinity}}',
        '{"format":1,"rejected_bearers":[1]}',
        "[]",
        "none",
    ],
)
def test_a_document_of_a_later_broker_or_none_is_refused(document: str) -> None:
    """What cannot be understood is not written over, and marks nothing."""
    with pytest.raises(LadderUnreadableError):
        ladder.read(document)
    assert ladder.rejected_routes(document, generation=1, now=0.0) == ()
    assert ladder.rejected_bearers(document) == ()


def test_a_document_without_content_is_the_foot_of_the_ladder() -> None:
    """An identity that nothing was tried for, and one whose ladder was cleared; unknown members are ignored."""
    assert Ladder() == ladder.read("")
    assert Ladder() == ladder.read('{"format":1,"of_a_later_version":true}')


# --- whatever is reported ---------------------------------------------------------------------------------------------

KEYS, ROUTES, BEARERS = ("one", "two"), (INFERENCE, FILES, ScopeName("control_plane.models")), ("a", "b", "c")
seconds = st.sampled_from([0.0, 0.0, 1.0, WINDOW / 3, WINDOW - 1, WINDOW])


@dataclasses.dataclass
class World:
    """A backend that rejects everything, and a broker that takes every step at once, or fails to."""

    now: float = NOW
    generation: int = 1
    version: int = 10
    versions: dict[str, int] = dataclasses.field(default_factory=dict)
    rejected: bool = False
    held: Ladder = dataclasses.field(default_factory=Ladder)
    taken: list[tuple[float, Step, object]] = dataclasses.field(default_factory=list)

    def report(self, report: Report, *, carried_out: bool) -> None:
        """Climb, keep the ladder as all processes do, and take the step."""
        before = self.held
        self.held, step = climb(ladder.read(ladder.write(before)), report, now=self.now, window=WINDOW)
        if isinstance(report, BearerRejected | BearerUnchanged):
            assert step in {Step.REFRESH_BEARER, Step.END_BEARER}
            assert dataclasses.replace(self.held, refresh=None, rejected_bearers=()) == dataclasses.replace(
                before, refresh=None, rejected_bearers=()
            )
        else:
            assert step not in {Step.REFRESH_BEARER, Step.END_BEARER}
            assert (self.held.refresh, self.held.rejected_bearers) == (before.refresh, before.rejected_bearers)
        if step is Step.REJECT_IDENTITY:
            self.rejected = True  # which is in the identity's row before the ladder is written
        if not carried_out:
            return
        match step:
            case Step.REPLACE_TASK:
                assert isinstance(report, AssertionRejected)
                self.taken.append((self.now, step, (self.generation, report.upstream_key)))
                self.versions[report.upstream_key] = self._next()
            case Step.REGISTER_ANEW:
                self.taken.append((self.now, step, None))
                self.generation += 1
                self.versions = {key: self._next() for key in KEYS}
            case Step.REFRESH_BEARER:
                assert isinstance(report, BearerRejected)
                self.taken.append((self.now, step, None))

    def _next(self) -> int:
        self.version += 1
        return self.version

    def windows(self) -> Iterator[Counter[object]]:
        """Count what was taken in each stretch of one window's length."""
        for begin, _, _ in self.taken:
            yield Counter((step, what) for at, step, what in self.taken if begin <= at < begin + WINDOW)


actions = st.tuples(
    st.sampled_from(["assertion", "assertion", "assertion", "refused", "unreported", "bearer", "unchanged"]),
    st.sampled_from(KEYS),
    st.sampled_from(ROUTES),
    st.sampled_from(BEARERS),
    seconds,
    st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(actions, max_size=60), st.booleans())
def test_no_step_is_taken_twice_in_a_window(
    history: list[tuple[str, str, ScopeName, str, float, bool]], able: bool
) -> None:
    """Whatever is reported in whatever order, and whichever steps fail: one of each, and nothing after the end."""
    world = World(versions=dict.fromkeys(KEYS, 10))
    refreshed: dict[str, str] = {}
    for what, key, route, bearer, pause, carried_out in history:
        if world.rejected and what not in {"bearer", "unchanged"}:
            break
        world.now += pause
        if what == "assertion":
            report: Report = rejected(
                world.versions[key], key=key, route=route, generation=world.generation, can_register=able
            )
        elif what in {"refused", "unreported"}:
            report = refused(generation=world.generation, can_register=able, reported=what == "refused")
        elif what == "bearer":
            report = BearerRejected(bearer=refreshed.get(bearer, bearer))
        else:
            report = BearerUnchanged(bearer=bearer)
        if isinstance(report, BearerRejected):
            steps = len(world.taken)
            world.report(report, carried_out=carried_out)
            if len(world.taken) > steps:
                refreshed[bearer] = f"{bearer}-{steps}"
        else:
            world.report(report, carried_out=carried_out)
    for counts in world.windows():
        assert set(counts.values()) <= {1}
    assert able or not any(step is Step.REGISTER_ANEW for _, step, _ in world.taken)
    assert len(ladder.write(world.held)) < 2000


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=300), st.text(max_size=64)), max_size=500))
def test_the_document_has_a_bounded_size(names: list[tuple[str, str]]) -> None:
    """However many tasks with however long keys, and however many tokens are rejected."""
    held = Ladder()
    for number, (key, bearer) in enumerate(names):
        held, _ = climb(held, rejected(number, key=key), now=NOW, window=WINDOW)
        held, _ = climb(held, BearerUnchanged(bearer=bearer), now=NOW, window=WINDOW)
        if not number % 10:
            held, _ = climb(held, rejected(10_000 + number, key=f"more-{number}"), now=NOW, window=WINDOW)
    document = ladder.write(held)
    assert held == ladder.read(document)
    assert len(held.replacements) <= ladder.MOST_TASKS
    assert len(held.rejected_bearers) <= ladder.MOST_BEARERS
    assert len(document) < 32_768
