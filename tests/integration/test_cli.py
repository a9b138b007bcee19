"""The command line as processes: exit codes, signals, sockets, TLS, and what stands where when something is wrong."""

import ipaddress
import json
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.command_line import PROGRAM, Running, environment, run, start


@dataclass(frozen=True)
class Served:
    """A running `serve` and how to reach it."""

    running: Running
    callers: str
    admin: str

    @property
    def environment(self) -> dict[str, str]:
        """What makes commands reach it."""
        return {"CREDENTIAL_BROKER_ADDRESS": self.callers, "CREDENTIAL_BROKER_ADMIN_ADDRESS": self.admin}

    def wait(self) -> None:
        """Ask until it answers; a process that ended instead fails the test with what it said."""
        while run("status", **self.environment).returncode != 0:
            if self.running.process.poll() is not None:
                raise AssertionError(self.running.process.communicate()[1])


def serve(folder: Path, *more: str) -> Served:
    """Start `serve` on Unix sockets in a folder, against a backend that is not there, and wait until it serves."""
    config = folder / "broker.toml"
    config.write_text(
        f"""
[listen]
callers = ["unix://{folder}/callers.sock"]
admin = ["unix://{folder}/admin.sock"]
http = "127.0.0.1:0"

[backends.default]
base_url = "http://127.0.0.1:9/backend-api"
authapi_base_url = "http://127.0.0.1:9/api/accounts"
"""
    )
    running = start("serve", "--dev", "--config", str(config), "--state-dir", str(folder / "state"), *more)
    served = Served(running, f"unix://{folder}/callers.sock", f"unix://{folder}/admin.sock")
    served.wait()
    return served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running broker without an identity."""
    running = serve(tmp_path_factory.mktemp("serve"))
    yield running
    running.running.stop()


def test_an_empty_broker_is_looked_at_over_its_sockets(served: Served) -> None:
    """Operators' and callers' commands reach a broker on Unix sockets."""
    status = json.loads(run("status", "--format", "json", **served.environment).stdout)["status"]
    assert status["serving_state"] == "SERVING"
    assert status["store"]["driver"] == "sqlite"
    listed = run("identity", "list", **served.environment)
    assert (listed.returncode, listed.stdout) == (0, "")
    scopes = json.loads(run("scopes", "--format", "json", **served.environment).stdout)["scopes"]
    assert {"inference", "control_plane"} <= {rule["scope"] for rule in scopes}


def test_a_call_without_any_identity_is_told_what_to_do(served: Served) -> None:
    """The newcomer's first mistake has a next step."""
    done = run("get", "--scope", "inference", "--thread", "t", **served.environment)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "next: " in done.stderr


def test_callers_have_no_admin_calls(served: Served) -> None:
    """An operator's command at the callers' address says that it is the wrong one."""
    done = run("status", "--admin-address", served.callers)
    assert done.returncode == 1
    assert "does not have this call" in done.stderr


def test_a_creation_against_a_backend_that_is_away_says_how_it_goes_on(served: Served) -> None:
    """The failure is typed, and the request id to go on with is printed; the token is not."""
    done = run("identity", "create", "a", "--token-file", "-", stdin="at-secret-token-value", **served.environment)
    assert done.returncode == 1
    assert "BACKEND_DOWN" in done.stderr
    assert done.stderr.count("--request-id") == 2
    assert "at-secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_serve_ends_with_0_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM are the usual ends of a server, not failures."""
    code, stdout, stderr = serve(tmp_path).running.stop(number)
    assert code == 0
    assert "Traceback" not in stdout + stderr


def test_serve_names_every_problem_of_its_configuration(tmp_path: Path) -> None:
    """Exit code 78, each problem on its line, and nothing was made."""
    config = tmp_path / "broker.toml"
    config.write_text('[broker]\nmax_leese = 1\n[log]\nlevel = "loud"\n')
    done = run("serve", "--config", str(config), "--state-dir", str(tmp_path / "state"))
    assert done.returncode == 78
    assert [line.startswith("cannot start: ") for line in done.stderr.splitlines()] == [True, True]
    assert not (tmp_path / "state").exists()


def test_serve_without_its_configuration_file_says_so(tmp_path: Path) -> None:
    """A path that is not there is no reason to serve with defaults."""
    done = run("serve", "--config", str(tmp_path / "none.toml"))
    assert done.returncode == 78
    assert "there is no such file" in done.stderr


