"""CPU between two looks at the threads of a process."""

from tests.bench.processes import cpu_between


def test_cpu_is_summed_over_threads_old_and_new() -> None:
    """A thread that is new since the first look counts with all it spent."""
    assert cpu_between({"1": 10, "2": 3}, {"1": 15, "2": 3, "3": 7}) == 5 + 7


def test_a_thread_that_ended_takes_nothing_away() -> None:
    """What an ended thread had spent before is not subtracted from the others."""
    assert cpu_between({"1": 10, "2": 1_000_000}, {"1": 15}) == 5
