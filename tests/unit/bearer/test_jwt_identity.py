"""The source of an identity that has no bearer and never will have one."""

import pytest

from broker.bearer import Bearer, Phase, Standing
from broker.bearer.jwt_identity import JwtIdentitySource
from broker.errors import BearerUnavailableError
from broker.model import Secret


@pytest.mark.parametrize("beyond", [None, Bearer(Secret("sk"), None)], ids=["first", "after a refusal"])
async def test_it_says_that_it_is_empty_and_refuses_all_the_same(beyond: Bearer | None) -> None:
    """It can be told from a source that has none yet, and asking it brings no other answer."""
    source = JwtIdentitySource()
    assert source.is_empty
    assert source.current() is None
    assert source.phase(0.0) is Phase.ABSENT
    assert source.standing == Standing()
    source.refresh_soon()
    with pytest.raises(BearerUnavailableError):
        await source.refresh(beyond=beyond)
    await source.close()
