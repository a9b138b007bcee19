"""
All outbound HTTP: one guarded client that backends and token sources are called with.

No other module opens an HTTP connection. A request goes out only after its URL was parsed and its origin found on the
allow-list, and only then are its credentials revealed; redirects are never followed, proxies and credentials from the
environment never used, cookies never kept. What comes back is a stranger's: sizes and total time are limited and JSON
is read strictly.

Whatever goes wrong is one `OutboundFailure`. Which outcome that is for a caller depends on who asked (a registration, a
token source), so the failure states facts and `OutboundFailure.as_error` is only the usual reading of them.
"""

import asyncio
import itertools
import json
import random
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, Generic, TypeVar, cast
from urllib.parse import urlencode

import httpx

from broker import __version__
from broker.clock import Clock
from broker.clock_offset import parse_http_date
from broker.errors import (
    BackendDownError,
    BackendProtocolError,
    BackendThrottledError,
    BrokerError,
    IdentityRejectedError,
)
from broker.model import Secret
from broker.origins import Origin, OriginError, parse_origin
from broker.strict_json import StrictJsonError, parse_object

T = TypeVar("T")

MAX_PREVIEW_BYTES: Final = 512
_MAX_ERROR_BODY: Final = 4096
_ERROR_BODY_TIMEOUT: Final = 1.0
_POOL_TIMEOUT: Final = 1.0
_MIN_TRY: Final = 0.05
# What httpcore and h11 say when the other side closes the connection too early.
_CUT_OFF: Final = ("Server disconnected", "peer closed connection")

HEADER_VALUE: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_JSON_TYPE: Final = re.compile(
    r'application/(?:json|[a-z0-9.-]+\+json)\s*(?:;\s*charset\s*=\s*"?utf-8"?\s*)?', re.IGNORECASE
)
_ERROR_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# Words joined by underscores, none of mixed case: what error codes are made of and random text is not.
_WORD: Final = r"(?:[a-z]{1,20}|[A-Z]{1,20}|[A-Z][a-z]{1,19})"
_WORDS: Final = re.compile(rf"{_WORD}(?:_{_WORD})*")
_SECONDS: Final = re.compile(r"[0-9]{1,9}")

_REDACTED: Final = "***"
_REDACTIONS: Final = (
    (re.compile(r"-----BEGIN [^-]*-----.*?(?:-----END [^-]*-----|\Z)", re.DOTALL), _REDACTED),
    (
        re.compile(
            r'("[^"]*(?:token|secret|key|password|assertion|biscuit)[^"]*"\s*:\s*)"(?:[^"\\]|\\.)*(?:"|\Z)',
            re.IGNORECASE,
        ),
        rf'\1"{_REDACTED}"',
    ),
    (re.compile(r"\b(Bearer|AgentAssertion|Basic|DPoP)\s+[^\s\"',;]+", re.IGNORECASE), rf"\1 {_REDACTED}"),
    # A JWT's parts may each be short; anything else token-like is a long run of base64 or base64url.
    (re.compile(r"\beyJ[A-Za-z0-9_.-]+"), _REDACTED),
    (re.compile(r"[A-Za-z0-9_+/=-]{24,}"), _REDACTED),
)


class FailureKind(StrEnum):
    """What kind of failure an exchange ended in; only the first two are worth trying again."""

    DOWN = "DOWN"
    """Not reached, timed out, cut off, or a 5xx."""
    THROTTLED = "THROTTLED"
    """A 429."""
    PROTOCOL = "PROTOCOL"
    """A 3xx, or an answer that does not follow the protocol."""
    REFUSED = "REFUSED"
    """Any other 4xx: the backend understood and said no."""


