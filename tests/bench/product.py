"""A broker as users run it, with an emulator as its backend and one identity, as processes of their own."""

import contextlib
import signal
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
from credentialbroker.v1 import broker_admin_pb2 as admin_pb
from credentialbroker.v1 import credential_broker_pb2 as pb
from prometheus_client.parser import text_string_to_metric_families

from tests.bench.answers import Witness
from tests.bench.frames import Request
from tests.bench.load import OK, Sample, call
from tests.bench.processes import Server, ServerError, free_port

SERVICE: Final = "credentialbroker.v1.CredentialBroker"
GET_AUTHORIZATION: Final = f"/{SERVICE}/GetAuthorization"
GUARD: Final = {"x-credential-broker": "1"}
IDENTITY: Final = "bench"
STORE_CALLS: Final = "credential_broker_store_calls"
BACKEND_REQUESTS: Final = "credential_broker_backend_requests"
DECISIONS: Final = "credential_broker_decisions"
HANDLED: Final = "grpc_server_handled"
_TIMEOUT_SECONDS: Final = 10.0


def get_authorization(thread_id: str = "thread-bench") -> Request:
    """Make the call whose cost matters: an assertion for a thread."""
    message = pb.GetAuthorizationRequest(scope="inference", thread_id=thread_id, identity=IDENTITY)
    return Request(GET_AUTHORIZATION, message.SerializeToString(), GUARD)


def explain_authorization(thread_id: str) -> Request:
    """Make a call that, for a thread that nobody used yet, reads the store exactly once and changes nothing."""
    message = pb.ExplainAuthorizationRequest(scope="inference", thread_id=thread_id, identity=IDENTITY)
    return Request(f"/{SERVICE}/ExplainAuthorization", message.SerializeToString(), GUARD)


