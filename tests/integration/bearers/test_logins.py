"""Logins of identities' own through a whole broker: how they come, are kept fresh, end, and what callers get meanwhile."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from broker.emulator import Action, EmulatorServer, EmulatorSettings, FaultRule, Operation
from broker.emulator.backend import default_account
from broker.emulator.exchanges import Exchange
from broker.emulator.families import TokenPair
from broker.model import IdentityName, RefreshState, StoredBearer
from tests.support.brokers import Broker, eventually, refused, running_broker
from tests.support.clocks import JumpingClock

AGENT, BEARER = admin_pb2.IDENTITY_MODE_AGENT, admin_pb2.IDENTITY_MODE_BEARER
HOUR = 3600.0


@dataclass
class House:
    """A broker with an issuer of logins, the emulator, and one clock for both."""

    broker: Broker
    emulator: EmulatorServer
    clock: JumpingClock

    def tokens(self, **fields: Any) -> TokenPair:
        """Log somebody in."""
        return self.emulator.backend.mint_token(**fields)

    async def jump(self, seconds: float) -> None:
        """Let time pass, and the broker find that its store is there all the same."""
        before = self.broker.app.snapshots.confirmation
        self.clock.ahead += seconds
        await eventually(lambda: self.broker.app.snapshots.confirmation is not before)

    async def create(self, tokens: TokenPair, name: str = "agent", mode: Any = BEARER, **fields: Any) -> Any:
        """Create an identity that lives on a login."""
        given = {"access_token": tokens.access_token, "id_token": tokens.id_token or ""} | {
            key: fields.pop(key) for key in ("access_token", "id_token") if key in fields
        }
        answer = await self.broker.admin.CreateIdentity(
            admin_pb2.CreateIdentityRequest(
                request_id=f"create-{name}",
                name=name,
                backend="default",
                mode=mode,
                oauth_bearer=admin_pb2.OauthBearer(source="chatgpt", refresh_token=tokens.refresh_token or "", **given),
                **fields,
            )
        )
        return answer.identity

    async def take_over(self, tokens: TokenPair, **fields: Any) -> Any:
        """Import the `auth.json` of a login."""
        answer = await self.broker.admin.ImportIdentity(
            admin_pb2.ImportIdentityRequest(
                request_id="import",
                name="agent",
                backend="default",
                mode=BEARER,
                auth_json=tokens.auth_json().encode(),
                **fields,
            )
        )
        return answer.identity

    async def row(self, name: str = "agent") -> StoredBearer | None:
        """Return what is stored of an identity's own bearer."""
        store = self.broker.app.store
        identity = await store.identity_named(IdentityName(name))
        assert identity is not None
        return await store.bearer(identity.id)

    def exchanges(self) -> list[str]:
        """Return how the issuer decided, in order."""
        return [each.outcome for each in self.emulator.backend.exchanges.entries(grant="refresh_token")]

    def fault(self, action: Action, **fields: Any) -> FaultRule:
        """Let the issuer fail."""
        return self.emulator.backend.faults.add(FaultRule(action=action, operation=Operation.OAUTH, **fields))

    async def bearer(self, scope: str = "bootstrap", **fields: Any) -> pb2.Authorization:
        """Call for a bearer."""
        answer = await self.broker.authorize(scope, **fields)
        assert answer.kind == pb2.CREDENTIAL_KIND_BEARER
        return answer

    async def state(self, name: str = "agent") -> str:
        """Return an identity's state as operators see it."""
        answer = await self.broker.admin.GetIdentity(admin_pb2.GetIdentityRequest(name=name))
        return admin_pb2.IdentityState.Name(answer.identity.state).removeprefix("IDENTITY_STATE_")


@contextlib.asynccontextmanager
async def opened_house(folder: Path, *, profile: str = "codex-2026-08", **source: Any) -> AsyncIterator[House]:
    """Run a broker with an issuer of logins."""
    clock = JumpingClock()
    async with EmulatorServer(EmulatorSettings(port=0, profile=profile), time_source=clock.now) as emulator:
        issuer = {"type": "oauth", "token_url": f"{emulator.url}/oauth/token", "timeout_seconds": 2.0, **source}
        backend = {
            "profile": profile,
            "base_url": f"{emulator.url}/backend-api",
            "authapi_base_url": f"{emulator.url}/api/accounts",
        }
        async with running_broker(
            folder, emulator, clock=clock, bearer_sources={"chatgpt": issuer}, backends={"default": backend}
        ) as broker:
            yield House(broker, emulator, clock)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """A broker with an issuer of logins."""
    async with opened_house(tmp_path) as opened:
        yield opened


