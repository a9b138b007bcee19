"""
GetAuthorization: one snapshot → one decision → a set of headers.

A call for which all is in memory is answered without waiting. Otherwise what is missing (the task, the bearer) is had
by a job of the broker's own, bounded by the caller's deadline, and the decision is made again. Within one second the
same credential gives the same answer: it is signed once, not once a call.
"""

import base64
import hashlib
import hmac
import math
import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from broker import assertion, errors, ladder
from broker.audit import AuditLog, Grant, GrantLine
from broker.backend_api import BackendApi
from broker.bearer import EXPIRY_MARGIN_SECONDS, Bearer
from broker.bearer_windows import BearerWindows
from broker.clock import Clock
from broker.errors import BrokerError
from broker.keyring import Keyring
from broker.lifetimes import Lifetimes
from broker.model import (
    ACCOUNT_HEADER,
    AUTHORIZATION_HEADER,
    FEDRAMP_HEADER,
    Authorization,
    Caller,
    CredentialKind,
    DecisionReason,
    Header,
    IdentityId,
    IdentityName,
    IdentityState,
    ScopeName,
    TaskState,
    ThreadId,
    UpstreamTask,
)
from broker.policy import (
    BearerFact,
    Decision,
    NeedBearer,
    NeedTask,
    Refuse,
    Situation,
    Step,
    TaskFact,
    UseAssertion,
    UseBearer,
    account,
    decide,
)
from broker.registration import ANSWER_MARGIN_SECONDS, Registrar
from broker.scopes import ScopeRule, TaskNeed
from broker.snapshots import IdentityView, Snapshots, TaskView
from broker.telemetry import Metrics, Tally

STALE_AFTER_SECONDS: Final = 5.0
_MOST_ROUNDS: Final = 4
_MOST_ANSWERS: Final = 20_000


