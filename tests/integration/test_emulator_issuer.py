"""The emulator's issuer over real HTTP: four grants, client proofs, subject tokens, revocation, and its ledger."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import quote_plus

import httpx
import jwt
import pytest
from nacl.signing import SigningKey

from broker.emulator import (
    DEFAULT_CLIENT_ID,
    DEFAULT_CLIENT_SECRET,
    Account,
    ClientAuth,
    EmulatorServer,
    EmulatorSettings,
    TokenFormat,
)
from broker.emulator.accounts import fingerprint
from tests.support.codex_client import agent_body

START = 1_795_219_200.0  # 2026-11-21T00:00:00Z
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
JWT = "urn:ietf:params:oauth:token-type:jwt"
ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"
OWN = {"client_id": DEFAULT_CLIENT_ID, "client_secret": DEFAULT_CLIENT_SECRET}


@dataclass
class Stage:
    """A running emulator, the seconds its clock shows, and an HTTP client."""

    emulator: EmulatorServer
    http: httpx.AsyncClient
    seconds: float = START

    async def ask(self, grant: str, *, auth: Any = None, headers: Any = None, **fields: Any) -> httpx.Response:
        """Send a token request as a form."""
        form = {"grant_type": grant, **fields}
        return await self.http.post("/oauth/token", data=form, auth=auth, headers=headers)

    async def granted(self, grant: str, **fields: Any) -> dict[str, Any]:
        """Send a token request that must be granted."""
        answer = await self.ask(grant, **fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def call(self, token: str, path: str = "/backend-api/x", **headers: str) -> tuple[int, str]:
        """Call a resource with a bearer."""
        return outcome(await self.http.get(path, headers={"authorization": f"Bearer {token}", **headers}))

    def subject(self, **options: Any) -> str:
        """A workload's token."""
        return self.emulator.backend.mint_subject_token(**options)

    def change(self, **settings: Any) -> None:
        """Turn a switch."""
        self.emulator.backend.change(**settings)

    def last(self) -> Any:
        """The newest exchange."""
        return list(self.emulator.backend.exchanges.entries())[-1]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """An emulator whose clock stands still until moved."""
    box: list[Stage] = []
    async with (
        EmulatorServer(EmulatorSettings(port=0), time_source=lambda: box[0].seconds if box else START) as emulator,
        httpx.AsyncClient(base_url=emulator.url, trust_env=False) as http,
    ):
        box.append(Stage(emulator, http))
        yield box[0]


def outcome(answer: httpx.Response) -> tuple[int, str]:
    """Status and error word of an answer, in whichever place it stands."""
    body = answer.json()
    if answer.is_success:
        return answer.status_code, "verified"
    error = body.get("error")
    return answer.status_code, error["code"] if isinstance(error, dict) else error


# --- refresh ----------------------------------------------------------------------------------------------------------


async def test_of_many_that_refresh_at_once_one_wins_and_all_lose(stage: Stage) -> None:
    """Fifty present the same token: one gets a pair, 49 are double uses, and the pair is worth nothing."""
    stage.change(token_format=TokenFormat.OPAQUE)
    login = stage.emulator.backend.mint_token()
    ask = {"client_id": "app", "grant_type": "refresh_token", "refresh_token": login.refresh_token}
    answers = await asyncio.gather(*(stage.http.post("/oauth/token", json=ask) for _ in range(50)))
    [won] = [answer.json() for answer in answers if answer.is_success]
    assert {outcome(answer) for answer in answers if not answer.is_success} == {(401, "refresh_token_reused")}
    again = await stage.ask("refresh_token", client_id="app", refresh_token=won["refresh_token"])
    assert outcome(again) == (401, "refresh_token_invalidated")
    shown = (await stage.http.get("/_emulator/exchanges", params={"since": "52"})).json()
    totals = {"issued": 1, "refresh_token_reused": 49, "refresh_token_invalidated": 1}
    assert shown == {
        "last_seq": 52,
        "dropped": 0,
        "double_uses": 49,
        "families_revoked": 1,
        "totals": {"login": {"issued": 1}, "refresh_token": totals},
        "count": 0,
        "exchanges": [],
    }


