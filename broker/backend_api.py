"""
The calls that a backend's profile defines: registering agents and tasks, fetching the keys that sign identity JWTs.

How a request goes out, and what is done about failures, stands in `broker.outbound`.
"""

import contextlib
import secrets
import ssl
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from broker import __version__
from broker.assertion import InvalidBackendIdError, timestamp, validate_backend_id
from broker.clock import Clock
from broker.clock_offset import ClockOffset
from broker.errors import (
    BackendUnsupportedError,
    BearerUnavailableError,
)
from broker.model import FEDRAMP_HEADER, Secret
from broker.origins import Origin
from broker.outbound import (
    HEADER_VALUE,
    Answer,
    ExchangeRecord,
    FailureKind,
    GuardedHttp,
    HttpLimits,
    OutboundFailure,
    OutboundRequest,
    TransportFactory,
)
from broker.profiles import AgentAuth, Base, EndpointUrls, Profile, TaskAuth

MAX_SEALED_ID_LENGTH: Final = 4096
_BISCUIT_HEADER: Final = "x-openai-authorization"
_HARNESS_ID: Final = "credential-broker"
_MOST_MEASUREMENTS: Final = 3
"""How often a clock is asked for in a row: as many new dates as outvote the older ones that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendEndpoints:
    """
    Where a backend is and how it speaks.

    Raises:
        ValueError: a URL's origin is not on the allow-list.
    """

    profile: Profile
    urls: EndpointUrls
    allowed_origins: frozenset[Origin]
    allow_loopback_http: bool = False
    max_clock_offset: float = 300.0
    """Seconds up to which the difference to the backend's clock is corrected when signing."""
    agent_harness_id: str = _HARNESS_ID
    running_location: str = f"broker-{'macos' if sys.platform == 'darwin' else sys.platform}"

    def __post_init__(self) -> None:
        if not self.urls.origins <= self.allowed_origins:
            message = "the backend's own URLs must be of allowed origins"
            raise ValueError(message)


@dataclass(frozen=True, slots=True)
class TaskAnswer:
    """
    What a task registration brought: the task id, or that id sealed to the agent's key.

    A plain id is checked already; a sealed one must be checked after it was opened.
    """

    value: str = field(repr=False)
    sealed: bool
    answer_lost: bool
    """Whether an earlier try of this registration may have left an orphan at the backend."""


