"""SIGTERM to a real `serve`: what was accepted is answered, what is new is sent elsewhere, and nothing is left."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import broker_admin_pb2_grpc, credential_broker_pb2_grpc
from credentialbroker.v1 import credential_broker_pb2 as pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from broker.emulator import EmulatorServer
from broker.emulator.faults import Action, FaultRule
from broker.emulator.routing import Operation
from tests.support.brokers import eventually, guarded_channel, refusal_of, running_emulator
from tests.support.command_line import PROGRAM, ROOT, WAIT_SECONDS, environment

PER_THREAD = "codex-2026-05"
"""A profile with an upstream task per thread, so that each new thread is registered."""


@dataclass
class Served:
    """A broker that runs as a process of its own, with one agent."""

    process: asyncio.subprocess.Process
    folder: Path
    callers: str = ""

    def stub(self, channel: grpc.aio.Channel) -> "credential_broker_pb2_grpc.CredentialBrokerAsyncStub":
        """Return what calls it."""
        return credential_broker_pb2_grpc.CredentialBrokerStub(channel)

    async def events_until(self, name: str) -> list[dict[str, Any]]:
        """Read its log up to an event."""
        assert self.process.stderr is not None
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(WAIT_SECONDS):
            while line := await self.process.stderr.readline():
                found.append(json.loads(line))
                if found[-1]["event"] == name:
                    return found
        raise AssertionError(f"it ended without {name}: {found}")

    async def ended(self) -> int:
        """Wait for its end and return its exit code."""
        async with asyncio.timeout(WAIT_SECONDS):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def serving(tmp_path: Path, emulator: EmulatorServer, **settings: str) -> AsyncIterator[Served]:
    """Run `serve` until the end of the block."""
    folder = tmp_path / "run"
    folder.mkdir()
    more = {
        "BROKER__STATE_DIR": str(tmp_path / "state"),
        "LISTEN__CALLERS": json.dumps(["127.0.0.1:0", f"unix://{folder}/callers.sock"]),
        "LISTEN__ADMIN": json.dumps([f"unix://{folder}/admin.sock"]),
        "LISTEN__HTTP": "127.0.0.1:0",
        "BACKENDS__DEFAULT__PROFILE": PER_THREAD,
        "BACKENDS__DEFAULT__BASE_URL": f"{emulator.url}/backend-api",
        "BACKENDS__DEFAULT__AUTHAPI_BASE_URL": f"{emulator.url}/api/accounts",
        **settings,
    }
    process = await asyncio.create_subprocess_exec(
        str(PROGRAM),
        "serve",
        "--dev",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment(**{f"CREDENTIAL_BROKER_{name}": value for name, value in more.items()}),
        cwd=ROOT,
        start_new_session=True,
    )
    served = Served(process, folder)
    try:
        event = (await served.events_until("serving"))[-1]
        served.callers = event["callers"][0]
        if registrations(emulator) == 0:
            await create_agent(event["admin"][0], emulator)
        yield served
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def create_agent(admin: str, emulator: EmulatorServer) -> None:
    """Create an identity and wait for its background task, so that later registrations are those of the test."""
    token = emulator.backend.mint_token(lifetime=timedelta(days=1)).access_token
    order = admin_pb2.CreateIdentityRequest(
        request_id="r1",
        name="agent",
        backend="default",
        mode=admin_pb2.IDENTITY_MODE_AGENT,
        static_bearer=admin_pb2.StaticBearer(token=token),
    )
    async with guarded_channel(admin) as channel:
        await broker_admin_pb2_grpc.BrokerAdminStub(channel).CreateIdentity(order)
    await eventually(lambda: registrations(emulator) == 1)


def registrations(emulator: EmulatorServer) -> int:
    """Count the task registrations that reached the backend."""
    return sum(1 for _ in emulator.backend.ledger.entries(operation="task_register"))


async def test_a_call_in_flight_is_answered(tmp_path: Path) -> None:
    """A registration that the backend holds ends with its answer; health was the first to tell; then the exit is 0."""
    async with running_emulator(profile=PER_THREAD) as emulator, serving(tmp_path, emulator) as served:
        async with guarded_channel(served.callers) as channel, grpc.aio.insecure_channel(served.callers) as probing:
            stub = served.stub(channel)
            health = health_pb2_grpc.HealthStub(probing).Watch(health_pb2.HealthCheckRequest())
            assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
            emulator.backend.faults.add(FaultRule(action=Action.HANG, operation=Operation.TASK_REGISTER))
            request = pb2.GetAuthorizationRequest(scope="inference", thread_id="held")
            held = asyncio.ensure_future(stub.GetAuthorization(request))
            await eventually(lambda: registrations(emulator) == 2)
            served.process.send_signal(signal.SIGTERM)
            assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert not held.done()
            assert (await stub.ListScopes(pb2.ListScopesRequest())).scopes, "balancers have not noticed yet"
            refused = await first_refusal(stub)
            assert refused.code() is grpc.StatusCode.UNAVAILABLE
            assert refusal_of(refused).reason == "DRAINING"
            emulator.backend.faults.remove()
            assert (await held).authorization.headers
        assert await served.ended() == 0
        assert os.listdir(served.folder) == []  # noqa: PTH208 - names are what is wanted


async def first_refusal(stub: Any) -> grpc.aio.AioRpcError:
    """Call until a call is refused."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                await stub.ListScopes(pb2.ListScopesRequest())
            except grpc.aio.AioRpcError as error:
                return error


