"""
The broker's words as types: identities, tasks, credentials.

Pure values: no I/O, no clock, no logging. Every time is a Unix time in seconds (float, UTC, the broker's clock)
unless a name says otherwise. What the words mean stands in docs/ARCHITECTURE.md.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NewType, NoReturn

IdentityId = NewType("IdentityId", str)
"""The identity's own key in the store: 32 hex digits, never reused, unlike a name."""

IdentityName = NewType("IdentityName", str)
ThreadId = NewType("ThreadId", str)
ScopeName = NewType("ScopeName", str)

UpstreamKey = NewType("UpstreamKey", str)
"""Names one upstream task within an identity's generation; bindings that share it share the upstream task."""

FEDRAMP_HEADER: Final = "x-openai-fedramp"
ACCOUNT_HEADER: Final = "chatgpt-account-id"
AUTHORIZATION_HEADER: Final = "authorization"


class Mode(StrEnum):
    """What an identity authenticates with; set when it is created, never inferred."""

    AGENT = "AGENT"
    BEARER = "BEARER"


class Origin(StrEnum):
    """Where an identity's key came from; decides whether the broker may register it anew."""

    CREATED = "CREATED"
    IMPORTED_RECORD = "IMPORTED_RECORD"
    IMPORTED_JWT = "IMPORTED_JWT"
    BARE_KEY = "BARE_KEY"
    BEARER_ONLY = "BEARER_ONLY"


class IdentityState(StrEnum):
    """Life of an identity: REGISTERING → ACTIVE ⇄ DISABLED; the others end or suspend it."""

    REGISTERING = "REGISTERING"
    ACTIVE = "ACTIVE"
    DISABLED = "DISABLED"
    ROTATING = "ROTATING"
    REAUTH_REQUIRED = "REAUTH_REQUIRED"
    REJECTED = "REJECTED"
    DELETED = "DELETED"


class TaskKind(StrEnum):
    """What a task is for: one conversation of a caller, or all work without one."""

    THREAD = "THREAD"
    BACKGROUND = "BACKGROUND"


class TaskState(StrEnum):
    """Life of a task: CLAIMED → ACTIVE → ENDED | REVOKED | EXPIRED; ORPHANED when its answer was lost."""

    CLAIMED = "CLAIMED"
    ACTIVE = "ACTIVE"
    ENDED = "ENDED"
    REVOKED = "REVOKED"
    EXPIRED = "EXPIRED"
    ORPHANED = "ORPHANED"


class CredentialKind(StrEnum):
    """What stands in the authorization header."""

    AGENT_ASSERTION = "AGENT_ASSERTION"
    BEARER = "BEARER"


class DecisionReason(StrEnum):
    """Why an answer is of its kind; travels to the answer, the audit record and the metric."""

    TASK_ASSERTION = "TASK_ASSERTION"
    SCOPE_IS_BEARER_ONLY = "SCOPE_IS_BEARER_ONLY"
    IDENTITY_IS_BEARER = "IDENTITY_IS_BEARER"
    FEATURE_DISABLED = "FEATURE_DISABLED"
    BACKEND_UNSUPPORTED = "BACKEND_UNSUPPORTED"
    TASK_UNAVAILABLE = "TASK_UNAVAILABLE"


class Secret:
    """
    A text that must not be printed by accident.

    It hides from `repr`, `str`, `format` and pickle; only `reveal()` gives it out, so a search for that word finds
    every use.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value: Final = value

    def reveal(self) -> str:
        """Return the text itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __format__(self, format_spec: str) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        message = "a Secret is never pickled"
        raise TypeError(message)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """
    One agent identity as the broker keeps it: a row of the store.

    `generation` is the credential epoch (bumped by key or runtime change, disable, delete); `version` is bumped by
    every write and compared by every write.
    """

    id: IdentityId
    name: IdentityName
    backend: str
    mode: Mode
    origin: Origin
    state: IdentityState
    state_reason: str = ""
    """Why the state is not ACTIVE, as an error reason; empty otherwise."""
    former_state: IdentityState | None = None
    """What a DISABLED identity was before, and is again once enabled; None otherwise."""
    account_id: str | None = None
    user_id: str | None = None
    email: str | None = None
    plan_type: str | None = None
    fedramp: bool = False
    assertions_enabled: bool = True
    """The feature switch of row 6 of the decision for this identity."""
    bearer_source: str | None = None
    """Name of a configured bearer source; None when the identity has none or its own sealed bearer."""
    agent_runtime_id: str | None = None
    public_key: str | None = None
    """`ssh-ed25519 ...` text of the key, mode AGENT only."""
    sealed_private_key: bytes | None = field(default=None, repr=False)
    generation: int = 1
    version: int = 1
    create_time: float
    update_time: float
    expire_time: float | None = None
    """When the login the identity came from ends (an imported JWT's `exp`); None when it has no end."""

    @property
    def can_register(self) -> bool:
        """Whether the broker may register a new agent: only for keys it made itself or took over with their login."""
        return self.origin in (Origin.CREATED, Origin.IMPORTED_RECORD) and self.mode is Mode.AGENT


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamTask:
    """
    What the backend registered, or is being asked to register, under one key of one generation.

    A claim is in flight while `lease_expire_time` is set; only the holder of the current `fencing_token` completes it.
    A leased one that is ACTIVE is being replaced and goes on being used until its successor is there.
    """

    identity_id: IdentityId
    generation: int
    key: UpstreamKey
    state: TaskState
    version: int
    fencing_token: int
    lease_expire_time: float | None = None
    sealed_task_id: bytes | None = field(default=None, repr=False)
    create_time: float
    update_time: float
    expire_time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """
    The broker's binding of (identity, thread) or (identity, background) to an upstream task.

    `upstream` is None only when the binding exists and its upstream task has not been claimed in the identity's
    current generation.
    """

    id: str
    identity_id: IdentityId
    kind: TaskKind
    thread_id: ThreadId | None
    """None for the background task."""
    state: TaskState
    """The binding's own state: ACTIVE, ENDED or REVOKED."""
    upstream_key: UpstreamKey
    version: int
    create_time: float
    update_time: float
    purge_time: float | None = None
    """When the tombstone of an ended or revoked binding goes; None while it lives."""
    last_use_time: float
    """About when it was last signed for, to a fraction of the time after which unused bindings are pruned."""
    upstream: UpstreamTask | None = None

    @property
    def effective_state(self) -> TaskState:
        """The state a person is shown: the binding's when it has ended, else its upstream task's."""
        if self.state is not TaskState.ACTIVE:
            return self.state
        return self.upstream.state if self.upstream else TaskState.CLAIMED


