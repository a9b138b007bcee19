"""RotateIdentityKey of a whole broker: proven before the switch, undone when refused, gone on with when cut off."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import broker_admin_pb2_grpc, credential_broker_pb2_grpc
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.app import KEYRING_FILE
from broker.emulator import EmulatorServer
from broker.emulator.backend import IssuedIdentity
from broker.emulator.faults import Action, FaultRule
from broker.emulator.routing import Operation
from broker.errors import RowCorruptError
from broker.keyring import Keyring
from broker.model import Identity, IdentityName, IdentityState
from broker.snapshots import open_private_key
from tests.bench.processes import Server
from tests.bench.rotation import observe_rotation
from tests.support.assertions import assertion_of
from tests.support.broker_process import LEASE_SECONDS, backend_section
from tests.support.brokers import Broker, eventually, guarded_channel, refused, running_broker, running_emulator
from tests.support.watching import watching

PROFILES = ("codex-2026-04", "codex-2026-05", "codex-2026-08")
ROTATING, ACTIVE = admin_pb2.IDENTITY_STATE_ROTATING, admin_pb2.IDENTITY_STATE_ACTIVE


@contextlib.asynccontextmanager
async def agent(folder: Path, profile: str = "codex-2026-08") -> AsyncIterator[tuple[Broker, admin_pb2.Identity]]:
    """Run a broker that has an agent, with an emulator behind it."""
    async with (
        running_emulator(profile=profile) as emulator,
        running_broker(folder, emulator, backends=backend_section(profile, emulator.url)) as broker,
    ):
        yield broker, await broker.create_agent()


async def rotate(
    broker: Broker, request_id: str = "rotate-1", *, name: str = "agent", timeout: float = 20.0, **fields: Any
) -> admin_pb2.Identity:
    """Call RotateIdentityKey."""
    request = admin_pb2.RotateIdentityKeyRequest(request_id=request_id, name=name, **fields)
    return (await broker.admin.RotateIdentityKey(request, timeout=timeout)).identity


async def shown(broker: Broker, name: str = "agent") -> admin_pb2.Identity:
    """Return an identity as operators see it."""
    return (await broker.admin.GetIdentity(admin_pb2.GetIdentityRequest(name=name))).identity


async def accepted(broker: Broker, authorization: pb2.Authorization) -> bool:
    """Say whether the emulator takes the headers of an authorization."""
    return (await broker.sees(authorization)).status_code == 200


def fault(broker: Broker, action: Action, operation: Operation, **more: Any) -> str:
    """Let an operation of the emulator fail until further notice, and return the fault's id."""
    more.setdefault("count", None)
    return broker.emulator.backend.faults.add(FaultRule(action=action, operation=operation, **more)).rule_id


def keys_known(emulator: EmulatorServer) -> list[str]:
    """Return the public key of every agent the emulator registered, in order."""
    return [known["public_key"] for known in emulator.backend.registry.agents_json()]


# --- the change itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
async def test_a_new_agent_takes_the_place_of_the_old_one(tmp_path: Path, profile: str) -> None:
    """Key, runtime id and generation change; what was signed before is still accepted; no caller waits for a task."""
    async with agent(tmp_path, profile) as (broker, before):
        threads = [f"thread-{number}" for number in range(4)]
        old = [await broker.authorize(thread_id=thread) for thread in threads]
        after = await rotate(broker)
        assert (after.state, after.generation) == (ACTIVE, before.generation + 1)
        assert after.public_key != before.public_key
        assert after.agent_runtime_id != before.agent_runtime_id
        assert keys_known(broker.emulator) == [before.public_key, after.public_key]
        registered = broker.registrations()
        new = [await broker.authorize(thread_id=thread) for thread in threads]
        new.append(await broker.authorize("control_plane.analytics"))
        assert broker.registrations() == registered
        for authorization in (*old, *new):
            assert await accepted(broker, authorization)
        for authorization in new:
            assert assertion_of(authorization).is_signed_by(after.public_key)
            assert assertion_of(authorization).agent_runtime_id == after.agent_runtime_id
        tags = {authorization.connection_tag for authorization in old}
        assert tags.isdisjoint(authorization.connection_tag for authorization in new)


