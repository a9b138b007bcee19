"""The decision, held to its table: every row by every column by every failure, against a reference written apart."""

import itertools
from collections.abc import Iterator

import pytest

from broker import errors
from broker.errors import BrokerError
from broker.model import CredentialKind, DecisionReason, IdentityState, Mode, ScopeName, TaskKind
from broker.policy import (
    ROWS,
    BearerFact,
    Decision,
    NeedBearer,
    NeedTask,
    Refuse,
    Situation,
    TaskFact,
    UseAssertion,
    UseBearer,
    account,
    decide,
)
from broker.scopes import Credential, ScopeRule, TaskNeed

RETRY_AFTER = 7.0
TROUBLES: tuple[type[BrokerError], ...] = (
    errors.RegistrationInProgressError,
    errors.BackendDownError,
    errors.BackendThrottledError,
    errors.StoreDownError,
    errors.IssuerDownError,
)

RULES = [
    ScopeRule(name=ScopeName("a.scope"), credential=credential, task=task, enabled=enabled)
    for credential, task in (
        (Credential.BEARER_ONLY, TaskNeed.NONE),
        (Credential.ASSERTION_PREFERRED, TaskNeed.BACKGROUND),
        (Credential.ASSERTION_PREFERRED, TaskNeed.THREAD),
        (Credential.ASSERTION_REQUIRED, TaskNeed.BACKGROUND),
        (Credential.ASSERTION_REQUIRED, TaskNeed.THREAD),
    )
    for enabled in (True, False)
]


def all_situations() -> Iterator[Situation]:
    """Enumerate every combination of facts; the kinds of trouble only where a registration is cooling down."""
    switches = (False, True)
    for state, ended, mode, target, on, route, task, bearer in itertools.product(
        IdentityState, switches, Mode, switches, switches, switches, TaskFact, BearerFact
    ):
        for trouble in TROUBLES if task is TaskFact.COOLING_DOWN else TROUBLES[:1]:
            yield Situation(
                identity_state=state,
                login_expired=ended,
                mode=mode,
                target_allowed=target,
                assertions_enabled=on,
                route_takes_assertions=route,
                task=task,
                bearer=bearer,
                task_trouble=trouble,
                bearer_trouble=errors.StoreDownError if trouble is errors.StoreDownError else errors.IssuerDownError,
                retry_after=RETRY_AFTER,
            )


def reference(rule: ScopeRule, s: Situation) -> tuple[int, object]:  # noqa: PLR0911 - one return a row, as in the table
    """
    Say which row of the table holds and what it gives, in words of its own.

    A refusal is the reason it carries; a bearer is (reason, fallback_from); an assertion is "assertion"; a task that
    is needed is its kind.
    """
    required = rule.credential is Credential.ASSERTION_REQUIRED
    dead = {"DISABLED": "IDENTITY_REVOKED", "DELETED": "IDENTITY_REVOKED", "REJECTED": "IDENTITY_REJECTED"}
    if s.identity_state.value in dead:
        return 1, dead[s.identity_state.value]
    lives_on = s.mode.value == "BEARER" and s.bearer.name == "LIVE"
    if s.login_expired or (s.identity_state.value == "REAUTH_REQUIRED" and not lives_on):
        return 1, "REAUTH_REQUIRED"
    if not s.target_allowed:
        return 2, "TARGET_NOT_ALLOWED"
    if not rule.enabled:
        return 3, "SCOPE_DISABLED"
    if rule.credential is Credential.BEARER_ONLY:
        return 4, reference_bearer(s, "SCOPE_IS_BEARER_ONLY", "")
    if s.mode.value == "BEARER":
        return 5, reference_bearer(s, "IDENTITY_IS_BEARER", "")
    for number, missing, reason in (
        (6, not s.assertions_enabled, "FEATURE_DISABLED"),
        (7, not s.route_takes_assertions, "BACKEND_UNSUPPORTED"),
    ):
        if missing:
            return number, reason if required else reference_bearer(s, reason, "AGENT_ASSERTION")
    match s.task.name:
        case "ENDED":
            return 8, "TASK_ENDED"
        case "LIVE":
            return 9, "assertion"
        case "COOLING_DOWN":
            trouble = s.task_trouble.reason
            return 10, trouble if required else reference_bearer(s, "TASK_UNAVAILABLE", "AGENT_ASSERTION")
        case "ABSENT":
            return 11, TaskKind.THREAD if rule.task is TaskNeed.THREAD else TaskKind.BACKGROUND
        case "REFUSED":
            return 12, "IDENTITY_REJECTED"
        case _:
            return 13, "BACKEND_PROTOCOL"


def reference_bearer(s: Situation, reason: str, fallback_from: str) -> object:
    """Say what a call gets that is to have a bearer: a dead one never, an identity without a source is not asked."""
    return {
        "LIVE": ("use", reason, fallback_from),
        "OBTAINABLE": ("obtain", reason, fallback_from),
        "NONE": "BEARER_UNAVAILABLE",
        "ISSUER_DOWN": s.bearer_trouble.reason,
        "REAUTH_REQUIRED": "REAUTH_REQUIRED",
    }[s.bearer.name]


