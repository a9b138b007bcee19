"""Tokens that a program prints: real programs, beside a running gRPC server."""

import asyncio
import contextlib
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.errors import IssuerDownError
from tests.support.clocks import JumpingClock
from tests.support.sources import opened


def program(folder: Path, text: str) -> str:
    """Write an executable shell script and return its path."""
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def section(*command: str, **more: Any) -> dict[str, Any]:
    """Return the settings of a source that runs this."""
    return {"type": "command", "command": list(command), "timeout_seconds": 5, **more}


async def test_the_first_line_is_the_token(tmp_path: Path) -> None:
    """What follows is not looked at; the life that the settings say counts from before the program ran."""
    clock = JumpingClock()
    run = program(tmp_path, "echo ' sk-first '; echo 'and more'; echo noise >&2")
    async with opened(clock=clock, tool=section(run, lifetime_seconds=60), endless=section(run)) as sources:
        before = clock.now()
        bearer = await sources["tool"].refresh()
        assert bearer.token.reveal() == "sk-first"
        assert bearer.expire_time is not None
        assert before + 60 <= bearer.expire_time < clock.now() + 60
        assert (await sources["endless"].refresh()).expire_time is None


async def test_arguments_are_no_shells(tmp_path: Path) -> None:
    """Each argument arrives as it stands, whatever a shell would make of it."""
    odd = "$HOME;`id`|x>y*&&'\""
    run = program(tmp_path, 'test "$#" = 2 && test "$2" = "a b" && printf "%s\\n" "$1"')
    async with opened(tool=section(run, odd, "a b")) as sources:
        assert (await sources["tool"].refresh()).token.reveal() == odd


async def test_a_program_sees_little_of_the_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment is a handful of variables and those that the settings name; its input is empty."""
    monkeypatch.setenv("BROKERS_SECRET", "x")
    monkeypatch.setenv("TOOL_PROFILE", "y")
    printed = tmp_path / "printed"
    run = program(tmp_path, f"env | cut -d= -f1 | sort > {printed}; cat >> {printed}; pwd >> {printed}; echo sk-1")
    with standing_in_for_input(b"SECRET_TYPED\n"):
        async with opened(tool=section(run, pass_environment=["TOOL_PROFILE", "NOT_THERE"])) as sources:
            await sources["tool"].refresh()
    names = set(printed.read_text().split())
    assert names - {"_", "SHLVL", "PWD", "OLDPWD"} == {"PATH", "HOME", "LANG", "TOOL_PROFILE", "/"}


@contextlib.contextmanager
def standing_in_for_input(data: bytes) -> Iterator[None]:
    """Have this process find these bytes on its standard input."""
    saved = os.dup(0)
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    os.dup2(reading, 0)
    try:
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(reading)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo sk-secret; echo sk-secret >&2; exit 3", "ended with 3; 10 bytes on its standard error"),
        ("true", "printed no token"),
        ("echo two words sk-secret", "printed no token"),
        ("printf 'sk-secret\\303\\251\\n'", "printed no token"),
        ("head -c 20000 /dev/zero | tr '\\0' a", "printed more than 16384 bytes"),
        ("head -c 20000000 /dev/zero | tr '\\0' a; head -c 3000000 /dev/zero >&2", "printed more than 16384 bytes"),
        ("kill -9 $$", "ended with -9"),
        ("sleep 60", "ran longer than 0.3 s and was killed"),
    ],
    ids=["exit code", "nothing", "words", "not ascii", "too long", "far too long", "killed", "slow"],
)
async def test_a_program_that_fails_brings_no_token(tmp_path: Path, text: str, said: str) -> None:
    """It is ISSUER_DOWN, told by what happened and never by what was printed; the next run may go better."""
    run = program(tmp_path, text)
    clock = JumpingClock()
    limit = 0.3 if "sleep" in text else 20
    async with opened(clock=clock, tool=section(run, timeout_seconds=limit)) as sources:
        with pytest.raises(IssuerDownError) as caught:
            await sources["tool"].refresh()
        assert said in caught.value.note
        assert "sk-secret" not in f"{caught.value!r} {caught.value.note}"
        program(tmp_path, "echo sk-good")
        clock.ahead += 2
        assert (await sources["tool"].refresh()).token.reveal() == "sk-good"


@pytest.mark.parametrize("content", [None, "no program"], ids=["missing", "not executable"])
async def test_a_program_that_cannot_be_run(tmp_path: Path, content: str | None) -> None:
    """It is ISSUER_DOWN with the reason."""
    path = tmp_path / "program"
    if content is not None:
        path.write_text(content)
    async with opened(tool=section(str(path))) as sources:
        with pytest.raises(IssuerDownError) as caught:
            await sources["tool"].refresh()
    assert "could not be run" in caught.value.note


async def test_all_that_a_slow_program_began_is_killed(tmp_path: Path) -> None:
    """Its children go with it, also when they hold its output open."""
    children = tmp_path / "children"
    run = program(tmp_path, f"sleep 600 & echo $! > {children}; sleep 600 & echo $! >> {children}; echo sk-1; exit 0")
    async with opened(tool=section(run, timeout_seconds=0.5)) as sources:
        with pytest.raises(IssuerDownError):
            await sources["tool"].refresh()
    pids = [int(line) for line in children.read_text().split()]
    assert len(pids) == 2
    for _ in range(100):
        if not any(is_alive(pid) for pid in pids):
            break
        await asyncio.sleep(0.02)
    assert not any(is_alive(pid) for pid in pids)


async def test_closing_kills_a_program_that_runs(tmp_path: Path) -> None:
    """The broker leaves nothing behind."""
    mine = tmp_path / "pid"
    run = program(tmp_path, f"echo $$ > {mine}; exec sleep 600")
    async with opened(tool=section(run, timeout_seconds=60)) as sources:
        sources["tool"].refresh_soon()
        while not mine.exists() or not mine.read_text().strip():
            await asyncio.sleep(0.01)
    assert not is_alive(int(mine.read_text()))


def is_alive(pid: int) -> bool:
    """Say whether a process runs (a zombie does not)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


BESIDE_GRPC = """
import asyncio, sys, time
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from broker.bearer.command import CommandExchange
from broker.clock import SystemClock

async def main():
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    exchange = CommandExchange(
        (sys.argv[1],), environment={"PATH": "/usr/bin:/bin"}, clock=SystemClock(), timeout=20.0
    )
    longest = 0.0
    async def watch():
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - before - 0.005)
    watching = asyncio.create_task(watch())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        async def calls():
            for _ in range(200):
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        async def runs():
            for _ in range(15):
                assert (await exchange.obtain(rejected=None)).token.reveal() == "sk-1"
        await asyncio.gather(calls(), calls(), runs(), runs())
    watching.cancel()
    await server.stop(0)
    print(f"longest pause of the loop {longest * 1000:.0f} ms")

if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_programs_run_beside_a_grpc_server(tmp_path: Path, loop: str) -> None:
    """Thirty programs run while a gRPC server answers 400 calls, on either event loop: nothing hangs or breaks."""
    run = program(tmp_path, "sleep 0.05; echo sk-1")
    script = tmp_path / "beside.py"
    script.write_text(BESIDE_GRPC)
    begin = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), run, loop),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    try:
        async with asyncio.timeout(60):
            output, errors = await process.communicate()
    except TimeoutError:
        process.send_signal(signal.SIGKILL)
        raise
    print(output.decode(), f"{time.monotonic() - begin:.1f} s")
    assert process.returncode == 0, errors.decode()
    assert b"fork" not in errors.lower(), "gRPC's handlers of forks must not run in the midst of its calls"
