"""What stands outside of the broker in a run: a backend that knows what it registered, and an issuer that is strict."""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from broker.backend_api import TaskAnswer
from broker.bearer.refresh_grant import Refreshed, RefreshFailure, Verdict
from broker.keys import parse_ssh_public_key
from broker.model import Authorization, Secret
from broker.outbound import FailureKind, OutboundFailure
from tests.interleavings.schedule import operation_name

_SCHEME: Final = "AgentAssertion "
_TIMESTAMP: Final = "2027-01-15T08:00:00Z"
TOKEN_LIFE: Final = 3600.0


class Names:
    """Makes ids that do not repeat, and that do not depend on what other operations made meanwhile."""

    def __init__(self) -> None:
        self.made: dict[str, int] = {}

    def new(self, what: str) -> str:
        """Return the next id of a kind for the operation that asks."""
        kind = f"{what}-{operation_name() or 'before'}"
        self.made[kind] = self.made.get(kind, 0) + 1
        return f"{kind}-{self.made[kind]}"


@dataclass
class WorldBackend:
    """
    Registers agents and tasks as a backend does, and says of an assertion whether it would be accepted.

    Attributes:
        agents: the public key of each agent, by its runtime id.
        tasks: the agent and the reference of each task, by its id, in the order in which they were registered.
        forgotten: tasks that it no longer knows.
    """

    names: Names
    monotonic: Callable[[], float]
    agents: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)
    clock_offset: float = 0.0

    def register_agent(self, *, public_key: str, deadline: float, **_request: Any) -> str:
        """Make an agent of a public key; the same key again makes another one."""
        self._require_time("register_agent", deadline)
        runtime_id = self.names.new("agent")
        self.agents[runtime_id] = public_key
        return runtime_id

    def register_task(
        self,
        *,
        agent_runtime_id: str,
        sign: Callable[[str], str],
        external_task_ref: str | None,
        deadline: float,
        **_request: Any,
    ) -> TaskAnswer:
        """Make a task for an agent that proves itself by its key."""
        self._require_time("register_task", deadline)
        public_key = self.agents.get(agent_runtime_id)
        signature = base64.b64decode(sign(_TIMESTAMP))
        if public_key is None or not _is_signed(public_key, f"{agent_runtime_id}:{_TIMESTAMP}", signature):
            raise OutboundFailure(FailureKind.REFUSED, "register_task", "not the agent's key", status=401)
        task_id = self.names.new("task")
        self.tasks[task_id] = (agent_runtime_id, external_task_ref)
        return TaskAnswer(task_id, sealed=False, answer_lost=False)

    def _require_time(self, operation: str, deadline: float) -> None:
        """Let what stood still for too long be cut off: the broker does not know that nothing came of it."""
        if self.monotonic() > deadline:
            raise OutboundFailure(FailureKind.DOWN, operation, "cut off by the deadline", answer_lost=True)

    def measure_clock(self, **_request: Any) -> None:
        """Tell the time; it is the broker's."""

    def signing_time(self, now: float) -> float:
        """Return the time that is signed; not a call, so nobody stands still here."""
        return now

    def accepts(self, authorization: Authorization, *, with_forgotten: bool = False) -> bool:
        """Say whether a request with these headers would be let in, or would be if it had forgotten nothing."""
        (value,) = (header.value for header in authorization.headers if header.name == "authorization")
        if not value.startswith(_SCHEME):
            return False
        encoded = value.removeprefix(_SCHEME)
        envelope = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
        runtime_id, task_id = envelope["agent_runtime_id"], envelope["task_id"]
        if self.tasks.get(task_id, ("", None))[0] != runtime_id:
            return False
        if task_id in self.forgotten and not with_forgotten:
            return False
        text = f"{runtime_id}:{task_id}:{envelope['timestamp']}"
        return _is_signed(self.agents[runtime_id], text, base64.b64decode(envelope["signature"]))


@dataclass
class WorldIssuer:
    """
    Exchanges each refresh token once; one that comes again ends its whole family.

    Attributes:
        refresh_token: the newest one, the only one that is good.
        access_token: the newest one.
        double_uses: how often a refresh token came that was spent.
        exchanges: how many it made.
    """

    now: Callable[[], float]
    refresh_token: str = "refresh-0"
    access_token: str = "access-0"
    double_uses: int = 0
    exchanges: int = 0
    is_ended: bool = False
    timeout: float = 10.0

    def refresh(self, refresh_token: Secret, *, until: float) -> Refreshed:
        """Exchange a refresh token, unless it was on its way for too long: then it was cut off, and nobody is told."""
        if self.now() > until:
            raise RefreshFailure(Verdict.ANSWER_LOST, "issuer_down", note="cut off by the deadline")
        if self.is_ended or refresh_token.reveal() != self.refresh_token:
            self.double_uses += not self.is_ended
            self.is_ended = True
            raise RefreshFailure(Verdict.REFUSED, "refresh_token_reused", note="was exchanged before")
        self.exchanges += 1
        self.refresh_token, self.access_token = f"refresh-{self.exchanges}", f"access-{self.exchanges}"
        return Refreshed(
            access_token=Secret(self.access_token),
            refresh_token=Secret(self.refresh_token),
            id_token=None,
            expire_time=self.now() + TOKEN_LIFE,
            send_time=self.now(),
        )

    def close(self) -> None:
        """Nothing is held."""


def seed_of(names: Names, size: int) -> bytes:
    """Return bytes that are the same in every run and other for every key."""
    return hashlib.shake_256(names.new("key").encode()).digest(size)


def _is_signed(public_key: str, text: str, signature: bytes) -> bool:
    try:
        VerifyKey(parse_ssh_public_key(public_key)).verify(text.encode(), signature)
    except BadSignatureError:
        return False
    return True
