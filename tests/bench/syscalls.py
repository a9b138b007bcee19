"""
What a process asks of the kernel while it answers: a complete trace by strace, and what of it nobody expected.

The rules name what is expected; whatever they do not name is unexpected. A read of the database, an outbound request or
the opening of any file therefore cannot hide behind a call nobody thought of.
"""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.bench.processes import ServerError

ATTACH_SECONDS: Final = 20.0

# With -f each line begins with the thread; with -yy a descriptor is followed by what it is, in angle brackets.
_LINE: Final = re.compile(
    r"(?P<thread>\d+)\s+(?P<name>\w+)\((?:(?P<number>-?\d+)(?:<(?P<descriptor>(?:->|[^<>])*)>(?=[,)\s]|\(deleted\)))?)?"
)
_NO_CALL: Final = re.compile(r"\d+\s+(?:<\.\.\. \w+ resumed>|---|\+\+\+)")
_SOCKET_PAIR: Final = re.compile(r"UNIX(?:-\w+)?:\[(?P<one>\d+)(?:->(?P<other>\d+))?\]")

# They tell the time, wait, take memory, end, start and order threads: none of them moves a byte.
# fmt: off
_TOUCH_NOTHING: Final = frozenset({
    "clock_gettime", "gettimeofday", "getpid", "gettid", "getrandom",
    "clock_nanosleep", "nanosleep", "futex", "poll", "ppoll", "restart_syscall", "sched_yield",
    "brk", "madvise", "mmap", "mprotect", "mremap", "munmap",
    "clone", "clone3", "exit", "prctl", "rseq", "set_robust_list",
    "sched_getaffinity", "sched_getparam", "sched_getscheduler",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack",
})
# fmt: on
_WAKE_UPS: Final = frozenset({"anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:[timerfd]"})
_RECORD: Final = frozenset({"write", "fdatasync", "fsync"})


class StraceMissingError(Exception):
    """There is no strace on this machine."""


@dataclass(frozen=True, slots=True)
class Syscall:
    """
    One call of the kernel.

    Attributes:
        name: `read`, `openat`, ...
        descriptor: what the descriptor that it is about is: a path, `TCP:[...]`, `anon_inode:[eventfd]`, ...; None when
            its first argument is none.
    """

    name: str
    descriptor: str | None


def parse(lines: Iterable[str]) -> list[Syscall]:
    """
    Read a trace made by `strace -f -yy`.

    The second half of a call that was interrupted by another thread's, signals and the ends of threads are left out.

    Raises:
        ServerError: a line is none of these; what it stands for could be anything.
    """
    calls = []
    for line in lines:
        match = _LINE.match(line)
        if match is not None:
            calls.append(Syscall(match["name"], match["descriptor"]))
        elif _NO_CALL.match(line) is None:
            raise ServerError(f"not a line of strace: {line.strip()}")
    return calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """
    What a broker may ask of the kernel when it answers a warm call.

    Args:
        port: the TCP port on which it takes calls.
        audit_file: where it records grants.
        own_sockets: inodes of its own sockets, so that a pair with which it wakes itself up is known from one that leads
            to another process.
    """

    port: int
    audit_file: Path
    own_sockets: frozenset[str] = frozenset()

    def allows(self, call: Syscall) -> bool:
        """Say whether a call is among what is expected."""
        if call.name in _TOUCH_NOTHING:
            return True
        what = call.descriptor
        if what is None:
            return False
        if what == str(self.audit_file):
            return call.name in _RECORD
        if what in _WAKE_UPS:
            return True
        if self._leads_to_callers(what):
            return True
        pair = _SOCKET_PAIR.fullmatch(what)
        return pair is not None and {pair["one"], pair["other"] or pair["one"]} <= self.own_sockets

    def sends_to_callers(self, call: Syscall) -> bool:
        """Say whether a call writes to a caller: proof that a trace saw answers."""
        return (
            call.name in {"sendmsg", "sendto", "write", "writev"}
            and call.descriptor is not None
            and self._leads_to_callers(call.descriptor)
        )

    def _leads_to_callers(self, descriptor: str) -> bool:
        if not descriptor.startswith(("TCP:[", "TCPv6:[")):
            return False
        # `TCP:[local->remote]`, the listening socket `TCP:[local]`; the remote's port says nothing.
        local = descriptor.partition("[")[2].removesuffix("]").partition("->")[0]
        return local.rpartition(":")[2] == str(self.port)

    def unexpected(self, calls: Iterable[Syscall]) -> list[Syscall]:
        """Return the calls that are not expected, in their order."""
        return [call for call in calls if not self.allows(call)]


def sockets_of(pid: int) -> frozenset[str]:
    """Return the inodes of all sockets a process has."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue  # closed between the two looks
        if target.startswith("socket:["):
            inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    return frozenset(inodes)


class Trace:
    """
    Every syscall of a process, all threads, for as long as the `with` block lasts; `calls` holds them afterwards.

    Contents of buffers are not recorded: they hold credentials.

    Raises:
        StraceMissingError: there is no strace.
        ServerError: the process may not be traced.
    """

    def __init__(self, pid: int, folder: Path) -> None:
        self.calls: list[Syscall] = []
        self._pid = pid
        self._file = folder / f"strace.{pid}"
        self._messages = folder / f"strace.{pid}.log"

    def __enter__(self) -> Self:
        program = shutil.which("strace")
        if program is None:
            raise StraceMissingError
        with self._messages.open("wb") as messages:
            self._strace = subprocess.Popen(
                [program, "-f", "-yy", "-s", "0", "-o", str(self._file), "-p", str(self._pid)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=messages,
            )
        end = time.monotonic() + ATTACH_SECONDS
        while "attached" not in (said := self._messages.read_text(errors="replace")):
            if self._strace.poll() is not None or time.monotonic() > end:
                self._strace.kill()
                self._strace.wait()
                raise ServerError(f"strace could not attach: {said.strip()}")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._strace.send_signal(signal.SIGINT)
        try:
            self._strace.wait(ATTACH_SECONDS)
        except subprocess.TimeoutExpired:
            self._strace.kill()
            self._strace.wait()
            raise ServerError("strace did not end") from None
        with self._file.open(encoding="utf-8", errors="replace") as lines:
            self.calls = parse(lines)
