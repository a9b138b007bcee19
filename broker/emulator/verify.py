"""Strict checks of what a client signed and sent; pure, each raises `Refusal` or returns what was proven.

This module is the reason why an accepted header means something: it rebuilds every signed byte from the protocol
(codex-rs/agent-identity/src/lib.rs at 343074d4207d572809bd8cea15f4be1d09d98e0b) with PyNaCl and an encoder of its
own, and shares no code with the part of the broker that signs. Where a lenient reader would accept two spellings
of the same value (base64 with stray bits, padding, key order, white space) it accepts exactly the one that the
protocol's writer produces.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from nacl.bindings import crypto_core_ed25519_is_valid_point
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from broker.emulator.refusal import Refusal

ASSERTION_SCHEME = "AgentAssertion"
ABOM_FIELDS = frozenset({"agent_version", "agent_harness_id", "running_location"})
_ENVELOPE_FIELDS = ("agent_runtime_id", "signature", "task_id", "timestamp")
_SSH_KEY_HEAD = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"
_SIGNATURE_BYTES = 64
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_URL_SAFE = re.compile(r"[A-Za-z0-9_-]+")
_MAX_ASSERTION_CHARACTERS = 8192
_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_FIRST_PRINTABLE = 0x20


@dataclass(frozen=True, slots=True)
class Assertion:
    """The content of a well-formed envelope whose signature is *not yet* checked.

    `verify_signature` needs the agent's key, and which key that is stands in the envelope itself.
    """

    agent_runtime_id: str
    task_id: str
    timestamp: str
    signature: bytes

    def verify_signature(self, public_key: bytes) -> None:
        """Check the signature over `{agent_runtime_id}:{task_id}:{timestamp}`.

        Raises:
            Refusal: `signature_invalid` (401).
        """
        payload = f"{self.agent_runtime_id}:{self.task_id}:{self.timestamp}"
        _check_signature(public_key, payload, self.signature)


@dataclass(frozen=True, slots=True)
class TaskRegistration:
    """The body of a task registration whose signature is *not yet* checked."""

    timestamp: str
    signature: bytes
    external_task_ref: str | None

    def verify_signature(self, agent_runtime_id: str, public_key: bytes) -> None:
        """Check the signature over `{agent_runtime_id}:{timestamp}`.

        `external_task_ref` is not part of the signed bytes; the protocol never covered it.

        Raises:
            Refusal: `signature_invalid` (401).
        """
        _check_signature(public_key, f"{agent_runtime_id}:{self.timestamp}", self.signature)


def parse_assertion(credentials: str) -> Assertion:
    """Read what follows `AgentAssertion ` in an Authorization header.

    Raises:
        Refusal: 401 with `assertion_too_long`, `assertion_padded`, `assertion_encoding_invalid`,
            `assertion_json_invalid`, `assertion_fields_invalid`, `assertion_not_canonical`,
            `signature_encoding_invalid` or `timestamp_invalid`.
    """
    if len(credentials) > _MAX_ASSERTION_CHARACTERS:
        raise _unauthorized("assertion_too_long", "the assertion is longer than any real one")
    if credentials.endswith("="):
        raise _unauthorized("assertion_padded", "the assertion must be base64url without padding")
    if not _URL_SAFE.fullmatch(credentials):
        raise _unauthorized("assertion_encoding_invalid", "the assertion is not base64url")
    try:
        raw = base64.urlsafe_b64decode(credentials + "=" * (-len(credentials) % 4))
    except binascii.Error:
        raise _unauthorized("assertion_encoding_invalid", "the assertion is not base64url") from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != credentials:
        raise _unauthorized("assertion_encoding_invalid", "the assertion's last character carries stray bits")
    try:
        pairs = json.loads(raw.decode("utf-8"), object_pairs_hook=_Pairs)
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise _unauthorized("assertion_json_invalid", "the assertion does not hold UTF-8 JSON") from None
    if not isinstance(pairs, _Pairs) or {name for name, _ in pairs} != set(_ENVELOPE_FIELDS):
        raise _unauthorized("assertion_fields_invalid", f"the assertion must hold {', '.join(_ENVELOPE_FIELDS)}")
    values = dict(pairs)
    if not all(isinstance(value, str) and value for value in values.values()):
        raise _unauthorized("assertion_fields_invalid", "every field of the assertion must be a non-empty string")
    if not _is_canonical(values, raw):
        raise _unauthorized("assertion_not_canonical", "the assertion's JSON must be compact with sorted keys")
    parse_timestamp(values["timestamp"])
    return Assertion(
        agent_runtime_id=values["agent_runtime_id"],
        task_id=values["task_id"],
        timestamp=values["timestamp"],
        signature=_decode_signature(values["signature"], status=401),
    )


def parse_task_registration(body: dict[str, Any], *, allow_external_task_ref: bool) -> TaskRegistration:
    """Read a task registration's body: `timestamp` and `signature`, plus `external_task_ref` where allowed.

    Raises:
        Refusal: 400 with `body_fields_invalid`, `signature_encoding_invalid` or `timestamp_invalid`.
    """
    allowed = {"timestamp", "signature"} | ({"external_task_ref"} if allow_external_task_ref else set())
    if not {"timestamp", "signature"} <= body.keys() <= allowed:
        raise _bad("body_fields_invalid", f"the body must hold exactly {', '.join(sorted(allowed))}")
    if not all(isinstance(value, str) and value for value in body.values()):
        raise _bad("body_fields_invalid", "every field of the body must be a non-empty string")
    parse_timestamp(body["timestamp"], status=400)
    return TaskRegistration(
        timestamp=body["timestamp"],
        signature=_decode_signature(body["signature"], status=400),
        external_task_ref=body.get("external_task_ref"),
    )


def parse_agent_registration(body: dict[str, Any], *, capabilities: tuple[str, ...], ttl: bool) -> bytes:
    """Read an agent registration's body and return the raw public key.

    Args:
        body: The JSON object that was sent.
        capabilities: What `capabilities` must equal.
        ttl: Whether `ttl` must be sent (as null) or must be absent.

    Raises:
        Refusal: 400 with `body_fields_invalid`, `abom_invalid`, `capabilities_invalid`, `ttl_invalid` or
            `public_key_invalid`.
    """
    expected = {"abom", "agent_public_key", "capabilities"} | ({"ttl"} if ttl else set())
    if body.keys() != expected:
        raise _bad("body_fields_invalid", f"the body must hold exactly {', '.join(sorted(expected))}")
    abom = body["abom"]
    if not isinstance(abom, dict) or abom.keys() != ABOM_FIELDS:
        raise _bad("abom_invalid", f"abom must hold exactly {', '.join(sorted(ABOM_FIELDS))}")
    if not all(isinstance(value, str) and value for value in abom.values()):
        raise _bad("abom_invalid", "every field of abom must be a non-empty string")
    if body["capabilities"] != list(capabilities):
        raise _bad("capabilities_invalid", f"capabilities must be {list(capabilities)}")
    if ttl and body["ttl"] is not None:
        raise _bad("ttl_invalid", "ttl must be null")
    return parse_ssh_public_key(body["agent_public_key"])


def parse_ssh_public_key(text: object) -> bytes:
    """Read `ssh-ed25519 <base64>` with no comment and return the 32 raw bytes.

    Raises:
        Refusal: `public_key_invalid` (400).
    """
    refusal = _bad("public_key_invalid", "agent_public_key must be an ssh-ed25519 key without a comment")
    if not isinstance(text, str) or not text.startswith("ssh-ed25519 "):
        raise refusal
    blob = _decode_standard_base64(text.removeprefix("ssh-ed25519 "))
    if blob is None or len(blob) != len(_SSH_KEY_HEAD) + 32 or not blob.startswith(_SSH_KEY_HEAD):
        raise refusal
    public_key = blob[len(_SSH_KEY_HEAD) :]
    if not crypto_core_ed25519_is_valid_point(public_key):
        raise refusal
    return public_key


def format_ssh_public_key(public_key: bytes) -> str:
    """Write 32 raw bytes as `ssh-ed25519 <base64>`."""
    return "ssh-ed25519 " + base64.b64encode(_SSH_KEY_HEAD + public_key).decode()


def parse_timestamp(text: str, *, status: int = 401) -> datetime:
    """Read `YYYY-MM-DDTHH:MM:SSZ`, the only form the protocol writes.

    Raises:
        Refusal: `timestamp_invalid` with the given status.
    """
    refusal = Refusal(status, "timestamp_invalid", "the timestamp must be UTC, whole seconds, ending in Z")
    if not _TIMESTAMP.fullmatch(text):
        raise refusal
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise refusal from None


def check_freshness(timestamp: str, *, now: datetime, window: timedelta) -> None:
    """Refuse a timestamp further from `now` than `window`, in either direction.

    Raises:
        Refusal: `timestamp_stale` or `timestamp_in_future` (401).
    """
    age = now - parse_timestamp(timestamp)
    if age > window:
        raise _unauthorized("timestamp_stale", "the signature is older than the freshness window")
    if age < -window:
        raise _unauthorized("timestamp_in_future", "the signature is from beyond the freshness window")


def parse_json_object(content_type: str | None, body: bytes) -> dict[str, Any]:
    """Read a JSON object whose keys are all different.

    Raises:
        Refusal: `content_type_invalid` (415) or `body_not_json` (400).
    """
    media_type, _, parameter = (content_type or "").partition(";")
    if media_type.strip().lower() != "application/json" or parameter.strip().lower() not in ("", "charset=utf-8"):
        raise Refusal(415, "content_type_invalid", "the content type must be application/json")
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique)
        json.dumps(value, ensure_ascii=False).encode()  # an escaped lone surrogate has no UTF-8 form
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise _bad("body_not_json", "the body is not a JSON object with distinct keys") from None
    if not isinstance(value, dict):
        raise _bad("body_not_json", "the body is not a JSON object with distinct keys")
    return value


def canonical_json(values: dict[str, str]) -> bytes:
    """Encode strings as the protocol's writer does: sorted keys, no spaces, only the escapes JSON requires.

    Written out by hand (the rules are serde_json's) so that this side does not inherit the choices of the JSON
    encoder that the broker uses.
    """
    members = (f"{_quote(name)}:{_quote(values[name])}" for name in sorted(values))
    return ("{" + ",".join(members) + "}").encode()


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as the list of its members, so that duplicates and order stay visible."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("duplicate key")
    return values


def _is_canonical(values: dict[str, str], raw: bytes) -> bool:
    try:
        return canonical_json(values) == raw
    except UnicodeEncodeError:  # an escaped lone surrogate: no writer of the protocol can produce it
        return False


def _quote(text: str) -> str:
    escaped = (
        _SHORT_ESCAPES.get(char) or (f"\\u{ord(char):04x}" if ord(char) < _FIRST_PRINTABLE else char) for char in text
    )
    return '"' + "".join(escaped) + '"'


def _decode_standard_base64(text: str) -> bytes | None:
    """Decode padded standard base64, or None unless the text is exactly what encoding the result would give."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.b64encode(raw).decode() == text else None


def _decode_signature(text: str, *, status: int) -> bytes:
    signature = _decode_standard_base64(text)
    if signature is None or len(signature) != _SIGNATURE_BYTES:
        raise Refusal(status, "signature_encoding_invalid", "the signature must be 64 bytes in padded standard base64")
    return signature


def _check_signature(public_key: bytes, payload: str, signature: bytes) -> None:
    try:
        VerifyKey(public_key).verify(payload.encode(), signature)
    except BadSignatureError:
        raise _unauthorized("signature_invalid", "the signature does not match the agent's key") from None


def _unauthorized(code: str, message: str) -> Refusal:
    return Refusal(401, code, message)


def _bad(code: str, message: str) -> Refusal:
    return Refusal(400, code, message)
