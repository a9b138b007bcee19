"""
The composition root: settings in, running broker out.

Starting: store → keys → snapshots → listeners → SERVING. No backend is waited for. Stopping: NOT_SERVING, a pause in
which balancers notice, no new calls, accepted calls end, jobs end, the audit log is synced, the store is closed.
"""

import asyncio
import contextlib
import gc
import os
import random
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker import __version__
from broker.agents import AgentRegistrar
from broker.audit import AuditLog
from broker.authorization import AuthorizationSettings, Authorizer
from broker.backend_api import BackendApi, BackendEndpoints
from broker.backends import Backend
from broker.bearer import BearerSource
from broker.bearer.configured import Surroundings, issuer_lines, open_issuers, open_sources
from broker.bearer.oauth import Issuer, Logins
from broker.clock import Clock, SystemClock
from broker.config import Config
from broker.config.sections import BackendSection
from broker.enrollment import Enroller
from broker.errors import StartupError, StoreDownError
from broker.http import HttpListener, Readiness
from broker.imports import ImportReader
from broker.keyring import Keyring, KeyringError
from broker.lifetimes import Lifetimes
from broker.model import IdentityName
from broker.origins import parse_origin
from broker.outbound import ExchangeRecord
from broker.own_bearers import OwnBearers
from broker.profiles import PRESETS, resolve_urls
from broker.reauthentication import Reauthenticator
from broker.registration import Registrar
from broker.rejection import Mender
from broker.rotation import Rotator
from broker.rpc.admin import BrokerAdminServicer
from broker.rpc.callers import LOCAL_CALLER, LOCAL_OPERATOR
from broker.rpc.interceptors import Chain, Gate
from broker.rpc.pages import PageTokens
from broker.rpc.server import ADMIN_SERVICE, CALLER_SERVICE, Listener, TlsFiles
from broker.rpc.servicer import CredentialBrokerServicer
from broker.rpc.watch import WatchConversations
from broker.snapshots import Snapshots
from broker.status import StatusReader
from broker.store import Store
from broker.store.observed import observed
from broker.store.sqlite import sqlite_store
from broker.tasks import TaskKeeper
from broker.telemetry import Metrics, configure_logging, logger
from broker.upkeep import Upkeep
from broker.watch import WatchHub, WatchSettings

_LOG: Final = logger(__name__)

_SQLITE_PREFIX: Final = "sqlite:///"
_UNREACHABLE: Final = 69
KEYRING_FILE: Final = "keyring.json"
_REFUSING_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class _IdentityKeepers:
    """What makes identities and carries their keys and logins through."""

    agents: AgentRegistrar
    enroller: Enroller
    rotator: Rotator
    reauthenticator: Reauthenticator


