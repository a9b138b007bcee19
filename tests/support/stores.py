"""
A real store in a temporary folder, builders for what goes into it, and a wrapper that makes it fail on demand.

The fake of the store is the real SQLite store with a queue of errors, so there is no second implementation to keep
honest.
"""

import asyncio
import inspect
import itertools
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from broker.errors import StoreDownError
from broker.model import (
    Identity,
    IdentityId,
    IdentityName,
    IdentityState,
    Mode,
    Origin,
    StoredBearer,
    Task,
    TaskKind,
    TaskState,
    ThreadId,
    UpstreamKey,
    UpstreamTask,
)
from broker.store import Claimed, CreateRequest, NewKey, Store, TaskClaim
from broker.store import sqlite as sqlite_module
from broker.store.sql import SqlStore

NOW = 1_800_000_000.0
"""A time for tests that do not care which."""

LONG_AGO = 0.0
"""Before any use of a binding in tests: nothing is pruned because it was not used since."""

_numbers = itertools.count(1)


@asynccontextmanager
async def sqlite_store(folder: Path, *, busy_limit: float = 5.0) -> AsyncIterator[SqlStore]:
    """Open the SQLite store in `folder` (a file `broker.db`, made on first use) and close it at the end."""
    store = sqlite_module.sqlite_store(folder / "broker.db", busy_limit=busy_limit)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def agent_identity(name: str = "agent", **changes: Any) -> Identity:
    """Build an ACTIVE identity of mode AGENT with a key and an id of its own."""
    identity = Identity(
        id=IdentityId(f"{next(_numbers):032x}"),
        name=IdentityName(name),
        backend="codex",
        mode=Mode.AGENT,
        origin=Origin.CREATED,
        state=IdentityState.ACTIVE,
        account_id="account-1",
        user_id="user-1",
        agent_runtime_id="runtime-1",
        public_key="ssh-ed25519 AAAA",
        sealed_private_key=b"sealed key",
        create_time=NOW,
        update_time=NOW,
    )
    return replace(identity, **changes)


def bearer_identity(name: str = "bearer", **changes: Any) -> Identity:
    """Build an ACTIVE identity of mode BEARER."""
    return agent_identity(
        name,
        **{
            "mode": Mode.BEARER,
            "origin": Origin.BEARER_ONLY,
            "agent_runtime_id": None,
            "public_key": None,
            "sealed_private_key": None,
        }
        | changes,
    )


def create_request(request_id: str | None = None, **changes: Any) -> CreateRequest:
    """Build the request that makes an identity; each has an id of its own unless one is given."""
    request = CreateRequest(
        request_id=request_id or f"request-{next(_numbers)}",
        fingerprint=b"content",
        now=NOW,
        remember_until=NOW + 86_400,
    )
    return replace(request, **changes)


def task_claim(
    identity: Identity, thread: str | None = "thread-1", *, key: str | None = None, **changes: Any
) -> TaskClaim:
    """Build a claim for a thread (None: background); the upstream task is the thread's own unless `key` names one."""
    claim = TaskClaim(
        identity_id=identity.id,
        generation=identity.generation,
        kind=TaskKind.BACKGROUND if thread is None else TaskKind.THREAD,
        thread_id=None if thread is None else ThreadId(thread),
        upstream_key=UpstreamKey(key or f"key of {thread}"),
        now=NOW,
        lease_seconds=30.0,
    )
    return replace(claim, **changes)


async def add_identity(store: Store, identity: Identity | None = None, *, bearer: bytes | None = None) -> Identity:
    """Create an identity in the store, with a sealed bearer when one is given."""
    identity = identity or agent_identity()
    stored = None if bearer is None else StoredBearer(identity_id=identity.id, sealed=bearer, version=1)
    return await store.create_identity(identity, create_request(), bearer=stored)


