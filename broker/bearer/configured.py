"""The bearer sources that the configuration names, put together; nothing is asked of anybody by that."""

import os
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from broker.auth_json import unverified_expire_time
from broker.bearer import Bearer, BearerSource
from broker.bearer.client_credentials import ClientCredentials
from broker.bearer.command import CommandExchange
from broker.bearer.file import BearerFileError, FileSource, read_token
from broker.bearer.jwt_identity import JwtIdentitySource
from broker.bearer.kept import Exchange, KeptBearer, Windows, never_changed
from broker.bearer.oauth import Issuer
from broker.bearer.refresh_grant import RefreshGrant
from broker.bearer.static import StaticSource
from broker.bearer.token_endpoint import Client, ProofFile, TokenEndpoint
from broker.bearer.turns import Turns
from broker.bearer.workload_identity import (
    LARGEST_ANSWER_BYTES,
    WORKLOAD_IDENTITY_WINDOWS,
    TokenExchange,
    WorkloadIdentity,
)
from broker.clock import Clock
from broker.config import Config
from broker.config.sources import (
    BearerSourceSection,
    ClientCredentialsSourceSection,
    CommandSourceSection,
    FileSourceSection,
    JwtIdentitySourceSection,
    OauthSourceSection,
    StaticSourceSection,
    WorkloadIdentitySourceSection,
)
from broker.errors import StartupError
from broker.origins import Origin, parse_origin
from broker.outbound import GuardedHttp, HttpLimits
from broker.telemetry import Metrics

_Exchanged = ClientCredentialsSourceSection | WorkloadIdentitySourceSection
_Issuing = OauthSourceSection | _Exchanged

_RUNS_PER_SECOND: Final = 1.0
_ALWAYS_PASSED: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8"}
"""What a program gets where the broker itself has none of these variables."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What sources are put together with."""

    config: Config
    lines: Mapping[Origin, Turns]
    """As `issuer_lines` returned them."""
    clock: Clock
    metrics: Metrics
    jitter: random.Random
    on_change: Callable[[], None]
    """Told after each bearer that an exchange or a file brought."""


def issuer_lines(config: Config, clock: Clock) -> dict[Origin, Turns]:
    """Return the line of each issuer, at the least rate that a source of it has."""
    rates: dict[Origin, float] = {}
    for section in config.bearer_sources.values():
        if isinstance(section, _Issuing):
            issuer = parse_origin(section.endpoint, allow_loopback_http=config.dev)
            rates[issuer] = min(rates.get(issuer, section.refreshes_per_second), section.refreshes_per_second)
    return {issuer: Turns(rate, clock) for issuer, rate in rates.items()}


def open_sources(around: Surroundings) -> dict[str, BearerSource]:
    """
    Return the sources that the configuration names, but for issuers of logins (`oauth`): each login is its own source.

    Raises:
        StartupError: a static token cannot be read; all of those are named.
    """
    sources: dict[str, BearerSource] = {}
    problems = []
    for name, section in around.config.bearer_sources.items():
        try:
            source = _source(name, section, around)
        except BearerFileError as error:
            problems.append(f"bearer_sources.{name}: {error}")
        else:
            if source is not None:
                sources[name] = source
    if problems:
        raise StartupError(*problems)
    return sources


def open_issuers(around: Surroundings) -> dict[str, Issuer]:
    """Return the issuers of logins that the configuration names."""
    issuers = {}
    for name, section in around.config.bearer_sources.items():
        if isinstance(section, OauthSourceSection):
            grant = RefreshGrant(
                _http(section, around),
                around.clock,
                token_url=section.endpoint,
                client_id=section.client_id,
                client_secret_file=section.client_secret_file,
                timeout=section.timeout_seconds,
            )
            issuers[name] = Issuer(
                name,
                grant,
                _turns(section, around),
                lease_seconds=section.lease_seconds,
                patience=section.timeout_seconds,
                windows=_windows(section),
            )
    return issuers


def _source(  # noqa: PLR0911 - a table
    name: str, section: BearerSourceSection, around: Surroundings
) -> BearerSource | None:
    match section:
        case StaticSourceSection():
            return _static(section, around.clock)
        case FileSourceSection():
            return FileSource(section.path, around.clock, lifetime=section.lifetime_seconds, on_change=around.on_change)
        case JwtIdentitySourceSection():
            return JwtIdentitySource()
        case ClientCredentialsSourceSection():
            return _client_credentials(name, section, around)
        case WorkloadIdentitySourceSection(federation_rule_id=str(rule)):  # which the other grant has none of
            return _workload_identity(name, section, rule, around)
        case WorkloadIdentitySourceSection():
            return _token_exchange(name, section, around)
        case CommandSourceSection():
            return _command(name, section, around)
        case OauthSourceSection():
            return None


