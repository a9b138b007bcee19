"""
`credential-broker dev`: broker, emulated backend and a ready identity in one process, and one call that is accepted.

Nothing outlives it: the state is a temporary folder, the listeners are loopback, the accounts are made up. The
environment's settings are not read, so that it can never reach a real store or backend.
"""

import asyncio
import errno
import ipaddress
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import click
import grpc
import httpx
from credentialbroker.v1 import broker_admin_pb2 as admin
from credentialbroker.v1 import credential_broker_pb2 as api
from credentialbroker.v1.broker_admin_pb2_grpc import BrokerAdminStub
from credentialbroker.v1.credential_broker_pb2_grpc import CredentialBrokerStub

from broker.app import Application
from broker.cli.channel import CHANNEL_OPTIONS, GUARD_METADATA
from broker.cli.failures import CallFailedError, describe, exit_at_start
from broker.cli.help import examples
from broker.cli.output import echo_fields, echo_table, word
from broker.cli.snippets import Place, snippets
from broker.config import Config, load_config
from broker.emulator import PROFILES, EmulatorServer, EmulatorSettings
from broker.emulator.profiles import DEFAULT_PROFILE, AgentAuth
from broker.errors import StartupError
from broker.telemetry import configure_logging

Function = TypeVar("Function", bound=Callable[..., Any])

IDENTITY: Final = "dev"
BACKEND: Final = "default"
_CALL_SECONDS: Final = 10.0
_LIFETIME: Final = timedelta(days=30)
"""Of the made-up login: longer than anybody leaves `dev` running."""

TRIALS: Final = (
    ("inference", "t1", "codex/models"),
    ("control_plane.models", "", "codex/models"),
    ("bootstrap", "", "accounts/check"),
)
"""Scope, thread and path below the backend's base URL: a thread's task, the background task, and a bearer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where the four listeners of `dev` are; 0 lets the system choose."""

    callers: int
    admin: int
    http: int
    emulator: int


def _loopback(_context: click.Context, _param: click.Parameter, value: str) -> str:
    try:
        loopback = ipaddress.ip_address(value).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise click.BadParameter(
            f"{value!r} is not a loopback address; dev authenticates nobody and hands out credentials, so it listens on"
            " 127.0.0.1 or ::1 only. For other machines there is `credential-broker serve`."
        )
    return value


def _port(option: str, default: int, what: str) -> Callable[[Function], Function]:
    return click.option(
        option,
        type=click.IntRange(0, 65535),
        default=default,
        show_default=True,
        help=f"Port of {what}; 0 lets the system choose.",
    )