async def test_refresh_takes_json_and_form(stage: Stage) -> None:
    """Codex sends JSON, an RFC 6749 client a form with a Basic proof; both refresh, and answers are not stored."""
    login = stage.emulator.backend.mint_token()
    ask = {"client_id": "app", "grant_type": "refresh_token", "refresh_token": login.refresh_token}
    answer = await stage.http.post("/oauth/token", json=ask)
    assert answer.headers["cache-control"] == "no-store"
    form = {"auth": (DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET), "refresh_token": answer.json()["refresh_token"]}
    assert (await stage.granted("refresh_token", **form))["token_type"] == "Bearer"
    assert stage.last().client_id == DEFAULT_CLIENT_ID


@pytest.mark.parametrize(
    ("style", "status", "place"),
    [
        ("nested_code", 401, ("error", "code")),
        ("error_string", 401, ("error",)),
        ("top_level_code", 401, ("code",)),
        ("invalid_grant", 400, None),
    ],
)
async def test_refusals_come_in_every_style(stage: Stage, style: str, status: int, place: Any) -> None:
    """The setting moves the code from place to place; `invalid_grant` hides it."""
    await stage.http.post("/_emulator/settings", json={"refresh_error_style": style})
    answer = await stage.ask("refresh_token", client_id="app", refresh_token="rt_unknown")
    found: Any = answer.json()
    for name in place or ("error",):
        found = found[name]
    assert (answer.status_code, found) == (status, "refresh_token_invalidated" if place else "invalid_grant")
    [entry] = (await stage.http.get("/_emulator/ledger")).json()["entries"]
    assert (entry["refusal"], entry["credential_kind"]) == ("refresh_token_invalidated", "refresh_token")


async def test_a_login_by_control_is_ready_to_import(stage: Stage) -> None:
    """The control answers the tokens, the family's name, and an `auth.json` that holds the same tokens."""
    wanted = {"account_id": "acc-1", "expires_in": 60, "refresh_expires_in": 90, "client_id": "app"}
    minted = (await stage.http.post("/_emulator/tokens", json=wanted)).json()
    tokens = json.loads(minted["auth_json"])["tokens"]
    expected = {name: minted[name] for name in ("access_token", "refresh_token", "id_token", "account_id")}
    assert tokens == expected
    [family] = (await stage.http.get("/_emulator/families")).json()["families"]
    assert family == {
        "family": minted["family"],
        "account_id": "acc-1",
        "client_id": "app",
        "generation": 0,
        "newest_refresh_token": fingerprint(minted["refresh_token"]),
        "ended_by": None,
    }
    stage.seconds += 90
    answer = await stage.ask("refresh_token", client_id="app", refresh_token=minted["refresh_token"])
    assert outcome(answer) == (401, "refresh_token_expired")


# --- client credentials -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["basic", "post"])
async def test_client_credentials_by_header_and_by_body(stage: Stage, way: str) -> None:
    """Either proof gives a token of all the client's scopes that any resource accepts without an account."""
    fields = OWN if way == "post" else {"auth": (DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET)}
    answer = await stage.granted("client_credentials", **fields)
    token = answer.pop("access_token")
    assert answer == {"token_type": "Bearer", "expires_in": 3600, "scope": "backend.read backend.write"}
    assert await stage.call(token) == (200, "verified")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["sub"], claims["scope"], "email" in claims) == (DEFAULT_CLIENT_ID, answer["scope"], False)
    seen = stage.last()
    assert (seen.grant, seen.outcome, seen.client_id) == ("client_credentials", "issued", DEFAULT_CLIENT_ID)


async def test_scope_and_audience_are_asked_for_and_echoed(stage: Stage) -> None:
    """A part of the scopes may be asked for, an audience stands in token and answer, anything else is refused."""
    registered = (await stage.http.post("/_emulator/clients", json={"scopes": ["a", "b"], "audiences": ["x"]})).json()
    proof = {name: registered[name] for name in ("client_id", "client_secret")}
    answer = await stage.granted("client_credentials", **proof, scope="b", audience="x")
    assert (answer["scope"], answer["audience"]) == ("b", "x")
    assert jwt.decode(answer["access_token"], options={"verify_signature": False})["aud"] == ["x"]
    assert outcome(await stage.ask("client_credentials", **proof, scope="b c")) == (400, "invalid_scope")
    assert outcome(await stage.ask("client_credentials", **proof, audience="y")) == (400, "invalid_target")


