"""TLS of the listeners: who gets through a handshake, and what happens when the files change."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1 import credential_broker_pb2_grpc

from broker.app import Application
from broker.emulator import EmulatorServer
from broker.errors import StartupError
from tests.support.brokers import GUARD, dev_config, running_broker
from tests.support.certificates import Authority, Pair
from tests.support.raw_http2 import negotiates


@dataclass(frozen=True)
class Served:
    """A broker with TLS and the files it reads."""

    address: str
    admin_address: str
    folder: Path


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Make the authority that signs for the broker."""
    return Authority("of brokers")


@pytest.fixture(scope="module")
def callers_authority() -> Authority:
    """Make the authority that signs for callers."""
    return Authority("of callers")


@asynccontextmanager
async def served(
    tmp_path: Path, emulator: EmulatorServer, authority: Authority, client_ca: Authority | None = None
) -> AsyncIterator[Served]:
    """Run a broker with TLS; with `client_ca` callers must show a certificate of it."""
    certificate, key = authority.issue().write(tmp_path)
    tls = {"certificate_file": str(certificate), "private_key_file": str(key)}
    if client_ca is not None:
        (tmp_path / "ca.crt").write_bytes(client_ca.certificate)
        tls["client_ca_file"] = str(tmp_path / "ca.crt")
    async with running_broker(tmp_path / "state", emulator, listen={"tls": tls}) as broker:
        yield Served(broker.app.caller_address, broker.app.admin_address, tmp_path)


def client_context(trusted: Authority, own: Pair | None = None, folder: Path | None = None) -> ssl.SSLContext:
    """Return what a client brings to a handshake."""
    context = ssl.create_default_context(cadata=trusted.certificate.decode())
    context.set_alpn_protocols(["h2"])
    if own is not None and folder is not None:
        folder.mkdir(exist_ok=True)
        context.load_cert_chain(*own.write(folder))
    return context


async def serial_of(address: str, trusted: Authority) -> int:
    """Return the serial number of the certificate that the server shows now."""
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=client_context(trusted), server_hostname="localhost")
    shown = writer.get_extra_info("peercert")
    writer.transport.abort()
    return int(shown["serialNumber"], 16)


async def test_calls_go_through_tls(tmp_path: Path, emulator: EmulatorServer, authority: Authority) -> None:
    """A gRPC client that trusts the authority is served; plaintext and a client that trusts another are not."""
    async with served(tmp_path, emulator, authority) as server:
        credentials = grpc.ssl_channel_credentials(authority.certificate)
        async with grpc.aio.secure_channel(server.address, credentials) as channel:
            stub = credential_broker_pb2_grpc.CredentialBrokerStub(channel)
            assert (await stub.ListScopes(pb2.ListScopesRequest(), metadata=GUARD)).scopes
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = credential_broker_pb2_grpc.CredentialBrokerStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await stub.ListScopes(pb2.ListScopesRequest(), metadata=GUARD, timeout=5)
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not await negotiates(server.address, client_context(Authority("of others")))
        assert await negotiates(server.admin_address, client_context(authority)), "operators have TLS too"


async def test_with_an_authority_for_callers_only_its_certificates_get_in(
    tmp_path: Path, emulator: EmulatorServer, authority: Authority, callers_authority: Authority
) -> None:
    """Without a certificate, or with one of another authority, the handshake fails; on both listeners."""
    async with served(tmp_path, emulator, authority, client_ca=callers_authority) as server:
        good = client_context(authority, callers_authority.issue("caller"), tmp_path / "good")
        foreign = client_context(authority, authority.issue("caller"), tmp_path / "foreign")
        for address in (server.address, server.admin_address):
            assert await negotiates(address, good)
            assert not await negotiates(address, client_context(authority))
            assert not await negotiates(address, foreign)


async def test_changed_files_are_shown_to_the_next_connection(
    tmp_path: Path, emulator: EmulatorServer, authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    """A renewed certificate needs no restart; a half-written one changes nothing and raises an alert."""
    async with served(tmp_path, emulator, authority) as server:
        first = await serial_of(server.address, authority)
        assert await serial_of(server.address, authority) == first
        new = authority.issue()
        (tmp_path / "tls.crt").write_bytes(new.certificate)  # its key is not there yet
        assert await serial_of(server.address, authority) == first
        assert "tls_files_unusable" in capsys.readouterr().out
        new.write(tmp_path)
        assert await serial_of(server.address, authority) != first
        assert "tls_files_reloaded" in capsys.readouterr().out


async def test_a_changed_authority_of_callers_counts_from_the_next_connection(
    tmp_path: Path, emulator: EmulatorServer, authority: Authority, callers_authority: Authority
) -> None:
    """Callers of the old authority are refused once the file names another."""
    async with served(tmp_path, emulator, authority, client_ca=callers_authority) as server:
        old = client_context(authority, callers_authority.issue("caller"), tmp_path / "old")
        assert await negotiates(server.address, old)
        other = Authority("of new callers")
        (tmp_path / "ca.crt").write_bytes(other.certificate)
        assert await negotiates(server.address, client_context(authority, other.issue("caller"), tmp_path / "new"))
        assert not await negotiates(server.address, old)


async def test_a_key_of_another_certificate_is_refused_at_the_start(
    tmp_path: Path, emulator: EmulatorServer, authority: Authority
) -> None:
    """It names both files, once, with exit code 78."""
    certificate, key = Pair(authority.issue().certificate, authority.issue().key).write(tmp_path)
    listen = {"tls": {"certificate_file": str(certificate), "private_key_file": str(key)}}
    app = Application(dev_config(tmp_path / "state", emulator.url, listen=listen))
    with pytest.raises(StartupError) as refused:
        await app.start()
    assert refused.value.exit_code == 78
    assert refused.value.problems == (f"listen.tls: {key} is not the key of {certificate}",)