async def test_threads_out_of_use_follow_on_their_next_use(tmp_path: Path) -> None:
    """A task that no call asked for since the start is not registered ahead, and is registered when one does."""
    async with running_emulator(profile="codex-2026-05") as emulator:
        backends = backend_section("codex-2026-05", emulator.url)
        async with running_broker(tmp_path, emulator, backends=backends) as broker:
            await broker.create_agent()
            await broker.authorize(thread_id="thread-1")
        sections: dict[str, Any] = {"backends": backends, "limits": {"cached_threads": 1000}}
        async with running_broker(tmp_path, emulator, **sections) as broker:
            await rotate(broker)
            authorization = await broker.authorize(thread_id="thread-1")
            assert await accepted(broker, authorization)
            assert assertion_of(authorization).is_signed_by((await shown(broker)).public_key)


async def test_the_old_key_is_erased(tmp_path: Path) -> None:
    """After the switch the row holds the new key only, sealed to the new generation, and nothing is on its way."""
    async with agent(tmp_path) as (broker, before):
        sealed = (await row(broker)).sealed_private_key
        await rotate(broker)
        after = await row(broker)
        assert await broker.app.store.pending_agent(after.id) is None
    keyring = Keyring.load_or_create(tmp_path / KEYRING_FILE, may_create=False)
    assert open_private_key(keyring, after).ssh_public_key == after.public_key != before.public_key
    with pytest.raises(RowCorruptError):
        open_private_key(keyring, dataclasses.replace(after, sealed_private_key=sealed))


def states(*brokers: Broker) -> set[IdentityState]:
    """Return the states in which brokers see their one identity."""
    return {broker.app.snapshots.views()[0].identity.state for broker in brokers}


async def row(broker: Broker, name: str = "agent") -> Identity:
    """Return an identity as it stands in the store."""
    found = await broker.app.store.identity_named(IdentityName(name))
    assert found is not None
    return found


async def test_it_serves_with_the_old_key_until_the_new_one_is_proven(tmp_path: Path) -> None:
    """While the backend keeps the new agent's first task waiting, calls are answered with the old pair."""
    async with agent(tmp_path, "codex-2026-05") as (broker, before):
        await broker.authorize(thread_id="thread-1")
        hanging = fault(broker, Action.HANG, Operation.TASK_REGISTER)
        rotation = asyncio.create_task(rotate(broker))
        await eventually(lambda: broker.registrations("agent_register") == 2)
        await eventually(lambda: len(broker.emulator.backend.registry.agents_json()) == 2)
        meanwhile = await shown(broker)
        assert (meanwhile.state, meanwhile.public_key) == (ROTATING, before.public_key)
        authorization = await broker.authorize(thread_id="thread-1")
        assert assertion_of(authorization).is_signed_by(before.public_key)
        assert await accepted(broker, authorization)
        broker.emulator.backend.faults.remove(hanging)
        after = await rotation
        authorization = await broker.authorize(thread_id="thread-1")
        assert assertion_of(authorization).is_signed_by(after.public_key)
        assert await accepted(broker, authorization)


async def test_watchers_get_a_withdrawal_and_the_new_value(tmp_path: Path) -> None:
    """What was signed with the old key is taken back, and its successor is there at once."""
    async with agent(tmp_path) as (broker, before), watching(broker.callers) as watcher:
        await watcher.subscribe("mine")
        await watcher.value("mine")
        after = await rotate(broker)
        # While the new key was on its way, values of the old one may have come.
        event = await watcher.event()
        while event.WhichOneof("event") == "authorization":
            assert assertion_of(event.authorization).is_signed_by(before.public_key)
            event = await watcher.event()
        assert event.withdrawal.reason == pb2.WITHDRAWAL_REASON_GENERATION_CHANGED
        value = await watcher.value("mine")
        assert assertion_of(value).is_signed_by(after.public_key)
        assert await accepted(broker, value)


async def test_repeating_a_request_changes_nothing_more(tmp_path: Path) -> None:
    """The same request id brings the same identity; with other content it is refused; another id is another change."""
    async with agent(tmp_path) as (broker, _):
        await broker.create_agent("other")
        first = await rotate(broker)
        assert await rotate(broker) == first
        assert (await refused(rotate(broker, name="other"))).reason == "REQUEST_ID_REUSED"
        second = await rotate(broker, "rotate-2")
        assert second.generation == first.generation + 1
        assert broker.registrations("agent_register") == 4


