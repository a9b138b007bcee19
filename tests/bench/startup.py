"""How fast the program starts: CPU seconds of `--help`, and seconds from `serve` to a health answer of SERVING."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.bench.frames import Request
from tests.bench.load import OK, LoadError, call
from tests.bench.processes import ROOT, START_SECONDS, STOP_SECONDS, ServerError
from tests.bench.product import Settings
from tests.bench.report import Figure, Verdict

HELP_GOAL_SECONDS: Final = 0.5
SERVE_GOAL_SECONDS: Final = 2.0
PROGRAM: Final = Path(sys.executable).parent / "credential-broker"
_HEALTH: Final = Request("/grpc.health.v1.Health/Check", b"")
_SERVING: Final = b"\x08\x01"
"""`HealthCheckResponse{status: SERVING}`."""
_POLL_SECONDS: Final = 0.005


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
            fresh.append(seconds_to_serving(settings))
            again.append(seconds_to_serving(settings))
    return [
        _figure("serve to SERVING, first start", fresh[1:], SERVE_GOAL_SECONDS),
        _figure("serve to SERVING, later start", again[1:], SERVE_GOAL_SECONDS),
    ]


def _cpu_seconds(command: list[str]) -> float:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise ServerError(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def seconds_to_serving(settings: Settings) -> float:
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
        return time.perf_counter() - start
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
