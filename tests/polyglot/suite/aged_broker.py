"""
A broker whose connections live for seconds: `python -m tests.polyglot.suite.aged_broker CONFIG SECONDS`.

In all else it is `credential-broker serve --dev`.
"""

import asyncio
import signal
import sys
from pathlib import Path

from broker.app import Application
from broker.config import load_config
from broker.telemetry import configure_logging


async def _serve(file: Path, seconds: float) -> None:
    config = load_config(file, {}, dev=True)
    configure_logging(config.log.level, config.log.format)
    # The same shares as those that are shipped: four fifths of the age as grace.
    arguments = {
        "grpc.max_connection_age_ms": round(seconds * 1000),
        "grpc.max_connection_age_grace_ms": round(seconds * 800),
    }
    application = Application(config, channel_arguments=arguments)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, application.request_stop)
    await application.start()
    sys.stderr.write('{"event": "serving"}\n')
    sys.stderr.flush()
    await application.run_until_stopped()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), float(sys.argv[2])))
