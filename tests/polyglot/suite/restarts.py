"""
Restarts a broker under the traffic of all languages' clients: `python -m tests.polyglot.suite.restarts --runs 100`.

The broker is killed (SIGKILL) and stopped (SIGTERM) in turn, and started again at the same address, each time as soon as
every client has its watch again. No call for what a client holds may fail or be answered with what has ended, and no
client may hold more files, sockets or threads at the end than after the first restart.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.polyglot.languages import Language
from tests.polyglot.suite import processes, toolchains
from tests.polyglot.suite.cases import Case
from tests.polyglot.suite.driver import Driver
from tests.polyglot.suite.lanes import Variant
from tests.polyglot.suite.world import Ground, Place, World

BACK_SECONDS: Final = 15.0
"""How long all clients may take to have their watch again: the longest waits between two tries, one after the other."""
SPARE: Final = 2
"""How many more files or threads are none that leak: a runtime's own come and go."""
_THREADS: Final = ("$thread", "$thread2", "$thread3")
_RATE: Final = 50
_TELLS: Final = 10
"""After how many restarts it says how far it is."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds."""

    files: int
    threads: int

    @classmethod
    def of(cls, driver: Driver) -> "Held":
        """Count it."""
        return cls(len(processes.descriptors(driver.pid)), processes.threads(driver.pid))

    def leaks_beside(self, before: "Held") -> bool:
        """Say whether it is more than a runtime's own coming and going."""
        return self.files > before.files + SPARE or self.threads > before.threads + SPARE


class RestartError(Exception):
    """A driver did not do what it was told."""


async def run(variants: Sequence[Variant], runs: int) -> list[str]:
    """
    Restart a broker under the traffic of all variants.

    Args:
        variants: whose drivers are built.
        runs: how often.

    Returns:
        What is wrong; empty when nothing is.
    """
    case = Case(
        name="restarts", group="restarts", behaviour="", catches="", lane="own", open={},
        steps=({"do": "authorization", "threads": _THREADS},),
    )  # fmt: skip
    try:
        async with contextlib.AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="restarts-")))
            ground = await stack.enter_async_context(Ground(folder))
            place = await stack.enter_async_context(Place(ground))
            clients: list[tuple[Variant, World, Driver]] = []
            for variant in variants:
                own = folder / variant.name
                own.mkdir()
                world = await stack.enter_async_context(World(case, place, folder=own, ground=ground))
                driver = Driver(variant.command, tree=variant.tree, folder=own)
                clients.append((variant, world, await stack.enter_async_context(driver)))
            return await _restart(place, clients, runs)
    finally:
        processes.end_all()


async def _restart(place: Place, clients: list[tuple[Variant, World, Driver]], runs: int) -> list[str]:
    broker = place.brokers["a"]
    world = clients[0][1]
    for _, of, driver in clients:
        threads = [of.filled(name) for name in _THREADS]
        options = {"address": of.filled("$broker"), "identity": of.filled("$identity")}
        await _told(driver, {"do": "open", "client": "main", **options})
        for thread in threads:
            await _told(driver, {"do": "authorization", "client": "main", "scope": "inference", "thread": thread})
        traffic = {"scope": "inference", "threads": threads, "rate": _RATE, "workers": 2}
        await _told(driver, {"do": "traffic_start", "client": "main", "traffic": "t", **traffic})
    await _watched(world, len(clients))
    before: list[Held] = []
    slowest = 0.0
    for number in range(runs):
        await (broker.stop() if number % 2 else broker.kill())
        await broker.start()
        began = time.monotonic()
        await _watched(world, len(clients))
        slowest = max(slowest, time.monotonic() - began)
        if number % _TELLS == _TELLS - 1:
            print(f"{number + 1} of {runs} restarts", file=sys.stderr, flush=True)
        if number == 0:
            before = [Held.of(driver) for _, _, driver in clients]
    problems = []
    for (variant, _, driver), first in zip(clients, before, strict=True):
        seen = await _told(driver, {"do": "traffic_stop", "traffic": "t"})
        after = Held.of(driver)
        print(
            f"{variant.name:12}{seen['calls']:8} calls, {seen['failed']} failed, slowest {seen['slowest_seconds']:.3f} s, "
            f"past its end by {seen['longest_expired_seconds']:.3f} s; "
            f"files {first.files} -> {after.files}, threads {first.threads} -> {after.threads}",
            flush=True,
        )
        if seen["failed"] or seen["longest_expired_seconds"] > 0 or not seen["calls"]:
            problems.append(f"{variant.name}: {seen}")
        if after.leaks_beside(first):
            problems.append(f"{variant.name}: holds {after} after {runs} restarts, and {first} after the first")
        await _told(driver, {"do": "close", "client": "main"})
    print(f"{runs} restarts, all clients watching again within {slowest:.1f} s", flush=True)
    return problems


async def _watched(world: World, streams: int) -> None:
    """Wait until the broker has the streams of all clients."""
    try:
        async with asyncio.timeout(BACK_SECONDS):
            while True:
                await world.look()
                if world.functions()["streams"]() == streams:
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        there = world.functions()["streams"]()
        raise RestartError(f"{there} of {streams} clients watch {BACK_SECONDS:.0f} s after the start") from None


async def _told(driver: Driver, command: dict[str, Any]) -> dict[str, Any]:
    answer = await driver.ask(command)
    if answer.ok is None:
        raise RestartError(f"{command['do']} failed: {answer.error}")
    return answer.ok


def main() -> int:
    """Run the command line; returns 0 when nothing is wrong."""
    processes.heed_sigterm()
    parser = argparse.ArgumentParser(prog="python -m tests.polyglot.suite.restarts", description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="how often the broker is restarted")
    options = parser.parse_args()

    def work(languages: list[Language]) -> bool:
        variants = [Variant(name, command) for one in languages for name, command in one.drivers.items()]
        problems = asyncio.run(run(variants, options.runs))
        for problem in problems:
            print(f"problem: {problem}")
        return not problems

    return toolchains.run_for_wanted(work)


if __name__ == "__main__":
    sys.exit(main())
