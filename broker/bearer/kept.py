"""
What all sources with an exchange share: when to refresh, one exchange at a time, its rate, and the memory of failures.

A bearer's life has two windows at its end, as botocore's RefreshableCredentials have them: in the advisory one a job
refreshes it while everybody is served what there is, in the mandatory one callers wait for the exchange. Nothing here
runs by itself: whoever serves or keeps up a source looks at its phase and says `refresh_soon`.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol, cast

from broker.bearer import EXPIRY_MARGIN_SECONDS, Bearer, BearerSource, Phase, Standing
from broker.bearer.turns import Turn, Turns
from broker.clock import Clock
from broker.errors import BrokerError, IssuerDownError, ReauthRequiredError, StoreDownError
from broker.telemetry import Metrics, logger

_LOG: Final = logger(__name__)

_LONGEST_ADVISORY: Final = 900.0
_ADVISORY_SHARE: Final = 1 / 4
_LONGEST_MANDATORY: Final = 60.0
_MANDATORY_SHARE: Final = 1 / 20
_LARGEST_SHARE: Final = 1 / 2
_SPREAD: Final = 1 / 2
"""The part of the time between the two windows over which refreshes of equal expiries are spread."""

_FIRST_PAUSE: Final = 30.0
_LONGEST_PAUSE: Final = 900.0
_FIRST_PAUSE_WITHOUT: Final = 1.0
"""While there is no live bearer callers wait for one, so that the first tries come soon."""
_LONGEST_PAUSE_WITHOUT: Final = 30.0
_LEAST_PAUSE: Final = 1.0
_MOST_DOUBLINGS: Final = 10
_LOOK_SECONDS: Final = 5.0
"""How often it is looked whether something changed since the issuer refused for good."""


class Exchange(Protocol):
    """How one kind of token is obtained. Its calls never overlap."""

    async def obtain(self, *, rejected: Bearer | None) -> Bearer:
        """
        Obtain a token.

        `expire_time` of the bearer counts from before the request was sent, which is its `obtain_time`.

        Args:
            rejected: the bearer that a backend refused, when that is why another is wanted.

        Raises:
            IssuerDownError: not now; `retry_after` is what the issuer asked for.
            StoreDownError: not while the store is away that the exchange needs.
            ReauthRequiredError: not any more, until somebody changes something.
        """
        ...

    async def close(self) -> None:
        """Let go of what it holds."""
        ...


@dataclass(frozen=True, slots=True)
class Windows:
    """
    How long before its end a bearer is refreshed, in seconds; None is a share of its life.

    Neither window is ever longer than half of the life: a token that is due as soon as it came would be refreshed
    without end.
    """

    advisory: float | None = None
    mandatory: float | None = None
    longest_advisory: float = _LONGEST_ADVISORY
    advisory_share: float = _ADVISORY_SHARE

    def of(self, bearer: Bearer) -> tuple[float, float]:
        """Return the lengths of the advisory and of the mandatory window of a bearer that ends."""
        life = math.inf
        if bearer.expire_time is not None and bearer.obtain_time is not None:
            life = max(0.0, bearer.expire_time - bearer.obtain_time)
        mandatory = self.mandatory
        if mandatory is None:
            # Not so short that the time in which a bearer is no longer handed out is most of it.
            mandatory = max(min(_LONGEST_MANDATORY, life * _MANDATORY_SHARE), 2 * EXPIRY_MARGIN_SECONDS)
        mandatory = min(mandatory, life * _LARGEST_SHARE)
        advisory = self.advisory
        if advisory is None:
            advisory = min(self.longest_advisory, life * self.advisory_share)
        return max(min(advisory, life * _LARGEST_SHARE), mandatory), mandatory


@dataclass(frozen=True, slots=True)
class _Failure:
    """How the last try failed; everybody gets an exception object of their own."""

    kind: type[BrokerError]
    note: str
    until: float
    """Monotonic time before which it is not tried again."""
    time: float
    """When it was, in Unix seconds."""

    def error(self, clock: Clock) -> BrokerError:
        wait = None if self.kind is ReauthRequiredError else max(0.0, self.until - clock.monotonic())
        return self.kind(retry_after=wait, note=self.note)


@dataclass(slots=True, eq=False)
class _Job:
    """An exchange that is waiting for its turn or under way."""

    urgent: bool
    rejected: Bearer | None
    before: Bearer | None
    """What there was when it was asked for; the exchange is of no use once somebody else brought another."""
    turn: Turn | None = None
    """None while it is only being looked whether there is any use in asking."""


async def never_changed() -> bool:
    """Say that nothing changes by itself: what was refused stays refused until somebody says otherwise."""
    return False


class KeptBearer(BearerSource):
    """
    The bearer that an exchange brings, refreshed ahead of its end.

    Args:
        exchange: how one is obtained.
        name: the configured source, for logs and metrics.
        turns: the line at the issuer, shared by all who exchange with it.
        clock: times everything.
        metrics: counts the exchanges.
        jitter: spreads what would come together.
        windows: when to refresh.
        bearer: what is there already.
        changed: asked, when the issuer refused for good, whether what it refused has changed since.
        on_change: told after a bearer was taken in.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        name: str,
        turns: Turns,
        clock: Clock,
        metrics: Metrics,
        jitter: random.Random,
        windows: Windows | None = None,
        bearer: Bearer | None = None,
        changed: Callable[[], Awaitable[bool]] = never_changed,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._exchange = exchange
        self._name = name
        self._turns = turns
        self._clock = clock
        self._metrics = metrics
        self._jitter = jitter
        self._windows = windows or Windows()
        self._changed = changed
        self._on_change = on_change
        self._bearer: Bearer | None = None
        self._advisory_time = self._mandatory_time = math.inf
        self._failure: _Failure | None = None
        self._strikes = 0
        self._mended = 0
        self._job: _Job | None = None
        self._task: asyncio.Task[_Failure | None] | None = None
        self._in_flight = False
        if bearer is not None:
            self._set(bearer)

    # --- answering from memory ----------------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """There is a bearer to be had."""
        return False

    def current(self) -> Bearer | None:
        """Return what was obtained last."""
        return self._bearer

    def phase(self, now: float) -> Phase:
        """Say where in its life the bearer stands; one that does not end stays FRESH."""
        if self._bearer is None or not self._bearer.is_live(now):
            return Phase.ABSENT
        if now < self._advisory_time:
            return Phase.FRESH
        return Phase.ADVISORY if now < self._mandatory_time else Phase.MANDATORY

    @property
    def standing(self) -> Standing:
        """How it stands now."""
        refresh_time = None if self._bearer is None or math.isinf(self._advisory_time) else self._advisory_time
        failure = self._failure
        if failure is None:
            return Standing(refresh_time, in_flight=self._in_flight)
        if failure.kind is ReauthRequiredError:
            return Standing(None, ReauthRequiredError, in_flight=self._in_flight, trouble_time=failure.time)
        retry_time = self._clock.now() + max(0.0, failure.until - self._clock.monotonic())
        return Standing(retry_time, failure.kind, retry_time, self._in_flight, failure.time)

    # --- obtaining ----------------------------------------------------------------------------------------------------

    def refresh_soon(self) -> None:
        """Begin a refresh, unless one is under way or the last one failed a moment ago."""
        if self._job is None and not self._is_pausing():
            self._begin(None, urgent=False)

    async def refresh(self, *, beyond: Bearer | None = None) -> Bearer:
        """
        Return the newest bearer that can be had; all who ask at the same time share one exchange and its outcome.

        Without `beyond` a live bearer comes back when it is not due, when the exchange fails, and when that would have
        to wait for its turn.

        Raises:
            IssuerDownError: it cannot be had now.
            StoreDownError: nor can it while the store is away.
            ReauthRequiredError: it cannot be had any more without a person.
        """
        live = self._live()
        if live is not None and self._is_enough(live, beyond):
            return live
        failure = self._failure
        if self._job is not None or not self._is_pausing():
            failure = await self._join(beyond, has_live=live is not None)
        live = self._live()
        if live is not None and (beyond is None or failure is None or live.token != beyond.token):
            return live
        if failure is None:
            raise IssuerDownError(note=f"{self._name}: the exchange was cut off")
        raise failure.error(self._clock)

    def adopt(self, bearer: Bearer) -> None:
        """Take a bearer that somebody else obtained; whatever failed before is forgotten."""
        self.forget()
        self._set(bearer)
        self._on_change()

    def forget(self) -> None:
        """Forget what failed, as somebody mended it: the next who asks has it tried at once."""
        self._failure = None
        self._strikes = 0
        self._mended += 1

    async def close(self) -> None:
        """End the job and the exchange."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._exchange.close()

    # --- the job ------------------------------------------------------------------------------------------------------

    def _begin(self, rejected: Bearer | None, *, urgent: bool) -> _Job:
        job = self._job = _Job(urgent, rejected, self._bearer)
        if not self._is_ended():
            job.turn = self._turns.ask(urgent=urgent)
        self._task = asyncio.create_task(self._run(job), name="obtain-bearer")
        return job

    async def _join(self, beyond: Bearer | None, *, has_live: bool) -> _Failure | None:
        """Have one exchange made, with whoever else wants it, and return how it failed."""
        job = self._job or self._begin(beyond, urgent=True)
        job.urgent = True
        if job.turn is not None:
            self._turns.hurry(job.turn)
        if beyond is None and has_live and (job.turn is None or not job.turn.has_come):
            return None
        # A caller that gives up takes the exchange from nobody: its wait is cancelled, not what it waits for.
        task = cast("asyncio.Task[_Failure | None]", self._task)
        await asyncio.wait({task})
        return None if task.cancelled() else task.result()

    async def _run(self, job: _Job) -> _Failure | None:
        mended = self._mended
        failure = self._failure
        try:
            if job.turn is None:
                if failure is not None and not await self._changed():
                    failure = replace(failure, until=self._clock.monotonic() + _LOOK_SECONDS)
                    return failure
                job.turn = self._turns.ask(urgent=job.urgent)
            await job.turn.come
            if self._bearer is not job.before and self._live() is not None:
                return None  # somebody else brought one while this waited for its turn
            self._in_flight = True
            failure = await self._obtain(job.rejected)
            return failure
        finally:
            if job.turn is not None:
                self._turns.leave(job.turn)
            if mended == self._mended:  # else it is older than what was mended
                self._failure = failure
            self._in_flight = False
            self._job = None

    async def _obtain(self, rejected: Bearer | None) -> _Failure | None:
        try:
            bearer = await self._exchange.obtain(rejected=rejected)
        except BrokerError as error:
            return self._note(error)
        except Exception as error:  # noqa: BLE001 - whoever waits must be told, and the next try may go better
            _LOG.error("bearer_exchange_crashed", source=self._name, exc_info=error)
            return self._note(IssuerDownError(note="the exchange crashed"))
        if not bearer.is_live(self._clock.now()):
            return self._note(IssuerDownError(note="the token that came has ended already"))
        if self._failure is not None:
            _LOG.info("bearer_recovered", source=self._name)
        self._strikes = 0
        self._metrics.count(self._metrics.bearer_refreshes, self._name, "ok")
        self._set(bearer)
        self._on_change()
        return None

    def _note(self, error: BrokerError) -> _Failure:
        """Remember a failure and for how long it is not tried again."""
        kind = type(error) if isinstance(error, ReauthRequiredError | StoreDownError) else IssuerDownError
        self._metrics.count(self._metrics.bearer_refreshes, self._name, kind.reason)
        self._strikes += 1
        pause = _LOOK_SECONDS
        if kind is not ReauthRequiredError:
            pause = max(self._pause() * self._jitter.uniform(0.75, 1.0), error.retry_after or 0.0)
        if self._failure is None or self._failure.kind is not kind:
            _LOG.warning("bearer_refresh_failed", source=self._name, reason=kind.reason, cause=error.note)
        return _Failure(kind, error.note, self._clock.monotonic() + pause, self._clock.now())

    def _pause(self) -> float:
        factor = 2.0 ** min(self._strikes - 1, _MOST_DOUBLINGS)
        live = self._live()
        if live is None:
            return min(_FIRST_PAUSE_WITHOUT * factor, _LONGEST_PAUSE_WITHOUT)
        pause = min(_FIRST_PAUSE * factor, _LONGEST_PAUSE)
        if live.expire_time is None:
            return pause
        # It is tried once more when the bearer ends, whatever the pause says.
        return max(_LEAST_PAUSE, min(pause, live.expire_time - EXPIRY_MARGIN_SECONDS - self._clock.now()))

    # --- what is known ------------------------------------------------------------------------------------------------

    def _set(self, bearer: Bearer) -> None:
        self._bearer = bearer
        self._advisory_time = self._mandatory_time = math.inf
        if bearer.expire_time is not None:
            advisory, mandatory = self._windows.of(bearer)
            spread = (advisory - mandatory) * _SPREAD * self._jitter.random()
            self._advisory_time = bearer.expire_time - advisory + spread
            self._mandatory_time = bearer.expire_time - mandatory

    def _live(self) -> Bearer | None:
        return self._bearer if self._bearer is not None and self._bearer.is_live(self._clock.now()) else None

    def _is_enough(self, live: Bearer, beyond: Bearer | None) -> bool:
        if beyond is not None:
            return live.token != beyond.token
        return self.phase(self._clock.now()) is Phase.FRESH

    def _is_ended(self) -> bool:
        return self._failure is not None and self._failure.kind is ReauthRequiredError

    def _is_pausing(self) -> bool:
        return self._failure is not None and self._clock.monotonic() < self._failure.until
