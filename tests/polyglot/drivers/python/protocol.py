"""What both variants of the driver say: answers as JSON, in the words of tests/polyglot/README.md."""

import json
import platform
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from credentialbroker.authorization import Authorization
from credentialbroker.errors import BrokerError, ClosedError, OriginError
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.watch import State

OPEN_OPTIONS: Final = (
    *("address", "identity", "watch", "timeout", "ca_file", "certificate_file", "private_key_file", "server_name"),
    *("plaintext", "cache_size", "idle_seconds", "silence_seconds"),
)
Command = dict[str, Any]
_output = threading.Lock()


class CancelledByUserError(Exception):
    """The user gave up."""


def say(number: Any, answer: dict[str, Any]) -> None:
    """Write one answer."""
    with _output:
        sys.stdout.write(json.dumps({"id": number, **answer}) + "\n")
        sys.stdout.flush()


def hello(variant: str, http: list[str], grpc: list[str]) -> dict[str, Any]:
    """Return what `hello` answers."""
    return {
        "language": variant,
        "runtime": f"Python {platform.python_version()}, grpcio {metadata.version('grpcio')}",
        "client": f"credentialbroker {metadata.version('credentialbroker')}",
        "adapters": {"http": http, "grpc": grpc},
    }


def options(command: Command, *names: str) -> dict[str, Any]:
    """Return those members of a command that it has."""
    return {name: command[name] for name in names if command.get(name) is not None}


def asked(command: Command) -> dict[str, Any]:
    """Return the arguments of `authorization`."""
    return options(command, "scope", "thread", "identity", "target_url", "min_validity", "timeout")


def authorization(found: Authorization) -> dict[str, Any]:
    """Return an authorization as JSON."""
    return {
        "headers": [list(pair) for pair in found.headers],
        "kind": found.kind_text,
        "reason": found.reason_text,
        "revision": found.revision,
        "identity": found.identity,
        "connection_tag": found.connection_tag,
        "stale": found.stale,
        "expires_in": found.expires_in(),
        "refresh_in": found.refresh_in(),
    }


def error(problem: BaseException) -> dict[str, Any]:
    """Return an error as JSON."""
    if isinstance(problem, BrokerError):
        known = pb2.DESCRIPTOR.pool.FindEnumTypeByName("credentialbroker.v1.ErrorReason").values_by_number
        return {
            "type": "broker",
            "reason": known[problem.reason].name.removeprefix("ERROR_REASON_"),
            "reason_text": problem.reason_text,
            "code": problem.code.name,
            "message": problem.message,
            "retry_delay": problem.retry_delay,
            "metadata": dict(problem.metadata),
        }
    kinds: tuple[tuple[type[BaseException], str], ...] = (
        (CancelledByUserError, "cancelled"),
        (ClosedError, "closed"),
        (OriginError, "origin"),
        (ValueError, "argument"),
        (OSError, "argument"),
    )
    kind = next((word for one, word in kinds if isinstance(problem, one)), "other")
    told = {"type": kind, "message": f"{type(problem).__name__}: {problem}"}
    if isinstance(problem, grpc.RpcError) and isinstance(problem, grpc.Call | grpc.aio.AioRpcError):
        told["code"] = problem.code().name  # of a backend's call, not of the broker's
    return told


def read(path: str) -> bytes:
    """Return what a file holds."""
    return Path(path).read_bytes()


def threads() -> int:
    """Count the threads of this process, those of gRPC's core too where the system tells."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()


def outcome(found: Authorization | BaseException | Any) -> dict[str, Any]:
    """Return one of many results."""
    if isinstance(found, BaseException):
        return {"error": error(found)}
    return authorization(found) if isinstance(found, Authorization) else found


def state(found: State) -> dict[str, Any]:
    """Return a state as JSON."""
    return {
        "watching": found.watching,
        "held": found.held,
        "first_end_in": found.first_end_in,
        "last_error": None if found.last_error is None else error(found.last_error),
    }


def task(found: pb2.Task) -> dict[str, Any]:
    """Return a task as JSON."""
    word = pb2.TaskState.Name(found.state).removeprefix("TASK_STATE_")
    return {"state": word, "thread_id": found.thread_id, "identity": found.identity}


def texts(*things: Any) -> list[str]:
    """Return all ways in which Python prints things."""
    printed = [text for thing in things for text in (repr(thing), str(thing), f"{thing}", f"{thing!a}", f"{[thing]}")]
    return [*printed, *(repr(thing.headers) for thing in things if hasattr(thing, "headers"))]


@dataclass
class Traffic:
    """What traffic has seen so far."""

    calls: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    longest_expired: float = 0.0
    revisions: set[str] = field(default_factory=set)

    def count(self, found: Authorization | BaseException, started: float) -> None:
        """Count one call."""
        self.calls += 1
        self.slowest = max(self.slowest, time.monotonic() - started)
        if isinstance(found, Authorization):
            self.longest_expired = max(self.longest_expired, -found.expires_in())
            self.revisions.add(found.revision)
        else:
            self.errors[str(found)] += 1

    def report(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "calls": self.calls,
            "failed": self.errors.total(),
            "errors": dict(self.errors),
            "slowest_seconds": self.slowest,
            "longest_expired_seconds": self.longest_expired,
            "revisions": len(self.revisions),
        }
