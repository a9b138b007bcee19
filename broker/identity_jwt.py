"""
Agent Identity JWTs: checking their form, verifying them against the issuer's keys, keeping those keys.

Such a JWT holds an agent's private key, so the token itself is a secret. No claim may be used before `verify` returned
it; `peek` shows the few that decide, before any network, whether the token is worth verifying, under a name that says
what they are. The rules are upstream's (openai/codex codex-rs/agent-identity/src/lib.rs at 343074d4207d, lines 112 to
126 and 266 to 304), stricter where it says so. Errors never hold a piece of the token.
"""

import asyncio
import binascii
import re
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import RSAAlgorithm

from broker.assertion import InvalidBackendIdError, validate_backend_id
from broker.clock import Clock
from broker.model import Secret
from broker.strict_json import StrictJsonError, parse_object

ISSUER: Final = "https://chatgpt.com/codex-backend/agent-identity"
AUDIENCE: Final = "codex-app-server"
ALGORITHM: Final = "RS256"
LEEWAY: Final = 60.0
"""Seconds by which the issuer's clock may differ; the default of upstream's library."""

MAX_JWT_LENGTH: Final = 16 * 1024
MAX_KEYS: Final = 64
MIN_RSA_BITS: Final = 2048

KEY_SET_LIFETIME: Final = 600.0
KEY_SET_MAX_STALENESS: Final = 24 * 3600.0
MIN_REFETCH_INTERVAL: Final = 30.0
_FETCH_TIMEOUT: Final = 10.0

_PART: Final = re.compile(r"[A-Za-z0-9_-]+")
_ID: Final = re.compile(r"[!-~]{1,256}")
_TEXT: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f]{0,320}")
_KEY_TEXT: Final = re.compile(r"[A-Za-z0-9+/=]{1,256}")
_PARTS: Final = 3

# Every switch of PyJWT, so that no change of a default can open one. Times are checked here, against the caller's
# clock; PyJWT would take the machine's.
_OPTIONS: Final[jwt.types.Options] = {
    "verify_signature": True,
    "require": ["exp", "iss", "aud"],
    "strict_aud": True,
    "verify_aud": True,
    "verify_iss": True,
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
    "verify_sub": False,
    "verify_jti": False,
    "enforce_minimum_key_length": True,
}


class JwtProblem(StrEnum):
    """Why a token was refused; constant texts that are safe to show and to log."""

    TOO_LONG = "the token is longer than 16 KiB"
    NOT_A_JWT = "the token is not three non-empty parts of base64url without padding"
    HEADER = "the token's header is not a strict JSON object"
    PAYLOAD = "the token's payload is not a strict JSON object"
    ALGORITHM = "the token is not signed with RS256"
    CRITICAL = "the token's header demands extensions that are not known here"
    KEY_ID_MISSING = "the token's header names no key (kid)"
    KEY_ID_UNKNOWN = "the token's key (kid) is not one of the issuer's"
    SIGNATURE = "the token's signature does not verify"
    ISSUER = "the token is of another issuer"
    AUDIENCE = "the token is for another audience"
    EXPIRY_MISSING = "the token has no expiry (exp) in the form of a number"
    EXPIRED = "the token has expired; get a new one"
    NOT_YET_VALID = "the token is from the future (iat or nbf); check this machine's clock"
    CLAIM = "a claim of the token is missing or not of its form"


class IdentityJwtError(ValueError):
    """
    A token that must not be used.

    Attributes:
        problem: what is wrong.
        claim: the claim that is wrong, where it is a single one; else empty.
    """

    def __init__(self, problem: JwtProblem, claim: str = "") -> None:
        super().__init__(f"{problem.value}: {claim}" if claim else problem.value)
        self.problem: Final = problem
        self.claim: Final = claim


class JwksError(ValueError):
    """The issuer's key document is not one; nothing of it is used."""

    def __init__(self) -> None:
        super().__init__("the issuer's key document holds no list of keys of the expected form")


