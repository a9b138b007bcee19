"""Bearer sources as the broker puts them together from its configuration, without the broker."""

import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from broker.bearer import Bearer, BearerSource
from broker.bearer.configured import Surroundings, issuer_lines, open_sources
from broker.clock import Clock, SystemClock
from broker.config import load_config
from broker.telemetry import Metrics


@contextlib.asynccontextmanager
async def opened(
    *, clock: Clock | None = None, metrics: Metrics | None = None, **sections: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    """Open the sources of these sections, by name, for as long as the block lasts."""
    clock = clock or SystemClock()
    config = load_config(None, {}, dev=True, overrides={"bearer_sources": sections})
    lines = issuer_lines(config, clock)
    around = Surroundings(config, lines, clock, metrics or Metrics(), random.Random(1), lambda: None)
    sources: dict[str, BearerSource] = open_sources(around)
    try:
        yield sources
    finally:
        for source in sources.values():
            await source.close()


def secret_file(path: Path, text: str) -> str:
    """Write a file that only its owner can read, and return its path."""
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


async def accepted(emulator_url: str, bearer: Bearer, **headers: str) -> int:
    """Call the emulator's protected resource with a bearer; return the status."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(
            f"{emulator_url}/backend-api/x", headers={"authorization": f"Bearer {bearer.token.reveal()}", **headers}
        )
    return answer.status_code
