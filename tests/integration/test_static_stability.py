"""Backend and database away: what was had goes on, says for how long, and ends when it should."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2

from tests.support.brokers import Broker, eventually, refused, running_broker, running_emulator
from tests.support.clocks import JumpingClock
from tests.support.stores import FaultyStore


class Outage:
    """A broker with one agent whose backend and store a test takes away, and its clock."""

    def __init__(self, broker: Broker, clock: JumpingClock, store: FaultyStore) -> None:
        self.broker = broker
        self.clock = clock
        self.store = store

    async def begin(self) -> None:
        """Take both away for good measure: until `end` nothing answers."""
        self.store.go_down()
        await self.broker.emulator.__aexit__(None, None, None)

    async def end_of_store_outage(self) -> None:
        """Let the store come back and wait until the broker has found it."""
        self.store.come_back()
        before = self.broker.app.snapshots.confirmation
        await eventually(lambda: self.broker.app.snapshots.confirmation is not before)


@asynccontextmanager
async def outage(tmp_path: Path, **sections: Any) -> AsyncIterator[Outage]:
    """Run a broker with one agent and a warm thread `known`, ready to lose what it stands on."""
    clock = JumpingClock()
    stores: list[FaultyStore] = []

    def wrapped(store: Any) -> Any:
        stores.append(FaultyStore(store))
        return stores[0]

    async with (
        running_emulator() as emulator,
        running_broker(tmp_path, emulator, clock=clock, wrap_store=wrapped, **sections) as broker,
    ):
        token = emulator.backend.mint_token(lifetime=timedelta(hours=2)).access_token
        await broker.create_agent(static_bearer=admin_pb2.StaticBearer(token=token))
        await broker.authorize("inference", "known")
        await broker.authorize("control_plane.usage")
        yield Outage(broker, clock, stores[0])


def header(authorization: pb2.Authorization) -> str:
    """Return the credential."""
    return next(item.value for item in authorization.headers if item.name == "authorization")


async def test_what_was_had_goes_on_without_backend_and_store(tmp_path: Path) -> None:
    """Known tasks are signed anew and the bearer is served, second after second, and say since when they stand alone."""
    async with outage(tmp_path) as away:
        fresh = await away.broker.authorize("inference", "known")
        assert not fresh.stale
        await away.begin()
        confirmed = away.broker.app.snapshots.confirmation.wall
        seen = set()
        for minutes in (0.2, 10, 30, 50):
            away.clock.ahead = minutes * 60
            for scope, thread in (("inference", "known"), ("control_plane.usage", ""), ("bootstrap", "")):
                answer = await away.broker.authorize(scope, thread)
                assert answer.stale
                assert answer.offline_serving_until_time.ToNanoseconds() / 1e9 == pytest.approx(confirmed + 3600, abs=1)
                assert answer.expire_time.ToNanoseconds() / 1e9 > away.clock.now()
                seen.add(header(answer))
        # Four moments of two signed scopes that share a task (one upstream task for everything), and one bearer.
        assert len(seen) == 5


async def test_it_ends_at_the_time_that_was_told_and_heals_without_a_restart(tmp_path: Path) -> None:
    """After max_staleness every call is STORE_DOWN with a time to come back; with the store all is as before."""
    async with outage(tmp_path, broker={"max_staleness_seconds": 600}) as away:
        away.store.go_down()
        told = await away.broker.authorize("inference", "known")
        away.clock.ahead = told.offline_serving_until_time.ToNanoseconds() / 1e9 - away.clock.now() - 2
        await away.broker.authorize("inference", "known")
        away.clock.ahead += 4
        for scope, thread in (("inference", "known"), ("control_plane.usage", ""), ("bootstrap", "")):
            refusal = await refused(away.broker.authorize(scope, thread))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_DOWN")
            assert refusal.retry_seconds
        await away.end_of_store_outage()
        answer = await away.broker.authorize("inference", "known")
        assert not answer.stale
        assert away.broker.registrations() == 1


async def test_an_answer_is_stale_only_after_a_while(tmp_path: Path) -> None:
    """A store that was reached within five seconds counts as there; what is older is said."""
    async with outage(tmp_path) as away:
        away.store.go_down()
        assert not (await away.broker.authorize("inference", "known")).stale
        away.clock.ahead = 6
        assert (await away.broker.authorize("inference", "known")).stale
        await away.end_of_store_outage()
        away.clock.ahead += 1  # within one second an answer is given again as it was
        assert not (await away.broker.authorize("inference", "known")).stale


async def test_no_staleness_allowed_means_none(tmp_path: Path) -> None:
    """With max_staleness 0 nothing is answered once the store counts as away, and each answer promises nothing."""
    async with outage(tmp_path, broker={"max_staleness_seconds": 0}) as away:
        answer = await away.broker.authorize("inference", "known")
        assert answer.offline_serving_until_time.ToNanoseconds() <= answer.server_time.ToNanoseconds()
        away.store.go_down()
        away.clock.ahead = 6
        assert (await refused(away.broker.authorize("inference", "known"))).reason == "STORE_DOWN"
        await away.end_of_store_outage()
        await away.broker.authorize("inference", "known")


async def test_an_expired_bearer_is_not_served_however_alone(tmp_path: Path) -> None:
    """The promise to go on is capped by the credential: a bearer that ends earlier ends."""
    async with outage(tmp_path, broker={"max_staleness_seconds": 86400}) as away:
        await away.begin()
        away.clock.ahead = 3600
        answer = await away.broker.authorize("bootstrap")
        until = answer.offline_serving_until_time.ToNanoseconds() / 1e9 - away.clock.now()
        assert 3500 < until < 3600
        away.clock.ahead = 7200
        assert (await refused(away.broker.authorize("bootstrap"))).reason == "REAUTH_REQUIRED"
        # Its task has no end, and is signed on.
        await away.broker.authorize("inference", "known")


@pytest.mark.parametrize(
    ("profile", "gone", "required"),
    [
        ("codex-2026-04", "store", "STORE_DOWN"),
        ("codex-2026-04", "backend", "BACKEND_DOWN"),
        ("codex-2026-08", "store", "STORE_DOWN"),
    ],
)
async def test_a_new_thread_needs_what_is_away(tmp_path: Path, profile: str, gone: str, required: str) -> None:
    """An unknown thread is refused under assertion_required by what is missing, and falls back where that is allowed."""
    scopes = {"notes": {"credential": "assertion_preferred", "task": "thread"}}
    async with running_emulator(profile=profile) as emulator:
        stores: list[FaultyStore] = []

        def wrapped(store: Any) -> Any:
            stores.append(FaultyStore(store))
            return stores[0]

        backend = {
            "profile": profile,
            "base_url": f"{emulator.url}/backend-api",
            "authapi_base_url": f"{emulator.url}/api/accounts",
        }
        async with running_broker(
            tmp_path, emulator, wrap_store=wrapped, backends={"default": backend}, scopes=scopes
        ) as broker:
            await broker.create_agent()
            await broker.authorize("inference", "known")
            if gone == "store":
                stores[0].go_down()
            else:
                await emulator.__aexit__(None, None, None)
            refusal = await refused(broker.authorize("inference", "new"))
            assert (refusal.reason, refusal.code) == (required, grpc.StatusCode.UNAVAILABLE)
            answer = await broker.authorize("notes", "new")
            assert (answer.kind, answer.reason, answer.fallback_from) == (
                pb2.CREDENTIAL_KIND_BEARER,
                pb2.DECISION_REASON_TASK_UNAVAILABLE,
                pb2.CREDENTIAL_KIND_AGENT_ASSERTION,
            )
            assert (await broker.authorize("inference", "known")).kind == pb2.CREDENTIAL_KIND_AGENT_ASSERTION


async def test_threads_of_before_a_restart_are_there_for_the_outage_after_it(tmp_path: Path) -> None:
    """Tasks are taken into memory after a start without being asked for, also when the first try fails."""
    async with running_emulator() as emulator:
        async with running_broker(tmp_path, emulator) as broker:
            await broker.create_agent()
            for number in range(5):
                await broker.authorize("inference", f"thread-{number}")
        stores: list[FaultyStore] = []

        def wrapped(store: Any) -> Any:
            stores.append(FaultyStore(store))
            stores[0].fail("tasks")
            return stores[0]

        async with running_broker(tmp_path, emulator, wrap_store=wrapped) as broker:
            await eventually(lambda: sum(broker.app.snapshots.active_task_counts().values()) == 6)
            stores[0].go_down()
            answers = await asyncio.gather(*(broker.authorize("inference", f"thread-{number}") for number in range(5)))
            assert {answer.kind for answer in answers} == {pb2.CREDENTIAL_KIND_AGENT_ASSERTION}
