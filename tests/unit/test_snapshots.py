"""The in-memory view over a real store: what enters, what may not, and how it follows what others write."""

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from broker import snapshots as snapshots_module
from broker.backends import Backend
from broker.bearer import Bearer
from broker.bearer.oauth import Logins
from broker.bearer.static import StaticSource
from broker.bearer.stored import bearer_context
from broker.errors import RowCorruptError, StoreDownError
from broker.keyring import Keyring
from broker.keys import SigningKey
from broker.model import (
    Identity,
    IdentityId,
    IdentityName,
    IdentityState,
    Secret,
    StoredBearer,
    StoredLadder,
    Task,
    TaskState,
    ThreadId,
    UpstreamKey,
)
from broker.profiles import DEFAULT_PROFILE, PRESETS
from broker.snapshots import (
    DELETED_REMEMBERED_SECONDS,
    IN_USE_SECONDS,
    Confirmation,
    Snapshots,
    private_key_context,
    task_id_context,
)
from broker.store import Claimed, WholeIdentity
from broker.telemetry import Metrics
from tests.support.clocks import SetClock
from tests.support.stores import (
    NOW,
    FaultyStore,
    add_identity,
    agent_identity,
    bearer_identity,
    sqlite_store,
    task_claim,
)

BACKEND = Backend("codex", PRESETS[DEFAULT_PROFILE], frozenset(), assertions_enabled=True, allow_loopback_http=False)


@dataclass
class World:
    """A store with a key ring, and as many views of it as a test wants."""

    folder: Path
    store: FaultyStore
    keyring: Keyring
    clock: SetClock

    def snapshots(self, *, cached_threads: int = 100, **changes: Any) -> Snapshots:
        """Make a view of the store, as another process would."""
        shared: dict[str, Any] = {
            "store": self.store,
            "keyring": self.keyring,
            "clock": self.clock,
            "metrics": Metrics(),
        }
        fields: dict[str, Any] = {
            **shared,
            "backends": {"codex": BACKEND},
            "bearer_sources": {},
            "logins": Logins({}, **shared, jitter=random.Random(1)),
            "cached_threads": cached_threads,
        }
        return Snapshots(**fields | changes)

    async def add_agent(self, name: str = "agent", **changes: Any) -> Identity:
        """Put an agent with a real sealed key into the store."""
        key = SigningKey.from_seed(bytes(31) + bytes([len(name)]))
        identity = agent_identity(name, public_key=key.ssh_public_key)
        sealed = self.keyring.seal(key.to_pkcs8_der(), context=private_key_context(identity.id, identity.generation))
        return await add_identity(self.store, replace(identity, sealed_private_key=sealed, **changes))

    async def add_task(self, identity: Identity, thread: str | None, task_id: str = "upstream", **claim: Any) -> Task:
        """Take a task from nothing to ACTIVE with a real sealed id; bind it to what lives already where there is that."""
        outcome = await self.store.claim_task(task_claim(identity, thread, **claim))
        if not isinstance(outcome, Claimed):
            bound: Task = outcome.task
            return bound
        assert outcome.task.upstream is not None
        sealed = self.keyring.seal(task_id.encode(), context=task_id_context(outcome.task.upstream))
        await self.store.complete_claim(outcome.task.upstream, sealed_task_id=sealed, now=NOW, expire_time=None)
        task: Task | None = await self.store.task(identity.id, outcome.task.thread_id)
        assert task is not None
        return task

    def damage(self, statement: str) -> None:
        """Change the database behind everybody's back, past its own checks."""
        with sqlite3.connect(self.folder / "broker.db") as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            assert connection.execute(statement).rowcount == 1
        connection.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """An empty store with a new key ring."""
    keyring = Keyring.load_or_create(tmp_path / "keyring.json", may_create=True)
    async with sqlite_store(tmp_path) as store:
        yield World(tmp_path, FaultyStore(store), keyring, SetClock(NOW))


async def test_warming_up_opens_what_is_stored(world: World) -> None:
    """Each identity comes with its backend, its opened key, its bearer and its background task."""
    agent = await world.add_agent()
    await world.add_task(agent, None, "background-id")
    bearer = bearer_identity()
    sealed = world.keyring.seal(b"sk-token", context=bearer_context(bearer.id, 1))
    await add_identity(world.store, bearer, bearer=sealed)
    snapshots = world.snapshots()
    await snapshots.warm_up()
    view = snapshots.named(IdentityName("agent"))
    assert view is not None
    assert view.key is not None
    assert (view.key.ssh_public_key, view.backend, view.trouble) == (agent.public_key, BACKEND, None)
    task = snapshots.task(agent, None)
    assert task is not None
    assert task.upstream_task_id == "background-id"
    other = snapshots.named(IdentityName("bearer"))
    assert other is not None
    assert other.bearers is not None
    assert other.bearers.current() == Bearer(Secret("sk-token"), None)
    assert sorted(snapshots.usable_names()) == ["agent", "bearer"]
    assert snapshots.confirmation.wall == NOW


