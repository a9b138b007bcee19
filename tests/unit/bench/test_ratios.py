"""The statistics of the cost figure, on numbers whose answer is known."""

import random
import statistics

import pytest

from tests.bench.ratios import Comparison, Estimate, Round, Window, compare, estimate, orders, paired_ratios

NAMES = ("product", "echo", "twin")


def rounds(speeds: list[float], *, product: int = 200, twin: int = 100) -> list[Round]:
    """Make a round for each speed of the machine: an echo costs 100 ns, times how slow the machine was."""
    return [
        {
            "product": Window(1000, int(product * speed * 1000)),
            "echo": Window(2000, int(100 * speed * 2000)),
            "twin": Window(500, int(twin * speed * 500)),
        }
        for speed in speeds
    ]


def compared(measured: list[Round]) -> Comparison:
    """Compare with a fixed seed."""
    return compare(measured, product="product", baseline="echo", twin="twin", chance=random.Random(1))


def test_pairing_cancels_the_speed_of_the_machine() -> None:
    """Ratios within a round do not see that one round ran three times slower than another."""
    assert paired_ratios(rounds([1, 3, 2]), "echo", "product") == [0.5, 0.5, 0.5]


def test_a_comparison_is_cost_of_the_baseline_over_that_of_the_product() -> None:
    """A product twice as dear has the ratio one half; medians are in microseconds."""
    half, one = Estimate(0.5, 0.5, 0.5), Estimate(1.0, 1.0, 1.0)
    medians = {"product": 0.4, "echo": 0.2, "twin": 0.2}
    assert Comparison(ratio=half, control=one, beside={}, medians_us=medians) == compared(rounds([1, 2, 3]))


@pytest.mark.parametrize(("twin", "void"), [(100, False), (104, False), (96, False), (106, True), (94, True)])
def test_a_run_is_void_when_two_equal_servers_seem_to_differ(twin: int, void: bool) -> None:
    """The control leaves 0.95 to 1.05 on either side."""
    assert void == compared(rounds([1, 2], twin=twin)).void


def test_one_wild_round_does_not_move_the_median() -> None:
    """A round in which the machine was taken away from one server is outvoted."""
    measured = rounds([1] * 9)
    measured[4]["product"] = Window(1000, 10_000_000)
    assert compared(measured).ratio.median == 0.5


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    """Over many samples of a known distribution about 95 of 100 intervals hold its median."""
    chance = random.Random(7)
    held = 0
    for _ in range(60):
        interval = estimate([chance.gauss(1, 0.05) for _ in range(28)], chance)
        held += interval.low <= 1 <= interval.high
    assert 0.88 <= held / 60 <= 1


def test_the_interval_narrows_with_more_rounds() -> None:
    """Sixteen times the rounds make the interval clearly narrower, and leave the median what it is."""
    chance = random.Random(3)
    values = [chance.gauss(1, 0.05) for _ in range(400)]
    few, many = estimate(values[:25], random.Random(1)), estimate(values, random.Random(1))
    assert many.high - many.low < 0.6 * (few.high - few.low)
    assert statistics.median(values) == many.median


def test_an_estimate_can_be_repeated() -> None:
    """The same seed gives the same interval."""
    values = [1.0, 1.1, 0.9, 1.3, 0.8]
    assert estimate(values, random.Random(5)) == estimate(values, random.Random(5))


def test_nothing_measured_is_no_estimate() -> None:
    """No rounds raise in place of giving a figure."""
    with pytest.raises(ValueError, match="nothing was measured"):
        estimate([], random.Random(1))


def test_a_window_without_calls_has_no_cost() -> None:
    """It is not a cheap window: it raises."""
    with pytest.raises(ZeroDivisionError):
        _ = Window(0, 5).ns_per_call


def test_each_round_holds_every_server_once_in_changing_order() -> None:
    """All servers are in each round, and each comes first in some."""
    turns = list(orders(NAMES, 30, random.Random(2)))
    assert len(turns) == 30
    assert all(set(NAMES) == set(turn) and len(NAMES) == len(turn) for turn in turns)
    assert set(NAMES) == {turn[0] for turn in turns}


def test_other_servers_are_compared_too() -> None:
    """A server that is no baseline has its own ratio to the product, and its own median."""
    comparison = compare(
        rounds([1, 2]), product="product", baseline="echo", twin="echo", beside=["twin"], chance=random.Random(1)
    )
    assert comparison.beside == {"twin": Estimate(0.5, 0.5, 0.5)}
    assert set(comparison.medians_us) == set(NAMES)