async def test_no_call_is_lost_under_a_stream_of_calls(tmp_path: Path) -> None:
    """Each call is answered, or told to go elsewhere before it did anything: as many grants are audited as received."""
    async with running_emulator(profile=PER_THREAD) as emulator:
        async with serving(tmp_path, emulator, BROKER__DRAIN_SECONDS="0.2") as served:
            outcomes: Counter[str] = Counter()
            answered = 0

            async def call_on(number: int) -> None:
                nonlocal answered
                async with guarded_channel(served.callers, {"grpc.use_local_subchannel_pool": 1}) as channel:
                    stub = served.stub(channel)
                    for index in range(100_000):
                        request = pb2.GetAuthorizationRequest(scope="inference", thread_id=f"{number}-{index % 3}")
                        try:
                            await stub.GetAuthorization(request)
                        except grpc.aio.AioRpcError as error:
                            outcomes[refusal_of(error).reason] += 1
                            return  # to another replica
                        answered += 1

            callers = [asyncio.ensure_future(call_on(number)) for number in range(4)]
            await eventually(lambda: answered >= 100)
            served.process.send_signal(signal.SIGTERM)
            assert await served.ended() == 0
            await asyncio.gather(*callers)
        assert outcomes == {"DRAINING": len(callers)}
        lines = [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
        granted = sum(line["event"] == "grant" for line in lines)
        granted += sum(line["repeats"] for line in lines if line["event"] == "grant_repeated")
        assert granted == answered


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """Who is in a hurry says so twice; the exit code tells that something may be unfinished."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        serving(tmp_path, emulator, BROKER__DRAIN_SECONDS="600") as served,
    ):
        served.process.send_signal(signal.SIGTERM)
        await served.events_until("draining")
        served.process.send_signal(signal.SIGTERM)
        assert await served.ended() == 1


async def test_ctrl_c_is_the_same_as_sigterm(tmp_path: Path) -> None:
    """SIGINT drains too."""
    async with (
        running_emulator(profile=PER_THREAD) as emulator,
        serving(tmp_path, emulator, BROKER__DRAIN_SECONDS="0") as served,
    ):
        served.process.send_signal(signal.SIGINT)
        assert await served.ended() == 0
        assert os.listdir(served.folder) == []  # noqa: PTH208 - names are what is wanted


async def test_a_registration_whose_caller_has_gone_is_finished(tmp_path: Path) -> None:
    """What the backend was asked for is kept: after the next start the thread needs no registration."""
    async with running_emulator(profile=PER_THREAD) as emulator:
        async with (
            serving(tmp_path, emulator, BROKER__DRAIN_SECONDS="0") as served,
            guarded_channel(served.callers) as channel,
        ):
            emulator.backend.faults.add(FaultRule(action=Action.HANG, operation=Operation.TASK_REGISTER))
            call = served.stub(channel).RegisterTask(pb2.RegisterTaskRequest(thread_id="held"))
            waiting = asyncio.ensure_future(call)
            await eventually(lambda: registrations(emulator) == 2)
            waiting.cancel()
            served.process.send_signal(signal.SIGTERM)
            await served.events_until("draining")
            emulator.backend.faults.remove()
            assert await served.ended() == 0
        (tmp_path / "run").rmdir()
        async with (
            serving(tmp_path, emulator, BROKER__DRAIN_SECONDS="0") as served,
            guarded_channel(served.callers) as channel,
        ):
            task = (await served.stub(channel).RegisterTask(pb2.RegisterTaskRequest(thread_id="held"))).task
            assert task.state == pb2.TASK_STATE_ACTIVE
            assert registrations(emulator) == 2
