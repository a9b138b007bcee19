"""
The settings: one frozen `Config`, read once from TOML and the environment, with all problems reported at once.

An unknown key is a problem, never ignored; so is an environment variable `CREDENTIAL_BROKER_<SECTION>__<KEY>` that
names no setting. Secrets never stand in the configuration: it names the files they are read from.
"""

import contextlib
import copy
import difflib
import ipaddress
import os
import tomllib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from broker.backends import DEFAULT_TASK_LIFETIME
from broker.errors import StartupError
from broker.origins import OriginError, parse_origin
from broker.profiles import DEFAULT_PROFILE, PRESETS, BaseUrlError, resolve_urls
from broker.scopes import (
    Credential,
    ScopeCatalogueError,
    ScopeOverride,
    ScopeRule,
    TaskNeed,
    build_catalogue,
)

ENVIRONMENT_PREFIX: Final = "CREDENTIAL_BROKER_"
_LAST_PORT: Final = 65535
NAME_PATTERN: Final = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Seconds = Annotated[float, Field(gt=0, le=366 * 86400, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=2048, pattern=r"^[ -~]*$")]
"""Something that is sent to others: printable ASCII."""
ScopeToken = Annotated[str, Field(pattern=r"^[!#-\[\]-~]{1,256}$")]
"""One scope, as RFC 6749 section 3.3 spells it."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _listen_address(value: str) -> str:
    """Accept `HOST:PORT` with a literal address, or `unix:PATH` with an absolute path."""
    if value.startswith("unix:"):
        path = value.removeprefix("unix://").removeprefix("unix:")
        if not path.startswith("/"):
            message = "a Unix socket is written unix:///absolute/path"
            raise ValueError(message)
        return f"unix:{path}"
    host, _, port = value.rpartition(":")
    in_brackets = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if in_brackets else host)
        valid = (address.version == 6) is in_brackets and port.isascii() and port.isdecimal()  # noqa: PLR2004
        valid = valid and int(port) <= _LAST_PORT
    except ValueError:
        valid = False
    if not valid:
        message = "write ADDRESS:PORT with a literal address (127.0.0.1:50051, [::1]:50051), or unix:///absolute/path"
        raise ValueError(message)
    return value


ListenAddress = Annotated[str, AfterValidator(_listen_address)]


def _tcp_address(value: str | None) -> str | None:
    """Accept what `_listen_address` made, but no Unix socket: scrapers and probes do not speak to one."""
    if value is not None and value.startswith("unix:"):
        message = "write ADDRESS:PORT; a Unix socket is for callers and operators only"
        raise ValueError(message)
    return value


def _none_if_empty(value: Any) -> Any:
    """TOML and the environment have no null: an empty text says that there is none."""
    return None if value == "" else value


def is_loopback(address: str) -> bool:
    """Say whether a listen address can be reached from this machine only."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    return ipaddress.ip_address(host).is_loopback


class BrokerSection(_Section):
    """The broker as a whole."""

    state_dir: Path | None = None
    """Where the embedded database, the key ring and the audit log stand; unset, `$XDG_STATE_HOME/credential-broker`."""
    default_identity: Name | None = None
    """The identity of a call that names none."""
    max_lease_seconds: Seconds = 300.0
    """The longest any answer may be kept by a caller."""
    max_staleness_seconds: Annotated[float, Field(ge=0, le=7 * 86400, allow_inf_nan=False)] = 3600.0
    """How long answers go on without contact to the store; 0 refuses once it was away for 5 s."""
    refresh_recent_seconds: Seconds = 3600.0
    """Bearers are refreshed ahead of their end for identities that were used, or watched, within this time. The others
    are refreshed when they are used again."""
    grant_bootstrap: bool = False
    """Whether callers may have the `bootstrap` scopes, with which the broker itself registers."""
    rejection_window_seconds: Annotated[float, Field(ge=1, le=86400, allow_inf_nan=False)] = 600.0
    """How long a step that was taken because a backend rejected a credential (a fresh task, a refresh, another agent)
    is not taken again, and a route that alone rejects assertions is believed to."""
    reflection: bool = False
    """Whether gRPC server reflection is answered."""
    drain_seconds: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = 2.0
    """How long health says NOT_SERVING before listeners stop accepting, so that balancers notice."""
    drain_grace_seconds: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = 15.0
    """How long accepted calls may take to end after that."""


