"""Where commands go: options, their variables, TLS, and what opening a channel does."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from credentialbroker.v1 import broker_admin_pb2 as admin
from credentialbroker.v1 import credential_broker_pb2 as api

from broker.cli import channel, root
from broker.cli.channel import Target
from tests.support.fake_broker import FakeBroker
from tests.unit.cli.conftest import Run


@pytest.fixture(autouse=True)
def answers(broker: FakeBroker) -> None:
    """Both listeners answer."""
    broker.answers["EndTask"] = api.EndTaskResponse()
    broker.answers["GetStatus"] = admin.GetStatusResponse()


def test_defaults_are_those_of_dev(broker: FakeBroker, run: Run) -> None:
    """Without any setting callers and operators reach the two listeners of a broker on this machine."""
    run("end-task", "--thread", "t1")
    run("status")
    assert broker.targets == [
        Target(address="dns:///127.0.0.1:50051", timeout=10.0),
        Target(address="127.0.0.1:50052", timeout=10.0),
    ]


def test_variables_name_the_addresses_and_options_win(broker: FakeBroker) -> None:
    """Each listener has its variable; what is typed is taken before it."""
    environment = {
        "CREDENTIAL_BROKER_ADDRESS": "unix:///run/callers.sock",
        "CREDENTIAL_BROKER_ADMIN_ADDRESS": "unix:///run/admin.sock",
    }
    runner = CliRunner(env=environment)
    for arguments in (("end-task", "--thread", "t"), ("status",), ("status", "--admin-address", "host:1")):
        assert runner.invoke(root, arguments, obj=broker).exit_code == 0
    assert [target.address for target in broker.targets] == [
        "unix:///run/callers.sock",
        "unix:///run/admin.sock",
        "host:1",
    ]


def test_tls_files_reach_the_channel(broker: FakeBroker, run: Run) -> None:
    """The three files are passed on, and any authority or certificate means TLS."""
    run("status", "--tls-ca", "ca.pem", "--tls-cert", "c.pem", "--tls-key", "k.pem", "--timeout", "1m")
    (target,) = broker.targets
    assert target == Target(
        address="127.0.0.1:50052",
        timeout=60.0,
        tls_ca=Path("ca.pem"),
        tls_cert=Path("c.pem"),
        tls_key=Path("k.pem"),
    )
    assert target.tls
    assert Target(address="a:1", timeout=1, tls_ca=Path("ca.pem")).tls
    assert Target(address="a:1", timeout=1, tls_cert=Path("c.pem"), tls_key=Path("k.pem")).tls
    assert not Target(address="a:1", timeout=1).tls


@pytest.mark.parametrize("option", ["--tls-cert", "--tls-key"])
def test_a_certificate_needs_its_key(broker: FakeBroker, run: Run, option: str) -> None:
    """Half a pair is a usage error and opens nothing."""
    assert run("status", option, "x.pem").exit_code == 2
    assert broker.targets == []


def test_a_tls_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    """A missing file is named before anything is sent."""
    result = CliRunner().invoke(root, ["status", "--tls-ca", str(tmp_path / "none.pem")])
    assert result.exit_code == 2
    assert "none.pem cannot be read" in result.stderr


class Dialled:
    """Stands in for grpc's two ways to open a channel and keeps what they were given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        for name in ("insecure_channel", "secure_channel"):
            monkeypatch.setattr(grpc, name, lambda *a, _name=name, **k: self.calls.append((_name, a, k)))


def test_a_proxy_of_the_environment_is_never_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both kinds of channel are opened directly: a proxy would see every header."""
    dialled = Dialled(monkeypatch)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(b"-----BEGIN CERTIFICATE-----")
    channel.dial(Target(address="a:1", timeout=1))
    channel.dial(Target(address="a:1", timeout=1, tls_ca=ca))
    assert [(name, options["options"]) for name, _, options in dialled.calls] == [
        ("insecure_channel", (("grpc.enable_http_proxy", 0),)),
        ("secure_channel", (("grpc.enable_http_proxy", 0),)),
    ]
