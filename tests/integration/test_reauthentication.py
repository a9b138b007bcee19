"""ReauthenticateIdentity of a whole broker: dead logins replaced, tasks kept, wrong or dead ones refused with no effect."""

import itertools
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import error_reason_pb2

from broker.emulator import EmulatorServer
from broker.emulator.accounts import Account
from broker.emulator.backend import IssuedIdentity
from broker.model import Identity, IdentityName, IdentityState
from tests.support.assertions import assertion_of
from tests.support.brokers import Broker, Refusal, refused, running_broker, running_emulator
from tests.support.clocks import WallClock
from tests.support.watching import watching

AGENT, BEARER = admin_pb2.IDENTITY_MODE_AGENT, admin_pb2.IDENTITY_MODE_BEARER
ACTIVE = admin_pb2.IDENTITY_STATE_ACTIVE
OTHER_ACCOUNT = Account(account_id="account-other", chatgpt_user_id="user-emulator", plan_type="business")
OTHER_USER = Account(account_id="account-emulator", chatgpt_user_id="user-other", plan_type="business")
_NUMBERS = itertools.count(1)


async def reauthenticate(
    broker: Broker, request_id: str = "", *, name: str = "agent", **fields: Any
) -> admin_pb2.Identity:
    """Call ReauthenticateIdentity."""
    request_id = request_id or f"reauthenticate-{next(_NUMBERS)}"
    request = admin_pb2.ReauthenticateIdentityRequest(request_id=request_id, name=name, **fields)
    return (await broker.admin.ReauthenticateIdentity(request, timeout=10)).identity


async def import_jwt(broker: Broker, issued: IssuedIdentity) -> admin_pb2.Identity:
    """Import an Agent Identity JWT."""
    request = admin_pb2.ImportIdentityRequest(
        request_id=f"import-{next(_NUMBERS)}", name="agent", mode=AGENT, identity_jwt=issued.jwt
    )
    return (await broker.admin.ImportIdentity(request, timeout=10)).identity


async def create_bearer(broker: Broker, **fields: Any) -> admin_pb2.Identity:
    """Create an identity of mode BEARER."""
    request = admin_pb2.CreateIdentityRequest(
        request_id=f"create-{next(_NUMBERS)}", name="agent", mode=BEARER, **fields
    )
    return (await broker.admin.CreateIdentity(request, timeout=10)).identity


async def shown(broker: Broker) -> admin_pb2.Identity:
    """Return the identity as operators see it."""
    return (await broker.admin.GetIdentity(admin_pb2.GetIdentityRequest(name="agent"))).identity


async def row(broker: Broker) -> Identity:
    """Return the identity as it stands in the store."""
    found = await broker.app.store.identity_named(IdentityName("agent"))
    assert found is not None
    return found


async def suspend(broker: Broker, state: IdentityState) -> None:
    """Bring the identity into a state in which only a person can help."""
    current = await row(broker)
    written = await broker.app.store.write_identity(replace(current, state=state, state_reason=state.value))
    broker.app.snapshots.publish_identity(written)


def token(emulator: EmulatorServer, account: Account | None = None, lifetime: timedelta = timedelta(days=1)) -> str:
    """Return an access token of a login at the emulator."""
    return emulator.backend.mint_token(account=account, lifetime=lifetime).access_token


def static(text: str) -> admin_pb2.StaticBearer:
    """Return a token as it travels."""
    return admin_pb2.StaticBearer(token=text)


def renewed(
    emulator: EmulatorServer, issued: IssuedIdentity, *, account: Account | None = None, days: float = 2
) -> str:
    """Return another JWT for the same agent, which lives longer."""
    backend = emulator.backend
    return backend.issuer.identity_jwt(
        agent_runtime_id=issued.agent_runtime_id,
        private_key=issued.private_key,
        account=account or issued.account,
        now=backend.now(),
        lifetime=timedelta(days=days),
    )


def oauth_source(emulator: EmulatorServer) -> dict[str, Any]:
    """Return the configuration of the emulator's issuer as a source of logins."""
    return {"chatgpt": {"type": "oauth", "token_url": f"{emulator.url}/oauth/token"}}


