"""The client for threads. `credentialbroker.aio` has the one for asyncio."""

import threading
import time
from types import TracebackType
from typing import Self

import grpc

from credentialbroker.authorization import Authorization
from credentialbroker.base import BaseClient
from credentialbroker.channels import Channels
from credentialbroker.connections import BaseConnection
from credentialbroker.forks import take_over_forks
from credentialbroker.lifetimes import LOOK_SECONDS
from credentialbroker.questions import Report
from credentialbroker.thread_calls import Landed, ThreadCalls
from credentialbroker.thread_upkeep import ThreadUpkeep
from credentialbroker.v1 import credential_broker_pb2 as pb2


class Client(BaseClient[grpc.Channel, Landed]):
    """
    A client of the credential broker: headers for calls to a backend, from memory, kept current by the broker.

    Make one for a process, share it between all threads, close it at the end (or use it in a `with` block). It may be
    made before `os.fork()`: the child goes on with what is held then, over connections of its own.
    """

    _lock: threading.Lock
    _calls: ThreadCalls
    _upkeep: ThreadUpkeep

    # --- asking -------------------------------------------------------------------------------------------------------

    def authorization(
        self,
        scope: str,
        thread: str = "",
        *,
        identity: str | None = None,
        target_url: str | None = None,
        min_validity: float = 0.0,
        timeout: float | None = None,
    ) -> Authorization:
        """
        Return the headers for calls of a scope and thread: from memory while they are held, else from the broker.

        Args:
            scope: what the calls are for, for example `inference`.
            thread: your own id of the conversation or run, where the scope works on a thread's task.
            identity: whose headers; None: the identity of this client.
            target_url: where they are to go. Its origin must be the backend's, else TARGET_NOT_ALLOWED.
            min_validity: how many seconds they must last at least.
            timeout: seconds to wait at most, if the broker must be asked; no more than those of the client.

        Raises:
            BrokerError: the broker refused, or did not answer in time.
            ClosedError: the client is closed, or was while this waited.
        """
        if target_url is None and not min_validity:
            held = self._current((identity or self._identity, scope, thread), time.monotonic())
            if held is not None:
                return held
        return self._calls.ask(self._question(scope, thread, identity, target_url, min_validity), timeout)

    def report_rejected(
        self, authorization: Authorization, detail: str = "", *, timeout: float | None = None
    ) -> Authorization:
        """
        Report that the backend answered 401 to headers. Returns better ones, which are held from now on.

        Args:
            authorization: whose headers were rejected.
            detail: what the backend said, for the audit record, at most 256 bytes. Never put a header value into it.
            timeout: as for `authorization`.

        Raises:
            BrokerError: nothing better can be had; IDENTITY_REJECTED, REAUTH_REQUIRED: until an operator mends it.
            ClosedError: the client is closed, or was while this waited.
        """
        return self._calls.ask(Report(authorization.key, authorization.revision, detail), timeout)

    def connection(
        self, scope: str, thread: str = "", *, identity: str | None = None, timeout: float | None = None
    ) -> "Connection":
        """
        Return the headers for dialling a connection that stays, such as a websocket, and a way to learn of their end.

        Args, errors: as of `authorization`. Close it with the connection.
        """
        authorization = self.authorization(scope, thread, identity=identity, timeout=timeout)
        return Connection(self._core, authorization, threading.Event(), self._calls.touch)

    def register_task(self, thread: str = "", *, identity: str | None = None, timeout: float | None = None) -> pb2.Task:
        """
        Make sure that a thread has a live task, or begin a new one after `end_task`. Nobody has to call it.

        Args:
            thread: which; empty: the background work of the identity.
            identity: whose; None: the identity of this client.
            timeout: as for `authorization`.

        Raises:
            BrokerError: the broker refused, or did not answer in time.
            ClosedError: the client is closed, or was while this waited.
        """
        request = self._register_request(thread, identity)
        answer: pb2.RegisterTaskResponse = self._calls.call("RegisterTask", request, timeout)
        return answer.task

    def end_task(self, thread: str, *, identity: str | None = None, timeout: float | None = None) -> pb2.Task:
        """
        End the task of a thread: the broker gives no headers for it any more, and what is held for it is dropped.

        Args, errors: as of `register_task`.
        """
        answer: pb2.EndTaskResponse = self._calls.call("EndTask", self._end_request(thread, identity), timeout)
        self._task_ended(thread, identity)
        return answer.task

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the stream, the channel and all who wait. Closing twice is fine."""
        core = self._core
        with core.lock:
            if core.is_closed:
                return
            core.close()
            calls = core.flights.calls()
        self._upkeep.end()
        for call in calls:
            call.cancel()
        for channel in core.channels.retire():
            channel.close()
        self._upkeep.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- the parts ----------------------------------------------------------------------------------------------------

    def _new_lock(self) -> threading.Lock:
        self._lock = threading.Lock()
        return self._lock

    def _connect(self) -> Channels[grpc.Channel]:
        return Channels(self._settings, grpc.insecure_channel, grpc.secure_channel)

    def _set_out(self) -> None:
        self._calls = ThreadCalls(self._core, self._landed)
        self._upkeep = ThreadUpkeep(self._core, self._calls)
        take_over_forks(self)

    def _landed(self) -> None:
        self._upkeep.begin()

    # --- forks --------------------------------------------------------------------------------------------------------

    def _before_fork(self) -> None:
        self._lock.acquire()

    def _after_fork_in_parent(self) -> None:
        self._lock.release()

    def _after_fork_in_child(self) -> None:
        core = self._core
        # The threads are the parent's, and so are the sockets: what holds them is kept, since its end would end theirs.
        self._of_parent = core.channels, core.flights, self._upkeep
        self._upkeep = ThreadUpkeep(core, self._calls)
        core.in_child(self._new_lock())


class Connection(BaseConnection[threading.Event]):
    """
    A connection that stays, such as a websocket: the headers to dial it with, and when they are over.

    Attributes:
        authorization: what it is dialled with.
    """

    def wait_changed(self, timeout: float | None = None) -> bool:
        """
        Wait until the connection must be closed, or until so many seconds have passed. Returns whether it must.

        Raises:
            ClosedError: the client was closed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.changed():
            left = LOOK_SECONDS if deadline is None else min(LOOK_SECONDS, deadline - time.monotonic())
            if left <= 0:
                return False
            self._changed.wait(left)
        self._core.check_open()
        return True
