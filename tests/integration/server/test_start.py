"""What a broker does not start with, and what it starts with all the same: files, keys, rows."""

import json
import os
import sqlite3
import stat
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2

from broker.app import KEYRING_FILE, Application
from broker.emulator import EmulatorServer
from broker.errors import StartupError
from tests.support.brokers import dev_config, refused, running_broker
from tests.support.command_line import run


async def refusal_to_start(state: Path, emulator: EmulatorServer, **sections: Any) -> StartupError:
    """Start a broker that must not start, and return why it did not."""
    app = Application(dev_config(state, emulator.url, **sections))
    with pytest.raises(StartupError) as refused_start:
        await app.start()
    return refused_start.value


async def used_state(state: Path, emulator: EmulatorServer, *names: str) -> None:
    """Let a broker make a state directory with identities."""
    async with running_broker(state, emulator) as broker:
        for name in names:
            await broker.create_agent(name)
            await broker.authorize(thread_id="t", identity=name)


def execute(state: Path, statement: str, *parameters: Any) -> None:
    """Do to the database what no broker would: no constraint is checked."""
    with closing(sqlite3.connect(state / "broker.db")) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(statement, parameters)


def test_a_start_that_fails_says_everything_and_exits_with_78(tmp_path: Path) -> None:
    """The command prints each problem on a line of its own: a key that is unknown, a file that is not there."""
    (tmp_path / "broker.toml").write_text(
        f'[broker]\nstate_dir = "{tmp_path}/state"\nstatedir = "x"\n[listen]\ncallers = ["0.0.0.0:50051"]\n'
    )
    done = run("serve", "--config", str(tmp_path / "broker.toml"))
    assert done.returncode == 78
    for expected in ("broker.statedir: there is no such setting; did you mean state_dir?", "0.0.0.0:50051"):
        assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "state").exists()


async def test_a_database_without_its_key_file_does_not_start_and_gets_no_new_one(
    tmp_path: Path, emulator: EmulatorServer
) -> None:
    """A new key would open nothing; with the right one back everything works again."""
    state = tmp_path / "state"
    await used_state(state, emulator, "agent")
    key = (state / KEYRING_FILE).read_bytes()
    (state / KEYRING_FILE).unlink()
    error = await refusal_to_start(state, emulator)
    assert error.exit_code == 78
    assert KEYRING_FILE in str(error)
    assert not (state / KEYRING_FILE).exists()
    (state / KEYRING_FILE).write_bytes(key)
    (state / KEYRING_FILE).chmod(0o600)
    async with running_broker(state, emulator) as broker:
        assert (await broker.authorize(thread_id="t")).headers


async def test_a_database_with_another_key_file_does_not_start(tmp_path: Path, emulator: EmulatorServer) -> None:
    """The key of another database is not this one's."""
    await used_state(tmp_path / "one", emulator, "agent")
    await used_state(tmp_path / "two", emulator, "agent")
    os.replace(tmp_path / "two" / KEYRING_FILE, tmp_path / "one" / KEYRING_FILE)  # noqa: PTH105 - reads better
    error = await refusal_to_start(tmp_path / "one", emulator)
    assert error.exit_code == 78
    assert "is not the key ring that the database was sealed with" in str(error)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o666])
async def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path, emulator: EmulatorServer, mode: int) -> None:
    """What somebody may have read already is not used; closing it again lets the broker start."""
    state = tmp_path / "state"
    await used_state(state, emulator)
    (state / KEYRING_FILE).chmod(mode)
    error = await refusal_to_start(state, emulator)
    assert error.exit_code == 78
    assert str(state / KEYRING_FILE) in str(error)
    (state / KEYRING_FILE).chmod(0o600)
    await used_state(state, emulator)


