"""The emulator over real HTTP: what each profile demands, what a resource verifies, what the controls show."""

import asyncio
import base64
import json
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import pytest
from nacl.signing import SigningKey

from broker.emulator import Account, EmulatorServer, EmulatorSettings
from tests.support.codex_client import (
    CodexClient,
    agent_body,
    b64url,
    compact,
    envelope,
    open_sealed,
    ssh_public_key,
    stamp,
    task_body,
    until,
)

START = 1_795_219_200.0  # 2026-11-21T00:00:00Z


@dataclass
class Time:
    """A clock that stands still until moved."""

    seconds: float = START

    def __call__(self) -> float:
        """The time."""
        return self.seconds


@dataclass
class Stage:
    """A running emulator, its clock, and an HTTP client of it."""

    emulator: EmulatorServer
    time: Time
    http: httpx.AsyncClient

    async def codex(self, *, account: Account | None = None) -> CodexClient:
        """An agent that was handed its key and id in an identity JWT."""
        identity = self.emulator.backend.issue_identity(account=account)
        seed = base64.b64decode(identity.private_key)[16:48]
        account_id = identity.account.account_id
        assert account_id is not None
        return CodexClient(self.http, SigningKey(seed), identity.agent_runtime_id, account_id, self.time())

    def bearer(self, **account: Any) -> dict[str, str]:
        """An Authorization header the emulator accepts."""
        values = {"account_id": "account-emulator", **account}
        pair = self.emulator.backend.mint_token(account=Account(**values))
        return {"authorization": f"Bearer {pair.access_token}"}

    async def biscuit(self, method: str, path: str, **account: Any) -> dict[str, str]:
        """A biscuit header for one call."""
        answer = await self.http.get("/backend-api/authenticate_app_v2", headers=self.biscuit_request(path, **account))
        assert answer.status_code == 200, answer.text
        assert method == "POST"
        return {"x-openai-authorization": answer.headers["x-openai-authorization"]}

    def biscuit_request(self, path: str, **account: Any) -> dict[str, str]:
        """The headers that ask for a biscuit."""
        return {
            **self.bearer(**account),
            "x-request-id": "codex-agent-identity-" + b64url(bytes(16)),
            "x-original-method": "POST",
            "x-original-url": self.emulator.url + path,
        }

    async def ledger(self, **query: str) -> dict[str, Any]:
        """The ledger as the control shows it."""
        return (await self.http.get("/_emulator/ledger", params=query)).json()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """An emulator of the default profile whose clock stands at the start of 2026-11-21."""
    time = Time()
    async with (
        EmulatorServer(EmulatorSettings(port=0), time_source=time) as emulator,
        httpx.AsyncClient(base_url=emulator.url, trust_env=False) as http,
    ):
        yield Stage(emulator, time, http)


def outcome(answer: httpx.Response) -> tuple[int, str]:
    """Status and error code of an answer."""
    return answer.status_code, answer.json()["error"]["code"] if not answer.is_success else "verified"


# --- agent registration -------------------------------------------------------------------------------------------

AGENT_AUTHAPI = "/api/accounts/v1/agent/register"
AGENT_CHATGPT = "/backend-api/v1/agent/register"


async def test_current_profile_registers_an_agent_for_a_bearer(stage: Stage) -> None:
    """The default profile takes a bearer and the body of generation D, and knows the agent's account afterwards."""
    key = SigningKey.generate()
    answer = await stage.http.post(AGENT_AUTHAPI, json=agent_body(key), headers=stage.bearer(account_id="acc-7"))
    assert outcome(answer) == (200, "verified")
    assert set(answer.json()) == {"agent_runtime_id"}
    [agent] = (await stage.http.get("/_emulator/agents")).json()["agents"]
    expected = (answer.json()["agent_runtime_id"], ssh_public_key(key), "acc-7", "registered")
    assert (agent["agent_runtime_id"], agent["public_key"], agent["account_id"], agent["origin"]) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"authorization": None}, (401, "authorization_missing")),
        ({"authorization": "Bearer nobody"}, (401, "bearer_unknown")),
        ({"authorization": "AgentAssertion x"}, (401, "bearer_required")),
        ({"x-openai-authorization": "b"}, (400, "header_unexpected")),
        ({"chatgpt-account-id": "account-emulator"}, (400, "header_unexpected")),
        ({"x-openai-fedramp": "true"}, (401, "fedramp_header_unexpected")),
        ({"x-openai-fedramp": "false"}, (400, "fedramp_header_invalid")),
        ({"content-type": "text/plain"}, (415, "content_type_invalid")),
    ],
    ids=str,
)
async def test_current_profile_refuses_an_agent_with_other_headers(
    stage: Stage, headers: dict[str, str | None], expected: tuple[int, str]
) -> None:
    """Each header that is missing, wrong or does not belong is refused by name, and no agent appears."""
    sent = {"content-type": "application/json", **stage.bearer(), **headers}
    body = json.dumps(agent_body(SigningKey.generate()))
    answer = await stage.http.post(
        AGENT_AUTHAPI, content=body, headers={name: value for name, value in sent.items() if value is not None}
    )
    assert outcome(answer) == expected
    assert (await stage.http.get("/_emulator/agents")).json()["count"] == 0


