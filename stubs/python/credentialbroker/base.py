"""What the clients of both runtimes have in common: their options, what they hold, how they find it."""

import os
import time
from contextlib import AbstractContextManager
from typing import Any, Final, Generic

from credentialbroker.authorization import Authorization, Key
from credentialbroker.channels import Channels, ChannelT
from credentialbroker.core import Core
from credentialbroker.entries import Entries
from credentialbroker.flights import LandedT
from credentialbroker.lifetimes import TIMEOUT
from credentialbroker.questions import Question
from credentialbroker.settings import Settings
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.watch import State


class BaseClient(Generic[ChannelT, LandedT]):
    """See `credentialbroker.client.Client` and `credentialbroker.aio.AsyncClient`."""

    def __init__(
        self,
        address: str | None = None,
        *,
        identity: str = "",
        watch: bool = True,
        timeout: float = TIMEOUT,
        ca_file: str | os.PathLike[str] | None = None,
        certificate_file: str | os.PathLike[str] | None = None,
        private_key_file: str | os.PathLike[str] | None = None,
        server_name: str | None = None,
        plaintext: bool | None = None,
        cache_size: int = 1000,
        idle_seconds: float = 300.0,
        silence_seconds: float = 60.0,
    ) -> None:
        """
        Make a client. Nothing is sent; only the TLS files are read.

        Args:
            address: `unix:///absolute/path`, `dns:///host:port` or `host:port`; else CREDENTIAL_BROKER_ADDRESS, else
                127.0.0.1:50051.
            identity: the identity of calls that name none; empty: the caller's default at the broker.
            watch: whether to keep a stream on which the broker sends new values; without one the client asks.
            timeout: seconds for each call, at most 10.
            ca_file: PEM of the authorities that sign the broker's certificate; else CREDENTIAL_BROKER_CA_FILE, else
                there is no TLS.
            certificate_file: PEM of this client's own certificate; else CREDENTIAL_BROKER_CERTIFICATE_FILE.
            private_key_file: PEM of its key; else CREDENTIAL_BROKER_PRIVATE_KEY_FILE.
            server_name: the name in the broker's certificate, else CREDENTIAL_BROKER_SERVER_NAME, else the host.
            plaintext: allow another host without TLS, else CREDENTIAL_BROKER_PLAINTEXT=1.
            cache_size: how many authorizations to keep at most.
            idle_seconds: how long one is kept that nobody uses.
            silence_seconds: after how long without a message the stream is taken for dead.

        Raises:
            ValueError: the address or another setting is malformed, or a TLS file holds something else.
            OSError: a TLS file cannot be read.
        """
        if timeout <= 0 or cache_size < 1 or idle_seconds < 0 or silence_seconds <= 0:
            raise ValueError("timeout, cache_size and silence_seconds must be positive, idle_seconds not negative")
        self._settings: Final = Settings.find(
            address=address,
            ca_file=ca_file,
            certificate_file=certificate_file,
            private_key_file=private_key_file,
            server_name=server_name,
            plaintext=plaintext,
        )
        self._identity: Final = identity
        entries = Entries(size=cache_size, idle_seconds=idle_seconds, watched=watch)
        self._current: Final = entries.current
        self._core: Final[Core[ChannelT, LandedT]] = Core(
            self._new_lock(),
            entries,
            self._connect(),
            watches=watch,
            timeout=min(timeout, TIMEOUT),
            silence=silence_seconds,
        )
        self._set_out()

    def __repr__(self) -> str:
        held, _ = self._core.entries.held(time.monotonic())
        return f"<{type(self).__name__} of {self._settings.target.name}, {held} held>"

    @property
    def identity(self) -> str:
        """The identity of calls that name none."""
        return self._identity

    def held(self, scope: str, thread: str = "", *, identity: str | None = None) -> Authorization | None:
        """
        Return what is held and not yet due for a refresh, or None. Never waits and never calls the broker.

        For code that must not block, such as a callback; `authorization` serves from the same memory.
        """
        return self._current((identity or self._identity, scope, thread), time.monotonic())

    def state(self) -> State:
        """Return how the client is: its stream, what it holds, when the first of it ends, the last error."""
        with self._core.lock:
            return self._core.health.state(time.monotonic())

    def _question(
        self, scope: str, thread: str, identity: str | None, target_url: str | None, min_validity: float
    ) -> Question:
        return Question(Key(identity or self._identity, scope, thread), min_validity, target_url or None)

    def _task_ended(self, thread: str, identity: str | None) -> None:
        with self._core.lock:
            self._core.flights.task_ended(identity or self._identity, thread)

    def _register_request(self, thread: str, identity: str | None) -> pb2.RegisterTaskRequest:
        named = identity or self._identity
        if thread:
            return pb2.RegisterTaskRequest(thread_id=thread, identity=named)
        return pb2.RegisterTaskRequest(kind=pb2.TASK_KIND_BACKGROUND, identity=named)

    def _end_request(self, thread: str, identity: str | None) -> pb2.EndTaskRequest:
        return pb2.EndTaskRequest(thread_id=thread, identity=identity or self._identity)

    def _new_lock(self) -> AbstractContextManager[Any]:
        """Make what keeps the state of the client from two changes at once."""
        raise NotImplementedError

    def _connect(self) -> Channels[ChannelT]:
        """Make the channel of the runtime."""
        raise NotImplementedError

    def _set_out(self) -> None:
        """Put the parts of the runtime around the state."""
        raise NotImplementedError
