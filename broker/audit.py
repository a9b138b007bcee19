"""
The record of every grant: one JSON object a line, written before the answer leaves.

A line is in the file (and survives the process) when `grant` returns; it is on the disk at most `SYNC_SECONDS` later.
When it cannot be written nothing is handed out. Grants that are identical but for their moment share a line within one
second: the first is written before its answer, the others are counted into one more line when the second is over.

Each process has a file of its own, which it holds locked: of several that share a state directory the first takes
`audit.jsonl`, the next `audit-2.jsonl`, and so on. So no torn line of one spoils a line of another, and the sequence
numbers of a file have gaps only where lines are missing.

The log names credentials by a keyed hash and threads as the caller did; it never holds a secret or a header.
"""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from broker.clock import Clock
from broker.errors import AuditDownError
from broker.telemetry import Metrics, logger

SYNC_SECONDS: Final = 0.1
_MOST_OPEN_GRANTS: Final = 10_000
_MOST_FILES: Final = 64
_LOG: Final = logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What is recorded of one authorization; equal grants within a second share a line."""

    principal: str
    identity: str
    generation: int
    scope: str
    thread_id: str
    kind: str
    reason: str
    fallback_from: str
    credential: str
    """Keyed hash that names the credential without revealing it: the connection tag."""


class GrantLine:
    """
    The line of a grant, which equal grants share until its second is over.

    `repeats` counts those after the first; it may grow only while `is_open`.
    """

    __slots__ = ("grant", "is_open", "repeats")

    def __init__(self, grant: Grant) -> None:
        self.grant = grant
        self.is_open = True
        self.repeats = 0


class AuditLog:
    """
    The append-only audit file of one process.

    Args:
        path: the file; when other processes hold it, the next free one of its numbered neighbours is taken.
        clock: gives the time of each line.
        metrics: counts lines.
    """

    def __init__(self, path: Path, clock: Clock, metrics: Metrics) -> None:
        self._path = path
        self._clock = clock
        self._metrics = metrics
        self._file: int | None = None
        self._sequence = 0
        self._second = 0
        self._lines: dict[Grant, GrantLine] = {}
        self._unsynced = asyncio.Event()
        self._syncing: asyncio.Task[None] | None = None
        self._sync_failed = False

    async def open(self) -> None:
        """
        Open a file for appending, 0600, and start the syncing.

        Raises:
            OSError: none can be opened.
        """
        self._file, path = await asyncio.to_thread(self._open_free_file)
        if path != self._path:
            _LOG.warning("audit_file_taken", file=str(self._path), used_instead=str(path))
        self._syncing = asyncio.create_task(self._sync_forever(), name="audit-sync")

    def _open_free_file(self) -> tuple[int, Path]:
        for number in range(1, _MOST_FILES + 1):
            path = self._path if number == 1 else self._path.with_stem(f"{self._path.stem}-{number}")
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode=0o600)
            try:
                # Held until the process ends, however it ends.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
            except OSError:
                os.close(file)
                raise
            else:
                return file, path
        raise OSError(errno.EBUSY, f"{_MOST_FILES} processes hold audit files beside it")

    async def close(self) -> None:
        """Write and sync what is left, then close."""
        if self._syncing is not None:
            self._syncing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._syncing
        if self._file is not None:
            try:
                self.flush_repeats(force=True)
                await asyncio.to_thread(os.fsync, self._file)
            except (AuditDownError, OSError):
                # Nobody is answered any more, so nothing can be refused: the operator is told what is missing.
                _LOG.error("audit_not_completed", repeats_lost=sum(line.repeats for line in self._lines.values()))
            os.close(self._file)
            self._file = None

    def grant(self, grant: Grant, request_id: str) -> GrantLine:
        """
        Record one authorization before it is answered, and return its line, which equal ones may share.

        Raises:
            AuditDownError: it could not be written; the authorization must not be handed out.
        """
        second = int(self._clock.now())
        if second != self._second or len(self._lines) >= _MOST_OPEN_GRANTS:
            self.flush_repeats(force=True)
            self._second = second
        line = self._lines.get(grant)
        if line is not None and line.is_open:
            line.repeats += 1
            return line
        self._write("grant", {"request_id": request_id, **_fields(grant)})
        if line is None:
            line = self._lines[grant] = GrantLine(grant)
        line.is_open = True
        return line

    def flush_repeats(self, *, force: bool = False) -> None:
        """
        Write the counts of the second that is over; the upkeep calls this so that they do not wait for a call.

        Raises:
            AuditDownError: they could not be written; they are kept and tried again.
        """
        if not self._lines or (not force and int(self._clock.now()) == self._second):
            return
        self._close_lines()
        while self._lines:
            grant, line = next(iter(self._lines.items()))
            if line.repeats:
                self._write("grant_repeated", {"repeats": line.repeats, "second": self._second, **_fields(grant)})
            # Only now: a count that could not be written is tried again.
            del self._lines[grant]

    def _close_lines(self) -> None:
        """Let no further grant share the lines there are: their second is over, or they may not be on the disk."""
        for line in self._lines.values():
            line.is_open = False

    def record(self, event: str, **fields: str | int | bool | None) -> None:
        """
        Record something other than a grant: an operator's change, a registration, a refusal.

        Raises:
            AuditDownError: it could not be written.
        """
        self._write(event, fields)

    def _write(self, event: str, fields: Mapping[str, Any]) -> None:
        self._sequence += 1
        record = {"time": round(self._clock.now(), 3), "sequence": self._sequence, "event": event, **fields}
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        try:
            whole = self._append(line)
        except OSError as error:
            self._metrics.count(self._metrics.audit_lines, "failed")
            raise AuditDownError(retry_after=1.0) from error
        if not whole:
            self._metrics.count(self._metrics.audit_lines, "failed")
            raise AuditDownError(retry_after=1.0, note="the disk took only a part of the audit line")
        self._metrics.count(self._metrics.audit_lines, "written")
        self._unsynced.set()

    def _append(self, line: bytes) -> bool:
        if self._file is None:
            return False
        if self._sync_failed:
            # What was written before may be lost already: prove that the disk takes data again before going on.
            os.fsync(self._file)
            self._sync_failed = False
        written = os.write(self._file, line)
        if written != len(line):
            os.ftruncate(self._file, os.lseek(self._file, 0, os.SEEK_CUR) - written)  # take the torn piece back
        return written == len(line)

    async def _sync_forever(self) -> None:
        while True:
            await self._unsynced.wait()
            self._unsynced.clear()
            try:
                await asyncio.to_thread(os.fdatasync, self._file or 0)
            except Exception as error:  # noqa: BLE001 - syncing must not end, whatever went wrong
                self._sync_failed = True
                self._close_lines()
                _LOG.error("audit_sync_failed", exc_info=error)
            await asyncio.sleep(SYNC_SECONDS / 2)


def _fields(grant: Grant) -> dict[str, Any]:
    return {name: getattr(grant, name) for name in Grant.__slots__ if getattr(grant, name) != ""}
