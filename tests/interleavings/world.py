"""
The world of a run: one identity with its key, its login and a task, in brokers on one database, and what they ask.

A `Template` is made once: everything that is the same at the beginning of every run. A `World` is one run's copy of it:
brokers assembled as `broker.app` does, of which every call to the store, the backend, the issuer and the clock's sleep
is a step. In the arrangement ONE all operations are of one broker and share its memory and its jobs; in the arrangement
APART each has a broker of its own, and only the database is shared.
"""

import functools
import random
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, cast

from sqlalchemy import Executable

from broker.agents import AgentRegistrar
from broker.audit import Grant, GrantLine
from broker.authorization import AuthorizationRequest, AuthorizationSettings, Authorizer
from broker.backends import Backend
from broker.bearer.kept import Windows
from broker.bearer.oauth import Issuer, Logins
from broker.bearer.refresh_grant import Refreshed, RefreshFailure, Verdict
from broker.bearer.stored import seal_pair
from broker.bearer.turns import Turns
from broker.enrollment import Enroller
from broker.errors import IdentityNotFoundError
from broker.imports import ImportReader
from broker.keyring import Keyring, SealContext
from broker.keys import SigningKey, derive_seed
from broker.lifetimes import Lifetimes
from broker.model import (
    Caller,
    Identity,
    IdentityId,
    IdentityName,
    IdentityState,
    Mode,
    Origin,
    ScopeName,
    Secret,
    StoredBearer,
    ThreadId,
)
from broker.own_bearers import OwnBearers
from broker.profiles import PRESETS
from broker.registration import Registrar
from broker.rejection import Mender, Rejection
from broker.rotation import Rotator
from broker.scopes import build_catalogue
from broker.snapshots import IdentityView, Snapshots, private_key_context
from broker.store import CreateRequest, Store
from broker.tasks import TaskKeeper
from broker.telemetry import Metrics
from tests.interleavings.memory import Content, Copy, Database, MemoryDriver, Stepped
from tests.interleavings.others import TOKEN_LIFE, Names, WorldBackend, WorldIssuer, seed_of
from tests.interleavings.schedule import Choose, Pause, Schedule, operation_name
from tests.interleavings.state import Walk
from tests.support.clocks import SetClock

NOW: Final = 1_800_000_000.0
LEASE: Final = 45.0
_WAIT: Final = 30.0
_MAC_KEY: Final = bytes(range(32))
_RING_KEY: Final = bytes(range(32, 64))

IDENTITY: Final = IdentityId("0123456789abcdef0123456789abcdef")
NAME: Final = IdentityName("agent")
CALLER: Final = Caller("caller", "local")
REJECTED_THREAD: Final = ThreadId("rejected")
"""Its task lives at the beginning, and the backend has forgotten it."""
NEW_THREAD: Final = ThreadId("new")
"""It has no task at the beginning."""
SCOPE: Final = ScopeName("inference")
_BACKEND: Final = "default"
_SOURCE: Final = "login"
_SCOPES: Final = build_catalogue({})
_METRICS: Final = Metrics()


class Arrangement(StrEnum):
    """Whose memory the operations share."""

    ONE = "one process"
    APART = "a process each"


class Stops(StrEnum):
    """Where operations stand still."""

    BEFORE = "before"
    """Each call: others act between what was known and what is done."""
    AFTER = "after"
    """Each call: others act between what was done and what is made of the answer."""
    BOTH = "both"


class _Middle(random.Random):
    """Chance that is always in the middle, so that a run depends on its schedule alone."""

    def random(self) -> float:
        return 0.5

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class _QuickKeyring(Keyring):
    """The real key ring, which seals and opens what many runs seal and open once."""

    def __init__(self) -> None:
        super().__init__({b"ring-key": _RING_KEY}, b"ring-key", _MAC_KEY, bytes)
        self._sealed: dict[tuple[bytes, SealContext], bytes] = {}
        self._opened: dict[tuple[bytes, SealContext], bytes] = {}

    def seal(self, plaintext: bytes, *, context: SealContext) -> bytes:
        place = (plaintext, context)
        if place not in self._sealed:
            self._sealed[place] = super().seal(plaintext, context=context)
        return self._sealed[place]

    def open(self, sealed: bytes, *, context: SealContext) -> bytes:
        place = (sealed, context)
        if place not in self._opened:
            self._opened[place] = super().open(sealed, context=context)
        return self._opened[place]


