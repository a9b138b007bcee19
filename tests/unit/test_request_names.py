"""What repeated requests are known by: the same content has the same name, any other content another one."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.keyring import Keyring
from broker.model import IdentityName, Secret
from broker.own_bearers import OwnBearer
from broker.request_names import REQUEST_MEMORY_SECONDS, KeyChange, RequestNames
from tests.support.clocks import SetClock
from tests.support.stores import NOW


@dataclass(frozen=True)
class Other:
    """Another order with the same fields as a change of key."""

    name: str


@pytest.fixture
def names(tmp_path: Path) -> RequestNames:
    """Return what names requests."""
    return RequestNames(Keyring.load_or_create(tmp_path / "keyring.json", may_create=True), SetClock(NOW))


def test_the_same_content_has_the_same_name(names: RequestNames) -> None:
    """Whatever its id, and remembered for a day."""
    first, second = (names.of(request_id, KeyChange(IdentityName("a"))) for request_id in ("r1", "r2"))
    assert first.fingerprint == second.fingerprint
    assert (first.request_id, second.request_id) == ("r1", "r2")
    assert first.remember_until == NOW + REQUEST_MEMORY_SECONDS


@pytest.mark.parametrize(
    ("one", "another"),
    [
        pytest.param(KeyChange(IdentityName("a")), KeyChange(IdentityName("b")), id="field"),
        pytest.param(KeyChange(IdentityName("a")), Other("a"), id="kind"),
        pytest.param(OwnBearer(Secret("a")), OwnBearer(Secret("b")), id="secret"),
        pytest.param(OwnBearer(Secret("a")), OwnBearer(Secret("a"), 1.0), id="unset"),
    ],
)
def test_other_content_has_another_name(names: RequestNames, one: object, another: object) -> None:
    """A field, the kind of order, and what is secret all count."""
    assert names.of("r", one).fingerprint != names.of("r", another).fingerprint


def test_the_name_reveals_nothing_without_the_key_ring(tmp_path: Path) -> None:
    """Two key rings give the same content different names."""
    order = OwnBearer(Secret("token"))
    rings = [Keyring.load_or_create(tmp_path / f"{number}.json", may_create=True) for number in range(2)]
    assert len({RequestNames(ring, SetClock(NOW)).of("r", order).fingerprint for ring in rings}) == 2
