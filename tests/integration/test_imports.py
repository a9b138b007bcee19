"""Imports: auth.json of every generation, Agent Identity JWTs verified by the issuer's keys, bare keys, and refusals."""

import asyncio
import base64
import itertools
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.emulator import EmulatorServer
from broker.emulator.backend import IssuedIdentity
from broker.emulator.faults import Action, FaultRule
from broker.emulator.routing import Operation
from broker.model import IdentityName, StoredBearer
from tests.support.assertions import assertion_of
from tests.support.brokers import Broker, Refusal, eventually, refused, running_broker, running_emulator
from tests.support.clocks import WallClock

AGENT, BEARER = admin_pb2.IDENTITY_MODE_AGENT, admin_pb2.IDENTITY_MODE_BEARER
_NUMBERS = itertools.count(1)


def backend(profile: str, url: str) -> dict[str, Any]:
    """Return the configuration of a backend that speaks a profile."""
    return {
        "default": {"profile": profile, "base_url": f"{url}/backend-api", "authapi_base_url": f"{url}/api/accounts"}
    }


async def take_over(broker: Broker, request_id: str = "", **fields: Any) -> admin_pb2.Identity:
    """Call ImportIdentity."""
    request = {"name": "agent", "mode": AGENT} | fields
    request_id = request_id or f"import-{next(_NUMBERS)}"
    answer = await broker.admin.ImportIdentity(
        admin_pb2.ImportIdentityRequest(request_id=request_id, **request), timeout=10
    )
    return answer.identity


async def nothing_kept(broker: Broker, refusal: Refusal) -> bool:
    """Say whether a refused import left nothing: no identity, no bearer, no task, no memory of a name."""
    store = broker.app.store
    listed = await store.identities(include_deleted=True)
    return not listed.rows and not (await store.tasks()).rows and broker.app.snapshots.views() == []


def auth_json(**members: Any) -> bytes:
    """Return an auth.json."""
    return json.dumps(members).encode()


def tokens(emulator: EmulatorServer) -> dict[str, str]:
    """Return the tokens of a login at the emulator."""
    pair = emulator.backend.mint_token(lifetime=timedelta(days=1))
    return {
        "id_token": pair.id_token,
        "access_token": pair.access_token,
        "refresh_token": pair.refresh_token,
        "account_id": "account-emulator",
    }


def record_a(issued: IssuedIdentity, **changes: Any) -> dict[str, Any]:
    """Return an agent record of generation A."""
    return {
        "workspace_id": "account-emulator",
        "chatgpt_user_id": "user-emulator",
        "agent_runtime_id": issued.agent_runtime_id,
        "agent_private_key": issued.private_key,
        "registered_at": "2026-04-20T00:00:00Z",
    } | changes


def record_d(issued: IssuedIdentity, **changes: Any) -> dict[str, Any]:
    """Return an agent record of generation D."""
    return {
        "agent_runtime_id": issued.agent_runtime_id,
        "agent_private_key": issued.private_key,
        "account_id": "account-emulator",
        "chatgpt_user_id": "user-emulator",
        "email": "emulator@example.com",
        "plan_type": "business",
        "chatgpt_account_is_fedramp": False,
    } | changes


def task_of(emulator: EmulatorServer, issued: IssuedIdentity) -> str:
    """Return a task that the agent registered before it was imported."""
    backend = emulator.backend
    return backend.registry.register_task(
        backend.registry.agent(issued.agent_runtime_id), None, now=backend.now()
    ).task_id


# --- auth.json, generation by generation ------------------------------------------------------------------------------


