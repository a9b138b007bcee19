"""The client for threads. `credentialbroker.aio` has the one for asyncio."""

import os
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, Self

import grpc

from credentialbroker.authorization import Authorization, Headers, Key
from credentialbroker.base import BaseClient
from credentialbroker.channels import METADATA, Channel, Channels
from credentialbroker.entries import Asked, Use
from credentialbroker.errors import (
    BrokerError,
    ClosedError,
    Failure,
    deadline_exceeded,
    failure_of_call,
    withdrawn_again_and_again,
)
from credentialbroker.questions import ASK_AGAIN, Question, Report
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1.credential_broker_pb2_grpc import CredentialBrokerStub
from credentialbroker.watch import State

_SLICE_SECONDS: Final = 1.0
"""How often a connection of a client that does not watch looks whether its entry is due."""


class _Flight:
    """A call under way, and how many wait for it. A refresh in the background counts as one who waits."""

    __slots__ = ("asked", "call", "landed", "waiting")

    def __init__(self, asked: Asked) -> None:
        self.asked: Final = asked
        self.landed: Final[Future[Authorization | Failure | None]] = Future()
        self.call: Any = None
        self.waiting = 1


class _Stream:
    """A stream, and what is still to be sent on it; None ends the sending."""

    __slots__ = ("call", "outbox", "silent", "succeeded")

    def __init__(self) -> None:
        self.call: Any = None
        self.succeeded = False
        self.outbox: Final[queue.SimpleQueue[pb2.WatchAuthorizationsRequest | None]] = queue.SimpleQueue()
        self.silent = False