async def test_a_repeated_header_is_refused(stage: Stage) -> None:
    """Two Authorization headers are refused rather than one of them chosen."""
    headers = [*stage.bearer().items(), *stage.bearer().items()]
    answer = await stage.http.post(AGENT_AUTHAPI, json=agent_body(SigningKey.generate()), headers=headers)
    assert outcome(answer) == (400, "header_repeated")


async def test_fedramp_account_must_say_so_when_registering(stage: Stage) -> None:
    """A FedRAMP account is refused without the header and accepted with it."""
    body, bearer = agent_body(SigningKey.generate()), stage.bearer(fedramp=True)
    assert outcome(await stage.http.post(AGENT_AUTHAPI, json=body, headers=bearer)) == (401, "fedramp_header_missing")
    with_header = {**bearer, "x-openai-fedramp": "true"}
    assert outcome(await stage.http.post(AGENT_AUTHAPI, json=body, headers=with_header)) == (200, "verified")


async def test_an_expired_bearer_is_refused(stage: Stage) -> None:
    """The emulator's clock decides when a token it issued has expired."""
    bearer = stage.bearer()
    stage.time.seconds += 3600
    answer = await stage.http.post(AGENT_AUTHAPI, json=agent_body(SigningKey.generate()), headers=bearer)
    assert outcome(answer) == (401, "bearer_expired")


@pytest.mark.parametrize("profile", ["codex-2026-04", "codex-2026-05"])
async def test_biscuit_profiles_register_an_agent_for_a_biscuit(stage: Stage, profile: str) -> None:
    """Generations A and C take a biscuit fetched for this very call, once, and no Authorization."""
    stage.emulator.backend.change(profile=profile)
    body = agent_body(SigningKey.generate(), generation="A")
    biscuit = await stage.biscuit("POST", AGENT_CHATGPT)
    first = await stage.http.post(AGENT_CHATGPT, json=body, headers=biscuit)
    again = await stage.http.post(AGENT_CHATGPT, json=body, headers=biscuit)
    assert (outcome(first), outcome(again)) == ((200, "verified"), (401, "biscuit_unknown"))
    both = await stage.http.post(AGENT_CHATGPT, json=body, headers={**biscuit, **stage.bearer()})
    assert outcome(both) == (400, "header_unexpected")
    fedramp = await stage.http.post(AGENT_CHATGPT, json=body, headers={**biscuit, "x-openai-fedramp": "true"})
    assert outcome(fedramp) == (400, "header_unexpected")
    assert outcome(await stage.http.post(AGENT_CHATGPT, json=body)) == (401, "biscuit_missing")
    other = await stage.biscuit("POST", "/backend-api/other")
    assert outcome(await stage.http.post(AGENT_CHATGPT, json=body, headers=other)) == (401, "biscuit_for_other_call")
    late = agent_body(SigningKey.generate(), generation="D")
    biscuit = await stage.biscuit("POST", AGENT_CHATGPT)
    refused = await stage.http.post(AGENT_CHATGPT, json=late, headers=biscuit)
    assert outcome(refused) == (400, "body_fields_invalid")


@pytest.mark.parametrize(
    ("profile", "path", "code"),
    [
        ("codex-2026-08", AGENT_CHATGPT, "wrong_base"),
        ("codex-2026-05", AGENT_AUTHAPI, "wrong_base"),
        ("codex-2026-04", AGENT_AUTHAPI, "wrong_base"),
        ("codex-2026-04-provider", AGENT_AUTHAPI, "agent_register_not_offered"),
        ("codex-2026-04-provider", AGENT_CHATGPT, "agent_register_not_offered"),
    ],
)
async def test_agent_registration_is_not_found_where_a_profile_has_none(
    stage: Stage, profile: str, path: str, code: str
) -> None:
    """Under the other generation's base, and in the generation without registration, the path does not exist."""
    stage.emulator.backend.change(profile=profile)
    answer = await stage.http.post(path, json=agent_body(SigningKey.generate()), headers=stage.bearer())
    assert outcome(answer) == (404, code)
    [entry] = (await stage.ledger())["entries"]
    assert entry["base"] == path.removesuffix("/v1/agent/register")


