"""
The in-memory view that answers calls: identities with their keys opened, and tasks with their ids.

Whoever writes to the store publishes what it wrote here; `follow` brings in what other processes wrote. Reads never
wait and never fail; what is not here is loaded by `load_task`. Rows enter only with a version not lower than the one
that is here, so that a late answer of the store cannot bring an old state back.
"""

import asyncio
import functools
import hashlib
import hmac
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from broker.backends import Backend
from broker.bearer import Bearer, BearerSource
from broker.bearer.jwt_identity import JwtIdentitySource
from broker.bearer.oauth import Logins
from broker.clock import Clock
from broker.errors import BrokerError, RowCorruptError, StoreDownError
from broker.keyring import Keyring, SealBrokenError, SealContext, SealPurpose
from broker.keys import InvalidKeyError, SigningKey
from broker.ladder import rejected_bearers
from broker.model import (
    Identity,
    IdentityId,
    IdentityName,
    IdentityState,
    Mode,
    Origin,
    StoredBearer,
    StoredLadder,
    Task,
    TaskState,
    ThreadId,
    UpstreamKey,
    UpstreamTask,
)
from broker.store import Changes, Damaged, KeepBearer, Store, WholeIdentity
from broker.telemetry import Metrics, logger

_LOG: Final = logger(__name__)

DELETED_REMEMBERED_SECONDS: Final = 86_400.0
"""How long a deleted identity is remembered, so that who still asks for it learns that it was revoked."""
_MOST_DELETED: Final = 10_000
_ABSENT_SECONDS: Final = 5.0
_MOST_ABSENT: Final = 10_000
IN_USE_SECONDS: Final = 300.0
"""How long after it was last asked for the task of a thread counts as in use."""

_REVOKED: Final = frozenset(
    {
        IdentityState.DISABLED,
        IdentityState.DELETED,
        IdentityState.REJECTED,
        TaskState.ENDED,
        TaskState.REVOKED,
    }
)

Listener = Callable[[IdentityId | None], None]
"""Told which identity changed, with all that belongs to it; None when anything may have changed."""


@dataclass(frozen=True, slots=True, eq=False)
class IdentityView:
    """An identity with what its row stands for: its backend, its opened key, its source of bearers."""

    identity: Identity
    backend: Backend
    key: SigningKey | None
    bearers: BearerSource | None
    trouble: type[BrokerError] | None = None
    """Why the identity cannot be used at all: its row does not open."""
    stored_bearer: StoredBearer | None = None
    """The sealed bearer of its own that `bearers` was made of."""
    ladder: StoredLadder | None = None
    """What was tried because its credentials were rejected; None when nothing was."""


@dataclass(frozen=True, slots=True, eq=False)
class TaskView:
    """A binding and, while its upstream task lives, the id the backend gave that."""

    task: Task
    upstream: UpstreamTask | None
    upstream_task_id: str | None

    @property
    def is_unreadable(self) -> bool:
        """Whether there is an upstream task whose sealed id does not open."""
        return self.upstream is not None and self.upstream.state is TaskState.ACTIVE and self.upstream_task_id is None


@dataclass(frozen=True, slots=True, eq=False)
class _UpstreamView:
    upstream: UpstreamTask
    task_id: str | None


@dataclass(frozen=True, slots=True)
class Confirmation:
    """
    The moment up to which what is held here is known to be what the store holds, by both clocks.

    It is when the read began that found nothing newer: what was written while it was under way it may have missed.
    """

    wall: float
    monotonic: float


