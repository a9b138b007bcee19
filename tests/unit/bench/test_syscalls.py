"""Reading traces of strace, and knowing what a warm call may ask of the kernel."""

from pathlib import Path

import pytest

from tests.bench.processes import ServerError
from tests.bench.syscalls import Expected, Syscall, parse

EXPECTED = Expected(port=50051, audit_file=Path("/state/audit.jsonl"), own_sockets=frozenset({"90045", "90046"}))


def test_lines_of_a_trace_become_calls() -> None:
    """Whole and interrupted calls count once; second halves, signals and ends of threads do not."""
    lines = [
        "11 futex(0x7fca2fa81c80, FUTEX_WAKE_PRIVATE, 1 <unfinished ...>\n",
        "12 <... futex resumed>)              = 1\n",
        "12 recvmsg(19<TCPv6:[[::ffff:127.0.0.1]:50051->[::ffff:127.0.0.1]:54860]>, {msg_name=NULL}, 0) = 944\n",
        '12 write(4</state/audit.jsonl>, ""..., 1)             = 1\n',
        '12 openat(AT_FDCWD</work>, "/etc/hostname", O_RDONLY|O_CLOEXEC) = 6</etc/hostname>\n',
        '13 pread64(9</state/broker.db-wal>(deleted), ""..., 24, 0) = 24\n',
        "13 epoll_wait(16<anon_inode:[eventpoll]>,  <unfinished ...>\n",
        "13 --- SIGUSR1 {si_signo=SIGUSR1} ---\n",
        "13 +++ exited with 0 +++\n",
        "14 gettid()                          = 14\n",
        "14 close(21)                         = 0\n",
    ]
    assert [
        Syscall("futex", None),
        Syscall("recvmsg", "TCPv6:[[::ffff:127.0.0.1]:50051->[::ffff:127.0.0.1]:54860]"),
        Syscall("write", "/state/audit.jsonl"),
        Syscall("openat", None),
        Syscall("pread64", "/state/broker.db-wal"),
        Syscall("epoll_wait", "anon_inode:[eventpoll]"),
        Syscall("gettid", None),
        Syscall("close", None),
    ] == parse(lines)


def test_a_line_nobody_understands_is_not_passed_over() -> None:
    """It could stand for anything, so reading the trace fails."""
    with pytest.raises(ServerError, match="not a line of strace"):
        parse(["11 futex(1) = 0\n", "something else\n"])


@pytest.mark.parametrize(
    "call",
    [
        Syscall("futex", None),
        Syscall("recvmsg", "TCP:[127.0.0.1:50051->127.0.0.1:40000]"),
        Syscall("sendmsg", "TCPv6:[[::ffff:127.0.0.1]:50051->[::ffff:127.0.0.1]:54860]"),
        Syscall("accept4", "TCP:[127.0.0.1:50051]"),
        Syscall("write", "anon_inode:[eventfd]"),
        Syscall("epoll_pwait", "anon_inode:[eventpoll]"),
        Syscall("recvfrom", "UNIX-STREAM:[90045->90046]"),
        Syscall("write", "/state/audit.jsonl"),
        Syscall("fdatasync", "/state/audit.jsonl"),
    ],
)
def test_what_a_warm_call_needs_is_expected(call: Syscall) -> None:
    """Callers' sockets, wake-ups, and appending to the audit log."""
    assert EXPECTED.unexpected([call]) == []


@pytest.mark.parametrize(
    "call",
    [
        Syscall("openat", None),
        Syscall("connect", "TCP:[127.0.0.1:40000]"),
        Syscall("unlink", None),
        Syscall("close", None),
        Syscall("pread64", "/state/broker.db"),
        Syscall("write", "/state/broker.db-wal"),
        Syscall("fsync", "/state"),
        # An outbound request: the callers' port is only the remote's, or part of another number.
        Syscall("sendto", "TCP:[127.0.0.1:40000->127.0.0.1:50051]"),
        Syscall("sendto", "TCP:[127.0.0.1:150051->127.0.0.1:8089]"),
        # A socket to another process, for example a database's.
        Syscall("sendto", "UNIX-STREAM:[90045->77777]"),
        Syscall("recvfrom", "UNIX-STREAM:[90045->90046,@/run/other]"),
        Syscall("read", "/state/audit.jsonl"),
        Syscall("write", "/state/audit.jsonl.1"),
        Syscall("write", "pipe:[555]"),
        Syscall("a_call_of_a_later_kernel", None),
    ],
)
def test_everything_else_is_unexpected(call: Syscall) -> None:
    """What no rule names is reported, also what nobody thought of."""
    assert [call] == EXPECTED.unexpected([Syscall("futex", None), call])


@pytest.mark.parametrize(
    ("call", "sends"),
    [
        (Syscall("sendmsg", "TCP:[127.0.0.1:50051->127.0.0.1:40000]"), True),
        (Syscall("recvmsg", "TCP:[127.0.0.1:50051->127.0.0.1:40000]"), False),
        (Syscall("sendmsg", "TCP:[127.0.0.1:9464->127.0.0.1:40000]"), False),
        (Syscall("write", None), False),
    ],
)
def test_answers_to_callers_are_told_from_other_calls(call: Syscall, sends: bool) -> None:
    """Only writing to a caller's socket proves that a trace saw an answer."""
    assert sends == EXPECTED.sends_to_callers(call)