def shown(decision: Decision) -> object:
    """Put a decision into the words of the reference."""
    match decision:
        case UseAssertion(why):
            assert why is DecisionReason.TASK_ASSERTION
            return "assertion"
        case UseBearer(why, fallback_from):
            return ("use", why.value, fallback_from.value if fallback_from else "")
        case NeedBearer(why, fallback_from):
            return ("obtain", why.value, fallback_from.value if fallback_from else "")
        case NeedTask(kind):
            return kind
        case Refuse(outcome):
            return outcome.reason


def test_every_row_by_every_column_by_every_failure() -> None:
    """Each of all combinations decides as the table says, by the row it says, and none raises."""
    rows_seen: set[tuple[int, Credential]] = set()
    for situation in all_situations():
        for rule in RULES:
            number, expected = reference(rule, situation)
            found = shown(decide(rule, situation))
            assert found == expected, (rule, situation)
            rows_seen.add((number, rule.credential))
    every_column = {(number, column) for number in (1, 2, 3) for column in Credential}
    assertions = {(number, column) for number in range(5, 14) for column in Credential if column != "bearer_only"}
    assert rows_seen == every_column | {(4, Credential.BEARER_ONLY)} | assertions


def test_the_account_ends_with_the_row_that_decided() -> None:
    """The account lists the rows from the first on, none held but the last, and that one is the reference's."""
    for situation in itertools.islice(all_situations(), 0, None, 7):
        for rule in RULES:
            steps = account(rule, situation)
            assert [step.number for step in steps] == list(range(1, len(steps) + 1))
            assert [step.held for step in steps] == [False] * (len(steps) - 1) + [True]
            assert steps[-1].number == reference(rule, situation)[0]
            assert all(step.situation and step.detail for step in steps)


def test_an_agent_under_assertion_required_never_gets_a_bearer() -> None:
    """No situation whatever gives an AGENT identity a bearer, or asks for one, where an assertion is required."""
    required = [rule for rule in RULES if rule.credential is Credential.ASSERTION_REQUIRED]
    for situation in all_situations():
        if situation.mode is Mode.AGENT:
            for rule in required:
                assert not isinstance(decide(rule, situation), UseBearer | NeedBearer), (rule, situation)


def test_a_hard_or_garbled_registration_is_never_hidden_behind_a_bearer() -> None:
    """Where rows 12 and 13 decide, no column gives a bearer."""
    for situation in all_situations():
        if situation.task in (TaskFact.REFUSED, TaskFact.PROTOCOL_BROKEN):
            for rule in RULES:
                if reference(rule, situation)[0] in (12, 13):
                    assert isinstance(decide(rule, situation), Refuse)


def test_an_identity_only_login_is_never_asked_for_a_bearer() -> None:
    """Without a source of bearers nothing is obtained; what would need one is BEARER_UNAVAILABLE."""
    for situation in all_situations():
        if situation.bearer is BearerFact.NONE:
            for rule in RULES:
                decision = decide(rule, situation)
                assert not isinstance(decision, UseBearer | NeedBearer)
                if isinstance(reference(rule, situation)[1], tuple):
                    assert decision == Refuse(errors.BearerUnavailableError)


def test_only_a_live_bearer_is_handed_out() -> None:
    """A bearer that is not known to live is never used as it is."""
    for situation in all_situations():
        if situation.bearer is not BearerFact.LIVE:
            assert not any(isinstance(decide(rule, situation), UseBearer) for rule in RULES)


def test_a_downgrade_always_says_from_what() -> None:
    """A bearer under an assertion column names the assertion it stands for, unless the identity is of mode BEARER."""
    for situation in all_situations():
        for rule in RULES:
            decision = decide(rule, situation)
            if isinstance(decision, UseBearer | NeedBearer):
                downgraded = rule.credential is not Credential.BEARER_ONLY and situation.mode is Mode.AGENT
                assert (decision.fallback_from is CredentialKind.AGENT_ASSERTION) is downgraded


@pytest.mark.parametrize("credential", [Credential.ASSERTION_PREFERRED, Credential.ASSERTION_REQUIRED])
@pytest.mark.parametrize("task", [TaskFact.COOLING_DOWN, TaskFact.PROTOCOL_BROKEN])
def test_a_refusal_that_will_pass_says_when(credential: Credential, task: TaskFact) -> None:
    """What is refused for a while carries the time after which asking again makes sense."""
    rule = ScopeRule(name=ScopeName("a.scope"), credential=credential, task=TaskNeed.THREAD)
    situation = Situation(
        identity_state=IdentityState.ACTIVE,
        login_expired=False,
        mode=Mode.AGENT,
        target_allowed=True,
        assertions_enabled=True,
        route_takes_assertions=True,
        task=task,
        bearer=BearerFact.ISSUER_DOWN,
        retry_after=RETRY_AFTER,
    )
    decision = decide(rule, situation)
    assert isinstance(decision, Refuse)
    assert decision.retry_after == RETRY_AFTER


def test_the_rows_are_numbered_in_their_order() -> None:
    """The table's rows stand in the order of their numbers, so that the first match is the lowest number."""
    assert [row.number for row in ROWS] == list(range(1, 14))