class OutboundFailure(Exception):  # noqa: N818  -- a result with facts; "error" names what a caller gets to see
    """
    An exchange that brought no usable answer. Its texts hold no credential and no unredacted body.

    Attributes:
        kind: see `FailureKind`.
        operation: what was tried, as a word for logs and metrics.
        problem: what went wrong, a constant text.
        status: the HTTP status, None when there was no answer.
        code: the error code of the answer's body, where it has one in a plain form.
        preview: the beginning of the answer's body, redacted, for the log only.
        retry_after: seconds after which the other side wants to be asked again, capped; None when it did not say.
        answer_lost: whether one of the tries may have been processed although its answer did not arrive or could not
            be used. What a task registration registered then stays behind at the backend as an orphan.
        attempts: how many tries were made.
    """

    def __init__(
        self,
        kind: FailureKind,
        operation: str,
        problem: str,
        *,
        status: int | None = None,
        code: str | None = None,
        preview: str = "",
        retry_after: float | None = None,
        answer_lost: bool = False,
    ) -> None:
        super().__init__(f"{operation}: {problem}")
        self.kind = kind
        self.operation = operation
        self.problem = problem
        self.status = status
        self.code = code
        self.preview = preview
        self.retry_after = retry_after
        self.answer_lost = answer_lost
        self.attempts = 1

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later without anybody changing anything."""
        return self.kind in {FailureKind.DOWN, FailureKind.THROTTLED}

    @property
    def note(self) -> str:
        """One line for the log."""
        facts = (
            ("status", self.status),
            ("code", self.code),
            ("tries", self.attempts),
            ("answer may be lost", self.answer_lost or None),
            ("body", self.preview or None),
        )
        return f"{self}" + "".join(f"; {name}: {value}" for name, value in facts if value is not None)

    def as_error(self) -> BrokerError:
        """Return what this is for the caller of a registration: BACKEND_DOWN, _THROTTLED, _PROTOCOL or a rejection."""
        match self.kind:
            case FailureKind.DOWN:
                return BackendDownError(retry_after=self.retry_after, note=self.note)
            case FailureKind.THROTTLED:
                return BackendThrottledError(retry_after=self.retry_after, note=self.note)
            case FailureKind.PROTOCOL:
                return BackendProtocolError(note=self.note)
            case FailureKind.REFUSED:
                return IdentityRejectedError(note=self.note)


class OriginNotAllowedError(Exception):
    """A request to an origin that is not on the allow-list: a defect or a wrong configuration; nothing was sent."""

    def __init__(self) -> None:
        super().__init__("the URL's origin is not on the allow-list; nothing was sent")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What an exchange may cost. Times are in seconds."""

    max_body_bytes: int = 64 * 1024
    max_header_bytes: int = 8 * 1024
    """Of an answer; httpx reads the head (at most 100 KiB) before it can be measured."""
    connect_timeout: float = 2.0
    max_attempts: int = 3
    first_backoff: float = 0.2
    max_backoff: float = 5.0
    max_retry_after: float = 60.0
    max_concurrent_per_origin: int = 16


