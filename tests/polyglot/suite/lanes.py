"""All cases of all variants of the languages, side by side as far as two cores bear it."""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.polyglot.languages import ROOT, Command
from tests.polyglot.suite import processes, toolchains
from tests.polyglot.suite.case_run import CaseFailedError, CaseRun, UnsupportedError
from tests.polyglot.suite.cases import Case
from tests.polyglot.suite.driver import Driver, DriverError
from tests.polyglot.suite.matrix import Matrix, Outcome, Result
from tests.polyglot.suite.world import Ground, NotHereError, Place, World

AT_ONCE: Final = 24
"""How many cases, of all variants, that share brokers and drivers run side by side; they mostly wait."""
STARTS_AT_ONCE: Final = 3
"""How many cases, of all variants, that start processes run side by side; each costs a second of a core."""
MOST_SECOND_TRIES: Final = 15
"""How many red cells of a run are tried again alone; more are not the work of a busy machine."""
QUIET_SECONDS: Final = 3.0
"""How long a broker may take to notice that a client was closed."""

Progress = Callable[[Result], None]


@dataclass(frozen=True, slots=True)
class Variant:
    """A driver to be judged: its name in the matrix, its command, and the tree that it was built from."""

    name: str
    command: Command
    tree: Path = ROOT


@dataclass(frozen=True, slots=True)
class Bounds:
    """What keeps all variants together from drowning the machine: of cases that share, and of those that start processes."""

    waits: asyncio.Semaphore
    starts: asyncio.Semaphore


async def run_all(
    variants: Sequence[Variant], cases: Sequence[Case], progress: Progress, *, adapter: str = ""
) -> Matrix:
    """
    Run cases for variants.

    Args:
        variants: whose drivers are built.
        cases: what to run.
        progress: called with each result.
        adapter: for this one alone, of cases that are run for each adapter; empty: for all.
    """
    began = time.monotonic()
    matrix = Matrix(cases, [variant.name for variant in variants])
    bounds = Bounds(asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(STARTS_AT_ONCE))
    folder = Path(tempfile.mkdtemp(prefix="polyglot-"))

    def note(result: Result) -> None:
        matrix.results.append(result)
        progress(result)

    try:
        async with Ground(folder) as ground, asyncio.TaskGroup() as group:
            for variant in variants:
                lanes = Lanes(variant, folder / variant.name, ground, bounds, note, matrix.problems, adapter)
                group.create_task(lanes.run(cases))
    finally:
        processes.end_all()
        shutil.rmtree(folder, ignore_errors=True)
    matrix.seconds = time.monotonic() - began
    return matrix


async def second_tries(variants: Sequence[Variant], matrix: Matrix, progress: Progress) -> None:
    """
    Try the red cells of a run once more, each alone, and put what comes of it in their place, marked.

    A thousand cases side by side on two cores hold some up for longer than they can wait. One that is red alone, too, is
    red; and where more than `MOST_SECOND_TRIES` are, none is tried again.

    Args:
        variants: that were run.
        matrix: what came of it; changed.
        progress: called with each result.
    """
    reds = [result for result in matrix.results if result.outcome is Outcome.RED]
    if len(reds) > MOST_SECOND_TRIES:
        return
    cases = {case.name: case for case in matrix.cases}
    by_name = {variant.name: variant for variant in variants}
    for red in reds:
        again = await run_all([by_name[red.variant]], [cases[red.case]], lambda _: None, adapter=red.adapter)
        results = [replace(result, first_try=red.text) for result in again.results]
        where = matrix.results.index(red)
        matrix.results[where : where + 1] = results
        matrix.problems += again.problems
        matrix.seconds += again.seconds
        for result in results:
            progress(result)