@pytest.mark.parametrize(
    ("registered", "used", "status", "word"),
    [
        ({}, {"data": {"client_id": "c", "client_secret": "wrong"}}, 401, "invalid_client"),
        ({}, {"data": {"client_id": "d", "client_secret": "s"}}, 401, "invalid_client"),
        ({}, {"data": {"client_id": "c"}}, 401, "invalid_client"),
        ({}, {}, 401, "invalid_client"),
        ({}, {"auth": ("c", "wrong")}, 401, "invalid_client"),
        ({"auth": "client_secret_post"}, {"auth": ("c", "s")}, 401, "invalid_client"),
        ({"auth": "client_secret_basic"}, {"data": {"client_id": "c", "client_secret": "s"}}, 401, "invalid_client"),
        ({}, {"auth": ("c", "s"), "data": {"client_secret": "s"}}, 400, "invalid_request"),
        ({}, {"auth": ("c", "s"), "data": {"client_id": "d"}}, 400, "invalid_request"),
        ({}, {"headers": {"authorization": "Bearer s"}}, 400, "invalid_request"),
        ({}, {"headers": {"authorization": "Basic !"}}, 400, "invalid_request"),
    ],
    ids=str,
)
async def test_a_client_that_does_not_prove_itself(
    stage: Stage, registered: Any, used: dict[str, Any], status: int, word: str
) -> None:
    """Every wrong proof is refused in the form of RFC 6749; `invalid_client` names the scheme."""
    stage.emulator.backend.oauth.clients.register(
        client_id="c", client_secret="s", **{name: ClientAuth(value) for name, value in registered.items()}
    )
    form = {"grant_type": "client_credentials", **used.get("data", {})}
    answer = await stage.http.post("/oauth/token", data=form, auth=used.get("auth"), headers=used.get("headers"))
    assert outcome(answer) == (status, word)
    assert set(answer.json()) == {"error", "error_description"}
    assert answer.headers.get("www-authenticate") == ('Basic realm="emulator"' if status == 401 else None)


async def test_basic_proofs_are_form_encoded_first(stage: Stage) -> None:
    """RFC 6749 encodes id and secret before base64; a client that forgets it is caught when they have odd characters."""
    name, secret = "c:1 +", "s%41:é"
    stage.emulator.backend.oauth.clients.register(client_id=name, client_secret=secret)
    right = await stage.ask("client_credentials", auth=(quote_plus(name), quote_plus(secret)))
    wrong = await stage.ask("client_credentials", auth=(name, "s%41:e"))
    assert (right.status_code, wrong.status_code) == (200, 401)


async def test_a_new_secret_makes_the_old_one_worthless(stage: Stage) -> None:
    """Registering a known name again rotates its secret; the list shows no secret."""
    first = (await stage.http.post("/_emulator/clients", json={"client_id": "c"})).json()
    second = (await stage.http.post("/_emulator/clients", json={"client_id": "c", "account_id": "acc-7"})).json()
    answers = [
        await stage.ask("client_credentials", client_id="c", client_secret=known["client_secret"])
        for known in (first, second)
    ]
    assert [answer.status_code for answer in answers] == [401, 200]
    token = answers[1].json()["access_token"]
    assert await stage.call(token, **{"chatgpt-account-id": "acc-8"}) == (401, "account_mismatch")
    assert await stage.call(token, **{"chatgpt-account-id": "acc-7"}) == (200, "verified")
    listed = (await stage.http.get("/_emulator/clients")).text
    assert (first["client_secret"] in listed, second["client_secret"] in listed) == (False, False)


@pytest.mark.parametrize(
    ("content", "content_type", "word"),
    [
        (b'{"grant_type": "client_credentials"}', "application/json", "invalid_request"),
        (b"grant_type=client_credentials&grant_type=client_credentials", "FORM", "invalid_request"),
        (b"grant_type", "FORM", "invalid_request"),
        (b"grant_type=\xff", "FORM", "invalid_request"),
        (b"grant_type=", "FORM", "invalid_request"),
        (b"", "FORM", "invalid_request"),
        (b"grant_type=password", "FORM", "unsupported_grant_type"),
        (b"[]", "application/json", "body_not_json"),
        (b'{"grant_type": ["refresh_token"]}', "application/json", "invalid_request"),
    ],
    ids=str,
)
async def test_requests_that_are_none(stage: Stage, content: bytes, content_type: str, word: str) -> None:
    """What cannot be read is refused and stands in the ledger of exchanges as that."""
    kind = content_type.replace("FORM", "application/x-www-form-urlencoded")
    answer = await stage.http.post("/oauth/token", content=content, headers={"content-type": kind})
    assert outcome(answer) == (400, word)
    assert stage.last().outcome == word


