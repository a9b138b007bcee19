"""
Has several processes refresh the same logins at the same moments, against an issuer that ends a login on any reuse.

`python -m tests.chaos.refresh --races 10000 --processes 4 --seed S [--resume]`. A race is one login that all processes
refresh at once, on one database. Answers are lost, requests refused, workers killed with SIGKILL. What each process
sent stands in a journal, what the issuer made of it in its ledger, and after each round both are held against the rows:

- No refresh token is on its way twice at the same time.
- None is sent again after the issuer accepted or refused it, and at most once more after its answer was lost; only
  those probes may be reuses in the issuer's ledger.
- Each race ends with exactly one new pair, or with a dead login whose answer was lost: no token is wiped.

The races are run in worlds of their own (a database, an issuer), so that a run that was cut off goes on with `--resume`
at the world it was in. A run in which nothing was lost or killed proves nothing and says so.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import secrets
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from broker.bearer.stored import open_bearer, open_refresh_token, seal_pair
from broker.clock import SystemClock
from broker.emulator import EmulatorServer, EmulatorSettings
from broker.emulator.accounts import fingerprint
from broker.emulator.faults import Action, FaultRule
from broker.emulator.routing import Operation
from broker.emulator.settings import TokenFormat
from broker.keyring import Keyring
from broker.model import IdentityId, IdentityState, RefreshState, Secret, StoredBearer
from broker.store import Store
from tests.support.refresh_worker import SOURCE
from tests.support.stores import bearer_identity, create_request, sqlite_store

RACES_A_WORLD = 1000
LOGINS = 100
LEASE, TIMEOUT = 12.0, 2.0
"""Between the two lies the time in which an answer must be written down, by a machine with much else to do."""
ROUND_SECONDS = 120.0
FAILED, PROVED_NOTHING = 1, 2
DEFAULT_STATE = Path(tempfile.gettempdir()) / "credential-broker-refresh-races.json"

_AMBIGUOUS = "ANSWER_LOST"
_FINAL = ("ANSWERED", "REFUSED")


@dataclass(slots=True)
class Sending:
    """One time that a refresh token was sent, from the journal; an end is missing where its process was killed."""

    worker: str
    begin: float
    end: float | None = None
    outcome: str = _AMBIGUOUS


@dataclass(slots=True)
class Totals:
    """What the races came to."""

    races: int = 0
    pairs: int = 0
    dead: int = 0
    sent: int = 0
    not_processed: int = 0
    lost: int = 0
    kills: int = 0
    probes_adopted: int = 0
    probes_refused: int = 0
    uncounted_double_uses: int = 0
    wiped: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def add(self, other: "Totals") -> None:
        """Take in the totals of another world."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Process:
    """A worker process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process

    async def tell(self, word: object) -> None:
        """Give it a line."""
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(f"{json.dumps(word)}\n".encode())
            await self._process.stdin.drain()

    async def hear(self) -> object:
        """Return its next line; None when it has ended."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return json.loads(line) if line else None

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._process.kill()

    async def end(self) -> None:
        """Let it end, and wait for that."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


class World:
    """One database, one issuer, some logins, and the processes that refresh them."""

    def __init__(
        self, folder: Path, store: Store, emulator: EmulatorServer, chance: random.Random, *, size: int, lease: float
    ) -> None:
        self.totals = Totals()
        self._folder = folder
        self._store = store
        self._emulator = emulator
        self._chance = chance
        self._keyring = Keyring.load_or_create(folder / "keyring.json", may_create=True)
        self._journal = folder / "journal"
        self._processes: list[Process] = []
        self._started = 0
        self._size = size
        self._lease = lease
        self._logins: list[IdentityId] = []
        self._read_bytes = 0
        self._sendings: defaultdict[str, list[Sending]] = defaultdict(list)
        self._seen_exchanges = 0

    async def begin(self, logins: int) -> None:
        """Make the logins and start the processes."""
        for number in range(logins):
            identity = bearer_identity(f"login-{number}")
            row = self._login(identity.id, pair=1)
            await self._store.create_identity(identity, create_request(), bearer=row)
            self._logins.append(identity.id)
        self._processes = list(await asyncio.gather(*(self._start() for _ in range(self._size))))

    async def end(self) -> None:
        """End the processes."""
        await asyncio.gather(*(process.end() for process in self._processes))

    async def _start(self) -> Process:
        self._started += 1
        name = f"worker-{self._started}"
        process = Process(
            name,
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.support.refresh_worker", "--state-dir", str(self._folder)),
                *("--issuer", self._emulator.url, "--journal", str(self._journal), "--name", name),
                *("--lease", str(self._lease), "--timeout", str(TIMEOUT)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            ),
        )
        assert await process.hear() == "open"
        return process

    def _login(self, identity_id: IdentityId, *, pair: int) -> StoredBearer:
        tokens = self._emulator.backend.mint_token()
        assert tokens.refresh_token is not None
        sealed = seal_pair(
            self._keyring,
            identity_id,
            pair,
            access_token=Secret(tokens.access_token),
            refresh_token=Secret(tokens.refresh_token),
        )
        now = SystemClock().now()
        return StoredBearer(
            identity_id=identity_id,
            pair=pair,
            sealed=sealed.access_token,
            sealed_refresh_token=sealed.refresh_token,
            expire_time=now + tokens.expires_in,
            obtain_time=now,
            source=SOURCE,
        )

    # --- one round ----------------------------------------------------------------------------------------------------

    async def race(self, count: int) -> None:
        """Have every process refresh `count` logins at once, with what goes wrong this time, and hold it to account."""
        racing = self._chance.sample(self._logins, count)
        before = {identity_id: await self._row(identity_id) for identity_id in racing}
        for process in self._processes:
            await process.tell(racing)
        assert [await process.hear() for process in self._processes] == ["ready"] * self._size
        rules = [self._emulator.backend.faults.add(rule) for rule in self._mishaps(count)]
        victim = self._chance.randrange(self._size) if self._chance.random() < 1 / 8 else None
        for process in self._processes:
            await process.tell("go")
        async with asyncio.timeout(ROUND_SECONDS):
            if victim is not None:
                await asyncio.sleep(self._chance.uniform(0.0, 0.3))
                await self._kill(self._processes[victim], before)
            heard = await asyncio.gather(*(process.hear() for process in self._processes))
        for rule in rules:
            self._emulator.backend.faults.remove(rule.rule_id)
        if victim is not None:
            self._processes[victim] = await self._start()
        for number, each in enumerate(heard):
            if each is None and number != victim:
                self.totals.problems.append(f"worker {number} ended by itself")
            elif isinstance(each, dict):
                self.totals.probes_adopted += each["probes"]["adopted"]
                self.totals.probes_refused += each["probes"]["refused"]
        self._read_journal()
        self._check_ledger()
        for identity_id, row in before.items():
            await self._check(row, await self._row(identity_id))
        self.totals.races += count

    async def _kill(self, victim: Process, before: Mapping[IdentityId, StoredBearer]) -> None:
        """Kill a worker, and note which answers died with it: those that had come and were not written down."""
        victim.kill()
        await victim.end()
        self.totals.kills += 1
        self._read_journal()
        for identity_id, row in before.items():
            if (await self._row(identity_id)).pair == row.pair:
                for sending in self._sendings[self._token(row)]:
                    if sending.worker == victim.name:
                        sending.outcome = _AMBIGUOUS

    def _token(self, row: StoredBearer) -> str:
        """Return the name of a row's refresh token in the journal and the ledger."""
        token = open_refresh_token(self._keyring, row)
        assert token is not None
        return fingerprint(token.reveal())

    def _mishaps(self, count: int) -> list[FaultRule]:
        """Choose what goes wrong: a few requests are turned away, in some rounds a few answers get lost."""
        some = max(1, count // 20)
        turned_away = FaultRule(
            action=Action.STATUS,
            operation=Operation.OAUTH,
            status=self._chance.choice((429, 503)),
            retry_after="0",
            count=self._chance.randint(1, 2 * some),
        )
        # What is turned away uses up a loss as well, as its answer is lost.
        most = some + (turned_away.count or 0)
        losses = (
            FaultRule(action=Action.DROP_AFTER, operation=Operation.OAUTH, count=most),
            FaultRule(action=Action.TRUNCATE, operation=Operation.OAUTH, count=most),
            FaultRule(action=Action.STATUS, status=500, operation=Operation.OAUTH, count=some),
        )
        return [turned_away, self._chance.choice(losses)] if self._chance.random() < 1 / 4 else [turned_away]

    async def _row(self, identity_id: IdentityId) -> StoredBearer:
        row = await self._store.bearer(identity_id)
        assert row is not None
        return row

    # --- holding it to account ----------------------------------------------------------------------------------------

    def _read_journal(self) -> None:
        """Take in what was sent since the last time, and judge each token's sendings."""
        raw = self._journal.read_bytes() if self._journal.exists() else b""
        lines, self._read_bytes = raw[self._read_bytes :].decode().splitlines(), len(raw)
        touched = set()
        for line in lines:
            entry = json.loads(line)
            token = entry["token"]
            touched.add(token)
            if entry["event"] == "send":
                self._sendings[token].append(Sending(entry["worker"], entry["time"]))
                self.totals.sent += 1
                continue
            sending = next(each for each in reversed(self._sendings[token]) if each.worker == entry["worker"])
            sending.end, sending.outcome = entry["time"], entry["event"]
            self.totals.not_processed += sending.outcome == "NOT_PROCESSED"
        for token in touched:
            self._judge(token, self._sendings[token])

    def _judge(self, token: str, sendings: list[Sending]) -> None:
        for earlier, later in itertools.pairwise(sendings):
            # One that was cut off by a kill ended with its process; nobody may know that before its lease is over.
            end = earlier.end if earlier.end is not None else earlier.begin + TIMEOUT / 2
            if later.begin < end:
                self.totals.problems.append(f"{token}: sent by {later.worker} while {earlier.worker} was sending it")
            if earlier.outcome in _FINAL:
                self.totals.problems.append(f"{token}: sent again after it was {earlier.outcome}")
        if sum(each.outcome != "NOT_PROCESSED" for each in sendings) > 2:
            self.totals.problems.append(f"{token}: probed more than once")

    def _check_ledger(self) -> None:
        """Find reuses of refresh tokens that are no probes after a lost answer."""
        for exchange in self._emulator.backend.exchanges.entries(since=self._seen_exchanges, grant="refresh_token"):
            self._seen_exchanges = exchange.seq
            if exchange.reused and not self._was_lost(exchange.presented or ""):
                self.totals.uncounted_double_uses += 1
                self.totals.problems.append(f"{exchange.presented}: used twice although its answer had arrived")

    def _was_lost(self, token: str) -> bool:
        sendings = self._sendings[token]
        return bool(sendings) and any(each.outcome == _AMBIGUOUS for each in sendings)

    async def _check(self, before: StoredBearer, after: StoredBearer) -> None:
        """Hold the row of a login after a race against the one before it."""
        was_lost = self._was_lost(self._token(before))
        if after.pair == before.pair + 1 and after.refresh_state is RefreshState.IDLE:
            self.totals.pairs += 1
            if open_bearer(self._keyring, after) is None or self._token(after) == self._token(before):
                self.totals.wiped += 1
                self.totals.problems.append(f"{before.identity_id}: the new pair is not whole")
        elif after.pair == before.pair and after.refresh_state is RefreshState.DEAD:
            self.totals.dead += 1
            if not was_lost:
                self.totals.wiped += 1
                self.totals.problems.append(f"{before.identity_id}: dead ({after.reason}) with no answer lost")
            await self._log_in_again(after)
        else:
            self.totals.problems.append(
                f"{before.identity_id}: pair {before.pair} became {after.pair}, {after.refresh_state}"
            )
        self.totals.lost += was_lost

    async def _log_in_again(self, dead: StoredBearer) -> None:
        identity = await self._store.identity(dead.identity_id)
        assert identity is not None
        if identity.state is not IdentityState.REAUTH_REQUIRED:
            self.totals.problems.append(f"{dead.identity_id}: its login is dead and it is {identity.state}")
        await self._store.write_identity(
            replace(identity, state=IdentityState.ACTIVE, state_reason=""),
            bearer=self._login(dead.identity_id, pair=dead.pair + 1),
        )


@contextlib.asynccontextmanager
async def opened_world(chance: random.Random, *, processes: int, logins: int, lease: float) -> AsyncIterator[World]:
    """Open a world with nothing from before."""
    settings = EmulatorSettings(port=0, token_format=TokenFormat.OPAQUE)
    with tempfile.TemporaryDirectory(prefix="refresh-races-") as name:
        folder = Path(name)
        async with sqlite_store(folder, busy_limit=30.0) as store, EmulatorServer(settings) as emulator:
            world = World(folder, store, emulator, chance, size=processes, lease=lease)
            await world.begin(logins)
            try:
                yield world
            finally:
                await world.end()


async def run_world(seed: str, *, races: int, processes: int, logins: int = LOGINS, lease: float = LEASE) -> Totals:
    """Run that many races in a new world."""
    began = time.monotonic()
    chance = random.Random(seed)
    async with opened_world(chance, processes=processes, logins=min(logins, races), lease=lease) as world:
        while world.totals.races < races and not world.totals.problems:
            await world.race(min(logins, races - world.totals.races))
    world.totals.seconds = time.monotonic() - began
    return world.totals


def report(totals: Totals, seed: int) -> str:
    """Say what the races came to."""
    rate = totals.races / totals.seconds if totals.seconds else 0.0
    return "\n".join(
        (
            f"races {totals.races} in {totals.seconds:.0f} s ({rate:.0f} a second), seed {seed}",
            f"new pairs {totals.pairs}, logins ended by a lost answer {totals.dead}",
            f"requests sent {totals.sent}, turned away {totals.not_processed}, answers lost {totals.lost}",
            f"workers killed {totals.kills}",
            f"probes that brought a pair {totals.probes_adopted}, that found the token spent {totals.probes_refused}",
            f"double uses that are no probe {totals.uncounted_double_uses}, wiped tokens {totals.wiped}",
            *(f"PROBLEM {problem}" for problem in totals.problems),
        )
    )


def judge(totals: Totals) -> int:
    """Return the exit code."""
    if totals.problems:
        return FAILED
    return 0 if totals.lost and totals.pairs else PROVED_NOTHING


def main() -> int:
    """Run the races world by world, and keep where they stand."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.refresh", description=__doc__.splitlines()[1])
    parser.add_argument("--races", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--resume", action="store_true", help="go on where the last run was cut off")
    parser.add_argument("--state", type=Path, default=DEFAULT_STATE, help="where it is kept how far the run has come")
    options = parser.parse_args()
    totals = Totals()
    if options.resume and options.state.exists():
        kept = json.loads(options.state.read_text(encoding="utf-8"))
        options.races, options.processes, options.seed = kept["races"], kept["processes"], kept["seed"]
        totals = Totals(**kept["totals"])
        print(f"going on after {totals.races} races")
    while totals.races < options.races and not totals.problems:
        races = min(RACES_A_WORLD, options.races - totals.races)
        seed = f"{options.seed}/{totals.races}"
        totals.add(asyncio.run(run_world(seed, races=races, processes=options.processes)))
        kept = {name: getattr(options, name) for name in ("races", "processes", "seed")}
        shown = {name: getattr(totals, name) for name in Totals.__slots__}
        options.state.write_text(json.dumps({**kept, "totals": shown}), encoding="utf-8")
        print(f"{totals.races} races, {totals.seconds:.0f} s, double uses {totals.uncounted_double_uses}", flush=True)
    print(report(totals, options.seed))
    return judge(totals)


if __name__ == "__main__":
    sys.exit(main())