# --- biscuits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (200, "verified")),
        ({"authorization": None}, (401, "authorization_missing")),
        ({"x-request-id": "codex-agent-identity-short"}, (400, "request_id_invalid")),
        ({"x-request-id": "x-codex-agent-identity-" + "a" * 22}, (400, "request_id_invalid")),
        ({"x-request-id": "codex-agent-identity-" + "=" * 22}, (400, "request_id_invalid")),
        ({"x-request-id": None}, (400, "request_id_invalid")),
        ({"x-original-method": "GET"}, (400, "original_method_invalid")),
        ({"x-original-url": None}, (400, "original_url_invalid")),
    ],
    ids=str,
)
async def test_biscuit_request_is_checked(
    stage: Stage, headers: dict[str, str | None], expected: tuple[int, str]
) -> None:
    """A biscuit costs a bearer and names the call it is for, in exactly the protocol's headers."""
    stage.emulator.backend.change(profile="codex-2026-04")
    sent = {**stage.biscuit_request(AGENT_CHATGPT), **headers}
    kept = {name: value for name, value in sent.items() if value is not None}
    answer = await stage.http.get("/backend-api/authenticate_app_v2", headers=kept)
    assert outcome(answer) == expected


@pytest.mark.parametrize("profile", ["codex-2026-04-provider", "codex-2026-08"])
async def test_later_profiles_have_no_biscuits(stage: Stage, profile: str) -> None:
    """Where a generation knows no biscuits the path does not exist."""
    stage.emulator.backend.change(profile=profile)
    headers = stage.biscuit_request(AGENT_CHATGPT)
    answer = await stage.http.get("/backend-api/authenticate_app_v2", headers=headers)
    assert outcome(answer) == (404, "biscuit_not_offered")


# --- task registration --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["task_id", "taskId", "encrypted_task_id", "encryptedTaskId"])
async def test_task_registration_answers_in_every_shape(stage: Stage, shape: str) -> None:
    """Exactly the chosen field is answered; sealed ones open with the agent's key to the task that is registered."""
    codex = await stage.codex()
    changed = await stage.http.post("/_emulator/settings", json={"task_answer": shape})
    assert changed.json()["task_answer"] == shape
    answer = (await codex.register_task()).json()
    assert list(answer) == [shape]
    task_id = open_sealed(codex.key, answer[shape]) if shape.startswith("encrypted") else answer[shape]
    [task] = (await stage.http.get("/_emulator/tasks")).json()["tasks"]
    assert (task["task_id"], task["agent_runtime_id"]) == (task_id, codex.agent_runtime_id)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"now": START - 301}, (401, "timestamp_stale")),
        ({"now": START + 301}, (401, "timestamp_in_future")),
        ({"now": START - 300}, (200, "verified")),
        ({"key": SigningKey(bytes(32))}, (401, "signature_invalid")),
        ({"agent_runtime_id": "agent_nobody"}, (401, "agent_unknown")),
    ],
    ids=["too old", "too new", "just in time", "another key", "another agent"],
)
async def test_task_registration_is_proven_by_its_signature(
    stage: Stage, change: dict[str, Any], expected: tuple[int, str]
) -> None:
    """Time, key and agent must all be right."""
    codex = await stage.codex()
    for name, value in change.items():
        setattr(codex, name, value)
    assert outcome(await codex.register_task()) == expected


