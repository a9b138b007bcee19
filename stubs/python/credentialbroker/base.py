"""What the clients of both runtimes have in common: their options, what they hold, how they find it."""

import os
import time
from typing import Final, Generic

import grpc

from credentialbroker.authorization import Authorization, Key
from credentialbroker.channels import Channels, ChannelT
from credentialbroker.entries import Entries
from credentialbroker.errors import ClosedError, Failure
from credentialbroker.lifetimes import TIMEOUT
from credentialbroker.questions import Question
from credentialbroker.settings import Settings
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.watch import Health, State, Watch


class BaseClient(Generic[ChannelT]):
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
        self._watches: Final = watch
        self._timeout: Final = min(timeout, TIMEOUT)
        self._silence: Final = silence_seconds
        self._silent: Final = Failure(
            code=grpc.StatusCode.UNAVAILABLE, message=f"the stream was silent for {silence_seconds:g} s"
        )
        self._entries: Final = Entries(
            size=cache_size, idle_seconds=idle_seconds, watched=watch, announce=self._announce
        )
        self._by_key: Final = self._entries.by_key
        self._health: Final = Health(self._entries)
        self._watch: Final = Watch(self._entries, self._health)
        self._is_closed = False
        self._set_out()
        self._channels: Channels[ChannelT] = self._connect()

    def __repr__(self) -> str:
        held, _ = self._entries.held(time.monotonic())
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
        entry = self._by_key.get((identity or self._identity, scope, thread))
        if entry is None:
            return None
        authorization, until = entry.fresh
        now = time.monotonic()
        if now >= until:
            return None
        entry.used = now
        return authorization

    def _question(
        self, scope: str, thread: str, identity: str | None, target_url: str | None, min_validity: float
    ) -> Question:
        return Question(Key(identity or self._identity, scope, thread), min_validity, target_url or None)

    def _register_request(self, thread: str, identity: str | None) -> pb2.RegisterTaskRequest:
        named = identity or self._identity
        if thread:
            return pb2.RegisterTaskRequest(thread_id=thread, identity=named)
        return pb2.RegisterTaskRequest(kind=pb2.TASK_KIND_BACKGROUND, identity=named)

    def _end_request(self, thread: str, identity: str | None) -> pb2.EndTaskRequest:
        return pb2.EndTaskRequest(thread_id=thread, identity=identity or self._identity)

    def _deadline(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else min(timeout, self._timeout)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError

    def _state(self) -> State:
        return self._health.state(time.monotonic())

    def _announce(self, message: pb2.WatchAuthorizationsRequest) -> None:
        """Send a message on the newest stream, where there is one."""
        raise NotImplementedError

    def _connect(self) -> Channels[ChannelT]:
        """Make the channel of the runtime."""
        raise NotImplementedError

    def _set_out(self) -> None:
        """Make what belongs to this process: locks, the lists of what is under way."""
        raise NotImplementedError
