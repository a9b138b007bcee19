"""The registrar: what it remembers of failures, what it does when store or backend fail in between, what stopping leaves."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from nacl.public import SealedBox
from nacl.signing import VerifyKey

from broker import errors
from broker.backend_api import TaskAnswer
from broker.errors import BrokerError
from broker.model import Task, TaskState, ThreadId
from broker.outbound import FailureKind
from broker.policy import TaskFact
from broker.snapshots import IdentityView
from tests.support.workshop import LEASE, Workshop, failure, plain, workshop

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