def login(identity: Identity, **changes: Any) -> StoredBearer:
    """Build the tokens of a login that an issuer refreshes."""
    stored = StoredBearer(
        identity_id=identity.id,
        sealed=b"sealed access token 1",
        expire_time=NOW + 600,
        obtain_time=NOW,
        source="issuer",
        sealed_refresh_token=b"sealed refresh token 1",
    )
    return replace(stored, **changes)


async def add_login(store: Store, identity: Identity | None = None, **changes: Any) -> StoredBearer:
    """Create an identity of mode BEARER, unless one is given, with the tokens of a login."""
    identity = identity or bearer_identity()
    await store.create_identity(identity, create_request(), bearer=login(identity, **changes))
    stored = await store.bearer(identity.id)
    assert stored is not None
    return stored


def new_key(name: str = "2") -> NewKey:
    """Build a key to change to."""
    return NewKey(sealed_private_key=f"sealed key {name}".encode(), public_key=f"ssh-ed25519 {name}")


def upstream_task(identity: Identity, key: UpstreamKey, **changes: Any) -> UpstreamTask:
    """Build an upstream task of an identity's generation that lives and has no end."""
    upstream = UpstreamTask(
        identity_id=identity.id,
        generation=identity.generation,
        key=key,
        state=TaskState.ACTIVE,
        version=1,
        fencing_token=1,
        sealed_task_id=b"sealed task id",
        create_time=NOW,
        update_time=NOW,
    )
    return replace(upstream, **changes)


async def add_task(store: Store, identity: Identity, thread: str | None = "thread-1", **claim: Any) -> Task:
    """Take a task from nothing to ACTIVE, as a registration does; a living one is returned as it is."""
    wish = task_claim(identity, thread, **claim)
    outcome = await store.claim_task(wish)
    if isinstance(outcome, Claimed):
        assert outcome.task.upstream is not None
        completed = await store.complete_claim(
            outcome.task.upstream, sealed_task_id=f"sealed {wish.upstream_key}".encode(), now=wish.now, expire_time=None
        )
        assert completed is not None
        return replace(outcome.task, upstream=completed)
    return outcome.task


class FaultyStore:
    """
    A store that counts its calls and fails when told to; everything else is the real store behind it.

    `calls` counts by method name. It stands for a `broker.store.Store` wherever one is asked for.

    Args:
        store: the real store; opened by the caller or through this wrapper.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.calls: Counter[str] = Counter()
        self._before: defaultdict[str, deque[BaseException]] = defaultdict(deque)
        self._after: defaultdict[str, deque[BaseException]] = defaultdict(deque)
        self._gates: dict[str, asyncio.Event] = {}
        self._down: BaseException | None = None

    def fail(self, method: str, error: BaseException | None = None, *, times: int = 1, after: bool = False) -> None:
        """
        Let the next calls of a method raise.

        Args:
            method: its name.
            error: what it raises; a `StoreDownError` unless given.
            times: how many calls.
            after: raise after the real call had its effect: the answer that gets lost.
        """
        self._check(method)
        (self._after if after else self._before)[method].extend([error or StoreDownError(retry_after=1.0)] * times)

    def go_down(self, error: BaseException | None = None) -> None:
        """Let every call raise until `come_back`."""
        self._down = error or StoreDownError(retry_after=1.0)

    def come_back(self) -> None:
        """End `go_down`."""
        self._down = None

    def hold(self, method: str) -> asyncio.Event:
        """Let calls of a method wait, before they have any effect, until the event that is returned is set."""
        self._check(method)
        return self._gates.setdefault(method, asyncio.Event())

    def _check(self, method: str) -> None:
        if not inspect.iscoroutinefunction(getattr(self.store, method)):
            raise AttributeError(f"the store has no method {method}")

    def __getattr__(self, method: str) -> Callable[..., Any]:
        real = getattr(self.store, method)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[method] += 1
            if method in self._gates:
                await self._gates[method].wait()
            if self._down is not None and method not in ("open", "close"):
                raise self._down
            if self._before[method]:
                raise self._before[method].popleft()
            result = await real(*args, **kwargs)
            if self._after[method]:
                raise self._after[method].popleft()
            return result

        return call