class TlsSection(_Section):
    """TLS of the TCP listeners, from PEM files that are read again when they change."""

    certificate_file: Path
    """The certificate of the broker, with the chain behind it."""
    private_key_file: Path
    """Its private key, unencrypted."""
    client_ca_file: Path | None = None
    """When set, callers must show a certificate that one of these authorities signed."""


class ListenSection(_Section):
    """Where the broker listens."""

    callers: tuple[ListenAddress, ...] = ("127.0.0.1:50051",)
    """Where callers are answered: `ADDRESS:PORT` with a literal address, or `unix:///absolute/path`."""
    admin: tuple[ListenAddress, ...] = ("127.0.0.1:50052",)
    """Where operators are answered."""
    http: Annotated[ListenAddress | None, BeforeValidator(_none_if_empty), AfterValidator(_tcp_address)] = (
        "127.0.0.1:9464"
    )
    """`/metrics`, `/livez`, `/readyz`; plaintext, so that probes work when TLS is on. An empty text switches it off."""
    tls: TlsSection | None = None
    """TLS of the TCP addresses of callers and operators; without it they speak plaintext."""


class StoreSection(_Section):
    """The database."""

    url: str | None = None
    """`sqlite:///absolute/path`; unset, `broker.db` in the state directory."""
    busy_timeout_seconds: Seconds = 5.0
    """How long a statement waits for a lock that another process holds; then the store counts as down."""
    poll_seconds: Annotated[float, Field(ge=0.02, le=5, allow_inf_nan=False)] = 0.1
    """How often changes of other processes are looked for: a revocation is heeded by all of them within little more."""


class LogSection(_Section):
    """Events on standard error, one a line."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least urgent events that are written."""
    format: Literal["auto", "json", "console"] = "auto"
    """`auto` is `console` on a terminal and `json` elsewhere."""


class AuditSection(_Section):
    """The record of every grant."""

    file: Path | None = None
    """Where its lines are appended; unset, `audit.jsonl` in the state directory. While another broker holds that file
    the next free neighbour is taken: `audit-2.jsonl`, ..."""


class LimitsSection(_Section):
    """Ceilings, so that memory and time are bounded."""

    caller_deadline_seconds: Seconds = 10.0
    """The longest a call of a caller may take, whatever deadline it asks for."""
    admin_deadline_seconds: Seconds = 60.0
    """The same for calls of operators."""
    cached_threads: Annotated[int, Field(ge=100, le=10_000_000)] = 100_000
    """How many threads' tasks are kept in memory; the least recently used go first and are loaded again."""
    registration_lease_seconds: Seconds = 45.0
    """How long a claim is held for one registration; longer than any registration may take."""
    registrations_in_flight: Annotated[int, Field(ge=1, le=1000)] = 32
    """How many tasks may be under registration at one time at each backend, by this process; further ones wait."""
    tombstone_seconds: Seconds = 30 * 86400.0
    """How long an ended task is remembered as ended."""
    watch_streams: Annotated[int, Field(ge=1, le=100_000)] = 4096
    """How many WatchAuthorizations streams one caller may have open at one time in this process."""
    watch_subscriptions: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000
    """How many subscriptions all watch streams of one caller may have together."""
    watch_write_seconds: Seconds = 10.0
    """How long a message of a watch stream may wait for its reader; then the stream ends with WATCHER_TOO_SLOW."""
    watch_heartbeat_seconds: Seconds = 20.0
    """After how long a silent watch stream gets a heartbeat; shorter than proxies let connections idle."""
    task_idle_seconds: Annotated[float, Field(ge=60, le=10 * 365 * 86400, allow_inf_nan=False)] = 7 * 86400.0
    """A task that nobody used for so long is forgotten; its next use registers it anew."""


