"""
The one table that turns outcomes into gRPC statuses.

Every `BrokerError` has a row; a test walks both sides. Exactly one `google.rpc.ErrorInfo` with domain
`credentialbroker.v1` goes with each; callers switch on its reason, never on the text.
"""

from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from broker import errors
from broker.errors import BrokerError

ERROR_DOMAIN: Final = "credentialbroker.v1"
DETAILS_KEY: Final = "grpc-status-details-bin"
DEFAULT_RETRY_SECONDS: Final = 1.0

_Code = grpc.StatusCode

CODES: Final[dict[type[BrokerError], grpc.StatusCode]] = {
    outcome: code
    for code, outcomes in {
        _Code.INVALID_ARGUMENT: (
            errors.ScopeUnknownError,
            errors.ThreadIdRequiredError,
            errors.ThreadIdInvalidError,
            errors.FieldInvalidError,
            errors.IdentityRequiredError,
            errors.RevisionUnknownError,
            errors.ImportInvalidError,
            errors.RequestIdReusedError,
            errors.PageTokenInvalidError,
            errors.GuardHeaderMissingError,
        ),
        _Code.UNAUTHENTICATED: (errors.CallerUnauthenticatedError,),
        _Code.PERMISSION_DENIED: (errors.NotAllowedError, errors.IdentityRevokedError),
        _Code.NOT_FOUND: (errors.IdentityNotFoundError, errors.TaskNotFoundError),
        _Code.ALREADY_EXISTS: (errors.IdentityExistsError,),
        _Code.FAILED_PRECONDITION: (
            errors.FeatureDisabledError,
            errors.BackendUnsupportedError,
            errors.BearerUnavailableError,
            errors.IdentityRejectedError,
            errors.ReauthRequiredError,
            errors.RotationUnsupportedError,
            errors.TaskEndedError,
            errors.TaskSharedError,
            errors.TargetNotAllowedError,
            errors.AccountMismatchError,
            errors.MinValidityTooLongError,
            errors.ClockSkewError,
            errors.ScopeDisabledError,
        ),
        _Code.ABORTED: (errors.GenerationChangedError,),
        _Code.RESOURCE_EXHAUSTED: (
            errors.CallerRateError,
            errors.QuotaTasksError,
            errors.WatchLimitError,
            errors.WatcherTooSlowError,
        ),
        _Code.UNAVAILABLE: (
            errors.BackendDownError,
            errors.BackendThrottledError,
            errors.BackendProtocolError,
            errors.IssuerDownError,
            errors.StoreDownError,
            errors.AuditDownError,
            errors.KeyProviderDownError,
            errors.RegistrationInProgressError,
            errors.OverloadError,
            errors.WarmingUpError,
            errors.DrainingError,
        ),
        _Code.DEADLINE_EXCEEDED: (errors.DeadlineTooShortError,),
        _Code.UNIMPLEMENTED: (errors.NotBuiltError,),
        _Code.DATA_LOSS: (errors.RowCorruptError,),
        _Code.INTERNAL: (errors.InternalError,),
    }.items()
    for outcome in outcomes
}

_RETRIED: Final = frozenset({_Code.UNAVAILABLE, _Code.RESOURCE_EXHAUSTED})
_OURS: Final = frozenset({_Code.INTERNAL, _Code.DATA_LOSS, _Code.UNAVAILABLE})


def code_of(error: BrokerError) -> grpc.StatusCode:
    """Return the status code of an outcome."""
    return CODES[type(error)]


def is_our_fault(code: grpc.StatusCode) -> bool:
    """Say whether an operator should look at it: the log level follows this."""
    return code in _OURS


def status_of(error: BrokerError, request_id: str) -> status_pb2.Status:
    """Build the whole status of an outcome, with its details."""
    code = code_of(error)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason, domain=ERROR_DOMAIN, metadata={"request_id": request_id, **error.metadata}
        )
    ]
    if code is _Code.INVALID_ARGUMENT:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=name, description=problem, reason=error.reason)
                    for name, problem in error.violations.items()
                ]
            )
        )
    if code in _RETRIED:
        seconds = error.retry_after if error.retry_after is not None else DEFAULT_RETRY_SECONDS
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(max(1, round(seconds * 1000)))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if code is _Code.NOT_FOUND:
        details.append(
            error_details_pb2.ResourceInfo(
                resource_type=error.metadata.get("resource_type", ""),
                resource_name=error.metadata.get("resource_name", ""),
                description=error.text,
            )
        )
    if code is _Code.INTERNAL:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    return status_pb2.Status(code=code.value[0], message=error.text, details=[_packed(detail) for detail in details])


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