class Snapshots:
    """All that calls are answered from."""

    def __init__(
        self,
        *,
        store: Store,
        keyring: Keyring,
        backends: Mapping[str, Backend],
        bearer_sources: Mapping[str, BearerSource],
        logins: Logins,
        clock: Clock,
        metrics: Metrics,
        cached_threads: int,
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._backends = backends
        self._bearer_sources = bearer_sources
        self._logins = logins
        self._clock = clock
        self._metrics = metrics
        self._cached_threads = cached_threads
        self._bearer_mac_key = keyring.derive_mac_key("bearer-version")
        self._views: dict[IdentityId, IdentityView] = {}
        self._names: dict[IdentityName, IdentityId] = {}
        self._deleted: OrderedDict[IdentityId, float] = OrderedDict()
        self._unreadable: set[IdentityName] = set()
        self._tasks: OrderedDict[tuple[IdentityId, ThreadId | None], Task] = OrderedDict()
        self._asked_for: dict[tuple[IdentityId, ThreadId | None], float] = {}
        self._upstreams: OrderedDict[tuple[IdentityId, int, UpstreamKey], _UpstreamView] = OrderedDict()
        self._binding_of: dict[tuple[IdentityId, UpstreamKey], tuple[IdentityId, ThreadId | None]] = {}
        self._listeners: dict[object, Listener] = {}
        self._absent: OrderedDict[tuple[IdentityId, ThreadId | None], float] = OrderedDict()
        self._loads: dict[tuple[IdentityId, ThreadId | None], asyncio.Task[None]] = {}
        self._sequence = 0
        self._is_behind = False
        self._newcomers: dict[IdentityId, None] = {}
        self._confirmation = Confirmation(0.0, float("-inf"))
        for state in IdentityState:
            metrics.identities.labels(state.value).set_function(functools.partial(self._count, state))
        self.epoch = 0
        """Grows with every change of anything here; what was worked out under an older one must be looked at again."""

    # --- reading: never waits -----------------------------------------------------------------------------------------

    def named(self, name: IdentityName) -> IdentityView | None:
        """Return the identity of that name, a deleted one too while it is remembered and nothing took its name."""
        identity_id = self._names.get(name)
        return None if identity_id is None else self._views[identity_id]

    def view(self, identity_id: IdentityId) -> IdentityView | None:
        """Return an identity by its id."""
        return self._views.get(identity_id)

    def is_unreadable(self, name: IdentityName) -> bool:
        """Say whether there is an identity of that name whose row cannot be read."""
        return name in self._unreadable

    def usable_names(self) -> list[IdentityName]:
        """Return the names of all identities that are not deleted; one whose row cannot be read is still there."""
        readable = [
            name
            for name, identity_id in self._names.items()
            if self._views[identity_id].identity.state is not IdentityState.DELETED
        ]
        return [*readable, *(self._unreadable - set(readable))]

    def views(self) -> list[IdentityView]:
        """Return all identities."""
        return list(self._views.values())

    def task(self, identity: Identity, thread_id: ThreadId | None) -> TaskView | None:
        """Return a binding with its upstream task of the identity's current generation; None when it is not here."""
        key = (identity.id, thread_id)
        task = self._tasks.get(key)
        if task is None:
            return None
        self._tasks.move_to_end(key)
        self._asked_for[key] = self._clock.monotonic()
        upstream_key = (identity.id, identity.generation, task.upstream_key)
        found = self._upstreams.get(upstream_key)
        if found is None:
            return TaskView(task, None, None)
        self._upstreams.move_to_end(upstream_key)
        return TaskView(task, found.upstream, found.task_id)

    def upstream_lives(self, identity: Identity, upstream_key: UpstreamKey) -> bool:
        """Say whether an upstream task of the identity's generation is known to live now."""
        found = self._upstreams.get((identity.id, identity.generation, upstream_key))
        if found is None or found.task_id is None:
            return False
        expire_time = found.upstream.expire_time
        return expire_time is None or self._clock.now() < expire_time

    def threads_in_use(self, identity: Identity, *, limit: int) -> list[ThreadId]:
        """
        Return threads whose task was asked for in the last minutes, the latest first, and at most `limit`.

        Of those that share an upstream task only the latest is named, and none that shares it with the background.
        """
        since = self._clock.monotonic() - IN_USE_SECONDS
        background = self._tasks.get((identity.id, None))
        seen = set() if background is None else {background.upstream_key}
        found: list[ThreadId] = []
        for (identity_id, thread_id), task in reversed(self._tasks.items()):
            if len(found) == limit:
                break
            if identity_id != identity.id or thread_id is None or task.upstream_key in seen:
                continue
            if task.state is TaskState.ACTIVE and self._asked_for.get((identity_id, thread_id), -math.inf) >= since:
                seen.add(task.upstream_key)
                found.append(thread_id)
        return found

    def _count(self, state: IdentityState) -> int:
        return sum(view.identity.state is state for view in self._views.values())

    def active_task_counts(self) -> Counter[IdentityId]:
        """Count the live bindings that are in memory, by identity."""
        return Counter(task.identity_id for task in self._tasks.values() if task.effective_state is TaskState.ACTIVE)

    @property
    def confirmation(self) -> Confirmation:
        """The moment up to which what is held here is known to be what the store holds."""
        return self._confirmation

    def bearer_version(self, bearer: Bearer) -> str:
        """Name a bearer without revealing it: equal on all replicas, other for every other token."""
        return hmac.digest(self._bearer_mac_key, bearer.token.reveal().encode(), hashlib.sha256)[:8].hex()

    def is_rejected(self, view: IdentityView, bearer: Bearer) -> bool:
        """Say whether a bearer is over because the backend rejected it; only another token helps."""
        rejected = () if view.ladder is None else rejected_bearers(view.ladder.document)
        return bool(rejected) and self.bearer_version(bearer) in rejected

    # --- telling of changes -------------------------------------------------------------------------------------------

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """
        Call a listener after every change of an identity, its tasks, its bearer or its ladder.

        It is called in the midst of the change's publishing, so it only notes what it is told: it waits for nothing,
        takes no time and does not raise. Return what ends the subscription.
        """
        subscription = object()
        self._listeners[subscription] = listener

        def end() -> None:
            self._listeners.pop(subscription, None)

        return end

    def touch(self, identity_id: IdentityId | None = None) -> None:
        """Say that something changed that decisions depend on: of one identity, or (None) of who knows which."""
        self.epoch += 1
        for listener in tuple(self._listeners.values()):
            listener(identity_id)

    # --- writing: by whoever wrote to the store -----------------------------------------------------------------------

    def publish_identity(
        self, identity: Identity, bearer: StoredBearer | KeepBearer | None = KeepBearer.KEEP
    ) -> IdentityView:
        """
        Take in an identity as it was written.

        Args:
            identity: the row.
            bearer: its own sealed bearer, None where it has none; KEEP when that was neither read nor written.
        """
        known = self._views.get(identity.id)
        if known is not None and known.identity.version > identity.version:
            return known
        stored = None if known is None else known.stored_bearer
        if isinstance(bearer, KeepBearer) or (bearer is not None and _is_newer(stored, bearer)):
            bearer = stored
        view = self._open_view(identity, bearer, known)
        self._views[identity.id] = view
        holder = self._names.get(identity.name)
        if identity.state is not IdentityState.DELETED or holder in (None, identity.id):
            self._names[identity.name] = identity.id
            self._unreadable.discard(identity.name)
        if identity.state is IdentityState.DELETED:
            self._deleted.setdefault(identity.id, self._clock.monotonic() + DELETED_REMEMBERED_SECONDS)
        self.touch(identity.id)
        return view

    def publish_bearer(self, bearer: StoredBearer) -> None:
        """Take in an identity's own bearer as it was written."""
        known = self._views.get(bearer.identity_id)
        if known is None or _is_newer(known.stored_bearer, bearer) or known.stored_bearer == bearer:
            return
        self._views[bearer.identity_id] = self._open_view(known.identity, bearer, known)
        self.touch(bearer.identity_id)

    def publish_ladder(self, ladder: StoredLadder) -> None:
        """Take in what was tried because an identity's credentials were rejected, as it was written."""
        known = self._views.get(ladder.identity_id)
        if known is None or (known.ladder is not None and known.ladder.version >= ladder.version):
            return
        self._views[ladder.identity_id] = replace(known, ladder=ladder)
        self.touch(ladder.identity_id)

    def publish_task(self, task: Task) -> None:
        """Take in a binding, and its upstream task with it, as they were written."""
        key = (task.identity_id, task.thread_id)
        known = self._tasks.get(key)
        if known is None or known.version <= task.version:
            if known is not None:
                self._unindex(known)
            self._tasks[key] = task
            self._tasks.move_to_end(key)
            self._binding_of[task.identity_id, task.upstream_key] = key
        self._absent.pop(key, None)
        if task.upstream is not None:
            self._keep_upstream(task.upstream)
        while len(self._tasks) > self._cached_threads:
            self._forget_task(next(iter(self._tasks)))
        self.touch(task.identity_id)

    def publish_upstream(self, upstream: UpstreamTask) -> None:
        """Take in an upstream task as it was written."""
        if self._keep_upstream(upstream):
            self.touch(upstream.identity_id)

    def _keep_upstream(self, upstream: UpstreamTask) -> bool:
        key = (upstream.identity_id, upstream.generation, upstream.key)
        known = self._upstreams.get(key)
        if known is not None and known.upstream.version > upstream.version:
            return False
        self._upstreams[key] = _UpstreamView(upstream, self._open_task_id(upstream))
        self._upstreams.move_to_end(key)
        while len(self._upstreams) > self._cached_threads:
            self._upstreams.popitem(last=False)
        return True

    def _forget_task(self, key: tuple[IdentityId, ThreadId | None]) -> None:
        """Let go of a binding; one that is asked for again is loaded again."""
        self._unindex(self._tasks.pop(key))
        self._asked_for.pop(key, None)

    def _unindex(self, task: Task) -> None:
        upstream = (task.identity_id, task.upstream_key)
        if self._binding_of.get(upstream) == (task.identity_id, task.thread_id):
            del self._binding_of[upstream]

    def _forget_deleted(self) -> None:
        """Let go of identities that were deleted long ago, and of the longest deleted of too many."""
        now = self._clock.monotonic()
        while self._deleted:
            identity_id, until = next(iter(self._deleted.items()))
            if until > now and len(self._deleted) <= _MOST_DELETED:
                return
            del self._deleted[identity_id]
            view = self._views.pop(identity_id, None)
            if view is not None and self._names.get(view.identity.name) == identity_id:
                del self._names[view.identity.name]
            self.touch(identity_id)

    def _open_view(self, identity: Identity, bearer: StoredBearer | None, known: IdentityView | None) -> IdentityView:
        if identity.bearer_source is not None or identity.state is IdentityState.DELETED:
            bearer = None
        trouble: type[BrokerError] | None = None
        key = None
        backend = self._backends.get(identity.backend)
        if backend is None:
            # The configuration no longer has it: nothing can be decided, and nothing is lost.
            backend = _gone(identity.backend, self._backends)
            trouble = RowCorruptError
            _LOG.error("identity_names_unknown_backend", identity=identity.name, backend=identity.backend)
        if identity.sealed_private_key is not None:
            try:
                key = open_private_key(self._keyring, identity)
            except RowCorruptError as error:
                trouble = RowCorruptError
                _LOG.error("identity_key_unusable", identity=identity.name, cause=error.note)
        elif identity.mode is Mode.AGENT and identity.state is not IdentityState.DELETED:
            trouble = RowCorruptError
            _LOG.error("identity_without_key", identity=identity.name)
        bearers = self._bearers_of(identity, bearer, known)
        if bearers is None and bearer is not None and identity.mode is Mode.BEARER:  # an agent goes on with its key
            trouble = RowCorruptError
        ladder = None if known is None else known.ladder
        return IdentityView(identity, backend, key, bearers, trouble, bearer, ladder)

    def _bearers_of(
        self, identity: Identity, bearer: StoredBearer | None, known: IdentityView | None
    ) -> BearerSource | None:
        """Return the source that an identity names, else its own, made of its stored bearer."""
        if identity.bearer_source is not None:
            source = self._bearer_sources.get(identity.bearer_source)
            if source is None:
                _LOG.error("identity_names_unknown_source", identity=identity.name, source=identity.bearer_source)
            return source
        if bearer is None:
            return JwtIdentitySource() if identity.origin is Origin.IMPORTED_JWT else None
        if known is not None and known.bearers is not None and known.stored_bearer == bearer:
            return known.bearers  # only a write of the bearer itself replaces it
        try:
            source = None if known is None else known.bearers
            return self._logins.source(identity, bearer, source, self._publish_login)
        except RowCorruptError:
            _LOG.error("stored_bearer_unusable", identity=identity.name)
            return None

    def _publish_login(self, bearer: StoredBearer, identity: Identity | None = None) -> None:
        if identity is None:
            self.publish_bearer(bearer)
        else:
            self.publish_identity(identity, bearer)

    def _open_task_id(self, upstream: UpstreamTask) -> str | None:
        if upstream.state is not TaskState.ACTIVE or upstream.sealed_task_id is None:
            return None
        try:
            return self._keyring.open(upstream.sealed_task_id, context=task_id_context(upstream)).decode("ascii")
        except (SealBrokenError, UnicodeDecodeError):
            _LOG.error("task_id_unusable", identity_id=upstream.identity_id, upstream_key=upstream.key)
            return None

    # --- loading ------------------------------------------------------------------------------------------------------

    async def warm_up(self) -> None:
        """
        Load every identity and its background task, in the place of all that was known before.

        Raises:
            StoreDownError: the store cannot be reached.
        """
        asked = self._moment()
        sequence = await self._store.change_sequence()
        loaded: list[WholeIdentity] = []
        unreadable: set[IdentityName] = set()
        after = ""
        while True:
            page = await self._store.whole_identities(after=after, limit=500)
            unreadable.update(IdentityName(name) for name in page.corrupt)
            loaded += page.rows
            if page.next_after is None:
                break
            after = page.next_after
        # Forgotten only now that the new is here, so that calls always find one or the other.
        for known in (
            self._views,
            self._names,
            self._deleted,
            self._tasks,
            self._asked_for,
            self._absent,
            self._newcomers,
            self._binding_of,
            self._upstreams,
        ):
            known.clear()
        self._unreadable = unreadable
        for name in sorted(unreadable):
            _LOG.error("identity_unreadable", identity=name)
        for one in loaded:
            self._take_in(one)
        self._sequence = sequence
        self._is_behind = True
        self.touch()
        self._confirm(asked)

    def _take_in(self, whole: WholeIdentity) -> None:
        """Take in an identity with what belongs to it; a damaged row spoils what it is for, not the identity."""
        identity, ladder, background = whole.identity, whole.ladder, whole.background
        bearer: StoredBearer | KeepBearer | None = None
        if identity.bearer_source is None:
            if isinstance(whole.bearer, Damaged):
                _LOG.error("stored_bearer_unusable", identity=identity.name, cause=whole.bearer.note)
                bearer = KeepBearer.KEEP
            else:
                bearer = whole.bearer
        self._publish_reread(identity, bearer)
        if isinstance(ladder, Damaged):
            # As if nothing had been tried; what would climb it reads it and learns the same.
            _LOG.error("ladder_unreadable", identity=identity.name, cause=ladder.note)
        elif ladder is not None:
            self.publish_ladder(ladder)
        if isinstance(background, Damaged):
            # Not kept here, so that a call loads it and learns the same.
            _LOG.error("task_unreadable", identity=identity.name, cause=background.note)
        elif background is not None:
            self.publish_task(background)

    async def preload_tasks(self) -> None:
        """Load live tasks, as many as are kept, so that they go on being served when the store goes away."""
        after = ""
        while len(self._tasks) < self._cached_threads:
            page = await self._store.live_tasks(now=self._clock.now(), after=after, limit=500)
            for task in page.rows:
                if (task.identity_id, task.thread_id) not in self._tasks:
                    self.publish_task(task)
            if page.next_after is None:
                return
            after = page.next_after
            await asyncio.sleep(0)

    async def load_task(
        self, identity: Identity, thread_id: ThreadId | None, *, wait_until: float = math.inf
    ) -> TaskView | None:
        """
        Load a binding from the store; callers who ask for the same one wait for one read.

        That there is none, or one without an upstream task, is remembered for a few seconds, as long as nothing writes
        it: callers of a thread that cannot be registered do not each cost a read.

        Raises:
            StoreDownError: the store cannot be reached, or did not answer by `wait_until` (monotonic).
            RowCorruptError: the binding's row cannot be read.
        """
        key = (identity.id, thread_id)
        if self._absent.get(key, 0.0) > self._clock.monotonic():
            return self.task(identity, thread_id)
        load = self._loads.get(key)
        if load is None:
            load = asyncio.create_task(self._load_task(identity.id, thread_id), name="load-task")
            self._loads[key] = load
            load.add_done_callback(lambda _: self._loads.pop(key, None))
        timeout = None if wait_until == math.inf else max(0.0, wait_until - self._clock.monotonic())
        await asyncio.wait({load}, timeout=timeout)
        if not load.done():
            raise StoreDownError(retry_after=1.0)
        error = load.exception()
        if isinstance(error, BrokerError):
            raise error.again() from error
        if error is not None:
            raise error
        return self.task(identity, thread_id)

    async def _load_task(self, identity_id: IdentityId, thread_id: ThreadId | None) -> None:
        key = (identity_id, thread_id)
        known = self._tasks.get(key)
        task = await self._store.task(identity_id, thread_id)
        if task is not None:
            self.publish_task(task)
        elif known is not None and self._tasks.get(key) is known:
            # It was pruned. What was published during the read is newer than what the read saw.
            self._forget_task(key)
            self.touch(identity_id)
        if task is None or task.upstream is None:
            self._absent[key] = self._clock.monotonic() + _ABSENT_SECONDS
            if len(self._absent) > _MOST_ABSENT:
                self._absent.popitem(last=False)

    # --- following ----------------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """
        Take in what was written since the last time, by whichever process; also the proof that the store is there.

        Raises:
            StoreDownError: the store cannot be reached.
        """
        self._forget_deleted()
        asked = self._moment()
        # A look that was cut off is taken up again, whatever the store says of the time since.
        self._is_behind |= await self._store.has_changed()
        while self._is_behind or self._newcomers:
            if self._is_behind:
                asked = self._moment()
                changes = await self._store.changes(self._sequence)
                if changes.sequence < self._sequence:
                    _LOG.warning(
                        "database_replaced_by_older_one", sequence=changes.sequence, known_sequence=self._sequence
                    )
                    await self.warm_up()
                    await self.preload_tasks()
                    return
                await self._take_in_changes(changes)
                self._sequence = changes.sequence
                self._is_behind = not changes.complete
            else:
                self._confirm(asked)  # all that is held here is as it is in the store
                await self._read_newcomer(next(iter(self._newcomers)))
                asked = self._moment()
                # However many there are, nobody's revocation waits for them.
                self._is_behind = await self._store.has_changed()
        self._confirm(asked)

    async def _take_in_changes(self, changes: Changes) -> None:
        """Read what changed of what is held here, revocations of identities first; others are read afterwards."""
        for identity_id, version in changes.identities.items():
            known = self._views.get(identity_id)
            if known is None:
                self._newcomers[identity_id] = None
            elif known.identity.version < version:
                await self._reload_identity(identity_id)
        await self._take_in_tasks(changes)
        await self._take_in_belongings(changes)

    async def _read_newcomer(self, identity_id: IdentityId) -> None:
        await self._reload_identity(identity_id)
        self._newcomers.pop(identity_id, None)

    async def _take_in_tasks(self, changes: Changes) -> None:
        for key, version in changes.tasks.items():
            self._absent.pop(key, None)
            task = self._tasks.get(key)
            if task is not None and task.version < version:
                await self._reload_task(key)
        for upstream, version in changes.upstream_tasks.items():
            if self._holds_older_upstream(upstream, version):
                identity_id, _, upstream_key = upstream
                binding = self._binding_of.get((identity_id, upstream_key))
                if binding is not None:
                    await self._reload_task(binding)
                if self._holds_older_upstream(upstream, version):
                    # Of another generation, or of no binding here: what is known of it no longer holds.
                    del self._upstreams[upstream]
                    self.touch(identity_id)

    def _holds_older_upstream(self, key: tuple[IdentityId, int, UpstreamKey], version: int) -> bool:
        held = self._upstreams.get(key)
        return held is not None and held.upstream.version < version

    async def _take_in_belongings(self, changes: Changes) -> None:
        for identity_id, version in changes.bearers.items():
            view = self._views.get(identity_id)
            if view is not None and (view.stored_bearer is None or view.stored_bearer.version < version):
                await self._reload_bearer(view)
        for identity_id, version in changes.ladders.items():
            view = self._views.get(identity_id)
            if view is not None and (view.ladder is None or view.ladder.version < version):
                await self._reload_ladder(view)

    async def _reload_identity(self, identity_id: IdentityId) -> None:
        """Take in an identity's row, with what belongs to it since that may have changed with the row."""
        try:
            whole = await self._store.whole_identity(identity_id)
        except RowCorruptError as error:
            _LOG.error("identity_unreadable", identity_id=identity_id, cause=error.note)
            known = self._views.get(identity_id)
            if known is not None:
                self._views[identity_id] = replace(known, trouble=RowCorruptError)
                self.touch(identity_id)
        else:
            if whole is not None:
                self._take_in(whole)

    async def reread_identity(self, identity_id: IdentityId) -> IdentityView | None:
        """
        Take in an identity that a write has found changed by another process; None when it is gone.

        Raises:
            StoreDownError: the store cannot be reached.
            RowCorruptError: its row cannot be read.
        """
        identity = await self._store.identity(identity_id)
        return None if identity is None else self._publish_reread(identity)

    def _publish_reread(
        self, identity: Identity, bearer: StoredBearer | KeepBearer | None = KeepBearer.KEEP
    ) -> IdentityView:
        known = self._views.get(identity.id)
        view = self.publish_identity(identity, bearer)
        if known is not None:
            self._observe_revocation("identity", known.identity.state, identity.state, identity.update_time)
        return view

    async def _reload_bearer(self, view: IdentityView) -> None:
        try:
            bearer = await self._store.bearer(view.identity.id)
        except RowCorruptError as error:
            _LOG.error("stored_bearer_unusable", identity=view.identity.name, cause=error.note)
            return
        if bearer is not None:
            self.publish_bearer(bearer)

    async def _reload_ladder(self, view: IdentityView) -> None:
        try:
            ladder = await self._store.ladder(view.identity.id)
        except RowCorruptError as error:
            _LOG.error("ladder_unreadable", identity=view.identity.name, cause=error.note)
            return
        if ladder is not None:
            self.publish_ladder(ladder)

    async def _reload_task(self, key: tuple[IdentityId, ThreadId | None]) -> None:
        before = self._tasks[key]
        try:
            await self._load_task(*key)
        except RowCorruptError as error:
            # What was known of it no longer holds; a call loads it and learns the same.
            _LOG.error("task_unreadable", identity_id=before.identity_id, cause=error.note)
            if key in self._tasks:
                self._forget_task(key)
            self.touch(before.identity_id)
        after = self._tasks.get(key)
        if after is not None:
            self._observe_revocation("task", before.state, after.state, after.update_time)

    def _observe_revocation(self, what: str, before: Enum, after: Enum, written: float) -> None:
        """Measure how long after another process wrote it a revocation is heeded here."""
        if after in _REVOKED and before not in _REVOKED:
            self._metrics.revocation_propagation.labels(what).observe(max(0.0, self._clock.now() - written))

    def _moment(self) -> Confirmation:
        return Confirmation(self._clock.now(), self._clock.monotonic())

    def _confirm(self, asked: Confirmation) -> None:
        self._confirmation = asked
        self._metrics.store_confirmed.set(self._confirmation.wall)


def _is_newer(known: StoredBearer | None, read: StoredBearer) -> bool:
    return known is not None and known.version > read.version


def _gone(name: str, backends: Mapping[str, Backend]) -> Backend:
    some = next(iter(backends.values()))
    return Backend(name, some.profile, frozenset(), assertions_enabled=False, allow_loopback_http=False)


# --- what is sealed, and where ----------------------------------------------------------------------------------------


def private_key_context(identity_id: IdentityId, generation: int) -> SealContext:
    """Return the place a private key is sealed to: a key belongs to one generation of one identity."""
    return SealContext(purpose=SealPurpose.PRIVATE_KEY, identity_id=identity_id, generation=generation, record_id="key")


def task_id_context(upstream: UpstreamTask) -> SealContext:
    """Return the place an upstream task's id is sealed to."""
    return SealContext(
        purpose=SealPurpose.TASK_ID,
        identity_id=upstream.identity_id,
        generation=upstream.generation,
        record_id=upstream.key,
    )


def seal_private_key(keyring: Keyring, key: SigningKey, identity_id: IdentityId, generation: int) -> bytes:
    """Seal a key to one generation of one identity."""
    return keyring.seal(key.to_pkcs8_der(), context=private_key_context(identity_id, generation))


def open_private_key(keyring: Keyring, identity: Identity) -> SigningKey:
    """
    Open an identity's key and check that it is the one the row names.

    Raises:
        RowCorruptError: it does not open, does not parse, or is another key.
    """
    try:
        context = private_key_context(identity.id, identity.generation)
        key = SigningKey.from_pkcs8_der(keyring.open(identity.sealed_private_key or b"", context=context))
    except (SealBrokenError, InvalidKeyError) as error:
        raise RowCorruptError(note=str(error)) from error
    if identity.public_key is not None and key.ssh_public_key != identity.public_key:
        raise RowCorruptError(note="the sealed key is not the one that the row names")
    return key