class AuthorizationRequest(NamedTuple):
    """What a caller asks for, checked in form; an empty text stands for what it did not say."""

    scope: str
    thread_id: str = ""
    identity: str = ""
    target_url: str = ""
    expected_account_id: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision with the rows that led to it."""

    identity: IdentityName
    rule: ScopeRule
    decision: Decision
    steps: tuple[Step, ...]


class Asking(Protocol):
    """A call: who makes it, and what names it in the records."""

    @property
    def caller(self) -> Caller:
        """Who calls, proven."""
        ...

    @property
    def request_id(self) -> str:
        """What names the call."""
        ...


class Answer:
    """
    An authorization that is handed out again to equal calls of its second.

    `packed` is room for the edge to keep the answer as a message, so that it is packed once; `pushed` the same for
    the bytes that watchers are sent.
    """

    __slots__ = ("authorization", "epoch", "grant", "line", "min_lifetime", "packed", "pushed", "tallies")

    def __init__(
        self, authorization: Authorization, grant: Grant, *, epoch: int, min_lifetime: float, tallies: tuple[Tally, ...]
    ) -> None:
        self.authorization = authorization
        self.grant = grant
        self.epoch = epoch
        self.min_lifetime = min_lifetime
        self.tallies = tallies
        self.line: GrantLine | None = None
        self.packed: Any = None
        self.pushed: Any = None


@dataclass(frozen=True, slots=True)
class Revision:
    """What a revision names; its task's or bearer's version only by comparing `text` with another of this caller."""

    identity_id: IdentityId
    generation: int
    kind: CredentialKind
    text: str


@dataclass(frozen=True, slots=True)
class _Found:
    """What trying to obtain something brought, where that is not in the snapshot."""

    task: TaskFact | None = None
    bearer: BearerFact | None = None
    trouble: BrokerError | None = None


@dataclass(frozen=True, slots=True)
class _Looked:
    """One look at everything, and the decision on it."""

    view: IdentityView
    task: TaskView | None
    decision: Decision
    found: _Found


@dataclass(frozen=True, slots=True)
class AuthorizationSettings:
    """The settings that answers depend on. Durations in seconds."""

    default_identity: IdentityName | None
    grant_bootstrap: bool
    max_lease: float
    max_staleness: float


class Authorizer:
    """Decides and answers; the one place where a credential is handed out."""

    def __init__(
        self,
        *,
        snapshots: Snapshots,
        registrar: Registrar,
        lifetimes: Lifetimes,
        scopes: Mapping[str, ScopeRule],
        apis: Mapping[str, BackendApi],
        keyring: Keyring,
        audit: AuditLog,
        clock: Clock,
        metrics: Metrics,
        settings: AuthorizationSettings,
        jitter: random.Random,
    ) -> None:
        self._snapshots = snapshots
        self._registrar = registrar
        self._lifetimes = lifetimes
        self._scopes = scopes
        self._apis = apis
        self._audit = audit
        self._clock = clock
        self._metrics = metrics
        self._settings = settings
        self._jitter = jitter
        self._revision_key = keyring.derive_mac_key("revision")
        self._tag_key = keyring.derive_mac_key("connection-tag")
        self._second = 0
        self._answers: dict[tuple[str, AuthorizationRequest], Answer] = {}
        self._signed: dict[tuple[IdentityId, int, str, int], str] = {}
        self._windows = BearerWindows(snapshots, clock)
        self._last_use: dict[IdentityId, float] = {}
        snapshots.subscribe(self._forget_gone)

    # --- answering ----------------------------------------------------------------------------------------------------

    def repeat(self, call: Asking, request: AuthorizationRequest, *, min_validity: float) -> Answer | None:
        """
        Answer a call like one that was answered in this second, None when there was none or anything changed since.

        `request` need not be checked: only requests that were checked have been answered.

        Raises:
            AuditDownError: the grant could not be recorded.
            MinValidityTooLongError: the authorization does not live that long, and no other would.
        """
        self._tick()
        answer = self._answers.get((call.caller.principal, request))
        if answer is None or answer.epoch != self._snapshots.epoch:
            return None
        try:
            self.hand_out(answer, call, min_validity=min_validity)
        except errors.MinValidityTooLongError:
            if answer.authorization.kind is CredentialKind.BEARER:
                return None  # a fresher one may live that long
            raise
        return answer

    async def authorize(
        self, call: Asking, request: AuthorizationRequest, *, min_validity: float, deadline: float
    ) -> Answer:
        """
        Answer one call.

        Args:
            call: who asks, proven, and what names the call in the audit record.
            request: what for.
            min_validity: seconds for which the answer must still be good.
            deadline: monotonic time by which the caller wants its answer.

        Raises:
            BrokerError: no header is handed out; the class says why.
        """
        answer = self.repeat(call, request, min_validity=min_validity)
        if answer is None:
            answer = await self.work_out(call.caller, request, min_validity=min_validity, deadline=deadline)
            self.hand_out(answer, call, min_validity=min_validity)
        return answer

    async def work_out(
        self, caller: Caller, request: AuthorizationRequest, *, min_validity: float = 0.0, deadline: float
    ) -> Answer:
        """
        Return what a call would be answered, worked out now or in this second, without handing it out.

        Nothing of it may leave before `hand_out`. A bearer that lives for less than `min_validity` is refreshed first,
        where that can help.

        Raises:
            BrokerError: no header is handed out; the class says why.
        """
        self._tick()
        answer = self._answers.get((caller.principal, request))
        if (
            answer is None
            or answer.epoch != self._snapshots.epoch
            or answer.authorization.expire_time - self._clock.now() < min_validity
        ):
            answer = await self._work_out(caller, request, min_validity, deadline)
            self._remember(caller, request, answer)
        return answer

    def _remember(self, caller: Caller, request: AuthorizationRequest, answer: Answer) -> None:
        """Keep an answer for the rest of its second, unless it ends before that does."""
        if len(self._answers) < _MOST_ANSWERS and answer.authorization.expire_time >= self._second + 1:
            self._answers[caller.principal, request] = answer

    def hand_out(self, answer: Answer, call: Asking, *, min_validity: float = 0.0) -> None:
        """
        Check the wanted validity, record the grant before it leaves, and count it.

        Raises:
            AuditDownError: the grant could not be recorded.
            MinValidityTooLongError: the authorization does not live that long.
        """
        wanted = max(min_validity, answer.min_lifetime)
        if wanted > 0:
            _require_validity(answer.authorization, wanted, self._clock.now())
        line = answer.line
        if line is not None and line.is_open:
            line.repeats += 1
        else:
            answer.line = self._audit.grant(answer.grant, call.request_id)
        for tally in answer.tallies:
            tally.value += 1

    def _tick(self) -> None:
        """Begin a new second if it has begun: nothing that was signed or answered in the one before is used again."""
        second = int(self._clock.now())
        if second != self._second:
            self._second = second
            self._answers.clear()
            self._signed.clear()

    def at_hand(self, caller: Caller, request: AuthorizationRequest) -> Answer | None:
        """
        Return what `work_out` would, if that needs no waiting; None where a task or a bearer must be obtained first.

        Raises:
            BrokerError: no header is handed out; the class says why.
        """
        self._tick()
        answer = self._answers.get((caller.principal, request))
        if answer is None or answer.epoch != self._snapshots.epoch:
            rule = self.rule(ScopeName(request.scope))
            looked = self._look(caller, request, rule, _Found())
            answer = self._answered(caller, request, rule, looked)
            if answer is not None:
                self._remember(caller, request, answer)
        return answer

    def revision_now(self, caller: Caller, request: AuthorizationRequest) -> str | None:
        """
        Decide again, without waiting and without signing: the revision of what a call would be answered now.

        None where a task or a bearer must be obtained first.

        Raises:
            BrokerError: a call would be refused; the class says why.
        """
        rule = self.rule(ScopeName(request.scope))
        looked = self._look(caller, request, rule, _Found())
        match looked.decision:
            case UseAssertion():
                if looked.task is None or looked.task.upstream is None:
                    raise errors.RowCorruptError
                return self._revision(
                    caller, looked.view, CredentialKind.AGENT_ASSERTION, _upstream_version(looked.task.upstream)
                )
            case UseBearer():
                version = self._snapshots.bearer_version(_current(looked.view))
                return self._revision(caller, looked.view, CredentialKind.BEARER, version)
            case Refuse():
                raise _refusal(looked.decision, None)
            case NeedTask() | NeedBearer():
                return None

    def basis(self, caller: Caller, request: AuthorizationRequest) -> tuple[object, ...]:
        """
        Return the things in memory that an answer rests on: while they are the same objects, only time changes it.

        Raises:
            BrokerError: the request cannot be answered now.
        """
        rule = self.rule(ScopeName(request.scope))
        view = self._view(caller, request)
        bearer = None if view.bearers is None else view.bearers.current()
        if rule.task is TaskNeed.NONE:
            return view, bearer
        task = self._snapshots.task(view.identity, _task_thread(rule, request))
        return (view, bearer) if task is None else (view, bearer, task.task, task.upstream)

    async def _work_out(
        self, caller: Caller, request: AuthorizationRequest, min_validity: float, deadline: float
    ) -> Answer:
        rule = self.rule(ScopeName(request.scope))
        thread_id = _task_thread(rule, request)
        wait_until = deadline - ANSWER_MARGIN_SECONDS
        found = _Found()
        is_freshened = False
        for _ in range(_MOST_ROUNDS):
            # 1. One snapshot of everything; nothing is awaited between here and the answer.
            self._tick()
            looked = self._look(caller, request, rule, found)
            # 2. Do what it says; a bearer that is about to end is refreshed first, once.
            if isinstance(looked.decision, UseBearer) and not is_freshened:
                is_freshened = True
                if await self._freshen(looked.view, rule, min_validity, wait_until):
                    continue
            answer = self._answered(caller, request, rule, looked)
            if answer is not None:
                return answer
            if isinstance(looked.decision, NeedTask):
                found = await self._obtain_task(looked.view, thread_id, looked.task, wait_until)
            else:
                got = await self._obtain_bearer(looked.view, wait_until)
                found = _Found(found.task, got.bearer, got.trouble)
        # Whatever was obtained changed again at once, every time.
        raise errors.GenerationChangedError

    def _look(self, caller: Caller, request: AuthorizationRequest, rule: ScopeRule, found: _Found) -> _Looked:
        thread_id = _task_thread(rule, request)
        view = self._view(caller, request)
        self._require_fresh_store()
        task = self._snapshots.task(view.identity, thread_id) if rule.task is not TaskNeed.NONE else None
        return _Looked(view, task, decide(rule, self._situation(view, rule, request, task, found)), found)

    def _answered(
        self, caller: Caller, request: AuthorizationRequest, rule: ScopeRule, looked: _Looked
    ) -> Answer | None:
        """Make the answer that a decision comes to; None where something must be obtained first."""
        view, decision = looked.view, looked.decision
        match decision:
            case UseAssertion():
                return self._answer(caller, request, rule, view, self._assertion(caller, rule, view, looked.task))
            case UseBearer():
                return self._answer(caller, request, rule, view, self._bearer(caller, rule, view, decision))
            case Refuse():
                raise _refusal(decision, looked.found.trouble)
            case NeedTask() | NeedBearer():
                return None

    # --- the situation ------------------------------------------------------------------------------------------------

    def rule(self, scope: ScopeName) -> ScopeRule:
        """
        Return the rule of a scope that callers may use.

        Raises:
            ScopeUnknownError: there is none.
            NotAllowedError: it is for the broker itself.
        """
        rule = self._scopes.get(scope)
        if rule is None:
            raise errors.ScopeUnknownError(violations={"scope": "is not in the catalogue; ListScopes names all scopes"})
        if rule.is_bootstrap and not self._settings.grant_bootstrap:
            raise errors.NotAllowedError
        return rule

    def task_thread(self, request: AuthorizationRequest) -> ThreadId | None:
        """
        Return the thread whose task a call is signed for; None for the background task.

        Raises:
            ScopeUnknownError: there is no such scope.
            ThreadIdRequiredError: the scope needs a thread and none is named.
        """
        return _task_thread(self.rule(ScopeName(request.scope)), request)

    def rules(self) -> list[ScopeRule]:
        """Return every scope that callers may use, by name."""
        return [rule for rule in self._scopes.values() if self._settings.grant_bootstrap or not rule.is_bootstrap]

    def view_of(self, name: IdentityName | None, caller: Caller) -> IdentityView:
        """
        Return the identity a call means: the one it names, else the caller's default, else the only one there is.

        Raises:
            IdentityRequiredError: several could be meant.
            NotAllowedError: there is no such identity.
            RowCorruptError: its row cannot be used.
        """
        name = name or caller.default_identity or self._settings.default_identity
        if name is None:
            usable = self._snapshots.usable_names()
            if len(usable) > 1:
                raise errors.IdentityRequiredError(
                    violations={"identity": f"is needed, since there are {len(usable)} identities and no default"}
                )
            name = usable[0] if usable else None
        if name is not None and self._snapshots.is_unreadable(name):
            raise errors.RowCorruptError
        view = None if name is None else self._snapshots.named(name)
        if view is None:
            raise errors.NotAllowedError
        if view.trouble is not None:
            raise view.trouble
        return view

    def _view(self, caller: Caller, request: AuthorizationRequest) -> IdentityView:
        view = self.view_of(IdentityName(request.identity) if request.identity else None, caller)
        if request.expected_account_id and request.expected_account_id != view.identity.account_id:
            raise errors.AccountMismatchError
        return view

    def _require_fresh_store(self) -> None:
        age = self._store_age()
        if age > max(self._settings.max_staleness, STALE_AFTER_SECONDS):
            raise errors.StoreDownError(retry_after=1.0)

    def _store_age(self) -> float:
        return self._clock.monotonic() - self._snapshots.confirmation.monotonic

    def _situation(
        self,
        view: IdentityView,
        rule: ScopeRule,
        request: AuthorizationRequest,
        task: TaskView | None,
        found: _Found,
        *,
        loaded: bool = False,
    ) -> Situation:
        identity, backend = view.identity, view.backend
        now = self._clock.now()
        outcome: type[BrokerError] = errors.RegistrationInProgressError
        retry_after = None if found.trouble is None else found.trouble.retry_after
        fact = _task_fact(task, now)
        if fact is TaskFact.ABSENT:
            if identity.state is IdentityState.REGISTERING:
                fact, retry_after = TaskFact.COOLING_DOWN, 1.0
            elif found.task is not None:
                fact = found.task
                outcome = outcome if found.trouble is None else type(found.trouble)
            elif task is None and not loaded:
                pass  # it may live in the store: what is known against a registration says nothing yet
            elif (known := self._registrar.trouble(view, _task_thread(rule, request))) is not None:
                fact, outcome = known.fact, known.outcome
                retry_after = known.until - self._clock.monotonic()
        return Situation(
            identity_state=identity.state,
            login_expired=identity.expire_time is not None and identity.expire_time <= now,
            mode=identity.mode,
            target_allowed=not request.target_url or backend.allows_target(request.target_url),
            assertions_enabled=backend.assertions_enabled and identity.assertions_enabled,
            route_takes_assertions=backend.profile.takes_assertions(rule.name) and not _is_marked(view, rule, now),
            task=fact,
            bearer=self._bearer_fact(view, now, found),
            task_trouble=outcome,
            bearer_trouble=_bearer_trouble(found),
            retry_after=retry_after,
        )

    def _bearer_fact(self, view: IdentityView, now: float, found: _Found) -> BearerFact:
        fact = self._windows.fact(view, now)
        return found.bearer or fact if fact is BearerFact.OBTAINABLE else fact

    # --- obtaining what is missing ------------------------------------------------------------------------------------

    async def _obtain_task(
        self, view: IdentityView, thread_id: ThreadId | None, task: TaskView | None, wait_until: float
    ) -> _Found:
        """Load the task, or have it registered; return what is known when neither made it live."""
        try:
            if task is None or task.upstream is None:
                # It may live in the store: another process has registered it.
                loaded = await self._snapshots.load_task(view.identity, thread_id, wait_until=wait_until)
                if loaded is not None and _task_fact(loaded, self._clock.now()) is not TaskFact.ABSENT:
                    return _Found()
            bound = await self._registrar.ensure(view, thread_id, wait_until=wait_until)
        except BrokerError as error:
            if type(error) not in _TASK_FACTS:
                raise
            return _Found(task=_TASK_FACTS[type(error)], trouble=error)
        if bound.state is not TaskState.ACTIVE:
            return _Found(task=TaskFact.ENDED)
        known = self._snapshots.task(view.identity, thread_id)
        if known is not None and known.is_unreadable:
            raise errors.RowCorruptError(note="the sealed task id does not open; revoke the task to start anew")
        return _Found()

    async def _obtain_bearer(self, view: IdentityView, wait_until: float) -> _Found:
        """Have a bearer obtained; return what is known when there is none."""
        error = None if view.bearers is None else await self._windows.obtain(view.bearers, wait_until)
        if error is None:
            return _Found()
        if type(error) not in _BEARER_FACTS:
            raise error
        return _Found(bearer=_BEARER_FACTS[type(error)], trouble=error)

    async def _freshen(self, view: IdentityView, rule: ScopeRule, min_validity: float, wait_until: float) -> bool:
        """Do for the live bearer what its windows ask for; say whether the decision is to be made again."""
        return view.bearers is not None and await self._windows.freshen(
            view.bearers,
            wanted=max(min_validity, rule.min_lifetime or 0.0),
            longest=min(self._settings.max_lease, rule.max_lifetime or math.inf),
            wait_until=wait_until,
        )

    # --- making the answer --------------------------------------------------------------------------------------------

    def _answer(
        self,
        caller: Caller,
        request: AuthorizationRequest,
        rule: ScopeRule,
        view: IdentityView,
        authorization: Authorization,
    ) -> Answer:
        self._last_use[view.identity.id] = self._clock.now()
        grant = Grant(
            principal=caller.principal,
            identity=view.identity.name,
            generation=view.identity.generation,
            scope=rule.name,
            thread_id=request.thread_id,
            kind=authorization.kind,
            reason=authorization.reason,
            fallback_from=authorization.fallback_from or "",
            credential=authorization.connection_tag,
        )
        tallies = self._metrics.decision_tallies(
            rule.name, authorization.kind, authorization.reason, authorization.fallback_from
        )
        return Answer(
            authorization,
            grant,
            epoch=self._snapshots.epoch,
            min_lifetime=rule.min_lifetime or 0.0,
            tallies=tallies,
        )

    def last_use(self, identity_id: IdentityId) -> float | None:
        """Return when an identity's credential was last handed out by this process."""
        return self._last_use.get(identity_id)

    def used_since(self, since: float) -> list[IdentityId]:
        """Return the identities whose credential this process handed out since then, to a call or to a watch."""
        return [identity_id for identity_id, last_use in self._last_use.items() if last_use >= since]

    def _forget_gone(self, identity_id: IdentityId | None) -> None:
        if identity_id is not None and self._snapshots.view(identity_id) is None:
            self._last_use.pop(identity_id, None)

    def _assertion(self, caller: Caller, rule: ScopeRule, view: IdentityView, task: TaskView | None) -> Authorization:
        identity = view.identity
        if task is None or task.upstream is None or task.upstream_task_id is None or view.key is None:
            raise errors.RowCorruptError
        if identity.agent_runtime_id is None:
            raise errors.RowCorruptError
        self._lifetimes.used(view, task)
        # The time that is signed is the backend's, corrected; the times we give are ours.
        timestamp = self._apis[view.backend.name].signing_time(self._second)
        key = (identity.id, identity.generation, task.upstream_task_id, timestamp)
        value = self._signed.get(key)
        if value is None:
            value = self._signed[key] = assertion.authorization_header(
                view.key, identity.agent_runtime_id, task.upstream_task_id, assertion.timestamp(timestamp)
            )
            self._metrics.count(self._metrics.signatures)
        version = _upstream_version(task.upstream)
        return self._authorization(
            caller,
            view,
            rule,
            kind=CredentialKind.AGENT_ASSERTION,
            reason=DecisionReason.TASK_ASSERTION,
            fallback_from=None,
            value=value,
            lifetime=view.backend.profile.assertion_lifetime,
            ends=_earliest(identity.expire_time, task.upstream.expire_time),
            version=version,
            tag_version=version,
        )

    def _bearer(self, caller: Caller, rule: ScopeRule, view: IdentityView, decision: UseBearer) -> Authorization:
        bearer = _current(view)
        return self._authorization(
            caller,
            view,
            rule,
            kind=CredentialKind.BEARER,
            reason=decision.why,
            fallback_from=decision.fallback_from,
            value=f"Bearer {bearer.token.reveal()}",
            lifetime=self._settings.max_lease,
            ends=_earliest(
                view.identity.expire_time,
                None if bearer.expire_time is None else bearer.expire_time - EXPIRY_MARGIN_SECONDS,
            ),
            version=self._snapshots.bearer_version(bearer),
            tag_version="",  # pooled connections outlive the refresh of a bearer
            stale=view.bearers is not None and self._windows.is_stale(view.bearers, self._clock.now()),
        )

    def _authorization(
        self,
        caller: Caller,
        view: IdentityView,
        rule: ScopeRule,
        *,
        kind: CredentialKind,
        reason: DecisionReason,
        fallback_from: CredentialKind | None,
        value: str,
        lifetime: float,
        ends: float | None,
        version: str,
        tag_version: str,
        stale: bool = False,
    ) -> Authorization:
        identity = view.identity
        headers = [Header(AUTHORIZATION_HEADER, value)]
        if identity.account_id:
            headers.append(Header(ACCOUNT_HEADER, identity.account_id, sensitive=False))
        if identity.fedramp:
            headers.append(Header(FEDRAMP_HEADER, "true", sensitive=False))
        mint = float(self._second)
        lifetime = min(lifetime, self._settings.max_lease, rule.max_lifetime or lifetime)
        expire = mint + lifetime if ends is None else min(mint + lifetime, ends)
        confirmation = self._snapshots.confirmation
        offline_until = confirmation.wall + self._settings.max_staleness
        return Authorization(
            headers=tuple(headers),
            kind=kind,
            reason=reason,
            fallback_from=fallback_from,
            mint_time=mint,
            refresh_time=mint + (expire - mint) * self._jitter.uniform(0.45, 0.55),
            expire_time=expire,
            stale=stale or self._store_age() > STALE_AFTER_SECONDS,
            offline_serving_until_time=offline_until if ends is None else min(offline_until, ends),
            revision=self._revision(caller, view, kind, version),
            identity=identity.name,
            connection_tag=self._connection_tag(view, kind, tag_version),
        )

    def _revision(self, caller: Caller, view: IdentityView, kind: CredentialKind, version: str) -> str:
        """Name (identity, generation, kind, version) so that only this caller and we can use the name."""
        identity = view.identity
        digest = hashlib.blake2b(version.encode(), digest_size=12).digest()
        payload = bytes.fromhex(identity.id) + struct.pack(">QB", identity.generation, _KIND_NUMBERS[kind]) + digest
        tag = hmac.digest(self._revision_key, payload + caller.principal.encode(), hashlib.sha256)[:16]
        return _revision_text(payload + tag)

    def read_revision(self, caller: Caller, text: str) -> Revision:
        """
        Return what a revision names.

        Raises:
            RevisionUnknownError: it is none of ours, or was given to another caller.
        """
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raw = b""
        if _revision_text(raw) != text:
            raise errors.RevisionUnknownError  # another spelling of the same bytes is none of ours
        payload, tag = raw[:_REVISION_BYTES], raw[_REVISION_BYTES:]
        expected = hmac.digest(self._revision_key, payload + caller.principal.encode(), hashlib.sha256)[:16]
        if len(payload) != _REVISION_BYTES or not hmac.compare_digest(tag, expected):
            raise errors.RevisionUnknownError
        generation, number = struct.unpack_from(">QB", payload, 16)
        return Revision(IdentityId(payload[:16].hex()), generation, _KINDS[number], text)

    def _connection_tag(self, view: IdentityView, kind: CredentialKind, version: str) -> str:
        identity = view.identity
        fields = "\x00".join((view.backend.name, identity.id, str(identity.generation), kind, version))
        return hmac.digest(self._tag_key, fields.encode(), hashlib.sha256)[:16].hex()

    # --- explaining ---------------------------------------------------------------------------------------------------

    async def explain(self, caller: Caller, request: AuthorizationRequest) -> Explanation:
        """
        Return the decision a call would get now and the rows that lead to it; nothing is registered or refreshed.

        Raises:
            BrokerError: the request is not valid, as for `authorize`.
        """
        rule = self.rule(ScopeName(request.scope))
        thread_id = _task_thread(rule, request)
        view = self._view(caller, request)
        task = None
        if rule.task is not TaskNeed.NONE:
            task = self._snapshots.task(view.identity, thread_id)
            task = task or await self._snapshots.load_task(view.identity, thread_id)
        situation = self._situation(view, rule, request, task, _Found(), loaded=True)
        return Explanation(view.identity.name, rule, decide(rule, situation), account(rule, situation))


