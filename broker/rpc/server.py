"""
The gRPC listeners: their channel arguments, TLS, health, reflection, and how they stop.

A misspelt channel argument is accepted silently by gRPC, so `CHANNEL_ARGUMENTS` is the one place where they stand and a
test proves the effect of each.
"""

import asyncio
import contextlib
import hashlib
import os
import socket
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from broker.errors import StartupError
from broker.rpc.interceptors import Chain, QuickAnswer
from broker.telemetry import logger

_LOG: Final = logger(__name__)

CALLER_SERVICE: Final = "credentialbroker.v1.CredentialBroker"
ADMIN_SERVICE: Final = "credentialbroker.v1.BrokerAdmin"

_LAST_ANSWERS_SECONDS: Final = 1.0
"""How long the answers of calls that have ended may take to leave."""

CHANNEL_ARGUMENTS: Final[Mapping[str, int]] = {
    # A second process must not bind the same port and take a share of the calls.
    "grpc.so_reuseport": 0,
    "grpc.max_concurrent_streams": 100,
    "grpc.max_receive_message_length": 65_536,
    "grpc.max_send_message_length": 65_536,
    "grpc.max_metadata_size": 8_192,
    "grpc.absolute_max_metadata_size": 16_384,
    # Spreads callers over replicas again, and makes changed client authorities bite on open connections.
    "grpc.max_connection_age_ms": 300_000,
    # A watch stream may begin in the last moment of a connection's life and be ended by the broker only after 80 % of
    # that life (broker/watch/): so long the connection lasts.
    "grpc.max_connection_age_grace_ms": 240_000,
    "grpc.max_connection_idle_ms": 300_000,
    "grpc.keepalive_time_ms": 60_000,
    # A host that is gone acknowledges nothing: this bounds that, as the socket's TCP_USER_TIMEOUT.
    "grpc.keepalive_timeout_ms": 20_000,
    # A program that hangs lets its host acknowledge and answers no ping: only this bounds that.
    "grpc.http2.ping_timeout_ms": 20_000,
    "grpc.http2.min_ping_interval_without_data_ms": 30_000,
    "grpc.http2.max_ping_strikes": 2,
    "grpc.server_handshake_timeout_ms": 5_000,
    # Above about a thousand calls in flight gRPC begins to cancel calls unless these are raised.
    "grpc.server.max_pending_requests": 65_536,
    "grpc.server.max_pending_requests_hard_limit": 131_072,
}


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a listener's TLS."""

    certificate: Path
    private_key: Path
    client_ca: Path | None