async def test_what_is_kept_is_for_the_owner_alone(tmp_path: Path, emulator: EmulatorServer) -> None:
    """Every file and the folder itself, whatever the process's mask."""
    before = os.umask(0)
    try:
        await used_state(tmp_path / "state", emulator, "agent")
    finally:
        os.umask(before)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
    assert {path.name: mode for path, mode in found.items() if mode & 0o077} == {}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path, emulator: EmulatorServer) -> None:
    """It is not downgraded, not read wrongly and not changed; the message says what to start instead."""
    state = tmp_path / "state"
    await used_state(state, emulator, "agent")
    execute(state, "UPDATE alembic_version SET version_num = '9999'")
    execute(state, "UPDATE meta SET minimum_revision = '9999'")
    error = await refusal_to_start(state, emulator)
    assert error.exit_code == 78
    with closing(sqlite3.connect(state / "broker.db")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


async def test_a_production_broker_does_not_use_a_development_database(
    tmp_path: Path, emulator: EmulatorServer
) -> None:
    """Keys that were made beside an emulator do not meet a real backend by accident."""
    await used_state(tmp_path / "state", emulator, "agent")
    done = run(
        "serve",
        CREDENTIAL_BROKER_BROKER__STATE_DIR=str(tmp_path / "state"),
        CREDENTIAL_BROKER_LISTEN__CALLERS='["127.0.0.1:0"]',
        CREDENTIAL_BROKER_LISTEN__ADMIN='["127.0.0.1:0"]',
        CREDENTIAL_BROKER_LISTEN__HTTP="127.0.0.1:0",
    )
    assert done.returncode == 78
    assert "holds a development database" in done.stderr


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        ("UPDATE identities SET sealed_private_key = x'00' WHERE name = 'bad'", ()),
        ("UPDATE identities SET mode = 'WHATEVER' WHERE name = 'bad'", ()),
        ("UPDATE identities SET public_key = 'ssh-ed25519 AAAA' WHERE name = 'bad'", ()),
        ("UPDATE identities SET backend = 'gone' WHERE name = 'bad'", ()),
        (
            (
                "UPDATE identities SET sealed_private_key ="
                " (SELECT sealed_private_key FROM identities WHERE name = 'good') WHERE name = 'bad'"
            ),
            (),
        ),
    ],
    ids=["sealed", "mode", "public key", "backend", "key of another"],
)
async def test_a_row_that_cannot_be_read_spoils_nothing_else(
    tmp_path: Path, emulator: EmulatorServer, statement: str, parameters: tuple[Any, ...]
) -> None:
    """That identity answers ROW_CORRUPT, at every method of callers; the others go on, and so does the broker."""
    state = tmp_path / "state"
    await used_state(state, emulator, "good", "bad")
    execute(state, statement, *parameters)
    async with running_broker(state, emulator) as broker:
        for scope in ("inference", "control_plane.usage", "bootstrap"):
            refusal = await refused(broker.authorize(scope, "t", identity="bad"))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.DATA_LOSS, "ROW_CORRUPT")
            answer = await broker.authorize(scope, "t", identity="good")
            assert (await broker.sees(answer)).json()["verdict"] == "verified"
        listed = await broker.admin.ListIdentities(admin_pb2.ListIdentitiesRequest())
        assert "good" in [one.name for one in listed.identities]
        assert (await broker.admin.GetStatus(admin_pb2.GetStatusRequest())).status.server_version


async def test_a_sealed_bearer_that_does_not_open_is_told(tmp_path: Path, emulator: EmulatorServer) -> None:
    """An identity that lives on its bearer answers ROW_CORRUPT, not that it has none."""
    state = tmp_path / "state"
    async with running_broker(state, emulator) as broker:
        token = emulator.backend.mint_token(lifetime=timedelta(days=1)).access_token
        await broker.admin.CreateIdentity(
            admin_pb2.CreateIdentityRequest(
                request_id="r",
                name="bearer",
                backend="default",
                mode=admin_pb2.IDENTITY_MODE_BEARER,
                static_bearer=admin_pb2.StaticBearer(token=token),
            )
        )
        assert (await broker.authorize("inference", "t")).headers
    execute(state, "UPDATE bearers SET sealed = x'00'")
    async with running_broker(state, emulator) as broker:
        assert (await refused(broker.authorize("inference", "t"))).reason == "ROW_CORRUPT"


async def test_serve_says_where_it_can_be_reached(tmp_path: Path) -> None:
    """Listening beyond this machine is refused until callers are authenticated, and says so."""
    done = run(
        "check-config",
        "--format",
        "json",
        CREDENTIAL_BROKER_LISTEN__CALLERS=json.dumps(["192.0.2.1:50051", "[::]:50051", "127.0.0.1:1"]),
    )
    assert done.returncode == 78
    assert (
        done.stderr.count("until callers are authenticated") + done.stdout.count("until callers are authenticated") == 2
    )
