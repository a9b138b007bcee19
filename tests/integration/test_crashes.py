"""A sample of `python -m tests.chaos.kill`: kill -9 under traffic loses nothing that was acknowledged."""

import secrets
from pathlib import Path

import pytest

from tests.chaos.kill import cut_off, session, verdict

KILLS = 20


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_nothing_acknowledged_is_lost_to_kill_9(tmp_path: Path) -> None:
    """Killed at 20 random moments of creating and registering, a broker keeps every promise it made."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    lives = await session(tmp_path, seed=seed, runs=KILLS)
    code, text = verdict(lives)
    assert code == 0, f"seed {seed}\n{text}"
    # Most kills must come in the midst of something, or the sample says little.
    assert sum(1 for run in lives if run.cut_creates or run.cut_registers) >= KILLS // 2
    assert cut_off(lives) >= KILLS