class BackendApi:
    """
    The calls that a backend's profile defines.

    All deadlines are monotonic times of the clock. Every call raises `OutboundFailure` when there is no usable answer
    after up to three tries; only transient failures are tried again.

    Args:
        endpoints: where the backend is and how it speaks.
        clock: times everything and gives the time that is signed.
        limits: what an exchange may cost.
        on_exchange: told about each try, for metrics.
        tls: the TLS settings; None verifies against the usual public roots.
        jitter: returns numbers from 0 to 1.
        token_bytes: returns random bytes.
        transport: makes the transport of an origin; None makes real ones.
    """

    def __init__(
        self,
        endpoints: BackendEndpoints,
        clock: Clock,
        *,
        limits: HttpLimits | None = None,
        on_exchange: Callable[[ExchangeRecord], None] | None = None,
        tls: ssl.SSLContext | None = None,
        jitter: Callable[[], float] | None = None,
        token_bytes: Callable[[int], bytes] = secrets.token_bytes,
        transport: TransportFactory | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._profile = endpoints.profile
        self._clock = clock
        self._clock_offset = ClockOffset(max_offset=endpoints.max_clock_offset)
        self._token_bytes = token_bytes
        self._http = GuardedHttp(
            endpoints.allowed_origins,
            clock,
            allow_loopback_http=endpoints.allow_loopback_http,
            limits=limits,
            observe_date=self.observe_date,
            on_exchange=on_exchange,
            tls=tls,
            jitter=jitter,
            transport=transport,
        )

    async def register_agent(self, *, public_key: str, bearer: Secret, fedramp: bool, deadline: float) -> str:
        """
        Register a public key as a new agent and return its checked `agent_runtime_id`.

        There is no way to take an agent back; a repeated try sends the same key (openai/codex
        codex-rs/agent-identity/src/lib.rs at 343074d4207d, lines 358 to 395).

        Args:
            public_key: the `ssh-ed25519 ...` text.
            bearer: the account's access token.
            fedramp: whether the account is a FedRAMP one.
            deadline: see the class.

        Raises:
            OutboundFailure: see the class; a `status` of 401 is worth one refresh of the bearer.
            BackendUnsupportedError: the profile registers no agents.
        """
        if self._profile.agent_auth is AgentAuth.NONE:
            raise BackendUnsupportedError(note=f"profile {self._profile.name} registers no agents")
        url = self._url(self._profile.agent_base, "v1/agent/register")
        payload: dict[str, Any] = {
            "abom": {
                "agent_version": __version__,
                "agent_harness_id": self._endpoints.agent_harness_id,
                "running_location": self._endpoints.running_location,
            },
            "agent_public_key": public_key,
            "capabilities": list(self._profile.agent_capabilities),
        }
        if self._profile.sends_agent_ttl:
            payload["ttl"] = None

        async def attempt() -> str:
            if self._profile.agent_auth is AgentAuth.BISCUIT:
                headers = await self._biscuit(url, bearer, deadline)
            else:
                headers = {"authorization": _bearer(bearer), **({FEDRAMP_HEADER: "true"} if fedramp else {})}
            answer = await self._http.send_json(
                "register_agent", url, payload, headers=headers, timeout=self._profile.agent_timeout, deadline=deadline
            )
            return _backend_id("register_agent", answer, answer.body.get("agent_runtime_id"))

        return (await self._http.retrying(attempt, deadline=deadline)).value

    async def register_task(
        self,
        *,
        agent_runtime_id: str,
        sign: Callable[[str], str],
        external_task_ref: str | None,
        bearer: Secret | None,
        deadline: float,
    ) -> TaskAnswer:
        """
        Register a task for an agent (openai/codex codex-rs/agent-identity/src/lib.rs at 343074d4207d, from line 397).

        Args:
            agent_runtime_id: the agent's id.
            sign: makes the signature (base64) for a timestamp; asked anew for each try.
            external_task_ref: sent when the profile has that field (`Profile.external_task_ref`), else None.
            bearer: the account's access token, for profiles whose task registrations carry a biscuit.
            deadline: see the class.

        Raises:
            OutboundFailure: see the class.
            InvalidBackendIdError: the agent's id may not stand in a path.
            BearerUnavailableError: the profile needs a bearer and there is none.
            ClockSkewError: the clocks are too far apart to sign.
        """
        url = self._url(self._profile.task_base, f"v1/agent/{validate_backend_id(agent_runtime_id)}/task/register")

        async def attempt() -> tuple[str, bool]:
            headers: dict[str, str | Secret] = {}
            if self._profile.task_auth is TaskAuth.BISCUIT:
                if bearer is None:
                    raise BearerUnavailableError
                headers = await self._biscuit(url, bearer, deadline)
            signed_time = timestamp(self.signing_time(self._clock.now()))
            payload = {"timestamp": signed_time, "signature": sign(signed_time)}
            if external_task_ref is not None:
                payload["external_task_ref"] = external_task_ref
            answer = await self._http.send_json(
                "register_task", url, payload, headers=headers, timeout=self._profile.task_timeout, deadline=deadline
            )
            return self._task_id(answer)

        registered = await self._http.retrying(attempt, deadline=deadline)
        value, sealed = registered.value
        return TaskAnswer(value, sealed, registered.answer_lost)

    async def fetch_jwks(self, deadline: float) -> Mapping[str, Any]:
        """Return the document with the keys that sign Agent Identity JWTs; `identity_jwt.JwkSet` reads it."""
        request = OutboundRequest(
            operation="fetch_jwks",
            method="GET",
            url=self._endpoints.urls.jwks_url,
            timeout=self._profile.jwks_timeout,
        )
        answer = await self._http.retrying(lambda: self._http.exchange(request, deadline=deadline), deadline=deadline)
        return answer.value.body

    async def measure_clock(self, *, max_age: float, deadline: float) -> None:
        """
        See to it that what is known of the backend's clock is at most `max_age` seconds old.

        Asks for what costs a backend least, and for nothing while the last answers were young and of one mind. A date
        that contradicts them is asked for again until it is outvoted or has won. Any answer will do: only its date
        counts, and a backend that gives none leaves things as they are.
        """
        for _ in range(_MOST_MEASUREMENTS):
            if self._clock_offset.is_settled(now=self._clock.now(), monotonic=self._clock.monotonic(), max_age=max_age):
                return
            before = self._clock_offset.last_sample
            request = OutboundRequest(
                operation="measure_clock",
                method="GET",
                url=self._endpoints.urls.jwks_url,
                timeout=self._profile.jwks_timeout,
                reads_json=False,
            )
            with contextlib.suppress(OutboundFailure):
                await self._http.exchange(request, deadline=deadline)
            if self._clock_offset.last_sample == before:
                return

    @property
    def clock_offset(self) -> float:
        """Seconds that the backend's clock is ahead of ours; 0 while that is unknown or too little to correct."""
        return self._clock_offset.seconds(now=self._clock.now(), monotonic=self._clock.monotonic())

    def observe_date(self, date: str, sent: float, received: float) -> None:
        """Learn the backend's clock from a `Date` header; the other two are monotonic times of the exchange."""
        self._clock_offset.observe(date, sent=sent, received=received, now=self._clock.now())

    def signing_time(self, now: float) -> int:
        """
        Return the whole second to sign: ours, corrected to the backend's clock.

        Raises:
            ClockSkewError: the clocks are further apart than `BackendEndpoints.max_clock_offset`.
        """
        return self._clock_offset.signing_time(now=now, monotonic=self._clock.monotonic())

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def _url(self, base: Base, path: str) -> str:
        root = self._endpoints.urls.authapi_base_url if base is Base.AUTHAPI else self._endpoints.urls.base_url
        return f"{root}/{path}"

    async def _biscuit(self, url: str, bearer: Secret, deadline: float) -> dict[str, str | Secret]:
        """
        Fetch the proof of an account for one call of one URL, never kept.

        openai/codex codex-rs/login/src/agent_identity.rs at 19e2f218271a, lines 349 to 389 and 705 to 719.
        """
        request = OutboundRequest(
            operation="fetch_biscuit",
            method="GET",
            url=self._url(Base.BACKEND, "authenticate_app_v2"),
            timeout=self._profile.biscuit_timeout,
            headers={
                "authorization": _bearer(bearer),
                "x-request-id": "codex-agent-identity-"
                + urlsafe_b64encode(self._token_bytes(16)).rstrip(b"=").decode("ascii"),
                "x-original-method": "POST",
                "x-original-url": url,
            },
            reads_json=False,
        )
        answer = await self._http.exchange(request, deadline=deadline)
        biscuit = answer.headers.get(_BISCUIT_HEADER)
        if not biscuit or HEADER_VALUE.fullmatch(biscuit) is None:
            raise OutboundFailure(
                FailureKind.PROTOCOL, request.operation, "the answer holds no biscuit", status=answer.status
            )
        return {_BISCUIT_HEADER: Secret(biscuit)}

    def _task_id(self, answer: Answer) -> tuple[str, bool]:
        for answered in self._profile.task_answer_fields:
            value = answer.body.get(answered.name)
            if value is None:
                continue
            if not answered.sealed:
                return _backend_id("register_task", answer, value), False
            if isinstance(value, str) and 0 < len(value) <= MAX_SEALED_ID_LENGTH:
                return value, True
            raise _unusable("register_task", answer, "the answer's sealed task id cannot be used")
        raise _unusable("register_task", answer, "the answer holds no task id")


def _bearer(token: Secret) -> Secret:
    return Secret(f"Bearer {token.reveal()}")


def _backend_id(operation: str, answer: Answer, value: Any) -> str:
    if not isinstance(value, str):
        raise _unusable(operation, answer, "the answer holds no id")
    try:
        return validate_backend_id(value)
    except InvalidBackendIdError:
        raise _unusable(operation, answer, "the answer's id holds characters that no id may hold") from None


def _unusable(operation: str, answer: Answer, problem: str) -> OutboundFailure:
    return OutboundFailure(FailureKind.PROTOCOL, operation, problem, status=answer.status, answer_lost=True)