class _Audit:
    """An audit log of which only the lines matter."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def grant(self, grant: Grant, _request_id: str) -> GrantLine:
        self.events.append(("granted", {"generation": grant.generation}))
        return GrantLine(grant)

    def record(self, event: str, **fields: str | int | bool | None) -> None:
        self.events.append((event, fields))


class _Clock(SetClock):
    """Stands still; whoever waits by it gives others their turn."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(NOW)
        self._schedule = schedule

    async def sleep(self, seconds: float) -> None:
        await self._schedule.pause("clock.sleep", waits=True)


@dataclass(frozen=True)
class _Asking:
    caller: Caller = CALLER
    request_id: str = "request"


@dataclass(frozen=True)
class Template:
    """How every run begins."""

    profile: str
    database: Database
    content: Content
    keyring: Keyring
    revision: str = ""
    """What a caller was handed for the thread that the backend rejects."""
    tasks: tuple[tuple[str, tuple[str, str | None]], ...] = ()
    """What the backend has registered, and forgotten since."""


class _Seen(list[Identity]):
    """What is only recorded."""


@dataclass(eq=False)
class Process:
    """One broker: its memory, and what works on it."""

    number: int
    store: Store
    snapshots: Snapshots
    registrar: Registrar
    authorizer: Authorizer
    enroller: Enroller
    agents: AgentRegistrar
    rotator: Rotator
    mender: Mender
    tasks: TaskKeeper
    seen: _Seen = field(default_factory=_Seen)
    """Each state of the identity that its memory went through."""

    def view(self) -> IdentityView:
        """Return the identity as this process knows it."""
        view = self.snapshots.view(IDENTITY)
        if view is None:
            raise IdentityNotFoundError
        return view


