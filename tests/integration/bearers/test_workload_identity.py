"""Workload identity for real: jwt-bearer and token exchange at the emulator, over HTTP."""

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from broker.bearer import Phase
from broker.emulator import EmulatorServer
from broker.emulator.accounts import Account
from broker.emulator.clients import DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET
from broker.emulator.federation import JWT_BEARER, TOKEN_EXCHANGE
from broker.errors import IssuerDownError, ReauthRequiredError
from tests.support.brokers import running_emulator
from tests.support.clocks import JumpingClock
from tests.support.http_faults import FaultServer, respond
from tests.support.sources import accepted, opened, secret_file

ACCOUNT = Account(account_id="account-1", chatgpt_user_id="user-1")


@dataclass
class Platform:
    """An emulator, and the file that the platform projects a token into."""

    emulator: EmulatorServer
    file: Path

    def project(self, **token: Any) -> str:
        """Have the platform write a new token into its file."""
        text = self.emulator.backend.mint_subject_token(**({"account": ACCOUNT} | token))
        secret_file(self.file, text)
        return text

    def section(self, **more: Any) -> dict[str, Any]:
        """Return the settings of a source for the emulator's federation rule."""
        return {
            "type": "workload_identity",
            "token_url": f"{self.emulator.url}/oauth/token",
            "identity_token_file": str(self.file),
            "federation_rule_id": "rule-emulator",
            **more,
        }

    def exchange(self, **more: Any) -> dict[str, Any]:
        """Return the settings of a source for RFC 8693."""
        settings = self.section(grant="token_exchange", **more)
        del settings["federation_rule_id"]
        return settings


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    """A platform with a token in its file."""
    async with running_emulator() as emulator:
        one = Platform(emulator, tmp_path / "identity-token")
        one.project()
        yield one


# --- jwt-bearer -------------------------------------------------------------------------------------------------------


async def test_the_platforms_token_is_exchanged(platform: Platform, tmp_path: Path) -> None:
    """The token that comes is accepted for its account; the context is sent along; it is due two minutes ahead."""
    context = secret_file(tmp_path / "context", "context-1")
    clock = JumpingClock()
    async with opened(clock=clock, workload=platform.section(context_file=context)) as sources:
        bearer = await sources["workload"].refresh()
        assert await accepted(platform.emulator.url, bearer, **{"chatgpt-account-id": "account-1"}) == 200
        assert bearer.expire_time is not None
        assert sources["workload"].phase(bearer.expire_time - 121) is Phase.FRESH
        assert sources["workload"].phase(bearer.expire_time - 61) is Phase.ADVISORY
        assert sources["workload"].phase(bearer.expire_time - 60) is Phase.MANDATORY
    (exchange,) = platform.emulator.backend.exchanges.entries(grant=JWT_BEARER)
    assert (exchange.outcome, exchange.account_id) == ("issued", "account-1")


async def test_the_file_is_read_again_for_each_exchange(platform: Platform) -> None:
    """A token that the platform renewed is the one that is sent next."""
    clock = JumpingClock()
    async with opened(clock=clock, workload=platform.section()) as sources:
        first = await sources["workload"].refresh()
        platform.project()
        second = await sources["workload"].refresh(beyond=first)
        assert second.token != first.token
    presented = [one.presented for one in platform.emulator.backend.exchanges.entries(grant=JWT_BEARER)]
    assert len(set(presented)) == 2


@pytest.mark.parametrize(
    ("token", "settings"),
    [
        ({"lifetime": timedelta(seconds=-1)}, {}),
        ({"trusted": False}, {}),
        ({"audience": "somebody else"}, {}),
        ({}, {"federation_rule_id": "another"}),
    ],
    ids=["expired", "untrusted", "audience", "rule"],
)
async def test_a_refused_token_is_not_sent_again(
    platform: Platform, token: dict[str, Any], settings: dict[str, Any]
) -> None:
    """A refusal is remembered until the platform has written another token, which is then tried."""
    platform.project(**token)
    clock = JumpingClock()
    async with opened(clock=clock, workload=platform.section(**settings)) as sources:
        for _ in range(3):
            with pytest.raises(ReauthRequiredError):
                await sources["workload"].refresh()
            clock.ahead += 60
        assert platform.emulator.backend.exchanges.count(JWT_BEARER) == 1
        platform.project(lifetime=timedelta(days=1))
        if settings:
            with pytest.raises(ReauthRequiredError):
                await sources["workload"].refresh()
            assert platform.emulator.backend.exchanges.count(JWT_BEARER) == 2
        else:
            await sources["workload"].refresh()