async def test_a_late_identity_does_not_bring_an_old_state_back(world: World) -> None:
    """An answer of the store that was read before a write and arrives after it changes nothing."""
    old = await world.add_agent()
    new = await world.store.write_identity(replace(old, state=IdentityState.DISABLED))
    snapshots = world.snapshots()
    snapshots.publish_identity(new)
    epoch = snapshots.epoch
    assert snapshots.publish_identity(old).identity.state is IdentityState.DISABLED
    found = snapshots.named(old.name)
    assert found is not None
    assert found.identity == new
    assert snapshots.epoch == epoch


async def test_a_late_task_does_not_bring_an_old_state_back(world: World) -> None:
    """The same for a binding and for its upstream task."""
    agent = await world.add_agent()
    live = await world.add_task(agent, "thread")
    ended = await world.store.end_task(agent.id, ThreadId("thread"), now=NOW, purge_time=NOW + 60)
    snapshots = world.snapshots()
    snapshots.publish_identity(agent)
    snapshots.publish_task(ended)
    snapshots.publish_task(live)
    found = snapshots.task(agent, ThreadId("thread"))
    assert found is not None
    assert found.task.state is TaskState.ENDED
    assert found.upstream_task_id is None


async def test_a_load_that_was_overtaken_does_not_bring_an_old_state_back(world: World) -> None:
    """A read that began before an end and is answered after it leaves the thread ended."""
    agent = await world.add_agent()
    live = await world.add_task(agent, "thread")
    snapshots = world.snapshots()
    snapshots.publish_identity(agent)
    gate = world.store.hold("task")
    loading = asyncio.create_task(snapshots.load_task(agent, ThreadId("thread")))
    ended = await world.store.end_task(agent.id, ThreadId("thread"), now=NOW, purge_time=NOW + 60)
    snapshots.publish_task(ended)
    gate.set()
    found = await loading
    assert found is not None
    assert found.task.state is TaskState.ENDED
    assert live.version < found.task.version


async def test_callers_of_one_thread_share_one_read(world: World) -> None:
    """However many wait for a binding, the store is asked once; a failure is told to each as what it is."""
    agent = await world.add_agent()
    await world.add_task(agent, "thread")
    snapshots = world.snapshots()
    world.store.calls.clear()
    found = await asyncio.gather(*(snapshots.load_task(agent, ThreadId("thread")) for _ in range(50)))
    assert world.store.calls["task"] == 1
    assert {view.upstream_task_id for view in found if view} == {"upstream"}
    world.store.go_down()
    failures = await asyncio.gather(
        *(snapshots.load_task(agent, ThreadId("other")) for _ in range(3)), return_exceptions=True
    )
    assert [type(failure) for failure in failures] == [StoreDownError] * 3
    assert len({id(failure) for failure in failures}) == 3