async def test_a_caller_who_gave_up_goes_on_by_the_request_id(tmp_path: Path) -> None:
    """The call ends in time with REGISTRATION_IN_PROGRESS; repeated it waits for the same key."""
    async with agent(tmp_path) as (broker, before):
        hanging = fault(broker, Action.HANG, Operation.AGENT_REGISTER)
        refusal = await refused(rotate(broker, timeout=0.5))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "REGISTRATION_IN_PROGRESS")
        pending = await broker.app.store.pending_agent((await row(broker)).id)
        assert pending is not None
        broker.emulator.backend.faults.remove(hanging)
        after = await rotate(broker)
        assert after.public_key == pending.public_key
        assert keys_known(broker.emulator) == [before.public_key, after.public_key]


async def test_two_brokers_at_once_make_one_new_agent(tmp_path: Path) -> None:
    """Operators who ask two brokers of one database at once get one new agent, and both are told of it."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as one:
        before = await one.create_agent()
        async with running_broker(tmp_path, emulator) as other:
            hanging = fault(one, Action.HANG, Operation.AGENT_REGISTER)
            rotations = [asyncio.create_task(rotate(broker, f"r-{n}")) for n, broker in enumerate((one, other))]
            await eventually(lambda: one.registrations("agent_register") == 2)
            await eventually(lambda: states(one, other) == {IdentityState.ROTATING})
            emulator.backend.faults.remove(hanging)
            first, second = await asyncio.gather(*rotations)
            assert first == second
            assert keys_known(emulator) == [before.public_key, first.public_key]
            for broker in (one, other):
                authorization = await broker.authorize(thread_id="thread-1")
                assert assertion_of(authorization).is_signed_by(first.public_key)
                assert await accepted(broker, authorization)


# --- refused, away, overtaken -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [Operation.AGENT_REGISTER, Operation.TASK_REGISTER])
async def test_a_refused_agent_leaves_the_old_one(tmp_path: Path, operation: Operation) -> None:
    """A 4xx at either registration undoes the change: the old pair goes on, and the same request tries anew."""
    async with agent(tmp_path) as (broker, before):
        held = await broker.authorize(thread_id="thread-1")
        refusing = fault(broker, Action.STATUS, operation, status=403)
        refusal = await refused(rotate(broker))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "IDENTITY_REJECTED")
        assert "goes on with the one it had" in str(refusal.details[0])
        restored = await shown(broker)
        assert (restored.state, restored.generation) == (ACTIVE, before.generation)
        assert (restored.public_key, restored.agent_runtime_id) == (before.public_key, before.agent_runtime_id)
        authorization = await broker.authorize(thread_id="thread-1")
        assert authorization.connection_tag == held.connection_tag
        assert await accepted(broker, authorization)
        broker.emulator.backend.faults.remove(refusing)
        after = await rotate(broker)
        assert after.generation == before.generation + 1
        assert await accepted(broker, await broker.authorize(thread_id="thread-1"))


async def test_tasks_of_a_refused_agent_are_never_used(tmp_path: Path) -> None:
    """What was registered ahead for an agent that came to nothing is not taken for the next one's."""
    async with agent(tmp_path, "codex-2026-05") as (broker, _):
        await broker.authorize(thread_id="thread-1")
        await broker.authorize(thread_id="thread-2")
        ours = broker.registrations()
        # The background task and one thread's get through, the other thread's is refused.
        fault(broker, Action.DELAY, Operation.TASK_REGISTER, seconds=0.01, count=2)
        refusing = fault(broker, Action.STATUS, Operation.TASK_REGISTER, status=403)
        assert (await refused(rotate(broker))).reason == "IDENTITY_REJECTED"
        assert broker.registrations() >= ours + 2
        broker.emulator.backend.faults.remove(refusing)
        after = await rotate(broker, "rotate-2")
        for thread in ("thread-1", "thread-2"):
            authorization = await broker.authorize(thread_id=thread)
            assert assertion_of(authorization).agent_runtime_id == after.agent_runtime_id
            assert await accepted(broker, authorization)


