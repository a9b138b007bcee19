"""
How long tasks live: replaced ahead of their end, kept for as long as they are used, pruned when nobody uses them.

Whoever signs for a task says so (`used`), which costs no wait. From that follow both: a task near its end gets its
successor in one job of the broker's own, while everybody is served the old one, and only if it is in use; and its
binding is noted as used, in batches and seldom, so that bindings nobody used for long can be told and go.
"""

import asyncio
from collections import Counter, OrderedDict
from typing import Final

from broker.backends import Backend
from broker.clock import Clock
from broker.errors import BrokerError
from broker.model import IdentityId, ThreadId, UpstreamKey, UpstreamTask
from broker.registration import Registrar
from broker.snapshots import IdentityView, TaskView
from broker.store import Store
from broker.telemetry import Metrics, logger

_LOG: Final = logger(__name__)

_WINDOW_SHARE: Final = 0.1
_ASSERTIONS_IN_WINDOW: Final = 2
_LARGEST_WINDOW_SHARE: Final = 0.5
_REPLACEMENT_PATIENCE: Final = 600.0
_REPLACEMENT_SHARE: Final = 4

_NOTES_PER_IDLE_TIME: Final = 20
_MOST_NOTES: Final = 200_000
_USES_A_WRITE: Final = 500

_BITE: Final = 200
_SHORTEST_PAUSE: Final = 0.02
_PAUSE_SHARE: Final = 9.0
_MANY_CALLS_A_SECOND: Final = 100.0
_BUSY_PAUSE: Final = 1.0


class Lifetimes:
    """
    Replaces tasks ahead of their end, notes which are used, and prunes the others.

    Args:
        store: where uses are noted and rows pruned.
        registrar: registers successors.
        clock: times everything.
        metrics: tells how many calls there are.
        idle_seconds: a binding that was not used for so long is pruned.
        in_flight: how many registrations the registrar has under way at one backend; successors take a part of them.
    """

    def __init__(
        self,
        *,
        store: Store,
        registrar: Registrar,
        clock: Clock,
        metrics: Metrics,
        idle_seconds: float,
        in_flight: int,
    ) -> None:
        self._store = store
        self._registrar = registrar
        self._clock = clock
        self._metrics = metrics
        self._idle_seconds = idle_seconds
        self._most_replacements = max(1, in_flight // _REPLACEMENT_SHARE)
        self._replacements: dict[tuple[IdentityId, int, UpstreamKey], asyncio.Task[None]] = {}
        self._replacements_at: Counter[str] = Counter()
        self._noted: OrderedDict[str, float] = OrderedDict()
        self._unwritten: dict[str, float] = {}
        self._looked_at = clock.monotonic()
        self._calls_seen = 0

    # --- use ----------------------------------------------------------------------------------------------------------

    def used(self, view: IdentityView, task: TaskView) -> None:
        """Take note that a task is signed for now; its successor is registered if its end is near. Does not wait."""
        now = self._clock.now()
        binding = task.task
        if now - self._noted.get(binding.id, binding.last_use_time) >= self._idle_seconds / _NOTES_PER_IDLE_TIME:
            self._note(binding.id, now)
        if task.upstream is not None and now >= replace_time(view.backend, task.upstream):
            self._replace(view, binding.thread_id, task.upstream)

    def _note(self, binding_id: str, now: float) -> None:
        self._noted[binding_id] = now
        self._noted.move_to_end(binding_id)
        if len(self._noted) > _MOST_NOTES:
            self._noted.popitem(last=False)
        if len(self._unwritten) < _MOST_NOTES:
            self._unwritten[binding_id] = now

    async def write_uses(self) -> None:
        """
        Write down which bindings were used.

        Raises:
            StoreDownError: it could not be written; it is kept for the next time.
        """
        while self._unwritten:
            batch = dict(list(self._unwritten.items())[:_USES_A_WRITE])
            await self._store.touch_tasks(list(batch.items()))
            # Only now, and only what was written: another use may have been noted meanwhile.
            for binding_id, time in batch.items():
                if self._unwritten.get(binding_id) == time:
                    del self._unwritten[binding_id]

    # --- replacing ahead ----------------------------------------------------------------------------------------------

    def _replace(self, view: IdentityView, thread_id: ThreadId | None, upstream: UpstreamTask) -> None:
        """Begin a successor's registration, unless it is under way, failed a moment ago, or its turn has not come."""
        key = (upstream.identity_id, upstream.generation, upstream.key)
        backend = view.backend.name
        if key in self._replacements or self._replacements_at[backend] >= self._most_replacements:
            return  # the next use asks again
        if self._registrar.trouble(view, thread_id) is not None:
            return
        self._replacements_at[backend] += 1
        job = asyncio.create_task(self._register_successor(view, thread_id, upstream), name="replace-task")
        self._replacements[key] = job

        def done(_: asyncio.Task[None]) -> None:
            del self._replacements[key]
            self._replacements_at[backend] -= 1

        job.add_done_callback(done)

    async def _register_successor(self, view: IdentityView, thread_id: ThreadId | None, upstream: UpstreamTask) -> None:
        try:
            await self._registrar.ensure(
                view,
                thread_id,
                replace=upstream.version,
                wait_until=self._clock.monotonic() + _REPLACEMENT_PATIENCE,
            )
        except BrokerError as error:
            # The old one goes on being used until its end, and the registrar knows when to try again.
            _LOG.warning("task_not_replaced_yet", identity=view.identity.name, reason=error.reason)

    async def stop(self) -> None:
        """Wait for nothing any more; registrations that are under way are the registrar's to end."""
        jobs = list(self._replacements.values())
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    # --- pruning ------------------------------------------------------------------------------------------------------

    def is_idle(self, last_use_time: float) -> bool:
        """Say whether what was last used then counts as used by nobody."""
        return last_use_time < self._clock.now() - self._idle_seconds

    async def prune(self) -> None:
        """
        Remove what its time is over for, and bindings that nobody uses, until there is nothing left to do.

        In small bites with pauses several times as long: other writers hardly wait, in whichever process. While calls
        are many the pauses grow; still more goes in a day than a busy fleet begins.

        Raises:
            StoreDownError: the store cannot be reached.
        """
        while True:
            began = self._clock.monotonic()
            now = self._clock.now()
            if not await self._store.prune(now, idle_before=now - self._idle_seconds, limit=_BITE):
                return
            took = self._clock.monotonic() - began
            await self._clock.sleep(max(_SHORTEST_PAUSE, took * _PAUSE_SHARE))
            if self._calls_are_many():
                await self._clock.sleep(_BUSY_PAUSE)

    def _calls_are_many(self) -> bool:
        """Say whether calls have come quickly since this was last asked."""
        now, calls = self._clock.monotonic(), self._metrics.rpc_started.total
        seconds, begun = now - self._looked_at, calls - self._calls_seen
        self._looked_at, self._calls_seen = now, calls
        return begun > _MANY_CALLS_A_SECOND * seconds


def replace_time(backend: Backend, upstream: UpstreamTask) -> float:
    """
    Return from when on a living upstream task is replaced when it is used: in the last tenth of its life.

    Where assertions live long it is earlier, so that none is cut short by the end of its task. A task that was taken
    over with no end lives as long as one of the broker's own.
    """
    life = backend.task_lifetime
    end = upstream.create_time + life if upstream.expire_time is None else upstream.expire_time
    window = max(life * _WINDOW_SHARE, _ASSERTIONS_IN_WINDOW * backend.profile.assertion_lifetime)
    return end - min(window, life * _LARGEST_WINDOW_SHARE)
