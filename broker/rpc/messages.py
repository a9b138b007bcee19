"""Between the broker's words and the messages of the API: nothing is decided here."""

import math
from typing import Final

from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import error_reason_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from broker.authorization import Explanation
from broker.errors import BrokerError
from broker.model import (
    Authorization,
    CredentialKind,
    DecisionReason,
    Identity,
    IdentityState,
    Mode,
    Origin,
    Task,
    TaskKind,
    TaskState,
)
from broker.policy import Decision, NeedBearer, NeedTask, Refuse, UseAssertion, UseBearer
from broker.rpc.status import CODES
from broker.scopes import Credential, ScopeRule, TaskNeed
from broker.status import BearerState, IdentityStatus

_NANOS: Final = 1_000_000_000

KINDS: Final = {kind: pb2.CredentialKind.Value(f"CREDENTIAL_KIND_{kind}") for kind in CredentialKind}
REASONS: Final = {reason: pb2.DecisionReason.Value(f"DECISION_REASON_{reason}") for reason in DecisionReason}
TASK_KINDS: Final = {kind: pb2.TaskKind.Value(f"TASK_KIND_{kind}") for kind in TaskKind}
TASK_STATES: Final = {state: pb2.TaskState.Value(f"TASK_STATE_{state}") for state in TaskState}
MODES: Final = {mode: admin_pb2.IdentityMode.Value(f"IDENTITY_MODE_{mode}") for mode in Mode}
STATES: Final = {state: admin_pb2.IdentityState.Value(f"IDENTITY_STATE_{state}") for state in IdentityState}
BEARER_STATES: Final = {state: admin_pb2.BearerState.Value(f"BEARER_STATE_{state}") for state in BearerState}
ORIGINS: Final = {origin: admin_pb2.IdentityOrigin.Value(f"IDENTITY_ORIGIN_{origin}") for origin in Origin}
CREDENTIALS: Final = {
    need: pb2.CredentialRequirement.Value(f"CREDENTIAL_REQUIREMENT_{need.name}") for need in Credential
}
TASK_NEEDS: Final = {need: pb2.TaskRequirement.Value(f"TASK_REQUIREMENT_{need.name}") for need in TaskNeed}


def error_reason(word: str) -> error_reason_pb2.ErrorReason.ValueType:
    """Return the enum value of a bare reason word; unspecified for an empty one."""
    return error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{word}" if word else "ERROR_REASON_UNSPECIFIED")


def timestamp(seconds: float | None) -> Timestamp | None:
    """Convert Unix seconds; None leaves the field unset."""
    if seconds is None:
        return None
    whole = math.floor(seconds)
    return Timestamp(seconds=whole, nanos=int((seconds - whole) * _NANOS))


def duration(seconds: float | None) -> Duration | None:
    """Convert seconds; None leaves the field unset."""
    if seconds is None:
        return None
    whole = math.floor(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * _NANOS))


def _to_the_minute(seconds: float | None) -> Timestamp | None:
    return timestamp(None if seconds is None else seconds - seconds % 60)


def authorization(value: Authorization) -> pb2.Authorization:
    """Convert an authorization; `server_time` is set when it is sent."""
    return pb2.Authorization(
        headers=[pb2.Header(name=item.name, value=item.value, sensitive=item.sensitive) for item in value.headers],
        kind=KINDS[value.kind],
        reason=REASONS[value.reason],
        fallback_from=KINDS[value.fallback_from] if value.fallback_from else pb2.CREDENTIAL_KIND_UNSPECIFIED,
        mint_time=timestamp(value.mint_time),
        refresh_time=timestamp(value.refresh_time),
        expire_time=timestamp(value.expire_time),
        stale=value.stale,
        offline_serving_until_time=timestamp(value.offline_serving_until_time),
        revision=value.revision,
        identity=value.identity,
        connection_tag=value.connection_tag,
    )


def task(value: Task, identity: Identity) -> pb2.Task:
    """Convert a task; the id that the backend gave it is no part of the answer."""
    return pb2.Task(
        id=value.id,
        identity=identity.name,
        kind=TASK_KINDS[value.kind],
        thread_id=value.thread_id or "",
        state=TASK_STATES[value.effective_state],
        upstream_key=value.upstream_key,
        generation=value.upstream.generation if value.upstream else identity.generation,
        version=value.version,
        etag=task_etag(value),
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
        expire_time=timestamp(value.upstream.expire_time if value.upstream else None),
        purge_time=timestamp(value.purge_time),
    )


def task_etag(value: Task) -> str:
    """Return what names the state a task is in."""
    return f"{value.version}-{value.upstream.version if value.upstream else 0}"


def identity_etag(value: Identity) -> str:
    """Return what names the state an identity is in."""
    return f"{value.generation}-{value.version}"


