"""Identities of a whole broker: made, cut off and resumed, refused, renamed by others, in both modes."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.emulator import EmulatorServer
from broker.emulator.accounts import Account
from broker.emulator.faults import Action, FaultRule
from broker.emulator.routing import Operation
from broker.errors import GenerationChangedError
from broker.model import Identity, IdentityName, IdentityState
from broker.store import Store
from tests.support.assertions import assertion_of
from tests.support.brokers import Broker, eventually, refused, running_broker, running_emulator
from tests.support.stores import FaultyStore

AGENT, BEARER = admin_pb2.IDENTITY_MODE_AGENT, admin_pb2.IDENTITY_MODE_BEARER


def backend(profile: str, url: str) -> dict[str, Any]:
    """Return the configuration of a backend that speaks a profile."""
    return {
        "default": {"profile": profile, "base_url": f"{url}/backend-api", "authapi_base_url": f"{url}/api/accounts"}
    }


def token(emulator: EmulatorServer, account: Account | None = None) -> str:
    """Return an access token the emulator accepts for a day."""
    return emulator.backend.mint_token(account=account, lifetime=timedelta(days=1)).access_token


def write_token(path: Path, text: str) -> None:
    """Put a token into a file as a sink does: a new file in the old one's place."""
    draft = path.with_suffix(".tmp")
    draft.write_text(text + "\n")
    draft.rename(path)


def fault(emulator: EmulatorServer, action: Action, **more: Any) -> str:
    """Let agent registration fail, and return the fault's id."""
    more.setdefault("operation", Operation.AGENT_REGISTER)
    return emulator.backend.faults.add(FaultRule(action=action, **more)).rule_id


async def create(broker: Broker, request_id: str = "r1", *, timeout: float = 10, **fields: Any) -> admin_pb2.Identity:
    """Call CreateIdentity."""
    request = {"name": "agent", "mode": AGENT} | fields
    answer = await broker.admin.CreateIdentity(
        admin_pb2.CreateIdentityRequest(request_id=request_id, **request), timeout=timeout
    )
    return answer.identity


async def stored(broker: Broker, name: str = "agent") -> Identity | None:
    """Return an identity as it stands in the store."""
    return await broker.app.store.identity_named(IdentityName(name))


def every_byte(folder: Path) -> bytes:
    """Return the content of all files of a folder."""
    return b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())


def keys_known(emulator: EmulatorServer) -> list[str]:
    """Return the public key of every agent the emulator registered, in order."""
    return [agent["public_key"] for agent in emulator.backend.registry.agents_json()]


# --- create -----------------------------------------------------------------------------------------------------------


async def test_create_with_a_bearer_of_its_own(tmp_path: Path) -> None:
    """An agent is registered with a new key; account and user come from the bearer; its assertions are accepted."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        identity = await create(broker, static_bearer=admin_pb2.StaticBearer(token=token(emulator)))
        assert identity.state == admin_pb2.IDENTITY_STATE_ACTIVE
        assert (identity.account_id, identity.user_id) == ("account-emulator", "user-emulator")
        assert identity.can_register
        assert keys_known(emulator) == [identity.public_key]
        answer = await broker.authorize(thread_id="thread-1")
        assert assertion_of(answer).agent_runtime_id == identity.agent_runtime_id
        assert assertion_of(answer).is_signed_by(identity.public_key)
        assert (await broker.sees(answer)).json()["account_id"] == "account-emulator"


async def test_create_with_a_named_source(tmp_path: Path) -> None:
    """A source of the configuration serves to register and is named by the identity; the token is not in the database."""
    async with running_emulator() as emulator:
        file = tmp_path / "token"
        write_token(file, token(emulator))
        sources = {"login": {"type": "file", "path": str(file)}}
        async with running_broker(tmp_path / "state", emulator, bearer_sources=sources) as broker:
            identity = await create(broker, bearer_source="login")
            assert identity.bearer_source == "login"
            assert identity.account_id == "account-emulator"
            kept = await stored(broker)
            assert kept is not None
            assert await broker.app.store.bearer(kept.id) is None
            answer = await broker.authorize("bootstrap")
            assert (answer.kind, answer.reason) == (
                pb2.CREDENTIAL_KIND_BEARER,
                pb2.DECISION_REASON_SCOPE_IS_BEARER_ONLY,
            )
            assert (await broker.sees(answer)).status_code == 200


async def test_the_intent_is_stored_before_the_backend_is_called(tmp_path: Path) -> None:
    """While the backend hangs, the key it will know stands in the store already, sealed, in an identity that registers."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        hanging = fault(emulator, Action.HANG)
        call = asyncio.create_task(create(broker, static_bearer=admin_pb2.StaticBearer(token=token(emulator))))
        await eventually(lambda: broker.registrations("agent_register") == 1)
        row = await stored(broker)
        assert row is not None
        assert (row.state, row.agent_runtime_id) == (IdentityState.REGISTERING, None)
        assert row.sealed_private_key
        assert keys_known(emulator) == []
        emulator.backend.faults.remove(hanging)
        assert (await call).public_key == row.public_key
        assert keys_known(emulator) == [row.public_key]


