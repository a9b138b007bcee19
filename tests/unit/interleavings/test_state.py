"""The state of a run: equal where what follows is equal, different where anything differs that it depends on."""

import asyncio
import math
from collections.abc import Callable, Hashable

from tests.interleavings.schedule import Choose, EveryOrder, Pause, Schedule
from tests.interleavings.state import Walk


class Account:
    """Something that operations share."""

    def __init__(self) -> None:
        self.value = 0


def state_of(schedule: Schedule, *shared: object) -> Hashable:
    """Return the state of a run."""
    walk = Walk((Schedule, Pause), lambda task: schedule.tasks.get(task, ""))
    walk.visit([schedule.standing, *shared])
    walk.visit(list(schedule.tasks))
    return walk.state


async def merged(
    run: Callable[[Choose, EveryOrder], asyncio.Future[object] | object],
) -> tuple[EveryOrder, set[object]]:
    """Make every order of a run, going on once from equal states, and return what came of them."""
    orders, ends = EveryOrder(), set()
    for choose in orders:
        ends.add(await run(choose, orders))  # type: ignore[misc]
    return orders, ends


async def test_orders_that_meet_in_a_state_are_counted_and_made_once() -> None:
    """Steps that touch nothing shared commute: as many states as there are places, and every order is counted."""

    async def run(choose: Choose, orders: EveryOrder) -> None:
        schedule = Schedule(choose)
        orders.state = lambda: state_of(schedule)

        async def work() -> None:
            for number in range(5):
                await schedule.pause(str(number))

        await schedule.run({"a": work, "b": work})

    orders, _ = await merged(run)
    assert orders.orders == math.comb(12, 6)
    # A choice at each place at which both can go on.
    assert orders.states == 6 * 6
    assert orders.runs < orders.orders / 10


async def test_what_only_a_local_name_holds_tells_states_apart() -> None:
    """A lost update is found: what was read before is part of the state."""

    async def run(choose: Choose, orders: EveryOrder) -> int:
        schedule, account = Schedule(choose), Account()
        orders.state = lambda: state_of(schedule, account)

        async def increment() -> None:
            seen = account.value
            await schedule.pause("write")
            account.value = seen + 1

        await schedule.run({"a": increment, "b": increment})
        return account.value

    orders, ends = await merged(run)
    assert orders.orders == math.comb(4, 2)
    assert ends == {1, 2}


async def test_what_a_job_holds_tells_states_apart() -> None:
    """Also that of a task which nobody waits for."""

    async def run(choose: Choose, orders: EveryOrder) -> int:
        schedule, account, jobs = Schedule(choose), Account(), []
        orders.state = lambda: state_of(schedule, account)

        async def late(seen: int) -> None:
            await schedule.pause("job")
            account.value = seen + 1

        async def leave() -> None:
            jobs.append(asyncio.create_task(late(account.value)))

        await schedule.run({"a": leave, "b": leave})
        return account.value

    orders, ends = await merged(run)
    assert orders.orders == math.comb(4, 2)
    assert ends == {1, 2}


async def test_time_that_must_pass_is_part_of_the_state() -> None:
    """A poll that is not worth making yet is another state than one that is, and polling for ever ends."""

    async def run(choose: Choose, orders: EveryOrder) -> None:
        schedule, done = Schedule(choose), asyncio.Event()
        orders.state = lambda: state_of(schedule, done)

        async def finish() -> None:
            await schedule.pause("half")
            done.set()

        async def poll() -> None:
            while not done.is_set():
                await schedule.pause("again", waits=True)

        await schedule.run({"a": finish, "b": poll})

    orders, _ = await merged(run)
    assert 0 < orders.runs <= orders.orders
