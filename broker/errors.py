"""
Every way a call can fail: one class an outcome, with its reason word and its constant text.

Nothing here knows gRPC; `broker.rpc.status` is the one table that turns these into statuses. Texts are constants:
values that help go into `metadata` or `violations` (both must be safe to show to the caller), the cause goes to the
log through `raise ... from`.
"""

from collections.abc import Mapping
from typing import ClassVar, Self


class BrokerError(Exception):
    """
    Base of all outcomes.

    Args:
        metadata: safe key and value pairs for `ErrorInfo.metadata`.
        violations: field name to what is wrong with it and what to do, for bad input.
        retry_after: seconds after which trying again makes sense, where the reason allows it.
        note: what the log should say beside the reason; never sent to the caller, never a secret.
    """

    reason: ClassVar[str]
    text: ClassVar[str]

    def __init__(
        self,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        note: str = "",
    ) -> None:
        super().__init__(self.text)
        self.metadata = dict(metadata or {})
        self.violations = dict(violations or {})
        self.retry_after = retry_after
        self.note = note

    def again(self) -> Self:
        """Return an equal one, for each who waited for the same job: a shared one would gather all their tracebacks."""
        return type(self)(
            metadata=self.metadata, violations=self.violations, retry_after=self.retry_after, note=self.note
        )

    def __str__(self) -> str:
        wrong = "".join(f"; {name}: {problem}" for name, problem in self.violations.items())
        return f"{self.reason}: {self.text}{wrong}"


# INVALID_ARGUMENT: the caller must change the request.


class ScopeUnknownError(BrokerError):
    reason = "SCOPE_UNKNOWN"
    text = "the scope is not in the catalogue; ListScopes names those that exist"


class ThreadIdRequiredError(BrokerError):
    reason = "THREAD_ID_REQUIRED"
    text = "this scope works on a thread's task; send thread_id"


class ThreadIdInvalidError(BrokerError):
    reason = "THREAD_ID_INVALID"
    text = "thread_id must be 1 to 256 printable characters without spaces at its ends"


class FieldInvalidError(BrokerError):
    reason = "FIELD_INVALID"
    text = "a field of the request is not valid; see the field violations"


class IdentityRequiredError(BrokerError):
    reason = "IDENTITY_REQUIRED"
    text = "several identities could be meant; name one in identity"


class RevisionUnknownError(BrokerError):
    reason = "REVISION_UNKNOWN"
    text = "the revision was not issued to this caller by this broker"


class ImportInvalidError(BrokerError):
    reason = "IMPORT_INVALID"
    text = "what was to be imported cannot be used; see the field violations"


class RequestIdReusedError(BrokerError):
    reason = "REQUEST_ID_REUSED"
    text = "this request_id was used before with other content; make a new one"


class PageTokenInvalidError(BrokerError):
    reason = "PAGE_TOKEN_INVALID"
    text = "page_token is not one that this list gave out; start from the first page"


class GuardHeaderMissingError(BrokerError):
    reason = "GUARD_HEADER_MISSING"
    text = "metadata x-credential-broker: 1 is missing; every call must send it"


# UNAUTHENTICATED, PERMISSION_DENIED: who asks.


class CallerUnauthenticatedError(BrokerError):
    reason = "CALLER_UNAUTHENTICATED"
    text = "the caller could not be authenticated"


class NotAllowedError(BrokerError):
    reason = "NOT_ALLOWED"
    text = "the caller may not use this, or it does not exist"


class IdentityRevokedError(BrokerError):
    reason = "IDENTITY_REVOKED"
    text = "the identity was disabled or deleted by an operator"


# NOT_FOUND, ALREADY_EXISTS: told to operators only.


class IdentityNotFoundError(BrokerError):
    reason = "IDENTITY_NOT_FOUND"
    text = "no identity of that name"


class TaskNotFoundError(BrokerError):
    reason = "TASK_NOT_FOUND"
    text = "no task of that name"


class IdentityExistsError(BrokerError):
    reason = "IDENTITY_EXISTS"
    text = "an identity of that name exists; choose another name or delete it first"


# FAILED_PRECONDITION: trying again alone does not help.


class FeatureDisabledError(BrokerError):
    reason = "FEATURE_DISABLED"
    text = "assertions are switched off for this backend or identity and the scope allows nothing else"


class BackendUnsupportedError(BrokerError):
    reason = "BACKEND_UNSUPPORTED"
    text = "the backend takes no assertions for this scope and the scope allows nothing else"


class BearerUnavailableError(BrokerError):
    reason = "BEARER_UNAVAILABLE"
    text = "a bearer token is needed and the identity has no source for one"