def refreshes(emulator: EmulatorServer) -> int:
    """Return how many refresh tokens the emulator was sent."""
    return sum(1 for _ in emulator.backend.ledger.entries(operation="oauth"))


async def unchanged(broker: Broker, before: admin_pb2.Identity, refusal: Refusal, reason: str) -> None:
    """Check that a refusal has this reason and had no effect."""
    assert refusal.reason == reason
    assert await shown(broker) == before


# --- Agent Identity JWTs ----------------------------------------------------------------------------------------------


async def test_an_ended_jwt_is_replaced_and_the_tasks_stay(tmp_path: Path) -> None:
    """From its end on an identity answers REAUTH_REQUIRED; a new JWT of the same agent brings back its tasks."""
    clock = WallClock()
    async with running_emulator() as emulator, running_broker(tmp_path, emulator, clock=clock) as broker:
        issued = emulator.backend.issue_identity(lifetime=timedelta(hours=1))
        before = await import_jwt(broker, issued)
        held = await broker.authorize(thread_id="thread-1")
        # The issuer's clock goes along, or the broker would sign in a time that nobody has.
        clock.ahead = 3700.0
        emulator.backend.change(clock_offset_seconds=3700.0)
        assert (await refused(broker.authorize(thread_id="thread-1"))).reason == "REAUTH_REQUIRED"
        status = (await broker.admin.GetStatus(admin_pb2.GetStatusRequest())).status
        assert status.identities[0].expire_time == before.expire_time
        after = await reauthenticate(broker, identity_jwt=renewed(emulator, issued))
        assert (after.generation, after.public_key) == (before.generation, before.public_key)
        assert after.expire_time.ToSeconds() > before.expire_time.ToSeconds()
        registered = broker.registrations()
        answer = await broker.authorize(thread_id="thread-1")
        assert answer.connection_tag == held.connection_tag
        assert broker.registrations() == registered
        assert (await broker.sees(answer)).status_code == 200


async def test_watchers_learn_of_the_end_of_a_jwt_and_of_a_new_one(tmp_path: Path) -> None:
    """No value outlives the JWT; at its end it is withdrawn, why is told, and a new JWT brings the next value."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = emulator.backend.issue_identity(lifetime=timedelta(seconds=4))
        identity = await import_jwt(broker, issued)
        end = identity.expire_time.ToNanoseconds()
        async with watching(broker.callers) as watcher:
            await watcher.subscribe("mine")
            event = await watcher.event()
            while event.WhichOneof("event") == "authorization":
                assert event.authorization.expire_time.ToNanoseconds() <= end
                event = await watcher.event()
            assert event.withdrawal.reason == pb2.WITHDRAWAL_REASON_IDENTITY_REJECTED
            assert (await watcher.error()).reason == error_reason_pb2.ERROR_REASON_REAUTH_REQUIRED
            await reauthenticate(broker, identity_jwt=renewed(emulator, issued))
            value = await watcher.value("mine")
            assert value.expire_time.ToNanoseconds() > end
            assert (await broker.sees(value)).status_code == 200


async def test_a_jwt_of_another_agent_begins_a_new_generation(tmp_path: Path) -> None:
    """Another key and runtime id: the tasks of the old agent end, new ones are registered with the new key."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        before = await import_jwt(broker, emulator.backend.issue_identity())
        held = await broker.authorize(thread_id="thread-1")
        issued = emulator.backend.issue_identity()
        after = await reauthenticate(broker, identity_jwt=issued.jwt)
        assert after.generation == before.generation + 1
        assert (after.public_key, after.agent_runtime_id) == (issued.public_key, issued.agent_runtime_id)
        answer = await broker.authorize(thread_id="thread-1")
        assert answer.connection_tag != held.connection_tag
        assert assertion_of(answer).is_signed_by(issued.public_key)
        assert (await broker.sees(answer)).status_code == 200


