"""Random histories of many identities and threads against a model of thirty lines: nobody ever gets another's credential."""

import asyncio
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from credentialbroker.v1 import broker_admin_pb2 as admin_pb2
from credentialbroker.v1 import credential_broker_pb2 as pb2
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from broker.emulator import EmulatorServer
from tests.support.assertions import assertion_of
from tests.support.broker_process import backend_section
from tests.support.brokers import Broker, refused, running_broker, running_emulator

PROFILES = ("codex-2026-05", "codex-2026-08")
THREADS = st.sampled_from(["a", "b", "c"])
NAMES = ("one", "two", "three")
Result = TypeVar("Result")


@dataclass
class Agent:
    """What the model knows of an identity."""

    public_key: str
    runtime_id: str
    disabled: bool = False
    epoch: int = 0
    ended: set[str] = field(default_factory=set)
    bound: set[str] = field(default_factory=set)
    tasks: dict[tuple[int, int, str], str] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)


class Identities(RuleBasedStateMachine):
    """Each history has a broker, an emulator and a state directory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.exits = AsyncExitStack()
        self.agents: dict[str, Agent] = {}
        self.broker: Broker
        self.emulator: EmulatorServer
        self.single = False

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Let a call to the broker come to its end."""
        return self.runner.run(coroutine)

    @initialize(profile=st.sampled_from(PROFILES))
    def start(self, profile: str) -> None:
        """Begin."""
        self.single = profile == "codex-2026-08"
        self.run(self._start(profile))

    async def _start(self, profile: str) -> None:
        folder = Path(self.exits.enter_context(tempfile.TemporaryDirectory()))
        self.emulator = await self.exits.enter_async_context(running_emulator(profile=profile))
        config = backend_section(profile, self.emulator.url)
        self.broker = await self.exits.enter_async_context(running_broker(folder, self.emulator, backends=config))
        # No background task joins in by itself: who shares an upstream task is then known.
        self.broker.app.upkeep.pause()

    def teardown(self) -> None:
        """End."""
        self.run(self.exits.aclose())
        self.runner.close()

    @rule(name=st.sampled_from(NAMES))
    def create(self, name: str) -> None:
        """Make an identity, once a name."""
        if name in self.agents:
            assert self.run(refused(self.broker.create_agent(name))).reason == "IDENTITY_EXISTS"
            return
        identity = self.run(self.broker.create_agent(name))
        self.agents[name] = Agent(identity.public_key, identity.agent_runtime_id)

    @rule(thread=THREADS)
    def authorize(self, thread: str) -> None:
        """Ask for an assertion of every identity, one after the other: most are made within one second."""
        for name in NAMES:
            self._authorize(name, thread)

    def _authorize(self, name: str, thread: str) -> None:
        """The assertion must be the asked identity's, and of the one task its thread has."""
        agent = self.agents.get(name)
        call = self.broker.authorize(identity=name, thread_id=thread)
        if agent is None or agent.disabled or thread in agent.ended:
            expected = "NOT_ALLOWED" if agent is None else "IDENTITY_REVOKED" if agent.disabled else "TASK_ENDED"
            assert self.run(refused(call)).reason == expected
            return
        answer = self.run(call)
        assertion = assertion_of(answer)
        assert answer.identity == name
        assert assertion.is_signed_by(agent.public_key)
        assert assertion.agent_runtime_id == agent.runtime_id
        assert self.run(self.broker.sees(answer)).json()["verdict"] == "verified"
        agent.bound.add(thread)
        key = (agent.epoch, agent.starts.get(self._key(thread), 0), self._key(thread))
        assert agent.tasks.setdefault(key, assertion.task_id) == assertion.task_id
        assert list(agent.tasks.values()).count(assertion.task_id) == 1

    @rule(name=st.sampled_from(NAMES), thread=THREADS)
    def register(self, name: str, thread: str) -> None:
        """Begin a thread, or begin it anew."""
        agent = self.agents.get(name)
        call = self.broker.callers.RegisterTask(pb2.RegisterTaskRequest(identity=name, thread_id=thread), timeout=5)
        if agent is None or agent.disabled:
            assert self.run(refused(call)).reason == ("NOT_ALLOWED" if agent is None else "IDENTITY_REVOKED")
            return
        task = self.run(_answer(call)).task
        assert (task.identity, task.thread_id, task.state) == (name, thread, pb2.TASK_STATE_ACTIVE)
        agent.ended.discard(thread)
        agent.bound.add(thread)

    @rule(name=st.sampled_from(NAMES), thread=THREADS)
    def end(self, name: str, thread: str) -> None:
        """End a thread; its upstream task ends with it unless it is shared."""
        agent = self.agents.get(name)
        call = self.broker.callers.EndTask(pb2.EndTaskRequest(identity=name, thread_id=thread), timeout=5)
        if agent is None or agent.disabled:
            assert self.run(refused(call)).reason == ("NOT_ALLOWED" if agent is None else "IDENTITY_REVOKED")
            return
        self.run(_answer(call))
        if thread in agent.bound and not (self.single and len(agent.bound) > 1):
            self._begin_anew(agent, thread)
        agent.bound.discard(thread)
        agent.ended.add(thread)

    @rule(name=st.sampled_from(NAMES), thread=THREADS)
    def revoke(self, name: str, thread: str) -> None:
        """Revoke a thread's upstream task, with every thread that shares it."""
        agent = self.agents.get(name)
        if agent is None or agent.disabled or thread not in agent.bound:
            return
        self.run(self._revoke(name, thread))
        taken = set(agent.bound) if self.single else {thread}
        self._begin_anew(agent, thread)
        agent.bound -= taken
        agent.ended |= taken

    async def _revoke(self, name: str, thread: str) -> None:
        tasks = (await self.broker.admin.ListTasks(admin_pb2.ListTasksRequest(identity=name))).tasks
        (found,) = [task for task in tasks if task.thread_id == thread]
        await self.broker.admin.RevokeTask(admin_pb2.RevokeTaskRequest(id=found.id, force=True))

    @rule(name=st.sampled_from(NAMES))
    def disable(self, name: str) -> None:
        """Stop an identity, or let it go on with tasks of a new generation."""
        agent = self.agents.get(name)
        if agent is None:
            return
        if agent.disabled:
            self.run(_answer(self.broker.admin.EnableIdentity(admin_pb2.EnableIdentityRequest(name=name))))
        else:
            self.run(_answer(self.broker.admin.DisableIdentity(admin_pb2.DisableIdentityRequest(name=name))))
            agent.epoch += 1
        agent.disabled = not agent.disabled

    def _key(self, thread: str) -> str:
        return "single" if self.single else thread

    def _begin_anew(self, agent: Agent, thread: str) -> None:
        agent.starts[self._key(thread)] = agent.starts.get(self._key(thread), 0) + 1


async def _answer(call: Any) -> Any:
    return await call


TestIdentities = Identities.TestCase
TestIdentities.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
