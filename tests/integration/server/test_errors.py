"""Reasons that come of what is behind the broker, each provoked over real gRPC; the others have their own tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.emulator.faults import Action, FaultRule
from broker.emulator.routing import Operation
from tests.support.brokers import Broker, eventually, refused, running_broker, running_emulator
from tests.support.stores import FaultyStore

PER_THREAD = "codex-2026-05"
"""A profile with an upstream task per thread, so that each new thread is registered."""

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
FAILED = grpc.StatusCode.FAILED_PRECONDITION

Setting = Callable[[Broker, FaultyStore], Any]


def backend_fails(**rule: Any) -> Setting:
    """Let task registrations fail."""

    def set_up(broker: Broker, _: FaultyStore) -> None:
        broker.emulator.backend.faults.add(FaultRule(operation=Operation.TASK_REGISTER, count=None, **rule))

    return set_up


def store_is_down(_: Broker, store: FaultyStore) -> None:
    """Let every call of the store fail."""
    store.go_down()


def call_thread(broker: Broker) -> Any:
    """Ask for a thread that is new."""
    return broker.authorize(thread_id="new")


CASES: list[tuple[str, grpc.StatusCode, Setting | None, Callable[[Broker], Any]]] = [
    ("BACKEND_DOWN", UNAVAILABLE, backend_fails(action=Action.STATUS, status=503), call_thread),
    (
        "BACKEND_THROTTLED",
        UNAVAILABLE,
        backend_fails(action=Action.STATUS, status=429, retry_after="60"),
        call_thread,
    ),
    ("BACKEND_PROTOCOL", UNAVAILABLE, backend_fails(action=Action.GARBAGE), call_thread),
    ("IDENTITY_REJECTED", FAILED, backend_fails(action=Action.STATUS, status=403), call_thread),
    ("STORE_DOWN", UNAVAILABLE, store_is_down, lambda b: b.callers.EndTask(pb2.EndTaskRequest(thread_id="t"))),
    ("STORE_DOWN", UNAVAILABLE, store_is_down, lambda b: b.admin.GetIdentity(admin_pb2.GetIdentityRequest(name="a"))),
    (
        "IMPORT_INVALID",
        grpc.StatusCode.INVALID_ARGUMENT,
        None,
        lambda b: b.admin.ImportIdentity(
            admin_pb2.ImportIdentityRequest(
                request_id="i", name="i", mode=admin_pb2.IDENTITY_MODE_AGENT, auth_json=b"{"
            )
        ),
    ),
]


@pytest.mark.parametrize(("reason", "code", "set_up", "call"), CASES, ids=[case[0] for case in CASES])
async def test_what_is_behind_the_broker_has_its_own_reason(
    tmp_path: Path, reason: str, code: grpc.StatusCode, set_up: Setting | None, call: Callable[[Broker], Any]
) -> None:
    """Code and reason are exact, a delay is told where a retry helps, and a bad field is named."""
    stores: list[FaultyStore] = []

    def wrap(store: Any) -> Any:
        stores.append(FaultyStore(store))
        return stores[0]

    async with running_emulator(profile=PER_THREAD) as emulator:
        backends = {
            "default": {
                "profile": PER_THREAD,
                "base_url": f"{emulator.url}/backend-api",
                "authapi_base_url": f"{emulator.url}/api/accounts",
            }
        }
        async with running_broker(tmp_path / "state", emulator, wrap_store=wrap, backends=backends) as broker:
            await broker.create_agent()
            await eventually(lambda: broker.registrations() == 1)  # the background task's
            if set_up is not None:
                set_up(broker, stores[0])
            refusal = await refused(call(broker))
            stores[0].come_back()
            assert (refusal.reason, refusal.code) == (reason, code)
            assert (refusal.retry_seconds is not None) is (code is UNAVAILABLE)
            assert bool(refusal.violations) is (code is grpc.StatusCode.INVALID_ARGUMENT)


async def test_a_shared_task_and_an_ended_one_have_reasons(broker: Broker) -> None:
    """TASK_SHARED counts who shares, TASK_ENDED follows the end, SCOPE_DISABLED needs no backend."""
    await broker.create_agent()
    for thread in ("a", "b"):
        await broker.authorize(thread_id=thread)
    tasks = (await broker.admin.ListTasks(admin_pb2.ListTasksRequest())).tasks
    (task,) = [one for one in tasks if one.thread_id == "a"]
    refusal = await refused(broker.admin.RevokeTask(admin_pb2.RevokeTaskRequest(id=task.id)))
    assert (refusal.code, refusal.reason) == (FAILED, "TASK_SHARED")
    await broker.callers.EndTask(pb2.EndTaskRequest(thread_id="a"))
    refusal = await refused(broker.authorize(thread_id="a"))
    assert (refusal.code, refusal.reason) == (FAILED, "TASK_ENDED")
    await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
    refusal = await refused(broker.authorize(thread_id="b"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "IDENTITY_REVOKED")