async def test_a_rejected_jwt_identity_serves_again_with_a_new_jwt(tmp_path: Path) -> None:
    """REJECTED ends with a JWT that its issuer gave anew."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await import_jwt(broker, emulator.backend.issue_identity())
        await suspend(broker, IdentityState.REJECTED)
        assert (await refused(broker.authorize(thread_id="thread-1"))).reason == "IDENTITY_REJECTED"
        after = await reauthenticate(broker, identity_jwt=emulator.backend.issue_identity().jwt)
        assert after.state == ACTIVE
        assert (await broker.sees(await broker.authorize(thread_id="thread-1"))).status_code == 200


async def test_a_jwt_that_has_ended_or_is_of_others_changes_nothing(tmp_path: Path) -> None:
    """Expired, of another account, or not the issuer's: refused by its reason, and the identity is as it was."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = emulator.backend.issue_identity()
        before = await import_jwt(broker, issued)
        for jwt, reason in (
            (renewed(emulator, issued, days=-1), "REAUTH_REQUIRED"),
            (renewed(emulator, issued, account=OTHER_ACCOUNT), "ACCOUNT_MISMATCH"),
            (renewed(emulator, issued, account=OTHER_USER), "ACCOUNT_MISMATCH"),
            (f"{issued.jwt[:-8]}AAAAAAAA", "IMPORT_INVALID"),
        ):
            await unchanged(broker, before, await refused(reauthenticate(broker, identity_jwt=jwt)), reason)
        assert (await broker.sees(await broker.authorize(thread_id="thread-1"))).status_code == 200


# --- tokens -----------------------------------------------------------------------------------------------------------


async def test_a_dead_token_is_replaced(tmp_path: Path) -> None:
    """An identity of mode BEARER that asked for a person hands out the new token."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        before = await create_bearer(broker, static_bearer=static(token(emulator)))
        await suspend(broker, IdentityState.REAUTH_REQUIRED)
        fresh = token(emulator)
        after = await reauthenticate(broker, static_bearer=static(fresh))
        assert (after.state, after.generation) == (ACTIVE, before.generation)
        answer = await broker.authorize(thread_id="thread-1")
        assert answer.headers[0].value == f"Bearer {fresh}"
        assert (await broker.sees(answer)).status_code == 200
        stored = await broker.app.store.bearer((await row(broker)).id)
        assert stored is not None
        assert stored.pair == 2


async def test_an_agent_keeps_key_and_tasks_under_a_new_login(tmp_path: Path) -> None:
    """A new bearer of an agent changes neither key nor generation, and is what it falls back to."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        before = await broker.create_agent()
        held = await broker.authorize(thread_id="thread-1")
        fresh = token(emulator)
        after = await reauthenticate(broker, static_bearer=static(fresh))
        assert (after.generation, after.public_key) == (before.generation, before.public_key)
        assert (await broker.authorize(thread_id="thread-1")).connection_tag == held.connection_tag
        assert (await broker.authorize("bootstrap")).headers[0].value == f"Bearer {fresh}"


async def test_a_token_of_another_account_or_past_its_end_changes_nothing(tmp_path: Path) -> None:
    """ACCOUNT_MISMATCH and REAUTH_REQUIRED leave the old token in place."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        own = token(emulator)
        before = await create_bearer(broker, static_bearer=static(own))
        for text, reason in (
            (token(emulator, OTHER_ACCOUNT), "ACCOUNT_MISMATCH"),
            (token(emulator, OTHER_USER), "ACCOUNT_MISMATCH"),
            (token(emulator, lifetime=timedelta(hours=-1)), "REAUTH_REQUIRED"),
        ):
            await unchanged(broker, before, await refused(reauthenticate(broker, static_bearer=static(text))), reason)
        assert (await broker.authorize(thread_id="thread-1")).headers[0].value == f"Bearer {own}"


async def test_a_rejected_agent_serves_again_under_a_new_login(tmp_path: Path) -> None:
    """The broker may register such an agent anew, so a new login is a new chance."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await broker.create_agent()
        await suspend(broker, IdentityState.REJECTED)
        after = await reauthenticate(broker, static_bearer=static(token(emulator)))
        assert after.state == ACTIVE


