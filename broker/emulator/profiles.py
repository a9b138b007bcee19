"""What each backend profile demands of a request, as data.

The bytes of an assertion never changed in openai/codex; what surrounds them did, several times. One row here is
one generation of the protocol as a backend of that time would enforce it. The rows are written down from the
protocol, not shared with the broker: a mistake in the broker's own table must not be able to hide here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Base(enum.StrEnum):
    """The path prefix a call was made under; the value is that prefix."""

    AUTHAPI = "/api/accounts"
    CHATGPT = "/backend-api"


class AgentAuth(enum.StrEnum):
    """What proves the account behind an agent registration."""

    BEARER = "bearer"
    BISCUIT = "biscuit"
    NOT_OFFERED = "not_offered"


class TaskAnswer(enum.StrEnum):
    """The field a task registration answers with; the value is the field's name.

    The two plain fields carry the task id itself, the other two a libsodium sealed box of it
    (codex-rs/agent-identity/src/lib.rs, `registered_task_id`).
    """

    TASK_ID = "task_id"
    TASK_ID_CAMEL = "taskId"
    ENCRYPTED_TASK_ID = "encrypted_task_id"
    ENCRYPTED_TASK_ID_CAMEL = "encryptedTaskId"

    @property
    def sealed(self) -> bool:
        """Whether the field's value is sealed to the agent's key."""
        return self in (TaskAnswer.ENCRYPTED_TASK_ID, TaskAnswer.ENCRYPTED_TASK_ID_CAMEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One generation of the protocol.

    Attributes:
        name: The name a configuration uses for it.
        bases: Where `/v1/agent/...` is served; under any other base the path does not exist.
        agent_auth: What agent registration must carry.
        capabilities: The exact `capabilities` of an agent registration.
        agent_ttl: Whether agent registration must send `ttl` (as null).
        task_biscuit: Whether task registration must carry a biscuit beside its signature.
        external_task_ref: Whether task registration may name the caller's own reference.
        account_header: Whether a call made with an assertion must name its account. Generation A left the header
            out on thread calls, so there it is only checked when present.
    """

    name: str
    bases: frozenset[Base]
    agent_auth: AgentAuth
    capabilities: tuple[str, ...] = ()
    agent_ttl: bool = False
    task_biscuit: bool = False
    external_task_ref: bool = False
    account_header: bool = True

    @property
    def biscuits(self) -> bool:
        """Whether this generation has biscuits at all."""
        return self.agent_auth is AgentAuth.BISCUIT


DEFAULT_PROFILE = "codex-2026-08"

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        # Generation A: codex-rs/login/src/agent_identity.rs at 19e2f218271a0795ef490909e978d8ff62bbb3de.
        Profile(
            name="codex-2026-04",
            bases=frozenset({Base.CHATGPT}),
            agent_auth=AgentAuth.BISCUIT,
            task_biscuit=True,
            account_header=False,
        ),
        # Generation B: the JWT already holds the key, so there is no agent registration. Task registration moved
        # from the ChatGPT base to the AuthAPI in 0e8d6b87653aa37958cdc3e24d0681341b2f61d9; both are served.
        Profile(
            name="codex-2026-04-provider",
            bases=frozenset({Base.CHATGPT, Base.AUTHAPI}),
            agent_auth=AgentAuth.NOT_OFFERED,
        ),
        # Generation C: codex-rs/agent-identity/src/lib.rs at baf261819690144aa0feebbe9481a11ee3050428.
        Profile(
            name="codex-2026-05",
            bases=frozenset({Base.CHATGPT}),
            agent_auth=AgentAuth.BISCUIT,
            external_task_ref=True,
        ),
        # Generation D: codex-rs/agent-identity/src/lib.rs at 343074d4207d572809bd8cea15f4be1d09d98e0b.
        Profile(
            name=DEFAULT_PROFILE,
            bases=frozenset({Base.AUTHAPI}),
            agent_auth=AgentAuth.BEARER,
            capabilities=("responsesapi",),
            agent_ttl=True,
        ),
    )
}
