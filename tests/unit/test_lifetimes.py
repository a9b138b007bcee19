"""Tasks over their lives: when a successor is wanted, who pays for it, what use keeps alive and what lack of it ends."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from broker import lifetimes
from broker.backend_api import TaskAnswer
from broker.errors import StoreDownError
from broker.lifetimes import replace_time
from broker.model import Task, TaskState, ThreadId
from broker.outbound import FailureKind
from broker.profiles import PRESETS
from broker.snapshots import IdentityView, TaskView
from tests.support.workshop import IDLE, IN_FLIGHT, Workshop, failure, plain, workshop

ONE, TWO = ThreadId("thread-1"), ThreadId("thread-2")
DAY = 86_400.0


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Workshop]:
    """A workshop whose profile gives each thread an upstream task of its own."""
    async with workshop(tmp_path, profile="codex-2026-05") as opened:
        yield opened


async def registered(shop: Workshop, view: IdentityView, thread: ThreadId = ONE) -> TaskView:
    """Register a thread's task and return it as calls find it."""
    await shop.registrar.ensure(view, thread, wait_until=shop.clock.monotonic() + 30)
    return known(shop, view, thread)


def known(shop: Workshop, view: IdentityView, thread: ThreadId = ONE) -> TaskView:
    """Return a thread's task as calls find it."""
    task = shop.snapshots.task(view.identity, thread)
    assert task is not None
    return task


async def settled(shop: Workshop) -> None:
    """Wait until no successor is under way."""
    async with asyncio.timeout(10):
        while shop.lifetimes._replacements:
            await asyncio.sleep(0.001)


async def test_a_task_near_its_end_is_replaced_when_it_is_used(shop: Workshop) -> None:
    """Use before the last tenth of its life changes nothing; from then on the first use brings a successor, once."""
    view = await shop.agent()
    shop.api.tasks += [plain("old"), plain("new"), plain("never")]
    old = await registered(shop, view)
    assert old.upstream is not None
    start = replace_time(view.backend, old.upstream)
    shop.clock.pass_(start - shop.clock.now() - 1)
    shop.lifetimes.used(view, old)
    assert not shop.lifetimes._replacements
    shop.clock.pass_(1)
    for _ in range(5):
        shop.lifetimes.used(view, old)
    assert known(shop, view).upstream_task_id == "old"
    await settled(shop)
    new = known(shop, view)
    assert new.upstream_task_id == "new"
    assert new.upstream is not None
    assert new.upstream.version > old.upstream.version
    shop.lifetimes.used(view, new)
    shop.lifetimes.used(view, old)  # who still has the old one in hand
    await settled(shop)
    assert shop.api.count("task") == 2


async def test_without_use_nothing_is_replaced_and_after_the_end_it_is_registered_anew(shop: Workshop) -> None:
    """The end comes and nobody asked the backend; then the claim finds that the upstream task does not live."""
    view = await shop.agent()
    shop.api.tasks += [plain("old"), plain("new")]
    await registered(shop, view)
    shop.clock.pass_(DAY)
    assert shop.api.count("task") == 1
    assert (await registered(shop, view)).upstream_task_id == "new"


@pytest.mark.parametrize(
    ("life", "assertion_lifetime", "window"),
    [(DAY, 60.0, DAY / 10), (3000.0, 60.0, 300.0), (3000.0, 300.0, 600.0), (60.0, 60.0, 30.0)],
)
async def test_the_window_is_long_enough_for_what_is_signed(
    shop: Workshop, life: float, assertion_lifetime: float, window: float
) -> None:
    """A tenth of the life, at least two lives of an assertion, and never more than half of the life."""
    view = await shop.agent()
    shop.api.tasks.append(plain("old"))
    old = await registered(shop, view)
    profile = PRESETS["codex-2026-05"].with_overrides(assertion_routes={}, assertion_lifetime=assertion_lifetime)
    backend = replace(view.backend, task_lifetime=life, profile=profile)
    assert old.upstream is not None
    assert replace_time(backend, replace(old.upstream, expire_time=1_000_000.0)) == 1_000_000.0 - window
    taken_over = replace(old.upstream, expire_time=None, create_time=1_000_000.0)
    assert replace_time(backend, taken_over) == 1_000_000.0 + life - window


async def test_a_failed_successor_leaves_the_old_one_and_is_tried_again_in_time(shop: Workshop) -> None:
    """While the failure cools down uses ask the backend for nothing; then the next one does."""
    view = await shop.agent()
    shop.api.tasks += [plain("old"), failure(FailureKind.THROTTLED, retry_after=30.0), plain("new")]
    old = await registered(shop, view)
    shop.clock.pass_(0.95 * DAY)
    shop.lifetimes.used(view, old)
    await settled(shop)
    for _ in range(3):
        shop.lifetimes.used(view, old)
        assert not shop.lifetimes._replacements
    assert shop.api.count("task") == 2
    assert known(shop, view).upstream_task_id == "old"
    shop.clock.pass_(31)
    shop.lifetimes.used(view, old)
    await settled(shop)
    assert known(shop, view).upstream_task_id == "new"


