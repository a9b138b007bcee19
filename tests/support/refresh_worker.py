"""
Another process that refreshes logins of a shared database: `python -m tests.support.refresh_worker OPTIONS`.

It takes one line a round on standard input: the ids of identities. It reads their rows, says `ready`, waits for another
line so that all processes begin at once, refreshes every one of them, and says what came of it. What it sends to the
issuer it writes into a journal before and after, so that what a killed process was about is known.
"""

import argparse
import asyncio
import hashlib
import json
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from broker.bearer.oauth import Issuer, Logins, LoginSource
from broker.bearer.refresh_grant import Refreshed, RefreshFailure, RefreshGrant
from broker.bearer.stored import open_bearer
from broker.bearer.turns import Turns
from broker.clock import SystemClock
from broker.errors import IssuerDownError, ReauthRequiredError, StoreDownError
from broker.keyring import Keyring
from broker.model import Identity, IdentityId, Secret, StoredBearer
from broker.origins import parse_origin
from broker.outbound import GuardedHttp
from broker.store import Store
from broker.store.sqlite import sqlite_store
from broker.telemetry import Metrics, configure_logging

SOURCE = "login"
_PATIENCE = 60.0
_PAUSE = 0.05


class JournalGrant(RefreshGrant):
    """The real exchange, with a line in the journal before it begins and after it ended."""

    def __init__(self, journal: Path, worker: str, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        # One write a line, at the end of the file: whole lines of all processes, also of those that are killed.
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._worker = worker

    async def refresh(self, refresh_token: Secret, *, within: float = math.inf) -> Refreshed:
        """Exchange a refresh token."""
        # As the emulator's ledger names it; its own function would bring a whole web server with it.
        name = hashlib.sha256(refresh_token.reveal().encode()).hexdigest()[:16]
        self._write("send", name)
        try:
            answer = await super().refresh(refresh_token, within=within)
        except RefreshFailure as failure:
            self._write(failure.verdict.name, name)
            raise
        self._write("ANSWERED", name)
        return answer

    def _write(self, event: str, name: str) -> None:
        line = json.dumps({"time": time.monotonic(), "worker": self._worker, "event": event, "token": name})
        os.write(self._journal, f"{line}\n".encode())


class Worker:
    """The part of a broker that refreshes logins, on a store and a key ring that others use too."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.store: Store = sqlite_store(options.state_dir / "broker.db", busy_limit=30.0)
        self._keyring = Keyring.load_or_create(options.state_dir / "keyring.json", may_create=False)
        clock, self._metrics = SystemClock(), Metrics()
        url = f"{options.issuer}/oauth/token"
        http = GuardedHttp([parse_origin(url, allow_loopback_http=True)], clock, allow_loopback_http=True)
        grant = JournalGrant(
            options.journal,
            options.name,
            http,
            clock,
            token_url=url,
            client_id="codex",
            client_secret_file=None,
            timeout=options.timeout,
        )
        self.issuer = Issuer(
            name=SOURCE,
            grant=grant,
            turns=Turns(10_000, clock),
            lease_seconds=options.lease,
            patience=0.0,
        )
        self._logins = Logins(
            {SOURCE: self.issuer},
            store=self.store,
            keyring=self._keyring,
            clock=clock,
            metrics=self._metrics,
            jitter=random.Random(options.name),
        )
        self._sources: dict[IdentityId, LoginSource] = {}
        self._told: dict[str, int] = {}

    async def look_at(self, identity_id: IdentityId) -> None:
        """Read what is stored of a login, as following the store does."""
        identity, row = await self.store.identity(identity_id), await self.store.bearer(identity_id)
        assert identity is not None
        assert row is not None
        source = self._logins.source(identity, row, self._sources.get(identity_id), self._publish)
        assert isinstance(source, LoginSource)
        self._sources[identity_id] = source

    def _publish(self, bearer: StoredBearer, identity: Identity | None = None) -> None:
        self._sources[bearer.identity_id].take_in(bearer, open_bearer(self._keyring, bearer))

    async def refresh(self, identity_id: IdentityId) -> str:
        """Refresh a login as often as it takes, and say how it ended: `pair` or `dead`."""
        source = self._sources[identity_id]
        old = source.current()
        async with asyncio.timeout(_PATIENCE):
            while True:
                try:
                    await source.refresh(beyond=old)
                except ReauthRequiredError:
                    return "dead"
                except (IssuerDownError, StoreDownError) as error:
                    await asyncio.sleep(min(error.retry_after or _PAUSE, 4 * _PAUSE))
                    source.forget()  # its own pauses are those of a broker, and too long here
                else:
                    return "pair"

    def probes(self) -> dict[str, int]:
        """Count the probes since this was last asked, by their outcome."""
        outcomes = ("adopted", "refused", "released", "lost")
        counted = {outcome: self._metrics.refresh_probes.labels(outcome).value for outcome in outcomes}
        since = {outcome: count - self._told.get(outcome, 0) for outcome, count in counted.items()}
        self._told = counted
        return since


def say(word: object) -> None:
    """Print a line that the parent reads at once."""
    print(json.dumps(word), flush=True)


async def main() -> None:
    """Work until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.refresh_worker", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--issuer", required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--lease", type=float, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    configure_logging("error", "json")
    worker = Worker(parser.parse_args())
    await worker.store.open()
    say("open")
    while line := await asyncio.to_thread(sys.stdin.readline):
        identity_ids = [IdentityId(each) for each in json.loads(line)]
        for identity_id in identity_ids:
            await worker.look_at(identity_id)
        say("ready")
        await asyncio.to_thread(sys.stdin.readline)
        outcomes = await asyncio.gather(*(worker.refresh(each) for each in identity_ids))
        say({"outcomes": dict(zip(identity_ids, outcomes, strict=True)), "probes": worker.probes()})
    await worker.issuer.close()
    await worker.store.close()


if __name__ == "__main__":
    asyncio.run(main())
