"""A broker with an emulator and a ready identity, as `make dev` gives it to a newcomer, for examples and benchmarks."""

import asyncio
import contextlib
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.polyglot.languages import ROOT
from tests.polyglot.suite import processes
from tests.polyglot.suite.brokers import START_SECONDS, BrokerError

_READY: Final = "Ctrl-C ends it"
_STOP_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Dev:
    """Where `credential-broker dev` runs: the callers' address, and the URL of a protected resource."""

    address: str
    resource: str

    def environment(self) -> dict[str, str]:
        """Return the variables with which a client finds it."""
        return {"CREDENTIAL_BROKER_ADDRESS": f"dns:///{self.address}"}


@contextlib.asynccontextmanager
async def dev_broker() -> AsyncIterator[Dev]:
    """Run it until the end of the block."""
    callers, operators, http, emulator = (processes.free_port() for _ in range(4))
    words = [str(Path(sys.executable).parent / "credential-broker"), "dev"]
    for option, port in (("", callers), ("admin-", operators), ("http-", http), ("emulator-", emulator)):
        words += [f"--{option}port", str(port)]
    with tempfile.TemporaryDirectory(prefix="cb-dev-") as folder:
        log = Path(folder) / "dev.log"
        environment = processes.clean_environment({"PYTHONUNBUFFERED": "1"})
        process = await processes.start(words, log=log, environment=environment, folder=ROOT)
        try:
            await _ready(process, log)
            yield Dev(f"127.0.0.1:{callers}", f"http://127.0.0.1:{emulator}/backend-api/codex/models")
        finally:
            await processes.end(process, seconds=_STOP_SECONDS, how=signal.SIGTERM)


async def _ready(process: asyncio.subprocess.Process, log: Path) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_SECONDS):
            while process.returncode is None:
                if _READY in _said(log):
                    return
                await asyncio.sleep(0.05)
    raise BrokerError(f"credential-broker dev does not run:\n{_said(log)[-2000:]}")


def _said(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")