async def test_generation_a_record_with_its_background_task(tmp_path: Path) -> None:
    """The record's background task is adopted: background calls are signed for it and the backend registers nothing."""
    profile = "codex-2026-04"
    async with (
        running_emulator(profile=profile) as emulator,
        running_broker(tmp_path, emulator, backends=backend(profile, emulator.url)) as broker,
    ):
        issued = emulator.backend.issue_identity()
        task_id = task_of(emulator, issued)
        content = auth_json(tokens=tokens(emulator), agent_identity=record_a(issued, background_task_id=task_id))
        identity = await take_over(broker, auth_json=content)
        assert identity.origin == admin_pb2.IDENTITY_ORIGIN_IMPORTED_RECORD
        assert (identity.account_id, identity.user_id) == ("account-emulator", "user-emulator")
        assert identity.public_key == issued.public_key
        answer = await broker.authorize("control_plane.analytics")
        assert assertion_of(answer).task_id == task_id
        assert (await broker.sees(answer)).json()["task_id"] == task_id
        await broker.app.upkeep._prewarm()
        assert broker.registrations() == broker.registrations("agent_register") == 0
        # A thread has a task of its own in this generation; its biscuit comes from the tokens beside the record.
        thread = await broker.authorize(thread_id="thread-1")
        assert (await broker.sees(thread)).status_code == 200
        assert broker.registrations() == broker.registrations("biscuit") == 1


async def test_generation_d_record_with_its_task(tmp_path: Path) -> None:
    """The record's one task is adopted for threads and background alike; after a restart it is still the one."""
    async with running_emulator() as emulator:
        issued = emulator.backend.issue_identity()
        task_id = task_of(emulator, issued)
        content = auth_json(
            auth_mode="chatgpt", tokens=tokens(emulator), agent_identity=record_d(issued, task_id=task_id)
        )
        async with running_broker(tmp_path, emulator) as broker:
            identity = await take_over(broker, auth_json=content)
            assert (identity.email, identity.plan_type) == ("emulator@example.com", "business")
            assert assertion_of(await broker.authorize(thread_id="thread-1")).task_id == task_id
        async with running_broker(tmp_path, emulator) as broker:
            for scope, thread in (("inference", "thread-2"), ("control_plane.analytics", "")):
                answer = await broker.authorize(scope, thread)
                assert (await broker.sees(answer)).json()["task_id"] == task_id
            assert broker.registrations() == 0


@pytest.mark.parametrize("profile", ["codex-2026-05", "codex-2026-08"])
async def test_record_without_a_task(tmp_path: Path, profile: str) -> None:
    """A record that keeps no task registers its own, with the key it brought."""
    async with (
        running_emulator(profile=profile) as emulator,
        running_broker(tmp_path, emulator, backends=backend(profile, emulator.url)) as broker,
    ):
        issued = emulator.backend.issue_identity(pkcs8="v1")
        await take_over(broker, auth_json=auth_json(agent_identity=record_d(issued), auth_mode="agentIdentity"))
        answer = await broker.authorize(thread_id="thread-1")
        assert assertion_of(answer).is_signed_by(issued.public_key)
        assert (await broker.sees(answer)).status_code == 200
        assert broker.registrations("agent_register") == 0


async def test_jwt_in_auth_json(tmp_path: Path) -> None:
    """The string form of `agent_identity` is a JWT and is verified like one."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = emulator.backend.issue_identity()
        identity = await take_over(broker, auth_json=auth_json(auth_mode="agentIdentity", agent_identity=issued.jwt))
        assert identity.origin == admin_pb2.IDENTITY_ORIGIN_IMPORTED_JWT
        assert broker.registrations("jwks") == 1
        assert (await broker.sees(await broker.authorize(thread_id="thread-1"))).status_code == 200


@pytest.mark.parametrize("kind", ["tokens", "api_key", "personal_access_token"])
async def test_logins_without_an_agent(tmp_path: Path, kind: str) -> None:
    """Tokens, an API key and a personal access token become identities of mode BEARER; as AGENT they are refused."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        login = tokens(emulator)
        for text in ("sk-emulator", "at-emulator"):
            emulator.backend.accept_bearer(text)
        content, bearer = {
            "tokens": (auth_json(tokens=login), login["access_token"]),
            "api_key": (auth_json(OPENAI_API_KEY="sk-emulator"), "sk-emulator"),
            "personal_access_token": (auth_json(personal_access_token="at-emulator"), "at-emulator"),
        }[kind]
        refusal = await refused(take_over(broker, auth_json=content))
        assert (refusal.reason, list(refusal.violations)) == ("IMPORT_INVALID", ["source"])
        assert await nothing_kept(broker, refusal)
        identity = await take_over(broker, mode=BEARER, auth_json=content)
        assert identity.origin == admin_pb2.IDENTITY_ORIGIN_BEARER_ONLY
        assert identity.account_id == ("account-emulator" if kind == "tokens" else "")
        answer = await broker.authorize(thread_id="thread-1")
        assert (answer.kind, answer.reason) == (pb2.CREDENTIAL_KIND_BEARER, pb2.DECISION_REASON_IDENTITY_IS_BEARER)
        assert answer.headers[0].value == f"Bearer {bearer}"


