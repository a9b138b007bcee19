"""Every fault switch of the emulator, seen firing over real HTTP, counted, and recorded."""

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from nacl.signing import SigningKey

from broker.emulator import EmulatorServer, EmulatorSettings
from tests.support.codex_client import CodexClient, agent_body, until

START = 1_795_219_200.0  # 2026-11-21T00:00:00Z


@dataclass
class Stage:
    """A running emulator with one agent that has a task, and its whole header set."""

    emulator: EmulatorServer
    http: httpx.AsyncClient
    codex: CodexClient
    headers: dict[str, str]

    async def fault(self, **rule: Any) -> dict[str, Any]:
        """Put a fault in force."""
        answer = await self.http.post("/_emulator/faults", json=rule)
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def call(self, path: str = "/backend-api/x") -> httpx.Response:
        """Make a call that is verified unless a fault is in the way."""
        return await self.http.get(path, headers=self.headers)

    async def fired(self) -> list[tuple[str, int]]:
        """Action and count of all faults."""
        faults = (await self.http.get("/_emulator/faults")).json()["faults"]
        return [(rule["action"], rule["fired"]) for rule in faults]

    def last(self) -> dict[str, Any]:
        """What the ledger says about the last request."""
        entry = list(self.emulator.backend.ledger.entries())[-1]
        return {name: getattr(entry, name) for name in ("verdict", "refusal", "status", "outcome", "faults")}


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """An emulator whose clock stands still, with a ready agent."""
    async with (
        EmulatorServer(EmulatorSettings(port=0), time_source=lambda: START) as emulator,
        httpx.AsyncClient(base_url=emulator.url, trust_env=False) as http,
    ):
        identity = emulator.backend.issue_identity()
        key = SigningKey(base64.b64decode(identity.private_key)[16:48])
        codex = CodexClient(http, key, identity.agent_runtime_id, now=START)
        yield Stage(emulator, http, codex, codex.headers(await codex.new_task()))


def code(answer: httpx.Response) -> str:
    """The error code of an answer."""
    return str(answer.json()["error"]["code"])


async def test_status_answers_without_processing_a_counted_number_of_times(stage: Stage) -> None:
    """The next two task registrations are throttled and make no task; the third is served."""
    rule = {"action": "status", "status": 429, "retry_after": 2, "operation": "task_register", "count": 2}
    await stage.fault(**rule)
    for _ in range(2):
        answer = await stage.codex.register_task()
        assert (answer.status_code, answer.headers["retry-after"], code(answer)) == (429, "2", "fault")
    assert stage.last() == {
        "verdict": "unprocessed",
        "refusal": None,
        "status": 429,
        "outcome": "answered",
        "faults": ["fault-1"],
    }
    assert (await stage.codex.register_task()).status_code == 200
    assert (await stage.http.get("/_emulator/tasks")).json()["count"] == 2
    assert await stage.fired() == [("status", 2)]


async def test_status_can_answer_any_body_and_headers(stage: Stage) -> None:
    """A rule may play a proxy's error page, an odd encoding or an HTTP date."""
    when = "Sat, 21 Nov 2026 00:00:09 GMT"
    headers = {"content-type": "text/html", "x-odd": "1"}
    await stage.fault(action="status", status=502, body="<html>", headers=headers, retry_after=when)
    answer = await stage.call()
    shown = {name: answer.headers.get_list(name) for name in ("content-type", "x-odd", "retry-after")}
    assert (answer.status_code, answer.text) == (502, "<html>")
    assert shown == {"content-type": ["text/html"], "x-odd": ["1"], "retry-after": [when]}


