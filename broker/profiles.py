"""
Backend profiles: what each generation of the agent identity protocol demands, as data.

Pure. The bytes of an assertion never changed in openai/codex; how an agent and a task are registered changed several
times, so a backend of the configuration names a profile and everything that differs stands in it. Paths below are of
openai/codex at the commit they name.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Self
from urllib.parse import urlsplit

from broker.model import TaskKind, ThreadId, UpstreamKey
from broker.origins import Origin, OriginError, parse_origin


class AgentAuth(StrEnum):
    """What proves the account behind an agent registration."""

    BEARER = "BEARER"
    BISCUIT = "BISCUIT"
    NONE = "NONE"
    """Agents are not registered at all: their key comes with an Agent Identity JWT."""


class TaskAuth(StrEnum):
    """What a task registration carries beside its signature."""

    NONE = "NONE"
    BISCUIT = "BISCUIT"


class TaskLayout(StrEnum):
    """Which bindings share one upstream task; the values are the words of the configuration."""

    SINGLE = "single"
    THREAD_AND_BACKGROUND = "thread_and_background"
    PROCESS_AND_THREAD = "process_and_thread"


class Base(StrEnum):
    """Under which of a backend's two base URLs a call is made."""

    AUTHAPI = "AUTHAPI"
    BACKEND = "BACKEND"


class BaseUrlRule(StrEnum):
    """How a configured base URL becomes the one that is called."""

    NORMALISED = "NORMALISED"
    """Known trailing paths are removed and `/backend-api` is completed on the public hosts."""
    ENVIRONMENT = "ENVIRONMENT"
    """Used as it stands; the two public environments bring their AuthAPI with them."""


@dataclass(frozen=True, slots=True)
class TaskAnswerField:
    """A field in which a task registration may answer, and whether its value is sealed to the agent's key."""

    name: str
    sealed: bool


@dataclass(frozen=True, slots=True)
class AssertionRoute:
    """Whether a backend takes assertions for a scope (or all under a root of scopes), and how that is known."""

    takes_assertions: bool
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """
    One generation of the protocol. Timeouts and lifetimes are in seconds.

    A timeout limits one try from connecting to the last byte; a caller's deadline may cut it further.
    """

    name: str
    source: str
    """Where in openai/codex this generation stands."""
    agent_auth: AgentAuth
    task_auth: TaskAuth
    task_layout: TaskLayout
    sends_external_task_ref: bool
    """Whether the registration of a thread's task names the thread (it is not covered by the signature)."""
    agent_base: Base
    task_base: Base
    agent_capabilities: tuple[str, ...]
    sends_agent_ttl: bool
    """Whether agent registration sends `ttl`, always as null."""
    task_answer_fields: tuple[TaskAnswerField, ...]
    """The fields read from the answer, the first that is there wins; a plain id stands before a sealed one."""
    base_url_rule: BaseUrlRule
    agent_timeout: float = 15.0
    task_timeout: float
    biscuit_timeout: float = 15.0
    jwks_timeout: float = 10.0
    assertion_lifetime: float = 60.0
    """How long a minted assertion is handed out; ours, since upstream publishes no freshness window."""
    assertion_routes: Mapping[str, AssertionRoute] = field(default_factory=lambda: MappingProxyType({}))
    """By scope or root of scopes; a scope that is not covered takes assertions."""

    def route(self, scope: str) -> AssertionRoute:
        """Return the route entry of a scope: its own, else its nearest root's, else the default (assertions taken)."""
        name = scope
        while name:
            if name in self.assertion_routes:
                return self.assertion_routes[name]
            name = name.rpartition(".")[0]
        return _DEFAULT_ROUTE

    def takes_assertions(self, scope: str) -> bool:
        """Return whether the backend takes an assertion for this scope."""
        return self.route(scope).takes_assertions

    def with_overrides(
        self, *, assertion_routes: Mapping[str, bool] | None = None, assertion_lifetime: float | None = None
    ) -> Self:
        """Return this profile with an operator's own knowledge of the backend laid over it."""
        routes = dict(self.assertion_routes)
        routes.update(
            {scope: AssertionRoute(taken, "configuration") for scope, taken in (assertion_routes or {}).items()}
        )
        return replace(
            self,
            assertion_routes=MappingProxyType(routes),
            assertion_lifetime=self.assertion_lifetime if assertion_lifetime is None else assertion_lifetime,
        )

    def external_task_ref(self, kind: TaskKind, thread_id: ThreadId | None) -> str | None:
        """Return what a task registration sends as `external_task_ref`; None where the field is left out."""
        return thread_id if self.sends_external_task_ref and kind is TaskKind.THREAD else None


def upstream_key(layout: TaskLayout, kind: TaskKind, thread_id: ThreadId | None) -> UpstreamKey:
    """
    Name the upstream task that a binding uses; bindings with the same name share it.

    A thread enters as the SHA-256 of its id, so that the name has a fixed size and two ids never collide with the
    fixed names.

    Raises:
        ValueError: a thread's binding without a thread id.
    """
    if kind is TaskKind.THREAD and not thread_id:
        message = "the task of a thread needs its thread id"
        raise ValueError(message)
    if layout is TaskLayout.SINGLE:
        return UpstreamKey("single")
    if kind is TaskKind.THREAD and thread_id:
        return UpstreamKey("thread:" + hashlib.sha256(thread_id.encode()).hexdigest())
    # Generation C reuses the process task for background work instead of registering one of its own.
    return UpstreamKey("process" if layout is TaskLayout.PROCESS_AND_THREAD else "background")


