"""What can go wrong between a caller and the broker."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import error_reason_pb2

_DOMAIN: Final = "credentialbroker.v1"
_PREFIX: Final = "ERROR_REASON_"
_DETAILS: Final = "grpc-status-details-bin"
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

_REFUSALS: Final = frozenset(
    {
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
    }
)


class ClosedError(RuntimeError):
    """The client was closed, before the call or while it waited."""

    def __init__(self) -> None:
        super().__init__("this client is closed")


class OriginError(ValueError):
    """An adapter was given a request to another origin than its own. Nothing was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What is known of a failed call. The attributes are those of `BrokerError`."""

    code: grpc.StatusCode
    message: str
    reason_text: str = ""
    retry_delay: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def refused(self) -> bool:
        """Whether asking again would be refused again until somebody has changed something."""
        return self.code in _REFUSALS

    @property
    def is_late(self) -> bool:
        """Whether all that is known is that there was no answer in time, which may be somebody's own short one."""
        return self.code is grpc.StatusCode.DEADLINE_EXCEEDED and not self.reason_text


class BrokerError(Exception):
    """
    A call to the broker failed.

    Attributes:
        code: the gRPC status code.
        reason: a value of the enum `ErrorReason`. ERROR_REASON_UNSPECIFIED where the gRPC runtime made the error, or
            where a newer broker sent a word that this client does not know.
        reason_text: the bare word of the reason as it was sent, for example `SCOPE_UNKNOWN`; empty without one.
        message: for people; may change.
        retry_delay: how many seconds to wait at least before trying again, where the broker says so.
        metadata: what the broker adds for programs; its keys are described at each `ErrorReason`.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure: Final = failure
        self.code: Final = failure.code
        self.reason_text: Final = failure.reason_text
        self.message: Final = failure.message
        self.retry_delay: Final = failure.retry_delay
        self.metadata: Final = failure.metadata

    @property
    def reason(self) -> error_reason_pb2.ErrorReason.ValueType:
        """The reason as a value of the enum."""
        known = error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name.get(_PREFIX + self.reason_text)
        return error_reason_pb2.ErrorReason.ValueType(known.number if known else 0)

    def __str__(self) -> str:
        return f"{self.reason_text or self.code.name}: {self.message}"


class FailedCall(Protocol):
    """A call that has ended, of either runtime of gRPC."""

    def code(self) -> grpc.StatusCode:
        """Return its status code."""

    def details(self) -> str | None:
        """Return its status message."""

    def trailing_metadata(self) -> Any:
        """Return the metadata after the answer, as pairs."""


def failure_of_call(call: FailedCall) -> Failure:
    """Return what a call that has ended with an error says of it."""
    code, message = call.code(), call.details() or ""
    try:
        return _with_details(code, message, call.trailing_metadata() or ())
    except DecodeError:  # something between the broker and this client may answer in its name
        return Failure(code=code, message=message)


def _with_details(code: grpc.StatusCode, message: str, trailing: Iterable[tuple[str, Any]]) -> Failure:
    status = status_pb2.Status()
    for key, value in trailing:
        if key == _DETAILS:
            status.MergeFromString(value)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    found, retry_delay = False, None
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
            found = info.domain == _DOMAIN
        elif detail.Unpack(retry):
            retry_delay = retry.retry_delay.ToNanoseconds() / 1e9
    if not found:
        return Failure(code=code, message=message, retry_delay=retry_delay)
    return Failure(
        code=code, message=message, reason_text=info.reason, retry_delay=retry_delay, metadata=dict(info.metadata)
    )


def failure_of_status(status: pb2.ErrorStatus) -> Failure:
    """Return what a failure inside an answer says."""
    known = error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_number.get(status.reason)
    return Failure(
        code=_CODES.get(status.code, grpc.StatusCode.UNKNOWN),
        message=status.message,
        reason_text=known.name.removeprefix(_PREFIX) if known else str(status.reason),
        retry_delay=status.retry_delay.ToNanoseconds() / 1e9 if status.HasField("retry_delay") else None,
    )


def failure_of_exception(error: BaseException) -> Failure:
    """Return the failure of what broke on this side, such as a thread that could not be started."""
    return Failure(code=grpc.StatusCode.UNKNOWN, message=f"{type(error).__name__}: {error}")


def withdrawn_again_and_again() -> Failure:
    """Return the failure of a question whose every answer was withdrawn before it came."""
    return Failure(code=grpc.StatusCode.ABORTED, message="each answer was withdrawn before it came")


def deadline_exceeded(seconds: float) -> Failure:
    """Return the failure of waiting longer than one wanted to."""
    return Failure(code=grpc.StatusCode.DEADLINE_EXCEEDED, message=f"no answer within {seconds:g} s")
