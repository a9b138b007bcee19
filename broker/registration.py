"""
RegisterTask: claim in the store → signed request to the backend → open the sealed id → complete in the store.

Each registration is a job of the broker's own: whoever asked may give up, the job goes on. In this process one job a
binding and one registration an upstream task is under way at a time; across processes the store's claims see to it. The
intent is in the store before the backend is called, so that a crash leaves a trace and never two tasks in use.
"""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from broker import assertion, errors
from broker.backend_api import BackendApi, TaskAnswer
from broker.bearer import Bearer
from broker.clock import Clock
from broker.errors import BrokerError
from broker.keyring import Keyring
from broker.keys import SigningKey
from broker.model import Identity, IdentityId, Task, TaskKind, ThreadId, UpstreamKey, UpstreamTask
from broker.outbound import FailureKind, OutboundFailure
from broker.policy import TaskFact
from broker.profiles import TaskAuth, upstream_key
from broker.sealed_box import SealedTaskIdError, open_task_id
from broker.snapshots import IdentityView, Snapshots, task_id_context
from broker.store import Claimed, HeldElsewhere, Store, TaskClaim
from broker.telemetry import Metrics, logger

_LOG: Final = logger(__name__)

ANSWER_MARGIN_SECONDS: Final = 0.1
"""How long before a caller's deadline a wait ends, so that the answer still reaches it."""
_SHORTEST_COOL_DOWN: Final = 1.0
_LONGEST_COOL_DOWN: Final = 60.0
_REFUSAL_COOL_DOWN: Final = 60.0
_LONGEST_REFUSAL_COOL_DOWN: Final = 3600.0
_MOST_TROUBLES: Final = 100_000
_LEASE_MARGIN: Final = 10.0
_UNAUTHORIZED: Final = 401

