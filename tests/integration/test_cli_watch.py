"""`credential-broker watch` as a process: lines for programs, a table on a terminal, and how it goes on and ends."""

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2

from broker.emulator import EmulatorServer
from tests.support.brokers import Broker, running_broker, running_emulator
from tests.support.command_line import PROGRAM, ROOT, WAIT_SECONDS, environment

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What colours a terminal and moves its cursor."""


@pytest.fixture
async def emulator() -> AsyncIterator[EmulatorServer]:
    """Run an emulator."""
    async with running_emulator() as emulator:
        yield emulator


@contextlib.asynccontextmanager
async def command(broker: Broker, *arguments: str, output: int = asyncio.subprocess.PIPE) -> AsyncIterator[Any]:
    """Run `watch` at a broker until the end of the block."""
    process = await asyncio.create_subprocess_exec(
        str(PROGRAM),
        "watch",
        "--address",
        broker.app.caller_address,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=asyncio.subprocess.PIPE,
        env=environment(TERM="xterm", COLUMNS="200"),
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: Any) -> dict[str, Any]:
    """Read one line of JSON."""
    async with asyncio.timeout(WAIT_SECONDS):
        document: dict[str, Any] = json.loads(await process.stdout.readline())
    return document


async def interrupted(process: Any) -> int:
    """Press Ctrl-C and return the exit code."""
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(WAIT_SECONDS):
        code: int = await process.wait()
    return code


async def test_each_event_is_a_line_without_secrets(tmp_path: Path, emulator: EmulatorServer) -> None:
    """A value, a withdrawal and an error as they come; the credential itself is left out; Ctrl-C is a good end."""
    async with running_broker(tmp_path / "state", emulator) as broker:
        await broker.create_agent()
        async with command(broker, "--scope", "inference", "--thread", "t1", "--scope", "inference") as process:
            value = await line(process)
            assert value["subscription_id"] == "1"
            headers = {header["name"]: header for header in value["authorization"]["headers"]}
            assert headers["authorization"]["value"] == "(hidden)"
            assert headers["chatgpt-account-id"]["value"] != "(hidden)"
            assert value["authorization"]["kind"] == "AGENT_ASSERTION"
            await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent"))
            assert (await line(process))["withdrawal"] == {"reason": "IDENTITY_DISABLED"}
            assert (await line(process))["error"]["status"]["reason"] == "IDENTITY_REVOKED"
            assert await interrupted(process) == 0


async def test_it_ends_after_as_many_values_as_asked_for(tmp_path: Path, emulator: EmulatorServer) -> None:
    """Of all its scopes together, and nothing but values is counted."""
    async with running_broker(tmp_path / "state", emulator) as broker:
        await broker.create_agent()
        scopes = ("--scope", "no_such_scope", "--scope", "control_plane.models", "--scope", "control_plane.plugins")
        async with command(broker, *scopes, "--count", "2") as process:
            async with asyncio.timeout(WAIT_SECONDS):
                printed, _ = await process.communicate()
            events = [json.loads(each) for each in printed.splitlines()]
            assert process.returncode == 0
            assert sum("authorization" in event for event in events) == 2
            assert "authorization" in events[-1]


async def test_secrets_are_printed_when_asked_for(tmp_path: Path, emulator: EmulatorServer) -> None:
    """And a backend takes them."""
    async with running_broker(tmp_path / "state", emulator) as broker:
        await broker.create_agent()
        async with command(broker, "--scope", "control_plane.models", "--show-secrets") as process:
            headers = {one["name"]: one["value"] for one in (await line(process))["authorization"]["headers"]}
            assert headers["authorization"].startswith("AgentAssertion ")


async def test_it_comes_back_when_the_stream_ends_and_when_the_broker_does(
    tmp_path: Path, emulator: EmulatorServer
) -> None:
    """After `closing` with what it holds; while the broker is away it says so and goes on trying."""
    age = {"grpc.max_connection_age_ms": 1000}
    async with running_broker(tmp_path / "state", emulator, channel_arguments=age) as broker:
        await broker.create_agent()
        address = broker.app.caller_address
        async with command(broker, "--scope", "control_plane.models") as process:
            assert "authorization" in await line(process)
            assert "closing" in await line(process)
            # What it held was current still, so the next stream had nothing to say until it closed.
            assert "closing" in await line(process)
            await broker.app.stop()
            broker.app.request_stop()
            while "error" not in (told := await line(process)):
                pass
            assert told["error"]["code"] == "UNAVAILABLE"
            async with running_broker(tmp_path / "state", emulator, listen={"callers": [address]}):
                while "authorization" not in await line(process):
                    pass
                assert await interrupted(process) == 0


async def test_what_trying_again_does_not_mend_ends_it(tmp_path: Path, emulator: EmulatorServer) -> None:
    """A scope that no broker could know is told as by `get`."""
    async with running_broker(tmp_path / "state", emulator) as broker, command(broker, "--scope", "") as process:
        async with asyncio.timeout(WAIT_SECONDS):
            _, errors = await process.communicate()
        assert process.returncode == 1
        assert b"FIELD_INVALID" in errors


async def test_on_a_terminal_it_is_a_table(tmp_path: Path, emulator: EmulatorServer) -> None:
    """One line a scope, drawn again as time passes, without the credential."""
    async with running_broker(tmp_path / "state", emulator) as broker:
        await broker.create_agent()
        ours, theirs = pty.openpty()
        os.set_blocking(ours, False)
        shown = ""
        async with command(broker, "--scope", "inference", "--thread", "t1", output=theirs) as process:
            os.close(theirs)
            async with asyncio.timeout(WAIT_SECONDS):
                while not re.search(r"inference +agent +AGENT_ASSERTION +current", shown):
                    with contextlib.suppress(BlockingIOError):
                        shown += ESCAPES.sub("", os.read(ours, 65536).decode(errors="replace"))
                    await asyncio.sleep(0.02)
            assert await interrupted(process) == 0
        os.close(ours)
        assert "AgentAssertion" not in shown