class ScopeSection(_Section):
    """One scope: an override of a built-in one, or a new one."""

    credential: Credential | None = None
    """Which credential the scope asks for; unset is what the catalogue or the nearest parent says."""
    task: TaskNeed | None = None
    """Whose task an assertion is signed for; unset as for `credential`."""
    enabled: bool | None = None
    """Whether anything is handed out for it; unset as for `credential`."""
    min_lifetime_seconds: Seconds | None = None
    """The shortest remaining life with which anything is handed out."""
    max_lifetime_seconds: Seconds | None = None
    """The longest an answer for this scope may be kept."""
    description: str | None = None
    """What the scope is for, as ListScopes shows it."""


class BackendSection(_Section):
    """One backend: where it is and how it speaks."""

    profile: str = DEFAULT_PROFILE
    """Which generation of the protocol it speaks."""
    base_url: str = "https://chatgpt.com/backend-api"
    """Where it is; its origin is the one that credentials may go to."""
    authapi_base_url: str | None = None
    """Where agents and tasks are registered, for profiles that use the AuthAPI; unset, that of the public
    environment that `base_url` belongs to."""
    jwks_base_url: str | None = None
    """Where the keys that sign identity JWTs are found; unset, `base_url`."""
    allowed_origins: tuple[str, ...] = ()
    """Origins a call may name in `target_url` beside the one of `base_url`."""
    assertions: bool = True
    """The feature switch: without it only bearers are handed out for this backend."""
    assertion_routes: dict[str, bool] = {}
    """Scope (or root of scopes) to whether the backend takes assertions there; overrides the profile's."""
    assertion_lifetime_seconds: Annotated[float, Field(ge=1, le=300, allow_inf_nan=False)] | None = None
    """How long an assertion is handed out after it was signed; unset is the profile's."""
    task_lifetime_seconds: Annotated[float, Field(ge=60, le=365 * 86400, allow_inf_nan=False)] = DEFAULT_TASK_LIFETIME
    """How long a task is used after it was registered, at most. No backend publishes how long it keeps one, so this is
    the broker's own bound: tasks in use are replaced in the last tenth of it, with nobody waiting."""
    agent_harness_id: str = "credential-broker"
    """What agent registrations say of the program that the agent runs in."""
    running_location: str = "broker-linux"
    """What agent registrations say of where it runs."""
    max_clock_offset_seconds: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 300.0
    """Up to which difference the backend's clock is followed when signing; beyond it calls fail with CLOCK_SKEW."""