_TASK_FACTS: Final[Mapping[type[BrokerError], TaskFact | None]] = {
    errors.IdentityRejectedError: TaskFact.REFUSED,
    errors.BackendProtocolError: TaskFact.PROTOCOL_BROKEN,
    errors.BackendDownError: TaskFact.COOLING_DOWN,
    errors.BackendThrottledError: TaskFact.COOLING_DOWN,
    errors.IssuerDownError: TaskFact.COOLING_DOWN,
    errors.RegistrationInProgressError: TaskFact.COOLING_DOWN,
    errors.StoreDownError: TaskFact.COOLING_DOWN,
    errors.OverloadError: TaskFact.COOLING_DOWN,
    # Of the bearer that the registration is asked with; whoever asks again is told the same by `Registrar.trouble`.
    errors.BearerUnavailableError: TaskFact.COOLING_DOWN,
    errors.ReauthRequiredError: TaskFact.COOLING_DOWN,
    # The snapshot holds the identity as it is now: nothing is known against it, the decision is made again.
    errors.GenerationChangedError: None,
}
"""What a failed registration says of the task; other failures are the call's own."""

_BEARER_FACTS: Final[Mapping[type[BrokerError], BearerFact]] = {
    errors.BearerUnavailableError: BearerFact.NONE,
    errors.IssuerDownError: BearerFact.ISSUER_DOWN,
    errors.StoreDownError: BearerFact.ISSUER_DOWN,
    errors.ReauthRequiredError: BearerFact.REAUTH_REQUIRED,
}
"""What a bearer that could not be had says of it; other failures are the call's own."""

