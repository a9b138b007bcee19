"""Programs that the suite runs: none outlives it, none sees the settings of who started it, and what they hold is counted."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import click

_PORTS: Final = range(18_000, 32_000)
"""Below those that the system gives to outgoing connections, so that a port stays free while its broker is down."""
_handed_out: Final[set[int]] = set()
_groups: Final[set[int]] = set()


def free_port(*hosts: str) -> int:
    """Return a port that nothing listens on at any of the hosts, and that is given to nobody else in this run."""
    while True:
        port = random.choice(_PORTS)
        if port not in _handed_out and all(_is_free(host, port) for host in hosts or ("127.0.0.1",)):
            _handed_out.add(port)
            return port


def _is_free(host: str, port: int) -> bool:
    try:
        socket.create_server((host, port)).close()
    except OSError:
        return False
    return True


def no_authorities() -> ssl.SSLContext:
    """Return what an HTTP client is given that only speaks plaintext: loading the machine's takes it a tenth of a second."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment without what would lead a client elsewhere: the broker's settings and proxies."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("CREDENTIAL_BROKER_") and not name.lower().endswith("_proxy")
    }
    return {**kept, **(more or {})}


async def start(
    words: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    folder: Path | None = None,
    talks: bool = False,
    longest_line: int = 2**24,
) -> asyncio.subprocess.Process:
    """
    Start a program in a process group of its own.

    Args:
        words: it and its arguments.
        log: the file that its standard error is appended to; its standard output too unless it talks.
        environment: the whole of it.
        folder: where; None is here.
        talks: whether its standard input and output are pipes to us.
        longest_line: of what it says, in bytes.
    """
    with log.open("ab") as sink:
        process = await asyncio.create_subprocess_exec(
            *words,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else sink,
            stderr=sink,
            start_new_session=True,
            limit=longest_line,
        )
    _groups.add(process.pid)
    return process


async def output(
    words: Sequence[str], *, folder: Path, environment: Mapping[str, str], seconds: float
) -> tuple[int | None, str, str]:
    """
    Run a program to its end.

    Args:
        words: it and its arguments.
        folder: where.
        environment: the whole of it.
        seconds: how long it may take.

    Returns:
        Its exit code, None when it took too long, and what it wrote to standard output, without the colours
        that Maven switches off even where there is no terminal, and to standard error.
    """
    with tempfile.TemporaryDirectory(prefix="output-") as place:
        said, log = Path(place) / "out", Path(place) / "err"
        with said.open("wb") as sink, log.open("wb") as complaints:
            process = await asyncio.create_subprocess_exec(
                *words,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=complaints,
                start_new_session=True,
            )
        _groups.add(process.pid)
        code = await end(process, seconds=seconds)
        return code, click.unstyle(said.read_text(errors="replace")), log.read_text(errors="replace")


async def end(process: asyncio.subprocess.Process, *, seconds: float, how: signal.Signals | None = None) -> int | None:
    """
    Wait for a program's end, then end whatever is left of its group.

    Args:
        process: one that `start` returned.
        seconds: how long it may take.
        how: a signal to send first.

    Returns:
        Its exit code; None when it had to be killed.
    """
    code: int | None = None
    if how is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(how)
    with contextlib.suppress(TimeoutError):
        code = await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(process.wait())), seconds)
    _kill_group(process.pid)
    await process.wait()
    return code


def adopt(pid: int) -> None:
    """Let `end_all` end a process, of a group of its own, that something else started and waits for."""
    _groups.add(pid)


def forget(pid: int) -> None:
    """Leave a process alone that was adopted and has ended: its id may be another's by now."""
    _groups.discard(pid)


def heed_sigterm() -> None:
    """Let SIGTERM end this program as Ctrl-C does: what it started must not outlive it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def end_all() -> None:
    """Kill every group that is left, at once: nothing outlives the run, however it ended."""
    for group in tuple(_groups):
        _kill_group(group)


def _kill_group(group: int) -> None:
    _groups.discard(group)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


# --- what a program holds, by /proc -----------------------------------------------------------------------------------


def descriptors(pid: int) -> list[str]:
    """Return what the open files of a program and of its children are."""
    found = []
    for one in _tree(pid):
        folder = Path(f"/proc/{one}/fd")
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            for descriptor in folder.iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    found.append(str(descriptor.readlink()))
    return found


def threads(pid: int) -> int:
    """Count the threads of a program and of its children."""
    count = 0
    for one in _tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            count += sum(1 for _ in Path(f"/proc/{one}/task").iterdir())
    return count


def _tree(pid: int) -> list[int]:
    tree = [pid]
    for one in tree:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                tree += [int(word) for word in task.read_text(encoding="ascii").split()]
    return tree
