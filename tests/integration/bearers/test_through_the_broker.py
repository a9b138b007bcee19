"""Each kind of source behind a whole broker: identities name it, callers get its tokens, the backend takes them."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.emulator.accounts import Account
from broker.emulator.clients import DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET
from broker.emulator.faults import FaultRule
from tests.support.brokers import Broker, refused, running_broker, running_emulator
from tests.support.clocks import JumpingClock
from tests.support.sources import secret_file

ACCOUNT = Account(account_id="account-1", chatgpt_user_id="user-1")
KINDS = ("static", "file", "client_credentials", "jwt_bearer", "token_exchange", "command")


@contextlib.asynccontextmanager
async def broker_with_all(tmp_path: Path, clock: JumpingClock | None = None, **settings: Any) -> AsyncIterator[Broker]:
    """Run a broker with a source of every kind that has bearers, and an identity of mode BEARER for each."""
    async with running_emulator(**settings) as emulator:
        backend = emulator.backend
        plain = secret_file(tmp_path / "plain", backend.mint_token().access_token)
        secret = secret_file(tmp_path / "secret", DEFAULT_CLIENT_SECRET)
        identity_token = secret_file(tmp_path / "identity-token", backend.mint_subject_token(account=ACCOUNT))
        endpoint = {"token_url": f"{emulator.url}/oauth/token"}
        workload = {"type": "workload_identity", "identity_token_file": identity_token, **endpoint}
        sources: dict[str, dict[str, Any]] = {
            "static": {"type": "static", "path": plain},
            "file": {"type": "file", "path": plain},
            "client_credentials": {
                "type": "client_credentials",
                "client_id": DEFAULT_CLIENT_ID,
                "client_secret_file": secret,
                **endpoint,
            },
            "jwt_bearer": {**workload, "federation_rule_id": "rule-emulator"},
            "token_exchange": {**workload, "grant": "token_exchange"},
            "command": {"type": "command", "command": ["/bin/cat", plain]},
            "none": {"type": "jwt_identity"},
        }
        async with running_broker(tmp_path / "state", emulator, clock=clock, bearer_sources=sources) as broker:
            for name in KINDS:
                await broker.admin.CreateIdentity(
                    admin_pb2.CreateIdentityRequest(
                        request_id=name,
                        name=name.replace("_", "-"),
                        backend="default",
                        mode=admin_pb2.IDENTITY_MODE_BEARER,
                        bearer_source=name,
                    )
                )
            yield broker


async def test_the_tokens_of_every_source_are_taken(tmp_path: Path) -> None:
    """What the broker hands out is accepted as it stands, account headers included."""
    async with broker_with_all(tmp_path) as broker:
        for name in KINDS:
            authorization = await broker.authorize(identity=name.replace("_", "-"), thread_id="t")
            assert authorization.kind == pb2.CREDENTIAL_KIND_BEARER
            assert (await broker.sees(authorization)).status_code == 200, name


@pytest.mark.parametrize("name", ["client_credentials", "jwt_bearer", "token_exchange"])
async def test_an_issuer_that_is_away_is_noticed_when_the_token_ends(tmp_path: Path, name: str) -> None:
    """The live token is served to its end, then calls say ISSUER_DOWN; when the issuer is back they have a new one."""
    clock = JumpingClock()
    async with broker_with_all(tmp_path, clock, access_token_seconds=600.0) as broker:
        identity = name.replace("_", "-")
        first = await broker.authorize(identity=identity, thread_id="t")
        broker.emulator.backend.faults.add(
            FaultRule.from_json({"action": "status", "operation": "oauth", "count": None})
        )
        clock.ahead += 600 - 15
        last = await broker.authorize(identity=identity, thread_id="t")
        assert header(last) == header(first)
        clock.ahead += 15
        refusal = await refused(broker.authorize(identity=identity, thread_id="t"))
        assert (refusal.reason, bool(refusal.retry_seconds)) == ("ISSUER_DOWN", True)
        broker.emulator.backend.faults.remove()
        broker.emulator.backend.change(clock_offset_seconds=clock.ahead)
        secret_file(tmp_path / "identity-token", broker.emulator.backend.mint_subject_token(account=ACCOUNT))
        clock.ahead += 60
        assert header(await broker.authorize(identity=identity, thread_id="t")) != header(first)


async def test_a_source_without_bearers_is_never_asked(tmp_path: Path) -> None:
    """An identity-only login may name it: bearer scopes answer BEARER_UNAVAILABLE. Mode BEARER cannot live on it."""
    async with broker_with_all(tmp_path) as broker:
        issued = broker.emulator.backend.issue_identity()
        for name, source in (("unnamed", None), ("named", "none")):
            await broker.admin.ImportIdentity(
                admin_pb2.ImportIdentityRequest(
                    request_id=name,
                    name=name,
                    backend="default",
                    mode=admin_pb2.IDENTITY_MODE_AGENT,
                    identity_jwt=issued.jwt,
                    bearer_source=source,
                )
            )
            assert (await broker.authorize(identity=name, thread_id="t")).kind == pb2.CREDENTIAL_KIND_AGENT_ASSERTION
            refusal = await refused(broker.authorize("bootstrap", identity=name))
            assert refusal.reason == "BEARER_UNAVAILABLE"
        creation = admin_pb2.CreateIdentityRequest(
            request_id="x", name="x", backend="default", mode=admin_pb2.IDENTITY_MODE_BEARER, bearer_source="none"
        )
        assert (await refused(broker.admin.CreateIdentity(creation))).reason == "FIELD_INVALID"
        creation.mode = admin_pb2.IDENTITY_MODE_AGENT
        assert (await refused(broker.admin.CreateIdentity(creation))).reason == "BEARER_UNAVAILABLE"


def header(authorization: pb2.Authorization) -> str:
    """Return the value of the authorization header."""
    (value,) = (item.value for item in authorization.headers if item.name == "authorization")
    return value