@pytest.mark.parametrize("operation", [Operation.AGENT_REGISTER, Operation.TASK_REGISTER])
async def test_a_backend_that_is_away_is_waited_for(tmp_path: Path, operation: Operation) -> None:
    """A 503 is no refusal: the old pair serves, the state says ROTATING, and the change is carried on with the same key."""
    async with agent(tmp_path) as (broker, before):
        await broker.authorize(thread_id="thread-1")
        away = fault(broker, Action.STATUS, operation, status=503, retry_after="0")
        assert (await refused(rotate(broker))).reason == "BACKEND_DOWN"
        meanwhile = await shown(broker)
        assert (meanwhile.state, meanwhile.public_key) == (ROTATING, before.public_key)
        assert await accepted(broker, await broker.authorize(thread_id="thread-1"))
        pending = await broker.app.store.pending_agent((await row(broker)).id)
        broker.emulator.backend.faults.remove(away)
        await eventually(lambda: broker.app.snapshots.views()[0].identity.generation == before.generation + 1)
        after = await shown(broker)
        assert pending is not None
        assert (after.state, after.public_key) == (ACTIVE, pending.public_key)
        assert len(keys_known(broker.emulator)) == 2
        assert await accepted(broker, await broker.authorize(thread_id="thread-1"))


@pytest.mark.parametrize("verb", ["disable", "delete"])
@pytest.mark.parametrize("operation", [Operation.AGENT_REGISTER, Operation.TASK_REGISTER])
async def test_an_operator_who_stops_the_identity_wins(tmp_path: Path, verb: str, operation: Operation) -> None:
    """Disabled or deleted in the midst of it, the identity stays so, and the new agent comes to nothing."""
    async with agent(tmp_path) as (broker, before):
        hanging = fault(broker, Action.HANG, operation)
        rotation = asyncio.create_task(refused(rotate(broker)))
        await eventually(lambda: broker.registrations("agent_register") == 2)
        if operation is Operation.TASK_REGISTER:
            tasks = broker.registrations()
            await eventually(lambda: broker.registrations() > tasks or len(keys_known(broker.emulator)) == 2)
        if verb == "disable":
            await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
        else:
            await broker.admin.DeleteIdentity(admin_pb2.DeleteIdentityRequest(name="agent"))
        broker.emulator.backend.faults.remove(hanging)
        assert (await rotation).reason in ("GENERATION_CHANGED", "IDENTITY_REVOKED")
        assert (await refused(broker.authorize(thread_id="thread-1", identity="agent"))).reason == "IDENTITY_REVOKED"
        if verb == "disable":
            identity = await broker.admin.EnableIdentity(admin_pb2.EnableIdentityRequest(name="agent"))
            assert (identity.identity.state, identity.identity.public_key) == (ACTIVE, before.public_key)
            assert await accepted(broker, await broker.authorize(thread_id="thread-1"))


async def test_a_setting_changed_meanwhile_is_kept(tmp_path: Path) -> None:
    """An update in the midst of a change of key survives it."""
    async with agent(tmp_path) as (broker, before):
        hanging = fault(broker, Action.HANG, Operation.AGENT_REGISTER)
        rotation = asyncio.create_task(rotate(broker))
        await eventually(lambda: broker.registrations("agent_register") == 2)
        change = admin_pb2.UpdateIdentityRequest(identity=admin_pb2.Identity(name="agent", assertions_enabled=False))
        change.update_mask.paths.append("assertions_enabled")
        await broker.admin.UpdateIdentity(change)
        broker.emulator.backend.faults.remove(hanging)
        after = await rotation
        assert after.public_key != before.public_key
        assert not after.assertions_enabled


# --- who cannot -------------------------------------------------------------------------------------------------------


def record(issued: IssuedIdentity, **tokens: str) -> bytes:
    """Return an auth.json with an agent record, and with the tokens of a login where some are given."""
    agent_identity = {
        "agent_runtime_id": issued.agent_runtime_id,
        "agent_private_key": issued.private_key,
        "account_id": "account-emulator",
        "chatgpt_user_id": "user-emulator",
        "email": "emulator@example.com",
        "plan_type": "business",
        "chatgpt_account_is_fedramp": False,
    }
    return json.dumps({"agent_identity": agent_identity} | ({"tokens": tokens} if tokens else {})).encode()