class World:
    """One run."""

    def __init__(self, template: Template, choose: Choose, arrangement: Arrangement, stops: Stops) -> None:
        self.template = template
        self.schedule = Schedule(choose)
        self.arrangement = arrangement
        self.clock = _Clock(self.schedule)
        self.names = Names()
        self.backend = WorldBackend(self.names, self.clock.monotonic)
        self.backend.agents["agent-0"] = _first_key().ssh_public_key
        self.backend.tasks.update(template.tasks)
        self.backend.forgotten.update(self.backend.tasks)
        self.issuer = WorldIssuer(self.clock.now)
        self.store = Copy(template.database, template.content)
        self.audit = _Audit()
        # Who polls looks at the store, or waits for a time.
        self.schedule.progress = lambda: (self.store.content.digest, self.clock.steady)
        self._before, self._after = stops is not Stops.AFTER, stops is not Stops.BEFORE
        self.processes: list[Process] = []
        self._operations = 0
        self.outcomes: dict[str, object] = {}

    # --- assembling ---------------------------------------------------------------------------------------------------

    async def begin(self, operations: Sequence[str]) -> dict[str, Callable[[], Awaitable[object]]]:
        """Start the brokers, and return the operations as they are to be run."""
        names = [name if operations.index(name) == at else f"{name}-{at + 1}" for at, name in enumerate(operations)]
        self._operations = len(operations)
        count = 1 if self.arrangement is Arrangement.ONE else len(operations)
        self.processes = [await self.broker(number) for number in range(count)]
        work: dict[str, Callable[[], Awaitable[object]]] = {}
        for at, (name, operation) in enumerate(zip(names, operations, strict=True)):
            process = self.processes[min(at, count - 1)]
            work[name] = functools.partial(OPERATIONS[operation], self, process)
        return work

    async def run(self, operations: Sequence[str]) -> dict[str, object]:
        """Run operations to their ends, in the order that is chosen; return what each returned or raised."""
        self.outcomes = await self.schedule.run(await self.begin(operations))
        return self.outcomes

    def state(self) -> tuple[Hashable, ...]:
        """Return all that the rest of the run depends on."""
        tasks = self.schedule.tasks
        walk = Walk(_LEFT_OUT, lambda task: tasks.get(task, ""))
        walk.visit(self.schedule.standing)
        walk.visit([self.processes, self.store, self.backend, self.issuer, self.names, self.clock])
        # First the operations themselves; nearly all else is reached from them and from the brokers.
        walk.visit(list(tasks)[: self._operations])
        walk.visit(sorted((task for task in tasks if not task.done()), key=walk.place))
        return walk.state

    async def ask(self, query: Executable) -> Any:
        """Return the one value that a query has in the database of this run."""
        return await self.template.database.query(self.store.content, query)

    def stepped(self, target: object, name: str) -> Any:
        """Let whoever calls the target stand still there."""
        return Stepped(target, name, self.schedule, before=self._before, after=self._after)

    async def broker(self, number: int = 0) -> Process:
        """Start a broker on the database, as `broker.app` does."""
        keyring, jitter = self.template.keyring, _Middle()
        store = self.stepped(self.store, "store")
        apis: Any = {_BACKEND: _Api(self)}
        issuer = Issuer(
            name=_SOURCE,
            grant=cast("Any", _Grant(self)),
            turns=Turns(1000.0, self.clock),
            lease_seconds=LEASE,
            patience=0.0,
            windows=Windows(advisory=TOKEN_LIFE / 2),
        )
        issuers = {_SOURCE: issuer}
        shared: dict[str, Any] = {"store": store, "keyring": keyring, "clock": self.clock, "metrics": _METRICS}
        backend = _backend(self.template.profile)
        snapshots = Snapshots(
            **shared,
            backends={_BACKEND: backend},
            bearer_sources={},
            logins=Logins(issuers, **shared, jitter=jitter),
            cached_threads=100,
        )
        registrar = Registrar(**shared, snapshots=snapshots, apis=apis, lease_seconds=LEASE, in_flight=8, jitter=jitter)
        agents = AgentRegistrar(
            **shared, snapshots=snapshots, registrar=registrar, apis=apis, lease_seconds=LEASE, jitter=jitter
        )
        rotator = Rotator(
            store=store,
            snapshots=snapshots,
            registrar=registrar,
            agents=agents,
            keyring=keyring,
            clock=self.clock,
            token_bytes=lambda size: seed_of(self.names, size),
        )
        lifetimes = Lifetimes(
            store=store, registrar=registrar, clock=self.clock, metrics=_METRICS, idle_seconds=1e6, in_flight=8
        )
        authorizer = Authorizer(
            snapshots=snapshots,
            registrar=registrar,
            lifetimes=lifetimes,
            scopes=_SCOPES,
            apis=apis,
            keyring=keyring,
            audit=cast("Any", self.audit),
            clock=self.clock,
            metrics=_METRICS,
            settings=AuthorizationSettings(
                default_identity=None, grant_bootstrap=False, max_lease=300.0, max_staleness=3600.0
            ),
            jitter=jitter,
        )
        own_bearers = OwnBearers(keyring, issuers, self.clock)
        enroller = Enroller(
            store=store,
            snapshots=snapshots,
            registrar=registrar,
            agents=agents,
            imports=ImportReader({}, self.clock),
            keyring=keyring,
            backends={_BACKEND: backend},
            bearer_sources={},
            own_bearers=own_bearers,
            clock=self.clock,
            token_bytes=lambda size: seed_of(self.names, size),
        )
        mender = Mender(
            store=store,
            snapshots=snapshots,
            registrar=registrar,
            rotator=rotator,
            agents=agents,
            authorizer=authorizer,
            apis=apis,
            audit=cast("Any", self.audit),
            clock=self.clock,
            metrics=_METRICS,
            window_seconds=600.0,
        )
        tasks = TaskKeeper(
            store=store, snapshots=snapshots, registrar=registrar, clock=self.clock, tombstone_seconds=86_400.0
        )
        process = Process(number, store, snapshots, registrar, authorizer, enroller, agents, rotator, mender, tasks)

        def note(identity_id: IdentityId | None) -> None:
            if identity_id is not None:
                process.seen.append(process.view().identity)

        await snapshots.warm_up()
        await snapshots.preload_tasks()
        snapshots.subscribe(note)
        return process


class _Api:
    """Stands for a `BackendApi`: its calls are steps, what it knows of the clock is not."""

    def __init__(self, world: World) -> None:
        backend = world.stepped(world.backend, "backend")
        self.register_agent = backend.register_agent
        self.register_task = backend.register_task
        self.measure_clock = backend.measure_clock
        self.signing_time = world.backend.signing_time
        self.clock_offset = 0.0


class _Grant:
    """Stands for a `RefreshGrant`."""

    def __init__(self, world: World) -> None:
        self._issuer = world.stepped(world.issuer, "issuer")
        self._clock = world.clock
        self.timeout = world.issuer.timeout

    async def refresh(self, refresh_token: Secret, *, within: float) -> Refreshed:
        """Send a refresh token, as the real one does: not when it could not arrive in time."""
        if within < self.timeout / 2:
            raise RefreshFailure(Verdict.NOT_PROCESSED, "no_time_left", note="too little time is left to send it")
        until = self._clock.now() + min(self.timeout, within)
        answer: Refreshed = await self._issuer.refresh(refresh_token, until=until)
        return answer

    async def close(self) -> None:
        """Nothing is held."""


_LEFT_OUT: Final = (World, Template, Schedule, Pause, _Audit, _Seen)