async def test_a_signature_for_another_agent_is_refused(stage: Stage) -> None:
    """The signed payload names the agent, so a registration cannot be replayed for another."""
    first, second = await stage.codex(), await stage.codex()
    body = task_body(first.key, first.agent_runtime_id, stamp(stage.time()))
    path = f"/api/accounts/v1/agent/{second.agent_runtime_id}/task/register"
    assert outcome(await stage.http.post(path, json=body)) == (401, "signature_invalid")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"authorization": "Bearer x"}, (400, "header_unexpected")),
        ({"x-openai-authorization": "x"}, (400, "header_unexpected")),
        ({"chatgpt-account-id": "account-emulator"}, (400, "header_unexpected")),
        ({"content-type": "application/x-www-form-urlencoded"}, (415, "content_type_invalid")),
    ],
    ids=str,
)
async def test_task_registration_carries_no_other_credential(
    stage: Stage, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    """The current profile authenticates a task by its signature alone."""
    codex = await stage.codex()
    body = json.dumps(task_body(codex.key, codex.agent_runtime_id, stamp(stage.time())))
    path = f"/api/accounts/v1/agent/{codex.agent_runtime_id}/task/register"
    sent = {"content-type": "application/json", **headers}
    assert outcome(await stage.http.post(path, content=body, headers=sent)) == expected


@pytest.mark.parametrize(
    ("profile", "allowed"),
    [
        ("codex-2026-04", False),
        ("codex-2026-04-provider", False),
        ("codex-2026-05", True),
        ("codex-2026-08", False),
    ],
)
async def test_only_one_generation_takes_an_external_reference(stage: Stage, profile: str, allowed: bool) -> None:
    """`external_task_ref` is accepted in generation C alone, optional there, and remembered with the task."""
    codex = await stage.codex()
    stage.emulator.backend.change(profile=profile)
    base = "/api/accounts" if profile == "codex-2026-08" else "/backend-api"
    path = f"{base}/v1/agent/{codex.agent_runtime_id}/task/register"

    async def register(ref: str | None) -> httpx.Response:
        headers = await stage.biscuit("POST", path) if profile == "codex-2026-04" else {}
        body = task_body(codex.key, codex.agent_runtime_id, stamp(stage.time()), ref)
        return await stage.http.post(path, json=body, headers=headers)

    assert outcome(await register("thread-1")) == ((200, "verified") if allowed else (400, "body_fields_invalid"))
    assert outcome(await register(None)) == (200, "verified")
    tasks = (await stage.http.get("/_emulator/tasks")).json()["tasks"]
    assert [task["external_task_ref"] for task in tasks] == (["thread-1", None] if allowed else [None])


async def test_first_generation_wants_a_biscuit_for_each_task(stage: Stage) -> None:
    """In generation A a task costs a biscuit of the agent's own account, spent with it."""
    codex = await stage.codex()
    stage.emulator.backend.change(profile="codex-2026-04")
    path = f"/backend-api/v1/agent/{codex.agent_runtime_id}/task/register"
    body = task_body(codex.key, codex.agent_runtime_id, stamp(stage.time()))
    assert outcome(await stage.http.post(path, json=body)) == (401, "biscuit_missing")
    foreign = await stage.biscuit("POST", path, account_id="somebody-else")
    assert outcome(await stage.http.post(path, json=body, headers=foreign)) == (401, "account_mismatch")
    biscuit = await stage.biscuit("POST", path)
    assert outcome(await stage.http.post(path, json=body, headers=biscuit)) == (200, "verified")
    assert outcome(await stage.http.post(path, json=body, headers=biscuit)) == (401, "biscuit_unknown")


@pytest.mark.parametrize(
    ("profile", "served"),
    [
        ("codex-2026-04-provider", {"/backend-api", "/api/accounts"}),
        ("codex-2026-05", {"/backend-api"}),
        ("codex-2026-08", {"/api/accounts"}),
    ],
)
async def test_task_registration_lives_under_its_profiles_base(stage: Stage, profile: str, served: set[str]) -> None:
    """Only the profile's own base answers, and the ledger says which was used."""
    codex = await stage.codex()
    stage.emulator.backend.change(profile=profile)
    for base in ("/backend-api", "/api/accounts"):
        expected = (200, "verified") if base in served else (404, "wrong_base")
        assert outcome(await codex.register_task(base)) == expected
    entries = (await stage.ledger(operation="task_register"))["entries"]
    assert [entry["base"] for entry in entries] == ["/backend-api", "/api/accounts"]


async def test_each_registration_counts(stage: Stage) -> None:
    """Two registrations are two tasks in every count a test may look at."""
    codex = await stage.codex()
    first, second = await codex.new_task(), await codex.new_task()
    query = {"agent_runtime_id": codex.agent_runtime_id}
    tasks = (await stage.http.get("/_emulator/tasks", params=query)).json()
    assert (tasks["count"], [task["task_id"] for task in tasks["tasks"]]) == (2, [first, second])
    [agent] = (await stage.http.get("/_emulator/agents")).json()["agents"]
    assert agent["tasks"] == 2
    assert (await stage.ledger(operation="task_register"))["count"] == 2


# --- the protected resource ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_a_verified_assertion_is_told_what_was_seen(stage: Stage, method: str) -> None:
    """Every method of every path under the base answers with agent, task and account, and with no credential."""
    codex = await stage.codex()
    task_id = await codex.new_task()
    headers = codex.headers(task_id)
    answer = await stage.http.request(method, "/backend-api/any/path?q=1", headers=headers)
    assert answer.json() == {
        "verdict": "verified",
        "method": method,
        "path": "/backend-api/any/path",
        "kind": "agent_assertion",
        "agent_runtime_id": codex.agent_runtime_id,
        "task_id": task_id,
        "external_task_ref": None,
        "account_id": "account-emulator",
        "fedramp": False,
    }


async def test_the_answer_knows_the_thread_where_the_task_has_one(stage: Stage) -> None:
    """In generation C the reference given at registration comes back with every verified call."""
    codex = await stage.codex()
    stage.emulator.backend.change(profile="codex-2026-05", task_answer="task_id")
    path = f"/backend-api/v1/agent/{codex.agent_runtime_id}/task/register"
    body = task_body(codex.key, codex.agent_runtime_id, stamp(stage.time()), "thread-9")
    task_id = (await stage.http.post(path, json=body)).json()["task_id"]
    answer = await stage.http.get("/backend-api/x", headers=codex.headers(task_id))
    assert answer.json()["external_task_ref"] == "thread-9"


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        pytest.param(lambda e: compact({**e, "timestamp": stamp(START + 1)}), "signature_invalid", id="altered time"),
        pytest.param(
            lambda e: json.dumps(e, sort_keys=True).encode(), "assertion_not_canonical", id="spaces in the JSON"
        ),
        pytest.param(
            lambda e: json.dumps(dict(reversed(e.items())), separators=(",", ":")).encode(),
            "assertion_not_canonical",
            id="keys not sorted",
        ),
        pytest.param(lambda e: compact({**e, "x": "y"}), "assertion_fields_invalid", id="fifth field"),
        pytest.param(lambda e: compact({**e, "agent_runtime_id": "nobody"}), "agent_unknown", id="unknown agent"),
    ],
)
async def test_a_bent_assertion_is_refused_by_name(stage: Stage, break_it: Any, code: str) -> None:
    """Whatever is bent in the envelope, the answer and the ledger say exactly what."""
    codex = await stage.codex()
    task_id = await codex.new_task()
    signed = envelope(codex.key, codex.agent_runtime_id, task_id, stamp(stage.time()))
    headers = codex.headers(task_id, authorization=f"AgentAssertion {b64url(break_it(signed))}")
    assert outcome(await stage.http.get("/backend-api/x", headers=headers)) == (401, code)
    [entry] = (await stage.ledger(operation="resource"))["entries"]
    assert (entry["verdict"], entry["refusal"], entry["credential_kind"]) == ("refused", code, "agent_assertion")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"chatgpt_account_id": None}, (401, "account_header_missing")),
        ({"chatgpt_account_id": "other"}, (401, "account_mismatch")),
        ({"x_openai_fedramp": "true"}, (401, "fedramp_header_unexpected")),
        ({"authorization": None}, (401, "authorization_missing")),
        ({"authorization": "Basic eDp5"}, (401, "scheme_unknown")),
        ({"authorization": "agentassertion e30"}, (401, "scheme_unknown")),
        ({"authorization": "AgentAssertion  e30"}, (401, "assertion_encoding_invalid")),
        ({"authorization": "AgentAssertion e30="}, (401, "assertion_padded")),
    ],
    ids=str,
)
async def test_the_header_set_must_be_whole(
    stage: Stage, changes: dict[str, str | None], expected: tuple[int, str]
) -> None:
    """A header set with one member missing or wrong is refused."""
    codex = await stage.codex()
    headers = codex.headers(await codex.new_task(), **changes)
    assert outcome(await stage.http.get("/backend-api/x", headers=headers)) == expected