async def test_delay_processes_afterwards(stage: Stage) -> None:
    """A delayed request is still pending while others are served, and then answered as usual."""
    await stage.fault(action="delay", seconds=3600, path_prefix="/backend-api/slow")
    slow = asyncio.ensure_future(stage.call("/backend-api/slow"))
    await until(lambda: stage.last()["faults"] == ["fault-1"])
    assert stage.last()["outcome"] == "pending"
    assert (await stage.call("/backend-api/fast")).status_code == 200
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    slow_entry = next(stage.emulator.backend.ledger.entries(path="/backend-api/slow"))
    await until(lambda: slow_entry.outcome != "pending")
    assert (slow_entry.outcome, slow_entry.verdict) == ("client_gone", "unprocessed")


async def test_a_short_delay_ends_by_itself(stage: Stage) -> None:
    """After the delay the request is processed and verified."""
    await stage.fault(action="delay", seconds=0.001)
    assert (await stage.call()).json()["verdict"] == "verified"
    assert stage.last()["faults"] == ["fault-1"]


async def test_hang_is_released_by_clearing(stage: Stage) -> None:
    """A hanging request goes on as soon as its rule is removed."""
    rule = await stage.fault(action="hang")
    hanging = asyncio.ensure_future(stage.call())
    await until(lambda: stage.last()["faults"] == ["fault-1"])
    assert not hanging.done()
    assert (await stage.http.delete(f"/_emulator/faults/{rule['id']}")).json() == {"removed": 1}
    assert (await hanging).json()["verdict"] == "verified"


async def test_hang_ends_when_the_client_leaves(stage: Stage) -> None:
    """A client that gives up is noticed, and its request is never processed."""
    await stage.fault(action="hang", operation="task_register")
    with pytest.raises(httpx.ReadTimeout):
        await stage.http.post(
            f"/api/accounts/v1/agent/{stage.codex.agent_runtime_id}/task/register", json={}, timeout=0.05
        )
    await until(lambda: stage.last()["outcome"] != "pending")
    assert (stage.last()["outcome"], stage.last()["verdict"]) == ("client_gone", "unprocessed")
    assert (await stage.http.get("/_emulator/tasks")).json()["count"] == 1


async def test_leaving_lets_go_of_what_hangs() -> None:
    """Shutting the emulator down answers a hanging request instead of waiting for it."""
    async with httpx.AsyncClient(trust_env=False) as http:
        async with EmulatorServer(EmulatorSettings(port=0)) as emulator:
            await http.post(f"{emulator.url}/_emulator/faults", json={"action": "hang"})
            hanging = asyncio.ensure_future(http.get(f"{emulator.url}/backend-api/x"))
            await until(lambda: any(entry.faults for entry in emulator.backend.ledger.entries()))
        assert (await hanging).status_code == 401