async def test_cut_off_by_the_backend_and_gone_on_with_the_same_key(tmp_path: Path) -> None:
    """The backend registers and its answer is cut: the broker asks again with the key it has, and one identity comes of it."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        fault(emulator, Action.DROP_AFTER)
        identity = await create(broker, static_bearer=admin_pb2.StaticBearer(token=token(emulator)))
        assert keys_known(emulator) == [identity.public_key] * 2
        listed = (await broker.admin.ListIdentities(admin_pb2.ListIdentitiesRequest())).identities
        assert [one.id for one in listed] == [identity.id]
        assert (await broker.authorize(thread_id="thread-1")).kind == pb2.CREDENTIAL_KIND_AGENT_ASSERTION


async def test_a_caller_who_gave_up_resumes_by_its_request_id(tmp_path: Path) -> None:
    """The call times out, the broker goes on; the same request id brings the same identity, and the key was made once."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        bearer = admin_pb2.StaticBearer(token=token(emulator))
        hanging = fault(emulator, Action.HANG)
        refusal = await refused(create(broker, static_bearer=bearer, timeout=0.6))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "REGISTRATION_IN_PROGRESS")
        assert (await refused(broker.authorize(thread_id="thread-1"))).reason == "REGISTRATION_IN_PROGRESS"
        emulator.backend.faults.remove(hanging)
        identity = await create(broker, static_bearer=bearer)
        assert identity.state == admin_pb2.IDENTITY_STATE_ACTIVE
        assert await create(broker, static_bearer=bearer) == identity
        assert keys_known(emulator) == [identity.public_key]


async def test_goes_on_after_a_restart_with_the_same_key(tmp_path: Path) -> None:
    """A broker that stops in the midst of a create goes on by itself at the next start, with the key it had announced."""
    async with running_emulator() as emulator:
        away = fault(emulator, Action.STATUS, status=503, retry_after="0", count=None)
        async with running_broker(tmp_path, emulator) as broker:
            refusal = await refused(create(broker, static_bearer=admin_pb2.StaticBearer(token=token(emulator))))
            assert refusal.reason == "BACKEND_DOWN"
            row = await stored(broker)
            assert row is not None
        emulator.backend.faults.remove(away)
        async with running_broker(tmp_path, emulator) as broker:
            await eventually(lambda: broker.registrations("task_register") == 1)
            identity = (await broker.admin.GetIdentity(admin_pb2.GetIdentityRequest(name="agent"))).identity
            assert (identity.id, identity.public_key) == (row.id, row.public_key)
            assert keys_known(emulator) == [row.public_key]