async def test_fedramp_identity_must_say_so_on_every_call(stage: Stage) -> None:
    """A FedRAMP identity is refused without the header, or with `false`, and accepted with `true`."""
    codex = await stage.codex(account=Account(account_id="gov", fedramp=True))
    task_id = await codex.new_task()

    async def call(value: str | None) -> tuple[int, str]:
        headers = codex.headers(task_id, x_openai_fedramp=value)
        return outcome(await stage.http.get("/backend-api/x", headers=headers))

    assert await call(None) == (401, "fedramp_header_missing")
    assert await call("false") == (400, "fedramp_header_invalid")
    assert await call("true") == (200, "verified")


async def test_first_generation_may_leave_the_account_out(stage: Stage) -> None:
    """In generation A the account header is optional with an assertion, and still compared when sent."""
    codex = await stage.codex()
    task_id = await codex.new_task()
    stage.emulator.backend.change(profile="codex-2026-04")
    without = codex.headers(task_id, chatgpt_account_id=None)
    assert outcome(await stage.http.get("/backend-api/x", headers=without)) == (200, "verified")
    wrong = codex.headers(task_id, chatgpt_account_id="other")
    assert outcome(await stage.http.get("/backend-api/x", headers=wrong)) == (401, "account_mismatch")


async def test_a_task_is_good_for_its_own_agent_only(stage: Stage) -> None:
    """A correctly signed assertion over an unknown task, or over another agent's task, is refused."""
    first, second = await stage.codex(), await stage.codex()
    task_id = await first.new_task()
    stolen = second.headers(task_id)
    assert outcome(await stage.http.get("/backend-api/x", headers=stolen)) == (401, "task_of_other_agent")
    unknown = second.headers("task_nobody")
    assert outcome(await stage.http.get("/backend-api/x", headers=unknown)) == (401, "task_unknown")


async def test_freshness_follows_the_setting_and_the_clock(stage: Stage) -> None:
    """The window and the clock's offset can be changed while running, and both decide about an assertion."""
    codex = await stage.codex()
    task_id = await codex.new_task()
    headers = codex.headers(task_id)

    async def call() -> tuple[int, str]:
        return outcome(await stage.http.get("/backend-api/x", headers=headers))

    stage.time.seconds = START + 301
    assert await call() == (401, "timestamp_stale")
    await stage.http.post("/_emulator/settings", json={"freshness_seconds": 400})
    assert await call() == (200, "verified")
    await stage.http.post("/_emulator/settings", json={"clock_offset_seconds": -702})
    assert await call() == (401, "timestamp_in_future")


async def test_bearer_is_a_credential_too(stage: Stage) -> None:
    """A token the emulator issued is accepted with its account and refused without."""
    bearer = stage.bearer(account_id="acc-3")
    assert outcome(await stage.http.get("/backend-api/x", headers=bearer)) == (401, "account_header_missing")
    whole = {**bearer, "chatgpt-account-id": "acc-3"}
    answer = (await stage.http.get("/backend-api/x", headers=whole)).json()
    assert (answer["kind"], answer["account_id"]) == ("bearer", "acc-3")
    nobody = {"authorization": "Bearer nobody"}
    assert outcome(await stage.http.get("/backend-api/x", headers=nobody)) == (401, "bearer_unknown")


