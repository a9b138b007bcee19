"""A client of the backend written by hand from the protocol: signs with PyNaCl, knows nothing of the broker."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from nacl.public import SealedBox
from nacl.signing import SigningKey


def b64(raw: bytes) -> str:
    """Encode as padded standard base64."""
    return base64.b64encode(raw).decode()


def b64url(raw: bytes) -> str:
    """Encode as base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def stamp(at: float) -> str:
    """Write Unix seconds as the protocol's timestamp."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def envelope(key: SigningKey, agent_runtime_id: str, task_id: str, timestamp: str) -> dict[str, str]:
    """Build and sign the four fields of an assertion."""
    payload = f"{agent_runtime_id}:{task_id}:{timestamp}".encode()
    return {
        "agent_runtime_id": agent_runtime_id,
        "signature": b64(key.sign(payload).signature),
        "task_id": task_id,
        "timestamp": timestamp,
    }


def compact(values: dict[str, str]) -> bytes:
    """Encode an envelope as the protocol does."""
    return json.dumps(values, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()


def ssh_public_key(key: SigningKey) -> str:
    """Write the public half as OpenSSH does, without a comment."""
    head = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"
    return "ssh-ed25519 " + b64(head + bytes(key.verify_key))


def agent_body(key: SigningKey, *, generation: str = "D") -> dict[str, Any]:
    """Build the body of an agent registration for generation A, C or D."""
    body: dict[str, Any] = {
        "abom": {"agent_version": "0.1.0", "agent_harness_id": "codex-cli", "running_location": "cli-linux"},
        "agent_public_key": ssh_public_key(key),
        "capabilities": ["responsesapi"] if generation == "D" else [],
    }
    return {**body, "ttl": None} if generation == "D" else body


def task_body(key: SigningKey, agent_runtime_id: str, timestamp: str, ref: str | None = None) -> dict[str, str]:
    """Build the signed body of a task registration."""
    signature = b64(key.sign(f"{agent_runtime_id}:{timestamp}".encode()).signature)
    body = {"signature": signature, "timestamp": timestamp}
    return body if ref is None else {**body, "external_task_ref": ref}


def open_sealed(key: SigningKey, sealed: str) -> str:
    """Open a sealed task id."""
    return SealedBox(key.to_curve25519_private_key()).decrypt(base64.b64decode(sealed)).decode()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something happened on the other side of a socket in the same process."""
    while not condition():
        await asyncio.sleep(0)


@dataclass
class CodexClient:
    """One agent with its key, as generation D of Codex would act."""

    http: httpx.AsyncClient
    key: SigningKey
    agent_runtime_id: str
    account_id: str = "account-emulator"
    now: float = 0.0

    async def register_task(self, base: str = "/api/accounts") -> httpx.Response:
        """Register a task and return the raw answer."""
        path = f"{base}/v1/agent/{self.agent_runtime_id}/task/register"
        return await self.http.post(path, json=task_body(self.key, self.agent_runtime_id, stamp(self.now)))

    async def new_task(self) -> str:
        """Register a task and open its id."""
        answer = await self.register_task()
        assert answer.status_code == 200, answer.text
        return open_sealed(self.key, answer.json()["encrypted_task_id"])

    def headers(self, task_id: str, **changes: str | None) -> dict[str, str]:
        """Sign the header set of one call; a keyword replaces a header (`_` for `-`), None leaves it out."""
        signed = envelope(self.key, self.agent_runtime_id, task_id, stamp(self.now))
        headers: dict[str, str | None] = {
            "authorization": f"AgentAssertion {b64url(compact(signed))}",
            "chatgpt-account-id": self.account_id,
            **{name.replace("_", "-"): value for name, value in changes.items()},
        }
        return {name: value for name, value in headers.items() if value is not None}
