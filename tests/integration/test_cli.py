"""The command line as processes: exit codes, signals, sockets, TLS, and what stands where when something is wrong."""

import json
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

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
    while True:
        status = run("status", "--format", "json", **served.environment)
        if status.returncode == 0:
            return served
        if running.process.poll() is not None:
            raise AssertionError(running.process.communicate()[1])


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


def test_serve_refuses_to_be_reached_from_other_machines(tmp_path: Path) -> None:
    """Until callers are authenticated only loopback and Unix sockets are listened on."""
    done = run("serve", "--state-dir", str(tmp_path), CREDENTIAL_BROKER_LISTEN__CALLERS='["0.0.0.0:50051"]')
    assert done.returncode == 78
    assert "can be reached from other machines" in done.stderr


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