# --- workload identity and token exchange -----------------------------------------------------------------------------


async def test_jwt_bearer_answers_what_codex_reads(stage: Stage) -> None:
    """The answer has exactly the fields of Codex's workload identity, and its user is that of the token's claims."""
    stage.change(access_token_seconds=7200)
    account = Account(account_id="acc-1", chatgpt_user_id="user-1", plan_type="team")
    subject = stage.subject(account=account, subject="job-1")
    fields = {"assertion": subject, "federation_rule_id": "rule-emulator", "workload_identity_context": "ctx"}
    answer = await stage.granted(JWT_BEARER, **fields)
    token = answer.pop("access_token")
    assert answer == {
        "chatgpt_account_id": "acc-1",
        "chatgpt_account_user_id": "user-1__acc-1",
        "chatgpt_plan_type": "team",
        "expires_in": 3600,
        "issued_token_type": ACCESS_TOKEN,
        "scope": "backend.read backend.write",
        "token_type": "Bearer",
        "user_id": "user-1",
    }
    claims = jwt.decode(token, options={"verify_signature": False})["https://api.openai.com/auth"]
    assert (claims["user_id"], claims["chatgpt_account_id"]) == ("user-1", "acc-1")
    assert await stage.call(token, **{"chatgpt-account-id": "acc-1"}) == (200, "verified")
    seen = stage.last()
    assert (seen.grant, seen.subject, seen.account_id, seen.presented) == (
        JWT_BEARER,
        "job-1",
        "acc-1",
        fingerprint(subject),
    )


SPOILT = [
    pytest.param({"trusted": False}, "subject_token_invalid", id="signed-by-somebody-else"),
    pytest.param({"lifetime": timedelta(seconds=-1)}, "subject_token_expired", id="expired"),
    pytest.param({"audience": "other"}, "subject_audience_mismatch", id="for-somebody-else"),
]


@pytest.mark.parametrize(("options", "cause"), SPOILT)
@pytest.mark.parametrize(("grant", "error"), [(JWT_BEARER, "invalid_grant"), (TOKEN_EXCHANGE, "invalid_request")])
async def test_spoilt_subject_tokens(stage: Stage, grant: str, error: str, options: Any, cause: str) -> None:
    """Both exchanges check signature, expiry and audience; the wire has the RFC's word, the ledger the cause."""
    stage.subject()  # so that the platform has a key
    token = stage.subject(**options)
    fields = {"assertion": token, "federation_rule_id": "rule-emulator"}
    if grant == TOKEN_EXCHANGE:
        fields = {"subject_token": token, "subject_token_type": JWT}
    assert outcome(await stage.ask(grant, **fields)) == (400, error)
    assert (stage.last().outcome, stage.last().issued_access) == (cause, None)


@pytest.mark.parametrize(
    ("change", "error", "cause"),
    [
        ({"federation_rule_id": "other"}, "invalid_grant", "federation_rule_unknown"),
        ({"federation_rule_id": ""}, "invalid_request", "invalid_request"),
        ({"assertion": ""}, "invalid_request", "invalid_request"),
        ({"client_id": "app"}, "invalid_request", "invalid_request"),
        ({"assertion": "not.a.jwt"}, "invalid_grant", "subject_token_invalid"),
        ({"assertion": "x" * (16 * 1024 + 1)}, "invalid_grant", "subject_token_invalid"),
    ],
    ids=["other-rule", "no-rule", "no-assertion", "more-than-its-form", "no-jwt", "too-long"],
)
async def test_jwt_bearer_takes_its_form_and_no_other(stage: Stage, change: Any, error: str, cause: str) -> None:
    """Anything but exactly the fields of the protocol is refused."""
    fields = {"assertion": stage.subject(), "federation_rule_id": "rule-emulator", **change}
    assert outcome(await stage.ask(JWT_BEARER, **fields)) == (400, error)
    assert stage.last().outcome == cause