class _SourceSection(_Section):
    """What every kind of bearer source has."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """Where its bearers come from, on one line."""

    def problems(self, *, dev: bool) -> Iterator[str]:  # noqa: ARG002 - of kinds that have something to look at
        """Find what does not fit together, each with the key that it is about."""
        return iter(())


class StaticSourceSection(_SourceSection):
    """A token that never changes: an API key. Its file is read once, at the start."""

    type: Literal["static"]
    """Says that it is of this kind."""
    path: Path
    """The file that holds the token: one line, and not writable by everybody."""
    lifetime_seconds: Seconds | None = None
    """How long a token may be used from when it was read, where the token itself does not say."""

    @property
    def summary(self) -> str:
        """Where its bearers come from, on one line."""
        return str(self.path)


class FileSourceSection(_SourceSection):
    """A token in a file that something else renews; the file is looked into every second."""

    type: Literal["file"]
    """Says that it is of this kind."""
    path: Path
    """The file that holds the token: one line, and not writable by everybody."""
    lifetime_seconds: Seconds | None = None
    """How long a token may be used from when it was read, where the token itself does not say."""

    @property
    def summary(self) -> str:
        """Where its bearers come from, on one line."""
        return str(self.path)


class JwtIdentitySourceSection(_SourceSection):
    """No bearer at all: for identities whose only login is their Agent Identity JWT. Such a source has no settings."""

    type: Literal["jwt_identity"]
    """Says that it is of this kind."""

    @property
    def summary(self) -> str:
        """Where its bearers come from, on one line."""
        return "none"


class _RefreshedSection(_SourceSection):
    """A source whose bearers are refreshed ahead of their end."""

    advisory_seconds: Seconds | None = None
    """How long before its end a bearer is refreshed while it is still handed out; at most half of its life. Unset, a
    quarter of its life, at most 15 minutes."""
    mandatory_seconds: Seconds | None = None
    """How long before its end callers wait for the new one; at most half of its life. Unset, a twentieth of its life,
    at least 10 s and at most a minute."""

    def problems(self, *, dev: bool) -> Iterator[str]:
        """Find what does not fit together, each with the key that it is about."""
        yield from super().problems(dev=dev)
        advisory, mandatory = self.advisory_seconds, self.mandatory_seconds
        if advisory is not None and mandatory is not None and advisory < mandatory:
            yield "advisory_seconds: must not be shorter than mandatory_seconds"


class _IssuerSection(_RefreshedSection):
    """A source that exchanges something for tokens at an issuer's token endpoint."""

    refreshes_per_second: Annotated[float, Field(ge=0.01, le=10_000, allow_inf_nan=False)] = 20.0
    """How many exchanges this process begins within a second at the issuer; where several sources have the same
    issuer (the origin of `token_url`), the least of theirs counts for all of them. Whoever waits for a token goes
    first."""
    timeout_seconds: Annotated[float, Field(ge=0.1, le=120, allow_inf_nan=False)] = 10.0
    """How long one exchange may take."""

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """The URL of the token endpoint."""

    @property
    def summary(self) -> str:
        """Where its bearers come from, on one line."""
        return self.endpoint

    def problems(self, *, dev: bool) -> Iterator[str]:
        """Find what does not fit together, each with the key that it is about."""
        yield from super().problems(dev=dev)
        try:
            parse_origin(self.endpoint, allow_loopback_http=dev)
        except OriginError as error:
            yield f"token_url: {error}"
        else:
            if "?" in self.endpoint:
                yield "token_url: must not have a query"


class OauthSourceSection(_IssuerSection):
    """
    The issuer of logins that are refreshed with a refresh token (RFC 6749 section 6).

    The tokens are each identity's own: they come in with `identity create`, `identity import` or `identity
    reauthenticate`.
    """

    type: Literal["oauth"]
    """Says that it is of this kind."""
    token_url: str = "https://auth.openai.com/oauth/token"  # noqa: S105 - an address
    """The issuer's token endpoint."""
    client_id: Text = "app_EMoamEEZ73f0CkXaXp7hrann"
    """As which client the broker refreshes: the one that the logins were made with."""
    client_secret_file: Path | None = None
    """The file that holds the client's secret, for clients that have one; read again for each exchange."""
    lease_seconds: Annotated[float, Field(ge=1, le=600, allow_inf_nan=False)] = 45.0
    """How long a refresh is claimed for one process; after that another finds out what came of it. Longer than
    `timeout_seconds`."""

    @property
    def endpoint(self) -> str:
        """The URL of the token endpoint."""
        return self.token_url

    def problems(self, *, dev: bool) -> Iterator[str]:
        """Find what does not fit together, each with the key that it is about."""
        yield from super().problems(dev=dev)
        if self.lease_seconds <= self.timeout_seconds:
            yield "lease_seconds: must be longer than timeout_seconds"


class ClientCredentialsSourceSection(_IssuerSection):
    """Tokens that the broker asks for in a name of its own (RFC 6749 section 4.4)."""

    type: Literal["client_credentials"]
    """Says that it is of this kind."""
    token_url: str
    """The issuer's token endpoint."""
    client_id: Text
    """The name that the broker is registered under."""
    client_secret_file: Path
    """The file that holds its secret: one line, and not writable by everybody; read again for each exchange."""
    auth: Literal["basic", "post"] = "basic"
    """How the secret is shown: `basic` in the Authorization header, `post` in the form."""
    scopes: tuple[ScopeToken, ...] = ()
    """What the token shall be good for; none leaves it to the issuer."""
    audience: Text | None = None
    """Whom the token shall be for, where the issuer wants to be told (`audience`)."""
    resource: Text | None = None
    """The same as the URI of RFC 8707 (`resource`)."""
    lifetime_seconds: Seconds | None = None
    """How long a token may be used, where neither the answer nor the token itself says."""

    @property
    def endpoint(self) -> str:
        """The URL of the token endpoint."""
        return self.token_url