@dataclass(frozen=True, slots=True)
class EndpointUrls:
    """The URLs of one backend, ready for a path to be appended: no trailing slash, no query."""

    base_url: str
    authapi_base_url: str | None
    jwks_url: str

    @property
    def origins(self) -> frozenset[Origin]:
        """The origins of all of them, plain http included where `resolve_urls` let it pass."""
        urls = (self.base_url, self.authapi_base_url, self.jwks_url)
        return frozenset(parse_origin(url, allow_loopback_http=True) for url in urls if url is not None)


class BaseUrlError(ValueError):
    """A backend's URLs do not fit its profile; the text says what to configure."""


def resolve_urls(
    profile: Profile,
    *,
    base_url: str,
    authapi_base_url: str | None = None,
    jwks_base_url: str | None = None,
    allow_loopback_http: bool = False,
) -> EndpointUrls:
    """
    Turn configured URLs into those that are called.

    Upstream's rules (codex-rs/agent-identity/src/lib.rs at 343074d4207d, lines 56 to 90 and 469 to 495, and at
    564860e8bd08, lines 172 to 185) compare string prefixes; here the same cases are told apart by parsed origin and
    whole path segments, so `https://chatgpt.com.evil.example` is nobody's environment.

    Args:
        profile: says which rule applies and whether an AuthAPI is needed.
        base_url: the backend's base URL.
        authapi_base_url: where agents and tasks are registered; None takes the one of the public environment that
            `base_url` belongs to.
        jwks_base_url: where the keys of identity JWTs are found; None takes `base_url` as configured.
        allow_loopback_http: see `broker.origins.parse_origin`.

    Raises:
        BaseUrlError: a URL is not usable, or the profile needs an AuthAPI and none is known.
    """
    configured = _parse_base(base_url, allow_loopback_http=allow_loopback_http)
    base = _normalise(configured) if profile.base_url_rule is BaseUrlRule.NORMALISED else configured
    authapi = (
        _parse_base(authapi_base_url, allow_loopback_http=allow_loopback_http)
        if authapi_base_url is not None
        else _environment_authapi(configured)
    )
    if authapi is None and Base.AUTHAPI in {profile.agent_base, profile.task_base}:
        raise BaseUrlError("base_url belongs to no public environment, so authapi_base_url must be set")
    jwks_base = base if jwks_base_url is None else _parse_base(jwks_base_url, allow_loopback_http=allow_loopback_http)
    # codex-rs/agent-identity/src/lib.rs at 343074d4207d, lines 483 to 490.
    jwks_path = ("wham", "agent-identities", "jwks") if _BACKEND_API in jwks_base.path else ("agent-identities", "jwks")
    return EndpointUrls(
        base_url=str(base),
        authapi_base_url=None if authapi is None else str(authapi),
        jwks_url=str(replace(jwks_base, path=jwks_base.path + jwks_path)),
    )


@dataclass(frozen=True, slots=True)
class _BaseUrl:
    origin: Origin
    path: tuple[str, ...]

    def __str__(self) -> str:
        return "/".join((str(self.origin), *self.path))


_BACKEND_API: Final = "backend-api"
_REMOTE_CONTROL: Final = ("wham", "remote", "control", "server")
_PRODUCTION: Final = frozenset({Origin("https", "chatgpt.com", 443), Origin("https", "chat.openai.com", 443)})
_STAGING: Final = frozenset({Origin("https", "chatgpt-staging.com", 443)})
_ENVIRONMENT_PATHS: Final = frozenset({(), (_BACKEND_API,), ("codex",), (_BACKEND_API, "codex")})
_PRODUCTION_AUTHAPI: Final = _BaseUrl(Origin("https", "auth.openai.com", 443), ("api", "accounts"))
_STAGING_AUTHAPI: Final = _BaseUrl(Origin("https", "auth.api.openai.org", 443), ("api", "accounts"))


def _parse_base(url: str, *, allow_loopback_http: bool) -> _BaseUrl:
    try:
        origin = parse_origin(url, allow_loopback_http=allow_loopback_http)
    except OriginError as error:
        raise BaseUrlError(str(error)) from None
    # Safe after parse_origin: its grammar leaves nothing that this parser reads differently.
    parts = urlsplit(url)
    path = tuple(parts.path.rstrip("/").split("/")[1:])
    if "?" in url or any(segment in {"", ".", ".."} for segment in path):
        raise BaseUrlError("a base URL has no query, no empty path segment and no dot segment")
    return _BaseUrl(origin, path)


