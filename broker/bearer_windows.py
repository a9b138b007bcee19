"""
When a bearer is handed out, refreshed beside, or waited for: the windows of `broker.bearer.Phase` as callers meet them.

Nobody whose token still lives waits for anything but an exchange that is under way, and for that never past its
deadline. When waiting was in vain the token is served as long as it lives, and the answer says that it is stale.
"""

import asyncio

from broker import errors
from broker.bearer import EXPIRY_MARGIN_SECONDS, Bearer, BearerSource, Phase
from broker.clock import Clock
from broker.errors import BrokerError
from broker.policy import BearerFact
from broker.snapshots import IdentityView, Snapshots


class BearerWindows:
    """Keeps callers and the sources of their bearers together."""

    def __init__(self, snapshots: Snapshots, clock: Clock) -> None:
        self._snapshots = snapshots
        self._clock = clock
        self._refreshes: dict[BearerSource, asyncio.Task[BrokerError | None]] = {}

    def fact(self, view: IdentityView, now: float) -> BearerFact:
        """Say what is known of an identity's bearer without asking anybody."""
        if view.bearers is None or view.bearers.is_empty:
            return BearerFact.NONE
        bearer = view.bearers.current()
        if bearer is None or not bearer.is_live(now):
            return BearerFact.OBTAINABLE
        return BearerFact.REAUTH_REQUIRED if self._snapshots.is_rejected(view, bearer) else BearerFact.LIVE

    def is_stale(self, source: BearerSource, now: float) -> bool:
        """Say whether a refresh that was due has failed, or was waited for in vain."""
        standing = source.standing
        return standing.trouble is not None or (standing.in_flight and source.phase(now) is Phase.MANDATORY)

    async def obtain(self, source: BearerSource, wait_until: float) -> BrokerError | None:
        """
        Have a newer bearer obtained, once for everybody who waits; return why there is none.

        Args:
            source: what obtains it, in a job that goes on when this caller gives up.
            wait_until: monotonic time at which it does.
        """
        refresh = self._refreshes.get(source)
        if refresh is None:
            refresh = asyncio.create_task(self._refresh(source, source.current()), name="refresh-bearer")
            self._refreshes[source] = refresh
            refresh.add_done_callback(lambda _: self._refreshes.pop(source, None))
        await asyncio.wait({refresh}, timeout=max(0.0, wait_until - self._clock.monotonic()))
        if not refresh.done():
            return errors.IssuerDownError(retry_after=1.0)
        error = refresh.result()
        return error and error.again()

    async def freshen(self, source: BearerSource, *, wanted: float, longest: float, wait_until: float) -> bool:
        """
        Do for a live bearer what its phase asks for; return whether anything was waited for.

        Args:
            source: what has it.
            wanted: seconds for which the answer shall be good.
            longest: seconds for which an answer can be good, whatever the bearer: for more nothing is refreshed.
            wait_until: monotonic time until which the caller waits at most.
        """
        now = self._clock.now()
        bearer = source.current()
        if bearer is not None and wanted <= longest and _is_worth_refreshing(bearer, wanted, now):
            await self.obtain(source, wait_until)
            return True
        phase = source.phase(now)
        if phase is Phase.FRESH:
            return False
        source.refresh_soon()
        if phase is not Phase.MANDATORY:
            return False
        await asyncio.sleep(0)  # so that an exchange that need not wait for its turn is under way
        if not source.standing.in_flight:
            return False
        await self.obtain(source, wait_until)
        return True

    async def _refresh(self, source: BearerSource, beyond: Bearer | None) -> BrokerError | None:
        try:
            await source.refresh(beyond=beyond)
        except BrokerError as error:
            return error
        self._snapshots.touch()
        return None


def _is_worth_refreshing(bearer: Bearer, wanted: float, now: float) -> bool:
    """Say whether the bearer ends too early for what is wanted, and a new one of the same length would not."""
    if bearer.expire_time is None or now + wanted <= bearer.expire_time - EXPIRY_MARGIN_SECONDS:
        return False
    return bearer.obtain_time is None or bearer.obtain_time + wanted <= bearer.expire_time - EXPIRY_MARGIN_SECONDS