class WorkloadIdentitySourceSection(_IssuerSection):
    """Tokens for which a projected token of the platform is exchanged: Kubernetes, a CI system, a cloud."""

    type: Literal["workload_identity"]
    """Says that it is of this kind."""
    grant: Literal["jwt_bearer", "token_exchange"] = "jwt_bearer"
    """How: `jwt_bearer` as OpenAI's workload identity has it, `token_exchange` by RFC 8693."""
    token_url: str | None = None
    """The issuer's token endpoint; unset, that of OpenAI, for `jwt_bearer` only."""
    identity_token_file: Path
    """The file, absolute, that the platform's token is read from for each exchange."""
    federation_rule_id: Text | None = None
    """`jwt_bearer`, required: the rule by which the issuer trusts the platform."""
    context_file: Path | None = None
    """`jwt_bearer`: the file that holds the workload identity context, where one is used."""
    account_id: Text | None = None
    """`jwt_bearer`: the only account that tokens may be of; unset, the account of the first one."""
    subject_token_type: Text = "urn:ietf:params:oauth:token-type:jwt"  # noqa: S105 - the name of a kind
    """`token_exchange`: what the platform's token is."""
    scopes: tuple[ScopeToken, ...] = ()
    """`token_exchange`: what the token shall be good for; none leaves it to the issuer."""
    audience: Text | None = None
    """`token_exchange`: whom the token shall be for (`audience`)."""
    resource: Text | None = None
    """`token_exchange`: the same as a URI (`resource`)."""
    client_id: Text | None = None
    """`token_exchange`: as which client, where the issuer wants one."""
    client_secret_file: Path | None = None
    """`token_exchange`: the file that holds the client's secret, where it has one; needs `client_id`."""
    auth: Literal["basic", "post"] = "basic"
    """`token_exchange`: how the secret is shown: `basic` in the Authorization header, `post` in the form."""
    lifetime_seconds: Seconds | None = None
    """`token_exchange`: how long a token may be used, where neither the answer nor the token itself says."""
    advisory_seconds: Seconds | None = None
    """How long before its end a bearer is refreshed while it is still handed out; at most half of its life. Unset, a
    quarter of its life and at most 15 minutes, for `jwt_bearer` half of it and at most 2 minutes."""
    timeout_seconds: Annotated[float, Field(ge=0.1, le=120, allow_inf_nan=False)] = 30.0
    """How long one exchange may take."""

    @property
    def endpoint(self) -> str:
        """The URL of the token endpoint."""
        return self.token_url or _OPENAI_TOKEN_URL

    def problems(self, *, dev: bool) -> Iterator[str]:
        """Find what does not fit together, each with the key that it is about."""
        yield from super().problems(dev=dev)
        if not self.identity_token_file.is_absolute():
            yield "identity_token_file: must be an absolute path"
        if self.grant == "jwt_bearer" and self.federation_rule_id is None:
            yield "federation_rule_id: is required for grant jwt_bearer"
        if self.grant == "token_exchange" and self.token_url is None:
            yield "token_url: is required for grant token_exchange"
        if self.client_secret_file is not None and self.client_id is None:
            yield "client_id: is required with client_secret_file"
        of_the_other = _TOKEN_EXCHANGE_KEYS if self.grant == "jwt_bearer" else _JWT_BEARER_KEYS
        for key in sorted(self.model_fields_set & of_the_other):
            yield f"{key}: has no meaning for grant {self.grant}"


