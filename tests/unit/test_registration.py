"""The registrar: what it remembers of failures, what it does when store or backend fail in between, what stopping leaves."""

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nacl.public import SealedBox
from nacl.signing import VerifyKey

from broker import errors, registration
from broker.backend_api import TaskAnswer
from broker.bearer import Bearer
from broker.bearer.static import StaticSource
from broker.errors import BrokerError
from broker.model import IdentityState, Secret, Task, TaskKind, TaskState, ThreadId
from broker.outbound import FailureKind, OutboundFailure
from broker.policy import TaskFact
from broker.registration import Registrar
from broker.snapshots import IdentityView, task_id_context
from broker.store import Claimed, TaskClaim
from tests.support.workshop import IN_FLIGHT, LEASE, ScriptedApi, Workshop, failure, plain, workshop

ONE, TWO = ThreadId("thread-1"), ThreadId("thread-2")
PER_THREAD = "codex-2026-05"


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Workshop]:
    """A workshop whose profile gives each thread an upstream task of its own."""
    async with workshop(tmp_path, profile=PER_THREAD) as opened:
        yield opened


async def ensure(shop: Workshop, view: IdentityView, thread: ThreadId | None = ONE, **more: Any) -> Task:
    """Ask for a task with a patience that no test comes near."""
    return await shop.registrar.ensure(view, thread, wait_until=shop.clock.monotonic() + 30, **more)


async def outcome(shop: Workshop, view: IdentityView, thread: ThreadId | None = ONE) -> BrokerError:
    """Ask for a task that cannot be had and return why."""
    with pytest.raises(BrokerError) as raised:
        await ensure(shop, view, thread)
    return raised.value


async def test_registers_once_and_signs_the_registration(shop: Workshop) -> None:
    """The backend is asked once, with the thread's reference and a signature of the agent's key over id and time."""
    view = await shop.agent()
    shop.api.tasks.append(plain("task-1"))
    task = await ensure(shop, view)
    assert (await ensure(shop, view)).id == task.id
    ((_, request),) = [call for call in shop.api.asked if call[0] == "task"]
    assert (request["agent_runtime_id"], request["external_task_ref"], request["bearer"]) == ("runtime-1", ONE, None)
    assert request["deadline"] < shop.clock.monotonic() + LEASE
    signature = base64.b64decode(request["sign"]("2026-04-23T00:00:00Z"))
    public = base64.b64decode((view.identity.public_key or "").split(" ")[1])[-32:]
    VerifyKey(public).verify(b"runtime-1:2026-04-23T00:00:00Z", signature)
    known = shop.snapshots.task(view.identity, ONE)
    assert known is not None
    assert known.upstream_task_id == "task-1"


async def test_the_claim_is_in_the_store_while_the_backend_is_asked(shop: Workshop) -> None:
    """When the backend hears of a task, its claim stands in the store with a lease that outlives the call."""
    view = await shop.agent()
    seen: list[Task | None] = []

    async def look() -> TaskAnswer:
        seen.append(await shop.store.store.task(view.identity.id, ONE))
        return plain("task-1")

    shop.api.tasks.append(look)
    await ensure(shop, view)
    (task,) = seen
    assert task is not None
    assert task.upstream is not None
    assert task.upstream.state is TaskState.CLAIMED
    assert task.upstream.lease_expire_time == shop.clock.now() + LEASE


