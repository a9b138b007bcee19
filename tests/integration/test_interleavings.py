"""
Whatever order operations on one identity meet in, all end in the state of the last intent: a bounded sample.

`make chaos` makes all of it (`python -m tests.interleavings`); docs/adr/0027 says what that covers. Each guard is taken
out in turn, and the sample must find that.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from broker.model import Identity, StoredBearer
from broker.snapshots import IdentityView, Snapshots
from broker.store import agents, bearers, enrollment, identities, tasks
from tests.interleavings.explore import Plan, Tally, explore, lapses, pairs, repeat, run_seeded
from tests.interleavings.oracle import outcome_word
from tests.interleavings.schedule import EveryOrder
from tests.interleavings.world import PROFILES, Arrangement, Stops, Template, World, make_template

SEED = 20_261_121
SEEDED = 150


@pytest.fixture(scope="module")
def template() -> Template:
    """What every run begins with."""
    return asyncio.run(make_template())


SAMPLE = (
    *pairs(preemptions=1),
    *(replace(plan, preemptions=2 if "refresh" in plan.operations else 1) for plan in lapses()),
)
"""Every pair, and two of a kind with time that passes; a login is lost only with a second pre-emption."""


def _no_findings(tally: Tally) -> None:
    assert not tally.findings, "\n".join(str(finding) for finding in tally.findings)


@pytest.mark.parametrize("plan", SAMPLE, ids=str)
async def test_two_operations_end_in_the_last_intent(template: Template, plan: Plan) -> None:
    """However they meet, with one pre-emption."""
    _no_findings(await explore(template, plan))


@pytest.mark.parametrize("profile", PROFILES)
async def test_all_five_end_in_the_last_intent(profile: str) -> None:
    """In random orders; the seed is fixed, so that a failure is one for everybody."""
    _no_findings(await run_seeded(await make_template(profile), SEED, range(SEEDED)))


@pytest.mark.parametrize(
    "run",
    [
        # A second change of key that began as the first one ended was told to be done, and nobody carried it out.
        "codex-2026-05/one/after/rotate+rotate/" + "rotate," * 11 + "rotate-2," * 4 + "rotate",
        # A process that found an identity disabled by another said so, and went on serving it until it followed.
        "codex-2026-05/apart/before/disable+disable/" + "disable," * 4 + "disable-2,disable-2",
    ],
)
async def test_what_once_went_wrong_goes_well(run: str) -> None:
    """The orders in which defects were found."""
    _, problems = await repeat(run)
    assert problems == []


@pytest.mark.parametrize(
    "plan",
    [
        Plan(operations, arrangement, stops)
        for operations in (("register", "register"), ("register", "disable"), ("refresh", "refresh"))
        for arrangement in Arrangement
        for stops in (Stops.BEFORE, Stops.AFTER)
    ],
    ids=str,
)
async def test_going_on_once_from_equal_states_leaves_no_order_out(template: Template, plan: Plan) -> None:
    """It covers as many orders as there are, and they end in the same ways."""
    every, ends = EveryOrder(), set()
    for choose in every:
        world = World(template, choose, plan.arrangement, plan.stops)
        ends.add(_end(await world.run(plan.operations)))
    merged, merged_ends = EveryOrder(), set()
    for choose in merged:
        world = World(template, choose, plan.arrangement, plan.stops)
        merged.state = world.state
        merged_ends.add(_end(await world.run(plan.operations)))
    assert merged.orders == every.orders == every.runs
    assert merged_ends == ends


def _end(outcomes: dict[str, object]) -> tuple[str, ...]:
    return tuple(outcome_word(outcome) for outcome in outcomes.values())


# --- each guard is needed ---------------------------------------------------------------------------------------------


def _without_generation_of_claims(patch: pytest.MonkeyPatch) -> None:
    """`complete_claim` no longer asks whether the generation of the claim is still the identity's."""
    patch.setattr(tasks, "_may_complete", lambda *_: True)


def _without_version_of_identities(patch: pytest.MonkeyPatch) -> None:
    """`write_identity` writes over whatever was written since the row was read."""
    write = enrollment.write

    def blind(tx: Any, identity: Identity, **more: Any) -> Identity:
        current = identities.by_id(tx.connection, identity.id)
        return write(tx, identity if current is None else replace(identity, version=current.version), **more)

    patch.setattr(enrollment, "write", blind)


def _without_lease_of_refreshes(patch: pytest.MonkeyPatch) -> None:
    """`claim_refresh` gives a refresh token to a second holder while the first is sending it."""
    may_be_sent = bearers._may_be_sent
    patch.setattr(
        bearers, "_may_be_sent", lambda bearer, now: may_be_sent(replace(bearer, lease_expire_time=None), now)
    )


def _without_fencing_of_refreshes(patch: pytest.MonkeyPatch) -> None:
    """`complete_refresh` keeps the answer to a claim that was taken over."""

    def holds(current: StoredBearer, held: StoredBearer) -> bool:
        return current.pair == held.pair and current.lease_expire_time is not None

    patch.setattr(bearers, "_holds", holds)


def _without_end_of_pending_agents(patch: pytest.MonkeyPatch) -> None:
    """`adopt_agent` finds the agent on its way although the identity got another generation meanwhile."""
    patch.setattr(agents, "forget", lambda *_, **__: None)


def _without_order_of_snapshots(patch: pytest.MonkeyPatch) -> None:
    """Memory takes in a row although it has a newer one."""
    publish = Snapshots.publish_identity

    def latest(self: Snapshots, identity: Identity, *more: Any) -> IdentityView:
        known = self.view(identity.id)
        if known is not None and known.identity.version > identity.version:
            del self._views[identity.id]
        return publish(self, identity, *more)

    patch.setattr(Snapshots, "publish_identity", latest)


@pytest.mark.parametrize(
    ("take_out", "where", "finding"),
    [
        (
            _without_generation_of_claims,
            "apart/before/register+disable",
            "made to live after the identity was disabled",
        ),
        (_without_version_of_identities, "apart/before/rotate+disable", "does not name one key in one use"),
        (_without_lease_of_refreshes, "apart/before/refresh+refresh", "a refresh token was used twice"),
        (_without_fencing_of_refreshes, "apart/after/refresh+refresh+lapse", "a login that the issuer has ended"),
        (_without_end_of_pending_agents, "apart/before/rotate+disable", "an agent is left on its way"),
        (_without_order_of_snapshots, "one/after/disable+report", "went back from DISABLED"),
    ],
)
async def test_without_a_guard_it_is_found(
    take_out: Callable[[pytest.MonkeyPatch], None], where: str, finding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One compare-and-set less, and the sample is red: what it proves rests on each of them."""
    take_out(monkeypatch)
    (plan,) = (one for one in SAMPLE if str(one) == where)
    tally = await explore(await make_template(), plan)
    assert any(finding in found.problem for found in tally.findings)
