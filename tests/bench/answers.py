"""
Checks that what the broker answered under load would be accepted by a backend. Shares no code with what signs.

A broker that answers fast and wrong would look splendid, so a part of the answers of every measurement comes here.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from credentialbroker.v1 import credential_broker_pb2 as pb
from google.protobuf.message import DecodeError
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

OLDEST_SECONDS: Final = 5.0
"""How far an assertion's timestamp may be from now: the broker signs anew every second."""
_SCHEME: Final = "AgentAssertion "
_FIELDS: Final = ("agent_runtime_id", "signature", "task_id", "timestamp")
_SSH_PREFIX: Final = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"


class WrongAnswerError(Exception):
    """An answer that no backend would accept; the text says why and quotes nothing of it."""


def parse_ssh_public_key(line: str) -> VerifyKey:
    """
    Read the key of an `ssh-ed25519 ...` line, as backends list it.

    Raises:
        ValueError: it is not one.
    """
    kind, _, encoded = line.partition(" ")
    raw = base64.b64decode(encoded.partition(" ")[0], validate=True)
    if kind != "ssh-ed25519" or not raw.startswith(_SSH_PREFIX):
        raise ValueError("not an ssh-ed25519 public key")
    return VerifyKey(raw.removeprefix(_SSH_PREFIX))


class Witness:
    """
    Judges answers by what the backend knows.

    Args:
        agents: the key of each agent the backend registered, by `agent_runtime_id`.
        tasks: the `agent_runtime_id` of each task the backend registered, by `task_id`.
    """

    def __init__(self, agents: Mapping[str, VerifyKey], tasks: Mapping[str, str]) -> None:
        self._agents = agents
        self._tasks = tasks

    @classmethod
    def of_emulator(cls, agents: Mapping[str, Any], tasks: Mapping[str, Any]) -> "Witness":
        """Make one from what the emulator answers at `/_emulator/agents` and `/_emulator/tasks`."""
        return cls(
            {one["agent_runtime_id"]: parse_ssh_public_key(one["public_key"]) for one in agents["agents"]},
            {one["task_id"]: one["agent_runtime_id"] for one in tasks["tasks"]},
        )

    def check(self, message: bytes, now: datetime) -> None:
        """
        Check one serialized `GetAuthorizationResponse`.

        Args:
            message: the answer.
            now: when it was answered, within a second.

        Raises:
            WrongAnswerError: it would not be accepted.
        """
        try:
            authorization = pb.GetAuthorizationResponse.FromString(message).authorization
        except DecodeError:
            raise WrongAnswerError("not a GetAuthorizationResponse") from None
        if authorization.kind != pb.CREDENTIAL_KIND_AGENT_ASSERTION:
            raise WrongAnswerError("not an assertion")
        values = [header.value for header in authorization.headers if header.name == "authorization"]
        if len(values) != 1 or not values[0].startswith(_SCHEME):
            raise WrongAnswerError("not exactly one authorization header with an assertion")
        envelope = _open(values[0].removeprefix(_SCHEME))
        agent, task, timestamp = envelope["agent_runtime_id"], envelope["task_id"], envelope["timestamp"]
        if agent not in self._agents or self._tasks.get(task) != agent:
            raise WrongAnswerError("signed for an agent or a task that the backend does not know")
        try:
            signature = base64.b64decode(envelope["signature"], validate=True)
            self._agents[agent].verify(f"{agent}:{task}:{timestamp}".encode(), signature)
        except (BadSignatureError, ValueError):
            raise WrongAnswerError("the signature is not the agent's") from None
        signed = _parse_timestamp(timestamp)
        if abs((now - signed).total_seconds()) > OLDEST_SECONDS:
            raise WrongAnswerError("signed at another time")


def _open(encoded: str) -> dict[str, str]:
    try:
        envelope = json.loads(base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise WrongAnswerError("the envelope is not JSON in base64url") from None
    if (
        not isinstance(envelope, dict)
        or tuple(envelope) != _FIELDS
        or not all(isinstance(value, str) for value in envelope.values())
    ):
        raise WrongAnswerError("the envelope has other fields than the protocol's four in their order")
    return envelope


def _parse_timestamp(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise WrongAnswerError("the timestamp is not in whole seconds of UTC") from None
