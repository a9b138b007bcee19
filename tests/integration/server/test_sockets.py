"""Unix sockets: who may use one is what its permissions and its folder say, so both are watched over."""

import contextlib
import os
import socket
import stat
from pathlib import Path

import pytest

from broker.app import Application
from broker.emulator import EmulatorServer
from broker.errors import StartupError
from tests.support.brokers import dev_config, guarded_channel, running_broker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder for sockets; its name is short, as a socket's path must be."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    return folder


def listening(*callers: Path | str, admin: Path | None = None) -> dict[str, object]:
    """Return the settings of listeners."""
    addresses = [f"unix://{one}" if isinstance(one, Path) else one for one in callers]
    return {"callers": addresses, "admin": [f"unix://{admin}"] if admin else ["127.0.0.1:0"]}


async def refusal_to_start(tmp_path: Path, emulator: EmulatorServer, *callers: Path | str) -> StartupError:
    """Start a broker that must not start, and return why it did not."""
    app = Application(dev_config(tmp_path / "state", emulator.url, listen=listening(*callers)))
    with pytest.raises(StartupError) as refused:
        await app.start()
    assert refused.value.exit_code == 78
    return refused.value


async def test_both_services_work_over_sockets_and_leave_nothing(
    tmp_path: Path, emulator: EmulatorServer, folder: Path
) -> None:
    """Only the owner may use the sockets, the process's own mask is as it was, and they are gone afterwards."""
    callers, admin = folder / "callers.sock", folder / "admin.sock"
    mask = os.umask(0o002)
    try:
        listen = listening(callers, "127.0.0.1:0", admin=admin)
        async with running_broker(tmp_path / "state", emulator, listen=listen) as broker:
            for path in (callers, admin):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
            await broker.create_agent()
            assert (await broker.authorize(thread_id="t")).headers
            async with guarded_channel(broker.app.caller_addresses[1]) as channel:
                assert await channel.unary_unary("/credentialbroker.v1.CredentialBroker/ListScopes")(b"")
        assert os.listdir(folder) == []  # noqa: PTH208 - names are what is wanted
    finally:
        assert os.umask(mask) == 0o002


async def test_a_socket_that_nobody_listens_on_is_replaced(
    tmp_path: Path, emulator: EmulatorServer, folder: Path
) -> None:
    """A broker that was killed leaves its socket, and the next one starts all the same."""
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    async with running_broker(tmp_path / "state", emulator, listen=listening(path)) as broker:
        await broker.create_agent()
        assert (await broker.authorize(thread_id="t")).headers


async def test_a_socket_that_somebody_listens_on_is_left_alone(
    tmp_path: Path, emulator: EmulatorServer, folder: Path
) -> None:
    """A second broker does not take the first one's callers away."""
    path = folder / "s"
    async with running_broker(tmp_path / "first", emulator, listen=listening(path)) as first:
        refused = await refusal_to_start(tmp_path, emulator, path)
        assert refused.problems == (f"unix://{path}: another program listens there",)
        await first.create_agent()
        assert (await first.authorize(thread_id="t")).headers


@pytest.mark.parametrize("kind", ["file", "folder", "link to a file", "link to a socket", "dangling link", "fifo"])
async def test_what_is_no_socket_is_not_removed(
    tmp_path: Path, emulator: EmulatorServer, folder: Path, kind: str
) -> None:
    """Nothing but a socket is ever replaced, and no link is followed."""
    path, target = folder / "s", folder / "target"
    with contextlib.ExitStack() as stack:
        match kind:
            case "file":
                path.write_text("mine")
            case "folder":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case "link to a file":
                target.write_text("mine")
                path.symlink_to(target)
            case "link to a socket":
                stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(target))
                path.symlink_to(target)
            case _:
                path.symlink_to(target)
        before = path.lstat()
        refused = await refusal_to_start(tmp_path, emulator, path)
    assert refused.problems == (f"unix://{path}: exists and is no socket; remove it or choose another path",)
    assert path.lstat() == before


async def test_a_folder_that_everybody_can_write_is_refused(
    tmp_path: Path, emulator: EmulatorServer, folder: Path
) -> None:
    """Anybody could put a socket of their own in its place; where only owners can remove their files it is fine."""
    folder.chmod(0o777)  # noqa: ASYNC240 - one call on a temporary folder
    refused = await refusal_to_start(tmp_path, emulator, folder / "s")
    assert refused.problems == (f"unix://{folder}/s: everybody can write its folder; chmod o-w {folder}",)
    folder.chmod(0o1777)  # noqa: ASYNC240 - one call on a temporary folder
    async with running_broker(tmp_path / "state", emulator, listen=listening(folder / "s")):
        pass


async def test_every_address_that_cannot_be_bound_is_named_and_nothing_is_left(
    tmp_path: Path, emulator: EmulatorServer, folder: Path
) -> None:
    """One start shows all that is wrong: ports and sockets of callers, operators and metrics."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        callers, admin, http = addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in taken]
        listen = {
            "callers": [callers, f"unix://{folder}/good.sock", f"unix://{tmp_path}/none/s"],
            "admin": [admin],
            "http": http,
        }
        app = Application(dev_config(tmp_path / "state", emulator.url, listen=listen))
        with pytest.raises(StartupError) as refused:
            await app.start()
    assert refused.value.exit_code == 78
    problems = refused.value.problems
    for address in addresses:
        assert [one for one in problems if one.startswith(f"{address}: cannot be bound; is another program")]
    assert [one for one in problems if "none/s" in one] == [
        f"unix://{tmp_path}/none/s: its folder cannot be used: No such file or directory"
    ]
    assert len(problems) == 4
    assert os.listdir(folder) == []  # noqa: PTH208 - names are what is wanted
