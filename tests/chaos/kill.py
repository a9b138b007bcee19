"""
Kills a broker with SIGKILL at random moments of CreateIdentity and RegisterTask under traffic: `python -m tests.chaos.kill`.

After each kill three accounts are compared: what callers were told, what the database holds (read before anything else
opens it), and what the backend knows. Then the broker is started again on the same state, what was cut off is asked
for again, and what was told before must still be so.

- Whatever was acknowledged is in the database and usable.
- A (identity, thread) never has a second task while nobody replaced the first.
- Every public key the backend knows opens from the database with the key ring, and belongs to one identity.
- Every assertion that was answered verifies with the key of the identity it was asked for.

A session in which no kill cut an operation off, or nothing was acknowledged, proves nothing and says so.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import secrets
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import broker_admin_pb2_grpc, credential_broker_pb2_grpc
from credentialbroker.v1 import credential_broker_pb2 as pb2

from broker.app import KEYRING_FILE
from broker.emulator import EmulatorServer, EmulatorSettings
from broker.emulator.verify import format_ssh_public_key
from broker.errors import RowCorruptError
from broker.keyring import Keyring, SealBrokenError
from broker.model import Identity, IdentityName, IdentityState, Task, TaskState, ThreadId
from broker.snapshots import open_private_key, task_id_context
from broker.store.sqlite import sqlite_store
from tests.bench.processes import Server
from tests.support.assertions import Assertion, assertion_of
from tests.support.brokers import guarded_channel
from tests.support.slow_proxy import slow_proxy

PROFILE = "codex-2026-05"
"""Agents by biscuit, one upstream task per thread: the most steps in which to die."""
CREATORS, REGISTRARS = 2, 4
SLOWEST_ANSWER = 0.03
LONGEST_LIFE = 0.25
CALL_SECONDS = 10.0
FAILED, PROVED_NOTHING = 1, 2


@dataclass(frozen=True, slots=True)
class Create:
    """One CreateIdentity."""

    name: str
    token: str

    def request(self) -> admin_pb2.CreateIdentityRequest:
        """Return the message; repeated after a cut it is the same."""
        return admin_pb2.CreateIdentityRequest(
            request_id=f"create-{self.name}",
            name=self.name,
            mode=admin_pb2.IDENTITY_MODE_AGENT,
            static_bearer=admin_pb2.StaticBearer(token=self.token),
        )


@dataclass(frozen=True, slots=True)
class Register:
    """One RegisterTask."""

    identity: str
    thread_id: str

    def request(self) -> pb2.RegisterTaskRequest:
        """Return the message."""
        return pb2.RegisterTaskRequest(identity=self.identity, thread_id=self.thread_id)


@dataclass(slots=True)
class Told:
    """What callers were told since the session began."""

    identities: dict[str, admin_pb2.Identity] = field(default_factory=dict)
    tasks: set[Register] = field(default_factory=set)
    answers: dict[Register, list[Assertion]] = field(default_factory=lambda: defaultdict(list))


@dataclass(slots=True)
class Run:
    """One life of a broker, and how it ended."""

    number: int
    lived: float = 0.0
    acknowledged: int = 0
    answers: int = 0
    cut_creates: list[Create] = field(default_factory=list)
    cut_registers: list[Register] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stubs:
    """Both services of a running broker."""

    callers: "credential_broker_pb2_grpc.CredentialBrokerAsyncStub"
    admin: "broker_admin_pb2_grpc.BrokerAdminAsyncStub"


class Session:
    """
    A state directory and a backend that outlive every broker.

    Args:
        folder: empty, for the state and the logs.
        seed: what all that is random grows from, together with a run's number. Moments of death repeat by it; what the
            machine was doing just then does not.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.told = Told()
        self._state = folder / "state"
        self._emulator: EmulatorServer
        self._backend_url = ""
        self._starts = itertools.count(1)

    @contextlib.asynccontextmanager
    async def backend(self) -> AsyncIterator[None]:
        """Run the emulator, behind a proxy that keeps answers back, for all runs."""
        rng = random.Random(f"{self.seed}/network")
        async with (
            EmulatorServer(EmulatorSettings(port=0, profile=PROFILE)) as self._emulator,
            slow_proxy(self._emulator.url, slowest=SLOWEST_ANSWER, rng=rng) as self._backend_url,
        ):
            yield

    @contextlib.asynccontextmanager
    async def _broker(self) -> AsyncIterator[tuple[Server, Stubs]]:
        arguments = ["--state-dir", str(self._state), "--backend", self._backend_url, "--profile", PROFILE]
        name = f"broker-{next(self._starts)}"
        with Server(name, "tests.support.broker_process", arguments, folder=self.folder) as server:
            serving = await asyncio.to_thread(server.next_event)
            async with guarded_channel(serving["callers"]) as callers, guarded_channel(serving["admin"]) as admin:
                yield (
                    server,
                    Stubs(
                        credential_broker_pb2_grpc.CredentialBrokerStub(callers),
                        broker_admin_pb2_grpc.BrokerAdminStub(admin),
                    ),
                )

    def _new_create(self, name: str) -> Create:
        # Opaque: signing a JWT for each would cost more than all the rest.
        token = f"token-{secrets.token_hex(16)}"
        self._emulator.backend.accept_bearer(token)
        return Create(name, token)

    # --- one life -----------------------------------------------------------------------------------------------------

    async def life(self, number: int, *, before: Run | None) -> Run:
        """
        Start a broker, check with it what the one before left, load it, kill it, and read what it left itself.

        Args:
            number: of this run; with the seed it decides when the broker dies.
            before: the run before, whose cut operations are asked for again; None for the first.
        """
        rng = random.Random(f"{self.seed}/{number}")
        run = Run(number)
        async with self._broker() as (server, stubs):
            if before is not None:
                await self._come_back(stubs, before, run)
            if not self.told.identities:
                await self._create(stubs, self._new_create("first"))
            run.lived = rng.uniform(0.0, LONGEST_LIFE)
            over = asyncio.Event()
            workers = [
                *(self._creator(stubs, run, worker, over) for worker in range(CREATORS)),
                *(self._registrar(stubs, run, worker, over, rng) for worker in range(REGISTRARS)),
            ]
            async with asyncio.TaskGroup() as group:
                for worker in workers:
                    group.create_task(worker)
                await asyncio.sleep(run.lived)
                server.signal(signal.SIGKILL)
                over.set()
        run.problems += await self._compare()
        return run

    async def last_look(self, before: Run) -> Run:
        """Start once more and check what the last life left."""
        run = Run(before.number + 1)
        async with self._broker() as (_, stubs):
            await self._come_back(stubs, before, run)
        run.problems += await self._compare()
        return run

    async def _create(self, stubs: Stubs, create: Create) -> None:
        answer = await stubs.admin.CreateIdentity(create.request(), timeout=CALL_SECONDS)
        self.told.identities[create.name] = answer.identity

    async def _register(self, stubs: Stubs, register: Register) -> None:
        await stubs.callers.RegisterTask(register.request(), timeout=CALL_SECONDS)
        self.told.tasks.add(register)

    async def _authorize(self, stubs: Stubs, register: Register) -> None:
        request = pb2.GetAuthorizationRequest(
            scope="inference", identity=register.identity, thread_id=register.thread_id
        )
        answer = await stubs.callers.GetAuthorization(request, timeout=CALL_SECONDS)
        self.told.answers[register].append(assertion_of(answer.authorization))

    async def _creator(self, stubs: Stubs, run: Run, worker: int, over: asyncio.Event) -> None:
        for turn in itertools.count():
            create = self._new_create(f"i-{run.number}-{worker}-{turn}")
            try:
                await self._create(stubs, create)
            except grpc.aio.AioRpcError as error:
                run.cut_creates.append(create)
                _expect_the_end(run, create, error, over)
                return
            run.acknowledged += 1

    async def _registrar(self, stubs: Stubs, run: Run, worker: int, over: asyncio.Event, rng: random.Random) -> None:
        for turn in itertools.count():
            register = Register(rng.choice(list(self.told.identities)), f"t-{run.number}-{worker}-{turn}")
            try:
                await self._register(stubs, register)
            except grpc.aio.AioRpcError as error:
                run.cut_registers.append(register)
                _expect_the_end(run, register, error, over)
                return
            run.acknowledged += 1
            try:
                await self._authorize(stubs, register)
            except grpc.aio.AioRpcError as error:
                _expect_the_end(run, register, error, over)
                return
            run.answers += 1

    async def _come_back(self, stubs: Stubs, before: Run, run: Run) -> None:
        """Ask again for what was cut off, and for what was told, as callers do whose broker has died."""
        wanted = sorted(self.told.tasks, key=lambda one: one.thread_id)
        rng = random.Random(f"{self.seed}/{before.number}/back")
        recent = [one for one in wanted if one.thread_id.startswith(f"t-{before.number}-")]
        again = {*recent, *rng.sample(wanted, min(10, len(wanted)))}
        for coroutine in (
            *(self._authorize(stubs, one) for one in again),
            *(self._create(stubs, one) for one in before.cut_creates),
            *(self._register(stubs, one) for one in before.cut_registers),
        ):
            try:
                await coroutine
            except grpc.aio.AioRpcError as error:
                run.problems.append(f"after the restart: {coroutine.__name__}: {error.code().name}: {error.details()}")
        for one in before.cut_registers:
            if one in self.told.tasks:
                await self._authorize(stubs, one)

    # --- the three accounts -------------------------------------------------------------------------------------------

    async def _compare(self) -> list[str]:
        """Compare what was told, what is in the database, and what the backend knows; return every contradiction."""
        store = sqlite_store(self._state / "broker.db", busy_limit=5.0)
        await store.open()
        try:
            keyring = Keyring.load_or_create(self._state / KEYRING_FILE, may_create=False)
            rows = {row.name: row for row in (await store.identities(limit=100_000)).rows}
            problems = [*self._compare_keys(keyring, rows), *self._compare_identities(rows)]
            for register in self.told.tasks | self.told.answers.keys():
                identity = rows.get(IdentityName(register.identity))
                if identity is not None:
                    task = await store.task(identity.id, ThreadId(register.thread_id))
                    problems += self._compare_task(keyring, identity, register, task)
        finally:
            await store.close()
        return problems

    def _compare_keys(self, keyring: Keyring, rows: dict[IdentityName, Identity]) -> list[str]:
        problems = []
        holders: dict[str, list[str]] = defaultdict(list)
        for identity in rows.values():
            try:
                holders[open_private_key(keyring, identity).ssh_public_key].append(identity.name)
            except RowCorruptError as error:
                problems.append(f"{identity.name}: its key does not open: {error.note}")
        for agent in self._emulator.backend.registry.agents_json():
            found = holders.get(agent["public_key"], [])
            if len(found) != 1:
                problems.append(f"{agent['agent_runtime_id']}: its key opens from {len(found)} rows of the database")
        return problems

    def _compare_identities(self, rows: dict[IdentityName, Identity]) -> list[str]:
        problems = []
        for name, told in self.told.identities.items():
            row = rows.get(IdentityName(name))
            if row is None:
                problems.append(f"{name}: was acknowledged and is gone")
            elif row.state is not IdentityState.ACTIVE:
                problems.append(f"{name}: was acknowledged and is {row.state}")
            elif (row.agent_runtime_id, row.public_key) != (told.agent_runtime_id, told.public_key):
                problems.append(f"{name}: is another agent than was acknowledged")
            else:
                agent = self._emulator.backend.registry.agent(told.agent_runtime_id)
                if format_ssh_public_key(agent.public_key) != told.public_key:
                    problems.append(f"{name}: the backend knows another key of its agent")
        return problems

    def _compare_task(self, keyring: Keyring, identity: Identity, register: Register, task: Task | None) -> list[str]:
        where = f"{register.identity}/{register.thread_id}"
        upstream = None if task is None else task.upstream
        if upstream is None or upstream.state is not TaskState.ACTIVE or upstream.sealed_task_id is None:
            return [f"{where}: was acknowledged and is {'gone' if upstream is None else upstream.state}"]
        try:
            task_id = keyring.open(upstream.sealed_task_id, context=task_id_context(upstream)).decode()
        except SealBrokenError:
            return [f"{where}: its task id does not open"]
        problems = []
        known = {one.task_id for one in self._emulator.backend.registry.tasks(identity.agent_runtime_id)}
        if task_id not in known:
            problems.append(f"{where}: the backend knows no such task of this agent")
        for assertion in self.told.answers[register]:
            if assertion.task_id != task_id:
                problems.append(f"{where}: has a second task")
            if assertion.agent_runtime_id != identity.agent_runtime_id:
                problems.append(f"{where}: was answered for another agent")
            if not assertion.is_signed_by(identity.public_key or ""):
                problems.append(f"{where}: an answer does not verify with the identity's key")
        return problems


