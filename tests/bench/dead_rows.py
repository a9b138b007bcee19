"""What very many rows cost: seconds to SERVING beside those that are over, a bite of pruning, a look for changes."""

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from broker.keyring import Keyring
from broker.keys import SigningKey
from broker.model import Identity, UpstreamKey
from broker.snapshots import seal_private_key, task_id_context
from broker.store.sqlite import sqlite_store
from tests.bench.product import Settings
from tests.bench.report import Figure, Verdict
from tests.bench.startup import NOBODY, measure_beside_empty, start_once
from tests.support.dead_rows import fill
from tests.support.stores import add_identity, agent_identity, upstream_task

LIVE: Final = 1_000
START_GOAL_SECONDS: Final = 5.0
PAGE_GOAL_SECONDS: Final = 0.5
BITE_GOAL_SECONDS: Final = 0.25
LOOK_GOAL_SECONDS: Final = 0.001
"""At ten looks a second, a hundredth of a core."""
_BITE: Final = 500
_BITES: Final = 100
_STARTS: Final = 5
_LOOKS: Final = 2_000


def measure_dead_rows(*, rows: int) -> list[Figure]:
    """
    Build a database with `LIVE` tasks and `rows` that are over, start a broker on it, and prune.

    Args:
        rows: how many tasks have expired; their bindings stand.
    """
    with tempfile.TemporaryDirectory(prefix="bench-dead-rows-") as name:
        empty, settings = (Settings.choose(Path(name) / folder, NOBODY) for folder in ("empty", "full"))
        start_once(settings)  # makes the database and the key ring
        database = settings.state_dir / "broker.db"
        keyring = Keyring.load_or_create(settings.state_dir / "keyring.json", may_create=False)
        identity = asyncio.run(_add_identity(database, keyring))

        def seal(key: str) -> bytes:
            place = task_id_context(upstream_task(identity, UpstreamKey(key)))
            return keyring.seal(f"task-{key}".encode(), context=place)

        fill(database, identity.id, now=time.time(), live=LIVE, expired=rows, seal=seal)
        # The first read of a file is the disk's and not the program's, and comes with the start.
        page_seconds = asyncio.run(_read_live(database))
        start = measure_beside_empty(
            f"serve to SERVING beside {rows:,} expired and {LIVE:,} live tasks",
            settings,
            empty,
            times=_STARTS,
            goal=START_GOAL_SECONDS,
        )
        look, read = asyncio.run(_look(database))
        bites = asyncio.run(_prune(database))
    longest = max(bites)
    return [
        start,
        Figure(
            name="opening the store and the first page of live tasks",
            value=f"{page_seconds * 1000:.0f} ms",
            goal=f"< {PAGE_GOAL_SECONDS * 1000:.0f} ms",
            verdict=Verdict.MET if page_seconds < PAGE_GOAL_SECONDS else Verdict.MISSED,
            details={"seconds": page_seconds},
        ),
        Figure(
            name=f"a bite of pruning, {_BITE} rows",
            value=f"{statistics.median(bites) * 1000:.0f} ms (longest of {len(bites)}: {longest * 1000:.0f})",
            goal=f"< {BITE_GOAL_SECONDS * 1000:.0f} ms",
            verdict=Verdict.MET if statistics.median(bites) < BITE_GOAL_SECONDS else Verdict.MISSED,
            notes=["Other writers wait this long."],
            details={"seconds": bites},
        ),
        Figure(
            name="asking whether anybody wrote, CPU",
            value=f"{look * 1e6:.0f} µs ({read * 1e6:.0f} to read that nothing changed)",
            goal=f"< {LOOK_GOAL_SECONDS * 1e6:.0f} µs",
            verdict=Verdict.MET if look < LOOK_GOAL_SECONDS else Verdict.MISSED,
            details={"seconds": look, "seconds_of_changes": read},
        ),
    ]


async def _add_identity(database: Path, keyring: Keyring) -> Identity:
    store = sqlite_store(database)
    await store.open()
    identity = agent_identity(backend="default")
    key = SigningKey.from_seed(os.urandom(32))
    sealed = seal_private_key(keyring, key, identity.id, identity.generation)
    identity = agent_identity(
        id=identity.id, backend="default", public_key=key.ssh_public_key, sealed_private_key=sealed
    )
    await add_identity(store, identity)
    await store.close()
    return identity


async def _read_live(database: Path) -> float:
    store = sqlite_store(database)
    start = time.perf_counter()
    await store.open()
    page = await store.live_tasks(now=time.time())
    seconds = time.perf_counter() - start
    await store.close()
    if not page.rows:
        raise RuntimeError("nothing lives in the database that was built")
    return seconds


async def _look(database: Path) -> tuple[float, float]:
    """Return the CPU seconds of a look that finds nothing, and of reading that there is nothing."""
    store = sqlite_store(database)
    await store.open()
    at = await store.change_sequence()
    await store.has_changed()
    start = time.process_time()
    for _ in range(_LOOKS):
        await store.has_changed()
    look = time.process_time() - start
    for _ in range(_LOOKS):
        await store.changes(at)
    read = time.process_time() - start - look
    await store.close()
    return look / _LOOKS, read / _LOOKS


async def _prune(database: Path) -> list[float]:
    store = sqlite_store(database)
    await store.open()
    bites = []
    for _ in range(_BITES):
        start = time.perf_counter()
        went = await store.prune(time.time(), idle_before=0.0, limit=_BITE)
        bites.append(time.perf_counter() - start)
        if went < _BITE:
            break
    await store.close()
    return bites
