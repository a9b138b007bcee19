"""The client for threads. `credentialbroker.aio` has the one for asyncio."""

import contextlib
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
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
    failure_of_exception,
    withdrawn_again_and_again,
)
from credentialbroker.questions import ASK_AGAIN, Question, Report
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1.credential_broker_pb2_grpc import CredentialBrokerStub
from credentialbroker.watch import State

_LOG: Final = logging.getLogger("credentialbroker")
_SLICE_SECONDS: Final = 1.0
"""How often a client that does not watch looks what is idle, and what its open connections need."""


class _Flight:
    """A call under way, and how many wait for it. A refresh in the background counts as one who waits."""

    __slots__ = ("asked", "call", "landed", "request", "waiting")

    def __init__(self, asked: Asked, request: Any) -> None:
        self.asked: Final = asked
        self.request: Final = request
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
    _working: bool

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
        for channel in self._channels.retire():
            channel.close()
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
            flight = self._new_flight(question)
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
                    flight = self._new_flight(wanted)
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

    def _new_flight(self, question: Question | Report) -> _Flight:
        # The request is made first: what is wrong with arguments is told to who gave them, and to nobody else.
        flight = _Flight(self._entries.asked(question.key), question.request())
        self._flights[question] = flight
        return flight

    def _begin(self, question: Question | Report, flight: _Flight) -> None:
        # Whatever happens the flight lands, or all who ask the same would wait for it.
        channel: Channel[grpc.Channel] | None = None
        try:
            channel = self._channels.acquire()
            stub: Any = CredentialBrokerStub(channel.grpc)
            call = getattr(stub, question.rpc).future(flight.request, timeout=self._timeout, metadata=METADATA)
        except BaseException as error:
            if channel is not None:
                self._release(channel)
            self._land(question, flight, failure_of_exception(error))
            if not isinstance(error, Exception):
                raise
            return
        flight.call = call
        used = channel
        call.add_done_callback(lambda done: self._arrived(question, flight, used, done))

    def _arrived(self, question: Question | Report, flight: _Flight, channel: Channel[grpc.Channel], call: Any) -> None:
        now = time.monotonic()
        outcome: Authorization | Failure
        try:
            if call.code() is grpc.StatusCode.OK:
                outcome = Authorization(call.result().authorization, question.key, now)
            else:
                outcome = failure_of_call(call)
        except Exception as error:  # noqa: BLE001 - gRPC would swallow it, and nobody learn that the call has ended
            outcome = failure_of_exception(error)
        try:
            self._release(channel)
        finally:
            self._land(question, flight, outcome)

    def _land(self, question: Question | Report, flight: _Flight, outcome: Authorization | Failure) -> None:
        now = time.monotonic()
        answer: Authorization | Failure | None = outcome
        try:
            with self._lock:
                if self._flights.get(question) is flight:
                    del self._flights[question]
                if not self._is_closed and isinstance(outcome, Authorization):
                    self._health.good()
                    answer = question.answered(self._entries, flight.asked, outcome, now)
                elif not self._is_closed and isinstance(outcome, Failure):
                    self._health.call_failed(outcome, now)
                    question.failed(self._entries, flight.asked, outcome, now)
        finally:
            flight.landed.set_result(answer)
        self._health.say()
        self._ensure_working()

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
        for unused in self._channels.release(channel):
            unused.close()

    # --- work in the background ---------------------------------------------------------------------------------------

    def _ensure_working(self) -> None:
        with self._lock:
            if self._is_closed or self._working or not self._by_key:
                return
            # Where there is no thread to be had now, the next answer tries again.
            with contextlib.suppress(RuntimeError):
                if self._watches:
                    self._start(self._keep_watching, 0.0)
                else:
                    self._start(self._keep_looking)
                self._working = True

    def _start(self, work: Callable[..., None], *arguments: float) -> None:
        thread = threading.Thread(target=work, args=arguments, name="credentialbroker-work", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except BaseException:
            self._threads.discard(thread)
            raise

    def _keep_looking(self) -> None:
        """Do what the stream brings about on a client that watches."""
        while not self._closing.wait(_SLICE_SECONDS):
            now = time.monotonic()
            with self._lock:
                self._entries.sweep(now)
                if not self._by_key:
                    self._working = False
                    break
                questions = map(Question, self._entries.connected_and_due(now))
                begun = [(each, self._new_flight(each)) for each in questions if each not in self._flights]
            for question, flight in begun:
                self._begin(question, flight)
        self._threads.discard(threading.current_thread())

    def _keep_watching(self, wait: float) -> None:
        next_wait: float | None = wait
        while next_wait is not None and not self._closing.wait(next_wait):
            next_wait = self._converse()
            self._health.say()
        self._threads.discard(threading.current_thread())

    def _converse(self) -> float | None:
        """Read a stream to its end. Returns the wait before the next; None where another thread opens it, or nobody."""
        stream = _Stream()
        with self._lock:
            if self._is_closed:
                return None
            self._streams.add(stream)
            self._newest = stream
            for message in self._watch.opened(time.monotonic()):
                stream.outbox.put(message)
        failure = self._read(stream)
        with self._lock:
            self._streams.discard(stream)
            if self._newest is not stream or self._is_closed:
                return None
            self._newest = None
            wait = self._watch.ended(failure, time.monotonic())
            return None if stream.succeeded else wait

    def _read(self, stream: _Stream) -> Failure | None:
        channel: Channel[grpc.Channel] | None = None
        try:
            channel = self._channels.acquire()
            stub: Any = CredentialBrokerStub(channel.grpc)
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
        except Exception as error:  # noqa: BLE001 - whatever it is, watching goes on with the next stream
            return failure_of_exception(error)
        finally:
            stream.outbox.put(None)
            if stream.call is not None:
                stream.call.cancel()
            if channel is not None:
                self._release(channel)
        return None

    def _take(self, stream: _Stream, event: pb2.WatchAuthorizationsResponse) -> None:
        with self._lock:
            if self._is_closed:
                return
            wait = self._watch.take(event, time.monotonic(), newest=stream is self._newest)
            if wait is not None and not stream.succeeded:
                self._start(self._keep_watching, wait)
                stream.succeeded = True

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
        self._working = False

    def _connect(self) -> Channels[grpc.Channel]:
        channels = Channels(self._settings, grpc.insecure_channel, grpc.secure_channel)
        with _FORK:
            _CLIENTS.add(self)
        return channels

    def _set_out_in_child(self) -> None:
        # The threads are the parent's, and so are the sockets: what holds them is kept, since its end would end theirs.
        self._of_parent = self._channels, self._flights, self._streams
        closed, self._is_closed = self._is_closed, True
        self._set_out()
        if not closed:
            self._channels = self._channels.in_child()
            self._entries.look_at_all_again()
            self._is_closed = False


_CLIENTS: Final["weakref.WeakSet[Client]"] = weakref.WeakSet()
_FORK: Final = threading.Lock()
"""Held during a fork: of two at once each would wait for what the other has."""
_forking: list[Client] = []


def _before_fork() -> None:
    # With its lock held nobody is half-way through a change of what a client holds.
    _FORK.acquire()
    _forking.extend(_CLIENTS)
    for client in _forking:
        client._lock.acquire()  # noqa: SLF001 - of this module


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop()._lock.release()  # noqa: SLF001
    _FORK.release()


def _after_fork_in_child() -> None:
    while _forking:
        client = _forking.pop()
        try:
            client._set_out_in_child()  # noqa: SLF001
        except Exception:  # noqa: BLE001 - logged with its traceback
            # That one is closed in the child; the others go on.
            _LOG.exception("a client could not be taken over a fork")
    _FORK.release()


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
            self._client._entries.disconnect(self.authorization.key, self._use, time.monotonic())  # noqa: SLF001

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Connection with {self.authorization!r}>"
