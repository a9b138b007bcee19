"""What the tests of the server's edge stand on: one broker with its emulator, in this process."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.emulator import EmulatorServer
from tests.support.brokers import Broker, running_broker, running_emulator


@pytest.fixture
async def emulator() -> AsyncIterator[EmulatorServer]:
    """Run an emulator."""
    async with running_emulator() as emulator:
        yield emulator


@pytest.fixture
async def broker(tmp_path: Path, emulator: EmulatorServer) -> AsyncIterator[Broker]:
    """Run a broker without any identity."""
    async with running_broker(tmp_path / "state", emulator) as broker:
        yield broker