def _normalise(base: _BaseUrl) -> _BaseUrl:
    path = base.path
    for suffix in ((*_REMOTE_CONTROL, "enroll"), _REMOTE_CONTROL):
        if path[-len(suffix) :] == suffix:
            path = path[: -len(suffix)]
            break
    # In this order, as generation B does it. Generation A completed first, which made `/codex/backend-api` out of
    # `/codex`; nobody can have meant that.
    if path[-1:] == ("codex",):
        path = path[:-1]
    if base.origin in _PRODUCTION and _BACKEND_API not in path:
        path = (*path, _BACKEND_API)
    return _BaseUrl(base.origin, path)


def _environment_authapi(base: _BaseUrl) -> _BaseUrl | None:
    if base.path not in _ENVIRONMENT_PATHS:
        return None
    if base.origin in _PRODUCTION:
        return _PRODUCTION_AUTHAPI
    return _STAGING_AUTHAPI if base.origin in _STAGING else None


_DEFAULT_ROUTE: Final = AssertionRoute(takes_assertions=True, source="default: every route takes assertions")
# The smoke test that upstream recorded for generation B: inference worked, these three answered 401.
_SMOKE_401: Final = AssertionRoute(
    takes_assertions=False, source="openai/codex #19635 (656649cc9f01): the backend answered 401"
)

_SEALED_ONLY: Final = (TaskAnswerField("encrypted_task_id", sealed=True),)
# codex-rs/agent-identity/src/lib.rs at 343074d4207d, lines 144 to 155 and 397 to 409.
_ANY_OF_FOUR: Final = (
    TaskAnswerField("task_id", sealed=False),
    TaskAnswerField("taskId", sealed=False),
    TaskAnswerField("encrypted_task_id", sealed=True),
    TaskAnswerField("encryptedTaskId", sealed=True),
)

DEFAULT_PROFILE: Final = "codex-2026-08"

PRESETS: Final[Mapping[str, Profile]] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            # Generation A, #18094 and #18260.
            Profile(
                name="codex-2026-04",
                source="codex-rs/login/src/agent_identity.rs at 19e2f218271a0795ef490909e978d8ff62bbb3de",
                agent_auth=AgentAuth.BISCUIT,
                task_auth=TaskAuth.BISCUIT,
                task_layout=TaskLayout.THREAD_AND_BACKGROUND,
                sends_external_task_ref=False,
                agent_base=Base.BACKEND,
                task_base=Base.BACKEND,
                agent_capabilities=(),
                sends_agent_ttl=False,
                task_answer_fields=_SEALED_ONLY,
                base_url_rule=BaseUrlRule.NORMALISED,
                task_timeout=15.0,
            ),
            # Generation B, #18811. Five days later 0e8d6b87653aa37958cdc3e24d0681341b2f61d9 moved task registration to
            # the AuthAPI; a backend of after that is one of the default profile, which reads B's answers too.
            Profile(
                name="codex-2026-04-provider",
                source="codex-rs/agent-identity/src/lib.rs at 5882f3f95e1fc727fe46631073c1d5918e4ae3ca",
                agent_auth=AgentAuth.NONE,
                task_auth=TaskAuth.NONE,
                task_layout=TaskLayout.SINGLE,
                sends_external_task_ref=False,
                agent_base=Base.BACKEND,
                task_base=Base.BACKEND,
                agent_capabilities=(),
                sends_agent_ttl=False,
                task_answer_fields=_ANY_OF_FOUR,
                base_url_rule=BaseUrlRule.NORMALISED,
                task_timeout=30.0,
                assertion_routes=MappingProxyType(
                    {
                        "control_plane.plugins": _SMOKE_401,
                        "control_plane.models": _SMOKE_401,
                        "control_plane.analytics": _SMOKE_401,
                    }
                ),
            ),
            # Generation C, the draft of #19054, never merged so.
            Profile(
                name="codex-2026-05",
                source="codex-rs/agent-identity/src/lib.rs at baf261819690144aa0feebbe9481a11ee3050428",
                agent_auth=AgentAuth.BISCUIT,
                task_auth=TaskAuth.NONE,
                task_layout=TaskLayout.PROCESS_AND_THREAD,
                sends_external_task_ref=True,
                agent_base=Base.BACKEND,
                task_base=Base.BACKEND,
                agent_capabilities=(),
                sends_agent_ttl=False,
                task_answer_fields=_ANY_OF_FOUR,
                base_url_rule=BaseUrlRule.NORMALISED,
                task_timeout=30.0,
            ),
            # Generation D, main.
            Profile(
                name=DEFAULT_PROFILE,
                source="codex-rs/agent-identity/src/lib.rs at 343074d4207d572809bd8cea15f4be1d09d98e0b",
                agent_auth=AgentAuth.BEARER,
                task_auth=TaskAuth.NONE,
                task_layout=TaskLayout.SINGLE,
                sends_external_task_ref=False,
                agent_base=Base.AUTHAPI,
                task_base=Base.AUTHAPI,
                agent_capabilities=("responsesapi",),
                sends_agent_ttl=True,
                task_answer_fields=_ANY_OF_FOUR,
                base_url_rule=BaseUrlRule.ENVIRONMENT,
                task_timeout=30.0,
            ),
        )
    }
)