async def take_over(broker: Broker, **source: Any) -> admin_pb2.Identity:
    """Import an identity of mode AGENT."""
    request = admin_pb2.ImportIdentityRequest(
        request_id="import", name="taken", mode=admin_pb2.IDENTITY_MODE_AGENT, **source
    )
    return (await broker.admin.ImportIdentity(request, timeout=10)).identity


@pytest.mark.parametrize(
    ("kind", "way_out"),
    [
        ("jwt", "give it a new one with ReauthenticateIdentity"),
        ("bare key", "create a new identity"),
        ("record without a login", "needs a bearer"),
        ("bearer", "ReauthenticateIdentity gives it a new bearer"),
    ],
)
async def test_what_cannot_register_itself_is_told_what_to_do(tmp_path: Path, kind: str, way_out: str) -> None:
    """ROTATION_UNSUPPORTED with a way out, and neither store nor backend hears of it."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = emulator.backend.issue_identity()
        bare = admin_pb2.BareKey(
            private_key=issued.private_key, agent_runtime_id=issued.agent_runtime_id, account_id="account-emulator"
        )
        token = emulator.backend.mint_token(lifetime=timedelta(days=1)).access_token
        if kind == "jwt":
            await take_over(broker, identity_jwt=issued.jwt)
        elif kind == "bare key":
            await take_over(broker, bare_key=bare)
        elif kind == "record without a login":
            await take_over(broker, auth_json=record(issued))
        else:
            await broker.admin.CreateIdentity(
                admin_pb2.CreateIdentityRequest(
                    request_id="create",
                    name="taken",
                    mode=admin_pb2.IDENTITY_MODE_BEARER,
                    static_bearer=admin_pb2.StaticBearer(token=token),
                )
            )
        before = await row(broker, "taken")
        refusal = await refused(rotate(broker, name="taken"))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ROTATION_UNSUPPORTED")
        assert way_out in str(refusal.details[0])
        assert broker.registrations("agent_register") == 0
        assert await row(broker, "taken") == before
        assert await broker.app.store.pending_agent(before.id) is None


async def test_a_profile_that_registers_no_agents(tmp_path: Path) -> None:
    """Generation B: a record with its login could register elsewhere, not here."""
    profile = "codex-2026-04-provider"
    async with (
        running_emulator(profile=profile) as emulator,
        running_broker(tmp_path, emulator, backends=backend_section(profile, emulator.url)) as broker,
    ):
        tokens = json.loads(emulator.backend.mint_token(lifetime=timedelta(days=1)).auth_json())["tokens"]
        await take_over(broker, auth_json=record(emulator.backend.issue_identity(), **tokens))
        refusal = await refused(rotate(broker, name="taken"))
        assert refusal.reason == "ROTATION_UNSUPPORTED"
        assert "registers no agents" in str(refusal.details[0])


async def test_an_imported_record_with_its_login_is_rotated(tmp_path: Path) -> None:
    """The login that came with it registers the new key, and the identity is the same."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        tokens = json.loads(emulator.backend.mint_token(lifetime=timedelta(days=1)).auth_json())["tokens"]
        before = await take_over(broker, auth_json=record(emulator.backend.issue_identity(), **tokens))
        after = await rotate(broker, name="taken")
        assert (after.id, after.generation) == (before.id, before.generation + 1)
        authorization = await broker.authorize(thread_id="thread-1")
        assert assertion_of(authorization).is_signed_by(after.public_key)
        assert await accepted(broker, authorization)


