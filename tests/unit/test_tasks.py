"""What callers and operators do with tasks, over a real store and a scripted backend."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from broker import errors
from broker.errors import BrokerError
from broker.model import IdentityState, Mode, Task, TaskState, ThreadId
from broker.snapshots import IdentityView
from broker.tasks import TaskKeeper
from tests.support.stores import NOW
from tests.support.workshop import Workshop, plain, workshop

ONE, TWO = ThreadId("one"), ThreadId("two")
TOMBSTONE = 100.0


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Workshop]:
    """A workshop in which threads share one upstream task, whose backend registers everything."""
    async with workshop(tmp_path) as opened:
        opened.api.tasks.append(plain("upstream"))
        yield opened


def keeper(shop: Workshop) -> TaskKeeper:
    """Make a keeper."""
    return TaskKeeper(
        store=shop.store,
        snapshots=shop.snapshots,
        registrar=shop.registrar,
        clock=shop.clock,
        tombstone_seconds=TOMBSTONE,
    )


async def register(shop: Workshop, view: IdentityView, thread: ThreadId | None = ONE) -> Task:
    """Register with patience."""
    return await keeper(shop).register(view, thread, deadline=shop.clock.monotonic() + 10)


async def test_registering_again_gives_the_same_task(shop: Workshop) -> None:
    """The backend is asked once; the answer shows the task as it lives."""
    view = await shop.agent()
    first, again = await register(shop, view), await register(shop, view)
    assert first.id == again.id
    assert again.effective_state is TaskState.ACTIVE
    assert shop.api.count("task") == 1


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"state": IdentityState.DISABLED}, errors.IdentityRevokedError),
        ({"state": IdentityState.DELETED}, errors.IdentityRevokedError),
        ({"state": IdentityState.REJECTED}, errors.IdentityRejectedError),
        ({"state": IdentityState.REAUTH_REQUIRED}, errors.ReauthRequiredError),
        ({"expire_time": NOW}, errors.ReauthRequiredError),
        ({"state": IdentityState.REGISTERING}, errors.RegistrationInProgressError),
        ({"mode": Mode.BEARER}, errors.BackendUnsupportedError),
        ({"assertions_enabled": False}, errors.FeatureDisabledError),
    ],
)
async def test_an_identity_that_has_no_use_for_a_task_gets_none(
    shop: Workshop, changes: dict[str, object], outcome: type[BrokerError]
) -> None:
    """Each state that stands in the way is told as itself, before anything is asked or written."""
    view = await shop.agent()
    barred = replace(view, identity=replace(view.identity, **changes))  # type: ignore[arg-type]
    shop.store.calls.clear()
    with pytest.raises(outcome):
        await register(shop, barred)
    assert shop.api.count("task") == 0
    assert not shop.store.calls


async def test_an_ended_thread_begins_anew_only_when_registered(shop: Workshop) -> None:
    """Ending is idempotent, leaves a tombstone for as long as the setting says, and registering lifts it."""
    view = await shop.agent()
    await register(shop, view)
    first, again = await keeper(shop).end(view, ONE), await keeper(shop).end(view, ONE)
    assert (first.state, first.purge_time) == (TaskState.ENDED, NOW + TOMBSTONE)
    assert again == first
    known = shop.snapshots.task(view.identity, ONE)
    assert known is not None
    assert known.task.state is TaskState.ENDED
    begun = await register(shop, view)
    assert begun.effective_state is TaskState.ACTIVE
    assert begun.version > first.version


async def test_ending_a_thread_that_never_was_keeps_it_from_beginning(shop: Workshop) -> None:
    """A registration that comes late finds the thread ended."""
    view = await shop.agent()
    ended = await keeper(shop).end(view, ONE)
    assert ended.state is TaskState.ENDED
    late = await shop.registrar.ensure(view, ONE, wait_until=shop.clock.monotonic() + 10)
    assert late.state is TaskState.ENDED
    assert shop.api.count("task") == 0


async def test_ending_works_while_the_login_has_ended_and_not_when_disabled(shop: Workshop) -> None:
    """Cleaning up needs no login; an identity that was taken away is nobody's to change."""
    view = await shop.agent()
    expired = replace(view, identity=replace(view.identity, expire_time=NOW))
    assert (await keeper(shop).end(expired, ONE)).state is TaskState.ENDED
    disabled = replace(view, identity=replace(view.identity, state=IdentityState.DISABLED))
    with pytest.raises(errors.IdentityRevokedError):
        await keeper(shop).end(disabled, TWO)


async def test_a_shared_task_is_revoked_by_force_only(shop: Workshop) -> None:
    """Without force nothing changes and the number of those that share it is told; with it all of them are down."""
    view = await shop.agent()
    one, _ = await register(shop, view), await register(shop, view, TWO)
    assert shop.api.count("task") == 1
    with pytest.raises(errors.TaskSharedError) as caught:
        await keeper(shop).revoke(one, force=False)
    assert caught.value.metadata == {"bindings": "1"}
    assert [(await register(shop, view, thread)).state for thread in (ONE, TWO)] == [TaskState.ACTIVE] * 2
    taken = await keeper(shop).revoke(one, force=True)
    assert [(task.thread_id, task.state) for task in taken] == [(ONE, TaskState.REVOKED), (TWO, TaskState.REVOKED)]
    for thread in (ONE, TWO):
        known = shop.snapshots.task(view.identity, thread)
        assert known is not None
        assert (known.task.state, known.upstream_task_id) == (TaskState.REVOKED, None)


async def test_revoking_what_is_gone_says_so(shop: Workshop) -> None:
    """A task that was pruned meanwhile is not found."""
    view = await shop.agent()
    task = await register(shop, view)
    with pytest.raises(errors.TaskNotFoundError):
        await keeper(shop).revoke(replace(task, id="0" * 32), force=True)