async def test_a_request_id_with_other_content_is_refused(tmp_path: Path) -> None:
    """A request id stands for one content: name, token, account and switch all belong to it; nothing is made of another."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        bearer = admin_pb2.StaticBearer(token=token(emulator))
        await create(broker, static_bearer=bearer)
        for other in (
            {"name": "other", "static_bearer": bearer},
            {"static_bearer": admin_pb2.StaticBearer(token=token(emulator))},
            {"static_bearer": bearer, "account_id": "account-emulator"},
            {"static_bearer": bearer, "assertions_enabled": False},
        ):
            refusal = await refused(create(broker, **other))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
        assert broker.registrations("agent_register") == 1


async def test_a_401_costs_one_refresh_of_the_bearer(tmp_path: Path) -> None:
    """A login that the backend ceases to take while its file is replaced is read anew after the 401, and all goes well."""
    async with running_emulator() as emulator:
        file = tmp_path / "token"
        write_token(file, token(emulator))
        sources = {"login": {"type": "file", "path": str(file)}}
        async with running_broker(tmp_path / "state", emulator, bearer_sources=sources) as broker:
            hanging = fault(emulator, Action.HANG)
            call = asyncio.create_task(create(broker, bearer_source="login"))
            await eventually(lambda: broker.registrations("agent_register") == 1)
            emulator.backend.bearers.end_all()
            write_token(file, token(emulator))
            emulator.backend.faults.remove(hanging)
            assert (await call).state == admin_pb2.IDENTITY_STATE_ACTIVE
            asked = list(emulator.backend.ledger.entries(operation="agent_register"))
            assert [entry.refusal for entry in asked] == ["bearer_unknown", None]


async def test_a_401_for_a_fresh_bearer_rejects(tmp_path: Path) -> None:
    """When the refresh brings nothing new, one 401 is the end: IDENTITY_REJECTED, and the backend is left in peace."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        fault(emulator, Action.STATUS, status=401, count=None)
        refusal = await refused(create(broker, static_bearer=admin_pb2.StaticBearer(token=token(emulator))))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "IDENTITY_REJECTED")
        assert broker.registrations("agent_register") == 1
        await broker.app.upkeep._resume()
        assert broker.registrations("agent_register") == 1


async def test_disabled_while_registering(tmp_path: Path) -> None:
    """An identity that is disabled in the midst of its registration stays disabled; enabled again it is registered."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        hanging = fault(emulator, Action.HANG)
        call = asyncio.create_task(refused(create(broker, static_bearer=admin_pb2.StaticBearer(token=token(emulator)))))
        await eventually(lambda: broker.registrations("agent_register") == 1)
        await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
        emulator.backend.faults.remove(hanging)
        assert (await call).reason == "GENERATION_CHANGED"
        assert (await refused(broker.authorize(thread_id="thread-1"))).reason == "IDENTITY_REVOKED"
        enabled = (await broker.admin.EnableIdentity(admin_pb2.EnableIdentityRequest(name="agent"))).identity
        await eventually(
            lambda: broker.app.snapshots.views()[0].identity.state is IdentityState.ACTIVE,
        )
        answer = await broker.authorize(thread_id="thread-1")
        assert assertion_of(answer).is_signed_by(enabled.public_key)
        assert (await broker.sees(answer)).status_code == 200


async def test_a_change_that_another_write_came_before_is_made_once_more(tmp_path: Path) -> None:
    """An operator who named no etag need not repeat it; one who did is told, and so is whoever loses twice."""
    stores: list[FaultyStore] = []

    def wrap(store: Store) -> Store:
        stores.append(FaultyStore(store))
        return cast("Store", stores[-1])

    async with running_emulator() as emulator, running_broker(tmp_path, emulator, wrap_store=wrap) as broker:
        identity = await broker.create_agent()
        (store,) = stores
        store.fail("write_identity", GenerationChangedError())
        disabled = (await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))).identity
        assert disabled.state == admin_pb2.IDENTITY_STATE_DISABLED
        store.fail("write_identity", GenerationChangedError())
        request = admin_pb2.EnableIdentityRequest(name="agent", etag=disabled.etag)
        assert (await refused(broker.admin.EnableIdentity(request))).reason == "GENERATION_CHANGED"
        store.fail("write_identity", GenerationChangedError(), times=2)
        twice = admin_pb2.EnableIdentityRequest(name="agent")
        assert (await refused(broker.admin.EnableIdentity(twice))).reason == "GENERATION_CHANGED"
        store.fail("write_identity", GenerationChangedError())
        change = admin_pb2.UpdateIdentityRequest(identity=admin_pb2.Identity(name="agent", assertions_enabled=False))
        change.update_mask.paths.append("assertions_enabled")
        updated = (await broker.admin.UpdateIdentity(change)).identity
        assert (updated.assertions_enabled, updated.generation) == (False, identity.generation + 1)
        store.fail("write_identity", GenerationChangedError())
        deleted = (await broker.admin.DeleteIdentity(admin_pb2.DeleteIdentityRequest(name="agent"))).identity
        assert deleted.state == admin_pb2.IDENTITY_STATE_DELETED


async def test_changed_while_registering(tmp_path: Path) -> None:
    """A setting changed in the midst of a registration is kept, and so is the agent that the backend registered."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        hanging = fault(emulator, Action.HANG)
        call = asyncio.create_task(create(broker, static_bearer=admin_pb2.StaticBearer(token=token(emulator))))
        await eventually(lambda: broker.registrations("agent_register") == 1)
        change = admin_pb2.UpdateIdentityRequest(identity=admin_pb2.Identity(name="agent", assertions_enabled=False))
        change.update_mask.paths.append("assertions_enabled")
        await broker.admin.UpdateIdentity(change)
        emulator.backend.faults.remove(hanging)
        identity = await call
        assert identity.state == admin_pb2.IDENTITY_STATE_ACTIVE
        assert not identity.assertions_enabled
        assert keys_known(emulator) == [identity.public_key]