async def test_a_record_imported_as_bearer_keeps_no_key(tmp_path: Path) -> None:
    """Mode BEARER of a login with an agent takes its token only: no key and no task is kept."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = emulator.backend.issue_identity()
        record = record_d(issued, task_id=task_of(emulator, issued))
        identity = await take_over(
            broker, mode=BEARER, auth_json=auth_json(tokens=tokens(emulator), agent_identity=record)
        )
        assert (identity.public_key, identity.agent_runtime_id) == ("", "")
        assert not (await broker.app.store.tasks()).rows


# --- Agent Identity JWTs ----------------------------------------------------------------------------------------------


async def test_keys_are_fetched_once_for_many_imports(tmp_path: Path) -> None:
    """Twenty JWTs imported at once cost the issuer one request for its keys."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = [emulator.backend.issue_identity() for _ in range(20)]
        imported = await asyncio.gather(
            *(take_over(broker, name=f"agent-{n}", identity_jwt=one.jwt) for n, one in enumerate(issued))
        )
        assert [one.public_key for one in imported] == [one.public_key for one in issued]
        assert broker.registrations("jwks") == 1


def wrong_key(emulator: EmulatorServer) -> str:
    """Return a JWT signed with a key that the issuer no longer has, under the id of one that it has."""
    old = emulator.backend.issue_identity()
    kid = emulator.backend.issuer.rotate(keep_old=False)
    head, *rest = old.jwt.split(".")
    header = json.loads(base64.urlsafe_b64decode(head + "=="))
    forged = base64.urlsafe_b64encode(json.dumps(header | {"kid": kid}).encode()).rstrip(b"=").decode()
    return ".".join([forged, *rest])


def retired_key(emulator: EmulatorServer) -> str:
    """Return a JWT whose key the issuer has withdrawn."""
    jwt = emulator.backend.issue_identity().jwt
    emulator.backend.issuer.rotate(keep_old=False)
    return jwt


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (wrong_key, "IMPORT_INVALID"),
        (retired_key, "IMPORT_INVALID"),
        (lambda emulator: emulator.backend.issue_identity(lifetime=timedelta(minutes=-5)).jwt, "REAUTH_REQUIRED"),
        (lambda emulator: emulator.backend.issue_identity(claims={"aud": "somebody-else"}).jwt, "IMPORT_INVALID"),
        (
            lambda emulator: emulator.backend.issue_identity(claims={"iss": "https://evil.example"}).jwt,
            "IMPORT_INVALID",
        ),
        (lambda emulator: emulator.backend.issue_identity(header={"alg": "none"}).jwt, "IMPORT_INVALID"),
        (lambda emulator: emulator.backend.issue_identity(claims={"agent_private_key": "AAAA"}).jwt, "IMPORT_INVALID"),
        (lambda _: "no.jwt", "IMPORT_INVALID"),
    ],
    ids=["wrong_key", "retired_key", "expired", "audience", "issuer", "alg_none", "bad_key", "no_jwt"],
)
async def test_jwts_that_are_refused(tmp_path: Path, token: Any, reason: str) -> None:
    """A JWT that does not verify, has expired or holds no usable key is refused, quoted nowhere, and nothing is kept."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        jwt = token(emulator)
        refusal = await refused(take_over(broker, identity_jwt=jwt))
        assert refusal.reason == reason
        assert jwt not in str(refusal)
        assert await nothing_kept(broker, refusal)


async def test_keys_that_cannot_be_had(tmp_path: Path) -> None:
    """Without the issuer's keys no claim is believed: UNAVAILABLE, nothing kept, and the same request works later."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = emulator.backend.issue_identity()
        rule = FaultRule(action=Action.STATUS, operation=Operation.JWKS, status=503, retry_after="0", count=None)
        away = emulator.backend.faults.add(rule).rule_id
        refusal = await refused(take_over(broker, "same", identity_jwt=issued.jwt))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_DOWN")
        assert await nothing_kept(broker, refusal)
        emulator.backend.faults.remove(away)
        assert (await take_over(broker, "same", identity_jwt=issued.jwt)).public_key == issued.public_key


