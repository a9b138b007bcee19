"""The tables of the settings, but for the sources of bearers."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from broker.backends import DEFAULT_TASK_LIFETIME
from broker.config.fields import HttpAddress, ListenAddress, Name, Seconds, Section
from broker.profiles import DEFAULT_PROFILE
from broker.scopes import Credential, TaskNeed


class BrokerSection(Section):
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


class TlsSection(Section):
    """TLS of the TCP listeners, from PEM files that are read again when they change."""

    certificate_file: Path
    """The certificate of the broker, with the chain behind it."""
    private_key_file: Path
    """Its private key, unencrypted."""
    client_ca_file: Path | None = None
    """When set, callers must show a certificate that one of these authorities signed."""


class ListenSection(Section):
    """Where the broker listens."""

    callers: tuple[ListenAddress, ...] = ("127.0.0.1:50051",)
    """Where callers are answered: `ADDRESS:PORT` with a literal address, or `unix:///absolute/path`."""
    admin: tuple[ListenAddress, ...] = ("127.0.0.1:50052",)
    """Where operators are answered."""
    http: HttpAddress = "127.0.0.1:9464"
    """`/metrics`, `/livez`, `/readyz`; plaintext, so that probes work when TLS is on. An empty text switches it off."""
    tls: TlsSection | None = None
    """TLS of the TCP addresses of callers and operators; without it they speak plaintext."""


class StoreSection(Section):
    """The database."""

    url: str | None = None
    """`sqlite:///absolute/path`; unset, `broker.db` in the state directory."""
    busy_timeout_seconds: Seconds = 5.0
    """How long a statement waits for a lock that another process holds; then the store counts as down."""
    poll_seconds: Annotated[float, Field(ge=0.02, le=5, allow_inf_nan=False)] = 0.1
    """How often changes of other processes are looked for: a revocation is heeded by all of them within little more."""


class LogSection(Section):
    """Events on standard error, one a line."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least urgent events that are written."""
    format: Literal["auto", "json", "console"] = "auto"
    """`auto` is `console` on a terminal and `json` elsewhere."""


class AuditSection(Section):
    """The record of every grant."""

    file: Path | None = None
    """Where its lines are appended; unset, `audit.jsonl` in the state directory. While another broker holds that file
    the next free neighbour is taken: `audit-2.jsonl`, ..."""


class LimitsSection(Section):
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


class ScopeSection(Section):
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


class BackendSection(Section):
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