class Application:
    """One broker, with everything it is made of."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Clock | None = None,
        wrap_store: Callable[[Store], Store] | None = None,
        channel_arguments: Mapping[str, int] | None = None,
    ) -> None:
        """
        Take the settings; nothing is opened before `start`.

        Args:
            config: the settings.
            clock: where time comes from; None is the machine's.
            wrap_store: lets a test stand between the broker and its database.
            channel_arguments: lets a test shrink a limit of gRPC to see its effect.
        """
        self.config = config
        self.metrics = Metrics()
        self._clock = clock or SystemClock()
        self._wrap_store = wrap_store
        self._channel_arguments = channel_arguments
        self._gate = Gate()
        self._readiness = Readiness()
        self._stopping = asyncio.Event()
        self._exits = contextlib.AsyncExitStack()
        self.store: Store
        self.snapshots: Snapshots
        self.registrar: Registrar
        self.authorizer: Authorizer
        self.mender: Mender
        self.upkeep: Upkeep
        self.watch: WatchHub
        self._callers: Listener
        self._admin: Listener
        self._http: HttpListener | None = None

    # --- where it listens ---------------------------------------------------------------------------------------------

    @property
    def caller_address(self) -> str:
        """The first address callers use."""
        return self._callers.addresses[0]

    @property
    def admin_address(self) -> str:
        """The first address operators use."""
        return self._admin.addresses[0]

    @property
    def caller_addresses(self) -> tuple[str, ...]:
        """All addresses callers may use."""
        return self._callers.addresses

    @property
    def admin_addresses(self) -> tuple[str, ...]:
        """All addresses operators may use."""
        return self._admin.addresses

    @property
    def http_address(self) -> str | None:
        """Where metrics and probes are answered; None when that is off."""
        return None if self._http is None else self._http.address

    # --- starting -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """
        Start everything and say SERVING.

        Raises:
            StartupError: what is wrong, with the exit code that says of which kind; nothing is left running.
        """
        try:
            await self._start()
        except StartupError as error:
            await self._exits.aclose()
            # What the first failing step hides is told with it, so that one start shows everything there is to mend.
            raise StartupError(
                *error.problems, *_taken(self.config, error.problems), exit_code=error.exit_code
            ) from error
        except BaseException:
            await self._exits.aclose()
            raise

    async def _start(self) -> None:
        config, clock = self.config, self._clock
        jitter = random.Random(secrets.randbits(64))  # noqa: S311 - spreads work; nothing is kept secret with it
        # 1. The store.
        _make_state_dir(config.state_dir)
        store = store_of(config)
        self.store = observed(self._wrap_store(store) if self._wrap_store else store, self.metrics)
        self._exits.push_async_callback(self.store.close)
        try:
            await self.store.open()
            # 2. The keys.
            keyring = await _open_keyring(self.store, config.state_dir / KEYRING_FILE, dev=config.dev)
        except StoreDownError as error:
            raise StartupError(f"{config.store_url}: cannot be reached", exit_code=_UNREACHABLE) from error
        audit = AuditLog(config.audit_file, clock, self.metrics)
        try:
            await audit.open()
        except OSError as error:
            raise StartupError(f"{config.audit_file}: cannot be opened: {error.strerror}") from error
        self._exits.push_async_callback(audit.close)
        # 3. Backends and bearers; nothing is asked of them yet.
        backends = {name: _backend(name, section, config) for name, section in config.backends.items()}
        apis = {name: self._api(backends[name], section) for name, section in config.backends.items()}
        for api in apis.values():
            self._exits.push_async_callback(api.aclose)
        sources, issuers = self._open_bearers(jitter)
        # 4. The snapshots.
        self.snapshots = Snapshots(
            store=self.store,
            keyring=keyring,
            backends=backends,
            bearer_sources=sources,
            logins=Logins(issuers, store=self.store, keyring=keyring, clock=clock, metrics=self.metrics, jitter=jitter),
            clock=clock,
            metrics=self.metrics,
            cached_threads=config.limits.cached_threads,
        )
        try:
            await self.snapshots.warm_up()
        except StoreDownError as error:
            raise StartupError(f"{config.store_url}: cannot be read", exit_code=_UNREACHABLE) from error
        # 5. What works on them.
        self.registrar = Registrar(
            store=self.store,
            snapshots=self.snapshots,
            keyring=keyring,
            apis=apis,
            clock=clock,
            metrics=self.metrics,
            lease_seconds=config.limits.registration_lease_seconds,
            in_flight=config.limits.registrations_in_flight,
            jitter=jitter,
        )
        lifetimes = Lifetimes(
            store=self.store,
            registrar=self.registrar,
            clock=clock,
            metrics=self.metrics,
            idle_seconds=config.limits.task_idle_seconds,
            in_flight=config.limits.registrations_in_flight,
        )
        identities = self._identity_keepers(keyring, backends, sources, issuers, apis, jitter)
        tasks = TaskKeeper(
            store=self.store,
            snapshots=self.snapshots,
            registrar=self.registrar,
            clock=clock,
            tombstone_seconds=config.limits.tombstone_seconds,
        )
        self.authorizer = Authorizer(
            snapshots=self.snapshots,
            registrar=self.registrar,
            lifetimes=lifetimes,
            scopes=config.scope_catalogue(),
            apis=apis,
            keyring=keyring,
            audit=audit,
            clock=clock,
            metrics=self.metrics,
            settings=_authorization_settings(config),
            jitter=jitter,
        )
        self.upkeep = Upkeep(
            snapshots=self.snapshots,
            registrar=self.registrar,
            agents=identities.agents,
            lifetimes=lifetimes,
            authorizer=self.authorizer,
            bearer_sources=sources,
            audit=audit,
            clock=clock,
            poll_seconds=config.store.poll_seconds,
            refresh_recent_seconds=config.broker.refresh_recent_seconds,
        )
        # 6. The listeners.
        page_tokens = PageTokens(keyring)
        self._callers = self._listener(
            config.listen.callers,
            Chain(
                caller=LOCAL_CALLER,
                deadline_seconds=config.limits.caller_deadline_seconds,
                gate=self._gate,
                clock=clock,
                metrics=self.metrics,
            ),
            CALLER_SERVICE,
        )
        self.watch = self._watch_hub(jitter)
        callers = CredentialBrokerServicer(
            authorizer=self.authorizer,
            tasks=tasks,
            mender=self._make_mender(identities, apis, audit),
            conversations=WatchConversations(hub=self.watch, clock=clock, metrics=self.metrics),
            page_tokens=page_tokens,
            clock=clock,
        )
        callers.serve_on(self._callers)
        self._admin = self._listener(
            config.listen.admin,
            Chain(
                caller=LOCAL_OPERATOR,
                deadline_seconds=config.limits.admin_deadline_seconds,
                gate=self._gate,
                clock=clock,
                metrics=self.metrics,
            ),
            ADMIN_SERVICE,
        )
        operators = BrokerAdminServicer(
            store=self.store,
            snapshots=self.snapshots,
            enroller=identities.enroller,
            rotator=identities.rotator,
            reauthenticator=identities.reauthenticator,
            status=StatusReader(
                snapshots=self.snapshots,
                registrar=self.registrar,
                agents=identities.agents,
                authorizer=self.authorizer,
                watched=self.watch.watch_count,
                clock=clock,
            ),
            tasks=tasks,
            authorizer=self.authorizer,
            audit=audit,
            page_tokens=page_tokens,
            gate=self._gate,
            clock=clock,
            max_staleness=config.broker.max_staleness_seconds,
        )
        operators.serve_on(self._admin)
        await self._bind()
        # 7. Serve.
        self.watch.start()
        self._exits.push_async_callback(self.watch.close, 0)
        self._gate.open()
        await self._callers.health.set(serving=True)
        await self._admin.health.set(serving=True)
        self._readiness.ready = True
        self.metrics.ready.set(1)
        # Nobody who waits for SERVING waits for any of it.
        self.upkeep.start()
        self._exits.push_async_callback(self.upkeep.stop)

    def _identity_keepers(
        self,
        keyring: Keyring,
        backends: Mapping[str, Backend],
        sources: Mapping[str, BearerSource],
        issuers: Mapping[str, Issuer],
        apis: Mapping[str, BackendApi],
        jitter: random.Random,
    ) -> _IdentityKeepers:
        config, clock = self.config, self._clock
        # Once more, after those have ended that begin registrations: none must outlive the store.
        self._exits.push_async_callback(self.registrar.drain, 0)
        agents = AgentRegistrar(
            store=self.store,
            snapshots=self.snapshots,
            registrar=self.registrar,
            keyring=keyring,
            apis=apis,
            clock=clock,
            metrics=self.metrics,
            # An agent is registered and its first tasks are, under one claim.
            lease_seconds=2 * config.limits.registration_lease_seconds,
            jitter=jitter,
        )
        self._exits.push_async_callback(agents.close)
        imports = ImportReader(apis, clock)
        self._exits.push_async_callback(imports.close)
        own_bearers = OwnBearers(keyring, issuers, clock)
        enroller = Enroller(
            store=self.store,
            snapshots=self.snapshots,
            registrar=self.registrar,
            agents=agents,
            imports=imports,
            own_bearers=own_bearers,
            keyring=keyring,
            backends=backends,
            bearer_sources=sources,
            clock=clock,
            token_bytes=secrets.token_bytes,
        )
        self._exits.push_async_callback(enroller.close)
        rotator = Rotator(
            store=self.store,
            snapshots=self.snapshots,
            registrar=self.registrar,
            agents=agents,
            keyring=keyring,
            clock=clock,
            token_bytes=secrets.token_bytes,
        )
        reauthenticator = Reauthenticator(
            store=self.store,
            snapshots=self.snapshots,
            registrar=self.registrar,
            imports=imports,
            own_bearers=own_bearers,
            keyring=keyring,
            clock=clock,
        )
        self._exits.push_async_callback(reauthenticator.close, config.broker.drain_grace_seconds)
        return _IdentityKeepers(agents, enroller, rotator, reauthenticator)

    async def _bind(self) -> None:
        """Bind every listener; the problems of all of them are told together."""
        listeners: list[Listener | HttpListener] = [self._callers, self._admin]
        if self.config.listen.http is not None:
            self._http = HttpListener(self.config.listen.http, self.metrics, self._readiness)
            listeners.append(self._http)
        problems: list[str] = []
        for listener in listeners:
            try:
                await listener.start()
            except StartupError as error:
                problems += [problem for problem in error.problems if problem not in problems]
            if isinstance(listener, Listener):
                self._exits.push_async_callback(listener.stop, 0)
            else:
                self._exits.push_async_callback(listener.stop)
        if problems:
            raise StartupError(*problems)

    def _listener(self, addresses: tuple[str, ...], chain: Chain, service: str) -> Listener:
        tls = self.config.listen.tls
        return Listener(
            addresses,
            chain,
            services=(service,),
            tls=None if tls is None else TlsFiles(tls.certificate_file, tls.private_key_file, tls.client_ca_file),
            reflection_on=self.config.broker.reflection,
            arguments=self._channel_arguments,
        )

    def _open_bearers(self, jitter: random.Random) -> tuple[dict[str, BearerSource], dict[str, Issuer]]:
        def on_change() -> None:
            self.snapshots.touch()

        lines = issuer_lines(self.config, self._clock)
        around = Surroundings(self.config, lines, self._clock, self.metrics, jitter, on_change)
        sources, issuers = open_sources(around), open_issuers(around)
        for source in sources.values():
            self._exits.push_async_callback(source.close)
        for issuer in issuers.values():
            self._exits.push_async_callback(issuer.close)
        return sources, issuers

    def _make_mender(self, identities: _IdentityKeepers, apis: Mapping[str, BackendApi], audit: AuditLog) -> Mender:
        self.mender = Mender(
            store=self.store,
            snapshots=self.snapshots,
            registrar=self.registrar,
            rotator=identities.rotator,
            agents=identities.agents,
            authorizer=self.authorizer,
            apis=apis,
            audit=audit,
            clock=self._clock,
            metrics=self.metrics,
            window_seconds=self.config.broker.rejection_window_seconds,
        )
        self._exits.push_async_callback(self.mender.close)
        return self.mender

    def _watch_hub(self, jitter: random.Random) -> WatchHub:
        limits = self.config.limits
        return WatchHub(
            authorizer=self.authorizer,
            snapshots=self.snapshots,
            clock=self._clock,
            metrics=self.metrics,
            settings=WatchSettings(
                streams=limits.watch_streams,
                subscriptions=limits.watch_subscriptions,
                write_seconds=limits.watch_write_seconds,
                heartbeat_seconds=limits.watch_heartbeat_seconds,
                connection_age=self._callers.connection_age,
            ),
            jitter=jitter,
        )

    def _api(self, backend: Backend, section: BackendSection) -> BackendApi:
        urls = resolve_urls(
            backend.profile,
            base_url=section.base_url,
            authapi_base_url=section.authapi_base_url,
            jwks_base_url=section.jwks_base_url,
            allow_loopback_http=self.config.dev,
        )

        def count(record: ExchangeRecord) -> None:
            outcome = "ok" if record.failure is None else record.failure.value
            self.metrics.count(self.metrics.backend_requests, backend.name, record.operation, outcome)

        endpoints = BackendEndpoints(
            profile=backend.profile,
            urls=urls,
            allowed_origins=urls.origins,
            allow_loopback_http=self.config.dev,
            max_clock_offset=section.max_clock_offset_seconds,
            agent_harness_id=section.agent_harness_id,
            running_location=section.running_location,
        )
        return BackendApi(endpoints, self._clock, on_exchange=count)

    # --- stopping -----------------------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Ask the broker to drain and stop."""
        self._stopping.set()

    @property
    def stop_requested(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopping.is_set()

    async def run_until_stopped(self) -> None:
        """Serve until `request_stop`, then drain and stop."""
        await self._stopping.wait()
        await self.stop()

    async def stop(self) -> None:
        """Drain: lose no accepted call, finish what is under way, leave nothing behind."""
        settings = self.config.broker
        self._readiness.ready = False
        self.metrics.ready.set(0)
        await self._callers.health.set(serving=False)
        await self._admin.health.set(serving=False)
        await self._clock.sleep(settings.drain_seconds)
        # New calls on open connections are refused with DRAINING while accepted ones end. gRPC itself would tell a call
        # that arrives in the moment in which it stops CANCELLED, which nobody retries, so callers learn of it before.
        self._gate.close()
        await self._clock.sleep(min(settings.drain_seconds, _REFUSING_SECONDS))
        # Streams end well before they would be cut; who watches goes to another replica with what it holds.
        await self.watch.close(settings.drain_grace_seconds)
        await asyncio.gather(
            self._callers.stop(settings.drain_grace_seconds), self._admin.stop(settings.drain_grace_seconds)
        )
        # Nothing new is begun from here on, so that what drains is all there is.
        await self.upkeep.stop()
        await self.mender.close()
        await self.registrar.drain(settings.drain_grace_seconds)
        await self._exits.aclose()


def run(config: Config) -> int:
    """
    Serve until SIGTERM or SIGINT and return the exit code; a second signal ends it at once.

    Raises:
        StartupError: the broker cannot start.
    """
    configure_logging(config.log.level, config.log.format)
    runner = asyncio.Runner(loop_factory=_loop_factory())
    with runner:
        return runner.run(_serve(config))


async def _serve(config: Config) -> int:
    app = Application(config)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if app.stop_requested:
            os._exit(1)
        _LOG.info("draining", seconds=config.broker.drain_seconds)
        app.request_stop()

    # Before anything is started, so that a signal at any time ends in an orderly stop.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await app.start()
    # What was made to start lives as long as the process: no collection need look at it again.
    gc.collect()
    gc.freeze()
    _LOG.info(
        "serving",
        version=__version__,
        callers=list(app.caller_addresses),
        admin=list(app.admin_addresses),
        http=app.http_address,
        reachable="loopback and Unix sockets only, until callers are authenticated",
    )
    await app.run_until_stopped()
    _LOG.info("stopped")
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop where it is installed: a call costs about a seventh less with it."""
    if sys.platform != "linux":
        return None
    import uvloop  # noqa: PLC0415 - exists on Linux only

    return uvloop.new_event_loop


# --- what it is made of -----------------------------------------------------------------------------------------------


def _taken(config: Config, told: Sequence[str]) -> list[str]:
    """Return the TCP addresses that cannot be bound and of which nothing was told yet."""
    problems = []
    for address in (*config.listen.callers, *config.listen.admin, *filter(None, (config.listen.http,))):
        if address.startswith("unix:") or any(problem.startswith(f"{address}: ") for problem in told):
            continue
        host, _, port = address.rpartition(":")
        literal = host.removeprefix("[").removesuffix("]")
        family = socket.AF_INET6 if ":" in literal else socket.AF_INET
        try:
            socket.create_server((literal, int(port)), family=family).close()
        except OSError:
            problems.append(f"{address}: cannot be bound; is another program listening there?")
    return problems


def _make_state_dir(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"broker.state_dir: {path} cannot be made: {error.strerror}") from error


def store_of(config: Config) -> Store:
    """
    Return the configured store, not opened yet.

    Raises:
        StartupError: the URL names none that there is.
    """
    url = config.store_url
    if not url.startswith(_SQLITE_PREFIX):
        raise StartupError("store.url: only sqlite:///absolute/path is supported in this version")
    # Always absolute, however many slashes were written.
    path = Path("/") / url.removeprefix(_SQLITE_PREFIX).lstrip("/")
    return sqlite_store(path, busy_limit=config.store.busy_timeout_seconds)


async def _open_keyring(store: Store, path: Path, *, dev: bool) -> Keyring:
    """
    Open the key ring of this database, or make one for a database in which nothing was sealed yet.

    A database is bound to its ring for ever, and to being a development one or not.
    """
    bound = await store.keyring_id()
    try:
        ring = await asyncio.to_thread(Keyring.load_or_create, path, may_create=bound is None)
    except KeyringError as error:
        raise StartupError(str(error)) from error
    name = f"dev:{ring.ring_id}" if dev else ring.ring_id
    bound = await store.bind_keyring(name)
    if bound == name:
        return ring
    if bound.removeprefix("dev:") == ring.ring_id:
        kind = "a production" if dev else "a development"
        raise StartupError(f"{path.parent}: holds {kind} database; give this broker a state directory of its own")
    raise StartupError(
        f"{path}: is not the key ring that the database was sealed with; restore the one from the database's backup"
    )


def _authorization_settings(config: Config) -> AuthorizationSettings:
    default = config.broker.default_identity
    return AuthorizationSettings(
        default_identity=None if default is None else IdentityName(default),
        grant_bootstrap=config.broker.grant_bootstrap,
        max_lease=config.broker.max_lease_seconds,
        max_staleness=config.broker.max_staleness_seconds,
    )


def _backend(name: str, section: BackendSection, config: Config) -> Backend:
    profile = PRESETS[section.profile].with_overrides(
        assertion_routes=section.assertion_routes, assertion_lifetime=section.assertion_lifetime_seconds
    )
    return Backend(
        name=name,
        profile=profile,
        origins=frozenset(
            parse_origin(url, allow_loopback_http=config.dev) for url in (section.base_url, *section.allowed_origins)
        ),
        assertions_enabled=section.assertions,
        allow_loopback_http=config.dev,
        task_lifetime=section.task_lifetime_seconds,
    )