@dataclass(frozen=True, slots=True)
class UnverifiedIdentity:
    """
    What a token says about itself, proven by nobody; good only for refusing early.

    A claim that is missing or not a text is None.
    """

    unverified_key_id: str
    unverified_account_id: str | None
    unverified_user_id: str | None
    unverified_agent_runtime_id: str | None
    unverified_payload: Mapping[str, Any] = field(repr=False)
    """The whole payload, the private key included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedIdentityClaims:
    """The claims of a verified token. Times are Unix seconds."""

    agent_runtime_id: str
    agent_private_key: Secret
    """Base64 of PKCS#8 DER; `broker.keys` reads it and may still refuse it."""
    account_id: str
    chatgpt_user_id: str
    email: str | None
    plan_type: str | None
    """As the issuer wrote it; upstream knows aliases, so compare with care."""
    fedramp: bool
    issue_time: float | None
    expire_time: float


def peek(unverified_jwt: str) -> UnverifiedIdentity:
    """
    Check a token's form without any network or key.

    Raises:
        IdentityJwtError: it has no form in which it could ever verify.
    """
    if len(unverified_jwt) > MAX_JWT_LENGTH:
        raise IdentityJwtError(JwtProblem.TOO_LONG)
    parts = unverified_jwt.split(".")
    if len(parts) != _PARTS:
        raise IdentityJwtError(JwtProblem.NOT_A_JWT)
    decoded = [_decode_base64url(part) for part in parts]
    if any(part is None for part in decoded):
        raise IdentityJwtError(JwtProblem.NOT_A_JWT)
    header = _object(decoded[0] or b"", JwtProblem.HEADER)
    payload = _object(decoded[1] or b"", JwtProblem.PAYLOAD)
    if header.get("alg") != ALGORITHM:
        raise IdentityJwtError(JwtProblem.ALGORITHM)
    if "crit" in header or "b64" in header:
        raise IdentityJwtError(JwtProblem.CRITICAL)
    key_id = header.get("kid")
    if not isinstance(key_id, str) or not key_id:
        raise IdentityJwtError(JwtProblem.KEY_ID_MISSING)
    # jku, jwk, x5u, x5c and x5t are never looked at: keys come from the configured address only.
    return UnverifiedIdentity(
        unverified_key_id=key_id,
        unverified_account_id=_string_or_none(payload.get("account_id")),
        unverified_user_id=_string_or_none(payload.get("chatgpt_user_id")),
        unverified_agent_runtime_id=_string_or_none(payload.get("agent_runtime_id")),
        unverified_payload=payload,
    )


class JwkSet:
    """The issuer's public keys by their id."""

    def __init__(self, keys: Mapping[str, RSAPublicKey]) -> None:
        self._keys = dict(keys)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "JwkSet":
        """
        Read a JWKS document (RFC 7517).

        Keys of other types, for other uses, below 2048 bits or without an id are left out, and so is an id that stands
        twice: which of the two was meant cannot be known.

        Raises:
            JwksError: there is no list of at most 64 keys.
        """
        entries = document.get("keys")
        if not isinstance(entries, list) or len(entries) > MAX_KEYS:
            raise JwksError
        ids = [entry["kid"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("kid"), str)]
        keys = {
            entry["kid"]: key
            for entry in entries
            if isinstance(entry, dict) and ids.count(entry.get("kid")) == 1 and (key := _rsa_key(entry)) is not None
        }
        return cls(keys)

    def get(self, key_id: str) -> RSAPublicKey | None:
        """Return the key of that id, None when there is none."""
        return self._keys.get(key_id)

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._keys

    def __len__(self) -> int:
        return len(self._keys)


