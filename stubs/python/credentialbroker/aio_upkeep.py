"""What the client for asyncio does in the background, so that what it holds stays current."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final, TypeVar

import grpc
import grpc.aio

from credentialbroker.aio_calls import AioCalls, AioCore, Start
from credentialbroker.channels import METADATA
from credentialbroker.errors import Failure, failure_of_call, failure_of_exception
from credentialbroker.lifetimes import LOOK_SECONDS
from credentialbroker.v1 import credential_broker_pb2 as pb2
from credentialbroker.v1.credential_broker_pb2_grpc import CredentialBrokerStub

ResponseT = TypeVar("ResponseT")
_Outbox = asyncio.Queue[pb2.WatchAuthorizationsRequest | None]


class AioUpkeep:
    """Watches the broker in a task, or looks at times what is to be asked; once there is something to keep."""

    def __init__(self, core: AioCore, start: Start, calls: AioCalls) -> None:
        """Do nothing yet."""
        self._core: Final = core
        self._start: Final = start
        self._calls: Final = calls
        self._works = False

    def begin(self) -> None:
        """Begin, where there is something to keep current and nothing was begun."""
        core = self._core
        if not core.is_closed and not self._works and core.entries.by_key:
            self._works = True
            work = self._keep_watching(0.0) if core.watches else self._keep_looking()
            self._start(work, "credentialbroker-work")

    # --- without a watch ----------------------------------------------------------------------------------------------

    async def _keep_looking(self) -> None:
        entries = self._core.entries
        while entries.by_key:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            entries.sweep(now)
            for key in entries.connected_and_due(now):
                self._calls.refresh(key)
        self._works = False

    # --- with one -----------------------------------------------------------------------------------------------------

    async def _keep_watching(self, wait: float) -> None:
        next_wait: float | None = wait
        while next_wait is not None:
            await asyncio.sleep(next_wait)
            next_wait = await self._converse()
            self._core.health.say()

    async def _converse(self) -> float | None:
        """Read a stream to its end. Returns the wait before the next; None where another task opens it."""
        watch = self._core.watch
        outbox = _Outbox()
        watch.opened(outbox, time.monotonic())
        try:
            failure = await self._open(outbox)
        except Exception as error:  # noqa: BLE001 - whatever it is, watching goes on with the next stream
            failure = failure_of_exception(error)
        return watch.ended(outbox, failure, time.monotonic())

    async def _open(self, outbox: _Outbox) -> Failure | None:
        channel = self._core.channels.acquire()
        try:
            call: Any = CredentialBrokerStub(channel.grpc).WatchAuthorizations(_messages(outbox), metadata=METADATA)
            try:
                return await self._read(outbox, call)
            finally:
                call.cancel()
        finally:
            outbox.put_nowait(None)
            await self._calls.release(channel)

    async def _read(self, outbox: _Outbox, call: Any) -> Failure | None:
        core = self._core
        try:
            if await self._heard(call.initial_metadata()):
                core.watch.lives(time.monotonic())
                core.health.say()
            while (event := await self._heard(call.read())) is not grpc.aio.EOF:
                self._take(outbox, event)
                core.health.say()
        except TimeoutError:
            return core.silent()
        except grpc.aio.AioRpcError as error:
            return failure_of_call(error)
        if await call.code() is grpc.StatusCode.OK:
            return None
        return Failure(code=await call.code(), message=await call.details())

    def _take(self, outbox: _Outbox, event: pb2.WatchAuthorizationsResponse) -> None:
        watch = self._core.watch
        wait = watch.take(outbox, event, time.monotonic())
        if wait is not None:
            watch.succeeded = True
            self._start(self._keep_watching(wait), "credentialbroker-work")

    async def _heard(self, coming: Awaitable[ResponseT]) -> ResponseT:
        async with asyncio.timeout(self._core.silence):
            return await coming


async def _messages(outbox: _Outbox) -> AsyncIterator[pb2.WatchAuthorizationsRequest]:
    while (message := await outbox.get()) is not None:
        yield message
