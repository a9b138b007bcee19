"""`python -m broker.emulator`: the emulator as a process of its own, for tests that kill things."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from broker.emulator.profiles import DEFAULT_PROFILE, PROFILES, TaskAnswer
from broker.emulator.server import EmulatorServer, ready_line, run, write_ready_file
from broker.emulator.settings import DEFAULT_PORT, EmulatorSettings


def main() -> None:
    """Serve until interrupted; `url` and `pid` go to standard output, and to `--ready-file`, when it is ready."""
    parser = argparse.ArgumentParser(prog="python -m broker.emulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--profile", choices=sorted(PROFILES), default=DEFAULT_PROFILE)
    parser.add_argument("--task-answer", choices=list(TaskAnswer), default=TaskAnswer.ENCRYPTED_TASK_ID)
    parser.add_argument("--ready-file", type=Path)
    options = parser.parse_args()
    try:
        settings = EmulatorSettings(
            host=options.host, port=options.port, profile=options.profile, task_answer=options.task_answer
        )
    except ValueError as error:
        parser.error(str(error))

    def on_ready(emulator: EmulatorServer) -> None:
        if options.ready_file is not None:
            write_ready_file(options.ready_file, emulator)
        sys.stdout.write(ready_line(emulator))
        sys.stdout.flush()

    asyncio.run(run(settings, on_ready))


if __name__ == "__main__":
    main()