@pytest.mark.parametrize(
    ("kind", "expected", "fact", "whole"),
    [
        (FailureKind.DOWN, errors.BackendDownError, TaskFact.COOLING_DOWN, False),
        (FailureKind.THROTTLED, errors.BackendThrottledError, TaskFact.COOLING_DOWN, False),
        (FailureKind.REFUSED, errors.IdentityRejectedError, TaskFact.REFUSED, True),
        (FailureKind.PROTOCOL, errors.BackendProtocolError, TaskFact.PROTOCOL_BROKEN, True),
    ],
)
async def test_failures_are_remembered(
    shop: Workshop, kind: FailureKind, expected: type[BrokerError], fact: TaskFact, whole: bool
) -> None:
    """A transient failure cools down its own task, any other the whole identity; nobody is asked meanwhile."""
    view = await shop.agent()
    shop.api.tasks.append(failure(kind))
    assert type(await outcome(shop, view)) is expected
    assert shop.api.count("task") == 1
    again = await outcome(shop, view)
    assert type(again) is expected
    assert again.retry_after is not None
    assert 0 < again.retry_after <= 60
    assert shop.api.count("task") == 1
    trouble = shop.registrar.trouble(view, ONE)
    assert trouble is not None
    assert (trouble.fact, trouble.outcome) == (fact, expected)
    assert (shop.registrar.trouble(view, TWO) is not None) is whole
    assert (shop.registrar.trouble(view, None) is not None) is whole
    shop.registrar.forget_troubles(view.identity.id)
    shop.api.tasks.append(plain("task-1"))
    shop.api.tasks.popleft()
    assert (await ensure(shop, view)).effective_state is TaskState.ACTIVE


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        (FailureKind.REFUSED, [60, 120, 240, 480, 960, 1920, 3600, 3600]),
        (FailureKind.DOWN, [1, 2, 4, 8, 16, 32, 60, 60]),
    ],
)
async def test_cool_downs_double_up_to_a_limit(shop: Workshop, kind: FailureKind, seconds: list[int]) -> None:
    """Each failure after the last one's time doubles the wait; only transient ones are spread, between half and whole."""
    view = await shop.agent()
    shop.api.tasks.append(failure(kind))
    for longest in seconds:
        await outcome(shop, view)
        trouble = shop.registrar.trouble(view, ONE)
        assert trouble is not None
        wait = trouble.until - shop.clock.monotonic()
        shortest = longest if kind is FailureKind.REFUSED else longest / 2
        assert shortest <= wait <= longest
        shop.clock.pass_(wait)
        assert shop.registrar.trouble(view, ONE) is None
    assert shop.api.count("task") == len(seconds)


async def test_a_success_wipes_the_slate(shop: Workshop) -> None:
    """After a registration that went well the next failure counts as the first."""
    view = await shop.agent()
    shop.api.tasks += [failure(FailureKind.REFUSED), plain("task-1"), failure(FailureKind.REFUSED)]
    await outcome(shop, view)
    shop.clock.pass_(60)
    await ensure(shop, view)
    await outcome(shop, view, TWO)
    trouble = shop.registrar.trouble(view, TWO)
    assert trouble is not None
    assert trouble.until - shop.clock.monotonic() == 60


async def test_retry_after_is_honoured(shop: Workshop) -> None:
    """A backend that names a wait longer than ours gets it, and so does the caller."""
    view = await shop.agent()
    shop.api.tasks.append(failure(FailureKind.THROTTLED, retry_after=40.0))
    assert (await outcome(shop, view)).retry_after == 40.0
    shop.clock.pass_(39)
    assert shop.registrar.trouble(view, ONE) is not None
    shop.clock.pass_(1)
    assert shop.registrar.trouble(view, ONE) is None


async def test_clock_skew_asks_nobody_and_holds_nothing(shop: Workshop) -> None:
    """Clocks too far apart to sign are told as they are, cost no claim, and are no mark against the task."""
    view = await shop.agent()
    shop.api.tasks.append(plain("task-1"))
    shop.api.skew = errors.ClockSkewError()
    assert type(await outcome(shop, view)) is errors.ClockSkewError
    assert shop.api.count("task") == 0
    shop.api.skew = None
    assert (await ensure(shop, view)).effective_state is TaskState.ACTIVE


def sealed_for(view: IdentityView, text: bytes) -> str:
    """Seal a text to the agent's key as a backend does."""
    public = base64.b64decode((view.identity.public_key or "").split(" ")[1])[-32:]
    return base64.b64encode(SealedBox(VerifyKey(public).to_curve25519_public_key()).encrypt(text)).decode()