class CommandSourceSection(_RefreshedSection):
    """Tokens that a program prints: a cloud's command line, a password manager."""

    type: Literal["command"]
    """Says that it is of this kind."""
    command: Annotated[tuple[Text, ...], Field(min_length=1)]
    """The program, by its absolute path, and its arguments; no shell is between. The first line it prints is the
    token. No secret may stand here: everybody on the machine sees the arguments."""
    pass_environment: tuple[Text, ...] = ()
    """The environment variables of the broker that the program gets, beside `PATH`, `HOME` and `LANG`."""
    timeout_seconds: Annotated[float, Field(ge=0.1, le=120, allow_inf_nan=False)] = 10.0
    """How long it may run; then it is killed, with all that it began."""
    lifetime_seconds: Seconds | None = None
    """How long a token may be used from when the program was begun, where the token itself does not say."""

    @property
    def summary(self) -> str:
        """Where its bearers come from, on one line."""
        return self.command[0]

    def problems(self, *, dev: bool) -> Iterator[str]:
        """Find what does not fit together, each with the key that it is about."""
        yield from super().problems(dev=dev)
        if not Path(self.command[0]).is_absolute():
            yield "command: the program must be named by its absolute path"


_JWT_BEARER_KEYS: Final = frozenset({"federation_rule_id", "context_file", "account_id"})
_TOKEN_EXCHANGE_KEYS: Final = frozenset(
    {
        "subject_token_type",
        "scopes",
        "audience",
        "resource",
        "client_id",
        "client_secret_file",
        "auth",
        "lifetime_seconds",
    }
)
_OPENAI_TOKEN_URL: Final = "https://auth.openai.com/oauth/token"  # noqa: S105 - an address

BearerSourceSection = Annotated[
    StaticSourceSection
    | FileSourceSection
    | OauthSourceSection
    | ClientCredentialsSourceSection
    | WorkloadIdentitySourceSection
    | CommandSourceSection
    | JwtIdentitySourceSection,
    Field(discriminator="type"),
]
"""One named source of bearers, by its `type`."""

_SOURCE_SECTIONS: Final[dict[str, type[_SourceSection]]] = {
    get_args(section.model_fields["type"].annotation)[0]: section
    for section in get_args(get_args(BearerSourceSection)[0])
}
_KIND: Final = 2
"""Where in the location of a problem the kind of a source stands."""


class Config(_Section):
    """All settings of one broker."""

    broker: BrokerSection = BrokerSection()
    listen: ListenSection = ListenSection()
    store: StoreSection = StoreSection()
    log: LogSection = LogSection()
    audit: AuditSection = AuditSection()
    limits: LimitsSection = LimitsSection()
    scopes: dict[str, ScopeSection] = {}
    backends: Annotated[dict[Name, BackendSection], Field(min_length=1)] = {"default": BackendSection()}
    bearer_sources: dict[Name, BearerSourceSection] = {}
    dev: bool = Field(default=False, exclude=True)
    """Set by `--dev` only, never by a file: allows plain http to loopback literals, and loopback listeners only."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        problems = [*self._backend_problems(), *self._listen_problems(), *self._source_problems()]
        try:
            self.scope_catalogue()
        except ScopeCatalogueError as error:
            problems += error.problems
        if problems:
            raise _ProblemsError(problems)
        return self

    def _backend_problems(self) -> list[str]:
        problems = []
        for name, backend in self.backends.items():
            if backend.profile not in PRESETS:
                problems.append(
                    f"backends.{name}.profile: there is no profile {backend.profile!r}; known: {', '.join(PRESETS)}"
                )
                # Without a profile only each URL by itself can be looked at.
                for key in ("base_url", "authapi_base_url", "jwks_base_url"):
                    try:
                        parse_origin(getattr(backend, key) or "https://unset.invalid", allow_loopback_http=self.dev)
                    except OriginError as error:
                        problems.append(f"backends.{name}.{key}: {error}")
            else:
                try:
                    resolve_urls(
                        PRESETS[backend.profile],
                        base_url=backend.base_url,
                        authapi_base_url=backend.authapi_base_url,
                        jwks_base_url=backend.jwks_base_url,
                        allow_loopback_http=self.dev,
                    )
                except BaseUrlError as error:
                    problems.append(f"backends.{name}: {error}")
            for index, url in enumerate(backend.allowed_origins):
                try:
                    parse_origin(url, allow_loopback_http=self.dev)
                except OriginError as error:
                    problems.append(f"backends.{name}.allowed_origins[{index}]: {error}")
        return problems

    def _source_problems(self) -> list[str]:
        return [
            f"bearer_sources.{name}.{problem}"
            for name, source in self.bearer_sources.items()
            for problem in source.problems(dev=self.dev)
        ]

    def _listen_problems(self) -> list[str]:
        addresses = [
            *(("callers", address) for address in self.listen.callers),
            *(("admin", address) for address in self.listen.admin),
            *([("http", self.listen.http)] if self.listen.http else []),
        ]
        return [
            f"listen.{key}: {address} can be reached from other machines; until callers are authenticated the broker"
            " listens on loopback (127.0.0.1, [::1]) and Unix sockets only"
            for key, address in addresses
            if not is_loopback(address)
        ]

    def scope_catalogue(self) -> dict[str, ScopeRule]:
        """Return every scope that exists, with its rule."""
        return build_catalogue(
            {
                name: ScopeOverride(
                    credential=scope.credential,
                    task=scope.task,
                    enabled=scope.enabled,
                    min_lifetime=scope.min_lifetime_seconds,
                    max_lifetime=scope.max_lifetime_seconds,
                    description=scope.description,
                )
                for name, scope in self.scopes.items()
            }
        )

    @property
    def state_dir(self) -> Path:
        """The state directory, absolute."""
        return (self.broker.state_dir or default_state_dir()).absolute()

    @property
    def store_url(self) -> str:
        """The database's URL."""
        return self.store.url or f"sqlite:///{self.state_dir / 'broker.db'}"

    @property
    def audit_file(self) -> Path:
        """The audit log."""
        return self.audit.file or self.state_dir / "audit.jsonl"