def _expect_the_end(run: Run, what: Create | Register, error: grpc.aio.AioRpcError, over: asyncio.Event) -> None:
    """Note a failure that the kill does not explain."""
    if not over.is_set() or error.code() is not grpc.StatusCode.UNAVAILABLE:
        run.problems.append(f"{what}: {error.code().name}: {error.details()}"[:300])


async def session(folder: Path, *, seed: int, runs: int, first: int = 1) -> list[Run]:
    """
    Kill a broker `runs` times and return what each life brought.

    Args:
        folder: empty.
        seed: see `Session`.
        runs: how many lives.
        first: the number of the first one, to repeat a later one of another session.
    """
    chaos = Session(folder, seed)
    lives: list[Run] = []
    async with chaos.backend():
        for number in range(first, first + runs):
            lives.append(await chaos.life(number, before=lives[-1] if lives else None))
            print(_row(lives[-1]), flush=True)
        lives.append(await chaos.last_look(lives[-1]))
    return lives


def cut_off(lives: list[Run]) -> int:
    """Count the operations that a kill cut off."""
    return sum(len(run.cut_creates) + len(run.cut_registers) for run in lives)


def verdict(lives: list[Run]) -> tuple[int, str]:
    """Return the exit code of a session and what it says."""
    problems = [f"run {run.number}: {problem}" for run in lives for problem in run.problems]
    if problems:
        return FAILED, "\n".join(problems)
    acknowledged, cut = sum(run.acknowledged for run in lives), cut_off(lives)
    if not cut or not acknowledged or not any(run.answers for run in lives):
        return PROVED_NOTHING, f"proves nothing: {acknowledged} operations acknowledged, {cut} cut off"
    hits = sum(1 for run in lives if run.cut_creates or run.cut_registers)
    return 0, (
        f"{len(lives) - 1} kills, {hits} of them in the midst of an operation; {acknowledged} operations acknowledged,"
        f" {cut} cut off, {sum(run.answers for run in lives)} assertions: nothing lost, nothing twice, all verify"
    )