async def test_tokens_of_another_subject_are_refused(platform: Platform) -> None:
    """Account and user are those of the first token for as long as the broker runs; the old token lives on."""
    async with opened(workload=platform.section()) as sources:
        first = await sources["workload"].refresh()
        for account in (
            Account(account_id="account-2", chatgpt_user_id="user-1"),
            Account(account_id="account-1", chatgpt_user_id="user-2"),
        ):
            platform.project(account=account)
            sources["workload"].forget()
            with pytest.raises(ReauthRequiredError) as caught:
                await sources["workload"].refresh(beyond=first)
            assert "another account or user than those before" in caught.value.note
            assert sources["workload"].current() == first


async def test_the_account_can_be_pinned_by_the_configuration(platform: Platform) -> None:
    """A token of another account than the configured one is never taken, not even the first."""
    async with opened(mine=platform.section(account_id="account-1"), other=platform.section(account_id="x")) as sources:
        await sources["mine"].refresh()
        with pytest.raises(ReauthRequiredError) as caught:
            await sources["other"].refresh()
        assert "than the configured one" in caught.value.note
        assert sources["other"].current() is None


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "not a token"])
async def test_a_file_that_cannot_be_used_heals(platform: Platform, missing: bool) -> None:
    """A file that is not there yet is tried again; one with something else in it once it holds a token."""
    if missing:
        platform.file.unlink()
    else:
        secret_file(platform.file, "nul \x00")
    clock = JumpingClock()
    async with opened(clock=clock, workload=platform.section()) as sources:
        with pytest.raises(IssuerDownError if missing else ReauthRequiredError) as caught:
            await sources["workload"].refresh()
        assert str(platform.file) in caught.value.note
        assert platform.emulator.backend.exchanges.count(JWT_BEARER) == 0
        platform.project()
        clock.ahead += 10
        await sources["workload"].refresh()


def good_answer(**changes: Any) -> dict[str, Any]:
    """Return an answer as the issuer gives it, with changes; None takes a field out."""
    claims = {"exp": 4_000_000_000, "https://api.openai.com/auth": {"chatgpt_user_id": "user-1"}}
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    answer: dict[str, Any] = {
        "access_token": f"eyJhbGciOiJub25lIn0.{payload}.c2ln",
        "chatgpt_account_id": "account-1",
        "chatgpt_account_user_id": "user-1__account-1",
        "expires_in": 3600,
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "scope": "a",
        "token_type": "BEARER",
        "user_id": "user-1",
    }
    return {name: value for name, value in (answer | changes).items() if value is not None}