async def test_a_subject_may_move_to_another_account(stage: Stage) -> None:
    """The newest token of a subject decides for which account the next exchange is: a client must notice."""
    fields = {"federation_rule_id": "rule-emulator"}
    first = await stage.granted(JWT_BEARER, assertion=stage.subject(), **fields)
    moved = stage.subject(account=Account(account_id="acc-2", chatgpt_user_id="user-2"))
    second = await stage.granted(JWT_BEARER, assertion=moved, **fields)
    accounts = [answer["chatgpt_account_id"] for answer in (first, second)]
    assert (accounts, second["user_id"]) == (["account-emulator", "acc-2"], "user-2")


@pytest.mark.parametrize("kind", [JWT, ID_TOKEN, ACCESS_TOKEN])
async def test_token_exchange_of_each_kind(stage: Stage, kind: str) -> None:
    """A workload's token or an access token of this issuer is exchanged for one with audience, resource and scope."""
    own = stage.emulator.backend.mint_token().access_token
    answer = await stage.granted(
        TOKEN_EXCHANGE,
        subject_token=own if kind == ACCESS_TOKEN else stage.subject(subject="job-1"),
        subject_token_type=kind,
        requested_token_type=ACCESS_TOKEN,
        audience=["a", "b"],
        resource="https://backend.example/x",
        scope="backend.read",
    )
    token = answer.pop("access_token")
    assert answer == {
        "issued_token_type": ACCESS_TOKEN,
        "token_type": "Bearer",
        "expires_in": 3600,
        "scope": "backend.read",
    }
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["aud"] == ["a", "b", "https://backend.example/x"]
    assert claims["sub"] == ("user-emulator" if kind == ACCESS_TOKEN else "job-1")
    assert await stage.call(token) == (200, "verified")
    assert stage.last().audience == "a b https://backend.example/x"


@pytest.mark.parametrize(
    ("change", "status", "error"),
    [
        ({"subject_token": ""}, 400, "invalid_request"),
        ({"subject_token_type": ""}, 400, "invalid_request"),
        ({"subject_token_type": "urn:x"}, 400, "invalid_request"),
        ({"subject_token_type": ACCESS_TOKEN}, 400, "invalid_request"),
        ({"requested_token_type": "urn:x"}, 400, "invalid_request"),
        ({"actor_token": "x"}, 400, "invalid_request"),
        ({"scope": "everything"}, 400, "invalid_scope"),
        ({"resource": "backend"}, 400, "invalid_target"),
        ({"resource": "https://backend.example/#x"}, 400, "invalid_target"),
        ({**OWN, "client_secret": "wrong"}, 401, "invalid_client"),
    ],
    ids=str,
)
async def test_token_exchange_refuses(stage: Stage, change: Any, status: int, error: str) -> None:
    """Each wrong parameter has the error of RFC 8693."""
    fields = {"subject_token": stage.subject(), "subject_token_type": JWT, **change}
    assert outcome(await stage.ask(TOKEN_EXCHANGE, **fields)) == (status, error)


async def test_subject_tokens_by_control(stage: Stage) -> None:
    """The control issues a token that the named rule exchanges, for the account it was given."""
    wanted = {"subject": "job-9", "account_id": "acc-9", "expires_in": 60}
    issued = (await stage.http.post("/_emulator/subject-tokens", json=wanted)).json()
    fields = {"assertion": issued["subject_token"], "federation_rule_id": issued["federation_rule_id"]}
    assert (await stage.granted(JWT_BEARER, **fields))["chatgpt_account_id"] == "acc-9"
    stage.seconds += 60
    assert outcome(await stage.ask(JWT_BEARER, **fields)) == (400, "invalid_grant")


# --- revocation -------------------------------------------------------------------------------------------------------


