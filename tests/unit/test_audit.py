"""The audit log on real files: written before the answer, counted, never torn, never lost silently."""

import errno
import os
import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker import audit as audit_module
from broker.audit import AuditLog, Grant
from broker.errors import AuditDownError
from broker.telemetry import Metrics
from tests.support.audit_lines import grants_in, lines
from tests.support.brokers import eventually
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


async def test_each_of_several_processes_has_a_file_of_its_own(
    tmp_path: Path, clock: SetClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file is held until its process lets go; who comes later writes beside it, and says where."""
    path = tmp_path / "audit.jsonl"
    first, second = await opened(path, clock), await opened(path, clock)
    first.grant(grant(), "first")
    second.grant(grant(), "second")
    assert [line["request_id"] for line in lines(path)] == ["first"]
    assert [line["request_id"] for line in lines(tmp_path / "audit-2.jsonl")] == ["second"]
    assert "audit-2.jsonl" in capsys.readouterr().out
    await first.close()
    third = await opened(path, clock)
    third.grant(grant(), "third")
    assert [(line["sequence"], line["request_id"]) for line in lines(path)] == [(1, "first"), (1, "third")]
    await second.close()
    await third.close()


async def test_a_torn_line_is_taken_back(tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes only a part of a line gives nothing out, and the next line stands where the torn one began."""
    path = tmp_path / "audit.jsonl"
    log = await opened(path, clock)
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:10]))
        with pytest.raises(AuditDownError):
            log.grant(grant(), "torn")
    log.grant(grant(), "whole")
    assert [line["request_id"] for line in lines(path)] == ["whole"]
    await log.close()


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


async def test_syncing_outlives_a_defect(
    tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is raised by a sync, the next line is synced again."""
    log = await opened(tmp_path / "audit.jsonl", clock)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", lambda _: 1 // 0)
        log.grant(grant(), "r")
        await eventually(lambda: log._sync_failed)
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    log.grant(grant("thread"), "r")
    await eventually(lambda: bool(synced))
    assert "audit_sync_failed" in capsys.readouterr().out
    await log.close()


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
