"""The line at an issuer: how many may begin within a second, and who goes first."""

import asyncio

import pytest

from broker.bearer.turns import Turn, Turns
from tests.support.clocks import SteppedClock

NOW = 1_800_000_000.0


def most_within(times: list[float], period: float) -> int:
    """Return the most of these times that lie within any stretch of that length."""
    times = sorted(times)
    return max(sum(1 for other in times if start <= other < start + period) for start in times)


async def begun(turns: Turns, clock: SteppedClock, count: int, seconds: float) -> list[float]:
    """Ask for many turns at once and return when each of them came, in the seconds that pass."""
    start, times = clock.monotonic(), []

    def note(_: object) -> None:
        times.append(clock.monotonic() - start)

    for _ in range(count):
        turns.ask(urgent=False).come.add_done_callback(note)
    await clock.pass_(seconds)
    return times


@pytest.mark.parametrize(
    ("rate", "count", "seconds", "period", "most"),
    [(20.0, 200, 10.0, 1.0, 20), (2.5, 10, 4.0, 0.8, 2), (0.5, 3, 5.0, 2.0, 1), (1.0, 4, 4.0, 1.0, 1)],
)
async def test_no_second_has_more_than_the_rate(
    rate: float, count: int, seconds: float, period: float, most: int
) -> None:
    """The first come at once, then never more within any stretch than the rate says, and not fewer either."""
    clock = SteppedClock(NOW)
    turns = Turns(rate, clock)
    times = await begun(turns, clock, count, seconds)
    assert len(times) == count, "all came in the time that the rate gives them"
    assert most_within(times, period - 1e-6) == most
    # After a pause it is the same again: no credit is saved up.
    await clock.pass_(100.0)
    assert most_within(await begun(turns, clock, count, seconds), period - 1e-6) == most


async def test_whoever_needs_it_now_goes_first() -> None:
    """Urgent turns come before those asked for ahead, each kind in its order; one may become urgent while it waits."""
    clock = SteppedClock(NOW)
    turns = Turns(1.0, clock)
    order: list[str] = []

    def ask(name: str, *, urgent: bool) -> Turn:
        turn = turns.ask(urgent=urgent)
        turn.come.add_done_callback(lambda _: order.append(name))
        return turn

    assert ask("first", urgent=False).has_come
    ask("ahead 1", urgent=False)
    hurried = ask("ahead 2", urgent=False)
    waiting = ask("urgent 1", urgent=True)
    assert not waiting.has_come
    ask("urgent 2", urgent=True)
    turns.hurry(hurried)
    turns.hurry(waiting)
    await clock.pass_(10.0)
    assert order == ["first", "urgent 1", "urgent 2", "ahead 2", "ahead 1"]


async def test_a_place_that_was_given_up_costs_nobody_a_turn() -> None:
    """Whoever leaves, or is cut off while waiting, lets the next one through at the same moment."""
    clock = SteppedClock(NOW)
    turns = Turns(1.0, clock)
    turns.ask(urgent=False)
    left, cut_off, last = (turns.ask(urgent=False) for _ in range(3))
    turns.leave(left)
    cut_off.come.cancel()
    await clock.pass_(1.0)
    assert last.has_come
    assert not left.has_come


async def test_an_empty_line_holds_nothing() -> None:
    """When the last one has left nobody waits for its turn any more."""
    before = asyncio.all_tasks()
    clock = SteppedClock(NOW)
    turns = Turns(1.0, clock)
    turns.ask(urgent=False)
    turns.leave(turns.ask(urgent=False))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_closed_line_lets_nobody_in() -> None:
    """Whoever waits, and whoever asks yet, is cancelled."""
    clock = SteppedClock(NOW)
    turns = Turns(1.0, clock)
    turns.ask(urgent=False)
    waiting = turns.ask(urgent=True)
    await turns.close()
    assert waiting.come.cancelled()
    assert turns.ask(urgent=True).come.cancelled()
