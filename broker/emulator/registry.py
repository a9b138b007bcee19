"""What the backend remembers: agents, tasks and biscuits, in memory for the life of the process."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from broker.emulator.accounts import Account
from broker.emulator.refusal import Refusal
from broker.emulator.verify import Assertion, format_ssh_public_key

BISCUIT_LIFETIME = timedelta(minutes=5)


@dataclass(slots=True, kw_only=True)
class Agent:
    """One registered agent.

    Attributes:
        agent_runtime_id: The id the backend gave it.
        public_key: The raw Ed25519 key its signatures are checked with.
        account: The account that registered it.
        register_time: When.
        origin: `registered` by a client's call, or `issued` with an identity JWT.
        dead: Whether the backend has decided to accept nothing from it any more.
    """

    agent_runtime_id: str
    public_key: bytes
    account: Account
    register_time: datetime
    origin: str
    dead: bool = False


@dataclass(slots=True, kw_only=True)
class Task:
    """One upstream task; `stale` once the backend has decided not to accept it any more."""

    task_id: str
    agent_runtime_id: str
    external_task_ref: str | None
    register_time: datetime
    stale: bool = False

    def as_json(self) -> dict[str, Any]:
        """The task as the controls show it."""
        return {
            "task_id": self.task_id,
            "agent_runtime_id": self.agent_runtime_id,
            "external_task_ref": self.external_task_ref,
            "register_time": self.register_time.isoformat(),
            "stale": self.stale,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Biscuit:
    account: Account
    method: str
    url: str
    expire_time: datetime


@dataclass
class Registry:
    """Agents, their tasks, and unspent biscuits.

    Registering is never idempotent, as at the real backend: the same key registered twice is two agents, and the
    same `external_task_ref` twice is two tasks. A client that wants one must ask once, and the counts show it.
    """

    _agents: dict[str, Agent] = field(default_factory=dict)
    _tasks: dict[str, Task] = field(default_factory=dict)
    _biscuits: dict[str, _Biscuit] = field(default_factory=dict, repr=False)

    def register_agent(self, public_key: bytes, account: Account, *, now: datetime, origin: str) -> Agent:
        """Add an agent under a new id."""
        agent = Agent(
            agent_runtime_id=f"agent_{secrets.token_hex(12)}",
            public_key=public_key,
            account=account,
            register_time=now,
            origin=origin,
        )
        self._agents[agent.agent_runtime_id] = agent
        return agent

    def agent(self, agent_runtime_id: str) -> Agent:
        """Return an agent.

        Raises:
            Refusal: `agent_unknown` or `agent_dead` (401).
        """
        agent = self._agents.get(agent_runtime_id)
        if agent is None:
            raise Refusal(401, "agent_unknown", "no agent of this id is registered")
        if agent.dead:
            raise Refusal(401, "agent_dead", "this agent is no longer accepted; register a new one")
        return agent

    def forget_agent(self, agent_runtime_id: str) -> bool:
        """Drop an agent and its tasks, as a backend that lost or revoked a registration; False when unknown."""
        self._tasks = {key: task for key, task in self._tasks.items() if task.agent_runtime_id != agent_runtime_id}
        return self._agents.pop(agent_runtime_id, None) is not None

    def register_task(self, agent: Agent, external_task_ref: str | None, *, now: datetime) -> Task:
        """Add a task of an agent under a new id."""
        task = Task(
            task_id=f"task_{secrets.token_hex(12)}",
            agent_runtime_id=agent.agent_runtime_id,
            external_task_ref=external_task_ref,
            register_time=now,
        )
        self._tasks[task.task_id] = task
        return task

    def task_of(self, assertion: Assertion) -> Task:
        """Return the task an assertion names.

        Raises:
            Refusal: 401 `task_unknown`, `task_of_other_agent` or `task_stale`.
        """
        task = self._tasks.get(assertion.task_id)
        if task is None:
            raise Refusal(401, "task_unknown", "no task of this id is registered")
        if task.agent_runtime_id != assertion.agent_runtime_id:
            raise Refusal(401, "task_of_other_agent", "the task belongs to another agent")
        if task.stale:
            raise Refusal(401, "task_stale", "the task is no longer accepted; register a new one")
        return task

    def issue_biscuit(self, account: Account, *, method: str, url: str, now: datetime) -> str:
        """Issue a biscuit that authorises one call of `method` on `url`, once."""
        value = f"biscuit_{secrets.token_urlsafe(32)}"
        self._biscuits[value] = _Biscuit(account=account, method=method, url=url, expire_time=now + BISCUIT_LIFETIME)
        return value

    def spend_biscuit(self, value: str, *, method: str, url: str, now: datetime) -> Account:
        """Use up a biscuit and return the account it stands for.

        A biscuit presented for another call is not used up: its owner may still use it for the right one.

        Raises:
            Refusal: 401 `biscuit_unknown` (never issued, or spent), `biscuit_for_other_call` or `biscuit_expired`.
        """
        biscuit = self._biscuits.get(value)
        if biscuit is None:
            raise Refusal(401, "biscuit_unknown", "this biscuit was never issued or is already spent")
        if (biscuit.method, biscuit.url) != (method, url):
            raise Refusal(401, "biscuit_for_other_call", "this biscuit authorises another method or URL")
        if now >= biscuit.expire_time:
            raise Refusal(401, "biscuit_expired", "this biscuit has expired")
        del self._biscuits[value]
        return biscuit.account

    def agents_json(self) -> list[dict[str, Any]]:
        """All agents in the order of their registration, each with how often its key and its tasks registered."""
        by_key = Counter(agent.public_key for agent in self._agents.values())
        tasks = Counter(task.agent_runtime_id for task in self._tasks.values())
        return [
            {
                "agent_runtime_id": agent.agent_runtime_id,
                "public_key": format_ssh_public_key(agent.public_key),
                "account_id": agent.account.account_id,
                "register_time": agent.register_time.isoformat(),
                "origin": agent.origin,
                "dead": agent.dead,
                "agents_with_this_key": by_key[agent.public_key],
                "tasks": tasks[agent.agent_runtime_id],
            }
            for agent in self._agents.values()
        ]

    def tasks(self, agent_runtime_id: str | None = None) -> Iterator[Task]:
        """All tasks in the order of their registration, or those of one agent."""
        for task in self._tasks.values():
            if agent_runtime_id in (None, task.agent_runtime_id):
                yield task