class Lanes:
    """
    The lanes of one variant.

    Args:
        variant: whose driver.
        folder: for its logs and files.
        ground: of the run.
        bounds: for all variants together.
        note: takes each result.
        problems: takes what goes wrong beside the cases.
        adapter: the one to run cases for; empty: each.
    """

    def __init__(
        self,
        variant: Variant,
        folder: Path,
        ground: Ground,
        bounds: Bounds,
        note: Progress,
        problems: list[str],
        adapter: str = "",
    ) -> None:
        self._variant = variant
        self._folder = folder
        self._ground = ground
        self._bounds = bounds
        self._note = note
        self._problems = problems
        self._adapter = adapter
        self._numbers = iter(range(1, 1_000_000))
        self._adapters: dict[str, list[str]] = {}

    async def run(self, cases: Sequence[Case]) -> None:
        """Run the cases; each comes to a result."""
        self._folder.mkdir(parents=True)
        try:
            async with self._driver() as driver:
                self._adapters = dict(driver.adapters)
        except (DriverError, OSError) as error:
            self._problems.append(f"{self._variant.name}: {error}")
            for case in cases:
                self._note(self._result(case, "", Outcome.RED, "the driver does not run"))
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._one_after_the_other([case for case in cases if case.lane == "counted"]))
            group.create_task(self._side_by_side([case for case in cases if case.lane not in {"counted", "own"}]))
            for case in cases:
                if case.lane == "own":
                    group.create_task(self._on_its_own(case))

    # --- lanes --------------------------------------------------------------------------------------------------------

    async def _one_after_the_other(self, cases: Sequence[Case]) -> None:
        if not cases:
            return
        async with self._bounds.starts:
            place = await Place(self._ground).__aenter__()
        try:
            shared = _Shared(self)
            for case in cases:
                for adapter in self._adapters_of(case):
                    await self._run(case, adapter, place, shared)
            await shared.close()
        finally:
            await place.__aexit__()

    async def _side_by_side(self, cases: Sequence[Case]) -> None:
        if not cases:
            return
        shared = _Shared(self)
        async with contextlib.AsyncExitStack() as stack:
            place = None

            async def run(case: Case, adapter: str) -> None:
                async with self._bounds.waits:
                    await self._run(case, adapter, None if case.is_scripted else place, shared)

            async with asyncio.TaskGroup() as group:
                # They take longer than everything else, and do nothing meanwhile.
                for case in cases:
                    if case.lane == "idle":
                        for adapter in self._adapters_of(case):
                            group.create_task(self._run(case, adapter, None, shared))
                if any(case.lane == "timed" for case in cases):
                    async with self._bounds.starts:
                        place = await stack.enter_async_context(Place(self._ground))
                for case in cases:
                    if case.lane != "idle":
                        for adapter in self._adapters_of(case):
                            group.create_task(run(case, adapter))
            await shared.close()

    async def _on_its_own(self, case: Case) -> None:
        for adapter in self._adapters_of(case):
            async with self._bounds.starts:
                began = time.monotonic()
                try:
                    place = Place(self._ground, names=case.brokers, up=case.start, connection_age=case.connection_age)
                    async with place:
                        await self._run(case, adapter, place, None)
                except Exception as error:  # noqa: BLE001 - a broker that does not start is this case's failure
                    text = f"{type(error).__name__}: {error}"
                    self._note(self._result(case, adapter, Outcome.RED, text, time.monotonic() - began))

    def _adapters_of(self, case: Case) -> list[str]:
        if case.adapters is None:
            return [""]
        names = self._adapters.get(case.adapters, [])
        if not names:
            self._note(self._result(case, "", Outcome.RED, f"the driver names no {case.adapters} adapters"))
            return []
        meant = [name for name in names if name not in case.without and self._adapter in {"", name}]
        if not meant:
            self._note(self._result(case, "", Outcome.NONE, "docs/clients.md excepts its adapters"))
        return meant

    # --- one case -----------------------------------------------------------------------------------------------------

    async def _run(self, case: Case, adapter: str, place: Place | None, shared: "_Shared | None") -> None:
        began = time.monotonic()
        outcome, text = Outcome.GREEN, ""
        try:
            async with asyncio.timeout(case.timeout):
                await self._attempt(case, adapter, place, None if case.has_own_driver else shared)
        except NotHereError as error:
            # CI has all that cases need: there nothing may be left out.
            outcome, text = Outcome.RED if toolchains.in_ci() else Outcome.SKIPPED, str(error)
        except UnsupportedError as error:
            outcome, text = Outcome.NONE, str(error)
        except TimeoutError:
            outcome, text = Outcome.RED, f"was not done within {case.timeout:.0f} s"
        except (CaseFailedError, DriverError) as error:
            outcome, text = Outcome.RED, str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this case's failure and not the others'
            outcome, text = Outcome.RED, f"{type(error).__name__}: {error}"
        self._note(self._result(case, adapter, outcome, text, time.monotonic() - began))

    async def _attempt(self, case: Case, adapter: str, place: Place | None, shared: "_Shared | None") -> None:
        folder = self._folder / f"{next(self._numbers)}-{case.name}"
        folder.mkdir()
        world = World(case, place, folder=folder, ground=self._ground, adapter=adapter)
        async with world:
            if shared is not None:
                await _judge(case, world, await shared.driver())
            else:
                if case.hosts is not None:
                    await _require_unshare()
                environment = {name: world.filled(value) for name, value in (case.env or {}).items()}
                async with self._driver(environment, world.hosts_file) as driver:
                    await _judge(case, world, driver)
            if case.lane == "counted":
                await _quiet(world)

    @contextlib.asynccontextmanager
    async def _driver(
        self, environment: dict[str, str] | None = None, hosts: Path | None = None
    ) -> AsyncIterator[Driver]:
        folder = self._folder / f"driver-{next(self._numbers)}"
        variant = self._variant
        driver = Driver(variant.command, tree=variant.tree, folder=folder, environment=environment, hosts=hosts)
        async with driver:
            yield driver

    def new_driver(self) -> "contextlib.AbstractAsyncContextManager[Driver]":
        """Return a driver, not started yet, for cases that share one."""
        return self._driver()

    def blame(self, problem: str) -> None:
        """Note what went wrong beside the cases."""
        self._problems.append(f"{self._variant.name}: {problem}")

    def _result(self, case: Case, adapter: str, outcome: Outcome, text: str = "", seconds: float = 0.0) -> Result:
        return Result(
            case=case.name, variant=self._variant.name, adapter=adapter, outcome=outcome, text=text, seconds=seconds
        )