@pytest.mark.parametrize(
    "changes",
    [
        *({name: None} for name in good_answer()),
        *({name: "  "} for name in good_answer() if name != "expires_in"),
        {"expires_in": 0},
        {"expires_in": -1},
        {"expires_in": 3601},
        {"expires_in": 60.5},
        {"expires_in": True},
        {"expires_in": "60"},
        {"issued_token_type": "urn:ietf:params:oauth:token-type:jwt"},
        {"token_type": "mac"},
        {"chatgpt_plan_type": " "},
        {"access_token": "two words"},
        {"access_token": "a" * 20_000},
        {"user_id": "user-2"},
        {"access_token": "opaque"},
    ],
    ids=str,
)
async def test_an_answer_that_breaks_a_rule_is_not_used(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Every field that the protocol wants is looked at, one wrong value at a time; the unchanged answer is taken."""
    file = secret_file(tmp_path / "token", "platform-token")
    bodies = [json.dumps(good_answer(**changes)), json.dumps(good_answer())]
    async with FaultServer(*(respond(body=body.encode()) for body in bodies)) as server:
        settings = {
            "type": "workload_identity",
            "token_url": f"{server.url}/oauth/token",
            "identity_token_file": file,
            "federation_rule_id": "r",
        }
        async with opened(workload=settings) as sources:
            with pytest.raises((IssuerDownError, ReauthRequiredError)):
                await sources["workload"].refresh()
            assert sources["workload"].current() is None
            sources["workload"].forget()
            assert (await sources["workload"].refresh()).token.reveal() == good_answer()["access_token"]


async def test_the_request_is_the_protocols(tmp_path: Path) -> None:
    """Exactly these form fields, with the file's content trimmed, and nothing that names a client."""
    file = secret_file(tmp_path / "token", "  platform-token\n")
    async with FaultServer(respond(body=json.dumps(good_answer()).encode())) as server:
        settings = {
            "type": "workload_identity",
            "token_url": f"{server.url}/oauth/token",
            "identity_token_file": file,
            "federation_rule_id": "rule/1",
        }
        async with opened(workload=settings) as sources:
            await sources["workload"].refresh()
    (request,) = server.requests
    assert (request.method, request.target) == ("POST", "/oauth/token")
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert "authorization" not in request.headers
    assert request.body.decode() == (
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=platform-token"
        "&federation_rule_id=rule%2F1"
    )


# --- token exchange ---------------------------------------------------------------------------------------------------


async def test_a_token_is_exchanged_by_rfc_8693(platform: Platform, tmp_path: Path) -> None:
    """With and without a client, for an audience and a resource."""
    secret = secret_file(tmp_path / "secret", DEFAULT_CLIENT_SECRET)
    asked = {"audience": "backend", "resource": "https://backend.example/", "scopes": ["backend.read"]}
    async with opened(
        plain=platform.exchange(),
        full=platform.exchange(client_id=DEFAULT_CLIENT_ID, client_secret_file=secret, **asked),
        posted=platform.exchange(client_id=DEFAULT_CLIENT_ID, client_secret_file=secret, auth="post"),
        public=platform.exchange(client_id="public"),
    ) as sources:
        for source in sources.values():
            assert await accepted(platform.emulator.url, await source.refresh()) == 200
    exchanges = list(platform.emulator.backend.exchanges.entries(grant=TOKEN_EXCHANGE))
    assert [one.client_id for one in exchanges] == [None, DEFAULT_CLIENT_ID, DEFAULT_CLIENT_ID, "public"]
    assert exchanges[1].audience == "backend https://backend.example/"
    assert exchanges[1].scope == "backend.read"


async def test_a_refused_exchange_waits_for_another_token(platform: Platform) -> None:
    """As for jwt-bearer: remembered until the file changes."""
    platform.project(trusted=False)
    clock = JumpingClock()
    async with opened(clock=clock, workload=platform.exchange()) as sources:
        for _ in range(2):
            with pytest.raises(ReauthRequiredError):
                await sources["workload"].refresh()
            clock.ahead += 60
        assert platform.emulator.backend.exchanges.count(TOKEN_EXCHANGE) == 1
        platform.project()
        await sources["workload"].refresh()


@pytest.mark.parametrize(
    "changes",
    [{"issued_token_type": None}, {"issued_token_type": "urn:x"}, {"token_type": "N_A"}, {"expires_in": "soon"}],
    ids=str,
)
async def test_another_kind_of_token_is_not_taken_for_a_bearer(tmp_path: Path, changes: dict[str, Any]) -> None:
    """What is no access token, or no bearer, is not handed out as one."""
    file = secret_file(tmp_path / "token", "platform-token")
    async with FaultServer(respond(body=json.dumps(good_answer(**changes)).encode())) as server:
        settings = {
            "type": "workload_identity",
            "grant": "token_exchange",
            "token_url": f"{server.url}/oauth/token",
            "identity_token_file": file,
        }
        async with opened(workload=settings) as sources:
            with pytest.raises(IssuerDownError):
                await sources["workload"].refresh()
