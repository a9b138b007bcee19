"""
The warm path of a real broker in a process of its own: what it touches, and how many calls at once it withstands.

Small samples of what `python -m tests.bench hot-path` and `flight` measure; nothing here depends on how fast the machine is.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.flight import observe_flight
from tests.bench.hot_path import observe_hot_path
from tests.bench.product import DECISIONS, HANDLED, Product, check_samples

IN_FLIGHT = 2048
"""Beyond what grpcio takes by itself (about 1,000)."""


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Product]:
    """A broker with one identity, and the emulator behind it."""
    with Product(tmp_path) as running:
        yield running


@pytest.fixture
def strace() -> None:
    """Skip where there is no strace; where everything must be run, fail."""
    if shutil.which("strace") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("strace is not on this machine")
        pytest.skip("strace is not on this machine")


@pytest.mark.needs("strace")
@pytest.mark.usefixtures("strace")
def test_warm_calls_touch_neither_store_nor_backend_nor_files(product: Product) -> None:
    """Counters at both seams and a trace of all syscalls stay clean, and both see one read of the store."""
    warm, control = observe_hot_path(product, calls=200)
    assert warm.seen
    assert (warm.calls, warm.store_calls, warm.backend_requests, dict(warm.unexpected)) == (200, 0, 0, {})
    assert control.seen
    assert control.store_calls > 0
    database = str(product.settings.state_dir / "broker.db")
    assert any((call.descriptor or "").startswith(database) for call in control.unexpected)


def test_more_calls_in_flight_than_grpcio_takes_by_itself_do_not_fail(product: Product) -> None:
    """The broker answers all of a flood that makes a server with grpcio's own limits fail; its answers are good."""
    before = product.metrics()
    flight = observe_flight(product, in_flight=IN_FLIGHT, calls=2 * IN_FLIGHT)
    after = product.metrics()
    assert flight.control.failures > 0
    assert (flight.product.calls, flight.product.failures) == (2 * IN_FLIGHT, 0)
    assert flight.product.peak_in_flight == IN_FLIGHT
    # One more call than the flood: the one that warmed up.
    for name, labels in ((HANDLED, {"grpc_method": "GetAuthorization", "grpc_code": "OK"}), (DECISIONS, {})):
        assert after.total(name, **labels) - before.total(name, **labels) == 2 * IN_FLIGHT + 1
    assert len(flight.product.samples) >= 2 * IN_FLIGHT // 100
    check_samples(product.witness(), flight.product.samples)