def value(answer: pb2.Authorization) -> str:
    """Return the credential of an answer."""
    return next(header.value for header in answer.headers if header.name == "authorization")


# --- how they come ----------------------------------------------------------------------------------------------------


async def test_an_agent_is_registered_with_a_login_that_has_no_token_yet(house: House) -> None:
    """The refresh token alone is enough: it is refreshed once, the agent registered with what came, and both serve."""
    created = await house.create(house.tokens(), mode=AGENT, access_token="")
    assert created.state == admin_pb2.IDENTITY_STATE_ACTIVE
    assert house.exchanges() == ["issued"]
    assert (await house.broker.sees(await house.bearer())).status_code == 200
    assert (await house.broker.sees(await house.broker.authorize("inference", "t"))).status_code == 200


async def test_the_tokens_say_whose_the_identity_is(house: House) -> None:
    """Account and user come from the tokens, and must be those that the order names."""
    account = default_account()
    created = await house.create(house.tokens(account=account))
    assert (created.account_id, created.user_id) == (account.account_id, account.chatgpt_user_id)
    refusal = await refused(house.create(house.tokens(account=account), "other", account_id="somebody-else"))
    assert refusal.reason == "ACCOUNT_MISMATCH"
    stranger = house.tokens(account=replace(account, account_id="account-of-another"))
    refusal = await refused(house.create(house.tokens(account=account), "third", id_token=stranger.id_token))
    assert refusal.reason == "ACCOUNT_MISMATCH"


async def test_a_login_that_is_dead_already_is_told(house: House) -> None:
    """The issuer refuses it at once; the operator learns of it, and the identity stands there to be given another."""
    tokens = house.tokens()
    house.emulator.backend.oauth.families.revoke(tokens.refresh_token or "", exchange=Exchange())
    refusal = await refused(house.create(tokens, access_token=""))
    assert refusal.reason == "REAUTH_REQUIRED"
    assert await house.state() == "REAUTH_REQUIRED"
    assert house.exchanges() == ["refresh_token_invalidated"]


async def test_a_login_whose_issuer_is_away_is_kept(house: House) -> None:
    """The operator learns of it; the login is refreshed when it is first used, and nothing was sent twice."""
    house.fault(Action.STATUS, status=503)
    refusal = await refused(house.create(house.tokens(), access_token=""))
    assert refusal.reason == "ISSUER_DOWN"
    assert await house.state() == "ACTIVE"
    await house.jump(60)
    assert (await house.broker.sees(await house.bearer())).status_code == 200
    assert house.exchanges() == ["issued"]


async def test_an_auth_json_brings_its_refresh_token_only_where_a_source_is_named(house: House) -> None:
    """Without one only the access token is kept, so that whoever else has the file is not locked out."""
    tokens = house.tokens()
    await house.take_over(tokens)
    row = await house.row()
    assert row is not None
    assert (row.source, row.sealed_refresh_token) == (None, None)
    await house.broker.admin.DeleteIdentity(admin_pb2.DeleteIdentityRequest(name="agent"))
    await house.broker.admin.ImportIdentity(
        admin_pb2.ImportIdentityRequest(
            request_id="again",
            name="agent",
            backend="default",
            mode=BEARER,
            auth_json=tokens.auth_json().encode(),
            oauth_bearer=admin_pb2.OauthBearer(source="chatgpt"),
        )
    )
    row = await house.row()
    assert row is not None
    assert (row.source, row.sealed_refresh_token is not None) == ("chatgpt", True)
    assert (await house.broker.sees(await house.bearer())).status_code == 200
    await house.jump(HOUR)
    assert (await house.broker.sees(await house.bearer())).status_code == 200
    assert house.exchanges() == ["issued"]


