"""
RegisterTask: claim in the store → signed request to the backend → open the sealed id → complete in the store.

Each registration is a job of the broker's own: whoever asked may give up, the job goes on. In this process one job a
binding and one registration an upstream task is under way at a time; across processes the store's claims see to it. The
intent is in the store before the backend is called, so that a crash leaves a trace and never two tasks in use. A claim
is made only when the backend can be asked at once: a lease never runs out in a queue.

A living upstream task is replaced the same way (its end is near, or the backend rejected it), and goes on being used
until its successor is there.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple, TypeVar

from broker import assertion, errors
from broker.backend_api import BackendApi, TaskAnswer
from broker.backends import Backend
from broker.bearer import Bearer
from broker.clock import Clock
from broker.clock_offset import DEAD_BAND
from broker.errors import BrokerError
from broker.keyring import Keyring
from broker.keys import SigningKey
from broker.model import Identity, IdentityId, Task, TaskKind, ThreadId, UpstreamKey, UpstreamTask
from broker.outbound import FailureKind, OutboundFailure
from broker.policy import TaskFact
from broker.profiles import TaskAuth, upstream_key
from broker.sealed_box import SealedTaskIdError, open_task_id
from broker.snapshots import IdentityView, Snapshots, task_id_context
from broker.store import Claimed, ClaimOutcome, HeldElsewhere, Standing, Store, TaskClaim
from broker.telemetry import Metrics, logger
from broker.troubles import Trouble, Troubles

_LOG: Final = logger(__name__)

ANSWER_MARGIN_SECONDS: Final = 0.1
"""How long before a caller's deadline a wait ends, so that the answer still reaches it."""
_LEASE_MARGIN: Final = 10.0
_MOST_JOBS: Final = 20_000
_UNAUTHORIZED: Final = 401
REFUSED_AGENT: Final = frozenset({401, 403})
"""The statuses with which a backend says that it does not accept the agent itself."""

_FACTS: Final = {
    FailureKind.DOWN: TaskFact.COOLING_DOWN,
    FailureKind.THROTTLED: TaskFact.COOLING_DOWN,
    FailureKind.REFUSED: TaskFact.REFUSED,
    FailureKind.PROTOCOL: TaskFact.PROTOCOL_BROKEN,
}
_FIRST_POLL: Final = 0.02
_LONGEST_POLL: Final = 0.5
_SHORTEST_LIFE: Final = 0.9
"""The share of a task's life that the one which ends first has: tasks that began together end apart."""

Obtained = TypeVar("Obtained")
RefusalListener = Callable[[IdentityView, OutboundFailure], None]


class _Order(NamedTuple):
    """What is asked for: equal orders share one job."""

    identity_id: IdentityId
    thread_id: ThreadId | None
    restart: bool
    replace: int | None
    """The version of the living upstream task that a successor is wanted for."""
    ahead: int | None
    """The generation to come that the task is for; None: the identity's own."""

    @property
    def kind(self) -> TaskKind:
        return TaskKind.BACKGROUND if self.thread_id is None else TaskKind.THREAD