# --- logins -----------------------------------------------------------------------------------------------------------


async def test_a_login_without_an_access_token_is_refreshed_at_once(tmp_path: Path) -> None:
    """What is given is proven at its issuer, once, and its answer is what is handed out and refreshed from then on."""
    async with running_emulator() as emulator:
        sources = oauth_source(emulator)
        async with running_broker(tmp_path, emulator, bearer_sources=sources) as broker:
            await create_bearer(broker, static_bearer=static(token(emulator)))
            pair = emulator.backend.mint_token(lifetime=timedelta(days=1))
            login = admin_pb2.OauthBearer(
                source="chatgpt", refresh_token=pair.refresh_token or "", id_token=pair.id_token or ""
            )
            after = await reauthenticate(broker, oauth_bearer=login)
            assert after.state == ACTIVE
            assert refreshes(emulator) == 1
            assert (await broker.sees(await broker.authorize(thread_id="thread-1"))).status_code == 200
            stored = await broker.app.store.bearer((await row(broker)).id)
            assert stored is not None
            assert (stored.source, stored.pair) == ("chatgpt", 2)
            assert stored.sealed_refresh_token is not None


async def test_a_refused_login_changes_nothing(tmp_path: Path) -> None:
    """A refresh token that its issuer does not take: REAUTH_REQUIRED, and the old bearer goes on."""
    async with running_emulator() as emulator:
        sources = oauth_source(emulator)
        async with running_broker(tmp_path, emulator, bearer_sources=sources) as broker:
            own = token(emulator)
            before = await create_bearer(broker, static_bearer=static(own))
            login = admin_pb2.OauthBearer(source="chatgpt", refresh_token="nobody-gave-this")
            await unchanged(
                broker, before, await refused(reauthenticate(broker, oauth_bearer=login)), "REAUTH_REQUIRED"
            )
            assert (await broker.authorize(thread_id="thread-1")).headers[0].value == f"Bearer {own}"
            unknown = admin_pb2.OauthBearer(source="nowhere", refresh_token="a-token")
            refusal = await refused(reauthenticate(broker, oauth_bearer=unknown))
            assert (refusal.reason, list(refusal.violations)) == ("FIELD_INVALID", ["oauth_bearer.source"])


async def test_a_request_is_done_once(tmp_path: Path) -> None:
    """Repeated, it sends no refresh token again and answers the same; with another login it is refused."""
    async with running_emulator() as emulator:
        sources = oauth_source(emulator)
        async with running_broker(tmp_path, emulator, bearer_sources=sources) as broker:
            before = await create_bearer(broker, static_bearer=static(token(emulator)))
            pair = emulator.backend.mint_token(lifetime=timedelta(days=1))
            login = admin_pb2.OauthBearer(source="chatgpt", refresh_token=pair.refresh_token or "")
            order: dict[str, Any] = {"oauth_bearer": login, "etag": before.etag}
            first = await reauthenticate(broker, "r1", **order)
            assert await reauthenticate(broker, "r1", **order) == first
            assert refreshes(emulator) == 1
            refusal = await refused(reauthenticate(broker, "r1", static_bearer=static(token(emulator))))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
            assert (await refused(reauthenticate(broker, "r2", **order))).reason == "GENERATION_CHANGED"


# --- auth.json --------------------------------------------------------------------------------------------------------


def record(issued: IssuedIdentity) -> dict[str, Any]:
    """Return an agent record of generation D."""
    return {
        "agent_runtime_id": issued.agent_runtime_id,
        "agent_private_key": issued.private_key,
        "account_id": "account-emulator",
        "chatgpt_user_id": "user-emulator",
        "email": "emulator@example.com",
        "plan_type": "business",
        "chatgpt_account_is_fedramp": False,
    }