async def test_leaving_ends_a_request_that_will_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is still delayed when the emulator shuts down is cut off after its grace."""
    monkeypatch.setattr("broker.emulator.server._SHUTDOWN_SECONDS", 0.01)
    async with httpx.AsyncClient(trust_env=False) as http:
        async with EmulatorServer(EmulatorSettings(port=0)) as emulator:
            await http.post(f"{emulator.url}/_emulator/faults", json={"action": "delay", "seconds": 3600})
            slow = asyncio.ensure_future(http.get(f"{emulator.url}/backend-api/x", timeout=60))
            await until(lambda: any(entry.faults for entry in emulator.backend.ledger.entries()))
        with pytest.raises(httpx.HTTPError):
            await slow


async def test_truncate_closes_in_the_middle_of_the_body(stage: Stage) -> None:
    """The request is processed, half of its answer arrives, and the client sees the body cut."""
    await stage.fault(action="truncate", operation="task_register")
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        await stage.codex.register_task()
    assert stage.last() == {
        "verdict": "verified",
        "refusal": None,
        "status": 200,
        "outcome": "cut",
        "faults": ["fault-1"],
    }
    assert (await stage.http.get("/_emulator/tasks")).json()["count"] == 2


async def test_drop_after_loses_the_answer_of_what_was_done(stage: Stage) -> None:
    """The agent is registered, the client learns nothing, and the ledger knows both."""
    await stage.fault(action="drop_after", operation="agent_register")
    pair = stage.emulator.backend.mint_token()
    body, headers = agent_body(SigningKey.generate()), {"authorization": f"Bearer {pair.access_token}"}
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        await stage.http.post("/api/accounts/v1/agent/register", json=body, headers=headers)
    assert (stage.last()["verdict"], stage.last()["status"], stage.last()["outcome"]) == ("verified", None, "cut")
    again = await stage.http.post("/api/accounts/v1/agent/register", json=body, headers=headers)
    agents = (await stage.http.get("/_emulator/agents")).json()["agents"]
    twins = [agent for agent in agents if agent["agents_with_this_key"] == 2]
    assert (again.status_code, len(twins)) == (200, 2)


async def test_garbage_is_a_success_that_is_not_json(stage: Stage) -> None:
    """Status and content type promise JSON, the body breaks the promise."""
    await stage.fault(action="garbage")
    answer = await stage.call()
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    with pytest.raises(UnicodeDecodeError):
        answer.json()
    assert stage.last()["verdict"] == "unprocessed"


async def test_redirect_points_elsewhere(stage: Stage) -> None:
    """A redirect names its target and is not followed by the emulator."""
    await stage.fault(action="redirect", location="http://127.0.0.1:9/steal", status=307)
    answer = await stage.call()
    assert (answer.status_code, answer.headers["location"]) == (307, "http://127.0.0.1:9/steal")


async def test_oversize_sends_as_much_as_asked(stage: Stage) -> None:
    """The answer is exactly as large as the rule says, and valid JSON, so that only its size is wrong."""
    await stage.fault(action="oversize", size=100_000)
    answer = await stage.call()
    assert (len(answer.content), answer.json()) == (100_000, {})


async def test_stale_task_is_refused_from_then_on(stage: Stage) -> None:
    """The task of the next verified assertion becomes stale for good; a new task of the agent is accepted."""
    await stage.fault(action="stale_task")
    assert (code(await stage.call()), code(await stage.call())) == ("task_stale", "task_stale")
    assert await stage.fired() == [("stale_task", 1)]
    fresh = stage.codex.headers(await stage.codex.new_task())
    assert (await stage.http.get("/backend-api/x", headers=fresh)).status_code == 200
    tasks = (await stage.http.get("/_emulator/tasks")).json()["tasks"]
    assert [task["stale"] for task in tasks] == [True, False]


async def test_stale_task_is_not_spent_on_what_would_be_refused_anyway(stage: Stage) -> None:
    """A bad assertion or a bearer neither uses up the rule nor hides its own refusal."""
    await stage.fault(action="stale_task")
    bad = await stage.http.get("/backend-api/x", headers={**stage.headers, "chatgpt-account-id": "other"})
    pair = stage.emulator.backend.mint_token()
    bearer = {"authorization": f"Bearer {pair.access_token}", "chatgpt-account-id": "account-emulator"}
    good = await stage.http.get("/backend-api/x", headers=bearer)
    assert (code(bad), good.status_code, await stage.fired()) == ("account_mismatch", 200, [("stale_task", 0)])


async def test_route_reject_concerns_assertions_on_one_route(stage: Stage) -> None:
    """The route refuses assertions and takes bearers; other routes take assertions."""
    await stage.fault(action="route_reject", path_prefix="/backend-api/codex/models", count=None)
    assert code(await stage.call("/backend-api/codex/models")) == "route_rejects_assertions"
    assert (await stage.call("/backend-api/ps/plugins")).status_code == 200
    pair = stage.emulator.backend.mint_token()
    bearer = {"authorization": f"Bearer {pair.access_token}", "chatgpt-account-id": "account-emulator"}
    answer = await stage.http.get("/backend-api/codex/models", headers=bearer)
    assert (answer.status_code, answer.json()["models"]) == (200, [])


@pytest.mark.parametrize("first", ["assertion", "registration"])
async def test_a_dead_agent_is_refused_everywhere(stage: Stage, first: str) -> None:
    """From its next good signature on nothing of the agent is accepted; a newly registered one is."""
    await stage.fault(action="agent_dead", agent_runtime_id=stage.codex.agent_runtime_id, count=None)
    calls = [stage.call, stage.codex.register_task]
    codes = [code(await call()) for call in (calls if first == "assertion" else calls[::-1])]
    assert codes == ["agent_dead", "agent_dead"]
    assert await stage.fired() == [("agent_dead", 1)]
    identity = stage.emulator.backend.issue_identity()
    key = SigningKey(base64.b64decode(identity.private_key)[16:48])
    other = CodexClient(stage.http, key, identity.agent_runtime_id, now=START)
    headers = other.headers(await other.new_task())
    assert (await stage.http.get("/backend-api/x", headers=headers)).status_code == 200
    agents = (await stage.http.get("/_emulator/agents")).json()["agents"]
    assert [agent["dead"] for agent in agents] == [True, False]


async def test_agent_dead_is_not_spent_on_a_bad_signature(stage: Stage) -> None:
    """Whoever cannot sign for an agent cannot have it declared dead."""
    await stage.fault(action="agent_dead")
    forger = CodexClient(stage.http, SigningKey.generate(), stage.codex.agent_runtime_id, now=START)
    assert code(await forger.register_task()) == "signature_invalid"
    assert await stage.fired() == [("agent_dead", 0)]


async def test_clock_offset_shifts_date_and_freshness(stage: Stage) -> None:
    """For the matching request alone the backend lives at another time, in its Date header and in its checks."""
    await stage.fault(action="clock_offset", seconds=301)
    answer = await stage.call()
    assert (code(answer), answer.headers["date"]) == ("timestamp_stale", "Sat, 21 Nov 2026 00:05:01 GMT")
    answer = await stage.call()
    assert (answer.status_code, answer.headers["date"]) == (200, "Sat, 21 Nov 2026 00:00:00 GMT")


async def test_one_fault_in_each_phase_may_fire_on_one_request(stage: Stage) -> None:
    """A shifted clock and a lost answer work together, and both are recorded."""
    await stage.fault(action="clock_offset", seconds=10)
    await stage.fault(action="drop_after")
    with pytest.raises(httpx.RemoteProtocolError):
        await stage.call()
    assert stage.last()["faults"] == ["fault-1", "fault-2"]


async def test_an_unprocessed_refresh_is_still_recognised(stage: Stage) -> None:
    """A refresh that met a fault and the one that follows are known to carry the same refresh token, unspent."""
    await stage.fault(action="status", operation="oauth")
    token = stage.emulator.backend.mint_token().refresh_token
    ask = {"client_id": "app", "grant_type": "refresh_token", "refresh_token": token}
    answers = [(await stage.http.post("/oauth/token", json=ask)).status_code for _ in range(2)]
    entries = list(stage.emulator.backend.ledger.entries(operation="oauth", kind="refresh_token"))
    assert answers == [503, 200]
    assert [entry.verdict for entry in entries] == ["unprocessed", "verified"]
    assert entries[0].credential_fingerprint == entries[1].credential_fingerprint


async def test_controls_are_never_touched_by_faults(stage: Stage) -> None:
    """A fault for everything leaves the way to remove it open."""
    await stage.fault(action="status", count=None)
    assert (await stage.call()).status_code == 503
    assert (await stage.http.delete("/_emulator/faults")).json() == {"removed": 1}
    assert (await stage.call()).status_code == 200


async def test_an_unknown_fault_cannot_be_cleared(stage: Stage) -> None:
    """Clearing a fault that is not there is an error, clearing all when there are none is not."""
    assert code(await stage.http.delete("/_emulator/faults/fault-9")) == "fault_unknown"
    assert (await stage.http.delete("/_emulator/faults")).json() == {"removed": 0}
