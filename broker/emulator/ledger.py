"""A record of every request the backend received, without a single secret value."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

LEDGER_CAPACITY = 100_000


@dataclass(slots=True, kw_only=True)
class Entry:
    """One request. It is written down on arrival and completed when its outcome is known.

    Attributes:
        seq: Grows by one with each request, never reused, also not after the ledger was cleared.
        time: Arrival on the backend's own clock, RFC 3339.
        method: The HTTP method.
        path: The raw path, without the query.
        operation: What the path means: `agent_register`, `task_register`, `biscuit`, `jwks`, `oauth`,
            `oauth_revoke`, `resource`, or `unknown`.
        base: The prefix an agent or task call was made under.
        header_names: The names of all request headers, lower case, sorted.
        body_size: Bytes received.
        body_sha256: Their digest.
        credential_kind: What was presented: `agent_assertion`, `bearer`, `biscuit`, `signature`, `refresh_token`,
            `client_secret`, `subject_token`, `revoked_token`, `other` or `none`.
        credential_fingerprint: First 16 hex digits of the SHA-256 of what was presented: tells two of them apart,
            reveals none. None for a `signature`, and for `none`.
        verdict: `verified`, `refused`, `not_required`, `unprocessed` when a fault kept the request from being
            looked at, or `pending` until then.
        refusal: The precise cause when refused.
        status: The HTTP status answered, None while pending and when none was sent.
        outcome: `pending`, `answered`, `cut` (a fault closed the connection) or `client_gone`.
        agent_runtime_id: The agent, once known.
        task_id: The upstream task, once known.
        account_id: The account the credential proved.
        external_task_ref: What a task registration or the asserted task carries.
        faults: The ids of the fault rules that fired.
    """

    seq: int
    time: str
    method: str
    path: str
    operation: str
    base: str | None
    header_names: list[str]
    body_size: int = 0
    body_sha256: str = ""
    credential_kind: str = "none"
    credential_fingerprint: str | None = None
    verdict: str = "pending"
    refusal: str | None = None
    status: int | None = None
    outcome: str = "pending"
    agent_runtime_id: str | None = None
    task_id: str | None = None
    account_id: str | None = None
    external_task_ref: str | None = None
    faults: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """All fields under their own names."""
        return asdict(self)


@dataclass
class Ledger:
    """The newest requests, and how many there were.

    Keeps `capacity` entries and forgets the oldest first; `dropped` says how many are gone, so that a count taken
    from the entries is never mistaken for a count of all.
    """

    capacity: int = LEDGER_CAPACITY
    dropped: int = 0
    _next: int = 1
    _entries: deque[Entry] = field(default_factory=deque)

    def open(
        self, *, time: str, method: str, path: str, operation: str, base: str | None, header_names: list[str]
    ) -> Entry:
        """Write down the arrival of a request; the caller completes the entry in place."""
        entry = Entry(
            seq=self._next,
            time=time,
            method=method,
            path=path,
            operation=operation,
            base=base,
            header_names=header_names,
        )
        self._next += 1
        self._entries.append(entry)
        if len(self._entries) > self.capacity:
            self._entries.popleft()
            self.dropped += 1
        return entry

    def entries(
        self, *, since: int = 0, path: str | None = None, kind: str | None = None, operation: str | None = None
    ) -> Iterator[Entry]:
        """The kept entries in order of arrival.

        Args:
            since: Only entries with a greater `seq`.
            path: Only paths with this prefix.
            kind: Only this `credential_kind`.
            operation: Only this `operation`.
        """
        for entry in self._entries:
            if (
                entry.seq > since
                and (path is None or entry.path.startswith(path))
                and kind in (None, entry.credential_kind)
                and operation in (None, entry.operation)
            ):
                yield entry

    def clear(self) -> None:
        """Forget all entries; the sequence goes on."""
        self._entries.clear()
        self.dropped = 0

    def as_json(
        self, *, since: int = 0, path: str | None = None, kind: str | None = None, operation: str | None = None
    ) -> dict[str, Any]:
        """The selected entries with their counts by operation, by verdict and by refusal."""
        selected = list(self.entries(since=since, path=path, kind=kind, operation=operation))
        return {
            "last_seq": self._next - 1,
            "dropped": self.dropped,
            "count": len(selected),
            "by_operation": dict(Counter(entry.operation for entry in selected)),
            "by_verdict": dict(Counter(entry.verdict for entry in selected)),
            "by_refusal": dict(Counter(entry.refusal for entry in selected if entry.refusal)),
            "entries": [entry.as_json() for entry in selected],
        }
