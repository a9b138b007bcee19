"""The store beside a simple model of what its contract says of tasks, through random histories."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.model import Identity, TaskState, UpstreamTask
from broker.store import Claimed, HeldElsewhere, Standing
from broker.store.sqlite import sqlite_store
from tests.support.stores import NOW, add_identity, task_claim

THREADS = st.sampled_from(["a", "b", "c"])
KEYS = {"a": "shared", "b": "shared", "c": "own"}
LEASE = 10.0


@dataclass
class Upstream:
    """What the model knows of an upstream task."""

    state: TaskState
    lease: float | None = None
    expire: float | None = None
    sealed: bytes | None = None
    token: int = 0


class StoreMachine(RuleBasedStateMachine):
    """Claims, answers, ends and revocations in any order, by holders that may have lost their claim."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = TemporaryDirectory()
        self.store = sqlite_store(Path(self.folder.name) / "broker.db")
        self.now = NOW
        self.bindings: dict[str, TaskState] = {}
        self.upstream: dict[tuple[int, str], Upstream] = {}
        self.claims: list[UpstreamTask] = []
        self.versions: dict[object, int] = {}
        self.identity: Identity

    @initialize()
    def begin(self) -> None:
        """Open the store with one identity."""
        self.runner.run(self.store.open())
        self.identity = self.runner.run(add_identity(self.store))

    def teardown(self) -> None:
        """Close all."""
        self.runner.run(self.store.close())
        self.runner.close()
        self.folder.cleanup()

    def _of(self, thread: str) -> Upstream | None:
        return self.upstream.get((self.identity.generation, KEYS[thread]))

    @rule(seconds=st.sampled_from([0.5, 4.0, LEASE]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    @rule(thread=THREADS, restart=st.booleans(), successor=st.booleans())
    def claim(self, thread: str, *, restart: bool, successor: bool) -> None:
        """Claim, perhaps in the place of what lives, and expect what the contract says."""
        wish = task_claim(self.identity, thread, key=KEYS[thread], now=self.now, lease_seconds=LEASE, restart=restart)
        if successor:
            wish = replace(wish, replace=self.versions.get(KEYS[thread]))
        outcome = self.runner.run(self.store.claim_task(wish))
        if self.bindings.get(thread, TaskState.ACTIVE) is not TaskState.ACTIVE and not restart:
            assert isinstance(outcome, Standing)
            return
        self.bindings[thread] = TaskState.ACTIVE
        known = self._of(thread)
        lives = known and known.state is TaskState.ACTIVE and (known.expire is None or known.expire > self.now)
        if lives and not successor:
            assert isinstance(outcome, Standing)
        elif known and known.lease is not None and known.lease > self.now:
            assert isinstance(outcome, HeldElsewhere)
        else:
            assert isinstance(outcome, Claimed)
            held = outcome.task.upstream
            assert held is not None
            assert all(held.fencing_token > c.fencing_token for c in self.claims if c.key == held.key)
            self.claims.append(held)
            if known and lives:
                known.lease, known.token = self.now + LEASE, held.fencing_token
                return
            self.upstream[self.identity.generation, KEYS[thread]] = Upstream(
                TaskState.CLAIMED, lease=self.now + LEASE, token=held.fencing_token
            )

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), lives=st.sampled_from([None, 3.0]))
    def complete(self, data: st.DataObject, lives: float | None) -> None:
        """Bring an answer for any claim ever made; only the current holder's counts."""
        held = data.draw(st.sampled_from(self.claims))
        sealed = f"answer {held.fencing_token}".encode()
        expire = None if lives is None else self.now + lives
        done = self.runner.run(self.store.complete_claim(held, sealed_task_id=sealed, now=self.now, expire_time=expire))
        known = self.upstream.get((held.generation, held.key))
        current = known and held.generation == self.identity.generation and known.token == held.fencing_token
        if known and current and known.lease is not None:
            assert done is not None
            known.state, known.lease, known.sealed, known.expire = TaskState.ACTIVE, None, sealed, expire
        elif known and current and known.state is TaskState.ACTIVE and known.sealed == sealed:
            assert done is not None  # the same answer again
        else:
            assert done is None

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), answer_lost=st.booleans())
    def release(self, data: st.DataObject, *, answer_lost: bool) -> None:
        """Give back any claim ever made; only the current holder's is freed."""
        held = data.draw(st.sampled_from(self.claims))
        self.runner.run(self.store.release_claim(held, now=self.now, answer_lost=answer_lost))
        known = self.upstream.get((held.generation, held.key))
        if known and known.token == held.fencing_token:
            known.lease = None

    @rule(thread=THREADS)
    def end(self, thread: str) -> None:
        """End a binding, and its upstream task when it was the last."""
        ended = self.runner.run(self.store.end_task(self.identity.id, thread, now=self.now, purge_time=self.now + 100))
        if thread not in self.bindings:
            assert ended is None
        elif self.bindings[thread] is TaskState.ACTIVE:
            self.bindings[thread] = TaskState.ENDED
            if not self._sharing(thread):
                self._finish(thread, TaskState.ENDED)

    @rule(thread=THREADS, include_sharing=st.booleans())
    def revoke(self, thread: str, *, include_sharing: bool) -> None:
        """Revoke a binding, with those that share or only when none does."""
        task = self.runner.run(self.store.task(self.identity.id, thread))
        if task is None:
            assert thread not in self.bindings
            return
        down = self.runner.run(
            self.store.revoke_task(task.id, now=self.now, purge_time=self.now + 100, include_sharing=include_sharing)
        )
        sharing = self._sharing(thread)
        assert [thread, *sorted(sharing)] == [down[0].thread_id, *sorted(t.thread_id for t in down[1:])]
        if include_sharing or not sharing:
            for each in (thread, *sharing):
                self.bindings[each] = TaskState.REVOKED
            self._finish(thread, TaskState.REVOKED)

    @rule()
    def rotate(self) -> None:
        """Begin a new generation."""
        self.identity = self.runner.run(
            self.store.write_identity(replace(self.identity, generation=self.identity.generation + 1))
        )

    @invariant()
    def agree(self) -> None:
        """Every binding and upstream task is as the model has it, and no version ever went down."""
        if not hasattr(self, "identity"):
            return
        stored = self.runner.run(self.store.tasks()).rows
        assert {task.thread_id: task.state for task in stored} == self.bindings
        for task in stored:
            known = self._of(task.thread_id)
            assert (known is None) == (task.upstream is None)
            self._grows(task.id, task.version)
            if known and task.upstream:
                found = task.upstream
                assert (known.state, known.lease, known.expire, known.sealed, known.token) == (
                    found.state,
                    found.lease_expire_time,
                    found.expire_time,
                    found.sealed_task_id,
                    found.fencing_token,
                )
                self._grows(found.key, found.version)

    def _grows(self, row: object, version: int) -> None:
        assert version >= self.versions.get(row, 0)
        self.versions[row] = version

    def _sharing(self, thread: str) -> list[str]:
        return [
            other
            for other, state in self.bindings.items()
            if other != thread and KEYS[other] == KEYS[thread] and state is TaskState.ACTIVE
        ]

    def _finish(self, thread: str, state: TaskState) -> None:
        known = self._of(thread)
        if known and known.state in (TaskState.CLAIMED, TaskState.ACTIVE):
            known.state, known.lease = state, None


TestStoreAgainstItsModel = StoreMachine.TestCase
TestStoreAgainstItsModel.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
