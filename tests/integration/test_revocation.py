"""Several brokers on one database: what one of them revokes, the others refuse within a second, whatever slows them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.model import IdentityName, IdentityState, TaskState, ThreadId
from broker.store import Store
from tests.bench.revocation import Kind, observe_revocations
from tests.support.audit_lines import grants_in
from tests.support.brokers import Broker, eventually, refused, running_broker, running_emulator
from tests.support.stores import FaultyStore

PER_THREAD = "codex-2026-04"
WITHIN = 1.0
"""Seconds in which a revocation is heeded by every process."""


async def test_two_processes_started_at_once_heed_each_other(tmp_path: Path) -> None:
    """On an empty state directory both start, share key ring and database, and see each kind of revocation in time."""
    seen = await observe_revocations(tmp_path, revocations=16, workers=2, callers=2)
    assert {kind: len(times) for kind, times in seen.seconds.items()} == dict.fromkeys(Kind, 4)
    assert max(seen.all_seconds) < WITHIN
    assert set(seen.calls) == {"OK"}
    assert seen.histogram["+Inf"] > 0
    assert seen.histogram["1.0"] == seen.histogram["+Inf"]
    assert seen.audit_files == ["audit-2.jsonl", "audit.jsonl"]


@contextlib.asynccontextmanager
async def two_brokers(
    tmp_path: Path, *, wrap_store: Callable[[Store], Store] | None = None
) -> AsyncIterator[tuple[Broker, Broker]]:
    """Run two brokers of this process on one state directory, with one agent that both serve."""
    async with running_emulator(profile=PER_THREAD) as emulator:
        backend = {
            "default": {
                "profile": PER_THREAD,
                "base_url": f"{emulator.url}/backend-api",
                "authapi_base_url": f"{emulator.url}/api/accounts",
            }
        }
        async with (
            running_broker(tmp_path, emulator, backends=backend) as one,
            running_broker(tmp_path, emulator, backends=backend, wrap_store=wrap_store) as other,
        ):
            await one.create_agent()
            await eventually(lambda: state_at(other) is IdentityState.ACTIVE)
            yield one, other


def state_at(broker: Broker) -> IdentityState | None:
    """Return the agent's state as a broker knows it."""
    view = broker.app.snapshots.named(IdentityName("agent"))
    return None if view is None else view.identity.state


async def test_an_answer_of_the_same_second_is_not_given_again(tmp_path: Path) -> None:
    """What the other process handed out a moment ago is worked out anew once the thread was ended here."""
    async with two_brokers(tmp_path) as (one, other):
        await other.authorize(thread_id="thread")
        await one.callers.EndTask(pb2.EndTaskRequest(thread_id="thread"))
        began = time.monotonic()
        await until_refused(other, "thread", "TASK_ENDED")
        assert time.monotonic() - began < WITHIN
        assert grants_in(tmp_path / "audit-2.jsonl")["inference"] >= 1


async def until_refused(broker: Broker, thread_id: str, reason: str) -> None:
    """Ask without a pause until refused, and check why."""

    async def ask() -> None:
        async with asyncio.timeout(10):
            while True:
                await broker.authorize(thread_id=thread_id)

    assert (await refused(ask())).reason == reason


class SlowStore:
    """A store each of whose answers takes its time, as over a network or beside a heavy backup."""

    def __init__(self, store: Store, seconds: float) -> None:
        self._store = store
        self._seconds = seconds

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        real = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(self._seconds)
            return await real(*args, **kwargs)

        return call


@pytest.mark.parametrize("what", ["identity", "task"])
async def test_a_slow_store_is_followed_in_time(tmp_path: Path, what: str) -> None:
    """A revocation needs three answers of the store, and waits for the reading of one newcomer at most."""
    slow: Any = lambda store: SlowStore(store, 0.15)  # noqa: E731
    async with two_brokers(tmp_path, wrap_store=slow) as (one, other):
        await other.authorize(thread_id="thread")
        # Other things to read meanwhile: newcomers, all of whom together take much longer than a second.
        await asyncio.gather(*(one.create_agent(f"newcomer-{number}") for number in range(8)))
        assert await heeded(one, other, what) < WITHIN


async def heeded(one: Broker, other: Broker, what: str) -> float:
    """Revoke at one broker, and return how long it takes until the other's memory has it."""
    if what == "identity":
        await one.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
    else:
        await one.callers.EndTask(pb2.EndTaskRequest(identity="agent", thread_id="thread"))
    began = time.monotonic()

    def is_heeded() -> bool:
        if what == "identity":
            return state_at(other) is IdentityState.DISABLED
        view = other.app.snapshots.named(IdentityName("agent"))
        assert view is not None
        task = other.app.snapshots.task(view.identity, ThreadId("thread"))
        return task is not None and task.task.state is TaskState.ENDED

    await eventually(is_heeded)
    return time.monotonic() - began


async def test_a_starved_loop_follows_in_time(tmp_path: Path) -> None:
    """With an event loop that is hardly ever free, the few turns that following needs are had within the second."""
    async with two_brokers(tmp_path) as (one, other):
        await other.authorize(thread_id="thread")

        async def starve() -> None:
            while True:
                time.sleep(0.02)  # noqa: ASYNC251 - to starve the loop is what it is for
                await asyncio.sleep(0)

        starving = asyncio.create_task(starve())
        try:
            assert await heeded(one, other, "identity") < WITHIN
        finally:
            starving.cancel()


async def test_a_look_that_was_cut_off_misses_nothing(tmp_path: Path) -> None:
    """When the store fails between noticing a change and reading it, the next look reads it, though nothing else changed."""
    stores: list[FaultyStore] = []

    def wrapped(store: Any) -> Any:
        stores.append(FaultyStore(store))
        return stores[0]

    async with two_brokers(tmp_path, wrap_store=wrapped) as (one, other):
        await other.authorize(thread_id="thread")
        stores[0].fail("changes", times=2)
        stores[0].fail("whole_identity")
        assert await heeded(one, other, "identity") < WITHIN


async def test_a_write_that_was_in_flight_does_not_bring_the_old_state_back(tmp_path: Path) -> None:
    """A read of the other process that began before the revocation and ends after it changes nothing."""
    stores: list[FaultyStore] = []

    def wrapped(store: Any) -> Any:
        stores.append(FaultyStore(store))
        return stores[0]

    async with two_brokers(tmp_path, wrap_store=wrapped) as (one, other):
        await other.authorize(thread_id="thread")
        view = other.app.snapshots.named(IdentityName("agent"))
        assert view is not None
        stale = await stores[0].store.identity(view.identity.id)
        assert stale is not None
        await one.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
        await until_refused(other, "thread", "IDENTITY_REVOKED")
        other.app.snapshots.publish_identity(stale)
        assert (await refused(other.authorize(thread_id="thread"))).reason == "IDENTITY_REVOKED"
        assert (await refused(other.authorize(thread_id="another"))).reason == "IDENTITY_REVOKED"
