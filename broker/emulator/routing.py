"""Which operation of the backend a path means."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from broker.emulator.profiles import Base

RESPONSES_SUFFIX = "/codex/responses"


class Operation(enum.StrEnum):
    """What a request asks for, whatever profile is in force."""

    AGENT_REGISTER = "agent_register"
    TASK_REGISTER = "task_register"
    BISCUIT = "biscuit"
    JWKS = "jwks"
    OAUTH = "oauth"
    OAUTH_REVOKE = "oauth_revoke"
    RESOURCE = "resource"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Route:
    """A path, understood.

    Attributes:
        operation: What it asks for.
        base: The prefix it was made under, for agent and task calls.
        agent_runtime_id: The agent named in the path of a task registration, as sent.
    """

    operation: Operation
    base: Base | None = None
    agent_runtime_id: str | None = None


_AGENT = re.compile(r"(?P<base>/api/accounts|/backend-api)/v1/agent/register")
_TASK = re.compile(r"(?P<base>/api/accounts|/backend-api)/v1/agent/(?P<agent>[^/]+)/task/register")
_FIXED = {
    f"{Base.CHATGPT}/authenticate_app_v2": Route(Operation.BISCUIT, Base.CHATGPT),
    f"{Base.CHATGPT}/wham/agent-identities/jwks": Route(Operation.JWKS),
    "/oauth/token": Route(Operation.OAUTH),
    "/oauth/revoke": Route(Operation.OAUTH_REVOKE),
}


def route(path: str) -> Route:
    """Understand a raw path: percent signs are not decoded, since clients put ids into paths as they are."""
    if fixed := _FIXED.get(path):
        return fixed
    if found := _AGENT.fullmatch(path):
        return Route(Operation.AGENT_REGISTER, Base(found["base"]))
    if found := _TASK.fullmatch(path):
        return Route(Operation.TASK_REGISTER, Base(found["base"]), found["agent"])
    if path.startswith(f"{Base.CHATGPT}/"):
        return Route(Operation.RESOURCE)
    return Route(Operation.UNKNOWN)
