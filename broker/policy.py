"""
The decision: which kind of credential a call gets, and why.

Pure and total. The table of docs/ARCHITECTURE.md ("The decision") stands here as data, `ROWS`, in its order: the first
row whose situation holds says what happens, by the scope's column. Nothing here waits, signs or asks; `decide` says
what is needed (`NeedTask`, `NeedBearer`) and is asked again when it is there or could not be had.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from broker import errors
from broker.errors import BrokerError
from broker.model import CredentialKind, DecisionReason, IdentityState, Mode, TaskKind
from broker.scopes import Credential, ScopeRule, TaskNeed


class TaskFact(Enum):
    """What is known of the task the scope would be signed for."""

    LIVE = auto()
    ABSENT = auto()
    ENDED = auto()
    COOLING_DOWN = auto()
    """Registration failed transiently, is not done in time, or the identity itself is still being registered."""
    REFUSED = auto()
    """The backend refused the registration for good (any 4xx but 429)."""
    PROTOCOL_BROKEN = auto()
    """The backend answered a registration with something that is not its protocol."""


class BearerFact(Enum):
    """What is known of the identity's bearer."""

    LIVE = auto()
    OBTAINABLE = auto()
    """There is a source, and nothing says that it would fail."""
    NONE = auto()
    """The identity has no source of bearers at all: an identity-only login."""
    ISSUER_DOWN = auto()
    """It cannot be had now: the issuer is away, or the store without which it is not asked."""
    REAUTH_REQUIRED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that a decision depends on, beside the scope's rule."""

    identity_state: IdentityState
    login_expired: bool
    mode: Mode
    target_allowed: bool
    """True too when no target was named."""
    assertions_enabled: bool
    route_takes_assertions: bool
    task: TaskFact
    bearer: BearerFact
    task_trouble: type[BrokerError] = errors.RegistrationInProgressError
    """Why the task is COOLING_DOWN: the outcome that a call gets which cannot do without it."""
    bearer_trouble: type[BrokerError] = errors.IssuerDownError
    """The same of a bearer that is ISSUER_DOWN."""
    retry_after: float | None = None
    """Seconds until what failed may be tried again."""


@dataclass(frozen=True, slots=True)
class UseAssertion:
    """Sign for the live task."""

    why: DecisionReason


@dataclass(frozen=True, slots=True)
class UseBearer:
    """Hand out the live bearer."""

    why: DecisionReason
    fallback_from: CredentialKind | None


@dataclass(frozen=True, slots=True)
class NeedTask:
    """Register a task first, then decide again."""

    kind: TaskKind


@dataclass(frozen=True, slots=True)
class NeedBearer:
    """Obtain a bearer first, then decide again."""

    why: DecisionReason
    fallback_from: CredentialKind | None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with this outcome and no header."""

    outcome: type[BrokerError]
    retry_after: float | None = None


Decision = UseAssertion | UseBearer | NeedTask | NeedBearer | Refuse


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: its number, its situation in words, what was found, a test, and what follows from it."""

    number: int
    situation: str
    found: Callable[[ScopeRule, Situation], str]
    holds: Callable[[ScopeRule, Situation], bool]
    decide: Callable[[ScopeRule, Situation], Decision]


@dataclass(frozen=True, slots=True)
class Step:
    """One row as it was looked at: the account of a decision is the list of these."""

    number: int
    situation: str
    held: bool
    detail: str


def _bearer(situation: Situation, why: DecisionReason, fallback_from: CredentialKind | None) -> Decision:
    match situation.bearer:
        case BearerFact.LIVE:
            return UseBearer(why, fallback_from)
        case BearerFact.OBTAINABLE:
            return NeedBearer(why, fallback_from)
        case BearerFact.NONE:
            return Refuse(errors.BearerUnavailableError)
        case BearerFact.ISSUER_DOWN:
            return Refuse(situation.bearer_trouble, situation.retry_after)
        case BearerFact.REAUTH_REQUIRED:
            return Refuse(errors.ReauthRequiredError)


def _downgrade(rule: ScopeRule, situation: Situation, why: DecisionReason, refusal: Refuse) -> Decision:
    """The two assertion columns where no assertion can be had: refuse if it is required, else a bearer that says so."""
    if rule.credential is Credential.ASSERTION_PREFERRED:
        return _bearer(situation, why, CredentialKind.AGENT_ASSERTION)
    return refusal


def _identity_out(situation: Situation) -> Decision:
    if situation.identity_state in (IdentityState.DISABLED, IdentityState.DELETED):
        return Refuse(errors.IdentityRevokedError)
    if situation.identity_state is IdentityState.REJECTED:
        return Refuse(errors.IdentityRejectedError)
    return Refuse(errors.ReauthRequiredError)


_OUT: Final = frozenset({IdentityState.DISABLED, IdentityState.DELETED, IdentityState.REJECTED})


def _is_out(situation: Situation) -> bool:
    """Say whether an identity serves nobody; one whose login is dead serves the bearer of it that still lives."""
    if situation.identity_state is IdentityState.REAUTH_REQUIRED:
        return situation.mode is Mode.AGENT or situation.bearer is not BearerFact.LIVE
    return situation.identity_state in _OUT