class _Flight(NamedTuple):
    """One registration under way in this process."""

    identity_id: IdentityId
    generation: int
    upstream_key: UpstreamKey
    replaces: bool


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
        # A backend that hangs keeps its own turns only.
        self._slots = {name: asyncio.Semaphore(in_flight) for name in apis}
        self._jitter = jitter
        self._jobs: dict[_Order, asyncio.Task[Task | BrokerError]] = {}
        self._flights: dict[_Flight, asyncio.Event] = {}
        self._troubles = Troubles(jitter)
        self._refusal_listener: RefusalListener | None = None

    # --- asking -------------------------------------------------------------------------------------------------------

    async def ensure(
        self,
        view: IdentityView,
        thread_id: ThreadId | None,
        *,
        restart: bool = False,
        replace: int | None = None,
        wait_until: float,
    ) -> Task:
        """
        Return the binding of a thread (None: background) with its upstream task living, registering it if need be.

        Args:
            view: whose task.
            thread_id: which thread.
            restart: whether an ended binding begins anew; otherwise it is returned as it is.
            replace: the version of an upstream task that is to have a successor although it lives. However many ask
                for that, and in however many processes, one is registered; who comes later gets that one.
            wait_until: monotonic time at which this caller gives up; the registration goes on.

        Raises:
            RegistrationInProgressError: not done by then.
            OverloadError: too many registrations wait already.
            BrokerError: the registration's outcome, the same for everybody who waited.
        """
        order = _Order(view.identity.id, thread_id, restart, replace, ahead=None)
        return await self._outcome(view, order, wait_until)

    async def register_ahead(self, successor: IdentityView, thread_id: ThreadId | None, *, wait_until: float) -> Task:
        """
        Register the task of a thread for the agent that an identity is about to change to.

        Args:
            successor: the identity as it will be: next generation, new key, new `agent_runtime_id`.
            thread_id: which thread; None: background.
            wait_until: monotonic time at which this caller gives up; the registration goes on.

        Raises:
            GenerationChangedError: the identity is no longer on its way to that agent.
            BrokerError: as by `ensure`.
        """
        order = _Order(
            successor.identity.id, thread_id, restart=False, replace=None, ahead=successor.identity.generation
        )
        return await self._outcome(successor, order, wait_until)

    async def _outcome(self, view: IdentityView, order: _Order, wait_until: float) -> Task:
        job = self._jobs.get(order)
        if job is None:
            if len(self._jobs) >= _MOST_JOBS:
                raise errors.OverloadError(retry_after=1.0)
            job = asyncio.create_task(self._run(view, order), name="register-task")
            self._jobs[order] = job
            job.add_done_callback(lambda _: self._jobs.pop(order, None))
        await asyncio.wait({job}, timeout=max(0.0, wait_until - self._clock.monotonic()))
        if not job.done():
            raise errors.RegistrationInProgressError(retry_after=1.0)
        outcome = job.result()
        if isinstance(outcome, BrokerError):
            raise outcome.again() from outcome
        return outcome

    def trouble(self, view: IdentityView, thread_id: ThreadId | None) -> Trouble | None:
        """Return why the task of a thread cannot be registered now; None when nothing is known against it."""
        return self._troubles.of(view.identity, _upstream_key(view, thread_id), now=self._clock.monotonic())

    def last_trouble(self, view: IdentityView, thread_id: ThreadId | None) -> Trouble | None:
        """Return how the last registration of a thread's task failed; None when that went well."""
        return self._troubles.last(view.identity, _upstream_key(view, thread_id))

    def forget_troubles(self, identity_id: IdentityId) -> None:
        """Try again at once: something about the identity changed that its row does not show."""
        self._troubles.forget(identity_id)

    def tell_refusals_to(self, listener: RefusalListener) -> None:
        """Have a listener told, without waiting for it, when a backend refuses an agent a task (401, 403)."""
        self._refusal_listener = listener

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

    async def _run(self, view: IdentityView, order: _Order) -> Task | BrokerError:
        try:
            task = await self._bind(view, order)
        except BrokerError as error:
            if error.note:
                _LOG.warning("registration_failed", identity=view.identity.name, reason=error.reason, note=error.note)
            return error
        except Exception as error:  # noqa: BLE001 - the job must end with an outcome for whoever waits
            _LOG.error("registration_crashed", identity=view.identity.name, exc_info=error)
            return errors.InternalError()
        self._publish(order, task)
        return task

    def _publish(self, order: _Order, task: Task) -> None:
        """Have calls answered with a task; one for an agent to come stays out of sight, as that may come to nothing."""
        if order.ahead is None:
            self._snapshots.publish_task(task)

    async def _bind(self, view: IdentityView, order: _Order) -> Task:
        poll = _FIRST_POLL
        changed_before = False
        while True:
            flight = _flight(view, order)
            if flight in self._flights:
                await self._flights[flight].wait()
            try:
                if order.replace is None and self._snapshots.upstream_lives(view.identity, flight.upstream_key):
                    outcome = await self._bind_to_living(view, order)
                    # Begun anew once: a thread that is ended from here on stays ended, however often this tries.
                    order = order._replace(restart=False)
                else:
                    # Neither what is known against it nor clocks that are too far apart need a claim to be found out.
                    self._require_untroubled(view, order)
                    self._apis[view.backend.name].signing_time(self._clock.now())
                    async with self._slots[view.backend.name]:
                        if flight in self._flights:
                            continue  # begun by another while this one waited for its turn
                        self._require_untroubled(view, order)
                        outcome = await self._claim(view, order)
                        order = order._replace(restart=False)
                        if isinstance(outcome, Claimed):
                            return await self._register(view, order, outcome.task, flight)
            except errors.GenerationChangedError:
                if changed_before or order.ahead is not None:
                    raise
                # Once more with the identity as it is now; a second change is told to the caller.
                changed_before, view = True, await self._reread(view.identity)
                continue
            if isinstance(outcome, Standing):
                return outcome.task
            self._publish(order, outcome.task)
            if isinstance(outcome, HeldElsewhere) and flight not in self._flights:
                # Another process registers it: look again until it is done or its lease has run out.
                await self._clock.sleep(poll)
                poll = min(poll * 2, _LONGEST_POLL)

    async def _bind_to_living(self, view: IdentityView, order: _Order) -> ClaimOutcome:
        """Bind a thread to an upstream task that lives already: nothing of the backend is needed, nor a turn at it."""
        outcome = await self._claim(view, order)
        if isinstance(outcome, Claimed):
            # It does not live any more. Registering it takes its turn, and the lease must not run out in that queue.
            await self._give_back(view, _claimed(outcome.task), answer_lost=False)
        return outcome

    def _require_untroubled(self, view: IdentityView, order: _Order) -> None:
        trouble = self.trouble(view, order.thread_id)
        if trouble is not None:
            raise trouble.outcome(retry_after=trouble.until - self._clock.monotonic())

    async def _claim(self, view: IdentityView, order: _Order) -> ClaimOutcome:
        return await self._store.claim_task(
            TaskClaim(
                identity_id=view.identity.id,
                generation=view.identity.generation,
                kind=order.kind,
                thread_id=order.thread_id,
                upstream_key=_upstream_key(view, order.thread_id),
                now=self._clock.now(),
                lease_seconds=self._lease_seconds,
                restart=order.restart,
                replace=order.replace,
            )
        )

    async def _reread(self, identity: Identity) -> IdentityView:
        current = await self._snapshots.reread_identity(identity.id)
        if current is None:
            raise errors.IdentityRevokedError
        return current

    async def _register(self, view: IdentityView, order: _Order, task: Task, flight: _Flight) -> Task:
        upstream = _claimed(task)
        self._flights[flight] = asyncio.Event()
        try:
            task_id, answer_lost = await self._ask_backend(view, task, upstream)
            completed = await self._complete(view.backend, upstream, task_id)
        finally:
            self._flights.pop(flight).set()
        if answer_lost:
            await self._record_orphan(view, upstream)
        if completed is None:
            self._metrics.count(self._metrics.orphans, view.backend.name)
            raise errors.GenerationChangedError(note="the claim was taken over; the upstream task is an orphan")
        self._troubles.settle(view.identity, upstream.key)
        self._metrics.count(self._metrics.registrations, view.backend.name, "task", "registered")
        if order.ahead is None:
            self._snapshots.publish_upstream(completed)
        _LOG.info(
            "task_registered", identity=view.identity.name, upstream_version=completed.version, kind=task.kind.value
        )
        return await self._as_bound(task, completed)

    async def _as_bound(self, task: Task, completed: UpstreamTask) -> Task:
        """Return the binding as it stands now: it may have been ended meanwhile."""
        try:
            bound = await self._store.task(task.identity_id, task.thread_id)
        except errors.StoreDownError:
            bound = None  # following the store brings what became of it
        return replace(bound or task, upstream=completed)

    async def _complete(self, backend: Backend, upstream: UpstreamTask, task_id: str) -> UpstreamTask | None:
        """Write the answer down; a store that is away is asked again for as long as the claim is surely ours."""
        sealed = self._keyring.seal(task_id.encode(), context=task_id_context(upstream))
        expire_time = self._clock.now() + backend.task_lifetime * self._jitter.uniform(_SHORTEST_LIFE, 1.0)
        poll = _FIRST_POLL
        while True:
            now = self._clock.now()
            try:
                return await self._store.complete_claim(
                    upstream, sealed_task_id=sealed, now=now, expire_time=expire_time
                )
            except errors.StoreDownError:
                if upstream.lease_expire_time is None or now >= upstream.lease_expire_time:
                    raise
            await self._clock.sleep(poll)
            poll = min(poll * 2, _LONGEST_POLL)

    async def _ask_backend(self, view: IdentityView, task: Task, upstream: UpstreamTask) -> tuple[str, bool]:
        """Return the upstream task's id, and whether an earlier try may have left another one behind."""
        key, runtime_id = view.key, view.identity.agent_runtime_id
        if key is None or runtime_id is None:
            await self._store.release_claim(upstream, now=self._clock.now(), answer_lost=False)
            raise errors.RegistrationInProgressError(note="the agent itself is not registered yet", retry_after=1.0)
        try:
            answer = await self._register_task(view, task, key, runtime_id)
            return self._open(view, answer), answer.answer_lost
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

    async def _register_task(self, view: IdentityView, task: Task, key: SigningKey, runtime_id: str) -> TaskAnswer:
        """
        Ask the backend, and where it refuses who asks, once more for each cause that is not the agent.

        One is a clock that was wrong: the refusal's own `Date` told better. The other is the bearer that a biscuit was
        asked with: it is refreshed.
        """
        api = self._apis[view.backend.name]
        deadline = self._clock.monotonic() + max(1.0, self._lease_seconds - _LEASE_MARGIN)
        bearer = await self._bearer_for_biscuit(view, deadline)
        clock_corrected = bearer_refreshed = answer_lost = False
        while True:
            offset = api.clock_offset
            try:
                answer = await api.register_task(
                    agent_runtime_id=runtime_id,
                    sign=lambda timestamp: assertion.registration_signature(key, runtime_id, timestamp),
                    external_task_ref=view.backend.profile.external_task_ref(task.kind, task.thread_id),
                    bearer=None if bearer is None else bearer.token,
                    deadline=deadline,
                )
            except OutboundFailure as failure:
                failure.answer_lost = answer_lost = answer_lost or failure.answer_lost
                if failure.status not in REFUSED_AGENT:
                    raise
                if not clock_corrected and abs(api.clock_offset - offset) > DEAD_BAND:
                    clock_corrected = True
                    continue
                fresh = None
                if not bearer_refreshed and bearer is not None:
                    fresh = await self._had_by(deadline, fresher_bearer(view, bearer, failure))
                if fresh is None:
                    raise
                bearer, bearer_refreshed = fresh, True
            else:
                return replace(answer, answer_lost=answer_lost or answer.answer_lost)

    async def _bearer_for_biscuit(self, view: IdentityView, deadline: float) -> Bearer | None:
        """Return the account's bearer where registrations carry a biscuit."""
        if view.backend.profile.task_auth is not TaskAuth.BISCUIT:
            return None
        return await self._had_by(deadline, live_bearer(view, self._clock))

    async def _had_by(self, deadline: float, bearer: Awaitable[Obtained]) -> Obtained:
        """Wait for a source no longer than the claim and the turn at the backend may be held."""
        try:
            async with asyncio.timeout(deadline - self._clock.monotonic()):
                return await bearer
        except TimeoutError:
            raise errors.IssuerDownError(retry_after=1.0) from None

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

    async def _record_orphan(self, view: IdentityView, upstream: UpstreamTask) -> None:
        """Record what a lost try may have left behind, although a later one succeeded."""
        self._metrics.count(self._metrics.orphans, view.backend.name)
        try:
            await self._store.release_claim(upstream, now=self._clock.now(), answer_lost=True)
        except errors.StoreDownError:
            _LOG.warning("orphan_not_recorded", identity=view.identity.name)

    # --- remembering failures -----------------------------------------------------------------------------------------

    def _remember(self, view: IdentityView, upstream: UpstreamTask, failure: OutboundFailure) -> BrokerError:
        error = failure.as_error()
        trouble = self._note(view, upstream, _FACTS[failure.kind], error, status=failure.status)
        if error.retry_after is None:
            error.retry_after = trouble.until - self._clock.monotonic()
        known = self._snapshots.view(view.identity.id)
        is_present = known is not None and known.identity.generation == upstream.generation
        if self._refusal_listener is not None and is_present and failure.status in REFUSED_AGENT:
            self._refusal_listener(view, failure)
        return error

    def _note(
        self,
        view: IdentityView,
        upstream: UpstreamTask,
        fact: TaskFact,
        error: BrokerError,
        *,
        status: int | None = None,
    ) -> Trouble:
        """Remember a failure: transient ones of this task, others of the whole identity in this generation."""
        self._metrics.count(self._metrics.registrations, view.backend.name, "task", error.reason)
        trouble = self._troubles.note(
            view.identity, upstream.key, fact, error, now=self._clock.monotonic(), status=status
        )
        self._snapshots.touch(view.identity.id)
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


def _flight(view: IdentityView, order: _Order) -> _Flight:
    key = _upstream_key(view, order.thread_id)
    return _Flight(view.identity.id, view.identity.generation, key, order.replace is not None)


def _claimed(task: Task) -> UpstreamTask:
    if task.upstream is None:
        message = "a claimed task has an upstream task"
        raise AssertionError(message)
    return task.upstream
