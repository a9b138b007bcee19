"""All settings of one broker, and what must fit together among them."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from broker.config.fields import Name, Section, is_loopback
from broker.config.sections import (
    AuditSection,
    BackendSection,
    BrokerSection,
    LimitsSection,
    ListenSection,
    LogSection,
    ScopeSection,
    StoreSection,
)
from broker.config.sources import BearerSourceSection
from broker.origins import OriginError, parse_origin
from broker.profiles import PRESETS, BaseUrlError, resolve_urls
from broker.scopes import ScopeCatalogueError, ScopeOverride, ScopeRule, build_catalogue


class Config(Section):
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
            raise ProblemsError(problems)
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


class ProblemsError(ValueError):
    """Several problems that one validator found; `broker.config.loading` unpacks them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def default_state_dir() -> Path:
    """Return `$XDG_STATE_HOME/credential-broker`, by default `~/.local/state/credential-broker`."""
    base = os.environ.get("XDG_STATE_HOME")  # noqa: TID251 - this module is where settings are read
    return Path(base or Path.home() / ".local" / "state") / "credential-broker"