async def test_responses_stream_completes_a_run(stage: Stage) -> None:
    """A verified POST gets the three events a client needs; an unverified one gets none."""
    codex = await stage.codex()
    headers = codex.headers(await codex.new_task())
    answer = await stage.http.post("/backend-api/codex/responses", headers=headers, json={"input": []})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data")]
    assert [event["type"] for event in events] == [
        "response.created",
        "response.output_item.done",
        "response.completed",
    ]
    assert {"id", "usage"} <= events[2]["response"].keys()
    refused = await stage.http.post("/backend-api/codex/responses", json={"input": []})
    assert outcome(refused) == (401, "authorization_missing")


async def test_websocket_upgrade_is_refused(stage: Stage) -> None:
    """An upgrade gets 426, which makes a client fall back to POST, though its assertion was verified."""
    codex = await stage.codex()
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    headers = {**codex.headers(await codex.new_task()), **upgrade, "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    answer = await stage.http.get("/backend-api/codex/responses", headers=headers)
    assert outcome(answer) == (426, "websocket_refused")
    [entry] = (await stage.ledger(operation="resource"))["entries"]
    assert (entry["verdict"], entry["status"]) == ("verified", 426)


async def test_config_bundle_is_an_empty_object(stage: Stage) -> None:
    """The one answer Codex CLI insists on reading is empty, and only for a verified call."""
    codex = await stage.codex()
    path = "/backend-api/wham/config/bundle"
    assert (await stage.http.get(path, headers=codex.headers(await codex.new_task()))).json() == {}
    assert outcome(await stage.http.get(path)) == (401, "authorization_missing")


# --- identities, tokens, other routes -----------------------------------------------------------------------------


async def test_issued_identity_verifies_and_works(stage: Stage) -> None:
    """The JWT from the control verifies against the key set, and the key inside registers a task."""
    wanted = {"account_id": "acc-5", "fedramp": True, "pkcs8": "v1", "expires_in": 60, "plan_type": "team"}
    issued = (await stage.http.post("/_emulator/identities", json=wanted)).json()
    keys = jwt.PyJWKSet.from_dict((await stage.http.get("/backend-api/wham/agent-identities/jwks")).json())
    claims = jwt.decode(
        issued["jwt"],
        keys[jwt.get_unverified_header(issued["jwt"])["kid"]],
        algorithms=["RS256"],
        audience="codex-app-server",
        issuer="https://chatgpt.com/codex-backend/agent-identity",
        options={"verify_exp": False, "verify_iat": False},
    )
    expected = ("acc-5", True, "team", int(START) + 60)
    claimed = (claims["account_id"], claims["chatgpt_account_is_fedramp"], claims["plan_type"], claims["exp"])
    assert claimed == expected
    der = base64.b64decode(claims["agent_private_key"])
    assert len(der) == 48
    codex = CodexClient(stage.http, SigningKey(der[16:]), claims["agent_runtime_id"], "acc-5", START)
    assert (await codex.new_task()).startswith("task_")
    assert ssh_public_key(codex.key) == issued["public_key"]


async def test_unregistered_identity_is_known_to_nobody(stage: Stage) -> None:
    """An identity issued without registering its agent cannot register a task."""
    issued = (await stage.http.post("/_emulator/identities", json={"registered": False})).json()
    der = base64.b64decode(issued["agent_private_key"])
    codex = CodexClient(stage.http, SigningKey(der[16:48]), issued["agent_runtime_id"], now=START)
    assert outcome(await codex.register_task()) == (401, "agent_unknown")


async def test_forgetting_an_agent_makes_its_calls_fail(stage: Stage) -> None:
    """After the control forgets an agent, its assertions and registrations are refused."""
    codex = await stage.codex()
    headers = codex.headers(await codex.new_task())
    assert (await stage.http.delete(f"/_emulator/agents/{codex.agent_runtime_id}")).status_code == 204
    assert outcome(await stage.http.get("/backend-api/x", headers=headers)) == (401, "agent_unknown")
    assert outcome(await codex.register_task()) == (401, "agent_unknown")
    assert (await stage.http.delete(f"/_emulator/agents/{codex.agent_runtime_id}")).status_code == 404


async def test_oauth_refresh_over_http(stage: Stage) -> None:
    """A minted pair refreshes once; the new access token is accepted, the old refresh token is not."""
    minted = (await stage.http.post("/_emulator/tokens", json={"account_id": "acc-9"})).json()
    ask = {"client_id": "app", "grant_type": "refresh_token", "refresh_token": minted["refresh_token"]}
    fresh = (await stage.http.post("/oauth/token", json=ask)).json()
    headers = {"authorization": f"Bearer {fresh['access_token']}", "chatgpt-account-id": "acc-9"}
    assert outcome(await stage.http.get("/backend-api/x", headers=headers)) == (200, "verified")
    assert outcome(await stage.http.post("/oauth/token", json=ask)) == (401, "refresh_token_reused")
    odd = {"content-type": "text/plain"}
    assert outcome(await stage.http.post("/oauth/token", content=b"x", headers=odd)) == (415, "content_type_invalid")
    entries = (await stage.ledger(operation="oauth"))["entries"]
    assert [entry["credential_kind"] for entry in entries] == ["refresh_token", "refresh_token", "none"]
    assert entries[0]["credential_fingerprint"] == entries[1]["credential_fingerprint"]


async def test_rotated_keys_are_published(stage: Stage) -> None:
    """After a rotation new JWTs name the new key, and the old one stays published when asked."""
    old = jwt.get_unverified_header(stage.emulator.backend.issue_identity().jwt)["kid"]
    new = (await stage.http.post("/_emulator/jwks/rotate", json={"keep_old": True})).json()["kid"]
    published = (await stage.http.get("/backend-api/wham/agent-identities/jwks")).json()["keys"]
    assert [key["kid"] for key in published] == [new, old]
    assert jwt.get_unverified_header(stage.emulator.backend.issue_identity().jwt)["kid"] == new


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", (404, "route_unknown")),
        ("GET", "/api/accounts/v1/other", (404, "route_unknown")),
        ("GET", AGENT_AUTHAPI, (405, "method_not_allowed")),
        ("POST", "/backend-api/wham/agent-identities/jwks", (405, "method_not_allowed")),
        ("GET", "/oauth/token", (405, "method_not_allowed")),
    ],
)
async def test_other_paths_and_methods(stage: Stage, method: str, path: str, expected: tuple[int, str]) -> None:
    """What the backend does not have is refused, and stands in the ledger all the same."""
    assert outcome(await stage.http.request(method, path)) == expected
    assert (await stage.ledger())["by_refusal"] == {expected[1]: 1}


