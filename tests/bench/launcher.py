"""
`python -m tests.bench.launcher`: the broker as `credential-broker serve` runs it, with a switch to pause its upkeep.

It says on standard output what happens, a JSON object a line: `serving` when calls are taken, `upkeep_paused` when the
loops stand still after SIGUSR1. Everything a call passes through is the product's own.
"""

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Final

import uvloop

from broker.app import Application
from broker.config import Config, load_config
from broker.telemetry import configure_logging

SETTLE_SECONDS: Final = 0.5
"""How long what the loops had begun when they were paused may take."""


def _say(event: str) -> None:
    sys.stdout.write(json.dumps({"event": event}) + "\n")
    sys.stdout.flush()


async def _serve(config: Config) -> None:
    application = Application(config)
    loop = asyncio.get_running_loop()

    def pause() -> None:
        application.upkeep.pause()
        loop.call_later(SETTLE_SECONDS, _say, "upkeep_paused")

    await application.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, application.request_stop)
    loop.add_signal_handler(signal.SIGUSR1, pause)
    _say("serving")
    await application.run_until_stopped()


def main() -> None:
    """Read the configuration, as in development since the emulator speaks plain HTTP, and serve."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.launcher", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    config = load_config(parser.parse_args().config, {}, dev=True)
    configure_logging(config.log.level, config.log.format)
    uvloop.run(_serve(config))


if __name__ == "__main__":
    main()