async def test_a_login_that_has_ended_begins_nothing(tmp_path: Path) -> None:
    """Where the login that would register the new key is over, REAUTH_REQUIRED is said before anything is written."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        tokens = json.loads(emulator.backend.mint_token(lifetime=timedelta(hours=-1)).auth_json())["tokens"]
        await take_over(broker, auth_json=record(emulator.backend.issue_identity(), **tokens))
        before = await row(broker, "taken")
        assert (await refused(rotate(broker, name="taken"))).reason == "REAUTH_REQUIRED"
        assert await row(broker, "taken") == before
        assert await accepted(broker, await broker.authorize(thread_id="thread-1"))


async def test_a_disabled_identity_is_not_rotated(tmp_path: Path) -> None:
    """IDENTITY_REVOKED, and the backend hears nothing."""
    async with agent(tmp_path) as (broker, _):
        await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
        assert (await refused(rotate(broker))).reason == "IDENTITY_REVOKED"
        assert broker.registrations("agent_register") == 1


async def test_an_etag_of_before_is_refused(tmp_path: Path) -> None:
    """With the etag of an older version nothing is begun."""
    async with agent(tmp_path) as (broker, before):
        after = await rotate(broker)
        refusal = await refused(rotate(broker, "rotate-2", etag=before.etag))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "GENERATION_CHANGED")
        assert (await shown(broker)).public_key == after.public_key


# --- killed at each step ----------------------------------------------------------------------------------------------

STEPS = ("claim_agent", "record_agent", "claim_task", "complete_claim", "adopt_agent")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_each_step(tmp_path: Path, step: str, moment: str) -> None:
    """
    A broker that dies (kill -9) before or after any write of a change of key leaves what the next one carries through.

    The key that the backend was told is the one that serves in the end, and it was registered once, but where the answer
    was lost with the broker: then the same key was registered again.
    """
    profile, state = "codex-2026-05", tmp_path / "state"
    order = admin_pb2.RotateIdentityKeyRequest(request_id="rotate", name="agent")
    sections: dict[str, Any] = {"limits": {"registration_lease_seconds": LEASE_SECONDS}}
    async with running_emulator(profile=profile) as emulator:
        sections["backends"] = backend_section(profile, emulator.url)
        async with running_broker(state, emulator, **sections) as broker:
            before = await broker.create_agent()
            await broker.authorize(thread_id="thread-1")
            await broker.authorize("control_plane.analytics")
        arguments = ["--state-dir", str(state), "--backend", emulator.url, "--profile", profile]
        arguments += [f"--die-{moment}", step]
        with Server("killed", "tests.support.broker_process", arguments, folder=tmp_path) as server:
            serving = await asyncio.to_thread(server.next_event)
            async with guarded_channel(serving["callers"]) as callers, guarded_channel(serving["admin"]) as admin:
                # A caller in between, so that the thread's task is one of those in use.
                used = pb2.GetAuthorizationRequest(scope="inference", thread_id="thread-1")
                await credential_broker_pb2_grpc.CredentialBrokerStub(callers).GetAuthorization(used, timeout=20)
                with pytest.raises(grpc.aio.AioRpcError):
                    await broker_admin_pb2_grpc.BrokerAdminStub(admin).RotateIdentityKey(order, timeout=20)
        async with running_broker(state, emulator, **sections) as broker:
            # By itself, as soon as what the killed one held is free.
            await eventually(lambda: states(broker) == {IdentityState.ACTIVE}, seconds=30)
            after = (await broker.admin.RotateIdentityKey(order, timeout=20)).identity
            assert (after.state, after.generation) == (ACTIVE, before.generation + 1)
            authorization = await broker.authorize(thread_id="thread-1")
            assert assertion_of(authorization).is_signed_by(after.public_key)
            assert await accepted(broker, authorization)
        known = keys_known(emulator)
        assert known[0] == before.public_key
        assert set(known[1:]) == {after.public_key}
        assert len(known) == (3 if (step, moment) == ("record_agent", "before") else 2)


# --- under load -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("brokers", "profile"), [(1, "codex-2026-08"), (2, "codex-2026-05")])
async def test_no_header_is_rejected_while_the_key_changes(tmp_path: Path, brokers: int, profile: str) -> None:
    """A short run of `python -m tests.bench rotation`: callers notice nothing of several changes of key."""
    seen = await observe_rotation(
        tmp_path, brokers=brokers, profile=profile, seconds=5.0, rotations=3, rate=100, hold_seconds=2.0
    )
    assert (seen.rejected, dict(seen.refused), dict(seen.failures)) == (0, {}, {})
    assert (seen.calls, seen.rotations) == (500, 3)
    assert seen.agents >= 3