async def test_a_sealed_id_is_opened(shop: Workshop) -> None:
    """A task id that is sealed to the agent's key is opened and used."""
    view = await shop.agent()
    shop.api.tasks.append(TaskAnswer(sealed_for(view, b"task-1"), sealed=True, answer_lost=False))
    await ensure(shop, view)
    known = shop.snapshots.task(view.identity, ONE)
    assert known is not None
    assert known.upstream_task_id == "task-1"


@pytest.mark.parametrize(
    "value",
    [
        lambda _: "AAAA",
        lambda view: sealed_for(view, b"with:colon"),
        lambda view: sealed_for(view, b"\xff"),
        lambda view: sealed_for(view, b""),
        lambda view: sealed_for(view, b"x" * 129),
    ],
    ids=["not_sealed", "colon", "not_utf8", "empty", "long"],
)
async def test_a_sealed_id_that_cannot_be_used(shop: Workshop, value: Callable[[IdentityView], str]) -> None:
    """What does not open, or may not be signed, breaks the protocol; the task it stood for is an orphan."""
    view = await shop.agent()
    shop.api.tasks.append(TaskAnswer(value(view), sealed=True, answer_lost=False))
    assert type(await outcome(shop, view)) is errors.BackendProtocolError
    assert (await shop.store.statistics()).orphaned_upstream_tasks == 1
    assert shop.tally("credential_broker_orphaned_upstream_tasks_total", backend="default") == 1


@pytest.mark.parametrize("after", [False, True], ids=["before_its_effect", "after_its_effect"])
async def test_an_answer_is_written_down_when_the_store_comes_back(shop: Workshop, after: bool) -> None:
    """A store that is away when the backend has answered is asked again with the same answer; the backend is not."""
    view = await shop.agent()
    shop.api.tasks.append(plain("task-1"))
    shop.store.fail("complete_claim", times=2, after=after)
    task = await ensure(shop, view)
    assert task.effective_state is TaskState.ACTIVE
    assert shop.api.count("task") == 1
    assert shop.store.calls["complete_claim"] == 3
    assert (await shop.store.statistics()).orphaned_upstream_tasks == 0


async def test_a_claim_that_cannot_be_given_back(shop: Workshop) -> None:
    """When the store is away after a failure, the failure is what callers learn; the claim goes with its lease."""
    view = await shop.agent()
    shop.api.tasks += [failure(FailureKind.DOWN, answer_lost=True), plain("task-2")]
    shop.store.fail("release_claim")
    assert type(await outcome(shop, view)) is errors.BackendDownError
    shop.registrar.forget_troubles(view.identity.id)
    shop.clock.pass_(LEASE + 1)
    task = await ensure(shop, view)
    assert task.upstream is not None
    assert (await shop.store.statistics()).orphaned_upstream_tasks == 1


async def test_the_store_away_before_the_claim(shop: Workshop) -> None:
    """Without the store nothing is registered: STORE_DOWN, and the backend hears nothing."""
    view = await shop.agent()
    shop.api.tasks.append(plain("task-1"))
    shop.store.fail("claim_task")
    assert type(await outcome(shop, view)) is errors.StoreDownError
    assert shop.api.count("task") == 0
    assert (await ensure(shop, view)).effective_state is TaskState.ACTIVE


async def test_everybody_who_waited_gets_an_error_of_their_own(shop: Workshop) -> None:
    """One registration, one outcome, but never one exception object: tracebacks of callers do not pile up on it."""
    view = await shop.agent()
    shop.api.tasks.append(failure(FailureKind.DOWN, retry_after=7.0))
    outcomes = await asyncio.gather(*(ensure(shop, view) for _ in range(5)), return_exceptions=True)
    assert shop.api.count("task") == 1
    assert len({id(one) for one in outcomes}) == 5
    for one in outcomes:
        assert isinstance(one, errors.BackendDownError)
        assert one.retry_after == 7.0


async def test_a_defect_ends_as_an_outcome(shop: Workshop) -> None:
    """An exception nobody foresaw ends the job with INTERNAL for all who wait; it neither hangs them nor escapes."""
    view = await shop.agent()
    shop.api.tasks.append(ZeroDivisionError())
    assert type(await outcome(shop, view)) is errors.InternalError