async def test_revoking_a_refresh_token_ends_its_family(stage: Stage) -> None:
    """As Codex logs out: the newest token is invalid afterwards, the access token lives, unknown tokens are no error."""
    login = stage.emulator.backend.mint_token()
    ask = {"token": login.refresh_token, "token_type_hint": "refresh_token", "client_id": "app"}
    answers = [await stage.http.post("/oauth/revoke", json=ask) for _ in range(2)]
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {}), (200, {})]
    refused = await stage.ask("refresh_token", client_id="app", refresh_token=login.refresh_token)
    assert outcome(refused) == (401, "refresh_token_invalidated")
    assert await stage.call(login.access_token, **{"chatgpt-account-id": "account-emulator"}) == (200, "verified")
    exchanges = stage.emulator.backend.exchanges
    assert [exchange.outcome for exchange in exchanges.entries(grant="revocation")] == ["revoked", "ignored"]
    assert (exchanges.double_uses, exchanges.families_revoked) == (0, 1)


async def test_a_login_can_be_ended_from_elsewhere(stage: Stage) -> None:
    """The control ends one family by name, once; its refresh token is invalid, another login's is not."""
    ended, other = (stage.emulator.backend.mint_token() for _ in range(2))
    answers = [await stage.http.delete(f"/_emulator/families/{ended.family}") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [204, 404]
    refused = await stage.ask("refresh_token", client_id="app", refresh_token=ended.refresh_token)
    assert outcome(refused) == (401, "refresh_token_invalidated")
    assert await stage.granted("refresh_token", client_id="app", refresh_token=other.refresh_token)


async def test_revoking_an_access_token_ends_it_alone(stage: Stage) -> None:
    """The access token is refused, the family lives."""
    login = stage.emulator.backend.mint_token()
    assert (await stage.http.post("/oauth/revoke", data={"token": login.access_token})).status_code == 200
    assert await stage.call(login.access_token) == (401, "bearer_unknown")
    assert await stage.granted("refresh_token", client_id="app", refresh_token=login.refresh_token)
    assert outcome(await stage.http.post("/oauth/revoke", data={"x": "y"})) == (400, "invalid_request")


# --- faults -----------------------------------------------------------------------------------------------------------


async def test_a_lost_answer_has_spent_the_token(stage: Stage) -> None:
    """The connection is cut after the exchange: the ledger knows it as issued, the next try is a reuse."""
    login = stage.emulator.backend.mint_token()
    rule = {"action": "drop_after", "operation": "oauth", "grant": "refresh_token"}
    await stage.http.post("/_emulator/faults", json=rule)
    fields = {"client_id": "app", "refresh_token": login.refresh_token}
    with pytest.raises(httpx.RemoteProtocolError):
        await stage.ask("refresh_token", **fields)
    assert (stage.last().outcome, stage.last().generation) == ("issued", 0)
    assert outcome(await stage.ask("refresh_token", **fields)) == (401, "refresh_token_reused")


@pytest.mark.parametrize(
    "rule",
    [
        {"action": "status", "status": 429, "retry_after": 1},
        {"action": "garbage"},
        {"action": "redirect", "location": "http://127.0.0.1:9/"},
        {"action": "oversize", "size": 5000},
    ],
    ids=lambda rule: rule["action"],
)
async def test_a_fault_of_one_grant_spares_the_others_and_spends_nothing(stage: Stage, rule: dict[str, Any]) -> None:
    """A request that a fault answers is no exchange, and its token is good afterwards."""
    login = stage.emulator.backend.mint_token()
    await stage.http.post("/_emulator/faults", json={**rule, "operation": "oauth", "grant": "refresh_token"})
    assert (await stage.ask("client_credentials", **OWN)).status_code == 200
    fields = {"client_id": "app", "refresh_token": login.refresh_token}
    spoilt = await stage.ask("refresh_token", **fields)
    assert "access_token" not in spoilt.text
    assert stage.emulator.backend.exchanges.count("refresh_token") == 0
    assert await stage.granted("refresh_token", **fields)


async def test_one_bearer_or_all_are_rejected(stage: Stage) -> None:
    """A rule with a fingerprint concerns one bearer; without one all; what was bad anyway uses up nothing."""
    backend = stage.emulator.backend
    marked, other = (backend.mint_token().access_token for _ in range(2))
    account = {"chatgpt-account-id": "account-emulator"}
    rule = {"action": "bearer_reject", "fingerprint": fingerprint(marked), "count": None}
    await stage.http.post("/_emulator/faults", json=rule)
    assert await stage.call(marked, **account) == (401, "bearer_rejected")
    assert await stage.call(other, **account) == (200, "verified")
    await stage.http.delete("/_emulator/faults")
    await stage.http.post("/_emulator/faults", json={"action": "bearer_reject"})
    assert await stage.call("unknown", **account) == (401, "bearer_unknown")
    assert await stage.call(other, **{"chatgpt-account-id": "other"}) == (401, "account_mismatch")
    assert await stage.call(other, **account) == (401, "bearer_rejected")
    assert await stage.call(other, **account) == (200, "verified")


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["codex-2026-08", "codex-2026-05"])
async def test_a_bearer_is_rejected_where_it_pays_for_a_registration(stage: Stage, profile: str) -> None:
    """The same switch makes a good registration, or the biscuit for one, fail once with 401 and leave nothing."""
    stage.change(profile=profile)
    token = stage.emulator.backend.mint_token().access_token
    operation = "agent_register" if profile == "codex-2026-08" else "biscuit"
    await stage.http.post("/_emulator/faults", json={"action": "bearer_reject", "operation": operation})
    headers = {"authorization": f"Bearer {token}"}
    if operation == "biscuit":
        headers |= {
            "x-request-id": f"codex-agent-identity-{'A' * 22}",
            "x-original-method": "POST",
            "x-original-url": f"{stage.emulator.url}/backend-api/v1/agent/register",
        }
    body = agent_body(SigningKey.generate())

    async def once() -> httpx.Response:
        if operation == "biscuit":
            return await stage.http.get("/backend-api/authenticate_app_v2", headers=headers)
        return await stage.http.post("/api/accounts/v1/agent/register", json=body, headers=headers)

    first, second = await once(), await once()
    assert (outcome(first), second.status_code) == ((401, "bearer_rejected"), 200)
    assert len(stage.emulator.backend.registry.agents_json()) == (operation == "agent_register")