async def test_successors_take_a_part_of_the_turns(shop: Workshop) -> None:
    """However many tasks are near their end, registrations that somebody waits for find a turn."""
    view = await shop.agent()
    shop.api.tasks.append(plain("old"))
    tasks = [await registered(shop, view, ThreadId(f"thread-{number}")) for number in range(IN_FLIGHT)]
    shop.api.tasks.clear()
    before = shop.api.count("task")

    async def hang() -> TaskAnswer:
        await asyncio.Event().wait()
        raise AssertionError

    shop.api.tasks.append(hang)
    shop.clock.pass_(0.95 * DAY)
    for task in tasks:
        shop.lifetimes.used(view, task)
    async with asyncio.timeout(10):
        while shop.api.count("task") - before < IN_FLIGHT // 4:
            await asyncio.sleep(0.001)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert shop.api.count("task") - before == IN_FLIGHT // 4
    shop.api.tasks.clear()
    shop.api.tasks.append(plain("waited for"))
    assert (await registered(shop, view, ThreadId("newcomer"))).upstream_task_id == "waited for"


async def test_use_is_noted_in_batches_and_seldom(shop: Workshop) -> None:
    """A binding is written down at most once in a twentieth of the idle time, however often it is used."""
    view = await shop.agent()
    shop.api.tasks.append(plain("upstream"))
    tasks = [await registered(shop, view, thread) for thread in (ONE, TWO)]
    shop.clock.pass_(IDLE / 20)
    used_at = shop.clock.now()
    for _ in range(3):
        for task in tasks:
            shop.lifetimes.used(view, task)
        await shop.lifetimes.write_uses()
        shop.clock.pass_(60)
    assert shop.store.calls["touch_tasks"] == 1
    stored = [await shop.store.task(view.identity.id, thread) for thread in (ONE, TWO)]
    assert [task.last_use_time for task in stored] == [used_at, used_at]


async def test_what_could_not_be_written_is_written_later(shop: Workshop) -> None:
    """A store that is away costs no note, and a use noted during the write is not lost with it."""
    view = await shop.agent()
    shop.api.tasks.append(plain("upstream"))
    task = await registered(shop, view)
    shop.clock.pass_(IDLE / 2)
    shop.lifetimes.used(view, task)
    shop.store.fail("touch_tasks")
    with pytest.raises(StoreDownError):
        await shop.lifetimes.write_uses()
    gate = shop.store.hold("touch_tasks")
    writing = asyncio.create_task(shop.lifetimes.write_uses())
    await asyncio.sleep(0.01)
    shop.clock.pass_(IDLE / 10)
    shop.lifetimes.used(view, task)
    gate.set()
    await writing
    stored: Task = await shop.store.task(view.identity.id, ONE)
    assert stored.last_use_time == shop.clock.now()


async def test_notes_have_a_ceiling(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the store away for long, uses of ever new threads do not fill the memory."""
    monkeypatch.setattr(lifetimes, "_MOST_NOTES", 3)
    view = await shop.agent()
    shop.api.tasks.append(plain("upstream"))
    task = await registered(shop, view)
    shop.clock.pass_(IDLE / 2)
    for number in range(10):
        shop.lifetimes.used(view, replace(task, task=replace(task.task, id=f"{number:032x}")))
    assert (len(shop.lifetimes._noted), len(shop.lifetimes._unwritten)) == (3, 3)


async def test_what_nobody_uses_is_pruned_bite_by_bite(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle bindings and old tombstones go in several small writes with pauses between; what is used stays."""
    monkeypatch.setattr(lifetimes, "_BITE", 2)
    view = await shop.agent()
    shop.api.tasks.append(plain("upstream"))
    used = await registered(shop, view, TWO)
    for number in range(5):
        await registered(shop, view, ThreadId(f"idle-{number}"))
    shop.clock.pass_(IDLE - 10)
    shop.lifetimes.used(view, used)
    await settled(shop)
    await shop.lifetimes.write_uses()
    shop.clock.pass_(20)
    shop.clock.slept.clear()
    before = shop.store.calls["prune"]
    await shop.lifetimes.prune()
    assert shop.store.calls["prune"] - before >= 3
    assert len(shop.clock.slept) == shop.store.calls["prune"] - before - 1
    left = [await shop.store.task(view.identity.id, ThreadId(f"idle-{number}")) for number in range(5)]
    assert left == [None] * 5
    kept = await shop.store.task(view.identity.id, TWO)
    assert kept.state is TaskState.ACTIVE


async def test_pruning_steps_back_while_calls_are_many(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """While calls come quickly each bite is followed by a longer pause, and it goes on all the same."""
    monkeypatch.setattr(lifetimes, "_BITE", 1)
    view = await shop.agent()
    shop.api.tasks.append(plain("upstream"))
    for number in range(2):
        await registered(shop, view, ThreadId(f"idle-{number}"))
    shop.clock.pass_(2 * IDLE)
    calls = shop.metrics.rpc_started.labels("unary", "service", "method")
    real = shop.clock.sleep

    async def busy(seconds: float) -> None:
        shop.clock.pass_(seconds)
        calls.value += 1000
        await real(seconds)

    shop.clock.sleep = busy  # type: ignore[method-assign]
    calls.value += 10**9
    await shop.lifetimes.prune()
    pauses = [seconds for seconds in shop.clock.slept if seconds == 1.0]
    assert len(pauses) >= 2
    assert await shop.store.task(view.identity.id, ThreadId("idle-1")) is None