@pytest.mark.parametrize(
    ("given", "reason", "field"),
    [
        ({"source": "nowhere"}, "FIELD_INVALID", "oauth_bearer.source"),
        ({"source": ""}, "FIELD_INVALID", "oauth_bearer.source"),
        ({"source": "chatgpt", "access_token": "at"}, "FIELD_INVALID", "oauth_bearer.refresh_token"),
        ({"source": "chatgpt", "refresh_token": "two words"}, "FIELD_INVALID", "oauth_bearer.refresh_token"),
        ({"source": "chatgpt"}, "IMPORT_INVALID", "tokens.refresh_token"),
    ],
)
async def test_imports_of_logins_that_do_not_fit(house: House, given: dict[str, str], reason: str, field: str) -> None:
    """What is missing or wrong is named by its field, and nothing is kept or sent."""
    tokens = replace(house.tokens(), refresh_token=None)
    refusal = await refused(house.take_over(tokens, oauth_bearer=admin_pb2.OauthBearer(**given)))
    assert (refusal.reason, list(refusal.violations)) == (reason, [field])
    assert house.exchanges() == []


async def test_a_named_source_takes_the_place_of_an_own_bearer(tmp_path: Path) -> None:
    """UpdateIdentity to a source of the configuration erases the tokens of its own; a login is no such source."""
    file = tmp_path / "token"
    file.write_text("sk-of-the-file")
    file.chmod(0o600)
    clock = JumpingClock()
    async with EmulatorServer(EmulatorSettings(port=0), time_source=clock.now) as emulator:
        sources = {
            "chatgpt": {"type": "oauth", "token_url": f"{emulator.url}/oauth/token"},
            "file": {"type": "file", "path": str(file)},
        }
        async with running_broker(tmp_path / "state", emulator, clock=clock, bearer_sources=sources) as broker:
            house = House(broker, emulator, clock)
            created = await house.create(house.tokens())

            async def update(source: str) -> Any:
                created.bearer_source = source
                return await broker.admin.UpdateIdentity(
                    admin_pb2.UpdateIdentityRequest(
                        identity=created, update_mask=FieldMask(paths=["bearer_source"]), etag=created.etag
                    )
                )

            assert (await refused(update("chatgpt"))).reason == "FIELD_INVALID"
            assert await house.row() is not None
            await update("file")
            assert await house.row() is None
            assert value(await house.bearer()) == "Bearer sk-of-the-file"


# --- kept fresh -------------------------------------------------------------------------------------------------------


async def test_a_bearer_in_use_is_refreshed_with_nobody_asking(house: House) -> None:
    """In the advisory window the broker refreshes by itself; an identity that nobody used is left alone."""
    await house.create(house.tokens(), "used")
    await house.create(house.tokens(), "idle")
    before = value(await house.bearer(identity="used"))
    await house.jump(HOUR - 120)
    await eventually(lambda: house.exchanges() == ["issued"])
    await asyncio.sleep(0.1)
    after = await house.bearer(identity="used")
    assert value(after) != before
    assert not after.stale
    assert (await house.broker.sees(after)).status_code == 200
    await asyncio.sleep(1.2)  # another look of the upkeep
    assert house.exchanges() == ["issued"]


async def test_an_identity_that_was_used_long_ago_is_left_alone(tmp_path: Path) -> None:
    """What was not used within `refresh_recent_seconds` is refreshed on its next use, with the caller waiting."""
    async with opened_house(tmp_path) as house:
        await house.create(house.tokens(lifetime=timedelta(hours=3)))
        before = value(await house.bearer())
        await house.jump(3 * HOUR - 120)
        await asyncio.sleep(1.2)
        assert house.exchanges() == []
        assert value(await house.bearer()) == before
        await eventually(lambda: house.exchanges() == ["issued"])


async def test_an_expired_bearer_is_waited_for(house: House) -> None:
    """A call after the end gets the new one, however many ask at once, by one exchange."""
    await house.create(house.tokens(lifetime=timedelta(hours=30)))
    await house.jump(30 * HOUR)
    answers = await asyncio.gather(*(house.bearer() for _ in range(20)))
    assert len({value(answer) for answer in answers}) == 1
    assert (await house.broker.sees(answers[0])).status_code == 200
    assert house.exchanges() == ["issued"]