async def test_impatience_does_not_end_the_job(shop: Workshop) -> None:
    """Who gives up is told so at once; the job goes on and its task is found by the next."""
    view = await shop.agent()
    go = asyncio.Event()

    async def wait() -> TaskAnswer:
        await go.wait()
        return plain("task-1")

    shop.api.tasks.append(wait)
    with pytest.raises(errors.RegistrationInProgressError):
        await shop.registrar.ensure(view, ONE, wait_until=shop.clock.monotonic())
    go.set()
    assert (await ensure(shop, view)).effective_state is TaskState.ACTIVE
    assert shop.api.count("task") == 1


async def test_stopping_in_the_midst_gives_the_claim_back(shop: Workshop) -> None:
    """A registration that is cut by the broker's end leaves a free claim and an orphan, before `drain` returns."""
    view = await shop.agent()
    asked = asyncio.Event()

    async def hang() -> TaskAnswer:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    shop.api.tasks.append(hang)
    waiting = asyncio.create_task(ensure(shop, view))
    await asked.wait()
    await shop.registrar.drain(0.0)
    task = await shop.store.task(view.identity.id, ONE)
    assert task.upstream.lease_expire_time is None
    assert (await shop.store.statistics()).orphaned_upstream_tasks == 1
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_changed_generation_is_followed_once(shop: Workshop) -> None:
    """A view of before the last change is replaced by what stands in the store, and the task is of the new generation."""
    view = await shop.agent()
    shop.api.tasks.append(plain("task-1"))
    disabled = await shop.enroller.disable(view.identity)
    await shop.enroller.enable(disabled)
    task = await ensure(shop, view)
    assert task.upstream is not None
    assert task.upstream.generation == view.identity.generation + 1


def hanging(shop: Workshop, go: asyncio.Event, answer: TaskAnswer | BaseException) -> None:
    """Let every registration wait for `go`, and then end as told."""

    async def wait() -> TaskAnswer:
        await go.wait()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    shop.api.tasks.append(wait)


async def all_turns_taken(shop: Workshop, view: IdentityView) -> list[asyncio.Task[Task]]:
    """Begin as many registrations as are under way at one time, and wait until the backend is asked for each."""
    waiting = [asyncio.create_task(ensure(shop, view, ThreadId(f"early-{n}"))) for n in range(IN_FLIGHT)]
    async with asyncio.timeout(10):
        while shop.api.count("task") < IN_FLIGHT:
            await asyncio.sleep(0.001)
    return waiting


async def test_no_claim_is_made_before_its_turn(shop: Workshop) -> None:
    """While the backend takes no more, nothing is claimed: a lease cannot run out in the queue, nor be left by a stop."""
    view = await shop.agent()
    go = asyncio.Event()
    hanging(shop, go, plain("task"))
    early = await all_turns_taken(shop, view)
    late = asyncio.create_task(ensure(shop, view, ONE))
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert await shop.store.task(view.identity.id, ONE) is None
    assert shop.api.count("task") == IN_FLIGHT
    await shop.registrar.drain(0.0)
    assert await shop.store.task(view.identity.id, ONE) is None
    await asyncio.gather(*early, late, return_exceptions=True)


async def test_what_is_learned_in_the_queue_holds_for_who_waits_in_it(shop: Workshop) -> None:
    """An agent that is refused while others wait for their turn is refused for them too: the backend is not asked."""
    view = await shop.agent()
    go = asyncio.Event()
    hanging(shop, go, failure(FailureKind.REFUSED, status=403))
    early = await all_turns_taken(shop, view)
    late = asyncio.create_task(outcome(shop, view, ONE))
    await asyncio.sleep(0.01)
    go.set()
    assert type(await late) is errors.IdentityRejectedError
    assert shop.api.count("task") == IN_FLIGHT
    await asyncio.gather(*early, return_exceptions=True)
    assert await shop.store.task(view.identity.id, ONE) is None


