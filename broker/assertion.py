"""
The two things an agent identity signs: its task registrations and its assertions.

Pure: the key, the time and the ids are arguments. There is deliberately no function that signs a given text: each
purpose has one, and the payloads of the two can never be equal. The bytes follow openai/codex
codex-rs/agent-identity/src/lib.rs at 343074d4207d (registration lines 306 to 313, assertion lines 521 to 540).
"""

import json
import re
from base64 import urlsafe_b64encode
from datetime import UTC, datetime
from typing import Final

from broker.keys import SigningKey, encode_base64

AUTHORIZATION_SCHEME: Final = "AgentAssertion"

# Without ":" no two (ids, timestamp) join to the same payload; without "/", "%" and white space an id cannot leave its
# place in a URL path or a header.
_BACKEND_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TIMESTAMP: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_LAST_SECOND: Final = 253_402_300_799  # 9999-12-31T23:59:59Z, the last that RFC 3339 can write

# Compact like serde_json. Nothing needs escaping: ids and timestamp were checked, base64 is base64.
_ENVELOPE: Final = json.JSONEncoder(separators=(",", ":"))


class InvalidBackendIdError(ValueError):
    """An id from a backend that must not be signed or put into a path; the text never repeats the id."""

    def __init__(self) -> None:
        super().__init__("a backend's id must be 1 to 128 of A-Z a-z 0-9 . _ - and not a dot segment")


def validate_backend_id(value: str) -> str:
    """
    Return an `agent_runtime_id` or `task_id` unchanged when it is safe to sign and to put into a path.

    `.` and `..` are refused although their characters are allowed: URL parsers resolve them to another path.

    Raises:
        InvalidBackendIdError: the id is anything else.
    """
    if _BACKEND_ID.fullmatch(value) is None or value in {".", ".."}:
        raise InvalidBackendIdError
    return value


def timestamp(unix_seconds: int) -> str:
    """
    Return a time as it is signed: RFC 3339 in UTC, whole seconds, `Z`.

    Args:
        unix_seconds: whole seconds since 1970 in the backend's clock as far as it is known.

    Raises:
        ValueError: the time is before 1970 or after the year 9999.
    """
    if not 0 <= unix_seconds <= _LAST_SECOND:
        message = "the time to sign is outside of the years 1970 to 9999"
        raise ValueError(message)
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def registration_signature(key: SigningKey, agent_runtime_id: str, timestamp: str) -> str:
    """
    Sign a task registration: `{agent_runtime_id}:{timestamp}`.

    Returns:
        The signature in padded standard base64, for the request's `signature` field.

    Raises:
        InvalidBackendIdError: the id may not be signed.
        ValueError: the timestamp is not of the form `timestamp` makes.
    """
    return _sign(key, validate_backend_id(agent_runtime_id), timestamp)


def authorization_header(key: SigningKey, agent_runtime_id: str, task_id: str, timestamp: str) -> str:
    """
    Make the `authorization` header's value: `AgentAssertion ` and the signed envelope.

    The signature is over `{agent_runtime_id}:{task_id}:{timestamp}`; the envelope is compact JSON with sorted keys in
    URL-safe base64 without padding.

    Raises:
        InvalidBackendIdError: one of the ids may not be signed.
        ValueError: the timestamp is not of the form `timestamp` makes.
    """
    signature = _sign(key, validate_backend_id(agent_runtime_id), validate_backend_id(task_id), timestamp)
    envelope = _ENVELOPE.encode(
        {  # in sorted order, as upstream writes them
            "agent_runtime_id": agent_runtime_id,
            "signature": signature,
            "task_id": task_id,
            "timestamp": timestamp,
        }
    )
    return f"{AUTHORIZATION_SCHEME} {urlsafe_b64encode(envelope.encode()).rstrip(b'=').decode('ascii')}"


def _sign(key: SigningKey, *fields: str) -> str:
    # The last field has a fixed shape, so that a registration can never be read as an assertion or the other way round.
    if _TIMESTAMP.fullmatch(fields[-1]) is None:
        message = "a signed timestamp has the form 2026-04-23T00:00:00Z"
        raise ValueError(message)
    return encode_base64(key.sign(":".join(fields).encode("ascii")))
