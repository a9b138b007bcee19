"""The client for asyncio. `credentialbroker.client` has the one for threads."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
import grpc.aio

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

_SLICE_SECONDS: Final = 1.0
"""How often a client that does not watch looks what is idle, and what its open connections need."""

ResponseT = TypeVar("ResponseT")


class _Flight:
    """A call under way, and how many wait for it. A refresh in the background counts as one who waits."""

    __slots__ = ("asked", "task", "waiting")

    def __init__(self, asked: Asked) -> None:
        self.asked: Final = asked
        self.task: asyncio.Task[Authorization | Failure | None]
        self.waiting = 0


class _Stream:
    """A stream, and what is still to be sent on it; None ends the sending."""

    __slots__ = ("outbox", "succeeded")

    def __init__(self) -> None:
        self.succeeded = False
        self.outbox: Final[asyncio.Queue[pb2.WatchAuthorizationsRequest | None]] = asyncio.Queue()


class AsyncClient(BaseClient[grpc.aio.Channel]):
    """
    A client of the credential broker: headers for calls to a backend, from memory, kept current by the broker.

    Make one inside the event loop that it is for, share it between all tasks, and await `close()` at the end (or use it
    in an `async with` block). Cancelling a task that waits cancels nothing of others who wait for the same.
    """

    _flights: dict[Question | Report, _Flight]
    _newest: _Stream | None
    _tasks: set[asyncio.Task[Any]]
    _working: bool

    # --- asking -------------------------------------------------------------------------------------------------------

    async def authorization(
        self,
        scope: str,
        thread: str = "",
        *,
        identity: str | None = None,
        target_url: str | None = None,
        min_validity: float = 0.0,
        timeout: float | None = None,  # noqa: ASYNC109 - of the call, as in gRPC
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
        return await self._ask(self._question(scope, thread, identity, target_url, min_validity), timeout)

    async def report_rejected(
        self,
        authorization: Authorization,
        detail: str = "",
        *,
        timeout: float | None = None,  # noqa: ASYNC109
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
        return await self._ask(Report(authorization.key, authorization.revision, detail), timeout)

    async def connection(
        self,
        scope: str,
        thread: str = "",
        *,
        identity: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> "AsyncConnection":
        """
        Return the headers for dialling a connection that stays, such as a websocket, and a way to learn of their end.

        Args, errors: as of `authorization`. Close it with the connection.
        """
        return AsyncConnection(self, await self.authorization(scope, thread, identity=identity, timeout=timeout))

    async def register_task(
        self,
        thread: str = "",
        *,
        identity: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> pb2.Task:
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
        answer: pb2.RegisterTaskResponse = await self._call("RegisterTask", request, timeout)
        return answer.task

    async def end_task(
        self,
        thread: str,
        *,
        identity: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> pb2.Task:
        """End the task of a thread: the broker gives no headers for it any more. Args, errors: of `register_task`."""
        answer: pb2.EndTaskResponse = await self._call("EndTask", self._end_request(thread, identity), timeout)
        return answer.task

    def state(self) -> State:
        """Return how the client is: its stream, what it holds, when the first of it ends, the last error."""
        return self._state()

    # --- the end ------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the stream, the channel and all who wait. Closing twice is fine."""
        if not self._is_closed:
            self._is_closed = True
            self._newest = None
            self._entries.clear()
            self._entries.stream_is(up=False)
            for task in self._tasks:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for channel in self._channels.retire():
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # --- one call for all who wait ------------------------------------------------------------------------------------

    async def _ask(self, question: Question | Report, timeout: float | None) -> Authorization:  # noqa: ASYNC109
        seconds = self._deadline(timeout)
        deadline = time.monotonic() + seconds
        withdrawn = 0
        while withdrawn <= ASK_AGAIN:
            self._check_open()
            held, refresh = question.held(self._entries, time.monotonic())
            if held is not None:
                if refresh:
                    self._touch(question.key, refresh=True)
                return held
            flight = self._flights.get(question)
            begins = flight is None
            if flight is None:
                flight = self._begin(question)
            answer = await self._wait(question, flight, deadline, seconds)
            if isinstance(answer, Authorization):
                return answer
            # A call that others began earlier may end before this one's time.
            joined_late = answer is not None and answer.code is grpc.StatusCode.DEADLINE_EXCEEDED and not begins
            if answer is not None and not joined_late:
                raise BrokerError(answer)
            withdrawn += answer is None
        raise BrokerError(withdrawn_again_and_again())

    async def _wait(
        self, question: Question | Report, flight: _Flight, deadline: float, seconds: float
    ) -> Authorization | Failure | None:
        flight.waiting += 1
        try:
            await asyncio.wait({flight.task}, timeout=max(0.0, deadline - time.monotonic()))
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                if self._flights.get(question) is flight:
                    del self._flights[question]
                flight.task.cancel()
        self._check_open()
        if not flight.task.done() or flight.task.cancelled():
            raise BrokerError(deadline_exceeded(seconds))
        return flight.task.result()

    def _begin(self, question: Question | Report) -> _Flight:
        # The request is made first: what is wrong with arguments is told to who gave them, and to nobody else.
        flight, request = _Flight(self._entries.asked(question.key)), question.request()
        flight.task = self._start(self._fly(question, flight, request), "credentialbroker-call")
        self._flights[question] = flight
        return flight

    def _touch(self, key: Key, *, refresh: bool = False) -> None:
        """Begin a refresh of what is held, if that is due."""
        question = Question(key)
        if not refresh:
            _, refresh = question.held(self._entries, time.monotonic())
        if refresh:
            flight = self._flights.get(question) or self._begin(question)
            flight.waiting += 1

    async def _fly(self, question: Question | Report, flight: _Flight, request: Any) -> Authorization | Failure | None:
        outcome: Authorization | Failure
        try:
            outcome = await self._send(question, request)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the failure of this call
            outcome = failure_of_exception(error)
        finally:
            if self._flights.get(question) is flight:
                del self._flights[question]
        now = time.monotonic()
        answer: Authorization | Failure | None = outcome
        if isinstance(outcome, Authorization):
            self._health.good()
            answer = question.answered(self._entries, flight.asked, outcome, now)
        else:
            self._health.call_failed(outcome, now)
            question.failed(self._entries, flight.asked, outcome, now)
        self._health.say()
        self._ensure_working()
        return answer

    async def _send(self, question: Question | Report, request: Any) -> Authorization | Failure:
        channel = self._channels.acquire()
        stub: Any = CredentialBrokerStub(channel.grpc)
        try:
            response = await getattr(stub, question.rpc)(request, timeout=self._timeout, metadata=METADATA)
            return Authorization(response.authorization, question.key, time.monotonic())
        except grpc.aio.AioRpcError as error:
            return failure_of_call(error)
        finally:
            await self._release(channel)

    async def _call(self, rpc: str, request: Any, timeout: float | None) -> Any:  # noqa: ASYNC109
        self._check_open()
        channel = self._channels.acquire()
        method = getattr(CredentialBrokerStub(channel.grpc), rpc)
        try:
            response = await method(request, timeout=self._deadline(timeout), metadata=METADATA)
        except grpc.aio.AioRpcError as error:
            self._check_open()  # closing cancels what is under way
            failure = failure_of_call(error)
            self._health.call_failed(failure, time.monotonic())
            raise BrokerError(failure) from None
        except asyncio.CancelledError:
            self._check_open()  # closing cancels what is under way, and not only who waits
            raise
        finally:
            self._health.say()
            await self._release(channel)
        self._health.good()
        return response

    async def _release(self, channel: Channel[grpc.aio.Channel]) -> None:
        for unused in self._channels.release(channel):
            await unused.close()

    def _start(self, work: Any, name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- work in the background ---------------------------------------------------------------------------------------

    def _ensure_working(self) -> None:
        if not self._is_closed and not self._working and self._by_key:
            self._working = True
            work = self._keep_watching(0.0) if self._watches else self._keep_looking()
            self._start(work, "credentialbroker-work")

    async def _keep_looking(self) -> None:
        """Do what the stream brings about on a client that watches."""
        while self._by_key:
            await asyncio.sleep(_SLICE_SECONDS)
            now = time.monotonic()
            self._entries.sweep(now)
            for key in self._entries.connected_and_due(now):
                self._touch(key, refresh=True)
        self._working = False

    async def _keep_watching(self, wait: float) -> None:
        next_wait: float | None = wait
        while next_wait is not None:
            await asyncio.sleep(next_wait)
            next_wait = await self._converse()
            self._health.say()

    async def _converse(self) -> float | None:
        """Read a stream to its end. Returns the wait before the next; None where another task opens it."""
        stream = self._newest = _Stream()
        for message in self._watch.opened(time.monotonic()):
            stream.outbox.put_nowait(message)
        try:
            failure = await self._open(stream)
        except Exception as error:  # noqa: BLE001 - whatever it is, watching goes on with the next stream
            failure = failure_of_exception(error)
        if self._newest is not stream:
            return None
        self._newest = None
        wait = self._watch.ended(failure, time.monotonic())
        return None if stream.succeeded else wait

    async def _open(self, stream: _Stream) -> Failure | None:
        channel = self._channels.acquire()
        try:
            call: Any = CredentialBrokerStub(channel.grpc).WatchAuthorizations(_messages(stream), metadata=METADATA)
            try:
                return await self._read(stream, call)
            finally:
                call.cancel()
        finally:
            stream.outbox.put_nowait(None)
            await self._release(channel)

    async def _read(self, stream: _Stream, call: Any) -> Failure | None:
        try:
            if await self._heard(call.initial_metadata()):
                self._watch.lives(time.monotonic())
                self._health.say()
            while (event := await self._heard(call.read())) is not grpc.aio.EOF:
                self._take(stream, event)
                self._health.say()
        except TimeoutError:
            return self._silent
        except grpc.aio.AioRpcError as error:
            return failure_of_call(error)
        if await call.code() is grpc.StatusCode.OK:
            return None
        return Failure(code=await call.code(), message=await call.details())

    def _take(self, stream: _Stream, event: pb2.WatchAuthorizationsResponse) -> None:
        wait = self._watch.take(event, time.monotonic(), newest=stream is self._newest)
        if wait is not None and not stream.succeeded:
            stream.succeeded = True
            self._start(self._keep_watching(wait), "credentialbroker-watch")

    async def _heard(self, coming: Awaitable[ResponseT]) -> ResponseT:
        async with asyncio.timeout(self._silence):
            return await coming

    def _announce(self, message: pb2.WatchAuthorizationsRequest) -> None:
        if self._newest is not None:
            self._newest.outbox.put_nowait(message)

    def _set_out(self) -> None:
        self._flights = {}
        self._newest = None
        self._tasks = set()
        self._working = False

    def _connect(self) -> Channels[grpc.aio.Channel]:
        return Channels(self._settings, grpc.aio.insecure_channel, grpc.aio.secure_channel)


async def _messages(stream: _Stream) -> AsyncIterator[pb2.WatchAuthorizationsRequest]:
    while (message := await stream.outbox.get()) is not None:
        yield message


class AsyncConnection:
    """
    A connection that stays, such as a websocket: the headers to dial it with, and when they are over.

    Attributes:
        authorization: what it is dialled with.
    """

    def __init__(self, client: AsyncClient, authorization: Authorization) -> None:
        self.authorization: Final = authorization
        self._client: Final = client
        self._changed: Final = asyncio.Event()
        self._use: Final = Use(authorization.connection_tag, self._changed.set)
        client._entries.connect(authorization, self._use)  # noqa: SLF001 - of this module

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

    async def wait_changed(self) -> None:
        """
        Wait until the connection must be closed.

        Raises:
            ClosedError: the client was closed.
        """
        while not self.changed():
            try:
                async with asyncio.timeout(_SLICE_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                continue
        if self._client._is_closed:  # noqa: SLF001
            raise ClosedError

    def close(self) -> None:
        """Forget the connection, which is closed. Closing twice is fine."""
        self._client._entries.disconnect(self.authorization.key, self._use, time.monotonic())  # noqa: SLF001

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<AsyncConnection with {self.authorization!r}>"