class _ProblemsError(ValueError):
    """Several problems that one validator found; unpacked again by `_explain`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def default_state_dir() -> Path:
    """Return `$XDG_STATE_HOME/credential-broker`, by default `~/.local/state/credential-broker`."""
    base = os.environ.get("XDG_STATE_HOME")  # noqa: TID251 - this module is where settings are read
    return Path(base or Path.home() / ".local" / "state") / "credential-broker"


def load_config(
    path: Path | None,
    environment: Mapping[str, str],
    *,
    dev: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """
    Read the settings: `overrides` (from the command line) before the environment before the file before the defaults.

    Raises:
        StartupError: exit code 78, naming every problem.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StartupError(f"{path}: there is no such file; --config names the configuration") from None
        except (OSError, UnicodeDecodeError) as error:
            raise StartupError(f"{path}: cannot be read: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise StartupError(f"{path}: is not TOML: {error}") from error
    problems, variables = _overlay_environment(values, environment)
    for section, settings in (overrides or {}).items():
        if isinstance(values.setdefault(section, {}), dict):  # else it is told below
            values[section].update(settings)
    if "dev" in values:
        problems.append("dev: is not a setting; dev mode is chosen on the command line")
        del values["dev"]
    try:
        config = Config(**values, dev=dev)
    except ValidationError as error:
        problems += _explain(error)
        problems += _problems_of_the_rest(values, error, dev=dev)
        raise StartupError(*(_naming_its_variable(problem, variables) for problem in problems)) from None
    if problems:
        raise StartupError(*problems)
    return config


def _overlay_environment(values: dict[str, Any], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """
    Write `CREDENTIAL_BROKER_<SECTION>__<KEY>` over `values`; a list or table is written as in TOML.

    Returns the problems, and which variable set which setting.
    """
    problems = []
    variables: dict[str, str] = {}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or "__" not in variable:
            continue
        *sections, key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        value: Any = text
        if text[:1] in ("[", "{"):
            # What is neither a list nor a table is a text that begins like one: an IPv6 address.
            with contextlib.suppress(tomllib.TOMLDecodeError):
                value = tomllib.loads(f"value = {text}")["value"]
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                problems.append(f"{variable}: {section} is not a section")
                break
        else:
            target[key] = value
            variables[".".join((*sections, key))] = variable
    return problems, variables


def _naming_its_variable(problem: str, variables: Mapping[str, str]) -> str:
    """Name the environment variable in a problem with what it set: in the file nobody would find it."""
    variable = variables.get(problem.partition(": ")[0])
    return problem if variable is None else f"{problem} (set by {variable})"


_WORDS: Final = {
    "missing": "is required",
    "string_type": "must be a text",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "is not of the form {pattern}",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "greater_than": "must be more than {gt:,.15g}",
    "greater_than_equal": "must be at least {ge:,.15g}",
    "less_than_equal": "must be at most {le:,.15g}",
}
"""What pydantic finds, by its name for it, in the words of a settings file; for the rest its own text is plain."""


def _explain(error: ValidationError) -> list[str]:
    problems: list[str] = []
    for detail in error.errors(include_url=False):
        place = ".".join(str(part) for part in _location(detail["loc"]))
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, _ProblemsError):
            problems += cause.problems
        elif detail["type"] == "extra_forbidden":
            suggestion = _suggestion(detail["loc"], is_table=isinstance(detail["input"], dict))
            problems.append(f"{place}: there is no such setting{suggestion}")
        elif detail["type"].startswith("union_tag_"):
            problems.append(f"{place}.type: must be one of {', '.join(_SOURCE_SECTIONS)}")
        else:
            words = _WORDS.get(detail["type"])
            problem = words.format(**detail.get("ctx", {})) if words else detail["msg"].removeprefix("Value error, ")
            problems.append(f"{place.removesuffix('.[key]')}: {problem}")
    return problems


def _problems_of_the_rest(values: dict[str, Any], error: ValidationError, *, dev: bool) -> list[str]:
    """Return what does not fit together among the settings that `error` does not name: that is looked at last."""
    rest = copy.deepcopy(values)
    for detail in error.errors(include_url=False):
        if not detail["loc"]:
            return []  # it was looked at
        _leave_out(rest, _location(detail["loc"]))
    try:
        Config(**rest, dev=dev)
    except ValidationError as second:
        causes = [detail.get("ctx", {}).get("error") for detail in second.errors(include_url=False)]
        if found := [problem for cause in causes if isinstance(cause, _ProblemsError) for problem in cause.problems]:
            return found
        # Something that is required was wrong and is missing now: its table goes as well.
        return [] if rest == values else _problems_of_the_rest(rest, second, dev=dev)
    return []


def _location(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return where a problem is in the file: pydantic names the kind of a bearer source behind the source's name."""
    if location[:1] == ("bearer_sources",) and len(location) > _KIND and location[_KIND] in _SOURCE_SECTIONS:
        return (*location[:_KIND], *location[_KIND + 1 :])
    return location


def _leave_out(values: dict[str, Any], location: tuple[int | str, ...]) -> None:
    """Remove the setting at `location`; where something is missing there, the table that misses it."""
    way: list[tuple[dict[Any, Any], int | str]] = []
    table: Any = values
    for part in location:
        if not isinstance(table, dict) or part not in table:
            break
        way.append((table, part))
        table = table[part]
    if way and len(way) >= len(location) - 1:  # else that table was left out for another problem
        holder, key = way[-1]
        del holder[key]


def _suggestion(location: tuple[int | str, ...], *, is_table: bool) -> str:
    """Offer the setting that was probably meant."""
    model: Any = Config
    if location != _location(location):
        model, location = _SOURCE_SECTIONS[str(location[_KIND])], location[_KIND:]
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(str(part))
        annotation = field.annotation if field else model
        model = next(
            (
                candidate
                for candidate in (annotation, *getattr(annotation, "__args__", ()))
                if isinstance(candidate, type) and issubclass(candidate, BaseModel)
            ),
            model,
        )
    if is_table and model is ScopeSection:
        name = ".".join(str(part) for part in location[1:])
        return f'; the name of a scope is quoted: [scopes."{name}"]'
    known = [name for name, field in getattr(model, "model_fields", {}).items() if not field.exclude]
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