class IdentityRejectedError(BrokerError):
    reason = "IDENTITY_REJECTED"
    text = "the backend refuses this identity; an operator must look at it"


class ReauthRequiredError(BrokerError):
    reason = "REAUTH_REQUIRED"
    text = "the login behind this identity has ended; an operator must re-authenticate it"


class RotationUnsupportedError(BrokerError):
    reason = "ROTATION_UNSUPPORTED"
    text = "this identity cannot register itself, so its key cannot be rotated"


class TaskEndedError(BrokerError):
    reason = "TASK_ENDED"
    text = "the task of this thread was ended; RegisterTask starts a new one"


class TaskSharedError(BrokerError):
    reason = "TASK_SHARED"
    text = "other tasks share this upstream task and would be revoked with it; say force to revoke them all"


class TargetNotAllowedError(BrokerError):
    reason = "TARGET_NOT_ALLOWED"
    text = "target_url is not of an origin of this identity's backend"


class AccountMismatchError(BrokerError):
    reason = "ACCOUNT_MISMATCH"
    text = "the identity belongs to another account than expected"


class MinValidityTooLongError(BrokerError):
    reason = "MIN_VALIDITY_TOO_LONG"
    text = "min_validity is longer than any credential of this kind lives"


class ClockSkewError(BrokerError):
    reason = "CLOCK_SKEW"
    text = "the backend's clock and the broker's differ too much to sign; an operator must correct the clock"


class ScopeDisabledError(BrokerError):
    reason = "SCOPE_DISABLED"
    text = "the scope is switched off in the configuration"


# ABORTED, RESOURCE_EXHAUSTED: again, after a change or a wait.


class GenerationChangedError(BrokerError):
    reason = "GENERATION_CHANGED"
    text = "the identity or resource changed at the same time; read it again and retry"


class CallerRateError(BrokerError):
    reason = "CALLER_RATE"
    text = "the caller is over its rate"


class QuotaTasksError(BrokerError):
    reason = "QUOTA_TASKS"
    text = "the identity has as many tasks as it may have"


class WatchLimitError(BrokerError):
    reason = "WATCH_LIMIT"
    text = "there are as many streams, or subscriptions, as there may be"


class WatcherTooSlowError(BrokerError):
    reason = "WATCHER_TOO_SLOW"
    text = "the reader of the stream did not keep up"


# UNAVAILABLE: again, later.


class BackendDownError(BrokerError):
    reason = "BACKEND_DOWN"
    text = "the backend could not be reached or failed"


class BackendThrottledError(BrokerError):
    reason = "BACKEND_THROTTLED"
    text = "the backend asks for fewer calls"


class BackendProtocolError(BrokerError):
    reason = "BACKEND_PROTOCOL"
    text = "the backend's answer does not follow its protocol"


class IssuerDownError(BrokerError):
    reason = "ISSUER_DOWN"
    text = "the token issuer could not be reached or failed, and no unexpired bearer is left"


class StoreDownError(BrokerError):
    reason = "STORE_DOWN"
    text = "the broker's store could not be reached"


class AuditDownError(BrokerError):
    reason = "AUDIT_DOWN"
    text = "the audit record could not be written, so nothing was handed out"


class KeyProviderDownError(BrokerError):
    reason = "KEY_PROVIDER_DOWN"
    text = "the key provider could not be reached"


class RegistrationInProgressError(BrokerError):
    reason = "REGISTRATION_IN_PROGRESS"
    text = "a registration is under way and was not done in time"


class OverloadError(BrokerError):
    reason = "OVERLOAD"
    text = "the broker has too much to do"


class WarmingUpError(BrokerError):
    reason = "WARMING_UP"
    text = "the broker is starting"


class DrainingError(BrokerError):
    reason = "DRAINING"
    text = "the broker is stopping; another replica answers"


# The rest.


class DeadlineTooShortError(BrokerError):
    reason = "DEADLINE_TOO_SHORT"
    text = "the deadline leaves no time to answer; send one of at least 50 ms"


class NotBuiltError(BrokerError):
    reason = "NOT_BUILT"
    text = "this RPC is not built in this version"


class RowCorruptError(BrokerError):
    reason = "ROW_CORRUPT"
    text = "a stored record cannot be read; an operator must restore or recreate it"


class InternalError(BrokerError):
    reason = "INTERNAL"
    text = "internal error; the request id finds its cause in the broker's log"


class StartupError(Exception):
    """
    The broker cannot start.

    Args:
        problems: everything that is wrong, each with what to do about it; safe to print.
        exit_code: 78 for a wrong configuration, keys or files, 69 for a dependency that cannot be reached.
    """

    def __init__(self, *problems: str, exit_code: int = 78) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.exit_code = exit_code
