"""No bearer at all: the identity's login is its Agent Identity JWT, which is no token to call with."""

from broker.bearer import Bearer, BearerSource, Phase, Standing
from broker.errors import BearerUnavailableError


class JwtIdentitySource(BearerSource):
    """
    What stands where an identity has no bearer and never will have one.

    It says so by `is_empty`, so that nobody asks; who asks all the same is told BEARER_UNAVAILABLE.
    """

    @property
    def is_empty(self) -> bool:
        """It never has a bearer."""
        return True

    def current(self) -> None:
        """Return None: there is none."""

    def phase(self, now: float) -> Phase:  # noqa: ARG002 - it is the same at any time
        """Say ABSENT, which it stays."""
        return Phase.ABSENT

    @property
    def standing(self) -> Standing:
        """In no trouble: nothing is missing."""
        return Standing()

    def refresh_soon(self) -> None:
        """There is nothing to refresh."""

    async def refresh(self, *, beyond: Bearer | None = None) -> Bearer:  # noqa: ARG002 - there is none at all
        """
        Refuse.

        Raises:
            BearerUnavailableError: always.
        """
        raise BearerUnavailableError

    async def close(self) -> None:
        """Nothing is held."""