async def test_a_wanted_validity_is_refreshed_for_once(house: House) -> None:
    """A bearer that ends too early is refreshed, though answered in this second; what no bearer lives is refused."""
    await house.create(house.tokens(lifetime=timedelta(seconds=400)))
    await house.jump(150)
    before = await house.bearer()
    answer = await house.bearer(min_validity=Duration(seconds=280))
    assert value(answer) != value(before)
    assert answer.expire_time.ToNanoseconds() / 1e9 - house.clock.now() > 280
    for seconds in (280, 400):
        await house.jump(1)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await house.bearer(min_validity=Duration(seconds=seconds))
    assert house.exchanges() == ["issued"]
    assert (await refused(house.bearer(min_validity=Duration(seconds=400)))).reason == "MIN_VALIDITY_TOO_LONG"


async def test_while_the_issuer_is_away_the_live_bearer_is_served_as_stale(house: House) -> None:
    """Until it ends; then callers are told ISSUER_DOWN and when to come back, and the next exchange heals it."""
    await house.create(house.tokens())
    before = value(await house.bearer())
    rule = house.fault(Action.STATUS, status=503, count=None)
    await house.jump(HOUR - 40)
    await eventually(lambda: rule.fired > 0)
    await house.jump(1)
    answer = await house.bearer()
    assert (value(answer), answer.stale) == (before, True)
    await house.jump(60)
    refusal = await refused(house.bearer())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "ISSUER_DOWN")
    assert refusal.retry_seconds
    house.emulator.backend.faults.remove(rule.rule_id)
    await house.jump(60)
    answer = await house.bearer()
    assert (value(answer) != before, answer.stale) == (True, False)


# --- the end of a login -----------------------------------------------------------------------------------------------


async def spent(house: House) -> None:
    """Have somebody else spend the refresh token of `agent`, and the broker find out."""
    for family in house.emulator.backend.oauth.families:
        family.ended_by = "revocation"
    await house.jump(HOUR - 120)
    await house.broker.authorize("bootstrap")
    await eventually(lambda: "refresh_token_invalidated" in house.exchanges())
    async with asyncio.timeout(5):
        while (row := await house.row()) is None or row.refresh_state is not RefreshState.DEAD:
            await asyncio.sleep(0.01)


async def test_a_dead_login_serves_what_lives(house: House) -> None:
    """Mode BEARER: REAUTH_REQUIRED for operators; callers have the live bearer to its end, and then no more."""
    await house.create(house.tokens())
    await spent(house)
    assert await house.state() == "REAUTH_REQUIRED"
    await house.jump(1)
    answer = await house.bearer()
    assert answer.stale
    assert (await house.broker.sees(answer)).status_code == 200
    await house.jump(130)
    for _ in range(3):
        refusal = await refused(house.bearer())
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REAUTH_REQUIRED")
    assert house.exchanges() == ["refresh_token_invalidated"]


async def test_a_dead_login_takes_nothing_from_an_agents_key(house: House) -> None:
    """Mode AGENT: assertions go on, the identity stays ACTIVE; only what needs a bearer is refused."""
    await house.create(house.tokens(), mode=AGENT)
    await house.broker.authorize("inference", "t")
    await spent(house)
    await house.jump(200)
    assert await house.state() == "ACTIVE"
    assert (await house.broker.sees(await house.broker.authorize("inference", "t"))).status_code == 200
    for _ in range(2):
        assert (await refused(house.broker.authorize("bootstrap"))).reason == "REAUTH_REQUIRED"


async def test_a_biscuits_missing_bearer_is_one_outcome(tmp_path: Path) -> None:
    """A registration that needs a bearer which is dead is refused alike the first time and every later time."""
    async with opened_house(tmp_path, profile="codex-2026-04") as house:
        await house.create(house.tokens(), mode=AGENT)
        await spent(house)
        await house.jump(200)
        refusals = [await refused(house.broker.authorize("inference", "new")) for _ in range(3)]
        assert {(each.code, each.reason) for each in refusals} == {
            (grpc.StatusCode.FAILED_PRECONDITION, "REAUTH_REQUIRED")
        }