@dataclass(frozen=True, slots=True)
class ExchangeRecord:
    """One try, for metrics: labels are few and hold nothing a stranger chose."""

    operation: str
    origin: Origin
    status: int | None
    failure: FailureKind | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundRequest:
    """
    One request, its credentials still hidden.

    `timeout` limits one try in seconds, from waiting for a connection to the last byte.
    """

    operation: str
    method: str
    url: str
    timeout: float
    headers: Mapping[str, str | Secret] = field(default_factory=dict)
    body: bytes | None = field(default=None, repr=False)
    reads_json: bool = True
    """Whether the answer's body must be a JSON object; else it is ignored."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx answer: its headers (names in lower case) and the JSON object in its body."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Retried(Generic[T]):
    """What came of the last try, and whether the answer of an earlier one may be lost."""

    value: T
    answer_lost: bool


TransportFactory = Callable[[Origin], httpx.AsyncBaseTransport]


class GuardedHttp:
    """
    An HTTP client that talks to listed origins only; one connection pool for each.

    Args:
        allowed_origins: where requests may go.
        clock: times deadlines and waits.
        allow_loopback_http: see `broker.origins.parse_origin`.
        limits: what an exchange may cost.
        observe_date: told the `Date` of each answer that did not come from a cache, with the monotonic times of
            sending and receiving.
        on_exchange: told about each try.
        tls: the TLS settings; None verifies against the usual public roots.
        jitter: returns numbers from 0 to 1.
        transport: makes the transport of an origin; None makes real ones.
    """

    def __init__(
        self,
        allowed_origins: Collection[Origin],
        clock: Clock,
        *,
        allow_loopback_http: bool = False,
        limits: HttpLimits | None = None,
        observe_date: Callable[[str, float, float], None] | None = None,
        on_exchange: Callable[[ExchangeRecord], None] | None = None,
        tls: ssl.SSLContext | None = None,
        jitter: Callable[[], float] | None = None,
        transport: TransportFactory | None = None,
    ) -> None:
        self._allowed = frozenset(allowed_origins)
        self._clock = clock
        self._allow_loopback_http = allow_loopback_http
        self._limits = limits or HttpLimits()
        self._observe_date = observe_date
        self._on_exchange = on_exchange
        self._tls = tls
        self._jitter = jitter or random.SystemRandom().random
        self._transport = transport or self._open_transport
        self._pools: dict[Origin, _Pool] = {}

    async def send_json(
        self,
        operation: str,
        url: str,
        payload: Mapping[str, Any],
        *,
        headers: Mapping[str, str | Secret] | None = None,
        timeout: float,  # noqa: ASYNC109  -- the limit of one try; the caller's limit is the deadline
        deadline: float,
    ) -> Answer:
        """POST a JSON object once and read one back; see `exchange`."""
        request = OutboundRequest(
            operation=operation,
            method="POST",
            url=url,
            timeout=timeout,
            headers={**(headers or {}), "content-type": "application/json"},
            body=json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode(),
        )
        return await self.exchange(request, deadline=deadline)

    async def send_form(
        self,
        operation: str,
        url: str,
        fields: Mapping[str, str | Secret],
        *,
        headers: Mapping[str, str | Secret] | None = None,
        timeout: float,  # noqa: ASYNC109  -- as in send_json
        deadline: float,
    ) -> Answer:
        """POST a form once and read a JSON object back; see `exchange`."""
        request = OutboundRequest(
            operation=operation,
            method="POST",
            url=url,
            timeout=timeout,
            headers={**(headers or {}), "content-type": "application/x-www-form-urlencoded"},
            body=urlencode({name: _reveal(value) for name, value in fields.items()}).encode(),
        )
        return await self.exchange(request, deadline=deadline)

    async def retrying(self, attempt: Callable[[], Awaitable[T]], *, deadline: float) -> Retried[T]:
        """
        Make an attempt again while its failure is transient and there is time; waits back off with jitter.

        `Retry-After` is honoured. A wait that would end after the deadline is not begun. Only for attempts that may be
        repeated; each call of `attempt` builds its request anew (signatures carry a time).

        Raises:
            OutboundFailure: the last try's, with the number of tries and whether any answer may be lost.
        """
        answer_lost = False
        for number in itertools.count(1):
            try:
                return Retried(await attempt(), answer_lost)
            except OutboundFailure as failure:
                failure.answer_lost = answer_lost = answer_lost or failure.answer_lost
                failure.attempts = number
                delay = self._delay_after(failure)
                if (
                    not failure.is_transient
                    or number >= self._limits.max_attempts
                    or self._clock.monotonic() + delay + _MIN_TRY > deadline
                ):
                    raise
            await self._clock.sleep(delay)
        raise AssertionError  # pragma: no cover

    async def exchange(self, request: OutboundRequest, *, deadline: float) -> Answer:
        """
        Send one request once.

        Args:
            request: what to send.
            deadline: monotonic time after which nobody wants the answer any more.

        Raises:
            OutboundFailure: there is no usable 2xx answer.
            OriginNotAllowedError: the URL may not be called.
        """
        origin = self._check_origin(request.url)
        started = self._clock.monotonic()
        trial = _Trial(request)
        result = await self._try(trial, origin, seconds=min(request.timeout, deadline - started))
        if self._on_exchange is not None:
            failure = result.kind if isinstance(result, OutboundFailure) else None
            seconds = self._clock.monotonic() - started
            self._on_exchange(ExchangeRecord(request.operation, origin, trial.status, failure, seconds))
        if isinstance(result, OutboundFailure):
            # Raised here, where no httpx exception is being handled: theirs may quote a header.
            raise result
        return result

    async def aclose(self) -> None:
        """Close all connections."""
        pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            await pool.aclose()

    def _check_origin(self, url: str) -> Origin:
        try:
            origin = parse_origin(url, allow_loopback_http=self._allow_loopback_http)
            httpx.Request("GET", url)
        except (OriginError, UnicodeError):  # the latter for an xn-- label that decodes to nothing
            raise OriginNotAllowedError from None
        if origin not in self._allowed:
            raise OriginNotAllowedError
        return origin

    def _delay_after(self, failure: OutboundFailure) -> float:
        backoff = min(self._limits.first_backoff * 2.0 ** (failure.attempts - 1), self._limits.max_backoff)
        # Between half and all of it, so that callers who failed together do not come back together.
        return max(failure.retry_after or 0.0, backoff * (1 + self._jitter()) / 2)

    async def _try(self, trial: "_Trial", origin: Origin, *, seconds: float) -> Answer | OutboundFailure:
        """Return the answer or the failure; nothing of httpx leaves this method."""
        if seconds <= 0:
            return trial.failure(FailureKind.DOWN, "no time was left to send it")
        headers = _revealed(trial.request.headers)
        if headers is None:
            return trial.failure(FailureKind.REFUSED, "a credential holds characters that no header may hold")
        try:
            async with asyncio.timeout(seconds), self._pool(origin).client() as client:
                return await self._converse(client, trial, headers, seconds)
        except OutboundFailure as failure:
            return failure
        except TimeoutError:
            # A refusal stands, even when the text that goes with it never came.
            return trial.verdict or trial.failure(FailureKind.DOWN, "it timed out")
        except httpx.TransportError as error:
            return trial.transport_failure(error)

    async def _converse(
        self, client: httpx.AsyncClient, trial: "_Trial", headers: Mapping[str, str], seconds: float
    ) -> Answer:
        request = trial.request

        async def trace(event: str, _: Any) -> None:
            if event.endswith("send_request_headers.started"):
                trial.sent = self._clock.monotonic()

        async with client.stream(
            request.method,
            request.url,
            headers=headers,
            content=request.body,
            timeout=httpx.Timeout(seconds, connect=self._limits.connect_timeout, pool=_POOL_TIMEOUT),
            extensions={"trace": trace},
        ) as response:
            trial.status = response.status_code
            self._learn_time(trial, response.headers)
            if sum(len(name) + len(value) + 4 for name, value in response.headers.raw) > self._limits.max_header_bytes:
                raise trial.failure(FailureKind.PROTOCOL, "the answer's headers are too large")
            if not response.is_success:
                raise await self._unsuccessful(trial, response)
            body = await self._read_body(trial, response)
            return Answer(response.status_code, dict(response.headers), body)

    def _learn_time(self, trial: "_Trial", headers: httpx.Headers) -> None:
        # A cache's answer carries the date of when it was stored.
        if self._observe_date is not None and trial.sent is not None and "date" in headers and "age" not in headers:
            self._observe_date(headers["date"], trial.sent, self._clock.monotonic())

    async def _unsuccessful(self, trial: "_Trial", response: httpx.Response) -> OutboundFailure:
        status = response.status_code
        if status == httpx.codes.TOO_MANY_REQUESTS:
            kind, problem = FailureKind.THROTTLED, "too many requests"
        elif response.is_server_error:
            kind, problem = FailureKind.DOWN, "the server failed"
        elif response.is_client_error:
            kind, problem = FailureKind.REFUSED, "the request was refused"
        elif httpx.codes.is_redirect(status):
            return trial.failure(FailureKind.PROTOCOL, "the answer is a redirect, which is never followed")
        else:
            return trial.failure(FailureKind.PROTOCOL, "the answer's status has no meaning here")
        retry_after = self._retry_after(response.headers.get("retry-after"))
        trial.verdict = trial.failure(kind, problem, retry_after=retry_after)
        body, cut = await self._error_body(response)
        return trial.failure(
            kind,
            problem,
            code=_error_code(body),
            preview=preview(body.decode("utf-8", "replace"), cut=cut),
            retry_after=retry_after,
        )

    async def _error_body(self, response: httpx.Response) -> tuple[bytes, bool]:
        """Return the beginning of an error's body and whether it goes on; the status counts whatever happens here."""
        if not _is_identity(response):
            return b"", False
        try:
            async with asyncio.timeout(_ERROR_BODY_TIMEOUT):
                return await _read_up_to(response, _MAX_ERROR_BODY)
        except (TimeoutError, httpx.TransportError):
            return b"", False

    def _retry_after(self, value: str | None) -> float | None:
        """Read seconds or a date (RFC 9110 section 10.2.3), capped; None for anything else."""
        if value is None:
            return None
        if _SECONDS.fullmatch(value):
            seconds = float(value)
        else:
            date = parse_http_date(value)
            if date is None:
                return None
            seconds = date - self._clock.now()
        return min(max(seconds, 0.0), self._limits.max_retry_after)

    async def _read_body(self, trial: "_Trial", response: httpx.Response) -> Mapping[str, Any]:
        if not trial.request.reads_json:
            await _read_up_to(response, self._limits.max_body_bytes)
            return {}
        if not _is_identity(response):
            raise trial.failure(FailureKind.PROTOCOL, "the answer is compressed, which was not asked for")
        if _JSON_TYPE.fullmatch(response.headers.get("content-type", "")) is None:
            raise trial.failure(FailureKind.PROTOCOL, "the answer's content type is not JSON")
        body, cut = await _read_up_to(response, self._limits.max_body_bytes)
        if cut:
            raise trial.failure(FailureKind.PROTOCOL, "the answer's body is too large")
        try:
            return parse_object(body)
        except StrictJsonError as error:
            raise trial.failure(FailureKind.PROTOCOL, f"the answer's body cannot be used: {error}") from None

    def _pool(self, origin: Origin) -> "_Pool":
        if origin not in self._pools:
            self._pools[origin] = _Pool(lambda: self._open_client(origin), self._limits.max_concurrent_per_origin)
        return self._pools[origin]

    def _open_client(self, origin: Origin) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=self._transport(origin),
            follow_redirects=False,
            trust_env=False,
            cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=())),
            headers={
                "accept": "application/json",
                "accept-encoding": "identity",
                "user-agent": f"credential-broker/{__version__}",
            },
        )

    def _open_transport(self, _: Origin) -> httpx.AsyncBaseTransport:
        if self._tls is None:
            self._tls = httpx.create_ssl_context(trust_env=False)
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        connections = self._limits.max_concurrent_per_origin
        return httpx.AsyncHTTPTransport(
            verify=self._tls,
            trust_env=False,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )


