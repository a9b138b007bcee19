"""The scheduler itself: it makes every order once, and finds what only one of them shows."""

import asyncio
import math

import pytest

from tests.interleavings.schedule import Choose, EveryOrder, Schedule, StuckError, fixed_order, seeded_orders


async def orders_of(lengths: dict[str, int], *, preemptions: int | None = None) -> list[tuple[str, ...]]:
    """Every order of operations that make so many steps each."""
    found = []
    for choose in EveryOrder(preemptions=preemptions):
        schedule = Schedule(choose)

        async def work(count: int, schedule: Schedule = schedule) -> None:
            for number in range(count - 1):
                await schedule.pause(str(number))

        await schedule.run({name: lambda count=count: work(count) for name, count in lengths.items()})
        found.append(tuple(name for name, _ in schedule.trace))
    return found


@pytest.mark.parametrize("lengths", [{"a": 3, "b": 4}, {"a": 2, "b": 2, "c": 3}])
async def test_every_order_is_made_once(lengths: dict[str, int]) -> None:
    """As many as there are ways to shuffle sequences into each other."""
    found = await orders_of(lengths)
    expected = math.factorial(sum(lengths.values()))
    for length in lengths.values():
        expected //= math.factorial(length)
    assert len(found) == len(set(found)) == expected


async def test_preemptions_are_bounded() -> None:
    """With none each operation runs to its end; with one each is interrupted at most once."""
    assert await orders_of({"a": 3, "b": 3}, preemptions=0) == [("a",) * 3 + ("b",) * 3, ("b",) * 3 + ("a",) * 3]
    once = await orders_of({"a": 3, "b": 3}, preemptions=1)
    assert ("a", "b", "b", "b", "a", "a") in once
    assert ("a", "b", "a", "b", "b", "a") not in once
    assert len(once) == len(set(once)) == 6


async def lost_updates(choose: Choose) -> int:
    """What two writers that read, wait and write leave of two increments."""
    schedule, value = Schedule(choose), 0

    async def increment() -> None:
        nonlocal value
        seen = value
        await schedule.pause("write")
        value = seen + 1

    await schedule.run({"a": increment, "b": increment})
    return value


async def test_a_lost_update_is_found() -> None:
    """Two of the orders are right; the four that overlap lose one."""
    results = [await lost_updates(choose) for choose in EveryOrder()]
    assert sorted(results) == [1, 1, 1, 1, 2, 2]


async def test_a_run_can_be_repeated() -> None:
    """By its seed, and by its trace."""
    for name, choose in seeded_orders(7, 20):
        first = await lost_updates(choose)
        ((_, again),) = [one for one in seeded_orders(7, 20) if one[0] == name]
        assert await lost_updates(again) == first
    assert await lost_updates(fixed_order(["a", "b", "a", "b"])) == 1
    assert await lost_updates(fixed_order(["a", "a", "b", "b"])) == 2


async def test_who_waits_for_nobody_is_found_stuck() -> None:
    """An operation that nothing wakes is an error, not a run that never ends."""
    schedule = Schedule(fixed_order([]))
    with pytest.raises(StuckError, match="a cannot go on"):
        await schedule.run({"a": asyncio.Event().wait})


async def test_a_poll_is_made_only_after_others_did_something() -> None:
    """Otherwise there would be endlessly many orders of one that looks again and again."""
    for choose in EveryOrder():
        schedule, done = Schedule(choose), asyncio.Event()

        async def finish(schedule: Schedule = schedule, done: asyncio.Event = done) -> None:
            await schedule.pause("half")
            done.set()

        async def poll(schedule: Schedule = schedule, done: asyncio.Event = done) -> int:
            looks = 0
            while not done.is_set():
                looks += 1
                await schedule.pause("again", waits=True)
            return looks

        outcome = await schedule.run({"a": finish, "b": poll})
        assert outcome["b"] in (0, 1, 2)


async def test_jobs_that_an_operation_leaves_behind_are_run_to_their_end() -> None:
    """They belong to it, and are interleaved like it."""
    schedule, ended = Schedule(fixed_order([])), False

    async def job() -> None:
        nonlocal ended
        await schedule.pause("job")
        ended = True

    jobs = []

    async def operation() -> None:
        jobs.append(asyncio.create_task(job()))

    await schedule.run({"a": operation})
    assert ended
    assert schedule.trace == [("a", "begin"), ("a", "job")]