def _static(section: StaticSourceSection, clock: Clock) -> StaticSource:
    token = read_token(section.path)
    expire_time = unverified_expire_time(token)
    if expire_time is None and section.lifetime_seconds is not None:
        expire_time = clock.now() + section.lifetime_seconds
    return StaticSource(Bearer(token, expire_time), clock)


def _client_credentials(name: str, section: ClientCredentialsSourceSection, around: Surroundings) -> KeptBearer:
    exchange = ClientCredentials(
        _endpoint(section, around),
        Client(section.client_id, ProofFile(section.client_secret_file), section.auth),
        scopes=section.scopes,
        audience=section.audience,
        resource=section.resource,
        lifetime=section.lifetime_seconds,
    )
    return _kept(
        name,
        exchange,
        around,
        turns=_turns(section, around),
        windows=_windows(section),
        changed=exchange.changed,
    )


def _workload_identity(
    name: str, section: WorkloadIdentitySourceSection, rule: str, around: Surroundings
) -> KeptBearer:
    exchange = WorkloadIdentity(
        _endpoint(section, around, largest_answer=LARGEST_ANSWER_BYTES),
        ProofFile(section.identity_token_file),
        federation_rule_id=rule,
        context=None if section.context_file is None else ProofFile(section.context_file),
        account_id=section.account_id,
    )
    return _kept(
        name,
        exchange,
        around,
        turns=_turns(section, around),
        windows=_windows(section, WORKLOAD_IDENTITY_WINDOWS),
        changed=exchange.changed,
    )


def _token_exchange(name: str, section: WorkloadIdentitySourceSection, around: Surroundings) -> KeptBearer:
    client = None
    if section.client_id is not None:
        secret_file = None if section.client_secret_file is None else ProofFile(section.client_secret_file)
        client = Client(section.client_id, secret_file, section.auth)
    exchange = TokenExchange(
        _endpoint(section, around),
        ProofFile(section.identity_token_file),
        subject_token_type=section.subject_token_type,
        client=client,
        scopes=section.scopes,
        audience=section.audience,
        resource=section.resource,
        lifetime=section.lifetime_seconds,
    )
    return _kept(
        name,
        exchange,
        around,
        turns=_turns(section, around),
        windows=_windows(section),
        changed=exchange.changed,
    )


def _command(name: str, section: CommandSourceSection, around: Surroundings) -> KeptBearer:
    ours = os.environ  # noqa: TID251 - the configuration says which of them the program gets
    environment = {variable: ours.get(variable, value) for variable, value in _ALWAYS_PASSED.items()}
    environment |= {variable: ours[variable] for variable in section.pass_environment if variable in ours}
    exchange = CommandExchange(
        section.command,
        environment=environment,
        clock=around.clock,
        timeout=section.timeout_seconds,
        lifetime=section.lifetime_seconds,
    )
    return _kept(name, exchange, around, turns=Turns(_RUNS_PER_SECOND, around.clock), windows=_windows(section))


def _endpoint(section: _Exchanged, around: Surroundings, *, largest_answer: int | None = None) -> TokenEndpoint:
    http = _http(section, around, largest_answer=largest_answer)
    return TokenEndpoint(http, around.clock, url=section.endpoint, timeout=section.timeout_seconds)


def _http(section: _Issuing, around: Surroundings, *, largest_answer: int | None = None) -> GuardedHttp:
    return GuardedHttp(
        [_origin(section, around)],
        around.clock,
        allow_loopback_http=around.config.dev,
        limits=HttpLimits() if largest_answer is None else HttpLimits(max_body_bytes=largest_answer),
    )


def _origin(section: _Issuing, around: Surroundings) -> Origin:
    return parse_origin(section.endpoint, allow_loopback_http=around.config.dev)


def _turns(section: _Issuing, around: Surroundings) -> Turns:
    return around.lines[_origin(section, around)]


def _windows(section: _Issuing | CommandSourceSection, usual: Windows | None = None) -> Windows:
    return replace(usual or Windows(), advisory=section.advisory_seconds, mandatory=section.mandatory_seconds)


def _kept(
    name: str,
    exchange: Exchange,
    around: Surroundings,
    *,
    turns: Turns,
    windows: Windows,
    changed: Callable[[], Awaitable[bool]] = never_changed,
) -> KeptBearer:
    return KeptBearer(
        exchange,
        name=name,
        turns=turns,
        clock=around.clock,
        metrics=around.metrics,
        jitter=around.jitter,
        windows=windows,
        changed=changed,
        on_change=around.on_change,
    )
