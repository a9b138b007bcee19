"""
What must hold when a run is over: the state is that of the last intent, for everybody.

What was acknowledged stands; nothing that was on its way has brought an older state back; key, agent and tasks belong
together; nothing is left half done; and nobody was told anything but a documented outcome.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Final

from sqlalchemy import text

from broker.authorization import Answer, AuthorizationRequest
from broker.bearer.stored import open_bearer, open_refresh_token
from broker.errors import BrokerError, GenerationChangedError, IdentityRevokedError, InternalError
from broker.model import Identity, IdentityState, RefreshState, Task, TaskState
from broker.snapshots import open_private_key, task_id_context
from tests.interleavings.world import (
    CALLER,
    IDENTITY,
    NEW_THREAD,
    REJECTED_THREAD,
    SCOPE,
    Arrangement,
    Process,
    World,
)

_THREADS: Final = (REJECTED_THREAD, NEW_THREAD)
_ALSO_WHEN_TIME_PASSED: Final = frozenset(
    {"BACKEND_DOWN", "ISSUER_DOWN", "STORE_DOWN", "REAUTH_REQUIRED", "REGISTRATION_IN_PROGRESS", "GENERATION_CHANGED"}
)
"""What may come of exchanges that were cut off."""
_MADE_TO_LIVE_LATER: Final = text(
    "SELECT count(*) FROM upstream_tasks JOIN identities ON identities.id = upstream_tasks.identity_id"
    " WHERE upstream_tasks.state = 'ACTIVE' AND upstream_tasks.change_sequence > identities.change_sequence"
)
_LEASES: Final = text("SELECT count(*) FROM upstream_tasks WHERE lease_expire_time IS NOT NULL")


def outcome_word(outcome: object) -> str:
    """Name how an operation ended."""
    if isinstance(outcome, BrokerError):
        return outcome.reason
    return f"{type(outcome).__name__}: {outcome}" if isinstance(outcome, BaseException) else "done"


class Oracle:
    """Judges one run that is over."""

    def __init__(self, world: World, row: Identity) -> None:
        self._world = world
        self._row = row
        self._outcomes = world.outcomes
        self._time_passed = self._was_asked("lapse")
        self._is_disabled = bool(self._done("disable"))

    @classmethod
    async def violations(cls, world: World) -> list[str]:
        """Return what does not hold; nothing when all is well."""
        row = await world.store.identity(IDENTITY)
        oracle = cls(world, row)
        found = [*oracle._outcomes_wrong(), *oracle._memory_wrong()]
        for process in world.processes:
            await process.snapshots.follow()
        found += oracle._row_wrong()
        found += [problem async for problem in oracle._login_wrong()]
        found += [problem async for problem in oracle._tasks_wrong()]
        for process in world.processes:
            found += oracle._answers_wrong(process)
        return found

    def _was_asked(self, operation: str) -> bool:
        return any(name.partition("-")[0] == operation for name in self._outcomes)

    def _done(self, operation: str) -> list[object]:
        """Return what operations of a kind returned that were acknowledged."""
        return [
            outcome
            for name, outcome in self._outcomes.items()
            if name.partition("-")[0] == operation and not isinstance(outcome, BaseException)
        ]

    # --- what was told ------------------------------------------------------------------------------------------------

    def _outcomes_wrong(self) -> Iterator[str]:
        for name, outcome in self._outcomes.items():
            if not isinstance(outcome, BaseException):
                continue
            if not isinstance(outcome, BrokerError) or isinstance(outcome, InternalError):
                yield f"{name} ended with {outcome!r}"
            elif not self._may_be_told(outcome):
                yield f"{name} was told {outcome.reason}"
        for answer in self._done("report"):
            if isinstance(answer, Answer) and not self._world.backend.accepts(answer.authorization):
                yield "the answer to the report is rejected too"

    def _may_be_told(self, outcome: BrokerError) -> bool:
        if isinstance(outcome, IdentityRevokedError):
            return self._was_asked("disable")
        if isinstance(outcome, GenerationChangedError) and (self._was_asked("disable") or self._was_asked("rotate")):
            return True
        return self._time_passed and outcome.reason in _ALSO_WHEN_TIME_PASSED

    # --- memory, before anybody follows the store ---------------------------------------------------------------------

    def _memory_wrong(self) -> Iterator[str]:
        for process in self._world.processes:
            for before, after in zip(process.seen, process.seen[1:], strict=False):
                if (after.version, after.generation) < (before.version, before.generation):
                    yield f"the memory of process {process.number} went back from {_brief(before)} to {_brief(after)}"
        disabled_by = None
        for event, fields in self._world.audit.events:
            if event == "disabled":
                disabled_by = fields["process"]
            elif event == "granted" and disabled_by is not None and self._world.arrangement is Arrangement.ONE:
                yield "something was handed out after the disable was acknowledged"
        if disabled_by is not None and isinstance(disabled_by, int):
            view = self._world.processes[disabled_by].view()
            if view.identity.state is not IdentityState.DISABLED:
                yield f"process {disabled_by} acknowledged the disable and has {_brief(view.identity)} in memory"

    # --- the row ------------------------------------------------------------------------------------------------------

    def _row_wrong(self) -> Iterator[str]:
        row, backend = self._row, self._world.backend
        if self._is_disabled and row.state is not IdentityState.DISABLED:
            yield f"the disable was acknowledged and the row is {_brief(row)}"
        if not self._is_disabled and row.state is IdentityState.DISABLED:
            yield "the row is DISABLED and nobody was told so"
        newest = max((seen for process in self._world.processes for seen in process.seen), key=_place, default=row)
        if _place(newest) > _place(row):
            yield f"the row went back from {_brief(newest)} to {_brief(row)}"
        for process in self._world.processes:
            known = process.view().identity
            if known != row:
                yield f"process {process.number} follows the store and has {_brief(known)}, the row is {_brief(row)}"
        if backend.agents.get(row.agent_runtime_id or "") != row.public_key:
            yield "the key in the row is not the one of its agent"
        if open_private_key(self._world.template.keyring, row).ssh_public_key != row.public_key:
            yield "the sealed key in the row is not its public key's"
        yield from self._epochs_wrong()
        keys = {done.public_key for done in self._done("rotate") if isinstance(done, Identity)}
        # Where time passed, one that was told to wait goes on and may be the last to change it.
        if keys and not self._is_disabled and not self._time_passed and row.public_key not in keys:
            yield "the change of key was acknowledged and the row has another key"

    def _epochs_wrong(self) -> Iterator[str]:
        """Find a generation that two keys had, or in which an identity was both in use and disabled."""
        epochs: dict[int, set[tuple[str | None, bool]]] = {}
        for identity in (self._row, *(seen for process in self._world.processes for seen in process.seen)):
            is_disabled = identity.state is IdentityState.DISABLED
            epochs.setdefault(identity.generation, set()).add((identity.public_key, is_disabled))
        for generation, was in epochs.items():
            if len(was) > 1:
                yield f"generation {generation} does not name one key in one use"

    # --- login and agent ----------------------------------------------------------------------------------------------

    async def _login_wrong(self) -> AsyncIterator[str]:
        world, keyring = self._world, self._world.template.keyring
        pending = await world.store.pending_agent(IDENTITY)
        if pending is not None and not self._time_passed:
            yield "an agent is left on its way"
        row = await world.store.bearer(IDENTITY)
        if row.lease_expire_time is not None and not self._time_passed:
            yield "the claim of a refresh is left behind"
        if world.issuer.double_uses and not self._time_passed:
            yield "a refresh token was used twice"
        if world.issuer.double_uses > 1:
            yield "a spent refresh token was probed more than once"
        if row.refresh_state is RefreshState.IDLE:
            token, bearer = open_refresh_token(keyring, row), open_bearer(keyring, row)
            if token is None or bearer is None or world.issuer.is_ended:
                yield "the row has a login that the issuer has ended"
            elif token.reveal() != world.issuer.refresh_token or bearer.token.reveal() != world.issuer.access_token:
                yield "the row has not the newest tokens that the issuer gave"
        elif not self._time_passed:
            yield f"the login is {row.refresh_state} with no answer lost"
        for process in world.processes:
            if process.view().stored_bearer != row:
                yield f"process {process.number} follows the store and has another bearer than the row"

    # --- tasks --------------------------------------------------------------------------------------------------------

    async def _tasks_wrong(self) -> AsyncIterator[str]:
        world = self._world
        if await world.ask(_LEASES) and not self._time_passed:
            yield "the claim of a task is left behind"
        # A claim that was cut off is given back late, which is a write to a task that lived before.
        if self._is_disabled and not self._time_passed and await world.ask(_MADE_TO_LIVE_LATER):
            yield "a task was made to live after the identity was disabled"
        for thread_id in (*_THREADS, None):
            task = await world.store.task(IDENTITY, thread_id)
            if task is not None and task.upstream is not None:
                for problem in self._task_wrong(task):
                    yield f"the task of {thread_id or 'the background'} {problem}"
        if self._done("register"):
            bound = await world.store.task(IDENTITY, NEW_THREAD)
            if bound is None or bound.state is not TaskState.ACTIVE:
                yield "the registration was acknowledged and its binding does not live"
        orphans = (await world.store.statistics()).orphaned_upstream_tasks
        registered: dict[tuple[str, str | None], int] = {}
        for place in world.backend.tasks.values():
            registered[place] = registered.get(place, 0) + 1
        # The one that the backend has forgotten may be replaced, once.
        extra = sum(count - 1 for count in registered.values())
        if extra > orphans + self._was_asked("report"):
            yield f"the backend registered {extra} tasks more than are used, and {orphans} are known as orphans"

    def _task_wrong(self, task: Task) -> Iterator[str]:
        upstream = task.upstream
        if upstream is None or upstream.sealed_task_id is None or upstream.state is not TaskState.ACTIVE:
            return
        task_id = self._world.template.keyring.open(upstream.sealed_task_id, context=task_id_context(upstream)).decode()
        runtime_id, _ = self._world.backend.tasks[task_id]
        if runtime_id != self._row.agent_runtime_id:
            yield "is of another agent than the row"
        if task_id in self._world.backend.forgotten and self._done("report"):
            yield "is the one that was rejected"

    # --- what callers get ---------------------------------------------------------------------------------------------

    def _answers_wrong(self, process: Process) -> Iterator[str]:
        for thread_id in _THREADS:
            request = AuthorizationRequest(SCOPE, thread_id)
            try:
                answer = process.authorizer.at_hand(CALLER, request)
            except IdentityRevokedError:
                if not self._is_disabled:
                    yield f"process {process.number} refuses {thread_id}, and nothing was disabled"
                continue
            except BrokerError as error:
                if not self._time_passed:
                    yield f"process {process.number} answers {thread_id} with {error.reason}"
                continue
            if self._is_disabled:
                yield f"process {process.number} serves {thread_id} although the identity is disabled"
            elif answer is not None and not self._world.backend.accepts(
                # Before a report ended well nobody was told of something better than what the backend has forgotten.
                answer.authorization,
                with_forgotten=not self._done("report"),
            ):
                yield f"what process {process.number} hands out for {thread_id} is rejected"


def _place(identity: Identity) -> tuple[int, int]:
    return identity.version, identity.generation


def _brief(identity: Identity) -> str:
    return f"{identity.state} (generation {identity.generation}, version {identity.version})"
