"""A bearer that never changes: an API key or a token that an operator gave."""

from broker.bearer import Bearer
from broker.clock import Clock
from broker.errors import ReauthRequiredError


class StaticSource:
    """One token for as long as it lives; when it has expired only a person can give another."""

    def __init__(self, bearer: Bearer, clock: Clock) -> None:
        self._bearer = bearer
        self._clock = clock

    def current(self) -> Bearer:
        """Return the token."""
        return self._bearer

    async def refresh(self) -> Bearer:
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