async def test_a_backend_that_hangs_keeps_its_own_turns_only(shop: Workshop) -> None:
    """Registrations at another backend go on while every turn at one is taken by calls that do not come back."""
    healthy = ScriptedApi()
    healthy.tasks.append(plain("task"))
    registrar = Registrar(
        store=shop.store,
        snapshots=shop.snapshots,
        keyring=shop.keyring,
        apis={"default": shop.api, "other": healthy},  # type: ignore[dict-item]
        clock=shop.clock,
        metrics=shop.metrics,
        lease_seconds=LEASE,
        in_flight=1,
        jitter=random.Random(1),
    )
    one, other = await shop.agent("one"), await shop.agent("other")
    other = replace(other, backend=replace(other.backend, name="other"))
    hanging(shop, asyncio.Event(), plain("never"))
    patience = shop.clock.monotonic() + 30
    stuck = asyncio.create_task(registrar.ensure(one, ONE, wait_until=patience))
    async with asyncio.timeout(10):
        while not shop.api.count("task"):
            await asyncio.sleep(0.001)
        assert (await registrar.ensure(other, ONE, wait_until=patience)).effective_state is TaskState.ACTIVE
    await registrar.drain(0.0)
    await asyncio.gather(stuck, return_exceptions=True)


async def test_registrations_that_wait_have_a_ceiling(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it who asks for one more is told OVERLOAD at once, and who asks for one that waits already is not."""
    monkeypatch.setattr(registration, "_MOST_JOBS", 1)
    view = await shop.agent()
    go = asyncio.Event()
    hanging(shop, go, plain("task"))
    first, same = (asyncio.create_task(ensure(shop, view, ONE)) for _ in range(2))
    await asyncio.sleep(0)
    assert type(await outcome(shop, view, TWO)) is errors.OverloadError
    go.set()
    assert (await first).id == (await same).id


async def test_another_process_that_changed_the_identity_clears_what_was_held_against_it(shop: Workshop) -> None:
    """An operator's change, written by whichever process, is followed by a new try at once and not after the wait."""
    view = await shop.agent()
    shop.api.tasks += [failure(FailureKind.REFUSED, status=403), plain("task-1")]
    await outcome(shop, view)
    written = await shop.store.write_identity(replace(view.identity, email="new@example.org"))
    assert written.generation == view.identity.generation
    assert shop.registrar.trouble(view, ONE) is not None
    await shop.snapshots.follow()
    current = shop.snapshots.view(view.identity.id)
    assert current is not None
    assert shop.registrar.trouble(current, ONE) is None
    assert (await ensure(shop, current)).effective_state is TaskState.ACTIVE


async def test_a_revocation_that_a_claim_finds_out_is_heeded_and_measured(shop: Workshop) -> None:
    """An identity that another process disabled is refused at once, without waiting for the next look at the store."""
    view = await shop.agent()
    disabled = replace(view.identity, state=IdentityState.DISABLED, generation=2, update_time=shop.clock.now())
    await shop.store.write_identity(disabled)
    shop.clock.pass_(0.2)
    assert type(await outcome(shop, view)) is errors.GenerationChangedError
    known = shop.snapshots.view(view.identity.id)
    assert known is not None
    assert known.identity.state is IdentityState.DISABLED
    name = "credential_broker_revocation_propagation_seconds_sum"
    assert shop.tally(name, what="identity") == pytest.approx(0.2)


async def test_an_orphan_of_an_earlier_try_is_recorded_with_the_success(shop: Workshop) -> None:
    """A registration that went well at the second try may have left one behind at the first: store and metric say so."""
    view = await shop.agent()
    shop.api.tasks.append(TaskAnswer("task-1", sealed=False, answer_lost=True))
    assert (await ensure(shop, view)).effective_state is TaskState.ACTIVE
    assert (await shop.store.statistics()).orphaned_upstream_tasks == 1
    assert shop.tally("credential_broker_orphaned_upstream_tasks_total", backend="default") == 1


@pytest.mark.parametrize(
    ("status", "moved", "asked", "told"),
    [(401, 0.0, 1, True), (403, 0.0, 1, True), (404, 0.0, 1, False), (401, 30.0, 2, False), (404, 30.0, 1, False)],
)
async def test_a_refused_agent_is_told_of_unless_a_clock_was_wrong(
    shop: Workshop, status: int, moved: float, asked: int, told: bool
) -> None:
    """A refusal whose own Date shows that the time was wrong is tried again; one of the agent itself is passed on."""
    view = await shop.agent()
    refusals: list[tuple[IdentityView, OutboundFailure]] = []
    shop.registrar.tell_refusals_to(lambda refused, cause: refusals.append((refused, cause)))

    async def refuse() -> TaskAnswer:
        shop.api.clock_offset += moved
        raise failure(FailureKind.REFUSED, status=status)

    shop.api.tasks += [refuse, plain("task-1")] if asked == 2 else [refuse]
    if asked == 2:
        await ensure(shop, view)
    else:
        assert type(await outcome(shop, view)) is errors.IdentityRejectedError
        trouble = shop.registrar.trouble(view, ONE)
        assert trouble is not None
        assert trouble.status == status
    assert shop.api.count("task") == asked
    assert [(refused.identity.id, cause.status) for refused, cause in refusals] == (
        [(view.identity.id, status)] if told else []
    )


async def test_a_clock_that_stays_wrong_is_tried_again_once(shop: Workshop) -> None:
    """A backend whose Date moves with every refusal is not asked for ever."""
    view = await shop.agent()

    async def refuse() -> TaskAnswer:
        shop.api.clock_offset += 30.0
        raise failure(FailureKind.REFUSED, status=401)

    shop.api.tasks.append(refuse)
    await outcome(shop, view)
    assert shop.api.count("task") == 2


async def test_a_thread_is_bound_to_what_lives_whatever_is_held_against_registering(tmp_path: Path) -> None:
    """Where threads share an upstream task, a new one needs nothing of the backend, not even a turn at it."""
    async with workshop(tmp_path) as shop:
        view = await shop.agent()
        shop.api.tasks += [plain("shared"), failure(FailureKind.DOWN)]
        first = await ensure(shop, view, ONE)
        assert first.upstream is not None
        with pytest.raises(errors.BackendDownError):
            await ensure(shop, view, ONE, replace=first.upstream.version)
        assert shop.registrar.trouble(view, TWO) is not None
        second = await ensure(shop, view, TWO)
        assert second.upstream is not None
        assert second.upstream.version == first.upstream.version
        assert shop.api.count("task") == 2


async def test_what_was_believed_to_live_is_registered_in_its_turn(tmp_path: Path) -> None:
    """An upstream task that another process revoked a moment ago is found out by the claim, and registered anew."""
    async with workshop(tmp_path) as shop:
        view = await shop.agent()
        shop.api.tasks += [plain("first"), plain("second")]
        first = await ensure(shop, view, ONE)
        await shop.store.revoke_task(
            first.id, now=shop.clock.now(), purge_time=shop.clock.now() + 60, include_sharing=True
        )
        second = await ensure(shop, view, TWO)
        assert second.effective_state is TaskState.ACTIVE
        assert second.upstream is not None
        assert first.upstream is not None
        assert second.upstream.version > first.upstream.version
        assert shop.api.count("task") == 2


async def test_the_old_task_serves_until_its_successor_is_there(shop: Workshop) -> None:
    """While a successor is registered calls find the old id; a failure leaves it; many who ask make one successor."""
    view = await shop.agent()
    shop.api.tasks += [plain("old"), failure(FailureKind.DOWN), plain("never")]
    old = await ensure(shop, view)
    assert old.upstream is not None
    with pytest.raises(errors.BackendDownError):
        await ensure(shop, view, replace=old.upstream.version)
    assert upstream_id(shop, view) == "old"
    shop.clock.pass_(60)
    go = asyncio.Event()
    shop.api.tasks.clear()
    hanging(shop, go, plain("new"))
    asking = [asyncio.create_task(ensure(shop, view, replace=old.upstream.version)) for _ in range(20)]
    while shop.api.count("task") < 3:
        await asyncio.sleep(0.001)
    assert upstream_id(shop, view) == "old"
    held = await shop.store.task(view.identity.id, ONE)
    assert held.effective_state is TaskState.ACTIVE
    assert held.upstream.lease_expire_time is not None
    await shop.snapshots.follow()
    assert upstream_id(shop, view) == "old"
    go.set()
    answers = await asyncio.gather(*asking)
    assert {answer.upstream.version for answer in answers if answer.upstream} == {answers[0].upstream.version}  # type: ignore[union-attr]
    assert upstream_id(shop, view) == "new"
    late = await ensure(shop, view, replace=old.upstream.version)
    assert late.upstream == answers[0].upstream
    assert shop.api.count("task") == 3


def upstream_id(shop: Workshop, view: IdentityView, thread: ThreadId | None = ONE) -> str | None:
    """Return the id that calls of a thread are signed for now."""
    known = shop.snapshots.task(view.identity, thread)
    return None if known is None else known.upstream_task_id


async def test_a_successor_that_another_process_registers_is_waited_for(shop: Workshop) -> None:
    """Who asks for a successor that is claimed elsewhere gets that one, when it is there."""
    view = await shop.agent()
    shop.api.tasks.append(plain("old"))
    old = await ensure(shop, view)
    assert old.upstream is not None
    wish = TaskClaim(
        identity_id=view.identity.id,
        generation=view.identity.generation,
        kind=TaskKind.THREAD,
        thread_id=ONE,
        upstream_key=old.upstream_key,
        now=shop.clock.now(),
        lease_seconds=LEASE,
        replace=old.upstream.version,
    )
    claimed = await shop.store.claim_task(wish)
    assert isinstance(claimed, Claimed)
    assert claimed.task.upstream is not None
    asking = asyncio.create_task(ensure(shop, view, replace=old.upstream.version))
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not asking.done()
    sealed = shop.keyring.seal(b"theirs", context=task_id_context(claimed.task.upstream))
    theirs = await shop.store.complete_claim(
        claimed.task.upstream, sealed_task_id=sealed, now=shop.clock.now(), expire_time=None
    )
    assert (await asking).upstream == theirs
    assert upstream_id(shop, view) == "theirs"
    assert shop.api.count("task") == 1


async def test_tasks_get_an_end_and_not_all_the_same(shop: Workshop) -> None:
    """Each lives nine tenths of the configured life at least, and two that began together end apart."""
    view = await shop.agent()
    shop.api.tasks += [plain("one"), plain("two")]
    ends = set()
    for thread in (ONE, TWO):
        task = await ensure(shop, view, thread)
        assert task.upstream is not None
        assert task.upstream.expire_time is not None
        life = task.upstream.expire_time - shop.clock.now()
        assert 0.9 * view.backend.task_lifetime <= life <= view.backend.task_lifetime
        ends.add(life)
    assert len(ends) == 2


async def test_the_store_away_after_the_success_loses_nothing(shop: Workshop) -> None:
    """Once the answer is written down, a look at the binding that fails is no failure of the registration."""
    view = await shop.agent()
    shop.api.tasks.append(plain("task-1"))
    shop.store.fail("task")
    assert (await ensure(shop, view)).effective_state is TaskState.ACTIVE
    assert upstream_id(shop, view) == "task-1"


class NeverFresher(StaticSource):
    """A source that has a token and whose refresh does not come back."""

    async def refresh(self, *, beyond: Bearer | None = None) -> Bearer:
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_source_that_hangs_holds_a_claim_no_longer_than_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused biscuit has the bearer refreshed; when that does not come back, the claim and the turn are given back."""
    monkeypatch.setattr(registration, "_LEASE_MARGIN", LEASE)
    async with workshop(tmp_path, profile="codex-2026-04") as shop:
        view = await shop.agent()
        shop.api.tasks.append(failure(FailureKind.REFUSED, status=401))
        token = NeverFresher(Bearer(Secret("token"), None), shop.clock)
        async with asyncio.timeout(10):
            assert (await outcome(shop, replace(view, bearers=token))).reason == "ISSUER_DOWN"
        task = await shop.store.task(view.identity.id, ONE)
        assert task is not None
        assert task.upstream is not None
        assert task.upstream.lease_expire_time is None