async def test_no_list_and_no_ledger_shows_a_secret(stage: Stage) -> None:
    """After one of every grant and one of every refusal, no token and no secret stands in what the controls list."""
    backend = stage.emulator.backend
    login, subject = backend.mint_token(), stage.subject()
    fields = {"client_id": "app", "refresh_token": login.refresh_token}
    answers = [
        await stage.granted("refresh_token", **fields),
        await stage.granted("client_credentials", auth=(DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET)),
        await stage.granted(JWT_BEARER, assertion=subject, federation_rule_id="rule-emulator"),
        await stage.granted(TOKEN_EXCHANGE, subject_token=subject, subject_token_type=JWT),
    ]
    refused = [
        await stage.ask("refresh_token", **fields),
        await stage.ask("client_credentials", client_id=DEFAULT_CLIENT_ID, client_secret="wrong-secret"),
        await stage.ask(JWT_BEARER, assertion=subject, federation_rule_id="other"),
    ]
    secrets = [login.access_token, login.refresh_token, subject, DEFAULT_CLIENT_SECRET, "wrong-secret"]
    secrets += [answer[name] for answer in answers for name in ("access_token", "refresh_token") if name in answer]
    shown = "".join([answer.text for answer in refused])
    for name in ("exchanges", "families", "clients", "ledger", "faults"):
        shown += (await stage.http.get(f"/_emulator/{name}")).text
    shown += repr([backend.exchanges, backend.oauth.families, backend.oauth.clients, backend.oauth.subjects, login])
    assert [secret for secret in secrets if secret in shown] == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("settings", {"token_format": "paper"}),
        ("settings", {"family_revocation": 1}),
        ("settings", {"access_token_seconds": 0}),
        ("tokens", {"client_id": 1}),
        ("tokens", {"refresh_expires_in": "soon"}),
        ("clients", {"auth": "none"}),
        ("clients", {"scopes": "a b"}),
        ("clients", {"audiences": [1]}),
        ("clients", {"client_secret": 1}),
        ("subject-tokens", {"trusted": "yes"}),
        ("subject-tokens", {"subject": None}),
        ("subject-tokens", {"colour": "red"}),
    ],
    ids=str,
)
async def test_controls_of_the_issuer_refuse_what_they_do_not_understand(stage: Stage, path: str, body: Any) -> None:
    """A mistyped control is an error, and changes nothing."""
    before = stage.emulator.backend.settings
    assert (await stage.http.post(f"/_emulator/{path}", json=body)).status_code == 400
    assert stage.emulator.backend.settings == before
