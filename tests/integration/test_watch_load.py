"""A small sample of the figures of watching, over a broker as users run it; `python -m tests.bench watch` has the rest."""

from pathlib import Path

from tests.bench.product import Product, check_samples
from tests.bench.watch import SUBSCRIPTIONS, own_thread
from tests.bench.watchers import Watchers

STREAMS = 20


def test_values_of_many_streams_come_in_time(tmp_path: Path) -> None:
    """Each of 200 subscriptions is replaced twice before its time, with values that a backend takes."""
    with Product(tmp_path, assertion_lifetime=6) as product:
        product.answer()
        with Watchers(
            product.address, streams=STREAMS, subscriptions=own_thread, looks_at_times=True, sample_every=10
        ) as watchers:
            received = watchers.received
            received.samples.clear()
            watchers.wait_for_events(3 * STREAMS * SUBSCRIPTIONS, seconds=30)
            assert received.late == watchers.overdue() == 0
            assert len(received.due) == STREAMS * SUBSCRIPTIONS
            check_samples(product.witness(), received.samples)