# --- ledger and controls ------------------------------------------------------------------------------------------


async def test_ledger_holds_no_secret_and_no_header_value(stage: Stage) -> None:
    """After one of everything, no token, key, signature, biscuit or header value stands in ledger or lists."""
    stage.emulator.backend.change(profile="codex-2026-04")
    codex = await stage.codex()
    path = f"/backend-api/v1/agent/{codex.agent_runtime_id}/task/register"
    biscuit = await stage.biscuit("POST", path)
    body = task_body(codex.key, codex.agent_runtime_id, stamp(START))
    task = (await stage.http.post(path, json=body, headers=biscuit)).json()
    task_id = open_sealed(codex.key, task["encrypted_task_id"])
    headers = codex.headers(task_id, x_private="header-value")
    await stage.http.get("/backend-api/x?token=query-value", headers=headers)
    pair = stage.emulator.backend.mint_token()
    bearer = {"authorization": f"Bearer {pair.access_token}", "chatgpt-account-id": "account-emulator"}
    await stage.http.get("/backend-api/x", headers=bearer)
    ask = {"client_id": "app", "grant_type": "refresh_token", "refresh_token": pair.refresh_token}
    await stage.http.post("/oauth/token", json=ask)
    shown = "".join(
        [(await stage.http.get(f"/_emulator/{name}")).text for name in ("ledger", "agents", "tasks", "faults")]
    )
    secrets = [
        *biscuit.values(),
        body["signature"],
        headers["authorization"].partition(" ")[2],
        "header-value",
        "query-value",
        pair.access_token,
        pair.refresh_token,
    ]
    assert [secret for secret in secrets if secret in shown] == []
    assert "x-private" in shown


async def test_ledger_entry_is_complete(stage: Stage) -> None:
    """One verified call is recorded with all that is known about it."""
    codex = await stage.codex()
    task_id = await codex.new_task()
    await stage.http.post("/backend-api/x", headers=codex.headers(task_id), content=b"hello")
    [entry] = (await stage.ledger(path="/backend-api/x", kind="agent_assertion", since="1"))["entries"]
    names, print_ = entry.pop("header_names"), entry.pop("credential_fingerprint")
    assert {"authorization", "chatgpt-account-id", "host"} <= set(names)
    assert re.fullmatch("[0-9a-f]{16}", print_)
    assert entry == {
        "seq": 2,
        "time": "2026-11-21T00:00:00+00:00",
        "method": "POST",
        "path": "/backend-api/x",
        "operation": "resource",
        "base": None,
        "body_size": 5,
        "body_sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        "credential_kind": "agent_assertion",
        "verdict": "verified",
        "refusal": None,
        "status": 200,
        "outcome": "answered",
        "agent_runtime_id": codex.agent_runtime_id,
        "task_id": task_id,
        "account_id": "account-emulator",
        "external_task_ref": None,
        "faults": [],
    }


