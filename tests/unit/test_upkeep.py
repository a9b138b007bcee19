"""The background loops: what each does in one turn, and that none of them ends."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.audit import AuditLog
from broker.bearer import Bearer, Phase
from broker.bearer.file import FileSource
from broker.bearer.static import StaticSource
from broker.clock import Clock
from broker.enrollment import NamedSource
from broker.model import IdentityId, IdentityState, Mode, Secret, ThreadId
from broker.outbound import FailureKind
from broker.upkeep import Upkeep
from tests.support.clocks import SteppedClock
from tests.support.stores import NOW
from tests.support.workshop import IDLE, Workshop, failure, plain, workshop


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Workshop]:
    """A workshop whose backend registers everything."""
    async with workshop(tmp_path) as opened:
        opened.api.tasks.append(plain("upstream"))
        await opened.snapshots.warm_up()
        yield opened


class Users:
    """Stands for an authorizer: says who was used when."""

    def __init__(self) -> None:
        self.last_use: dict[IdentityId, float] = {}

    def used_since(self, since: float) -> list[IdentityId]:
        """Return who was used since then."""
        return [identity_id for identity_id, last_use in self.last_use.items() if last_use >= since]


def upkeep(shop: Workshop, folder: Path, **changes: Any) -> Upkeep:
    """Make an upkeep whose turns a test takes itself."""
    fields: dict[str, Any] = {
        "snapshots": shop.snapshots,
        "registrar": shop.registrar,
        "agents": shop.agents,
        "lifetimes": shop.lifetimes,
        "authorizer": Users(),
        "refresh_recent_seconds": 3600.0,
        "bearer_sources": shop.sources,
        "audit": AuditLog(folder / "audit.jsonl", shop.clock, shop.metrics),
        "clock": shop.clock,
        "poll_seconds": 0.1,
    }
    return Upkeep(**fields | changes)


async def turns(condition: Any) -> None:
    """Let others run until something holds; the clock of these tests does not wait by itself."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_the_background_task_is_there_before_it_is_needed(shop: Workshop, tmp_path: Path) -> None:
    """An agent's background task is registered once, without a caller."""
    keeper = upkeep(shop, tmp_path)
    view = await shop.agent()

    def lives() -> bool:
        task = shop.snapshots.task(view.identity, None)
        return task is not None and task.upstream_task_id == "upstream"

    for _ in range(3):
        await keeper._prewarm()
    await turns(lives)
    await keeper._prewarm()
    assert shop.api.count("task") == 1
    await keeper.stop()