class Client(BaseClient[grpc.Channel]):
    """
    A client of the credential broker: headers for calls to a backend, from memory, kept current by the broker.

    Make one for a process, share it between all threads, close it at the end (or use it in a `with` block). It may be
    made before `os.fork()`: the child goes on with what is held then, over connections of its own.
    """

    _lock: threading.Lock
    _closing: threading.Event
    _flights: dict[Question | Report, _Flight]
    _streams: set[_Stream]
    _newest: _Stream | None
    _threads: set[threading.Thread]
    _watching: bool

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
        entry = self._by_key.get((identity or self._identity, scope, thread))
        if entry is not None and target_url is None and not min_validity:
            authorization, until = entry.fresh
            now = time.monotonic()
            if now < until and authorization is not None:
                entry.used = now
                return authorization
        return self._ask(self._question(scope, thread, identity, target_url, min_validity), timeout)

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
        return self._ask(Report(authorization.key, authorization.revision, detail), timeout)

    def connection(
        self, scope: str, thread: str = "", *, identity: str | None = None, timeout: float | None = None
    ) -> "Connection":
        """
        Return the headers for dialling a connection that stays, such as a websocket, and a way to learn of their end.

        Args, errors: as of `authorization`. Close it with the connection.
        """
        return Connection(self, self.authorization(scope, thread, identity=identity, timeout=timeout))

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
        answer: pb2.RegisterTaskResponse = self._call("RegisterTask", request, timeout)
        return answer.task

    def end_task(self, thread: str, *, identity: str | None = None, timeout: float | None = None) -> pb2.Task:
        """End the task of a thread: the broker gives no headers for it any more. Args, errors: of `register_task`."""
        answer: pb2.EndTaskResponse = self._call("EndTask", self._end_request(thread, identity), timeout)
        return answer.task

    def state(self) -> State:
        """Return how the client is: its stream, what it holds, when the first of it ends, the last error."""
        with self._lock:
            return self._state()

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the stream, the channel and all who wait. Closing twice is fine."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._closing.set()
            streams, flights = list(self._streams), list(self._flights.values())
            self._newest = None
            self._entries.clear()
            self._entries.stream_is(up=False)
        for stream in streams:
            stream.outbox.put(None)
            if stream.call is not None:
                stream.call.cancel()
        for flight in flights:
            if flight.call is not None:
                flight.call.cancel()
        self._channels.retire().close()
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _touch(self, key: Key) -> None:
        """Begin a refresh of what is held, if that is due: for who uses it without asking for it."""
        question = Question(key)
        with self._lock:
            _, refresh = question.held(self._entries, time.monotonic())
            if not refresh or question in self._flights:
                return
            flight = self._flights[question] = _Flight(self._entries.asked(key))
        self._begin(question, flight)

    # --- one call for all who wait ------------------------------------------------------------------------------------

    def _ask(self, question: Question | Report, timeout: float | None) -> Authorization:
        seconds = self._deadline(timeout)
        deadline = time.monotonic() + seconds
        withdrawn = 0
        while withdrawn <= ASK_AGAIN:
            with self._lock:
                self._check_open()
                held, refresh = question.held(self._entries, time.monotonic())
                if held is not None and not refresh:
                    return held
                wanted = Question(question.key) if refresh else question
                flight = self._flights.get(wanted)
                begins = flight is None
                if flight is None:
                    flight = self._flights[wanted] = _Flight(self._entries.asked(question.key))
                elif not refresh:
                    flight.waiting += 1
            if begins:
                self._begin(wanted, flight)
            if held is not None:
                return held
            answer = self._wait(question, flight, deadline, seconds)
            if isinstance(answer, Authorization):
                return answer
            # A call that others began earlier may end before this one's time.
            joined_late = answer is not None and answer.code is grpc.StatusCode.DEADLINE_EXCEEDED and not begins
            if answer is not None and not joined_late:
                raise BrokerError(answer)
            withdrawn += answer is None
        raise BrokerError(withdrawn_again_and_again())

    def _wait(
        self, question: Question | Report, flight: _Flight, deadline: float, seconds: float
    ) -> Authorization | Failure | None:
        try:
            answer = flight.landed.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise BrokerError(deadline_exceeded(seconds)) from None
        finally:
            with self._lock:
                flight.waiting -= 1
                abandoned = not flight.waiting and not flight.landed.done()
                if abandoned and self._flights.get(question) is flight:
                    del self._flights[question]
            if abandoned and flight.call is not None:
                flight.call.cancel()
        self._check_open()
        return answer

    def _begin(self, question: Question | Report, flight: _Flight) -> None:
        try:
            channel = self._channels.acquire()
        except BaseException:
            with self._lock:
                del self._flights[question]
            raise
        stub: Any = CredentialBrokerStub(channel.grpc)
        try:
            call = getattr(stub, question.rpc).future(question.request(), timeout=self._timeout, metadata=METADATA)
        except ValueError:  # what gRPC raises for a channel that was closed meanwhile
            self._release(channel)
            self._land(question, flight, Failure(code=grpc.StatusCode.CANCELLED, message="the client was closed"))
            return
        flight.call = call
        call.add_done_callback(lambda done: self._arrived(question, flight, channel, done))

    def _arrived(self, question: Question | Report, flight: _Flight, channel: Channel[grpc.Channel], call: Any) -> None:
        now = time.monotonic()
        self._release(channel)
        if call.code() is grpc.StatusCode.OK:
            self._land(question, flight, Authorization(call.result().authorization, question.key, now))
        else:
            self._land(question, flight, failure_of_call(call))

    def _land(self, question: Question | Report, flight: _Flight, outcome: Authorization | Failure) -> None:
        now = time.monotonic()
        answer: Authorization | Failure | None = outcome
        with self._lock:
            if self._flights.get(question) is flight:
                del self._flights[question]
            if not self._is_closed and isinstance(outcome, Authorization):
                self._health.good()
                answer = question.answered(self._entries, flight.asked, outcome, now)
            elif not self._is_closed and isinstance(outcome, Failure):
                self._health.call_failed(outcome, now)
                question.failed(self._entries, flight.asked, outcome, now)
        self._health.say()
        self._ensure_watching()
        flight.landed.set_result(answer)

    def _call(self, rpc: str, request: Any, timeout: float | None) -> Any:
        self._check_open()
        channel = self._channels.acquire()
        try:
            method = getattr(CredentialBrokerStub(channel.grpc), rpc)
            response = method(request, timeout=self._deadline(timeout), metadata=METADATA)
        except (grpc.RpcError, ValueError) as error:
            self._check_open()  # closing cancels what is under way, and then the channel takes nothing more
            if not isinstance(error, grpc.Call):
                raise
            failure = failure_of_call(error)
            with self._lock:
                self._health.call_failed(failure, time.monotonic())
            self._health.say()
            raise BrokerError(failure) from None
        finally:
            self._release(channel)
        with self._lock:
            self._health.good()
        self._health.say()
        return response

    def _release(self, channel: Channel[grpc.Channel]) -> None:
        unused = self._channels.release(channel)
        if unused is not None:
            unused.close()

    # --- the stream ---------------------------------------------------------------------------------------------------

    def _ensure_watching(self) -> None:
        with self._lock:
            if self._watches and not self._is_closed and not self._watching and self._by_key:
                self._watching = True
                self._start_watching(0.0)

    def _start_watching(self, wait: float) -> None:
        thread = threading.Thread(target=self._keep_watching, args=(wait,), name="credentialbroker-watch", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _keep_watching(self, wait: float) -> None:
        next_wait: float | None = wait
        while next_wait is not None and not self._closing.wait(next_wait):
            next_wait = self._converse()
            self._health.say()
        self._threads.discard(threading.current_thread())

    def _converse(self) -> float | None:
        """Read a stream to its end. Returns the wait before the next; None where another thread opens it, or nobody."""
        stream = _Stream()
        channel = self._channels.acquire()
        try:
            with self._lock:
                if self._is_closed:
                    return None
                for message in self._watch.opened(time.monotonic()):
                    stream.outbox.put(message)
                self._streams.add(stream)
                self._newest = stream
            failure = self._read(stream, CredentialBrokerStub(channel.grpc))
        finally:
            stream.outbox.put(None)
            self._release(channel)
        with self._lock:
            self._streams.discard(stream)
            if self._newest is not stream or self._is_closed:
                return None
            self._newest = None
            wait = self._watch.ended(failure, time.monotonic())
            return None if stream.succeeded else wait

    def _read(self, stream: _Stream, stub: Any) -> Failure | None:
        try:
            stream.call = stub.WatchAuthorizations(self._messages(stream), metadata=METADATA)
            if self._closing.is_set():
                stream.call.cancel()
            if stream.call.initial_metadata():
                with self._lock:
                    self._watch.lives(time.monotonic())
                self._health.say()
            for event in stream.call:
                self._take(stream, event)
                self._health.say()
        except grpc.RpcError as error:
            return self._silent if stream.silent else failure_of_call(error)
        except ValueError:
            return None  # what gRPC raises for a channel that was closed meanwhile
        return None

    def _take(self, stream: _Stream, event: pb2.WatchAuthorizationsResponse) -> None:
        with self._lock:
            if self._is_closed:
                return
            wait = self._watch.take(event, time.monotonic(), newest=stream is self._newest)
            if wait is not None and not stream.succeeded:
                stream.succeeded = True
                self._start_watching(wait)

    def _messages(self, stream: _Stream) -> Iterator[pb2.WatchAuthorizationsRequest]:
        # Runs in the thread in which gRPC sends. While there is nothing to send it watches over the silence.
        while True:
            try:
                message = stream.outbox.get(timeout=max(0.01, self._watch.heard + self._silence - time.monotonic()))
            except queue.Empty:
                if time.monotonic() - self._watch.heard >= self._silence and stream.call is not None:
                    stream.silent = True
                    stream.call.cancel()
                    return
                continue
            if message is None:
                return
            yield message

    def _announce(self, message: pb2.WatchAuthorizationsRequest) -> None:
        if self._newest is not None:
            self._newest.outbox.put(message)

    # --- processes ----------------------------------------------------------------------------------------------------

    def _set_out(self) -> None:
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._flights = {}
        self._streams = set()
        self._newest = None
        self._threads = set()
        self._watching = False
        self._channels = Channels(self._settings, grpc.insecure_channel, grpc.secure_channel)
        _CLIENTS.add(self)

    def _set_out_in_child(self) -> None:
        # The threads are the parent's, and so are the sockets: what holds them is kept, since its end would end theirs.
        self._of_parent = self._channels, self._flights, self._streams
        if not self._is_closed:
            self._set_out()
            self._entries.look_at_all_again()


_CLIENTS: Final["weakref.WeakSet[Client]"] = weakref.WeakSet()
_forking: list[Client] = []


def _before_fork() -> None:
    # With its lock held nobody is half-way through a change of what a client holds.
    _forking.extend(_CLIENTS)
    for client in _forking:
        client._lock.acquire()  # noqa: SLF001 - of this module


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop()._lock.release()  # noqa: SLF001


def _after_fork_in_child() -> None:
    while _forking:
        _forking.pop()._set_out_in_child()  # noqa: SLF001


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


class Connection:
    """
    A connection that stays, such as a websocket: the headers to dial it with, and when they are over.

    Attributes:
        authorization: what it is dialled with.
    """

    def __init__(self, client: Client, authorization: Authorization) -> None:
        self.authorization: Final = authorization
        self._client: Final = client
        self._changed: Final = threading.Event()
        self._use: Final = Use(authorization.connection_tag, self._changed.set)
        with client._lock:  # noqa: SLF001 - of this module
            client._entries.connect(authorization, self._use)  # noqa: SLF001

    @property
    def headers(self) -> Headers:
        """All headers to dial with."""
        return self.authorization.headers

    @property
    def connection_tag(self) -> str:
        """The tag that the connection is authenticated under."""
        return self.authorization.connection_tag

    def changed(self) -> bool:
        """Return whether the connection must be closed: its headers were withdrawn, or are of another tag by now."""
        if not self._changed.is_set():
            self._client._touch(self.authorization.key)  # noqa: SLF001
        return self._changed.is_set()

    def wait_changed(self, timeout: float | None = None) -> bool:
        """
        Wait until the connection must be closed, or until so many seconds have passed. Returns whether it must.

        Raises:
            ClosedError: the client was closed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.changed():
            left = _SLICE_SECONDS if deadline is None else min(_SLICE_SECONDS, deadline - time.monotonic())
            if left <= 0:
                return False
            self._changed.wait(left)
        if self._client._is_closed:  # noqa: SLF001
            raise ClosedError
        return True

    def close(self) -> None:
        """Forget the connection, which is closed. Closing twice is fine."""
        with self._client._lock:  # noqa: SLF001
            self._client._entries.disconnect(self.authorization.key, self._use)  # noqa: SLF001

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Connection with {self.authorization!r}>"