async def test_ledger_can_be_cleared(stage: Stage) -> None:
    """Clearing forgets the entries; the sequence goes on, so `since` never goes back."""
    await stage.http.get("/")
    assert (await stage.http.delete("/_emulator/ledger")).status_code == 204
    await stage.http.get("/")
    assert [entry["seq"] for entry in (await stage.ledger())["entries"]] == [2]


async def test_answers_are_dated_by_the_backends_own_clock(stage: Stage) -> None:
    """There is exactly one Date header, and the clock offset moves it."""
    answer = await stage.http.get("/backend-api/x")
    assert answer.headers.get_list("date") == ["Sat, 21 Nov 2026 00:00:00 GMT"]
    await stage.http.post("/_emulator/settings", json={"clock_offset_seconds": 3600})
    answer = await stage.http.get("/backend-api/x")
    assert answer.headers.get_list("date") == ["Sat, 21 Nov 2026 01:00:00 GMT"]


@pytest.mark.parametrize(
    "headers",
    [{"host": "rebound.example"}, {"origin": "http://127.0.0.1"}, {"host": "127.0.0.1.example:80"}],
    ids=str,
)
async def test_controls_answer_no_web_page(stage: Stage, headers: dict[str, str]) -> None:
    """A rebound host name or anything a browser marks with an origin gets no key and no token."""
    answer = await stage.http.post("/_emulator/identities", headers=headers)
    assert outcome(answer) == (403, "not_local")
    assert (await stage.http.get("/_emulator/agents")).json()["count"] == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("settings", {"profile": "codex-1999"}),
        ("settings", {"profile": 5}),
        ("settings", {"freshness_seconds": "long"}),
        ("settings", {"freshness_seconds": True}),
        ("settings", {"port": 1}),
        ("settings", []),
        ("identities", {"pkcs8": "v3"}),
        ("identities", {"expires_in": 1e12}),
        ("identities", {"fedramp": "yes"}),
        ("identities", {"colour": "red"}),
        ("tokens", {"expires_in": "soon"}),
        ("jwks/rotate", {"keep_old": "yes"}),
        ("faults", {"action": "explode"}),
    ],
    ids=str,
)
async def test_controls_refuse_what_they_do_not_understand(stage: Stage, path: str, body: Any) -> None:
    """A mistyped control is an error, never silently ignored."""
    assert (await stage.http.post(f"/_emulator/{path}", json=body)).status_code == 400


async def test_ipv6_loopback_is_served() -> None:
    """The other loopback literal works, and the address is written as a URL needs it."""
    async with (
        EmulatorServer(EmulatorSettings(host="::1", port=0)) as emulator,
        httpx.AsyncClient(base_url=emulator.url, trust_env=False) as http,
    ):
        assert emulator.url.startswith("http://[::1]:")
        assert (await http.get("/_emulator/agents")).json()["count"] == 0


async def test_answers_do_not_wait_for_acknowledgements(stage: Stage) -> None:
    """The listening socket names its protocol, without which asyncio leaves Nagle's algorithm on."""
    assert stage.emulator._socket is not None
    assert stage.emulator._socket.proto == socket.IPPROTO_TCP


async def test_a_port_in_use_is_an_error_and_is_left_alone(stage: Stage) -> None:
    """A second emulator on the same port fails to start; the first goes on."""
    port = httpx.URL(stage.emulator.url).port
    assert port is not None
    with pytest.raises(OSError, match="in use"):
        await EmulatorServer(EmulatorSettings(port=port)).__aenter__()
    assert (await stage.http.get("/_emulator/agents")).status_code == 200


async def test_leaving_closes_the_port() -> None:
    """After the block nothing listens, even while a client still keeps a connection open."""
    async with httpx.AsyncClient(trust_env=False) as http:
        async with EmulatorServer(EmulatorSettings(port=0)) as emulator:
            url = emulator.url
            await http.get(f"{url}/")
        with pytest.raises(RuntimeError, match="not running"):
            _ = emulator.url
        with pytest.raises(httpx.ConnectError):
            await http.get(f"{url}/")


async def test_a_body_beyond_the_limit_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body larger than the emulator reads is refused and recorded, not collected."""
    monkeypatch.setattr("broker.emulator.app.MAX_BODY_BYTES", 10)
    assert outcome(await stage.http.post("/backend-api/x", content=b"x" * 11)) == (413, "body_too_large")
    assert (await stage.ledger())["by_refusal"] == {"body_too_large": 1}


async def test_a_client_that_leaves_while_sending_is_recorded(stage: Stage) -> None:
    """A request whose body never arrives is written down as given up by the client."""
    url = httpx.URL(stage.emulator.url)
    _, writer = await asyncio.open_connection(url.host, url.port, family=socket.AF_INET)
    writer.write(b"POST /backend-api/x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab")
    await writer.drain()
    await until(lambda: any(stage.emulator.backend.ledger.entries()))
    writer.close()
    await writer.wait_closed()
    [entry] = stage.emulator.backend.ledger.entries()
    await until(lambda: entry.outcome != "pending")
    assert (entry.outcome, entry.status) == ("client_gone", None)
