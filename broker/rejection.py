"""
ReportRejected: a backend answered 401 to what was handed out; the caller gets something better, or learns why not.

1. Read the revision: whose it is, and what it names. The caller must still be allowed what it reports on.
2. Work out what the caller would get now. If that is another credential, hand it out: nothing is spent.
3. Ask the backend for its time when that was not heard lately. Where the clock was wrong, what is signed by the right
   time is handed out; where it cannot be corrected, that is the answer.
4. Climb the ladder (`broker.ladder`), which all processes share: record the step by compare-and-set, then take it.
5. From 2 again: the step has led to another credential, or to a decision that says why there is none.

Steps are taken by jobs of the broker's own, one for each rejected credential and route, which outlive whoever reported.
Whatever was recorded and not carried out is carried out when it is reported again; each step is made so that this costs
nothing twice. A report of a caller's can at worst cost what a window allows: that is the bound on a caller that lies.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from enum import Enum, auto
from typing import Final, NamedTuple

from broker import errors, ladder
from broker.agents import AgentRegistrar
from broker.audit import AuditLog
from broker.authorization import Answer, Asking, AuthorizationRequest, Authorizer, Revision
from broker.backend_api import BackendApi
from broker.bearer import Bearer
from broker.clock import Clock
from broker.errors import BrokerError
from broker.ladder import AssertionRejected, BearerRejected, BearerUnchanged, Ladder, RegistrationRefused, Report, Step
from broker.model import (
    CredentialKind,
    Identity,
    IdentityId,
    IdentityState,
    Mode,
    ScopeName,
    StoredLadder,
    ThreadId,
    UpstreamKey,
    UpstreamTask,
)
from broker.outbound import OutboundFailure, preview
from broker.registration import ANSWER_MARGIN_SECONDS, REFUSED_AGENT, Registrar
from broker.rotation import Rotator
from broker.scopes import ScopeRule, TaskNeed
from broker.snapshots import IdentityView, Snapshots
from broker.store import Store
from broker.telemetry import Metrics, logger

_LOG: Final = logger(__name__)

_CLOCK_MAX_AGE: Final = 60.0
_CLOCK_SECONDS: Final = 5.0
_CLOCK_TO_BLAME: Final = 10.0
"""Seconds: by less than this no clock is wrong enough for a backend to refuse what was signed by it."""
_STEP_SECONDS: Final = 120.0
"""How long a job waits for a registration before it ends; whoever reports again waits for the same registration."""
_MOST_ROUNDS: Final = 5
_MOST_CONFLICTS: Final = 50
_MOST_JOBS: Final = 10_000

_NO_OTHER_AGENT: Final = (
    errors.BackendProtocolError,
    errors.BackendUnsupportedError,
    errors.BearerUnavailableError,
    errors.IdentityRejectedError,
    errors.ReauthRequiredError,
    errors.RotationUnsupportedError,
    errors.RowCorruptError,
)
"""What says that the identity cannot be given another agent; after anything else it is tried again."""

_OVER: Final = frozenset({IdentityState.DISABLED, IdentityState.DELETED, IdentityState.REJECTED})
"""States in which nothing is handed out any more, so that no report changes anything."""


class Rejection(NamedTuple):
    """What a caller reports, checked in form."""

    scope: ScopeName
    thread_id: str
    revision: str
    detail: str
    """What the backend said; goes into the audit log, redacted."""


class _Outcome(Enum):
    DECIDE_AGAIN = auto()
    """The decision, made again, is the answer."""
    CLOCK_CORRECTED = auto()
    """The credential was good and only signed by a wrong time."""


class _RejectedTask(NamedTuple):
    """The upstream task whose assertions a route rejected. Equal ones share a job."""

    identity_id: IdentityId
    generation: int
    upstream_key: UpstreamKey
    version: int
    route: ScopeName


class _RejectedBearer(NamedTuple):
    """The bearer that was rejected, by its keyed digest."""

    identity_id: IdentityId
    bearer: str


class _RefusedAgent(NamedTuple):
    """The agent that the backend refused a task."""

    identity_id: IdentityId
    generation: int


_Subject = _RejectedTask | _RejectedBearer | _RefusedAgent
_Job = asyncio.Task["_Outcome | BrokerError"]


class Mender:
    """Finds what is better than a rejected credential."""

    def __init__(
        self,
        *,
        store: Store,
        snapshots: Snapshots,
        registrar: Registrar,
        rotator: Rotator,
        agents: AgentRegistrar,
        authorizer: Authorizer,
        apis: Mapping[str, BackendApi],
        audit: AuditLog,
        clock: Clock,
        metrics: Metrics,
        window_seconds: float,
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._registrar = registrar
        self._rotator = rotator
        self._agents = agents
        self._authorizer = authorizer
        self._apis = apis
        self._audit = audit
        self._clock = clock
        self._metrics = metrics
        self._window_seconds = window_seconds
        self._jobs: dict[_Subject, _Job] = {}
        self._is_closed = False
        registrar.tell_refusals_to(self.task_refused)

    async def close(self) -> None:
        """Begin nothing more, and give up what is under way: what was recorded is done when it is reported again."""
        self._is_closed = True
        jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel()
        if jobs:
            await asyncio.wait(jobs)

    # --- reporting ----------------------------------------------------------------------------------------------------

    async def report(self, call: Asking, rejection: Rejection, *, deadline: float) -> Answer:
        """
        Return a better authorization than the one that was rejected.

        Args:
            call: who reports, proven, and what names the call in the audit record.
            rejection: what was rejected.
            deadline: monotonic time by which the caller wants its answer.

        Raises:
            RevisionUnknownError: the revision is not one that this caller was given; nothing was changed.
            ClockSkewError: the backend's clock is too far from ours to sign; nothing was spent.
            RegistrationInProgressError: not done in time; it goes on.
            BrokerError: there is nothing better; the class says why.
        """
        # 1. Whose it is, and whether the caller may still use it.
        revision = self._authorizer.read_revision(call.caller, rejection.revision)
        rule = self._authorizer.rule(rejection.scope)
        view = self._view_of(call, revision.identity_id)
        request = AuthorizationRequest(rejection.scope, rejection.thread_id, view.identity.name)
        wait_until = deadline - ANSWER_MARGIN_SECONDS
        is_confirmed = is_reported = False
        for _ in range(_MOST_ROUNDS):
            # 2. What the caller would get now; nothing is awaited between this and the reading of what it rests on.
            answer = await self._authorizer.work_out(call.caller, request, deadline=deadline)
            if answer.authorization.revision != revision.text:
                if not is_confirmed:
                    # What is in memory may be what was replaced, and the revision what another process replaced it by.
                    await self._catch_up(view.identity.id, rule, request)
                    is_confirmed = True
                    continue
                if not is_reported:
                    self._metrics.count(self._metrics.rejections, revision.kind.value, "SUPERSEDED")
                self._authorizer.hand_out(answer, call)
                return answer
            if not is_reported:
                self._record_report(call, rejection, view.identity, revision.kind)
                is_reported = is_confirmed = True
            # 3 and 4. By a job that outlives this call.
            subject, work = self._rejected(revision, rule, request)
            if await self._outcome(subject, work, wait_until) is _Outcome.CLOCK_CORRECTED:
                answer = await self._authorizer.work_out(call.caller, request, deadline=deadline)
                self._authorizer.hand_out(answer, call)
                return answer
        # What was found instead was rejected or replaced again at once, every time.
        raise errors.GenerationChangedError

    def task_refused(self, view: IdentityView, failure: OutboundFailure) -> None:
        """Give an identity another agent, if it may have one, since the backend refused the one it has a task."""
        subject = _RefusedAgent(view.identity.id, view.identity.generation)
        if view.identity.can_register and failure.status in REFUSED_AGENT and not self._is_full:
            self._job(subject, lambda: self._mend_agent(subject, reported=False))

    async def _catch_up(self, identity_id: IdentityId, rule: ScopeRule, request: AuthorizationRequest) -> None:
        """Take in what the store has of the credential now; with the store away, memory is the best there is."""
        try:
            view = await self._reread(identity_id)
            await self._reread_bearer(view)
            if rule.task is not TaskNeed.NONE:
                await self._snapshots.load_task(view.identity, self._authorizer.task_thread(request))
        except errors.StoreDownError:
            _LOG.debug("rejection_not_confirmed", identity_id=identity_id)

    def _view_of(self, call: Asking, identity_id: IdentityId) -> IdentityView:
        known = self._snapshots.view(identity_id)
        if known is None:
            raise errors.NotAllowedError
        view = self._authorizer.view_of(known.identity.name, call.caller)
        if view.identity.id != identity_id:
            raise errors.IdentityRevokedError  # it was deleted, and another one has its name
        return view

    def _record_report(self, call: Asking, rejection: Rejection, identity: Identity, kind: CredentialKind) -> None:
        self._audit.record(
            "rejection_reported",
            request_id=call.request_id,
            principal=call.caller.principal,
            identity=identity.name,
            generation=identity.generation,
            scope=rejection.scope,
            thread_id=rejection.thread_id,
            kind=kind.value,
            detail=preview(rejection.detail),
        )
        self._metrics.count(self._metrics.rejections, kind.value, "REPORTED")

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def _outcome(self, subject: _Subject, work: Callable[[], Awaitable[_Outcome]], wait_until: float) -> _Outcome:
        if subject not in self._jobs and self._is_full:
            raise errors.OverloadError(retry_after=1.0)
        job = self._job(subject, work)
        await asyncio.wait({job}, timeout=max(0.0, wait_until - self._clock.monotonic()))
        if not job.done():
            raise errors.RegistrationInProgressError(retry_after=1.0)
        outcome = job.result()
        if isinstance(outcome, BrokerError):
            raise outcome.again() from outcome
        return outcome

    @property
    def _is_full(self) -> bool:
        return self._is_closed or len(self._jobs) >= _MOST_JOBS

    def _job(self, subject: _Subject, work: Callable[[], Awaitable[_Outcome]]) -> _Job:
        job = self._jobs.get(subject)
        if job is None:
            job = asyncio.create_task(self._run(subject, work), name="mend")
            self._jobs[subject] = job
            job.add_done_callback(lambda _: self._jobs.pop(subject, None))
        return job

    async def _run(self, subject: _Subject, work: Callable[[], Awaitable[_Outcome]]) -> _Outcome | BrokerError:
        try:
            return await work()
        except BrokerError as error:
            if error.note:
                _LOG.warning("mending_failed", identity_id=subject.identity_id, reason=error.reason, note=error.note)
            return error
        except Exception as error:  # noqa: BLE001 - the job must end with an outcome for whoever waits
            _LOG.error("mending_crashed", identity_id=subject.identity_id, exc_info=error)
            return errors.InternalError()

    # --- a rejected assertion, a refused agent ------------------------------------------------------------------------

    def _rejected(
        self, revision: Revision, rule: ScopeRule, request: AuthorizationRequest
    ) -> tuple[_Subject, Callable[[], Awaitable[_Outcome]]]:
        """Return what was rejected, of which the revision is the name, and what is to be done about it."""
        view = self._present(revision.identity_id)
        if revision.kind is CredentialKind.BEARER:
            bearer = _bearer_of(view)
            if bearer is None:
                raise errors.GenerationChangedError
            rejected = _RejectedBearer(revision.identity_id, self._snapshots.bearer_version(bearer))
            return rejected, lambda: self._mend_bearer(rejected, bearer)
        thread_id = self._authorizer.task_thread(request)
        task = self._snapshots.task(view.identity, thread_id)
        if task is None or task.upstream is None:
            raise errors.GenerationChangedError
        report = AssertionRejected(
            generation=view.identity.generation,
            upstream_key=task.upstream.key,
            version=task.upstream.version,
            register_time=task.upstream.update_time,
            route=rule.name,
            can_register=view.identity.can_register,
        )
        subject = _RejectedTask(
            revision.identity_id, report.generation, report.upstream_key, report.version, report.route
        )
        return subject, lambda: self._mend_task(revision.identity_id, thread_id, report)

    async def _mend_task(
        self, identity_id: IdentityId, thread_id: ThreadId | None, report: AssertionRejected
    ) -> _Outcome:
        if await self._clock_was_wrong(self._present(identity_id)):
            self._snapshots.touch(identity_id)
            return _Outcome.CLOCK_CORRECTED

        def is_current(view: IdentityView) -> bool:
            task = self._snapshots.task(view.identity, thread_id)
            upstream = None if task is None else task.upstream
            return upstream is not None and _names(upstream) == (report.generation, report.version)

        view, step = await self._climb(identity_id, report, is_current)
        if step is not Step.REPLACE_TASK:
            return await self._mend_identity(view, report, step)
        try:
            await self._registrar.ensure(view, thread_id, replace=report.version, wait_until=self._step_end())
        except errors.IdentityRejectedError:
            trouble = self._registrar.trouble(view, thread_id)
            if trouble is None or trouble.status not in REFUSED_AGENT:
                raise
            subject = _RefusedAgent(identity_id, report.generation)
            return await self._outcome(subject, lambda: self._mend_agent(subject, reported=True), self._step_end())
        except errors.GenerationChangedError:
            await self._reread(identity_id)
        return _Outcome.DECIDE_AGAIN

    async def _mend_agent(self, subject: _RefusedAgent, *, reported: bool) -> _Outcome:
        view = self._present(subject.identity_id)
        if await self._clock_was_wrong(view):
            # It was refused for the time it was signed with, and may be asked for again at once.
            self._registrar.forget_troubles(subject.identity_id)
            self._snapshots.touch(subject.identity_id)
            return _Outcome.DECIDE_AGAIN
        report = RegistrationRefused(
            generation=subject.generation, can_register=view.identity.can_register, reported=reported
        )
        view, step = await self._climb(subject.identity_id, report, _is_of(report.generation))
        return await self._mend_identity(view, report, step)

    async def _mend_identity(
        self, view: IdentityView, report: AssertionRejected | RegistrationRefused, step: Step
    ) -> _Outcome:
        if step is Step.REGISTER_ANEW:
            waits = self._agents.trouble(view.identity)
            if waits is not None and waits.until > self._clock.monotonic():
                raise waits.outcome(retry_after=waits.until - self._clock.monotonic())
            try:
                await self._rotator.register_anew(view, wait_until=self._step_end())
            except errors.GenerationChangedError:
                await self._reread(view.identity.id)  # another process, or an operator, was quicker
            except _NO_OTHER_AGENT as error:
                _LOG.warning("no_other_agent", identity=view.identity.name, reason=error.reason, note=error.note)
                unable = replace(report, can_register=False)
                await self._climb(view.identity.id, unable, _is_of(report.generation))
        return _Outcome.DECIDE_AGAIN

    async def _clock_was_wrong(self, view: IdentityView) -> bool:
        """
        Say whether the backend's clock is so far from what was signed by that this may be why.

        Raises:
            ClockSkewError: it is too far from ours to be followed.
        """
        api = self._apis[view.backend.name]
        before = api.clock_offset
        await api.measure_clock(max_age=_CLOCK_MAX_AGE, deadline=self._clock.monotonic() + _CLOCK_SECONDS)
        api.signing_time(self._clock.now())
        return abs(api.clock_offset - before) > _CLOCK_TO_BLAME

    # --- a rejected bearer --------------------------------------------------------------------------------------------

    async def _mend_bearer(self, subject: _RejectedBearer, rejected: Bearer) -> _Outcome:
        def is_current(view: IdentityView) -> bool:
            bearer = _bearer_of(view)
            return bearer is not None and bearer.token == rejected.token

        # An issuer may end a token with the refresh that replaces it. So that token's rejection says nothing of the
        # login while the refresh is under way, or is done and was not heard of here.
        view = await self._reread_bearer(self._present(subject.identity_id))
        if view.bearers is not None and is_current(view) and _is_being_refreshed(view):
            with contextlib.suppress(errors.ReauthRequiredError):
                await view.bearers.refresh(beyond=rejected)
            self._snapshots.touch(subject.identity_id)
            return _Outcome.DECIDE_AGAIN
        view, step = await self._climb(subject.identity_id, BearerRejected(bearer=subject.bearer), is_current)
        if step is Step.REFRESH_BEARER and view.bearers is not None:
            try:
                brought = await view.bearers.refresh(beyond=rejected)
            except (errors.ReauthRequiredError, errors.BearerUnavailableError):
                brought = rejected
            if brought.token != rejected.token:
                self._snapshots.touch(subject.identity_id)
                return _Outcome.DECIDE_AGAIN
            await self._climb(subject.identity_id, BearerUnchanged(bearer=subject.bearer), is_current)
        return _Outcome.DECIDE_AGAIN

    # --- the ladder ---------------------------------------------------------------------------------------------------

    async def _climb(
        self, identity_id: IdentityId, report: Report, is_current: Callable[[IdentityView], bool]
    ) -> tuple[IdentityView, Step]:
        """
        Record what a report leads to, and return it with the identity as it stands.

        LEAVE when what was reported is no longer what callers get: the report is of the past then.

        Raises:
            RowCorruptError: the ladder cannot be read.
        """
        for _ in range(_MOST_CONFLICTS):
            view = await self._reread(identity_id)
            if view.identity.state in _OVER or not is_current(view):
                return view, Step.LEAVE
            stored = await self._store.ladder(identity_id) or StoredLadder(identity_id=identity_id)
            before = _read(stored)
            after, step = ladder.climb(before, report, now=self._clock.now(), window=self._window_seconds)
            try:
                # Before the ladder has it: once it had, nobody would come here again to do this.
                if step is Step.REJECT_IDENTITY:
                    view = await self._suspend(view, IdentityState.REJECTED, errors.IdentityRejectedError)
                elif step is Step.END_BEARER and _lives_on_its_own_bearer(view.identity):
                    view = await self._suspend(view, IdentityState.REAUTH_REQUIRED, errors.ReauthRequiredError)
                if after != before:
                    stored = await self._store.write_ladder(replace(stored, document=ladder.write(after)))
            except errors.GenerationChangedError:
                continue  # another process was quicker; with what it wrote this may lead elsewhere
            self._snapshots.publish_ladder(stored)
            self._record_step(view.identity, report, step)
            return view, step
        raise errors.GenerationChangedError(note="the ladder or its identity changed all the time")

    async def _reread(self, identity_id: IdentityId) -> IdentityView:
        identity = await self._store.identity(identity_id)
        if identity is None:
            raise errors.IdentityRevokedError
        return self._snapshots.publish_identity(identity)

    async def _reread_bearer(self, view: IdentityView) -> IdentityView:
        """Take in the bearer of an identity's own, if it has one, as it stands in the store."""
        if view.stored_bearer is not None:
            bearer = await self._store.bearer(view.identity.id)
            if bearer is not None:
                self._snapshots.publish_bearer(bearer)
        return self._present(view.identity.id)

    async def _suspend(self, view: IdentityView, state: IdentityState, why: type[BrokerError]) -> IdentityView:
        """
        Note in the row that an identity serves no more.

        Raises:
            GenerationChangedError: it was changed meanwhile, and that stays.
        """
        if view.identity.state is state:
            return view
        written = await self._store.write_identity(
            replace(view.identity, state=state, state_reason=why.reason, update_time=self._clock.now())
        )
        _LOG.error("identity_suspended", identity=written.name, state=state.value)
        return self._snapshots.publish_identity(written)

    def _record_step(self, identity: Identity, report: Report, step: Step) -> None:
        kind = (
            CredentialKind.BEARER
            if isinstance(report, BearerRejected | BearerUnchanged)
            else CredentialKind.AGENT_ASSERTION
        )
        self._metrics.count(self._metrics.rejections, kind.value, step.value)
        self._audit.record(
            "rejection_step",
            identity=identity.name,
            generation=identity.generation,
            scope=report.route if isinstance(report, AssertionRejected) else None,
            kind=kind.value,
            step=step.value,
        )

    def _present(self, identity_id: IdentityId) -> IdentityView:
        view = self._snapshots.view(identity_id)
        if view is None:
            raise errors.IdentityRevokedError
        return view

    def _step_end(self) -> float:
        return self._clock.monotonic() + _STEP_SECONDS


def _names(upstream: UpstreamTask) -> tuple[int, int]:
    return upstream.generation, upstream.version


def _is_of(generation: int) -> Callable[[IdentityView], bool]:
    return lambda view: view.identity.generation == generation


def _bearer_of(view: IdentityView) -> Bearer | None:
    return None if view.bearers is None else view.bearers.current()


def _lives_on_its_own_bearer(identity: Identity) -> bool:
    """Say whether only a person can bring another token; a configured source may do so by itself, in its time."""
    return identity.mode is Mode.BEARER and identity.bearer_source is None


def _is_being_refreshed(view: IdentityView) -> bool:
    """Say whether a refresh of the bearer is under way, in whichever process, or nobody knows what came of it yet."""
    if view.stored_bearer is not None and view.stored_bearer.lease_expire_time is not None:
        return True
    return view.bearers is not None and view.bearers.standing.in_flight


def _read(stored: StoredLadder) -> Ladder:
    try:
        return ladder.read(stored.document)
    except ladder.LadderUnreadableError as error:
        raise errors.RowCorruptError(note=str(error)) from error
