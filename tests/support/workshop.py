"""What makes identities and tasks, with a real store, key ring and snapshots, and a backend that answers from a script."""

import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from broker.agents import AgentRegistrar
from broker.backend_api import TaskAnswer
from broker.backends import Backend
from broker.bearer import BearerSource
from broker.bearer.oauth import Issuer, Logins
from broker.enrollment import BearerChoice, CreateOrder, Enroller
from broker.imports import ImportReader
from broker.keyring import Keyring
from broker.lifetimes import Lifetimes
from broker.model import Identity, IdentityName, Mode, Secret
from broker.origins import parse_origin
from broker.outbound import FailureKind, OutboundFailure
from broker.own_bearers import OwnBearer, OwnBearers
from broker.profiles import DEFAULT_PROFILE, PRESETS
from broker.reauthentication import Reauthenticator
from broker.registration import Registrar
from broker.rotation import Rotator
from broker.snapshots import IdentityView, Snapshots
from broker.telemetry import Metrics
from tests.support.clocks import SetClock
from tests.support.stores import NOW, FaultyStore, sqlite_store

LEASE: Final = 45.0
IN_FLIGHT: Final = 8
IDLE: Final = 7 * 86_400.0
OWN_BEARER: Final = OwnBearer(Secret("token"))
Step = TaskAnswer | str | BaseException | Callable[[], Awaitable[Any]]


def plain(task_id: str) -> TaskAnswer:
    """Return a backend's answer with a task id as it is."""
    return TaskAnswer(task_id, sealed=False, answer_lost=False)


def failure(kind: FailureKind, **more: Any) -> OutboundFailure:
    """Return how an exchange with the backend ended."""
    return OutboundFailure(kind, "register_task", "as the script says", **more)


class ScriptedApi:
    """
    Stands for a `BackendApi`: each registration takes the next step of its script, and repeats the last for ever.

    A step is what is returned, what is raised, or a function that is awaited for either.
    """

    def __init__(self) -> None:
        self.tasks: deque[Step] = deque()
        self.agents: deque[Step] = deque()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.skew: BaseException | None = None
        self.clock_offset = 0.0

    async def register_task(self, **request: Any) -> Any:
        """Take the next step of `tasks`."""
        return await self._step("task", self.tasks, request)

    async def register_agent(self, **request: Any) -> Any:
        """Take the next step of `agents`."""
        return await self._step("agent", self.agents, request)

    async def fetch_jwks(self, deadline: float) -> Any:
        """Refuse: no test of these signs JWTs."""
        raise failure(FailureKind.REFUSED)

    def signing_time(self, now: float) -> float:
        """Return the backend's time, unless the clocks are too far apart."""
        if self.skew is not None:
            raise self.skew
        return now

    def count(self, what: str) -> int:
        """Return how many registrations of a kind were asked for."""
        return sum(1 for kind, _ in self.asked if kind == what)

    async def _step(self, kind: str, script: deque[Step], request: dict[str, Any]) -> Any:
        self.asked.append((kind, request))
        step = script.popleft() if len(script) > 1 else script[0]
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, TaskAnswer | str):
            return step
        return await step()


@dataclass
class Workshop:
    """Everything that makes identities and tasks, without listeners and loops."""

    store: FaultyStore
    keyring: Keyring
    clock: SetClock
    api: ScriptedApi
    metrics: Metrics
    snapshots: Snapshots
    registrar: Registrar
    lifetimes: Lifetimes
    enroller: Enroller
    agents: AgentRegistrar
    rotator: Rotator
    reauthenticator: Reauthenticator
    sources: dict[str, BearerSource]

    async def agent(self, name: str = "agent") -> IdentityView:
        """Create an agent that the backend registers at once."""
        if not self.api.agents:
            self.api.agents.append("runtime-1")
        identity = await self.create(name)
        view = self.snapshots.view(identity.id)
        assert view is not None
        return view

    async def create(self, name: str = "agent", *, bearer: BearerChoice = OWN_BEARER) -> Identity:
        """Create an identity of mode AGENT."""
        order = CreateOrder(
            request_id=f"create-{name}",
            name=IdentityName(name),
            backend="default",
            mode=Mode.AGENT,
            bearer=bearer,
        )
        return await self.enroller.create(order, wait_until=self.clock.monotonic() + 5)

    def tally(self, name: str, **labels: str) -> float:
        """Return a metric's value."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def workshop(
    folder: Path,
    *,
    profile: str = DEFAULT_PROFILE,
    issuers: Mapping[str, Issuer] = MappingProxyType({}),
    clock: SetClock | None = None,
) -> AsyncIterator[Workshop]:
    """Open a workshop on a new database; `issuers` are the sources of type `oauth`."""
    clock, metrics, api = clock or SetClock(NOW), Metrics(), ScriptedApi()
    jitter = random.Random(1)
    async with sqlite_store(folder) as real:
        store = FaultyStore(real)
        keyring = Keyring.load_or_create(folder / "keyring.json", may_create=True)
        backend = Backend(
            name="default",
            profile=PRESETS[profile],
            origins=frozenset({parse_origin("https://backend.example")}),
            assertions_enabled=True,
            allow_loopback_http=False,
        )
        shared: dict[str, Any] = {"store": store, "keyring": keyring, "clock": clock, "metrics": metrics}
        apis: Any = {"default": api}
        sources: dict[str, BearerSource] = {}
        snapshots = Snapshots(
            **shared,
            backends={"default": backend},
            bearer_sources=sources,
            logins=Logins(issuers, **shared, jitter=jitter),
            cached_threads=1000,
        )
        registrar = Registrar(
            **shared, snapshots=snapshots, apis=apis, lease_seconds=LEASE, in_flight=IN_FLIGHT, jitter=jitter
        )
        lifetimes = Lifetimes(
            store=store, registrar=registrar, clock=clock, metrics=metrics, idle_seconds=IDLE, in_flight=IN_FLIGHT
        )
        agents = AgentRegistrar(
            **shared, snapshots=snapshots, registrar=registrar, apis=apis, lease_seconds=2 * LEASE, jitter=jitter
        )
        imports = ImportReader(apis, clock)
        own_bearers = OwnBearers(keyring, issuers, clock)
        made_of: dict[str, Any] = {"store": store, "snapshots": snapshots, "registrar": registrar}
        made_of |= {"keyring": keyring, "clock": clock}
        enroller = Enroller(
            **made_of,
            agents=agents,
            imports=imports,
            backends={"default": backend},
            bearer_sources=sources,
            own_bearers=own_bearers,
            token_bytes=jitter.randbytes,
        )
        rotator = Rotator(**made_of, agents=agents, token_bytes=jitter.randbytes)
        reauthenticator = Reauthenticator(**made_of, imports=imports, own_bearers=own_bearers)
        try:
            yield Workshop(
                store,
                keyring,
                clock,
                api,
                metrics,
                snapshots,
                registrar,
                lifetimes,
                enroller,
                agents,
                rotator,
                reauthenticator,
                sources,
            )
        finally:
            await lifetimes.stop()
            await registrar.drain(0.0)
            await agents.close()
            await reauthenticator.close()
            await enroller.close()
            await imports.close()
