"""Every outcome has a reason in the API, a code, and the details that its code promises; and the other way round."""

import inspect

import grpc
import pytest
from credentialbroker.v1 import error_reason_pb2
from google.rpc import error_details_pb2, status_pb2

from broker import errors
from broker.errors import BrokerError
from broker.rpc.status import CODES, ERROR_DOMAIN, code_of, status_of

# The table of errors as it is promised, written out by hand.
PROMISED = {
    grpc.StatusCode.INVALID_ARGUMENT: """SCOPE_UNKNOWN THREAD_ID_REQUIRED THREAD_ID_INVALID FIELD_INVALID
        IDENTITY_REQUIRED REVISION_UNKNOWN IMPORT_INVALID REQUEST_ID_REUSED PAGE_TOKEN_INVALID GUARD_HEADER_MISSING""",
    grpc.StatusCode.UNAUTHENTICATED: "CALLER_UNAUTHENTICATED",
    grpc.StatusCode.PERMISSION_DENIED: "NOT_ALLOWED IDENTITY_REVOKED",
    grpc.StatusCode.NOT_FOUND: "IDENTITY_NOT_FOUND TASK_NOT_FOUND",
    grpc.StatusCode.ALREADY_EXISTS: "IDENTITY_EXISTS",
    grpc.StatusCode.FAILED_PRECONDITION: """FEATURE_DISABLED BACKEND_UNSUPPORTED BEARER_UNAVAILABLE IDENTITY_REJECTED
        REAUTH_REQUIRED ROTATION_UNSUPPORTED TASK_ENDED TASK_SHARED TARGET_NOT_ALLOWED ACCOUNT_MISMATCH
        MIN_VALIDITY_TOO_LONG CLOCK_SKEW SCOPE_DISABLED""",
    grpc.StatusCode.ABORTED: "GENERATION_CHANGED",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "CALLER_RATE QUOTA_TASKS WATCH_LIMIT WATCHER_TOO_SLOW",
    grpc.StatusCode.UNAVAILABLE: """BACKEND_DOWN BACKEND_THROTTLED BACKEND_PROTOCOL ISSUER_DOWN STORE_DOWN AUDIT_DOWN
        KEY_PROVIDER_DOWN REGISTRATION_IN_PROGRESS OVERLOAD WARMING_UP DRAINING""",
    grpc.StatusCode.DEADLINE_EXCEEDED: "DEADLINE_TOO_SHORT",
    grpc.StatusCode.UNIMPLEMENTED: "NOT_BUILT",
    grpc.StatusCode.DATA_LOSS: "ROW_CORRUPT",
    grpc.StatusCode.INTERNAL: "INTERNAL",
}
CODE_OF_REASON = {reason: code for code, reasons in PROMISED.items() for reason in reasons.split()}

# What stands beside the ErrorInfo.
DETAILS = {
    grpc.StatusCode.INVALID_ARGUMENT: [error_details_pb2.BadRequest],
    grpc.StatusCode.NOT_FOUND: [error_details_pb2.ResourceInfo],
    grpc.StatusCode.RESOURCE_EXHAUSTED: [error_details_pb2.RetryInfo],
    grpc.StatusCode.UNAVAILABLE: [error_details_pb2.RetryInfo],
    grpc.StatusCode.INTERNAL: [error_details_pb2.RequestInfo],
}

OUTCOMES = [
    outcome
    for _, outcome in inspect.getmembers(errors, inspect.isclass)
    if issubclass(outcome, BrokerError) and outcome is not BrokerError
]


def unpacked(status: status_pb2.Status) -> list[object]:
    """Unpack the details of a status."""
    found = []
    for packed in status.details:
        detail = getattr(error_details_pb2, packed.type_url.rpartition(".")[2])()
        assert packed.Unpack(detail)
        found.append(detail)
    return found


def test_the_api_the_classes_and_the_table_name_the_same_reasons() -> None:
    """A reason that is added in one place and forgotten in another turns this red, whichever place it is."""
    in_api = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}
    in_classes = [outcome.reason for outcome in OUTCOMES]
    assert sorted(in_classes) == sorted(in_api) == sorted(CODE_OF_REASON)
    assert set(CODES) == set(OUTCOMES)


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: outcome.reason)
def test_each_outcome_has_its_code_and_exactly_the_details_of_it(outcome: type[BrokerError]) -> None:
    """The code is the promised one; there is one ErrorInfo, and beside it what the code carries and nothing else."""
    status = status_of(outcome(violations={"field": "is wrong"}), "request-1")
    assert code_of(outcome()) is CODE_OF_REASON[outcome.reason]
    assert status.code == CODE_OF_REASON[outcome.reason].value[0]
    assert status.message == outcome.text
    info, *others = unpacked(status)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, info.metadata["request_id"]) == (outcome.reason, ERROR_DOMAIN, "request-1")
    assert [type(other) for other in others] == DETAILS.get(code_of(outcome()), [])


def test_bad_input_names_each_field() -> None:
    """One violation a field, with what is wrong and the reason."""
    _, bad = unpacked(status_of(errors.FieldInvalidError(violations={"a": "is long", "b": "is short"}), "r"))
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [(one.field, one.description, one.reason) for one in bad.field_violations] == [
        ("a", "is long", "FIELD_INVALID"),
        ("b", "is short", "FIELD_INVALID"),
    ]


@pytest.mark.parametrize(("wait", "sent"), [(2.5, 2500), (None, 1000), (0.0, 1), (-3.0, 1)])
def test_a_retry_always_has_a_positive_delay(wait: float | None, sent: int) -> None:
    """What is known is said; nothing known is a second, and a time that is over is not sent as no time at all."""
    _, retry = unpacked(status_of(errors.BackendDownError(retry_after=wait), "r"))
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == sent


def test_what_was_not_found_is_named() -> None:
    """Operators are told which resource, in its own detail and in the metadata."""
    names = {"resource_type": "identity", "resource_name": "agent-x"}
    info, resource = unpacked(status_of(errors.IdentityNotFoundError(metadata=names), "r"))
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert isinstance(resource, error_details_pb2.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("identity", "agent-x")
    assert dict(info.metadata) == {"request_id": "r", **names}


def test_an_internal_error_names_the_request_that_finds_it_in_the_log() -> None:
    """RequestInfo carries the id, and the text says nothing of the cause."""
    status = status_of(errors.InternalError(note="canary"), "request-7")
    _, request = unpacked(status)
    assert isinstance(request, error_details_pb2.RequestInfo)
    assert request.request_id == "request-7"
    assert b"canary" not in status.SerializeToString()


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: outcome.reason)
def test_a_note_for_the_log_is_never_sent(outcome: type[BrokerError]) -> None:
    """The note may say more than a caller should know."""
    assert b"canary" not in status_of(outcome(note="canary"), "r").SerializeToString()


def test_texts_are_sentences_that_help() -> None:
    """Each text is its own, begins small and has no full stop, so that it reads well behind a reason word."""
    texts = [outcome.text for outcome in OUTCOMES]
    assert len(set(texts)) == len(texts)
    assert [text for text in texts if text.endswith(".") or text[0].isupper() or "\n" in text] == []
