"""
How long callers are served while something is away, by kind of credential: the table of docs/outages.md and its proof.

`OUTAGES` is both: what the page says of each cell, and until when the test finds it served, and what it finds then.
"""

import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.emulator import Action, EmulatorServer, EmulatorSettings, FaultRule, Operation
from broker.emulator.clients import DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET
from broker.errors import StartupError
from tests.support.brokers import Broker, eventually, refused, running_broker
from tests.support.clocks import JumpingClock
from tests.support.sources import secret_file
from tests.support.stores import FaultyStore

HOUR: Final = 3600.0
TOKEN_LIFE: Final = 2 * HOUR
WORKLOAD_LIFE: Final = 1 * HOUR  # no issuer gives more
TASK_LIFE: Final = 10 * HOUR
SURE_TASK_LIFE: Final = 0.85 * TASK_LIFE
"""Tasks that are registered together do not end together: each lives a little shorter."""
MAX_STALENESS: Final = 1 * HOUR
HORIZON: Final = 0.8 * TASK_LIFE
"""What is served until then is served without an end of its own."""


@dataclass(frozen=True)
class Cell:
    """What a page says of one outage, the seconds for which it is served (None: without an end), and what comes then."""

    says: str
    served: float | None
    then: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of credential, and what callers get of it while something is away."""

    issuer: Cell
    backend: Cell
    store: Cell
    restart: Cell
    """The broker is started again meanwhile, without the issuer and without the backend; served 0 is not at all."""
    profile: str = "codex-2026-05"
    new_thread: bool = False


NO_LIMIT = Cell("without a limit", None)
KEPT = Cell("as before", None)
OWN_END = Cell("until it ends, then `REAUTH_REQUIRED`", TOKEN_LIFE, "REAUTH_REQUIRED")
TOKENS_END = Cell("until its token ends, then `ISSUER_DOWN`", TOKEN_LIFE, "ISSUER_DOWN")
STALENESS = Cell("`max_staleness_seconds`, then `STORE_DOWN`", MAX_STALENESS, "STORE_DOWN")
FORGOTTEN = Cell("not before its issuer is back: `ISSUER_DOWN`", 0, "ISSUER_DOWN")
EXCHANGED = {"issuer": TOKENS_END, "backend": NO_LIMIT, "store": STALENESS, "restart": FORGOTTEN}

OUTAGES: Final[Mapping[str, Kind]] = {
    "assertion, task known": Kind(
        issuer=NO_LIMIT,
        backend=Cell("until its task ends, then `BACKEND_DOWN`", SURE_TASK_LIFE, "BACKEND_DOWN"),
        store=STALENESS,
        restart=KEPT,
    ),
    "assertion, new task": Kind(
        issuer=NO_LIMIT,
        backend=Cell("not at all: `BACKEND_DOWN`", 0, "BACKEND_DOWN"),
        store=Cell("not at all: `STORE_DOWN`", 0, "STORE_DOWN"),
        restart=Cell("not at all: `BACKEND_DOWN`", 0, "BACKEND_DOWN"),
        new_thread=True,
    ),
    "assertion, new task by biscuit": Kind(
        issuer=Cell("until the bearer for biscuits ends, then `ISSUER_DOWN`", TOKEN_LIFE, "ISSUER_DOWN"),
        backend=Cell("not at all: `BACKEND_DOWN`", 0, "BACKEND_DOWN"),
        store=Cell("not at all: `STORE_DOWN`", 0, "STORE_DOWN"),
        restart=Cell("not at all: `BACKEND_DOWN`", 0, "BACKEND_DOWN"),
        profile="codex-2026-04",
        new_thread=True,
    ),
    "static": Kind(issuer=OWN_END, backend=OWN_END, store=STALENESS, restart=KEPT),
    "file": Kind(
        issuer=TOKENS_END,
        backend=TOKENS_END,
        store=STALENESS,
        restart=Cell("not before the file is back: `ISSUER_DOWN`", 0, "ISSUER_DOWN"),
    ),
    "oauth": Kind(issuer=TOKENS_END, backend=NO_LIMIT, store=STALENESS, restart=KEPT),
    "oauth, token of half an hour": Kind(
        issuer=Cell("until its token ends, then `ISSUER_DOWN`", HOUR / 2, "ISSUER_DOWN"),
        backend=NO_LIMIT,
        store=Cell("until its token ends, then `STORE_DOWN`", HOUR / 2, "STORE_DOWN"),
        restart=KEPT,
    ),
    "client_credentials": Kind(**EXCHANGED),
    "workload_identity": Kind(
        **EXCHANGED | {"issuer": Cell("until its token ends, then `ISSUER_DOWN`", WORKLOAD_LIFE, "ISSUER_DOWN")}
    ),
    "command": Kind(**EXCHANGED | {"backend": TOKENS_END}),
    "jwt_identity": Kind(
        issuer=NO_LIMIT,
        backend=Cell("until its task ends, then `BACKEND_DOWN`", SURE_TASK_LIFE, "BACKEND_DOWN"),
        store=STALENESS,
        restart=KEPT,
        profile="codex-2026-08",
    ),
}


@dataclass
class Scene:
    """A broker with one identity of one kind, and what it stands on."""

    kind: str
    folder: Path
    emulator: EmulatorServer
    clock: JumpingClock
    broker: Broker = field(init=False)
    store: FaultyStore = field(init=False)
    threads: "itertools.count[int]" = field(default_factory=itertools.count)

    @property
    def rule(self) -> Kind:
        """What is said of the kind."""
        return OUTAGES[self.kind]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the broker on the state that there is."""

        def wrapped(store: Any) -> Any:
            self.store = FaultyStore(store)
            return self.store

        url = self.emulator.url
        backend = {
            "profile": self.rule.profile,
            "base_url": f"{url}/backend-api",
            "authapi_base_url": f"{url}/api/accounts",
            "task_lifetime_seconds": TASK_LIFE,
        }
        async with running_broker(
            self.folder / "state",
            self.emulator,
            clock=self.clock,
            wrap_store=wrapped,
            backends={"default": backend},
            broker={"max_staleness_seconds": MAX_STALENESS},
            bearer_sources={"source": self._source(url)},
        ) as self.broker:
            yield

    def _source(self, url: str) -> dict[str, Any]:
        """Return the settings of the source that the kind needs."""
        issuer = {"token_url": f"{url}/oauth/token", "timeout_seconds": 2.0}
        match self.kind:
            case "file":
                return {"type": "file", "path": str(self.folder / "token")}
            case "command":
                return {"type": "command", "command": ["/bin/cat", str(self.folder / "token")]}
            case "client_credentials":
                secret = secret_file(self.folder / "secret", DEFAULT_CLIENT_SECRET)
                client = {"client_id": DEFAULT_CLIENT_ID, "client_secret_file": secret}
                return {"type": "client_credentials", **issuer, **client}
            case "workload_identity":
                settings = self.emulator.backend.settings
                token = self.emulator.backend.mint_subject_token(lifetime=timedelta(days=2))
                return {
                    "type": "workload_identity",
                    **issuer,
                    "federation_rule_id": settings.federation_rule_id,
                    "identity_token_file": secret_file(self.folder / "subject", token),
                }
            case _:
                return {"type": "oauth", **issuer}

    async def enroll(self) -> None:
        """Make the identity, and use it once."""
        admin, backend = self.broker.admin, self.emulator.backend
        common = {"request_id": "one", "name": "one", "backend": "default"}
        if self.kind == "jwt_identity":
            jwt = backend.issue_identity().jwt
            await admin.ImportIdentity(
                admin_pb2.ImportIdentityRequest(**common, mode=admin_pb2.IDENTITY_MODE_AGENT, identity_jwt=jwt)
            )
        else:
            is_agent = self.kind.startswith("assertion")
            mode = admin_pb2.IDENTITY_MODE_AGENT if is_agent else admin_pb2.IDENTITY_MODE_BEARER
            await admin.CreateIdentity(admin_pb2.CreateIdentityRequest(**common, mode=mode, **self._bearer()))
        await self.call()

    def _bearer(self) -> dict[str, Any]:
        if self.kind in ("file", "command", "client_credentials", "workload_identity"):
            return {"bearer_source": "source"}
        tokens = self.emulator.backend.mint_token()
        if self.kind == "static":
            return {"static_bearer": admin_pb2.StaticBearer(token=tokens.access_token)}
        return {
            "oauth_bearer": admin_pb2.OauthBearer(
                source="source", refresh_token=tokens.refresh_token or "", access_token=tokens.access_token
            )
        }

    async def call(self) -> pb2.Authorization:
        """Ask for what the kind is about."""
        thread = f"thread-{next(self.threads)}" if self.rule.new_thread else "known"
        return await self.broker.authorize("inference", thread, timeout=15.0)

    async def jump(self, until: float, began: float, *, store_is_there: bool) -> None:
        """Let the clock be so many seconds behind where it began, and the store be found there if it is."""
        before = self.broker.app.snapshots.confirmation
        self.clock.ahead = began + until
        if store_is_there:
            await eventually(lambda: self.broker.app.snapshots.confirmation is not before)

    async def lose_issuer(self) -> None:
        """Let nothing be exchanged, and nothing be renewed in files."""
        self._fail(Operation.OAUTH)
        (self.folder / "token").unlink(missing_ok=True)

    async def lose_backend(self) -> None:
        """Let the backend register nothing and publish no key."""
        for operation in (Operation.AGENT_REGISTER, Operation.TASK_REGISTER, Operation.BISCUIT, Operation.JWKS):
            self._fail(operation)

    async def lose_store(self) -> None:
        """Let the store answer nothing, and what it was asked before be answered."""
        self.store.go_down()
        asked = self.store.calls["has_changed"]
        # The store is followed by one call after the other: the second one from now began after it went down.
        await eventually(lambda: self.store.calls["has_changed"] >= asked + 2)

    def _fail(self, operation: Operation) -> None:
        self.emulator.backend.faults.add(FaultRule(action=Action.STATUS, status=503, operation=operation, count=None))