HEADER = f"{'run':>5} {'lived ms':>9} {'acknowledged':>13} {'assertions':>11} {'cut creates':>12} {'cut registers':>14}  problems"


def _row(run: Run) -> str:
    return (
        f"{run.number:>5} {run.lived * 1000:>9.0f} {run.acknowledged:>13} {run.answers:>11}"
        f" {len(run.cut_creates):>12} {len(run.cut_registers):>14}  {len(run.problems)}"
    )


def main() -> int:
    """Run a session, print its table, and keep its folder when something was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.kill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=200, help="how many kills (200)")
    parser.add_argument("--seed", type=int, default=None, help="repeat a session's moments of death (a new one)")
    parser.add_argument("--first", type=int, default=1, help="number of the first run, to begin later in a session (1)")
    options = parser.parse_args()
    seed = secrets.randbits(32) if options.seed is None else options.seed
    print(f"seed {seed}\n{HEADER}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="broker-chaos-"))
    lives = asyncio.run(session(folder, seed=seed, runs=options.runs, first=options.first))
    code, text = verdict(lives)
    print(
        f"{text}\nrepeat with: python -m tests.chaos.kill --runs {options.runs} --seed {seed} --first {options.first}"
    )
    if code == FAILED:
        print(f"state and logs are kept in {folder}")
    else:
        shutil.rmtree(folder)
    return code


if __name__ == "__main__":
    sys.exit(main())
