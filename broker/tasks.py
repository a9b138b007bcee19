"""
What callers and operators do with tasks beside using them: register ahead, end, revoke.

Registering itself stands in `broker.registration`.
"""

from dataclasses import replace

from broker import errors
from broker.clock import Clock
from broker.model import IdentityState, Mode, Task, TaskKind, TaskState, ThreadId
from broker.profiles import upstream_key
from broker.registration import ANSWER_MARGIN_SECONDS, Registrar
from broker.snapshots import IdentityView, Snapshots
from broker.store import Store


class TaskKeeper:
    """Registers tasks ahead of their use and ends them."""

    def __init__(
        self, *, store: Store, snapshots: Snapshots, registrar: Registrar, clock: Clock, tombstone_seconds: float
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._registrar = registrar
        self._clock = clock
        self._tombstone_seconds = tombstone_seconds

    async def register(self, view: IdentityView, thread_id: ThreadId | None, *, deadline: float) -> Task:
        """
        Make sure that a task lives; an ended one begins anew.

        Raises:
            BrokerError: it cannot live; the class says why.
        """
        identity = view.identity
        _require_usable(view, self._clock.now())
        if identity.mode is Mode.BEARER:
            raise errors.BackendUnsupportedError(metadata={"hint": "an identity of mode BEARER has no tasks"})
        if not (view.backend.assertions_enabled and identity.assertions_enabled):
            raise errors.FeatureDisabledError
        if identity.state is IdentityState.REGISTERING:
            raise errors.RegistrationInProgressError(retry_after=1.0)
        known = self._snapshots.task(identity, thread_id)
        if (
            known is not None
            and known.upstream is not None
            and known.task.state is TaskState.ACTIVE
            and self._snapshots.upstream_lives(identity, known.task.upstream_key)
        ):
            return replace(known.task, upstream=known.upstream)
        wait_until = deadline - ANSWER_MARGIN_SECONDS
        return await self._registrar.ensure(view, thread_id, restart=True, wait_until=wait_until)

    async def end(self, view: IdentityView, thread_id: ThreadId) -> Task:
        """
        End the task of a thread, for this thread alone; idempotent, and for a thread that never had one too.

        Raises:
            IdentityRevokedError: the identity is out of use.
        """
        _require_usable(view, self._clock.now(), ended_login_matters=False)
        now = self._clock.now()
        ended = await self._store.end_task(
            view.identity.id,
            thread_id,
            upstream_key=upstream_key(view.backend.profile.task_layout, TaskKind.THREAD, thread_id),
            now=now,
            purge_time=now + self._tombstone_seconds,
        )
        if ended is None:
            raise errors.GenerationChangedError
        self._snapshots.publish_task(ended)
        return ended

    async def revoke(self, task: Task, *, force: bool) -> tuple[Task, ...]:
        """
        Take down an upstream task and every binding that shares it; the named binding comes first.

        Raises:
            TaskSharedError: others share it and `force` was not said.
            TaskNotFoundError: it is gone.
        """
        now = self._clock.now()
        taken = await self._store.revoke_task(
            task.id, now=now, purge_time=now + self._tombstone_seconds, include_sharing=force
        )
        if not taken:
            raise errors.TaskNotFoundError(metadata={"resource_type": "task", "resource_name": task.id})
        if any(one.state is not TaskState.REVOKED for one in taken):
            raise errors.TaskSharedError(metadata={"bindings": str(len(taken) - 1)})
        for one in taken:
            self._snapshots.publish_task(one)
        return taken


def _require_usable(view: IdentityView, now: float, *, ended_login_matters: bool = True) -> None:
    identity = view.identity
    if identity.state in (IdentityState.DISABLED, IdentityState.DELETED):
        raise errors.IdentityRevokedError
    if not ended_login_matters:
        return
    if identity.state is IdentityState.REJECTED:
        raise errors.IdentityRejectedError
    expired = identity.expire_time is not None and identity.expire_time <= now
    if identity.state is IdentityState.REAUTH_REQUIRED or expired:
        raise errors.ReauthRequiredError
