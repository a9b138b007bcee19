"""What a case finds: brokers and an emulator (a place, which cases may share), and what is the case's own in it."""

import asyncio
import contextlib
import errno
import itertools
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Self

import grpc
import httpx
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2

from broker.emulator import EmulatorServer, EmulatorSettings
from broker.emulator.accounts import Account, fingerprint
from broker.emulator.faults import FaultRule
from tests.polyglot.suite import brokers, processes
from tests.polyglot.suite.brokers import Broker, Nursery
from tests.polyglot.suite.cases import COMMON_ACTIONS, OWN_ACTIONS, SCRIPTED_ACTIONS, Case
from tests.polyglot.suite.expressions import replaced, viewed
from tests.support.certificates import Authority
from tests.support.grpc_echo import GrpcEcho
from tests.support.http_origin import HttpOrigin
from tests.support.scripted_broker import IDENTITY as SCRIPTED_IDENTITY
from tests.support.scripted_broker import ScriptedBroker

SHORT_SECONDS: Final = 4
"""How long answers of the backend `short` and of the scope `inference.short` are kept."""
HEARTBEAT_SECONDS: Final = 1
_HOSTS: Final = {"a": "127.0.0.1", "b": "127.0.0.2"}
_ORIGINS: Final = 8
"""How many cases of a place may have an origin at one time."""
_CALL_SECONDS: Final = 15.0
_PORT_SECONDS: Final = 10.0
"""How long a port that a case names may be somebody else's."""
_PROTECTED: Final = "/backend-api/codex/models"
_IDENTITIES: Final = {"identity": False, "other": False, "short": False, "bearer": True}
"""The variables of identities, and whether they hold a bearer only."""


class WorldError(Exception):
    """What a case asked of its world could not be done."""


class NotHereError(Exception):
    """This machine does not have what a case needs."""


class Certificates:
    """
    The PEM files of a run, made once.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        authority = Authority()
        self.pair = authority.issue()
        self.certificate, self.private_key = self.pair.write(folder)
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(authority.certificate)
        self.other_ca = folder / "other-ca.crt"
        other = Authority("another authority")
        self.other_ca.write_bytes(other.certificate)
        (folder / "other").mkdir(exist_ok=True)
        self.other_certificate, self.other_private_key = other.issue().write(folder / "other")


class Ground:
    """
    What all places of a run stand on: certificates, and where brokers come from.

    Args:
        folder: for their files.
    """

    def __init__(self, folder: Path) -> None:
        self.certificates = Certificates(folder / "certificates")
        self.nursery = Nursery(folder)
        self.ports: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Who has a port that cases name: one case at a time."""

    async def __aenter__(self) -> Self:
        await self.nursery.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.nursery.__aexit__(*error)


