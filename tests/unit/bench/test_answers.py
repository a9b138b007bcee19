"""The judge of answers accepts what a backend would, and nothing that differs in one point."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from credentialbroker.v1 import credential_broker_pb2 as pb
from nacl.signing import SigningKey

from tests.bench.answers import Witness, WrongAnswerError, parse_ssh_public_key

VECTOR: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "agent_identity.json").read_text(encoding="utf-8")
)["assertions"][0]
NOW = datetime(2026, 4, 23, tzinfo=UTC)
WITNESS = Witness.of_emulator(
    {"agents": [{"agent_runtime_id": VECTOR["agent_runtime_id"], "public_key": VECTOR["ssh_public_key"]}]},
    {"tasks": [{"task_id": VECTOR["task_id"], "agent_runtime_id": VECTOR["agent_runtime_id"]}]},
)


def answer(value: str = VECTOR["header_value"], **changes: Any) -> bytes:
    """Make an answer whose header is the golden one, with changes."""
    headers = changes.pop("headers", [pb.Header(name="authorization", value=value, sensitive=True)])
    fields = {"kind": pb.CREDENTIAL_KIND_AGENT_ASSERTION, **changes}
    return pb.GetAuthorizationResponse(authorization=pb.Authorization(headers=headers, **fields)).SerializeToString()


def resealed(change: Callable[[dict[str, str]], Any]) -> str:
    """Return the golden header with its envelope changed."""
    envelope = json.loads(VECTOR["envelope_json"])
    changed = change(envelope)
    raw = json.dumps(envelope if changed is None else changed, separators=(",", ":")).encode()
    return "AgentAssertion " + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def other_signature(envelope: dict[str, str]) -> None:
    """Sign with another agent's key."""
    payload = VECTOR["assertion_payload"].encode()
    envelope["signature"] = base64.b64encode(SigningKey(b"\x01" * 32).sign(payload).signature).decode()


def test_the_golden_answer_is_accepted() -> None:
    """The header of the protocol's vectors, made by another program, passes."""
    WITNESS.check(answer(), NOW)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"\xff\xff", "not a GetAuthorizationResponse"),
        (b"", "not an assertion"),
        (answer(kind=pb.CREDENTIAL_KIND_BEARER), "not an assertion"),
        (answer(headers=[]), "not exactly one"),
        (answer("Bearer " + VECTOR["header_value"].partition(" ")[2]), "not exactly one"),
        (answer(headers=[pb.Header(name="authorization", value=VECTOR["header_value"])] * 2), "not exactly one"),
        (answer("AgentAssertion !"), "not JSON in base64url"),
        (answer("AgentAssertion " + base64.b64encode(b"{").decode()), "not JSON in base64url"),
        (answer(resealed(list)), "other fields"),
        (answer(resealed(lambda envelope: dict(reversed(envelope.items())))), "other fields"),
        (answer(resealed(lambda envelope: {**envelope, "task_id": 7})), "other fields"),
        (answer(resealed(lambda envelope: {**envelope, "task_id": "task-124"})), "does not know"),
        (answer(resealed(lambda envelope: {**envelope, "agent_runtime_id": "agent-124"})), "does not know"),
        (answer(resealed(other_signature)), "not the agent's"),
        (answer(resealed(lambda envelope: {**envelope, "signature": "AAAA"})), "not the agent's"),
        (answer(resealed(lambda envelope: {**envelope, "timestamp": "2026-04-23T00:00:01Z"})), "not the agent's"),
    ],
)
def test_an_answer_that_differs_is_refused(message: bytes, why: str) -> None:
    """Each point that a backend checks is checked, and the refusal quotes nothing of the answer."""
    with pytest.raises(WrongAnswerError, match=why) as caught:
        WITNESS.check(message, NOW)
    assert VECTOR["agent_runtime_id"] not in str(caught.value)


def test_a_task_of_another_agent_is_refused() -> None:
    """A task that the backend knows is not enough: it has to be the agent's own."""
    witness = Witness(
        {VECTOR["agent_runtime_id"]: parse_ssh_public_key(VECTOR["ssh_public_key"])}, {VECTOR["task_id"]: "other"}
    )
    with pytest.raises(WrongAnswerError, match="does not know"):
        witness.check(answer(), NOW)


@pytest.mark.parametrize("seconds", [-6, 6])
def test_an_assertion_of_another_time_is_refused(seconds: int) -> None:
    """An answer that was signed long ago, or ahead of time, came from a cache that is kept too long."""
    with pytest.raises(WrongAnswerError, match="another time"):
        WITNESS.check(answer(), NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize("line", ["ssh-rsa AAAA", "ssh-ed25519 AAAA", "ssh-ed25519", ""])
def test_only_an_ed25519_key_is_read(line: str) -> None:
    """A line of another kind of key is not taken for one."""
    with pytest.raises(ValueError, match="not an ssh-ed25519 public key"):
        parse_ssh_public_key(line)