class RefreshState(StrEnum):
    """
    Where the refresh token of a stored bearer stands.

    IDLE → IN_FLIGHT → IDLE with the next pair; IN_FLIGHT whose answer never came → PROBING → IDLE or DEAD.
    """

    IDLE = "IDLE"
    """Not under way: there is a refresh token to send, or none at all."""
    IN_FLIGHT = "IN_FLIGHT"
    """Being sent for the first time, or was sent and nobody knows whether it was processed."""
    PROBING = "PROBING"
    """Being sent once more after the lease of the first sending, to learn which; never a third time."""
    DEAD = "DEAD"
    """Spent or refused: only a new login helps. An access token that still lives goes on being used."""


LONGEST_REFRESH_PAUSE_SECONDS: Final = 60.0
"""How far ahead a `retry_time` is written at most, whatever the issuer asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBearer:
    """
    A bearer of an identity's own, kept sealed: a static token, or the tokens of a login that are refreshed.

    `pair` counts what was obtained and is what the sealed bytes are sealed to; `version` is bumped by every write.
    A refresh is claimed as a task is: only the holder of the current `fencing_token` completes it.
    """

    identity_id: IdentityId
    version: int = 1
    pair: int = 1
    sealed: bytes | None = field(default=None, repr=False)
    """The access token; None while there is none yet."""
    expire_time: float | None = None
    obtain_time: float | None = None
    source: str | None = None
    """Name of the configured source of type `oauth` that refreshes it; None for a token that is never refreshed."""
    sealed_refresh_token: bytes | None = field(default=None, repr=False)
    refresh_state: RefreshState = RefreshState.IDLE
    fencing_token: int = 1
    lease_expire_time: float | None = None
    retry_time: float | None = None
    """Before this no other try is made: the issuer said so, or refused before it processed the last one."""
    reason: str = ""
    """Why `refresh_state` is DEAD, as a word for operators (`refresh_token_reused`); empty otherwise."""

    def pause(self, now: float) -> float:
        """
        Return for how many seconds no other try is made, 0 when it may be made now.

        A `retry_time` further ahead than any that is written comes from a clock that was set back since, and is no bar.
        """
        left = 0.0 if self.retry_time is None else self.retry_time - now
        return left if 0 < left < LONGEST_REFRESH_PAUSE_SECONDS + 1 else 0.0  # a second for clocks that are adjusted


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingAgent:
    """
    An agent on its way to being registered: of a new identity, or the next one of an identity that changes its key.

    The key is here before the backend hears of it, so that no key the backend knows can be lost; retries, also by
    another process, send the same key. Only the holder of the current `fencing_token` of a lease goes on with it.
    """

    identity_id: IdentityId
    generation: int
    """The generation that the agent is for: the identity's own while that is REGISTERING, else the next."""
    sealed_private_key: bytes | None = field(default=None, repr=False)
    """The new key, sealed to `generation`; None for a new identity, whose row has it."""
    public_key: str | None = None
    agent_runtime_id: str | None = None
    """What the backend answered; None until it did."""
    fencing_token: int
    lease_expire_time: float | None = None
    version: int
    create_time: float
    update_time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLadder:
    """What was tried because an identity's credentials were rejected: a document of `broker.ladder`, shared by all."""

    identity_id: IdentityId
    version: int = 0
    """0 before it is first written."""
    document: str = ""


@dataclass(frozen=True, slots=True)
class Header:
    """One header to attach; it replaces any header of that name."""

    name: str
    value: str = field(repr=False)
    sensitive: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Authorization:
    """
    The full set of headers a caller attaches, with its times and the reason why it is of this kind.

    All times are in the broker's clock; `server_time` is added by the edge, at the moment of answering. Two of them
    are equal only when they are the same object.
    """

    headers: tuple[Header, ...]
    kind: CredentialKind
    reason: DecisionReason
    fallback_from: CredentialKind | None
    mint_time: float
    refresh_time: float
    expire_time: float
    stale: bool
    offline_serving_until_time: float
    revision: str
    identity: IdentityName
    connection_tag: str


@dataclass(frozen=True, slots=True)
class Caller:
    """The proven name of who calls, and how it was proven."""

    principal: str
    method: str
    default_identity: IdentityName | None = None