class Place:
    """
    Brokers on one state directory, with an emulator behind them, for as long as the `async with` block lasts.

    Args:
        ground: of the run.
        names: of the brokers, `a` and `b`.
        up: whether they are started.
        connection_age: seconds to which the life of their connections is scaled down; None leaves it.
    """

    def __init__(
        self,
        ground: Ground,
        *,
        names: tuple[str, ...] = ("a",),
        up: bool = True,
        connection_age: float | None = None,
    ) -> None:
        self._ground = ground
        self.numbers = itertools.count(1)
        self.brokers: dict[str, Broker] = {}
        self.port = processes.free_port(*(_HOSTS[name] for name in names))
        self.origin_ports: asyncio.Queue[int] = asyncio.Queue()
        self._names = names
        self._addresses: dict[str, str] = {}
        self._up = up
        self._age = connection_age
        self._exits = contextlib.AsyncExitStack()
        self._starting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        # Short, as the path of a Unix socket must be.
        self.folder = Path(tempfile.mkdtemp(prefix="cb-"))
        self._exits.push_async_callback(asyncio.to_thread, shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self.emulator = await self._exits.enter_async_context(EmulatorServer(EmulatorSettings(port=0)))
            self._ports = [processes.free_port() for _ in range(_ORIGINS)]
            for port in self._ports:
                self.origin_ports.put_nowait(port)
            for name in self._names:
                self._add(name, _HOSTS[name], self.port)
            if self._up:
                await asyncio.gather(*(broker.start() for broker in self.brokers.values()))
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    @property
    def state(self) -> Path:
        """The brokers' state directory."""
        return self.folder / "state"

    def address(self, name: str) -> str:
        """Where a broker's callers connect to."""
        return f"{_HOSTS[name]}:{self.port}"

    def socket(self, name: str = "a") -> str:
        """The Unix socket of a broker's callers."""
        return f"unix://{self.folder}/{name}.sock"

    async def tls_address(self, *, mutual: bool) -> str:
        """Return where a broker with TLS is, started when it is first asked for."""
        name = "mtls" if mutual else "tls"
        async with self._starting:
            if name not in self.brokers:
                port = processes.free_port()
                files = self._ground.certificates
                tls = {"certificate_file": str(files.certificate), "private_key_file": str(files.private_key)}
                if mutual:
                    tls["client_ca_file"] = str(files.ca)
                self._add(name, "127.0.0.1", port, tls=tls)
                await self.brokers[name].start()
                self._addresses[name] = f"localhost:{port}"
        return self._addresses[name]

    def operator(self) -> Broker:
        """Return a broker that is up."""
        for broker in self.brokers.values():
            if broker.is_up:
                return broker
        raise WorldError("no broker is up")

    def _add(self, name: str, host: str, port: int, **listen: Any) -> None:
        admin = f"unix://{self.folder}/{name}-admin.sock"
        http = f"127.0.0.1:{processes.free_port()}"
        settings = {
            "broker": {
                "state_dir": str(self.state),
                "grant_bootstrap": True,
                "drain_seconds": 0.3,
                "drain_grace_seconds": 5,
            },
            "listen": {"callers": [f"{host}:{port}", self.socket(name)], "admin": [admin], "http": http, **listen},
            "log": {"level": "info", "format": "json"},
            "limits": {"watch_heartbeat_seconds": HEARTBEAT_SECONDS, "registration_lease_seconds": 10},
            "store": {"poll_seconds": 0.05},
            "backends": {
                "default": self._backend(),
                "short": {**self._backend(), "assertion_lifetime_seconds": SHORT_SECONDS},
            },
            "scopes": {
                "inference.short": {"description": "answers kept for seconds", "max_lifetime_seconds": SHORT_SECONDS}
            },
        }
        broker = Broker(
            self._ground.nursery, name, self.folder, settings, admin=admin, http=http, connection_age=self._age
        )
        self._exits.push_async_callback(broker.close)
        self.brokers[name] = broker

    def _backend(self) -> dict[str, Any]:
        return {
            "base_url": f"{self.emulator.url}/backend-api",
            "authapi_base_url": f"{self.emulator.url}/api/accounts",
            "allowed_origins": [f"http://127.0.0.1:{port}" for port in self._ports],
        }


@dataclass(slots=True)
class _Identities:
    """Those of a case: their names, and what the emulator knows them by."""

    names: dict[str, str] = field(default_factory=dict)
    accounts: set[str] = field(default_factory=set)
    fingerprints: set[str] = field(default_factory=set)


class World:
    """
    What one case finds, for as long as the `async with` block lasts.

    Args:
        case: what it is for.
        place: real brokers; None for a case of the scripted broker.
        folder: of the case, empty.
        ground: of the run.
        adapter: the adapter that the case is run for; empty where it is for none.
    """

    def __init__(self, case: Case, place: Place | None, *, folder: Path, ground: Ground, adapter: str = "") -> None:
        self.variables: dict[str, str] = {}
        self.scripted: ScriptedBroker | None = None
        self._case = case
        self._place = place
        self._folder = folder
        self._certificates = ground.certificates
        self._ports = ground.ports
        self._adapter = adapter
        self._identities = _Identities()
        self._servers: dict[str, HttpOrigin | GrpcEcho] = {}
        self._faults: list[str] = []
        self._before: dict[str, Counter[brokers.Sample]] = {}
        self._now: dict[str, Counter[brokers.Sample]] = {}
        self._ledger_before = 0
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._make()
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._place is not None:
            for fault in self._faults:
                self._place.emulator.backend.faults.remove(fault)
        await self._exits.aclose()

    @property
    def hosts_file(self) -> Path | None:
        """What stands in the place of /etc/hosts for the driver; None where that stays."""
        return None if self._case.hosts is None else self._folder / "hosts"

    def filled(self, text: str) -> str:
        """Put the case's variables into a text."""
        return replaced(text, self.variables)

    # --- what the case's texts name -----------------------------------------------------------------------------------

    async def _make(self) -> None:
        number = next(_NUMBERS) if self._place is None else next(self._place.numbers)
        key = f"{self._case.name[:40]}-{number}"
        files = self._certificates
        self.variables = {
            "thread": f"{key}-1",
            "thread2": f"{key}-2",
            "thread3": f"{key}-3",
            "adapter": self._adapter,
            "folder": str(self._folder),
            "ca": str(files.ca),
            "echo_ca": str(files.ca),
            "other_ca": str(files.other_ca),
            "certificate": str(files.certificate),
            "private_key": str(files.private_key),
            "other_certificate": str(files.other_certificate),
            "other_private_key": str(files.other_private_key),
        }
        wanted = self._case.variables
        if self._case.hosts is not None:
            self.set_hosts(self._case.hosts)
        if self._place is None:
            self.scripted = await self._make_scripted(self._case.port)
            host, _, port = self.scripted.address.rpartition(":")
            self.variables |= {
                "broker": f"{host}:{port}",
                "port": port,
                "identity": SCRIPTED_IDENTITY,
            }
        else:
            await self._make_real(self._place, key, wanted)
        await self._make_servers(wanted)
        await self.look()
        self._before = self._now

    async def _make_scripted(self, port: int) -> ScriptedBroker:
        if not port:
            return await self._exits.enter_async_context(ScriptedBroker())
        await self._exits.enter_async_context(self._ports[port])
        # Another run on this machine may have it for a moment.
        end = time.monotonic() + _PORT_SECONDS
        while True:
            try:
                return await self._exits.enter_async_context(ScriptedBroker(port=port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                if time.monotonic() > end:
                    raise NotHereError(f"port {port} is taken by something else") from None
            await asyncio.sleep(0.2)

    async def _make_real(self, place: Place, key: str, wanted: set[str]) -> None:
        self.variables |= {
            "broker": place.address("a"),
            "port": str(place.port),
            "unix": place.socket().removeprefix("unix://"),
        }
        for name, mutual in (("tls", False), ("mtls", True)):
            if wanted & {f"{name}_broker", f"{name}_port"}:
                address = await place.tls_address(mutual=mutual)
                self.variables |= {f"{name}_broker": address, f"{name}_port": address.rpartition(":")[2]}
        roles = [role for role in _IDENTITIES if role in wanted or (role == "identity" and self._opens_default)]
        self._ledger_before = place.emulator.backend.ledger.as_json()["last_seq"]
        was_down = roles and not place.brokers["a"].is_up
        if was_down:
            await place.brokers["a"].start()
        for role in roles:
            self.variables[role] = await self._create(place, f"{key}.{role}", role)
        if was_down:
            await place.brokers["a"].kill()
        for broker in place.brokers.values():
            if broker.is_up:
                await _knows(broker, self._identities.names.values())

    @property
    def _opens_default(self) -> bool:
        return self._case.open is not None and "identity" not in self._case.open and not self._case.open.get("env")

    async def _create(self, place: Place, name: str, role: str) -> str:
        account = Account(account_id=f"account-{name}", chatgpt_user_id=f"user-{name}")
        token = f"token-{name}-{time.monotonic_ns()}"
        place.emulator.backend.accept_bearer(token, account=account, lifetime=timedelta(days=1))
        is_bearer = _IDENTITIES[role]
        request = admin_pb2.CreateIdentityRequest(
            request_id=name,
            name=name,
            backend="short" if role == "short" else "default",
            mode=admin_pb2.IDENTITY_MODE_BEARER if is_bearer else admin_pb2.IDENTITY_MODE_AGENT,
            account_id=account.account_id or "",
            user_id=account.chatgpt_user_id or "",
            static_bearer=admin_pb2.StaticBearer(token=token),
        )
        await _patiently(place.brokers["a"].operators.CreateIdentity, request)
        self._identities.names[role] = name
        self._identities.accounts.add(account.account_id or "")
        self._identities.fingerprints.add(fingerprint(token))
        return name

    async def _make_servers(self, wanted: set[str]) -> None:
        emulator = "" if self._place is None else self._place.emulator.url
        if wanted & {"origin", "origin_port"}:
            port = 0
            if self._place is not None:
                port = await self._place.origin_ports.get()
                self._exits.callback(self._place.origin_ports.put_nowait, port)
            origin = await self._exits.enter_async_context(HttpOrigin(emulator, port=port))
            self._add_server("origin", origin)
        if wanted & {"trap", "trap_port"}:
            trap = await self._exits.enter_async_context(HttpOrigin())
            self._add_server("trap", trap)
        if "echo" in wanted:
            echo = await self._exits.enter_async_context(GrpcEcho(emulator, self._certificates.pair))
            # By the name that is in its certificate.
            self._servers["echo"] = echo
            self.variables["echo"] = echo.address.replace("127.0.0.1", "localhost")

    def _add_server(self, name: str, server: HttpOrigin) -> None:
        self._servers[name] = server
        self.variables[name] = server.url
        self.variables[f"{name}_port"] = server.url.rpartition(":")[2]

    def set_hosts(self, names: Mapping[str, list[str]]) -> None:
        """Write the driver's /etc/hosts, in place: it is mounted."""
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, all_ in names.items() for address in all_)]
        (self._folder / "hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")

    # --- what happens -------------------------------------------------------------------------------------------------

    async def act(self, action: str, members: Mapping[str, Any], saved: Mapping[str, Any]) -> Any:
        """
        Do what a step of kind `world` names; return what comes of it.

        Args:
            action: its name.
            members: of the step, variables replaced.
            saved: the answers of the case by name, as tables.
        """
        if action in SCRIPTED_ACTIONS:
            return _act_scripted(self.scripted, action, members)
        if action in COMMON_ACTIONS:
            return self._act_on_files(action, members)
        if action in OWN_ACTIONS:
            broker = self._real.brokers[members.get("broker", "a")]
            return await _turn(broker, action.removesuffix("_broker"))
        return await self._act_real(self._real, action, members, saved)

    def _act_on_files(self, action: str, members: Mapping[str, Any]) -> None:
        match action:
            case "hosts":
                self.set_hosts(members["names"])
            case "write_file":
                _replace(Path(members["path"]), members["text"].encode())
            case "copy_file":
                _replace(Path(members["path"]), Path(members["of"]).read_bytes())

    async def _act_real(
        self, place: Place, action: str, members: Mapping[str, Any], saved: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        match action:
            case "fault":
                return await self._fault(place, members)
            case "verify":
                return await self._verify(place, saved[members["of"]])
            case "revoke_task":
                await self._revoke_task(place, members)
            case _:
                await self._operate(place, action, members.get("identity", self.variables.get("identity", "")))
        return None

    @property
    def _real(self) -> Place:
        if self._place is None:
            raise WorldError("there is no real broker in the lane scripted")
        return self._place

    async def _operate(self, place: Place, action: str, identity: str) -> None:
        operators = place.operator().operators
        match action:
            case "disable":
                request = admin_pb2.DisableIdentityRequest(name=identity, comment="conformance")
                await operators.DisableIdentity(request, timeout=_CALL_SECONDS)
            case "enable":
                enable = admin_pb2.EnableIdentityRequest(name=identity, comment="conformance")
                await operators.EnableIdentity(enable, timeout=_CALL_SECONDS)
            case "rotate":
                rotate = admin_pb2.RotateIdentityKeyRequest(
                    request_id=f"rotate-{time.monotonic_ns()}", name=identity, comment="conformance"
                )
                await operators.RotateIdentityKey(rotate, timeout=_CALL_SECONDS)
            case _:
                raise WorldError(f"there is no action {action}")

    async def _revoke_task(self, place: Place, members: Mapping[str, Any]) -> None:
        operators = place.operator().operators
        identity = members.get("identity", self.variables.get("identity", ""))
        thread = members.get("thread", self.variables["thread"])
        listed = await operators.ListTasks(admin_pb2.ListTasksRequest(identity=identity), timeout=_CALL_SECONDS)
        tasks = [task for task in listed.tasks if task.thread_id == thread]
        if len(tasks) != 1:
            raise WorldError(f"{identity} has {len(tasks)} tasks for {thread}")
        revoke = admin_pb2.RevokeTaskRequest(id=tasks[0].id, force=True, comment="conformance")
        await operators.RevokeTask(revoke, timeout=_CALL_SECONDS)

    async def _fault(self, place: Place, members: Mapping[str, Any]) -> dict[str, Any]:
        rule = {name: value for name, value in members.items() if name != "agent"}
        if "agent" in members:
            get = admin_pb2.GetIdentityRequest(name=members["agent"])
            answer = await place.operator().operators.GetIdentity(get, timeout=_CALL_SECONDS)
            rule["agent_runtime_id"] = answer.identity.agent_runtime_id
        added = place.emulator.backend.faults.add(FaultRule.from_json(rule))
        self._faults.append(added.rule_id)
        return added.as_json()

    async def _verify(self, place: Place, answer: Mapping[str, Any]) -> dict[str, Any]:
        async with httpx.AsyncClient(
            trust_env=False, timeout=_CALL_SECONDS, verify=processes.no_authorities()
        ) as client:
            headers = [(name, value) for name, value in answer["headers"]]
            seen = await client.get(place.emulator.url + _PROTECTED, headers=headers)
        return {"verdict": "refused", "status": seen.status_code, **seen.json()}

    # --- what is seen -------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Read the metrics of all brokers, for the functions that count."""
        if self._place is not None:
            self._now = {name: await broker.samples() for name, broker in self._place.brokers.items()}

    async def settle(self) -> None:
        """Wait until the grants of this second are counted in the audit log."""
        await asyncio.sleep(1.25 - time.time() % 1)

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Return the functions of expressions that say what broker, emulator and servers saw."""
        common: dict[str, Callable[..., Any]] = {
            "requests": self._requests,
            "gaps": _gaps,
            "variable": self.variables.__getitem__,
        }
        if self.scripted is not None:
            scripted = self.scripted
            return {
                **common,
                "calls": lambda rpc, code=None: scripted.calls(rpc, code=code),
                "streams": lambda: scripted.streams,
                "subscriptions": lambda: scripted.subscriptions,
                "received": lambda rpc, thread=None: [
                    call
                    for call in scripted.received
                    if call.rpc == rpc and thread in {None, getattr(call.request, "thread_id", None)}
                ],
                "opened": lambda: list(scripted.opened),
                "connections": lambda: scripted.gate.connections,
                "attempts": lambda: list(scripted.gate.attempts),
                "pings": lambda: list(scripted.gate.pings),
            }
        return {
            **common,
            "calls": self._calls,
            "streams": lambda at=None: self._gauge("credential_broker_watch_streams", at),
            "subscriptions": lambda at=None: self._gauge("credential_broker_watch_subscriptions", at),
            "values": lambda: self._since("credential_broker_watch_values_total", None),
            "withdrawals": lambda reason=None: self._since(
                "credential_broker_watch_withdrawals_total", None, **({"reason": reason} if reason else {})
            ),
            "grants": self._grants,
            "ledger": self._ledger,
        }

    def _calls(self, rpc: str, code: str | None = None, at: str | None = None) -> int:
        if code is None:
            return self._since("grpc_server_started_total", at, grpc_method=rpc)
        return self._since("grpc_server_handled_total", at, grpc_method=rpc, grpc_code=code)

    def _since(self, name: str, at: str | None, **labels: str) -> int:
        return sum(
            brokers.total(samples, name, **labels) - brokers.total(self._before.get(one, {}), name, **labels)
            for one, samples in self._now.items()
            if at in {None, one}
        )

    def _gauge(self, name: str, at: str | None) -> int:
        # What a case before left behind is that case's failure alone.
        return self._since(name, at)

    def _grants(
        self,
        scope: str | None = None,
        thread: str | None = None,
        identity: str | None = None,
        kind: str | None = None,
    ) -> list[Any]:
        wanted = {"scope": scope, "thread_id": thread, "identity": identity, "kind": kind and kind.lower()}
        records = brokers.grants(self._real.state, set(self._identities.names.values()))
        return [
            viewed("grant", record)
            for record in records
            if all(value in {None, record[name]} for name, value in wanted.items())
        ]

    def _ledger(
        self,
        verdict: str | None = None,
        refusal: str | None = None,
        path: str | None = None,
        kind: str | None = None,
        operation: str | None = None,
    ) -> list[Any]:
        backend = self._real.emulator.backend
        agents = {
            agent["agent_runtime_id"]
            for agent in backend.registry.agents_json()
            if agent["account_id"] in self._identities.accounts
        }
        return [
            entry
            for entry in backend.ledger.entries(
                since=self._ledger_before, path=path, kind=kind and kind.lower(), operation=operation
            )
            if verdict in {None, entry.verdict}
            and refusal in {None, entry.refusal}
            and (
                entry.account_id in self._identities.accounts
                or entry.agent_runtime_id in agents
                or entry.credential_fingerprint in self._identities.fingerprints
            )
        ]

    def _requests(self, where: str, path: str | None = None) -> list[Any]:
        requests = self._servers[where].requests
        return [one for one in requests if path in {None, getattr(one, "path", None)}]


_NUMBERS: Final[Iterator[int]] = itertools.count(1)


async def _patiently(rpc: Any, request: Any) -> None:
    """Ask an operator's call again while a machine that is busy keeps the broker from its backend."""
    async with asyncio.timeout(_CALL_SECONDS):
        while True:
            try:
                await rpc(request, timeout=_CALL_SECONDS, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.2)
            else:
                return


async def _knows(broker: Broker, names: Any) -> None:
    """Wait until a broker knows identities that another one on the same database made."""
    async with asyncio.timeout(_CALL_SECONDS):
        for name in names:
            while True:
                try:
                    get = admin_pb2.GetIdentityRequest(name=name)
                    await broker.operators.GetIdentity(get, timeout=_CALL_SECONDS, wait_for_ready=True)
                    break
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.NOT_FOUND:
                        raise
                    await asyncio.sleep(0.02)


def _act_scripted(broker: ScriptedBroker | None, action: str, members: Mapping[str, Any]) -> Any:
    if broker is None:
        raise WorldError(f"{action}: there is no scripted broker in this lane")
    match action:
        case "gate":
            return broker.gate.turn(**members)
        case _:
            return getattr(broker, action)(**members)


async def _turn(broker: Broker, what: str) -> None:
    match what:
        case "kill":
            await broker.kill()
        case "stop":
            await broker.stop()
        case "start":
            await broker.start()
        case _:
            broker.pause(on=what == "pause")


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one step, as what mounts secrets does."""
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(content)
    draft.replace(path)


def _gaps(moments: list[Any]) -> list[float]:
    times = [one if isinstance(one, float | int) else one.time for one in moments]
    return [later - earlier for earlier, later in itertools.pairwise(times)]