_KIND_NUMBERS: Final = {CredentialKind.AGENT_ASSERTION: 1, CredentialKind.BEARER: 2}
_KINDS: Final = {number: kind for kind, number in _KIND_NUMBERS.items()}
_REVISION_BYTES: Final = 16 + struct.calcsize(">QB") + 12


def _revision_text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _task_thread(rule: ScopeRule, request: AuthorizationRequest) -> ThreadId | None:
    """Return the thread whose task the scope is signed for; a thread id that the scope does not need is ignored."""
    if rule.task is not TaskNeed.THREAD:
        return None
    if not request.thread_id:
        raise errors.ThreadIdRequiredError(violations={"thread_id": f"is needed for scope {rule.name}"})
    return ThreadId(request.thread_id)


def _upstream_version(upstream: UpstreamTask) -> str:
    """Name one registration of an upstream task."""
    return f"{upstream.key}\x00{upstream.version}"


def _is_marked(view: IdentityView, rule: ScopeRule, now: float) -> bool:
    """Say whether the scope's route alone rejected a fresh assertion within the window."""
    if view.ladder is None:
        return False
    return rule.name in ladder.rejected_routes(view.ladder.document, generation=view.identity.generation, now=now)


def _task_fact(task: TaskView | None, now: float) -> TaskFact:
    if task is None:
        return TaskFact.ABSENT
    if task.task.state is not TaskState.ACTIVE:
        # The tombstone keeps a thread ended for as long as it lives.
        return TaskFact.ABSENT if task.task.purge_time is not None and task.task.purge_time <= now else TaskFact.ENDED
    upstream = task.upstream
    if upstream is None or upstream.state is not TaskState.ACTIVE or task.upstream_task_id is None:
        return TaskFact.ABSENT
    if upstream.expire_time is not None and upstream.expire_time <= now:
        return TaskFact.ABSENT
    return TaskFact.LIVE


def _bearer_trouble(found: _Found) -> type[BrokerError]:
    """Name the outcome of a call that cannot do without the bearer that could not be had now."""
    if found.bearer is BearerFact.ISSUER_DOWN and found.trouble is not None:
        return type(found.trouble)
    return errors.IssuerDownError


def _refusal(decision: Refuse, trouble: BrokerError | None) -> BrokerError:
    """Make the outcome a decision names, with what is known of its cause."""
    if trouble is not None and isinstance(trouble, decision.outcome):
        return trouble
    return decision.outcome(retry_after=decision.retry_after)


def _current(view: IdentityView) -> Bearer:
    bearer = None if view.bearers is None else view.bearers.current()
    if bearer is None:
        raise errors.BearerUnavailableError
    return bearer


def _earliest(*times: float | None) -> float | None:
    return min((time for time in times if time is not None), default=None)


def _require_validity(authorization: Authorization, min_validity: float, now: float) -> None:
    if authorization.expire_time - now < min_validity:
        raise errors.MinValidityTooLongError(
            # Rounded down: what is named here is granted when it is asked for.
            metadata={"max_seconds": str(max(0, int(authorization.expire_time - now)))}
        )
