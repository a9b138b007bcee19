"""The installed command line as processes, for tests of what only a process shows: exit codes, signals, what is left."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).parent / "credential-broker"
WAIT_SECONDS = 60
"""How long anything may take before a test gives up on it; nothing is measured by it."""

_OURS = ("CREDENTIAL_BROKER_", "XDG_STATE_HOME", "NO_COLOR", "FORCE_COLOR", "TERM")


def environment(**more: str) -> dict[str, str]:
    """Return the environment without any setting of the broker or of colours, and with `more`."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)} | more


def run(*arguments: str | Path, stdin: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [PROGRAM, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
        env=environment(**more),
        cwd=ROOT,
    )


@dataclass
class Running:
    """A command that goes on until it is told."""

    process: subprocess.Popen[str]
    lines: list[str]

    def read_until(self, end: str) -> str:
        """Read standard output to the line that begins with `end`, and return all that was printed so far."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith(end):
                return "".join(self.lines)
        raise AssertionError(f"it ended before {end!r}: {''.join(self.lines)}{self.process.communicate()[1]}")

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        """Send a signal; return the exit code and what else was printed."""
        self.process.send_signal(number)
        stdout, stderr = self.process.communicate(timeout=WAIT_SECONDS)
        return self.process.returncode, stdout, stderr


def start(*arguments: str | Path, cwd: Path = ROOT, more: Mapping[str, str] | None = None) -> Running:
    """Start a command, in a process group of its own as a shell would."""
    process = subprocess.Popen(
        [PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**(more or {})),
        cwd=cwd,
        start_new_session=True,
    )
    return Running(process, [])