async def test_an_imported_jwt_is_never_asked_for_a_bearer(tmp_path: Path) -> None:
    """An identity-only login has no bearer: where a fallback would need one the answer is BEARER_UNAVAILABLE."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = emulator.backend.issue_identity()
        identity = await take_over(broker, identity_jwt=issued.jwt, assertions_enabled=False)
        assert not identity.can_register
        refusal = await refused(broker.authorize("control_plane.analytics"))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BEARER_UNAVAILABLE")
        assert (await refused(broker.authorize("bootstrap"))).reason == "BEARER_UNAVAILABLE"
        assert (await refused(broker.authorize(thread_id="thread-1"))).reason == "FEATURE_DISABLED"
        assert {entry.operation for entry in emulator.backend.ledger.entries()} == {"jwks"}


async def test_an_imported_jwt_ends_at_its_expiry(tmp_path: Path) -> None:
    """Answers end with the JWT; after it nothing is signed any more and a person is needed, live task or not."""
    clock = WallClock()
    async with running_emulator() as emulator, running_broker(tmp_path, emulator, clock=clock) as broker:
        issued = emulator.backend.issue_identity(lifetime=timedelta(seconds=100))
        identity = await take_over(broker, identity_jwt=issued.jwt)
        answer = await broker.authorize(thread_id="thread-1")
        assert answer.expire_time.seconds <= identity.expire_time.seconds
        clock.ahead += 60
        answer = await broker.authorize(thread_id="thread-1")
        assert answer.expire_time.seconds == identity.expire_time.seconds
        clock.ahead += 41
        for call in (
            broker.authorize(thread_id="thread-1"),
            broker.authorize(thread_id="thread-2"),
            broker.callers.RegisterTask(pb2.RegisterTaskRequest(thread_id="thread-3")),
        ):
            refusal = await refused(call)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REAUTH_REQUIRED")


# --- bare keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pkcs8", ["v1", "v2"])
async def test_bare_keys(tmp_path: Path, pkcs8: Any) -> None:
    """A key in either form of PKCS#8, with the ids it is registered under, signs and registers tasks."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = emulator.backend.issue_identity(pkcs8=pkcs8)
        bare = admin_pb2.BareKey(
            private_key=issued.private_key, agent_runtime_id=issued.agent_runtime_id, account_id="account-emulator"
        )
        identity = await take_over(broker, bare_key=bare)
        assert identity.origin == admin_pb2.IDENTITY_ORIGIN_BARE_KEY
        assert (identity.can_register, identity.public_key) == (False, issued.public_key)
        answer = await broker.authorize(thread_id="thread-1")
        assert (await broker.sees(answer)).status_code == 200


def other_public(issued: IssuedIdentity) -> str:
    """Return a version 2 key whose public part is another key's."""
    der = bytearray(base64.b64decode(issued.private_key))
    der[-1] ^= 1
    return base64.b64encode(der).decode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "not base64!",
        lambda _: "AAAA",
        lambda issued: issued.private_key[:-8],
        other_public,
    ],
    ids=["not_base64", "not_a_key", "cut", "other_public_key"],
)
async def test_a_key_that_does_not_parse(tmp_path: Path, damage: Any) -> None:
    """A key that cannot be used is refused with its place and never shown, bare and in a record; nothing is kept."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = emulator.backend.issue_identity()
        key = damage(issued)
        bare = admin_pb2.BareKey(
            private_key=key, agent_runtime_id=issued.agent_runtime_id, account_id="account-emulator"
        )
        record = auth_json(auth_mode="agentIdentity", agent_identity=record_d(issued, agent_private_key=key))
        for fields, place in (({"bare_key": bare}, "bare_key.private_key"), ({"auth_json": record}, "agent_identity")):
            refusal = await refused(take_over(broker, **fields))
            assert refusal.reason in {"IMPORT_INVALID", "FIELD_INVALID"}
            (violation,) = refusal.violations
            assert violation.startswith(place)
            assert key not in str(refusal)
            assert await nothing_kept(broker, refusal)


# --- bindings ---------------------------------------------------------------------------------------------------------


async def test_a_record_of_another_account_than_its_login(tmp_path: Path) -> None:
    """A record that no longer matches the tokens beside it is refused, in each of its bindings, and nothing is kept."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = emulator.backend.issue_identity()
        for record in (
            record_a(issued, workspace_id="account-other"),
            record_a(issued, chatgpt_user_id="user-other"),
            record_d(issued, account_id="account-other"),
            record_d(issued, chatgpt_user_id="user-other"),
        ):
            refusal = await refused(
                take_over(broker, auth_json=auth_json(tokens=tokens(emulator), agent_identity=record))
            )
            assert refusal.reason in {"IMPORT_INVALID", "ACCOUNT_MISMATCH"}
            assert await nothing_kept(broker, refusal)