# --- the operations ---------------------------------------------------------------------------------------------------


async def _register(world: World, process: Process) -> object:
    """As RegisterTask does."""
    return await process.tasks.register(process.view(), NEW_THREAD, deadline=world.clock.monotonic() + _WAIT)


async def _rotate(world: World, process: Process) -> object:
    """As RotateIdentityKey does: the row is read, and changed."""
    identity = await _named(process)
    request_id = f"rotate-{operation_name()}"
    return await process.rotator.rotate(identity, request_id, wait_until=world.clock.monotonic() + _WAIT)


async def _disable(world: World, process: Process) -> object:
    """As DisableIdentity does: the row is read, and written."""
    disabled = await process.enroller.disable(await _named(process))
    world.audit.record("disabled", process=process.number)
    return disabled


async def _refresh(_world: World, process: Process) -> object:
    """As whoever finds the bearer due does."""
    source = process.view().bearers
    if source is None:
        raise IdentityNotFoundError
    return await source.refresh()


async def _report(world: World, process: Process) -> object:
    """As ReportRejected does."""
    rejection = Rejection(SCOPE, REJECTED_THREAD, world.template.revision, "")
    return await process.mender.report(_Asking(), rejection, deadline=world.clock.monotonic() + _WAIT)


async def _follow(_world: World, process: Process) -> None:
    """As upkeep does all the time."""
    await process.snapshots.follow()


async def _lapse(world: World, _process: Process) -> None:
    """Let so much time pass that every lease and every deadline is over."""
    world.clock.pass_(LEASE + 1)


async def _named(process: Process) -> Identity:
    identity = await process.store.identity_named(NAME)
    if identity is None:
        raise IdentityNotFoundError
    return identity


OPERATIONS: Final[Mapping[str, Callable[[World, Process], Awaitable[object]]]] = MappingProxyType(
    {
        "register": _register,
        "rotate": _rotate,
        "disable": _disable,
        "refresh": _refresh,
        "report": _report,
        "follow": _follow,
        "lapse": _lapse,
    }
)
PROFILES: Final = ("codex-2026-05", "codex-2026-08")
"""One in which each thread has an upstream task of its own, and one in which all share one."""
FIVE: Final = ("register", "rotate", "disable", "refresh", "report")


# --- how every run begins ---------------------------------------------------------------------------------------------


def _first_key() -> SigningKey:
    return SigningKey.from_seed(derive_seed(bytes(64)))


def _backend(profile: str) -> Backend:
    return Backend(
        name=_BACKEND,
        profile=PRESETS[profile],
        origins=frozenset(),
        assertions_enabled=True,
        allow_loopback_http=False,
    )


async def make_template(profile: str = PROFILES[0]) -> Template:
    """Make an identity that is ACTIVE, has a login that is due, and a task that the backend has forgotten since."""
    database = Database(MemoryDriver())
    store = Copy(database, await database.open())
    keyring = _QuickKeyring()
    key = _first_key()
    identity = Identity(
        id=IDENTITY,
        name=NAME,
        backend=_BACKEND,
        mode=Mode.AGENT,
        origin=Origin.CREATED,
        state=IdentityState.ACTIVE,
        agent_runtime_id="agent-0",
        public_key=key.ssh_public_key,
        sealed_private_key=keyring.seal(key.to_pkcs8_der(), context=private_key_context(IDENTITY, 1)),
        create_time=NOW,
        update_time=NOW,
    )
    tokens = seal_pair(keyring, IDENTITY, 1, access_token=Secret("access-0"), refresh_token=Secret("refresh-0"))
    login = StoredBearer(
        identity_id=IDENTITY,
        sealed=tokens.access_token,
        sealed_refresh_token=tokens.refresh_token,
        source=_SOURCE,
        # It lives, and is due.
        obtain_time=NOW - TOKEN_LIFE * 0.9,
        expire_time=NOW + TOKEN_LIFE * 0.1,
    )
    request = CreateRequest(request_id="create", fingerprint=b"create", now=NOW, remember_until=NOW + 86_400)
    await store.create_identity(identity, request, bearer=login)
    begin = Template(profile, database, store.content, keyring)
    world = World(begin, lambda able, _: able[0], Arrangement.ONE, Stops.BEFORE)
    process = await world.broker()
    deadline = world.clock.monotonic() + _WAIT
    answer = await process.authorizer.work_out(CALLER, AuthorizationRequest(SCOPE, REJECTED_THREAD), deadline=deadline)
    return replace(
        begin,
        content=world.store.content,
        revision=answer.authorization.revision,
        tasks=tuple(world.backend.tasks.items()),
    )
