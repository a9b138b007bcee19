"""The client for asyncio. `credentialbroker.client` has the one for threads."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

import grpc.aio

from credentialbroker.aio_calls import AioCalls, Landed
from credentialbroker.aio_upkeep import AioUpkeep
from credentialbroker.authorization import Authorization
from credentialbroker.base import BaseClient
from credentialbroker.channels import Channels
from credentialbroker.connections import BaseConnection
from credentialbroker.lifetimes import LOOK_SECONDS
from credentialbroker.questions import Report
from credentialbroker.v1 import credential_broker_pb2 as pb2


class AsyncClient(BaseClient[grpc.aio.Channel, Landed]):
    """
    A client of the credential broker: headers for calls to a backend, from memory, kept current by the broker.

    Make one inside the event loop that it is for, share it between all tasks, and await `close()` at the end (or use it
    in an `async with` block). Cancelling a task that waits cancels nothing of others who wait for the same.
    """

    _tasks: set[asyncio.Task[Any]]
    _calls: AioCalls
    _upkeep: AioUpkeep

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
        if target_url is None and not min_validity:
            held = self._current((identity or self._identity, scope, thread), time.monotonic())
            if held is not None:
                return held
        return await self._calls.ask(self._question(scope, thread, identity, target_url, min_validity), timeout)

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
        return await self._calls.ask(Report(authorization.key, authorization.revision, detail), timeout)

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
        authorization = await self.authorization(scope, thread, identity=identity, timeout=timeout)
        return AsyncConnection(self._core, authorization, asyncio.Event(), self._calls.touch)

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
        answer: pb2.RegisterTaskResponse = await self._calls.call("RegisterTask", request, timeout)
        return answer.task

    async def end_task(
        self,
        thread: str,
        *,
        identity: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> pb2.Task:
        """
        End the task of a thread: the broker gives no headers for it any more, and what is held for it is dropped.

        Args, errors: as of `register_task`.
        """
        answer: pb2.EndTaskResponse = await self._calls.call("EndTask", self._end_request(thread, identity), timeout)
        self._task_ended(thread, identity)
        return answer.task

    # --- the end ------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the stream, the channel and all who wait. Closing twice is fine."""
        core = self._core
        if not core.is_closed:
            core.close()
            for task in self._tasks:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for channel in core.channels.retire():
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # --- the parts ----------------------------------------------------------------------------------------------------

    def _new_lock(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()  # all happens in the one thread of the loop

    def _connect(self) -> Channels[grpc.aio.Channel]:
        return Channels(self._settings, grpc.aio.insecure_channel, grpc.aio.secure_channel)

    def _set_out(self) -> None:
        self._tasks = set()
        self._calls = AioCalls(self._core, self._start, self._landed)
        self._upkeep = AioUpkeep(self._core, self._start, self._calls)

    def _landed(self) -> None:
        self._upkeep.begin()

    def _start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class AsyncConnection(BaseConnection[asyncio.Event]):
    """
    A connection that stays, such as a websocket: the headers to dial it with, and when they are over.

    Attributes:
        authorization: what it is dialled with.
    """

    async def wait_changed(self) -> None:
        """
        Wait until the connection must be closed.

        Raises:
            ClosedError: the client was closed.
        """
        while not self.changed():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._changed.wait()
        self._core.check_open()