@pytest.mark.parametrize(
    "changes",
    [
        {"state": IdentityState.DISABLED},
        {"state": IdentityState.REGISTERING},
        {"mode": Mode.BEARER},
        {"assertions_enabled": False},
        {"expire_time": NOW},
    ],
)
async def test_who_has_no_use_for_a_background_task_gets_none(
    shop: Workshop, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Nothing is asked of the backend for an identity that could not use the answer."""
    view = await shop.agent()
    shop.snapshots.publish_identity(replace(view.identity, version=view.identity.version + 1, **changes))
    keeper = upkeep(shop, tmp_path)
    await keeper._prewarm()
    assert not keeper._prewarming
    assert shop.api.count("task") == 0


async def test_a_failed_prewarm_is_tried_again_when_it_may(shop: Workshop, tmp_path: Path) -> None:
    """While the failure is remembered the backend is left alone; then it is asked again."""
    shop.api.tasks.clear()
    shop.api.tasks.extend([failure(FailureKind.THROTTLED, retry_after=30.0), plain("upstream")])
    keeper = upkeep(shop, tmp_path)
    view = await shop.agent()
    await keeper._prewarm()
    await turns(lambda: not keeper._prewarming)
    await keeper._prewarm()
    assert not keeper._prewarming
    assert shop.api.count("task") == 1
    shop.clock.pass_(31)
    await keeper._prewarm()
    await turns(lambda: not keeper._prewarming)
    task = shop.snapshots.task(view.identity, None)
    assert task is not None
    assert task.upstream_task_id == "upstream"


async def test_a_new_bearer_makes_answers_be_worked_out_again(shop: Workshop, tmp_path: Path) -> None:
    """A changed token counts as a change; a look that finds the same one, or none, does not."""
    path = tmp_path / "token"
    touch = shop.snapshots.touch
    shop.sources["vault"] = FileSource(path, shop.clock, on_change=touch)
    shop.sources["gone"] = FileSource(tmp_path / "missing", shop.clock, on_change=touch)
    keeper = upkeep(shop, tmp_path)
    epochs = []
    for token in ("", "sk-1", "sk-1", "sk-2"):
        path.write_text(token)
        path.chmod(0o600)
        await keeper._read_bearer_files()
        epochs.append(shop.snapshots.epoch)
    first = epochs[0]
    assert epochs == [first, first + 1, first + 1, first + 2]


class DueSource(StaticSource):
    """A token that is where it is told to be in its life, and counts how often its refresh was begun."""

    def __init__(self, clock: Clock, phase: Phase = Phase.ADVISORY) -> None:
        super().__init__(Bearer(Secret("sk"), None), clock)
        self.begun = 0
        self._phase = phase

    def phase(self, now: float) -> Phase:
        """Say what it was told."""
        return self._phase

    def refresh_soon(self) -> None:
        """Count."""
        self.begun += 1


async def test_only_what_is_due_and_was_used_of_late_is_refreshed(shop: Workshop, tmp_path: Path) -> None:
    """Each source once a look, however many identities name it; idle, fresh and stopped ones are left alone."""
    users = Users()
    keeper = upkeep(shop, tmp_path, authorizer=users)
    shop.api.agents.append("runtime-1")
    due, idle, stopped = (DueSource(shop.clock) for _ in range(3))
    fresh = DueSource(shop.clock, Phase.FRESH)
    shop.sources.update({"due": due, "idle": idle, "fresh": fresh, "stopped": stopped})
    for name, source, used in (
        ("a", "due", 0),
        ("b", "due", 3599),
        ("c", "idle", 3601),
        ("d", "fresh", 0),
        ("e", "stopped", 0),
    ):
        identity = await shop.create(name, bearer=NamedSource(source))
        users.last_use[identity.id] = shop.clock.now() - used
        if name == "e":
            await shop.enroller.disable(identity)
    for _ in range(2):
        await keeper._refresh_ahead()
    assert [source.begun for source in (due, idle, fresh, stopped)] == [2, 0, 0, 0]


async def test_an_unreadable_id_is_not_prewarmed(shop: Workshop, tmp_path: Path) -> None:
    """A background task whose sealed id does not open is for an operator to revoke: asking the store again is no cure."""
    keeper = upkeep(shop, tmp_path)
    view = await shop.agent()
    task = await shop.registrar.ensure(view, None, wait_until=shop.clock.monotonic() + 10)
    assert task.upstream is not None
    broken = replace(task.upstream, version=task.upstream.version + 1, sealed_task_id=b"garbage")
    shop.snapshots.publish_upstream(broken)
    await keeper._prewarm()
    assert not keeper._prewarming


async def test_a_background_task_that_nobody_used_for_long_is_left_to_its_next_use(
    shop: Workshop, tmp_path: Path
) -> None:
    """What was pruned because it was idle is not registered for nobody; an identity that was changed is new again."""
    keeper = upkeep(shop, tmp_path)
    view = await shop.agent()
    shop.clock.pass_(IDLE + 1)
    await keeper._prewarm()
    assert not keeper._prewarming
    shop.snapshots.publish_identity(
        replace(view.identity, version=view.identity.version + 1, update_time=shop.clock.now())
    )
    await keeper._prewarm()
    assert keeper._prewarming
    await turns(lambda: not keeper._prewarming)


async def test_preloading_outlives_every_failure(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even a defect does not end it: it is told once, and the tasks are in memory in the end."""
    view = await shop.agent()
    task = await shop.registrar.ensure(view, ThreadId("thread"), wait_until=shop.clock.monotonic() + 10)
    await shop.snapshots.warm_up()
    shop.store.fail("live_tasks", ZeroDivisionError(), times=2)
    shop.store.fail("live_tasks")
    await upkeep(shop, tmp_path)._preload()
    assert shop.snapshots.active_task_counts()[task.identity_id] >= 1
    assert shop.snapshots.task(view.identity, ThreadId("thread")) is not None
    assert capsys.readouterr().out.count("] preload_failed") == 1


async def test_loops_outlive_every_failure(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A store that is away, and even a defect, end no loop: each is told once, and then that it is over."""
    shop.store.go_down()
    keeper = upkeep(shop, tmp_path)
    defects = 3

    def resume() -> None:
        nonlocal defects
        defects -= 1
        if defects >= 0:
            raise ZeroDivisionError

    shop.agents.resume = resume  # type: ignore[method-assign]
    keeper.start()
    before = shop.store.calls["has_changed"]
    await turns(lambda: shop.store.calls["has_changed"] > before + 5 and defects < -2)
    shop.store.come_back()
    confirmation = shop.snapshots.confirmation
    await turns(lambda: shop.snapshots.confirmation is not confirmation)
    await turns(lambda: shop.store.calls["live_tasks"] >= 2)
    await keeper.stop()
    events = capsys.readouterr().out
    follow = [line for line in events.splitlines() if "loop=follow-store" in line]
    assert len(follow) == 2
    assert "upkeep_failing" in follow[0]
    assert "reason=STORE_DOWN" in follow[0]
    assert "upkeep_recovered" in follow[1]
    assert events.count("upkeep_crashed") == 1
    assert "preload_failed" in events


async def test_pruning_does_not_begin_with_the_start(shop: Workshop, tmp_path: Path) -> None:
    """What may be very much work waits for a while; everything else begins at once."""
    clock = SteppedClock(NOW)
    keeper = upkeep(shop, tmp_path, clock=clock)
    keeper.start()
    await clock.pass_(59)
    await turns(lambda: shop.store.calls["has_changed"] and shop.store.calls["live_tasks"])
    assert shop.store.calls["prune"] == 0
    await clock.pass_(2)
    await turns(lambda: shop.store.calls["prune"])
    await keeper.stop()


async def test_paused_loops_stand_still(shop: Workshop, tmp_path: Path) -> None:
    """While paused nothing is asked of the store; afterwards it goes on."""
    keeper = upkeep(shop, tmp_path)
    keeper.start()
    await turns(lambda: shop.store.calls["has_changed"] > 2)
    keeper.pause()
    await turns(lambda: not keeper._running.is_set())
    for _ in range(50):
        await asyncio.sleep(0.001)
    still = shop.store.calls["has_changed"]
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert shop.store.calls["has_changed"] == still
    keeper.resume()
    await turns(lambda: shop.store.calls["has_changed"] > still)
    await keeper.stop()