def test_serve_names_the_port_that_is_in_use(tmp_path: Path) -> None:
    """Exit code 78 and the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run(
            *("serve", "--state-dir", str(tmp_path)),
            CREDENTIAL_BROKER_LISTEN__CALLERS=f'["{address}"]',
            CREDENTIAL_BROKER_LISTEN__ADMIN='["127.0.0.1:0"]',
            CREDENTIAL_BROKER_LISTEN__HTTP="127.0.0.1:0",
        )
    assert done.returncode == 78
    assert address in done.stderr


def test_serve_names_a_port_in_use_beside_what_it_found_first(tmp_path: Path) -> None:
    """A key ring that others can read stops the start before anything listens; the port is named all the same."""
    serve(tmp_path).running.stop(signal.SIGTERM)
    (tmp_path / "state" / "keyring.json").chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run(
            *("serve", "--state-dir", str(tmp_path / "state")),
            CREDENTIAL_BROKER_LISTEN__CALLERS=f'["{address}"]',
            CREDENTIAL_BROKER_LISTEN__ADMIN='["127.0.0.1:0"]',
            CREDENTIAL_BROKER_LISTEN__HTTP="127.0.0.1:0",
        )
    assert done.returncode == 78
    first, second = done.stderr.splitlines()
    assert "keyring.json" in first
    assert f"{address}: cannot be bound" in second


def test_serve_refuses_to_be_reached_from_other_machines(tmp_path: Path) -> None:
    """Until callers are authenticated only loopback and Unix sockets are listened on."""
    done = run("serve", "--state-dir", str(tmp_path), CREDENTIAL_BROKER_LISTEN__CALLERS='["0.0.0.0:50051"]')
    assert done.returncode == 78
    assert "can be reached from other machines" in done.stderr


@dataclass(frozen=True)
class Authority:
    """A certificate authority of a test, with a certificate for this machine."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        """Make both, good for 127.0.0.1."""
        now = datetime.now(UTC)
        ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])

        def build(subject: x509.Name, public: ec.EllipticCurvePublicKey, *extensions: x509.ExtensionType) -> bytes:
            builder = (
                x509.CertificateBuilder()
                .subject_name(subject)
                .issuer_name(ca_name)
                .public_key(public)
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - timedelta(hours=1))
                .not_valid_after(now + timedelta(hours=1))
            )
            for extension in extensions:
                builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            return builder.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM)

        folder.mkdir()
        files = cls(folder / "ca.pem", folder / "certificate.pem", folder / "key.pem")
        files.ca.write_bytes(build(ca_name, ca_key.public_key(), x509.BasicConstraints(ca=True, path_length=None)))
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        files.certificate.write_bytes(build(name, key.public_key(), here))
        files.key.touch(mode=0o600)
        files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return files


def test_tls_is_spoken_and_its_failures_are_told(tmp_path: Path) -> None:
    """With the right authority commands reach a broker with TLS; else they say which options to look at."""
    right, wrong = Authority.make(tmp_path / "right"), Authority.make(tmp_path / "wrong")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = tmp_path / "broker.toml"
    config.write_text(
        f"""
[listen]
callers = ["unix://{tmp_path}/callers.sock"]
admin = ["127.0.0.1:{port}", "unix://{tmp_path}/admin.sock"]
http = "127.0.0.1:0"
tls = {{ certificate_file = "{right.certificate}", private_key_file = "{right.key}" }}
"""
    )
    running = start("serve", "--config", str(config), "--state-dir", str(tmp_path / "state"))
    try:
        Served(running, "", f"unix://{tmp_path}/admin.sock").wait()
        there = ("status", "--admin-address", f"127.0.0.1:{port}")
        reached, unknown, plain = (run(*there, *more) for more in (("--tls-ca", right.ca), ("--tls-ca", wrong.ca), ()))
    finally:
        running.stop()
    assert reached.returncode == 0, reached.stderr
    assert (unknown.returncode, plain.returncode) == (1, 1)
    assert "check --tls-ca, --tls-cert and --tls-key" in unknown.stderr
    assert "if it listens with TLS, add --tls-ca" in plain.stderr
    for failed in (unknown, plain):
        assert [line[:7] for line in failed.stderr.splitlines()] == ["UNAVAIL", "  next:"], failed.stderr


def test_migrate_makes_the_database_and_says_its_revision(tmp_path: Path) -> None:
    """A new database is made; doing it again changes nothing."""
    first, second = (run("migrate", "--state-dir", str(tmp_path)) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert first.stdout == second.stdout
    with closing(sqlite3.connect(tmp_path / "broker.db")) as database:
        (revision,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
    assert first.stdout.rstrip().endswith(f"revision {revision}")


def test_migrate_refuses_the_database_of_a_newer_version(tmp_path: Path) -> None:
    """Exit code 78, and the database is as it was."""
    run("migrate", "--state-dir", str(tmp_path))
    with closing(sqlite3.connect(tmp_path / "broker.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.execute("UPDATE meta SET minimum_revision = '9999'")
        database.commit()
    done = run("migrate", "--state-dir", str(tmp_path))
    assert done.returncode == 78
    assert "9999" in done.stderr


def test_check_config_touches_nothing(tmp_path: Path) -> None:
    """No database, no key and no folder is made."""
    done = run("check-config", "--state-dir", str(tmp_path / "state"))
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []
    assert json.loads(run("check-config", "--format", "json").stdout)["log"]["level"] == "info"


def test_nobody_there_is_told_how_to_start_one() -> None:
    """A command without a broker fails at once, with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    done = run("get", "--scope", "inference", "--thread", "t", "--address", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == f"UNAVAILABLE: no broker at 127.0.0.1:{port}"


def test_a_reader_that_goes_away_is_no_failure_of_ours() -> None:
    """`credential-broker ... | head -1` prints no traceback."""
    done = subprocess.run(
        ["/bin/sh", "-c", "credential-broker check-config --format json | head -1"],
        capture_output=True,
        text=True,
        check=True,
        env=environment(PATH=f"{PROGRAM.parent}:/usr/bin:/bin"),
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""
