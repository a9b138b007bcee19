"""What every test of a command needs: a broker in memory and a way to run the command line against it."""

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from broker.cli import root
from tests.support.fake_broker import FakeBroker

Run = Callable[..., Result]


@pytest.fixture
def broker() -> FakeBroker:
    """A broker that answers in memory."""
    return FakeBroker()


@pytest.fixture
def run(broker: FakeBroker) -> Run:
    """Run a command line against the fake broker; afterwards no channel is left open."""

    def call(*arguments: str, **options: Any) -> Result:
        result = CliRunner(env={"CREDENTIAL_BROKER_ADDRESS": None}).invoke(
            root, arguments, obj=broker, prog_name="credential-broker", **options
        )
        assert broker.open_channels == 0
        return result

    return call
