"""
How failures are shown: what happened, what is wrong with which field, and what to do next.

What to do is decided by the reason of the error, never by its text. Statuses that the gRPC runtime makes carry no
reason; for those it is the status code, and for a broker that is not there, the address that was tried.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Final, NoReturn

import click
import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from broker.cli.output import printable, show_seconds
from broker.errors import StartupError

_RETRY: Final = "try again"
_UNKNOWN: Final = "this broker is newer than the command; its error_reason.proto explains the reason"

NEXT_STEPS: Final[dict[str, str]] = {
    "SCOPE_UNKNOWN": "see what may be asked for: credential-broker scopes",
    "THREAD_ID_REQUIRED": "name the conversation or run: --thread ID",
    "THREAD_ID_INVALID": "use an id of 1 to 256 printable characters",
    "FIELD_INVALID": "correct the fields named above",
    "IDENTITY_REQUIRED": "name one with --identity (credential-broker identity list), or set [broker] default_identity",
    "REVISION_UNKNOWN": "send the revision unchanged, or get a new authorization: credential-broker get",
    "IMPORT_INVALID": "correct what is named above, or export the record again",
    "REQUEST_ID_REUSED": "leave out --request-id: it belongs to another request",
    "PAGE_TOKEN_INVALID": "run the command again, from the first page",
    "GUARD_HEADER_MISSING": "something between here and the broker drops metadata; connect to the broker itself",
    "CALLER_UNAUTHENTICATED": "show a certificate the broker accepts: --tls-cert and --tls-key",
    "NOT_ALLOWED": "check the name; if it is right, an operator must grant it",
    "IDENTITY_REVOKED": "stop using its headers; an operator can enable it: credential-broker identity enable NAME",
    "IDENTITY_NOT_FOUND": "see which there are: credential-broker identity list",
    "TASK_NOT_FOUND": "see which there are: credential-broker task list",
    "IDENTITY_EXISTS": "choose another name, or look at it: credential-broker identity show NAME",
    "FEATURE_DISABLED": "switch assertions on: `assertions` of the backend, or of the identity",
    "BACKEND_UNSUPPORTED": "see why: credential-broker explain; the backend's `assertion_routes` decide",
    "BEARER_UNAVAILABLE": "give it a bearer: --bearer-source or --token-file when creating it, or `identity update`",
    "IDENTITY_REJECTED": "an operator replaces its key (credential-broker identity rotate NAME) or its login"
    " (credential-broker identity reauthenticate NAME --from FILE)",
    "REAUTH_REQUIRED": "an operator logs in again: credential-broker identity reauthenticate NAME --from FILE",
    "ROTATION_UNSUPPORTED": "create a new identity, or give it a new login: credential-broker identity reauthenticate",
    "TASK_ENDED": "start a new task: credential-broker register-task --thread ID, or --background",
    "TASK_SHARED": "see who shares it: credential-broker task list; then revoke them all with --force",
    "TARGET_NOT_ALLOWED": "send the call to the identity's own backend, or use the other backend's identity",
    "ACCOUNT_MISMATCH": "use the identity of that account, or correct the account",
    "MIN_VALIDITY_TOO_LONG": "ask for less: --min-validity",
    "CLOCK_SKEW": "correct the clock of the broker's machine",
    "SCOPE_DISABLED": "switch it on: `enabled` of the scope in the configuration",
    "GENERATION_CHANGED": "look at it again, then repeat the command with its new etag",
    "CALLER_RATE": _RETRY,
    "QUOTA_TASKS": "end tasks that are no longer needed: credential-broker end-task --thread ID",
    "WATCH_LIMIT": "unsubscribe from what is no longer needed",
    "WATCHER_TOO_SLOW": "open the stream again and read faster",
    "BACKEND_DOWN": _RETRY,
    "BACKEND_THROTTLED": _RETRY,
    "BACKEND_PROTOCOL": "check `profile` and `base_url` of the backend in the configuration",
    "ISSUER_DOWN": _RETRY,
    "STORE_DOWN": "look at the broker: credential-broker status",
    "AUDIT_DOWN": "free the audit log's disk; nothing is handed out until it can be written",
    "KEY_PROVIDER_DOWN": _RETRY,
    "REGISTRATION_IN_PROGRESS": "try again; it goes on without you and is joined, not repeated",
    "OVERLOAD": _RETRY,
    "WARMING_UP": _RETRY,
    "DRAINING": "try again: another replica answers",
    "DEADLINE_TOO_SHORT": "give it more time: --timeout 10s",
    "NOT_BUILT": "use a newer broker",
    "ROW_CORRUPT": "restore the record from a backup, or delete it and create it again",
    "INTERNAL": "find the cause by the request id in the broker's log, and report it",
}
"""For each reason what to do at a command line; a test compares it with the API's enum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """
    What a call failed with.

    Attributes:
        code: the gRPC status code's name.
        reason: the broker's reason; empty where the gRPC runtime made the status.
        text: what happened, for people.
        next_step: what to do.
        metadata: the broker's safe details.
        violations: field and what is wrong with it.
        retry_seconds: how long to wait before trying again, where that helps.
        request_id: finds the call in the broker's log; empty where it never got there.
    """

    code: str
    reason: str
    text: str
    next_step: str
    metadata: Mapping[str, str]
    violations: tuple[tuple[str, str], ...]
    retry_seconds: float | None
    request_id: str

    @property
    def is_final(self) -> bool:
        """Whether the same call would fail again: nothing is under way that it could go on with."""
        return self.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED")

    @property
    def document(self) -> dict[str, Any]:
        """The failure as JSON."""
        return {
            "code": self.code,
            "reason": self.reason,
            "message": self.text,
            "next_step": self.next_step,
            "metadata": dict(self.metadata),
            "violations": [{"field": field, "description": problem} for field, problem in self.violations],
            "retry_delay_seconds": self.retry_seconds,
            "request_id": self.request_id,
        }


class CallFailedError(click.ClickException):
    """
    A call that failed; shown on standard error, exit code 1.

    Args:
        failure: what it failed with.
        as_json: whether a program reads it.
        resume: the options that repeat the same creation, where it was one.
    """

    exit_code = 1

    def __init__(self, failure: Failure, *, as_json: bool, resume: str = "") -> None:
        super().__init__(f"{failure.reason or failure.code}: {failure.text}")
        self.failure = failure
        self.as_json = as_json
        # Where somebody else was first nothing of this request goes on.
        self.resume = "" if failure.is_final or failure.reason == "GENERATION_CHANGED" else resume

    @property
    def document(self) -> dict[str, Any]:
        """The failure and how to go on, as JSON."""
        document = {"error": self.failure.document}
        return {**document, "resume": self.resume} if self.resume else document

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it."""
        text = json.dumps(self.document, indent=2) if self.as_json else self._block()
        click.echo(text, file=file, err=True, color=self.show_color)

    def _block(self) -> str:
        failure = self.failure
        lines = [f"{click.style(failure.reason or failure.code, fg='red', bold=True)}: {printable(failure.text)}"]
        if hint := failure.metadata.get("hint"):
            lines.append(f"  {printable(hint)}")
        lines += [f"  {printable(field)}: {printable(problem)}" for field, problem in failure.violations]
        if failure.retry_seconds is not None:
            lines.append(f"  retry after: {show_seconds(failure.retry_seconds)}")
        lines.append(f"  next: {failure.next_step}")
        if self.resume:
            lines.append(f"  it may be under way: go on with the same command and {self.resume}")
        if failure.request_id:
            lines.append(f"  request id: {printable(failure.request_id)}")
        return "\n".join(lines)


