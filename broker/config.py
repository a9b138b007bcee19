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
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

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
    grant_bootstrap: bool = False
    """Whether callers may have the `bootstrap` scopes, with which the broker itself registers."""
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
    """Where its lines are appended; unset, `audit.jsonl` in the state directory."""


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


class BearerSourceSection(_Section):
    """One named source of bearers; the module `broker.bearer.<type>` reads it."""

    type: Literal["static", "file"]
    """`static` reads the file once, `file` again whenever it changes."""
    path: Path
    """The file that holds the token: one line, and not writable by everybody."""
    lifetime_seconds: Seconds | None = None
    """How long a token may be used from when it was read, where the token itself does not say."""


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
        problems = [*self._backend_problems(), *self._listen_problems()]
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


def _explain(error: ValidationError) -> list[str]:
    problems: list[str] = []
    for detail in error.errors(include_url=False):
        place = ".".join(str(part) for part in detail["loc"])
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, _ProblemsError):
            problems += cause.problems
        elif detail["type"] == "extra_forbidden":
            suggestion = _suggestion(detail["loc"], is_table=isinstance(detail["input"], dict))
            problems.append(f"{place}: there is no such setting{suggestion}")
        else:
            problems.append(f"{place}: {detail['msg'].removeprefix('Value error, ')}")
    return problems


def _problems_of_the_rest(values: dict[str, Any], error: ValidationError, *, dev: bool) -> list[str]:
    """Return what does not fit together among the settings that `error` does not name: that is looked at last."""
    rest = copy.deepcopy(values)
    for detail in error.errors(include_url=False):
        if not detail["loc"]:
            return []  # it was looked at
        _leave_out(rest, detail["loc"])
    try:
        Config(**rest, dev=dev)
    except ValidationError as second:
        causes = [detail.get("ctx", {}).get("error") for detail in second.errors(include_url=False)]
        return [problem for cause in causes if isinstance(cause, _ProblemsError) for problem in cause.problems]
    return []


def _leave_out(values: dict[str, Any], location: tuple[int | str, ...]) -> None:
    """Remove the setting at `location`; where something is missing there, the table that misses it."""
    way: list[tuple[dict[Any, Any], int | str]] = []
    table: Any = values
    for part in location:
        if not isinstance(table, dict) or part not in table:
            break
        way.append((table, part))
        table = table[part]
    if way:
        holder, key = way[-1]
        del holder[key]


def _suggestion(location: tuple[int | str, ...], *, is_table: bool) -> str:
    """Offer the setting that was probably meant."""
    model: Any = Config
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