@contextlib.asynccontextmanager
async def opened_scene(kind: str, folder: Path) -> AsyncIterator[Scene]:
    """Set a scene, without the broker."""
    clock = JumpingClock()
    life = HOUR / 2 if kind == "oauth, token of half an hour" else TOKEN_LIFE
    settings = EmulatorSettings(port=0, profile=OUTAGES[kind].profile, access_token_seconds=life)
    async with EmulatorServer(settings, time_source=clock.now) as emulator:
        scene = Scene(kind, folder, emulator, clock)
        secret_file(folder / "token", emulator.backend.mint_token().access_token)
        yield scene


def _cases() -> list[Any]:
    return [
        pytest.param(kind, what, id=f"{kind} - {what}") for kind in OUTAGES for what in ("issuer", "backend", "store")
    ]


@pytest.mark.parametrize(("kind", "away"), _cases())
async def test_callers_are_served_for_as_long_as_the_page_says(kind: str, away: str, tmp_path: Path) -> None:
    """Until shortly before the end that is told, each call is served; shortly after, it is refused as told."""
    cell: Cell = getattr(OUTAGES[kind], away)
    async with opened_scene(kind, tmp_path) as scene, scene.running():
        await scene.enroll()
        lose: Callable[[], Awaitable[None]] = getattr(scene, f"lose_{away}")
        await lose()
        began = scene.clock.ahead
        there = away != "store"
        if cell.served != 0:
            end = HORIZON if cell.served is None else cell.served
            for moment in (0.0, end / 2, end - 60):
                await scene.jump(moment, began, store_is_there=there)
                assert (await scene.call()).expire_time.ToNanoseconds() / 1e9 > scene.clock.now()
        if cell.then:
            ended = TASK_LIFE if cell.served == SURE_TASK_LIFE else cell.served or 0.0
            await scene.jump(ended + 20, began, store_is_there=there)
            for _ in range(2):
                assert (await refused(scene.call())).reason == cell.then


@pytest.mark.parametrize("kind", OUTAGES)
async def test_a_restart_in_the_midst_changes_what_the_page_says(kind: str, tmp_path: Path) -> None:
    """Without issuer and backend the broker starts all the same, and serves what it finds in its store."""
    cell = OUTAGES[kind].restart
    async with opened_scene(kind, tmp_path) as scene:
        async with scene.running():
            await scene.enroll()
        await scene.lose_issuer()
        await scene.lose_backend()
        async with scene.running():
            if cell.served is None:
                assert (await scene.call()).expire_time.ToNanoseconds() / 1e9 > scene.clock.now()
            else:
                assert (await refused(scene.call())).reason == cell.then


async def test_no_start_without_the_store(tmp_path: Path) -> None:
    """A store that is away at the start is the one thing that keeps the broker from starting; the exit code says so."""

    def away(store: Any) -> Any:
        faulty = FaultyStore(store)
        faulty.go_down()
        return faulty

    async with EmulatorServer(EmulatorSettings(port=0)) as emulator:
        with pytest.raises(StartupError) as caught:
            async with running_broker(tmp_path, emulator, wrap_store=away):
                pass
    assert caught.value.exit_code == 69
