"""Finding the broker: the forms of an address, what must go together, and what comes before what."""

import json
from pathlib import Path
from typing import Any

import pytest
from credentialbroker.channels import SERVICE_CONFIG, Channels, TlsFiles, read_tls_files
from credentialbroker.settings import Settings, Target, parse_address

from tests.support.certificates import Authority

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("unix:///run/broker.sock", Target("unix:///run/broker.sock", local=True)),
        ("dns:///broker.example:50051", Target("dns:///broker.example:50051", local=False)),
        ("broker.example:50051", Target("dns:///broker.example:50051", local=False)),
        ("127.9.9.9:1", Target("dns:///127.9.9.9:1", local=True)),
        ("localhost:65535", Target("dns:///localhost:65535", local=True)),
        ("[::1]:50051", Target("dns:///[::1]:50051", local=True)),
        ("dns:///[2001:db8::1]:50051", Target("dns:///[2001:db8::1]:50051", local=False)),
        ("127.0.0.1.example:1", Target("dns:///127.0.0.1.example:1", local=False)),
    ],
)
def test_addresses_are_understood(address: str, target: Target) -> None:
    """Each form becomes a name of gRPC, and this machine is told from others."""
    assert parse_address(address) == target


@pytest.mark.parametrize(
    "address",
    [
        "",
        "broker",
        "broker:0",
        "broker:65536",
        "http://broker:1",
        "unix:relative",
        "unix://host/x",
        "dns://ns/broker:1",
        "broker:1/x",
        "a b:1",
        "xds:///broker:1",
    ],
)
def test_other_addresses_are_refused_with_the_forms(address: str) -> None:
    """The message names all forms that there are."""
    with pytest.raises(ValueError, match="unix:///absolute/path, dns:///host:port or host:port"):
        parse_address(address)


def test_an_argument_comes_before_the_environment() -> None:
    """Each setting is taken from its argument, else its variable, else the default; an empty variable is none."""
    environment = {"CREDENTIAL_BROKER_ADDRESS": "localhost:1", "CREDENTIAL_BROKER_CA_FILE": ""}
    assert Settings.find(environment={}).target.name == "dns:///127.0.0.1:50051"
    assert Settings.find(environment=environment).target.name == "dns:///localhost:1"
    assert Settings.find(address="localhost:2", environment=environment).target.name == "dns:///localhost:2"
    assert Settings.find(environment=environment).ca_file is None
    assert Settings.find(ca_file="/ca", environment=environment).ca_file == Path("/ca")


def test_plaintext_to_another_host_is_refused_unless_said() -> None:
    """Headers are secrets: without TLS only this machine, unless the argument or the variable says so."""
    with pytest.raises(ValueError, match="plaintext"):
        Settings.find(address="broker.example:1", environment={})
    with pytest.raises(ValueError, match="plaintext"):
        Settings.find(address="broker.example:1", plaintext=False, environment={"CREDENTIAL_BROKER_PLAINTEXT": "1"})
    Settings.find(address="broker.example:1", plaintext=True, environment={})
    Settings.find(address="broker.example:1", environment={"CREDENTIAL_BROKER_PLAINTEXT": "1"})
    Settings.find(address="broker.example:1", ca_file="/ca", environment={})


@pytest.mark.parametrize(
    "files",
    [{"certificate_file": "/c"}, {"private_key_file": "/k"}, {"certificate_file": "/c", "private_key_file": "/k"}],
)
def test_half_of_mtls_is_refused(files: dict[str, str]) -> None:
    """A certificate needs its key, and both need authorities."""
    with pytest.raises(ValueError, match="certificate"):
        Settings.find(environment={}, **files)


def test_a_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    """A missing file is an OSError, other contents a ValueError; both name it when the client is made."""
    missing, junk = tmp_path / "missing.pem", tmp_path / "junk.pem"
    junk.write_text("-----BEGIN CERTIFICATE-----\nnothing\n")
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        read_tls_files(Settings.find(ca_file=missing, environment={}))
    with pytest.raises(ValueError, match=r"junk\.pem"):
        read_tls_files(Settings.find(ca_file=junk, environment={}))


def test_a_bundle_may_have_comments_in_any_language(tmp_path: Path) -> None:
    """They are no part of the certificates."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes("# Főtanúsítvány\n".encode() + Authority().certificate)
    assert read_tls_files(Settings.find(ca_file=bundle, environment={})).authorities == bundle.read_bytes()


def test_the_service_config_is_the_repositorys() -> None:
    """What is shipped in the package is what every client ships."""
    assert json.loads(SERVICE_CONFIG) == json.loads((ROOT / "protos/service_config.json").read_text())


def test_grpc_is_told_no_timeouts_of_methods_and_how_long_a_ping_may_take() -> None:
    """Both ends a call or a connection at another time than every client's, if left as they are."""
    given: list[dict[str, Any]] = []

    def insecure(_: str, options: tuple[tuple[str, Any], ...]) -> FakeChannel:
        given.append(dict(options))
        return FakeChannel()

    Channels(Settings.find(environment={}), insecure, insecure)
    config = json.loads(given[0]["grpc.service_config"])
    assert [method.get("timeout") for method in config["methodConfig"]] == [None, None]
    assert config["methodConfig"][0]["retryPolicy"]["maxAttempts"] == 4
    assert given[0]["grpc.http2.ping_timeout_ms"] == 20_000


class FakeChannel:
    """Remembers that it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_changed_tls_files_make_another_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked at every 10 s; files that do not parse change nothing; a channel is closed after its last call."""
    ca, now, made = tmp_path / "ca.pem", 0.0, []

    def read(settings: Settings) -> TlsFiles:
        if "junk" in ca.read_text():
            raise ValueError
        return TlsFiles(None, None, None)

    def secure(name: str, credentials: object, options: object) -> FakeChannel:
        made.append(FakeChannel())
        return made[-1]

    monkeypatch.setattr("credentialbroker.channels.read_tls_files", read)
    ca.write_text("first")
    channels = Channels(Settings.find(ca_file=ca, environment={}), secure, secure, lambda: now)
    first = channels.acquire()
    ca.write_text("the second")
    now = 9.9
    assert channels.acquire() is first
    ca.write_text("junk, half-written")
    now = 10.0
    assert channels.acquire() is first
    ca.write_text("the third, whole")
    now = 20.0
    second = channels.acquire()
    assert second is not first
    assert [channels.release(first), channels.release(first)] == [[], []]
    assert channels.release(first) == [first.grpc]
    ca.write_text("the fourth, while there is no call")
    assert channels.release(second) == []
    now = 30.0
    third = channels.acquire()
    assert channels.release(third) == [second.grpc]
    assert channels.retire() == [third.grpc]


def test_a_child_made_by_fork_needs_no_tls_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a channel of its own with what the parent read."""
    ca = tmp_path / "ca.pem"
    ca.write_text("first")
    monkeypatch.setattr("credentialbroker.channels.read_tls_files", lambda _: TlsFiles(None, None, None))
    parent = Channels(
        Settings.find(ca_file=ca, environment={}), lambda *_, **__: FakeChannel(), lambda *_, **__: FakeChannel()
    )
    before = parent.acquire()
    ca.unlink()
    after = parent.in_child().acquire()
    assert after is not before
    assert not before.grpc.closed