def identity(value: Identity, last_use: float | None = None) -> admin_pb2.Identity:
    """Convert an identity; its secrets are no part of the answer."""
    return admin_pb2.Identity(
        name=value.name,
        id=value.id,
        backend=value.backend,
        mode=MODES[value.mode],
        state=STATES[value.state],
        state_reason=error_reason(value.state_reason),
        origin=ORIGINS[value.origin],
        can_register=value.can_register,
        account_id=value.account_id or "",
        user_id=value.user_id or "",
        email=value.email or "",
        plan_type=value.plan_type or "",
        fedramp=value.fedramp,
        bearer_source=value.bearer_source or "",
        assertions_enabled=value.assertions_enabled,
        agent_runtime_id=value.agent_runtime_id or "",
        public_key=value.public_key or "",
        generation=value.generation,
        version=value.version,
        etag=identity_etag(value),
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
        expire_time=timestamp(value.expire_time),
        last_use_time=_to_the_minute(last_use),
    )


def scope_rule(value: ScopeRule) -> pb2.ScopeRule:
    """Convert a scope's rule."""
    return pb2.ScopeRule(
        scope=value.name,
        description=value.description,
        credential=CREDENTIALS[value.credential],
        task=TASK_NEEDS[value.task],
        enabled=value.enabled,
        min_lifetime=duration(value.min_lifetime),
        max_lifetime=duration(value.max_lifetime),
        source=value.source,
    )


def identity_summary(status: IdentityStatus) -> admin_pb2.IdentitySummary:
    """Convert how an identity is doing."""
    row, mishap = status.identity, status.mishap
    bearer_state = admin_pb2.BEARER_STATE_UNSPECIFIED
    if status.bearer_state is not None:
        bearer_state = BEARER_STATES[status.bearer_state]
    return admin_pb2.IdentitySummary(
        name=row.name,
        backend=row.backend,
        mode=MODES[row.mode],
        state=STATES[row.state],
        state_reason=error_reason(status.state_reason),
        active_task_count=status.active_task_count,
        bearer_expire_time=timestamp(status.bearer_expire_time),
        retry_time=timestamp(None if mishap is None else mishap.retry_time),
        expire_time=timestamp(row.expire_time),
        last_use_time=_to_the_minute(status.last_use_time),
        bearer_state=bearer_state,
        bearer_refresh_time=timestamp(status.bearer_refresh_time),
        last_error=error_reason("" if mishap is None else mishap.reason),
        last_error_time=timestamp(None if mishap is None else mishap.time),
        rejected_scopes=status.rejected_scopes,
        task_replace_time=timestamp(status.task_replace_time),
        watch_count=status.watch_count,
    )


def error_status(outcome: BrokerError | type[BrokerError], retry_delay: float | None) -> pb2.ErrorStatus:
    """Convert an outcome inside an answer that itself is OK; `retry_delay` in seconds, None leaves it unset."""
    kind = outcome if isinstance(outcome, type) else type(outcome)
    return pb2.ErrorStatus(
        code=CODES[kind].value[0],
        reason=error_reason(outcome.reason),
        message=outcome.text,
        retry_delay=duration(retry_delay),
    )


def decision(value: Decision) -> pb2.Decision:
    """Convert a decision."""
    match value:
        case UseAssertion(why):
            return pb2.Decision(
                outcome=pb2.DECISION_OUTCOME_USE_ASSERTION,
                kind=pb2.CREDENTIAL_KIND_AGENT_ASSERTION,
                reason=REASONS[why],
            )
        case UseBearer(why, fallback_from) | NeedBearer(why, fallback_from):
            return pb2.Decision(
                outcome=pb2.DECISION_OUTCOME_USE_BEARER
                if isinstance(value, UseBearer)
                else pb2.DECISION_OUTCOME_NEED_BEARER,
                kind=pb2.CREDENTIAL_KIND_BEARER,
                reason=REASONS[why],
                fallback_from=KINDS[fallback_from] if fallback_from else pb2.CREDENTIAL_KIND_UNSPECIFIED,
            )
        case NeedTask(kind):
            return pb2.Decision(
                outcome=pb2.DECISION_OUTCOME_NEED_TASK,
                kind=pb2.CREDENTIAL_KIND_AGENT_ASSERTION,
                reason=pb2.DECISION_REASON_TASK_ASSERTION,
                task_kind=TASK_KINDS[kind],
            )
        case Refuse(outcome, retry_after):
            return pb2.Decision(
                outcome=pb2.DECISION_OUTCOME_REFUSE,
                error=error_status(outcome, retry_after),
            )


def explanation(value: Explanation) -> pb2.ExplainAuthorizationResponse:
    """Convert an explained decision."""
    return pb2.ExplainAuthorizationResponse(
        decision=decision(value.decision),
        steps=[
            pb2.DecisionStep(number=step.number, rule=step.situation, matched=step.held, detail=step.detail)
            for step in value.steps
        ],
        identity=value.identity,
        scope_rule=scope_rule(value.rule),
    )