@dataclass(slots=True)
class _Trial:
    """What is known about one try so far."""

    request: OutboundRequest
    sent: float | None = None
    """Monotonic time when the request began to be sent; None before."""
    status: int | None = None
    verdict: OutboundFailure | None = None
    """The failure that the status alone stands for, while its body is still being read."""

    def failure(
        self,
        kind: FailureKind,
        problem: str,
        *,
        code: str | None = None,
        preview: str = "",
        retry_after: float | None = None,
    ) -> OutboundFailure:
        return OutboundFailure(
            kind,
            self.request.operation,
            problem,
            status=self.status,
            code=code,
            preview=preview,
            retry_after=retry_after,
            answer_lost=self._may_be_processed,
        )

    def transport_failure(self, error: httpx.TransportError) -> OutboundFailure:
        """Say what an exception of httpx means; its text is used only where it cannot quote the request."""
        match error:
            case httpx.ConnectError() | httpx.ConnectTimeout():
                return self.failure(FailureKind.DOWN, "no connection", preview=preview(str(error)))
            # Both texts mean that the connection ended before the answer did, which is the network's doing.
            case httpx.RemoteProtocolError() if not str(error).startswith(_CUT_OFF):
                return self.failure(FailureKind.PROTOCOL, "the answer is not HTTP")
            case httpx.LocalProtocolError() | httpx.UnsupportedProtocol():
                return self.failure(FailureKind.PROTOCOL, "the request cannot be written as HTTP")
            case _:
                return self.failure(FailureKind.DOWN, f"the connection failed ({type(error).__name__})")

    @property
    def _may_be_processed(self) -> bool:
        if self.request.method == "GET" or self.sent is None:
            return False
        if self.status is None:
            return True
        # A 503 says "not now", 3xx and 4xx say "no". Any other 5xx may come from before a backend that went on, and
        # the failure of a 2xx is that its content cannot be used.
        return not (
            httpx.codes.is_redirect(self.status)
            or httpx.codes.is_client_error(self.status)
            or self.status == httpx.codes.SERVICE_UNAVAILABLE
        )