def describe(error: grpc.Call, *, address: str, timeout: float, start: str, tls: bool) -> Failure:
    """
    Read everything that a failed call says.

    Args:
        error: what the call raised.
        address: where it went.
        timeout: how long it was given, in seconds.
        start: the command that would start what was not reached.
        tls: whether the connection was to be encrypted.
    """
    code = error.code().name
    details = error.details() or ""
    info, violations, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), None
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # details that contradict the status: something between here and the broker made them
        status = None
    for packed in status.details if status is not None else ():
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            packed.Unpack(info)
        elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            packed.Unpack(violations)
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            found = error_details_pb2.RetryInfo()
            packed.Unpack(found)
            retry = found.retry_delay.ToTimedelta().total_seconds()
    if info.reason:
        text, next_step = (
            details,
            NEXT_STEPS.get(info.reason, _UNKNOWN),
        )
    else:
        text, next_step = _of_the_runtime(code, details, address=address, timeout=timeout, start=start, tls=tls)
    metadata = dict(info.metadata)
    return Failure(
        code=code,
        reason=info.reason,
        text=text,
        next_step=next_step,
        request_id=metadata.pop("request_id", ""),
        metadata=metadata,
        violations=tuple((violation.field, violation.description) for violation in violations.field_violations),
        retry_seconds=retry,
    )


def _of_the_runtime(code: str, details: str, *, address: str, timeout: float, start: str, tls: bool) -> tuple[str, str]:
    """Return what happened and what to do, where the gRPC runtime and not the broker made the status."""
    match code:
        case "UNAVAILABLE" if "handshake" in details.lower() or "ssl" in details.lower():
            return (
                f"no TLS connection to {address}: {_short(details)}",
                "check --tls-ca, --tls-cert and --tls-key against what the broker listens with",
            )
        case "UNAVAILABLE" if not tls and "refused" not in details and "No such file" not in details:
            return (
                f"no connection to {address}: {_short(details)}",
                f"start a broker with: {start}; if it listens with TLS, add --tls-ca",
            )
        case "UNAVAILABLE":
            return f"no broker at {address}", f"start one with: {start}, or name another address"
        case "DEADLINE_EXCEEDED":
            return f"{address} did not answer within {show_seconds(timeout)}", "give it more time: --timeout 30s"
        case "UNIMPLEMENTED":
            return (
                f"{address} does not have this call",
                "callers and operators have addresses of their own (50051, 50052); else the broker is older than this",
            )
        case _:
            return _short(details) or "the call failed", "look at the broker's log"


def _short(details: str) -> str:
    """Return the last cause in gRPC's description of an error, which names every address it tried."""
    return details.rpartition("last error: ")[2].strip()


def exit_at_start(error: StartupError, *, says: str = "cannot start") -> NoReturn:
    """
    Print every problem and end with the error's exit code: 78 for configuration, 69 for what is not reachable.

    Args:
        error: the problems.
        says: what they come to.
    """
    for problem in error.problems:
        click.echo(f"{click.style(says, fg='red', bold=True)}: {printable(problem)}", err=True)
    click.get_current_context().exit(error.exit_code)
