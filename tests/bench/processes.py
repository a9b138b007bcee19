"""Processes under measurement: start them on a core of their own, wait until they serve, read their CPU, end them."""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

ROOT: Final = Path(__file__).resolve().parents[2]
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 20.0
_SHOWN_OF_LOG: Final = 4000


class ServerError(Exception):
    """A process did not start, did not answer, or ended by itself; the text holds the end of what it logged."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The core of the servers under measurement, and that of everything else."""

    servers: int
    load: int

    @classmethod
    def choose(cls) -> Self:
        """
        Take the first two cores that this process may use.

        Raises:
            ServerError: there is only one, so load and server would share it.
        """
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise ServerError("two cores are needed: one for the server, one for the load")
        return cls(*allowed[:2])


def cpu_by_thread(pid: int) -> dict[str, int]:
    """
    Return the nanoseconds each thread of a process has spent on a CPU (`/proc/PID/task/*/schedstat`).

    Raises:
        ServerError: the process is gone.
    """
    spent = {}
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - names are wanted, of a folder that changes meanwhile
    except FileNotFoundError:
        raise ServerError(f"process {pid} is gone") from None
    for thread in threads:
        try:
            spent[thread] = int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text(encoding="ascii").split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended between the two looks
    return spent


def cpu_between(before: Mapping[str, int], after: Mapping[str, int]) -> int:
    """
    Return the nanoseconds spent between two looks.

    A thread that ended in between is left out rather than subtracted: what it spent since the first look is lost, which
    is little for grpcio's idle helpers, the only threads that come and go.
    """
    return sum(spent - before.get(thread, 0) for thread, spent in after.items())


def free_port() -> int:
    """Return a port of the loopback that nothing listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Server:
    """
    A program of this repository as a process of its own, which says on standard output what it does: a JSON object a line.

    Args:
        name: what to call it in errors.
        module: `python -m MODULE`.
        arguments: its arguments.
        folder: where its standard error goes, to `NAME.log`.
        core: the core it is bound to before its first thread starts; None binds it to none.
        environment: variables beside the inherited ones.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        folder: Path,
        core: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                # Its own group: Ctrl-C reaches the harness, which then ends its servers in order.
                start_new_session=True,
            )
        self.pid = self._process.pid
        if core is not None:
            # The interpreter is hardly running yet; threads inherit what their process is bound to.
            os.sched_setaffinity(self.pid, {core})
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def next_event(self, *, seconds: float = START_SECONDS) -> dict[str, Any]:
        """
        Return the next object the process says.

        Raises:
            ServerError: it ended, or said nothing in time.
        """
        pipe = self._process.stdout
        if pipe is None:
            raise AssertionError("started with a pipe")
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise ServerError(f"{self.name} said nothing within {seconds:.0f} s{self._logged()}")
                data = os.read(pipe.fileno(), 65536)
                if not data:
                    raise ServerError(f"{self.name} ended with {self._process.wait()}{self._logged()}")
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        return event

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def stop(self) -> int:
        """Ask the process to end, force it after `STOP_SECONDS`, and return its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        code = self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code

    def _logged(self) -> str:
        log = self._log.read_bytes()[-_SHOWN_OF_LOG:].decode(errors="replace").strip()
        return f"; its log ends:\n{log}" if log else "; it logged nothing"