class _Pool:
    """The client of one origin, at most so many exchanges at a time; a client that fails is replaced."""

    def __init__(self, open_client: Callable[[], httpx.AsyncClient], size: int) -> None:
        self._open_client = open_client
        self._slots = asyncio.Semaphore(size)
        self._current = open_client()
        self._users: dict[httpx.AsyncClient, int] = {}

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        async with self._slots:
            client = self._current
            self._users[client] = self._users.get(client, 0) + 1
            try:
                yield client
            except httpx.PoolTimeout:
                # The semaphore leaves a connection for everybody, so the client lost one (encode/httpcore #961, #1093).
                if client is self._current:
                    self._current = self._open_client()
                raise
            finally:
                self._users[client] -= 1
                if client is not self._current and not self._users[client]:
                    del self._users[client]
                    await client.aclose()

    async def aclose(self) -> None:
        for client in {*self._users, self._current}:
            await client.aclose()


async def _read_up_to(response: httpx.Response, limit: int) -> tuple[bytes, bool]:
    """Return at most `limit` bytes of the body as they came, and whether there are more."""
    body = bytearray()
    async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_raw())) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > limit:
                return bytes(body[:limit]), True
    return bytes(body), False


def _is_identity(response: httpx.Response) -> bool:
    encoding: str = response.headers.get("content-encoding", "identity")
    return encoding.strip().lower() == "identity"