@click.command(
    epilog=examples(
        "credential-broker dev",
        "# beside another one",
        "credential-broker dev --port 0 --admin-port 0 --http-port 0 --emulator-port 0",
        "# as a check: ends with exit code 0 once the backend has accepted a call",
        "credential-broker dev --once",
    )
)
@click.option("--once", is_flag=True, help="End after the accepted call, with exit code 0.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, callback=_loopback, help="A loopback address, as a literal."
)
@_port("--port", 50051, "callers")
@_port("--admin-port", 50052, "operators")
@_port("--http-port", 9464, "metrics and health")
@_port("--emulator-port", 8089, "the emulated backend")
@click.option(
    "--profile",
    type=click.Choice(sorted(PROFILES)),
    default=DEFAULT_PROFILE,
    show_default=True,
    help="Which generation of the backend's protocol to speak.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    help="Which events go to standard error.",
)
@click.pass_context
def dev(
    context: click.Context,
    *,
    once: bool,
    host: str,
    port: int,
    admin_port: int,
    http_port: int,
    emulator_port: int,
    profile: str,
    log_level: str,
) -> None:
    """
    Try it: broker, backend and a ready identity, in one go.

    Starts an emulated backend that verifies every credential, a broker, and an identity of it; gets one authorization
    of each kind and shows what the backend says to it; then prints what to paste next and keeps running. Loopback only,
    plaintext, temporary state: Ctrl-C ends it and leaves nothing behind.
    """
    ports = Ports(callers=port, admin=admin_port, http=http_port, emulator=emulator_port)
    try:
        _refuse_taken_ports(host, ports)
        with tempfile.TemporaryDirectory(prefix="credential-broker-dev-") as folder:
            settings = EmulatorSettings(host=host, port=emulator_port, profile=profile)
            surroundings = _Surroundings(settings=settings, ports=ports, state_dir=Path(folder), log_level=log_level)
            configure_logging(log_level, "auto")
            done = asyncio.run(_until_told(surroundings, once=once))
    except StartupError as error:
        exit_at_start(error)
    context.exit(0 if done or not once else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Surroundings:
    settings: EmulatorSettings
    ports: Ports
    state_dir: Path
    log_level: str

    def config(self, emulator_url: str) -> Config:
        """Return the broker's settings; nothing of them is taken from the environment."""
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        base_url = f"{emulator_url}/backend-api"
        return load_config(
            None,
            {},
            dev=True,
            overrides={
                "broker": {
                    "state_dir": str(self.state_dir),
                    "default_identity": IDENTITY,
                    "grant_bootstrap": True,
                    "reflection": True,
                    "drain_seconds": 0,
                    "drain_grace_seconds": 2,
                },
                "listen": {
                    "callers": [f"{host}:{self.ports.callers}"],
                    "admin": [f"{host}:{self.ports.admin}"],
                    "http": f"{host}:{self.ports.http}",
                },
                "log": {"level": self.log_level},
                "backends": {
                    BACKEND: {
                        "profile": self.settings.profile,
                        "base_url": base_url,
                        "authapi_base_url": f"{emulator_url}/api/accounts",
                        "jwks_base_url": base_url,
                    }
                },
            },
        )


async def _until_told(surroundings: _Surroundings, *, once: bool) -> bool:
    """Run everything until a signal or, with `once`, the accepted call; return whether a call was accepted."""
    accepted = False
    with _ended_by_signals():
        async with AsyncExitStack() as stack:
            try:
                emulator = await stack.enter_async_context(EmulatorServer(surroundings.settings))
            except OSError as error:  # taken since it was tried
                raise StartupError(
                    f"port {surroundings.ports.emulator} for the emulator cannot be listened on: {error.strerror}"
                ) from error
            app = Application(surroundings.config(emulator.url))
            await app.start()
            stack.push_async_callback(app.stop)
            _show_banner(surroundings, emulator, app)
            await _create_identity(app, emulator)
            await _show_trials(app, emulator)
            accepted = True
            if not once:
                _show_next_steps(app, emulator)
                await asyncio.Event().wait()
    return accepted


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a closed terminal end what runs inside as if it were done, cleaning up on the way."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    except asyncio.CancelledError:
        click.echo("ended", err=True)
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _refuse_taken_ports(host: str, ports: Ports) -> None:
    """
    Try every port before anything is started.

    Raises:
        StartupError: naming each that is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    wanted = (
        ("callers", "--port", ports.callers),
        ("operators", "--admin-port", ports.admin),
        ("metrics", "--http-port", ports.http),
        ("the emulator", "--emulator-port", ports.emulator),
    )
    problems, tried = [], []
    for what, option, port in wanted:
        probe = socket.socket(family, socket.SOCK_STREAM)
        tried.append(probe)
        # As the servers do: a port that only old connections linger on is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                problem = f"is in use; end what listens there (another `credential-broker dev`?) or add {option} 0"
            else:
                problem = f"cannot be listened on: {error.strerror}"
            problems.append(f"port {port} for {what} {problem}")
    for probe in tried:
        probe.close()
    if problems:
        raise StartupError(*problems)


def _show_banner(surroundings: _Surroundings, emulator: EmulatorServer, app: Application) -> None:
    click.secho("DEV MODE: loopback only, no TLS, made-up accounts; nothing is kept.", fg="yellow", bold=True)
    click.echo()
    echo_fields(
        (
            ("callers", app.caller_address),
            ("operators", app.admin_address),
            ("metrics", f"http://{app.http_address}/metrics"),
            ("backend", f"{emulator.url}, emulated, profile {surroundings.settings.profile}"),
            ("state", str(surroundings.state_dir)),
        )
    )
    click.echo()


async def _create_identity(app: Application, emulator: EmulatorServer) -> None:
    """Create the identity as an operator would: by an admin RPC, with a token of the backend."""
    fields: dict[str, Any] = {
        "request_id": "dev",
        "name": IDENTITY,
        "backend": BACKEND,
        "mode": admin.IDENTITY_MODE_AGENT,
        "static_bearer": admin.StaticBearer(token=emulator.backend.mint_token(lifetime=_LIFETIME).access_token),
        "comment": "made by credential-broker dev",
    }
    async with grpc.aio.insecure_channel(app.admin_address, options=CHANNEL_OPTIONS) as channel:
        operators = BrokerAdminStub(channel)
        if emulator.backend.profile.agent_auth is AgentAuth.NOT_OFFERED:
            # This generation registers no agents: identities come as a JWT that the backend issued.
            jwt = emulator.backend.issue_identity(lifetime=_LIFETIME).jwt
            request = admin.ImportIdentityRequest(**fields, identity_jwt=jwt)
            await _ask(app.admin_address, operators.ImportIdentity, request)
        else:
            await _ask(app.admin_address, operators.CreateIdentity, admin.CreateIdentityRequest(**fields))


async def _show_trials(app: Application, emulator: EmulatorServer) -> None:
    """Get an authorization of each kind, use it, and show what the backend says; a refusal ends the program."""
    rows = []
    async with (
        grpc.aio.insecure_channel(app.caller_address, options=CHANNEL_OPTIONS) as channel,
        # No proxy from the environment: the call carries a credential and goes to this machine.
        httpx.AsyncClient(base_url=f"{emulator.url}/backend-api/", trust_env=False, timeout=_CALL_SECONDS) as backend,
    ):
        callers = CredentialBrokerStub(channel)
        for scope, thread_id, path in TRIALS:
            request = api.GetAuthorizationRequest(scope=scope, thread_id=thread_id)
            began = time.perf_counter()
            response = await _ask(app.caller_address, callers.GetAuthorization, request)
            took = time.perf_counter() - began
            authorization = response.authorization
            answer = await backend.get(path, headers=[(header.name, header.value) for header in authorization.headers])
            if not answer.is_success:
                raise click.ClickException(f"the backend refused the authorization for {scope}: {answer.text}")
            rows.append(
                (
                    f"{scope}, thread {thread_id}" if thread_id else scope,
                    word(authorization, "kind"),
                    word(authorization, "reason"),
                    f"{answer.json()['verdict']} ({answer.status_code})",
                    f"{took * 1000:.1f} ms",
                )
            )
    echo_table(("authorization for", "kind", "reason", "the backend says", "took"), rows)


async def _ask(address: str, rpc: Any, request: Any) -> Any:
    try:
        return await rpc(request, timeout=_CALL_SECONDS, metadata=GUARD_METADATA)
    except grpc.RpcError as error:
        failure = describe(
            cast("grpc.Call", error), address=address, timeout=_CALL_SECONDS, start="credential-broker dev", tls=False
        )
        raise CallFailedError(failure, as_json=False) from None


def _show_next_steps(app: Application, emulator: EmulatorServer) -> None:
    place = Place(
        caller_address=app.caller_address,
        admin_address=app.admin_address,
        emulator_url=emulator.url,
        program=command_here("credential-broker"),
        python=command_here("python"),
        buf=command_here("buf"),
        checkout=checkout_here(),
    )
    click.echo("\nNext, in another terminal:")
    for snippet in snippets(place):
        click.secho(f"\n# {snippet.title}", dim=True)
        click.echo(snippet.text)
    click.echo("\nCtrl-C ends it and leaves nothing behind.")


def checkout_here() -> str | None:
    """Return the folder of the sources that this runs from, relative where it is below here; None when installed."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / "stubs" / "README.md").is_file():
        return None
    try:
        return str(folder.relative_to(Path.cwd().resolve()))
    except ValueError:
        return str(folder)


def command_here(name: str) -> str:
    """Return how a program of this installation is called from here: its name, where that finds it, else its path."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    if not beside.exists() or (found is not None and Path(found).absolute() == beside.absolute()):
        return name
    try:
        return str(beside.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(beside.absolute())
