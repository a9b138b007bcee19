"""
What goes on beside the calls: following the store, resuming registrations, prewarming, keeping bearers fresh, pruning.

Each is a loop of its own that survives its failures: they are logged once a change, and tried again. Nothing here is in
the way of a call, and warming up waits for none of it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from broker import errors
from broker.agents import AgentRegistrar
from broker.audit import AuditLog
from broker.authorization import Authorizer
from broker.bearer import BearerSource, Phase
from broker.bearer.file import FileSource
from broker.clock import Clock
from broker.errors import BrokerError
from broker.lifetimes import Lifetimes
from broker.model import IdentityId, IdentityState, Mode, TaskState
from broker.registration import Registrar
from broker.snapshots import IdentityView, Snapshots
from broker.telemetry import logger

_LOG: Final = logger(__name__)

_BEARER_SECONDS: Final = 1.0
_RESUME_SECONDS: Final = 0.5
_PREWARM_SECONDS: Final = 0.5
_PRELOAD_SECONDS: Final = 0.5
_AUDIT_SECONDS: Final = 0.5
_USES_SECONDS: Final = 30.0
_PRUNE_SECONDS: Final = 60.0
"""Also how long after the start it begins: there may be very much to prune, and callers come back all at once."""
_PREWARM_PATIENCE: Final = 60.0
_MOST_PREWARMS: Final = 8
_BITE: Final = 500
"""How many identities are looked at before the calls get their turn."""
_REFRESHED_STATES: Final = frozenset({IdentityState.REGISTERING, IdentityState.ACTIVE, IdentityState.ROTATING})


class Upkeep:
    """The broker's background loops."""

    def __init__(
        self,
        *,
        snapshots: Snapshots,
        registrar: Registrar,
        agents: AgentRegistrar,
        lifetimes: Lifetimes,
        authorizer: Authorizer,
        bearer_sources: Mapping[str, BearerSource],
        audit: AuditLog,
        clock: Clock,
        poll_seconds: float,
        refresh_recent_seconds: float,
    ) -> None:
        self._snapshots = snapshots
        self._registrar = registrar
        self._agents = agents
        self._lifetimes = lifetimes
        self._authorizer = authorizer
        self._files = [source for source in bearer_sources.values() if isinstance(source, FileSource)]
        self._audit = audit
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._refresh_recent_seconds = refresh_recent_seconds
        self._loops: list[asyncio.Task[None]] = []
        self._running = asyncio.Event()
        self._running.set()
        self._prewarming: dict[IdentityId, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin every loop."""
        for name, seconds, work in (
            ("follow-store", self._poll_seconds, self._follow),
            ("resume-registrations", _RESUME_SECONDS, self._resume),
            ("prewarm", _PREWARM_SECONDS, self._prewarm),
            ("read-bearer-files", _BEARER_SECONDS, self._read_bearer_files),
            ("refresh-ahead", _BEARER_SECONDS, self._refresh_ahead),
            ("flush-audit", _AUDIT_SECONDS, self._flush_audit),
            ("write-uses", _USES_SECONDS, self._lifetimes.write_uses),
        ):
            self._loops.append(asyncio.create_task(self._loop(name, seconds, work), name=name))
        self._loops.append(asyncio.create_task(self._prune(), name="prune"))
        self._loops.append(asyncio.create_task(self._preload(), name="preload-tasks"))

    def pause(self) -> None:
        """Let the loops stand still after what they are doing: for measuring the calls alone."""
        self._running.clear()

    def resume(self) -> None:
        """Let the loops go on."""
        self._running.set()

    async def stop(self) -> None:
        """End every loop, and what they began."""
        tasks = [*self._loops, *self._prewarming.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, self._lifetimes.stop(), return_exceptions=True)

    async def _loop(self, name: str, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        failing = ""
        while True:
            await self._running.wait()
            try:
                await work()
                outcome = ""
            except BrokerError as error:
                outcome = error.reason
            except Exception as error:  # noqa: BLE001 - a loop must not end
                outcome = type(error).__name__
                if outcome != failing:
                    _LOG.error("upkeep_crashed", loop=name, exc_info=error)
            if outcome != failing:
                if outcome:
                    _LOG.warning("upkeep_failing", loop=name, reason=outcome)
                else:
                    _LOG.info("upkeep_recovered", loop=name)
                failing = outcome
            await self._clock.sleep(seconds)

    # --- the loops ----------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        await self._snapshots.follow()

    async def _resume(self) -> None:
        self._agents.resume()

    async def _prewarm(self) -> None:
        """Have the background task of every agent live before it is needed; a failure is tried again when it may."""
        for view in self._snapshots.views():
            identity_id = view.identity.id
            if identity_id in self._prewarming or len(self._prewarming) >= _MOST_PREWARMS:
                continue
            if not _wants_background(view, self._clock.now()) or self._background_settled(view) or self._is_idle(view):
                continue
            if self._registrar.trouble(view, None) is None:
                task = asyncio.create_task(self._prewarm_one(view), name="prewarm-one")
                self._prewarming[identity_id] = task

    def _background_settled(self, view: IdentityView) -> bool:
        """
        Say whether there is nothing to prewarm: it lives, or only somebody else can mend it.

        What an operator took down only RegisterTask begins anew; an id that does not open only RevokeTask clears.
        """
        task = self._snapshots.task(view.identity, None)
        if task is None:
            return False
        return task.upstream_task_id is not None or task.task.state is not TaskState.ACTIVE or task.is_unreadable

    def _is_idle(self, view: IdentityView) -> bool:
        """Say whether nobody needs the background task: it was pruned for that, or its identity just lies there."""
        task = self._snapshots.task(view.identity, None)
        return self._lifetimes.is_idle(max(view.identity.update_time, 0.0 if task is None else task.task.last_use_time))

    async def _prewarm_one(self, view: IdentityView) -> None:
        try:
            await self._registrar.ensure(view, None, wait_until=self._clock.monotonic() + _PREWARM_PATIENCE)
        except BrokerError:
            pass  # the registrar has logged it and knows when it may be tried again
        finally:
            self._prewarming.pop(view.identity.id, None)

    async def _read_bearer_files(self) -> None:
        """Look for newer tokens in files; each source tells of what it finds by itself."""
        for source in self._files:
            with contextlib.suppress(errors.IssuerDownError):
                await source.refresh()

    async def _refresh_ahead(self) -> None:
        """Have the bearers of identities that are in use refreshed where they are due; nothing is waited for."""
        now = self._clock.now()
        seen: set[BearerSource] = set()
        for number, identity_id in enumerate(self._authorizer.used_since(now - self._refresh_recent_seconds)):
            if number % _BITE == _BITE - 1:
                await asyncio.sleep(0)
            view = self._snapshots.view(identity_id)
            if view is None or view.bearers is None or view.identity.state not in _REFRESHED_STATES:
                continue
            if view.bearers.is_empty or view.bearers in seen:
                continue
            seen.add(view.bearers)
            if view.bearers.phase(now) is not Phase.FRESH:
                view.bearers.refresh_soon()

    async def _flush_audit(self) -> None:
        self._audit.flush_repeats()

    async def _prune(self) -> None:
        await self._clock.sleep(_PRUNE_SECONDS)
        await self._loop("prune", _PRUNE_SECONDS, self._lifetimes.prune)

    async def _preload(self) -> None:
        """Take every live task into memory, once; as often as it needs."""
        failed = False
        while True:
            try:
                await self._snapshots.preload_tasks()
            except Exception as error:  # noqa: BLE001 - what is not in memory is not served when the store goes away
                if not failed:
                    _LOG.warning("preload_failed", exc_info=error)
                failed = True
                await self._clock.sleep(_PRELOAD_SECONDS)
            else:
                return


def _wants_background(view: IdentityView, now: float) -> bool:
    identity = view.identity
    return (
        identity.mode is Mode.AGENT
        and identity.state in (IdentityState.ACTIVE, IdentityState.ROTATING)
        and (identity.expire_time is None or now < identity.expire_time)
        and identity.assertions_enabled
        and view.backend.assertions_enabled
        and view.trouble is None
    )