def _reveal(value: str | Secret) -> str:
    return value.reveal() if isinstance(value, Secret) else value


def _revealed(headers: Mapping[str, str | Secret]) -> dict[str, str] | None:
    revealed = {name: _reveal(value) for name, value in headers.items()}
    return revealed if all(HEADER_VALUE.fullmatch(value) for value in revealed.values()) else None


def _error_code(body: bytes) -> str | None:
    """Read `error.code`, `error` or `code`, in this order, when it is a plain word."""
    try:
        members = parse_object(body)
    except StrictJsonError:
        return None
    error = members.get("error")
    code = error.get("code") if isinstance(error, dict) else error
    if not isinstance(code, str):
        code = members.get("code")
    if not isinstance(code, str) or _ERROR_CODE.fullmatch(code) is None:
        return None
    # Redacted like the rest, for 64 characters are enough for a token; `refresh_token_invalidated` is only long.
    return code if _WORDS.fullmatch(code) or preview(code) == code else None


def preview(text: str, *, cut: bool = False) -> str:
    """Return the redacted beginning of a text, at most 512 bytes of it, on one line."""
    if cut:
        # The last word may be the beginning of a token, too short to be told as one.
        text = re.sub(r"\S+\Z", "", text)
    for pattern, replacement in _REDACTIONS:
        text = pattern.sub(replacement, text)
    line = "".join(character if character.isprintable() else " " for character in text).strip()
    shortened = line.encode()[:MAX_PREVIEW_BYTES].decode("utf-8", "ignore")
    return shortened if shortened == line else shortened + "..."
