"""
Checking the form of what came in: each function returns the checked value or raises with the field's name.

Only form is checked here; what exists and who may use it is decided inside. A value that is refused is never quoted.
"""

import re
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from broker.errors import FieldInvalidError, PageTokenInvalidError, ScopeUnknownError, ThreadIdInvalidError
from broker.model import IdentityName, ScopeName, Secret, ThreadId

LONGEST_THREAD_ID: Final = 256
LONGEST_URL: Final = 2048
LONGEST_ID: Final = 128
LONGEST_TOKEN: Final = 16 * 1024
LONGEST_COMMENT_BYTES: Final = 256
LONGEST_DETAIL_BYTES: Final = 256
UNAUTHORIZED: Final = 401
DEFAULT_PAGE_SIZE: Final = 100
LARGEST_PAGE_SIZE: Final = 1000
LONGEST_DURATION: Final = 366 * 86400

_SCOPE: Final = re.compile(r"[a-z0-9_.]{1,128}")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_REQUEST_ID: Final = re.compile(r"[!-~]{1,64}")
_VISIBLE: Final = re.compile(r"[!-~]+")
_BACKEND_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


def scope(value: str) -> ScopeName:
    """Return a scope's name."""
    if not value:
        raise FieldInvalidError(violations={"scope": "is required, for example inference; ListScopes names all"})
    if not _SCOPE.fullmatch(value):
        raise ScopeUnknownError(violations={"scope": "has at most 128 characters of a-z, 0-9, _ and ."})
    return ScopeName(value)


def thread_id(value: str) -> ThreadId | None:
    """Return a thread's id, None when it is unset."""
    if not value:
        return None
    if len(value) > LONGEST_THREAD_ID or not value.isprintable() or value != value.strip():
        raise ThreadIdInvalidError(
            violations={
                "thread_id": f"has 1 to {LONGEST_THREAD_ID} printable characters, no control characters and no spaces"
                " at its ends"
            }
        )
    return ThreadId(value)


def identity(value: str, field: str = "identity") -> IdentityName | None:
    """Return an identity's name, None when it is unset."""
    return identity_name(value, field) if value else None


def identity_name(value: str, field: str = "name") -> IdentityName:
    """Return an identity's name, which must be there."""
    if not _NAME.fullmatch(value):
        raise FieldInvalidError(
            violations={field: "is required: 1 to 63 characters of a-z, 0-9, ., _ and -, a letter or digit first"}
        )
    return IdentityName(value)


def target_url(value: str) -> str | None:
    """Return a target URL, None when it is unset; whether it may be called is decided inside."""
    if len(value) > LONGEST_URL:
        raise FieldInvalidError(violations={"target_url": f"has at most {LONGEST_URL} characters"})
    return value or None


def id_text(value: str, field: str) -> str | None:
    """Return an account's or user's id, None when it is unset."""
    if not value:
        return None
    if len(value) > LONGEST_ID or not _VISIBLE.fullmatch(value):
        raise FieldInvalidError(violations={field: f"has at most {LONGEST_ID} visible ASCII characters"})
    return value


def backend_id(value: str, field: str) -> str:
    """Return an id that a backend gave."""
    if not _BACKEND_ID.fullmatch(value) or value in {".", ".."}:
        raise FieldInvalidError(violations={field: "is required: 1 to 128 characters of A-Z, a-z, 0-9, ., _ and -"})
    return value


def token(value: str, field: str) -> Secret:
    """Return a token, hidden from here on."""
    if not value or len(value) > LONGEST_TOKEN or not _VISIBLE.fullmatch(value):
        raise FieldInvalidError(
            violations={field: f"is required: at most {LONGEST_TOKEN} visible ASCII characters, without `Bearer `"}
        )
    return Secret(value)


def request_id(value: str) -> str:
    """Return the id of a creation."""
    if not _REQUEST_ID.fullmatch(value):
        raise FieldInvalidError(
            violations={"request_id": "is required: 1 to 64 visible ASCII characters, new for each intention"}
        )
    return value


def comment(value: str) -> str:
    """Return an operator's comment."""
    if len(value.encode()) > LONGEST_COMMENT_BYTES or not value.isprintable():
        raise FieldInvalidError(violations={"comment": f"has at most {LONGEST_COMMENT_BYTES} bytes on one line"})
    return value


def rejected_status(value: int) -> None:
    """Check that what is reported is about the credential."""
    if value != UNAUTHORIZED:
        raise FieldInvalidError(
            violations={"http_status": "must be 401: other statuses do not say that the credential was rejected"}
        )


def rejection_detail(value: str) -> str:
    """Return what a backend said beside its status."""
    if len(value.encode()) > LONGEST_DETAIL_BYTES:
        raise FieldInvalidError(violations={"detail": f"has at most {LONGEST_DETAIL_BYTES} bytes"})
    return value


def min_validity(value: Duration) -> float:
    """Return a duration in seconds; 0 when unset."""
    seconds = value.seconds + value.nanos / 1e9
    if not 0 <= seconds <= LONGEST_DURATION:
        raise FieldInvalidError(violations={"min_validity": "is not negative and at most a year"})
    return seconds


def future_time(value: Timestamp, field: str, now: float) -> float:
    """Return a time that lies ahead, in Unix seconds."""
    seconds = value.seconds + value.nanos / 1e9
    if not now < seconds < now + 100 * LONGEST_DURATION:
        raise FieldInvalidError(violations={field: "lies in the future"})
    return seconds


def page_size(value: int) -> int:
    """Return how many rows to answer."""
    if value < 0:
        raise FieldInvalidError(violations={"page_size": "is not negative"})
    return min(value or DEFAULT_PAGE_SIZE, LARGEST_PAGE_SIZE)


def page_token(value: str) -> str:
    """Return a page token in a form that may be looked into."""
    if len(value) > 1024 or not value.isascii():  # noqa: PLR2004 - ours are far shorter
        raise PageTokenInvalidError(violations={"page_token": "is not one that this list gave out"})
    return value