class Health:
    """What `grpc.health.v1` says of a listener's services; goes both ways."""

    def __init__(self, *services: str) -> None:
        self.servicer: Final = health_aio.HealthServicer()
        self._services = ("", *services)

    async def set(self, *, serving: bool) -> None:
        """Say SERVING or NOT_SERVING of every service."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in self._services:
            await self.servicer.set(service, status)


class Listener:
    """
    One gRPC server with its addresses.

    Args:
        addresses: `HOST:PORT` or `unix:PATH`.
        chain: what every call passes.
        services: the names of the services it serves, for reflection and health.
        tls: TLS for the TCP addresses; None is plaintext.
        reflection_on: whether server reflection is answered.
        arguments: channel arguments that differ from `CHANNEL_ARGUMENTS`; for tests of their effect.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        chain: Chain,
        *,
        services: Sequence[str],
        tls: TlsFiles | None,
        reflection_on: bool,
        arguments: Mapping[str, int] | None = None,
    ) -> None:
        self._configured = tuple(addresses)
        self._chain = chain
        self._tls = tls
        options = {**CHANNEL_ARGUMENTS, **(arguments or {})}
        self.server: Final = aio.server(options=tuple(options.items()))
        self.connection_age: Final = options["grpc.max_connection_age_ms"] / 1000
        """How old a connection may get, in seconds; then the other side is told to open a new one."""
        self.health: Final = Health(*services)
        # Outside the chain: probes cannot send metadata, and health checks cost and reveal nothing.
        chain.add_outside(health_pb2_grpc.add_HealthServicer_to_server, self.health.servicer, self.server)
        if reflection_on:
            names = (*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
            self.add_service(
                reflection_pb2_grpc.add_ServerReflectionServicer_to_server, reflection.aio.ReflectionServicer(names)
            )
        self.addresses: tuple[str, ...] = ()
        """Where it listens, with the ports that the system chose; set by `start`."""
        self._sockets: list[Path] = []

    def add_service(
        self,
        add_to_server: Callable[[Any, aio.Server], None],
        servicer: object,
        quick_answers: Mapping[str, QuickAnswer] | None = None,
    ) -> None:
        """Serve a service, each of its calls inside the chain; see `Chain.add_service`."""
        self._chain.add_service(add_to_server, servicer, self.server, quick_answers or {})

    async def start(self) -> None:
        """
        Bind every address and begin to accept; health says NOT_SERVING until it is told otherwise.

        Raises:
            StartupError: addresses that cannot be bound, or TLS files that cannot be used; all at once.
        """
        await self.health.set(serving=False)
        problems: list[str] = []
        bound: list[str] = []
        credentials = _tls_credentials(self._tls) if self._tls is not None else None
        for address in self._configured:
            problem = _unix_problem(address) if address.startswith("unix:") else None
            if problem is not None:
                problems.append(problem)
                continue
            try:
                bound.append(self._bind(address, credentials))
            except RuntimeError:
                problems.append(f"{address}: cannot be bound; is another program listening there? {_holder(address)}")
        if problems:
            raise StartupError(*problems)
        self.addresses = tuple(bound)
        await self.server.start()

    def _bind(self, address: str, credentials: grpc.ServerCredentials | None) -> str:
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:"))
            before = os.umask(0o177)
            try:
                self.server.add_insecure_port(address)
            finally:
                os.umask(before)
            self._sockets.append(path)
            return f"unix://{path}"
        port = (
            self.server.add_insecure_port(address)
            if credentials is None
            else self.server.add_secure_port(address, credentials)
        )
        if port == 0:
            raise RuntimeError(address)
        return f"{address.rpartition(':')[0]}:{port}"

    async def stop(self, grace: float) -> None:
        """
        Let accepted calls end within `grace` seconds, stop, and remove the sockets; the gate keeps new calls out.

        Streams that never end by themselves, such as a watch of health, are cut when the calls have ended.
        """
        # gRPC is told to stop only once: told again while it stops, it crashes.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._chain.quiet()
        await self.server.stop(min(grace, _LAST_ANSWERS_SECONDS))
        for path in self._sockets:
            with contextlib.suppress(OSError):
                path.unlink()


def _unix_problem(address: str) -> str | None:
    """Say why a Unix socket cannot be made there; one that nobody listens on any more is in nobody's way."""
    path = Path(address.removeprefix("unix:"))
    try:
        folder = path.parent.stat()
    except OSError as error:
        return f"unix://{path}: its folder cannot be used: {error.strerror}"
    if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
        return f"unix://{path}: everybody can write its folder; chmod o-w {path.parent}"
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISSOCK(status.st_mode):
        return f"unix://{path}: exists and is no socket; remove it or choose another path"
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return None  # gRPC removes it before it binds its own
    return f"unix://{path}: another program listens there"


def _holder(address: str) -> str:
    port = address.rpartition(":")[2]
    return f"(ss -ltnp 'sport = :{port}' shows it; a broker that runs already serves there)"


# --- TLS --------------------------------------------------------------------------------------------------------------


def _tls_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    reader = TlsReader(files)
    configuration = reader.current()
    return grpc.dynamic_ssl_server_credentials(
        configuration,
        reader.changed,  # type: ignore[arg-type]  # None means unchanged, which the stubs do not know
        require_client_authentication=files.client_ca is not None,
    )


_UNUSABLE: Final = (OSError, ValueError, TypeError, UnsupportedAlgorithm)
"""What reading PEM files raises; a TypeError is a key with a password."""


class TlsReader:
    """Reads TLS files, checks that they belong together, and notices when they change."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._digest = b""
        self._stamp: tuple[tuple[int, int, int], ...] = ()

    def current(self) -> grpc.ServerCertificateConfiguration:
        """
        Read and check the files.

        Raises:
            StartupError: they cannot be used.
        """
        try:
            return self._read()
        except _UNUSABLE as error:
            raise StartupError(f"listen.tls: {_tls_problem(error)}") from error

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """
        Return the new configuration when the files changed to something usable, None otherwise.

        gRPC calls this at every handshake, on a thread of its own. Files that are half written keep the old ones.
        """
        try:
            if self._stamps() == self._stamp:
                return None
            before = self._digest
            configuration = self._read()
        except _UNUSABLE as error:
            _LOG.warning("tls_files_unusable", problem=_tls_problem(error), kept="the ones read before")
            return None
        if self._digest == before:
            return None
        _LOG.info("tls_files_reloaded")
        return configuration

    def _paths(self) -> list[Path]:
        files = self._files
        return [path for path in (files.certificate, files.private_key, files.client_ca) if path is not None]

    def _stamps(self) -> tuple[tuple[int, int, int], ...]:
        return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in map(Path.stat, self._paths()))

    def _read(self) -> grpc.ServerCertificateConfiguration:
        stamp = self._stamps()
        certificate, key, *authorities = (path.read_bytes() for path in self._paths())
        leaf = x509.load_pem_x509_certificates(certificate)[0]
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if load_pem_private_key(key, None).public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
            raise ValueError(f"{self._files.private_key} is not the key of {self._files.certificate}")
        for authority in authorities:
            x509.load_pem_x509_certificates(authority)
        self._stamp = stamp
        self._digest = hashlib.sha256(b"\0".join((certificate, key, *authorities))).digest()
        return grpc.ssl_server_certificate_configuration(
            [(key, certificate)], root_certificates=authorities[0] if authorities else None
        )


def _tls_problem(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: cannot be read: {error.strerror}"
    return str(error)