@dataclass(frozen=True, slots=True)
class Metrics:
    """What `/metrics` said at one moment."""

    families: dict[str, list[tuple[dict[str, str], float]]]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text format; only counters are kept, under their names without `_total`."""
        return cls(
            {
                family.name: [(dict(sample.labels), sample.value) for sample in family.samples]
                for family in text_string_to_metric_families(text)
                if family.type == "counter"
            }
        )

    def total(self, name: str, **labels: str) -> int:
        """
        Return the sum of a counter over all its labels but the given ones.

        Raises:
            ServerError: there is no such counter. One that nobody counts would stay 0 for ever and prove nothing.
        """
        if name not in self.families:
            raise ServerError(f"the broker has no counter {name}")
        return int(sum(value for found, value in self.families[name] if labels.items() <= found.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    Where one broker listens and keeps its state.

    Attributes:
        folder: holds its configuration and its state directory.
        backend_url: the root of its backend; None leaves the built-in one, which is never reached without identities.
        assertion_lifetime: seconds for which assertions are handed out; None is as shipped.
    """

    folder: Path
    callers_port: int
    admin_port: int
    http_port: int
    backend_url: str | None
    assertion_lifetime: float | None = None

    @classmethod
    def choose(cls, folder: Path, backend_url: str | None = None, *, assertion_lifetime: float | None = None) -> Self:
        """Take free ports."""
        return cls(
            folder=folder,
            callers_port=free_port(),
            admin_port=free_port(),
            http_port=free_port(),
            backend_url=backend_url,
            assertion_lifetime=assertion_lifetime,
        )

    @property
    def state_dir(self) -> Path:
        """Its database, keys and audit log."""
        return self.folder / "state"

    @property
    def audit_file(self) -> Path:
        """Where it records grants."""
        return self.state_dir / "audit.jsonl"

    def write(self) -> Path:
        """Write the configuration: all settings but addresses and what is named here are the shipped ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [
            "[broker]",
            f'state_dir = "{self.state_dir}"',
            "drain_seconds = 0",
            "[listen]",
            f'callers = ["127.0.0.1:{self.callers_port}"]',
            f'admin = ["127.0.0.1:{self.admin_port}"]',
            f'http = "127.0.0.1:{self.http_port}"',
        ]
        if self.backend_url is not None:
            lines += [
                "[backends.default]",
                f'base_url = "{self.backend_url}/backend-api"',
                f'authapi_base_url = "{self.backend_url}/api/accounts"',
            ]
            if self.assertion_lifetime is not None:
                lines.append(f"assertion_lifetime_seconds = {self.assertion_lifetime}")
        path = self.folder / "broker.toml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


class Product:
    """
    A running broker that knows the identity `IDENTITY`, and the emulator behind it.

    Args:
        folder: empty, for everything they write.
        core: the core the broker is bound to; None binds it to none.
        assertion_lifetime: seconds for which it hands assertions out; None is as shipped.
    """

    def __init__(self, folder: Path, *, core: int | None = None, assertion_lifetime: float | None = None) -> None:
        self.folder = folder
        self._core = core
        self._assertion_lifetime = assertion_lifetime
        self._running = contextlib.ExitStack()
        self.settings: Settings
        self.pid: int

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as running:
            emulator = running.enter_context(Server("emulator", "broker.emulator", ["--port", "0"], folder=self.folder))
            self._emulator_url = emulator.next_event()["url"]
            self._http = running.enter_context(httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False))
            self.settings = Settings.choose(
                self.folder / "broker", self._emulator_url, assertion_lifetime=self._assertion_lifetime
            )
            self._broker = running.enter_context(
                Server(
                    "broker",
                    "tests.bench.launcher",
                    ["--config", str(self.settings.write())],
                    folder=self.folder,
                    core=self._core,
                )
            )
            self._expect("serving")
            self.pid = self._broker.pid
            self._import_identity()
            self._running = running.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._running.close()

    @property
    def address(self) -> str:
        """Where it takes calls."""
        return f"127.0.0.1:{self.settings.callers_port}"

    def answer(self) -> bytes:
        """
        Return one answer to `get_authorization`, serialized; the first makes the broker register the thread's task.

        Raises:
            ServerError: the call failed.
        """
        outcome, message = call(self.address, get_authorization())
        if outcome != OK:
            raise ServerError(f"GetAuthorization answered {outcome}")
        return message

    def witness(self) -> Witness:
        """Return a judge of answers that knows what the emulator knows now."""
        return Witness.of_emulator(self._control("GET", "agents"), self._control("GET", "tasks"))

    def metrics(self) -> Metrics:
        """Return the broker's counters."""
        answer = self._http.get(
            f"http://127.0.0.1:{self.settings.http_port}/metrics",
            # Kept open it would end in the midst of what is measured next.
            headers={"connection": "close", "accept": "text/plain"},
        )
        answer.raise_for_status()
        return Metrics.parse(answer.text)

    def pause_upkeep(self) -> None:
        """Stop the broker's loops, and return when they stand still."""
        self._broker.signal(signal.SIGUSR1)
        self._expect("upkeep_paused")

    def _expect(self, event: str) -> None:
        said = self._broker.next_event()["event"]
        if said != event:
            raise ServerError(f"the broker said {said} in place of {event}")

    def _control(self, method: str, path: str) -> Any:
        answer = self._http.request(method, f"{self._emulator_url}/_emulator/{path}")
        answer.raise_for_status()
        return answer.json()

    def _import_identity(self) -> None:
        issued = self._control("POST", "identities")
        message = admin_pb.ImportIdentityRequest(
            request_id=uuid.uuid4().hex,
            name=IDENTITY,
            backend="default",
            mode=admin_pb.IDENTITY_MODE_AGENT,
            identity_jwt=issued["jwt"],
        )
        request = Request("/credentialbroker.v1.BrokerAdmin/ImportIdentity", message.SerializeToString(), GUARD)
        outcome, _ = call(f"127.0.0.1:{self.settings.admin_port}", request)
        if outcome != OK:
            raise ServerError(f"ImportIdentity answered {outcome}")


def check_samples(witness: Witness, samples: list[Sample]) -> None:
    """
    Check answers as a backend would have on arrival.

    Raises:
        WrongAnswerError: one of them would not have been accepted.
    """
    for sample in samples:
        witness.check(sample.message, datetime.fromtimestamp(sample.time, UTC))
