"""How fast the program starts: CPU seconds of `--help`, and seconds from `serve` to a health answer of SERVING."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from broker.keyring import Keyring
from broker.keys import SigningKey
from broker.model import Identity, Task, TaskKind, TaskState, UpstreamKey, UpstreamTask
from broker.snapshots import seal_private_key, task_id_context
from tests.bench.frames import Request
from tests.bench.load import OK, LoadError, call
from tests.bench.processes import ROOT, START_SECONDS, STOP_SECONDS, ServerError, cpu_by_thread
from tests.bench.product import Settings
from tests.bench.report import Figure, Verdict
from tests.support.many_identities import fill_identities
from tests.support.stores import agent_identity, upstream_task

HELP_GOAL_SECONDS: Final = 0.5
SERVE_GOAL_SECONDS: Final = 2.0
MANY_GOAL_SECONDS: Final = 5.0
NOBODY: Final = "https://127.0.0.1:9"
"""A backend that is not there: what is measured is the start, not what comes after it."""
PROGRAM: Final = Path(sys.executable).parent / "credential-broker"
_HEALTH: Final = Request("/grpc.health.v1.Health/Check", b"")
_SERVING: Final = b"\x08\x01"
"""`HealthCheckResponse{status: SERVING}`."""
_POLL_SECONDS: Final = 0.005


@dataclass(frozen=True, slots=True)
class Start:
    """
    One start of the broker, until its first answer of SERVING.

    Attributes:
        seconds: by the clock on the wall.
        cpu_seconds: that all its threads spent on a CPU, which other work on the machine hardly changes.
    """

    seconds: float
    cpu_seconds: float


def measure_help(*, times: int) -> Figure:
    """Run `credential-broker --help` so many times, after once for the bytecode."""
    seconds = [_cpu_seconds([str(PROGRAM), "--help"]) for _ in range(times + 1)][1:]
    return _figure("credential-broker --help, CPU", seconds, HELP_GOAL_SECONDS)


def measure_serve(*, times: int) -> list[Figure]:
    """Start `credential-broker serve` so many times with a new state directory and with one that exists."""
    fresh, again = [], []
    with tempfile.TemporaryDirectory(prefix="bench-startup-") as name:
        for number in range(times + 1):
            settings = Settings.choose(Path(name) / str(number))
            fresh.append(start_once(settings).seconds)
            again.append(start_once(settings).seconds)
    return [
        _figure("serve to SERVING, first start", fresh[1:], SERVE_GOAL_SECONDS),
        _figure("serve to SERVING, later start", again[1:], SERVE_GOAL_SECONDS),
    ]


def measure_many_identities(*, identities: int, times: int) -> Figure:
    """
    Start `credential-broker serve` so many times on a database with many agents.

    Args:
        identities: how many; each has a key of its own and a background task that lives.
        times: how often it is started.
    """
    with tempfile.TemporaryDirectory(prefix="bench-identities-") as name:
        empty, settings = (Settings.choose(Path(name) / folder, NOBODY) for folder in ("empty", "many"))
        start_once(settings)  # makes the database and the key ring
        keyring = Keyring.load_or_create(settings.state_dir / "keyring.json", may_create=False)
        fill_identities(
            settings.state_dir / "broker.db", (_registered_agent(keyring, number) for number in range(identities))
        )
        return measure_beside_empty(
            f"serve to SERVING with {identities:,} identities", settings, empty, times=times, goal=MANY_GOAL_SECONDS
        )


def measure_beside_empty(name: str, full: Settings, empty: Settings, *, times: int, goal: float) -> Figure:
    """
    Start a broker on a database that was filled and one on an empty database in turn; the first of each is left out.

    Where even the empty one takes longer than a start may, a missed goal says nothing: the run is void then.

    Args:
        name: of the figure.
        full: where the filled one is.
        empty: where the empty one is.
        times: how often each is started.
        goal: seconds that the median of `full` stays under.
    """
    both = [(start_once(full), start_once(empty)) for _ in range(times + 1)][1:]
    filled, control = [start for start, _ in both], [start for _, start in both]
    seconds = _median(filled, "seconds")
    missed = Verdict.VOID if _median(control, "seconds") >= SERVE_GOAL_SECONDS else Verdict.MISSED
    return Figure(
        name=name,
        value=f"{seconds:.2f} s, {_median(filled, 'cpu_seconds'):.2f} s of CPU",
        goal=f"< {goal} s",
        verdict=Verdict.MET if seconds < goal else missed,
        notes=[
            f"Worst of {times}: {max(start.seconds for start in filled):.2f} s.",
            f"Empty: {_median(control, 'seconds'):.2f} s, {_median(control, 'cpu_seconds'):.2f} s of CPU.",
        ],
        details={"starts": [asdict(start) for start in filled], "empty": [asdict(start) for start in control]},
    )


def _median(starts: Sequence[Start], of: str) -> float:
    return statistics.median(getattr(start, of) for start in starts)


def _registered_agent(keyring: Keyring, number: int) -> tuple[Identity, Task, UpstreamTask]:
    key = SigningKey.from_seed(os.urandom(32))
    identity = agent_identity(f"agent-{number}", backend="default", public_key=key.ssh_public_key)
    identity = replace(identity, sealed_private_key=seal_private_key(keyring, key, identity.id, identity.generation))
    upstream = upstream_task(identity, UpstreamKey("background"))
    upstream = replace(upstream, sealed_task_id=keyring.seal(b"task", context=task_id_context(upstream)))
    now = time.time()
    task = Task(
        id=identity.id,
        identity_id=identity.id,
        kind=TaskKind.BACKGROUND,
        thread_id=None,
        state=TaskState.ACTIVE,
        upstream_key=upstream.key,
        version=1,
        create_time=now,
        update_time=now,
        last_use_time=now,
    )
    return identity, task, upstream


def _cpu_seconds(command: list[str]) -> float:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise ServerError(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def start_once(settings: Settings) -> Start:
    """
    Start the broker, wait for the first answer of SERVING, and stop it.

    Raises:
        ServerError: it did not come up.
    """
    command = [str(PROGRAM), "serve", "--config", str(settings.write())]
    log = settings.folder / "serve.log"
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT, start_new_session=True
        )
    try:
        while not _serves(settings):
            if process.poll() is not None or time.perf_counter() - start > START_SECONDS:
                raise ServerError(f"serve did not come up; its log ends:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(_POLL_SECONDS)
        return Start(time.perf_counter() - start, sum(cpu_by_thread(process.pid).values()) / 1e9)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _serves(settings: Settings) -> bool:
    try:
        outcome, message = call(f"127.0.0.1:{settings.callers_port}", _HEALTH)
    except (OSError, LoadError):
        return False
    return outcome == OK and message == _SERVING


def _figure(name: str, seconds: list[float], goal: float) -> Figure:
    median = statistics.median(seconds)
    return Figure(
        name=name,
        value=f"{median:.2f} s (worst of {len(seconds)}: {max(seconds):.2f})",
        goal=f"< {goal} s",
        verdict=Verdict.MET if median < goal else Verdict.MISSED,
        details={"seconds": seconds},
    )
