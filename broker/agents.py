"""
Registering agents: claim in the store → the key to the backend → keep its answer → prove it → adopt it.

Two kinds of agents come this way: that of a new identity, which is REGISTERING with the key its row holds, and the next
one of an identity that changes its key, which goes on serving with the old one meanwhile. Either key is in the store
before the backend hears of it, and at most one process at a time goes on with it, under a lease and a fencing token: no
key is registered twice because two tried, and none that the backend knows is lost. The backend has no way to take an
agent back and makes another one of each repeat, so its answer is written down before anything else is done, and a store
that is away is asked until it is back.

Each registration is a job of the broker's own: whoever asked may give up, and what was cut off is gone on with by
whichever process comes first.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from broker import errors
from broker.backend_api import BackendApi
from broker.clock import Clock
from broker.errors import BrokerError
from broker.keyring import Keyring
from broker.model import Identity, IdentityId, IdentityState, PendingAgent, Task
from broker.outbound import OutboundFailure
from broker.registration import Registrar, fresher_bearer, live_bearer
from broker.request_names import KeyChange, RequestNames
from broker.snapshots import IdentityView, Snapshots, open_private_key
from broker.store import Store
from broker.telemetry import Metrics, logger

_LOG: Final = logger(__name__)

_FIRST_COOL_DOWN: Final = 1.0
_LONGEST_COOL_DOWN: Final = 60.0
_REFUSED_COOL_DOWN: Final = 300.0
_FIRST_POLL: Final = 0.02
_LONGEST_POLL: Final = 0.5

_SHORTEST_STEP: Final = 1.0
_ASKING_SHARE: Final = 0.5
_PROVING_SHARE: Final = 0.3
"""Of the lease: what is left of it is for the store."""
_MOST_PROOFS: Final = 256
"""Upstream tasks that are registered before a change of key; those of other threads follow on their next use."""

_UNDER_WAY: Final = frozenset({IdentityState.REGISTERING, IdentityState.ROTATING})

_AGAINST_THE_KEY: Final = (
    errors.BackendProtocolError,
    errors.BackendUnsupportedError,
    errors.BearerUnavailableError,
    errors.IdentityRejectedError,
    errors.ReauthRequiredError,
    errors.RowCorruptError,
)
"""What ends a change of key: trying the same key again would not help. After anything else it is tried again."""

Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True)
class CoolDown:
    """Why a registration waits, until when (monotonic), and for which version of its identity: a newer one voids it."""

    version: int
    until: float
    seconds: float
    outcome: type[BrokerError]
    time: float
    """When it failed last, in Unix seconds."""


class AgentRegistrar:
    """Sees to it that identities get the agents they are on their way to."""

    def __init__(
        self,
        *,
        store: Store,
        snapshots: Snapshots,
        registrar: Registrar,
        keyring: Keyring,
        apis: Mapping[str, BackendApi],
        clock: Clock,
        metrics: Metrics,
        lease_seconds: float,
        jitter: random.Random,
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._registrar = registrar
        self._keyring = keyring
        self._apis = apis
        self._clock = clock
        self._metrics = metrics
        self._lease_seconds = lease_seconds
        self._jitter = jitter
        self._requests = RequestNames(keyring, clock)
        # By generation too: a change of key that begins as the one before it ends is not that one's.
        self._jobs: dict[tuple[IdentityId, int], asyncio.Task[BrokerError | None]] = {}
        self._cool_downs: dict[IdentityId, CoolDown] = {}

    # --- asking -------------------------------------------------------------------------------------------------------

    async def finish(self, view: IdentityView, *, wait_until: float) -> IdentityView:
        """
        Go on with the agent that an identity is on its way to, and return the identity with it.

        Args:
            view: an identity that is REGISTERING, or whose change of key was begun in the store.
            wait_until: monotonic time until which it is waited for; it goes on afterwards.

        Raises:
            RegistrationInProgressError: not done by then.
            GenerationChangedError: the identity was disabled, deleted or changed otherwise meanwhile.
            BrokerError: the registration's outcome. After one that passes (the backend is away) it is tried again by
                itself; one that does not has ended a change of key, and the old key goes on.
        """
        job = self._job(view)
        await asyncio.wait({job}, timeout=max(0.0, wait_until - self._clock.monotonic()))
        if not job.done():
            raise errors.RegistrationInProgressError(retry_after=1.0)
        error = job.result()
        if error is not None:
            raise error.again() from error
        return self._snapshots.view(view.identity.id) or view

    def resume(self) -> None:
        """
        Go on with what was cut off or failed, where its time has come; does not wait for it.

        That an identity changes its key shows in its state, but for one that is REJECTED or waits for a new login: for
        such a one only the process goes on that began it, or who is asked again.
        """
        now = self._clock.monotonic()
        cooling: dict[IdentityId, CoolDown] = {}
        for view in self._snapshots.views():
            cool_down = self.trouble(view.identity)
            if cool_down is not None:
                cooling[view.identity.id] = cool_down
            is_due = view.identity.state in _UNDER_WAY if cool_down is None else cool_down.until <= now
            if is_due and view.trouble is None:
                self._job(view)
        self._cool_downs = cooling

    def trouble(self, identity: Identity) -> CoolDown | None:
        """Return why the registration of an agent waits; None when none does."""
        cool_down = self._cool_downs.get(identity.id)
        return None if cool_down is None or cool_down.version != identity.version else cool_down

    async def close(self) -> None:
        """Give up what is under way; it goes on at the next start."""
        for job in list(self._jobs.values()):
            job.cancel()
        if self._jobs:
            await asyncio.wait(set(self._jobs.values()))

    # --- the job ------------------------------------------------------------------------------------------------------

    def _job(self, view: IdentityView) -> asyncio.Task[BrokerError | None]:
        epoch = (view.identity.id, view.identity.generation)
        job = self._jobs.get(epoch)
        if job is None:
            job = asyncio.create_task(self._run(view), name="register-agent")
            self._jobs[epoch] = job
            job.add_done_callback(lambda _: self._jobs.pop(epoch, None))
        return job

    async def _run(self, view: IdentityView) -> BrokerError | None:
        identity = view.identity
        try:
            await self._obtain(view)
        except errors.GenerationChangedError as error:
            # What stands in the store holds, and nothing is tried again.
            self._cool_downs.pop(identity.id, None)
            return await self._outcome_of_others(identity, error)
        except BrokerError as error:
            self._failed(identity, error)
            return error
        except Exception as error:  # noqa: BLE001 - the job must end with an outcome for whoever waits
            _LOG.error("agent_registration_crashed", identity=identity.name, exc_info=error)
            defect = errors.InternalError()
            self._failed(identity, defect)
            return defect
        self._cool_downs.pop(identity.id, None)
        self._metrics.count(self._metrics.registrations, view.backend.name, "agent", "registered")
        _LOG.info("agent_registered", identity=identity.name, backend=view.backend.name)
        return None

    async def _obtain(self, view: IdentityView) -> None:
        """
        Bring the agent from its key to its use.

        Raises:
            GenerationChangedError: another process did it, or the identity changed meanwhile.
        """
        while True:
            held = await self._claim(view.identity)
            try:
                if await self._go_on(view, held):
                    return
            except asyncio.CancelledError:
                # The broker is stopping, and the next one need not wait for the lease.
                await asyncio.shield(self._release(view.identity, held))
                raise
            except Exception as error:
                if held.sealed_private_key is not None and isinstance(error, _AGAINST_THE_KEY):
                    await self._abandon(view.identity, held, error)
                else:
                    await self._release(view.identity, held)
                raise
            # The claim was taken over: what its holder makes of it is waited for.

    async def _claim(self, identity: Identity) -> PendingAgent:
        poll = _FIRST_POLL
        while True:
            claim = await self._store.claim_agent(
                identity.id,
                generation=identity.generation,
                now=self._clock.now(),
                lease_seconds=self._lease_seconds,
            )
            if claim.is_ours:
                return claim.pending
            await self._clock.sleep(poll)
            poll = min(poll * 2, _LONGEST_POLL)

    async def _go_on(self, view: IdentityView, held: PendingAgent) -> bool:
        """Take each step that is not done yet; False when the claim was lost."""
        if held.agent_runtime_id is None:
            public_key = held.public_key or view.identity.public_key or ""
            runtime_id = await self._ask_backend(view, public_key)
            recorded = await self._kept(
                lambda: self._store.record_agent(held, agent_runtime_id=runtime_id, now=self._clock.now())
            )
            if recorded is None:
                _LOG.warning("agent_registered_too_late", identity=view.identity.name)
                return False
            held = recorded
        proofs = [] if held.sealed_private_key is None else await self._prove(view, held)
        adopted = await self._kept(lambda: self._store.adopt_agent(held, now=self._clock.now()))
        if adopted is None:
            return False
        # The tasks first, so that no call finds the new agent without them.
        for task in proofs:
            self._snapshots.publish_task(task)
        self._snapshots.publish_identity(adopted)
        return True

    async def _ask_backend(self, view: IdentityView, public_key: str) -> str:
        api = self._apis[view.backend.name]
        bearer = await live_bearer(view, self._clock)
        deadline = self._clock.monotonic() + max(_SHORTEST_STEP, self._lease_seconds * _ASKING_SHARE)
        for last_try in (False, True):
            try:
                return await api.register_agent(
                    public_key=public_key,
                    bearer=bearer.token,
                    fedramp=view.identity.fedramp,
                    deadline=deadline,
                )
            except OutboundFailure as failure:
                # A 401 first costs one refresh of the bearer; only a refused fresh one refuses the key.
                fresh = None if last_try else await fresher_bearer(view, bearer, failure)
                if fresh is None:
                    raise failure.as_error() from failure
                bearer = fresh
        raise AssertionError  # pragma: no cover - the second try returns or raises

    async def _kept(self, write: Callable[[], Awaitable[Kept]]) -> Kept:
        """
        Write down what cannot be asked for again, however long the store is away.

        Past the lease too: as long as nobody took the claim over it is still ours.
        """
        poll = _FIRST_POLL
        while True:
            try:
                return await write()
            except errors.StoreDownError:
                await self._clock.sleep(poll)
                poll = min(poll * 2, _LONGEST_POLL)

    # --- proving a new key --------------------------------------------------------------------------------------------

    async def _prove(self, view: IdentityView, held: PendingAgent) -> list[Task]:
        """
        Register the background task and those of the threads in use with the new agent, while the old one serves.

        So the backend has accepted the new key before anything rests on it, and the switch costs no caller a wait. What
        is not registered in time is left to its next use; one refusal, or no success at all, is an outcome.

        Raises:
            BrokerError: the backend did not accept the new agent.
        """
        successor = replace(
            view,
            identity=replace(
                view.identity,
                generation=held.generation,
                agent_runtime_id=held.agent_runtime_id,
                public_key=held.public_key,
                sealed_private_key=held.sealed_private_key,
            ),
        )
        successor = replace(successor, key=open_private_key(self._keyring, successor.identity))
        wait_until = self._clock.monotonic() + max(_SHORTEST_STEP, self._lease_seconds * _PROVING_SHARE)
        background = await self._registrar.register_ahead(successor, None, wait_until=wait_until)
        threads = self._snapshots.threads_in_use(view.identity, limit=_MOST_PROOFS)
        outcomes = await asyncio.gather(
            *(self._registrar.register_ahead(successor, thread_id, wait_until=wait_until) for thread_id in threads),
            return_exceptions=True,
        )
        proofs = [background]
        for outcome in outcomes:
            if isinstance(outcome, Task):
                proofs.append(outcome)
            elif not isinstance(outcome, Exception) or isinstance(outcome, _AGAINST_THE_KEY):
                raise outcome
        return proofs

    # --- how it ends --------------------------------------------------------------------------------------------------

    async def _release(self, identity: Identity, held: PendingAgent) -> None:
        try:
            await self._store.release_agent(held, now=self._clock.now())
        except errors.StoreDownError:
            _LOG.warning("agent_claim_not_released", identity=identity.name)  # the lease will run out

    async def _abandon(self, identity: Identity, held: PendingAgent, error: BrokerError) -> None:
        """End a change of key that the backend refused; the old key goes on as before."""
        fingerprint = self._requests.of("", KeyChange(identity.name)).fingerprint
        restored = await self._kept(
            lambda: self._store.abandon_agent(held, now=self._clock.now(), fingerprint=fingerprint)
        )
        self._registrar.forget_troubles(identity.id)
        if restored is None:
            raise errors.GenerationChangedError from error
        self._snapshots.publish_identity(restored)
        error.metadata["hint"] = "the new key was given up, and the identity goes on with the one it had"
        _LOG.warning("key_change_abandoned", identity=identity.name, reason=error.reason, note=error.note)

    async def _outcome_of_others(self, before: Identity, error: BrokerError) -> BrokerError | None:
        """Take in what stands now; None when that is the agent which was to be registered here."""
        try:
            current = await self._store.identity(before.id)
        except BrokerError as failure:
            return failure
        if current is None:
            return errors.IdentityRevokedError()
        self._snapshots.publish_identity(current)
        if current.state in (IdentityState.DISABLED, IdentityState.DELETED):
            return error
        if before.state is IdentityState.REGISTERING:
            return None if current.agent_runtime_id is not None else error
        return None if current.public_key != before.public_key else error

    def _failed(self, identity: Identity, error: BrokerError) -> None:
        """
        Count a failure, and have the next try wait a while.

        There is none of a change of key that came to nothing, and none waits for an identity that has changed since.
        """
        self._metrics.count(self._metrics.registrations, identity.backend, "agent", error.reason)
        _LOG.warning("agent_registration_failed", identity=identity.name, reason=error.reason, note=error.note)
        if identity.state is not IdentityState.REGISTERING and isinstance(error, _AGAINST_THE_KEY):
            self._cool_downs.pop(identity.id, None)
            return
        before = self._cool_downs.get(identity.id)
        if isinstance(error, errors.IdentityRejectedError):
            seconds = _REFUSED_COOL_DOWN
        else:
            seconds = min(before.seconds * 2 if before else _FIRST_COOL_DOWN, _LONGEST_COOL_DOWN)
        wait = max(seconds * self._jitter.uniform(0.5, 1.0), error.retry_after or 0.0)
        self._cool_downs[identity.id] = CoolDown(
            identity.version, self._clock.monotonic() + wait, seconds, type(error), self._clock.now()
        )