def verify(unverified_jwt: str, keys: JwkSet, now: float) -> VerifiedIdentityClaims:
    """
    Return the claims of a token that the issuer signed for us and that is valid now.

    RS256 with the key its `kid` names; `iss` and `aud` must be there and equal; `exp` must be there. Stricter than
    upstream: `aud` is a single text, `iat` and `nbf` are checked where they stand, JSON names are unique.

    Args:
        unverified_jwt: the token.
        keys: the issuer's keys.
        now: Unix seconds; times are compared with a leeway of `LEEWAY`.

    Raises:
        IdentityJwtError: anything is wrong with it.
    """
    unverified = peek(unverified_jwt)
    key = keys.get(unverified.unverified_key_id)
    if key is None:
        raise IdentityJwtError(JwtProblem.KEY_ID_UNKNOWN)
    problem = _signature_problem(unverified_jwt, key)
    if problem is not None:
        raise IdentityJwtError(problem)
    # The same bytes as PyJWT verified, read strictly.
    return _claims(unverified.unverified_payload, now)


class JwksCache:
    """
    The issuer's keys, fetched when needed.

    They are fresh for 10 minutes; a key id that is not among them causes one more fetch, at most one every 30 s, so
    that tokens with made-up ids cost the issuer nothing. While fetching fails, keys of up to 24 hours ago go on being
    used. However many callers wait, one fetch is under way; it belongs to the cache and outlives their cancellation.

    Args:
        fetch: returns the JWKS document; its argument is the monotonic deadline.
        clock: ages and deadlines are monotonic times of it.
    """

    def __init__(self, fetch: Callable[[float], Awaitable[Mapping[str, Any]]], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys: JwkSet | None = None
        self._fetch_time = 0.0
        self._last_attempt: float | None = None
        self._flight: asyncio.Task[JwkSet] | None = None

    async def keys_for(self, unverified_jwt: str) -> JwkSet:
        """
        Return the keys to verify a token with.

        The token's key may still not be among them; `verify` says so.

        Raises:
            IdentityJwtError: the token has no form in which it could ever verify.
            Exception: what `fetch` or `JwkSet.from_document` raised, when there are no keys to fall back on.
        """
        key_id = peek(unverified_jwt).unverified_key_id
        if self._keys is not None and self._age <= KEY_SET_LIFETIME and key_id in self._keys:
            return self._keys
        if self._flight is None and self._keys is not None and self._too_early and self._age <= KEY_SET_MAX_STALENESS:
            return self._keys
        try:
            return await asyncio.shield(self._refetch())
        except Exception:
            if self._keys is not None and self._age <= KEY_SET_MAX_STALENESS:
                return self._keys
            raise

    async def aclose(self) -> None:
        """Give up a fetch that is under way."""
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.gather(self._flight, return_exceptions=True)

    @property
    def _age(self) -> float:
        return self._clock.monotonic() - self._fetch_time

    @property
    def _too_early(self) -> bool:
        return self._last_attempt is not None and self._clock.monotonic() - self._last_attempt < MIN_REFETCH_INTERVAL

    def _refetch(self) -> "asyncio.Task[JwkSet]":
        if self._flight is None:
            self._last_attempt = self._clock.monotonic()
            self._flight = asyncio.create_task(self._load())
            self._flight.add_done_callback(self._landed)
        return self._flight

    async def _load(self) -> JwkSet:
        keys = JwkSet.from_document(await self._fetch(self._clock.monotonic() + _FETCH_TIMEOUT))
        self._keys, self._fetch_time = keys, self._clock.monotonic()
        return keys

    def _landed(self, flight: "asyncio.Task[JwkSet]") -> None:
        self._flight = None
        if not flight.cancelled():
            flight.exception()  # seen, also when every waiter has gone


def _decode_base64url(part: str) -> bytes | None:
    if _PART.fullmatch(part) is None:
        return None
    try:
        decoded = b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        return None
    # One byte string shall have one text: no stray bits in the last character.
    return decoded if urlsafe_b64encode(decoded).rstrip(b"=").decode("ascii") == part else None


def _object(data: bytes, problem: JwtProblem) -> dict[str, Any]:
    try:
        return parse_object(data)
    except StrictJsonError:
        raise IdentityJwtError(problem) from None


def _string_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _rsa_key(entry: Mapping[str, Any]) -> RSAPublicKey | None:
    if entry.get("kty") != "RSA" or entry.get("use", "sig") != "sig" or entry.get("alg", ALGORITHM) != ALGORITHM:
        return None
    if "d" in entry or not all(isinstance(entry.get(name), str) for name in ("n", "e")):
        return None
    try:
        key = RSAAlgorithm.from_jwk({"kty": "RSA", "n": entry["n"], "e": entry["e"]})
    except (jwt.InvalidKeyError, ValueError):
        return None
    return key if isinstance(key, RSAPublicKey) and key.key_size >= MIN_RSA_BITS else None


def _signature_problem(unverified_jwt: str, key: RSAPublicKey) -> JwtProblem | None:
    # The answer is a value, because PyJWT's exceptions may quote the token.
    try:
        jwt.decode(unverified_jwt, key=key, algorithms=[ALGORITHM], options=_OPTIONS, audience=AUDIENCE, issuer=ISSUER)
    except jwt.MissingRequiredClaimError as error:
        return _MISSING[error.claim]
    except jwt.InvalidAudienceError:
        return JwtProblem.AUDIENCE
    except jwt.InvalidIssuerError:
        return JwtProblem.ISSUER
    except (jwt.PyJWTError, ValueError):
        return JwtProblem.SIGNATURE
    return None


_MISSING: Final = {"exp": JwtProblem.EXPIRY_MISSING, "iss": JwtProblem.ISSUER, "aud": JwtProblem.AUDIENCE}


def _claims(payload: Mapping[str, Any], now: float) -> VerifiedIdentityClaims:
    expire_time = _time(payload, "exp")
    if expire_time is None:
        raise IdentityJwtError(JwtProblem.EXPIRY_MISSING)
    if expire_time + LEEWAY <= now:
        raise IdentityJwtError(JwtProblem.EXPIRED)
    issue_time, not_before = _time(payload, "iat"), _time(payload, "nbf")
    if any(time is not None and time > now + LEEWAY for time in (issue_time, not_before)):
        raise IdentityJwtError(JwtProblem.NOT_YET_VALID)
    fedramp = payload.get("chatgpt_account_is_fedramp", False)
    if not isinstance(fedramp, bool):
        raise IdentityJwtError(JwtProblem.CLAIM, "chatgpt_account_is_fedramp")
    return VerifiedIdentityClaims(
        agent_runtime_id=_backend_id(payload, "agent_runtime_id"),
        agent_private_key=Secret(_required(payload, "agent_private_key", _KEY_TEXT)),
        account_id=_required(payload, "account_id", _ID),
        chatgpt_user_id=_required(payload, "chatgpt_user_id", _ID),
        email=_optional(payload, "email"),
        plan_type=_optional(payload, "plan_type"),
        fedramp=fedramp,
        issue_time=issue_time,
        expire_time=expire_time,
    )


def _time(payload: Mapping[str, Any], claim: str) -> float | None:
    value = payload.get(claim)
    if value is None:
        return None
    # True is an int to Python.
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise IdentityJwtError(JwtProblem.EXPIRY_MISSING if claim == "exp" else JwtProblem.CLAIM, claim)
    return float(value)


def _required(payload: Mapping[str, Any], claim: str, form: re.Pattern[str]) -> str:
    value = payload.get(claim)
    if not isinstance(value, str) or form.fullmatch(value) is None:
        raise IdentityJwtError(JwtProblem.CLAIM, claim)
    return value


def _backend_id(payload: Mapping[str, Any], claim: str) -> str:
    value = payload.get(claim)
    try:
        return validate_backend_id(value if isinstance(value, str) else "")
    except InvalidBackendIdError:
        raise IdentityJwtError(JwtProblem.CLAIM, claim) from None


def _optional(payload: Mapping[str, Any], claim: str) -> str | None:
    value = payload.get(claim)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or _TEXT.fullmatch(value) is None:
        raise IdentityJwtError(JwtProblem.CLAIM, claim)
    return value
