"""A bearer that never changes: an API key or a token that an operator gave."""

from broker.bearer import Bearer, BearerSource, Phase, Standing
from broker.clock import Clock
from broker.errors import ReauthRequiredError


class StaticSource(BearerSource):
    """One token for as long as it lives; when it has expired only a person can give another."""

    def __init__(self, bearer: Bearer, clock: Clock) -> None:
        self._bearer = bearer
        self._clock = clock

    @property
    def is_empty(self) -> bool:
        """It has its token."""
        return False

    def current(self) -> Bearer:
        """Return the token."""
        return self._bearer

    def phase(self, now: float) -> Phase:
        """Say FRESH until it has expired: there is nothing that a refresh could bring ahead of that."""
        return Phase.FRESH if self._bearer.is_live(now) else Phase.ABSENT

    @property
    def standing(self) -> Standing:
        """In trouble once the token has expired."""
        ended = not self._bearer.is_live(self._clock.now())
        return Standing(trouble=ReauthRequiredError if ended else None)

    def refresh_soon(self) -> None:
        """There is nothing to refresh."""

    async def refresh(self, *, beyond: Bearer | None = None) -> Bearer:  # noqa: ARG002 - nothing is beyond the only one
        """
        Return the token, which is all there is.

        Raises:
            ReauthRequiredError: it has expired.
        """
        if not self._bearer.is_live(self._clock.now()):
            raise ReauthRequiredError
        return self._bearer

    async def close(self) -> None:
        """Nothing is held."""