@pytest.mark.parametrize("field", ["expected_account_id", "expected_user_id"])
async def test_what_the_operator_expects(tmp_path: Path, field: str) -> None:
    """An import of another account or user than expected is refused, and so is one that does not say whose it is."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = emulator.backend.issue_identity()
        silent = auth_json(OPENAI_API_KEY="sk-emulator")
        for fields in (
            {"identity_jwt": issued.jwt, field: "somebody-else"},
            {"auth_json": silent, "mode": BEARER, field: "account-emulator"},
        ):
            refusal = await refused(take_over(broker, **fields))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ACCOUNT_MISMATCH")
            assert await nothing_kept(broker, refusal)
        expected = "account-emulator" if field == "expected_account_id" else "user-emulator"
        assert (await take_over(broker, identity_jwt=issued.jwt, **{field: expected})).name == "agent"


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", "auth_json"),
        (b"{", "auth_json"),
        (b"[]", "auth_json"),
        (b"\xff", "auth_json"),
        (b"{}", "auth_json"),
        (b"[" * 40_000, "auth_json"),
        (b" " * (33 * 1024), "auth_json"),
        (auth_json(auth_mode="headers"), "auth_mode"),
    ],
    ids=["empty", "cut", "list", "not_utf8", "nothing", "deep", "large", "other_mode"],
)
async def test_files_that_are_no_login(tmp_path: Path, content: bytes, place: str) -> None:
    """A file that is no login is refused with the place of the problem; nothing is kept."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        refusal = await refused(take_over(broker, auth_json=content))
        assert (refusal.reason, list(refusal.violations)) == ("IMPORT_INVALID", [place])
        assert await nothing_kept(broker, refusal)


# --- repeating --------------------------------------------------------------------------------------------------------


async def test_the_same_request_brings_the_same_identity(tmp_path: Path) -> None:
    """An import repeated by its request id changes nothing and asks nobody; with other content it is refused."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued, other = emulator.backend.issue_identity(), emulator.backend.issue_identity()
        first = await take_over(broker, "same", identity_jwt=issued.jwt)
        assert await take_over(broker, "same", identity_jwt=issued.jwt) == first
        assert (await refused(take_over(broker, "same", identity_jwt=other.jwt))).reason == "REQUEST_ID_REUSED"
        assert (await refused(take_over(broker, identity_jwt=issued.jwt))).reason == "IDENTITY_EXISTS"
        assert broker.registrations("jwks") == 1


async def test_what_was_imported_is_sealed(tmp_path: Path) -> None:
    """The key, the token and the task id of an import stand in the store sealed only."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        issued = emulator.backend.issue_identity()
        task_id = task_of(emulator, issued)
        login = tokens(emulator)
        record = record_d(issued, task_id=task_id)
        await take_over(broker, auth_json=auth_json(tokens=login, agent_identity=record))
        await eventually(lambda: broker.app.snapshots.named(IdentityName("agent")) is not None)
        row = await broker.app.store.identity_named(IdentityName("agent"))
        assert row is not None
        bearer = await broker.app.store.bearer(row.id)
        assert isinstance(bearer, StoredBearer)
        assert bearer.expire_time is not None
        content = every_byte(tmp_path)
        for secret in (issued.private_key, login["access_token"], login["refresh_token"], task_id):
            assert secret.encode() not in content
        assert base64.b64decode(issued.private_key)[16:48] not in content


def every_byte(folder: Path) -> bytes:
    """Return the content of all files of a folder."""
    return b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())
