"""
A broker in a process of its own, to be killed: `python -m tests.support.broker_process --state-dir DIR --backend URL`.

It says on standard output where it listens as soon as it serves: one JSON object, one line.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from broker.app import Application
from broker.config import Config
from broker.store import Store
from broker.telemetry import configure_logging
from tests.support.brokers import dev_config
from tests.support.failpoints import DyingStore

LEASE_SECONDS = 0.5
"""Short, so that what a killed broker held is free soon after the next one has started."""


def backend_section(profile: str, url: str) -> dict[str, dict[str, str]]:
    """Return the configuration of a backend that speaks a profile at a URL."""
    return {
        "default": {"profile": profile, "base_url": f"{url}/backend-api", "authapi_base_url": f"{url}/api/accounts"}
    }


async def _serve(config: Config, wrap_store: Callable[[Store], Store]) -> None:
    application = Application(config, wrap_store=wrap_store)
    await application.start()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, application.request_stop)
    serving = {
        "event": "serving",
        "callers": application.caller_address,
        "admin": application.admin_address,
        "http": application.http_address,
    }
    sys.stdout.write(json.dumps(serving) + "\n")
    sys.stdout.flush()
    await application.run_until_stopped()


def main() -> None:
    """Serve until SIGTERM, or until killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.broker_process", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--backend", required=True, help="the emulator's URL")
    parser.add_argument("--profile", default="codex-2026-08")
    parser.add_argument("--lease-seconds", type=float, default=LEASE_SECONDS, help="of claims")
    parser.add_argument("--die-before", metavar="METHOD", help="of the store: kill -9 when it is called")
    parser.add_argument("--die-after", metavar="METHOD", help="of the store: kill -9 when it has done its work")
    options = parser.parse_args()
    config = dev_config(
        options.state_dir,
        options.backend,
        backends=backend_section(options.profile, options.backend),
        limits={"registration_lease_seconds": options.lease_seconds},
        log={"level": "warning", "format": "json"},
    )
    configure_logging(config.log.level, config.log.format)
    asyncio.run(_serve(config, lambda store: DyingStore(store, before=options.die_before, after=options.die_after)))


if __name__ == "__main__":
    main()