ROWS: Final[tuple[Row, ...]] = (
    Row(
        1,
        "the identity is disabled, deleted, rejected, or its login has ended and no bearer of it lives on",
        lambda rule, s: f"the identity is {s.identity_state}{', its login has ended' if s.login_expired else ''}",
        lambda rule, s: _is_out(s) or s.login_expired,
        lambda rule, s: _identity_out(s),
    ),
    Row(
        2,
        "target_url is not of an origin of the identity's backend",
        lambda rule, s: "the target is one of the backend's" if s.target_allowed else "the target is another origin",
        lambda rule, s: not s.target_allowed,
        lambda rule, s: Refuse(errors.TargetNotAllowedError),
    ),
    Row(
        3,
        "the scope is switched off",
        lambda rule, s: "the scope is on" if rule.enabled else "the scope is off",
        lambda rule, s: not rule.enabled,
        lambda rule, s: Refuse(errors.ScopeDisabledError),
    ),
    Row(
        4,
        "the scope is for bearers only",
        lambda rule, s: f"the scope is {rule.credential}",
        lambda rule, s: rule.credential is Credential.BEARER_ONLY,
        lambda rule, s: _bearer(s, DecisionReason.SCOPE_IS_BEARER_ONLY, None),
    ),
    Row(
        5,
        "the identity is of mode BEARER, so nothing is downgraded",
        lambda rule, s: f"the identity's mode is {s.mode}",
        lambda rule, s: s.mode is Mode.BEARER,
        lambda rule, s: _bearer(s, DecisionReason.IDENTITY_IS_BEARER, None),
    ),
    Row(
        6,
        "assertions are switched off for the backend or the identity",
        lambda rule, s: f"assertions are {'on' if s.assertions_enabled else 'off'}",
        lambda rule, s: not s.assertions_enabled,
        lambda rule, s: _downgrade(rule, s, DecisionReason.FEATURE_DISABLED, Refuse(errors.FeatureDisabledError)),
    ),
    Row(
        7,
        "the backend takes no assertions, or none for this scope",
        lambda rule, s: f"the backend {'takes' if s.route_takes_assertions else 'refuses'} assertions for {rule.name}",
        lambda rule, s: not s.route_takes_assertions,
        lambda rule, s: _downgrade(rule, s, DecisionReason.BACKEND_UNSUPPORTED, Refuse(errors.BackendUnsupportedError)),
    ),
    Row(
        8,
        "the task was ended or revoked",
        lambda rule, s: f"the {rule.task} task is {s.task.name}",
        lambda rule, s: s.task is TaskFact.ENDED,
        lambda rule, s: Refuse(errors.TaskEndedError),
    ),
    Row(
        9,
        "the task lives",
        lambda rule, s: f"the {rule.task} task is {s.task.name}",
        lambda rule, s: s.task is TaskFact.LIVE,
        lambda rule, s: UseAssertion(DecisionReason.TASK_ASSERTION),
    ),
    Row(
        10,
        "its registration is cooling down after a failure, or was not done in time",
        lambda rule, s: f"the {rule.task} task is {s.task.name}",
        lambda rule, s: s.task is TaskFact.COOLING_DOWN,
        lambda rule, s: _downgrade(rule, s, DecisionReason.TASK_UNAVAILABLE, Refuse(s.task_trouble, s.retry_after)),
    ),
    Row(
        11,
        "there is no task yet",
        lambda rule, s: f"the {rule.task} task is {s.task.name}",
        lambda rule, s: s.task is TaskFact.ABSENT,
        lambda rule, s: NeedTask(TaskKind.THREAD if rule.task is TaskNeed.THREAD else TaskKind.BACKGROUND),
    ),
    Row(
        12,
        "the backend refused its registration for good",
        lambda rule, s: f"the {rule.task} task is {s.task.name}",
        lambda rule, s: s.task is TaskFact.REFUSED,
        lambda rule, s: Refuse(errors.IdentityRejectedError),
    ),
    Row(
        13,
        "the backend answered its registration with something that is not its protocol",
        lambda rule, s: f"the {rule.task} task is {s.task.name}",
        lambda rule, s: True,  # the last row: `task` has no other value
        lambda rule, s: Refuse(errors.BackendProtocolError, s.retry_after),
    ),
)


def decide(rule: ScopeRule, situation: Situation) -> Decision:
    """Say what a call under `rule` gets in `situation`. Never raises: every combination has an answer."""
    for row in ROWS:
        if row.holds(rule, situation):
            return row.decide(rule, situation)
    message = "the last row holds always"
    raise AssertionError(message)


def account(rule: ScopeRule, situation: Situation) -> tuple[Step, ...]:
    """Return the rows that were looked at, in order; the last one held and made the decision."""
    steps = []
    for row in ROWS:
        held = row.holds(rule, situation)
        steps.append(Step(row.number, row.situation, held, row.found(rule, situation)))
        if held:
            break
    return tuple(steps)