@pytest.mark.parametrize("same_agent", [True, False])
async def test_a_new_record_keeps_the_tasks_of_the_same_agent_only(tmp_path: Path, *, same_agent: bool) -> None:
    """An imported record is replaced by another: the generation follows key and runtime id."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = emulator.backend.issue_identity()
        order = admin_pb2.ImportIdentityRequest(
            request_id="import",
            name="agent",
            mode=AGENT,
            auth_json=json.dumps({"agent_identity": record(issued)}).encode(),
        )
        before = (await broker.admin.ImportIdentity(order, timeout=10)).identity
        held = await broker.authorize(thread_id="thread-1")
        given = issued if same_agent else emulator.backend.issue_identity()
        tokens = json.loads(emulator.backend.mint_token(lifetime=timedelta(days=1)).auth_json())["tokens"]
        content = json.dumps({"tokens": tokens, "agent_identity": record(given)}).encode()
        after = await reauthenticate(broker, auth_json=content)
        assert (after.generation == before.generation) is same_agent
        assert after.public_key == given.public_key
        answer = await broker.authorize(thread_id="thread-1")
        assert (answer.connection_tag == held.connection_tag) is same_agent
        assert (await broker.sees(answer)).status_code == 200
        assert (await broker.authorize("bootstrap")).headers[0].value == f"Bearer {tokens['access_token']}"


async def test_a_key_of_the_brokers_own_is_not_replaced_by_a_login(tmp_path: Path) -> None:
    """Of an auth.json with a record only the login is taken where the broker made the key itself."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        before = await broker.create_agent()
        issued = emulator.backend.issue_identity()
        tokens = json.loads(emulator.backend.mint_token(lifetime=timedelta(days=1)).auth_json())["tokens"]
        content = json.dumps({"tokens": tokens, "agent_identity": record(issued)}).encode()
        after = await reauthenticate(broker, auth_json=content)
        assert (after.public_key, after.generation) == (before.public_key, before.generation)
        assert (await broker.authorize("bootstrap")).headers[0].value == f"Bearer {tokens['access_token']}"
        only_record = json.dumps({"agent_identity": record(issued)}).encode()
        refusal = await refused(reauthenticate(broker, auth_json=only_record))
        assert refusal.reason == "IMPORT_INVALID"
        assert "RotateIdentityKey" in refusal.violations["credential"]


# --- disabled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [IdentityState.REJECTED, IdentityState.REAUTH_REQUIRED])
async def test_enabled_again_it_is_what_it_was(tmp_path: Path, state: IdentityState) -> None:
    """Disabling and enabling cures nothing; a new login given meanwhile does."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await create_bearer(broker, static_bearer=static(token(emulator)))
        await suspend(broker, state)
        await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
        enabled = (await broker.admin.EnableIdentity(admin_pb2.EnableIdentityRequest(name="agent"))).identity
        assert enabled.state == admin_pb2.IdentityState.Value(f"IDENTITY_STATE_{state}")
        await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
        disabled = await reauthenticate(broker, static_bearer=static(token(emulator)))
        assert disabled.state == admin_pb2.IDENTITY_STATE_DISABLED
        assert (await refused(broker.authorize(thread_id="thread-1"))).reason == "IDENTITY_REVOKED"
        enabled = (await broker.admin.EnableIdentity(admin_pb2.EnableIdentityRequest(name="agent"))).identity
        assert enabled.state == ACTIVE
        answer = await broker.authorize(thread_id="thread-1")
        assert answer.kind == pb2.CREDENTIAL_KIND_BEARER


# --- form -------------------------------------------------------------------------------------------------------------


async def test_what_is_missing_or_does_not_fit_is_said(tmp_path: Path) -> None:
    """No credential, a JWT for mode BEARER, an auth.json that is none, an identity that is not there."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await create_bearer(broker, static_bearer=static(token(emulator)))
        assert (await refused(reauthenticate(broker))).violations.keys() == {"credential"}
        refusal = await refused(reauthenticate(broker, identity_jwt=emulator.backend.issue_identity().jwt))
        assert (refusal.reason, list(refusal.violations)) == ("IMPORT_INVALID", ["credential"])
        assert (await refused(reauthenticate(broker, auth_json=b"{}"))).reason == "IMPORT_INVALID"
        gone = await refused(reauthenticate(broker, name="nobody", static_bearer=static("a-token")))
        assert gone.reason == "IDENTITY_NOT_FOUND"