class _Shared:
    """The driver that the cases of a lane share; one that crashed is replaced for those that come after."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._exits = contextlib.AsyncExitStack()
        self._current: Driver | None = None
        self._starting = asyncio.Lock()

    async def driver(self) -> Driver:
        """Return one that runs."""
        async with self._starting:
            if self._current is None or self._current.has_ended:
                with contextlib.suppress(DriverError):  # the case that met its end tells of it
                    await self._exits.aclose()
                self._exits = contextlib.AsyncExitStack()
                self._current = await self._exits.enter_async_context(self._lanes.new_driver())
            return self._current

    async def close(self) -> None:
        """End it; it must end well."""
        try:
            await self._exits.aclose()
        except DriverError as error:
            self._lanes.blame(str(error))


async def _judge(case: Case, world: World, driver: Driver) -> None:
    run = CaseRun(case, world, driver)
    try:
        await run.run()
    except BaseException:
        # Also of a case that was given up: others go on with this driver.
        await asyncio.shield(asyncio.ensure_future(run.abandon()))
        raise


async def _quiet(world: World) -> None:
    """Wait until the broker has no stream of the case any more: a client that was closed leaves none."""
    end = time.monotonic() + QUIET_SECONDS
    streams = world.functions()["streams"]
    while True:
        await world.look()
        if streams() == 0:
            return
        if time.monotonic() > end:
            raise CaseFailedError(f"{streams()} streams are left at the broker {QUIET_SECONDS:.0f} s after the close")
        await asyncio.sleep(0.02)


async def _require_unshare() -> None:
    """
    Raise when a driver cannot be given an /etc/hosts of its own.

    Raises:
        NotHereError: with the reason.
    """
    if shutil.which("unshare") is None:
        reason = "unshare is not installed"
    else:
        probe = await asyncio.create_subprocess_exec(
            "unshare", "--mount", "sh", "-c", "mount --bind /etc/hosts /etc/hosts",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, said = await probe.communicate()
        if probe.returncode == 0:
            return
        reason = f"no mount namespace can be made here: {said.decode(errors='replace').strip()}"
    raise NotHereError(reason)
