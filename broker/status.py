"""
How each identity is doing, read from memory: what it holds, what is due next, and what went wrong last.

Nothing is asked of store, backend or issuer, so that it can be told while any of them is away.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from broker.agents import AgentRegistrar
from broker.authorization import Authorizer
from broker.clock import Clock
from broker.errors import BrokerError, ReauthRequiredError
from broker.ladder import rejected_routes
from broker.lifetimes import replace_time
from broker.model import Identity, IdentityId, IdentityState, ScopeName
from broker.registration import Registrar
from broker.snapshots import IdentityView, Snapshots


class BearerState(StrEnum):
    """How an identity's bearer stands."""

    LIVE = "LIVE"
    REFRESHING = "REFRESHING"
    """Live, and an exchange is under way."""
    REFRESH_FAILING = "REFRESH_FAILING"
    """Live, and the last exchange failed."""
    ABSENT = "ABSENT"
    """None is at hand, and one can be had."""
    REAUTH_REQUIRED = "REAUTH_REQUIRED"
    """It cannot be refreshed any more, or the backend rejects it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mishap:
    """What went wrong and has not gone right since. Times in Unix seconds, None where they are not known."""

    reason: str
    time: float | None = None
    retry_time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityStatus:
    """How one identity is doing. Times in Unix seconds."""

    identity: Identity
    state_reason: str
    """Why the state is not ACTIVE, or why it cannot be used at all; empty otherwise."""
    active_task_count: int
    watch_count: int
    last_use_time: float | None
    bearer_state: BearerState | None
    bearer_expire_time: float | None
    bearer_refresh_time: float | None
    task_replace_time: float | None
    """When its background task has a successor registered."""
    rejected_scopes: tuple[ScopeName, ...]
    mishap: Mishap | None


class StatusReader:
    """Puts together what the parts of the broker know of identities."""

    def __init__(
        self,
        *,
        snapshots: Snapshots,
        registrar: Registrar,
        agents: AgentRegistrar,
        authorizer: Authorizer,
        watched: Callable[[IdentityId], int],
        clock: Clock,
    ) -> None:
        """
        Take the parts.

        Args:
            snapshots: the identities and tasks.
            registrar: knows which registrations of tasks fail.
            agents: knows which registrations of agents fail.
            authorizer: knows when an identity was last used.
            watched: returns how many subscriptions are for an identity.
            clock: the time.
        """
        self._snapshots = snapshots
        self._registrar = registrar
        self._agents = agents
        self._authorizer = authorizer
        self._watched = watched
        self._clock = clock

    def identities(self) -> Iterator[IdentityStatus]:
        """Tell of every identity that is not deleted, ordered by name."""
        views = [view for view in self._snapshots.views() if view.identity.state is not IdentityState.DELETED]
        views.sort(key=lambda view: view.identity.name)
        counts = self._snapshots.active_task_counts()
        for view in views:
            yield self._status(view, counts[view.identity.id])

    def _status(self, view: IdentityView, active_task_count: int) -> IdentityStatus:
        identity, now = view.identity, self._clock.now()
        source = None if view.bearers is None or view.bearers.is_empty else view.bearers
        bearer = None if source is None else source.current()
        document = "" if view.ladder is None else view.ladder.document
        return IdentityStatus(
            identity=identity,
            state_reason=view.trouble.reason if view.trouble else identity.state_reason,
            active_task_count=active_task_count,
            watch_count=self._watched(identity.id),
            last_use_time=self._authorizer.last_use(identity.id),
            bearer_state=self._bearer_state(view, now),
            bearer_expire_time=None if bearer is None else bearer.expire_time,
            bearer_refresh_time=None if source is None else source.standing.refresh_time,
            task_replace_time=self._task_replace_time(view),
            rejected_scopes=rejected_routes(document, generation=identity.generation, now=now),
            mishap=self._mishap(view),
        )

    def _bearer_state(self, view: IdentityView, now: float) -> BearerState | None:
        source = view.bearers
        if source is None or source.is_empty:
            return None
        bearer, standing = source.current(), source.standing
        if bearer is not None and self._snapshots.is_rejected(view, bearer):
            return BearerState.REAUTH_REQUIRED
        if standing.trouble is ReauthRequiredError:
            return BearerState.REAUTH_REQUIRED
        if bearer is None or not bearer.is_live(now):
            return BearerState.ABSENT
        if standing.in_flight:
            return BearerState.REFRESHING
        return BearerState.LIVE if standing.trouble is None else BearerState.REFRESH_FAILING

    def _task_replace_time(self, view: IdentityView) -> float | None:
        task = self._snapshots.task(view.identity, None)
        if task is None or task.upstream is None or task.upstream_task_id is None:
            return None
        return replace_time(view.backend, task.upstream)

    def _mishap(self, view: IdentityView) -> Mishap | None:
        """Return the latest of what stands against an identity now."""
        now, monotonic = self._clock.now(), self._clock.monotonic()
        found: list[Mishap] = []
        if (agent := self._agents.trouble(view.identity)) is not None:
            found.append(_mishap(agent.outcome, agent.time, now + max(0.0, agent.until - monotonic)))
        if (task := self._registrar.last_trouble(view, None)) is not None:
            found.append(_mishap(task.outcome, now - (monotonic - task.since), now + max(0.0, task.until - monotonic)))
        standing = None if view.bearers is None or view.bearers.is_empty else view.bearers.standing
        if standing is not None and standing.trouble is not None:
            found.append(_mishap(standing.trouble, standing.trouble_time, standing.retry_time))
        return max(found, key=lambda mishap: mishap.time or 0.0, default=None)


def _mishap(outcome: type[BrokerError], time: float | None, retry_time: float | None) -> Mishap:
    return Mishap(reason=outcome.reason, time=time, retry_time=retry_time)