async def test_a_caller_that_gives_up_does_not_end_the_read(world: World) -> None:
    """A cancelled wait leaves the others with their answer."""
    agent = await world.add_agent()
    await world.add_task(agent, "thread")
    snapshots = world.snapshots()
    gate = world.store.hold("task")
    first, second = (asyncio.create_task(snapshots.load_task(agent, ThreadId("thread"))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert await second is not None
    assert first.cancelled()


async def test_following_brings_what_others_wrote(world: World) -> None:
    """New identities, changed ones, renewed bearers, ended threads and revoked upstream tasks arrive with one look."""
    agent = await world.add_agent()
    await world.add_task(agent, "one")
    revoked = await world.add_task(agent, "two")
    snapshots = world.snapshots()
    await snapshots.warm_up()
    for thread in ("one", "two"):
        await snapshots.load_task(agent, ThreadId(thread))
    await world.store.end_task(agent.id, ThreadId("one"), now=NOW, purge_time=NOW + 60)
    await world.store.revoke_task(revoked.id, now=NOW, purge_time=NOW + 60, include_sharing=True)
    await world.store.write_identity(replace(agent, state=IdentityState.DISABLED))
    await world.add_agent("newcomer")
    world.clock.pass_(3)
    await snapshots.follow()
    changed = snapshots.named(agent.name)
    assert changed is not None
    assert changed.identity.state is IdentityState.DISABLED
    assert snapshots.named(IdentityName("newcomer")) is not None
    states = [snapshots.task(agent, ThreadId(thread)) for thread in ("one", "two")]
    assert [view.task.state for view in states if view] == [TaskState.ENDED, TaskState.REVOKED]
    assert snapshots.confirmation.wall == NOW + 3


async def test_following_pages_through_many_changes(world: World) -> None:
    """More changes than one answer holds are all taken in before the contact counts as confirmed."""
    snapshots = world.snapshots()
    await snapshots.warm_up()
    for number in range(7):
        await world.add_agent(f"agent-{number}")
    real = world.store.store.changes

    async def few(after: int, *, limit: int = 1000) -> Any:
        return await real(after, limit=2)

    world.store.store.changes = few  # type: ignore[method-assign]
    await snapshots.follow()
    assert len(snapshots.usable_names()) == 7


async def test_a_look_that_fails_is_not_a_contact(world: World) -> None:
    """Without an answer nothing is confirmed, and what was missed arrives with the next look."""
    agent, snapshots = await world.add_agent(), world.snapshots()
    await snapshots.warm_up()
    await world.store.write_identity(replace(agent, state=IdentityState.DISABLED))
    world.clock.pass_(3)
    world.store.fail("whole_identity")
    with pytest.raises(StoreDownError):
        await snapshots.follow()
    assert snapshots.confirmation.wall == NOW
    await snapshots.follow()
    (view,) = snapshots.views()
    assert view.identity.state is IdentityState.DISABLED
    assert snapshots.confirmation.wall == NOW + 3


@pytest.mark.parametrize("method", ["has_changed", "changes"])
async def test_a_look_proves_what_was_when_it_began(world: World, method: str) -> None:
    """What was written while a slow read was under way it may have missed: nothing after its start is confirmed."""
    snapshots = world.snapshots()
    await snapshots.warm_up()
    if method == "has_changed":
        await snapshots.follow()  # the first look after a start goes on to read the changes
        world.store.calls.clear()
    gate = world.store.hold(method)
    world.clock.pass_(3)
    look = asyncio.create_task(snapshots.follow())
    while not world.store.calls[method]:
        await asyncio.sleep(0.001)
    world.clock.pass_(60)
    gate.set()
    await look
    assert snapshots.confirmation == Confirmation(wall=NOW + 3, monotonic=world.clock.steady - 60)


async def test_a_start_proves_what_was_when_it_began(world: World) -> None:
    """Reading everything takes its time; what was written meanwhile only the next look finds."""
    snapshots = world.snapshots()
    gate = world.store.hold("whole_identities")
    start = asyncio.create_task(snapshots.warm_up())
    while not world.store.calls["whole_identities"]:
        await asyncio.sleep(0.001)
    world.clock.pass_(60)
    gate.set()
    await start
    assert snapshots.confirmation.wall == NOW


async def test_reading_many_newcomers_does_not_make_the_store_look_away(world: World) -> None:
    """While they are read one by one, each look between proves that what is held here is current; none is lost."""
    snapshots = world.snapshots()
    await snapshots.warm_up()
    for number in range(3):
        await world.add_agent(f"newcomer-{'x' * number}")
    world.clock.pass_(3)
    world.store.fail("whole_identity")
    with pytest.raises(StoreDownError):
        await snapshots.follow()
    assert snapshots.confirmation.wall == NOW + 3
    await snapshots.follow()
    assert len(snapshots.usable_names()) == 3


async def test_a_database_put_back_in_time_is_read_anew(world: World, tmp_path: Path) -> None:
    """What an older database does not have is gone from memory, and what it has in an older state has that again."""
    agent = await world.add_agent()
    await world.add_task(agent, "thread", "old-id")
    backup = tmp_path / "backup.db"
    with sqlite3.connect(world.folder / "broker.db") as live, sqlite3.connect(backup) as copy:
        live.backup(copy)
    live.close()
    copy.close()
    await world.add_agent("later")
    await world.store.write_identity(replace(agent, state=IdentityState.DISABLED))
    await world.store.end_task(agent.id, ThreadId("thread"), now=NOW, purge_time=NOW + 60)
    snapshots = world.snapshots()
    await snapshots.warm_up()
    await snapshots.load_task(agent, ThreadId("thread"))
    with sqlite3.connect(backup) as copy, sqlite3.connect(world.folder / "broker.db") as live:
        copy.backup(live)
    live.close()
    copy.close()
    epoch = snapshots.epoch
    await snapshots.follow()
    assert snapshots.usable_names() == ["agent"]
    found = snapshots.named(agent.name)
    assert found is not None
    assert found.identity.state is IdentityState.ACTIVE
    task = snapshots.task(agent, ThreadId("thread"))
    assert task is not None
    assert task.upstream_task_id == "old-id"
    assert snapshots.epoch > epoch


async def test_an_identity_whose_row_cannot_be_read_is_known_by_its_name(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the start its name is told and kept, so that a call for it learns why; the others are there."""
    await world.add_agent("bad")
    await world.add_agent("good")
    world.damage("UPDATE identities SET state = 'NONSENSE' WHERE name = 'bad'")
    snapshots = world.snapshots()
    await snapshots.warm_up()
    assert snapshots.is_unreadable(IdentityName("bad"))
    assert sorted(snapshots.usable_names()) == ["bad", "good"]
    assert snapshots.named(IdentityName("bad")) is None
    printed = capsys.readouterr().out
    assert "identity_unreadable" in printed
    assert "bad" in printed


@pytest.mark.parametrize("what", ["bearer", "ladder", "background task"])
async def test_a_damaged_row_spoils_what_it_is_for_and_not_the_start(
    world: World, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """Its identity is there with the rest of what it has, and what is damaged is told by the identity's name."""
    agent = await world.add_agent()
    await world.add_task(agent, None, "background-id")
    await world.store.write_ladder(StoredLadder(identity_id=agent.id, document="{}"))
    other = bearer_identity()
    sealed = world.keyring.seal(b"sk-token", context=bearer_context(other.id, 1))
    await add_identity(world.store, other, bearer=sealed)
    table = {"bearer": "bearers", "ladder": "ladders", "background task": "tasks"}[what]
    world.damage(f"UPDATE {table} SET version = 0")  # noqa: S608 names of this test
    snapshots = world.snapshots()
    await snapshots.warm_up()
    view, theirs = snapshots.view(agent.id), snapshots.view(other.id)
    assert view is not None
    assert theirs is not None
    assert (view.trouble, theirs.trouble) == (None, None)
    assert (theirs.bearers is None) == (what == "bearer")
    assert (view.ladder is None) == (what == "ladder")
    assert (snapshots.task(agent, None) is None) == (what == "background task")
    told = {"bearer": "stored_bearer_unusable", "ladder": "ladder_unreadable", "background task": "task_unreadable"}
    printed = capsys.readouterr().out
    assert told[what] in printed
    assert (other.name if what == "bearer" else agent.name) in printed


async def test_a_damaged_ladder_does_not_stop_the_following(world: World) -> None:
    """What was known of it stays, and the store counts as confirmed."""
    agent = await world.add_agent()
    ladder = await world.store.write_ladder(StoredLadder(identity_id=agent.id, document="{}"))
    snapshots = world.snapshots()
    await snapshots.warm_up()
    written = await world.store.write_ladder(replace(ladder, document="{ }"))
    world.damage(f"UPDATE ladders SET document = CAST(x'ff' AS TEXT) WHERE version = {written.version}")  # noqa: S608
    world.clock.pass_(3)
    await snapshots.follow()
    assert snapshots.confirmation.wall == NOW + 3
    view = snapshots.view(agent.id)
    assert view is not None
    assert view.ladder == ladder


async def test_warming_up_asks_no_more_of_the_store_for_more_identities(world: World) -> None:
    """A page of identities is one question, whatever belongs to them."""
    counts = []
    for _ in range(2):
        for number in range(3):
            await world.add_task(await world.add_agent(f"{len(counts)}-{'x' * number}"), None)
        world.store.calls.clear()
        snapshots = world.snapshots()
        await snapshots.warm_up()
        counts.append((len(snapshots.usable_names()), world.store.calls.total()))
    assert counts == [(3, 2), (6, 2)]


async def test_rows_that_cannot_be_read_do_not_stop_the_following(world: World) -> None:
    """A damaged identity, bearer and task are each their own trouble: the rest is followed and the store confirmed."""
    bad = await world.add_agent("bad")
    good = await world.add_agent("good")
    await world.add_task(good, "thread")
    snapshots = world.snapshots()
    await snapshots.warm_up()
    await snapshots.load_task(good, ThreadId("thread"))
    await world.store.write_identity(replace(bad, email="a@example.org"))
    await world.store.end_task(good.id, ThreadId("thread"), now=NOW, purge_time=NOW + 60)
    world.damage("UPDATE identities SET state = 'NONSENSE' WHERE name = 'bad'")
    world.damage("UPDATE tasks SET state = 'NONSENSE' WHERE thread_id = 'thread'")
    await world.add_agent("newcomer")
    world.clock.pass_(3)
    await snapshots.follow()
    assert snapshots.confirmation.wall == NOW + 3
    assert snapshots.named(IdentityName("newcomer")) is not None
    view = snapshots.named(IdentityName("bad"))
    assert view is not None
    assert view.trouble is RowCorruptError
    assert snapshots.task(good, ThreadId("thread")) is None
    with pytest.raises(RowCorruptError):
        await snapshots.load_task(good, ThreadId("thread"))


@pytest.mark.parametrize("damage", ["key of another place", "other key than the row names", "no key", "no backend"])
async def test_an_identity_that_does_not_open_has_a_trouble(world: World, damage: str) -> None:
    """A key that is not the row's own, a missing one and a backend that is gone are told, not used."""
    agent = await world.add_agent()
    match damage:
        case "key of another place":
            changed = replace(agent, generation=agent.generation + 1)
        case "other key than the row names":
            changed = replace(agent, public_key=SigningKey.from_seed(bytes(32)).ssh_public_key)
        case "no key":
            changed = replace(agent, sealed_private_key=None)
        case _:
            changed = replace(agent, backend="gone")
    view = world.snapshots().publish_identity(changed)
    assert view.trouble is RowCorruptError
    assert damage == "no backend" or view.key is None


async def test_a_task_id_of_another_place_is_not_used(world: World) -> None:
    """A sealed id copied from another identity's row does not open, and is not taken for a missing one."""
    one, other = await world.add_agent("one"), await world.add_agent("other")
    theirs = await world.add_task(other, "thread", "their-id", key="single")
    ours = await world.add_task(one, "thread", "our-id", key="single")
    assert ours.upstream is not None
    assert theirs.upstream is not None
    swapped = replace(ours, upstream=replace(ours.upstream, sealed_task_id=theirs.upstream.sealed_task_id))
    snapshots = world.snapshots()
    snapshots.publish_task(swapped)
    view = snapshots.task(one, ThreadId("thread"))
    assert view is not None
    assert (view.upstream_task_id, view.is_unreadable) == (None, True)


async def test_a_task_of_an_earlier_generation_is_not_used(world: World) -> None:
    """After a bump of the generation the binding stands without the upstream task of before."""
    agent = await world.add_agent()
    snapshots = world.snapshots()
    snapshots.publish_task(await world.add_task(agent, "thread"))
    view = snapshots.task(replace(agent, generation=agent.generation + 1), ThreadId("thread"))
    assert view is not None
    assert (view.upstream, view.upstream_task_id) == (None, None)


async def test_the_least_recently_used_threads_go_first(world: World) -> None:
    """Memory has a ceiling for bindings and for upstream tasks; what is used stays."""
    agent = await world.add_agent()
    snapshots = world.snapshots(cached_threads=3)
    for number in range(3):
        snapshots.publish_task(await world.add_task(agent, f"thread-{number}"))
    assert snapshots.task(agent, ThreadId("thread-0")) is not None
    snapshots.publish_task(await world.add_task(agent, "thread-3"))
    kept = [number for number in range(4) if snapshots.task(agent, ThreadId(f"thread-{number}")) is not None]
    assert kept == [0, 2, 3]
    assert len(snapshots._upstreams) == 3


async def test_preloading_takes_live_tasks_up_to_the_ceiling(world: World) -> None:
    """Live tasks are taken into memory without being asked for, ended ones not, and never more than are kept."""
    agent = await world.add_agent()
    for number in range(5):
        await world.add_task(agent, f"thread-{number}")
    await world.store.end_task(agent.id, ThreadId("thread-0"), now=NOW, purge_time=NOW + 60)
    roomy, small = world.snapshots(), world.snapshots(cached_threads=2)
    for snapshots in (roomy, small):
        await snapshots.warm_up()
        await snapshots.preload_tasks()
    assert roomy.active_task_counts() == {agent.id: 4}
    assert roomy.task(agent, ThreadId("thread-0")) is None
    assert small.active_task_counts() == {agent.id: 2}


async def test_a_deleted_identity_gives_its_name_away(world: World) -> None:
    """While nobody took the name the deleted one answers to it; then the new one does, whatever arrives late."""
    old = await world.add_agent()
    snapshots = world.snapshots()
    deleted = await world.store.write_identity(replace(old, state=IdentityState.DELETED))
    snapshots.publish_identity(deleted)
    assert snapshots.usable_names() == []
    found = snapshots.named(old.name)
    assert found is not None
    assert found.identity.state is IdentityState.DELETED
    new = await world.add_agent()
    snapshots.publish_identity(new)
    snapshots.publish_identity(deleted)
    found = snapshots.named(old.name)
    assert found is not None
    assert found.identity.id == new.id


async def test_a_bearer_is_named_without_being_shown(world: World) -> None:
    """The version of a bearer is the same on every replica, another for another token, and not made from it alone."""
    one, other = world.snapshots(), world.snapshots()
    bearer = Bearer(Secret("sk-token"), None)
    assert one.bearer_version(bearer) == other.bearer_version(bearer)
    assert one.bearer_version(bearer) != one.bearer_version(Bearer(Secret("sk-other"), None))
    stranger = Keyring.load_or_create(world.folder / "other.json", may_create=True)
    assert world.snapshots(keyring=stranger).bearer_version(bearer) != one.bearer_version(bearer)


async def test_a_stored_bearer_that_does_not_open_leaves_the_identity_without_one(world: World) -> None:
    """The identity stays, and says that it has no bearer; a source that is no longer configured is the same."""
    identity = bearer_identity()
    snapshots = world.snapshots()
    broken = StoredBearer(identity_id=identity.id, sealed=b"garbage", version=1)
    assert snapshots.publish_identity(identity, broken).bearers is None
    source = StaticSource(Bearer(Secret("sk"), None), world.clock)
    named = bearer_identity("named", bearer_source="vault")
    assert world.snapshots(bearer_sources={"vault": source}).publish_identity(named).bearers is source
    assert world.snapshots().publish_identity(named).bearers is None


async def test_upstream_tasks_shared_by_threads_change_for_all(world: World) -> None:
    """Where one upstream task serves several threads, its end is seen by each."""
    agent = await world.add_agent()
    first = await world.add_task(agent, "one", key="single")
    outcome = await world.store.claim_task(task_claim(agent, "two", key="single"))
    snapshots = world.snapshots()
    snapshots.publish_task(first)
    snapshots.publish_task(outcome.task)
    taken = await world.store.revoke_task(first.id, now=NOW, purge_time=NOW + 60, include_sharing=True)
    snapshots.publish_task(taken[0])
    view = snapshots.task(agent, ThreadId("two"))
    assert view is not None
    assert view.upstream is not None
    assert (view.upstream.key, view.upstream.state, view.upstream_task_id) == (
        UpstreamKey("single"),
        TaskState.REVOKED,
        None,
    )


def told_by(snapshots: Snapshots) -> list[IdentityId | None]:
    """Return a list that grows with what listeners are told."""
    told: list[IdentityId | None] = []
    snapshots.subscribe(told.append)
    return told


async def test_listeners_are_told_whose_state_changed(world: World) -> None:
    """Each change of an identity, its tasks, its bearer and its ladder is told with the identity's id; then no more."""
    agent, snapshots = await world.add_agent(), world.snapshots()
    told: list[IdentityId | None] = []
    end = snapshots.subscribe(told.append)
    snapshots.publish_identity(agent)
    task = await world.add_task(agent, "thread")
    snapshots.publish_task(task)
    assert task.upstream is not None
    snapshots.publish_upstream(replace(task.upstream, version=task.upstream.version + 1))
    sealed = world.keyring.seal(b"sk-token", context=bearer_context(agent.id, 1))
    snapshots.publish_bearer(StoredBearer(identity_id=agent.id, sealed=sealed))
    snapshots.publish_ladder(StoredLadder(identity_id=agent.id, version=1, document="{}"))
    assert told == [agent.id] * 5
    snapshots.touch()
    assert told[5:] == [None]
    end()
    snapshots.touch()
    assert len(told) == 6


async def test_a_late_bearer_or_ladder_does_not_bring_an_old_state_back(world: World) -> None:
    """The one of the higher version stays, and a repeated one is no change."""
    agent, snapshots = await world.add_agent(), world.snapshots()
    snapshots.publish_identity(agent)
    bearers = {
        version: StoredBearer(
            identity_id=agent.id,
            version=version,
            pair=version,
            sealed=world.keyring.seal(f"sk-{version}".encode(), context=bearer_context(agent.id, version)),
        )
        for version in (1, 2)
    }
    for version in (2, 1):
        snapshots.publish_bearer(bearers[version])
        snapshots.publish_ladder(StoredLadder(identity_id=agent.id, version=version, document=f"{version}"))
    epoch = snapshots.epoch
    (view,) = snapshots.views()
    assert view.bearers is not None
    assert view.bearers.current() == Bearer(Secret("sk-2"), None)
    assert view.ladder is not None
    assert view.ladder.document == "2"
    snapshots.publish_ladder(view.ladder)
    snapshots.publish_bearer(bearers[2])
    assert snapshots.epoch == epoch


async def test_a_row_that_is_written_anew_keeps_its_bearer_and_its_ladder(world: World) -> None:
    """Publishing an identity alone changes nothing else of it; with no bearer, or deleted, it has none any more."""
    identity, snapshots = bearer_identity(), world.snapshots()
    sealed = world.keyring.seal(b"sk-token", context=bearer_context(identity.id, 1))
    first = snapshots.publish_identity(identity, StoredBearer(identity_id=identity.id, sealed=sealed))
    snapshots.publish_ladder(StoredLadder(identity_id=identity.id, version=1))
    again = snapshots.publish_identity(replace(identity, version=2, email="a@example.org"))
    assert again.bearers is first.bearers
    assert again.ladder is not None
    assert snapshots.publish_identity(replace(identity, version=3), None).bearers is None
    back = snapshots.publish_identity(
        replace(identity, version=4), StoredBearer(identity_id=identity.id, sealed=sealed)
    )
    assert back.bearers is not None
    deleted = snapshots.publish_identity(replace(identity, version=5, state=IdentityState.DELETED))
    assert (deleted.bearers, deleted.stored_bearer) == (None, None)


async def test_a_deleted_identity_is_forgotten_in_time(world: World) -> None:
    """For a day who asks for it learns that it was revoked; then it is gone from memory, and listeners are told."""
    agent, snapshots = await world.add_agent(), world.snapshots()
    await snapshots.warm_up()
    await world.store.write_identity(replace(agent, state=IdentityState.DELETED))
    await snapshots.follow()
    world.clock.pass_(DELETED_REMEMBERED_SECONDS - 1)
    await snapshots.follow()
    assert snapshots.named(agent.name) is not None
    told = told_by(snapshots)
    world.clock.pass_(1)
    await snapshots.follow()
    assert (snapshots.named(agent.name), snapshots.view(agent.id), snapshots.views()) == (None, None, [])
    assert told == [agent.id]


async def test_no_more_deleted_identities_are_remembered_than_fit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are deleted in a day, memory holds the last of them; a name that was taken anew stays taken."""
    monkeypatch.setattr(snapshots_module, "_MOST_DELETED", 2)
    snapshots = world.snapshots()
    await snapshots.warm_up()
    for _ in range(3):
        agent = await world.add_agent("again")
        await world.store.write_identity(replace(agent, state=IdentityState.DELETED))
    last = await world.add_agent("again")
    await snapshots.follow()
    await snapshots.follow()
    assert len(snapshots.views()) == 3
    found = snapshots.named(IdentityName("again"))
    assert found is not None
    assert found.identity.id == last.id


async def test_that_there_is_no_binding_is_remembered_until_one_is_written(world: World) -> None:
    """Callers of a thread that cannot be registered cost one read in a few seconds, and miss nothing others write."""
    agent, snapshots = await world.add_agent(), world.snapshots()
    await snapshots.warm_up()
    await snapshots.follow()
    world.store.calls.clear()
    for _ in range(3):
        assert await snapshots.load_task(agent, ThreadId("thread")) is None
    assert world.store.calls["task"] == 1
    world.clock.pass_(6)
    await snapshots.load_task(agent, ThreadId("thread"))
    assert world.store.calls["task"] == 2
    await world.add_task(agent, "thread")
    await snapshots.follow()
    assert await snapshots.load_task(agent, ThreadId("thread")) is not None


async def test_that_a_binding_has_no_upstream_task_is_remembered_until_one_is_written(world: World) -> None:
    """The same for a thread of before a change of generation, whose task cannot be registered now."""
    agent, snapshots = await world.add_agent(), world.snapshots()
    await world.add_task(agent, "thread")
    changed = await world.store.write_identity(replace(agent, generation=agent.generation + 1))
    await snapshots.warm_up()
    await snapshots.follow()
    world.store.calls.clear()
    for _ in range(3):
        found = await snapshots.load_task(changed, ThreadId("thread"))
        assert found is not None
        assert found.upstream is None
    assert world.store.calls["task"] == 1
    outcome = await world.store.claim_task(task_claim(changed, "thread"))
    snapshots.publish_task(outcome.task)
    again = await snapshots.load_task(changed, ThreadId("thread"))
    assert again is not None
    assert again.upstream is not None


async def test_what_is_not_there_is_remembered_within_bounds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers that ask for ever new threads do not fill the memory."""
    monkeypatch.setattr(snapshots_module, "_MOST_ABSENT", 3)
    agent, snapshots = await world.add_agent(), world.snapshots()
    for number in range(10):
        await snapshots.load_task(agent, ThreadId(f"thread-{number}"))
    assert len(snapshots._absent) == 3


async def test_a_load_is_waited_for_no_longer_than_said(world: World) -> None:
    """A store that does not answer in time is told as away; the read goes on, and the next caller has its result."""
    agent = await world.add_agent()
    await world.add_task(agent, "thread")
    snapshots = world.snapshots()
    gate = world.store.hold("task")
    with pytest.raises(StoreDownError) as caught:
        await snapshots.load_task(agent, ThreadId("thread"), wait_until=world.clock.monotonic())
    assert caught.value.retry_after
    gate.set()
    assert await snapshots.load_task(agent, ThreadId("thread")) is not None


async def test_a_pruned_binding_leaves_the_memory_of_every_process(world: World) -> None:
    """What one process prunes because nobody used it is gone for those that follow, and one that was used stays."""
    agent = await world.add_agent()
    idle, used = await world.add_task(agent, "idle"), await world.add_task(agent, "used")
    snapshots = world.snapshots()
    for task in (idle, used):
        snapshots.publish_task(task)
    await world.store.touch_tasks([(used.id, NOW + 50)])
    assert await world.store.prune(NOW + 60, idle_before=NOW + 40, limit=100)
    await snapshots.follow()
    assert snapshots.task(agent, ThreadId("idle")) is None
    assert snapshots.task(agent, ThreadId("used")) is not None


async def test_a_binding_published_during_a_read_of_before_is_kept(world: World) -> None:
    """A read that saw the pruned state does not take away what was registered since."""
    agent = await world.add_agent()
    idle = await world.add_task(agent, "thread")
    snapshots = world.snapshots()
    snapshots.publish_task(idle)
    await world.store.prune(NOW + 60, idle_before=NOW + 40, limit=100)
    real = world.store.store.task

    async def overtaken(identity_id: IdentityId, thread_id: ThreadId | None) -> Task | None:
        seen = await real(identity_id, thread_id)
        world.store.store.task = real  # type: ignore[method-assign]
        snapshots.publish_task(await world.add_task(agent, "thread", "anew"))
        return seen

    world.store.store.task = overtaken  # type: ignore[method-assign]
    await snapshots._load_task(agent.id, ThreadId("thread"))
    found = snapshots.task(agent, ThreadId("thread"))
    assert found is not None
    assert found.upstream_task_id == "anew"


async def test_a_quiet_store_is_asked_for_nothing_but_whether_it_changed(world: World) -> None:
    """A look without changes costs one cheap question, proves the contact, and tells nobody anything."""
    await world.add_agent()
    snapshots = world.snapshots()
    await snapshots.warm_up()
    await snapshots.follow()
    world.store.calls.clear()
    told = told_by(snapshots)
    world.clock.pass_(3)
    await snapshots.follow()
    assert world.store.calls == {"has_changed": 1}
    assert snapshots.confirmation.wall == NOW + 3
    assert told == []


async def test_a_look_that_was_cut_off_is_taken_up_again(world: World) -> None:
    """That something changed is not forgotten when it could not be read, although nothing else is written since."""
    agent, snapshots = await world.add_agent(), world.snapshots()
    await snapshots.warm_up()
    await snapshots.follow()
    await world.store.write_identity(replace(agent, state=IdentityState.DISABLED))
    world.store.fail("changes")
    with pytest.raises(StoreDownError):
        await snapshots.follow()
    await snapshots.follow()
    (view,) = snapshots.views()
    assert view.identity.state is IdentityState.DISABLED


async def test_a_revocation_waits_for_one_newcomer_at_most(world: World) -> None:
    """What changed while one of many new identities was read is taken in before the next of them."""
    agent, snapshots = await world.add_agent(), world.snapshots()
    await snapshots.warm_up()
    newcomers = [(await world.add_agent(f"newcomer-{'x' * number}")).id for number in range(3)]
    order: list[IdentityId | None] = []
    snapshots.subscribe(order.append)
    real = world.store.store.whole_identity

    async def meanwhile(identity_id: IdentityId) -> WholeIdentity | None:
        world.store.store.whole_identity = real  # type: ignore[method-assign]
        await world.store.write_identity(replace(agent, state=IdentityState.DISABLED))
        return await real(identity_id)

    world.store.store.whole_identity = meanwhile  # type: ignore[method-assign]
    await snapshots.follow()
    told = list(dict.fromkeys(order))
    assert sorted(map(str, told)) == sorted(map(str, [agent.id, *newcomers]))
    assert told[1] == agent.id


async def test_revocations_by_others_are_measured(world: World) -> None:
    """From the row's own time to the moment it is heeded here; what this process revoked itself is not counted."""
    agents = [await world.add_agent(f"agent-{'x' * number}") for number in range(3)]
    for agent in agents:
        await world.add_task(agent, "thread")
    metrics = Metrics()
    snapshots = world.snapshots(metrics=metrics)
    await snapshots.warm_up()
    for agent in agents:
        await snapshots.load_task(agent, ThreadId("thread"))
    ours = await world.store.write_identity(replace(agents[0], state=IdentityState.DISABLED, update_time=NOW))
    snapshots.publish_identity(ours)
    await world.store.write_identity(replace(agents[1], state=IdentityState.DISABLED, update_time=NOW))
    await world.store.end_task(agents[2].id, ThreadId("thread"), now=NOW, purge_time=NOW + 60)
    world.clock.pass_(0.4)
    await snapshots.follow()
    await snapshots.follow()

    def value(name: str, what: str, **labels: str) -> float | None:
        full = f"credential_broker_revocation_propagation_seconds_{name}"
        return metrics.registry.get_sample_value(full, {"what": what, **labels})

    for what in ("identity", "task"):
        assert value("count", what) == 1
        assert value("sum", what) == pytest.approx(0.4)
        assert (value("bucket", what, le="0.3"), value("bucket", what, le="0.5")) == (0, 1)


async def test_an_upstream_task_that_others_replaced_is_read_through_a_binding(world: World) -> None:
    """A successor that another process registered is used by every thread that shares it; one without bindings goes."""
    agent = await world.add_agent()
    one = await world.add_task(agent, "one", "old", key="single")
    await world.store.claim_task(task_claim(agent, "two", key="single"))
    lonely = await world.add_task(agent, "three", "lonely", key="other")
    snapshots = world.snapshots(cached_threads=10)
    await snapshots.warm_up()
    for thread in ("one", "two"):
        await snapshots.load_task(agent, ThreadId(thread))
    assert lonely.upstream is not None
    snapshots.publish_upstream(lonely.upstream)
    assert one.upstream is not None
    for task, name in ((one, "new"), (lonely, "newer")):
        assert task.upstream is not None
        wish = task_claim(agent, task.thread_id, key=task.upstream_key, replace=task.upstream.version)
        claimed = await world.store.claim_task(wish)
        assert isinstance(claimed, Claimed)
        assert claimed.task.upstream is not None
        sealed = world.keyring.seal(name.encode(), context=task_id_context(claimed.task.upstream))
        await world.store.complete_claim(claimed.task.upstream, sealed_task_id=sealed, now=NOW, expire_time=None)
    await snapshots.follow()
    views = [snapshots.task(agent, ThreadId(thread)) for thread in ("one", "two")]
    assert [view.upstream_task_id for view in views if view] == ["new", "new"]
    assert not snapshots.upstream_lives(agent, UpstreamKey("other"))


async def test_threads_in_use_are_those_asked_for_of_late(world: World) -> None:
    """The latest first, one for each upstream task, none that shares the background's, and none that only lies there."""
    agent, stranger = await world.add_agent(), await world.add_agent("stranger")
    snapshots = world.snapshots()
    for owner, thread, key in (
        (agent, None, "shared"),
        (agent, "with-background", "shared"),
        (agent, "long-ago", "a"),
        (agent, "first", "b"),
        (agent, "twin", "b"),
        (agent, "last", "c"),
        (agent, "never", "d"),
        (agent, "ended", "e"),
        (stranger, "theirs", "f"),
    ):
        snapshots.publish_task(await world.add_task(owner, thread, key=key))
    ended = await world.store.end_task(agent.id, ThreadId("ended"), now=NOW, purge_time=NOW + 60)
    snapshots.publish_task(ended)
    snapshots.task(agent, ThreadId("long-ago"))
    world.clock.pass_(IN_USE_SECONDS + 1)
    for thread in (None, "with-background", "first", "twin", "ended", "last"):
        snapshots.task(agent, None if thread is None else ThreadId(thread))
    snapshots.task(stranger, ThreadId("theirs"))
    assert snapshots.threads_in_use(agent, limit=10) == ["last", "twin"]
    assert snapshots.threads_in_use(agent, limit=1) == ["last"]


async def test_letting_go_of_a_thread_leaves_nothing_of_it(world: World) -> None:
    """What is kept beside a binding goes with it: memory does not grow with the threads of the past."""
    agent = await world.add_agent()
    snapshots = world.snapshots(cached_threads=2)
    for number in range(6):
        snapshots.publish_task(await world.add_task(agent, f"thread-{number}"))
        snapshots.task(agent, ThreadId(f"thread-{number}"))
    sizes = [
        len(kept) for kept in (snapshots._tasks, snapshots._upstreams, snapshots._asked_for, snapshots._binding_of)
    ]
    assert sizes == [2, 2, 2, 2]
