"""
Sources of bearers: one module a source, behind one seam.

A source answers from memory (`current`); reading, refreshing and exchanging happen in `refresh`, which the upkeep and a
call without a live bearer ask for, never in the way of a call that has one.
"""

from dataclasses import dataclass
from typing import Protocol

from broker.model import Secret

EXPIRY_MARGIN_SECONDS = 5.0
"""A bearer is not handed out in the last seconds of its life, in which it could end on the way."""


@dataclass(frozen=True, slots=True)
class Bearer:
    """A token and when it ends, in Unix seconds; None when nothing says that it does."""

    token: Secret
    expire_time: float | None

    def is_live(self, now: float) -> bool:
        """Say whether it may still be handed out."""
        return self.expire_time is None or now < self.expire_time - EXPIRY_MARGIN_SECONDS


class BearerSource(Protocol):
    """Where an identity's bearer comes from."""

    def current(self) -> Bearer | None:
        """Return what is known without waiting, even if it has expired; None before the first refresh."""
        ...

    async def refresh(self) -> Bearer:
        """
        Look for a newer bearer and return the newest.

        Raises:
            IssuerDownError: it cannot be had now.
            ReauthRequiredError: it cannot be had any more without a person.
        """
        ...

    async def close(self) -> None:
        """Let go of what the source holds."""
        ...
