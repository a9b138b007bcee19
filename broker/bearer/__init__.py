"""
Sources of bearers: one module a source, behind one seam.

A source answers from memory (`current`, `phase`, `standing`) without waiting; obtaining a token happens in a job of
the source's own (`refresh_soon`, `refresh`), one at a time, which outlives whoever asked for it. `broker.bearer.kept`
has the part that all sources with an exchange share: the windows, the single flight, the rate and the memory of
failures; a module of a kind of token only knows how one is obtained.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from broker.errors import BrokerError
from broker.model import Secret

EXPIRY_MARGIN_SECONDS: Final = 5.0
"""A bearer is not handed out in the last seconds of its life, in which it could end on the way."""


@dataclass(frozen=True, slots=True)
class Bearer:
    """A token and when it ends, in Unix seconds; None when nothing says that it does."""

    token: Secret
    expire_time: float | None
    obtain_time: float | None = None
    """From when its life counts: before the request that brought it was sent. None when it is not known."""

    def is_live(self, now: float) -> bool:
        """Say whether it may still be handed out."""
        return self.expire_time is None or now < self.expire_time - EXPIRY_MARGIN_SECONDS


class Phase(Enum):
    """Where in its life a source's bearer stands, as botocore has it."""

    ABSENT = auto()
    """There is none, or it has expired: callers wait for one."""
    FRESH = auto()
    """Nothing to do."""
    ADVISORY = auto()
    """One job refreshes it; everybody is served what there is."""
    MANDATORY = auto()
    """It is about to end: callers wait for an exchange that is under way, bounded by their deadline."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a source stands, for operators and for the `stale` flag. Times in Unix seconds."""

    refresh_time: float | None = None
    """When it is refreshed next; None when it never is, or only by somebody else."""
    trouble: type[BrokerError] | None = None
    """The outcome of the last try, when that failed: ISSUER_DOWN, STORE_DOWN or REAUTH_REQUIRED."""
    retry_time: float | None = None
    """When it is tried again after a failure; None when it is not."""
    in_flight: bool = False
    """Whether an exchange is under way now: sent, not merely waiting for its turn."""
    trouble_time: float | None = None
    """When the last try failed; None when it did not."""


class BearerSource(Protocol):
    """Where an identity's bearer comes from."""

    @property
    def is_empty(self) -> bool:
        """Whether there is no bearer and never will be: it must never be asked for one (an identity-only login)."""
        ...

    def current(self) -> Bearer | None:
        """Return what is known without waiting, even if it has expired; None before the first refresh."""
        ...

    def phase(self, now: float) -> Phase:
        """Say where in its life the bearer stands."""
        ...

    @property
    def standing(self) -> Standing:
        """How the source stands now."""
        ...

    def refresh_soon(self) -> None:
        """Begin a refresh in the source's own job, if none is under way and none has to wait; does not wait."""
        ...

    async def refresh(self, *, beyond: Bearer | None = None) -> Bearer:
        """
        Return the newest bearer that can be had.

        Args:
            beyond: a bearer that was refused. When a newer live one is here already it is returned with no exchange.
                The same one comes back where nothing else can be had (a static token): compare.

        Raises:
            BearerUnavailableError: there is none and never will be.
            IssuerDownError: it cannot be had now.
            StoreDownError: nor can it while the store is away, where that keeps it.
            ReauthRequiredError: it cannot be had any more without a person.
        """
        ...

    async def close(self) -> None:
        """End the source's job and let go of what it holds."""
        ...
