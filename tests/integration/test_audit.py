"""The audit log against real files: written before the answer, counted, never lost silently, never a secret."""

import asyncio
import errno
import itertools
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2

from broker import audit as audit_module
from broker.audit import AuditLog, Grant
from broker.errors import AuditDownError
from broker.telemetry import Metrics
from tests.support.brokers import eventually, refused, running_broker, running_emulator
from tests.support.clocks import SetClock

NOW = 1_800_000_000.0


def grant(scope: str = "inference", **changes: Any) -> Grant:
    """Build a grant."""
    fields: dict[str, Any] = {
        "principal": "local",
        "identity": "agent",
        "generation": 1,
        "scope": scope,
        "thread_id": "",
        "kind": "BEARER",
        "reason": "SCOPE_IS_BEARER_ONLY",
        "fallback_from": "",
        "credential": "tag",
    }
    return Grant(**fields | changes)


def lines(path: Path) -> list[dict[str, Any]]:
    """Read every line; each must be whole."""
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def grants_in(path: Path) -> Counter[str]:
    """Count the grants that a log accounts for, by scope."""
    counted: Counter[str] = Counter()
    for line in lines(path):
        if line["event"] == "grant":
            counted[line["scope"]] += 1
        elif line["event"] == "grant_repeated":
            counted[line["scope"]] += line["repeats"]
    return counted


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size`: a full disk, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def clock() -> SetClock:
    """A clock that stands still."""
    return SetClock(NOW)


async def opened(path: Path, clock: SetClock) -> AuditLog:
    """Open a log."""
    log = AuditLog(path, clock, Metrics())
    await log.open()
    return log


async def test_a_line_is_in_the_file_when_the_grant_returns(tmp_path: Path, clock: SetClock) -> None:
    """Another reader sees the line at once; it names the call and everything about the grant but what is empty."""
    path = tmp_path / "audit.jsonl"
    log = await opened(path, clock)
    log.grant(grant(fallback_from="AGENT_ASSERTION", thread_id="t\n1"), "request-1")
    assert lines(path) == [
        {
            "time": NOW,
            "sequence": 1,
            "event": "grant",
            "request_id": "request-1",
            "principal": "local",
            "identity": "agent",
            "generation": 1,
            "scope": "inference",
            "thread_id": "t\n1",
            "kind": "BEARER",
            "reason": "SCOPE_IS_BEARER_ONLY",
            "fallback_from": "AGENT_ASSERTION",
            "credential": "tag",
        }
    ]
    await log.close()


async def test_the_file_is_for_its_owner_alone_and_is_appended_to(tmp_path: Path, clock: SetClock) -> None:
    """The log is made 0600, keeps what is in it, and is not written through a link."""
    path = tmp_path / "audit.jsonl"
    for _ in range(2):
        log = await opened(path, clock)
        log.grant(grant(), "r")
        await log.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert grants_in(path) == {"inference": 2}
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic link"):
        await opened(tmp_path / "link", clock)


async def test_equal_grants_within_a_second_are_counted(tmp_path: Path, clock: SetClock) -> None:
    """The first has its line, the others one counted line when the second is over; the sum is the number of grants."""
    path = tmp_path / "audit.jsonl"
    log = await opened(path, clock)
    for second in range(3):
        clock.wall = NOW + second
        for number in range(5):
            log.grant(grant(), f"{second}-{number}")
        log.grant(grant("thread.files"), "other")
    clock.wall = NOW + 2.9
    log.flush_repeats()
    assert grants_in(path) == {"inference": 5 + 5 + 1, "thread.files": 3}
    clock.wall = NOW + 3
    log.flush_repeats()
    log.flush_repeats()
    assert grants_in(path) == {"inference": 15, "thread.files": 3}
    repeated = [line for line in lines(path) if line["event"] == "grant_repeated"]
    assert [(line["repeats"], line["second"]) for line in repeated] == [(4, NOW), (4, NOW + 1), (4, NOW + 2)]
    assert [line["sequence"] for line in lines(path)] == list(range(1, len(lines(path)) + 1))
    await log.close()


async def test_closing_writes_what_was_counted(tmp_path: Path, clock: SetClock) -> None:
    """An orderly end loses no count."""
    log = await opened(tmp_path / "audit.jsonl", clock)
    for _ in range(7):
        log.grant(grant(), "r")
    await log.close()
    assert grants_in(tmp_path / "audit.jsonl") == {"inference": 7}


async def test_grants_that_differ_in_anything_do_not_share_a_line(tmp_path: Path, clock: SetClock) -> None:
    """Another principal, thread, reason or credential is another grant."""
    log = await opened(tmp_path / "audit.jsonl", clock)
    fields = ("principal", "identity", "scope", "thread_id", "kind", "reason", "fallback_from", "credential")
    differences: list[dict[str, Any]] = [{}, {"generation": 2}, *({name: "other"} for name in fields)]
    for changes in differences:
        log.grant(grant(**changes), "r")
    assert len(lines(tmp_path / "audit.jsonl")) == 10
    await log.close()


async def test_what_is_counted_has_a_ceiling(tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of grants that all differ does not fill the memory: counting begins anew, and the sum stays right."""
    monkeypatch.setattr(audit_module, "_MOST_OPEN_GRANTS", 10)
    log = await opened(tmp_path / "audit.jsonl", clock)
    for number in range(35):
        log.grant(grant(thread_id=str(number)), "r")
        log.grant(grant(thread_id=str(number)), "r")
    counted = [line for line in lines(tmp_path / "audit.jsonl") if line["event"] == "grant_repeated"]
    assert len(counted) >= 20
    await log.close()
    assert grants_in(tmp_path / "audit.jsonl") == {"inference": 70}


async def test_a_full_disk_gives_nothing_out_and_heals(tmp_path: Path, clock: SetClock) -> None:
    """What cannot be written raises, leaves no torn line, keeps what was counted, and works again with room."""
    path = tmp_path / "audit.jsonl"
    log = await opened(path, clock)
    for _ in range(3):
        log.grant(grant(), "r")
    size = path.stat().st_size
    for room in (0, 20):  # nothing of a line, and a part of it
        clock.wall += 1
        with file_size_limit(size + room):
            with pytest.raises(AuditDownError):
                log.grant(grant(), "r")
            with pytest.raises(AuditDownError):
                log.grant(grant("thread"), "r")
            with pytest.raises(AuditDownError):
                log.record("disable_identity", identity="agent")
    log.grant(grant(), "r")
    log.flush_repeats(force=True)
    assert grants_in(path) == {"inference": 4}
    assert log._metrics.registry.get_sample_value("credential_broker_audit_lines_total", {"outcome": "failed"}) == 6
    await log.close()


async def test_a_torn_line_does_not_take_anothers_with_it(
    tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes may share a log: what one takes back of its own never cuts what the other wrote behind it."""
    path = tmp_path / "audit.jsonl"
    log, other = await opened(path, clock), await opened(path, clock)
    real = os.write

    def torn(descriptor: int, data: bytes) -> int:
        if descriptor != log._file:
            return real(descriptor, data)
        written = real(descriptor, data[:10])
        other.grant(grant("thread"), "theirs")
        return written

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", torn)
        with pytest.raises(AuditDownError):
            log.grant(grant(), "ours")
    theirs = path.read_text()[10:]
    assert json.loads(theirs)["request_id"] == "theirs"
    await log.close()
    await other.close()


async def test_closing_on_a_full_disk_ends_in_order(
    tmp_path: Path, clock: SetClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody can be refused any more: the operator is told how many grants are not in the log."""
    path = tmp_path / "audit.jsonl"
    log = await opened(path, clock)
    for _ in range(4):
        log.grant(grant(), "r")
    descriptor = log._file
    assert descriptor is not None
    with file_size_limit(path.stat().st_size):
        await log.close()
    printed = capsys.readouterr().out
    assert "audit_not_completed" in printed
    assert "repeats_lost=3" in printed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


async def test_a_disk_that_does_not_sync_gives_nothing_out(
    tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed sync each grant first proves that the disk takes data; until it does, none is answered."""

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken")

    log = await opened(tmp_path / "audit.jsonl", clock)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", broken)
        patched.setattr(os, "fsync", broken)
        log.grant(grant(), "r")
        await eventually(lambda: log._sync_failed)
        with pytest.raises(AuditDownError):
            log.grant(grant(), "a repeat is not waved through either")
        with pytest.raises(AuditDownError):
            log.grant(grant("thread"), "r")
    log.grant(grant("thread"), "r")
    assert not log._sync_failed
    await log.close()
    assert grants_in(tmp_path / "audit.jsonl") == {"inference": 1, "thread": 1}


async def test_lines_are_synced_soon_and_not_one_by_one(
    tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line is followed by a sync, off the loop; a burst of lines shares one."""
    threads: list[int] = []
    real = os.fdatasync

    def noted(descriptor: int) -> None:
        threads.append(threading.get_ident())
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", noted)
    log = await opened(tmp_path / "audit.jsonl", clock)
    for number in range(200):
        log.grant(grant(thread_id=str(number)), "r")
    await eventually(lambda: bool(threads))
    assert len(threads) < 10
    assert threading.get_ident() not in threads
    await log.close()


async def test_no_header_leaves_without_its_line(tmp_path: Path) -> None:
    """With a log that takes nothing, calls are refused with AUDIT_DOWN and no header; with room they are answered."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await broker.create_agent()
        await broker.authorize("control_plane.usage")
        # A device that is always full, in the place of the file.
        full = os.open("/dev/full", os.O_WRONLY)
        log = broker.app.authorizer._audit
        descriptor = log._file
        assert descriptor is not None
        kept = os.dup(descriptor)
        os.dup2(full, descriptor)
        for scope in ("control_plane.models", "bootstrap"):
            refusal = await refused(broker.authorize(scope))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "AUDIT_DOWN")
            assert refusal.retry_seconds
        os.dup2(kept, descriptor)
        for opened_here in (full, kept):
            os.close(opened_here)
        assert (await broker.authorize("control_plane.models")).headers


async def test_every_answer_is_in_the_log(tmp_path: Path) -> None:
    """Calls of several scopes and threads, some equal within a second, add up in the log to the answers given."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await broker.create_agent()
        wishes = [("inference", "t1"), ("inference", "t2"), ("control_plane.usage", ""), ("bootstrap", "")] * 15
        await asyncio.gather(*(broker.authorize(*wish) for wish in wishes))
        await refused(broker.authorize("no.such"))
        await broker.app.stop()
        broker.app.request_stop()
    assert grants_in(tmp_path / "audit.jsonl") == {"inference": 30, "control_plane.usage": 15, "bootstrap": 15}


async def test_operators_changes_are_recorded_with_their_comment(tmp_path: Path) -> None:
    """Who changed what and why stands in the log, without the secret that came with it."""
    async with running_emulator() as emulator, running_broker(tmp_path, emulator) as broker:
        await broker.create_agent()
        await broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name="agent", comment="left the company"))
        await broker.admin.EnableIdentity(admin_pb2.EnableIdentityRequest(name="agent", comment="came back"))
        await broker.admin.DeleteIdentity(admin_pb2.DeleteIdentityRequest(name="agent", comment="gone for good"))
    recorded = lines(tmp_path / "audit.jsonl")
    assert [(line["event"], line["comment"]) for line in recorded] == [
        ("create_identity", None),
        ("disable_identity", "left the company"),
        ("enable_identity", "came back"),
        ("delete_identity", "gone for good"),
    ]
    assert all(line["principal"] and line["request_id"] and line["resource"] == "agent" for line in recorded)


ANSWERING = """
import asyncio, sys
from pathlib import Path
from tests.support.brokers import running_broker, running_emulator

async def main():
    async with running_emulator() as emulator, running_broker(Path(sys.argv[1]), emulator) as broker:
        await broker.create_agent()
        for number in range(10**6):
            answer = await broker.authorize("control_plane.usage", f"thread-{number}")
            print(f"answered {number}", flush=True)

asyncio.run(main())
"""


def test_a_killed_process_has_a_line_for_each_answer(tmp_path: Path) -> None:
    """Every answer that left a process that was then killed with SIGKILL has its line."""
    process = subprocess.Popen([sys.executable, "-c", ANSWERING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = list(itertools.islice(process.stdout, 30))
    process.send_signal(signal.SIGKILL)
    printed += process.stdout.readlines()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    answered = {line.split()[1] for line in printed if line.startswith("answered ") and line.endswith("\n")}
    recorded = {line["thread_id"] for line in lines(tmp_path / "audit.jsonl") if line["event"] == "grant"}
    assert {f"thread-{number}" for number in answered} <= recorded
    assert len(answered) >= 20