# --- what does not fit ------------------------------------------------------------------------------------------------


async def test_a_backend_that_registers_no_agents(tmp_path: Path) -> None:
    """Generation B has no agent registration: a create is refused with the way that works, and nothing is kept."""
    profile = "codex-2026-04-provider"
    async with (
        running_emulator(profile=profile) as emulator,
        running_broker(tmp_path, emulator, backends=backend(profile, emulator.url)) as broker,
    ):
        refusal = await refused(create(broker, static_bearer=admin_pb2.StaticBearer(token=token(emulator))))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BACKEND_UNSUPPORTED")
        assert "JWT" in str(refusal.details[0])
        assert await stored(broker) is None


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({}, "BEARER_UNAVAILABLE", None),
        ({"mode": BEARER}, "FIELD_INVALID", "bearer"),
        ({"mode": 0}, "FIELD_INVALID", "mode"),
        ({"bearer_source": "nowhere"}, "FIELD_INVALID", "bearer_source"),
        ({"backend": "nowhere"}, "FIELD_INVALID", "backend"),
        ({"name": "No Name"}, "FIELD_INVALID", "name"),
        ({"request_id": ""}, "FIELD_INVALID", "request_id"),
        (
            {"oauth_bearer": admin_pb2.OauthBearer(source="x", refresh_token="y")},
            "FIELD_INVALID",
            "oauth_bearer.source",
        ),
        ({"oauth_bearer": admin_pb2.OauthBearer(source="x")}, "FIELD_INVALID", "oauth_bearer.refresh_token"),
    ],
)
async def test_orders_that_do_not_fit(tmp_path: Path, fields: dict[str, Any], reason: str, field: str | None) -> None:
    """An order that cannot be carried out is refused with its reason and field; nothing is kept, nobody is asked."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        refusal = await refused(create(broker, **fields))
        assert refusal.reason == reason
        assert field is None or field in refusal.violations
        assert await stored(broker) is None
        assert list(emulator.backend.ledger.entries()) == []


async def test_a_source_that_takes_logins_is_none_to_be_read(tmp_path: Path) -> None:
    """Whoever names it as one is told what it is, not that it is not there."""
    sources = {"chatgpt": {"type": "oauth"}}
    async with running_emulator() as emulator, running_broker(tmp_path, emulator, bearer_sources=sources) as broker:
        refusal = await refused(create(broker, bearer_source="chatgpt"))
        assert refusal.violations["bearer_source"].startswith("is of type oauth")
        refusal = await refused(create(broker, bearer_source="nowhere"))
        assert refusal.violations["bearer_source"].startswith("is not configured")
        assert await stored(broker) is None


@pytest.mark.parametrize("field", ["account_id", "user_id"])
async def test_what_the_bearer_contradicts(tmp_path: Path, field: str) -> None:
    """An account or user that the bearer does not name is a mismatch, and nothing is kept."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        bearer = admin_pb2.StaticBearer(token=token(emulator))
        refusal = await refused(create(broker, static_bearer=bearer, **{field: "somebody-else"}))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ACCOUNT_MISMATCH")
        assert await stored(broker) is None
        assert (await create(broker, "r2", static_bearer=bearer, **{field: f"{field[:-3]}-emulator"})).name == "agent"


