"""Reading the broker's counters."""

import pytest

from tests.bench.processes import ServerError
from tests.bench.product import Metrics

TEXT = """\
# HELP calls_total Calls
# TYPE calls_total counter
calls_total{method="a",outcome="ok"} 3.0
calls_total{method="b",outcome="ok"} 4.0
calls_total{method="b",outcome="failed"} 1.0
# TYPE calls_created gauge
calls_created{method="a",outcome="ok"} 1.7e+09
# HELP idle_total Never counted
# TYPE idle_total counter
"""


@pytest.mark.parametrize(
    ("labels", "total"), [({}, 8), ({"method": "b"}, 5), ({"method": "b", "outcome": "ok"}, 4), ({"method": "c"}, 0)]
)
def test_a_counter_is_summed_over_the_labels_that_are_not_given(labels: dict[str, str], total: int) -> None:
    """Only samples with all the given labels count, and never the time a counter was made."""
    assert total == Metrics.parse(TEXT).total("calls", **labels)


def test_a_counter_that_nothing_moved_yet_is_0() -> None:
    """It is known by its head alone."""
    assert Metrics.parse(TEXT).total("idle") == 0


def test_a_counter_that_does_not_exist_is_an_error() -> None:
    """A misspelt counter would stay 0 for ever and prove nothing."""
    with pytest.raises(ServerError, match="no counter missing"):
        Metrics.parse(TEXT).total("missing")