_FACTS: Final = {
    FailureKind.DOWN: TaskFact.COOLING_DOWN,
    FailureKind.THROTTLED: TaskFact.COOLING_DOWN,
    FailureKind.REFUSED: TaskFact.REFUSED,
    FailureKind.PROTOCOL: TaskFact.PROTOCOL_BROKEN,
}
_FIRST_POLL: Final = 0.02
_LONGEST_POLL: Final = 0.5


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a registration is not tried now, and until when (monotonic)."""

    fact: TaskFact
    outcome: type[BrokerError]
    until: float
    strikes: int


class Registrar:
    """Sees to it that a task lives when it is needed."""

    def __init__(
        self,
        *,
        store: Store,
        snapshots: Snapshots,
        keyring: Keyring,
        apis: Mapping[str, BackendApi],
        clock: Clock,
        metrics: Metrics,
        lease_seconds: float,
        in_flight: int,
        jitter: random.Random,
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._keyring = keyring
        self._apis = apis
        self._clock = clock
        self._metrics = metrics
        self._lease_seconds = lease_seconds
        self._slots = asyncio.Semaphore(in_flight)
        self._jitter = jitter
        self._jobs: dict[tuple[IdentityId, ThreadId | None, bool], asyncio.Task[Task | BrokerError]] = {}
        self._flights: dict[tuple[IdentityId, int, UpstreamKey], asyncio.Event] = {}
        self._troubles: dict[tuple[IdentityId, int, UpstreamKey | None], Trouble] = {}

    # --- asking -------------------------------------------------------------------------------------------------------

    async def ensure(
        self, view: IdentityView, thread_id: ThreadId | None, *, restart: bool = False, wait_until: float
    ) -> Task:
        """
        Return the binding of a thread (None: background) with its upstream task living, registering it if need be.

        Args:
            view: whose task.
            thread_id: which thread.
            restart: whether an ended binding begins anew; otherwise it is returned as it is.
            wait_until: monotonic time at which this caller gives up; the registration goes on.

        Raises:
            RegistrationInProgressError: not done by then.
            BrokerError: the registration's outcome, the same for everybody who waited.
        """
        key = (view.identity.id, thread_id, restart)
        job = self._jobs.get(key)
        if job is None:
            job = asyncio.create_task(self._run(view, thread_id, restart=restart), name="register-task")
            self._jobs[key] = job
            job.add_done_callback(lambda _: self._jobs.pop(key, None))
        await asyncio.wait({job}, timeout=max(0.0, wait_until - self._clock.monotonic()))
        if not job.done():
            raise errors.RegistrationInProgressError(retry_after=1.0)
        outcome = job.result()
        if isinstance(outcome, BrokerError):
            # A fresh one for each who waited: a shared exception would gather all their tracebacks.
            raise type(outcome)(
                metadata=outcome.metadata, retry_after=outcome.retry_after, note=outcome.note
            ) from outcome
        return outcome

    def trouble(self, view: IdentityView, thread_id: ThreadId | None) -> Trouble | None:
        """Return why the task of a thread cannot be registered now; None when nothing is known against it."""
        identity = view.identity
        now = self._clock.monotonic()
        for upstream in (None, _upstream_key(view, thread_id)):
            trouble = self._troubles.get((identity.id, identity.generation, upstream))
            if trouble is not None and trouble.until > now:
                return trouble
        return None

    def forget_troubles(self, identity_id: IdentityId) -> None:
        """Try again at once: an operator changed something about the identity."""
        for key in [key for key in self._troubles if key[0] == identity_id]:
            del self._troubles[key]

    async def drain(self, seconds: float) -> None:
        """Let registrations that are under way end; what is not done by then gives its claim back."""
        if self._jobs:
            await asyncio.wait(set(self._jobs.values()), timeout=seconds)
        left = set(self._jobs.values())
        for job in left:
            job.cancel()
        if left:
            # The store must not be closed under them.
            await asyncio.wait(left)

    # --- the job ------------------------------------------------------------------------------------------------------

    async def _run(self, view: IdentityView, thread_id: ThreadId | None, *, restart: bool) -> Task | BrokerError:
        try:
            task = await self._bind(view, thread_id, restart=restart)
        except BrokerError as error:
            if error.note:
                _LOG.warning("registration_failed", identity=view.identity.name, reason=error.reason, note=error.note)
            return error
        except Exception as error:  # noqa: BLE001 - the job must end with an outcome for whoever waits
            _LOG.error("registration_crashed", identity=view.identity.name, exc_info=error)
            return errors.InternalError()
        self._snapshots.publish_task(task)
        return task

    async def _bind(self, view: IdentityView, thread_id: ThreadId | None, *, restart: bool) -> Task:
        poll = _FIRST_POLL
        changed_before = False
        while True:
            identity = view.identity
            key = _upstream_key(view, thread_id)
            flight = self._flights.get((identity.id, identity.generation, key))
            if flight is not None:
                await flight.wait()
            trouble = self.trouble(view, thread_id)
            if trouble is not None:
                raise trouble.outcome(retry_after=trouble.until - self._clock.monotonic())
            # Clocks that are known to be too far apart need no claim to find out.
            self._apis[view.backend.name].signing_time(self._clock.now())
            try:
                outcome = await self._store.claim_task(
                    TaskClaim(
                        identity_id=identity.id,
                        generation=identity.generation,
                        kind=TaskKind.BACKGROUND if thread_id is None else TaskKind.THREAD,
                        thread_id=thread_id,
                        upstream_key=key,
                        now=self._clock.now(),
                        lease_seconds=self._lease_seconds,
                        restart=restart,
                    )
                )
                # Begun anew once: a thread that is ended from here on stays ended, however often this tries.
                restart = False
                if isinstance(outcome, Claimed):
                    return await self._register(view, outcome.task)
                if not isinstance(outcome, HeldElsewhere):
                    return outcome.task
            except errors.GenerationChangedError:
                # Once more with the identity as it is now; a second change is told to the caller.
                current = self._snapshots.publish_identity(await self._reread(identity))
                if changed_before:
                    raise
                changed_before, view = True, current
                continue
            self._snapshots.publish_task(outcome.task)
            if (identity.id, identity.generation, key) not in self._flights:
                # Another process registers it: look again until it is done or its lease has run out.
                await self._clock.sleep(poll)
                poll = min(poll * 2, _LONGEST_POLL)

    async def _reread(self, identity: Identity) -> Identity:
        current = await self._store.identity(identity.id)
        if current is None:
            raise errors.IdentityRevokedError
        return current

    async def _register(self, view: IdentityView, task: Task) -> Task:
        upstream = _claimed(task)
        flight = (upstream.identity_id, upstream.generation, upstream.key)
        self._flights[flight] = asyncio.Event()
        try:
            task_id = await self._ask_in_turn(view, task, upstream)
            completed = await self._complete(upstream, task_id)
        finally:
            self._flights.pop(flight).set()
        if completed is None:
            self._metrics.count(self._metrics.orphans, view.backend.name)
            raise errors.GenerationChangedError(note="the claim was taken over; the upstream task is an orphan")
        self._troubles.pop((upstream.identity_id, upstream.generation, upstream.key), None)
        self._troubles.pop((upstream.identity_id, upstream.generation, None), None)
        self._metrics.count(self._metrics.registrations, view.backend.name, "task", "registered")
        self._snapshots.publish_upstream(completed)
        _LOG.info(
            "task_registered", identity=view.identity.name, upstream_version=completed.version, kind=task.kind.value
        )
        return await self._store.task(task.identity_id, task.thread_id) or task

    async def _ask_in_turn(self, view: IdentityView, task: Task, upstream: UpstreamTask) -> str:
        try:
            await self._slots.acquire()
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(view, upstream, answer_lost=False))
            raise
        try:
            trouble = self.trouble(view, task.thread_id)
            if trouble is not None:
                # What was learned while this waited for its turn holds for it too.
                await self._give_back(view, upstream, answer_lost=False)
                raise trouble.outcome(retry_after=trouble.until - self._clock.monotonic())
            return await self._ask_backend(view, task, upstream)
        finally:
            self._slots.release()

    async def _complete(self, upstream: UpstreamTask, task_id: str) -> UpstreamTask | None:
        """Write the answer down; a store that is away is asked again for as long as the claim is surely ours."""
        sealed = self._keyring.seal(task_id.encode(), context=task_id_context(upstream))
        poll = _FIRST_POLL
        while True:
            now = self._clock.now()
            try:
                return await self._store.complete_claim(upstream, sealed_task_id=sealed, now=now, expire_time=None)
            except errors.StoreDownError:
                if upstream.lease_expire_time is None or now >= upstream.lease_expire_time:
                    raise
            await self._clock.sleep(poll)
            poll = min(poll * 2, _LONGEST_POLL)

    async def _ask_backend(self, view: IdentityView, task: Task, upstream: UpstreamTask) -> str:
        key, runtime_id = view.key, view.identity.agent_runtime_id
        if key is None or runtime_id is None:
            await self._store.release_claim(upstream, now=self._clock.now(), answer_lost=False)
            raise errors.RegistrationInProgressError(note="the agent itself is not registered yet", retry_after=1.0)
        answer_lost = False
        try:
            answer = await self._register_task(view, task, key, runtime_id)
            answer_lost = answer.answer_lost
            task_id = self._open(view, answer)
        except OutboundFailure as failure:
            await self._give_back(view, upstream, answer_lost=failure.answer_lost)
            raise self._remember(view, upstream, failure) from failure
        except errors.ClockSkewError:
            # Nothing was asked, and whoever asks again is told the same until the clocks agree.
            await self._give_back(view, upstream, answer_lost=False)
            raise
        except BrokerError as error:
            await self._give_back(view, upstream, answer_lost=False)
            self._note(view, upstream, TaskFact.COOLING_DOWN, error)
            raise
        except asyncio.CancelledError:
            # The broker is stopping. The backend may have registered a task, and its answer is lost.
            await asyncio.shield(self._give_back(view, upstream, answer_lost=True))
            raise
        if answer_lost:
            self._metrics.count(self._metrics.orphans, view.backend.name)
        return task_id

    async def _register_task(self, view: IdentityView, task: Task, key: SigningKey, runtime_id: str) -> TaskAnswer:
        """Ask once, and once more with a fresh bearer when the one that a biscuit was asked with is refused."""
        deadline = self._clock.monotonic() + max(1.0, self._lease_seconds - _LEASE_MARGIN)
        needs_bearer = view.backend.profile.task_auth is TaskAuth.BISCUIT
        bearer = await live_bearer(view, self._clock) if needs_bearer else None
        for last_try in (False, True):
            try:
                return await self._apis[view.backend.name].register_task(
                    agent_runtime_id=runtime_id,
                    sign=lambda timestamp: assertion.registration_signature(key, runtime_id, timestamp),
                    external_task_ref=view.backend.profile.external_task_ref(task.kind, task.thread_id),
                    bearer=None if bearer is None else bearer.token,
                    deadline=deadline,
                )
            except OutboundFailure as failure:
                fresh = None if last_try or bearer is None else await fresher_bearer(view, bearer, failure)
                if fresh is None:
                    raise
                bearer = fresh
        raise AssertionError  # pragma: no cover - the second try returns or raises

    def _open(self, view: IdentityView, answer: TaskAnswer) -> str:
        if not answer.sealed:
            return answer.value
        try:
            if view.key is None:
                raise errors.RowCorruptError
            return assertion.validate_backend_id(open_task_id(view.key, answer.value))
        except (SealedTaskIdError, assertion.InvalidBackendIdError) as error:
            raise OutboundFailure(
                FailureKind.PROTOCOL, "register_task", f"the sealed task id cannot be used: {error}", answer_lost=True
            ) from error

    async def _give_back(self, view: IdentityView, upstream: UpstreamTask, *, answer_lost: bool) -> None:
        if answer_lost:
            self._metrics.count(self._metrics.orphans, view.backend.name)
        try:
            await self._store.release_claim(upstream, now=self._clock.now(), answer_lost=answer_lost)
        except errors.StoreDownError:
            # The lease will run out; whoever takes over records the orphan then.
            _LOG.warning("claim_not_released", identity=view.identity.name)

    # --- remembering failures -----------------------------------------------------------------------------------------

    def _remember(self, view: IdentityView, upstream: UpstreamTask, failure: OutboundFailure) -> BrokerError:
        error = failure.as_error()
        trouble = self._note(view, upstream, _FACTS[failure.kind], error)
        if error.retry_after is None:
            error.retry_after = trouble.until - self._clock.monotonic()
        return error

    def _note(self, view: IdentityView, upstream: UpstreamTask, fact: TaskFact, error: BrokerError) -> Trouble:
        """Remember a failure: transient ones of this task, others of the whole identity in this generation."""
        self._metrics.count(self._metrics.registrations, view.backend.name, "task", error.reason)
        whole_identity = fact is not TaskFact.COOLING_DOWN
        key = (upstream.identity_id, upstream.generation, None if whole_identity else upstream.key)
        before = self._troubles.get(key)
        now = self._clock.monotonic()
        if before is not None and before.until > now:
            strikes = before.strikes  # failures of the same moment are one
        else:
            strikes = 1 + (before.strikes if before is not None else 0)
        if whole_identity:
            seconds = min(_REFUSAL_COOL_DOWN * 2.0 ** min(strikes - 1, 10), _LONGEST_REFUSAL_COOL_DOWN)
        else:
            seconds = min(_SHORTEST_COOL_DOWN * 2.0 ** min(strikes - 1, 10), _LONGEST_COOL_DOWN)
            seconds = max(seconds * self._jitter.uniform(0.5, 1.0), error.retry_after or 0.0)
        trouble = Trouble(fact, type(error), now + seconds, strikes)
        if len(self._troubles) >= _MOST_TROUBLES:
            self._troubles.pop(next(iter(self._troubles)))
        self._troubles[key] = trouble
        self._snapshots.touch()
        return trouble


async def live_bearer(view: IdentityView, clock: Clock) -> Bearer:
    """
    Return an identity's bearer, obtaining it if there is none that lives.

    Raises:
        BearerUnavailableError: the identity has no source.
        IssuerDownError: it cannot be had now.
        ReauthRequiredError: it cannot be had any more without a person.
    """
    if view.bearers is None or view.bearers.is_empty:
        raise errors.BearerUnavailableError
    bearer = view.bearers.current()
    if bearer is None or not bearer.is_live(clock.now()):
        bearer = await view.bearers.refresh()
    return bearer


async def fresher_bearer(view: IdentityView, refused: Bearer, failure: OutboundFailure) -> Bearer | None:
    """
    Return another bearer than the one that a backend refused with a 401; None when that was not it, or is all there is.

    Raises:
        IssuerDownError: it cannot be had now.
        ReauthRequiredError: it cannot be had any more without a person.
    """
    if failure.status != _UNAUTHORIZED or view.bearers is None:
        return None
    bearer = await view.bearers.refresh(beyond=refused)
    return None if bearer.token == refused.token else bearer


def _upstream_key(view: IdentityView, thread_id: ThreadId | None) -> UpstreamKey:
    kind = TaskKind.BACKGROUND if thread_id is None else TaskKind.THREAD
    return upstream_key(view.backend.profile.task_layout, kind, thread_id)


def _claimed(task: Task) -> UpstreamTask:
    if task.upstream is None:
        message = "a claimed task has an upstream task"
        raise AssertionError(message)
    return task.upstream