# --- mode BEARER ------------------------------------------------------------------------------------------------------


async def test_mode_bearer(tmp_path: Path) -> None:
    """An identity of mode BEARER answers every scope with its bearer and says that nothing was downgraded; it has no tasks."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        identity = await create(broker, mode=BEARER, static_bearer=admin_pb2.StaticBearer(token=token(emulator)))
        assert (identity.public_key, identity.agent_runtime_id) == ("", "")
        assert not identity.can_register
        for scope, thread in (("inference", "thread-1"), ("control_plane.analytics", "")):
            answer = await broker.authorize(scope, thread)
            assert (answer.kind, answer.reason) == (pb2.CREDENTIAL_KIND_BEARER, pb2.DECISION_REASON_IDENTITY_IS_BEARER)
            assert answer.fallback_from == pb2.CREDENTIAL_KIND_UNSPECIFIED
            assert (await broker.sees(answer)).json()["kind"] == "bearer"
        refusal = await refused(broker.callers.RegisterTask(pb2.RegisterTaskRequest(thread_id="thread-1")))
        assert refusal.reason == "BACKEND_UNSUPPORTED"
        assert broker.registrations("agent_register") == broker.registrations("task_register") == 0


async def test_a_bearer_of_a_file_is_followed(tmp_path: Path) -> None:
    """When the file changes, the new token is handed out by itself."""
    async with running_emulator() as emulator:
        file = tmp_path / "token"
        write_token(file, token(emulator))
        sources = {"login": {"type": "file", "path": str(file)}}
        async with running_broker(tmp_path / "state", emulator, bearer_sources=sources) as broker:
            await create(broker, mode=BEARER, bearer_source="login")
            before = await broker.authorize(thread_id="thread-1")
            fresh = token(emulator)
            write_token(file, fresh)
            await broker.app.upkeep._read_bearer_files()
            after = await broker.authorize(thread_id="thread-1")
            assert after.headers[0].value == f"Bearer {fresh}"
            assert before.revision != after.revision
            assert before.connection_tag == after.connection_tag


# --- names ------------------------------------------------------------------------------------------------------------


async def test_a_name_is_free_again_after_delete(tmp_path: Path) -> None:
    """A taken name is refused; after delete it names a new identity with a key, a task and a tag of its own."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        bearer = admin_pb2.StaticBearer(token=token(emulator))
        first = await create(broker, static_bearer=bearer)
        before = await broker.authorize(thread_id="thread-1")
        refusal = await refused(create(broker, "r2", static_bearer=bearer))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDENTITY_EXISTS")
        await broker.admin.DeleteIdentity(admin_pb2.DeleteIdentityRequest(name="agent"))
        assert (await refused(broker.authorize(thread_id="thread-1", identity="agent"))).reason == "IDENTITY_REVOKED"
        second = await create(broker, "r3", static_bearer=bearer)
        assert second.id != first.id
        assert second.public_key != first.public_key
        after = await broker.authorize(thread_id="thread-1")
        assert assertion_of(after).is_signed_by(second.public_key)
        assert after.connection_tag != before.connection_tag
        deleted = await broker.app.store.identity(broker.app.snapshots.views()[0].identity.id)
        assert deleted is not None
        assert deleted.sealed_private_key is None or deleted.state is not IdentityState.DELETED


async def test_the_database_holds_no_secret(tmp_path: Path) -> None:
    """Neither the bearer nor a task's id stands in the database or the audit log in the clear."""
    async with running_emulator() as emulator:
        bearer = token(emulator)
        async with running_broker(tmp_path, emulator) as broker:
            await create(broker, static_bearer=admin_pb2.StaticBearer(token=bearer))
            task_id = assertion_of(await broker.authorize(thread_id="thread-1")).task_id
        content = every_byte(tmp_path)
        assert b"SQLite format 3" in content
        assert bearer.encode() not in content
        assert task_id.encode() not in content
