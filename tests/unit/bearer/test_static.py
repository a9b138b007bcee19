"""A bearer that never changes."""

import pytest

from broker.bearer import EXPIRY_MARGIN_SECONDS, Bearer, Phase, Standing
from broker.bearer.static import StaticSource
from broker.errors import ReauthRequiredError
from broker.model import Secret
from tests.support.clocks import SetClock

NOW = 1_800_000_000.0


async def test_a_token_without_an_end_lives_for_ever() -> None:
    """An API key is handed out however late it is."""
    bearer = Bearer(Secret("sk-key"), None)
    source = StaticSource(bearer, SetClock(NOW + 1e9))
    assert source.current() == bearer == await source.refresh()


async def test_a_token_ends_before_its_end() -> None:
    """A token is live up to the margin before its end; after it only a person can give another."""
    bearer = Bearer(Secret("token"), NOW + 60)
    clock = SetClock(NOW + 60 - EXPIRY_MARGIN_SECONDS - 0.001)
    source = StaticSource(bearer, clock)
    assert await source.refresh() == bearer
    clock.wall = NOW + 60 - EXPIRY_MARGIN_SECONDS
    assert not source.current().is_live(clock.now())
    with pytest.raises(ReauthRequiredError):
        await source.refresh()


def test_a_static_token_is_never_due() -> None:
    """Nothing could be had ahead of its end, so it is FRESH to its last moment; then it is in trouble."""
    clock = SetClock(NOW)
    source = StaticSource(Bearer(Secret("sk"), NOW + 100), clock)
    assert not source.is_empty
    assert source.phase(NOW + 100 - EXPIRY_MARGIN_SECONDS - 0.1) is Phase.FRESH
    assert source.standing == Standing()
    clock.wall = NOW + 100 - EXPIRY_MARGIN_SECONDS
    assert source.phase(clock.wall) is Phase.ABSENT
    assert source.standing == Standing(trouble=ReauthRequiredError)
    source.refresh_soon()
