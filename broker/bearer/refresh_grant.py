"""
The refresh-token grant on the wire: what an issuer is sent, and what its answers and refusals mean.

Body, answer fields and classes of errors are those of openai/codex codex-rs/login/src/auth/manager.rs at 343074d4207d
(lines 1553 to 1690). Beyond them a failure says whether the refresh token may have been spent: only then must it not be
sent again.
"""

import asyncio
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final

from broker.auth_json import MAX_TOKEN_LENGTH, unverified_expire_time
from broker.bearer.file import BearerFileError, read_token
from broker.clock import Clock
from broker.model import Secret
from broker.outbound import FailureKind, GuardedHttp, OutboundFailure

_OPERATION: Final = "refresh_token"
_DEAD_CODES: Final = frozenset({"refresh_token_expired", "refresh_token_reused", "refresh_token_invalidated"})
_BAD_REQUEST: Final = 400
_UNAUTHORIZED: Final = 401
_UNSAID_LIFETIME: Final = 8 * 86400.0
"""How long a token is used of which nobody says when it ends: what upstream does, counted from its refresh."""
_LONGEST_LIFETIME: Final = 10 * 366 * 86400.0
_SECONDS: Final = re.compile(r"[0-9]{1,9}")
_VISIBLE: Final = re.compile(r"[!-~]+")


class Verdict(Enum):
    """What a failed exchange means for the refresh token that was sent."""

    REFUSED = auto()
    """Spent, expired or revoked: it will never be accepted again."""
    NOT_PROCESSED = auto()
    """Turned away before it was looked at: it is as good as before."""
    ANSWER_LOST = auto()
    """It may have been exchanged, and nobody knows for what."""


class RefreshFailure(Exception):  # noqa: N818  -- a result with facts, as `OutboundFailure` is
    """
    An exchange that brought no new tokens. Its texts hold no credential.

    Attributes:
        verdict: what it means for the refresh token.
        word: the issuer's error code in lower case, else a word of ours; for operators and metrics.
        retry_after: seconds after which the issuer wants to be asked again; None when it did not say.
        note: one line for the log.
    """

    def __init__(self, verdict: Verdict, word: str, *, note: str, retry_after: float | None = None) -> None:
        super().__init__(note)
        self.verdict = verdict
        self.word = word
        self.note = note
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """What an issuer answered. What is None was not in the answer, and keeps its old value."""

    access_token: Secret | None
    refresh_token: Secret | None
    id_token: Secret | None
    expire_time: float | None
    """When `access_token` ends (Unix seconds, counted from before the request was sent); None without one."""
    send_time: float


class RefreshGrant:
    """
    Sends refresh tokens to one issuer, each exactly once.

    Args:
        http: where requests go out; allows the origin of `token_url`.
        clock: times the requests.
        token_url: the issuer's token endpoint.
        client_id: as whom the broker asks.
        client_secret_file: holds the client's secret where it has one; read for each request.
        timeout: seconds a request may take.
    """

    def __init__(
        self,
        http: GuardedHttp,
        clock: Clock,
        *,
        token_url: str,
        client_id: str,
        client_secret_file: Path | None,
        timeout: float,
    ) -> None:
        self._http = http
        self._clock = clock
        self._token_url = token_url
        self._client_id = client_id
        self._client_secret_file = client_secret_file
        self.timeout: Final = timeout

    async def refresh(self, refresh_token: Secret, *, within: float = math.inf) -> Refreshed:
        """
        Exchange a refresh token; it is sent once or not at all.

        Args:
            refresh_token: what is exchanged.
            within: seconds after which it must no longer be on its way; it is not sent when half of `timeout` is more.

        Raises:
            RefreshFailure: there are no new tokens.
        """
        if within < self.timeout / 2:
            raise RefreshFailure(Verdict.NOT_PROCESSED, "no_time_left", note="too little time is left to send it")
        started = self._clock.monotonic()
        payload = {
            "client_id": self._client_id,
            "grant_type": "refresh_token",
            "refresh_token": refresh_token.reveal(),
            **await self._secret(),
        }
        send_time = self._clock.now()
        deadline = started + min(self.timeout, within)
        try:
            answer = await self._http.send_json(
                _OPERATION, self._token_url, payload, timeout=self.timeout, deadline=deadline
            )
        except OutboundFailure as failure:
            raise _failure(failure) from failure
        return _read(answer.body, send_time)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _secret(self) -> dict[str, str]:
        if self._client_secret_file is None:
            return {}
        try:
            secret = await asyncio.to_thread(read_token, self._client_secret_file)
        except BearerFileError as error:
            raise RefreshFailure(Verdict.NOT_PROCESSED, "client_secret_unusable", note=str(error)) from error
        return {"client_secret": secret.reveal()}


def _failure(failure: OutboundFailure) -> RefreshFailure:
    code = (failure.code or "").lower()
    if failure.status == _UNAUTHORIZED or code in _DEAD_CODES:
        return RefreshFailure(Verdict.REFUSED, code or "unauthorized", note=failure.note)
    if failure.status == _BAD_REQUEST and code == "invalid_grant":
        return RefreshFailure(Verdict.REFUSED, code, note=failure.note)
    verdict = Verdict.ANSWER_LOST if failure.answer_lost else Verdict.NOT_PROCESSED
    word = code or {FailureKind.DOWN: "issuer_down", FailureKind.THROTTLED: "issuer_throttled"}.get(
        failure.kind, "issuer_protocol"
    )
    return RefreshFailure(verdict, word, note=failure.note, retry_after=failure.retry_after)


def _read(body: Mapping[str, Any], send_time: float) -> Refreshed:
    access_token = _token(body, "access_token")
    return Refreshed(
        access_token=access_token,
        refresh_token=_token(body, "refresh_token"),
        id_token=_token(body, "id_token"),
        expire_time=None if access_token is None else _end(access_token, body.get("expires_in"), send_time),
        send_time=send_time,
    )


def _token(body: Mapping[str, Any], name: str) -> Secret | None:
    value = body.get(name)
    if value in (None, ""):
        return None
    if not isinstance(value, str) or len(value) > MAX_TOKEN_LENGTH or _VISIBLE.fullmatch(value) is None:
        # The exchange was made; what it brought cannot be used, and what it spent is spent.
        raise RefreshFailure(Verdict.ANSWER_LOST, "issuer_protocol", note=f"{_OPERATION}: the answer's {name} is none")
    return Secret(value)


def _end(access_token: Secret, expires_in: object, send_time: float) -> float:
    """Return the earlier end of the two that the answer may name; one that cannot be read names none."""
    ends = []
    if isinstance(expires_in, str) and _SECONDS.fullmatch(expires_in):
        expires_in = int(expires_in)
    if isinstance(expires_in, int | float) and not isinstance(expires_in, bool) and expires_in > 0:
        ends.append(send_time + min(float(expires_in), _LONGEST_LIFETIME))
    said = unverified_expire_time(access_token)
    if said is not None:
        ends.append(said)
    return min(ends, default=send_time + _UNSAID_LIFETIME)
